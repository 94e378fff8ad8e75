//! Fuzzing in ordinary tests: inputs are mutated from kept ones, on the stable toolchain, with no build of its own.
//!
//! A target is a function over text that panics where a property does not hold, and returns the *shape* of what
//! happened (which error, which verb, how many steps). An input with a shape that was not seen before is kept and
//! mutated further: the role that coverage plays elsewhere, told by the target instead of by instrumentation.
//!
//! Invariants:
//! - Every kept input of `tests/corpus/<target>` is tried, always: those are the regression tests.
//! - Time, pool and input sizes are bounded ([`Settings`]).
//! - An input that fails is made small, written to a file, and shown.
#![warn(missing_docs)]

mod mutate;
mod rng;
mod shrink;
mod testing;

use std::{
    cell::Cell,
    collections::HashSet,
    fmt, fs,
    hash::{DefaultHasher, Hash, Hasher},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Once,
    time::{Duration, Instant},
};

pub use self::rng::Rng;

/// What is tried.
#[derive(Debug)]
pub struct Target<'a> {
    /// Its name: that of its directory in `tests/corpus`, and what `FUZZ_TARGET` picks it by.
    pub name: &'a str,
    /// `env!("CARGO_MANIFEST_DIR")` of the test.
    pub crate_dir: &'a str,
    /// `env!("CARGO_TARGET_TMPDIR")` of the test: where a failing input is written.
    pub tmp_dir: &'a str,
    /// Inputs to begin with, beside the kept ones.
    pub seeds: Vec<String>,
    /// Words that are put in: keywords, separators, hostile pieces.
    pub words: &'a [&'a str],
}

/// How long, and from which seed.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// For one target.
    pub time: Duration,
    /// The same seed gives the same inputs, as far as time allows.
    pub seed: u64,
    /// Bytes of an input.
    pub input_bytes_max: usize,
    /// Inputs that are kept in memory.
    pub pool_max: usize,
}

impl Default for Settings {
    /// Ten seconds, seed 1, inputs of 8 KiB, 4,096 of them.
    fn default() -> Self {
        Self {
            time: Duration::from_secs(10),
            seed: 1,
            input_bytes_max: 8 * 1024,
            pool_max: 4_096,
        }
    }
}

/// An input for which a property does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    /// The input, made small.
    pub input: String,
    /// What the target said.
    pub message: String,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Inputs that were tried.
    pub inputs: u64,
    /// Shapes that were seen.
    pub shapes: usize,
    /// The first input that failed.
    pub failing: Option<Failing>,
}

/// Fuzzes `target` by `try_one`, for as long and from the seed that `FUZZ_SECONDS` (10) and `FUZZ_SEED` (1) say.
/// `FUZZ_TARGET` picks targets by a part of their name; of the others the kept inputs alone are tried.
///
/// # Panics
/// With the smallest failing input that was found, and where it was written.
pub fn fuzz(target: &Target<'_>, try_one: impl Fn(&str) -> u64) {
    let (settings, pick) = testing::settings();
    fuzz_with(target, settings, pick.as_deref(), try_one);
}

/// The same with settings of one's own.
///
/// `pick` is what `FUZZ_TARGET` says: where it is given and is not a part of the target's name, only the kept inputs
/// are tried.
///
/// # Panics
/// With the smallest failing input that was found, and where it was written.
pub fn fuzz_with(target: &Target<'_>, settings: Settings, pick: Option<&str>, try_one: impl Fn(&str) -> u64) {
    let is_picked = pick.is_none_or(|pick| target.name.contains(pick));
    let time = if is_picked { settings.time } else { Duration::ZERO };
    let outcome = run(target, Settings { time, ..settings }, &try_one);
    println!(
        "fuzz {}: {} inputs, {} shapes, seed {}",
        target.name, outcome.inputs, outcome.shapes, settings.seed
    );
    if let Some(failing) = outcome.failing {
        let kept = target.corpus();
        let path = write(target, &failing.input);
        panic!(
            "{}: {}\nthe smallest input that fails so, {:?}:\n{}\nwritten to {}; keep it in {} once it is mended",
            target.name,
            failing.message,
            failing.input,
            failing.input,
            path.map_or_else(
                |error| format!("no file ({error})"),
                |path| path.display().to_string()
            ),
            kept.display()
        );
    }
}

impl Target<'_> {
    fn corpus(&self) -> PathBuf {
        Path::new(self.crate_dir).join("tests/corpus").join(self.name)
    }

    /// The kept inputs, by name. A directory that is not there keeps none.
    fn kept(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.corpus()) else {
            return Vec::new();
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let read = |path: &PathBuf| {
            fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        paths.iter().map(read).collect()
    }
}

/// The loop: the kept inputs and the seeds, then what is made of them.
pub fn run(target: &Target<'_>, settings: Settings, try_one: &impl Fn(&str) -> u64) -> Outcome {
    let began = Instant::now();
    let mut rng = Rng::new(settings.seed);
    let mut shapes = HashSet::new();
    let mut pool: Vec<String> = Vec::new();
    let mut inputs = 0;
    let mut attempt = |input: String, pool: &mut Vec<String>, keep: bool| {
        inputs += 1;
        match caught(try_one, &input) {
            Ok(shape) => {
                let is_new = shapes.insert(shape);
                if (is_new || keep) && pool.len() < settings.pool_max {
                    pool.push(input);
                }
                None
            }
            Err(_) => Some(input),
        }
    };
    let begin_with = target.kept().into_iter().chain(target.seeds.iter().cloned());
    let mut failing = begin_with
        .into_iter()
        .find_map(|input| attempt(input, &mut pool, true));
    let words: Vec<String> = target.words.iter().map(|word| (*word).to_owned()).collect();
    while failing.is_none() && !pool.is_empty() && began.elapsed() < settings.time {
        // The newest shapes are the least explored: half of the inputs are made of the last eighth.
        let newest = pool.len() - pool.len() / 8;
        let index = match rng.below(2) {
            0 if newest < pool.len() => newest + rng.below(pool.len() - newest),
            _ => rng.below(pool.len()),
        };
        let other = rng.below(pool.len());
        let mutated = mutate::mutated(
            &pool[index],
            &pool[other],
            &words,
            settings.input_bytes_max,
            &mut rng,
        );
        failing = attempt(mutated, &mut pool, false);
    }
    let failing = failing.map(|input| {
        let input = shrink::shrink(&input, |candidate| caught(try_one, candidate).is_err());
        let message = caught(try_one, &input).err().unwrap_or_default();
        Failing { input, message }
    });
    Outcome {
        inputs,
        shapes: shapes.len(),
        failing,
    }
}

/// A number for what happened, of whatever tells it from something else. Of texts, give those without values.
pub fn shape(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The words of a message without what varies: quoted parts and numbers. For [`shape`].
pub fn gist(message: impl fmt::Display) -> String {
    let message = message.to_string();
    let outside_of_quotes = message.split(['`', '"', '\'']).step_by(2);
    let words = outside_of_quotes.flat_map(|part| part.split_whitespace());
    let is_word = |word: &&str| word.chars().all(char::is_alphabetic);
    words.filter(is_word).take(12).collect::<Vec<_>>().join(" ")
}

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Tries one input; the panic's text where it fails, which is not printed.
fn caught(try_one: &impl Fn(&str) -> u64, input: &str) -> Result<u64, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                usual(info);
            }
        }));
    });
    IS_QUIET.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(|| try_one(input)));
    IS_QUIET.set(false);
    result.map_err(|payload| match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload
            .downcast::<&str>()
            .map_or_else(|_| "a panic without text".to_owned(), |text| (*text).to_owned()),
    })
}

fn write(target: &Target<'_>, input: &str) -> std::io::Result<PathBuf> {
    let name = format!("fuzz-{}-{:08x}.txt", target.name, shape(input) as u32);
    let path = Path::new(target.tmp_dir).join(name);
    fs::write(&path, input)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &'static str, tmp_dir: &'static str) -> Target<'static> {
        Target {
            name,
            crate_dir: env!("CARGO_MANIFEST_DIR"),
            tmp_dir,
            seeds: vec!["get pods -n default".to_owned()],
            words: &["secret", "--"],
        }
    }

    /// Fails where three things come together, each of which is a shape of its own.
    fn picky(input: &str) -> u64 {
        let signs = ["secret", "--", "\n"].map(|sign| input.contains(sign));
        assert!(signs != [true; 3], "all three");
        shape(signs)
    }

    #[test]
    fn what_fails_is_found_and_made_small() {
        let settings = Settings {
            time: Duration::from_secs(60),
            ..Settings::default()
        };
        let outcome = run(&target("none", ""), settings, &picky);
        let failing = outcome.failing.expect("it is found");
        assert_eq!(failing.message, "all three");
        // Nothing can be left out of it.
        assert_eq!(failing.input.len(), "secret--\n".len(), "{failing:?}");
    }

    #[test]
    fn a_failing_input_is_written_and_shown() {
        let directory = std::env::temp_dir().join(format!("fuzz-test-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let tmp_dir: &'static str = Box::leak(directory.display().to_string().into_boxed_str());
        let failing = panic::catch_unwind(|| {
            fuzz_with(&target("none", tmp_dir), Settings::default(), None, |input| {
                assert!(!input.contains("pods"), "no pods");
                0
            });
        });
        let text = failing
            .expect_err("it fails")
            .downcast::<String>()
            .expect("a text");
        assert!(
            text.contains("none: no pods") && text.contains("\"pods\""),
            "{text}"
        );
        let written: Vec<PathBuf> = fs::read_dir(&directory)
            .expect("the directory")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        assert_eq!(written.len(), 1);
        assert_eq!(fs::read_to_string(&written[0]).expect("the file"), "pods");
        fs::remove_dir_all(&directory).expect("it is removed");
    }

    #[test]
    fn a_target_that_is_not_picked_tries_its_kept_inputs_alone() {
        let tried = Cell::new(0);
        fuzz_with(&target("none", ""), Settings::default(), Some("other"), |_| {
            tried.set(tried.get() + 1);
            0
        });
        assert_eq!(tried.get(), 1);
    }

    #[test]
    fn a_gist_holds_no_values() {
        assert_eq!(gist("line 3: `x y` is no verb; use 'get'"), "line is no use");
        assert_eq!(gist("line 4: `z` is no verb; use 'top'"), "line is no use");
    }
}
