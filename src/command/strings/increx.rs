//! INCREX: a counter with bounds and an expiry. <https://redis.io/docs/latest/commands/increx/>, NX
//! and XX of <https://valkey.io/commands/increx/>

use std::cmp::Ordering;
use std::fmt::Display;

use super::long_double::LongDouble;
use super::options::{Expiry, Time};
use super::set_until;
use crate::command::args::{SYNTAX, is, parse_int};
use crate::command::{Args, Data, Fault, Outcome, Reply};

/// What INCREX counts in.
trait Number: Copy + Display {
    const ZERO: Self;
    const LEAST: Self;
    const MOST: Self;
    /// How the error ends about a text that is no such number.
    const NO_NUMBER: &str;
    /// The error about a difference that is no such number.
    const TOO_FAR: &str;

    fn parse(text: &[u8]) -> Option<Self>;
    fn is_finite(self) -> bool;
    fn compare(self, other: Self) -> Ordering;
    fn plus(self, other: Self) -> Option<Self>;
    fn minus(self, other: Self) -> Option<Self>;
    fn reply(self) -> Reply;
}

impl Number for i64 {
    const ZERO: i64 = 0;
    const LEAST: i64 = i64::MIN;
    const MOST: i64 = i64::MAX;
    const NO_NUMBER: &str = "is not an integer or out of range";
    const TOO_FAR: &str = "ERR applied increment would overflow";

    fn parse(text: &[u8]) -> Option<i64> {
        parse_int(text)
    }

    fn is_finite(self) -> bool {
        true
    }

    fn compare(self, other: i64) -> Ordering {
        self.cmp(&other)
    }

    fn plus(self, other: i64) -> Option<i64> {
        self.checked_add(other)
    }

    fn minus(self, other: i64) -> Option<i64> {
        self.checked_sub(other)
    }

    fn reply(self) -> Reply {
        Reply::Int(self)
    }
}

impl Number for LongDouble {
    const ZERO: LongDouble = LongDouble::ZERO;
    const LEAST: LongDouble = LongDouble::MAX.negated();
    const MOST: LongDouble = LongDouble::MAX;
    const NO_NUMBER: &str = "is not a valid float";
    const TOO_FAR: &str = "ERR applied increment would be Infinity";

    fn parse(text: &[u8]) -> Option<LongDouble> {
        LongDouble::parse(text)
    }

    fn is_finite(self) -> bool {
        LongDouble::is_finite(&self)
    }

    fn compare(self, other: LongDouble) -> Ordering {
        self.compare(other)
    }

    fn plus(self, other: LongDouble) -> Option<LongDouble> {
        self.plus(other)
    }

    fn minus(self, other: LongDouble) -> Option<LongDouble> {
        self.plus(other.negated())
    }

    fn reply(self) -> Reply {
        Reply::Decimal(self.to_string())
    }
}

const NO_EXPIRY: &str = "ERR ENX flag requires an expiration";

struct Options<'a> {
    /// NX or XX: whether the key must exist.
    exists: Option<bool>,
    /// BYINT or BYFLOAT; true if it is the latter.
    by: Option<(bool, &'a [u8])>,
    lower: Option<&'a [u8]>,
    upper: Option<&'a [u8]>,
    saturates: bool,
    expiry: Expiry<'a>,
    /// ENX: an expiry that the key has stays.
    only_first_expiry: bool,
}

impl<'a> Options<'a> {
    /// Unlike the options of SET, none may come twice.
    fn parse(words: &[&'a [u8]]) -> Result<Self, Fault> {
        let mut options = Options {
            exists: None,
            by: None,
            lower: None,
            upper: None,
            saturates: false,
            expiry: Expiry::Unsaid,
            only_first_expiry: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let is_new = match () {
                () if is(word, "NX") || is(word, "XX") => options.exists.replace(is(word, "XX")).is_none(),
                () if is(word, "BYINT") || is(word, "BYFLOAT") => {
                    let by = (is(word, "BYFLOAT"), argument(&mut words)?);
                    options.by.replace(by).is_none()
                }
                () if is(word, "LBOUND") => options.lower.replace(argument(&mut words)?).is_none(),
                () if is(word, "UBOUND") => options.upper.replace(argument(&mut words)?).is_none(),
                () if is(word, "SATURATE") => !std::mem::replace(&mut options.saturates, true),
                () if is(word, "ENX") => !std::mem::replace(&mut options.only_first_expiry, true),
                () => {
                    let expiry = match is(word, "PERSIST") {
                        true => Expiry::Remove,
                        false => Expiry::Given(Time::parse(word, &mut words)?),
                    };
                    std::mem::replace(&mut options.expiry, expiry) == Expiry::Unsaid
                }
            };
            if !is_new {
                return Err(SYNTAX.into());
            }
        }
        match options.expiry {
            Expiry::Remove if options.only_first_expiry => Err(SYNTAX.into()),
            Expiry::Unsaid if options.only_first_expiry => Err(NO_EXPIRY.into()),
            _ => Ok(options),
        }
    }
}

fn argument<'a>(words: &mut std::slice::Iter<'_, &'a [u8]>) -> Result<&'a [u8], Fault> {
    words.next().copied().ok_or(SYNTAX.into())
}

pub fn increx(data: &mut Data, args: Args) -> Outcome {
    let options = Options::parse(&args[2..])?;
    match options.by {
        Some((true, _)) => count::<LongDouble>(data, args[1], &options),
        _ => count::<i64>(data, args[1], &options),
    }
}

/// Reads one of the numbers of a request, or the one at the key. `what` is its name for the error.
fn read<N: Number>(what: &str, text: &[u8]) -> Result<N, Fault> {
    let number = N::parse(text);
    number.ok_or_else(|| Fault::error(format!("ERR {what} {}", N::NO_NUMBER)))
}

/// Replies the number that the key has now, and what was added to it.
fn count<N: Number>(data: &mut Data, key: &[u8], options: &Options) -> Outcome {
    let by: N = read("Increment", options.by.map_or(b"1", |(_, by)| by))?;
    let lower = options.lower.map_or(Ok(N::LEAST), |lower| read("LBOUND", lower))?;
    let upper = options.upper.map_or(Ok(N::MOST), |upper| read("UBOUND", upper))?;
    if lower.compare(upper).is_gt() {
        return Err("ERR LBOUND can't be greater than UBOUND".into());
    }
    if !by.is_finite() {
        return Err("ERR BYFLOAT increment cannot be Infinity".into());
    }
    let time = options.expiry.time();
    let given = time.map(|time| time.absolute(data.now(), "increx")).transpose()?;
    let current = data.current_string(key)?;
    let old = current
        .as_ref()
        .map_or(Ok(N::ZERO), |current| read("value", &current.value))?;
    if !old.is_finite() {
        return Err("ERR value cannot be Infinity".into());
    }
    let sum = match options.exists.is_none_or(|wanted| wanted == current.is_some()) {
        true => add(old, by, [lower, upper], options.saturates)?,
        false => None,
    };
    let Some([new, added]) = sum else {
        return Ok(Reply::Array(vec![old.reply(), N::ZERO.reply()]));
    };
    let expire_at = current.and_then(|current| current.expire_at);
    let sets_expiry = match options.expiry {
        Expiry::Given(_) => !options.only_first_expiry || expire_at.is_none(),
        Expiry::Remove => expire_at.is_some(),
        Expiry::Keep | Expiry::Unsaid => false,
    };
    set_until(
        data,
        key,
        new.to_string().into(),
        if sets_expiry { given } else { expire_at },
    );
    if sets_expiry {
        data.transaction.note_new_expiry(data.database, key);
    }
    Ok(Reply::Array(vec![new.reply(), added.reply()]))
}

/// The sum, and what was added for it: less than was asked for if the sum is brought back to its
/// bounds. `None` if the sum is out of bounds.
fn add<N: Number>(old: N, by: N, bounds: [N; 2], clamps: bool) -> Result<Option<[N; 2]>, Fault> {
    let [lower, upper] = bounds;
    let sum = old.plus(by);
    let is_above = match sum {
        Some(sum) if sum.compare(upper).is_gt() => true,
        Some(sum) if sum.compare(lower).is_lt() => false,
        Some(sum) => return Ok(Some([sum, by])),
        None => by.compare(N::ZERO).is_gt(),
    };
    if !clamps {
        return Ok(None);
    }
    let bound = if is_above { upper } else { lower };
    let added = bound.minus(old).ok_or(N::TOO_FAR)?;
    Ok(Some([bound, added]))
}
