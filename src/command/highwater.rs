//! HIGHWATER: what Redis has no command for. How new reads are, where a key comes from, how far
//! this node has read the log, and whether nodes agree. What a user may rely on is in
//! `docs/guarantees.md`.
#![deny(clippy::wildcard_enum_match_arm)]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::args::{parse_int, text};
use super::key_specs::access::READS;
use super::{
    Args, Command, Data, Fault, KeySpec, Outcome, Reply, Run, Session, Shared, Waiting, consistency, flag, help_of,
    streams,
};
use crate::database::consistency::Lag;
use crate::database::digest::PartitionDigest;
use crate::database::{Service, WRONG_TYPE, Wait};
use crate::log::TopicPartition;
use crate::model::{Collection, Entry, Fields, Members, Named, Scores, Value};

/// Longest WAITFOR, in milliseconds.
const LONGEST_WAIT: u64 = 3_600_000;

const ROW: Command = Command {
    group: "highwater",
    since: "0.1.0",
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[Command {
    name: "highwater",
    arity: -2,
    complexity: "Depends on the subcommand.",
    summary: "Commands of Highwater's own.",
    run: Run::Container,
    subcommands: SUBCOMMANDS,
    ..ROW
}];

const SUBCOMMANDS: &[Command] = &[
    Command {
        name: "highwater|consistency",
        arity: -2,
        flags: flag::LOADING | flag::STALE | flag::FAST | flag::NOSCRIPT,
        summary: "HIGHWATER CONSISTENCY [EVENTUAL | SESSION | LINEARIZABLE | MAXLAG milliseconds | DEFAULT]: what reads of this connection may miss; without a word, tells it.",
        run: Run::Session(choose_consistency),
        ..ROW
    },
    Command {
        name: "highwater|digest",
        arity: -2,
        flags: flag::READONLY,
        // It says something of every value, whichever keys its user may read.
        categories: &["admin", "dangerous"],
        complexity: "O(N), N being the number of keys and bytes in the database.",
        summary: "HIGHWATER DIGEST [database]: per partition a position of the log, the number of keys and a digest of all of them; equal on every node at that position.",
        run: Run::Later(digest),
        ..ROW
    },
    Command {
        name: "highwater|help",
        arity: 2,
        flags: flag::LOADING | flag::STALE,
        summary: "HIGHWATER HELP: lists these subcommands.",
        run: Run::Session(help),
        ..ROW
    },
    Command {
        name: "highwater|lag",
        arity: 2,
        flags: flag::LOADING | flag::STALE,
        complexity: "O(N), N being the number of partitions.",
        summary: "HIGHWATER LAG: per partition this node's position, the log's end, and how far apart they are in offsets and time.",
        run: Run::Later(lag),
        ..ROW
    },
    Command {
        name: "highwater|token",
        arity: 2,
        summary: "HIGHWATER TOKEN: a text that stands for all that this connection wrote or may have seen, for HIGHWATER WAITFOR.",
        complexity: "O(N), N being the number of partitions.",
        run: Run::Later(token),
        ..ROW
    },
    Command {
        name: "highwater|waitfor",
        arity: -3,
        flags: flag::BLOCKING,
        complexity: "O(N), N being the number of partitions.",
        summary: "HIGHWATER WAITFOR token [milliseconds]: waits until this node shows all that the token stands for; STALE if it does not in time.",
        run: Run::Later(wait_for),
        ..ROW
    },
    Command {
        name: "highwater|where",
        arity: -3,
        flags: flag::READONLY | flag::FAST,
        keys: &[KeySpec::at(2, READS)],
        summary: "HIGHWATER WHERE key [element]: the topic, partition and offset of the record that the key's value comes from, or one field or member of it, or the entry of a stream with this id, with its time, expiry and size.",
        run: Run::Data(tell_where),
        ..ROW
    },
];

fn help(_: &mut Session, _: &Arc<Shared>, _: Args) -> Outcome {
    Ok(help_of("highwater", SUBCOMMANDS))
}

fn choose_consistency(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Outcome {
    if args.len() == 2 {
        return Ok(Reply::bulk(consistency::mode(session, shared).to_string()));
    }
    session.reads.chosen = consistency::parse(&args[2..])
        .ok_or("ERR HIGHWATER CONSISTENCY takes EVENTUAL, SESSION, LINEARIZABLE, MAXLAG with 1 to 3600000 milliseconds, or DEFAULT")?;
    Ok(Reply::Ok)
}

fn token(session: &mut Session, shared: &Arc<Shared>, _: Args) -> Result<Waiting, Fault> {
    let (own, service) = (session.outstanding.clone(), shared.service.clone());
    Ok(Box::pin(async move {
        own.none(&service).await;
        Reply::bulk(service.token())
    }))
}

fn wait_for(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Result<Waiting, Fault> {
    let patience = match args[3..] {
        [] => shared.service.write_timeout(),
        [milliseconds] => parse_int(milliseconds)
            .and_then(|n| u64::try_from(n).ok())
            .filter(|n| *n <= LONGEST_WAIT)
            .map(Duration::from_millis)
            .ok_or("ERR timeout is not an integer or out of range")?,
        _ => return Err(super::args::SYNTAX.into()),
    };
    let (token, client, shared) = (text(args[2]), session.client.clone(), shared.clone());
    Ok(Box::pin(async move {
        let reached = tokio::select! {
            reached = shared.service.reach(&token, patience) => reached,
            () = client.killed() => Err("STALE the connection was ended".into()),
            () = shared.shutdown.asked() => Err("STALE the server is stopping".into()),
        };
        reached.map_or_else(error, |()| Reply::Ok)
    }))
}

fn error(fault: Fault) -> Reply {
    match fault {
        Fault::Error(text) => Reply::Error(text),
        Fault::Wait(_) => Reply::error("ERR the command could not be computed"),
    }
}

/// Reports what is in the log.
fn tell_where(data: &mut Data, args: Args) -> Outcome {
    let (database, key) = (data.database, args[2]);
    let element = match args[3..] {
        [] => None,
        [element] => Some(element),
        _ => return Err(super::args::SYNTAX.into()),
    };
    data.await_record(key)?;
    let service = data.transaction.service();
    let now = data.now();
    let mut entry = service.read(database, key, false)?.entry;
    entry = entry.filter(|entry| entry.is_live(now));
    if let (Some(of), Some(name)) = (&entry, element) {
        if data.transaction.sees_pending()
            && let Value::Split(split) = &of.value
            && let Some(write) = service.element_under_way(database, key, split)
            && write.outcome().is_none()
        {
            return Err(Fault::Wait(Wait::Write(write)));
        }
        entry = record_of_element(service, (database, key), of, name, now)?;
    }
    let Some(Entry { meta, value }) = entry.filter(|entry| entry.is_live(now)) else {
        return Ok(Reply::Null);
    };
    let expire_at = match &value {
        Value::Element(element) => element.expire_at(),
        Value::String(_) | Value::Packed(_) | Value::Split(_) | Value::Unreadable(_) => meta.expire_at,
    };
    let home = service.log.partition(database, key);
    let mut fields = vec![
        field("database", Reply::Int(database.into())),
        field("topic", topic(service, database)),
        field("partition", Reply::Int(meta.partition.into())),
        field("offset", number(meta.offset)),
        field("timestamp", Reply::Int(meta.timestamp)),
        field("expire-at", expire_at.map_or(Reply::Null, number)),
        field("home-partition", Reply::Int(home.into())),
        field("misplaced", Reply::Bool(home != meta.partition)),
    ];
    fields.push(match value.kept() {
        Ok((_, bytes)) => field("size", number(bytes.len() as u64)),
        Err(reason) => field("unreadable", Reply::bulk(reason.as_bytes())),
    });
    Ok(Reply::Map(fields))
}

/// The record that an element of the collection comes from; the collection's own one if that has
/// all of them.
fn record_of_element(
    service: &Service,
    (database, key): (u16, &[u8]),
    of: &Entry,
    name: &[u8],
    now: u64,
) -> Result<Option<Entry>, Fault> {
    let packed = match &of.value {
        Value::Split(split) if split.of() == Collection::Stream => {
            let Some(name) = streams::entry_name(name) else {
                return Ok(None);
            };
            return Ok(service.element_record(database, key, split, &name)?);
        }
        Value::Split(split) if split.of() == Collection::List => return Err(WRONG_TYPE.into()),
        Value::Split(split) => return Ok(service.element_record(database, key, split, name)?),
        Value::Packed(packed) => packed,
        Value::String(_) | Value::Element(_) => return Err(WRONG_TYPE.into()),
        Value::Unreadable(reason) => return Err(of.unreadable(reason)),
    };
    let is_there = match packed.of() {
        Collection::Hash => Fields::find(packed, name).map(|found| found.is_some_and(|field| field.is_live(now))),
        Collection::Set => Members::find(packed, name).map(|found| found.is_some()),
        Collection::SortedSet => Scores::find(packed, name).map(|found| found.is_some()),
        Collection::List | Collection::Stream => return Err(WRONG_TYPE.into()),
    };
    let is_there = is_there.map_err(|problem| of.unreadable(problem))?;
    Ok(is_there.then(|| of.clone()))
}

fn field(name: &'static str, value: Reply) -> (Reply, Reply) {
    (Reply::bulk(name), value)
}

fn number(value: u64) -> Reply {
    Reply::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

fn topic(service: &Service, database: u16) -> Reply {
    let identity = service.log.identity(database);
    identity.map_or(Reply::Null, |identity| Reply::bulk(identity.topic))
}

fn digest(session: &mut Session, shared: &Arc<Shared>, args: Args) -> Result<Waiting, Fault> {
    let database = match args[2..] {
        [] => session.database,
        [number] => parse_int(number)
            .and_then(|n| u16::try_from(n).ok())
            .filter(|n| *n < shared.service.database_count())
            .ok_or("ERR DB index is out of range")?,
        _ => return Err(super::args::SYNTAX.into()),
    };
    let shared = shared.clone();
    Ok(Box::pin(async move {
        match shared.service.digest(database).await {
            Ok(digests) => {
                let partitions = (0..).zip(&digests).map(|(n, digest)| digest_of(n, digest)).collect();
                Reply::Map(vec![
                    field("database", Reply::Int(database.into())),
                    field("topic", topic(&shared.service, database)),
                    field("partitions", Reply::Array(partitions)),
                ])
            }
            Err(fault) => error(fault),
        }
    }))
}

fn digest_of(partition: i64, digest: &PartitionDigest) -> Reply {
    Reply::Map(vec![
        field("partition", Reply::Int(partition)),
        field("position", number(digest.position)),
        field("keys", number(digest.keys)),
        field("digest", Reply::bulk(format!("{:032x}", digest.sum))),
    ])
}

fn lag(_: &mut Session, shared: &Arc<Shared>, _: Args) -> Result<Waiting, Fault> {
    let shared = shared.clone();
    Ok(Box::pin(async move {
        let lags = shared.service.lags().await;
        Reply::Array(lags.into_iter().map(|lag| lag_of(&shared, lag)).collect())
    }))
}

fn lag_of(shared: &Shared, lag: Lag) -> Reply {
    let Lag { at, applied, end, age } = lag;
    let TopicPartition { database, partition } = at;
    // The end that the applier noted, if the log was not asked for it.
    let partitions = shared.service.database(database).partitions();
    let noted = partitions
        .get(partition as usize)
        .map(|p| p.end.load(Ordering::Relaxed));
    let end = end.or(noted).unwrap_or(0).max(applied);
    Reply::Map(vec![
        field("database", Reply::Int(database.into())),
        field("topic", topic(&shared.service, database)),
        field("partition", Reply::Int(partition.into())),
        field("position", number(applied)),
        field("end", number(end)),
        field("lag", number(end - applied)),
        field("age-ms", age.map_or(Reply::Null, |age| number(age.as_millis() as u64))),
    ])
}
