use proptest::prelude::*;

use super::*;

fn parse(of: Collection, bytes: &[u8]) -> Result<Option<Packed>, Problem> {
    Packed::parse(of, &Bytes::copy_from_slice(bytes))
}

/// The text of hex digits as bytes; spaces are for people.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn names() -> impl Strategy<Value = Bytes> {
    let short = prop_oneof![
        "[a-c]{0,2}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..3),
        "[a-z]{30,40}".prop_map(String::into_bytes),
    ];
    short.prop_map(Bytes::from)
}

proptest! {
    #[test]
    fn a_hash_comes_back_as_it_was(
        fields in prop::collection::vec((names(), names(), prop::option::of(0..i64::MAX as u64)), 0..40),
    ) {
        let fields = fields.into_iter().map(|(name, value, expire_at)| (name, Field { value, expire_at }));
        let fields = Fields(fields.collect());
        let packed = fields.pack();
        prop_assert_eq!(packed.is_none(), fields.0.is_empty());
        if let Some(packed) = packed {
            prop_assert_eq!(parse(Collection::Hash, packed.bytes()), Ok(Some(packed.clone())));
            prop_assert_eq!(Fields::unpack(&packed), Ok(fields.clone()));
            for (name, field) in &fields.0 {
                prop_assert_eq!(packed.field(name), Ok(Some(field.clone())));
            }
            prop_assert_eq!(packed.field(b"no such field"), Ok(None));
            let now = u64::MAX / 4;
            let live = fields.0.values().filter(|field| field.is_live(now)).count();
            prop_assert_eq!(packed.len(now), Ok(live));
            prop_assert_eq!(packed.is_live(now), live > 0);
            let some_expire = fields.0.values().any(|field| field.expire_at.is_some());
            prop_assert_eq!(packed.due().is_some(), some_expire);
            let left = packed.without_expired(now).expect("it was written here");
            let mut rest = fields.clone();
            rest.forget_expired(now);
            prop_assert_eq!(left, rest.pack().filter(|_| live < fields.0.len()));
        }
    }

    #[test]
    fn a_set_comes_back_as_it_was(members in prop::collection::vec(names(), 1..40)) {
        let members = Members(members.into_iter().collect());
        let packed = members.pack().expect("it has members");
        prop_assert_eq!(parse(Collection::Set, packed.bytes()), Ok(Some(packed.clone())));
        prop_assert_eq!(packed.len(0), Ok(members.0.len()));
        prop_assert_eq!(Members::unpack(&packed), Ok(members));
    }

    #[test]
    fn a_sorted_set_comes_back_in_its_order(
        scores in prop::collection::vec((names(), prop_oneof![-3..3_i8]), 1..40),
    ) {
        let mut scores = Scores(scores.into_iter().map(|(name, score)| (name, f64::from(score))).collect());
        scores.sort();
        let packed = scores.pack().expect("it has members");
        prop_assert_eq!(parse(Collection::SortedSet, packed.bytes()), Ok(Some(packed.clone())));
        prop_assert_eq!(packed.len(0), Ok(scores.0.len()));
        let read = Scores::unpack(&packed).expect("it was written here");
        let order = |scores: &Scores| scores.0.keys().cloned().collect::<Vec<_>>();
        prop_assert_eq!(order(&read), order(&scores));
        for (member, score) in &scores.0 {
            prop_assert_eq!(packed.score(member), Ok(Some(*score)));
        }
        prop_assert_eq!(packed.score(b"no such member"), Ok(None));
    }

    #[test]
    fn a_list_comes_back_as_it_was(items in prop::collection::vec(names(), 1..40)) {
        let items = Items(items.into_iter().collect());
        let packed = items.pack().expect("it has items");
        prop_assert_eq!(parse(Collection::List, packed.bytes()), Ok(Some(packed.clone())));
        prop_assert_eq!(packed.len(0), Ok(items.0.len()));
        prop_assert_eq!(Items::unpack(&packed), Ok(items));
    }

    #[test]
    fn any_bytes_are_read_or_refused_and_what_was_read_is_read_alike(
        bytes in prop::collection::vec(prop_oneof![
            any::<u8>(), 0x80..0x84_u8, 0x90..0x94_u8, 0xa0..0xa3_u8, Just(0xcb),
        ], 0..30),
    ) {
        for of in Collection::ALL {
            if let Ok(Some(packed)) = parse(of, &bytes) {
                prop_assert_eq!(parse(of, packed.bytes()), Ok(Some(packed.clone())));
                prop_assert!(packed.len(0).is_ok_and(|len| len > 0));
            }
        }
    }
}

#[test]
fn fields_are_due_when_the_first_has_expired_for_a_while_or_all_have() {
    let due = |fields: &[(&str, usize, Option<u64>)]| {
        let field = |&(name, bytes, expire_at): &(&str, usize, Option<u64>)| {
            let value = vec![0x92; bytes].into();
            (Bytes::copy_from_slice(name.as_bytes()), Field { value, expire_at })
        };
        Fields(fields.iter().map(field).collect()).pack().expect("fields").due()
    };
    assert_eq!(due(&[("a", 1, None), ("b", 200, None)]), None);
    assert_eq!(due(&[("a", 1, Some(1_000)), ("b", 1, None)]), Some(1_000));
    assert_eq!(due(&[("a", 1, Some(3_000)), ("b", 1, Some(2_000))]), Some(2_000));
    // A hash of 64 KB is written again a second later, unless it is gone before.
    let slow = due(&[("a", 64_000, Some(1_000)), ("b", 1, None)]);
    assert_eq!(slow, Some(2_000));
    assert_eq!(due(&[("a", 64_000, Some(1_000)), ("b", 1, Some(1_500))]), Some(1_500));
    assert_eq!(due(&[("a", 1, Some(i64::MAX as u64))]), Some(i64::MAX as u64));
}

/// What `docs/topic-format.md` shows: what is written, and what it is taken for.
#[test]
fn what_other_producers_write_is_read_as_the_contract_says() {
    use Collection::{Hash, List, Set, SortedSet};
    for (of, written, kept) in [
        // {"a": "1", "b": "\xff"}, the second value as bytes
        (Hash, "82 a161 a131 a162 c401ff", "82 a161 a131 a162 c401ff"),
        // {"a": ["1", 1800000000000]}
        (
            Hash,
            "81 a161 92 a131 cf000001a31856 1c00",
            "81 a161 92 a131 cf000001a318561c00",
        ),
        // {"n": 5, 7: -1}: integers as bytes
        (Hash, "82 a16e 05 07 ff", "82 a16e a135 a137 a22d31"),
        // {"a": "1", "a": "2"}: the last one counts
        (Hash, "82 a161 a131 a161 a132", "81 a161 a132"),
        // Lengths in more bytes than needed
        (Hash, "df00000001 d90161 db0000000131", "81 a161 a131"),
        // ["a", "b", "a"]
        (Set, "93 a161 a162 a161", "92 a161 a162"),
        (Set, "92 01 c40131", "91 a131"),
        // ["b", "a", "b", the byte ff, -1]: in this order, as often as they are there
        (List, "95 a162 a161 a162 c401ff ff", "95 a162 a161 a162 c401ff a22d31"),
        // {"b": 2, "a": 2, "c": -1.5}
        (
            SortedSet,
            "83 a162 02 a161 02 a163 cbbff8000000000000",
            "83 a163 cbbff8000000000000 a161 cb4000000000000000 a162 cb4000000000000000",
        ),
        // {"a": -0.0}
        (SortedSet, "81 a161 cb8000000000000000", "81 a161 cb0000000000000000"),
        // {"a": 0.5} with a number of 32 bits
        (SortedSet, "81 a161 ca3f000000", "81 a161 cb3fe0000000000000"),
    ] {
        let read = parse(of, &hex(written)).expect(written).expect(written);
        assert_eq!(read.bytes()[..], hex(kept), "{written}");
    }
}

#[test]
fn what_is_empty_is_nothing_and_what_is_broken_says_why() {
    use Collection::{Hash, List, Set, SortedSet};
    for (of, empty) in [(Hash, "80"), (Set, "90"), (SortedSet, "de0000"), (List, "90")] {
        assert_eq!(parse(of, &hex(empty)), Ok(None));
    }
    for (of, broken, why) in [
        (Hash, "", "ends too early"),
        (Hash, "a161", "no map"),
        (Hash, "81 a161", "ends too early"),
        (Hash, "81 a161 a131 00", "follow"),
        (Hash, "dfffffffff a161 a131", "ends too early"),
        (Hash, "81 dbffffffff 61", "ends too early"),
        (Hash, "81 a161 c0", "something else"),
        (Hash, "81 a161 93 a131 01 02", "another length"),
        (Hash, "81 a161 92 a131 ff", "no time"),
        (Hash, "81 a161 92 a131 cf8000000000000000", "no time"),
        (Hash, "81 a161 92 92 a131 01 01", "something else"),
        (Hash, "81 80 a131", "something else"),
        (Set, "81 a161 a131", "no array"),
        (Set, "ddffffffff", "ends too early"),
        (List, "81 a161 a131", "no array"),
        (List, "92 a161", "ends too early"),
        (List, "ddffffffff", "ends too early"),
        (List, "91 91 a161", "something else"),
        (List, "91 a161 a162", "follow"),
        (SortedSet, "81 a161 a131", "something else"),
        (SortedSet, "81 a161 cb7ff8000000000000", "not a number"),
        (SortedSet, "92 a161 01", "no map"),
    ] {
        let problem = parse(of, &hex(broken)).expect_err(broken);
        assert!(problem.contains(why), "{broken}: {problem}");
    }
}
