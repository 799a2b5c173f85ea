//! What a flush hides, on every engine.

use super::*;

on_every_engine!(
    a_flush_hides_at_once_and_is_swept_away,
    what_a_flush_has_hidden_stays_until_its_tombstone_where_it_is_to_be_kept,
    a_scan_does_not_pass_hidden_entries_without_end,
    a_partition_that_is_not_hidden_as_a_whole_is_counted_again,
);

/// The options for a log whose other readers learn from tombstones what a flush has hidden.
fn keeping() -> Options {
    Options {
        keeps_hidden: true,
        ..options()
    }
}

fn open_keeping(engine: EngineKind, directory: &Path) -> Arc<dyn Store> {
    crate::store::open(engine, directory, &keeping()).unwrap().store
}

fn a_flush_hides_at_once_and_is_swept_away(engine: EngineKind) {
    let (_directory, store) = fresh(engine);
    let other = Meta {
        partition: 1,
        ..meta(50)
    };
    let mut changes = vec![put(b"stays", b"s", other)];
    changes.extend((2..300).map(|offset| {
        let expire_at = (offset % 2 == 0).then_some(9);
        put(
            format!("goes-{offset}").as_bytes(),
            b"v",
            Meta {
                expire_at,
                ..meta(offset)
            },
        )
    }));
    store.apply(&changes).unwrap();
    store.apply(&[flush(0, 300), put(b"new", b"n", meta(301))]).unwrap();
    for _ in 0..2 {
        assert_eq!(value_of(&*store, b"goes-2"), None);
        assert_eq!(value_of(&*store, b"stays").unwrap(), "s");
        assert_eq!(value_of(&*store, b"new").unwrap(), "n");
        assert_eq!((store.count(0).unwrap(), store.count_expiring(0).unwrap()), (2, 0));
        assert_eq!(scan_all(&*store, 10).len(), 2);
        assert_eq!(store.expired(0, 100, 10).unwrap().len(), 0);
        sweep_to_end(&*store);
    }
    store.apply(&[flush(0, 400), flush(1, 400)]).unwrap();
    assert_eq!((store.count(0).unwrap(), scan_all(&*store, 10).len()), (0, 0));
    store
        .apply(&[put(b"again", b"x", meta(401)), put(b"hidden", b"x", meta(399))])
        .unwrap();
    sweep_to_end(&*store);
    assert_eq!(scan_all(&*store, 10), ["again"]);
}

fn what_a_flush_has_hidden_stays_until_its_tombstone_where_it_is_to_be_kept(engine: EngineKind) {
    let directory = tempfile::tempdir().unwrap();
    let open = || open_keeping(engine, directory.path());
    let store = open();
    let expiring = Meta {
        expire_at: Some(9),
        ..meta(2)
    };
    let other = Meta {
        partition: 1,
        ..meta(50)
    };
    store
        .apply(&[
            put(b"untouched", &[7; 50_000], expiring),
            put(b"deleted", b"v", meta(3)),
            put(b"rewritten", b"v", meta(4)),
            put(b"of another partition", b"v", other),
            flush(0, 10),
            delete(b"deleted", 0, 11),
            put(b"rewritten", b"new", meta(12)),
        ])
        .unwrap();
    let check = |store: &dyn Store, hidden: &[(Bytes, u64)]| {
        sweep_to_end(store);
        assert_eq!(scan_all_hidden(store, 1), hidden);
        assert_eq!(store.count_hidden(0).unwrap(), hidden.len() as u64);
        assert_eq!((store.count(0).unwrap(), store.count_expiring(0).unwrap()), (2, 0));
        assert_eq!(scan_all(store, 1).len(), 2);
        assert_eq!(value_of(store, b"untouched"), None);
        assert_eq!(store.expired(0, 100, 10).unwrap().len(), 0);
    };
    check(&*store, &[("untouched".into(), 2)]);
    store.checkpoint(&position(13)).unwrap();
    drop(store);
    let store = open();
    check(&*store, &[("untouched".into(), 2)]);
    // One is read again; the other is of a partition that has nothing hidden.
    store
        .apply(&[put(b"untouched", b"v", meta(5)), delete(b"untouched", 1, 60)])
        .unwrap();
    check(&*store, &[("untouched".into(), 5)]);
    store.apply(&[delete(b"untouched", 0, 13)]).unwrap();
    check(&*store, &[]);
    // Nothing is visible any more, and still the hidden entries stay.
    store.apply(&[flush(0, 20), flush(1, 70)]).unwrap();
    sweep_to_end(&*store);
    assert_eq!((store.count(0).unwrap(), store.count_hidden(0).unwrap()), (0, 2));
    store.clear(0).unwrap();
    assert_eq!(store.count_hidden(0).unwrap(), 0);
    assert_eq!(scan_all_hidden(&*store, 10), []);
}

fn a_scan_does_not_pass_hidden_entries_without_end(engine: EngineKind) {
    let directory = tempfile::tempdir().unwrap();
    let store = open_keeping(engine, directory.path());
    let many = PASSED as u64 * 3 / 2;
    let changes: Vec<Change> = (1..=many)
        .map(|offset| put(format!("k{offset}").as_bytes(), b"v", meta(offset)))
        .collect();
    store.apply(&changes).unwrap();
    store
        .apply(&[flush(0, many + 1), put(b"new", b"v", meta(many + 2))])
        .unwrap();
    let next = store.scan(0, 0, 10, &mut |_| {}).unwrap();
    assert!(next.is_some(), "all of it was passed at once");
    assert_eq!(scan_all(&*store, 10), ["new"]);
}

/// The counts are right at once, and after a restart in the middle of counting.
fn a_partition_that_is_not_hidden_as_a_whole_is_counted_again(engine: EngineKind) {
    let directory = tempfile::tempdir().unwrap();
    let open = || open_keeping(engine, directory.path());
    let store = open();
    let changes: Vec<Change> = (1..=100)
        .map(|offset| put(format!("k{offset}").as_bytes(), b"v", meta(offset)))
        .collect();
    store.apply(&changes).unwrap();
    store.apply(&[flush(0, 50)]).unwrap();
    store.sweep(10).unwrap();
    store.checkpoint(&position(101)).unwrap();
    drop(store);
    let check = |store: &dyn Store| {
        assert_eq!((store.count(0).unwrap(), store.count_hidden(0).unwrap()), (51, 49));
    };
    let store = open();
    check(&*store);
    drop(store);
    let store = open();
    store.apply(&[put(b"k1", b"new", meta(102)), flush(0, 60)]).unwrap();
    assert_eq!((store.count(0).unwrap(), store.count_hidden(0).unwrap()), (42, 58));
    sweep_to_end(&*store);
    drop(store);
    let store = open();
    assert_eq!((store.count(0).unwrap(), store.count_hidden(0).unwrap()), (42, 58));
}
