//! Whether every processor has a request that takes long.
//!
//! While some have none, a thread that waits for the disk is woken there at once, next
//! to the disk's interrupt. Where each has its own, threads that move only displace each
//! other, and the programs that they work for.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

/// The requests that take long, by the processor on which their program asked.
pub(super) struct Occupancy {
    requests: Vec<AtomicU32>,
    /// Processors that have one.
    occupied: AtomicUsize,
    processors: usize,
}

/// A request, for as long as it is served.
pub(super) struct Occupied<'a> {
    occupancy: &'a Occupancy,
    processor: usize,
}

impl Occupancy {
    /// Of these processors, of which none has any.
    pub(super) fn new(processors: &[u16]) -> Self {
        let most = processors
            .iter()
            .max()
            .map_or(0, |&last| 1 + usize::from(last));
        Self {
            requests: (0..most).map(|_| AtomicU32::new(0)).collect(),
            occupied: AtomicUsize::new(0),
            processors: processors.len(),
        }
    }

    /// A request came from this processor. `None` if it is none of those.
    pub(super) fn enter(&self, processor: u16) -> Option<Occupied<'_>> {
        let processor = usize::from(processor);
        if self
            .requests
            .get(processor)?
            .fetch_add(1, Ordering::Relaxed)
            == 0
        {
            self.occupied.fetch_add(1, Ordering::Relaxed);
        }
        Some(Occupied {
            occupancy: self,
            processor,
        })
    }

    /// Whether every processor has a request.
    pub(super) fn is_full(&self) -> bool {
        self.occupied.load(Ordering::Relaxed) >= self.processors
    }
}

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        let Occupancy {
            requests, occupied, ..
        } = self.occupancy;
        if requests[self.processor].fetch_sub(1, Ordering::Relaxed) == 1 {
            occupied.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_full_while_each_processor_has_a_request() {
        let occupancy = Occupancy::new(&[0, 2, 5]);
        let (a, b) = (occupancy.enter(0), occupancy.enter(0));
        let c = occupancy.enter(5);
        assert!(!occupancy.is_full());
        let d = occupancy.enter(2);
        assert!(occupancy.is_full());
        drop(a);
        assert!(occupancy.is_full(), "it has another");
        drop(b);
        assert!(!occupancy.is_full());
        let e = occupancy.enter(0);
        assert!(occupancy.is_full());
        drop((c, d, e));
        assert!(!occupancy.is_full());
        let all = Occupancy::new(&[0]);
        let one = all.enter(0);
        assert!(one.is_some() && all.is_full());
        assert!(all.enter(1).is_none());
    }
}
