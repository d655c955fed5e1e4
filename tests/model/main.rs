//! Random operations on the filesystem layer, without a mount, against a plain
//! directory: every result, errno and attribute is compared at once, and again
//! and again the whole tree with all its contents.
//!
//!     KMSFS_MODEL_OPS    operations a run (default 100,000; 5,000 unless
//!                        optimised)
//!     KMSFS_MODEL_SEED   the seed, to repeat a run (default: a new one)
//!     KMSFS_MODEL_DIR    where to work (default: in memory, where a directory
//!                        is not listed while it changes: a tmpfs loses count)
//!
//! A run that fails prints its seed and the few operations that are enough to
//! fail, to be pasted into a regression test.

mod data;
mod op;
mod pair;
mod regressions;
mod tree;
mod volume;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use kmsfs::format::config::NameMode;
use kmsfs::types::KeyLen;

use op::{Op, operations, shrink};
use pair::{Outcome, Pair};
use volume::Kind;

const OPERATIONS: usize = if cfg!(debug_assertions) {
    5_000
} else {
    100_000
};
/// How often everything is compared.
const COMPARE_EVERY: usize = 400;
/// How long to look for fewer operations that fail.
const SHRINKING: Duration = Duration::from_secs(60);

const ENCRYPTED: Kind = Kind {
    names: NameMode::Encrypted,
    key_len: KeyLen::Bits256,
    sizes: (4096, 4096),
};
const DETERMINISTIC: Kind = Kind {
    names: NameMode::Deterministic,
    key_len: KeyLen::Bits192,
    sizes: (8192, 16384),
};
const PLAIN: Kind = Kind {
    names: NameMode::Plain,
    key_len: KeyLen::Bits128,
    sizes: (4096, 8192),
};

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().expect("a number"))
}

/// Runs operations, then compares everything; an error says after how many.
fn run(kind: Kind, ops: &[Op]) -> Result<(), (usize, String)> {
    let mut pair = Pair::new(kind);
    let mut done = 0;
    let mut all = || -> Outcome<()> {
        for op in ops {
            done += 1;
            pair.apply(op)?;
        }
        pair.compare_all()
    };
    let outcome = catch_unwind(AssertUnwindSafe(&mut all));
    match outcome.unwrap_or_else(|_| Err("panicked".into())) {
        Ok(()) => Ok(()),
        Err(error) => Err((done, error)),
    }
}

fn model(kind: Kind) {
    let count = number("KMSFS_MODEL_OPS").map_or(OPERATIONS, |n| n as usize);
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos());
    let seed = number("KMSFS_MODEL_SEED").unwrap_or(now as u64);
    let mut ops = operations(seed, count, COMPARE_EVERY);
    let started = Instant::now();
    let Err((done, error)) = run(kind, &ops) else {
        println!("{count} operations, seed {seed}: {:?}", started.elapsed());
        return;
    };
    println!(
        "{kind:?}: seed {seed}, operation {done}, {:?}: {error}",
        ops[done.min(count) - 1]
    );
    ops.truncate(done);
    let deadline = Instant::now() + SHRINKING;
    // The same failure, whatever its numbers and names.
    let words = |error: &str| -> Vec<String> {
        let all = error.split([' ', ':']).map(str::to_owned);
        all.filter(|w| w.len() > 3 && w.chars().all(char::is_alphabetic))
            .collect()
    };
    let same = words(&error);
    let fails = |ops: &[Op]| {
        let failed = run(kind, ops).err();
        failed.is_some_and(|(_, error)| words(&error) == same)
    };
    let ops = shrink(ops, fails, || Instant::now() > deadline);
    let (_, error) = run(kind, &ops).expect_err("it failed before");
    for op::Op { what, a, b, x, y } in &ops {
        println!("    op(What::{what:?}, {a}, {b}, {x}, {y}),");
    }
    panic!("seed {seed}: {} operations are enough: {error}", ops.len());
}

#[test]
fn encrypted_names() {
    model(ENCRYPTED);
}

#[test]
fn deterministic_names() {
    model(DETERMINISTIC);
}

#[test]
fn plain_names() {
    model(PLAIN);
}
