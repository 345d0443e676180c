//! The command line: flags to settings, subcommands, exit codes.
//!
//! Owns the shape of `strata`'s arguments and what each subcommand prints. Everything a flag sets is also a setting;
//! the named flags are the ones used most. Left to others: what settings mean (`config`), and running a node, which
//! the caller passes in.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::{
    config::{Config, Log, LogFormat, LogLevel, Machine, Sources},
    doctor::{self, Status},
};

/// The node, or what the command was asked to look at, failed.
const FAILED: u8 = 1;
/// The flags or settings are wrong (clap's own code for flags, too).
const USAGE: u8 = 2;
/// The machine cannot run the node: a check of `strata doctor` failed.
const UNFIT: u8 = 3;

const EXAMPLES: &str = "\
Examples:
  strata serve                                  run a node: no setting is needed
  strata serve --memory-max 4GiB --data-dir /var/lib/strata
  strata serve --set l2_bytes=100GiB --set policy.l0_max=1MiB
  strata serve --print-config                   every setting in effect, and where it is from
  strata doctor                                 can this machine run it?

Exit codes: 0 done; 1 failed; 2 wrong flags or settings; 3 the machine cannot run the node.
Settings are described in docs/04-operating.md.";

/// A cache node: RAM, flash and durable storage behind one key, over HTTP.
#[derive(Debug, Parser)]
#[command(name = "strata", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until SIGTERM or SIGINT.
    Serve {
        #[command(flatten)]
        settings: Settings,
        /// Print every setting in effect with its origin, as a TOML file, and do nothing else.
        #[arg(long)]
        print_config: bool,
    },
    /// Say whether the settings are right and fit one another.
    CheckConfig {
        #[command(flatten)]
        settings: Settings,
    },
    /// Say whether this machine can run a node with these settings, and what to do where it cannot.
    Doctor {
        #[command(flatten)]
        settings: Settings,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Flags of every subcommand. They win over the environment (STRATA_*), which wins over the file.
#[derive(Args, Debug, Default)]
struct Settings {
    /// TOML file with settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything durable lives [default: ./strata-data].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Shards, one thread each [default: the CPUs this process may use].
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// All memory of the process, as 512MiB or 4GiB [default: half of what there is].
    #[arg(long, value_name = "SIZE")]
    memory_max: Option<String>,
    /// The HTTP door, or off [default: 127.0.0.1:7800].
    #[arg(long, value_name = "ADDR")]
    http_listen: Option<String>,
    /// The memcached door, or off [default: 127.0.0.1:11211].
    #[arg(long, value_name = "ADDR")]
    memcached_listen: Option<String>,
    /// The admin door, or off [default: 127.0.0.1:7801].
    #[arg(long, value_name = "ADDR")]
    admin_listen: Option<String>,
    /// Any setting by its dotted name, as l3.blob_grace=2h; may be repeated.
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, as in l2_bytes=10GiB")?;
    Ok((name.trim().into(), value.trim().into()))
}

impl Settings {
    fn flags(&self) -> Vec<(String, String, String)> {
        let named = [
            ("data_dir", &self.data_dir),
            ("shards", &self.shards),
            ("memory_max", &self.memory_max),
            ("http_listen", &self.http_listen),
            ("memcached_listen", &self.memcached_listen),
            ("admin_listen", &self.admin_listen),
        ];
        let named = named.into_iter().filter_map(|(name, value)| {
            value.as_ref().map(|value| (name.to_string(), value.clone(), format!("--{}", name.replace('_', "-"))))
        });
        let set = self.set.iter().map(|(name, value)| (name.clone(), value.clone(), format!("--set {name}")));
        named.chain(set).collect()
    }

    fn load(&self, environment: BTreeMap<String, String>, machine: &Machine) -> Result<Config, String> {
        let sources = Sources::read(self.config.as_deref(), environment, self.flags())?;
        Config::load(&sources, machine).map_err(|e| e.to_string())
    }
}

/// Where a command writes: what was asked for, and what went wrong.
pub struct Output<'a> {
    /// Answers.
    pub out: &'a mut dyn Write,
    /// Warnings and errors.
    pub err: &'a mut dyn Write,
}

impl Output<'_> {
    /// A reader that has gone away (`| head`) is no failure.
    fn say(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes());
    }

    fn complain(&mut self, text: &str) {
        let _ = writeln!(self.err, "strata: {text}");
    }
}

/// Runs the command. `serve` runs a node until it stops; it is called with settings that fit, on a machine that was
/// found fit, with logging set up. The exit code is 0 or as `--help` says.
pub fn run<E: std::error::Error>(
    cli: Cli,
    environment: BTreeMap<String, String>,
    output: &mut Output<'_>,
    serve: impl FnOnce(Config) -> Result<(), E>,
) -> u8 {
    let Some(command) = cli.command else {
        output.say(&Cli::command().render_long_help().to_string());
        return 0;
    };
    let settings = match &command {
        Command::Serve { settings, .. } | Command::CheckConfig { settings } | Command::Doctor { settings, .. } => {
            settings
        }
    };
    let config = match settings.load(environment, &Machine::probe()) {
        Ok(config) => config,
        Err(problems) => {
            problems.lines().for_each(|problem| output.complain(problem));
            return USAGE;
        }
    };
    match command {
        Command::Serve { print_config: true, .. } => {
            output.say(&config.print());
            0
        }
        Command::Serve { .. } => start(config, output, serve),
        Command::CheckConfig { .. } => {
            config.warnings.iter().for_each(|warning| output.complain(warning));
            output.say("the settings are right\n");
            0
        }
        Command::Doctor { json, .. } => {
            let report = doctor::examine(&config);
            output.say(&if json { format!("{:#}\n", report.to_json()) } else { report.to_string() });
            if report.status() == Status::Fail { UNFIT } else { 0 }
        }
    }
}

fn start<E: std::error::Error>(
    config: Config,
    output: &mut Output<'_>,
    serve: impl FnOnce(Config) -> Result<(), E>,
) -> u8 {
    log_to_stderr(config.log);
    config.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    if let Err(error) = doctor::raise_nofile() {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    let report = doctor::examine(&config);
    for check in &report.checks {
        match check.status {
            Status::Ok => tracing::debug!(check = check.name, "{}", check.found),
            Status::Warn => tracing::warn!(check = check.name, "{}; {}", check.found, check.advice),
            Status::Fail => output.complain(&format!("{}: {}\n  -> {}", check.name, check.found, check.advice)),
        }
    }
    if report.status() == Status::Fail {
        return UNFIT;
    }
    match serve(config) {
        Ok(()) => 0,
        Err(error) => {
            output.complain(&chain(&error));
            FAILED
        }
    }
}

/// An error with its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Sends log lines to stderr. Only the first call of a process has an effect.
fn log_to_stderr(log: Log) {
    let level = match log.level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    let _ = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// What `main` does: the process's arguments, environment and streams.
pub fn main<E: std::error::Error>(serve: impl FnOnce(Config) -> Result<(), E>) -> ExitCode {
    let environment = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .collect();
    let mut output = Output { out: &mut std::io::stdout(), err: &mut std::io::stderr() };
    run(Cli::parse(), environment, &mut output, serve).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Ran {
        code: u8,
        out: String,
        err: String,
        served: Option<Config>,
    }

    fn strata(args: &[&str], environment: &[(&str, &str)], serve: Result<(), std::fmt::Error>) -> Ran {
        let cli = Cli::try_parse_from([&["strata"], args].concat()).expect("flags");
        let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let (mut out, mut err, mut served) = (Vec::new(), Vec::new(), None);
        let code = run(cli, environment, &mut Output { out: &mut out, err: &mut err }, |config| {
            served = Some(config);
            serve
        });
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Ran { code, out: text(out), err: text(err), served }
    }

    /// Flags with which a node could start beside others.
    fn tiny(data_dir: &std::path::Path) -> Vec<String> {
        let set = ["profile=tiny", "http_listen=127.0.0.1:0", "admin_listen=127.0.0.1:0", "memcached_listen=off"];
        let data_dir = format!("--data-dir={}", data_dir.display());
        set.iter().map(|pair| format!("--set={pair}")).chain([data_dir]).collect()
    }

    #[test]
    fn the_flags_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn alone_it_explains_itself() {
        let ran = strata(&[], &[], Ok(()));
        assert_eq!(ran.code, 0);
        for part in ["Usage:", "serve", "check-config", "doctor", "Examples:", "Exit codes:"] {
            assert!(ran.out.contains(part), "{part} in {}", ran.out);
        }
        let version = Cli::try_parse_from(["strata", "--version"]).expect_err("printed").to_string();
        assert_eq!(version.trim(), concat!("strata ", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn flags_win_and_print_config_tells() {
        let flags = [
            "serve",
            "--print-config",
            "--shards",
            "2",
            "--memory-max",
            "1GiB",
            "--http-listen",
            "127.0.0.1:1",
            "--memcached-listen",
            "off",
            "--admin-listen",
            "off",
            "--data-dir",
            "/d",
            "--set",
            "l3.blob_grace=2h",
            "--set",
            "policy.l0_max = 5KiB",
            "--set=l2_bytes=0",
        ];
        let ran = strata(&flags, &[("STRATA_SHARDS", "9"), ("STRATA_L3_TOMBSTONE_TTL", "3h")], Ok(()));
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        assert!(ran.served.is_none());
        for (name, value, origin) in [
            ("shards", "2", "--shards"),
            ("memory_max", "\"1GiB\"", "--memory-max"),
            ("http_listen", "\"127.0.0.1:1\"", "--http-listen"),
            ("memcached_listen", "\"off\"", "--memcached-listen"),
            ("admin_listen", "\"off\"", "--admin-listen"),
            ("data_dir", "\"/d\"", "--data-dir"),
            ("l3.blob_grace", "\"2h\"", "--set l3.blob_grace"),
            ("l3.tombstone_ttl", "\"3h\"", "STRATA_L3_TOMBSTONE_TTL"),
            ("policy.l0_max", "\"5KiB\"", "--set policy.l0_max"),
        ] {
            let line = ran.out.lines().find(|line| line.starts_with(&format!("{name} = "))).expect(name);
            assert!(line.contains(&format!("= {value} ")) && line.ends_with(&format!("# {origin}")), "{line}");
        }
    }

    #[test]
    fn wrong_settings_are_told_and_nothing_is_started() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("strata.toml");
        std::fs::write(&file, "\nmemory_mx = 1\n[l1]\nurl = 1\n").expect("written");
        let file = file.to_string_lossy().into_owned();
        for command in ["serve", "check-config", "doctor"] {
            let ran = strata(&[command, "--config", &file], &[], Ok(()));
            assert_eq!((ran.code, ran.out.as_str()), (USAGE, ""));
            assert!(ran.err.contains(&format!("strata: {file}:2: memory_mx: there is no such setting")), "{}", ran.err);
            assert!(ran.err.contains(&format!("strata: {file}:3: l1: ")) && ran.served.is_none());
        }
        let missing = strata(&["check-config", "--config", "/no/such.toml"], &[], Ok(()));
        assert!(missing.code == USAGE && missing.err.contains("/no/such.toml: cannot read"), "{}", missing.err);
        assert!(Cli::try_parse_from(["strata", "serve", "--set", "x"]).is_err());
        let right = strata(&["check-config"], &[("STRATA_MEMORY_MX", "1")], Ok(()));
        assert!(right.code == 0 && right.err.contains("STRATA_MEMORY_MX: no setting"), "{}", right.err);
    }

    #[test]
    fn a_fit_machine_serves_and_an_unfit_one_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let flags = tiny(&folder.path().join("data"));
        let with = |command| -> Vec<&str> { [command].into_iter().chain(flags.iter().map(String::as_str)).collect() };
        let ran = strata(&with("serve"), &[], Ok(()));
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        assert_eq!(ran.served.expect("called").doors.memcached, None);
        let failed = strata(&with("serve"), &[], Err(std::fmt::Error));
        assert!(failed.code == FAILED && failed.err.starts_with("strata: an error"), "{}", failed.err);
        let healthy = strata(&with("doctor"), &[], Ok(()));
        assert!(healthy.code == 0 && healthy.out.contains("io_uring"), "{}", healthy.out);

        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let door = format!("http_listen={}", taken.local_addr().expect("bound"));
        let unfit = strata(&[&with("serve")[..], &["--set", &door]].concat(), &[], Ok(()));
        assert!(
            unfit.code == UNFIT && unfit.served.is_none() && unfit.err.contains("set http_listen"),
            "{}",
            unfit.err
        );
        let json = strata(&[&with("doctor")[..], &["--set", &door, "--json"]].concat(), &[], Ok(()));
        let report: serde_json::Value = serde_json::from_str(&json.out).expect("JSON");
        assert_eq!((json.code, &report["status"]), (UNFIT, &"fail".into()));
    }

    #[test]
    fn causes_are_told_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        assert_eq!(chain(&Outer(std::io::Error::other("inner"))), "outer: inner");
        assert_eq!(chain(&std::fmt::Error), std::fmt::Error.to_string());
    }
}
