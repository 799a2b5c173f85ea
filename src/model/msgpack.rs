//! The part of MessagePack that packed collections are made of
//! (<https://github.com/msgpack/msgpack/blob/master/spec.md>): strings, numbers, arrays, maps.
//!
//! A reader allocates nothing, and never trusts an announced length: what is not there is an error.

use std::borrow::Cow;

/// Why bytes cannot be read.
pub type Problem = &'static str;

const CUT: Problem = "it ends too early";

/// Reads one value after the other.
#[derive(Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

/// A number, as it was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// Bytes that are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    fn peek(&self) -> Result<u8, Problem> {
        self.rest.first().copied().ok_or(CUT)
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Problem> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(CUT)?;
        self.rest = rest;
        Ok(taken)
    }

    /// An unsigned number of N bytes, big endian.
    fn number_of<const N: usize>(&mut self) -> Result<u64, Problem> {
        let mut wide = [0; 8];
        wide[8 - N..].copy_from_slice(self.take(N)?);
        Ok(u64::from_be_bytes(wide))
    }

    fn length_of<const N: usize>(&mut self) -> Result<usize, Problem> {
        usize::try_from(self.number_of::<N>()?).map_err(|_| CUT)
    }

    /// The number of pairs of a map that begins here.
    pub fn map(&mut self) -> Result<usize, Problem> {
        let first = self.peek()?;
        self.take(1)?;
        match first {
            0x80..=0x8f => Ok(usize::from(first & 0x0f)),
            0xde => self.length_of::<2>(),
            0xdf => self.length_of::<4>(),
            _ => Err("it is no map"),
        }
    }

    pub fn is_array(&self) -> bool {
        matches!(self.rest.first(), Some(0x90..=0x9f | 0xdc | 0xdd))
    }

    /// The number of elements of an array that begins here.
    pub fn array(&mut self) -> Result<usize, Problem> {
        let first = self.peek()?;
        self.take(1)?;
        match first {
            0x90..=0x9f => Ok(usize::from(first & 0x0f)),
            0xdc => self.length_of::<2>(),
            0xdd => self.length_of::<4>(),
            _ => Err("it is no array"),
        }
    }

    /// A string, bytes, or an integer in decimal.
    pub fn bytes(&mut self) -> Result<Cow<'a, [u8]>, Problem> {
        let len = match self.peek()? {
            first @ 0xa0..=0xbf => {
                self.take(1)?;
                usize::from(first & 0x1f)
            }
            0xc4 | 0xd9 => {
                self.take(1)?;
                self.length_of::<1>()?
            }
            0xc5 | 0xda => {
                self.take(1)?;
                self.length_of::<2>()?
            }
            0xc6 | 0xdb => {
                self.take(1)?;
                self.length_of::<4>()?
            }
            _ => {
                let decimal = match self.number() {
                    Ok(Number::Unsigned(number)) => number.to_string(),
                    Ok(Number::Signed(number)) => number.to_string(),
                    Ok(Number::Float(_)) => return Err("a number with a fraction stands where bytes belong"),
                    Err(problem) => return Err(problem),
                };
                return Ok(Cow::Owned(decimal.into_bytes()));
            }
        };
        self.take(len).map(Cow::Borrowed)
    }

    pub fn number(&mut self) -> Result<Number, Problem> {
        let first = self.peek()?;
        self.take(1)?;
        Ok(match first {
            0x00..=0x7f => Number::Unsigned(u64::from(first)),
            0xe0..=0xff => Number::Signed(i64::from(first as i8)),
            0xcc => Number::Unsigned(self.number_of::<1>()?),
            0xcd => Number::Unsigned(self.number_of::<2>()?),
            0xce => Number::Unsigned(self.number_of::<4>()?),
            0xcf => Number::Unsigned(self.number_of::<8>()?),
            0xd0 => Number::Signed(i64::from(self.number_of::<1>()? as i8)),
            0xd1 => Number::Signed(i64::from(self.number_of::<2>()? as i16)),
            0xd2 => Number::Signed(i64::from(self.number_of::<4>()? as i32)),
            0xd3 => Number::Signed(self.number_of::<8>()? as i64),
            0xca => Number::Float(f64::from(f32::from_bits(self.number_of::<4>()? as u32))),
            0xcb => Number::Float(f64::from_bits(self.number_of::<8>()?)),
            _ => return Err("it holds something else than bytes and numbers"),
        })
    }
}

/// Appends the beginning of a map of so many pairs.
pub fn put_map(len: usize, out: &mut Vec<u8>) {
    put_header(len, (0x80, 0xde, 0xdf), out);
}

/// Appends the beginning of an array of so many elements.
pub fn put_array(len: usize, out: &mut Vec<u8>) {
    put_header(len, (0x90, 0xdc, 0xdd), out);
}

fn put_header(len: usize, (short, wide, widest): (u8, u8, u8), out: &mut Vec<u8>) {
    match len {
        0..=15 => out.push(short | len as u8),
        16..=0xffff => {
            out.push(wide);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.push(widest);
            out.extend_from_slice(&(len as u32).to_be_bytes());
        }
    }
}

/// Appends a string if the bytes are UTF-8, so that every language reads text as text; else bytes.
pub fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    let is_text = std::str::from_utf8(bytes).is_ok();
    let len = bytes.len();
    match (is_text, len) {
        (true, 0..=31) => out.push(0xa0 | len as u8),
        (_, 0..=0xff) => out.extend_from_slice(&[if is_text { 0xd9 } else { 0xc4 }, len as u8]),
        (_, 0x100..=0xffff) => {
            out.push(if is_text { 0xda } else { 0xc5 });
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            out.push(if is_text { 0xdb } else { 0xc6 });
            out.extend_from_slice(&(len as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(bytes);
}

/// Appends an unsigned number in its shortest form.
pub fn put_unsigned(number: u64, out: &mut Vec<u8>) {
    match number {
        0..=0x7f => out.push(number as u8),
        0x80..=0xff => out.extend_from_slice(&[0xcc, number as u8]),
        0x100..=0xffff => {
            out.push(0xcd);
            out.extend_from_slice(&(number as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xce);
            out.extend_from_slice(&(number as u32).to_be_bytes());
        }
        _ => {
            out.push(0xcf);
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

/// Appends a number with a fraction, of 64 bits.
pub fn put_float(number: f64, out: &mut Vec<u8>) {
    out.push(0xcb);
    out.extend_from_slice(&number.to_bits().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_put_comes_back(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..70),
                "[a-zä]{0,40}".prop_map(String::into_bytes),
                (250..260_usize).prop_map(|len| vec![b'x'; len]),
                (65_530..65_540_usize).prop_map(|len| vec![0xff; len]),
            ],
            number in prop_oneof![any::<u64>(), 0..300_u64, 65_530..65_540_u64],
            float in any::<f64>(),
            len in prop_oneof![0..20_usize, 65_530..65_540_usize],
        ) {
            let mut out = Vec::new();
            put_bytes(&bytes, &mut out);
            put_unsigned(number, &mut out);
            put_float(float, &mut out);
            put_map(len, &mut out);
            put_array(len, &mut out);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.bytes(), Ok(Cow::Borrowed(&bytes[..])));
            prop_assert_eq!(reader.number(), Ok(Number::Unsigned(number)));
            let Ok(Number::Float(read)) = reader.number() else { panic!("no float") };
            prop_assert_eq!(read.to_bits(), float.to_bits());
            prop_assert_eq!(reader.map(), Ok(len));
            prop_assert!(reader.is_array());
            prop_assert_eq!(reader.array(), Ok(len));
            prop_assert!(reader.is_at_end());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            for read in [
                |reader: &mut Reader<'_>| reader.bytes().map(drop),
                |reader: &mut Reader<'_>| reader.number().map(drop),
                |reader: &mut Reader<'_>| reader.map().map(drop),
                |reader: &mut Reader<'_>| reader.array().map(drop),
            ] {
                let mut reader = Reader::new(&bytes);
                while !reader.is_at_end() && read(&mut reader).is_ok() {}
            }
        }
    }

    #[test]
    fn integers_are_read_as_decimal_bytes() {
        for (written, read) in [
            (&[0x05][..], "5"),
            (&[0xff], "-1"),
            (&[0xd1, 0x80, 0x00], "-32768"),
            (&[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0], "-9223372036854775808"),
            (
                &[0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                "18446744073709551615",
            ),
        ] {
            assert_eq!(Reader::new(written).bytes().as_deref(), Ok(read.as_bytes()));
        }
        for wrong in [
            &[0xc0][..],
            &[0xc3],
            &[0xcb, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0xd4, 1, 2],
            &[0x90],
            &[],
        ] {
            assert!(Reader::new(wrong).bytes().is_err(), "{wrong:?}");
        }
    }
}
