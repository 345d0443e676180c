//! The `strata` command: flags and settings, then a node.

use std::process::ExitCode;

fn main() -> ExitCode {
    strata::cli::main(strata::node::run)
}
