//! Reading the log: all partitions of all databases, from the caller's positions, on the caller's
//! thread. This module owns the consumer and its positions. It knows nothing of what is done with
//! the records.
//!
//! Nothing is read through a consumer group: every node reads everything. A position that Kafka
//! does not have is an error, never a jump. While the broker is away no records come, and
//! librdkafka goes on by itself.
//!
//! librdkafka refuses a batch that zstd unpacks to more than `receive.message.max.bytes`. A batch
//! that it cannot decode is read once more by a new consumer with the largest limit. If that fails
//! too, or the user has set the limit, the follower ends with an error that names the batch.

use std::ffi::CStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::Consumer as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;

use super::codec::{self, GroupHeader};
use super::config::{Config, Isolation, LARGEST_RECEIVE_BYTES, RECEIVE_BYTES};
use super::context::{Context, Health, describe_code, describe_error};
use super::ffi::{self, Consumer, Event, RecordEvent};
use super::topics::{Topic, TopicState, Topics};
use crate::log::{Follower, Group, Known, LogError, LogRecord, Mark, Marks, Positions, TopicPartition};

/// What one poll returns at most.
const MAX_RECORDS: usize = 1000;
const MAX_BYTES: usize = 4 << 20;

/// What is done with a record that has a key.
type See<'s> = dyn FnMut(&mut Reader, TopicPartition, &RecordEvent<'_>, &[u8]) + 's;
/// Sees the place and the key of a record, and whether it has a value.
type SeeKey<'s> = dyn FnMut(TopicPartition, u64, &[u8], bool) + 's;

pub(super) struct KafkaFollower {
    config: Arc<Config>,
    isolation: Isolation,
    consumer: Consumer<Context>,
    /// `receive.message.max.bytes` of the consumer.
    receive_bytes: usize,
    /// The batch that was read once more.
    retried: Option<Undecodable>,
    reader: Reader,
}

/// A batch that librdkafka could not decode.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Undecodable {
    /// The topic, the partition and the offset of the batch; `None` for an answer that is too large
    /// to be received.
    place: Option<(String, i32, i64)>,
    /// What librdkafka says, with the codec.
    cause: String,
}

/// Everything but the consumer, so that an event that borrows from the consumer can change it.
struct Reader {
    topics: Arc<Topics>,
    health: Arc<Health>,
    /// The generation of `topics` when they were last looked at.
    generation: u64,
    followed: Vec<Followed>,
    /// Index in `followed` of the newest record's topic: the next record is likely of the same
    /// topic.
    recent: usize,
    skipped: u64,
    bad_group_told: bool,
    /// The batch that could not be decoded just now.
    undecodable: Option<Undecodable>,
    /// What ended this follower.
    failed: Option<LogError>,
}

struct Followed {
    database: u16,
    topic: Arc<Topic>,
    /// The next offset of each partition; `None` until the start of the log is known.
    next: Vec<Option<u64>>,
    marks: Vec<Option<Mark>>,
    /// Whether Kafka has given a record of the partition, or its end: then it has the position.
    confirmed: Vec<bool>,
}

impl KafkaFollower {
    pub fn start(
        config: &Arc<Config>,
        topics: &Arc<Topics>,
        health: &Arc<Health>,
        from: &Positions,
        isolation: Isolation,
    ) -> Result<KafkaFollower, LogError> {
        KafkaFollower::start_marked(config, topics, health, from, &Marks::new(), isolation)
    }

    pub fn start_marked(
        config: &Arc<Config>,
        topics: &Arc<Topics>,
        health: &Arc<Health>,
        from: &Positions,
        marks: &Marks,
        isolation: Isolation,
    ) -> Result<KafkaFollower, LogError> {
        let receive_bytes = config.receive_bytes().unwrap_or_else(|| topics.receive_bytes());
        let consumer = create(config, isolation, receive_bytes, health)?;
        let reader = Reader {
            topics: Arc::clone(topics),
            health: Arc::clone(health),
            generation: topics.generation(),
            followed: Vec::new(),
            recent: 0,
            skipped: 0,
            bad_group_told: false,
            undecodable: None,
            failed: None,
        };
        let mut follower = KafkaFollower {
            config: Arc::clone(config),
            isolation,
            consumer,
            receive_bytes,
            retried: None,
            reader,
        };
        follower.reader.take_new_topics(from, marks);
        follower.assign()?;
        Ok(follower)
    }

    /// Assigns the consumer what to read. Records that it had fetched already come again and are
    /// passed over.
    fn assign(&self) -> Result<(), LogError> {
        let failed = |error| LogError::Failed(format!("cannot read the log: {}", describe_error(&error)));
        let offset = |next: u64| Offset::Offset(i64::try_from(next).unwrap_or(i64::MAX));
        let mut list = TopicPartitionList::new();
        let mut epochs = Vec::new();
        for followed in &self.reader.followed {
            for (partition, (next, mark)) in followed.next.iter().zip(&followed.marks).enumerate() {
                let offset = match (next, mark) {
                    // Nothing was read yet, so nothing is missed where the log now starts.
                    (None | Some(0), _) => Offset::Beginning,
                    // Only control records, such as transaction markers, can be between the two,
                    // and they are of later epochs.
                    (Some(_), Some(mark)) => offset(mark.offset + 1),
                    (Some(next), None) => offset(*next),
                };
                epochs.push(mark.map(|mark| mark.epoch));
                list.add_partition_offset(&followed.topic.identity.topic, partition as i32, offset)
                    .map_err(failed)?;
            }
        }
        ffi::set_leader_epochs(&mut list, &epochs);
        self.consumer.inner().assign(&list).map_err(failed)
    }

    /// Reads from the same positions with a new consumer and the largest limit. The second time it
    /// ends the follower.
    fn read_again(&mut self, what: Undecodable) -> Result<(), LogError> {
        let users = self.config.receive_bytes();
        let largest = users.unwrap_or(LARGEST_RECEIVE_BYTES);
        if what.place.is_none() && self.receive_bytes == LARGEST_RECEIVE_BYTES {
            // No answer can be larger, so this was no answer: the connection is broken, and
            // librdkafka makes a new one.
            return Ok(());
        }
        if self.retried.as_ref().is_some_and(|before| before.place == what.place) {
            return Err(LogError::Failed(what.describe(users)));
        }
        tracing::info!(
            cause = what.cause,
            "a batch could not be decoded; reading it again with {RECEIVE_BYTES}={largest}"
        );
        self.receive_bytes = largest;
        self.consumer = create(&self.config, self.isolation, largest, &self.reader.health)?;
        self.retried = Some(what);
        self.assign()
    }

    /// Like [`Follower::poll`], but only shows where each record is, and its key.
    pub fn poll_keys(&mut self, see: &mut SeeKey<'_>, timeout: Duration) -> Result<(), LogError> {
        self.poll_events(timeout, &mut |_, at, record, key| {
            see(at, record.offset() as u64, key, record.value().is_some());
        })
    }

    /// Shows at most some thousand records, and waits for the first of them.
    fn poll_events(&mut self, timeout: Duration, see: &mut See<'_>) -> Result<(), LogError> {
        if let Some(error) = &self.reader.failed {
            return Err(error.clone());
        }
        if self.reader.look_for_changes()? {
            self.assign()?;
        }
        let end = std::time::Instant::now() + timeout;
        let (mut got, mut bytes) = (0, 0);
        loop {
            if got >= MAX_RECORDS || bytes >= MAX_BYTES {
                break;
            }
            // Once there is a record, take what else is there, and do not wait for more.
            let wait = if got > 0 {
                Duration::ZERO
            } else {
                end.saturating_duration_since(std::time::Instant::now())
            };
            let reader = &mut self.reader;
            match self.consumer.poll(wait, |event| reader.see(event, see)) {
                Some(None) => {}
                Some(Some(read)) => {
                    got += 1;
                    bytes += read;
                }
                None => break,
            }
            if let Some(what) = self.reader.undecodable.take() {
                self.reader.failed = self.read_again(what).err();
            }
            if self.reader.failed.is_some() {
                break;
            }
        }
        match &self.reader.failed {
            // The records before the error are good; the error is returned next time.
            Some(error) if got == 0 => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

/// A consumer that reads nothing yet.
fn create(
    config: &Config,
    isolation: Isolation,
    receive_bytes: usize,
    health: &Arc<Health>,
) -> Result<Consumer<Context>, LogError> {
    Consumer::create(&config.follower(isolation, receive_bytes), Context::new(health))
        .map_err(|error| LogError::Failed(describe_error(&error)))
}

impl Undecodable {
    fn at(place: Option<(&CStr, i32, i64)>, text: &str) -> Undecodable {
        Undecodable {
            place: place.map(|(topic, partition, offset)| (topic.to_string_lossy().into_owned(), partition, offset)),
            cause: with_codec_name(text),
        }
    }

    /// For a person: which batch it is, and what to do. `users` is the limit that was set with
    /// `-X`.
    fn describe(&self, users: Option<usize>) -> String {
        let what = match &self.place {
            Some((topic, partition, offset)) => {
                format!("cannot decode the batch at topic {topic} partition {partition} offset {offset}")
            }
            None => "cannot receive an answer of Kafka".to_owned(),
        };
        let advice = match users {
            Some(bytes) => format!(
                "it is larger than {RECEIVE_BYTES}={bytes} allows, or damaged: start this node without that setting, or \
                 with a larger one (-X {RECEIVE_BYTES}={LARGEST_RECEIVE_BYTES})"
            ),
            None => format!(
                "it is damaged, or larger than {RECEIVE_BYTES} can be ({LARGEST_RECEIVE_BYTES} bytes): write its keys \
                 again, and restart this node once Kafka has compacted the topic"
            ),
        };
        format!("{what}: {}; {advice}", self.cause)
    }
}

/// librdkafka's words with the codec's name in place of its number.
fn with_codec_name(text: &str) -> String {
    let codecs = ["none", "gzip", "snappy", "lz4", "zstd"].iter().enumerate();
    codecs.fold(text.to_owned(), |text, (number, name)| {
        text.replace(&format!("codec 0x{number:x})"), &format!("codec {name})"))
    })
}

impl Follower for KafkaFollower {
    fn poll(&mut self, out: &mut Vec<LogRecord>, timeout: Duration) -> Result<(), LogError> {
        self.poll_events(timeout, &mut |reader, at, record, key| {
            out.push(reader.decode(at, record, key));
        })
    }

    fn poll_news(&mut self, known: Known<'_>, out: &mut Vec<LogRecord>, timeout: Duration) -> Result<u64, LogError> {
        let mut passed = 0;
        self.poll_events(timeout, &mut |reader, at, record, key| {
            if known(at, record.offset() as u64, record.timestamp(), key) {
                passed += 1;
            } else {
                out.push(reader.decode(at, record, key));
            }
        })?;
        Ok(passed)
    }

    fn positions(&self) -> Positions {
        let mut positions = Positions::new();
        for followed in &self.reader.followed {
            for (partition, next) in followed.next.iter().enumerate() {
                let at = TopicPartition {
                    database: followed.database,
                    partition: partition as u32,
                };
                positions.insert(at, next.unwrap_or(0));
            }
        }
        positions
    }

    fn is_confirmed(&self) -> bool {
        let all = self.reader.followed.iter().flat_map(|followed| &followed.confirmed);
        all.into_iter().all(|confirmed| *confirmed)
    }

    fn marks(&self) -> Marks {
        let mut all = Marks::new();
        for followed in &self.reader.followed {
            for (partition, mark) in followed.marks.iter().enumerate() {
                let at = TopicPartition {
                    database: followed.database,
                    partition: partition as u32,
                };
                all.extend(mark.map(|mark| (at, mark)));
            }
        }
        all
    }

    fn skipped(&self) -> u64 {
        self.reader.skipped
    }
}

impl Reader {
    /// True if there is something new to read.
    fn look_for_changes(&mut self) -> Result<bool, LogError> {
        let generation = self.topics.generation();
        if generation == self.generation {
            return Ok(false);
        }
        let states = self.topics.states();
        for followed in &self.followed {
            let then = &followed.topic.identity;
            let now = states
                .get(usize::from(followed.database))
                .and_then(TopicState::usable)
                .map(|topic| &topic.identity);
            let change = match now {
                Some(now) if now == then => continue,
                Some(now) if now.id == then.id && now.partitions == then.partitions => {
                    let error = LogError::PositionLost(format!(
                        "records at the start of topic {} were deleted (by hand, or by a cleanup.policy that is not compact)",
                        then.topic
                    ));
                    self.failed = Some(error.clone());
                    return Err(error);
                }
                Some(now) if now.id == then.id => {
                    format!(
                        "topic {} now has {} partitions, not {}",
                        then.topic, now.partitions, then.partitions
                    )
                }
                Some(_) => format!("topic {} was deleted and made again", then.topic),
                None => format!("topic {} was deleted, or can no longer be used", then.topic),
            };
            let error = LogError::IdentityChanged(change);
            self.failed = Some(error.clone());
            return Err(error);
        }
        drop(states);
        self.generation = generation;
        Ok(self.take_new_topics(&Positions::new(), &Marks::new()))
    }

    fn take_new_topics(&mut self, from: &Positions, marks: &Marks) -> bool {
        let before = self.followed.len();
        let states = self.topics.states();
        for (database, state) in states.iter().enumerate() {
            let database = database as u16;
            let known = self.followed.iter().any(|followed| followed.database == database);
            if let (Some(topic), false) = (state.usable(), known) {
                let place = |partition| TopicPartition { database, partition };
                let next: Vec<_> = (0..topic.identity.partitions)
                    .map(|partition| from.get(&place(partition)).copied())
                    .collect();
                let mark = |(partition, next): (usize, &Option<u64>)| {
                    let mark = marks.get(&place(partition as u32)).copied();
                    mark.filter(|mark| next.is_some_and(|next| mark.offset < next))
                };
                let marks = next.iter().enumerate().map(mark).collect();
                self.followed.push(Followed {
                    database,
                    topic: Arc::clone(topic),
                    confirmed: vec![false; next.len()],
                    next,
                    marks,
                });
            }
        }
        self.followed.len() > before
    }

    /// Takes in one event. Returns the bytes of its record, if it is a record that was wanted.
    fn see(&mut self, event: Event<'_>, see: &mut See<'_>) -> Option<usize> {
        match event {
            Event::Record(record) => return self.see_record(&record, see),
            Event::End {
                topic,
                partition,
                offset,
            } => {
                if let (Some(next), Ok(offset)) = (self.place(topic, partition), u64::try_from(offset)) {
                    *next = Some(next.map_or(offset, |known| known.max(offset)));
                    self.followed[self.recent].confirmed[partition as usize] = true;
                }
            }
            Event::Error { at, code, text, fatal } => self.see_error(at, code, &text, fatal),
            Event::Log { level, facility, text } => self.health.line(level, facility, &text),
            Event::Other => {}
        }
        None
    }

    fn see_record(&mut self, record: &RecordEvent<'_>, see: &mut See<'_>) -> Option<usize> {
        let offset = u64::try_from(record.offset()).ok()?;
        match self.place(record.topic, record.partition())? {
            // The record was read before the last assignment.
            Some(next) if offset < *next => return None,
            next => *next = Some(offset + 1),
        }
        let (followed, partition) = (&mut self.followed[self.recent], record.partition() as usize);
        followed.confirmed[partition] = true;
        followed.marks[partition] = record.leader_epoch().map(|epoch| Mark { offset, epoch });
        let Some(key) = record.key() else {
            self.skipped += 1;
            return None;
        };
        let at = TopicPartition {
            database: self.followed[self.recent].database,
            partition: record.partition() as u32,
        };
        see(self, at, record, key);
        Some(key.len() + record.value().map_or(0, <[u8]>::len))
    }

    fn decode(&mut self, at: TopicPartition, record: &RecordEvent<'_>, key: &[u8]) -> LogRecord {
        let decoded = codec::decode(key, record.value(), record.headers());
        let offset = record.offset() as u64;
        if decoded.bad_group && !self.bad_group_told {
            self.bad_group_told = true;
            let topic = self.topics.name(at.database);
            tracing::warn!(
                topic,
                at.partition,
                offset,
                "a record has a group header that makes no sense; told once"
            );
        }
        LogRecord {
            at,
            offset,
            timestamp: record.timestamp(),
            key: Bytes::copy_from_slice(key),
            payload: decoded.payload,
            group: decoded.group.map(|header| self.group(&header)),
        }
    }

    /// The group as far as this follower reads it: partitions that it does not read are not waited
    /// for.
    fn group(&self, header: &GroupHeader) -> Group {
        let is_read = |(topic, partition, _): &&(String, u32, u32)| {
            let of_topic = |followed: &&Followed| followed.topic.identity.topic == *topic;
            let followed = self.followed.iter().find(of_topic);
            followed.is_some_and(|followed| (*partition as usize) < followed.next.len())
        };
        let elsewhere = header.elsewhere.iter().filter(is_read).map(|(_, _, count)| *count);
        Group {
            id: header.id,
            records: elsewhere.fold(header.here, u32::saturating_add),
        }
    }

    /// The position of a partition that is followed; remembers its topic as the recent one.
    fn place(&mut self, topic: &CStr, partition: i32) -> Option<&mut Option<u64>> {
        let is_it = |followed: &Followed| followed.topic.identity.topic.as_bytes() == topic.to_bytes();
        if !self.followed.get(self.recent).is_some_and(is_it) {
            self.recent = self.followed.iter().position(is_it)?;
        }
        self.followed[self.recent]
            .next
            .get_mut(usize::try_from(partition).ok()?)
    }

    fn see_error(&mut self, at: Option<(&CStr, i32, i64)>, code: RDKafkaErrorCode, text: &str, fatal: bool) {
        use RDKafkaErrorCode::*;
        let place = match at {
            Some((topic, partition, offset)) => {
                format!(
                    "topic {} partition {partition} offset {offset}",
                    topic.to_string_lossy()
                )
            }
            None => "the log".to_owned(),
        };
        let words = describe_code(code);
        match code {
            AutoOffsetReset | OffsetOutOfRange | LogTruncation if at.is_some() => {
                self.failed = Some(LogError::PositionLost(format!(
                    "{place} is not in the log any more, or not yet: {text}"
                )));
            }
            BadMessage | BadCompression | InvalidMessage | NotImplemented | CriticalSystemResource if at.is_some() => {
                self.undecodable = Some(Undecodable::at(at, text));
            }
            BadMessage if text.contains(RECEIVE_BYTES) => self.undecodable = Some(Undecodable::at(None, text)),
            // librdkafka tries again, and goes on when the right is given back.
            TopicAuthorizationFailed => self.health.line(
                RDKafkaLogLevel::Warning,
                "READ",
                &format!("cannot read {place}: not authorized; allow Read on it. Until then nothing new is seen"),
            ),
            _ if fatal => self.failed = Some(LogError::Failed(format!("cannot read {place}: {words}: {text}"))),
            UnknownTopicOrPartition | UnknownTopic | UnknownPartition | UnknownTopicId => self.topics.hurry(),
            // Nothing joins the group, so it does not matter whether this node may.
            GroupAuthorizationFailed | CoordinatorNotAvailable | NotCoordinator | CoordinatorLoadInProgress => {}
            AllBrokersDown => self.topics.hurry(),
            // librdkafka tries again by itself.
            _ => self
                .health
                .line(RDKafkaLogLevel::Debug, "FOLLOW", &format!("{place}: {words}: {text}")),
        }
        self.health.error(code, text);
    }
}
