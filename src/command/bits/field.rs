//! BITFIELD: integers of 1 to 64 bits at any bit of a string, their highest bit first.

use crate::command::args::{SYNTAX, int, is, parse_int};
use crate::command::data::zero_padded;
use crate::command::key_specs::access::{CHANGES, READS};
use crate::command::{Args, Data, Fault, Outcome, Reply};

use super::{bit_at, check_offset, set_bit_at};

/// The type of an integer: `i5`, `u63`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Type {
    signed: bool,
    bits: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Overflow {
    Wrap,
    Saturate,
    Fail,
}

struct Operation {
    kind: Kind,
    of: Type,
    /// Its first bit.
    place: usize,
    overflow: Overflow,
}

enum Kind {
    Get,
    Set(i64),
    Increment(i64),
}

/// What a BITFIELD does with its key.
pub fn access(args: Args) -> u16 {
    match args[2..].iter().any(|word| is(word, "set") || is(word, "incrby")) {
        true => CHANGES,
        false => READS,
    }
}

pub fn bitfield(data: &mut Data, args: Args) -> Outcome {
    let operations = parse(data, &args[2..])?;
    let key = args[1];
    let written = operations
        .iter()
        .filter(|operation| !matches!(operation.kind, Kind::Get));
    let Some(last) = written
        .map(|operation| operation.place + operation.of.bits as usize - 1)
        .max()
    else {
        let value = data.read_string(key)?.unwrap_or_default();
        return Ok(Reply::Array(
            operations.iter().map(|operation| operation.get(&value)).collect(),
        ));
    };
    let old = data.current_string(key)?;
    let (bytes, expire_at) = old.map_or_else(Default::default, |old| (old.value, old.expire_at));
    data.transaction.works(bytes.len().max(last / 8 + 1))?;
    // The string grows even for operations that then fail.
    let mut value = zero_padded(&bytes, last / 8 + 1);
    let replies = operations.iter().map(|operation| operation.apply(&mut value)).collect();
    if value != bytes {
        data.set(key, value.into(), expire_at);
    }
    Ok(Reply::Array(replies))
}

pub fn bitfield_ro(data: &mut Data, args: Args) -> Outcome {
    let operations = parse(data, &args[2..])?;
    if operations.iter().any(|operation| !matches!(operation.kind, Kind::Get)) {
        return Err("ERR BITFIELD_RO only supports the GET subcommand".into());
    }
    let value = data.get_string(args[1])?.unwrap_or_default();
    Ok(Reply::Array(
        operations.iter().map(|operation| operation.get(&value)).collect(),
    ))
}

fn parse(data: &Data, mut words: &[&[u8]]) -> Result<Vec<Operation>, Fault> {
    let mut operations = Vec::new();
    let mut overflow = Overflow::Wrap;
    loop {
        let (kind, of, place, rest) = match words {
            [] => return Ok(operations),
            [word, how, rest @ ..] if is(word, "OVERFLOW") => {
                (overflow, words) = (parse_overflow(how)?, rest);
                continue;
            }
            [word, of, place, rest @ ..] if is(word, "GET") => (None, of, place, rest),
            [word, of, place, number, rest @ ..] if is(word, "SET") => {
                (Some((Kind::Set as fn(i64) -> Kind, number)), of, place, rest)
            }
            [word, of, place, number, rest @ ..] if is(word, "INCRBY") => {
                (Some((Kind::Increment as fn(i64) -> Kind, number)), of, place, rest)
            }
            _ => return Err(SYNTAX.into()),
        };
        let of = parse_type(of)?;
        let place = check_offset(data, parse_place(place, of))?;
        let kind = match kind {
            Some((kind, number)) => kind(int(number)?),
            None => Kind::Get,
        };
        operations.push(Operation {
            kind,
            of,
            place,
            overflow,
        });
        words = rest;
    }
}

fn parse_overflow(word: &[u8]) -> Result<Overflow, Fault> {
    match word {
        word if is(word, "WRAP") => Ok(Overflow::Wrap),
        word if is(word, "SAT") => Ok(Overflow::Saturate),
        word if is(word, "FAIL") => Ok(Overflow::Fail),
        _ => Err("ERR Invalid OVERFLOW type specified".into()),
    }
}

fn parse_type(word: &[u8]) -> Result<Type, Fault> {
    let parsed = match word {
        [b'i', bits @ ..] => parse_int(bits)
            .filter(|bits| (1..=64).contains(bits))
            .map(|bits| (true, bits)),
        [b'u', bits @ ..] => parse_int(bits)
            .filter(|bits| (1..=63).contains(bits))
            .map(|bits| (false, bits)),
        _ => None,
    };
    let (signed, bits) = parsed
        .ok_or("ERR Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but i64 is.")?;
    Ok(Type {
        signed,
        bits: bits as u32,
    })
}

/// An offset in bits; `#3` is the fourth integer of this type.
fn parse_place(word: &[u8], of: Type) -> Option<i64> {
    match word {
        [b'#', number @ ..] => parse_int(number)?.checked_mul(i64::from(of.bits)),
        number => parse_int(number),
    }
}

impl Operation {
    fn get(&self, value: &[u8]) -> Reply {
        Reply::Int(self.of.read(value, self.place))
    }

    fn apply(&self, value: &mut [u8]) -> Reply {
        let old = self.of.read(value, self.place);
        let wanted = match self.kind {
            Kind::Get => return Reply::Int(old),
            Kind::Set(new) => self.of.given(new),
            Kind::Increment(by) => i128::from(old) + i128::from(by),
        };
        let Some(new) = self.of.fit(wanted, self.overflow) else {
            return Reply::Null;
        };
        self.of.write(value, self.place, new);
        Reply::Int(if matches!(self.kind, Kind::Set(_)) { old } else { new })
    }
}

impl Type {
    fn min(self) -> i128 {
        if self.signed { -(1 << (self.bits - 1)) } else { 0 }
    }

    fn max(self) -> i128 {
        if self.signed {
            (1 << (self.bits - 1)) - 1
        } else {
            (1 << self.bits) - 1
        }
    }

    /// The number given to SET, as Redis takes it. For an unsigned integer, a negative number is a
    /// very large one. For a signed one of fewer than 64 bits, so is a number whose distance to the
    /// largest does not fit into a signed 64-bit integer. It matters only to SAT.
    fn given(self, number: i64) -> i128 {
        let number = i128::from(number);
        let far = self.bits < 64 && self.max() - number > i128::from(i64::MAX);
        let taken_for_large = if self.signed { far } else { number < 0 };
        if taken_for_large { number + (1 << 64) } else { number }
    }

    /// The number to store. `None` if it does not fit and [`Overflow::Fail`] holds.
    fn fit(self, wanted: i128, overflow: Overflow) -> Option<i64> {
        let (min, max) = (self.min(), self.max());
        if (min..=max).contains(&wanted) {
            return Some(wanted as i64);
        }
        match overflow {
            Overflow::Wrap => Some((min + (wanted - min).rem_euclid(1 << self.bits)) as i64),
            Overflow::Saturate => Some(wanted.clamp(min, max) as i64),
            Overflow::Fail => None,
        }
    }

    fn read(self, value: &[u8], place: usize) -> i64 {
        let bits = (place..place + self.bits as usize).map(|place| bit_at(value, place));
        let raw = bits.fold(0, |raw: u64, bit| raw << 1 | u64::from(bit));
        let unused = 64 - self.bits;
        if self.signed {
            (raw << unused) as i64 >> unused
        } else {
            raw as i64
        }
    }

    fn write(self, value: &mut [u8], place: usize, number: i64) {
        for bit in 0..self.bits {
            set_bit_at(value, place + bit as usize, number >> (self.bits - 1 - bit) & 1 == 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Type {
        parse_type(text.as_bytes()).unwrap_or_else(|_| panic!("{text}"))
    }

    #[test]
    fn types() {
        assert_eq!(of("i64"), Type { signed: true, bits: 64 });
        assert_eq!(
            of("u63"),
            Type {
                signed: false,
                bits: 63
            }
        );
        for text in ["", "i", "u", "i0", "i65", "u64", "u-1", "I8", "x8", "8", "i08", "i8 "] {
            assert!(parse_type(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(parse_place(b"#3", of("u5")), Some(15));
        assert_eq!(parse_place(b"3", of("u5")), Some(3));
        assert_eq!(parse_place(b"#9223372036854775807", of("u5")), None);
        assert_eq!(parse_place(b"#", of("u5")), None);
    }

    /// What is stored for each way to overflow: wrap, saturate, fail.
    #[test]
    fn overflow() {
        let (min, max) = (i128::from(i64::MIN), i128::from(i64::MAX));
        for (text, wanted, expected) in [
            ("u8", 255, [Some(255); 3]),
            ("u8", 256, [Some(0), Some(255), None]),
            ("u8", -1, [Some(255), Some(0), None]),
            ("u8", of("u8").given(-1), [Some(255), Some(255), None]),
            ("i8", of("i8").given(i64::MIN), [Some(0), Some(127), None]),
            ("i8", of("i8").given(i64::MIN + 128), [Some(-128), Some(-128), None]),
            ("i64", of("i64").given(i64::MIN), [Some(i64::MIN); 3]),
            ("u8", 255 + max, [Some(254), Some(255), None]),
            ("i8", 127, [Some(127); 3]),
            ("i8", -128, [Some(-128); 3]),
            ("i8", 128, [Some(-128), Some(127), None]),
            ("i8", -129, [Some(127), Some(-128), None]),
            ("i8", min - 128, [Some(-128), Some(-128), None]),
            ("i1", 1, [Some(-1), Some(0), None]),
            ("u1", 2, [Some(0), Some(1), None]),
            ("i64", max, [Some(i64::MAX); 3]),
            ("i64", max + 1, [Some(i64::MIN), Some(i64::MAX), None]),
            ("i64", min - 1, [Some(i64::MAX), Some(i64::MIN), None]),
            ("u63", max + 1, [Some(0), Some(i64::MAX), None]),
            ("u63", -1, [Some(i64::MAX), Some(0), None]),
        ] {
            let ways = [Overflow::Wrap, Overflow::Saturate, Overflow::Fail];
            assert_eq!(ways.map(|way| of(text).fit(wanted, way)), expected, "{text} {wanted}");
        }
    }

    #[test]
    fn what_is_written_is_read_and_nothing_beside_it_changes() {
        for (text, numbers) in [
            ("i1", [0, -1]),
            ("u1", [0, 1]),
            ("i7", [-64, 63]),
            ("u63", [0, i64::MAX]),
            ("i64", [i64::MIN, i64::MAX]),
        ] {
            for (place, background) in [(0, 0), (3, 0xff), (8, 0xff), (13, 0)] {
                for number in numbers {
                    let mut value = vec![background; 16];
                    of(text).write(&mut value, place, number);
                    assert_eq!(of(text).read(&value, place), number, "{text} {place}");
                    let inside = place..place + of(text).bits as usize;
                    let outside = (0..128).filter(|place| !inside.contains(place));
                    assert!(
                        outside
                            .map(|place| bit_at(&value, place))
                            .all(|bit| bit == (background != 0))
                    );
                }
            }
        }
        assert_eq!(of("i64").read(b"\xff", 0), i64::MIN >> 7, "bits after the end are 0");
    }
}
