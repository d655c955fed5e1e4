//! Change times that programs saw, where they are not the backing file's.
//!
//! The kernel keeps the times of files whose writes it caches, and shows its own:
//! those of the moment at which a program changed something. The backing file
//! changes a little later, and again when overwritten blocks are put in place.
//! Its modification time can be set, its change time cannot. So what programs
//! saw is remembered here, and in `kmsfs.times` from one mount to the next: git,
//! for one, takes a file for changed if its change time is another.
//!
//! Nothing rests on it. An entry is void as soon as the host's time is another
//! than the one it was made for, and where there is none the host's time counts,
//! which is later.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::format::times::ChangeTime;
use crate::types::TimeSpec;

/// Files in one of the two tables. When it is full the older one is dropped.
const MOST: usize = 131_072;

#[derive(Clone, Copy)]
struct Times {
    host: TimeSpec,
    shown: TimeSpec,
}

#[derive(Default)]
struct Tables {
    new: HashMap<u64, Times>,
    old: HashMap<u64, Times>,
}

/// Change times, by inode number of the host.
#[derive(Default)]
pub struct ChangeTimes(Mutex<Tables>);

impl ChangeTimes {
    /// Those of an earlier mount.
    pub fn new(times: Vec<ChangeTime>) -> Self {
        let tables = Self::default();
        for ChangeTime { ino, host, shown } in times {
            tables.0.lock().put(ino, Times { host, shown });
        }
        tables
    }

    /// What to show where the host says `host`.
    pub fn shown(&self, ino: u64, host: TimeSpec) -> TimeSpec {
        match self.0.lock().get(ino) {
            Some(times) if times.host == host => times.shown,
            _ => host,
        }
    }

    /// From now on `shown` stands for `host`.
    pub fn show(&self, ino: u64, host: TimeSpec, shown: TimeSpec) {
        let mut tables = self.0.lock();
        if host == shown {
            tables.new.remove(&ino);
            tables.old.remove(&ino);
        } else {
            tables.put(ino, Times { host, shown });
        }
    }

    /// The host's time moved from `from` to `to` without a program having changed
    /// anything.
    pub fn moved(&self, ino: u64, from: TimeSpec, to: TimeSpec) {
        let mut tables = self.0.lock();
        let shown = match tables.get(ino) {
            // A later one comes from a change that was made meanwhile.
            Some(times) if times.host >= from => times.shown,
            _ => from,
        };
        tables.put(ino, Times { host: to, shown });
    }

    /// All of them.
    pub fn all(&self) -> Vec<ChangeTime> {
        let tables = self.0.lock();
        let old = tables.old.iter();
        let old = old.filter(|(ino, _)| !tables.new.contains_key(ino));
        let all = tables.new.iter().chain(old);
        all.map(|(&ino, &Times { host, shown })| ChangeTime { ino, host, shown })
            .collect()
    }
}

impl Tables {
    fn get(&self, ino: u64) -> Option<Times> {
        self.new.get(&ino).or_else(|| self.old.get(&ino)).copied()
    }

    fn put(&mut self, ino: u64, times: Times) {
        if self.new.len() >= MOST {
            self.old = std::mem::take(&mut self.new);
        }
        self.new.insert(ino, times);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sec: i64) -> TimeSpec {
        TimeSpec { sec, nsec: 0 }
    }

    #[test]
    fn what_was_seen_stands_until_the_file_changes() {
        let times = ChangeTimes::default();
        assert_eq!(times.shown(1, at(9)), at(9));
        times.show(1, at(9), at(8));
        assert_eq!(times.shown(1, at(9)), at(8));
        assert_eq!(times.shown(1, at(10)), at(10), "changed since");
        times.moved(1, at(9), at(14));
        assert_eq!(times.shown(1, at(14)), at(8), "put in place");
        times.moved(1, at(20), at(25));
        assert_eq!(times.shown(1, at(25)), at(20), "changed, then put in place");
        times.show(1, at(23), at(22));
        times.moved(1, at(21), at(25));
        assert_eq!(times.shown(1, at(25)), at(22), "changed meanwhile");
        let later = ChangeTimes::new(times.all());
        assert_eq!(later.shown(1, at(25)), at(22));
        times.show(1, at(30), at(30));
        assert!(times.all().is_empty());
    }

    #[test]
    fn only_so_many_are_kept() {
        let times = ChangeTimes::default();
        let most = MOST as u64;
        for ino in 0..3 * most {
            times.show(ino, at(2), at(1));
        }
        assert_eq!(times.shown(3 * most - 1, at(2)), at(1));
        assert_eq!(times.shown(0, at(2)), at(2));
        assert_eq!(times.all().len(), 2 * MOST);
        times.show(3 * most - 1, at(3), at(1));
        assert!(times.all().len() <= 2 * MOST);
    }
}
