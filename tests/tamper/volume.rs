//! Tampering with names, symlinks, attributes, directories and the config.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;

use crate::backing_of;
use crate::common::{Mount, Options, PATIENCE, Rng, said, wait_for};

#[test]
fn foreign_entries_are_hidden() {
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    fs::create_dir(mount.join("d")).unwrap();
    fs::write(mount.join("d/f"), b"mine").unwrap();
    let dirs = [
        mount.backing().to_owned(),
        backing_of(&mount, &mount.join("d")),
    ];
    mount.unmount();
    for dir in &dirs {
        for name in [
            "garbage",
            ".hidden",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "with space",
            "\u{e9}",
        ] {
            fs::write(dir.join(name), b"x").unwrap();
        }
        fs::write(dir.join("z".repeat(255)), b"x").unwrap();
        fs::create_dir(dir.join("QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB")).unwrap();
        symlink("nowhere", dir.join("bGluaw")).unwrap();
    }
    mount.start();
    let names = |path: &std::path::Path| -> Vec<_> {
        fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect()
    };
    assert_eq!(names(mount.path()), ["d"]);
    assert_eq!(names(&mount.join("d")), ["f"]);
    assert_eq!(fs::read(mount.join("d/f")).unwrap(), b"mine");
    // And told about, once looked at.
    assert!(
        mount.log().contains("garbage") || mount.log().contains("warn"),
        "{}",
        mount.log()
    );
    // Removing everything that shows may not work, but never succeeds by halves.
    match fs::remove_dir_all(mount.join("d")) {
        Ok(()) => assert!(!dirs[1].exists()),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTEMPTY)),
    }
}

#[test]
fn a_renamed_backing_entry_does_not_show_under_a_wrong_name() {
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    fs::create_dir(mount.join("one")).unwrap();
    fs::create_dir(mount.join("two")).unwrap();
    fs::write(mount.join("one/f"), b"f of one").unwrap();
    let image = backing_of(&mount, &mount.join("one/f"));
    let other = backing_of(&mount, &mount.join("two"));
    mount.unmount();
    // The same encrypted name means nothing in another directory.
    fs::rename(&image, other.join(image.file_name().unwrap())).unwrap();
    mount.start();
    assert_eq!(fs::read_dir(mount.join("one")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(mount.join("two")).unwrap().count(), 0);
    assert_eq!(
        fs::read(mount.join("two/f")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn symlinks_that_were_tampered_with() {
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    for i in 0..20 {
        symlink(format!("target {i}"), mount.join(format!("s{i}"))).unwrap();
    }
    let images: Vec<_> = (0..20)
        .map(|i| backing_of(&mount, &mount.join(format!("s{i}"))))
        .collect();
    mount.unmount();
    let targets: Vec<String> = images
        .iter()
        .map(|image| {
            fs::read_link(image)
                .unwrap()
                .into_os_string()
                .into_string()
                .unwrap()
        })
        .collect();
    for (i, image) in images.iter().enumerate() {
        let mut target = targets[i].clone();
        match i % 4 {
            0 => target = "/etc/passwd".into(),
            1 => {
                let at = target.len() / 2;
                let flipped = if &target[at..=at] == "A" { "B" } else { "A" };
                target.replace_range(at..=at, flipped);
            }
            2 => target.truncate(target.len() - 3),
            _ => target = targets[(i + 4) % 20].clone(),
        }
        fs::remove_file(image).unwrap();
        symlink(target, image).unwrap();
    }
    mount.start();
    for i in 0..20 {
        let link = mount.join(format!("s{i}"));
        match fs::read_link(&link) {
            // Copied from elsewhere: either bound to its place, or a whole target.
            Ok(target) if i % 4 == 3 => assert!(target.to_str().unwrap().starts_with("target ")),
            Ok(target) => panic!("s{i} points to {target:?}"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
        }
        let _ = fs::symlink_metadata(&link);
        fs::remove_file(&link).unwrap_or_else(|error| panic!("removing s{i}: {error}"));
    }
}

#[test]
fn attributes_that_were_tampered_with() {
    use rustix::fs::{XattrFlags, getxattr, listxattr, setxattr};
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    let path = mount.join("f");
    fs::write(&path, b"x").unwrap();
    setxattr(&path, "user.a", b"the value", XattrFlags::empty()).unwrap();
    setxattr(&path, "user.b", b"another", XattrFlags::empty()).unwrap();
    let image = backing_of(&mount, &path);
    mount.unmount();
    let mut names = vec![0; 4096];
    let len = listxattr(&image, names.as_mut_slice()).unwrap();
    let names: Vec<String> = String::from_utf8(names[..len].to_vec())
        .unwrap()
        .split_terminator('\0')
        .filter(|name| name.starts_with("user."))
        .map(str::to_owned)
        .collect();
    assert_eq!(names.len(), 2);
    let get = |name: &str| {
        let mut value = vec![0; 4096];
        let len = getxattr(&image, name, value.as_mut_slice()).unwrap();
        value.truncate(len);
        value
    };
    let (one, two) = (get(&names[0]), get(&names[1]));
    // Each gets the other's value; a third is garbage from name to value.
    setxattr(&image, names[0].as_str(), &two, XattrFlags::empty()).unwrap();
    setxattr(&image, names[1].as_str(), &one, XattrFlags::empty()).unwrap();
    setxattr(&image, "user.garbage", b"garbage", XattrFlags::empty()).unwrap();
    mount.start();
    let mut value = [0; 100];
    for name in ["user.a", "user.b"] {
        match getxattr(&path, name, value.as_mut_slice()) {
            Err(error) => assert_eq!(error.raw_os_error(), libc::EIO),
            Ok(len) => panic!("{name} is {:?}", String::from_utf8_lossy(&value[..len])),
        }
    }
    let mut list = [0; 1000];
    let len = listxattr(&path, list.as_mut_slice()).unwrap();
    assert!(!String::from_utf8_lossy(&list[..len]).contains("garbage"));
    assert_eq!(fs::read(&path).unwrap(), b"x");
}

#[test]
fn directories_without_their_id_are_not_fatal() {
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    for dir in ["full", "empty", "swapped", "other"] {
        fs::create_dir(mount.join(dir)).unwrap();
    }
    for dir in ["full", "swapped", "other"] {
        fs::write(mount.join(dir).join("f"), dir).unwrap();
    }
    fs::write(mount.join("control"), b"untouched").unwrap();
    let image = |dir: &str| backing_of(&mount, &mount.join(dir));
    let (full, empty, swapped, other) = (
        image("full"),
        image("empty"),
        image("swapped"),
        image("other"),
    );
    mount.unmount();
    // The id is the only symlink in such a directory.
    let id = |dir: &std::path::Path| {
        let mut links = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_symlink())
            .map(|entry| entry.path());
        links.next().expect("a directory id")
    };
    fs::remove_file(id(&full)).unwrap();
    fs::remove_file(id(&empty)).unwrap();
    let (one, two) = (id(&swapped), id(&other));
    let (to_one, to_two) = (fs::read_link(&one).unwrap(), fs::read_link(&two).unwrap());
    fs::remove_file(&one).unwrap();
    fs::remove_file(&two).unwrap();
    symlink(to_two, &one).unwrap();
    symlink(to_one, &two).unwrap();
    mount.start();
    // An empty one gets a new id; in a full one the names can't be read.
    fs::write(mount.join("empty/new"), b"works").unwrap();
    assert_eq!(fs::read(mount.join("empty/new")).unwrap(), b"works");
    for dir in ["full", "swapped", "other"] {
        let names = fs::read_dir(mount.join(dir)).map(|entries| entries.count());
        assert!(
            names.map_or(true, |count| count == 0),
            "{dir} lists names that it can't know"
        );
        assert!(fs::read(mount.join(dir).join("f")).is_err(), "{dir}/f");
    }
    assert_eq!(fs::read(mount.join("control")).unwrap(), b"untouched");
    mount.remount();
    assert_eq!(fs::read(mount.join("empty/new")).unwrap(), b"works");
}

#[test]
fn a_config_that_was_tampered_with_is_refused_or_harmless() {
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    fs::write(mount.join("f"), b"the right contents").unwrap();
    mount.unmount();
    let config = mount.backing().join("kmsfs.json");
    let good = fs::read(&config).unwrap();
    let mut rng = Rng::from_env();
    let mut refused = 0;
    let step = 3 + usize::try_from(rng.below(9)).unwrap();
    for at in (usize::try_from(rng.below(5)).unwrap()..good.len()).step_by(step) {
        let mut bad = good.clone();
        bad[at] ^= 1 << rng.below(7);
        fs::write(&config, &bad).unwrap();
        let volume = mount.volume();
        let log = File::create(volume.root().join("log")).unwrap();
        let mut child = volume
            .kmsfs()
            .args(["mount", "-f"])
            .args([volume.backing(), volume.point()])
            .stderr(log)
            .spawn()
            .unwrap();
        let mut ended = None;
        crate::common::eventually(PATIENCE, || {
            ended = child.try_wait().unwrap();
            ended.is_some() || volume.is_mounted()
        });
        if ended.is_some() {
            refused += 1;
        } else {
            // A field that is told but not used, or the same in other words.
            match fs::read(volume.point().join("f")) {
                Ok(contents) => assert_eq!(contents, b"the right contents", "byte {at} flipped"),
                Err(error) => assert!(
                    [libc::EIO, libc::ENOENT].contains(&error.raw_os_error().unwrap()),
                    "byte {at} flipped: {error}"
                ),
            }
            let output = volume.run(&["umount", volume.point().to_str().unwrap()]);
            assert!(output.status.success(), "{}", said(&output));
            assert!(wait_for(&mut child, PATIENCE).is_some());
        }
        let log = fs::read_to_string(volume.root().join("log")).unwrap();
        assert!(!log.contains("panicked at"), "byte {at} flipped: {log}");
    }
    assert!(refused > 10, "only {refused} were refused");
    fs::write(&config, good).unwrap();
    mount.start();
    assert_eq!(fs::read(mount.join("f")).unwrap(), b"the right contents");
}
