//! Writers that make, replace and rename files.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Crash, History, Plug, Writer};
use crate::common::pattern::{block, describe};
use crate::common::{Rng, noise};

/// Replaces a file as editors and databases do: write another, sync it, rename
/// it over the first.
pub struct Replacer {
    dir: PathBuf,
    name: &'static str,
    number: u64,
    crash: Crash,
    version: History<u64>,
}

impl Replacer {
    pub fn new(dir: &Path, name: &'static str, number: u64, crash: Crash) -> Replacer {
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
pub struct Creator {
    root: PathBuf,
    crash: Crash,
    made: u64,
    /// Files that have to be there, with the seed of their contents.
    durable: Vec<(PathBuf, u64)>,
    /// Directories that have to be there.
    directories: Vec<PathBuf>,
}

impl Creator {
    pub fn new(root: PathBuf, crash: Crash) -> Creator {
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
