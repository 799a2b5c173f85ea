//! The applier: follows the log from the store's own positions.
//!
//! One thread. A record is applied to the hot tier, and so is visible, at once. It is handed to
//! [`super::write_behind`], which alone changes the store. An apply that fails is fatal, never
//! skipped: the node then reports that it has failed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::as_of::{AsOf, Moment};
use super::hot::{At, PREFETCHED};
use super::usable::{refuse_rebuild, usable_positions};
use super::visible::{Applied, Shown};
use super::waiting::{InPart, Waiting};
use super::write_behind::{Reached, WriteBehind};
use super::{Partition, Service, Status, now_ms, preload};
use crate::log::{Follower, LogError, LogRecord, Marks, Positions, TopicPartition};
use crate::model::{Change, Control, ElementName, Payload, Value, function_of};
use crate::store::{Checkpoint, PartitionPosition, StoreError};
use crate::supervise;

/// Records that are handed to the writer in one go.
const BATCH: usize = 1_000;
/// How long a poll waits when there is nothing to read.
const IDLE: Duration = Duration::from_millis(100);
/// How long the log may take to report its ends.
const ASK_ENDS: Duration = Duration::from_secs(2);
/// A way to a goal that takes no longer is too short for a compaction of what is written meanwhile.
const SHORT_WAY: Duration = Duration::from_secs(1);
/// The most goals, even if the ways to them stay long: others write faster than this node reads.
const MOST_GOALS: u32 = 8;
/// Pause before another attempt to read the log from its start.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// A group is waited for as long as its rest may be in the log, at most this long after the last of
/// its records that came (a partition without a leader, a transaction left open) ...
const GROUP_PATIENCE: Duration = Duration::from_secs(60);
/// ... and with this much waiting: the largest group, and what comes between its records.
const WAITING_BYTES: usize = 384 << 20;
/// Time between two log lines about this: there can be many.
const INCOMPLETE_TOLD: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error("{0}")]
    Log(#[from] LogError),
    #[error("{0}")]
    Store(#[from] StoreError),
}

/// The log's ends when loading began, and when they are reached, its ends at that time.
///
/// What is here at the first goal is not what the log held at any time: a record below it may have
/// been compacted away before it was read, in favour of one above it. Whatever was missing on the
/// way to a goal is here at the next one, unless the same happened on the way to that. So there are
/// at least two goals, and more as long as the last way was long enough for a compaction. (The
/// embedded log has no other writers, and memory has what this node wrote meanwhile: its second
/// goal is reached at once.)
struct Goal {
    ends: Positions,
    /// The first one is 0.
    number: u32,
    /// When the ends were asked for.
    asked: Instant,
}

struct Applier {
    service: Arc<Service>,
    follower: Box<dyn Follower>,
    waiting: Waiting,
    /// Once these positions are read, groups with a record before this number get no more complete:
    /// a group's records are all in the log before the first of them is read.
    whole: Option<(u64, Positions)>,
    /// The first waiting record, how many of its group have come, and since when that is so.
    front: Option<((u64, usize), Instant)>,
    /// When an incomplete group was last reported.
    incomplete_told: Option<Instant>,
    /// Marks up to the positions handed over; and the next ones, for partitions where records wait.
    marks: Marks,
    next_marks: Marks,
    /// Applied and not handed over yet.
    batch: Vec<Change>,
    /// The positions from which on all records go through the buffer. `None`: they are applied to
    /// memory alone, from where the writer takes them to the store. Nothing is being loaded, and
    /// nothing needs the store to be exactly at a position.
    exact_from: Option<Positions>,
    /// Records applied to memory alone, or passed over as memory had them, since the last
    /// hand-over.
    in_memory: u64,
    /// When to ask the log for its ends.
    next_ends: Instant,
    as_of: AsOf,
    /// What has to be applied before this node serves; `None` while it serves.
    goal: Option<Goal>,
    /// Groups of which a part was applied on the way to the first goal. A group's records are all
    /// in the log before the first of them is read.
    in_part: InPart,
    /// The ends of partitions found later (a database that another node created), as they were
    /// then. Groups below may belong to what was applied long ago, and are not waited for.
    old_ends: Positions,
    started: Instant,
    start_positions: Positions,
    /// The positions after the last applied record, for topics with several partitions.
    met: Positions,
    preload: Option<JoinHandle<Option<()>>>,
}

/// Starts the applier thread at the store's checkpoint. Blocks until the log has reported its ends.
pub fn start(service: Arc<Service>, checkpoint: &Checkpoint) -> Result<JoinHandle<Option<()>>, LogError> {
    let failed = |e: StoreError| LogError::Failed(e.to_string());
    service.notice_databases();
    let usable = |checkpoint| {
        let usable = usable_positions(&service, checkpoint)?;
        service.look_for_copies().map_err(failed)?;
        Ok::<_, LogError>(usable)
    };
    let (positions, marks) = match usable(checkpoint) {
        Err(_) if service.store.damage().is_some() && !service.settings.refuses_rebuild.load(Ordering::Relaxed) => {
            renew_store(&service).map_err(failed)?;
            usable(&Checkpoint::default())?
        }
        usable => usable?,
    };
    let mut applier = Applier::new(service.clone(), positions, &marks)?;
    let not_started = |e| LogError::Failed(format!("cannot start the applier thread: {e}"));
    let writer = WriteBehind::start(service).map_err(not_started)?;
    supervise::thread(&supervise::APPLIER, move || applier.run(writer)).map_err(not_started)
}

/// Throws a damaged store away. The empty one answers nothing before all was read.
fn renew_store(service: &Service) -> Result<(), StoreError> {
    if let Some(damage) = service.store.damage() {
        warn!(damage, "the local store is damaged; building it anew from the log");
        service.counters.rebuilds.fetch_add(1, Ordering::Relaxed);
        service.store.renew()?;
    }
    Ok(())
}

/// How far the node is once everything up to these positions was applied.
fn reached(service: &Service, positions: &Positions, marks: &Marks) -> Reached {
    let as_of = |at: &TopicPartition| {
        let partition = service.partition(at);
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

pub(super) fn has_reached(positions: &Positions, ends: &Positions) -> bool {
    let mut ends = ends.iter();
    ends.all(|(at, end)| positions.get(at).is_some_and(|position| position >= end))
}

impl Goal {
    /// True if another goal has to follow when this one is reached now.
    fn is_to_be_followed(&self) -> bool {
        let is_long = self.asked.elapsed() > SHORT_WAY && self.number + 1 < MOST_GOALS;
        self.number == 0 || is_long
    }
}

impl Applier {
    fn new(service: Arc<Service>, positions: Positions, marks: &Marks) -> Result<Self, LogError> {
        let asked = Instant::now();
        let ends = service.log.ends(Duration::from_secs(30))?;
        service.note_sources();
        let follower = service.log.follow_marked(&positions, marks)?;
        for (at, &offset) in &positions {
            if let Some(partition) = service.partition(at) {
                partition.applied.fetch_max(offset, Ordering::AcqRel);
                partition.stored.fetch_max(offset, Ordering::AcqRel);
            }
        }
        service.behind.begin(reached(&service, &positions, marks));
        Ok(Applier {
            as_of: AsOf::at(&service, &positions),
            service,
            follower,
            waiting: Waiting::default(),
            whole: None,
            front: None,
            incomplete_told: None,
            marks: marks.clone(),
            next_marks: Marks::new(),
            batch: Vec::new(),
            exact_from: None,
            in_memory: 0,
            next_ends: Instant::now(),
            old_ends: ends.clone(),
            goal: Some(Goal { ends, number: 0, asked }),
            in_part: InPart::default(),
            started: Instant::now(),
            met: positions.clone(),
            start_positions: positions,
            preload: None,
        })
    }

    fn run(&mut self, writer: JoinHandle<Option<Result<(), StoreError>>>) {
        let followed = self.follow_and_start_over();
        self.end_preload();
        if let Err(error) = &followed {
            self.fail(error);
        }
        self.service.behind.stop();
        supervise::idle();
        // A failure of the writer during `follow` was reported already, and so was a panic.
        if let (Ok(()), Ok(Some(Err(error)))) = (followed, writer.join()) {
            self.fail(&error.into());
        }
    }

    fn follow_and_start_over(&mut self) -> Result<(), ApplyError> {
        loop {
            match self.follow() {
                Err(ApplyError::Log(LogError::PositionLost(reason))) => {
                    self.service.counters.rebuilds.fetch_add(1, Ordering::Relaxed);
                    self.start_over(&reason)?;
                }
                Err(ApplyError::Log(LogError::IdentityChanged(reason))) => {
                    self.service.generation.fetch_add(1, Ordering::AcqRel);
                    self.service.counters.rebuilds.fetch_add(1, Ordering::Relaxed);
                    self.start_over(&reason)?;
                }
                Err(ApplyError::Store(StoreError::Damaged { cause, .. })) => self.start_over(&cause)?,
                ended => return ended,
            }
        }
    }

    /// The preload ends by itself when this node stops or no longer serves.
    fn end_preload(&mut self) {
        if let Some(preload) = self.preload.take() {
            supervise::idle();
            // A panic was reported already.
            let _ = preload.join();
        }
    }

    fn fail(&self, error: &ApplyError) {
        error!(%error, "the applier stopped: this node no longer follows the log and ends");
        self.service
            .set_status(Status::Failed(format!("stopped following the log: {error}")));
        // A restarted node reads on, or builds a store.
        supervise::fail(match error {
            ApplyError::Log(error) => format!("follow the log: {error}"),
            ApplyError::Store(error) => {
                format!("go on without the local store: {error}; the next start sees to it")
            }
        });
    }

    /// Drops everything and reads the log from its start.
    fn start_over(&mut self, reason: &str) -> Result<(), ApplyError> {
        refuse_rebuild(&self.service, reason).map_err(ApplyError::Log)?;
        warn!(reason, "rebuilding the local store from the log");
        // Clearing a store, and waiting for a log in an outage, have no time limit.
        supervise::idle();
        let service = self.service.clone();
        service.set_status(Status::Loading {
            applied: 0,
            total: 0,
            rebuilding: Some(reason.to_owned()),
        });
        self.end_preload();
        service.behind.begin(Reached::default());
        renew_store(&service)?;
        // Notice now what else has changed, so that not everything is read once more later.
        if let Err(error) = service.log.look(ASK_ENDS) {
            debug!(%error, "cannot look for changes of the log");
        }
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
        loop {
            match Applier::new(service.clone(), Positions::new(), &Marks::new()) {
                Ok(new) => {
                    *self = new;
                    return Ok(());
                }
                // The log was readable before, and will be again when it answers.
                Err(LogError::Failed(cause)) if !service.is_stopping() => {
                    warn!(cause, "cannot read the log anew yet");
                    std::thread::sleep(AFTER_FAILURE);
                }
                Err(_) if service.is_stopping() => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Follows the log until the service stops.
    fn follow(&mut self) -> Result<(), ApplyError> {
        let mut records = Vec::new();
        while !self.service.is_stopping() {
            supervise::busy(Duration::ZERO);
            self.poll(&mut records)?;
            if let Some(cause) = self.service.store.damage() {
                return Err(StoreError::Damaged { doing: "read", cause }.into());
            }
            self.as_of.judge(&self.service, self.follower.positions(), &records)?;
            self.service.notice_databases();
            let mut records = records.drain(..);
            for index in 0..records.len() {
                if index % PREFETCHED == 0 {
                    self.prefetch(records.as_slice());
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

    /// Reads on. Own records that memory has already are passed over.
    fn poll(&mut self, records: &mut Vec<LogRecord>) -> Result<(), ApplyError> {
        let service = &self.service;
        if self.goal.is_some() || service.digests.must_be_exact() {
            self.exact_from.get_or_insert_with(|| self.follower.positions());
            return Ok(self.follower.poll(records, IDLE)?);
        }
        self.exact_from = None;
        let old_ends = &self.old_ends;
        let mut known = |at: TopicPartition, offset, timestamp, key: &[u8]| {
            let only = service.databases[at.database as usize].only_partition();
            // A partition's first record is always taken: it says where waiting for groups begins.
            old_ends.contains_key(&at) && only.is_some_and(|partition| partition.own.meet(offset, timestamp, key))
        };
        self.in_memory += self.follower.poll_news(&mut known, records, IDLE)?;
        Ok(())
    }

    /// Prefetches the places in memory of the next records, as far as they are of one database.
    fn prefetch(&self, next: &[LogRecord]) {
        let Some(database) = next.first().map(|record| record.at.database) else {
            return;
        };
        let alike = next.iter().take_while(|record| record.at.database == database);
        self.service.prefetch(database, alike.map(|record| &record.key[..]));
    }

    /// Takes one record. A single one is applied. In a group it waits until the group is complete,
    /// and so does everything after it.
    fn take(&mut self, record: LogRecord) -> Result<(), ApplyError> {
        supervise::beat();
        if !self.old_ends.contains_key(&record.at) {
            // If the end is not known, groups are waited for: shown later, but not wrong.
            let ends = self.service.log.ends(ASK_ENDS).unwrap_or_default();
            self.old_ends
                .insert(record.at, ends.get(&record.at).copied().unwrap_or(0));
        }
        let loads = self.goal.as_ref().is_some_and(|goal| goal.number == 0);
        if self.waiting.is_empty() && (loads || !self.is_to_wait(&record)) {
            if let (true, Some(group)) = (loads, record.group) {
                self.in_part.note(record.at, group);
            }
            return self.apply(record);
        }
        self.waiting.push(record);
        self.apply_complete_groups()
    }

    /// True if the record has to be shown together with others.
    fn is_to_wait(&self, record: &LogRecord) -> bool {
        let is_old = self.old_ends.get(&record.at).is_some_and(|end| record.offset < *end);
        record.group.is_some_and(|group| group.records > 1) && !is_old
    }

    /// Applies waiting records from the front as far as groups are complete.
    fn apply_complete_groups(&mut self) -> Result<(), ApplyError> {
        while let Some(first) = self.waiting.front() {
            if let Some(group) = first.group.filter(|_| self.is_to_wait(first))
                && self.waiting.count(group.id) < self.in_part.missing(group.id).unwrap_or(group.records) as usize
            {
                return Ok(());
            }
            self.apply_front()?;
        }
        Ok(())
    }

    /// Applies the first waiting record with its group, at once for everyone who reads several
    /// keys.
    fn apply_front(&mut self) -> Result<(), ApplyError> {
        let service = self.service.clone();
        let mut group = self.waiting.take_front();
        let _group = (group.len() > 1).then(|| service.groups.show());
        // Copies go before what hides them. Otherwise they would be shown for a moment.
        group.sort_by_key(|r| r.at.partition == service.log.partition(r.at.database, &r.key));
        for record in group {
            self.apply(record)?;
        }
        Ok(())
    }

    /// Shows what came of groups that will not become complete (forged, broken, or partly removed
    /// by compaction while this node was away), or that hold up too much.
    fn give_up_on_late_groups(&mut self) -> Result<(), ApplyError> {
        let mut whole_below = 0;
        if let Some((number, _)) = self
            .whole
            .take_if(|(_, ends)| has_reached(&self.follower.positions(), ends))
        {
            whole_below = number;
        }
        while let Some(first) = self.waiting.front() {
            let id = first.group.map_or(0, |group| group.id);
            let front = (self.waiting.first(), self.waiting.count(id));
            if self.front.is_none_or(|(known, _)| known != front) {
                self.front = Some((front, Instant::now()));
            }
            let late = self.front.is_some_and(|(_, since)| since.elapsed() > GROUP_PATIENCE);
            if front.0 >= whole_below && !late && self.waiting.bytes() <= WAITING_BYTES {
                return Ok(());
            }
            if self.incomplete_told.is_none_or(|told| told.elapsed() > INCOMPLETE_TOLD) {
                self.incomplete_told = Some(Instant::now());
                warn!(
                    database = first.at.database,
                    partition = first.at.partition,
                    offset = first.offset,
                    "a group of records is incomplete; applying what came of it"
                );
            }
            self.apply_front()?;
            self.apply_complete_groups()?;
        }
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
        let change = Change {
            database: place.database,
            partition: place.partition,
            offset,
            timestamp,
            key,
            payload,
        };
        if let Payload::Control(Control::Passed | Control::Unknown) = change.payload {
            self.service.met_reserved(&change);
            return Ok(());
        }
        let database = &self.service.databases[place.database as usize];
        if let Payload::Key(state) = &change.payload
            && ElementName::parse(&change.key).is_some()
        {
            let value = state.as_ref().map(|state| state.value.clone());
            return self.apply_element(change, value);
        }
        if database.partitions().len() > 1 {
            self.apply_spread(change)
        } else {
            self.show(change, None)
        }
    }

    /// Applies a record of an element. It always goes to the store by the buffer: memory may have
    /// no more than the store needs.
    fn apply_element(&mut self, change: Change, value: Option<Value>) -> Result<(), ApplyError> {
        if self.service.log.partition(change.database, &change.key) != change.partition {
            // Its collection is elsewhere: no reader would find it.
            self.service.counters.records_misplaced.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        // While loading no client reads.
        let insert = self.goal.is_none();
        let (database, at) = (change.database, At::of(&change));
        self.service
            .show_applied_element(database, &change.key, at, value, insert);
        self.hold(change)
    }

    /// Applies a record of a topic with several partitions: the key may have others there.
    fn apply_spread(&mut self, change: Change) -> Result<(), ApplyError> {
        let home = match change.payload {
            Payload::Key(_) => self.service.log.partition(change.database, &change.key),
            Payload::Control(_) => change.partition,
        };
        // The records applied before must be found.
        if self.service.may_have_copies(&change, home) {
            self.push(None)?;
        }
        let at = |partition| TopicPartition {
            database: change.database,
            partition,
        };
        self.met.insert(at(change.partition), change.offset + 1);
        let ahead = At {
            partition: home,
            offset: self.met.get(&at(home)).copied().unwrap_or(0),
        };
        match self.service.settle(change, home, &mut self.batch)? {
            Some(change) => {
                let ahead = (change.partition != home).then_some(ahead);
                self.show(change, ahead)
            }
            None => Ok(()),
        }
    }

    /// Makes a change visible, unless memory has a state from `ahead` in the log or later.
    fn show(&mut self, change: Change, ahead: Option<At>) -> Result<(), ApplyError> {
        let database = &self.service.databases[change.database as usize];
        match &change.payload {
            Payload::Key(_) => {
                let shown = Shown {
                    database: change.database,
                    key: &change.key,
                    at: At::of(&change),
                    entry: change.entry(),
                };
                // While loading no client reads. Keys that memory knows already are kept right.
                let insert = self.goal.is_none();
                self.service.show_applied(shown, Applied { insert, ahead })?;
            }
            Payload::Control(Control::Flush) => self.service.show_flush(change.database, At::of(&change), None),
            Payload::Control(Control::Features(features)) => database.features.meet(At::of(&change), features),
            Payload::Control(Control::Function(text)) => {
                if let Some(library) = function_of(&change.key) {
                    database.functions.meet(At::of(&change), library, text.as_ref());
                }
            }
            Payload::Control(Control::Passed | Control::Unknown) => {}
        }
        if self.exact_from.is_none() && database.only_partition().is_some() && change.payload != Payload::FLUSH {
            self.in_memory += 1;
            return Ok(());
        }
        self.hold(change)
    }

    /// Keeps a change for the writer.
    fn hold(&mut self, change: Change) -> Result<(), ApplyError> {
        self.batch.push(change);
        if self.batch.len() >= BATCH {
            self.push(None)?;
        }
        Ok(())
    }

    /// Everything below these was applied: the follower's positions, but not past a waiting record.
    fn applied_positions(&self) -> Positions {
        let mut positions = self.follower.positions();
        for (at, offset) in self.waiting.first_offsets() {
            positions
                .entry(at)
                .and_modify(|position| *position = offset.min(*position));
        }
        positions
    }

    /// Reports how far readers see. While loading no client reads, and only the store knows.
    fn tell_applied(&self) {
        let service = &self.service;
        if self.goal.is_some() {
            return;
        }
        let mut more = false;
        for (at, position) in self.applied_positions() {
            if let Some(partition) = service.partition(&at) {
                more |= partition.applied.fetch_max(position, Ordering::AcqRel) < position;
            }
        }
        if more {
            service.progress.notify_waiters();
        }
    }

    /// Hands what was applied to the writer, with the positions reached.
    fn hand_over(&mut self) -> Result<(), ApplyError> {
        let service = self.service.clone();
        let skipped = &service.counters.records_skipped;
        skipped.store(self.follower.skipped(), Ordering::Relaxed);
        let positions = self.applied_positions();
        self.take_marks(&positions);
        self.push(Some(&positions))?;
        service.progress.notify_waiters();
        Ok(())
    }

    /// The follower's marks are of the newest records. If some of those wait, an earlier one holds.
    fn take_marks(&mut self, positions: &Positions) {
        let newest = self.follower.marks();
        if self.waiting.is_empty() {
            self.marks = newest;
            self.next_marks.clear();
            return;
        }
        for (at, mark) in newest {
            let next = self.next_marks.entry(at).or_insert(mark);
            if positions.get(&at).is_some_and(|&position| next.offset < position) {
                self.marks.insert(at, std::mem::replace(next, mark));
            }
        }
    }

    fn push(&mut self, so_far: Option<&Positions>) -> Result<(), ApplyError> {
        let service = &self.service;
        let applied = self.batch.len() as u64 + self.in_memory;
        if applied > 0 {
            let counters = &service.counters;
            counters.records_applied.fetch_add(applied, Ordering::Relaxed);
            counters.last_applied_ms.store(now_ms(), Ordering::Relaxed);
        }
        let in_memory = std::mem::take(&mut self.in_memory) > 0;
        let so_far = so_far.map(|positions| reached(service, positions, &self.marks));
        Ok(service
            .behind
            .push(service, &mut self.batch, in_memory, self.exact_from.as_ref(), so_far)?)
    }

    /// Asks the log for its ends now and then, so that lag and `as_of` are known.
    fn ask_ends(&mut self) {
        if Instant::now() < self.next_ends {
            return;
        }
        let asked = Moment::now();
        match self.service.log.ends(ASK_ENDS) {
            Ok(ends) => {
                for (at, &end) in &ends {
                    if let Some(partition) = self.service.partition(at) {
                        partition.end.store(end, Ordering::Relaxed);
                    }
                }
                if self.whole.is_none() && !self.waiting.is_empty() {
                    self.whole = Some((self.waiting.next(), ends.clone()));
                }
                self.as_of.told(asked, &ends);
            }
            // The log reports lost and regained connections. Here `as_of` just does not advance.
            Err(error) => debug!(%error, "the log's end is not known"),
        }
        self.next_ends = Instant::now() + AsOf::interval(&self.service);
    }

    fn has_applied(&self, ends: &Positions) -> bool {
        has_reached(&self.applied_positions(), ends)
    }

    /// True if the last goal is reached. Sets the next goal where one has to follow.
    fn has_loaded(&mut self) -> bool {
        // A position that no longer exists, or is of another log, may be past the end.
        while let Some(goal) = &self.goal
            && self.follower.is_confirmed()
            && self.has_applied(&goal.ends)
        {
            if !goal.is_to_be_followed() {
                return true;
            }
            let (number, asked) = (goal.number + 1, Instant::now());
            let Ok(ends) = self.service.log.ends(ASK_ENDS) else {
                return false;
            };
            self.goal = Some(Goal { ends, number, asked });
        }
        false
    }

    /// Everything is loaded.
    fn serve(&mut self) {
        self.in_part = InPart::default();
        self.service.behind.show();
        self.as_of.loaded(&self.service);
        info!(
            records = self.service.counters.records_applied.load(Ordering::Relaxed),
            seconds = self.started.elapsed().as_secs_f64(),
            "caught up with the log: serving"
        );
        self.goal = None;
        self.tell_applied();
        for database in &self.service.databases {
            let is_new = |partition: &Partition| partition.applied.load(Ordering::Acquire) == 0;
            if database.only_partition().is_some_and(is_new) {
                database.hot.hold_all();
            }
        }
        self.service.set_status(Status::Serving);
        self.preload = preload::start(&self.service).unwrap_or_else(|error| {
            warn!(%error, "cannot start a thread that reads the store into memory");
            None
        });
    }

    fn note_progress(&mut self) {
        if self.as_of.is_open() {
            let applied = self.applied_positions();
            self.as_of.applied(&self.service, &applied);
        }
        if self.has_loaded() {
            return self.serve();
        }
        let Some(goal) = &self.goal else { return };
        let done = |positions: &Positions| -> u64 {
            goal.ends
                .keys()
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
            total: done(&goal.ends),
            rebuilding,
        });
    }
}
