//! Import from a running server.

use bytes::Bytes;

use super::client::Client;
use super::sample::{self, Sampled};
use super::source::{AT_ONCE, Dumped, Source};
use super::target::Target;
use super::{INTERRUPTED, Imported, Problem, follow, how_to_go_on};
use crate::config::import::{ImportOptions, Server};
use crate::telemetry::logging::Logging;
use crate::telemetry::progress::Progress;

/// What is imported from a server, and how far that is.
pub struct Importing<'i> {
    pub source: Source,
    /// The only database that is imported.
    only: Option<u64>,
    pub target: &'i mut Target,
    pub imported: Imported,
    /// A database and a cursor of SCAN there: what comes before was written.
    pub place: (u64, u64),
    logging: &'i Logging,
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
        logging,
    };
    let done = tokio::select! {
        done = importing.all(server, options) => done,
        _ = tokio::signal::ctrl_c() => Err(format!("read {name}: {INTERRUPTED}")),
    };
    done.map_err(|problem| match (options.quiet(), importing.place) {
        (Some(_), _) => format!("{problem}; begin again with an empty target, since changes may have been missed"),
        (None, (0, 0)) => problem,
        (None, place) => format!("{problem}{}", how_to_go_on(place, importing.target.refused)),
    })?;
    Ok(importing.imported)
}

impl Importing<'_> {
    async fn all(&mut self, server: &Server, options: &ImportOptions) -> Result<(), Problem> {
        match options.quiet() {
            None => self.pass().await?,
            Some(quiet) => follow::import(self, server, &options.trust, quiet).await?,
        }
        self.imported.sample = self.sample().await?;
        Ok(())
    }

    /// Imports the libraries of functions, and every key from the place on.
    pub async fn pass(&mut self) -> Result<(), Problem> {
        self.count().await?;
        self.functions().await?;
        let total = self.imported.counts.iter().map(|(_, keys)| keys).sum();
        let progress = &mut Progress::new(self.logging, "importing", "keys");
        let databases: Vec<u64> = self.imported.counts.iter().map(|(database, _)| *database).collect();
        let first = self.place.0;
        for database in databases.into_iter().filter(|database| *database >= first) {
            if database != self.place.0 {
                self.place = (database, 0);
            }
            self.source.client.select(database).await?;
            loop {
                let (next, keys) = self.source.client.scan(self.place.1).await?;
                let gone = self.copy(database, &keys).await?;
                self.imported.left_out += gone.len() as u64;
                progress.show(self.imported.keys, total);
                if next == 0 {
                    break;
                }
                self.place = (database, next);
            }
        }
        Ok(())
    }

    /// Copies what these keys hold. The source must be in their database. Returns those that do not
    /// exist any more.
    pub async fn copy(&mut self, database: u64, keys: &[Bytes]) -> Result<Vec<Bytes>, Problem> {
        let mut gone = Vec::new();
        for keys in keys.chunks(AT_ONCE) {
            self.source.ask(keys).await?;
            for key in keys {
                let Some(Dumped { expiry, payload }) = self.source.answer().await? else {
                    gone.push(key.clone());
                    continue;
                };
                self.target.restore(database, key, expiry, &payload).await?;
                self.imported.keys += 1;
            }
        }
        self.target.settle().await?;
        Ok(gone)
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
        let (client, counts) = (&mut self.source.client, &self.imported.counts);
        let mut picked = Vec::new();
        for (database, _) in counts {
            client.select(*database).await?;
            for _ in 0..sample::SIZE / counts.len() {
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
}
