//! Checking a log's chain.

use std::io::{self, BufRead};

use data_encoding::HEXLOWER;
use serde_json::Value;

use crate::crypto::sha256;

use super::BEGINNING;

/// What a whole chain is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its lines.
    pub lines: u64,
    /// SHA-256 of the last one, in hexadecimal: whoever notes it can tell later
    /// whether lines up to there were cut off at the end.
    pub last: String,
    /// The same of every line, the first one first.
    pub hashes: Vec<[u8; 32]>,
}

/// Why a chain is not whole.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// Reading failed.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// The first line continues a chain.
    #[error("line 1 continues a chain: lines before it are missing")]
    NoBeginning,
    /// A line does not continue the one before it.
    #[error("line {0} does not continue line {before}: a line was changed, added or cut out", before = .0 - 1)]
    Chain(u64),
    /// A line is none that kmsfs wrote.
    #[error("line {0} is not an audit line, or is cut off")]
    Line(u64),
}

/// Checks a log. With `runs`, a chain may begin anew in it, as in the journal.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify(log: impl BufRead, runs: bool) -> Result<Verified, Broken> {
    let mut last = BEGINNING;
    let mut hashes = Vec::new();
    let mut log = log;
    loop {
        let number = hashes.len() as u64 + 1;
        let mut line = Vec::new();
        if log.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.pop() != Some(b'\n') {
            return Err(Broken::Line(number));
        }
        let parsed: Value = serde_json::from_slice(&line).map_err(|_| Broken::Line(number))?;
        let previous = parsed.get("previous").and_then(Value::as_str);
        let previous = previous.and_then(|hex| HEXLOWER.decode(hex.as_bytes()).ok());
        let previous = previous.ok_or(Broken::Line(number))?;
        let begins = previous == BEGINNING && runs;
        if previous != last && !begins {
            return Err(match number {
                1 => Broken::NoBeginning,
                _ => Broken::Chain(number),
            });
        }
        last = sha256(&line);
        hashes.push(last);
    }
    Ok(Verified {
        lines: hashes.len() as u64,
        last: HEXLOWER.encode(&last),
        hashes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(lines: usize) -> Vec<String> {
        let mut previous = BEGINNING;
        (0..lines)
            .map(|i| {
                let previous_hex = HEXLOWER.encode(&previous);
                let line = format!(r#"{{"n":{i},"previous":"{previous_hex}"}}"#);
                previous = sha256(line.as_bytes());
                line + "\n"
            })
            .collect()
    }

    fn check(lines: &[String], runs: bool) -> Result<Verified, Broken> {
        verify(lines.concat().as_bytes(), runs)
    }

    #[test]
    fn cuts_and_changes_show() {
        let whole = chain(4);
        assert_eq!(check(&whole, false).unwrap().lines, 4);
        assert_eq!(check(&[], false).unwrap().lines, 0);
        assert!(matches!(
            check(&whole[1..], false),
            Err(Broken::NoBeginning)
        ));
        let mut cut = whole.clone();
        cut.remove(1);
        assert!(matches!(check(&cut, false), Err(Broken::Chain(2))));
        let mut edited = whole.clone();
        edited[1] = edited[1].replace("\"n\":1", "\"n\":7");
        assert!(matches!(check(&edited, false), Err(Broken::Chain(3))));
        let mut torn = whole.clone();
        torn[3].truncate(9);
        assert!(matches!(check(&torn, false), Err(Broken::Line(4))));
        let twice = [whole.clone(), whole].concat();
        assert!(matches!(check(&twice, false), Err(Broken::Chain(5))));
        assert_eq!(check(&twice, true).unwrap().lines, 8);
    }
}
