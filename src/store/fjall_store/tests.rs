use super::*;
use crate::store::tests::{meta, options, position, put};

#[test]
fn what_was_not_written_to_tables_is_forgotten_with_the_checkpoint_that_counts_on_it() {
    let directory = tempfile::tempdir().unwrap();
    let killed = directory.path().join("killed");
    let store = FjallStore::open(&directory.path().join("store"), &options())
        .unwrap()
        .store;
    store.apply(&[put(b"a", b"1", meta(1))]).unwrap();
    store.checkpoint(&position(2)).unwrap();
    store
        .apply(&[put(b"a", b"2", meta(2)), put(b"b", b"1", meta(3))])
        .unwrap();
    store.checkpoint(&position(4)).unwrap();
    crate::store::tests::model::copy_open(&*store, &directory.path().join("store"), &killed);
    let opened = FjallStore::open(&killed, &options()).unwrap();
    assert_eq!((opened.checkpoint, opened.rebuilt), (position(2), None));
    assert_eq!(
        (opened.store.count(0).unwrap(), opened.store.get(0, b"b").unwrap()),
        (1, None)
    );
    drop(store);
    let opened = FjallStore::open(&directory.path().join("store"), &options()).unwrap();
    assert_eq!((opened.checkpoint, opened.store.count(0).unwrap()), (position(4), 2));
}

#[test]
fn a_store_that_was_given_up_is_rebuilt() {
    let directory = tempfile::tempdir().unwrap();
    let opened = FjallStore::open(directory.path(), &options()).unwrap();
    opened.store.checkpoint(&position(2)).unwrap();
    drop(opened);
    files::mark_broken(directory.path()).unwrap();
    for rebuilt in [true, false] {
        let opened = FjallStore::open(directory.path(), &options()).unwrap();
        assert_eq!(opened.rebuilt.is_some(), rebuilt);
        assert_eq!(opened.checkpoint, Checkpoint::default());
    }
}

#[test]
fn in_use_by_another_is_an_error_and_no_rebuild() {
    let directory = tempfile::tempdir().unwrap();
    let opened = FjallStore::open(directory.path(), &options()).unwrap();
    opened.store.apply(&[put(b"a", b"1", meta(1))]).unwrap();
    let error = FjallStore::open(directory.path(), &options())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("in use by another process"), "{error}");
    assert!(opened.store.get(0, b"a").unwrap().is_some());
}
