//! Functions: <https://redis.io/docs/latest/develop/programmability/functions-intro/>. Libraries
//! live in the topic of database 0 (`database::functions`). A function is called as a script is
//! run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::args::{int, is, text, unknown_subcommand};
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
use crate::glob;
use crate::rdb::{dump_libraries, libraries_in};
use crate::script::{Call, Index, Kill, Kind, Library, MEMORY, Refused, Stop, flags, metadata};
use crate::telemetry::slowlog::shorten;

/// What a library may take to be loaded.
const LOADING: Duration = Duration::from_secs(2);
/// What all libraries of one command may take.
const LOADING_ALL: Duration = Duration::from_secs(5);
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

/// What changes libraries. All keys are locked: it is rare. Libraries are loaded before that. What
/// comes later in a pipeline sees the change: until it is acknowledged, nobody else does.
const CHANGES: u32 = flag::WRITE | flag::NOSCRIPT | flag::ALL_KEYS | flag::BARRIER;

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
        reads: Reads::OtherDatabases,
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
        reads: Reads::OtherDatabases,
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
        reads: Reads::OtherDatabases,
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
        command: shorten(args),
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

/// A command that changes libraries: what it begins with, and what it is going to write.
///
/// Its first run locks nothing. It loads the libraries, which can take long. The next run has all
/// keys locked, and the engine has the libraries by then. (In EXEC, all keys are locked at once.)
struct Changing<'c, 't, 'k> {
    commands: Commands<'c, 't, 'k>,
    /// All libraries, also those that this node cannot load and that `index` lacks.
    texts: Arc<Texts>,
    index: Index,
    deadline: Instant,
    /// Libraries with new texts, and those that are deleted.
    changes: BTreeMap<Bytes, Option<Arc<Library>>>,
}

impl<'c, 't, 'k> Changing<'c, 't, 'k> {
    fn begin(
        session: &'c mut Session,
        shared: &'c Arc<Shared>,
        transaction: &'c mut Transaction<'t>,
        used: &'c mut Used<'k>,
    ) -> Result<Self, Fault> {
        if session.pace.turn == Turn::Short {
            return Err(Fault::Wait(Wait::Turn(Turn::Large)));
        }
        used.all_keys();
        let texts = transaction.libraries_to_change()?;
        let mut commands = Commands::new(session, shared, transaction, used, 0);
        let index = Index::clone(&*index(&mut commands, &texts)?);
        Ok(Changing {
            commands,
            texts,
            index,
            deadline: Instant::now() + LOADING_ALL,
            changes: BTreeMap::new(),
        })
    }

    /// Loads a library. The error is a reply.
    fn load(&mut self, text: &Bytes) -> Result<Arc<Library>, Fault> {
        let shared = self.commands.shared.clone();
        let time = LOADING.min(self.deadline.saturating_duration_since(Instant::now()));
        let loaded = shared.scripts.load(&mut self.commands, text, time);
        loaded.map_err(|refused| match refused {
            Refused::Error(error) => Fault::error(error),
            Refused::Stopped(Stop::Memory) => Fault::error(format!(
                "ERR Error registering functions: ERR the library wants more than {MEMORY} bytes of memory"
            )),
            Refused::Unprepared(error) => Fault::Error(error),
            Refused::Stopped(_) => "ERR Error registering functions: ERR FUNCTION LOAD timeout".into(),
        })
    }

    fn has(&self, name: &[u8]) -> bool {
        match self.changes.get(name) {
            Some(change) => change.is_some(),
            None => self.texts.contains_key(name),
        }
    }

    /// Adds a library, or replaces one.
    fn put(&mut self, library: &Arc<Library>) -> Result<(), Fault> {
        self.index.remove(&library.name);
        let added = self.index.add(library);
        added.map_err(|function| Fault::error([b"ERR Function ", &function[..], b" already exists"].concat()))?;
        self.changes.insert(library.name.clone(), Some(library.clone()));
        Ok(())
    }

    /// Deletes all libraries that there were before this command.
    fn delete_all(&mut self) {
        self.index = Index::default();
        self.changes = self.texts.keys().map(|name| (name.clone(), None)).collect();
    }

    /// Writes what has changed.
    fn write(self) -> Result<(), Fault> {
        let kept = self.texts.iter().filter(|(name, _)| !self.changes.contains_key(*name));
        let kept = kept.map(|(name, text)| self.index.libraries.get(name).map_or(text.len(), |of| of.bytes()));
        let new = self.changes.values().flatten().map(|library| library.bytes());
        if kept.chain(new).sum::<usize>() > MOST_BYTES {
            return Err(Fault::error(format!(
                "ERR libraries of functions may have at most {MOST_BYTES} bytes together"
            )));
        }
        let Changing {
            mut commands, changes, ..
        } = self;
        let text = |library: Arc<Library>| library.text.clone();
        commands.put_libraries(changes.into_iter().map(|(name, library)| (name, library.map(text))));
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
    if changing.has(&name) && options.is_empty() {
        return Ok(Reply::error(format!("ERR Library '{}' already exists", text(&name))));
    }
    let loaded = changing.load(&code).and_then(|library| {
        changing.put(&library)?;
        changing.write()?;
        Ok(Reply::Bulk(name))
    });
    replied(used, loaded)
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
        _ => return replied(used, Err(unknown_subcommand("function", args[1]))),
    };
    let texts = match libraries_in(args[2], MOST_BYTES) {
        Ok(texts) => texts,
        Err(error) => return Ok(Reply::error(error)),
    };
    let mut changing = Changing::begin(session, shared, transaction, used)?;
    let restored = restored(&mut changing, &texts, policy).and_then(|()| {
        changing.write()?;
        Ok(Reply::Ok)
    });
    replied(used, restored)
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
        changing.delete_all();
    }
    for library in &libraries {
        if policy == "append" && changing.has(&library.name) {
            return Err(Fault::error(format!(
                "ERR Library {} already exists",
                text(&library.name)
            )));
        }
        // Its functions may move to other libraries of the payload.
        changing.index.remove(&library.name);
    }
    libraries.iter().try_for_each(|library| changing.put(library))
}

fn delete(
    _: &mut Session,
    _: &Arc<Shared>,
    transaction: &mut Transaction,
    used: &mut Used,
    _: u16,
    args: Args,
) -> Outcome {
    let texts = to_delete(transaction, used)?;
    if !texts.contains_key(args[2]) {
        return Ok(Reply::error("ERR Library not found"));
    }
    transaction.put_libraries([(Bytes::copy_from_slice(args[2]), None)]);
    Ok(Reply::Ok)
}

fn flush(
    _: &mut Session,
    _: &Arc<Shared>,
    transaction: &mut Transaction,
    used: &mut Used,
    _: u16,
    args: Args,
) -> Outcome {
    match &args[2..] {
        [] => {}
        [mode] if is(mode, "sync") || is(mode, "async") => {}
        [_, _, ..] => return replied(used, Err(unknown_subcommand("function", args[1]))),
        _ => return Ok(Reply::error("ERR FUNCTION FLUSH only supports SYNC|ASYNC option")),
    }
    let texts = to_delete(transaction, used)?;
    transaction.put_libraries(texts.keys().map(|name| (name.clone(), None)));
    Ok(Reply::Ok)
}

/// The libraries, for a command that only deletes some: it need not know what they mean.
fn to_delete(transaction: &mut Transaction, used: &mut Used) -> Result<Arc<Texts>, Fault> {
    used.all_keys();
    used.check()?;
    transaction.libraries_to_change()
}

/// An error of a command is its reply: in EXEC, the others are executed. An error of the run that
/// locks nothing stays one, so that there is no other run.
fn replied(used: &Used, outcome: Outcome) -> Outcome {
    match outcome {
        Err(Fault::Error(error)) if used.check().is_ok() => Ok(Reply::Error(error)),
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
    let is_wanted = |name: &[u8]| wanted.is_none_or(|wanted| glob::matches_any_case(wanted, name));
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
