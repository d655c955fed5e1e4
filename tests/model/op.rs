//! Operations as plain numbers: each is taken modulo what there is when its
//! turn comes, so every sequence of them, and every part of one, can be run.

/// One operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    /// What to do.
    pub(crate) what: What,
    /// On which inode, directory or handle.
    pub(crate) a: u16,
    /// With which second one.
    pub(crate) b: u16,
    /// Which name, flags, seed: whatever the operation needs.
    pub(crate) x: u32,
    /// A second one of those.
    pub(crate) y: u32,
}

/// Shorthand, in the form that a failed run prints.
pub(crate) const fn op(what: What, a: u16, b: u16, x: u32, y: u32) -> Op {
    Op { what, a, b, x, y }
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum What {
    Allocate,
    Checkpoint,
    Chmod,
    Chown,
    Close,
    Commit,
    Compare,
    Create,
    Empty,
    Forget,
    Fsync,
    GetXattr,
    Link,
    List,
    ListWhileChanging,
    Lookup,
    Mkdir,
    Mknod,
    Open,
    Punch,
    Read,
    Readlink,
    Remount,
    RemoveXattr,
    Rename,
    Rmdir,
    Seek,
    SetXattr,
    Symlink,
    Times,
    Truncate,
    Unlink,
    Write,
    Zero,
}

/// How often each comes up, among 10,000.
const WEIGHTS: [(What, u32); 33] = [
    (What::Write, 2000),
    (What::Read, 1500),
    (What::Create, 900),
    (What::Open, 650),
    (What::Close, 600),
    (What::Unlink, 560),
    (What::Rename, 500),
    (What::Lookup, 450),
    (What::Truncate, 350),
    (What::Link, 300),
    (What::Symlink, 220),
    (What::SetXattr, 200),
    (What::GetXattr, 200),
    (What::Seek, 200),
    (What::Mkdir, 180),
    (What::Rmdir, 160),
    (What::Chmod, 150),
    (What::Times, 120),
    (What::Readlink, 100),
    (What::Punch, 100),
    (What::Zero, 80),
    (What::Allocate, 80),
    (What::List, 60),
    (What::ListWhileChanging, 40),
    (What::RemoveXattr, 60),
    (What::Mknod, 60),
    (What::Forget, 40),
    (What::Fsync, 25),
    (What::Chown, 20),
    (What::Commit, 50),
    (What::Checkpoint, 15),
    (What::Empty, 10),
    (What::Remount, 5),
];

/// A small generator of random numbers (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The operations of a seed, with a comparison of everything after every
/// `compare_every`.
pub(crate) fn operations(seed: u64, count: usize, compare_every: usize) -> Vec<Op> {
    let mut random = Random(seed);
    let total: u32 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    (1..=count)
        .map(|number| {
            let mut left = (random.next() % u64::from(total)) as u32;
            let drawn = WEIGHTS.iter().find(|(_, weight)| {
                let found = left < *weight;
                left = left.wrapping_sub(if found { 0 } else { *weight });
                found
            });
            let (places, values) = (random.next(), random.next());
            let what = if number % compare_every == 0 {
                What::Compare
            } else {
                drawn.expect("within the total").0
            };
            op(
                what,
                places as u16,
                (places >> 16) as u16,
                values as u32,
                (values >> 32) as u32,
            )
        })
        .collect()
}

/// Leaves out whatever is not needed for `fails` to stay true, until `enough`.
pub(crate) fn shrink(
    mut ops: Vec<Op>,
    fails: impl Fn(&[Op]) -> bool,
    enough: impl Fn() -> bool,
) -> Vec<Op> {
    let mut chunk = ops.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        while at < ops.len() && !enough() {
            let end = (at + chunk).min(ops.len());
            let without = [&ops[..at], &ops[end..]].concat();
            if fails(&without) {
                ops = without;
            } else {
                at = end;
            }
        }
        if chunk == 1 || enough() {
            return ops;
        }
        chunk = chunk.div_ceil(2);
    }
}
