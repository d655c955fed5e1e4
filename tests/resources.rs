//! Memory, descriptors and threads of a daemon that has seen very many files.
//! `KMSFS_FILES` says how many.

#[path = "common/mod.rs"]
mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::sys::{link_open, pages_in_memory};
use common::{
    Mount, Options, can_drop_caches, descriptors_of, drop_caches, env_number, eventually, is_root,
    noise, process_stat, process_status, skip,
};
use kmsfs::sys::process::kernel_version;
use rustix::fs::{Advice, fadvise};

const MIB: u64 = 1024;

fn make(dir: &Path, files: u64) {
    for i in 0..files {
        let sub = dir.join(format!("d{}", i / 1000));
        if i % 1000 == 0 {
            fs::create_dir(&sub).unwrap();
        }
        File::create(sub.join(format!("file number {i}"))).unwrap();
    }
}

fn look_at_all(dir: &Path) -> u64 {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| {
            if entry.metadata().unwrap().is_dir() {
                1 + look_at_all(&entry.path())
            } else {
                1
            }
        })
        .sum()
}

/// A mount with a file of `content`, of which the host has nothing in memory, and where
/// that is stored.
fn mount_of_cold_file(content: &[u8]) -> Option<(Mount, PathBuf)> {
    let options = Options {
        init: vec!["--names".into(), "plain".into()],
        ..Options::default()
    };
    let mut mount = Mount::real(options)?;
    fs::write(mount.join("f"), content).unwrap();
    mount.unmount();
    let stored = mount.backing().join("f");
    let file = File::open(&stored).unwrap();
    file.sync_all().unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    if pages_in_memory(&stored) > 0 {
        skip("the host has its files in memory only");
        return None;
    }
    mount.start();
    Some((mount, stored))
}

/// The plaintext is in the page cache already.
#[test]
fn ciphertext_that_is_read_in_turn_is_not_kept_in_memory() {
    const PAGES: usize = 16 * 1024;
    if !is_root() {
        return skip("the kernel reads so much at once only for root's mounts");
    }
    let content = noise(1, PAGES * 4096);
    let Some((mount, stored)) = mount_of_cold_file(&content) else {
        return;
    };
    assert!(fs::read(mount.join("f")).unwrap() == content);
    let pages = pages_in_memory(&stored);
    assert!(pages < PAGES / 10, "{pages} pages of ciphertext");
}

/// So that most of them find there what they want.
#[test]
fn what_lies_around_many_small_reads_is_read_with_them() {
    const PAGES: usize = 4 * 1024;
    let content = noise(1, PAGES * 4096);
    let Some((mount, stored)) = mount_of_cold_file(&content) else {
        return;
    };
    let file = File::open(mount.join("f")).unwrap();
    fadvise(&file, 0, None, Advice::Random).unwrap();
    let look = |step: usize| {
        let at = step * 1009 % PAGES * 4096;
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, at as u64).unwrap();
        assert!(page == content[at..at + 4096], "at {at}");
    };
    (0..10).for_each(look);
    let few = pages_in_memory(&stored);
    assert!(few < 200, "{few} pages of ciphertext for a few reads");
    // How many, and when, is the disk's affair.
    let more = (10..PAGES / 4).any(|step| {
        look(step);
        pages_in_memory(&stored) > 200 + 2 * step
    });
    assert!(more, "{} pages of ciphertext", pages_in_memory(&stored));
}

#[test]
fn two_hundred_thousand_files_looked_up() {
    let files = env_number("KMSFS_FILES", 200_000);
    let Some(mut mount) = Mount::real(Options {
        deadline: Some(Duration::from_secs(3600)),
        ..Options::default()
    }) else {
        return;
    };
    make(mount.path(), files);
    mount.remount();
    let fresh = descriptors_of(mount.pid());
    for round in 0..2 {
        assert_eq!(look_at_all(mount.path()), files + files.div_ceil(1000));
        let (memory, peak) = (
            process_status(mount.pid(), "VmRSS"),
            process_status(mount.pid(), "VmHWM"),
        );
        println!(
            "round {round}: {memory} KiB now, {peak} KiB at most, {} descriptors",
            descriptors_of(mount.pid())
        );
        assert!(peak < 300 * MIB, "{peak} KiB resident");
        let limit = limit_of(mount.pid());
        let open = descriptors_of(mount.pid()) as u64;
        assert!(
            open < limit * 9 / 10,
            "{open} descriptors of at most {limit}"
        );
    }
    // Reading contents costs key-cache entries and buffers, not memory without end.
    for i in 0..2000.min(files) {
        fs::write(mount.join(format!("d0/contents {i}")), noise(i, 5000)).unwrap();
    }
    assert!(process_status(mount.pid(), "VmHWM") < 300 * MIB);
    if is_root() && can_drop_caches() {
        drop_caches(3);
        let freed = eventually(Duration::from_secs(20), || {
            drop_caches(2);
            descriptors_of(mount.pid()) < fresh + 200
        });
        assert!(
            freed,
            "{} descriptors after the kernel forgot everything",
            descriptors_of(mount.pid())
        );
    }
    let pid = mount.pid();
    mount.unmount();
    assert!(
        !Path::new(&format!("/proc/{pid}")).exists(),
        "a thread outlives the mount"
    );
    mount.start();
}

/// The daemon's own soft limit of open files.
fn limit_of(pid: u32) -> u64 {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .expect("a limit");
    line.split_whitespace()
        .nth(3)
        .unwrap()
        .parse()
        .unwrap_or(u64::MAX)
}

/// A mount whose daemon has few descriptors.
fn cramped(no_handles: bool) -> Option<Mount> {
    Mount::real(Options {
        descriptors: Some(512),
        no_handles,
        ..Options::default()
    })
}

#[test]
fn more_files_than_descriptors() {
    if !is_root() {
        return skip("needs root");
    }
    more_files_than_descriptors_with(false);
}

#[test]
fn more_files_than_descriptors_without_handles() {
    more_files_than_descriptors_with(true);
}

fn more_files_than_descriptors_with(no_handles: bool) {
    let Some(mount) = cramped(no_handles) else {
        return;
    };
    make(mount.path(), 5000);
    assert_eq!(look_at_all(mount.path()), 5005);
    // The kernel still knows all of them; every one can be used.
    for i in (0..5000).step_by(7) {
        let path = mount.join(format!("d{}/file number {i}", i / 1000));
        fs::write(&path, i.to_string()).unwrap();
    }
    for i in (0..5000).step_by(7) {
        let path = mount.join(format!("d{}/file number {i}", i / 1000));
        assert_eq!(fs::read(&path).unwrap(), i.to_string().into_bytes());
    }
    let open_directory = File::open(mount.join("d1")).unwrap();
    let open_file = File::open(mount.join("d2/file number 2002")).unwrap();
    let mut unnamed = File::options();
    unnamed.write(true).custom_flags(libc::O_TMPFILE);
    let unnamed = unnamed.open(mount.path()).ok();
    assert!(unnamed.is_some() || kernel_version() < Some((6, 2)));
    if let Some(file) = &unnamed {
        file.write_all_at(b"unnamed", 0).unwrap();
    }
    // Names that change meanwhile.
    fs::rename(mount.join("d0"), mount.join("moved")).unwrap();
    fs::rename(mount.join("moved"), mount.join("d4/below")).unwrap();
    for i in (0..1000).step_by(7) {
        let path = mount.join(format!("d4/below/file number {i}"));
        let link = mount.join(format!("link {i}"));
        match i % 4 {
            0 => fs::rename(&path, link).unwrap(),
            1 => fs::hard_link(&path, &link).unwrap(),
            2 => {
                fs::hard_link(&path, &link).unwrap();
                fs::remove_file(&path).unwrap();
            }
            _ => fs::rename(&path, mount.join("d3/replaced")).unwrap(),
        }
    }
    // Deeper than there are descriptors.
    let mut deep = mount.join("deep");
    let mut open_deep = Vec::new();
    fs::create_dir(&deep).unwrap();
    for _ in 0..600 {
        open_deep.push(deep.clone());
        deep.push("d");
        fs::create_dir(&deep).unwrap();
    }
    fs::write(deep.join("bottom"), "bottom").unwrap();
    // Something else is used meanwhile, so all of that is not.
    for _ in 0..2 {
        assert_eq!(look_at_all(&mount.join("d3")), 1001);
        assert_eq!(look_at_all(&mount.join("d2")), 1000);
    }
    for i in (0..1000).step_by(7) {
        let path = mount.join(format!("d4/below/file number {i}"));
        let link = mount.join(format!("link {i}"));
        let text = i.to_string().into_bytes();
        assert_eq!(fs::read(&path).ok(), (i % 4 == 1).then(|| text.clone()));
        assert_eq!(fs::read(&link).ok(), (i % 4 != 3).then_some(text));
        if i % 4 == 1 {
            assert_eq!(fs::metadata(&path).unwrap().nlink(), 2);
        }
    }
    assert_eq!(fs::read(mount.join("d3/replaced")).unwrap(), b"987");
    assert_eq!(fs::read(deep.join("bottom")).unwrap(), b"bottom");
    for deep in &open_deep {
        assert!(fs::metadata(deep).unwrap().is_dir());
    }
    if let Some(file) = &unnamed {
        let path = mount.join("named");
        link_open(file, &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"unnamed");
    }
    fs::remove_file(mount.join("d2/file number 2002")).unwrap();
    assert_eq!(open_file.metadata().unwrap().nlink(), 0);
    assert_eq!(
        rustix::fs::fstat(&open_directory).unwrap().st_mode & 0o777,
        0o755
    );
    fs::remove_dir_all(mount.join("d1")).unwrap();
    look_at_all(&mount.join("d4"));
    look_at_all(&mount.join("d3"));
    assert_eq!(rustix::fs::fstat(&open_directory).unwrap().st_nlink, 0);
    assert!(
        fs::read_dir(mount.path()).unwrap().count() > 100,
        "all else is still there"
    );
}

/// What overwrites blocks is put in place a little later, and the file is open until then.
#[test]
fn more_changed_files_than_descriptors() {
    let Some(mut mount) = cramped(false) else {
        return;
    };
    let path = |mount: &Mount, i: u64| mount.join(format!("{i}"));
    for i in 0..2000 {
        fs::write(path(&mount, i), noise(i, 10_000)).unwrap();
    }
    for i in 0..2000 {
        let file = File::options().write(true).open(path(&mount, i)).unwrap();
        file.write_all_at(b"changed", 0).unwrap();
    }
    mount.remount();
    for i in 0..2000 {
        let content = fs::read(path(&mount, i)).unwrap();
        let (start, rest) = content.split_at(7);
        assert!(
            start == b"changed" && *rest == noise(i, 10_000)[7..],
            "{i} differs"
        );
    }
}

#[test]
fn as_many_open_files_as_descriptors() {
    as_many_open_files_as_descriptors_with(false);
    as_many_open_files_as_descriptors_with(true);
}

fn as_many_open_files_as_descriptors_with(no_handles: bool) {
    let Some(mount) = cramped(no_handles) else {
        return;
    };
    let path = |i: usize| mount.join(format!("{i}"));
    let mut open = Vec::new();
    // An honest error for what is too many.
    let error = loop {
        let mut options = File::options();
        options.create_new(true).read(true).write(true);
        match options.open(path(open.len())) {
            Ok(file) => open.push(file),
            Err(error) => break error,
        }
    };
    let errno = error.raw_os_error().unwrap();
    assert!([libc::EMFILE, libc::ENFILE].contains(&errno), "{error}");
    assert!(open.len() > 450, "only {} of 512", open.len());
    // With nothing to spare each can be used, with its name and without.
    for (i, file) in open.iter().enumerate() {
        if i % 3 == 0 {
            fs::remove_file(path(i)).unwrap();
        }
        file.write_all_at(&noise(i as u64, 5000), 0).unwrap();
        file.set_permissions(Permissions::from_mode(0o640)).unwrap();
        file.sync_all().unwrap();
    }
    if is_root() && can_drop_caches() {
        drop_caches(3);
    }
    for (i, file) in open.iter().enumerate() {
        let mut content = vec![0; 5000];
        file.read_exact_at(&mut content, 0).unwrap();
        assert!(content == noise(i as u64, 5000), "file {i}");
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o640);
        assert_eq!(metadata.nlink(), if i % 3 == 0 { 0 } else { 1 });
    }
    let names = open.len();
    drop(open);
    let written = |fd: &fs::DirEntry| {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        let flags = fs::read_to_string(format!(
            "/proc/{}/fdinfo/{}",
            mount.pid(),
            fd.file_name().to_str().unwrap()
        ));
        let flags = flags.unwrap_or_default();
        let flags = flags.lines().find_map(|line| line.strip_prefix("flags:"));
        let flags = u32::from_str_radix(flags.unwrap_or("0").trim(), 8).unwrap();
        target.starts_with(mount.backing()) && flags & libc::O_ACCMODE as u32 == libc::O_RDWR as u32
    };
    let closed = eventually(Duration::from_secs(10), || {
        let fds = fs::read_dir(format!("/proc/{}/fd", mount.pid())).unwrap();
        // The journal's two.
        fds.filter(|fd| fd.as_ref().is_ok_and(written)).count() <= 2
    });
    assert!(closed, "files that are closed stay open for writing");
    let others: Vec<_> = (0..names)
        .filter(|i| i % 3 != 0)
        .map(|i| File::open(path(i)).unwrap())
        .collect();
    assert!(others.len() > 300);
}

#[test]
fn an_idle_mount_is_small() {
    let Some(mount) = Mount::real(Options::default()) else {
        return;
    };
    fs::write(mount.join("f"), noise(1, 100_000)).unwrap();
    let pid = mount.pid();
    println!(
        "{} KiB, {} threads, {} descriptors",
        process_status(pid, "VmRSS"),
        process_status(pid, "Threads"),
        descriptors_of(pid)
    );
    assert!(
        process_status(pid, "VmRSS") < 60 * MIB,
        "{} KiB",
        process_status(pid, "VmRSS")
    );
    assert!(process_status(pid, "Threads") < 40);
    let ticks = || process_stat(pid, 14) + process_stat(pid, 15);
    let before = ticks();
    std::thread::sleep(Duration::from_secs(2));
    assert!(ticks() - before < 10, "an idle daemon is busy");
}

/// Each of these is put aside, as the kernel has to write back before it is answered.
#[test]
fn requests_that_are_put_aside_leave_no_memory_behind() {
    let Some(mount) = Mount::real(Options::default()) else {
        return;
    };
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(mount.join("file"))
        .unwrap();
    let look = |count: u64| {
        for at in 0..count {
            file.write_all_at(b"x", at * 8192).unwrap();
            let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(at * 8192)).unwrap();
            assert!(hole > at * 8192 && hole <= at * 8192 + 4096);
        }
    };
    // By then every thread has what it needs.
    look(300);
    let before = process_status(mount.pid(), "VmSize");
    look(1500);
    let more = process_status(mount.pid(), "VmSize").saturating_sub(before);
    assert!(more < 128 * MIB, "{more} KiB more");
}

#[test]
fn load_leaves_no_descriptors_behind() {
    let Some(mount) = Mount::real(Options::default()) else {
        return;
    };
    let work = |round: u64| {
        for i in 0..100 {
            let path = mount.join(format!("{round}-{i}"));
            fs::write(&path, noise(i, 10_000)).unwrap();
            assert_eq!(fs::read(&path).unwrap().len(), 10_000);
            let _ = File::open(mount.join("missing"));
            fs::rename(&path, mount.join("renamed")).unwrap();
            fs::remove_file(mount.join("renamed")).unwrap();
            fs::create_dir(mount.join("d")).unwrap();
            assert_eq!(fs::read_dir(mount.join("d")).unwrap().count(), 0);
            fs::remove_dir(mount.join("d")).unwrap();
        }
    };
    work(0);
    let before = descriptors_of(mount.pid());
    for round in 1..6 {
        work(round);
    }
    let settled = eventually(Duration::from_secs(10), || {
        descriptors_of(mount.pid()) <= before + 5
    });
    assert!(
        settled,
        "{before} descriptors before, {} after",
        descriptors_of(mount.pid())
    );
}
