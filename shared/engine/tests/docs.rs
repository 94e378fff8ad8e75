//! Holds `docs/manifest.md` against the code: every field is documented, nothing is documented that
//! does not exist, and what it shows as examples is accepted.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use engine::condition::Condition;
use engine::{Format, Policy, admit, manifest};

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/manifest.md");
    std::fs::read_to_string(path).unwrap()
}

/// The cells of the rows of the table under a heading row that begins so.
fn rows(page: &str, heading: &str) -> Vec<Vec<String>> {
    let table = page.lines().skip_while(|line| !line.starts_with(heading)).skip(2);
    table
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells = line.replace("\\|", "\u{1}");
            let cells = cells.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().replace('\u{1}', "|")).collect()
        })
        .collect()
}

#[test]
fn every_field_is_documented_and_nothing_else() {
    let page = page();
    let mut documented: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for row in rows(&page, "| field | type |") {
        let path = row[0].trim_matches('`').to_owned();
        assert!(
            documented.insert(path.clone(), row).is_none(),
            "{path} is documented twice"
        );
    }
    for field in manifest::fields() {
        let row = documented.remove(&field.path);
        let row = row.unwrap_or_else(|| panic!("docs/manifest.md does not document {}", field.path));
        assert_eq!(row[1], field.field_type, "the type of {}", field.path);
        if field.is_required {
            assert!(
                row[2].contains("required"),
                "{} is required, and the page does not say so",
                field.path
            );
        }
        let rule = row[2].as_str();
        for value in field
            .values
            .iter()
            .filter(|_| !["apiVersion", "kind"].contains(&field.path.as_str()))
        {
            assert!(
                rule.contains(value.as_str()) || rule.contains("as in `runtime`"),
                "{} may be {value}, and docs/manifest.md does not say so",
                field.path
            );
        }
    }
    assert!(
        documented.is_empty(),
        "documented, but no field: {:?}",
        documented.keys()
    );
}

#[test]
fn the_examples_are_accepted_without_a_warning() {
    let page = page();
    let examples: Vec<&str> = page
        .split("```yaml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert!(!examples.is_empty());
    for example in examples {
        match admit(example, Format::Yaml, &Policy::default()) {
            Ok(admitted) => assert_eq!(admitted.warnings, [], "{example}"),
            Err(problems) => panic!("{example}\n{problems:?}"),
        }
    }
}

#[test]
fn the_conditions_shown_are_conditions() {
    let page = page();
    let rows = rows(&page, "| condition | true when");
    assert!(rows.len() > 5);
    for row in rows {
        let condition = row[0].trim_matches('`');
        assert!(
            Condition::parse(condition).is_ok(),
            "{condition}: {:?}",
            Condition::parse(condition).err()
        );
    }
}
