//! Values as payloads. Collections have the plain form of their type, one element after the other:
//! the reader chooses how to keep it in memory. Redis from 7.0 on and Valkey read it; Redis
//! from 7.4 on if fields of a hash expire. Nothing is compressed.

use bytes::{BufMut, Bytes, BytesMut};

use super::{LIBRARY, Object, VERSION_OF_FIELD_EXPIRY, WRITTEN_VERSION, finish, form, stream};
use crate::model::{Field, Fields};

/// The payload of a value.
pub fn dump(object: &Object) -> Bytes {
    let mut out = BytesMut::new();
    let mut version = WRITTEN_VERSION;
    match object {
        Object::String(value) => {
            out.reserve(value.len() + 32);
            out.put_u8(form::STRING);
            put_string(&mut out, value);
        }
        Object::List(items) => put_all(&mut out, form::LIST, items.0.iter()),
        Object::Set(members) => put_all(&mut out, form::SET, members.0.iter()),
        Object::SortedSet(scores) => {
            out.put_u8(form::SORTED_SET_2);
            put_length(&mut out, scores.0.len() as u64);
            for (member, score) in &scores.0 {
                put_string(&mut out, member);
                out.put_f64_le(*score);
            }
        }
        Object::Hash(fields) => match fields.0.values().filter_map(|field| field.expire_at).min() {
            None => {
                out.put_u8(form::HASH);
                put_length(&mut out, fields.0.len() as u64);
                for (name, field) in &fields.0 {
                    put_string(&mut out, name);
                    put_string(&mut out, &field.value);
                }
            }
            Some(first) => {
                version = VERSION_OF_FIELD_EXPIRY;
                put_expiring(&mut out, fields, first);
            }
        },
        Object::Stream(stream) => {
            out.put_u8(form::STREAM_2);
            stream::put(stream, &mut out);
        }
    }
    finish(out, version)
}

fn put_all<'b>(out: &mut BytesMut, form: u8, strings: impl ExactSizeIterator<Item = &'b Bytes>) {
    out.put_u8(form);
    put_length(out, strings.len() as u64);
    strings.for_each(|string| put_string(out, string));
}

/// A hash with fields that expire, the first of them at this time.
fn put_expiring(out: &mut BytesMut, fields: &Fields, first: u64) {
    out.put_u8(form::HASH_EXPIRING);
    out.put_u64_le(first);
    put_length(out, fields.0.len() as u64);
    for (name, Field { value, expire_at }) in &fields.0 {
        put_length(out, expire_at.map_or(0, |at| at - first + 1));
        put_string(out, name);
        put_string(out, value);
    }
}

/// Libraries of functions, as FUNCTION DUMP answers them: each is a byte and its text.
pub fn dump_libraries<'t>(texts: impl Iterator<Item = &'t Bytes>) -> Bytes {
    let mut out = BytesMut::new();
    for text in texts {
        out.put_u8(LIBRARY);
        put_length(&mut out, text.len() as u64);
        out.put_slice(text);
    }
    finish(out, WRITTEN_VERSION)
}

/// A short number takes the form of a number, as Redis writes it.
pub fn put_string(out: &mut BytesMut, string: &[u8]) {
    match short_number(string) {
        Some(number) => put_integer(out, number),
        None => {
            put_length(out, string.len() as u64);
            out.put_slice(string);
        }
    }
}

/// The number that this is the text of.
fn short_number(text: &[u8]) -> Option<i32> {
    const LONGEST: usize = "-2147483648".len();
    let number = str::from_utf8(text.get(..LONGEST.min(text.len()))?)
        .ok()?
        .parse()
        .ok()?;
    (itoa::Buffer::new().format(number).as_bytes() == text).then_some(number)
}

fn put_integer(out: &mut BytesMut, number: i32) {
    if let Ok(number) = i8::try_from(number) {
        out.put_u8(0xc0);
        out.put_i8(number);
    } else if let Ok(number) = i16::try_from(number) {
        out.put_u8(0xc1);
        out.put_i16_le(number);
    } else {
        out.put_u8(0xc2);
        out.put_i32_le(number);
    }
}

pub fn put_length(out: &mut BytesMut, len: u64) {
    match len {
        0..0x40 => out.put_u8(len as u8),
        0x40..0x4000 => out.put_u16(0x4000 | len as u16),
        _ => match u32::try_from(len) {
            Ok(len) => {
                out.put_u8(0x80);
                out.put_u32(len);
            }
            Err(_) => {
                out.put_u8(0x81);
                out.put_u64(len);
            }
        },
    }
}
