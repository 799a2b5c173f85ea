//! The server that is written to. Values go there in pipelines: so many at once, no more.

use bytes::Bytes;
use redis_protocol::resp2::types::BytesFrame;
use tracing::warn;

use super::Problem;
use super::client::{Client, is_about_key};
use super::keys::Keys;
use super::source::Expiry;

/// The most keys, and about the most bytes, whose answers are waited for at once.
const MOST_KEYS: usize = 256;
const MOST_BYTES: usize = 4 << 20;
/// The longest payload that a server takes in a request, by default (`proto-max-bulk-len`). It
/// closes the connection of who sends more.
const MOST_PAYLOAD: usize = 512 << 20;
/// So many keys that are not copied are named.
pub const NAMED: u64 = 20;

pub struct Target {
    client: Client,
    database: u64,
    /// Keys that were sent and not answered.
    waiting: Vec<Bytes>,
    bytes: usize,
    pub deleted: u64,
    /// Keys that the server does not take, or that the source cannot read.
    failed: Keys,
    /// Those that there was no room for.
    more_failed: u64,
    named: u64,
}

impl Target {
    pub fn new(client: Client) -> Target {
        Target {
            client,
            database: 0,
            waiting: Vec::new(),
            bytes: 0,
            deleted: 0,
            failed: Keys::default(),
            more_failed: 0,
            named: 0,
        }
    }

    /// Writes a value, now or with the next ones. It replaces what the key held.
    pub async fn restore(&mut self, database: u64, key: &Bytes, expiry: Expiry, payload: &[u8]) -> Result<(), Problem> {
        self.select(database).await?;
        if payload.len() > MOST_PAYLOAD {
            // What was sent for the same key is older.
            self.settle().await?;
            let why = format!("its {} bytes are more than a request may have", payload.len());
            self.refuse(key, &why);
            return Ok(());
        }
        let (ttl, is_absolute) = match expiry {
            Expiry::Never => (0, false),
            Expiry::At(at) => (at.max(1), true),
            Expiry::In(ms) => (ms.max(1), false),
        };
        let ttl = ttl.to_string();
        let mut parts: Vec<&[u8]> = vec![b"RESTORE", key, ttl.as_bytes(), payload, b"REPLACE"];
        if is_absolute {
            parts.push(b"ABSTTL");
        }
        self.client.send(&parts).await?;
        self.sent(key, payload.len()).await
    }

    /// Deletes a key, now or with the next ones.
    pub async fn delete(&mut self, database: u64, key: &Bytes) -> Result<(), Problem> {
        self.select(database).await?;
        self.client.send(&[b"DEL", key]).await?;
        self.sent(key, 0).await
    }

    async fn select(&mut self, database: u64) -> Result<(), Problem> {
        if database != self.database {
            self.settle().await?;
            self.client.select(database).await?;
            self.database = database;
        }
        Ok(())
    }

    async fn sent(&mut self, key: &Bytes, bytes: usize) -> Result<(), Problem> {
        self.waiting.push(key.clone());
        self.bytes += key.len() + bytes;
        match self.waiting.len() < MOST_KEYS && self.bytes < MOST_BYTES {
            true => Ok(()),
            false => self.settle().await,
        }
    }

    /// Waits until everything that was sent is answered.
    pub async fn settle(&mut self) -> Result<(), Problem> {
        self.client.flush().await?;
        for key in std::mem::take(&mut self.waiting) {
            let reply = self.client.reply().await?;
            match reply {
                BytesFrame::Error(error) if is_about_key(&error) => {
                    self.refuse(&key, &error);
                    continue;
                }
                // It is about the server: the next keys would fare no better.
                BytesFrame::Error(error) => {
                    return Err(format!("write to {}: it answers {error}", self.client.name()));
                }
                BytesFrame::Integer(deleted) => self.deleted += u64::from(deleted > 0),
                _ => {}
            }
            // It may have failed before.
            self.failed.remove(self.database, &key);
        }
        self.bytes = 0;
        Ok(())
    }

    fn refuse(&mut self, key: &Bytes, why: &str) {
        let why = format!("{} does not take it: {why}", self.client.name());
        self.fail(self.database, key, &why);
    }

    /// Notes a key that is not copied until it is written or deleted later, and names it.
    pub fn fail(&mut self, database: u64, key: &Bytes, why: &str) {
        if self.failed.contains(database, key) {
            return;
        }
        if !self.failed.add(database, key) {
            self.more_failed += 1;
        }
        self.named += 1;
        if self.named <= NAMED {
            let key = String::from_utf8_lossy(key);
            warn!(database, %key, "{why}");
        }
    }

    /// How many keys are not copied.
    pub fn failures(&self) -> u64 {
        self.failed.len() as u64 + self.more_failed
    }

    /// Those of them that are remembered.
    pub fn failed(&self) -> &Keys {
        &self.failed
    }

    /// The keys of one page of SCAN, and the cursor of the next page; 0 after the last one.
    pub async fn scan(&mut self, database: u64, cursor: u64) -> Result<(u64, Vec<Bytes>), Problem> {
        self.select(database).await?;
        self.idle().await?.scan(cursor).await
    }

    /// The connection, when nothing is on its way. It must stay in its database.
    pub async fn idle(&mut self) -> Result<&mut Client, Problem> {
        self.settle().await?;
        Ok(&mut self.client)
    }

    /// The payload of what a key holds.
    pub async fn dump(&mut self, database: u64, key: &[u8]) -> Result<Option<Bytes>, Problem> {
        self.select(database).await?;
        let reply = self.idle().await?.ask(&[b"DUMP", key]).await?;
        self.client.bytes(reply)
    }
}
