//! What can happen to sled's files in particular: the right content or a rebuild, never wrong data.

use rand::Rng;
use rand::rngs::StdRng;

use super::*;
use crate::store::tests::damage::{Outcome, damage_every_file, example};
use crate::store::tests::model::{Model, copy};

fn truncate_to_segment(rng: &mut StdRng, file: &Path, length: u64) {
    let length = rng.random_range(0..=length / (512 << 10)) * (512 << 10);
    File::options().write(true).open(file).unwrap().set_len(length).unwrap();
}

#[test]
fn files_cut_at_a_segment() {
    damage_every_file(Engine::Sled, true, 3, truncate_to_segment);
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
    outcome.check(Engine::Sled, directory.path(), &model, "every sector");
    assert_eq!((outcome.right, outcome.rebuilt + outcome.met), (0, 1));
}

/// The same, found while the store is in use: it returns only errors from then on, and the next
/// start rebuilds it.
#[test]
fn a_store_that_met_damage_is_given_up() {
    let (directory, store) = fresh();
    store
        .apply(&[put(b"a", &[1; 50_000], meta(1)), put(b"b", b"2", meta(2))])
        .unwrap();
    store.checkpoint(&position(3)).unwrap();
    let view = store.databases[0].view.load_full();
    let pieces = &view.trees.as_ref().unwrap().pieces;
    let (piece, _) = pieces.iter().nth(3).unwrap().unwrap();
    pieces.remove(piece).unwrap();
    let error = store.get(0, b"a").unwrap_err().to_string();
    assert!(error.contains("a piece is missing"), "{error}");
    assert_eq!(store.get(0, b"b").unwrap_err().to_string(), error);
    assert!(store.apply(&[]).is_err() && store.checkpoint(&position(9)).is_err());
    drop(view);
    drop(store);
    assert_eq!(open(directory.path()).rebuilt.unwrap(), "its position file is missing");
}

#[test]
fn files_of_another_store_or_an_older_time() {
    let directories = tempfile::tempdir().unwrap();
    let (one, other) = (directories.path().join("one"), directories.path().join("other"));
    example(Engine::Sled, &one, 1, true);
    example(Engine::Sled, &other, 2, true);
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
    example(Engine::Sled, &directory, 3, false);
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

#[test]
fn in_use_by_another_is_an_error_and_no_rebuild() {
    let (directory, store) = fresh();
    store.apply(&[put(b"a", b"1", meta(1))]).unwrap();
    let error = SledStore::open(directory.path(), &options()).err().unwrap().to_string();
    assert!(error.contains("in use by another process"), "{error}");
    assert_eq!(value_of(&*store, b"a").unwrap(), "1");
}
