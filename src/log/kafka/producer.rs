//! The plain lane: one idempotent producer for all topics, acknowledged by all replicas. Owns the sending of batches
//! and what a delivery report means; knows nothing of who waits for it.
//!
//! A batch of several records is sent one after the other, each with the group's header. That is atomic to followers
//! (they wait for the whole group) but not to failures: a part of it may be refused. Then the batch is `Uncertain`.
//! Lanes of transactions belong beside this one, behind the same [`Delivery`].

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use smallvec::SmallVec;

use super::codec;
use super::config::{Config, MAX_QUEUED_RECORDS, Sizes};
use super::context::{Context, Health, describe_code, describe_error};
use super::ffi::{self, Status};
use super::topics::{State, Topics};
use crate::log::record::FLUSH_KEY;
use crate::log::{Appended, Batch, Completion, Group, LogError, Payload, ProduceError, Record, TopicPartition};

pub(super) struct Lane {
    config: Arc<Config>,
    topics: Arc<Topics>,
    health: Arc<Health>,
    /// `None` once closed. Locked for writing only while a producer takes over from another.
    current: RwLock<Option<Producer>>,
}

struct Producer {
    inner: ThreadedProducer<Context>,
    sizes: Sizes,
}

impl Lane {
    pub fn start(config: &Arc<Config>, topics: &Arc<Topics>, health: &Arc<Health>) -> Result<Lane, LogError> {
        let producer = Producer::create(config, topics.sizes(), health).map_err(LogError::Failed)?;
        Ok(Lane {
            config: Arc::clone(config),
            topics: Arc::clone(topics),
            health: Arc::clone(health),
            current: RwLock::new(Some(producer)),
        })
    }

    pub fn produce(&self, batch: Batch) {
        let Batch { records, completion } = batch;
        if records.is_empty() {
            return completion.complete(Ok(&[]));
        }
        // Completions are told after the lock is released: whoever is told may produce again.
        if let Err(cause) = self.check(&records) {
            return completion.complete(Err(ProduceError::NotWritten(cause)));
        }
        match records.as_slice() {
            [record] => self.send_one(record, completion),
            several => self.send_group(several, completion),
        }
    }

    /// What can be known to fail is refused before anything is sent.
    fn check(&self, records: &[Record]) -> Result<(), String> {
        let states = self.topics.states();
        for record in records {
            let TopicPartition { database, partition } = record.to;
            let topic = match states.get(usize::from(database)) {
                Some(State::Usable(topic)) => topic,
                Some(State::Refused(why)) => return Err(why.clone()),
                _ => return Err(format!("database {database} has no topic yet")),
            };
            let name = &topic.identity.topic;
            if topic.identity.read_only {
                return Err(format!("topic {name} is read-only here"));
            }
            if partition >= topic.identity.partitions {
                return Err(format!("topic {name} has no partition {partition}"));
            }
            if record.size() > topic.max_record_bytes() {
                let (size, limit) = (record.size(), topic.max_record_bytes());
                return Err(format!(
                    "a record of {size} bytes is larger than the {limit} that topic {name} takes (max.message.bytes)"
                ));
            }
            if record.key.as_ref() == FLUSH_KEY && matches!(record.payload, Payload::Value { .. }) {
                return Err("the key of control records cannot be written".into());
            }
            if let Payload::Unreadable { reason } = &record.payload {
                return Err(format!("an unreadable record cannot be written: {reason}"));
            }
        }
        Ok(())
    }

    fn send_one(&self, record: &Record, completion: Arc<dyn Completion>) {
        let delivery = Box::new(Delivery::Single {
            to: record.to,
            completion,
        });
        let current = self.current.read();
        let refused = match &*current {
            Some(producer) => producer.send(self.topics.name(record.to.database), record, None, delivery),
            None => Err((CLOSED.to_owned(), delivery)),
        };
        drop(current);
        if let Err((cause, delivery)) = refused {
            delivery.finish(Err(ProduceError::NotWritten(cause)));
        }
    }

    fn send_group(&self, records: &[Record], completion: Arc<dyn Completion>) {
        let id = rand::random();
        let group = Arc::new(GroupDelivery::new(records, completion));
        let current = self.current.read();
        let room = match &*current {
            None => Err(CLOSED.to_owned()),
            Some(producer) => producer.room_for(records.len()),
        };
        let mut refused: SmallVec<[(String, Box<Delivery>); 1]> = SmallVec::new();
        for (at, record) in records.iter().enumerate() {
            let delivery = Box::new(Delivery::Part {
                group: Arc::clone(&group),
                at,
            });
            let sent = match (&*current, &room) {
                (_, Err(cause)) => Err((cause.clone(), delivery)),
                (Some(producer), Ok(())) => {
                    let together = Group {
                        id,
                        records: records_in(records, record.to),
                    };
                    producer.send(self.topics.name(record.to.database), record, Some(together), delivery)
                }
                (None, Ok(())) => Err((CLOSED.to_owned(), delivery)),
            };
            refused.extend(sent.err());
        }
        drop(current);
        for (cause, delivery) in refused {
            delivery.finish(Err(ProduceError::NotWritten(cause)));
        }
    }

    /// Puts a new producer in the place of one that is of no use any more, or whose sizes do not fit a topic that has
    /// come since. Called from time to time.
    pub fn mend(&self) {
        let Some((fatal, sizes)) = self.current.read().as_ref().map(|now| (now.is_fatal(), now.sizes)) else {
            return;
        };
        let wanted = self.topics.sizes();
        let fits = sizes.message >= wanted.message && sizes.batch <= wanted.batch;
        if !fatal && fits {
            return;
        }
        let new = match Producer::create(&self.config, wanted, &self.health) {
            Ok(new) => new,
            Err(cause) => return tracing::error!(cause, "cannot make a new Kafka producer"),
        };
        let mut current = self.current.write();
        if let (Some(old), false) = (current.as_ref(), fatal) {
            // Two producers know nothing of each other's order, so the old one has to be done first.
            old.wait_until_empty(self.config.write_timeout);
        }
        if let Some(place) = current.as_mut() {
            let old = std::mem::replace(place, new);
            drop(current);
            if let Some((code, text)) = old.inner.client().fatal_error() {
                tracing::warn!(error = ?code, "the Kafka producer cannot go on and is replaced: {text}");
            }
        }
    }

    /// Takes in no more, waits for what is under way, and gives up what then is left.
    pub fn close(&self, timeout: Duration) {
        let last = self.current.write().take();
        if let Some(producer) = last {
            producer.wait_until_empty(timeout);
        }
    }
}

const CLOSED: &str = "the server is stopping";

fn records_in(records: &[Record], to: TopicPartition) -> u32 {
    records.iter().filter(|record| record.to == to).count() as u32
}

impl Producer {
    fn create(config: &Config, sizes: Sizes, health: &Arc<Health>) -> Result<Producer, String> {
        let settings: ClientConfig = config.producer(sizes);
        let inner = settings
            .create_with_context(Context::new(health))
            .map_err(|error| describe_error(&error))?;
        Ok(Producer { inner, sizes })
    }

    /// Hands a record over; gives the delivery back with the cause if it was not taken.
    fn send(
        &self,
        topic: &str,
        record: &Record,
        group: Option<Group>,
        delivery: Box<Delivery>,
    ) -> Result<(), (String, Box<Delivery>)> {
        let wire = match codec::encode(record, group) {
            Ok(wire) => wire,
            Err(cause) => return Err((cause, delivery)),
        };
        let mut message: BaseRecord<'_, [u8], [u8], Box<Delivery>> = BaseRecord::with_opaque_to(topic, delivery)
            .partition(record.to.partition as i32)
            .key(wire.key);
        message.payload = wire.value;
        if !wire.headers.is_empty() {
            let headers = OwnedHeaders::new_with_capacity(wire.headers.len());
            let add = |all: OwnedHeaders, (key, value): &codec::Header| {
                all.insert(Header {
                    key,
                    value: Some(value.as_slice()),
                })
            };
            message.headers = Some(wire.headers.iter().fold(headers, add));
        }
        self.inner.send(message).map_err(|(error, message)| {
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal) {
                self.inner.client().context().set_fatal();
            }
            (not_taken(&error), message.delivery_opaque)
        })
    }

    fn room_for(&self, records: usize) -> Result<(), String> {
        let queued = usize::try_from(self.inner.in_flight_count()).unwrap_or(0);
        match queued + records <= MAX_QUEUED_RECORDS {
            true => Ok(()),
            false => Err(QUEUE_FULL.to_owned()),
        }
    }

    fn is_fatal(&self) -> bool {
        self.inner.client().context().is_fatal()
    }

    /// The producer's own thread tells the reports; this only waits.
    fn wait_until_empty(&self, timeout: Duration) {
        let end = Instant::now() + timeout;
        while self.inner.in_flight_count() > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

const QUEUE_FULL: &str = "too many writes are waiting for Kafka";

fn not_taken(error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::QueueFull) => QUEUE_FULL.to_owned(),
        _ => describe_error(error),
    }
}

/// Goes with each message through librdkafka and comes back with its report.
pub(super) enum Delivery {
    Single {
        to: TopicPartition,
        completion: Arc<dyn Completion>,
    },
    Part {
        group: Arc<GroupDelivery>,
        at: usize,
    },
}

/// Where and when one record was appended.
type Place = (u64, i64);

impl Delivery {
    pub fn report(self, result: &DeliveryResult<'_>, health: &Health) {
        let outcome = match result {
            Ok(message) => match u64::try_from(message.offset()) {
                Ok(offset) => Ok((offset, message.timestamp().to_millis().unwrap_or(-1))),
                // A retry that the log already had (duplicate sequence): it is there, but its place, which every
                // order rests on, is not known.
                Err(_) => Err(ProduceError::Uncertain(
                    "Kafka has the record, but did not tell its offset".into(),
                )),
            },
            Err((error, message)) => {
                let cause = cause(error, health);
                Err(match ffi::status(message) {
                    Status::NotPersisted => ProduceError::NotWritten(cause),
                    Status::PossiblyPersisted | Status::Persisted => ProduceError::Uncertain(cause),
                })
            }
        };
        self.finish(outcome);
    }

    fn finish(self, outcome: Result<Place, ProduceError>) {
        match self {
            Delivery::Single { to, completion } => match outcome {
                Ok((offset, timestamp)) => completion.complete(Ok(&[Appended {
                    at: to,
                    offset,
                    timestamp,
                }])),
                Err(error) => completion.complete(Err(error)),
            },
            Delivery::Part { group, at } => group.part(at, outcome),
        }
    }
}

fn cause(error: &KafkaError, health: &Health) -> String {
    let Some(code) = error.rdkafka_error_code() else {
        return describe_error(error);
    };
    let words: &dyn Display = match code {
        RDKafkaErrorCode::MessageTimedOut => &"no acknowledgement from Kafka within the write timeout",
        RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight => &CLOSED,
        RDKafkaErrorCode::Fatal => &"the Kafka producer failed and is being replaced",
        other => return describe_code(other),
    };
    match health.last() {
        Some((_, why)) => format!("{words}: {why}"),
        None => words.to_string(),
    }
}

/// Collects the reports of a batch of several records.
pub(super) struct GroupDelivery {
    completion: Arc<dyn Completion>,
    reports: Mutex<Reports>,
}

struct Reports {
    appended: SmallVec<[Appended; 4]>,
    open: usize,
    written: usize,
    not_written: Option<String>,
    uncertain: Option<String>,
}

impl GroupDelivery {
    fn new(records: &[Record], completion: Arc<dyn Completion>) -> GroupDelivery {
        let appended = records
            .iter()
            .map(|record| Appended {
                at: record.to,
                offset: 0,
                timestamp: 0,
            })
            .collect();
        let open = records.len();
        let reports = Reports {
            appended,
            open,
            written: 0,
            not_written: None,
            uncertain: None,
        };
        GroupDelivery {
            completion,
            reports: Mutex::new(reports),
        }
    }

    fn part(&self, at: usize, outcome: Result<Place, ProduceError>) {
        let mut reports = self.reports.lock();
        reports.open -= 1;
        match outcome {
            Ok((offset, timestamp)) => {
                reports.written += 1;
                reports.appended[at].offset = offset;
                reports.appended[at].timestamp = timestamp;
            }
            Err(ProduceError::NotWritten(cause)) => reports.not_written = Some(cause),
            Err(ProduceError::Uncertain(cause)) => reports.uncertain = Some(cause),
            // No lane of this log has epochs.
            Err(stale @ ProduceError::StaleEpoch) => reports.uncertain = Some(stale.to_string()),
        }
        if reports.open > 0 {
            return;
        }
        let appended = std::mem::take(&mut reports.appended);
        let outcome = reports.judge(appended.len());
        drop(reports);
        Arc::clone(&self.completion).complete(outcome.map(|()| appended.as_slice()));
    }
}

impl Reports {
    fn judge(&mut self, all: usize) -> Result<(), ProduceError> {
        match (self.uncertain.take(), self.not_written.take()) {
            (None, None) => Ok(()),
            (None, Some(cause)) if self.written == 0 => Err(ProduceError::NotWritten(cause)),
            (uncertain, not_written) => {
                let cause = uncertain.or(not_written).unwrap_or_default();
                Err(ProduceError::Uncertain(format!(
                    "{} of {all} records are in the log for certain: {cause}",
                    self.written
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
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

    fn group_of(outcomes: [Result<Place, ProduceError>; 3]) -> Result<Vec<Appended>, ProduceError> {
        let to = TopicPartition {
            database: 0,
            partition: 0,
        };
        let record = Record {
            to,
            key: Bytes::from_static(b"k"),
            payload: Payload::Tombstone,
        };
        let told = Arc::new(Told::default());
        let group = GroupDelivery::new(&[record.clone(), record.clone(), record], told.clone());
        for (at, outcome) in outcomes.into_iter().enumerate() {
            assert!(told.0.lock().is_empty(), "told before all reports were there");
            group.part(at, outcome);
        }
        let mut all = told.0.lock();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn a_group_is_told_once_and_in_order() {
        let told = group_of([Ok((7, 1)), Ok((9, 2)), Ok((8, 3))]).expect("is written");
        assert_eq!(
            told.iter().map(|appended| appended.offset).collect::<Vec<_>>(),
            [7, 9, 8]
        );
    }

    #[test]
    fn a_group_is_not_written_only_if_no_record_is() {
        let not = || Err(ProduceError::NotWritten("full".into()));
        let maybe = || Err(ProduceError::Uncertain("late".into()));
        assert_eq!(group_of([not(), not(), not()]), not().map(|_: Place| Vec::new()));
        for mixed in [
            [not(), Ok((1, 1)), not()],
            [not(), maybe(), not()],
            [maybe(), maybe(), maybe()],
        ] {
            let told = group_of(mixed);
            assert!(matches!(told, Err(ProduceError::Uncertain(_))), "{told:?}");
        }
    }

    /// A lane to librdkafka's mock of a cluster: it can answer what a real one hardly ever does.
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
            read_only: false,
        };
        let topic = Topic {
            identity,
            max_message_bytes: 1_000_000,
            tombstone_retention: Duration::ZERO,
        };
        let topics = Arc::new(Topics::fixed(&config, &health, vec![topic]));
        Lane::start(&config, &topics, &health).expect("start a lane")
    }

    fn write(lane: &Lane) -> Result<Vec<Appended>, ProduceError> {
        let payload = Payload::Value {
            value: Bytes::from_static(b"v"),
            expire_at: None,
        };
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
        lane.produce(Batch {
            records: smallvec::smallvec![record],
            completion: told.clone(),
        });
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
        let fail = |producer: &Producer| ffi::fail_for_test(producer.inner.client(), fatal);
        lane.current.read().as_ref().map(fail).expect("there is a producer");
        let outcome = write(&lane);
        assert!(matches!(outcome, Err(ProduceError::NotWritten(_))), "{outcome:?}");
        lane.mend();
        write(&lane).expect("the new one writes");
    }
}
