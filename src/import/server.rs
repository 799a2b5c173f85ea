//! Import from a running server.

use std::collections::VecDeque;
use std::slice;

use bytes::Bytes;

use super::client::Client;
use super::keys::{Keys, MOST_KEYS};
use super::sample::{self, Sampled};
use super::source::{AT_ONCE, Answer, Dumped, Expiry, Source};
use super::target::Target;
use super::{INTERRUPTED, Imported, Problem, follow, how_to_go_on, stopped};
use crate::config::import::{ImportOptions, Server};
use crate::telemetry::logging::Logging;
use crate::telemetry::progress::Progress;

/// How the payloads of streams begin: their forms of Redis 5, 7.0 and 7.2.
const STREAMS: &[u8] = &[15, 19, 21];

/// What is imported from a server, and how far that is.
pub struct Importing<'i> {
    pub source: Source,
    /// The only database that is imported.
    only: Option<u64>,
    pub target: &'i mut Target,
    pub imported: Imported,
    /// A database and a cursor of SCAN there: what comes before was written.
    pub place: (u64, u64),
    /// The streams that were copied, if changes are followed.
    streams: Option<Keys>,
    logging: &'i Logging,
}

/// The way through every key, page by page.
pub struct Pages<'i> {
    databases: VecDeque<u64>,
    total: u64,
    progress: Progress<'i>,
}

/// Imports one database of a server, or all.
pub async fn import(
    server: &Server,
    options: &ImportOptions,
    target: &mut Target,
    logging: &Logging,
) -> Result<Imported, Problem> {
    let client = Client::connect(server, &options.trust).await?;
    let name = client.name().to_owned();
    let mut importing = Importing {
        source: Source::new(client).await?,
        only: server.database,
        target,
        imported: Imported::default(),
        place: options.resume.unwrap_or_default(),
        streams: options.quiet().map(|_| Keys::default()),
        logging,
    };
    let done = tokio::select! {
        done = importing.all(server, options) => done,
        () = stopped() => Err(format!("read {name}: {INTERRUPTED}")),
    };
    done.map_err(|problem| match (options.quiet(), importing.place) {
        (Some(_), _) => format!("{problem}; begin again with an empty target, since changes may have been missed"),
        (None, (0, 0)) => problem,
        (None, place) => format!("{problem}{}", how_to_go_on(place, importing.target.failures())),
    })?;
    Ok(importing.imported)
}

impl<'i> Importing<'i> {
    async fn all(&mut self, server: &Server, options: &ImportOptions) -> Result<(), Problem> {
        if let Some(quiet) = options.quiet() {
            follow::import(self, server, &options.trust, quiet).await?;
        } else {
            let mut pages = self.begin().await?;
            while self.page(&mut pages).await? {}
        }
        self.imported.sample = self.sample().await?;
        Ok(())
    }

    /// Imports the libraries of functions. What it returns leads to every key from the place on.
    pub async fn begin(&mut self) -> Result<Pages<'i>, Problem> {
        self.count().await?;
        self.functions().await?;
        let counts = self.imported.counts.iter();
        let databases = counts.clone().map(|(database, _)| *database);
        Ok(Pages {
            databases: databases.filter(|database| *database >= self.place.0).collect(),
            total: counts.map(|(_, keys)| keys).sum(),
            progress: Progress::new(self.logging, "importing", "keys"),
        })
    }

    /// Copies one page of keys. Returns whether there was one.
    pub async fn page(&mut self, pages: &mut Pages<'_>) -> Result<bool, Problem> {
        let Some(&database) = pages.databases.front() else {
            return Ok(false);
        };
        if database != self.place.0 {
            self.place = (database, 0);
        }
        self.source.client.select(database).await?;
        let (next, keys) = self.source.client.scan(self.place.1).await?;
        let gone = self.copy(database, &keys).await?;
        self.imported.left_out += gone.len() as u64;
        pages.progress.show(self.imported.keys, pages.total);
        match next {
            0 => drop(pages.databases.pop_front()),
            next => self.place = (database, next),
        }
        Ok(true)
    }

    /// Copies what these keys hold. The source must be in their database. Returns those that do not
    /// exist any more.
    pub async fn copy(&mut self, database: u64, keys: &[Bytes]) -> Result<Vec<Bytes>, Problem> {
        let mut gone = Vec::new();
        for keys in keys.chunks(AT_ONCE) {
            self.source.ask(keys).await?;
            for key in keys {
                let answer = self.source.answer(key).await?;
                self.note_stream(database, key, &answer)?;
                match answer {
                    Answer::Gone => {
                        gone.push(key.clone());
                        continue;
                    }
                    Answer::Unreadable(why) => {
                        // What was sent for the same key is older.
                        self.target.settle().await?;
                        let why = format!("{} cannot read it: {why}", self.source.client.name());
                        self.target.fail(database, key, &why);
                    }
                    Answer::Holds(Dumped { expiry, payload }) => {
                        self.target.restore(database, key, expiry, &payload).await?;
                    }
                }
                self.imported.keys += 1;
            }
        }
        self.target.settle().await?;
        Ok(gone)
    }

    fn note_stream(&mut self, database: u64, key: &Bytes, answer: &Answer) -> Result<(), Problem> {
        let Some(streams) = &mut self.streams else {
            return Ok(());
        };
        let is_stream = match answer {
            Answer::Holds(dumped) => dumped.payload.first().is_some_and(|form| STREAMS.contains(form)),
            Answer::Gone | Answer::Unreadable(_) => false,
        };
        if !is_stream {
            streams.remove(database, key);
        } else if !streams.add(database, key) {
            return Err(format!("follow the changes of more than {MOST_KEYS} streams"));
        }
        Ok(())
    }

    /// Keys that may hold something else at the target, though no event has said so: streams, as
    /// changes of their groups have no events, and what could not be copied.
    pub fn doubtful(&self) -> Vec<(u64, Bytes)> {
        let streams = self.streams.iter().flat_map(Keys::iter);
        streams.chain(self.target.failed().iter()).cloned().collect()
    }

    /// Notes how many keys the source has.
    pub async fn count(&mut self) -> Result<(), Problem> {
        let counts = self.source.client.databases().await?.into_iter();
        self.imported.counts = counts.filter(|(database, _)| self.is_wanted(*database)).collect();
        Ok(())
    }

    /// Copies the libraries of functions.
    pub async fn functions(&mut self) -> Result<(), Problem> {
        if let Some((count, dump)) = self.source.libraries().await? {
            let target = self.target.idle().await?;
            target.ask(&[b"FUNCTION", b"RESTORE", &dump, b"REPLACE"]).await?;
            self.imported.libraries = count;
        }
        Ok(())
    }

    pub fn is_wanted(&self, database: u64) -> bool {
        self.only.is_none_or(|only| only == database)
    }

    /// Picks keys at random, and dumps them once more.
    async fn sample(&mut self) -> Result<Vec<Sampled>, Problem> {
        let (source, counts) = (&mut self.source, &self.imported.counts);
        let mut picked = Vec::new();
        for &(database, _) in counts {
            source.client.select(database).await?;
            for _ in 0..sample::SIZE / counts.len() {
                let reply = source.client.ask(&[b"RANDOMKEY"]).await?;
                let Some(key) = source.client.bytes(reply)? else {
                    break;
                };
                source.ask(slice::from_ref(&key)).await?;
                // What expires may have gone when it is compared.
                if let Answer::Holds(Dumped {
                    expiry: Expiry::Never,
                    payload,
                }) = source.answer(&key).await?
                    && payload.len() <= sample::MOST_BYTES
                {
                    picked.push(Sampled { database, key, payload });
                }
            }
        }
        Ok(picked)
    }
}
