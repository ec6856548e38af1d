//! The program: hands the command line to the library, and its exit code to the system.

use std::process::ExitCode;

/// musl's own allocator is slow, glibc's keeps what a burst took; mimalloc is neither.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    pgvalet::cli::main()
}
