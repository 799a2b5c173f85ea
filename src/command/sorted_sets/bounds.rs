//! Ranges of a sorted set: by rank, by score, by name. Each is a run of members in their order.

use std::ops::Range;

use crate::command::Fault;
use crate::command::args::int;
use crate::command::float;
use crate::command::sorted::Sorted;

/// What the ends of a range are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Rank,
    Score,
    /// All members must have the same score; otherwise Redis and this server promise nothing about
    /// the result.
    Name,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bounds<'a> {
    /// First and last place, both included. Negative numbers count from the end.
    Ranks(i64, i64),
    Scores(ScoreEnd, ScoreEnd),
    Names(NameEnd<'a>, NameEnd<'a>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreEnd {
    score: f64,
    excluded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NameEnd<'a> {
    /// `-`: before every name.
    Least,
    /// `+`: after every name.
    Most,
    Name {
        name: &'a [u8],
        excluded: bool,
    },
}

impl<'a> Bounds<'a> {
    pub fn parse(by: By, min: &'a [u8], max: &'a [u8]) -> Result<Self, Fault> {
        match by {
            By::Rank => Ok(Bounds::Ranks(int(min)?, int(max)?)),
            By::Score => match (ScoreEnd::parse(min), ScoreEnd::parse(max)) {
                (Some(min), Some(max)) => Ok(Bounds::Scores(min, max)),
                _ => Err("ERR min or max is not a float".into()),
            },
            By::Name => match (NameEnd::parse(min), NameEnd::parse(max)) {
                (Some(min), Some(max)) => Ok(Bounds::Names(min, max)),
                _ => Err("ERR min or max not valid string range item".into()),
            },
        }
    }

    /// The places of the members. `reverse`: ranks count from the highest member.
    pub fn places(&self, set: &Sorted, reverse: bool) -> Range<usize> {
        let len = set.len();
        match *self {
            Bounds::Ranks(first, last) => {
                let places = ranks(first, last, len);
                match reverse {
                    true => len - places.end..len - places.start,
                    false => places,
                }
            }
            Bounds::Scores(min, max) => between(set, |_, score| min.is_below(score), |_, score| max.is_above(score)),
            Bounds::Names(min, max) => between(set, |name, _| min.is_below(name), |name, _| max.is_above(name)),
        }
    }
}

/// The places of the members that the lower end is below and the upper end above.
fn between(
    set: &Sorted,
    min_is_below: impl Fn(&[u8], f64) -> bool,
    max_is_above: impl Fn(&[u8], f64) -> bool,
) -> Range<usize> {
    let start = set.partition_point(|name, score| !min_is_below(name, score));
    let end = set.partition_point(|name, score| max_is_above(name, score));
    start..end.max(start)
}

/// The places from the first to the last rank of so many members. Unlike ranges of a string, a
/// range that ends before the first member is empty.
fn ranks(first: i64, last: i64, len: usize) -> Range<usize> {
    let len = len as i64;
    let place = |rank: i64| if rank < 0 { rank.saturating_add(len) } else { rank };
    let first = place(first).clamp(0, len);
    let last = place(last).min(len - 1);
    first as usize..last.saturating_add(1).max(first) as usize
}

impl ScoreEnd {
    /// `5`, or `(5` if 5 itself is excluded.
    fn parse(argument: &[u8]) -> Option<Self> {
        let (number, excluded) = match argument {
            [b'(', number @ ..] => (number, true),
            number => (number, false),
        };
        let score = float::parse_end(number)?;
        Some(ScoreEnd { score, excluded })
    }

    /// Whether a score is in the range that begins here.
    fn is_below(self, score: f64) -> bool {
        self.score < score || (self.score == score && !self.excluded)
    }

    /// Whether a score is in the range that ends here.
    fn is_above(self, score: f64) -> bool {
        self.score > score || (self.score == score && !self.excluded)
    }
}

impl<'a> NameEnd<'a> {
    fn parse(argument: &'a [u8]) -> Option<Self> {
        match argument {
            // Redis reads a C string, which a NUL byte ends.
            [b'-'] | [b'-', 0, ..] => Some(NameEnd::Least),
            [b'+'] | [b'+', 0, ..] => Some(NameEnd::Most),
            [b'[', name @ ..] => Some(NameEnd::Name { name, excluded: false }),
            [b'(', name @ ..] => Some(NameEnd::Name { name, excluded: true }),
            _ => None,
        }
    }

    /// Whether a name is in the range that begins here.
    fn is_below(self, name: &[u8]) -> bool {
        match self {
            NameEnd::Least => true,
            NameEnd::Most => false,
            NameEnd::Name { name: own, excluded } => own < name || (own == name && !excluded),
        }
    }

    /// Whether a name is in the range that ends here.
    fn is_above(self, name: &[u8]) -> bool {
        match self {
            NameEnd::Least => false,
            NameEnd::Most => true,
            NameEnd::Name { name: own, excluded } => own > name || (own == name && !excluded),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::Scores;

    fn set(members: &[(&'static str, f64)]) -> Sorted {
        let members = members.iter().map(|(name, score)| (Bytes::from(*name), *score));
        let mut set = Scores(members.collect());
        set.sort();
        Sorted::Packed(set)
    }

    fn names(set: &Sorted, by: By, min: &str, max: &str, reverse: bool) -> Option<String> {
        let bounds = Bounds::parse(by, min.as_bytes(), max.as_bytes()).ok()?;
        let found = set.iter(bounds.places(set, reverse));
        Some(found.map(|(name, _)| String::from_utf8_lossy(name)).collect())
    }

    #[test]
    fn ranks_count_from_either_end() {
        let set = set(&[("a", 1.0), ("b", 2.0), ("c", 3.0)]);
        for (first, last, expected, reversed) in [
            ("0", "-1", "abc", "abc"),
            ("0", "0", "a", "c"),
            ("1", "2", "bc", "ab"),
            ("-2", "-1", "bc", "ab"),
            ("-9", "1", "ab", "bc"),
            ("-9", "-9", "", ""),
            ("2", "1", "", ""),
            ("3", "9", "", ""),
            ("1", "9223372036854775807", "bc", "ab"),
            ("-9223372036854775808", "9223372036854775807", "abc", "abc"),
            ("9223372036854775807", "-9223372036854775808", "", ""),
        ] {
            assert_eq!(
                names(&set, By::Rank, first, last, false).as_deref(),
                Some(expected),
                "{first} {last}"
            );
            assert_eq!(
                names(&set, By::Rank, first, last, true).as_deref(),
                Some(reversed),
                "{first} {last}"
            );
        }
        assert_eq!(names(&set, By::Rank, "x", "1", false), None);
        assert_eq!(
            names(&Sorted::Packed(Scores::default()), By::Rank, "0", "-1", true).as_deref(),
            Some("")
        );
    }

    #[test]
    fn scores_are_between_both_ends() {
        let set = set(&[
            ("z", f64::NEG_INFINITY),
            ("a", -0.0),
            ("b", 0.0),
            ("c", 1.5),
            ("d", f64::INFINITY),
        ]);
        for (min, max, expected) in [
            ("-inf", "+inf", Some("zabcd")),
            ("(-inf", "(inf", Some("abc")),
            ("0", "1.5", Some("abc")),
            ("(0", "1.5", Some("c")),
            ("0", "(1.5", Some("ab")),
            ("-0", "(0x1.8", Some("ab")),
            ("", " 1", Some("ab")),
            ("(", "inf", Some("cd")),
            ("1.5", "0", Some("")),
            ("(1.5", "(1.5", Some("")),
            ("1e999", "inf", Some("d")),
            ("nan", "1", None),
            ("((1", "1", None),
            ("1", "[1", None),
            ("1", "x", None),
            ("1", "2 ", None),
        ] {
            assert_eq!(
                names(&set, By::Score, min, max, false).as_deref(),
                expected,
                "{min:?} {max:?}"
            );
        }
    }

    #[test]
    fn names_are_between_both_ends() {
        let set = set(&[("", 0.0), ("a", 0.0), ("aa", 0.0), ("b", 0.0)]);
        for (min, max, expected) in [
            ("-", "+", Some("aaab")),
            ("[", "+", Some("aaab")),
            ("(", "(a", Some("")),
            ("[a", "[a", Some("a")),
            ("(a", "[b", Some("aab")),
            ("(a", "(b", Some("aa")),
            ("-", "(b", Some("aaa")),
            ("[b", "[a", Some("")),
            ("+", "-", Some("")),
            ("+", "+", Some("")),
            ("-", "-", Some("")),
            ("-\0x", "+\0", Some("aaab")),
            ("a", "+", None),
            ("", "+", None),
            ("-", "++", None),
            ("-", "1", None),
        ] {
            assert_eq!(
                names(&set, By::Name, min, max, false).as_deref(),
                expected,
                "{min:?} {max:?}"
            );
        }
    }
}
