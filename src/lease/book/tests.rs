use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::lease::policy::{Basis, Verdict};
use crate::lease::reload::Method;
use crate::lease::rules::{Due, IdleInTransaction, Policy};
use crate::lease::state::Status;

fn profile(application: &str) -> Profile {
    Profile {
        database: "app".into(),
        user: "app".into(),
        application: application.into(),
        client: ClientAddress::Unix,
    }
}

fn at(millis: u64) -> Moment {
    Moment::from_micros(millis * 1000)
}

/// What a test may do to one of a few sessions.
#[derive(Clone, Copy, Debug)]
enum Act {
    Step(usize, Event),
    Reopen(usize),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let event = prop_oneof![
        (0..3u64).prop_map(|id| Event::Granted(BackendId(id))),
        Just(Event::Requested),
        prop_oneof![
            Just(Status::Idle),
            Just(Status::InTransaction),
            Just(Status::Failed)
        ]
        .prop_map(Event::Ready),
        Just(Event::ReturnBegan),
        Just(Event::ReturnRefused),
        Just(Event::Returned),
    ];
    let act = prop_oneof![
        9 => (0..4usize, event).prop_map(|(session, event)| Act::Step(session, event)),
        1 => (0..4usize).prop_map(Act::Reopen),
    ];
    prop::collection::vec(act, 0..200)
}

proptest! {
    #[test]
    fn no_backend_is_ever_held_by_two_sessions(acts in acts()) {
        let mut book = Book::default();
        let mut next = 0;
        let mut open = |book: &mut Book| {
            next += 1;
            book.open(SessionId::new(SessionId::FIRST + next), profile("x"), at(0))
        };
        let mut slots: Vec<Slot> = (0..4).map(|_| open(&mut book)).collect();
        for (time, act) in acts.into_iter().enumerate() {
            match act {
                Act::Step(session, event) => {
                    let before = book.entry(slots[session]).state;
                    if book.step(slots[session], event, at(time as u64)).is_err() {
                        prop_assert_eq!(book.entry(slots[session]).state, before, "a refusal changes nothing");
                    }
                }
                Act::Reopen(session) => {
                    book.close(slots[session]);
                    slots[session] = open(&mut book);
                }
            }
            let mut held: Vec<_> = book.entries().filter_map(|(_, entry)| entry.state.backend()).collect();
            let all = held.len();
            held.sort();
            held.dedup();
            prop_assert_eq!(held.len(), all);
            prop_assert_eq!(book.holders.len(), all);
            prop_assert_eq!(book.len(), 4);
        }
    }

    #[test]
    fn a_lease_is_returned_only_from_a_quiet_point_or_by_its_end(acts in acts()) {
        let mut book = Book::default();
        let slot = book.open(SessionId::new(SessionId::FIRST), profile("x"), at(0));
        for act in acts {
            let Act::Step(_, event) = act else { continue };
            let before = book.entry(slot).state;
            if let (Event::ReturnBegan, Ok(_)) = (event, book.step(slot, event, at(1))) {
                let idle = matches!(before, LeaseState::Idle { .. });
                prop_assert!(idle);
            }
        }
    }
}

#[test]
fn a_backend_that_is_held_is_not_lent_again() {
    let mut book = Book::default();
    let first = book.open(SessionId::new(1), profile("a"), at(0));
    let second = book.open(SessionId::new(2), profile("b"), at(0));
    book.step(first, Event::Granted(BackendId(7)), at(1))
        .unwrap();

    let refused = book.step(second, Event::Granted(BackendId(7)), at(2));

    assert_eq!(refused, Err(BookError::Held(BackendId(7))));
}

#[test]
fn a_claim_names_the_owner_above_the_application_name() {
    let mut book = Book::default();
    let slot = book.open(SessionId::new(1), profile("puma"), at(0));
    assert_eq!(
        book.entry(slot).owner(),
        ("puma".into(), Evidence::ApplicationName)
    );

    let claim = Claim {
        owner: Some("dispatcher".into()),
        state: ClaimState::Held,
        since: None,
        place: None,
        source: None,
    };
    let unknown = book.claim(
        None,
        vec![
            (SessionId::new(1), claim.clone()),
            (SessionId::new(9), claim),
        ],
    );

    assert_eq!(
        book.entry(slot).owner(),
        ("dispatcher".into(), Evidence::Claim)
    );
    assert_eq!(unknown, [SessionId::new(9)]);
}

#[test]
fn a_sources_new_table_replaces_its_old_one() {
    let mut book = Book::default();
    let slot = book.open(SessionId::new(1), profile("puma"), at(0));
    let source: Rc<str> = "host:1".into();
    let claim = Claim {
        owner: Some("x".into()),
        state: ClaimState::Held,
        since: None,
        place: None,
        source: Some(source.clone()),
    };
    book.claim(Some(&source), vec![(SessionId::new(1), claim)]);

    book.claim(Some(&source), Vec::new());

    assert!(book.entry(slot).claim.is_none());
}

#[test]
fn only_leases_parked_beyond_return_after_are_overdue() {
    let mut book = Book::default();
    let slot = book.open(SessionId::new(1), profile("puma"), at(0));
    book.step(slot, Event::Granted(BackendId(1)), at(0))
        .unwrap();
    book.step(slot, Event::Ready(Status::Idle), at(1000))
        .unwrap();
    let (park, give) = (Duration::from_secs(5), Duration::from_secs(2));

    let policies = policies(park, give);
    assert!(overdue(&book, 7_999, &policies).is_empty());
    let due = Due::Return(Method::Detach);
    assert_eq!(overdue(&book, 8_000, &policies), [(SessionId::new(1), due)]);
}

/// What the sweep orders.
fn overdue(book: &Book, now: u64, policies: &Policies<'_>) -> Vec<(SessionId, Due)> {
    book.overdue(&book.ripe(at(now)), at(now), policies)
}

/// Whether the look of `now` finds the lease at `slot` parked; it is settled then.
fn look(book: &mut Book, now: u64, policies: &Policies<'_>) -> Vec<Slot> {
    let places = book.restless();
    let parked = book.parked(&places, at(now), policies);
    let parked: Vec<_> = parked.map(|(slot, until, _)| (slot, until)).collect();
    for (slot, until) in &parked {
        book.settle(*slot, *until);
    }
    parked.into_iter().map(|(slot, _)| slot).collect()
}

/// A session with an idle lease, since the beginning.
fn idle(book: &mut Book, id: u32) -> Slot {
    let slot = book.open(SessionId::new(id), profile("puma"), at(0));
    for event in [
        Event::Granted(BackendId(id.into())),
        Event::Ready(Status::Idle),
    ] {
        book.step(slot, event, at(0)).unwrap();
    }
    slot
}

#[test]
fn a_lease_that_was_seen_parked_is_looked_at_again_when_it_is_due() {
    let mut book = Book::default();
    let slot = idle(&mut book, 1);
    let policies = policies(Duration::from_secs(5), Duration::from_secs(2));
    assert!(look(&mut book, 4_999, &policies).is_empty());
    assert_eq!(look(&mut book, 5_000, &policies), [slot]);
    assert!(book.restless().is_empty() && book.ripe(at(6_999)).is_empty());
    let due = Due::Return(Method::Detach);
    assert_eq!(overdue(&book, 7_000, &policies), [(SessionId::new(1), due)]);
}

#[test]
fn a_lease_that_was_seen_parked_is_looked_at_again_when_anything_touches_it() {
    let policies = policies(Duration::from_secs(5), Duration::ZERO);
    let rests = || Claim {
        owner: None,
        state: ClaimState::Resting,
        since: None,
        place: None,
        source: Some("pool".into()),
    };
    let touches: [fn(&mut Book, Slot, Claim); 4] = [
        |book, slot, _| {
            book.step(slot, Event::Requested, at(6_000)).unwrap();
        },
        |book, slot, _| book.entry_mut(slot).pins.add(Pin::Temp),
        |book, _, rests| drop(book.claim(None, vec![(SessionId::new(1), rests)])),
        |book, slot, _| book.close(slot),
    ];
    for touch in touches {
        let mut book = Book::default();
        let slot = idle(&mut book, 1);
        assert_eq!(look(&mut book, 5_000, &policies), [slot]);
        assert!(book.take_stirred().is_empty());
        touch(&mut book, slot, rests());
        assert_eq!(book.take_stirred(), [SessionId::new(1)]);
        assert!(book.restless().len() == book.len());
    }
    let mut book = Book::default();
    let slot = idle(&mut book, 1);
    book.claim(Some(&"pool".into()), vec![(SessionId::new(1), rests())]);
    assert!(look(&mut book, 5_000, &policies).is_empty(), "it rests");
    book.claim(Some(&"pool".into()), Vec::new());
    assert_eq!(look(&mut book, 5_000, &policies), [slot]);
}

fn policies(park_after: Duration, return_after: Duration) -> Policies<'static> {
    Policies {
        general: Policy {
            park_after,
            return_after,
            return_method: Method::Detach,
            idle_in_transaction: IdleInTransaction::Close,
        },
        rules: &[],
    }
}

#[test]
fn a_transaction_that_idles_is_parked_and_never_returned() {
    let mut book = Book::default();
    let slot = book.open(SessionId::new(1), profile("x"), at(0));
    for event in [
        Event::Granted(BackendId(1)),
        Event::Ready(Status::InTransaction),
    ] {
        book.step(slot, event, at(0)).unwrap();
    }
    let (park, give) = (Duration::from_secs(5), Duration::from_secs(3));
    assert_eq!(
        book.entry(slot).verdict(at(4_999), park),
        Verdict::InTransaction
    );
    assert_eq!(
        book.entry(slot).verdict(at(5_000), park),
        Verdict::Parked(Basis::Inferred)
    );
    let due = overdue(&book, 60_000, &policies(park, give));
    assert_eq!(due, [(SessionId::new(1), Due::End)]);
    let mut report = policies(park, give);
    report.general.idle_in_transaction = IdleInTransaction::Report;
    assert!(overdue(&book, 60_000, &report).is_empty());
}
