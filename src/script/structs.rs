//! The library `struct`: values as C lays them out in memory.

use mlua::{Lua, Table, Value};

use super::library::{Answer, Problem, add, bad, count, integer, number, string, text};

/// What `!` aligns to without a number.
const MAX_ALIGN: usize = 8;
/// Most bytes of an integer.
const MAX_INTEGER: usize = 32;
/// Most bytes that a format may ask for.
const MAX_SIZE: usize = 64 << 20;

/// One item of a format.
#[derive(Clone, Copy)]
enum Item {
    Integer {
        size: usize,
        signed: bool,
    },
    Float,
    Double,
    Padding,
    /// `cN`. Without a number: 1; 0: what the value, or the number before it, says.
    Chars(usize),
    ZeroEnded,
    /// `>`, `<`, `!`, a space.
    Setting,
}

struct Format<'f> {
    /// The function that reads it, for errors.
    function: &'static str,
    rest: &'f [u8],
    little: bool,
    align: usize,
}

impl Format<'_> {
    fn next(&mut self) -> Result<Option<Item>, Problem> {
        let Some((option, rest)) = self.rest.split_first() else {
            return Ok(None);
        };
        self.rest = rest;
        let integer = |size, signed| Item::Integer { size, signed };
        Ok(Some(match option {
            b'b' => integer(1, true),
            b'B' => integer(1, false),
            b'h' => integer(2, true),
            b'H' => integer(2, false),
            b'l' => integer(8, true),
            b'L' | b'T' => integer(8, false),
            b'i' => integer(self.integer_size()?, true),
            b'I' => integer(self.integer_size()?, false),
            b'f' => Item::Float,
            b'd' => Item::Double,
            b'x' => Item::Padding,
            b'c' => Item::Chars(self.digits(1)?),
            b's' => Item::ZeroEnded,
            b' ' => Item::Setting,
            b'<' => {
                self.little = true;
                Item::Setting
            }
            b'>' => {
                self.little = false;
                Item::Setting
            }
            b'!' => {
                self.align = self.digits(MAX_ALIGN)?;
                if !self.align.is_power_of_two() {
                    return Err(format!("alignment {} is not a power of 2", self.align).into());
                }
                Item::Setting
            }
            other => {
                let why = format!("invalid format option '{}'", char::from(*other));
                return Err(bad(self.function, 0, &why));
            }
        }))
    }

    fn digits(&mut self, absent: usize) -> Result<usize, Problem> {
        let length = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.rest.split_at(length);
        self.rest = rest;
        if digits.is_empty() {
            return Ok(absent);
        }
        let text = String::from_utf8_lossy(digits);
        let number = text
            .parse::<usize>()
            .ok()
            .filter(|number| i32::try_from(*number).is_ok());
        number.ok_or_else(|| "integral size overflow".into())
    }

    fn integer_size(&mut self) -> Result<usize, Problem> {
        let size = self.digits(4)?;
        match size {
            1..=MAX_INTEGER => Ok(size),
            _ => Err(format!("integral size {size} is larger than limit of {MAX_INTEGER}").into()),
        }
    }

    /// Bytes before an item of this size at this place.
    fn gap(&self, item: Item, at: usize) -> usize {
        let size = match item {
            Item::Integer { size, .. } => size,
            Item::Float => 4,
            Item::Double => 8,
            Item::Padding | Item::Chars(_) | Item::ZeroEnded | Item::Setting => return 0,
        };
        let align = size.min(self.align);
        match align {
            0 | 1 => 0,
            _ => at.wrapping_neg() & (align - 1),
        }
    }
}

fn format<'f>(function: &'static str, bytes: &'f [u8]) -> Format<'f> {
    Format {
        function,
        rest: bytes,
        little: true,
        align: 1,
    }
}

pub fn table(lua: &Lua) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    add(lua, &table, "pack", pack)?;
    add(lua, &table, "unpack", unpack)?;
    add(lua, &table, "size", size)?;
    Ok(table)
}

fn ordered(bytes: &mut [u8], little: bool) {
    if !little {
        bytes.reverse();
    }
}

fn pack(lua: &Lua, args: &[Value]) -> Answer {
    let layout = text(lua, args, 0, "pack")?;
    let layout = layout.as_bytes();
    let mut format = format("pack", &layout);
    let (mut packed, mut at) = (Vec::new(), 1);
    while let Some(item) = format.next()? {
        packed.resize(packed.len() + format.gap(item, packed.len()), 0);
        match item {
            Item::Setting => continue,
            Item::Padding => {
                packed.push(0);
                continue;
            }
            Item::Integer { size, .. } => {
                let value = number(lua, args, at, "pack")?;
                let wide = if value < 0.0 {
                    (value as i64).cast_unsigned()
                } else {
                    value as u64
                };
                // Only so many bytes as a number of 64 bits has; the rest are zeros.
                let mut bytes: Vec<u8> = wide
                    .to_le_bytes()
                    .into_iter()
                    .chain([0; MAX_INTEGER])
                    .take(size)
                    .collect();
                ordered(&mut bytes, format.little);
                packed.extend(bytes);
            }
            Item::Float => {
                let mut bytes = (number(lua, args, at, "pack")? as f32).to_le_bytes();
                ordered(&mut bytes, format.little);
                packed.extend(bytes);
            }
            Item::Double => {
                let mut bytes = number(lua, args, at, "pack")?.to_le_bytes();
                ordered(&mut bytes, format.little);
                packed.extend(bytes);
            }
            Item::Chars(wanted) => {
                let value = text(lua, args, at, "pack")?;
                let value = value.as_bytes();
                let wanted = if wanted == 0 { value.len() } else { wanted };
                let taken = value
                    .get(..wanted)
                    .ok_or_else(|| bad("pack", at + 1, "string too short"))?;
                packed.extend_from_slice(taken);
            }
            Item::ZeroEnded => {
                packed.extend_from_slice(&text(lua, args, at, "pack")?.as_bytes());
                packed.push(0);
            }
        }
        at += 1;
        if packed.len() > MAX_SIZE {
            return Err("format result too large".into());
        }
    }
    Ok(vec![string(lua, packed)?])
}

fn unpack(lua: &Lua, args: &[Value]) -> Answer {
    let (layout, data) = (text(lua, args, 0, "unpack")?, text(lua, args, 1, "unpack")?);
    let first = integer(lua, args, 2, 1, "unpack")?;
    let (layout, data) = (layout.as_bytes(), data.as_bytes());
    let mut at = match first.checked_sub(1).map(usize::try_from) {
        Some(Ok(at)) => at,
        _ => return Err(bad("unpack", 2, "offset must be 1 or greater")),
    };
    let mut format = format("unpack", &layout);
    let mut values: Vec<Value> = Vec::new();
    while let Some(item) = format.next()? {
        at = at.saturating_add(format.gap(item, at));
        let part = |size: usize| -> Result<&[u8], Problem> {
            let part = data.get(at..).and_then(|rest| rest.get(..size));
            part.ok_or_else(|| bad("unpack", 1, "data string too short"))
        };
        let size = match item {
            Item::Setting => 0,
            Item::Padding => part(1)?.len(),
            Item::Integer { size, signed } => {
                values.push(Value::Number(read_integer(part(size)?, format.little, signed)));
                size
            }
            Item::Float => {
                let mut bytes: [u8; 4] = part(4)?.try_into().expect("four bytes");
                ordered(&mut bytes, format.little);
                values.push(Value::Number(f64::from(f32::from_le_bytes(bytes))));
                4
            }
            Item::Double => {
                let mut bytes: [u8; 8] = part(8)?.try_into().expect("eight bytes");
                ordered(&mut bytes, format.little);
                values.push(Value::Number(f64::from_le_bytes(bytes)));
                8
            }
            Item::Chars(wanted) => {
                let wanted = match wanted {
                    0 => match values.pop() {
                        Some(Value::Number(size)) if size >= 0.0 => size as usize,
                        _ => return Err("format 'c0' needs a previous size".into()),
                    },
                    wanted => wanted,
                };
                values.push(string(lua, part(wanted)?)?);
                wanted
            }
            Item::ZeroEnded => {
                let rest = part(0).and(Ok(&data[at.min(data.len())..]))?;
                let end = rest.iter().position(|byte| *byte == 0);
                let end = end.ok_or("unfinished string in data")?;
                values.push(string(lua, &rest[..end])?);
                end + 1
            }
        };
        at += size;
        if values.len() > 7_000 {
            return Err("too many results".into());
        }
    }
    values.push(count(at + 1));
    Ok(values)
}

fn read_integer(bytes: &[u8], little: bool, signed: bool) -> f64 {
    let mut ordered_bytes = bytes.to_vec();
    ordered(&mut ordered_bytes, little);
    let low = ordered_bytes.iter().take(8).rev();
    let value = low.fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
    if !signed {
        return value as f64;
    }
    let unused = 64 - 8 * bytes.len().min(8) as u32;
    ((value << unused).cast_signed() >> unused) as f64
}

fn size(lua: &Lua, args: &[Value]) -> Answer {
    let layout = text(lua, args, 0, "size")?;
    let layout = layout.as_bytes();
    let mut format = format("size", &layout);
    let mut size = 0_usize;
    while let Some(item) = format.next()? {
        size += format.gap(item, size);
        size += match item {
            Item::Integer { size, .. } => size,
            Item::Float => 4,
            Item::Double => 8,
            Item::Padding => 1,
            Item::Chars(0) => return Err(bad("size", 0, "option 'c0' has no fixed size")),
            Item::ZeroEnded => return Err(bad("size", 0, "option 's' has no fixed size")),
            Item::Chars(size) => size,
            Item::Setting => 0,
        };
        if size > i32::MAX as usize {
            return Err("format result too large".into());
        }
    }
    Ok(vec![count(size)])
}
