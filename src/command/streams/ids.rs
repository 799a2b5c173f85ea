//! Ids of entries as clients write them.

use crate::command::Fault;
use crate::model::StreamId;

const INVALID: &str = "ERR Invalid stream ID specified as stream command argument";
/// Longer arguments are no ids.
const LONGEST: usize = 127;

/// An id that XADD is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewId {
    /// `*`: the next one, at the present time.
    Auto,
    /// `ms-*`: the next one with this time.
    AutoSeq(u64),
    Given(StreamId),
}

/// An id; `-` and `+` are none. Without the second part it has this one.
pub fn strict(argument: &[u8], missing: u64) -> Result<StreamId, Fault> {
    match parse(argument, missing) {
        Some(id) => Ok(id),
        None => Err(INVALID.into()),
    }
}

/// As [`strict`], but `-` is the lowest id and `+` the highest one.
pub fn loose(argument: &[u8], missing: u64) -> Result<StreamId, Fault> {
    match argument {
        b"-" => Ok(StreamId::MIN),
        b"+" => Ok(StreamId::MAX),
        _ => strict(argument, missing),
    }
}

/// The first id of a range; `(` excludes it.
pub fn start(argument: &[u8]) -> Result<StreamId, Fault> {
    match argument {
        [b'(', rest @ ..] if !rest.is_empty() => {
            let next = strict(rest, 0)?.next();
            next.ok_or_else(|| "ERR invalid start ID for the interval".into())
        }
        _ => loose(argument, 0),
    }
}

/// The last id of a range; `(` excludes it.
pub fn end(argument: &[u8]) -> Result<StreamId, Fault> {
    match argument {
        [b'(', rest @ ..] if !rest.is_empty() => {
            let previous = strict(rest, u64::MAX)?.previous();
            previous.ok_or_else(|| "ERR invalid end ID for the interval".into())
        }
        _ => loose(argument, u64::MAX),
    }
}

pub fn new_id(argument: &[u8]) -> Result<NewId, Fault> {
    if argument == b"*" {
        return Ok(NewId::Auto);
    }
    if argument.len() <= LONGEST
        && let Some(ms) = argument.strip_suffix(b"-*")
        && !ms.contains(&b'-')
    {
        return number(ms).map(NewId::AutoSeq).ok_or_else(|| INVALID.into());
    }
    strict(argument, 0).map(NewId::Given)
}

pub fn parse(argument: &[u8], missing: u64) -> Option<StreamId> {
    if argument.len() > LONGEST {
        return None;
    }
    // What follows a zero byte does not count, as in Redis.
    let argument = argument.split(|byte| *byte == 0).next()?;
    let mut parts = argument.splitn(2, |byte| *byte == b'-');
    let ms = number(parts.next()?)?;
    let seq = match parts.next() {
        Some(seq) => number(seq)?,
        None => missing,
    };
    Some(StreamId { ms, seq })
}

/// A number of 64 bits, as the C library reads it: it may follow spaces and a sign, and have
/// leading zeros.
fn number(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii_start();
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let is_plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let number: u64 = std::str::from_utf8(digits).ok().filter(|_| is_plain)?.parse().ok()?;
    match negative {
        true if digits[0] != b'0' => None,
        true => Some(number.wrapping_neg()),
        false => Some(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read() {
        let id = |ms, seq| Some(StreamId { ms, seq });
        for (text, expected) in [
            ("1-2", id(1, 2)),
            ("1", id(1, 9)),
            ("0-0", id(0, 0)),
            ("18446744073709551615-18446744073709551615", Some(StreamId::MAX)),
            ("18446744073709551616", None),
            ("01-002", id(1, 2)),
            ("1-\0x", None),
            ("1-2\0x", id(1, 2)),
            ("", None),
            ("-", None),
            ("+", None),
            ("1-", None),
            ("-1", None),
            ("1-2-3", None),
            ("1--2", None),
            ("1-*", None),
            ("x", None),
        ] {
            assert_eq!(parse(text.as_bytes(), 9), expected, "{text:?}");
        }
        assert_eq!(parse(&[b'1'; 128], 0), None);
    }

    #[test]
    fn new_ids_may_be_found() {
        let read = |text: &str| new_id(text.as_bytes()).ok();
        assert_eq!(read("*"), Some(NewId::Auto));
        assert_eq!(read("5-*"), Some(NewId::AutoSeq(5)));
        assert_eq!(read("5"), Some(NewId::Given(StreamId { ms: 5, seq: 0 })));
        for wrong in ["-*", "5-*-*", "5-x", "+", "5*"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ends_of_ranges_can_be_excluded() {
        let at = |ms, seq| Ok(StreamId { ms, seq });
        let text = |read: Result<StreamId, Fault>| read.map_err(|_| ());
        assert_eq!(text(start(b"(1-2")), at(1, 3));
        assert_eq!(text(end(b"(2")), at(2, u64::MAX - 1));
        assert_eq!(text(end(b"(2-0")), at(1, u64::MAX));
        assert_eq!(text(end(b"2")), at(2, u64::MAX));
        for wrong in [
            start(b"(18446744073709551615-18446744073709551615"),
            end(b"(0-0"),
            start(b"("),
            start(b"(-"),
        ] {
            assert!(wrong.is_err());
        }
    }
}
