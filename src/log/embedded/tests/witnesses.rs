//! What says that records were once safely on the disk: the mark, and frames after a damaged one.

use super::*;
use crate::log::embedded::Reserves;
use crate::log::embedded::frame::HEADER_LEN;
use crate::room::Reserve;

const MIB: usize = 1 << 20;

fn active_len(disk: &FaultDisk) -> usize {
    let path = segment_files(disk).pop().expect("a segment");
    used_len(&disk.contents(&path))
}

/// A log with a frame of `len` bytes, and a small frame after it that says that the large one is
/// safe; nothing else does. The large one is damaged.
fn damaged_before(len: usize) -> FaultDisk {
    let disk = FaultDisk::new();
    let large = EmbeddedOptions {
        segment_bytes: 64 << 20,
        ..options()
    };
    let log = open(&disk, large).expect("open");
    let add = |bytes: usize| {
        let before = active_len(&disk);
        written(&log, vec![put(0, "k", &vec![b'x'; bytes])]);
        active_len(&disk) - before
    };
    add(1);
    // What a frame of nearly this length has beside the value.
    let less = len - 100;
    let beside = add(less) - less;
    let begins = active_len(&disk);
    assert_eq!(add(len - beside), len);
    add(1);
    let disk = disk.after_kill();
    disk.remove(&file("mark")).expect("there");
    let path = segment_files(&disk).pop().expect("a segment");
    let mut bytes = disk.contents(&path);
    bytes[begins + len / 2] ^= 1;
    disk.set_contents(&path, bytes);
    disk
}

#[test]
fn a_frame_far_behind_the_damaged_one_is_found_wherever_it_begins() {
    let half = HEADER_LEN / 2;
    let borders = [MIB - HEADER_LEN, MIB - half, MIB - 1, MIB, MIB + half, MIB + HEADER_LEN];
    for len in borders.into_iter().chain([2 * MIB - half, 2 * MIB]) {
        let refused = open_and_read(&damaged_before(len)).expect_err("what was safe is lost");
        assert!(refused.to_string().contains("stored safely"), "{len}: {refused}");
    }
}

#[test]
fn the_mark_comes_to_the_disk_when_nothing_more_is_written() {
    let disk = FaultDisk::new();
    let log = open(&disk, options()).expect("open");
    written(&log, vec![put(0, "k", b"v")]);
    wait_until("the mark is on the disk", || !log.shared.mark.lock().dirty());
    let mark = |disk: &FaultDisk| MarkFile::load(disk, dir()).expect("readable").expect("there").0;
    assert_eq!(mark(&disk.after_power_failure(1)).durable, 1);
}

#[test]
fn an_fsync_behind_one_that_failed_makes_nothing_safe() {
    let disk = FaultDisk::new();
    let options = EmbeddedOptions {
        fsync: Fsync::EverySecond,
        ..options()
    };
    let log = open(&disk, options).expect("open");
    disk.set_faults(Faults {
        fsync_fails: true,
        ..Faults::default()
    });
    written(&log, vec![put(0, "k", b"v")]);
    wait_until("the failed fsync is noticed", || log.status().refusing.is_some());
    disk.set_faults(Faults::default());
    writer::sync_now(&log.shared);
    assert_eq!(log.status().durable, 0);
}

/// The room that is kept for deletes is for a full disk. An fsync that fails is not a full disk: a
/// second fsync would say that all is well, and the record would be gone after a power failure.
#[test]
fn a_delete_whose_fsync_failed_is_not_tried_again() {
    let disk = FaultDisk::new();
    let kept_in = tempfile::tempdir().expect("temporary directory");
    std::fs::write(kept_in.path().join("reserve"), b"room").expect("a file");
    let reserves = Reserves {
        for_deletes: Reserve::for_deletes(kept_in.path()),
        for_compaction: Reserve::for_compaction(kept_in.path(), 0),
    };
    let always = EmbeddedOptions {
        fsync: Fsync::Always,
        ..options()
    };
    let log = EmbeddedLog::open_on(Arc::new(disk.clone()), dir(), always, None, Some(reserves)).expect("open");
    written(&log, vec![put(0, "k", b"v")]);
    disk.set_faults(Faults {
        next_fsync_fails: true,
        ..Faults::default()
    });
    produce(&log, vec![delete(0, "k")]).expect_err("it is not known to be safe");
}
