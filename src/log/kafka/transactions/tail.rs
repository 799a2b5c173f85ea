//! The newest records of the log, committed or not: who wrote what since a command was computed. Owns a consumer that reads
//! uncommitted records, on a thread of its own, and a bounded window over each partition.
//!
//! Of a record only its offset and a hash of its key are kept. Two keys with one hash look like a conflict where there is none,
//! which costs a repetition, never an update. The tail is read only while the lane is in use.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use smallvec::SmallVec;

use super::super::config::{Config, Isolation};
use super::super::context::Health;
use super::super::follower::KafkaFollower;
use super::super::topics::Topics;
use super::{Conflict, checked, is_in_one_partition, with_places};
use crate::log::record::FLUSH_KEY;
use crate::log::{Appended, Batch, Follower, LogError, Positions, Read, TopicPartition};
use crate::supervise;

/// Records that a window holds (16 bytes each). What was computed on an older state than that is computed again.
const WINDOW: usize = 1 << 20;
/// Without a batch for so long the tail is not read any more.
const UNUSED: Duration = Duration::from_secs(10);
/// How long a poll waits: so late the thread notices that it should stop.
const POLL: Duration = Duration::from_millis(100);

type KeyHasher = foldhash::fast::RandomState;

pub(super) struct Tail {
    config: Arc<Config>,
    topics: Arc<Topics>,
    health: Arc<Health>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Option<()>>>,
    used: Instant,
    /// It did not come in time. A new consumer reads it for the next batch: librdkafka can wait for long on a connection that answers
    /// nothing any more.
    late: bool,
}

struct Shared {
    hasher: KeyHasher,
    flush: u64,
    windows: Mutex<Windows>,
    /// Told when a window has moved on, or the thread has ended.
    moved: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct Windows {
    by_partition: HashMap<TopicPartition, Window>,
    /// Why the thread has ended, or does not run yet.
    ended: Option<String>,
}

/// One partition's newest records of others.
#[derive(Default)]
struct Window {
    /// Offset and hash of the key, in order.
    records: VecDeque<(u64, u64)>,
    /// Nothing is known of what is below.
    from: u64,
    /// The next offset to be read.
    next: u64,
    /// Own records that were decided before the tail read them: nobody's conflict.
    decided: BTreeSet<u64>,
}

impl Window {
    fn push(&mut self, offset: u64, hash: u64) {
        self.next = offset + 1;
        if self.decided.remove(&offset) {
            return;
        }
        if self.records.len() == WINDOW
            && let Some((gone, _)) = self.records.pop_front()
        {
            self.from = gone + 1;
        }
        self.records.push_back((offset, hash));
    }

    fn decide(&mut self, offset: u64) {
        if offset >= self.next {
            self.decided.insert(offset);
        } else if let Ok(place) = self.records.binary_search_by_key(&offset, |(offset, _)| *offset) {
            self.records.remove(place);
        }
    }

    /// The records from `known` on, below `limit`.
    fn between(&self, known: u64, limit: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let first = self.records.partition_point(|(offset, _)| *offset < known);
        let records = self.records.range(first..).copied();
        records.take_while(move |(offset, _)| *offset < limit)
    }
}

/// A read of a batch, as the check looks for it.
struct Wanted {
    batch: usize,
    known: u64,
    /// Records from here on do not matter.
    limit: u64,
}

/// The reads of a group in one partition.
#[derive(Default)]
struct Reads {
    by_key: HashMap<u64, SmallVec<[Wanted; 1]>>,
    /// Reads of the whole partition.
    all: Vec<Wanted>,
    lowest: u64,
    limit: u64,
}

impl Reads {
    fn add(&mut self, key: Option<u64>, wanted: Wanted) {
        let first = self.limit == 0;
        self.lowest = if first {
            wanted.known
        } else {
            self.lowest.min(wanted.known)
        };
        self.limit = self.limit.max(wanted.limit);
        match key {
            Some(key) => self.by_key.entry(key).or_default().push(wanted),
            None => self.all.push(wanted),
        }
    }
}

impl Tail {
    pub fn new(config: &Arc<Config>, topics: &Arc<Topics>, health: &Arc<Health>) -> Tail {
        Tail {
            config: config.clone(),
            topics: topics.clone(),
            health: health.clone(),
            shared: Arc::new(Shared::new(Windows::default())),
            thread: None,
            used: Instant::now(),
            late: false,
        }
    }

    /// Sees to it that the tail is read, from what these batches were computed on if it was not read before. `appended` are the places of all
    /// their records, or none while they are not sent.
    pub fn watch(&mut self, batches: &[&Batch], appended: &[Appended], deadline: Instant) -> Result<(), String> {
        self.used = Instant::now();
        if std::mem::take(&mut self.late) {
            tracing::debug!("the log's tail did not come in time: a new consumer reads it");
            self.shared.stop.store(true, Ordering::Release);
            // The thread ends by itself: its consumer may take long to close that connection.
            self.thread = None;
            let windows = std::mem::take(&mut *self.shared.windows.lock());
            self.shared = Arc::new(Shared::new(windows));
        }
        let reads = || with_places(batches, appended).flat_map(|(batch, mine)| checked(batch, mine));
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) || reads().next().is_none() {
            return Ok(());
        }
        self.rest();
        let left = deadline.saturating_duration_since(Instant::now());
        let mut from = self.topics.ends(left).map_err(|e| e.to_string())?;
        for read in reads() {
            let from = from.entry(read.at).or_insert(read.known);
            *from = (*from).min(read.known);
        }
        self.start(&from).map_err(|error| error.to_string())
    }

    fn start(&mut self, from: &Positions) -> Result<(), LogError> {
        let follower = KafkaFollower::start(&self.config, &self.topics, &self.health, from, Isolation::Uncommitted)?;
        let mut windows = self.shared.windows.lock();
        let mut before = std::mem::take(&mut *windows).by_partition;
        for (&at, &from) in from {
            // Own records that the thread before this one has not read yet.
            let decided = before.remove(&at).map(|mut window| window.decided.split_off(&from));
            let window = Window {
                from,
                next: from,
                decided: decided.unwrap_or_default(),
                ..Window::default()
            };
            windows.by_partition.insert(at, window);
        }
        drop(windows);
        self.shared.stop.store(false, Ordering::Release);
        let shared = self.shared.clone();
        let thread = supervise::thread(&supervise::TRANSACTIONS_TAIL, move || shared.read(follower))
            .map_err(|error| LogError::Failed(format!("cannot start a thread: {error}")))?;
        self.thread = Some(thread);
        Ok(())
    }

    pub fn rest_if_unused(&mut self) {
        if self.used.elapsed() > UNUSED {
            self.rest();
        }
    }

    fn rest(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It has told if it panicked.
            let _ = thread.join();
        }
    }

    /// These own records are decided, one way or the other: what was computed before them comes before them in the lane, and what
    /// was computed after them knew of them.
    pub fn decided(&self, appended: &[Appended]) {
        let mut windows = self.shared.windows.lock();
        if windows.ended.is_some() {
            return;
        }
        for own in appended {
            if let Some(window) = windows.by_partition.get_mut(&own.at) {
                window.decide(own.offset);
            }
        }
    }

    /// A conflict that the tail has seen already, before anything is sent.
    pub fn seen_conflict(&self, batch: &Batch) -> Option<(TopicPartition, u64)> {
        let windows = self.shared.windows.lock();
        if windows.ended.is_some() {
            return None;
        }
        checked(batch, &[]).find_map(|read| {
            let window = windows.by_partition.get(&read.at)?;
            if read.known < window.from {
                return Some((read.at, window.from));
            }
            let key = self.hash(read);
            let conflicts = |hash| key.is_none_or(|key| key == hash) || hash == self.shared.flush;
            let mut records = window.between(read.known, u64::MAX);
            records
                .find(|(_, hash)| conflicts(*hash))
                .map(|(offset, _)| (read.at, offset + 1))
        })
    }

    fn hash(&self, read: &Read) -> Option<u64> {
        read.key.as_ref().map(|key| self.shared.hasher.hash_one(&key[..]))
    }

    /// Waits until everything that came before these records is known, and says which batches somebody else got ahead of, in their
    /// order. `appended` are the places of all their records; `ends` is there if a
    /// batch is not in one partition.
    pub fn conflicts(
        &mut self,
        batches: &[&Batch],
        appended: &[Appended],
        ends: Option<&Positions>,
        deadline: Instant,
    ) -> Result<Vec<Conflict>, String> {
        let reads = self.reads(batches, appended, ends);
        let own: std::collections::HashSet<(TopicPartition, u64)> =
            appended.iter().map(|own| (own.at, own.offset)).collect();
        let mut found: HashMap<usize, (TopicPartition, u64)> = HashMap::new();
        for (at, reads) in &reads {
            let Some(windows) = self.shared.wait_for(*at, reads.limit, deadline)? else {
                self.late = true;
                return Err("Kafka did not give the newest records within the write timeout".into());
            };
            let Some(window) = windows.by_partition.get(at) else {
                return Err("the log's tail is not read".into());
            };
            let mut conflict = |wanted: &Wanted, after: u64| {
                if after > wanted.known && after <= wanted.limit {
                    found.entry(wanted.batch).or_insert((*at, after));
                }
            };
            if reads.lowest < window.from {
                let old = |wanted: &&Wanted| wanted.known < window.from;
                let all = reads.by_key.values().flatten().chain(&reads.all);
                all.filter(old)
                    .for_each(|wanted| conflict(wanted, window.from.min(wanted.limit)));
            }
            for (offset, hash) in window.between(reads.lowest, reads.limit) {
                let flush = hash == self.shared.flush;
                let of_key = reads.by_key.get(&hash);
                if (of_key.is_none() && reads.all.is_empty() && !flush) || own.contains(&(*at, offset)) {
                    continue;
                }
                let everybody = reads.by_key.values().filter(|_| flush);
                for wanted in everybody.chain(of_key).flatten().chain(&reads.all) {
                    conflict(wanted, offset + 1);
                }
            }
        }
        let mut conflicts: Vec<_> = found.into_iter().collect();
        conflicts.sort_unstable_by_key(|(batch, _)| *batch);
        Ok(conflicts)
    }

    /// What the batches read, by partition, and up to where others may have come before them.
    fn reads(
        &self,
        batches: &[&Batch],
        appended: &[Appended],
        ends: Option<&Positions>,
    ) -> HashMap<TopicPartition, Reads> {
        let mut all: HashMap<TopicPartition, Reads> = HashMap::new();
        for (place, (batch, mine)) in with_places(batches, appended).enumerate() {
            let last = mine.iter().map(|own| own.offset + 1).max();
            let together = is_in_one_partition(batch);
            for read in checked(batch, mine) {
                let limit = match (together, ends) {
                    (false, Some(ends)) => ends.get(&read.at).copied(),
                    _ => last,
                };
                let wanted = Wanted {
                    batch: place,
                    known: read.known,
                    limit: limit.unwrap_or(u64::MAX),
                };
                all.entry(read.at).or_default().add(self.hash(read), wanted);
            }
        }
        all
    }
}

/// Tells those who wait for the tail that it is not read any more, however that came.
struct Ended<'s> {
    shared: &'s Shared,
    cause: String,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.shared.windows.lock().ended = Some(std::mem::take(&mut self.cause));
        self.shared.moved.notify_all();
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.rest();
    }
}

impl Shared {
    /// `windows`: of a thread before this one.
    fn new(windows: Windows) -> Shared {
        let hasher = KeyHasher::default();
        Shared {
            flush: hasher.hash_one(FLUSH_KEY.as_slice()),
            hasher,
            windows: Mutex::new(Windows {
                ended: Some("the log's tail is not read yet".into()),
                ..windows
            }),
            moved: Condvar::new(),
            stop: AtomicBool::new(false),
        }
    }

    /// Waits until the tail of a partition has been read up to `limit`; `None` if that does not come in time.
    fn wait_for(
        &self,
        at: TopicPartition,
        limit: u64,
        deadline: Instant,
    ) -> Result<Option<parking_lot::MutexGuard<'_, Windows>>, String> {
        let mut windows = self.windows.lock();
        loop {
            if windows.by_partition.get(&at).is_some_and(|window| window.next >= limit) {
                return Ok(Some(windows));
            }
            if let Some(cause) = &windows.ended {
                return Err(cause.clone());
            }
            if self.moved.wait_until(&mut windows, deadline).timed_out() {
                return Ok(None);
            }
        }
    }

    /// The thread.
    fn read(&self, mut follower: KafkaFollower) {
        let mut ended = Ended {
            shared: self,
            cause: "the thread that reads the log's tail panicked; it is started again".to_owned(),
        };
        ended.cause = self.read_until_stopped(&mut follower);
    }

    /// Why it ended.
    fn read_until_stopped(&self, follower: &mut KafkaFollower) -> String {
        let mut records: Vec<(TopicPartition, u64, u64)> = Vec::new();
        loop {
            supervise::busy(Duration::ZERO);
            if self.stop.load(Ordering::Acquire) {
                return "the log's tail is not read any more".to_owned();
            }
            let mut take = |at, offset, key: &[u8]| records.push((at, offset, self.hasher.hash_one(key)));
            if let Err(error) = follower.poll_keys(&mut take, POLL) {
                return error.to_string();
            }
            let mut windows = self.windows.lock();
            for (at, offset, hash) in records.drain(..) {
                windows.by_partition.entry(at).or_default().push(offset, hash);
            }
            for (at, next) in follower.positions() {
                let window = windows.by_partition.entry(at).or_default();
                window.next = window.next.max(next);
            }
            drop(windows);
            self.moved.notify_all();
        }
    }
}
