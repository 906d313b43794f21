//! Dates for templates that tell the model what day it is, as C's `strftime` writes them.
//!
//! Our own few lines, because a date crate brings a time zone database and hundreds of kilobytes for a line such as
//! "Today Date: 24 Nov 2026". The time is UTC, which is also what a container's local time is.

use std::fmt::Write;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// The first day of 1970 was a Thursday.
const WEEKDAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];
const SECONDS_OF_DAY: u64 = 86_400;
/// The Gregorian calendar repeats itself after 400 years, which have this many days.
const DAYS_OF_CYCLE: u64 = 146_097;

/// Formats a time given in seconds since 1970. A specifier that is not known stays as it is, like in C.
pub(super) fn strftime(format: &str, unix_seconds: u64) -> String {
    let time = Civil::new(unix_seconds);
    let mut out = String::with_capacity(format.len() + 16);
    let mut rest = format.chars();
    while let Some(char) = rest.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        let after_percent = rest.clone();
        let (padded, specifier) = match rest.next() {
            Some('-') => (false, rest.next()),
            other => (true, other),
        };
        if specifier
            .and_then(|specifier| time.write(&mut out, specifier, padded))
            .is_none()
        {
            out.push('%');
            rest = after_percent;
        }
    }
    out
}

/// A moment in parts.
struct Civil {
    year: u64,
    /// From 0.
    month: usize,
    /// From 1.
    day: u64,
    /// From 1.
    day_of_year: u64,
    weekday: &'static str,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Civil {
    fn new(unix_seconds: u64) -> Self {
        let days = unix_seconds / SECONDS_OF_DAY;
        let second_of_day = unix_seconds % SECONDS_OF_DAY;
        let mut year = 1970 + 400 * (days / DAYS_OF_CYCLE);
        let mut day_of_year = days % DAYS_OF_CYCLE;
        while day_of_year >= 365 + leap_day(year) {
            day_of_year -= 365 + leap_day(year);
            year += 1;
        }
        let mut month = 0;
        let mut day = day_of_year;
        for length in [31, 28 + leap_day(year), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if day < length {
                break;
            }
            day -= length;
            month += 1;
        }
        let weekday = WEEKDAYS
            .iter()
            .cycle()
            .nth(usize::try_from(days % 7).unwrap_or(0));
        Self {
            year,
            month,
            day: day + 1,
            day_of_year: day_of_year + 1,
            weekday: weekday.copied().unwrap_or_default(),
            hour: second_of_day / 3600,
            minute: second_of_day / 60 % 60,
            second: second_of_day % 60,
        }
    }

    /// Writes what `specifier` stands for, if it is known.
    fn write(&self, out: &mut String, specifier: char, padded: bool) -> Option<()> {
        let month = MONTHS[self.month];
        let hour_of_12 = (self.hour + 11) % 12 + 1;
        let number = |out: &mut String, value: u64, width: usize| {
            let width = if padded { width } else { 0 };
            write!(out, "{value:0width$}").ok()
        };
        match specifier {
            'Y' => number(out, self.year, 4),
            'y' => number(out, self.year % 100, 2),
            'm' => number(out, self.month as u64 + 1, 2),
            'd' => number(out, self.day, 2),
            'e' => write!(out, "{:>1$}", self.day, if padded { 2 } else { 0 }).ok(),
            'j' => number(out, self.day_of_year, 3),
            'H' => number(out, self.hour, 2),
            'I' => number(out, hour_of_12, 2),
            'M' => number(out, self.minute, 2),
            'S' => number(out, self.second, 2),
            'B' => out.write_str(month).ok(),
            'b' | 'h' => out.write_str(&month[..3]).ok(),
            'A' => out.write_str(self.weekday).ok(),
            'a' => out.write_str(&self.weekday[..3]).ok(),
            'p' => out.write_str(if self.hour < 12 { "AM" } else { "PM" }).ok(),
            'Z' => out.write_str("UTC").ok(),
            'z' => out.write_str("+0000").ok(),
            'F' => self.write_all(out, "Y-m-d"),
            'T' => self.write_all(out, "H:M:S"),
            'R' => self.write_all(out, "H:M"),
            'D' => self.write_all(out, "m/d/y"),
            '%' => out.write_str("%").ok(),
            _ => None,
        }
    }

    fn write_all(&self, out: &mut String, specifiers: &str) -> Option<()> {
        for char in specifiers.chars() {
            if char.is_ascii_alphabetic() {
                self.write(out, char, true)?;
            } else {
                out.push(char);
            }
        }
        Some(())
    }
}

fn leap_day(year: u64) -> u64 {
    u64::from(year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)))
}

#[cfg(test)]
mod tests {
    use super::strftime;

    /// The expected texts are those of C's `strftime` in UTC.
    #[test]
    fn writes_dates_as_c_does() {
        for (seconds, format, expected) in [
            (0, "%Y-%m-%d %H:%M:%S %a", "1970-01-01 00:00:00 Thu"),
            (1_795_532_645, "%d %b %Y", "24 Nov 2026"),
            (
                1_795_532_645,
                "%A, %B %-d, %Y, %I:%M %p",
                "Tuesday, November 24, 2026, 03:04 PM",
            ),
            (951_782_400, "%F %j %y %e", "2000-02-29 060 00 29"),
            (
                951_868_800,
                "%D %T %R %Z%z",
                "03/01/00 00:00:00 00:00 UTC+0000",
            ),
            (4_107_542_400, "%F %j %a", "2100-03-01 060 Mon"),
            (1_735_689_599, "%e|%d|%-H|%I|%h", "31|31|23|11|Dec"),
            (
                1_735_689_600,
                "%e|%-e|%d|%-d|%H|%-H|%I",
                " 1|1|01|1|00|0|12",
            ),
            (13_574_563_200, "%F", "2400-02-29"),
            (0, "100%% %Q %-Q %", "100% %Q %-Q %"),
            (0, "", ""),
        ] {
            assert_eq!(strftime(format, seconds), expected, "{format} of {seconds}");
        }
    }

    #[test]
    fn the_end_of_time_is_no_trouble() {
        assert_eq!(strftime("%F", u64::MAX), "584554051223-11-09");
    }
}
