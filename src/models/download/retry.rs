//! When to try again: how long to wait, and what a server may ask of us.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Pauses grow to twice the last with each try; each is drawn from the upper half of its range, so that many clients of a
/// server that comes back don't come back in step.
pub(super) fn backoff(base: Duration, cap: Duration, attempt: u32) -> Duration {
    let doublings = attempt.saturating_sub(1).min(20);
    let longest = base.saturating_mul(1 << doublings).min(cap);
    longest.div_f64(2.0) + longest.div_f64(2.0).mul_f64(random_part())
}

/// What `Retry-After` asks for: seconds, or a date (RFC 9110, 10.2.3) as seen from `now`, in seconds since 1970.
pub(super) fn retry_after(value: &str, now: u64) -> Option<Duration> {
    let value = value.trim();
    let seconds = match value.parse::<u64>() {
        Ok(seconds) => seconds,
        Err(_) => date(value)?.saturating_sub(now),
    };
    Some(Duration::from_secs(seconds))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` in seconds since 1970. The two older formats that the standard mentions are not read:
/// a pause of ours does instead.
fn date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let (_, text) = text.split_once(", ")?;
    let mut parts = text.split([' ', ':']);
    let number = |parts: &mut std::str::Split<'_, [char; 2]>| parts.next()?.parse::<u64>().ok();
    let day = number(&mut parts)?;
    let name = parts.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64;
    let year = number(&mut parts)?;
    let (hours, minutes, seconds) = (
        number(&mut parts)?,
        number(&mut parts)?,
        number(&mut parts)?,
    );
    let valid = (1970..10_000).contains(&year)
        && (1..=31).contains(&day)
        && hours < 24
        && minutes < 60
        && seconds < 61;
    if !valid || parts.next() != Some("GMT") || parts.next().is_some() {
        return None;
    }
    Some(((days(year, month, day) * 24 + hours) * 60 + minutes) * 60 + seconds)
}

/// Days since 1970 of a date of the Gregorian calendar; `month` counts from 0.
fn days(year: u64, month: u64, day: u64) -> u64 {
    // A year that begins in March has its leap day at its end.
    let (year, month) = if month < 2 {
        (year - 1, month + 10)
    } else {
        (year, month - 2)
    };
    let before_year = year * 365 + year / 4 - year / 100 + year / 400;
    let before_month = (month * 153 + 2) / 5;
    // 719,468 days lie between the 1st of March of year 0 and 1970.
    before_year + before_month + day - 1 - 719_468
}

/// In 0..1, from the keys that the standard library's hash maps get.
fn random_part() -> f64 {
    let bits = RandomState::new().hash_one(0_u8) >> 11;
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    let part = bits as f64 / (1_u64 << 53) as f64;
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_cap() {
        let (base, cap) = (Duration::from_millis(500), Duration::from_secs(30));
        for (attempt, longest) in [
            (0, 500),
            (1, 500),
            (2, 1000),
            (5, 8000),
            (7, 30_000),
            (u32::MAX, 30_000),
        ] {
            for _ in 0..100 {
                let pause = backoff(base, cap, attempt);
                let longest = Duration::from_millis(longest);
                assert!(
                    pause <= longest && pause >= longest / 2,
                    "{attempt}: {pause:?}"
                );
            }
        }
        let pauses: Vec<_> = (0..8).map(|_| backoff(base, cap, 3)).collect();
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }

    #[test]
    fn servers_ask_in_seconds_or_dates() {
        let now = 784_111_777;
        for (value, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Sun, 06 Nov 1994 08:51:07 GMT", Some(90)),
            ("Mon, 07 Nov 1994 08:49:37 GMT", Some(86_400)),
            ("Sat, 05 Nov 1994 08:49:37 GMT", Some(0)),
            ("Thu, 29 Feb 1996 00:00:00 GMT", Some(825_552_000 - now)),
            ("Fri, 01 Mar 1996 00:00:00 GMT", Some(825_638_400 - now)),
            ("Sat, 01 Jan 2000 00:00:00 GMT", Some(946_684_800 - now)),
            ("Thu, 01 Mar 2400 00:00:00 GMT", Some(13_574_649_600 - now)),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
            ("Sun, 06 Nuv 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 06 Nov 1994 08:49:37", None),
            ("Sun, 99999999999999999999 Nov 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(
                retry_after(value, now),
                seconds.map(Duration::from_secs),
                "{value:?}"
            );
        }
    }
}
