//! Reading around: where a file is read in small pieces here and there, what lies
//! around each piece is on its way to memory before it is asked for. A disk gives much
//! for hardly more time than little; where it does not, that shows in the time that
//! pieces take, and they are read alone.

use std::ops::Range;
use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::Mutex;

use crate::sys::process::memory;

/// Bytes of the backing file that are read together.
const SPAN: u64 = 512 << 10;

/// Bytes of a request up to which it is a small piece.
pub(super) const PIECE: usize = 64 << 10;

/// Pieces after which there will be more, and that tell how long one takes alone. Fewer
/// are a look at a file's head or tail, or the kernel beginning to read ahead by itself.
const FEW: u32 = 16;

/// The most spans of a file that are on their way at a time, as those who read wait for
/// the same disk.
const ON_THE_WAY: usize = 2;

/// How long a piece may take in any case. Above that, at the most a quarter longer than
/// alone, on average: a slow disk's span is a wait for whoever reads next.
const QUICK: Duration = Duration::from_micros(200);

/// For the average, so many pieces that took no time count at the most,
const CREDIT: i64 = 64;
/// and so many that took twice as long as they may.
const DEBT: i64 = 1024;

/// A file's size up to which it is worth it, in bytes: of larger ones most would have
/// left memory before it is asked for.
static MOST: LazyLock<u64> = LazyLock::new(|| memory() / 8);

/// Which parts of a file have been read around, each once while the file is open: all of
/// that never comes to more than the file.
#[derive(Default)]
pub(super) struct Around(Mutex<Spans>);

#[derive(Default)]
struct Spans {
    /// Pieces that were read, up to [`FEW`].
    pieces: u32,
    /// How long those took, the mean.
    alone: Duration,
    /// What later ones took longer than they may, less what others took shorter, in
    /// nanoseconds.
    late: i64,
    /// A bit for each span that has been read.
    read: Vec<u64>,
    /// The latest of them, the oldest first.
    latest: [Option<u64>; ON_THE_WAY],
}

impl Around {
    /// The range of the backing file to read ahead now, as a small piece of a file of
    /// `size` bytes is read at `offset` of the backing file. `is_there` says whether a byte
    /// of the backing file is in memory: where spans are late, or do not stay, no more
    /// are asked for.
    pub(super) fn due(
        &self,
        size: u64,
        offset: u64,
        is_there: impl FnOnce(u64) -> bool,
    ) -> Option<Range<u64>> {
        if size > *MOST {
            return None;
        }
        let span = offset / SPAN;
        let before = self.0.lock().before(span)?;
        if before.is_some_and(|before| !is_there((before + 1) * SPAN - 1)) {
            return None;
        }
        let taken = self.0.lock().take(span);
        taken.then(|| span * SPAN..(span + 1) * SPAN)
    }

    /// Notes how long reading a piece took, with asking for what is around it.
    pub(super) fn took(&self, time: Duration) {
        let mut spans = self.0.lock();
        if spans.pieces < FEW {
            spans.pieces += 1;
            spans.alone += time / FEW;
            return;
        }
        let [time, fair] = [time, QUICK.max(spans.alone * 5 / 4)].map(nanoseconds);
        let late = spans.late.saturating_add(time - fair);
        spans.late = late.clamp(-fair * CREDIT, fair * DEBT);
    }
}

impl Spans {
    /// The span that has to be there before `span` is read; `None` if that is not due.
    fn before(&self, span: u64) -> Option<Option<u64>> {
        if self.pieces < FEW || self.late > 0 || self.has(span) {
            return None;
        }
        Some(self.latest[0])
    }

    fn has(&self, span: u64) -> bool {
        let (word, bit) = place(span);
        self.read.get(word).is_some_and(|read| read & bit != 0)
    }

    /// Notes that `span` is read; says no if somebody else did meanwhile.
    fn take(&mut self, span: u64) -> bool {
        if self.has(span) {
            return false;
        }
        let (word, bit) = place(span);
        if self.read.len() <= word {
            self.read.resize(word + 1, 0);
        }
        self.read[word] |= bit;
        self.latest.rotate_left(1);
        self.latest[ON_THE_WAY - 1] = Some(span);
        true
    }
}

fn nanoseconds(time: Duration) -> i64 {
    time.as_nanos() as i64
}

fn place(span: u64) -> (usize, u64) {
    ((span / 64) as usize, 1 << (span % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 64 * SPAN;

    /// One of which `FEW` pieces have been read, each in `time`.
    fn in_use(time: Duration) -> Around {
        let around = Around::default();
        for _ in 0..FEW {
            assert_eq!(around.due(SIZE, 0, never_asked), None);
            around.took(time);
        }
        around
    }

    fn never_asked(_: u64) -> bool {
        unreachable!("nothing is on its way")
    }

    #[test]
    fn each_span_is_read_once() {
        let around = in_use(QUICK);
        for span in [3, 0, 63] {
            let range = span * SPAN..(span + 1) * SPAN;
            assert_eq!(around.due(SIZE, range.start + 5, |_| true), Some(range));
        }
        for span in [3, 0, 63] {
            assert_eq!(around.due(SIZE, span * SPAN, never_asked), None);
            assert_eq!(around.due(SIZE, (span + 1) * SPAN - 1, never_asked), None);
        }
    }

    #[test]
    fn only_so_many_are_on_their_way() {
        let around = in_use(QUICK);
        let first = around.due(SIZE, 0, never_asked).unwrap();
        assert!(around.due(SIZE, SPAN, never_asked).is_some());
        let asked = |answer| {
            around.due(SIZE, 2 * SPAN, |at| {
                assert!(first.contains(&at), "the oldest of the latest");
                answer
            })
        };
        assert_eq!(asked(false), None);
        assert_eq!(asked(false), None);
        assert!(asked(true).is_some());
        assert_eq!(around.due(SIZE, 3 * SPAN, |at| at < 2 * SPAN - 1), None);
    }

    #[test]
    fn reads_take_at_the_most_a_quarter_longer_than_alone() {
        for (alone, late) in [(QUICK / 8, QUICK * 9), (QUICK * 8, QUICK * 18)] {
            let around = in_use(alone);
            let mut span = 0;
            let mut is_due = || {
                span += 1;
                around.due(SIZE, span * SPAN, |_| true).is_some()
            };
            assert!(is_due());
            (0..2 * CREDIT).for_each(|_| around.took(Duration::ZERO));
            assert!(is_due());
            (0..CREDIT).for_each(|_| around.took(2 * QUICK.max(alone * 5 / 4)));
            assert!(is_due(), "as many were quick");
            around.took(late);
            let mut others = 0;
            while !is_due() {
                around.took(alone);
                others += 1;
            }
            let mean = (late + alone * others) / (others + 1);
            let fair = QUICK.max(alone * 5 / 4);
            assert!(
                mean <= fair && mean > fair * 3 / 4,
                "{mean:?} and {alone:?}"
            );
        }
    }

    #[test]
    fn a_long_stop_is_not_remembered_for_ever() {
        let around = in_use(QUICK / 2);
        around.took(Duration::from_secs(86400));
        (0..2 * DEBT).for_each(|_| around.took(QUICK / 2));
        assert!(around.due(SIZE, 0, never_asked).is_some());
    }

    #[test]
    fn files_that_memory_has_no_room_for_are_left_alone() {
        let around = in_use(QUICK);
        assert_eq!(around.due(memory() / 8 + 1, 0, never_asked), None);
        assert!(around.due(memory() / 8, 0, never_asked).is_some());
    }
}
