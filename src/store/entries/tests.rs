//! What is left in the spaces, on every engine.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use tempfile::TempDir;

use super::*;
use crate::model::Meta;
use crate::store::engine::EVERYTHING;
use crate::store::fjall_engine::FjallEngine;
use crate::store::sled_engine::SledEngine;
use crate::store::tests::model::{Model, copy_open};
use crate::store::tests::{flush, meta, options, position, put, scan_all, sweep_to_end, value_of};
use crate::store::{EngineKind, Opened};

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

on_every_engine!(a_flush_leaves_nothing_over, a_walk_leaves_nothing_over);

fn open<E: Engine>(directory: &std::path::Path) -> Opened<Entries<E>> {
    super::open(directory, &options()).expect("the store opens")
}

fn fresh<E: Engine>() -> (TempDir, Arc<Entries<E>>) {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    assert_eq!(opened.rebuilt, None);
    (directory, opened.store)
}

/// How many keys the spaces of database 0 have: entries, expiry index, pieces.
fn lengths<E: Engine>(store: &Entries<E>) -> [usize; 3] {
    let Some(spaces) = store.databases[0].view.load().spaces.clone() else {
        return [0; 3];
    };
    [&spaces.entries, &spaces.expiry, &spaces.pieces].map(|space| store.engine.range(space, EVERYTHING).count())
}

fn pieces_of<E: Engine>(length: usize) -> usize {
    match length > E::PIECE_BYTES {
        true => length.div_ceil(E::PIECE_BYTES),
        false => 0,
    }
}

fn a_flush_leaves_nothing_over<E: Engine>() {
    let (_directory, store) = fresh::<E>();
    let other = Meta {
        partition: 1,
        ..meta(50)
    };
    let expiring = Meta {
        expire_at: Some(9),
        ..meta(1)
    };
    let big = vec![7; 50_000];
    let mut changes = vec![put(b"stays", &big, other), put(b"goes-big", &big, expiring)];
    changes.extend((2..300).map(|offset| put(format!("goes-{offset}").as_bytes(), b"v", meta(offset))));
    store.apply(&changes).unwrap();
    store.apply(&[flush(0, 300), put(b"new", b"n", meta(301))]).unwrap();
    let check = |store: &Entries<E>| {
        assert_eq!(value_of(store, b"goes-2"), None);
        assert_eq!(value_of(store, b"stays").unwrap(), big);
        assert_eq!(value_of(store, b"new").unwrap(), "n");
        assert_eq!((store.count(0).unwrap(), store.count_expiring(0).unwrap()), (2, 0));
        assert_eq!(scan_all(store, 10).len(), 2);
        assert_eq!(store.expired(0, 100, 10).unwrap().len(), 0);
    };
    check(&store);
    sweep_to_end(&*store);
    check(&store);
    assert_eq!(lengths(&store), [2, 0, pieces_of::<E>(big.len())]);

    // Everything is hidden: a new generation.
    store.apply(&[flush(0, 400), flush(1, 400)]).unwrap();
    assert_eq!((store.count(0).unwrap(), scan_all(&*store, 10).len()), (0, 0));
    store
        .apply(&[put(b"again", b"x", meta(401)), put(b"hidden", b"x", meta(399))])
        .unwrap();
    sweep_to_end(&*store);
    assert_eq!(scan_all(&*store, 10), ["again"]);
    let names = store.engine.spaces().unwrap();
    assert_eq!(names.len(), 6, "the old generation is gone: {names:?}");
}

/// Every piece and index entry belongs to a visible entry.
fn assert_swept<E: Engine>(model: &Model, store: &Entries<E>) {
    sweep_to_end(store);
    let has_due = |entry: &&Entry| Head::new(entry.meta, &entry.value).due.is_some();
    let expiring = model.entries.values().filter(has_due);
    let pieces = model.entries.values().map(|entry| match entry.value.kept() {
        Ok((_, bytes)) => pieces_of::<E>(bytes.len()),
        Err(_) => 0,
    });
    assert_eq!(
        lengths(store),
        [model.entries.len(), expiring.count(), pieces.sum::<usize>()]
    );
}

fn a_walk_leaves_nothing_over<E: Engine>() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = Model::default();
    let directories = tempfile::tempdir().unwrap();
    let path = |round: u32| directories.path().join(round.to_string());
    for round in 0..6 {
        let Opened { store, checkpoint, .. } = open::<E>(&path(round));
        model.replay(&*store, &checkpoint);
        let changes: Vec<Change> = (0..2_000).map(|_| model.next_change(&mut rng, 300)).collect();
        store.apply(&changes).unwrap();
        assert_swept(&model, &store);
        store.checkpoint(&model.checkpoint()).unwrap();
        let changes: Vec<Change> = (0..100).map(|_| model.next_change(&mut rng, 300)).collect();
        store.apply(&changes).unwrap();
        copy_open(&*store, &path(round), &path(round + 1));
    }
}

/// Damage that is found while the store is in use: it returns only errors from then on, and the
/// next start rebuilds it.
#[test]
fn a_store_that_met_damage_is_given_up() {
    let (directory, store) = fresh::<SledEngine>();
    store
        .apply(&[put(b"a", &[1; 50_000], meta(1)), put(b"b", b"2", meta(2))])
        .unwrap();
    store.checkpoint(&position(3)).unwrap();
    let view = store.databases[0].view.load_full();
    let pieces = &view.spaces.as_ref().unwrap().pieces;
    let (piece, _) = pieces.iter().nth(3).unwrap().unwrap();
    pieces.remove(piece).unwrap();
    let error = store.get(0, b"a").unwrap_err().to_string();
    assert!(error.contains("a piece is missing"), "{error}");
    assert_eq!(store.get(0, b"b").unwrap_err().to_string(), error);
    assert!(store.apply(&[]).is_err() && store.checkpoint(&position(9)).is_err());
    drop(view);
    drop(store);
    let opened = crate::store::open(EngineKind::Sled, directory.path(), &options()).unwrap();
    assert_eq!(opened.rebuilt.unwrap(), "its position file is missing");
}
