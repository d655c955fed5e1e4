//! Writers that change the contents of one file in place.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, fallocate};

use super::{History, Plug, Writer};
use crate::common::Rng;
use crate::common::pattern::{BLOCK, block, describe};

/// Overwrites, extends, truncates and punches one file at random.
pub struct Overwriter {
    path: PathBuf,
    file: Option<File>,
    number: u64,
    version: u64,
    blocks: Vec<History<Vec<u8>>>,
    size: History<u64>,
    /// Whether the file's name was durable before.
    exists: bool,
    /// The latest steps.
    steps: VecDeque<String>,
}

impl Overwriter {
    pub fn new(path: PathBuf, number: u64, blocks: usize) -> Overwriter {
        let zeroes = || History::new(vec![0; BLOCK]);
        Overwriter {
            path,
            file: None,
            number,
            version: 0,
            blocks: (0..blocks).map(|_| zeroes()).collect(),
            size: History::new(0),
            exists: false,
            steps: VecDeque::new(),
        }
    }

    fn note(&mut self, step: String) {
        self.steps.push_back(step);
        if self.steps.len() > 30 {
            self.steps.pop_front();
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
        self.note(format!("write {at}+{len} version {}", self.version));
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
        self.note(format!("truncate {} to {size}", self.size.last()));
        // The size changes at once, while an earlier write may still wait in
        // the page cache: the cut can meet any of the states before it.
        let partial = &mut self.blocks[usize::try_from(size).expect("small") / BLOCK];
        let mut cut: Vec<Vec<u8>> = partial.states().cloned().collect();
        for state in &mut cut {
            state[usize::try_from(size).expect("small") % BLOCK..].fill(0);
        }
        cut.into_iter().for_each(|state| partial.push(state));
        self.change(size, end - size, |_, state, range| state[range].fill(0));
        self.size.push(size);
        self.file()?.set_len(size)
    }

    fn punch(&mut self, at: u64, len: u64) -> io::Result<()> {
        let len = len.min(self.size.last().saturating_sub(at));
        if len == 0 {
            return Ok(());
        }
        self.note(format!("punch {at}+{len} of {}", self.size.last()));
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
        self.note("sync".to_owned());
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
    fn recent(&self) -> String {
        let steps: Vec<&str> = self.steps.iter().map(String::as_str).collect();
        format!("\n{}, lately: {}", self.path.display(), steps.join("; "))
    }

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
        self.note(format!("CRASH, {size} bytes found"));
        Ok(())
    }
}

/// Appends to a log whose every byte follows from its position.
pub struct Appender {
    path: PathBuf,
    written: u64,
    durable: u64,
}

impl Appender {
    pub fn new(path: PathBuf) -> Appender {
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
