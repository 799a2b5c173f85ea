//! When a key expires: EXPIRE and its variants, PERSIST, TTL and its variants.

use crate::command::args::{int, is};
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::model::{Entry, State};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Seconds,
    Milliseconds,
}

pub(super) fn expire(data: &mut Data, args: Args) -> Outcome {
    let now = data.now();
    set_expiry(data, args, "expire", Unit::Seconds, now)
}

pub(super) fn pexpire(data: &mut Data, args: Args) -> Outcome {
    let now = data.now();
    set_expiry(data, args, "pexpire", Unit::Milliseconds, now)
}

pub(super) fn expireat(data: &mut Data, args: Args) -> Outcome {
    set_expiry(data, args, "expireat", Unit::Seconds, 0)
}

pub(super) fn pexpireat(data: &mut Data, args: Args) -> Outcome {
    set_expiry(data, args, "pexpireat", Unit::Milliseconds, 0)
}

/// The EXPIRE family. The argument counts from the time `base`.
fn set_expiry(data: &mut Data, args: Args, name: &str, unit: Unit, base: u64) -> Outcome {
    let condition = ExpiryCondition::parse(&args[3..])?;
    let when = expiry_time(int(args[2])?, unit, base)
        .ok_or_else(|| Fault::error(format!("ERR invalid expire time in '{name}' command")))?;
    let Some(entry) = data.get(args[1])? else {
        return Ok(Reply::Int(0));
    };
    if !condition.allows(entry.meta.expire_at, when) {
        return Ok(Reply::Int(0));
    }
    match u64::try_from(when).ok().filter(|at| *at > data.now()) {
        Some(at) => data.put(args[1], until(entry, Some(at))?),
        None => data.delete(args[1]),
    }
    Ok(Reply::Int(1))
}

/// The time of expiry, in milliseconds since the epoch. `None` if it is out of range.
fn expiry_time(argument: i64, unit: Unit, base: u64) -> Option<i64> {
    let milliseconds = match unit {
        Unit::Seconds => argument.checked_mul(1000)?,
        Unit::Milliseconds => argument,
    };
    milliseconds.checked_add(i64::try_from(base).ok()?)
}

/// NX, XX, GT and LT of the EXPIRE family.
#[derive(Default)]
struct ExpiryCondition {
    no_expiry: bool,
    some_expiry: bool,
    later: bool,
    earlier: bool,
}

impl ExpiryCondition {
    fn parse(options: Args) -> Result<Self, Fault> {
        let mut condition = ExpiryCondition::default();
        for option in options {
            match () {
                _ if is(option, "nx") => condition.no_expiry = true,
                _ if is(option, "xx") => condition.some_expiry = true,
                _ if is(option, "gt") => condition.later = true,
                _ if is(option, "lt") => condition.earlier = true,
                _ => {
                    // As in Redis, the error shows the option up to a NUL.
                    let told = option.split(|byte| *byte == 0).next().unwrap_or_default();
                    return Err(Fault::error([b"ERR Unsupported option ", told].concat()));
                }
            }
        }
        if condition.no_expiry && (condition.some_expiry || condition.later || condition.earlier) {
            return Err("ERR NX and XX, GT or LT options at the same time are not compatible".into());
        }
        if condition.later && condition.earlier {
            return Err("ERR GT and LT options at the same time are not compatible".into());
        }
        Ok(condition)
    }

    /// No expiry counts as later than any expiry.
    fn allows(&self, current: Option<u64>, when: i64) -> bool {
        let current = current.map(signed);
        !(self.no_expiry && current.is_some()
            || self.some_expiry && current.is_none()
            || self.later && current.is_none_or(|at| when <= at)
            || self.earlier && current.is_some_and(|at| when >= at))
    }
}

/// A foreign producer may have written an expiry beyond the range of a reply.
pub(super) fn signed(milliseconds: u64) -> i64 {
    i64::try_from(milliseconds).unwrap_or(i64::MAX)
}

/// The state with another expiry.
fn until(entry: Entry, expire_at: Option<u64>) -> Result<State, Fault> {
    let State { value, .. } = entry.state()?;
    Ok(State { value, expire_at })
}

pub(super) fn persist(data: &mut Data, args: Args) -> Outcome {
    match data.get(args[1])? {
        Some(entry) if entry.meta.expire_at.is_some() => {
            data.put(args[1], until(entry, None)?);
            Ok(Reply::Int(1))
        }
        _ => Ok(Reply::Int(0)),
    }
}

pub(super) fn ttl(data: &mut Data, args: Args) -> Outcome {
    let now = signed(data.now());
    tell_expiry(data, args, |at| rounded_seconds(at - now))
}

pub(super) fn pttl(data: &mut Data, args: Args) -> Outcome {
    let now = signed(data.now());
    tell_expiry(data, args, |at| at - now)
}

pub(super) fn expiretime(data: &mut Data, args: Args) -> Outcome {
    tell_expiry(data, args, rounded_seconds)
}

pub(super) fn pexpiretime(data: &mut Data, args: Args) -> Outcome {
    tell_expiry(data, args, |at| at)
}

fn tell_expiry(data: &mut Data, args: Args, tell: impl Fn(i64) -> i64) -> Outcome {
    Ok(Reply::Int(match data.get(args[1])? {
        None => -2,
        Some(entry) => entry.meta.expire_at.map_or(-1, |at| tell(signed(at))),
    }))
}

fn rounded_seconds(milliseconds: i64) -> i64 {
    milliseconds.saturating_add(500) / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_times_that_cannot_be_told_are_refused() {
        let now = 1_700_000_000_000;
        assert_eq!(expiry_time(10, Unit::Seconds, now), Some(1_700_000_010_000));
        assert_eq!(expiry_time(-10, Unit::Milliseconds, 0), Some(-10));
        assert_eq!(
            expiry_time(i64::MAX / 1000, Unit::Seconds, 0),
            Some(i64::MAX / 1000 * 1000)
        );
        assert_eq!(expiry_time(i64::MAX / 1000 + 1, Unit::Seconds, 0), None);
        assert_eq!(expiry_time(i64::MIN, Unit::Seconds, now), None);
        assert_eq!(expiry_time(i64::MAX, Unit::Milliseconds, now), None);
        assert!(expiry_time(i64::MIN, Unit::Milliseconds, now).is_some());
    }

    #[test]
    fn conditions_compare_with_the_expiry_there_is() {
        let parse = |options: &[&'static str]| {
            let options: Vec<&[u8]> = options.iter().map(|o| o.as_bytes()).collect();
            ExpiryCondition::parse(&options)
        };
        for (options, current, when, allowed) in [
            (&[][..], None, 5, true),
            (&["nx"], None, 5, true),
            (&["NX"], Some(9), 5, false),
            (&["xx"], None, 5, false),
            (&["xx"], Some(9), 5, true),
            (&["gt"], None, 5, false),
            (&["gt"], Some(5), 5, false),
            (&["gt"], Some(4), 5, true),
            (&["lt"], None, 5, true),
            (&["lt"], Some(5), 5, false),
            (&["lt"], Some(6), 5, true),
            (&["xx", "lt"], None, 5, false),
            (&["gt"], Some(u64::MAX), i64::MAX, false),
        ] {
            let condition = parse(options).unwrap_or_else(|_| panic!("{options:?}"));
            assert_eq!(condition.allows(current, when), allowed, "{options:?} {current:?}");
        }
        for refused in [&["nx", "xx"][..], &["nx", "gt"], &["lt", "nx"], &["gt", "lt"], &["no"]] {
            assert!(parse(refused).is_err(), "{refused:?}");
        }
    }
}
