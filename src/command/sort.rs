//! SORT and SORT_RO: the items of a list, the members of a set or of a sorted set, in the order of
//! what they are or of what other keys hold.
//!
//! A pattern names such a key: its first `*` stands for the element. With `->` and a name at its
//! end it means a field of a hash. Which keys these are is known only from the elements, so they
//! are not among the declared keys of the command.

use std::cmp::Ordering;
use std::collections::VecDeque;

use bytes::Bytes;

use super::args::{SYNTAX, int, is};
use super::float::parse_c_string;
use super::key_specs::{Begin, Find, access};
use super::{Args, Command, Compatibility, Data, Fault, KeySpec, MAX_REPLY_MEMORY, Outcome, Reads, Reply, Run, flag};
use crate::database::WRONG_TYPE;
use crate::model::{Collection, Entry, Fields, Items, Members, Scores};
use crate::resp::Weight;

/// What the rows have in common.
const ROW: Command = Command {
    arity: -2,
    reads: Reads::KeysAndOthersIf(names_other_keys),
    categories: &["set", "sortedset", "list", "dangerous"],
    group: "generic",
    complexity: "O(N+M*log(M)), N elements of which M are answered.",
    compatibility: Compatibility::Partial("ALPHA compares bytes, whatever the locale"),
    ..Command::DEFAULT
};

const SORTED: KeySpec = KeySpec::at(1, access::READS);
const OTHERS: KeySpec = KeySpec {
    access: access::READS,
    begin: Begin::Unknown("the keys that BY and GET name, by the elements that are sorted"),
    find: Find::Unknown,
};
const STORED: KeySpec = KeySpec {
    access: access::SETS,
    begin: Begin::LastStore("the key that STORE names, anywhere among the options"),
    find: Find::Unknown,
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "sort",
        flags: flag::WRITE | flag::DENYOOM | flag::MOVABLEKEYS,
        keys: &[SORTED, OTHERS, STORED],
        summary: "Sorts the elements of a list or a set, and may store the result.",
        run: Run::Data(sort),
        ..ROW
    },
    Command {
        name: "sort_ro",
        flags: flag::READONLY | flag::MOVABLEKEYS,
        keys: &[SORTED, OTHERS],
        since: "7.0.0",
        summary: "Sorts the elements of a list or a set.",
        run: Run::Data(sort_ro),
        ..ROW
    },
];

fn sort(data: &mut Data, args: Args) -> Outcome {
    let options = Options::parse(&args[2..], true)?;
    run(data, args[1], &options)
}

fn sort_ro(data: &mut Data, args: Args) -> Outcome {
    let options = Options::parse(&args[2..], false)?;
    run(data, args[1], &options)
}

/// The option of a request that names keys which it does not declare. What cannot be parsed has
/// none.
fn names_other_keys(args: Args) -> Option<&'static str> {
    let options = Options::parse(args.get(2..)?, true).ok()?;
    options.names_other_keys()
}

// ---- options ----

#[derive(Default)]
struct Options<'a> {
    by: Option<&'a [u8]>,
    /// A BY without `*` was given: the elements stay in their order.
    is_unsorted: bool,
    get: Vec<&'a [u8]>,
    /// Elements that are left out at the beginning.
    offset: usize,
    /// Most elements that are wanted.
    count: Option<usize>,
    is_descending: bool,
    /// Compares texts, not numbers.
    is_alphabetic: bool,
    store: Option<&'a [u8]>,
}

impl<'a> Options<'a> {
    fn parse(mut words: &[&'a [u8]], takes_store: bool) -> Result<Self, Fault> {
        let mut options = Options::default();
        while let [word, rest @ ..] = words {
            words = match rest {
                _ if is(word, "asc") => {
                    options.is_descending = false;
                    rest
                }
                _ if is(word, "desc") => {
                    options.is_descending = true;
                    rest
                }
                _ if is(word, "alpha") => {
                    options.is_alphabetic = true;
                    rest
                }
                [offset, count, rest @ ..] if is(word, "limit") => {
                    let (offset, count) = (int(offset)?, int(count)?);
                    options.offset = usize::try_from(offset).unwrap_or(0);
                    options.count = usize::try_from(count).ok();
                    rest
                }
                [key, rest @ ..] if takes_store && is(word, "store") => {
                    options.store = Some(key);
                    rest
                }
                [pattern, rest @ ..] if is(word, "by") => {
                    options.by = Some(pattern);
                    options.is_unsorted |= star(pattern).is_none();
                    rest
                }
                [pattern, rest @ ..] if is(word, "get") => {
                    options.get.push(pattern);
                    rest
                }
                _ => return Err(SYNTAX.into()),
            };
        }
        Ok(options)
    }

    fn names_other_keys(&self) -> Option<&'static str> {
        let names = |pattern: &&[u8]| star(pattern).is_some();
        let by = self.by.iter().filter(|_| !self.is_unsorted).any(names);
        let get = || self.get.iter().any(names);
        by.then_some("BY").or_else(|| get().then_some("GET"))
    }

    /// The part of so many sorted elements that is wanted.
    fn part(&self, len: usize) -> std::ops::Range<usize> {
        let start = self.offset.min(len);
        let end = start.saturating_add(self.count.unwrap_or(len)).min(len);
        start..end
    }
}

// ---- patterns ----

/// What Redis reads of a pattern as a C string: up to a NUL byte.
fn c_string(pattern: &[u8]) -> &[u8] {
    let end = pattern.iter().position(|byte| *byte == 0);
    &pattern[..end.unwrap_or(pattern.len())]
}

/// The place of the `*` that stands for the element.
fn star(pattern: &[u8]) -> Option<usize> {
    c_string(pattern).iter().position(|byte| *byte == b'*')
}

/// What a pattern means.
#[derive(Debug, PartialEq, Eq)]
enum Pattern<'a> {
    /// `#`: the element.
    Element,
    /// Without a `*` it means nothing.
    Constant,
    Key {
        before: &'a [u8],
        behind: &'a [u8],
        /// Of the hash at that key.
        field: Option<&'a [u8]>,
    },
}

impl<'a> Pattern<'a> {
    fn of(pattern: &'a [u8]) -> Self {
        let Some(star) = star(pattern) else {
            return match c_string(pattern) {
                b"#" => Pattern::Element,
                _ => Pattern::Constant,
            };
        };
        let (before, behind) = (&pattern[..star], &pattern[star + 1..]);
        let arrow = c_string(behind).windows(2).position(|pair| pair == b"->");
        // An arrow at the very end is a part of the key.
        let field = arrow.filter(|arrow| c_string(behind).len() > arrow + 2);
        Pattern::Key {
            before,
            behind: &behind[..field.unwrap_or(behind.len())],
            field: field.map(|arrow| &behind[arrow + 2..]),
        }
    }

    /// What it means for this element; `None` if that does not exist or is of another type.
    fn value(&self, data: &mut Data, element: &Bytes) -> Result<Option<Bytes>, Fault> {
        let (before, behind, field) = match self {
            Pattern::Element => return Ok(Some(element.clone())),
            Pattern::Constant => return Ok(None),
            Pattern::Key { before, behind, field } => (*before, *behind, *field),
        };
        let key = [before, element, behind].concat();
        data.transaction.works(LOOKUP + key.len())?;
        let Some(entry) = data.read(&key)? else {
            return Ok(None);
        };
        match (entry.value.collection(), field) {
            (None, None) => entry.string().map(Some),
            (Some(Collection::Hash), Some(field)) => {
                let found = data.one_of::<Fields>(&key, &entry, field)?;
                Ok(found.map(|found| found.value))
            }
            (None, Some(_)) => entry.type_name().map(|_| None),
            (Some(_), _) => Ok(None),
        }
    }
}

/// What it costs to look for a key in memory, in bytes of work of a transaction.
const LOOKUP: usize = 1 << 10;
/// What it costs to compare two elements, in bytes of work of a transaction.
const COMPARISON: usize = 64;

// ---- sorting ----

/// What an element is sorted by, before it is compared itself.
#[derive(Clone, PartialEq, PartialOrd)]
enum Weighed {
    Number(f64),
    /// A missing text comes before all others.
    Text(Option<Bytes>),
    /// Nothing but the element.
    Element,
}

/// The elements of what is sorted, and whether they come in an order of their own.
fn elements(data: &mut Data, key: &[u8], entry: &Entry) -> Result<(Vec<Bytes>, bool), Fault> {
    Ok(match entry.value.collection() {
        None => return entry.string().and(Err(WRONG_TYPE.into())),
        Some(Collection::Hash | Collection::Stream) => return Err(WRONG_TYPE.into()),
        Some(Collection::List) => (Vec::from(data.elements::<Items>(key, entry)?.0), true),
        Some(Collection::Set) => (data.elements::<Members>(key, entry)?.0.into_iter().collect(), false),
        Some(Collection::SortedSet) => (data.elements::<Scores>(key, entry)?.0.into_keys().collect(), true),
    })
}

/// The elements that are wanted, in the order that is wanted.
fn sorted(data: &mut Data, options: &Options, mut elements: Vec<Bytes>, has_order: bool) -> Result<Vec<Bytes>, Fault> {
    let part = options.part(elements.len());
    // What is stored must be the same on every node: a set has no order, so it gets one.
    let is_forced = options.is_unsorted && !has_order && options.store.is_some();
    if options.is_unsorted && !is_forced {
        if options.is_descending && has_order {
            elements.reverse();
        }
        return Ok(elements.drain(part).collect());
    }
    let by = options.by.filter(|_| !is_forced).map(Pattern::of);
    let is_alphabetic = options.is_alphabetic || is_forced;
    let comparisons = elements.len() * (elements.len().max(1).ilog2() as usize + 1);
    data.transaction.works(comparisons * COMPARISON)?;
    let mut weighed = Vec::with_capacity(elements.len());
    let mut is_readable = true;
    for element in elements {
        let text = match &by {
            Some(by) => by.value(data, &element)?,
            None => Some(element.clone()),
        };
        let weight = match (is_alphabetic, &by) {
            (true, None) => Weighed::Element,
            (true, Some(_)) => Weighed::Text(text),
            (false, _) => {
                let number = text.map_or(Some(0.0), |text| parse_c_string(&text));
                is_readable &= number.is_some();
                Weighed::Number(number.unwrap_or(0.0))
            }
        };
        weighed.push((weight, element));
    }
    if !is_readable {
        return Err("ERR One or more scores can't be converted into double".into());
    }
    weighed.sort_by(|one, other| match options.is_descending {
        true => order(other, one),
        false => order(one, other),
    });
    Ok(weighed.drain(part).map(|(_, element)| element).collect())
}

/// Texts of equal weight stay in the order in which they came, all others are compared themselves.
fn order((weight, element): &(Weighed, Bytes), (other_weight, other): &(Weighed, Bytes)) -> Ordering {
    let by_weight = weight.partial_cmp(other_weight).unwrap_or(Ordering::Equal);
    match weight {
        Weighed::Text(_) => by_weight,
        Weighed::Number(_) | Weighed::Element => by_weight.then_with(|| element.cmp(other)),
    }
}

fn run(data: &mut Data, key: &[u8], options: &Options) -> Outcome {
    let sorted = match data.read(key)? {
        Some(entry) => {
            let (elements, has_order) = elements(data, key, &entry)?;
            sorted(data, options, elements, has_order)?
        }
        None => Vec::new(),
    };
    let results = match options.get.is_empty() {
        true => sorted.into_iter().map(Reply::Bulk).collect(),
        false => fetched(data, options, &sorted)?,
    };
    let Some(target) = options.store else {
        return Ok(Reply::Array(results));
    };
    let items: VecDeque<Bytes> = results
        .into_iter()
        .map(|result| match result {
            Reply::Bulk(item) => item,
            // What GET does not find is stored as an empty item.
            _ => Bytes::new(),
        })
        .collect();
    let len = items.len();
    if len > 0 || data.exists(target)? {
        data.put_items(target, Items(items), None, false)?;
    }
    Ok(Reply::Int(len as i64))
}

/// What GET finds for each element.
fn fetched(data: &mut Data, options: &Options, elements: &[Bytes]) -> Result<Vec<Reply>, Fault> {
    let patterns: Vec<Pattern> = options.get.iter().map(|pattern| Pattern::of(pattern)).collect();
    let (mut results, mut weight) = (Vec::new(), Weight::default());
    for element in elements {
        for pattern in &patterns {
            let result = Reply::from(pattern.value(data, element)?);
            weight.add(&result);
            if weight.bytes() > MAX_REPLY_MEMORY {
                return Err(Fault::error(format!(
                    "ERR the result of SORT would take more than {MAX_REPLY_MEMORY} bytes of memory"
                )));
            }
            results.push(result);
        }
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_as_redis_reads_them() {
        let key = |before, behind, field| Pattern::Key { before, behind, field };
        for (pattern, expected) in [
            (&b"#"[..], Pattern::Element),
            (b"#\0x*", Pattern::Element),
            (b"##", Pattern::Constant),
            (b"", Pattern::Constant),
            (b"constant->field", Pattern::Constant),
            (b"a\0*", Pattern::Constant),
            (b"*", key(b"", b"", None)),
            (b"a*b*c", key(b"a", b"b*c", None)),
            (b"a*b\0c", key(b"a", b"b\0c", None)),
            (b"a*->f", key(b"a", b"", Some(b"f"))),
            (b"a*b->f->g", key(b"a", b"b", Some(b"f->g"))),
            (b"a*->", key(b"a", b"->", None)),
            (b"a*->\0f", key(b"a", b"->\0f", None)),
            (b"a*->f\0g", key(b"a", b"", Some(b"f\0g"))),
            (b"a->b*c", key(b"a->b", b"c", None)),
            (b"a*b\0->f", key(b"a", b"b\0->f", None)),
        ] {
            assert_eq!(Pattern::of(pattern), expected, "{}", pattern.escape_ascii());
        }
    }

    #[test]
    fn a_limit_is_a_part_of_what_there_is() {
        for (limit, expected) in [
            ("0 -1", 0..5),
            ("1 2", 1..3),
            ("-10 2", 0..2),
            ("3 100", 3..5),
            ("5 1", 5..5),
            ("100 -100", 5..5),
            ("2 0", 2..2),
            ("9223372036854775807 9223372036854775807", 5..5),
            ("-9223372036854775808 -9223372036854775808", 0..5),
        ] {
            let words: Vec<&[u8]> = ["limit"]
                .into_iter()
                .chain(limit.split(' '))
                .map(str::as_bytes)
                .collect();
            let options = Options::parse(&words, false);
            assert_eq!(options.map(|options| options.part(5)).ok(), Some(expected), "{limit}");
        }
    }
}
