//! What may have been missed, and what must not be told while everything is read anew.

use super::*;
use crate::database::now_ms;

/// More than a node on a busy machine is ever behind.
const RETENTION: Duration = Duration::from_secs(4);

fn rebuilds(f: &Fixture) -> u64 {
    f.service.counters.rebuilds.load(Ordering::SeqCst)
}

/// Up to when this node knows everything.
fn as_of(f: &Fixture) -> u64 {
    f.service.database(0).partitions()[0].as_of.load(Ordering::SeqCst) as u64
}

fn wait_until_known_since(f: &Fixture, time: u64) {
    f.wait(|f| all_stored(f) && as_of(f) >= time);
}

/// The log neither tells its ends nor gives records, for so long that tombstones vanish.
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
    // That is new now: nothing more is read anew.
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
    // The clock of whoever writes may be wrong: once was enough.
    wait_until_known_since(&f, now_ms());
    write_at(&f, later(9));
    wait_until_known_since(&f, now_ms());
    assert_eq!(rebuilds(&f), 1);
}
