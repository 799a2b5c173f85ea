//! Commands that wait for elements: BLPOP and its like. This file has what their rows and their
//! functions need; [`blocked`](super::blocked) has how a client waits.
//!
//! Such a command takes elements as its sibling that does not wait does. Where its client can wait
//! and there are none, it is computed again when one of its keys has changed. In EXEC, and for a
//! client that cannot wait, it acts as if its timeout had passed at once.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;

use super::args::SYNTAX;
use super::float::parse_exact;
use super::{Args, Data, Fault, Outcome, Reply};
use crate::database::now_ms;
use crate::model::{Collection, StreamId};

/// How a command waits for elements.
pub struct Blocking {
    /// The type of the collections that it takes from.
    pub of: Collection,
    /// Reads the arguments. Its errors are those that come before any key is looked at.
    pub asks: for<'a> fn(Args<'a>) -> Result<Asked<'a>, Fault>,
    /// Takes elements from the first key that has some. `None`: there are none.
    pub take: fn(&mut Data<'_, '_>, Args<'_>, &Look) -> Result<Option<Reply>, Fault>,
    /// The reply if there are none and it does not wait.
    pub nothing: Reply,
}

/// What a request waits for.
pub struct Asked<'a> {
    /// The keys that it takes from.
    pub keys: Args<'a>,
    /// `None`: it waits until there is something.
    pub timeout: Option<Duration>,
    /// False for a command that does not wait, as XREAD without BLOCK.
    pub waits: bool,
}

/// How the keys are looked at.
#[derive(Default)]
pub struct Look {
    /// The command has waited. A key that holds something else is no error then.
    pub has_waited: bool,
    /// The key that has changed first; it comes before the others.
    pub ready: Option<Bytes>,
    /// The ids behind which XREAD reads, once they are found: `$` is the last one when the command
    /// came.
    pub resolved: Resolved,
}

/// See [`Look::resolved`].
pub type Resolved = Arc<OnceLock<Vec<StreamId>>>;

/// A key, and what was taken from it.
type Taken<'k, T> = (&'k [u8], Vec<T>);

impl Blocking {
    /// Whether a request waits if there are none.
    pub fn waits(&self, args: Args<'_>) -> bool {
        (self.asks)(args).is_ok_and(|asked| asked.waits)
    }

    /// Takes elements if there are some.
    pub fn at_once(&self, data: &mut Data<'_, '_>, args: Args<'_>) -> Outcome {
        (self.asks)(args)?;
        let taken = (self.take)(data, args, &Look::default())?;
        Ok(taken.unwrap_or_else(|| self.nothing.clone()))
    }
}

impl Look {
    /// Whether a key with this error counts as one without elements: it may be replaced by a
    /// collection.
    pub fn passes_over(&self, fault: &Fault) -> bool {
        self.has_waited && fault.is_about_value()
    }

    /// Takes elements from the first of these keys that has some. `take` returns an empty list if a
    /// key has none.
    pub fn first<'k, T>(
        &self,
        keys: Args<'k>,
        mut take: impl FnMut(&[u8]) -> Result<Vec<T>, Fault>,
    ) -> Result<Option<Taken<'k, T>>, Fault> {
        let ready = keys
            .iter()
            .filter(|key| self.ready.as_ref().is_some_and(|ready| ready == *key));
        for key in ready.take(1).chain(keys) {
            match take(key) {
                Ok(taken) if taken.is_empty() => {}
                Ok(taken) => return Ok(Some((key, taken))),
                Err(fault) if self.passes_over(&fault) => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(None)
    }
}

/// A timeout in seconds. 0: as long as it takes.
pub fn timeout(argument: &[u8]) -> Result<Option<Duration>, Fault> {
    const OUT_OF_RANGE: &str = "ERR timeout is out of range";
    let seconds = parse_exact(argument).ok_or("ERR timeout is not a float or out of range")?;
    let milliseconds = (seconds * 1_000.0).ceil();
    if milliseconds >= i64::MAX as f64 {
        return Err(OUT_OF_RANGE.into());
    }
    // What is lower becomes the lowest number there is.
    let milliseconds = milliseconds as i64;
    match u64::try_from(milliseconds) {
        Err(_) => Err("ERR timeout is negative".into()),
        Ok(0) => Ok(None),
        Ok(more) if more > i64::MAX as u64 - now_ms() => Err(OUT_OF_RANGE.into()),
        Ok(more) => Ok(Some(Duration::from_millis(more))),
    }
}

/// `key [key ...] timeout`, as BLPOP and BZPOPMIN have it.
pub fn keys_and_timeout<'a>(args: Args<'a>) -> Result<Asked<'a>, Fault> {
    let [_, keys @ .., last] = args else {
        return Err(SYNTAX.into());
    };
    Ok(Asked {
        keys,
        timeout: timeout(last)?,
        waits: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_seconds_and_are_rounded_up() {
        let read = |argument: &str| match timeout(argument.as_bytes()) {
            Ok(timeout) => Ok(timeout),
            Err(Fault::Error(text)) => Err(String::from_utf8_lossy(&text).into_owned()),
            Err(Fault::Wait(_)) => panic!("it waits"),
        };
        let milliseconds = |ms| Ok(Some(Duration::from_millis(ms)));
        assert_eq!(read("0"), Ok(None));
        assert_eq!(read("-0.0001"), Ok(None));
        for (argument, ms) in [
            ("1", 1_000),
            ("0.001", 1),
            ("1e-10", 1),
            ("0x10", 16_000),
            ("2.5", 2_500),
        ] {
            assert_eq!(read(argument), milliseconds(ms), "{argument}");
        }
        for (argument, error) in [
            ("", "ERR timeout is not a float or out of range"),
            ("nan", "ERR timeout is not a float or out of range"),
            ("1 ", "ERR timeout is not a float or out of range"),
            ("-1", "ERR timeout is negative"),
            ("-inf", "ERR timeout is negative"),
            ("inf", "ERR timeout is out of range"),
            ("1e300", "ERR timeout is out of range"),
            ("9223372036854774", "ERR timeout is out of range"),
        ] {
            assert_eq!(read(argument), Err(error.to_owned()), "{argument}");
        }
    }
}
