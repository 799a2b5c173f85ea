//! What the conditions of writes say, where others write to the log too; and how others learn of a
//! change.

use super::*;
use crate::database::together::Place;
use crate::database::transaction::known;
use crate::log::Read;

/// What the condition of the newest batch under way says of this key, among what was read or what
/// was only written. `None`: it has no condition.
fn known_of(f: &Fixture, key: Option<&[u8]>, written: bool) -> Option<Vec<u64>> {
    let waiting = f.log.waiting.lock();
    let condition = waiting.back().expect("a batch is under way").condition.as_ref()?;
    let of_key = |read: &&Read| read.key.as_deref() == key;
    let all = if written { &condition.written } else { &condition.reads };
    Some(all.iter().filter(of_key).map(|read| read.known).collect())
}

/// Batches that the newest one under way rests on.
fn rests_on(f: &Fixture) -> Option<usize> {
    let waiting = f.log.waiting.lock();
    let condition = waiting.back().expect("a batch is under way").condition.as_ref();
    condition.map(|condition| condition.rests_on.len())
}

/// Writes keys without reading them, as MSET does.
fn set_both(f: &Fixture, owner: &Arc<Outstanding>) -> Result<Computed<()>, Fault> {
    let keys = Keys::Some(&[b"a", b"b"]);
    f.service.transact(owner, keys, View::Update, |t| {
        t.set(0, b"a", "new".into(), None);
        t.set(0, b"b", "new".into(), None);
        Ok(())
    })
}

#[test]
fn a_write_behind_one_with_a_condition_rests_on_it() {
    let f = Fixture::new(false);
    let owner = Arc::default();
    f.set(&owner, "other", "1");
    assert_eq!(rests_on(&f), None);
    f.log.acknowledge();
    written(f.increment(&owner, "n"));
    assert_eq!(rests_on(&f), Some(0));
    f.set(&owner, "other", "2");
    assert_eq!(rests_on(&f), Some(1), "the connection's order holds");
    f.set(&Arc::default(), "another", "1");
    assert_eq!(rests_on(&f), None, "another connection has an order of its own");
    f.set(&Arc::default(), "n", "1");
    assert!(rests_on(&f).is_some(), "it must not overtake the one before it");
    let has_failed = |place: usize| {
        let waiting = f.log.waiting.lock();
        let condition = waiting[place].condition.as_ref().expect("a condition");
        condition.rests_on[0].has_failed()
    };
    assert!(!has_failed(1));
    f.log.fail(not_written());
    assert!(has_failed(0), "and neither is written");
}

#[test]
fn a_write_with_a_condition_waits_for_those_of_its_connection_without_one() {
    let f = Fixture::new(false);
    let owner = Arc::default();
    f.set(&owner, "other", "1");
    assert!(matches!(f.increment(&owner, "n"), Err(Fault::Wait(Wait::Own))));
    written(f.increment(&Arc::default(), "n"));
    f.log.acknowledge_all();
    written(f.increment(&owner, "n"));
}

#[test]
fn what_comes_behind_a_failed_write_waits_until_that_was_looked_at() {
    let f = Fixture::new(false);
    let in_order = Arc::new(Outstanding::in_order(1));
    for owner in [&in_order, &Arc::default()] {
        assert!(!owner.is_unsettled());
        written(f.increment(owner, "n"));
        f.log.fail(not_written());
        let waits = matches!(f.increment(owner, "m"), Err(Fault::Wait(Wait::Own)));
        assert_eq!((waits, owner.is_unsettled()), (Arc::ptr_eq(owner, &in_order), waits));
        owner.settling();
        assert!(!owner.is_unsettled());
        written(f.increment(owner, "m"));
        f.log.acknowledge_all();
    }
}

/// A connection reads its own write, which fails while the reply is computed.
#[test]
fn a_reply_does_not_rest_on_a_write_that_has_failed_meanwhile() {
    let f = Fixture::new(false);
    let owner = Arc::default();
    f.set(&owner, "a", "old");
    f.log.acknowledge();
    let write = f.set(&owner, "a", "new");
    let places: [Place<'_>; 2] = [(0, b"a"), (0, b"b")];
    let get = |fails: bool| {
        let keys = Keys::Together(&places);
        f.service.transact(&owner, keys, View::Pending, |t| {
            // Both keys have been read.
            if fails {
                f.log.fail(not_written());
            }
            t.get_string(0, b"a")
        })
    };
    let Ok(seen) = get(false) else { panic!("it can be read") };
    assert_eq!(seen.value.as_deref(), Some(&b"new"[..]));
    assert!(Arc::ptr_eq(&seen.depends[0], &write), "the reply waits for the write");
    match get(true) {
        Err(Fault::Wait(Wait::Write(on))) => assert!(Arc::ptr_eq(&on, &write)),
        Ok(seen) => panic!("it answers {:?}", seen.value),
        Err(_) => panic!("it waits for something else"),
    }
    let again = get(false).map(|seen| seen.value);
    assert!(matches!(again, Ok(Some(value)) if value == "old"));
}

#[test]
fn what_is_written_together_waits_for_a_write_of_one_of_the_keys() {
    let f = Fixture::new(false);
    let write = f.set(&Arc::default(), "a", "old");
    match set_both(&f, &Arc::default()) {
        Err(Fault::Wait(Wait::Write(on))) => assert!(Arc::ptr_eq(&on, &write)),
        _ => panic!("it did not wait"),
    }
    f.log.acknowledge();
    written(set_both(&f, &Arc::default()));
    written(set_both(&f, &Arc::default()));
}

#[test]
fn a_condition_says_up_to_where_each_key_is_known() {
    let f = Fixture::new(false);
    for n in 0..5 {
        f.log.foreign("other", &n.to_string());
    }
    f.wait(|f| f.here().applied.load(Ordering::SeqCst) == 5);
    // From here on only own writes are known.
    f.log.held.store(true, Ordering::SeqCst);
    f.log.foreign("other", "5");
    f.set(&Arc::default(), "a", "1");
    f.log.acknowledge();
    written(set_both(&f, &Arc::default()));
    assert_eq!(known_of(&f, Some(b"a"), true), Some(vec![7]));
    assert_eq!(known_of(&f, Some(b"b"), true), Some(vec![5]));
    f.log.acknowledge();
    written(f.increment(&Arc::default(), "a"));
    assert_eq!(known_of(&f, Some(b"a"), false), Some(vec![8]));
    written(f.increment(&Arc::default(), "n"));
    assert_eq!(known_of(&f, Some(b"n"), false), Some(vec![5]));
}

#[test]
fn what_was_seen_of_another_partition_says_nothing_of_this_one() {
    let seen = |partition, offset| Some(At { partition, offset });
    for (applied, seen, is_known) in [
        (5, None, 5),
        (5, seen(0, 9), 10),
        (5, seen(0, 3), 5),
        (5, seen(1, 9), 5),
        // That is also said of a key that was never met.
        (0, seen(0, 0), 0),
    ] {
        assert_eq!(known(HERE, applied, seen), is_known, "{applied} {seen:?}");
    }
}

#[test]
fn what_was_written_to_a_topic_that_is_gone_does_not_come_back() {
    let f = Fixture::new(false);
    // Nothing is read from the log.
    f.log.held.store(true, Ordering::SeqCst);
    f.set(&Arc::default(), "k", "old");
    f.service.generation.fetch_add(1, Ordering::SeqCst);
    f.log.acknowledge();
    assert_eq!(f.get("k"), None);
    f.set(&Arc::default(), "k", "new");
    f.log.acknowledge();
    assert_eq!(f.get("k").as_deref(), Some("new"));
}

#[test]
fn what_rests_on_all_keys_is_known_as_far_as_the_store_is() {
    let f = Fixture::new(false);
    for n in 0..5 {
        f.log.foreign(&n.to_string(), "1");
    }
    f.wait(all_stored);
    let count = f.service.transact(&Arc::default(), Keys::All, View::Update, |t| {
        let count = t.count(0)?;
        t.set(0, b"count", count.to_string().into(), None);
        Ok(count)
    });
    assert!(count.is_ok_and(|computed| computed.value == 5));
    assert_eq!(known_of(&f, None, false), Some(vec![5]));
}

#[test]
fn while_a_node_is_loading_nothing_is_counted_or_written() {
    let f = Fixture::new(false);
    f.service.set_status(Status::Loading {
        applied: 0,
        total: 1,
        rebuilding: None,
    });
    let count = f
        .service
        .transact(&Arc::default(), Keys::All, View::Committed, |t| t.count(0));
    assert!(matches!(count, Err(Fault::Wait(Wait::Loading))));
    let set = f.transact(&Arc::default(), "k", View::Update, |t| {
        t.set(0, b"k", "1".into(), None);
        Ok(())
    });
    assert!(
        matches!(set, Err(Fault::Wait(Wait::Loading))),
        "nothing is written either"
    );
    f.service.set_status(Status::Serving);
}

#[test]
fn whoever_watches_is_told_of_what_another_creates_and_deletes() {
    let f = Fixture::new(false);
    let key = || Bytes::from_static(b"k");
    let flag_after = |payload| {
        let flag = Arc::default();
        f.service.database(0).watches.watch(key(), &flag);
        f.log.foreign_record(key(), payload, None);
        f.wait(all_stored);
        flag.load(Ordering::SeqCst)
    };
    assert!(!flag_after(Payload::TOMBSTONE), "it was not there");
    assert!(flag_after(text_payload("1")));
    assert!(flag_after(text_payload("2")));
    assert!(flag_after(Payload::TOMBSTONE));
    assert!(!flag_after(Payload::TOMBSTONE));
}

/// A reader asked the store before the write; it comes back when memory has given the slot away.
#[test]
fn what_the_store_answered_before_an_own_write_is_not_remembered() {
    let f = Fixture::new(false);
    let hot = &f.service.databases[0].hot;
    hot.hold_some();
    let Lookup::Cold(asked) = hot.get(b"k", true) else {
        panic!("it was never met")
    };
    f.set(&Arc::default(), "k", "new");
    f.log.acknowledge();
    f.wait(all_stored);
    f.service.memory.limit.store(1, Ordering::Relaxed);
    for n in 0..100_000u64 {
        if let Lookup::Cold(token) = hot.get(&n.to_le_bytes(), true) {
            hot.fill(&n.to_le_bytes(), None, token);
        }
        if matches!(hot.get(b"k", true), Lookup::Cold(_)) {
            break;
        }
    }
    f.service.memory.limit.store(1 << 20, Ordering::Relaxed);
    hot.fill(b"k", None, asked);
    assert_eq!(f.get("k").as_deref(), Some("new"));
}
