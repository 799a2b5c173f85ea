//! The numbers of INCRBYFLOAT and INCREX. Redis computes them with the x87's 80-bit floating point
//! and prints 17 decimals, and the digits depend on exactly that. Rust has no such type. So this
//! file does with integers what is needed: it reads (as C's `strtold`), adds, compares, and prints.
//! Each rounds once, to nearest, ties to even.

use std::cmp::Ordering;
use std::fmt;

/// The number is `mantissa × 2^exponent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongDouble {
    negative: bool,
    mantissa: u64,
    exponent: i32,
    infinite: bool,
}

/// Longest text of a number, in bytes (Redis's own limit).
const MAX_TEXT: usize = 5 * 1024 - 1;
const MANTISSA_BITS: i64 = 64;
/// Exponent of the lowest bit of the smallest number.
const MIN_EXPONENT: i64 = -16_445;
/// All numbers are below 2 to this power.
const MAX_EXPONENT: i64 = 16_384;
/// All numbers are below 10 to this power. Those below 10 to `MIN_DECIMAL` are rounded to 0.
const MAX_DECIMAL: i64 = 4_935;
const MIN_DECIMAL: i64 = -4_952;
/// Decimals that are printed.
const DECIMALS: usize = 17;

impl LongDouble {
    pub const ZERO: LongDouble = LongDouble {
        negative: false,
        mantissa: 0,
        exponent: 0,
        infinite: false,
    };
    /// The largest finite number.
    pub const MAX: LongDouble = LongDouble {
        negative: false,
        mantissa: u64::MAX,
        exponent: (MAX_EXPONENT - MANTISSA_BITS) as i32,
        infinite: false,
    };

    pub fn is_finite(&self) -> bool {
        !self.infinite
    }

    /// Reads what Redis accepts as a number: decimal or hexadecimal, with an optional fraction and
    /// exponent, or infinity. Nothing may stand before or after it. `None` also if the number is
    /// too large, or so small that it would become 0.
    pub fn parse(text: &[u8]) -> Option<LongDouble> {
        if text.len() > MAX_TEXT {
            return None;
        }
        let (negative, digits) = match text {
            [b'-', rest @ ..] => (true, rest),
            [b'+', rest @ ..] => (false, rest),
            _ => (false, text),
        };
        match digits {
            [b'0', b'x' | b'X', rest @ ..] => parse_hexadecimal(negative, rest),
            [b'i' | b'I', ..] => {
                let known = digits.eq_ignore_ascii_case(b"inf") || digits.eq_ignore_ascii_case(b"infinity");
                known.then_some(LongDouble {
                    negative,
                    infinite: true,
                    ..Self::ZERO
                })
            }
            _ => parse_decimal(negative, digits),
        }
    }

    /// `None` if the sum is infinite or not a number.
    pub fn plus(self, other: LongDouble) -> Option<LongDouble> {
        /// Bits below the mantissas while they are added: room for what is shifted out. One bit is
        /// left above for a carry.
        const BELOW: i64 = 62;
        if self.infinite || other.infinite {
            return None;
        }
        if self.mantissa == 0 || other.mantissa == 0 {
            return Some(if self.mantissa == 0 { other } else { self });
        }
        let (a, b) = (self.normalized(), other.normalized());
        let (large, small) = if (a.1, a.0) >= (b.1, b.0) { (a, b) } else { (b, a) };
        let negative = if large == a { self.negative } else { other.negative };
        let upper = u128::from(large.0) << BELOW;
        let lower = shifted_right(u128::from(small.0) << BELOW, large.1 - small.1);
        let sum = if self.negative == other.negative {
            upper + lower
        } else {
            upper - lower
        };
        round(negative, sum, large.1 - BELOW)
    }

    pub const fn negated(self) -> LongDouble {
        LongDouble {
            negative: !self.negative,
            ..self
        }
    }

    fn is_below_zero(self) -> bool {
        self.negative && (self.infinite || self.mantissa != 0)
    }

    /// By their values: both zeros are equal.
    pub fn compare(self, other: LongDouble) -> Ordering {
        let size = |number: LongDouble| {
            if number.infinite {
                return (i64::MAX, 0);
            }
            if number.mantissa == 0 {
                return (i64::MIN, 0);
            }
            let (mantissa, exponent) = number.normalized();
            (exponent, mantissa)
        };
        let (a, b) = (size(self), size(other));
        match (self.is_below_zero(), other.is_below_zero()) {
            (false, false) => a.cmp(&b),
            (true, true) => b.cmp(&a),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        }
    }

    /// Mantissa and exponent, with the mantissa's highest bit set. The number must not be 0.
    fn normalized(self) -> (u64, i64) {
        let zeros = self.mantissa.leading_zeros();
        (self.mantissa << zeros, i64::from(self.exponent) - i64::from(zeros))
    }
}

/// Shifts to the right. The lowest bit is set if anything but zeros was lost.
fn shifted_right(value: u128, by: i64) -> u128 {
    if by >= 128 {
        return u128::from(value != 0);
    }
    let kept = value >> by;
    kept | u128::from(kept << by != value)
}

/// The number nearest to `value × 2^exponent`; `None` if it is too large. If `value` is not exact,
/// its lowest bit must be 1 and far below the mantissa.
fn round(negative: bool, value: u128, exponent: i64) -> Option<LongDouble> {
    let bits = 128 - i64::from(value.leading_zeros());
    let drop = (bits - MANTISSA_BITS).max(MIN_EXPONENT - exponent).max(0);
    let mut exponent = exponent + drop;
    let mut kept = round_away(value, drop);
    if kept == 1 << MANTISSA_BITS {
        (kept, exponent) = (kept >> 1, exponent + 1);
    }
    let bits = 128 - i64::from(kept.leading_zeros());
    (kept == 0 || bits + exponent <= MAX_EXPONENT).then_some(LongDouble {
        negative,
        mantissa: kept as u64,
        exponent: if kept == 0 { 0 } else { exponent as i32 },
        infinite: false,
    })
}

/// `value / 2^drop`, rounded to nearest, ties to even.
fn round_away(value: u128, drop: i64) -> u128 {
    if drop == 0 || drop > 128 {
        return if drop == 0 { value } else { 0 };
    }
    let half = 1 << (drop - 1);
    let rest = value & (half | (half - 1));
    let kept = if drop == 128 { 0 } else { value >> drop };
    kept + u128::from(rest > half || (rest == half && kept & 1 == 1))
}

/// The digits of a number, without its point.
struct Digits<'a> {
    whole: &'a [u8],
    fraction: &'a [u8],
    exponent: i64,
}

impl<'a> Digits<'a> {
    /// Splits a text such as `12.5e-3`. `mark` begins the exponent.
    fn split(text: &'a [u8], is_digit: fn(&u8) -> bool, mark: u8) -> Option<Self> {
        let count = |text: &[u8]| text.iter().take_while(|c| is_digit(c)).count();
        let (whole, rest) = text.split_at(count(text));
        let (fraction, rest) = match rest {
            [b'.', rest @ ..] => rest.split_at(count(rest)),
            _ => (&rest[..0], rest),
        };
        let exponent = match rest {
            [] => 0,
            [c, rest @ ..] if c.eq_ignore_ascii_case(&mark) => exponent(rest)?,
            _ => return None,
        };
        (!whole.is_empty() || !fraction.is_empty()).then_some(Digits {
            whole,
            fraction,
            exponent,
        })
    }

    /// Digit values from the first nonzero digit on.
    fn significant(&self) -> impl Iterator<Item = u64> {
        let value = |c: &u8| u64::from((*c as char).to_digit(16).unwrap_or(0));
        self.whole
            .iter()
            .chain(self.fraction)
            .map(value)
            .skip_while(|&digit| digit == 0)
    }

    fn natural(&self, radix: u64) -> Natural {
        let mut natural = Natural::default();
        self.significant().for_each(|digit| natural.multiply_add(radix, digit));
        natural
    }
}

/// Reads an exponent. It is clipped to a limit beyond which its value does not matter.
fn exponent(text: &[u8]) -> Option<i64> {
    const LIMIT: i64 = 1 << 32;
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits
        .iter()
        .fold(0, |value, digit| (value * 10 + i64::from(digit - b'0')).min(LIMIT));
    Some(if negative { -value } else { value })
}

fn parse_hexadecimal(negative: bool, text: &[u8]) -> Option<LongDouble> {
    let digits = Digits::split(text, u8::is_ascii_hexdigit, b'p')?;
    let exponent = digits.exponent - 4 * digits.fraction.len() as i64;
    quotient(negative, digits.natural(16), Natural::from(1), exponent)
}

fn parse_decimal(negative: bool, text: &[u8]) -> Option<LongDouble> {
    let digits = Digits::split(text, u8::is_ascii_digit, b'e')?;
    let exponent = digits.exponent - digits.fraction.len() as i64;
    let first = exponent + digits.significant().count() as i64; // the number is below 10^first
    if digits.significant().next().is_some() && !(MIN_DECIMAL..=MAX_DECIMAL).contains(&first) {
        return None;
    }
    let mut numerator = digits.natural(10);
    let mut denominator = Natural::from(1);
    if !numerator.0.is_empty() {
        let scaled = if exponent < 0 { &mut denominator } else { &mut numerator };
        scaled.multiply_by_power_of_10(exponent.unsigned_abs());
    }
    quotient(negative, numerator, denominator, 0)
}

/// The number nearest to `numerator / denominator × 2^exponent`. `None` if it is too large, or
/// would become 0 without being 0.
fn quotient(negative: bool, mut numerator: Natural, mut denominator: Natural, exponent: i64) -> Option<LongDouble> {
    /// Fewest bits of the quotient: those of the mantissa, one to round by, one that says whether
    /// there is a remainder.
    const WANTED: i64 = MANTISSA_BITS + 2;
    if numerator.0.is_empty() {
        return Some(LongDouble {
            negative,
            ..LongDouble::ZERO
        });
    }
    let shift = WANTED + denominator.bits() - numerator.bits();
    let shifted = if shift >= 0 { &mut numerator } else { &mut denominator };
    shifted.shift_left(shift.unsigned_abs() as usize);
    // Long division, bit by bit: the quotient is below 2^(WANTED + 1).
    denominator.shift_left(WANTED as usize);
    let mut quotient = 0u128;
    for _ in 0..=WANTED {
        quotient <<= 1;
        if numerator.is_at_least(&denominator) {
            numerator.subtract(&denominator);
            quotient |= 1;
        }
        denominator.halve();
    }
    let rest = u128::from(!numerator.0.is_empty());
    // One more bit for the remainder, so that an odd quotient without one stays exact.
    round(negative, quotient << 1 | rest, exponent - shift - 1).filter(|number| number.mantissa != 0)
}

/// A natural number of any size: its 64-bit digits, lowest first, without zeros at the end.
#[derive(Clone, Default)]
struct Natural(Vec<u64>);

impl From<u64> for Natural {
    fn from(value: u64) -> Self {
        let mut natural = Natural(vec![value]);
        natural.trim();
        natural
    }
}

impl Natural {
    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    fn bits(&self) -> i64 {
        let top = self.0.last().map_or(0, |digit| 64 - i64::from(digit.leading_zeros()));
        top + 64 * (self.0.len() as i64 - 1).max(0)
    }

    fn multiply_add(&mut self, factor: u64, more: u64) {
        let mut carry = more;
        for digit in &mut self.0 {
            let product = u128::from(*digit) * u128::from(factor) + u128::from(carry);
            (*digit, carry) = (product as u64, (product >> 64) as u64);
        }
        if carry != 0 {
            self.0.push(carry);
        }
    }

    fn multiply_by_power_of_10(&mut self, mut exponent: u64) {
        /// Largest power of 10 that fits into 64 bits.
        const AT_ONCE: u64 = 19;
        while exponent > 0 {
            let part = exponent.min(AT_ONCE);
            self.multiply_add(10u64.pow(part as u32), 0);
            exponent -= part;
        }
    }

    /// Divides by `divisor` and returns the remainder.
    fn divide(&mut self, divisor: u64) -> u64 {
        let mut rest = 0u128;
        for digit in self.0.iter_mut().rev() {
            let part = rest << 64 | u128::from(*digit);
            *digit = (part / u128::from(divisor)) as u64;
            rest = part % u128::from(divisor);
        }
        self.trim();
        rest as u64
    }

    fn shift_left(&mut self, by: usize) {
        self.multiply_add(1 << (by % 64), 0);
        self.0.splice(0..0, std::iter::repeat_n(0, by / 64));
    }

    fn halve(&mut self) {
        let mut carry = 0;
        for digit in self.0.iter_mut().rev() {
            (*digit, carry) = (*digit >> 1 | carry << 63, *digit & 1);
        }
        self.trim();
    }

    fn is_at_least(&self, other: &Natural) -> bool {
        let key = |n: &Natural| n.0.len();
        key(self)
            .cmp(&key(other))
            .then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
            .is_ge()
    }

    /// Subtracts `other`, which must not be larger.
    fn subtract(&mut self, other: &Natural) {
        let mut borrow = false;
        for (place, digit) in self.0.iter_mut().enumerate() {
            let less = other.0.get(place).copied().unwrap_or(0);
            let (difference, first) = digit.overflowing_sub(less);
            let (difference, second) = difference.overflowing_sub(u64::from(borrow));
            (*digit, borrow) = (difference, first || second);
        }
        self.trim();
    }
}

impl fmt::Display for Natural {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHUNK: u64 = 10u64.pow(19);
        let mut rest = self.clone();
        let mut chunks = Vec::new();
        while !rest.0.is_empty() {
            chunks.push(rest.divide(CHUNK));
        }
        write!(f, "{}", chunks.pop().unwrap_or(0))?;
        chunks.iter().rev().try_for_each(|chunk| write!(f, "{chunk:019}"))
    }
}

/// As C's `%.17Lf`, without zeros at the end of the fraction, and without the sign of a zero.
impl fmt::Display for LongDouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.negative { "-" } else { "" };
        if self.infinite {
            return write!(f, "{sign}inf");
        }
        if self.exponent >= 0 {
            let mut whole = Natural::from(self.mantissa);
            whole.shift_left(self.exponent as usize);
            let sign = if self.mantissa == 0 { "" } else { sign };
            return write!(f, "{sign}{whole}");
        }
        const SCALE: u128 = 10u128.pow(DECIMALS as u32);
        // Below 2^64 × 2^57.
        let scaled = round_away(u128::from(self.mantissa) * SCALE, -i64::from(self.exponent));
        let sign = if scaled == 0 { "" } else { sign };
        let fraction = format!("{:0DECIMALS$}", scaled % SCALE);
        let fraction = fraction.trim_end_matches('0');
        let point = if fraction.is_empty() { "" } else { "." };
        write!(f, "{sign}{}{point}{fraction}", scaled / SCALE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(a: &str, b: &str) -> String {
        let (Some(a), Some(b)) = (LongDouble::parse(a.as_bytes()), LongDouble::parse(b.as_bytes())) else {
            return "not a float".into();
        };
        a.plus(b).map_or("infinite".into(), |sum| sum.to_string())
    }

    /// One per line: the number at the key, the increment, what redis-server 7.0.15 answers.
    const CASES: &str = include_str!("incrbyfloat_cases.txt");

    #[test]
    fn as_redis_answers() {
        for line in CASES.lines() {
            let [a, b, expected] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("{line}");
            };
            assert_eq!(sum(a, b), expected, "{a} + {b}");
        }
    }

    #[test]
    fn numbers_are_ordered_by_their_values() {
        let number = |text: &str| LongDouble::parse(text.as_bytes()).expect("a number");
        let ascending = [
            "-inf", "-1e4932", "-2", "-1.5", "-1", "-1e-4950", "0", "1e-4950", "1", "0x1.8p0", "2", "3", "1e4932",
            "inf",
        ];
        for (place, one) in ascending.iter().enumerate() {
            for (other_place, other) in ascending.iter().enumerate() {
                let expected = place.cmp(&other_place);
                assert_eq!(number(one).compare(number(other)), expected, "{one} {other}");
            }
        }
        for (one, other) in [("0", "-0"), ("1", "1.000"), ("256", "0x1p8"), ("0.5", "5e-1")] {
            assert!(number(one).compare(number(other)).is_eq(), "{one} {other}");
        }
        assert!(number("1.18973149535723176502e4932").compare(LongDouble::MAX).is_eq());
        assert_eq!(LongDouble::MAX.plus(LongDouble::MAX), None);
        assert_eq!(
            LongDouble::MAX
                .plus(LongDouble::MAX.negated())
                .map(|sum| sum.to_string())
                .as_deref(),
            Some("0")
        );
    }

    #[test]
    fn texts_that_are_no_numbers() {
        for text in ["", " 1", "1 ", "1\n", "1\0", "\u{661}"] {
            assert_eq!(LongDouble::parse(text.as_bytes()), None, "{text:?}");
        }
        let long = "1".repeat(4000) + "." + &"0".repeat(MAX_TEXT - 4001);
        assert!(LongDouble::parse(long.as_bytes()).is_some());
        assert!(LongDouble::parse((long + "0").as_bytes()).is_none());
    }
}
