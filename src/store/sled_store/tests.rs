use rand::SeedableRng;
use rand::rngs::StdRng;
use tempfile::TempDir;

use super::*;
use crate::store::tests::model::{Model, copy_open};
use crate::store::tests::{flush, meta, options, position, put, scan_all, sweep_to_end, value_of};
use crate::store::{Engine, Opened};

mod damage;

fn open(directory: &Path) -> Opened<SledStore> {
    SledStore::open(directory, &options()).expect("the store opens")
}

fn fresh() -> (TempDir, Arc<SledStore>) {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    assert_eq!(opened.rebuilt, None);
    (directory, opened.store)
}

#[test]
fn a_flush_hides_at_once_and_is_swept() {
    let (_directory, store) = fresh();
    let other = Meta {
        partition: 1,
        ..meta(50)
    };
    let big = vec![7; 50_000];
    let mut changes = vec![
        put(b"stays", &big, other),
        put(
            b"goes-big",
            &big,
            Meta {
                expire_at: Some(9),
                ..meta(1)
            },
        ),
    ];
    changes.extend((2..300).map(|offset| put(format!("goes-{offset}").as_bytes(), b"v", meta(offset))));
    store.apply(&changes).unwrap();
    store.apply(&[flush(0, 300), put(b"new", b"n", meta(301))]).unwrap();
    let check = |store: &SledStore| {
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
    let trees = store.databases[0].view.load().trees.clone().unwrap();
    assert_eq!((trees.entries.len(), trees.expiry.len()), (2, 0));
    assert_eq!(trees.pieces.len(), big.len().div_ceil(PIECE_BYTES));
    drop(trees);

    // Everything is hidden: a new generation.
    store.apply(&[flush(0, 400), flush(1, 400)]).unwrap();
    assert_eq!((store.count(0).unwrap(), scan_all(&*store, 10).len()), (0, 0));
    store
        .apply(&[put(b"again", b"x", meta(401)), put(b"hidden", b"x", meta(399))])
        .unwrap();
    sweep_to_end(&*store);
    assert_eq!(scan_all(&*store, 10), ["again"]);
    let trees = store
        .db
        .tree_names()
        .into_iter()
        .filter(|name| name.ends_with(b"entries"))
        .count();
    assert_eq!(trees, 1, "the old generation is gone");
}

#[test]
fn overwriting_large_values_does_not_grow_the_disk() {
    const SIZE: usize = 200_000;
    let (_directory, store) = fresh();
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
        fs::read_dir(store.closer.directory().join("blobs")).unwrap().count(),
        0,
        "pieces need no blob files"
    );
}

/// Nothing is left over: every piece and index entry belongs to a visible entry.
fn assert_swept(model: &Model, store: &SledStore) {
    sweep_to_end(store);
    let Some(trees) = store.databases[0].view.load().trees.clone() else {
        return;
    };
    assert_eq!(trees.entries.len(), model.entries.len(), "entries");
    let expiring = model.entries.values().filter(|entry| entry.meta.expire_at.is_some());
    assert_eq!(trees.expiry.len(), expiring.count(), "expiry index");
    let pieces = model.entries.values().map(|entry| match &entry.value {
        Value::String(bytes) if bytes.len() > PIECE_BYTES => bytes.len().div_ceil(PIECE_BYTES),
        _ => 0,
    });
    assert_eq!(trees.pieces.len(), pieces.sum::<usize>(), "pieces");
}

#[test]
fn a_walk_leaves_nothing_over() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = Model::default();
    let directories = tempfile::tempdir().unwrap();
    let path = |round: u32| directories.path().join(round.to_string());
    for round in 0..6 {
        let Opened { store, checkpoint, .. } = open(&path(round));
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
