//! Going to the background, with word of whether that went well.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use rustix::process;

/// The background process's line to the one that was started.
pub struct Readiness(Option<File>);

/// Which of the two processes this is.
pub enum Side {
    /// The one that was started: the other's exit code, once it is known.
    Foreground(u8),
    /// The one that goes on.
    Background(Readiness),
}

/// Splits into a background process and one that waits for its first word. To
/// be called before there are other threads.
///
/// # Errors
/// Those of `pipe(2)` and `fork(2)`.
pub fn split() -> io::Result<Side> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: no other thread exists yet, so the child may do anything.
    let child = unsafe { libc::fork() };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reader);
            Ok(Side::Background(Readiness(Some(File::from(writer)))))
        }
        _ => {
            drop(writer);
            let mut code = [1];
            // A process that dies without a word has failed.
            let _ = File::from(reader).read(&mut code);
            Ok(Side::Foreground(code[0]))
        }
    }
}

impl Readiness {
    /// For a process that stays in the foreground.
    pub fn none() -> Self {
        Self(None)
    }

    /// Cuts the ties to the terminal and says that all is well.
    ///
    /// # Errors
    /// Those of redirecting the standard streams.
    pub fn ready(&mut self) -> io::Result<()> {
        let Some(mut pipe) = self.0.take() else {
            return Ok(());
        };
        let _ = process::setsid();
        process::chdir("/")?;
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        pipe.write_all(&[0])
    }

    /// Says that it went wrong, with the exit code.
    pub fn failed(&mut self, code: u8) {
        if let Some(mut pipe) = self.0.take() {
            let _ = pipe.write_all(&[code]);
        }
    }
}
