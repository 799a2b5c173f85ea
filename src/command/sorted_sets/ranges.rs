//! Commands on ranges: ZRANGE and its older forms, ZRANGESTORE, ZCOUNT, ZREMRANGEBYSCORE and their
//! like.

use bytes::Bytes;

use super::bounds::{Bounds, By};
use super::{reply, store};
use crate::command::args::{SYNTAX, int, is};
use crate::command::sorted::Sorted;
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::model::Scores;

/// What a command fixes about the ranges that it takes.
#[derive(Clone, Copy)]
struct Form {
    /// `None`: the options say it.
    by: Option<By>,
    reverse: Option<bool>,
    takes_with_scores: bool,
}

const ANY: Form = Form {
    by: None,
    reverse: None,
    takes_with_scores: true,
};
const STORED: Form = Form {
    takes_with_scores: false,
    ..ANY
};

const fn only(by: By, reverse: bool) -> Form {
    Form {
        by: Some(by),
        reverse: Some(reverse),
        takes_with_scores: true,
    }
}

/// A range as a client asks for it.
struct Query<'a> {
    bounds: Bounds<'a>,
    /// Highest members first.
    reverse: bool,
    with_scores: bool,
    /// Members that are left out at the beginning. Negative: all of them.
    offset: i64,
    /// Most members that are wanted. Negative: no limit.
    count: i64,
}

struct Options {
    by: Option<By>,
    reverse: Option<bool>,
    with_scores: bool,
    offset: i64,
    count: i64,
}

impl Options {
    fn parse(mut options: &[&[u8]], form: Form) -> Result<Self, Fault> {
        let mut known = Options {
            by: form.by,
            reverse: form.reverse,
            with_scores: false,
            offset: 0,
            count: -1,
        };
        while let [option, behind @ ..] = options {
            options = behind;
            match behind {
                _ if form.takes_with_scores && is(option, "withscores") => known.with_scores = true,
                [offset, count, behind @ ..] if is(option, "limit") => {
                    (known.offset, known.count) = (int(offset)?, int(count)?);
                    options = behind;
                }
                _ if known.reverse.is_none() && is(option, "rev") => known.reverse = Some(true),
                _ if known.by.is_none() && is(option, "bylex") => known.by = Some(By::Name),
                _ if known.by.is_none() && is(option, "byscore") => known.by = Some(By::Score),
                _ => return Err(SYNTAX.into()),
            }
        }
        Ok(known)
    }
}

impl<'a> Query<'a> {
    /// Reads the two ends of a range and its options.
    fn parse(arguments: &[&'a [u8]], form: Form) -> Result<Self, Fault> {
        let [first, last, options @ ..] = arguments else {
            return Err(SYNTAX.into());
        };
        let options = Options::parse(options, form)?;
        let by = options.by.unwrap_or(By::Rank);
        let reverse = options.reverse.unwrap_or(false);
        if options.count != -1 && by == By::Rank {
            return Err("ERR syntax error, LIMIT is only supported in combination with either BYSCORE or BYLEX".into());
        }
        if options.with_scores && by == By::Name {
            return Err("ERR syntax error, WITHSCORES not supported in combination with BYLEX".into());
        }
        let (min, max) = match reverse && by != By::Rank {
            true => (last, first),
            false => (first, last),
        };
        Ok(Query {
            bounds: Bounds::parse(by, min, max)?,
            reverse,
            with_scores: options.with_scores,
            // A limit of -1 is allowed with ranks, and means nothing.
            offset: if by == By::Rank { 0 } else { options.offset },
            count: options.count,
        })
    }

    /// The members of the range, in the order in which they are wanted.
    fn select(&self, data: &mut Data, set: &Sorted) -> Result<Vec<(Bytes, f64)>, Fault> {
        let places = self.bounds.places(set, self.reverse);
        let skipped = usize::try_from(self.offset).unwrap_or(usize::MAX).min(places.len());
        let taken = usize::try_from(self.count).unwrap_or(usize::MAX);
        let taken = taken.min(places.len() - skipped);
        let start = match self.reverse {
            true => places.end - skipped - taken,
            false => places.start + skipped,
        };
        set.members(data, start..start + taken, self.reverse)
    }
}

fn answer(data: &mut Data, args: Args, form: Form) -> Outcome {
    let query = Query::parse(&args[2..], form)?;
    let set = data.sorted(args[1])?;
    Ok(reply(query.select(data, &set)?.into_iter(), query.with_scores))
}

pub(super) fn zrange(data: &mut Data, args: Args) -> Outcome {
    answer(data, args, ANY)
}

pub(super) fn zrangebylex(data: &mut Data, args: Args) -> Outcome {
    answer(data, args, only(By::Name, false))
}

pub(super) fn zrangebyscore(data: &mut Data, args: Args) -> Outcome {
    answer(data, args, only(By::Score, false))
}

pub(super) fn zrevrange(data: &mut Data, args: Args) -> Outcome {
    answer(data, args, only(By::Rank, true))
}

pub(super) fn zrevrangebylex(data: &mut Data, args: Args) -> Outcome {
    answer(data, args, only(By::Name, true))
}

pub(super) fn zrevrangebyscore(data: &mut Data, args: Args) -> Outcome {
    answer(data, args, only(By::Score, true))
}

pub(super) fn zrangestore(data: &mut Data, args: Args) -> Outcome {
    let query = Query::parse(&args[3..], STORED)?;
    let selected = match data.read(args[2])? {
        Some(entry) => {
            let set = data.sorted_of(args[2], &entry)?;
            query.select(data, &set)?
        }
        None => Vec::new(),
    };
    let mut selected = Scores(selected.into_iter().collect());
    selected.sort();
    store(data, args[1], selected)
}

fn count(data: &mut Data, args: Args, by: By) -> Outcome {
    let bounds = Bounds::parse(by, args[2], args[3])?;
    let set = data.sorted(args[1])?;
    Ok(Reply::Int(bounds.places(&set, false).len() as i64))
}

pub(super) fn zcount(data: &mut Data, args: Args) -> Outcome {
    count(data, args, By::Score)
}

pub(super) fn zlexcount(data: &mut Data, args: Args) -> Outcome {
    count(data, args, By::Name)
}

fn remove(data: &mut Data, args: Args, by: By) -> Outcome {
    let bounds = Bounds::parse(by, args[2], args[3])?;
    let removed = data.take_members(args[1], |set| bounds.places(set, false), false)?;
    Ok(Reply::Int(removed.len() as i64))
}

pub(super) fn zremrangebylex(data: &mut Data, args: Args) -> Outcome {
    remove(data, args, By::Name)
}

pub(super) fn zremrangebyrank(data: &mut Data, args: Args) -> Outcome {
    remove(data, args, By::Rank)
}

pub(super) fn zremrangebyscore(data: &mut Data, args: Args) -> Outcome {
    remove(data, args, By::Score)
}
