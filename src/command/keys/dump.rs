//! DUMP and RESTORE: a value as bytes that another server, also Redis, can read.
//!
//! The format is that of an RDB file for one string (<https://rdb.fnordig.de/file_format.html>): a
//! type byte, the string (with its length, as an integer, or LZF-compressed), two bytes of version,
//! and a CRC64 of everything before it. Version and CRC64 are little endian.

use bytes::{BufMut, Bytes, BytesMut};

use crate::command::args::{SYNTAX, int, is, parse_int};
use crate::command::{Args, Data, Fault, Outcome, Reply};

/// The version that DUMP writes: that of Redis 7.0, so that not only the newest servers read it.
/// Strings are the same in all versions.
const WRITTEN_VERSION: u16 = 10;
/// The newest version that RESTORE accepts: that of Valkey 9. Redis 8 has 12 and more. Strings are
/// the same in all versions.
const NEWEST_VERSION: u16 = 80;
/// Bytes of version and checksum.
const TRAILER: usize = 10;

const TYPE_STRING: u8 = 0;
/// A library of functions, in what FUNCTION DUMP answers.
const TYPE_LIBRARY: u8 = 245;

/// The two upper bits of a string's first byte.
mod length {
    pub const SIX_BITS: u8 = 0;
    pub const FOURTEEN_BITS: u8 = 1;
    pub const WHOLE: u8 = 2;
    pub const ENCODED: u8 = 3;
    /// First bytes of longer lengths, big endian.
    pub const FOUR_BYTES: u8 = 0x80;
    pub const EIGHT_BYTES: u8 = 0x81;
    /// First bytes of encoded strings.
    pub const INT8: u8 = 0xc0;
    pub const INT16: u8 = 0xc1;
    pub const INT32: u8 = 0xc2;
    pub const LZF: u8 = 0xc3;
}

pub(super) fn dump(data: &mut Data, args: Args) -> Outcome {
    let entry = data.get(args[1])?;
    if let Some(of) = entry.as_ref().and_then(|entry| entry.value.collection()) {
        return Err(Fault::error(format!(
            "ERR the key holds a {}: DUMP supports only strings yet",
            of.name()
        )));
    }
    let value = entry.map(|entry| entry.string()).transpose()?;
    data.transaction.works(value.as_ref().map_or(0, Bytes::len))?;
    Ok(value.map(|value| serialize(&value)).into())
}

pub(super) fn restore(data: &mut Data, args: Args) -> Outcome {
    let options = RestoreOptions::parse(&args[4..])?;
    let key = args[1];
    let exists = data.exists(key)?;
    if exists && !options.replace {
        return Err("BUSYKEY Target key name already exists.".into());
    }
    let ttl = u64::try_from(int(args[2])?).map_err(|_| Fault::from("ERR Invalid TTL value, must be >= 0"))?;
    let content = verified(args[3]).ok_or("ERR DUMP payload version or checksum are wrong")?;
    data.transaction.works(longest(content))?;
    let limit = data.config.proto_max_bulk_len();
    if let Some(kind) = other_type(content) {
        return Err(Fault::error(format!(
            "ERR the payload holds a {kind}: this type is not supported, only strings are"
        )));
    }
    let value = deserialize(content, limit).ok_or("ERR Bad data format")?;
    let expire_at = match ttl {
        0 => None,
        ttl if options.absolute => Some(ttl),
        ttl => Some(ttl.saturating_add(data.now())),
    };
    if expire_at.is_none_or(|at| at > data.now()) {
        data.set(key, value, expire_at);
    } else if exists {
        data.delete(key);
    }
    Ok(Reply::Ok)
}

#[derive(Default)]
struct RestoreOptions {
    replace: bool,
    absolute: bool,
}

impl RestoreOptions {
    /// IDLETIME and FREQ are checked and have no effect.
    fn parse(options: Args) -> Result<Self, Fault> {
        let mut parsed = RestoreOptions::default();
        let (mut idle, mut frequency) = (false, false);
        let mut options = options.iter();
        while let Some(option) = options.next() {
            let argument = options.as_slice().first();
            if is(option, "replace") {
                parsed.replace = true;
            } else if is(option, "absttl") {
                parsed.absolute = true;
            } else if let (true, false, Some(argument)) = (is(option, "idletime"), frequency, argument) {
                if int(argument)? < 0 {
                    return Err("ERR Invalid IDLETIME value, must be >= 0".into());
                }
                (idle, _) = (true, options.next());
            } else if let (true, false, Some(argument)) = (is(option, "freq"), idle, argument) {
                if !(0..=255).contains(&int(argument)?) {
                    return Err("ERR Invalid FREQ value, must be >= 0 and <= 255".into());
                }
                (frequency, _) = (true, options.next());
            } else {
                return Err(SYNTAX.into());
            }
        }
        Ok(parsed)
    }
}

/// A string in the format of DUMP, not compressed.
fn serialize(value: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(value.len() + 1 + 9 + TRAILER);
    out.put_u8(TYPE_STRING);
    match parse_int(value).and_then(|number| i32::try_from(number).ok()) {
        Some(number) => put_integer(&mut out, number),
        None => {
            put_length(&mut out, value.len());
            out.put_slice(value);
        }
    }
    out.put_u16_le(WRITTEN_VERSION);
    let checksum = crc64(&out);
    out.put_u64_le(checksum);
    out.freeze()
}

fn put_integer(out: &mut BytesMut, number: i32) {
    if let Ok(number) = i8::try_from(number) {
        out.put_u8(length::INT8);
        out.put_i8(number);
    } else if let Ok(number) = i16::try_from(number) {
        out.put_u8(length::INT16);
        out.put_i16_le(number);
    } else {
        out.put_u8(length::INT32);
        out.put_i32_le(number);
    }
}

fn put_length(out: &mut BytesMut, len: usize) {
    match len {
        0..0x40 => out.put_u8(len as u8),
        0x40..0x4000 => out.put_u16(u16::from(length::FOURTEEN_BITS) << 14 | len as u16),
        _ => match u32::try_from(len) {
            Ok(len) => {
                out.put_u8(length::FOUR_BYTES);
                out.put_u32(len);
            }
            Err(_) => {
                out.put_u8(length::EIGHT_BYTES);
                out.put_u64(len as u64);
            }
        },
    }
}

/// Libraries of functions: each is a byte and the string of its text.
pub fn dump_libraries<'t>(texts: impl Iterator<Item = &'t Bytes>) -> Bytes {
    let mut out = BytesMut::new();
    for text in texts {
        out.put_u8(TYPE_LIBRARY);
        put_length(&mut out, text.len());
        out.put_slice(text);
    }
    out.put_u16_le(WRITTEN_VERSION);
    let checksum = crc64(&out);
    out.put_u64_le(checksum);
    out.freeze()
}

/// The texts of the libraries in a payload. `most`: how many bytes they may have together.
pub fn libraries_in(payload: &[u8], most: usize) -> Result<Vec<Bytes>, &'static str> {
    // What stands before a text is at most twice as long as the text.
    if payload.len() > most.saturating_mul(3).saturating_add(TRAILER) {
        return Err("ERR failed loading the given functions payload");
    }
    let mut content = verified(payload).ok_or("ERR DUMP payload version or checksum are wrong")?;
    let (mut texts, mut left) = (Vec::new(), most);
    while let Some((kind, after)) = content.split_first() {
        if *kind != TYPE_LIBRARY {
            return Err("ERR given type is not a function");
        }
        content = after;
        let text = take_text(&mut content, left).ok_or("ERR failed loading the given functions payload")?;
        if text.is_empty() {
            return Err("ERR Missing library metadata");
        }
        left -= text.len();
        texts.push(text);
    }
    Ok(texts)
}

/// Takes a string that is no integer off the front.
fn take_text(content: &mut &[u8], limit: usize) -> Option<Bytes> {
    let is_compressed = *content.first()? == length::LZF;
    if !is_compressed {
        let len = take_length(content, limit)?;
        let (text, after) = content.split_at_checked(len)?;
        *content = after;
        return Some(Bytes::copy_from_slice(text));
    }
    *content = &content[1..];
    let compressed = take_length(content, limit)?;
    let len = take_length(content, limit)?;
    let (compressed, after) = content.split_at_checked(compressed)?;
    *content = after;
    decompress(compressed, len)
}

/// The content before the trailer, if version and checksum are right.
fn verified(payload: &[u8]) -> Option<&[u8]> {
    let (content, trailer) = payload.split_at_checked(payload.len().checked_sub(TRAILER)?)?;
    let (version, checksum) = trailer.split_first_chunk::<2>()?;
    let (covered, _) = payload.split_at(payload.len() - checksum.len());
    let right = u16::from_le_bytes(*version) <= NEWEST_VERSION
        && u64::from_le_bytes(checksum.try_into().ok()?) == crc64(covered);
    right.then_some(content)
}

/// The type of the content, if Redis or Valkey has this type and Highwater does not.
fn other_type(content: &[u8]) -> Option<&'static str> {
    match content.first()? {
        1 | 10 | 14 | 18 => Some("list"),
        2 | 11 | 20 => Some("set"),
        3 | 5 | 12 | 17 => Some("sorted set"),
        4 | 9 | 13 | 16 | 22..=25 => Some("hash"),
        15 | 19 | 21 => Some("stream"),
        6 | 7 => Some("value of a module"),
        _ => None,
    }
}

/// The string in the content. `None` if there is none, or if it is longer than `limit`. Like Redis,
/// it ignores bytes after the string.
fn deserialize(content: &[u8], limit: usize) -> Option<Bytes> {
    let (&TYPE_STRING, mut content) = content.split_first()? else {
        return None;
    };
    let first = *content.first()?;
    if first >> 6 != length::ENCODED {
        let len = take_length(&mut content, limit)?;
        return content.get(..len).map(Bytes::copy_from_slice);
    }
    content = &content[1..];
    let number = match first {
        length::INT8 => i32::from(i8::from_le_bytes(*content.first_chunk()?)),
        length::INT16 => i32::from(i16::from_le_bytes(*content.first_chunk()?)),
        length::INT32 => i32::from_le_bytes(*content.first_chunk()?),
        length::LZF => {
            let compressed = take_length(&mut content, limit)?;
            let len = take_length(&mut content, limit)?;
            return decompress(content.get(..compressed)?, len);
        }
        _ => return None,
    };
    Some(number.to_string().into())
}

/// The most bytes that the string in the content can have.
fn longest(content: &[u8]) -> usize {
    /// Three bytes of LZF expand to at most 264.
    const EXPANDED: usize = 88;
    match content.get(1) {
        Some(&length::LZF) => content.len().saturating_mul(EXPANDED),
        _ => content.len(),
    }
}

/// Takes a length off the front. `None` if it is malformed or above `limit`.
fn take_length(content: &mut &[u8], limit: usize) -> Option<usize> {
    let (&first, rest) = content.split_first()?;
    let (len, taken) = match (first >> 6, first) {
        (length::SIX_BITS, _) => (u64::from(first), 0),
        (length::FOURTEEN_BITS, _) => (u64::from(first & 0x3f) << 8 | u64::from(*rest.first()?), 1),
        (length::WHOLE, length::FOUR_BYTES) => (u64::from(u32::from_be_bytes(*rest.first_chunk()?)), 4),
        (length::WHOLE, length::EIGHT_BYTES) => (u64::from_be_bytes(*rest.first_chunk()?), 8),
        _ => return None,
    };
    *content = &rest[taken..];
    usize::try_from(len).ok().filter(|len| *len <= limit)
}

/// Decompresses LZF. A control byte below 32 is followed by that many literal bytes and one more.
/// Any other control byte copies earlier output: it says how far back (13 bits) and how many bytes
/// (3 bits, or one byte more).
fn decompress(compressed: &[u8], len: usize) -> Option<Bytes> {
    let mut out = Vec::new();
    let mut rest = compressed;
    while let Some((&control, behind)) = rest.split_first() {
        rest = behind;
        if control < 32 {
            let (literal, behind) = rest.split_at_checked(usize::from(control) + 1)?;
            out.extend_from_slice(literal);
            rest = behind;
        } else {
            let mut count = usize::from(control >> 5) + 2;
            if control >> 5 == 7 {
                let (&more, behind) = rest.split_first()?;
                (count, rest) = (count + usize::from(more), behind);
            }
            let (&low, behind) = rest.split_first()?;
            rest = behind;
            let back = (usize::from(control & 31) << 8 | usize::from(low)) + 1;
            let from = out.len().checked_sub(back)?;
            // Byte by byte, as it may copy bytes that it has just written.
            for at in from..from + count {
                out.push(out[at]);
            }
        }
        if out.len() > len {
            return None;
        }
    }
    (out.len() == len).then(|| out.into())
}

/// CRC-64 of RDB files: polynomial ad93d23594c935a9, reflected, from 0. It takes eight bytes at a
/// time, each with its own table ("slicing by 8"). Byte by byte, a large value takes six times as
/// long.
fn crc64(bytes: &[u8]) -> u64 {
    const REFLECTED: u64 = 0xad93_d235_94c9_35a9_u64.reverse_bits();
    /// What a byte contributes, by the number of bytes that follow it.
    static TABLES: [[u64; 256]; 8] = {
        let mut tables = [[0; 256]; 8];
        let mut byte = 0;
        while byte < 256 {
            let (mut crc, mut bit) = (byte as u64, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ REFLECTED } else { crc >> 1 };
                bit += 1;
            }
            tables[0][byte] = crc;
            byte += 1;
        }
        let mut followers = 1;
        while followers < 8 {
            let mut byte = 0;
            while byte < 256 {
                let before = tables[followers - 1][byte];
                tables[followers][byte] = tables[0][before as u8 as usize] ^ before >> 8;
                byte += 1;
            }
            followers += 1;
        }
        tables
    };
    let (words, rest) = bytes.as_chunks();
    let crc = words.iter().fold(0, |crc, word| {
        let word = (u64::from_le_bytes(*word) ^ crc).to_le_bytes();
        let parts = word.iter().zip(TABLES.iter().rev());
        parts.fold(0, |crc, (byte, table)| crc ^ table[usize::from(*byte)])
    });
    rest.iter()
        .fold(crc, |crc, byte| TABLES[0][usize::from(crc as u8 ^ byte)] ^ crc >> 8)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 1 << 20;

    fn read(payload: &[u8]) -> Option<Bytes> {
        deserialize(verified(payload)?, LIMIT)
    }

    #[test]
    fn the_checksum_is_that_of_rdb_files() {
        assert_eq!(crc64(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
        // The checksum of bytes that are followed by their checksum is 0.
        for length in 0..40 {
            let covered: Vec<u8> = (0..length).map(|i: u8| i.wrapping_mul(37)).collect();
            let all = [&covered[..], &crc64(&covered).to_le_bytes()].concat();
            assert_eq!(crc64(&all), 0, "{length} bytes");
        }
    }

    /// What redis-server 7.0.15 dumped for `123` and for 45 times `a`.
    #[test]
    fn what_redis_dumped_is_read() {
        let number = b"\x00\xc0{\n\x00H\xe2S\xe1\x00zg\xb9";
        assert_eq!(&serialize(b"123")[..], number);
        assert_eq!(read(number).as_deref(), Some(&b"123"[..]));
        let compressed = b"\x00\xc3\t-\x01aa\xe0 \x00\x01aa\n\x00\xb8%\xa6\xf9\xa5\x12\x8e\xd9";
        assert_eq!(read(compressed).as_deref(), Some(&[b'a'; 45][..]));
    }

    /// Version numbers of Redis 7.2, Redis 8 and Valkey 9, and one that no server has yet.
    #[test]
    fn strings_of_all_versions_are_read() {
        let dumped = serialize(b"text");
        let content = &dumped[..dumped.len() - TRAILER];
        let of_version = |version: u16| {
            let mut payload = [content, &version.to_le_bytes()].concat();
            payload.extend(crc64(&payload).to_le_bytes());
            payload
        };
        for version in [1, 11, 12, 14, 80] {
            assert_eq!(read(&of_version(version)).as_deref(), Some(&b"text"[..]), "{version}");
        }
        assert_eq!(verified(&of_version(81)), None);
    }

    #[test]
    fn what_is_dumped_can_be_restored() {
        for value in [
            "",
            "0",
            "-1",
            "127",
            "128",
            "-32769",
            "2147483648",
            "-2147483648",
            "007",
            "text",
        ] {
            assert_eq!(
                read(&serialize(value.as_bytes())).as_deref(),
                Some(value.as_bytes()),
                "{value}"
            );
        }
        for len in [63, 64, 16_383, 16_384, LIMIT] {
            assert_eq!(read(&serialize(&vec![b'x'; len])).map(|v| v.len()), Some(len));
        }
        assert_eq!(read(&serialize(&vec![b'x'; LIMIT + 1])), None);
    }

    #[test]
    fn damage_is_noticed() {
        let good = serialize(b"some value");
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 1;
            assert_eq!(verified(&bad), None, "byte {at}");
            assert_eq!(verified(&good[..at]), None, "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn no_content_makes_it_fail(content in vec(any::<u8>(), 0..64), string in vec(0xc0u8..=0xc3, 1)) {
            deserialize(&content, LIMIT);
            deserialize(&[&[TYPE_STRING], &string[..], &content].concat(), LIMIT);
            decompress(&content, LIMIT);
        }
    }

    #[test]
    fn libraries_come_back() {
        for sizes in [&[][..], &[1], &[63, 64, 16_383, 16_384, 100_000]] {
            let texts: Vec<Bytes> = sizes.iter().map(|size| vec![b'x'; *size].into()).collect();
            let payload = dump_libraries(texts.iter());
            assert_eq!(libraries_in(&payload, 1 << 20), Ok(texts));
            assert!(libraries_in(&payload[..payload.len() - 1], 1 << 20).is_err());
        }
        // As Redis 7.0 answers without a library.
        let empty = b"\x0a\x00\x5d\x9b\x5c\x40\x0f\x7f\xa2\xda";
        assert_eq!(&dump_libraries([].iter())[..], empty);
        let large = dump_libraries([Bytes::from(vec![b'x'; 100])].iter());
        assert!(libraries_in(&large, 99).is_err());
        assert!(libraries_in(&dump_libraries([Bytes::new()].iter()), 99).is_err());
        let many = dump_libraries(vec![Bytes::from("x"); 100].iter());
        assert!(libraries_in(&many, 94).is_err() && libraries_in(&many, 100).is_ok());
        // As Redis compresses a text: two bytes, the last of which is repeated seven times.
        let mut payload = vec![TYPE_LIBRARY, length::LZF, 5, 9, 1, b'a', b'b', 5 << 5, 0];
        payload.extend(WRITTEN_VERSION.to_le_bytes());
        payload.extend(crc64(&payload).to_le_bytes());
        assert_eq!(libraries_in(&payload, 1 << 20), Ok(vec!["abbbbbbbb".into()]));
    }
}
