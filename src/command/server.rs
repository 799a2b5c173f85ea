//! The server as a whole: <https://redis.io/docs/latest/commands/?group=server>. INFO is in
//! [`super::info`].

mod debug;
mod memory;
mod modules;
mod observe;
mod settings;

use std::sync::Arc;

use super::args::{SYNTAX, int, is};
use super::session::Session;
use super::shared::Shared;
use super::{Args, Command, Compatibility, Data, Fault, Outcome, REDIS_VERSION, Reads, Reply, Run, flag, info};
use crate::config::VERSION;
use crate::database::now_ms;

/// Flags that commands of administrators have in common.
const ADMIN: u32 = flag::ADMIN | flag::NOSCRIPT | flag::LOADING | flag::STALE;
const HELP: u32 = flag::LOADING | flag::STALE;
const SAVES: u32 = flag::ADMIN | flag::NOSCRIPT | flag::NO_ASYNC_LOADING;
const DURABLE: Compatibility =
    Compatibility::Partial("nothing is left to save: what was acknowledged is in the log, on disk as fsync says");

const ROW: Command = Command {
    group: "server",
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "bgrewriteaof",
        arity: 1,
        flags: SAVES,
        summary: "Asks for a compact append-only file; the log compacts itself.",
        compatibility: Compatibility::Partial("the log compacts itself; nothing more is done"),
        run: Run::Session(bgrewriteaof),
        ..ROW
    },
    Command {
        name: "bgsave",
        arity: -1,
        flags: SAVES,
        summary: "Saves in the background; here everything is saved already.",
        compatibility: DURABLE,
        run: Run::Session(bgsave),
        ..ROW
    },
    Command {
        name: "config",
        arity: -2,
        since: "2.0.0",
        complexity: "Depends on the subcommand.",
        summary: "Commands about settings.",
        compatibility: Compatibility::Partial("settings without effect are listed below"),
        run: Run::Container,
        subcommands: settings::CONFIG,
        ..ROW
    },
    Command {
        name: "dbsize",
        arity: 1,
        flags: flag::READONLY | flag::FAST,
        categories: &["keyspace"],
        summary: "Returns the number of keys in the database.",
        reads: Reads::Store,
        run: Run::Data(dbsize),
        ..ROW
    },
    Command {
        name: "debug",
        arity: -2,
        flags: ADMIN | flag::DEBUG,
        complexity: "Depends on the subcommand.",
        summary: "Commands for tests of the server.",
        compatibility: Compatibility::Partial(
            "OBJECT (the address is the offset of the key's record; nothing of the nodes of a list), \
             SLEEP (holds up its own connection only), SET-ACTIVE-EXPIRE and LOG; not inside MULTI",
        ),
        run: Run::By(debug::runs),
        ..ROW
    },
    Command {
        name: "flushall",
        arity: -1,
        flags: flag::WRITE | flag::BARRIER | flag::ALL_KEYS,
        categories: &["keyspace", "dangerous"],
        complexity: "O(1); space is freed in the background.",
        summary: "Removes all keys of all databases.",
        run: Run::Data(flushall),
        ..ROW
    },
    Command {
        name: "flushdb",
        arity: -1,
        flags: flag::WRITE | flag::BARRIER | flag::ALL_KEYS,
        categories: &["keyspace", "dangerous"],
        complexity: "O(1); space is freed in the background.",
        summary: "Removes all keys of the database.",
        run: Run::Data(flushdb),
        ..ROW
    },
    Command {
        name: "info",
        arity: -1,
        flags: flag::LOADING | flag::STALE,
        categories: &["dangerous"],
        summary: "Tells how the server is doing.",
        compatibility: Compatibility::Partial(
            "fields of what is not there are 0; commandstats tells the time of computing in cmdstat_ lines, and how long clients waited in cmdwait_ lines, \
             of which latencystats are; a section kafka tells of the log",
        ),
        reads: Reads::StoreIf(info::tells_of_keys),
        run: Run::Session(info::info),
        ..ROW
    },
    Command {
        name: "lastsave",
        arity: 1,
        flags: flag::LOADING | flag::STALE | flag::FAST,
        categories: &["admin", "dangerous"],
        summary: "Returns the time up to which everything is saved: now.",
        compatibility: DURABLE,
        run: Run::Session(lastsave),
        ..ROW
    },
    Command {
        name: "latency",
        arity: -2,
        since: "2.8.13",
        complexity: "Depends on the subcommand.",
        summary: "Commands about events that took long.",
        compatibility: Compatibility::Partial(
            "commands are the only events; what counts is how long the client waited, for the log too",
        ),
        run: Run::Container,
        subcommands: observe::LATENCY,
        ..ROW
    },
    Command {
        name: "lolwut",
        arity: -1,
        flags: flag::READONLY | flag::FAST,
        since: "5.0.0",
        summary: "Draws something, and tells the version.",
        run: Run::Session(lolwut),
        ..ROW
    },
    Command {
        name: "memory",
        arity: -2,
        since: "4.0.0",
        complexity: "Depends on the subcommand.",
        summary: "Commands about memory.",
        run: Run::Container,
        subcommands: memory::MEMORY,
        ..ROW
    },
    Command {
        name: "module",
        arity: -2,
        since: "4.0.0",
        complexity: "Depends on the subcommand.",
        summary: "Commands about modules.",
        compatibility: Compatibility::Partial("there are no modules"),
        run: Run::Container,
        subcommands: modules::MODULE,
        ..ROW
    },
    Command {
        name: "save",
        arity: 1,
        flags: SAVES | flag::NO_MULTI,
        summary: "Saves; here everything is saved already.",
        compatibility: DURABLE,
        run: Run::Session(save),
        ..ROW
    },
    Command {
        name: "shutdown",
        arity: -1,
        flags: ADMIN | flag::NO_MULTI | flag::ALLOW_BUSY,
        summary: "Stops the server in good order.",
        compatibility: Compatibility::Partial("SAVE, NOSAVE, NOW and FORCE make no difference; it cannot be aborted"),
        run: Run::Session(shutdown),
        ..ROW
    },
    Command {
        name: "slowlog",
        arity: -2,
        since: "2.2.12",
        complexity: "Depends on the subcommand.",
        summary: "Commands about the log of slow commands.",
        compatibility: Compatibility::Partial(
            "what counts is how long the client waited, for the log too; in a flood of slow commands not all are noted",
        ),
        run: Run::Container,
        subcommands: observe::SLOWLOG,
        ..ROW
    },
    Command {
        name: "time",
        arity: 1,
        flags: flag::LOADING | flag::STALE | flag::FAST,
        since: "2.6.0",
        summary: "Returns the server's time: seconds and microseconds.",
        run: Run::Session(time),
        ..ROW
    },
];

fn dbsize(data: &mut Data, _: Args) -> Outcome {
    let database = data.database;
    Ok(Reply::Int(data.transaction.count(database)? as i64))
}

fn check_flush_mode(args: Args) -> Result<(), Fault> {
    match args {
        [_] => Ok(()),
        [_, mode] if is(mode, "sync") || is(mode, "async") => Ok(()),
        _ => Err(SYNTAX.into()),
    }
}

fn flushdb(data: &mut Data, args: Args) -> Outcome {
    check_flush_mode(args)?;
    let database = data.database;
    flush(data, database);
    Ok(Reply::Ok)
}

fn flushall(data: &mut Data, args: Args) -> Outcome {
    check_flush_mode(args)?;
    for database in 0..data.transaction.service().database_count() {
        flush(data, database);
    }
    Ok(Reply::Ok)
}

/// Flushes a database. One without a topic is empty, and gets no topic for this.
fn flush(data: &mut Data, database: u16) {
    if !data.transaction.service().database(database).partitions().is_empty() {
        data.transaction.flush(database);
    }
}

fn time(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Ok(Reply::Array(vec![
        Reply::bulk(now.as_secs().to_string()),
        Reply::bulk(now.subsec_micros().to_string()),
    ]))
}

fn save(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(Reply::Ok)
}

fn bgsave(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    match args {
        [_] => Ok(Reply::simple("Background saving started")),
        [_, option] if is(option, "schedule") => Ok(Reply::simple("Background saving started")),
        _ => Err(SYNTAX.into()),
    }
}

fn bgrewriteaof(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(Reply::simple("Background append only file rewriting started"))
}

/// Everything that was acknowledged until now is saved. A client that waits for this number to
/// change after BGSAVE sees it change.
fn lastsave(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(Reply::Int((now_ms() / 1_000) as i64))
}

fn shutdown(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    let (mut save, mut no_save, mut others, mut abort) = (false, false, false, false);
    for option in &args[1..] {
        match () {
            () if is(option, "save") => save = true,
            () if is(option, "nosave") => no_save = true,
            () if is(option, "now") || is(option, "force") => others = true,
            () if is(option, "abort") => abort = true,
            () => return Err(SYNTAX.into()),
        }
    }
    if (save && no_save) || (abort && (save || no_save || others)) {
        return Err(SYNTAX.into());
    }
    if abort {
        return Err("ERR No shutdown in progress.".into());
    }
    tracing::info!(client = session.client.id, "a client asked for a shutdown");
    session.close = true;
    shared.shutdown.ask();
    Ok(Reply::None)
}

fn lolwut(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    if let [_, option, version, rest @ ..] = args
        && is(option, "version")
    {
        int(version)?;
        for number in rest {
            int(number)?;
        }
    }
    /// Heights of a river at high water.
    const WAVE: [&str; 4] = ["▁▂▃▅▆▇█▇▆▅▃▂▁", "▂▃▅▆▇█▇▆▅▃▂▁▁", "▃▅▆▇█▇▆▅▃▂▁▁▂", "▅▆▇█▇▆▅▃▂▁▁▂▃"];
    let shift = rand::random_range(0..WAVE.len());
    let mut art = String::new();
    for line in 0..WAVE.len() {
        art.push_str(WAVE[(line + shift) % WAVE.len()]);
        art.push('\n');
    }
    art.push_str(&format!(
        "\nHigh water. Redis ver. {REDIS_VERSION} (Highwater {VERSION})\n"
    ));
    Ok(Reply::verbatim(art))
}
