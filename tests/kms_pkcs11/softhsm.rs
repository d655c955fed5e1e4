//! A token of SoftHSM2, and its owner, who changes its keys.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use kmsfs::keys::kms::pkcs11::{Pkcs11Provider, Pkcs11Uri};
use kmsfs::keys::{KeyError, KeyProvider, PassphraseSource};

use crate::conformance::{DEADLINE, Mood, Service};

pub(crate) const MODULE: &str = "/usr/lib/softhsm/libsofthsm2.so";
pub(crate) const PIN: &str = "73519";
const OFFICER: &str = "5678";
const LABEL: &str = "kek";

/// The module, with a token directory of this process. Starting without
/// SoftHSM2 is a failure: scripts/install-kms-servers installs it.
fn module() -> &'static Pkcs11 {
    static MODULE_AND_TOKENS: OnceLock<(Pkcs11, tempfile::TempDir)> = OnceLock::new();
    let start = || {
        let dir = tempfile::tempdir().unwrap();
        let tokens = dir.path().join("tokens");
        std::fs::create_dir(&tokens).unwrap();
        let configuration = dir.path().join("softhsm2.conf");
        let text = format!(
            "directories.tokendir = {}\nlog.level = ERROR\n",
            tokens.display()
        );
        std::fs::write(&configuration, text).unwrap();
        set_environment("SOFTHSM2_CONF", &configuration);
        let context = Pkcs11::new(MODULE).expect("SoftHSM2; run scripts/install-kms-servers");
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        context.initialize(arguments).unwrap();
        (context, dir)
    };
    &MODULE_AND_TOKENS.get_or_init(start).0
}

/// Where the tokens are, for other programs.
pub(crate) fn configuration() -> PathBuf {
    module();
    std::env::var_os("SOFTHSM2_CONF").unwrap().into()
}

#[allow(unsafe_code)]
fn set_environment(name: &str, value: &Path) {
    // SAFETY: it happens once, before the module is loaded, which is the only
    // code here that reads the environment without the standard library's lock.
    unsafe { std::env::set_var(name, value) };
}

/// A token with the key "kek".
pub(crate) struct Token {
    pub(crate) label: String,
    slot: Slot,
    mechanism: &'static str,
    dir: tempfile::TempDir,
}

/// Making a token changes the list of slots.
static MAKING: Mutex<()> = Mutex::new(());

impl Token {
    pub(crate) fn new(mechanism: &'static str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(1);
        let label = format!("token {}", COUNT.fetch_add(1, Ordering::Relaxed));
        let module = module();
        let slot = {
            let _one = MAKING.lock().unwrap();
            let slots = module.get_slots_with_token().unwrap();
            let fresh = |slot: &&Slot| !module.get_token_info(**slot).unwrap().token_initialized();
            let slot = *slots.iter().find(fresh).unwrap();
            module.init_token(slot, &pin(OFFICER), &label).unwrap();
            let session = module.open_rw_session(slot).unwrap();
            session.login(UserType::So, Some(&pin(OFFICER))).unwrap();
            session.init_pin(&pin(PIN)).unwrap();
            session.logout().unwrap();
            slot
        };
        let dir = tempfile::tempdir().unwrap();
        let token = Self {
            label,
            slot,
            mechanism,
            dir,
        };
        token.write_pin(PIN);
        token.make_key(&[9]);
        token
    }

    pub(crate) fn pin_file(&self) -> PathBuf {
        self.dir.path().join("pin")
    }

    pub(crate) fn write_pin(&self, pin: &str) {
        std::fs::write(self.pin_file(), pin).unwrap();
    }

    pub(crate) fn uri(&self, label: &str) -> String {
        format!(
            "pkcs11:token={};object={label}?module-path={MODULE}&pin-source={}\
             &mechanism={}&deadline={}",
            self.label.replace(' ', "%20"),
            self.pin_file().display(),
            self.mechanism,
            DEADLINE.as_secs(),
        )
    }

    pub(crate) fn try_open(&self, uri: &str) -> Result<Arc<dyn KeyProvider>, KeyError> {
        let parsed = Pkcs11Uri::parse(uri)?;
        Ok(Arc::new(Pkcs11Provider::open(
            &parsed,
            &PassphraseSource::Unattended,
        )?))
    }

    /// Acts as the token's user, and then logs out, which logs out all sessions
    /// of this process.
    pub(crate) fn as_user<T>(&self, action: impl FnOnce(&Session) -> T) -> T {
        let session = module().open_rw_session(self.slot).unwrap();
        // A provider of this process may be logged in.
        let _ = session.login(UserType::User, Some(&pin(PIN)));
        let result = action(&session);
        session.logout().unwrap();
        result
    }

    pub(crate) fn make_key(&self, id: &[u8]) {
        self.as_user(|session| {
            let template = [
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Sensitive(true),
                Attribute::Extractable(false),
                Attribute::Modifiable(true),
                Attribute::Label(LABEL.into()),
                Attribute::Id(id.to_vec()),
                Attribute::ValueLen(32_usize.try_into().unwrap()),
                Attribute::Encrypt(true),
                Attribute::Decrypt(true),
                Attribute::Wrap(true),
                Attribute::Unwrap(true),
            ];
            session
                .generate_key(&Mechanism::AesKeyGen, &template)
                .unwrap();
        });
    }

    pub(crate) fn keys(&self, session: &Session) -> Vec<ObjectHandle> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::Label(LABEL.into()),
        ];
        session.find_objects(&template).unwrap()
    }

    pub(crate) fn set_pin(&self, old: &str, new: &str) {
        let session = module().open_rw_session(self.slot).unwrap();
        let _ = session.login(UserType::User, Some(&pin(old)));
        session.set_pin(&pin(old), &pin(new)).unwrap();
        session.logout().unwrap();
    }
}

fn pin(text: &str) -> AuthPin {
    AuthPin::new(text.into())
}

impl Service for Token {
    fn provider(&self) -> Arc<dyn KeyProvider> {
        self.try_open(&self.uri(LABEL)).unwrap()
    }

    fn provider_of_missing_key(&self) -> Arc<dyn KeyProvider> {
        self.try_open(&self.uri("nosuch")).unwrap()
    }

    fn unreachable_provider(&self) -> Option<Arc<dyn KeyProvider>> {
        let uri = self.uri(LABEL).replace("token%20", "absent%20");
        Some(self.try_open(&uri).unwrap())
    }

    fn set_enabled(&self, enabled: bool) -> bool {
        self.as_user(|session| {
            for key in self.keys(session) {
                let attributes = [
                    Attribute::Encrypt(enabled),
                    Attribute::Decrypt(enabled),
                    Attribute::Wrap(enabled),
                    Attribute::Unwrap(enabled),
                ];
                session.update_attributes(key, &attributes).unwrap();
            }
        });
        true
    }

    fn delete(&self) -> bool {
        self.as_user(|session| {
            for key in self.keys(session) {
                session.destroy_object(key).unwrap();
            }
        });
        true
    }

    fn rotate(&self) -> bool {
        // As a number greater than 9, as bytes less.
        self.make_key(&[1, 0]);
        true
    }

    fn set_allowed(&self, _: bool) -> bool {
        // A token has no rights but the PIN's, which is tested on its own.
        false
    }

    fn set_mood(&self, mood: Mood) -> bool {
        // SoftHSM2 is always well.
        mood == Mood::Well
    }

    fn end_credentials(&self) -> bool {
        self.as_user(|_| ());
        true
    }
}
