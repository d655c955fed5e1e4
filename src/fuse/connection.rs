//! What is agreed with the kernel when a mount begins.

use fuser::{InitFlags, KernelConfig};

const MAX_WRITE: u32 = 1 << 20;
const MAX_BACKGROUND: u16 = 128;
const CONGESTION: u16 = 96;

/// Asks for what kmsfs wants. Says whether the kernel caches writes, and keeps the
/// times of regular files then.
pub(super) fn configure(config: &mut KernelConfig) -> bool {
    let mut keeps_times = false;
    // One by one: asking for several fails if the kernel lacks any.
    for wanted in [
        InitFlags::FUSE_ASYNC_DIO,
        InitFlags::FUSE_WRITEBACK_CACHE,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        InitFlags::FUSE_CACHE_SYMLINKS,
        InitFlags::FUSE_POSIX_ACL,
        InitFlags::FUSE_DONT_MASK,
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        InitFlags::FUSE_EXPORT_SUPPORT,
    ] {
        if config.add_capabilities(wanted).is_err() {
            log::info!("this kernel has no {wanted:?}");
        } else if wanted == InitFlags::FUSE_WRITEBACK_CACHE {
            keeps_times = true;
        }
    }
    let _ = config.set_max_write(MAX_WRITE);
    if let Err(most) = config.set_max_readahead(MAX_WRITE) {
        let _ = config.set_max_readahead(most);
    }
    let _ = config.set_max_background(MAX_BACKGROUND);
    let _ = config.set_congestion_threshold(CONGESTION);
    keeps_times
}
