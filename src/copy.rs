//! `highwater copy`: copies what a log shows now into topics of Kafka, from a topic (to other
//! partitions, to another cluster) or from a stopped node's embedded log. Owns what is copied and
//! what is not. Knows nothing of RESP, and needs no store.
//!
//! The source is read twice. The first pass finds, for each key, the place of its newest record,
//! and keeps it in memory ([`Index`]: the keys and some hundred bytes for each, no values; 2
//! million keys of 21 bytes took 270 MB, and 370 MB for a moment). The second pass produces the
//! records at these places again ([`Window`]: a bounded number is under way at a time). The
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

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::fast::RandomState;
use parking_lot::{Condvar, Mutex};
use smallvec::{SmallVec, smallvec};
use tracing::{info, warn};

use crate::config::Config;
use crate::config::copy::CopyOptions;
use crate::database::now_ms;
use crate::datadir::{DataDir, Owner};
use crate::log::embedded::{EmbeddedLog, Options as EmbeddedOptions};
use crate::log::kafka::{self, KafkaLog, Mapped};
use crate::log::record::HEADER_BYTES;
use crate::log::{
    Appended, Batch, Completion, Log, LogError, LogRecord, Positions, ProduceError, Record, TopicPartition,
};
use crate::model::{Control, FEATURES_KEY, Features, Payload};
use crate::run::{self, embedded_options, kafka_config};
use crate::supervise;
use crate::telemetry::logging;
use crate::telemetry::progress::Progress;

/// No client waits for a single write, so a broker may take its time, or another one may take over.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time for one question to a log, and for its end.
const ASK: Duration = Duration::from_secs(10);
/// Longest time of one poll for records.
const POLL: Duration = Duration::from_millis(200);
/// Bounds of what is under way to the target at a time.
const MAX_RECORDS: usize = 20_000;
const MAX_BYTES: usize = 32 << 20;
/// So many records that are not copied are logged one by one.
const NAMED: usize = 20;
/// So many bytes of a key are shown.
const SHOWN: usize = 100;

/// What cannot be done, why, and what to do. Shown after "highwater: cannot".
type Problem = String;

/// Copies everything, or reports how far it came.
pub fn copy(config: &Config, options: &CopyOptions) -> Result<(), Problem> {
    let logging = logging::start(config)?;
    supervise::on_failure(run::end_now);
    supervise::start_watchdog().map_err(|e| format!("start the watchdog: {e}"))?;
    let started = Instant::now();
    let (source, _directory) = open_source(config)?;
    let target = open_target(config, options, &*source)?;
    let ends = ends(&*source)?;
    let patience = config.startup_timeout();
    let mut index = Index::new(&*source, config.databases());
    read(
        &*source,
        &ends,
        patience,
        &mut Progress::new(&logging, "reading"),
        |record| {
            index.see(&record, target.max_record_bytes(record.at.database));
            Ok(())
        },
    )?;
    let records = index.records;
    let chosen = index.choose(|database, key| source.partition(database, key));
    chosen.tell(&*source)?;
    let wanted = chosen.count();
    let mut writer = Writer::new(&*target, chosen);
    let progress = &mut Progress::new(&logging, "copying");
    let read = read(&*source, &ends, patience, progress, |record| writer.take(record));
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

/// The log as a node with these settings has it. With its directory, if it has one, held as long as
/// the log is read.
fn open_source(config: &Config) -> Result<(Arc<dyn Log>, Option<DataDir>), Problem> {
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

/// The log to copy into: another one than the source, and empty unless `--into-existing` is given.
fn open_target(config: &Config, options: &CopyOptions, source: &dyn Log) -> Result<Arc<dyn Log>, Problem> {
    let mut settings = kafka_config(config, kafka::Config::default().node)?;
    if !options.to_bootstrap_servers.is_empty() {
        settings.bootstrap_servers = options.to_bootstrap_servers.clone();
    }
    settings.topic = options.to_topic.clone();
    settings.mapped = BTreeMap::new();
    settings.properties = options.kafka_properties(settings.properties)?;
    settings.write_timeout = settings.write_timeout.max(WRITE_TIMEOUT);
    let topics = |log: &dyn Log| -> Vec<_> { (0..config.databases()).filter_map(|n| log.identity(n)).collect() };
    let known = topics(source);
    let most = known.iter().map(|topic| topic.partitions).max();
    settings.partitions = options.to_partitions.or(most).unwrap_or(1);
    let target = KafkaLog::connect(settings).map_err(|e| format!("open the topic to copy to: {e}"))?;
    if let Some(same) = topics(&target)
        .iter()
        .find(|new| known.iter().any(|topic| topic.id == new.id))
    {
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

/// What the newest record of a key in a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Value,
    /// Too large for the topic that it would be copied to.
    TooLarge,
    Tombstone,
    Unreadable,
}

/// Where the newest record of a key in a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    offset: u64,
    timestamp: i64,
    partition: u32,
    state: Found,
}

/// One database: for each key, its newest record in each partition that has one.
#[derive(Default)]
struct Keys {
    /// The topic has more than one partition.
    is_spread: bool,
    places: HashMap<Box<[u8]>, SmallVec<[Place; 1]>, RandomState>,
}

impl Keys {
    fn note(&mut self, key: &[u8], place: Place) {
        match self.places.get_mut(key) {
            Some(places) => match places.iter_mut().find(|known| known.partition == place.partition) {
                Some(known) => *known = place,
                None => places.push(place),
            },
            None => drop(self.places.insert(key.into(), smallvec![place])),
        }
    }

    /// The key has no record in this partition any more.
    fn forget(&mut self, key: &[u8], partition: u32) {
        if let Some(places) = self.places.get_mut(key) {
            places.retain(|place| place.partition != partition);
            if places.is_empty() {
                self.places.remove(key);
            }
        }
    }
}

/// The keys of the source.
struct Index {
    databases: Vec<Keys>,
    /// The newest flush marker of each partition: it hides every record with a lower offset.
    flushed: BTreeMap<TopicPartition, u64>,
    records: u64,
}

impl Index {
    fn new(source: &dyn Log, databases: u16) -> Index {
        let keys = |database| Keys {
            is_spread: source.identity(database).is_some_and(|topic| topic.partitions > 1),
            ..Keys::default()
        };
        Index {
            databases: (0..databases).map(keys).collect(),
            flushed: BTreeMap::new(),
            records: 0,
        }
    }

    /// Takes in a record. `largest`: how large a record may be in the target.
    fn see(&mut self, record: &LogRecord, largest: usize) {
        self.records += 1;
        let Some(keys) = self.databases.get_mut(usize::from(record.at.database)) else {
            return;
        };
        let state = match &record.payload {
            Payload::Control(Control::Flush) => {
                self.flushed.insert(record.at, record.offset);
                return;
            }
            Payload::Key(None) if !keys.is_spread || record.group.is_some() => {
                keys.forget(&record.key, record.at.partition);
                return;
            }
            // The target names its own.
            Payload::Control(Control::Features(_)) => return,
            Payload::Key(None) => Found::Tombstone,
            Payload::Key(Some(_)) if record.payload.is_unreadable() => Found::Unreadable,
            Payload::Control(Control::Unknown) => Found::Unreadable,
            Payload::Key(Some(state)) if record.key.len() + state.value.bytes() + HEADER_BYTES > largest => {
                Found::TooLarge
            }
            Payload::Key(Some(_)) => Found::Value,
        };
        let place = Place {
            offset: record.offset,
            timestamp: record.timestamp,
            partition: record.at.partition,
            state,
        };
        keys.note(&record.key, place);
    }

    /// Decides what is copied, given each key's home partition.
    fn choose(self, home: impl Fn(u16, &[u8]) -> u32) -> Chosen {
        let mut chosen = Chosen::default();
        for (database, keys) in (0..).zip(self.databases) {
            for (key, places) in keys.places {
                let at = |place: &Place| TopicPartition {
                    database,
                    partition: place.partition,
                };
                let is_hidden =
                    |place: &&Place| self.flushed.get(&at(place)).is_some_and(|flush| place.offset < *flush);
                let shown = places.iter().filter(|place| !is_hidden(place));
                chosen.several += u64::from(shown.clone().count() > 1);
                let home = home(database, &key);
                if let Some(newest) = shown.max_by_key(|place| rank(place, home)) {
                    chosen.add(at(newest), newest, &key);
                }
            }
        }
        chosen.places.values_mut().for_each(|offsets| offsets.sort_unstable());
        chosen
    }
}

/// Of several records of a key, the one with the highest rank wins.
fn rank(place: &Place, home: u32) -> impl Ord + use<> {
    let is_value = place.state != Found::Tombstone;
    (
        place.timestamp,
        is_value,
        place.partition == home,
        Reverse(place.partition),
    )
}

/// The records to be copied, and what is to be reported about the others.
#[derive(Default)]
struct Chosen {
    /// Their offsets, ascending.
    places: BTreeMap<TopicPartition, Vec<u64>>,
    several: u64,
    unreadable: Left,
    too_large: Left,
}

/// Records that are not copied although they are the newest of their keys.
#[derive(Default)]
struct Left {
    count: u64,
    named: Vec<(TopicPartition, u64, String)>,
}

impl Left {
    fn add(&mut self, at: TopicPartition, offset: u64, key: &[u8]) {
        self.count += 1;
        if self.named.len() < NAMED {
            let shown = &key[..key.len().min(SHOWN)];
            self.named.push((at, offset, shown.escape_ascii().to_string()));
        }
    }
}

impl Chosen {
    fn add(&mut self, at: TopicPartition, newest: &Place, key: &[u8]) {
        match newest.state {
            Found::Tombstone => {}
            Found::Value => self.places.entry(at).or_default().push(newest.offset),
            Found::Unreadable => self.unreadable.add(at, newest.offset, key),
            Found::TooLarge => self.too_large.add(at, newest.offset, key),
        }
    }

    fn count(&self) -> u64 {
        self.places.values().map(|offsets| offsets.len() as u64).sum()
    }

    /// Reports what is not copied, or not as one may expect. An error before anything is written is
    /// better than half a copy.
    fn tell(&self, source: &dyn Log) -> Result<(), Problem> {
        let topic = |at: &TopicPartition| {
            source
                .identity(at.database)
                .map_or_else(String::new, |topic| topic.topic)
        };
        for (at, offset, key) in &self.unreadable.named {
            let (topic, partition) = (topic(at), at.partition);
            warn!(
                topic,
                partition, offset, "a record cannot be read and is not copied; its key begins with \"{key}\""
            );
        }
        if self.unreadable.count > 0 {
            warn!(
                "{} keys cannot be read and are not copied: another program wrote them, or a newer version of this one",
                self.unreadable.count
            );
        }
        if self.several > 0 {
            info!(
                "{} keys stand in several partitions: of each the newest record counts, by its timestamp",
                self.several
            );
        }
        match self.too_large.named.first() {
            Some((at, offset, key)) => Err(format!(
                "copy {} values: they are larger than the new topic takes (max.message.bytes), the first of them in {} partition {} offset \
                 {offset}, its key begins with \"{key}\"; raise it, or delete these keys; nothing was copied",
                self.too_large.count,
                topic(at),
                at.partition
            )),
            None => Ok(()),
        }
    }
}

/// What became of the records that were chosen.
#[derive(Default)]
struct Copied {
    keys: u64,
    expired: u64,
}

/// Produces those records that were chosen.
struct Writer<'t> {
    target: &'t dyn Log,
    /// The offsets that have not been read yet.
    places: BTreeMap<TopicPartition, std::iter::Peekable<std::vec::IntoIter<u64>>>,
    window: Arc<Window>,
    /// What was named in each database of the target.
    features: BTreeMap<u16, Features>,
    copied: Copied,
}

impl Writer<'_> {
    fn new(target: &dyn Log, chosen: Chosen) -> Writer<'_> {
        let to_come = |(at, offsets): (_, Vec<u64>)| (at, offsets.into_iter().peekable());
        Writer {
            target,
            places: chosen.places.into_iter().map(to_come).collect(),
            window: Arc::default(),
            features: BTreeMap::new(),
            copied: Copied::default(),
        }
    }

    fn take(&mut self, record: LogRecord) -> Result<(), Problem> {
        let Some(offsets) = self.places.get_mut(&record.at) else {
            return Ok(());
        };
        // An offset that is passed over does not exist any more.
        while offsets.next_if(|offset| *offset < record.offset).is_some() {}
        if offsets.next_if_eq(&record.offset).is_none() {
            return Ok(());
        }
        let Some(state) = record.payload.state() else {
            return Ok(());
        };
        if state.expire_at.is_some_and(|at| at <= now_ms()) {
            self.copied.expired += 1;
            return Ok(());
        }
        let database = record.at.database;
        if self.target.identity(database).is_none() {
            self.target
                .create(database)
                .map_err(|e| format!("copy database {database}: {e}"))?;
        }
        if let Some(feature) = state.value.feature() {
            self.name_feature(database, feature)?;
        }
        let to = TopicPartition {
            database,
            partition: self.target.partition(database, &record.key),
        };
        self.produce(Record {
            to,
            key: record.key,
            payload: record.payload,
        })?;
        self.copied.keys += 1;
        Ok(())
    }

    /// Names a feature in every partition, before the first record that needs it.
    fn name_feature(&mut self, database: u16, feature: &str) -> Result<(), Problem> {
        let features = self.features.entry(database).or_default();
        if features.has(feature) {
            return Ok(());
        }
        *features = std::mem::take(features).with(feature);
        let payload = Payload::Control(Control::Features(features.clone()));
        let partitions = self.target.identity(database).map_or(0, |topic| topic.partitions);
        (0..partitions).try_for_each(|partition| {
            self.produce(Record {
                to: TopicPartition { database, partition },
                key: Bytes::from_static(FEATURES_KEY),
                payload: payload.clone(),
            })
        })
    }

    fn produce(&self, record: Record) -> Result<(), Problem> {
        let bytes = record.size();
        self.window.enter(bytes)?;
        let completion = Arc::new(Sent {
            window: self.window.clone(),
            bytes,
        });
        let batch = Batch {
            records: smallvec![record],
            condition: None,
            completion,
        };
        self.target.produce(batch, self.target.epoch());
        Ok(())
    }

    /// Waits until everything is acknowledged.
    fn finish(self) -> Result<Copied, Problem> {
        self.window.wait_until_empty()?;
        Ok(self.copied)
    }
}

/// What was produced and is not acknowledged yet: this bounds the memory of the second pass.
#[derive(Default)]
struct Window {
    state: Mutex<UnderWay>,
    left: Condvar,
}

#[derive(Default)]
struct UnderWay {
    records: usize,
    bytes: usize,
    failed: Option<ProduceError>,
}

impl UnderWay {
    fn check(&self) -> Result<(), Problem> {
        match &self.failed {
            Some(error) => Err(format!("write to the new topic: {error}")),
            None => Ok(()),
        }
    }
}

impl Window {
    /// Waits for room. A record larger than the whole window goes alone.
    fn enter(&self, bytes: usize) -> Result<(), Problem> {
        let mut state = self.state.lock();
        while state.records > 0 && (state.records >= MAX_RECORDS || state.bytes + bytes > MAX_BYTES) {
            self.left.wait(&mut state);
        }
        state.check()?;
        state.records += 1;
        state.bytes += bytes;
        Ok(())
    }

    fn wait_until_empty(&self) -> Result<(), Problem> {
        let mut state = self.state.lock();
        while state.records > 0 {
            self.left.wait(&mut state);
        }
        state.check()
    }
}

struct Sent {
    window: Arc<Window>,
    bytes: usize,
}

impl Completion for Sent {
    fn complete(self: Arc<Self>, outcome: Result<&[Appended], ProduceError>) {
        let mut state = self.window.state.lock();
        state.records -= 1;
        state.bytes -= self.bytes;
        if let Err(error) = outcome {
            state.failed.get_or_insert(error);
        }
        self.window.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::log::Group;

    const LARGEST: usize = 1000;

    fn index(databases: u16, is_spread: bool) -> Index {
        let keys = |_| Keys {
            is_spread,
            ..Keys::default()
        };
        Index {
            databases: (0..databases).map(keys).collect(),
            flushed: BTreeMap::new(),
            records: 0,
        }
    }

    fn at(partition: u32) -> TopicPartition {
        TopicPartition { database: 0, partition }
    }

    fn record(partition: u32, offset: u64, timestamp: i64, key: &'static str, payload: Payload) -> LogRecord {
        LogRecord {
            at: at(partition),
            offset,
            timestamp,
            key: Bytes::from_static(key.as_bytes()),
            payload,
            group: None,
        }
    }

    fn value(bytes: usize) -> Payload {
        Payload::string(vec![b'v'; bytes].into(), None)
    }

    /// What is chosen of these records when the home partition of every key is 1.
    fn chosen(is_spread: bool, records: &[LogRecord]) -> Chosen {
        let mut index = index(1, is_spread);
        records.iter().for_each(|record| index.see(record, LARGEST));
        assert_eq!(index.records, records.len() as u64);
        index.choose(|_, _| 1)
    }

    fn places(chosen: &Chosen) -> Vec<(u32, Vec<u64>)> {
        let places = chosen.places.iter();
        places.map(|(at, offsets)| (at.partition, offsets.clone())).collect()
    }

    #[test]
    fn of_one_partition_the_newest_value_of_each_key_is_copied() {
        let records = [
            record(0, 1, 9, "a", value(1)),
            record(0, 3, 9, "b", value(1)),
            record(0, 4, 9, "c", value(1)),
            // Timestamps mean nothing within a partition.
            record(0, 7, 5, "a", value(2)),
            record(0, 8, 5, "c", Payload::TOMBSTONE),
            record(0, 9, 5, "never there", Payload::TOMBSTONE),
        ];
        let chosen = chosen(false, &records);
        assert_eq!(places(&chosen), [(0, vec![3, 7])]);
        assert_eq!((chosen.count(), chosen.several), (2, 0));
    }

    #[test]
    fn a_flush_hides_what_is_before_it_in_its_partition() {
        let flush = Payload::FLUSH;
        let records = [
            record(0, 1, 1, "old", value(1)),
            record(0, 2, 1, "again", value(1)),
            record(0, 5, 1, "flush", flush),
            record(0, 6, 1, "again", value(1)),
            record(2, 1, 1, "elsewhere", value(1)),
            // It is hidden where it was newer, so the record in the other partition is shown.
            record(0, 3, 9, "elsewhere", value(1)),
        ];
        assert_eq!(places(&chosen(true, &records)), [(0, vec![6]), (2, vec![1])]);
    }

    #[test]
    fn of_several_partitions_the_newest_record_wins() {
        let records = [
            // Written to the former home, after the write to the new one, by a producer that did
            // not know the new partitions.
            record(0, 1, 8, "late", value(1)),
            record(1, 1, 7, "late", value(1)),
            // The usual case: written again after the partitions were added.
            record(0, 2, 3, "anew", value(1)),
            record(1, 2, 4, "anew", value(1)),
            // Deleted in the new home.
            record(0, 3, 3, "deleted", value(1)),
            record(1, 3, 4, "deleted", Payload::TOMBSTONE),
            // Written again elsewhere after that.
            record(0, 4, 5, "revived", value(1)),
            record(1, 4, 4, "revived", Payload::TOMBSTONE),
            // Equal timestamps: values win, then the home partition, then the lowest one.
            record(0, 5, 4, "value", value(1)),
            record(1, 5, 4, "value", Payload::TOMBSTONE),
            record(0, 6, 4, "home", value(1)),
            record(1, 6, 4, "home", value(1)),
            record(2, 7, 4, "lowest", value(1)),
            record(0, 7, 4, "lowest", value(1)),
        ];
        let chosen = chosen(true, &records);
        assert_eq!(places(&chosen), [(0, vec![1, 4, 5, 7]), (1, vec![2, 6])]);
        assert_eq!(chosen.several, 7);
    }

    #[test]
    fn a_tombstone_of_a_group_counts_for_its_partition_alone() {
        let mut moved_home = record(0, 2, 9, "moved", Payload::TOMBSTONE);
        moved_home.group = Some(Group { id: 1, records: 2 });
        let records = [
            record(0, 1, 1, "moved", value(1)),
            record(1, 1, 8, "moved", value(1)),
            moved_home,
        ];
        let chosen = chosen(true, &records);
        assert_eq!(places(&chosen), [(1, vec![1])]);
        assert_eq!(chosen.several, 0);
    }

    #[test]
    fn what_cannot_be_copied_is_counted_only_where_it_is_the_newest() {
        let unreadable = || Payload::Key(Some(crate::model::State::unreadable("?")));
        let records = [
            record(0, 1, 1, "bad", unreadable()),
            record(0, 2, 1, "mended", unreadable()),
            record(0, 3, 1, "mended", value(1)),
            record(0, 4, 1, "large", value(LARGEST)),
            record(0, 5, 1, "was large", value(LARGEST)),
            record(0, 6, 1, "was large", value(1)),
            record(0, 7, 1, "\0highwater:later", Payload::UNKNOWN),
        ];
        let chosen = chosen(false, &records);
        assert_eq!(places(&chosen), [(0, vec![3, 6])]);
        assert_eq!((chosen.unreadable.count, chosen.too_large.count), (2, 1));
        assert_eq!(chosen.too_large.named, [(at(0), 4, "large".to_string())]);
    }

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

    #[test]
    fn the_window_is_bounded_and_keeps_the_first_error() {
        let window = Arc::<Window>::default();
        let sent = |bytes| {
            window.enter(bytes).expect("there is room");
            Arc::new(Sent {
                window: window.clone(),
                bytes,
            })
        };
        // Larger than the window, and alone in it.
        let large = sent(MAX_BYTES * 2);
        let next = std::thread::spawn({
            let window = window.clone();
            move || window.enter(1)
        });
        large.complete(Err(ProduceError::NotWritten("first".into())));
        let refused = next.join().expect("does not panic").expect_err("one failed");
        assert!(refused.contains("first"), "{refused}");
        assert!(window.wait_until_empty().is_err());
    }
}
