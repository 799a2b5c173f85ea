//! The library `bit`: operations on integers of 32 bits.

use mlua::{Lua, Table, Value};

use super::library::{Answer, Problem, add, number, string};

/// A number modulo 2^32.
fn bits(lua: &Lua, args: &[Value], at: usize, function: &str) -> Result<u32, Problem> {
    let number = number(lua, args, at, function)?;
    // Halfway cases go to the even neighbour, as where the number is added to a large constant.
    let rounded = number.round_ties_even();
    if !rounded.is_finite() {
        return Ok(0);
    }
    Ok(rounded.rem_euclid(4_294_967_296.0) as u32)
}

fn signed(value: u32) -> Answer {
    Ok(vec![Value::Number(f64::from(value.cast_signed()))])
}

pub fn table(lua: &Lua) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    for (name, operation) in [
        ("tobit", (|value| value) as fn(u32) -> u32),
        ("bnot", |value| !value),
        ("bswap", u32::swap_bytes),
    ] {
        add(lua, &table, name, move |lua, args| {
            signed(operation(bits(lua, args, 0, name)?))
        })?;
    }
    for (name, operation) in [
        ("band", (|a, b| a & b) as fn(u32, u32) -> u32),
        ("bor", |a, b| a | b),
        ("bxor", |a, b| a ^ b),
    ] {
        add(lua, &table, name, move |lua, args| {
            let mut value = bits(lua, args, 0, name)?;
            for at in 1..args.len() {
                value = operation(value, bits(lua, args, at, name)?);
            }
            signed(value)
        })?;
    }
    for (name, operation) in [
        ("lshift", (|a, n| a << n) as fn(u32, u32) -> u32),
        ("rshift", |a, n| a >> n),
        ("arshift", |a, n| (a.cast_signed() >> n).cast_unsigned()),
        ("rol", u32::rotate_left),
        ("ror", u32::rotate_right),
    ] {
        add(lua, &table, name, move |lua, args| {
            let value = bits(lua, args, 0, name)?;
            signed(operation(value, bits(lua, args, 1, name)? & 31))
        })?;
    }
    add(lua, &table, "tohex", |lua, args| {
        let value = bits(lua, args, 0, "tohex")?;
        let wanted = match args.get(1) {
            None => 8,
            Some(_) => bits(lua, args, 1, "tohex")?.cast_signed(),
        };
        let digits = wanted.unsigned_abs().min(8) as usize;
        let all = match wanted {
            ..0 => format!("{value:08X}"),
            _ => format!("{value:08x}"),
        };
        Ok(vec![string(lua, &all[8 - digits..])?])
    })?;
    Ok(table)
}
