use super::*;

#[test]
fn a_sender_without_credit_gets_its_value_back_and_others_go_on() {
    let mut rx = mailbox::<u32>(3);
    let greedy = rx.sender(2).expect("two of three");
    let modest = rx.sender(1).expect("one of three");
    assert!(rx.sender(1).is_none());
    assert_eq!(greedy.try_send(1), Ok(()));
    assert_eq!(greedy.try_send(2), Ok(()));
    assert_eq!(greedy.try_send(3), Err(TrySendError::Full(3)));
    assert_eq!(modest.try_send(4), Ok(()));
    assert_eq!(rx.try_recv(), Ok(1));
    assert_eq!(greedy.try_send(3), Ok(()));
    drop((greedy, modest));
    assert_eq!([rx.recv_blocking(), rx.recv_blocking(), rx.recv_blocking()], [Some(2), Some(4), Some(3)]);
    assert_eq!(rx.recv_blocking(), None);
}

#[test]
fn a_waiting_send_is_woken_by_a_credit_and_by_a_receiver_that_leaves() {
    let mut rx = mailbox::<u32>(1);
    let tx = rx.sender(1).expect("the one");
    let thread = std::thread::spawn(move || {
        let sent = (0..10_000).take_while(|i| futures_lite::future::block_on(tx.send(*i)).is_ok()).count();
        (sent, tx.is_closed())
    });
    for i in 0..5_000 {
        assert_eq!(rx.recv_blocking(), Some(i));
    }
    drop(rx);
    let (sent, closed) = thread.join().expect("the sender does not panic");
    assert!((5_000..=5_001).contains(&sent) && closed);
}

#[test]
fn a_dropped_reply_is_an_answer() {
    let (reply, answer) = oneshot::<u8>();
    drop(reply);
    assert_eq!(answer.wait_blocking(), None);
    let (reply, answer) = oneshot::<u8>();
    assert_eq!(reply.send(7), Ok(()));
    assert_eq!(answer.wait_blocking(), Some(7));
    let (reply, answer) = oneshot::<u8>();
    drop(answer);
    assert_eq!(reply.send(7), Err(Closed(7)));
}

#[test]
fn an_answer_that_is_given_up_tells_who_works_for_it() {
    let (reply, answer) = oneshot::<u8>();
    let thread = std::thread::spawn(move || futures_lite::future::block_on(reply.closed()));
    drop(answer);
    thread.join().expect("the waiter does not panic");
    // A value sent just before is dropped with the answer, not with the reply.
    let value = Arc::new(());
    let (reply, answer) = oneshot();
    assert!(reply.send(value.clone()).is_ok());
    drop(answer);
    assert_eq!(Arc::strong_count(&value), 1);
}

#[test]
fn a_pipe_holds_its_window_and_tells_an_end_from_an_abort() {
    let (mut tx, mut rx) = pipe::<u8>(10);
    assert_eq!(tx.try_write(Bytes::from_static(b"1234567890")), Ok(()));
    assert!(matches!(tx.try_write(Bytes::from_static(b"x")), Err(TrySendError::Full(_))));
    assert_eq!(rx.read_blocking(), Ok(Some(Bytes::from_static(b"1234567890"))));
    assert_eq!(tx.try_write(Bytes::from_static(b"larger than the window")), Ok(()));
    assert!(rx.read_blocking().is_ok_and(|chunk| chunk.is_some()));
    tx.end();
    assert_eq!(rx.read_blocking(), Ok(None));
    assert_eq!(rx.read_blocking(), Ok(None));

    let (mut tx, mut rx) = pipe::<u8>(10);
    assert_eq!(tx.try_write(Bytes::from_static(b"half")), Ok(()));
    drop(tx);
    assert!(rx.read_blocking().is_ok_and(|chunk| chunk.is_some()));
    assert_eq!(rx.read_blocking(), Err(PipeError::Aborted));

    let (tx, mut rx) = pipe::<u8>(10);
    tx.fail(3);
    assert_eq!(rx.read_blocking(), Err(PipeError::Failed(3)));

    let (mut tx, rx) = pipe::<u8>(10);
    drop(rx);
    assert!(matches!(tx.try_write(Bytes::from_static(b"x")), Err(TrySendError::Closed(_))));
}

#[test]
fn credits_come_back_with_the_last_of_a_sender() {
    let mut rx = mailbox::<u32>(2);
    for round in 0..100 {
        let tx = rx.sender(2).expect("both");
        assert!(rx.sender(1).is_none());
        assert_eq!(tx.clone().try_send(round), Ok(()));
        drop(tx);
        // One value is queued still, with the credits.
        assert!(rx.sender(1).is_none());
        assert_eq!(rx.try_recv(), Ok(round));
    }
    assert_eq!(rx.inner.shares.lock().expect("no panic").len(), 1);
}

#[test]
fn an_answer_that_nobody_awaits_keeps_no_task() {
    let (reply, mut answer) = oneshot::<u8>();
    let task = Arc::new(NoOp);
    let waker = Waker::from(task.clone());
    assert!(Pin::new(&mut answer).poll(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(Arc::strong_count(&task), 3);
    drop(answer);
    assert_eq!(Arc::strong_count(&task), 2);
    assert!(reply.is_closed());
}

struct NoOp;

impl std::task::Wake for NoOp {
    fn wake(self: Arc<Self>) {}
}

/// Senders on many threads with few credits, some of which give up while they wait: everything sent arrives once, in
/// order, and nobody hangs.
#[test]
fn no_wake_is_lost_under_stress() {
    const THREADS: u64 = 4;
    const VALUES: u64 = 20_000;
    for credits in [1, 3] {
        let mut rx = mailbox::<(u64, u64)>(THREADS as usize * credits);
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let tx = rx.sender(credits).expect("room");
                let fickle = tx.clone();
                std::thread::spawn(move || {
                    let mut random = fastrand::Rng::with_seed(thread);
                    futures_lite::future::block_on(async {
                        for value in 0..VALUES {
                            if random.u8(..) < 64 {
                                // Registered, then dropped in the middle of the wait or the wake.
                                let mut sending = std::pin::pin!(fickle.send((thread, value)));
                                if futures_lite::future::poll_once(sending.as_mut()).await.is_some() {
                                    continue;
                                }
                            }
                            tx.send((thread, value)).await.expect("the receiver lives");
                        }
                    });
                })
            })
            .collect();
        let mut next = [0; THREADS as usize];
        while let Some((thread, value)) = rx.recv_blocking() {
            assert_eq!(value, next[usize::try_from(thread).expect("four")]);
            next[usize::try_from(thread).expect("four")] += 1;
        }
        assert_eq!(next, [VALUES; THREADS as usize]);
        threads.into_iter().for_each(|thread| thread.join().expect("it does not panic"));
    }
}

/// A slow reader, a window of a few bytes, and writers that end, fail or abort: no hang, no byte lost.
#[test]
fn no_wake_of_a_pipe_is_lost_under_stress() {
    for round in 0..300_u64 {
        let (mut tx, mut rx) = pipe::<u64>(7);
        let writer = std::thread::spawn(move || {
            futures_lite::future::block_on(async {
                for byte in 0..100 {
                    tx.write(Bytes::copy_from_slice(&[byte; 3])).await.expect("the reader lives");
                }
            });
            match round % 3 {
                0 => tx.end(),
                1 => tx.fail(round),
                _ => drop(tx),
            }
        });
        for byte in 0..100 {
            assert_eq!(rx.read_blocking(), Ok(Some(Bytes::copy_from_slice(&[byte; 3]))));
        }
        let last = match round % 3 {
            0 => Ok(None),
            1 => Err(PipeError::Failed(round)),
            _ => Err(PipeError::Aborted),
        };
        assert_eq!(rx.read_blocking(), last);
        writer.join().expect("it does not panic");
    }
}
