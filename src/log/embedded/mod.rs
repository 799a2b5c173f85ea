//! The log on local disk, for running without Kafka. It is the source of truth then.
//!
//! There is one physical log for all databases. Each database has one partition, and one sequence
//! gives the offsets of all (so a database sees gaps). Files in the log's directory:
//! - `00000000000000000000.segment` …: checksummed frames ([`frame`], [`segment`]); the newest
//!   segment is appended to;
//! - `meta`, `mark`: which log this is, and up to where it is known to be on the disk ([`meta`]);
//! - `LOCK`: one process per directory ([`lock`]); `reserve`, `reserve-compaction`: room that
//!   others cannot take ([`crate::room`]).
//!
//! Reading order: [`queue`] (batches in), [`writer`] (group commit, what happens when the disk
//! refuses), [`follower`] (records out), [`recovery`] (opening), [`compaction`] (the newest record
//! per key stays). The reasons are in `docs/decisions/embedded-log.md`. Nothing here knows of the
//! store, of RESP, or of what a command means.

pub mod compaction;
pub mod disk;
mod follower;
mod frame;
pub mod frozen;
pub mod lock;
mod meta;
mod queue;
mod recovery;
mod segment;
mod writer;

#[cfg(test)]
mod fault_disk;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use tracing::{debug, warn};

use self::compaction::CompactionOptions;
use self::disk::{Disk, LocalDisk};
use self::follower::EmbeddedFollower;
use self::lock::DirectoryLock;
use self::meta::{MarkFile, Meta};
use self::queue::Queue;
use self::segment::{Segment, io_error};
use self::writer::Writer;
use super::{Batch, Durability, Follower, Log, LogCounts, LogError, Positions, TopicIdentity, TopicPartition};
use crate::room::{KEPT_BY_LOG, KEPT_BY_STORE, Reserve, Room, SEGMENTS_OF_SMALL_DISK};
use crate::supervise::{self, Role};

/// When a record counts as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// Acknowledged, and seen by readers, once it is on the disk.
    Always,
    /// Acknowledged when the operating system has it; on the disk within about a second.
    EverySecond,
    /// Acknowledged when the operating system has it. The system writes it to the disk when it
    /// likes.
    No,
}

impl Fsync {
    pub fn name(self) -> &'static str {
        match self {
            Fsync::Always => "always",
            Fsync::EverySecond => "everysec",
            Fsync::No => "no",
        }
    }
}

#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    pub fsync: Fsync,
    /// Databases `0..databases` exist.
    pub databases: u16,
    /// A segment is closed when it has reached this size (so it can be larger by what is written at
    /// once).
    pub segment_bytes: u64,
    /// Bounds of the queue of batches that wait for the writer. A batch is refused if either is
    /// reached. The bound of bytes holds for small and for large batches apart.
    pub queue_batches: usize,
    pub queue_bytes: usize,
    pub compaction: CompactionOptions,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            fsync: Fsync::Always,
            databases: 16,
            segment_bytes: 64 * 1024 * 1024,
            queue_batches: 200_000,
            queue_bytes: 64 * 1024 * 1024,
            compaction: CompactionOptions::default(),
        }
    }
}

/// For INFO and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Offset after the newest record that readers see.
    pub end: u64,
    /// Everything below this offset is on the disk.
    pub durable: u64,
    pub segments: usize,
    pub disk_bytes: u64,
    pub purged_below: u64,
    pub compactions: u64,
    pub fsyncs: u64,
    /// Why nothing can be written until a restart.
    pub refusing: Option<String>,
    /// The newest write or fsync error, also one that has passed.
    pub last_error: Option<String>,
}

const MAX_RECORD_BYTES: usize = 513 * 1024 * 1024;

/// What the threads of a log share. Locks are taken in the order of the fields and held briefly.
struct Shared {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    options: EmbeddedOptions,
    queue: Mutex<Queue>,
    queue_filled: Condvar,
    /// Written only under the queue's lock.
    epoch: AtomicU64,
    registry: Mutex<Registry>,
    segments: RwLock<Vec<Arc<Segment>>>,
    /// Offset after the newest record that readers may see.
    end: Mutex<u64>,
    end_grown: Condvar,
    /// Everything below this offset is on the disk.
    durable: AtomicU64,
    mark: Mutex<MarkFile>,
    stopping: Mutex<Stopping>,
    stop_or_work: Condvar,
    fsyncs: AtomicU64,
    compactions: AtomicU64,
    last_error: Mutex<Option<String>>,
    reserves: Option<Reserves>,
}

/// Room that is kept on the disk.
struct Reserves {
    for_deletes: Reserve,
    for_compaction: Reserve,
}

/// Who reads where, and which records may be gone. Compaction and new followers agree on it under
/// one lock.
struct Registry {
    meta: Meta,
    followers: Vec<std::sync::Weak<AtomicU64>>,
}

#[derive(Default)]
struct Stopping {
    background: bool,
    writer_done: bool,
    segment_closed: bool,
    compact_now: bool,
}

impl Shared {
    fn note_error(&self, error: &str) {
        *self.last_error.lock() = Some(error.to_owned());
    }

    /// Asks for a compaction that does not wait for the usual amount of work: the disk lacks room,
    /// or much can be freed.
    fn compact_now(&self) {
        self.stopping.lock().compact_now = true;
        self.stop_or_work.notify_all();
    }

    /// Called when the disk is full to its last byte, or nearly so. Returns true if there is room
    /// again, which was kept for that.
    fn give_up_reserve(&self) -> bool {
        let given_up = self
            .reserves
            .as_ref()
            .is_some_and(|reserves| reserves.for_deletes.give_up());
        if given_up {
            warn!(
                "the disk of {} is full; using the room that was kept for deletes",
                self.dir.display()
            );
        }
        given_up
    }
}

impl Reserves {
    /// Keeps room for the time when the disk is full, if there is enough.
    fn keep(&self) {
        // Compaction's room first: compaction makes room.
        for (reserve, left) in [(&self.for_compaction, KEPT_BY_STORE), (&self.for_deletes, KEPT_BY_LOG)] {
            if let Err(error) = reserve.keep(left) {
                debug!(%error, "no room can be kept for a full disk");
            }
        }
    }
}

/// The length of a segment on the smallest disks, bytes.
const LEAST_SEGMENT: u64 = 64 << 10;

pub struct EmbeddedLog {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<Option<()>>>>,
    _lock: Option<DirectoryLock>,
}

impl EmbeddedLog {
    /// Opens the log in `dir` (created if need be), after verifying all of it. Blocking.
    pub fn open(dir: &Path, mut options: EmbeddedOptions) -> Result<Arc<Self>, LogError> {
        LocalDisk.create_dir(dir).map_err(|e| io_error("create", dir, &e))?;
        let lock = DirectoryLock::take(dir).map_err(|e| LogError::Failed(e.to_string()))?;
        let room = Room::of(dir).ok();
        if let Some(room) = room {
            // Compaction keeps room for one segment.
            let most = (room.total / SEGMENTS_OF_SMALL_DISK).max(LEAST_SEGMENT);
            options.segment_bytes = options.segment_bytes.min(most);
        }
        let reserves = Reserves {
            for_deletes: Reserve::for_deletes(dir),
            for_compaction: Reserve::for_compaction(dir, options.segment_bytes),
        };
        // The store will need room as well.
        match room.and_then(|room| room.refusal(dir, 0, KEPT_BY_STORE)) {
            Some(cause) if reserves.for_deletes.give_up() => {
                warn!("{cause}; starting with the room that was kept for that: delete what is not needed");
            }
            _ => reserves.keep(),
        }
        Self::open_on(Arc::new(LocalDisk), dir, options, Some(lock), Some(reserves))
    }

    fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: EmbeddedOptions,
        lock: Option<DirectoryLock>,
        reserves: Option<Reserves>,
    ) -> Result<Arc<Self>, LogError> {
        let recovered = recovery::recover(&*disk, dir, options.fsync != Fsync::Always)?;
        let next = recovered.next;
        let active = recovered
            .segments
            .last()
            .expect("recovery leaves the writer a segment")
            .clone();
        let shared = Arc::new(Shared {
            disk,
            dir: dir.to_path_buf(),
            options,
            queue: Mutex::new(Queue::default()),
            queue_filled: Condvar::new(),
            epoch: AtomicU64::new(0),
            registry: Mutex::new(Registry {
                meta: recovered.meta,
                followers: Vec::new(),
            }),
            segments: RwLock::new(recovered.segments),
            end: Mutex::new(next),
            end_grown: Condvar::new(),
            durable: AtomicU64::new(next),
            mark: Mutex::new(recovered.mark),
            stopping: Mutex::new(Stopping::default()),
            stop_or_work: Condvar::new(),
            fsyncs: AtomicU64::new(0),
            compactions: AtomicU64::new(0),
            last_error: Mutex::new(None),
            reserves,
        });
        let log = Arc::new(Self {
            shared: shared.clone(),
            threads: Mutex::default(),
            _lock: lock,
        });
        let writer = Writer::new(shared.clone(), active, next);
        log.spawn(&supervise::LOG_WRITER, move || writer.run())?;
        if shared.options.fsync == Fsync::EverySecond {
            let shared = shared.clone();
            log.spawn(&supervise::LOG_FSYNC, move || writer::sync_every_second(&shared))?;
        }
        if shared.options.compaction.enabled {
            log.spawn(&supervise::LOG_COMPACTION, move || compaction::run(&shared))?;
        }
        Ok(log)
    }

    fn spawn(&self, role: &'static Role, body: impl FnOnce() + Send + 'static) -> Result<(), LogError> {
        let thread = supervise::thread(role, body)
            .map_err(|e| LogError::Failed(format!("cannot start the thread {}: {e}", role.name)))?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Bytes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.shared.disk_bytes()
    }

    pub fn status(&self) -> Status {
        let shared = &self.shared;
        // Each lock is taken in a statement of its own: within the literal all of them would be
        // held to its end.
        let refusing = shared.queue.lock().refusing();
        let purged_below = shared.registry.lock().meta.purged_below;
        let segments = shared.segments.read().len();
        let end = *shared.end.lock();
        let last_error = shared.last_error.lock().clone();
        Status {
            end,
            durable: shared.durable.load(Ordering::Acquire),
            segments,
            disk_bytes: shared.disk_bytes(),
            purged_below,
            compactions: shared.compactions.load(Ordering::Relaxed),
            fsyncs: shared.fsyncs.load(Ordering::Relaxed),
            refusing,
            last_error,
        }
    }

    fn databases(&self) -> impl Iterator<Item = TopicPartition> {
        (0..self.shared.options.databases).map(|database| TopicPartition { database, partition: 0 })
    }
}

impl Shared {
    fn disk_bytes(&self) -> u64 {
        self.segments.read().iter().map(|segment| segment.readable()).sum()
    }
}

impl Log for EmbeddedLog {
    fn describe(&self) -> String {
        format!(
            "embedded log in {} (fsync {})",
            self.shared.dir.display(),
            self.shared.options.fsync.name()
        )
    }

    fn kind(&self) -> &'static str {
        "embedded"
    }

    fn durability(&self, _database: u16) -> Durability {
        Durability {
            copies: 1,
            on_disk_here: self.shared.options.fsync == Fsync::Always,
        }
    }

    fn identity(&self, database: u16) -> Option<TopicIdentity> {
        if database >= self.shared.options.databases {
            return None;
        }
        let meta = self.shared.registry.lock().meta;
        Some(TopicIdentity {
            topic: format!("db{database}"),
            id: format!("{}.{}", meta.id_text(), meta.generation),
            partitions: 1,
            partitioner: "",
            read_only: false,
            starts: Vec::new(),
        })
    }

    fn create(&self, database: u16) -> Result<(), LogError> {
        if database < self.shared.options.databases {
            return Ok(());
        }
        let databases = self.shared.options.databases;
        Err(LogError::Failed(format!(
            "database {database} does not exist: the log was opened with {databases}"
        )))
    }

    fn partition(&self, _database: u16, _key: &[u8]) -> u32 {
        0
    }

    fn max_record_bytes(&self, _database: u16) -> usize {
        MAX_RECORD_BYTES
    }

    fn chains(&self) -> bool {
        true
    }

    fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::Acquire)
    }

    fn produce(&self, batch: Batch, epoch: u64) {
        self.shared.produce(batch, epoch);
    }

    fn ends(&self, _timeout: Duration) -> Result<Positions, LogError> {
        let end = *self.shared.end.lock();
        Ok(self.databases().map(|at| (at, end)).collect())
    }

    fn follow(&self, from: &Positions) -> Result<Box<dyn Follower>, LogError> {
        let from = self.databases().map(|at| from.get(&at).copied().unwrap_or(0)).collect();
        Ok(Box::new(EmbeddedFollower::start(self.shared.clone(), from)?))
    }

    fn counts(&self) -> LogCounts {
        let status = self.status();
        LogCounts::Embedded {
            disk_bytes: status.disk_bytes,
            segments: status.segments as u64,
            compactions: status.compactions,
            fsyncs: status.fsyncs,
        }
    }

    fn close(&self, timeout: Duration) {
        self.shared.stop_taking_batches();
        let deadline = Instant::now() + timeout;
        let mut stopping = self.shared.stopping.lock();
        stopping.background = true;
        self.shared.stop_or_work.notify_all();
        while !stopping.writer_done {
            if self.shared.stop_or_work.wait_until(&mut stopping, deadline).timed_out() {
                tracing::warn!("the log's writer did not finish in time");
                return;
            }
        }
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.shared.stop_taking_batches();
        self.shared.stopping.lock().background = true;
        self.shared.stop_or_work.notify_all();
        for thread in self.threads.lock().drain(..) {
            // The thread has reported it if it panicked.
            let _ = thread.join();
        }
    }
}
