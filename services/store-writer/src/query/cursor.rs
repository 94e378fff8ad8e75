//! Where a page ended, as text that askers give back and do not look into.
//!
//! Invariant: a cursor names the last entry that was shown, not a count, so that entries that come meanwhile
//! neither repeat nor hide others.

use protocol::{ExecutionId, Timestamp, query::QueryError};

/// The cursor behind an execution.
pub(super) fn after_execution(created_at: Timestamp, id: ExecutionId) -> String {
    format!("e{}.{id}", created_at.as_millis())
}

/// The cursor behind an alert.
pub(super) fn after_alert(received_at: Timestamp, id: &str) -> String {
    format!("a{}.{id}", received_at.as_millis())
}

/// Reads what [`after_execution`] wrote.
pub(super) fn execution(cursor: &str) -> Result<(Timestamp, ExecutionId), QueryError> {
    let (at, id) = parts(cursor, 'e').ok_or_else(|| invalid(cursor))?;
    Ok((at, id.parse().map_err(|_| invalid(cursor))?))
}

/// Reads what [`after_alert`] wrote.
pub(super) fn alert(cursor: &str) -> Result<(Timestamp, String), QueryError> {
    let (at, id) = parts(cursor, 'a').ok_or_else(|| invalid(cursor))?;
    Ok((at, id.to_owned()))
}

fn parts(cursor: &str, kind: char) -> Option<(Timestamp, &str)> {
    let (ms, id) = cursor.strip_prefix(kind)?.split_once('.')?;
    let is_plain = !ms.is_empty() && ms.bytes().all(|byte| byte.is_ascii_digit());
    let ms = ms.parse().ok().filter(|_| is_plain)?;
    // The databases take no NUL, and no id of ours is longer.
    let is_id = !id.is_empty() && id.len() <= 128 && id.bytes().all(|byte| byte.is_ascii_graphic());
    is_id.then_some((Timestamp::from_millis(ms), id))
}

fn invalid(cursor: &str) -> QueryError {
    let shown: String = cursor.chars().take(80).collect();
    QueryError::Invalid {
        message: format!(
            "cursor `{shown}` is none of this list: give the `next` of the page before, unchanged"
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let (at, id) = (
            Timestamp::from_millis(1_767_225_600_123),
            ExecutionId::derive(&["x"]),
        );
        assert_eq!(execution(&after_execution(at, id)).unwrap(), (at, id));
        assert_eq!(
            alert(&after_alert(at, "0af.17-1")).unwrap(),
            (at, "0af.17-1".to_owned())
        );
    }

    #[test]
    fn anything_else_is_refused_with_the_remedy() {
        let alert_cursor = after_alert(Timestamp::from_millis(1), "0af.17");
        for bad in [
            "",
            "e",
            "e.",
            "e1.",
            "e1.x",
            "e-1.0af",
            "e+1.x",
            "page2",
            alert_cursor.as_str(),
        ] {
            let error = execution(bad).unwrap_err().to_string();
            assert!(error.contains("unchanged"), "{bad}: {error}");
        }
        assert!(alert("a1.\0").is_err());
        assert!(alert("a99999999999999999999.x").is_err());
    }
}
