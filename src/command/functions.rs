//! Functions: <https://redis.io/docs/latest/develop/programmability/functions-intro/>. Libraries
//! live in the topic of database 0 (`database::functions`). A function is called as a script is
//! run.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::args::{int, is, text, unknown_subcommand};
use super::keys::dump::{dump_libraries, libraries_in};
use super::pattern;
use super::scripts::host::Commands;
use super::scripts::{FLAGS, MAY_CHANGE, READ, SHORT, outcome, time_of};
use super::step::{BUSY_SCRIPT, NOT_BUSY};
use super::undeclared::Used;
use super::{
    Args, Command, Compatibility, Fault, Outcome, Reads, Reply, Run, ScriptHandler, Session, Shared, Transaction, flag,
    help_of,
};
use crate::database::functions::Texts;
use crate::database::{Turn, Wait};
use crate::script::{Call, Index, Kill, Kind, Library, MEMORY, Refused, Stop, flags, metadata};

/// What FUNCTION LOAD may take to run a library.
const LOADING: Duration = Duration::from_secs(2);
/// Most bytes of all libraries. Each node keeps them in memory, and writes them with its
/// checkpoints.
const MOST_BYTES: usize = 8 << 20;

const CALL: Command = Command {
    arity: -3,
    reads: Reads::Script,
    categories: &["scripting"],
    group: "scripting",
    since: "7.0.0",
    complexity: "That of the function.",
    compatibility: Compatibility::Partial(
        "a function stops no other command; what a library keeps in its variables is not kept for sure, and each node has its own",
    ),
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "fcall",
        flags: FLAGS,
        keys: MAY_CHANGE,
        summary: "Calls a function.",
        run: Run::Script(fcall as ScriptHandler),
        ..CALL
    },
    Command {
        name: "fcall_ro",
        flags: FLAGS | flag::READONLY,
        keys: READ,
        summary: "Calls a function that only reads.",
        run: Run::Script(fcall as ScriptHandler),
        ..CALL
    },
    Command {
        name: "function",
        arity: -2,
        group: "scripting",
        since: "7.0.0",
        complexity: "That of the subcommand.",
        summary: "Commands about libraries of functions.",
        run: Run::Container,
        subcommands: FUNCTION,
        ..Command::DEFAULT
    },
];

const SUBCOMMAND: Command = Command {
    flags: flag::NOSCRIPT,
    categories: &["scripting"],
    group: "scripting",
    since: "7.0.0",
    ..Command::DEFAULT
};

/// What changes libraries. All keys are locked: it is rare.
const CHANGES: u32 = flag::WRITE | flag::NOSCRIPT | flag::ALL_KEYS;

const FUNCTION: &[Command] = &[
    Command {
        name: "function|delete",
        arity: 3,
        flags: CHANGES,
        summary: "Removes a library.",
        run: Run::Script(delete as ScriptHandler),
        ..SUBCOMMAND
    },
    Command {
        name: "function|dump",
        arity: 2,
        complexity: "O(N), N being the number of functions.",
        summary: "Returns all libraries as bytes, in the format of Redis.",
        run: Run::Script(dump as ScriptHandler),
        ..SUBCOMMAND
    },
    Command {
        name: "function|flush",
        arity: -2,
        flags: CHANGES,
        complexity: "O(N), N being the number of functions.",
        summary: "Removes all libraries.",
        run: Run::Script(flush as ScriptHandler),
        ..SUBCOMMAND
    },
    Command {
        name: "function|help",
        arity: 2,
        flags: flag::LOADING | flag::STALE,
        summary: "Lists the subcommands.",
        run: Run::Session(help),
        ..SUBCOMMAND
    },
    Command {
        name: "function|kill",
        arity: 2,
        flags: flag::NOSCRIPT | flag::ALLOW_BUSY,
        summary: "Stops the functions that have been running for longer than busy-reply-threshold.",
        compatibility: Compatibility::Partial(
            "also stops a function that has called commands that write: nothing of it is written",
        ),
        run: Run::Session(kill),
        ..SUBCOMMAND
    },
    Command {
        name: "function|list",
        arity: -2,
        complexity: "O(N), N being the number of functions.",
        summary: "Lists the libraries and their functions.",
        run: Run::Script(list as ScriptHandler),
        ..SUBCOMMAND
    },
    Command {
        name: "function|load",
        arity: -3,
        flags: CHANGES | flag::DENYOOM,
        complexity: "O(1), besides what the library does.",
        summary: "Creates a library, or replaces one.",
        compatibility: Compatibility::Partial("all libraries may have 8 MB together"),
        run: Run::Script(load as ScriptHandler),
        ..SUBCOMMAND
    },
    Command {
        name: "function|restore",
        arity: -3,
        flags: CHANGES | flag::DENYOOM,
        complexity: "O(N), N being the number of functions.",
        summary: "Takes in what FUNCTION DUMP returned, also that of Redis.",
        run: Run::Script(restore as ScriptHandler),
        ..SUBCOMMAND
    },
    Command {
        name: "function|stats",
        arity: 2,
        flags: flag::NOSCRIPT | flag::ALLOW_BUSY,
        summary: "Tells which function is running, and how many there are.",
        compatibility: Compatibility::Partial("of several functions that run, the one that has run for longest"),
        run: Run::Script(stats as ScriptHandler),
        ..SUBCOMMAND
    },
];

// ---- calling a function ----

fn fcall(
    session: &mut Session,
    shared: &Arc<Shared>,
    transaction: &mut Transaction,
    used: &mut Used,
    database: u16,
    args: Args,
) -> Outcome {
    let texts = transaction.libraries()?;
    let mut commands = Commands::new(session, shared, transaction, used, database);
    let index = index(&mut commands, &texts)?;
    let Some((library, function)) = index.find(args[1]) else {
        return Ok(Reply::error("ERR Function not found"));
    };
    let count = match count_of_keys(args) {
        Ok(count) => count,
        Err(error) => return Ok(Reply::error(error)),
    };
    let no_writes = function.flags & flags::NO_WRITES != 0;
    let reads_only = super::table::find(args[0]).is_some_and(|command| command.has(flag::READONLY));
    if reads_only && !no_writes {
        return Ok(Reply::error(
            "ERR Can not execute a script with write flag using *_ro command.",
        ));
    }
    commands.is_read_only = no_writes;
    let (keys, arguments) = args[3..].split_at(count);
    let call = Call {
        library,
        function: &function.name,
        keys,
        args: arguments,
        time: time_of(commands.session.pace.turn),
        command: args,
    };
    let ended = shared.scripts.call(&mut commands, &call);
    outcome(
        commands,
        ended,
        &function.name,
        "Script killed by user with FUNCTION KILL.",
    )
}

fn count_of_keys(args: Args) -> Result<usize, &'static str> {
    let count = int(args[2]).map_err(|_| "ERR Bad number of keys provided")?;
    match usize::try_from(count) {
        Err(_) => Err("ERR Number of keys can't be negative"),
        Ok(count) if count > args.len() - 3 => Err("ERR Number of keys can't be greater than number of args"),
        Ok(count) => Ok(count),
    }
}

/// What the libraries of these texts mean.
fn index(commands: &mut Commands<'_, '_, '_>, texts: &Arc<Texts>) -> Result<Arc<Index>, Fault> {
    let short = (commands.session.pace.turn == Turn::Short).then_some(SHORT);
    let shared = commands.shared.clone();
    let index = shared.scripts.index(commands, texts, short);
    index.ok_or(Fault::Wait(Wait::Turn(Turn::Large)))
}

// ---- changing libraries ----

/// What a command that changes libraries begins with: the libraries, and what they mean.
struct Changing<'c, 't, 'k> {
    commands: Commands<'c, 't, 'k>,
    texts: Arc<Texts>,
    index: Index,
}

impl<'c, 't, 'k> Changing<'c, 't, 'k> {
    fn begin(
        session: &'c mut Session,
        shared: &'c Arc<Shared>,
        transaction: &'c mut Transaction<'t>,
        used: &'c mut Used<'k>,
    ) -> Result<Self, Fault> {
        used.all_keys();
        used.check()?;
        if session.pace.turn == Turn::Short {
            return Err(Fault::Wait(Wait::Turn(Turn::Large)));
        }
        let texts = transaction.libraries_to_change()?;
        let mut commands = Commands::new(session, shared, transaction, used, 0);
        let index = Index::clone(&*index(&mut commands, &texts)?);
        Ok(Changing { commands, texts, index })
    }

    /// Loads a library. The error is a reply.
    fn load(&mut self, text: &Bytes) -> Result<Arc<Library>, Fault> {
        let shared = self.commands.shared.clone();
        let loaded = shared.scripts.load(&mut self.commands, text, LOADING);
        loaded.map_err(|refused| match refused {
            Refused::Error(error) => Fault::error(error),
            Refused::Stopped(Stop::Memory) => Fault::error(format!(
                "ERR Error registering functions: ERR the library wants more than {MEMORY} bytes of memory"
            )),
            Refused::Stopped(_) => "ERR Error registering functions: ERR FUNCTION LOAD timeout".into(),
        })
    }

    fn add(&mut self, library: &Arc<Library>) -> Result<(), Fault> {
        let added = self.index.add(library);
        added.map_err(|function| Fault::error([b"ERR Function ", &function[..], b" already exists"].concat()))
    }

    /// Writes what has changed.
    fn write(self) -> Result<(), Fault> {
        let Changing {
            mut commands,
            texts,
            index,
        } = self;
        let all = index.libraries.values();
        if all.map(|library| library.text.len()).sum::<usize>() > MOST_BYTES {
            return Err(Fault::error(format!(
                "ERR libraries of functions may have at most {MOST_BYTES} bytes together"
            )));
        }
        for name in texts.keys().filter(|name| !index.libraries.contains_key(*name)) {
            commands.put_library(name, None);
        }
        for (name, library) in &index.libraries {
            if texts.get(name) != Some(&library.text) {
                commands.put_library(name, Some(library.text.clone()));
            }
        }
        Ok(())
    }
}

fn load(
    session: &mut Session,
    shared: &Arc<Shared>,
    transaction: &mut Transaction,
    used: &mut Used,
    _: u16,
    args: Args,
) -> Outcome {
    let [options @ .., code] = &args[2..] else {
        return Err("ERR Function code is missing".into());
    };
    if let Some(unknown) = options.iter().find(|option| !is(option, "replace")) {
        return Ok(Reply::error(format!("ERR Unknown option given: {}", text(unknown))));
    }
    let code = Bytes::copy_from_slice(code);
    let (name, _) = match metadata(&code) {
        Ok(metadata) => metadata,
        Err(error) => return Ok(Reply::error(error)),
    };
    let mut changing = Changing::begin(session, shared, transaction, used)?;
    if changing.texts.contains_key(&name) && options.is_empty() {
        return Ok(Reply::error(format!("ERR Library '{}' already exists", text(&name))));
    }
    replied(changing.load(&code).and_then(|library| {
        changing.index.remove(&name);
        changing.add(&library)?;
        changing.write()?;
        Ok(Reply::Bulk(name))
    }))
}

fn restore(
    session: &mut Session,
    shared: &Arc<Shared>,
    transaction: &mut Transaction,
    used: &mut Used,
    _: u16,
    args: Args,
) -> Outcome {
    let policy = match &args[3..] {
        [] => "append",
        [policy] => match ["flush", "append", "replace"].iter().find(|known| is(policy, known)) {
            Some(policy) => policy,
            None => {
                return Ok(Reply::error(
                    "ERR Wrong restore policy given, value should be either FLUSH, APPEND or REPLACE.",
                ));
            }
        },
        _ => return replied(Err(unknown_subcommand("function", args[1]))),
    };
    let texts = match libraries_in(args[2], MOST_BYTES) {
        Ok(texts) => texts,
        Err(error) => return Ok(Reply::error(error)),
    };
    let mut changing = Changing::begin(session, shared, transaction, used)?;
    replied(restored(&mut changing, &texts, policy).and_then(|()| {
        changing.write()?;
        Ok(Reply::Ok)
    }))
}

/// Adds the libraries of a payload.
fn restored(changing: &mut Changing<'_, '_, '_>, texts: &[Bytes], policy: &str) -> Result<(), Fault> {
    let mut new = Index::default();
    let mut libraries = Vec::new();
    for code in texts {
        let (name, _) = metadata(code).map_err(Fault::error)?;
        if new.libraries.contains_key(&name) {
            return Err(Fault::error(format!("ERR Library '{}' already exists", text(&name))));
        }
        let library = changing.load(code)?;
        let added = new.add(&library);
        added.map_err(|function| Fault::error([b"ERR Function ", &function[..], b" already exists"].concat()))?;
        libraries.push(library);
    }
    if policy == "flush" {
        changing.index = Index::default();
    }
    for library in &libraries {
        if policy == "append" && changing.index.libraries.contains_key(&library.name) {
            return Err(Fault::error(format!(
                "ERR Library {} already exists",
                text(&library.name)
            )));
        }
        changing.index.remove(&library.name);
    }
    libraries.iter().try_for_each(|library| changing.add(library))
}

fn delete(
    session: &mut Session,
    shared: &Arc<Shared>,
    transaction: &mut Transaction,
    used: &mut Used,
    _: u16,
    args: Args,
) -> Outcome {
    let changing = Changing::begin(session, shared, transaction, used)?;
    if !changing.texts.contains_key(args[2]) {
        return Ok(Reply::error("ERR Library not found"));
    }
    drop(changing);
    transaction.put_library(args[2], None);
    Ok(Reply::Ok)
}

fn flush(
    session: &mut Session,
    shared: &Arc<Shared>,
    transaction: &mut Transaction,
    used: &mut Used,
    _: u16,
    args: Args,
) -> Outcome {
    match &args[2..] {
        [] => {}
        [mode] if is(mode, "sync") || is(mode, "async") => {}
        [_, _, ..] => return replied(Err(unknown_subcommand("function", args[1]))),
        _ => return Ok(Reply::error("ERR FUNCTION FLUSH only supports SYNC|ASYNC option")),
    }
    let changing = Changing::begin(session, shared, transaction, used)?;
    let texts = changing.texts.clone();
    drop(changing);
    for name in texts.keys() {
        transaction.put_library(name, None);
    }
    Ok(Reply::Ok)
}

/// An error of a command is its reply: in EXEC, the others are executed.
fn replied(outcome: Outcome) -> Outcome {
    match outcome {
        Err(Fault::Error(error)) => Ok(Reply::Error(error)),
        outcome => outcome,
    }
}

// ---- looking at libraries ----

fn list(
    session: &mut Session,
    shared: &Arc<Shared>,
    transaction: &mut Transaction,
    used: &mut Used,
    database: u16,
    args: Args,
) -> Outcome {
    let (mut with_code, mut wanted) = (false, None);
    let mut options = args[2..].iter();
    while let Some(option) = options.next() {
        if !with_code && is(option, "withcode") {
            with_code = true;
        } else if wanted.is_none() && is(option, "libraryname") {
            wanted = match options.next() {
                None => return Ok(Reply::error("ERR library name argument was not given")),
                name => name,
            };
        } else {
            return Ok(Reply::error(format!("ERR Unknown argument {}", text(option))));
        }
    }
    let texts = transaction.libraries()?;
    let mut commands = Commands::new(session, shared, transaction, used, database);
    let index = index(&mut commands, &texts)?;
    let is_wanted = |name: &[u8]| wanted.is_none_or(|wanted| pattern::matches_any_case(wanted, name));
    let libraries = texts.iter().filter(|(name, _)| is_wanted(name));
    let library = |(name, text): (&Bytes, &Bytes)| {
        let library = index.libraries.get(name);
        let functions = library.map_or(&[][..], |library| &library.functions);
        let functions = functions.iter().map(|function| {
            let known = flags::NAMES.iter().filter(|(_, flag)| function.flags & flag != 0);
            let flags = known.map(|(name, _)| Reply::simple(*name)).collect();
            let description = function.description.clone().map_or(Reply::Null, Reply::Bulk);
            Reply::Map(vec![
                (Reply::bulk("name"), Reply::Bulk(function.name.clone())),
                (Reply::bulk("description"), description),
                (Reply::bulk("flags"), Reply::Set(flags)),
            ])
        });
        let mut fields = vec![
            (Reply::bulk("library_name"), Reply::Bulk(name.clone())),
            (Reply::bulk("engine"), Reply::bulk("LUA")),
            (Reply::bulk("functions"), Reply::Array(functions.collect())),
        ];
        if with_code {
            fields.push((Reply::bulk("library_code"), Reply::Bulk(text.clone())));
        }
        Reply::Map(fields)
    };
    Ok(Reply::Array(libraries.map(library).collect()))
}

fn dump(_: &mut Session, _: &Arc<Shared>, transaction: &mut Transaction, _: &mut Used, _: u16, _: Args) -> Outcome {
    let texts = transaction.libraries()?;
    Ok(Reply::Bulk(dump_libraries(texts.values())))
}

fn stats(
    session: &mut Session,
    shared: &Arc<Shared>,
    transaction: &mut Transaction,
    used: &mut Used,
    database: u16,
    _: Args,
) -> Outcome {
    let texts = transaction.libraries()?;
    let mut commands = Commands::new(session, shared, transaction, used, database);
    let index = index(&mut commands, &texts)?;
    let running = match shared.scripts.longest(Duration::ZERO) {
        Some((Kind::Function { name, command }, time)) => {
            let milliseconds = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
            let command = command.into_iter().map(Reply::Bulk).collect();
            Reply::Map(vec![
                (Reply::bulk("name"), Reply::Bulk(name)),
                (Reply::bulk("command"), Reply::Array(command)),
                (Reply::bulk("duration_ms"), Reply::Int(milliseconds)),
            ])
        }
        Some((Kind::Script, _)) | None => Reply::Null,
    };
    let lua = Reply::Map(vec![
        (Reply::bulk("libraries_count"), Reply::Int(texts.len() as i64)),
        (Reply::bulk("functions_count"), Reply::Int(index.functions() as i64)),
    ]);
    Ok(Reply::Map(vec![
        (Reply::bulk("running_script"), running),
        (Reply::bulk("engines"), Reply::Map(vec![(Reply::bulk("LUA"), lua)])),
    ]))
}

fn kill(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    match shared.scripts.kill(true, shared.config.busy_reply_threshold()) {
        Kill::Killed => Ok(Reply::Ok),
        Kill::Other => Err(BUSY_SCRIPT.into()),
        Kill::Nothing => Err(NOT_BUSY.into()),
    }
}

fn help(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(help_of("function", FUNCTION))
}
