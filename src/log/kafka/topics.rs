//! Which topic each database is, and in what state: found, created, verified, watched. This module
//! owns every question to the cluster about topics, and knows nothing of records.
//!
//! What is known is published as a whole ([`Topics::states`]) with a generation that grows at each
//! change. So readers take a snapshot, and followers see that something changed.

use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

use super::admin::{Admin, Settings};
use super::config::{Config, LARGEST_RECEIVE_BYTES, Mapped, Sizes};
use super::context::{Context, Health, Question, Trouble, describe_code, describe_error};
use super::ffi::{self, Described, Failure, topic_name};
use crate::log::{LogError, Positions, TopicIdentity, TopicPartition};

/// Largest record of a topic that is created here.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// Kafka's default, for topics whose settings this node may not see.
const TOMBSTONES_KEPT_MS: usize = 24 * 60 * 60 * 1000;
/// The cleanup policy of such a topic.
const UNKNOWN: &str = "unknown";
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
/// How long an answer of the known leaders is waited for before the leaders are looked up again;
/// twice as long the next time.
const ONE_ANSWER: Duration = Duration::from_millis(500);
/// How long a topic has to be missing before it counts as deleted: a broker that has just started
/// may not know all topics yet.
const GONE: Duration = Duration::from_secs(4);

#[derive(Clone, PartialEq)]
pub(super) struct Topic {
    pub identity: TopicIdentity,
    pub max_message_bytes: usize,
    pub tombstone_retention: Duration,
    /// The least number of brokers that have an acknowledged record.
    pub copies: u32,
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
pub(super) enum State {
    Absent,
    Usable(Arc<Topic>),
    /// It exists, but cannot be used, for this reason.
    Refused(String),
}

impl State {
    pub fn usable(&self) -> Option<&Arc<Topic>> {
        match self {
            State::Usable(topic) => Some(topic),
            State::Absent | State::Refused(_) => None,
        }
    }
}

pub(super) struct Topics {
    config: Arc<Config>,
    health: Arc<Health>,
    names: Vec<Mapped>,
    cluster: String,
    questions: BaseConsumer<Context>,
    states: ArcSwap<Vec<State>>,
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
            states: ArcSwap::from_pointee(vec![State::Absent; names.len()]),
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

    pub fn states(&self) -> arc_swap::Guard<Arc<Vec<State>>> {
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
            .filter_map(State::usable)
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
            .filter_map(State::usable)
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

    /// Looks at all topics with one question, and publishes what changed.
    pub fn refresh(&self, timeout: Duration, depth: Depth) -> Result<(), Failure> {
        let mut missing = self.missing.lock();
        self.hurry.store(false, Ordering::Relaxed);
        let answer = ffi::describe_topics(self.questions.client(), &self.all_names(), timeout.min(ASK));
        self.note_connection(answer.as_ref().err());
        let now = self.states.load_full();
        let mut suspects = Vec::new();
        for (at, described) in answer?.into_iter().enumerate() {
            let absent = matches!(described, Err((RDKafkaErrorCode::UnknownTopicOrPartition, _)));
            missing[at] = absent.then(|| missing[at].unwrap_or_else(Instant::now));
            match described {
                Ok(described) if described.served => {
                    if depth == Depth::Thorough || self.is_news(&now[at], &described) {
                        suspects.push((at, described));
                    }
                }
                // There is a leader soon.
                Ok(_) => {}
                Err(_) if absent => {}
                Err((code, text)) => self.not_described(at, code, &text),
            }
        }
        let gone = |at: &usize| missing[*at].is_some_and(|since| since.elapsed() >= GONE);
        let gone: Vec<usize> = (0..now.len())
            .filter(|at| gone(at) && !matches!(now[*at], State::Absent))
            .collect();
        self.publish(suspects, &gone)
    }

    /// True for a topic that was not there, or not the same. (A refused topic is looked at again in
    /// a thorough refresh.)
    fn is_news(&self, now: &State, described: &Described) -> bool {
        match now {
            State::Absent => true,
            State::Refused(_) => false,
            State::Usable(topic) => !self.is_same(topic, described),
        }
    }

    fn is_same(&self, topic: &Topic, described: &Described) -> bool {
        let partitions = topic.grown_to.unwrap_or(topic.identity.partitions);
        topic.identity.id == self.identity(&described.id) && partitions == described.partitions
    }

    fn publish(&self, suspects: Vec<(usize, Described)>, gone: &[usize]) -> Result<(), Failure> {
        let names: Vec<&str> = suspects.iter().map(|(at, _)| self.names[*at].topic.as_str()).collect();
        let settings = match names.is_empty() {
            true => Vec::new(),
            false => Admin::connect(&self.config, &self.health)?.settings(&names, ASK)?,
        };
        let mut states = Vec::clone(&self.states.load());
        let mut changed = !gone.is_empty();
        for ((at, described), settings) in suspects.into_iter().zip(settings) {
            if let Some(state) = self.judge(at, &states[at], &described, settings) {
                states[at] = state;
                changed = true;
            }
        }
        for at in gone {
            tracing::warn!(topic = self.names[*at].topic, "the topic was deleted");
            states[*at] = State::Absent;
        }
        changed |= self.find_starts(&mut states);
        if changed {
            self.states.store(Arc::new(states));
            self.generation.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    /// Asks where the partitions of all writable topics begin. Returns true if a topic's records
    /// were deleted since the last time it was asked.
    fn find_starts(&self, states: &mut [State]) -> bool {
        let found = self
            .ask_for(Offset::Beginning, states, |topic| !topic.identity.read_only)
            .and_then(|asked| self.questions.offsets_for_times(asked, ONE_ANSWER))
            .map_err(|error| describe_error(&error))
            .and_then(|list| read_offsets(states, &list));
        let found = match found {
            Ok(found) => found,
            Err(cause) => {
                tracing::debug!(cause, "cannot ask where the topics begin");
                return false;
            }
        };
        let mut changed = false;
        for (database, state) in (0..).zip(states) {
            let State::Usable(topic) = state else { continue };
            let place = |partition| TopicPartition { database, partition };
            let mut starts: Vec<u64> = (0..topic.identity.partitions)
                .map_while(|partition| found.get(&place(partition)).copied())
                .collect();
            if starts.iter().all(|start| *start == 0) {
                starts.clear();
            }
            if topic.identity.starts != starts {
                Arc::make_mut(topic).identity.starts = starts;
                changed = true;
            }
        }
        changed
    }

    /// A question for the offsets of all partitions of these topics.
    fn ask_for(
        &self,
        offset: Offset,
        states: &[State],
        wanted: impl Fn(&Topic) -> bool,
    ) -> Result<TopicPartitionList, KafkaError> {
        let mut asked = TopicPartitionList::new();
        for topic in states.iter().filter_map(State::usable).filter(|topic| wanted(topic)) {
            for partition in 0..topic.identity.partitions {
                asked.add_partition_offset(&topic.identity.topic, partition as i32, offset)?;
            }
        }
        Ok(asked)
    }

    /// The new state of a topic; `None` if it stays what it is. Logs what is new.
    fn judge(
        &self,
        at: usize,
        now: &State,
        described: &Described,
        settings: Result<Settings, RDKafkaErrorCode>,
    ) -> Option<State> {
        let name = &self.names[at].topic;
        let policy = settings
            .as_ref()
            .ok()
            .and_then(|settings| settings.text("cleanup.policy"));
        let is_compacted = policy.is_none_or(|policy| policy == "compact");
        let (mut new, warnings) = self.verify(at, described, settings);
        let same = now.usable().is_some_and(|topic| self.is_same(topic, described));
        if let (State::Usable(now), State::Usable(new)) = (now, &mut new) {
            *new = grown(now, new, self.servers());
            if same {
                Arc::make_mut(new).identity.starts = now.identity.starts.clone();
            }
        }
        match (now, &new) {
            (State::Usable(now), State::Usable(new)) if now == new => return None,
            (State::Usable(now), State::Usable(_)) if same && now.unsafe_policy.is_some() => {
                tracing::info!(topic = name, "the topic is compacted again: writes are taken");
            }
            (State::Refused(now), State::Refused(new)) if now == new => return None,
            // Kafka is going to delete what is in it. What is here is served, and nothing more is
            // acknowledged.
            (State::Usable(now), State::Refused(why)) if same && !is_compacted => {
                if now.unsafe_policy.as_ref() == Some(why) {
                    return None;
                }
                tracing::error!(topic = name, "writes are refused: {why}");
                let mut topic = now.clone();
                Arc::make_mut(&mut topic).unsafe_policy = Some(why.clone());
                return Some(State::Usable(topic));
            }
            // Its settings cannot be seen any more. What is here and what comes is as good as it
            // was: go on, but log it.
            (State::Usable(_), State::Refused(why)) if same => {
                tracing::error!(topic = name, "{why}");
                return None;
            }
            // At the start the caller reports it.
            (_, State::Refused(why)) if self.generation() > 0 => {
                tracing::warn!(topic = name, "{why}")
            }
            _ if same => {}
            _ => warnings
                .iter()
                .for_each(|warning| tracing::warn!(topic = name, "{warning}")),
        }
        Some(new)
    }

    /// Judges a topic as it is found, with the doubts about it.
    fn verify(
        &self,
        at: usize,
        described: &Described,
        settings: Result<Settings, RDKafkaErrorCode>,
    ) -> (State, Vec<String>) {
        let Mapped { topic: name, read_only } = &self.names[at];
        let mut doubts = Vec::new();
        // Without the right to see them there are no settings, or an error.
        let settings = match settings {
            Ok(settings) if settings.text("cleanup.policy").is_some() => settings,
            // A read-only topic needs no guarantee of this node.
            _ if *read_only => {
                doubts.push(format!("the settings of topic {name} cannot be read"));
                Settings::default()
            }
            denied => {
                let cause = denied.err().map_or("not allowed".to_owned(), describe_code);
                let why = format!("cannot read the settings of topic {name}: {cause}; allow DescribeConfigs on it");
                return (State::Refused(why), doubts);
            }
        };
        let policy = settings.text("cleanup.policy").unwrap_or(UNKNOWN);
        if policy != "compact" && !read_only {
            let why = not_compacted(&self.config.bootstrap_servers, name, policy);
            return (State::Refused(why), doubts);
        }
        doubts.extend(warnings(name, policy, described.replicas, *read_only, &settings));
        let identity = TopicIdentity {
            topic: name.clone(),
            id: self.identity(&described.id),
            partitions: described.partitions,
            partitioner: self.config.partitioner.name(),
            read_only: *read_only,
            starts: Vec::new(),
        };
        let retention = settings.number("delete.retention.ms").unwrap_or(TOMBSTONES_KEPT_MS);
        let topic = Topic {
            identity,
            max_message_bytes: settings.number("max.message.bytes").unwrap_or(1_000_000),
            tombstone_retention: Duration::from_millis(retention as u64),
            copies: settings
                .number("min.insync.replicas")
                .unwrap_or(1)
                .clamp(1, described.replicas.max(1)) as u32,
            grown_to: None,
            unsafe_policy: None,
        };
        (State::Usable(Arc::new(topic)), doubts)
    }

    /// Makes sure that the database has a usable topic.
    pub fn create(&self, database: u16, timeout: Duration) -> Result<(), LogError> {
        let end = Instant::now() + timeout;
        let at = usize::from(database);
        let Some(Mapped { topic: name, read_only }) = self.names.get(at) else {
            return Err(LogError::Failed(format!("there is no database {database}")));
        };
        let depth = match &self.states.load()[at] {
            State::Usable(_) => return Ok(()),
            State::Absent if *read_only => return Err(missing(database, name)),
            State::Absent => Depth::News,
            // Perhaps it was mended meanwhile.
            State::Refused(_) => Depth::Thorough,
        };
        if depth == Depth::News && self.create_topic(name, remaining(end))? {
            let partitions = self.config.partitions;
            tracing::info!(topic = name, partitions, "created the topic");
        }
        loop {
            let seen = self.refresh(remaining(end), depth);
            match &self.states.load()[at] {
                State::Usable(_) => return Ok(()),
                State::Refused(why) => return Err(LogError::Failed(why.clone())),
                State::Absent if Instant::now() >= end => {
                    let why = seen.err().map_or("it has no leader yet".to_owned(), |(_, text)| text);
                    return Err(cannot_create(name, &why));
                }
                State::Absent => self.idle(Duration::from_millis(20)),
            }
        }
    }

    /// Returns true if the topic was not there.
    fn create_topic(&self, name: &str, timeout: Duration) -> Result<bool, LogError> {
        let failed = |(_, text): Failure| cannot_create(name, &text);
        let admin = Admin::connect(&self.config, &self.health).map_err(failed)?;
        let replicas = match self.config.replication_factor {
            Some(factor) => Some(factor),
            None => {
                ffi::any_broker(self.questions.client(), ASK).and_then(|broker| admin.default_replication(broker, ASK))
            }
        };
        // Every replica but one may be lost without losing what was acknowledged, and writes go on
        // without one replica.
        let in_sync = if replicas.is_some_and(|replicas| replicas >= 3) {
            "2"
        } else {
            "1"
        };
        let bytes = MAX_MESSAGE_BYTES.to_string();
        let settings = [
            ("cleanup.policy", "compact"),
            ("max.message.bytes", bytes.as_str()),
            ("min.insync.replicas", in_sync),
            ("unclean.leader.election.enable", "false"),
        ];
        let partitions = self.config.partitions;
        admin
            .create_topic(name, partitions, self.config.replication_factor, &settings, timeout)
            .map_err(failed)
    }

    /// Database 0 and the databases that somebody mapped have to be usable. The others are only
    /// logged.
    fn require_topics(&self, end: Instant) -> Result<(), LogError> {
        if !self.names[0].read_only {
            self.create(0, remaining(end).max(ASK))?;
        }
        let states = self.states.load_full();
        let mut others = Vec::new();
        for (at, state) in states.iter().enumerate() {
            let database = at as u16;
            let wanted = database == 0 || self.config.mapped.contains_key(&database);
            match state {
                State::Absent if wanted && self.names[at].read_only => {
                    return Err(missing(database, &self.names[at].topic));
                }
                State::Refused(why) if wanted => return Err(LogError::Failed(why.clone())),
                State::Refused(why) => others.push((database, why)),
                State::Absent | State::Usable(_) => {}
            }
        }
        if let Some((first, why)) = others.first() {
            let more = others.len() - 1;
            tracing::warn!(
                "database {first} and {more} others cannot be used (--databases says how many there are): {why}"
            );
        }
        Ok(())
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

    fn unreachable(&self, failure: &Failure) -> LogError {
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

    fn note_connection(&self, failure: Option<&Failure>) {
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

    /// Handles a topic that this node may not even look at, or one with an impossible name.
    fn not_described(&self, at: usize, code: RDKafkaErrorCode, text: &str) {
        let name = &self.names[at].topic;
        if code == RDKafkaErrorCode::LeaderNotAvailable || !matches!(self.states.load()[at], State::Absent) {
            tracing::debug!(topic = name, error = ?code, "{text}");
            return;
        }
        let mut states = Vec::clone(&self.states.load());
        states[at] = State::Refused(format!(
            "cannot use topic {name}: {}; allow Describe, Read and Write on it",
            describe_code(code)
        ));
        self.states.store(Arc::new(states));
    }

    /// The last stable offset of every partition: every transaction before it has ended.
    pub fn stable_ends(&self, timeout: Duration) -> Result<Positions, LogError> {
        let states = self.states.load_full();
        let asked = self
            .ask_for(Offset::End, &states, |_| true)
            .map_err(|error| LogError::Failed(describe_error(&error)))?;
        if asked.count() == 0 {
            return Ok(Positions::new());
        }
        let answer = ffi::stable_offsets(self.questions.client(), &asked, timeout)
            .map_err(|(_, text)| text)
            .and_then(|list| read_offsets(&states, &list));
        answer.map_err(|cause| LogError::Failed(format!("cannot ask Kafka for open transactions: {cause}")))
    }

    /// The high watermark of every partition.
    pub fn ends(&self, timeout: Duration) -> Result<Positions, LogError> {
        let end = Instant::now() + timeout;
        let states = self.states.load_full();
        let asked = self
            .ask_for(Offset::End, &states, |_| true)
            .map_err(|error| LogError::Failed(describe_error(&error)))?;
        if asked.count() == 0 {
            return Ok(Positions::new());
        }
        let mut patience = ONE_ANSWER;
        loop {
            let answer = self
                .questions
                .offsets_for_times(asked.clone(), remaining(end).min(patience));
            match answer
                .map_err(|error| describe_error(&error))
                .and_then(|list| read_offsets(&states, &list))
            {
                Ok(positions) => {
                    self.health.answered(Question::Ends);
                    return Ok(positions);
                }
                Err(cause) if Instant::now() >= end => {
                    self.health.unanswered(Question::Ends, cause.clone());
                    let cause = self.health.last().map_or(cause, |(_, cause)| cause);
                    return Err(LogError::Failed(format!(
                        "cannot ask Kafka for the end of the log: {cause}"
                    )));
                }
                Err(_) => {
                    self.find_leaders(&states, remaining(end).min(patience));
                    self.idle(Duration::from_millis(20).min(remaining(end)));
                    // Bounded: an answer that is an error may come at once, again and again.
                    patience = (patience * 2).min(ASK);
                }
            }
        }
    }

    /// Asks who leads the partitions now. By itself librdkafka goes on asking the broker that it
    /// knows of, even if that broker is lost, until its knowledge is a quarter of an hour old.
    fn find_leaders(&self, states: &[State], timeout: Duration) {
        let end = Instant::now() + timeout;
        for topic in states.iter().filter_map(State::usable) {
            let name = &topic.identity.topic;
            if let Err(error) = self.questions.fetch_metadata(Some(name), remaining(end)) {
                tracing::debug!(%error, topic = name, "cannot ask who leads a topic");
            }
        }
    }

    fn all_names(&self) -> Vec<&str> {
        self.names.iter().map(|mapped| mapped.topic.as_str()).collect()
    }

    fn identity(&self, topic_id: &str) -> String {
        format!("{}/{topic_id}", self.cluster)
    }
}

/// What Kafka answered for the partitions of these topics.
fn read_offsets(states: &[State], list: &TopicPartitionList) -> Result<Positions, String> {
    let mut positions = Positions::new();
    for element in list.elements() {
        element.error().map_err(|error| describe_error(&error))?;
        let owner = states.iter().position(|state| {
            state
                .usable()
                .is_some_and(|topic| topic.identity.topic == element.topic())
        });
        let (Some(database), Ok(partition)) = (owner, u32::try_from(element.partition())) else {
            return Err("the answer names a partition that was not asked for".into());
        };
        let at = TopicPartition {
            database: database as u16,
            partition,
        };
        match element.offset() {
            Offset::Offset(offset) if offset >= 0 => positions.insert(at, offset as u64),
            other => return Err(format!("{} has the offset {other:?}", element.topic())),
        };
    }
    Ok(positions)
}

/// The topic as it is, but without the partitions that were added to it.
fn grown(known: &Topic, found: &Arc<Topic>, servers: &str) -> Arc<Topic> {
    let same = known.identity.id == found.identity.id;
    if !same || found.identity.partitions <= known.identity.partitions {
        return found.clone();
    }
    let topic = Topic {
        identity: known.identity.clone(),
        grown_to: Some(found.identity.partitions),
        ..Topic::clone(found)
    };
    if let (Some(why), true) = (topic.grown(servers), known.grown_to != topic.grown_to) {
        tracing::error!("writes are refused, and reads that have to be new: {why}");
    }
    Arc::new(topic)
}

fn remaining(end: Instant) -> Duration {
    end.saturating_duration_since(Instant::now())
}

fn missing(database: u16, name: &str) -> LogError {
    LogError::Failed(format!(
        "database {database}: there is no topic {name}; check the name, or create it"
    ))
}

fn cannot_create(name: &str, cause: &str) -> LogError {
    LogError::Failed(format!(
        "cannot create topic {name}: {cause}; create it with cleanup.policy=compact, or allow it to be created"
    ))
}

fn not_compacted(servers: &str, name: &str, policy: &str) -> String {
    format!(
        "topic {name} has cleanup.policy={policy}, so Kafka would delete data that is still in use; make it compacted: \
         kafka-configs.sh --bootstrap-server {servers} --alter --entity-type topics --entity-name {name} \
         --add-config cleanup.policy=compact"
    )
}

/// The settings of a topic that can lose data, for a person to know.
fn warnings(name: &str, policy: &str, replicas: usize, read_only: bool, settings: &Settings) -> Vec<String> {
    let mut all = Vec::new();
    if read_only {
        if policy != "compact" && policy != UNKNOWN {
            all.push(format!("topic {name} has cleanup.policy={policy}: keys vanish from it without a delete, and stay here until the next rebuild"));
        }
        return all;
    }
    if replicas >= 3 && settings.number("min.insync.replicas") == Some(1) {
        all.push(format!("topic {name} has {replicas} replicas and min.insync.replicas=1: the loss of one broker can lose acknowledged writes; set it to 2"));
    }
    if settings.text("unclean.leader.election.enable") == Some("true") {
        all.push(format!("topic {name} has unclean.leader.election.enable=true: a failover can lose acknowledged writes; set it to false"));
    }
    all
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
            states: ArcSwap::from_pointee(found.into_iter().map(|topic| State::Usable(Arc::new(topic))).collect()),
            generation: AtomicU64::new(1),
            connected: AtomicBool::new(true),
            hurry: AtomicBool::new(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_can_lose_data_are_warned_of() {
        let settings = |all: &[(&str, &str)]| {
            Settings::from_iter(all.iter().map(|(name, value)| (name.to_string(), value.to_string())))
        };
        let good = [
            ("min.insync.replicas", "2"),
            ("unclean.leader.election.enable", "false"),
        ];
        let bad = [("min.insync.replicas", "1"), ("unclean.leader.election.enable", "true")];
        assert!(warnings("t", "compact", 3, false, &settings(&good)).is_empty());
        assert_eq!(warnings("t", "compact", 3, false, &settings(&bad)).len(), 2);
        // With one or two replicas there is nothing to demand.
        assert_eq!(warnings("t", "compact", 1, false, &settings(&bad)).len(), 1);
        assert!(warnings("t", "compact", 3, true, &settings(&bad)).is_empty());
        assert_eq!(warnings("t", "delete", 3, true, &settings(&good)).len(), 1);
    }
}
