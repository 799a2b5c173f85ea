//! Replies as values of Lua, and values of Lua as replies
//! (<https://redis.io/docs/latest/develop/programmability/lua-api/#data-type-conversion>).

use bytes::Bytes;
use mlua::{Lua, Table, Value};

use super::state::MEMORY;
use crate::resp::{Reply, Version, format_double};

/// How deep the result of a script may be nested, as Redis's limit, but lower: a reply is encoded
/// and dropped level by level, on the stack of a thread.
const DEEPEST: usize = 500;

/// A reply as a script sees it. `version`: what the script asked for with `redis.setresp`.
pub fn to_lua(lua: &Lua, reply: &Reply, version: Version) -> mlua::Result<Value> {
    let resp3 = version == Version::Resp3;
    let text = |bytes: &[u8]| lua.create_string(bytes).map(Value::String);
    Ok(match reply {
        Reply::Ok => field(lua, "ok", text(b"OK")?)?,
        Reply::Simple(status) => field(lua, "ok", text(status.as_bytes())?)?,
        Reply::Error(error) => field(lua, "err", text(error)?)?,
        Reply::Int(number) => Value::Number(*number as f64),
        Reply::Bulk(bytes) => text(bytes)?,
        Reply::Null | Reply::NullArray if resp3 => Value::Nil,
        Reply::Null | Reply::NullArray | Reply::None => Value::Boolean(false),
        Reply::Array(items) | Reply::Several(items) => array(lua, items, version)?,
        Reply::Map(pairs) | Reply::Streams(pairs) if resp3 => {
            let map = lua.create_table_with_capacity(0, pairs.len())?;
            for (key, value) in pairs {
                map.raw_set(to_lua(lua, key, version)?, to_lua(lua, value, version)?)?;
            }
            field(lua, "map", Value::Table(map))?
        }
        Reply::Pairs(pairs) if resp3 => tables_of_two(lua, pairs, version)?,
        Reply::Streams(pairs) => tables_of_two(lua, pairs, version)?,
        Reply::Map(pairs) | Reply::Pairs(pairs) => {
            let flat = lua.create_table_with_capacity(2 * pairs.len(), 0)?;
            for (place, item) in pairs.iter().flat_map(|(first, second)| [first, second]).enumerate() {
                flat.raw_set(place + 1, to_lua(lua, item, version)?)?;
            }
            Value::Table(flat)
        }
        Reply::Set(items) if resp3 => {
            let set = lua.create_table_with_capacity(0, items.len())?;
            for item in items {
                set.raw_set(to_lua(lua, item, version)?, true)?;
            }
            field(lua, "set", Value::Table(set))?
        }
        Reply::Set(items) | Reply::Push(items) => array(lua, items, version)?,
        Reply::Double(number) if resp3 => field(lua, "double", Value::Number(*number))?,
        Reply::Double(number) => text(format_double(*number).as_bytes())?,
        Reply::Decimal(number) if resp3 => {
            let number = number.parse().expect("it is the text of a number");
            field(lua, "double", Value::Number(number))?
        }
        Reply::Decimal(number) => text(number.as_bytes())?,
        Reply::Bool(on) if resp3 => Value::Boolean(*on),
        Reply::Bool(on) => Value::Number(f64::from(u8::from(*on))),
        Reply::Verbatim { format, text: bytes } if resp3 => {
            let verbatim = lua.create_table()?;
            verbatim.raw_set("format", text(format)?)?;
            verbatim.raw_set("string", text(bytes)?)?;
            field(lua, "verbatim_string", Value::Table(verbatim))?
        }
        Reply::Verbatim { text: bytes, .. } => text(bytes)?,
        Reply::BigNumber(digits) if resp3 => field(lua, "big_number", text(digits.as_bytes())?)?,
        Reply::BigNumber(digits) => text(digits.as_bytes())?,
    })
}

fn tables_of_two(lua: &Lua, pairs: &[(Reply, Reply)], version: Version) -> mlua::Result<Value> {
    let all = lua.create_table_with_capacity(pairs.len(), 0)?;
    for (first, second) in pairs {
        let both = lua.create_table_with_capacity(2, 0)?;
        both.raw_push(to_lua(lua, first, version)?)?;
        both.raw_push(to_lua(lua, second, version)?)?;
        all.raw_push(both)?;
    }
    Ok(Value::Table(all))
}

fn array(lua: &Lua, items: &[Reply], version: Version) -> mlua::Result<Value> {
    let table = lua.create_table_with_capacity(items.len(), 0)?;
    for (place, item) in items.iter().enumerate() {
        table.raw_set(place + 1, to_lua(lua, item, version)?)?;
    }
    Ok(Value::Table(table))
}

fn field(lua: &Lua, name: &str, value: Value) -> mlua::Result<Value> {
    let table = lua.create_table_with_capacity(0, 1)?;
    table.raw_set(name, value)?;
    Ok(Value::Table(table))
}

/// The result of a script as its reply.
pub struct Result {
    version: Version,
    /// Bytes that the reply may still take.
    left: usize,
}

impl Result {
    /// `version`: what the script asked for with `redis.setresp`.
    pub fn of(value: &Value, version: Version) -> mlua::Result<Reply> {
        let mut result = Result { version, left: MEMORY };
        let reply = result.reply(value, 0)?;
        Ok(match result.left {
            0 => Reply::error(format!("ERR the reply of a script may have at most {MEMORY} bytes")),
            _ => reply,
        })
    }

    fn takes(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    fn bytes(&mut self, text: &mlua::LuaString) -> Bytes {
        let text = text.as_bytes();
        self.takes(text.len());
        match self.left {
            0 => Bytes::new(),
            _ => Bytes::copy_from_slice(&text),
        }
    }

    fn reply(&mut self, value: &Value, depth: usize) -> mlua::Result<Reply> {
        self.takes(size_of::<Reply>());
        let resp3 = self.version == Version::Resp3;
        Ok(match value {
            Value::Boolean(on) if resp3 => Reply::Bool(*on),
            Value::Boolean(true) => Reply::Int(1),
            Value::Integer(number) => Reply::Int(*number),
            Value::Number(number) => Reply::Int(whole(*number)),
            Value::String(text) => Reply::Bulk(self.bytes(text)),
            Value::Table(_) if depth >= DEEPEST => Reply::error("ERR reached lua stack limit"),
            Value::Table(table) => self.table(table, depth + 1)?,
            _ => Reply::Null,
        })
    }

    fn table(&mut self, table: &Table, depth: usize) -> mlua::Result<Reply> {
        let field = |name: &str| table.raw_get::<Value>(name);
        if let Value::String(error) = field("err")? {
            return Ok(Reply::Error(self.bytes(&error)));
        }
        if let Value::String(status) = field("ok")? {
            self.takes(status.as_bytes().len());
            return Ok(Reply::simple(status.to_string_lossy()));
        }
        match field("double")? {
            Value::Number(number) => return Ok(Reply::Double(number)),
            Value::Integer(number) => return Ok(Reply::Double(number as f64)),
            _ => {}
        }
        if let Value::Table(map) = field("map")? {
            let mut pairs = Vec::new();
            for pair in map.pairs::<Value, Value>() {
                let (key, value) = pair?;
                pairs.push((self.reply(&key, depth)?, self.reply(&value, depth)?));
                if self.left == 0 {
                    break;
                }
            }
            return Ok(Reply::Map(pairs));
        }
        if let Value::Table(set) = field("set")? {
            let mut items = Vec::new();
            for pair in set.pairs::<Value, Value>() {
                items.push(self.reply(&pair?.0, depth)?);
                if self.left == 0 {
                    break;
                }
            }
            return Ok(Reply::Set(items));
        }
        if let Value::String(digits) = field("big_number")? {
            self.takes(digits.as_bytes().len());
            return Ok(Reply::BigNumber(digits.to_string_lossy().into()));
        }
        if let Value::Table(verbatim) = field("verbatim_string")?
            && let Value::String(text) = verbatim.raw_get("string")?
            && let Value::String(format) = verbatim.raw_get("format")?
        {
            let mut letters = *b"   ";
            letters
                .iter_mut()
                .zip(&*format.as_bytes())
                .for_each(|(to, from)| *to = *from);
            return Ok(Reply::Verbatim {
                format: letters,
                text: self.bytes(&text),
            });
        }
        let mut items = Vec::new();
        for place in 1_i64.. {
            let item: Value = table.raw_get(place)?;
            if item.is_nil() || self.left == 0 {
                break;
            }
            items.push(self.reply(&item, depth)?);
        }
        Ok(Reply::Array(items))
    }
}

/// A number without its fraction. What is no integer of 64 bits becomes the least one.
fn whole(number: f64) -> i64 {
    const BOUND: f64 = 9_223_372_036_854_775_808.0;
    if (-BOUND..BOUND).contains(&number) {
        number as i64
    } else {
        i64::MIN
    }
}
