//! Tampering with the images of files.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::common::{Mount, Options, Rng, can_drop_caches, drop_caches, noise};
use crate::{BLOCK, ENTRIES, ENTRY, HEAD, IMAGE, LEN, Victims, truth};

/// Files tampered with between two mounts.
const BATCH: usize = 1024;

#[test]
fn every_single_byte_flipped() {
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    let mut rng = Rng::from_env();
    let victims = Victims::new(&mut mount, BATCH);
    let mut detected = 0;
    for start in (0..IMAGE).step_by(BATCH) {
        let batch = start..IMAGE.min(start + BATCH);
        for at in batch.clone() {
            let mut image = victims.originals[at - start].clone();
            image[at] ^= u8::try_from(1 + rng.below(255)).unwrap();
            victims.put(at - start, &image);
        }
        mount.start();
        for at in batch.clone() {
            let what = format!("byte {at} flipped");
            let readable = victims.judge(&mount, at - start, &what);
            detected += usize::from(readable.contains(&false));
            // Damage to one block's bytes or entry is damage to that block alone.
            let hit = match at {
                HEAD.. => Some((at - HEAD) / BLOCK),
                ENTRIES.. if (at - ENTRIES) / ENTRY < 3 => Some((at - ENTRIES) / ENTRY),
                _ => None,
            };
            if let Some(hit) = hit {
                let expected: Vec<bool> = (0..3).map(|block| block != hit).collect();
                assert_eq!(
                    readable.as_slice(),
                    expected,
                    "{what}: which blocks can be read"
                );
            }
        }
        victims.survives(&mount);
        mount.unmount();
        for at in batch {
            victims.restore(at - start);
        }
    }
    assert!(
        detected > LEN,
        "only {detected} of {IMAGE} flips were noticed"
    );
    mount.start();
    for index in [0, 1, BATCH - 1] {
        assert_eq!(victims.judge(&mount, index, "restored"), [true; 3]);
    }
}

#[test]
fn parts_swapped_within_and_between_files() {
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    let victims = Victims::new(&mut mount, 12);
    let image = |index: usize| victims.originals[index].clone();
    let block = |index: usize| HEAD + index * BLOCK..HEAD + (index + 1) * BLOCK;
    let entry = |index: usize| ENTRIES + index * ENTRY..ENTRIES + (index + 1) * ENTRY;
    // 0: two blocks of a file; 1: with their entries.
    let mut mine = image(0);
    let (first, second) = (mine[block(0)].to_vec(), mine[block(1)].to_vec());
    mine[block(0)].copy_from_slice(&second);
    mine[block(1)].copy_from_slice(&first);
    victims.put(0, &mine);
    let mut mine = image(1);
    for part in [block, entry] as [fn(usize) -> std::ops::Range<usize>; 2] {
        let (first, second) = (mine[part(0)].to_vec(), mine[part(1)].to_vec());
        mine[part(0)].copy_from_slice(&second);
        mine[part(1)].copy_from_slice(&first);
    }
    victims.put(1, &mine);
    // 2 and 3: a block of each other; 4 and 5: with its entry.
    // 6 and 7: the header slots; 8 and 9: the whole head.
    let swap = |one: usize, two: usize, ranges: &[std::ops::Range<usize>]| {
        let (mut a, mut b) = (image(one), image(two));
        for range in ranges {
            a[range.clone()].swap_with_slice(&mut b[range.clone()]);
        }
        victims.put(one, &a);
        victims.put(two, &b);
    };
    swap(2, 3, &[block(1)]);
    swap(4, 5, &[block(1), entry(1)]);
    swap(6, 7, std::slice::from_ref(&(0..ENTRIES)));
    swap(8, 9, std::slice::from_ref(&(0..HEAD)));
    // 10: one block twice, with its entry. 11: the header of another, alone.
    let mut mine = image(10);
    mine.copy_within(block(0), block(1).start);
    mine.copy_within(entry(0), entry(1).start);
    victims.put(10, &mine);
    let mut mine = image(11);
    mine[..ENTRIES].copy_from_slice(&image(0)[..ENTRIES]);
    victims.put(11, &mine);
    mount.start();
    let expected = [
        [false, false, true],
        [false, false, true],
        [true, false, true],
        [true, false, true],
        [true, false, true],
        [true, false, true],
        [false; 3],
        [false; 3],
        [false; 3],
        [false; 3],
        [true, false, true],
        [false; 3],
    ];
    for (index, expected) in expected.into_iter().enumerate() {
        assert_eq!(
            victims.judge(&mount, index, &format!("swap {index}")),
            expected,
            "swap {index}"
        );
    }
    victims.survives(&mount);
}

#[test]
fn truncation_at_every_length_shows_a_prefix_or_an_error() {
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    let victims = Victims::new(&mut mount, BATCH);
    let mut wrong_tails = 0;
    for start in (0..IMAGE).step_by(BATCH) {
        let batch = start..IMAGE.min(start + BATCH);
        for len in batch.clone() {
            victims.put(len - start, &victims.originals[len - start][..len]);
        }
        mount.start();
        for len in batch.clone() {
            let what = format!("cut to {len} bytes");
            let path = mount.join(&victims.names[len - start]);
            // A size that no writer makes may be an error already.
            let size = match fs::metadata(&path) {
                Ok(metadata) => usize::try_from(metadata.len()).unwrap(),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{what}: stat");
                    continue;
                }
            };
            assert_eq!(size, len.saturating_sub(HEAD), "{what}: the size");
            let readable = victims.judge_prefix(&mount, len - start, &what, size);
            // Inside a block the cut is noticed; at its edge, the format says, not.
            if size % BLOCK != 0 {
                assert!(!readable[size / BLOCK], "{what}: the torn block reads");
                wrong_tails += 1;
            }
        }
        victims.survives(&mount);
        mount.unmount();
        for len in batch {
            victims.restore(len - start);
        }
    }
    assert!(wrong_tails > 9000);
    mount.start();
}

#[test]
fn garbage_in_place_of_files() {
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    const COUNT: usize = 400;
    let mut rng = Rng::from_env();
    let victims = Victims::new(&mut mount, COUNT);
    for index in 0..COUNT {
        let mut image = victims.originals[index].clone();
        match index % 8 {
            // Whole files of noise or of one byte; zeroes would be a forged hole.
            0 => image = rng.bytes(IMAGE),
            1 => image.fill(1 + u8::try_from(rng.below(255)).unwrap()),
            // Noise in the header, the entries, the blocks.
            2 => image[..ENTRIES].copy_from_slice(&rng.bytes(ENTRIES)),
            3 => image[ENTRIES..HEAD].copy_from_slice(&rng.bytes(HEAD - ENTRIES)),
            4 => image[HEAD..].copy_from_slice(&rng.bytes(LEN)),
            // Zeroes where ciphertext was.
            5 => image[HEAD..].fill(0),
            // A few bytes here and there.
            6 => {
                for _ in 0..1 + rng.below(20) {
                    let at = usize::try_from(rng.below(IMAGE as u64)).unwrap();
                    image[at] = image[at].wrapping_add(1 + u8::try_from(rng.below(255)).unwrap());
                }
            }
            // A run of noise.
            _ => {
                let at = usize::try_from(rng.below(IMAGE as u64 - 100)).unwrap();
                let len = 1 + usize::try_from(rng.below(100)).unwrap();
                image[at..at + len].copy_from_slice(&rng.bytes(len));
            }
        }
        victims.put(index, &image);
    }
    mount.start();
    for index in 0..COUNT {
        let readable = victims.judge(&mount, index, &format!("garbage {index}"));
        if matches!(index % 8, 0..=5) {
            assert_eq!(readable, [false; 3], "garbage {index} (kind {})", index % 8);
        }
    }
    victims.survives(&mount);
    // Writing to a broken file succeeds or fails, and what reads is right.
    for index in 0..COUNT {
        let path = mount.join(&victims.names[index]);
        let done = File::options().write(true).open(&path).and_then(|file| {
            file.write_all_at(&truth(index)[..BLOCK], 0)?;
            file.write_all_at(&truth(index)[5000..5010], 5000)?;
            file.sync_all()
        });
        if let Err(error) = done {
            assert_eq!(
                error.raw_os_error(),
                Some(libc::EIO),
                "writing to garbage {index}"
            );
        }
        victims.judge(&mount, index, &format!("garbage {index} after a write"));
    }
    mount.remount();
    for index in 0..COUNT {
        victims.judge(
            &mount,
            index,
            &format!("garbage {index} after a write and a remount"),
        );
        // Such a file can be removed and made anew.
        let path = mount.join(&victims.names[index]);
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"whole again").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole again");
    }
    victims.survives(&mount);
}

#[test]
fn a_lengthened_file_keeps_its_bytes() {
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    let victims = Victims::new(&mut mount, 40);
    for index in 0..40 {
        let mut image = victims.originals[index].clone();
        let more = 1 + index * 500;
        image.extend(if index % 2 == 0 {
            vec![0; more]
        } else {
            noise(9, more)
        });
        victims.put(index, &image);
    }
    mount.start();
    for index in 0..40 {
        let file = File::open(mount.join(&victims.names[index]));
        let Ok(file) = file else { continue };
        let size = file.metadata().unwrap().len();
        for at in (0..size).step_by(BLOCK) {
            let mut found = vec![0xee; BLOCK];
            let Ok(count) = file.read_at(&mut found, at) else {
                continue;
            };
            for (offset, byte) in found[..count].iter().enumerate() {
                let position = usize::try_from(at).unwrap() + offset;
                // Past the old end a forged hole is possible.
                let right = truth(index).get(position).copied().unwrap_or(0);
                assert_eq!(*byte, right, "lengthened {index}, byte {position}");
            }
        }
    }
    victims.survives(&mount);
}

#[test]
fn tampering_under_a_running_mount() {
    if !can_drop_caches() {
        return;
    }
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    let mut rng = Rng::from_env();
    let victims = Victims::new(&mut mount, 60);
    mount.start();
    for round in 0..6 {
        for index in 0..60 {
            let image = File::options()
                .write(true)
                .open(&victims.images[index])
                .unwrap();
            let at = usize::try_from(rng.below(IMAGE as u64)).unwrap();
            let flipped = victims.originals[index][at] ^ u8::try_from(1 + rng.below(255)).unwrap();
            image.write_all_at(&[flipped], at as u64).unwrap();
        }
        drop_caches(3);
        for index in 0..60 {
            victims.judge(&mount, index, &format!("live flip {index}, round {round}"));
        }
        victims.survives(&mount);
        for index in 0..60 {
            let image = File::options()
                .write(true)
                .open(&victims.images[index])
                .unwrap();
            image.write_all_at(&victims.originals[index], 0).unwrap();
        }
    }
}
