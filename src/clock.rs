//! Owns the reading of time: nothing else asks the system what time it is.

pub mod timers;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::lease::Moment;

/// How long before the process began the first moment lies.
const FRONT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Gives the present moment, and the wall-clock time of any moment. A copy runs alike.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// What the monotonic clock said at the beginning, in microseconds.
    began: u64,
    /// The wall-clock time of the first moment, since the epoch.
    wall: Duration,
}

impl Clock {
    /// A clock that begins now. A year is put in front, so that moments before the process began have a place.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn start() -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            began: monotonic(),
            wall: wall.saturating_sub(FRONT),
        }
    }

    /// The present moment, to the kernel's tick (about 4 ms): the coarse clock costs no more than a memory read.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.moment(read(ClockId::MonotonicCoarse))
    }

    /// The present moment, to the microsecond: for durations that people see.
    #[must_use]
    pub fn precise(&self) -> Moment {
        self.moment(monotonic())
    }

    fn moment(&self, monotonic: u64) -> Moment {
        Moment::from_micros(FRONT.as_micros() as u64 + monotonic.saturating_sub(self.began))
    }

    /// The wall-clock time of a moment, since the epoch.
    #[must_use]
    pub fn wall(&self, moment: Moment) -> Duration {
        self.wall + Duration::from_micros(moment.as_micros())
    }
}

fn monotonic() -> u64 {
    read(ClockId::Monotonic)
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let micros = time.tv_sec * 1_000_000 + time.tv_nsec / 1000;
    u64::try_from(micros).unwrap_or(0)
}
