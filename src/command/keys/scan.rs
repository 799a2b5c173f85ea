//! Walking through all keys: KEYS, SCAN, RANDOMKEY.

use bytes::Bytes;

use crate::command::args::{SYNTAX, int, is};
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::database::SHORT_WORK;
use crate::database::hot::own;
use crate::glob::KeyPattern;
use crate::store::key_hash;

/// Most keys that one call of SCAN looks at, whatever its COUNT says.
const MAX_SCAN: usize = 100_000;
/// Most bytes of names in one reply of SCAN. Above, the call ends early.
const MAX_SCAN_BYTES: usize = 64 << 20;
/// Most bytes of names in one reply of KEYS. Above, the command fails.
const MAX_KEYS_BYTES: usize = 1 << 30;
/// Keys that are requested from the store at once.
pub(super) const CHUNK: usize = 1_000;
/// What it costs to look at a key in the store, in bytes of work of a transaction.
const KEY_WORK: usize = SHORT_WORK / CHUNK;

pub(super) fn keys(data: &mut Data, args: Args) -> Outcome {
    let database = data.database;
    let mut pattern = KeyPattern::new(args[1]);
    let (mut found, mut bytes) = (Vec::new(), 0);
    let mut from = Some(0);
    while let Some(start) = from {
        from = data.transaction.scan_keys(database, start, CHUNK, &mut |key| {
            if bytes <= MAX_KEYS_BYTES && pattern.matches(key) {
                bytes += key.len() + size_of::<Reply>();
                found.push(Reply::bulk(key));
            }
        })?;
        if bytes > MAX_KEYS_BYTES {
            return Err(Fault::error(format!(
                "ERR the reply of KEYS would have more than {MAX_KEYS_BYTES} bytes; use SCAN"
            )));
        }
        check(&pattern)?;
    }
    Ok(Reply::Array(found))
}

fn check(pattern: &KeyPattern) -> Result<(), Fault> {
    match pattern.is_exhausted() {
        true => Err("ERR it takes too long to compare this pattern with the keys there are".into()),
        false => Ok(()),
    }
}

/// SCAN's cursor is the upper 53 bits of the hash to continue from. Clients that read it as a
/// double then read it exactly.
pub const CURSOR_SHIFT: u32 = 64 - 53;

pub(super) fn scan(data: &mut Data, args: Args) -> Outcome {
    let cursor = parse_cursor(args[1]).ok_or("ERR invalid cursor")?;
    let mut options = ScanOptions::parse(&args[2..])?;
    let database = data.database;
    data.transaction.works(options.work())?;
    let mut found = Vec::new();
    let (mut left, mut bytes) = (options.count, 0);
    let mut next = cursor
        .checked_shl(CURSOR_SHIFT)
        .filter(|hash| hash >> CURSOR_SHIFT == cursor);
    while let Some(from) = next {
        // All keys of one cursor are in one reply. If the cursor stayed the same, the scan would
        // never end.
        if (left == 0 || bytes > MAX_SCAN_BYTES) && from >> CURSOR_SHIFT > cursor {
            break;
        }
        let part = left.clamp(1, CHUNK);
        next = data.transaction.scan_keys(database, from, part, &mut |key| {
            if !options.pattern.matches(key) {
                return;
            }
            bytes += key.len() + size_of::<Reply>();
            found.push(own(key));
        })?;
        check(&options.pattern)?;
        left = left.saturating_sub(part);
    }
    if let Some(kind) = options.kind {
        found = of_type(data, found, kind)?;
    }
    let cursor = next.map_or(0, |hash| hash >> CURSOR_SHIFT);
    Ok(Reply::Array(vec![
        Reply::bulk(cursor.to_string()),
        Reply::Array(found.into_iter().map(Reply::Bulk).collect()),
    ]))
}

/// Those keys that hold a value of this type. As in Redis, looking at a type counts as a read.
fn of_type(data: &mut Data, keys: Vec<Bytes>, kind: &[u8]) -> Result<Vec<Bytes>, Fault> {
    let mut of_kind = Vec::new();
    for key in keys {
        let found = data.transaction.read(data.database, &key)?;
        if found.is_some_and(|entry| entry.value.kept().is_ok_and(|(of, _)| is(kind, of.name()))) {
            of_kind.push(key);
        }
    }
    Ok(of_kind)
}

struct ScanOptions<'a> {
    pattern: KeyPattern<'a>,
    count: usize,
    /// Only keys of this type.
    kind: Option<&'a [u8]>,
}

impl<'a> ScanOptions<'a> {
    /// See [`Transaction::works`]. How long a pattern takes is known only afterwards.
    fn work(&self) -> usize {
        let of_pattern = if self.pattern.is_every() { 0 } else { SHORT_WORK };
        self.count * KEY_WORK + of_pattern
    }

    fn parse(options: &[&'a [u8]]) -> Result<Self, Fault> {
        let mut parsed = ScanOptions {
            pattern: KeyPattern::every(),
            count: 10,
            kind: None,
        };
        for option in options.chunks(2) {
            match option {
                [name, count] if is(name, "count") => {
                    let count = int(count)?;
                    if count < 1 {
                        return Err(SYNTAX.into());
                    }
                    parsed.count = usize::try_from(count).map_or(MAX_SCAN, |count| count.min(MAX_SCAN));
                }
                [name, pattern] if is(name, "match") => parsed.pattern = KeyPattern::of_part(pattern),
                [name, kind] if is(name, "type") => parsed.kind = Some(kind),
                _ => return Err(SYNTAX.into()),
            }
        }
        Ok(parsed)
    }
}

/// Reads a cursor as Redis does, with C's `strtoul`: a sign is allowed, and what follows a NUL is
/// ignored.
pub fn parse_cursor(argument: &[u8]) -> Option<u64> {
    let text = argument.split(|byte| *byte == 0).next().unwrap_or_default();
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if text.is_empty() {
        return Some(0);
    }
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(if negative { value.wrapping_neg() } else { value })
}

/// RANDOMKEY picks one of so many live keys from a random place on. The first one alone would
/// favour keys after a gap.
const SAMPLE: usize = 16;

/// Keys that RANDOMKEY looks at before it gives up: so many expired ones in a row, or ten times as
/// many flushed ones, none of them deleted yet.
const MAX_RANDOM: usize = 100_000;

pub(super) fn randomkey(data: &mut Data, _: Args) -> Outcome {
    let database = data.database;
    let start: u64 = rand::random();
    let mut sample: Vec<Bytes> = Vec::new();
    let mut looked_at = 0;
    // From the start to the end, then from the beginning to the start.
    for (begin, end) in [(start, None), (0, Some(start))] {
        let mut from = Some(begin);
        while let Some(hash) = from.filter(|hash| end.is_none_or(|end| *hash < end)) {
            if sample.len() >= SAMPLE || looked_at >= MAX_RANDOM {
                break;
            }
            let part = if looked_at < SAMPLE { SAMPLE } else { CHUNK };
            data.transaction.works(part * KEY_WORK)?;
            looked_at += part;
            from = data.transaction.scan_keys(database, hash, part, &mut |key| {
                if sample.len() < SAMPLE && end.is_none_or(|end| key_hash(key) < end) {
                    sample.push(own(key));
                }
            })?;
        }
    }
    if sample.is_empty() {
        return Ok(Reply::Null);
    }
    let picked = rand::random_range(0..sample.len());
    Ok(Reply::Bulk(sample.swap_remove(picked)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_are_read_as_redis_reads_them() {
        for (text, cursor) in [
            (&b"0"[..], Some(0)),
            (b"", Some(0)),
            (b"17", Some(17)),
            (b"+17", Some(17)),
            (b"-1", Some(u64::MAX)),
            (b"18446744073709551615", Some(u64::MAX)),
            (b"18446744073709551616", None),
            (b"7\0x", Some(7)),
            (b" 7", None),
            (b"7 ", None),
            (b"-", None),
            (b"x", None),
        ] {
            assert_eq!(parse_cursor(text), cursor, "{text:?}");
        }
    }
}
