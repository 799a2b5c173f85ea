//! What bytes come from, and the parts that every form is made of: lengths, strings, times.

use std::io;

use bytes::Bytes;

use super::{Problem, lzf, packed};

/// What an element counts besides its bytes: what it takes in memory.
pub const ELEMENT: usize = 64;

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
}

/// The first byte of a compressed string.
pub const LZF: u8 = 0xc3;

/// What is read may have so many bytes and no more.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of a string, compressed or not.
    pub string: usize,
    /// Of memory that a value takes, each element counting 64 bytes more than it has.
    pub memory: usize,
}

/// Where bytes come from.
pub trait Source {
    fn fill(&mut self, into: &mut [u8]) -> io::Result<()>;

    /// The next bytes. Memory is taken as they come, not as they are announced.
    fn take(&mut self, len: usize) -> io::Result<Bytes>;
}

impl Source for &[u8] {
    fn fill(&mut self, into: &mut [u8]) -> io::Result<()> {
        let (first, rest) = self.split_at_checked(into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(first);
        *self = rest;
        Ok(())
    }

    fn take(&mut self, len: usize) -> io::Result<Bytes> {
        let (first, rest) = self.split_at_checked(len).ok_or(io::ErrorKind::UnexpectedEof)?;
        *self = rest;
        Ok(Bytes::copy_from_slice(first))
    }
}

pub struct Reader<S> {
    pub source: S,
    limits: Limits,
    /// Memory that may still be taken.
    left: usize,
}

impl Reader<&[u8]> {
    pub fn is_at_end(&self) -> bool {
        self.source.is_empty()
    }
}

impl<S: Source> Reader<S> {
    pub fn new(source: S, limits: Limits) -> Self {
        let left = limits.memory;
        Reader { source, limits, left }
    }

    /// The next value may take as much memory as this one might have.
    pub fn next_value(&mut self) {
        self.left = self.limits.memory;
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Problem> {
        let mut bytes = [0; N];
        self.source.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub fn byte(&mut self) -> Result<u8, Problem> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    /// A time in milliseconds since the epoch.
    pub fn time(&mut self) -> Result<i64, Problem> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    /// Counts what is about to be kept in memory.
    pub fn keep(&mut self, bytes: usize) -> Result<(), Problem> {
        let left = self.left.checked_sub(bytes.saturating_add(ELEMENT));
        self.left = left.ok_or(Problem::TooLarge)?;
        Ok(())
    }

    /// The parts of a collection that is kept as one string.
    pub fn packed(&mut self, unpack: packed::Unpack) -> Result<Vec<Bytes>, Problem> {
        let all = self.string()?;
        let parts = unpack(&all, self.left / ELEMENT)?;
        self.left -= parts.len() * ELEMENT;
        Ok(parts)
    }

    pub fn length(&mut self) -> Result<u64, Problem> {
        let first = self.byte()?;
        self.length_after(first)
    }

    fn length_after(&mut self, first: u8) -> Result<u64, Problem> {
        match (first >> 6, first) {
            (length::SIX_BITS, _) => Ok(u64::from(first)),
            (length::FOURTEEN_BITS, _) => Ok(u64::from(first & 0x3f) << 8 | u64::from(self.byte()?)),
            (length::WHOLE, length::FOUR_BYTES) => Ok(u64::from(u32::from_be_bytes(self.array()?))),
            (length::WHOLE, length::EIGHT_BYTES) => Ok(u64::from_be_bytes(self.array()?)),
            _ => Err(Problem::Bad("a length is in no known form")),
        }
    }

    /// A length of bytes, which may not be more than a string may have.
    fn size_after(&mut self, first: u8) -> Result<usize, Problem> {
        let size = self.length_after(first)?;
        let size = usize::try_from(size).ok().filter(|size| *size <= self.limits.string);
        size.ok_or(Problem::TooLarge)
    }

    /// A string in any form.
    pub fn string(&mut self) -> Result<Bytes, Problem> {
        let first = self.byte()?;
        let number = match first {
            length::INT8 => i32::from(i8::from_le_bytes(self.array()?)),
            length::INT16 => i32::from(i16::from_le_bytes(self.array()?)),
            length::INT32 => i32::from_le_bytes(self.array()?),
            _ => return self.text_after(first),
        };
        self.keep(0)?;
        Ok(number.to_string().into())
    }

    /// A string that is not in the form of a number.
    pub fn text(&mut self) -> Result<Bytes, Problem> {
        let first = self.byte()?;
        self.text_after(first)
    }

    fn text_after(&mut self, first: u8) -> Result<Bytes, Problem> {
        if first >> 6 != length::ENCODED {
            let len = self.size_after(first)?;
            self.keep(len)?;
            return Ok(self.source.take(len)?);
        }
        if first != LZF {
            return Err(Problem::Bad("a string is in no known form"));
        }
        let first = self.byte()?;
        let compressed = self.size_after(first)?;
        let first = self.byte()?;
        let len = self.size_after(first)?;
        self.keep(len)?;
        let compressed = self.source.take(compressed)?;
        lzf::decompress(&compressed, len).ok_or(Problem::Bad("a compressed string is damaged"))
    }
}
