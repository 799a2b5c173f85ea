//! Import from a running server: SCAN finds the keys, DUMP and PTTL tell what they hold.

use bytes::Bytes;
use redis_protocol::resp2::types::BytesFrame;
use tracing::info;

use super::client::Client;
use super::sample::{self, Sampled};
use super::target::{Expiry, Target};
use super::{INTERRUPTED, Imported, Problem, how_to_go_on};
use crate::config::import::Server;
use crate::telemetry::logging::Logging;
use crate::telemetry::progress::Progress;

/// Keys that SCAN is asked for at once.
const PAGE: &[u8] = b"1000";
/// Keys whose values the source is asked for at once: it holds the answers in its memory.
const AT_ONCE: usize = 32;

pub async fn import(
    source: &Server,
    resume: Option<(u64, u64)>,
    target: &mut Target,
    logging: &Logging,
) -> Result<Imported, Problem> {
    let mut client = Client::connect(source).await?;
    let counts = client.databases().await?.into_iter();
    let is_wanted = |database: u64| source.database.is_none_or(|only| only == database);
    let first = resume.map_or(0, |(database, _)| database);
    let mut imported = Imported {
        counts: counts.filter(|(database, _)| is_wanted(*database)).collect(),
        ..Imported::default()
    };
    imported.libraries = functions(&mut client, target).await?;
    let total = imported.counts.iter().map(|(_, keys)| keys).sum();
    let progress = &mut Progress::new(logging, "importing", "keys");
    let databases: Vec<u64> = imported.counts.iter().map(|(database, _)| *database).collect();
    for database in databases.iter().copied().filter(|database| *database >= first) {
        let mut cursor = resume.filter(|(of, _)| *of == database).map_or(0, |(_, cursor)| cursor);
        client.select(database).await?;
        loop {
            let next = tokio::select! {
                next = page(&mut client, database, cursor, target, &mut imported) => next,
                _ = tokio::signal::ctrl_c() => Err(format!("read {source}: {INTERRUPTED}")),
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
    imported.sample = sample(&mut client, &databases).await?;
    Ok(imported)
}

/// Imports the keys of one page of SCAN. Returns the next cursor.
async fn page(
    client: &mut Client,
    database: u64,
    cursor: u64,
    target: &mut Target,
    imported: &mut Imported,
) -> Result<u64, Problem> {
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
            client.send(&[b"PTTL", key]).await?;
            client.send(&[b"DUMP", key]).await?;
        }
        client.flush().await?;
        for key in keys {
            let reply = client.good_reply().await?;
            let ttl = client.integer(reply)?;
            let reply = client.good_reply().await?;
            let Some(payload) = client.bytes(reply)? else {
                imported.left_out += 1;
                continue;
            };
            let expiry = u64::try_from(ttl).map_or(Expiry::Never, Expiry::In);
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
