//! Owns the end of a lease: by detach, which keeps the session, by close, which ends it, and by the session's own end.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::backend::capture::{self, Found, Reach};
use crate::backend::reset::reset;
use crate::backend::{Home, Lent, Lost, Pace, cancel};
use crate::clock::timers;
use crate::config::{ChaosReturn, Mode};
use crate::events::Happening;
use crate::lease::reload::{Method, Outcome, Pinned};
use crate::lease::{Event, Moment, Pin, Pins};
use crate::ledger::{Cause, Order};
use crate::session::listening::Channels;
use crate::session::relay::End;
use crate::session::{Defined, Session, Trail};
use crate::view::LeaseView;
use crate::wire::reply::{ClientError, Fault};
use crate::wire::sql::{self, Class};

/// How long the last words to a client may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What a client hears whose backend is gone without a word of PostgreSQL's.
pub(super) fn lost() -> Box<ClientError> {
    let text = "the connection to PostgreSQL was lost";
    let error = ClientError::new(Fault::Backend, "08006", text);
    Box::new(error.hint("The database may have restarted; reconnect, and try again."))
}

/// The same, where it is known how it was lost.
pub(super) fn lost_by(error: &Lost) -> Box<ClientError> {
    match error {
        Lost::Late(patience) => {
            let patience = humantime::format_duration(*patience);
            let text = format!("PostgreSQL did not answer pgvalet within {patience}");
            let error = ClientError::new(Fault::Backend, "08006", text);
            Box::new(
                error.hint("The database may be overloaded or stopped; reconnect, and try again."),
            )
        }
        Lost::Io(_) | Lost::Closed | Lost::Ended(_) | Lost::Protocol => lost(),
    }
}

/// The last words to a client whose backend was lost so: PostgreSQL's own, if it had any.
pub(super) fn last_words(error: Lost) -> Box<ClientError> {
    match error {
        Lost::Ended(words) if !words.code.is_empty() => words,
        Lost::Io(_) | Lost::Closed | Lost::Ended(_) | Lost::Late(_) | Lost::Protocol => {
            lost_by(&error)
        }
    }
}

/// What a client hears whose lease is returned by close.
fn closed(cause: Cause) -> Box<ClientError> {
    let why = match cause {
        Cause::Drained => "pgvalet is shutting down",
        Cause::Parked => "the session was parked for longer than return_after",
        Cause::Reload => "a reload returned this session's lease",
        Cause::Voluntary | Cause::Forced | Cause::Lost => {
            "an administrator returned this session's lease"
        }
    };
    let text = format!("terminating connection: {why}");
    Box::new(ClientError::new(Fault::Proxy, "57P01", text))
}

/// What is left to say to a session that nobody holds any more.
fn orphaned() -> ClientError {
    let text = "terminating connection: the process that opened this session is gone";
    ClientError::new(Fault::Proxy, "57P01", text)
}

/// What a session at a quiet point would leave behind in its backend.
enum Examined {
    /// Nothing that isn't known.
    Nothing,
    /// This, and it can be taken along.
    State(Box<Found>),
    /// What can't.
    Pinned(Pins),
}

impl Session {
    /// The session as people see it.
    fn view(&self) -> Box<LeaseView> {
        let policies = self.shared.config.policies();
        Box::new(LeaseView::of(&self.shared.ledger, self.slot, &policies))
    }

    /// Tells of a return that isn't the session's own doing: those come with every transaction, and aren't told.
    fn tell_returned(&self, cause: Cause, method: &'static str) {
        match cause {
            Cause::Voluntary => {}
            Cause::Parked | Cause::Forced | Cause::Reload | Cause::Lost | Cause::Drained => {
                self.shared.events.tell(Happening::Returned {
                    cause: cause.word(),
                    method,
                    lease: self.view(),
                });
            }
        }
    }

    fn tell_lost(&self) {
        self.shared.events.tell(Happening::BackendLost {
            database: self.pool.database.to_string(),
            user: self.pool.user.to_string(),
            backend: self.shared.ledger.backend_pid(self.slot),
            session: Some(self.id.get()),
        });
    }

    /// Obeys an order, at a quiet point or without a lease.
    pub(super) async fn obey(&mut self, order: Order) -> Result<(), End> {
        match order {
            Order::Drain => Err(End::Told(closed(Cause::Drained), Cause::Drained)),
            Order::EndIdle(cause) => Err(End::Told(super::rules::idle_in_transaction(), cause)),
            Order::End(cause) => Err(End::Broken(closed(cause))),
            Order::Reap(reply) => {
                // Whoever asked may have stopped waiting.
                let _ = reply.send(Outcome::Returned(None));
                Err(End::Told(orphaned().into(), Cause::Forced))
            }
            Order::Fence | Order::Lift => Ok(()),
            Order::Foresee(reply) => {
                if self.foresee().await? {
                    // Whoever asked may have stopped waiting.
                    let _ = reply.send(());
                }
                Ok(())
            }
            Order::Return(order) if order.is_withdrawn() => Ok(()),
            Order::Return(order) => {
                let closing = || {
                    (
                        Outcome::Returned(None),
                        Err(End::Told(closed(order.cause), order.cause)),
                    )
                };
                let (outcome, end) = match order.method {
                    Method::Close => closing(),
                    Method::Detach => match self.detach(order.cause).await {
                        (Outcome::Pinned(_), Ok(())) if order.pinned == Pinned::Close => closing(),
                        detached => detached,
                    },
                };
                order.answer(outcome);
                end
            }
        }
    }

    /// Ends the lease because the mode says so.
    pub(super) async fn release(&mut self) -> Result<(), End> {
        self.detach(Cause::Voluntary).await.1
    }

    /// Gives the backend back and keeps the session, unless something pins it.
    async fn detach(&mut self, cause: Cause) -> (Outcome, Result<(), End>) {
        let Some(mut lent) = self.lent.take() else {
            return (Outcome::Returned(Some("held no backend")), Ok(()));
        };
        self.step(Event::ReturnBegan);
        match self.examine(&mut lent).await {
            Ok(Examined::Nothing) => {
                lent.backend.spent |= self.may_have_moved_sequences();
                self.let_go(lent, cause);
                (Outcome::Returned(None), Ok(()))
            }
            Ok(Examined::State(found)) => self.part(lent, *found, cause).await,
            Ok(Examined::Pinned(pins)) => {
                self.stay(lent, pins, cause);
                (Outcome::Pinned(pins.words()), Ok(()))
            }
            Err(error) => self.lost_asked(error),
        }
    }

    /// Asks now what a return would have to ask, so that it needn't: whether there was anything. The lease goes on as if
    /// nothing had been.
    pub(super) async fn foresee(&mut self) -> Result<bool, End> {
        if self.rare.class < Class::Visible {
            return Ok(false);
        }
        let Some(mut lent) = self.lent.take() else {
            return Ok(false);
        };
        self.step(Event::ReturnBegan);
        // A database that stands still for a while loses no session by this.
        lent.backend.pace = Pace::Leisurely;
        let examined = self.examine(&mut lent).await;
        lent.backend.pace = Pace::Brisk;
        match examined {
            // A backend that listens for others would have to be asked then, too.
            Ok(Examined::State(found)) if found.channels.is_empty() => {
                self.keep(&mut lent, *found);
                self.rare.class = Class::Read;
                self.rare.pinned = false;
                self.rare.trail = Trail {
                    edition: self.pool.surveyed.edition(),
                    readings_are_kept: self.rare.trail.readings_are_kept,
                    ..Trail::default()
                };
            }
            // Whoever returns it hears of what pins it.
            Ok(Examined::Nothing | Examined::State(_) | Examined::Pinned(_)) => {}
            Err(error) => return self.lost_asked(error).1.map(|()| false),
        }
        self.step(Event::ReturnRefused);
        self.lent = Some(lent);
        Ok(true)
    }

    /// Finds out what a session at a quiet point would leave behind.
    async fn examine(&mut self, lent: &mut Lent) -> Result<Examined, Lost> {
        let quiet = self.quiet_since();
        self.tell_defined();
        let known = self.knew_the_database(lent, quiet).await?;
        if known && self.left_nothing() {
            return Ok(Examined::Nothing);
        }
        let reach = if known { Reach::Told } else { Reach::Whole };
        let code =
            self.rare.class == Class::Unknown || self.shared.config.mode == Mode::Session && !known;
        lent.backend.opaque |= code || self.statements.have_lost();
        let mut found = self.ask(lent, reach).await?;
        let mut pins = self.pins(&mut found, lent);
        let at_hand = self.statements.at_hand(&found.state);
        if pins.is_empty() && !at_hand.is_empty() {
            let (sound, notifications) = capture::are_sound(&mut lent.backend, &at_hand).await?;
            self.notify(notifications, &lent.backend.key);
            if !sound {
                pins.add(Pin::Prepare);
            }
        }
        Ok(if pins.is_empty() {
            Examined::State(Box::new(found))
        } else {
            Examined::Pinned(pins)
        })
    }

    /// Asks PostgreSQL what the session's state is.
    async fn ask(&mut self, lent: &mut Lent, reach: Reach) -> Result<Found, Lost> {
        let custom = self.custom();
        if self.statements.unnamed.is_in_doubt() {
            let (exists, frames) = capture::has_unnamed(&mut lent.backend).await?;
            self.statements.unnamed.settle(exists);
            self.notify(frames, &lent.backend.key);
        }
        self.shared.metrics.probed();
        let mut found =
            capture::capture(&mut lent.backend, &self.pool.user, &custom, reach).await?;
        self.notify(std::mem::take(&mut found.notifications), &lent.backend.key);
        // Whatever it has is asked for by its name from now on: a library's setting may be there as one of those, or as a custom
        // one, and the database's code may not name it any more.
        let own = self.rare.custom.clone();
        let set = found.state.custom.iter();
        let set = set.filter(|(name, value)| {
            !own.contains(name) && (!value.is_empty() || !custom.contains(name))
        });
        self.note_settings(set.map(|(name, _)| name.clone()).collect::<Vec<_>>());
        // On a backend where somebody else once made it, a setting reads as empty.
        let own = &self.rare.custom;
        let custom = &mut found.state.custom;
        custom.retain(|(name, value)| !value.is_empty() || own.contains(name));
        Ok(found)
    }

    /// Every pool of the database looks at it again, where this session has defined something.
    pub(super) fn tell_defined(&mut self) {
        let (surveyed, now) = (&self.pool.surveyed, self.shared.ledger.now());
        match std::mem::take(&mut self.rare.defined) {
            Defined::Nothing => {}
            // What it names was harmless, and is.
            Defined::Told if surveyed.stands(self.rare.trail.edition, now) => surveyed.note_told(),
            Defined::Told | Defined::Untold => surveyed.outdate(),
        }
    }

    /// Whether the texts of this lease are known for what they did: all were read, and the database's own code was all the
    /// while what it was taken for. What that code is now is known in any case, since the probe asks for what it sets.
    async fn knew_the_database(&mut self, lent: &mut Lent, quiet: Moment) -> Result<bool, Lost> {
        let (surveyed, clock) = (&self.pool.surveyed, self.shared.ledger.clock());
        let edition = self.rare.trail.edition;
        let heard = surveyed
            .refresh_after(&mut lent.backend, clock, quiet)
            .await?;
        let still = surveyed.was_still(edition, quiet);
        if !still {
            lent.backend.opaque = true;
        }
        // Its texts were read by what was known before. Whoever lists the settings to preserve has said which ones there are.
        let tells = self.shared.config.preserve_settings.is_empty() && self.rare.trail.ran;
        if tells && surveyed.learnt_of_untold(edition) {
            self.rare.sticky.add(Pin::UnreadableSetting);
        }
        self.notify(heard, &lent.backend.key);
        Ok(still && self.was_read())
    }

    /// Whether every text of this lease was read, and makes nothing that doesn't say so. What pins a session may have been
    /// made in an earlier one.
    fn was_read(&self) -> bool {
        // That mode is there to show what the probe finds.
        let always = self.shared.config.chaos_return == ChaosReturn::Always;
        self.rare.class <= Class::Visible && !self.rare.pinned && !always
    }

    /// Whether texts that were read leave nothing that moves: then PostgreSQL needn't be asked.
    fn left_nothing(&self) -> bool {
        self.rare.class < Class::Visible
            && self.rare.sticky.is_empty()
            && self.rare.ear.is_none()
            && self.statements.are_known()
    }

    /// Since when what has run in this lease is over. Who returns after each transaction or request doesn't ask: it looks at
    /// the database every few seconds.
    fn quiet_since(&self) -> Moment {
        match self.shared.config.mode {
            Mode::Session if self.shared.config.chaos_return == ChaosReturn::Always => {
                Moment::default()
            }
            Mode::Session => self.shared.ledger.book().entry(self.slot).state.since(),
            Mode::Transaction => Moment::default(),
        }
    }

    /// The backend is gone, in a conversation of ours.
    fn lost_asked(&self, error: Lost) -> (Outcome, Result<(), End>) {
        tracing::warn!(session = %self.id, "a backend was lost while it was asked for its state: {error}");
        self.tell_lost();
        (Outcome::Gone, Err(End::Backend(Some(last_words(error)))))
    }

    /// Parts from a backend of which everything is known that would be lost with it.
    async fn part(
        &mut self,
        mut lent: Lent,
        mut found: Found,
        cause: Cause,
    ) -> (Outcome, Result<(), End>) {
        let channels = std::mem::take(&mut found.channels);
        self.keep(&mut lent, found);
        self.rare.told = lent.backend.parameters.clone();
        let lent = match self.give_channels(lent, channels).await {
            Ok(Channels::Passed(lent)) => lent,
            Ok(Channels::Given) => {
                self.ended(cause);
                return (Outcome::Returned(None), Ok(()));
            }
            Ok(Channels::Kept(lent)) => {
                let pins = [Pin::Listen].into_iter().collect::<Pins>();
                self.stay(lent, pins, cause);
                return (Outcome::Pinned(pins.words()), Ok(()));
            }
            Err(error) => {
                tracing::warn!(session = %self.id, "a backend was lost as it gave its channels away: {error}");
                self.tell_lost();
                return (Outcome::Gone, Err(End::Backend(Some(last_words(error)))));
            }
        };
        self.let_go(lent, cause);
        (Outcome::Returned(None), Ok(()))
    }

    /// Keeps what was found of the session's state.
    fn keep(&mut self, lent: &mut Lent, found: Found) {
        // Only what the backend had can be gone from it: the rest waits until it is named.
        let exists = |name: &str| found.statements.contains(name);
        let had = &lent.backend.prepared;
        self.statements
            .reconcile(|name| had.get(name.as_bytes()).is_none() || exists(name));
        lent.backend.prepared.reconcile(exists);
        if *self.rare.saved != found.state {
            self.rare.saved = Rc::new(found.state);
        }
        lent.backend.carries = self.rare.saved.clone();
        // A function may have named them.
        let mut custom = self.rare.saved.custom.iter();
        lent.backend.stained |= custom.any(|(name, _)| sql::is_reserved(name));
        // Even a session without settings may leave something that the probe can't see, such as lastval().
        lent.backend.spent = true;
    }

    /// The session keeps its backend: something pins it.
    fn stay(&mut self, lent: Lent, pins: Pins, cause: Cause) {
        self.shared.metrics.pinned(pins);
        self.shared.ledger.book_mut().entry_mut(self.slot).pins = pins;
        self.rare.pinned = true;
        // What could not be asked now is asked at the next quiet point.
        self.rare.class = if pins.contains(Pin::ProbeFailed) {
            Class::Unknown
        } else {
            Class::Read
        };
        self.step(Event::ReturnRefused);
        self.lent = Some(lent);
        if cause != Cause::Voluntary {
            self.shared.events.tell(Happening::Pinned(self.view()));
        }
    }

    /// The names of the custom settings that PostgreSQL is asked for.
    pub(super) fn custom(&self) -> Rc<BTreeSet<String>> {
        let patterns = &self.shared.config.preserve_settings;
        self.pool.preserve(&self.rare.custom, patterns)
    }

    /// Gives the backend back without asking it: what was said since the last probe leaves nothing that moves.
    pub(super) fn release_at_once(&mut self) {
        let Some(mut lent) = self.lent.take() else {
            return;
        };
        lent.backend.spent |= self.may_have_moved_sequences();
        self.let_go(lent, Cause::Voluntary);
    }

    /// Whether what ran in this lease may have moved sequences: the next session mustn't be told of it.
    fn may_have_moved_sequences(&self) -> bool {
        match self.rare.class {
            Class::Read => false,
            Class::Rows => !self.pool.surveyed.knows_sequences(),
            Class::Write | Class::Local | Class::Visible | Class::Unknown => true,
        }
    }

    fn pins(&mut self, found: &mut Found, lent: &Lent) -> Pins {
        let reported = &lent.backend.parameters;
        let mut pins = found.pins.union(self.rare.sticky);
        if !found.channels.is_empty() && !self.may_share(lent, &found.channels) {
            pins.add(Pin::Listen);
        }
        if self.statements.is_incomplete() {
            pins.add(Pin::PrepareLarge);
        }
        if self.statements.unnamed.is_in_doubt()
            || !self.statements.would_mean_the_same(reported)
            || !self.statements.may_replay(&mut found.state, reported)
        {
            pins.add(Pin::Prepare);
        }
        pins
    }

    fn let_go(&mut self, mut lent: Lent, cause: Cause) {
        self.rare.told = lent.backend.parameters.clone();
        lent.backend.home = Home::Of(self.id);
        lent.backend.stained |= self.rare.stains;
        self.ended(cause);
        self.pool.give_back(lent, self.shared.ledger.now());
    }

    /// The lease has ended, and the session goes on.
    fn ended(&mut self, cause: Cause) {
        self.rare.class = Class::Read;
        self.rare.pinned = false;
        self.tell_returned(cause, "detach");
        self.shared.ledger.aim_at_nothing(self.slot);
        self.step(Event::Returned);
        self.shared.metrics.detached(cause);
    }

    /// Whether PostgreSQL may still be at work for it.
    fn is_running(&self) -> bool {
        let ended = self.rare.backend_closed || self.rare.told_fatal;
        !ended && !self.tracker.is_answered()
    }

    /// Ends the session: last words to the client, and the backend scrubbed or closed.
    pub(super) async fn finish(mut self: Box<Self>, end: End) {
        let (words, cause, clean) = match end {
            End::Client => (None, Cause::Voluntary, true),
            End::ClientBroken => (None, Cause::Voluntary, self.tracker.is_answered()),
            End::Backend(words) => (words, Cause::Lost, false),
            End::Told(words, cause) => (Some(words), cause, true),
            End::Broken(words) => (Some(words), Cause::Voluntary, false),
        };
        let mut held = self.lent.take();
        if let Some(lent) = &mut held {
            lent.backend.stained |= self.rare.stains;
            self.say_goodbye(lent);
            let method = if words.is_some() {
                "close"
            } else {
                "disconnect"
            };
            if cause == Cause::Lost {
                self.tell_lost();
            }
            self.tell_returned(cause, method);
            self.step(Event::Returned);
            self.shared.metrics.returned(cause, method);
        }
        for order in std::mem::take(&mut self.rare.waiting) {
            if let Order::Return(order) = order {
                order.answer(Outcome::Gone);
            }
        }
        self.shared.ledger.close(self.slot);
        if let Some(words) = &words {
            self.shared.metrics.fault(words.fault, &words.code);
            tracing::info!(session = %self.id, sqlstate = %words.code, "session closed: {}", words.message);
            // In the middle of a message they would pass for the rest of it.
            if !self.outbound.is_within_forwarded() {
                self.to_client.push(&words.fatal());
            }
        }
        let (running, status) = (self.is_running(), self.tracker.status());
        // The scrubbing must not wait for a slow reader.
        let farewell = farewell(&mut self.to_client, &mut self.client);
        let warm = self.pool.take_warm(self.id);
        let reusable = clean
            && self.tracker.is_settled()
            && self.inbound.is_between_frames()
            && self.outbound.is_between_frames()
            && self.to_backend.is_empty()
            && !leaves_traces(self.rare.sticky);
        let scrubs = async {
            if let Some(lent) = held {
                if reusable {
                    scrub(&self.shared, &self.pool, lent, status).await;
                } else {
                    abandon(&self.shared, lent, running).await;
                }
            }
            if let Some(lent) = warm {
                leave(&self.shared, &self.pool, lent).await;
            }
        };
        tokio::join!(farewell, scrubs);
    }
}

/// Whether a session leaves something in its backend that DISCARD ALL doesn't undo: the next one must not find it.
fn leaves_traces(sticky: Pins) -> bool {
    sticky
        .iter()
        .any(|pin| matches!(pin, Pin::Load | Pin::Setseed | Pin::Replication))
}

/// Says the last words, and closes. Without any, the socket's own end says it all, but for TLS, which has a goodbye.
async fn farewell(words: &mut super::leg::Spill, client: &mut crate::net::Stream) {
    if words.is_empty() && !client.owes() {
        return;
    }
    words.hold();
    let said = timers::timeout(LAST_WORDS, poll_fn(|cx| words.poll_flush(client, cx))).await;
    if matches!(said, Ok(Ok(()))) {
        // The peer may have closed already.
        let _ = client.shutdown().await;
    }
}

/// Leaves a warm backend to the next: as it is, where nothing was set on it.
async fn leave(shared: &super::Shared, pool: &std::rc::Rc<crate::backend::Pool>, mut lent: Lent) {
    if lent.backend.is_blank() {
        lent.backend.home = Home::Left;
        pool.give_back(lent, shared.ledger.now());
    } else {
        scrub(shared, pool, lent, crate::lease::Status::Idle).await;
    }
}

/// Scrubs a backend and gives it back; one that can't be scrubbed is closed.
async fn scrub(
    shared: &super::Shared,
    pool: &std::rc::Rc<crate::backend::Pool>,
    lent: Lent,
    status: crate::lease::Status,
) {
    let Lent { backend, permit } = lent;
    if backend.home == Home::Clean {
        pool.give_back(Lent { backend, permit }, shared.ledger.now());
    } else if let Some(backend) = reset(backend, status).await {
        pool.give_back(Lent { backend, permit }, shared.ledger.now());
    }
}

/// Closes a backend that nobody can use any more; what still runs on it is cancelled.
async fn abandon(shared: &super::Shared, lent: Lent, running: bool) {
    if running {
        // The backend may be gone; then there is nothing left to cancel.
        let _ = cancel::send(shared.pools.dialer(), &lent.backend.key).await;
    }
    drop(lent);
}
