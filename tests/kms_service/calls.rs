//! How many calls operations make.

use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::common::sys::pages_in_memory;
use crate::common::{can_drop_caches, drop_caches, eventually};
use crate::kms_servers::alibaba::Conditions;
use crate::world::{World, content, make_files};

#[test]
fn what_needs_no_key_makes_no_call_even_with_the_service_gone() {
    const FILES: usize = 2000;
    const COPIES: usize = 9;
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    make_files(world.path(), FILES);
    world.unmount();
    // Names are plain in this volume, so copies beside them are files as well.
    for i in 0..FILES {
        let file = world.backing().join(format!("{i:05}"));
        for copy in 0..COPIES {
            fs::copy(&file, file.with_extension(copy.to_string())).unwrap();
        }
    }
    world.start();
    world.stop();
    let root = world.path().to_owned();
    let run = |command: &[&str]| {
        let (program, arguments) = command.split_first().unwrap();
        let mut command = Command::new(program);
        let status = command.args(arguments).current_dir(&root);
        let status = status.stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{program}");
    };
    let calls = world.calls_of(|| {
        run(&["find", ".", "-size", "+1k"]);
        run(&["ls", "-lR"]);
        run(&["du", "-s", "."]);
        let victim = root.join("00001");
        fs::rename(root.join("00000"), root.join("renamed")).unwrap();
        fs::set_permissions(&victim, Permissions::from_mode(0o600)).unwrap();
        fs::hard_link(&victim, root.join("linked")).unwrap();
        assert_eq!(
            fs::read_dir(&root).unwrap().count(),
            (COPIES + 1) * FILES + 1
        );
        run(&["sh", "-c", "rm -r ./*"]);
    });
    assert_eq!(calls, 0);
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
}

#[test]
fn what_is_in_memory_makes_no_call() {
    let Some(world) = World::new(&[]) else {
        return;
    };
    let path = world.join("file");
    assert_eq!(world.calls_of(|| fs::write(&path, content(1)).unwrap()), 1);
    let calls = world.calls_of(|| {
        for round in 0..20 {
            assert_eq!(fs::read(&path).unwrap()[..4096], content(1));
            let mut file = File::options().append(true).open(&path).unwrap();
            file.write_all(b"more").unwrap();
            file.sync_all().unwrap();
            let mut file = File::options().write(true).open(&path).unwrap();
            file.seek(std::io::SeekFrom::Start(round * 10)).unwrap();
            file.write_all(&[1]).unwrap();
        }
        fs::write(&path, content(2)).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(100)
            .unwrap();
        fs::remove_file(&path).unwrap();
    });
    assert_eq!(calls, 0);
}

#[test]
fn content_is_read_ahead_also_where_keys_are_in_memory_and_asks_for_none() {
    if !can_drop_caches() {
        return;
    }
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    make_files(world.path(), 40);
    // The keys of the first ones are in memory then, those of the others not.
    world.remount();
    for i in 0..5 {
        let path = world.join(format!("{i:05}"));
        fs::remove_file(&path).unwrap();
        fs::write(&path, content(i)).unwrap();
    }
    thread::sleep(Duration::from_millis(300));
    let backing = world.backing().to_owned();
    let stored = |i| backing.join(format!("{i:05}"));
    drop_caches(3);
    let pages = pages_in_memory(&stored(20));
    assert_eq!(pages, 0, "the backing directory has to be on a disk");
    let calls = world.calls_of(|| {
        for i in 0..5 {
            assert_eq!(fs::read(world.join(format!("{i:05}"))).unwrap(), content(i));
        }
        let read = || pages_in_memory(&stored(20)) > 0;
        let patience = Duration::from_secs(10);
        assert!(eventually(patience, read), "nothing was read ahead");
    });
    assert_eq!(calls, 0);
}

#[test]
fn sixty_four_processes_that_open_one_cold_file_are_one_call() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    let path = world.join("file");
    fs::write(&path, content(1)).unwrap();
    world.remount();
    world.conditions(Conditions {
        latency: Duration::from_millis(500),
        ..Conditions::default()
    });
    let calls = world.calls_of(|| {
        let cats = (0..64).map(|_| {
            let mut cat = Command::new("cat");
            cat.arg(&path).stdout(Stdio::null()).spawn().unwrap()
        });
        for mut cat in cats.collect::<Vec<_>>() {
            assert!(cat.wait().unwrap().success());
        }
    });
    assert_eq!(calls, 1);
}

#[test]
fn a_new_file_is_one_call_give_or_take_those_made_ahead() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    let lone = world.join("lone");
    fs::create_dir(&lone).unwrap();
    let calls = world.calls_of(|| {
        for i in 0..3 {
            fs::write(lone.join(format!("{i}")), b"x").unwrap();
            thread::sleep(Duration::from_millis(1100));
        }
    });
    assert_eq!(calls, 3, "nothing is made ahead for a file now and then");
    let many = world.calls_of(|| {
        make_files(world.path(), 1000);
        thread::sleep(Duration::from_millis(300));
    });
    println!("1000 files: {many} calls");
    assert!((1000..1250).contains(&many), "{many} calls");
    // Every one of them was made with the key that its header has.
    world.remount();
    let calls = world.calls_of(|| {
        for i in 0..1000 {
            let mut got = Vec::new();
            let mut file = File::open(world.join(format!("{i:05}"))).unwrap();
            file.read_to_end(&mut got).unwrap();
            assert_eq!(got, content(i));
        }
    });
    assert_eq!(calls, 1000, "each is unwrapped once");
}
