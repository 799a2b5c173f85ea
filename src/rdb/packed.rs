//! Collections that Redis keeps as one string: listpacks, ziplists, intsets and zipmaps. Each is
//! checked to its last byte: it comes from anybody.

use bytes::Bytes;

use super::Problem;

/// Reads a collection that has at most so many parts.
pub type Unpack = fn(&Bytes, usize) -> Result<Vec<Bytes>, Problem>;

/// What is left of a packed collection, and the parts that were found.
struct Rest<'b> {
    all: &'b Bytes,
    at: usize,
    parts: Vec<Bytes>,
    most: usize,
}

const SHORT: Problem = Problem::Bad("a packed collection ends too early");
const HEADER: Problem = Problem::Bad("the header of a packed collection is wrong");
const ENTRY: Problem = Problem::Bad("an entry of a packed collection is in no known form");
const BACK: Problem = Problem::Bad("an entry of a packed collection has another length");

impl<'b> Rest<'b> {
    fn new(all: &'b Bytes, most: usize) -> Self {
        let (at, parts) = (0, Vec::new());
        Rest { all, at, parts, most }
    }

    fn found(&mut self, part: Bytes) -> Result<(), Problem> {
        if self.parts.len() == self.most {
            return Err(Problem::TooLarge);
        }
        self.parts.push(part);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let bytes = self.all[self.at..].first_chunk().ok_or(SHORT)?;
        self.at += N;
        Ok(*bytes)
    }

    fn byte(&mut self) -> Result<u8, Problem> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    fn peek(&self) -> Result<u8, Problem> {
        self.all.get(self.at).copied().ok_or(SHORT)
    }

    /// A part of the whole, which shares its memory.
    fn take(&mut self, len: usize) -> Result<Bytes, Problem> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.all.len());
        let part = self.all.slice(self.at..end.ok_or(SHORT)?);
        self.at += len;
        Ok(part)
    }

    fn left(&self) -> usize {
        self.all.len() - self.at
    }

    /// An integer of so many bytes, little endian, as decimal text.
    fn integer<const N: usize>(&mut self) -> Result<Bytes, Problem> {
        let bytes: [u8; N] = self.array()?;
        Ok(decimal(signed(&bytes)))
    }
}

/// Two's complement, little endian, of up to eight bytes.
fn signed(bytes: &[u8]) -> i64 {
    let unused = 64 - 8 * bytes.len() as u32;
    let number = bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte));
    (number << unused) as i64 >> unused
}

fn decimal(number: i64) -> Bytes {
    Bytes::copy_from_slice(itoa::Buffer::new().format(number).as_bytes())
}

/// The last byte of listpacks, ziplists and zipmaps.
const END: u8 = 0xff;
/// A count of entries in two bytes that says nothing: there are more.
const MANY: usize = 0xffff;

/// The entries of a listpack. Header: bytes (4), entries (2).
pub fn listpack(all: &Bytes, most: usize) -> Result<Vec<Bytes>, Problem> {
    let mut rest = Rest::new(all, most);
    let bytes = u32::from_le_bytes(rest.array()?) as usize;
    let count = usize::from(u16::from_le_bytes(rest.array()?));
    if bytes != all.len() {
        return Err(HEADER);
    }
    while rest.peek()? != END {
        let start = rest.at;
        let entry = listpack_entry(&mut rest)?;
        rest.found(entry)?;
        let (back, len) = back_length(rest.at - start);
        if rest.take(len)? != back[..len] {
            return Err(BACK);
        }
    }
    let is_right = rest.left() == 1 && (count == MANY || count == rest.parts.len());
    is_right.then_some(rest.parts).ok_or(HEADER)
}

fn listpack_entry(rest: &mut Rest<'_>) -> Result<Bytes, Problem> {
    let first = rest.byte()?;
    let low = |bits: u32| usize::from(first) & ((1 << bits) - 1);
    match first {
        0..=0x7f => Ok(decimal(i64::from(first))),
        0x80..=0xbf => rest.take(low(6)),
        0xc0..=0xdf => {
            let bits = low(5) << 8 | usize::from(rest.byte()?);
            // Thirteen bits, the uppermost one of which is the sign.
            Ok(decimal(((bits as i64) << 51) >> 51))
        }
        0xe0..=0xef => {
            let len = low(4) << 8 | usize::from(rest.byte()?);
            rest.take(len)
        }
        0xf0 => {
            let len = u32::from_le_bytes(rest.array()?) as usize;
            rest.take(len)
        }
        0xf1 => rest.integer::<2>(),
        0xf2 => rest.integer::<3>(),
        0xf3 => rest.integer::<4>(),
        0xf4 => rest.integer::<8>(),
        _ => Err(ENTRY),
    }
}

/// What stands behind an entry of a listpack, and how many bytes that is: the entry's length, seven
/// bits a byte, the uppermost ones first.
pub fn back_length(len: usize) -> ([u8; 5], usize) {
    let bytes = match len {
        0..=127 => 1,
        128..=16_382 => 2,
        16_383..=2_097_150 => 3,
        2_097_151..=268_435_454 => 4,
        _ => 5,
    };
    let mut back = [0; 5];
    for (place, byte) in back[..bytes].iter_mut().enumerate() {
        let group = (len >> (7 * (bytes - 1 - place))) as u8 & 0x7f;
        *byte = if place == 0 { group } else { group | 0x80 };
    }
    (back, bytes)
}

/// The entries of a ziplist. Header: bytes (4), offset of the last entry (4), entries (2).
pub fn ziplist(all: &Bytes, most: usize) -> Result<Vec<Bytes>, Problem> {
    let mut rest = Rest::new(all, most);
    let bytes = u32::from_le_bytes(rest.array()?) as usize;
    let last = u32::from_le_bytes(rest.array()?) as usize;
    let count = usize::from(u16::from_le_bytes(rest.array()?));
    if bytes != all.len() {
        return Err(HEADER);
    }
    let (mut start, mut before) = (rest.at, 0);
    while rest.peek()? != END {
        start = rest.at;
        let announced = match rest.byte()? {
            0xfe => u32::from_le_bytes(rest.array()?) as usize,
            len => usize::from(len),
        };
        if announced != before {
            return Err(BACK);
        }
        let entry = ziplist_entry(&mut rest)?;
        rest.found(entry)?;
        before = rest.at - start;
    }
    let is_right = rest.left() == 1 && last == start && (count == MANY || count == rest.parts.len());
    is_right.then_some(rest.parts).ok_or(HEADER)
}

fn ziplist_entry(rest: &mut Rest<'_>) -> Result<Bytes, Problem> {
    let first = rest.byte()?;
    match first {
        0..=0x3f => rest.take(usize::from(first)),
        0x40..=0x7f => {
            let len = usize::from(first & 0x3f) << 8 | usize::from(rest.byte()?);
            rest.take(len)
        }
        0x80 => {
            let len = u32::from_be_bytes(rest.array()?) as usize;
            rest.take(len)
        }
        0xc0 => rest.integer::<2>(),
        0xd0 => rest.integer::<4>(),
        0xe0 => rest.integer::<8>(),
        0xf0 => rest.integer::<3>(),
        0xfe => rest.integer::<1>(),
        // A number from 0 to 12 in the byte itself.
        0xf1..=0xfd => Ok(decimal(i64::from(first & 0x0f) - 1)),
        _ => Err(ENTRY),
    }
}

/// The members of an intset: bytes of each (4), how many (4), the numbers in ascending order.
pub fn intset(all: &Bytes, most: usize) -> Result<Vec<Bytes>, Problem> {
    let mut rest = Rest::new(all, most);
    let width = u32::from_le_bytes(rest.array()?) as usize;
    let count = u32::from_le_bytes(rest.array()?) as usize;
    if !matches!(width, 2 | 4 | 8) || count.checked_mul(width) != Some(rest.left()) {
        return Err(HEADER);
    }
    let mut before = None;
    for number in all[rest.at..].chunks_exact(width) {
        let number = signed(number);
        if before.is_some_and(|before| before >= number) {
            return Err(Problem::Bad("the numbers of an intset are not in their order"));
        }
        before = Some(number);
        rest.found(decimal(number))?;
    }
    Ok(rest.parts)
}

/// The names and values of a zipmap, one after the other: how many pairs there are (1 byte, which
/// need not be right), pairs. A value is followed by unused bytes.
pub fn zipmap(all: &Bytes, most: usize) -> Result<Vec<Bytes>, Problem> {
    let mut rest = Rest::new(all, most);
    rest.byte()?;
    while rest.peek()? != END {
        let len = zipmap_length(&mut rest)?;
        let name = rest.take(len)?;
        rest.found(name)?;
        let len = zipmap_length(&mut rest)?;
        let unused = usize::from(rest.byte()?);
        let value = rest.take(len)?;
        rest.found(value)?;
        rest.take(unused)?;
    }
    (rest.left() == 1).then_some(rest.parts).ok_or(HEADER)
}

fn zipmap_length(rest: &mut Rest<'_>) -> Result<usize, Problem> {
    match rest.byte()? {
        0xfe => Ok(u32::from_le_bytes(rest.array()?) as usize),
        END => Err(ENTRY),
        len => Ok(usize::from(len)),
    }
}
