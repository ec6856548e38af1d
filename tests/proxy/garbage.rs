//! A PostgreSQL that goes mad in the middle of a conversation: nobody takes what it says for an answer, its backend is
//! closed, and whoever comes next is served.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::support::messages::{copy_data, extended, frame, query, sync};
use crate::support::{Postgres, Raw, Valet, eventually, no_valet};

/// Stands between pgvalet and PostgreSQL, passes everything on, and goes mad where it is told to.
struct Madness {
    port: u16,
    plan: Arc<Mutex<Option<Plan>>>,
    /// pgvalet's side of each connection.
    open: Arc<Mutex<Vec<TcpStream>>>,
}

/// What it says, once, in place of the answer to what has `to` in it.
struct Plan {
    to: &'static str,
    says: Vec<u8>,
}

impl Madness {
    fn before(postgres: &Postgres) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let (plan, open) = (Arc::default(), Arc::default());
        let (told, opened) = (Arc::clone(&plan), Arc::clone(&open));
        let behind = postgres.port();
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let far = TcpStream::connect(("127.0.0.1", behind)).expect("PostgreSQL is there");
                let again = |socket: &TcpStream| socket.try_clone().expect("it can be cloned");
                let opened: &Mutex<Vec<TcpStream>> = &opened;
                opened.lock().expect("not poisoned").push(again(&near));
                let (mut from, mut to) = (again(&far), again(&near));
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Both);
                });
                let plan = Arc::clone(&told);
                std::thread::spawn(move || pass_on(near, far, &plan));
            }
        });
        Self { port, plan, open }
    }

    fn plan(&self, to: &'static str, says: &[u8]) {
        let says = says.to_vec();
        *self.plan.lock().expect("not poisoned") = Some(Plan { to, says });
    }

    /// Says something on each connection, though nobody asked, and closes it.
    fn strike(&self, says: &[u8]) {
        for mut near in self.open.lock().expect("not poisoned").drain(..) {
            // Some are closed already.
            let _ = near.write_all(says);
            let _ = near.shutdown(Shutdown::Write);
        }
    }

    fn is_over(&self) -> bool {
        self.plan.lock().expect("not poisoned").is_none()
    }
}

fn pass_on(mut near: TcpStream, mut far: TcpStream, plan: &Mutex<Option<Plan>>) {
    let mut buffer = [0; 64 << 10];
    while let Ok(count @ 1..) = near.read(&mut buffer) {
        let bytes = &buffer[..count];
        let mut plan = plan.lock().expect("not poisoned");
        let is_meant = |plan: &mut Plan| {
            let mut places = bytes.windows(plan.to.len());
            places.any(|place| place == plan.to.as_bytes())
        };
        if let Some(Plan { says, .. }) = plan.take_if(is_meant) {
            // PostgreSQL never hears of it.
            let _ = near.write_all(&says);
            let _ = near.shutdown(Shutdown::Write);
            break;
        }
        drop(plan);
        if far.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = far.shutdown(Shutdown::Both);
}

/// What no PostgreSQL says. The connection ends behind each.
fn garbage() -> Vec<Vec<u8>> {
    let mut garbage = vec![
        Vec::new(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        vec![0; 1000],
        vec![0xff; 1000],
    ];
    for kind in *b"DdTZESACRKGHWv1235IVNstncX~\0" {
        // Lengths that can't be, and lengths of which nothing comes.
        for length in [0, 3, 4, 5, 100, 0x3FFF_FFFE, 0x4000_0000, u32::MAX] {
            garbage.push([&[kind], &u32::to_be_bytes(length)[..], &[0xff; 9]].concat());
        }
        // Whole, and nonsense.
        for body in [&b""[..], b"\0", b"x", b"\xff\xff\xff\xff", b"no end"] {
            garbage.push(frame(kind, body));
        }
        garbage.push(frame(kind, &[0xff; 20_000]));
    }
    garbage
}

/// Some of each kind.
fn few() -> impl Iterator<Item = Vec<u8>> {
    garbage().into_iter().step_by(5)
}

/// The frames that a client was sent to the end; what stands behind the last whole one.
fn frames(mut bytes: &[u8]) -> (Vec<(u8, &[u8])>, &[u8]) {
    let mut frames = Vec::new();
    while let [kind, a, b, c, d, rest @ ..] = bytes {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        assert!(length >= 4, "a frame that can't be: {bytes:?}");
        let Some((body, behind)) = rest.split_at_checked(length - 4) else {
            break;
        };
        frames.push((*kind, body));
        bytes = behind;
    }
    (frames, bytes)
}

/// A client whose backend goes mad hears of it in PostgreSQL's words, unless it is in the middle of a message already.
#[track_caller]
fn is_told(heard: &[u8], said: &[u8]) {
    let (frames, rest) = frames(heard);
    let ours = b"VFATAL\0C08006\0";
    let tells = |body: &[u8]| body.windows(ours.len()).any(|place| place == ours);
    let told = frames
        .last()
        .is_some_and(|(kind, body)| *kind == b'E' && tells(body));
    let within = |(kind, body): &(u8, &[u8])| *kind != b'E' && tells(body);
    assert!(
        !frames.iter().any(within) && !tells(rest),
        "a message goes on with ours: {said:?}"
    );
    if rest.is_empty() {
        // PostgreSQL's own last words are passed on, whatever they are.
        let last = |(kind, body): &(u8, &[u8])| *kind == b'E' && !body.starts_with(b"SERROR\0");
        assert!(told || frames.iter().any(last), "to {said:?}: {frames:?}");
    }
}

struct Stage {
    _postgres: Postgres,
    madness: Madness,
    valet: Valet,
}

/// One backend at most: whoever doesn't give it back is found out by the next.
fn stage(flags: &[&str]) -> Stage {
    let postgres = Postgres::start();
    postgres.sql("CREATE TABLE t (a text)");
    let madness = Madness::before(&postgres);
    let url = format!(
        "postgres://postgres@127.0.0.1:{}/postgres?sslmode=disable",
        madness.port
    );
    let base = ["--upstream", &url, "--auth", "trust", "--max-backends", "1"];
    let valet = Valet::serve(&[&base[..], flags].concat());
    Stage {
        valet: valet.unwrap_or_else(|exit| panic!("{}", exit.log)),
        _postgres: postgres,
        madness,
    }
}

impl Stage {
    #[track_caller]
    fn the_next_one_is_served(&self, said: &[u8]) {
        assert!(self.madness.is_over(), "nobody came by: {said:?}");
        let mut client = Raw::connect(self.valet.port());
        assert_eq!(client.value("SELECT 'well'"), "well", "after {said:?}");
        client.goodbye();
        assert!(!self.valet.log().contains("panicked"), "{said:?}");
    }

    /// A client asks something, PostgreSQL says `garbage` to what has `to` in it, and the client hears of it.
    fn asks(
        &self,
        garbage: impl IntoIterator<Item = Vec<u8>>,
        to: &'static str,
        request: &[Vec<u8>],
    ) {
        for said in garbage {
            let mut client = Raw::connect(self.valet.port());
            self.madness.plan(to, &said);
            for part in request {
                client.send_if_open(part);
            }
            is_told(&client.rest(), &said);
            self.the_next_one_is_served(&said);
        }
    }
}

#[test]
fn in_answer_to_a_query() {
    if no_valet() {
        return;
    }
    let stage = stage(&[]);
    stage.asks(garbage(), "mad", &[query("SELECT 'mad'")]);
}

#[test]
fn in_answer_to_the_extended_protocol_in_a_transaction() {
    if no_valet() {
        return;
    }
    let stage = stage(&["--mode", "transaction"]);
    stage.asks(
        few(),
        "mad",
        &[query("BEGIN"), extended("SELECT 'mad'", &[]), sync()],
    );
}

#[test]
fn while_rows_are_copied_in() {
    if no_valet() {
        return;
    }
    let stage = stage(&[]);
    stage.asks(
        few(),
        "mad",
        &[query("COPY t FROM stdin"), copy_data("mad\n")],
    );
}

#[test]
fn in_answer_to_the_probe() {
    if no_valet() {
        return;
    }
    let stage = stage(&["--chaos-return", "always"]);
    stage.asks(few(), "_pgvalet_probe", &[query("SET work_mem = '1MB'")]);
}

#[test]
fn while_nobody_asks() {
    if no_valet() {
        return;
    }
    let stage = stage(&[]);
    for said in few() {
        let mut client = Raw::connect(stage.valet.port());
        client.query("SELECT 1");
        stage.madness.strike(&said);
        is_told(&client.rest(), &said);
        stage.the_next_one_is_served(&said);
    }
}

#[test]
fn in_the_pool_nobody_hears_of_it() {
    if no_valet() {
        return;
    }
    let stage = stage(&["--mode", "transaction"]);
    let mut client = Raw::connect(stage.valet.port());
    for said in few() {
        client.value("SELECT 1");
        let leases = || stage.valet.get("/v1/leases")["leases"].clone();
        eventually("the lease is over", || leases() == serde_json::json!([]));
        stage.madness.strike(&said);
        stage.the_next_one_is_served(&said);
    }
}

#[test]
fn in_answer_to_a_scrub_nobody_hears_of_it() {
    if no_valet() {
        return;
    }
    let stage = stage(&[]);
    for said in few() {
        let mut client = Raw::connect(stage.valet.port());
        client.query("SET work_mem = '1MB'");
        stage.madness.plan("DISCARD ALL", &said);
        client.goodbye();
        let mut client = Raw::connect(stage.valet.port());
        assert_eq!(client.value("SHOW work_mem"), "4MB", "after {said:?}");
        client.goodbye();
        stage.the_next_one_is_served(&said);
    }
}

#[test]
fn in_answer_to_a_restore() {
    if no_valet() {
        return;
    }
    let stage = stage(&["--mode", "transaction"]);
    for said in few() {
        let mut client = Raw::connect(stage.valet.port());
        client.query("SET TimeZone = 'Asia/Tokyo'");
        let mut other = Raw::connect(stage.valet.port());
        other.query("SET TimeZone = 'Asia/Seoul'");
        stage.madness.plan("Asia/Tokyo", &said);
        client.send(&query("SHOW TimeZone"));
        // It may try again elsewhere: then the answer is right.
        let answer = client.answer();
        match answer.tag {
            b'E' => assert_eq!(answer.sqlstate(), "08006", "{answer:?} to {said:?}"),
            _ => assert_eq!(client.answer().columns(), ["Asia/Tokyo"], "{said:?}"),
        }
        other.goodbye();
        stage.the_next_one_is_served(&said);
    }
}

#[test]
fn in_answer_to_a_login_and_to_the_survey() {
    if no_valet() {
        return;
    }
    for (number, said) in garbage().iter().enumerate() {
        // The survey is only made with the first backend: a stage for each.
        if number % 40 != 0 {
            continue;
        }
        for to in ["user\0postgres", "pg_rewrite"] {
            let stage = stage(&[]);
            stage.madness.plan(to, said);
            let mut client = Raw::dial(stage.valet.port());
            let login = [("user", "postgres"), ("database", "postgres")];
            client.send(&crate::support::messages::startup(0x0003_0000, &login));
            client.until_end_of_login();
            drop(client);
            stage.the_next_one_is_served(said);
        }
    }
}
