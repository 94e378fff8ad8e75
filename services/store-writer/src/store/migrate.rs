//! Migrations: numbered scripts inside the binary, applied in order and never taken back.
//!
//! Invariant: a script that was released is never edited; a change is the next number.

use super::StoreError;

/// One step forward.
pub(super) struct Migration {
    /// Counts from 1 without gaps.
    pub version: i64,
    /// Says what it does, for people who look into `schema_migrations`.
    pub name: &'static str,
    /// The statements.
    pub sql: &'static str,
}

/// What is still to apply where `applied` is the newest version that the database has.
pub(super) fn missing(all: &'static [Migration], applied: i64) -> Result<&'static [Migration], StoreError> {
    let known = all.last().map_or(0, |migration| migration.version);
    if applied > known {
        return Err(StoreError::Unusable(format!(
            "the database was brought to version {applied} by a newer build, and this one knows version {known}: \
             upgrade this service, or point database.url at another database"
        )));
    }
    Ok(&all[usize::try_from(applied.max(0)).unwrap_or_default()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: [Migration; 2] = [
        Migration {
            version: 1,
            name: "a",
            sql: "",
        },
        Migration {
            version: 2,
            name: "b",
            sql: "",
        },
    ];

    #[test]
    fn only_what_is_missing_is_applied() {
        for (applied, expected) in [(0, vec![1, 2]), (1, vec![2]), (2, vec![])] {
            let missing = missing(&TWO, applied).expect("known versions");
            assert_eq!(
                missing
                    .iter()
                    .map(|migration| migration.version)
                    .collect::<Vec<_>>(),
                expected
            );
        }
    }

    #[test]
    fn a_newer_database_is_refused_with_the_remedy() {
        let error = missing(&TWO, 3).err().expect("a newer database").to_string();
        assert!(
            error.contains("version 3") && error.contains("upgrade this service"),
            "{error}"
        );
    }
}
