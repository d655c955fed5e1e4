//! A few connections for many callers.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use zeroize::Zeroizing;

use super::connection::{Connection, Trouble};
use super::fault;
use super::tls::Files;
use crate::keys::KeyError;
use crate::keys::kms::retry::Deadline;
use crate::keys::kms::uri::Endpoint;

/// The most connections: each costs the server a thread, mostly.
const MOST: usize = 8;
/// Shorter than servers keep idle connections.
const IDLE: Duration = Duration::from_secs(30);

/// Connections with one server.
pub(super) struct Pool {
    server: Endpoint,
    port: u16,
    files: Files,
    /// The key's URI in errors.
    key: String,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Default)]
struct State {
    process: u32,
    idle: Vec<(Connection, Instant)>,
    /// Connections that exist, and those being made.
    open: usize,
}

impl Pool {
    /// For a server; nothing is sent before the first call.
    ///
    /// # Errors
    /// `Configuration` if the files cannot be used.
    pub(super) fn new(
        server: Endpoint,
        port: u16,
        files: Files,
        key: String,
    ) -> Result<Self, KeyError> {
        // So that a bad file does not wait for the first call.
        files.read()?;
        Ok(Self {
            server,
            port,
            files,
            key,
            state: Mutex::default(),
            returned: Condvar::new(),
        })
    }

    /// Sends a request and gives its answer. A connection that the server has
    /// closed while it was idle is replaced: every request may be repeated.
    pub(super) fn exchange(
        &self,
        request: &[u8],
        deadline: Deadline,
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let mut place = self.take(deadline)?;
        if let Some(mut connection) = place.connection.take() {
            match connection.exchange(request, deadline) {
                Ok(answer) => {
                    place.connection = Some(connection);
                    return Ok(answer);
                }
                Err(Trouble::Broken(_)) => {}
                Err(trouble) => return Err(self.about(trouble)),
            }
        }
        let config = self.files.read()?;
        let answered = Connection::open(&self.server.host, self.port, config, deadline).and_then(
            |mut connection| {
                let answer = connection.exchange(request, deadline)?;
                Ok((connection, answer))
            },
        );
        let (connection, answer) = answered.map_err(|trouble| self.about(trouble))?;
        place.connection = Some(connection);
        Ok(answer)
    }

    fn about(&self, trouble: Trouble) -> KeyError {
        fault::about_connection(trouble, &self.key, &self.server.to_string())
    }

    /// A place in the pool, with a connection if one is idle.
    fn take(&self, deadline: Deadline) -> Result<Place<'_>, KeyError> {
        let process = std::process::id();
        let mut state = self.state.lock();
        if state.process != process {
            // Connections of the parent process: to close them is not ours.
            std::mem::take(&mut state.idle)
                .into_iter()
                .for_each(std::mem::forget);
            state.open = 0;
            state.process = process;
        }
        loop {
            while let Some((connection, since)) = state.idle.pop() {
                if since.elapsed() < IDLE {
                    return Ok(Place::new(self, Some(connection)));
                }
                state.open -= 1;
                connection.close();
            }
            if state.open < MOST {
                state.open += 1;
                return Ok(Place::new(self, None));
            }
            let left = deadline.left();
            if left.is_zero() || self.returned.wait_for(&mut state, left).timed_out() {
                return Err(KeyError::Unavailable {
                    key: self.key.clone(),
                    detail: format!("all {MOST} connections with {} are busy", self.server),
                });
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let own = state.process == std::process::id();
        for (connection, _) in state.idle.drain(..) {
            match own {
                true => connection.close(),
                false => std::mem::forget(connection),
            }
        }
    }
}

/// The right to one connection, given back however the call ends.
struct Place<'a> {
    pool: &'a Pool,
    connection: Option<Connection>,
}

impl<'a> Place<'a> {
    fn new(pool: &'a Pool, connection: Option<Connection>) -> Self {
        Self { pool, connection }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        match self.connection.take() {
            Some(connection) => state.idle.push((connection, Instant::now())),
            None => state.open -= 1,
        }
        drop(state);
        self.pool.returned.notify_one();
    }
}
