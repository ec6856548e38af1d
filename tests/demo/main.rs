//! The demo as a user runs it: its story, and that it leaves nothing behind, however it ends.

mod stage;

use std::time::Duration;

use rustix::process::Signal;

use stage::Demo;

/// The bound that the demo promises.
const STORY: Duration = Duration::from_secs(30);

#[test]
fn the_story_is_told_to_its_end_and_nothing_is_left() {
    let mut demo = Demo::start(&["demo"]);

    let (status, text) = demo.wait(STORY);

    assert_eq!(status.code(), Some(0), "{text}");
    for part in [
        "$ pgvalet serve --upstream postgres://",
        "$ pgvalet leases",
        "dispatcher (application_name)",
        "parked (inferred)",
        "in_transaction",
        "$ pgvalet leaks",
        "INSERT INTO jobs (name) VALUES ($1) RETURNING id",
        "pgvalet_parked_leases{owner=\"dispatcher\"} 1",
        "$ pgvalet reload --min-idle 500ms",
        "web-3 had its answer",
        "web-2's transaction wasn't touched: it commits now",
        "its statement_timeout is still 7s",
        "pgvalet_returns_total{",
        "Cleaned up",
    ] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
    demo.assert_nothing_is_left();
}

#[test]
fn keep_leaves_it_running_until_ctrl_c() {
    let mut demo = Demo::start(&["demo", "--keep"]);
    let text = demo.read_until("PostgreSQL itself:", STORY);
    let psql = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("psql "))
        .expect("a psql line");
    let answer = stage::query(psql, "SELECT count(*)::text FROM jobs");
    assert!(
        answer.parse::<u32>().is_ok_and(|jobs| jobs >= 3),
        "{answer}"
    );

    demo.signal(Signal::INT);

    let (status, _) = demo.wait(STORY);
    assert_eq!(status.code(), Some(130));
    demo.assert_nothing_is_left();
}

#[test]
fn ctrl_c_at_any_chapter_leaves_nothing() {
    for chapter in ["[1/7]", "[2/7]", "[3/7]", "[4/7]", "[6/7]"] {
        let mut demo = Demo::start(&["demo"]);
        demo.read_until(chapter, STORY);
        demo.signal(Signal::INT);
        let (status, text) = demo.wait(STORY);
        assert_eq!(status.code(), Some(130), "{chapter}: {text}");
        demo.assert_nothing_is_left();
    }
}

#[test]
fn even_a_kill_leaves_nothing() {
    for chapter in ["[1/7]", "[4/7]"] {
        let mut demo = Demo::start(&["demo"]);
        demo.read_until(chapter, STORY);
        demo.signal(Signal::KILL);
        demo.wait(STORY);
        demo.eventually_nothing_is_left(STORY);
    }
}

#[test]
fn a_reader_that_goes_away_ends_it() {
    let mut demo = Demo::start(&["demo"]);
    demo.read_until("[1/7]", STORY);
    demo.stop_reading();
    let (status, _) = demo.wait(STORY);
    assert!(status.code().is_some());
    demo.assert_nothing_is_left();
}
