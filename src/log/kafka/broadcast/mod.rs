//! Messages between nodes, by the topic `NAME.pubsub`: sending them, and creating the topic at the
//! first message. `reader` is the way back. `docs/topic-format.md` has the form of a record.
//!
//! The topic is not compacted, and keeps messages only for as long as a node may need to catch up.
//! Neither side has a client before the first message is sent, or somebody listens.

mod reader;

use std::ffi::{CStr, CString};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::types::RDKafkaErrorCode;

use self::reader::Reader;
use super::admin::Admin;
use super::config::{Config, Sizes};
use super::context::{Context, Health, describe_code, describe_error};
use super::ffi::{self, CallError, Polls as _, RecordEvent};
use super::polled::Polled;
use super::producer::{CLOSED, Delivery, NO_RIGHT_TO_WRITE, QUEUE_FULL};
use crate::log::broadcast::{Broadcast, BroadcastCounters, Broadcasted, Receiver};
use crate::log::{Completion, LogError, ProduceError, TopicPartition};

/// Marks a message for a channel of the shard.
const SHARD_HEADER: &str = "redis-pubsub";
const SHARD: &[u8] = b"shard";
/// What the publisher had written or seen.
const POSITION_HEADER: &str = "highwater-position";
/// How long a new topic keeps messages. A node that is further behind has lost some.
const RETENTION: &str = "600000";
/// Largest message of a new topic.
const MAX_MESSAGE_BYTES: usize = 16 << 20;
/// How long one question to the cluster may take.
const ASK: Duration = Duration::from_secs(3);
/// Between two looks whether the topic is there by now.
const AGAIN: Duration = Duration::from_millis(50);

pub(super) struct Broadcasts {
    topic: Arc<Place>,
    producer: Mutex<Option<Arc<Producer>>>,
    /// The reader, once somebody listens.
    reader: Mutex<Option<Reader>>,
    /// Held by the thread that finds or creates the topic.
    opening: Mutex<()>,
    closed: AtomicBool,
    counters: Arc<BroadcastCounters>,
}

type Producer = Polled<ffi::Producer<Context>>;

/// The topic, and what is known of it.
struct Place {
    config: Arc<Config>,
    health: Arc<Health>,
    name: String,
    native: CString,
    /// 0 while it is not known whether the topic is there.
    partitions: AtomicU32,
}

impl Broadcasts {
    pub fn new(config: &Arc<Config>, health: &Arc<Health>) -> Broadcasts {
        let name = config.messages_topic();
        let place = Place {
            config: Arc::clone(config),
            health: Arc::clone(health),
            native: ffi::topic_name(&name),
            name,
            partitions: AtomicU32::new(0),
        };
        Broadcasts {
            topic: Arc::new(place),
            producer: Mutex::new(None),
            reader: Mutex::new(None),
            opening: Mutex::new(()),
            closed: AtomicBool::new(false),
            counters: Arc::default(),
        }
    }

    /// The producer; a new one if there is none, or if it failed for good.
    fn producer(&self) -> Result<Arc<Producer>, String> {
        let mut current = self.producer.lock();
        if self.closed.load(Ordering::Acquire) {
            return Err(CLOSED.to_owned());
        }
        if let Some(producer) = current.as_ref().filter(|producer| producer.fatal_error().is_none()) {
            return Ok(Arc::clone(producer));
        }
        let sizes = Sizes {
            message: MAX_MESSAGE_BYTES,
            batch: super::topics::BATCH_BYTES,
        };
        let settings = self.topic.config.producer(sizes);
        let context = Context::new(&self.topic.health);
        let producer = ffi::Producer::create(&settings, context).map_err(|error| describe_error(&error))?;
        let producer = Arc::new(Polled::start(producer, || {})?);
        *current = Some(Arc::clone(&producer));
        Ok(producer)
    }
}

impl Broadcast for Broadcasts {
    fn is_open(&self) -> bool {
        self.topic.partitions.load(Ordering::Acquire) > 0
    }

    fn open(&self, timeout: Duration) -> Result<(), LogError> {
        let end = Instant::now() + timeout;
        let Some(_alone) = self.opening.try_lock_for(timeout) else {
            let name = &self.topic.name;
            return Err(LogError::Failed(format!("topic {name} could not be found in time")));
        };
        match self.is_open() {
            true => Ok(()),
            false => self.topic.open(end.saturating_duration_since(Instant::now())),
        }
    }

    fn send(&self, message: &Broadcasted, completion: Arc<dyn Completion>) {
        let partitions = self.topic.partitions.load(Ordering::Acquire);
        let refused = |cause: String| Err(ProduceError::NotWritten(cause));
        if partitions == 0 {
            return completion.complete(refused(format!("topic {} is not there", self.topic.name)));
        }
        let producer = match self.producer() {
            Ok(producer) => producer,
            Err(cause) => return completion.complete(refused(cause)),
        };
        let partition = self.topic.config.partitioner.partition(&message.channel, partitions);
        // The number of the database says nothing here: a message is of none.
        let to = TopicPartition { database: 0, partition };
        let mut headers = Vec::with_capacity(2);
        if message.shard {
            headers.push((SHARD_HEADER, SHARD));
        }
        headers.push((POSITION_HEADER, message.position.as_bytes()));
        let sent = producer.send(
            &self.topic.native,
            partition as i32,
            &message.channel,
            Some(&message.payload),
            headers.into_iter(),
            Box::new(Delivery::new(to, completion)),
        );
        if let Err((code, delivery)) = sent {
            let cause = match code {
                RDKafkaErrorCode::QueueFull => QUEUE_FULL.to_owned(),
                RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownPartition => {
                    // The next message looks for it again.
                    self.topic.partitions.store(0, Ordering::Release);
                    describe_code(code)
                }
                RDKafkaErrorCode::Fatal => producer
                    .fatal_error()
                    .map_or_else(|| describe_code(code), |(_, text)| text),
                _ => describe_code(code),
            };
            delivery.completion().clone().complete(refused(cause));
        }
    }

    fn is_heard(&self) -> bool {
        self.reader.lock().as_ref().is_some_and(Reader::is_ready)
    }

    fn listen(&self, receiver: &Arc<dyn Receiver>, timeout: Duration) -> Result<(), LogError> {
        let ready = {
            let mut reader = self.reader.lock();
            if self.closed.load(Ordering::Acquire) {
                return Err(LogError::Failed(CLOSED.into()));
            }
            if reader.is_none() {
                *reader = Some(Reader::start(&self.topic, receiver, &self.counters)?);
            }
            reader.as_ref().map(Reader::readiness)
        };
        match ready {
            Some(ready) => ready.wait(timeout).map_err(LogError::Unreachable),
            None => Err(LogError::Failed(CLOSED.into())),
        }
    }

    fn counters(&self) -> &BroadcastCounters {
        &self.counters
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let reader = self.reader.lock().take();
        drop(reader);
        let last = self.producer.lock().take();
        if let Some(producer) = last {
            producer.context().close();
            let end = Instant::now() + self.topic.config.write_timeout;
            while producer.outstanding() > 0 && Instant::now() < end {
                std::thread::sleep(AGAIN);
            }
        }
    }
}

impl Place {
    /// Finds the topic, or creates it.
    fn open(&self, timeout: Duration) -> Result<(), LogError> {
        let end = Instant::now() + timeout;
        let failed = |(code, text): CallError| match code {
            RDKafkaErrorCode::TopicAuthorizationFailed => {
                LogError::Failed(format!("cannot use topic {}: {NO_RIGHT_TO_WRITE}", self.name))
            }
            _ => LogError::Unreachable(format!("cannot use topic {}: {text}", self.name)),
        };
        let questions: BaseConsumer<Context> = self
            .config
            .questions()
            .create_with_context(Context::new(&self.health))
            .map_err(|error| LogError::Failed(describe_error(&error)))?;
        let left = || end.saturating_duration_since(Instant::now()).min(ASK).max(AGAIN);
        loop {
            let looked = ffi::describe_topics(questions.client(), &[&self.name], left());
            // Log lines and errors go to the context.
            let _ = questions.poll(Duration::ZERO);
            match looked.map(|mut found| found.pop()) {
                Ok(Some(Ok(found))) if found.served => {
                    self.partitions.store(found.partitions, Ordering::Release);
                    return Ok(());
                }
                Ok(Some(Err((RDKafkaErrorCode::UnknownTopicOrPartition, _)))) => self.create(&questions, left())?,
                Ok(Some(Err(failure))) => return Err(failed(failure)),
                Err(failure) if Instant::now() >= end => return Err(failed(failure)),
                Ok(_) if Instant::now() >= end => {
                    return Err(LogError::Unreachable(format!("topic {} has no leader yet", self.name)));
                }
                Ok(_) | Err(_) => {}
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn create(&self, questions: &BaseConsumer<Context>, timeout: Duration) -> Result<(), LogError> {
        let failed = |(_, text): CallError| {
            LogError::Failed(format!(
                "cannot create topic {}: {text}; create it with cleanup.policy=delete, allow it to be created, or start \
                 the nodes with --pubsub node",
                self.name
            ))
        };
        let admin = Admin::connect(&self.config, &self.health).map_err(failed)?;
        let replicas = self.config.replication_factor.or_else(|| {
            ffi::any_broker(questions.client(), ASK).and_then(|broker| admin.default_replication(broker, ASK))
        });
        let bytes = MAX_MESSAGE_BYTES.to_string();
        let settings = [
            ("cleanup.policy", "delete"),
            ("retention.ms", RETENTION),
            ("segment.ms", RETENTION),
            ("max.message.bytes", bytes.as_str()),
        ];
        let created = admin.create_topic(&self.name, 1, replicas, &settings, timeout);
        if created.map_err(failed)? {
            tracing::info!(topic = self.name, "created the topic");
        }
        Ok(())
    }
}

/// A record of the topic as a message. `None`: it is none, for it has no key or no value.
fn message(record: &RecordEvent<'_>) -> Option<Broadcasted> {
    let (channel, payload) = (record.key()?, record.value()?);
    let (mut shard, mut position) = (false, String::new());
    for (name, value) in record.headers() {
        let value = value.unwrap_or_default();
        if name == SHARD_HEADER.as_bytes() {
            shard = value == SHARD;
        } else if name == POSITION_HEADER.as_bytes() {
            position = String::from_utf8_lossy(value).into_owned();
        }
    }
    Some(Broadcasted {
        channel: Bytes::copy_from_slice(channel),
        payload: Bytes::copy_from_slice(payload),
        shard,
        position,
    })
}

/// Whether a record is of this topic.
fn is_of(record: &RecordEvent<'_>, topic: &CStr) -> bool {
    record.topic == topic
}
