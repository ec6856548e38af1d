//! Owns the demo's small app: sessions that work as an app's threads do, through pgvalet.
//!
//! It speaks through tokio-postgres. pgwire's client would add three crates less, but takes any nonce from the server, and
//! leaves prepared statements and rows to us; what an app really uses makes the better witness.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error, NoTls};

use super::DemoError;
use crate::clock::timers;

/// How often web-1 serves a request.
const REQUEST_INTERVAL: Duration = Duration::from_millis(50);

/// One client session. Dropping it disconnects.
pub(super) struct Session {
    pub(super) client: Client,
    /// What pgvalet calls it; None proves that there is no pgvalet in between.
    pub(super) id: Option<String>,
    driver: Driver,
}

/// A task that ends with its handle.
pub(super) struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    /// Connects as `name`.
    pub(super) async fn connect(listen: SocketAddr, name: &str) -> Result<Self, Error> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(listen.ip().to_string())
            .port(listen.port())
            .user("postgres")
            .dbname("postgres")
            .application_name(name);
        let (client, connection) = config.connect(NoTls).await?;
        let id = connection.parameter("pgvalet.session").map(str::to_owned);
        let driver = Driver(tokio::spawn(async move {
            // A failure shows at the client's next call.
            let _ = connection.await;
        }));
        Ok(Self { client, id, driver })
    }

    /// The value of a one-column query's first row.
    pub(super) async fn value(&self, query: &str) -> Result<String, Error> {
        let rows = self.client.simple_query(query).await?;
        let first = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        Ok(first.unwrap_or_default())
    }

    /// Says goodbye, and waits until the socket is closed.
    pub(super) async fn close(self) {
        let Self {
            client, mut driver, ..
        } = self;
        drop(client);
        // Only a panic or an abort could fail here, and neither leaves a socket open.
        let _ = (&mut driver.0).await;
    }
}

/// A worker that serves a request now and then, until it is dropped.
pub(super) struct Worker {
    _task: Driver,
    pub(super) id: Option<String>,
}

impl Worker {
    pub(super) async fn start(listen: SocketAddr, name: &str) -> Result<Self, Error> {
        let session = Session::connect(listen, name).await?;
        let id = session.id.clone();
        session.value("SELECT count(*) FROM jobs").await?;
        let task = tokio::spawn(async move {
            while session.value("SELECT count(*) FROM jobs").await.is_ok() {
                timers::sleep(REQUEST_INTERVAL).await;
            }
        });
        Ok(Self {
            _task: Driver(task),
            id,
        })
    }
}

/// What the dispatcher finds when it wakes.
#[derive(Debug)]
pub(super) struct Woken {
    /// The row that its old prepared statement inserted.
    pub(super) job: i64,
    /// Its `statement_timeout`, set before it parked.
    pub(super) statement_timeout: String,
    /// PostgreSQL's process behind it now.
    pub(super) backend: String,
}

/// A background owner: it inserts a job, then waits for its queue, connection in hand.
pub(super) struct Dispatcher {
    queue: mpsc::Sender<oneshot::Sender<Result<Woken, Error>>>,
    _task: Driver,
    pub(super) id: Option<String>,
    /// PostgreSQL's process behind it before it parked.
    pub(super) backend: String,
}

/// What it prepares once, and executes before and after its sleep.
const INSERT: &str = "INSERT INTO jobs (name) VALUES ($1) RETURNING id";

impl Dispatcher {
    pub(super) async fn start(listen: SocketAddr) -> Result<Self, Error> {
        let session = Session::connect(listen, "dispatcher").await?;
        let id = session.id.clone();
        session
            .client
            .batch_execute("SET statement_timeout = '7s'")
            .await?;
        let backend = session.value("SELECT pg_backend_pid()").await?;
        let insert = session.client.prepare(INSERT).await?;
        session
            .client
            .query_one(&insert, &[&"send the newsletter"])
            .await?;
        let (queue, mut jobs) = mpsc::channel::<oneshot::Sender<Result<Woken, Error>>>(1);
        let task = tokio::spawn(async move {
            // Here it parks, for as long as nobody has a job for it.
            while let Some(reply) = jobs.recv().await {
                let woken = wake(&session, &insert).await;
                // The story may have ended.
                let _ = reply.send(woken);
            }
        });
        Ok(Self {
            queue,
            _task: Driver(task),
            id,
            backend,
        })
    }

    /// Gives it a job, and waits until it is done.
    pub(super) async fn wake(&self) -> Result<Woken, DemoError> {
        let (reply, woken) = oneshot::channel();
        let gone = DemoError::Waited("the dispatcher");
        if self.queue.send(reply).await.is_err() {
            return Err(gone);
        }
        Ok(woken.await.map_err(|_| gone)??)
    }
}

async fn wake(session: &Session, insert: &tokio_postgres::Statement) -> Result<Woken, Error> {
    let row = session
        .client
        .query_one(insert, &[&"clean the attic"])
        .await?;
    Ok(Woken {
        job: row.get(0),
        statement_timeout: session.value("SHOW statement_timeout").await?,
        backend: session.value("SELECT pg_backend_pid()").await?,
    })
}
