//! Someone writes to the backing store: every read gives the right plaintext or
//! EIO, never other data, and the daemon goes on serving.
//!
//! The format has three documented exceptions (`docs/THREAT_MODEL.md`): rollback to an
//! older valid version, forged holes and truncation. They are left out here, or
//! the documented behaviour is asserted.

#[path = "../common/mod.rs"]
mod common;

mod contents;
mod volume;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use common::{Mount, noise};

/// Three blocks, the last one partial.
const LEN: usize = 10_000;
const BLOCK: usize = 4096;
/// Where block 0 starts in the backing file.
const HEAD: usize = 4096;
/// Where the entries of the blocks start, and the size of one.
const ENTRIES: usize = 2048;
const ENTRY: usize = 30;
/// The size of a backing file.
const IMAGE: usize = HEAD + LEN;

/// Files of known contents and the backing file of each.
struct Victims {
    names: Vec<String>,
    images: Vec<PathBuf>,
    originals: Vec<Vec<u8>>,
}

fn truth(index: usize) -> Vec<u8> {
    noise(index as u64 + 1, LEN)
}

/// Every file below a directory by inode number, which kmsfs keeps.
fn by_inode(dir: &Path, found: &mut HashMap<u64, PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            by_inode(&entry.path(), found);
        }
        found.insert(metadata.ino(), entry.path());
    }
}

/// The backing entry of a path on the mount.
fn backing_of(mount: &Mount, path: &Path) -> PathBuf {
    let mut found = HashMap::new();
    by_inode(mount.backing(), &mut found);
    let inode = fs::symlink_metadata(path).unwrap().ino();
    found
        .remove(&inode)
        .expect("the inode numbers are the backing directory's")
}

impl Victims {
    /// Makes the files and unmounts. `control` is one more that nobody touches.
    fn new(mount: &mut Mount, count: usize) -> Victims {
        fs::write(mount.join("control"), b"untouched").unwrap();
        let names: Vec<String> = (0..count).map(|index| format!("victim {index}")).collect();
        let mut inodes = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let path = mount.join(name);
            fs::write(&path, truth(index)).unwrap();
            inodes.push(fs::metadata(&path).unwrap().ino());
        }
        mount.unmount();
        let mut found = HashMap::new();
        by_inode(mount.backing(), &mut found);
        let images: Vec<PathBuf> = inodes.iter().map(|inode| found[inode].clone()).collect();
        let originals: Vec<Vec<u8>> = images
            .iter()
            .map(|image| fs::read(image).unwrap())
            .collect();
        for original in &originals {
            assert_eq!(
                original.len(),
                IMAGE,
                "the layout is not what this test knows"
            );
        }
        Victims {
            names,
            images,
            originals,
        }
    }

    /// Writes an image; the mount must be down.
    fn put(&self, index: usize, bytes: &[u8]) {
        fs::write(&self.images[index], bytes).unwrap();
    }

    /// Writes the image as it was made.
    fn restore(&self, index: usize) {
        self.put(index, &self.originals[index]);
    }

    /// Which blocks of a victim can be read; all that can be are right.
    fn judge(&self, mount: &Mount, index: usize, what: &str) -> [bool; 3] {
        let path = mount.join(&self.names[index]);
        let size = fs::metadata(&path)
            .unwrap_or_else(|error| panic!("{what}: stat: {error}"))
            .len();
        assert_eq!(size, LEN as u64, "{what}: the size");
        self.judge_prefix(mount, index, what, LEN)
    }

    /// The same for a file of which `len` bytes may be left.
    fn judge_prefix(&self, mount: &Mount, index: usize, what: &str, len: usize) -> [bool; 3] {
        let truth = truth(index);
        let mut readable = [false; 3];
        let file = match File::open(mount.join(&self.names[index])) {
            Ok(file) => file,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{what}: open");
                return readable;
            }
        };
        for (block, readable) in readable.iter_mut().enumerate() {
            let at = block * BLOCK;
            let mut found = vec![0xee; BLOCK];
            match file.read_at(&mut found, at as u64) {
                Ok(count) => {
                    let right = &truth[at.min(len)..(at + BLOCK).min(len)];
                    assert!(
                        found[..count] == *right,
                        "{what}: block {block} is WRONG DATA ({count} bytes)"
                    );
                    *readable = true;
                }
                Err(error) => assert_eq!(
                    error.raw_os_error(),
                    Some(libc::EIO),
                    "{what}: block {block}"
                ),
            }
        }
        readable
    }

    /// The daemon serves on.
    fn survives(&self, mount: &Mount) {
        assert_eq!(fs::read(mount.join("control")).unwrap(), b"untouched");
    }
}
