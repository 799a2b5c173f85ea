//! One Lua interpreter: what scripts find in it, and how one is run.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use mlua::chunk::ChunkMode;
use mlua::{Function, HookTriggers, Lua, LuaOptions, MultiValue, StdLib, Table, Value, Variadic, VmState};
use parking_lot::Mutex;

use super::control::{Control, Stop};
use super::convert::{self, to_lua};
use super::functions::Functions;
use super::library::{Answer, PRELUDE, Problem, add, bad, error_table, number, stopped, string, text, translate};
use super::random::Random;
use super::sha1::{Sha, sha1_hex};
use super::texts::Script;
use super::{bits, json, msgpack, strings, structs};
use crate::resp::{Reply, Version};

/// Most bytes of memory that a state may take: the values of the script that it runs, and the
/// scripts that it has compiled.
pub const MEMORY: usize = 256 << 20;
/// Instructions between two looks at whether a script has to stop.
const INSTRUCTIONS: u32 = 250;
/// Most compiled scripts of a state.
const MOST_COMPILED: usize = 500;
/// Name of a script in the texts of errors.
const NAME: &str = "@user_script";

/// What runs the commands of a script.
pub trait Host {
    /// Runs a command. `None`: the script cannot go on.
    fn call(&mut self, args: &[&[u8]]) -> Option<Reply>;

    /// Whether a command would be allowed; `None` if there is no such command.
    fn is_allowed(&mut self, args: &[&[u8]]) -> Option<bool>;

    fn log(&mut self, level: Level, text: &[u8]);
}

/// Levels of `redis.log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Debug,
    Verbose,
    Notice,
    Warning,
}

/// How a script ended.
pub enum Ended {
    /// `counted`: its reply is an error that a command has counted already.
    Reply {
        reply: Reply,
        counted: bool,
    },
    Stopped(Stop),
}

pub struct State {
    pub(super) lua: Lua,
    control: Arc<Control>,
    /// Runs a compiled script: `run(script, keys, arguments)`.
    run: Function,
    /// Loads a compiled library, and calls a function: `call(function, keys, arguments)`.
    pub(super) load: Function,
    pub(super) call: Function,
    /// The table `redis` of a library that is being loaded.
    loads: Table,
    /// The functions of loaded libraries, by the digest of the library's text.
    pub(super) libraries: HashMap<Sha, Functions>,
    /// The scripts' table `redis`, whose `call` and the like are set for each run.
    redis: Table,
    compiled: HashMap<Sha, Function>,
    json: json::Shared,
    random: Arc<Mutex<Random>>,
    version: Arc<Mutex<Version>>,
}

impl State {
    pub fn new(redis_version: &str) -> mlua::Result<State> {
        let libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH;
        let lua = Lua::new_with(libraries, LuaOptions::new())?;
        let control = Arc::new(Control::default());
        let random = Arc::new(Mutex::new(Random::seeded(0)));
        let (json, version) = (json::Shared::default(), Arc::default());
        let native = native(&lua, &control, &random)?;
        let redis = redis(&lua, redis_version, &version)?;
        let loads = lua.create_table()?;
        constants(&loads, redis_version, LEVELS)?;
        let all = lua.create_table()?;
        all.raw_set("redis", &redis)?;
        all.raw_set("cjson", json::table(&lua, &json, &control, MEMORY)?)?;
        all.raw_set("cmsgpack", msgpack::table(&lua, &control, MEMORY)?)?;
        all.raw_set("struct", structs::table(&lua)?)?;
        all.raw_set("bit", bits::table(&lua)?)?;
        let stock = lua.globals();
        let prelude = lua.load(include_str!("prelude.lua")).set_name(PRELUDE);
        let offered = (native, stock, all, &loads);
        let (globals, run, load, call) = prelude.call::<(Table, Function, Function, Function)>(offered)?;
        lua.set_globals(globals)?;
        let hook = control.clone();
        lua.set_global_hook(HookTriggers::new().every_nth_instruction(INSTRUCTIONS), move |_, _| {
            hook.check().map(|()| VmState::Continue).map_err(|_| stopped())
        })?;
        lua.set_memory_limit(MEMORY)?;
        Ok(State {
            lua,
            control,
            run,
            load,
            call,
            loads,
            libraries: HashMap::new(),
            redis,
            compiled: HashMap::new(),
            json,
            random,
            version,
        })
    }

    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Bytes of memory that it takes.
    pub fn memory(&self) -> usize {
        self.lua.used_memory()
    }

    /// Frees what scripts have left behind.
    pub fn collect(&self) -> mlua::Result<()> {
        // Once more for what has a finalizer.
        self.lua.gc_collect()?;
        self.lua.gc_collect()
    }

    /// Compiles a script, unless it was compiled before. The error is a reply.
    pub fn compile(&mut self, script: &Script) -> Result<Function, Bytes> {
        if let Some(function) = self.compiled.get(&script.sha) {
            return Ok(function.clone());
        }
        let chunk = self.lua.load(&script.code[..]).set_name(NAME).set_mode(ChunkMode::Text);
        let function = chunk.into_function().map_err(|error| {
            let why = match error {
                mlua::Error::SyntaxError { message, .. } => message,
                other => other.to_string(),
            };
            Bytes::from(format!("ERR Error compiling script (new function): {why}"))
        })?;
        if self.compiled.len() >= MOST_COMPILED {
            self.compiled.clear();
        }
        self.compiled.insert(script.sha, function.clone());
        Ok(function)
    }

    /// Runs a script that has begun ([`Control::begin`]).
    pub fn run(&mut self, host: &mut dyn Host, script: &Script, keys: &[&[u8]], args: &[&[u8]]) -> Ended {
        let ended = self.try_run(host, script, keys, args);
        self.outcome(ended)
    }

    pub(super) fn outcome(&self, ended: mlua::Result<Ended>) -> Ended {
        if let Some(stop) = self.control.stopped() {
            return Ended::Stopped(stop);
        }
        ended.unwrap_or_else(|error| match error {
            mlua::Error::MemoryError(_) => Ended::Stopped(Stop::Memory),
            other => Ended::Reply {
                reply: Reply::error(format!("ERR the script failed: {other}")),
                counted: false,
            },
        })
    }

    fn try_run(&mut self, host: &mut dyn Host, script: &Script, keys: &[&[u8]], args: &[&[u8]]) -> mlua::Result<Ended> {
        let function = match self.compile(script) {
            Ok(function) => function,
            Err(error) => {
                return Ok(Ended::Reply {
                    reply: Reply::Error(error),
                    counted: false,
                });
            }
        };
        let (keys, args) = (self.list(keys)?, self.list(args)?);
        let (ok, result) = self.with_host(host, || self.run.call::<(bool, Value)>((function, keys, args)))?;
        self.ended(&script.sha, ok, &result)
    }

    pub(super) fn list(&self, items: &[&[u8]]) -> mlua::Result<Table> {
        let table = self.lua.create_table_with_capacity(items.len(), 0)?;
        for (place, item) in items.iter().enumerate() {
            table.raw_set(place + 1, self.lua.create_string(item)?)?;
        }
        Ok(table)
    }

    /// Runs what acts on this host. Nothing of an earlier run is left.
    pub(super) fn with_host<T>(&self, host: &mut dyn Host, run: impl FnOnce() -> mlua::Result<T>) -> mlua::Result<T> {
        *self.json.lock() = json::Settings::default();
        *self.version.lock() = Version::Resp2;
        *self.random.lock() = Random::seeded(rand::random());
        let host = std::cell::RefCell::new(host);
        let (control, version) = (&self.control, &self.version);
        self.lua.scope(|scope| {
            for (name, raises) in [("call", true), ("pcall", false)] {
                let host = &host;
                let function = scope.create_function(move |lua, args: Variadic<Value>| {
                    let mut host = host.try_borrow_mut().map_err(|_| mlua::Error::RecursiveMutCallback)?;
                    call(lua, &mut **host, &args, *version.lock(), control, raises)
                        .map_err(|problem| problem.raise(lua))
                })?;
                self.redis.raw_set(name, function)?;
            }
            let of_acl = &host;
            let is_allowed = scope.create_function(move |lua, args: Variadic<Value>| {
                let mut host = of_acl.try_borrow_mut().map_err(|_| mlua::Error::RecursiveMutCallback)?;
                is_allowed(&mut **host, &args).map_err(|problem| problem.raise(lua))
            })?;
            self.redis.raw_set("acl_check_cmd", is_allowed)?;
            let of_log = &host;
            let log = scope.create_function(move |lua, args: Variadic<Value>| {
                let mut host = of_log.try_borrow_mut().map_err(|_| mlua::Error::RecursiveMutCallback)?;
                log(lua, &mut **host, &args).map_err(|problem| problem.raise(lua))
            })?;
            self.redis.raw_set("log", &log)?;
            self.loads.raw_set("log", log)?;
            run()
        })
    }

    /// `name`: what it is called in the texts of errors.
    pub(super) fn ended(&self, name: &[u8], ok: bool, result: &Value) -> mlua::Result<Ended> {
        let counts =
            |table: &Table| Ok::<_, mlua::Error>(!table.raw_get::<Value>("ignore_error_stats_update")?.is_nil());
        if ok {
            let reply = convert::Result::of(result, *self.version.lock())?;
            let counted = match result {
                Value::Table(table) if reply.is_error() => counts(table)?,
                _ => false,
            };
            return Ok(Ended::Reply { reply, counted });
        }
        let Value::Table(failed) = result else {
            // Lua had no room to say more.
            return Ok(match result {
                Value::String(text) if *text.as_bytes() == *b"not enough memory" => Ended::Stopped(Stop::Memory),
                _ => Ended::Reply {
                    reply: Reply::error("ERR stack overflow"),
                    counted: false,
                },
            });
        };
        let mut error = match failed.raw_get("err")? {
            Value::String(text) => text.as_bytes().to_vec(),
            _ => b"ERR unknown error".to_vec(),
        };
        if let (Value::String(source), Value::Integer(line)) = (failed.raw_get("source")?, failed.raw_get("line")?) {
            error.extend_from_slice(b" script: ");
            error.extend_from_slice(name);
            error.extend_from_slice(b", on ");
            error.extend_from_slice(&source.as_bytes());
            error.extend_from_slice(format!(":{line}.").as_bytes());
        }
        Ok(Ended::Reply {
            reply: Reply::error(error),
            counted: counts(failed)?,
        })
    }
}

/// Functions for the prelude.
fn native(lua: &Lua, control: &Arc<Control>, random: &Arc<Mutex<Random>>) -> mlua::Result<Table> {
    let native = lua.create_table()?;
    strings::add_to(lua, &native, control, MEMORY)?;
    let watch = control.clone();
    add(lua, &native, "check", move |_, _| {
        watch.check()?;
        Ok(Vec::new())
    })?;
    let watch = control.clone();
    add(lua, &native, "out_of_memory", move |_, _| {
        watch.stop(Stop::Memory);
        Ok(Vec::new())
    })?;
    let watch = control.clone();
    add(lua, &native, "translate", move |lua, args| {
        Ok(vec![match args.first() {
            Some(Value::Error(error)) => translate(lua, error, &watch)?,
            other => other.cloned().unwrap_or(Value::Nil),
        }])
    })?;
    add(lua, &native, "place", |lua, _| {
        let place = |frame: &mlua::debug::Debug<'_>| {
            let source = frame.source().source?.into_owned();
            (source != PRELUDE).then_some(())?;
            Some((source, frame.current_line()?))
        };
        match (1..16).find_map(|level| lua.inspect_stack(level, place)?) {
            Some((source, line)) => Ok(vec![string(lua, source)?, Value::Integer(line as i64)]),
            None => Ok(Vec::new()),
        }
    })?;
    let of_random = random.clone();
    add(lua, &native, "random", move |lua, args| {
        next_random(lua, args, of_random.lock().fraction())
    })?;
    let of_seed = random.clone();
    add(lua, &native, "randomseed", move |lua, args| {
        *of_seed.lock() = Random::seeded(number(lua, args, 0, "randomseed")? as i64 as i32);
        Ok(Vec::new())
    })?;
    Ok(native)
}

fn next_random(lua: &Lua, args: &[Value], fraction: f64) -> Answer {
    let (low, high, at) = match args.len() {
        0 => return Ok(vec![Value::Number(fraction)]),
        1 => (1.0, number(lua, args, 0, "random")?.trunc(), 0),
        2 => (
            number(lua, args, 0, "random")?.trunc(),
            number(lua, args, 1, "random")?.trunc(),
            1,
        ),
        _ => return Err("wrong number of arguments".into()),
    };
    if low > high {
        return Err(bad("random", at, "interval is empty"));
    }
    Ok(vec![Value::Number((fraction * (high - low + 1.0)).floor() + low)])
}

const LEVELS: &[(&str, u32)] = &[
    ("LOG_DEBUG", 0),
    ("LOG_VERBOSE", 1),
    ("LOG_NOTICE", 2),
    ("LOG_WARNING", 3),
];
const REPLICATION: &[(&str, u32)] = &[
    ("REPL_NONE", 0),
    ("REPL_AOF", 1),
    ("REPL_SLAVE", 2),
    ("REPL_REPLICA", 2),
    ("REPL_ALL", 3),
];

/// Adds these numbers and the version of Redis.
fn constants(table: &Table, version: &str, numbers: &[(&str, u32)]) -> mlua::Result<()> {
    for (name, number) in numbers {
        table.raw_set(*name, *number)?;
    }
    let parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    table.raw_set("REDIS_VERSION", version)?;
    table.raw_set("REDIS_VERSION_NUM", parts.fold(0, |number, part| number << 8 | part))
}

/// The table `redis`, but for what the host does.
fn redis(lua: &Lua, version: &str, resp: &Arc<Mutex<Version>>) -> mlua::Result<Table> {
    let redis = lua.create_table()?;
    constants(&redis, version, LEVELS)?;
    constants(&redis, version, REPLICATION)?;
    add(lua, &redis, "sha1hex", |lua, args| {
        let [_] = args else {
            return Err(raises("ERR wrong number of arguments"));
        };
        // What is neither a string nor a number counts as an empty one.
        let digest = match text(lua, args, 0, "sha1hex") {
            Ok(text) => sha1_hex(&text.as_bytes()),
            Err(_) => sha1_hex(b""),
        };
        Ok(vec![string(lua, digest)?])
    })?;
    add(lua, &redis, "error_reply", |lua, args| {
        let [Value::String(text)] = args else {
            return wrong_reply(lua);
        };
        let text = text.as_bytes();
        let text = text.strip_prefix(b"-").unwrap_or(&text);
        // A text of one word is no code.
        let error = match text.contains(&b' ') {
            true => text.to_vec(),
            false => [b"ERR ", text].concat(),
        };
        Ok(vec![Value::Table(error_table(lua, &error, false)?)])
    })?;
    add(lua, &redis, "status_reply", |lua, args| {
        let [Value::String(text)] = args else {
            return wrong_reply(lua);
        };
        let table = lua.create_table()?;
        table.raw_set("ok", text)?;
        Ok(vec![Value::Table(table)])
    })?;
    add_settings(lua, &redis, resp)?;
    Ok(redis)
}

/// What changes how later commands are run. There is no replication of commands to be changed.
fn add_settings(lua: &Lua, redis: &Table, resp: &Arc<Mutex<Version>>) -> mlua::Result<()> {
    let resp = resp.clone();
    add(lua, redis, "setresp", move |lua, args| {
        let [_] = args else {
            return Err(raises("ERR redis.setresp() requires one argument."));
        };
        *resp.lock() = match number(lua, args, 0, "setresp") {
            Ok(2.0) => Version::Resp2,
            Ok(3.0) => Version::Resp3,
            _ => return Err(raises("ERR RESP version must be 2 or 3.")),
        };
        Ok(Vec::new())
    })?;
    add(lua, redis, "set_repl", |lua, args| {
        let [_] = args else {
            return Err(raises("ERR redis.set_repl() requires two arguments."));
        };
        match number(lua, args, 0, "set_repl") {
            Ok(0.0 | 1.0 | 2.0 | 3.0) => Ok(Vec::new()),
            _ => Err(raises(
                "ERR Invalid replication flags. Use REPL_AOF, REPL_REPLICA, REPL_ALL or REPL_NONE.",
            )),
        }
    })?;
    add(lua, redis, "replicate_commands", |_, _| Ok(vec![Value::Boolean(true)]))?;
    add(lua, redis, "breakpoint", |_, _| Ok(vec![Value::Boolean(false)]))?;
    add(lua, redis, "debug", |_, _| Ok(Vec::new()))
}

fn wrong_reply(lua: &Lua) -> Answer {
    Ok(vec![Value::Table(error_table(
        lua,
        b"ERR wrong number or type of arguments",
        false,
    )?)])
}

fn raises(error: &'static str) -> Problem {
    Problem::Raises {
        error: Bytes::from_static(error.as_bytes()),
        counted: false,
    }
}

const NO_ARGUMENT: &str = "ERR Please specify at least one argument for this redis lib call";
const WRONG_ARGUMENT: &str = "ERR Lua redis lib command arguments must be strings or integers";

/// The arguments of a command. A number is printed as Redis prints it: 17 digits, integers whole.
fn arguments(args: &[Value]) -> Result<Vec<Bytes>, &'static str> {
    if args.is_empty() {
        return Err(NO_ARGUMENT);
    }
    let argument = |value: &Value| match value {
        Value::String(text) => Ok(Bytes::copy_from_slice(&text.as_bytes())),
        Value::Integer(number) => Ok(Bytes::from(printed(*number as f64))),
        Value::Number(number) => Ok(Bytes::from(printed(*number))),
        _ => Err(WRONG_ARGUMENT),
    };
    args.iter().map(argument).collect()
}

fn printed(number: f64) -> String {
    json::general(number, 17)
}

fn call(
    lua: &Lua,
    host: &mut dyn Host,
    args: &[Value],
    version: Version,
    control: &Control,
    raises: bool,
) -> Result<MultiValue, Problem> {
    control.check()?;
    let failed = |error: Bytes, counted: bool| match raises {
        true => Err(Problem::Raises { error, counted }),
        false => Ok(MultiValue::from_vec(vec![Value::Table(error_table(
            lua, &error, counted,
        )?)])),
    };
    let args = match arguments(args) {
        Ok(args) => args,
        Err(error) => return failed(Bytes::from_static(error.as_bytes()), false),
    };
    let slices: smallvec::SmallVec<[&[u8]; 8]> = args.iter().map(|argument| &argument[..]).collect();
    match host.call(&slices) {
        None => {
            control.stop(Stop::Host);
            Err(stopped().into())
        }
        Some(Reply::Error(error)) => failed(error, true),
        Some(reply) => Ok(MultiValue::from_vec(vec![to_lua(lua, &reply, version)?])),
    }
}

fn is_allowed(host: &mut dyn Host, args: &[Value]) -> Result<Value, Problem> {
    let args = arguments(args).map_err(self::raises)?;
    let slices: Vec<&[u8]> = args.iter().map(|argument| &argument[..]).collect();
    let allowed = host.is_allowed(&slices);
    let allowed = allowed.ok_or_else(|| raises("ERR Invalid command passed to redis.acl_check_cmd()"))?;
    Ok(Value::Boolean(allowed))
}

fn log(lua: &Lua, host: &mut dyn Host, args: &[Value]) -> Result<(), Problem> {
    if args.len() < 2 {
        return Err(raises("ERR redis.log() requires two arguments or more."));
    }
    let Ok(level) = number(lua, args, 0, "log") else {
        return Err(raises("ERR First argument must be a number (log level)."));
    };
    let level = match level as i64 {
        0 => Level::Debug,
        1 => Level::Verbose,
        2 => Level::Notice,
        3 => Level::Warning,
        _ => return Err(raises("ERR Invalid debug level.")),
    };
    let mut words = Vec::new();
    for at in 1..args.len() {
        if let Ok(word) = text(lua, args, at, "log") {
            words.push(word.as_bytes().to_vec());
        }
    }
    host.log(level, &words.join(&b' '));
    Ok(())
}
