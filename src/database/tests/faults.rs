//! What may have been missed, and what must not be shown while everything is read again.

use super::*;
use crate::database::copies::databases_with_copies;
use crate::database::now_ms;

/// Longer than a node on a busy machine is ever behind.
const RETENTION: Duration = Duration::from_secs(4);

fn rebuilds(f: &Fixture) -> u64 {
    f.service.counters.rebuilds.load(Ordering::SeqCst)
}

/// The time up to which this node knows everything.
fn as_of(f: &Fixture) -> u64 {
    f.service.database(0).partitions()[0].as_of.load(Ordering::SeqCst) as u64
}

fn wait_until_known_since(f: &Fixture, time: u64) {
    f.wait(|f| all_stored(f) && as_of(f) >= time);
}

/// The log neither reports its ends nor gives records, for so long that tombstones vanish.
fn cut_off(f: &Fixture) {
    f.log.mute.store(true, Ordering::SeqCst);
    f.log.held.store(true, Ordering::SeqCst);
    std::thread::sleep(RETENTION);
}

fn connect(f: &Fixture) {
    f.log.mute.store(false, Ordering::SeqCst);
    f.log.held.store(false, Ordering::SeqCst);
}

#[test]
fn a_node_that_was_cut_off_for_longer_than_tombstones_are_kept_reads_anew() {
    let f = Fixture::new(false);
    *f.log.retention.lock() = Some(RETENTION);
    f.log.foreign("gone", "1");
    f.log.foreign("kept", "1");
    wait_until_known_since(&f, now_ms());
    assert_eq!(f.get("gone").as_deref(), Some("1"));
    cut_off(&f);
    // It was deleted meanwhile, and both its value and its tombstone are gone: other records came.
    f.log.records.lock()[0].key = Bytes::from_static(b"other");
    f.log.foreign("new", "1");
    connect(&f);
    f.wait(|f| rebuilds(f) == 1 && f.service.is_serving());
    assert_eq!(f.get("gone"), None);
    assert_eq!(f.get("kept").as_deref(), Some("1"));
    assert_eq!(f.get("new").as_deref(), Some("1"));
    // The node's knowledge is new now: nothing more is read again.
    wait_until_known_since(&f, now_ms());
    f.log.foreign("kept", "2");
    f.wait(|f| f.get("kept").as_deref() == Some("2"));
    assert_eq!(rebuilds(&f), 1);
}

#[test]
fn a_node_that_was_cut_off_while_nothing_was_written_goes_on() {
    let f = Fixture::new(false);
    *f.log.retention.lock() = Some(RETENTION);
    f.log.foreign("kept", "1");
    wait_until_known_since(&f, now_ms());
    cut_off(&f);
    assert_eq!(f.get("kept").as_deref(), Some("1"));
    connect(&f);
    wait_until_known_since(&f, now_ms());
    f.log.foreign("kept", "2");
    f.wait(|f| f.get("kept").as_deref() == Some("2"));
    assert_eq!(rebuilds(&f), 0);
}

#[test]
fn a_node_that_cannot_ask_for_the_end_any_more_reads_anew_when_it_can() {
    let f = Fixture::new(false);
    *f.log.retention.lock() = Some(RETENTION);
    f.log.foreign("k", "1");
    wait_until_known_since(&f, now_ms());
    f.log.mute.store(true, Ordering::SeqCst);
    let mut n = 0;
    f.wait(|f| {
        n += 1;
        f.log.foreign("k", &n.to_string());
        !f.service.is_serving()
    });
    let status = f.service.status();
    assert!(
        matches!(&*status, Status::Loading { rebuilding: Some(why), .. } if why.contains("delete.retention.ms")),
        "{status:?}"
    );
    connect(&f);
    f.wait(|f| f.service.is_serving());
    assert_eq!((f.get("k"), rebuilds(&f)), (Some(n.to_string()), 1));
}

#[test]
fn records_from_long_after_the_checkpoint_tell_that_the_clock_was_set_back() {
    const LONG: Duration = Duration::from_secs(3_600);
    let later = |times: u64| (now_ms() + times * LONG.as_millis() as u64) as i64;
    let write_at = |f: &Fixture, time| {
        f.log.foreign("k", "v");
        f.log.records.lock().last_mut().expect("it was written").timestamp = time;
    };
    let mut f = Fixture::new(false);
    *f.log.retention.lock() = Some(LONG);
    f.log.foreign("k", "1");
    wait_until_known_since(&f, now_ms());
    f.stop();
    write_at(&f, later(0));
    let mut f = f.restart();
    assert_eq!(rebuilds(&f), 0);
    wait_until_known_since(&f, now_ms());
    f.stop();
    write_at(&f, later(2));
    let f = f.restart();
    assert_eq!(rebuilds(&f), 1);
    // A writer's clock may be wrong. One rebuild was enough.
    wait_until_known_since(&f, now_ms());
    write_at(&f, later(9));
    wait_until_known_since(&f, now_ms());
    assert_eq!(rebuilds(&f), 1);
}

/// The process that filled the store was killed before its first checkpoint. What was deleted since
/// then has left the log, with its tombstone.
#[test]
fn a_store_without_a_position_is_emptied() {
    let log = Arc::new(ScriptedLog::default());
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = Options {
        cache_bytes: 8 << 20,
        databases: databases_with_copies(2),
        keeps_hidden: true,
    };
    {
        let opened = store::open(EngineKind::Sled, directory.path(), &options).expect("the store opens");
        // The second one is where copies of other partitions are kept.
        let gone = [0, 2].map(|database| Change {
            database,
            partition: 0,
            offset: 0,
            timestamp: 1,
            key: Bytes::from_static(b"gone"),
            payload: text_payload("1"),
        });
        for change in gone {
            opened.store.apply(&[change]).expect("it is stored");
        }
    }
    {
        let opened = store::open(EngineKind::Sled, directory.path(), &options).expect("the store opens");
        let service = Service::new(log.clone(), opened.store, 2, Settings::default());
        assert!(
            service.serve_stale(&opened.checkpoint).is_err(),
            "it may be half loaded"
        );
        assert!(!service.is_serving());
    }
    log.foreign("kept", "1");
    let f = Fixture::on(log, directory);
    f.wait(all_stored);
    assert_eq!((f.get("gone"), f.get("kept").as_deref()), (None, Some("1")));
    let count = |database| f.service.store.count(database).expect("it is counted");
    assert_eq!((count(0), count(2)), (1, 0));
}

/// Makes the node read everything again, and returns when its state is gone. Nothing is read until
/// [`connect`].
fn begin_anew(f: &Fixture, key: &str) {
    f.log.held.store(true, Ordering::SeqCst);
    f.log.lost.store(true, Ordering::SeqCst);
    f.wait(|f| {
        let seen = f.service.read(0, key.as_bytes(), false);
        seen.is_ok_and(|seen| seen.entry.is_none())
    });
}

#[test]
fn nothing_is_told_or_written_of_a_store_that_is_being_emptied_and_filled() {
    let f = Fixture::new(false);
    let owner = Arc::default();
    for (came_before, writes) in [(true, false), (true, true), (false, false), (false, true)] {
        f.log.foreign("n", "41");
        f.wait(|f| all_stored(f) && f.get("n").as_deref() == Some("41"));
        if !came_before {
            // The command was admitted a moment ago, when the node was serving.
            begin_anew(&f, "n");
        }
        let view = if writes { View::Update } else { View::Committed };
        let computed = f.transact(&owner, "n", view, |t| {
            if came_before {
                begin_anew(&f, "n");
            }
            let seen = t.get_string(0, b"n")?;
            if writes {
                t.set(0, b"n", Bytes::from_static(b"1"), None);
            }
            Ok(seen)
        });
        assert!(
            matches!(computed, Err(Fault::Wait(Wait::Loading))),
            "came before: {came_before}, writes: {writes}"
        );
        assert!(f.log.waiting.lock().is_empty(), "it rests on nothing");
        connect(&f);
        f.wait(|f| f.service.is_serving());
        assert_eq!(f.get("n").as_deref(), Some("41"));
    }
}

#[test]
fn whoever_watches_is_told_when_everything_is_read_anew() {
    let f = Fixture::new(false);
    f.log.foreign("k", "1");
    f.wait(all_stored);
    let flag = Arc::default();
    f.service.database(0).watches.watch(Bytes::from_static(b"k"), &flag);
    // The record is not in the log any more, so nothing in the log shows the change.
    f.log.records.lock()[0].key = Bytes::from_static(b"other");
    begin_anew(&f, "k");
    assert!(flag.load(Ordering::SeqCst));
    connect(&f);
}

/// When the log was asked for its end it held `k` at 0. Then another node wrote `k` at 12, and a
/// compaction removed the record at 0. Followers get everything below the first end.
fn compact_while_it_is_read(log: &ScriptedLog) {
    for n in 0..10 {
        log.foreign(&format!("other{n}"), "1");
    }
    log.foreign("other", "1");
    log.foreign("other", "2");
    log.foreign("k", "1");
    log.told_ends.lock().push_back(10);
    *log.withheld.lock() = Some(10);
}

/// The node does not serve what it has at the first end.
fn serves_with_what_was_moved(f: &Fixture) {
    f.wait(|f| match &*f.service.status() {
        Status::Serving => panic!("it serves, and k is {:?}", f.get("k")),
        Status::Loading { applied, total, .. } => (*applied, *total) == (10, 13),
        Status::Stale => panic!("the log was never out of reach"),
        Status::Failed(reason) => panic!("{reason}"),
    });
    *f.log.withheld.lock() = None;
    f.wait(|f| f.service.is_serving());
    assert_eq!(f.get("k").as_deref(), Some("1"));
}

#[test]
fn what_a_compaction_moved_behind_the_end_at_start_is_there_when_serving_begins() {
    let log = Arc::new(ScriptedLog::default());
    compact_while_it_is_read(&log);
    let f = Fixture::starting(log, tempfile::tempdir().expect("a temporary directory"), 1);
    serves_with_what_was_moved(&f);
}

#[test]
fn what_a_compaction_moved_while_everything_is_read_anew_is_there_when_serving_begins() {
    let f = Fixture::new(false);
    f.log.mute.store(true, Ordering::SeqCst);
    compact_while_it_is_read(&f.log);
    f.log.lost.store(true, Ordering::SeqCst);
    f.wait(|f| !f.service.is_serving());
    f.log.mute.store(false, Ordering::SeqCst);
    serves_with_what_was_moved(&f);
}

/// Its keys have other homes now, and this node would look for them in the wrong partitions.
#[test]
fn a_topic_that_has_got_partitions_is_not_read_anew() {
    let f = Fixture::new(false);
    f.log.foreign("k", "1");
    f.wait(all_stored);
    f.log.new_partitions.store(1, Ordering::SeqCst);
    f.log.lost.store(true, Ordering::SeqCst);
    let told = |f: &Fixture| match &*f.service.status() {
        Status::Failed(why) => Some(why.clone()),
        _ => None,
    };
    f.wait(|f| told(f).is_some());
    let why = told(&f).expect("it failed");
    assert!(why.contains("topic t has 2 partitions now, not 1"), "{why}");
}
