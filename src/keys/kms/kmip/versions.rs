//! The keys that are versions of one name.
//!
//! A key is rotated by another one that takes over its name: by Re-key, which
//! takes the name from the old key and links it to the new one, or, where a
//! server lets several keys have one name, by making one more. So the newest
//! active key of the name is the one to wrap with. An older one is believed to
//! be a version if it has the name or its links lead to a key that has: a
//! wrapped key comes from storage that others may write to, and must not choose
//! among all keys that this client may use.

use std::collections::HashSet;
use std::time::Instant;

use parking_lot::Mutex;

use super::fault;
use super::operation::{self, Operation};
use super::server::Server;
use crate::keys::KeyError;
use crate::keys::kms::retry::Deadline;

/// The most links that are followed.
const MOST_LINKS: usize = 64;
/// The most ids that are remembered.
const MOST_KNOWN: usize = 4096;

/// The versions of a name, as far as they were met.
pub(super) struct Versions {
    name: String,
    /// The name's URI in errors.
    key: String,
    met: Mutex<Met>,
    /// The newest version, as it was looked up last, and when that was begun.
    found: Mutex<Option<(Instant, String)>>,
}

#[derive(Default)]
struct Met {
    newest: Option<String>,
    all: HashSet<String>,
}

impl Versions {
    pub(super) fn new(name: String, key: String) -> Self {
        Self {
            name,
            key,
            met: Mutex::default(),
            found: Mutex::default(),
        }
    }

    /// The id of the newest active key. Callers that come at once share what is
    /// looked up after they came.
    pub(super) fn newest(&self, server: &Server, deadline: Deadline) -> Result<String, KeyError> {
        let came = Instant::now();
        let Some(mut found) = self.found.try_lock_for(deadline.left()) else {
            return Err(KeyError::Unavailable {
                key: self.key.clone(),
                detail: "looking up its newest version takes too long".into(),
            });
        };
        if let Some((_, id)) = found.as_ref().filter(|(begun, _)| *begun >= came) {
            return Ok(id.clone());
        }
        let begun = Instant::now();
        let id = self.look_up_newest(server, deadline)?;
        *found = Some((begun, id.clone()));
        Ok(id)
    }

    fn look_up_newest(&self, server: &Server, deadline: Deadline) -> Result<String, KeyError> {
        let mut active = self.locate(server, true, deadline)?;
        let newest = match active.len() {
            0 => return Err(self.none_active(server, deadline)),
            1 => active.remove(0),
            _ => self.youngest(server, active, deadline)?,
        };
        let mut met = self.met.lock();
        met.remember(&newest);
        met.newest = Some(newest.clone());
        Ok(newest)
    }

    /// An error unless the key of that id is a version.
    pub(super) fn check(
        &self,
        server: &Server,
        id: &str,
        deadline: Deadline,
    ) -> Result<(), KeyError> {
        if self.met.lock().all.contains(id) {
            return Ok(());
        }
        let mut at = id.to_owned();
        for _ in 0..MOST_LINKS {
            let operation = Operation::GetAttributes { id: &at };
            let found = server.attributes(&at, deadline)?;
            let found = found.map_err(|refusal| refusal.about(&self.key, &operation))?;
            if found.names.contains(&self.name) {
                self.met.lock().remember(id);
                return Ok(());
            }
            match found.replacement {
                Some(next) => at = next,
                None => break,
            }
        }
        Err(KeyError::Rejected {
            key: self.key.clone(),
            detail: format!("key {id:?} of the server is not a version of it"),
        })
    }

    fn locate(
        &self,
        server: &Server,
        active: bool,
        deadline: Deadline,
    ) -> Result<Vec<String>, KeyError> {
        let operation = Operation::Locate {
            name: &self.name,
            active,
        };
        let found = server.call(&operation, deadline, operation::ids)?;
        found.map_err(|refusal| refusal.about(&self.key, &operation))
    }

    /// The one that was made last; of those of one second, the greatest number.
    fn youngest(
        &self,
        server: &Server,
        ids: Vec<String>,
        deadline: Deadline,
    ) -> Result<String, KeyError> {
        let mut dated = Vec::new();
        for id in ids {
            let operation = Operation::GetAttributes { id: &id };
            let found = server.attributes(&id, deadline)?;
            let found = found.map_err(|refusal| refusal.about(&self.key, &operation))?;
            dated.push((found.made, id.len(), id));
        }
        let youngest = dated.into_iter().max();
        youngest.map_or_else(|| Err(self.missing()), |(_, _, id)| Ok(id))
    }

    /// Why there is no active key: the newest is in another state, or what was
    /// the newest cannot be seen any more.
    fn none_active(&self, server: &Server, deadline: Deadline) -> KeyError {
        let id = match self.locate(server, false, deadline) {
            Ok(ids) if ids.is_empty() => self.met.lock().newest.clone(),
            Ok(ids) => self.youngest(server, ids, deadline).ok(),
            Err(error) => return error,
        };
        let Some(id) = id else {
            return self.missing();
        };
        match server.attributes(&id, deadline) {
            Ok(Ok(found)) => {
                let state = found.state.and_then(|s| fault::about_state(s, &self.key));
                state.unwrap_or_else(|| self.missing())
            }
            Ok(Err(refusal)) => refusal.about(&self.key, &Operation::GetAttributes { id: &id }),
            Err(error) => error,
        }
    }

    fn missing(&self) -> KeyError {
        KeyError::NotFound {
            key: self.key.clone(),
            detail: "there is no active symmetric key of that name that this client may see".into(),
        }
    }
}

impl Met {
    fn remember(&mut self, id: &str) {
        if self.all.len() >= MOST_KNOWN {
            self.all.clear();
        }
        self.all.insert(id.to_owned());
    }
}
