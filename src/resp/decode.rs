//! Decoding of requests.
//!
//! The connection appends what it reads to one buffer and calls [`Decoder::decode`], which finds
//! every complete request in it and keeps the place of each argument: ranges into that buffer, no
//! copy, no allocation per argument. The requests are executed, then [`Decoder::finish`] returns
//! how many bytes the connection may drop:
//!
//! ```
//! # use highwater::resp::{Decoder, Limits, Next};
//! # let mut buffer = bytes::BytesMut::from(&b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r"[..]);
//! # let (mut decoder, limits) = (Decoder::new(), Limits::default());
//! let next = decoder.decode(&mut buffer, &limits, 1024);
//! for request in decoder.requests(&buffer) {
//!     assert_eq!(&request.args()[..], [b"PING"]); // execute it
//! }
//! bytes::Buf::advance(&mut buffer, decoder.finish());
//! match next {
//!     Next::Missing(_) => (), // read more from the socket
//!     Next::More => (),       // decode again before reading
//!     Next::Failed(error) => panic!("{error}"), // send it, then close the connection
//! }
//! # assert_eq!((next, &buffer[..]), (Next::Missing(1), &b"*1\r\n$4\r"[..]));
//! ```
//!
//! A request that is not complete stays in the buffer, and the decoder remembers what it knows
//! about it. It looks at no byte of a line again except the last one, and at no byte of an argument
//! at all. The work is linear in the bytes received, however they were split, and what is decoded
//! does not depend on how they were split.
//!
//! Memory: a range takes 8 bytes, and an argument at least 6 bytes of the buffer. Nothing is
//! reserved because a header announced it.
//!
//! What is accepted and what is refused is exactly what Redis 7 does (measured, see the tests),
//! oddities included: the byte after CR is not looked at, nor are the two after an argument, and a
//! line with a NUL in it never ends.

use std::fmt;

use bytes::{BufMut, BytesMut};
use smallvec::SmallVec;

use super::inline;

/// Limits of a request. They can change between two calls of [`Decoder::decode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Arguments of one request.
    pub max_args: usize,
    /// Bytes of one argument (`proto-max-bulk-len`).
    pub max_bulk: usize,
    /// Bytes of an inline request or of a header line; 16 or more.
    pub max_line: usize,
    /// Bytes of one request (`client-query-buffer-limit`). More than 4 GiB counts as 4 GiB.
    pub max_request: usize,
    /// Until it is true, the client may send [`UNAUTHENTICATED_ARGS`] and [`UNAUTHENTICATED_BULK`]
    /// at most.
    pub authenticated: bool,
}

pub const UNAUTHENTICATED_ARGS: usize = 10;
pub const UNAUTHENTICATED_BULK: usize = 16384;

impl Default for Limits {
    /// Redis's defaults, for a client that needs no authentication.
    fn default() -> Limits {
        Limits {
            max_args: i32::MAX as usize,
            max_bulk: 512 << 20,
            max_line: 64 << 10,
            max_request: 1 << 30,
            authenticated: true,
        }
    }
}

/// Why a connection has to be closed. The text is Redis's own, without its `ERR `.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("Protocol error: too big inline request")]
    InlineTooBig,
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    #[error("Protocol error: too big mbulk count string")]
    CountTooBig,
    #[error("Protocol error: too big bulk count string")]
    BulkHeaderTooBig,
    #[error("Protocol error: invalid multibulk length")]
    InvalidCount,
    #[error("Protocol error: invalid bulk length")]
    InvalidBulkLength,
    #[error("Protocol error: unauthenticated multibulk length")]
    UnauthenticatedCount,
    #[error("Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulkLength,
    #[error("Protocol error: expected '$', got '{}'", printable(*.0))]
    ExpectedDollar(u8),
    /// Redis closes the connection without a reply here. The reason helps a client more.
    #[error("Protocol error: request exceeds client-query-buffer-limit")]
    RequestTooBig,
}

/// An error is one line: CR and LF become spaces, as in Redis.
fn printable(byte: u8) -> char {
    match byte {
        b'\r' | b'\n' => ' ',
        byte => byte.into(),
    }
}

impl ProtocolError {
    /// Appends the error reply, byte for byte as Redis sends it (the byte that was received may not
    /// be UTF-8).
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            ProtocolError::ExpectedDollar(byte) => {
                out.put_slice(b"-ERR Protocol error: expected '$', got '");
                out.put_u8(printable(*byte) as u8);
                out.put_slice(b"'\r\n");
            }
            other => super::write_error(out, format!("ERR {other}").as_bytes()),
        }
    }
}

/// What a connection does after it has executed the requests that [`Decoder::decode`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Read more: the request under way needs at least this many more bytes. For a large argument
    /// that is all of it, so that room can be made once. But a client can announce much and send
    /// nothing, so room should be made in proportion to what has arrived ([`Next::room`]).
    Missing(usize),
    /// As many requests as were asked for are decoded, and there may be more: call again.
    More,
    /// Send the error and close. The requests before it are valid and are executed first.
    Failed(ProtocolError),
}

impl Next {
    /// Free space that the next read should find in a buffer that holds `buffered` bytes: what is
    /// missing, but no more than the buffer already holds (or 1 MiB), so that memory follows what a
    /// client really sent.
    pub fn room(&self, buffered: usize) -> usize {
        const LEAST: usize = 16 << 10;
        const UNEARNED: usize = 1 << 20;
        match self {
            Next::Missing(bytes) => (*bytes).clamp(LEAST, buffered.max(UNEARNED)),
            _ => LEAST,
        }
    }
}

/// Where an argument is in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    /// Positions fit: `decode` looks at no more than `u32::MAX` bytes of a buffer.
    pub fn new(start: usize, end: usize) -> Span {
        Span {
            start: start as u32,
            end: end as u32,
        }
    }
}

/// What the decoder expects at `Decoder::at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// A request. Its first byte says which form it has.
    Start,
    /// The header of an argument: `$3\r\n`.
    Header {
        args_left: usize,
    },
    /// The bytes of an argument and CR LF.
    Bulk {
        args_left: usize,
        len: usize,
    },
    Failed(ProtocolError),
}

/// Incremental decoder of the requests of one connection; see the module's documentation.
#[derive(Debug)]
pub struct Decoder {
    /// Arguments of the complete requests, then those of the request under way. Relative to the
    /// start of the buffer.
    spans: Vec<Span>,
    /// For each complete request, where its arguments end in `spans`. A request has at least one
    /// argument.
    ends: Vec<usize>,
    /// Indexes of requests, complete or to come, that an empty request stands before; ascending.
    empties: Vec<usize>,
    /// Where the request under way starts in the buffer. Everything before it is complete.
    done: usize,
    /// The next byte to decode.
    at: usize,
    /// How many bytes from `at` on are known not to end the line.
    scanned: usize,
    state: Expected,
    #[cfg(test)]
    pub(super) examined: usize,
}

/// Capacities that an idle connection keeps.
const KEPT_SPANS: usize = 1024;
const KEPT_REQUESTS: usize = 256;

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

impl Decoder {
    pub fn new() -> Decoder {
        Decoder {
            spans: Vec::new(),
            ends: Vec::new(),
            empties: Vec::new(),
            done: 0,
            at: 0,
            scanned: 0,
            state: Expected::Start,
            #[cfg(test)]
            examined: 0,
        }
    }

    /// Decodes until `max_requests` (at least 1) complete requests are there or the buffer has no
    /// more. Empty requests are passed over, as Redis does; [`Decoder::follows_empty`] says where
    /// they stood.
    ///
    /// `buffer` starts where it started at the last call, or `finish` bytes later: the connection
    /// only appends, and drops as many bytes as `finish` returns. The arguments of an inline
    /// request are unescaped in place.
    ///
    /// Before authentication one request is decoded at a time: an AUTH changes the limits of the
    /// next one.
    pub fn decode(&mut self, buffer: &mut [u8], limits: &Limits, max_requests: usize) -> Next {
        let whole = buffer.len();
        let buffer = &mut buffer[..whole.min(u32::MAX as usize)];
        let max_requests = if limits.authenticated { max_requests.max(1) } else { 1 };
        while self.ends.len() < max_requests {
            match self.step(buffer, limits) {
                Ok(None) => {}
                // The rest is beyond what a range can reach. It is decoded once the complete
                // requests are dropped.
                Ok(Some(_)) if buffer.len() < whole && self.done > 0 => return Next::More,
                Ok(Some(missing)) => return Next::Missing(missing),
                Err(error) => {
                    self.state = Expected::Failed(error);
                    return Next::Failed(error);
                }
            }
        }
        Next::More
    }

    /// The complete requests. `buffer` is the one last given to `decode`, not advanced since then.
    pub fn requests<'a>(&'a self, buffer: &'a [u8]) -> impl ExactSizeIterator<Item = Request<'a>> {
        (0..self.ends.len()).map(|index| self.request(index, buffer))
    }

    /// How many requests are complete.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether an empty request (an empty line, `*0`) stands before the request with this index,
    /// which may be one to come.
    pub fn follows_empty(&self, index: usize) -> bool {
        self.empties.binary_search(&index).is_ok()
    }

    /// One of the complete requests, counted from 0.
    pub fn request<'a>(&'a self, index: usize, buffer: &'a [u8]) -> Request<'a> {
        let first = if index == 0 { 0 } else { self.ends[index - 1] };
        Request {
            buffer,
            spans: &self.spans[first..self.ends[index]],
        }
    }

    /// Forgets the complete requests and returns how many bytes at the start of the buffer are no
    /// longer needed. The connection advances its buffer by that before it decodes again.
    pub fn finish(&mut self) -> usize {
        let served = self.done;
        if served == 0 {
            return 0;
        }
        let complete = self.ends.last().copied().unwrap_or(0);
        self.spans.drain(..complete);
        // Each range moves at most once: from now on its request is the first one in the buffer.
        for span in &mut self.spans {
            *span = Span {
                start: span.start - served as u32,
                end: span.end - served as u32,
            };
        }
        self.spans.shrink_to(KEPT_SPANS);
        self.ends.clear();
        self.ends.shrink_to(KEPT_REQUESTS);
        self.empties.clear();
        self.empties.shrink_to(KEPT_REQUESTS);
        self.at -= served;
        self.done = 0;
        served
    }

    /// Decodes one part of a request. `Some` is the number of bytes that are missing for it.
    #[inline]
    fn step(&mut self, buffer: &mut [u8], limits: &Limits) -> Result<Option<usize>, ProtocolError> {
        match self.state {
            Expected::Start => match buffer.get(self.at) {
                None => Ok(Some(1)),
                Some(b'*') => self.count(buffer, limits),
                Some(_) => self.inline(buffer, limits),
            },
            Expected::Header { args_left } => self.header(buffer, limits, args_left),
            Expected::Bulk { args_left, len } => Ok(self.bulk(buffer, args_left, len)),
            Expected::Failed(error) => Err(error),
        }
    }

    /// `*3\r\n`: how many arguments follow.
    #[inline]
    fn count(&mut self, buffer: &[u8], limits: &Limits) -> Result<Option<usize>, ProtocolError> {
        let (count, next) = match self.number_line(buffer, limits, ProtocolError::CountTooBig)? {
            Line::Missing(bytes) => return Ok(Some(bytes)),
            Line::Number { value, next } => (value, next),
        };
        let count = count.ok_or(ProtocolError::InvalidCount)?;
        // A negative count is an empty request, like zero.
        let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        if count > limits.max_args {
            return Err(ProtocolError::InvalidCount);
        }
        if count > UNAUTHENTICATED_ARGS && !limits.authenticated {
            return Err(ProtocolError::UnauthenticatedCount);
        }
        self.at = next;
        match count {
            0 => self.empty(),
            args_left => self.state = Expected::Header { args_left },
        }
        Ok(None)
    }

    /// `$3\r\n`: how long the next argument is.
    #[inline]
    fn header(&mut self, buffer: &[u8], limits: &Limits, args_left: usize) -> Result<Option<usize>, ProtocolError> {
        let (len, next) = match self.number_line(buffer, limits, ProtocolError::BulkHeaderTooBig)? {
            Line::Missing(bytes) => return Ok(Some(bytes)),
            Line::Number { value, next } => (value, next),
        };
        match buffer[self.at] {
            b'$' => {}
            other => return Err(ProtocolError::ExpectedDollar(other)),
        }
        let len = match len.map(usize::try_from) {
            Some(Ok(len)) if len <= limits.max_bulk => len,
            _ => return Err(ProtocolError::InvalidBulkLength),
        };
        if len > UNAUTHENTICATED_BULK && !limits.authenticated {
            return Err(ProtocolError::UnauthenticatedBulkLength);
        }
        let so_far = next - self.done;
        if len.saturating_add(so_far + 2) > limits.max_request.min(u32::MAX as usize) {
            return Err(ProtocolError::RequestTooBig);
        }
        self.at = next;
        self.state = Expected::Bulk { args_left, len };
        Ok(self.bulk(buffer, args_left, len))
    }

    /// The bytes of an argument and the two that end it, whatever these two are.
    #[inline]
    fn bulk(&mut self, buffer: &[u8], args_left: usize, len: usize) -> Option<usize> {
        let next = self.at + len + 2;
        if next > buffer.len() {
            return Some(next - buffer.len());
        }
        self.spans.push(Span::new(self.at, self.at + len));
        self.at = next;
        self.state = Expected::Header {
            args_left: args_left - 1,
        };
        if args_left == 1 {
            self.complete();
        }
        None
    }

    /// A request as a person types it.
    fn inline(&mut self, buffer: &mut [u8], limits: &Limits) -> Result<Option<usize>, ProtocolError> {
        let Some(newline) = self.find(buffer, b'\n', limits.max_line, ProtocolError::InlineTooBig)? else {
            return Ok(Some(1));
        };
        let mut line = &mut buffer[self.at..newline];
        if let [before @ .., b'\r'] = line {
            line = before;
        }
        let complete = self.spans.len();
        inline::split(line, self.at, &mut self.spans).map_err(|_| ProtocolError::UnbalancedQuotes)?;
        self.at = newline + 1;
        self.scanned = 0;
        if self.spans.len() > complete {
            self.complete();
        } else {
            self.empty();
        }
        Ok(None)
    }

    /// The request under way has no arguments: it is passed over.
    fn empty(&mut self) {
        self.done = self.at;
        if self.empties.last() != Some(&self.ends.len()) {
            self.empties.push(self.ends.len());
        }
    }

    /// The request under way is complete. The next one starts after it.
    #[inline]
    fn complete(&mut self) {
        self.ends.push(self.spans.len());
        self.done = self.at;
        self.state = Expected::Start;
    }

    /// The number after the first byte of the line at `at`. CR ends the line, and one more byte
    /// belongs to it.
    #[inline]
    fn number_line(&mut self, buffer: &[u8], limits: &Limits, too_big: ProtocolError) -> Result<Line, ProtocolError> {
        if self.scanned == 0 {
            let line = &buffer[self.at..];
            let usual = usual_number(line);
            self.count_examined(usual.map_or(line.len().min(USUAL_DIGITS + 2), |(_, next)| next));
            if let Some((value, next)) = usual {
                return Ok(Line::Number {
                    value: Some(value),
                    next: self.at + next,
                });
            }
        }
        self.unusual_number_line(buffer, limits, too_big)
    }

    #[cold]
    fn unusual_number_line(
        &mut self,
        buffer: &[u8],
        limits: &Limits,
        too_big: ProtocolError,
    ) -> Result<Line, ProtocolError> {
        let Some(cr) = self.find(buffer, b'\r', limits.max_line, too_big)? else {
            return Ok(Line::Missing(1));
        };
        if cr + 2 > buffer.len() {
            return Ok(Line::Missing(1));
        }
        self.scanned = 0;
        Ok(Line::Number {
            // The first byte may itself be the CR: then there is nothing after it.
            value: buffer.get(self.at + 1..cr).and_then(number),
            next: cr + 2,
        })
    }

    /// Where the line at `at` ends: at the first `end`. It has to be among the first `max + 1`
    /// bytes of the line.
    fn find(
        &mut self,
        buffer: &[u8],
        end: u8,
        max: usize,
        too_big: ProtocolError,
    ) -> Result<Option<usize>, ProtocolError> {
        let line = &buffer[self.at..];
        let inside = &line[..line.len().min(max.saturating_add(1))];
        // Redis looks for the end as in a C string: after a NUL it is never found.
        let found = inside[self.scanned..].iter().position(|&byte| byte == end || byte == 0);
        self.count_examined(found.map_or(inside.len() - self.scanned, |place| place + 1));
        self.scanned = found.map_or(inside.len(), |place| self.scanned + place);
        if inside.get(self.scanned) == Some(&end) {
            return Ok(Some(self.at + self.scanned));
        }
        if line.len() > max { Err(too_big) } else { Ok(None) }
    }

    /// Tests use it to prove that the work is linear.
    #[inline]
    fn count_examined(&mut self, _bytes: usize) {
        #[cfg(test)]
        {
            self.examined += _bytes;
        }
    }
}

enum Line {
    Missing(usize),
    /// `value` is `None` where it is not a number. `next` is the first byte after the line.
    Number {
        value: Option<i64>,
        next: usize,
    },
}

/// More digits than this are not a usual number.
const USUAL_DIGITS: usize = 9;

/// The fast way for what every client sends: one byte, 1 to 9 digits, CR and one more byte.
/// Anything else is `None`, valid or not, and is left to the thorough way.
#[inline]
fn usual_number(line: &[u8]) -> Option<(i64, usize)> {
    let digits = line.get(1..)?;
    let mut value = 0;
    for (index, &byte) in digits.iter().enumerate().take(USUAL_DIGITS + 1) {
        match byte {
            b'0'..=b'9' => value = value * 10 + i64::from(byte - b'0'),
            b'\r' if index > 0 && digits.len() > index + 1 => {
                let leading_zero = digits[0] == b'0' && index > 1;
                return (!leading_zero).then_some((value, index + 3));
            }
            _ => return None,
        }
    }
    None
}

/// Parses an integer as strictly as Redis does: no plus sign, no leading zero, no space, within 64
/// bits.
fn number(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] if digits.len() < 20 => {}
        _ => return None,
    }
    let mut value: i128 = 0;
    for &byte in digits {
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value * 10 + i128::from(byte - b'0');
    }
    i64::try_from(if negative { -value } else { value }).ok()
}

/// Arguments as commands take them: on the stack up to eight.
pub type Args<'a> = SmallVec<[&'a [u8]; 8]>;

/// A complete request: at least one argument, the command's name first.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    buffer: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Request<'a> {
    /// All arguments, to be passed on as `&[&[u8]]`.
    #[inline]
    pub fn args(&self) -> Args<'a> {
        let mut args = Args::new();
        args.reserve(self.spans.len());
        for arg in self.iter() {
            args.push(arg);
        }
        args
    }

    #[inline]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u8]> + use<'a> {
        let buffer = self.buffer;
        self.spans
            .iter()
            .map(move |span| &buffer[span.start as usize..span.end as usize])
    }

    /// The command's name.
    #[inline]
    pub fn name(&self) -> &'a [u8] {
        self.arg(0)
    }

    /// The argument at `index`; the command's name is 0. Panics beyond the last one.
    #[inline]
    pub fn arg(&self, index: usize) -> &'a [u8] {
        let span = self.spans[index];
        &self.buffer[span.start as usize..span.end as usize]
    }

    /// Number of arguments, the name included.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Never true. It exists because a type with `len` is expected to have it.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }
}

impl fmt::Debug for Request<'_> {
    /// Shows only what is harmless in a log: arguments can hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Request({} and {} arguments)",
            self.name().escape_ascii(),
            self.len() - 1
        )
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
