//! Owns the demo's story, chapter by chapter.

use std::time::Duration;

use tokio::task::JoinHandle;

use super::DemoError;
use super::app::{Dispatcher, Session, Worker};
use super::narrator::Narrator;
use super::postgres::{Fetch, Stop, ThrowawayPostgres, Wanted};
use super::proxy::Proxy;
use crate::cli::Leaks;
use crate::clock::{Clock, timers};
use crate::executor;
use crate::lease::Moment;

/// How long the story waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(50);

/// All that runs. Dropped in this order: the app, pgvalet, PostgreSQL.
pub(super) struct Story<'a> {
    narrator: &'a Narrator,
    stopwatch: Stopwatch,
    app: Option<App>,
    proxy: Proxy,
    postgres: ThrowawayPostgres,
}

/// The app's long-lived sessions.
struct App {
    _web_1: Worker,
    dispatcher: Dispatcher,
}

/// A request that waits for a backend.
type Waiting = JoinHandle<Result<Answered, tokio_postgres::Error>>;

/// When such a request had its answer, and from which of PostgreSQL's processes.
struct Answered {
    at: Moment,
    backend: String,
}

/// Time since a beginning.
#[derive(Clone, Copy)]
struct Stopwatch {
    clock: Clock,
    begun: Moment,
}

impl<'a> Story<'a> {
    /// Chapters 1 and 2: PostgreSQL, and pgvalet in front of it.
    pub(super) async fn begin(narrator: &'a Narrator) -> Result<Self, DemoError> {
        let stopwatch = Stopwatch::start();
        narrator.line("pgvalet demo: an owner parks with its connection, the app reloads, and nobody waits for it.")?;
        narrator.chapter("A throwaway PostgreSQL")?;
        let wanted = Wanted {
            max_connections: 20,
            fetch: Fetch::IfMissing,
            ..Wanted::default()
        };
        // Blocks for a second or two. A signal meanwhile waits for it: what starts must be stopped.
        let started = executor::aside(move || ThrowawayPostgres::start(wanted)).await;
        let postgres = started.map_err(std::io::Error::other)??;
        let user = postgres
            .other_user()
            .map(|uid| format!(", run by user {uid}, as it refuses root"));
        narrator.say(&format!(
            "PostgreSQL {} on 127.0.0.1:{}, ready after {}{}.\nIts data are in {}, and gone when this ends.",
            postgres.version(),
            postgres.port(),
            stopwatch.shown(),
            user.unwrap_or_default(),
            postgres.socket_dir().display(),
        ))?;
        narrator.chapter("pgvalet in front of it, with room for 3 backends")?;
        let proxy = Proxy::start(&postgres).await?;
        narrator.line(&format!("    $ {}", proxy.command_line))?;
        Ok(Self {
            narrator,
            stopwatch,
            app: None,
            proxy,
            postgres,
        })
    }

    /// The rest, up to the end of the story; all still runs afterwards.
    pub(super) async fn tell(&mut self) -> Result<(), DemoError> {
        let (app, web_2) = self.the_app_connects().await?;
        self.the_dispatcher_parks(&app.dispatcher, &web_2).await?;
        let waiting = self.a_request_waits().await?;
        let answered = self.the_app_reloads(web_2, waiting).await?;
        self.the_dispatcher_wakes(&app.dispatcher, &answered)
            .await?;
        self.app = Some(app);
        self.narrator.line(&format!(
            "\nThat was the story, in {}.",
            self.stopwatch.shown()
        ))?;
        Ok(())
    }

    async fn the_app_connects(&self) -> Result<(App, Session), DemoError> {
        let listen = self.proxy.addresses.listen;
        self.narrator.chapter("A small app connects")?;
        let setup = Session::connect(listen, "setup").await?;
        setup
            .client
            .batch_execute("CREATE TABLE jobs (id bigserial PRIMARY KEY, name text NOT NULL)")
            .await?;
        setup.close().await;
        let dispatcher = Dispatcher::start(listen).await?;
        let web_1 = Worker::start(listen, "web-1").await?;
        let web_2 = Session::connect(listen, "web-2").await?;
        web_2
            .client
            .batch_execute("BEGIN; INSERT INTO jobs (name) VALUES ('bill the customer')")
            .await?;
        let id = |id: &Option<String>| {
            id.clone()
                .unwrap_or_else(|| "none: no pgvalet in between".to_owned())
        };
        self.narrator.say(&format!(
            "web-1       (session {}) serves a request now and then\n\
             web-2       (session {}) is in the middle of a transaction\n\
             dispatcher  (session {}) has inserted a job, and sleeps on its queue, connection in hand",
            id(&web_1.id),
            id(&web_2.id),
            id(&dispatcher.id),
        ))?;
        self.narrator
            .say("Each sees its session's id as the parameter pgvalet.session.")?;
        let app = App {
            _web_1: web_1,
            dispatcher,
        };
        Ok((app, web_2))
    }

    async fn the_dispatcher_parks(
        &self,
        dispatcher: &Dispatcher,
        web_2: &Session,
    ) -> Result<(), DemoError> {
        let parked = async {
            while !self.is_parked(dispatcher).await? {
                timers::sleep(INTERVAL).await;
            }
            Ok::<_, DemoError>(())
        };
        timers::timeout(PATIENCE, parked)
            .await
            .map_err(|_| DemoError::Waited("the dispatcher's lease to count as parked"))??;
        // A transaction that idles is parked, too: web-2's goes on.
        let more = "UPDATE jobs SET name = 'bill the client' WHERE name = 'bill the customer'";
        web_2.client.batch_execute(more).await?;
        self.narrator
            .chapter("Who holds a backend, and who has parked?")?;
        self.command(&["leases"]).await?;
        self.narrator.line("")?;
        self.command(&["leaks"]).await
    }

    async fn is_parked(&self, dispatcher: &Dispatcher) -> Result<bool, DemoError> {
        let admin = self.proxy.admin();
        let body = admin.get("/v1/leaks").await?;
        let leaks: Leaks =
            serde_json::from_slice(&body).map_err(|error| admin.not_pgvalet(error.to_string()))?;
        Ok(leaks
            .leaks
            .iter()
            .any(|leak| Some(leak.lease.session.to_string()) == dispatcher.id))
    }

    /// Starts a request that finds all three backends taken, and waits until it waits.
    async fn a_request_waits(&self) -> Result<Waiting, DemoError> {
        let (listen, clock) = (self.proxy.addresses.listen, self.stopwatch.clock);
        let session = Session::connect(listen, "web-3").await?;
        let waiting = tokio::spawn(async move {
            let backend = session.value("SELECT pg_backend_pid()").await?;
            let at = clock.precise();
            session.close().await;
            Ok(Answered { at, backend })
        });
        let queued = async {
            while sum_of(&self.proxy.metrics().await?, "pgvalet_waiting_sessions") < 1.0 {
                timers::sleep(INTERVAL).await;
            }
            Ok::<_, DemoError>(())
        };
        timers::timeout(PATIENCE, queued)
            .await
            .map_err(|_| DemoError::Waited("web-3 to queue for a backend"))??;
        Ok(waiting)
    }

    async fn the_app_reloads(
        &self,
        web_2: Session,
        waiting: Waiting,
    ) -> Result<Answered, DemoError> {
        self.narrator
            .chapter("Somebody saves a file: the app reloads")?;
        self.narrator.say("web-3 has come with a request: all backends are taken, one of them by an owner that sleeps.")?;
        self.metric_lines("pgvalet_parked_").await?;
        let asked = self.stopwatch.clock.precise();
        self.command(&["reload", "--min-idle", "500ms"]).await?;
        let answered = timers::timeout(PATIENCE, waiting)
            .await
            .map_err(|_| DemoError::Waited("web-3's answer"))?;
        let answered = answered.map_err(std::io::Error::other)??;
        self.narrator.say(&format!(
            "web-3 had its answer {} after the command was typed, from the dispatcher's backend.\n\
             (Rails' own reloader waits here for twice checkout_timeout, 10 s, then takes connections by force.)",
            shown(answered.at, asked),
        ))?;
        web_2.client.batch_execute("COMMIT").await?;
        web_2.close().await;
        self.narrator
            .say("web-2's transaction wasn't touched: it commits now, and web-2 disconnects.")?;
        Ok(answered)
    }

    async fn the_dispatcher_wakes(
        &self,
        dispatcher: &Dispatcher,
        web_3: &Answered,
    ) -> Result<(), DemoError> {
        self.narrator
            .chapter("The dispatcher wakes, and notices nothing")?;
        let woken = timers::timeout(PATIENCE, dispatcher.wake()).await;
        let woken = woken.map_err(|_| DemoError::Waited("the dispatcher"))??;
        let backend = match &woken.backend {
            backend if *backend == web_3.backend => {
                format!("{backend}, which has served web-3 in the meantime")
            }
            backend if *backend == dispatcher.backend => format!("{backend}, as before"),
            backend => format!("{backend}, before it was {}", dispatcher.backend),
        };
        self.narrator.say(&format!(
            "The same connection, the same session {}. Its backend is {backend}.\n\
             Its prepared INSERT works (job {}), its statement_timeout is still {}.",
            dispatcher.id.as_deref().unwrap_or("-"),
            woken.job,
            woken.statement_timeout,
        ))?;
        self.narrator.chapter("What the metrics say of it")?;
        self.metric_lines("pgvalet_parked_").await?;
        self.metric_lines("pgvalet_returns_total").await?;
        self.metric_lines("pgvalet_restores_total").await
    }

    /// Leaves all running until the future is dropped, and says how to connect.
    pub(super) async fn keep(&self) -> Result<(), DemoError> {
        let (at, admin) = (
            self.proxy.addresses,
            format!("http://{}", self.proxy.addresses.admin),
        );
        self.narrator.line(&format!(
            "\nAll of it keeps running until Ctrl-C: PostgreSQL, pgvalet, web-1 at work, the dispatcher parked again.\n\n  \
             psql postgres://postgres@{}/postgres\n  \
             pgvalet leases --admin {}        (also: owners, leaks, reload, return)\n  \
             curl {admin}/v1/leases\n  \
             curl {admin}/v1/leaks\n  \
             curl -X POST {admin}/v1/reloads -H 'content-type: application/json' -d '{{\"min_idle\": \"500ms\"}}'\n  \
             curl http://{}/metrics\n\n\
             PostgreSQL itself: psql {}",
            at.listen, at.admin, at.metrics, self.postgres.url(),
        ))?;
        std::future::pending().await
    }

    /// Ends the app, pgvalet and PostgreSQL, in this order.
    pub(super) async fn end(self) -> Result<(), DemoError> {
        let Self {
            app,
            proxy,
            mut postgres,
            ..
        } = self;
        drop(app);
        proxy.stop().await?;
        postgres.stop(Stop::Fast)?;
        drop(postgres);
        Ok(())
    }

    /// Runs a client command against the demo's pgvalet; the usual admin address needn't be said.
    async fn command(&self, arguments: &[&str]) -> Result<(), DemoError> {
        let admin = self.proxy.addresses.admin.to_string();
        let mut arguments = arguments.to_vec();
        if self.proxy.addresses.admin.port() != 6433 {
            arguments.extend(["--admin", &admin]);
        }
        self.narrator.run(&arguments).await
    }

    async fn metric_lines(&self, prefix: &str) -> Result<(), DemoError> {
        let text = self.proxy.metrics().await?;
        let lines: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with(prefix) && !line.ends_with(" 0"))
            .collect();
        let lines = if lines.is_empty() {
            format!("{prefix}*: all 0 now")
        } else {
            lines.join("\n")
        };
        Ok(self.narrator.say(&lines)?)
    }
}

impl Stopwatch {
    fn start() -> Self {
        let clock = Clock::start();
        Self {
            clock,
            begun: clock.precise(),
        }
    }

    /// The time since the beginning, for people.
    fn shown(&self) -> String {
        shown(self.clock.precise(), self.begun)
    }
}

/// From `earlier` to `later`, as people say it: `1.2 s`, `8 ms`.
fn shown(later: Moment, earlier: Moment) -> String {
    let elapsed = later.since(earlier);
    if elapsed < Duration::from_secs(1) {
        format!("{} ms", elapsed.as_millis())
    } else {
        format!("{:.1} s", elapsed.as_secs_f64())
    }
}

/// The sum of a metric over its labels.
fn sum_of(metrics: &str, name: &str) -> f64 {
    let lines = metrics.lines().filter(|line| line.starts_with(name));
    lines
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}
