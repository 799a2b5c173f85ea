//! Order keys: the sub-keys of a split list's items. A list is in the order of these byte strings,
//! so a new item needs only a key between those of its neighbours, and no other record changes.
//!
//! At the ends a key is a counter of 8 bytes, big endian, that begins in the middle: so many
//! pushes do not make keys longer. Between two neighbours that leave no room, digits of 4 bytes
//! follow. A key of another producer can be any byte string. Missing bytes at its end count as
//! zeros: between a key and the same key with zeros behind it there is no room.

use super::place_of;

/// Keys that are longer are a reason to write the list again, with new keys.
pub const LONGEST: usize = 64;

/// The key of the first item of an empty list: half of all counters are on each side.
pub const FIRST: u64 = 1 << 63;

const DIGIT: usize = 4;
/// How far a key that is put between two others is from one of them. This leaves room for a million
/// more beside the same neighbour.
const STEP: u64 = 1 << 12;

/// Which neighbour a key between two others is near to. Those who put many items beside one item
/// should choose the other neighbour: the room beside that item lasts longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Near {
    Lower,
    Upper,
}

/// A key after this one. It is no longer than 8 bytes, unless all counters are used up.
pub fn after(last: &[u8]) -> Option<Vec<u8>> {
    match place_of(last).checked_add(1) {
        Some(next) => Some(next.to_be_bytes().into()),
        None => between(last, None, Near::Lower),
    }
}

/// A key before this one, see [`after`]. `None`: there is none.
pub fn before(first: &[u8]) -> Option<Vec<u8>> {
    match place_of(first).checked_sub(1) {
        Some(previous) => Some(previous.to_be_bytes().into()),
        None => between(b"", Some(first), Near::Upper),
    }
}

/// A key between two others, or after `lower`. `None`: there is none.
pub fn between(lower: &[u8], upper: Option<&[u8]>, near: Near) -> Option<Vec<u8>> {
    /// One more than the highest digit.
    const END: u64 = 1 << (8 * DIGIT);
    let (mut key, mut upper) = (Vec::new(), upper);
    loop {
        let level = key.len() / DIGIT;
        let low = digit(lower, level);
        let high = match upper {
            // They differ in zeros at the end, or in nothing.
            Some(upper) if key.len() >= lower.len().max(upper.len()) => return None,
            Some(upper) => digit(upper, level),
            None => END,
        };
        let room = high.checked_sub(low)?;
        let step = STEP.min(room / 2);
        let chosen = match near {
            _ if step == 0 => low,
            Near::Lower => low + step,
            Near::Upper => high - step,
        };
        let chosen = u32::try_from(chosen).ok()?;
        key.extend_from_slice(&chosen.to_be_bytes());
        match (step, room) {
            (1.., _) => return Some(key),
            // All that begins so is below the upper one.
            (_, 1) => upper = None,
            _ => {}
        }
    }
}

/// The digit at a level, with zeros for missing bytes.
fn digit(key: &[u8], level: usize) -> u64 {
    let mut bytes = [0; DIGIT];
    let rest = key.get(level * DIGIT..).unwrap_or_default();
    let len = rest.len().min(DIGIT);
    bytes[..len].copy_from_slice(&rest[..len]);
    u64::from(u32::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Keys as other producers may write them.
    fn key() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(0x7f), Just(0xff), any::<u8>()];
        prop::collection::vec(byte, 0..14)
    }

    fn without_zeros(key: &[u8]) -> &[u8] {
        let end = key.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        &key[..end]
    }

    proptest! {
        #[test]
        fn a_key_is_between_its_neighbours(one in key(), other in key(), near in any::<bool>()) {
            let (lower, upper) = if one < other { (one, other) } else { (other, one) };
            let near = if near { Near::Lower } else { Near::Upper };
            match between(&lower, Some(&upper), near) {
                Some(key) => {
                    prop_assert!(lower < key && key < upper, "{lower:?} {key:?} {upper:?}");
                    prop_assert!(key.len() <= lower.len().max(upper.len()) + 2 * DIGIT);
                    // There is room on both sides.
                    prop_assert!(between(&lower, Some(&key), near).is_some());
                    prop_assert!(between(&key, Some(&upper), near).is_some());
                }
                None => prop_assert_eq!(without_zeros(&lower), without_zeros(&upper)),
            }
        }

        #[test]
        fn every_key_has_one_after_it_and_before_it(key in key()) {
            let next = after(&key).expect("there is always one");
            prop_assert!(next > key);
            prop_assert!(place_of(&next) >= place_of(&key));
            match before(&key) {
                Some(previous) => prop_assert!(previous < key && place_of(&previous) <= place_of(&key)),
                None => prop_assert_eq!(without_zeros(&key), b""),
            }
        }

        #[test]
        fn a_list_that_grows_anywhere_keeps_its_order(places in prop::collection::vec((0..1000usize, any::<bool>()), 1..150)) {
            let mut keys = vec![FIRST.to_be_bytes().to_vec()];
            for (place, near) in places {
                let place = place % (keys.len() + 1);
                let near = if near { Near::Lower } else { Near::Upper };
                let key = match place {
                    0 => before(&keys[0]),
                    _ if place == keys.len() => after(&keys[place - 1]),
                    _ => between(&keys[place - 1], Some(&keys[place]), near),
                };
                keys.insert(place, key.expect("there is room"));
            }
            prop_assert!(keys.is_sorted());
            let all: BTreeSet<_> = keys.iter().collect();
            prop_assert_eq!(all.len(), keys.len());
        }
    }

    const MANY: usize = 100_000;

    #[test]
    fn many_pushes_at_an_end_make_no_long_keys() {
        let first = FIRST.to_be_bytes().to_vec();
        let (mut left, mut right) = (first.clone(), first);
        for _ in 0..MANY {
            left = before(&left).expect("there is room");
            right = after(&right).expect("there is room");
            assert_eq!((left.len(), right.len()), (8, 8));
        }
    }

    #[test]
    fn many_inserts_at_one_place_make_no_long_keys() {
        let first = FIRST.to_be_bytes().to_vec();
        let second = after(&first).expect("there is room");
        // Before the second one, and after the first one.
        let (mut lower, mut upper) = (first.clone(), second.clone());
        for _ in 0..MANY {
            lower = between(&lower, Some(&second), Near::Lower).expect("there is room");
            upper = between(&first, Some(&upper), Near::Upper).expect("there is room");
            assert_eq!((lower.len(), upper.len()), (12, 12));
        }
    }

    #[test]
    fn what_makes_keys_long_takes_many_inserts() {
        // Each time between the two newest keys.
        let mut lower = FIRST.to_be_bytes().to_vec();
        let mut upper = after(&lower).expect("there is room");
        let mut inserts = 0;
        loop {
            let near = if inserts % 2 == 0 { Near::Lower } else { Near::Upper };
            let key = between(&lower, Some(&upper), near).expect("there is room");
            if key.len() > LONGEST {
                break;
            }
            match near {
                Near::Lower => upper = key,
                Near::Upper => lower = key,
            }
            inserts += 1;
        }
        assert!(inserts > 150, "{inserts}");
    }

    /// What `docs/topic-format.md` shows.
    #[test]
    fn the_examples_of_the_documentation_are_right() {
        let first = FIRST.to_be_bytes();
        assert_eq!(first, *b"\x80\0\0\0\0\0\0\0");
        assert_eq!(after(&first).as_deref(), Some(&b"\x80\0\0\0\0\0\0\x01"[..]));
        assert_eq!(
            before(&first).as_deref(),
            Some(&b"\x7f\xff\xff\xff\xff\xff\xff\xff"[..])
        );
        let second = after(&first).expect("there is room");
        let key = between(&first, Some(&second), Near::Lower);
        assert_eq!(key.as_deref(), Some(&b"\x80\0\0\0\0\0\0\0\0\0\x10\0"[..]));
    }
}
