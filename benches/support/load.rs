//! A closed-loop load: each connection sends its next request when it has the whole answer to the last one.
//!
//! One thread. What it cannot show is how a node behaves when requests come whether it keeps up or not; a closed loop
//! slows down with the node, so its latencies leave out the waiting that an open one would have seen.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    runtime::{Builder, Runtime},
    task::LocalSet,
};

use super::Failure;

/// Over the planned time, this is how long the last answers may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes read at a time; a longer answer head than this is an error.
const READ_BYTES: usize = 256 << 10;

/// Longest latency told from longer ones, in nanoseconds.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// When a run ends.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// No request is begun after this long.
    Passed(Duration),
    /// This many were begun.
    Begun(u64),
}

/// One run.
pub(crate) struct Plan<F> {
    pub(crate) to: SocketAddr,
    pub(crate) connections: usize,
    pub(crate) until: Until,
    /// What may be answered; anything else ends the run with an error.
    pub(crate) statuses: &'static [u16],
    /// Appends the next request, head and body.
    pub(crate) request: F,
}

/// What came of it.
pub(crate) struct Run {
    pub(crate) answers: u64,
    pub(crate) elapsed: Duration,
    /// From the first byte written to the last one read, in nanoseconds.
    pub(crate) latency: Histogram<u64>,
    /// Answers by tier, as `Cache-Status` says; answers that do not say count nowhere.
    pub(crate) tiers: [u64; 4],
}

impl Run {
    /// Nothing yet, to add runs to.
    pub(crate) fn nothing() -> Result<Self, Failure> {
        let latency = Histogram::new_with_max(LATENCY_NS_MAX, 3)?;
        Ok(Self { answers: 0, elapsed: Duration::ZERO, latency, tiers: [0; 4] })
    }

    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.answers as f64 / self.elapsed.as_secs_f64()
    }

    /// Adds another run of the same plan.
    pub(crate) fn add(&mut self, other: &Self) -> Result<(), Failure> {
        self.answers += other.answers;
        self.elapsed += other.elapsed;
        self.latency.add(&other.latency)?;
        self.tiers.iter_mut().zip(other.tiers).for_each(|(sum, more)| *sum += more);
        Ok(())
    }
}

/// The load's scheduler.
pub(crate) struct Load {
    runtime: Runtime,
}

struct Shared<F> {
    plan: RefCell<Plan<F>>,
    begun: Cell<u64>,
    start: Instant,
    run: RefCell<Run>,
}

impl Load {
    pub(crate) fn new() -> Result<Self, Failure> {
        Ok(Self { runtime: Builder::new_current_thread().enable_all().build()? })
    }

    /// Connects, runs the plan and waits for the last answer. Blocks.
    ///
    /// # Errors
    /// A connection broke, an answer had an unexpected status, or the answers did not come.
    pub(crate) fn run<F: FnMut(&mut Vec<u8>) + 'static>(&self, plan: Plan<F>) -> Result<Run, Failure> {
        let patience = PATIENCE + if let Until::Passed(time) = plan.until { time } else { PATIENCE };
        LocalSet::new().block_on(&self.runtime, async move {
            let mut streams = Vec::new();
            for _ in 0..plan.connections {
                let stream = TcpStream::connect(plan.to).await?;
                stream.set_nodelay(true)?;
                streams.push(stream);
            }
            let shared = Rc::new(Shared {
                plan: RefCell::new(plan),
                begun: Cell::new(0),
                start: Instant::now(),
                run: RefCell::new(Run::nothing()?),
            });
            let spawn = |stream| tokio::task::spawn_local(connection(stream, Rc::clone(&shared)));
            let tasks: Vec<_> = streams.into_iter().map(spawn).collect();
            let all = async {
                for task in tasks {
                    task.await??;
                }
                Ok::<_, Failure>(())
            };
            tokio::time::timeout(patience, all).await.map_err(|_| "the answers do not come")??;
            let elapsed = shared.start.elapsed();
            let mut run = shared.run.replace(Run::nothing()?);
            run.elapsed = elapsed;
            Ok(run)
        })
    }
}

async fn connection<F: FnMut(&mut Vec<u8>)>(mut stream: TcpStream, shared: Rc<Shared<F>>) -> Result<(), Failure> {
    let (mut request, mut buffer) = (Vec::new(), vec![0; READ_BYTES]);
    while shared.next(&mut request) {
        let begun = Instant::now();
        write_all(&mut stream, &request).await?;
        let answer = read_answer(&mut stream, &mut buffer).await?;
        let took = u64::try_from(begun.elapsed().as_nanos())?;
        if !shared.plan.borrow().statuses.contains(&answer.status) {
            return Err(format!("answered {}:\n{}", answer.status, answer.head).into());
        }
        let mut run = shared.run.borrow_mut();
        run.answers += 1;
        run.latency.saturating_record(took);
        if let Some(count) = answer.tier.and_then(|tier| run.tiers.get_mut(tier)) {
            *count += 1;
        }
    }
    Ok(())
}

impl<F: FnMut(&mut Vec<u8>)> Shared<F> {
    /// Makes the next request, unless the run is over.
    fn next(&self, request: &mut Vec<u8>) -> bool {
        let mut plan = self.plan.borrow_mut();
        let over = match plan.until {
            Until::Passed(time) => self.start.elapsed() >= time,
            Until::Begun(count) => self.begun.get() >= count,
        };
        if !over {
            self.begun.set(self.begun.get() + 1);
            request.clear();
            (plan.request)(request);
        }
        !over
    }
}

struct Answer {
    status: u16,
    tier: Option<usize>,
    /// Of a wrong answer, to be shown.
    head: String,
}

async fn write_all(stream: &mut TcpStream, mut bytes: &[u8]) -> Result<(), Failure> {
    while !bytes.is_empty() {
        let written = poll_fn(|cx| Pin::new(&mut *stream).poll_write(cx, bytes)).await?;
        bytes = &bytes[written..];
    }
    Ok(())
}

async fn read(stream: &mut TcpStream, into: &mut [u8]) -> Result<usize, Failure> {
    let mut buf = ReadBuf::new(into);
    poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut buf)).await?;
    match buf.filled().len() {
        0 => Err("the connection was closed, or an answer's head is too long".into()),
        bytes => Ok(bytes),
    }
}

/// Reads one answer to its end, and throws its body away.
async fn read_answer(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<Answer, Failure> {
    let mut filled = 0;
    let head_end = loop {
        filled += read(stream, &mut buffer[filled..]).await?;
        if let Some(at) = buffer[..filled].windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let head = str::from_utf8(&buffer[..head_end])?;
    let status = head.get(9..12).ok_or("not HTTP")?.parse()?;
    let (mut length, mut tier) = (0, None);
    for line in head.lines() {
        match line.split_once(": ") {
            Some(("content-length", value)) => length = value.parse()?,
            Some(("cache-status", value)) => tier = value.split("detail=l").nth(1).and_then(|l| l.parse().ok()),
            _ => {}
        }
    }
    let head = if status == 200 { String::new() } else { head.to_owned() };
    let mut left = (head_end + length).checked_sub(filled).ok_or("more bytes than the answer has")?;
    while left > 0 {
        let room = left.min(buffer.len());
        left -= read(stream, &mut buffer[..room]).await?;
    }
    Ok(Answer { status, tier, head })
}
