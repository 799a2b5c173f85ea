//! The server itself: <https://redis.io/docs/latest/commands/?group=server>.

use super::args::{SYNTAX, int, is, text, wrong_arity};
use super::{Args, Command, Context, Fault, Outcome, Reply, Run, Session, Shared, Waiting, flag};
use std::sync::Arc;
use std::time::Duration;

pub static COMMANDS: &[Command] = &[
    Command {
        name: "config",
        arity: -2,
        group: "server",
        since: "2.0.0",
        summary: "Settings.",
        run: Run::Container,
        subcommands: CONFIG,
        compatibility: super::Compatibility::Full,
        ..Command::DEFAULT
    },
    Command {
        name: "dbsize",
        arity: 1,
        flags: flag::READONLY | flag::FAST | flag::WHOLE_STORE,
        categories: &["keyspace"],
        group: "server",
        summary: "Returns the number of keys in the database.",
        run: Run::Now(dbsize),
        ..Command::DEFAULT
    },
    Command {
        name: "debug",
        arity: -2,
        flags: flag::ADMIN | flag::NOSCRIPT | flag::LOADING | flag::STALE,
        group: "server",
        summary: "For tests.",
        run: Run::Later(debug),
        ..Command::DEFAULT
    },
    Command {
        name: "flushall",
        arity: -1,
        flags: flag::WRITE | flag::BARRIER,
        categories: &["keyspace", "dangerous"],
        group: "server",
        summary: "Removes all keys of all databases.",
        run: Run::Now(flushall),
        ..Command::DEFAULT
    },
    Command {
        name: "flushdb",
        arity: -1,
        flags: flag::WRITE | flag::BARRIER,
        categories: &["keyspace", "dangerous"],
        group: "server",
        summary: "Removes all keys of the database.",
        run: Run::Now(flushdb),
        ..Command::DEFAULT
    },
    Command {
        name: "info",
        arity: -1,
        flags: flag::LOADING | flag::STALE,
        categories: &["dangerous"],
        group: "server",
        summary: "Tells about the server.",
        run: Run::Now(super::info::info),
        ..Command::DEFAULT
    },
];

const CONFIG: &[Command] = &[
    Command {
        name: "config|get",
        arity: -3,
        flags: flag::ADMIN | flag::NOSCRIPT | flag::LOADING | flag::STALE,
        group: "server",
        since: "2.0.0",
        summary: "Returns settings whose names match.",
        run: Run::Now(config_get),
        ..Command::DEFAULT
    },
    Command {
        name: "config|set",
        arity: -4,
        flags: flag::ADMIN | flag::NOSCRIPT | flag::LOADING | flag::STALE,
        group: "server",
        since: "2.0.0",
        summary: "Changes settings.",
        run: Run::Now(config_set),
        ..Command::DEFAULT
    },
];

fn config_get(context: &mut Context, args: Args) -> Outcome {
    let found = context
        .shared
        .config
        .get(|name| args[2..].iter().any(|p| super::pattern::matches_any_case(p, name.as_bytes())));
    Ok(Reply::Map(
        found.into_iter().map(|(name, value)| (Reply::bulk(name), Reply::bulk(value))).collect(),
    ))
}

fn config_set(context: &mut Context, args: Args) -> Outcome {
    let (pairs, rest) = args[2..].as_chunks::<2>();
    if !rest.is_empty() {
        return Err(wrong_arity("config|set"));
    }
    let pairs: Vec<(&[u8], &[u8])> = pairs.iter().map(|[name, value]| (*name, *value)).collect();
    context.shared.config.set(&pairs).map_err(|e| Fault::error(e.to_string()))?;
    Ok(Reply::Ok)
}

fn dbsize(context: &mut Context, _: Args) -> Outcome {
    let database = context.database();
    Ok(Reply::Int(context.transaction.count(database)? as i64))
}

fn debug(_: &mut Session, _: &Arc<Shared>, args: Args) -> Result<Waiting, Fault> {
    if args.len() == 3 && is(args[1], "sleep") {
        let seconds: f64 = text(args[2]).parse().unwrap_or(0.0);
        return Ok(Box::pin(async move {
            tokio::time::sleep(Duration::from_secs_f64(seconds.clamp(0.0, 1e6))).await;
            Reply::Ok
        }));
    }
    let _ = int;
    Err("ERR unknown DEBUG subcommand".into())
}

fn check_mode(args: Args) -> Result<(), Fault> {
    match &args[1..] {
        [] => Ok(()),
        [mode] if is(mode, "async") || is(mode, "sync") => Ok(()),
        _ => Err(SYNTAX.into()),
    }
}

fn flushdb(context: &mut Context, args: Args) -> Outcome {
    check_mode(args)?;
    let database = context.database();
    if !context.transaction.service().database(database).partitions().is_empty() {
        context.transaction.flush(database);
    }
    Ok(Reply::Ok)
}

fn flushall(context: &mut Context, args: Args) -> Outcome {
    check_mode(args)?;
    for database in 0..context.transaction.service().database_count() {
        if !context.transaction.service().database(database).partitions().is_empty() {
            context.transaction.flush(database);
        }
    }
    Ok(Reply::Ok)
}
