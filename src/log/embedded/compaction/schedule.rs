//! When a pass is made: after enough new records, when the disk lacks room, or when deletions that
//! had to stay may go.

use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::{Done, Due};
use crate::log::LogError;
use crate::log::embedded::Shared;
use crate::supervise;

/// How often compaction checks for work that no event reports.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// A pass that is asked for (after a flush, on a full disk) waits for this many times as long as
/// the last one took.
const ASKED_PAUSE: u32 = 10;
/// It waits at least this long: while the disk lacks room, each delete asks for a pass.
const LEAST_ASKED_PAUSE: Duration = Duration::from_secs(1);
/// The pause after a pass that failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(super) struct Schedule {
    /// A pass is asked for that does not wait for the usual amount of work.
    asked: bool,
    asked_not_before: Option<Instant>,
    /// Bytes of tombstones and markers that the last pass could not remove yet, and when it was.
    kept: Option<(u64, Instant)>,
    /// Since when passes fail.
    failing: Option<Instant>,
}

impl Schedule {
    /// Waits for work. Returns false when the log is closed.
    pub(super) fn wait(&mut self, shared: &Shared) -> bool {
        supervise::idle();
        let mut stopping = shared.stopping.lock();
        let deadline = Instant::now() + LOOK_INTERVAL;
        while !stopping.background {
            self.asked |= std::mem::take(&mut stopping.compact_now);
            let may_ask = self
                .asked_not_before
                .is_none_or(|not_before| not_before <= Instant::now());
            if std::mem::take(&mut stopping.segment_closed) || (self.asked && may_ask) {
                break;
            }
            let until = match self.asked_not_before {
                Some(not_before) if self.asked => deadline.min(not_before),
                _ => deadline,
            };
            if shared.stop_or_work.wait_until(&mut stopping, until).timed_out() {
                break;
            }
        }
        !stopping.background
    }

    /// Whether the records since the last pass are worth a pass: half of what the last pass left,
    /// and a segment at least.
    pub(super) fn due(&mut self, shared: &Shared) -> Option<Due> {
        if self.failing.is_some_and(|since| since.elapsed() < PAUSE_AFTER_FAILURE) {
            return None;
        }
        let may_ask = self
            .asked_not_before
            .is_none_or(|not_before| not_before <= Instant::now());
        if may_ask && std::mem::take(&mut self.asked) {
            return Some(Due::Asked);
        }
        let clean_below = shared.registry.lock().meta.clean_below;
        let segments = shared.segments.read();
        let (mut clean, mut dirty) = (0, 0);
        for pair in segments.windows(2) {
            let bytes = if pair[1].base <= clean_below {
                &mut clean
            } else {
                &mut dirty
            };
            *bytes += pair[0].readable();
        }
        let purge = self.kept.is_some_and(|(bytes, since)| {
            bytes > clean / 4 && since.elapsed() >= shared.options.compaction.keep_deletions.max(LOOK_INTERVAL)
        });
        (dirty >= shared.options.segment_bytes.max(clean / 2) || purge).then_some(Due::Work)
    }

    pub(super) fn done(&mut self, done: Done, began: Instant) {
        let took = began.elapsed();
        self.failing = None;
        self.asked_not_before = Some(Instant::now() + (took * ASKED_PAUSE).max(LEAST_ASKED_PAUSE));
        self.kept = (done.kept_bytes > 0).then(|| (done.kept_bytes, Instant::now()));
        debug!(
            ?took,
            records = done.dropped,
            kept_deletions = done.kept_bytes,
            "compacted the log"
        );
    }

    pub(super) fn failed(&mut self, shared: &Shared, error: &LogError) {
        let text = format!("cannot compact the log: {error}");
        if self.failing.replace(Instant::now()).is_none() {
            warn!("{text}");
        }
        shared.note_error(&text);
    }
}
