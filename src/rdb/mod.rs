//! The formats of Redis's RDB files: the payloads of DUMP and RESTORE, and whole files. It reads
//! every form in which Redis 4 to 8 and Valkey 8 and 9 write a value, and writes one form of each
//! type; files take values of other servers as they are. Sources: `rdb.c`, `ziplist.c`,
//! `listpack.c`, `intset.c`, `zipmap.c` and `t_stream.c` of Redis, and
//! <https://rdb.fnordig.de/file_format.html>.
//!
//! A payload is a byte for the form, the value, two bytes of version, and a CRC64 of everything
//! before it. Version and CRC64 are little endian.
//!
//! What is read may come from anybody. Every length is checked against the bytes that are there,
//! and what is read may take so much memory and no more ([`Limits`]).

mod crc64;
mod file;
mod lzf;
mod object;
mod packed;
mod source;
mod stream;
#[cfg(test)]
mod tests;
mod writer;
mod writing;

use bytes::{Bytes, BytesMut};

use crate::model::{Fields, Items, Members, Scores};

pub use file::{File, Found};
pub use source::Limits;
pub use stream::{Consumer, Group, Stream};
pub use writer::{Content, VERSIONS, Writer, header};
pub use writing::{dump, dump_libraries};

use source::Reader;

/// The version that is written: that of Redis 7.0, so that not only the newest servers read it.
const WRITTEN_VERSION: u16 = 10;
/// The version with forms that Redis 7.2 has added.
const VERSION_OF_REDIS_7_2: u16 = 11;
/// What is written if fields of a hash expire: Redis 7.4 is the first that reads those.
const VERSION_OF_FIELD_EXPIRY: u16 = 12;
/// The version of Valkey 9, which is the newest that is read. Redis 8 has 12 and more.
const VALKEY_9: u16 = 80;
/// Bytes of version and checksum.
const TRAILER: usize = 10;
/// Bytes of a payload besides the value: its form and the trailer.
pub const AROUND_VALUE: usize = 1 + TRAILER;
/// A library of functions, in files and in what FUNCTION DUMP answers.
const LIBRARY: u8 = 245;

/// The byte that names the form of a value, as `rdb.h` has it.
mod form {
    pub const STRING: u8 = 0;
    pub const LIST: u8 = 1;
    pub const SET: u8 = 2;
    /// Scores are decimal.
    pub const SORTED_SET: u8 = 3;
    pub const HASH: u8 = 4;
    pub const SORTED_SET_2: u8 = 5;
    pub const MODULE: u8 = 6;
    pub const MODULE_2: u8 = 7;
    pub const HASH_ZIPMAP: u8 = 9;
    pub const LIST_ZIPLIST: u8 = 10;
    pub const SET_INTSET: u8 = 11;
    pub const SORTED_SET_ZIPLIST: u8 = 12;
    pub const HASH_ZIPLIST: u8 = 13;
    pub const LIST_QUICKLIST: u8 = 14;
    pub const STREAM: u8 = 15;
    pub const HASH_LISTPACK: u8 = 16;
    pub const SORTED_SET_LISTPACK: u8 = 17;
    pub const LIST_QUICKLIST_2: u8 = 18;
    pub const STREAM_2: u8 = 19;
    pub const SET_LISTPACK: u8 = 20;
    pub const STREAM_3: u8 = 21;
    /// Fields that expire, in release candidates of Redis 7.4; another form in Valkey 9.
    pub const HASH_EXPIRING_EARLY: u8 = 22;
    pub const HASH_EXPIRING_LISTPACK_EARLY: u8 = 23;
    pub const HASH_EXPIRING: u8 = 24;
    pub const HASH_EXPIRING_LISTPACK: u8 = 25;
}

/// A value, of whatever type.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    String(Bytes),
    List(Items),
    Set(Members),
    /// In the order of a sorted set.
    SortedSet(Scores),
    /// Fields may have expired.
    Hash(Fields),
    Stream(Stream),
}

/// Why bytes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// They are not in the format, for this reason.
    #[error("{0}")]
    Bad(&'static str),
    /// A collection without elements: Redis drops those from files, and refuses them elsewhere.
    #[error("a collection without elements")]
    Empty,
    #[error("a value of a module of Redis, which only that module can read")]
    Module,
    #[error("a value of type {0}, which is of a newer version of Redis or Valkey")]
    Unknown(u8),
    #[error("a value that takes more memory than one may take here")]
    TooLarge,
    #[error("a value that only files of version {0} and newer can hold")]
    Newer(u16),
    #[error(transparent)]
    Read(#[from] std::io::Error),
}

/// The version and the content before the trailer, if version and checksum are right.
pub fn verified(payload: &[u8]) -> Option<(u16, &[u8])> {
    let (content, trailer) = payload.split_at_checked(payload.len().checked_sub(TRAILER)?)?;
    let (version, checksum) = trailer.split_first_chunk::<2>()?;
    let (covered, _) = payload.split_at(payload.len() - checksum.len());
    let version = u16::from_le_bytes(*version);
    let right = version <= VALKEY_9 && u64::from_le_bytes(checksum.try_into().ok()?) == crc64::of(covered);
    right.then_some((version, content))
}

/// The value in the content of a payload with this version, see [`verified`]. Like Redis, it
/// ignores bytes after the value.
pub fn read((version, content): (u16, &[u8]), limits: Limits) -> Result<Object, Problem> {
    let mut reader = Reader::new(content, limits);
    let form = reader.byte()?;
    object::read(&mut reader, form, version)
}

/// An upper bound of the bytes that the content of a payload can take when it is read.
pub fn most_bytes(content: &[u8]) -> usize {
    /// An empty item of a list takes a byte in the content.
    const ELEMENT: usize = 32;
    // Where nothing is compressed this byte may be missing.
    let is_compressed = content.contains(&source::LZF);
    let factor = match content.first() {
        _ if !is_compressed => ELEMENT,
        Some(
            &(form::STRING
            | form::LIST
            | form::SET
            | form::SORTED_SET
            | form::HASH
            | form::SORTED_SET_2
            | form::HASH_EXPIRING_EARLY
            | form::HASH_EXPIRING),
        ) => lzf::EXPANDS,
        // Packed elements are compressed together. Two of them have at least three bytes, in a
        // zipmap; elsewhere four.
        _ => lzf::EXPANDS * ELEMENT * 2 / 3,
    };
    content.len().saturating_mul(factor)
}

/// The texts of the libraries in a payload of FUNCTION DUMP. `most`: how many bytes they may have
/// together. The errors are those of Redis.
pub fn libraries_in(payload: &[u8], most: usize) -> Result<Vec<Bytes>, &'static str> {
    const FAILED: &str = "ERR failed loading the given functions payload";
    // What stands before a text is at most twice as long as the text.
    if payload.len() > most.saturating_mul(3).saturating_add(TRAILER) {
        return Err(FAILED);
    }
    let (_, content) = verified(payload).ok_or("ERR DUMP payload version or checksum are wrong")?;
    let (mut texts, mut left) = (Vec::new(), most);
    // The bytes of the payload are the bound.
    let memory = usize::MAX;
    let mut reader = Reader::new(content, Limits { string: most, memory });
    while !reader.is_at_end() {
        if reader.byte().map_err(|_| FAILED)? != LIBRARY {
            return Err("ERR given type is not a function");
        }
        let text = reader.text().map_err(|_| FAILED)?;
        if text.is_empty() {
            return Err("ERR Missing library metadata");
        }
        left = left.checked_sub(text.len()).ok_or(FAILED)?;
        texts.push(text);
    }
    Ok(texts)
}

/// A payload with this content: adds version and checksum.
pub fn finish(mut out: BytesMut, version: u16) -> Bytes {
    out.extend_from_slice(&version.to_le_bytes());
    let checksum = crc64::of(&out);
    out.extend_from_slice(&checksum.to_le_bytes());
    out.freeze()
}
