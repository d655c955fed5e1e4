//! What a request is made of, each by itself. `scripts/bench --micro` runs them;
//! docs/PERFORMANCE.md says how to read them.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kmsfs::crypto::{DataKey, FileKey, NameCipher, Suite, VolumeKeys, sha256};
use kmsfs::format::Layout;
use kmsfs::format::header::{Header, Recipient};
use kmsfs::keys::cache::{CacheLimits, KeyCache};
use kmsfs::keys::{KeyContext, WrappedKey};
use kmsfs::sys::clock::BootClock;
use kmsfs::types::{DirId, FileId, VolumeId};

const VOLUME: VolumeId = VolumeId([1; 16]);

fn layout() -> Layout {
    Layout::new(4096, 4096).expect("the default layout")
}

fn data_key() -> DataKey {
    DataKey::from_bytes(&[7; 32]).expect("32 bytes")
}

fn blocks(c: &mut Criterion) {
    let file = FileId([2; 16]);
    let key = FileKey::new(Suite::Aes256Gcm, file, &data_key());
    let cipher = key.group_cipher(0);
    let plain = vec![42; 4096];
    let mut sealed = vec![0; 4096];
    let mut group = c.benchmark_group("block");
    group.throughput(Throughput::Bytes(4096));
    group.bench_function("seal", |b| b.iter(|| cipher.seal(5, &plain, &mut sealed)));
    let seal = cipher.seal(5, &plain, &mut sealed);
    let mut data = sealed.clone();
    group.bench_function("open", |b| {
        b.iter(|| {
            data.copy_from_slice(&sealed);
            cipher.open(5, &seal, &mut data).expect("authentic");
        });
    });
    group.finish();
    c.bench_function("group cipher", |b| b.iter(|| key.group_cipher(9)));
}

fn headers(c: &mut Criterion) {
    let recipient = Recipient {
        key_uri: "local:default?uuid=00000000000000000000000000000000".into(),
        key_version: "1".into(),
        algorithm: String::new(),
        iv: vec![3; 12],
        ciphertext: vec![4; 48],
    };
    let header = Header {
        suite: Suite::Aes256Gcm.number(),
        layout: layout(),
        sequence: 1,
        file: FileId([2; 16]),
        volume: VOLUME,
        commitment: [5; 32],
        recipients: vec![recipient],
    };
    let slot = header.encode(sha256).expect("it fits");
    let head = slot.repeat(2);
    c.bench_function("header/encode", |b| b.iter(|| header.encode(sha256)));
    c.bench_function("header/newest", |b| {
        b.iter(|| Header::newest(black_box(&head), layout(), sha256));
    });
}

fn names(c: &mut Criterion) {
    let cipher = NameCipher::new(VolumeKeys::new(&VOLUME.0, &data_key()));
    let dir = DirId([6; 16]);
    let name = b"a_name_of_usual_length.rs";
    let stored = cipher.seal_name(&dir, name);
    c.bench_function("name/seal", |b| b.iter(|| cipher.seal_name(&dir, name)));
    c.bench_function("name/open", |b| {
        b.iter(|| cipher.open_name(&dir, stored.as_bytes()));
    });
}

fn layouts(c: &mut Criterion) {
    let layout = layout();
    c.bench_function("layout/offsets", |b| {
        b.iter(|| {
            let block = layout.block_of(black_box(123_456_789));
            (layout.block_offset(block), layout.group_of(block))
        });
    });
    c.bench_function("layout/plain_len", |b| {
        b.iter(|| layout.plain_len(black_box(987_654_321)));
    });
}

/// Hits while other threads do the same.
fn cache(c: &mut Criterion) {
    let cache = Arc::new(KeyCache::new(CacheLimits::default(), Arc::new(BootClock)));
    let key_of = |number: u8| {
        let file = FileId([number; 16]);
        let wrapped = vec![WrappedKey {
            key_uri: "local:default".into(),
            key_version: "1".into(),
            algorithm: String::new(),
            iv: vec![number; 12],
            ciphertext: vec![number; 48],
        }];
        let context = KeyContext {
            volume: VOLUME,
            file,
        };
        (context, wrapped)
    };
    for number in 0..64 {
        let (context, wrapped) = key_of(number);
        cache.insert(&context, &wrapped, Arc::new(data_key()));
    }
    let done = Arc::new(AtomicBool::new(false));
    let others: Vec<_> = (0..3)
        .map(|thread| {
            let (cache, done) = (cache.clone(), done.clone());
            thread::spawn(move || {
                let (context, wrapped) = key_of(thread);
                while !done.load(Ordering::Relaxed) {
                    black_box(cache.get(&context, &wrapped));
                }
            })
        })
        .collect();
    let (context, wrapped) = key_of(0);
    c.bench_function("key cache/hit under contention", |b| {
        b.iter(|| cache.get(&context, &wrapped).expect("inserted above"));
    });
    done.store(true, Ordering::Relaxed);
    for other in others {
        other.join().expect("no panic");
    }
}

criterion_group!(benches, blocks, headers, names, layouts, cache);
criterion_main!(benches);
