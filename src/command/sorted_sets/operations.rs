//! Operations on several sets: unions, intersections and differences. Plain sets are taken as well:
//! each of their members has the score 1.

use bytes::Bytes;

use super::{reply, store};
use crate::command::args::{SYNTAX, int, is, parse_int};
use crate::command::float;
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::model::{Collection, Members, Scores, Value};

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

struct Input {
    set: Scores,
    weight: f64,
}

struct Request {
    inputs: Vec<Input>,
    aggregate: Aggregate,
    with_scores: bool,
    /// ZINTERCARD counts no further than this.
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
        let inputs = keys.iter().map(|key| input(data, key));
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
    fn compute(mut self, operation: Operation) -> Scores {
        if operation != Operation::Difference {
            // Redis begins with the smallest set. Sums of doubles depend on the order.
            self.inputs.sort_by_key(|input| input.set.0.len());
        }
        let mut result = match operation {
            Operation::Union => self.union(),
            Operation::Intersection => Scores(self.intersection().collect()),
            Operation::Difference => self.difference(),
        };
        result.sort();
        result
    }

    fn union(self) -> Scores {
        let mut result = Scores::default();
        for Input { set, weight } in self.inputs {
            for (member, score) in set.0 {
                let score = number(weight * score);
                let known = result.0.entry(member);
                known
                    .and_modify(|known| *known = self.aggregate.of(*known, score))
                    .or_insert(score);
            }
        }
        result
    }

    /// The members that all sets have; the smallest set is the first one.
    fn intersection(&self) -> impl Iterator<Item = (Bytes, f64)> {
        let (first, others) = self.inputs.split_first().expect("there is at least one set");
        first.set.0.iter().filter_map(move |(member, score)| {
            let mut result = number(first.weight * score);
            for other in others {
                result = self.aggregate.of(result, other.weight * other.set.0.get(member)?);
            }
            Some((member.clone(), result))
        })
    }

    fn difference(self) -> Scores {
        let mut inputs = self.inputs.into_iter();
        let mut first = inputs.next().map_or_else(Scores::default, |input| input.set);
        for other in inputs {
            first.0.retain(|member, _| !other.set.0.contains_key(member));
        }
        first
    }
}

/// A sorted set, or a set whose members all have the score 1.
fn input(data: &mut Data, key: &[u8]) -> Result<Input, Fault> {
    let set = match data.read(key)? {
        None => Scores::default(),
        Some(entry) => match &entry.value {
            Value::Packed(packed) if packed.of() == Collection::Set => {
                let members: Members = data.elements(&entry)?;
                Scores(members.0.into_iter().map(|member| (member, 1.0)).collect())
            }
            Value::Packed(_) | Value::String(_) | Value::Unreadable(_) => data.elements(&entry)?,
        },
    };
    Ok(Input { set, weight: 1.0 })
}

fn show(data: &mut Data, args: Args, command: &str, operation: Operation) -> Outcome {
    let request = Request::parse(data, &args[1..], command, operation, Purpose::Show)?;
    let with_scores = request.with_scores;
    let result = request.compute(operation);
    Ok(reply(result.0.into_iter(), with_scores))
}

fn store_result(data: &mut Data, args: Args, command: &str, operation: Operation) -> Outcome {
    let request = Request::parse(data, &args[2..], command, operation, Purpose::Store)?;
    store(data, args[1], request.compute(operation))
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
    let mut request = Request::parse(data, &args[1..], "zintercard", operation, Purpose::Count)?;
    request.inputs.sort_by_key(|input| input.set.0.len());
    let count = request.intersection().take(request.limit).count();
    Ok(Reply::Int(count as i64))
}
