//! Where a command's keys are among its arguments, and what it does with them: as Redis's key
//! specifications (<https://redis.io/docs/latest/develop/reference/key-specs/>). COMMAND, locks and
//! read consistency rest on them.

use smallvec::SmallVec;

use super::{Command, args};

/// Keys of one command, in the order of its specs.
pub type KeyList<'a> = SmallVec<[&'a [u8]; 4]>;

/// Some keys of a command, and what it does with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySpec {
    /// [`access`] flags, together.
    pub access: u16,
    pub begin: Begin,
    pub find: Find,
}

/// Where the search for keys begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At this argument; the command's name is argument 0.
    Index(usize),
    /// Behind this word, looked for from this argument on.
    Keyword(&'static str, usize),
    /// Behind the last STORE among the options of SORT. Redis says of it only these words.
    LastStore(&'static str),
    /// Nowhere among the arguments; these words say which keys it is about.
    Unknown(&'static str),
}

/// Which arguments are keys, from where the search begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Find {
    /// Up to `last` arguments further on (negative: counted from the end of the request, -1 being
    /// its last argument), each `step`th one.
    Range { last: i32, step: usize },
    /// The number of keys stands where the search begins. Each `step`th argument after it is one.
    Counted { step: usize },
    /// The first half of the arguments from where the search begins.
    FirstHalf,
    /// At most the argument where the search begins.
    Unknown,
}

/// What a command does with a key. Names and meanings are Redis's.
pub mod access {
    pub const RO: u16 = 1 << 0;
    pub const RW: u16 = 1 << 1;
    pub const OW: u16 = 1 << 2;
    pub const RM: u16 = 1 << 3;
    /// Its value is told, copied, or shows in another way.
    pub const ACCESS: u16 = 1 << 4;
    pub const UPDATE: u16 = 1 << 5;
    pub const INSERT: u16 = 1 << 6;
    pub const DELETE: u16 = 1 << 7;
    /// Other arguments say what is done.
    pub const VARIABLE_FLAGS: u16 = 1 << 8;
    /// It is no key, but is routed like one in a cluster: a channel of the shard.
    pub const NOT_KEY: u16 = 1 << 9;

    pub const READS: u16 = RO | ACCESS;
    pub const CHANGES: u16 = RW | ACCESS | UPDATE;
    pub const SETS: u16 = OW | UPDATE;

    pub const NAMES: &[(u16, &str)] = &[
        (RO, "RO"),
        (RW, "RW"),
        (OW, "OW"),
        (RM, "RM"),
        (ACCESS, "access"),
        (UPDATE, "update"),
        (INSERT, "insert"),
        (DELETE, "delete"),
        (VARIABLE_FLAGS, "variable_flags"),
        (NOT_KEY, "not_key"),
    ];
}

impl KeySpec {
    /// The key at this argument.
    pub const fn at(index: usize, access: u16) -> KeySpec {
        KeySpec::range(index, 0, 1, access)
    }

    /// Every argument from this one on is a key.
    pub const fn from(index: usize, access: u16) -> KeySpec {
        KeySpec::range(index, -1, 1, access)
    }

    /// As [`Find::Range`], from this argument on.
    pub const fn range(index: usize, last: i32, step: usize, access: u16) -> KeySpec {
        KeySpec {
            access,
            begin: Begin::Index(index),
            find: Find::Range { last, step },
        }
    }

    /// The number of keys is this argument, the keys follow.
    pub const fn counted(index: usize, access: u16) -> KeySpec {
        KeySpec {
            access,
            begin: Begin::Index(index),
            find: Find::Counted { step: 1 },
        }
    }

    /// The number of keys is this argument, the keys follow, each with a value.
    pub const fn counted_pairs(index: usize, access: u16) -> KeySpec {
        KeySpec {
            find: Find::Counted { step: 2 },
            ..KeySpec::counted(index, access)
        }
    }

    /// The keys among the arguments of a request, which may be too few or make no sense.
    pub fn keys<'s, 'a: 's>(&'s self, request: &'s [&'a [u8]]) -> impl Iterator<Item = &'a [u8]> + 's {
        self.keys_at(self.first(request), request)
    }

    /// The keys where a search begins at this argument.
    fn keys_at<'s, 'a: 's>(&'s self, first: usize, request: &'s [&'a [u8]]) -> impl Iterator<Item = &'a [u8]> + 's {
        let (first, behind, step) = match self.find {
            Find::Range { last, step } if last < 0 => (first, request.len().saturating_sub((-1 - last) as usize), step),
            Find::Range { last, step } => (first, first + last as usize + 1, step),
            Find::Counted { step } => {
                let count = count_at(first, request).unwrap_or(0);
                (first + 1, (first + 1).saturating_add(count.saturating_mul(step)), step)
            }
            Find::FirstHalf => (first, first + request.len().saturating_sub(first) / 2, 1),
            Find::Unknown => (first, first.saturating_add(1), 1),
        };
        let behind = behind.min(request.len());
        request[first.min(behind)..behind].iter().step_by(step).copied()
    }

    /// False if a request says a number of keys that it does not have.
    pub fn fits(&self, request: &[&[u8]]) -> bool {
        let Find::Counted { step } = self.find else {
            return true;
        };
        let first = self.first(request);
        let most = request.len().saturating_sub(first + 1).div_ceil(step);
        count_at(first, request).is_some_and(|count| (1..=most).contains(&count))
    }

    /// The argument where the search for keys begins.
    fn first(&self, request: &[&[u8]]) -> usize {
        match self.begin {
            Begin::Index(index) => index,
            Begin::Keyword(..) if self.find == Find::FirstHalf => behind_streams(request).unwrap_or(request.len()),
            Begin::Keyword(word, from) => {
                let found = request.iter().skip(from).position(|argument| args::is(argument, word));
                found.map_or(request.len(), |found| from + found + 1)
            }
            Begin::LastStore(_) => last_store(request).unwrap_or(request.len()),
            Begin::Unknown(_) => request.len(),
        }
    }
}

/// The argument behind the last STORE of SORT. The arguments of other options are passed over.
fn last_store(request: &[&[u8]]) -> Option<usize> {
    let (mut at, mut found) = (2, None);
    while let Some(word) = request.get(at) {
        let of_option = [("limit", 2), ("get", 1), ("by", 1), ("store", 1)];
        let known = of_option.into_iter().find(|(name, _)| args::is(word, name));
        if known == Some(("store", 1)) {
            found = Some(at + 1);
        }
        at += 1 + known.map_or(0, |(_, arguments)| arguments);
    }
    found
}

/// The argument behind the STREAMS of XREAD and XREADGROUP. The arguments of other options, which
/// may be that word too, are passed over.
fn behind_streams(request: &[&[u8]]) -> Option<usize> {
    let mut at = 1;
    loop {
        let word = request.get(at)?;
        if args::is(word, "streams") {
            return Some(at + 1);
        }
        let of_option = [("block", 1), ("count", 1), ("group", 2), ("noack", 0)];
        let known = of_option.into_iter().find(|(name, _)| args::is(word, name));
        at += 1 + known?.1;
    }
}

/// The number of keys that this argument says.
fn count_at(index: usize, request: &[&[u8]]) -> Option<usize> {
    let count = request.get(index).and_then(|count| args::parse_int(count))?;
    usize::try_from(count).ok()
}

/// All keys that a request may use. A word that keys follow may stand in it several times: Redis
/// reports the keys behind the first one, and GEORADIUS stores at the key behind the last one.
pub fn keys_of<'a>(specs: &[KeySpec], request: &[&'a [u8]]) -> KeyList<'a> {
    let mut keys = KeyList::new();
    for spec in specs.iter().filter(|spec| spec.access & access::NOT_KEY == 0) {
        match spec.begin {
            Begin::Index(_) | Begin::LastStore(_) | Begin::Unknown(_) => keys.extend(spec.keys(request)),
            Begin::Keyword(..) if spec.find == Find::FirstHalf => keys.extend(spec.keys(request)),
            Begin::Keyword(word, from) => {
                let words = (from..request.len()).filter(|at| args::is(request[*at], word));
                words.for_each(|at| keys.extend(spec.keys_at(at + 1, request)));
            }
        }
    }
    keys
}

/// The keys that a request names, each with the [`access`] that the command needs to it.
pub fn keys_and_access<'a>(command: &Command, request: &[&'a [u8]]) -> SmallVec<[(&'a [u8], u16); 4]> {
    let takes = command.takes(request.len());
    let of_request = command.access.filter(|_| takes).map(|access| access(request));
    let mut keys = SmallVec::new();
    // A request that says a wrong number of keys is refused by its command, before it uses one.
    for spec in command.keys.iter().filter(|spec| spec.fits(request)) {
        let access = of_request.unwrap_or(spec.access);
        let found = keys_of(std::slice::from_ref(spec), request);
        keys.extend(found.into_iter().map(|key| (key, access)));
    }
    keys
}

/// First key, last key and step over all specs, as clients that know no key specs are told; all 0
/// without keys, or if they cannot be told in this way.
pub fn range_of(specs: &[KeySpec]) -> (i32, i32, i32) {
    let mut all: Option<(i32, i32, i32)> = None;
    for spec in specs {
        let (Begin::Index(first), Find::Range { last, step }) = (spec.begin, spec.find) else {
            continue;
        };
        let first = first as i32;
        // A last key that is counted from the end stays so; of the others the rightmost.
        let last = if last < 0 { last } else { first + last };
        all = Some(match all {
            None => (first, last, step as i32),
            Some((first, other, step)) if last < 0 || other < 0 => (first, last.min(other), step),
            Some((first, other, step)) => (first, last.max(other), step),
        });
    }
    all.unwrap_or((0, 0, 0))
}

#[cfg(test)]
mod tests {
    use super::access::{READS, SETS};
    use super::*;

    fn found(spec: KeySpec, request: &str) -> String {
        let request: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
        let keys: Vec<_> = spec.keys(&request).map(String::from_utf8_lossy).collect();
        keys.join(" ")
    }

    #[test]
    fn keys_are_found_where_the_spec_says() {
        let pairs = KeySpec::range(1, -1, 2, SETS);
        let behind = |word, find| KeySpec {
            access: READS,
            begin: Begin::Keyword(word, 1),
            find,
        };
        let counted = KeySpec::counted(2, READS);
        let unknown = |begin| KeySpec {
            access: READS,
            begin,
            find: Find::Unknown,
        };
        for (spec, request, keys) in [
            (KeySpec::at(1, READS), "get k", "k"),
            (KeySpec::at(2, READS), "object encoding k", "k"),
            (KeySpec::at(2, READS), "object encoding", ""),
            (KeySpec::from(1, READS), "mget a b c", "a b c"),
            (KeySpec::from(1, READS), "mget", ""),
            (KeySpec::range(1, -2, 1, READS), "blpop a b 0", "a b"),
            (KeySpec::range(1, -2, 1, READS), "blpop", ""),
            (KeySpec::range(1, 1, 1, READS), "rename a b", "a b"),
            (KeySpec::range(1, 1, 1, READS), "rename a", "a"),
            (pairs, "mset a 1 b 2", "a b"),
            (pairs, "mset a 1 b", "a b"),
            (counted, "eval s 2 a b c", "a b"),
            (counted, "eval s 9 a b c", "a b c"),
            (counted, "eval s -1 a", ""),
            (counted, "eval s x a", ""),
            (counted, "eval", ""),
            (KeySpec::counted_pairs(1, SETS), "msetex 2 a 1 b 2 ex 3", "a b"),
            (KeySpec::counted_pairs(1, SETS), "msetex 9 a 1 b", "a b"),
            (KeySpec::counted_pairs(1, SETS), "msetex 9223372036854775807 a", "a"),
            (
                behind("streams", Find::Range { last: -1, step: 1 }),
                "xread STREAMS a b",
                "a b",
            ),
            (behind("streams", Find::Range { last: -1, step: 1 }), "xread a b", ""),
            (behind("keys", Find::Range { last: 0, step: 1 }), "m keys a b", "a"),
            (behind("streams", Find::FirstHalf), "xread streams a b 1 2", "a b"),
            (behind("streams", Find::FirstHalf), "xread streams a b 1", "a"),
            (behind("streams", Find::FirstHalf), "xread a", ""),
            (unknown(Begin::LastStore("")), "sort a STORE b", "b"),
            (unknown(Begin::LastStore("")), "sort a store b desc store c alpha", "c"),
            (unknown(Begin::LastStore("")), "sort a store store store c", "c"),
            (
                unknown(Begin::LastStore("")),
                "sort a by store get store limit store store",
                "",
            ),
            (unknown(Begin::LastStore("")), "sort a store", ""),
            (unknown(Begin::LastStore("")), "sort", ""),
            (unknown(Begin::Unknown("")), "sort a store b", ""),
        ] {
            assert_eq!(found(spec, request), keys, "{request}");
        }
    }

    #[test]
    fn keys_behind_every_word_are_locked() {
        let stored = KeySpec {
            access: SETS,
            begin: Begin::Keyword("store", 3),
            find: Find::Range { last: 0, step: 1 },
        };
        for (request, reported, all) in [
            ("g k store a store b", "b", "b"),
            ("g k 1 store a STORE b x", "a", "a b"),
            ("g k 1 store store c", "store", "store c"),
            ("g k 1 store", "", ""),
        ] {
            assert_eq!(found(stored, request), reported, "{request}");
            let request: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
            let keys: Vec<_> = all
                .split(' ')
                .filter(|key| !key.is_empty())
                .map(str::as_bytes)
                .collect();
            assert_eq!(keys_of(&[stored], &request)[..], keys[..]);
        }
    }

    #[test]
    fn a_number_of_keys_must_be_right() {
        for (request, fits) in [
            ("zunion 2 a b", true),
            ("zunion 1 a withscores", true),
            ("zunion 0 a", false),
            ("zunion 2 a", false),
            ("zunion -1 a", false),
            ("zunion x a", false),
            ("zunion 9223372036854775807 a", false),
            ("zunion", false),
        ] {
            let arguments: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
            assert_eq!(KeySpec::counted(1, READS).fits(&arguments), fits, "{request}");
            assert!(KeySpec::at(1, READS).fits(&arguments), "{request}");
        }
        for (request, fits) in [("msetex 2 a 1 b 2", true), ("msetex 3 a 1 b 2", false)] {
            let arguments: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
            assert_eq!(KeySpec::counted_pairs(1, SETS).fits(&arguments), fits, "{request}");
        }
    }

    #[test]
    fn the_range_covers_all_specs() {
        for (specs, range) in [
            (&[][..], (0, 0, 0)),
            (&[KeySpec::at(1, READS)], (1, 1, 1)),
            (&[KeySpec::at(1, READS), KeySpec::at(2, SETS)], (1, 2, 1)),
            (&[KeySpec::at(2, SETS), KeySpec::from(3, READS)], (2, -1, 1)),
            (&[KeySpec::range(1, -1, 2, SETS)], (1, -1, 2)),
        ] {
            assert_eq!(range_of(specs), range, "{specs:?}");
        }
    }
}
