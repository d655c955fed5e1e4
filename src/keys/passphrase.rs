//! Passphrases and where they come from; never the argument list.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::RawFd;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::keys::KeyError;
use crate::sys::{fd, terminal};

const MAX: usize = 4096;

/// A passphrase, wiped on drop.
pub struct Passphrase(Zeroizing<Vec<u8>>);

impl Passphrase {
    /// The passphrase `text`; an error if it is empty.
    pub fn new(text: Zeroizing<Vec<u8>>) -> Result<Self, KeyError> {
        if text.is_empty() {
            return Err(KeyError::Configuration {
                detail: "the passphrase is empty".into(),
                hint: None,
            });
        }
        Ok(Self(text))
    }

    /// The passphrase itself, for key derivation.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// Where to get a passphrase when a key asks for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassphraseSource {
    /// Nowhere: a key that needs one cannot be opened.
    Unattended,
    /// The controlling terminal, without echo.
    Terminal,
    /// The first line of a file.
    File(PathBuf),
    /// The next line of an inherited descriptor.
    Fd(RawFd),
}

impl PassphraseSource {
    /// The passphrase of an existing key.
    pub fn read(&self, prompt: &str) -> Result<Passphrase, KeyError> {
        let line = match self {
            Self::Unattended => Err(failure(format!("{prompt} is needed"), Some(HINT))),
            Self::Terminal => ask(prompt),
            Self::File(path) => File::open(path)
                .and_then(|mut file| read_line(&mut file))
                .map_err(|error| {
                    failure(
                        format!(
                            "cannot read the passphrase file {}: {error}",
                            path.display()
                        ),
                        None,
                    )
                }),
            Self::Fd(number) => fd::duplicate(*number)
                .and_then(|mut file| read_line(&mut file))
                .map_err(|error| {
                    failure(
                        format!("cannot read the passphrase from descriptor {number}: {error}"),
                        None,
                    )
                }),
        }?;
        Passphrase::new(line)
    }

    /// A passphrase for a new key: asked twice where a person types it.
    pub fn read_new(&self, prompt: &str) -> Result<Passphrase, KeyError> {
        let first = self.read(prompt)?;
        if *self == Self::Terminal {
            let second = ask(&format!("{prompt}, again"))?;
            if first.expose() != second.as_slice() {
                return Err(failure("the passphrases differ".into(), None));
            }
        }
        Ok(first)
    }
}

const HINT: &str = "run it on a terminal, or give --passphrase-file or --passphrase-fd";

fn ask(prompt: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    terminal::ask_hidden(&format!("{prompt}: ")).map_err(|error| match error.kind() {
        io::ErrorKind::Interrupted => failure("no passphrase was entered".into(), None),
        _ => failure(
            format!("cannot ask for a passphrase on the terminal: {error}"),
            Some(HINT),
        ),
    })
}

fn failure(detail: String, hint: Option<&str>) -> KeyError {
    KeyError::Configuration {
        detail,
        hint: hint.map(str::to_owned),
    }
}

/// Reads up to a line feed or the end, byte by byte, so that a descriptor can
/// carry several passphrases, one a line, and nothing is read past them.
fn read_line(input: &mut impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX));
    let mut byte = Zeroizing::new([0u8; 1]);
    loop {
        match input.read(byte.as_mut()) {
            Ok(0) => break,
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) if line.len() == MAX => return Err(io::ErrorKind::FileTooLarge.into()),
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_file_gives_its_first_line() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all("p\u{e4}ss word \r\nsecond\n".as_bytes())
            .unwrap();
        let source = PassphraseSource::File(file.path().to_owned());
        let read = source.read("passphrase").unwrap();
        assert_eq!(read.expose(), "p\u{e4}ss word ".as_bytes());
        assert_eq!(format!("{read:?}"), "Passphrase(..)");
    }

    #[test]
    fn a_descriptor_gives_line_after_line_and_then_nothing() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"one\ntwo").unwrap();
        file.rewind().unwrap();
        let source = PassphraseSource::Fd(file.as_raw_fd());
        assert_eq!(source.read("p").unwrap().expose(), b"one");
        assert_eq!(source.read_new("p").unwrap().expose(), b"two");
        assert!(source.read("p").is_err(), "an empty passphrase is refused");
    }

    #[test]
    fn errors_say_what_to_do() {
        let KeyError::Configuration { hint, .. } =
            PassphraseSource::Unattended.read("passphrase").unwrap_err()
        else {
            panic!()
        };
        assert!(hint.unwrap().contains("--passphrase-file"));
        let missing = PassphraseSource::File("/nonexistent/p".into());
        assert!(
            missing
                .read("p")
                .unwrap_err()
                .to_string()
                .contains("/nonexistent/p")
        );
        assert!(read_line(&mut &vec![b'x'; MAX + 1][..]).is_err());
    }
}
