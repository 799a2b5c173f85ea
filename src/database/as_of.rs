//! The time up to which everything in the log is known here, per partition, and whether deletes may
//! have been missed since. The log keeps a tombstone only for a time
//! ([`Log::tombstone_retention`](crate::log::Log::tombstone_retention)). A reader that comes later
//! finds neither the tombstone nor the value that it deleted.
//!
//! `as_of` is the time *before* the log was asked for the end that this node then reached. Records
//! are judged after they were read and before they are applied: if `as_of` is not too old even
//! then, they were read in time. A partition whose position stands still has missed nothing,
//! however long that lasts. So a node that is cut off goes on serving until there is something new
//! to read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use tracing::warn;

use super::{Service, now_ms};
use crate::log::{LogError, LogRecord, Positions, TopicPartition};

/// While the node runs, any tombstone is assumed to exist for this long: it goes when its segment
/// is full and was cleaned twice. A node that is only busy must not take itself for one that was
/// away.
const LEAST: Duration = Duration::from_secs(3);
/// How often the log is asked for its end; and how often where it keeps tombstones for a short time
/// only.
const ASK: Duration = Duration::from_secs(1);
const ASK_OFTEN: Duration = Duration::from_millis(250);

/// A time on two clocks.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    /// The time of day, milliseconds since the epoch. That clock may be set.
    day: u64,
    /// The time since the machine was started, including its sleep. Not known for a checkpoint.
    uptime: Option<Duration>,
}

impl Moment {
    pub fn now() -> Moment {
        let uptime = clock_gettime(ClockId::Boottime);
        Moment {
            day: now_ms(),
            uptime: Some(Duration::new(uptime.tv_sec as u64, uptime.tv_nsec as u32)),
        }
    }

    /// The time since `then`, on the clock that shows more.
    fn since(&self, then: &Moment) -> Duration {
        let by_day = Duration::from_millis(self.day.saturating_sub(then.day));
        let by_uptime = self.uptime.zip(then.uptime).map(|(now, then)| now.saturating_sub(then));
        by_day.max(by_uptime.unwrap_or_default())
    }
}

/// True if what is known is so old that some tombstone since then may be gone.
pub(super) fn is_too_old(age: Duration, retention: Duration) -> bool {
    age > retention / 10 * 9
}

pub(super) struct AsOf {
    /// Ends that are not reached yet, and when the log was asked for them.
    asked: BTreeMap<TopicPartition, (Moment, u64)>,
    /// When each partition was last known completely. A partition that is read from its start has
    /// none: nothing was known before.
    known: BTreeMap<TopicPartition, Moment>,
    /// Everything below these positions was judged.
    judged: Positions,
    /// Databases that were not read from their start.
    resumed: BTreeSet<u16>,
    /// When the first record was read.
    begun: Option<Instant>,
}

impl AsOf {
    /// Begins at these positions of a checkpoint.
    pub fn at(service: &Service, positions: &Positions) -> AsOf {
        let moment = |at: &TopicPartition| {
            let as_of = service.partition(at)?.as_of.load(Ordering::Relaxed);
            let day = u64::try_from(as_of).ok().filter(|day| *day > 0)?;
            Some((*at, Moment { day, uptime: None }))
        };
        AsOf {
            asked: BTreeMap::new(),
            known: positions.keys().filter_map(moment).collect(),
            judged: positions.clone(),
            resumed: positions.keys().map(|at| at.database).collect(),
            begun: None,
        }
    }

    /// How often to ask the log for its ends.
    pub fn interval(service: &Service) -> Duration {
        let databases = 0..service.database_count();
        let shortest = databases
            .filter_map(|number| service.log.tombstone_retention(number))
            .min();
        shortest.map_or(ASK, |retention| (retention / 10).clamp(ASK_OFTEN, ASK))
    }

    /// Notes the ends, and when the log was asked for them.
    pub fn told(&mut self, asked: Moment, ends: &Positions) {
        for (&at, &end) in ends {
            self.asked.entry(at).or_insert((asked, end));
        }
    }

    /// True if the log has reported ends that are not reached yet.
    pub fn is_open(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Notes that everything below these positions was applied.
    pub fn applied(&mut self, service: &Service, positions: &Positions) {
        let AsOf { asked, known, .. } = self;
        asked.retain(|at, (moment, end)| {
            let is_reached = positions.get(at).is_some_and(|position| position >= end);
            if is_reached
                && service.log.incomplete(at.database).is_none()
                && let Some(partition) = service.partition(at)
            {
                partition.as_of.store(moment.day as i64, Ordering::Relaxed);
                known.insert(*at, *moment);
            }
            !is_reached
        });
    }

    /// Judges what was read up to `positions`, these records and gaps, before any of it is applied.
    pub fn judge(&mut self, service: &Service, positions: Positions, records: &[LogRecord]) -> Result<(), LogError> {
        if !records.is_empty() {
            self.begun.get_or_insert_with(Instant::now);
        }
        let now = Moment::now();
        for (at, position) in &positions {
            if self.judged.get(at) == Some(position) || service.log.incomplete(at.database).is_some() {
                continue;
            }
            let (Some(known), Some(retention)) = (self.known.get(at), service.log.tombstone_retention(at.database))
            else {
                continue;
            };
            let mut age = now.since(known);
            if known.uptime.is_none() {
                // The clock may have been set back since that checkpoint. The records that others
                // wrote meanwhile tell the time too.
                age = age.max(newest(records, at).since(known));
            }
            if is_too_old(age, retention.max(LEAST)) {
                return Err(LogError::PositionLost(format!(
                    "database {} partition {} was last known to be complete {} s ago, longer than its topic is sure to keep tombstones \
                     (delete.retention.ms is {} s): deletes may have been missed",
                    at.database,
                    at.partition,
                    age.as_secs(),
                    retention.as_secs_f64()
                )));
            }
        }
        self.judged = positions;
        Ok(())
    }

    /// Called when everything has been loaded.
    pub fn loaded(&self, service: &Service) {
        let took = self.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        for number in 0..service.database_count() {
            if let Some(retention) = service.log.tombstone_retention(number)
                && !self.resumed.contains(&number)
                && is_too_old(took, retention.max(LEAST))
            {
                warn!(
                    database = number,
                    "reading the topic took {} s, longer than it is sure to keep tombstones: what was deleted meanwhile may still be shown; \
                     raise its delete.retention.ms, then delete the local store",
                    took.as_secs()
                );
            }
        }
    }
}

/// The time of a partition's newest record among these, as its writer or the log stamped it.
fn newest(records: &[LogRecord], at: &TopicPartition) -> Moment {
    let times = records.iter().filter(|record| record.at == *at);
    let newest = times.map(|record| record.timestamp).max().unwrap_or(0);
    Moment {
        day: u64::try_from(newest).unwrap_or(0),
        uptime: None,
    }
}
