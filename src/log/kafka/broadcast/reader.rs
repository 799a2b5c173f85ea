//! The way of messages from the topic to this node: a consumer on a thread of its own, that reads
//! from the moment when somebody first listens.
//!
//! While the topic does not exist, nobody has published: the reader looks for it several times a
//! second, and then reads it from its start. Otherwise it begins at the end. Later it loses
//! messages only if Kafka loses them (their retention is over), or if the topic is deleted and
//! created again. That is a gap, which is reported.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rdkafka::consumer::Consumer as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

use super::{Place, is_of, message};
use crate::log::LogError;
use crate::log::broadcast::{BroadcastCounters, Receiver};
use crate::log::kafka::config::Isolation;
use crate::log::kafka::context::{Context, describe_error};
use crate::log::kafka::ffi::{self, Consumer, Event};
use crate::supervise;

/// How long a poll waits, and so how late the thread notices that it should stop.
const POLL: Duration = Duration::from_millis(100);
/// How often a topic that is not there is looked for.
const LOOK: Duration = Duration::from_millis(250);
/// How often it is checked whether the topic is still the same.
const CHECK: Duration = Duration::from_secs(2);
/// How long the topic has to be missing before it counts as deleted: a broker that has just started
/// may not know all topics yet.
const GONE: Duration = Duration::from_secs(4);
/// How long one question to the cluster may take.
const ASK: Duration = Duration::from_secs(2);
/// How long a message is held back until this node has what its publisher had.
const PATIENCE: Duration = Duration::from_secs(1);
/// What one step may take, with all messages that librdkafka has fetched.
const STEP: Duration = Duration::from_secs(60);
/// librdkafka's default of `receive.message.max.bytes`.
const RECEIVE_BYTES: usize = 100_000_000;

pub(super) struct Reader {
    ready: Arc<Ready>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Option<()>>>,
}

/// Whether the reader has a place from which it reads on.
pub(super) struct Ready {
    /// Why not; `None` if it has.
    missing: Mutex<Option<String>>,
    changed: Condvar,
}

impl Ready {
    /// Waits until the reader is ready; else the reason is returned.
    pub fn wait(&self, timeout: Duration) -> Result<(), String> {
        let mut missing = self.missing.lock();
        self.changed
            .wait_while_for(&mut missing, |missing| missing.is_some(), timeout);
        missing.clone().map_or(Ok(()), Err)
    }

    fn set(&self, missing: Option<String>) {
        *self.missing.lock() = missing;
        self.changed.notify_all();
    }
}

impl Reader {
    pub fn start(
        topic: &Arc<Place>,
        receiver: &Arc<dyn Receiver>,
        counters: &Arc<BroadcastCounters>,
    ) -> Result<Reader, LogError> {
        let consumer = create(topic).map_err(LogError::Failed)?;
        let ready = Arc::new(Ready {
            missing: Mutex::new(Some("Kafka has not answered yet".into())),
            changed: Condvar::new(),
        });
        let stop = Arc::new(AtomicBool::new(false));
        let mut reading = Reading {
            topic: Arc::clone(topic),
            receiver: Arc::clone(receiver),
            counters: Arc::clone(counters),
            ready: Arc::clone(&ready),
            consumer,
            followed: None,
            was_absent: false,
            checked: Instant::now(),
            missing: None,
            lost: None,
        };
        let stopped = Arc::clone(&stop);
        let body = move || {
            while !stopped.load(Ordering::Acquire) {
                supervise::busy(STEP);
                reading.step();
            }
        };
        let thread = supervise::thread(&supervise::PUBSUB_READER, body)
            .map_err(|error| LogError::Failed(format!("cannot start a thread: {error}")))?;
        Ok(Reader {
            ready,
            stop,
            thread: Some(thread),
        })
    }

    pub fn is_ready(&self) -> bool {
        self.ready.missing.lock().is_none()
    }

    pub fn readiness(&self) -> Arc<Ready> {
        Arc::clone(&self.ready)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // The thread has reported it if it panicked.
            let _ = thread.join();
        }
    }
}

/// A consumer that reads nothing yet.
fn create(topic: &Place) -> Result<Consumer<Context>, String> {
    let receive = topic.config.receive_bytes().unwrap_or(RECEIVE_BYTES);
    let settings = topic.config.follower(Isolation::Uncommitted, receive);
    Consumer::create(&settings, Context::new(&topic.health)).map_err(|error| describe_error(&error))
}

struct Reading {
    topic: Arc<Place>,
    receiver: Arc<dyn Receiver>,
    counters: Arc<BroadcastCounters>,
    ready: Arc<Ready>,
    consumer: Consumer<Context>,
    /// The topic that is read.
    followed: Option<Followed>,
    /// The topic did not exist when it was last looked for.
    was_absent: bool,
    /// When the topic was last looked at.
    checked: Instant,
    /// Since when it is missing.
    missing: Option<Instant>,
    /// Why messages were lost.
    lost: Option<String>,
}

struct Followed {
    id: String,
    partitions: u32,
}

impl Reading {
    fn step(&mut self) {
        if self.followed.is_none() {
            match self.begin() {
                Ok(()) => self.ready.set(None),
                Err(cause) => self.ready.set(Some(cause)),
            }
            if self.followed.is_none() {
                self.idle(LOOK);
                return;
            }
        }
        self.read();
        if self.lost.is_none() && self.checked.elapsed() >= CHECK {
            self.check();
        }
        if let Some(cause) = self.lost.take() {
            self.begin_again(&cause);
        }
    }

    /// Finds the topic and the place to read from. Succeeds also if Kafka says that there is no
    /// topic.
    fn begin(&mut self) -> Result<(), String> {
        let Some(found) = self.look()? else {
            self.was_absent = true;
            return Ok(());
        };
        let mut list = TopicPartitionList::new();
        for partition in 0..found.partitions {
            let offset = match self.was_absent {
                true => Offset::Beginning,
                false => Offset::Offset(self.end(partition)?),
            };
            list.add_partition_offset(&self.topic.name, partition as i32, offset)
                .map_err(|error| describe_error(&error))?;
        }
        self.consumer
            .inner()
            .assign(&list)
            .map_err(|error| describe_error(&error))?;
        self.followed = Some(found);
        (self.was_absent, self.missing) = (false, None);
        self.checked = Instant::now();
        Ok(())
    }

    /// The topic as it is now; `None` if there is none, or none that is served yet.
    fn look(&mut self) -> Result<Option<Followed>, String> {
        let client = self.consumer.inner().client();
        let found = ffi::describe_topics(client, &[&self.topic.name], ASK);
        match found.map(|mut found| found.pop()) {
            Ok(Some(Ok(found))) if found.served => Ok(Some(Followed {
                id: found.id,
                partitions: found.partitions,
            })),
            Ok(Some(Ok(_))) => match self.was_absent {
                true => Ok(None),
                false => Err(format!("topic {} has no leader", self.topic.name)),
            },
            Ok(Some(Err((RDKafkaErrorCode::UnknownTopicOrPartition, _)))) => Ok(None),
            Ok(Some(Err((_, text)))) | Err((_, text)) => Err(format!("cannot read topic {}: {text}", self.topic.name)),
            Ok(None) => Err("Kafka did not answer for the topic".into()),
        }
    }

    fn end(&self, partition: u32) -> Result<i64, String> {
        let consumer = self.consumer.inner();
        let ends = consumer.fetch_watermarks(&self.topic.name, partition as i32, ASK);
        ends.map(|(_, end)| end).map_err(|error| describe_error(&error))
    }

    /// Handles librdkafka's events for so long.
    fn idle(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let health = &self.topic.health;
            self.consumer.poll(left, |event| {
                if let Event::Log { level, facility, text } = event {
                    health.line(level, facility, &text);
                }
            });
        }
    }

    /// Passes messages on as they come, and returns when there are none for a moment, or when
    /// something else is to be done.
    fn read(&mut self) {
        let (topic, receiver, counters) = (&self.topic, &self.receiver, &self.counters);
        let lost = &mut self.lost;
        let began = Instant::now();
        while lost.is_none() && began.elapsed() < POLL {
            let polled = self.consumer.poll(POLL, |event| match event {
                Event::Record(record) if is_of(&record, &topic.native) => {
                    if let Some(message) = message(&record) {
                        counters.received.fetch_add(1, Ordering::Relaxed);
                        receiver.receive(message, PATIENCE);
                    } else {
                        counters.skipped.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Event::Log { level, facility, text } => topic.health.line(level, facility, &text),
                Event::Error { at, code, text, fatal } => {
                    use RDKafkaErrorCode::{AutoOffsetReset, LogTruncation, OffsetOutOfRange};
                    let is_lost = matches!(code, AutoOffsetReset | LogTruncation | OffsetOutOfRange);
                    if fatal || (is_lost && at.is_some()) {
                        *lost = Some(text.clone());
                    }
                    topic.health.error(code, &text);
                }
                Event::Record(_) | Event::End { .. } | Event::Other => {}
            });
            if polled.is_none() {
                return;
            }
        }
    }

    /// Looks whether the topic is still the one that is read. A cluster that does not answer says
    /// nothing.
    fn check(&mut self) {
        self.checked = Instant::now();
        let Ok(found) = self.look() else {
            return;
        };
        let Some(followed) = &self.followed else {
            return;
        };
        self.missing = match found {
            Some(_) => None,
            None => self.missing.or_else(|| Some(Instant::now())),
        };
        self.lost = match found {
            Some(found) if found.id == followed.id && found.partitions == followed.partitions => return,
            Some(found) if found.id == followed.id => Some(format!(
                "topic {} has {} partitions now",
                self.topic.name, found.partitions
            )),
            Some(_) => Some(format!("topic {} was deleted and created again", self.topic.name)),
            None if self.missing.is_some_and(|since| since.elapsed() < GONE) => return,
            None => Some(format!("topic {} was deleted", self.topic.name)),
        };
    }

    /// Messages may be lost: says so, and reads on from the end.
    fn begin_again(&mut self, cause: &str) {
        self.counters.gaps.fetch_add(1, Ordering::Relaxed);
        self.topic.partitions.store(0, Ordering::Release);
        self.ready.set(Some(cause.to_owned()));
        self.followed = None;
        self.was_absent = false;
        self.receiver.gap(cause);
        // The consumer may have failed for good.
        match create(&self.topic) {
            Ok(consumer) => self.consumer = consumer,
            Err(cause) => tracing::warn!(cause, "cannot make a new consumer of messages"),
        }
    }
}
