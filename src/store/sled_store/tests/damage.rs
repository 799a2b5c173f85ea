//! Whatever happens to the files: right content or a rebuild, never wrong data.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::model::{Model, copy, copy_open};
use super::*;

/// A store of some segments, part of it in the snapshot, part of it to be replayed; `clean` or as a kill leaves it.
fn example(directory: &Path, seed: u64, clean: bool) -> Model {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = Model::default();
    for round in 0..3 {
        let store = open(directory).store;
        for _ in 0..60 {
            let changes: Vec<Change> = (0..50).map(|_| model.next_change(&mut rng, 2_000)).collect();
            store.apply(&changes).unwrap();
        }
        if round == 1 {
            let long_key = vec![b'k'; 200_000];
            model.add_put(&long_key, &store);
        }
        store.checkpoint(&model.checkpoint()).unwrap();
        if round == 2 && !clean {
            let changes: Vec<Change> = (0..500).map(|_| model.next_change(&mut rng, 2_000)).collect();
            store.apply(&changes).unwrap();
            let image = directory.with_extension("image");
            copy_open(&store, directory, &image);
            drop(store);
            fs::remove_dir_all(directory).unwrap();
            fs::rename(image, directory).unwrap();
        }
    }
    model
}

/// What became of a damaged store.
#[derive(Debug, Default)]
struct Outcome {
    right: u32,
    rebuilt: u32,
    /// A read met the damage, and the next start rebuilt.
    met: u32,
}

impl Outcome {
    /// Opens the store; everything it answers must be as the model says, until it says that it is damaged.
    fn check(&mut self, directory: &Path, model: &Model, what: &str) {
        let opened = open(directory);
        if opened.rebuilt.is_some() {
            assert_eq!(opened.checkpoint, Checkpoint::default(), "{what}");
            assert_eq!(opened.store.count(0).unwrap(), 0, "{what}");
            self.rebuilt += 1;
            return;
        }
        match model.compare(&opened.store, &opened.checkpoint) {
            Ok(()) => self.right += 1,
            Err(_) => {
                drop(opened);
                let opened = open(directory);
                assert!(opened.rebuilt.is_some(), "{what}");
                self.met += 1;
            }
        }
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path))
        } else {
            files.push(path)
        }
    }
    files.sort();
    files
}

/// Damages a copy of the store in a way, for every file, and checks it.
fn damage_every_file(clean: bool, places: usize, damage: impl Fn(&mut StdRng, &Path, u64)) -> Outcome {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let directories = tempfile::tempdir().unwrap();
    let original = directories.path().join("original");
    let model = example(&original, seed, clean);
    let mut outcome = Outcome::default();
    for file in files(&original) {
        let file = file.strip_prefix(&original).unwrap();
        let length = fs::metadata(original.join(file)).unwrap().len();
        let places = if file.ends_with("db") { places * 4 } else { places };
        for place in 0..places {
            let damaged = directories.path().join("damaged");
            copy(&original, &damaged);
            damage(&mut rng, &damaged.join(file), length);
            outcome.check(&damaged, &model, &format!("{} at place {place}", file.display()));
            fs::remove_dir_all(damaged).unwrap();
        }
    }
    println!("clean {clean}: {outcome:?}");
    assert!(outcome.rebuilt > 0);
    outcome
}

fn flip_bit(rng: &mut StdRng, file: &Path, length: u64) {
    let mut bytes = fs::read(file).unwrap();
    if length > 0 {
        bytes[rng.random_range(0..length) as usize] ^= 1 << rng.random_range(0..8);
    }
    fs::write(file, bytes).unwrap();
}

/// A page of the disk reads as zeros.
fn zero_page(rng: &mut StdRng, file: &Path, length: u64) {
    let mut bytes = fs::read(file).unwrap();
    let page = rng.random_range(0..=length / 4096) as usize * 4096;
    let end = bytes.len().min(page + 4096);
    bytes[page.min(end)..end].fill(0);
    fs::write(file, bytes).unwrap();
}

fn truncate(rng: &mut StdRng, file: &Path, length: u64) {
    let length = rng.random_range(0..=length);
    File::options().write(true).open(file).unwrap().set_len(length).unwrap();
}

fn truncate_to_segment(rng: &mut StdRng, file: &Path, length: u64) {
    let length = rng.random_range(0..=length / (512 << 10)) * (512 << 10);
    File::options().write(true).open(file).unwrap().set_len(length).unwrap();
}

#[test]
fn flipped_bits() {
    damage_every_file(true, 6, flip_bit);
    damage_every_file(false, 6, flip_bit);
}

#[test]
fn zeroed_pages() {
    damage_every_file(true, 4, zero_page);
    damage_every_file(false, 4, zero_page);
}

#[test]
fn truncated_files() {
    damage_every_file(true, 3, truncate);
    damage_every_file(false, 3, truncate);
    damage_every_file(true, 3, truncate_to_segment);
}

#[test]
fn missing_files() {
    damage_every_file(true, 1, |_, file, _| fs::remove_file(file).unwrap());
    damage_every_file(false, 1, |_, file, _| fs::remove_file(file).unwrap());
}

/// Damage in what sled does not replay is met when it is read; from then on the store refuses everything.
#[test]
fn damage_that_only_a_read_can_meet() {
    let directory = tempfile::tempdir().unwrap();
    let mut model = Model::default();
    let store = open(directory.path()).store;
    for number in 0..5_000 {
        model.add_put(format!("key {number}").as_bytes(), &store);
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
    outcome.check(directory.path(), &model, "every sector");
    assert_eq!((outcome.right, outcome.rebuilt + outcome.met), (0, 1));
}

/// The same, met in the midst of use: no answer but errors from then on, and a rebuild at the next start.
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
    assert!(
        error.contains("a piece is missing; the local store is rebuilt at the next start"),
        "{error}"
    );
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
    example(&one, 1, true);
    example(&other, 2, true);
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
    example(&directory, 3, false);
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
    assert_eq!(value_of(&store, b"a").unwrap(), "1");
}
