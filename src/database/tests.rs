//! The service layer on a log that does what the test says: it acknowledges, fails, or keeps quiet.

mod conditions;
mod consistency;
mod events;
mod faults;
mod long;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::flushed::Flushed;
use super::hot::{At, Lookup};
use super::transaction::{Computed, Keys, View};
use super::write::{Outstanding, Write};
use super::{Fault, Partition, Service, Settings, Status, Transaction, Wait, applier};
use crate::log::{
    Appended, Batch, Completion, Follower, Group, Known, Log, LogError, LogRecord, Positions, ProduceError, Record,
    TopicIdentity, TopicPartition,
};
use crate::model::{Change, Entry, Features, Meta, Payload, Value};
use crate::store::{self, EngineKind, Options};

const HERE: TopicPartition = TopicPartition {
    database: 0,
    partition: 0,
};

/// One topic of one partition, in memory.
#[derive(Default)]
pub(crate) struct ScriptedLog {
    chains: bool,
    epoch: AtomicU64,
    pub waiting: Mutex<VecDeque<Batch>>,
    records: Arc<Mutex<Vec<LogRecord>>>,
    /// Held while the places of new records are taken.
    appending: Mutex<()>,
    /// How many of the next batches lose against another writer.
    pub losing: AtomicU64,
    /// How often the log was asked for its ends, and whether it does not report them.
    asked: AtomicU64,
    mute: AtomicBool,
    /// Its followers get nothing.
    held: Arc<AtomicBool>,
    /// Its followers get nothing from this offset on.
    withheld: Arc<Mutex<Option<u64>>>,
    /// The ends that it reports, one after the other, instead of its true one.
    told_ends: Mutex<VecDeque<u64>>,
    /// The next follower that asks gets the answer that its position is lost.
    lost: Arc<AtomicBool>,
    retention: Mutex<Option<Duration>>,
    /// Partitions that were added to its topic since the start.
    new_partitions: AtomicU32,
}

impl ScriptedLog {
    /// The oldest batch gets into the log. Followers get it once it is acknowledged: otherwise
    /// chance would decide which of the two comes first.
    fn acknowledge(&self) {
        let _appending = self.appending.lock();
        let (completion, records) = self.place_oldest();
        completion.complete(Ok(&appended(&records)));
        self.records.lock().extend(records);
    }

    /// The oldest batch gets into the log, and followers get it before its writer hears of it: what
    /// is returned tells the writer.
    fn acknowledge_late(&self) -> impl FnOnce() {
        let _appending = self.appending.lock();
        let (completion, records) = self.place_oldest();
        let appended = appended(&records);
        self.records.lock().extend(records);
        move || completion.complete(Ok(&appended))
    }

    /// The oldest batch's records, at the log's end.
    fn place_oldest(&self) -> (Arc<dyn Completion>, Vec<LogRecord>) {
        let batch = self.waiting.lock().pop_front().expect("a batch is under way");
        let first = self.end();
        let record = |(record, offset): (Record, u64)| LogRecord {
            at: record.to,
            offset,
            timestamp: 1,
            key: record.key,
            payload: record.payload,
            group: None,
        };
        let records = batch.records.into_iter().zip(first..).map(record).collect();
        (batch.completion, records)
    }

    /// After its newest record.
    fn end(&self) -> u64 {
        self.records.lock().len() as u64
    }

    pub fn acknowledge_all(&self) {
        while !self.waiting.lock().is_empty() {
            self.acknowledge();
        }
    }

    /// The oldest batch fails. On a log that chains, all that came after it fail too.
    pub fn fail(&self, error: ProduceError) {
        let failed: Vec<Batch> = {
            let mut waiting = self.waiting.lock();
            let count = if self.chains { waiting.len() } else { 1 };
            waiting.drain(..count).collect()
        };
        if self.chains {
            self.epoch.fetch_add(1, Ordering::SeqCst);
        }
        for (index, batch) in failed.into_iter().enumerate() {
            let error = if index == 0 {
                error.clone()
            } else {
                ProduceError::Stale { after: None }
            };
            batch.completion.complete(Err(error));
        }
    }

    /// Another producer's record.
    pub fn foreign(&self, key: &str, value: &str) {
        self.foreign_record(Bytes::copy_from_slice(key.as_bytes()), text_payload(value), None);
    }

    /// One of the two records of another producer's group.
    fn member(&self, key: &str, value: &str, group: u128) {
        let group = Group { id: group, records: 2 };
        self.foreign_record(Bytes::copy_from_slice(key.as_bytes()), text_payload(value), Some(group));
    }

    fn foreign_record(&self, key: Bytes, payload: Payload, group: Option<Group>) {
        let _appending = self.appending.lock();
        let mut records = self.records.lock();
        let offset = records.len() as u64;
        records.push(LogRecord {
            at: HERE,
            offset,
            timestamp: 2,
            key,
            payload,
            group,
        });
    }
}

fn appended(records: &[LogRecord]) -> Vec<Appended> {
    let appended = |record: &LogRecord| Appended {
        at: record.at,
        offset: record.offset,
        timestamp: record.timestamp,
    };
    records.iter().map(appended).collect()
}

fn text_payload(value: &str) -> Payload {
    Payload::string(Bytes::copy_from_slice(value.as_bytes()), None)
}

impl Log for ScriptedLog {
    fn describe(&self) -> String {
        "scripted log".into()
    }
    fn kind(&self) -> &'static str {
        "scripted"
    }
    fn identity(&self, database: u16) -> Option<TopicIdentity> {
        (database == 0).then(|| TopicIdentity {
            topic: "t".into(),
            id: "1".into(),
            partitions: 1 + self.new_partitions.load(Ordering::SeqCst),
            partitioner: "",
            read_only: false,
            starts: Vec::new(),
        })
    }
    fn create(&self, _: u16) -> Result<(), LogError> {
        Err(LogError::Failed("cannot create".into()))
    }
    fn tombstone_retention(&self, _: u16) -> Option<Duration> {
        *self.retention.lock()
    }
    fn partition(&self, _: u16, _: &[u8]) -> u32 {
        0
    }
    fn max_record_bytes(&self, _: u16) -> usize {
        1_000
    }
    fn chains(&self) -> bool {
        self.chains
    }
    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }
    fn produce(&self, batch: Batch, epoch: u64) {
        if epoch != self.epoch() {
            return batch.completion.complete(Err(ProduceError::Stale { after: None }));
        }
        let loses = |left: u64| left.checked_sub(1);
        if self
            .losing
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, loses)
            .is_ok()
        {
            return batch.completion.complete(Err(ProduceError::Stale { after: None }));
        }
        self.waiting.lock().push_back(batch);
    }
    fn ends(&self, _: Duration) -> Result<Positions, LogError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.mute.load(Ordering::SeqCst) {
            return Err(LogError::Failed("the log is mute".into()));
        }
        let told = self.told_ends.lock().pop_front();
        Ok(Positions::from([(HERE, told.unwrap_or_else(|| self.end()))]))
    }
    fn follow(&self, from: &Positions) -> Result<Box<dyn Follower>, LogError> {
        Ok(Box::new(ScriptedFollower {
            records: self.records.clone(),
            held: self.held.clone(),
            withheld: self.withheld.clone(),
            lost: self.lost.clone(),
            next: from.get(&HERE).copied().unwrap_or(0),
        }))
    }
    fn close(&self, _: Duration) {}
}

struct ScriptedFollower {
    records: Arc<Mutex<Vec<LogRecord>>>,
    held: Arc<AtomicBool>,
    withheld: Arc<Mutex<Option<u64>>>,
    lost: Arc<AtomicBool>,
    next: u64,
}

impl Follower for ScriptedFollower {
    fn poll(&mut self, out: &mut Vec<LogRecord>, timeout: Duration) -> Result<(), LogError> {
        let deadline = Instant::now() + timeout.min(Duration::from_millis(5));
        if self.lost.swap(false, Ordering::SeqCst) {
            return Err(LogError::PositionLost("for the test".into()));
        }
        loop {
            let records = self.records.lock();
            let end = (*self.withheld.lock()).unwrap_or(records.len() as u64);
            let new = records.get(self.next as usize..end as usize).unwrap_or_default();
            if !new.is_empty() && !self.held.load(Ordering::SeqCst) {
                out.extend_from_slice(new);
                self.next = end;
                return Ok(());
            }
            drop(records);
            if Instant::now() >= deadline {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    fn poll_news(&mut self, known: Known<'_>, out: &mut Vec<LogRecord>, timeout: Duration) -> Result<u64, LogError> {
        let mut all = Vec::new();
        self.poll(&mut all, timeout)?;
        let count = all.len();
        all.retain(|record| record.group.is_some() || !known(record.at, record.offset, record.timestamp, &record.key));
        let passed = count - all.len();
        out.append(&mut all);
        Ok(passed as u64)
    }
    fn positions(&self) -> Positions {
        Positions::from([(HERE, self.next)])
    }
    fn skipped(&self) -> u64 {
        0
    }
}

pub(crate) struct Fixture {
    pub log: Arc<ScriptedLog>,
    pub service: Arc<Service>,
    applier: Option<std::thread::JoinHandle<Option<()>>>,
    directory: tempfile::TempDir,
}

impl Fixture {
    /// The topic names these features of the format: what needs them is written at once.
    pub fn names_features(&self, names: &str) {
        let features = Features::parse(names.as_bytes());
        self.service.databases[0].features.restore(&[(0, features)].into());
    }

    pub fn new(chains: bool) -> Fixture {
        let log = Arc::new(ScriptedLog {
            chains,
            ..ScriptedLog::default()
        });
        let directory = tempfile::tempdir().expect("a temporary directory");
        Fixture::on(log, directory)
    }

    fn on(log: Arc<ScriptedLog>, directory: tempfile::TempDir) -> Fixture {
        // Tests wait for the store.
        Fixture::with_delay(log, directory, 1)
    }

    fn with_delay(log: Arc<ScriptedLog>, directory: tempfile::TempDir, delay_ms: u64) -> Fixture {
        let fixture = Fixture::starting(log, directory, delay_ms);
        fixture.wait(|f| f.service.is_serving());
        fixture
    }

    fn starting(log: Arc<ScriptedLog>, directory: tempfile::TempDir, delay_ms: u64) -> Fixture {
        let options = Options {
            cache_bytes: 8 << 20,
            databases: super::copies::databases_with_copies(2),
            keeps_hidden: !log.chains,
        };
        let opened = store::open(EngineKind::Sled, directory.path(), &options).expect("the store opens");
        let settings = Settings {
            store_delay_ms: AtomicU64::new(delay_ms),
            ..Settings::default()
        };
        let service = Service::new(log.clone(), opened.store, 2, settings);
        service.memory.limit.store(1 << 20, Ordering::Relaxed);
        let applier = applier::start(service.clone(), &opened.checkpoint).expect("the applier starts");
        Fixture {
            log,
            service,
            applier: Some(applier),
            directory,
        }
    }

    /// Stops the node and starts it again on the same log and directory.
    fn restart(mut self) -> Fixture {
        self.stop();
        let log = self.log.clone();
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().expect("a temporary directory"));
        drop(self);
        Fixture::on(log, directory)
    }

    fn stop(&mut self) {
        self.service.stop();
        if let Some(applier) = self.applier.take() {
            let ended = applier.join().expect("the applier ends");
            ended.expect("without a panic");
        }
    }

    pub fn wait(&self, mut reached: impl FnMut(&Fixture) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !reached(self) {
            assert!(Instant::now() < deadline, "not reached in time");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn here(&self) -> &Partition {
        &self.service.database(0).partitions()[0]
    }

    fn transact<T>(
        &self,
        owner: &Arc<Outstanding>,
        key: &str,
        view: View,
        f: impl FnOnce(&mut Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<Computed<T>, Fault> {
        self.service.transact(owner, Keys::Some(&[key.as_bytes()]), view, f)
    }

    /// What the applier shows of another writer's record before it raises the flags of the
    /// connections that watch the key.
    pub fn show(service: &Service, key: &str, value: &str, offset: u64, expire_at: Option<u64>) {
        let meta = Meta {
            partition: 0,
            offset,
            timestamp: 1,
            expire_at,
        };
        let value = Value::String(Bytes::copy_from_slice(value.as_bytes()));
        let at = At { partition: 0, offset };
        let hot = &service.databases[0].hot;
        assert!(hot.apply(key.as_bytes(), at, Some(Entry { meta, value }), true, None));
    }

    pub fn set(&self, owner: &Arc<Outstanding>, key: &str, value: &str) -> Arc<Write> {
        let value = Bytes::copy_from_slice(value.as_bytes());
        let computed = self.transact(owner, key, View::Update, |t| {
            t.set(0, key.as_bytes(), value, None);
            Ok(())
        });
        written(computed)
    }

    fn delete(&self, owner: &Arc<Outstanding>, key: &str) {
        written(self.transact(owner, key, View::Update, |t| {
            t.delete(0, key.as_bytes());
            Ok(())
        }));
    }

    /// What a connection without writes under way reads.
    fn get(&self, key: &str) -> Option<String> {
        let read = self
            .transact(&Arc::default(), key, View::Committed, |t| {
                t.get_string(0, key.as_bytes())
            })
            .unwrap_or_else(|_| panic!("reading {key} failed"));
        read.value.map(|v| String::from_utf8_lossy(&v).into_owned())
    }

    fn increment(&self, owner: &Arc<Outstanding>, key: &str) -> Result<Computed<i64>, Fault> {
        self.transact(owner, key, View::Update, |t| {
            let old = t.get_string(0, key.as_bytes())?;
            let new = old.map_or(0, |v| String::from_utf8_lossy(&v).parse::<i64>().unwrap_or(0)) + 1;
            t.set(0, key.as_bytes(), new.to_string().into(), None);
            Ok(new)
        })
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop();
    }
}

fn written<T>(computed: Result<Computed<T>, Fault>) -> Arc<Write> {
    match computed {
        Ok(Computed { write: Some(write), .. }) => write,
        _ => panic!("nothing was written"),
    }
}

fn not_written() -> ProduceError {
    ProduceError::NotWritten("for the test".into())
}

#[test]
fn a_write_is_seen_by_others_when_it_is_acknowledged_and_by_its_connection_at_once() {
    let f = Fixture::new(false);
    let owner = Arc::default();
    let write = f.set(&owner, "k", "1");
    assert_eq!(f.get("k"), None);
    let own = f.transact(&owner, "k", View::Pending, |t| t.get_string(0, b"k"));
    let Ok(own) = own else { panic!("own read failed") };
    assert_eq!(own.value.as_deref(), Some(&b"1"[..]));
    assert!(Arc::ptr_eq(&own.depends[0], &write), "its reply waits for the write");
    assert_eq!(owner.count(), 1);
    f.log.acknowledge();
    assert_eq!(f.get("k").as_deref(), Some("1"));
    assert_eq!(owner.count(), 0);
}

/// The follower reads an own record after its writer has heard of it, or before.
#[test]
fn an_own_record_is_shown_once_in_whatever_order_it_is_heard_of() {
    for chains in [false, true] {
        for is_late in [false, true] {
            let f = Fixture::new(chains);
            let owner = Arc::default();
            for value in ["1", "2"] {
                let write = f.set(&owner, "k", value);
                if is_late {
                    let tell = f.log.acknowledge_late();
                    f.wait(|f| f.here().applied.load(Ordering::Acquire) == f.log.end());
                    assert_eq!(f.get("k").as_deref(), Some(value), "others see it");
                    assert_eq!((write.outcome(), owner.count()), (None, 1));
                    tell();
                } else {
                    f.log.acknowledge();
                }
                assert_eq!((write.outcome(), owner.count()), (Some(&Ok(())), 0));
                assert_eq!(f.get("k").as_deref(), Some(value));
            }
            f.log.foreign("k", "3");
            f.wait(|f| f.get("k").as_deref() == Some("3"));
            f.wait(|f| f.here().stored.load(Ordering::Acquire) == f.log.end());
            let f = f.restart();
            assert_eq!(f.get("k").as_deref(), Some("3"));
        }
    }
}

#[test]
fn a_failed_write_leaves_the_old_value() {
    let f = Fixture::new(false);
    let owner = Arc::default();
    f.set(&owner, "k", "old");
    f.log.acknowledge();
    let write = f.set(&owner, "k", "new");
    f.log.fail(not_written());
    assert_eq!(f.get("k").as_deref(), Some("old"));
    assert_eq!(write.outcome(), Some(&Err(not_written())));
}

#[test]
fn of_two_writes_under_way_the_failed_one_vanishes() {
    let f = Fixture::new(false);
    let owner = Arc::default();
    f.set(&owner, "k", "1");
    f.set(&owner, "k", "2");
    f.log.fail(not_written());
    assert_eq!(f.get("k"), None);
    f.log.acknowledge();
    assert_eq!(f.get("k").as_deref(), Some("2"));
}

#[test]
fn without_chaining_a_conditional_command_waits_for_the_pending_write() {
    let f = Fixture::new(false);
    let owner = Arc::default();
    let write = f.set(&owner, "n", "41");
    match f.increment(&owner, "n") {
        Err(Fault::Wait(Wait::Write(on))) => assert!(Arc::ptr_eq(&on, &write)),
        _ => panic!("it did not wait"),
    }
    f.log.acknowledge();
    assert!(matches!(f.increment(&owner, "n"), Ok(Computed { value: 42, .. })));
}

#[test]
fn with_chaining_a_failure_takes_down_what_rested_on_it() {
    let f = Fixture::new(true);
    let owner = Arc::default();
    let first = written(f.increment(&owner, "n"));
    let second = written(f.increment(&owner, "n"));
    f.log.fail(not_written());
    assert_eq!(first.outcome(), Some(&Err(not_written())));
    assert_eq!(second.outcome(), Some(&Err(ProduceError::Stale { after: None })));
    assert!(matches!(f.increment(&owner, "n"), Ok(Computed { value: 1, .. })));
    f.log.acknowledge();
    assert_eq!(f.get("n").as_deref(), Some("1"));
}

#[test]
fn of_an_own_and_a_foreign_record_the_later_offset_wins() {
    let f = Fixture::new(false);
    let owner = Arc::default();
    f.set(&owner, "k", "own");
    f.log.foreign("k", "foreign, earlier");
    f.wait(|f| f.get("k").as_deref() == Some("foreign, earlier"));
    f.log.acknowledge();
    assert_eq!(f.get("k").as_deref(), Some("own"));
    f.log.foreign("k", "foreign, later");
    f.wait(|f| f.get("k").as_deref() == Some("foreign, later"));
}

#[test]
fn a_flush_hides_what_came_before_it_and_nothing_that_came_after() {
    let f = Fixture::new(false);
    let owner = Arc::default();
    f.set(&owner, "before", "1");
    f.log.acknowledge();
    f.wait(|f| f.service.store.count(0).is_ok_and(|n| n == 1));
    let flush = f.service.transact(&owner, Keys::Unlocked, View::Update, |t| {
        t.flush(0);
        Ok(())
    });
    written(flush);
    f.set(&owner, "after", "2");
    f.log.acknowledge_all();
    assert_eq!(f.get("before"), None);
    assert_eq!(f.get("after").as_deref(), Some("2"));
    f.wait(|f| f.service.database(0).partitions()[0].stored.load(Ordering::SeqCst) == 3);
    assert_eq!(f.service.store.count(0).expect("the store counts"), 1);
    let f = f.restart();
    assert_eq!(f.get("before"), None);
    assert_eq!(f.get("after").as_deref(), Some("2"));
}

#[test]
fn a_record_that_is_too_large_is_refused_before_it_is_produced() {
    let f = Fixture::new(false);
    let refused = f.transact(&Arc::default(), "k", View::Update, |t| {
        t.set(0, b"k", Bytes::from(vec![0; 1_000]), None);
        Ok(())
    });
    assert!(matches!(refused, Err(Fault::Error(text)) if text.starts_with(b"ERR the record would have")));
    assert!(f.log.waiting.lock().is_empty());
}

#[test]
fn a_watched_key_raises_its_flag_on_own_and_foreign_writes_only() {
    let f = Fixture::new(false);
    for foreign in [false, true] {
        let flag = Arc::default();
        f.service.database(0).watches.watch(Bytes::from_static(b"k"), &flag);
        f.set(&Arc::default(), "other", "1");
        f.log.acknowledge();
        assert!(!flag.load(Ordering::SeqCst));
        if foreign {
            f.log.foreign("k", "1");
        } else {
            f.set(&Arc::default(), "k", "1");
            f.log.acknowledge();
        }
        f.wait(|_| flag.load(Ordering::SeqCst));
        f.wait(|f| {
            let stored = f.service.database(0).partitions()[0].stored.load(Ordering::SeqCst);
            stored == f.log.records.lock().len() as u64
        });
    }
}

fn all_stored(f: &Fixture) -> bool {
    let stored = f.service.database(0).partitions()[0].stored.load(Ordering::SeqCst);
    stored == f.log.records.lock().len() as u64
}

#[test]
fn an_own_write_is_no_change_when_it_is_read_from_the_log() {
    let f = Fixture::new(false);
    for value in ["1", "2"] {
        f.set(&Arc::default(), "k", value);
        f.log.acknowledge();
        let flag = Arc::default();
        f.service.database(0).watches.watch(Bytes::from_static(b"k"), &flag);
        f.wait(all_stored);
        assert!(!flag.load(Ordering::SeqCst));
    }
}

impl Fixture {
    fn flush(&self) {
        let flush = self
            .service
            .transact(&Arc::default(), Keys::Unlocked, View::Update, |t| {
                t.flush(0);
                Ok(())
            });
        written(flush);
        self.log.acknowledge_all();
    }

    /// The flushed keys that are left in the store. Waits until there are `count` of them.
    fn flushed(&self, count: u64) -> Vec<Flushed> {
        self.wait(|f| f.service.flushed_left(0).is_ok_and(|left| left == count));
        let (flushed, next) = self.service.find_flushed(0, 0, 100).expect("the store answers");
        assert_eq!((flushed.len() as u64, next), (count, None));
        flushed
    }

    fn bury(&self, flushed: &Flushed) -> Option<Arc<Write>> {
        self.service.bury(flushed).unwrap_or_else(|_| panic!("cannot bury"))
    }
}

#[test]
fn a_flushed_key_is_buried_unless_something_newer_is_known_of_it() {
    let f = Fixture::new(false);
    let owner = Arc::default();
    for key in ["left", "pending", "written", "foreign"] {
        f.set(&owner, key, "old");
    }
    f.log.acknowledge_all();
    f.flush();
    assert_eq!(f.flushed(4).len(), 4);
    // The store knows them as long as needed, however often the node is started again.
    let f = f.restart();
    let flushed = f.flushed(4);
    let of = |key: &str| {
        flushed
            .iter()
            .find(|flushed| flushed.key == key)
            .expect("it was flushed")
    };

    f.set(&owner, "written", "new");
    f.log.acknowledge();
    f.log.foreign("foreign", "new");
    f.wait(|f| f.get("foreign").is_some());
    f.set(&owner, "pending", "new");
    for key in ["written", "foreign", "pending"] {
        assert!(f.bury(of(key)).is_none(), "{key}");
    }
    f.log.acknowledge_all();

    let watching = Arc::default();
    f.service
        .database(0)
        .watches
        .watch(Bytes::from_static(b"left"), &watching);
    let write = f.bury(of("left")).expect("it is buried");
    {
        let waiting = f.log.waiting.lock();
        let batch = waiting.front().expect("a batch is under way");
        let condition = batch.condition.as_ref().expect("it has a condition");
        assert_eq!(condition.reads[0].key.as_deref(), Some(&b"left"[..]));
        assert!(condition.reads[0].known > of("left").offset);
        assert_eq!(batch.records[0].payload, Payload::TOMBSTONE);
    }
    assert!(
        f.log
            .records
            .lock()
            .iter()
            .all(|record| record.payload != Payload::TOMBSTONE)
    );
    f.log.acknowledge();
    assert_eq!(write.outcome(), Some(&Ok(())));
    f.flushed(0);
    assert!(f.bury(of("left")).is_none(), "it is known to be deleted");
    assert!(!watching.load(Ordering::SeqCst), "what was not shown is not changed");
}

#[test]
fn own_flushes_are_counted_by_database() {
    let f = Fixture::new(false);
    // Of two databases, and of the copies of each.
    let counts = || [0, 1, 2, 3].map(|stored| f.service.own_flushes(stored));
    assert_eq!(counts(), [0, 0, 0, 0]);
    f.flush();
    f.flush();
    let flush_key = Bytes::from_static(crate::log::record::FLUSH_KEY);
    f.log.foreign_record(flush_key, Payload::FLUSH, None);
    f.wait(all_stored);
    assert_eq!(counts(), [2, 0, 2, 0], "another's is not counted");
}

#[test]
fn a_flush_under_way_is_a_change_to_whoever_watches_now() {
    let f = Fixture::new(false);
    f.set(&Arc::default(), "k", "1");
    f.log.acknowledge();
    let flushed = f.service.transact(&Arc::default(), Keys::All, View::Update, |t| {
        t.flush(0);
        Ok(())
    });
    let (there, absent) = (Arc::default(), Arc::default());
    f.service.database(0).watches.watch(Bytes::from_static(b"k"), &there);
    f.service
        .database(0)
        .watches
        .watch(Bytes::from_static(b"absent"), &absent);
    assert_eq!(f.get("k").as_deref(), Some("1"));
    f.log.acknowledge();
    assert!(written(flushed).outcome().is_some() && f.get("k").is_none());
    assert!(there.load(Ordering::SeqCst) && !absent.load(Ordering::SeqCst));
}

#[test]
fn walking_names_sees_what_the_transaction_did() {
    let f = Fixture::new(false);
    for key in ["kept", "deleted", "expired"] {
        f.set(&Arc::default(), key, "1");
    }
    f.log.acknowledge_all();
    f.wait(all_stored);
    let names = |t: &mut Transaction<'_>| {
        let (mut names, mut from) = (Vec::new(), Some(0));
        while let Some(start) = from {
            let mut visit = |key: &[u8]| names.push(String::from_utf8_lossy(key).into_owned());
            from = t.scan_keys(0, start, 1, &mut visit)?;
        }
        names.sort();
        Ok::<_, Fault>(names)
    };
    let walked = f.service.transact(&Arc::default(), Keys::All, View::Update, |t| {
        t.delete(0, b"deleted");
        t.set(0, b"expired", Bytes::new(), Some(t.now));
        t.set(0, b"created", Bytes::new(), Some(t.now + 60_000));
        let before = names(t)?;
        t.flush(0);
        t.set(0, b"after", Bytes::new(), None);
        Ok((before, names(t)?))
    });
    let Ok(walked) = walked else { panic!("it does not wait") };
    assert_eq!(walked.value.0, ["created", "kept"]);
    assert_eq!(walked.value.1, ["after"]);
}

#[test]
fn the_store_is_never_said_to_be_further_than_it_is() {
    const KEYS: u64 = 20_000;
    let f = Fixture::new(false);
    let written = f.service.transact(&Arc::default(), Keys::All, View::Update, |t| {
        for number in 0..KEYS {
            t.set(0, number.to_string().as_bytes(), Bytes::new(), None);
        }
        Ok(())
    });
    assert!(written.is_ok());
    f.log.acknowledge();
    // Every record is a key of its own.
    f.wait(|f| {
        let told = f.service.database(0).partitions()[0].stored.load(Ordering::SeqCst);
        let there = f.service.store.count(0).expect("the store counts");
        assert!(there >= told, "{there} keys, {told} records told");
        told == KEYS
    });
}

const LONG: u64 = 3_600_000;

fn count_when_caught_up(f: &Fixture) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let caught_up = runtime.expect("a runtime").block_on(f.service.store_caught_up());
    assert!(caught_up.is_ok());
    f.service.store.count(0).expect("the store counts")
}

#[test]
fn what_was_loaded_is_read_before_the_store_has_it() {
    let mut f = Fixture::new(false);
    let owner = Arc::default();
    f.set(&owner, "flushed", "1");
    f.log.acknowledge();
    written(f.service.transact(&owner, Keys::Unlocked, View::Update, |t| {
        t.flush(0);
        Ok(())
    }));
    f.log.acknowledge();
    for (key, value) in [("kept", "1"), ("deleted", "1"), ("kept", "2")] {
        f.set(&owner, key, value);
        f.log.acknowledge();
    }
    f.delete(&owner, "deleted");
    f.log.acknowledge();
    f.stop();
    let log = f.log.clone();
    drop(f);

    let f = Fixture::with_delay(log, tempfile::tempdir().expect("a temporary directory"), LONG);
    assert_eq!(
        f.service.store.count(0).expect("the store counts"),
        0,
        "nothing is stored"
    );
    for _ in 0..2 {
        assert_eq!(f.get("kept").as_deref(), Some("2"));
        assert_eq!((f.get("deleted"), f.get("flushed")), (None, None));
    }
    f.set(&owner, "kept", "3");
    f.log.acknowledge();
    assert_eq!(f.get("kept").as_deref(), Some("3"));
    assert_eq!(count_when_caught_up(&f), 1);
    assert_eq!(f.get("kept").as_deref(), Some("3"));
    let mut f = f.restart();
    assert_eq!(f.get("kept").as_deref(), Some("3"));

    // With nothing left to store, nothing waits for it.
    f.stop();
    f.service.behind.begin(Default::default());
    f.service.behind.show();
    assert!(!f.service.behind.is_loaded_only());
}

#[test]
fn what_is_read_while_loading_is_not_remembered() {
    let f = Fixture::new(false);
    f.service.databases[0].hot.forget_all();
    f.service.set_status(Status::Loading {
        applied: 0,
        total: 1,
        rebuilding: None,
    });
    // WATCH reads keys even now.
    let watched = f.service.read(0, b"k", true);
    assert!(watched.is_ok_and(|seen| seen.entry.is_none()));
    let meta = Meta {
        partition: 0,
        offset: 7,
        timestamp: 1,
        expire_at: None,
    };
    let (key, value) = (Bytes::from_static(b"k"), Value::String(Bytes::from_static(b"v")));
    let loaded = Change::of_key(0, 0, 7, key, Some(Entry { meta, value }));
    f.service.store.apply(&[loaded]).expect("the store takes it");
    f.service.set_status(Status::Serving);
    assert_eq!(f.get("k").as_deref(), Some("v"));
}

#[test]
fn whoever_looks_at_the_whole_store_does_not_wait_for_the_delay() {
    let f = Fixture::with_delay(
        Arc::new(ScriptedLog::default()),
        tempfile::tempdir().expect("a temporary directory"),
        LONG,
    );
    for round in 1..=3 {
        f.set(&Arc::default(), &format!("k{round}"), "1");
        f.log.acknowledge();
        assert_eq!(count_when_caught_up(&f), round);
    }
}

#[test]
fn too_much_before_the_store_makes_writes_wait_until_it_is_stored() {
    let f = Fixture::with_delay(
        Arc::new(ScriptedLog::default()),
        tempfile::tempdir().expect("a temporary directory"),
        LONG,
    );
    f.service.settings.max_unstored_bytes.store(1_000, Ordering::Relaxed);
    let mut waited = 0;
    for number in 0..200 {
        let key = format!("k{number}");
        let set = || {
            f.transact(&Arc::default(), &key, View::Update, |t| {
                t.set(0, key.as_bytes(), Bytes::from(vec![0; 100]), None);
                Ok(())
            })
        };
        f.wait(|_| match set() {
            Ok(_) => true,
            Err(Fault::Wait(Wait::Room(_))) => {
                waited += 1;
                false
            }
            _ => panic!("another fault"),
        });
        f.log.acknowledge();
    }
    assert!(waited > 0);
    assert_eq!(count_when_caught_up(&f), 200);
}

/// Random writes, failures, flushes, foreign records and groups, evictions and restarts, compared
/// with a simple map.
#[test]
#[expect(clippy::too_many_lines, reason = "it is still to be split")]
fn it_answers_as_a_map_does() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut f = Fixture::new(random.random());
    let mut model = std::collections::HashMap::<String, String>::new();
    let owner = Arc::default();
    // For a group whose second record has yet to come: what its first record sets, unless a later
    // write replaced that.
    let mut open: Option<Option<(String, String)>> = None;
    let mut group = 0;
    for step in 0..3_000 {
        let key = format!("k{}", random.random_range(0..50));
        let value = format!("{step}-{}", "x".repeat(random.random_range(0..400)));
        let what = random.random_range(0..100);
        // Foreign records after a group are not seen before the group, and a node that starts does
        // not wait for the group.
        if ((60..72).contains(&what) || (74..80).contains(&what))
            && let Some(first) = open.take()
        {
            f.log.member(&key, "second", group);
            model.extend(first);
            model.insert(key.clone(), "second".into());
            f.wait(|f| f.here().applied.load(Ordering::SeqCst) >= f.log.end());
        }
        match what {
            0..40 => {
                f.set(&owner, &key, &value);
                f.log.acknowledge();
                forget(&mut open, &key);
                model.insert(key, value);
            }
            40..50 => {
                f.set(&owner, &key, &value);
                f.log.fail(not_written());
            }
            50..60 => {
                f.delete(&owner, &key);
                f.log.acknowledge();
                forget(&mut open, &key);
                model.remove(&key);
            }
            60..70 => {
                f.log.foreign(&key, &value);
                model.insert(key, value);
                f.wait(|f| f.here().stored.load(Ordering::SeqCst) >= f.log.end());
            }
            70..72 => f = f.restart(),
            72 => f
                .service
                .memory
                .limit
                .store(random.random_range(0..20_000), Ordering::Relaxed),
            73 => {
                written(f.service.transact(&owner, Keys::Unlocked, View::Update, |t| {
                    t.flush(0);
                    Ok(())
                }));
                f.log.acknowledge();
                open = open.map(|_| None);
                model.clear();
            }
            74..77 => assert_eq!(
                count_when_caught_up(&f),
                model.len() as u64,
                "at step {step}, seed {seed}"
            ),
            77..80 => {
                group += 1;
                f.log.member(&key, &value, group);
                open = Some(Some((key, value)));
            }
            _ => assert_eq!(
                f.get(&key),
                model.get(&key).cloned(),
                "{key} at step {step}, seed {seed}"
            ),
        }
    }
    if let Some(first) = open {
        f.log.member("k0", "second", group);
        model.extend(first);
        model.insert("k0".into(), "second".into());
    }
    let f = f.restart();
    for n in 0..50 {
        let key = format!("k{n}");
        assert_eq!(f.get(&key), model.get(&key).cloned(), "{key} at the end, seed {seed}");
    }
    assert_eq!(
        f.service.store.count(0).expect("the store counts"),
        model.len() as u64,
        "seed {seed}"
    );
}

/// This key was written after the first record of the group.
fn forget(open: &mut Option<Option<(String, String)>>, written: &str) {
    if let Some(first) = open {
        first.take_if(|(key, _)| key == written);
    }
}

#[test]
fn the_store_is_asked_for_what_memory_lacks_only_once_memory_has_not_all() {
    let f = Fixture::new(false);
    let owner = Arc::default();
    let store_reads = |f: &Fixture| f.service.counters.store_reads.load(Ordering::Relaxed);
    let key = |n: u32| format!("k{n}");
    f.wait(|f| f.service.is_serving());
    // So long that the store has it in pieces.
    f.log.foreign("flushed", &"long".repeat(2_000));
    f.wait(all_stored);
    f.flush();
    assert_eq!(f.get("flushed"), None);
    for n in 0..100 {
        f.set(&owner, &key(n), "1");
        f.log.acknowledge();
    }
    f.delete(&owner, "k0");
    f.log.acknowledge();
    f.log.foreign("foreign", "1");
    f.wait(all_stored);
    for absent in ["flushed", "k0", "never"] {
        assert_eq!(f.get(absent), None, "{absent}");
    }
    assert_eq!(f.get("foreign").as_deref(), Some("1"));
    assert_eq!(store_reads(&f), 0);

    f.service.memory.limit.store(2_000, Ordering::Relaxed);
    for n in 100..200 {
        f.set(&owner, &key(n), "1");
        f.log.acknowledge();
    }
    assert!((1..200).all(|n| f.get(&key(n)).is_some()));
    assert_eq!((f.get("k0"), f.get("never")), (None, None));
    assert!(store_reads(&f) > 0);

    f.service.memory.limit.store(1 << 20, Ordering::Relaxed);
    let f = f.restart();
    f.wait(has_all);
    assert!((1..200).all(|n| f.get(&key(n)).is_some()));
    assert_eq!((f.get("k0"), f.get("never")), (None, None));
    assert_eq!(store_reads(&f), 0);
}

/// True if memory holds every key.
fn has_all(f: &Fixture) -> bool {
    matches!(f.service.databases[0].hot.get(b"nowhere", false), Lookup::Absent)
}

#[test]
fn memory_comes_to_have_every_key_of_the_store_while_it_is_written_to() {
    const KEYS: u64 = 5_000;
    let f = Fixture::new(false);
    let owner = Arc::default();
    let key = |n: u64| format!("k{n}");
    f.wait(|f| f.service.is_serving());
    for n in 0..KEYS {
        f.set(&owner, &key(n), "old");
    }
    f.log.acknowledge_all();
    f.wait(all_stored);
    let f = f.restart();
    f.wait(|f| f.service.is_serving());
    let (mut model, mut turns) = (HashMap::new(), 0);
    let mut random = 1_u64;
    while !has_all(&f) || turns < 1_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let key = key((random >> 33) % (KEYS + KEYS / 4));
        if turns % 2 == 0 {
            f.set(&owner, &key, "new");
        } else {
            f.delete(&owner, &key);
        }
        model.insert(key.clone(), turns % 2 == 0);
        f.log.acknowledge_all();
        assert_eq!(f.get(&key).is_some(), turns % 2 == 0);
        turns += 1;
    }
    for n in 0..KEYS + KEYS / 4 {
        let key = key(n);
        let expected = match model.get(&key) {
            Some(written) => written.then_some("new"),
            None => (n < KEYS).then_some("old"),
        };
        assert_eq!(f.get(&key).as_deref(), expected, "{key} after {turns} writes");
    }
    assert_eq!(f.service.counters.store_reads.load(Ordering::Relaxed), 0);
}

#[test]
fn what_memory_has_no_room_for_is_left_in_the_store() {
    /// Above a megabyte.
    const KEYS: u64 = 20_000;
    let f = Fixture::new(false);
    let owner = Arc::default();
    f.wait(|f| f.service.is_serving());
    for n in 0..KEYS {
        f.set(&owner, &format!("k{n}"), "1");
    }
    f.log.acknowledge_all();
    f.wait(all_stored);
    let f = f.restart();
    f.wait(|f| !f.service.databases[0].hot.may_hold_all());
    assert_eq!(f.service.memory.evicted.load(Ordering::Relaxed), 0);
    assert!((0..KEYS).all(|n| f.get(&format!("k{n}")).is_some()));
    assert!(f.service.counters.store_reads.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_key_that_is_written_without_pause_is_counted() {
    let f = Fixture::new(false);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let counts: Vec<u64> = std::thread::scope(|scope| {
        scope.spawn(|| {
            let owner = Arc::default();
            for n in 0.. {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                f.set(&owner, "hot", &n.to_string());
                f.log.acknowledge_all();
            }
        });
        f.wait(|f| f.get("hot").is_some());
        let count = |_| {
            let caught_up = runtime.block_on(f.service.store_caught_up()).is_ok();
            f.service.store.count(0).ok().filter(|_| caught_up).unwrap_or(u64::MAX)
        };
        let counts = (0..20).map(count).collect();
        stop.store(true, Ordering::SeqCst);
        counts
    });
    assert_eq!(counts, [1; 20]);
}
