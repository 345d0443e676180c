//! What a started node says of itself: doors, tiers and their sizes, where the data is, and something to try.

use std::{io::Write, net::SocketAddr};

use engine::log::{Opened, Stop};

use crate::{config::Config, human};

/// Prints the banner to standard output, in one write.
pub(super) fn print(config: &Config, http: Option<SocketAddr>, admin: Option<SocketAddr>, logs: &[Option<Opened>]) {
    // A closed standard output is no reason to stop.
    drop(std::io::stdout().write_all(text(config, http, admin, logs).as_bytes()));
}

fn text(config: &Config, http: Option<SocketAddr>, admin: Option<SocketAddr>, logs: &[Option<Opened>]) -> String {
    let door = |address: Option<SocketAddr>| address.map_or("off".to_owned(), |address| format!("http://{address}"));
    let data = config.data_dir.display();
    let memory = &config.memory;
    // Worked out, not set: it comes out even in no unit.
    let l0_bytes = human::about_bytes(memory.l0_bytes_per_shard * config.shards);
    let mut text = format!("strata {} is ready\n", env!("CARGO_PKG_VERSION"));
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<10} {value}\n"));
    line("objects", door(http));
    line("admin", door(admin));
    line("memcached", "off (not available yet)".into());
    line("L0 RAM", format!("{l0_bytes} in {} shards", config.shards));
    line("L1 network", "off (not available yet)".into());
    line("L2 flash", l2(config, logs));
    let limit = config.l3.bytes_max.map_or("no limit".to_owned(), |bytes| format!("at most {}", human::bytes(bytes)));
    line("L3 durable", format!("{data}/l3, {limit}"));
    line("data", format!("{data}"));
    line("memory_max", human::about_bytes(memory.memory_max));
    if let Some(http) = http {
        line("try", format!("curl -T README.md http://{http}/demo/readme && curl -i http://{http}/demo/readme"));
    }
    text
}

fn l2(config: &Config, logs: &[Option<Opened>]) -> String {
    if config.l2.bytes == 0 {
        return "off (l2_bytes = 0)".into();
    }
    let found: u64 = logs.iter().flatten().map(|log| log.objects).sum();
    let discarded: u64 = logs.iter().flatten().map(|log| log.discarded).sum();
    let worst = logs.iter().flatten().map(|log| log.stop).max().unwrap_or(Stop::Clean);
    let missed_runs = logs.iter().flatten().any(|log| log.missed_runs);
    let before = match worst {
        _ if missed_runs => format!("{found} objects found from before it was left out, {discarded} discarded"),
        Stop::Clean if found == 0 => "empty".to_owned(),
        Stop::Clean => format!("{found} objects found after a clean stop"),
        Stop::Killed => format!("{found} objects found after a kill"),
        Stop::PowerCut => format!("{found} objects found after a power cut or reboot, {discarded} discarded"),
        Stop::Damaged => format!("{found} objects found, some damaged, {discarded} discarded"),
    };
    format!("{} in {} logs, {before}", human::about_bytes(config.l2.bytes), config.shards)
}
