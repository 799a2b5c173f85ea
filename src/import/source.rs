//! A running server that is read: SCAN finds the keys, DUMP tells what they hold, and PEXPIRETIME
//! or PTTL when they expire.

use bytes::Bytes;
use redis_protocol::resp2::types::BytesFrame;
use tracing::info;

use super::Problem;
use super::client::{Client, is_about_key};

/// Keys whose values the source is asked for at once: it holds the answers in its memory.
pub const AT_ONCE: usize = 32;

/// When a key expires.
#[derive(Clone, Copy)]
pub enum Expiry {
    /// Never.
    Never,
    /// Milliseconds since the epoch.
    At(u64),
    /// Milliseconds from now on.
    In(u64),
}

/// A command that asks when a key expires, and what its answer means.
type Asked = (&'static [u8], fn(u64) -> Expiry);

const WHEN: Asked = (b"PEXPIRETIME", Expiry::At);
/// Before Redis 7.0. The time on the way comes on top.
const HOW_LONG: Asked = (b"PTTL", Expiry::In);

/// A server, and what it is asked.
pub struct Source {
    /// The connection.
    pub client: Client,
    expiry: Asked,
}

/// What a source answers about a key.
pub enum Answer {
    /// There is no such key.
    Gone,
    /// The source cannot read it, and says why.
    Unreadable(String),
    Holds(Dumped),
}

/// What a key held at one moment.
pub struct Dumped {
    /// When it expires.
    pub expiry: Expiry,
    /// What DUMP answered.
    pub payload: Bytes,
}

impl Source {
    /// Finds out which commands the server has.
    pub async fn new(mut client: Client) -> Result<Source, Problem> {
        client.send(&[WHEN.0, b""]).await?;
        client.flush().await?;
        let expiry = match client.reply().await? {
            BytesFrame::Integer(_) => WHEN,
            // The command is unknown, or not allowed.
            _ => HOW_LONG,
        };
        Ok(Source { client, expiry })
    }

    /// Asks what these keys hold. [`Source::answer`] has the answers, one for each key.
    pub async fn ask(&mut self, keys: &[Bytes]) -> Result<(), Problem> {
        for key in keys {
            // Between the two answers the key must not change: a value would get the expiry of
            // another one.
            let requests: [&[&[u8]]; 4] = [&[b"MULTI"], &[self.expiry.0, key], &[b"DUMP", key], &[b"EXEC"]];
            for request in requests {
                self.client.send(request).await?;
            }
        }
        self.client.flush().await
    }

    /// What the next of these keys holds.
    pub async fn answer(&mut self, key: &[u8]) -> Result<Answer, Problem> {
        let of_key = |problem| format!("{problem} (about the key {:?})", String::from_utf8_lossy(key));
        // Those of MULTI and of what it queues.
        for _ in 0..3 {
            self.client.good_reply().await.map_err(of_key)?;
        }
        let [expiry, payload] = match self.client.good_reply().await? {
            BytesFrame::Array(answers) => <[BytesFrame; 2]>::try_from(answers)
                .map_err(|_| format!("use {}: it answers EXEC in no known form", self.client.name()))?,
            other => return Err(self.client.unexpected(&other)),
        };
        for answer in [&expiry, &payload] {
            if let BytesFrame::Error(error) = answer
                && is_about_key(error)
            {
                return Ok(Answer::Unreadable(error.to_string()));
            }
        }
        let expiry = self.client.good(expiry).map_err(of_key)?;
        let payload = self.client.good(payload).map_err(of_key)?;
        let (expiry, payload) = (self.client.integer(expiry)?, self.client.bytes(payload)?);
        Ok(payload.map_or(Answer::Gone, |payload| {
            Answer::Holds(Dumped {
                expiry: u64::try_from(expiry).map_or(Expiry::Never, self.expiry.1),
                payload,
            })
        }))
    }

    /// How many libraries of functions there are, and what FUNCTION DUMP answers.
    pub async fn libraries(&mut self) -> Result<Option<(u64, Bytes)>, Problem> {
        let client = &mut self.client;
        client.send(&[b"FUNCTION", b"LIST"]).await?;
        client.send(&[b"FUNCTION", b"DUMP"]).await?;
        client.flush().await?;
        let (list, dump) = (client.reply().await?, client.reply().await?);
        match (list, dump) {
            (BytesFrame::Array(libraries), _) if libraries.is_empty() => Ok(None),
            (BytesFrame::Array(libraries), BytesFrame::BulkString(dump)) => Ok(Some((libraries.len() as u64, dump))),
            // Before Redis 7.0 there were none: the command is unknown.
            (BytesFrame::Error(error), _) if error.starts_with("ERR ") => {
                info!("no functions are copied: {} answers {error}", client.name());
                Ok(None)
            }
            (BytesFrame::Error(error), _) | (_, BytesFrame::Error(error)) => Err(format!(
                "copy the libraries of functions of {}: it answers {error}; its user must be allowed \
                 FUNCTION LIST and FUNCTION DUMP",
                client.name()
            )),
            (BytesFrame::Array(_), other) | (other, _) => Err(client.unexpected(&other)),
        }
    }
}
