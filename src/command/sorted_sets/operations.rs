//! Operations on several sets: unions, intersections and differences. Plain sets are taken as well:
//! each of their members has the score 1.

use super::{reply, store};
use crate::command::args::{SYNTAX, int, is, parse_int};
use crate::command::float;
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::database::hot::own;
use crate::model::{Collection, Entry, Members, Scores};
use bytes::Bytes;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Union,
    Intersection,
    Difference,
}

/// What becomes of the result.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Show,
    Store,
    Count,
}

/// How a member's score is made from its scores in several sets.
#[derive(Clone, Copy)]
enum Aggregate {
    Sum,
    Min,
    Max,
}

impl Aggregate {
    fn of(self, one: f64, other: f64) -> f64 {
        match self {
            // The sum of two infinities may be no number.
            Aggregate::Sum => number(one + other),
            Aggregate::Min if other < one => other,
            Aggregate::Max if other > one => other,
            Aggregate::Min | Aggregate::Max => one,
        }
    }
}

/// 0 instead of what is not a number, as in Redis.
fn number(score: f64) -> f64 {
    if score.is_nan() { 0.0 } else { score }
}

/// One of the sets. It is taken apart only when its turn comes: the same large set may be named
/// many times.
struct Input {
    key: Bytes,
    /// `None`: the key is missing.
    entry: Option<Entry>,
    members: usize,
    weight: f64,
}

impl Input {
    fn read(data: &mut Data, key: &[u8]) -> Result<Self, Fault> {
        let entry = data.read(key)?;
        let members = entry.as_ref().map(|entry| match is_plain(entry) {
            true => data.len_of(key, entry, Collection::Set),
            false => data.len_of(key, entry, Collection::SortedSet),
        });
        Ok(Input {
            key: own(key),
            members: members.transpose()?.unwrap_or(0),
            entry,
            weight: 1.0,
        })
    }

    fn scores(&self, data: &mut Data) -> Result<Scores, Fault> {
        match &self.entry {
            None => Ok(Scores::default()),
            Some(entry) if is_plain(entry) => {
                let members: Members = data.elements(&self.key, entry)?;
                Ok(Scores(members.0.into_iter().map(|member| (member, 1.0)).collect()))
            }
            Some(entry) => data.elements(&self.key, entry),
        }
    }
}

fn is_plain(entry: &Entry) -> bool {
    entry.value.collection() == Some(Collection::Set)
}

struct Request {
    inputs: Vec<Input>,
    aggregate: Aggregate,
    with_scores: bool,
    /// The most that ZINTERCARD counts.
    limit: usize,
}

impl Request {
    /// Reads the sets, and then the options: `args` begins with the number of keys.
    fn parse(
        data: &mut Data,
        args: &[&[u8]],
        command: &str,
        operation: Operation,
        purpose: Purpose,
    ) -> Result<Self, Fault> {
        let count = int(args[0])?;
        if count < 1 {
            return Err(Fault::error(format!(
                "ERR at least 1 input key is needed for '{command}' command"
            )));
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let (keys, options) = args[1..].split_at_checked(count).ok_or(SYNTAX)?;
        let inputs = keys.iter().map(|key| Input::read(data, key));
        let mut request = Request {
            inputs: inputs.collect::<Result<_, _>>()?,
            aggregate: Aggregate::Sum,
            with_scores: false,
            limit: usize::MAX,
        };
        let combines = operation != Operation::Difference && purpose != Purpose::Count;
        request.parse_options(options, combines, purpose)?;
        Ok(request)
    }

    fn parse_options(&mut self, mut options: &[&[u8]], combines: bool, purpose: Purpose) -> Result<(), Fault> {
        let count = self.inputs.len();
        while let [option, behind @ ..] = options {
            options = match behind {
                _ if combines && behind.len() >= count && is(option, "weights") => {
                    let (weights, behind) = behind.split_at(count);
                    for (input, weight) in self.inputs.iter_mut().zip(weights) {
                        input.weight = float::parse_exact(weight).ok_or("ERR weight value is not a float")?;
                    }
                    behind
                }
                [word, behind @ ..] if combines && is(option, "aggregate") => {
                    self.aggregate = match () {
                        () if is(word, "sum") => Aggregate::Sum,
                        () if is(word, "min") => Aggregate::Min,
                        () if is(word, "max") => Aggregate::Max,
                        () => return Err(SYNTAX.into()),
                    };
                    behind
                }
                behind if purpose == Purpose::Show && is(option, "withscores") => {
                    self.with_scores = true;
                    behind
                }
                [limit, behind @ ..] if purpose == Purpose::Count && is(option, "limit") => {
                    let limit = parse_int(limit).and_then(|limit| usize::try_from(limit).ok());
                    let limit = limit.ok_or("ERR LIMIT can't be negative")?;
                    self.limit = if limit == 0 { usize::MAX } else { limit };
                    behind
                }
                _ => return Err(SYNTAX.into()),
            };
        }
        Ok(())
    }

    /// The result, in the order of a sorted set.
    fn compute(mut self, data: &mut Data, operation: Operation) -> Result<Scores, Fault> {
        if operation != Operation::Difference {
            // Redis begins with the smallest set. Sums of doubles depend on the order.
            self.inputs.sort_by_key(|input| input.members);
        }
        let mut result = Scores::default();
        for (index, input) in self.inputs.iter().enumerate() {
            let set = input.scores(data)?;
            match operation {
                Operation::Union => self.unite(&mut result, set, input.weight),
                _ if index == 0 => self.unite(&mut result, set, input.weight),
                Operation::Intersection => result.0.retain(|member, score| {
                    let other = set.0.get(member).map(|other| input.weight * other);
                    *score = other.map_or(*score, |other| self.aggregate.of(*score, other));
                    other.is_some()
                }),
                Operation::Difference => result.0.retain(|member, _| !set.0.contains_key(member)),
            }
            if result.0.is_empty() && operation != Operation::Union {
                break;
            }
        }
        result.sort();
        Ok(result)
    }

    /// Adds the members of a set to the result.
    fn unite(&self, result: &mut Scores, set: Scores, weight: f64) {
        for (member, score) in set.0 {
            let score = number(weight * score);
            let entry = result.0.entry(member);
            entry
                .and_modify(|known| *known = self.aggregate.of(*known, score))
                .or_insert(score);
        }
    }
}

fn show(data: &mut Data, args: Args, command: &str, operation: Operation) -> Outcome {
    let request = Request::parse(data, &args[1..], command, operation, Purpose::Show)?;
    let with_scores = request.with_scores;
    let result = request.compute(data, operation)?;
    Ok(reply(result.0.into_iter(), with_scores))
}

fn store_result(data: &mut Data, args: Args, command: &str, operation: Operation) -> Outcome {
    let request = Request::parse(data, &args[2..], command, operation, Purpose::Store)?;
    let result = request.compute(data, operation)?;
    store(data, args[1], result)
}

pub(super) fn zunion(data: &mut Data, args: Args) -> Outcome {
    show(data, args, "zunion", Operation::Union)
}

pub(super) fn zinter(data: &mut Data, args: Args) -> Outcome {
    show(data, args, "zinter", Operation::Intersection)
}

pub(super) fn zdiff(data: &mut Data, args: Args) -> Outcome {
    show(data, args, "zdiff", Operation::Difference)
}

pub(super) fn zunionstore(data: &mut Data, args: Args) -> Outcome {
    store_result(data, args, "zunionstore", Operation::Union)
}

pub(super) fn zinterstore(data: &mut Data, args: Args) -> Outcome {
    store_result(data, args, "zinterstore", Operation::Intersection)
}

pub(super) fn zdiffstore(data: &mut Data, args: Args) -> Outcome {
    store_result(data, args, "zdiffstore", Operation::Difference)
}

pub(super) fn zintercard(data: &mut Data, args: Args) -> Outcome {
    let operation = Operation::Intersection;
    let request = Request::parse(data, &args[1..], "zintercard", operation, Purpose::Count)?;
    let limit = request.limit;
    let count = request.compute(data, operation)?.0.len();
    Ok(Reply::Int(count.min(limit) as i64))
}
