//! Owns the wiring: from a configuration and bound listeners to a running pgvalet.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::admin::fleet::Fleet;
use crate::admin::{self, Averages, Console, Desk, TokenError};
use crate::backend::counts::Changes;
use crate::backend::{Dialer, Tokens};
use crate::clock::Clock;
use crate::config::{Address, Config, FleetMode};
use crate::drain::{Phase, Shutdown};
use crate::events::{self, Desk as Followers, Events, Hub};
use crate::metrics::Metrics;
use crate::net::listen::Access;
use crate::net::tls::{BackendTls, ClientTls, Handshakes, TlsError};
use crate::net::{Bound, bind, bind_for_clients};
use crate::session::auth::Verifiers;
use crate::shard::{self, Parts, Shards, Transport};

/// The listeners of one pgvalet, bound, and the certificates of both legs, read.
#[derive(Debug)]
pub struct Listeners {
    pub clients: Vec<Bound>,
    pub admin: Bound,
    pub metrics: Bound,
    pub certificates: Certificates,
}

/// The certificates of both legs. Clones share them.
#[derive(Clone, Debug)]
pub struct Certificates {
    clients: Option<ClientTls>,
    admin: Option<ClientTls>,
    backends: Option<BackendTls>,
}

/// Why pgvalet could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("can't listen on {address} ({key}): {source}")]
    Bind {
        key: &'static str,
        address: Address,
        source: io::Error,
    },
    #[error("no TLS ({key}): {source}")]
    Tls {
        key: &'static str,
        source: Box<TlsError>,
    },
    #[error("no token for the admin API: {0}")]
    Token(#[from] TokenError),
    #[error("can't start: {0}")]
    Start(#[source] io::Error),
    #[error("the system has no randomness to give: {0}")]
    Randomness(#[source] getrandom::Error),
    #[error("the data thread ended: {0}")]
    Shard(#[source] io::Error),
}

impl Listeners {
    /// Binds what the configuration names.
    ///
    /// # Errors
    /// The first address that can't be bound, with its key.
    pub fn bind(config: &Config) -> Result<Self, RunError> {
        admin::check_tokens(&config.admin_access)?;
        let named = |key, address: &Address, bound: io::Result<Bound>| {
            let address = address.clone();
            bound.map_err(|source| RunError::Bind {
                key,
                address,
                source,
            })
        };
        let one = |key, address: &Address| named(key, address, bind(address, admin::TCP));
        let access = Access {
            mode: config.unix_socket_mode,
            group: config.unix_socket_group.as_ref().map(|group| group.id),
        };
        let client = |address: &Address| {
            named(
                "listen",
                address,
                bind_for_clients(address, config.tcp, access),
            )
        };
        let clients = config.listen.iter().map(client).collect::<Result<_, _>>()?;
        Ok(Self {
            clients,
            admin: one("admin", &config.admin)?,
            metrics: one("metrics", &config.metrics)?,
            certificates: Certificates::load(config)?,
        })
    }
}

impl Certificates {
    /// Reads what the configuration names.
    ///
    /// # Errors
    /// What is wrong with the first bad file, with its key.
    pub fn load(config: &Config) -> Result<Self, RunError> {
        let failed = |key| {
            move |source| RunError::Tls {
                key,
                source: Box::new(source),
            }
        };
        Ok(Self {
            clients: ClientTls::load(config).map_err(failed("tls"))?,
            admin: ClientTls::load_for_admin(&config.admin_access)
                .map_err(failed("admin_tls_cert"))?,
            backends: BackendTls::load(&config.upstream).map_err(failed("upstream"))?,
        })
    }

    /// Reads them again where they have changed. Sessions and backends keep what they have.
    pub fn refresh(&self) {
        for clients in [&self.clients, &self.admin].into_iter().flatten() {
            clients.refresh();
        }
        if let Some(backends) = &self.backends {
            backends.refresh();
        }
    }

    /// Looks at them from time to time, on the thread for handshakes.
    fn watch(&self, handshakes: &Handshakes) {
        for clients in [&self.clients, &self.admin].into_iter().flatten() {
            handshakes.spawn(clients.clone().watch());
        }
        if let Some(backends) = self.backends.clone() {
            handshakes.spawn(backends.watch());
        }
    }
}

/// Runs pgvalet until `shutdown` has come to its end: data threads beside, the admin API on this runtime.
///
/// # Errors
/// A thread or a listener that the system refused.
pub async fn run(config: Config, listeners: Listeners, shutdown: Shutdown) -> Result<(), RunError> {
    let config = Arc::new(config);
    let clock = Clock::start();
    let metrics = Arc::new(Metrics::default());
    let verifiers = Arc::new(Verifiers::new().map_err(RunError::Randomness)?);
    warm(&verifiers, &config)?;
    let transport = transport(&config, clock, listeners.certificates.clone())?;
    let admin_tls = listeners.certificates.admin.clone();
    let encryption = admin_tls.map(|tls| (tls, transport.handshakes.clone()));
    let (shards, receivers) = Shards::new(config.threads);
    let desk = Desk::new(
        config.clone(),
        clock,
        shards.clone(),
        metrics.clone(),
        keep_events(clock),
        shutdown.clone(),
    );
    let desk = join_fleet(desk, &transport)?;
    let averages = Arc::new(Averages::default());
    let console = Arc::new(Console::new(desk.clone(), averages.clone()));
    announce(&listeners);
    let mut ends = Vec::new();
    for (number, commands) in (0..).zip(receivers) {
        let parts = Parts {
            config: config.clone(),
            clock,
            listeners: share(&listeners.clients).map_err(RunError::Start)?,
            transport: transport.clone(),
            verifiers: verifiers.clone(),
            metrics: metrics.clone(),
            events: desk.events.clone(),
            commands,
            shards: shards.clone(),
            console: console.clone(),
            number,
            shutdown: shutdown.clone(),
            timers: Handle::current(),
        };
        ends.push(start(parts)?);
    }
    // The sockets live on in the data threads; the names of unix sockets are theirs to remove.
    drop(listeners.clients);
    let bound = (listeners.admin, listeners.metrics);
    let serving = serve_http(bound, desk, encryption, &averages);
    let working = all_ended(ends);
    // The data threads end when all is drained: only then does the admin API fall silent.
    let mut cut = shutdown.clone();
    tokio::select! {
        ended = working => ended,
        served = serving => match served {
            Ok(_) => { cut.reached(Phase::Ending).await; Ok(()) }
            Err(error) => Err(error),
        },
    }
}

/// Waits until every data thread has ended.
async fn all_ended(ends: Vec<oneshot::Receiver<io::Result<()>>>) -> Result<(), RunError> {
    for end in ends {
        end.await
            .unwrap_or_else(|_| Err(io::Error::other("it panicked")))
            .map_err(RunError::Shard)?;
    }
    Ok(())
}

/// Where events are told, and where they are followed.
fn keep_events(clock: Clock) -> (Events, Followers) {
    let (events, told) = events::channel();
    let (hub, followers) = Hub::new(clock, told);
    tokio::spawn(hub.run());
    (events, followers)
}

/// Takes the place in the fleet that the configuration wants.
fn join_fleet(mut desk: Desk, transport: &Transport) -> Result<Desk, RunError> {
    match desk.config.fleet {
        FleetMode::Off => {}
        FleetMode::On => {
            let (config, shutdown) = (desk.config.clone(), desk.shutdown.clone());
            let way = (transport.dialer.clone(), transport.tokens.clone());
            let joined = Fleet::join(config, way, desk.clock, shutdown);
            let (fleet, heard) = joined.map_err(RunError::Start)?;
            desk.fleet = Some(fleet.clone());
            tokio::spawn(admin::fleet::listen(desk.clone(), fleet, heard));
        }
    }
    Ok(desk)
}

/// Derives the keys of the configuration's users, beside everything else.
fn warm(verifiers: &Arc<Verifiers>, config: &Arc<Config>) -> Result<(), RunError> {
    let (verifiers, config) = (verifiers.clone(), config.clone());
    let work = move || verifiers.warm(&config);
    let started = thread::Builder::new()
        .name("pgvalet-keys".to_owned())
        .spawn(work);
    started.map(drop).map_err(RunError::Start)
}

/// Serves the API and the scrape endpoint, and keeps the averages that the console shows.
async fn serve_http(
    (api, scrape): (Bound, Bound),
    desk: admin::Desk,
    encryption: admin::Encryption,
    averages: &Averages,
) -> Result<(), RunError> {
    let (shards, shutdown) = (desk.shards.clone(), desk.shutdown.clone());
    let api = admin::serve(
        api,
        admin::admin(desk.clone()),
        encryption,
        shutdown.clone(),
    );
    let scrape = admin::serve(scrape, admin::scrape(desk), None, shutdown);
    let counting = async {
        averages.keep(&shards).await;
        Ok(())
    };
    let served = tokio::try_join!(api, scrape, counting);
    served.map(drop).map_err(RunError::Start)
}

/// What encrypts both legs, and knows the passwords, with a thread for handshakes and commands.
fn transport(
    config: &Arc<Config>,
    clock: Clock,
    certificates: Certificates,
) -> Result<Transport, RunError> {
    let handshakes = Handshakes::start().map_err(RunError::Start)?;
    certificates.watch(&handshakes);
    let Certificates {
        clients, backends, ..
    } = certificates;
    Ok(Transport {
        clients,
        dialer: Dialer::new(config.clone(), backends, handshakes.clone()),
        tokens: Tokens::start(config, clock, &handshakes),
        handshakes,
        changes: Changes::default(),
    })
}

fn announce(listeners: &Listeners) {
    for listener in &listeners.clients {
        tracing::info!(kind = %"clients", address = %listener, "listening");
    }
    tracing::info!(kind = %"admin", address = %listeners.admin, "listening");
    tracing::info!(kind = %"metrics", address = %listeners.metrics, "listening");
}

/// The same sockets, for one more thread.
fn share(listeners: &[Bound]) -> io::Result<Vec<Bound>> {
    listeners.iter().map(Bound::try_clone).collect()
}

fn start(parts: Parts) -> Result<oneshot::Receiver<io::Result<()>>, RunError> {
    let (ended, end) = oneshot::channel();
    let name = format!("pgvalet-data-{}", parts.number);
    let work = move || {
        // Nobody may be left to hear how it ended.
        let _ = ended.send(shard::run(parts));
    };
    thread::Builder::new()
        .name(name)
        .spawn(work)
        .map_err(RunError::Start)?;
    Ok(end)
}
