//! Many threads at work in the same directory, each with files of its own: what one
//! does must not show in another's files, however opening and closing overlap.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

use crate::common::sys::Aligned;
use crate::common::{Mount, Options, Rng, env_number};

/// Files in a thread's care at the most.
const FILES: u64 = 12;
const THREADS: u64 = 6;
const TAG: &str = "user.tag";

/// What a file is expected to be.
#[derive(Default)]
struct Known {
    content: Vec<u8>,
    mode: Option<u32>,
    tag: Option<Vec<u8>>,
    /// Kept open over other steps.
    handle: Option<File>,
}

struct Worker {
    dir: PathBuf,
    number: u64,
    rng: Rng,
    files: BTreeMap<u64, Known>,
}

impl Worker {
    fn path(&self, file: u64) -> PathBuf {
        self.dir.join(format!("{}-{file}", self.number))
    }

    fn size(&mut self) -> usize {
        let most = *self.rng.pick(&[1, 300, 5000, 40_000, 300_000]);
        usize::try_from(self.rng.below(most)).unwrap()
    }

    fn step(&mut self) {
        let file = self.rng.below(FILES);
        let path = self.path(file);
        let size = self.size();
        let bytes = self.rng.bytes(size);
        let Some(mut known) = self.files.remove(&file) else {
            fs::write(&path, &bytes).unwrap();
            let content = bytes;
            self.files.insert(
                file,
                Known {
                    content,
                    ..Known::default()
                },
            );
            return;
        };
        match self.rng.below(13) {
            0 => {
                fs::write(&path, &bytes).unwrap();
                known.content = bytes;
            }
            1 | 2 => {
                let at = usize::try_from(self.rng.below(known.content.len() as u64 + 1)).unwrap();
                let open = || OpenOptions::new().write(true).open(&path).unwrap();
                let opened = known.handle.take().unwrap_or_else(open);
                opened.write_all_at(&bytes, at as u64).unwrap();
                known.content.resize(known.content.len().max(at + size), 0);
                known.content[at..at + size].copy_from_slice(&bytes);
            }
            3 => {
                let opened = OpenOptions::new().write(true).open(&path).unwrap();
                opened.set_len(size as u64).unwrap();
                known.content.resize(size, 0);
            }
            4 => {
                let opened = OpenOptions::new().read(true).write(true).open(&path);
                known.handle = Some(opened.unwrap());
            }
            5 => {
                let mode = *self.rng.pick(&[0o600, 0o644, 0o755, 0o700]);
                fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
                known.mode = Some(mode);
            }
            6 => {
                let tag = self.rng.bytes(20);
                setxattr(&path, TAG, &tag, XattrFlags::empty()).unwrap();
                known.tag = Some(tag);
            }
            7 => {
                // Over another of its own, which is gone then.
                let other = self.rng.below(FILES);
                fs::rename(&path, self.path(other)).unwrap();
                self.files.insert(other, known);
                return;
            }
            8 => {
                let link = self.dir.join(format!("{}-link", self.number));
                fs::hard_link(&path, &link).unwrap();
                fs::remove_file(&path).unwrap();
                fs::rename(&link, &path).unwrap();
            }
            9 => {
                fs::remove_file(&path).unwrap();
                if let Some(handle) = known.handle {
                    handle.write_all_at(b"x", size as u64).unwrap();
                }
                return;
            }
            10 => File::open(&path).unwrap().sync_all().unwrap(),
            11 => known.handle = None,
            _ => {}
        }
        self.check(&path, &known);
        self.files.insert(file, known);
    }

    fn check(&mut self, path: &Path, known: &Known) {
        let metadata = fs::metadata(path).unwrap();
        assert_eq!(
            metadata.len(),
            known.content.len() as u64,
            "{}",
            path.display()
        );
        if let Some(mode) = known.mode {
            assert_eq!(metadata.mode() & 0o7777, mode, "{}", path.display());
        }
        let mut tag = [0; 20];
        let tag = match getxattr(path, TAG, &mut tag) {
            Ok(len) => Some(tag[..len].to_vec()),
            Err(error) => {
                assert_eq!(error, Errno::NODATA, "{}", path.display());
                None
            }
        };
        assert!(tag == known.tag, "the tag of {} differs", path.display());
        if self.rng.below(4) == 0 {
            let mut options = OpenOptions::new();
            let file = options.read(true).custom_flags(libc::O_DIRECT).open(path);
            let mut page = Aligned::new(4096, 0);
            let count = file.unwrap().read_at(&mut page, 0).unwrap();
            let start = &known.content[..known.content.len().min(4096)];
            assert!(
                page[..count] == *start,
                "{} differs (direct)",
                path.display()
            );
        } else {
            let content = fs::read(path).unwrap();
            assert!(content == known.content, "{} differs", path.display());
        }
    }
}

fn work(mount: &mut Mount) {
    let steps = env_number("KMSFS_CONCURRENT_STEPS", 1500);
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    let mut seed = Rng::from_env();
    let mut workers = Vec::new();
    for number in 0..THREADS {
        let (dir, rng) = (dir.clone(), Rng::new(seed.next()));
        let files = BTreeMap::new();
        workers.push(Worker {
            dir,
            number,
            rng,
            files,
        });
    }
    std::thread::scope(|scope| {
        for worker in &mut workers {
            scope.spawn(|| (0..steps).for_each(|_| worker.step()));
        }
    });
    for worker in &mut workers {
        worker
            .files
            .values_mut()
            .for_each(|known| known.handle = None);
    }
    mount.remount();
    let mut names = 0;
    for mut worker in workers {
        let files = std::mem::take(&mut worker.files);
        for (file, known) in &files {
            worker.check(&worker.path(*file), known);
        }
        names += files.len();
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), names);
}

#[test]
fn threads_do_not_disturb_each_other() {
    work(&mut Mount::simple());
}

#[test]
fn nor_where_descriptors_are_few() {
    for no_handles in [false, true] {
        let Some(mut mount) = Mount::real(Options {
            descriptors: Some(150),
            no_handles,
            ..Options::default()
        }) else {
            return;
        };
        work(&mut mount);
    }
}
