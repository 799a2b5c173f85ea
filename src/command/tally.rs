//! What a connection has counted and not yet added to the counters that all connections share. A
//! counter that every processor writes to at every command costs as much as reading a key. So a
//! connection adds to it when a burst is over, or when another command comes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Shared;
use super::table::CommandEntry;
use crate::database::Lookups;

#[derive(Default)]
pub struct Tally {
    /// The command that is counted.
    command: Option<&'static CommandEntry>,
    calls: u64,
    nanoseconds: u64,
    waited: u64,
    failed: u64,
    lookups: Lookups,
    /// When the last command of the burst was done. The next one began then.
    last: Option<Instant>,
}

impl Tally {
    /// Starts timing a command; returns the start time. If the command differs from the one before,
    /// the counts are added to the shared counters first, as this command may report them.
    pub fn begin(&mut self, shared: &Shared, command: &'static CommandEntry) -> Instant {
        if self.command.is_some_and(|counted| !std::ptr::eq(counted, command)) {
            self.settle(shared);
        }
        self.last.unwrap_or_else(Instant::now)
    }

    /// Called after a wait: the next command begins when it is executed.
    pub fn interrupt(&mut self) {
        self.last = None;
    }

    /// When the last command was done; `None` if there was none since the last wait.
    pub fn last(&self) -> Option<Instant> {
        self.last
    }

    /// Ends timing a command; returns how long it took.
    pub fn done(&mut self, began: Instant) -> Duration {
        let now = Instant::now();
        self.last = Some(now);
        now.saturating_duration_since(began)
    }

    /// Counts a command that was computed.
    pub fn computed(&mut self, shared: &Shared, command: &'static CommandEntry, took: Duration) {
        self.counting(shared, command);
        self.calls += 1;
        self.nanoseconds += u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if shared.config.latency_tracking() {
            command.stats.own().computations.add(took);
        }
    }

    /// Counts a command that has its reply. `waited`: how long its client has waited for that.
    pub fn replied(&mut self, shared: &Shared, command: &'static CommandEntry, waited: Duration, failed: bool) {
        self.counting(shared, command);
        self.waited += u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.failed += u64::from(failed);
        if shared.config.latency_tracking() {
            command.stats.own().waits.add(waited);
        }
    }

    fn counting(&mut self, shared: &Shared, command: &'static CommandEntry) {
        if self.command.is_none_or(|counted| !std::ptr::eq(counted, command)) {
            self.settle(shared);
            self.command = Some(command);
        }
    }

    pub fn looked_up(&mut self, lookups: Lookups) {
        self.lookups.hits += lookups.hits;
        self.lookups.misses += lookups.misses;
    }

    /// Adds everything to the shared counters.
    pub fn settle(&mut self, shared: &Shared) {
        let add = |counter: &AtomicU64, more: &mut u64| {
            if *more > 0 {
                counter.fetch_add(std::mem::take(more), Ordering::Relaxed);
            }
        };
        if let Some(command) = self.command.take() {
            let (all, of_command) = (shared.stats.traffic.own(), command.stats.own());
            all.commands.fetch_add(self.calls, Ordering::Relaxed);
            add(&of_command.calls, &mut self.calls);
            add(&of_command.nanoseconds, &mut self.nanoseconds);
            add(&of_command.waited, &mut self.waited);
            add(&of_command.failed, &mut self.failed);
        }
        shared.service.counters.add(std::mem::take(&mut self.lookups));
    }
}
