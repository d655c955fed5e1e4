//! Loading a module, once for the process.

use std::path::{Path, PathBuf};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::slot::Slot;
use parking_lot::Mutex;

use super::uri::Pkcs11Uri;
use crate::keys::KeyError;

/// Directories, parted by colons, whose modules may be loaded besides those that
/// the system's packages install.
const TRUSTED: &str = "KMSFS_PKCS11_PATH";
/// The module, where the URI names none.
const DEFAULT: &str = "KMSFS_PKCS11_MODULE";
/// Where packages put modules; only root can change what is there.
const SYSTEM: [&str; 4] = ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt"];

/// A loaded module: a file of this process.
struct Loaded {
    path: PathBuf,
    process: u32,
    context: Pkcs11,
}

static LOADED: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

/// The module that `uri` names, ready for calls from this process. A child
/// process has to initialise it again, and gets it initialised.
pub(super) fn open(uri: &Pkcs11Uri) -> Result<Pkcs11, KeyError> {
    let path = locate(uri)?;
    let process = std::process::id();
    let mut loaded = LOADED.lock();
    if let Some(index) = loaded.iter().position(|module| module.path == path) {
        let module = &mut loaded[index];
        if module.process != process {
            initialize(&module.context, &path)?;
            module.process = process;
        }
        return Ok(module.context.clone());
    }
    let context = Pkcs11::new(&path).map_err(|error| unusable(&path, &error))?;
    initialize(&context, &path)?;
    loaded.push(Loaded {
        path,
        process,
        context: context.clone(),
    });
    Ok(context)
}

fn initialize(context: &Pkcs11, path: &Path) -> Result<(), KeyError> {
    let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
    match context.initialize(arguments) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        Err(error) => Err(unusable(path, &error)),
    }
}

/// The slot of the token that `uri` names, if it is there.
pub(super) fn find_slot(context: &Pkcs11, uri: &Pkcs11Uri) -> Result<Option<Slot>, Error> {
    for slot in context.get_slots_with_initialized_token()? {
        // A token that goes away meanwhile is another's matter.
        let Ok(token) = context.get_token_info(slot) else {
            continue;
        };
        let matches = |wanted: &Option<String>, found: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == found)
        };
        if matches(&uri.token, token.label()) && matches(&uri.serial, token.serial_number()) {
            return Ok(Some(slot));
        }
    }
    Ok(None)
}

/// The module's file. A volume's configuration may have been changed by whoever
/// can write to its backing directory, and must not choose code to run: only
/// modules from directories that the machine's owner chose are loaded.
fn locate(uri: &Pkcs11Uri) -> Result<PathBuf, KeyError> {
    let named = uri.module_path.clone();
    let path = match (named, &uri.module_name) {
        (Some(path), _) => path,
        (None, Some(name)) => search(name)?,
        (None, None) => return default_module(),
    };
    let found = path
        .canonicalize()
        .map_err(|error| KeyError::Configuration {
            detail: format!("cannot open the PKCS#11 module {}: {error}", path.display()),
            hint: Some("install the module, or correct module-path in the key uri".into()),
        })?;
    if directories()
        .iter()
        .any(|directory| found.starts_with(directory))
    {
        return Ok(found);
    }
    Err(KeyError::Configuration {
        detail: format!(
            "the PKCS#11 module {} is in no directory that modules may come from",
            path.display()
        ),
        hint: Some(format!(
            "if you trust it, set {TRUSTED}={}; a volume may not choose which code runs",
            path.parent().unwrap_or(Path::new("/")).display()
        )),
    })
}

fn default_module() -> Result<PathBuf, KeyError> {
    let named = std::env::var_os(DEFAULT).map(PathBuf::from);
    named.ok_or_else(|| KeyError::Configuration {
        detail: "the key uri names no PKCS#11 module".into(),
        hint: Some(format!(
            "add ?module-path=/path/to/module.so to the key uri, or set {DEFAULT}"
        )),
    })
}

fn directories() -> Vec<PathBuf> {
    let trusted = std::env::var_os(TRUSTED).unwrap_or_default();
    let own = std::env::split_paths(&trusted).filter(|path| path.is_absolute());
    let all = own.chain(SYSTEM.map(PathBuf::from));
    all.filter_map(|path| path.canonicalize().ok()).collect()
}

/// `libNAME.so` or `NAME.so` where packages put modules.
fn search(name: &str) -> Result<PathBuf, KeyError> {
    let architecture = format!("{}-linux-gnu", std::env::consts::ARCH);
    let below = ["", "pkcs11", "softhsm", &architecture];
    let candidates = directories().into_iter().flat_map(|directory| {
        below
            .map(|below| directory.join(below))
            .into_iter()
            .flat_map(|directory| {
                [format!("lib{name}.so"), format!("{name}.so")].map(|file| directory.join(file))
            })
    });
    let mut candidates = candidates;
    candidates
        .find(|path| path.is_file())
        .ok_or_else(|| KeyError::Configuration {
            detail: format!("no PKCS#11 module of the name {name:?} is installed"),
            hint: Some("give its file with module-path=/path/to/module.so".into()),
        })
}

fn unusable(path: &Path, error: &Error) -> KeyError {
    KeyError::Configuration {
        detail: format!(
            "the PKCS#11 module {} cannot be used: {error}",
            path.display()
        ),
        hint: Some(
            "see whether its own configuration is found, and other programs can use it".into(),
        ),
    }
}
