//! Whole RDB files, written from their beginning to their end: one value at a time is in memory.
//!
//! A file begins with the number of its version and ends with its checksum. Which version it needs
//! is known only at the end. So the checksums for all versions are computed at once, and the first
//! bytes can be written again.

use std::io::{self, Write};

use bytes::{BufMut, Bytes, BytesMut};

use super::file::mark;
use super::writing::{dump, put_length, put_string};
use super::{
    LIBRARY, Limits, Problem, TRAILER, VERSION_OF_FIELD_EXPIRY, VERSION_OF_REDIS_7_2, WRITTEN_VERSION, crc64, form,
    read, verified,
};

/// Versions that a file may have: those of Redis 7.0, of 7.2, and of 7.4 and 8.
pub const VERSIONS: [u16; 3] = [WRITTEN_VERSION, VERSION_OF_REDIS_7_2, VERSION_OF_FIELD_EXPIRY];
/// Of a value that has to be written in another form.
const LIMITS: Limits = Limits {
    string: 1 << 30,
    memory: 8 << 30,
};

/// The first bytes of a file. They are as many in all versions.
pub fn header(version: u16) -> String {
    format!("REDIS{version:04}")
}

/// A value in a form that a file can have.
pub struct Content {
    /// The lowest version of files that have this form.
    version: u16,
    form: u8,
    rest: Bytes,
}

impl Content {
    /// What a payload of DUMP holds: as it is, if files up to this version have its form.
    pub fn new(payload: &Bytes, most: u16) -> Result<Content, Problem> {
        const EMPTY: Problem = Problem::Bad("a dumped value is empty");
        const DAMAGED: Problem = Problem::Bad("the checksum of a dumped value is wrong");
        let (version, bytes) = verified(payload).ok_or(DAMAGED)?;
        let form = *bytes.first().ok_or(EMPTY)?;
        let content = |payload: &Bytes, version, form| Content {
            version,
            form,
            rest: payload.slice(1..payload.len() - TRAILER),
        };
        match version_of(form) {
            Some(needed) if needed <= most => return Ok(content(payload, needed, form)),
            _ => {}
        }
        let payload = dump(&read((version, bytes), LIMITS)?);
        let form = *payload.first().ok_or(EMPTY)?;
        match version_of(form) {
            Some(needed) if needed <= most => Ok(content(&payload, needed, form)),
            _ => Err(Problem::Newer(VERSION_OF_FIELD_EXPIRY)),
        }
    }
}

/// The lowest version of files that have this form. `None`: values must get another form.
fn version_of(form: u8) -> Option<u16> {
    match form {
        form::MODULE | form::HASH_EXPIRING_EARLY | form::HASH_EXPIRING_LISTPACK_EARLY => None,
        form::SET_LISTPACK | form::STREAM_3 => Some(VERSION_OF_REDIS_7_2),
        form::HASH_EXPIRING | form::HASH_EXPIRING_LISTPACK => Some(VERSION_OF_FIELD_EXPIRY),
        ..=form::STREAM_2 => Some(WRITTEN_VERSION),
        _ => None,
    }
}

/// A file that is being written.
pub struct Writer<W> {
    out: W,
    /// The checksum of all so far, for each version that the header may name, as in [`VERSIONS`].
    checksums: [u64; VERSIONS.len()],
    needed: u16,
    database: Option<u64>,
}

impl<W: Write> Writer<W> {
    /// Begins a file. Its header names this version.
    pub fn new(mut out: W, version: u16) -> io::Result<Self> {
        out.write_all(header(version).as_bytes())?;
        Ok(Writer {
            out,
            checksums: VERSIONS.map(|version| crc64::of(header(version).as_bytes())),
            needed: WRITTEN_VERSION,
            database: None,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let needed = self.needed;
        let possible = VERSIONS.iter().zip(&mut self.checksums);
        for (_, checksum) in possible.filter(|(version, _)| **version >= needed) {
            *checksum = crc64::more(*checksum, bytes);
        }
        self.out.write_all(bytes)
    }

    /// Something about the file. A server that does not know its name ignores it.
    pub fn note(&mut self, name: &str, value: &str) -> io::Result<()> {
        let mut out = BytesMut::new();
        out.put_u8(mark::AUX);
        put_string(&mut out, name.as_bytes());
        put_string(&mut out, value.as_bytes());
        self.write(&out)
    }

    /// A library of functions. They come before the keys.
    pub fn library(&mut self, text: &[u8]) -> io::Result<()> {
        let mut out = BytesMut::new();
        out.put_u8(LIBRARY);
        put_length(&mut out, text.len() as u64);
        self.write(&out)?;
        self.write(text)
    }

    /// A key, which must be there once. `expire_at`: milliseconds since the epoch.
    pub fn key(&mut self, database: u64, key: &[u8], expire_at: Option<u64>, value: &Content) -> io::Result<()> {
        let mut out = BytesMut::with_capacity(key.len() + 32);
        if self.database.replace(database) != Some(database) {
            out.put_u8(mark::DATABASE);
            put_length(&mut out, database);
        }
        if let Some(at) = expire_at {
            out.put_u8(mark::EXPIRY_MS);
            out.put_u64_le(at);
        }
        out.put_u8(value.form);
        put_string(&mut out, key);
        self.needed = self.needed.max(value.version);
        self.write(&out)?;
        self.write(&value.rest)
    }

    /// The lowest version that has the forms of all values so far.
    pub fn needed(&self) -> u16 {
        self.needed
    }

    /// Ends the file. Its header must name this version, which must not be below what it needs.
    pub fn finish(mut self, version: u16) -> io::Result<W> {
        self.write(&[mark::END])?;
        let place = VERSIONS
            .iter()
            .position(|known| *known == version && version >= self.needed);
        let place = place.ok_or(io::ErrorKind::InvalidInput)?;
        let checksum = self.checksums[place];
        self.out.write_all(&checksum.to_le_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Field, Fields};
    use crate::rdb::{File, Found, Object, finish};

    /// A file with these payloads, and the version that it needs.
    fn file(payloads: &[Bytes], most: u16) -> Result<(Vec<u8>, u16), Problem> {
        let mut writer = Writer::new(Vec::new(), WRITTEN_VERSION)?;
        writer.note("ctime", "1700000000")?;
        writer.library(b"text")?;
        for (database, payload) in (0..).zip(payloads) {
            writer.key(
                database,
                b"key",
                (database > 0).then_some(1 << 40),
                &Content::new(payload, most)?,
            )?;
        }
        let version = writer.needed();
        let mut file = writer.finish(version)?;
        file[..9].copy_from_slice(header(version).as_bytes());
        Ok((file, version))
    }

    fn expiring_hash() -> Bytes {
        let mut fields = Fields::default();
        let (value, expire_at) = (Bytes::from("v"), Some(1 << 41));
        fields.0.insert("f".into(), Field { value, expire_at });
        dump(&Object::Hash(fields))
    }

    #[test]
    fn what_was_written_is_read() {
        let text = dump(&Object::String("text".into()));
        // A set of two members as Redis 7.2 has it, in a listpack.
        let listpack = [
            &[form::SET_LISTPACK, 13, 13, 0, 0, 0, 2, 0][..],
            b"\x81a\x02\x81b\x02\xff",
        ]
        .concat();
        let set = finish(BytesMut::from(&listpack[..]), 11);
        let hash = expiring_hash();
        for (payloads, most, expected) in [
            (&[][..], 12, 10),
            (std::slice::from_ref(&text), 12, 10),
            (&[text.clone(), set.clone()], 12, 11),
            (&[text.clone(), set.clone()], 10, 10),
            (&[set.clone(), text.clone(), hash.clone(), set.clone()], 12, 12),
        ] {
            let (file, version) = file(payloads, most).expect("it is written");
            assert_eq!(version, expected);
            let limits = Limits {
                string: 1 << 20,
                memory: 1 << 20,
            };
            let mut read_back = File::open(&file[..], limits).expect("it has a header");
            let next = read_back.next_found().expect("a library");
            assert!(matches!(next, Some(Found::Library(text)) if text == "text"));
            for (database, payload) in (0..).zip(payloads) {
                let found = read_back.next_found().expect("a key");
                let Some(Found::Key { key, object, expire_at }) = found else {
                    panic!("{found:?}");
                };
                assert_eq!((&key[..], read_back.database()), (&b"key"[..], database));
                assert_eq!(expire_at, (database > 0).then_some(1 << 40));
                let expected = read(verified(payload).expect("it is whole"), limits);
                assert_eq!(object, expected.expect("it is read"));
            }
            assert!(read_back.next_found().expect("its checksum is right").is_none());
        }
    }

    #[test]
    fn what_a_version_cannot_hold_is_refused() {
        assert!(matches!(file(&[expiring_hash()], 11), Err(Problem::Newer(12))));
        let mut damaged = expiring_hash().to_vec();
        damaged[1] ^= 1;
        assert!(matches!(file(&[damaged.into()], 12), Err(Problem::Bad(_))));
        let unknown = finish(BytesMut::from(&[26, 0][..]), 12);
        assert!(matches!(file(&[unknown], 12), Err(Problem::Unknown(26))));
        let mut writer = Writer::new(Vec::new(), 10).expect("a vector takes it");
        let content = Content::new(&expiring_hash(), 12).expect("it has a form");
        writer.key(0, b"key", None, &content).expect("a vector takes it");
        assert!(writer.finish(10).is_err());
    }
}
