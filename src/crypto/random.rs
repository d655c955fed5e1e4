//! Random bytes for keys, nonces and identifiers.

/// Fills `out` from the operating system's generator (through aws-lc's DRBG).
///
/// # Panics
/// If the operating system has no randomness to give, where going on would be
/// worse than stopping.
pub fn fill(out: &mut [u8]) {
    aws_lc_rs::rand::fill(out).expect("the system's random generator failed");
}

/// `N` random bytes.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    fill(&mut out);
    out
}
