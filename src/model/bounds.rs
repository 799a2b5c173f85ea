//! Bounds of a split collection: its head can say which sub-keys are the lowest and the highest
//! that are valid. So one record removes any number of elements at the ends. What is outside is
//! garbage, wherever it stands in the log. `docs/topic-format.md` is the contract.
//!
//! Bounds only tighten while the version stays. Who writes an element rests on the head, so it
//! writes no element outside. To write there, a collection needs a new version.

use std::ops::Bound;

use bytes::{BufMut, Bytes};

use super::msgpack::Problem;
use super::split::{length, put_length};
use super::{Collection, Split, StreamPart};

const MALFORMED: Problem = "the bounds in its head cannot be read";

/// What a head says of its elements' sub-keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds<'b> {
    /// The lowest valid sub-key; an empty one excludes nothing.
    pub low: &'b [u8],
    /// The highest valid sub-key.
    pub high: Option<&'b [u8]>,
}

/// Sub-keys from the first one, which is included, to the second one, which is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubKeys {
    pub from: Bytes,
    pub to: Option<Bytes>,
}

impl SubKeys {
    pub fn all() -> SubKeys {
        SubKeys {
            from: Bytes::new(),
            to: None,
        }
    }

    /// The same range behind a prefix that all keys of a collection have.
    pub fn behind(&self, prefix: &[u8]) -> (Vec<u8>, Option<Vec<u8>>) {
        let behind = |sub_key: &Bytes| [prefix, sub_key].concat();
        (behind(&self.from), self.to.as_ref().map(behind))
    }
}

impl Bounds<'_> {
    pub fn is_none(&self) -> bool {
        self.low.is_empty() && self.high.is_none()
    }

    /// As the head's value has them, behind what the type keeps there: the length of the lowest
    /// sub-key (LEB128), that sub-key, and the highest one if there is one. Nothing if there are no
    /// bounds.
    pub fn put(&self, metadata: &mut Vec<u8>) {
        if self.is_none() {
            return;
        }
        put_length(self.low.len(), metadata);
        metadata.put_slice(self.low);
        if let Some(high) = self.high {
            metadata.put_slice(high);
        }
    }

    fn parse(bytes: &[u8]) -> Option<Bounds<'_>> {
        if bytes.is_empty() {
            return Some(Bounds::default());
        }
        let (len, rest) = length(bytes)?;
        let (low, high) = rest.split_at_checked(len)?;
        let high = (!high.is_empty()).then_some(high);
        let bounds = Bounds { low, high };
        // One form only: what excludes nothing is left out.
        (!bounds.is_none()).then_some(bounds)
    }
}

/// The sub-keys that bounds are about. Groups of a stream, and what they have delivered, have none.
fn bounded(of: Collection) -> (&'static [u8], Option<&'static [u8]>) {
    use Collection::{Hash, List, Set, SortedSet, Stream};
    match of {
        Stream => (StreamPart::ENTRIES.0, Some(StreamPart::ENTRIES.1)),
        Hash | Set | SortedSet | List => (b"", None),
    }
}

impl Split {
    fn bytes_of_bounds(of: Collection, metadata: &[u8]) -> &[u8] {
        metadata.get(of.metadata_bytes()..).unwrap_or_default()
    }

    /// The problem with bounds that cannot be read.
    pub fn check_bounds(of: Collection, metadata: &[u8]) -> Result<(), Problem> {
        match Bounds::parse(Split::bytes_of_bounds(of, metadata)) {
            Some(_) => Ok(()),
            None => Err(MALFORMED),
        }
    }

    /// The sub-keys that its head admits.
    pub fn bounds(&self) -> Bounds<'_> {
        // They were checked when the head was read.
        Bounds::parse(Split::bytes_of_bounds(self.of(), self.metadata_bytes())).unwrap_or_default()
    }

    /// True for an element that its head excludes: then it is not there, whatever its record says.
    pub fn excludes(&self, sub_key: &[u8]) -> bool {
        let bounds = self.bounds();
        let (start, end) = bounded(self.of());
        !bounds.is_none()
            && sub_key >= start
            && end.is_none_or(|end| sub_key < end)
            && (sub_key < bounds.low || bounds.high.is_some_and(|high| sub_key > high))
    }

    /// The sub-keys that its head excludes.
    pub fn excluded(&self) -> impl Iterator<Item = SubKeys> {
        let bounds = self.bounds();
        let (start, end) = bounded(self.of());
        let below = (bounds.low > start).then(|| SubKeys {
            from: Bytes::from_static(start),
            to: Some(Bytes::copy_from_slice(match end {
                Some(end) => bounds.low.min(end),
                None => bounds.low,
            })),
        });
        let above = bounds.high.map(|high| SubKeys {
            // The next sub-key behind the highest one.
            from: [high, b"\0"].concat().max(start.to_vec()).into(),
            to: end.map(Bytes::from_static),
        });
        let is_some = |range: &SubKeys| range.to.as_ref().is_none_or(|to| range.from < to);
        below.into_iter().chain(above).filter(is_some)
    }
}

/// For the range of an engine's keys.
pub fn as_range(range: &(Vec<u8>, Option<Vec<u8>>)) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let end = range
        .1
        .as_ref()
        .map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..]));
    (Bound::Included(&range.0[..]), end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{StreamHead, StreamId, Version};

    fn sub_key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(0), b'd'..=b'g', any::<u8>()], 0..4)
    }

    fn split(of: Collection, bounds: &Bounds) -> Split {
        let mut metadata = vec![0; of.metadata_bytes()];
        bounds.put(&mut metadata);
        Split::check_bounds(of, &metadata).expect("they are well formed");
        Split::new(of, Version::new(0), &metadata)
    }

    proptest! {
        #[test]
        fn the_ranges_are_what_is_excluded(
            low in sub_key(),
            high in prop::option::of(sub_key()),
            keys in prop::collection::vec(sub_key(), 20),
        ) {
            let high = high.as_deref().filter(|high| !high.is_empty());
            let bounds = Bounds { low: &low, high };
            for of in [Collection::List, Collection::Stream] {
                let split = split(of, &bounds);
                prop_assert_eq!(split.bounds(), bounds);
                for key in keys.iter().chain([&low]) {
                    let is_in = |range: SubKeys| {
                        let SubKeys { from, to } = range;
                        from <= key[..] && to.is_none_or(|to| key[..] < to)
                    };
                    prop_assert_eq!(split.excludes(key), split.excluded().any(is_in), "{:?}", key);
                    let is_group = of == Collection::Stream && key.first() != Some(&b'e');
                    prop_assert!(!(is_group && split.excludes(key)));
                }
            }
        }

        #[test]
        fn any_bytes_are_bounds_of_one_form_or_a_problem(
            bytes in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            if let Some(bounds) = Bounds::parse(&bytes) {
                let mut written = Vec::new();
                bounds.put(&mut written);
                prop_assert_eq!(written, bytes);
            }
        }
    }

    #[test]
    fn a_list_can_have_both_bounds() {
        let bounds = Bounds {
            low: b"c",
            high: Some(b"m"),
        };
        let split = split(Collection::List, &bounds);
        assert_eq!(split.metadata()[..], *b"\x01cm", "the documentation shows it");
        let is_there = |key: &&[u8]| !split.excludes(key);
        let keys = [&b"a"[..], b"bz", b"c", b"d", b"m", b"m\0", b"n"];
        assert!(keys.iter().copied().filter(is_there).eq([&b"c"[..], b"d", b"m"]));
    }

    #[test]
    fn a_stream_loses_its_entries_and_nothing_else() {
        let first = StreamId { ms: 5, seq: 0 };
        let head = StreamHead {
            first,
            last: first,
            added: 9,
        };
        let split = Split::new(Collection::Stream, Version::new(0), &head.metadata());
        let excludes = |part: StreamPart| split.excludes(&part.sub_key());
        assert!(excludes(StreamPart::Entry(StreamId { ms: 4, seq: 9 })));
        assert!(!excludes(StreamPart::Entry(first)));
        for part in [
            StreamPart::Pending(b"g", StreamId::MIN),
            StreamPart::Group(b""),
            StreamPart::MaxDeleted,
        ] {
            assert!(!excludes(part));
        }
    }
}
