//! Import from a running server: SCAN finds the keys, DUMP tells what they hold, and PEXPIRETIME or
//! PTTL when they expire.

use bytes::Bytes;
use redis_protocol::resp2::types::BytesFrame;
use tracing::info;

use super::client::Client;
use super::sample::{self, Sampled};
use super::target::{Expiry, Target};
use super::{INTERRUPTED, Imported, Problem, how_to_go_on};
use crate::telemetry::logging::Logging;
use crate::telemetry::progress::Progress;

/// Keys that SCAN is asked for at once.
const PAGE: &[u8] = b"1000";
/// Keys whose values the source is asked for at once: it holds the answers in its memory.
const AT_ONCE: usize = 32;

/// A command that asks when a key expires, and what its answer means.
type Asked = (&'static [u8], fn(u64) -> Expiry);

const WHEN: Asked = (b"PEXPIRETIME", Expiry::At);
/// Before Redis 7.0. The time on the way comes on top.
const HOW_LONG: Asked = (b"PTTL", Expiry::In);

struct Source {
    client: Client,
    expiry: Asked,
}

/// Imports one database of a server, or all.
pub async fn import(
    client: Client,
    database: Option<u64>,
    resume: Option<(u64, u64)>,
    target: &mut Target,
    logging: &Logging,
) -> Result<Imported, Problem> {
    let source = &mut Source::new(client).await?;
    let counts = source.client.databases().await?.into_iter();
    let is_wanted = |number: u64| database.is_none_or(|only| only == number);
    let first = resume.map_or(0, |(database, _)| database);
    let mut imported = Imported {
        counts: counts.filter(|(database, _)| is_wanted(*database)).collect(),
        ..Imported::default()
    };
    imported.libraries = functions(&mut source.client, target).await?;
    let total = imported.counts.iter().map(|(_, keys)| keys).sum();
    let progress = &mut Progress::new(logging, "importing", "keys");
    let databases: Vec<u64> = imported.counts.iter().map(|(database, _)| *database).collect();
    for database in databases.iter().copied().filter(|database| *database >= first) {
        let mut cursor = resume.filter(|(of, _)| *of == database).map_or(0, |(_, cursor)| cursor);
        source.client.select(database).await?;
        loop {
            let name = source.client.name().to_owned();
            let next = tokio::select! {
                next = page(source, database, cursor, target, &mut imported) => next,
                _ = tokio::signal::ctrl_c() => Err(format!("read {name}: {INTERRUPTED}")),
            };
            let next = next.map_err(|problem| match (database, cursor) {
                (0, 0) => problem,
                place => format!("{problem}{}", how_to_go_on(place, target.refused)),
            })?;
            progress.show(imported.keys, total);
            if next == 0 {
                break;
            }
            cursor = next;
        }
    }
    imported.sample = sample(&mut source.client, &databases).await?;
    Ok(imported)
}

impl Source {
    async fn new(mut client: Client) -> Result<Source, Problem> {
        client.send(&[WHEN.0, b""]).await?;
        client.flush().await?;
        let expiry = match client.reply().await? {
            BytesFrame::Integer(_) => WHEN,
            // The command is unknown, or not allowed.
            _ => HOW_LONG,
        };
        Ok(Source { client, expiry })
    }
}

/// Imports the keys of one page of SCAN. Returns the next cursor.
async fn page(
    source: &mut Source,
    database: u64,
    cursor: u64,
    target: &mut Target,
    imported: &mut Imported,
) -> Result<u64, Problem> {
    let Source { client, expiry } = source;
    let (asks, meaning) = *expiry;
    let reply = client
        .ask(&[b"SCAN", cursor.to_string().as_bytes(), b"COUNT", PAGE])
        .await?;
    let (next, keys) = match reply {
        BytesFrame::Array(parts) => match <[BytesFrame; 2]>::try_from(parts) {
            Ok([next, BytesFrame::Array(keys)]) => (client.bytes(next)?, keys),
            _ => return Err(format!("use {}: it answers SCAN in no known form", client.name())),
        },
        other => return Err(client.unexpected(&other)),
    };
    let next = next.and_then(|next| str::from_utf8(&next).ok()?.parse().ok());
    let next = next.ok_or_else(|| format!("use {}: SCAN answers a cursor that is no number", client.name()))?;
    let keys = keys
        .into_iter()
        .map(|key| client.bytes(key).map(Option::unwrap_or_default));
    let keys: Vec<Bytes> = keys.collect::<Result<_, _>>()?;
    for keys in keys.chunks(AT_ONCE) {
        for key in keys {
            client.send(&[asks, key]).await?;
            client.send(&[b"DUMP", key]).await?;
        }
        client.flush().await?;
        for key in keys {
            let reply = client.good_reply().await?;
            let told = client.integer(reply)?;
            let reply = client.good_reply().await?;
            let Some(payload) = client.bytes(reply)? else {
                imported.left_out += 1;
                continue;
            };
            let expiry = u64::try_from(told).map_or(Expiry::Never, meaning);
            target.restore(database, key, expiry, &payload).await?;
            imported.keys += 1;
        }
    }
    target.settle().await?;
    Ok(next)
}

/// Copies the libraries of functions. Returns how many there are.
async fn functions(client: &mut Client, target: &mut Target) -> Result<u64, Problem> {
    client.send(&[b"FUNCTION", b"LIST"]).await?;
    client.send(&[b"FUNCTION", b"DUMP"]).await?;
    client.flush().await?;
    let (list, dump) = (client.reply().await?, client.reply().await?);
    match (list, dump) {
        (BytesFrame::Array(libraries), _) if libraries.is_empty() => Ok(0),
        (BytesFrame::Array(libraries), BytesFrame::BulkString(dump)) => {
            let target = target.idle().await?;
            target.ask(&[b"FUNCTION", b"RESTORE", &dump, b"REPLACE"]).await?;
            Ok(libraries.len() as u64)
        }
        // Before Redis 7.0 there were none: the command is unknown.
        (BytesFrame::Error(error), _) if error.starts_with("ERR ") => {
            info!("no functions are imported: {} answers {error}", client.name());
            Ok(0)
        }
        (BytesFrame::Error(error), _) | (_, BytesFrame::Error(error)) => Err(format!(
            "copy the libraries of functions of {}: it answers {error}; its user must be allowed \
             FUNCTION LIST and FUNCTION DUMP",
            client.name()
        )),
        (BytesFrame::Array(_), other) | (other, _) => Err(client.unexpected(&other)),
    }
}

/// Picks keys at random, and dumps them once more.
async fn sample(client: &mut Client, databases: &[u64]) -> Result<Vec<Sampled>, Problem> {
    let mut picked = Vec::new();
    for database in databases {
        client.select(*database).await?;
        for _ in 0..sample::SIZE / databases.len() {
            let reply = client.ask(&[b"RANDOMKEY"]).await?;
            let Some(key) = client.bytes(reply)? else {
                break;
            };
            let reply = client.ask(&[b"PTTL", &key]).await?;
            // What expires may have gone when it is compared.
            if client.integer(reply)? != -1 {
                continue;
            }
            let reply = client.ask(&[b"DUMP", &key]).await?;
            if let Some(payload) = client
                .bytes(reply)?
                .filter(|payload| payload.len() <= sample::MOST_BYTES)
            {
                picked.push(Sampled {
                    database: *database,
                    key,
                    payload,
                });
            }
        }
    }
    Ok(picked)
}
