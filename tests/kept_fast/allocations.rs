//! A round trip in the steady state allocates nothing on the data thread.
#![allow(
    unsafe_code,
    reason = "an allocator that counts, in front of the system's"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

use pgvalet::config::{self, Sources};
use pgvalet::{Listeners, drain};

use crate::exchange::{PROTOCOLS, Protocol, Warm};
use crate::support::{Postgres, no_valet};

/// How many round trips are counted together.
const BATCH: usize = 100;
/// Of so many batches one must be free of what the data thread does every second besides.
const BATCHES: usize = 30;

#[global_allocator]
static COUNTING: Counting = Counting;

/// The thread whose allocations count; none is 0.
static WATCHED: AtomicI32 = AtomicI32::new(0);
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// One test at a time: there is one count.
static ALONE: Mutex<()> = Mutex::new(());

struct Counting;

impl Counting {
    fn count() {
        let watched = WATCHED.load(Ordering::Relaxed);
        // SAFETY: it has no preconditions.
        if watched != 0 && unsafe { libc::gettid() } == watched {
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: every call is the system allocator's own, with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count();
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count();
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count();
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// How often the data thread allocates while `work` is done.
fn allocations(work: impl FnOnce()) -> usize {
    let before = COUNT.load(Ordering::SeqCst);
    work();
    COUNT.load(Ordering::SeqCst) - before
}

/// Runs pgvalet in this process, and watches its data thread while `test` is run with its port.
fn in_process(postgres: &Postgres, mode: &str, test: impl FnOnce(u16)) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let flags = [
        ("upstream", &*postgres.url("postgres", "postgres")),
        ("listen", "127.0.0.1:0"),
        ("admin", "127.0.0.1:0"),
        ("metrics", "127.0.0.1:0"),
        ("auth", "trust"),
        ("mode", mode),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let sources = Sources {
        flags: flags.to_vec(),
        ..Sources::default()
    };
    let config = config::load(&sources)
        .expect("a valid configuration")
        .config;
    let (trigger, shutdown) = drain::channel();
    let (sender, ports) = mpsc::channel();
    let main = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let listeners = Listeners::bind(&config).expect("free ports");
            let address = listeners.clients[0].to_string();
            sender.send(address).expect("the test waits for it");
            pgvalet::run(config, listeners, shutdown).await
        })
    });
    let address = ports.recv().expect("it listens");
    let (_, port) = address.rsplit_once(':').expect("a port");
    // The login comes back from the data thread, so the thread is there, and has its name.
    let first = crate::support::Raw::connect(port.parse().expect("a number"));
    WATCHED.store(data_thread(), Ordering::SeqCst);
    test(port.parse().expect("a number"));
    WATCHED.store(0, Ordering::SeqCst);
    drop(first);
    trigger.advance();
    trigger.advance();
    main.join().expect("no panic").expect("an orderly end");
}

fn data_thread() -> i32 {
    let tasks = fs::read_dir("/proc/self/task").expect("our threads");
    let mut paths = tasks.map(|task| task.expect("a thread").path());
    let path = paths
        .find(|path| {
            fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "pgvalet-data-0")
        })
        .expect("a data thread");
    let tid = path.file_name().and_then(|name| name.to_str());
    tid.and_then(|tid| tid.parse().ok()).expect("a thread's id")
}

/// How many allocations a round trip may take.
fn allowed(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Simple | Protocol::Prepared => 0,
        // Each Parse is kept, as the unnamed statement: its text, and what holds it.
        Protocol::Extended => 2,
    }
}

#[track_caller]
fn allocates_nothing(mode: &str) {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    in_process(&postgres, mode, |port| {
        let connecting = allocations(|| drop(crate::support::Raw::connect(port)));
        assert!(
            connecting > 0,
            "a login allocates: this count would show it"
        );
        for protocol in PROTOCOLS {
            let mut client = Warm::over_tcp(port, protocol);
            let counts: Vec<usize> = (0..BATCHES)
                .map(|_| allocations(|| client.round_trips(BATCH)))
                .collect();
            assert!(
                counts.iter().min() <= Some(&(allowed(protocol) * BATCH)),
                "{protocol:?}, mode {mode}: allocations of each {BATCH} round trips: {counts:?}"
            );
        }
    });
}

#[test]
fn a_round_trip_in_session_mode_allocates_nothing() {
    allocates_nothing("session");
}

#[test]
fn a_round_trip_in_transaction_mode_allocates_nothing() {
    allocates_nothing("transaction");
}
