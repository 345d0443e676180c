//! The links between shards: one from each to each other, bounded by credits.
//!
//! Owns [`mesh`], which is built before the shards start, and its ends, one per shard. Each link has credits of its
//! own, reserved in the receiving shard's inbox, so a busy shard cannot keep another from being heard, and a send with
//! a credit never finds the inbox full. Invariant: a receiver gives the credit back when it takes the message, and
//! never awaits a send in between; then no ring of shards can deadlock. Answers travel by [`crate::mailbox::oneshot`]
//! inside the message: their room is reserved by the request.
//!
//! Left to others: what messages mean, and running their work concurrently (one slow read must not hold up the
//! messages behind it: the receiving loop spawns).

use crate::{
    mailbox::{Closed, Receiver, Sender, TrySendError, mailbox},
    shard::ShardId,
};

/// Builds the mesh of `shards` shards; every link has `credits` messages of room. The ends are in shard order, one to
/// be moved to each.
#[must_use]
pub fn mesh<T: Send>(shards: usize, credits: usize) -> Vec<MeshEnd<T>> {
    let inboxes: Vec<_> = (0..shards).map(|_| mailbox::<T>(credits * shards.saturating_sub(1))).collect();
    let links: Vec<_> = (0..shards)
        .map(|from| {
            let to = |(to, inbox): (usize, &Receiver<T>)| {
                (from != to).then(|| inbox.sender(credits).expect("the capacity is the sum of all links"))
            };
            Links { links: inboxes.iter().enumerate().map(to).collect() }
        })
        .collect();
    links.into_iter().zip(inboxes).map(|(links, inbox)| MeshEnd { links, inbox }).collect()
}

/// One shard's end of the mesh. The two halves are used side by side: one task receives, all others send.
pub struct MeshEnd<T> {
    /// The way to the other shards. Clones share its credits.
    pub links: Links<T>,
    /// What the other shards send. It ends when all of them have dropped their links.
    pub inbox: Receiver<T>,
}

impl<T: Send> MeshEnd<T> {
    /// As [`Links::send`].
    ///
    /// # Errors
    /// As [`Links::send`].
    pub async fn send(&self, to: ShardId, message: T) -> Result<(), Closed<T>> {
        self.links.send(to, message).await
    }

    /// As [`Links::try_send`].
    ///
    /// # Errors
    /// As [`Links::try_send`].
    pub fn try_send(&self, to: ShardId, message: T) -> Result<(), TrySendError<T>> {
        self.links.try_send(to, message)
    }
}

/// One shard's links to all others.
pub struct Links<T> {
    /// By shard; `None` at its own place.
    links: Vec<Option<Sender<T>>>,
}

impl<T> Clone for Links<T> {
    fn clone(&self) -> Self {
        Self { links: self.links.clone() }
    }
}

impl<T: Send> Links<T> {
    /// Shards in the mesh.
    #[must_use]
    pub fn shards(&self) -> usize {
        self.links.len()
    }

    /// The links one by one, by shard; `None` at its own place. Clones of a link share its credits.
    #[must_use]
    pub fn into_senders(self) -> Vec<Option<Sender<T>>> {
        self.links
    }

    /// Waits for a credit of the link and sends. Cancel-safe: a dropped future has sent nothing.
    ///
    /// # Errors
    /// The message comes back when the shard has dropped its inbox.
    ///
    /// # Panics
    /// `to` is this shard, or none of the mesh: a caller handles its own keys by a call.
    pub async fn send(&self, to: ShardId, message: T) -> Result<(), Closed<T>> {
        self.link(to).send(message).await
    }

    /// Sends if a credit is free. Never blocks.
    ///
    /// # Errors
    /// The message comes back when no credit is free or the shard has dropped its inbox.
    ///
    /// # Panics
    /// As [`Links::send`].
    pub fn try_send(&self, to: ShardId, message: T) -> Result<(), TrySendError<T>> {
        self.link(to).try_send(message)
    }

    fn link(&self, to: ShardId) -> &Sender<T> {
        let link = self.links.get(to.index()).and_then(Option::as_ref);
        link.unwrap_or_else(|| panic!("shard {to} is this one or not among the {} of the mesh", self.links.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
        time::Duration,
    };

    use super::*;
    use crate::{
        mailbox::{Reply, TryRecvError, oneshot},
        rt::{Rt, sim::Sim},
        shard::{Failure, Options, ShardRt, Supervisor, launch},
    };

    struct Panics;

    impl Supervisor for Panics {
        fn shard_failed(&self, failure: Failure) {
            eprintln!("{failure}");
        }
    }

    struct Question {
        number: u64,
        reply: Reply<u64>,
    }

    #[test]
    fn a_link_is_bounded_by_its_own_credits() {
        let mut ends = mesh::<u32>(3, 2);
        let [zero, one, two] = &mut ends[..] else { panic!("three ends") };
        assert_eq!((zero.links.shards(), one.links.shards()), (3, 3));
        for value in [1, 2] {
            assert_eq!(zero.try_send(ShardId(2), value), Ok(()));
        }
        assert_eq!(zero.try_send(ShardId(2), 3), Err(TrySendError::Full(3)));
        assert_eq!(one.try_send(ShardId(2), 4), Ok(()));
        assert_eq!(zero.try_send(ShardId(1), 5), Ok(()));
        assert_eq!([two.inbox.try_recv(), two.inbox.try_recv(), two.inbox.try_recv()], [Ok(1), Ok(2), Ok(4)]);
        assert_eq!(zero.try_send(ShardId(2), 3), Ok(()));
        assert_eq!(two.inbox.try_recv(), Ok(3));
        drop(ends.drain(..2));
        assert_eq!(ends[0].inbox.try_recv(), Err(TryRecvError::Closed));
        assert_eq!(ends[0].try_send(ShardId(0), 6), Err(TrySendError::Closed(6)));
    }

    #[test]
    fn a_single_shard_has_nobody_to_hear() {
        let mut ends = mesh::<u32>(1, 8);
        assert_eq!(ends[0].inbox.try_recv(), Err(TryRecvError::Closed));
    }

    #[test]
    #[should_panic(expected = "shard 1 is this one")]
    fn a_message_to_oneself_is_a_mistake() {
        drop(mesh::<u32>(2, 1)[1].try_send(ShardId(1), 0));
    }

    /// Every shard asks every other one, and answers in tasks of their own.
    async fn chat(rt: impl Rt, shard: ShardId, end: MeshEnd<Question>, askers: usize, questions: u64) -> u64 {
        let MeshEnd { links, mut inbox } = end;
        let answering = rt.clone();
        rt.spawn(async move {
            while let Some(Question { number, reply }) = inbox.recv().await {
                answering.spawn(async move {
                    // Nobody waits any more only when the asker was dropped: not in this test.
                    assert!(reply.send(number + 1).is_ok());
                });
            }
        });
        let shards = u16::try_from(links.shards()).expect("a small mesh");
        let (sum, mut sums) = (Arc::new(AtomicU64::new(0)), Vec::new());
        for asker in 0..askers {
            let (links, sum, (done, is_done)) = (links.clone(), sum.clone(), oneshot::<()>());
            let to = ShardId((shard.0 + 1 + u16::try_from(asker).expect("few") % (shards - 1)) % shards);
            rt.spawn(async move {
                for number in 0..questions {
                    let (reply, answer) = oneshot();
                    assert!(links.send(to, Question { number, reply }).await.is_ok());
                    sum.fetch_add(answer.await.expect("an answer"), Ordering::Relaxed);
                }
                assert!(done.send(()).is_ok());
            });
            sums.push(is_done);
        }
        drop(links);
        for is_done in sums {
            assert_eq!(is_done.await, Some(()));
        }
        sum.load(Ordering::Relaxed)
    }

    #[test]
    fn two_shards_exchange_a_hundred_thousand_messages() {
        const ASKERS: usize = 25;
        const QUESTIONS: u64 = 1000;
        let total = Arc::new(AtomicU64::new(0));
        let mains: Vec<_> = mesh::<Question>(2, 4)
            .into_iter()
            .map(|end| {
                let total = total.clone();
                move |rt: ShardRt, shard: ShardId| async move {
                    total.fetch_add(chat(rt, shard, end, ASKERS, QUESTIONS).await, Ordering::SeqCst);
                }
            })
            .collect();
        let options = Options { grace: Duration::from_secs(20), ..Options::default() };
        let shards = launch(&options, mains, Arc::new(Panics)).expect("this machine runs shards");
        assert_eq!(shards.join(), []);
        // 50,000 questions and as many answers.
        assert_eq!(total.load(Ordering::SeqCst), 2 * ASKERS as u64 * (QUESTIONS * (QUESTIONS + 1) / 2));
    }

    #[test]
    fn a_ring_of_busy_shards_with_one_credit_does_not_deadlock() {
        for seed in 0..20 {
            let sim = Sim::new(seed);
            let total = Arc::new(AtomicU64::new(0));
            for (shard, end) in (0..).map(ShardId).zip(mesh::<Question>(4, 1)) {
                let (rt, total) = (sim.rt(), total.clone());
                sim.rt().spawn(async move {
                    total.fetch_add(chat(rt, shard, end, 9, 10).await, Ordering::Relaxed);
                });
            }
            while sim.step() {}
            assert_eq!((sim.tasks(), total.load(Ordering::Relaxed)), (0, 4 * 9 * 55));
        }
    }
}
