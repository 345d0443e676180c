//! The `strata` command: flags and settings, then a node.

use std::process::ExitCode;

fn main() -> ExitCode {
    strata::cli::main(|_| Err(std::io::Error::other("this build cannot run a node: it has the other subcommands only")))
}
