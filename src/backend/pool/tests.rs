use std::cell::Cell;
use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;

use super::*;
use crate::backend::Pace;
use crate::backend::parameters::APPLICATION_NAME;
use crate::backend::prepared::Prepared;
use crate::config::Target;
use crate::executor::{self, on_executor};
use crate::lease::{BackendId, Generation};
use crate::ledger::CancelTarget;
use crate::net::stream::Spot;
use crate::net::{Socket, Stream};
use crate::wire::reply::Fault;
use crate::wire::startup::CancelKey;

/// The far ends of the sockets stay open as long as this lives.
struct House {
    pool: Rc<Pool>,
    baseline: Rc<Baseline>,
    /// What whoever asks wants to find, and was told.
    state: Rc<State>,
    told: Rc<Parameters>,
    peers: Vec<UnixStream>,
}

impl House {
    fn new(max: usize) -> Self {
        Self {
            pool: Pool::new("db".into(), "user".into(), max),
            baseline: Rc::default(),
            state: Rc::default(),
            told: Rc::default(),
            peers: Vec::new(),
        }
    }

    fn backend(&mut self, id: u64) -> Box<Backend> {
        let (near, far) = UnixStream::pair().unwrap();
        self.peers.push(far);
        Box::new(Backend {
            id: BackendId(id),
            stream: Stream::Unix(Socket::new(near.into()).unwrap()),
            target: Target::Any,
            key: Rc::new(CancelTarget {
                key: CancelKey {
                    pid: 1,
                    secret: Box::default(),
                },
                born: Moment::default(),
                local: None,
                encrypted: false,
                spot: Spot {
                    host: 0,
                    address: None,
                },
                in_flight: Cell::new(0),
                held: Cell::new(None),
            }),
            parameters: Rc::default(),
            notices: Vec::new(),
            baseline: self.baseline.clone(),
            application: "".into(),
            home: Home::Clean,
            rested: Moment::default(),
            generation: Generation::default(),
            carries: Rc::default(),
            prepared: Prepared::default(),
            spent: false,
            opaque: false,
            stained: false,
            pace: Pace::Brisk,
            unread: Vec::new(),
        })
    }

    fn wait(&self) -> Wait {
        self.pool.wait(SessionId::new(1), Moment::default())
    }

    fn ask(&self, session: u32) -> Option<Grant> {
        let now = Moment::from_micros(10_000_000);
        let request = Request {
            state: &self.state,
            told: &self.told,
            session: SessionId::new(session),
            baseline: &self.baseline,
            elsewhere: false,
            now,
        };
        self.pool.try_acquire(request)
    }

    /// Opens a backend for a session, and gives it back carrying that session's state.
    fn park(&mut self, id: u64, session: u32) {
        let Some(Grant::Open(permit)) = self.ask(session) else {
            panic!("no permit")
        };
        let mut backend = self.backend(id);
        backend.home = Home::Of(SessionId::new(session));
        // Another state than the blank one that sessions ask for here.
        backend.carries = Rc::new(State {
            role: Some(format!("role {session}")),
            ..State::default()
        });
        self.pool
            .give_back(Lent { backend, permit }, Moment::from_micros(10_000_000));
    }
}

fn lent(grant: Option<Grant>) -> u64 {
    match grant {
        Some(Grant::Lent(lent)) => lent.backend.id.0,
        other => panic!("expected a backend, not {other:?}"),
    }
}

fn on_a_runtime(test: impl FnOnce() + 'static) {
    on_executor(async { test() });
}

#[test]
fn permits_never_exceed_the_bound() {
    on_a_runtime(|| {
        let house = House::new(2);
        let (first, second) = (house.ask(1), house.ask(2));
        assert!(matches!(
            (&first, &second),
            (Some(Grant::Open(_)), Some(Grant::Open(_)))
        ));
        assert!(house.ask(3).is_none());
        drop(first);
        assert!(matches!(house.ask(3), Some(Grant::Open(_))));
    });
}

#[test]
fn a_session_gets_its_own_warm_backend_back() {
    on_a_runtime(|| {
        let mut house = House::new(3);
        house.park(1, 11);
        house.park(2, 12);
        assert_eq!(lent(house.ask(11)), 1);
    });
}

#[test]
fn a_session_that_moved_on_never_gets_its_old_backend_back_unscrubbed() {
    on_a_runtime(|| {
        let mut house = House::new(1);
        house.park(1, 11);
        house.pool.leave(SessionId::new(11));
        let Some(Grant::Lent(lent)) = house.ask(11) else {
            panic!("no backend")
        };
        assert_eq!(lent.backend.home, Home::Left);
    });
}

#[test]
fn a_full_pool_lends_the_warm_backend_that_rested_longest() {
    on_a_runtime(|| {
        let mut house = House::new(2);
        house.park(1, 11);
        house.park(2, 12);
        assert_eq!(lent(house.ask(13)), 1);
    });
}

#[test]
fn whoever_waits_first_is_served_first() {
    on_a_runtime(|| {
        let mut house = House::new(1);
        let Some(Grant::Open(permit)) = house.ask(1) else {
            panic!()
        };
        let mut context = Context::from_waker(Waker::noop());
        let (mut first, mut second) = (house.wait(), house.wait());
        assert!(Pin::new(&mut first).poll(&mut context).is_pending());

        let backend = house.backend(1);
        house
            .pool
            .give_back(Lent { backend, permit }, Moment::default());

        assert!(Pin::new(&mut second).poll(&mut context).is_pending());
        assert!(Pin::new(&mut first).poll(&mut context).is_ready());
    });
}

#[test]
fn a_grant_to_somebody_who_left_goes_to_the_next() {
    on_a_runtime(|| {
        let mut house = House::new(1);
        let Some(Grant::Open(permit)) = house.ask(1) else {
            panic!()
        };
        let (first, mut second) = (house.wait(), house.wait());
        let backend = house.backend(1);
        house
            .pool
            .give_back(Lent { backend, permit }, Moment::default());

        drop(first);

        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut second).poll(&mut context).is_ready());
    });
}

#[test]
fn a_dead_backend_is_not_lent() {
    on_executor(async {
        let mut house = House::new(1);
        house.park(1, 11);
        house.peers.clear();
        while house.pool.state.borrow().idle[0].backend.stream.pulse()
            == crate::net::stream::Pulse::Quiet
        {
            executor::yield_now().await;
        }
        assert!(matches!(house.ask(11), Some(Grant::Open(_))));
    });
}

#[test]
fn other_startup_parameters_get_a_backend_of_their_own() {
    on_a_runtime(|| {
        let mut house = House::new(1);
        house.park(1, 11);
        house.baseline = Rc::new(Baseline(BTreeMap::from([(
            "DateStyle".to_owned(),
            "SQL".to_owned(),
        )])));
        assert!(matches!(house.ask(12), Some(Grant::Open(_))));
    });
}

#[test]
fn a_refused_login_is_not_tried_again_at_once() {
    let house = House::new(1);
    let refused = ClientError::new(Fault::Backend, "28P01", "no");
    let now = Moment::from_micros(1_000_000);

    house.pool.failed(&refused, now);

    assert_eq!(house.pool.begin_opening(now).err(), Some(refused));
    assert!(
        house
            .pool
            .begin_opening(now.after(Duration::from_secs(1)))
            .is_ok()
    );
}

#[test]
fn a_backend_that_carries_the_same_state_is_as_good_as_a_clean_one() {
    on_a_runtime(|| {
        let mut house = House::new(3);
        house.park(1, 11);
        house.park(2, 12);
        house.pool.state.borrow_mut().idle[1].backend.carries = Rc::default();
        assert_eq!(lent(house.ask(13)), 2);
    });
}

#[test]
fn what_a_session_left_blank_is_as_good_as_new() {
    on_a_runtime(|| {
        let mut house = House::new(3);
        for (id, session) in [(1, 11), (2, 12)] {
            house.park(id, session);
            house.pool.leave(SessionId::new(session));
        }
        house.pool.state.borrow_mut().idle[0].backend.carries = Rc::default();
        house.state = Rc::new(State {
            role: Some("another".to_owned()),
            ..State::default()
        });
        assert_eq!(lent(house.ask(13)), 1);
        assert!(matches!(house.ask(13), Some(Grant::Open(_))));
    });
}

#[test]
fn of_those_that_are_alike_one_of_the_same_name_is_best() {
    on_a_runtime(|| {
        let mut house = House::new(3);
        for (id, session) in [(1, 11), (2, 12), (3, 13)] {
            house.park(id, session);
        }
        for (place, lent) in house.pool.state.borrow_mut().idle.iter_mut().enumerate() {
            lent.backend.carries = Rc::default();
            let name = ["web", "jobs", "web"][place];
            Rc::make_mut(&mut lent.backend.parameters).set(APPLICATION_NAME, name);
        }
        Rc::make_mut(&mut house.told).set(APPLICATION_NAME, "jobs");
        let order = [14, 15, 16].map(|session| lent(house.ask(session)));
        assert_eq!(order, [2, 3, 1]);
    });
}

#[test]
fn a_borrowed_backend_comes_back_as_it_was_unless_its_session_has_moved_on() {
    on_a_runtime(|| {
        let mut house = House::new(4);
        let sessions = [11, 12, 13];
        for (id, session) in (1..).zip(sessions) {
            house.park(id, session);
        }
        let borrowed = [1, 2, 3].map(|id| house.pool.borrow_idle(BackendId(id)));
        assert!(house.pool.borrow_idle(BackendId(1)).is_none());
        assert_eq!(house.pool.census().leased, 3);
        house.pool.leave(SessionId::new(12));
        assert!(house.pool.take_warm(SessionId::new(13)).is_none());
        for borrowed in borrowed.into_iter().flatten() {
            borrowed.give_back();
        }
        let warm = sessions.map(|id| house.pool.take_warm(SessionId::new(id)).is_some());
        assert_eq!(warm, [true, false, false]);
    });
}

#[test]
fn a_paused_pool_lends_nothing_and_keeps_nothing_until_it_is_resumed() {
    on_a_runtime(|| {
        let mut house = House::new(2);
        let Some(Grant::Open(permit)) = house.ask(1) else {
            panic!()
        };
        let mut context = Context::from_waker(Waker::noop());

        house.pool.pause();
        assert!(house.ask(2).is_none());
        let (mut first, mut second) = (house.wait(), house.wait());
        let backend = house.backend(1);
        house
            .pool
            .give_back(Lent { backend, permit }, Moment::default());
        assert!(Pin::new(&mut first).poll(&mut context).is_pending());
        let census = house.pool.census();
        assert_eq!((census.leased, census.idle, census.waiting), (0, 0, 2));

        house.pool.resume();
        for wait in [&mut first, &mut second] {
            let granted = Pin::new(wait).poll(&mut context);
            assert!(matches!(granted, Poll::Ready(Grant::Open(_))));
        }
    });
}

#[test]
fn backends_from_before_a_renewal_are_closed_as_they_come_back() {
    on_a_runtime(|| {
        let mut house = House::new(2);
        for id in [1, 2] {
            let Some(Grant::Open(permit)) = house.ask(1) else {
                panic!()
            };
            house.pool.renew(BackendId(2));
            let backend = house.backend(id);
            house
                .pool
                .give_back(Lent { backend, permit }, Moment::default());
            assert_eq!(house.pool.census().idle, usize::from(id == 2));
        }
    });
}

#[test]
fn a_backend_whose_host_is_no_longer_what_is_wanted_is_closed() {
    on_a_runtime(|| {
        let mut house = House::new(2);
        let mut backend = house.backend(1);
        backend.target = Target::Primary;
        let mut reported = Parameters::default();
        reported.set("in_hot_standby", "on");
        backend.parameters = Rc::new(reported);
        let Some(Grant::Open(permit)) = house.ask(1) else {
            panic!("there is room")
        };
        house
            .pool
            .give_back(Lent { backend, permit }, Moment::default());
        assert!(!house.pool.census().is_in_use());
    });
}

#[test]
fn backends_that_were_opened_together_do_not_all_end_together() {
    on_a_runtime(|| {
        let mut house = House::new(16);
        for id in 0..16 {
            let Some(Grant::Open(permit)) = house.ask(1) else {
                panic!("there is room")
            };
            let backend = house.backend(id);
            let held = Lent { backend, permit };
            house.pool.state.borrow_mut().idle.push(held);
            if id < 15 {
                // The next one needs a permit of its own.
                house
                    .pool
                    .state
                    .borrow_mut()
                    .idle
                    .last_mut()
                    .expect("one")
                    .backend
                    .baseline = Rc::new(Baseline([("k".to_owned(), id.to_string())].into()));
            }
        }
        let lifetime = Duration::from_secs(128 * 60);
        let ended_by = |minutes: u64| {
            let now = Moment::default().after(Duration::from_secs(minutes * 60));
            house.pool.tend(now, lifetime, Duration::ZERO);
            16 - house.pool.census().idle
        };
        assert_eq!(ended_by(112), 0);
        assert_eq!(ended_by(120), 8);
        assert_eq!(ended_by(128), 16);
    });
}
