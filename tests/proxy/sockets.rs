//! The sockets that clients come to: who may connect to a unix one, and what becomes of one that a crash left behind.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open};
use socket2::{SockAddr, Socket};

use crate::support::{Exit, Postgres, Raw, Valet, eventually, no_valet, skip};

const NOBODY: &str = "postgres://postgres@127.0.0.1:1/postgres";

fn listening_in(directory: &Path, flags: &[&str]) -> Result<Valet, Exit> {
    let listen = format!("unix:{}", directory.display());
    Valet::serve(
        &[
            &["--upstream", NOBODY, "--auth", "trust", "--listen", &listen],
            flags,
        ]
        .concat(),
    )
}

#[test]
fn a_unix_socket_has_its_mode_and_group() {
    if no_valet() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    // Only root may give a file to a group that it isn't in.
    let own = rustix::process::getegid().as_raw();
    let group = if own == 0 { 1 } else { own };
    let flags = [
        "--unix-socket-mode",
        "0760",
        "--unix-socket-group",
        &group.to_string(),
    ];
    let valet = listening_in(home.path(), &flags).unwrap_or_else(|exit| panic!("{}", exit.log));
    let socket = home.path().join(".s.PGSQL.6432");
    let made = std::fs::metadata(&socket).expect("a socket");
    assert!(made.file_type().is_socket());
    assert_eq!(
        (made.permissions().mode() & 0o7777, made.gid()),
        (0o760, group)
    );
    drop(valet);
}

#[test]
fn a_socket_that_a_crash_left_is_taken_over_and_a_living_one_is_not() {
    if no_valet() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let socket = home.path().join(".s.PGSQL.6432");
    let first = listening_in(home.path(), &[]).unwrap_or_else(|exit| panic!("{}", exit.log));
    match listening_in(home.path(), &[]) {
        Ok(_) => panic!("two listen on one socket"),
        Err(exit) => assert!(exit.log.contains("in use"), "{}", exit.log),
    }
    UnixStream::connect(&socket).expect("the first one still listens");
    first.signal(Signal::KILL);
    first.wait();
    assert!(socket.exists(), "nobody was left to remove it");
    let second = listening_in(home.path(), &[]).unwrap_or_else(|exit| panic!("{}", exit.log));
    UnixStream::connect(&socket).expect("the second one listens");
    second.signal(Signal::TERM);
    second.wait();
    assert!(!socket.exists(), "it was removed in the end");
}

#[test]
fn a_socket_of_somebody_else_s_is_not_removed() {
    if no_valet() {
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    let socket = home.path().join(".s.PGSQL.6432");
    let valet = listening_in(home.path(), &[]).unwrap_or_else(|exit| panic!("{}", exit.log));
    std::fs::remove_file(&socket).expect("it is there");
    let _other = std::os::unix::net::UnixListener::bind(&socket).expect("the name is free");
    valet.signal(Signal::TERM);
    valet.wait();
    UnixStream::connect(&socket).expect("the other one still listens");
}

/// The seconds until the kernel's keepalive timer of each socket between these two ports (0 for any).
fn keepalives(local: u16, remote: u16) -> Vec<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    let port = |address: &str| u16::from_str_radix(address.split_once(':')?.1, 16).ok();
    let is = |wanted: u16, address: &str| wanted == 0 || port(address) == Some(wanted);
    let timer = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, from, to, state, _, timer, ..] = fields[..] else {
            return None;
        };
        let (kind, jiffies) = timer.split_once(':')?;
        let wanted = is(local, from) && is(remote, to) && state == "01" && kind == "02";
        let jiffies = u64::from_str_radix(jiffies, 16).ok()?;
        wanted.then_some(jiffies / 100)
    };
    table.lines().filter_map(timer).collect()
}

#[test]
fn keepalives_are_set_on_both_legs() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let valet = Valet::front_with(&postgres, &["--tcp-keepalive-idle", "1h"]);
    let mut client = Raw::connect(valet.port());
    client.value("SELECT 1");
    eventually("both sockets will be probed in an hour", || {
        let soon = |seconds: &u64| (3000..=3600).contains(seconds);
        keepalives(valet.port(), 0).iter().any(soon)
            && keepalives(0, postgres.port()).iter().any(soon)
    });
}

/// Copies of the TCP sockets that pgvalet has, but for those that listen: to read their options back. Some containers
/// forbid it.
fn sockets_of(valet: &Valet) -> Result<Vec<Socket>, Errno> {
    let pid = i32::try_from(valet.pid()).ok().and_then(Pid::from_raw);
    let pid = pid.expect("a pid");
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it is our child");
    let mut sockets = Vec::new();
    for number in files.filter_map(|file| file.ok()?.file_name().to_str()?.parse().ok()) {
        match pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) {
            Ok(copy) => sockets.push(Socket::from(copy)),
            // It was closed meanwhile.
            Err(Errno::BADF) => {}
            Err(error) => return Err(error),
        }
    }
    sockets.retain(|socket| socket.peer_addr().is_ok_and(|peer| peer.is_ipv4()));
    Ok(sockets)
}

#[test]
fn dead_peers_are_given_up_on_both_legs() {
    if no_valet() {
        return;
    }
    let postgres = Postgres::start();
    let flags = ["--tcp-user-timeout", "17s", "--tcp-keepalive-idle", "23s"];
    let more = [
        "--tcp-keepalive-interval",
        "7s",
        "--tcp-keepalive-count",
        "3",
    ];
    let valet = Valet::front_with(&postgres, &[flags, more].concat());
    let mut client = Raw::connect(valet.port());
    client.value("SELECT 1");
    let port = |address: std::io::Result<SockAddr>| {
        address.ok()?.as_socket().map(|address| address.port())
    };
    let sockets = match sockets_of(&valet) {
        Ok(sockets) => sockets,
        Err(error) => return skip(&format!("sockets of a child can't be copied: {error}")),
    };
    let near = sockets
        .iter()
        .find(|socket| port(socket.local_addr()) == Some(valet.port()));
    let far = sockets
        .iter()
        .find(|socket| port(socket.peer_addr()) == Some(postgres.port()));
    for (leg, socket) in [("the client's", near), ("PostgreSQL's", far)] {
        let socket = socket.unwrap_or_else(|| panic!("{leg} socket isn't among {sockets:?}"));
        let seconds = |time: std::io::Result<Duration>| time.expect("it can be read").as_secs();
        let unacknowledged = socket.tcp_user_timeout().expect("it can be read");
        assert_eq!(unacknowledged, Some(Duration::from_secs(17)), "{leg}");
        assert!(
            socket.keepalive().expect("it can be read") && socket.tcp_nodelay().expect("too"),
            "{leg}"
        );
        assert_eq!(seconds(socket.tcp_keepalive_time()), 23, "{leg}");
        assert_eq!(seconds(socket.tcp_keepalive_interval()), 7, "{leg}");
        assert_eq!(
            socket.tcp_keepalive_retries().expect("it can be read"),
            3,
            "{leg}"
        );
    }
}
