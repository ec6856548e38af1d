//! Owns what may be asked of a session, and the queue of it.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use crate::lease::Cause;
use crate::lease::reload::{Method, Outcome, Pinned};

/// What a session does with a return order while it isn't at a quiet point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Answer that it is busy.
    Now,
    /// Keep the order until the next quiet point, as long as somebody awaits the answer.
    Wait,
}

/// An order to give a lease back.
#[derive(Debug)]
pub struct ReturnOrder {
    pub method: Method,
    pub pinned: Pinned,
    pub cause: Cause,
    pub patience: Patience,
    /// Where the outcome goes, if anybody awaits it.
    pub reply: Option<oneshot::Sender<Outcome>>,
}

impl ReturnOrder {
    /// Whether somebody awaited the outcome, and does no longer.
    #[must_use]
    pub fn is_withdrawn(&self) -> bool {
        self.reply.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    /// Tells the outcome. Whoever asked may have stopped waiting: then nobody hears it.
    pub fn answer(self, outcome: Outcome) {
        if let Some(reply) = self.reply {
            let _ = reply.send(outcome);
        }
    }
}

/// An order to a session.
#[derive(Debug)]
pub enum Order {
    /// Give the lease back.
    Return(ReturnOrder),
    /// End at the next quiet point, with FATAL 57P01: pgvalet is shutting down.
    Drain,
    /// End now, with FATAL 57P01, whatever is under way.
    End(Cause),
    /// End with FATAL 57P01, if the session still idles in a transaction: it is rolled back.
    EndIdle(Cause),
    /// End, unless a request is unanswered: nobody is left who holds the session.
    Reap(oneshot::Sender<Outcome>),
    /// Begin no request, until as many fences are lifted as were raised.
    Fence,
    /// One fence is lifted.
    Lift,
    /// Have PostgreSQL asked now what a return would have to ask it, if the session is at a quiet point. Answered when it
    /// was; dropped where there was nothing to ask.
    Foresee(oneshot::Sender<()>),
}

/// Orders that wait, the oldest first. A queue that holds none takes a pointer: most sessions never have an order.
#[expect(
    clippy::box_collection,
    reason = "a queue without memory is four times as large"
)]
#[derive(Debug, Default)]
pub struct Orders(Option<Box<VecDeque<Order>>>);

impl Orders {
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Puts one behind the others.
    pub fn push(&mut self, order: Order) {
        self.0.get_or_insert_default().push_back(order);
    }

    /// Takes the oldest.
    #[inline]
    pub fn pop(&mut self) -> Option<Order> {
        if self.is_empty() {
            None
        } else {
            self.pop_first()
        }
    }

    #[cold]
    fn pop_first(&mut self) -> Option<Order> {
        let order = self.0.as_mut()?.pop_front();
        self.forget_if_empty();
        order
    }

    /// Keeps those of which this is true.
    pub fn retain(&mut self, keeps: impl FnMut(&Order) -> bool) {
        if let Some(orders) = &mut self.0 {
            orders.retain(keeps);
        }
        self.forget_if_empty();
    }

    fn forget_if_empty(&mut self) {
        if self.0.as_ref().is_some_and(|orders| orders.is_empty()) {
            self.0 = None;
        }
    }
}

impl IntoIterator for Orders {
    type Item = Order;
    type IntoIter = std::collections::vec_deque::IntoIter<Order>;

    fn into_iter(self) -> Self::IntoIter {
        self.0
            .map_or_else(VecDeque::new, |orders| *orders)
            .into_iter()
    }
}
