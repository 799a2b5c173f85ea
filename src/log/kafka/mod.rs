//! The log on Apache Kafka, by rdkafka.
//!
//! Reading order: [`KafkaLog`] here is the whole; `config` its settings and librdkafka's; `topics` which topic each
//! database is, found, created, verified and watched (`admin` does the creating); `producer` the way of a plain write (`gate`: when it goes out),
//! `transactions` that of a write with a condition or of several records;
//! `follower` the way back; `open_transactions` what holds it up; `codec` the record's form in Kafka (`docs/topic-format.md`); `partitioner` the home of a
//! key; `polled` a producer and its thread; `context` what librdkafka tells beside records; `ffi` the few calls that rdkafka does not wrap.
//!
//! Clients, each with librdkafka's own threads: one for questions, one producer, two transactional producers, one consumer per
//! follower, and one for the moment when a topic is created or its settings are read. A thread of our own (`watch`) looks at the topics
//! every few seconds and puts a new producer in the place of a broken one.

mod admin;
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

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use config::Isolation;
pub use config::{Config, Mapped};
pub use partitioner::Partitioner;

use self::context::Health;
use self::follower::KafkaFollower;
use self::open_transactions::OpenTransactions;
use self::producer::Lane;
use self::topics::{Depth, Topics};
use self::transactions::TransactionLane;
use super::{Batch, Durability, Follower, Log, LogError, Marks, Positions, TopicIdentity, TopicPartition};
use crate::supervise;

/// How often the topics are looked at: so long a database that another node created may stay unnoticed.
const WATCH: Duration = Duration::from_secs(2);
/// The same when something happened that the topics may explain.
const HURRY: Duration = Duration::from_millis(500);
/// How often their settings are read anew, and refused ones given another chance.
const THOROUGH: Duration = Duration::from_secs(30);
/// What a look at all topics, or the end of a producer, may take beside the wait for writes under way.
const WATCH_STEP: Duration = Duration::from_secs(60);
/// How often the watch looks whether it has something to do, or to stop.
const TICK: Duration = Duration::from_millis(100);
/// Creating a topic at its first write.
const CREATE: Duration = Duration::from_secs(10);

pub struct KafkaLog {
    config: Arc<Config>,
    health: Arc<Health>,
    topics: Arc<Topics>,
    lane: Arc<Lane>,
    transactions: TransactionLane,
    open: Arc<OpenTransactions>,
    stop: Arc<AtomicBool>,
    watch: Mutex<Option<JoinHandle<Option<()>>>>,
}

impl KafkaLog {
    /// Reaches Kafka within the startup timeout, creates or verifies the topics. Blocking.
    pub fn connect(config: Config) -> Result<KafkaLog, LogError> {
        config.check().map_err(LogError::Failed)?;
        let config = Arc::new(config);
        let health = Arc::new(Health::default());
        let topics = Arc::new(Topics::connect(&config, &health)?);
        let lane = Arc::new(Lane::start(&config, &topics, &health)?);
        let transactions = TransactionLane::start(&config, &topics, &health)?;
        let open = Arc::new(OpenTransactions::new(&config, &topics, &health));
        let stop = Arc::new(AtomicBool::new(false));
        let watch = {
            let (topics, lane, stop) = (Arc::clone(&topics), Arc::clone(&lane), Arc::clone(&stop));
            let open = Arc::clone(&open);
            let watch_time = config.write_timeout * 2 + WATCH_STEP;
            supervise::thread(&supervise::KAFKA_WATCH, move || {
                watch(&topics, &lane, &open, &stop, watch_time)
            })
        };
        let watch = watch.map_err(|error| LogError::Failed(format!("cannot start a thread: {error}")))?;
        Ok(KafkaLog {
            config,
            health,
            topics,
            lane,
            transactions,
            open,
            stop,
            watch: Mutex::new(Some(watch)),
        })
    }

    /// Whether the cluster answered when it was last asked.
    pub fn connected(&self) -> bool {
        self.topics.connected()
    }

    fn stop_watch(&self) {
        self.stop.store(true, Ordering::Release);
        if let Some(watch) = self.watch.lock().take() {
            // It has told if it panicked.
            let _ = watch.join();
        }
    }
}

/// `longest`: what a step may take, without a broker too.
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
        format!("kafka {} topic {}", self.config.bootstrap_servers, self.topics.name(0))
    }

    fn kind(&self) -> &'static str {
        "kafka"
    }

    fn identity(&self, database: u16) -> Option<TopicIdentity> {
        self.topics.topic(database).map(|topic| topic.identity.clone())
    }

    fn create(&self, database: u16) -> Result<(), LogError> {
        self.topics.create(database, CREATE)
    }

    fn partition(&self, database: u16, key: &[u8]) -> u32 {
        let states = self.topics.states();
        let topic = states.get(usize::from(database)).and_then(|state| state.usable());
        topic.map_or(0, |topic| {
            self.config.partitioner.partition(key, topic.identity.partitions)
        })
    }

    fn max_record_bytes(&self, database: u16) -> usize {
        self.topics
            .topic(database)
            .map_or(topics::NEW_TOPIC_RECORD_BYTES, |topic| topic.max_record_bytes())
    }

    fn durability(&self, database: u16) -> Durability {
        let copies = self.topics.topic(database).map_or(1, |topic| topic.copies);
        Durability {
            copies,
            on_disk_here: false,
        }
    }

    fn tombstone_retention(&self, database: u16) -> Option<Duration> {
        Some(self.topics.topic(database)?.tombstone_retention)
    }

    fn chains(&self) -> bool {
        false
    }

    fn epoch(&self) -> u64 {
        0
    }

    fn produce(&self, mut batch: Batch, _epoch: u64) {
        match (batch.records.len(), &batch.condition) {
            (0, _) => batch.completion.complete(Ok(&[])),
            (1, None) => {
                let record = batch.records.remove(0);
                self.lane.produce(record, batch.completion);
            }
            _ => self.transactions.produce(batch),
        }
    }

    fn ends(&self, timeout: Duration) -> Result<Positions, LogError> {
        self.topics.ends(timeout)
    }

    fn look(&self, timeout: Duration) -> Result<(), LogError> {
        let looked = self.topics.refresh(timeout, Depth::News);
        looked.map_err(|(_, text)| LogError::Failed(format!("cannot look for topics: {text}")))
    }

    fn follow(&self, from: &Positions) -> Result<Box<dyn Follower>, LogError> {
        self.follow_marked(from, &Marks::new())
    }

    fn follow_marked(&self, from: &Positions, marks: &Marks) -> Result<Box<dyn Follower>, LogError> {
        self.transactions.reads_anew();
        Ok(Box::new(KafkaFollower::start_marked(
            &self.config,
            &self.topics,
            &self.health,
            from,
            marks,
            Isolation::Committed,
        )?))
    }

    fn incomplete(&self, database: u16) -> Option<String> {
        self.topics.topic(database)?.grown(self.topics.servers())
    }

    fn held_up(&self, at: Option<TopicPartition>) -> Option<String> {
        self.open.held_up(at)
    }

    fn close(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        self.transactions.close(timeout);
        self.lane.close(end.saturating_duration_since(Instant::now()));
        self.stop_watch();
    }
}

impl Drop for KafkaLog {
    fn drop(&mut self) {
        self.stop_watch();
    }
}
