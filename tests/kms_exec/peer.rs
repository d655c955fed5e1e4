//! The sample plugin with keys of its own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use kmsfs::keys::kms::exec::{ExecProvider, ExecUri};
use kmsfs::keys::{KeyError, KeyProvider};
use serde_json::{Value, json};

use crate::conformance::{DEADLINE, Mood, Service};

pub(crate) const PLUGINS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kms_exec");

/// Keys, in a file that the plugin reads for each request.
pub(crate) struct Peer {
    dir: tempfile::TempDir,
}

impl Peer {
    pub(crate) fn new() -> Self {
        trust();
        let dir = tempfile::tempdir().unwrap();
        let peer = Self { dir };
        peer.write(&json!({ "keys": { "kek": { "versions": { "9": "11".repeat(32) } } } }));
        peer
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state.json")
    }

    fn write(&self, state: &Value) {
        // At once, as the plugin may read it meanwhile.
        let new = self.dir.path().join("state.json.test");
        std::fs::write(&new, state.to_string()).unwrap();
        std::fs::rename(new, self.state()).unwrap();
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut state = serde_json::from_slice(&std::fs::read(self.state()).unwrap()).unwrap();
        change(&mut state);
        self.write(&state);
    }

    pub(crate) fn uri(&self, key: &str) -> String {
        self.uri_of(&Path::new(PLUGINS).join("plugin.py"), key)
    }

    pub(crate) fn uri_of(&self, program: &Path, key: &str) -> String {
        let (program, state) = (program.display(), self.state());
        let seconds = DEADLINE.as_secs();
        format!(
            "exec:{program}?key={key}&arg={}&deadline={seconds}",
            state.display()
        )
    }

    /// A plugin that is this shell script.
    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let file = scripts().join(format!("{name}-{}", self.unique()));
        std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o700)).unwrap();
        file
    }

    fn unique(&self) -> String {
        let name = self.dir.path().file_name().unwrap().to_string_lossy();
        name.trim_start_matches('.').to_owned()
    }
}

/// Where the tests' own plugins are made.
pub(crate) fn scripts() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins")
}

/// What `KMSFS_PLUGIN_PATH` has for the tests.
pub(crate) fn trusted() -> String {
    format!("{PLUGINS}:{}", scripts().display())
}

#[allow(unsafe_code)]
fn trust() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::fs::create_dir_all(scripts()).unwrap();
        // SAFETY: nothing in this program reads the environment but through the
        // standard library, which takes its lock.
        unsafe {
            std::env::set_var("KMSFS_PLUGIN_PATH", trusted());
            std::env::set_var("SECRET", "a-secret-of-kmsfs");
        }
    });
}

pub(crate) fn open(uri: &str) -> Result<Arc<dyn KeyProvider>, KeyError> {
    Ok(Arc::new(ExecProvider::open(&ExecUri::parse(uri)?)?))
}

impl Service for Peer {
    fn provider(&self) -> Arc<dyn KeyProvider> {
        open(&self.uri("kek")).unwrap()
    }

    fn provider_of_missing_key(&self) -> Arc<dyn KeyProvider> {
        open(&self.uri("nosuch")).unwrap()
    }

    fn unreachable_provider(&self) -> Option<Arc<dyn KeyProvider>> {
        let dead = self.script("dead", "exit 1");
        Some(open(&self.uri_of(&dead, "kek")).unwrap())
    }

    fn set_enabled(&self, enabled: bool) -> bool {
        self.change(|state| state["keys"]["kek"]["disabled"] = json!(!enabled));
        true
    }

    fn delete(&self) -> bool {
        self.change(|state| state["keys"] = json!({}));
        true
    }

    fn rotate(&self) -> bool {
        self.change(|state| state["keys"]["kek"]["versions"]["10"] = json!("22".repeat(32)));
        true
    }

    fn set_allowed(&self, allowed: bool) -> bool {
        self.change(|state| state["keys"]["kek"]["denied"] = json!(!allowed));
        true
    }

    fn set_mood(&self, mood: Mood) -> bool {
        let trouble = |kind: &str, left: usize| {
            let left = left.min(1_000_000);
            json!({ "kind": kind, "left": left })
        };
        let trouble = match mood {
            Mood::Well => trouble("none", 0),
            Mood::Throttling(calls) => trouble("throttled", calls),
            Mood::Failing(calls) => trouble("failing", calls),
            Mood::Slow(delay) => {
                let mut slow = trouble("slow", usize::MAX);
                slow["seconds"] = json!(delay.as_secs_f64());
                slow
            }
            Mood::Garbage => trouble("garbage", usize::MAX),
            Mood::Oversized => trouble("oversized", usize::MAX),
            Mood::CutOff(calls) => trouble("dying", calls),
        };
        self.change(|state| state["trouble"] = trouble);
        true
    }

    fn end_credentials(&self) -> bool {
        // They are the plugin's own matter.
        false
    }
}
