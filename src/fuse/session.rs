//! A mount from its start to its end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use fuser::{Config, SessionACL};

use crate::fs::{KeyKeeper, LeaseTerms, Mounted, OpenError};
use crate::sys::mount::{self, FuseMount};

use super::MountOptions;
use super::adapter::Adapter;
use super::notices::Notices;
use super::waiting::{Served, Waiting};

/// How often the cache and the journal are looked after.
const TICK: Duration = Duration::from_secs(1);

/// Why a mount failed or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The kernel or `fusermount3` refused.
    #[error("cannot mount on {}: {error}", path.display())]
    Mount {
        /// The mountpoint.
        path: PathBuf,
        /// What was said.
        error: io::Error,
    },
    /// The connection to the kernel broke.
    #[error("the connection to the kernel failed: {0}")]
    Connection(io::Error),
    /// The end was not clean.
    #[error("could not make everything durable: {0}")]
    Close(OpenError),
}

/// A mounted filesystem that is ready to serve.
pub struct Session {
    mounted: Arc<Mounted>,
    session: fuser::Session<Adapter>,
    mountpoint: PathBuf,
    keeper: Arc<KeyKeeper>,
}

impl Session {
    /// Mounts `mounted` on `mountpoint`. The kernel queues requests until
    /// [`Self::run`] serves them.
    ///
    /// # Errors
    /// `Mount`, `Connection`.
    pub fn mount(
        mounted: Mounted,
        mountpoint: &Path,
        source: &str,
        options: &MountOptions,
        terms: LeaseTerms,
    ) -> Result<Self, SessionError> {
        let mut flags = vec![if options.read_only { "ro" } else { "rw" }];
        for (on, flag) in [
            (!options.suid, "nosuid"),
            (!options.dev, "nodev"),
            (!options.exec, "noexec"),
            (options.noatime, "noatime"),
            (options.nodiratime, "nodiratime"),
            (options.sync, "sync"),
            (options.dirsync, "dirsync"),
        ] {
            if on {
                flags.push(flag);
            }
        }
        let request = FuseMount {
            mountpoint: mountpoint.to_owned(),
            source: options.source.clone().unwrap_or_else(|| source.to_owned()),
            flags,
            allow_other: options.allow_other,
        };
        let fd = request.mount().map_err(|error| SessionError::Mount {
            path: mountpoint.to_owned(),
            error,
        })?;
        let mounted = Arc::new(mounted);
        let notices = Arc::new(Notices::default());
        let keys = &mounted.keys;
        let served = Served {
            fs: mounted.fs.clone(),
            waiting: (!keys.is_local()).then(|| Waiting::new(keys.deadline())),
        };
        let adapter = Adapter {
            served,
            notices: notices.clone(),
        };
        // The kernel knows who may use the mount; fuser need not check again.
        let session = fuser::Session::from_fd(adapter, fd, SessionACL::All, threads())
            .inspect_err(|_| {
                let _ = mount::unmount(mountpoint, true);
            })
            .map_err(SessionError::Connection)?;
        notices.start(session.notifier());
        let drop_pages = Box::new(move |ino| notices.drop_pages_now(ino));
        let (fs, keys) = (mounted.fs.clone(), mounted.keys.clone());
        let keeper = KeyKeeper::new(fs, keys, terms, drop_pages);
        mount::tune(mountpoint);
        Ok(Self {
            mounted,
            session,
            mountpoint: mountpoint.to_owned(),
            keeper,
        })
    }

    /// The keeper of the keys that open files use.
    pub fn keeper(&self) -> Arc<KeyKeeper> {
        self.keeper.clone()
    }

    /// What is mounted.
    pub fn mounted(&self) -> Arc<Mounted> {
        self.mounted.clone()
    }

    /// Serves until the filesystem is unmounted, by whomever, then makes
    /// everything durable.
    ///
    /// # Errors
    /// `Connection`, `Close`.
    pub fn run(self) -> Result<(), SessionError> {
        let ended = Arc::new(AtomicBool::new(false));
        let ticker = {
            let (mounted, ended) = (self.mounted.clone(), ended.clone());
            thread::spawn(move || {
                while !ended.load(Ordering::Acquire) {
                    match &mounted.fs.volume().journal {
                        Some(journal) => journal.maintain(TICK),
                        None => thread::sleep(TICK),
                    }
                    mounted.keys.sweep();
                }
            })
        };
        let keeping = {
            let (keeper, ended) = (self.keeper.clone(), ended.clone());
            thread::spawn(move || {
                while !ended.load(Ordering::Acquire) {
                    keeper.tick();
                    thread::park_timeout(keeper.terms().interval());
                }
            })
        };
        let served = match self.session.run() {
            // It ended while one of its last requests was being read (fs/fuse/dev.c).
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
            served => served.map_err(SessionError::Connection),
        };
        ended.store(true, Ordering::Release);
        if let Some(journal) = &self.mounted.fs.volume().journal {
            journal.wake();
        }
        keeping.thread().unpark();
        let _ = keeping.join();
        let _ = ticker.join();
        let closed = self.mounted.close().map_err(SessionError::Close);
        log::info!("{}: unmounted", self.mountpoint.display());
        served.and(closed)
    }
}

fn threads() -> Config {
    let cores = thread::available_parallelism().map_or(2, |n| n.get());
    let mut config = Config::default();
    config.n_threads = Some((2 * cores).clamp(4, 16));
    config.clone_fd = true;
    config
}
