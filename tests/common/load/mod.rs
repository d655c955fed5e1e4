//! Writers whose every step is known, so that after a crash each byte found can
//! be judged: durable, a state that was under way, or wrong.

mod contents;
mod names;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Rng;
use contents::{Appender, Overwriter};
use names::{Creator, Replacer};

/// What a crash may take back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The daemon is killed: a finished change of names stays.
    Kill,
    /// The power is cut: only what was synced stays.
    Power,
}

/// Whether the plug is still in. What returns after it was pulled may have
/// raced with the crash and counts as under way, not as done.
#[derive(Default)]
pub struct Plug(AtomicBool);

impl Plug {
    /// To be called just before the crash is caused.
    pub fn pull(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn holds(&self) -> bool {
        !self.0.load(Ordering::SeqCst)
    }
}

/// One writer with its own files.
pub trait Writer: Send {
    /// Takes one more step.
    fn step(&mut self, rng: &mut Rng, plug: &Plug) -> io::Result<()>;
    /// What it did lately, for messages.
    fn recent(&self) -> String {
        String::new()
    }
    /// Closes what is still open, after the crash.
    fn close(&mut self) {}
    /// Judges what is found after a crash and goes on from there.
    fn check(&mut self) -> Result<(), String>;
}

/// The mixed load, all of it below `root`.
pub fn mixed(root: &Path, crash: Crash) -> Vec<Box<dyn Writer>> {
    let path = |name: &str| root.join(name);
    vec![
        Box::new(Overwriter::new(path("overwritten"), 1, 96)),
        Box::new(Overwriter::new(path("overwritten too"), 2, 24)),
        Box::new(Replacer::new(root, "replaced", 3, crash)),
        Box::new(Creator::new(path("tree"), crash)),
        Box::new(Appender::new(path("log"))),
    ]
}

/// Runs every writer on a thread of its own until `during` is over. `during`
/// gets the plug to pull just before it causes the crash: a step that fails
/// earlier than that is a bug.
pub fn run(
    writers: &mut [Box<dyn Writer>],
    rng: &mut Rng,
    during: impl FnOnce(&Plug),
) -> Result<u64, String> {
    let plug = Plug::default();
    std::thread::scope(|scope| {
        let handles: Vec<_> = writers
            .iter_mut()
            .map(|writer| {
                let mut rng = Rng::new(rng.next());
                let plug = &plug;
                scope.spawn(move || {
                    let steps = run_one(writer.as_mut(), &mut rng, plug);
                    writer.close();
                    steps
                })
            })
            .collect();
        during(&plug);
        plug.pull();
        let results: Vec<_> = handles
            .into_iter()
            .map(|handle| handle.join().expect("a writer panicked"))
            .collect();
        results.into_iter().sum()
    })
}

/// Steps until the plug is pulled; counts the steps.
fn run_one(writer: &mut dyn Writer, rng: &mut Rng, plug: &Plug) -> Result<u64, String> {
    let mut steps = 0;
    while plug.holds() {
        match writer.step(rng, plug) {
            Ok(()) => steps += 1,
            Err(_) if !plug.holds() => break,
            Err(error) => {
                let recent = writer.recent();
                return Err(format!("a step failed before the crash: {error}{recent}"));
            }
        }
    }
    Ok(steps)
}

/// Checks every writer's files and that everything else can be read.
pub fn check(root: &Path, writers: &mut [Box<dyn Writer>]) -> Result<(), String> {
    for writer in writers {
        writer
            .check()
            .map_err(|error| format!("{error}{}", writer.recent()))?;
    }
    read_everything(root).map(drop)
}

/// Reads every file, link, attribute list and directory; counts the files.
pub fn read_everything(dir: &Path) -> Result<u64, String> {
    let at =
        |what: &str, path: &Path, error: io::Error| format!("{what} {}: {error}", path.display());
    let mut files = 0;
    for entry in fs::read_dir(dir).map_err(|error| at("opendir", dir, error))? {
        let path = entry.map_err(|error| at("readdir", dir, error))?.path();
        let kind = fs::symlink_metadata(&path)
            .map_err(|error| at("stat", &path, error))?
            .file_type();
        if kind.is_dir() {
            files += read_everything(&path)?;
        } else if kind.is_symlink() {
            fs::read_link(&path).map_err(|error| at("readlink", &path, error))?;
        } else if kind.is_file() {
            let bytes = fs::read(&path).map_err(|error| at("read", &path, error))?;
            files += 1;
            drop(bytes);
        }
    }
    Ok(files)
}

/// What a value may be after a crash: what was durable, or any later state.
struct History<T> {
    durable: T,
    later: Vec<T>,
}

impl<T: Clone + PartialEq> History<T> {
    fn new(durable: T) -> Self {
        History {
            durable,
            later: Vec::new(),
        }
    }

    fn last(&self) -> &T {
        self.later.last().unwrap_or(&self.durable)
    }

    fn push(&mut self, state: T) {
        // The latest is always the last one; the rest is a set.
        self.later.retain(|later| *later != state);
        self.later.push(state);
    }

    /// The latest state is durable now.
    fn synced(&mut self) {
        if let Some(last) = self.later.pop() {
            self.durable = last;
            self.later.clear();
        }
    }

    fn states(&self) -> impl Iterator<Item = &T> {
        std::iter::once(&self.durable).chain(&self.later)
    }
}
