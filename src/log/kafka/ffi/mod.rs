//! The few calls of librdkafka that rdkafka does not wrap, each behind a safe function: the only
//! `unsafe` of the Kafka log. Knows pointers and lifetimes, and decides nothing.
//!
//! - [`describe_topics`]: topics with their ids, many in one call.
//! - [`stable_offsets`]: how far what is committed is known, without a consumer of its own.
//! - [`set_leader_epochs`]: in which epoch a position was reached.
//! - [`Consumer::poll`]: a consumer's events with topic, partition and offset on *every* one.
//!   rdkafka's own poll leaves out the topic of errors and ends, and panics at a header name that
//!   is not UTF-8.
//! - [`producer`]: all reports together that one answer of a broker brought (rdkafka gives them one
//!   by one), whether a message that failed may be in the log all the same, acknowledgements
//!   reported in librdkafka's own thread, and requests that were not answered.

mod producer;

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as sys;

pub use producer::{Hears, Polls, Producer, Report, Status, topic_name};

/// The most headers of one record that are read.
const MAX_HEADERS: usize = 1000;

/// Sets for each partition of the list, in its order, the leader epoch in which its position was
/// reached. A consumer that is assigned the list then gets an error if the log was cut below.
pub fn set_leader_epochs(list: &mut TopicPartitionList, epochs: &[Option<i32>]) {
    // SAFETY: `list` is ours alone for the whole call, and owns the array of `cnt` partitions, of
    // which no other is touched.
    unsafe {
        let native = &*list.ptr();
        let count = usize::try_from(native.cnt).unwrap_or(0);
        for (at, epoch) in epochs.iter().enumerate().take(count) {
            if let Some(epoch) = epoch {
                sys::rd_kafka_topic_partition_set_leader_epoch(native.elems.add(at), *epoch);
            }
        }
    }
}

/// The broker that answers for the cluster now; `None` if none is known within the time.
pub fn any_broker<C: ClientContext>(client: &Client<C>, timeout: Duration) -> Option<i32> {
    // SAFETY: the client is alive for the whole call, which takes no other pointer.
    let id = unsafe { sys::rd_kafka_controllerid(client.native_ptr(), millis(timeout)) };
    (id >= 0).then_some(id)
}

/// A failed call: what happened, and librdkafka's words for it.
pub type CallError = (RDKafkaErrorCode, String);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Base64, as Kafka's tools print it. All zeros (`AAAA…`) from a broker that has no topic ids.
    pub id: String,
    pub partitions: u32,
    /// Of the first partition.
    pub replicas: usize,
    /// Every partition has a leader.
    pub served: bool,
}

/// Describes topics, one answer per name and in that order. Never creates a topic.
pub fn describe_topics<C: ClientContext>(
    client: &Client<C>,
    names: &[&str],
    timeout: Duration,
) -> Result<Vec<Result<Described, CallError>>, CallError> {
    let mut by_name = ask_for_topics(client, names, timeout)?;
    let missing = || {
        (
            RDKafkaErrorCode::UnknownTopicOrPartition,
            "the broker's answer leaves it out".to_owned(),
        )
    };
    Ok(names
        .iter()
        .map(|name| by_name.remove(*name).unwrap_or_else(|| Err(missing())))
        .collect())
}

type ByName = std::collections::HashMap<String, Result<Described, CallError>>;

fn ask_for_topics<C: ClientContext>(
    client: &Client<C>,
    names: &[&str],
    timeout: Duration,
) -> Result<ByName, CallError> {
    let bad_name = |_| {
        (
            RDKafkaErrorCode::InvalidTopic,
            "a topic name has a zero byte".to_owned(),
        )
    };
    let owned: Vec<CString> = names
        .iter()
        .map(|name| CString::new(*name))
        .collect::<Result<_, _>>()
        .map_err(bad_name)?;
    let mut pointers: Vec<*const c_char> = owned.iter().map(|name| name.as_ptr()).collect();
    let rk = client.native_ptr();
    // SAFETY: `rk` is a live client for the whole function. `pointers` are zero-terminated strings
    // that `owned` keeps alive; the collection copies them. The collection and the options are used
    // up by DescribeTopics (which copies what it keeps), so they are destroyed right after it, once
    // each. `Queue` destroys the queue once, after the event: an answer that comes later than the
    // poll is then dropped by librdkafka.
    unsafe {
        let queue = Queue(sys::rd_kafka_queue_new(rk));
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let options = sys::rd_kafka_AdminOptions_new(rk, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let mut text = [0 as c_char; 256];
        // Refused only outside of 0..3600 s, which `millis` and our callers keep; the default is
        // then used.
        sys::rd_kafka_AdminOptions_set_request_timeout(options, millis(timeout), text.as_mut_ptr(), text.len());
        sys::rd_kafka_DescribeTopics(rk, topics, options, queue.0);
        sys::rd_kafka_AdminOptions_destroy(options);
        sys::rd_kafka_TopicCollection_destroy(topics);
        match queue.poll(timeout + Duration::from_millis(500)) {
            Some(event) => read_descriptions(&event),
            None => Err((RDKafkaErrorCode::OperationTimedOut, "no answer".to_owned())),
        }
    }
}

/// # Safety
/// `event` came from the queue of a DescribeTopics call.
unsafe fn read_descriptions(event: &EventPtr) -> Result<ByName, CallError> {
    // SAFETY: `event` lives to the end of the function and owns everything that is reached from it:
    // the result, the array of `count` descriptions, their names, ids, errors and partition arrays.
    // Nothing is kept but copies.
    unsafe {
        let code: RDKafkaErrorCode = sys::rd_kafka_event_error(event.0).into();
        if code != RDKafkaErrorCode::NoError {
            return Err((code, text(sys::rd_kafka_event_error_string(event.0))));
        }
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0);
        if result.is_null() {
            return Err((RDKafkaErrorCode::Fail, "an answer to another question".to_owned()));
        }
        let mut count = 0;
        let topics = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        let mut all = ByName::new();
        for at in 0..count {
            let topic = *topics.add(at);
            all.insert(
                text(sys::rd_kafka_TopicDescription_name(topic)),
                read_description(topic),
            );
        }
        Ok(all)
    }
}

/// # Safety
/// `topic` is one of the descriptions of a live event.
unsafe fn read_description(topic: *const sys::rd_kafka_TopicDescription_t) -> Result<Described, CallError> {
    // SAFETY: as in `read_descriptions`. A null error is no error (rd_kafka_error_code takes it
    // so); the leader of a partition without one is null.
    unsafe {
        let error = sys::rd_kafka_TopicDescription_error(topic);
        let code: RDKafkaErrorCode = sys::rd_kafka_error_code(error).into();
        if code != RDKafkaErrorCode::NoError {
            return Err((code, text(sys::rd_kafka_error_string(error))));
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        let id = if id.is_null() {
            String::new()
        } else {
            text(sys::rd_kafka_Uuid_base64str(id))
        };
        let mut count = 0;
        let partitions = sys::rd_kafka_TopicDescription_partitions(topic, &mut count);
        let (mut served, mut replicas) = (count > 0, 0);
        for at in 0..count {
            let partition = *partitions.add(at);
            let leader = sys::rd_kafka_TopicPartitionInfo_leader(partition);
            served &= !leader.is_null() && sys::rd_kafka_Node_id(leader) >= 0;
            if at == 0 {
                sys::rd_kafka_TopicPartitionInfo_replicas(partition, &mut replicas);
            }
        }
        Ok(Described {
            id,
            partitions: count as u32,
            replicas,
            served,
        })
    }
}

/// The offset of each partition of the list below which every record is decided, committed or not
/// (the *last stable offset*). Only the list's topics and partitions are read.
pub fn stable_offsets<C: ClientContext>(
    client: &Client<C>,
    list: &TopicPartitionList,
    timeout: Duration,
) -> Result<TopicPartitionList, CallError> {
    let rk = client.native_ptr();
    let mut asked = list.clone();
    let asked_all = asked.set_all_offsets(Offset::End);
    asked_all.map_err(|error| (RDKafkaErrorCode::InvalidArgument, error.to_string()))?;
    // SAFETY: `rk` is a live client for the whole function, and `asked` a list that the call
    // copies. -1, which `Offset::End` is, asks for the latest offset. The options are used up by
    // the call, so they are destroyed right after it. `Queue` destroys the queue once, after the
    // event.
    unsafe {
        let queue = Queue(sys::rd_kafka_queue_new(rk));
        let options = sys::rd_kafka_AdminOptions_new(rk, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS);
        let mut words = [0 as c_char; 256];
        sys::rd_kafka_AdminOptions_set_request_timeout(options, millis(timeout), words.as_mut_ptr(), words.len());
        let committed = sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED;
        // Never refused for this level; null is no error, and may be destroyed.
        sys::rd_kafka_error_destroy(sys::rd_kafka_AdminOptions_set_isolation_level(options, committed));
        sys::rd_kafka_ListOffsets(rk, asked.ptr(), options, queue.0);
        sys::rd_kafka_AdminOptions_destroy(options);
        match queue.poll(timeout + Duration::from_millis(500)) {
            Some(event) => read_offsets(&event),
            None => Err((RDKafkaErrorCode::OperationTimedOut, "no answer".to_owned())),
        }
    }
}

/// # Safety
/// `event` came from the queue of a ListOffsets call.
unsafe fn read_offsets(event: &EventPtr) -> Result<TopicPartitionList, CallError> {
    // SAFETY: `event` lives to the end of the function and owns everything that is reached from it.
    // Nothing is kept but copies.
    unsafe {
        let code: RDKafkaErrorCode = sys::rd_kafka_event_error(event.0).into();
        if code != RDKafkaErrorCode::NoError {
            return Err((code, text(sys::rd_kafka_event_error_string(event.0))));
        }
        let result = sys::rd_kafka_event_ListOffsets_result(event.0);
        if result.is_null() {
            return Err((RDKafkaErrorCode::Fail, "an answer to another question".to_owned()));
        }
        let mut count = 0;
        let infos = sys::rd_kafka_ListOffsets_result_infos(result, &mut count);
        let mut list = TopicPartitionList::new();
        for at in 0..count {
            let partition = &*sys::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(at));
            let code = RDKafkaErrorCode::from(partition.err);
            if code != RDKafkaErrorCode::NoError {
                return Err((code, code.to_string()));
            }
            let offset = Offset::Offset(partition.offset);
            list.add_partition_offset(&text(partition.topic), partition.partition, offset)
                .map_err(|error| (RDKafkaErrorCode::InvalidArgument, error.to_string()))?;
        }
        Ok(list)
    }
}

/// A consumer with a poll that reports everything. Field order is drop order: the queue goes before
/// its client.
pub struct Consumer<C: ConsumerContext> {
    queue: Queue,
    inner: BaseConsumer<C>,
}

// SAFETY: librdkafka's queues and clients may be used and destroyed by any thread (rdkafka says the
// same of its own `NativeQueue`); `BaseConsumer` is Send by itself.
unsafe impl<C: ConsumerContext> Send for Consumer<C> {}

/// An event that came, borrowed from librdkafka's event.
pub enum Event<'a> {
    Record(RecordEvent<'a>),
    /// The end of a partition is reached; `offset` is the next one that will be written.
    End {
        topic: &'a CStr,
        partition: i32,
        offset: i64,
    },
    /// An error, of a partition if it has one.
    Error {
        at: Option<(&'a CStr, i32, i64)>,
        code: RDKafkaErrorCode,
        text: String,
        fatal: bool,
    },
    Log {
        level: RDKafkaLogLevel,
        facility: &'a str,
        text: String,
    },
    /// Nothing of interest.
    Other,
}

pub struct RecordEvent<'a> {
    message: &'a sys::rd_kafka_message_t,
    pub topic: &'a CStr,
}

impl<C: ConsumerContext> Consumer<C> {
    /// The configuration has a `group.id`: without one, records do not come through the consumer's
    /// queue.
    pub fn create(config: &ClientConfig, context: C) -> KafkaResult<Consumer<C>> {
        let inner: BaseConsumer<C> = config.create_with_context(context)?;
        // SAFETY: the client is alive; the call returns a new reference to its queue, or null
        // without a group id, which `Queue` bears. `Consumer` drops it before the client.
        let queue = Queue(unsafe { sys::rd_kafka_queue_get_consumer(inner.client().native_ptr()) });
        Ok(Consumer { queue, inner })
    }

    pub fn inner(&self) -> &BaseConsumer<C> {
        &self.inner
    }

    /// Waits for one event and shows it to `see`; `None` when nothing came.
    pub fn poll<R>(&mut self, timeout: Duration, see: impl FnOnce(Event<'_>) -> R) -> Option<R> {
        let event = self.queue.poll(timeout)?;
        // SAFETY: `event` is alive until the end of this function, and `see` cannot keep what it
        // borrows.
        let kind = unsafe { sys::rd_kafka_event_type(event.0) };
        Some(match kind {
            // SAFETY: as above, and the event is of the kind that each function asks for.
            sys::RD_KAFKA_EVENT_FETCH => unsafe { see(record(&event)) },
            sys::RD_KAFKA_EVENT_ERROR => unsafe { see_error(&event, see) },
            sys::RD_KAFKA_EVENT_LOG => unsafe { see(log_line(&event)) },
            _ => see(Event::Other),
        })
    }
}

/// # Safety
/// `event` is a fetch event; what is returned borrows from it.
unsafe fn record(event: &EventPtr) -> Event<'_> {
    // SAFETY: a fetch event holds one message, which it owns, as does the topic handle the name
    // belongs to.
    unsafe {
        match sys::rd_kafka_event_message_next(event.0).as_ref() {
            None => Event::Other,
            Some(message) => {
                let topic = CStr::from_ptr(sys::rd_kafka_topic_name(message.rkt));
                Event::Record(RecordEvent { message, topic })
            }
        }
    }
}

/// # Safety
/// `event` is an error event.
unsafe fn see_error<R>(event: &EventPtr, see: impl FnOnce(Event<'_>) -> R) -> R {
    // SAFETY: the partition, if any, is a copy of our own: it lives until it is destroyed, once,
    // after `see` has returned (if `see` panics it leaks, no more). Strings belong to the event.
    unsafe {
        let code: RDKafkaErrorCode = sys::rd_kafka_event_error(event.0).into();
        let words = text(sys::rd_kafka_event_error_string(event.0));
        let fatal = sys::rd_kafka_event_error_is_fatal(event.0) != 0;
        let place = sys::rd_kafka_event_topic_partition(event.0);
        let Some(at) = place.as_ref() else {
            return see(Event::Error {
                at: None,
                code,
                text: words,
                fatal,
            });
        };
        let (topic, partition, offset) = (CStr::from_ptr(at.topic), at.partition, at.offset);
        let seen = match code {
            RDKafkaErrorCode::PartitionEOF => see(Event::End {
                topic,
                partition,
                offset,
            }),
            _ => see(Event::Error {
                at: Some((topic, partition, offset)),
                code,
                text: words,
                fatal,
            }),
        };
        sys::rd_kafka_topic_partition_destroy(place);
        seen
    }
}

/// # Safety
/// `event` is a log event; what is returned borrows from it.
unsafe fn log_line(event: &EventPtr) -> Event<'_> {
    let (mut facility, mut words, mut level): (*const c_char, *const c_char, c_int) = (ptr::null(), ptr::null(), 0);
    // SAFETY: the call sets all three when it returns 0, to strings that the event owns.
    unsafe {
        if sys::rd_kafka_event_log(event.0, &mut facility, &mut words, &mut level) != 0 {
            return Event::Other;
        }
        let level = match level {
            ..=3 => RDKafkaLogLevel::Error,
            4 => RDKafkaLogLevel::Warning,
            5 => RDKafkaLogLevel::Notice,
            6 => RDKafkaLogLevel::Info,
            _ => RDKafkaLogLevel::Debug,
        };
        let facility = CStr::from_ptr(facility).to_str().unwrap_or("?");
        Event::Log {
            level,
            facility,
            text: text(words),
        }
    }
}

impl<'a> RecordEvent<'a> {
    pub fn partition(&self) -> i32 {
        self.message.partition
    }

    pub fn offset(&self) -> i64 {
        self.message.offset
    }

    /// Milliseconds since the epoch; -1 if the record has none.
    pub fn timestamp(&self) -> i64 {
        // SAFETY: the message is alive; a null type is allowed and means that it is not wanted.
        unsafe { sys::rd_kafka_message_timestamp(self.message, ptr::null_mut()) }
    }

    /// The epoch of the leader that took the record in, if the record has it.
    pub fn leader_epoch(&self) -> Option<i32> {
        // SAFETY: the message is alive, and the call only reads from it.
        let epoch = unsafe { sys::rd_kafka_message_leader_epoch(self.message) };
        (epoch >= 0).then_some(epoch)
    }

    pub fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: key and length belong together, and to the message, which lives for 'a.
        unsafe { slice(self.message.key.cast(), self.message.key_len) }
    }

    pub fn value(&self) -> Option<&'a [u8]> {
        // SAFETY: as for the key.
        unsafe { slice(self.message.payload.cast(), self.message.len) }
    }

    /// Name and value of each header, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + use<'a> {
        let mut headers = ptr::null_mut();
        // SAFETY: the message is alive. Parsing happens at the first call, on the one thread that
        // has the event.
        let code = unsafe { sys::rd_kafka_message_headers(self.message, &mut headers) };
        let found = RDKafkaErrorCode::from(code) == RDKafkaErrorCode::NoError && !headers.is_null();
        let headers: *const sys::rd_kafka_headers_t = headers;
        (0..if found { MAX_HEADERS } else { 0 }).map_while(move |at| {
            let (mut name, mut value, mut size) = (ptr::null(), ptr::null(), 0);
            // SAFETY: `headers` belongs to the message, which lives for 'a; past the last header
            // the call returns an error and sets nothing. The name is zero-terminated.
            unsafe {
                let code = sys::rd_kafka_header_get_all(headers, at, &mut name, &mut value, &mut size);
                (RDKafkaErrorCode::from(code) == RDKafkaErrorCode::NoError)
                    .then(|| (CStr::from_ptr(name).to_bytes(), slice(value.cast(), size)))
            }
        })
    }
}

/// Our reference to a queue of librdkafka; null polls as empty.
struct Queue(*mut sys::rd_kafka_queue_t);

impl Queue {
    fn poll(&self, timeout: Duration) -> Option<EventPtr> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: the reference is ours until `drop`. The event that is returned is ours to
        // destroy.
        let event = unsafe { sys::rd_kafka_queue_poll(self.0, millis(timeout)) };
        (!event.is_null()).then_some(EventPtr(event))
    }
}

impl Queue {
    /// Gives the reference back; what is left polls as empty.
    fn release(&mut self) {
        let queue = std::mem::replace(&mut self.0, ptr::null_mut());
        if !queue.is_null() {
            // SAFETY: the reference was ours and is not used again.
            unsafe { sys::rd_kafka_queue_destroy(queue) }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.release();
    }
}

struct EventPtr(*mut sys::rd_kafka_event_t);

impl Drop for EventPtr {
    fn drop(&mut self) {
        // SAFETY: the event was given to us by rd_kafka_queue_poll, and is not used again.
        unsafe { sys::rd_kafka_event_destroy(self.0) }
    }
}

/// # Safety
/// Null, or `length` readable bytes that live for 'a.
unsafe fn slice<'a>(bytes: *const u8, length: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    (!bytes.is_null()).then(|| unsafe { std::slice::from_raw_parts(bytes, length) })
}

/// # Safety
/// Null, or a zero-terminated string that is alive.
unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().trim().to_owned()
}

fn millis(timeout: Duration) -> c_int {
    c_int::try_from(timeout.as_millis())
        .unwrap_or(c_int::MAX)
        .min(3_600_000)
}
