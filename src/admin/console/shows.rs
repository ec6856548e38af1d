//! Owns what SHOW shows, in the columns of PgBouncer 1.18; later versions only add to them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::command::Show;
use super::handler::{Handler, version};
use super::orders::ending;
use super::table::{Column, Kind, Row, row};
use super::{config_rows, stats};
use crate::admin::Desk;
use crate::admin::views::Owners;
use crate::config::{Place, UpstreamHost};
use crate::lease::Moment;
use crate::shard::{BackendFigures, Gone, PoolFigures, SessionFigures};
use crate::view::{LeaseView, duration};
use crate::wire::reply::ClientError;

use Kind::{Big, Int, Text};

pub(super) const HELP: &str = "\n\
    \tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION\n\
    \tSHOW LISTS|MEM|STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS\n\
    \tSHOW LEASES|SESSIONS|OWNERS|LEAKS\n\
    \tRETURN <session>\n\
    \tRETURN OWNER <owner>\n\
    \tRELOAD\n\
    \tPAUSE [<db>]\n\
    \tRESUME [<db>]\n\
    \tRECONNECT [<db>]\n\
    \tWAIT_CLOSE [<db>]\n\
    \tKILL <db>\n\
    \tKILL_CLIENT <session>\n\
    \tSHUTDOWN [WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS]";

/// Sockets, as SHOW CLIENTS and SHOW SERVERS describe them; the last one is of later versions.
macro_rules! socket {
    () => {
        &[
            ("type", Text),
            ("user", Text),
            ("database", Text),
            ("state", Text),
            ("addr", Text),
            ("port", Int),
            ("local_addr", Text),
            ("local_port", Int),
            ("connect_time", Text),
            ("request_time", Text),
            ("wait", Int),
            ("wait_us", Int),
            ("close_needed", Int),
            ("ptr", Text),
            ("link", Text),
            ("remote_pid", Int),
            ("tls", Text),
            ("application_name", Text),
            ("id", Int),
        ]
    };
}
pub(super) const CLIENTS: &[Column] = socket!();
pub(super) const SERVERS: &[Column] = socket!();
pub(super) const POOLS: &[Column] = &[
    ("database", Text),
    ("user", Text),
    ("cl_active", Int),
    ("cl_waiting", Int),
    ("cl_active_cancel_req", Int),
    ("cl_waiting_cancel_req", Int),
    ("sv_active", Int),
    ("sv_active_cancel", Int),
    ("sv_being_canceled", Int),
    ("sv_idle", Int),
    ("sv_used", Int),
    ("sv_tested", Int),
    ("sv_login", Int),
    ("maxwait", Int),
    ("maxwait_us", Int),
    ("pool_mode", Text),
];
pub(super) const LISTS: &[Column] = &[("list", Text), ("items", Int)];
pub(super) const DATABASES: &[Column] = &[
    ("name", Text),
    ("host", Text),
    ("port", Int),
    ("database", Text),
    ("force_user", Text),
    ("pool_size", Int),
    ("min_pool_size", Int),
    ("reserve_pool", Int),
    ("pool_mode", Text),
    ("max_connections", Int),
    ("current_connections", Int),
    ("paused", Int),
    ("disabled", Int),
];
pub(super) const USERS: &[Column] = &[("name", Text), ("pool_mode", Text)];
pub(super) const CONFIG: &[Column] = &[
    ("key", Text),
    ("value", Text),
    ("default", Text),
    ("changeable", Text),
];
pub(super) const VERSION: &[Column] = &[("version", Text)];
pub(super) const MEM: &[Column] = &[
    ("name", Text),
    ("size", Int),
    ("used", Int),
    ("free", Int),
    ("memtotal", Int),
];
pub(super) const DNS_HOSTS: &[Column] = &[("hostname", Text), ("ttl", Big), ("addrs", Text)];
pub(super) const DNS_ZONES: &[Column] = &[("zonename", Text), ("serial", Big), ("count", Int)];
pub(super) const LEASES: &[Column] = &[
    ("session", Int),
    ("database", Text),
    ("user", Text),
    ("owner", Text),
    ("evidence", Text),
    ("state", Text),
    ("verdict", Text),
    ("idle", Text),
    ("backend", Int),
    ("pins", Text),
    ("process", Int),
    ("where", Text),
    ("last_statement", Text),
];
pub(super) const OWNERS: &[Column] = &[
    ("owner", Text),
    ("evidence", Text),
    ("sessions", Int),
    ("leases", Int),
    ("active", Int),
    ("in_transaction", Int),
    ("idle", Int),
    ("resting", Int),
    ("parked", Int),
    ("longest_idle", Text),
];
pub(super) const LEAKS: &[Column] = &[
    ("session", Int),
    ("owner", Text),
    ("evidence", Text),
    ("parked_since", Text),
    ("parked_for", Text),
    ("last_statement", Text),
    ("where", Text),
    ("process", Int),
    ("count_last_hour", Big),
    ("total_last_hour", Text),
    ("pins", Text),
];

/// The rows of what is asked for.
///
/// # Errors
/// pgvalet is ending.
pub(super) async fn rows(handler: &Handler, show: Show) -> Result<Vec<Row>, ClientError> {
    let (desk, averages) = (&handler.desk, &handler.averages);
    let rows = match show {
        Show::Clients => clients(desk).await,
        Show::Servers => servers(desk).await,
        Show::Pools => pools(desk).await,
        Show::Stats => stats::stats(desk, averages).await,
        Show::StatsTotals => stats::stats_totals(desk).await,
        Show::StatsAverages => stats::stats_averages(desk, averages).await,
        Show::Totals => stats::all(desk, averages).await,
        Show::Lists => lists(desk).await,
        Show::Databases => databases(desk).await,
        Show::Users => users(desk).await,
        Show::Config => Ok(config_rows::rows(&desk.config)),
        Show::Version => Ok(vec![row![version()]]),
        Show::Mem => memory(desk).await,
        // The system's resolver is asked each time: nothing is kept.
        Show::DnsHosts | Show::DnsZones => Ok(Vec::new()),
        Show::Leases => leases(desk, |lease| lease.state != "none").await,
        Show::Sessions => leases(desk, |_| true).await,
        Show::Owners => owners(desk).await,
        Show::Leaks => leaks(desk).await,
    };
    rows.map_err(ending)
}

/// Every pool in figures; the upstream URL's is always there, as programs take no rows for a failure.
pub(super) async fn pool_figures(desk: &Desk) -> Result<Vec<PoolFigures>, Gone> {
    let mut pools = desk.shards.pool_figures().await?;
    let upstream = &desk.config.upstream;
    let (database, user) = (&upstream.database, &upstream.user);
    let own = |pool: &PoolFigures| pool.database == *database && pool.user == *user;
    if !pools.iter().any(own) {
        pools.push(PoolFigures {
            database: database.clone(),
            user: user.clone(),
            ..PoolFigures::default()
        });
    }
    Ok(pools)
}

/// `2026-11-21 22:23:31 UTC`, as PgBouncer writes it.
fn time(desk: &Desk, moment: Moment) -> String {
    let wall = std::time::UNIX_EPOCH + desk.clock.wall(moment);
    let text = humantime::format_rfc3339_seconds(wall).to_string();
    text.replace('T', " ").replace('Z', " UTC")
}

fn seconds(duration: Duration) -> (u64, u32) {
    (duration.as_secs(), duration.subsec_micros())
}

/// What stands for the address of something: what it is known by.
fn pointer(id: u64) -> String {
    format!("0x{id:x}")
}

async fn clients(desk: &Desk) -> Result<Vec<Row>, Gone> {
    let now = desk.clock.precise();
    let client = |session: SessionFigures| {
        let address: Option<SocketAddr> = session.client.parse().ok();
        let state = match (session.waiting, session.backend) {
            (Some(_), _) => "waiting",
            (None, Some(_)) => "active",
            (None, None) => "idle",
        };
        let waited = session.waiting.map(|since| now.since(since));
        let (wait, wait_us) = seconds(waited.unwrap_or_default());
        let link = session.backend.map(|pid| pointer(pid.into()));
        row![
            "C",
            session.user,
            session.database,
            state,
            address.map_or("unix".to_owned(), |address| address.ip().to_string()),
            address.map_or(0, |address| u32::from(address.port())),
            "",
            0_u32,
            time(desk, session.opened),
            time(desk, session.since),
            wait,
            wait_us,
            0_u32,
            pointer(session.id.get().into()),
            link.unwrap_or_default(),
            session.process.unwrap_or_default(),
            "",
            session.application,
            session.id.get(),
        ]
    };
    let sessions = desk.shards.session_figures().await?;
    Ok(sessions.into_iter().map(client).collect())
}

async fn servers(desk: &Desk) -> Result<Vec<Row>, Gone> {
    let suffix = desk
        .config
        .upstream
        .places
        .first()
        .map(|place| u32::from(place.port));
    let server = |backend: BackendFigures| {
        let ip =
            |end: Option<SocketAddr>| end.map_or("unix".to_owned(), |end| end.ip().to_string());
        let port = |end: Option<SocketAddr>| end.map(|end| u32::from(end.port()));
        let link = backend.session.map(|id| pointer(id.get().into()));
        row![
            "S",
            backend.user,
            backend.database,
            if backend.session.is_some() {
                "active"
            } else {
                "idle"
            },
            ip(backend.peer),
            port(backend.peer).or(suffix).unwrap_or_default(),
            ip(backend.local),
            port(backend.local).unwrap_or_default(),
            time(desk, backend.born),
            time(desk, backend.since),
            0_u32,
            0_u32,
            backend.is_old,
            pointer(backend.pid.into()),
            link.unwrap_or_default(),
            backend.pid,
            if backend.encrypted { "TLS" } else { "" },
            backend.application,
            backend.pid,
        ]
    };
    let backends = desk.shards.backend_figures().await?;
    Ok(backends.into_iter().map(server).collect())
}

async fn pools(desk: &Desk) -> Result<Vec<Row>, Gone> {
    let now = desk.clock.precise();
    let mode = config_rows::pool_mode(&desk.config);
    let pool = |pool: PoolFigures| {
        let census = pool.census;
        let waited = pool.waiting_since.map(|since| now.since(since));
        let (maxwait, maxwait_us) = seconds(waited.unwrap_or_default());
        row![
            pool.database,
            pool.user,
            // With a backend, or without a need for one.
            pool.sessions.saturating_sub(census.waiting),
            census.waiting,
            0_u32,
            0_u32,
            census.leased,
            0_u32,
            0_u32,
            census.idle,
            // To be scrubbed, before anybody but its own session gets it.
            census.warm,
            0_u32,
            census.connecting,
            maxwait,
            maxwait_us,
            mode,
        ]
    };
    let pools = pool_figures(desk).await?;
    Ok(pools.into_iter().map(pool).collect())
}

async fn lists(desk: &Desk) -> Result<Vec<Row>, Gone> {
    let pools = pool_figures(desk).await?;
    let databases: BTreeSet<_> = pools.iter().map(|pool| &pool.database).collect();
    let users: BTreeSet<_> = pools.iter().map(|pool| &pool.user).collect();
    let sessions: usize = pools.iter().map(|pool| pool.sessions).sum();
    let backends = |pool: &PoolFigures| pool.census.leased + pool.census.idle + pool.census.warm;
    let backends: usize = pools.iter().map(backends).sum();
    let lists = [
        ("databases", databases.len()),
        ("users", users.len()),
        ("pools", pools.len()),
        ("free_clients", 0),
        ("used_clients", sessions),
        ("login_clients", 0),
        ("free_servers", 0),
        ("used_servers", backends),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ];
    Ok(lists.map(|(name, count)| row![name, count]).to_vec())
}

/// The databases in use, and the one that the upstream URL names.
async fn databases(desk: &Desk) -> Result<Vec<Row>, Gone> {
    let config = &desk.config;
    let pools = pool_figures(desk).await?;
    let mut names: BTreeSet<&str> = pools.iter().map(|pool| pool.database.as_str()).collect();
    names.insert(&config.upstream.database);
    let places = &config.upstream.places;
    let host = |place: &Place| match &place.host {
        UpstreamHost::Tcp(host) => host.clone(),
        UpstreamHost::Unix(directory) => directory.to_string_lossy().into_owned(),
    };
    let host = places.iter().map(host).collect::<Vec<_>>().join(",");
    let port = places.first().map(|place| u32::from(place.port));
    let database = |name: &str| {
        let own = || pools.iter().filter(|pool| pool.database == name);
        let backends = |pool: &PoolFigures| {
            let census = pool.census;
            census.leased + census.idle + census.warm + census.connecting
        };
        row![
            name,
            host.clone(),
            port.unwrap_or_default(),
            name,
            None::<String>,
            config.max_backends,
            0_u32,
            0_u32,
            config_rows::pool_mode(config),
            0_u32,
            own().map(backends).sum::<usize>(),
            own().any(|pool| pool.is_paused),
            0_u32,
        ]
    };
    Ok(names.into_iter().map(database).collect())
}

async fn users(desk: &Desk) -> Result<Vec<Row>, Gone> {
    let pools = pool_figures(desk).await?;
    let config = &desk.config;
    let mut names: BTreeSet<&str> = pools.iter().map(|pool| pool.user.as_str()).collect();
    names.insert(&config.upstream.user);
    names.extend(config.users.keys().map(String::as_str));
    let user = |name| row![name, None::<String>];
    Ok(names.into_iter().map(user).collect())
}

/// What the process holds of memory, by page; and, for comparison, sessions and backends without their sizes.
async fn memory(desk: &Desk) -> Result<Vec<Row>, Gone> {
    let pools = pool_figures(desk).await?;
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages.split(' ').nth(1).and_then(|text| text.parse().ok());
    let (pages, size) = (pages.unwrap_or(0_u64), rustix::param::page_size());
    let total = pages.saturating_mul(size as u64);
    let sessions: usize = pools.iter().map(|pool| pool.sessions).sum();
    Ok(vec![
        row!["resident", size, pages, 0_u32, total],
        row!["sessions", 0_u32, sessions, 0_u32, 0_u32],
    ])
}

async fn leases(desk: &Desk, shown: impl Fn(&LeaseView) -> bool) -> Result<Vec<Row>, Gone> {
    let (_, sessions) = desk.sessions().await?;
    let lease = |lease: LeaseView| {
        row![
            lease.session,
            lease.database,
            lease.user,
            lease.owner,
            lease.evidence,
            lease.state,
            lease.verdict,
            duration(lease.idle),
            lease.backend,
            lease.pins.join(", "),
            lease.process.map(|process| process.pid),
            lease.place,
            lease.last_statement,
        ]
    };
    Ok(sessions.into_iter().filter(shown).map(lease).collect())
}

async fn owners(desk: &Desk) -> Result<Vec<Row>, Gone> {
    let owners = Owners::of(desk.sessions().await?.1);
    let owner = |owner: crate::admin::views::Owner| {
        row![
            owner.owner,
            owner.evidence,
            owner.sessions,
            owner.leases,
            owner.active,
            owner.in_transaction,
            owner.idle,
            owner.resting,
            owner.parked,
            duration(owner.longest_idle),
        ]
    };
    Ok(owners.owners.into_iter().map(owner).collect())
}

async fn leaks(desk: &Desk) -> Result<Vec<Row>, Gone> {
    let (_, mut sessions) = desk.sessions().await?;
    let parks = desk.shards.parks().await?;
    sessions.retain(|session| matches!(session.verdict, "parked" | "pinned"));
    sessions.sort_by_key(|session| std::cmp::Reverse(session.idle));
    let leak = |lease: LeaseView| {
        let known = parks.get(&lease.owner);
        row![
            lease.session,
            lease.owner,
            lease.evidence,
            lease.since,
            duration(lease.idle),
            lease.last_statement,
            lease.place,
            lease.process.map(|process| process.pid),
            known.map_or(0, |parks| parks.count),
            duration(known.map_or(Duration::ZERO, |parks| parks.total)),
            lease.pins.join(", "),
        ]
    };
    Ok(sessions.into_iter().map(leak).collect())
}
