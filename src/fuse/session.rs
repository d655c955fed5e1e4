//! A mount from its start to its end.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::fs::{KeyKeeper, LeaseTerms, Mounted, OpenError};
use crate::sys::fuse_device::FuseDevice;
use crate::sys::fuse_ring::Offered;
use crate::sys::mount::{self, FuseMount};

use super::adapter::Adapter;
use super::notices::Notices;
use super::rings::Rings;
use super::waiting::{Served, Waiting};
use super::{MountOptions, connection, device};

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
    device: Arc<FuseDevice>,
    adapter: Arc<Adapter>,
    /// Where requests come from then; else from the device.
    rings: Option<Rings>,
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
        // The kernel says what it offers when it mounts, and looks again at the reply.
        let offered = match options.io_uring {
            true => Offered::new(),
            false => None,
        };
        let fd = request.mount().map_err(|error| SessionError::Mount {
            path: mountpoint.to_owned(),
            error,
        })?;
        let device = Arc::new(FuseDevice::new(fd));
        let mut rings = None;
        let caches_writes = connection::agree(&device, || {
            if options.io_uring {
                rings = Rings::new(&device)
                    .inspect_err(|error| log::info!("no io_uring: {error}"))
                    .ok();
            }
            rings.is_some()
        })
        .inspect_err(|_| {
            let _ = mount::unmount(mountpoint, true);
        })
        .map_err(SessionError::Connection)?;
        drop(offered);
        if caches_writes {
            mounted.fs.kernel_keeps_times();
        }
        let mounted = Arc::new(mounted);
        let notices = Arc::new(Notices::default());
        let keys = &mounted.keys;
        let served = Served {
            fs: mounted.fs.clone(),
            waiting: (!keys.is_local()).then(|| Waiting::new(keys.deadline())),
        };
        notices.start(device.clone());
        let adapter = Arc::new(Adapter {
            served,
            notices: notices.clone(),
        });
        let drop_pages = Box::new(move |ino| notices.drop_pages_now(ino));
        let (fs, keys) = (mounted.fs.clone(), mounted.keys.clone());
        let keeper = KeyKeeper::new(fs, keys, terms, drop_pages);
        mount::tune(mountpoint);
        Ok(Self {
            mounted,
            device,
            adapter,
            rings,
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
        let served = serve(&self.device, &self.adapter, self.rings);
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

/// Serves until the filesystem is unmounted.
fn serve(
    device: &Arc<FuseDevice>,
    adapter: &Arc<Adapter>,
    rings: Option<Rings>,
) -> Result<(), SessionError> {
    let cores = thread::available_parallelism().map_or(2, |n| n.get());
    let mut threads = Vec::new();
    // With rings only what nobody waits for comes from the device.
    let readers = match &rings {
        Some(_) => 1,
        None => (2 * cores).clamp(4, 16),
    };
    for i in 0..readers {
        let adapter = adapter.clone();
        let device = match i {
            0 => device.clone(),
            _ => device.another().map_or_else(|_| device.clone(), Arc::new),
        };
        let thread = thread::Builder::new().name(format!("kmsfs-fuse-{i}"));
        let thread = thread.spawn(move || device::serve(device, &adapter));
        threads.push(thread.map_err(SessionError::Connection)?);
    }
    if let Some(rings) = rings {
        let more = rings.start(device, adapter);
        threads.extend(more.map_err(SessionError::Connection)?);
    }
    let ends = threads.into_iter().map(|thread| match thread.join() {
        Ok(end) => end.map_err(SessionError::Connection),
        Err(_) => Err(SessionError::Connection(io::ErrorKind::Other.into())),
    });
    ends.fold(Ok(()), Result::and)
}
