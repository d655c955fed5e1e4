//! The content layer against a plain byte vector, and against power cuts.

use std::sync::{Arc, Barrier};

use proptest::prelude::*;

use super::mem_disk::{Disk, INO, Mounts, OpenKeys};
use super::mem_file::{MemFile, SYNC_FAILS, SYNC_STOPS, WRITES_LEFT};
use super::read::ReadBuffer;
use super::*;
use crate::backing::BackingFile;
use crate::crypto::random;
use crate::format::journal::JournalPage;

fn read_all(file: &EncryptedFile) -> Result<Vec<u8>> {
    let mut buffer = ReadBuffer::default();
    let range = file.read(0, file.size() as usize, &mut buffer)?;
    Ok(buffer.slice(range).to_vec())
}

#[derive(Clone, Debug)]
enum Op {
    Write { at: u32, len: u32, seed: u8 },
    SetSize(u32),
    Punch { at: u32, len: u32 },
    Sync,
    Commit,
    Checkpoint,
    Reopen,
    Remount,
}

fn op(most: u32) -> impl Strategy<Value = Op> {
    let at = 0..most;
    let len = prop_oneof![1..64u32, 1..9000u32, 1..most / 2];
    prop_oneof![
        6 => (at.clone(), len.clone(), any::<u8>()).prop_map(|(at, len, seed)| Op::Write { at, len, seed }),
        3 => (0..most).prop_map(Op::SetSize),
        2 => (at, len).prop_map(|(at, len)| Op::Punch { at, len }),
        2 => Just(Op::Sync),
        1 => Just(Op::Commit),
        1 => Just(Op::Checkpoint),
        2 => Just(Op::Reopen),
        1 => Just(Op::Remount),
    ]
}

fn apply_to_model(model: &mut Vec<u8>, op: &Op) {
    match *op {
        Op::Write { at, len, seed } => {
            let end = (at + len) as usize;
            if model.len() < end {
                model.resize(end, 0);
            }
            fill(&mut model[at as usize..end], seed);
        }
        Op::SetSize(size) => model.resize(size as usize, 0),
        Op::Punch { at, len } => {
            let end = ((at + len) as usize).min(model.len());
            if (at as usize) < end {
                model[at as usize..end].fill(0);
            }
        }
        Op::Sync | Op::Commit | Op::Checkpoint | Op::Reopen | Op::Remount => {}
    }
}

fn fill(out: &mut [u8], seed: u8) {
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = (i as u8).wrapping_mul(31).wrapping_add(seed) | 1;
    }
}

fn apply_to_file(disk: &Disk, file: Arc<EncryptedFile>, op: &Op) -> Arc<EncryptedFile> {
    let journal = file.volume.journal.clone().unwrap();
    match *op {
        Op::Write { at, len, seed } => {
            let mut data = vec![0; len as usize];
            fill(&mut data, seed);
            file.write(at.into(), &data).unwrap();
        }
        Op::SetSize(size) => file.set_size(size.into()).unwrap(),
        Op::Punch { at, len } => file.punch(at.into(), len.into(), true).unwrap(),
        Op::Sync => drop(file.sync(true).unwrap()),
        Op::Commit => drop(journal.commit().unwrap()),
        Op::Checkpoint => journal.checkpoint().unwrap(),
        Op::Reopen => return disk.reopen(file),
        Op::Remount => {
            drop(journal);
            disk.unmount(file);
            return disk.mount();
        }
    }
    file
}

/// Whether `block` is what a file of content `state` has at `at`, with zeros behind it.
fn is_block_of(state: &[u8], at: usize, block: &[u8]) -> bool {
    let stored = state.get(at..).unwrap_or_default();
    let stored = &stored[..stored.len().min(block.len())];
    let (front, beyond) = block.split_at(stored.len());
    front == stored && beyond.iter().all(|&b| b == 0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is done to it, a file reads like a vector that the same was
    /// done to.
    #[test]
    fn behaves_like_a_vector(
        big_blocks: bool,
        ops in proptest::collection::vec(op(1_500_000), 1..30),
    ) {
        let disk = Disk::new(if big_blocks { 65536 } else { 4096 });
        let mut file = disk.mount();
        let mut model = Vec::new();
        for op in &ops {
            file = apply_to_file(&disk, file, op);
            apply_to_model(&mut model, op);
            prop_assert_eq!(file.size(), model.len() as u64);
            prop_assert!(read_all(&file).unwrap() == model, "after {:?}", op);
        }
    }

    /// SIGKILL after any operation: everything written is there.
    #[test]
    fn survives_being_killed(ops in proptest::collection::vec(op(1_500_000), 1..20)) {
        let disk = Disk::new(4096);
        let mut file = disk.mount();
        let mut model = Vec::new();
        for op in &ops {
            file = apply_to_file(&disk, file, op);
            apply_to_model(&mut model, op);
        }
        drop(file);
        let file = disk.mount();
        prop_assert!(read_all(&file).unwrap() == model);
    }

    /// A power cut after any operation, several times over: every block is what it
    /// was at the last sync, or after an operation since.
    #[test]
    fn survives_power_cuts(
        big_blocks: bool,
        rounds in proptest::collection::vec(proptest::collection::vec(op(1_500_000), 1..15), 1..4),
        picks in proptest::collection::vec(any::<u16>(), 997),
    ) {
        let block_size = if big_blocks { 16384 } else { 4096 };
        let mut picks = picks.iter().cycle();
        let mut pick = |n: usize| usize::from(*picks.next().unwrap()) % n;
        let mut disk = Disk::new(block_size as u32);
        let mut model: Vec<u8> = Vec::new();
        for ops in &rounds {
            let mut file = disk.mount();
            let mut states = vec![model.clone()];
            for op in ops {
                file = apply_to_file(&disk, file, op);
                prop_assert!(read_all(&file).is_ok(), "after {:?}", op);
                apply_to_model(&mut model, op);
                match op {
                    Op::Sync | Op::Remount => states = vec![model.clone()],
                    Op::Write { .. } | Op::Punch { .. } | Op::SetSize(_) => states.push(model.clone()),
                    Op::Commit | Op::Checkpoint | Op::Reopen => {}
                }
            }
            let got = read_all(&file).unwrap();
            prop_assert!(got == model);
            drop(file);
            disk = disk.cut(&mut pick);
            let file = disk.mount();
            let content = read_all(&file);
            prop_assert!(content.is_ok(), "unreadable: {:?}", content);
            let content = content.unwrap();
            let lengths = states.iter().map(Vec::len);
            let (least, most) = (lengths.clone().min().unwrap(), lengths.max().unwrap());
            prop_assert!((least..=most).contains(&content.len()), "{} bytes", content.len());
            for (i, block) in content.chunks(block_size).enumerate() {
                let known = states.iter().any(|state| is_block_of(state, i * block_size, block));
                prop_assert!(known, "block {}", i);
            }
            model = content;
        }
    }
}

#[test]
fn the_holes_of_a_sparse_file_are_found() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    file.set_size(10 << 20).unwrap();
    assert_eq!(file.next_data(0).unwrap(), None);
    file.write(5 << 20, &[1; 8192]).unwrap();
    assert_eq!(file.next_data(0).unwrap(), Some(5 << 20));
    assert_eq!(file.next_hole(5 << 20).unwrap(), Some((5 << 20) + 8192));
    assert_eq!(file.next_hole(3).unwrap(), Some(3));
    assert_eq!(file.next_data(6 << 20).unwrap(), None);
    assert_eq!(file.next_hole(10 << 20).unwrap(), None);
}

#[test]
fn a_rewritten_file_keeps_its_identity() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    file.write(0, b"first").unwrap();
    let id = file.state.read().identity.clone().unwrap().header.file;
    file.set_size(0).unwrap();
    assert_eq!(disk.file.len().unwrap(), 0, "an empty file has no header");
    file.write(0, b"second").unwrap();
    assert_eq!(file.state.read().identity.clone().unwrap().header.file, id);
    disk.unmount(file);
    assert_eq!(read_all(&disk.mount()).unwrap(), b"second");
}

/// Of a file that was cut to nothing and has records in the journal, the next content
/// is another file's, so that no revoke has to be durable before it is written.
#[test]
fn a_file_with_records_that_is_cut_to_nothing_begins_anew() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    for round in 1..4 {
        file.write(0, &[round; 3 * 4096]).unwrap();
        file.write(4096, &[10 + round; 2 * 4096]).unwrap();
        file.sync(true).unwrap();
        file.set_size(0).unwrap();
        file.sync(true).unwrap();
        SYNC_FAILS.set(true);
        file.write(2 * 4096, &[20 + round; 4096]).unwrap();
        SYNC_FAILS.set(false);
        let content = read_all(&disk.cut_in_journals().mount()).unwrap();
        assert!(content[..2 * 4096].iter().all(|&b| b == 0));
        assert!(content[2 * 4096..].iter().all(|&b| b == 20 + round));
        file.set_size(0).unwrap();
    }
}

#[test]
fn every_flipped_byte_is_noticed_or_harmless() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    let mut plain = vec![0; 9000];
    random::fill(&mut plain);
    file.write(0, &plain).unwrap();
    disk.unmount(file);
    let len = disk.file.len().unwrap() as usize;
    for at in 0..len {
        disk.file.0.lock().now[at] ^= 0x40;
        let journals = disk.journals.clone().map(|j| j as Arc<dyn BackingFile>);
        let page = JournalPage {
            volume: disk.volume.id,
            generation: 0,
            epoch: 9,
            root_ino: 2,
            unclean: vec![],
        };
        let volume = VolumeContext {
            volume: disk.volume.clone(),
            suite: Suite::Aes256Gcm,
            keys: Box::new(OpenKeys),
            change_times: ChangeTimes::default(),
            epoch: 9,
            unclean: vec![],
            locked: AtomicBool::default(),
            journal: Some(Journal::start(journals, page, 4000).unwrap()),
        };
        let opened = EncryptedFile::open(Arc::new(volume), INO, disk.file.clone(), true);
        let content = opened.and_then(|file| read_all(&file));
        // The header is there twice.
        let harmless = at < 2 * disk.volume.layout.slot_size();
        match content {
            Ok(content) => assert!(content == plain, "byte {at} gave wrong plaintext"),
            Err(error) => assert!(!harmless, "byte {at}: {error}"),
        }
        disk.file.0.lock().now[at] ^= 0x40;
    }
}

/// PostgreSQL's checkpointer syncs what other processes wrote and closed.
#[test]
fn a_sync_covers_what_was_written_before_the_file_was_opened() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    file.write(0, &[7; 9000]).unwrap();
    let file = disk.reopen(file);
    file.sync(true).unwrap();
    drop(file);
    let disk = disk.cut(|_| 0);
    assert_eq!(read_all(&disk.mount()).unwrap(), [7; 9000]);
}

// What a review of the crash order found.
/// A sync that finds another one under way does not rely on it.
#[test]
fn a_sync_beside_another_does_its_own() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    file.write(0, &[1; 4096]).unwrap();
    let (here, there) = (Arc::new(Barrier::new(2)), file.clone());
    let barrier = here.clone();
    let first = std::thread::spawn(move || {
        SYNC_STOPS.set(Some(barrier));
        there.sync(true).unwrap()
    });
    here.wait();
    file.sync(true).unwrap();
    let content = read_all(&disk.cut(|_| 0).mount()).unwrap();
    here.wait();
    assert_eq!(content, [1; 4096]);
    assert!(first.join().unwrap());
}

#[test]
fn a_block_whose_ciphertext_is_zeros_survives_being_killed() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    for _ in 0..5000 {
        file.set_size(0).unwrap();
        file.write(0, b"x").unwrap();
        file.sync(false).unwrap();
        if disk.file.0.lock().now[4096] == 0 {
            break;
        }
    }
    drop(file); // SIGKILL
    let file = disk.mount();
    assert_eq!(read_all(&file).unwrap(), b"x");
}

/// A truncation reached the disk, and the metadata page of `group` in place did not.
fn cut_without(group: u64) {
    let disk = Disk::new(4096);
    let file = disk.mount();
    let old = vec![7u8; 400 * 4096];
    file.write(0, &old).unwrap();
    disk.unmount(file);
    let page = Layout::new(4096, 4096).unwrap().meta_offset(group) as usize;
    let before = disk.file.0.lock().durable[page..page + 4096].to_vec();
    let file = disk.mount();
    file.set_size(100 * 4096).unwrap();
    drop(file);
    {
        let mut mem = disk.file.0.lock();
        assert!(mem.now[page..page + 4096] != before, "it was to be written");
        mem.now[page..page + 4096].copy_from_slice(&before);
        mem.durable = mem.now.clone();
    }
    let file = disk.mount();
    file.set_size(400 * 4096).unwrap();
    let content = read_all(&file).unwrap();
    assert!(content[..100 * 4096] == old[..100 * 4096]);
    assert!(content[100 * 4096..].iter().all(|&b| b == 0));
    file.write(250 * 4096, &[8; 4096]).unwrap();
    disk.unmount(file);
    let content = read_all(&disk.mount()).unwrap();
    assert_eq!(content[250 * 4096..251 * 4096], [8; 4096]);
    assert!(content[251 * 4096..].iter().all(|&b| b == 0));
}

#[test]
fn entries_past_the_end_do_not_come_back() {
    cut_without(1);
}

/// Also not those of groups whose metadata lies before the end, their blocks behind.
#[test]
fn entries_of_a_cut_off_group_do_not_come_back() {
    cut_without(2);
    cut_without(3);
}

/// Metadata pages that came with their cluster are those on the disk, also when
/// writing one of them failed, and when the file has changed since.
#[test]
fn neighbours_in_a_cluster_stay_what_they_are() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    let mut expected = vec![1u8; 900 * 4096];
    file.write(0, &expected).unwrap();
    disk.unmount(file);
    let file = disk.mount();
    // The page of the third group brings those of the others of its cluster.
    let mut buffer = ReadBuffer::default();
    file.read(400 * 4096, 4096, &mut buffer).unwrap();
    file.set_size(300 * 4096).unwrap();
    expected.truncate(300 * 4096);
    file.set_size(900 * 4096).unwrap();
    expected.resize(900 * 4096, 0);
    for (from, to, value) in [(60, 500, 2u8), (550, 560, 3), (899, 900, 4)] {
        let bytes = vec![value; (to - from) * 4096];
        WRITES_LEFT.set(1);
        let failing = std::panic::AssertUnwindSafe(|| file.write((from * 4096) as u64, &bytes));
        let _ = std::panic::catch_unwind(failing);
        WRITES_LEFT.set(usize::MAX);
        file.write((from * 4096) as u64, &bytes).unwrap();
        expected[from * 4096..to * 4096].fill(value);
        assert!(read_all(&file).unwrap() == expected);
    }
    disk.unmount(file);
    assert!(read_all(&disk.mount()).unwrap() == expected);
}

/// A mount that is killed at any of its writes loses nothing that was synced.
#[test]
fn a_mount_may_be_interrupted_anywhere() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    let journal = file.volume.journal.clone().unwrap();
    // Old content in one journal, new content in the other, both in force.
    journal.checkpoint().unwrap();
    file.write(0, &[2; 4096]).unwrap();
    file.write(0, &[3; 4096]).unwrap();
    file.sync(true).unwrap();
    journal.rotate_for_test();
    file.write(0, &[4; 4096]).unwrap();
    file.sync(true).unwrap();
    drop((file, journal));
    for writes in 0..20 {
        let killed = disk.killed();
        WRITES_LEFT.set(writes);
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| killed.mount()));
        WRITES_LEFT.set(usize::MAX);
        let file = killed.mount();
        assert_eq!(read_all(&file).unwrap(), [4; 4096], "after {writes} writes");
    }
}

/// c0 durable; c1 fsynced (journal) and applied; metadata page written back by
/// the host, data page not; truncated; journal flushed by another file; cut.
#[test]
fn a_revoke_does_not_outrun_the_truncation() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    file.write(0, &[1; 10 * 4096]).unwrap();
    disk.unmount(file);
    let file = disk.mount();
    let journal = file.volume.journal.clone().unwrap();
    file.write(5 * 4096, &[2; 4096]).unwrap();
    file.sync(true).unwrap();
    // The host writes back the metadata page alone.
    let head = disk.file.0.lock().now[..4096].to_vec();
    disk.file.0.lock().durable[..4096].copy_from_slice(&head);
    file.set_size(3 * 4096).unwrap();
    journal.commit().unwrap(); // as when another file is synced
    drop(file);
    let after = Disk {
        file: MemFile::holding(disk.file.0.lock().durable.clone()),
        journals: disk.journals.clone(),
        volume: disk.volume.clone(),
        mounts: Mounts::default(),
    };
    let file = after.mount();
    let content = read_all(&file);
    assert!(content.is_ok(), "{content:?}");
}

/// Cut off, closed, opened, written again; the host writes back the metadata page alone.
#[test]
fn what_was_cut_off_before_a_close_does_not_meet_new_entries() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    file.write(0, &[1; 10 * 4096]).unwrap();
    disk.unmount(file);
    let file = disk.mount();
    file.set_size(5 * 4096).unwrap();
    let file = disk.reopen(file);
    file.write(5 * 4096, &[2; 4096]).unwrap();
    drop(file);
    let head = disk.file.0.lock().now[..4096].to_vec();
    disk.file.0.lock().durable[..4096].copy_from_slice(&head);
    let durable = disk.file.0.lock().durable.clone();
    let file = MemFile::holding(durable);
    let content = read_all(&Disk { file, ..disk }.mount());
    assert!(content.is_ok(), "{content:?}");
}

/// The file's new length reaches the disk before anything that the journal got since:
/// records of what was cut off must not come to lie in it.
#[test]
fn what_was_cut_off_does_not_fill_the_file_that_grows_again() {
    for grow in [
        |file: &EncryptedFile| file.set_size(4 * 4096),
        |file: &EncryptedFile| file.write(3 * 4096, &[3; 4096]),
    ] {
        let disk = Disk::new(4096);
        let file = disk.mount();
        file.write(0, &[1; 4 * 4096]).unwrap();
        file.sync(true).unwrap();
        file.write(4096, &[2; 2 * 4096]).unwrap();
        file.sync(true).unwrap();
        file.set_size(4096).unwrap();
        file.sync(true).unwrap();
        grow(&file).unwrap();
        drop(file);
        let content = read_all(&disk.cut_in_journals().mount()).unwrap();
        assert_eq!(content.len(), 4 * 4096);
        assert!(content[..4096].iter().all(|&b| b == 1));
        assert!(content[4096..3 * 4096].iter().all(|&b| b == 0));
    }
}

/// Found by fsx: a short last block waits in the journal, the file grows, and the
/// block after it comes to wait as well. Both are put in place at once.
#[test]
fn a_short_pending_block_does_not_shift_the_next() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    let journal = file.volume.journal.clone().unwrap();
    file.write(0, &[1; 53]).unwrap();
    file.punch(13, 40, true).unwrap();
    file.set_size(3 * 4096).unwrap();
    file.write(4096, &[2; 4096]).unwrap();
    file.write(4096, &[3; 4096]).unwrap();
    file.sync(true).unwrap();
    journal.checkpoint().unwrap();
    let mut expected = vec![0; 3 * 4096];
    expected[..13].fill(1);
    expected[4096..2 * 4096].fill(3);
    assert_eq!(read_all(&file).unwrap(), expected);
}

/// Whole blocks are encrypted before the file is locked to write them; meanwhile they
/// may be cut off, and be holes when the file has grown again.
#[test]
fn overwrites_meet_truncations() {
    const BLOCKS: u64 = 4;
    let disk = Disk::new(4096);
    let file = disk.mount();
    let write = |seed: u8| {
        for round in 0..4000u64 {
            let at = (round * 7 + u64::from(seed)) % (BLOCKS - 1);
            file.write(at * 4096, &[seed; 2 * 4096]).unwrap();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| write(1));
        scope.spawn(|| write(2));
        scope.spawn(|| {
            for round in 0..2000u64 {
                file.set_size(round % BLOCKS * 4096 + round % 2).unwrap();
                read_all(&file).unwrap();
                file.punch(4096, 4096, true).unwrap();
                file.set_size(BLOCKS * 4096).unwrap();
            }
        });
    });
    let content = read_all(&file).unwrap();
    for block in content.chunks(4096) {
        assert!(block[0] <= 2 && block.iter().all(|&b| b == block[0]));
    }
    drop(file);
    assert!(read_all(&disk.mount()).unwrap() == content);
}

#[test]
fn a_checkpoint_that_fails_is_tried_again_at_leisure() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    let journal = file.volume.journal.clone().unwrap();
    // Enough overwrites for the journal to be due.
    for seed in 0..40 {
        let mut data = vec![0; 1 << 20];
        fill(&mut data, seed);
        file.write(0, &data).unwrap();
    }
    let tick = std::time::Duration::from_millis(200);
    let maintained = || {
        let start = std::time::Instant::now();
        journal.maintain(tick);
        start.elapsed()
    };
    SYNC_FAILS.set(true);
    maintained();
    assert!(maintained() >= tick, "it is tried again at once, and again");
    SYNC_FAILS.set(false);
    maintained();
    assert!(maintained() >= tick, "the journal is short again");
    drop(journal);
    let content = read_all(&file).unwrap();
    disk.unmount(file);
    assert!(read_all(&disk.mount()).unwrap() == content);
}
