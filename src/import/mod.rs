//! `highwater import`: an RDB file, or what a running Redis holds, goes into a running server.
//!
//! Values go through in pipelines, as payloads of RESTORE. Of a file each value is read and written
//! again in a form that Redis 7.0 and newer take (7.4 if fields expire); what a server dumped goes
//! as it is.

pub mod client;
mod file;
mod follow;
mod keys;
mod sample;
mod server;
pub mod source;
pub mod target;
mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::Instant;

use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

use self::client::Client;
use self::sample::Sampled;
use self::target::Target;
use crate::config::Config;
use crate::config::import::{ImportOptions, ImportSource};
use crate::telemetry::logging::{self, Logging};

/// What cannot be done, why, and what to do. Shown after "highwater: cannot".
pub type Problem = String;

/// Why something stopped before its end.
pub const INTERRUPTED: &str = "it was interrupted";

/// What was read of a source.
#[derive(Default)]
struct Imported {
    /// Values that were asked for, also those that were not copied.
    keys: u64,
    /// Values that were written again, as they changed.
    again: u64,
    /// Keys that had expired, and collections without elements.
    left_out: u64,
    /// Keys with values that only a module of Redis can read.
    of_modules: u64,
    libraries: u64,
    /// Values to be compared.
    sample: Vec<Sampled>,
    /// How many keys each database of the source has, as far as that is known.
    counts: Vec<(u64, u64)>,
}

/// Imports everything, or reports how far it came.
pub fn import(config: &Config, options: &ImportOptions) -> Result<(), Problem> {
    let logging = logging::start(config)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("start: {error}"))?;
    runtime.block_on(run(options, &logging))
}

async fn run(options: &ImportOptions, logging: &Logging) -> Result<(), Problem> {
    let started = Instant::now();
    let server = options.target()?;
    let mut client = Client::connect(&server, &options.trust).await?;
    let filled = client.databases().await?.into_iter().find(|(_, keys)| *keys > 0);
    if let Some((database, keys)) = filled.filter(|_| !options.into_existing && options.resume.is_none()) {
        return Err(format!(
            "import into {server}: its database {database} has {keys} keys already; say --into-existing: keys of the source are \
             overwritten there then, and what else it has stays"
        ));
    }
    let mut target = Target::new(client);
    let imported = match options.source()? {
        ImportSource::File(path) => file::import(&path, options.resume, &mut target, logging).await?,
        ImportSource::Server(source) => server::import(&source, options, &mut target, logging).await?,
    };
    finish(imported, &mut target, options, started).await
}

/// Compares, and tells what was done.
async fn finish(
    imported: Imported,
    target: &mut Target,
    options: &ImportOptions,
    started: Instant,
) -> Result<(), Problem> {
    let name = target.idle().await?.name().to_owned();
    let is_whole = !options.into_existing && options.resume.is_none();
    let counts = target.idle().await?.databases().await?;
    let [wanted, copied]: [BTreeMap<u64, u64>; 2] =
        [imported.counts.into_iter().collect(), counts.into_iter().collect()];
    let databases: BTreeSet<&u64> = wanted.keys().chain(copied.keys()).collect();
    for database in databases.into_iter().filter(|_| is_whole) {
        let [keys, copied] = [&wanted, &copied].map(|counts| counts.get(database).copied().unwrap_or(0));
        if copied != keys {
            warn!(
                database,
                "the source has {keys} keys, the target {copied}: keys may have expired, or the source was written to"
            );
        }
    }
    if imported.of_modules > 0 {
        warn!(
            "{} keys hold values of modules, which are not imported",
            imported.of_modules
        );
    }
    let keys = imported.keys.saturating_sub(imported.again);
    let failures = target.failures();
    if failures > 0 {
        return Err(format!(
            "import everything: {failures} of {keys} keys were refused by {name}, or the source cannot read them; the \
             others were written",
        ));
    }
    let compared = sample::compare(target, imported.sample).await?;
    let seconds = started.elapsed().as_secs_f64();
    let mut told = format!("imported {keys} keys into {name}");
    for (count, what) in [
        (imported.again, "values copied again or later"),
        (target.deleted, "deleted again"),
        (imported.libraries, "libraries of functions"),
        (imported.left_out, "expired or empty keys left out"),
        (imported.of_modules, "keys of modules left out"),
        (compared as u64, "values compared"),
    ] {
        if count > 0 {
            told.push_str(&format!(", {count} {what}"));
        }
    }
    // The import is done, even if its output is not read.
    let _ = writeln!(std::io::stdout(), "{told}, {seconds:.1} seconds");
    Ok(())
}

/// Waits until the program is asked to stop.
pub async fn stopped() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminated) => tokio::select! {
            _ = terminated.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        },
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

/// What a message about an interrupted import ends with.
fn how_to_go_on((database, place): (u64, u64), failures: u64) -> String {
    let but = match failures {
        0 => String::new(),
        failures => format!(", but for {failures} keys"),
    };
    format!("; everything before was written{but}: go on with --resume {database}:{place}")
}
