//! Owns the finding of processes behind sockets, as far as this machine's /proc tells.
//!
//! It reads much of /proc, in stretches: call it off the data thread, and only when somebody looks.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::pacer::Pacer;

/// How much of a command line is kept, in characters.
const KEPT: usize = 120;

/// How many lines and links of /proc are read without a rest.
const STRETCH: usize = 128;

/// How much is read at once, in bytes: a kernel that doesn't let itself be interrupted keeps a processor for so long.
const PIECE: usize = 4096;

/// A process of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Found {
    pub pid: u32,
    /// When it began, in the kernel's ticks since boot; 0 where nobody knows.
    pub started: u64,
    /// Its command line, cut to a readable length.
    pub command: String,
}

/// Whether a process is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is, or nobody can tell.
    Alive,
    Gone,
}

/// The processes that are connected to this one from these addresses: of several that share a socket the oldest, which
/// opened it before the others inherited it. Those of other process namespaces, and of other users where /proc is closed,
/// are not found.
#[must_use]
pub fn behind(addresses: &[SocketAddr]) -> HashMap<SocketAddr, Found> {
    let pacer = Pacer::new(STRETCH);
    let inodes = inodes(addresses, &pacer);
    let mut found: HashMap<SocketAddr, (u32, u64)> = HashMap::new();
    if inodes.is_empty() {
        return HashMap::new();
    }
    for pid in pids() {
        for address in sockets_of(pid, &pacer).filter_map(|inode| inodes.get(&inode)) {
            let own = (pid, started(pid).unwrap_or(0));
            let known = found.entry(*address).or_insert(own);
            if (own.1, own.0) < (known.1, known.0) {
                *known = own;
            }
        }
    }
    let described = found.into_iter().map(|(address, (pid, started))| {
        let command = command(pid);
        let found = Found {
            pid,
            started,
            command,
        };
        (address, found)
    });
    described.collect()
}

/// Every process that has the socket which is connected to this one from this address.
#[must_use]
pub fn holders(address: SocketAddr) -> Vec<u32> {
    let pacer = Pacer::new(STRETCH);
    let inodes = inodes(&[address], &pacer);
    if inodes.is_empty() {
        return Vec::new();
    }
    let holds = |pid: &u32| sockets_of(*pid, &pacer).any(|inode| inodes.contains_key(&inode));
    pids().filter(holds).collect()
}

/// When a process began, in the kernel's ticks since boot.
#[must_use]
pub fn started(pid: u32) -> Option<u64> {
    stat(pid).map(|(_, started)| started)
}

/// A process's state, and when it began (proc_pid_stat(5), fields 3 and 22).
fn stat(pid: u32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, parentheses too.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// What became of the process with this pid that began at `since`; 0 where nobody knows when.
#[must_use]
pub fn fate(pid: u32, since: u64) -> Fate {
    let raw = i32::try_from(pid).ok();
    let Some(named) = raw.and_then(rustix::process::Pid::from_raw) else {
        return Fate::Alive;
    };
    // /proc may hide other users' processes: only the kernel knows that there is none.
    if rustix::process::test_kill_process(named) == Err(rustix::io::Errno::SRCH) {
        return Fate::Gone;
    }
    match stat(pid) {
        // Whom nobody has waited for yet has ended all the same.
        Some(('Z' | 'X', _)) => Fate::Gone,
        Some((_, started)) if since != 0 && started != since => Fate::Gone,
        Some(_) | None => Fate::Alive,
    }
}

/// A process's command line, its arguments parted by spaces; empty when it is gone.
#[must_use]
pub fn command(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty());
    let words: Vec<_> = words.map(String::from_utf8_lossy).collect();
    words.join(" ").chars().take(KEPT).collect()
}

/// The name of a user of this machine, as /etc/passwd has it.
#[must_use]
pub fn user_name(uid: u32) -> Option<String> {
    let uid = uid.to_string();
    let passwd = fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd
        .lines()
        .find(|line| line.split(':').nth(2) == Some(&uid))?;
    line.split(':').next().map(str::to_owned)
}

/// The inodes of the sockets at these addresses whose other ends are ours: the kernel gives one local address to several
/// sockets, as long as they lead to different places.
fn inodes(addresses: &[SocketAddr], pacer: &Pacer) -> HashMap<u64, SocketAddr> {
    let wanted: HashMap<_, _> = addresses
        .iter()
        .map(|one| (canonical(*one), *one))
        .collect();
    let own: HashSet<u64> = sockets_of(std::process::id(), pacer).collect();
    let sockets = tcp_sockets(pacer);
    let ours = sockets.iter().filter(|socket| own.contains(&socket.inode));
    let ours: HashSet<_> = ours.map(|socket| (socket.peer, socket.local)).collect();
    let theirs = sockets
        .iter()
        .filter(|socket| ours.contains(&(socket.local, socket.peer)));
    theirs
        .filter_map(|socket| Some((socket.inode, *wanted.get(&socket.local)?)))
        .collect()
}

/// All TCP sockets that some process has.
fn tcp_sockets(pacer: &Pacer) -> Vec<TcpSocket> {
    let mut sockets = Vec::new();
    let mut line = String::new();
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    for table in tables.iter().flat_map(File::open) {
        let mut lines = BufReader::with_capacity(PIECE, table);
        while lines.read_line(&mut line).is_ok_and(|read| read > 0) {
            sockets.extend(TcpSocket::read(&line));
            line.clear();
            pacer.did(1);
        }
    }
    sockets
}

/// A line of the kernel's table of TCP sockets.
struct TcpSocket {
    local: SocketAddr,
    peer: SocketAddr,
    /// Not 0: those that no process has are left out.
    inode: u64,
}

impl TcpSocket {
    /// Nothing for the head of the table, and for a socket that no process has.
    fn read(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1).and_then(address)?;
        let peer = fields.next().and_then(address)?;
        let inode = fields.nth(6)?.parse().ok().filter(|inode| *inode != 0)?;
        Some(Self { local, peer, inode })
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// `0100007F:1F90`, as the kernel writes it: 32-bit words in host order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok();
    let ip = match ip.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?.to_ne_bytes())),
        32 => {
            let mut bytes = [0; 16];
            for (at, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?.to_ne_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(canonical(SocketAddr::new(ip, port)))
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn sockets_of(pid: u32, pacer: &Pacer) -> impl Iterator<Item = u64> {
    let links = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    links.filter_map(|link| {
        pacer.did(1);
        let target = fs::read_link(link.path()).ok()?;
        target
            .to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn our_own_process_is_found_behind_our_own_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _accepted = listener.accept().unwrap();
        let local = client.local_addr().unwrap();

        let found = behind(&[local]);

        assert_eq!(found[&local].pid, std::process::id());
        assert!(!found[&local].command.is_empty());
    }

    #[test]
    fn a_socket_at_the_same_address_that_leads_elsewhere_is_not_meant() {
        let [ours, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let connect = |from: &str, to: &TcpListener| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            let from: SocketAddr = from.parse().unwrap();
            socket.bind(&from.into()).unwrap();
            socket.connect(&to.local_addr().unwrap().into()).unwrap();
            TcpStream::from(socket)
        };
        let client = connect("127.0.0.1:0", &ours);
        let _accepted = ours.accept().unwrap();
        let local = client.local_addr().unwrap();
        // Nobody has accepted this one: its other end is not ours.
        let _elsewhere = connect(&local.to_string(), &other);

        assert_eq!(inodes(&[local], &Pacer::new(STRETCH)).len(), 1);
    }

    #[test]
    fn a_process_that_has_ended_is_gone_and_its_pid_is_no_proof() {
        let own = std::process::id();
        let since = started(own).unwrap();
        assert_eq!((fate(own, since), fate(own, 0)), (Fate::Alive, Fate::Alive));
        assert_eq!(fate(own, since + 1), Fate::Gone);
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(fate(child.id(), 0), Fate::Alive);
        child.kill().unwrap();
        // Until it is waited for it is still in the table.
        while fate(child.id(), 0) == Fate::Alive {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(fate(child.id(), 0), Fate::Gone);
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn the_kernels_notation_is_read() {
        assert_eq!(
            address("0100007F:1F90"),
            Some("127.0.0.1:8080".parse().unwrap())
        );
        let mapped = "0000000000000000FFFF00000100007F:0050";
        assert_eq!(address(mapped), Some("127.0.0.1:80".parse().unwrap()));
        assert_eq!(address("0100007F"), None);
    }
}
