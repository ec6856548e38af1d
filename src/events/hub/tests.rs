use super::*;
use crate::events::channel;

fn hub() -> (crate::events::Events, Hub) {
    let (events, told) = channel();
    let (hub, _) = Hub::new(Clock::start(), told);
    (events, hub)
}

fn claimed(source: usize) -> Happening {
    Happening::Claimed {
        source: Some(source.to_string()),
        accepted: 0,
        unknown: 0,
        owners: Vec::new(),
    }
}

#[test]
fn a_reader_goes_on_where_it_was() {
    let (_events, mut hub) = hub();
    (0..10).for_each(|number| hub.take(&claimed(number)));
    let after = EventId {
        number: 7,
        ..hub.last
    };
    let resumed = hub.subscribe(Some(after), Kinds::ALL).unwrap();
    let numbers: Vec<_> = resumed
        .backlog
        .iter()
        .map(|event| event.id.number)
        .collect();
    assert_eq!((resumed.missed, &numbers[..]), (Some(0), &[8, 9, 10][..]));
    let text = after.to_string();
    assert_eq!(text.parse(), Ok(after));
}

#[test]
fn what_is_forgotten_is_told_as_missed() {
    let (_events, mut hub) = hub();
    (0..KEPT + 10).for_each(|number| hub.take(&claimed(number)));
    let first = EventId {
        number: 1,
        ..hub.last
    };
    let resumed = hub.subscribe(Some(first), Kinds::ALL).unwrap();
    assert_eq!((resumed.missed, resumed.backlog.len()), (Some(9), KEPT));
    let other = EventId { run: 1, number: 3 };
    let resumed = hub.subscribe(Some(other), Kinds::ALL).unwrap();
    assert_eq!((resumed.missed, resumed.backlog.len()), (None, KEPT));
}

#[test]
fn the_ring_is_bounded_in_bytes_too() {
    let (_events, mut hub) = hub();
    let long = Happening::Claimed {
        source: Some("x".repeat(KEPT_BYTES / 8)),
        accepted: 0,
        unknown: 0,
        owners: Vec::new(),
    };
    (0..50).for_each(|_| hub.take(&long));
    assert!(hub.bytes <= KEPT_BYTES && hub.ring.len() < 9);
}

#[test]
fn a_slow_reader_is_dropped_and_others_are_not() {
    let (_events, mut hub) = hub();
    let slow = hub.subscribe(None, Kinds::ALL).unwrap();
    let mut quick = hub.subscribe(None, Kinds::ALL).unwrap();
    for number in 0..=BEHIND {
        hub.take(&claimed(number));
        assert!(quick.live.try_recv().is_ok());
    }
    assert!(slow.dropped.load(Ordering::Acquire));
    assert!(!quick.dropped.load(Ordering::Acquire));
    assert_eq!(hub.readers.len(), 1);
}

#[test]
fn readers_are_bounded_and_those_who_left_make_room() {
    let (events, mut hub) = hub();
    let mut all: Vec<_> = (0..READERS)
        .map(|_| hub.subscribe(None, Kinds::read("owner").unwrap()).unwrap())
        .collect();
    assert!(events.are_followed(Kind::OwnerDeclared));
    assert!(!events.are_followed(Kind::LeaseParked));
    assert!(matches!(
        hub.subscribe(None, Kinds::ALL),
        Err(Refused::TooMany)
    ));
    all.pop();
    assert!(hub.subscribe(None, Kinds::ALL).is_ok());
}

#[test]
fn an_outage_is_told_once_a_second_a_pool() {
    let (_events, mut hub) = hub();
    for _ in 0..1000 {
        hub.take(&Happening::BackendRefused {
            database: "d".into(),
            user: "u".into(),
            sqlstate: "08001".into(),
            message: String::new(),
        });
    }
    assert!(hub.ring.len() < 100, "{}", hub.ring.len());
}

#[test]
fn events_that_found_no_room_are_told_as_a_gap() {
    let (events, mut hub) = hub();
    events.0.lost.store(5, Ordering::Relaxed);
    hub.take(&claimed(1));
    assert_eq!(hub.ring[0].kind, Kind::Gap);
    assert!(
        hub.ring[0].data.contains("\"lost\":5"),
        "{}",
        hub.ring[0].data
    );
}
