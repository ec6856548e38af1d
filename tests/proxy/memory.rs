//! Large answers and slow readers: pgvalet keeps what is needed, no more, and nobody waits for somebody else's reader.

use crate::support::messages;
use crate::support::{Postgres, Raw, Valet, no_valet};

/// Resident memory of pgvalet in kB.
fn resident(valet: &Valet) -> usize {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", valet.pid())).expect("pgvalet runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("its memory");
    line.trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number")
}

#[test]
fn a_burst_of_100_megabytes_to_a_slow_reader_is_not_kept_in_memory() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut slow = Raw::connect(valet.port());
    slow.query("SELECT 1");
    let before = resident(&valet);
    slow.send(&messages::query(
        "SELECT repeat('x', 1000) FROM generate_series(1, 100000)",
    ));
    slow.until(b'D');
    let blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'ClientWrite'";
    crate::support::eventually("PostgreSQL waits for the reader", || {
        postgres.sql(blocked) == "1"
    });
    let during = resident(&valet);
    assert_eq!(
        Raw::connect(valet.port()).value("SELECT 1"),
        "1",
        "others are served meanwhile"
    );
    slow.until(b'C');
    assert!(
        during < before + 8_000,
        "{before} kB before, {during} kB during"
    );
}

/// Short messages of many go out together; what doesn't fit then waits, and nothing is lost or out of order.
#[test]
fn floods_of_short_messages_reach_slow_readers_whole_and_in_order() {
    const READERS: usize = 6;
    const NOTICES: usize = 3_000;
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut slow: Vec<_> = (0..READERS).map(|_| Raw::connect(valet.port())).collect();
    // PostgreSQL sends each notice by itself, and takes its time for the next: no two are read together.
    let flood = format!(
        "DO $$ BEGIN FOR i IN 1..{NOTICES} LOOP
            PERFORM sum(g) FROM generate_series(1, 3000) g;
            RAISE NOTICE '% %', i, repeat('x', 3900);
        END LOOP; END $$"
    );
    for reader in &mut slow {
        reader.send(&messages::query(&flood));
    }
    // Where the system has large buffers, all of it may fit there.
    let blocked = "SELECT count(*) FROM pg_stat_activity
        WHERE query LIKE 'DO %' AND (wait_event = 'ClientWrite' OR state = 'idle')";
    crate::support::eventually("PostgreSQL waits for the readers", || {
        postgres.sql(blocked) == READERS.to_string()
    });
    assert_eq!(
        Raw::connect(valet.port()).value("SELECT 1"),
        "1",
        "others are served meanwhile"
    );
    for mut reader in slow {
        for expected in 1..=NOTICES {
            let notice = reader.until(b'N').field(b'M').expect("a message");
            assert_eq!(notice, format!("{expected} {}", "x".repeat(3900)));
        }
        reader.until(b'Z');
        assert_eq!(reader.value("SELECT 1"), "1");
    }
}

#[test]
fn a_single_value_of_100_megabytes_passes_through_without_being_kept() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut client = Raw::connect(valet.port());
    client.query("SELECT 1");
    let before = resident(&valet);
    client.send(&messages::query("SELECT repeat('x', 100000000)"));
    assert_eq!(client.until(b'D').body.len(), 100_000_006);
    let after = resident(&valet);
    assert!(
        after < before + 8_000,
        "{before} kB before, {after} kB after"
    );
}

#[test]
fn a_writer_that_nobody_reads_is_held_back_not_buffered() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front(&postgres);
    let mut blocker = Raw::connect(postgres.port());
    blocker.query("SELECT pg_advisory_lock(1)");
    let mut writer = Raw::connect(valet.port());
    writer.query("SELECT 1");
    let before = resident(&valet);
    let port = valet.port();
    let flood = std::thread::spawn(move || {
        writer.send(&messages::query("SELECT pg_advisory_lock(1)"));
        writer.send(&messages::query(&format!(
            "SELECT length('{}')",
            "x".repeat(50_000_000)
        )));
        writer.until_ready();
        writer.until_ready()[1].columns()
    });
    assert_eq!(
        Raw::connect(port).value("SELECT 1"),
        "1",
        "others are served meanwhile"
    );
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'";
    crate::support::eventually("the writer waits", || postgres.sql(waiting) == "1");
    let during = resident(&valet);
    blocker.goodbye();
    assert_eq!(flood.join().expect("no panic"), ["50000000"]);
    assert!(
        during.max(resident(&valet)) < before + 8_000,
        "{before} kB before, {during} kB during"
    );
}
