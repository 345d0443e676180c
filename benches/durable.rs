//! Durable PUTs a second of the real binary, at 1 and at 64 connections, beside what the disk and redb alone give.

mod support;

use std::{
    cell::Cell,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    process::ExitCode,
    rc::Rc,
    time::{Duration, Instant},
};

use redb::{Database, TableDefinition};
use serde_json::Value;
use support::{
    Begin, Failure, Load, Node, Plan, Run, Until, begin, cpu_time, median, say_latency, say_latency_head, say_machine,
};

const ABOUT: &str = "\
Durable PUTs of 1 KiB over HTTP, at 1 and at 64 connections, and how many of them share a commit.

workload  new keys of one durable namespace, 1 KiB each, Content-Length known; kept-alive connections, one request
          under way on each (a closed loop); every answer, 201, means that the object is on disk. Default settings
          but for memory_max and l2_bytes. The references write the same bytes on the same disk in the same round:
          fdatasync (pwrite of 1 KiB in place and fdatasync, one thread), and redb (its own file, one thread, 1 or 64
          objects a transaction).
left out  a network, TLS, overwrites, other sizes, reads meanwhile, a load that does not wait for answers. Load and
          node share the machine's processors. A disk that lies about fsync, or has a cache with a battery, shows
          here as one that is fast.";

const BODY_BYTES: usize = 1 << 10;
const CONNECTIONS: [usize; 2] = [1, 64];
const ROUNDS: usize = 4;
const MEASURED: Duration = Duration::from_millis(2500);
const REFERENCE: Duration = Duration::from_millis(600);
const WARM_UP_PUTS: u64 = 2000;

/// The file that is written in place.
const FILE_BYTES: u64 = 16 << 20;

const TABLE: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("reference");

fn main() -> ExitCode {
    let dir = match begin("durable", ABOUT) {
        Begin::Measure(dir) => dir,
        Begin::Leave(code) => return code,
    };
    match measure(&dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("durable: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// What one number of connections gave.
struct Side {
    all: Run,
    rates: Vec<f64>,
    cpu: Duration,
    /// Transactions by size, transactions and changes, as the node counts them.
    commits: [u64; 7],
}

fn measure(dir: &Path) -> Result<(), Failure> {
    println!("{ABOUT}\n");
    fs::create_dir_all(dir)?;
    let dir = tempfile::Builder::new().prefix("bench-durable-").tempdir_in(dir)?;
    say_machine(dir.path())?;
    let body = random(BODY_BYTES);
    let mut disk = Disk::create(dir.path(), &body)?;
    let mut index = Index::create(dir.path(), &body)?;
    let node = Node::start(dir.path(), &["--memory-max", "512MiB", "--set", "l2_bytes=256MiB"])?;
    let load = Load::new()?;
    let serial = Rc::new(Cell::new(0_u64));
    let put = |connections, until| {
        let (serial, body) = (Rc::clone(&serial), body.clone());
        load.run(Plan {
            to: node.http,
            connections,
            until,
            statuses: &[201],
            request: move |request: &mut Vec<u8>| {
                serial.set(serial.get() + 1);
                let head = format!(
                    "PUT /durable/object-{} HTTP/1.1\r\nhost: bench\r\ncontent-length: {BODY_BYTES}\r\n\r\n",
                    serial.get()
                );
                request.extend_from_slice(head.as_bytes());
                request.extend_from_slice(&body);
            },
        })
    };
    put(CONNECTIONS[1], Until::Begun(WARM_UP_PUTS))?;

    let (mut synced, mut single, mut batched) = (Vec::new(), Vec::new(), Vec::new());
    let mut sides = Vec::new();
    for _ in CONNECTIONS {
        sides.push(Side { all: Run::nothing()?, rates: Vec::new(), cpu: Duration::ZERO, commits: [0; 7] });
    }
    println!("\n  writes a second   fdatasync   redb by 1  redb by 64      1 conn    64 conns       ratio");
    for round in 1..=ROUNDS {
        synced.push(timed(REFERENCE, || disk.write(&body))?);
        single.push(timed(REFERENCE, || index.write(1, &body))?);
        batched.push(timed(REFERENCE, || index.write(64, &body))?);
        for (side, connections) in sides.iter_mut().zip(CONNECTIONS) {
            let (commits, cpu) = (commits(&node.stats()?)?, cpu_time(&node.proc())?);
            let run = put(connections, Until::Passed(MEASURED))?;
            side.cpu += cpu_time(&node.proc())?.saturating_sub(cpu);
            let after = self::commits(&node.stats()?)?;
            side.commits.iter_mut().zip(after).zip(commits).for_each(|((sum, new), old)| *sum += new - old);
            side.rates.push(run.rate());
            side.all.add(&run)?;
        }
        let last = |rates: &Vec<f64>| rates.last().copied().unwrap_or(f64::NAN);
        let rates = sides.iter().map(|side| last(&side.rates));
        say_rates(&format!("round {round}"), &[last(&synced), last(&single), last(&batched)], rates.collect());
    }
    let rates = sides.iter().map(|side| median(side.rates.clone()));
    say_rates("median", &[median(synced), median(single), median(batched)], rates.collect());

    say_latency_head();
    for (side, connections) in sides.iter().zip(CONNECTIONS) {
        say_latency(&format!("{connections} connections"), &side.all.latency);
    }
    println!(
        "\n  group commit     mean size   commits of:     1   2 to 4  5 to 16 17 to 64     more   node CPU us/PUT"
    );
    for (side, connections) in sides.iter().zip(CONNECTIONS) {
        let [count, changes, sizes @ ..] = side.commits;
        print!("  {:<16}{:>10.1}            ", format!("{connections} connections"), changes as f64 / count as f64);
        sizes.iter().for_each(|size| print!("{size:>9}"));
        println!("{:>18.0}", side.cpu.as_secs_f64() * 1e6 / side.all.answers as f64);
    }
    Ok(())
}

fn say_rates(name: &str, references: &[f64], sides: Vec<f64>) {
    print!("  {name:<16}");
    references.iter().chain(&sides).for_each(|rate| print!("{rate:>12.0}"));
    println!("{:>12.1}", sides[1] / sides[0]);
}

/// Transactions, changes, and transactions by size.
fn commits(stats: &Value) -> Result<[u64; 7], Failure> {
    let commits = &stats["commits"];
    let mut all = [commits["commits"].as_u64(), commits["mutations"].as_u64()].to_vec();
    all.extend(commits["sizes"].as_array().into_iter().flatten().map(Value::as_u64));
    let all: Option<Vec<u64>> = all.into_iter().collect();
    all.and_then(|all| all.try_into().ok()).ok_or_else(|| format!("/v1/stats has no commits: {stats}").into())
}

/// How many a second `write` makes durable; it gives how many it did.
fn timed(time: Duration, mut write: impl FnMut() -> Result<u64, Failure>) -> Result<f64, Failure> {
    let (begun, mut written) = (Instant::now(), 0);
    while begun.elapsed() < time {
        written += write()?;
    }
    Ok(written as f64 / begun.elapsed().as_secs_f64())
}

fn random(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    std::iter::repeat_with(|| random.u8(..)).take(bytes).collect()
}

/// The disk's own cost: a file that has all its blocks, so that only data is synced.
struct Disk {
    file: File,
    at: u64,
}

impl Disk {
    fn create(dir: &Path, body: &[u8]) -> Result<Self, Failure> {
        let file = File::create(dir.join("in-place"))?;
        for at in (0..FILE_BYTES).step_by(body.len()) {
            file.write_all_at(body, at)?;
        }
        file.sync_all()?;
        Ok(Self { file, at: 0 })
    }

    fn write(&mut self, body: &[u8]) -> Result<u64, Failure> {
        self.file.write_all_at(body, self.at)?;
        self.file.sync_data()?;
        self.at = (self.at + body.len() as u64) % FILE_BYTES;
        Ok(1)
    }
}

/// The index's own cost, without a node around it.
struct Index {
    db: Database,
    next: u64,
}

impl Index {
    fn create(dir: &Path, body: &[u8]) -> Result<Self, Failure> {
        let db = Database::builder().set_cache_size(64 << 20).create(dir.join("reference.redb"))?;
        let mut index = Self { db, next: 0 };
        index.write(1, body)?;
        Ok(index)
    }

    fn write(&mut self, count: u64, body: &[u8]) -> Result<u64, Failure> {
        let write = self.db.begin_write()?;
        {
            let mut table = write.open_table(TABLE)?;
            for key in self.next..self.next + count {
                table.insert(key, body)?;
            }
        }
        write.commit()?;
        self.next += count;
        Ok(count)
    }
}
