//! What the integration tests share: volumes, mounts, other users' eyes.
//!
//! With `KMSFS_TEST_DIR=/some/dir` a [`Mount`] is a fresh plain directory under
//! that one instead of a kmsfs mount: this is how the expectations themselves
//! are checked against ext4. Tests that need a daemon then skip.
//! `KMSFS_TEST_OPTIONS=LIST` adds mount options to every mount.
//! `KMSFS_NO_SKIP=1` turns every skip into a failure.
#![allow(dead_code, unreachable_pub)]

pub mod filter;
pub mod load;
pub mod loopfs;
pub mod pattern;
pub mod sys;
pub mod volume;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::mount::UnmountFlags;
use rustix::thread::CapabilitySet;
use tempfile::TempDir;

pub use sys::eventually;
pub use volume::{Volume, said, wait_for};

/// How long a daemon may take to start or to stop.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long a test may use one daemon, unless it says otherwise.
const DEADLINE: Duration = Duration::from_secs(180);

/// How a mount is made; the default is what most tests want.
#[derive(Clone, Default)]
pub struct Options {
    /// More `-o` options, after the ones every test mount has.
    pub mount: String,
    /// Further arguments of `kmsfs init`.
    pub init: Vec<String>,
    /// Further arguments of `kmsfs mount`.
    pub arguments: Vec<String>,
    /// Where the backing directory goes, if not among the temporary files.
    pub backing: Option<PathBuf>,
    /// Further variables in the environment of the commands.
    pub environment: Vec<(String, String)>,
    /// The daemon's RLIMIT_NOFILE.
    pub descriptors: Option<u64>,
    /// The daemon may not open file handles, as if it were not root's.
    pub no_handles: bool,
    /// The daemon is killed (and the test fails) after this long.
    pub deadline: Option<Duration>,
}

/// Whether the tests run on a plain directory instead of kmsfs.
pub fn is_plain() -> bool {
    std::env::var_os("KMSFS_TEST_DIR").is_some()
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    sys::euid() == 0
}

/// Says, past the test runner's capture, that the current test did not run.
pub fn skip(why: &str) {
    assert!(
        std::env::var_os("KMSFS_NO_SKIP").is_none(),
        "would be skipped: {why}"
    );
    say_skipped(why);
}

/// As [`skip`], for what no installation could change: it is said, and passes.
pub fn kernel_lacks(what: &str) {
    say_skipped(&format!("this kernel has no {what}"));
}

/// Says that a part of the current test did not run, and why.
pub fn say_skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let _ = rustix::io::write(
        rustix::stdio::stderr(),
        format!("SKIPPED {test}: {why}\n").as_bytes(),
    );
}

/// A number from the environment, for the lengths of long tests.
pub fn env_number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse().expect("a number in the environment")
    })
}

/// A temporary directory that every user can pass through.
pub fn temp_dir() -> TempDir {
    let dir = tempfile::Builder::new()
        .prefix("kmsfs-test-")
        .tempdir()
        .expect("temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    dir
}

/// The line of mountinfo of a mount point, if something is mounted there.
pub fn mount_line(point: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    table
        .lines()
        .rfind(|line| {
            line.split(' ')
                .nth(4)
                .is_some_and(|field| Path::new(field) == point)
        })
        .map(str::to_owned)
}

const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// Whether the kernel does as [`drop_caches`] asks: for root, and not in a container. If
/// not, it is said that something of the current test did not run.
pub fn can_drop_caches() -> bool {
    if !is_root() {
        skip("only root may drop caches");
        return false;
    }
    let can = fs::OpenOptions::new().write(true).open(DROP_CACHES).is_ok();
    if !can {
        say_skipped("may not drop caches");
    }
    can
}

/// Has the kernel forget clean pages (1), dentries and inodes (2) or both (3).
pub fn drop_caches(what: u8) {
    fs::write(DROP_CACHES, what.to_string()).expect("caches can be dropped");
}

/// Processes whose command line names `path`.
pub fn processes_naming(path: &Path) -> Vec<u32> {
    let wanted = path.to_str().expect("test paths are UTF-8");
    let own = std::process::id();
    fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid: &u32| {
            pid != own
                && fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(wanted))
        })
        .collect()
}

/// A number from /proc/PID/status, such as VmRSS (in KiB) or Threads.
pub fn process_status(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no {field} in the status"));
    line.split_whitespace()
        .next()
        .expect("a value")
        .parse()
        .expect("a number")
}

/// Field `number` of `/proc/PID/stat`, from the third one on (`proc_pid_stat(5)`).
pub fn process_stat(pid: u32, number: usize) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    // After the name, which may have anything in it.
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let field = rest.split_whitespace().nth(number - 3).expect("a field");
    field.parse().expect("a number")
}

/// How many descriptors a process has open.
pub fn descriptors_of(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the process lives")
        .count()
}

/// The names of a process's threads.
pub fn threads_of(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm"));
    let names = tasks.filter_map(|task| name(task.expect("readdir")).ok());
    names.map(|name| name.trim().to_owned()).collect()
}

/// A served mount of a volume of its own, or a plain directory in its place.
pub struct Mount {
    place: Place,
    options: Options,
}

enum Place {
    Plain(TempDir),
    Real {
        volume: Volume,
        daemon: Option<Daemon>,
    },
}

struct Daemon {
    process: Child,
    /// Dropping it calls the watchdog off.
    _watchdog: mpsc::Sender<()>,
}

impl Mount {
    /// Makes a volume and mounts it.
    pub fn new(options: Options) -> Mount {
        if let Some(dir) = std::env::var_os("KMSFS_TEST_DIR") {
            let dir = tempfile::Builder::new()
                .prefix("t")
                .tempdir_in(dir)
                .expect("KMSFS_TEST_DIR");
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
            return Mount {
                place: Place::Plain(dir),
                options,
            };
        }
        let mut volume = Volume::bare(options.backing.clone());
        volume.set_environment(options.environment.clone());
        volume.init(&options.init);
        Mount::of(volume, options)
    }

    /// Mounts a volume that already exists.
    pub fn of(volume: Volume, options: Options) -> Mount {
        let mut mount = Mount {
            place: Place::Real {
                volume,
                daemon: None,
            },
            options,
        };
        mount.start();
        mount
    }

    /// A mount with the default options.
    pub fn simple() -> Mount {
        Mount::new(Options::default())
    }

    /// A mount that is certainly kmsfs; `None`, with a message, where the tests
    /// run on a plain directory.
    pub fn real(options: Options) -> Option<Mount> {
        if is_plain() {
            skip("needs a kmsfs mount");
            return None;
        }
        Some(Mount::new(options))
    }

    /// The directory under test.
    pub fn path(&self) -> &Path {
        match &self.place {
            Place::Plain(dir) => dir.path(),
            Place::Real { volume, .. } => volume.point(),
        }
    }

    /// A path in the directory under test.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// The volume behind a real mount.
    pub fn volume(&self) -> &Volume {
        match &self.place {
            Place::Plain(_) => panic!("a plain directory has no volume"),
            Place::Real { volume, .. } => volume,
        }
    }

    /// Where the ciphertext lies.
    pub fn backing(&self) -> &Path {
        self.volume().backing()
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        match &self.place {
            Place::Real {
                daemon: Some(daemon),
                ..
            } => daemon.process.id(),
            _ => panic!("no daemon runs"),
        }
    }

    /// What the daemon wrote to stderr so far, over all its runs.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.volume().root().join("daemon.log")
    }

    /// Starts the daemon and waits until the mount answers.
    pub fn start(&mut self) {
        let options = self.options.clone();
        let Place::Real { volume, daemon } = &mut self.place else {
            return;
        };
        let log = volume.root().join("daemon.log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("log");
        assert!(daemon.is_none(), "already mounted");
        let mut command = volume.kmsfs();
        command.args(["mount", "-f"]);
        let listed = mount_options(volume.user().is_none(), &options.mount);
        if !listed.is_empty() {
            command.args(["-o", &listed]);
        }
        command.args(&options.arguments);
        command.arg(volume.backing()).arg(volume.point());
        command.stdout(Stdio::null()).stderr(log);
        if let Some(count) = options.descriptors {
            limit_descriptors_of(&mut command, count);
        }
        if options.no_handles {
            forbid_handles_to(&mut command);
        }
        let mut process = command.spawn().expect("kmsfs runs");
        let mut ended = None;
        let serves = eventually(PATIENCE, || {
            ended = process.try_wait().expect("wait");
            ended.is_some() || volume.is_mounted()
        });
        let watchdog = watch(
            process.id(),
            volume.point(),
            options.deadline.unwrap_or(DEADLINE),
        );
        *daemon = Some(Daemon {
            process,
            _watchdog: watchdog,
        });
        let point = volume.point().to_owned();
        if let Some(status) = ended {
            panic!("kmsfs mount ended with {status}:\n{}", self.log());
        }
        assert!(
            serves,
            "nothing mounted after {PATIENCE:?}:\n{}",
            self.log()
        );
        // Another user's mount answers that user alone.
        match volume.user() {
            None => fs::metadata(point),
            Some(uid) => sys::as_user(uid, uid, &[], || fs::metadata(point)),
        }
        .expect("the mount answers");
    }

    /// Unmounts cleanly; says what was not clean about it.
    fn stop(&mut self) -> Result<(), String> {
        let Place::Real { volume, daemon } = &mut self.place else {
            return Ok(());
        };
        let Some(mut daemon) = daemon.take() else {
            return Ok(());
        };
        let mut last = String::new();
        let gone = eventually(PATIENCE, || {
            if !volume.is_mounted() {
                return true;
            }
            let output = volume.kmsfs().arg("umount").arg(volume.point()).output();
            last = said(&output.expect("kmsfs runs"));
            !volume.is_mounted()
        });
        if !gone {
            let _ = rustix::mount::unmount(volume.point(), UnmountFlags::DETACH);
        }
        let status = wait_for(&mut daemon.process, PATIENCE);
        if status.is_none() {
            let _ = daemon.process.kill();
            let _ = daemon.process.wait();
        }
        let log = self.log();
        if !gone {
            return Err(format!("still mounted: {last}\n{log}"));
        }
        match status {
            None => Err(format!("the daemon outlived its mount\n{log}")),
            Some(status) if !status.success() => {
                Err(format!("the daemon ended with {status}\n{log}"))
            }
            Some(_) if log.contains("panicked at") => Err(format!("the daemon panicked\n{log}")),
            Some(_) => Ok(()),
        }
    }

    /// Unmounts and mounts again, so that no cache is left.
    pub fn remount(&mut self) {
        self.unmount();
        self.start();
    }

    /// Unmounts; `start` mounts again.
    pub fn unmount(&mut self) {
        self.stop().expect("a clean unmount");
    }

    /// Mounts again with other options.
    pub fn remount_with(&mut self, options: Options) {
        self.unmount();
        self.options = options;
        self.start();
    }

    /// Kills the daemon without warning and clears the dead mount away.
    pub fn kill(&mut self) {
        let Place::Real { volume, daemon } = &mut self.place else {
            panic!("no daemon")
        };
        let mut daemon = daemon.take().expect("mounted");
        daemon.process.kill().expect("kill");
        let status = daemon.process.wait().expect("wait");
        assert_eq!(
            status.signal(),
            Some(libc::SIGKILL),
            "the daemon had already ended"
        );
        rustix::mount::unmount(volume.point(), UnmountFlags::DETACH).expect("umount -l");
        let log = self.log();
        assert!(!log.contains("panicked at"), "the daemon panicked\n{log}");
    }

    /// Kills the daemon without warning and mounts again.
    pub fn sigkill(&mut self) {
        self.kill();
        self.start();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let outcome = self.stop();
        if std::thread::panicking() {
            if let Place::Real { .. } = self.place {
                eprintln!("--- daemon log ---\n{}", self.log());
            }
        } else {
            outcome.expect("a clean unmount");
        }
    }
}

/// The `-o` list: root's mounts serve everyone under the kernel's checks.
fn mount_options(root: bool, more: &str) -> String {
    let base = if root {
        "allow_other,default_permissions,suid,dev"
    } else {
        ""
    };
    let all = std::env::var("KMSFS_TEST_OPTIONS").unwrap_or_default();
    let both: Vec<&str> = [base, &all, more]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect();
    both.join(",")
}

/// Kills a daemon that is still there after `limit` and cuts its connection, so
/// that whoever waits for it gets an error instead of hanging for ever.
fn watch(pid: u32, point: &Path, limit: Duration) -> mpsc::Sender<()> {
    let (off, wait) = mpsc::channel();
    let line = mount_line(point);
    std::thread::spawn(move || {
        if wait.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("watchdog: killing daemon {pid} after {limit:?}");
            sys::kill(pid, libc::SIGKILL);
            // A daemon with a thread stuck in the kernel needs more than that.
            let device = line
                .as_deref()
                .and_then(|line| line.split(' ').nth(2)?.split_once(':'));
            if let Some((_, minor)) = device {
                abort_connection(minor);
            }
        }
    });
    off
}

/// Has the kernel fail all that waits for a FUSE daemon, where root may ask so.
fn abort_connection(minor: &str) {
    use rustix::mount::{MountFlags, mount, unmount};
    let control = temp_dir();
    if mount("none", control.path(), "fusectl", MountFlags::empty(), None).is_ok() {
        let _ = fs::write(control.path().join(minor).join("abort"), "1");
        let _ = unmount(control.path(), UnmountFlags::DETACH);
    }
}

#[allow(unsafe_code)]
fn limit_descriptors_of(command: &mut Command, count: u64) {
    // SAFETY: setrlimit is safe to call between fork and exec.
    unsafe { command.pre_exec(move || sys::limit_descriptors(count)) };
}

#[allow(unsafe_code)]
fn forbid_handles_to(command: &mut Command) {
    let forbid = || {
        sys::without_capability(CapabilitySet::DAC_READ_SEARCH);
        Ok(())
    };
    // SAFETY: prctl is safe to call between fork and exec.
    unsafe { command.pre_exec(forbid) };
}

/// A small, seeded source of chance; prints nothing, knows its seed.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    /// From a seed; equal seeds give equal sequences.
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// From `KMSFS_SEED`, else from the clock; says which, for a failing test.
    pub fn from_env() -> Rng {
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = env_number(
            "KMSFS_SEED",
            u64::from(clock.expect("a clock").subsec_nanos()),
        );
        println!("KMSFS_SEED={seed}");
        Rng::new(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 11) % end
    }

    /// One of the elements.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).expect("an index")]
    }

    /// Some bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8))
            .flat_map(|_| self.next().to_le_bytes())
            .collect();
        bytes.truncate(len);
        bytes
    }
}

/// Incompressible bytes that depend on nothing but the arguments.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    Rng::new(seed).bytes(len)
}

/// Writes a whole file and has it durable.
pub fn write_synced(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).expect("create");
    file.write_all(bytes).expect("write");
    file.sync_all().expect("fsync");
}
