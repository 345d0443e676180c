//! GETs a second of the real binary, from RAM and from flash, beside a static responder on the same HTTP library.

mod responder;
mod support;

use std::{
    cell::RefCell, collections::BTreeMap, fs, net::SocketAddr, path::Path, process::ExitCode, rc::Rc, time::Duration,
};

use bytes::Bytes;
use responder::Responder;
use rustix::thread::{CpuSet, sched_setaffinity};
use support::{
    Begin, Failure, Load, Node, Plan, Run, Until, begin, cpu_time, machine::cpus, median, say_latency,
    say_latency_head, say_machine,
};

const ABOUT: &str = "\
GETs over HTTP from L0 (100 B, 4 KiB, 1 MiB) and from L2 (4 KiB), at 1 and at 64 connections, beside a static
responder (hyper on tokio, bodies in memory) measured in the same round.

workload  whole objects, keys drawn evenly; kept-alive connections, one request under way on each (a closed loop);
          every answer is 200 and read to its end. One shard. Node and responder share one processor and the load has
          another, where there are two. From L2: as many objects as make 4 times L0's bytes, read with promotion on,
          so that some answers come from L0 (the share of the tier in question is printed) and the others fill it.
left out  a network, TLS, pipelining, a skewed choice of keys, writes meanwhile, more than one shard and so the hop
          between shards, a load that does not wait for answers. The responder finds no key and keeps no statistics:
          it is a floor for the price of HTTP, not a rival.";

const ROUNDS: usize = 3;
const MEASURED: Duration = Duration::from_millis(350);
const CONNECTIONS: [usize; 2] = [1, 64];

/// Kept in L0 and nowhere else; objects outgrow L0 in a namespace that also has L2, written there at once.
const POLICY: &str = r#"{"namespaces": {
    "hot": {"mode": "cache_only", "tiers": ["l0"]},
    "cold": {"mode": "cache_only", "tiers": ["l0", "l2"], "l2_fill": "on_write"}}}"#;

/// How often L0's bytes are written to what is to be read from L2.
const OUTGROWN: u64 = 4;

/// Answers drawn before a case is measured.
const WARM_UP_GETS: u64 = 1000;

/// Objects of one size.
struct Set {
    name: &'static str,
    namespace: &'static str,
    bytes: usize,
    count: u64,
    tier: usize,
}

/// What one case gave.
struct Outcome {
    all: Run,
    rates: Vec<f64>,
    cpu: Duration,
}

fn main() -> ExitCode {
    let dir = match begin("get", ABOUT) {
        Begin::Measure(dir) => dir,
        Begin::Leave(code) => return code,
    };
    match measure(&dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("get: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(dir: &Path) -> Result<(), Failure> {
    println!("{ABOUT}\n");
    fs::create_dir_all(dir)?;
    let dir = tempfile::Builder::new().prefix("bench-get-").tempdir_in(dir)?;
    say_machine(dir.path())?;
    let cpus = cpus()?;
    let (server, client) = (cpus[0], cpus[cpus.len() - 1]);

    pin(server)?;
    let settings = ["--shards", "1", "--memory-max", "128MiB", "--set", "l2_bytes=1GiB"];
    let node = Node::start(dir.path(), &settings)?;
    pin(client)?;
    node.ask("PATCH", "/v1/policy", POLICY)?;
    let l0 = node.stats()?["totals"]["tiers"]["l0"]["capacity_bytes"].as_u64().ok_or("the node does not tell L0")?;
    let sets = [
        Set { name: "cold", namespace: "cold", bytes: 4 << 10, count: (l0 * OUTGROWN) >> 12, tier: 2 },
        Set { name: "100B", namespace: "hot", bytes: 100, count: 1000, tier: 0 },
        Set { name: "4KiB", namespace: "hot", bytes: 4 << 10, count: 1000, tier: 0 },
        Set { name: "1MiB", namespace: "hot", bytes: 1 << 20, count: 8, tier: 0 },
    ];
    println!("node      L0 {} MiB; {} objects of 4 KiB to be read from L2", l0 >> 20, sets[0].count);
    let bodies: BTreeMap<_, _> =
        sets.iter().map(|set| (set.name.to_owned(), Bytes::from(vec![b'x'; set.bytes]))).collect();
    let responder = Responder::start(bodies.clone(), move || pin(server))?;
    let load = Load::new()?;
    let random = Rc::new(RefCell::new(fastrand::Rng::with_seed(1)));
    for set in &sets {
        fill(&load, node.http, set, &bodies[set.name])?;
    }

    let subjects = [(node.http, node.proc()), (responder.http, responder.proc.clone())];
    let mut cases = Vec::new();
    for set in sets.iter().cycle().skip(1).take(sets.len()) {
        for connections in CONNECTIONS {
            // Its turn of the cache begins with what it will find.
            get(&load, &random, node.http, set, connections, Until::Begun(WARM_UP_GETS))?;
            let mut outcomes = [Outcome::nothing()?, Outcome::nothing()?];
            for _ in 0..ROUNDS {
                for (outcome, (to, proc)) in outcomes.iter_mut().zip(&subjects) {
                    let cpu = cpu_time(proc)?;
                    let run = get(&load, &random, *to, set, connections, Until::Passed(MEASURED))?;
                    outcome.add(&run, cpu_time(proc)?.saturating_sub(cpu))?;
                }
            }
            let seen = outcomes[0].all.tiers;
            if seen[set.tier] * 2 < outcomes[0].all.answers {
                return Err(format!("{}: most answers came from elsewhere, by tier {seen:?}", set.label()).into());
            }
            cases.push((set, connections, outcomes));
        }
    }
    print(&cases);
    Ok(())
}

impl Outcome {
    fn nothing() -> Result<Self, Failure> {
        Ok(Self { all: Run::nothing()?, rates: Vec::new(), cpu: Duration::ZERO })
    }

    fn add(&mut self, run: &Run, cpu: Duration) -> Result<(), Failure> {
        self.cpu += cpu;
        self.rates.push(run.rate());
        self.all.add(run)
    }

    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.all.answers as f64
    }
}

fn print(cases: &[(&Set, usize, [Outcome; 2])]) {
    println!(
        "\n  GETs a second     connections        node   responder    ratio    node CPU us  resp. CPU us   from tier"
    );
    for (set, connections, [node, responder]) in cases {
        let (ours, theirs) = (median(node.rates.clone()), median(responder.rates.clone()));
        let share = node.all.tiers[set.tier] as f64 * 100.0 / node.all.answers as f64;
        println!(
            "  {:<16}{connections:>13}{ours:>12.0}{theirs:>12.0}{:>9.2}{:>15.1}{:>14.1}  L{} {share:>5.1} %",
            set.label(),
            ours / theirs,
            node.cpu_us(),
            responder.cpu_us(),
            set.tier,
        );
    }
    say_latency_head();
    for (set, connections, [node, responder]) in cases {
        say_latency(&format!("{} {connections}", set.label()), &node.all.latency);
        say_latency("  responder", &responder.all.latency);
    }
}

impl Set {
    fn path(&self) -> String {
        format!("/{}/{}", self.namespace, self.name)
    }

    fn label(&self) -> String {
        format!("{} L{}", if self.tier == 2 { "4KiB" } else { self.name }, self.tier)
    }
}

/// Writes every object of the set once. A new key may be answered 204, "replaced": where L2 answers, that is told from
/// its index alone, which takes some keys for others.
fn fill(load: &Load, to: SocketAddr, set: &Set, body: &Bytes) -> Result<(), Failure> {
    let (path, body, mut serial) = (set.path(), body.clone(), 0);
    let request = move |request: &mut Vec<u8>| {
        let head = format!("PUT {path}-{serial} HTTP/1.1\r\nhost: bench\r\ncontent-length: {}\r\n\r\n", body.len());
        request.extend_from_slice(head.as_bytes());
        request.extend_from_slice(&body);
        serial += 1;
    };
    load.run(Plan { to, connections: 16, until: Until::Begun(set.count), statuses: &[201, 204], request }).map(drop)
}

/// One run. `random` is the same for all of them: a run that drew the keys of the last one again would find them where
/// that one has put them.
fn get(
    load: &Load,
    random: &Rc<RefCell<fastrand::Rng>>,
    to: SocketAddr,
    set: &Set,
    connections: usize,
    until: Until,
) -> Result<Run, Failure> {
    let (path, count, random) = (set.path(), set.count, Rc::clone(random));
    let request = move |request: &mut Vec<u8>| {
        let head = format!("GET {path}-{} HTTP/1.1\r\nhost: bench\r\n\r\n", random.borrow_mut().u64(..count));
        request.extend_from_slice(head.as_bytes());
    };
    load.run(Plan { to, connections, until, statuses: &[200], request })
}

/// Keeps this thread, and what it starts from now on, on one processor.
fn pin(cpu: usize) -> Result<(), Failure> {
    let mut only = CpuSet::new();
    only.set(cpu);
    Ok(sched_setaffinity(None, &only)?)
}
