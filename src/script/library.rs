//! How functions of Rust are offered to Lua. Such a function answers values or a problem. A problem
//! reaches Lua as a value that only Rust understands; whatever catches an error has it translated
//! ([`translate`]) into what Lua's own functions would have raised.

use std::fmt;

use bytes::Bytes;
use mlua::{Lua, LuaString, MultiValue, Table, Value, Variadic};

use super::control::{Control, Stop};

/// Name of the chunk that prepares a state. Its functions are none of the script's.
pub const PRELUDE: &str = "=prelude";

/// Why a function has no answer.
pub enum Problem {
    /// The text of the error. The place of the caller comes before it.
    Says(String),
    /// A table with this error, as a command's error is one.
    Raises {
        error: Bytes,
        counted: bool,
    },
    Lua(mlua::Error),
}

pub type Answer = Result<Vec<Value>, Problem>;

/// An error on its way through Lua.
#[derive(Debug)]
enum Raised {
    Text(String),
    /// `counted`: in the statistics of errors.
    Table {
        error: Bytes,
        counted: bool,
    },
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Raised::Text(text) => f.write_str(text),
            Raised::Table { error, .. } => f.write_str(&String::from_utf8_lossy(error)),
        }
    }
}

impl std::error::Error for Raised {}

impl From<mlua::Error> for Problem {
    fn from(error: mlua::Error) -> Self {
        Problem::Lua(error)
    }
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Problem::Says(text)
    }
}

impl From<&str> for Problem {
    fn from(text: &str) -> Self {
        Problem::Says(text.to_owned())
    }
}

impl From<Stop> for Problem {
    fn from(_: Stop) -> Self {
        Problem::Lua(stopped())
    }
}

/// The error that ends a script. Nothing catches it.
pub fn stopped() -> mlua::Error {
    mlua::Error::runtime("the script was stopped")
}

impl Problem {
    /// The error to be raised by the function that is running.
    pub fn raise(self, lua: &Lua) -> mlua::Error {
        match self {
            Problem::Says(text) => mlua::Error::external(Raised::Text(caller(lua) + &text)),
            Problem::Raises { error, counted } => mlua::Error::external(Raised::Table { error, counted }),
            Problem::Lua(error) => error,
        }
    }
}

/// Where the function was called that is running: `user_script:1: `. Empty if Lua's library called
/// it.
fn caller(lua: &Lua) -> String {
    for level in 1..8 {
        let place = lua.inspect_stack(level, |frame| {
            let source = frame.source();
            let is_ours = source.source.as_deref() == Some(PRELUDE);
            let line = frame.current_line();
            (is_ours, line.zip(source.short_src.map(|source| source.into_owned())))
        });
        match place {
            Some((true, _)) => {}
            Some((false, Some((line, source)))) => return format!("{source}:{line}: "),
            Some((false, None)) | None => break,
        }
    }
    String::new()
}

/// What Lua's own functions would have raised in place of an error of Rust.
pub fn translate(lua: &Lua, error: &mlua::Error, control: &Control) -> mlua::Result<Value> {
    match error.downcast_ref::<Raised>() {
        Some(Raised::Text(text)) => return lua.create_string(text).map(Value::String),
        Some(Raised::Table { error, counted }) => return error_table(lua, error, *counted).map(Value::Table),
        None => {}
    }
    let mut root = error;
    while let mlua::Error::CallbackError { cause, .. } | mlua::Error::WithContext { cause, .. } = root {
        root = cause;
    }
    let text = match root {
        mlua::Error::RuntimeError(text) | mlua::Error::MemoryError(text) => text.clone(),
        mlua::Error::SyntaxError { message, .. } => message.clone(),
        mlua::Error::StackError => "stack overflow".to_owned(),
        other => other.to_string(),
    };
    if matches!(root, mlua::Error::MemoryError(_)) {
        control.stop(Stop::Memory);
    }
    let end = text.find("\nstack traceback:").unwrap_or(text.len());
    lua.create_string(&text[..end]).map(Value::String)
}

/// A table as `redis.pcall` returns it for an error.
pub fn error_table(lua: &Lua, error: &[u8], counted: bool) -> mlua::Result<Table> {
    let table = lua.create_table()?;
    table.raw_set("err", lua.create_string(error)?)?;
    if counted {
        table.raw_set("ignore_error_stats_update", true)?;
    }
    Ok(table)
}

/// Adds a function to a table.
pub fn add(
    lua: &Lua,
    table: &Table,
    name: &str,
    function: impl Fn(&Lua, &[Value]) -> Answer + Send + 'static,
) -> mlua::Result<()> {
    let function = lua.create_function(move |lua, args: Variadic<Value>| match function(lua, &args) {
        Ok(values) => Ok(MultiValue::from_vec(values)),
        Err(problem) => Err(problem.raise(lua)),
    })?;
    table.raw_set(name, function)
}

/// The name of a value's type, as Lua's errors have it.
pub fn type_name(value: Option<&Value>) -> &'static str {
    value.map_or("no value", |value| match value {
        Value::LightUserData(_) | Value::UserData(_) | Value::Error(_) => "userdata",
        Value::Integer(_) => "number",
        other => other.type_name(),
    })
}

/// The error about an argument; arguments are counted from 0 here.
pub fn bad(function: &str, at: usize, why: &str) -> Problem {
    Problem::Says(format!("bad argument #{} to '{function}' ({why})", at + 1))
}

fn wrong_type(function: &str, at: usize, wanted: &str, args: &[Value]) -> Problem {
    bad(
        function,
        at,
        &format!("{wanted} expected, got {}", type_name(args.get(at))),
    )
}

/// An argument that is a string, or a number, which stands for one.
pub fn text(lua: &Lua, args: &[Value], at: usize, function: &str) -> Result<LuaString, Problem> {
    match args.get(at) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ (Value::Number(_) | Value::Integer(_))) => lua
            .coerce_string(value.clone())?
            .ok_or_else(|| wrong_type(function, at, "string", args)),
        _ => Err(wrong_type(function, at, "string", args)),
    }
}

/// An argument that is a number, or a string that reads as one.
pub fn number(lua: &Lua, args: &[Value], at: usize, function: &str) -> Result<f64, Problem> {
    match args.get(at) {
        Some(Value::Number(number)) => Ok(*number),
        Some(Value::Integer(number)) => Ok(*number as f64),
        Some(value @ Value::String(_)) => lua
            .coerce_number(value.clone())?
            .ok_or_else(|| wrong_type(function, at, "number", args)),
        _ => Err(wrong_type(function, at, "number", args)),
    }
}

/// As [`number`], without its fraction. `absent` stands for a missing argument.
pub fn integer(lua: &Lua, args: &[Value], at: usize, absent: i64, function: &str) -> Result<i64, Problem> {
    match args.get(at) {
        None | Some(Value::Nil) => Ok(absent),
        _ => Ok(number(lua, args, at, function)? as i64),
    }
}

/// A string of Lua.
pub fn string(lua: &Lua, bytes: impl AsRef<[u8]>) -> Result<Value, Problem> {
    Ok(Value::String(lua.create_string(bytes)?))
}

pub fn count(number: usize) -> Value {
    Value::Number(number as f64)
}
