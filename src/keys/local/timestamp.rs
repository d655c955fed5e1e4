//! Dates in key files: RFC 3339 in UTC, to the second.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::sys::calendar::{DAY, date_from_days, days_from_date};
use crate::sys::clock;

/// The last second of the year 9999.
const MAX: u64 = 253_402_300_799;

/// A moment, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(u64);

impl Timestamp {
    /// The wall clock's time.
    pub fn now() -> Self {
        Self(clock::unix_seconds().min(MAX))
    }

    /// The moment `days` days later.
    pub fn plus_days(self, days: u32) -> Self {
        Self((self.0 + u64::from(days) * DAY).min(MAX))
    }

    fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        if bytes.len() != 20 || !text.is_ascii() {
            return None;
        }
        let field = |from: usize, to: usize| -> Option<u64> {
            let digits = &text[from..to];
            let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
            all_digits.then(|| digits.parse().ok())?
        };
        let days = days_from_date(field(0, 4)?, field(5, 7)?, field(8, 10)?)?;
        let (hour, minute, second) = (field(11, 13)?, field(14, 16)?, field(17, 19)?);
        if hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let parsed = Self(days * DAY + hour * 3600 + minute * 60 + second);
        // Also checks the separators and the length of the month.
        (parsed.to_string() == text).then_some(parsed)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = date_from_days(self.0 / DAY);
        let second = self.0 % DAY;
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
            second / 3600,
            second / 60 % 60,
            second % 60
        )
    }
}

impl TryFrom<String> for Timestamp {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("a date is written as 2026-01-31T23:59:59Z")
    }
}

impl From<Timestamp> for String {
    fn from(timestamp: Timestamp) -> Self {
        timestamp.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        let known = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (MAX, "9999-12-31T23:59:59Z"),
        ];
        for (seconds, text) in known {
            assert_eq!(Timestamp(seconds).to_string(), text);
            assert_eq!(Timestamp::parse(text), Some(Timestamp(seconds)));
        }
    }

    #[test]
    fn every_day_of_four_centuries_round_trips() {
        for day in 0..146_097 {
            let moment = Timestamp(day * DAY + day % DAY);
            assert_eq!(Timestamp::parse(&moment.to_string()), Some(moment));
        }
    }

    #[test]
    fn refuses_other_spellings() {
        let bad = [
            "",
            "2026-01-01",
            "2026-02-30T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01 00:00:00Z",
            "2026-01-01T00:00:00+",
            "+026-01-01T00:00:00Z",
            "1969-12-31T23:59:59Z",
        ];
        for text in bad {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }
}
