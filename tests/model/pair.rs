//! A volume and a plain directory that get the same operations.

use std::collections::HashSet;
use std::fmt::Debug;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kmsfs::backing::{Errno, dir};
use kmsfs::fs::{Attr, Entry, FileKind, Fs, FsError, Mounted, NewNode, ROOT, ReadBuffer};
use kmsfs::fuse::errno;
use kmsfs::sys::creds::Caller;

use crate::op::{Op, What};
use crate::volume::{Kind, Place};

/// What went wrong.
pub(crate) type Outcome<T> = Result<T, String>;

/// An inode that both sides know.
pub(crate) struct Node {
    /// Its number in the volume.
    pub(crate) ino: u64,
    /// The plain one.
    pub(crate) host: OwnedFd,
    /// Its number there.
    pub(crate) host_ino: u64,
    /// What it is.
    pub(crate) kind: FileKind,
    /// Lookups to be given back.
    pub(crate) lookups: u64,
    /// Times that were set and that nothing has changed since.
    pub(crate) mtime: Option<(i64, u32)>,
}

/// An open file on both sides.
pub(crate) struct Handle {
    /// In the volume.
    pub(crate) number: u64,
    /// In the plain directory.
    pub(crate) file: File,
    /// Of which inode.
    pub(crate) host_ino: u64,
    /// Whether it may be written to.
    pub(crate) write: bool,
}

/// Both sides and what is known of them.
pub(crate) struct Pair {
    /// Keeps the directories.
    pub(crate) place: Place,
    /// The open volume, except while it is opened again.
    mounted: Option<Mounted>,
    /// The first is the root.
    pub(crate) nodes: Vec<Node>,
    /// Open files.
    pub(crate) handles: Vec<Handle>,
    /// Memory for reading.
    pub(crate) buffer: ReadBuffer,
    /// Directories below the root.
    directories: usize,
    /// This process may do everything.
    pub(crate) root: bool,
}

/// Most directories below the root.
const DIRECTORIES: usize = 10;
/// Most inodes to be known at once.
const KNOWN: usize = 150;
/// Most open files.
const OPEN: usize = 20;

/// The names that are used, in each directory.
pub(crate) fn names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = ["a", "b", "c.txt", "d\u{e4}", "-e", "F F"]
        .map(|name| name.as_bytes().to_vec())
        .into();
    for len in [175, 176, 200, 223, 254, 255] {
        names.push(vec![b'a' + (len % 26) as u8; len]);
    }
    names
}

/// The error number that a program would see.
pub(crate) fn code(error: &FsError) -> i32 {
    errno(error).raw_os_error()
}

/// Both succeeded (with what they gave), or both failed alike (`None`).
pub(crate) fn same<T, U>(
    ours: Result<T, FsError>,
    plain: Result<U, Errno>,
) -> Outcome<Option<(T, U)>> {
    match (ours, plain) {
        (Ok(ours), Ok(plain)) => Ok(Some((ours, plain))),
        (Err(ours), Err(plain)) if code(&ours) == plain.raw_os_error() => Ok(None),
        (ours, plain) => Err(format!(
            "result {:?}, plain directory {:?}",
            ours.map(drop).map_err(|e| (code(&e), e.to_string())),
            plain.map(drop)
        )),
    }
}

/// Fails unless both are equal.
pub(crate) fn equal<T: PartialEq + Debug>(what: &str, ours: T, plain: T) -> Outcome<()> {
    if ours == plain {
        return Ok(());
    }
    Err(format!("{what} {ours:?}, plain directory {plain:?}"))
}

/// As an operation's error.
pub(crate) fn host<T>(result: Result<T, Errno>) -> Outcome<T> {
    result.map_err(|e| format!("the plain directory: {e}"))
}

impl Pair {
    /// A new volume and an empty directory.
    pub(crate) fn new(kind: Kind) -> Self {
        // What new files may have is the operations' affair alone.
        rustix::process::umask(rustix::fs::Mode::empty());
        let place = Place::new(kind);
        let mounted = place.open();
        let mut pair = Self {
            place,
            mounted: Some(mounted),
            nodes: Vec::new(),
            handles: Vec::new(),
            buffer: ReadBuffer::default(),
            directories: 0,
            root: rustix::process::geteuid().is_root(),
        };
        pair.nodes.push(pair.root_node());
        pair
    }

    fn root_node(&self) -> Node {
        let path = self.place.host();
        let path = std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str());
        let host = dir::open_path(dir::CWD, path).expect("the plain directory");
        let stat = dir::stat(&host).expect("stat");
        Node {
            ino: ROOT,
            host_ino: stat.stx_ino,
            host,
            kind: FileKind::Directory,
            lookups: 0,
            mtime: None,
        }
    }

    /// The filesystem.
    pub(crate) fn fs(&self) -> &Arc<Fs> {
        &self.mounted.as_ref().expect("mounted").fs
    }

    /// A new inode's owner and mode.
    pub(crate) fn new_node(&self, mode: u32) -> NewNode {
        NewNode {
            caller: Caller {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            },
            mode,
            umask: 0,
        }
    }

    /// Permission bits from a random number, such that the owner can go on.
    pub(crate) fn mode(&self, random: u32) -> u32 {
        if self.root {
            random & 0o7777
        } else {
            random & 0o777 | 0o700
        }
    }

    /// Takes in an inode that an operation gave, and compares it.
    pub(crate) fn admit(&mut self, entry: &Entry, fd: OwnedFd) -> Outcome<()> {
        let stat = host(dir::stat(&fd))?;
        self.compare_attr(&entry.attr, &stat)?;
        let found = self.nodes.iter_mut().find(|n| n.host_ino == stat.stx_ino);
        if let Some(node) = found {
            node.lookups += 1;
            return equal("inode number", entry.attr.ino, node.ino);
        }
        if self.nodes.iter().any(|n| n.ino == entry.attr.ino) {
            return Err(format!("inode number {} is in use", entry.attr.ino));
        }
        self.nodes.push(Node {
            ino: entry.attr.ino,
            host: fd,
            host_ino: stat.stx_ino,
            kind: entry.attr.kind,
            lookups: 1,
            mtime: None,
        });
        Ok(())
    }

    /// Compares what both say of an inode.
    pub(crate) fn compare_attr(&self, attr: &Attr, stat: &dir::Stat) -> Outcome<()> {
        let kind = FileKind::from_mode(stat.stx_mode.into());
        equal("kind", Some(attr.kind), kind)?;
        equal("mode", attr.perm, stat.stx_mode & 0o7777)?;
        equal("owner", (attr.uid, attr.gid), (stat.stx_uid, stat.stx_gid))?;
        if attr.kind != FileKind::Directory {
            equal("size", attr.size, stat.stx_size)?;
            equal("links", attr.nlink, stat.stx_nlink)?;
        } else if attr.ino != ROOT {
            // The root has kmsfs's own entries.
            equal("links", attr.nlink, stat.stx_nlink)?;
        }
        Ok(())
    }

    /// Index of a node of which `wanted` is true, from a random number.
    pub(crate) fn pick(&self, random: u16, wanted: impl Fn(&Node) -> bool) -> Option<usize> {
        let count = self.nodes.iter().filter(|n| wanted(n)).count();
        let nth = usize::from(random).checked_rem(count)?;
        let mut found = (0..self.nodes.len()).filter(|&at| wanted(&self.nodes[at]));
        found.nth(nth)
    }

    /// A directory, most often one near the root.
    pub(crate) fn pick_dir(&self, random: u16) -> usize {
        let dirs = self.pick(random, |n| n.kind == FileKind::Directory);
        dirs.expect("the root is one")
    }

    /// Index of a handle from a random number.
    pub(crate) fn pick_handle(&self, random: u16, write: bool) -> Option<usize> {
        let usable = |at: &usize| !write || self.handles[*at].write;
        let count = (0..self.handles.len()).filter(usable).count();
        let nth = usize::from(random).checked_rem(count)?;
        (0..self.handles.len()).filter(usable).nth(nth)
    }

    /// Forgets that an inode's times are known.
    pub(crate) fn touch(&mut self, host_ino: u64) {
        for node in self.nodes.iter_mut().filter(|n| n.host_ino == host_ino) {
            node.mtime = None;
        }
    }

    /// Does one operation on both sides.
    pub(crate) fn apply(&mut self, op: &Op) -> Outcome<()> {
        match op.what {
            What::Create | What::Mknod | What::Mkdir | What::Symlink => self.make(op),
            What::Link | What::Unlink | What::Rmdir | What::Rename => self.names(op),
            What::Lookup | What::List | What::ListWhileChanging => self.look(op),
            What::Open | What::Close | What::Read | What::Write => self.data(op),
            What::Truncate | What::Punch | What::Zero | What::Allocate => self.space(op),
            What::Seek | What::Fsync | What::Commit | What::Checkpoint => self.position(op),
            What::Chmod | What::Chown | What::Times | What::Readlink => self.attributes(op),
            What::SetXattr | What::GetXattr | What::RemoveXattr => self.xattrs(op),
            What::Forget if op.x.is_multiple_of(4) => self.forget_all(),
            What::Forget => self.forget(op.a),
            What::Empty => self.empty(op),
            What::Remount => self.remount(op.x.is_multiple_of(3)),
            What::Compare => self.compare_all(),
        }?;
        while self.nodes.len() > KNOWN {
            self.forget_at(1)?;
        }
        if self.handles.len() > OPEN {
            self.close_at(0);
        }
        Ok(())
    }

    /// Whether another directory may be made; counts it.
    pub(crate) fn room_for_directory(&self) -> bool {
        self.directories < DIRECTORIES
    }

    /// Counts directories that came or went.
    pub(crate) fn count_directories(&mut self, change: isize) {
        self.directories = self.directories.saturating_add_signed(change);
    }

    /// Closes a handle on both sides.
    pub(crate) fn close_at(&mut self, at: usize) {
        let handle = self.handles.swap_remove(at);
        self.fs().release(handle.number);
    }

    fn forget(&mut self, random: u16) -> Outcome<()> {
        let at = usize::from(random) % self.nodes.len();
        if at == 0 { Ok(()) } else { self.forget_at(at) }
    }

    /// As the kernel does where memory is short.
    fn forget_all(&mut self) -> Outcome<()> {
        while self.nodes.len() > 1 {
            self.forget_at(self.nodes.len() - 1)?;
        }
        Ok(())
    }

    /// Gives an inode's lookups back, once its handles are closed.
    fn forget_at(&mut self, at: usize) -> Outcome<()> {
        let host_ino = self.nodes[at].host_ino;
        while let Some(open) = self.handles.iter().position(|h| h.host_ino == host_ino) {
            self.close_at(open);
        }
        let node = self.nodes.swap_remove(at);
        self.fs().forget(node.ino, node.lookups);
        equal(
            "inodes known",
            self.fs().known_inodes(),
            self.nodes.len() - 1,
        )
    }

    /// Unmounts, or stops as if killed, and mounts again.
    fn remount(&mut self, killed: bool) -> Outcome<()> {
        while !self.handles.is_empty() {
            self.close_at(0);
        }
        self.nodes.clear();
        let mounted = self.mounted.take().expect("mounted");
        if killed {
            // What is durable is there to stay; the journal is replayed.
            let journal = mounted.fs.volume().journal.as_ref().expect("writable");
            journal.commit().map_err(|e| format!("commit: {e}"))?;
        } else {
            mounted.close().map_err(|e| format!("close: {e}"))?;
        }
        drop(mounted);
        self.mounted = Some(self.place.open());
        self.nodes.push(self.root_node());
        self.compare_all()?;
        self.nothing_left_behind()
    }

    /// The entries that kmsfs adds to the backing directory are all needed.
    pub(crate) fn nothing_left_behind(&self) -> Outcome<()> {
        let mut seen = HashSet::new();
        let (mut long, mut sidecars, mut overlong, mut overflow) = (0, 0, 0, 0);
        let mut waiting = vec![self.place.backing()];
        while let Some(path) = waiting.pop() {
            let in_overflow = path.ends_with("kmsfs.overflow");
            for entry in std::fs::read_dir(path).map_err(|e| e.to_string())? {
                let entry = entry.map_err(|e| e.to_string())?;
                let metadata = entry.metadata().map_err(|e| e.to_string())?;
                let name = entry.file_name().to_string_lossy().into_owned();
                long += usize::from(name.starts_with("kmsfs.long."));
                sidecars += usize::from(name.starts_with("kmsfs.name."));
                overflow += usize::from(in_overflow);
                if metadata.is_dir() {
                    waiting.push(entry.path());
                } else if metadata.is_symlink() && metadata.len() == 4095 {
                    let ino = std::os::unix::fs::MetadataExt::ino(&metadata);
                    overlong += usize::from(seen.insert(ino));
                }
            }
        }
        equal("sidecars and long names", sidecars, long)?;
        equal("overflows and overlong targets", overflow, overlong)
    }

    /// The plain bytes of a range.
    pub(crate) fn plain_bytes(file: &File, at: u64, len: usize) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; len];
        let mut done = 0;
        while done < len {
            match file.read_at(&mut bytes[done..], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) => return Err(format!("the plain file: {e}")),
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }
}
