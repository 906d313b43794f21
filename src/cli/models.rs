//! How the subcommands about models show times. Bytes are shown by [`Bytes`](crate::models::memory::Bytes), as everywhere.

use crate::models::store::Moment;

/// How long ago it was, for people: `3 days ago`.
pub(super) fn ago(moment: Moment) -> String {
    const UNITS: [(&str, u64); 4] = [
        ("year", 365 * 24 * 3600),
        ("day", 24 * 3600),
        ("hour", 3600),
        ("minute", 60),
    ];
    let seconds = moment.age().as_secs();
    for (unit, scale) in UNITS {
        let count = seconds / scale;
        if count > 0 {
            let plural = if count == 1 { "" } else { "s" };
            return format!("{count} {unit}{plural} ago");
        }
    }
    "just now".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_for_people() {
        let before = |seconds: u64| ago(Moment(Moment::now().0 - seconds * 1000));
        assert_eq!(before(0), "just now");
        assert_eq!(before(61), "1 minute ago");
        assert_eq!(before(3 * 24 * 3600 + 5), "3 days ago");
        assert_eq!(ago(Moment(u64::MAX)), "just now");
    }
}
