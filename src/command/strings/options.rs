//! The options of SET, MSETEX and GETEX, and times of expiry.

use super::comparison::Comparison;
use crate::command::Fault;
use crate::command::args::{SYNTAX, int, is};

/// What each command takes besides times of expiry.
const OF_SET: &[&str] = &["NX", "XX", "IFEQ", "IFNE", "IFDEQ", "IFDNE", "GET", "KEEPTTL"];
const OF_MSETEX: &[&str] = &["NX", "XX", "KEEPTTL"];
const OF_GETEX: &[&str] = &["PERSIST"];

#[derive(Debug, PartialEq)]
pub struct SetOptions<'a> {
    pub condition: Option<SetCondition<'a>>,
    /// Reply with the old value.
    pub get: bool,
    pub expiry: Expiry<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SetCondition<'a> {
    /// NX
    Missing,
    /// XX
    Exists,
    Compares(Comparison<'a>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Expiry<'a> {
    Unsaid,
    /// KEEPTTL
    Keep,
    /// PERSIST
    Remove,
    /// EX, PX, EXAT, PXAT
    Given(Time<'a>),
}

/// A time as the client gave it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Time<'a> {
    pub unit: Unit,
    pub from_now: bool,
    pub number: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unit {
    Seconds,
    Milliseconds,
}

impl<'a> SetOptions<'a> {
    pub fn of_set(words: &[&'a [u8]]) -> Result<Self, Fault> {
        Self::parse(words, OF_SET)
    }

    pub fn of_msetex(words: &[&'a [u8]]) -> Result<Self, Fault> {
        Self::parse(words, OF_MSETEX)
    }

    pub fn of_getex(words: &[&'a [u8]]) -> Result<Self, Fault> {
        Self::parse(words, OF_GETEX)
    }

    /// If an option comes twice, the last one counts. Options that contradict each other are
    /// refused.
    fn parse(words: &[&'a [u8]], known: &[&str]) -> Result<Self, Fault> {
        let mut options = SetOptions {
            condition: None,
            get: false,
            expiry: Expiry::Unsaid,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match known.iter().copied().find(|name| is(word, name)) {
                Some("NX") => options.require(SetCondition::Missing)?,
                Some("XX") => options.require(SetCondition::Exists)?,
                Some("GET") => options.get = true,
                Some("KEEPTTL") => options.expire(Expiry::Keep)?,
                Some("PERSIST") => options.expire(Expiry::Remove)?,
                Some(_) => {
                    let comparison = words.next().and_then(|argument| Comparison::parse(word, argument));
                    options.require(SetCondition::Compares(comparison.ok_or(SYNTAX)?))?;
                }
                None => options.expire(Expiry::Given(Time::parse(word, &mut words)?))?,
            }
        }
        Ok(options)
    }

    /// Whether the outcome depends on what the key holds.
    pub fn reads_the_key(&self) -> bool {
        self.get || self.condition.is_some() || self.expiry == Expiry::Keep
    }

    fn require(&mut self, condition: SetCondition<'a>) -> Result<(), Fault> {
        let fits = match (self.condition, condition) {
            (None, _) => true,
            (Some(SetCondition::Compares(old)), SetCondition::Compares(new)) => old.is_like(new),
            (Some(old), new) => old == new,
        };
        if !fits {
            return Err(SYNTAX.into());
        }
        self.condition = Some(condition);
        Ok(())
    }

    fn expire(&mut self, expiry: Expiry<'a>) -> Result<(), Fault> {
        let fits = match (self.expiry, expiry) {
            (Expiry::Unsaid, _) => true,
            (Expiry::Given(old), Expiry::Given(new)) => (old.unit, old.from_now) == (new.unit, new.from_now),
            (old, new) => old == new,
        };
        if !fits {
            return Err(SYNTAX.into());
        }
        self.expiry = expiry;
        Ok(())
    }
}

impl<'a> Expiry<'a> {
    pub fn time(self) -> Option<Time<'a>> {
        match self {
            Expiry::Given(time) => Some(time),
            _ => None,
        }
    }
}

impl<'a> Time<'a> {
    /// Reads the time that this word begins.
    pub fn parse(word: &[u8], rest: &mut std::slice::Iter<'_, &'a [u8]>) -> Result<Self, Fault> {
        let (unit, from_now) = unit(word).ok_or(SYNTAX)?;
        let number = rest.next().ok_or(SYNTAX)?;
        Ok(Time { unit, from_now, number })
    }

    /// Milliseconds since the epoch. `command` is the name for the error.
    pub fn absolute(self, now: u64, command: &str) -> Result<u64, Fault> {
        let number = int(self.number)?;
        let milliseconds = match self.unit {
            Unit::Seconds => number.checked_mul(1000),
            Unit::Milliseconds => Some(number),
        };
        let base = if self.from_now { now as i64 } else { 0 };
        milliseconds
            .filter(|&m| m > 0)
            .and_then(|m| m.checked_add(base))
            .map(|m| m as u64)
            .ok_or_else(|| Fault::error(format!("ERR invalid expire time in '{command}' command")))
    }
}

fn unit(word: &[u8]) -> Option<(Unit, bool)> {
    let units = [
        ("EX", Unit::Seconds, true),
        ("PX", Unit::Milliseconds, true),
        ("EXAT", Unit::Seconds, false),
        ("PXAT", Unit::Milliseconds, false),
    ];
    units
        .iter()
        .find(|(name, ..)| is(word, name))
        .map(|&(_, unit, from_now)| (unit, from_now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(line: &str) -> Option<String> {
        let words: Vec<&[u8]> = line.split_whitespace().map(str::as_bytes).collect();
        let options = SetOptions::of_set(&words).ok()?;
        let expiry = match options.expiry {
            Expiry::Given(t) => format!("{:?} {} {}", t.unit, t.from_now, String::from_utf8_lossy(t.number)),
            other => format!("{other:?}"),
        };
        Some(format!("{:?} {} {expiry}", options.condition, options.get))
    }

    #[test]
    fn options_may_repeat_but_not_contradict() {
        for (line, expected) in [
            ("", Some("None false Unsaid")),
            ("nx GET", Some("Some(Missing) true Unsaid")),
            ("XX XX", Some("Some(Exists) false Unsaid")),
            ("NX XX", None),
            ("IFEQ", None),
            ("IFEQ a NX", None),
            ("XX IFNE a", None),
            ("IFEQ a IFNE b", None),
            ("IFEQ a IFDEQ b", None),
            ("EX 1 EX 2", Some("None false Seconds true 2")),
            ("EX 1 PX 2", None),
            ("EX 1 EXAT 2", None),
            ("PXAT 5 NX", Some("Some(Missing) false Milliseconds false 5")),
            ("KEEPTTL KEEPTTL", Some("None false Keep")),
            ("KEEPTTL EX 1", None),
            ("EX 1 KEEPTTL", None),
            ("EX", None),
            ("PERSIST", None),
            ("nonsense", None),
        ] {
            assert_eq!(set(line).as_deref(), expected, "{line}");
        }
        let same = |one: &[&'static str], other: &[&'static str]| {
            let options = [one, other].map(|words| words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>());
            SetOptions::of_set(&options[0]).ok() == SetOptions::of_set(&options[1]).ok()
        };
        assert!(same(&["IFEQ", "a", "IFEQ", "b"], &["ifeq", "b"]));
        assert!(same(&["IFEQ", "NX", "EX", "1"], &["EX", "1", "IFEQ", "NX"]));
        assert!(!same(&["IFEQ", "a"], &["IFNE", "a"]));
        let msetex = |word: &'static str| SetOptions::of_msetex(&[word.as_bytes()]).is_ok();
        assert!(msetex("nx") && msetex("KEEPTTL") && !msetex("GET"));
        let getex = |word: &'static str| SetOptions::of_getex(&[word.as_bytes()]).map(|o| o.expiry).ok();
        assert_eq!(getex("persist"), Some(Expiry::Remove));
        assert_eq!(getex("KEEPTTL"), None);
        assert_eq!(getex("GET"), None);
    }

    #[test]
    fn times_are_absolute_positive_and_do_not_overflow() {
        let now = 1_000_000;
        let at = |unit, from_now, number: &str| {
            Time {
                unit,
                from_now,
                number: number.as_bytes(),
            }
            .absolute(now, "set")
            .ok()
        };
        assert_eq!(at(Unit::Seconds, true, "10"), Some(1_010_000));
        assert_eq!(at(Unit::Milliseconds, true, "10"), Some(1_000_010));
        assert_eq!(at(Unit::Seconds, false, "10"), Some(10_000));
        assert_eq!(at(Unit::Milliseconds, false, "10"), Some(10));
        for number in ["0", "-1", "9223372036854775807", "9223372036854775", "x", ""] {
            assert_eq!(at(Unit::Seconds, true, number), None, "{number}");
        }
        assert_eq!(at(Unit::Milliseconds, true, "9223372036854775807"), None);
        assert_eq!(
            at(Unit::Milliseconds, false, "9223372036854775807"),
            Some(i64::MAX as u64)
        );
    }
}
