//! Bodies in flight on one shard: a budget of bytes, entered before anything is done for a body (INV-4).
//!
//! Owns [`Inflight`], the account, and [`Ticket`], one request's part of it. The charges are upper bounds of what a
//! request makes the process hold, on any thread: buffers, windows between threads, pieces read ahead. They are fixed
//! when the work begins, so that nothing that runs ever has to wait for memory.
//!
//! At the bound a request waits its turn, in the order of arrival, [`WAIT_MAX`] at most; then it is refused with
//! [`Reason::Overload`], 503 and `Retry-After`. Large bodies have a queue of their own, which comes second, and a quarter
//! of the budget is kept from them: they do not keep small ones waiting (INV-8). Who waits is charged nothing and holds
//! nothing, so that whatever is charged comes to its end without waiting for another.
//!
//! Left to others: bytes that wait for tiers behind a write or read (`multi_tier`'s lanes and demotions), and RAM's own
//! bytes, which readers pin in place.
//!
//! [`Reason::Overload`]: crate::reason::Reason::Overload

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use super::stats::DoorStats;

/// What a request is charged before it is known what it asks for: a look-up that brings a small body along from
/// another thread, or the pages of flash that hold it.
pub const LOOKUP_BYTES: u64 = 136 << 10;

/// What a streamed body is charged besides its windows: pieces read ahead or gathered for the disk, and what the
/// connection holds of it.
pub const STREAM_BYTES: u64 = 768 << 10;

/// Windows a streamed body crosses at most: to the shard that owns the key, and from there to L3.
pub const STREAM_WINDOWS: u64 = 2;

/// Longest wait for a turn.
pub const WAIT_MAX: Duration = Duration::from_secs(5);

/// The part of the budget that large bodies do not get (one in so many).
const RESERVE_SHARE: u64 = 4;

/// Bytes a shard's budget must have, so that it can take a large body beside its reserve, for windows of
/// `window_bytes`.
#[must_use]
pub const fn budget_min(window_bytes: u64) -> u64 {
    stream_bytes(window_bytes) / (RESERVE_SHARE - 1) * RESERVE_SHARE + RESERVE_SHARE
}

const fn stream_bytes(window_bytes: u64) -> u64 {
    STREAM_WINDOWS * window_bytes + STREAM_BYTES
}

/// The budget of one shard. Single-threaded.
#[derive(Debug)]
pub struct Inflight {
    bytes_max: u64,
    stream_bytes: u64,
    used: Cell<u64>,
    /// Who waits for a turn, in order; small bodies and large ones. One request a connection, so as many as there may
    /// be connections.
    waiting: RefCell<[VecDeque<Rc<Waiting>>; 2]>,
    stats: Rc<DoorStats>,
}

#[derive(Debug)]
struct Waiting {
    bytes: u64,
    since: Duration,
    turn: Cell<Turn>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    NotYet,
    /// Charged already.
    Come,
    /// It took too long.
    Never,
}

impl Inflight {
    /// A budget of `bytes_max` for bodies that cross threads in windows of `window_bytes`.
    #[must_use]
    pub fn new(bytes_max: u64, window_bytes: u64, stats: Rc<DoorStats>) -> Rc<Self> {
        let (used, waiting) = (Cell::default(), RefCell::default());
        Rc::new(Self { bytes_max, stream_bytes: stream_bytes(window_bytes), used, waiting, stats })
    }

    /// Bytes charged now.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used.get()
    }

    /// Waits for a turn and charges [`LOOKUP_BYTES`]. `None`: the wait took too long. Dropping the future gives the
    /// turn up.
    pub(super) async fn enter(self: &Rc<Self>, now: Duration) -> Option<Ticket> {
        let mut ticket = Ticket { inflight: Rc::clone(self), bytes: 0 };
        ticket.charge(LOOKUP_BYTES, Class::Small, now).await.then_some(ticket)
    }

    /// Charges [`LOOKUP_BYTES`] for a request head that outgrows its connection's buffer; `None` when there is no room.
    pub(super) fn try_enter(self: &Rc<Self>) -> Option<Ticket> {
        let fits = self.try_charge(LOOKUP_BYTES, Class::Small);
        fits.then(|| Ticket { inflight: Rc::clone(self), bytes: LOOKUP_BYTES })
    }

    /// Refuses who has waited for [`WAIT_MAX`]. Called every now and then.
    pub(super) fn sweep(&self, now: Duration) {
        let overdue = |waiting: &mut Rc<Waiting>| now.saturating_sub(waiting.since) >= WAIT_MAX;
        for class in [Class::Small, Class::Large] {
            loop {
                let refused = self.waiting.borrow_mut()[class as usize].pop_front_if(overdue);
                let Some(refused) = refused else { break };
                refused.tell(Turn::Never);
            }
        }
    }

    fn try_charge(&self, bytes: u64, class: Class) -> bool {
        let bytes_max = match class {
            Class::Small => self.bytes_max,
            Class::Large => self.bytes_max - self.bytes_max / RESERVE_SHARE,
        };
        let after = self.used.get().saturating_add(bytes);
        let fits = after <= bytes_max;
        if fits {
            self.used.set(after);
        }
        fits
    }

    fn give_back(&self, bytes: u64) {
        self.used.set(self.used.get() - bytes);
        for class in [Class::Small, Class::Large] {
            loop {
                let fits = |first: &mut Rc<Waiting>| self.try_charge(first.bytes, class);
                let first = self.waiting.borrow_mut()[class as usize].pop_front_if(fits);
                let Some(first) = first else { break };
                first.tell(Turn::Come);
            }
        }
    }
}

impl Waiting {
    fn tell(&self, turn: Turn) {
        self.turn.set(turn);
        let waker = self.waker.borrow_mut().take();
        waker.into_iter().for_each(Waker::wake);
    }
}

/// Who may use what of the budget, and who comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Small,
    Large,
}

/// A place in a queue; left when dropped.
struct Place<'a> {
    inflight: &'a Inflight,
    class: Class,
    waiting: Rc<Waiting>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        match self.waiting.turn.get() {
            Turn::Never => {}
            Turn::NotYet => {
                let mut waiting = self.inflight.waiting.borrow_mut();
                waiting[self.class as usize].retain(|other| !Rc::ptr_eq(other, &self.waiting));
            }
            Turn::Come => self.inflight.give_back(self.waiting.bytes),
        }
    }
}

/// What one request, or the answers a connection still holds, are charged. Given back on drop.
#[derive(Debug)]
pub(super) struct Ticket {
    inflight: Rc<Inflight>,
    bytes: u64,
}

impl Ticket {
    /// `bytes` are at hand and nothing more will be read: the charge is that, unless it is less already.
    pub(super) fn hold(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        let back = self.bytes - bytes;
        self.bytes = bytes;
        if back > 0 {
            self.inflight.give_back(back);
        }
    }

    /// A body of `length` bytes (`None`: unknown) is about to be streamed: charges it if there is room now.
    #[must_use]
    pub(super) fn try_stream(&mut self, length: Option<u64>) -> bool {
        let stream = self.inflight.stream_bytes;
        // Whatever is read ahead, a body is in one place or copied on its way to the next.
        let bytes = length.map_or(stream, |length| stream.min(length.saturating_mul(2)));
        let Some(more) = bytes.checked_sub(self.bytes) else { return true };
        let nobody_waits = self.inflight.waiting.borrow()[Class::Large as usize].is_empty();
        let fits = nobody_waits && self.inflight.try_charge(more, Class::Large);
        if fits {
            self.bytes = bytes;
        }
        fits
    }

    /// Gives the charge back, and waits for a turn to stream a body of any length. The caller holds nothing meanwhile.
    /// `false`: the wait took too long.
    #[must_use]
    pub(super) async fn stream(&mut self, now: Duration) -> bool {
        self.hold(0);
        self.charge(self.inflight.stream_bytes, Class::Large, now).await
    }

    async fn charge(&mut self, bytes: u64, class: Class, now: Duration) -> bool {
        let inflight = &self.inflight;
        let nobody_waits = inflight.waiting.borrow()[class as usize].is_empty();
        if !(nobody_waits && inflight.try_charge(bytes, class)) {
            inflight.stats.waited();
            let waiting =
                Rc::new(Waiting { bytes, since: now, turn: Cell::new(Turn::NotYet), waker: RefCell::default() });
            let place = Place { inflight, class, waiting };
            inflight.waiting.borrow_mut()[class as usize].push_back(Rc::clone(&place.waiting));
            let turn = poll_fn(|cx| match place.waiting.turn.get() {
                Turn::NotYet => {
                    *place.waiting.waker.borrow_mut() = Some(cx.waker().clone());
                    Poll::Pending
                }
                turn => Poll::Ready(turn),
            });
            if turn.await == Turn::Never {
                return false;
            }
            // From here on the ticket gives the charge back.
            place.waiting.turn.set(Turn::Never);
        }
        self.bytes = bytes;
        true
    }

    /// Takes over what `other` is charged.
    pub(super) fn absorb(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.hold(0);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Context};

    use super::*;

    const WINDOW: u64 = 64 << 10;

    fn inflight(lookups: u64) -> Rc<Inflight> {
        Inflight::new(lookups * LOOKUP_BYTES, WINDOW, Rc::default())
    }

    /// The outcome, if it is there at once.
    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    fn enter(inflight: &Rc<Inflight>) -> Ticket {
        poll(pin!(inflight.enter(Duration::ZERO))).expect("no wait").expect("room")
    }

    #[test]
    fn turns_come_in_order_and_nothing_is_lost() {
        let inflight = inflight(2);
        let (one, mut two) = (enter(&inflight), enter(&inflight));
        let mut third = pin!(inflight.enter(Duration::ZERO));
        let mut fourth = pin!(inflight.enter(Duration::ZERO));
        assert!(poll(third.as_mut()).is_none() && poll(fourth.as_mut()).is_none());
        drop(one);
        assert!(poll(fourth.as_mut()).is_none(), "it is the third's turn");
        let third = poll(third).expect("its turn").expect("room");
        two.hold(LOOKUP_BYTES - 1);
        assert!(poll(fourth.as_mut()).is_none());
        two.hold(0);
        let fourth = poll(fourth).expect("its turn").expect("room");
        assert_eq!(inflight.used(), 2 * LOOKUP_BYTES);
        drop((two, third, fourth));
        assert_eq!(inflight.used(), 0);
    }

    #[test]
    fn who_leaves_the_queue_passes_the_turn_on() {
        let inflight = inflight(1);
        let first = enter(&inflight);
        let mut third = pin!(inflight.enter(Duration::ZERO));
        {
            let mut gone_early = pin!(inflight.enter(Duration::ZERO));
            assert!(poll(gone_early.as_mut()).is_none());
        }
        {
            let mut gone_late = pin!(inflight.enter(Duration::ZERO));
            assert!(poll(gone_late.as_mut()).is_none());
            assert!(poll(third.as_mut()).is_none());
            drop(first);
        }
        drop(poll(third).expect("the turn was passed on").expect("room"));
        assert_eq!(inflight.used(), 0);
    }

    #[test]
    fn a_wait_ends() {
        let inflight = inflight(1);
        let first = enter(&inflight);
        let mut second = pin!(inflight.enter(Duration::from_secs(1)));
        assert!(poll(second.as_mut()).is_none());
        inflight.sweep(WAIT_MAX);
        assert!(poll(second.as_mut()).is_none());
        inflight.sweep(WAIT_MAX + Duration::from_secs(1));
        assert!(poll(second).expect("an end").is_none());
        drop(first);
        assert_eq!(inflight.used(), 0);
        drop(enter(&inflight));
    }

    #[test]
    fn large_bodies_leave_the_reserve_and_are_charged_by_what_they_can_hold() {
        let budget = budget_min(WINDOW);
        let inflight = Inflight::new(budget, WINDOW, Rc::default());
        let mut large = enter(&inflight);
        assert!(large.try_stream(None), "the least budget has room for one");
        assert_eq!(inflight.used(), stream_bytes(WINDOW));
        let mut other = enter(&inflight);
        assert!(!other.try_stream(Some(1 << 30)), "the rest is for small ones");
        assert_eq!(inflight.used(), stream_bytes(WINDOW) + LOOKUP_BYTES, "a refusal changes nothing");
        other.hold(10);
        large.absorb(other);
        assert_eq!(inflight.used(), stream_bytes(WINDOW) + 10);
        drop(large);
        let mut middling = enter(&inflight);
        assert!(middling.try_stream(Some(100 << 10)));
        assert_eq!(inflight.used(), 200 << 10, "a body cannot be in more than two places");
    }

    #[test]
    fn large_bodies_wait_with_nothing_in_hand_and_after_the_small_ones() {
        let inflight = Inflight::new(budget_min(WINDOW) + 2 * LOOKUP_BYTES, WINDOW, Rc::default());
        let (mut one, mut two) = (enter(&inflight), enter(&inflight));
        assert!(one.try_stream(None) && !two.try_stream(None));
        let smalls: Vec<_> = std::iter::from_fn(|| poll(pin!(inflight.enter(Duration::ZERO))).flatten()).collect();
        let mut small = pin!(inflight.enter(Duration::ZERO));
        assert!(poll(small.as_mut()).is_none());
        {
            let mut turn = pin!(two.stream(Duration::ZERO));
            assert!(poll(turn.as_mut()).is_none());
            drop(poll(small).expect("what the large one gave back").expect("room"));
            drop(smalls);
            let mut late = enter(&inflight);
            assert!(!late.try_stream(Some(LOOKUP_BYTES)), "who waits comes first");
            drop(one);
            assert_eq!(poll(turn), Some(true));
        }
        drop(two);
        assert_eq!(inflight.used(), 0);
    }
}
