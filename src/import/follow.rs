//! `--follow-changes`: what changes at the source while it is imported is copied again.
//!
//! The source publishes an event for each change (`notify-keyspace-events`). A connection listens
//! to them before the first key is copied, and notes the keys. When every key was copied, those
//! that have changed meanwhile are copied again, until nothing has changed for some time. What the
//! events say is not looked at: the key is read, and then is at least as new as its event.
//!
//! Changes of the groups of a stream (XACK) have no events. When nothing has changed for some time,
//! streams are copied once more.
//!
//! If events are lost, nobody knows what has changed. Then every key is copied once more, and the
//! target loses those that the source does not have.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use redis_protocol::resp2::types::{BytesFrame, Resp2Frame};
use tokio::time::timeout;
use tracing::{info, warn};

use super::Problem;
use super::client::{Client, PATIENCE};
use super::keys::{Keys, MOST_BYTES, MOST_KEYS};
use super::server::Importing;
use crate::config::import::{Server, Trust};

/// So many times every key is copied.
const MOST_PASSES: u32 = 5;
/// Changes are collected for so long before they are copied.
const PAUSE: Duration = Duration::from_millis(100);
/// An import whose changes are copied in so short a time has caught up with the source.
const SHORT: Duration = Duration::from_secs(1);

const SETTING: &[u8] = b"notify-keyspace-events";
/// Names of events, for all databases.
const EVENTS: &[u8] = b"__keyevent@*__:*";
/// The classes of events that changes have, besides `A` for all. Modules have `d`.
const CLASSES: &str = "g$lshzet";
/// Events of keys that the target forgets by itself, or that do not exist.
const NO_CHANGES: &[&[u8]] = &[b"expired", b"hexpired", b"keymiss"];

/// Imports everything, and what changes until nothing has changed for so long.
pub async fn import(
    importing: &mut Importing<'_>,
    server: &Server,
    trust: &Trust,
    quiet: Duration,
) -> Result<(), Problem> {
    for pass in 1..=MOST_PASSES {
        let mut listener = Listener::connect(server, trust).await?;
        copy_all(importing, &mut listener, pass == 1).await?;
        let Err(lost) = catch_up(importing, &mut listener, quiet).await? else {
            check(&mut importing.source.client).await?;
            importing.functions().await?;
            importing.count().await?;
            // After a flush of the source, for one, which has no events.
            return match has_more_than_source(importing).await? {
                true => delete_others(importing).await,
                false => Ok(()),
            };
        };
        warn!("events of the source were lost: {lost}; every key is copied again");
    }
    Err(format!(
        "follow the changes of {server}: events were lost in each of {MOST_PASSES} attempts to copy every key"
    ))
}

/// Copies every key, unless events are lost before the end.
async fn copy_all(importing: &mut Importing<'_>, listener: &mut Listener, is_first: bool) -> Result<(), Problem> {
    // What was copied before is copied again.
    importing.imported.again = importing.imported.keys;
    (importing.place, importing.imported.left_out) = ((0, 0), 0);
    let mut pages = listener.during(importing.begin()).await?;
    while listener.connection.is_ok() && listener.during(importing.page(&mut pages)).await? {
        // There must be room for further ones, however long it takes to copy every key.
        if listener.changed.are_many() {
            let changed = std::mem::take(&mut listener.changed);
            info!("{} keys have changed meanwhile: they are copied first", changed.len());
            listener.during(copy_again(importing, changed.iter().cloned())).await?;
        }
    }
    match is_first || listener.connection.is_err() {
        true => Ok(()),
        false => listener.during(delete_others(importing)).await,
    }
}

/// Whether a database of the target has more keys than that of the source.
async fn has_more_than_source(importing: &mut Importing<'_>) -> Result<bool, Problem> {
    let copied = importing.target.idle().await?.databases().await?;
    let wanted: BTreeMap<u64, u64> = importing.imported.counts.iter().copied().collect();
    let has_more = |(database, keys): &(u64, u64)| wanted.get(database).is_none_or(|wanted| wanted < keys);
    Ok(copied
        .iter()
        .any(|count| importing.is_wanted(count.0) && has_more(count)))
}

/// Deletes from the target what the source does not have.
async fn delete_others(importing: &mut Importing<'_>) -> Result<(), Problem> {
    let databases = importing.target.idle().await?.databases().await?;
    for (database, _) in databases {
        if !importing.is_wanted(database) {
            continue;
        }
        let source = &mut importing.source.client;
        source.select(database).await?;
        let mut cursor = 0;
        loop {
            let (next, keys) = importing.target.scan(database, cursor).await?;
            for key in &keys {
                source.send(&[b"EXISTS", key]).await?;
            }
            source.flush().await?;
            for key in &keys {
                let reply = source.good_reply().await?;
                if source.integer(reply)? == 0 {
                    importing.target.delete(database, key).await?;
                }
            }
            if next == 0 {
                break;
            }
            cursor = next;
        }
    }
    importing.target.settle().await
}

/// Copies what has changed until nothing has changed for so long. The inner error says why events
/// were lost.
async fn catch_up(
    importing: &mut Importing<'_>,
    listener: &mut Listener,
    quiet: Duration,
) -> Result<Result<(), Problem>, Problem> {
    let mut is_told = false;
    loop {
        let started = Instant::now();
        if let Err(lost) = &listener.connection {
            return Ok(Err(lost.clone()));
        } else if !listener.changed.is_empty() {
            let changed = std::mem::take(&mut listener.changed);
            listener.during(copy_again(importing, changed.iter().cloned())).await?;
        } else if is_told && listener.last.elapsed() >= quiet {
            let doubtful = importing.doubtful();
            listener.during(copy_again(importing, doubtful)).await?;
            listener.hear_all().await;
            if listener.connection.is_ok() && listener.changed.is_empty() {
                return match dropped(&mut importing.source.client).await? {
                    dropped if dropped == listener.dropped => Ok(Ok(())),
                    _ => Ok(Err("the server has dropped events".into())),
                };
            }
        }
        if !is_told && started.elapsed() < SHORT {
            is_told = true;
            // Consumers of streams that nobody writes to are to be stopped too.
            listener.last = Instant::now();
            info!(
                "caught up with the source: the import ends when nothing has changed there for {} s; stop what writes \
                 to it, and the consumers of its streams",
                quiet.as_secs()
            );
        }
        // It never returns, so the time is always up.
        let _ = timeout(PAUSE, listener.listen()).await;
    }
}

async fn copy_again(
    importing: &mut Importing<'_>,
    changed: impl IntoIterator<Item = (u64, Bytes)>,
) -> Result<(), Problem> {
    let before = importing.imported.keys;
    let mut by_database: BTreeMap<u64, Vec<Bytes>> = BTreeMap::new();
    for (database, key) in changed {
        by_database.entry(database).or_default().push(key);
    }
    for (database, keys) in by_database {
        importing.source.client.select(database).await?;
        for key in importing.copy(database, &keys).await? {
            importing.target.delete(database, &key).await?;
        }
    }
    importing.imported.again += importing.imported.keys - before;
    importing.target.settle().await
}

/// Checks that the server publishes an event for every change.
async fn check(client: &mut Client) -> Result<(), Problem> {
    const WHY: &str = "--follow-changes has to know which events the server publishes";
    let reply = client.ask(&[b"CONFIG", b"GET", SETTING]).await;
    let flags = match reply.map_err(|problem| format!("{problem}; {WHY}"))? {
        BytesFrame::Array(parts) => parts.get(1).and_then(Resp2Frame::as_str).unwrap_or_default().to_owned(),
        other => return Err(client.unexpected(&other)),
    };
    let has_all = flags.contains('A') || CLASSES.chars().all(|class| flags.contains(class));
    match flags.contains('E') && has_all {
        true => Ok(()),
        false => Err(format!(
            "follow the changes of {}: its notify-keyspace-events is {flags:?}, so it does not publish every change; say \
             CONFIG SET notify-keyspace-events AE there, and set it back after the import",
            client.name()
        )),
    }
}

/// How many events the server has dropped since its start, if it is a Highwater.
async fn dropped(client: &mut Client) -> Result<u64, Problem> {
    let reply = client.ask(&[b"INFO", b"everything"]).await?;
    let text = client.bytes(reply)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines();
    let number = lines.find_map(|line| line.strip_prefix("keyspace_events_dropped:")?.parse().ok());
    Ok(number.unwrap_or(0))
}

/// Notes which keys change.
struct Listener {
    /// The error says why events were lost.
    connection: Result<Client, Problem>,
    /// The only database that matters.
    only: Option<u64>,
    /// Events that the server had dropped before.
    dropped: u64,
    /// Since they were taken last.
    changed: Keys,
    /// When a key changed last, or when the time began in which none may.
    last: Instant,
    /// The numbers of the last PING, and of the last answer.
    asked: u64,
    answered: u64,
}

impl Listener {
    async fn connect(server: &Server, trust: &Trust) -> Result<Listener, Problem> {
        let mut client = Client::connect(server, trust).await?;
        check(&mut client).await?;
        let dropped = dropped(&mut client).await?;
        client.ask(&[b"PSUBSCRIBE", EVENTS]).await?;
        Ok(Listener {
            connection: Ok(client),
            only: server.database,
            dropped,
            changed: Keys::default(),
            last: Instant::now(),
            asked: 0,
            answered: 0,
        })
    }

    /// Notes changes, until it is given up.
    async fn listen(&mut self) -> Infallible {
        while self.connection.is_ok() {
            self.hear().await;
        }
        std::future::pending().await
    }

    /// Notes changes while something else is done.
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            done = work => done,
            never = self.listen() => match never {},
        }
    }

    async fn hear(&mut self) {
        let Ok(client) = &mut self.connection else {
            return;
        };
        let noted = match client.push().await {
            Ok(push) => self.note(&push),
            Err(problem) => Err(problem),
        };
        if let Err(problem) = noted {
            (self.connection, self.changed) = (Err(problem), Keys::default());
        }
    }

    /// Waits until the events of what has changed until now are noted: the answer of PING comes
    /// after them if the source is a Redis. Highwater publishes an event somewhat after the change
    /// is visible; nothing may have changed for a second, which is longer.
    async fn hear_all(&mut self) {
        self.asked += 1;
        let Ok(client) = &mut self.connection else {
            return;
        };
        let number = self.asked.to_string();
        let ping: [&[u8]; 2] = [b"PING", number.as_bytes()];
        let asked = match client.send(&ping).await {
            Ok(()) => client.flush().await,
            failed => failed,
        };
        if let Err(problem) = asked {
            self.connection = Err(problem);
        }
        let answered = async {
            while self.connection.is_ok() && self.answered < self.asked {
                self.hear().await;
            }
        };
        if timeout(PATIENCE, answered).await.is_err() {
            self.connection = Err(format!("no answer within {} s", PATIENCE.as_secs()));
        }
    }

    fn note(&mut self, push: &BytesFrame) -> Result<(), Problem> {
        let BytesFrame::Array(parts) = push else {
            return Ok(());
        };
        let parts: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes().unwrap_or_default()).collect();
        match parts[..] {
            [b"pong", number] => {
                let number = str::from_utf8(number).ok().and_then(|number| number.parse().ok());
                self.answered = number.unwrap_or(self.answered);
                Ok(())
            }
            [b"pmessage", _, channel, key] => match database_of(channel) {
                Some(database) if self.only.is_none_or(|only| only == database) => {
                    self.last = Instant::now();
                    match self.changed.add(database, key) {
                        true => Ok(()),
                        false => Err(format!(
                            "more than {MOST_KEYS} keys, or {MOST_BYTES} bytes of keys, have changed"
                        )),
                    }
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// The database of an event that tells of a change.
fn database_of(channel: &[u8]) -> Option<u64> {
    let rest = channel.strip_prefix(b"__keyevent@")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (database, event) = (&rest[..digits], rest[digits..].strip_prefix(b"__:")?);
    let database = str::from_utf8(database).ok()?.parse().ok()?;
    (!NO_CHANGES.contains(&event)).then_some(database)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_tell_of_changes() {
        assert_eq!(database_of(b"__keyevent@12__:set"), Some(12));
        assert_eq!(database_of(b"__keyevent@0__:evicted"), Some(0));
        for other in [
            &b"__keyevent@0__:expired"[..],
            b"__keyevent@0__:keymiss",
            b"__keyspace@0__:set",
            b"__keyevent@__:set",
            b"__keyevent@0:set",
        ] {
            assert_eq!(database_of(other), None, "{}", other.escape_ascii());
        }
    }
}
