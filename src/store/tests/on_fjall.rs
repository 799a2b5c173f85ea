//! What is particular to fjall's files.

use super::model::copy_open;
use super::*;

fn open(directory: &Path) -> Opened {
    super::open(EngineKind::Fjall, directory)
}

#[test]
fn what_was_not_written_to_tables_is_forgotten_with_the_checkpoint_that_counts_on_it() {
    let directory = tempfile::tempdir().unwrap();
    let killed = directory.path().join("killed");
    let store = open(&directory.path().join("store")).store;
    store.apply(&[put(b"a", b"1", meta(1))]).unwrap();
    store.checkpoint(&position(2)).unwrap();
    store
        .apply(&[put(b"a", b"2", meta(2)), put(b"b", b"1", meta(3))])
        .unwrap();
    store.checkpoint(&position(4)).unwrap();
    copy_open(&*store, &directory.path().join("store"), &killed);
    let opened = open(&killed);
    assert_eq!((opened.checkpoint, opened.rebuilt), (position(2), None));
    assert_eq!(
        (opened.store.count(0).unwrap(), opened.store.get(0, b"b").unwrap()),
        (1, None)
    );
    drop(store);
    let opened = open(&directory.path().join("store"));
    assert_eq!((opened.checkpoint, opened.store.count(0).unwrap()), (position(4), 2));
}

#[test]
fn a_store_that_was_given_up_is_rebuilt() {
    let directory = tempfile::tempdir().unwrap();
    let opened = open(directory.path());
    opened.store.checkpoint(&position(2)).unwrap();
    drop(opened);
    fs::write(directory.path().join("fjall.broken"), []).unwrap();
    for rebuilt in [true, false] {
        let opened = open(directory.path());
        assert_eq!(opened.rebuilt.is_some(), rebuilt);
        assert_eq!(opened.checkpoint, Checkpoint::default());
    }
}
