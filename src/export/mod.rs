//! `highwater export`: what a running server holds goes into an RDB file.
//!
//! SCAN finds the keys, and values go into the file as DUMP gives them. A file must not name a key
//! twice: redis-server does not load it. SCAN of Redis may do that, so the keys that the file has
//! are remembered.

use std::collections::HashSet;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::Path;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use tracing::warn;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::config::Config;
use crate::config::export::{ExportOptions, STANDARD_OUTPUT};
use crate::files::Output;
use crate::import::client::Client;
use crate::import::source::{AT_ONCE, Answer, Dumped, Expiry, Source};
use crate::import::target::NAMED;
use crate::import::{INTERRUPTED, Problem, stopped};
use crate::rdb::{self, Content, Writer};
use crate::telemetry::logging::{self, Logging};
use crate::telemetry::progress::Progress;

/// Bytes that are written at once.
const WRITE: usize = 1 << 20;
/// The libraries of functions have at most so many bytes together.
const MOST_LIBRARIES: usize = 512 << 20;

/// Exports everything, or leaves no file.
pub fn export(config: &Config, options: &ExportOptions) -> Result<(), Problem> {
    let logging = logging::start(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("start: {error}"))?;
    runtime.block_on(run(options, &logging))
}

async fn run(options: &ExportOptions, logging: &Logging) -> Result<(), Problem> {
    let started = Instant::now();
    let server = options.source()?;
    let client = Client::connect(&server, &options.trust).await?;
    let to = options.to();
    let failed = |error: io::Error| format!("write {to}: {error}");
    let (output, announced) = match to {
        STANDARD_OUTPUT if io::stdout().is_terminal() => {
            return Err("write to a terminal: name a file, or let another program read the output".into());
        }
        STANDARD_OUTPUT => (Output::Standard(io::stdout()), Some(options.newest_version())),
        _ => (Output::file(Path::new(to)).map_err(failed)?, None),
    };
    let newest = options.newest_version();
    let output = BufWriter::with_capacity(WRITE, output);
    let mut exporting = Exporting {
        source: Source::new(client).await?,
        only: server.database,
        writer: Writer::new(output, announced.unwrap_or(newest)).map_err(failed)?,
        newest,
        to,
        keys: 0,
        unreadable: 0,
        libraries: 0,
    };
    tokio::select! {
        biased;
        // There is no file to remove, and a write can wait for the reader of a pipe: then the
        // signal ends the program, as it does if nobody waits for it.
        () = stopped(), if to != STANDARD_OUTPUT => return Err(format!("read {server}: {INTERRUPTED}")),
        done = exporting.all(logging) => done?,
    }
    let Exporting {
        writer,
        keys,
        unreadable,
        libraries,
        ..
    } = exporting;
    let version = announced.unwrap_or(writer.needed());
    let output = writer.finish(version).map_err(failed)?;
    let output = output.into_inner().map_err(|error| failed(error.into_error()))?;
    output.keep(rdb::header(version).as_bytes()).map_err(failed)?;
    let seconds = started.elapsed().as_secs_f64();
    let told = format!(
        "exported {keys} keys and {libraries} libraries of functions of {server}, RDB version {version}, {seconds:.1} seconds\n"
    );
    // The export is done, even if its output is not read.
    let _ = match to {
        STANDARD_OUTPUT => io::stderr().write_all(told.as_bytes()),
        _ => io::stdout().write_all(told.as_bytes()),
    };
    match unreadable {
        0 => Ok(()),
        _ => Err(format!(
            "export everything: {server} cannot read {unreadable} keys; the others are exported"
        )),
    }
}

/// What is exported, and how far that is.
struct Exporting<'e> {
    source: Source,
    /// The only database that is exported.
    only: Option<u64>,
    writer: Writer<BufWriter<Output>>,
    /// The newest version that the file may have.
    newest: u16,
    /// The name of the file.
    to: &'e str,
    keys: u64,
    /// Keys that the source cannot read.
    unreadable: u64,
    libraries: u64,
}

impl Exporting<'_> {
    fn failed(&self, error: &io::Error) -> Problem {
        format!("write {}: {error}", self.to)
    }

    async fn all(&mut self, logging: &Logging) -> Result<(), Problem> {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let began = self.writer.note("ctime", &since.as_secs().to_string());
        began.map_err(|error| self.failed(&error))?;
        self.functions().await?;
        let is_ordered = goes_in_order(&mut self.source.client).await?;
        let mut databases = self.source.client.databases().await?;
        databases.retain(|(database, _)| self.only.is_none_or(|only| only == *database));
        let total = databases.iter().map(|(_, keys)| keys).sum();
        let progress = &mut Progress::new(logging, "exporting", "keys");
        for (database, _) in databases {
            let mut seen = Seen::new(is_ordered);
            self.source.client.select(database).await?;
            let mut cursor = 0;
            loop {
                let (next, mut keys) = self.source.client.scan(cursor).await?;
                seen.keep_new(&mut keys);
                self.page(database, &keys).await?;
                progress.show(self.keys, total);
                if next == 0 {
                    break;
                }
                cursor = next;
            }
        }
        Ok(())
    }

    async fn page(&mut self, database: u64, keys: &[Bytes]) -> Result<(), Problem> {
        for keys in keys.chunks(AT_ONCE) {
            self.source.ask(keys).await?;
            for key in keys {
                match self.source.answer(key).await? {
                    Answer::Holds(dumped) => self.write(database, key, &dumped)?,
                    Answer::Unreadable(why) => self.leave_out(database, key, &why),
                    // Since SCAN.
                    Answer::Gone => {}
                }
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, database: u64, key: &Bytes, why: &str) {
        self.unreadable += 1;
        if self.unreadable <= NAMED {
            let key = String::from_utf8_lossy(key);
            warn!(database, %key, "{} cannot read it: {why}", self.source.client.name());
        }
    }

    fn write(&mut self, database: u64, key: &Bytes, dumped: &Dumped) -> Result<(), Problem> {
        let content = Content::new(&dumped.payload, self.newest).map_err(|problem| {
            let how = match problem {
                rdb::Problem::Newer(version) => format!("; allow that with --rdb-version {version}"),
                _ => String::new(),
            };
            let key = String::from_utf8_lossy(key);
            format!("export the key {key:?} of database {database}: it holds {problem}{how}")
        })?;
        let expire_at = match dumped.expiry {
            Expiry::Never => None,
            Expiry::At(at) => Some(at),
            Expiry::In(ms) => {
                let now = SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default();
                Some(ms.saturating_add(now.as_millis() as u64))
            }
        };
        let written = self.writer.key(database, key, expire_at, &content);
        written.map_err(|error| self.failed(&error))?;
        self.keys += 1;
        Ok(())
    }

    async fn functions(&mut self) -> Result<(), Problem> {
        let Some((_, dump)) = self.source.libraries().await? else {
            return Ok(());
        };
        let texts = rdb::libraries_in(&dump, MOST_LIBRARIES);
        for text in texts.map_err(|error| format!("read the libraries of functions: {error}"))? {
            let written = self.writer.library(&text);
            written.map_err(|error| self.failed(&error))?;
            self.libraries += 1;
        }
        Ok(())
    }
}

/// Whether SCAN goes through all keys in one order, whatever is written meanwhile: Highwater's
/// does.
async fn goes_in_order(client: &mut Client) -> Result<bool, Problem> {
    let reply = client.ask(&[b"INFO", b"server"]).await?;
    let text = client.bytes(reply)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&text).contains("\nhighwater_version:"))
}

/// Which keys of a database the file has, by hashes so long that no two are the same.
struct Seen {
    seed: u64,
    keys: HashSet<u128>,
    /// SCAN names keys in one order: a page can begin with what the page before ended with, and no
    /// key comes again later.
    is_ordered: bool,
    /// Of the page before, if earlier ones are forgotten.
    before: HashSet<u128>,
}

impl Seen {
    fn new(is_ordered: bool) -> Seen {
        Seen {
            seed: rand::random(),
            keys: HashSet::new(),
            is_ordered,
            before: HashSet::new(),
        }
    }

    /// Leaves those keys of a page that were not there before.
    fn keep_new(&mut self, keys: &mut Vec<Bytes>) {
        if self.is_ordered {
            self.before = std::mem::take(&mut self.keys);
        }
        keys.retain(|key| {
            let hash = xxh3_128_with_seed(key, self.seed);
            self.keys.insert(hash) && !self.before.contains(&hash)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(seen: &mut Seen, page: &[&'static str]) -> Vec<Bytes> {
        let mut keys = page.iter().map(|key| Bytes::from(*key)).collect();
        seen.keep_new(&mut keys);
        keys
    }

    #[test]
    fn no_key_is_written_twice() {
        let mut seen = Seen::new(false);
        assert_eq!(kept(&mut seen, &["a", "b", "a"]), ["a", "b"]);
        assert_eq!(kept(&mut seen, &["c", "b"]), ["c"]);
        assert_eq!(kept(&mut seen, &["a", "d"]), ["d"]);
        let mut seen = Seen::new(true);
        assert_eq!(kept(&mut seen, &["a", "b"]), ["a", "b"]);
        assert_eq!(kept(&mut seen, &["b", "c", "b"]), ["c"]);
        assert_eq!(kept(&mut seen, &["c", "d"]), ["d"]);
        assert_eq!(seen.keys.len() + seen.before.len(), 4, "the first page is forgotten");
    }
}
