//! The contract of [`Engine`], on each: what it holds is what a plain map holds, through restarts
//! and crashes.

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use super::model::copy_while_open;
use super::*;
use crate::store::engine::{EVERYTHING, Range};
use crate::store::fjall_engine::FjallEngine;
use crate::store::sled_engine::SledEngine;

/// One test for each engine and each of these functions.
macro_rules! on_every_engine {
    ($($name:ident),+ $(,)?) => {
        mod sled {
            $(#[test] fn $name() { super::$name::<super::SledEngine>() })+
        }
        mod fjall {
            $(#[test] fn $name() { super::$name::<super::FjallEngine>() })+
        }
    };
}

on_every_engine!(
    behaves_like_maps_through_restarts_and_crashes,
    a_batch_is_seen_through_itself_at_once_and_by_all_after_its_commit,
    a_note_is_kept,
    what_was_given_up_is_not_opened,
);

const CACHE: u64 = 32 << 20;
const SPACES: [&str; 3] = ["0.0.entries", "1.0.entries", "other"];

fn create<E: Engine>() -> (TempDir, E) {
    let directory = tempfile::tempdir().unwrap();
    assert!(E::open(directory.path(), CACHE).unwrap().is_none());
    let engine = E::create(directory.path(), CACHE).unwrap();
    (directory, engine)
}

fn open<E: Engine>(directory: &Path) -> (E, String) {
    crate::store::files::wait_for_lock(&E::lock_file(directory)).unwrap();
    E::open(directory, CACHE).unwrap().expect("it was created")
}

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// What is in all spaces. An empty space may be missing.
type Content = BTreeMap<&'static str, Map>;

#[derive(Clone, Debug)]
enum Write {
    Set(&'static str, Vec<u8>, Vec<u8>),
    Remove(&'static str, Vec<u8>),
    Drop(&'static str),
}

impl Write {
    fn take_in(&self, content: &mut Content) {
        match self {
            Write::Set(space, key, value) => {
                content.entry(space).or_default().insert(key.clone(), value.clone());
            }
            Write::Remove(space, key) => {
                if let Some(map) = content.get_mut(space) {
                    map.remove(key);
                }
            }
            Write::Drop(space) => drop(content.remove(space)),
        }
        content.retain(|_, map| !map.is_empty());
    }
}

/// Keys that are short, empty, as long as fjall's can be, and longer; many begin alike.
fn random_key(rng: &mut StdRng) -> Vec<u8> {
    const AROUND_THE_BOUND: usize = 65_500;
    let length = match rng.random_range(0..20) {
        0 => AROUND_THE_BOUND + rng.random_range(0..40),
        1 => 70_000,
        _ => rng.random_range(0..3),
    };
    let mut key = vec![b'k'; length];
    if rng.random_bool(0.8) {
        key.push(rng.random_range(0..9));
    }
    key
}

fn random_bound<'a>(rng: &mut StdRng, key: &'a [u8]) -> Bound<&'a [u8]> {
    match rng.random_range(0..3) {
        0 => Bound::Unbounded,
        1 => Bound::Included(key),
        _ => Bound::Excluded(key),
    }
}

/// An engine with everything that it was told.
struct Told<E: Engine> {
    engine: Option<E>,
    batch: E::Batch,
    writes: Vec<Write>,
    content: Content,
}

impl<E: Engine> Told<E> {
    fn engine(&self) -> &E {
        self.engine.as_ref().expect("it is open")
    }

    fn space(&mut self, name: &str) -> E::Space {
        let engine = self.engine.as_ref().expect("it is open");
        engine.space(&mut self.batch, name).unwrap()
    }

    fn write(&mut self, rng: &mut StdRng) {
        let name = SPACES[rng.random_range(0..SPACES.len())];
        let (space, key) = (self.space(name), random_key(rng));
        let value = vec![rng.random(); rng.random_range(0..50)];
        let engine = self.engine.as_ref().expect("it is open");
        let before = self.content.get(name).and_then(|map| map.get(&key)).cloned();
        let found = engine.get_in(&self.batch, &space, &key).unwrap();
        assert_eq!(found.as_deref(), before.as_deref());
        let write = match rng.random_range(0..10) {
            0..3 => {
                engine.remove(&mut self.batch, &space, &key).unwrap();
                Write::Remove(name, key)
            }
            3..6 => {
                let replaced = engine.replace(&mut self.batch, &space, &key, &value).unwrap();
                assert_eq!(replaced.as_deref(), before.as_deref());
                Write::Set(name, key, value)
            }
            _ => {
                engine.set(&mut self.batch, &space, &key, &value).unwrap();
                Write::Set(name, key, value)
            }
        };
        write.take_in(&mut self.content);
        self.writes.push(write);
    }

    fn commit(&mut self) {
        self.engine.as_ref().unwrap().commit(&mut self.batch).unwrap();
    }

    /// Removes a space, in as many steps as it takes.
    fn drop_space(&mut self, rng: &mut StdRng) {
        let name = SPACES[rng.random_range(0..SPACES.len())];
        self.commit();
        let is_gone = |told: &mut Self| {
            let engine = told.engine.as_ref().unwrap();
            engine.drop_space(&mut told.batch, name, 3).unwrap()
        };
        // A crash in between would leave a part of it, which the store can tell by its name.
        while !is_gone(self) {
            self.engine.as_ref().unwrap().commit(&mut self.batch).unwrap();
        }
        let write = Write::Drop(name);
        write.take_in(&mut self.content);
        self.writes.push(write);
        self.commit();
        assert!(!self.engine().spaces().unwrap().iter().any(|space| space == name));
    }

    fn check_range(&mut self, rng: &mut StdRng) {
        let name = SPACES[rng.random_range(0..SPACES.len())];
        self.commit();
        let space = self.space(name);
        let (from, to) = (random_key(rng), random_key(rng));
        let range: Range<'_> = (random_bound(rng, &from), random_bound(rng, &to));
        let found: Vec<(Vec<u8>, Vec<u8>)> = self.engine().range(&space, range).map(pair).collect();
        let map = self.content.get(name).cloned().unwrap_or_default();
        let expected = map
            .into_iter()
            .filter(|(key, _)| RangeBounds::<[u8]>::contains(&range, &key[..]));
        assert!(
            found.into_iter().eq(expected),
            "from {:?} to {:?}",
            from.len(),
            to.len()
        );
    }
}

fn pair<B: std::ops::Deref<Target = [u8]>>(found: Result<(B, B), crate::store::engine::Failure>) -> (Vec<u8>, Vec<u8>) {
    let (key, value) = found.unwrap();
    (key.to_vec(), value.to_vec())
}

fn content_of<E: Engine>(engine: &E) -> Content {
    let mut content = Content::new();
    for name in engine.spaces().unwrap() {
        let name = SPACES.into_iter().find(|space| *space == name).expect("a known name");
        let space = engine.space(&mut E::Batch::default(), name).unwrap();
        let map: Map = engine.range(&space, EVERYTHING).map(pair).collect();
        for (key, value) in &map {
            assert_eq!(engine.get(&space, key).unwrap().as_deref(), Some(&value[..]));
        }
        content.insert(name, map);
    }
    content.retain(|_, map| !map.is_empty());
    content
}

fn behaves_like_maps_through_restarts_and_crashes<E: Engine>() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let directories = tempfile::tempdir().unwrap();
    let path = |generation: u32| directories.path().join(generation.to_string());
    let mut generation = 0;
    fs::create_dir(path(0)).unwrap();
    let mut told = Told {
        engine: Some(E::create(&path(0), CACHE).unwrap()),
        batch: E::Batch::default(),
        writes: Vec::new(),
        content: Content::new(),
    };
    told.engine().flush().unwrap();
    for _ in 0..600 {
        match rng.random_range(0..100) {
            0..60 => told.write(&mut rng),
            60..75 => told.commit(),
            75..85 => told.check_range(&mut rng),
            85..88 => told.drop_space(&mut rng),
            88..94 => {
                told.commit();
                let note = told.writes.len().to_string();
                let engine = told.engine.as_ref().unwrap();
                engine.checkpoint(&mut told.batch, &note).unwrap();
            }
            94..97 => {
                told.commit();
                let engine = told.engine.take().unwrap();
                engine.flush().unwrap();
                drop(engine);
                let (engine, _) = open::<E>(&path(generation));
                assert!(content_of(&engine) == told.content, "after a clean stop");
                told.engine = Some(engine);
            }
            _ => {
                told.commit();
                let engine = told.engine.take().unwrap();
                let settle = || engine.commit(&mut E::Batch::default()).unwrap();
                copy_while_open(&settle, &path(generation), &path(generation + 1));
                drop(engine);
                generation += 1;
                let (engine, note) = open::<E>(&path(generation));
                take_up_after_crash(&mut told, &engine, &note);
                told.engine = Some(engine);
            }
        }
    }
}

/// The engine must have what was written up to some point, and that is not before its note.
fn take_up_after_crash<E: Engine>(told: &mut Told<E>, engine: &E, note: &str) {
    let at_least = note.parse().unwrap_or(0);
    let found = content_of(engine);
    let mut content = Content::new();
    let mut kept = None;
    for number in 0..=told.writes.len() {
        if number >= at_least && content == found {
            kept = Some(number);
        }
        if let Some(write) = told.writes.get(number) {
            write.take_in(&mut content);
        }
    }
    let kept = kept.expect("what was written up to some point");
    told.writes.truncate(kept);
    told.content = found;
}

fn a_batch_is_seen_through_itself_at_once_and_by_all_after_its_commit<E: Engine>() {
    let (_directory, engine) = create::<E>();
    let mut batch = E::Batch::default();
    let space = engine.space(&mut batch, "space").unwrap();
    let long = vec![b'k'; 70_000];
    for key in [&b"key"[..], &long] {
        engine.set(&mut batch, &space, key, b"1").unwrap();
        assert_eq!(engine.get_in(&batch, &space, key).unwrap().as_deref(), Some(&b"1"[..]));
        engine.commit(&mut batch).unwrap();
        assert_eq!(engine.get(&space, key).unwrap().as_deref(), Some(&b"1"[..]));
        engine.remove(&mut batch, &space, key).unwrap();
        assert!(engine.get_in(&batch, &space, key).unwrap().is_none());
        if E::ATOMIC {
            assert!(engine.get(&space, key).unwrap().is_some());
        }
        engine.commit(&mut batch).unwrap();
        assert!(engine.get(&space, key).unwrap().is_none());
    }
}

fn a_note_is_kept<E: Engine>() {
    let (directory, engine) = create::<E>();
    let mut batch = E::Batch::default();
    engine.checkpoint(&mut batch, "source 0 x\n").unwrap();
    drop(engine);
    let (engine, note) = open::<E>(directory.path());
    assert_eq!(note, "source 0 x\n");
    engine.set_note(&mut batch, "").unwrap();
    engine.commit(&mut batch).unwrap();
    engine.flush().unwrap();
    drop(engine);
    assert_eq!(open::<E>(directory.path()).1, "");
}

fn what_was_given_up_is_not_opened<E: Engine>() {
    let (directory, engine) = create::<E>();
    engine.give_up().unwrap();
    drop(engine);
    assert!(E::open(directory.path(), CACHE).is_err());
    E::forget(directory.path()).unwrap();
    fs::remove_dir_all(directory.path().join(E::NAME)).unwrap();
    assert!(E::open(directory.path(), CACHE).unwrap().is_none());
}
