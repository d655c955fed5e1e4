//! Operations on contents and attributes.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use kmsfs::backing::dir::{Timespec, Timestamps, UTIME_OMIT};
use kmsfs::backing::{Errno, dir, xattr};
use kmsfs::fs::{Changes, FileKind, FsError, OpenOptions, SetTime, TimeSpec, WriteKind};
use kmsfs::sys::creds::Changer;
use rustix::fs::{FallocateFlags, fallocate};

use crate::op::{Op, Random, What};
use crate::pair::{Handle, Outcome, Pair, equal, host, same};

/// Where groups of blocks begin and end, for all block sizes used, and the first
/// cluster of groups for the smallest.
const EDGES: [u64; 7] = [
    262_144, 524_288, 786_432, 1_310_720, 1_572_864, 1_835_008, 4_456_448,
];
const LARGEST: u64 = 1_900_000;

/// An offset: most often near the start, often at the edge of a block or of a
/// group.
pub(crate) fn offset(random: u32) -> u64 {
    let rest = u64::from(random >> 4);
    let near = |edge: u64| (edge + rest % 17).saturating_sub(8);
    match random & 15 {
        0..=5 => rest % 20_000,
        6 | 7 => 0,
        8 | 9 => near(rest / 17 % 40 * 4096),
        10 | 11 => rest / 17 % 40 * 4096,
        12 => rest % 300_000,
        13 => near(EDGES[(rest / 17) as usize % EDGES.len()]),
        14 => EDGES[rest as usize % EDGES.len()],
        _ => rest % LARGEST,
    }
}

/// A length from 1.
pub(crate) fn length(random: u32) -> usize {
    let rest = (random >> 4) as usize;
    match random & 15 {
        0..=5 => rest % 300 + 1,
        6..=9 => rest % 10_000 + 1,
        10 | 11 => (rest % 8 + 1) * 4096,
        12 => 1,
        13 | 14 => rest % 70_000 + 1,
        _ => rest % 600_000 + 1,
    }
}

/// Bytes without zeros.
fn bytes(seed: u32, len: usize) -> Vec<u8> {
    let mut random = Random(u64::from(seed));
    let words = std::iter::repeat_with(|| random.next().to_le_bytes());
    let mut bytes: Vec<u8> = words.take(len.div_ceil(8)).flatten().collect();
    bytes.truncate(len);
    for byte in &mut bytes {
        *byte = (*byte).max(1);
    }
    bytes
}

fn plain_error(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).expect("an errno")
}

impl Pair {
    /// Opens, closes, reads, writes.
    pub(crate) fn data(&mut self, op: &Op) -> Outcome<()> {
        match op.what {
            What::Open => self.open(op),
            What::Close => {
                if let Some(at) = self.pick_handle(op.a, false) {
                    self.close_at(at);
                }
                Ok(())
            }
            What::Read => {
                let Some(at) = self.pick_handle(op.a, false) else {
                    return Ok(());
                };
                let (number, file) = self.handle(at);
                self.compare_content(number, &file, offset(op.x), length(op.y))
            }
            _ => self.write(op),
        }
    }

    fn handle(&self, at: usize) -> (u64, File) {
        let handle = &self.handles[at];
        (handle.number, handle.file.try_clone().expect("dup"))
    }

    fn open(&mut self, op: &Op) -> Outcome<()> {
        let Some(at) = self.pick(op.a, |n| n.kind == FileKind::Regular) else {
            return Ok(());
        };
        let write = op.x & 3 != 0;
        let options = OpenOptions {
            write,
            truncate: write && op.x & 0x1f == 0x1f,
        };
        let node = &self.nodes[at];
        let mut offered = None;
        let offer = |content: &[u8]| offered = Some(content.to_vec());
        let ours = self.fs().open(node.ino, options, offer);
        let opened = dir::reopen(&node.host, write);
        if let Some(content) = offered {
            self.compare_offered(&node.host, &content)?;
        }
        let Some((number, fd)) = same(ours, opened)? else {
            return Ok(());
        };
        let handle = Handle {
            number,
            file: File::from(fd),
            host_ino: node.host_ino,
            write,
        };
        if options.truncate {
            self.touch(handle.host_ino);
            handle.file.set_len(0).map_err(|e| e.to_string())?;
        }
        self.handles.push(handle);
        Ok(())
    }

    /// What the kernel would be given of a small file when it is opened: all of it.
    pub(crate) fn compare_offered(&self, plain: impl AsFd, content: &[u8]) -> Outcome<()> {
        let file = File::from(dir::reopen(plain, false).map_err(|e| e.to_string())?);
        let len = file.metadata().map_err(|e| e.to_string())?.len() as usize;
        let all = Self::plain_bytes(&file, 0, len)?;
        equal("content offered", content == all, true)
    }

    fn write(&mut self, op: &Op) -> Outcome<()> {
        let Some(at) = self.pick_handle(op.a, true) else {
            return Ok(());
        };
        let (number, file) = self.handle(at);
        self.touch(self.handles[at].host_ino);
        let data = bytes(op.x ^ op.y, length(op.y));
        // Every second write appends.
        let at = if op.b & 1 == 0 {
            file.metadata().map_err(|e| e.to_string())?.len()
        } else {
            offset(op.x)
        };
        let at = if at > LARGEST { 0 } else { at };
        let kind = WriteKind {
            by: self.changer(),
            ..WriteKind::default()
        };
        let ours = self.fs().write(number, at, &data, kind);
        let written = file.write_all_at(&data, at);
        same(ours, written.map_err(|e| plain_error(&e))).map(drop)
    }

    /// Who makes the changes, unless it keeps suid and sgid bits.
    fn changer(&self) -> Option<Changer> {
        (!self.root).then(|| Changer {
            thread: rustix::thread::gettid().as_raw_nonzero().get() as u32,
            gid: rustix::process::getegid().as_raw(),
        })
    }

    /// Changes sizes and holes.
    pub(crate) fn space(&mut self, op: &Op) -> Outcome<()> {
        if op.what == What::Truncate {
            return self.truncate(op);
        }
        let Some(at) = self.pick_handle(op.a, true) else {
            return Ok(());
        };
        let (number, file) = self.handle(at);
        self.touch(self.handles[at].host_ino);
        let (from, len) = (offset(op.x), length(op.y) as u64);
        let keep = op.b & 1 == 1;
        let flags = match op.what {
            What::Punch => 3,
            What::Zero => 16 | u32::from(keep),
            _ => u32::from(keep),
        };
        let ours = self
            .fs()
            .fallocate(number, flags, from, len, self.changer());
        let mut plain = fallocate(&file, FallocateFlags::from_bits_retain(flags), from, len);
        if flags & 16 != 0 && plain == Err(Errno::OPNOTSUPP) {
            // A tmpfs has no such thing.
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let rest = FallocateFlags::from_bits_retain(flags & 1);
            plain =
                fallocate(&file, punch, from, len).and_then(|()| fallocate(&file, rest, from, len));
        }
        same(ours, plain)?;
        // The bytes around it too.
        let start = from.saturating_sub(5000);
        self.compare_content(number, &file, start, (from - start + len) as usize + 5000)
    }

    fn truncate(&mut self, op: &Op) -> Outcome<()> {
        let Some(at) = self.pick(op.a, |n| n.kind == FileKind::Regular) else {
            return Ok(());
        };
        let node = &mut self.nodes[at];
        node.mtime = None;
        let node = &self.nodes[at];
        let changes = Changes {
            size: Some(offset(op.x)),
            ..Changes::default()
        };
        let ours = self.fs().setattr(node.ino, &changes, self.changer());
        let file = File::from(host(dir::reopen(&node.host, true))?);
        let cut = file.set_len(offset(op.x)).map_err(|e| plain_error(&e));
        if let Some((entry, ())) = same(ours, cut)? {
            self.compare_attr(&entry.attr, &host(dir::stat(&node.host))?)?;
        }
        Ok(())
    }

    /// Seeks, syncs, and does what a mount does now and then.
    pub(crate) fn position(&mut self, op: &Op) -> Outcome<()> {
        let journal = self.fs().volume().journal.as_ref().expect("writable");
        if op.what == What::Commit {
            return journal
                .commit()
                .map(drop)
                .map_err(|e| format!("commit: {e}"));
        } else if op.what == What::Checkpoint {
            return journal.checkpoint().map_err(|e| format!("checkpoint: {e}"));
        }
        let Some(at) = self.pick_handle(op.a, false) else {
            return Ok(());
        };
        let (number, file) = self.handle(at);
        if op.what == What::Fsync {
            let synced = self.fs().fsync(number, op.b & 1 == 1);
            return synced.map(drop).map_err(|e| format!("fsync: {e}"));
        }
        let from = offset(op.x);
        let hole = op.b & 1 == 1;
        let size = file.metadata().map_err(|e| e.to_string())?.len();
        let found = match self.fs().seek(number, from, hole) {
            Err(FsError::NoData) if from >= size => return Ok(()),
            Err(FsError::NoData) if !hole => size,
            Err(error) => return Err(format!("seek: {error}")),
            Ok(_) if from >= size => return Err("found something past the end".into()),
            Ok(found) => found,
        };
        if found < from || found > size {
            return Err(format!("seek from {from} of {size} gives {found}"));
        }
        // What is passed over as a hole, and what is found to be one.
        let zeros = if hole {
            found..size.min(found / 4096 * 4096 + 4096)
        } else {
            from..found
        };
        let len = zeros.end.saturating_sub(zeros.start) as usize;
        let there = Self::plain_bytes(&file, zeros.start, len)?;
        match there.iter().position(|&byte| byte != 0) {
            Some(at) => Err(format!(
                "data at {} is said to be a hole",
                zeros.start + at as u64
            )),
            None => Ok(()),
        }
    }

    /// Modes, owners, times, symlink targets.
    pub(crate) fn attributes(&mut self, op: &Op) -> Outcome<()> {
        let mode = self.mode(op.x);
        let symlink = op.what == What::Readlink;
        let wanted = |kind| (kind == FileKind::Symlink) == symlink;
        let Some(at) = self.pick(op.a, |n| wanted(n.kind)) else {
            return Ok(());
        };
        let node = &self.nodes[at];
        let fd = &node.host;
        let mut changes = Changes::default();
        let mut mtime = node.mtime;
        let plain = match op.what {
            What::Readlink => {
                let both = same(self.fs().readlink(node.ino), dir::readlink(fd, b""))?;
                return both.map_or(Ok(()), |(ours, plain)| {
                    equal("same target", ours == plain, true)
                });
            }
            What::Chmod => {
                changes.mode = Some(mode);
                dir::chmod(fd, mode)
            }
            What::Chown => {
                if !self.root || op.b & 3 == 0 {
                    return Ok(());
                }
                changes.uid = (op.b & 1 == 1).then_some(op.x % 3 * 1000);
                changes.gid = (op.b & 2 == 2).then_some(op.y % 3 * 1000);
                dir::chown(fd, changes.uid, changes.gid)
            }
            _ => {
                let sec = i64::from(op.x.cast_signed());
                let nsec = op.y % 1_000_000_000;
                mtime = Some((sec, nsec));
                changes.mtime = Some(SetTime::At(TimeSpec { sec, nsec }));
                let times = Timestamps {
                    last_access: Timespec {
                        tv_sec: 0,
                        tv_nsec: UTIME_OMIT,
                    },
                    last_modification: Timespec {
                        tv_sec: sec,
                        tv_nsec: nsec.into(),
                    },
                };
                dir::set_times(fd, &times)
            }
        };
        let ours = self.fs().setattr(node.ino, &changes, self.changer());
        if let Some((entry, ())) = same(ours, plain)? {
            let stat = host(dir::stat(fd))?;
            self.compare_attr(&entry.attr, &stat)?;
            let plain = (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec);
            if op.what == What::Times {
                let ours = entry.attr.mtime;
                equal("mtime", (ours.sec, ours.nsec), plain)?;
                // Hosts may not have room for all of it.
                mtime = Some(plain);
            }
        }
        self.nodes[at].mtime = mtime;
        Ok(())
    }

    /// Extended attributes.
    pub(crate) fn xattrs(&mut self, op: &Op) -> Outcome<()> {
        let at = usize::from(op.a) % self.nodes.len();
        let node = &self.nodes[at];
        let (ino, fd) = (node.ino, node.host.as_fd());
        let long = |len: usize| ["user.", &"n".repeat(len)].concat().into_bytes();
        let mut names = vec![b"user.a".to_vec(), long(167), long(168), long(250)];
        names.push(b"user.".to_vec());
        if self.root {
            names.push(b"trusted.t".to_vec());
        }
        let name = &names[op.x as usize % names.len()];
        // The kernel does not ask for these.
        let may_have = matches!(node.kind, FileKind::Regular | FileKind::Directory);
        if !may_have && name == b"user." {
            return Ok(());
        }
        match op.what {
            What::SetXattr => {
                let value = bytes(op.y, op.y as usize % 300);
                let flags = [0, 0, 1, 2][(op.y >> 16) as usize % 4];
                let ours = self.fs().setxattr(ino, name, &value, flags, None);
                same(ours, xattr::set(fd, name, &value, flags)).map(drop)
            }
            What::GetXattr => {
                if let Some((ours, plain)) =
                    same(self.fs().getxattr(ino, name), xattr::get(fd, name))?
                {
                    equal("value", ours, plain)?;
                }
                self.compare_xattrs(ino, fd)
            }
            _ => same(self.fs().removexattr(ino, name), xattr::remove(fd, name)).map(drop),
        }
    }
}
