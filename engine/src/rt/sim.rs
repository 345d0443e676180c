//! A seeded scheduler in virtual time: the simulator's [`Rt`].
//!
//! Owns [`Sim`] (the scheduler a test drives), [`SimRt`] (the handle production code gets) and [`SimClock`]. One
//! thread runs everything; the seed alone decides which runnable task is polled next, when a timer fires among
//! runnable tasks, in which order a crash drops the tasks, and what [`Rt::random`] returns. Two runs of the same
//! code from the same seed are the same run: [`Sim::trace`] is equal.
//!
//! Invariants:
//!
//! - Time moves only between polls: to the next timer when nothing is runnable, or now and then to a timer at most
//!   [`EARLY_MAX`] away although tasks are runnable (a thread that was descheduled sees exactly that).
//! - A task is polled only when it was woken; wakes are counted once until the poll.
//! - Between two polls the whole world can be dropped ([`Sim::crash`]), so a test reaches every await point.
//!
//! Left to others: faults of devices and stores (their doubles), and wakes from other threads: they work, but a run
//! that depends on them is not a function of its seed.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use super::Rt;
use crate::clock::Clock;

/// The wall time at which a [`Sim`] starts unless told otherwise, in milliseconds since the epoch: 2024-01-01.
pub const WALL_START_MS: u64 = 1_704_067_200_000;

/// How far ahead a timer may be and still fire while tasks are runnable.
pub const EARLY_MAX: Duration = Duration::from_millis(10);

/// One step in this many looks for a timer to fire early.
pub const EARLY_ONE_IN: u32 = 32;

/// Polls after which a run is taken for a livelock, unless [`Sim::steps_max`] said otherwise.
pub const STEPS_MAX: u64 = 50_000_000;

/// The future given to [`Sim::block_on`]; spawned tasks count from 1.
const MAIN: u64 = 0;

/// The scheduler of one simulated world. Dropping it is a crash.
pub struct Sim {
    world: Rc<World>,
}

impl Sim {
    /// A world at [`WALL_START_MS`] whose every choice follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::starting_at(seed, WALL_START_MS)
    }

    /// As [`Sim::new`], at the given wall time in milliseconds since the epoch.
    #[must_use]
    pub fn starting_at(seed: u64, wall_ms: u64) -> Self {
        let mut fork = fastrand::Rng::with_seed(seed);
        Self {
            world: Rc::new(World {
                seed,
                clock: SimClock::new(wall_ms),
                wakes: Arc::default(),
                // Streams of their own: a call of `random` more or less leaves the schedule as it was.
                random: RefCell::new(fork.fork()),
                state: RefCell::new(State {
                    schedule: fork.fork(),
                    tasks: BTreeMap::new(),
                    runnable: Vec::new(),
                    timers: BTreeMap::new(),
                    main: false,
                    crashing: false,
                    ids: MAIN,
                    steps: 0,
                    steps_max: STEPS_MAX,
                    trace: seed,
                }),
            }),
        }
    }

    /// The handle that the code under test gets.
    #[must_use]
    pub fn rt(&self) -> SimRt {
        SimRt { clock: self.world.clock.clone(), world: self.world.clone() }
    }

    /// The clock of this world; the test may move it.
    #[must_use]
    pub fn clock(&self) -> &SimClock {
        &self.world.clock
    }

    /// The seed, for messages.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.world.seed
    }

    /// Polls done so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.world.state.borrow().steps
    }

    /// Tasks spawned and not finished.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.world.state.borrow().tasks.len()
    }

    /// A digest of which task was polled when. Equal for equal runs.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.world.state.borrow().trace
    }

    /// Sets the number of polls after which the run is taken for a livelock and panics.
    pub fn steps_max(&self, steps: u64) {
        self.world.state.borrow_mut().steps_max = steps;
    }

    /// Polls exactly one task, moving time to the next timer first when nothing is runnable. `false`: nothing is
    /// runnable and no timer is set.
    ///
    /// # Panics
    /// A task panicked, or the run is longer than [`Sim::steps_max`].
    pub fn step(&self) -> bool {
        match self.world.pick(Time::Moves) {
            Some(id) => {
                self.world.poll_task(id);
                true
            }
            None => false,
        }
    }

    /// Polls until nothing is runnable. Time does not move: what sleeps goes on sleeping.
    ///
    /// # Panics
    /// As [`Sim::step`].
    pub fn run_until_idle(&self) {
        while let Some(id) = self.world.pick(Time::Stands) {
            self.world.poll_task(id);
        }
    }

    /// Runs the world for `duration` of its time.
    ///
    /// # Panics
    /// As [`Sim::step`].
    pub fn run_for(&self, duration: Duration) {
        let rt = self.rt();
        self.block_on(rt.sleep(duration));
    }

    /// Runs the world until `main` completes. Spawned tasks stay and go on at the next call.
    ///
    /// # Panics
    /// A task panicked; `main` waits while nothing is runnable and no timer is set; the run is longer than
    /// [`Sim::steps_max`]; or it is called from inside a task of this world.
    pub fn block_on<T>(&self, main: impl Future<Output = T>) -> T {
        let nested = std::mem::replace(&mut self.world.state.borrow_mut().main, true);
        assert!(!nested, "block_on inside block_on, seed {}", self.seed());
        let end = MainEnd(&self.world);
        let mut main = pin!(main);
        let wake = Arc::new(TaskWake { id: MAIN, queued: AtomicBool::new(false), wakes: self.world.wakes.clone() });
        let waker = Waker::from(wake.clone());
        waker.wake_by_ref();
        loop {
            match self.world.pick(Time::Moves) {
                Some(MAIN) => {
                    wake.queued.store(false, Ordering::SeqCst);
                    if let Poll::Ready(value) = main.as_mut().poll(&mut Context::from_waker(&waker)) {
                        drop(end);
                        return value;
                    }
                }
                Some(id) => self.world.poll_task(id),
                None => panic!(
                    "deadlock, seed {}: after {} steps, at {:?}, the main future waits, nothing is runnable and no \
                     timer is set ({} tasks wait too)",
                    self.seed(),
                    self.steps(),
                    self.clock().elapsed(),
                    self.tasks()
                ),
            }
        }
    }

    /// Drops every task where it stands, in seeded order, and forgets all timers: what kill -9 does to a process,
    /// except that destructors run. What they spawn is dropped at once. Time and the random stream go on, so the
    /// same world can start anew.
    pub fn crash(&self) {
        let mut tasks = {
            let mut state = self.world.state.borrow_mut();
            state.crashing = true;
            state.runnable.clear();
            let mut tasks: Vec<Task> = std::mem::take(&mut state.tasks).into_values().collect();
            state.schedule.shuffle(&mut tasks);
            tasks
        };
        while let Some(task) = tasks.pop() {
            drop(task);
        }
        let timers = {
            let mut state = self.world.state.borrow_mut();
            state.crashing = false;
            std::mem::take(&mut state.timers)
        };
        drop(timers);
        self.world.wakes.take();
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("simulation seed {}, {} steps", self.world.seed, self.world.state.borrow().steps);
        }
        // Tasks hold handles to the world that holds them.
        self.crash();
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("seed", &self.seed()).field("steps", &self.steps()).finish_non_exhaustive()
    }
}

/// Notes the end of `block_on`, also when it panics.
struct MainEnd<'a>(&'a World);

impl Drop for MainEnd<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.borrow_mut();
        state.main = false;
        state.runnable.retain(|id| *id != MAIN);
    }
}

/// Whether a pick may move the clock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Time {
    Moves,
    Stands,
}

struct World {
    seed: u64,
    clock: SimClock,
    wakes: Arc<Wakes>,
    random: RefCell<fastrand::Rng>,
    state: RefCell<State>,
}

struct State {
    schedule: fastrand::Rng,
    /// Waiting and runnable tasks by id; the one being polled is out.
    tasks: BTreeMap<u64, Task>,
    runnable: Vec<u64>,
    timers: BTreeMap<(Duration, u64), Waker>,
    /// `block_on` is running.
    main: bool,
    crashing: bool,
    /// The last id given to a task or a timer.
    ids: u64,
    steps: u64,
    steps_max: u64,
    trace: u64,
}

impl State {
    fn next_id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    wake: Arc<TaskWake>,
}

impl World {
    /// The task to poll next, or `None` when there is none (and no timer, if time moves).
    fn pick(&self, time: Time) -> Option<u64> {
        loop {
            self.wake_due();
            let mut state = self.state.borrow_mut();
            for id in self.wakes.take() {
                // A wake may outlive its task.
                if state.tasks.contains_key(&id) || (id == MAIN && state.main) {
                    state.runnable.push(id);
                }
            }
            let next_timer = state.timers.first_key_value().map(|((deadline, _), _)| *deadline);
            if let (Time::Moves, Some(deadline)) = (time, next_timer) {
                let early = deadline.saturating_sub(self.clock.elapsed()) <= EARLY_MAX
                    && state.schedule.u32(..EARLY_ONE_IN) == 0;
                if state.runnable.is_empty() || early {
                    self.clock.advance_to(deadline);
                    continue;
                }
            }
            if state.runnable.is_empty() {
                return None;
            }
            let choices = state.runnable.len();
            let choice = state.schedule.usize(..choices);
            let id = state.runnable.swap_remove(choice);
            state.steps += 1;
            assert!(
                state.steps <= state.steps_max,
                "livelock, seed {}: still running after {} steps, at {:?}",
                self.seed,
                state.steps_max,
                self.clock.elapsed()
            );
            let now = u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX);
            state.trace = (state.trace.rotate_left(5) ^ id ^ now).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            return Some(id);
        }
    }

    fn wake_due(&self) {
        loop {
            let due = {
                let mut state = self.state.borrow_mut();
                match state.timers.first_entry() {
                    Some(timer) if timer.key().0 <= self.clock.elapsed() => timer.remove(),
                    _ => return,
                }
            };
            due.wake();
        }
    }

    fn poll_task(&self, id: u64) {
        let Some(mut task) = self.state.borrow_mut().tasks.remove(&id) else { return };
        task.wake.queued.store(false, Ordering::SeqCst);
        let waker = Waker::from(task.wake.clone());
        if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
            self.state.borrow_mut().tasks.insert(id, task);
        }
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()>>>) {
        let wake = {
            let mut state = self.state.borrow_mut();
            if state.crashing {
                return;
            }
            let id = state.next_id();
            let wake = Arc::new(TaskWake { id, queued: AtomicBool::new(false), wakes: self.wakes.clone() });
            state.tasks.insert(id, Task { future, wake: wake.clone() });
            wake
        };
        wake.wake();
    }
}

/// Tasks woken since the last pick. Shared with wakers, which are `Send`.
#[derive(Default)]
struct Wakes {
    woken: Mutex<Vec<u64>>,
}

impl Wakes {
    fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.woken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct TaskWake {
    id: u64,
    /// Woken and not polled since.
    queued: AtomicBool,
    wakes: Arc<Wakes>,
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::SeqCst) {
            self.wakes.woken.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
        }
    }
}

/// A handle to the [`Sim`] that runs the current task.
#[derive(Clone)]
pub struct SimRt {
    world: Rc<World>,
    clock: SimClock,
}

impl SimRt {
    /// The seed of the world, for messages.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.world.seed
    }
}

impl fmt::Debug for SimRt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimRt").field("seed", &self.world.seed).finish_non_exhaustive()
    }
}

impl Rt for SimRt {
    type Clock = SimClock;

    fn clock(&self) -> &SimClock {
        &self.clock
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.world.spawn(Box::pin(task));
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + 'static {
        let deadline = self.clock.elapsed().saturating_add(duration);
        Sleep { world: self.world.clone(), deadline, timer: None }
    }

    fn yield_now(&self) -> impl Future<Output = ()> + 'static {
        futures_lite::future::yield_now()
    }

    fn random(&self) -> u64 {
        self.world.random.borrow_mut().u64(..)
    }
}

struct Sleep {
    world: Rc<World>,
    deadline: Duration,
    timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.world.clock.elapsed() >= self.deadline {
            return Poll::Ready(());
        }
        let world = self.world.clone();
        let mut state = world.state.borrow_mut();
        let timer = *self.timer.get_or_insert_with(|| state.next_id());
        let replaced = state.timers.insert((self.deadline, timer), cx.waker().clone());
        drop(state);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            let removed = self.world.state.borrow_mut().timers.remove(&(self.deadline, timer));
            drop(removed);
        }
    }
}

/// Virtual time: both readings advance together, and only when the scheduler or the test says so.
#[derive(Clone, Debug)]
pub struct SimClock {
    time: Rc<SimTime>,
}

#[derive(Debug)]
struct SimTime {
    elapsed: Cell<Duration>,
    /// The wall reading at `elapsed == 0`; signed, because the wall may be set back before the start.
    wall_origin_ms: Cell<i64>,
}

impl SimClock {
    /// A clock at zero whose wall reading is `wall_ms`, in milliseconds since the epoch.
    #[must_use]
    pub fn new(wall_ms: u64) -> Self {
        let origin = i64::try_from(wall_ms).unwrap_or(i64::MAX);
        Self { time: Rc::new(SimTime { elapsed: Cell::new(Duration::ZERO), wall_origin_ms: Cell::new(origin) }) }
    }

    /// Moves both readings forward. Timers that are due fire at the scheduler's next step.
    pub fn advance(&self, by: Duration) {
        self.time.elapsed.set(self.time.elapsed.get().saturating_add(by));
    }

    /// Sets the wall reading, `by_ms` ahead or back, as an operator or NTP does. Monotonic time stays.
    pub fn step_wall_ms(&self, by_ms: i64) {
        self.time.wall_origin_ms.set(self.time.wall_origin_ms.get().saturating_add(by_ms));
    }

    fn advance_to(&self, deadline: Duration) {
        self.time.elapsed.set(self.time.elapsed.get().max(deadline));
    }
}

impl Clock for SimClock {
    fn elapsed(&self) -> Duration {
        self.time.elapsed.get()
    }

    fn wall_ms(&self) -> u64 {
        let elapsed = i64::try_from(self.elapsed().as_millis()).unwrap_or(i64::MAX);
        // As the machine's clock: before 1970 reads as the epoch.
        u64::try_from(self.time.wall_origin_ms.get().saturating_add(elapsed)).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
