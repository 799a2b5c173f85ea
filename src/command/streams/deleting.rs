//! Entries that are removed with regard to what groups have delivered: XDELEX, XACKDEL, and an
//! option of XADD and XTRIM. They are those of Redis 8.2.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::entries::delete;
use super::ids;
use super::view::Stream;
use crate::command::args::{SYNTAX, is, parse_int};
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::model::{StreamGroup, StreamId, StreamPart};

/// What it costs to look at a group, as bytes to go through.
const LOOKED_AT: usize = 100;

/// Groups of a stream, by name. A command reads them once, not for each entry.
type Groups = Vec<(Bytes, StreamGroup)>;

/// What becomes of an entry that groups have delivered and that is not acknowledged, or that they
/// have still to deliver.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum References {
    /// The entry goes. It stays pending.
    Keep,
    /// The entry goes, and is no longer pending.
    Delete,
    /// The entry stays until all groups have delivered it and nobody has to acknowledge it.
    Acked,
}

impl References {
    pub fn parse(word: &[u8]) -> Option<References> {
        const WORDS: [(&str, References); 3] = [
            ("keepref", References::Keep),
            ("delref", References::Delete),
            ("acked", References::Acked),
        ];
        let found = WORDS.into_iter().find(|(option, _)| is(word, option));
        found.map(|(_, references)| references)
    }

    /// The groups that [`References::release`] has to look at.
    pub fn groups(self, data: &mut Data, stream: &Stream) -> Result<Groups, Fault> {
        if self == References::Keep {
            return Ok(Groups::new());
        }
        let groups = stream.groups()?;
        data.transaction.works(groups.len() * LOOKED_AT)?;
        Ok(groups)
    }

    /// Does what is to be done before an entry is removed. Returns whether it may be removed.
    pub fn release(
        self,
        data: &mut Data,
        stream: &Stream,
        (groups, id): (&[(Bytes, StreamGroup)], StreamId),
    ) -> Result<bool, Fault> {
        match self {
            References::Keep => Ok(true),
            References::Delete => {
                forget(data, stream, groups, id)?;
                Ok(true)
            }
            References::Acked => Ok(!is_referenced(data, stream, groups, id)?),
        }
    }
}

/// The entry is pending in no group any more.
fn forget(data: &mut Data, stream: &Stream, groups: &[(Bytes, StreamGroup)], id: StreamId) -> Result<(), Fault> {
    for (name, _) in groups {
        data.transaction.works(LOOKED_AT)?;
        if stream.pending_to_change(data, name, id)?.is_some() {
            stream.put(data, &StreamPart::Pending(name, id), None)?;
        }
    }
    Ok(())
}

/// True if a group has not delivered the entry yet, or not heard that it was handled.
fn is_referenced(
    data: &mut Data,
    stream: &Stream,
    groups: &[(Bytes, StreamGroup)],
    id: StreamId,
) -> Result<bool, Fault> {
    for (name, group) in groups {
        data.transaction.works(LOOKED_AT)?;
        if group.last < id || stream.pending_to_change(data, name, id)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What became of an entry, as it is answered.
const MISSING: i64 = -1;
const REMOVED: i64 = 1;
const REFERENCED: i64 = 2;

/// The arguments of XDELEX and XACKDEL from the first option on.
fn parse(options: Args) -> Result<(References, Vec<StreamId>), Fault> {
    let (mut references, mut named) = (None, None);
    let mut rest = options.iter();
    while let Some(word) = rest.next() {
        if let Some(found) = References::parse(word) {
            if references.replace(found).is_some() {
                return Err(SYNTAX.into());
            }
        } else if is(word, "ids") && named.is_none() {
            let count = rest.next().ok_or(SYNTAX)?;
            let count = parse_int(count).and_then(|count| usize::try_from(count).ok());
            let count = count.filter(|count| *count > 0);
            let count = count.ok_or("ERR Number of IDs must be a positive integer")?;
            let (of_them, others) = rest
                .as_slice()
                .split_at_checked(count)
                .ok_or("ERR The `numids` parameter must match the number of arguments")?;
            named = Some(of_them);
            rest = others.iter();
        } else {
            return Err(SYNTAX.into());
        }
    }
    let ids = named.ok_or(SYNTAX)?.iter().map(|id| ids::strict(id, 0));
    Ok((references.unwrap_or(References::Keep), ids.collect::<Result<_, _>>()?))
}

fn reply(outcomes: Vec<i64>) -> Outcome {
    Ok(Reply::Array(outcomes.into_iter().map(Reply::Int).collect()))
}

pub(super) fn xdelex(data: &mut Data, args: Args) -> Outcome {
    let (references, ids) = parse(&args[2..])?;
    let Some(mut stream) = Stream::change(data, args[1])? else {
        return reply(vec![MISSING; ids.len()]);
    };
    let groups = references.groups(data, &stream)?;
    let (mut outcomes, mut removed) = (Vec::with_capacity(ids.len()), BTreeSet::new());
    for id in ids {
        let found = stream.rest_on(data, &StreamPart::Entry(id))?;
        let is_there = found.is_some() && !removed.contains(&id);
        // References of an entry that has gone before are removed, too.
        let releases = is_there || references == References::Delete;
        let may_go = releases && references.release(data, &stream, (&groups, id))?;
        outcomes.push(match (is_there, may_go) {
            (false, _) => MISSING,
            (true, false) => REFERENCED,
            (true, true) => REMOVED,
        });
        if is_there && may_go {
            removed.insert(id);
        }
    }
    delete(data, &mut stream, &removed)?;
    reply(outcomes)
}

pub(super) fn xackdel(data: &mut Data, args: Args) -> Outcome {
    let (references, ids) = parse(&args[3..])?;
    let group = args[2];
    let mut stream = match Stream::change(data, args[1])? {
        Some(stream) if stream.has_group(data, group)? => stream,
        _ => return reply(vec![MISSING; ids.len()]),
    };
    let groups = references.groups(data, &stream)?;
    let (mut outcomes, mut removed) = (Vec::with_capacity(ids.len()), BTreeSet::new());
    for id in ids {
        if stream.pending_to_change(data, group, id)?.is_none() {
            outcomes.push(MISSING);
            continue;
        }
        stream.put(data, &StreamPart::Pending(group, id), None)?;
        let may_go = references.release(data, &stream, (&groups, id))?;
        outcomes.push(if may_go { REMOVED } else { REFERENCED });
        if may_go {
            removed.insert(id);
        }
    }
    delete(data, &mut stream, &removed)?;
    reply(outcomes)
}
