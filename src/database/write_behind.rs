//! Takes applied records to the store, from a thread of its own: the applier waits for the store
//! only at a bound.
//!
//! The [`Buffer`] holds what was applied and is not in the store yet: the newest record of each
//! key, in [`Run`]s with a flush marker between them. The writer takes all of it at once and hands
//! it to the store sorted by hash (neighbours in the store are written together), [`Shard`] by
//! shard. It delays that for a moment, since a key that is written again meanwhile costs nothing;
//! but not if something waits for the store ([`WriteBehind::hurry`]). While loading it waits for
//! more.
//!
//! What is here is visible in the hot tier, and pinned there until the store has it. The exception
//! is what was applied while loading: once that is over, it is read from here
//! ([`WriteBehind::get`]).
//!
//! Once a node serves, only flush markers come here for a topic with one partition. The writer
//! takes the states that became unstored from the hot tier itself
//! ([`HotTier::take_unstored`](super::hot::HotTier::take_unstored)), as far as they are below the
//! positions that it is going to report. A key whose newest record is beyond those is left for the
//! next time, so the record before it may be missing in the store. That newest record is read again
//! after a crash, and until then memory has the key. While something needs the store to be exactly
//! at a position ([`super::digest`]), all records are sent through here.
//!
//! If the disk has no room, the writer waits and reports that: engines do not survive a full disk.
//! Meanwhile everything stays here, and is visible. When the bound is reached, own writes are
//! refused and foreign ones are not read.
//!
//! A position goes with the records up to it. It is reported, and written into a checkpoint, only
//! when the store has all of them. The writer alone applies to the store, sweeps it and writes
//! checkpoints. The applier clears the store while the writer rests ([`WriteBehind::begin`]).

use std::collections::{BTreeMap, HashMap, VecDeque};
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
use crate::model::{Change, Control, Entry, Payload, home_key};
use crate::store::{Checkpoint, DatabaseCheckpoint, PartitionPosition, StoreError, key_hash};
use crate::supervise;

/// The cause when the writer has ended by a panic.
pub(super) const PANICKED: &str = "the thread that writes panicked";
/// The most records, and about the most bytes, that the store is given at once. What was written is
/// unpinned after each chunk.
const CHUNK: usize = 1_000;
const CHUNK_BYTES: usize = 4 << 20;
/// Parts of a run, by the first bits of the hash.
const SHARDS: usize = 64;
/// What a record costs in the buffer besides key and value, bytes (measured roughly).
const HELD_OVERHEAD: usize = 200;
/// Entries that one step of the store's background work looks at.
const SWEEP: usize = 1_000;
/// A checkpoint is written this often even if nothing was applied: its `as_of` says how fresh the
/// store is.
const IDLE_CHECKPOINT: Duration = Duration::from_secs(60);
/// After it wrote, the writer rests twice as long as that took, at most this long. Under load keys
/// are written again meanwhile, and the processor has other work.
const REST: Duration = Duration::from_secs(5);
/// How much longer than usual an engine may take for a step, as it may have to make room first; and
/// for a checkpoint, for which it writes and fsyncs all that it has in memory.
const ENGINE: Duration = Duration::from_secs(30);
const CHECKPOINT: Duration = Duration::from_secs(300);
/// The longest time that the writer rests before it checks whether anything is due.
const TICK: Duration = Duration::from_millis(500);
/// How long a stop may take to store what is left. The rest is read from the log again at the next
/// start.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// While loading, memory is not needed for reads: one part in this many may be buffered.
const LOADING_SHARE: usize = 3;

/// How far the records that were handed over go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    pub positions: BTreeMap<TopicPartition, PartitionPosition>,
    /// Number of records applied by then.
    pub records: u64,
}

/// The name of a key in all databases. Hashed once.
struct Name {
    /// As in the store: a record of an element has the hash of its collection's key.
    hash: u64,
    /// Of the record's own key: elements of one collection must not have one hash in a table.
    own: u64,
    database: u16,
    key: Bytes,
}

impl PartialEq for Name {
    fn eq(&self, other: &Name) -> bool {
        self.own == other.own && self.database == other.database && self.key == other.key
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.own);
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
    /// When the first record in `runs`, or in memory, came.
    since: Option<Instant>,
    /// Some records have to be taken from the hot tier.
    in_memory: bool,
    /// The positions from which on every record comes here, if that is so at the moment.
    exact_from: Option<Positions>,
    /// The store has what was in memory alone before that, or is known not to have it.
    is_exact: bool,
    /// Everything up to here is in `runs`, in flight, in memory, or stored.
    reached: Reached,
    /// What the writer took. The first part is being applied.
    in_flight: VecDeque<Arc<Part>>,
    stored: Reached,
    /// The writer does not write before this without need.
    rests_until: Option<Instant>,
    /// All of it has to be forgotten as soon as the writer lets go of it.
    forgetting: bool,
    /// The writer works outside of the lock.
    busy: bool,
    loading: bool,
    /// When a stop was requested.
    stopping: Option<Instant>,
    /// A stop came while the disk had no room: what is left is not stored.
    given_up: bool,
    /// Why the writer has ended, if it has.
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
    /// Bytes that loading left. More than the usual bound may be here until they are stored.
    backlog: AtomicUsize,
    hurried: AtomicUsize,
    /// Something that was applied while loading may be here and nowhere else.
    unseen: AtomicBool,
    /// Why the writer waits for room on the disk.
    lacking: Mutex<Option<String>>,
}

/// While this lives, the writer delays nothing.
pub(super) struct Hurry<'a>(&'a WriteBehind);

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.hurried.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the writer does next, outside of the lock.
enum Job {
    /// Applies what is in flight. Then the store is as far as `reached`. While loading, more of
    /// what was loaded may come after it.
    Write {
        reached: Reached,
        in_memory: bool,
        loading: bool,
    },
    Checkpoint(Reached),
    Sweep {
        loading: bool,
    },
    Stop(Reached),
}

/// The writer's duties besides writing.
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

    /// Makes the writer write at once, until the result is dropped.
    pub fn hurry(&self) -> Hurry<'_> {
        self.hurried.fetch_add(1, Ordering::AcqRel);
        // Under the lock, so that the writer is not just about to rest.
        let _buffer = self.buffer.lock();
        self.work.notify_one();
        Hurry(self)
    }

    /// Forgets everything and begins at a position, loading. After this returns, the writer applies
    /// nothing until [`WriteBehind::push`].
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

    /// Takes applied records. Waits while there are too many. `in_memory`: other records are in the
    /// hot tier alone. `exact_from`: the positions from which on none are. `reached`: how far all
    /// records up to these go, if that is known.
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
        // A node that stops does not wait for what may never come. Neither does one whose store is
        // damaged.
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
        // What is in memory is there already. Own records that the applier has not reached yet are
        // not for the writer, which may have nothing left to do.
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

    /// The entry here of a key that is not in the hot tier. `None`: the store has the newest. This
    /// has to be called before the store is read, since records leave for the store.
    pub fn get(&self, database: u16, key: &[u8]) -> Option<Option<Entry>> {
        if !self.is_loaded_only() {
            return None;
        }
        self.newest(database, key)
    }

    /// The newest entry here of a key; `None` if there is no record of it here.
    pub fn newest(&self, database: u16, key: &[u8]) -> Option<Option<Entry>> {
        let name = Name::new(database, Bytes::copy_from_slice(key));
        let buffer = self.buffer.lock();
        let waiting = buffer.runs.iter().rev().map(|run| &run.shards[name.shard()]);
        let in_flight = buffer.in_flight.iter().rev().filter_map(|part| match &**part {
            Part::Shard(shard) => Some(shard),
            Part::Flush(_) => None,
        });
        let newest = waiting.chain(in_flight).find_map(|shard| shard.newest.get(&name))?;
        Some(newest.entry())
    }

    /// The elements here of a collection, under their records' keys: all those whose newest record
    /// is here. As with [`WriteBehind::get`], this has to be called before the store is read.
    pub fn elements(&self, database: u16, prefix: &Bytes) -> HashMap<Bytes, Change> {
        let mut found = HashMap::new();
        if !self.is_loaded_only() {
            return found;
        }
        let shard = Name::new(database, prefix.clone()).shard();
        let buffer = self.buffer.lock();
        let in_flight = buffer.in_flight.iter().filter_map(|part| match &**part {
            Part::Shard(shard) => Some(shard),
            Part::Flush(_) => None,
        });
        let waiting = buffer.runs.iter().map(|run| &run.shards[shard]);
        for (name, change) in in_flight.chain(waiting).flat_map(|shard| &shard.newest) {
            if name.database == database && name.key.starts_with(prefix) {
                found.insert(name.key.clone(), change.clone());
            }
        }
        found
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
                Job::Sweep {
                    loading: buffer.loading,
                }
            } else {
                self.work.wait_for(&mut buffer, wait.min(TICK));
                continue;
            };
            buffer.busy = true;
            return job;
        }
    }

    /// Writes what was taken. If it has to give up, because all is to be forgotten or the node
    /// cannot wait longer to stop, the positions stay as they were.
    fn write(&self, service: &Service, reached: Reached, in_memory: bool, loading: bool) -> Result<(), StoreError> {
        let started = Instant::now();
        let mut buffer = self.buffer.lock();
        while let Some(part) = buffer.in_flight.front().cloned() {
            if buffer.forgetting || buffer.is_out_of_patience() {
                buffer.in_flight.clear();
                return Ok(());
            }
            let apply = || match &*part {
                // Before a flush marker is applied, the store must hold every older record and no
                // newer one.
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

    /// Writes the states in memory that became unstored, below these positions. False if it has to
    /// give up.
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
                        service.digests.lacks_before(place, at.offset);
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
            // The applier may have passed it over already, after a group that it waits for.
            self.buffer.lock().in_memory |= is_left;
        }
        Ok(true)
    }

    /// Writes changes of a database that are in the hot tier. False if it has to give up.
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
            service.apply_to_store(now)?;
            for change in now {
                database.hot.stored(&change.key, At::of(change));
            }
            rest = later;
            self.progress.notify_all();
            service.progress.notify_waiters();
        }
        Ok(true)
    }

    /// The store is damaged: nothing more is written until everything begins again. False if the
    /// node stops before.
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

    /// Waits until the disk has room for this many bytes. False if it has to give up.
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

    /// Notes that this many bytes have left the buffer: there is more room.
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
            Payload::Control(Control::Features(_) | Control::Function(_) | Control::Passed | Control::Unknown) => {
                return;
            }
        }
        let new = change_bytes(&change);
        let name = Name::new(change.database, change.key.clone());
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

    /// The last run, which no flush marker has ended.
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

    /// How long until what is here has to be written.
    fn wait(&self, delay: Duration, much: bool, hurried: bool) -> Duration {
        let (now, never) = (Duration::ZERO, Duration::MAX);
        match self.since {
            // What was given up must not be reported as stored.
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

    /// Gives it to the store. False if there is no room for it and waiting is no use.
    fn apply(&self, service: &Service) -> Result<bool, StoreError> {
        let newest = match self {
            Part::Flush(change) => {
                let has_room = service.behind.wait_for_room(service, 0);
                if has_room {
                    service.apply_to_store(std::slice::from_ref(change))?;
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
            service.apply_to_store(&changes)?;
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

/// How many records of these sizes the store is given at once, at least one, and about how many
/// bytes that is.
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

/// The position of a flush marker: everything before the marker is below it.
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

/// Bytes of states in the hot tier that the store does not have yet.
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
    fn new(database: u16, key: Bytes) -> Name {
        let (home, own) = (home_key(&key), key_hash(&key));
        Name {
            hash: if home.len() == key.len() { own } else { key_hash(home) },
            own,
            database,
            key,
        }
    }

    fn shard(&self) -> usize {
        (self.hash >> 58) as usize % SHARDS
    }
}

/// Tells the applier that the writer has ended, in whatever way.
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
            Job::Write { .. } | Job::Sweep { .. } => ENGINE,
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
                // There may have been a flush in it.
                self.sweeping = true;
            }
            Job::Checkpoint(stored) => self.checkpoint(service, stored)?,
            Job::Sweep { loading } => {
                self.sweeping = service.store.sweep(SWEEP)?;
                // While loading a head can come after its elements.
                if !loading {
                    self.sweeping |= service.sweep_orphans(SWEEP)?;
                }
            }
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
            // The previous checkpoint still holds.
            self.last_checkpoint = Instant::now();
            return Ok(());
        }
        let mut checkpoint = Checkpoint::default();
        for (at, &position) in &stored.positions {
            let Some(source) = service.databases[at.database as usize].source.lock().clone() else {
                continue;
            };
            let of_database = checkpoint.databases.entry(at.database);
            let database = &service.databases[at.database as usize];
            let of_database = of_database.or_insert_with(|| DatabaseCheckpoint {
                source,
                features: database.features.all(),
                functions: database.functions.stored(database.applied_of_functions()),
                partitions: BTreeMap::new(),
            });
            of_database.partitions.insert(at.partition, position);
        }
        match service.store.checkpoint(&checkpoint) {
            // There was no room for its file, which is the last thing to be written.
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
