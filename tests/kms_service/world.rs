//! A volume with its key at the test server.

use std::fs;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use crate::common::volume::Volume;
use crate::common::{Mount, Options, is_plain, skip};
use crate::kms_servers::alibaba::{ACCESS_KEY, Conditions, KEY, Server};

/// The latency that most tests have.
pub(crate) const LATENCY: Duration = Duration::from_millis(10);

/// A server and a mount that depends on it.
pub(crate) struct World {
    pub(crate) server: Server,
    mount: Mount,
}

impl World {
    /// One with further arguments of `kmsfs mount`; `None` where the tests run
    /// on a plain directory.
    pub(crate) fn new(arguments: &[&str]) -> Option<World> {
        if is_plain() {
            skip("needs a kmsfs mount");
            return None;
        }
        let server = Server::start();
        let volume = Volume::bare(None);
        let home = volume.root().join("home/.alibabacloud");
        fs::create_dir_all(&home).unwrap();
        let (id, secret) = ACCESS_KEY;
        let credentials = format!(
            "[default]\ntype = access_key\naccess_key_id = {id}\naccess_key_secret = {secret}\n"
        );
        fs::write(home.join("credentials.ini"), credentials).unwrap();
        let uri = format!("alibabakms://{}/{KEY}?http=1", server.plain);
        let init = ["--names", "plain", "--key", &uri];
        volume.init(&init.map(str::to_owned));
        let options = Options {
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
            // The outages of `scripts/soak` take minutes.
            deadline: Some(Duration::from_secs(1800)),
            ..Options::default()
        };
        let mount = Mount::of(volume, options);
        Some(World { server, mount })
    }

    /// Runs `work` and gives the calls that were made meanwhile.
    pub(crate) fn calls_of(&self, work: impl FnOnce()) -> usize {
        let before = self.server.calls();
        work();
        self.server.calls() - before
    }

    pub(crate) fn conditions(&self, conditions: Conditions) {
        self.server.set_conditions(conditions);
    }

    pub(crate) fn stop(&self) {
        self.conditions(Conditions {
            stopped: true,
            ..Conditions::default()
        });
    }

    pub(crate) fn go_on(&self) {
        self.conditions(Conditions::default());
    }
}

impl Deref for World {
    type Target = Mount;

    fn deref(&self) -> &Mount {
        &self.mount
    }
}

impl DerefMut for World {
    fn deref_mut(&mut self) -> &mut Mount {
        &mut self.mount
    }
}

/// Makes files `00000`, `00001` and so on of 4 KiB.
pub(crate) fn make_files(dir: &Path, count: usize) {
    for i in 0..count {
        fs::write(dir.join(format!("{i:05}")), content(i)).unwrap();
    }
}

pub(crate) fn content(i: usize) -> Vec<u8> {
    vec![i as u8; 4096]
}
