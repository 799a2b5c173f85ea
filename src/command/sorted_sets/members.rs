//! Commands on single members: scores, ranks, removal, the lowest and the highest, scans.

use bytes::Bytes;

use super::reply;
use crate::command::args::{SYNTAX, count_of, is, wrong_arity};
use crate::command::blocking::Look;
use crate::command::changing::Changing;
use crate::command::collections::{Pops, RandomCount, Scan, nothing_scanned};
use crate::command::float::float;
use crate::command::sorted::Sorted;
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::database::hot::own;
use crate::database::transaction::{element_of, score_of};
use crate::model::{Collection, Scores};
use crate::resp::format_double;

/// What it costs to pick a member by its place, as bytes to go through.
const PICKED: usize = 200;

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

    /// Gives a member a score.
    fn put(&self, data: &mut Data, set: &mut Changing<Scores>, member: &[u8], given: f64) -> Result<Added, Fault> {
        let Some(old) = set.get(data, member)? else {
            if self.only_known {
                return Ok(Added::Nothing);
            }
            set.put(data, member, given);
            return Ok(Added::New(given));
        };
        if self.only_new {
            return Ok(Added::Nothing);
        }
        let new = if self.adds_to_score { old + given } else { given };
        if new.is_nan() {
            return Err("ERR resulting score is not a number (NaN)".into());
        }
        if (self.only_less && new >= old) || (self.only_greater && new <= old) {
            return Ok(Added::Nothing);
        }
        if new == old {
            return Ok(Added::Same(new));
        }
        set.put(data, member, new);
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
    let mut set = Changing::<Scores>::read(data, args[1])?;
    let (mut new, mut changed, mut last) = (0, 0, Reply::Null);
    for (given, member) in pairs {
        let score = match options.put(data, &mut set, member, given)? {
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
    set.write(data)?;
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
    let score = data.one::<Scores>(args[1], args[2])?;
    Ok(score.map_or(Reply::Null, Reply::Double))
}

pub(super) fn zmscore(data: &mut Data, args: Args) -> Outcome {
    let scores = data.several::<Scores>(args[1], &args[2..])?;
    let score = |score: Option<f64>| score.map_or(Reply::Null, Reply::Double);
    Ok(Reply::Array(scores.into_iter().map(score).collect()))
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
    let set = data.sorted(args[1])?;
    Ok(match (set.place(args[2]), with_score) {
        (None, false) => Reply::Null,
        (None, true) => Reply::NullArray,
        (Some((place, score)), _) => {
            let rank = Reply::Int(counted(place, set.len()) as i64);
            match with_score {
                true => Reply::Array(vec![rank, Reply::Double(score)]),
                false => rank,
            }
        }
    })
}

pub(super) fn zrandmember(data: &mut Data, args: Args) -> Outcome {
    let Some(count) = args.get(2) else {
        let set = data.sorted(args[1])?;
        let picked = (!set.is_empty()).then(|| rand::random_range(0..set.len()));
        let member = picked.and_then(|place| set.at(place));
        return Ok(member.map(|(member, _)| member).into());
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
    let set = data.sorted(args[1])?;
    let places = count.pick(set.len())?;
    data.transaction.works(PICKED * places.len())?;
    // When all are wanted, Redis begins with the highest one.
    let members = places.into_iter().filter_map(|place| set.at(set.len() - 1 - place));
    Ok(reply(members, with_scores))
}

pub(super) fn zscan(data: &mut Data, args: Args) -> Outcome {
    let cursor = Scan::cursor(args[2])?;
    let (most, longest) = data.config.listpack_limits(Collection::SortedSet.name());
    if let Some(tree) = data.split(args[1], Collection::SortedSet)? {
        if tree.is_empty() {
            return Ok(nothing_scanned());
        }
        let is_small = tree.len() <= most && tree.iter().all(|held| held.name.len() <= longest);
        // A set that is small in Redis is answered whole and in its order, as below.
        if !is_small {
            let scan = Scan::new(cursor, &args[3..], false)?;
            return scan.reply_of_split(&tree, data.now(), |held, shown| {
                let score = score_of(args[1], element_of(args[1], held)?)?;
                shown.extend([Reply::Bulk(own(&held.name)), Reply::bulk(scanned(score, false))]);
                Ok(())
            });
        }
    }
    let set = data.collection::<Scores>(args[1])?.elements.0;
    if set.is_empty() {
        return Ok(nothing_scanned());
    }
    let scan = Scan::new(cursor, &args[3..], false)?;
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
    let mut set = Changing::<Scores>::read(data, args[1])?;
    let removed = set.remove_all(data, &args[2..])?;
    set.write(data)?;
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

/// Removes up to so many members from one end of a sorted set. They come in the order in which they
/// are removed.
pub(super) fn take(data: &mut Data, key: &[u8], count: usize, from: From) -> Result<Vec<(Bytes, f64)>, Fault> {
    let places = |set: &Sorted| match from {
        From::Lowest => 0..count.min(set.len()),
        From::Highest => set.len().saturating_sub(count)..set.len(),
    };
    data.take_members(key, places, matches!(from, From::Highest))
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
    let taken = take(data, args[1], count.unwrap_or(1), from)?.into_iter();
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

pub(super) fn zmpop(data: &mut Data, args: Args) -> Outcome {
    let taken = pop_first(data, &Pops::parse(args, From::of)?, &Look::default())?;
    Ok(taken.unwrap_or(Reply::NullArray))
}

/// What ZMPOP and BZMPOP do; `None` if there are no members.
pub(super) fn pop_first(data: &mut Data, pops: &Pops<From>, look: &Look) -> Result<Option<Reply>, Fault> {
    let taken = look.first(pops.keys, |key| take(data, key, pops.count, pops.from))?;
    let pair = |(member, score)| Reply::Array(vec![Reply::Bulk(member), Reply::Double(score)]);
    Ok(taken.map(|(key, taken)| {
        let pairs = taken.into_iter().map(pair).collect();
        Reply::Array(vec![Reply::bulk(key), Reply::Array(pairs)])
    }))
}
