//! Asking on the terminal without showing what is typed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

const MAX: usize = 4096;
const INTERRUPT: u8 = 0x03;
const END_OF_FILE: u8 = 0x04;
const ERASE_LINE: u8 = 0x15;

/// Puts the terminal back as it was.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn new(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        // Without ISIG an interrupt key cannot kill the process while echo is
        // off, which would leave the user's shell blind.
        quiet
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        if tcsetattr(self.terminal, OptionalActions::Flush, &self.before).is_err() {
            log::warn!("the terminal's settings could not be restored; type `reset`");
        }
    }
}

/// Shows `prompt` on the controlling terminal and reads one line without echo.
/// `Interrupted` if the user gives up with an interrupt or end-of-file key.
pub fn ask_hidden(prompt: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
    let quiet = Quiet::new(&terminal)?;
    (&terminal).write_all(prompt.as_bytes())?;
    let line = read_keys(&mut &terminal);
    drop(quiet);
    (&terminal).write_all(b"\n")?;
    line
}

/// Reads keys up to Enter, obeying the editing keys a terminal's line mode has.
fn read_keys(input: &mut impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX));
    let mut key = Zeroizing::new([0u8; 1]);
    loop {
        match input.read(key.as_mut()) {
            Ok(0) => return Err(io::ErrorKind::Interrupted.into()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        match key[0] {
            b'\n' | b'\r' => return Ok(line),
            INTERRUPT => return Err(io::ErrorKind::Interrupted.into()),
            END_OF_FILE if line.is_empty() => return Err(io::ErrorKind::Interrupted.into()),
            END_OF_FILE => return Ok(line),
            ERASE_LINE => line.clear(),
            // Backspace takes a whole UTF-8 character.
            0x08 | 0x7f => while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            _ if line.len() == MAX => return Err(io::ErrorKind::FileTooLarge.into()),
            byte => line.push(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> io::Result<Vec<u8>> {
        read_keys(&mut &keys[..]).map(|line| line.to_vec())
    }

    #[test]
    fn editing_keys_work() {
        assert_eq!(typed(b"abc\nrest").unwrap(), b"abc");
        assert_eq!(typed(b"ab\x7fc\r").unwrap(), b"ac");
        assert_eq!(typed("aé\x7fb\n".as_bytes()).unwrap(), b"ab");
        assert_eq!(typed(b"\x7f\x7fa\n").unwrap(), b"a");
        assert_eq!(typed(b"wrong\x15right\n").unwrap(), b"right");
        assert_eq!(typed(b"ab\x04").unwrap(), b"ab");
    }

    #[test]
    fn giving_up_is_an_error() {
        for keys in [&b"ab\x03"[..], b"\x04", b"", b"unfinished"] {
            let error = typed(keys).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        }
        assert!(typed(&vec![b'x'; MAX + 1]).is_err());
    }
}
