//! Owns the timers: everything that waits for a time to come goes by here.
//!
//! A runtime with timers of its own reads the clock twice at each wait for events, as soon as a single timer is armed. So a
//! data thread's runtime has none, and borrows another thread's: that one wakes it when a time has come.

use std::cell::RefCell;
use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{Instant, Interval, Sleep, Timeout};

thread_local! {
    /// Whose timers this thread uses; its own runtime's where there is none.
    static LENDER: RefCell<Option<Handle>> = const { RefCell::new(None) };
}

/// From now on, timers of this thread are those of `lender`, a runtime of another thread.
pub fn borrow_from(lender: Handle) {
    LENDER.set(Some(lender));
}

/// Makes a timer in the right place. A timer remembers where it was made.
fn made<T>(make: impl FnOnce() -> T) -> T {
    LENDER.with_borrow(|lender| {
        let _place = lender.as_ref().map(Handle::enter);
        make()
    })
}

/// The moment by which timers go; not one in the book.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub fn now() -> Instant {
    Instant::now()
}

/// Ends after so long. Cancel safe.
#[expect(clippy::disallowed_methods, reason = "timers are made here")]
pub fn sleep(duration: Duration) -> Sleep {
    made(|| tokio::time::sleep(duration))
}

/// Ends at `deadline`. Cancel safe.
#[expect(clippy::disallowed_methods, reason = "timers are made here")]
pub fn sleep_until(deadline: Instant) -> Sleep {
    made(|| tokio::time::sleep_until(deadline))
}

/// Gives what `future` gives, unless it takes longer. As cancel safe as `future`.
#[expect(clippy::disallowed_methods, reason = "timers are made here")]
pub fn timeout<F: Future>(limit: Duration, future: F) -> Timeout<F> {
    made(|| tokio::time::timeout(limit, future))
}

/// Gives what `future` gives, unless it isn't there by `deadline`. As cancel safe as `future`.
#[expect(clippy::disallowed_methods, reason = "timers are made here")]
pub fn timeout_at<F: Future>(deadline: Instant, future: F) -> Timeout<F> {
    made(|| tokio::time::timeout_at(deadline, future))
}

/// Ticks at once, and then after each `period`.
#[expect(clippy::disallowed_methods, reason = "timers are made here")]
pub fn interval(period: Duration) -> Interval {
    made(|| tokio::time::interval(period))
}
