//! The newest records of the log, committed or not: who wrote what since a command was computed.
//! This module owns a consumer that reads uncommitted records, on a thread of its own, and a
//! bounded window over each partition.
//!
//! Only the offset of a record and hashes of its names are kept. Two keys with the same hash look
//! like a conflict where there is none. That costs a repetition, never an update. The tail is read
//! only while the lane is in use.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use smallvec::{SmallVec, smallvec};

use super::super::config::{Config, Isolation};
use super::super::context::Health;
use super::super::follower::KafkaFollower;
use super::super::topics::Topics;
use super::{Conflict, checked, is_in_one_partition, with_places};
use crate::log::record::FLUSH_KEY;
use crate::log::{Appended, Batch, Follower, LogError, Positions, Read, TopicPartition};
use crate::model::{ElementName, PASSED_KEY, Span, place_of};
use crate::supervise;

/// How many names of records a window holds (24 bytes each). A batch that was computed on an older
/// state than that is computed again.
const WINDOW: usize = 1 << 20;
/// After this long without a batch the tail is not read any more.
const UNUSED: Duration = Duration::from_secs(10);
/// How long a poll waits, and so how late the thread notices that it should stop.
const POLL: Duration = Duration::from_millis(100);

type KeyHasher = foldhash::fast::RandomState;

pub(super) struct Tail {
    config: Arc<Config>,
    topics: Arc<Topics>,
    health: Arc<Health>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Option<()>>>,
    used: Instant,
    /// The tail did not come in time. A new consumer reads it for the next batch: librdkafka can
    /// wait for long on a connection that answers nothing any more.
    late: Cell<bool>,
}

struct Shared {
    hasher: KeyHasher,
    flush: u64,
    windows: Mutex<Windows>,
    /// Notified when a window has moved on, or the thread has ended.
    moved: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct Windows {
    by_partition: HashMap<TopicPartition, Window>,
    /// Why the thread has ended, or does not run yet.
    ended: Option<String>,
}

/// A name by which a record is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    hash: u64,
    /// With the name of a collection: where it is given an element, at least 1; 0 if the element is
    /// removed. See [`Read::added`].
    added: u64,
}

/// That of the record's key; and of an element that of its collection, for those who read all of it
/// or a part of it.
type Names = SmallVec<[Name; 2]>;

fn names(hasher: &KeyHasher, key: &[u8], has_value: bool) -> Names {
    let name = |of: &[u8], added| Name {
        hash: hasher.hash_one(of),
        added,
    };
    let Some(ElementName { sub_key, .. }) = ElementName::parse(key) else {
        return smallvec![name(key, 0)];
    };
    let added = if has_value { added_at(place_of(sub_key)) } else { 0 };
    let collection = &key[..key.len() - sub_key.len()];
    match sub_key.is_empty() {
        // Both have one name.
        true => smallvec![name(key, added)],
        false => smallvec![name(key, 0), name(collection, added)],
    }
}

/// The two lowest places count as one: 0 stands for an element that is removed.
fn added_at(place: u64) -> u64 {
    place.max(1)
}

/// The newest records of other writers in one partition.
#[derive(Default)]
struct Window {
    /// Their offsets and names, in order. An element's record stands here twice, see [`Names`].
    records: VecDeque<(u64, Name)>,
    /// Nothing is known of the records below this offset.
    from: u64,
    /// The next offset to be read.
    next: u64,
    /// Own records that were decided before the tail read them. They conflict with nothing.
    decided: BTreeSet<u64>,
}

impl Window {
    fn push(&mut self, offset: u64, names: Names) {
        self.next = offset + 1;
        if !self.decided.remove(&offset) {
            names.into_iter().for_each(|name| self.keep(offset, name));
        }
    }

    fn keep(&mut self, offset: u64, name: Name) {
        if self.records.len() == WINDOW
            && let Some((gone, _)) = self.records.pop_front()
        {
            self.from = gone + 1;
        }
        self.records.push_back((offset, name));
    }

    fn decide(&mut self, offset: u64) {
        if offset >= self.next {
            self.decided.insert(offset);
        } else {
            let first = self.records.partition_point(|(other, _)| *other < offset);
            while self.records.get(first).is_some_and(|(other, _)| *other == offset) {
                self.records.remove(first);
            }
        }
    }

    /// The records from `known` on, below `limit`.
    fn between(&self, known: u64, limit: u64) -> impl Iterator<Item = (u64, Name)> + '_ {
        let first = self.records.partition_point(|(offset, _)| *offset < known);
        let records = self.records.range(first..).copied();
        records.take_while(move |(offset, _)| *offset < limit)
    }
}

/// A read of a batch, as the check needs it.
struct Wanted {
    batch: usize,
    known: u64,
    /// Records from this offset on do not matter.
    limit: u64,
    /// See [`Read::added`].
    added: Option<Span>,
}

/// Whether a record with the name that was read, which is a collection's if there is a span, is
/// among what was read.
fn concerns(added: Option<Span>, name: Name) -> bool {
    added.is_none_or(|span| name.added > 0 && (added_at(span.from)..=added_at(span.to)).contains(&name.added))
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
            late: Cell::new(false),
        }
    }

    /// Makes sure that the tail is read; if it was not read before, from the positions that these
    /// batches were computed on. `appended` are the places of all their records, or none while they
    /// are not sent.
    pub fn watch(&mut self, batches: &[&Batch], appended: &[Appended], deadline: Instant) -> Result<(), String> {
        self.used = Instant::now();
        if self.late.take() {
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
            // Own records that a thread which was late has not read.
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
            // The thread has reported it if it panicked.
            let _ = thread.join();
            // The next thread may read another log.
            self.shared.windows.lock().by_partition.clear();
        }
    }

    /// These own records are decided, one way or the other. What was computed before them comes
    /// before them in the lane, and what was computed after them knew of them.
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
            let is_read = |name: Name| key.is_none_or(|key| key == name.hash && concerns(read.added, name));
            let mut records = window.between(read.known, u64::MAX);
            records
                .find(|(_, name)| is_read(*name) || name.hash == self.shared.flush)
                .map(|(offset, _)| (read.at, offset + 1))
        })
    }

    fn hash(&self, read: &Read) -> Option<u64> {
        read.key.as_ref().map(|key| self.shared.hasher.hash_one(&key[..]))
    }

    /// Waits until everything that came before these records is known. Returns the batches that
    /// another writer came before, in their order. `appended` are the places of all their records;
    /// `ends` is there if a batch is not in one partition.
    pub fn conflicts(
        &self,
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
                self.late.set(true);
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
            for (offset, name) in window.between(reads.lowest, reads.limit) {
                let flush = name.hash == self.shared.flush;
                let of_key = reads.by_key.get(&name.hash);
                if (of_key.is_none() && reads.all.is_empty() && !flush) || own.contains(&(*at, offset)) {
                    continue;
                }
                let everybody = reads.by_key.values().filter(|_| flush).flatten();
                let of_key = of_key.into_iter().flatten().filter(|read| concerns(read.added, name));
                for wanted in everybody.chain(of_key).chain(&reads.all) {
                    conflict(wanted, offset + 1);
                }
            }
        }
        let mut conflicts: Vec<_> = found.into_iter().collect();
        conflicts.sort_unstable_by_key(|(batch, _)| *batch);
        Ok(conflicts)
    }

    /// What the batches read, by partition, and up to which offset other writers may have come
    /// before them.
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
                    added: read.added,
                };
                all.entry(read.at).or_default().add(self.hash(read), wanted);
            }
        }
        all
    }
}

/// Reports to those who wait for the tail that it is not read any more, however that came.
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
    /// `windows`: those of an earlier thread.
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

    /// Waits until the tail of a partition has been read up to `limit`. Returns `None` if that does
    /// not come in time.
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

    /// Runs on the thread.
    fn read(&self, mut follower: KafkaFollower) {
        let mut ended = Ended {
            shared: self,
            cause: "the thread that reads the log's tail panicked; it is started again".to_owned(),
        };
        ended.cause = self.read_until_stopped(&mut follower);
    }

    /// Reads until it is stopped or fails; returns why it ended.
    fn read_until_stopped(&self, follower: &mut KafkaFollower) -> String {
        let mut records: Vec<(TopicPartition, u64, Names)> = Vec::new();
        loop {
            supervise::busy(Duration::ZERO);
            if self.stop.load(Ordering::Acquire) {
                return "the log's tail is not read any more".to_owned();
            }
            let mut take = |at, offset, key: &[u8], has_value| {
                if key == PASSED_KEY {
                    return;
                }
                records.push((at, offset, names(&self.hasher, key, has_value)));
            };
            if let Err(error) = follower.poll_keys(&mut take, POLL) {
                return error.to_string();
            }
            let mut windows = self.windows.lock();
            for (at, offset, names) in records.drain(..) {
                windows.by_partition.entry(at).or_default().push(offset, names);
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

#[cfg(test)]
mod tests {
    use super::super::tests::{appended, at, batch};
    use super::*;
    use crate::model::{StreamId, StreamPart, Version};

    const SHORT: Duration = Duration::from_millis(10);

    /// A tail that has read these records of partitions 0 and 1, from these offsets on, up to
    /// offset 20.
    fn tail_from(from: [u64; 2], records: &[(u32, u64, &[u8])]) -> Tail {
        let (config, health) = (Arc::default(), Arc::default());
        let topics = Arc::new(Topics::fixed(&config, &health, Vec::new()));
        let tail = Tail::new(&config, &topics, &health);
        let mut windows = Windows::default();
        for (partition, from) in (0..).zip(from) {
            let window = windows.by_partition.entry(at(partition)).or_default();
            (window.from, window.next) = (from, from);
            for (_, offset, key) in records.iter().filter(|(of, ..)| *of == partition) {
                window.push(*offset, names(&tail.shared.hasher, key, true));
            }
            window.next = 20;
        }
        *tail.shared.windows.lock() = windows;
        tail
    }

    fn tail(records: &[(u32, u64, &[u8])]) -> Tail {
        tail_from([0, 0], records)
    }

    fn conflicts(tail: &Tail, batches: &[Batch], appended: &[Appended], ends: Option<u64>) -> Vec<(usize, u64)> {
        let ends = ends.map(|end| Positions::from([(at(0), 20), (at(1), end)]));
        let batches: Vec<&Batch> = batches.iter().collect();
        let found = tail.conflicts(&batches, appended, ends.as_ref(), Instant::now() + SHORT);
        let found = found.expect("a tail that has read all");
        found.into_iter().map(|(batch, (_, after))| (batch, after)).collect()
    }

    #[test]
    fn whoever_wrote_a_key_between_the_read_and_the_write_comes_first() {
        let of = |offset, key| {
            let tail = tail(&[(0, offset, key), (0, 9, b"k")]);
            conflicts(&tail, &[batch(&[(0, 5)])], &[appended(0, 9)], None)
        };
        assert_eq!(of(4, b"k"), [], "the reader knew of it");
        assert_eq!(of(5, b"k"), [(0, 6)]);
        assert_eq!(of(8, b"k"), [(0, 9)]);
        assert_eq!(of(7, b"other"), []);
        assert_eq!(of(4, FLUSH_KEY), []);
        assert_eq!(of(7, FLUSH_KEY), [(0, 8)], "a flush is a change of every key");
        let later = tail(&[(0, 9, b"k"), (0, 10, b"k")]);
        let mine = [appended(0, 9)];
        assert_eq!(conflicts(&later, &[batch(&[(0, 5)])], &mine, None), []);
    }

    #[test]
    fn a_batch_conflicts_by_what_it_knew_itself() {
        let all = [batch(&[(0, 8)]), batch(&[(0, 2)]), batch(&[])];
        let mine = [appended(0, 9), appended(0, 10), appended(0, 11)];
        let own: [(u32, u64, &[u8]); 3] = [(0, 9, b"k"), (0, 10, b"k"), (0, 11, b"k")];
        let with = |record| tail(&[&[record][..], &own].concat());
        assert_eq!(conflicts(&tail(&own), &all, &mine, None), []);
        assert_eq!(conflicts(&with((0, 3, b"k")), &all, &mine, None), [(1, 4)]);
        assert_eq!(conflicts(&with((0, 8, b"k")), &all, &mine, None), [(0, 9), (1, 9)]);
        let turned = [batch(&[(0, 2)]), batch(&[(0, 8)]), batch(&[])];
        assert_eq!(conflicts(&with((0, 3, b"k")), &turned, &mine, None), [(0, 4)]);
    }

    #[test]
    fn a_read_of_all_keys_conflicts_with_any_of_them() {
        let mut all = batch(&[(0, 5)]);
        all.condition.as_mut().expect("a condition").reads[0].key = None;
        let mine = [appended(0, 9)];
        for key in [&b"other"[..], FLUSH_KEY] {
            let conflicts_with =
                |offset| conflicts(&tail(&[(0, offset, key)]), std::slice::from_ref(&all), &mine, None);
            assert_eq!((conflicts_with(4), conflicts_with(5)), (vec![], vec![(0, 6)]));
            let seen = |offset| tail(&[(0, offset, key)]).seen_conflict(&all);
            assert_eq!((seen(4), seen(5)), (None, Some((at(0), 6))));
        }
    }

    #[test]
    fn an_element_that_is_added_conflicts_with_who_rests_on_its_place() {
        let (key, version) = (b"s", Version::new(1));
        let name = |sub_key: &[u8]| ElementName { key, version, sub_key }.record_key();
        let conflicts = |span: Span, sub_key: &[u8], has_value: bool| {
            let tail = tail(&[]);
            let names = names(&tail.shared.hasher, &name(sub_key), has_value);
            let mut read = batch(&[(0, 5)]);
            let reads = &mut read.condition.as_mut().expect("a condition").reads;
            (reads[0].key, reads[0].added) = (Some(name(b"")), Some(span));
            let mut windows = tail.shared.windows.lock();
            let window = windows.by_partition.get_mut(&at(0)).expect("a window");
            window.push(7, names);
            window.next = 20;
            drop(windows);
            let seen = tail.seen_conflict(&read).is_some();
            let found = super::tests::conflicts(&tail, &[read], &[appended(0, 9)], None);
            assert_eq!(seen, !found.is_empty());
            seen
        };
        let entries = StreamPart::span_of_entries();
        let entry = StreamPart::Entry(StreamId { ms: 1, seq: 1 }).sub_key();
        let pending = StreamPart::Pending(b"e", StreamId { ms: 1, seq: 1 }).sub_key();
        for (span, sub_key, has_value, is_conflict) in [
            (entries, &entry[..], true, true),
            (entries, &entry, false, false),
            (entries, &pending, true, false),
            (entries, b"gexxxxxxxxxxxxxxxx", true, false),
            (Span::up_to(b"11111111"), b"11111111", true, true),
            (Span::up_to(b"11111111"), b"11111110x", true, true),
            (Span::up_to(b"11111111"), b"11111112", true, false),
            (Span::up_to(b"11111111"), b"11111110", false, false),
            (Span::since(b"11111111"), b"11111110", true, false),
            (Span::since(b"11111111"), b"2", true, true),
            (Span::ALL, b"", true, true),
            (Span::up_to(b""), b"\0", true, true),
            (Span::ALL, b"x", true, true),
            (Span::ALL, b"x", false, false),
        ] {
            assert_eq!(
                conflicts(span, sub_key, has_value),
                is_conflict,
                "{sub_key:?} {has_value}"
            );
        }
    }

    #[test]
    fn a_read_of_all_elements_conflicts_with_any_of_them() {
        let version = Version::new(1);
        let name = |key: &'static [u8], sub_key: &'static [u8]| {
            let name = ElementName { key, version, sub_key };
            name.record_key()
        };
        let read = |key| {
            let mut of = batch(&[(0, 5)]);
            of.condition.as_mut().expect("a condition").reads[0].key = Some(key);
            of
        };
        let (field, other, all) = (name(b"h", b"f"), name(b"h", b"g"), name(b"h", b""));
        let foreign = |key: &[u8]| tail(&[(0, 7, key)]);
        for (key, is_conflict) in [(&field, true), (&other, false), (&all, true)] {
            let found = foreign(&field).seen_conflict(&read(key.clone()));
            assert_eq!(found.is_some(), is_conflict, "{key:?}");
        }
        assert_eq!(foreign(&name(b"i", b"f")).seen_conflict(&read(all.clone())), None);
        let decided = foreign(&field);
        decided.decided(&[appended(0, 7)]);
        for key in [field, all] {
            assert_eq!(decided.seen_conflict(&read(key)), None, "both names are forgotten");
        }
    }

    #[test]
    fn what_was_known_before_the_window_begins_counts_as_old() {
        let of = |from| conflicts(&tail_from([from, 0], &[]), &[batch(&[(0, 5)])], &[appended(0, 9)], None);
        assert_eq!((of(5), of(6), of(15)), (vec![], vec![(0, 6)], vec![(0, 10)]));
        let seen = |from| tail_from([from, 0], &[]).seen_conflict(&batch(&[(0, 5)]));
        assert_eq!((seen(5), seen(6)), (None, Some((at(0), 6))));
    }

    #[test]
    fn over_several_partitions_everything_up_to_the_end_counts() {
        let of = |offset, end| {
            let tail = tail(&[(1, offset, b"k")]);
            conflicts(&tail, &[batch(&[(1, 5)])], &[appended(0, 9)], Some(end))
        };
        assert_eq!(of(4, 16), []);
        assert_eq!(
            of(15, 16),
            [(0, 16)],
            "its own records are behind offset 9 of another partition"
        );
        assert_eq!(of(16, 16), []);
    }

    #[test]
    fn a_conflict_is_seen_before_anything_is_sent() {
        let seen = |offset, key| tail(&[(0, offset, key)]).seen_conflict(&batch(&[(0, 5)]));
        assert_eq!(seen(4, b"k"), None);
        assert_eq!(seen(5, b"k"), Some((at(0), 6)));
        assert_eq!(seen(7, FLUSH_KEY), Some((at(0), 8)));
        assert_eq!(seen(7, b"other"), None);
        let ended = tail(&[(0, 7, b"k")]);
        ended.shared.windows.lock().ended = Some("ended".into());
        assert_eq!(ended.seen_conflict(&batch(&[(0, 5)])), None, "it would be old");
    }

    #[test]
    fn what_this_node_wrote_is_nobodys_conflict_once_it_is_decided() {
        let read = batch(&[(0, 5)]);
        let tail = tail(&[(0, 7, b"k"), (0, 8, b"other")]);
        tail.decided(&[appended(0, 7), appended(0, 21)]);
        assert_eq!(tail.seen_conflict(&read), None, "it was read before");
        let key = tail.shared.hasher.hash_one(&b"k"[..]);
        let push = |offset| {
            let mut windows = tail.shared.windows.lock();
            windows
                .by_partition
                .get_mut(&at(0))
                .expect("a window")
                .push(offset, smallvec![Name { hash: key, added: 0 }]);
        };
        push(21);
        assert_eq!(tail.seen_conflict(&read), None, "it is read only now");
        push(22);
        assert_eq!(tail.seen_conflict(&read), Some((at(0), 23)), "another's");
    }

    #[test]
    fn nothing_is_said_before_the_tail_is_read_so_far() {
        let mine = [appended(0, 20)];
        let check = |tail: &Tail| {
            let read = batch(&[(0, 5)]);
            tail.conflicts(&[&read], &mine, None, Instant::now() + SHORT)
        };
        let tail = tail(&[]);
        assert!(check(&tail).is_err(), "its own record was not read yet");
        tail.shared.windows.lock().ended = Some("ended".into());
        assert_eq!(check(&tail), Err("ended".into()));
        let window = |tail: &Tail| tail.shared.windows.lock().by_partition[&at(0)].next;
        assert_eq!(window(&tail), 20);
        tail.shared
            .windows
            .lock()
            .by_partition
            .get_mut(&at(0))
            .expect("a window")
            .next = 21;
        assert_eq!(check(&tail), Ok(vec![]));
    }

    #[test]
    fn a_window_is_bounded_and_knows_where_it_begins() {
        let mut window = Window::default();
        let name = Name { hash: 1, added: 0 };
        (0..WINDOW as u64).for_each(|offset| window.push(offset * 2, smallvec![name]));
        assert_eq!((window.records.len(), window.from), (WINDOW, 0));
        window.push(WINDOW as u64 * 2, smallvec![name]);
        assert_eq!((window.records.len(), window.from), (WINDOW, 1));
        assert_eq!(window.between(0, 5).collect::<Vec<_>>(), [(2, name), (4, name)]);
        assert_eq!(window.next, WINDOW as u64 * 2 + 1);
    }
}
