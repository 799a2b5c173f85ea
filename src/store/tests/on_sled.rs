//! What can happen to sled's files in particular.

use std::fs::File;

use rand::Rng;
use rand::rngs::StdRng;

use super::damage::{Outcome, damage_every_file, example};
use super::model::{Model, copy};
use super::*;
use crate::store::sled_engine::position::PositionFile;
use crate::store::sled_engine::verify;

fn open(directory: &Path) -> Opened {
    super::open(EngineKind::Sled, directory)
}

#[test]
fn overwriting_large_values_does_not_grow_the_disk() {
    const SIZE: usize = 200_000;
    let (directory, store) = fresh(EngineKind::Sled);
    let live = 100 * SIZE as u64;
    let mut most = 0;
    for round in 0..15u64 {
        for key in 0..100 {
            let value = vec![rand::random::<u8>(); SIZE];
            store
                .apply(&[put(
                    format!("key {key}").as_bytes(),
                    &value,
                    meta(round * 100 + key + 1),
                )])
                .unwrap();
        }
        store.checkpoint(&position(round)).unwrap();
        most = most.max(store.disk_bytes());
    }
    println!("live {live}, on disk at most {most}, at last {}", store.disk_bytes());
    // 4 to 7 times, depending on how busy the machine is. With larger pieces it passes 30 within
    // seconds.
    assert!(most < live * 10, "{most} bytes for {live}");
    assert_eq!(
        fs::read_dir(directory.path().join("sled/blobs")).unwrap().count(),
        0,
        "pieces need no blob files"
    );
}

fn truncate_to_segment(rng: &mut StdRng, file: &Path, length: u64) {
    let length = rng.random_range(0..=length / (512 << 10)) * (512 << 10);
    File::options().write(true).open(file).unwrap().set_len(length).unwrap();
}

#[test]
fn files_cut_at_a_segment() {
    damage_every_file(EngineKind::Sled, true, 3, truncate_to_segment);
}

/// Damage in what sled does not replay is found when it is read. From then on the store refuses
/// everything.
#[test]
fn damage_that_only_a_read_can_meet() {
    let directory = tempfile::tempdir().unwrap();
    let mut model = Model::default();
    let store = open(directory.path()).store;
    for number in 0..5_000 {
        model.add_put(format!("key {number}").as_bytes(), &*store);
    }
    store.checkpoint(&model.checkpoint()).unwrap();
    drop(store);
    // Opening writes the snapshot.
    drop(open(directory.path()));

    let data = directory.path().join("sled/db");
    let replayed_from = verify::prepare_snapshots(&directory.path().join("sled")).unwrap();
    let mut bytes = fs::read(&data).unwrap();
    for segment in bytes.chunks_mut(verify::SEGMENT) {
        let lsn = verify::SegmentHeader::read(segment).map_or(i64::MAX, |header| header.lsn);
        if lsn + (verify::SEGMENT as i64) < replayed_from {
            segment[100..].iter_mut().step_by(512).for_each(|byte| *byte ^= 1);
        }
    }
    fs::write(&data, bytes).unwrap();
    let mut outcome = Outcome::default();
    outcome.check(EngineKind::Sled, directory.path(), &model, "every sector");
    assert_eq!((outcome.right, outcome.rebuilt + outcome.met), (0, 1));
}

#[test]
fn files_of_another_store_or_an_older_time() {
    let directories = tempfile::tempdir().unwrap();
    let (one, other) = (directories.path().join("one"), directories.path().join("other"));
    example(EngineKind::Sled, &one, 1, true);
    example(EngineKind::Sled, &other, 2, true);
    fs::copy(other.join("position"), one.join("position")).unwrap();
    let reason = open(&one).rebuilt.unwrap();
    assert!(
        reason.contains("data file has") || reason.contains("another store"),
        "{reason}"
    );

    // The engine's files are from before the position.
    let old = directories.path().join("old");
    copy(&other.join("sled"), &old);
    let store = open(&other).store;
    store.apply(&[put(b"later", b"", meta(1 << 40))]).unwrap();
    store.checkpoint(&position(1)).unwrap();
    drop(store);
    fs::remove_dir_all(other.join("sled")).unwrap();
    copy(&old, &other.join("sled"));
    let length = fs::metadata(other.join("sled/db")).unwrap().len();
    let file = PositionFile::read(&other.join("position")).unwrap().unwrap();
    PositionFile { length, ..file }.write(&other.join("position")).unwrap();
    assert_eq!(
        open(&other).rebuilt.unwrap(),
        "it lost data that its position file counts on"
    );
}

#[test]
fn a_machine_that_restarted_without_closing_the_store() {
    let directories = tempfile::tempdir().unwrap();
    let directory = directories.path().join("store");
    example(EngineKind::Sled, &directory, 3, false);
    let file = PositionFile::read(&directory.join("position")).unwrap().unwrap();
    assert!(!file.closed);
    PositionFile {
        boot: "another".to_owned(),
        ..file
    }
    .write(&directory.join("position"))
    .unwrap();
    assert_eq!(
        open(&directory).rebuilt.unwrap(),
        "the machine restarted before the store was closed"
    );
}
