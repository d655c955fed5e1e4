//! Blocks that say which file, block and version they are, so that a reader
//! can tell an old block, a new one and garbage apart.

use super::noise;

/// The unit of the patterns and of what must never be torn.
pub const BLOCK: usize = 4096;

/// The block `index` of `file` in its `version`, starting with the three
/// numbers and filled with noise that depends on them.
pub fn block(file: u64, index: u64, version: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    for number in [file, index, version] {
        bytes.extend(number.to_le_bytes());
    }
    let seed =
        file.wrapping_mul(1_000_003) ^ index.wrapping_mul(7_919) ^ version.wrapping_mul(104_729);
    bytes.extend(noise(seed, BLOCK - bytes.len()));
    bytes
}

/// Describes bytes found where a block was expected.
pub fn describe(bytes: &[u8]) -> String {
    if bytes.iter().all(|&byte| byte == 0) {
        return format!("{} zeroes", bytes.len());
    }
    if bytes.len() < 24 {
        return format!("{bytes:02x?}");
    }
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let (file, index, version) = (number(0), number(8), number(16));
    let whole = block(file, index, version);
    match bytes.iter().zip(&whole).position(|(a, b)| a != b) {
        None => format!(
            "{} bytes of file {file} block {index} version {version}",
            bytes.len()
        ),
        Some(at) if at >= 24 => format!(
            "{} bytes, the first {at} of file {file} block {index} version {version}, then {:02x?}…",
            bytes.len(),
            &bytes[at..bytes.len().min(at + 16)]
        ),
        Some(_) => format!("{} bytes of garbage: {:02x?}…", bytes.len(), &bytes[..24]),
    }
}
