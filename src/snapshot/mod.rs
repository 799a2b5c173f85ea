//! `highwater snapshot` writes a snapshot of a topic or of an embedded log to one file, and
//! `highwater restore` takes it back: into a directory that a node then starts from, or, if the log
//! is gone, into a new topic or a new embedded log.
//!
//! A snapshot of an embedded log is the log itself: its files at one moment ([`frozen`]), also of a
//! running node. A snapshot of a topic is the local store of a node that followed the topic to its
//! end and stopped. `highwater snapshot` is that node: it has a directory of its own, serves
//! nobody, and the next time goes on from where it was. So a node that starts from a snapshot is a
//! node that was away for a while, and every check for that holds. The reasons are in
//! `docs/decisions/snapshots.md`.
//!
//! [`archive`] has the format of the file, [`rewrite`] produces what a store has to another log.

mod archive;
mod catch_up;
mod rewrite;

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use tracing::info;

use self::archive::{Manifest, Reader, Writer};
use self::catch_up::catch_up;
use crate::config::snapshot::{RestoreOptions, RestoreTarget, SnapshotOptions};
use crate::config::{Config, VERSION};
use crate::copy;
use crate::database::now_ms;
use crate::datadir::{DataDir, Owner, Unpacking};
use crate::files::Output;
use crate::log::embedded::frozen;
use crate::log::{Positions, TopicPartition};
use crate::open;
use crate::store;
use crate::telemetry::logging::Logging;
use crate::telemetry::process;
use crate::telemetry::progress::Progress;

/// What cannot be done, why, and what to do. Shown after "highwater: cannot".
type Problem = String;

/// Longest time for the end of a log that was only read.
const ASK: Duration = Duration::from_secs(10);
const MANY_FILES: u64 = 1 << 20;
/// So many bytes of a snapshot are read, or written, at once.
const CHUNK: usize = 1 << 20;

/// Writes a snapshot.
pub fn snapshot(config: &Config, options: &SnapshotOptions) -> Result<(), Problem> {
    let logging = copy::start(config)?;
    let started = Instant::now();
    // Of an embedded log all segments are open at once.
    process::raise_open_files(MANY_FILES);
    let failed = |error: io::Error| format!("write a snapshot to {}: {error}", options.to);
    let output = match &*options.to {
        "-" => Output::Standard(io::stdout()),
        name => Output::file(Path::new(name)).map_err(failed)?,
    };
    let output = BufWriter::with_capacity(CHUNK, output);
    let (output, bytes) = match config.bootstrap_servers().is_empty() {
        false => of_topic(config, output, &logging, failed)?,
        true => of_embedded(config, output, &logging, failed)?,
    };
    let output = output.into_inner().map_err(|error| failed(error.into_error()))?;
    output.keep(b"").map_err(failed)?;
    let (megabytes, seconds) = (bytes.div_ceil(1 << 20), started.elapsed().as_secs_f64());
    let told = format!(
        "wrote a snapshot of {megabytes} MB to {}: {seconds:.1} seconds",
        options.to
    );
    match options.to.as_str() {
        // The snapshot itself goes to the standard output.
        "-" => info!("{told}"),
        // The snapshot is made, even if its output is not read.
        _ => drop(writeln!(io::stdout(), "{told}")),
    }
    Ok(())
}

/// What a snapshot is written to, and the number of its bytes.
type Written = (BufWriter<Output>, u64);

fn of_topic(
    config: &Config,
    output: BufWriter<Output>,
    logging: &Logging,
    failed: impl Fn(io::Error) -> Problem,
) -> Result<Written, Problem> {
    // A topic that is not there is not to be made.
    let (source, _) = copy::open_source(config)?;
    source.close(ASK);
    drop(source);
    let mut directory = DataDir::open(&config.dir()).map_err(|problem| {
        format!("{problem}; a snapshot of a topic needs a data directory of its own, not that of a running node")
    })?;
    let created = now_ms();
    let (owner, positions) = catch_up(config, &mut directory, logging)?;
    let store = directory.store();
    let manifest = Manifest {
        created,
        version: VERSION.to_owned(),
        databases: config.databases(),
        owner,
        engine: Some(config.store().to_string()),
        positions,
    };
    let total = store::directory_bytes(&store);
    let mut progress = Progress::new(logging, "writing", "bytes");
    let written = Writer::new(output, &manifest).and_then(|mut writer| {
        writer.tree(&store, "store", &mut |done| progress.show(done, total))?;
        let bytes = writer.bytes;
        Ok((writer.finish()?, bytes))
    });
    written.map_err(failed)
}

fn of_embedded(
    config: &Config,
    output: BufWriter<Output>,
    logging: &Logging,
    failed: impl Fn(io::Error) -> Problem,
) -> Result<Written, Problem> {
    let log = config.dir().join("log");
    if !log.is_dir() {
        return Err(format!(
            "find an embedded log in {}; name a node's data directory with --dir, or a topic with --bootstrap-servers and --topic",
            config.dir().display()
        ));
    }
    let frozen = frozen::freeze(&log).map_err(|e| format!("read the log: {e}"))?;
    let at = TopicPartition {
        database: 0,
        partition: 0,
    };
    let manifest = Manifest {
        created: now_ms(),
        version: VERSION.to_owned(),
        databases: config.databases(),
        owner: Owner::Embedded { id: frozen.id },
        engine: None,
        positions: Positions::from([(at, frozen.end)]),
    };
    let total = frozen.files.iter().map(|(_, _, bytes)| bytes).sum();
    let mut progress = Progress::new(logging, "writing", "bytes");
    let written = Writer::new(output, &manifest).and_then(|mut writer| {
        writer.directory("log")?;
        for (name, file, bytes) in frozen.files {
            writer.file(file, bytes, &format!("log/{name}"), &mut |done| {
                progress.show(done, total)
            })?;
        }
        let bytes = writer.bytes;
        Ok((writer.finish()?, bytes))
    });
    written.map_err(failed)
}

/// Takes a snapshot back.
pub fn restore(config: &Config, options: &RestoreOptions) -> Result<(), Problem> {
    let logging = copy::start(config)?;
    let started = Instant::now();
    let into = config.dir();
    let mut directory = DataDir::open(&into)?;
    if !directory.is_empty() {
        return Err(format!(
            "restore into {}: there is data in it already; name another directory with --dir, or move what is there away",
            into.display()
        ));
    }
    let unpacking = directory.unpacking()?;
    let (manifest, packed) = read(&options.from)?;
    packed.unpack(&unpacking, &logging)?;
    let made = format!("of {}, made {} ago", manifest.owner, age(manifest.created));
    let told = match options.target() {
        RestoreTarget::Directory => {
            directory.take_over(unpacking, manifest.owner)?;
            format!("the snapshot {made} is in {} now: start a node there", into.display())
        }
        RestoreTarget::EmbeddedLog => {
            let (records, owner) = rewrite::to_embedded(config, &manifest, &unpacking, &logging)?;
            directory.take_over(unpacking, owner)?;
            format!(
                "wrote {records} records of the snapshot {made} to a new embedded log in {}",
                into.display()
            )
        }
        RestoreTarget::Topic(to) => {
            let records = rewrite::to_topic(config, to, &manifest, &unpacking, &logging)?;
            format!(
                "wrote {records} records of the snapshot {made} to topic {}",
                to.to_topic
            )
        }
    };
    // It is done, even if its output is not read.
    let _ = writeln!(io::stdout(), "{told}: {:.1} seconds", started.elapsed().as_secs_f64());
    Ok(())
}

/// `--snapshot` of a node: if its directory is empty, it begins from the snapshot.
pub(crate) fn begin_from(
    path: &str,
    directory: &mut DataDir,
    config: &Config,
    logging: &Logging,
) -> Result<(), Problem> {
    if !directory.is_empty() {
        info!("the data directory is not empty, so this node goes on from there: the snapshot {path} is not read");
        return Ok(());
    }
    let (manifest, packed) = read(path)?;
    // Before much is unpacked. What cannot be told now is found when the topic is reached.
    if let Some(reason) = unfit(&manifest, config) {
        return Err(format!("begin from the snapshot {path}: {reason}"));
    }
    directory.check(&open::owner(config, None))?;
    info!(
        "beginning from the snapshot {path} of {}, made {} ago",
        manifest.owner,
        age(manifest.created)
    );
    let unpacking = directory.unpacking()?;
    packed.unpack(&unpacking, logging)?;
    directory.take_over(unpacking, manifest.owner)
}

/// Why a node with these settings cannot begin from this snapshot.
fn unfit(manifest: &Manifest, config: &Config) -> Option<String> {
    let wanted = open::owner(config, None);
    if !manifest.owner.is_like(&wanted) {
        return Some(format!("it is of {}, and this node's log is {wanted}", manifest.owner));
    }
    let engine = manifest.engine.as_ref()?;
    if **engine != *config.store() {
        let own = config.store();
        return Some(format!(
            "its store was kept by {engine}, and that of this node is kept by {own}; start it with --store {engine}"
        ));
    }
    let (has, own) = (manifest.databases, config.databases());
    (has != own).then(|| format!("it was made with --databases {has}, and this node has {own}"))
}

/// What a snapshot holds, after what it says of itself.
struct Packed {
    reader: Reader<Box<dyn BufRead>>,
    /// Bytes of the file; 0 if that is not known.
    total: u64,
}

/// Reads what a snapshot says of itself. `from`: a path, or `-`.
fn read(from: &str) -> Result<(Manifest, Packed), Problem> {
    let (input, total): (Box<dyn BufRead>, u64) = match from == "-" {
        true => (Box::new(BufReader::with_capacity(CHUNK, io::stdin())), 0),
        false => {
            let file = File::open(from).map_err(|e| format!("open the snapshot {from}: {e}"))?;
            let bytes = file.metadata().map_or(0, |metadata| metadata.len());
            (Box::new(BufReader::with_capacity(CHUNK, file)), bytes)
        }
    };
    let (manifest, reader) = Reader::open(input)?;
    Ok((manifest, Packed { reader, total }))
}

impl Packed {
    fn unpack(self, unpacking: &Unpacking, logging: &Logging) -> Result<(), Problem> {
        let mut progress = Progress::new(logging, "unpacking", "bytes");
        let total = self.total;
        self.reader
            .unpack(unpacking.path(), &mut |done| progress.show(done, total))
    }
}

/// How long ago a time was, for people.
fn age(created: u64) -> String {
    match now_ms().saturating_sub(created) / 1000 {
        seconds if seconds >= 2 * 24 * 3600 => format!("{} days", seconds / (24 * 3600)),
        seconds if seconds >= 2 * 3600 => format!("{} hours", seconds / 3600),
        seconds if seconds >= 2 * 60 => format!("{} minutes", seconds / 60),
        seconds => format!("{seconds} seconds"),
    }
}
