//! Owns the timers: everything that waits for a time to come goes by here.
//!
//! Who has timers of its own has to look at the clock at each wait for events. So a data thread has none, and borrows those
//! of another thread's runtime: that one wakes it when a time has come.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, Interval, Sleep, Timeout};

use crate::executor::lent;

/// The moment by which timers go; not one in the book.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Ends after so long. Cancel safe.
#[expect(clippy::disallowed_methods, reason = "timers are made here")]
pub fn sleep(duration: Duration) -> Sleep {
    lent(|| tokio::time::sleep(duration))
}

/// Ends at `deadline`. Cancel safe.
#[expect(clippy::disallowed_methods, reason = "timers are made here")]
pub fn sleep_until(deadline: Instant) -> Sleep {
    lent(|| tokio::time::sleep_until(deadline))
}

/// Gives what `future` gives, unless it takes longer. As cancel safe as `future`.
#[expect(clippy::disallowed_methods, reason = "timers are made here")]
pub fn timeout<F: Future>(limit: Duration, future: F) -> Timeout<F> {
    lent(|| tokio::time::timeout(limit, future))
}

/// Gives what `future` gives, unless it isn't there by `deadline`. As cancel safe as `future`.
#[expect(clippy::disallowed_methods, reason = "timers are made here")]
pub fn timeout_at<F: Future>(deadline: Instant, future: F) -> Timeout<F> {
    lent(|| tokio::time::timeout_at(deadline, future))
}

/// Ticks at once, and then after each `period`.
#[expect(clippy::disallowed_methods, reason = "timers are made here")]
pub fn interval(period: Duration) -> Interval {
    lent(|| tokio::time::interval(period))
}
