use bytes::Bytes;

use super::slot::Header;
use super::*;
use crate::model::{Collection, Meta, Packed, Type, Value};

fn at(offset: u64) -> At {
    At { partition: 3, offset }
}

fn entry(offset: u64, value: Value, expire_at: Option<u64>) -> Entry {
    let meta = Meta {
        partition: 3,
        offset,
        timestamp: -5,
        expire_at,
    };
    Entry { meta, value }
}

fn tier(limit: usize) -> HotTier {
    HotTier::new(Arc::new(Budget {
        limit: AtomicUsize::new(limit),
        ..Budget::default()
    }))
}

fn shown(tier: &HotTier, key: &[u8]) -> Option<Option<Entry>> {
    match tier.get(key, false) {
        Lookup::Committed(_, entry) => Some(entry),
        _ => None,
    }
}

#[test]
fn headers_come_back_in_each_form() {
    let edge = 1u64 << 48;
    let numbers = [0, 1, edge - 1, edge, u64::MAX - 1];
    for (index, offset) in numbers.into_iter().enumerate() {
        for expire_at in numbers.map(Some).into_iter().chain([None]) {
            for (partition, key_len, timestamp) in [
                (0, 0, 0),
                (255, 255, edge as i64 - 1),
                (256, 1, 5),
                (1, 256, 5),
                (u32::MAX, 600_000_000, i64::MAX),
                (7, 7, -1),
            ] {
                let header = Header {
                    of: Type::of_number((key_len % 4) as u8).expect("four types"),
                    at: At { partition, offset },
                    timestamp,
                    expire_at,
                    key_len,
                };
                let mut block = vec![index as u8; header.len()];
                header.write(&mut block);
                let read = Header::read(&block);
                assert_eq!((read.of, read.at, read.timestamp), (header.of, header.at, timestamp));
                assert_eq!((read.expire_at, read.key_len), (expire_at, key_len));
                assert_eq!(Header::key_of(&block), (block.len(), key_len));
            }
        }
    }
    let usual = Header {
        of: Type::String,
        at: at(1),
        timestamp: 1_800_000_000_000,
        expire_at: None,
        key_len: 16,
    };
    assert_eq!(usual.len(), Header::SHORT);
}

#[test]
fn every_kind_of_state_comes_back_as_it_was() {
    let tier = tier(1 << 20);
    let sizes = [0, 1, 64, INLINE, INLINE + 1, 100_000];
    let strings = sizes.map(|size| Value::String(vec![7; size].into()));
    let packed = Collection::ALL.map(|of| Value::Packed(Packed::kept(of, vec![7; 20].into())));
    let values = strings
        .into_iter()
        .chain(packed)
        .chain([Value::Unreadable("no such type".into())]);
    let mut offset = 0;
    for value in values {
        for expire_at in [None, Some(0), Some(u64::MAX - 1)] {
            offset += 1;
            let entry = entry(offset, value.clone(), expire_at);
            for key in [&b"k"[..], b"", &[0; 300]] {
                tier.apply(key, at(offset), Some(entry.clone()), true, None);
                assert_eq!(shown(&tier, key), Some(Some(entry.clone())));
            }
        }
    }
    tier.apply(b"k", at(1_000), None, true, None);
    assert_eq!(shown(&tier, b"k"), Some(None));
    assert_eq!(shown(&tier, b"other"), None);
}

#[test]
fn what_became_unstored_is_shown_once_and_again_if_it_changed_before_it_was_stored() {
    let tier = tier(1 << 20);
    tier.name_unstored();
    let put = |key: &str, offset| {
        let entry = entry(offset, Value::String(key.to_owned().into()), None);
        tier.apply(key.as_bytes(), at(offset), Some(entry), true, None);
    };
    let shown = |below: u64| {
        let mut shown = Vec::new();
        let mut show = |key: &[u8], at: At, _| shown.push((String::from_utf8_lossy(key).into_owned(), at.offset));
        tier.show_unstored(&tier.take_unstored(), |at| at.offset < below, &mut show);
        shown.sort();
        shown
    };
    let pair = |key: &str, offset| (key.to_owned(), offset);
    put("a", 1);
    put("b", 2);
    put("a", 3);
    put("c", 4);
    assert_eq!(shown(4), [pair("a", 3), pair("b", 2)], "one is too new");
    put("a", 5);
    tier.stored(b"a", at(3));
    tier.stored(b"b", at(2));
    assert_eq!(
        shown(9),
        [pair("a", 5), pair("c", 4)],
        "one changed while it was written"
    );
    tier.stored(b"a", at(5));
    tier.stored(b"c", at(4));
    assert_eq!(shown(9), []);
    put("b", 6);
    assert_eq!(shown(9), [pair("b", 6)]);
    assert_eq!(shown(9), [], "who took it stores it");
}

#[test]
fn a_key_without_a_slot_is_absent_until_one_has_to_be_left_out() {
    let is_absent = |tier: &HotTier, key: &[u8]| matches!(tier.get(key, true), Lookup::Absent);
    let value = |n| entry(n, Value::String(vec![1; 50].into()), None);
    let filled = || {
        let tier = tier(1 << 20);
        assert!(!is_absent(&tier, b"never"), "not before it is said");
        tier.hold_all();
        tier.apply(b"deleted", at(1), None, true, None);
        tier.apply(b"flushed", at(2), Some(value(2)), true, None);
        tier.stored(b"deleted", at(1));
        tier.stored(b"flushed", at(2));
        tier.forget_hidden(at(3));
        tier.apply(b"k", at(4), Some(value(4)), true, None);
        tier.stored(b"k", at(4));
        assert!(
            [&b"never"[..], b"deleted", b"flushed"]
                .iter()
                .all(|key| is_absent(&tier, key))
        );
        assert!(shown(&tier, b"k").is_some());
        tier
    };
    type Step = fn(&HotTier);
    let steps: [(usize, Step); 4] = [
        (1 << 20, |tier| tier.forget_key(b"k")),
        (1 << 20, HotTier::forget_all),
        (1 << 20, |tier| assert!(tier.apply(b"loaded", at(5), None, false, None))),
        (0, |tier| {
            let next = |n: u64| tier.apply(&n.to_le_bytes(), at(n), None, true, None);
            assert!((5..2_000).all(next));
        }),
    ];
    for (limit, step) in steps {
        let tier = filled();
        tier.budget.limit.store(limit, Ordering::Relaxed);
        step(&tier);
        assert!(!is_absent(&tier, b"never"));
    }
}

/// A reader read the store. Then the key changed, the store got the change, and memory evicted
/// the slot. Only then the reader comes back.
#[test]
fn what_the_store_answered_before_a_change_is_not_remembered() {
    let value = |n: u64| entry(n, Value::String(n.to_string().into()), None);
    let cold = |tier: &HotTier, key: &[u8]| match tier.get(key, false) {
        Lookup::Cold(token) => Some(token),
        _ => None,
    };
    type Change = fn(&HotTier);
    let changes: [(&str, Change); 5] = [
        ("written", |tier| {
            let new = entry(7, Value::String(Bytes::from_static(b"new")), None);
            assert!(tier.apply(b"k", at(7), Some(new), true, None));
        }),
        ("deleted", |tier| assert!(tier.apply(b"k", at(7), None, true, None))),
        ("loaded", |tier| assert!(tier.apply(b"k", at(7), None, false, None))),
        ("flushed", |tier| tier.forget_hidden(at(7))),
        ("read anew", HotTier::forget_all),
    ];
    for (what, change) in changes {
        let tier = tier(1);
        let asked = cold(&tier, b"k").expect("it was never met");
        change(&tier);
        tier.stored(b"k", at(7));
        // Other keys need its room.
        for n in 0..100_000u64 {
            if cold(&tier, b"k").is_some() {
                break;
            }
            let token = cold(&tier, &n.to_le_bytes()).expect("it was never met");
            tier.fill(&n.to_le_bytes(), Some(&value(n)), token);
        }
        let asked_after = cold(&tier, b"k").expect("it was evicted");
        tier.budget.limit.store(1 << 20, Ordering::Relaxed);
        tier.fill(b"k", Some(&value(5)), asked);
        assert_eq!(shown(&tier, b"k"), None, "{what}: an old state is kept");
        tier.fill(b"k", Some(&value(7)), asked_after);
        assert_eq!(shown(&tier, b"k"), Some(Some(value(7))), "{what}");
    }
}

#[test]
fn rows_of_slots_stay_short_however_long_it_evicts() {
    let tier = tier(8 << 20);
    let longest = |tier: &HotTier| {
        let rows = tier.shards.iter().map(|shard| shard.lock().slots.longest_row());
        rows.max().expect("shards")
    };
    for n in 0..500_000u64 {
        let Lookup::Cold(token) = tier.get(&n.to_le_bytes(), false) else {
            panic!("{n} was never read before");
        };
        tier.fill(
            &n.to_le_bytes(),
            Some(&entry(n, Value::String(Bytes::from_static(b"value")), None)),
            token,
        );
    }
    // Chance makes rows of up to 140 (1 in 150 runs). Each 60 more are ten times less likely.
    assert!(longest(&tier) < 300, "{}", longest(&tier));
}

#[test]
fn what_is_used_and_unstored_is_counted_and_evicted_only_when_it_is_stored() {
    let tier = tier(100 * 200);
    let key = |n: u64| format!("key:{n}").into_bytes();
    let value = |n: u64| entry(n, Value::String(vec![1; 50].into()), None);
    for n in 1..=1_000 {
        tier.apply(&key(n), at(n), Some(value(n)), true, None);
    }
    let load = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    assert_eq!(load(&tier.budget.used), load(&tier.budget.unstored));
    assert!((1..=1_000).all(|n| shown(&tier, &key(n)).is_some()));
    for n in 1..=1_000 {
        tier.stored(&key(n), at(n - 1));
    }
    assert_eq!(load(&tier.budget.used), load(&tier.budget.unstored));
    for n in 1..=1_000 {
        tier.stored(&key(n), at(n));
    }
    assert_eq!(load(&tier.budget.unstored), 0);
    for n in 1_001..=3_000 {
        tier.apply(&key(n), at(n), Some(value(n)), true, None);
        tier.stored(&key(n), at(n));
    }
    assert!(load(&tier.budget.used) <= 100 * 200 + 8 * SHARDS * 200);
    assert!(load(&tier.budget.evicted) > 2_000);
    tier.forget_all();
    assert_eq!(load(&tier.budget.used), 0);
}
#[test]
fn what_is_known_from_a_place_on_is_kept() {
    let value = |n: u64| entry(n, Value::String(n.to_string().into()), None);
    let copy = At {
        partition: 7,
        offset: 1,
    };
    let ahead = |partition, offset| Some(At { partition, offset });
    for (ahead, is_kept) in [
        (ahead(3, 9), true),
        (ahead(3, 10), true),
        (ahead(3, 11), false),
        (ahead(4, 9), false),
        (None, false),
    ] {
        let tier = tier(1 << 20);
        tier.apply(b"k", at(10), Some(value(10)), true, None);
        assert_eq!(tier.apply(b"k", copy, None, true, ahead), !is_kept, "{ahead:?}");
        assert_eq!(shown(&tier, b"k"), Some(is_kept.then(|| value(10))), "{ahead:?}");
    }
}

#[test]
fn a_key_that_is_to_be_forgotten_is_gone_and_no_other() {
    let tier = tier(1 << 20);
    for (key, n) in [(b"k", 1), (b"l", 2)] {
        tier.apply(key, at(n), None, true, None);
    }
    tier.forget_key(b"k");
    assert_eq!((shown(&tier, b"k"), shown(&tier, b"l")), (None, Some(None)));
    let Lookup::Cold(asked) = tier.get(b"k", false) else {
        panic!("it was forgotten")
    };
    tier.apply(b"k", at(3), None, true, None);
    tier.forget_key(b"k");
    let old = entry(1, Value::String(Bytes::from_static(b"old")), None);
    tier.fill(b"k", Some(&old), asked);
    assert_eq!(shown(&tier, b"k"), None, "an old state is kept");
}

#[test]
fn a_record_is_stored_once_and_by_its_own_partition() {
    let tier = tier(1 << 20);
    let unstored = || tier.budget.unstored.load(Ordering::Relaxed);
    tier.apply(b"k", at(10), None, true, None);
    let other = At {
        partition: 4,
        offset: 20,
    };
    tier.stored(b"k", other);
    assert!(unstored() > 0, "it is another record");
    tier.stored(b"k", at(10));
    tier.stored(b"k", at(10));
    assert_eq!(unstored(), 0);
}

#[test]
fn a_flush_makes_memory_forget_what_is_before_it_in_its_partition_and_stored() {
    let value = |n: u64| entry(n, Value::String(n.to_string().into()), None);
    for (offset, is_stored, partition, is_kept) in [
        (9, true, 3, false),
        (10, true, 3, true),
        (9, true, 4, true),
        (9, false, 3, true),
    ] {
        let tier = tier(1 << 20);
        tier.apply(b"k", at(offset), Some(value(offset)), true, None);
        if is_stored {
            tier.stored(b"k", at(offset));
        }
        tier.forget_hidden(At { partition, offset: 10 });
        assert_eq!(
            shown(&tier, b"k").is_some(),
            is_kept,
            "{offset} {is_stored} {partition}"
        );
    }
}

#[test]
fn of_two_records_the_later_of_a_partition_wins_and_of_two_partitions_the_last_that_came() {
    let value = |n: u64| entry(n, Value::String(n.to_string().into()), None);
    let tier = tier(1 << 20);
    let put = |at: At, n| tier.apply(b"k", at, Some(value(n)), true, None);
    let of = |partition, offset| At { partition, offset };
    // Nothing is known yet, though this place is also the one of a key of which no record is
    // known.
    assert!(put(of(0, 0), 1));
    assert!(!put(of(0, 0), 2), "it is the same record");
    assert!(put(of(0, 5), 3));
    assert!(!put(of(0, 4), 4));
    assert!(put(of(1, 4), 5));
    let tier = HotTier::new(tier.budget.clone());
    let Lookup::Cold(token) = tier.get(b"k", false) else {
        panic!("it was never met")
    };
    tier.fill(b"k", None, token);
    assert!(
        tier.apply(b"k", of(0, 0), Some(value(1)), true, None),
        "the log's first record"
    );
    assert!(!tier.apply(b"k", of(0, 0), None, true, None));
}
