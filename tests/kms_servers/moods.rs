//! The moods of the conformance suite, as the test servers know them.

use crate::conformance::Mood;
use crate::kms_servers::http::Manner;
use crate::kms_servers::trouble::Trouble;

/// What calls meet in that mood.
pub(crate) fn trouble(mood: Mood) -> Trouble {
    let mut trouble = Trouble {
        calls: usize::MAX,
        ..Trouble::default()
    };
    match mood {
        Mood::Well => trouble.calls = 0,
        Mood::Throttling(calls) => {
            trouble.calls = calls;
            trouble.status = Some(429);
        }
        Mood::Failing(calls) => {
            trouble.calls = calls;
            trouble.status = Some(503);
        }
        Mood::Slow(delay) => trouble.delay = delay,
        Mood::Garbage => trouble.manner = Manner::Garbage,
        Mood::Oversized => trouble.manner = Manner::Endless,
        Mood::CutOff(calls) => {
            trouble.calls = calls;
            trouble.manner = Manner::CutOff;
        }
    }
    trouble
}
