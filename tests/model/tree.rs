//! Operations on names: making, removing, renaming, looking up, listing; and
//! the comparison of the whole trees.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use kmsfs::backing::{Errno, dir, xattr};
use kmsfs::fs::{Attr, FileKind, FsError, OpenOptions, ROOT};

use crate::op::{Op, What};
use crate::pair::{Handle, Outcome, Pair, equal, host, names, same};

/// Lengths of symlink targets.
const TARGETS: [usize; 10] = [1, 7, 100, 1000, 3000, 3038, 3039, 3040, 4000, 4095];
/// What one read asks for at most.
const CHUNK: usize = 1 << 20;

/// A name and what it names.
type Listing = Vec<(Vec<u8>, u64, Option<FileKind>)>;

fn name(random: u32) -> Vec<u8> {
    let names = names();
    names[random as usize % names.len()].clone()
}

impl Pair {
    /// A directory's number and the plain one.
    fn dir(&mut self, random: u16) -> (u64, OwnedFd) {
        let node = self.pick_dir(random);
        let node = &mut self.nodes[node];
        (node.ino, node.host.try_clone().expect("dup"))
    }

    /// Forgets the times of a directory whose entries changed.
    fn changed(&mut self, ino: u64) {
        for node in self.nodes.iter_mut().filter(|n| n.ino == ino) {
            node.mtime = None;
        }
    }

    /// Takes in what was made or found as `name`.
    fn admit_at(&mut self, entry: &kmsfs::fs::Entry, plain: &OwnedFd, name: &[u8]) -> Outcome<()> {
        let fd = host(dir::open_path(plain, name))?;
        self.admit(entry, fd)
    }

    /// Makes an entry.
    pub(crate) fn make(&mut self, op: &Op) -> Outcome<()> {
        let (parent, plain) = self.dir(op.a);
        let name = name(op.x);
        let new = self.new_node(self.mode(op.y));
        self.changed(parent);
        let both = match op.what {
            What::Create => return self.create(op, parent, &plain, &name),
            What::Mkdir if !self.room_for_directory() => return Ok(()),
            What::Mkdir => same(
                self.fs().mkdir(parent, &name, new),
                dir::mkdir(&plain, &name, new.mode),
            )?,
            What::Symlink => {
                let len = TARGETS[op.y as usize % TARGETS.len()];
                let target = vec![b'A' + (op.y >> 8) as u8 % 26; len];
                same(
                    self.fs().symlink(parent, &name, &target, new),
                    dir::symlink(&target, &plain, &name),
                )?
            }
            _ => {
                // Only root makes devices.
                let kinds = [0o010_000, 0o140_000, 0o100_000, 0o020_000];
                let usable = if self.root { 4 } else { 3 };
                let mut new = new;
                new.mode |= kinds[usize::from(op.b) % usable];
                same(
                    self.fs().mknod(parent, &name, new, 0x0103),
                    dir::mknod(&plain, &name, new.mode, 0x0103),
                )?
            }
        };
        let Some((entry, ())) = both else {
            return Ok(());
        };
        if op.what == What::Mkdir {
            self.count_directories(1);
        }
        self.admit_at(&entry, &plain, &name)
    }

    fn create(&mut self, op: &Op, parent: u64, plain: &OwnedFd, name: &[u8]) -> Outcome<()> {
        let mode = self.mode(op.y);
        // The kernel opens what is there by itself.
        let existing = dir::stat_at(plain, name).ok();
        let regular = existing.is_none_or(|stat| stat.stx_mode & 0o170_000 == 0o100_000);
        let exclusive = !regular || op.b & 1 == 0;
        let options = OpenOptions {
            write: true,
            truncate: false,
        };
        let ours = self
            .fs()
            .create(parent, name, self.new_node(mode), exclusive, options);
        let made = dir::create(plain, name, mode, exclusive);
        let Some(((entry, number), fd)) = same(ours, made)? else {
            return Ok(());
        };
        self.handles.push(Handle {
            number,
            host_ino: host(dir::stat(&fd))?.stx_ino,
            file: File::from(fd),
            write: true,
        });
        self.admit_at(&entry, plain, name)
    }

    /// Whether the entry of that name is a directory.
    fn is_dir(plain: &OwnedFd, name: &[u8]) -> bool {
        dir::stat_at(plain, name).is_ok_and(|stat| stat.stx_mode & 0o170_000 == 0o040_000)
    }

    /// Adds, removes or moves names.
    pub(crate) fn names(&mut self, op: &Op) -> Outcome<()> {
        let (parent, plain) = self.dir(op.a);
        let name = name(op.x);
        self.changed(parent);
        match op.what {
            What::Unlink => self.unlink(parent, &plain, &name),
            What::Rmdir => self.rmdir(parent, &plain, &name),
            What::Link => {
                let at = usize::from(op.b) % self.nodes.len();
                let node = &self.nodes[at];
                let ours = self.fs().link(node.ino, parent, &name);
                let made = dir::link(&node.host, &plain, &name);
                let Some((entry, ())) = same(ours, made)? else {
                    return Ok(());
                };
                self.admit_at(&entry, &plain, &name)
            }
            _ => self.rename(op, parent, &plain, &name),
        }
    }

    fn unlink(&mut self, parent: u64, plain: &OwnedFd, name: &[u8]) -> Outcome<()> {
        let ours = self.fs().unlink(parent, name);
        same(ours, dir::unlink(plain, name)).map(drop)
    }

    fn rmdir(&mut self, parent: u64, plain: &OwnedFd, name: &[u8]) -> Outcome<()> {
        let ours = self.fs().rmdir(parent, name);
        if same(ours, dir::rmdir(plain, name))?.is_some() {
            self.count_directories(-1);
        }
        Ok(())
    }

    fn rename(&mut self, op: &Op, parent: u64, plain: &OwnedFd, from: &[u8]) -> Outcome<()> {
        let (new_parent, new_plain) = self.dir(op.b);
        let to = name(op.y);
        self.changed(new_parent);
        let flags = [0, 0, 0, 1, 2, 2, 3][(op.y >> 8) as usize % 7];
        let replaced = flags == 0 && Self::is_dir(&new_plain, &to);
        let itself = parent == new_parent && from == to;
        let ours = self.fs().rename(parent, from, new_parent, &to, flags);
        let renamed = dir::rename(plain, from, &new_plain, &to, flags);
        if let (Err(_), Err(Errno::INVAL)) = (&ours, &renamed) {
            // A directory into itself, which the kernel finds out before it asks.
            return Ok(());
        }
        if same(ours, renamed)?.is_some() && replaced && !itself {
            self.count_directories(-1);
        }
        // A directory that moved has another `..`.
        for (plain, name) in [(plain, from), (&new_plain, to.as_slice())] {
            if let Ok(stat) = dir::stat_at(plain, name) {
                self.touch(stat.stx_ino);
            }
        }
        Ok(())
    }

    /// Removes all entries of a directory that can be.
    pub(crate) fn empty(&mut self, op: &Op) -> Outcome<()> {
        let (parent, plain) = self.dir(op.a);
        self.changed(parent);
        for name in names() {
            if Self::is_dir(&plain, &name) {
                self.rmdir(parent, &plain, &name)?;
            } else {
                self.unlink(parent, &plain, &name)?;
            }
        }
        Ok(())
    }

    /// Finds and lists.
    pub(crate) fn look(&mut self, op: &Op) -> Outcome<()> {
        let (parent, plain) = self.dir(op.a);
        match op.what {
            What::Lookup => {
                let name = name(op.x);
                let ours = self.fs().lookup(parent, &name);
                let found = dir::open_path(&plain, &name);
                if let Some((entry, fd)) = same(ours, found)? {
                    self.admit(&entry, fd)?;
                }
                Ok(())
            }
            What::List => self.compare_listing(parent, &plain, op.x).map(drop),
            _ => self.list_while_changing(op, parent, &plain),
        }
    }

    /// A directory's entries, `step` at a time, with `between` after the first
    /// few.
    fn list(
        &mut self,
        ino: u64,
        step: usize,
        between: impl FnOnce(&mut Self) -> Outcome<()>,
    ) -> Outcome<Result<Listing, FsError>> {
        let mut between = Some(between);
        let mut listing = Listing::new();
        let mut position = 0;
        loop {
            let before = listing.len();
            let result = self.fs().readdir(ino, position, |entry| {
                if listing.len() == before + step {
                    return false;
                }
                listing.push((entry.name.clone(), entry.ino, entry.kind));
                position = entry.next;
                true
            });
            if let Err(error) = result {
                return Ok(Err(error));
            }
            if let Some(between) = between.take() {
                between(self)?;
            }
            if listing.len() == before {
                return Ok(Ok(listing));
            }
        }
    }

    /// Compares a directory's entries and gives their names, and the plain
    /// inode numbers.
    fn compare_listing(
        &mut self,
        ino: u64,
        plain: &OwnedFd,
        random: u32,
    ) -> Outcome<Vec<(Vec<u8>, u64)>> {
        let step = [1, 2, 5, usize::MAX >> 1][random as usize % 4];
        let ours = self.list(ino, step, |_| Ok(()))?;
        let Some((mut listing, entries)) = same(ours, dir::list(plain))? else {
            return Ok(Vec::new());
        };
        listing.sort_by(|a, b| a.0.cmp(&b.0));
        let dots = listing
            .iter()
            .filter(|e| matches!(e.0.as_slice(), b"." | b".."));
        let dots: Vec<_> = dots.map(|e| (e.0.clone(), e.1)).collect();
        equal("dots", dots.len(), 2)?;
        equal("the directory itself", dots[0].1, ino)?;
        listing.retain(|e| !matches!(e.0.as_slice(), b"." | b".."));
        let mut expected: Vec<_> = entries
            .iter()
            .map(|e| {
                let kind = FileKind::from_mode(e.kind.as_raw_mode());
                (e.name.to_bytes().to_vec(), e.ino, kind)
            })
            .collect();
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        let shape = |l: &Listing| -> Vec<_> { l.iter().map(|e| (e.0.clone(), e.2)).collect() };
        equal("entries", shape(&listing), shape(&expected))?;
        for (ours, plain) in listing.iter().zip(&expected) {
            if let Some(node) = self.nodes.iter().find(|n| n.host_ino == plain.1) {
                equal("inode number in a listing", ours.1, node.ino)?;
            }
        }
        self.compare_listed(ino, plain)?;
        Ok(expected.into_iter().map(|e| (e.0, e.1)).collect())
    }

    /// Compares the attributes that come with a listing, which may be from memory, with
    /// the plain ones and with those that the host gives now.
    fn compare_listed(&self, ino: u64, plain: &OwnedFd) -> Outcome<()> {
        let fs = self.fs();
        let mut listed = Vec::new();
        let result = fs.readdir(ino, 0, |entry| {
            if !matches!(entry.name.as_slice(), b"." | b"..") {
                listed.push((entry.name.clone(), fs.look_up_listed(ino, entry)));
            }
            true
        });
        result.map_err(|e| format!("listing again: {e}"))?;
        for (name, listed) in listed {
            let mut attr = listed
                .map_err(|e| format!("lookup of what was listed: {e}"))?
                .attr;
            self.compare_attr(&attr, &host(dir::stat_at(plain, &name))?)?;
            let now = fs.lookup(ino, &name);
            let now = now.map_err(|e| format!("lookup: {e}"))?.attr;
            if attr.kind == FileKind::Symlink {
                // To tell the length of a long target, it is read.
                attr.atime = now.atime;
            }
            equal("attributes in a listing", attr, now)?;
            fs.forget(attr.ino, 2);
        }
        Ok(())
    }

    /// Entries that are there all the time are listed once, whatever else
    /// comes and goes.
    fn list_while_changing(&mut self, op: &Op, parent: u64, plain: &OwnedFd) -> Outcome<()> {
        // Positions in a tmpfs do not stay good when an entry goes.
        const TMPFS: i64 = 0x0102_1994;
        let filesystem = self.fs().statfs().map_err(|e| format!("statfs: {e}"))?;
        if filesystem.f_type == TMPFS {
            return Ok(());
        }
        let before = self.compare_listing(parent, plain, 3)?;
        let (gone, new) = (name(op.x), name(op.y));
        let ours = self.list(parent, usize::from(op.b) % 6 + 1, |pair| {
            pair.changed(parent);
            if !Self::is_dir(plain, &gone) {
                pair.unlink(parent, plain, &gone)?;
            }
            let mut op = *op;
            op.b = 0;
            pair.create(&op, parent, plain, &new)
        })?;
        let Ok(listing) = ours else {
            return Ok(());
        };
        for (name, _) in before.iter().filter(|(name, _)| *name != gone) {
            let times = listing.iter().filter(|entry| entry.0 == *name).count();
            equal(
                &format!("times that {:?} is listed", name.escape_ascii().to_string()),
                times,
                1,
            )?;
        }
        Ok(())
    }

    /// Compares everything.
    pub(crate) fn compare_all(&mut self) -> Outcome<()> {
        for node in &self.nodes {
            let attr = self
                .fs()
                .getattr(node.ino)
                .map_err(|e| format!("getattr: {e}"))?
                .attr;
            equal("inode number", attr.ino, node.ino)?;
            self.compare_attr(&attr, &host(dir::stat(&node.host))?)?;
            if let Some(mtime) = node.mtime {
                equal("mtime", (attr.mtime.sec, attr.mtime.nsec), mtime)?;
            }
        }
        let plain = self.nodes[0].host.try_clone().expect("dup");
        let known = self.fs().known_inodes();
        equal("inodes known", known, self.nodes.len() - 1)?;
        let mut numbers = BTreeMap::new();
        self.compare_dir(ROOT, &plain, &mut numbers)?;
        equal(
            "inodes known after the comparison",
            self.fs().known_inodes(),
            known,
        )
    }

    fn compare_dir(
        &mut self,
        ino: u64,
        plain: &OwnedFd,
        numbers: &mut BTreeMap<u64, u64>,
    ) -> Outcome<()> {
        for (name, host_ino) in self.compare_listing(ino, plain, 3)? {
            let shown = || name[..name.len().min(20)].escape_ascii().to_string();
            let entry = self.fs().lookup(ino, &name);
            let entry = entry.map_err(|e| format!("lookup of {}: {e}", shown()))?;
            let fd = host(dir::open_path(plain, &name))?;
            let first = *numbers.entry(host_ino).or_insert(entry.attr.ino);
            let compared = equal("number of a hard link", entry.attr.ino, first)
                .and_then(|()| self.compare_inode(&entry.attr, &fd))
                .map_err(|e| format!("{} in {ino}: {e}", shown()));
            let compared = compared.and_then(|()| match entry.attr.kind {
                FileKind::Directory => self.compare_dir(entry.attr.ino, &fd, numbers),
                _ => Ok(()),
            });
            self.fs().forget(entry.attr.ino, 1);
            compared?;
        }
        Ok(())
    }

    fn compare_inode(&mut self, attr: &Attr, plain: &OwnedFd) -> Outcome<()> {
        let ino = attr.ino;
        self.compare_attr(attr, &host(dir::stat(plain))?)?;
        self.compare_xattrs(ino, plain)?;
        match attr.kind {
            FileKind::Symlink => {
                let ours = self.fs().readlink(ino);
                let Some((ours, plain)) = same(ours, dir::readlink(plain, b""))? else {
                    return Err("a symlink cannot be read".into());
                };
                equal("target", ours == plain, true)
            }
            FileKind::Regular => {
                let options = OpenOptions::default();
                let mut offered = None;
                let offer = |content: &[u8]| offered = Some(content.to_vec());
                let number = self.fs().open(ino, options, offer);
                let number = number.map_err(|e| format!("open: {e}"))?;
                if let Some(content) = offered {
                    self.compare_offered(plain, &content)?;
                }
                let file = File::from(host(dir::reopen(plain, false))?);
                let compared = self.compare_content(number, &file, 0, attr.size as usize + 1);
                self.fs().release(number);
                compared
            }
            _ => Ok(()),
        }
    }

    /// Compares what a read gives.
    pub(crate) fn compare_content(
        &mut self,
        number: u64,
        file: &File,
        at: u64,
        len: usize,
    ) -> Outcome<()> {
        let expected = Self::plain_bytes(file, at, len)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut done = 0;
        let mut compare = || loop {
            let step = (len - done).min(CHUNK);
            let range = self.fs().read(number, at + done as u64, step, &mut buffer);
            let bytes = buffer.slice(range.map_err(|e| format!("read: {e}"))?);
            let wanted = &expected[done.min(expected.len())..(done + step).min(expected.len())];
            equal("bytes read", bytes.len(), wanted.len())?;
            if let Some(differs) = bytes.iter().zip(wanted).position(|(a, b)| a != b) {
                let at = at as usize + done + differs;
                return Err(format!(
                    "byte {at} is {:#x}, not {:#x}",
                    bytes[differs], wanted[differs]
                ));
            }
            done += step;
            if bytes.len() < step || done >= len {
                return Ok(());
            }
        };
        let compared = compare();
        self.buffer = buffer;
        compared
    }

    /// Compares names and values of all attributes.
    pub(crate) fn compare_xattrs(&self, ino: u64, plain: impl AsFd) -> Outcome<()> {
        let Some((mut ours, mut names)) = same(self.fs().listxattr(ino), xattr::list(&plain))?
        else {
            return Ok(());
        };
        ours.sort();
        names.sort();
        equal("attributes", &ours, &names)?;
        for name in names {
            let value = xattr::get(&plain, &name);
            if let Some((ours, value)) = same(self.fs().getxattr(ino, &name), value)? {
                equal("value of an attribute", ours, value)?;
            }
        }
        Ok(())
    }
}
