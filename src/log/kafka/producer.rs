//! The plain lane: one idempotent producer for all topics, acknowledged by all replicas. This
//! module owns the sending of batches and the meaning of a delivery report. It knows nothing of who
//! waits for it.
//!
//! The lane takes single records that hold whatever else is in the log. A batch with a condition,
//! or with several records, goes by the other lane ([`super::transactions`]).

use std::ffi::{CStr, CString};
use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use rdkafka::ClientConfig;
use rdkafka::types::RDKafkaErrorCode;

use super::codec;
use super::config::{Config, Sizes};
use super::context::{Context, Health, describe_code, describe_error};
use super::ffi::{self, Polls as _, Status};
use super::gate::{Entered, Gate, Next, Refusal};
use super::polled::Polled;
use super::topics::{TopicState, Topics};
use crate::log::{Appended, Completion, LogError, ProduceError, Record, TopicPartition};
use crate::model::{Payload, is_control};

pub(super) struct Lane {
    config: Arc<Config>,
    topics: Arc<Topics>,
    health: Arc<Health>,
    sender: Arc<Sender>,
    /// It was logged that nothing may be written here; this is logged once.
    refusal_told: AtomicBool,
}

/// Hands records to the producer when the gate lets them out.
pub(super) struct Sender {
    /// The names of the databases' topics.
    names: Vec<CString>,
    gate: Gate,
    /// `None` before the first producer and once closed. Locked for writing only while a producer
    /// takes over from another.
    current: RwLock<Option<Producer>>,
}

struct Producer {
    inner: Polled<ffi::Producer<Context>>,
    sizes: Sizes,
    created: Instant,
}

/// How often a producer that may not write is replaced: perhaps it was allowed meanwhile.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);

impl Lane {
    pub fn start(config: &Arc<Config>, topics: &Arc<Topics>, health: &Arc<Health>) -> Result<Lane, LogError> {
        let sender = Arc::new(Sender {
            names: topics.native_names().collect(),
            gate: Gate::new(config.gate()),
            current: RwLock::new(None),
        });
        let lane = Lane {
            config: Arc::clone(config),
            topics: Arc::clone(topics),
            health: Arc::clone(health),
            sender,
            refusal_told: AtomicBool::new(false),
        };
        let producer = lane.create(topics.sizes()).map_err(LogError::Failed)?;
        *lane.sender.current.write() = Some(producer);
        Ok(lane)
    }

    pub fn produce(&self, record: Record, completion: Arc<dyn Completion>) {
        if let Err(cause) = check(&self.topics, std::slice::from_ref(&record), 0) {
            return completion.complete(Err(ProduceError::NotWritten(cause)));
        }
        match self.sender.gate.enter(Outgoing::new(record, completion)) {
            Entered::Passes(held) => self.sender.send(vec![held]),
            Entered::Waits => {}
            Entered::Refused(held, why) => {
                let why = match why {
                    Refusal::Full => QUEUE_FULL,
                    Refusal::Closed => CLOSED,
                };
                held.refuse(why.to_owned());
            }
        }
    }

    fn create(&self, sizes: Sizes) -> Result<Producer, String> {
        let settings: ClientConfig = self.config.producer(sizes);
        let sender = Arc::downgrade(&self.sender);
        let context = Context::of_producer(&self.health, Weak::clone(&sender));
        let send_overdue = move || {
            if let Some(sender) = sender.upgrade() {
                sender.send_overdue();
            }
        };
        let producer = ffi::Producer::create(&settings, context).map_err(|error| describe_error(&error))?;
        let inner = Polled::start(producer, send_overdue)?;
        Ok(Producer {
            inner,
            sizes,
            created: Instant::now(),
        })
    }

    /// Replaces a producer that is of no use any more, or whose sizes do not fit a topic that has
    /// come since. Called from time to time.
    pub fn mend(&self) {
        let seen = |now: &Producer| (now.fatal(), now.created.elapsed(), now.sizes);
        let Some((fatal, age, sizes)) = self.sender.current.read().as_ref().map(seen) else {
            return;
        };
        // The next producer likely could not write either.
        if matches!(fatal, Some((REFUSED, _))) && age < REFUSED_AGAIN {
            return;
        }
        let wanted = self.topics.sizes();
        let fits = sizes.message >= wanted.message && sizes.batch <= wanted.batch;
        if fatal.is_none() && fits {
            return;
        }
        let new = match self.create(wanted) {
            Ok(new) => new,
            Err(cause) => return tracing::error!(cause, "cannot make a new Kafka producer"),
        };
        self.sender.gate.pause();
        if fatal.is_none() {
            // Two producers know nothing of each other's order, so the old one has to finish first.
            let old = self.sender.current.read();
            if let Some(old) = old.as_ref() {
                old.wait_until_empty(self.config.write_timeout);
            }
        }
        let old = self.sender.current.write().replace(new);
        // The records that it still has are given up, and reported.
        drop(old);
        self.sender
            .gate
            .resume()
            .into_iter()
            .for_each(|next| self.sender.send(next));
        if let Some((code, text)) = fatal {
            self.tell_replaced(code, &text);
        }
    }

    fn tell_replaced(&self, code: RDKafkaErrorCode, text: &str) {
        if code != REFUSED {
            tracing::warn!(error = ?code, "the Kafka producer cannot go on and is replaced: {text}");
        } else if !self.refusal_told.swap(true, Ordering::Relaxed) {
            tracing::warn!("writes are refused until that is mended: {NO_RIGHT_TO_WRITE}; told once");
        }
    }

    /// Takes in no more records, waits for those under way, and gives up what is left then.
    pub fn close(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        self.sender.gate.close();
        while !self.sender.gate.is_empty() && Instant::now() < end {
            std::thread::sleep(AGAIN);
        }
        self.sender
            .gate
            .give_up()
            .into_iter()
            .for_each(|held| held.refuse(CLOSED.to_owned()));
        let last = self.sender.current.write().take();
        if let Some(producer) = last {
            producer.inner.context().close();
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // Not dropped by the producer's own thread, if that holds the sender just now: it would
        // wait for itself.
        let last = self.sender.current.write().take();
        drop(last);
    }
}

impl Sender {
    /// Hands records of one partition over. Records that are not taken are completed with an error.
    fn send(&self, mut batch: Next) {
        while let Some(at) = batch.first().map(Outgoing::to) {
            let mut refused = Vec::new();
            let current = self.current.read();
            for held in batch {
                let sent = match &*current {
                    Some(producer) => producer.send(&self.names[usize::from(at.database)], held),
                    None => Err((CLOSED.to_owned(), held.delivery)),
                };
                refused.extend(sent.err());
            }
            drop(current);
            // Completions are called after the lock is released: a completion may produce again.
            batch = match refused.len() {
                0 => return,
                count => self.gate.left(at, count),
            };
            for (cause, delivery) in refused {
                delivery.finish(Err(ProduceError::NotWritten(cause)));
            }
        }
    }

    /// A record is not under way any more: perhaps the next ones may go.
    pub fn left(&self, at: TopicPartition) {
        self.send(self.gate.left(at, 1));
    }

    fn send_overdue(&self) {
        self.gate.overdue().into_iter().for_each(|batch| self.send(batch));
    }
}

/// A record on its way to the producer.
pub(super) struct Outgoing {
    record: Record,
    delivery: Box<Delivery>,
}

impl Outgoing {
    pub fn new(record: Record, completion: Arc<dyn Completion>) -> Outgoing {
        let delivery = Box::new(Delivery {
            to: record.to,
            completion,
        });
        Outgoing { record, delivery }
    }

    #[cfg(test)]
    pub fn key(&self) -> &[u8] {
        &self.record.key
    }

    pub fn to(&self) -> TopicPartition {
        self.record.to
    }

    pub fn bytes(&self) -> usize {
        self.record.size()
    }

    fn refuse(self, cause: String) {
        self.delivery.finish(Err(ProduceError::NotWritten(cause)));
    }
}

/// The time between two looks whether everything has been reported.
const AGAIN: Duration = Duration::from_millis(2);

pub(super) const CLOSED: &str = "the server is stopping";

/// Refuses what is known to fail before anything is sent. `header` is the number of bytes that each
/// record's headers have beyond [`Record::size`].
pub(super) fn check(topics: &Topics, records: &[Record], header: usize) -> Result<(), String> {
    let states = topics.states();
    for record in records {
        let TopicPartition { database, partition } = record.to;
        let topic = match states.get(usize::from(database)) {
            Some(TopicState::Usable(topic)) => topic,
            Some(TopicState::Refused(why)) => return Err(why.clone()),
            _ => return Err(format!("database {database} has no topic yet")),
        };
        let name = &topic.identity.topic;
        if topic.identity.read_only {
            return Err(format!("topic {name} is read-only here"));
        }
        if let Some(why) = topic.grown(topics.servers()).or_else(|| topic.unsafe_policy.clone()) {
            return Err(why);
        }
        if partition >= topic.identity.partitions {
            return Err(format!("topic {name} has no partition {partition}"));
        }
        let (size, limit) = (record.size() + header, topic.max_record_bytes());
        if size > limit {
            return Err(format!(
                "a record of {size} bytes is larger than the {limit} that topic {name} takes (max.message.bytes)"
            ));
        }
        if is_control(&record.key) && matches!(record.payload, Payload::Key(_)) {
            return Err("the key of control records cannot be written".into());
        }
        if record.payload.is_unreadable() {
            return Err("an unreadable record cannot be written".into());
        }
    }
    Ok(())
}

impl Producer {
    /// Hands a record over; gives the delivery back with the cause if it was not taken.
    fn send(&self, topic: &CStr, held: Outgoing) -> Result<(), (String, Box<Delivery>)> {
        let Outgoing { record, delivery } = held;
        let wire = match codec::encode(&record, None) {
            Ok(wire) => wire,
            Err(cause) => return Err((cause, delivery)),
        };
        let headers = wire.headers.iter().map(|(name, value)| (*name, value.as_slice()));
        let partition = record.to.partition as i32;
        self.inner
            .send(topic, partition, wire.key, wire.value.as_deref(), headers, delivery)
            .map_err(|(code, delivery)| (self.not_taken(code), delivery))
    }

    /// Why the producer is of no use any more.
    fn fatal(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.inner.fatal_error()
    }

    fn not_taken(&self, code: RDKafkaErrorCode) -> String {
        match (code, self.fatal()) {
            (RDKafkaErrorCode::QueueFull, _) => QUEUE_FULL.to_owned(),
            (RDKafkaErrorCode::Fatal, Some((code, text))) => describe_fatal(code, &text),
            _ => describe_code(code),
        }
    }

    /// The producer's own thread delivers the reports; this only waits.
    fn wait_until_empty(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        while self.inner.outstanding() > 0 && Instant::now() < end {
            std::thread::sleep(AGAIN);
        }
    }
}

pub(super) const QUEUE_FULL: &str = "too many writes are waiting for Kafka";

/// A broker gives an idempotent producer no id if it may not write to any topic.
const REFUSED: RDKafkaErrorCode = RDKafkaErrorCode::ClusterAuthorizationFailed;
pub(super) const NO_RIGHT_TO_WRITE: &str = "not authorized to write to the topic; allow Write on it";

/// Why a producer is of no use any more.
fn describe_fatal(code: RDKafkaErrorCode, text: &str) -> String {
    match code {
        REFUSED => NO_RIGHT_TO_WRITE.to_owned(),
        _ => format!("the Kafka producer failed and is being replaced: {text}"),
    }
}

/// Goes with each message through librdkafka and comes back with its report.
pub(super) struct Delivery {
    to: TopicPartition,
    completion: Arc<dyn Completion>,
}

/// Where and when one record was appended.
type Place = (u64, i64);

impl Delivery {
    pub fn new(to: TopicPartition, completion: Arc<dyn Completion>) -> Delivery {
        Delivery { to, completion }
    }

    pub fn to(&self) -> TopicPartition {
        self.to
    }

    pub fn completion(&self) -> &Arc<dyn Completion> {
        &self.completion
    }

    pub fn report(self, outcome: Result<(i64, i64), (RDKafkaErrorCode, Status)>, context: &Context) {
        let outcome = match outcome {
            Ok((offset, timestamp)) => match u64::try_from(offset) {
                Ok(offset) => Ok((offset, timestamp)),
                // A retry that the log already had (duplicate sequence). The record is there, but
                // its place, which every order rests on, is not known.
                Err(_) => Err(ProduceError::Uncertain(
                    "Kafka has the record, but did not tell its offset".into(),
                )),
            },
            Err((code, status)) => {
                let cause = cause(code, context);
                Err(match status {
                    Status::NotPersisted => ProduceError::NotWritten(cause),
                    Status::PossiblyPersisted | Status::Persisted => ProduceError::Uncertain(cause),
                })
            }
        };
        self.finish(outcome);
    }

    fn finish(self, outcome: Result<Place, ProduceError>) {
        match outcome {
            Ok((offset, timestamp)) => self.completion.complete(Ok(&[Appended {
                at: self.to,
                offset,
                timestamp,
            }])),
            Err(error) => self.completion.complete(Err(error)),
        }
    }
}

fn cause(code: RDKafkaErrorCode, context: &Context) -> String {
    let words: &dyn Display = match code {
        RDKafkaErrorCode::MessageTimedOut => &"no acknowledgement from Kafka within the write timeout",
        RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight if context.is_closing() => &CLOSED,
        // What was queued when the producer failed for good is purged.
        RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight | RDKafkaErrorCode::Fatal => {
            let (code, text) = context.last().unwrap_or((code, describe_code(code)));
            return describe_fatal(code, &text);
        }
        RDKafkaErrorCode::TopicAuthorizationFailed => return NO_RIGHT_TO_WRITE.to_owned(),
        other => return describe_code(other),
    };
    match context.trouble() {
        Some(why) => format!("{words}: {why}"),
        None => words.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use parking_lot::Mutex;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::DefaultProducerContext;
    use rdkafka::types::RDKafkaApiKey;
    use rdkafka_sys::types::RDKafkaRespErr;

    use super::super::topics::Topic;
    use super::*;
    use crate::log::TopicIdentity;

    #[derive(Default)]
    struct Told(Mutex<Vec<Result<Vec<Appended>, ProduceError>>>);

    impl Completion for Told {
        fn complete(self: Arc<Self>, outcome: Result<&[Appended], ProduceError>) {
            self.0.lock().push(outcome.map(<[Appended]>::to_vec));
        }
    }

    /// A lane to librdkafka's mock of a cluster, which can answer what a real one hardly ever does.
    fn lane(cluster: &MockCluster<'_, DefaultProducerContext>) -> Lane {
        let config = Arc::new(Config {
            bootstrap_servers: cluster.bootstrap_servers(),
            topic: "mocked".into(),
            databases: 1,
            ..Config::default()
        });
        cluster.create_topic("mocked", 1, 1).expect("create a topic");
        let health = Arc::new(Health::default());
        let identity = TopicIdentity {
            topic: "mocked".into(),
            id: String::new(),
            partitions: 1,
            partitioner: "",
            read_only: false,
            starts: Vec::new(),
        };
        let topic = Topic {
            identity,
            max_message_bytes: 1_000_000,
            tombstone_retention: Duration::ZERO,
            copies: 1,
            grown_to: None,
            loses_records: false,
            unsafe_policy: None,
        };
        let topics = Arc::new(Topics::fixed(&config, &health, vec![topic]));
        Lane::start(&config, &topics, &health).expect("start a lane")
    }

    fn write(lane: &Lane) -> Result<Vec<Appended>, ProduceError> {
        let payload = Payload::string(Bytes::from_static(b"v"), None);
        let to = TopicPartition {
            database: 0,
            partition: 0,
        };
        let record = Record {
            to,
            key: Bytes::from_static(b"k"),
            payload,
        };
        let told = Arc::new(Told::default());
        lane.produce(record, told.clone());
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(outcome) = told.0.lock().pop() {
                return outcome;
            }
            assert!(Instant::now() < end, "no answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn an_acknowledgement_without_an_offset_is_uncertain() {
        let cluster = MockCluster::new(1).expect("start a mock");
        let lane = lane(&cluster);
        assert_eq!(write(&lane).expect("is written")[0].offset, 0);
        let had_it = RDKafkaRespErr::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER;
        cluster.request_errors(RDKafkaApiKey::Produce, &[had_it]);
        let outcome = write(&lane);
        assert!(
            matches!(&outcome, Err(ProduceError::Uncertain(why)) if why.contains("offset")),
            "{outcome:?}"
        );
        write(&lane).expect("goes on");
    }

    #[test]
    fn what_the_broker_rejects_is_not_written() {
        let cluster = MockCluster::new(1).expect("start a mock");
        let lane = lane(&cluster);
        let rejected = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
        cluster.request_errors(RDKafkaApiKey::Produce, &[rejected]);
        let outcome = write(&lane);
        assert!(matches!(outcome, Err(ProduceError::NotWritten(_))), "{outcome:?}");
    }

    #[test]
    fn a_producer_that_cannot_go_on_is_replaced() {
        let cluster = MockCluster::new(1).expect("start a mock");
        let lane = lane(&cluster);
        write(&lane).expect("is written");
        let fatal = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER;
        let fail = |producer: &Producer| producer.inner.fail_for_test(fatal);
        lane.sender
            .current
            .read()
            .as_ref()
            .map(fail)
            .expect("there is a producer");
        let outcome = write(&lane);
        assert!(matches!(outcome, Err(ProduceError::NotWritten(_))), "{outcome:?}");
        lane.mend();
        write(&lane).expect("the new one writes");
    }
}
