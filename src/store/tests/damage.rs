//! Whatever happens to the files: the right content or a rebuild, never wrong data.

use std::fs::File;
use std::path::PathBuf;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::model::{Model, copy, copy_open};
use super::*;

on_every_engine!(flipped_bits, zeroed_pages, truncated_files, missing_files);

/// A store of some segments, part of it in the snapshot, part of it to be replayed. `clean`, or as
/// a kill leaves it.
pub(in crate::store) fn example(engine: EngineKind, directory: &Path, seed: u64, clean: bool) -> Model {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = Model::default();
    for round in 0..3 {
        let store = open(engine, directory).store;
        for _ in 0..60 {
            let changes: Vec<Change> = (0..50).map(|_| model.next_change(&mut rng, 2_000)).collect();
            store.apply(&changes).unwrap();
        }
        if round == 1 {
            let long_key = vec![b'k'; 200_000];
            model.add_put(&long_key, &*store);
        }
        store.checkpoint(&model.checkpoint()).unwrap();
        if round == 2 && !clean {
            let changes: Vec<Change> = (0..500).map(|_| model.next_change(&mut rng, 2_000)).collect();
            store.apply(&changes).unwrap();
            let image = directory.with_extension("image");
            copy_open(&*store, directory, &image);
            drop(store);
            fs::remove_dir_all(directory).unwrap();
            fs::rename(image, directory).unwrap();
        }
    }
    model
}

/// What became of a damaged store.
#[derive(Debug, Default)]
pub(in crate::store) struct Outcome {
    pub right: u32,
    pub rebuilt: u32,
    /// A read found the damage, and the store was thrown away: alternately at once and by the next
    /// start.
    pub met: u32,
}

impl Outcome {
    /// Opens the store. Everything it returns must agree with the model, until it reports damage.
    pub fn check(&mut self, engine: EngineKind, directory: &Path, model: &Model, what: &str) {
        let opened = open(engine, directory);
        if opened.rebuilt.is_some() {
            assert_eq!(opened.checkpoint, Checkpoint::default(), "{what}");
            assert_eq!(opened.store.count(0).unwrap(), 0, "{what}");
            self.rebuilt += 1;
            return;
        }
        match model.compare(&*opened.store, &opened.checkpoint) {
            Ok(()) => self.right += 1,
            Err(_) => {
                assert!(opened.store.damage().is_some(), "{what}");
                self.met += 1;
                let store = match self.met % 2 {
                    0 => {
                        drop(opened);
                        let opened = open(engine, directory);
                        assert!(opened.rebuilt.is_some(), "{what}");
                        opened.store
                    }
                    _ => {
                        opened.store.renew().unwrap();
                        opened.store
                    }
                };
                assert_eq!(store.damage(), None, "{what}");
                assert_eq!(store.count(0).unwrap(), 0, "{what}");
                store.apply(&[put(b"after", b"1", meta(1))]).unwrap();
                assert_eq!(store.count(0).unwrap(), 1, "{what}");
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

/// For every file: damages a copy of the store in one way, and checks it.
pub(in crate::store) fn damage_every_file(
    engine: EngineKind,
    clean: bool,
    places: usize,
    damage: impl Fn(&mut StdRng, &Path, u64),
) -> Outcome {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let directories = tempfile::tempdir().unwrap();
    let original = directories.path().join("original");
    let model = example(engine, &original, seed, clean);
    let mut outcome = Outcome::default();
    for file in files(&original) {
        let file = file.strip_prefix(&original).unwrap();
        let length = fs::metadata(original.join(file)).unwrap().len();
        let places = if length > 100_000 { places * 4 } else { places };
        for place in 0..places {
            let damaged = directories.path().join("damaged");
            copy(&original, &damaged);
            damage(&mut rng, &damaged.join(file), length);
            outcome.check(
                engine,
                &damaged,
                &model,
                &format!("{} at place {place}", file.display()),
            );
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

fn flipped_bits(engine: EngineKind) {
    damage_every_file(engine, true, 6, flip_bit);
    damage_every_file(engine, false, 6, flip_bit);
}

fn zeroed_pages(engine: EngineKind) {
    damage_every_file(engine, true, 4, zero_page);
    damage_every_file(engine, false, 4, zero_page);
}

fn truncated_files(engine: EngineKind) {
    damage_every_file(engine, true, 3, truncate);
    damage_every_file(engine, false, 3, truncate);
}

fn missing_files(engine: EngineKind) {
    damage_every_file(engine, true, 1, |_, file, _| fs::remove_file(file).unwrap());
    damage_every_file(engine, false, 1, |_, file, _| fs::remove_file(file).unwrap());
}
