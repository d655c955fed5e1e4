//! Dates as HTTP and the services write them, in seconds since 1970.

use crate::sys::calendar::{DAY, date_from_days, days_from_date};
use crate::sys::clock;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
/// Of 1970-01-01, a Thursday, on.
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// `2026-01-31T23:59:59Z`.
pub(super) fn iso8601(seconds: u64) -> String {
    let (year, month, day) = date_from_days(seconds / DAY);
    let (hour, minute, second) = time_of_day(seconds);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `Sat, 31 Jan 2026 23:59:59 GMT`.
pub(super) fn http_date(seconds: u64) -> String {
    let days = seconds / DAY;
    let (year, month, day) = date_from_days(days);
    let (hour, minute, second) = time_of_day(seconds);
    let weekday = WEEKDAYS[(days % 7) as usize];
    let month = MONTHS[month as usize - 1];
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

/// Parses what [`iso8601`] writes, with or without a fraction of a second.
pub(super) fn parse_iso8601(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let time = time.split_once('.').map_or(time, |(whole, _)| whole);
    let [year, month, day] = numbers(date, '-')?;
    from_parts([year, month, day], time)
}

/// Parses what [`http_date`] writes; the other two forms of old are not sent
/// by anyone.
pub(super) fn parse_http_date(text: &str) -> Option<u64> {
    let mut words = text.split_once(", ")?.1.split(' ');
    let day = words.next()?.parse().ok()?;
    let name = words.next()?;
    let month = MONTHS.iter().position(|month| *month == name)? as u64 + 1;
    let year = words.next()?.parse().ok()?;
    let time = words.next()?;
    (words.next()? == "GMT").then(|| from_parts([year, month, day], time))?
}

fn from_parts([year, month, day]: [u64; 3], time: &str) -> Option<u64> {
    let [hour, minute, second] = numbers(time, ':')?;
    if year > 9999 || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(days_from_date(year, month, day)? * DAY + hour * 3600 + minute * 60 + second)
}

fn numbers(text: &str, separator: char) -> Option<[u64; 3]> {
    let mut parts = text.split(separator).map(|part| part.parse().ok());
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

fn time_of_day(seconds: u64) -> (u64, u64, u64) {
    let second = seconds % DAY;
    (second / 3600, second / 60 % 60, second % 60)
}

/// How far a server's clock is ahead of this machine's, as its answers showed.
#[derive(Default)]
pub(super) struct ClockOffset(std::sync::atomic::AtomicI64);

impl ClockOffset {
    /// The server's time, as far as is known.
    pub(super) fn now(&self) -> u64 {
        let offset = self.0.load(std::sync::atomic::Ordering::Relaxed);
        clock::unix_seconds().saturating_add_signed(offset)
    }

    /// Believes the date of an answer and says whether that changes much.
    pub(super) fn correct(&self, server: u64) -> bool {
        let offset = server.wrapping_sub(clock::unix_seconds()).cast_signed();
        let before = self.0.swap(offset, std::sync::atomic::Ordering::Relaxed);
        offset.abs_diff(before) > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates_in_both_forms() {
        let known = [
            (0, "1970-01-01T00:00:00Z", "Thu, 01 Jan 1970 00:00:00 GMT"),
            (
                784_111_777,
                "1994-11-06T08:49:37Z",
                "Sun, 06 Nov 1994 08:49:37 GMT",
            ),
            (
                1_709_251_199,
                "2024-02-29T23:59:59Z",
                "Thu, 29 Feb 2024 23:59:59 GMT",
            ),
        ];
        for (seconds, iso, http) in known {
            assert_eq!(iso8601(seconds), iso);
            assert_eq!(http_date(seconds), http);
            assert_eq!(parse_iso8601(iso), Some(seconds));
            assert_eq!(parse_http_date(http), Some(seconds));
        }
        assert_eq!(parse_iso8601("1970-01-01T00:00:01.500Z"), Some(1));
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in [
            "",
            "2026-01-01",
            "2026-01-01T25:00:00Z",
            "2026-01-01T00:00Z",
        ] {
            assert_eq!(parse_iso8601(text), None, "{text}");
        }
        for text in [
            "",
            "06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Foo 1994 08:49:37 GMT",
        ] {
            assert_eq!(parse_http_date(text), None, "{text}");
        }
    }

    #[test]
    fn a_wrong_clock_is_corrected() {
        let clock = ClockOffset::default();
        let real = clock::unix_seconds();
        assert!(clock.correct(real - 4000));
        assert!(clock.now().abs_diff(real - 4000) <= 1);
        assert!(!clock.correct(real - 4000), "nothing new");
    }
}
