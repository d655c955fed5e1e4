//! A few sessions with one token, logged in, for many callers.

use std::path::Path;

use cryptoki::context::Pkcs11;
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::RawAuthPin;
use parking_lot::{Condvar, Mutex};

use super::fault::{Fault, Remedy};
use super::module;
use super::uri::Pkcs11Uri;
use crate::keys::kms::retry::Deadline;
use crate::keys::{KeyError, PassphraseSource};
use crate::sys::secret::{SLOT, Secret};

/// The most sessions open at once: tokens have few.
const MOST: usize = 8;

/// The sessions with the token that a URI names.
pub(super) struct Sessions {
    uri: Pkcs11Uri,
    /// The key's URI in errors.
    key: String,
    pin: Mutex<Pin>,
    pool: Mutex<Pool>,
    returned: Condvar,
}

/// A token is locked after a few wrong PINs, so one that was refused is not
/// tried again.
struct Pin {
    known: Option<Secret>,
    refused: bool,
}

#[derive(Default)]
struct Pool {
    process: u32,
    /// Counts the times that all sessions were given up.
    generation: u64,
    idle: Vec<Session>,
    open: usize,
}

impl Sessions {
    /// Finds the module and gets the PIN; the token may be absent yet.
    pub(super) fn new(uri: &Pkcs11Uri, source: &PassphraseSource) -> Result<Self, KeyError> {
        let key = uri.identity().to_string();
        let context = module::open(uri)?;
        let slot = module::find_slot(&context, uri)
            .map_err(|error| Fault::from_module(&error, &key).error)?;
        let token = slot.and_then(|slot| context.get_token_info(slot).ok());
        let asks = token
            .is_none_or(|token| token.login_required() && !token.protected_authentication_path());
        let known = match (&uri.pin_source, asks) {
            (_, false) => None,
            (Some(path), true) => Some(read_pin(path)?),
            (None, true) => {
                let name = uri.token.as_ref().or(uri.serial.as_ref());
                let prompt = format!("PIN of token {}", name.map_or("", |name| name));
                Some(keep(source.read(&prompt)?.expose())?)
            }
        };
        Ok(Self {
            uri: uri.clone(),
            key,
            pin: Mutex::new(Pin {
                known,
                refused: false,
            }),
            pool: Mutex::default(),
            returned: Condvar::new(),
        })
    }

    /// Calls `action` with a session of its own. One that turns out to be lost,
    /// with all others, is replaced once before the failure is reported.
    pub(super) fn with<T>(
        &self,
        deadline: Deadline,
        action: impl Fn(&Session) -> Result<T, Fault>,
    ) -> Result<T, KeyError> {
        match self.once(deadline, &action) {
            Err(fault) if fault.remedy == Remedy::NewSession => {
                self.once(deadline, &action).map_err(|fault| fault.error)
            }
            result => result.map_err(|fault| fault.error),
        }
    }

    fn once<T>(
        &self,
        deadline: Deadline,
        action: &impl Fn(&Session) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let (generation, idle) = self.take(deadline)?;
        let session = match idle {
            Some(session) => Ok(session),
            None => self.open(),
        };
        let (result, session) = match session {
            Ok(session) => (
                self.log_in(&session).and_then(|()| action(&session)),
                Some(session),
            ),
            Err(fault) => (Err(fault), None),
        };
        let lost = matches!(&result, Err(fault) if fault.remedy == Remedy::NewSession);
        self.give_back(generation, session, lost);
        result
    }

    /// A place in the pool, and a session if one is idle.
    fn take(&self, deadline: Deadline) -> Result<(u64, Option<Session>), Fault> {
        let process = std::process::id();
        let mut pool = self.pool.lock();
        if pool.process != process {
            // Sessions of the parent process; closing them here is not ours.
            std::mem::take(&mut pool.idle)
                .into_iter()
                .for_each(std::mem::forget);
            pool.open = 0;
            pool.process = process;
        }
        loop {
            if let Some(session) = pool.idle.pop() {
                return Ok((pool.generation, Some(session)));
            }
            if pool.open < MOST {
                pool.open += 1;
                return Ok((pool.generation, None));
            }
            if self
                .returned
                .wait_for(&mut pool, deadline.left())
                .timed_out()
            {
                return Err(Fault::of(self.unavailable("its sessions are all busy")));
            }
        }
    }

    fn give_back(&self, generation: u64, session: Option<Session>, lost: bool) {
        let mut surplus = Vec::new();
        let mut pool = self.pool.lock();
        if lost && pool.generation == generation {
            pool.generation += 1;
            surplus.append(&mut pool.idle);
            pool.open -= surplus.len();
        }
        match session {
            Some(session) if pool.generation == generation => pool.idle.push(session),
            other => {
                pool.open -= 1;
                surplus.extend(other);
            }
        }
        drop(pool);
        self.returned.notify_one();
        for session in surplus {
            // It is lost, mostly; dropping it would complain in the log.
            let _ = session.close();
        }
    }

    /// Runs `action` with the module and the token's slot.
    fn with_slot<T>(
        &self,
        action: impl FnOnce(&Pkcs11, Slot) -> Result<T, Error>,
    ) -> Result<T, Fault> {
        let context = module::open(&self.uri).map_err(Fault::of)?;
        let slot = module::find_slot(&context, &self.uri).map_err(|e| self.fault(&e))?;
        let slot = slot.ok_or_else(|| Fault::of(self.unavailable("its token is not there")))?;
        action(&context, slot).map_err(|e| self.fault(&e))
    }

    fn open(&self) -> Result<Session, Fault> {
        self.with_slot(|context, slot| context.open_ro_session(slot))
    }

    /// What the token says about itself.
    pub(super) fn describe(&self) -> Result<Vec<(&'static str, String)>, KeyError> {
        let token = self.with_slot(|context, slot| context.get_token_info(slot));
        let token = token.map_err(|fault| fault.error)?;
        Ok(vec![
            ("token", token.label().to_owned()),
            ("manufacturer", token.manufacturer_id().to_owned()),
            ("model", token.model().to_owned()),
            ("serial", token.serial_number().to_owned()),
        ])
    }

    /// The mechanisms that the token has.
    pub(super) fn mechanisms(&self) -> Result<Vec<cryptoki::mechanism::MechanismType>, KeyError> {
        let list = self.with_slot(|context, slot| context.get_mechanism_list(slot));
        list.map_err(|fault| fault.error)
    }

    /// Logs in unless the process is logged in already: all its sessions with a
    /// token are, or none.
    fn log_in(&self, session: &Session) -> Result<(), Fault> {
        let fault = |error: Error| self.fault(&error);
        let state = session.get_session_info().map_err(fault)?.session_state();
        if !matches!(state, SessionState::RoPublic | SessionState::RwPublic) {
            return Ok(());
        }
        let token = self.with_slot(|context, slot| context.get_token_info(slot))?;
        if !token.login_required() {
            return Ok(());
        }
        let mut pin = self.pin.lock();
        if pin.refused {
            self.renew(&mut pin)?;
        }
        let result = match &pin.known {
            Some(known) => {
                let raw = RawAuthPin::new(Box::new(known.to_vec()));
                session.login_with_raw(UserType::User, &raw)
            }
            None => session.login(UserType::User, None),
        };
        match result {
            Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            Err(error) => {
                pin.refused = matches!(
                    error,
                    Error::Pkcs11(
                        RvError::PinIncorrect
                            | RvError::PinInvalid
                            | RvError::PinLenRange
                            | RvError::PinExpired
                            | RvError::PinLocked,
                        _
                    )
                );
                Err(self.fault(&error))
            }
        }
    }

    /// Another PIN than the one that was refused, if there is one.
    fn renew(&self, pin: &mut Pin) -> Result<(), Fault> {
        let known = pin.known.as_deref();
        let fresh = match &self.uri.pin_source {
            Some(path) => Some(read_pin(path).map_err(Fault::of)?),
            None => None,
        };
        match fresh {
            Some(fresh) if known != Some(&*fresh) => {
                pin.known = Some(fresh);
                pin.refused = false;
                Ok(())
            }
            _ => Err(Fault::of(KeyError::Denied {
                key: self.key.clone(),
                detail: "the token refused the PIN before; it is not tried again, as that \
                         could lock the token"
                    .into(),
            })),
        }
    }

    pub(super) fn fault(&self, error: &Error) -> Fault {
        Fault::from_module(error, &self.key)
    }

    fn unavailable(&self, problem: &str) -> KeyError {
        KeyError::Unavailable {
            key: self.key.clone(),
            detail: problem.to_owned(),
        }
    }
}

fn read_pin(path: &Path) -> Result<Secret, KeyError> {
    keep(
        PassphraseSource::File(path.to_owned())
            .read("PIN")?
            .expose(),
    )
}

fn keep(pin: &[u8]) -> Result<Secret, KeyError> {
    if pin.len() > SLOT {
        return Err(KeyError::Configuration {
            detail: format!("the PIN is longer than {SLOT} bytes"),
            hint: None,
        });
    }
    Ok(Secret::copy_of(pin))
}
