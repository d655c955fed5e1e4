//! Noticing that a directory's files are opened one after the other, and having
//! the next ones read from the disk, and their keys unwrapped, before they are asked
//! for.
//!
//! Nothing is read for this before several files of a directory had to wait for
//! their keys or their content: listing, `stat` and removing never lead here. No
//! key is unwrapped before one had to be waited for.

use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::Mutex;

use crate::backing::{BackingFile, HostFile, dir};
use crate::content::identity::wanted_key;
use crate::keys::audit::caller;
use crate::keys::patience;
use crate::sys::workers::Workers;

use super::inode::Inode;
use super::{Fs, Result};

/// Files of one directory that had to wait for their keys or their content before
/// the next ones are looked at.
const COLD_OPENS: usize = 3;
/// How often that number doubles where files are opened in no order.
const MOST_DOUBLINGS: u32 = 10;
/// Files outside of the order before another one is looked for.
const MOST_ASTRAY: usize = 8;
/// What happens further apart has nothing to do with each other.
const PAUSE: Duration = Duration::from_secs(10);
/// How far apart, in whatever order, files may be that are opened in order: one
/// may be left out now and then, or several programs share the work.
const LARGEST_GAP: usize = 16;
/// Files to look ahead at first, and at the most.
const WINDOW: Range<usize> = 64..1024;
/// The same where only their content is to be had, which takes more memory.
const WINDOW_OF_CONTENT: Range<usize> = 32..128;
/// How much of a file is read ahead: that of a small one which is read whole when
/// it is opened.
const CONTENT: u64 = 132 << 10;
/// Where only content is to be had, directories of more bytes than this are not
/// listed for it: some 100,000 entries.
const LARGEST_LISTED: u64 = 8 << 20;
/// The most files of a directory that are remembered, from the present one on.
const LONGEST_RUN: usize = 32_768;
/// Directories at once.
const DIRECTORIES: usize = 16;
/// Headers read before their keys are asked for.
const CHUNK: usize = 32;

/// Directories whose files are being opened.
pub(super) struct Siblings {
    /// By inode number.
    directories: Mutex<LruCache<u64, Directory>>,
    /// Those that are in use; while there are none a warm open looks no further.
    runs: AtomicUsize,
    workers: Workers,
}

impl Default for Siblings {
    fn default() -> Self {
        let most = std::num::NonZero::new(DIRECTORIES).expect("not zero");
        Self {
            directories: Mutex::new(LruCache::new(most)),
            runs: AtomicUsize::new(0),
            workers: Workers::new("kmsfs-ahead", 2),
        }
    }
}

struct Directory {
    last: Instant,
    state: State,
}

enum State {
    /// It is not known in which order its files are opened, if in any.
    Watched(Watch),
    /// It is being listed.
    Listing,
    /// Its files are opened in this order.
    Run(Run),
}

/// A search for the order in which files are opened.
#[derive(Clone, Copy, Default)]
struct Search {
    /// How often there was none.
    vain: u32,
    /// Their keys were waited for, not only their content.
    keys: bool,
}

/// Files whose keys or content were waited for.
#[derive(Default)]
struct Watch {
    /// The last of their backing inodes.
    last: VecDeque<u64>,
    count: usize,
    search: Search,
}

impl Watch {
    /// Adds a file; gives the last ones when it is time to look for an order,
    /// ever more seldom if there was none.
    fn add(&mut self, host_ino: u64, for_key: bool) -> Option<Vec<u64>> {
        self.search.keys |= for_key;
        self.last.truncate(COLD_OPENS - 1);
        self.last.push_front(host_ino);
        self.count += 1;
        let due = self.count >= COLD_OPENS << self.search.vain.min(MOST_DOUBLINGS);
        due.then(|| self.last.iter().rev().copied().collect())
    }
}

/// Files in the order in which they are being opened.
struct Run {
    files: Arc<[(CString, u64)]>,
    positions: HashMap<u64, usize>,
    /// The first file that was not looked at.
    edge: usize,
    window: usize,
    /// The largest that the window becomes.
    most: usize,
    /// The keys are to be had as well.
    keys: bool,
    /// Files that had to wait in spite of all this.
    astray: usize,
}

impl Run {
    /// Whether this file is far from where the others were opened.
    fn is_astray(&self, host_ino: u64) -> bool {
        let position = self.positions.get(&host_ino);
        position.is_none_or(|at| at + 2 * self.most < self.edge)
    }

    /// The files to look at now that this one was opened.
    fn advance(&mut self, host_ino: u64) -> Option<Range<usize>> {
        let next = self.positions.get(&host_ino)? + 1;
        if next + self.window / 2 <= self.edge || self.edge == self.files.len() {
            return None;
        }
        let start = self.edge.max(next);
        let end = (start + self.window).min(self.files.len());
        self.edge = end;
        self.window = (2 * self.window).min(self.most);
        Some(start..end)
    }
}

impl Fs {
    /// To be called when a file was opened; `read` says that its content was had
    /// from the backing file for the first time.
    pub(super) fn opened(self: &Arc<Self>, inode: &Inode, read: bool) {
        let siblings = &self.siblings;
        // Threads that may not wait only open files whose keys are in memory.
        let for_key = !self.volume.keys.is_local() && patience::may_wait();
        let cold = read || for_key;
        if !cold && siblings.runs.load(Ordering::Relaxed) == 0 {
            return;
        }
        let parent = inode.parent.load(Ordering::Relaxed);
        let mut directories = siblings.directories.lock();
        let now = Instant::now();
        if cold {
            let watched = || Directory {
                last: now,
                state: State::Watched(Watch::default()),
            };
            directories.get_or_insert(parent, watched);
        }
        let Some(directory) = directories.get_mut(&parent) else {
            return;
        };
        let idle = now.saturating_duration_since(directory.last);
        if idle > PAUSE && !matches!(directory.state, State::Listing) {
            directory.state = State::Watched(Watch::default());
        }
        directory.last = now;
        match &mut directory.state {
            State::Watched(watch) => {
                if !cold || parent == 0 {
                    return;
                }
                if let Some(opened) = watch.add(inode.host_ino(), for_key) {
                    let search = watch.search;
                    directory.state = State::Listing;
                    let fs = Arc::clone(self);
                    let whose = caller::get();
                    let begin = move || fs.begin_run(parent, &opened, search);
                    siblings
                        .workers
                        .run(move || caller::on_behalf(whose, begin));
                }
            }
            State::Run(run) => {
                run.keys |= for_key;
                if let Some(range) = run.advance(inode.host_ino()) {
                    self.look_ahead(parent, run, range);
                } else if cold && run.is_astray(inode.host_ino()) {
                    run.astray += 1;
                    if run.astray > MOST_ASTRAY {
                        directory.state = State::Watched(Watch::default());
                    }
                }
            }
            State::Listing => {}
        }
        let in_use = |d: &Directory| !matches!(d.state, State::Watched(_));
        let runs = directories.iter().filter(|(_, d)| in_use(d)).count();
        siblings.runs.store(runs, Ordering::Relaxed);
    }

    /// Finds out in which order a directory's files are being opened.
    fn begin_run(self: &Arc<Self>, parent: u64, opened: &[u64], search: Search) {
        let run = self.find_order(parent, opened, search.keys);
        let run = run.unwrap_or_else(|error| {
            log::debug!("directory {parent} cannot be looked ahead in: {error}");
            None
        });
        let mut directories = self.siblings.directories.lock();
        let Some(directory) = directories.get_mut(&parent) else {
            return;
        };
        if !matches!(directory.state, State::Listing) {
            return;
        }
        directory.state = match run {
            None => State::Watched(Watch {
                search: Search {
                    vain: search.vain + 1,
                    keys: false,
                },
                ..Watch::default()
            }),
            Some(mut run) => {
                if let Some(range) = opened.last().and_then(|ino| run.advance(*ino)) {
                    self.look_ahead(parent, &run, range);
                }
                State::Run(run)
            }
        };
    }

    fn find_order(&self, parent: u64, opened: &[u64], keys: bool) -> Result<Option<Run>> {
        let directory = self.inodes.get(parent)?;
        if !keys && dir::stat(directory.fd()?)?.stx_size > LARGEST_LISTED {
            return Ok(None);
        }
        let entries = dir::list(directory.fd()?)?;
        // Plain names are had from memory alone, but for a directory's id.
        let mut files = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.kind == dir::FileType::RegularFile
                && let Some(name) = self.plain_name(&directory, entry.name.to_bytes())?
            {
                files.push((name, (entry.name, entry.ino)));
            }
        }
        let names = |files: Vec<(Vec<u8>, (CString, u64))>| -> Vec<(CString, u64)> {
            files.into_iter().map(|(_, file)| file).collect()
        };
        // As `ls -U` lists them, as a shell's patterns do, as `fts` does.
        if let Some(run) = in_order(&files, opened) {
            return Ok(Some(run.of(names(files), keys)));
        }
        files.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        if let Some(run) = in_order(&files, opened) {
            return Ok(Some(run.of(names(files), keys)));
        }
        files.sort_unstable_by_key(|(_, (_, ino))| *ino);
        Ok(in_order(&files, opened).map(|run| run.of(names(files), keys)))
    }

    /// Has some files read, and their keys unwrapped.
    fn look_ahead(self: &Arc<Self>, parent: u64, run: &Run, range: Range<usize>) {
        let (fs, files, keys) = (Arc::clone(self), Arc::clone(&run.files), run.keys);
        let look = move || {
            for chunk in files[range].chunks(CHUNK) {
                if let Err(error) = fs.prefetch(parent, chunk, keys) {
                    log::debug!("looking ahead in directory {parent}: {error}");
                    return;
                }
            }
        };
        let whose = caller::get();
        let workers = &self.siblings.workers;
        workers.run(move || caller::on_behalf(whose, look));
    }

    fn prefetch(&self, parent: u64, files: &[(CString, u64)], keys: bool) -> Result<()> {
        let directory = self.inodes.get(parent)?;
        let mut ahead = Vec::with_capacity(files.len());
        for (name, ino) in files {
            // One that is open has its key, and what the kernel has it need not be
            // given.
            let known = self.inodes.get(self.inodes.visible(*ino));
            let offered = known.is_ok_and(|inode| inode.offered.load(Ordering::Relaxed));
            if self.files.get(*ino).is_some() || (!keys && offered) {
                continue;
            }
            // Gone by now, or not for us to read: then it needs no key.
            let Ok(fd) = dir::open_unnoticed(directory.fd()?, name.to_bytes()) else {
                continue;
            };
            let file = HostFile::new(fd);
            if !offered {
                file.will_need(0, CONTENT);
            }
            if keys {
                ahead.push(file);
            }
        }
        if !keys {
            return Ok(());
        }
        // Only now that the disk is at work on all of them.
        let mut head = vec![0; self.volume.layout().head_size()];
        let mut wanted = Vec::with_capacity(ahead.len());
        for file in ahead {
            head.fill(0);
            let read = file.read_at(&mut [IoSliceMut::new(&mut head)], 0);
            if read.is_ok() {
                wanted.extend(wanted_key(&self.volume, &head));
            }
        }
        self.volume.keys.prefetch(wanted);
        Ok(())
    }
}

/// An order in which files are being opened, from the first of those on.
struct Order {
    start: usize,
}

/// Whether `opened` follow each other closely in `files`.
fn in_order(files: &[(Vec<u8>, (CString, u64))], opened: &[u64]) -> Option<Order> {
    let position = |ino: &u64| files.iter().position(|(_, (_, i))| i == ino);
    let mut positions = opened.iter().map(position).collect::<Option<Vec<_>>>()?;
    // Several at once may arrive in any order.
    positions.sort_unstable();
    let close = positions.windows(2).all(|p| p[1] - p[0] <= LARGEST_GAP);
    close.then(|| Order {
        start: positions[0],
    })
}

impl Order {
    fn of(self, mut files: Vec<(CString, u64)>, keys: bool) -> Run {
        let window = if keys { WINDOW } else { WINDOW_OF_CONTENT };
        files.drain(..self.start);
        files.truncate(LONGEST_RUN);
        let numbered = files.iter().enumerate();
        Run {
            positions: numbered.map(|(at, (_, ino))| (*ino, at)).collect(),
            files: files.into(),
            edge: 0,
            window: window.start,
            most: window.end,
            keys,
            astray: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(inodes: &[u64]) -> Vec<(Vec<u8>, (CString, u64))> {
        let file = |ino: &u64| (vec![], (CString::default(), *ino));
        inodes.iter().map(file).collect()
    }

    fn run(count: u64) -> Run {
        let inodes: Vec<u64> = (0..count).collect();
        let files: Vec<_> = files(&inodes).into_iter().map(|(_, f)| f).collect();
        in_order(&self::files(&inodes), &[0, 1, 2])
            .unwrap()
            .of(files, true)
    }

    #[test]
    fn files_opened_one_after_the_other_are_in_order() {
        let inodes: Vec<u64> = (100..200).rev().collect();
        let listed = files(&inodes);
        assert_eq!(in_order(&listed, &[190, 189, 187]).unwrap().start, 9);
        assert_eq!(in_order(&listed, &[189, 190, 188]).unwrap().start, 9);
        assert!(in_order(&listed, &[199, 150, 101]).is_none());
        assert!(in_order(&listed, &[199, 198, 7]).is_none(), "not in there");
    }

    #[test]
    fn windows_follow_each_other_and_grow() {
        let mut run = run(5000);
        let mut looked_at = 3;
        let mut windows = Vec::new();
        for ino in 2..5000 {
            if let Some(range) = run.advance(ino) {
                assert_eq!(range.start, looked_at, "neither gap nor overlap");
                assert!(range.start > ino as usize, "it is ahead");
                looked_at = range.end;
                windows.push(range.len());
            }
        }
        assert_eq!(looked_at, 5000);
        assert_eq!(windows[..6], [64, 128, 256, 512, 1024, 1024]);
        assert!(run.advance(77_777).is_none());
    }

    #[test]
    fn disorder_is_looked_at_ever_more_seldom() {
        let mut watch = Watch::default();
        assert_eq!(watch.add(1, false), None);
        assert_eq!(watch.add(2, true), None);
        assert_eq!(watch.add(3, false), Some(vec![1, 2, 3]));
        let mut watch = Watch {
            search: Search {
                vain: 2,
                keys: false,
            },
            ..Watch::default()
        };
        let due = (0..20).position(|ino| watch.add(ino, false).is_some());
        assert_eq!(due, Some(11));
        assert_eq!(watch.last, [11, 10, 9]);
    }

    #[test]
    fn what_is_far_ahead_is_left_for_later() {
        let mut run = run(5000);
        assert_eq!(run.advance(2), Some(3..67));
        assert_eq!(run.advance(2), None);
        assert_eq!(run.advance(1000), Some(1001..1129), "a jump");
        assert!(!run.is_astray(5) && run.is_astray(77_777));
    }
}
