//! Strings as rows of bits, the first being the highest of the first byte:
//! <https://redis.io/docs/latest/commands/?group=bitmap>.

mod field;

use std::ops::Range;

use super::args::{SYNTAX, clip, int, is, parse_int};
use super::strings::{current_or_empty, zero_padded};
use super::{Args, Command, Context, Fault, Keys, Outcome, Reply, Run, flag};

const ONE_KEY: Keys = Keys::Range {
    first: 1,
    last: 1,
    step: 1,
};
const FROM_SECOND: Keys = Keys::Range {
    first: 2,
    last: -1,
    step: 1,
};

const WRITE: u32 = flag::WRITE | flag::DENYOOM;

/// What the rows have in common.
const ROW: Command = Command {
    keys: ONE_KEY,
    categories: &["bitmap"],
    group: "bitmap",
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "bitcount",
        arity: -2,
        flags: flag::READONLY,
        since: "2.6.0",
        complexity: "O(N), N being the bytes that are looked at.",
        summary: "Counts the bits that are 1, in a string or a part of it.",
        run: Run::Now(bitcount),
        ..ROW
    },
    Command {
        name: "bitfield",
        arity: -2,
        flags: WRITE,
        since: "3.2.0",
        complexity: "O(1) for every operation, and O(N) for writing the string of N bytes.",
        summary: "Reads, sets and adds to integers of any width at any bit of a string.",
        run: Run::Now(field::bitfield),
        ..ROW
    },
    Command {
        name: "bitfield_ro",
        arity: -2,
        flags: flag::READONLY | flag::FAST,
        since: "6.0.0",
        complexity: "O(1) for every operation.",
        summary: "Reads integers of any width at any bit of a string.",
        run: Run::Now(field::bitfield_ro),
        ..ROW
    },
    Command {
        name: "bitop",
        arity: -4,
        flags: WRITE,
        keys: FROM_SECOND,
        since: "2.6.0",
        complexity: "O(N), N being the bytes of all strings.",
        summary: "Combines strings bit by bit and stores the result.",
        run: Run::Now(bitop),
        ..ROW
    },
    Command {
        name: "bitpos",
        arity: -3,
        flags: flag::READONLY,
        since: "2.8.7",
        complexity: "O(N), N being the bytes that are looked at.",
        summary: "Finds the first bit that is 1, or 0, in a string or a part of it.",
        run: Run::Now(bitpos),
        ..ROW
    },
    Command {
        name: "getbit",
        arity: 3,
        flags: flag::READONLY | flag::FAST,
        since: "2.2.0",
        summary: "Returns one bit of a string.",
        run: Run::Now(getbit),
        ..ROW
    },
    Command {
        name: "setbit",
        arity: 4,
        flags: WRITE,
        since: "2.2.0",
        complexity: "O(N), N being the length of the string: it is written whole.",
        summary: "Sets one bit of a string and returns what it was.",
        run: Run::Now(setbit),
        ..ROW
    },
];

/// Checks that a string may be so long that it has this bit.
fn check_offset(context: &Context, offset: Option<i64>) -> Result<usize, Fault> {
    let offset = offset.and_then(|offset| usize::try_from(offset).ok());
    offset
        .filter(|offset| offset / 8 < context.shared.config.proto_max_bulk_len())
        .ok_or("ERR bit offset is not an integer or out of range".into())
}

/// The bit at this place; those after the end are 0.
fn bit_at(value: &[u8], place: usize) -> bool {
    value
        .get(place / 8)
        .is_some_and(|byte| byte & (0x80 >> (place % 8)) != 0)
}

fn set_bit_at(value: &mut [u8], place: usize, bit: bool) {
    let mask = 0x80 >> (place % 8);
    if bit {
        value[place / 8] |= mask
    } else {
        value[place / 8] &= !mask
    }
}

fn getbit(context: &mut Context, args: Args) -> Outcome {
    let database = context.database();
    let place = check_offset(context, parse_int(args[2]))?;
    let value = context.transaction.get_string(database, args[1])?.unwrap_or_default();
    Ok(Reply::Int(i64::from(bit_at(&value, place))))
}

fn setbit(context: &mut Context, args: Args) -> Outcome {
    let (database, key) = (context.database(), args[1]);
    let place = check_offset(context, parse_int(args[2]))?;
    let bit = match parse_int(args[3]) {
        Some(0) => false,
        Some(1) => true,
        _ => return Err("ERR bit is not an integer or out of range".into()),
    };
    let current = current_or_empty(context, key)?;
    let old = bit_at(&current.value, place);
    if old != bit || place / 8 >= current.value.len() {
        let mut value = zero_padded(&current.value, place / 8 + 1);
        set_bit_at(&mut value, place, bit);
        context.transaction.set(database, key, value.into(), current.expire_at);
    }
    Ok(Reply::Int(i64::from(old)))
}

/// Reads the word that tells whether a range is of bytes or of bits; gives the bits of one.
fn unit(word: Option<&&[u8]>) -> Result<usize, Fault> {
    match word {
        None => Ok(8),
        Some(word) if is(word, "BYTE") => Ok(8),
        Some(word) if is(word, "BIT") => Ok(1),
        Some(_) => Err(SYNTAX.into()),
    }
}

/// A range of units as one of bits.
fn in_bits(range: Range<usize>, unit: usize) -> Range<usize> {
    range.start * unit..range.end * unit
}

fn bitcount(context: &mut Context, args: Args) -> Outcome {
    let database = context.database();
    // A missing key is answered before the arguments are looked at: so does Redis up to 7.2, from 8.0 on no more.
    let Some(value) = context.transaction.get_string(database, args[1])? else {
        return Ok(Reply::Int(0));
    };
    let (start, end) = match args.len() {
        2 => (0, -1),
        4 | 5 => (int(args[2])?, int(args[3])?),
        _ => return Err(SYNTAX.into()),
    };
    if start < 0 && end < 0 && start > end {
        return Ok(Reply::Int(0));
    }
    let unit = unit(args.get(4))?;
    let part = clip(start, end, value.len() * 8 / unit);
    Ok(Reply::Int(part.map_or(0, |part| count(&value, in_bits(part, unit)))))
}

fn count(value: &[u8], bits: Range<usize>) -> i64 {
    let (whole, edges) = split(&bits);
    let inner: u64 = value[whole]
        .chunks(8)
        .map(|chunk| u64::from(word(chunk).count_ones()))
        .sum();
    let outer = edges
        .into_iter()
        .flatten()
        .filter(|&place| bit_at(value, place))
        .count();
    inner as i64 + outer as i64
}

/// Up to eight bytes, as the highest ones of a number.
fn word(chunk: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..chunk.len()].copy_from_slice(chunk);
    u64::from_be_bytes(word)
}

/// Cuts a range of bits into the bytes that it has whole, and the bits before and after them.
fn split(bits: &Range<usize>) -> (Range<usize>, [Range<usize>; 2]) {
    let (first, last) = (bits.start.div_ceil(8), bits.end / 8);
    if first > last {
        return (0..0, [bits.clone(), 0..0]);
    }
    (first..last, [bits.start..first * 8, last * 8..bits.end])
}

fn bitpos(context: &mut Context, args: Args) -> Outcome {
    let bit = match int(args[2])? {
        0 => false,
        1 => true,
        _ => return Err("ERR The bit argument must be 1 or 0.".into()),
    };
    let database = context.database();
    // As in BITCOUNT, before the other arguments are looked at.
    let Some(value) = context.transaction.get_string(database, args[1])? else {
        return Ok(Reply::Int(if bit { -1 } else { 0 }));
    };
    if args.len() > 6 {
        return Err(SYNTAX.into());
    }
    let start = args.get(3).map_or(Ok(0), |start| int(start))?;
    let unit = unit(args.get(5))?;
    let end = args.get(4).map(|end| int(end)).transpose()?;
    let Some(part) = clip(start, end.unwrap_or(-1), value.len() * 8 / unit) else {
        return Ok(Reply::Int(-1));
    };
    Ok(Reply::Int(match position(&value, in_bits(part, unit), bit) {
        Some(place) => place as i64,
        // Without a given end the string goes on with zeros.
        None if !bit && end.is_none() => value.len() as i64 * 8,
        None => -1,
    }))
}

fn position(value: &[u8], bits: Range<usize>, bit: bool) -> Option<usize> {
    let (whole, [before, after]) = split(&bits);
    let wanted = |place: &usize| bit_at(value, *place) == bit;
    let without: u8 = if bit { 0 } else { 0xff };
    let inner = || {
        let byte = whole.start + value[whole.clone()].iter().position(|&byte| byte != without)?;
        (byte * 8..byte * 8 + 8).find(wanted)
    };
    before
        .clone()
        .find(wanted)
        .or_else(inner)
        .or_else(|| after.clone().find(wanted))
}

fn bitop(context: &mut Context, args: Args) -> Outcome {
    let (database, to, from) = (context.database(), args[2], &args[3..]);
    let operations: [(&str, Combine); 4] = [
        ("AND", |a, b| a & b),
        ("OR", |a, b| a | b),
        ("XOR", |a, b| a ^ b),
        ("NOT", |a, _| !a),
    ];
    let (name, operation) = operations.iter().find(|(name, _)| is(args[1], name)).ok_or(SYNTAX)?;
    if *name == "NOT" && from.len() != 1 {
        return Err("ERR BITOP NOT must be called with a single source key.".into());
    }
    let mut values = Vec::with_capacity(from.len());
    for key in from {
        values.push(context.transaction.read_string(database, key)?.unwrap_or_default());
    }
    let length = values.iter().map(|value| value.len()).max().unwrap_or(0);
    if length > 0 {
        let result = if *name == "NOT" {
            values[0].iter().map(|byte| !byte).collect()
        } else {
            combine(&values, length, *operation)
        };
        context.transaction.set(database, to, result.into(), None);
    } else if context.transaction.exists(database, to)? {
        context.transaction.delete(database, to);
    }
    Ok(Reply::Int(length as i64))
}

/// Combines two bytes bit by bit.
type Combine = fn(u8, u8) -> u8;

/// Combines the values one after the other; the shorter ones go on with zeros.
fn combine<V: AsRef<[u8]>>(values: &[V], length: usize, operation: Combine) -> Vec<u8> {
    let Some((first, others)) = values.split_first() else {
        return Vec::new();
    };
    let mut result = zero_padded(first.as_ref(), length);
    for other in others {
        let (with, beyond) = result.split_at_mut(other.as_ref().len());
        with.iter_mut()
            .zip(other.as_ref())
            .for_each(|(a, b)| *a = operation(*a, *b));
        beyond.iter_mut().for_each(|a| *a = operation(*a, 0));
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn combining_goes_on_with_zeros() {
        let values: [&[u8]; 3] = [b"\xff\x0f", b"\xaa", b"\xff\xff\x11"];
        assert_eq!(combine(&values, 3, |a, b| a & b), b"\xaa\x00\x00");
        assert_eq!(combine(&values, 3, |a, b| a | b), b"\xff\xff\x11");
        assert_eq!(combine(&values, 3, |a, b| a ^ b), b"\xaa\xf0\x11");
        assert_eq!(combine(&values[..1], 2, |a, b| a & b), b"\xff\x0f");
    }

    #[test]
    fn the_first_bit_is_the_highest() {
        let mut value = vec![0; 2];
        set_bit_at(&mut value, 0, true);
        set_bit_at(&mut value, 15, true);
        assert_eq!(value, b"\x80\x01");
        set_bit_at(&mut value, 0, false);
        assert_eq!(value, b"\x00\x01");
        assert!(bit_at(&value, 15) && !bit_at(&value, 14) && !bit_at(&value, 16));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn counting_and_finding_agree_with_looking_at_every_bit(
            value in prop::collection::vec(prop_oneof![Just(0u8), Just(0xff), any::<u8>()], 1..40),
            ends in any::<(prop::sample::Index, prop::sample::Index)>(),
        ) {
            let bits = value.len() * 8;
            let (a, b) = (ends.0.index(bits), ends.1.index(bits));
            let range = a.min(b)..a.max(b) + 1;
            prop_assert_eq!(count(&value, range.clone()), range.clone().filter(|&i| bit_at(&value, i)).count() as i64);
            for bit in [false, true] {
                prop_assert_eq!(position(&value, range.clone(), bit), range.clone().find(|&i| bit_at(&value, i) == bit));
            }
        }
    }
}
