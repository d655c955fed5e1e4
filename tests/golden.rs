//! Volumes that `scripts/make-golden` made once, with the kmsfs of their format
//! version: every later kmsfs reads all of them, and refuses what a later
//! format, or damage, would make of them.

use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use data_encoding::HEXLOWER;
use kmsfs::content::ContentError;
use kmsfs::crypto::sha256;
use kmsfs::format::FormatError;
use kmsfs::format::config::ConfigError;
use kmsfs::fs::volume;
use kmsfs::fs::{
    Attr, FileKind, Fs, FsError, Mounted, OpenError, OpenOptions, ROOT, ReadBuffer, WriteKind,
};
use kmsfs::keys::registry::open_ring;
use kmsfs::keys::uri::KeyUri;
use kmsfs::keys::{CacheLimits, KeyError, KeyService, PassphraseSource};
use serde_json::Value;
use tempfile::TempDir;

const FORMATS: [&str; 2] = ["format-1", "format-2"];
const VOLUMES: [&str; 4] = ["encrypted", "deterministic", "plain", "aes128"];

fn golden(format: &str) -> PathBuf {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    all.join(format)
}

/// A program that is just being started holds whatever is open here, the locks of
/// volumes among it: none is started while one is opened that may have been open before.
static STARTING: Mutex<()> = Mutex::new(());

/// A golden volume in a temporary directory.
struct Unpacked(TempDir);

impl Unpacked {
    /// One of the newest format.
    fn new(name: &str) -> Self {
        Self::of_format(FORMATS[1], name)
    }

    fn of_format(format: &str, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let status = Command::new("tar")
            .args(["--extract", "--xattrs", "--xattrs-include=user.*"])
            .arg("--warning=no-timestamp")
            .args([
                "--no-same-owner",
                "--preserve-permissions",
                "--xz",
                "--file",
            ])
            .arg(golden(format).join(format!("{name}.tar.xz")))
            .arg("--directory")
            .arg(dir.path())
            .status();
        assert!(status.expect("tar").success());
        Self(dir)
    }

    fn backing(&self) -> PathBuf {
        self.0.path().join("backing")
    }

    /// Opens it with the keys that lie beside it.
    fn open(&self) -> Result<Mounted, OpenError> {
        self.open_with(&self.0.path().join("keys"))
    }

    fn open_with(&self, keystore: &Path) -> Result<Mounted, OpenError> {
        let found = volume::find(&self.backing())?;
        let uris = found.volume.keys.iter().map(|uri| {
            let KeyUri::Local(mut uri) = KeyUri::parse(uri).unwrap() else {
                panic!("golden volumes have local keys");
            };
            uri.keystore = Some(keystore.to_owned());
            uri.to_string()
        });
        let uris: Vec<String> = uris.collect();
        let ring = open_ring(&uris, &PassphraseSource::Unattended)?;
        let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        found.open(
            Arc::new(KeyService::new(ring, CacheLimits::default())),
            false,
        )
    }

    /// Why it does not open.
    fn refused(&self) -> OpenError {
        self.open().err().expect("it must be refused")
    }

    /// Changes the configuration.
    fn configure(&self, change: impl FnOnce(&mut Value)) {
        let path = self.backing().join("kmsfs.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    /// Changes the image of a file of the volume with plain names, and says why
    /// it does not open after that.
    fn damaged(&self, change: impl FnOnce(&mut Vec<u8>)) -> FsError {
        let path = self.backing().join("block");
        let mut image = fs::read(&path).unwrap();
        change(&mut image);
        fs::write(&path, image).unwrap();
        let mounted = self.open().unwrap();
        let entry = mounted.fs.lookup(ROOT, b"block").unwrap();
        let opened = mounted
            .fs
            .open(entry.attr.ino, OpenOptions::default(), |_| ());
        opened.expect_err("it must be refused")
    }
}

/// The content of an inode, a little at a time.
fn content(fs: &Arc<Fs>, ino: u64) -> Vec<u8> {
    let handle = fs.open(ino, OpenOptions::default(), |_| ()).unwrap();
    let (mut buffer, mut all) = (ReadBuffer::default(), Vec::new());
    loop {
        let range = fs
            .read(handle, all.len() as u64, 50_001, &mut buffer)
            .unwrap();
        if range.is_empty() {
            fs.release(handle);
            return all;
        }
        all.extend_from_slice(buffer.slice(range));
    }
}

/// Every path below a directory, with its attributes.
fn walk(fs: &Arc<Fs>, ino: u64, prefix: &[u8], found: &mut HashMap<Vec<u8>, Attr>) {
    let mut names = Vec::new();
    let listed = fs.readdir(ino, 0, |entry| {
        names.push(entry.name.clone());
        true
    });
    listed.unwrap();
    for name in names
        .iter()
        .filter(|n| !matches!(n.as_slice(), b"." | b".."))
    {
        let attr = fs.lookup(ino, name).unwrap().attr;
        let path = match prefix {
            b"" => name.clone(),
            _ => [prefix, b"/", name].concat(),
        };
        if attr.kind == FileKind::Directory {
            walk(fs, attr.ino, &path, found);
        }
        found.insert(path, attr);
    }
}

fn compare(fs: &Arc<Fs>, entry: &Value, all: &HashMap<Vec<u8>, Attr>) {
    let hex = |value: &Value| HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap();
    let path = hex(&entry["path"]);
    let shown = path.escape_ascii();
    let attr = all
        .get(&path)
        .unwrap_or_else(|| panic!("{shown} is missing"));
    let kind = match entry["kind"].as_str().unwrap() {
        "-" => FileKind::Regular,
        "d" => FileKind::Directory,
        "l" => FileKind::Symlink,
        "p" => FileKind::Fifo,
        other => panic!("{other} in the manifest"),
    };
    assert_eq!(attr.kind, kind, "{shown}");
    if kind != FileKind::Symlink {
        assert_eq!(u64::from(attr.perm), entry["mode"], "{shown}");
    }
    if let Some(links) = entry["links"].as_u64() {
        assert_eq!(u64::from(attr.nlink), links, "{shown}");
    }
    if let Some(mtime) = entry["mtime"].as_i64() {
        let ours = attr.mtime.sec * 1_000_000_000 + i64::from(attr.mtime.nsec);
        // Archives of this kind keep whole seconds.
        assert_eq!(
            ours.div_euclid(1_000_000_000),
            mtime.div_euclid(1_000_000_000),
            "{shown}"
        );
    }
    assert_eq!(attr.ino, all[&hex(&entry["same_as"])].ino, "{shown}");
    if let Some(size) = entry["size"].as_u64() {
        assert_eq!(attr.size, size, "{shown}");
    }
    if let Some(target) = entry["target"].as_str() {
        assert_eq!(fs.readlink(attr.ino).unwrap(), target.as_bytes());
    }
    if let Some(digest) = entry["sha256"].as_str() {
        assert_eq!(
            HEXLOWER.encode(&sha256(&content(fs, attr.ino))),
            digest,
            "{shown}"
        );
    }
    let mut xattrs = serde_json::Map::new();
    for name in fs.listxattr(attr.ino).unwrap() {
        let value = fs.getxattr(attr.ino, &name).unwrap();
        let name = String::from_utf8(name).unwrap();
        if name.starts_with("user.") {
            xattrs.insert(name, HEXLOWER.encode(&value).into());
        }
    }
    assert_eq!(Value::Object(xattrs), entry["xattrs"], "{shown}");
}

#[test]
fn every_golden_volume_reads_as_it_was_written() {
    for format in FORMATS {
        let manifest = fs::read_to_string(golden(format).join("manifest.jsonl")).unwrap();
        let entries: Vec<Value> = manifest
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        for name in VOLUMES {
            let unpacked = Unpacked::of_format(format, name);
            let mounted = unpacked
                .open()
                .unwrap_or_else(|error| panic!("{format} {name}: {error}"));
            let mut all = HashMap::new();
            walk(&mounted.fs, ROOT, b"", &mut all);
            assert_eq!(all.len(), entries.len(), "{format} {name}: as many entries");
            for entry in &entries {
                compare(&mounted.fs, entry, &all);
            }
            mounted.close().unwrap();
        }
    }
}

#[test]
fn golden_volumes_can_be_written_to() {
    for (format, name) in FORMATS.iter().flat_map(|f| VOLUMES.map(|n| (*f, n))) {
        let unpacked = Unpacked::of_format(format, name);
        for path in ["overwritten", "directory/groups"] {
            write_to(&unpacked, path);
        }
        // Whoever could read it before still can.
        let config = fs::read(unpacked.backing().join("kmsfs.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let number: u64 = format["format-".len()..].parse().unwrap();
        assert_eq!(config["format_read_min"], number, "{format} {name}");
    }
}

/// Overwrites a file's middle, appends to it, and looks again after a remount.
fn write_to(unpacked: &Unpacked, path: &str) {
    let find = |fs: &Arc<Fs>| {
        let parts = path.split('/');
        parts.fold(ROOT, |ino, name| {
            fs.lookup(ino, name.as_bytes()).unwrap().attr.ino
        })
    };
    let mounted = unpacked.open().unwrap();
    let fs = &mounted.fs;
    let write = OpenOptions {
        write: true,
        truncate: false,
    };
    let ino = find(fs);
    let mut expected = content(fs, ino);
    let handle = fs.open(ino, write, |_| ()).unwrap();
    let end = expected.len();
    for at in [4000, end] {
        fs.write(handle, at as u64, &[9; 7000], WriteKind::default())
            .unwrap();
        expected.resize(expected.len().max(at + 7000), 0);
        expected[at..at + 7000].fill(9);
    }
    fs.release(handle);
    mounted.close().unwrap();
    drop(mounted);
    let mounted = unpacked.open().unwrap();
    assert!(
        content(&mounted.fs, find(&mounted.fs)) == expected,
        "{path}"
    );
}

#[test]
fn a_volume_of_a_later_format_is_refused() {
    let unpacked = Unpacked::new("plain");
    unpacked.configure(|config| config["format_read_min"] = 3.into());
    let error = unpacked.refused();
    assert!(
        matches!(
            error,
            OpenError::Config {
                error: ConfigError::Format(FormatError::TooNew { needs: 3 }),
                ..
            }
        ),
        "{error:?}"
    );
    let unpacked = Unpacked::new("plain");
    unpacked.configure(|config| config["format_write_min"] = 3.into());
    assert!(matches!(unpacked.refused(), OpenError::WriteTooNew));
}

#[test]
fn an_unknown_critical_field_is_refused_and_another_is_not() {
    let unpacked = Unpacked::new("plain");
    unpacked.configure(|config| config["compression"] = "zstd".into());
    assert!(unpacked.open().is_ok());
    unpacked.configure(|config| config["critical"] = vec!["compression"].into());
    let error = unpacked.refused();
    assert!(
        matches!(&error, OpenError::Config { error: ConfigError::Critical(field), .. } if field == "compression"),
        "{error:?}"
    );
}

#[test]
fn an_unknown_suite_is_refused() {
    let unpacked = Unpacked::new("plain");
    unpacked.configure(|config| config["suite"] = 4.into());
    let error = unpacked.refused();
    assert!(
        matches!(
            error,
            OpenError::Config {
                error: ConfigError::Format(FormatError::UnknownSuite(4)),
                ..
            }
        ),
        "{error:?}"
    );
    // One that is known, but not this volume's.
    let unpacked = Unpacked::new("plain");
    unpacked.configure(|config| config["suite"] = 3.into());
    assert!(matches!(unpacked.refused(), OpenError::WrongKey));
}

/// Length of a header slot with heads of 4096 bytes.
const SLOT: usize = 1024;

/// Makes a slot's checksum right.
fn seal_slot(slot: &mut [u8]) {
    let digest = sha256(&slot[..SLOT - 16]);
    slot[SLOT - 16..].copy_from_slice(&digest[..16]);
}

#[test]
fn files_of_a_later_format_are_refused() {
    let unpacked = Unpacked::new("plain");
    let error = unpacked.damaged(|image| {
        image[8] = 3;
        seal_slot(&mut image[..SLOT]);
    });
    let expected = FormatError::TooNew { needs: 3 };
    assert!(
        matches!(&error, FsError::Content(ContentError::Format(e)) if *e == expected),
        "{error:?}"
    );
}

/// Puts the header into the second slot too, as the newer one.
fn rewrite_header(image: &mut [u8]) {
    let (first, second) = image[..2 * SLOT].split_at_mut(SLOT);
    second.copy_from_slice(first);
    second[24] += 1;
    seal_slot(second);
}

#[test]
fn damage_to_both_headers_is_noticed_and_to_one_is_survived() {
    let unpacked = Unpacked::new("plain");
    let error = unpacked.damaged(|image| {
        rewrite_header(image);
        image[100] ^= 1;
        image[SLOT + 100] ^= 1;
    });
    assert!(
        matches!(
            &error,
            FsError::Content(ContentError::Format(FormatError::BadHeader))
        ),
        "{error:?}"
    );
    for slot in [0, SLOT] {
        let unpacked = Unpacked::new("plain");
        let path = unpacked.backing().join("block");
        let mut image = fs::read(&path).unwrap();
        rewrite_header(&mut image);
        image[slot + 100] ^= 1;
        fs::write(&path, image).unwrap();
        let mounted = unpacked.open().unwrap();
        let ino = mounted.fs.lookup(ROOT, b"block").unwrap().attr.ino;
        assert_eq!(content(&mounted.fs, ino).len(), 4096);
    }
}

/// Whoever has the backing directory cannot have blocks looked for elsewhere.
#[test]
fn a_volume_passed_off_as_one_of_another_format_is_refused() {
    let unpacked = Unpacked::new("plain");
    unpacked.configure(|config| {
        for field in ["format", "format_read_min", "format_write_min"] {
            config[field] = 1.into();
        }
        config.as_object_mut().unwrap().remove("cluster_size");
    });
    assert!(matches!(unpacked.refused(), OpenError::WrongKey));
    let unpacked = Unpacked::of_format(FORMATS[0], "plain");
    unpacked.configure(|config| config["cluster_size"] = 8.into());
    assert!(matches!(unpacked.refused(), OpenError::WrongKey));
    // A header alone: it says which volume and layout it is of.
    let unpacked = Unpacked::new("plain");
    let error = unpacked.damaged(|image| {
        for slot in image[..2 * SLOT].chunks_mut(SLOT) {
            slot[18] = 0;
            seal_slot(slot);
        }
    });
    assert!(
        matches!(&error, FsError::Content(ContentError::WrongVolume)),
        "{error:?}"
    );
}

#[test]
fn another_key_is_refused() {
    // Another keystore has no key of this id, whatever its name.
    let (unpacked, other) = (Unpacked::new("plain"), Unpacked::new("encrypted"));
    let error = unpacked.open_with(&other.0.path().join("keys")).err();
    assert!(
        matches!(error, Some(OpenError::Key(KeyError::NotFound { .. }))),
        "{error:?}"
    );
    // The same name and id, but not what wrapped the volume's key.
    let read = |of: &Unpacked| -> Value {
        let config = fs::read(of.backing().join("kmsfs.json")).unwrap();
        serde_json::from_slice(&config).unwrap()
    };
    let theirs = read(&other);
    unpacked.configure(|config| {
        config["recipients"][0]["wrapped_key"] = theirs["recipients"][0]["wrapped_key"].clone();
    });
    let error = unpacked.refused();
    assert!(
        matches!(error, OpenError::Key(KeyError::Rejected { .. })),
        "{error:?}"
    );
    // Its commitment was made with another key.
    let unpacked = Unpacked::new("plain");
    unpacked.configure(|config| config["commitment"] = theirs["commitment"].clone());
    assert!(matches!(unpacked.refused(), OpenError::WrongKey));
}

#[test]
fn plain_names_are_stored_as_they_are() {
    let unpacked = Unpacked::new("plain");
    let names = fs::read_dir(unpacked.backing()).unwrap();
    let names: Vec<_> = names.map(|e| e.unwrap().file_name()).collect();
    assert!(names.iter().any(|n| n.as_bytes() == b"not UTF-8 \xff\xfe"));
    let unpacked = Unpacked::new("encrypted");
    assert!(unpacked.backing().join("kmsfs.dir").is_symlink());
}
