//! Commands on single members: scores, ranks, removal, the lowest and the highest, scans.

use std::collections::HashSet;

use bytes::Bytes;

use super::{reply, scores};
use crate::command::args::{SYNTAX, count_of, is, wrong_arity};
use crate::command::blocking::Look;
use crate::command::collections::{Pops, RandomCount, Scan, nothing_scanned};
use crate::command::data::Whole;
use crate::command::float::float;
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::database::hot::own;
use crate::model::{Collection, Scores};
use crate::resp::format_double;

// ---- adding ----

/// The options of ZADD.
#[derive(Clone, Copy, Default)]
struct Add {
    /// NX: members that are there stay as they are.
    only_new: bool,
    /// XX: members that are not there are not added.
    only_known: bool,
    /// GT, LT: a member's score only grows, or only falls.
    only_greater: bool,
    only_less: bool,
    /// CH: the reply counts members whose score changes, too.
    counts_changes: bool,
    /// INCR: the number is added to the score, and the new score is the reply.
    adds_to_score: bool,
}

/// What became of one member.
enum Added {
    /// The options forbid it.
    Nothing,
    New(f64),
    Changed(f64),
    /// The score was the same before.
    Same(f64),
}

impl Add {
    /// Notes an option; false if the word is none.
    fn note(&mut self, word: &[u8]) -> bool {
        let options = [
            ("nx", &mut self.only_new),
            ("xx", &mut self.only_known),
            ("gt", &mut self.only_greater),
            ("lt", &mut self.only_less),
            ("ch", &mut self.counts_changes),
            ("incr", &mut self.adds_to_score),
        ];
        let known = options.into_iter().find(|(name, _)| is(word, name));
        known.map(|(_, option)| *option = true).is_some()
    }

    fn check(&self, pairs: usize) -> Result<(), Fault> {
        if self.only_new && self.only_known {
            return Err("ERR XX and NX options at the same time are not compatible".into());
        }
        let exclusive = [self.only_new, self.only_greater, self.only_less];
        if exclusive.into_iter().filter(|given| *given).count() > 1 {
            return Err("ERR GT, LT, and/or NX options at the same time are not compatible".into());
        }
        if self.adds_to_score && pairs > 1 {
            return Err("ERR INCR option supports a single increment-element pair".into());
        }
        Ok(())
    }

    /// Gives a member a score. The set is not in its order after that.
    fn put(&self, set: &mut Scores, member: &[u8], given: f64) -> Result<Added, Fault> {
        let Some(old) = set.0.get_mut(member) else {
            if self.only_known {
                return Ok(Added::Nothing);
            }
            set.0.insert(own(member), given);
            return Ok(Added::New(given));
        };
        if self.only_new {
            return Ok(Added::Nothing);
        }
        let new = if self.adds_to_score { *old + given } else { given };
        if new.is_nan() {
            return Err("ERR resulting score is not a number (NaN)".into());
        }
        if (self.only_less && new >= *old) || (self.only_greater && new <= *old) {
            return Ok(Added::Nothing);
        }
        if new == *old {
            return Ok(Added::Same(new));
        }
        *old = new;
        Ok(Added::Changed(new))
    }
}

pub(super) fn zadd(data: &mut Data, args: Args) -> Outcome {
    add(data, args, Add::default())
}

pub(super) fn zincrby(data: &mut Data, args: Args) -> Outcome {
    // As in Redis, the options of ZADD are options here as well.
    let add_to_score = Add {
        adds_to_score: true,
        ..Add::default()
    };
    add(data, args, add_to_score)
}

fn add(data: &mut Data, args: Args, mut options: Add) -> Outcome {
    let mut rest = &args[2..];
    while let [word, behind @ ..] = rest {
        if !options.note(word) {
            break;
        }
        rest = behind;
    }
    let (pairs, []) = rest.as_chunks() else {
        return Err(SYNTAX.into());
    };
    if pairs.is_empty() {
        return Err(SYNTAX.into());
    }
    options.check(pairs.len())?;
    // All scores are read before the key is.
    let pairs = pairs.iter().map(|[score, member]| Ok((float(score)?, *member)));
    let pairs: Vec<(f64, &[u8])> = pairs.collect::<Result<_, Fault>>()?;
    let mut set: Whole<Scores> = data.collection(args[1])?;
    let (mut new, mut changed, mut last) = (0, 0, Reply::Null);
    for (given, member) in pairs {
        let score = match options.put(&mut set.elements, member, given)? {
            Added::Nothing => continue,
            Added::Same(score) => score,
            Added::New(score) => {
                new += 1;
                score
            }
            Added::Changed(score) => {
                changed += 1;
                score
            }
        };
        last = Reply::Double(score);
    }
    if new + changed > 0 {
        set.elements.sort();
        data.put_collection(args[1], set);
    }
    Ok(match options.adds_to_score {
        true => last,
        false if options.counts_changes => Reply::Int(new + changed),
        false => Reply::Int(new),
    })
}

// ---- reading ----

pub(super) fn zcard(data: &mut Data, args: Args) -> Outcome {
    let len = data.collection_len(args[1], Collection::SortedSet)?;
    Ok(Reply::Int(len as i64))
}

pub(super) fn zscore(data: &mut Data, args: Args) -> Outcome {
    let score = data.score(args[1], args[2])?;
    Ok(score.map_or(Reply::Null, Reply::Double))
}

pub(super) fn zmscore(data: &mut Data, args: Args) -> Outcome {
    let set = scores(data, args[1])?;
    let score = |member: &&[u8]| set.0.get(*member).map_or(Reply::Null, |score| Reply::Double(*score));
    Ok(Reply::Array(args[2..].iter().map(score).collect()))
}

pub(super) fn zrank(data: &mut Data, args: Args) -> Outcome {
    rank(data, args, "zrank", |place, _| place)
}

pub(super) fn zrevrank(data: &mut Data, args: Args) -> Outcome {
    rank(data, args, "zrevrank", |place, len| len - 1 - place)
}

fn rank(data: &mut Data, args: Args, command: &str, counted: fn(usize, usize) -> usize) -> Outcome {
    let with_score = match args[3..] {
        [] => false,
        [word] if is(word, "withscore") => true,
        [_] => return Err(SYNTAX.into()),
        _ => return Err(wrong_arity(command)),
    };
    let set = scores(data, args[1])?;
    Ok(match (set.0.get_full(args[2]), with_score) {
        (None, false) => Reply::Null,
        (None, true) => Reply::NullArray,
        (Some((place, _, score)), _) => {
            let rank = Reply::Int(counted(place, set.0.len()) as i64);
            match with_score {
                true => Reply::Array(vec![rank, Reply::Double(*score)]),
                false => rank,
            }
        }
    })
}

pub(super) fn zrandmember(data: &mut Data, args: Args) -> Outcome {
    let Some(count) = args.get(2) else {
        let set = scores(data, args[1])?.0;
        let picked = (!set.is_empty()).then(|| rand::random_range(0..set.len()));
        let member = picked.and_then(|place| set.get_index(place));
        return Ok(member.map(|(member, _)| member.clone()).into());
    };
    let count = RandomCount::parse(count)?;
    let with_scores = match args[3..] {
        [] => false,
        [word] if is(word, "withscores") => true,
        _ => return Err(SYNTAX.into()),
    };
    if with_scores {
        count.check_for_pairs()?;
    }
    let set = scores(data, args[1])?.0;
    let places = count.pick(set.len())?.into_iter();
    // When all are wanted, Redis begins with the highest one.
    let members = places.filter_map(|place| set.get_index(set.len() - 1 - place));
    Ok(reply(
        members.map(|(member, score)| (member.clone(), *score)),
        with_scores,
    ))
}

pub(super) fn zscan(data: &mut Data, args: Args) -> Outcome {
    let cursor = Scan::cursor(args[2])?;
    let set = scores(data, args[1])?.0;
    if set.is_empty() {
        return Ok(nothing_scanned());
    }
    let scan = Scan::new(cursor, &args[3..], false)?;
    let (most, longest) = data.config.listpack_limits(Collection::SortedSet.name());
    let is_small = set.len() <= most && set.keys().all(|member| member.len() <= longest);
    scan.reply(set.keys().map(|member| &member[..]), |place, shown| {
        if let Some((member, score)) = set.get_index(place) {
            shown.extend([Reply::Bulk(member.clone()), Reply::bulk(scanned(*score, is_small))]);
        }
    })
}

/// A score as ZSCAN prints it. Redis keeps integers in small sets as such, and prints all digits.
fn scanned(score: f64, is_small: bool) -> String {
    const MOST: f64 = (1_i64 << 62) as f64;
    let integer = score as i64;
    match is_small && score.abs() <= MOST && integer as f64 == score {
        true => integer.to_string(),
        false => format_double(score),
    }
}

// ---- removing ----

pub(super) fn zrem(data: &mut Data, args: Args) -> Outcome {
    let mut set: Whole<Scores> = data.collection(args[1])?;
    let before = set.elements.0.len();
    // One pass for all of them: removing one by one would move what is behind it each time.
    match args[2..] {
        [member] => drop(set.elements.0.shift_remove(member)),
        ref members => {
            let members: HashSet<&[u8]> = members.iter().copied().collect();
            set.elements.0.retain(|member, _| !members.contains(&member[..]));
        }
    }
    let removed = before - set.elements.0.len();
    if removed > 0 {
        data.put_collection(args[1], set);
    }
    Ok(Reply::Int(removed as i64))
}

#[derive(Clone, Copy)]
pub(super) enum From {
    Lowest,
    Highest,
}

impl From {
    pub(super) fn of(word: &[u8]) -> Option<From> {
        match () {
            () if is(word, "min") => Some(From::Lowest),
            () if is(word, "max") => Some(From::Highest),
            () => None,
        }
    }
}

/// Removes up to so many members from one end of a sorted set that has some. They come in the order
/// in which they are removed.
fn take(data: &mut Data, key: &[u8], mut set: Whole<Scores>, count: usize, from: From) -> Vec<(Bytes, f64)> {
    let members = &mut set.elements.0;
    let count = count.min(members.len());
    let taken = match from {
        From::Lowest => members.drain(..count).collect(),
        From::Highest => members.drain(members.len() - count..).rev().collect(),
    };
    if count > 0 {
        data.put_collection(key, set);
    }
    taken
}

pub(super) fn zpopmin(data: &mut Data, args: Args) -> Outcome {
    pop(data, args, From::Lowest)
}

pub(super) fn zpopmax(data: &mut Data, args: Args) -> Outcome {
    pop(data, args, From::Highest)
}

fn pop(data: &mut Data, args: Args, from: From) -> Outcome {
    let count = match args[2..] {
        [] => None,
        [count] => Some(count_of(count, 0, "ERR value is out of range, must be positive")?),
        _ => return Err(SYNTAX.into()),
    };
    let set = data.collection(args[1])?;
    let taken = take(data, args[1], set, count.unwrap_or(1), from).into_iter();
    Ok(match count {
        Some(_) => reply(taken, true),
        // One member is no list of pairs, whatever the protocol is.
        None => Reply::Array(
            taken
                .flat_map(|(member, score)| [Reply::Bulk(member), Reply::Double(score)])
                .collect(),
        ),
    })
}

/// As [`take`]; nothing if the sorted set is missing.
pub(super) fn take_some(data: &mut Data, key: &[u8], count: usize, from: From) -> Result<Vec<(Bytes, f64)>, Fault> {
    let set: Whole<Scores> = data.collection(key)?;
    Ok(take(data, key, set, count, from))
}

pub(super) fn zmpop(data: &mut Data, args: Args) -> Outcome {
    let taken = pop_first(data, &Pops::parse(args, From::of)?, &Look::default())?;
    Ok(taken.unwrap_or(Reply::NullArray))
}

/// What ZMPOP and BZMPOP do; `None` if there are no members.
pub(super) fn pop_first(data: &mut Data, pops: &Pops<From>, look: &Look) -> Result<Option<Reply>, Fault> {
    let taken = look.first(pops.keys, |key| take_some(data, key, pops.count, pops.from))?;
    let pair = |(member, score)| Reply::Array(vec![Reply::Bulk(member), Reply::Double(score)]);
    Ok(taken.map(|(key, taken)| {
        let pairs = taken.into_iter().map(pair).collect();
        Reply::Array(vec![Reply::bulk(key), Reply::Array(pairs)])
    }))
}
