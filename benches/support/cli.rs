//! A bench's command line. `cargo bench` passes `--bench`; `cargo test --all-targets` runs the same binary without it,
//! and only wants to know that it starts.

use std::{env, path::PathBuf, process::ExitCode};

use super::machine;

/// What the command line asks for.
pub(crate) enum Begin {
    /// Measure, with temporary files below this folder.
    Measure(PathBuf),
    /// All is said.
    Leave(ExitCode),
}

/// Reads the command line of the bench `name`. `about` says what it measures.
pub(crate) fn begin(name: &str, about: &str) -> Begin {
    let (mut dir, mut measure, mut awake) = (PathBuf::from(env!("CARGO_TARGET_TMPDIR")), false, false);
    let mut args = env::args_os().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--bench") => measure = true,
            Some("--awake") => awake = true,
            Some("--dir") => match args.next() {
                Some(given) => dir = given.into(),
                None => return refuse("--dir needs a folder"),
            },
            Some("--help" | "-h") => {
                println!(
                    "{about}\n\nUsage: cargo bench --bench {name} [-- --dir DIR] [--awake]\n\n  \
                     --dir DIR  folder for temporary data, on the disk to be measured [{}]\n  \
                     --awake    keep every processor from sleeping, by a thread of the lowest priority on each: a\n             \
                     virtual one is slow to wake, and at few connections that is what would be measured",
                    dir.display()
                );
                return Begin::Leave(ExitCode::SUCCESS);
            }
            // Without `--bench` this is a test run, whose other arguments are the test harness's.
            _ if !env::args_os().any(|arg| arg == "--bench") => {}
            _ => return refuse(&format!("unknown argument {}; see --help", arg.display())),
        }
    }
    if !measure {
        println!("{name}: measures nothing in a test run; use cargo bench --bench {name}");
        return Begin::Leave(ExitCode::SUCCESS);
    }
    if cfg!(debug_assertions) {
        return refuse("a debug build says nothing about speed; use cargo bench without --profile dev");
    }
    if awake && let Err(failure) = machine::keep_awake() {
        return refuse(&format!("--awake: {failure}"));
    }
    Begin::Measure(dir)
}

fn refuse(why: &str) -> Begin {
    eprintln!("{why}");
    Begin::Leave(ExitCode::from(2))
}
