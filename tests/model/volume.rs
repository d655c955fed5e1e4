//! A volume without a mount, and the host directory that it is compared with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kmsfs::format::Layout;
use kmsfs::format::config::NameMode;
use kmsfs::fs::{InitOptions, Mounted, volume};
use kmsfs::keys::registry::{open_ring, open_ring_for_init};
use kmsfs::keys::{CacheLimits, KeyService, PassphraseSource};
use kmsfs::types::KeyLen;
use tempfile::TempDir;

const SOURCE: PassphraseSource = PassphraseSource::Unattended;

/// What kind of volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// How names are stored.
    pub(crate) names: NameMode,
    /// Length of data keys.
    pub(crate) key_len: KeyLen,
    /// Block size and length of headers.
    pub(crate) sizes: (u32, u32),
}

/// The directories of a run.
pub(crate) struct Place {
    root: TempDir,
}

impl Place {
    /// With a new volume. In memory where that can be, since nothing here is
    /// about power cuts and every flush of a disk takes milliseconds.
    pub(crate) fn new(kind: Kind) -> Self {
        let memory = Path::new("/dev/shm");
        let chosen = std::env::var_os("KMSFS_MODEL_DIR").map(PathBuf::from);
        let root = match chosen {
            Some(dir) => tempfile::tempdir_in(dir),
            None => tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()),
        };
        let place = Self {
            root: root.expect("a temporary directory"),
        };
        for dir in [place.backing(), place.host()] {
            std::fs::create_dir(dir).expect("mkdir");
        }
        let keystore = place.root.path().join("keys");
        let uri = format!("local:?keystore={}", keystore.display());
        let ring = open_ring_for_init(&[uri], &SOURCE).expect("a key");
        let options = InitOptions {
            names: kind.names,
            key_len: kind.key_len,
            layout: Layout::new(kind.sizes.0, kind.sizes.1).expect("allowed sizes"),
        };
        volume::init(&place.backing(), &ring, options).expect("init");
        place
    }

    /// Where the ciphertext is.
    pub(crate) fn backing(&self) -> PathBuf {
        self.root.path().join("backing")
    }

    /// The plain directory.
    pub(crate) fn host(&self) -> PathBuf {
        self.root.path().join("host")
    }

    /// Opens the volume.
    pub(crate) fn open(&self) -> Mounted {
        let found = volume::find(&self.backing()).expect("a volume");
        let ring = open_ring(&found.volume.keys, &SOURCE).expect("its key");
        let keys = Arc::new(KeyService::new(ring, CacheLimits::default()));
        found.open(keys, false).expect("opens")
    }
}
