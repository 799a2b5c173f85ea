//! The library `cjson`: JSON with the habits and the error texts of lua-cjson 2.1. What a script
//! sets (`encode_max_depth` …) holds until the script ends.

use std::sync::Arc;

use mlua::{Lua, Table, Value};
use parking_lot::Mutex;

use super::control::{Control, Stop};
use super::library::{Problem, add, bad, count, number, string, text, type_name};

/// Deepest nesting that any setting allows: each level takes some of the thread's stack.
const DEEPEST: usize = 1_000;

#[derive(Clone, Copy)]
pub struct Settings {
    encode_depth: i32,
    decode_depth: i32,
    precision: i32,
    /// NaN and infinity are written: as they are, or as null.
    encode_invalid: Invalid,
    decode_invalid: Invalid,
    keep_buffer: bool,
    /// A table with few of its numbers becomes an object, where it would be an error.
    sparse_convert: bool,
    sparse_ratio: i32,
    sparse_safe: i32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Invalid {
    No,
    Yes,
    Null,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            encode_depth: 1_000,
            decode_depth: 1_000,
            precision: 14,
            encode_invalid: Invalid::No,
            decode_invalid: Invalid::Yes,
            keep_buffer: true,
            sparse_convert: false,
            sparse_ratio: 2,
            sparse_safe: 10,
        }
    }
}

/// The settings of a state.
pub type Shared = Arc<Mutex<Settings>>;

pub fn table(lua: &Lua, settings: &Shared, control: &Arc<Control>, memory: usize) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    table.raw_set("_NAME", "cjson")?;
    table.raw_set("_VERSION", "2.1.0")?;
    table.raw_set("null", Value::NULL)?;
    let (of_encode, watch) = (settings.clone(), control.clone());
    add(lua, &table, "encode", move |lua, args| {
        let [value] = args else {
            return Err(bad("encode", 0, "expected 1 argument"));
        };
        let mut encoder = Encoder {
            settings: *of_encode.lock(),
            control: &watch,
            memory,
            out: Vec::new(),
        };
        encoder.value(value, 0)?;
        Ok(vec![string(lua, encoder.out)?])
    })?;
    let (of_decode, watch) = (settings.clone(), control.clone());
    add(lua, &table, "decode", move |lua, args| {
        let [_] = args else {
            return Err(bad("decode", 0, "expected 1 argument"));
        };
        let json = text(lua, args, 0, "decode")?;
        let mut decoder = Decoder {
            lua,
            settings: *of_decode.lock(),
            control: &watch,
            json: &json.as_bytes(),
            at: 0,
        };
        Ok(vec![decoder.whole()?])
    })?;
    add_settings(lua, &table, settings)?;
    Ok(table)
}

fn add_settings(lua: &Lua, table: &Table, settings: &Shared) -> mlua::Result<()> {
    for (name, most, of) in [
        (
            "encode_max_depth",
            i32::MAX,
            (|s| &mut s.encode_depth) as fn(&mut Settings) -> &mut i32,
        ),
        ("decode_max_depth", i32::MAX, |s| &mut s.decode_depth),
        ("encode_number_precision", 14, |s| &mut s.precision),
    ] {
        let settings = settings.clone();
        add(lua, table, name, move |lua, args| {
            let mut settings = settings.lock();
            let setting = of(&mut settings);
            set_integer(lua, args, 0, 1, most, name, setting)?;
            Ok(vec![count(setting.unsigned_abs() as usize)])
        })?;
    }
    for (name, takes_null, of) in [
        (
            "encode_invalid_numbers",
            true,
            (|s| &mut s.encode_invalid) as fn(&mut Settings) -> &mut Invalid,
        ),
        ("decode_invalid_numbers", false, |s| &mut s.decode_invalid),
    ] {
        let settings = settings.clone();
        add(lua, table, name, move |lua, args| {
            let mut settings = settings.lock();
            let setting = of(&mut settings);
            match args.first() {
                None | Some(Value::Nil) => {}
                Some(Value::Boolean(on)) => *setting = if *on { Invalid::Yes } else { Invalid::No },
                Some(_) => match &*text(lua, args, 0, name)?.as_bytes() {
                    b"null" if takes_null => *setting = Invalid::Null,
                    b"on" => *setting = Invalid::Yes,
                    b"off" => *setting = Invalid::No,
                    other => return Err(bad_option(name, other)),
                },
            }
            Ok(vec![match *setting {
                Invalid::No => Value::Boolean(false),
                Invalid::Yes => Value::Boolean(true),
                Invalid::Null => string(lua, "null")?,
            }])
        })?;
    }
    let of_buffer = settings.clone();
    add(lua, table, "encode_keep_buffer", move |lua, args| {
        let mut settings = of_buffer.lock();
        set_flag(lua, args, 0, "encode_keep_buffer", &mut settings.keep_buffer)?;
        Ok(vec![Value::Boolean(settings.keep_buffer)])
    })?;
    let of_sparse = settings.clone();
    add(lua, table, "encode_sparse_array", move |lua, args| {
        const NAME: &str = "encode_sparse_array";
        let mut settings = of_sparse.lock();
        set_flag(lua, args, 0, NAME, &mut settings.sparse_convert)?;
        set_integer(lua, args, 1, 0, i32::MAX, NAME, &mut settings.sparse_ratio)?;
        set_integer(lua, args, 2, 0, i32::MAX, NAME, &mut settings.sparse_safe)?;
        Ok(vec![
            Value::Boolean(settings.sparse_convert),
            Value::Number(f64::from(settings.sparse_ratio)),
            Value::Number(f64::from(settings.sparse_safe)),
        ])
    })
}

fn bad_option(name: &str, option: &[u8]) -> Problem {
    bad(
        name,
        0,
        &format!("invalid option '{}'", String::from_utf8_lossy(option)),
    )
}

fn set_flag(lua: &Lua, args: &[Value], at: usize, name: &str, flag: &mut bool) -> Result<(), Problem> {
    match args.get(at) {
        None | Some(Value::Nil) => {}
        Some(Value::Boolean(on)) => *flag = *on,
        Some(_) => match &*text(lua, args, at, name)?.as_bytes() {
            b"on" => *flag = true,
            b"off" => *flag = false,
            other => return Err(bad_option(name, other)),
        },
    }
    Ok(())
}

fn set_integer(
    lua: &Lua,
    args: &[Value],
    at: usize,
    least: i32,
    most: i32,
    name: &str,
    setting: &mut i32,
) -> Result<(), Problem> {
    if matches!(args.get(at), None | Some(Value::Nil)) {
        return Ok(());
    }
    let wanted = number(lua, args, at, name)? as i32;
    if !(least..=most).contains(&wanted) {
        return Err(bad(name, at, &format!("expected integer between {least} and {most}")));
    }
    *setting = wanted;
    Ok(())
}

/// A number as C's `%.14g` prints it, with so many digits.
pub fn general(value: f64, digits: usize) -> String {
    if value.is_nan() {
        return if value.is_sign_negative() { "-nan" } else { "nan" }.to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if value == 0.0 {
        return if value.is_sign_negative() { "-0" } else { "0" }.to_owned();
    }
    let scientific = format!("{value:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if exponent < -4 || exponent >= digits as i32 {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trimmed(mantissa), exponent.abs());
    }
    let decimals = usize::try_from(digits as i32 - 1 - exponent).unwrap_or(0);
    trimmed(&format!("{value:.decimals$}"))
}

// ---- encoding ----

struct Encoder<'c> {
    settings: Settings,
    control: &'c Control,
    memory: usize,
    out: Vec<u8>,
}

impl Encoder<'_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Problem> {
        match value {
            Value::Nil => self.out.extend_from_slice(b"null"),
            Value::LightUserData(pointer) if pointer.0.is_null() => self.out.extend_from_slice(b"null"),
            Value::Boolean(true) => self.out.extend_from_slice(b"true"),
            Value::Boolean(false) => self.out.extend_from_slice(b"false"),
            Value::Integer(number) => self.number(*number as f64)?,
            Value::Number(number) => self.number(*number)?,
            Value::String(text) => self.string(&text.as_bytes()),
            Value::Table(table) => self.table(table, depth + 1)?,
            other => {
                let kind = type_name(Some(other));
                return Err(format!("Cannot serialise {kind}: type not supported").into());
            }
        }
        if self.out.len() > self.memory {
            self.control.stop(Stop::Memory);
        }
        Ok(self.control.check()?)
    }

    fn number(&mut self, number: f64) -> Result<(), Problem> {
        if !number.is_finite() {
            match self.settings.encode_invalid {
                Invalid::No => return Err("Cannot serialise number: must not be NaN or Inf".into()),
                Invalid::Null => {
                    self.out.extend_from_slice(b"null");
                    return Ok(());
                }
                Invalid::Yes if number.is_nan() => {
                    self.out.extend_from_slice(b"nan");
                    return Ok(());
                }
                Invalid::Yes => {}
            }
        }
        let text = general(number, self.settings.precision.unsigned_abs() as usize);
        self.out.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn string(&mut self, text: &[u8]) {
        self.out.push(b'"');
        for byte in text {
            match byte {
                b'"' | b'\\' | b'/' => self.out.extend_from_slice(&[b'\\', *byte]),
                0x08 => self.out.extend_from_slice(b"\\b"),
                b'\t' => self.out.extend_from_slice(b"\\t"),
                b'\n' => self.out.extend_from_slice(b"\\n"),
                0x0C => self.out.extend_from_slice(b"\\f"),
                b'\r' => self.out.extend_from_slice(b"\\r"),
                ..0x20 | 0x7F => self.out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                _ => self.out.push(*byte),
            }
        }
        self.out.push(b'"');
    }

    fn table(&mut self, table: &Table, depth: usize) -> Result<(), Problem> {
        let most = usize::try_from(self.settings.encode_depth).unwrap_or(0);
        if depth > most.min(DEEPEST) {
            return Err(format!("Cannot serialise, excessive nesting ({depth})").into());
        }
        match self.length(table)? {
            Some(length) => self.array(table, length, depth),
            None => self.object(table, depth),
        }
    }

    /// The greatest key of a table that is an array; `None` for an object.
    fn length(&self, table: &Table) -> Result<Option<usize>, Problem> {
        let (mut greatest, mut items) = (0.0_f64, 0_usize);
        for pair in table.pairs::<Value, Value>() {
            let key = match pair?.0 {
                Value::Integer(key) => key as f64,
                Value::Number(key) => key,
                _ => return Ok(None),
            };
            if key < 1.0 || key.fract() != 0.0 {
                return Ok(None);
            }
            greatest = greatest.max(key);
            items += 1;
        }
        let Settings {
            sparse_ratio: ratio,
            sparse_safe: safe,
            sparse_convert,
            ..
        } = self.settings;
        if ratio > 0 && greatest > items as f64 * f64::from(ratio) && greatest > f64::from(safe) {
            if !sparse_convert {
                return Err("Cannot serialise table: excessively sparse array".into());
            }
            return Ok(None);
        }
        Ok((items > 0).then_some(greatest as usize))
    }

    fn array(&mut self, table: &Table, length: usize, depth: usize) -> Result<(), Problem> {
        self.out.push(b'[');
        for at in 1..=length {
            if at > 1 {
                self.out.push(b',');
            }
            let item: Value = table.raw_get(at)?;
            self.value(&item, depth)?;
        }
        self.out.push(b']');
        Ok(())
    }

    fn object(&mut self, table: &Table, depth: usize) -> Result<(), Problem> {
        self.out.push(b'{');
        let mut first = true;
        for pair in table.pairs::<Value, Value>() {
            let (key, value) = pair?;
            if !std::mem::take(&mut first) {
                self.out.push(b',');
            }
            match &key {
                Value::String(text) => self.string(&text.as_bytes()),
                Value::Integer(number) => {
                    self.out.push(b'"');
                    self.number(*number as f64)?;
                    self.out.push(b'"');
                }
                Value::Number(number) => {
                    self.out.push(b'"');
                    self.number(*number)?;
                    self.out.push(b'"');
                }
                other => {
                    return Err(format!(
                        "Cannot serialise {}: table key must be a number or string",
                        type_name(Some(other))
                    )
                    .into());
                }
            }
            self.out.push(b':');
            self.value(&value, depth)?;
        }
        self.out.push(b'}');
        Ok(())
    }
}

// ---- decoding ----

struct Decoder<'j> {
    lua: &'j Lua,
    settings: Settings,
    control: &'j Control,
    json: &'j [u8],
    at: usize,
}

enum Token {
    ObjectBegin,
    ObjectEnd,
    ArrayBegin,
    ArrayEnd,
    Colon,
    Comma,
    End,
    String(Vec<u8>),
    Number(f64),
    Boolean(bool),
    Null,
    Bad(&'static str),
}

impl Token {
    fn name(&self) -> &'static str {
        match self {
            Token::ObjectBegin => "T_OBJ_BEGIN",
            Token::ObjectEnd => "T_OBJ_END",
            Token::ArrayBegin => "T_ARR_BEGIN",
            Token::ArrayEnd => "T_ARR_END",
            Token::Colon => "T_COLON",
            Token::Comma => "T_COMMA",
            Token::End => "T_END",
            Token::String(_) => "T_STRING",
            Token::Number(_) => "T_NUMBER",
            Token::Boolean(_) => "T_BOOLEAN",
            Token::Null => "T_NULL",
            Token::Bad(why) => why,
        }
    }
}

impl Decoder<'_> {
    fn whole(&mut self) -> Result<Value, Problem> {
        // As lua-cjson does, texts in UTF-16 or UTF-32 are refused.
        if let [first, second, ..] = self.json
            && (*first == 0 || *second == 0)
        {
            return Err("JSON parser does not support UTF-16 or UTF-32".into());
        }
        let (token, at) = self.token();
        let value = self.value(token, at, 0)?;
        match self.token() {
            (Token::End, _) => Ok(value),
            (other, at) => Err(unexpected("the end", &other, at)),
        }
    }

    fn value(&mut self, token: Token, at: usize, depth: usize) -> Result<Value, Problem> {
        self.control.check()?;
        Ok(match token {
            Token::String(text) => string(self.lua, text)?,
            Token::Number(number) => Value::Number(number),
            Token::Boolean(boolean) => Value::Boolean(boolean),
            Token::Null => Value::NULL,
            Token::ObjectBegin => self.object(at, depth + 1)?,
            Token::ArrayBegin => self.array(at, depth + 1)?,
            other => return Err(unexpected("value", &other, at)),
        })
    }

    fn check_depth(&self, at: usize, depth: usize) -> Result<(), Problem> {
        let most = usize::try_from(self.settings.decode_depth).unwrap_or(0);
        if depth <= most.min(DEEPEST) {
            return Ok(());
        }
        let at = at + 1;
        Err(format!("Found too many nested data structures ({depth}) at character {at}").into())
    }

    fn object(&mut self, at: usize, depth: usize) -> Result<Value, Problem> {
        self.check_depth(at, depth)?;
        let table = self.lua.create_table()?;
        let (mut token, mut at) = self.token();
        if matches!(token, Token::ObjectEnd) {
            return Ok(Value::Table(table));
        }
        loop {
            let Token::String(key) = token else {
                return Err(unexpected("object key string", &token, at));
            };
            match self.token() {
                (Token::Colon, _) => {}
                (other, at) => return Err(unexpected("colon", &other, at)),
            }
            let (token_of_value, at_value) = self.token();
            let value = self.value(token_of_value, at_value, depth)?;
            table.raw_set(self.lua.create_string(key)?, value)?;
            match self.token() {
                (Token::ObjectEnd, _) => return Ok(Value::Table(table)),
                (Token::Comma, _) => (token, at) = self.token(),
                (other, at) => return Err(unexpected("comma or object end", &other, at)),
            }
        }
    }

    fn array(&mut self, at: usize, depth: usize) -> Result<Value, Problem> {
        self.check_depth(at, depth)?;
        let table = self.lua.create_table()?;
        let (mut token, mut at) = self.token();
        if matches!(token, Token::ArrayEnd) {
            return Ok(Value::Table(table));
        }
        for number in 1.. {
            let value = self.value(token, at, depth)?;
            table.raw_set(number, value)?;
            match self.token() {
                (Token::ArrayEnd, _) => break,
                (Token::Comma, _) => (token, at) = self.token(),
                (other, at) => return Err(unexpected("comma or array end", &other, at)),
            }
        }
        Ok(Value::Table(table))
    }

    /// The next token, and where it begins.
    fn token(&mut self) -> (Token, usize) {
        while self.json.get(self.at).is_some_and(|byte| b" \t\r\n".contains(byte)) {
            self.at += 1;
        }
        let start = self.at;
        let Some(byte) = self.json.get(start) else {
            return (Token::End, start);
        };
        self.at += 1;
        let token = match byte {
            b'{' => Token::ObjectBegin,
            b'}' => Token::ObjectEnd,
            b'[' => Token::ArrayBegin,
            b']' => Token::ArrayEnd,
            b':' => Token::Colon,
            b',' => Token::Comma,
            b'"' => return self.string(start),
            _ => {
                self.at = start;
                self.word()
            }
        };
        (token, start)
    }

    fn word(&mut self) -> Token {
        for (word, token) in [
            ("true", Token::Boolean(true)),
            ("false", Token::Boolean(false)),
            ("null", Token::Null),
        ] {
            if self.json[self.at..].starts_with(word.as_bytes()) {
                self.at += word.len();
                return token;
            }
        }
        self.number()
    }

    fn number(&mut self) -> Token {
        let rest = &self.json[self.at..];
        let (signs, digits) = match rest {
            [b'-' | b'+', digits @ ..] => (1, digits),
            digits => (0, digits),
        };
        let starts = |word: &str| {
            let start = digits.get(..word.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
        };
        let invalid = self.settings.decode_invalid != Invalid::No;
        let sign = if rest[0] == b'-' { -1.0 } else { 1.0 };
        let (value, length) = match digits {
            [b'0', b'x' | b'X', hex @ ..] => {
                let length = hex.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
                if !invalid || length == 0 {
                    return Token::Bad("invalid number");
                }
                let digit = |byte: &u8| f64::from(char::from(*byte).to_digit(16).unwrap_or(0));
                (
                    hex[..length].iter().fold(0.0, |sum, byte| sum * 16.0 + digit(byte)),
                    length + 2,
                )
            }
            [b'0'..=b'9' | b'.', ..] => {
                let length = length_of_number(digits);
                let text = String::from_utf8_lossy(&digits[..length]);
                match text.parse::<f64>() {
                    Ok(_) if !invalid && digits[0] == b'0' && matches!(digits.get(1), Some(b'0'..=b'9')) => {
                        return Token::Bad("invalid number");
                    }
                    Ok(value) => (value, length),
                    Err(_) => return Token::Bad("invalid number"),
                }
            }
            _ if starts("infinity") => (f64::INFINITY, 8),
            _ if starts("inf") => (f64::INFINITY, 3),
            _ if starts("nan") => (f64::NAN, 3),
            _ if signs == 1 => return Token::Bad("invalid number"),
            _ => return Token::Bad("invalid token"),
        };
        if !invalid && !value.is_finite() {
            return Token::Bad("invalid token");
        }
        self.at += signs + length;
        Token::Number(sign * value)
    }

    /// The rest of a string that began at `start`.
    fn string(&mut self, start: usize) -> (Token, usize) {
        let mut text = Vec::new();
        loop {
            let Some(byte) = self.json.get(self.at) else {
                return (Token::Bad("unexpected end of string"), self.at);
            };
            match byte {
                b'"' => {
                    self.at += 1;
                    return (Token::String(text), start);
                }
                b'\\' => {
                    let Some(length) = self.escape(&mut text) else {
                        let why = match self.json.get(self.at + 1) {
                            Some(b'u') => "invalid unicode escape code",
                            _ => "invalid escape code",
                        };
                        return (Token::Bad(why), self.at);
                    };
                    self.at += length;
                }
                other => {
                    text.push(*other);
                    self.at += 1;
                }
            }
        }
    }

    /// Reads one escape; its length.
    fn escape(&self, text: &mut Vec<u8>) -> Option<usize> {
        let rest = &self.json[self.at + 1..];
        let byte = match rest.first()? {
            byte @ (b'"' | b'\\' | b'/') => *byte,
            b'b' => 0x08,
            b'f' => 0x0C,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let unit = hex_unit(rest.get(1..5)?)?;
                let (code, length) = match unit {
                    0xD800..=0xDBFF => {
                        let low = rest.get(5..11).filter(|low| low.starts_with(b"\\u"))?;
                        let low = hex_unit(&low[2..]).filter(|low| (0xDC00..=0xDFFF).contains(low))?;
                        (0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00), 12)
                    }
                    unit => (unit, 6),
                };
                let code = char::from_u32(code)?;
                text.extend_from_slice(code.encode_utf8(&mut [0; 4]).as_bytes());
                return Some(length);
            }
            _ => return None,
        };
        text.push(byte);
        Some(2)
    }
}

fn hex_unit(digits: &[u8]) -> Option<u32> {
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// How many bytes of this are a number: digits, a fraction, an exponent if it is whole.
fn length_of_number(digits: &[u8]) -> usize {
    let run = |from: usize| digits[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut length = run(0);
    if digits.get(length) == Some(&b'.') {
        length += 1 + run(length + 1);
    }
    if matches!(digits.get(length), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(digits.get(length + 1), Some(b'+' | b'-')));
        let from = length + 1 + sign;
        let exponent = digits.get(from..).map_or(0, |_| run(from));
        if exponent > 0 {
            length = from + exponent;
        }
    }
    length
}

fn unexpected(wanted: &str, found: &Token, at: usize) -> Problem {
    let (found, at) = (found.name(), at + 1);
    format!("Expected {wanted} but found {found} at character {at}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_printed_as_c_does() {
        for (number, text) in [
            (1.0, "1"),
            (0.1, "0.1"),
            (1e15, "1e+15"),
            (123_456_789_012_345_678.0, "1.2345678901235e+17"),
            (1e-5, "1e-05"),
            (0.0001, "0.0001"),
            (-2.5, "-2.5"),
            (99_999_999_999_999.0, "99999999999999"),
            (1e100, "1e+100"),
            (-0.0, "-0"),
        ] {
            assert_eq!(general(number, 14), text);
        }
        assert_eq!(general(1234.5, 3), "1.23e+03");
    }
}
