//! One event for each change of what readers see.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;

use super::Fixture;
use crate::database::hot::At;
use crate::database::transaction::{Keys, View};
use crate::database::visible::{Event, What};
use crate::model::Payload;

/// What was told: the kind of change with the key, whether it is an own one, the record's offset.
type Told = Arc<Mutex<Vec<(String, bool, u64)>>>;

fn listen(f: &Fixture) -> Told {
    let told = Told::default();
    let heard = told.clone();
    f.service.listeners.add(move |event: &Event<'_>| {
        let what = match event.what {
            What::Written(key) => format!("written {}", key.escape_ascii()),
            What::Deleted(key) => format!("deleted {}", key.escape_ascii()),
            What::Flushed => "flushed".to_owned(),
            What::Anything | What::GroupShown => return,
        };
        let At { offset, .. } = event.at;
        heard.lock().push((what, event.own, offset));
    });
    told
}

fn applied(f: &Fixture) -> bool {
    f.service.database(0).partitions()[0].applied.load(Ordering::SeqCst) == f.log.end()
}

fn delete(f: &Fixture, key: &str) {
    let deleted = f.transact(&Arc::default(), key, View::Update, |t| {
        t.delete(0, key.as_bytes());
        Ok(())
    });
    assert!(deleted.is_ok_and(|computed| computed.write.is_some()));
    f.log.acknowledge_all();
}

#[test]
fn a_change_is_told_once_whoever_wrote_it() {
    let f = Fixture::new(false);
    let told = listen(&f);
    f.set(&Arc::default(), "a", "1");
    assert_eq!(*told.lock(), [], "nobody sees it before the log has it");
    f.log.acknowledge();
    f.log.foreign("b", "1");
    f.wait(applied);
    f.log.foreign_record(Bytes::from_static(b"a"), Payload::TOMBSTONE, None);
    f.wait(applied);
    delete(&f, "b");
    f.wait(applied);
    let expected = [
        ("written a", true),
        ("written b", false),
        ("deleted a", false),
        ("deleted b", true),
    ];
    let expected = expected
        .into_iter()
        .zip(0..)
        .map(|((what, own), at)| (what.to_owned(), own, at));
    assert_eq!(*told.lock(), expected.collect::<Vec<_>>());
}

#[test]
fn what_changes_nothing_is_not_told() {
    let f = Fixture::new(false);
    f.set(&Arc::default(), "a", "1");
    f.log.acknowledge();
    f.wait(applied);
    let told = listen(&f);
    f.log
        .foreign_record(Bytes::from_static(b"never"), Payload::TOMBSTONE, None);
    f.wait(applied);
    delete(&f, "never");
    f.wait(applied);
    assert_eq!(*told.lock(), []);
}

#[test]
fn a_flush_is_told_once_and_hides_what_was_deleted_after_it() {
    let f = Fixture::new(false);
    f.set(&Arc::default(), "a", "1");
    f.log.acknowledge();
    let told = listen(&f);
    f.flush();
    f.wait(applied);
    f.log.foreign_record(Bytes::from_static(b"a"), Payload::TOMBSTONE, None);
    f.wait(applied);
    assert_eq!(*told.lock(), [("flushed".to_owned(), true, 1)]);
}

#[test]
fn a_group_is_told_record_by_record() {
    let f = Fixture::new(false);
    let told = listen(&f);
    let keys: [&[u8]; 2] = [b"a", b"b"];
    let written = f
        .service
        .transact(&Arc::default(), Keys::Some(&keys), View::Update, |t| {
            keys.iter()
                .for_each(|key| t.set(0, key, Bytes::from_static(b"1"), None));
            Ok(())
        });
    assert!(written.is_ok_and(|computed| computed.write.is_some()));
    f.log.acknowledge_all();
    f.wait(applied);
    let told: Vec<_> = told.lock().iter().map(|(what, ..)| what.clone()).collect();
    assert_eq!(told, ["written a", "written b"]);
}
