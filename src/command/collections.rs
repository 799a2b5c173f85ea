//! What commands on hashes, sets, sorted sets and lists have in common: HSCAN and its like, taking
//! elements out of the first collection that has some, and picking elements at random.

use super::args::{SYNTAX, count_of, int, is};
use super::keys::scan::{CURSOR_SHIFT, parse_cursor};
use super::{Args, Fault, MAX_REPLY_MEMORY, Reply};
use crate::database::Held;
use crate::glob::KeyPattern;
use crate::model::Tree;
use crate::store::key_hash;

/// Collections of up to this many elements are answered whole, as Redis answers its small ones.
const WHOLE: usize = 512;

/// A part of a collection, as HSCAN, SSCAN and ZSCAN are asked for it.
pub struct Scan<'a> {
    from: u64,
    pattern: KeyPattern<'a>,
    count: usize,
    /// HSCAN's NOVALUES was given.
    pub no_values: bool,
}

impl<'a> Scan<'a> {
    /// The cursor alone: Redis looks at the key before it looks at the options.
    pub fn cursor(argument: &[u8]) -> Result<u64, Fault> {
        parse_cursor(argument).ok_or_else(|| "ERR invalid cursor".into())
    }

    /// `novalues`: the command knows the option NOVALUES.
    pub fn new(cursor: u64, options: &[&'a [u8]], novalues: bool) -> Result<Self, Fault> {
        let mut scan = Scan {
            from: cursor.wrapping_shl(CURSOR_SHIFT),
            pattern: KeyPattern::every(),
            count: 10,
            no_values: false,
        };
        let mut options = options.iter();
        while let Some(option) = options.next() {
            if novalues && is(option, "novalues") {
                scan.no_values = true;
                continue;
            }
            let value = options.next().ok_or(SYNTAX)?;
            if is(option, "count") {
                let count = usize::try_from(int(value)?).ok().filter(|count| *count > 0);
                scan.count = count.ok_or(SYNTAX)?;
            } else if is(option, "match") {
                scan.pattern = KeyPattern::of_part(value);
            } else {
                return Err(SYNTAX.into());
            }
        }
        Ok(scan)
    }

    /// The reply: the next cursor, and the elements of this part. `names` are those of all
    /// elements, and `show` appends an element, given its place among them.
    pub fn reply<'e>(
        mut self,
        names: impl ExactSizeIterator<Item = &'e [u8]>,
        mut show: impl FnMut(usize, &mut Vec<Reply>),
    ) -> Result<Reply, Fault> {
        let is_small = names.len() <= WHOLE;
        let mut left: Vec<(u64, usize, &[u8])> = names
            .enumerate()
            .map(|(place, name)| (key_hash(name) >> CURSOR_SHIFT << CURSOR_SHIFT, place, name))
            .filter(|(hash, ..)| *hash >= self.from)
            .collect();
        let mut next = 0;
        if !is_small {
            left.sort_unstable();
            // All elements of one cursor are in one reply.
            let end = left.get(self.count).map_or(left.len(), |(hash, ..)| {
                let first = left.partition_point(|(other, ..)| other < hash);
                if first > 0 {
                    first
                } else {
                    left.partition_point(|(other, ..)| other <= hash)
                }
            });
            next = left.get(end).map_or(0, |(hash, ..)| hash >> CURSOR_SHIFT);
            left.truncate(end);
        }
        let mut shown = Vec::new();
        for (_, place, name) in left {
            if self.pattern.matches(name) {
                show(place, &mut shown);
            }
        }
        if self.pattern.is_exhausted() {
            return Err(TOO_LONG.into());
        }
        Ok(Reply::Array(vec![Reply::bulk(next.to_string()), Reply::Array(shown)]))
    }
}

impl Scan<'_> {
    /// As [`Scan::reply`], for a split collection: only this part of it is looked at. `show`
    /// appends an element that has not expired at this time.
    pub fn reply_of_split(
        mut self,
        tree: &Tree<Held>,
        now: u64,
        mut show: impl FnMut(&Held, &mut Vec<Reply>) -> Result<(), Fault>,
    ) -> Result<Reply, Fault> {
        let start = tree.rank(Held::from_hash(self.from));
        let (mut next, mut last) = (0, None);
        let mut shown = Vec::new();
        for (passed, held) in tree.range(start..tree.len()).enumerate() {
            let cursor = held.hash() >> CURSOR_SHIFT;
            // All elements of one cursor are in one reply.
            if passed >= self.count && last != Some(cursor) {
                next = cursor;
                break;
            }
            last = Some(cursor);
            if held.is_live(now) && self.pattern.matches(&held.name) {
                show(held, &mut shown)?;
            }
        }
        if self.pattern.is_exhausted() {
            return Err(TOO_LONG.into());
        }
        Ok(Reply::Array(vec![Reply::bulk(next.to_string()), Reply::Array(shown)]))
    }
}

/// The error for a pattern that takes too long.
const TOO_LONG: &str = "ERR it takes too long to compare this pattern with the elements there are";

/// The reply of a scan of a key that does not exist.
pub fn nothing_scanned() -> Reply {
    Reply::Array(vec![Reply::bulk("0"), Reply::Array(Vec::new())])
}

/// What LMPOP and ZMPOP are asked for: `numkeys key [key ...] END [COUNT count]`.
pub struct Pops<'a, E> {
    pub keys: Args<'a>,
    /// The end of the collection that elements are taken from.
    pub from: E,
    pub count: usize,
}

impl<'a, E> Pops<'a, E> {
    /// `end`: what a word says about the end.
    pub fn parse(args: Args<'a>, end: fn(&[u8]) -> Option<E>) -> Result<Self, Fault> {
        let [_, count, rest @ ..] = args else {
            return Err(SYNTAX.into());
        };
        let keys = count_of(count, 1, "ERR numkeys should be greater than 0")?;
        let (keys, options) = rest.split_at_checked(keys).ok_or(SYNTAX)?;
        let [from, options @ ..] = options else {
            return Err(SYNTAX.into());
        };
        let from = end(from).ok_or(SYNTAX)?;
        let count = match options {
            [] => 1,
            [word, count, rest @ ..] if is(word, "count") => {
                let count = count_of(count, 1, "ERR count should be greater than 0")?;
                if !rest.is_empty() {
                    return Err(SYNTAX.into());
                }
                count
            }
            _ => return Err(SYNTAX.into()),
        };
        Ok(Pops { keys, from, count })
    }
}

/// How many elements HRANDFIELD, SRANDMEMBER or ZRANDMEMBER are asked for.
#[derive(Clone, Copy)]
pub struct RandomCount(i64);

impl RandomCount {
    pub fn parse(argument: &[u8]) -> Result<Self, Fault> {
        let count = int(argument)?;
        if count == i64::MIN {
            return Err(
                "ERR value is out of range, value must between -9223372036854775807 and 9223372036854775807".into(),
            );
        }
        Ok(RandomCount(count))
    }

    /// The error of Redis if twice as many replies could not be counted.
    pub fn check_for_pairs(self) -> Result<(), Fault> {
        match self.0.unsigned_abs() > i64::MAX as u64 / 2 {
            true => Err("ERR value is out of range".into()),
            false => Ok(()),
        }
    }

    /// Places of elements picked at random among so many: all different if the count is positive,
    /// else each by itself.
    pub fn pick(self, len: usize) -> Result<Vec<usize>, Fault> {
        if len == 0 || self.0 == 0 {
            return Ok(Vec::new());
        }
        let wanted = usize::try_from(self.0.unsigned_abs()).unwrap_or(usize::MAX);
        if self.0 > 0 {
            return Ok(distinct(wanted, len));
        }
        if wanted > MAX_REPLY_MEMORY / size_of::<Reply>() {
            return Err(Fault::error(format!(
                "ERR the reply would take more than {MAX_REPLY_MEMORY} bytes of memory"
            )));
        }
        Ok((0..wanted).map(|_| rand::random_range(0..len)).collect())
    }
}

/// Different places among so many, picked at random; in their order if all are wanted.
pub fn distinct(wanted: usize, len: usize) -> Vec<usize> {
    if wanted >= len {
        return (0..len).collect();
    }
    rand::seq::index::sample(&mut rand::rng(), len, wanted).into_vec()
}
