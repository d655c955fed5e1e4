//! After `kmsfs lock` no key that a file was encrypted under is in the process.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use aws_lc_rs::{hkdf, hmac};

use crate::common::{is_root, skip, write_synced};
use crate::kms_servers::alibaba::Server;
use crate::*;

/// Everything that can be read of a process's memory.
fn memory_of(pid: u32) -> io::Result<Vec<u8>> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mem = File::open(format!("/proc/{pid}/mem"))?;
    let mut all = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next().unwrap(), fields.next().unwrap());
        // What cannot be written holds no keys: code, and tables of libraries.
        if !rights.starts_with("rw") || line.ends_with("[vvar]") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let from = u64::from_str_radix(from, 16).unwrap();
        let to = u64::from_str_radix(to, 16).unwrap();
        for at in (from..to).step_by(1 << 20) {
            let mut piece = vec![0; (to - at).min(1 << 20) as usize];
            if mem.read_exact_at(&mut piece, at).is_ok() {
                all.extend_from_slice(&piece);
            }
        }
    }
    Ok(all)
}

/// The secrets that follow from a data key: itself, the pseudorandom key, and
/// the key of the first blocks (`docs/FORMAT.md`).
fn secrets(file: &[u8], key: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    struct Len;
    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            32
        }
    }
    let prk = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, file), key);
    let suite = 1u16.to_le_bytes();
    let group = 0u64.to_le_bytes();
    let info = [&b"kmsfs v1 blocks"[..], &suite, file, &group];
    let mut blocks = vec![0; 32];
    hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, prk.as_ref())
        .expand(&info, Len)
        .unwrap()
        .fill(&mut blocks)
        .unwrap();
    vec![
        ("data key", key.to_vec()),
        (
            "data key in base64",
            data_encoding::BASE64.encode(key).into_bytes(),
        ),
        ("pseudorandom key", prk.as_ref().to_vec()),
        ("block key", blocks),
    ]
}

fn found<'a>(memory: &[u8], secrets: &'a [(&'static str, Vec<u8>)]) -> Vec<&'a str> {
    // Half of one would be as bad. All are looked for at once, by their first bytes.
    let halves = secrets.iter().map(|(_, s)| &s[..s.len() / 2]);
    let halves: Vec<&[u8]> = halves.collect();
    let start = |bytes: &[u8]| usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    let mut by_start = vec![Vec::new(); 1 << 16];
    for (index, half) in halves.iter().enumerate() {
        by_start[start(half)].push(index);
    }
    let mut found = std::collections::BTreeSet::new();
    for (at, pair) in memory.windows(2).enumerate() {
        let candidates = by_start[start(pair)].iter();
        found.extend(candidates.filter(|index| memory[at..].starts_with(halves[**index])));
    }
    found.into_iter().map(|&index| secrets[index].0).collect()
}

#[test]
fn no_data_key_is_left_after_locking() {
    needs_mounts!();
    if !is_root() {
        return skip("needs root to read another process's memory");
    }
    let server = Server::start();
    let mount = kms_mount(&server, &["--key-ttl", "600"]);
    let mut open = Vec::new();
    for index in 0..12 {
        let path = mount.join(format!("f{index}"));
        write_synced(&path, &block(index));
        open.push(open_both(&path).unwrap());
    }
    kmsfs_ok(&mount, &["keys", "drop"]);
    // Half of them are open and in use, with a key that was unwrapped.
    for (index, file) in (0..6).zip(&open) {
        let mut bytes = vec![0; BLOCK];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, block(index));
    }
    open.truncate(6);
    let volume = status(&mount)["volume"].as_str().unwrap().to_owned();
    let mut all = Vec::new();
    for released in server.world().released.lock().unwrap().iter() {
        let context: serde_json::Value = serde_json::from_str(&released.context).unwrap();
        let file = context["kmsfs:file"].as_str().unwrap().to_owned();
        // The volume's own key protects names, which stay readable.
        if file != volume {
            let file = data_encoding::HEXLOWER.decode(file.as_bytes()).unwrap();
            all.extend(secrets(&file, &released.key));
        }
    }
    assert!(all.len() >= 4 * 12);
    let Ok(memory) = memory_of(mount.pid()) else {
        return skip("this machine lets nobody read another process's memory");
    };
    let before = found(&memory, &all);
    assert!(
        before.contains(&"pseudorandom key"),
        "the search finds nothing: {before:?}"
    );
    kmsfs_ok(&mount, &["lock"]);
    let memory = memory_of(mount.pid()).unwrap();
    let left = found(&memory, &all);
    assert!(left.is_empty(), "left in memory: {left:?}");
}
