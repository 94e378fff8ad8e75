//! Spans of time as kubectl shows them (`AGE`), and as people read how long something took.

use std::time::Duration;

use protocol::Timestamp;

/// This moment.
pub fn now() -> Timestamp {
    Timestamp::from_millis(jiff::Timestamp::now().as_millisecond())
}

/// How long ago, in at most two units: `42s`, `3m20s`, `15m`, `4h2m`, `12h`, `3d4h`, `20d`, `2y10d`.
pub fn age(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.since(at).as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let both = |big: u64, unit: &str, small: u64, small_unit: &str| {
        if small == 0 {
            format!("{big}{unit}")
        } else {
            format!("{big}{unit}{small}{small_unit}")
        }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => both(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => both(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => both(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ => both(days / 365, "y", days % 365, "d"),
    }
}

/// How long it took: `0.3 s`, `12.4 s`, `3 m 20 s`, `2 h 5 m`.
pub fn took(duration: Duration) -> String {
    let tenths = duration.as_millis().div_ceil(100);
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{}.{} s", tenths / 10, tenths % 10),
        60..3600 => format!("{} m {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_kubectls() {
        let at = Timestamp::from_millis(0);
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (10_800, "3h"),
            (14_520, "4h2m"),
            (43_200, "12h"),
            (187_200, "2d4h"),
            (1_728_000, "20d"),
            (63_936_000, "2y10d"),
        ] {
            assert_eq!(age(at, Timestamp::from_millis(seconds * 1000)), text);
        }
        // A server's clock that is ahead shows nothing negative.
        assert_eq!(age(Timestamp::from_millis(5000), at), "0s");
    }

    #[test]
    fn durations_are_short() {
        for (ms, text) in [
            (0, "0.0 s"),
            (1, "0.1 s"),
            (340, "0.4 s"),
            (12_400, "12.4 s"),
            (59_999, "60.0 s"),
            (200_000, "3 m 20 s"),
            (7_500_000, "2 h 5 m"),
        ] {
            assert_eq!(took(Duration::from_millis(ms)), text);
        }
    }
}
