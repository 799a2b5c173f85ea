//! Whether a running script has to stop, and why.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Why a script was stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SCRIPT KILL.
    Killed,
    /// It wanted more memory than a script may have.
    Memory,
    /// Its time is over.
    Late,
    /// Its host cannot go on. The host knows why.
    Host,
}

/// What stops a script. Shared by the thread that runs it and by those that want it to end.
pub struct Control {
    /// A [`Stop`], or [`RUNS`].
    stop: AtomicU8,
    born: Instant,
    /// When the script began, and when it has to be over: nanoseconds since `born`.
    began: AtomicU64,
    ends: AtomicU64,
}

const RUNS: u8 = 0;

impl Default for Control {
    fn default() -> Self {
        Control {
            stop: AtomicU8::new(RUNS),
            born: Instant::now(),
            began: AtomicU64::new(0),
            ends: AtomicU64::new(u64::MAX),
        }
    }
}

impl Control {
    /// A script begins. It may run for so long.
    pub fn begin(&self, time: Option<Duration>) {
        let now = self.now();
        let ends = time.map_or(u64::MAX, |time| now.saturating_add(nanoseconds(time)));
        self.began.store(now, Ordering::Relaxed);
        self.ends.store(ends, Ordering::Relaxed);
        self.stop.store(RUNS, Ordering::Relaxed);
    }

    /// How long the script has been running.
    pub fn runs_for(&self) -> Duration {
        Duration::from_nanos(self.now().saturating_sub(self.began.load(Ordering::Relaxed)))
    }

    pub fn stop(&self, why: Stop) {
        let number = match why {
            Stop::Killed => 1,
            Stop::Memory => 2,
            Stop::Late => 3,
            Stop::Host => 4,
        };
        // The first reason stays.
        let _ = self
            .stop
            .compare_exchange(RUNS, number, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub fn stopped(&self) -> Option<Stop> {
        match self.stop.load(Ordering::Relaxed) {
            RUNS => None,
            1 => Some(Stop::Killed),
            2 => Some(Stop::Memory),
            3 => Some(Stop::Late),
            _ => Some(Stop::Host),
        }
    }

    /// An error if the script has to stop. Called now and then while it runs.
    pub fn check(&self) -> Result<(), Stop> {
        if self.now() > self.ends.load(Ordering::Relaxed) {
            self.stop(Stop::Late);
        }
        self.stopped().map_or(Ok(()), Err)
    }

    fn now(&self) -> u64 {
        nanoseconds(self.born.elapsed())
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays() {
        let control = Control::default();
        control.begin(None);
        assert_eq!(control.check(), Ok(()));
        control.stop(Stop::Memory);
        control.stop(Stop::Killed);
        assert_eq!(control.check(), Err(Stop::Memory));
        control.begin(Some(Duration::ZERO));
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(control.check(), Err(Stop::Late));
    }
}
