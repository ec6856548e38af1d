use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use tokio::sync::oneshot;

use super::*;

/// Runs a test as a data thread runs.
pub(crate) fn on_executor<T: 'static>(test: impl Future<Output = T> + 'static) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let lender = runtime.handle().clone();
    let (over, ended) = oneshot::channel::<()>();
    let aside = std::thread::spawn(move || drop(runtime.block_on(ended)));
    let output = block_on(lender, test).unwrap();
    drop(over);
    aside.join().unwrap();
    output
}

fn pair() -> (UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    (near, far)
}

#[test]
fn tasks_take_turns() {
    let order = on_executor(async {
        let order = Rc::new(RefCell::new(Vec::new()));
        for name in ["a", "b"] {
            let order = order.clone();
            spawn(async move {
                for _ in 0..2 {
                    order.borrow_mut().push(name);
                    yield_now().await;
                }
            });
        }
        while order.borrow().len() < 4 {
            yield_now().await;
        }
        order.take()
    });
    assert_eq!(order, ["a", "b", "a", "b"]);
}

#[test]
fn whoever_rests_lets_others_have_their_turns() {
    let turns = on_executor(async {
        let turns = Rc::new(Cell::new(0));
        let count = turns.clone();
        spawn(async move {
            loop {
                count.set(count.get() + 1);
                yield_now().await;
            }
        });
        rest().await;
        let first = turns.get();
        rest().await;
        [first, turns.get() - first]
    });
    assert!(turns.iter().all(|&turns| turns > 0), "{turns:?}");
}

#[test]
fn a_rest_ends_where_nothing_happens() {
    on_executor(async {
        for _ in 0..3 {
            rest().await;
        }
    });
}

#[test]
fn whoever_yields_for_ever_does_not_keep_sockets_waiting() {
    on_executor(async {
        let (near, mut far) = pair();
        let near = Registered::new(near).unwrap();
        spawn(async {
            loop {
                yield_now().await;
            }
        });
        far.write_all(b"x").unwrap();
        poll_fn(|cx| near.poll_readable(cx)).await;
    });
}

#[test]
fn a_task_that_is_aborted_is_dropped_and_its_place_is_another_s() {
    on_executor(async {
        let (alive, mut gone) = oneshot::channel::<()>();
        let waits = spawn(async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        yield_now().await;
        assert!(gone.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        waits.abort();
        assert!(gone.try_recv() == Err(oneshot::error::TryRecvError::Closed));
        let (said, heard) = oneshot::channel();
        spawn(async move { said.send(7).unwrap() });
        assert_eq!(heard.await, Ok(7));
    });
}

#[test]
fn a_waker_of_a_task_that_ended_wakes_nobody() {
    on_executor(async {
        let kept = Rc::new(RefCell::new(None));
        let keep = kept.clone();
        spawn(poll_fn(move |cx| {
            *keep.borrow_mut() = Some(cx.waker().clone());
            Poll::Ready(())
        }));
        yield_now().await;
        let polls = Rc::new(Cell::new(0));
        let count = polls.clone();
        spawn(poll_fn(move |_| {
            count.set(count.get() + 1);
            Poll::Pending
        }));
        yield_now().await;
        kept.take().unwrap().wake();
        yield_now().await;
        assert_eq!(polls.get(), 1);
    });
}

#[test]
fn other_threads_wake_a_task_each_time() {
    on_executor(async {
        let (ask, asked) = mpsc::channel::<oneshot::Sender<u32>>();
        let answering = std::thread::spawn(move || {
            for (number, reply) in (0..).zip(asked) {
                reply.send(number).unwrap();
            }
        });
        for expected in 0..1000 {
            let (reply, answer) = oneshot::channel();
            ask.send(reply).unwrap();
            assert_eq!(answer.await, Ok(expected));
        }
        drop(ask);
        answering.join().unwrap();
    });
}

#[test]
fn a_panic_ends_its_task_alone() {
    on_executor(async {
        let (alive, gone) = oneshot::channel::<()>();
        spawn(async move {
            let _alive = alive;
            panic!("on purpose");
        });
        assert!(gone.await.is_err());
    });
}

#[test]
fn what_still_runs_at_the_end_is_dropped() {
    struct Last(mpsc::Sender<()>);
    impl Drop for Last {
        fn drop(&mut self) {
            let said = self.0.clone();
            // Nobody runs it, but it is dropped as well.
            spawn(async move { drop(said) });
        }
    }
    let (said, heard) = mpsc::channel();
    on_executor(async move {
        spawn(async move {
            let _last = Last(said);
            std::future::pending::<()>().await;
        });
        yield_now().await;
    });
    assert_eq!(heard.try_recv(), Err(mpsc::TryRecvError::Disconnected));
}

#[test]
fn timers_and_work_aside_are_lent() {
    on_executor(async {
        let here = std::thread::current().id();
        let there = aside(|| std::thread::current().id()).await.unwrap();
        assert_ne!(here, there);
        crate::clock::timers::sleep(std::time::Duration::from_millis(1)).await;
    });
}

#[test]
fn an_end_is_read_though_it_came_with_the_last_bytes() {
    on_executor(async {
        let (near, mut far) = pair();
        let near = Registered::new(near).unwrap();
        far.write_all(b"bye").unwrap();
        drop(far);
        poll_fn(|cx| near.poll_readable(cx)).await;
        let mut buf = [0; 8];
        assert_eq!(rustix::io::read(&near, &mut buf).unwrap(), 3);
        near.nothing_to_read();
        poll_fn(|cx| near.poll_readable(cx)).await;
        assert_eq!(rustix::io::read(&near, &mut buf).unwrap(), 0);
    });
}

#[test]
fn an_event_for_a_socket_that_is_gone_reaches_no_other() {
    on_executor(async {
        let (near, mut far) = pair();
        let first = Registered::new(near.try_clone().unwrap()).unwrap();
        drop(first);
        let (other, _quiet) = pair();
        let other = Registered::new(other).unwrap();
        // The kernel still knows the first: the description lives on.
        far.write_all(b"x").unwrap();
        yield_now().await;
        assert!(!other.is_readable());
    });
}

fn registered() -> (Registered, UnixStream) {
    let (near, far) = pair();
    far.set_nonblocking(true).unwrap();
    (Registered::new(near).unwrap(), far)
}

fn heard(far: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    // The end of what there is.
    let _ = far.read_to_end(&mut all);
    all
}

#[test]
fn what_is_posted_goes_when_all_had_their_say_and_before_what_is_sent() {
    on_executor(async {
        let (near, mut far) = registered();
        assert!(near.post(b"one") && near.post(b"two"));
        assert!(near.owes() && heard(&mut far).is_empty());
        yield_now().await;
        assert!(!near.owes());
        assert_eq!(heard(&mut far), b"onetwo");

        assert!(near.post(b"three"));
        assert!(near.settle().unwrap());
        assert_eq!(heard(&mut far), b"three");
    });
}

#[test]
fn what_is_posted_goes_though_its_socket_is_dropped() {
    on_executor(async {
        let (near, mut far) = registered();
        assert!(near.post(b"bye"));
        drop(near);
        yield_now().await;
        assert_eq!(heard(&mut far), b"bye");
        assert_eq!(far.read(&mut [0]).unwrap(), 0);
    });
}

#[test]
fn what_does_not_fit_is_kept_in_order_and_its_task_woken() {
    on_executor(async {
        let (near, mut far) = registered();
        let mut sent = Vec::new();
        let mut message = 0_u16;
        while !near.is_stuck() {
            let _ = poll_fn(|cx| Poll::Ready(near.poll_readable(cx))).await;
            for _ in 0..8 {
                let bytes = message.to_ne_bytes().repeat(2000);
                if near.post(&bytes) {
                    sent.extend(bytes);
                    message += 1;
                }
            }
            yield_now().await;
        }
        assert!(!near.post(b"more") && !near.settle().unwrap());
        let mut got = heard(&mut far);
        while near.owes() {
            poll_fn(|cx| match near.settle() {
                Ok(false) => near.poll_writable(cx),
                settled => Poll::Ready(settled.map(drop).map_err(Into::into)),
            })
            .await
            .unwrap();
            got.extend(heard(&mut far));
        }
        got.extend(heard(&mut far));
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    });
}

#[test]
fn a_reader_finds_the_end_where_what_was_posted_could_not_be_sent() {
    on_executor(async {
        let (near, far) = registered();
        drop(far);
        assert!(near.post(b"lost"));
        yield_now().await;
        poll_fn(|cx| near.poll_readable(cx)).await;
        assert_eq!(rustix::io::read(&near, &mut [0; 8]), Ok(0));
        assert!(near.settle().unwrap());
    });
}
