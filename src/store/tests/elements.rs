//! Elements of split collections, on every engine.

use super::*;
use crate::model::{Bounds, Collection, Element, ElementName, Split, Version};

on_every_engine!(
    elements_are_kept_apart_from_keys_and_come_in_order,
    a_head_that_goes_leaves_orphans_that_are_swept,
    orphans_stay_until_their_tombstones_where_others_read_the_log,
    what_a_head_excludes_is_garbage,
    a_flush_hides_elements,
    elements_that_expire_are_due,
);

fn version(number: u64) -> Version {
    let text = format!("{number:024x}");
    Version::parse(text.as_bytes()).expect("a version")
}

fn name(key: &[u8], number: u64, sub_key: &[u8]) -> Bytes {
    let version = version(number);
    ElementName { key, version, sub_key }.record_key()
}

fn head(key: &[u8], number: u64, offset: u64) -> Change {
    let value = Value::Split(Split::new(Collection::Hash, version(number), b""));
    let meta = meta(offset);
    change(key, Some(Entry { meta, value }), 0, offset)
}

/// The head of a list with only these elements.
fn bounded(key: &[u8], (low, high): (u8, u8), offset: u64) -> Change {
    let mut metadata = Vec::new();
    let high = Some(&[high][..]);
    Bounds { low: &[low], high }.put(&mut metadata);
    let value = Value::Split(Split::new(Collection::List, version(1), &metadata));
    let meta = meta(offset);
    change(key, Some(Entry { meta, value }), 0, offset)
}

fn element(name: &[u8], value: &[u8], expire_at: Option<u64>, offset: u64) -> Change {
    let value = Value::Element(Element::new(value, expire_at));
    let meta = meta(offset);
    change(name, Some(Entry { meta, value }), 0, offset)
}

/// The sub-keys of a collection's elements, read in parts of this size.
fn sub_keys(store: &dyn Store, key: &[u8], number: u64, part: usize) -> Vec<Bytes> {
    let (mut found, mut from) = (Vec::new(), Some(Bytes::new()));
    while let Some(start) = from {
        let mut meet = |sub_key: &[u8], _| found.push(Bytes::copy_from_slice(sub_key));
        let next = store.elements(0, (key, version(number)), &start, part, &mut meet);
        from = next.unwrap();
    }
    found
}

/// Sweeps as a node does whose memory has no heads that the store lacks.
fn sweep_orphans_to_end(store: &dyn Store) {
    for (key, version) in store.orphans(0, 100).unwrap() {
        let head = store.get(0, &key).unwrap().map(|entry| entry.value);
        let gone = !matches!(head, Some(Value::Split(split)) if split.version() == version);
        while store.sweep_orphans(0, (&key, version), gone, 3).unwrap() {}
    }
}

fn elements_are_kept_apart_from_keys_and_come_in_order(engine: EngineKind) {
    let (directory, store) = fresh(engine);
    let large = vec![7; 300_000];
    let mut changes = vec![head(b"h", 1, 1), put(b"other", b"x", meta(2))];
    // The first of another collection comes right behind the last of this one.
    for (offset, sub_key) in (3..).zip([&b"b"[..], b"", b"a", b"c\xff", b"large"]) {
        let value: &[u8] = if sub_key == b"large" { &large } else { b"v" };
        changes.push(element(&name(b"h", 1, sub_key), value, None, offset));
    }
    changes.push(element(&name(b"h", 2, b"x"), b"v", None, 20));
    changes.push(element(&name(b"hh", 1, b"y"), b"v", None, 21));
    store.apply(&changes).unwrap();
    let check = |store: &dyn Store| {
        for part in [1, 2, 100] {
            assert_eq!(
                sub_keys(store, b"h", 1, part),
                [&b""[..], b"a", b"b", b"c\xff", b"large"]
            );
        }
        assert_eq!((store.count(0).unwrap(), scan_all(store, 10).len()), (2, 2));
        let found = store.get(0, &name(b"h", 1, b"large")).unwrap().expect("it is there");
        let Value::Element(element) = found.value else {
            panic!("no element")
        };
        assert_eq!(element.payload(), large);
        assert_eq!(store.get(0, &name(b"h", 3, b"a")).unwrap(), None);
    };
    check(&*store);
    // An older record changes nothing, and a removal is one of its own.
    store.apply(&[element(&name(b"h", 1, b"a"), b"old", None, 4)]).unwrap();
    store.apply(&[delete(&name(b"h", 1, b"a"), 0, 30)]).unwrap();
    assert_eq!(sub_keys(&*store, b"h", 1, 2), [&b""[..], b"b", b"c\xff", b"large"]);
    store.apply(&[element(&name(b"h", 1, b"a"), b"v", None, 31)]).unwrap();
    store.checkpoint(&position(32)).unwrap();
    drop(store);
    check(&*open(engine, directory.path()).store);
}

fn a_head_that_goes_leaves_orphans_that_are_swept(engine: EngineKind) {
    let (_directory, store) = fresh(engine);
    let mut offset = 0;
    let mut fill = |key: &[u8], number| {
        offset += 20;
        let mut changes = vec![head(key, number, offset)];
        changes.extend((1..11).map(|at| element(&name(key, number, &[at as u8]), b"v", None, offset + at)));
        store.apply(&changes).unwrap();
    };
    fill(b"stays", 1);
    // The head may have come and gone in memory: the store never had it.
    let late: Vec<Change> = (1..4)
        .map(|at| element(&name(b"never", 7, &[at]), b"v", None, 10 + u64::from(at)))
        .collect();
    store.apply(&late).unwrap();
    assert_eq!(store.orphans(0, 10).unwrap(), [(Bytes::from("never"), version(7))]);
    // Or it is on its way.
    let not_gone = store.sweep_orphans(0, (b"never", version(7)), false, 3).unwrap();
    assert!(!not_gone && sub_keys(&*store, b"never", 7, 4).len() == 3);
    sweep_orphans_to_end(&*store);
    assert_eq!(sub_keys(&*store, b"never", 7, 4).len(), 0);
    fill(b"deleted", 1);
    fill(b"replaced", 1);
    fill(b"string", 1);
    assert_eq!(store.orphans(0, 10).unwrap(), []);
    fill(b"replaced", 2);
    store
        .apply(&[delete(b"deleted", 0, 200), put(b"string", b"s", meta(201))])
        .unwrap();
    // EXPIRE writes the same head again.
    store.apply(&[head(b"stays", 1, 202)]).unwrap();
    let mut orphans = store.orphans(0, 10).unwrap();
    orphans.sort();
    assert_eq!(
        orphans,
        ["deleted", "replaced", "string"].map(|key| (Bytes::from(key), version(1)))
    );
    sweep_orphans_to_end(&*store);
    assert_eq!(store.orphans(0, 10).unwrap(), []);
    for (key, number, left) in [
        (&b"stays"[..], 1, 10),
        (b"deleted", 1, 0),
        (b"replaced", 1, 0),
        (b"replaced", 2, 10),
        (b"string", 1, 0),
    ] {
        assert_eq!(sub_keys(&*store, key, number, 4).len(), left, "{key:?} {number}");
    }
    // A head that comes back in time keeps its elements.
    store.apply(&[delete(b"stays", 0, 300)]).unwrap();
    store.apply(&[head(b"stays", 1, 301)]).unwrap();
    sweep_orphans_to_end(&*store);
    assert_eq!(sub_keys(&*store, b"stays", 1, 4).len(), 10);
}

fn orphans_stay_until_their_tombstones_where_others_read_the_log(engine: EngineKind) {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        keeps_hidden: true,
        ..options()
    };
    let store = crate::store::open(engine, directory.path(), &options).unwrap().store;
    let elements = (2..12).map(|at| element(&name(b"h", 1, &[at as u8]), b"v", None, at));
    let changes: Vec<Change> = std::iter::once(head(b"h", 1, 1)).chain(elements).collect();
    store.apply(&changes).unwrap();
    // The head is hidden, and then gets its tombstone.
    store.apply(&[flush(0, 20)]).unwrap();
    assert_eq!(store.orphans(0, 10).unwrap(), []);
    store.apply(&[delete(b"h", 0, 21)]).unwrap();
    sweep_orphans_to_end(&*store);
    assert_eq!(store.orphans(0, 10).unwrap(), [(Bytes::from("h"), version(1))]);
    let mut found = Vec::new();
    let mut meet = |sub_key: &[u8], meta: Meta| found.push((sub_key[0], meta.offset));
    store.orphaned(0, (b"h", version(1)), 4, &mut meet).unwrap();
    assert_eq!(found, [(2, 2), (3, 3), (4, 4), (5, 5)]);
    let tombstones: Vec<Change> = (2..12)
        .map(|at| delete(&name(b"h", 1, &[at]), 0, 30 + u64::from(at)))
        .collect();
    store.apply(&tombstones).unwrap();
    sweep_orphans_to_end(&*store);
    assert_eq!(store.orphans(0, 10).unwrap(), []);
}

fn what_a_head_excludes_is_garbage(engine: EngineKind) {
    for keeps_hidden in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            keeps_hidden,
            ..options()
        };
        let store = crate::store::open(engine, directory.path(), &options).unwrap().store;
        let element = |at: u8, offset| element(&name(b"l", 1, &[at]), b"v", None, offset);
        let elements = (1..=20).map(|at| element(at, u64::from(at)));
        let changes: Vec<Change> = elements.chain([bounded(b"l", (1, 20), 21)]).collect();
        store.apply(&changes).unwrap();
        sweep_orphans_to_end(&*store);
        assert_eq!(store.orphans(0, 10).unwrap(), [], "all are within the bounds");
        store.apply(&[bounded(b"l", (6, 14), 22)]).unwrap();
        let garbage = || {
            let mut found = Vec::new();
            let mut meet = |sub_key: &[u8], _| found.push(sub_key[0]);
            store.orphaned(0, (b"l", version(1)), 100, &mut meet).unwrap();
            found
        };
        let outside: Vec<u8> = (1..6).chain(15..=20).collect();
        assert_eq!(garbage(), outside);
        sweep_orphans_to_end(&*store);
        let listed = [(Bytes::from("l"), version(1))];
        if keeps_hidden {
            assert_eq!(
                (garbage(), store.orphans(0, 10).unwrap()),
                (outside.clone(), listed.to_vec())
            );
            let tombstones: Vec<Change> = outside.iter().map(|at| delete(&name(b"l", 1, &[*at]), 0, 30)).collect();
            store.apply(&tombstones).unwrap();
            sweep_orphans_to_end(&*store);
        }
        assert_eq!((garbage(), store.orphans(0, 10).unwrap()), (Vec::new(), Vec::new()));
        let left: Vec<Bytes> = (6..=14).map(|at| Bytes::from(vec![at])).collect();
        assert_eq!(sub_keys(&*store, b"l", 1, 4), left);
        // One that comes late is garbage too.
        store.apply(&[element(10, 40), element(3, 41), element(4, 42)]).unwrap();
        assert_eq!(
            (garbage(), store.orphans(0, 10).unwrap()),
            (vec![3, 4], listed.to_vec())
        );
        // When the head goes, all of them are.
        store.apply(&[delete(b"l", 0, 50)]).unwrap();
        assert_eq!(garbage().len(), 11);
    }
}

fn a_flush_hides_elements(engine: EngineKind) {
    let (_directory, store) = fresh(engine);
    let other = Change {
        partition: 1,
        ..put(b"stays", b"s", meta(1))
    };
    let changes = [other, head(b"h", 1, 2), element(&name(b"h", 1, b"a"), b"v", None, 3)];
    store.apply(&changes).unwrap();
    store
        .apply(&[
            flush(0, 10),
            element(&name(b"h", 2, b"b"), b"v", None, 11),
            head(b"h", 2, 12),
        ])
        .unwrap();
    for _ in 0..2 {
        assert_eq!(store.get(0, &name(b"h", 1, b"a")).unwrap(), None);
        assert_eq!(sub_keys(&*store, b"h", 1, 4), Vec::<Bytes>::new());
        assert_eq!(sub_keys(&*store, b"h", 2, 4), ["b"]);
        sweep_to_end(&*store);
        sweep_orphans_to_end(&*store);
    }
    let mut left = 0;
    store.orphaned(0, (b"h", version(1)), 4, &mut |_, _| left += 1).unwrap();
    assert_eq!(left, 0, "the space is free");
}

fn elements_that_expire_are_due(engine: EngineKind) {
    let (_directory, store) = fresh(engine);
    let (a, b) = (name(b"h", 1, b"a"), name(b"h", 1, b"b"));
    let changes = [
        head(b"h", 1, 1),
        element(&a, b"v", Some(10), 2),
        element(&b, b"v", Some(20), 3),
        element(&name(b"h", 1, b"c"), b"v", None, 4),
    ];
    store.apply(&changes).unwrap();
    assert_eq!(store.due(0, 15, 10).unwrap(), std::slice::from_ref(&a));
    assert_eq!(store.due(0, 25, 10).unwrap(), [a.clone(), b.clone()]);
    assert_eq!(
        store.expired(0, 25, 10).unwrap(),
        Vec::<Bytes>::new(),
        "no key has expired"
    );
    store.apply(&[element(&a, b"v", None, 5), delete(&b, 0, 6)]).unwrap();
    assert_eq!(store.due(0, 25, 10).unwrap(), Vec::<Bytes>::new());
}
