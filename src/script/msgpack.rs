//! The library `cmsgpack`: MessagePack (<https://github.com/msgpack/msgpack/blob/master/spec.md>).

use std::sync::Arc;

use mlua::{Lua, Table, Value};

use super::control::{Control, Stop};
use super::library::{Answer, Problem, add, bad, integer, string, text};

/// Tables that are nested deeper are packed as nil.
const DEEPEST_PACKED: usize = 16;
/// How deep values may be nested that are unpacked: each level takes some of the thread's stack.
const DEEPEST_UNPACKED: usize = 1_000;
/// Most values that one call unpacks: they are results of a function.
const MOST_RESULTS: usize = 7_000;

const MISSING: &str = "Missing bytes in input.";
const BAD: &str = "Bad data format in input.";

pub fn table(lua: &Lua, control: &Arc<Control>, memory: usize) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    table.raw_set("_NAME", "cmsgpack")?;
    table.raw_set("_VERSION", "lua-cmsgpack 0.4.0")?;
    table.raw_set("_COPYRIGHT", "Copyright (C) 2012, Salvatore Sanfilippo")?;
    table.raw_set("_DESCRIPTION", "MessagePack C implementation for Lua")?;
    let watch = control.clone();
    add(lua, &table, "pack", move |lua, args| {
        if args.is_empty() {
            return Err("bad argument #0 to 'pack' (MessagePack pack needs input.)".into());
        }
        let mut packer = Packer {
            control: &watch,
            memory,
            out: Vec::new(),
        };
        for value in args {
            packer.value(value, 0)?;
        }
        Ok(vec![string(lua, packer.out)?])
    })?;
    let watch = control.clone();
    add(lua, &table, "unpack", move |lua, args| {
        let data = text(lua, args, 0, "unpack")?;
        Ok(unpacked(lua, &data.as_bytes(), 0, None, &watch)?.1)
    })?;
    let watch = control.clone();
    add(lua, &table, "unpack_one", move |lua, args| {
        let offset = integer(lua, args, 1, 0, "unpack_one")?;
        some_unpacked(lua, args, "unpack_one", 1, offset, &watch)
    })?;
    let watch = control.clone();
    add(lua, &table, "unpack_limit", move |lua, args| {
        if args.len() < 2 {
            return Err(bad("unpack_limit", 1, "number expected, got no value"));
        }
        let limit = integer(lua, args, 1, 0, "unpack_limit")?;
        let offset = integer(lua, args, 2, 0, "unpack_limit")?;
        some_unpacked(lua, args, "unpack_limit", limit, offset, &watch)
    })?;
    Ok(table)
}

// ---- packing ----

struct Packer<'c> {
    control: &'c Control,
    memory: usize,
    out: Vec<u8>,
}

impl Packer<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Problem> {
        match value {
            Value::Boolean(on) => self.out.push(if *on { 0xC3 } else { 0xC2 }),
            Value::Integer(number) => self.integer(*number),
            Value::Number(number) => self.number(*number),
            Value::String(text) => self.string(&text.as_bytes()),
            Value::Table(table) if depth < DEEPEST_PACKED => self.table(table, depth + 1)?,
            _ => self.out.push(0xC0),
        }
        if self.out.len() > self.memory {
            self.control.stop(Stop::Memory);
        }
        Ok(self.control.check()?)
    }

    fn number(&mut self, number: f64) {
        let whole = number as i64;
        if whole as f64 == number && whole != i64::MAX {
            self.integer(whole);
        } else if f64::from(number as f32) == number {
            self.put(0xCA, &(number as f32).to_be_bytes());
        } else {
            self.put(0xCB, &number.to_be_bytes());
        }
    }

    fn put(&mut self, kind: u8, bytes: &[u8]) {
        self.out.push(kind);
        self.out.extend_from_slice(bytes);
    }

    fn integer(&mut self, number: i64) {
        match number {
            0..=0x7F => self.out.push(number as u8),
            0x80..=0xFF => self.put(0xCC, &[number as u8]),
            0x100..=0xFFFF => self.put(0xCD, &(number as u16).to_be_bytes()),
            0x1_0000..=0xFFFF_FFFF => self.put(0xCE, &(number as u32).to_be_bytes()),
            0x1_0000_0000.. => self.put(0xCF, &number.to_be_bytes()),
            -32..0 => self.out.push(number as u8),
            -0x80..-32 => self.put(0xD0, &[number as u8]),
            -0x8000..-0x80 => self.put(0xD1, &(number as i16).to_be_bytes()),
            -0x8000_0000..-0x8000 => self.put(0xD2, &(number as i32).to_be_bytes()),
            _ => self.put(0xD3, &number.to_be_bytes()),
        }
    }

    fn string(&mut self, text: &[u8]) {
        match text.len() {
            length @ ..32 => self.out.push(0xA0 | length as u8),
            length @ ..0x100 => self.put(0xD9, &[length as u8]),
            length @ ..0x1_0000 => self.put(0xDA, &(length as u16).to_be_bytes()),
            length => self.put(0xDB, &(length as u32).to_be_bytes()),
        }
        self.out.extend_from_slice(text);
    }

    fn length(&mut self, length: usize, small: u8, middle: u8) {
        match length {
            ..16 => self.out.push(small | length as u8),
            16..0x1_0000 => self.put(middle, &(length as u16).to_be_bytes()),
            _ => self.put(middle + 1, &(length as u32).to_be_bytes()),
        }
    }

    /// A table whose keys are 1, 2, 3 and so on is an array, and so is an empty one.
    fn table(&mut self, table: &Table, depth: usize) -> Result<(), Problem> {
        let (mut items, mut greatest, mut is_array) = (0_usize, 0_i64, true);
        for pair in table.pairs::<Value, Value>() {
            let key = match pair?.0 {
                Value::Integer(key) => key,
                Value::Number(key) if key.fract() == 0.0 && key.abs() < 1e15 => key as i64,
                _ => 0,
            };
            is_array &= key > 0;
            greatest = greatest.max(key);
            items += 1;
        }
        if is_array && greatest == items as i64 {
            self.length(items, 0x90, 0xDC);
            for at in 1..=items {
                let item: Value = table.raw_get(at)?;
                self.value(&item, depth)?;
            }
            return Ok(());
        }
        self.length(items, 0x80, 0xDE);
        for pair in table.pairs::<Value, Value>() {
            let (key, value) = pair?;
            self.value(&key, depth)?;
            self.value(&value, depth)?;
        }
        Ok(())
    }
}

// ---- unpacking ----

/// Values from an offset on, and before them where the next one begins: -1 at the end.
fn some_unpacked(lua: &Lua, args: &[Value], function: &str, limit: i64, offset: i64, control: &Control) -> Answer {
    let data = text(lua, args, 0, function)?;
    let data = data.as_bytes();
    let length = data.len();
    let (Ok(limit), Ok(from)) = (usize::try_from(limit), usize::try_from(offset)) else {
        return Err(format!("Invalid request to unpack with offset of {offset} and limit of {length}.").into());
    };
    if from > length {
        return Err(format!("Start offset {offset} greater than input length {length}.").into());
    }
    let (next, mut values) = unpacked(lua, &data, from, Some(limit), control)?;
    let next = if next == length { -1.0 } else { next as f64 };
    values.insert(0, Value::Number(next));
    Ok(values)
}

/// The values from a place on, and where the next one begins. No limit, or 0: all of them.
fn unpacked(
    lua: &Lua,
    data: &[u8],
    from: usize,
    limit: Option<usize>,
    control: &Control,
) -> Result<(usize, Vec<Value>), Problem> {
    let mut unpacker = Unpacker {
        lua,
        control,
        data,
        at: from,
    };
    let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let mut values = Vec::new();
    while unpacker.at < data.len() && values.len() < limit {
        values.push(unpacker.value(0)?);
        if values.len() > MOST_RESULTS {
            return Err("too many results to unpack".into());
        }
    }
    Ok((unpacker.at, values))
}

struct Unpacker<'d> {
    lua: &'d Lua,
    control: &'d Control,
    data: &'d [u8],
    at: usize,
}

impl<'d> Unpacker<'d> {
    fn take(&mut self, length: usize) -> Result<&'d [u8], Problem> {
        let bytes = self.data[self.at..].get(..length).ok_or(MISSING)?;
        self.at += length;
        Ok(bytes)
    }

    /// A number of so many bytes, without a sign.
    fn unsigned(&mut self, size: usize) -> Result<u64, Problem> {
        let bytes = self.take(size)?;
        Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn signed(&mut self, size: usize) -> Result<Value, Problem> {
        let unused = 64 - 8 * size as u32;
        let number = (self.unsigned(size)? << unused).cast_signed() >> unused;
        Ok(Value::Number(number as f64))
    }

    fn value(&mut self, depth: usize) -> Result<Value, Problem> {
        self.control.check()?;
        if depth > DEEPEST_UNPACKED {
            return Err(BAD.into());
        }
        let kind = self.take(1)?[0];
        let size = 1_usize << (kind & 3);
        Ok(match kind {
            0x00..=0x7F => Value::Number(f64::from(kind)),
            0xE0.. => Value::Number(f64::from(kind.cast_signed())),
            0xC0 => Value::Nil,
            0xC2 => Value::Boolean(false),
            0xC3 => Value::Boolean(true),
            0xCA => {
                let bits = self.unsigned(4)? as u32;
                Value::Number(f64::from(f32::from_bits(bits)))
            }
            0xCB => Value::Number(f64::from_bits(self.unsigned(8)?)),
            0xCC..=0xCF => Value::Number(self.unsigned(size)? as f64),
            0xD0..=0xD3 => self.signed(size)?,
            0xA0..=0xBF => self.string(u64::from(kind & 0x1F))?,
            0xC4 | 0xD9 => self.sized(1, Unpacker::string)?,
            0xC5 | 0xDA => self.sized(2, Unpacker::string)?,
            0xC6 | 0xDB => self.sized(4, Unpacker::string)?,
            0x90..=0x9F => self.array(u64::from(kind & 0xF), depth)?,
            0xDC => self.sized(2, |unpacker, length| unpacker.array(length, depth))?,
            0xDD => self.sized(4, |unpacker, length| unpacker.array(length, depth))?,
            0x80..=0x8F => self.map(u64::from(kind & 0xF), depth)?,
            0xDE => self.sized(2, |unpacker, length| unpacker.map(length, depth))?,
            0xDF => self.sized(4, |unpacker, length| unpacker.map(length, depth))?,
            0xC1 | 0xC7..=0xC9 | 0xD4..=0xD8 => return Err(BAD.into()),
        })
    }

    fn sized(
        &mut self,
        size: usize,
        read: impl FnOnce(&mut Self, u64) -> Result<Value, Problem>,
    ) -> Result<Value, Problem> {
        let length = self.unsigned(size)?;
        read(self, length)
    }

    fn string(&mut self, length: u64) -> Result<Value, Problem> {
        let bytes = self.take(usize::try_from(length).unwrap_or(usize::MAX))?;
        string(self.lua, bytes)
    }

    fn array(&mut self, length: u64, depth: usize) -> Result<Value, Problem> {
        let table = self.lua.create_table()?;
        for at in 1..=length {
            let value = self.value(depth + 1)?;
            table.raw_set(at, value)?;
        }
        Ok(Value::Table(table))
    }

    fn map(&mut self, length: u64, depth: usize) -> Result<Value, Problem> {
        let table = self.lua.create_table()?;
        for _ in 0..length {
            let key = self.value(depth + 1)?;
            let value = self.value(depth + 1)?;
            match key {
                // Lua has no such keys.
                Value::Nil => return Err(BAD.into()),
                Value::Number(number) if number.is_nan() => return Err(BAD.into()),
                key => table.raw_set(key, value)?,
            }
        }
        Ok(Value::Table(table))
    }
}
