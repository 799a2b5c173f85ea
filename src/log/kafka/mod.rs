//! The log on Apache Kafka, by rdkafka.
//!
//! Reading order:
//!
//! - [`KafkaLog`], here: the whole;
//! - `config`: its settings and librdkafka's;
//! - `topics`: which topic each database is, found, created, verified and watched (`admin` does the
//!   creating);
//! - `producer`: the way of a plain write (`gate`: when it goes out);
//! - `transactions`: the way of a write with a condition or of several records;
//! - `follower`: the way back;
//! - `open_transactions`: what holds up the way back;
//! - `broadcast`: messages between nodes, which are no data;
//! - `codec`: the record's form in Kafka (`docs/topic-format.md`);
//! - `partitioner`: the home of a key;
//! - `polled`: a producer and its thread;
//! - `context`: what librdkafka reports beside records;
//! - `ffi`: the few calls that rdkafka does not wrap.
//!
//! There are these clients, each with librdkafka's own threads: one for questions, one producer,
//! two transactional producers, one consumer per follower, and one for the moment when a topic is
//! created or its settings are read. A thread of this module (`watch`) looks at the topics every
//! few seconds and replaces a broken producer.

mod admin;
mod broadcast;
pub mod codec;
mod config;
mod context;
mod ffi;
mod follower;
mod gate;
mod open_transactions;
mod partitioner;
mod polled;
mod producer;
mod topics;
mod transactions;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use config::Isolation;
pub use config::{Config, Mapped};
pub use partitioner::Partitioner;

use self::broadcast::Broadcasts;
use self::context::{Health, Question};
use self::follower::KafkaFollower;
use self::open_transactions::OpenTransactions;
use self::producer::Lane;
use self::topics::{Depth, Topic, Topics};
use self::transactions::TransactionLane;
use super::broadcast::Broadcast;
use super::{
    Batch, Durability, Follower, Log, LogCounts, LogError, Marks, Outage, Positions, ProduceError, TopicIdentity,
    TopicPartition,
};
use crate::model::home_key;
use crate::supervise;

/// How often the topics are looked at. A database that another node created may stay unnoticed for
/// this long.
const WATCH: Duration = Duration::from_secs(2);
/// The same, when something happened that the topics may explain.
const HURRY: Duration = Duration::from_millis(500);
/// How often the settings of the topics are read again, and refused topics get another chance.
const THOROUGH: Duration = Duration::from_secs(10);
/// How long a look at all topics, or the end of a producer, may take, beside the wait for writes
/// under way.
const WATCH_STEP: Duration = Duration::from_secs(60);
/// How often the watch checks whether it has something to do, or has to stop.
const TICK: Duration = Duration::from_millis(100);
/// How long creating a topic at its first write may take.
const CREATE: Duration = Duration::from_secs(10);

pub struct KafkaLog {
    config: Arc<Config>,
    health: Arc<Health>,
    /// What exists once Kafka has been reached.
    live: OnceLock<Live>,
    /// The databases' topics as they were in an earlier run.
    remembered: OnceLock<BTreeMap<u16, TopicIdentity>>,
    stop: Arc<AtomicBool>,
    watch: Mutex<Option<JoinHandle<Option<()>>>>,
}

struct Live {
    topics: Arc<Topics>,
    lane: Arc<Lane>,
    transactions: TransactionLane,
    open: Arc<OpenTransactions>,
}

impl KafkaLog {
    /// A log that is not reached yet: it has no database, takes no record, and reports why.
    pub fn new(config: Config) -> Result<KafkaLog, LogError> {
        config.check().map_err(LogError::Failed)?;
        let health = Arc::new(Health::of(&config.bootstrap_servers));
        health.unanswered(Question::Topics, "no answer yet".into());
        Ok(KafkaLog {
            config: Arc::new(config),
            health,
            live: OnceLock::new(),
            remembered: OnceLock::new(),
            stop: Arc::new(AtomicBool::new(false)),
            watch: Mutex::new(None),
        })
    }

    /// Returns a log that is reached. Blocking.
    pub fn connect(config: Config) -> Result<KafkaLog, LogError> {
        let log = KafkaLog::new(config)?;
        log.reach(log.config.startup_timeout)?;
        Ok(log)
    }

    /// Reaches Kafka within the time, and creates or verifies the topics. To be called until it
    /// succeeds once. Blocking.
    pub fn reach(&self, patience: Duration) -> Result<(), LogError> {
        let (config, health) = (&self.config, &self.health);
        let topics = Arc::new(Topics::connect(config, health, patience)?);
        let lane = Arc::new(Lane::start(config, &topics, health)?);
        let transactions = TransactionLane::start(config, &topics, health, &lane)?;
        let open = Arc::new(OpenTransactions::new(config, &topics, health));
        let watch = {
            let (topics, lane, stop) = (Arc::clone(&topics), Arc::clone(&lane), Arc::clone(&self.stop));
            let open = Arc::clone(&open);
            let watch_time = config.write_timeout * 2 + WATCH_STEP;
            supervise::thread(&supervise::KAFKA_WATCH, move || {
                watch(&topics, &lane, &open, &stop, watch_time)
            })
        };
        let watch = watch.map_err(|error| LogError::Failed(format!("cannot start a thread: {error}")))?;
        *self.watch.lock() = Some(watch);
        let live = Live {
            topics,
            lane,
            transactions,
            open,
        };
        let reached = self.live.set(live);
        reached.map_err(|_| LogError::Failed("the log was reached before".into()))
    }

    /// Until Kafka is reached, these databases have topics with these ids, numbers of partitions,
    /// and starts of the partitions.
    pub fn remember<'i>(&self, known: impl Iterator<Item = (u16, &'i str, u32, Vec<u64>)>) {
        let topics = self.config.topics();
        let identity = |(database, id, partitions, starts): (u16, &str, u32, Vec<u64>)| {
            let Mapped { topic, read_only } = topics.get(usize::from(database))?.clone();
            let identity = TopicIdentity {
                topic,
                id: id.to_owned(),
                partitions,
                partitioner: self.config.partitioner.name(),
                read_only,
                starts,
            };
            Some((database, identity))
        };
        self.remembered.get_or_init(|| known.filter_map(identity).collect());
    }

    fn live(&self) -> Result<&Live, LogError> {
        self.live.get().ok_or_else(|| LogError::Unreachable(self.not_reached()))
    }

    /// Why Kafka has not been reached yet.
    fn not_reached(&self) -> String {
        let cause = self
            .health
            .outage()
            .map_or(String::new(), |outage| format!(": {}", outage.cause));
        let servers = &self.config.bootstrap_servers;
        format!("Kafka at {servers} has not been reached since this node was started{cause}")
    }

    fn topic(&self, database: u16) -> Option<Arc<Topic>> {
        self.live.get()?.topics.topic(database)
    }

    /// Messages between the nodes of this log.
    pub fn broadcasts(&self) -> Arc<dyn Broadcast> {
        Arc::new(Broadcasts::new(&self.config, &self.health))
    }

    /// Whether the cluster answered when it was last asked.
    pub fn connected(&self) -> bool {
        self.live.get().is_some_and(|live| live.topics.connected())
    }

    fn stop_watch(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(watch) = self.watch.lock().take() {
            // The thread has reported it if it panicked.
            let _ = watch.join();
        }
    }
}

/// `longest`: how long a step may take, also without a broker.
fn watch(topics: &Topics, lane: &Lane, open: &OpenTransactions, stop: &AtomicBool, longest: Duration) {
    let (mut looked, mut thorough) = (Instant::now(), Instant::now());
    while !stop.load(Ordering::Acquire) {
        supervise::busy(longest);
        topics.idle(TICK);
        lane.mend();
        let wait = if topics.hurries() { HURRY } else { WATCH };
        if looked.elapsed() < wait {
            continue;
        }
        let depth = if thorough.elapsed() < THOROUGH {
            Depth::News
        } else {
            Depth::Thorough
        };
        if let Err((code, text)) = topics.refresh(WATCH, depth) {
            tracing::debug!(error = ?code, "cannot look at the topics: {text}");
        } else if depth == Depth::Thorough {
            thorough = Instant::now();
        }
        if let Err(error) = open.look(WATCH) {
            tracing::debug!(%error, "cannot look for open transactions");
        }
        looked = Instant::now();
    }
}

impl Log for KafkaLog {
    fn describe(&self) -> String {
        let topics = self.config.topics();
        format!("kafka {} topic {}", self.config.bootstrap_servers, topics[0].topic)
    }

    fn kind(&self) -> &'static str {
        "kafka"
    }

    fn identity(&self, database: u16) -> Option<TopicIdentity> {
        match self.live.get() {
            Some(live) => live.topics.topic(database).map(|topic| topic.identity.clone()),
            None => self.remembered.get()?.get(&database).cloned(),
        }
    }

    fn create(&self, database: u16) -> Result<(), LogError> {
        self.live()?.topics.create(database, CREATE)
    }

    fn partition(&self, database: u16, key: &[u8]) -> u32 {
        let key = home_key(key);
        let Some(live) = self.live.get() else {
            let known = self.remembered.get().and_then(|known| known.get(&database));
            return known.map_or(0, |topic| self.config.partitioner.partition(key, topic.partitions));
        };
        let states = live.topics.states();
        let topic = states.get(usize::from(database)).and_then(|state| state.usable());
        topic.map_or(0, |topic| {
            self.config.partitioner.partition(key, topic.identity.partitions)
        })
    }

    fn max_record_bytes(&self, database: u16) -> usize {
        self.topic(database)
            .map_or(topics::NEW_TOPIC_RECORD_BYTES, |topic| topic.max_record_bytes())
    }

    fn durability(&self, database: u16) -> Durability {
        let copies = self.topic(database).map_or(1, |topic| topic.copies);
        Durability {
            copies,
            on_disk_here: false,
        }
    }

    fn tombstone_retention(&self, database: u16) -> Option<Duration> {
        Some(self.topic(database)?.tombstone_retention)
    }

    fn loses_records(&self, database: u16) -> bool {
        self.topic(database).is_some_and(|topic| topic.loses_records)
    }

    fn chains(&self) -> bool {
        false
    }

    fn epoch(&self) -> u64 {
        0
    }

    fn produce(&self, mut batch: Batch, _epoch: u64) {
        let Some(live) = self.live.get() else {
            let refused = ProduceError::NotWritten(self.not_reached());
            return batch.completion.complete(Err(refused));
        };
        match (batch.records.len(), &batch.condition) {
            (0, _) => batch.completion.complete(Ok(&[])),
            (1, None) => {
                let record = batch.records.remove(0);
                live.lane.produce(record, batch.completion);
            }
            _ => live.transactions.produce(batch),
        }
    }

    fn ends(&self, timeout: Duration) -> Result<Positions, LogError> {
        self.live()?.topics.ends(timeout)
    }

    fn look(&self, timeout: Duration) -> Result<(), LogError> {
        let looked = self.live()?.topics.refresh(timeout, Depth::News);
        looked.map_err(|(_, text)| LogError::Failed(format!("cannot look for topics: {text}")))
    }

    fn follow(&self, from: &Positions) -> Result<Box<dyn Follower>, LogError> {
        self.follow_marked(from, &Marks::new())
    }

    fn follow_marked(&self, from: &Positions, marks: &Marks) -> Result<Box<dyn Follower>, LogError> {
        let live = self.live()?;
        live.transactions.reads_anew();
        Ok(Box::new(KafkaFollower::start_marked(
            &self.config,
            &live.topics,
            &self.health,
            from,
            marks,
            Isolation::Committed,
        )?))
    }

    fn incomplete(&self, database: u16) -> Option<String> {
        let Some(live) = self.live.get() else {
            return Some(self.not_reached());
        };
        live.topics.topic(database)?.grown(live.topics.servers())
    }

    fn refuses_writes(&self, database: u16) -> Option<String> {
        self.topic(database)?.unsafe_policy.clone()
    }

    fn outage(&self) -> Option<Outage> {
        let Outage { cause, since } = self.health.outage()?;
        let servers = &self.config.bootstrap_servers;
        let cause = format!("cannot reach Kafka at {servers}: {cause}");
        // Once Kafka has been reached, the settings are known to be right.
        let remedy = self.health.last().filter(|_| self.live.get().is_none());
        let cause = match remedy {
            Some((trouble, _)) => format!("{cause}; {}", trouble.remedy()),
            None => cause,
        };
        Some(Outage { cause, since })
    }

    fn held_up(&self, at: Option<TopicPartition>) -> Option<String> {
        self.live.get()?.open.held_up(at)
    }

    fn counts(&self) -> LogCounts {
        match self.live.get() {
            Some(live) => live.transactions.counts(),
            None => LogCounts::None,
        }
    }

    fn close(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        if let Some(live) = self.live.get() {
            live.transactions.close(timeout);
            live.lane.close(end.saturating_duration_since(Instant::now()));
        }
        self.stop_watch();
    }
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        self.stop_watch();
    }
}
