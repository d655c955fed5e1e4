//! Times between fuser's `SystemTime` and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::TimeOrNow;

use crate::fs::{SetTime, TimeSpec};

/// A time to send; one that `SystemTime` cannot hold becomes the epoch.
pub(super) fn to_system(time: TimeSpec) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let base = if time.sec < 0 {
        UNIX_EPOCH.checked_sub(whole)
    } else {
        UNIX_EPOCH.checked_add(whole)
    };
    base.and_then(|base| base.checked_add(Duration::from_nanos(time.nsec.into())))
        .unwrap_or(UNIX_EPOCH)
}

/// A time received. fuser 0.18 makes "-s seconds, n nanoseconds" into s + n
/// before the epoch instead of s - n (`system_time_from_time`); this undoes it.
pub(super) fn from_fuser(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(from_system(time)),
    }
}

/// The same for a time that cannot be "now".
pub(super) fn from_system(time: SystemTime) -> TimeSpec {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => TimeSpec {
            sec: after.as_secs() as i64,
            nsec: after.subsec_nanos(),
        },
        Err(before) => TimeSpec {
            sec: -(before.duration().as_secs() as i64),
            nsec: before.duration().subsec_nanos(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_keep_their_nanoseconds() {
        // One and a half seconds before, as the kernel writes it: -2 s + 0.5 s.
        let spec = TimeSpec {
            sec: -2,
            nsec: 500_000_000,
        };
        assert_eq!(to_system(spec), UNIX_EPOCH - Duration::from_millis(1500));
        let as_fuser_reads_it = UNIX_EPOCH - Duration::new(2, 500_000_000);
        let SetTime::At(got) = from_fuser(TimeOrNow::SpecificTime(as_fuser_reads_it)) else {
            panic!("a specific time");
        };
        assert_eq!(got, spec);
    }

    #[test]
    fn impossible_times_do_not_panic() {
        let spec = TimeSpec {
            sec: i64::MIN,
            nsec: 0,
        };
        let _ = to_system(spec);
    }
}
