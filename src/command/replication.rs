//! Replication between servers: nodes follow the log instead. Every node is a master without
//! replicas, and says so. <https://redis.io/docs/latest/commands/?group=server>

use std::sync::Arc;

use super::args::{SYNTAX, int, is, parse_int, text};
use super::{Args, Command, Compatibility, Fault, Outcome, Reply, Run, Session, Shared, flag};

const ADMIN: u32 = flag::ADMIN | flag::NOSCRIPT;

const ROW: Command = Command {
    group: "server",
    ..Command::DEFAULT
};

const FOLLOWS: Compatibility =
    Compatibility::Partial("NO ONE is OK, as on a master; anything else is an error: nodes follow the log");

pub static COMMANDS: &[Command] = &[
    Command {
        name: "failover",
        arity: -1,
        flags: ADMIN | flag::STALE,
        since: "6.2.0",
        summary: "Would hand the role of master to a replica.",
        compatibility: Compatibility::Partial("always an error: a node has no replicas"),
        run: Run::Session(failover),
        ..ROW
    },
    Command {
        name: "psync",
        arity: -3,
        flags: ADMIN | flag::NO_ASYNC_LOADING | flag::NO_MULTI,
        since: "2.8.0",
        complexity: "",
        summary: "Would send what a replica lacks; `highwater export` writes all data into a file.",
        compatibility: Compatibility::Partial("always an error: a node has no replicas"),
        run: Run::Session(psync),
        ..ROW
    },
    Command {
        name: "replconf",
        arity: -1,
        flags: ADMIN | flag::LOADING | flag::STALE | flag::ALLOW_BUSY,
        since: "3.0.0",
        summary: "Takes what a replica says of itself before it asks for data, which is refused.",
        compatibility: Compatibility::Partial("checked, and without effect: SYNC and PSYNC are errors"),
        run: Run::Session(replconf),
        ..ROW
    },
    Command {
        name: "replicaof",
        arity: 3,
        flags: ADMIN | flag::NO_ASYNC_LOADING | flag::STALE,
        since: "5.0.0",
        summary: "Would make the server a replica of another.",
        compatibility: FOLLOWS,
        run: Run::Session(replicaof),
        ..ROW
    },
    Command {
        name: "role",
        arity: 1,
        flags: flag::NOSCRIPT | flag::LOADING | flag::STALE | flag::FAST,
        categories: &["admin", "dangerous"],
        since: "2.8.12",
        summary: "Returns the role in replication: every node is a master without replicas.",
        run: Run::Session(role),
        ..ROW
    },
    Command {
        name: "slaveof",
        arity: 3,
        flags: ADMIN | flag::NO_ASYNC_LOADING | flag::STALE,
        summary: "Would make the server a replica of another.",
        compatibility: FOLLOWS,
        run: Run::Session(replicaof),
        ..ROW
    },
    Command {
        name: "sync",
        arity: 1,
        flags: ADMIN | flag::NO_ASYNC_LOADING | flag::NO_MULTI,
        complexity: "",
        summary: "Would send all data; `highwater export` writes them into a file.",
        compatibility: Compatibility::Partial(
            "always an error: a node has no replicas. redis-cli --rdb shows it; `highwater export` writes such a file",
        ),
        run: Run::Session(sync),
        ..ROW
    },
];

fn no_replicas(command: &str) -> Fault {
    Fault::error(format!(
        "ERR {command} is not supported: there are no replicas; `highwater export redis://HOST:PORT dump.rdb` writes an RDB file"
    ))
}

fn sync(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Err(no_replicas("SYNC"))
}

fn psync(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    if args.get(3).is_some_and(|word| is(word, "failover")) {
        return Err("ERR PSYNC FAILOVER can't be sent to a master.".into());
    }
    int(args[2])?;
    Err(no_replicas("PSYNC"))
}

/// There is no replication stream, so its offset stays 0.
fn role(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(Reply::Array(vec![
        Reply::bulk("master"),
        Reply::Int(0),
        Reply::Array(Vec::new()),
    ]))
}

fn replicaof(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    if is(args[1], "no") && is(args[2], "one") {
        return Ok(Reply::Ok);
    }
    if !parse_int(args[2]).is_some_and(|port| (0..=65_535).contains(&port)) {
        return Err("ERR Invalid master port".into());
    }
    Err("ERR REPLICAOF is not supported: nodes with the same topic follow it, and `highwater import --follow-changes` copies from another server".into())
}

fn failover(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    if matches!(args, [_, only] if is(only, "abort")) {
        return Err("ERR No failover in progress.".into());
    }
    let (mut timeout, mut target, mut force) = (false, false, false);
    let mut options = &args[1..];
    while !options.is_empty() {
        options = match options {
            [word, milliseconds, rest @ ..] if is(word, "timeout") && !timeout => {
                if int(milliseconds)? <= 0 {
                    return Err("ERR FAILOVER timeout must be greater than 0".into());
                }
                timeout = true;
                rest
            }
            [word, _, port, rest @ ..] if is(word, "to") && !target => {
                int(port)?;
                target = true;
                rest
            }
            [word, rest @ ..] if is(word, "force") && !force => {
                force = true;
                rest
            }
            _ => return Err(SYNTAX.into()),
        };
    }
    Err("ERR FAILOVER requires connected replicas.".into())
}

/// What is announced has no effect, since no data is sent.
fn replconf(_: &mut Session, _: &Arc<Shared>, args: Args) -> Outcome {
    /// Longest `ip-address`, with the NUL that Redis counts.
    const LONGEST_ADDRESS: usize = 256;
    let (pairs, rest) = args[1..].as_chunks::<2>();
    if !rest.is_empty() {
        return Err(SYNTAX.into());
    }
    for &[option, value] in pairs {
        match () {
            () if is(option, "listening-port") => {
                int(value)?;
            }
            () if is(option, "ip-address") && value.len() >= LONGEST_ADDRESS => {
                return Err(Fault::error(format!(
                    "ERR REPLCONF ip-address provided by replica instance is too long: {} bytes",
                    value.len()
                )));
            }
            () if is(option, "ip-address") || is(option, "capa") => {}
            // Only replicas and their masters say these to each other. Nobody waits for a reply.
            () if is(option, "ack") || is(option, "getack") => return Ok(Reply::None),
            () if is(option, "rdb-only") => {
                if !(0..=1).contains(&int(value)?) {
                    return Err("ERR value is out of range, value must between 0 and 1".into());
                }
            }
            () if is(option, "rdb-filter-only") => {
                let mut words = value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
                if let Some(word) = words.find(|word| !is(word, "functions")) {
                    return Err(Fault::error(format!(
                        "ERR Unsupported rdb-filter-only option: {}",
                        text(word)
                    )));
                }
            }
            () => {
                return Err(Fault::error(format!(
                    "ERR Unrecognized REPLCONF option: {}",
                    text(option)
                )));
            }
        }
    }
    Ok(Reply::Ok)
}
