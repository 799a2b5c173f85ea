//! Scripts: <https://redis.io/docs/latest/commands/?group=scripting>. The interpreter is in
//! [`crate::script`]; how a script calls commands is in [`host`].

pub(super) mod host;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::host::Commands;
use super::args::{int, is, unknown_subcommand};
use super::key_specs::access;
use super::step::{BUSY_FUNCTION, NOT_BUSY};
use super::undeclared::Used;
use super::{
    Args, Command, Compatibility, Fault, KeySpec, Outcome, Reads, Reply, Run, ScriptHandler, Session, Shared,
    Transaction, flag, help_of,
};
use crate::database::{Turn, Wait};
use crate::script::{Ended, Job, Kill, MEMORY, Script, Sha, Stop, flags};

pub(super) const FLAGS: u32 =
    flag::NOSCRIPT | flag::STALE | flag::SKIP_MONITOR | flag::NO_MANDATORY_KEYS | flag::MOVABLEKEYS;

/// What the rows have in common.
const ROW: Command = Command {
    arity: -3,
    // What a script reads is known when it has run: in EXEC, the whole store is waited for.
    reads: Reads::Script,
    categories: &["scripting"],
    group: "scripting",
    complexity: "That of the script.",
    ..Command::DEFAULT
};

pub(super) const MAY_CHANGE: &[KeySpec] = &[KeySpec::counted(2, access::CHANGES)];
pub(super) const READ: &[KeySpec] = &[KeySpec::counted(2, access::READS)];

/// What differs from Redis for all of these commands.
const SCRIPTS: Compatibility = Compatibility::Partial(
    "a script stops no other command; it may take 256 MB of memory; what it sets in cjson ends with it",
);

pub static COMMANDS: &[Command] = &[
    Command {
        name: "eval",
        flags: FLAGS,
        keys: MAY_CHANGE,
        since: "2.6.0",
        summary: "Runs a script.",
        compatibility: SCRIPTS,
        run: Run::Script(eval as ScriptHandler),
        ..ROW
    },
    Command {
        name: "eval_ro",
        flags: FLAGS | flag::READONLY,
        keys: READ,
        since: "7.0.0",
        summary: "Runs a script that only reads.",
        compatibility: SCRIPTS,
        run: Run::Script(eval as ScriptHandler),
        ..ROW
    },
    Command {
        name: "evalsha",
        flags: FLAGS,
        keys: MAY_CHANGE,
        since: "2.6.0",
        summary: "Runs a known script.",
        compatibility: SCRIPTS,
        run: Run::Script(evalsha as ScriptHandler),
        ..ROW
    },
    Command {
        name: "evalsha_ro",
        flags: FLAGS | flag::READONLY,
        keys: READ,
        since: "7.0.0",
        summary: "Runs a known script that only reads.",
        compatibility: SCRIPTS,
        run: Run::Script(evalsha as ScriptHandler),
        ..ROW
    },
    Command {
        name: "script",
        arity: -2,
        group: "scripting",
        since: "2.6.0",
        complexity: "That of the subcommand.",
        summary: "Commands about scripts.",
        run: Run::Container,
        subcommands: SCRIPT,
        ..Command::DEFAULT
    },
];

const SUBCOMMAND: Command = Command {
    flags: flag::NOSCRIPT,
    categories: &["scripting"],
    group: "scripting",
    since: "2.6.0",
    ..Command::DEFAULT
};

const SCRIPT: &[Command] = &[
    Command {
        name: "script|debug",
        arity: 3,
        since: "3.2.0",
        summary: "Turns debugging on or off.",
        compatibility: Compatibility::Partial("there is no debugger: YES and SYNC are errors"),
        run: Run::Session(debug),
        ..SUBCOMMAND
    },
    Command {
        name: "script|exists",
        arity: -3,
        complexity: "O(N), N being the number of scripts that are asked for.",
        summary: "Tells which scripts this node knows.",
        run: Run::Session(exists),
        ..SUBCOMMAND
    },
    Command {
        name: "script|flush",
        arity: -2,
        complexity: "O(N), N being the number of known scripts.",
        summary: "Forgets the scripts that this node knows.",
        run: Run::Session(flush),
        ..SUBCOMMAND
    },
    Command {
        name: "script|help",
        arity: 2,
        flags: flag::LOADING | flag::STALE,
        since: "5.0.0",
        summary: "Lists the subcommands.",
        run: Run::Session(help),
        ..SUBCOMMAND
    },
    Command {
        name: "script|kill",
        arity: 2,
        flags: flag::NOSCRIPT | flag::ALLOW_BUSY,
        summary: "Stops the scripts that have been running for longer than busy-reply-threshold.",
        compatibility: Compatibility::Partial(
            "also stops a script that has called commands that write: nothing of it is written",
        ),
        run: Run::Session(kill),
        ..SUBCOMMAND
    },
    Command {
        name: "script|load",
        arity: 3,
        flags: flag::NOSCRIPT | flag::STALE,
        complexity: "O(N), N being the length of the script.",
        summary: "Makes a script known to this node.",
        run: Run::Session(load),
        ..SUBCOMMAND
    },
];

// ---- running a script ----

/// What a short script may take on a thread that serves connections, before it is computed
/// elsewhere.
pub(super) const SHORT: Duration = Duration::from_millis(2);
/// What a script may take among those that take a fraction of a second.
const LARGE: Duration = Duration::from_millis(300);

fn eval(
    session: &mut Session,
    shared: &Arc<Shared>,
    transaction: &mut Transaction,
    used: &mut Used,
    database: u16,
    args: Args,
) -> Outcome {
    let script = of_text(shared, args);
    run(
        Commands::new(session, shared, transaction, used, database),
        script,
        args,
    )
}

fn evalsha(
    session: &mut Session,
    shared: &Arc<Shared>,
    transaction: &mut Transaction,
    used: &mut Used,
    database: u16,
    args: Args,
) -> Outcome {
    let script = of_sha(shared, args);
    run(
        Commands::new(session, shared, transaction, used, database),
        script,
        args,
    )
}

/// The script that is to be run; else the reply.
fn of_text(shared: &Shared, args: Args) -> Result<Arc<Script>, Reply> {
    count_of_keys(args).map_err(Reply::error)?;
    let engine = &shared.scripts;
    let text = args[1];
    let (script, is_known) = engine.scripts.evaluated(text).map_err(Reply::error)?;
    if !is_known {
        engine.compile(&script).map_err(Reply::Error)?;
        engine.scripts.keep(&script, text.len(), false).map_err(Reply::error)?;
    }
    Ok(script)
}

fn of_sha(shared: &Shared, args: Args) -> Result<Arc<Script>, Reply> {
    const UNKNOWN: &str = "NOSCRIPT No matching script. Please use EVAL.";
    if args[1].len() != size_of::<Sha>() {
        return Err(Reply::error(UNKNOWN));
    }
    count_of_keys(args).map_err(Reply::error)?;
    let script = shared.scripts.scripts.find_named(args[1]);
    script.ok_or_else(|| Reply::error(UNKNOWN))
}

fn count_of_keys(args: Args) -> Result<usize, &'static str> {
    let count = int(args[2]).map_err(|_| super::args::NOT_AN_INTEGER)?;
    match usize::try_from(count) {
        Err(_) => Err("ERR Number of keys can't be negative"),
        Ok(count) if count > args.len() - 3 => Err("ERR Number of keys can't be greater than number of args"),
        Ok(count) => Ok(count),
    }
}

/// Runs a script. An error means that nothing of it may be written.
fn run(mut commands: Commands<'_, '_, '_>, script: Result<Arc<Script>, Reply>, args: Args) -> Outcome {
    let script = &*match script {
        Ok(script) => script,
        Err(reply) => return Ok(reply),
    };
    let count = match count_of_keys(args) {
        Ok(count) => count,
        Err(error) => return Ok(Reply::error(error)),
    };
    let is_read_only = super::table::find(args[0]).is_some_and(|command| command.has(flag::READONLY));
    commands.is_read_only = is_read_only || script.flags & flags::NO_WRITES != 0;
    let (keys, arguments) = args[3..].split_at(count);
    let job = Job {
        script,
        keys,
        args: arguments,
        time: time_of(commands.session.pace.turn),
    };
    let shared = commands.shared.clone();
    let ended = shared.scripts.run(&mut commands, &job);
    outcome(
        commands,
        ended,
        &script.sha,
        "Script killed by user with SCRIPT KILL...",
    )
}

/// How long a script may run in a turn.
pub(super) fn time_of(turn: Turn) -> Option<Duration> {
    match turn {
        Turn::Short => Some(SHORT),
        Turn::Large | Turn::Long => Some(LARGE),
        Turn::Script => None,
    }
}

/// What becomes of a script or a function. `name`: what it is called in an error. `killed`: what is
/// answered if a client stopped it.
pub(super) fn outcome(
    mut commands: Commands<'_, '_, '_>,
    ended: Result<Ended, Bytes>,
    name: &[u8],
    killed: &str,
) -> Outcome {
    let turn = commands.session.pace.turn;
    match ended {
        Err(error) => Ok(Reply::Error(error)),
        Ok(Ended::Reply { reply, counted }) => {
            commands.count_errors(counted.then_some(&reply));
            Ok(reply)
        }
        Ok(Ended::Stopped(Stop::Host)) => Err(commands.fault.unwrap_or(Fault::Wait(Wait::Changed))),
        Ok(Ended::Stopped(Stop::Late)) => Err(Fault::Wait(Wait::Turn(match turn {
            Turn::Short => Turn::Large,
            Turn::Large | Turn::Long | Turn::Script => Turn::Script,
        }))),
        Ok(Ended::Stopped(Stop::Killed)) => Err(stopped(name, killed)),
        Ok(Ended::Stopped(Stop::Memory)) => Err(stopped(
            name,
            &format!("the script wants more than {MEMORY} bytes of memory; nothing was written."),
        )),
    }
}

fn stopped(name: &[u8], why: &str) -> Fault {
    let name = String::from_utf8_lossy(name);
    Fault::error(format!("ERR {why} script: {name}."))
}

// ---- SCRIPT ----

fn load(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let engine = &shared.scripts;
    let text = args[2];
    let (script, _) = engine.scripts.evaluated(text).map_err(Fault::error)?;
    engine.compile(&script).map_err(Fault::Error)?;
    engine.scripts.keep(&script, text.len(), true).map_err(Fault::error)?;
    Ok(Reply::bulk(script.sha))
}

fn exists(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let known = |sha: &&[u8]| Reply::Int(i64::from(shared.scripts.scripts.find_named(sha).is_some()));
    Ok(Reply::Array(args[2..].iter().map(known).collect()))
}

fn flush(_: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    match &args[2..] {
        [] => {}
        [mode] if is(mode, "sync") || is(mode, "async") => {}
        _ => return Err("ERR SCRIPT FLUSH only support SYNC|ASYNC option".into()),
    }
    shared.scripts.flush();
    Ok(Reply::Ok)
}

fn kill(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Outcome {
    match shared.scripts.kill(false, shared.config.busy_reply_threshold()) {
        Kill::Killed => Ok(Reply::Ok),
        Kill::Other => Err(BUSY_FUNCTION.into()),
        Kill::Nothing => Err(NOT_BUSY.into()),
    }
}

fn debug(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    match args[2] {
        mode if is(mode, "no") => Ok(Reply::Ok),
        mode if is(mode, "yes") || is(mode, "sync") => Err("ERR there is no debugger for scripts".into()),
        _ => Err("ERR Use SCRIPT DEBUG YES/SYNC/NO".into()),
    }
}

fn help(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    match args.len() {
        2 => Ok(help_of("script", SCRIPT)),
        _ => Err(unknown_subcommand("script", args[1])),
    }
}
