//! Takes applied records to the store, from a thread of its own: the applier waits for the store only at a bound.
//!
//! The [`Buffer`] holds what was applied and is not in the store yet: of each key the newest record, in [`Run`]s with a flush
//! marker between them. The writer takes all of it at once and hands it over sorted by hash (neighbours in the store are written
//! together), [`Shard`] by shard. It puts that off for a moment, since a key that is written again meanwhile costs nothing; not if
//! somebody waits for the store ([`WriteBehind::hurry`]). While loading it waits for more.
//!
//! What is here is visible in the hot tier, pinned until the store has it. Only what was applied while loading is not: once that is
//! over, it is read from here ([`WriteBehind::get`]).
//!
//! Once a node serves, and of a topic with one partition, nothing comes here but flush markers: the writer takes the states that became unstored from the hot tier
//! itself ([`HotTier::take_unstored`](super::hot::HotTier::take_unstored)), as far as they are below the positions that it is going to
//! tell. A key whose newest record is beyond those is left for the next time, so the store may lack the one before it; that record is
//! read again after a crash, and until then memory has the key. Whoever needs the store to be exactly at a position ([`super::digest`]) has all
//! records sent through here meanwhile.
//!
//! Where the disk has no room the writer waits, and says so: engines do not survive a disk that is full. Meanwhile everything stays
//! here, and is visible; when the bound is reached, own writes are refused and foreign ones are not read.
//!
//! A position goes with the records up to it: it is told, and written into a checkpoint, only when the store has all of them.
//! The writer alone applies to the store, sweeps it and writes checkpoints; the applier clears it while the writer rests
//! ([`WriteBehind::begin`]).

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use indexmap::IndexMap;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tracing::{info, warn};

use super::applier::has_reached;
use super::hot::At;
use super::{Database, Service, now_ms};
use crate::log::{Positions, TopicPartition};
use crate::model::{Change, Control, Entry, Payload};
use crate::store::{Checkpoint, DatabaseCheckpoint, PartitionPosition, StoreError, key_hash};
use crate::supervise;

/// Why a writer is gone that panicked.
pub(super) const PANICKED: &str = "the thread that writes panicked";
/// Records that the store is given at once, and about how many bytes. What was written is unpinned after each.
const CHUNK: usize = 1_000;
const CHUNK_BYTES: usize = 4 << 20;
/// Parts of a run, by the first bits of the hash.
const SHARDS: usize = 64;
/// What a record costs in the buffer beside key and value, bytes (measured roughly).
const HELD_OVERHEAD: usize = 200;
/// Entries that one step of the store's background work looks at.
const SWEEP: usize = 1_000;
/// A checkpoint is written this often even if nothing was applied: its `as_of` tells how fresh the store is.
const IDLE_CHECKPOINT: Duration = Duration::from_secs(60);
/// After it wrote, the writer rests twice as long, at most this: under load keys are written again meanwhile, and the processor
/// has other work.
const REST: Duration = Duration::from_secs(5);
/// How much longer than the usual time an engine may take for a step: it may have to make room first; and for a checkpoint, for which it
/// writes and fsyncs all that it has in memory.
const ENGINE: Duration = Duration::from_secs(30);
const CHECKPOINT: Duration = Duration::from_secs(300);
/// Longest time that the writer rests before it looks whether anything is due.
const TICK: Duration = Duration::from_millis(500);
/// How long a stop may take to store what is left; the rest is read from the log again at the next start.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// While loading memory is not needed for reads: this share of it may be buffered.
const LOADING_SHARE: usize = 3;

/// How far the records are that were handed over.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    pub positions: BTreeMap<TopicPartition, PartitionPosition>,
    /// Number of records applied by then.
    pub records: u64,
}

/// The name of a key in all databases. Hashed once.
struct Name {
    hash: u64,
    database: u16,
    key: Bytes,
}

impl PartialEq for Name {
    fn eq(&self, other: &Name) -> bool {
        self.hash == other.hash && self.database == other.database && self.key == other.key
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// The newest records of keys whose hashes begin alike.
#[derive(Default)]
struct Shard {
    newest: IndexMap<Name, Change, foldhash::fast::RandomState>,
    bytes: usize,
}

/// Records between two flush markers, and the one that ends them.
struct Run {
    shards: Box<[Shard]>,
    flush: Option<Change>,
}

/// What the writer took.
enum Part {
    Shard(Shard),
    Flush(Change),
}

#[derive(Default)]
struct Buffer {
    runs: Vec<Run>,
    run_bytes: usize,
    /// When the first of `runs`, or in memory, came.
    since: Option<Instant>,
    /// Some records are to be taken from the hot tier.
    in_memory: bool,
    /// From where on every record comes here, if it does at the moment.
    exact_from: Option<Positions>,
    /// The store has, or is known to lack, what was in memory alone before that.
    is_exact: bool,
    /// Everything up to here is in `runs`, in flight, in memory, or stored.
    reached: Reached,
    /// What the writer took; the first is being applied.
    in_flight: VecDeque<Arc<Part>>,
    stored: Reached,
    /// Not before this without need.
    rests_until: Option<Instant>,
    /// All of it is to be forgotten as soon as the writer lets go of it.
    forgetting: bool,
    /// The writer works outside of the lock.
    busy: bool,
    loading: bool,
    /// When a stop was asked for.
    stopping: Option<Instant>,
    /// A stop came while the disk had no room: what is left is not stored.
    given_up: bool,
    /// The writer is gone, and why.
    ended: Option<String>,
}

#[derive(Default)]
pub(super) struct WriteBehind {
    buffer: Mutex<Buffer>,
    /// For the writer: something may be due.
    work: Condvar,
    /// For the applier: there is more room, the writer rests, or it has ended.
    progress: Condvar,
    bytes: AtomicUsize,
    /// What loading left; more than the usual bound may be here until it is stored.
    backlog: AtomicUsize,
    hurried: AtomicUsize,
    /// Something that was applied while loading may be here and nowhere else.
    unseen: AtomicBool,
    /// Why the writer waits for room on the disk.
    lacking: Mutex<Option<String>>,
}

/// While it lives, nothing is put off.
pub(super) struct Hurry<'a>(&'a WriteBehind);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.hurried.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the writer does next, outside of the lock.
enum Job {
    /// Applies what is in flight; then the store is as far as this. While loading, more of what was loaded may come behind it.
    Write {
        reached: Reached,
        in_memory: bool,
        loading: bool,
    },
    Checkpoint(Reached),
    Sweep,
    Stop(Reached),
}

/// What the writer has to see to besides writing.
struct Upkeep {
    /// The store has background work left.
    sweeping: bool,
    checkpointed: Reached,
    last_checkpoint: Instant,
}

impl WriteBehind {
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes above which writes wait.
    pub fn bound(&self, usual: usize) -> usize {
        usual.max(self.backlog.load(Ordering::Relaxed))
    }

    /// Makes the writer write at once, until the answer is dropped.
    pub fn hurry(&self) -> Hurry<'_> {
        self.hurried.fetch_add(1, Ordering::AcqRel);
        // Under the lock, so that the writer is not just about to rest.
        let _buffer = self.buffer.lock();
        self.work.notify_one();
        Hurry(self)
    }

    /// Forgets everything and begins at a position, loading. When this returns, the writer applies nothing until [`WriteBehind::push`].
    pub fn begin(&self, reached: Reached) {
        supervise::idle();
        let mut buffer = self.buffer.lock();
        buffer.forgetting = true;
        while buffer.busy && buffer.ended.is_none() {
            self.progress.wait(&mut buffer);
        }
        let (stopping, ended) = (buffer.stopping, buffer.ended.take());
        *buffer = Buffer {
            stored: reached.clone(),
            reached,
            loading: true,
            stopping,
            ended,
            ..Buffer::default()
        };
        self.bytes.store(0, Ordering::Relaxed);
        self.backlog.store(0, Ordering::Relaxed);
        self.unseen.store(false, Ordering::Release);
        self.work.notify_one();
    }

    /// True if something that was applied while loading may not be in the store yet.
    pub fn is_loaded_only(&self) -> bool {
        self.unseen.load(Ordering::Acquire)
    }

    /// Why nothing can be stored for now: the disk has no room.
    pub fn lacking(&self) -> Option<String> {
        self.lacking.lock().clone()
    }

    /// Takes applied records; waits while there are too many. `in_memory`: others are in the hot tier alone. `exact_from`: from where on none are.
    /// `reached`: what all records up to these amount to, if that can be said.
    pub fn push(
        &self,
        service: &Service,
        changes: &mut Vec<Change>,
        in_memory: bool,
        exact_from: Option<&Positions>,
        reached: Option<Reached>,
    ) -> Result<(), StoreError> {
        let mut buffer = self.buffer.lock();
        let full = self.full(service, buffer.loading);
        // A node that stops does not wait for what may never come, nor one whose store is damaged.
        let may_wait = |buffer: &Buffer| buffer.ended.is_none() && !buffer.forgetting && !service.is_stopping();
        while !changes.is_empty() && self.bytes() > full && may_wait(&buffer) {
            supervise::beat();
            self.progress.wait_for(&mut buffer, TICK);
        }
        if let Some(cause) = &buffer.ended {
            return Err(StoreError::Engine {
                doing: "write",
                cause: cause.clone(),
            });
        }
        let was_empty = buffer.since.is_none();
        for change in changes.drain(..) {
            buffer.take_in(change, &self.bytes);
        }
        if let Some(reached) = reached {
            buffer.reached = reached;
        }
        buffer.in_memory |= in_memory;
        if buffer.exact_from.as_ref() != exact_from {
            buffer.exact_from = exact_from.cloned();
            buffer.is_exact = false;
        }
        if was_empty && (buffer.in_memory || !buffer.runs.is_empty()) {
            buffer.since = Some(Instant::now());
        }
        if was_empty || buffer.waiting_bytes(service) >= full / 2 || self.is_hurried() {
            self.work.notify_one();
        }
        // What is in memory is there already. Own records that the applier has yet to come to are not for the writer, who may be done.
        while in_memory && unstored(service) > full && (buffer.busy || buffer.since.is_some()) && may_wait(&buffer) {
            supervise::beat();
            self.progress.wait_for(&mut buffer, TICK);
        }
        Ok(())
    }

    /// Loading is over: what the store does not have yet is read from here.
    pub fn show(&self) {
        let mut buffer = self.buffer.lock();
        buffer.loading = false;
        self.backlog.store(self.bytes() / 4 * 5, Ordering::Relaxed);
        let is_left = !buffer.runs.is_empty() || !buffer.in_flight.is_empty();
        self.unseen.store(is_left, Ordering::Release);
        self.work.notify_one();
    }

    /// What is here of a key that the hot tier does not know. `None`: what the store has is the newest. To be asked
    /// before the store, since records leave for there.
    pub fn get(&self, database: u16, key: &[u8]) -> Option<Option<Entry>> {
        if !self.is_loaded_only() {
            return None;
        }
        self.newest(database, key)
    }

    /// What is here of a key.
    pub fn newest(&self, database: u16, key: &[u8]) -> Option<Option<Entry>> {
        let name = Name {
            hash: key_hash(key),
            database,
            key: Bytes::copy_from_slice(key),
        };
        let buffer = self.buffer.lock();
        let waiting = buffer.runs.iter().rev().map(|run| &run.shards[name.shard()]);
        let in_flight = buffer.in_flight.iter().rev().filter_map(|part| match &**part {
            Part::Shard(shard) => Some(shard),
            Part::Flush(_) => None,
        });
        let newest = waiting.chain(in_flight).find_map(|shard| shard.newest.get(&name))?;
        Some(newest.entry())
    }

    /// Starts the thread that writes.
    pub fn start(service: Arc<Service>) -> std::io::Result<JoinHandle<Option<Result<(), StoreError>>>> {
        supervise::thread(&supervise::STORE_WRITER, move || {
            let mut ended = Ended {
                service: &service,
                cause: PANICKED.into(),
            };
            let outcome = run(&service);
            ended.cause = match &outcome {
                Ok(()) => "the thread that writes has stopped".into(),
                Err(error) => error.to_string(),
            };
            outcome
        })
    }

    /// Asks the writer to store what is left, to write a last checkpoint, and to end.
    pub fn stop(&self) {
        let mut buffer = self.buffer.lock();
        buffer.stopping.get_or_insert_with(Instant::now);
        self.work.notify_one();
    }

    fn is_hurried(&self) -> bool {
        self.hurried.load(Ordering::Acquire) > 0
    }

    /// Bytes above which the applier waits.
    fn full(&self, service: &Service, loading: bool) -> usize {
        let usual = service.settings.max_unstored_bytes.load(Ordering::Relaxed) as usize;
        match loading {
            true => (usual / 4 * 5).max(service.memory.limit.load(Ordering::Relaxed) / LOADING_SHARE),
            // Own writes wait before that.
            false => self.bound(usual) / 4 * 5,
        }
    }

    /// Waits until something is due.
    fn next(&self, service: &Service, upkeep: &Upkeep) -> Job {
        supervise::idle();
        let mut buffer = self.buffer.lock();
        buffer.busy = false;
        self.progress.notify_all();
        loop {
            if buffer.forgetting {
                self.work.wait(&mut buffer);
                continue;
            }
            let delay = Duration::from_millis(service.settings.store_delay_ms.load(Ordering::Relaxed));
            let much = buffer.waiting_bytes(service) >= self.full(service, buffer.loading) / 2;
            let wait = buffer.wait(delay, much, self.is_hurried());
            let job = if wait.is_zero() {
                Job::Write {
                    in_memory: buffer.take(),
                    reached: buffer.reached.clone(),
                    loading: buffer.loading,
                }
            } else if upkeep.is_checkpoint_due(service, &buffer.stored) {
                Job::Checkpoint(buffer.stored.clone())
            } else if buffer.stopping.is_some() {
                Job::Stop(buffer.stored.clone())
            } else if upkeep.sweeping && service.store.lacks_room(0).is_none() {
                Job::Sweep
            } else {
                self.work.wait_for(&mut buffer, wait.min(TICK));
                continue;
            };
            buffer.busy = true;
            return job;
        }
    }

    /// Writes what was taken. If that has to be given up, because all is to be forgotten or the node cannot wait longer to
    /// stop, the positions stay as they were.
    fn write(&self, service: &Service, reached: Reached, in_memory: bool, loading: bool) -> Result<(), StoreError> {
        let started = Instant::now();
        let mut buffer = self.buffer.lock();
        while let Some(part) = buffer.in_flight.front().cloned() {
            if buffer.forgetting || buffer.is_out_of_patience() {
                buffer.in_flight.clear();
                return Ok(());
            }
            let apply = || match &*part {
                // A flush takes the store to have nothing from behind it, and whatever was before it.
                Part::Flush(flush) if in_memory && !self.write_from_memory(service, &before(flush))? => Ok(false),
                _ => part.apply(service),
            };
            if !MutexGuard::unlocked(&mut buffer, apply)? {
                continue;
            }
            buffer.in_flight.pop_front();
            self.let_go(service, part.bytes());
        }
        if in_memory && !MutexGuard::unlocked(&mut buffer, || self.write_from_memory(service, &positions_of(&reached)))?
        {
            return Ok(());
        }
        buffer.is_exact |= buffer
            .exact_from
            .as_ref()
            .is_some_and(|from| has_reached(&positions_of(&reached), from));
        if !loading || buffer.runs.is_empty() {
            self.unseen.store(false, Ordering::Release);
        }
        for (at, position) in &reached.positions {
            let partitions = service.databases[at.database as usize].partitions();
            if let Some(partition) = partitions.get(at.partition as usize) {
                partition.stored.fetch_max(position.next_offset, Ordering::AcqRel);
            }
        }
        buffer.stored = reached;
        buffer.rests_until = Some(Instant::now() + REST.min(started.elapsed() * 2));
        service.progress.notify_waiters();
        Ok(())
    }

    /// Writes what became unstored in memory, below these positions. False if that has to be given up.
    fn write_from_memory(&self, service: &Service, below: &Positions) -> Result<bool, StoreError> {
        for (&place, &position) in below {
            let database = &service.databases[place.database as usize];
            if database.only_partition().is_none() {
                continue;
            }
            let (mut is_left, is_exact) = (false, self.buffer.lock().is_exact);
            let mut is_reached = |at: At| {
                let is_reached = at.offset < position;
                if !is_reached {
                    is_left = true;
                    if !is_exact {
                        service.summed.lacks_before(place, at.offset);
                    }
                }
                is_reached
            };
            for names in database.hot.take_unstored().chunks(CHUNK) {
                let mut changes = Vec::with_capacity(names.len());
                let mut add = |key: &[u8], at: At, entry| {
                    let key = Bytes::copy_from_slice(key);
                    changes.push(Change::of_key(place.database, at.partition, at.offset, key, entry));
                };
                database.hot.show_unstored(names, &mut is_reached, &mut add);
                if !self.write_changes(service, database, &changes)? {
                    return Ok(false);
                }
            }
            // The applier may have passed it over already, behind a group that it waits for.
            self.buffer.lock().in_memory |= is_left;
        }
        Ok(true)
    }

    /// Writes changes of a database that are in the hot tier. False if that has to be given up.
    fn write_changes(&self, service: &Service, database: &Database, changes: &[Change]) -> Result<bool, StoreError> {
        let mut rest = changes;
        while !rest.is_empty() {
            let (count, bytes) = first_chunk(rest.iter().map(change_bytes));
            let buffer = self.buffer.lock();
            if buffer.forgetting || buffer.is_out_of_patience() {
                return Ok(false);
            }
            drop(buffer);
            supervise::beat();
            if !self.wait_for_room(service, bytes) {
                return Ok(false);
            }
            let (now, later) = rest.split_at(count);
            service.store.apply(now)?;
            for change in now {
                database.hot.stored(&change.key, At::of(change));
            }
            rest = later;
            self.progress.notify_all();
            service.progress.notify_waiters();
        }
        Ok(true)
    }

    /// The store is damaged: nothing more is written until all is begun anew. False if the node stops before.
    fn rest(&self) -> bool {
        supervise::idle();
        let mut buffer = self.buffer.lock();
        buffer.forgetting = true;
        buffer.busy = false;
        self.progress.notify_all();
        while buffer.forgetting && buffer.stopping.is_none() {
            self.work.wait(&mut buffer);
        }
        !buffer.forgetting
    }

    /// Waits until the disk has room for so many bytes. False if that is to be given up.
    fn wait_for_room(&self, service: &Service, bytes: usize) -> bool {
        while let Some(reason) = service.store.lacks_room(bytes as u64) {
            if self.lacking.lock().replace(reason.clone()).is_none() {
                warn!("{reason}; the local store waits, and goes on when there is more");
                service.progress.notify_waiters();
            }
            let mut buffer = self.buffer.lock();
            buffer.given_up |= buffer.stopping.is_some();
            if buffer.forgetting || buffer.given_up {
                return false;
            }
            supervise::beat();
            self.work.wait_for(&mut buffer, TICK);
        }
        if self.lacking.lock().take().is_some() {
            info!("the local store has room again");
            service.progress.notify_waiters();
        }
        true
    }

    /// There is more room.
    fn let_go(&self, service: &Service, bytes: usize) {
        let left = self.bytes.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        if left <= service.settings.max_unstored_bytes.load(Ordering::Relaxed) as usize {
            self.backlog.store(0, Ordering::Relaxed);
        }
        self.progress.notify_all();
        service.progress.notify_waiters();
    }
}

impl Buffer {
    /// Keeps a record if it is the newest of its key.
    fn take_in(&mut self, change: Change, total: &AtomicUsize) {
        match change.payload {
            Payload::Key(_) => {}
            Payload::Control(Control::Flush) => {
                self.last_run().flush = Some(change);
                return;
            }
            Payload::Control(Control::Unknown) => return,
        }
        let new = change_bytes(&change);
        let name = Name {
            hash: key_hash(&change.key),
            database: change.database,
            key: change.key.clone(),
        };
        let shard = &mut self.last_run().shards[name.shard()];
        let (more, less) = match shard.newest.entry(name) {
            indexmap::map::Entry::Vacant(vacant) => {
                vacant.insert(change);
                (new, 0)
            }
            indexmap::map::Entry::Occupied(mut occupied) => {
                let old = occupied.get_mut();
                if old.partition == change.partition && old.offset >= change.offset {
                    return;
                }
                let less = change_bytes(old);
                *old = change;
                (new, less)
            }
        };
        shard.bytes = shard.bytes + more - less;
        self.run_bytes = self.run_bytes + more - less;
        total.fetch_add(more, Ordering::Relaxed);
        total.fetch_sub(less, Ordering::Relaxed);
    }

    /// The run that is not ended by a flush marker.
    fn last_run(&mut self) -> &mut Run {
        if self.runs.last().is_none_or(|run| run.flush.is_some()) {
            self.runs.push(Run::default());
        }
        self.runs.last_mut().expect("one was pushed")
    }

    /// Bytes that wait to be written.
    fn waiting_bytes(&self, service: &Service) -> usize {
        match self.in_memory {
            true => self.run_bytes.max(unstored(service)),
            false => self.run_bytes,
        }
    }

    /// Puts everything in flight. True if there is more in memory.
    fn take(&mut self) -> bool {
        for run in self.runs.drain(..) {
            let shards = run.shards.into_iter().filter(|shard| !shard.newest.is_empty());
            self.in_flight.extend(shards.map(|shard| Arc::new(Part::Shard(shard))));
            self.in_flight
                .extend(run.flush.map(|flush| Arc::new(Part::Flush(flush))));
        }
        self.since = None;
        self.run_bytes = 0;
        std::mem::take(&mut self.in_memory)
    }

    /// How long until what is here is to be written.
    fn wait(&self, delay: Duration, much: bool, hurried: bool) -> Duration {
        let (now, never) = (Duration::ZERO, Duration::MAX);
        match self.since {
            // What was given up must not be told.
            _ if self.is_out_of_patience() => never,
            None if self.reached == self.stored => never,
            // Positions alone cost nothing.
            None => now,
            Some(_) if self.stopping.is_some() || hurried || much => now,
            Some(_) if self.loading => never,
            Some(since) => {
                let rest = self
                    .rests_until
                    .map(|until| until.saturating_duration_since(Instant::now()));
                delay.saturating_sub(since.elapsed()).max(rest.unwrap_or(now))
            }
        }
    }

    fn is_out_of_patience(&self) -> bool {
        self.given_up || self.stopping.is_some_and(|asked| asked.elapsed() > STOP_PATIENCE)
    }
}

impl Default for Run {
    fn default() -> Run {
        Run {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            flush: None,
        }
    }
}

impl Part {
    fn bytes(&self) -> usize {
        match self {
            Part::Shard(shard) => shard.bytes,
            Part::Flush(_) => 0,
        }
    }

    /// Gives it to the store. False if there is no room for it, and it is no use to wait.
    fn apply(&self, service: &Service) -> Result<bool, StoreError> {
        let newest = match self {
            Part::Flush(change) => {
                let has_room = service.behind.wait_for_room(service, 0);
                if has_room {
                    service.store.apply(std::slice::from_ref(change))?;
                }
                return Ok(has_room);
            }
            Part::Shard(shard) => &shard.newest,
        };
        let mut sorted: Vec<(&Name, &Change)> = newest.iter().collect();
        sorted.sort_unstable_by_key(|(name, _)| (name.database, name.hash));
        let mut changes = Vec::with_capacity(CHUNK.min(sorted.len()));
        let mut rest = &sorted[..];
        while !rest.is_empty() {
            let (count, bytes) = first_chunk(rest.iter().map(|(_, change)| change_bytes(change)));
            if !service.behind.wait_for_room(service, bytes) {
                return Ok(false);
            }
            supervise::beat();
            let records;
            (records, rest) = rest.split_at(count);
            changes.extend(records.iter().map(|&(_, change)| change.clone()));
            service.store.apply(&changes)?;
            for change in &changes {
                // Copies outside of the home partition are not in memory.
                if let Some(database) = service.databases.get(change.database as usize) {
                    database.hot.stored(&change.key, At::of(change));
                }
            }
            changes.clear();
        }
        Ok(true)
    }
}

/// How many records of these sizes, one at least, the store is given at once, and about how many bytes that is.
fn first_chunk(sizes: impl Iterator<Item = usize>) -> (usize, usize) {
    let (mut count, mut bytes) = (0, 0);
    for next in sizes.take(CHUNK) {
        if count > 0 && bytes + next > CHUNK_BYTES {
            break;
        }
        (count, bytes) = (count + 1, bytes + next);
    }
    (count, bytes)
}

/// Everything in front of a flush marker.
fn before(flush: &Change) -> Positions {
    let place = TopicPartition {
        database: flush.database,
        partition: flush.partition,
    };
    Positions::from([(place, flush.offset)])
}

fn positions_of(reached: &Reached) -> Positions {
    let positions = reached.positions.iter();
    positions.map(|(at, position)| (*at, position.next_offset)).collect()
}

/// Bytes of states in the hot tier that the store lacks.
fn unstored(service: &Service) -> usize {
    service.memory.unstored.load(Ordering::Relaxed)
}

fn change_bytes(change: &Change) -> usize {
    match change.payload {
        Payload::Key(_) => HELD_OVERHEAD + change.key.len() + change.payload.bytes(),
        Payload::Control(_) => 0,
    }
}

impl Name {
    fn shard(&self) -> usize {
        (self.hash >> 58) as usize % SHARDS
    }
}

/// Tells the applier that the writer is gone, however it went.
struct Ended<'a> {
    service: &'a Service,
    cause: String,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let behind = &self.service.behind;
        let mut buffer = behind.buffer.lock();
        buffer.busy = false;
        buffer.ended = Some(std::mem::take(&mut self.cause));
        behind.progress.notify_all();
    }
}

/// The writer's thread.
fn run(service: &Service) -> Result<(), StoreError> {
    let behind = &service.behind;
    let mut upkeep = Upkeep {
        sweeping: true,
        checkpointed: behind.buffer.lock().stored.clone(),
        last_checkpoint: Instant::now(),
    };
    loop {
        let job = behind.next(service, &upkeep);
        let is_last = matches!(job, Job::Stop(_));
        supervise::busy(match job {
            Job::Checkpoint(_) | Job::Stop(_) => CHECKPOINT,
            Job::Write { .. } | Job::Sweep => ENGINE,
        });
        match upkeep.run(job, service) {
            Err(StoreError::Damaged { .. }) if !is_last && behind.rest() => {}
            Err(StoreError::Damaged { doing, cause }) => {
                info!("the local store is damaged ({doing}: {cause}); the next start builds it anew");
                return Ok(());
            }
            outcome if is_last => return outcome,
            outcome => outcome?,
        }
    }
}

impl Upkeep {
    fn run(&mut self, job: Job, service: &Service) -> Result<(), StoreError> {
        let behind = &service.behind;
        match job {
            Job::Write {
                reached,
                in_memory,
                loading,
            } => {
                behind.write(service, reached, in_memory, loading)?;
                // A flush may have been among it.
                self.sweeping = true;
            }
            Job::Checkpoint(stored) => self.checkpoint(service, stored)?,
            Job::Sweep => self.sweeping = service.store.sweep(SWEEP)?,
            Job::Stop(stored) => {
                if behind.buffer.lock().reached != stored {
                    info!(
                        "the local store does not have everything yet; the rest is read from the log again at the next start"
                    );
                }
                self.checkpoint(service, stored)?;
            }
        }
        Ok(())
    }

    fn is_checkpoint_due(&self, service: &Service, stored: &Reached) -> bool {
        let interval = Duration::from_millis(service.settings.checkpoint_interval_ms.load(Ordering::Relaxed));
        let since = self.last_checkpoint.elapsed();
        since >= interval && stored.records != self.checkpointed.records || since >= IDLE_CHECKPOINT
    }

    fn checkpoint(&mut self, service: &Service, stored: Reached) -> Result<(), StoreError> {
        if service.store.lacks_room(0).is_some() {
            // The one before still holds.
            self.last_checkpoint = Instant::now();
            return Ok(());
        }
        let mut checkpoint = Checkpoint::default();
        for (at, &position) in &stored.positions {
            let Some(source) = service.databases[at.database as usize].source.lock().clone() else {
                continue;
            };
            let of_database = checkpoint.databases.entry(at.database);
            let of_database = of_database.or_insert_with(|| DatabaseCheckpoint {
                source,
                partitions: BTreeMap::new(),
            });
            of_database.partitions.insert(at.partition, position);
        }
        match service.store.checkpoint(&checkpoint) {
            // Its file found no room; that was the last thing to be written.
            Err(StoreError::Io { cause, .. }) if cause.kind() == std::io::ErrorKind::StorageFull => {
                self.last_checkpoint = Instant::now();
                return Ok(());
            }
            outcome => outcome?,
        }
        let counters = &service.counters;
        counters.last_checkpoint_ms.store(now_ms(), Ordering::Relaxed);
        counters
            .last_checkpoint_records
            .store(stored.records, Ordering::Relaxed);
        self.checkpointed = stored;
        self.last_checkpoint = Instant::now();
        Ok(())
    }
}
