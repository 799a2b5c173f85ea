//! The log as its callers see it, on a real directory and on a disk that fails.

mod compacted;
mod damage;
mod failing_disk;
mod frozen;
mod power;
mod witnesses;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use smallvec::SmallVec;

use super::fault_disk::{FaultDisk, Faults};
use super::*;
use crate::log::record::FLUSH_KEY;
use crate::log::{Appended, Completion, LogRecord, ProduceError, Record};
use crate::model::{Control, Payload, State, Value};

const PATIENCE: Duration = Duration::from_secs(20);

type Outcome = Result<Vec<Appended>, ProduceError>;

struct Told(mpsc::Sender<Outcome>);

impl Completion for Told {
    fn complete(self: Arc<Self>, outcome: Result<&[Appended], ProduceError>) {
        // A test that ended early does not listen any more.
        let _ = self.0.send(outcome.map(<[Appended]>::to_vec));
    }
}

fn at(database: u16) -> TopicPartition {
    TopicPartition { database, partition: 0 }
}

fn put(database: u16, key: &str, value: &[u8]) -> Record {
    let payload = Payload::string(Bytes::copy_from_slice(value), None);
    Record {
        to: at(database),
        key: Bytes::copy_from_slice(key.as_bytes()),
        payload,
    }
}

fn delete(database: u16, key: &str) -> Record {
    Record {
        to: at(database),
        key: Bytes::copy_from_slice(key.as_bytes()),
        payload: Payload::TOMBSTONE,
    }
}

fn flush(database: u16) -> Record {
    Record {
        to: at(database),
        key: Bytes::from_static(FLUSH_KEY),
        payload: Payload::FLUSH,
    }
}

fn submit(log: &EmbeddedLog, records: Vec<Record>, epoch: u64) -> mpsc::Receiver<Outcome> {
    let (sender, receiver) = mpsc::channel();
    log.produce(
        Batch {
            condition: None,
            records: SmallVec::from_vec(records),
            completion: Arc::new(Told(sender)),
        },
        epoch,
    );
    receiver
}

/// As the service does, again if it is stale.
fn produce(log: &EmbeddedLog, records: Vec<Record>) -> Outcome {
    loop {
        let outcome = submit(log, records.clone(), log.epoch()).recv_timeout(PATIENCE);
        match outcome.expect("every batch is completed") {
            Err(ProduceError::Stale { after: None }) => {}
            outcome => return outcome,
        }
    }
}

fn written(log: &EmbeddedLog, records: Vec<Record>) -> Vec<Appended> {
    produce(log, records).expect("written")
}

/// Everything from the given position to the end of the log.
fn try_read(log: &EmbeddedLog, from: &Positions) -> Result<Vec<LogRecord>, LogError> {
    let ends = log.ends(PATIENCE)?;
    let mut follower = log.follow(from)?;
    let mut out = Vec::new();
    // Past the end if the log has grown since.
    while follower.positions().iter().any(|(at, position)| *position < ends[at]) {
        follower.poll(&mut out, Duration::ZERO)?;
    }
    Ok(out)
}

fn read_all(log: &EmbeddedLog) -> Vec<LogRecord> {
    try_read(log, &Positions::new()).expect("readable")
}

fn from(position: u64) -> Positions {
    (0..16).map(|database| (at(database), position)).collect()
}

fn dir() -> &'static Path {
    Path::new("log")
}

fn options() -> EmbeddedOptions {
    EmbeddedOptions {
        segment_bytes: 4096,
        compaction: CompactionOptions {
            enabled: false,
            ..Default::default()
        },
        ..EmbeddedOptions::default()
    }
}

fn open(disk: &FaultDisk, options: EmbeddedOptions) -> Result<Arc<EmbeddedLog>, LogError> {
    EmbeddedLog::open_on(Arc::new(disk.clone()), dir(), options, None, None)
}

fn file(name: &str) -> PathBuf {
    dir().join(name)
}

fn segment_files(disk: &FaultDisk) -> Vec<PathBuf> {
    disk.names()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "segment"))
        .collect()
}

/// Bytes up to the last one that is not zero.
fn used_len(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1)
}

fn open_and_read(disk: &FaultDisk) -> Result<Vec<LogRecord>, LogError> {
    try_read(&*open(disk, options())?, &Positions::new())
}

fn compact(log: &EmbeddedLog) {
    if let Err(compaction::Stop::Failed(e)) = compaction::pass(&log.shared) {
        panic!("{e}");
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn what_is_written_is_read_again_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("data/log");
    for fsync in [Fsync::Always, Fsync::EverySecond, Fsync::No] {
        let options = || EmbeddedOptions {
            fsync,
            segment_bytes: 10_000,
            ..options()
        };
        let log = EmbeddedLog::open(&path, options()).expect("open");
        let before = read_all(&log).len();
        for i in 0..100u32 {
            let appended = written(&log, vec![put(0, &format!("key{i}"), &[i as u8; 200])]);
            assert_eq!(appended[0].at, at(0));
        }
        let group = written(&log, vec![put(1, "a", b"1"), delete(2, "b"), put(1, "c", b"")]);
        let flushed = written(&log, vec![flush(3)]);
        let records = read_all(&log);
        assert_eq!(records.len(), before + 104);
        let [a, b, c, f] = &records[before + 100..] else {
            panic!("four records")
        };
        assert_eq!((a.at, &a.key[..], a.offset), (at(1), &b"a"[..], group[0].offset));
        assert_eq!(
            (b.at, &b.payload, b.timestamp),
            (at(2), &Payload::TOMBSTONE, group[1].timestamp)
        );
        assert_eq!(c.payload, Payload::string(Bytes::new(), None));
        let counts = [a, b, c].map(|r| r.group.expect("in a group").records);
        assert_eq!((counts, a.group), ([3, 3, 3], c.group));
        assert_eq!(
            (&f.payload, &f.key[..], f.offset),
            (&Payload::FLUSH, &FLUSH_KEY[..], flushed[0].offset)
        );
        assert_eq!(f.group, None);
        let identity = log.identity(0);
        drop(log);

        let log = EmbeddedLog::open(&path, options()).expect("open again");
        assert_eq!(read_all(&log), records);
        assert_eq!(log.identity(0), identity);
        assert_eq!(log.identity(16), None);
        assert!(log.describe().contains("data/log (fsync "), "{}", log.describe());
        let mut positions = from(flushed[0].offset);
        positions.insert(at(1), group[0].offset);
        // The records of the group that this follower reads.
        let mut later = [a.clone(), c.clone(), f.clone()];
        for group in later.iter_mut().filter_map(|record| record.group.as_mut()) {
            group.records = 2;
        }
        assert_eq!(try_read(&log, &positions).expect("readable"), later);
    }
    let refused = {
        let _log = EmbeddedLog::open(&path, EmbeddedOptions::default()).expect("open");
        EmbeddedLog::open(&path, EmbeddedOptions::default())
            .err()
            .expect("a second one is refused")
    };
    assert!(refused.to_string().contains("in use by another process"), "{refused}");
}

#[test]
fn the_queue_is_bounded_and_a_closed_log_refuses() {
    let disk = FaultDisk::new();
    let log = open(
        &disk,
        EmbeddedOptions {
            queue_batches: 10,
            queue_bytes: 10_000,
            ..options()
        },
    )
    .expect("open");
    let large = written(&log, vec![put(0, "large", &[0; 50_000])]);
    assert_eq!(large.len(), 1, "a batch larger than the bound is taken");
    let outcomes: Vec<_> = (0..20_000)
        .map(|_| submit(&log, vec![put(0, "k", b"v")], log.epoch()))
        .collect();
    let outcomes: Vec<_> = outcomes
        .into_iter()
        .map(|o| o.recv_timeout(PATIENCE).expect("completed"))
        .collect();
    let refused = outcomes
        .iter()
        .filter(|o| matches!(o, Err(ProduceError::NotWritten(c)) if c.contains("full")))
        .count();
    let accepted = outcomes.iter().filter(|o| o.is_ok()).count();
    assert_eq!(refused + accepted, outcomes.len());
    assert!(refused > 0);
    assert_eq!(read_all(&log).len(), 1 + accepted);

    for bad in [
        put(16, "k", b"v"),
        Record {
            payload: Payload::Key(Some(State::unreadable("?"))),
            ..put(0, "k", b"")
        },
    ] {
        assert!(matches!(produce(&log, vec![bad]), Err(ProduceError::NotWritten(_))));
    }
    log.close(PATIENCE);
    let refused = produce(&log, vec![put(0, "k", b"v")]);
    assert_eq!(refused, Err(ProduceError::NotWritten("the log is closed".into())));
}

#[test]
fn followers_see_every_producers_records_in_order_and_nothing_else() {
    const PRODUCERS: usize = 4;
    const EACH: usize = 3000;
    let dir = tempfile::tempdir().expect("temporary directory");
    let options = EmbeddedOptions {
        segment_bytes: 100_000,
        ..EmbeddedOptions::default()
    };
    let log = EmbeddedLog::open(dir.path(), options).expect("open");
    let followers: Vec<_> = (0..2).map(|_| log.follow(&Positions::new()).expect("follow")).collect();
    let (acknowledged, read) = std::thread::scope(|scope| {
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|p| {
                let log = &log;
                scope.spawn(move || {
                    let waiting: Vec<_> = (0..EACH)
                        .map(|i| submit(log, vec![put(p as u16, &format!("{p}"), format!("{i}").as_bytes())], 0))
                        .collect();
                    let offsets = waiting
                        .into_iter()
                        .map(|w| w.recv_timeout(PATIENCE).expect("completed").expect("written")[0].offset);
                    offsets.collect::<Vec<_>>()
                })
            })
            .collect();
        let readers: Vec<_> = followers
            .into_iter()
            .map(|mut follower| {
                scope.spawn(move || {
                    let (mut out, deadline) = (Vec::new(), Instant::now() + PATIENCE);
                    while out.len() < PRODUCERS * EACH && Instant::now() < deadline {
                        follower.poll(&mut out, Duration::from_millis(50)).expect("poll");
                    }
                    out
                })
            })
            .collect();
        let acknowledged: Vec<_> = producers.into_iter().map(|p| p.join().expect("producer")).collect();
        (
            acknowledged,
            readers
                .into_iter()
                .map(|r| r.join().expect("reader"))
                .collect::<Vec<_>>(),
        )
    });
    assert_eq!(read[0], read[1]);
    for (p, offsets) in acknowledged.iter().enumerate() {
        let own: Vec<_> = read[0].iter().filter(|r| r.at == at(p as u16)).collect();
        assert!(own.iter().map(|r| r.offset).eq(offsets.iter().copied()));
        let values = own.iter().map(|r| match r.payload.state().map(|state| &state.value) {
            Some(Value::String(value)) => String::from_utf8_lossy(value).parse::<usize>().expect("a number"),
            other => panic!("{other:?}"),
        });
        assert!(values.eq(0..EACH));
    }
    assert!(read[0].iter().map(|r| r.offset).eq(0..(PRODUCERS * EACH) as u64));
}

#[test]
fn large_values_come_back_whole() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let log = EmbeddedLog::open(
        dir.path(),
        EmbeddedOptions {
            segment_bytes: 1 << 20,
            ..options()
        },
    )
    .expect("open");
    let sizes = [0, 1, 131_071, 131_072, 131_073, 262_144, 5_000_000, 40_000_000];
    let values: Vec<Vec<u8>> = sizes
        .iter()
        .map(|&size| (0..size).map(|i| (i % 251) as u8).collect())
        .collect();
    for value in &values {
        written(&log, vec![put(0, "k", value), put(0, "k2", value)]);
    }
    drop(log);
    let log = EmbeddedLog::open(dir.path(), options()).expect("open");
    let read = read_all(&log);
    assert_eq!(read.len(), 2 * sizes.len());
    for (record, value) in read.iter().zip(values.iter().flat_map(|v| [v, v])) {
        assert_eq!(record.payload, Payload::string(value.clone().into(), None));
    }
}

#[test]
fn positions_past_the_end_are_lost() {
    let disk = FaultDisk::new();
    let log = open(&disk, options()).expect("open");
    written(&log, vec![put(0, "a", b"v")]);
    log.follow(&from(1)).expect("the end is a position");
    let error = log.follow(&from(2)).err().expect("past the end");
    assert!(matches!(error, LogError::PositionLost(_)), "{error}");
}
