//! What every engine has to do, tested on each.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::TempDir;

use super::*;
use crate::model::{Payload, Value};
use model::hash_of;

mod damage;
mod elements;
mod engine;
mod flushes;
pub(super) mod model;
mod on_fjall;
mod on_sled;

/// One test for each engine and each of these functions.
macro_rules! on_every_engine {
    ($($name:ident),+ $(,)?) => {
        mod sled {
            $(#[test] fn $name() { super::$name(super::EngineKind::Sled) })+
        }
        mod fjall {
            $(#[test] fn $name() { super::$name(super::EngineKind::Fjall) })+
        }
    };
}
use on_every_engine;

on_every_engine!(
    put_get_delete_and_the_offset_rule,
    unreadable_records_keep_their_reason,
    expired_keys_come_earliest_first,
    fields_that_expire_are_due_beside_keys,
    scan_walks_in_hash_order_page_by_page,
    clear_empties_one_database_and_its_position,
    values_of_every_size_survive,
    scan_meets_every_key_that_stays_while_others_come_and_go,
    a_value_is_never_mixed_while_it_is_replaced,
    a_clean_stop_keeps_position_and_counts,
    what_another_engine_kept_is_rebuilt,
    another_number_of_databases_is_a_rebuild,
    in_use_by_another_is_an_error_and_no_rebuild,
    long_keys_with_the_same_beginning_are_kept_apart,
);

pub(super) fn options() -> Options {
    Options {
        cache_bytes: 32 << 20,
        databases: 4,
        keeps_hidden: false,
    }
}

fn open(engine: EngineKind, directory: &Path) -> Opened {
    super::open(engine, directory, &options()).expect("the store opens")
}

fn fresh(engine: EngineKind) -> (TempDir, Arc<dyn Store>) {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(engine, directory.path());
    assert_eq!(opened.rebuilt, None);
    (directory, opened.store)
}

pub(super) fn meta(offset: u64) -> Meta {
    Meta {
        partition: 0,
        offset,
        timestamp: 1_700_000_000_000 + offset as i64,
        expire_at: None,
    }
}

pub(super) fn put(key: &[u8], value: &[u8], meta: Meta) -> Change {
    let value = Value::String(Bytes::copy_from_slice(value));
    change(key, Some(Entry { meta, value }), meta.partition, meta.offset)
}

pub(super) fn delete(key: &[u8], partition: u32, offset: u64) -> Change {
    change(key, None, partition, offset)
}

fn change(key: &[u8], entry: Option<Entry>, partition: u32, offset: u64) -> Change {
    Change::of_key(0, partition, offset, Bytes::copy_from_slice(key), entry)
}

pub(super) fn flush(partition: u32, offset: u64) -> Change {
    Change {
        database: 0,
        partition,
        offset,
        timestamp: 0,
        key: Bytes::from_static(b"flush"),
        payload: Payload::FLUSH,
    }
}

pub(super) fn value_of(store: &dyn Store, key: &[u8]) -> Option<Bytes> {
    match store.get(0, key).unwrap()?.value {
        Value::String(bytes) => Some(bytes),
        other => panic!("no string: {other:?}"),
    }
}

pub(super) fn scan_all(store: &dyn Store, page: usize) -> Vec<Bytes> {
    let (mut keys, mut from) = (Vec::new(), Some(0));
    while let Some(hash) = from {
        from = store
            .scan(0, hash, page, &mut |seen| keys.push(Bytes::copy_from_slice(seen.key)))
            .unwrap();
    }
    keys
}

fn scan_all_hidden(store: &dyn Store, page: usize) -> Vec<(Bytes, u64)> {
    let (mut found, mut from) = (Vec::new(), Some(0));
    while let Some(hash) = from {
        let mut meet = |seen: Scanned<'_>| found.push((Bytes::copy_from_slice(seen.key), seen.meta.offset));
        from = store.scan_hidden(0, hash, page, &mut meet).unwrap();
    }
    found
}

pub(super) fn sweep_to_end(store: &dyn Store) {
    while store.sweep(100).unwrap() {}
}

pub(super) fn position(next_offset: u64) -> Checkpoint {
    let partitions = BTreeMap::from([(
        0,
        PartitionPosition {
            next_offset,
            as_of: 7,
            mark: None,
        },
    )]);
    Checkpoint {
        databases: BTreeMap::from([(
            0,
            DatabaseCheckpoint {
                features: BTreeMap::new(),
                functions: BTreeMap::new(),
                source: "test".to_owned(),
                partitions,
            },
        )]),
    }
}

fn put_get_delete_and_the_offset_rule(engine: EngineKind) {
    let (_directory, store) = fresh(engine);
    assert_eq!(store.get(0, b"a").unwrap(), None);
    let with_expiry = Meta {
        expire_at: Some(5),
        ..meta(3)
    };
    store
        .apply(&[
            put(b"a", b"1", meta(1)),
            put(b"a", b"2", with_expiry),
            put(b"", b"", meta(4)),
        ])
        .unwrap();
    let expected = Entry {
        meta: with_expiry,
        value: Value::String(Bytes::from_static(b"2")),
    };
    assert_eq!(store.get(0, b"a").unwrap(), Some(expected));
    assert_eq!(value_of(&*store, b"").unwrap(), "");
    assert_eq!((store.count(0).unwrap(), store.count_expiring(0).unwrap()), (2, 1));

    // Lower or equal offsets change nothing; another partition's do.
    store.apply(&[put(b"a", b"old", meta(2)), delete(b"a", 0, 3)]).unwrap();
    assert_eq!(value_of(&*store, b"a").unwrap(), "2");
    store
        .apply(&[put(
            b"a",
            b"other",
            Meta {
                partition: 1,
                ..meta(0)
            },
        )])
        .unwrap();
    assert_eq!(value_of(&*store, b"a").unwrap(), "other");
    assert_eq!((store.count(0).unwrap(), store.count_expiring(0).unwrap()), (2, 0));
    store.apply(&[delete(b"a", 1, 1), delete(b"nothing", 0, 9)]).unwrap();
    assert_eq!((store.get(0, b"a").unwrap(), store.count(0).unwrap()), (None, 1));
    assert_eq!((store.get(1, b"").unwrap(), store.count(1).unwrap()), (None, 0));
    assert!(store.get(4, b"").is_err());
}

fn unreadable_records_keep_their_reason(engine: EngineKind) {
    let (_directory, store) = fresh(engine);
    let value = Value::Unreadable(Arc::from("type zset"));
    let entry = Entry { meta: meta(1), value };
    store.apply(&[change(b"z", Some(entry.clone()), 0, 1)]).unwrap();
    assert_eq!(store.get(0, b"z").unwrap(), Some(entry));
}

fn fields_that_expire_are_due_beside_keys(engine: EngineKind) {
    let (_directory, store) = fresh(engine);
    let change_of = |key: &[u8], offset, field, expire_at| {
        let value = hash_of(Bytes::from_static(b"value"), field);
        let meta = Meta {
            expire_at,
            ..meta(offset)
        };
        change(key, Some(Entry { meta, value }), 0, offset)
    };
    let expiring = Meta {
        expire_at: Some(20),
        ..meta(1)
    };
    let changes = [
        put(b"key", b"", expiring),
        change_of(b"field", 2, Some(10), None),
        change_of(b"field first", 3, Some(15), Some(40)),
        change_of(b"key first", 4, Some(90), Some(30)),
        change_of(b"neither", 5, None, None),
        change_of(b"persisted", 6, Some(5), None),
        change_of(b"persisted", 7, None, None),
        change_of(b"deleted", 8, Some(5), None),
        delete(b"deleted", 0, 9),
        put(b"plain", b"\x92", meta(10)),
    ];
    store.apply(&changes).unwrap();
    assert_eq!(store.due(0, 9, 10).unwrap(), Vec::<Bytes>::new());
    assert_eq!(store.due(0, 10, 10).unwrap(), ["field"]);
    assert_eq!(store.due(0, u64::MAX, 2).unwrap(), ["field", "field first"]);
    assert_eq!(
        store.due(0, u64::MAX, 10).unwrap(),
        ["field", "field first", "key", "key first"]
    );
    assert_eq!(store.expired(0, 35, 10).unwrap(), ["key", "key first"]);
    assert_eq!(
        store.expired(0, u64::MAX, 10).unwrap(),
        ["field first", "key", "key first"]
    );
    assert_eq!(store.count_expiring(0).unwrap(), 3, "keys alone");
    // A field that expires sooner or later than before.
    store
        .apply(&[
            change_of(b"field", 11, Some(7), None),
            change_of(b"field first", 12, Some(50), None),
        ])
        .unwrap();
    assert_eq!(
        store.due(0, u64::MAX, 10).unwrap(),
        ["field", "key", "key first", "field first"]
    );
    store.apply(&[flush(0, 20)]).unwrap();
    assert_eq!(store.due(0, u64::MAX, 10).unwrap(), Vec::<Bytes>::new());
}

fn expired_keys_come_earliest_first(engine: EngineKind) {
    let (_directory, store) = fresh(engine);
    let expiring = |offset, at| Meta {
        expire_at: Some(at),
        ..meta(offset)
    };
    let changes = [
        put(b"c", b"", expiring(1, 30)),
        put(b"a", b"", expiring(2, 10)),
        put(b"b", b"", expiring(3, 20)),
        put(b"never", b"", meta(4)),
        put(b"moved", b"", expiring(5, 5)),
        put(b"moved", b"", expiring(6, 40)),
        put(b"max", b"", expiring(7, u64::MAX)),
    ];
    store.apply(&changes).unwrap();
    assert_eq!(store.expired(0, 9, 10).unwrap(), Vec::<Bytes>::new());
    assert_eq!(store.expired(0, 20, 10).unwrap(), ["a", "b"]);
    assert_eq!(store.expired(0, u64::MAX, 4).unwrap(), ["a", "b", "c", "moved"]);
    assert_eq!(store.expired(0, u64::MAX, 10).unwrap().len(), 5);
    store.apply(&[flush(0, 6)]).unwrap();
    assert_eq!(store.expired(0, u64::MAX, 10).unwrap(), ["moved", "max"]);
    assert_eq!((store.count(0).unwrap(), store.count_expiring(0).unwrap()), (2, 2));
    store.apply(&[flush(0, 8)]).unwrap();
    assert_eq!(
        store.expired(0, u64::MAX, 10).unwrap().len(),
        0,
        "all of the partition is hidden"
    );
    assert_eq!(store.count(0).unwrap(), 0);
}

fn scan_walks_in_hash_order_page_by_page(engine: EngineKind) {
    let (_directory, store) = fresh(engine);
    let mut keys: Vec<Bytes> = (0..500).map(|number| Bytes::from(format!("key:{number}"))).collect();
    let changes: Vec<Change> = keys
        .iter()
        .zip(1..)
        .map(|(key, offset)| put(key, b"v", meta(offset)))
        .collect();
    store.apply(&changes).unwrap();
    keys.sort_by_key(|key| key_hash(key));
    for page in [1, 7, 500, 1000] {
        assert_eq!(scan_all(&*store, page), keys);
    }
}

fn clear_empties_one_database_and_its_position(engine: EngineKind) {
    let (directory, store) = fresh(engine);
    store.apply(&[put(b"a", b"1", meta(5)), flush(1, 9)]).unwrap();
    store.checkpoint(&position(6)).unwrap();
    store.clear(0).unwrap();
    assert_eq!((store.get(0, b"a").unwrap(), store.count(0).unwrap()), (None, 0));
    store
        .apply(&[
            put(b"a", b"new", meta(0)),
            put(
                b"b",
                b"new",
                Meta {
                    partition: 1,
                    ..meta(0)
                },
            ),
        ])
        .unwrap();
    assert_eq!(store.count(0).unwrap(), 2);
    drop(store);
    let Opened {
        store,
        checkpoint,
        rebuilt,
    } = open(engine, directory.path());
    assert_eq!((checkpoint, rebuilt), (Checkpoint::default(), None));
    assert_eq!(value_of(&*store, b"a").unwrap(), "new");
    assert_eq!(store.count(0).unwrap(), 2);
}

fn values_of_every_size_survive(engine: EngineKind) {
    let (directory, store) = fresh(engine);
    let sizes = [
        0,
        1,
        6_143,
        6_144,
        6_145,
        12_288,
        99_999,
        100_000,
        120_000,
        131_071,
        131_072,
        1 << 20,
        5 << 20,
    ];
    let value = |size: usize| (0..size).map(|at| (at * 31 + size) as u8).collect::<Vec<u8>>();
    for (size, offset) in sizes.into_iter().zip(1..) {
        store
            .apply(&[put(format!("{size}").as_bytes(), &value(size), meta(offset))])
            .unwrap();
    }
    let long_key = vec![b'k'; 1 << 20];
    store.apply(&[put(&long_key, b"v", meta(100))]).unwrap();
    store.checkpoint(&position(101)).unwrap();
    let check = |store: &dyn Store| {
        for size in sizes {
            assert!(
                value_of(store, format!("{size}").as_bytes()).unwrap() == value(size),
                "{size}"
            );
        }
        assert_eq!(value_of(store, &long_key).unwrap(), "v");
    };
    check(&*store);
    drop(store);
    let opened = open(engine, directory.path());
    assert_eq!(opened.rebuilt, None);
    check(&*opened.store);
}

fn scan_meets_every_key_that_stays_while_others_come_and_go(engine: EngineKind) {
    let (_directory, store) = fresh(engine);
    let stays = |number: u32| Bytes::from(format!("stays {number}"));
    let changes: Vec<Change> = (0..2_000)
        .map(|number| put(&stays(number), b"v", meta(u64::from(number) + 1)))
        .collect();
    store.apply(&changes).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for offset in 10_000.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let key = format!("comes {}", offset % 997);
                let big = vec![1; (offset % 3) as usize * 5_000];
                let stays = put(&stays((offset % 2_000) as u32), &big, meta(offset));
                let change = if offset % 5 == 0 {
                    delete(key.as_bytes(), 0, offset + 1)
                } else {
                    put(key.as_bytes(), &big, meta(offset + 1))
                };
                store.apply(&[stays, change]).unwrap();
            }
        });
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                let (store, stays) = (&store, &stays);
                scope.spawn(move || {
                    for page in [10, 100, 333] {
                        let keys = scan_all(&**store, page + reader);
                        let seen: std::collections::HashSet<&Bytes> = keys.iter().collect();
                        assert_eq!(seen.len(), keys.len(), "a key came twice");
                        assert!(
                            (0..2_000).all(|number| seen.contains(&stays(number))),
                            "a key is missing"
                        );
                    }
                })
            })
            .collect();
        let outcome: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(outcome.iter().all(Result::is_ok));
    });
}

fn a_value_is_never_mixed_while_it_is_replaced(engine: EngineKind) {
    let (_directory, store) = fresh(engine);
    let value = |offset: u64| vec![offset as u8; 60_000 + (offset % 7) as usize * 5_000];
    store.apply(&[put(b"k", &value(1), meta(1))]).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = std::collections::HashSet::new();
            while !stop.load(Ordering::Relaxed) {
                let Some(Entry {
                    meta,
                    value: Value::String(bytes),
                }) = store.get(0, b"k").unwrap()
                else {
                    panic!("the key is always there");
                };
                assert!(bytes == value(meta.offset), "offset {}", meta.offset);
                seen.insert(meta.offset);
            }
            seen.len()
        });
        for offset in 2..600 {
            store.apply(&[put(b"k", &value(offset), meta(offset))]).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 10);
    });
}

fn a_clean_stop_keeps_position_and_counts(engine: EngineKind) {
    let (directory, store) = fresh(engine);
    store
        .apply(&[
            put(
                b"a",
                b"1",
                Meta {
                    expire_at: Some(3),
                    ..meta(5)
                },
            ),
            put(b"b", b"1", meta(6)),
        ])
        .unwrap();
    store.checkpoint(&position(7)).unwrap();
    drop(store);
    for _ in 0..3 {
        let Opened {
            store,
            checkpoint,
            rebuilt,
        } = open(engine, directory.path());
        assert_eq!((checkpoint, rebuilt), (position(7), None));
        assert_eq!((store.count(0).unwrap(), store.count_expiring(0).unwrap()), (2, 1));
    }
}

fn what_another_engine_kept_is_rebuilt(engine: EngineKind) {
    let (directory, store) = fresh(engine);
    store.apply(&[put(b"a", b"1", meta(1))]).unwrap();
    store.checkpoint(&position(2)).unwrap();
    drop(store);
    let other = match engine {
        EngineKind::Sled => EngineKind::Fjall,
        EngineKind::Fjall => EngineKind::Sled,
    };
    for engine in [other, engine] {
        let opened = open(engine, directory.path());
        assert!(opened.rebuilt.unwrap().starts_with("it was kept by "));
        assert_eq!(opened.checkpoint, Checkpoint::default());
        assert_eq!(opened.store.count(0).unwrap(), 0);
        opened.store.apply(&[put(b"b", b"1", meta(1))]).unwrap();
        drop(opened.store);
        assert_eq!(open(engine, directory.path()).rebuilt, None);
    }
}

fn another_number_of_databases_is_a_rebuild(engine: EngineKind) {
    let (directory, store) = fresh(engine);
    store.apply(&[put(b"a", b"1", meta(1))]).unwrap();
    store.checkpoint(&position(2)).unwrap();
    drop(store);
    for databases in [8, 2, 4] {
        let options = Options { databases, ..options() };
        let opened = super::open(engine, directory.path(), &options).unwrap();
        let rebuilt = opened.rebuilt.expect("it is rebuilt");
        assert!(rebuilt.contains("another number of databases"), "{rebuilt}");
        assert_eq!(opened.checkpoint, Checkpoint::default());
        assert_eq!(opened.store.count(0).unwrap(), 0);
        opened.store.apply(&[put(b"b", b"1", meta(1))]).unwrap();
        opened.store.checkpoint(&position(2)).unwrap();
    }
    let opened = open(engine, directory.path());
    assert_eq!((opened.checkpoint, opened.rebuilt), (position(2), None));
}

fn in_use_by_another_is_an_error_and_no_rebuild(engine: EngineKind) {
    let (directory, store) = fresh(engine);
    store.apply(&[put(b"a", b"1", meta(1))]).unwrap();
    let error = super::open(engine, directory.path(), &options())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("in use by another process"), "{error}");
    assert_eq!(value_of(&*store, b"a").unwrap(), "1");
}

fn long_keys_with_the_same_beginning_are_kept_apart(engine: EngineKind) {
    let (directory, store) = fresh(engine);
    let key = |end: u8| [&[b'k'; 70_000][..], &[end]].concat();
    let expiring = |offset| Meta {
        expire_at: Some(offset),
        ..meta(offset)
    };
    let changes: Vec<Change> = (1..=5)
        .map(|end| put(&key(end), &[end], expiring(end.into())))
        .collect();
    store.apply(&changes).unwrap();
    store
        .apply(&[delete(&key(2), 0, 6), put(&key(3), b"new", meta(7))])
        .unwrap();
    store.checkpoint(&position(8)).unwrap();
    let check = |store: &dyn Store| {
        let values = (1..=5).map(|end| value_of(store, &key(end)));
        let values: Vec<Option<Vec<u8>>> = values.map(|value| value.map(Into::into)).collect();
        assert_eq!(
            values,
            [Some(vec![1]), None, Some(b"new".to_vec()), Some(vec![4]), Some(vec![5])]
        );
        assert_eq!(scan_all(store, 1).len(), 4);
        assert_eq!(store.expired(0, 4, 10).unwrap(), [key(1), key(4)]);
        assert_eq!((store.count(0).unwrap(), store.count_expiring(0).unwrap()), (4, 3));
    };
    check(&*store);
    drop(store);
    check(&*open(engine, directory.path()).store);
}
