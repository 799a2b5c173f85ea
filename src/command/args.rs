//! Reading arguments: numbers and words, with Redis's own errors.

use super::Fault;

pub const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
pub const NOT_A_FLOAT: &str = "ERR value is not a valid float";
pub const SYNTAX: &str = "ERR syntax error";
pub const OVERFLOW: &str = "ERR increment or decrement would overflow";
pub const STRING_TOO_LONG: &str = "ERR string exceeds maximum allowed size (proto-max-bulk-len)";

/// A signed 64-bit integer, as strict as Redis: no `+` sign, no leading zeros or spaces.
pub fn parse_int(bytes: &[u8]) -> Option<i64> {
    let (negative, digits) = match bytes {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, bytes),
    };
    match digits {
        [b'0'] => return (!negative).then_some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut value: i128 = 0;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        value = value * 10 + i128::from(digit - b'0');
    }
    i64::try_from(if negative { -value } else { value }).ok()
}

pub fn int(bytes: &[u8]) -> Result<i64, Fault> {
    parse_int(bytes).ok_or_else(|| NOT_AN_INTEGER.into())
}

/// A count of at least this; the given error for everything else.
pub fn count_of(bytes: &[u8], least: usize, error: &'static str) -> Result<usize, Fault> {
    let count = parse_int(bytes).and_then(|count| usize::try_from(count).ok());
    count.filter(|count| *count >= least).ok_or_else(|| error.into())
}

/// An integer of 32 bits.
pub fn int32(bytes: &[u8]) -> Result<i32, Fault> {
    i32::try_from(int(bytes)?)
        .map_err(|_| "ERR value is out of range, value must between -2147483648 and 2147483647".into())
}

/// True if the argument is this word, in any case.
pub fn is(bytes: &[u8], word: &str) -> bool {
    bytes.eq_ignore_ascii_case(word.as_bytes())
}

/// The range from `start` to `end`, both included, of something of this length. Negative numbers
/// count from the end. Numbers before the beginning become the beginning, so `-9 -8` of five
/// elements is the first one. `None` if the range is empty.
pub fn clip(start: i64, end: i64, length: usize) -> Option<std::ops::Range<usize>> {
    let length = length as i64;
    let place = |n: i64| if n < 0 { (length + n).max(0) } else { n };
    let (start, end) = (place(start), place(end).min(length - 1));
    (start <= end).then(|| start as usize..end as usize + 1)
}

/// Keys, each with its value.
pub type Pairs<'r, 'a> = &'r [[&'a [u8]; 2]];

/// Of a request whose argument 1 says how many keys there are: the keys with their values, and the
/// options behind them.
pub fn counted_pairs<'r, 'a>(args: &'r [&'a [u8]]) -> Result<(Pairs<'r, 'a>, &'r [&'a [u8]]), Fault> {
    let (count, rest) = match args {
        [_, count, rest @ ..] => (parse_int(count), rest),
        _ => (None, args),
    };
    let count = count
        .and_then(|count| i32::try_from(count).ok())
        .filter(|count| *count > 0);
    let count = count.ok_or("ERR invalid numkeys value")? as usize;
    let (pairs, options) = rest
        .split_at_checked(2 * count)
        .ok_or("ERR wrong number of key-value pairs")?;
    Ok((pairs.as_chunks().0, options))
}

/// The argument as text for an error message.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The error for a wrong number of arguments; `name` as in the table (`client|list`).
pub fn wrong_arity(name: &str) -> Fault {
    Fault::error(format!("ERR wrong number of arguments for '{name}' command"))
}

/// Redis's error for a subcommand with too many arguments.
pub fn unknown_subcommand(container: &str, subcommand: &[u8]) -> Fault {
    Fault::error(format!(
        "ERR unknown subcommand or wrong number of arguments for '{}'. Try {} HELP.",
        text(&subcommand[..subcommand.len().min(128)]),
        container.to_ascii_uppercase()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clipped() {
        for (start, end, expected) in [
            (0, -1, Some(0..5)),
            (1, 3, Some(1..4)),
            (-3, -2, Some(2..4)),
            (-2, -3, None),
            (-9, -8, Some(0..1)),
            (3, 1, None),
            (5, 9, None),
            (4, i64::MAX, Some(4..5)),
            (i64::MIN, i64::MAX, Some(0..5)),
            (-1, 0, None),
        ] {
            assert_eq!(clip(start, end, 5), expected, "{start} {end}");
        }
        assert_eq!(clip(0, -1, 0), None);
        assert_eq!(clip(0, 0, 0), None);
    }

    #[test]
    fn pairs_are_counted() {
        let counted = |request: &str| {
            let args: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
            counted_pairs(&args)
                .ok()
                .map(|(pairs, options)| (pairs.len(), options.len()))
        };
        for (request, expected) in [
            ("msetex 1 k v", Some((1, 0))),
            ("msetex 2 k v ex 1 nx", Some((2, 1))),
            ("msetex 2 k v ex", None),
            ("msetex 0 k v", None),
            ("msetex -1 k v", None),
            ("msetex k v ex 1", None),
            ("msetex 2147483647 k v", None),
            ("msetex 9223372036854775807 k v", None),
            ("msetex", None),
        ] {
            assert_eq!(counted(request), expected, "{request}");
        }
    }

    #[test]
    fn integers_are_as_strict_as_redis() {
        for (text, value) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-0", None),
            ("00", None),
            ("+1", None),
            (" 1", None),
            ("", None),
            ("-", None),
            ("1a", None),
        ] {
            assert_eq!(parse_int(text.as_bytes()), value, "{text}");
        }
    }
}
