//! Owns the wiring: from a configuration and bound listeners to a running pgvalet.

use std::io;
use std::sync::Arc;
use std::thread;

use tokio::sync::oneshot;

use crate::admin;
use crate::backend::Dialer;
use crate::clock::Clock;
use crate::config::{Address, Config};
use crate::drain::{Phase, Shutdown};
use crate::metrics::Metrics;
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
        let named = |key, address: &Address, bound: io::Result<Bound>| {
            let address = address.clone();
            bound.map_err(|source| RunError::Bind {
                key,
                address,
                source,
            })
        };
        let one = |key, address: &Address| named(key, address, bind(address));
        let client = |address: &Address| named("listen", address, bind_for_clients(address));
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
            backends: BackendTls::load(&config.upstream).map_err(failed("upstream"))?,
        })
    }

    /// Reads them again where they have changed. Sessions and backends keep what they have.
    pub fn refresh(&self) {
        if let Some(clients) = &self.clients {
            clients.refresh();
        }
        if let Some(backends) = &self.backends {
            backends.refresh();
        }
    }

    /// Looks at them from time to time, on the thread for handshakes.
    fn watch(&self, handshakes: &Handshakes) {
        if let Some(clients) = self.clients.clone() {
            handshakes.spawn(clients.watch());
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
    let transport = transport(&config, listeners.certificates.clone())?;
    let (shards, receivers) = Shards::new(config.threads);
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
            commands,
            shards: shards.clone(),
            number,
            shutdown: shutdown.clone(),
        };
        ends.push(start(parts)?);
    }
    // The sockets live on in the data threads; the names of unix sockets are theirs to remove.
    drop(listeners.clients);
    let desk = admin::Desk::new(config, clock, shards, metrics, shutdown.clone());
    let serving = async {
        let api = admin::serve(
            listeners.admin,
            admin::admin(desk.clone()),
            shutdown.clone(),
        );
        let scrape = admin::serve(listeners.metrics, admin::scrape(desk), shutdown.clone());
        tokio::try_join!(api, scrape).map_err(RunError::Start)
    };
    let working = async {
        for end in ends {
            end.await
                .unwrap_or_else(|_| Err(io::Error::other("it panicked")))
                .map_err(RunError::Shard)?;
        }
        Ok(())
    };
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

/// Derives the keys of the configuration's users, beside everything else.
fn warm(verifiers: &Arc<Verifiers>, config: &Arc<Config>) -> Result<(), RunError> {
    let (verifiers, config) = (verifiers.clone(), config.clone());
    let work = move || verifiers.warm(&config);
    let started = thread::Builder::new()
        .name("pgvalet-keys".to_owned())
        .spawn(work);
    started.map(drop).map_err(RunError::Start)
}

/// What encrypts both legs, with a thread for its handshakes.
fn transport(config: &Arc<Config>, certificates: Certificates) -> Result<Transport, RunError> {
    let handshakes = Handshakes::start().map_err(RunError::Start)?;
    certificates.watch(&handshakes);
    let Certificates { clients, backends } = certificates;
    Ok(Transport {
        clients,
        dialer: Dialer::new(config.clone(), backends, handshakes.clone()),
        handshakes,
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
