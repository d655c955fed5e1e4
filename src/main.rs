//! The `kmsfs` command.

use kmsfs::sys::wiping::Wiping;

#[global_allocator]
static ALLOCATOR: Wiping = Wiping;

fn main() -> std::process::ExitCode {
    kmsfs::cli::run()
}
