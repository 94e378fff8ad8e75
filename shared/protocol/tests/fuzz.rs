//! The parser of subjects under fuzz: what it reads it writes again to the letter, and nothing makes it panic.
#![allow(clippy::unwrap_used)]

use fuzz::{Target, gist, shape};
use protocol::{Subject, subjects};

const ID: &str = "0192f0c4-7e2a-7b3c-9d4e-5f60718293a4";

#[test]
fn subjects_are_written_as_they_were_read() {
    let seeds = [
        "fist.fact.default.ID.start",
        "fist.fact.default.ID.check-disk.1.begun",
        "fist.fact.default.ID.check-disk.1.done",
        "fist.fact.default.ID.cancel.0",
        "fist.fact.default.ID.dead.17",
        "fist.fact.default.ID.timer.check-disk-1-1767225660000",
        "fist.cmd.cli.default.ID",
        "fist.cmd.note.default.ID",
        "fist.cmd.cancel.default.ID",
        "fist.turn.default.ID.explain.1.4",
        "fist.alert.alertmanager.0123456789abcdef.42-1",
        "fist.alerts.alertmanager",
        "fist.timer.set.default.ID.check-disk-1-1767225660000",
        "fist.timer.fire.default.ID.check-disk-1-1767225660000",
        "fist.live.default.ID.check-disk.1",
        "fist.dead.scheduler",
    ];
    let target = Target {
        name: "subject",
        crate_dir: env!("CARGO_MANIFEST_DIR"),
        tmp_dir: env!("CARGO_TARGET_TMPDIR"),
        seeds: seeds.iter().map(|seed| seed.replace("ID", ID)).collect(),
        words: &[
            ".",
            "..",
            "*",
            ">",
            "fist.",
            "fact",
            "cmd",
            "note",
            "cancel",
            "done",
            "begun",
            "timer",
            "fire",
            "set",
            "0",
            "01",
            "+1",
            "4294967296",
            ID,
            "0192F0C4",
            "-",
            "_",
        ],
    };
    for seed in &target.seeds {
        Subject::parse(seed).unwrap();
    }
    fuzz::fuzz(&target, |text| match Subject::parse(text) {
        Ok(subject) => {
            assert_eq!(subject.to_string(), text, "it is written as it was read");
            assert!(
                text.split('.').all(|token| !token.is_empty()
                    && !token.contains(['*', '>'])
                    && !token.contains(char::is_whitespace)),
                "it is a subject that can be published to"
            );
            if let Some((namespace, execution)) = subject.execution() {
                let is_own = |filter: String| {
                    let (mut wanted, mut tokens) = (filter.split('.'), text.split('.'));
                    wanted.all(|wanted| match (wanted, tokens.next()) {
                        (">" | "*", Some(_)) => true,
                        (wanted, token) => token == Some(wanted),
                    })
                };
                let is_fact = text.starts_with("fist.fact.");
                assert_eq!(
                    is_own(subjects::facts_filter(namespace, execution)),
                    is_fact,
                    "facts, and they alone, are found as facts"
                );
                let is_lane = text.starts_with("fist.cmd.");
                assert_eq!(
                    is_own(subjects::lane_filter(namespace, execution)),
                    is_lane,
                    "the lane, and it alone, is guarded as the lane"
                );
            }
            shape((std::mem::discriminant(&subject), text.split('.').count()))
        }
        Err(error) => shape(gist(error)),
    });
}
