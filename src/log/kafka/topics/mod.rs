//! Which topic each database is, and in what state: found, created, verified, watched. This module
//! owns every question to the cluster about topics, and knows nothing of records.
//!
//! What is known is published as a whole ([`Topics::states`]) with a generation that grows at each
//! change. So readers take a snapshot, and followers see that something changed.

mod create;
mod offsets;
mod refresh;

use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};

use super::config::{Config, LARGEST_RECEIVE_BYTES, Mapped, Sizes};
use super::context::{Context, Health, Question, Trouble, describe_error};
use super::ffi::{self, CallError, topic_name};
use crate::log::{LogError, TopicIdentity};

/// Largest record of a topic that is created here.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// librdkafka's default, good for every topic that takes batches of this size.
pub(super) const BATCH_BYTES: usize = 1_000_000;
/// The bytes that Kafka puts around a record and its batch, with room to spare.
const FRAMING_BYTES: usize = 128;
/// The largest record of a topic that does not exist yet.
pub(super) const NEW_TOPIC_RECORD_BYTES: usize = MAX_MESSAGE_BYTES - FRAMING_BYTES;
/// A batch of text or JSON is rarely compressed by more than this factor.
const COMPRESSION: usize = 16;
/// librdkafka's default of `receive.message.max.bytes`.
const RECEIVE_BYTES: usize = 100_000_000;
/// The least number of librdkafka's events that are handled in one go.
const EVENTS: usize = 32;
/// How long one question to the cluster may take.
const ASK: Duration = Duration::from_secs(3);

#[derive(Clone, PartialEq)]
pub(super) struct Topic {
    pub identity: TopicIdentity,
    pub max_message_bytes: usize,
    pub tombstone_retention: Duration,
    /// The least number of brokers that have an acknowledged record.
    pub copies: u32,
    /// It is read-only, and its cleanup policy is not that of a compacted topic.
    pub loses_records: bool,
    /// How many partitions the topic has by now, if that grew. Keys have other homes since then, so
    /// only the original partitions are read, and nothing is written.
    pub grown_to: Option<u32>,
    /// Why nothing is written: its cleanup policy was changed.
    pub unsafe_policy: Option<String>,
}

impl Topic {
    pub fn max_record_bytes(&self) -> usize {
        self.max_message_bytes.saturating_sub(FRAMING_BYTES)
    }

    /// The warning about a topic, on these brokers, that has more partitions by now.
    pub fn grown(&self, servers: &str) -> Option<String> {
        let (topic, before, now) = (&self.identity.topic, self.identity.partitions, self.grown_to?);
        Some(format!(
            "topic {topic} has {now} partitions now, not {before}: its keys have other homes; move it to a new topic with: \
             highwater copy --bootstrap-servers {servers} --topic {topic} --to-topic {topic}-{now} (or restart this node to read it anew)"
        ))
    }
}

/// How closely a refresh looks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Topics that have come, have gone or were recreated.
    News,
    /// Also the settings of all topics, and whether a refused one was mended.
    Thorough,
}

#[derive(Clone)]
pub(super) enum TopicState {
    Absent,
    Usable(Arc<Topic>),
    /// It exists, but cannot be used, for this reason.
    Refused(String),
}

impl TopicState {
    pub fn usable(&self) -> Option<&Arc<Topic>> {
        match self {
            TopicState::Usable(topic) => Some(topic),
            TopicState::Absent | TopicState::Refused(_) => None,
        }
    }
}

pub(super) struct Topics {
    config: Arc<Config>,
    health: Arc<Health>,
    names: Vec<Mapped>,
    cluster: String,
    questions: BaseConsumer<Context>,
    states: ArcSwap<Vec<TopicState>>,
    generation: AtomicU64,
    /// Held by the thread that finds out and publishes. Since when each topic is missing.
    missing: Mutex<Vec<Option<Instant>>>,
    connected: AtomicBool,
    hurry: AtomicBool,
}

impl Topics {
    /// Reaches the cluster and finds or creates the topics that have to be there.
    pub fn connect(config: &Arc<Config>, health: &Arc<Health>, patience: Duration) -> Result<Topics, LogError> {
        let end = Instant::now() + patience;
        let questions: BaseConsumer<Context> = config
            .questions()
            .create_with_context(Context::new(health))
            .map_err(|error| LogError::Failed(describe_error(&error)))?;
        let names = config.topics();
        let mut topics = Topics {
            config: Arc::clone(config),
            health: Arc::clone(health),
            states: ArcSwap::from_pointee(vec![TopicState::Absent; names.len()]),
            missing: Mutex::new(vec![None; names.len()]),
            names,
            cluster: String::new(),
            questions,
            generation: AtomicU64::new(0),
            connected: AtomicBool::new(true),
            hurry: AtomicBool::new(false),
        };
        topics.wait_for_cluster(end)?;
        let cluster = topics.questions.client().fetch_cluster_id(ASK);
        topics.cluster = cluster.unwrap_or_default();
        topics
            .refresh(remaining(end), Depth::Thorough)
            .map_err(|failure| topics.unreachable(&failure))?;
        topics.require_topics(end)?;
        Ok(topics)
    }

    /// The name of the topic of a database that is in range.
    pub fn name(&self, database: u16) -> &str {
        &self.names[usize::from(database)].topic
    }

    /// The same for all databases, as librdkafka takes them.
    pub fn native_names(&self) -> impl Iterator<Item = CString> + '_ {
        self.names.iter().map(|mapped| topic_name(&mapped.topic))
    }

    pub fn servers(&self) -> &str {
        &self.config.bootstrap_servers
    }

    pub fn states(&self) -> arc_swap::Guard<Arc<Vec<TopicState>>> {
        self.states.load()
    }

    pub fn topic(&self, database: u16) -> Option<Arc<Topic>> {
        self.states.load().get(usize::from(database))?.usable().cloned()
    }

    /// Grows at each change of [`states`](Topics::states).
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Something happened that a look at the topics may explain.
    pub fn hurry(&self) {
        self.hurry.store(true, Ordering::Relaxed);
    }

    /// True from [`Topics::hurry`] until the next refresh.
    pub fn hurries(&self) -> bool {
        self.hurry.load(Ordering::Relaxed)
    }

    /// What a producer for all writable topics needs.
    pub fn sizes(&self) -> Sizes {
        let states = self.states.load();
        let writable = states
            .iter()
            .filter_map(TopicState::usable)
            .filter(|topic| !topic.identity.read_only);
        let limits = || writable.clone().map(|topic| topic.max_message_bytes);
        Sizes {
            message: limits().max().unwrap_or(0).max(MAX_MESSAGE_BYTES),
            batch: limits().min().unwrap_or(BATCH_BYTES).clamp(1024, BATCH_BYTES),
        }
    }

    /// What a follower has to receive: room for a batch of any topic, also unpacked.
    pub fn receive_bytes(&self) -> usize {
        let states = self.states.load();
        let limits = states
            .iter()
            .filter_map(TopicState::usable)
            .map(|topic| topic.max_message_bytes);
        let largest = limits.max().unwrap_or(0).max(MAX_MESSAGE_BYTES);
        largest
            .saturating_mul(COMPRESSION)
            .clamp(RECEIVE_BYTES, LARGEST_RECEIVE_BYTES)
    }

    /// Handles librdkafka's events after a pause of `pause`.
    pub fn idle(&self, pause: Duration) {
        // A poll that waits would spin through its last millisecond.
        std::thread::sleep(pause);
        for _ in 0..EVENTS {
            // An error goes to the context, and nothing says whether there is another.
            let _ = self.questions.poll(Duration::ZERO);
        }
    }

    fn wait_for_cluster(&self, end: Instant) -> Result<(), LogError> {
        loop {
            let patience = remaining(end)
                .min(Duration::from_secs(1))
                .max(Duration::from_millis(100));
            let asked = ffi::describe_topics(self.questions.client(), &self.all_names(), patience);
            self.idle(Duration::from_millis(20));
            match asked {
                Ok(_) => {
                    self.health.clear();
                    self.health.answered(Question::Topics);
                    return Ok(());
                }
                Err(failure) => {
                    self.health.unanswered(Question::Topics, failure.1.clone());
                    let refused = self
                        .health
                        .last()
                        .is_some_and(|(trouble, _)| trouble == Trouble::Refused);
                    if refused || Instant::now() >= end {
                        return Err(self.unreachable(&failure));
                    }
                }
            }
        }
    }

    fn unreachable(&self, failure: &CallError) -> LogError {
        let servers = &self.config.bootstrap_servers;
        match self.health.last() {
            Some((Trouble::Refused, cause)) => LogError::Failed(format!(
                "Kafka at {servers} does not let us in: {cause}; {}",
                Trouble::Refused.remedy()
            )),
            last => {
                let (trouble, cause) = last.unwrap_or_else(|| (Trouble::Unreachable, failure.1.clone()));
                let remedy = trouble.remedy();
                LogError::Unreachable(format!("cannot reach Kafka at {servers}: {cause}; {remedy}"))
            }
        }
    }

    fn note_connection(&self, failure: Option<&CallError>) {
        match failure {
            Some((_, text)) => self.health.unanswered(Question::Topics, text.clone()),
            None => self.health.answered(Question::Topics),
        }
        let connected = failure.is_none();
        let was = self.connected.swap(connected, Ordering::Relaxed);
        match (was, failure) {
            (true, Some((_, text))) => {
                let cause = self.health.last().map_or_else(|| text.clone(), |(_, cause)| cause);
                tracing::warn!(cause, "lost the connection to Kafka");
            }
            (false, None) => tracing::info!("connected to Kafka again"),
            _ => {}
        }
        if connected {
            self.health.clear();
        }
    }

    fn all_names(&self) -> Vec<&str> {
        self.names.iter().map(|mapped| mapped.topic.as_str()).collect()
    }

    fn identity(&self, topic_id: &str) -> String {
        format!("{}/{topic_id}", self.cluster)
    }
}

fn remaining(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now())
}

#[cfg(test)]
impl Topics {
    /// Topics as if they had been found this way, on a cluster that cannot be asked for their
    /// settings.
    pub fn fixed(config: &Arc<Config>, health: &Arc<Health>, found: Vec<Topic>) -> Topics {
        let context = Context::new(health);
        Topics {
            config: Arc::clone(config),
            health: Arc::clone(health),
            names: config.topics(),
            cluster: String::new(),
            questions: config
                .questions()
                .create_with_context(context)
                .expect("create a client"),
            missing: Mutex::new(vec![None; found.len()]),
            states: ArcSwap::from_pointee(
                found
                    .into_iter()
                    .map(|topic| TopicState::Usable(Arc::new(topic)))
                    .collect(),
            ),
            generation: AtomicU64::new(1),
            connected: AtomicBool::new(true),
            hurry: AtomicBool::new(false),
        }
    }
}
