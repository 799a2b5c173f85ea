//! The background consumer: follows the log from the store's own positions and alone changes the store.
//!
//! One thread. A record is applied to the hot tier (and so is visible) at once, and goes to the store with the next batch; the
//! checkpoint is written after the store's data is durable, so a position never runs ahead of its data. An apply that fails is
//! fatal, never skipped: the node then says so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::hot::At;
use super::{Service, Status, now_ms};
use crate::log::{Follower, LogError, LogRecord, Payload, Positions, TopicPartition};
use crate::store::{
    Change, ChangeKind, Checkpoint, DatabaseCheckpoint, Entry, Meta, PartitionPosition, StoreError, Value,
};

/// Records of one batch to the store (facts: large batches cost sled memory).
const BATCH: usize = 1_000;
/// Bytes of values of one batch to the store.
const BATCH_BYTES: usize = 4 << 20;
/// How long a poll waits when there is nothing to read.
const IDLE: Duration = Duration::from_millis(100);
/// Entries that one step of the store's background work looks at.
const SWEEP: usize = 1_000;
/// How often the log is asked for its end.
const ENDS_INTERVAL: Duration = Duration::from_secs(1);
/// A checkpoint is written this often even if nothing was applied: its `as_of` tells how fresh the store is.
const IDLE_CHECKPOINT: Duration = Duration::from_secs(60);
/// A group whose records do not all come within this time is applied as far as it came (forged or broken).
const GROUP_PATIENCE: Duration = Duration::from_secs(2);
/// ... or within this many records that wait behind it.
const GROUP_RECORDS: usize = 100_000;

#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error("{0}")]
    Log(#[from] LogError),
    #[error("{0}")]
    Store(#[from] StoreError),
}

struct Applier {
    service: Arc<Service>,
    follower: Box<dyn Follower>,
    waiting: VecDeque<LogRecord>,
    /// Records that have come of the group that waits in front.
    front_members: u32,
    waiting_since: Option<Instant>,
    batch: Vec<Change>,
    batch_bytes: usize,
    applied_since_checkpoint: bool,
    last_checkpoint: Instant,
    /// The store has background work left.
    sweeping: bool,
    last_ends: Option<Instant>,
    /// When the log's ends were asked, and what they were: reached, the store is as of that time.
    ends: Option<(u64, Positions)>,
    /// Log ends at start; serving begins when they are reached.
    goal: Option<Positions>,
    started: Instant,
    start_positions: Positions,
}

/// Starts the applier from the store's checkpoint. Blocking until the log has told its ends; then the thread goes on by itself.
pub fn start(service: Arc<Service>, checkpoint: &Checkpoint) -> Result<JoinHandle<()>, LogError> {
    let positions = usable_positions(&service, checkpoint)?;
    let mut applier = Applier::new(service, positions)?;
    std::thread::Builder::new()
        .name("applier".into())
        .spawn(move || applier.run())
        .map_err(|e| LogError::Failed(format!("cannot start the applier thread: {e}")))
}

/// What the store's source must be for its positions to mean something.
fn source_of(service: &Service, database: u16) -> Option<String> {
    service
        .log
        .identity(database)
        .map(|topic| format!("{} {} partitions={}", topic.topic, topic.id, topic.partitions))
}

/// The checkpoint's positions, as far as they belong to today's topics; the others are cleared and read anew.
fn usable_positions(service: &Service, checkpoint: &Checkpoint) -> Result<Positions, LogError> {
    let mut positions = Positions::new();
    for (&database, known) in &checkpoint.databases {
        let source = (database < service.database_count())
            .then(|| source_of(service, database))
            .flatten();
        let retention = service.log.tombstone_retention(database);
        let oldest = known.partitions.values().map(|p| p.as_of).min().unwrap_or(0);
        let reason = if source.as_deref() != Some(known.source.as_str()) {
            Some(format!(
                "it was filled from {}, the topic is now {}",
                known.source,
                source.as_deref().unwrap_or("gone")
            ))
        } else if retention.is_some_and(|r| now_ms().saturating_sub(oldest) as u128 > r.as_millis() * 9 / 10) {
            Some("it is older than the topic keeps its tombstones (delete.retention.ms), so deletes may have been missed".into())
        } else {
            None
        };
        if let Some(reason) = reason {
            warn!(database, reason, "rebuilding the local store of a database");
            service.counters.rebuilds.fetch_add(1, Ordering::Relaxed);
            service
                .store
                .clear(database)
                .map_err(|e| LogError::Failed(e.to_string()))?;
            continue;
        }
        for (&partition, position) in &known.partitions {
            if let Some(partition) = service.databases[database as usize]
                .partitions()
                .get(partition as usize)
            {
                partition.as_of.store(position.as_of as i64, Ordering::Relaxed);
            }
            positions.insert(TopicPartition { database, partition }, position.next_offset);
        }
    }
    Ok(positions)
}

/// True if both are of one group.
fn is_member(record: &LogRecord, front: &LogRecord) -> bool {
    let id = |record: &LogRecord| record.group.map(|group| group.id);
    id(record).is_some() && id(record) == id(front)
}

impl Applier {
    fn new(service: Arc<Service>, positions: Positions) -> Result<Self, LogError> {
        let goal = service.log.ends(Duration::from_secs(30))?;
        let follower = service.log.follow(&positions)?;
        for (at, &offset) in &positions {
            if let Some(partition) = service.databases[at.database as usize]
                .partitions()
                .get(at.partition as usize)
            {
                partition.applied.fetch_max(offset, Ordering::AcqRel);
                partition.stored.fetch_max(offset, Ordering::AcqRel);
            }
        }
        Ok(Applier {
            service,
            follower,
            waiting: VecDeque::new(),
            front_members: 0,
            waiting_since: None,
            batch: Vec::new(),
            batch_bytes: 0,
            applied_since_checkpoint: false,
            last_checkpoint: Instant::now(),
            sweeping: true,
            last_ends: None,
            ends: None,
            goal: Some(goal),
            started: Instant::now(),
            start_positions: positions,
        })
    }

    fn run(&mut self) {
        loop {
            match self.follow() {
                Ok(()) => return,
                Err(ApplyError::Log(LogError::PositionLost(reason) | LogError::IdentityChanged(reason))) => {
                    warn!(reason, "rebuilding the local store from the log");
                    if let Err(error) = self.start_over(&reason) {
                        return self.fail(&error);
                    }
                }
                Err(error) => return self.fail(&error),
            }
        }
    }

    fn fail(&self, error: &ApplyError) {
        error!(%error, "the applier stopped: this node no longer follows the log and refuses commands");
        self.service.set_status(Status::Failed(error.to_string()));
    }

    /// Drops everything and reads the log from its start.
    fn start_over(&mut self, reason: &str) -> Result<(), ApplyError> {
        let service = self.service.clone();
        service.counters.rebuilds.fetch_add(1, Ordering::Relaxed);
        service.set_status(Status::Loading {
            applied: 0,
            total: 0,
            rebuilding: Some(reason.to_owned()),
        });
        for number in 0..service.database_count() {
            let database = service.database(number);
            let (known, now) = (database.partitions().len(), service.log.identity(number));
            if let Some(topic) = now.filter(|topic| known != 0 && topic.partitions as usize != known) {
                return Err(ApplyError::Log(LogError::Failed(format!(
                    "topic {} has {} partitions now, not {known}: its keys have other homes; restart this node to read it anew",
                    topic.topic, topic.partitions
                ))));
            }
            database.forget();
            service.store.clear(number)?;
        }
        *self = Applier::new(service, Positions::new())?;
        Ok(())
    }

    /// Follows the log until the service stops.
    fn follow(&mut self) -> Result<(), ApplyError> {
        let mut records = Vec::new();
        while !self.service.is_stopping() {
            let idle = if self.batch.is_empty() && !self.sweeping {
                IDLE
            } else {
                Duration::ZERO
            };
            self.follower.poll(&mut records, idle)?;
            let nothing_new = records.is_empty();
            for record in records.drain(..) {
                self.take(record)?;
            }
            self.give_up_on_late_groups()?;
            self.store_batch()?;
            self.tell_positions();
            if nothing_new && self.sweeping {
                self.sweeping = self.service.store.sweep(SWEEP)?;
            }
            self.ask_ends();
            self.note_progress();
            self.checkpoint_if_due(false)?;
        }
        self.checkpoint_if_due(true)
    }

    /// Takes one record: alone it is applied, in a group it waits until the group is complete, and so does
    /// everything behind it.
    fn take(&mut self, record: LogRecord) -> Result<(), ApplyError> {
        let alone = record.group.is_none_or(|g| g.records <= 1);
        if self.waiting.is_empty() && (alone || self.goal.is_some()) {
            return self.apply(record);
        }
        self.waiting_since.get_or_insert_with(Instant::now);
        let front = self.waiting.front().unwrap_or(&record);
        self.front_members += u32::from(is_member(&record, front));
        self.waiting.push_back(record);
        self.apply_complete_groups()
    }

    /// Applies from the front of the waiting records as far as groups are complete.
    fn apply_complete_groups(&mut self) -> Result<(), ApplyError> {
        while let Some(first) = self.waiting.front() {
            let Some(group) = first.group.filter(|g| g.records > 1) else {
                let record = self.waiting.pop_front().expect("front was there");
                self.apply(record)?;
                self.front_members = self.count_front_members();
                continue;
            };
            if self.front_members < group.records {
                return Ok(());
            }
            self.apply_group(group.id)?;
            self.front_members = self.count_front_members();
        }
        self.waiting_since = None;
        Ok(())
    }

    fn count_front_members(&self) -> u32 {
        match self.waiting.front() {
            Some(front) if front.group.is_some() => self.waiting.iter().filter(|r| is_member(r, front)).count() as u32,
            _ => 0,
        }
    }

    /// Applies all waiting records of a group; they become visible at once to whoever reads several keys.
    fn apply_group(&mut self, id: u128) -> Result<(), ApplyError> {
        let service = self.service.clone();
        let _group = service.groups.write();
        let (group, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|r| r.group.is_some_and(|g| g.id == id));
        self.waiting = rest;
        for record in group {
            self.apply(record)?;
        }
        Ok(())
    }

    fn give_up_on_late_groups(&mut self) -> Result<(), ApplyError> {
        let late = self.waiting_since.is_some_and(|since| since.elapsed() > GROUP_PATIENCE);
        if !late && self.waiting.len() <= GROUP_RECORDS {
            return Ok(());
        }
        if let Some(first) = self.waiting.front() {
            warn!(
                database = first.at.database,
                partition = first.at.partition,
                offset = first.offset,
                "a group of records is incomplete; applying what came of it"
            );
        }
        for record in std::mem::take(&mut self.waiting) {
            self.apply(record)?;
        }
        self.front_members = 0;
        self.waiting_since = None;
        Ok(())
    }

    /// Makes one record visible and puts it into the batch for the store.
    fn apply(&mut self, record: LogRecord) -> Result<(), ApplyError> {
        let LogRecord {
            at: place,
            offset,
            timestamp,
            key,
            payload,
            ..
        } = record;
        let at = At {
            partition: place.partition,
            offset,
        };
        let database = &self.service.databases[place.database as usize];
        let entry = |value, expire_at| Entry {
            meta: Meta {
                partition: place.partition,
                offset,
                timestamp,
                expire_at,
            },
            value,
        };
        self.batch_bytes += key.len();
        let kind = match payload {
            Payload::Value { value, expire_at } => {
                self.batch_bytes += value.len();
                ChangeKind::Put {
                    key,
                    entry: entry(Value::String(value), expire_at),
                }
            }
            Payload::Unreadable { reason } => ChangeKind::Put {
                key,
                entry: entry(Value::Unreadable(reason.into()), None),
            },
            Payload::Tombstone => ChangeKind::Delete { key },
            Payload::Flush => {
                self.service.flushed(place.database, at);
                self.sweeping = true;
                ChangeKind::Flush
            }
        };
        // While loading nobody reads: the store alone is filled, and what memory knows already is kept right.
        let insert = self.goal.is_none();
        let news = match &kind {
            ChangeKind::Put { key, entry } => database.hot.apply(key, at, Some(entry.clone()), insert),
            ChangeKind::Delete { key } => database.hot.apply(key, at, None, insert),
            ChangeKind::Flush => false,
        };
        // An own record comes by a second time: watchers were told when it was handed to the log.
        if let (true, ChangeKind::Put { key, .. } | ChangeKind::Delete { key }) = (news, &kind) {
            database.watches.changed(key);
        }
        self.batch.push(Change {
            database: place.database,
            partition: place.partition,
            offset,
            kind,
        });
        if self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES {
            self.store_batch()?;
        }
        Ok(())
    }

    /// Writes the batch to the store and lets go of what was pinned for it.
    fn store_batch(&mut self) -> Result<(), ApplyError> {
        let service = &self.service;
        if !self.batch.is_empty() {
            service.store.apply(&self.batch)?;
            for change in &self.batch {
                if let ChangeKind::Put { key, .. } | ChangeKind::Delete { key } = &change.kind {
                    let at = At {
                        partition: change.partition,
                        offset: change.offset,
                    };
                    service.databases[change.database as usize].hot.stored(key, at);
                }
            }
            service
                .counters
                .records_applied
                .fetch_add(self.batch.len() as u64, Ordering::Relaxed);
            service.counters.last_applied_ms.store(now_ms(), Ordering::Relaxed);
            self.batch.clear();
            self.batch_bytes = 0;
            self.applied_since_checkpoint = true;
        }
        service.progress.notify_waiters();
        Ok(())
    }

    /// Tells how far the store is. The follower's positions are past everything that it has given: they hold only
    /// when all of it is in the store and no record waits for its group.
    fn tell_positions(&self) {
        let service = &self.service;
        let mut positions = self.follower.positions();
        for record in &self.waiting {
            let position = positions.entry(record.at).or_insert(record.offset);
            *position = (*position).min(record.offset);
        }
        for (at, offset) in &positions {
            if let Some(partition) = self.partition(at) {
                partition.applied.fetch_max(*offset, Ordering::AcqRel);
            }
        }
        if self.waiting.is_empty() {
            service.notice_databases();
            for (at, offset) in positions {
                if let Some(partition) = self.partition(&at) {
                    partition.stored.fetch_max(offset, Ordering::AcqRel);
                }
            }
            service
                .counters
                .records_skipped
                .store(self.follower.skipped(), Ordering::Relaxed);
        }
        service.progress.notify_waiters();
    }

    /// Asks the log for its ends now and then, so that lag and `as_of` are known.
    fn ask_ends(&mut self) {
        if self.last_ends.is_some_and(|asked| asked.elapsed() < ENDS_INTERVAL) {
            return;
        }
        self.last_ends = Some(Instant::now());
        let asked_at = now_ms();
        match self.service.log.ends(Duration::from_secs(2)) {
            Ok(ends) => {
                for (at, &end) in &ends {
                    if let Some(partition) = self.partition(at) {
                        partition.end.store(end, Ordering::Relaxed);
                    }
                }
                if self.ends.is_none() {
                    self.ends = Some((asked_at, ends));
                }
            }
            // The log itself tells of lost and found connections; here it only means that `as_of` does not advance.
            Err(error) => debug!(%error, "the log's end is not known"),
        }
    }

    fn partition(&self, at: &TopicPartition) -> Option<&super::Partition> {
        self.service.databases[at.database as usize]
            .partitions()
            .get(at.partition as usize)
    }

    fn has_stored(&self, ends: &Positions) -> bool {
        ends.iter().all(|(at, &end)| {
            self.partition(at)
                .is_some_and(|p| p.stored.load(Ordering::Acquire) >= end)
        })
    }

    fn note_progress(&mut self) {
        if let Some((asked_at, ends)) = &self.ends
            && self.has_stored(ends)
        {
            for at in ends.keys() {
                if let Some(partition) = self.partition(at) {
                    partition.as_of.store(*asked_at as i64, Ordering::Relaxed);
                }
            }
            self.ends = None;
        }
        let Some(goal) = &self.goal else { return };
        if self.has_stored(goal) {
            info!(
                records = self.service.counters.records_applied.load(Ordering::Relaxed),
                seconds = self.started.elapsed().as_secs_f64(),
                "caught up with the log: serving"
            );
            self.goal = None;
            self.service.set_status(Status::Serving);
            return;
        }
        let done = |positions: &Positions| -> u64 {
            goal.keys()
                .map(|at| {
                    let start = self.start_positions.get(at).copied().unwrap_or(0);
                    positions.get(at).copied().unwrap_or(0).saturating_sub(start)
                })
                .sum()
        };
        let rebuilding = match &*self.service.status() {
            Status::Loading { rebuilding, .. } => rebuilding.clone(),
            _ => None,
        };
        self.service.set_status(Status::Loading {
            applied: done(&self.follower.positions()),
            total: done(goal),
            rebuilding,
        });
    }

    fn checkpoint_if_due(&mut self, now: bool) -> Result<(), ApplyError> {
        let interval = self.service.settings.checkpoint_interval_ms.load(Ordering::Relaxed);
        let since = self.last_checkpoint.elapsed();
        let due = since >= Duration::from_millis(interval) && self.applied_since_checkpoint || since >= IDLE_CHECKPOINT;
        if !(now || due) || !self.waiting.is_empty() {
            return Ok(());
        }
        let mut checkpoint = Checkpoint::default();
        for (at, next_offset) in self.follower.positions() {
            let Some(source) = source_of(&self.service, at.database) else {
                continue;
            };
            let as_of = self.partition(&at).map_or(0, |p| p.as_of.load(Ordering::Relaxed)) as u64;
            checkpoint
                .databases
                .entry(at.database)
                .or_insert_with(|| DatabaseCheckpoint {
                    source,
                    partitions: Default::default(),
                })
                .partitions
                .insert(at.partition, PartitionPosition { next_offset, as_of });
        }
        self.service.store.checkpoint(&checkpoint)?;
        let counters = &self.service.counters;
        counters.last_checkpoint_ms.store(now_ms(), Ordering::Relaxed);
        let applied = counters.records_applied.load(Ordering::Relaxed);
        counters.last_checkpoint_records.store(applied, Ordering::Relaxed);
        self.applied_since_checkpoint = false;
        self.last_checkpoint = Instant::now();
        Ok(())
    }
}
