//! What happens to files on a mount when their keys are taken away: by the key
//! service, by its silence, by `kmsfs lock`. And who can see that it did.

#[path = "../common/mod.rs"]
mod common;
#[path = "../kms_servers/mod.rs"]
mod kms_servers;

mod audit;
mod lock;
mod memory;
mod outage;
mod revocation;
mod states;
mod status;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use common::{Mount, Options, said};
use kms_servers::alibaba::{ACCESS_KEY, KEY, Server, Trouble};

/// Skips a test where there is no mount to look at.
macro_rules! needs_mounts {
    () => {
        if $crate::common::is_plain() {
            return $crate::common::skip("needs a kmsfs mount");
        }
    };
}
pub(crate) use needs_mounts;

/// Seconds for which keys are kept in these tests.
const TTL: u64 = 3;
/// How long it may take until a change at the key service has taken effect.
const NOTICED: Duration = Duration::from_secs(TTL + 4);
const BLOCK: usize = 4096;

/// A mount whose keys come from the test server.
fn kms_mount(server: &Server, arguments: &[&str]) -> Mount {
    let uri = format!("alibabakms://{}/{KEY}?deadline=1&http=1", server.plain);
    let (id, secret) = ACCESS_KEY;
    let mut options = options(arguments);
    options.init = vec!["--key".into(), uri];
    options.environment = vec![
        ("ALIBABA_CLOUD_ACCESS_KEY_ID".into(), id.into()),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET".into(), secret.into()),
    ];
    Mount::new(options)
}

/// A mount whose keys come from a keystore.
fn local_mount(arguments: &[&str]) -> Mount {
    Mount::new(options(arguments))
}

fn options(arguments: &[&str]) -> Options {
    let mut all: Vec<String> = arguments.iter().map(|&a| a.to_owned()).collect();
    if !arguments.contains(&"--key-ttl") {
        all.extend(["--key-ttl".to_owned(), TTL.to_string()]);
    }
    Options {
        arguments: all,
        ..Options::default()
    }
}

/// The server answers no more, or again.
fn silence(server: &Server, silent: bool) {
    server.trouble(Trouble {
        calls: if silent { usize::MAX } else { 0 },
        refusal: Some((503, "ServiceUnavailableTemporary")),
        ..Trouble::default()
    });
}

/// Block number `index` of what these tests write.
fn block(index: u64) -> Vec<u8> {
    let mut block = vec![index as u8 ^ 0x5a; BLOCK];
    block[..8].copy_from_slice(&index.to_le_bytes());
    block
}

fn write_block(file: &File, index: u64) -> io::Result<()> {
    file.write_all_at(&block(index), index * BLOCK as u64)
}

fn read_block(file: &File, index: u64) -> io::Result<()> {
    let mut bytes = vec![0; BLOCK];
    file.read_exact_at(&mut bytes, index * BLOCK as u64)?;
    assert!(bytes == block(index), "block {index} is wrong");
    Ok(())
}

fn open_both(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

/// Repeats something until it fails, and gives the errno; panics if it does not
/// within `limit`.
fn until_it_fails(limit: Duration, mut what: impl FnMut() -> io::Result<()>) -> i32 {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Err(error) = what() {
            return error.raw_os_error().expect("an errno");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("it still works after {limit:?}");
}

/// Repeats something until it works; panics if it does not within `limit`.
fn until_it_works(limit: Duration, mut what: impl FnMut() -> io::Result<()>) {
    let end = Instant::now() + limit;
    loop {
        match what() {
            Ok(()) => return,
            Err(error) if Instant::now() > end => panic!("{error} after {limit:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Runs a command on the mount.
fn kmsfs(mount: &Mount, command: &[&str]) -> Output {
    let point = mount.path().to_str().expect("test paths are UTF-8");
    let arguments: Vec<&str> = command.iter().copied().chain([point]).collect();
    mount.volume().run(&arguments)
}

/// Runs a command on the mount, which must succeed, and gives its output.
fn kmsfs_ok(mount: &Mount, command: &[&str]) -> String {
    let output = kmsfs(mount, command);
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn status(mount: &Mount) -> serde_json::Value {
    serde_json::from_str(&kmsfs_ok(mount, &["status", "--json"])).expect("JSON")
}

fn errno<T>(result: io::Result<T>) -> i32 {
    let error = result.err().expect("a failure");
    error.raw_os_error().expect("an errno")
}
