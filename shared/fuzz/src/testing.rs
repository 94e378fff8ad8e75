//! What the environment of a test says about fuzzing.

use std::{env, time::Duration};

use crate::Settings;

/// Settings, and a part of the names of the targets that are wanted.
pub(crate) fn settings() -> (Settings, Option<String>) {
    let default = Settings::default();
    let settings = Settings {
        time: number("FUZZ_SECONDS").map_or(default.time, Duration::from_secs),
        seed: number("FUZZ_SEED").unwrap_or(default.seed),
        ..default
    };
    let pick = env::var("FUZZ_TARGET").ok().filter(|pick| !pick.is_empty());
    (settings, pick)
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no whole number")),
    )
}
