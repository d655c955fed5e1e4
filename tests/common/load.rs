//! Writers whose every step is known, so that after a crash each byte found can
//! be judged: durable, a state that was under way, or wrong.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate};

use super::pattern::{BLOCK, block, describe};
use super::{Rng, noise};

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
            Err(error) => return Err(format!("a step failed before the crash: {error}")),
        }
    }
    Ok(steps)
}

/// Checks every writer's files and that everything else can be read.
pub fn check(root: &Path, writers: &mut [Box<dyn Writer>]) -> Result<(), String> {
    for writer in writers {
        writer.check()?;
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

/// Overwrites, extends, truncates and punches one file at random.
struct Overwriter {
    path: PathBuf,
    file: Option<File>,
    number: u64,
    version: u64,
    blocks: Vec<History<Vec<u8>>>,
    size: History<u64>,
    /// Whether the file's name was durable before.
    exists: bool,
}

impl Overwriter {
    fn new(path: PathBuf, number: u64, blocks: usize) -> Overwriter {
        let zeroes = || History::new(vec![0; BLOCK]);
        Overwriter {
            path,
            file: None,
            number,
            version: 0,
            blocks: (0..blocks).map(|_| zeroes()).collect(),
            size: History::new(0),
            exists: false,
        }
    }

    /// Changes the model: every touched block gets one more state.
    fn change(
        &mut self,
        at: u64,
        len: u64,
        mut bytes: impl FnMut(usize, &mut [u8], std::ops::Range<usize>),
    ) {
        let (mut at, end) = (
            usize::try_from(at).expect("small"),
            usize::try_from(at + len).expect("small"),
        );
        while at < end {
            let index = at / BLOCK;
            let from = at % BLOCK;
            let to = BLOCK.min(from + end - at);
            let mut state = self.blocks[index].last().clone();
            bytes(index, &mut state, from..to);
            self.blocks[index].push(state);
            at += to - from;
        }
    }

    fn write(&mut self, at: u64, len: u64) -> io::Result<()> {
        self.version += 1;
        let (number, version) = (self.number, self.version);
        let mut data = Vec::new();
        self.change(at, len, |index, state, range| {
            let whole = block(number, index as u64, version);
            data.extend_from_slice(&whole[range.clone()]);
            state[range.clone()].copy_from_slice(&whole[range]);
        });
        self.size.push((*self.size.last()).max(at + len));
        self.file()?.write_all_at(&data, at)
    }

    fn truncate(&mut self, size: u64) -> io::Result<()> {
        let end = (self.blocks.len() * BLOCK) as u64;
        self.change(size, end - size, |_, state, range| state[range].fill(0));
        self.size.push(size);
        self.file()?.set_len(size)
    }

    fn punch(&mut self, at: u64, len: u64) -> io::Result<()> {
        let len = len.min(self.size.last().saturating_sub(at));
        if len == 0 {
            return Ok(());
        }
        self.change(at, len, |_, state, range| state[range].fill(0));
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(self.file()?, mode, at, len)?)
    }

    fn sync(&mut self, data_only: bool, plug: &Plug) -> io::Result<()> {
        let file = self.file()?;
        if data_only {
            file.sync_data()?
        } else {
            file.sync_all()?
        };
        if plug.holds() {
            self.exists = true;
            self.size.synced();
            self.blocks.iter_mut().for_each(History::synced);
        }
        Ok(())
    }

    fn file(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&self.path)?;
            self.file = Some(file);
        }
        Ok(self.file.as_ref().expect("just opened"))
    }
}

impl Writer for Overwriter {
    fn close(&mut self) {
        self.file = None;
    }

    fn step(&mut self, rng: &mut Rng, plug: &Plug) -> io::Result<()> {
        let room = (self.blocks.len() * BLOCK) as u64;
        match rng.below(16) {
            0..5 => {
                let at = rng.below(self.blocks.len() as u64) * BLOCK as u64;
                let len = (1 + rng.below(8)) * BLOCK as u64;
                self.write(at, len.min(room - at))
            }
            5..8 => {
                let at = rng.below(room);
                let len = 1 + rng.below(6000);
                self.write(at, len.min(room - at))
            }
            8..10 => {
                let at = *self.size.last();
                let len = (1 + rng.below(5000)).min(room - at);
                if len > 0 { self.write(at, len) } else { Ok(()) }
            }
            10 => self.truncate(rng.below(room)),
            11 => self.punch(rng.below(room), 1 + rng.below(20_000)),
            12 => {
                self.file = None;
                Ok(())
            }
            13 => self.sync(true, plug),
            _ => self.sync(false, plug),
        }
    }

    fn check(&mut self) -> Result<(), String> {
        let path = self.path.display();
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.exists => {
                let (number, blocks, version) = (self.number, self.blocks.len(), self.version);
                *self = Overwriter::new(self.path.clone(), number, blocks);
                self.version = version;
                return Ok(());
            }
            Err(error) => return Err(format!("{path}: {error}")),
        };
        let size = file
            .metadata()
            .map_err(|error| format!("{path}: {error}"))?
            .len();
        let least = *self.size.states().min().expect("one at least");
        let most = *self.size.states().max().expect("one at least");
        if size < least || size > most {
            return Err(format!(
                "{path}: {size} bytes, not between {least} and {most}"
            ));
        }
        for (index, history) in self.blocks.iter_mut().enumerate() {
            let at = (index * BLOCK) as u64;
            let len = usize::try_from(size.saturating_sub(at).min(BLOCK as u64)).expect("small");
            let mut found = vec![0; BLOCK];
            file.read_exact_at(&mut found[..len], at)
                .map_err(|error| format!("{path}: block {index} of {size} bytes: {error}"))?;
            if !history.states().any(|state| state[..len] == found[..len]) {
                let allowed: Vec<_> = history
                    .states()
                    .map(|state| describe(&state[..len]))
                    .collect();
                return Err(format!(
                    "{path}: block {index} of {size} bytes is {}, not one of {allowed:#?}",
                    describe(&found[..len])
                ));
            }
            *history = History::new(found);
        }
        self.size = History::new(size);
        self.exists = true;
        Ok(())
    }
}

/// Replaces a file as editors and databases do: write another, sync it, rename
/// it over the first.
struct Replacer {
    dir: PathBuf,
    name: &'static str,
    number: u64,
    crash: Crash,
    version: History<u64>,
}

impl Replacer {
    fn new(dir: &Path, name: &'static str, number: u64, crash: Crash) -> Replacer {
        Replacer {
            dir: dir.to_owned(),
            name,
            number,
            crash,
            version: History::new(0),
        }
    }

    fn contents(&self, version: u64) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..1 + version % 5)
            .flat_map(|index| block(self.number, index, version))
            .collect();
        bytes.truncate(bytes.len() - usize::try_from(version % 4000).expect("small"));
        bytes
    }
}

impl Writer for Replacer {
    fn step(&mut self, rng: &mut Rng, plug: &Plug) -> io::Result<()> {
        let version = self.version.last() + 1;
        let temporary = self.dir.join(format!("{}.new", self.name));
        let mut file = File::create(&temporary)?;
        file.write_all(&self.contents(version))?;
        file.sync_all()?;
        drop(file);
        self.version.push(version);
        fs::rename(&temporary, self.dir.join(self.name))?;
        let durable = match self.crash {
            Crash::Kill => true,
            Crash::Power if rng.below(2) == 0 => {
                File::open(&self.dir)?.sync_all().map(|()| true)?
            }
            Crash::Power => false,
        };
        if durable && plug.holds() {
            self.version.synced();
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        let path = self.dir.join(self.name);
        let found = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.version.durable == 0 => {
                // Never use a version again: its number says what it holds.
                self.version = History::new(0);
                return Ok(());
            }
            other => other.map_err(|error| format!("{}: {error}", path.display()))?,
        };
        let version = self
            .version
            .states()
            .find(|&&version| version > 0 && self.contents(version) == found);
        let Some(&version) = version else {
            let allowed: Vec<u64> = self.version.states().copied().collect();
            return Err(format!(
                "{}: {}, not a whole version of {allowed:?}",
                path.display(),
                describe(&found)
            ));
        };
        self.version = History::new(version);
        Ok(())
    }
}

/// Makes directories and files in them, and syncs both.
struct Creator {
    root: PathBuf,
    crash: Crash,
    made: u64,
    /// Files that have to be there, with the seed of their contents.
    durable: Vec<(PathBuf, u64)>,
    /// Directories that have to be there.
    directories: Vec<PathBuf>,
}

impl Creator {
    fn new(root: PathBuf, crash: Crash) -> Creator {
        Creator {
            root,
            crash,
            made: 0,
            durable: Vec::new(),
            directories: Vec::new(),
        }
    }

    fn contents(seed: u64) -> Vec<u8> {
        noise(seed, usize::try_from(seed * 977 % 20_000).expect("small"))
    }

    fn sync_dir(path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn mkdir(&mut self, path: PathBuf, plug: &Plug) -> io::Result<()> {
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        if self.crash == Crash::Power {
            Self::sync_dir(path.parent().expect("below the root"))?;
        }
        if plug.holds() {
            self.directories.push(path);
        }
        Ok(())
    }
}

impl Writer for Creator {
    fn step(&mut self, rng: &mut Rng, plug: &Plug) -> io::Result<()> {
        if self.directories.is_empty() || rng.below(12) == 0 {
            self.made += 1;
            let path = match self.directories.len() {
                0 => self.root.clone(),
                _ => rng
                    .pick(&self.directories)
                    .join(format!("directory {}", self.made)),
            };
            return self.mkdir(path, plug);
        }
        self.made += 1;
        let seed = self.made;
        let dir = rng.pick(&self.directories).clone();
        let long = if rng.below(4) == 0 {
            "long ".repeat(45)
        } else {
            String::new()
        };
        let path = dir.join(format!("{long}{seed}"));
        // An earlier life may have left it, half made.
        let mut file = File::create(&path)?;
        file.write_all(&Self::contents(seed))?;
        match rng.below(4) {
            // Not synced: anything goes, but it has to be readable.
            0 => return Ok(()),
            // On ext4 a synced new file keeps its name, too.
            1 => file.sync_all()?,
            _ => {
                file.sync_all()?;
                Self::sync_dir(&dir)?;
            }
        }
        drop(file);
        let mut path = path;
        if rng.below(5) == 0 {
            let moved = dir.join(format!("moved {seed}{long}"));
            fs::rename(&path, &moved)?;
            Self::sync_dir(&dir)?;
            path = moved;
        }
        if plug.holds() {
            self.durable.push((path, seed));
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        for dir in &self.directories {
            fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        }
        for (path, seed) in &self.durable {
            let found = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
            if found != Self::contents(*seed) {
                return Err(format!("{}: {} other bytes", path.display(), found.len()));
            }
        }
        Ok(())
    }
}

/// Appends to a log whose every byte follows from its position.
struct Appender {
    path: PathBuf,
    written: u64,
    durable: u64,
}

impl Appender {
    fn new(path: PathBuf) -> Appender {
        Appender {
            path,
            written: 0,
            durable: 0,
        }
    }

    fn bytes(from: u64, len: u64) -> Vec<u8> {
        (from..from + len)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1)
            .collect()
    }
}

impl Writer for Appender {
    fn step(&mut self, rng: &mut Rng, plug: &Plug) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&self.path)?;
        for _ in 0..rng.below(10) {
            let record = Self::bytes(self.written, 1 + rng.below(3000));
            self.written += record.len() as u64;
            file.write_all(&record)?;
        }
        if rng.below(2) == 0 {
            file.sync_data()?;
            if plug.holds() {
                self.durable = self.written;
            }
        }
        if self.written > 4 << 20 {
            // A new log, before this one is too long to be read every time.
            self.durable = 0;
            file.set_len(0)?;
            file.sync_all()?;
            (self.written, self.durable) = (0, 0);
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), String> {
        let path = self.path.display();
        let found = match fs::read(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.durable == 0 => {
                Vec::new()
            }
            other => other.map_err(|error| format!("{path}: {error}"))?,
        };
        let len = found.len() as u64;
        if len < self.durable || len > self.written.max(4 << 20) + 60_000 {
            return Err(format!(
                "{path}: {len} bytes, {} were synced of {}",
                self.durable, self.written
            ));
        }
        let expected = Self::bytes(0, len);
        for (index, (found, expected)) in
            found.chunks(BLOCK).zip(expected.chunks(BLOCK)).enumerate()
        {
            // The bytes never hold a zero, so a hole shows as one.
            let good = found
                .iter()
                .zip(expected)
                .take_while(|(a, b)| a == b)
                .count();
            let at = (index * BLOCK + good) as u64;
            if good < found.len()
                && (at < self.durable || found[good..].iter().any(|&byte| byte != 0))
            {
                return Err(format!(
                    "{path}: at {at} of {len} (synced {}): {:02x?}",
                    self.durable,
                    &found[good..found.len().min(good + 16)]
                ));
            }
        }
        // Go on behind what is whole.
        let whole = found
            .iter()
            .zip(&expected)
            .take_while(|(a, b)| a == b)
            .count() as u64;
        if found.len() as u64 > whole {
            File::options()
                .write(true)
                .open(&self.path)
                .and_then(|file| file.set_len(whole))
                .map_err(|error| format!("{path}: {error}"))?;
        }
        (self.written, self.durable) = (whole, whole.min(self.durable.max(whole)));
        Ok(())
    }
}
