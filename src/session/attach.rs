//! Owns the taking of a lease: waiting in the queue, opening a backend, and bringing the session's state to it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::backend::pool::{Request, Wait, add};
use crate::backend::reset::reset;
use crate::backend::restore::{self, NotRestored, Wanted};
use crate::backend::{Baseline, Grant, Home, Lent, Parameters, Pool};
use crate::clock::timers;
use crate::config::ChaosReturn;
use crate::events::Happening;
use crate::lease::{Event, SessionId, Status};
use crate::session::client::words;
use crate::session::relay::{End, Flow};
use crate::session::returning::lost_by;
use crate::session::virtual_settings::{LONGEST_FRAME, Own};
use crate::session::{Phase, Refusal, Session, Shared, Trail};
use crate::wire::extended::write_frame;
use crate::wire::frame::{HEADER, Header};
use crate::wire::reply::{self, ClientError, Fault};
use crate::wire::sql::Words;

/// After this long in the queue, the client is told what it waits for.
const NOTICE_AFTER: Duration = Duration::from_secs(5);

/// How many prepared statements of others a backend may have before it is scrubbed.
const MAX_LEFT: usize = 1000;

/// How much a client may send ahead while it waits for a backend, in bytes.
const MAX_AHEAD: usize = 1 << 20;

/// How a wait for a backend ends without one.
enum NoBackend {
    Refused(Box<ClientError>),
    Ended(Box<End>),
}

/// Bytes that need a backend, and what the text of the first frame mentions, if it was looked at.
type Rest<'a> = (&'a [u8], Option<Words>);

impl Session {
    /// Takes a backend without waiting, when one is there that needs nothing done to it.
    pub(super) fn attach_at_once(&mut self) -> bool {
        if self.is_ruled() {
            return false;
        }
        let grant = self.try_acquire();
        match grant {
            Some(Grant::Lent(lent)) if self.rare.ear.is_none() && self.is_ready_made(&lent) => {
                self.hold(lent);
                true
            }
            Some(grant) => {
                self.rare.granted = Some(Box::new(grant));
                false
            }
            None => false,
        }
    }

    fn try_acquire(&mut self) -> Option<Grant> {
        let request = Request {
            session: self.id,
            baseline: &self.rare.baseline,
            state: &self.rare.saved,
            told: &self.rare.told,
            elsewhere: self.shared.config.chaos_return == ChaosReturn::Always,
            now: self.shared.ledger.now(),
        };
        self.pool.try_acquire(request)
    }

    fn is_ready_made(&self, lent: &Lent) -> bool {
        if !Rc::ptr_eq(&lent.backend.baseline, &self.rare.baseline) {
            return false;
        }
        let backend = &lent.backend;
        backend.home == Home::Of(self.id)
            || (backend.is_like_one_with(&self.rare.saved)
                && has_room(lent)
                && (Rc::ptr_eq(&backend.parameters, &self.rare.told)
                    || backend.parameters.are_alike(&self.rare.told)))
    }

    /// Takes a backend, however long it takes, and forwards what the client sent meanwhile.
    pub(super) async fn attach(&mut self) -> Result<(), End> {
        loop {
            self.take_lease().await?;
            if poll_fn(|cx| Poll::Ready(self.resume(cx))).await? == Flow::Moved {
                return Ok(());
            }
        }
    }

    async fn take_lease(&mut self) -> Result<(), End> {
        let began = self.shared.ledger.clock().precise();
        let admitted = self.admit();
        let taken = match &admitted {
            Ok(_) => match self.acquire().await {
                Ok(grant) => self.bring_all(grant).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(NoBackend::Refused(Box::new(error.clone()))),
        };
        let waited = self.shared.ledger.clock().precise().since(began);
        self.shared.metrics.acquired(waited);
        add(&self.pool.counters.waits, 1);
        add(&self.pool.counters.waited, waited.as_micros() as usize);
        match taken {
            Ok(lent) => self.hold(lent),
            Err(NoBackend::Ended(end)) => return Err(*end),
            Err(NoBackend::Refused(error)) => {
                self.shared.metrics.fault(error.fault, &error.code);
                tracing::info!(session = %self.id, sqlstate = %error.code, "no backend: {}", error.message);
                self.rare.refusing = Some(Box::new(Refusal {
                    error: *error,
                    told: false,
                }));
            }
        }
        Ok(())
    }

    /// The session holds this backend from here on.
    pub(super) fn hold(&mut self, lent: Lent) {
        let backend = &lent.backend;
        let same = backend.home == Home::Of(self.id);
        let spent = backend.spent;
        self.shared.metrics.restored(same);
        if !same {
            self.rare.guest = *backend.application != *self.rare.application;
            self.statements.unnamed.moved();
            self.pool.leave(self.id);
            self.rare.at_home = self.statements.is_empty() && backend.prepared.is_empty();
        }
        self.step(Event::Granted(backend.id));
        self.shared
            .ledger
            .aim(self.slot, self.id, backend.cancel_target());
        self.phase = Phase::Active;
        self.rare.trail = Trail {
            edition: self.pool.surveyed.edition(),
            ..Trail::default()
        };
        self.lent = Some(lent);
        let backend = &mut self.lent.as_mut().expect("it was just put there").backend;
        backend.home = Home::Of(self.id);
        backend.spent &= same;
        self.agree_on_reports();
        if !same && spent {
            // What sequences remember of another session must not be taken for this one's.
            let mut forget = Vec::new();
            write_frame(&mut forget, b'Q', b"DISCARD SEQUENCES\0");
            self.to_backend.push(&forget);
            self.tracker.sent_own(None);
        }
        self.settle_in();
    }

    async fn acquire(&mut self) -> Result<Grant, NoBackend> {
        if let Some(grant) = self
            .rare
            .granted
            .take()
            .map(|grant| *grant)
            .or_else(|| self.try_acquire())
        {
            return Ok(grant);
        }
        let mut wait = wait_in_line(&self.shared, &self.pool, self.id);
        let limit = self.shared.config.acquire_timeout;
        if limit.is_zero() || limit > NOTICE_AFTER {
            if let Some(grant) = self.wait_for(&mut wait, NOTICE_AFTER).await? {
                return Ok(grant);
            }
            let text = format!("waiting for one of {} backends", self.pool.census().max);
            self.to_client.push(&reply::notice(
                &text,
                "`pgvalet leases` on pgvalet's host shows who holds them.",
            ));
        }
        let rest = if limit.is_zero() {
            Duration::MAX
        } else {
            limit.saturating_sub(NOTICE_AFTER)
        };
        let rest = if limit <= NOTICE_AFTER && !limit.is_zero() {
            limit
        } else {
            rest
        };
        match self.wait_for(&mut wait, rest).await? {
            Some(grant) => Ok(grant),
            None => Err(NoBackend::Refused(Box::new(exhausted(
                &self.shared,
                &self.pool,
                Some(self.id),
            )))),
        }
    }

    /// Waits in the queue, for at most `limit`; the client may send ahead meanwhile, or leave.
    async fn wait_for(
        &mut self,
        wait: &mut Wait,
        limit: Duration,
    ) -> Result<Option<Grant>, NoBackend> {
        let mut timer = pin!(timers::sleep(limit));
        poll_fn(|cx| {
            if let Poll::Ready(grant) = Pin::new(&mut *wait).poll(cx) {
                return Poll::Ready(Ok(Some(grant)));
            }
            if let Err(end) = self.poll_ahead(cx) {
                return Poll::Ready(Err(NoBackend::Ended(Box::new(end))));
            }
            timer.as_mut().poll(cx).map(|()| Ok(None))
        })
        .await
    }

    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        self.note_stuck();
        self.poll_spilled(cx)?;
        self.overhear(cx)?;
        let mut scratch = self.shared.scratch.take();
        let ahead = self.read_ahead(cx, &mut scratch);
        self.shared.scratch.put(scratch);
        ahead
    }

    fn read_ahead(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Result<(), End> {
        while self.inbound.carry.len() < MAX_AHEAD {
            match self.client.poll_recv(cx, scratch) {
                Poll::Pending => break,
                Poll::Ready(Err(_)) => return Err(End::ClientBroken),
                Poll::Ready(Ok(0)) => return Err(End::Client),
                Poll::Ready(Ok(count)) => self.inbound.keep(&scratch[..count]),
            }
        }
        Ok(())
    }

    /// Makes a backend of a grant that carries the session's state, and listens on its channels.
    async fn bring_all(&mut self, grant: Grant) -> Result<Lent, NoBackend> {
        let mut lent = self.bring(grant).await?;
        let took = self.take_channels(&mut lent).await;
        took.map_err(|end| NoBackend::Ended(Box::new(end)))?;
        Ok(lent)
    }

    /// Makes a backend of a grant that carries the session's state.
    async fn bring(&mut self, grant: Grant) -> Result<Lent, NoBackend> {
        let mut lent = match grant {
            Grant::Lent(lent) if self.is_ready_made(&lent) => return Ok(lent),
            Grant::Lent(Lent { backend, permit })
                if !Rc::ptr_eq(&backend.baseline, &self.rare.baseline) =>
            {
                drop(backend);
                self.open(permit).await?
            }
            Grant::Lent(lent) if lent.backend.is_blank() && has_room(&lent) => lent,
            Grant::Lent(Lent { backend, permit }) => match reset(backend, Status::Idle).await {
                Some(backend) => Lent { backend, permit },
                None => self.open(permit).await?,
            },
            Grant::Open(permit) => self.open(permit).await?,
        };
        if self.is_ready_made(&lent) {
            return Ok(lent);
        }
        let Err(error) = self.restore(&mut lent).await else {
            return Ok(lent);
        };
        tracing::info!(session = %self.id, "another backend is tried: {error}");
        // A library that an earlier session had loaded there may refuse what it had not seen when it was set; what PostgreSQL
        // takes at a login, it takes there.
        let Lent { backend, permit } = lent;
        drop(backend);
        let mut lent = self.open(permit).await?;
        match self.restore(&mut lent).await {
            Ok(()) => Ok(lent),
            Err(error) => Err(self.unrestored(&error)),
        }
    }

    async fn open(&self, permit: crate::backend::Permit) -> Result<Lent, NoBackend> {
        let application = &*self.rare.application;
        let generation = self.shared.ledger.book().generation();
        let opened = self
            .shared
            .pools
            .open(
                &self.pool,
                permit,
                &self.rare.baseline,
                application,
                generation,
            )
            .await;
        opened.map_err(|error| NoBackend::Refused(Box::new(error)))
    }

    async fn restore(&mut self, lent: &mut Lent) -> Result<(), NotRestored> {
        let state = self.rare.saved.clone();
        if state.is_empty() {
            return Ok(());
        }
        let custom = self.custom();
        let wanted = Wanted {
            state: &state,
            custom: &custom,
            login: &self.pool.user,
        };
        let lost = restore::restore(&mut lent.backend, &wanted).await?;
        lent.backend.carries = state;
        // Only this session knows what is missing there.
        lent.backend.opaque |= !lost.is_empty();
        self.statements.lost(lost);
        Ok(())
    }

    /// Even a backend that was opened for it can't have the session's state.
    fn unrestored(&self, error: &NotRestored) -> NoBackend {
        match error {
            NotRestored::Lost(error) => {
                tracing::warn!(session = %self.id, "a backend was lost while a session was restored on it: {error}");
                NoBackend::Refused(lost_by(error))
            }
            NotRestored::Refused(_) | NotRestored::Different(_) => {
                tracing::warn!(session = %self.id, "{error}");
                let told = ClientError::new(
                    Fault::Proxy,
                    "57P01",
                    "pgvalet could not restore this session's state",
                )
                .detail(error.to_string())
                .hint("Reconnect; the session is closed rather than continued on a guess.");
                NoBackend::Ended(Box::new(End::Told(
                    Box::new(told),
                    crate::ledger::Cause::Lost,
                )))
            }
        }
    }

    /// Handles bytes while there is no backend: goodbyes, stray COPY data, and what follows a refused request.
    /// Gives the rest, when it needs a backend, and what the text of its first frame mentions, if it was looked at.
    pub(super) fn without_backend<'a>(
        &mut self,
        mut bytes: &'a [u8],
    ) -> Result<Option<Rest<'a>>, End> {
        loop {
            let count = self.inbound.pass(bytes.len());
            bytes = &bytes[count..];
            if bytes.is_empty() {
                return Ok(None);
            }
            let header = Header::read(bytes)
                .map_err(|error| End::Broken(super::client::violation(error)))?;
            let Some(header) = header else {
                self.inbound.keep(bytes);
                return Ok(None);
            };
            let mut known = None;
            if self.rare.refusing.is_none() && header.body <= LONGEST_FRAME {
                let Some(body) = bytes.get(HEADER..header.total()) else {
                    self.inbound.keep(bytes);
                    return Ok(None);
                };
                let words = words(header.kind, body);
                known = Some(words);
                if let Own::Done = self.own(header, body, words) {
                    bytes = &bytes[header.total()..];
                    continue;
                }
            }
            match header.kind {
                b'X' => return Err(End::Client),
                b'd' | b'c' | b'f' => {}
                kind => {
                    if !self.refuse(kind) {
                        return Ok(Some((bytes, known)));
                    }
                }
            }
            self.inbound.expect(header.total(), true);
            debug_assert!(header.total() >= HEADER);
        }
    }

    /// Answers a request that gets no backend: an ERROR, and ReadyForQuery where the request ends. The session goes on.
    /// `false` when no request is being refused.
    fn refuse(&mut self, kind: u8) -> bool {
        let Some(refusal) = &mut self.rare.refusing else {
            return false;
        };
        if !refusal.told {
            refusal.told = true;
            self.to_client.push(&refusal.error.error());
        }
        if matches!(kind, b'Q' | b'F' | b'S') {
            self.to_client.push(&reply::ready(Status::Idle));
            self.rare.refusing = None;
        }
        true
    }
}

/// Whether it hasn't got too many prepared statements of others.
fn has_room(lent: &Lent) -> bool {
    lent.backend.prepared.len() <= MAX_LEFT
}

fn exhausted(shared: &Shared, pool: &Pool, session: Option<SessionId>) -> ClientError {
    let (max, limit) = (pool.census().max, shared.config.acquire_timeout);
    if pool.is_paused() {
        let text = format!("database \"{}\" is paused", pool.database);
        return ClientError::new(Fault::Proxy, "53300", text)
            .hint("RESUME on pgvalet's console lets its sessions go on.");
    }
    shared.events.tell(Happening::Exhausted {
        database: pool.database.to_string(),
        user: pool.user.to_string(),
        backends: max,
        session: session.map(SessionId::get),
    });
    let text = format!(
        "no backend was free within {}",
        humantime::format_duration(limit)
    );
    ClientError::new(Fault::Proxy, "53300", text)
        .detail(format!(
            "All {max} backends of database \"{}\" and user \"{}\" are held by other sessions.",
            pool.database, pool.user
        ))
        .hint("`pgvalet leases` shows who holds them; `max_backends` and `acquire_timeout` set the bounds.")
}

/// The reports that PostgreSQL makes at a login with these startup parameters, found out by logging in.
///
/// # Errors
/// What the client shall see: PostgreSQL's own error where there is one.
pub(super) async fn first_login(
    shared: &Rc<Shared>,
    pool: &Rc<Pool>,
    baseline: &Rc<Baseline>,
    application: &str,
) -> Result<Rc<Parameters>, ClientError> {
    let now = shared.ledger.now();
    let (state, told) = (Rc::default(), Rc::default());
    let request = Request {
        session: SessionId::new(0),
        baseline,
        state: &state,
        told: &told,
        elsewhere: false,
        now,
    };
    let grant = match pool.try_acquire(request) {
        Some(grant) => grant,
        None => {
            let limit = shared.config.acquire_timeout;
            let limit = if limit.is_zero() {
                Duration::MAX
            } else {
                limit
            };
            let wait = wait_in_line(shared, pool, request.session);
            let granted = timers::timeout(limit, wait).await;
            granted.map_err(|_| exhausted(shared, pool, None))?
        }
    };
    let lent = match grant {
        Grant::Lent(lent) if Rc::ptr_eq(&lent.backend.baseline, baseline) => lent,
        Grant::Lent(Lent { permit, .. }) | Grant::Open(permit) => {
            let generation = shared.ledger.book().generation();
            shared
                .pools
                .open(pool, permit, baseline, application, generation)
                .await?
        }
    };
    let parameters = pool
        .reports(baseline)
        .unwrap_or_else(|| lent.backend.parameters.clone());
    pool.give_back(lent, shared.ledger.now());
    Ok(parameters)
}

/// Waits in the queue; those who keep a backend only because nobody did so far are asked to return it.
fn wait_in_line(shared: &Shared, pool: &Rc<Pool>, session: SessionId) -> Wait {
    let wait = pool.wait(session, shared.ledger.now());
    shared.nudge_deferred(pool);
    wait
}
