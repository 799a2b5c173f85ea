//! The log as its callers see it, on a real directory and on a disk that fails.

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
use crate::room::{KEPT_BY_LOG, KEPT_WHILE_MAKING_ROOM, Room};

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

fn produce(log: &EmbeddedLog, records: Vec<Record>) -> Outcome {
    submit(log, records, log.epoch())
        .recv_timeout(PATIENCE)
        .expect("every batch is completed")
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

fn options() -> Options {
    Options {
        segment_bytes: 4096,
        compaction: compaction::Options {
            enabled: false,
            ..Default::default()
        },
        ..Options::default()
    }
}

fn open(disk: &FaultDisk, options: Options) -> Result<Arc<EmbeddedLog>, LogError> {
    EmbeddedLog::open_on(Arc::new(disk.clone()), dir(), options, None, None)
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
        let options = || Options {
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
        let _log = EmbeddedLog::open(&path, Options::default()).expect("open");
        EmbeddedLog::open(&path, Options::default())
            .err()
            .expect("a second one is refused")
    };
    assert!(refused.to_string().contains("in use by another process"), "{refused}");
}

/// A disk with some dozens of frames in two segments, as a kill leaves it, and what the log holds.
fn two_segments() -> (FaultDisk, Vec<LogRecord>) {
    let disk = FaultDisk::new();
    let log = open(&disk, options()).expect("open");
    let mut i = 0;
    while log.status().segments < 2 || i < 50 {
        let value = vec![b'v'; 40 + i * 7 % 90];
        let batch = match i % 5 {
            0 => vec![put(0, &format!("a{i}"), &value), delete(1, "b"), put(0, "c", b"")],
            1 => vec![delete(2, "gone")],
            _ => vec![put(0, &format!("k{i}"), &value)],
        };
        written(&log, batch);
        i += 1;
    }
    let records = read_all(&log);
    let killed = disk.after_kill();
    drop(log);
    // Of the zeros after the last frame a few are enough.
    let active = segment_files(&killed).pop().expect("a segment");
    let mut bytes = killed.contents(&active);
    bytes.truncate(used_len(&bytes) + 2000);
    killed.set_contents(&active, bytes);
    (killed, records)
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

/// Opens the disk once for each byte of the file with one bit of it flipped.
fn flip_every_byte(
    disk: &FaultDisk,
    path: &Path,
    len: usize,
    mut check: impl FnMut(usize, Result<Vec<LogRecord>, LogError>),
) {
    let whole = disk.contents(path);
    for i in 0..len {
        let mut flipped = whole.clone();
        flipped[i] ^= 1 << (i % 8);
        let copy = disk.after_kill();
        copy.set_contents(path, flipped);
        check(i, open_and_read(&copy));
    }
}

/// The same after a compaction, so that one segment is compacted.
fn compacted() -> (FaultDisk, Vec<LogRecord>) {
    let (disk, _) = two_segments();
    let log = open(&disk, options()).expect("open");
    compact(&log);
    let records = read_all(&log);
    let killed = disk.after_kill();
    drop(log);
    (killed, records)
}

#[test]
fn a_flipped_bit_anywhere_is_refused_or_does_no_harm() {
    for (disk, records) in [two_segments(), compacted()] {
        for path in disk.names() {
            let is_segment = segment_files(&disk).contains(&path);
            // Past it are the zeros that were written ahead, and what the mark file does not use.
            let len = used_len(&disk.contents(&path));
            flip_every_byte(&disk, &path, len, |i, outcome| match outcome {
                Ok(read) => {
                    assert!(!is_segment, "{path:?}: byte {i} of a segment is covered by a checksum");
                    assert_eq!(read, records, "{path:?}, byte {i}");
                }
                Err(e) => {
                    let text = e.to_string();
                    let named = text.contains(&*path.to_string_lossy());
                    assert!(text.contains("damaged") && named, "byte {i}: {text}");
                }
            });
        }
    }
}

#[test]
fn a_compacted_segment_that_was_cut_short_is_refused() {
    let (disk, _) = compacted();
    let path = segment_files(&disk).remove(0);
    let whole = disk.contents(&path);
    for len in 0..whole.len() {
        let copy = disk.after_kill();
        copy.set_contents(&path, whole[..len].to_vec());
        let refused = open_and_read(&copy).expect_err("cut short").to_string();
        assert!(refused.contains("damaged"), "{refused}");
    }
}

/// A power failure may take the mark back to what it was at the opening. Only the last write is
/// without a witness then.
#[test]
fn without_the_mark_a_flipped_bit_costs_at_most_the_last_write() {
    let (disk, records) = two_segments();
    disk.remove(&file("mark")).expect("there");
    for path in segment_files(&disk) {
        let len = used_len(&disk.contents(&path));
        let mut cut = 0;
        flip_every_byte(&disk, &path, len, |i, outcome| {
            if let Ok(read) = outcome {
                cut += 1;
                assert_eq!(read, records[..records.len() - 1], "{path:?}, byte {i}");
            }
        });
        assert!(
            cut < 300,
            "{path:?}: only the last frame may be cut, not {cut} bytes' worth"
        );
    }
}

#[test]
fn a_log_that_was_cut_short_opens_with_whole_batches_or_is_refused() {
    let (disk, records) = two_segments();
    let path = segment_files(&disk).pop().expect("a segment");
    let whole = disk.contents(&path);
    let used = used_len(&whole);
    let unmarked = disk.after_kill();
    unmarked.remove(&file("mark")).expect("there");
    let mut before = 0;
    for len in segment::SEGMENT_HEADER_LEN..used {
        let cut = |disk: &FaultDisk| {
            let copy = disk.after_kill();
            copy.set_contents(&path, whole[..len].to_vec());
            copy
        };
        let refused = open_and_read(&cut(&disk))
            .expect_err("acknowledged records are missing")
            .to_string();
        assert!(refused.contains("had been stored safely"), "{refused}");

        let read = open_and_read(&cut(&unmarked)).expect("nothing says that there was more");
        assert_eq!(read, records[..read.len()]);
        assert!(read.len() >= before);
        before = read.len();
        let last = read.last().and_then(|r| r.group);
        let in_group = read
            .iter()
            .filter(|r| last.is_some() && r.group.map(|g| g.id) == last.map(|g| g.id));
        assert!([0, 3].contains(&in_group.count()), "a group is there as a whole");
    }
    assert_eq!(before, records.len() - 1);
    let refused = open_and_read(&{
        let copy = disk.after_kill();
        copy.remove(&path).expect("there");
        copy
    });
    assert!(
        refused
            .expect_err("a segment is missing")
            .to_string()
            .contains("had been stored safely")
    );
}

#[test]
fn a_segment_missing_in_the_middle_is_refused() {
    let (disk, _) = two_segments();
    disk.remove(&segment_files(&disk)[0]).expect("there");
    let refused = open_and_read(&disk)
        .expect_err("the first segment is missing")
        .to_string();
    assert!(refused.contains("a file is missing or cut short"), "{refused}");
}

#[test]
fn a_missing_meta_file_gives_a_new_identity_and_loses_nothing() {
    let (disk, records) = two_segments();
    let identity = open(&disk.after_kill(), options()).expect("open").identity(0);
    disk.remove(&file("meta")).expect("there");
    let log = open(&disk, options()).expect("open");
    assert_ne!(log.identity(0), identity);
    let contents = |records: Vec<LogRecord>| -> Vec<_> {
        records
            .into_iter()
            .map(|r| (r.at, r.offset, r.key, r.payload))
            .collect()
    };
    assert_eq!(contents(read_all(&log)), contents(records));
}

/// Batch `i` has `i % 3 + 1` records, so that it can be seen whether it is there as a whole.
fn numbered(i: usize, rng: &mut StdRng) -> Vec<Record> {
    let value = vec![i as u8; rng.random_range(0..700)];
    (0..i % 3 + 1)
        .map(|part| put(part as u16, &format!("{i}"), &value))
        .collect()
}

/// The numbers of the batches that are there; each must be there as a whole.
fn numbers(records: &[LogRecord]) -> Vec<usize> {
    let mut numbers: Vec<usize> = Vec::new();
    let mut rest = records;
    while let Some(first) = rest.first() {
        let i: usize = std::str::from_utf8(&first.key)
            .expect("digits")
            .parse()
            .expect("a number");
        let (batch, others) = rest.split_at_checked(i % 3 + 1).expect("a whole batch");
        assert!(batch.iter().all(|r| r.key == first.key), "batch {i} is torn");
        numbers.push(i);
        rest = others;
    }
    assert!(numbers.is_sorted_by(|a, b| a < b), "out of order: {numbers:?}");
    numbers
}

/// What the producer of a crash test knows: per batch, how it ended (if it did).
type Known = Arc<Mutex<Vec<Option<Outcome>>>>;

struct Noted(Known, usize);

impl Completion for Noted {
    fn complete(self: Arc<Self>, outcome: Result<&[Appended], ProduceError>) {
        let slot = &mut self.0.lock()[self.1];
        assert!(slot.is_none(), "told twice");
        *slot = Some(outcome.map(<[Appended]>::to_vec));
    }
}

fn run_until_power_fails(seed: u64, fsync: Fsync) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disk = FaultDisk::new();
    let known: Known = Arc::default();
    for round in 0..4 {
        let options = Options { fsync, ..options() };
        let log = open(&disk, options).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let present = numbers(&read_all(&log));
        for (i, outcome) in known.lock().iter().enumerate() {
            match outcome {
                Some(Ok(_)) if fsync == Fsync::Always => {
                    assert!(
                        present.contains(&i),
                        "seed {seed}, round {round}: acknowledged batch {i} is lost"
                    )
                }
                Some(Err(ProduceError::NotWritten(_))) => {
                    assert!(
                        !present.contains(&i),
                        "seed {seed}, round {round}: failed batch {i} came back"
                    )
                }
                _ => {}
            }
        }
        for _ in 0..rng.random_range(1..80) {
            let i = known.lock().len();
            known.lock().push(None);
            let completion = Arc::new(Noted(known.clone(), i));
            let records = SmallVec::from_vec(numbered(i, &mut rng));
            log.produce(
                Batch {
                    records,
                    condition: None,
                    completion,
                },
                log.epoch(),
            );
            match rng.random_range(0..20) {
                0 => disk.set_faults(Faults {
                    capacity: Some(disk.used() + rng.random_range(0..900)),
                    ..Faults::default()
                }),
                1 => disk.set_faults(Faults {
                    short_writes: Some(100),
                    ..Faults::default()
                }),
                2..5 => disk.set_faults(Faults::default()),
                5 => std::thread::sleep(Duration::from_micros(rng.random_range(0..300))),
                _ => {}
            }
        }
        // What was reported before the power failed holds afterwards. What is reported later says
        // nothing.
        let told = known.lock().clone();
        let after = disk.after_power_failure(rng.random());
        drop(log);
        disk = after;
        *known.lock() = told;
    }
}

#[test]
fn what_was_acknowledged_survives_power_failures_and_what_failed_stays_away() {
    let seed: u64 = rand::random();
    for i in 0..60 {
        run_until_power_fails(seed.wrapping_add(i), Fsync::Always);
    }
}

#[test]
fn without_fsync_a_power_failure_leaves_whole_batches_in_order() {
    let seed: u64 = rand::random();
    for i in 0..60 {
        run_until_power_fails(seed.wrapping_add(i), [Fsync::EverySecond, Fsync::No][i as usize % 2]);
    }
}

#[test]
fn stores_are_rebuilt_if_what_readers_saw_may_be_lost() {
    for (fsync, power_fails, same) in [
        (Fsync::Always, true, true),
        (Fsync::EverySecond, false, true),
        (Fsync::EverySecond, true, false),
        (Fsync::No, true, false),
    ] {
        let disk = FaultDisk::new();
        let options = || Options { fsync, ..options() };
        let log = open(&disk, options()).expect("open");
        written(&log, vec![put(0, "k", b"v")]);
        let identity = log.identity(0);
        let after = if power_fails {
            disk.after_power_failure(1)
        } else {
            disk.after_kill()
        };
        drop(log);
        let closed = open(&disk.after_power_failure(2), options()).expect("open").identity(0);
        assert_eq!(closed, identity, "{fsync:?}: closed in order");
        let crashed = open(&after, options()).expect("open").identity(0);
        assert_eq!(crashed == identity, same, "{fsync:?}, power failure {power_fails}");
    }
}

#[test]
fn a_full_disk_fails_what_is_queued_and_heals_by_itself() {
    let disk = FaultDisk::new();
    let log = open(&disk, options()).expect("open");
    written(&log, vec![put(0, "before", b"v")]);
    let epoch = log.epoch();
    disk.set_faults(Faults {
        capacity: Some(disk.used()),
        ..Faults::default()
    });
    let big = vec![b'x'; 2 << 20];
    let error = produce(&log, vec![put(0, "no", &big)]).expect_err("the disk is full");
    assert!(
        matches!(&error, ProduceError::NotWritten(cause) if cause.contains("cannot write")),
        "{error}"
    );
    assert!(log.epoch() > epoch);
    let stale = submit(&log, vec![put(0, "stale", b"v")], epoch)
        .recv_timeout(PATIENCE)
        .expect("completed");
    assert_eq!(stale, Err(ProduceError::Stale { after: None }));
    assert!(log.status().last_error.expect("noted").contains("cannot write"));
    assert_eq!(log.status().refusing, None);

    disk.set_faults(Faults::default());
    written(&log, vec![put(0, "after", &big)]);
    let keys: Vec<_> = read_all(&log).into_iter().map(|r| r.key).collect();
    assert_eq!(keys, ["before", "after"]);
    let killed = disk.after_kill();
    assert_eq!(open_and_read(&killed).expect("open").len(), 2);
    killed.set_faults(Faults {
        capacity: Some(disk.used()),
        ..Faults::default()
    });
    assert_eq!(open_and_read(&killed).expect("opens on a full disk").len(), 2);
}

#[test]
fn on_a_disk_that_is_nearly_full_only_deletes_are_written() {
    let disk = FaultDisk::new();
    let log = open(&disk, options()).expect("open");
    disk.set_faults(with_room(KEPT_BY_LOG - 1));
    for _ in 0..2 {
        let error = produce(&log, vec![put(0, "no", b"v")]).expect_err("there is no room");
        assert!(
            matches!(&error, ProduceError::NotWritten(cause) if cause.contains("no space left")),
            "{error}"
        );
    }
    written(&log, vec![delete(0, "gone")]);
    disk.set_faults(with_room(2 * KEPT_BY_LOG));
    written(&log, vec![put(0, "yes", b"v")]);
    let keys: Vec<_> = read_all(&log).into_iter().map(|r| r.key).collect();
    assert_eq!(keys, ["gone", "yes"]);
}

/// A disk with this much room, whatever is written there.
fn with_room(free: u64) -> Faults {
    Faults {
        room: Some(Room { free, total: 1 << 40 }),
        ..Faults::default()
    }
}

#[test]
fn on_a_disk_that_is_nearly_full_deletes_beside_values_are_written_or_come_again() {
    let disk = FaultDisk::new();
    let log = open(&disk, options()).expect("open");
    disk.set_faults(with_room(KEPT_BY_LOG - 1));
    // So that all of them are written at once.
    let (reached, go_on) = disk.pause_after(0);
    let first = submit(&log, vec![delete(0, "first")], log.epoch());
    reached.recv_timeout(PATIENCE).expect("it is written");
    let batches = [
        vec![delete(0, "before")],
        vec![put(0, "value", b"v")],
        vec![delete(0, "behind")],
    ];
    let outcomes = batches.map(|records| submit(&log, records, log.epoch()));
    go_on.send(()).expect("it goes on");
    first.recv_timeout(PATIENCE).expect("completed").expect("written");
    let [before, value, behind] = outcomes.map(|outcome| outcome.recv_timeout(PATIENCE).expect("completed"));
    assert!(before.is_ok(), "{before:?}");
    assert!(matches!(&value, Err(ProduceError::NotWritten(_))), "{value:?}");
    assert_eq!(behind, Err(ProduceError::Stale { after: None }));
    let keys: Vec<_> = read_all(&log).into_iter().map(|r| r.key).collect();
    assert_eq!(keys, ["first", "before"]);
}

/// Their tombstones are in the segment of the writer, which does not fill.
#[test]
fn deletes_on_a_disk_that_is_nearly_full_make_room_by_themselves() {
    let disk = FaultDisk::new();
    let with_compaction = Options {
        compaction: compaction::Options::default(),
        ..options()
    };
    let log = open(&disk, with_compaction).expect("open");
    let key = |n: usize| format!("key{n}");
    for n in 0..100 {
        written(&log, vec![put(0, &key(n), &[1; 1_000])]);
    }
    assert!(log.disk_bytes() > 100_000);
    disk.set_faults(with_room(KEPT_BY_LOG - 1));
    // This is so large that the disk is asked.
    produce(&log, vec![put(0, "no", &[1; 2 << 20])]).expect_err("there is no room");
    for n in (0..100).filter(|n: &usize| !n.is_multiple_of(10)) {
        written(&log, vec![delete(0, &key(n))]);
    }
    wait_until("what was deleted is free", || log.disk_bytes() < 20_000);
    let values = read_all(&log).into_iter().filter(|r| r.payload != Payload::TOMBSTONE);
    let kept: Vec<_> = values.map(|r| r.key).collect();
    assert_eq!(kept, (0..10).map(|n| key(10 * n)).collect::<Vec<_>>());
}

#[test]
fn a_segment_that_finds_no_room_beside_it_does_not_keep_others_from_being_freed() {
    let disk = FaultDisk::new();
    let compaction = compaction::Options {
        enabled: false,
        keep_deletions: Duration::ZERO,
        ..Default::default()
    };
    let log = open(
        &disk,
        Options {
            compaction,
            ..options()
        },
    )
    .expect("open");
    let key = |n: usize| format!("key{n:02}");
    for n in 0..16 {
        written(&log, vec![put(0, &key(n), &[1; 1_000])]);
    }
    assert_eq!(log.status().segments, 4, "four keys in each");
    // One goes of the first segment, and three of each of the others. The tombstones are in the
    // last one.
    let goes = |n: usize| if n < 4 { n == 0 } else { !n.is_multiple_of(4) };
    for n in (0..16).filter(|n| goes(*n)) {
        written(&log, vec![delete(0, &key(n))]);
    }
    disk.set_faults(with_room(KEPT_WHILE_MAKING_ROOM + 2_000));
    let stopped = compaction::compact(&log.shared, compaction::Due::Asked).err();
    assert!(matches!(stopped, Some(compaction::Stop::NoRoom(_))));
    let records = |log: &EmbeddedLog, kept: bool| {
        let of_kind = |r: &&LogRecord| (r.payload != Payload::TOMBSTONE) == kept;
        read_all(log).iter().filter(of_kind).count()
    };
    assert_eq!(
        (records(&log, true), records(&log, false)),
        (7, 10),
        "the first segment is as it was"
    );
    let reopened = open_and_read(&disk.after_kill()).expect("opens");
    assert_eq!(reopened, read_all(&log));

    disk.set_faults(with_room(2 * KEPT_BY_LOG));
    compact(&log);
    assert_eq!(
        (records(&log, true), records(&log, false)),
        (6, 0),
        "with room it goes on"
    );
}

#[test]
fn after_an_fsync_that_failed_nothing_is_written_until_a_restart() {
    let broken = [
        Faults {
            fsync_fails: true,
            ..Faults::default()
        },
        Faults {
            set_len_fails: true,
            capacity: Some(0),
            ..Faults::default()
        },
    ];
    for faults in broken {
        let disk = FaultDisk::new();
        let log = open(&disk, options()).expect("open");
        written(&log, vec![put(0, "before", b"v")]);
        disk.set_faults(faults);
        let unsure = produce(&log, vec![put(0, "unsure", &[b'x'; 2 << 20])]).expect_err("fsync fails");
        assert!(matches!(&unsure, ProduceError::Uncertain(_)), "{unsure}");
        disk.set_faults(Faults::default());
        let refused = produce(&log, vec![put(0, "no", b"v")]).expect_err("refused");
        assert!(
            matches!(&refused, ProduceError::NotWritten(cause) if cause.contains("until a restart")),
            "{refused}"
        );
        assert!(log.status().refusing.is_some());
        assert_eq!(
            read_all(&log).len(),
            1,
            "reads go on, without what is not known to be safe"
        );
        log.close(PATIENCE);
        drop(log);
        let log = open(&disk, options()).expect("open");
        let read = read_all(&log);
        assert!(read[0].key == "before" && read.len() <= 2, "{read:?}");
        for seed in 0..20 {
            let after = open_and_read(&disk.after_power_failure(seed)).expect("open");
            assert_eq!(after, read, "what was shown after the restart is on the disk");
        }
    }
}

#[test]
fn with_everysec_a_failed_background_fsync_stops_writing() {
    let disk = FaultDisk::new();
    let log = open(
        &disk,
        Options {
            fsync: Fsync::EverySecond,
            ..options()
        },
    )
    .expect("open");
    written(&log, vec![put(0, "a", b"v")]);
    assert_eq!(read_all(&log).len(), 1, "seen before it is on the disk");
    wait_until("it is on the disk", || log.status().durable == 1);
    disk.set_faults(Faults {
        fsync_fails: true,
        ..Faults::default()
    });
    written(&log, vec![put(0, "b", b"v")]);
    wait_until("the failed fsync is noticed", || log.status().refusing.is_some());
    produce(&log, vec![put(0, "c", b"v")]).expect_err("refused");
    assert_eq!(read_all(&log).len(), 2);
}

#[test]
fn the_queue_is_bounded_and_a_closed_log_refuses() {
    let disk = FaultDisk::new();
    let log = open(
        &disk,
        Options {
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
    let options = Options {
        segment_bytes: 100_000,
        ..Options::default()
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
        Options {
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

/// What a store makes of the log: per database and key the newest value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model(BTreeMap<(u16, Bytes), Payload>);

impl Model {
    fn apply(&mut self, database: u16, key: &Bytes, payload: &Payload) {
        match payload {
            Payload::Key(Some(_)) => {
                self.0.insert((database, key.clone()), payload.clone());
            }
            Payload::Key(None) => {
                self.0.remove(&(database, key.clone()));
            }
            Payload::Control(Control::Flush) => self.0.retain(|(d, _), _| *d != database),
            Payload::Control(Control::Features(_) | Control::Unknown) => panic!("never written"),
        }
    }

    fn replay<'a>(&mut self, records: impl IntoIterator<Item = &'a LogRecord>) {
        for record in records {
            self.apply(record.at.database, &record.key, &record.payload);
        }
    }

    fn of(log: &EmbeddedLog) -> Self {
        let mut model = Self::default();
        model.replay(&read_all(log));
        model
    }
}

fn random_batch(rng: &mut StdRng) -> Vec<Record> {
    let one = |rng: &mut StdRng| {
        let (database, key) = (rng.random_range(0..3), format!("key{}", rng.random_range(0..20)));
        match rng.random_range(0..100) {
            0..3 => flush(database),
            3..30 => delete(database, &key),
            _ => put(database, &key, &vec![rng.random(); rng.random_range(0..400)]),
        }
    };
    let records = if rng.random_bool(0.2) {
        rng.random_range(2..6)
    } else {
        1
    };
    (0..records).map(|_| one(rng)).collect()
}

fn compact(log: &EmbeddedLog) {
    if let Err(compaction::Stop::Failed(e)) = compaction::pass(&log.shared) {
        panic!("{e}");
    }
}

#[test]
fn a_flush_removes_no_record_with_a_reserved_key() {
    let disk = FaultDisk::new();
    let log = open(&disk, options()).expect("open");
    for key in ["\0highwater:later", "k"] {
        written(&log, vec![put(0, key, b"v")]);
    }
    written(&log, vec![flush(0)]);
    log.shared.close_segment();
    compact(&log);
    let records = read_all(&log);
    let left: Vec<_> = records.iter().map(|r| (&r.key[..], &r.payload)).collect();
    let expected = [
        (&b"\0highwater:later"[..], &Payload::UNKNOWN),
        (FLUSH_KEY, &Payload::FLUSH),
    ];
    assert_eq!(left, expected);
}

fn compacting(rng: &mut StdRng) -> Options {
    let max_keys = if rng.random() { 1000 } else { rng.random_range(1..8) };
    let compaction = compaction::Options {
        enabled: false,
        max_keys,
        keep_deletions: Duration::ZERO,
    };
    Options {
        segment_bytes: rng.random_range(300..3000),
        compaction,
        ..Options::default()
    }
}

/// A store that follows the log over restarts, and is rebuilt when it must be.
struct Replica {
    model: Model,
    from: Positions,
}

impl Replica {
    fn catch_up(&mut self, log: &EmbeddedLog) {
        let records = match try_read(log, &self.from) {
            Err(LogError::PositionLost(_)) => {
                self.model = Model::default();
                read_all(log)
            }
            outcome => outcome.expect("readable"),
        };
        self.model.replay(&records);
        self.from = log.ends(PATIENCE).expect("ends");
    }
}

fn compaction_keeps_the_state(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disk = FaultDisk::new();
    let mut model = Model::default();
    let mut replica = Replica {
        model: Model::default(),
        from: Positions::new(),
    };
    for _ in 0..6 {
        let log = open(&disk, compacting(&mut rng)).expect("open");
        let mut follower = log.follow(&Positions::new()).expect("follow");
        let (mut followed, mut out) = (Model::default(), Vec::new());
        for _ in 0..rng.random_range(0..150) {
            let batch = random_batch(&mut rng);
            for record in &batch {
                model.apply(record.to.database, &record.key, &record.payload);
            }
            written(&log, batch);
            match rng.random_range(0..30) {
                0..3 => compact(&log),
                3..5 => replica.catch_up(&log),
                5..9 => follower.poll(&mut out, Duration::ZERO).expect("poll"),
                9 => {
                    // The log does not keep its past for it any more.
                    followed.replay(&std::mem::take(&mut out));
                    follower = log.follow(&log.ends(PATIENCE).expect("ends")).expect("follow");
                    followed = Model::of(&log);
                }
                _ => {}
            }
        }
        while follower.positions() != log.ends(PATIENCE).expect("ends") {
            follower.poll(&mut out, Duration::ZERO).expect("poll");
        }
        followed.replay(&out);
        assert_eq!(followed, model, "seed {seed}: a follower that runs along");
        assert_eq!(Model::of(&log), model, "seed {seed}: read from the start");
        replica.catch_up(&log);
        assert_eq!(replica.model, model, "seed {seed}: a store that comes and goes");
        let crashed = if rng.random() {
            disk.after_kill()
        } else {
            disk.after_power_failure(rng.random())
        };
        drop(log);
        if rng.random() {
            disk = crashed;
        }
    }
}

#[test]
fn compaction_keeps_what_a_store_makes_of_the_log() {
    let seed: u64 = rand::random();
    for i in 0..60 {
        compaction_keeps_the_state(seed.wrapping_add(i));
    }
}

#[test]
fn compaction_may_be_interrupted_anywhere() {
    let seed: u64 = rand::random();
    let mut rng = StdRng::seed_from_u64(seed);
    let disk = FaultDisk::new();
    let mut options = Options {
        segment_bytes: 1500,
        ..compacting(&mut rng)
    };
    options.compaction.max_keys = 1000;
    let log = open(&disk, options.clone()).expect("open");
    for _ in 0..150 {
        written(&log, random_batch(&mut rng));
    }
    let model = Model::of(&log);
    let before = disk.after_kill();
    drop(log);
    for changes in 0.. {
        let disk = before.after_kill();
        let log = open(&disk, options.clone()).expect("open");
        disk.set_faults(Faults {
            changes_left: Some(changes),
            ..Faults::default()
        });
        let outcome = compaction::pass(&log.shared);
        let crashed = [disk.after_kill(), disk.after_power_failure(rng.random())];
        disk.set_faults(Faults::default());
        assert_eq!(Model::of(&log), model, "seed {seed}, {changes} changes: goes on");
        drop(log);
        for disk in crashed {
            let log = open(&disk, options.clone()).unwrap_or_else(|e| panic!("seed {seed}, {changes} changes: {e}"));
            assert_eq!(Model::of(&log), model, "seed {seed}, {changes} changes: opened again");
            compact(&log);
            assert_eq!(
                Model::of(&log),
                model,
                "seed {seed}, {changes} changes: compacted again"
            );
        }
        if let Ok(done) = outcome {
            assert!(done.dropped > 0);
            assert!(changes > 10, "the pass did something");
            return;
        }
    }
}

#[test]
fn compaction_beside_writers_and_readers() {
    let disk = FaultDisk::new();
    let compaction = compaction::Options {
        keep_deletions: Duration::ZERO,
        ..compaction::Options::default()
    };
    let log = open(
        &disk,
        Options {
            segment_bytes: 3000,
            compaction,
            fsync: Fsync::No,
            ..options()
        },
    )
    .expect("open");
    let seed: u64 = rand::random();
    let model = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut model = Model::default();
            for _ in 0..3000 {
                let batch = random_batch(&mut rng);
                for record in &batch {
                    model.apply(record.to.database, &record.key, &record.payload);
                }
                written(&log, batch);
            }
            model
        });
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut rounds = 0;
                    while log.ends(PATIENCE).expect("ends")[&at(0)] < 3000 {
                        read_all(&log);
                        rounds += 1;
                    }
                    rounds
                })
            })
            .collect();
        let (mut follower, mut out) = (log.follow(&Positions::new()).expect("follow"), Vec::new());
        while !writer.is_finished() || follower.positions() != log.ends(PATIENCE).expect("ends") {
            follower.poll(&mut out, Duration::from_millis(1)).expect("poll");
        }
        for reader in readers {
            assert!(reader.join().expect("reader") > 0);
        }
        let model = writer.join().expect("writer");
        let mut followed = Model::default();
        followed.replay(&out);
        assert_eq!(followed, model, "seed {seed}");
        model
    });
    assert_eq!(Model::of(&log), model, "seed {seed}");
    assert!(log.status().compactions > 0);
}

#[test]
fn overwriting_does_not_grow_the_disk() {
    const LIVE: u64 = 200 * 1000;
    const SEGMENT: u64 = 100_000;
    let disk = FaultDisk::new();
    let options = Options {
        segment_bytes: SEGMENT,
        compaction: compaction::Options::default(),
        ..options()
    };
    let log = open(
        &disk,
        Options {
            fsync: Fsync::No,
            ..options
        },
    )
    .expect("open");
    let mut rng = StdRng::seed_from_u64(1);
    for i in 0..30_000 {
        written(
            &log,
            vec![put(0, &format!("{}", rng.random_range(0..200)), &[i as u8; 1000])],
        );
        if i % 500 == 0 {
            wait_until("compaction has caught up", || log.disk_bytes() < 2 * LIVE + 3 * SEGMENT);
        }
    }
    assert!(log.status().compactions > 10);
    wait_until("the files are gone too", || {
        (disk.used() as u64) < 2 * LIVE + 4 * SEGMENT
    });
}

/// Closes the writer's segment by filling it.
fn close_segment(log: &EmbeddedLog) {
    let segments = log.status().segments;
    while log.status().segments == segments {
        written(log, vec![put(15, "filler", &[0; 500])]);
    }
}

fn keys_of(log: &EmbeddedLog) -> Vec<Bytes> {
    read_all(log)
        .into_iter()
        .map(|r| r.key)
        .filter(|key| key != "filler")
        .collect()
}

#[test]
fn deletions_go_when_nobody_needs_them_and_older_positions_are_lost() {
    let disk = FaultDisk::new();
    let compaction = compaction::Options {
        enabled: false,
        keep_deletions: Duration::ZERO,
        ..Default::default()
    };
    let options = Options {
        compaction,
        ..options()
    };
    let log = open(&disk, options.clone()).expect("open");
    written(&log, vec![put(0, "deleted", b"v")]);
    written(&log, vec![put(0, "kept", b"v")]);
    written(&log, vec![put(1, "flushed", b"v")]);
    let stale = log.ends(PATIENCE).expect("ends");
    close_segment(&log);
    let mut follower = log.follow(&stale).expect("follow");
    written(&log, vec![delete(0, "deleted")]);
    written(&log, vec![flush(1)]);
    close_segment(&log);

    compact(&log);
    assert_eq!(
        keys_of(&log),
        ["kept", "deleted", "\0highwater:flush"],
        "the follower still needs the deletions"
    );
    log.follow(&stale).expect("nothing is lost yet");
    let mut out = Vec::new();
    while follower.positions() != log.ends(PATIENCE).expect("ends") {
        follower.poll(&mut out, Duration::ZERO).expect("poll");
    }
    compact(&log);
    assert_eq!(keys_of(&log), ["kept"]);
    let reopened = {
        drop((follower, log));
        open(&disk, options).expect("open")
    };
    let lost = reopened.follow(&stale).err().expect("its deletions are gone");
    assert!(
        matches!(&lost, LogError::PositionLost(text) if text.contains("no longer in the log")),
        "{lost}"
    );
    reopened.follow(&Positions::new()).expect("from the start");
    reopened
        .follow(&reopened.ends(PATIENCE).expect("ends"))
        .expect("from the end");
    assert_eq!(keys_of(&reopened), ["kept"]);
}

#[test]
fn young_deletions_stay() {
    let disk = FaultDisk::new();
    let log = open(&disk, options()).expect("open");
    written(&log, vec![put(0, "deleted", b"v")]);
    close_segment(&log);
    written(&log, vec![delete(0, "deleted")]);
    close_segment(&log);
    compact(&log);
    assert_eq!(keys_of(&log), ["deleted"]);
    assert_eq!(log.status().purged_below, 0);
}

#[test]
fn a_flush_frees_the_disk_without_further_writes() {
    let disk = FaultDisk::new();
    let compaction = compaction::Options {
        keep_deletions: Duration::ZERO,
        ..Default::default()
    };
    let log = open(
        &disk,
        Options {
            compaction,
            ..options()
        },
    )
    .expect("open");
    for i in 0..1000 {
        written(&log, vec![put(0, &format!("key{i}"), &[1; 200])]);
    }
    assert!(log.disk_bytes() > 200_000);
    written(&log, vec![flush(0)]);
    wait_until("the space is free", || {
        log.disk_bytes() < 5000 && disk.used() < 2 * (1 << 20)
    });
    assert!(log.status().purged_below > 1000);
}

/// A from-scratch reader that begins while deletions are being removed must not see the old value
/// without its deletion.
#[test]
fn a_reader_may_begin_at_any_moment_of_a_compaction() {
    let seed: u64 = rand::random();
    let mut rng = StdRng::seed_from_u64(seed);
    let disk = FaultDisk::new();
    let mut options = Options {
        segment_bytes: 1500,
        ..compacting(&mut rng)
    };
    options.compaction.max_keys = 1000;
    let log = open(&disk, options.clone()).expect("open");
    for _ in 0..200 {
        written(&log, random_batch(&mut rng));
    }
    let model = Model::of(&log);
    let before = disk.after_kill();
    drop(log);
    for changes in 0.. {
        let disk = before.after_kill();
        let log = open(&disk, options.clone()).expect("open");
        let (reached, go_on) = disk.pause_after(changes);
        let finished = std::thread::scope(|scope| {
            let pass = scope.spawn(|| {
                compact(&log);
                // A thread that waits for the pause need not wait any more.
                drop(disk.pause_after(usize::MAX));
            });
            if reached.recv().is_err() {
                return true;
            }
            // Nobody can begin while the pass holds the registry.
            let free = log.shared.registry.try_lock().is_some();
            let mut out = Vec::new();
            let follower = free.then(|| {
                let mut follower = EmbeddedFollower::start(log.shared.clone(), vec![0; 16]).expect("follow");
                follower.poll_records = 1;
                follower.poll(&mut out, Duration::ZERO).expect("poll");
                follower
            });
            go_on.send(()).expect("the pass waits");
            pass.join().expect("the pass");
            if let Some(mut follower) = follower {
                while follower.positions() != log.ends(PATIENCE).expect("ends") {
                    follower.poll(&mut out, Duration::ZERO).expect("poll");
                }
                let mut read = Model::default();
                read.replay(&out);
                assert_eq!(read, model, "seed {seed}: it began before change {changes}");
            }
            false
        });
        if finished {
            assert!(changes > 10, "the pass did something");
            return;
        }
    }
}

/// Holds up the thread that completes it.
struct Blocking(Mutex<mpsc::Receiver<()>>);

impl Completion for Blocking {
    fn complete(self: Arc<Self>, _: Result<&[Appended], ProduceError>) {
        let _ = self.0.lock().recv();
    }
}

#[test]
fn what_failed_does_not_come_back_after_a_power_failure() {
    let disk = FaultDisk::new();
    let log = open(
        &disk,
        Options {
            segment_bytes: 1 << 30,
            ..options()
        },
    )
    .expect("open");
    // Two frames are written at once, for the writer is held up until both are queued.
    let (go_on, wait) = mpsc::channel();
    let completion = Arc::new(Blocking(Mutex::new(wait)));
    log.produce(
        Batch {
            condition: None,
            records: [put(0, "before", b"v")].into(),
            completion,
        },
        log.epoch(),
    );
    wait_until("the first is written", || log.status().end == 1);
    let large = vec![b'x'; 1_500_000];
    let outcomes = ["a", "b"].map(|key| submit(&log, vec![put(0, key, &large)], log.epoch()));
    // Room for the first of them.
    disk.set_faults(Faults {
        capacity: Some(disk.used() + 1_000_000),
        ..Faults::default()
    });
    go_on.send(()).expect("the writer waits");
    for outcome in outcomes {
        let outcome = outcome.recv_timeout(PATIENCE).expect("completed");
        assert!(matches!(outcome, Err(ProduceError::NotWritten(_))), "{outcome:?}");
    }
    for seed in 0..30 {
        let read = open_and_read(&disk.after_power_failure(seed)).expect("opens");
        assert_eq!(read.len(), 1, "seed {seed}");
    }
}
