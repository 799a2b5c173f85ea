//! Bitmaps: <https://redis.io/docs/latest/commands/?group=bitmap>. A string is a row of bits. The
//! first one is the highest bit of the first byte.

mod field;

use std::ops::Range;

use super::args::{SYNTAX, clip, int, is, parse_int};
use super::data::zero_padded;
use super::key_specs::access::{self, CHANGES, READS, SETS};
use super::{Args, Command, Data, Fault, KeySpec, Outcome, Reply, Run, flag};

const WRITE: u32 = flag::WRITE | flag::DENYOOM;

/// What the rows have in common.
const ROW: Command = Command {
    categories: &["bitmap"],
    group: "bitmap",
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "bitcount",
        arity: -2,
        flags: flag::READONLY,
        keys: &[KeySpec::at(1, READS)],
        since: "2.6.0",
        complexity: "O(N), N being the bytes that are looked at.",
        summary: "Counts the bits that are 1, in a string or a part of it.",
        run: Run::Data(bitcount),
        ..ROW
    },
    Command {
        name: "bitfield",
        arity: -2,
        flags: WRITE,
        keys: &[KeySpec::at(1, CHANGES | access::VARIABLE_FLAGS)],
        since: "3.2.0",
        complexity: "O(1) for every operation, and O(N) for writing the string of N bytes.",
        summary: "Reads, sets and adds to integers of any width at any bit of a string.",
        access: Some(field::access),
        run: Run::Data(field::bitfield),
        ..ROW
    },
    Command {
        name: "bitfield_ro",
        arity: -2,
        flags: flag::READONLY | flag::FAST,
        keys: &[KeySpec::at(1, READS)],
        since: "6.0.0",
        complexity: "O(1) for every operation.",
        summary: "Reads integers of any width at any bit of a string.",
        run: Run::Data(field::bitfield_ro),
        ..ROW
    },
    Command {
        name: "bitop",
        arity: -4,
        flags: WRITE,
        keys: &[KeySpec::at(2, SETS), KeySpec::from(3, READS)],
        since: "2.6.0",
        complexity: "O(N), N being the bytes of all strings.",
        summary: "Combines strings bit by bit and stores the result.",
        run: Run::Data(bitop),
        ..ROW
    },
    Command {
        name: "bitpos",
        arity: -3,
        flags: flag::READONLY,
        keys: &[KeySpec::at(1, READS)],
        since: "2.8.7",
        complexity: "O(N), N being the bytes that are looked at.",
        summary: "Finds the first bit that is 1, or 0, in a string or a part of it.",
        run: Run::Data(bitpos),
        ..ROW
    },
    Command {
        name: "getbit",
        arity: 3,
        flags: flag::READONLY | flag::FAST,
        keys: &[KeySpec::at(1, READS)],
        since: "2.2.0",
        summary: "Returns one bit of a string.",
        run: Run::Data(getbit),
        ..ROW
    },
    Command {
        name: "setbit",
        arity: 4,
        flags: WRITE,
        keys: &[KeySpec::at(1, CHANGES)],
        since: "2.2.0",
        complexity: "O(N), N being the length of the string: it is written whole.",
        summary: "Sets one bit of a string and returns what it was.",
        run: Run::Data(setbit),
        ..ROW
    },
];

/// Checks that a string may be long enough to have this bit.
fn check_offset(data: &Data, offset: Option<i64>) -> Result<usize, Fault> {
    let offset = offset.and_then(|offset| usize::try_from(offset).ok());
    offset
        .filter(|offset| offset / 8 < data.config.proto_max_bulk_len())
        .ok_or("ERR bit offset is not an integer or out of range".into())
}

/// The bit at this place. Bits after the end are 0.
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

fn getbit(data: &mut Data, args: Args) -> Outcome {
    let place = check_offset(data, parse_int(args[2]))?;
    let value = data.get_string(args[1])?.unwrap_or_default();
    Ok(Reply::Int(i64::from(bit_at(&value, place))))
}

fn setbit(data: &mut Data, args: Args) -> Outcome {
    let key = args[1];
    let place = check_offset(data, parse_int(args[2]))?;
    let bit = match parse_int(args[3]) {
        Some(0) => false,
        Some(1) => true,
        _ => return Err("ERR bit is not an integer or out of range".into()),
    };
    let current = data.current_string_or_empty(key)?;
    let old = bit_at(&current.value, place);
    if old != bit || place / 8 >= current.value.len() {
        data.transaction.works(current.value.len().max(place / 8 + 1))?;
        let mut value = zero_padded(&current.value, place / 8 + 1);
        set_bit_at(&mut value, place, bit);
        data.set(key, value.into(), current.expire_at);
    }
    Ok(Reply::Int(i64::from(old)))
}

/// Reads the word that says whether a range is in bytes or in bits. Returns the bits per unit.
fn unit(word: Option<&&[u8]>) -> Result<usize, Fault> {
    match word {
        None => Ok(8),
        Some(word) if is(word, "BYTE") => Ok(8),
        Some(word) if is(word, "BIT") => Ok(1),
        Some(_) => Err(SYNTAX.into()),
    }
}

/// Converts a range of units to a range of bits.
fn in_bits(range: Range<usize>, unit: usize) -> Range<usize> {
    range.start * unit..range.end * unit
}

fn bitcount(data: &mut Data, args: Args) -> Outcome {
    // A missing key is answered before the arguments are checked, as in Redis up to 7.2. Redis 8.0
    // no longer does so.
    let Some(value) = data.get_string(args[1])? else {
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
    let Some(part) = clip(start, end, value.len() * 8 / unit) else {
        return Ok(Reply::Int(0));
    };
    let bits = in_bits(part, unit);
    data.transaction.works(bits.len() / 8)?;
    Ok(Reply::Int(count(&value, bits)))
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

/// Up to eight bytes, as the highest bytes of a number.
fn word(chunk: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..chunk.len()].copy_from_slice(chunk);
    u64::from_be_bytes(word)
}

/// Splits a range of bits into its whole bytes and the bits before and after them.
fn split(bits: &Range<usize>) -> (Range<usize>, [Range<usize>; 2]) {
    let (first, last) = (bits.start.div_ceil(8), bits.end / 8);
    if first > last {
        return (0..0, [bits.clone(), 0..0]);
    }
    (first..last, [bits.start..first * 8, last * 8..bits.end])
}

fn bitpos(data: &mut Data, args: Args) -> Outcome {
    let bit = match int(args[2])? {
        0 => false,
        1 => true,
        _ => return Err("ERR The bit argument must be 1 or 0.".into()),
    };
    // As in BITCOUNT, before the other arguments are checked.
    let Some(value) = data.get_string(args[1])? else {
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
    let bits = in_bits(part, unit);
    data.transaction.works(bits.len() / 8)?;
    Ok(Reply::Int(match position(&value, bits, bit) {
        Some(place) => place as i64,
        // If no end was given, zeros follow the string.
        None if !bit && end.is_none() => value.len() as i64 * 8,
        None => -1,
    }))
}

fn position(value: &[u8], bits: Range<usize>, bit: bool) -> Option<usize> {
    let (whole, [before, after]) = split(&bits);
    let wanted = |place: &usize| bit_at(value, *place) == bit;
    let inner = || {
        let words = value[whole.clone()].chunks(8);
        let (at, found) = words
            .map(|chunk| wanted_first(chunk, bit))
            .enumerate()
            .find(|(_, found)| found.is_some())?;
        Some((whole.start + at * 8) * 8 + found?)
    };
    before
        .clone()
        .find(wanted)
        .or_else(inner)
        .or_else(|| after.clone().find(wanted))
}

/// The place of the first such bit in up to eight bytes.
fn wanted_first(chunk: &[u8], bit: bool) -> Option<usize> {
    let word = if bit { word(chunk) } else { !word(chunk) };
    let place = word.leading_zeros() as usize;
    (place < chunk.len() * 8).then_some(place)
}

fn bitop(data: &mut Data, args: Args) -> Outcome {
    let (to, from) = (args[2], &args[3..]);
    let names = ["AND", "OR", "XOR", "NOT", "DIFF", "DIFF1", "ANDOR", "ONE"];
    let name = names.into_iter().find(|name| is(args[1], name)).ok_or(SYNTAX)?;
    let result = match (name, from) {
        ("AND", _) => combine_keys(data, from, Operation::And)?,
        ("OR", _) => combine_keys(data, from, Operation::Or)?,
        ("XOR", _) => combine_keys(data, from, Operation::Xor)?,
        ("NOT", [key]) => invert_key(data, key)?,
        ("NOT", _) => return Err("ERR BITOP NOT must be called with a single source key.".into()),
        ("ONE", _) => in_exactly_one(data, from)?,
        (_, [_]) => {
            return Err(Fault::error(format!(
                "ERR BITOP {name} must be called with at least two source keys."
            )));
        }
        ("DIFF", _) => combine_keys(data, from, Operation::Without)?,
        ("DIFF1", _) => in_any_but_first(data, from, Operation::Without)?,
        (_, _) => in_any_but_first(data, from, Operation::And)?,
    };
    let length = result.len();
    if length > 0 {
        data.set(to, result.into(), None);
    } else if data.exists(to)? {
        data.delete(to);
    }
    Ok(Reply::Int(length as i64))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    And,
    Or,
    Xor,
    /// The bits of the result that the other does not have.
    Without,
}

fn invert_key(data: &mut Data, key: &[u8]) -> Result<Vec<u8>, Fault> {
    let value = data.read_string(key)?.unwrap_or_default();
    data.transaction.works(value.len())?;
    let mut result = value.to_vec();
    by_words(&mut result, &value, |a, _| !a);
    Ok(result)
}

/// Combines the values of these keys, some at a time, so that not all of them need be in memory.
fn combine_keys(data: &mut Data, keys: Args, operation: Operation) -> Result<Vec<u8>, Fault> {
    /// Bytes of values that are combined in one pass over the result.
    const TOGETHER: usize = 256 << 20;
    let (mut result, mut values, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (index, key) in keys.iter().enumerate() {
        let value = data.read_string(key)?.unwrap_or_default();
        data.transaction.works(value.len())?;
        if index == 0 {
            result = value.to_vec();
            continue;
        }
        bytes += value.len();
        values.push(value);
        if bytes > TOGETHER {
            combine(&mut result, &values, operation);
            (values, bytes) = (Vec::new(), 0);
        }
    }
    combine(&mut result, &values, operation);
    Ok(result)
}

/// DIFF1 and ANDOR: the bits of any key but the first, combined with those of the first.
fn in_any_but_first(data: &mut Data, keys: Args, operation: Operation) -> Result<Vec<u8>, Fault> {
    let mut result = combine_keys(data, &keys[1..], Operation::Or)?;
    let first = data.read_string(keys[0])?.unwrap_or_default();
    data.transaction.works(first.len())?;
    combine(&mut result, &[first], operation);
    Ok(result)
}

/// ONE: the bits that exactly one of the keys has.
fn in_exactly_one(data: &mut Data, keys: Args) -> Result<Vec<u8>, Fault> {
    let (mut in_some, mut in_several) = (Vec::new(), Vec::new());
    for key in keys {
        let value = data.read_string(key)?.unwrap_or_default();
        data.transaction.works(value.len())?;
        let mut again = value.to_vec();
        combine(&mut again, &[&in_some], Operation::And);
        combine(&mut in_several, &[again], Operation::Or);
        combine(&mut in_some, &[value], Operation::Or);
    }
    combine(&mut in_some, &[in_several], Operation::Without);
    Ok(in_some)
}

/// Combines a value with others. The shorter ones are padded with zeros.
fn combine<V: AsRef<[u8]>>(result: &mut Vec<u8>, others: &[V], operation: Operation) {
    /// Bytes of the result that stay in the processor's cache while they are combined with all
    /// others.
    const BLOCK: usize = 32 << 10;
    let longest = others.iter().map(|other| other.as_ref().len()).max().unwrap_or(0);
    result.resize(result.len().max(longest), 0);
    for (number, block) in result.chunks_mut(BLOCK).enumerate() {
        for other in others {
            let other = other.as_ref();
            let other = &other[other.len().min(number * BLOCK)..];
            let (with, beyond) = block.split_at_mut(other.len().min(block.len()));
            let other = &other[..with.len()];
            match operation {
                Operation::And => {
                    by_words(with, other, |a, b| a & b);
                    beyond.fill(0);
                }
                Operation::Or => by_words(with, other, |a, b| a | b),
                Operation::Xor => by_words(with, other, |a, b| a ^ b),
                Operation::Without => by_words(with, other, |a, b| a & !b),
            }
        }
    }
}

/// Combines two strings of equal length, eight bytes at a time.
fn by_words(into: &mut [u8], other: &[u8], operation: impl Fn(u64, u64) -> u64) {
    let (words, rest) = into.as_chunks_mut();
    let (other_words, other_rest) = other.as_chunks();
    for (a, b) in words.iter_mut().zip(other_words) {
        *a = operation(u64::from_ne_bytes(*a), u64::from_ne_bytes(*b)).to_ne_bytes();
    }
    for (a, b) in rest.iter_mut().zip(other_rest) {
        *a = operation((*a).into(), (*b).into()) as u8;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn combining_goes_on_with_zeros() {
        let combined = |others: &[&[u8]], operation| {
            let mut result = b"\xff\x0f".to_vec();
            combine(&mut result, others, operation);
            result
        };
        let others: [&[u8]; 2] = [b"\xaa", b"\xff\xff\x11"];
        assert_eq!(combined(&others, Operation::And), b"\xaa\x00\x00");
        assert_eq!(combined(&others, Operation::Or), b"\xff\xff\x11");
        assert_eq!(combined(&others, Operation::Xor), b"\xaa\xf0\x11");
        assert_eq!(
            combined(&[b"\xaa", b"\x01\x03\xff"], Operation::Without),
            b"\x54\x0c\x00"
        );
        assert_eq!(combined(&[], Operation::And), b"\xff\x0f");
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

    /// With lengths at which words and blocks end, and lengths next to them.
    #[test]
    fn combining_by_words_is_combining_byte_by_byte() {
        let value = |seed: usize, length| (0..length).map(|i| (i * 7 + i / 256 + seed) as u8).collect::<Vec<u8>>();
        let lengths = [0, 1, 7, 8, 9, 32_767, 32_768, 32_769, 70_000];
        type OfBytes = fn(u8, u8) -> u8;
        let operations: [(_, OfBytes); 4] = [
            (Operation::And, |a, b| a & b),
            (Operation::Or, |a, b| a | b),
            (Operation::Xor, |a, b| a ^ b),
            (Operation::Without, |a, b| a & !b),
        ];
        for (a, b) in lengths.iter().flat_map(|a| lengths.iter().map(move |b| (*a, *b))) {
            for (operation, of_bytes) in operations {
                let (one, other, third) = (value(1, a), value(2, b), value(3, 33_000));
                let mut result = one.clone();
                combine(&mut result, &[&other, &third], operation);
                let at = |value: &[u8], i| value.get(i).copied().unwrap_or(0);
                let expected: Vec<u8> = (0..a.max(b).max(33_000))
                    .map(|i| of_bytes(of_bytes(at(&one, i), at(&other, i)), at(&third, i)))
                    .collect();
                assert!(result == expected, "{a} and {b} bytes");
            }
        }
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
