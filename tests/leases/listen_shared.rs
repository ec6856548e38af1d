//! `listening = "share"`: a session that listens gives its backend back, and hears everything, once and in order.

use std::thread::{scope, spawn};

use serde_json::json;

use crate::stage::{backend, detach, give_back, lease, outcome, reload, shown};
use crate::support::{Message, Postgres, Raw, Valet, direct, eventually, tags};

const SHARE: [&str; 2] = ["--listening", "share"];

fn stage(flags: &[&str]) -> Option<(Postgres, Valet)> {
    let flags = [&SHARE, flags].concat();
    (!direct()).then(|| {
        let postgres = Postgres::start();
        let valet = Valet::front_with(&postgres, &flags);
        (postgres, valet)
    })
}

/// The sender, the channel and the payload of a NotificationResponse.
#[track_caller]
fn heard(message: &Message) -> (i32, String, String) {
    assert_eq!(message.tag, b'A', "{message:?}");
    let (pid, rest) = message.body.split_first_chunk::<4>().expect("a pid");
    let mut texts = rest
        .split(|byte| *byte == 0)
        .map(|text| String::from_utf8_lossy(text).into_owned());
    let mut text = || texts.next().expect("a text");
    (i32::from_be_bytes(*pid), text(), text())
}

/// The payload of the next message, which is a notification.
#[track_caller]
fn payload(client: &mut Raw) -> String {
    heard(&client.next()).2
}

/// The backends that listen for sessions.
fn listeners(postgres: &Postgres) -> String {
    postgres.sql("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgvalet'")
}

#[test]
fn a_session_without_a_backend_hears_what_it_listens_for() {
    let Some((postgres, valet)) = stage(&["--max-backends", "2"]) else {
        return;
    };
    let mut client = Raw::connect(valet.port());
    client.value("LISTEN news; LISTEN \"Odd \"\"name\"");
    client.value("SET app.tenant = 'acme'");
    detach(&valet, &client);
    assert_eq!(shown(&valet, &client)["pins"], json!([]));
    let mut sender = Raw::connect(postgres.port());
    sender.value("NOTIFY news, 'one'; NOTIFY \"Odd \"\"name\", 'two'; NOTIFY other, 'no'; NOTIFY news, 'three'");
    let pid: i32 = backend(&mut sender).parse().expect("a pid");
    let news = |payload: &str| (pid, "news".to_owned(), payload.to_owned());
    assert_eq!(heard(&client.next()), news("one"));
    assert_eq!(
        heard(&client.next()),
        (pid, "Odd \"name".to_owned(), "two".to_owned())
    );
    assert_eq!(heard(&client.next()), news("three"));
    assert!(lease(&valet, &client).is_none());

    let channels = "SELECT string_agg(c, ',' ORDER BY c) FROM pg_listening_channels() c";
    assert_eq!(client.value(channels), "Odd \"name,news");
    assert_eq!(client.value("SHOW app.tenant"), "acme");
    assert_eq!(
        valet.metric(
            "pgvalet_backends{database=\"postgres\",state=\"listening\",user=\"postgres\"}"
        ),
        1.0
    );
    client.goodbye();
    eventually("nobody listens any more", || listeners(&postgres) == "0");
}

#[test]
fn every_session_of_a_small_pool_may_listen() {
    let Some((postgres, valet)) = stage(&["--max-backends", "2", "--mode", "transaction"]) else {
        return;
    };
    let mut clients: Vec<Raw> = (0..5).map(|_| Raw::connect(valet.port())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.value(&format!("LISTEN news; LISTEN own_{number}"));
    }
    assert_eq!(valet.metric("pgvalet_pins_total{reason=\"listen\"}"), 0.0);
    postgres.sql("NOTIFY news, 'all'; NOTIFY own_3, 'one'");
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(payload(client), "all");
        if number == 3 {
            assert_eq!(payload(client), "one");
        }
        assert_eq!(
            client.value("SELECT count(*) FROM pg_listening_channels()"),
            "2"
        );
    }
    assert_eq!(listeners(&postgres), "1");
}

#[test]
fn listen_ends_as_it_does_without_us() {
    let Some((postgres, valet)) = stage(&["--chaos-return", "always"]) else {
        return;
    };
    let mut client = Raw::connect(valet.port());
    client.value("BEGIN; LISTEN never; ROLLBACK");
    client.value("LISTEN news; LISTEN gone");
    client.value("UNLISTEN gone");
    postgres.sql("NOTIFY never, 'no'; NOTIFY gone, 'no'; NOTIFY news, 'one'");
    assert_eq!(payload(&mut client), "one");
    client.value("BEGIN");
    client.value("UNLISTEN *");
    client.value("ROLLBACK");
    postgres.sql("NOTIFY news, 'two'");
    assert_eq!(payload(&mut client), "two");
    client.value("DISCARD ALL");
    eventually("nobody listens any more", || listeners(&postgres) == "0");
    postgres.sql("NOTIFY news, 'no'");
    client.send(&crate::support::messages::query("SELECT 1"));
    let mut seen = Vec::new();
    while seen.last().is_none_or(|last: &Message| last.tag != b'Z') {
        seen.push(client.next());
    }
    assert_eq!(tags(&seen), "TDCZ");
}

/// Reads up to ReadyForQuery; notifications that came before it go to `news`.
#[track_caller]
fn ask(client: &mut Raw, sql: &str, news: &mut Vec<(i32, String)>) {
    client.send(&crate::support::messages::query(sql));
    loop {
        let message = client.next();
        match message.tag {
            b'A' => {
                let (pid, _, payload) = heard(&message);
                news.push((pid, payload));
            }
            b'Z' => return,
            b'E' => panic!("{sql}: {message:?}"),
            _ => {}
        }
    }
}

const SENDERS: usize = 4;
const EACH: usize = 60;

/// Hears all there is up to "end", with requests in between; gives the payloads of others in their order.
fn listen_through(port: u16, own: usize) -> Vec<String> {
    let mut client = Raw::connect(port);
    let mut news = Vec::new();
    ask(&mut client, "LISTEN news", &mut news);
    ask(&mut client, &format!("NOTIFY ready, '{own}'"), &mut news);
    let ended = |news: &[(i32, String)]| news.iter().any(|(_, payload)| payload == "end");
    let mut round = 0;
    while !ended(&news) {
        // Now asleep, now at work, now both: with a say of its own.
        if round % 3 > 0 {
            ask(&mut client, "SELECT pg_sleep(0)", &mut news);
        }
        if round % 5 == 0 && round < 50 {
            let said = format!("own {own} {round}");
            ask(&mut client, &format!("NOTIFY news, '{said}'"), &mut news);
            let heard = (client.pid, said);
            assert!(
                news.contains(&heard),
                "its own came before it was ready: {news:?}"
            );
        }
        for _ in 0..round % 4 {
            if !ended(&news) {
                let (pid, _, payload) = heard(&client.next());
                news.push((pid, payload));
            }
        }
        round += 1;
    }
    news.into_iter().map(|(_, payload)| payload).collect()
}

/// What one backend that listens all the while hears: the order of the queue.
fn listen_straight(mut client: Raw) -> Vec<String> {
    let mut news = Vec::new();
    while news.last().is_none_or(|last| last != "end") {
        news.push(payload(&mut client));
    }
    news
}

fn storm(flags: &[&str]) {
    let Some((postgres, valet)) = stage(flags) else {
        return;
    };
    let (straight, through) = (postgres.port(), valet.port());
    let mut judge = Raw::connect(straight);
    judge.value("LISTEN news");
    let mut ready = Raw::connect(straight);
    ready.value("LISTEN ready");
    let judge = spawn(move || listen_straight(judge));
    let listening: Vec<_> = (0..3)
        .map(|own| spawn(move || listen_through(through, own)))
        .collect();
    for _ in &listening {
        payload(&mut ready);
    }
    let send = |sender: usize| {
        let mut client = Raw::connect(if sender.is_multiple_of(2) {
            straight
        } else {
            through
        });
        for number in 0..EACH {
            client.value(&format!("SELECT pg_notify('news', '{sender} {number}')"));
        }
    };
    scope(|threads| {
        for sender in 0..SENDERS {
            threads.spawn(move || send(sender));
        }
    });
    postgres.sql("NOTIFY news, 'end'");
    let all = judge.join().expect("the judge heard all");
    for listener in listening {
        let heard = listener.join().expect("it heard all");
        // Some listened while others did already.
        let missed = all.len() - heard.len();
        assert!(
            all.ends_with(&heard),
            "{heard:#?} isn't the end of {all:#?}"
        );
        assert!(
            all[..missed]
                .iter()
                .all(|payload| payload.starts_with("own")),
            "{missed} missed"
        );
    }
    assert!(all.len() > SENDERS * EACH);
}

#[test]
fn nothing_is_lost_or_doubled_in_a_storm_while_sessions_move() {
    storm(&["--chaos-return", "always", "--max-backends", "5"]);
}

#[test]
fn nothing_is_lost_or_doubled_in_a_storm_in_transaction_mode() {
    storm(&["--mode", "transaction", "--max-backends", "2"]);
}

#[test]
fn whoever_may_have_missed_something_is_told() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut asleep = Raw::connect(valet.port());
    asleep.value("LISTEN news");
    detach(&valet, &asleep);
    let mut busy = Raw::connect(valet.port());
    busy.value("LISTEN news");
    detach(&valet, &busy);
    busy.value("BEGIN");
    postgres.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgvalet'",
    );
    let error = asleep.until(b'E');
    assert_eq!(error.sqlstate(), "57P01");
    assert!(
        error
            .field(b'M')
            .expect("a text")
            .contains("listened for this session"),
        "{error:?}"
    );
    asleep.assert_closed();

    // This one listened by itself at that time: it missed nothing, and goes on.
    busy.value("COMMIT");
    detach(&valet, &busy);
    postgres.sql("NOTIFY news, 'later'");
    assert_eq!(payload(&mut busy), "later");
    assert_eq!(listeners(&postgres), "1");
}

#[test]
fn a_client_that_does_not_read_is_closed_and_nobody_else() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut clients = [Raw::connect(valet.port()), Raw::connect(valet.port())];
    for client in &mut clients {
        client.value("LISTEN news");
        detach(&valet, client);
    }
    let [deaf, mut reader] = clients;
    let sessions = |valet: &Valet| valet.get("/v1/sessions").to_string();
    let listed = deaf.session().to_string();
    let reading = spawn(move || {
        let mut count = 0;
        while payload(&mut reader) != "end" {
            count += 1;
        }
        count
    });
    let mut sent = 0;
    eventually("it is closed", || {
        sent += 50;
        postgres
            .sql("SELECT pg_notify('news', repeat('x', 7900) || n) FROM generate_series(1, 50) n");
        !sessions(&valet).contains(&listed)
    });
    postgres.sql("NOTIFY news, 'end'");
    assert_eq!(reading.join().expect("it heard all"), sent);
    assert!(valet.log().contains("does not read its notifications"));
}

#[test]
fn a_drain_ends_sessions_that_only_listen() {
    let Some((postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = Raw::connect(valet.port());
    client.value("LISTEN news");
    detach(&valet, &client);
    valet.signal(rustix::process::Signal::TERM);
    assert_eq!(client.until(b'E').sqlstate(), "57P01");
    assert!(valet.wait().status.success());
    eventually("nothing is left", || postgres.client_backends() == 0);
}

#[test]
fn what_can_t_be_shared_pins() {
    let Some((_postgres, valet)) = stage(&[]) else {
        return;
    };
    let mut client = Raw::connect(valet.port());
    client.value("SET client_encoding = 'LATIN1'; LISTEN news");
    let report = reload(&valet, &json!({"deadline": "5s"}));
    assert_eq!(
        outcome(&report, client.session()),
        ("pinned".to_owned(), "listen".to_owned())
    );
    client.value("RESET client_encoding; CREATE TEMP TABLE mine (a int)");
    let (status, answer) = give_back(&valet, &client);
    assert_eq!(
        (status, &answer["reason"]),
        (409, &json!("temp")),
        "{answer}"
    );
}
