//! Making a volume, and opening one for a mount.

use std::collections::{HashMap, HashSet};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::backing::{BackingFile, Errno, HostFile, dir};
use crate::content::identity::{to_recipient, to_wrapped};
use crate::content::replay::{Finder, replay};
use crate::content::{ChangeTimes, ContentError, Journal, KeySource, VolumeContext};
use crate::crypto::{DataKey, NameCipher, Suite, VolumeKeys, random};
use crate::format::config::{CONFIG_NAME, ConfigError, NameMode, Volume, VolumeConfig};
use crate::format::journal::JournalPage;
use crate::format::times::{self, TIMES_NAME};
use crate::format::{FormatError, Layout};
use crate::keys::{KeyContext, KeyError, KeyRing, KeyService, NewKey, WrappedKey};
use crate::sys::{durable, process};
use crate::types::{FileId, KeyLen, VolumeId};

use super::inode::InodeTable;
use super::names::write_dir_id;
use super::{Fs, FsError};

const JOURNALS: [&[u8]; 2] = [b"kmsfs.journal.0", b"kmsfs.journal.1"];

/// The most of a file of change times that is read.
const MOST_TIMES: u64 = 64 << 20;

/// Why a volume cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The backing directory cannot be used.
    #[error("{}: {error}", path.display())]
    Host {
        /// The file or directory.
        path: PathBuf,
        /// What the host said.
        error: Errno,
    },
    /// There is no configuration in it.
    #[error("{} is not a kmsfs volume", .0.display())]
    NotAVolume(PathBuf),
    /// `init` wants an empty directory.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// The configuration is of no use.
    #[error("{}: {error}", path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// What is wrong with it.
        error: ConfigError,
    },
    /// Another mount has the volume.
    #[error("{} is in use by another mount", .0.display())]
    InUse(PathBuf),
    /// The volume may be read by this build, but not written.
    #[error("the volume needs a newer kmsfs for writing")]
    WriteTooNew,
    /// The key that was unwrapped is not this volume's, or the configuration
    /// was changed.
    #[error("the volume key does not match the configuration")]
    WrongKey,
    /// Changes wait in the journal, and nothing can be written.
    #[error("the volume was not unmounted cleanly and the backing is read-only")]
    NeedsRecovery,
    /// No volume key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The journal could not be used.
    #[error("journal: {0}")]
    Journal(#[from] ContentError),
    /// Something in the root could not be used.
    #[error(transparent)]
    Fs(#[from] FsError),
}

type Result<T> = std::result::Result<T, OpenError>;

/// What a new volume is to be.
#[derive(Clone, Copy, Debug)]
pub struct InitOptions {
    /// How names are stored.
    pub names: NameMode,
    /// Length of data keys.
    pub key_len: KeyLen,
    /// Block size and length of headers.
    pub layout: Layout,
}

/// Makes a volume in the empty directory `backing`.
///
/// # Errors
/// `NotEmpty`, those of the host and of the key providers. A volume is made
/// whole or not at all: its configuration is written last.
pub fn init(backing: &Path, ring: &KeyRing, options: InitOptions) -> Result<Volume> {
    let host = |error| OpenError::Host {
        path: backing.to_owned(),
        error,
    };
    let root = dir::open_dir(dir::CWD, path_bytes(backing)).map_err(host)?;
    if !dir::list(&root).map_err(host)?.is_empty() {
        return Err(OpenError::NotEmpty(backing.to_owned()));
    }
    let mut volume = Volume {
        id: VolumeId(random::bytes()),
        suite: Suite::for_key_len(options.key_len).number(),
        layout: options.layout,
        names: options.names,
        commitment: [0; 32],
        keys: ring.uris().map(Into::into).collect(),
        recipients: Vec::new(),
        writable: true,
    };
    let context = volume_context(&volume);
    let (key, wrapped) = ring.generate(&context, KeyLen::Bits256)?;
    volume.recipients = wrapped.into_iter().map(to_recipient).collect();
    let keys = VolumeKeys::new(&volume.id.0, &key);
    volume.commitment = keys.commitment(&volume.committed_fields());
    if options.names == NameMode::Encrypted {
        write_dir_id(&root, crate::types::DirId(random::bytes()))?;
    }
    let json = VolumeConfig::new(&volume).to_json();
    let path = backing.join(CONFIG_NAME);
    durable::replace(&path, &json, 0o644).map_err(|e| OpenError::Host {
        path,
        error: Errno::from_io_error(&e).unwrap_or(Errno::IO),
    })?;
    dir::sync_dir(&root, false).map_err(host)?;
    Ok(volume)
}

/// A volume that was found and locked, but not yet unlocked.
pub struct Found {
    path: PathBuf,
    root: OwnedFd,
    /// What its configuration says.
    pub volume: Volume,
}

/// Reads the configuration of the volume in `backing`.
///
/// # Errors
/// `NotAVolume`, `Config`, those of the host.
pub fn find(backing: &Path) -> Result<Found> {
    let host = |error| OpenError::Host {
        path: backing.to_owned(),
        error,
    };
    let root = dir::open_dir(dir::CWD, path_bytes(backing)).map_err(host)?;
    let path = backing.join(CONFIG_NAME);
    let json = std::fs::read(&path).map_err(|e| {
        let error = Errno::from_io_error(&e).unwrap_or(Errno::IO);
        if dir::is_absent(error) {
            OpenError::NotAVolume(backing.to_owned())
        } else {
            OpenError::Host {
                path: path.clone(),
                error,
            }
        }
    })?;
    let (_, volume) =
        VolumeConfig::parse(&json).map_err(|error| OpenError::Config { path, error })?;
    Ok(Found {
        path: backing.to_owned(),
        root,
        volume,
    })
}

/// An open volume.
pub struct Mounted {
    /// Its filesystem.
    pub fs: Arc<Fs>,
    /// Its data keys.
    pub keys: Arc<KeyService>,
    /// The backing root, and with it the volume's lock.
    root: OwnedFd,
}

impl Found {
    /// Opens the volume: takes the lock, gets the volume key, replays what an
    /// unclean end left in the journal.
    ///
    /// # Errors
    /// `InUse`, `WrongKey`, `NeedsRecovery`, those of the key providers and of
    /// the host.
    pub fn open(self, keys: Arc<KeyService>, read_only: bool) -> Result<Mounted> {
        let volume = self.volume.clone();
        let suite = Suite::from_number(volume.suite);
        let suite = suite.ok_or_else(|| OpenError::Config {
            path: self.path.join(CONFIG_NAME),
            error: ConfigError::Format(FormatError::UnknownSuite(volume.suite)),
        })?;
        if !volume.writable && !read_only {
            return Err(OpenError::WriteTooNew);
        }
        match dir::lock(&self.root) {
            Err(Errno::WOULDBLOCK) => return Err(OpenError::InUse(self.path)),
            other => other.map_err(|error| self.host_error(error))?,
        }
        let names = NameCipher::new(self.volume_keys(&keys)?);
        let (journal, epoch, unclean) = self.start_journal(read_only)?;
        let source = ServiceKeys {
            service: keys.clone(),
            volume: volume.id,
            len: suite.key_len(),
        };
        let context = VolumeContext {
            volume,
            suite,
            keys: Box::new(source),
            journal,
            change_times: self.change_times(read_only),
            epoch,
            unclean,
            locked: Default::default(),
        };
        let root = self
            .root
            .try_clone()
            .map_err(|e| self.host_error(Errno::from_io_error(&e).unwrap_or(Errno::MFILE)))?;
        let path_fd = dir::open_path(&self.root, b".").map_err(|e| self.host_error(e))?;
        let descriptors = process::descriptor_limit() as usize;
        let fs = Fs {
            volume: Arc::new(context),
            names,
            inodes: InodeTable::new(path_fd, descriptors / 10 * 7)?,
            files: Default::default(),
            handles: Default::default(),
            listings: Default::default(),
            overflow: Default::default(),
            siblings: Default::default(),
            forgotten: Default::default(),
            times_are_kept: Default::default(),
        };
        Ok(Mounted {
            fs: Arc::new(fs),
            keys,
            root,
        })
    }

    fn host_error(&self, error: Errno) -> OpenError {
        OpenError::Host {
            path: self.path.clone(),
            error,
        }
    }

    fn volume_keys(&self, keys: &KeyService) -> Result<VolumeKeys> {
        let wrapped: Vec<_> = self.volume.recipients.iter().map(to_wrapped).collect();
        let key = keys.unwrap(&volume_context(&self.volume), &wrapped)?;
        if key.len() != KeyLen::Bits256 {
            return Err(OpenError::WrongKey);
        }
        let derived = VolumeKeys::new(&self.volume.id.0, &key);
        if derived.commitment(&self.volume.committed_fields()) != self.volume.commitment {
            return Err(OpenError::WrongKey);
        }
        Ok(derived)
    }

    /// The change times that an earlier mount left.
    fn change_times(&self, read_only: bool) -> ChangeTimes {
        let read = || -> crate::backing::Result<_> {
            let file = HostFile::new(match read_only {
                true => dir::open_file(&self.root, TIMES_NAME, false)?,
                // Made now, as there may be no room for it at the end.
                false => dir::create(&self.root, TIMES_NAME, 0o600, false)?,
            });
            let mut bytes = vec![0; file.len()?.min(MOST_TIMES) as usize];
            let read = file.read_at(&mut [IoSliceMut::new(&mut bytes)], 0)?;
            Ok(times::decode(&bytes[..read]))
        };
        match read() {
            Ok(times) => ChangeTimes::new(times),
            Err(error) => {
                if !dir::is_absent(error) {
                    log::warn!("change times of the last mount: {error}");
                }
                ChangeTimes::default()
            }
        }
    }

    fn start_journal(&self, read_only: bool) -> Result<(Option<Arc<Journal>>, u32, Vec<u32>)> {
        // Roots of two filesystems often have the same number, so the time of
        // birth goes in as well.
        let root = dir::stat(&self.root).map_err(|e| self.host_error(e))?;
        let root_ino = root.stx_ino ^ (super::attr::generation(&root) << 32);
        let mut files: Vec<Arc<dyn BackingFile>> = Vec::new();
        for name in JOURNALS {
            match dir::create(&self.root, name, 0o600, false) {
                Ok(fd) => files.push(Arc::new(HostFile::new(fd))),
                Err(Errno::ROFS | Errno::ACCESS | Errno::PERM) if read_only => {
                    return self.read_only_journal();
                }
                Err(error) => return Err(self.host_error(error)),
            }
        }
        // Their names have to outlive a crash as much as what is in them.
        dir::sync_dir(&self.root, false).map_err(|e| self.host_error(e))?;
        let files: [Arc<dyn BackingFile>; 2] = files.try_into().ok().expect("two names");
        let mut finder = Walk(&self.root);
        let (id, layout) = (self.volume.id, self.volume.layout);
        let recovered = replay(&files, id, layout, root_ino, &mut finder)?;
        if recovered.blocks > 0 {
            log::info!("journal: {} blocks put in place", recovered.blocks);
        }
        if read_only {
            return Ok((None, 0, recovered.unclean));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |d| d.as_secs() as u32);
        let page = JournalPage {
            volume: id,
            generation: 0,
            epoch: now.max(recovered.epoch.saturating_add(1)),
            root_ino,
            unclean: recovered.unclean,
        };
        let (epoch, unclean) = (page.epoch, page.unclean.clone());
        let descriptors = process::descriptor_limit() as usize / 5;
        Ok((
            Some(Journal::start(files, page, descriptors)?),
            epoch,
            unclean,
        ))
    }

    /// On a backing that cannot be written: fine if nothing waits to be.
    fn read_only_journal(&self) -> Result<(Option<Arc<Journal>>, u32, Vec<u32>)> {
        let mut unclean = Vec::new();
        for name in JOURNALS {
            let fd = match dir::open_file(&self.root, name, false) {
                Ok(fd) => HostFile::new(fd),
                Err(error) if dir::is_absent(error) => continue,
                Err(error) => return Err(self.host_error(error)),
            };
            let mut bytes = vec![0; crate::format::journal::PAGE];
            fd.read_at(&mut [IoSliceMut::new(&mut bytes)], 0)
                .map_err(|e| self.host_error(e))?;
            let page = JournalPage::decode(&bytes, crate::crypto::sha256);
            if let Some(page) = page.map_err(ContentError::from)? {
                if page.generation != 0 {
                    return Err(OpenError::NeedsRecovery);
                }
                unclean.extend(page.unclean);
            }
        }
        Ok((None, 0, unclean))
    }
}

impl Mounted {
    /// Makes everything durable that has come here, but leaves the epoch open:
    /// for an end while requests may still be under way.
    ///
    /// # Errors
    /// Those of the host.
    pub fn make_durable(&self) -> Result<()> {
        if let Some(journal) = &self.fs.volume.journal {
            journal.commit()?;
        }
        dir::sync_all(&self.root).map_err(|e| OpenError::Fs(FsError::Host(e)))
    }

    /// Makes everything durable and ends the epoch cleanly.
    ///
    /// # Errors
    /// Those of the host; the next mount then replays the journal.
    pub fn close(&self) -> Result<()> {
        if let Some(journal) = &self.fs.volume.journal {
            for inode in self.fs.inodes.regular_files() {
                self.fs.restore_times(&inode);
            }
            journal.close(|| {
                // Last, since putting blocks in place moves the host's.
                if let Err(error) = self.store_change_times() {
                    log::warn!("change times for the next mount: {error}");
                }
                Ok(dir::sync_all(&self.root)?)
            })?;
        }
        Ok(())
    }

    fn store_change_times(&self) -> crate::backing::Result<()> {
        let times = self.fs.volume.change_times.all();
        let file = HostFile::new(dir::create(&self.root, TIMES_NAME, 0o600, false)?);
        file.set_len(0)?;
        file.write_at(&mut [IoSlice::new(&times::encode(&times))], 0)
    }
}

/// What the volume's own key is bound to.
pub(super) fn volume_context(volume: &Volume) -> KeyContext {
    KeyContext {
        volume: volume.id,
        file: volume.key_file_id(),
    }
}

fn path_bytes(path: &Path) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
}

/// The volume's data keys, as content asks for them.
struct ServiceKeys {
    service: Arc<KeyService>,
    volume: VolumeId,
    len: KeyLen,
}

impl ServiceKeys {
    fn context(&self, file: FileId) -> KeyContext {
        KeyContext {
            volume: self.volume,
            file,
        }
    }
}

impl KeySource for ServiceKeys {
    fn generate(&self) -> std::result::Result<NewKey, KeyError> {
        self.service.generate(self.volume, self.len)
    }

    fn unwrap(
        &self,
        file: FileId,
        wrapped: &[WrappedKey],
    ) -> std::result::Result<Arc<DataKey>, KeyError> {
        self.service.get(&self.context(file), wrapped)
    }

    fn prefetch(&self, wanted: Vec<(FileId, Vec<WrappedKey>)>) {
        let with_context = |(file, wrapped)| (self.context(file), wrapped);
        let wanted = wanted.into_iter().map(with_context).collect();
        self.service.prefetch(wanted);
    }

    fn renew(
        &self,
        file: FileId,
        wrapped: &[WrappedKey],
    ) -> std::result::Result<Arc<DataKey>, KeyError> {
        self.service.refresh(&self.context(file), wrapped)
    }

    fn is_local(&self) -> bool {
        self.service.is_local()
    }
}

type Visit<'a> = &'a mut dyn FnMut(&OwnedFd, &[u8], u64) -> std::result::Result<(), ContentError>;

/// Finds backing files by walking the whole backing directory.
struct Walk<'a>(&'a OwnedFd);

impl Walk<'_> {
    /// Calls `each` with every regular file's directory, stored name and inode
    /// number.
    fn files(&self, each: Visit<'_>) -> std::result::Result<(), ContentError> {
        // Not opened before their turn: there may be more than descriptors.
        let root = Rc::new(dir::open_dir(self.0.as_fd(), b".")?);
        let mut waiting = vec![(root, c".".to_owned())];
        while let Some((parent, name)) = waiting.pop() {
            let open = || dir::open_dir(&*parent, name.to_bytes());
            let directory = Rc::new(with_access(&parent, name.to_bytes(), 0o700, open)?);
            for entry in dir::list(&*directory)? {
                let name = entry.name.to_bytes();
                let mut kind = entry.kind;
                if kind == dir::FileType::Unknown {
                    let mode = dir::stat_at(&*directory, name)?.stx_mode;
                    kind = dir::FileType::from_raw_mode(mode.into());
                }
                match kind {
                    dir::FileType::Directory => {
                        waiting.push((directory.clone(), entry.name.clone()));
                    }
                    dir::FileType::RegularFile => each(&directory, name, entry.ino)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

fn open_file(directory: &OwnedFd, name: &[u8]) -> crate::backing::Result<OwnedFd> {
    with_access(directory, name, 0o600, || {
        dir::open_file(directory, name, true)
    })
}

/// Opens something that its owner may have closed to itself, on a mount that
/// runs as that owner: what waits in the journal has to be written all the same.
fn with_access(
    directory: &OwnedFd,
    name: &[u8],
    bits: u32,
    open: impl Fn() -> crate::backing::Result<OwnedFd>,
) -> crate::backing::Result<OwnedFd> {
    match open() {
        Err(Errno::ACCESS) => dir::with_access(dir::open_path(directory, name)?, bits, open),
        other => other,
    }
}

impl Finder for Walk<'_> {
    fn by_inode(
        &mut self,
        inodes: &HashSet<u64>,
    ) -> crate::content::Result<HashMap<u64, Arc<dyn BackingFile>>> {
        let mut found: HashMap<u64, Arc<dyn BackingFile>> = HashMap::new();
        self.files(&mut |directory, name, ino| {
            if inodes.contains(&ino) && !found.contains_key(&ino) {
                let fd = open_file(directory, name)?;
                found.insert(ino, Arc::new(HostFile::new(fd)));
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn every_file(
        &mut self,
        each: &mut dyn FnMut(Arc<dyn BackingFile>) -> crate::content::Result<()>,
    ) -> crate::content::Result<()> {
        // kmsfs's own files are among them, and have no header.
        self.files(&mut |directory, name, _| {
            let fd = open_file(directory, name)?;
            each(Arc::new(HostFile::new(fd)))
        })
    }
}
