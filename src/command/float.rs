//! Doubles among arguments, read as C's `strtod` reads them: decimal or hexadecimal, with an
//! optional fraction and exponent, or infinity. Nothing may stand after the number.

use super::Fault;
use super::args::NOT_A_FLOAT;

/// A score, a weight or an increment. Redis refuses what is too large or too small for a double.
pub fn float(argument: &[u8]) -> Result<f64, Fault> {
    parse_exact(argument).ok_or_else(|| NOT_A_FLOAT.into())
}

/// As [`float`], without an error text.
pub fn parse_exact(argument: &[u8]) -> Option<f64> {
    let value = parse(argument)?;
    let unsigned = argument.strip_prefix(b"-").or(argument.strip_prefix(b"+"));
    let unsigned = unsigned.unwrap_or(argument);
    let is_out_of_range = match value {
        _ if value.is_infinite() => !unsigned[0].eq_ignore_ascii_case(&b'i'),
        0.0 => has_digit_above_zero(unsigned),
        _ => false,
    };
    (!is_out_of_range).then_some(value)
}

/// An end of a range of scores. Redis reads it as a C string: spaces may stand in front, a NUL byte
/// ends it, and nothing is 0. What is too large is infinite.
pub fn parse_end(argument: &[u8]) -> Option<f64> {
    parse_c_string_with(argument, parse)
}

/// What SORT compares as a number. As [`parse_end`], but what is too large or too small for a
/// double is no number.
pub fn parse_c_string(argument: &[u8]) -> Option<f64> {
    parse_c_string_with(argument, parse_exact)
}

fn parse_c_string_with(argument: &[u8], parse: fn(&[u8]) -> Option<f64>) -> Option<f64> {
    let end = argument.iter().position(|byte| *byte == 0);
    let argument = &argument[..end.unwrap_or(argument.len())];
    if argument.is_empty() {
        return Some(0.0);
    }
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let start = argument.iter().position(|byte| !is_space(byte))?;
    parse(&argument[start..])
}

/// A number that is all of the text; `None` also for not a number.
fn parse(text: &[u8]) -> Option<f64> {
    let (negative, unsigned) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let value = match unsigned {
        [b'0', b'x' | b'X', digits @ ..] => parse_hexadecimal(digits)?,
        [b'0'..=b'9' | b'.' | b'i' | b'I', ..] => std::str::from_utf8(unsigned).ok()?.parse().ok()?,
        _ => return None,
    };
    Some(if negative { -value } else { value })
}

fn is_hexadecimal(unsigned: &[u8]) -> bool {
    matches!(unsigned, [b'0', b'x' | b'X', ..])
}

/// Whether a number whose value is 0 was rounded to it.
fn has_digit_above_zero(unsigned: &[u8]) -> bool {
    let (digits, exponent) = match is_hexadecimal(unsigned) {
        true => (&unsigned[2..], b'p'),
        false => (unsigned, b'e'),
    };
    let mut mantissa = digits.iter().take_while(|byte| !byte.eq_ignore_ascii_case(&exponent));
    mantissa.any(|byte| !matches!(byte, b'0' | b'.'))
}

/// What follows `0x`.
fn parse_hexadecimal(text: &[u8]) -> Option<f64> {
    /// A mantissa below this has room for one more digit.
    const ROOM: u64 = 1 << 60;
    let (mut mantissa, mut exponent, mut digits, mut behind_point) = (0_u64, 0_i64, 0, false);
    let mut rest = text;
    while let [byte, behind @ ..] = rest {
        match (char::from(*byte).to_digit(16), byte) {
            (Some(digit), _) => {
                digits += 1;
                if mantissa < ROOM {
                    mantissa = mantissa << 4 | u64::from(digit);
                    exponent -= if behind_point { 4 } else { 0 };
                } else {
                    // Only whether it is 0 can matter for rounding.
                    mantissa |= u64::from(digit > 0);
                    exponent += if behind_point { 0 } else { 4 };
                }
            }
            (None, b'.') if !behind_point => behind_point = true,
            (None, b'p' | b'P') => break,
            (None, _) => return None,
        }
        rest = behind;
    }
    if digits == 0 {
        return None;
    }
    let power = match rest {
        [] => 0,
        [_, power @ ..] => parse_power(power)?,
    };
    Some(nearest(mantissa, exponent.saturating_add(power)))
}

/// A decimal exponent. Beyond a few thousand it does not matter how large it is.
fn parse_power(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digit = |power: i64, digit: &u8| power.saturating_mul(10).saturating_add(i64::from(digit - b'0'));
    let power = digits.iter().fold(0, digit).min(i64::MAX / 2);
    Some(if negative { -power } else { power })
}

/// The double nearest to `mantissa × 2^exponent`; of two that are as near, the even one.
fn nearest(mantissa: u64, exponent: i64) -> f64 {
    /// Exponent of the lowest bit of the smallest double.
    const LOWEST: i64 = -1074;
    if mantissa == 0 {
        return 0.0;
    }
    let bits = 64 - i64::from(mantissa.leading_zeros());
    let top = exponent.saturating_add(bits);
    if top > 1024 {
        return f64::INFINITY;
    }
    let kept = (top - LOWEST).min(53);
    if kept < 0 {
        return 0.0;
    }
    let dropped = (bits - kept).max(0);
    let wide = u128::from(mantissa);
    let half = (1_u128 << dropped) >> 1;
    let (upper, lower) = (wide >> dropped, wide & ((1 << dropped) - 1));
    let up = lower > half || (lower == half && dropped > 0 && upper & 1 == 1);
    let rounded = (upper + u128::from(up)) as f64;
    rounded * power_of_two(exponent + dropped)
}

/// 2 to a power of -1074 to 1023.
fn power_of_two(power: i64) -> f64 {
    f64::from_bits(match power {
        -1022.. => ((power + 1023) as u64) << 52,
        _ => 1 << (power + 1074),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the C library reads, and whether it says that the number is out of range.
    fn c_library(text: &str) -> Option<(f64, bool)> {
        let text = std::ffi::CString::new(text).ok()?;
        let mut end = std::ptr::null_mut();
        // SAFETY: the text ends with NUL, and `end` then points into it.
        unsafe {
            *libc::__errno_location() = 0;
            let value = libc::strtod(text.as_ptr(), &mut end);
            let is_whole = *end == 0 && !text.is_empty() && !value.is_nan();
            let out_of_range = *libc::__errno_location() == libc::ERANGE;
            is_whole.then_some((value, out_of_range))
        }
    }

    fn check(text: &str) {
        let expected = c_library(text);
        let bits = |value: Option<f64>| value.map(f64::to_bits);
        assert_eq!(
            bits(parse(text.as_bytes())),
            bits(expected.map(|(value, _)| value)),
            "{text}"
        );
        let exact = expected.filter(|(value, out)| !(*out && (value.is_infinite() || *value == 0.0)));
        let exact = exact.map(|(value, _)| value);
        assert_eq!(bits(parse_exact(text.as_bytes())), bits(exact), "{text}, exactly");
    }

    #[test]
    fn as_c_reads_them() {
        for text in [
            "0",
            "-0",
            "+0",
            "1",
            "-1.5",
            "+2",
            ".5",
            "5.",
            ".",
            "-",
            "+",
            "+-1",
            "1e3",
            "1E+3",
            "1e-3",
            "1e",
            "1e+",
            "e5",
            "1x",
            "1 ",
            "inf",
            "-INF",
            "+Infinity",
            "infinit",
            "infx",
            "nan",
            "-nan",
            "nan(1)",
            "1e308",
            "1e309",
            "-1e309",
            "5e-324",
            "2e-324",
            "1e-400",
            "0e-400",
            "1e99999999999999999999",
            "0x",
            "0x.",
            "0x1",
            "-0X1F",
            "0x.8",
            "0x1.8p1",
            "0x1p-1074",
            "0x1p-1075",
            "0x1.8p-1075",
            "0x3p-1075",
            "0x1p-1076",
            "0x0p-9999",
            "0x1p1023",
            "0x1p1024",
            "0x1.fffffffffffff8p1023",
            "0x1.fffffffffffff7p1023",
            "0x1p",
            "0x1p+",
            "0x1px",
            "0x1p99999999999999999999",
            "0x1p-99999999999999999999",
            "0x1.00000000000008p0",
            "0x1.000000000000080000001p0",
            "0x123456789abcdef0123456789.8p-3",
            "1_000",
            "0b1",
            "1p3",
        ] {
            check(text);
        }
    }

    #[test]
    fn ends_of_ranges_are_c_strings() {
        for (text, value) in [
            ("", Some(0.0)),
            ("1", Some(1.0)),
            (" \t\n1", Some(1.0)),
            ("1\0x", Some(1.0)),
            ("\0", Some(0.0)),
            ("1e999", Some(f64::INFINITY)),
            ("1e-999", Some(0.0)),
            ("-inf", Some(f64::NEG_INFINITY)),
            (" ", None),
            ("1 ", None),
            ("nan", None),
            ("x", None),
        ] {
            assert_eq!(parse_end(text.as_bytes()), value, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text(text in "[+-]?(0x)?[0-9a-f.]{0,6}([ep][+-]?[0-9]{0,4})?") {
            check(&text);
        }

        #[test]
        fn any_hexadecimal(mantissa in "[0-9a-f]{1,20}", fraction in "[0-9a-f]{0,20}", power in -1200..1100) {
            check(&format!("0x{mantissa}.{fraction}p{power}"));
        }
    }
}
