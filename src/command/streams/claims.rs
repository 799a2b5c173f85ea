//! Entries that another consumer takes over: XCLAIM, XAUTOCLAIM.

use super::groups::{as_c_text, no_key_or_group, note_seen};
use super::ids;
use super::view::{Stream, show_entry, show_id};
use crate::command::args::{SYNTAX, is, parse_int};
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::database::hot::own;
use crate::model::{StreamEntry, StreamId, StreamPart, StreamPending};

/// XAUTOCLAIM looks at so many entries for each that it may claim.
const ATTEMPTS: usize = 10;

struct Claim<'a> {
    group: &'a [u8],
    consumer: &'a [u8],
    /// Of entries that have been with their consumer for less long, nothing is taken.
    idle: u64,
    /// When they count as delivered; milliseconds since the epoch.
    delivered: u64,
    count: Option<u64>,
    /// Also what is not pending.
    force: bool,
    /// Only ids are answered, and the delivery is not counted.
    just_id: bool,
}

/// What became of an entry.
enum Claimed {
    Taken(Reply),
    /// It is in the stream no longer, so it is no longer pending.
    Deleted,
    Nothing,
}

impl<'a> Claim<'a> {
    fn new(args: Args<'a>, idle: u64, now: u64) -> Self {
        Claim {
            group: args[2],
            consumer: args[3],
            idle,
            delivered: now,
            count: None,
            force: false,
            just_id: false,
        }
    }

    fn take(&self, data: &mut Data, stream: &Stream, id: StreamId) -> Result<Claimed, Fault> {
        let (part, entry) = (StreamPart::Pending(self.group, id), StreamPart::Entry(id));
        let pending = stream.pending_to_change(data, self.group, id)?;
        let Some(element) = stream.rest_on(data, &entry)? else {
            if pending.is_none() {
                return Ok(Claimed::Nothing);
            }
            stream.put(data, &part, None)?;
            return Ok(Claimed::Deleted);
        };
        let before = match pending {
            Some(pending) if data.now().saturating_sub(pending.delivered) < self.idle => return Ok(Claimed::Nothing),
            Some(pending) => pending.count,
            None if self.force => {
                // XGROUP DESTROY on another node does not know this pending entry and would leave
                // it behind. It rests on the group, so that is written too, as it is.
                let Some(group) = stream.group_to_change(data, self.group)? else {
                    return Ok(Claimed::Nothing);
                };
                stream.put(data, &StreamPart::Group(self.group), Some(group.element()))?;
                1
            }
            None => return Ok(Claimed::Nothing),
        };
        let count = match self.count {
            Some(count) => count,
            None => before.saturating_add(u64::from(!self.just_id)),
        };
        let pending = StreamPending {
            delivered: self.delivered,
            count,
            consumer: own(self.consumer),
        };
        stream.put(data, &part, Some(pending.element()))?;
        if self.just_id {
            return Ok(Claimed::Taken(show_id(id)));
        }
        let entry = StreamEntry::of(&element);
        let entry = entry.map_err(|problem| Fault::unreadable_element(stream.key, problem))?;
        Ok(Claimed::Taken(show_entry(data, id, entry)?))
    }
}

/// A number of an option of XCLAIM, which an error names.
fn number(argument: &[u8], what: &str) -> Result<i64, Fault> {
    parse_int(argument).ok_or_else(|| Fault::error(format!("ERR Invalid {what} argument for XCLAIM")))
}

pub(super) fn xclaim(data: &mut Data, args: Args) -> Outcome {
    let (key, group) = (args[1], args[2]);
    let stream = match Stream::change(data, key)? {
        Some(stream) if stream.has_group(data, group)? => stream,
        _ => return Err(no_key_or_group(key, group, b"")),
    };
    let now = data.now();
    let idle = u64::try_from(number(args[4], "min-idle-time")?).unwrap_or(0);
    let mut claim = Claim::new(args, idle, now);
    let ids: Vec<StreamId> = args[5..].iter().map_while(|id| ids::parse(id, 0)).collect();
    let last = claim.read_options(&args[5 + ids.len()..], now)?;
    if let Some(mut group) = stream.group(claim.group)?.filter(|group| group.last < last) {
        stream.group_to_change(data, claim.group)?;
        group.last = last;
        stream.put(data, &StreamPart::Group(claim.group), Some(group.element()))?;
    }
    let mut taken = Vec::new();
    for id in ids {
        if let Claimed::Taken(reply) = claim.take(data, &stream, id)? {
            taken.push(reply);
        }
    }
    note_seen(data, &stream, (claim.group, claim.consumer), !taken.is_empty())?;
    Ok(Reply::Array(taken))
}

impl Claim<'_> {
    /// Reads what follows the ids of XCLAIM. Returns LASTID.
    fn read_options(&mut self, options: Args, now: u64) -> Result<StreamId, Fault> {
        let mut last = StreamId::MIN;
        // A time in the future, or before the epoch, is no time: then it is the present.
        let time = |at: i64| u64::try_from(at).ok().filter(|at| *at <= now).unwrap_or(now);
        let mut options = options.iter();
        while let Some(option) = options.next() {
            let value = options.as_slice().first();
            match value {
                _ if is(option, "force") => {
                    self.force = true;
                    continue;
                }
                _ if is(option, "justid") => {
                    self.just_id = true;
                    continue;
                }
                Some(value) if is(option, "idle") => {
                    self.delivered = time((now as i64).wrapping_sub(number(value, "IDLE option")?));
                }
                Some(value) if is(option, "time") => self.delivered = time(number(value, "TIME option")?),
                Some(value) if is(option, "retrycount") => {
                    // A negative one counts as none.
                    self.count = u64::try_from(number(value, "RETRYCOUNT option")?).ok();
                }
                Some(value) if is(option, "lastid") => last = ids::strict(value, 0)?,
                _ => {
                    let option = as_c_text(option);
                    return Err(Fault::error(
                        [b"ERR Unrecognized XCLAIM option '", option, b"'"].concat(),
                    ));
                }
            }
            options.next();
        }
        Ok(last)
    }
}

pub(super) fn xautoclaim(data: &mut Data, args: Args) -> Outcome {
    let idle = parse_int(args[4]).ok_or("ERR Invalid min-idle-time argument for XAUTOCLAIM")?;
    let first = ids::start(args[5])?;
    let mut claim = Claim::new(args, u64::try_from(idle).unwrap_or(0), data.now());
    let mut count = 100;
    let mut options = args[6..].iter();
    while let Some(option) = options.next() {
        match options.as_slice().first() {
            Some(value) if is(option, "count") => {
                const MOST: i64 = i64::MAX / 16;
                const WRONG: &str = "ERR COUNT must be > 0";
                let wanted = parse_int(value).filter(|wanted| (1..=MOST).contains(wanted));
                let wanted = wanted.ok_or(WRONG)?;
                count = usize::try_from(wanted).unwrap_or(usize::MAX);
                options.next();
            }
            _ if is(option, "justid") => claim.just_id = true,
            _ => return Err(SYNTAX.into()),
        }
    }
    let (key, group) = (args[1], args[2]);
    let stream = match Stream::change(data, key)? {
        Some(stream) if stream.has_group(data, group)? => stream,
        _ => return Err(no_key_or_group(key, group, b"")),
    };
    let (mut taken, mut deleted) = (Vec::new(), Vec::new());
    let places = stream.pending_places(group, first, StreamId::MAX)?;
    let looked_at = places.len().min(count.saturating_mul(ATTEMPTS));
    let mut next = places.start;
    for place in places.clone().take(looked_at) {
        if taken.len() + deleted.len() >= count {
            break;
        }
        next = place + 1;
        data.transaction.works(size_of::<StreamPending>())?;
        let id = stream.pending_at(place)?.id;
        match claim.take(data, &stream, id)? {
            Claimed::Taken(reply) => taken.push(reply),
            Claimed::Deleted => deleted.push(show_id(id)),
            Claimed::Nothing => {}
        }
    }
    let cursor = match next < places.end {
        true => stream.pending_at(next)?.id,
        false => StreamId::MIN,
    };
    if taken.is_empty() && deleted.is_empty() {
        stream.depend_on_all(data)?;
    }
    note_seen(data, &stream, (group, claim.consumer), !taken.is_empty())?;
    Ok(Reply::Array(vec![
        show_id(cursor),
        Reply::Array(taken),
        Reply::Array(deleted),
    ]))
}
