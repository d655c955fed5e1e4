//! What the process does to itself before it holds a key: no core dumps, no
//! tracing by its own user, memory locked, enough descriptors.

use std::sync::Once;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, geteuid, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// The most descriptors kmsfs asks for.
const MAX_DESCRIPTORS: u64 = 1_048_576;
/// Below this a mount may run out of descriptors under ordinary load.
const FEW_DESCRIPTORS: u64 = 16_384;

/// The user whose rights the process acts with.
pub fn effective_user() -> u32 {
    geteuid().as_raw()
}

/// The first two numbers of the kernel's version.
pub fn kernel_version() -> Option<(u32, u32)> {
    let system = rustix::system::uname();
    let release = system.release().to_str().ok()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Bytes of memory that the host has.
pub fn memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram * u64::from(info.mem_unit)
}

/// The process that a thread belongs to, while it lives.
pub fn process_of_thread(thread: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
    line?.trim().parse().ok()
}

/// Forbids core dumps of, and tracing into, this process. Every command that
/// may see a key calls it first.
pub fn forbid_dumps() {
    let undumpable = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let no_core = setrlimit(Resource::Core, none);
    if undumpable.is_err() || no_core.is_err() {
        static WARN: Once = Once::new();
        WARN.call_once(|| log::warn!("core dumps of this process could not be switched off"));
    }
}

/// Locks the process's memory, present and future, against swapping, where the
/// host lets it; says whether it did. Under a limit it does nothing: once the
/// limit is reached, every further allocation would fail. Key memory itself is
/// locked either way (see [`crate::sys::secret`]).
pub fn lock_memory() -> bool {
    if !may_lock_everything() {
        log::debug!("memory other than keys is not locked: no privilege and a memlock limit");
        return false;
    }
    let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    match mlockall(all) {
        Ok(()) => true,
        Err(error) => {
            static WARN: Once = Once::new();
            WARN.call_once(|| log::warn!("memory other than keys is not locked: {error}"));
            false
        }
    }
}

fn may_lock_everything() -> bool {
    getrlimit(Resource::Memlock).current.is_none()
        || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
}

/// Keeps the limits of whoever mounts from ending the mount, and what the host
/// grants this process from being granted to whoever uses the mount: users'
/// limits are the kernel's to check, their quotas the host's, and those do not
/// hold for a process with `CAP_SYS_RESOURCE`. To be called before threads are
/// started, and after [`raise_descriptor_limit`].
pub fn serve_under_others_limits() {
    let limit = getrlimit(Resource::Fsize);
    for current in [None, limit.maximum] {
        let maximum = current.and(limit.maximum);
        if setrlimit(Resource::Fsize, Rlimit { current, maximum }).is_ok() {
            break;
        }
    }
    if let Ok(mut sets) = capabilities(None) {
        let dropped = CapabilitySet::SYS_RESOURCE;
        if sets.effective.contains(dropped) || sets.permitted.contains(dropped) {
            sets.effective.remove(dropped);
            sets.permitted.remove(dropped);
            sets.inheritable.remove(dropped);
            if let Err(error) = set_capabilities(None, sets) {
                log::warn!("quotas do not hold on this mount: {error}");
            }
        }
    }
}

/// Raises the limit on open descriptors as far as the process may, and returns
/// the limit that now holds.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let now = limit.current.unwrap_or(u64::MAX);
    let hard = limit.maximum.unwrap_or(u64::MAX);
    let privileged =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_RESOURCE));
    let reachable = if privileged {
        hard.max(system_descriptor_limit())
    } else {
        hard
    };
    let wanted = reachable.min(MAX_DESCRIPTORS);
    if wanted > now {
        // A privileged process may still be refused inside a container, where
        // the hard limit is then as far as it goes.
        for target in [wanted, hard.min(MAX_DESCRIPTORS)] {
            let raised = Rlimit {
                current: Some(target),
                maximum: Some(target.max(hard)),
            };
            if target > now && setrlimit(Resource::Nofile, raised).is_ok() {
                break;
            }
        }
    }
    let reached = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    if reached < FEW_DESCRIPTORS {
        static WARN: Once = Once::new();
        WARN.call_once(|| {
            log::warn!(
                "at most {reached} files can be open at once; \
                 raise the descriptor limit (ulimit -n) to at least {FEW_DESCRIPTORS}"
            );
        });
    }
    reached
}

/// The most descriptors this process may have open.
pub fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// `fs.nr_open`: the most a privileged process may ask for.
fn system_descriptor_limit() -> u64 {
    std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::dumpable_behavior;

    #[test]
    fn threads_belong_to_their_process() {
        let thread = std::thread::spawn(|| {
            let own = rustix::thread::gettid().as_raw_nonzero().get() as u32;
            process_of_thread(own)
        });
        assert_eq!(thread.join().unwrap(), Some(std::process::id()));
        assert_eq!(process_of_thread(u32::MAX), None);
    }

    #[test]
    fn no_dumps_afterwards() {
        forbid_dumps();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core).current, Some(0));
    }

    #[test]
    fn the_descriptor_limit_reaches_what_is_allowed() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let reached = raise_descriptor_limit();
        assert!(reached >= hard.min(MAX_DESCRIPTORS));
        assert_eq!(
            raise_descriptor_limit(),
            reached,
            "a second call changes nothing"
        );
    }
}
