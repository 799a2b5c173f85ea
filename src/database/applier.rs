//! The background consumer: follows the log from the store's own positions.
//!
//! One thread. A record is applied to the hot tier (and so is visible) at once, and handed to [`super::write_behind`], which
//! alone changes the store. An apply that fails is fatal, never skipped: the node then says so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::hot::{At, EXPECTED};
use super::write_behind::{Reached, WriteBehind};
use super::{Service, Status, now_ms};
use crate::log::{Follower, LogError, LogRecord, Mark, Marks, Payload, Positions, TopicPartition};
use crate::store::{Change, ChangeKind, Checkpoint, Entry, Meta, PartitionPosition, StoreError, Value};

/// Records that are handed to the writer at once.
const BATCH: usize = 1_000;
/// How long a poll waits when there is nothing to read.
const IDLE: Duration = Duration::from_millis(100);
/// How long the log may take to tell its end.
const ASK_ENDS: Duration = Duration::from_secs(2);
/// How often the log is asked for its end.
const ENDS_INTERVAL: Duration = Duration::from_secs(1);
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
    /// Applied, not handed over yet.
    batch: Vec<Change>,
    last_ends: Option<Instant>,
    /// When the log's ends were asked, and what they were: reached, this node is as of that time.
    ends: Option<(u64, Positions)>,
    /// Log ends at start; serving begins when they are reached.
    goal: Option<Positions>,
    /// Of partitions that were met later (a database that another node created): what was there then. Groups there may
    /// belong to what has been applied long ago, and are not waited for.
    old_ends: Positions,
    started: Instant,
    start_positions: Positions,
    /// After the last applied record, of topics with several partitions.
    met: Positions,
}

/// Starts the applier from the store's checkpoint. Blocking until the log has told its ends; then the thread goes on by itself.
pub fn start(service: Arc<Service>, checkpoint: &Checkpoint) -> Result<JoinHandle<()>, LogError> {
    let (positions, marks) = usable_positions(&service, checkpoint)?;
    service.look_for_copies().map_err(|e| LogError::Failed(e.to_string()))?;
    let mut applier = Applier::new(service.clone(), positions, &marks)?;
    let not_started = |e| LogError::Failed(format!("cannot start the applier thread: {e}"));
    let writer = WriteBehind::start(service).map_err(not_started)?;
    std::thread::Builder::new()
        .name("applier".into())
        .spawn(move || applier.run(writer))
        .map_err(not_started)
}

/// What the store's source must be for its positions to mean something.
pub(super) fn source_of(service: &Service, database: u16) -> Option<String> {
    service.log.identity(database).map(|topic| match topic.partitions {
        1 => format!("{} {} partitions=1", topic.topic, topic.id),
        // The keys' homes are what they are by this function.
        n => format!("{} {} partitions={n} {}", topic.topic, topic.id, topic.partitioner),
    })
}

/// The checkpoint's positions, as far as they belong to today's topics; the others are cleared and read anew.
fn usable_positions(service: &Service, checkpoint: &Checkpoint) -> Result<(Positions, Marks), LogError> {
    let (mut positions, mut marks) = (Positions::new(), Marks::new());
    for (&database, known) in &checkpoint.databases {
        let source = (database < service.database_count())
            .then(|| source_of(service, database))
            .flatten();
        let retention = service.log.tombstone_retention(database);
        let (now, as_of) = (now_ms(), known.partitions.values().map(|p| p.as_of));
        let (oldest, newest) = (as_of.clone().min().unwrap_or(0), as_of.max().unwrap_or(0));
        let reason = if source.as_deref() != Some(known.source.as_str()) {
            Some(format!(
                "it was filled from {}, the topic is now {}",
                known.source,
                source.as_deref().unwrap_or("gone")
            ))
        } else if retention.is_some() && newest > now {
            Some("it is from the future: the clock was set back, and how long this node was away is not known, so deletes may have been missed".into())
        } else if retention.is_some_and(|r| now.saturating_sub(oldest) as u128 > r.as_millis() * 9 / 10) {
            Some("it is older than the topic keeps its tombstones (delete.retention.ms), so deletes may have been missed".into())
        } else {
            None
        };
        if let Some(reason) = reason {
            warn!(database, reason, "rebuilding the local store of a database");
            service.counters.rebuilds.fetch_add(1, Ordering::Relaxed);
            service
                .clear_store(database)
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
            let at = TopicPartition { database, partition };
            positions.insert(at, position.next_offset);
            marks.extend(position.mark.map(|(offset, epoch)| (at, Mark { offset, epoch })));
        }
    }
    Ok((positions, marks))
}

/// How far everything is that was applied up to these positions.
fn reached(service: &Service, positions: &Positions, marks: &Marks) -> Reached {
    let as_of = |at: &TopicPartition| {
        let partitions = service.databases[at.database as usize].partitions();
        let partition = partitions.get(at.partition as usize);
        partition.map_or(0, |partition| partition.as_of.load(Ordering::Relaxed)) as u64
    };
    let position = |(at, &next_offset): (&TopicPartition, &u64)| {
        let as_of = as_of(at);
        let mark = marks.get(at).map(|mark| (mark.offset, mark.epoch));
        let position = PartitionPosition {
            next_offset,
            as_of,
            mark,
        };
        (*at, position)
    };
    Reached {
        positions: positions.iter().map(position).collect(),
        records: service.counters.records_applied.load(Ordering::Relaxed),
    }
}

/// True if both are of one group.
fn is_member(record: &LogRecord, front: &LogRecord) -> bool {
    let id = |record: &LogRecord| record.group.map(|group| group.id);
    id(record).is_some() && id(record) == id(front)
}

impl Applier {
    fn new(service: Arc<Service>, positions: Positions, marks: &Marks) -> Result<Self, LogError> {
        let goal = service.log.ends(Duration::from_secs(30))?;
        let follower = service.log.follow_marked(&positions, marks)?;
        for (at, &offset) in &positions {
            if let Some(partition) = service.databases[at.database as usize]
                .partitions()
                .get(at.partition as usize)
            {
                partition.applied.fetch_max(offset, Ordering::AcqRel);
                partition.stored.fetch_max(offset, Ordering::AcqRel);
            }
        }
        service.behind.begin(reached(&service, &positions, marks));
        Ok(Applier {
            service,
            follower,
            waiting: VecDeque::new(),
            front_members: 0,
            waiting_since: None,
            batch: Vec::new(),
            last_ends: None,
            ends: None,
            old_ends: goal.clone(),
            goal: Some(goal),
            started: Instant::now(),
            met: positions.clone(),
            start_positions: positions,
        })
    }

    fn run(&mut self, writer: JoinHandle<Result<(), StoreError>>) {
        let followed = self.follow_and_start_over();
        if let Err(error) = &followed {
            self.fail(error);
        }
        self.service.behind.stop();
        let panicked = |_| {
            Err(StoreError::Engine {
                doing: "write",
                cause: "the thread that writes panicked".into(),
            })
        };
        // What the writer failed of while it was followed has been told.
        if let (Ok(()), Err(error)) = (followed, writer.join().unwrap_or_else(panicked)) {
            self.fail(&error.into());
        }
    }

    fn follow_and_start_over(&mut self) -> Result<(), ApplyError> {
        loop {
            match self.follow() {
                Err(ApplyError::Log(LogError::PositionLost(reason) | LogError::IdentityChanged(reason))) => {
                    warn!(reason, "rebuilding the local store from the log");
                    self.start_over(&reason)?;
                }
                ended => return ended,
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
        service.behind.begin(Reached::default());
        for number in 0..service.database_count() {
            let database = service.database(number);
            if let Some(why) = service.log.incomplete(number) {
                return Err(ApplyError::Log(LogError::Failed(why)));
            }
            let (known, now) = (database.partitions().len(), service.log.identity(number));
            if let Some(topic) = now.filter(|topic| known != 0 && topic.partitions as usize != known) {
                return Err(ApplyError::Log(LogError::Failed(format!(
                    "topic {} has {} partitions now, not {known}: its keys have other homes; restart this node to read it anew",
                    topic.topic, topic.partitions
                ))));
            }
            database.forget();
            service.clear_store(number)?;
        }
        *self = Applier::new(service, Positions::new(), &Marks::new())?;
        Ok(())
    }

    /// Follows the log until the service stops.
    fn follow(&mut self) -> Result<(), ApplyError> {
        let mut records = Vec::new();
        while !self.service.is_stopping() {
            self.follower.poll(&mut records, IDLE)?;
            self.service.notice_databases();
            let mut records = records.drain(..);
            for index in 0..records.len() {
                if index % EXPECTED == 0 {
                    self.expect(records.as_slice());
                }
                if let Some(record) = records.next() {
                    self.take(record)?;
                }
            }
            drop(records);
            self.give_up_on_late_groups()?;
            self.tell_applied();
            self.hand_over()?;
            self.ask_ends();
            self.note_progress();
        }
        Ok(())
    }

    /// Has the places of the next records in memory looked for all at once, as far as they are of one database.
    fn expect(&self, next: &[LogRecord]) {
        let Some(database) = next.first().map(|record| record.at.database) else {
            return;
        };
        let alike = next.iter().take_while(|record| record.at.database == database);
        self.service.expect(database, alike.map(|record| &record.key[..]));
    }

    /// Takes one record: alone it is applied, in a group it waits until the group is complete, and so does
    /// everything behind it.
    fn take(&mut self, record: LogRecord) -> Result<(), ApplyError> {
        if !self.old_ends.contains_key(&record.at) {
            // If it is not to be had, groups are waited for: later, not wrong.
            let ends = self.service.log.ends(ASK_ENDS).unwrap_or_default();
            self.old_ends
                .insert(record.at, ends.get(&record.at).copied().unwrap_or(0));
        }
        if self.waiting.is_empty() && (self.goal.is_some() || !self.is_to_wait(&record)) {
            return self.apply(record);
        }
        self.waiting_since.get_or_insert_with(Instant::now);
        let front = self.waiting.front().unwrap_or(&record);
        self.front_members += u32::from(is_member(&record, front));
        self.waiting.push_back(record);
        self.apply_complete_groups()
    }

    /// True if the record is to be shown together with others.
    fn is_to_wait(&self, record: &LogRecord) -> bool {
        let is_old = self.old_ends.get(&record.at).is_some_and(|end| record.offset < *end);
        record.group.is_some_and(|group| group.records > 1) && !is_old
    }

    /// Applies from the front of the waiting records as far as groups are complete.
    fn apply_complete_groups(&mut self) -> Result<(), ApplyError> {
        while let Some(first) = self.waiting.front() {
            let Some(group) = first.group.filter(|_| self.is_to_wait(first)) else {
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
        let mut group = Vec::from(group);
        // Copies go before what hides them, or they would be shown for a moment.
        group.sort_by_key(|r| r.at.partition == service.log.partition(r.at.database, &r.key));
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

    /// Makes one record visible and puts it into the batch for the writer.
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
        let kind = match payload {
            Payload::Value { value, expire_at } => ChangeKind::Put {
                key,
                entry: entry(Value::String(value), expire_at),
            },
            Payload::Unreadable { reason } => ChangeKind::Put {
                key,
                entry: entry(Value::Unreadable(reason.into()), None),
            },
            Payload::Tombstone => ChangeKind::Delete { key },
            Payload::Flush => {
                self.service.flushed(place.database, at);
                ChangeKind::Flush
            }
        };
        let change = Change {
            database: place.database,
            partition: place.partition,
            offset,
            kind,
        };
        if database.partitions().len() > 1 {
            self.apply_spread(change)
        } else {
            self.show(change, None)
        }
    }

    /// Applies a record of a topic with several partitions: the key may have others there.
    fn apply_spread(&mut self, change: Change) -> Result<(), ApplyError> {
        // What was applied before must be found.
        if self.service.may_have_copies(&change) {
            self.push(None)?;
        }
        let at = |partition| TopicPartition {
            database: change.database,
            partition,
        };
        self.met.insert(at(change.partition), change.offset + 1);
        let home = match &change.kind {
            ChangeKind::Put { key, .. } | ChangeKind::Delete { key } => {
                self.service.log.partition(change.database, key)
            }
            ChangeKind::Flush => change.partition,
        };
        let ahead = At {
            partition: home,
            offset: self.met.get(&at(home)).copied().unwrap_or(0),
        };
        match self.service.settle(change, &mut self.batch)? {
            Some(change) => {
                let ahead = (change.partition != home).then_some(ahead);
                self.show(change, ahead)
            }
            None => Ok(()),
        }
    }

    /// Makes a change visible, unless memory has what stands in the log from `ahead` on.
    fn show(&mut self, change: Change, ahead: Option<At>) -> Result<(), ApplyError> {
        let database = &self.service.databases[change.database as usize];
        let at = At {
            partition: change.partition,
            offset: change.offset,
        };
        let is_change = match &change.kind {
            ChangeKind::Put { .. } => true,
            // Behind what a flush has hidden, or behind nothing, a tombstone is no change.
            ChangeKind::Delete { key } => {
                database.watches.is_watched(key) && self.service.read(change.database, key, true)?.entry.is_some()
            }
            ChangeKind::Flush => false,
        };
        // While loading nobody reads: what memory knows already is kept right.
        let insert = self.goal.is_none();
        let news = match &change.kind {
            ChangeKind::Put { key, entry } => database.hot.apply(key, at, Some(entry.clone()), insert, ahead),
            ChangeKind::Delete { key } => database.hot.apply(key, at, None, insert, ahead),
            ChangeKind::Flush => false,
        };
        // An own record comes by a second time: watchers were told when it was handed to the log.
        if let (true, ChangeKind::Put { key, .. } | ChangeKind::Delete { key }) = (news && is_change, &change.kind) {
            database.watches.changed(key);
        }
        self.batch.push(change);
        if self.batch.len() >= BATCH {
            self.push(None)?;
        }
        Ok(())
    }

    /// Tells how far this node's readers see: up to the first record per partition that waits for its group. Nobody reads
    /// while loading, and only the store knows then.
    fn tell_applied(&self) {
        let service = &self.service;
        if self.goal.is_some() {
            return;
        }
        let mut positions = self.follower.positions();
        for record in &self.waiting {
            positions
                .entry(record.at)
                .and_modify(|position| *position = record.offset.min(*position));
        }
        let mut more = false;
        for (at, position) in positions {
            if let Some(partition) = self.partition(&at) {
                more |= partition.applied.fetch_max(position, Ordering::AcqRel) < position;
            }
        }
        if more {
            service.progress.notify_waiters();
        }
    }

    /// Hands what was applied to the writer, with how far that is. The follower's positions are past everything that it
    /// has given: they hold only when no record waits for its group.
    fn hand_over(&mut self) -> Result<(), ApplyError> {
        let service = self.service.clone();
        let mut so_far = None;
        if self.waiting.is_empty() {
            service
                .counters
                .records_skipped
                .store(self.follower.skipped(), Ordering::Relaxed);
            so_far = Some((self.follower.positions(), self.follower.marks()));
        }
        self.push(so_far)?;
        service.progress.notify_waiters();
        Ok(())
    }

    fn push(&mut self, so_far: Option<(Positions, Marks)>) -> Result<(), ApplyError> {
        let service = &self.service;
        if !self.batch.is_empty() {
            let counters = &service.counters;
            counters
                .records_applied
                .fetch_add(self.batch.len() as u64, Ordering::Relaxed);
            counters.last_applied_ms.store(now_ms(), Ordering::Relaxed);
        }
        let so_far = so_far.map(|(positions, marks)| reached(service, &positions, &marks));
        Ok(service.behind.push(service, &mut self.batch, so_far)?)
    }

    /// Asks the log for its ends now and then, so that lag and `as_of` are known.
    fn ask_ends(&mut self) {
        if self.last_ends.is_some_and(|asked| asked.elapsed() < ENDS_INTERVAL) {
            return;
        }
        self.last_ends = Some(Instant::now());
        let asked_at = now_ms();
        match self.service.log.ends(ASK_ENDS) {
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

    fn has_applied(&self, ends: &Positions) -> bool {
        let positions = self.follower.positions();
        self.waiting.is_empty()
            && ends
                .iter()
                .all(|(at, end)| positions.get(at).is_some_and(|position| position >= end))
    }

    fn note_progress(&mut self) {
        if let Some((asked_at, ends)) = &self.ends
            && self.has_applied(ends)
        {
            for at in ends.keys() {
                if self.service.log.incomplete(at.database).is_some() {
                    continue;
                }
                if let Some(partition) = self.partition(at) {
                    partition.as_of.store(*asked_at as i64, Ordering::Relaxed);
                }
            }
            self.ends = None;
        }
        let Some(goal) = &self.goal else { return };
        // A position that is no more, or of another log, may be past the end.
        if self.follower.is_confirmed() && self.has_applied(goal) {
            self.service.behind.show();
            info!(
                records = self.service.counters.records_applied.load(Ordering::Relaxed),
                seconds = self.started.elapsed().as_secs_f64(),
                "caught up with the log: serving"
            );
            self.goal = None;
            self.tell_applied();
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
}
