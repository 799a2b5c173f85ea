//! Replies as data, and their encoding for the version a connection speaks.
//!
//! A command builds a [`Reply`] in the richer types of RESP3. [`encode`] writes it, and for RESP2
//! downgrades it the way Redis does (a map becomes a flat array, a boolean an integer, …). The
//! `write_*` functions append a single reply of the frequent kinds without building one.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};
use rustc_hash::FxHashSet;

use super::format_double;

/// The version of the protocol that a connection speaks (HELLO).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    #[default]
    Resp2,
    Resp3,
}

/// The reply to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Ok,
    /// A status. CR and LF become spaces.
    Simple(Cow<'static, str>),
    /// An error with its code: `ERR syntax error`. Bytes, because Redis echoes what the client
    /// sent. CR and LF become spaces.
    Error(Bytes),
    Int(i64),
    Bulk(Bytes),
    /// RESP2: a null bulk string.
    Null,
    /// RESP2: a null array.
    NullArray,
    Array(Vec<Reply>),
    /// RESP2: a flat array.
    Map(Vec<(Reply, Reply)>),
    /// An array of arrays of two, as ZRANGE WITHSCORES answers it; RESP2: a flat array.
    Pairs(Vec<(Reply, Reply)>),
    /// A map, as XREAD answers it; RESP2: an array of arrays of two.
    Streams(Vec<(Reply, Reply)>),
    /// RESP2: an array.
    Set(Vec<Reply>),
    /// Out-of-band data; RESP2: an array.
    Push(Vec<Reply>),
    /// RESP2: a bulk string.
    Double(f64),
    /// The text of a number with up to 17 decimals, as Redis prints coordinates; RESP2: a bulk
    /// string.
    Decimal(String),
    /// RESP2: 1 or 0.
    Bool(bool),
    /// Text with its format, three letters (`txt`, `mkd`); RESP2: a bulk string.
    Verbatim {
        format: [u8; 3],
        text: Bytes,
    },
    /// Decimal digits of an integer of any size; RESP2: a bulk string.
    BigNumber(Cow<'static, str>),
    /// Several replies one after the other (SUBSCRIBE has one reply per channel). Never inside
    /// another reply.
    Several(Vec<Reply>),
    /// Nothing is sent. Never inside another reply.
    None,
}

impl Reply {
    pub fn simple(text: impl Into<Cow<'static, str>>) -> Reply {
        Reply::Simple(text.into())
    }

    /// `text` starts with the error's code.
    pub fn error(text: impl Into<Bytes>) -> Reply {
        Reply::Error(text.into())
    }

    /// Copies `bytes`. A value that is already a `Bytes` goes into [`Reply::Bulk`] without a copy.
    pub fn bulk(bytes: impl AsRef<[u8]>) -> Reply {
        Reply::Bulk(Bytes::copy_from_slice(bytes.as_ref()))
    }

    /// Plain text, which clients show as it is.
    pub fn verbatim(text: String) -> Reply {
        Reply::Verbatim {
            format: *b"txt",
            text: text.into(),
        }
    }

    /// Roughly how many bytes the encoded reply has.
    pub fn size(&self) -> usize {
        match self {
            Reply::Bulk(bytes) | Reply::Error(bytes) | Reply::Verbatim { text: bytes, .. } => bytes.len() + 16,
            Reply::Decimal(text) => text.len() + 16,
            Reply::Array(items) | Reply::Set(items) | Reply::Push(items) | Reply::Several(items) => {
                items.iter().map(Reply::size).sum::<usize>() + 16
            }
            Reply::Map(pairs) | Reply::Pairs(pairs) | Reply::Streams(pairs) => {
                pairs.iter().map(|(k, v)| k.size() + v.size()).sum::<usize>() + 16
            }
            _ => 16,
        }
    }

    pub fn is_error(&self) -> bool {
        matches!(self, Reply::Error(_))
    }
}

impl From<i64> for Reply {
    fn from(value: i64) -> Reply {
        Reply::Int(value)
    }
}

impl From<Option<Bytes>> for Reply {
    fn from(value: Option<Bytes>) -> Reply {
        value.map_or(Reply::Null, Reply::Bulk)
    }
}

/// Appends `reply` to `out`.
pub fn encode(reply: &Reply, version: Version, out: &mut BytesMut) {
    let resp3 = version == Version::Resp3;
    match reply {
        Reply::Ok => write_ok(out),
        Reply::Int(value) => write_int(out, *value),
        Reply::Bulk(bytes) => write_bulk(out, bytes),
        Reply::Null => write_null(out, version),
        Reply::Simple(text) => write_line(out, b'+', text.as_bytes()),
        Reply::Error(text) => write_error(out, text),
        Reply::NullArray => out.put_slice(if resp3 { b"_\r\n" } else { b"*-1\r\n" }),
        Reply::Array(items) => write_items(out, b'*', items, version),
        Reply::Map(pairs) => {
            let (kind, len) = if resp3 {
                (b'%', pairs.len())
            } else {
                (b'*', 2 * pairs.len())
            };
            write_header(out, kind, len);
            for (key, value) in pairs {
                encode(key, version, out);
                encode(value, version, out);
            }
        }
        Reply::Pairs(pairs) => {
            write_header(out, b'*', if resp3 { pairs.len() } else { 2 * pairs.len() });
            for (first, second) in pairs {
                if resp3 {
                    write_header(out, b'*', 2);
                }
                encode(first, version, out);
                encode(second, version, out);
            }
        }
        Reply::Streams(pairs) => {
            write_header(out, if resp3 { b'%' } else { b'*' }, pairs.len());
            for (first, second) in pairs {
                if !resp3 {
                    write_header(out, b'*', 2);
                }
                encode(first, version, out);
                encode(second, version, out);
            }
        }
        Reply::Set(items) => write_items(out, if resp3 { b'~' } else { b'*' }, items, version),
        Reply::Push(items) => write_items(out, if resp3 { b'>' } else { b'*' }, items, version),
        Reply::Double(value) if resp3 => write_line(out, b',', format_double(*value).as_bytes()),
        Reply::Double(value) => write_bulk(out, format_double(*value).as_bytes()),
        Reply::Decimal(text) if resp3 => write_line(out, b',', text.as_bytes()),
        Reply::Decimal(text) => write_bulk(out, text.as_bytes()),
        Reply::Bool(value) if resp3 => out.put_slice(if *value { b"#t\r\n" } else { b"#f\r\n" }),
        Reply::Bool(value) => write_int(out, i64::from(*value)),
        Reply::Verbatim { format, text } if resp3 => write_verbatim(out, *format, text),
        Reply::Verbatim { text, .. } => write_bulk(out, text),
        Reply::BigNumber(digits) if resp3 => write_line(out, b'(', digits.as_bytes()),
        Reply::BigNumber(digits) => write_bulk(out, digits.as_bytes()),
        Reply::Several(replies) => replies.iter().for_each(|reply| encode(reply, version, out)),
        Reply::None => {}
    }
}

/// The memory that replies keep. A value that is in them several times is counted once.
#[derive(Default)]
pub struct Weight {
    bytes: usize,
    /// Addresses of the values that were counted already.
    counted: FxHashSet<usize>,
}

/// Smaller values are counted each time: that costs less than remembering them.
const REMEMBERED: usize = 1 << 10;

impl Weight {
    pub fn add(&mut self, reply: &Reply) {
        self.bytes += size_of::<Reply>();
        match reply {
            Reply::Bulk(value) if value.len() < REMEMBERED || self.counted.insert(value.as_ptr() as usize) => {
                self.bytes += value.len();
            }
            Reply::Array(items) => items.iter().for_each(|item| self.add(item)),
            Reply::Map(pairs) | Reply::Pairs(pairs) | Reply::Streams(pairs) => {
                pairs.iter().for_each(|(first, second)| {
                    self.add(first);
                    self.add(second);
                })
            }
            _ => {}
        }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A large reply that is encoded piece by piece while it is sent.
pub struct Encoding<'r> {
    /// What is still to be encoded. The next piece is the last one.
    rest: Vec<Piece<'r>>,
    version: Version,
}

enum Piece<'r> {
    Reply(&'r Reply),
    Bytes(&'r [u8]),
}

impl<'r> Encoding<'r> {
    pub fn new(reply: &'r Reply, version: Version) -> Self {
        Encoding {
            rest: vec![Piece::Reply(reply)],
            version,
        }
    }

    /// Appends so many bytes, or slightly more. Returns false when that was all.
    pub fn encode(&mut self, out: &mut BytesMut, least: usize) -> bool {
        let enough = out.len() + least;
        while out.len() < enough {
            let Some(piece) = self.rest.pop() else {
                return false;
            };
            match piece {
                Piece::Bytes(bytes) => {
                    let (now, later) = bytes.split_at(bytes.len().min(enough - out.len()));
                    out.put_slice(now);
                    if !later.is_empty() {
                        self.rest.push(Piece::Bytes(later));
                    }
                }
                Piece::Reply(Reply::Array(items)) => {
                    write_header(out, b'*', items.len());
                    self.rest.extend(items.iter().rev().map(Piece::Reply));
                }
                Piece::Reply(Reply::Bulk(bytes)) if bytes.len() > least => {
                    write_header(out, b'$', bytes.len());
                    self.rest.extend([Piece::Bytes(b"\r\n"), Piece::Bytes(bytes)]);
                }
                Piece::Reply(other) => encode(other, self.version, out),
            }
        }
        true
    }
}

#[inline]
pub fn write_ok(out: &mut BytesMut) {
    out.put_slice(b"+OK\r\n");
}

#[inline]
pub fn write_null(out: &mut BytesMut, version: Version) {
    match version {
        Version::Resp2 => out.put_slice(b"$-1\r\n"),
        Version::Resp3 => out.put_slice(b"_\r\n"),
    }
}

#[inline]
pub fn write_int(out: &mut BytesMut, value: i64) {
    write_number(out, b':', value);
}

#[inline]
pub fn write_bulk(out: &mut BytesMut, bytes: &[u8]) {
    out.reserve(bytes.len() + HEADER + 2);
    write_header(out, b'$', bytes.len());
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}

/// The number of items of an array or a push, without the byte that says which of them it is.
#[inline]
pub fn write_length(out: &mut BytesMut, items: usize) {
    let mut digits = itoa::Buffer::new();
    out.put_slice(digits.format(items).as_bytes());
    out.put_slice(b"\r\n");
}

/// `text` starts with the error's code. CR and LF at its ends are dropped; elsewhere they become
/// spaces, as in Redis.
pub fn write_error(out: &mut BytesMut, text: &[u8]) {
    let is_break = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let start = text.iter().position(|byte| !is_break(byte)).unwrap_or(text.len());
    let end = text
        .iter()
        .rposition(|byte| !is_break(byte))
        .map_or(start, |last| last + 1);
    write_line(out, b'-', &text[start..end]);
}

/// Room for a type byte, a number and CR LF.
const HEADER: usize = 24;

#[inline]
fn write_header(out: &mut BytesMut, kind: u8, len: usize) {
    write_number(out, kind, len as i64);
}

/// The line is put together first, so that it is appended in one step.
#[inline]
fn write_number(out: &mut BytesMut, kind: u8, value: i64) {
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(value).as_bytes();
    let mut line = [0; HEADER];
    line[0] = kind;
    line[1..=digits.len()].copy_from_slice(digits);
    line[digits.len() + 1..digits.len() + 3].copy_from_slice(b"\r\n");
    out.put_slice(&line[..digits.len() + 3]);
}

/// A line holds no CR or LF, wherever its text came from: they would end the reply early.
fn write_line(out: &mut BytesMut, kind: u8, text: &[u8]) {
    out.reserve(text.len() + 3);
    out.put_u8(kind);
    let start = out.len();
    out.put_slice(text);
    for byte in &mut out[start..] {
        if matches!(byte, b'\r' | b'\n') {
            *byte = b' ';
        }
    }
    out.put_slice(b"\r\n");
}

fn write_verbatim(out: &mut BytesMut, format: [u8; 3], text: &[u8]) {
    write_header(out, b'=', text.len() + 4);
    out.put_slice(&format);
    out.put_u8(b':');
    out.put_slice(text);
    out.put_slice(b"\r\n");
}

fn write_items(out: &mut BytesMut, kind: u8, items: &[Reply], version: Version) {
    write_header(out, kind, items.len());
    for item in items {
        encode(item, version, out);
    }
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
