//! Owns the relay: one poll function that moves bytes both ways, and says when something rarer is due.
//!
//! The hot path allocates nothing, arms no timer and takes no lock: bytes go from one socket's buffer through the
//! thread's scratch into the other's.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::clock::timers;
use crate::config::{ChaosReturn, Mode};
use crate::executor;
use crate::lease::reload::Outcome;
use crate::lease::{Event, Pin, Status};
use crate::ledger::{Cause, Order, Patience};
use crate::session::{Name, Phase, Session};
use crate::wire::reply::ClientError;
use crate::wire::sql::Class;

/// How many times a session may move bytes before others get their turn.
const FAIR: usize = 32;

/// How long PostgreSQL may go on for a client that closed its side: what takes longer is cancelled.
const CLIENT_GONE: Duration = Duration::from_secs(5);

/// What the relay can't do by itself.
#[derive(Debug)]
pub(super) enum Turn {
    /// The client sent a request, and no backend is held.
    NeedBackend,
    /// An order is due.
    Obey(Order),
    /// The mode of returning ends the lease here.
    Release,
    /// PostgreSQL is asked ahead for what a return would have to ask.
    Foresee,
    /// The backend bears another session's application_name.
    Rename,
    End(End),
}

/// How a session ends.
#[derive(Debug)]
pub(super) enum End {
    /// The client closed the connection, or asked for it.
    Client,
    /// The client's connection broke.
    ClientBroken,
    /// The backend is lost; the client was told by PostgreSQL itself, or hears this.
    Backend(Option<Box<ClientError>>),
    /// The client hears this, and the backend is as good as before.
    Told(Box<ClientError>, Cause),
    /// The client hears this; what the backend was told can't be known.
    Broken(Box<ClientError>),
}

/// Whether the mailbox was looked into since the task woke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mail {
    Unread,
    Read,
}

/// What became of bytes that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    /// They are forwarded.
    Moved,
    /// They wait for a backend.
    NeedBackend,
}

/// Whether a side from which bytes were read may have more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Open,
    /// Not before it wakes the task.
    Drained,
}

impl Session {
    /// Serves the client to its end.
    pub(super) async fn run(mut self: Box<Self>) {
        let end = self.live().await;
        Box::pin(self.finish(end)).await;
    }

    async fn live(&mut self) -> End {
        poll_fn(|cx| {
            self.shared.ledger.attend(self.slot, cx.waker());
            Poll::Ready(())
        })
        .await;
        loop {
            let turn = poll_fn(|cx| self.poll(cx)).await;
            let ended = match turn {
                Turn::NeedBackend => Box::pin(self.attach()).await,
                Turn::Obey(order) => Box::pin(self.obey(order)).await,
                Turn::Release => Box::pin(self.release()).await,
                Turn::Foresee => Box::pin(self.foresee()).await.map(drop),
                Turn::Rename => Box::pin(self.rename()).await,
                Turn::End(end) => return end,
            };
            if let Err(end) = ended {
                return end;
            }
        }
    }

    /// Moves bytes both ways until there are none. A side that has nothing, and will wake the task when it has, isn't asked
    /// again, nor is the mailbox: nothing can come in before the task yields.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Turn> {
        let mut scratch = self.shared.scratch.take();
        let turn = self.poll_with(cx, &mut scratch);
        self.shared.scratch.put(scratch);
        turn
    }

    fn poll_with(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Turn> {
        let (mut backend_waits, mut client_waits) = (false, false);
        let mut mail = Mail::Unread;
        self.note_stuck();
        for _ in 0..FAIR {
            if let Err(end) = self.poll_spills(cx) {
                return Poll::Ready(Turn::End(end));
            }
            let (mut moved, mut heard) = (false, false);
            if !backend_waits && self.to_client.is_empty() && self.lent.is_some() {
                match self.poll_backend(cx, scratch) {
                    Poll::Ready(Ok(side)) => {
                        moved = true;
                        backend_waits = side == Side::Drained;
                    }
                    Poll::Ready(Err(end)) => return Poll::Ready(Turn::End(end)),
                    Poll::Pending => backend_waits = true,
                }
            }
            if let Some(turn) = self.at_rest(&mut mail) {
                return Poll::Ready(turn);
            }
            backend_waits &= self.lent.is_some();
            if self.may_hear_client() && (!client_waits || self.inbound.held) {
                let reads = !self.inbound.held;
                match self.poll_client(cx, scratch) {
                    Poll::Ready(Ok(Flow::Moved)) => {
                        (moved, heard) = (true, true);
                        client_waits = reads && self.client.is_drained();
                    }
                    Poll::Ready(Ok(Flow::NeedBackend)) => return Poll::Ready(Turn::NeedBackend),
                    Poll::Ready(Err(end)) => return Poll::Ready(Turn::End(end)),
                    Poll::Pending => client_waits = true,
                }
            }
            if let Some(patience) = &mut self.rare.client_closed
                && patience.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Turn::End(End::ClientBroken));
            }
            // Nothing is at rest while an answer is awaited; and where nothing was heard since, it was looked at.
            let active = self.phase == Phase::Active;
            let awaits = backend_waits && client_waits && (active || !heard);
            if !moved || awaits && !self.inbound.held && self.rare.client_closed.is_none() {
                return Poll::Pending;
            }
        }
        executor::wake_later(cx);
        Poll::Pending
    }

    /// What was posted and didn't fit counts as spilled.
    #[inline]
    pub(super) fn note_stuck(&mut self) {
        if self.client.is_stuck() {
            self.to_client.hold();
        }
        if let Some(lent) = &self.lent
            && lent.backend.stream.is_stuck()
        {
            self.to_backend.hold();
        }
    }

    /// Whether the client's next bytes may be taken in.
    fn may_hear_client(&self) -> bool {
        self.to_backend.is_empty()
            && self.rare.client_closed.is_none()
            && !self.stands_at_fence()
            && (!self.inbound.held || self.may_go_on())
    }

    fn poll_spills(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        self.poll_spilled(cx)?;
        if let Some(lent) = &mut self.lent
            && !self.to_backend.is_empty()
            && let Poll::Ready(Err(_)) = self.to_backend.poll_flush(&mut lent.backend.stream, cx)
        {
            return Err(End::Backend(Some(super::returning::lost())));
        }
        if self.lent.is_none() && self.rare.ear.is_some() {
            return self.overhear(cx);
        }
        Ok(())
    }

    /// Writes what the client's socket would not take before.
    #[inline]
    pub(super) fn poll_spilled(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        if !self.to_client.is_empty()
            && let Poll::Ready(Err(_)) = self.to_client.poll_flush(&mut self.client, cx)
        {
            return Err(End::ClientBroken);
        }
        Ok(())
    }

    fn poll_client(&mut self, cx: &mut Context<'_>, scratch: &mut [u8]) -> Poll<Result<Flow, End>> {
        if std::mem::take(&mut self.inbound.held) {
            return Poll::Ready(self.resume(cx));
        }
        let read = self.client.poll_recv(cx, scratch);
        match read {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(_)) => Poll::Ready(Err(End::ClientBroken)),
            Poll::Ready(Ok(0)) => Poll::Ready(self.client_ended()),
            Poll::Ready(Ok(count)) => Poll::Ready(self.on_client(cx, &scratch[..count])),
        }
    }

    /// The client will send no more. What PostgreSQL answers by itself is still awaited for a while: a statement that was
    /// sent before a goodbye shall take effect.
    pub(super) fn client_ended(&mut self) -> Result<Flow, End> {
        if self.lent.is_some() && self.tracker.answers_alone() && self.inbound.is_between_frames() {
            self.rare.client_closed = Some(Box::pin(timers::sleep(CLIENT_GONE)));
            return Ok(Flow::Moved);
        }
        Err(End::Client)
    }

    fn poll_backend(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
    ) -> Poll<Result<Side, End>> {
        let Some(lent) = &mut self.lent else {
            return Poll::Pending;
        };
        if !lent.backend.unread.is_empty() {
            let unread = std::mem::take(&mut lent.backend.unread);
            return Poll::Ready(self.on_backend(cx, &unread).map(|()| Side::Open));
        }
        let backend = &mut *lent.backend;
        match backend.stream.poll_recv(cx, scratch) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(0)) => {
                self.rare.backend_closed = true;
                Poll::Ready(Err(self.backend_ended()))
            }
            Poll::Ready(Err(_)) => Poll::Ready(Err(self.backend_ended())),
            Poll::Ready(Ok(count)) => {
                let side = if backend.stream.is_drained() {
                    Side::Drained
                } else {
                    Side::Open
                };
                Poll::Ready(self.on_backend(cx, &scratch[..count]).map(|()| side))
            }
        }
    }

    /// Whether the backend may change hands now.
    pub(super) fn is_quiet(&self) -> bool {
        self.is_between_requests() && self.tracker.status() == Status::Idle
    }

    /// Whether every request is answered, and nothing is on its way.
    fn is_between_requests(&self) -> bool {
        self.lent.as_ref().is_some_and(|lent| {
            lent.backend.key.in_flight.get() == 0 && lent.backend.unread.is_empty()
        }) && self.tracker.is_settled()
            && self.inbound.is_between_frames()
            && self.outbound.is_between_frames()
            && self.to_backend.is_empty()
            && self.to_client.is_empty()
    }

    /// What is due between two requests: orders, the mode's own return, the end of a client that closed its side.
    fn at_rest(&mut self, mail: &mut Mail) -> Option<Turn> {
        if self.rare.client_closed.is_some()
            && self.tracker.is_answered()
            && self.to_client.is_empty()
        {
            return Some(Turn::End(End::Client));
        }
        while *mail == Mail::Unread {
            match self.shared.ledger.take_order(self.slot) {
                Some(order) => {
                    if let Some(turn) = self.weigh(order) {
                        return Some(turn);
                    }
                }
                None => *mail = Mail::Read,
            }
        }
        if self.phase == Phase::Active {
            return None;
        }
        if self.rare.name == Name::Foreign
            && self.is_between_requests()
            && self.tracker.status() != Status::Failed
        {
            return Some(Turn::Rename);
        }
        if !self.rare.waiting.is_empty() && (self.lent.is_none() || self.is_quiet()) {
            return self.rare.waiting.pop().map(Turn::Obey);
        }
        if self.rare.answered && self.is_quiet() {
            self.rare.answered = false;
            return self.after_answer();
        }
        None
    }

    /// What the mode wants at a quiet point.
    fn after_answer(&mut self) -> Option<Turn> {
        if self.is_replication() {
            return None;
        }
        match self.shared.config.chaos_return {
            ChaosReturn::Off => {}
            ChaosReturn::Always => return Some(Turn::Release),
            ChaosReturn::Ask => return Some(Turn::Foresee),
        }
        match self.shared.config.mode {
            Mode::Session => None,
            Mode::Transaction => self.after_transaction(),
        }
    }

    /// The lease ends at once where what was said leaves nothing; else PostgreSQL is asked.
    fn after_transaction(&mut self) -> Option<Turn> {
        let tells_nothing = self.rare.class < Class::Visible;
        if tells_nothing && self.rare.pinned {
            return None;
        }
        let (surveyed, now) = (&self.pool.surveyed, self.shared.ledger.now());
        if surveyed.rests(now) && self.pool.defer(self.id) {
            // Looked at again whenever the session wakes.
            self.rare.answered = true;
            return None;
        }
        let tells_nothing = tells_nothing
            && self.rare.sticky.is_empty()
            && surveyed.holds(self.rare.trail.edition, now)
            // Its channels go with it.
            && self.rare.ear.is_none()
            && self.statements.are_known();
        if !tells_nothing {
            return Some(Turn::Release);
        }
        self.release_at_once();
        None
    }

    /// Whether a reload holds up the session's next request: nothing is read of the client meanwhile. What has begun
    /// goes on.
    fn stands_at_fence(&self) -> bool {
        self.rare.fences > 0
            && self.phase == Phase::Resting
            && (self.lent.is_none() || self.is_quiet())
    }

    /// Decides on a new order: now, later, or not.
    fn weigh(&mut self, order: Order) -> Option<Turn> {
        match order {
            Order::Fence => {
                self.rare.fences = self.rare.fences.saturating_add(1);
                return None;
            }
            Order::Lift => {
                self.rare.fences = self.rare.fences.saturating_sub(1);
                return None;
            }
            // Its transaction may have gone on, or ended.
            Order::EndIdle(_) => {
                let idles = self.is_between_requests() && self.tracker.status() != Status::Idle;
                return idles.then_some(Turn::Obey(order));
            }
            Order::Reap(reply) if self.lent.is_some() && !self.is_between_requests() => {
                // Whoever asked may have stopped waiting.
                let _ = reply.send(self.why_busy());
                return None;
            }
            Order::Reap(_) => return Some(Turn::Obey(order)),
            Order::Return(order) if self.is_replication() => {
                order.answer(Outcome::Pinned(Pin::Replication.word().to_owned()));
                return None;
            }
            Order::Foresee(_) => return self.is_quiet().then_some(Turn::Obey(order)),
            Order::Return(_) | Order::Drain | Order::End(_) => {}
        }
        if self.is_quiet() || self.lent.is_none() || matches!(order, Order::End(_)) {
            return Some(Turn::Obey(order));
        }
        match order {
            Order::Return(order) if order.patience == Patience::Now => {
                order.answer(self.why_busy())
            }
            Order::Return(_)
            | Order::Drain
            | Order::End(_)
            | Order::EndIdle(_)
            | Order::Reap(_)
            | Order::Fence
            | Order::Lift
            | Order::Foresee(_) => {
                // Several reloads may wait for the same session: each gets its answer.
                let waits =
                    |known: &Order| !matches!(known, Order::Return(one) if one.is_withdrawn());
                self.rare.waiting.retain(waits);
                self.rare.waiting.push(order);
            }
        }
        None
    }

    fn why_busy(&self) -> Outcome {
        if self.tracker.is_ambiguous() {
            return Outcome::Pinned(Pin::Ambiguous.word().to_owned());
        }
        crate::lease::reload::busy(self.shared.ledger.book().entry(self.slot))
    }

    /// Tells the book what happened to the lease. A refusal is a defect of ours: it is logged, and nothing is lost.
    pub(super) fn step(&self, event: Event) {
        match self.shared.ledger.step(self.slot, event) {
            Ok((left, now)) => self.pool.counters.left(left, now),
            Err(error) => tracing::error!(session = %self.id, "{error}"),
        }
    }
}
