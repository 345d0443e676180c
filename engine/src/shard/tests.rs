use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
        mpsc,
    },
    time::Instant,
};

use futures_lite::future::or;

use super::*;
use crate::mailbox::mailbox;

/// Long enough for a loaded machine, short enough to tell a hang.
const SOON: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Notes {
    failures: Mutex<Vec<Failure>>,
    panics: Mutex<Vec<(ShardId, String)>>,
    released: AtomicBool,
}

impl Supervisor for Notes {
    fn shard_failed(&self, failure: Failure) {
        self.failures.lock().expect("no panic").push(failure);
        self.released.store(true, Ordering::SeqCst);
    }

    fn task_panicked(&self, shard: ShardId, message: &str) {
        self.panics.lock().expect("no panic").push((shard, message.to_owned()));
    }
}

struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

fn options() -> Options {
    Options { grace: SOON, ..Options::default() }
}

#[test]
fn more_shards_than_cores_run_and_end_by_themselves() {
    let sum = Arc::new(AtomicU64::new(0));
    let mains: Vec<_> = (0..4)
        .map(|_| {
            let sum = sum.clone();
            move |rt: ShardRt, shard: ShardId| async move {
                assert_eq!(rt.shard(), shard);
                for task in 0..100 {
                    let (rt, sum, task_rt) = (rt.clone(), sum.clone(), rt.clone());
                    rt.spawn(async move {
                        let before = task_rt.clock().elapsed();
                        task_rt.sleep(Duration::from_micros(task_rt.random() % 2000)).await;
                        task_rt.yield_now().await;
                        assert!(task_rt.clock().elapsed() >= before);
                        sum.fetch_add(u64::from(shard.0) * 1000 + task, Ordering::SeqCst);
                    });
                }
            }
        })
        .collect();
    let notes = Arc::new(Notes::default());
    let shards = launch(&options(), mains, notes.clone()).expect("this machine runs shards");
    assert_eq!(shards.hearts().len(), 4);
    assert_eq!(shards.join(), []);
    assert!(notes.panics.lock().expect("no panic").is_empty());
    assert_eq!(sum.load(Ordering::SeqCst), 100 * 6000 + 4 * 4950);
}

#[test]
fn a_panic_in_a_task_or_its_destructor_ends_that_task_only() {
    let notes = Arc::new(Notes::default());
    let counted = Arc::new(AtomicU64::new(0));
    let seen = counted.clone();
    let main = move |rt: ShardRt, _| async move {
        rt.spawn(async { panic!("the first") });
        rt.spawn(async {
            let _broken = OnDrop(|| panic!("the second"));
            futures_lite::future::yield_now().await;
        });
        rt.sleep(Duration::from_millis(1)).await;
        while rt.tasks() > 0 {
            rt.yield_now().await;
        }
        seen.store(rt.task_panics(), Ordering::SeqCst);
    };
    let shards = launch(&options(), vec![main], notes.clone()).expect("this machine runs shards");
    assert_eq!(shards.join(), []);
    assert_eq!(counted.load(Ordering::SeqCst), 2);
    let told: Vec<_> = ["the first", "the second"].map(|message| (ShardId(0), message.to_owned())).to_vec();
    assert_eq!(*notes.panics.lock().expect("no panic"), told);
    assert!(notes.failures.lock().expect("no panic").is_empty());
}

#[test]
fn a_panic_in_a_main_is_a_failure_with_its_reason_and_drops_its_tasks() {
    let notes = Arc::new(Notes::default());
    let dropped = Arc::new(AtomicU32::new(0));
    let counted = dropped.clone();
    let main = move |rt: ShardRt, shard: ShardId| async move {
        if shard.0 == 1 {
            let note = OnDrop(move || _ = counted.fetch_add(1, Ordering::SeqCst));
            rt.spawn(async move {
                let _note = note;
                std::future::pending::<()>().await;
            });
            rt.sleep(Duration::from_millis(1)).await;
            panic!("on purpose in shard {shard}");
        }
        rt.stop_signal().raised().await;
    };
    let shards = launch(&options(), vec![main.clone(), main], notes.clone()).expect("this machine runs shards");
    wait_until("the failure is told", || notes.released.load(Ordering::SeqCst));
    shards.stop();
    let failure = Failure::Panicked { shard: ShardId(1), message: "on purpose in shard 1".to_owned() };
    assert_eq!(*notes.failures.lock().expect("no panic"), shards.join());
    assert_eq!(*notes.failures.lock().expect("no panic"), [failure]);
    assert_eq!(dropped.load(Ordering::SeqCst), 1);

    let builds_nothing = |_: ShardRt, _: ShardId| -> std::future::Ready<()> { panic!("in the factory") };
    let shards = launch(&options(), vec![builds_nothing], notes).expect("this machine runs shards");
    assert_eq!(shards.join(), [Failure::Panicked { shard: ShardId(0), message: "in the factory".to_owned() }]);
}

#[test]
fn a_stop_waits_for_tasks_within_the_grace_period_and_drops_them_after_it() {
    let run = |grace, ends: bool| {
        let (finished, dropped) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (told_finished, told_dropped) = (finished.clone(), dropped.clone());
        let main = move |rt: ShardRt, _| async move {
            for _ in 0..10 {
                let (finished, task_rt, dropped) = (told_finished.clone(), rt.clone(), told_dropped.clone());
                let note = OnDrop(move || _ = dropped.fetch_add(1, Ordering::SeqCst));
                rt.spawn(async move {
                    let _note = note;
                    task_rt.stop_signal().raised().await;
                    task_rt.sleep(Duration::from_millis(20)).await;
                    if !ends {
                        std::future::pending::<()>().await;
                    }
                    finished.fetch_add(1, Ordering::SeqCst);
                });
            }
            rt.stop_signal().raised().await;
        };
        let options = Options { grace, ..Options::default() };
        let shards = launch(&options, vec![main], Arc::new(Notes::default())).expect("this machine runs shards");
        shards.stop();
        assert_eq!(shards.join(), []);
        (finished.load(Ordering::SeqCst), dropped.load(Ordering::SeqCst))
    };
    assert_eq!(run(SOON, true), (10, 10));
    assert_eq!(run(Duration::from_millis(50), false), (0, 10));
}

#[test]
fn a_main_that_ignores_the_stop_is_dropped_on_its_thread() {
    let dropped_on = Arc::new(Mutex::new(None));
    let told = dropped_on.clone();
    let main = move |_: ShardRt, _: ShardId| async move {
        let _note = OnDrop(|| *told.lock().expect("no panic") = std::thread::current().name().map(str::to_owned));
        std::future::pending::<()>().await;
    };
    let options = Options { grace: Duration::from_millis(20), ..Options::default() };
    let shards = launch(&options, vec![main], Arc::new(Notes::default())).expect("this machine runs shards");
    drop(shards);
    assert_eq!(dropped_on.lock().expect("no panic").as_deref(), Some("shard-0"));
}

#[test]
fn a_shard_that_takes_no_turn_is_told_by_the_watchdog() {
    let notes = Arc::new(Notes::default());
    let released = notes.clone();
    let main = move |rt: ShardRt, shard: ShardId| async move {
        rt.sleep(Duration::from_millis(1)).await;
        while shard.0 == 1 && !released.released.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        rt.stop_signal().raised().await;
    };
    let options = Options { stall_max: Duration::from_millis(1500), ..options() };
    let shards = launch(&options, vec![main.clone(), main], notes.clone()).expect("this machine runs shards");
    wait_until("the stall is told", || notes.released.load(Ordering::SeqCst));
    shards.stop();
    assert_eq!(shards.join(), []);
    let failures = notes.failures.lock().expect("no panic");
    assert!(
        matches!(failures[..], [Failure::Stalled { shard: ShardId(1), silent_for }] if silent_for >= options.stall_max),
        "{failures:?}"
    );
}

#[test]
fn hearts_beat_while_the_shard_is_idle_and_stop_with_it() {
    let main = |rt: ShardRt, _: ShardId| async move { rt.stop_signal().raised().await };
    let shards = launch(&options(), vec![main, main], Arc::new(Notes::default())).expect("this machine runs shards");
    let hearts = shards.hearts().to_vec();
    wait_until("both beat", || hearts.iter().all(|heart| heart.beats() >= 5));
    assert!(hearts.iter().all(|heart| heart.is_running()) && !shards.are_ended());
    drop(shards);
    assert!(hearts.iter().all(|heart| !heart.is_running()));
}

#[test]
fn tasks_that_yield_for_ever_do_not_starve_timers_and_foreign_wakes() {
    let (result, results) = mpsc::channel();
    let main = move |rt: ShardRt, _| async move {
        let done = Signal::new();
        for _ in 0..3 {
            let (done, task_rt) = (done.clone(), rt.clone());
            rt.spawn(async move {
                while !done.is_raised() {
                    task_rt.yield_now().await;
                }
            });
        }
        let (mut inbox, mut echo) = (mailbox::<u32>(1), mailbox::<u32>(1));
        let (to_thread, from_thread) = (echo.sender(1).expect("the one"), inbox.sender(1).expect("the one"));
        let thread = std::thread::spawn(move || {
            while let Some(value) = echo.recv_blocking() {
                futures_lite::future::block_on(from_thread.send(value)).expect("the shard listens");
            }
        });
        let start = rt.clock().elapsed();
        for round in 0..20 {
            rt.sleep(Duration::from_millis(1)).await;
            to_thread.send(round).await.expect("the thread listens");
            assert_eq!(inbox.recv().await, Some(round));
        }
        let took = rt.clock().elapsed() - start;
        done.raise();
        drop(to_thread);
        result.send(took).expect("the test listens");
        thread.join().expect("it does not panic");
    };
    let shards = launch(&options(), vec![main], Arc::new(Notes::default())).expect("this machine runs shards");
    assert_eq!(shards.join(), []);
    let took = results.recv().expect("main sent it");
    // Without turns each of the 40 waits lasts a preempt timer: 100 ms.
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn a_launch_that_cannot_work_says_why_and_leaves_no_thread() {
    let notes = || Arc::new(Notes::default());
    let ran = Arc::new(AtomicBool::new(false));
    let main = |ran: Arc<AtomicBool>| {
        move |_: ShardRt, _: ShardId| async move {
            ran.store(true, Ordering::SeqCst);
        }
    };
    let options = Options { probe_dirs: vec!["/nonexistent/folder".into()], ..options() };
    let error = launch(&options, vec![main(ran.clone()), main(ran.clone())], notes()).err().expect("no such folder");
    assert!(matches!(&error, LaunchError::Probe { shard: ShardId(0), source, .. } if source.raw_os_error() == Some(2)));
    assert!(error.to_string().contains("/nonexistent/folder"), "{error}");
    assert!(!ran.load(Ordering::SeqCst));
    assert_eq!(Arc::strong_count(&ran), 1);
    let none: Vec<fn(ShardRt, ShardId) -> std::future::Ready<()>> = Vec::new();
    assert!(matches!(launch(&options, none, notes()), Err(LaunchError::Count(0))));
    let off = Options { cpus: vec![4095], probe_dirs: Vec::new(), ..options };
    let error = launch(&off, vec![main(ran)], notes()).err().expect("no such CPU");
    assert!(matches!(error, LaunchError::Executor { cpu: 4095, .. }), "{error}");
}

#[test]
fn after_the_probe_files_of_any_kind_can_be_read() {
    let exe = std::env::current_exe().expect("this test");
    let dir = tempfile::tempdir_in(exe.parent().expect("it lies in a folder")).expect("a folder on disk");
    let path = dir.path().join("preallocated");
    let main = move |_: ShardRt, _: ShardId| async move {
        // Its blocks are unwritten: opened first on a thread, it spoils all later reads of the disk.
        let mut read_write = glommio::io::OpenOptions::new();
        read_write.read(true).write(true).create(true);
        let empty = read_write.dma_open(&path).await.expect("creates");
        empty.pre_allocate(64 << 10, false).await.expect("allocates");
        let mut block = empty.alloc_dma_buffer(4096);
        block.as_bytes_mut().fill(7);
        assert_eq!(empty.write_at(block, 0).await.expect("writes"), 4096);
        empty.fdatasync().await.expect("syncs");
        empty.close().await.expect("closes");
        let file = glommio::io::DmaFile::open(&path).await.expect("opens");
        let read = file.read_at_aligned(0, 4096).await.expect("reads");
        assert!(read.len() == 4096 && read.iter().all(|byte| *byte == 7));
        drop(read);
        file.close().await.expect("closes");
    };
    let options = Options { probe_dirs: vec![dir.path().to_owned()], ..options() };
    let shards = launch(&options, vec![main], Arc::new(Notes::default())).expect("this machine runs shards");
    assert_eq!(shards.join(), []);
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("lists").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

/// Set in the process that [`a_process_that_was_stopped_goes_on`] stops.
const CHILD: &str = "ENGINE_TEST_STOPPED_CHILD";

#[test]
fn a_process_that_was_stopped_goes_on() {
    if std::env::var_os(CHILD).is_some() {
        return busy_until_killed();
    }
    let name = "shard::tests::a_process_that_was_stopped_goes_on";
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test runs again");
    let (line, lines) = mpsc::channel();
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    let reader = std::thread::spawn(move || {
        for text in output.lines().map_while(Result::ok) {
            if line.send(text).is_err() {
                break;
            }
        }
    });
    let progress = |lines: &mpsc::Receiver<String>| {
        let start = Instant::now();
        loop {
            let text = lines.recv_timeout(SOON.saturating_sub(start.elapsed())).expect("the shards go on");
            if text.contains("progress") {
                return start.elapsed();
            }
        }
    };
    let report = lines.iter().find(|text| text.contains("buffers")).expect("it reports");
    assert!(!report.contains("expected: true") || report.contains("registered: Some(true)"), "{report}");
    let pid = rustix::process::Pid::from_child(&child);
    let mut stalls = Vec::new();
    for _ in 0..5 {
        progress(&lines);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("it lives");
        std::thread::sleep(Duration::from_millis(300));
        while lines.try_recv().is_ok() {}
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("it lives");
        stalls.push(progress(&lines));
    }
    child.kill().expect("it lives");
    child.wait().expect("it ends");
    drop(lines);
    reader.join().expect("it does not panic");
    // A lost park would not end: `progress` waits `SOON` and no longer. How long it took is the machine's affair.
    println!("until a thousand round trips after each stop: {stalls:?}");
}

/// Two shards that yield, sleep and wake each other; a line for every thousand round trips.
fn busy_until_killed() {
    let mut ends: Vec<_> = (0..2).map(|_| Some(mailbox::<u32>(4))).collect();
    let senders: Vec<_> = ends.iter().flatten().map(|end| end.sender(4).expect("room")).collect();
    let mains: Vec<_> = ends
        .iter_mut()
        .zip(senders.into_iter().rev())
        .map(|(end, to)| {
            let mut inbox = end.take().expect("taken once");
            move |rt: ShardRt, shard: ShardId| async move {
                let busy = rt.clone();
                rt.spawn(async move {
                    loop {
                        or(busy.yield_now(), busy.sleep(Duration::from_millis(5))).await;
                    }
                });
                if shard.0 == 0 {
                    to.send(0).await.expect("the other shard lives");
                }
                while let Some(count) = inbox.recv().await {
                    if count % 1000 == 1 {
                        println!("progress {count}");
                    }
                    to.send(count + 1).await.expect("the other shard lives");
                }
            }
        })
        .collect();
    let shards = launch(&options(), mains, Arc::new(Notes::default())).expect("this machine runs shards");
    println!("buffers {:?}", shards.buffers());
    assert_eq!(shards.join(), []);
}
