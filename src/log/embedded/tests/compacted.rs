//! Compaction: a store makes the same of the log before and after it, also one that is interrupted
//! or runs beside writers and readers.

use super::*;
use crate::model::{Bounds, Collection, Element, ElementName, Split, Version};

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
            Payload::Control(Control::Features(_) | Control::Function(_) | Control::Passed | Control::Unknown) => {
                panic!("never written")
            }
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

#[test]
fn what_a_newer_head_excludes_goes() {
    let disk = FaultDisk::new();
    let log = open(&disk, options()).expect("open");
    let version = Version::new(1);
    let record = |key: Bytes, value| Record {
        to: at(0),
        key,
        payload: Payload::Key(Some(State { value, expire_at: None })),
    };
    let head = |low: &[u8]| {
        let mut metadata = Vec::new();
        Bounds { low, high: Some(b"w") }.put(&mut metadata);
        let split = Split::new(Collection::List, version, &metadata);
        record("l".into(), Value::Split(split))
    };
    let element = |sub_key: &[u8]| {
        let name = ElementName {
            key: b"l",
            version,
            sub_key,
        };
        record(name.record_key(), Value::Element(Element::new(b"v", None)))
    };
    written(&log, vec![head(b"a")]);
    for sub_key in [&b"b"[..], b"m", b"mm", b"x"] {
        written(&log, vec![element(sub_key)]);
    }
    let left = |log: &EmbeddedLog| {
        log.shared.close_segment();
        compact(log);
        let records = read_all(log).into_iter();
        let names = records.filter_map(|record| Some(ElementName::parse(&record.key)?.sub_key.to_vec()));
        names.collect::<Vec<_>>()
    };
    assert_eq!(left(&log), [&b"b"[..], b"m", b"mm", b"x"], "no head is newer");
    written(&log, vec![head(b"m")]);
    // It is not older than the head.
    written(&log, vec![element(b"c")]);
    assert_eq!(left(&log), [&b"m"[..], b"mm", b"c"]);
    written(&log, vec![put(0, "l", b"string")]);
    assert_eq!(left(&log), Vec::<Vec<u8>>::new());
}

fn compacting(rng: &mut StdRng) -> EmbeddedOptions {
    let max_keys = if rng.random() { 1000 } else { rng.random_range(1..8) };
    let compaction = CompactionOptions {
        enabled: false,
        max_keys,
        keep_deletions: Duration::ZERO,
    };
    EmbeddedOptions {
        segment_bytes: rng.random_range(300..3000),
        compaction,
        ..EmbeddedOptions::default()
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
    let mut options = EmbeddedOptions {
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
    let compaction = CompactionOptions {
        keep_deletions: Duration::ZERO,
        ..CompactionOptions::default()
    };
    let log = open(
        &disk,
        EmbeddedOptions {
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
    let options = EmbeddedOptions {
        segment_bytes: SEGMENT,
        compaction: CompactionOptions::default(),
        ..options()
    };
    let log = open(
        &disk,
        EmbeddedOptions {
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
    let compaction = CompactionOptions {
        enabled: false,
        keep_deletions: Duration::ZERO,
        ..Default::default()
    };
    let options = EmbeddedOptions {
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
    let compaction = CompactionOptions {
        keep_deletions: Duration::ZERO,
        ..Default::default()
    };
    let log = open(
        &disk,
        EmbeddedOptions {
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
    let mut options = EmbeddedOptions {
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
