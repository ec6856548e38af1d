use super::*;

fn statement(name: &str) -> Rc<Statement> {
    Rc::new(Statement::read(format!("{name}\0SELECT 1\0\0\0").as_bytes()).unwrap())
}

fn ready(tracker: &mut Tracker) {
    assert!(matches!(
        tracker.seen(b'Z', b"I"),
        Seen::Ready(Status::Idle)
    ));
}

#[test]
fn a_simple_query_is_settled_by_its_ready() {
    let mut tracker = Tracker::default();
    tracker.sent_query();
    assert!(!tracker.is_settled());
    tracker.seen(b'C', b"SELECT 1\0");
    ready(&mut tracker);
    assert!(tracker.is_settled());
}

#[test]
fn two_syncs_in_flight_need_two_readies() {
    let mut tracker = Tracker::default();
    for _ in 0..2 {
        tracker.sent_extended();
        tracker.sent_sync();
    }
    ready(&mut tracker);
    assert!(!tracker.is_settled());
    ready(&mut tracker);
    assert!(tracker.is_settled());
}

#[test]
fn a_flush_without_sync_is_not_settled() {
    let mut tracker = Tracker::default();
    tracker.sent_extended();
    tracker.seen(b'2', b"");
    assert!(!tracker.is_settled());
    assert!(!tracker.answers_alone());
}

#[test]
fn what_was_answered_waits_for_its_sync() {
    let mut tracker = Tracker::default();
    tracker.sent_parse(statement("a"), Origin::Client);
    tracker.sent_extended();
    tracker.sent_close(None, Origin::Client);
    for reply in [b'1', b'2', b'C', b'3'] {
        tracker.seen(reply, b"");
    }
    assert!(!tracker.is_settled() && !tracker.is_answered());
    assert!(!tracker.answers_alone());
    tracker.sent_sync();
    ready(&mut tracker);
    assert!(tracker.is_settled());
}

#[test]
fn a_copy_of_the_extended_protocol_waits_for_its_sync_too() {
    let mut tracker = Tracker::default();
    tracker.sent_extended();
    tracker.seen(b'2', b"");
    tracker.seen(b'G', b"");
    tracker.sent_copy_end();
    tracker.seen(b'C', b"COPY 1\0");
    assert!(!tracker.is_settled());
    tracker.sent_sync();
    ready(&mut tracker);
    assert!(tracker.is_settled());
}

#[test]
fn an_error_skips_everything_up_to_the_sync() {
    let mut tracker = Tracker::default();
    tracker.sent_parse(statement("a"), Origin::Client);
    tracker.sent_parse(statement("b"), Origin::Client);
    tracker.sent_sync();
    assert!(matches!(tracker.seen(b'1', b""), Seen::Prepared(_)));
    tracker.seen(b'E', b"");
    ready(&mut tracker);
    assert!(tracker.is_settled());
}

#[test]
fn what_is_sent_after_an_error_and_before_its_sync_is_not_expected_to_answer() {
    let mut tracker = Tracker::default();
    tracker.sent_extended();
    tracker.seen(b'E', b"");
    tracker.sent_query();
    tracker.sent_extended();
    assert!(!tracker.is_settled());
    tracker.sent_sync();
    ready(&mut tracker);
    assert!(tracker.is_settled());
}

#[test]
fn the_reply_to_our_own_parse_is_ours() {
    let mut tracker = Tracker::default();
    tracker.sent_parse(statement("a"), Origin::Proxy);
    tracker.sent_extended();
    tracker.sent_sync();
    assert!(matches!(tracker.seen(b'1', b""), Seen::Remade(made) if *made.name == *b"a"));
    assert!(matches!(tracker.seen(b'2', b""), Seen::Plain));
    ready(&mut tracker);
    assert!(tracker.is_settled());
}

#[test]
fn a_sync_sent_before_copy_data_is_ignored() {
    let mut tracker = Tracker::default();
    tracker.sent_extended();
    tracker.sent_sync();
    tracker.seen(b'2', b"");
    tracker.seen(b'G', b"");
    tracker.sent_copy_end();
    tracker.sent_sync();
    tracker.seen(b'C', b"COPY 1\0");
    assert!(!tracker.is_settled());
    ready(&mut tracker);
    assert!(tracker.is_settled());
}

#[test]
fn a_copy_in_one_query_ends_with_one_ready_even_if_its_end_comes_late() {
    let mut tracker = Tracker::default();
    tracker.sent_query();
    tracker.seen(b'G', b"");
    tracker.seen(b'E', b"");
    ready(&mut tracker);
    tracker.sent_copy_end();
    assert!(tracker.is_settled());
    assert!(!tracker.expects_copy_data());
}

#[test]
fn a_copy_in_one_query_behind_an_unsynced_message_is_the_query_s() {
    let mut tracker = Tracker::default();
    tracker.sent_extended();
    tracker.sent_query();
    tracker.sent_copy_end();
    tracker.sent_query();
    for (kind, body) in [
        (b'2', &b""[..]),
        (b'G', b""),
        (b'C', b"COPY 1\0"),
        (b'Z', b"I"),
    ] {
        tracker.seen(kind, body);
    }
    assert!(!tracker.is_answered(), "the second query isn't answered");
    ready(&mut tracker);
    assert!(tracker.is_settled());
}

#[test]
fn a_sync_among_the_data_of_a_query_s_copy_that_fails_can_not_be_accounted_for() {
    let mut tracker = Tracker::default();
    tracker.sent_query();
    tracker.sent_sync();
    tracker.sent_copy_end();
    tracker.seen(b'G', b"");
    tracker.seen(b'E', b"");
    assert!(tracker.is_ambiguous());
}

#[test]
fn a_doubt_with_more_behind_it_is_never_settled() {
    let mut tracker = Tracker::default();
    tracker.sent_extended();
    tracker.sent_sync();
    tracker.sent_sync();
    tracker.seen(b'G', b"");
    tracker.sent_extended();
    tracker.seen(b'E', b"");
    ready(&mut tracker);
    assert!(tracker.is_ambiguous());
    assert!(!tracker.is_settled());
}

#[test]
fn a_failed_extended_copy_leaves_a_doubt_until_the_next_reply() {
    for reply in *b"TE" {
        let mut tracker = Tracker::default();
        tracker.sent_extended();
        tracker.sent_sync();
        tracker.seen(b'G', b"");
        tracker.seen(b'E', b"");
        tracker.sent_copy_end();
        tracker.sent_sync();
        ready(&mut tracker);
        tracker.sent_query();
        tracker.seen(reply, b"");
        ready(&mut tracker);
        assert!(tracker.is_settled());
    }
}

#[test]
fn what_was_sent_behind_a_sync_that_may_have_counted_may_be_carried_out() {
    for early in [true, false] {
        let mut tracker = Tracker::default();
        tracker.sent_extended();
        tracker.sent_sync();
        if early {
            tracker.sent_extended();
        }
        tracker.seen(b'G', b"");
        // A trigger failed before PostgreSQL read anything: the Sync is answered.
        tracker.seen(b'E', b"");
        if !early {
            tracker.sent_extended();
        }
        tracker.seen(b'Z', b"I");
        assert!(tracker.is_ambiguous());
    }
}

#[test]
fn a_stray_ready_within_the_doubt_answers_no_request() {
    let mut tracker = Tracker::default();
    tracker.sent_extended();
    tracker.sent_sync();
    tracker.seen(b'G', b"");
    tracker.seen(b'E', b"");
    tracker.sent_sync();
    tracker.seen(b'Z', b"I");
    tracker.sent_query();
    tracker.seen(b'Z', b"I");
    assert!(!tracker.is_settled());
    ready(&mut tracker);
    assert!(tracker.is_settled());
}

#[test]
fn a_query_in_an_unsynced_group_that_fails_can_not_be_told_apart() {
    let mut tracker = Tracker::default();
    tracker.sent_extended();
    tracker.sent_query();
    tracker.seen(b'E', b"");
    tracker.seen(b'Z', b"I");
    assert!(tracker.is_ambiguous());
    assert!(!tracker.is_settled());
}

#[test]
fn a_reply_out_of_order_makes_the_account_ambiguous() {
    let mut tracker = Tracker::default();
    tracker.sent_query();
    tracker.seen(b'1', b"");
    assert!(tracker.is_ambiguous());
}

#[test]
fn all_answers_to_a_request_of_ours_are_ours() {
    let mut tracker = Tracker::default();
    tracker.sent_own(None);
    tracker.sent_query();
    assert!(matches!(
        tracker.seen(b'C', b"DISCARD SEQUENCES\0"),
        Seen::Ours
    ));
    assert!(matches!(tracker.seen(b'S', b"a\0b\0"), Seen::Plain));
    assert!(matches!(tracker.seen(b'Z', b"I"), Seen::Ours));
    assert!(!tracker.is_answered());
    ready(&mut tracker);
    assert!(tracker.is_settled());
}

#[test]
fn an_end_from_before_a_copy_ends_none() {
    let mut tracker = Tracker::default();
    tracker.sent_unnamed_parse();
    tracker.sent_copy_end();
    tracker.seen(b'1', b"");
    tracker.sent_query();
    tracker.seen(b'G', b"");
    tracker.sent_sync();
    tracker.sent_copy_end();
    tracker.seen(b'C', b"COPY 1\0");
    ready(&mut tracker);
    assert!(tracker.is_settled());
}

#[test]
fn whose_end_one_is_that_two_may_have_asked_for_is_not_known() {
    let mut tracker = Tracker::default();
    tracker.sent_extended();
    tracker.sent_copy_end();
    tracker.sent_extended();
    tracker.sent_sync();
    tracker.seen(b'G', b"");
    assert!(tracker.is_ambiguous());
}

#[test]
fn a_copy_with_its_end_right_behind_is_settled() {
    let mut tracker = Tracker::default();
    for _ in 0..2 {
        tracker.sent_extended();
        tracker.sent_copy_end();
        tracker.sent_sync();
    }
    for _ in 0..2 {
        tracker.seen(b'2', b"");
        tracker.seen(b'G', b"");
        tracker.seen(b'C', b"COPY 1\0");
        ready(&mut tracker);
    }
    assert!(tracker.is_settled());
}

#[test]
fn a_ready_that_a_bare_sync_or_an_ignored_one_may_have_asked_for_is_not_known() {
    let lingering = || {
        let mut tracker = Tracker::default();
        tracker.sent_extended();
        tracker.sent_sync();
        tracker.seen(b'G', b"");
        tracker.seen(b'E', b"");
        tracker.sent_sync();
        ready(&mut tracker);
        assert!(tracker.is_answered() && !tracker.is_settled());
        tracker
    };
    let mut bare = lingering();
    bare.sent_sync();
    bare.seen(b'Z', b"I");
    assert!(bare.is_ambiguous());
    let mut query = lingering();
    query.sent_query();
    query.seen(b'Z', b"I");
    assert!(!query.is_ambiguous() && !query.is_settled());
    query.seen(b'C', b"SELECT 1\0");
    ready(&mut query);
    assert!(query.is_settled());
}
