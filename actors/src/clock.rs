//! Time, so that tests need not wait.

use std::time::Instant;

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Moment(f64);

impl Moment {
    /// A moment some seconds after the start of the clock.
    pub const fn at(seconds: f64) -> Self {
        Self(seconds)
    }

    /// Seconds from another moment to this one.
    pub fn since(self, earlier: Self) -> f64 {
        self.0 - earlier.0
    }
}

/// Seconds that all threads of this process have computed for.
pub fn busy() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes the one value that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Tells the time.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Moment;
}

/// The machine's monotonic clock.
#[derive(Debug)]
pub struct RealClock(Instant);

impl RealClock {
    /// A clock that starts now.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for RealClock {
    fn now(&self) -> Moment {
        Moment(self.0.elapsed().as_secs_f64())
    }
}
