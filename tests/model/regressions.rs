//! What the random operations have found, each as its shortest form.

use kmsfs::fs::{FsError, OpenOptions, ROOT, WriteKind};
use kmsfs::sys::creds::Caller;

use crate::pair::Pair;
use crate::{DETERMINISTIC, ENCRYPTED, PLAIN};

const WRITE: OpenOptions = OpenOptions {
    write: true,
    truncate: false,
};

/// The shorter block and the one behind it were put in place back to back, and
/// the second one was lost.
#[test]
fn a_pending_block_behind_a_short_one_goes_where_it_belongs() {
    for kind in [ENCRYPTED, DETERMINISTIC, PLAIN] {
        let block = u64::from(kind.sizes.0);
        let mut pair = Pair::new(kind);
        let new = pair.new_node(0o600);
        let (_, file) = pair.fs().create(ROOT, b"file", new, true, WRITE).unwrap();
        let path = pair.place.host().join("file");
        std::fs::write(&path, vec![]).unwrap();
        let plain = std::fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        // A partial block, pending; then one behind it, pending too.
        let writes = [(0, 100), (50, 20), (block, 300), (block + 50, 20)];
        for (at, len) in writes {
            let bytes = vec![len as u8; len];
            pair.fs()
                .write(file, at, &bytes, WriteKind::default())
                .unwrap();
            std::os::unix::fs::FileExt::write_all_at(&plain, &bytes, at).unwrap();
        }
        let journal = pair.fs().volume().journal.clone().unwrap();
        journal.commit().unwrap();
        pair.compare_content(file, &plain, 0, 100_000).unwrap();
    }
}

/// The part of its target that lies elsewhere goes with the last name; whoever
/// holds the link still has it.
#[test]
fn an_unlinked_overlong_symlink_keeps_its_target() {
    let pair = Pair::new(ENCRYPTED);
    let target = vec![b't'; 4095];
    let new = pair.new_node(0o777);
    let link = pair.fs().symlink(ROOT, b"link", &target, new).unwrap();
    pair.fs().unlink(ROOT, b"link").unwrap();
    let ino = link.attr.ino;
    assert_eq!(pair.fs().readlink(ino).unwrap(), target);
    let attr = pair.fs().getattr(ino).unwrap().attr;
    assert_eq!((attr.size, attr.nlink), (4095, 0));
    pair.fs().forget(ino, 1);
    assert!(matches!(pair.fs().readlink(ino), Err(FsError::Stale)));
}

/// The forget that follows the last unlink may come after a look at the number alone,
/// which a file handle leads to.
#[test]
fn a_number_of_an_unlinked_file_is_stale_before_it_is_forgotten() {
    let pair = Pair::new(ENCRYPTED);
    let new = pair.new_node(0o100_600);
    let file = pair.fs().mknod(ROOT, b"file", new, 0);
    let ino = file.unwrap().attr.ino;
    assert_eq!(pair.fs().lookup(ino, b".").unwrap().attr.ino, ino);
    pair.fs().unlink(ROOT, b"file").unwrap();
    assert!(matches!(pair.fs().lookup(ino, b"."), Err(FsError::Stale)));
    // Both lookups that succeeded are counted, and not the one that failed.
    pair.fs().forget(ino, 1);
    assert_eq!(pair.fs().getattr(ino).unwrap().attr.nlink, 0);
    pair.fs().forget(ino, 1);
    assert!(matches!(pair.fs().getattr(ino), Err(FsError::Stale)));
}

/// It replaced itself, and took its target along. (The kernel does not ask.)
#[test]
fn an_overlong_symlink_renamed_to_itself_keeps_its_target() {
    let pair = Pair::new(ENCRYPTED);
    let target = vec![b't'; 4095];
    let new = pair.new_node(0o777);
    let link = pair.fs().symlink(ROOT, b"link", &target, new).unwrap();
    pair.fs().rename(ROOT, b"link", ROOT, b"link", 0).unwrap();
    pair.fs().forget(link.attr.ino, 1);
    let link = pair.fs().lookup(ROOT, b"link").unwrap();
    assert_eq!(pair.fs().readlink(link.attr.ino).unwrap(), target);
}

/// Its name could not be stored, and the part of its target that lies
/// elsewhere stayed.
#[test]
fn an_overlong_symlink_that_cannot_be_made_leaves_nothing() {
    let pair = Pair::new(ENCRYPTED);
    let directory = pair.fs().mkdir(ROOT, b"directory", pair.new_node(0o700));
    let directory = directory.unwrap().attr.ino;
    // Whoever is inside goes on with its id.
    assert!(pair.fs().lookup(directory, b"x").is_err());
    pair.fs().rmdir(ROOT, b"directory").unwrap();
    let new = pair.new_node(0o777);
    let made = pair
        .fs()
        .symlink(directory, &[b'n'; 200], &[b't'; 4095], new);
    assert!(made.is_err());
    pair.nothing_left_behind().unwrap();
}

/// Devices are made by root and given to their owner, which takes these bits.
#[test]
fn a_new_device_keeps_suid_and_sgid() {
    let pair = Pair::new(ENCRYPTED);
    if !pair.root {
        eprintln!("skipped: only root makes devices");
        return;
    }
    for uid in [0, 1000] {
        let mut new = pair.new_node(0o026_750);
        new.caller = Caller { uid, gid: uid };
        let name = format!("device of {uid}");
        let made = pair.fs().mknod(ROOT, name.as_bytes(), new, 0x0103).unwrap();
        let attr = made.attr;
        assert_eq!((attr.perm, attr.uid, attr.gid), (0o6750, uid, uid));
    }
}
