//! Disks that are full, nearly full, or fail to fsync.

use super::*;
use crate::room::{KEPT_BY_LOG, KEPT_WHILE_MAKING_ROOM, Room};

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

/// Produces once more when it fails, as somebody does who computed on what fails and does not know
/// of it yet.
struct Rests {
    log: Arc<EmbeddedLog>,
    told: mpsc::Sender<(Outcome, Outcome)>,
}

impl Completion for Rests {
    fn complete(self: Arc<Self>, outcome: Result<&[Appended], ProduceError>) {
        let next = submit(&self.log, vec![put(0, "rests", b"v")], self.log.epoch());
        let next = next.recv_timeout(PATIENCE).expect("is completed at once");
        let _ = self.told.send((outcome.map(<[Appended]>::to_vec), next));
    }
}

#[test]
fn nothing_rests_on_a_batch_that_fails_while_it_fails() {
    let disk = FaultDisk::new();
    let log = open(&disk, options()).expect("open");
    disk.set_faults(with_room(KEPT_BY_LOG - 1));
    let unreadable = Record {
        payload: Payload::Key(Some(State::unreadable("?"))),
        ..put(0, "k", b"")
    };
    // One is refused by the writer, one is never taken in.
    for record in [put(0, "k", b"v"), unreadable] {
        let (told, outcomes) = mpsc::channel();
        let batch = Batch {
            condition: None,
            records: SmallVec::from_vec(vec![record]),
            completion: Arc::new(Rests { log: log.clone(), told }),
        };
        log.produce(batch, log.epoch());
        let (failed, next) = outcomes.recv_timeout(PATIENCE).expect("it is completed");
        assert!(matches!(failed, Err(ProduceError::NotWritten(_))), "{failed:?}");
        assert_eq!(next, Err(ProduceError::Stale { after: None }));
    }
    // What was computed meanwhile comes too late, too.
    let epoch = log.epoch();
    assert!(produce(&log, vec![put(0, "k", b"v")]).is_err());
    wait_until("the failing is over", || log.epoch() >= epoch + 2);
    disk.set_faults(Faults::default());
    let late = submit(&log, vec![put(0, "rests", b"v")], epoch + 1).recv_timeout(PATIENCE);
    assert_eq!(late.expect("completed"), Err(ProduceError::Stale { after: None }));
    written(&log, vec![put(0, "k", b"v")]);
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
    let with_compaction = EmbeddedOptions {
        compaction: CompactionOptions::default(),
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
    let compaction = CompactionOptions {
        enabled: false,
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
        EmbeddedOptions {
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
