//! `highwater copy`: copies what a log shows now into topics of Kafka, from a topic (to other
//! partitions, to another cluster) or from a stopped node's embedded log. Owns what is copied and
//! what is not. Knows nothing of RESP, and needs no store.
//!
//! The source is read twice. The first pass finds, for each key, the place of its newest record,
//! and keeps it in memory ([`index`]: the keys and some hundred bytes for each, no values; 2
//! million keys of 21 bytes took 270 MB, and 370 MB for a moment). The second pass produces the
//! records at these places again ([`writer`]: a bounded number is under way at a time). The
//! progress of a copy is kept nowhere else: after an interruption it is made again from the start.
//!
//! **If a key is in several partitions, the newest record wins, by its timestamp**, also if it is a
//! tombstone. (At equal timestamps a value wins, then what is in the key's home partition.) A node
//! goes by the home partition alone, so that all nodes agree at every moment. Here that would be
//! wrong. After partitions were added, a key's former values are in its former home partition,
//! which cannot be told from any other partition, and a producer that did not know of the new ones
//! yet continued to write there. What it wrote last must not lose to what was written before, and a
//! delete in the new home must not bring the former value back. A tombstone of a group counts for
//! its own partition alone: a node writes one where it moves a key home, and wherever else the key
//! is when it deletes it. So differing clocks of nodes lose no key.

mod index;
pub(crate) mod writer;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use self::index::Index;
use self::writer::{Copied, Writer};
use crate::config::Config;
use crate::config::copy::CopyOptions;
use crate::datadir::{DataDir, Owner};
use crate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use crate::log::kafka::{self, KafkaLog, Mapped};
use crate::log::{Log, LogError, LogRecord, Positions, TopicIdentity};
use crate::open::{embedded_options, kafka_config};
use crate::supervise;
use crate::telemetry::logging::{self, Logging};
use crate::telemetry::progress::Progress;

/// No client waits for a single write, so a broker may take its time, or another one may take over.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time for one question to a log, and for its end.
const ASK: Duration = Duration::from_secs(10);
/// Longest time of one poll for records.
const POLL: Duration = Duration::from_millis(200);

/// What cannot be done, why, and what to do. Shown after "highwater: cannot".
type Problem = String;

/// Copies everything, or reports how far it came.
pub fn copy(config: &Config, options: &CopyOptions) -> Result<(), Problem> {
    let logging = start(config)?;
    let started = Instant::now();
    let (source, _directory) = open_source(config)?;
    let known: Vec<_> = (0..config.databases()).filter_map(|n| source.identity(n)).collect();
    let target = open_target(config, options, &known)?;
    let ends = ends(&*source)?;
    let patience = config.startup_timeout();
    let mut index = Index::new(&*source, config.databases());
    read(
        &*source,
        &ends,
        patience,
        &mut Progress::new(&logging, "reading", "records"),
        |record| {
            index.see(&record, target.max_record_bytes(record.at.database));
            Ok(())
        },
    )?;
    index.check_features(&*source)?;
    let records = index.records;
    let chosen = index.choose(|database, key| source.partition(database, key));
    chosen.tell(&*source)?;
    let wanted = chosen.count();
    let mut places = chosen.places();
    let mut writer = Writer::new(&*target);
    let progress = &mut Progress::new(&logging, "copying", "records");
    let read = read(&*source, &ends, patience, progress, |record| {
        match places.next_is(record.at, record.offset) {
            true => writer.take(record.at.database, record.key, record.payload),
            false => Ok(()),
        }
    });
    let copied = read.and_then(|()| writer.finish()).map_err(|problem| {
        format!("{problem}; what was copied by then is in topic {}: do the same again with --into-existing, or delete the topic first", options.to_topic)
    })?;
    target.close(ASK);
    check_unchanged(&*source, &ends, wanted, &copied, &options.to_topic)?;
    let (keys, topic, seconds) = (copied.keys, &options.to_topic, started.elapsed().as_secs_f64());
    // The copy is made, even if its output is not read.
    let _ = writeln!(
        std::io::stdout(),
        "copied {keys} keys to topic {topic}: {records} records read, {seconds:.1} seconds"
    );
    Ok(())
}

/// Starts what a program without clients has in common with a node: its log lines, and its end when
/// a thread of it dies.
pub(crate) fn start(config: &Config) -> Result<Logging, Problem> {
    let logging = logging::start(config)?;
    supervise::on_failure(supervise::end_now);
    supervise::start_watchdog().map_err(|e| format!("start the watchdog: {e}"))?;
    Ok(logging)
}

/// The log as a node with these settings has it. With its directory, if it has one, held as long as
/// the log is read.
pub(crate) fn open_source(config: &Config) -> Result<(Arc<dyn Log>, Option<DataDir>), Problem> {
    if !config.bootstrap_servers().is_empty() {
        let mut settings = kafka_config(config, kafka::Config::default().node)?;
        let default = Mapped {
            topic: settings.topic.clone(),
            read_only: true,
        };
        settings.mapped.entry(0).or_insert(default);
        // The topics of the source must exist: they are not created here.
        settings.mapped.values_mut().for_each(|mapped| mapped.read_only = true);
        let log = KafkaLog::connect(settings).map_err(|e| format!("open the source: {e}"))?;
        return Ok((Arc::new(log), None));
    }
    let dir = config.dir();
    if !dir.join("log").is_dir() {
        return Err(format!(
            "copy from {}: there is no embedded log in it; name a node's data directory with --dir, or a topic with --bootstrap-servers and --topic",
            dir.display()
        ));
    }
    let directory = DataDir::open(&dir)?;
    directory.check(&Owner::Embedded { id: String::new() })?;
    let mut embedded: EmbeddedOptions = embedded_options(config);
    embedded.compaction.enabled = false;
    let log = EmbeddedLog::open(&directory.log(), embedded).map_err(|e| format!("open the source: {e}"))?;
    Ok((log, Some(directory)))
}

/// The log to copy into: another one than the source, whose topics are `known`, and empty unless
/// `--into-existing` is given.
pub(crate) fn open_target(
    config: &Config,
    options: &CopyOptions,
    known: &[TopicIdentity],
) -> Result<Arc<dyn Log>, Problem> {
    let mut settings = kafka_config(config, kafka::Config::default().node)?;
    if !options.to_bootstrap_servers.is_empty() {
        settings.bootstrap_servers = options.to_bootstrap_servers.clone();
    }
    settings.topic = options.to_topic.clone();
    settings.mapped = BTreeMap::new();
    settings.properties = options.kafka_properties(settings.properties)?;
    settings.write_timeout = settings.write_timeout.max(WRITE_TIMEOUT);
    let most = known.iter().map(|topic| topic.partitions).max();
    settings.partitions = options.to_partitions.or(most).unwrap_or(1);
    let target = KafkaLog::connect(settings).map_err(|e| format!("open the topic to copy to: {e}"))?;
    let mut topics = (0..config.databases()).filter_map(|n| target.identity(n));
    if let Some(same) = topics.find(|new| known.iter().any(|topic| topic.id == new.id)) {
        return Err(format!(
            "copy topic {} into itself; name another one with --to-topic",
            same.topic
        ));
    }
    let filled = ends(&target)?.into_iter().find(|(_, end)| *end > 0);
    if let Some((at, _)) = filled.filter(|_| !options.into_existing) {
        let name = target
            .identity(at.database)
            .map_or_else(String::new, |topic| topic.topic);
        return Err(format!(
            "copy into topic {name}: it has had records already; name a new one with --to-topic, or say --into-existing: keys of the \
             source are overwritten there then, and what else it has stays"
        ));
    }
    Ok(Arc::new(target))
}

fn ends(log: &dyn Log) -> Result<Positions, Problem> {
    log.ends(ASK).map_err(|e| format!("read {}: {e}", log.describe()))
}

/// Passes every record below the ends to `see`, those of one partition in order.
fn read(
    log: &dyn Log,
    ends: &Positions,
    patience: Duration,
    progress: &mut Progress<'_>,
    mut see: impl FnMut(LogRecord) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let failed = |error: LogError| format!("read {}: {error}", log.describe());
    let mut follower = log.follow(&Positions::new()).map_err(failed)?;
    let (mut records, mut before, mut moved) = (Vec::new(), Positions::new(), Instant::now());
    loop {
        follower.poll(&mut records, POLL).map_err(failed)?;
        for record in records.drain(..) {
            if ends.get(&record.at).is_some_and(|end| record.offset < *end) {
                see(record)?;
            }
        }
        let positions = follower.positions();
        let behind = |at, end: &u64| positions.get(at).is_none_or(|position| position < end);
        let Some((at, _)) = ends.iter().find(|(at, end)| behind(at, end)) else {
            return Ok(());
        };
        let done = ends
            .iter()
            .map(|(at, end)| positions.get(at).copied().unwrap_or(0).min(*end));
        progress.show(done.sum(), ends.values().sum());
        if positions != before {
            (before, moved) = (positions, Instant::now());
        } else if moved.elapsed() > patience {
            return Err(format!(
                "read {} any further: nothing came for {} seconds, database {} partition {} stands at offset {} of {}; is a broker away, or a \
                 transaction of some producer open there? Try again later",
                log.describe(),
                patience.as_secs(),
                at.database,
                at.partition,
                positions.get(at).copied().unwrap_or_default(),
                ends[at],
            ));
        }
    }
}

/// Warns if something was written since, and makes sure that nothing was removed.
fn check_unchanged(
    source: &dyn Log,
    ends: &Positions,
    wanted: u64,
    copied: &Copied,
    topic: &str,
) -> Result<(), Problem> {
    if copied.expired > 0 {
        info!("{} keys have expired and are not copied", copied.expired);
    }
    let missing = wanted - copied.keys - copied.expired;
    let remedy = format!("stop what writes to the source, delete topic {topic} and copy again");
    if missing > 0 {
        return Err(format!(
            "copy everything: {missing} of {wanted} values were gone from the source when they were to be copied, for it was written to \
             meanwhile; {remedy}"
        ));
    }
    let grown = ends.keys().any(|at| source.incomplete(at.database).is_some());
    if grown || self::ends(source)? != *ends {
        warn!("the source was written to meanwhile, and that is not in the copy; to have it too, {remedy}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_went_from_the_source_is_an_error() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = EmbeddedLog::open(dir.path(), EmbeddedOptions::default()).expect("is made");
        let ends = ends(&*log).expect("there is an end");
        let copied = Copied { keys: 6, expired: 1 };
        assert_eq!(check_unchanged(&*log, &ends, 7, &copied, "new"), Ok(()));
        let told = check_unchanged(&*log, &ends, 9, &copied, "new").expect_err("two are missing");
        assert!(told.contains("2 of 9 values") && told.contains("topic new"), "{told}");
    }
}
