//! A producer that replaces rdkafka's own. That one gives reports one by one, does not pass on
//! acknowledgements in librdkafka's own thread, and hides what became of a request.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::util::IntoOpaque;
use rdkafka_sys as sys;
use rdkafka_sys::rd_kafka_msg_status_t as msg_status;
use rdkafka_sys::rd_kafka_resp_err_t as resp_err;
use rdkafka_sys::rd_kafka_vtype_t as vtype;

use super::{Event, EventPtr, Queue, log_line, millis, text};

/// Whether a message is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    NotPersisted,
    PossiblyPersisted,
    Persisted,
}

/// What became of a message that was produced.
pub struct Report<'a> {
    message: &'a sys::rd_kafka_message_t,
}

impl<'a> Report<'a> {
    /// Offset (negative if the broker gave none) and timestamp of an acknowledged message.
    pub fn outcome(&self) -> Result<(i64, i64), (RDKafkaErrorCode, Status)> {
        let code = RDKafkaErrorCode::from(self.message.err);
        // SAFETY: the message is alive; both calls only read from it, and a null type is allowed.
        unsafe {
            if code == RDKafkaErrorCode::NoError {
                let timestamp = sys::rd_kafka_message_timestamp(self.message, ptr::null_mut());
                return Ok((self.message.offset, timestamp));
            }
            let status = match sys::rd_kafka_message_status(self.message) {
                msg_status::RD_KAFKA_MSG_STATUS_NOT_PERSISTED => Status::NotPersisted,
                msg_status::RD_KAFKA_MSG_STATUS_POSSIBLY_PERSISTED => Status::PossiblyPersisted,
                msg_status::RD_KAFKA_MSG_STATUS_PERSISTED => Status::Persisted,
            };
            Err((code, status))
        }
    }
}

/// What a producer reports, beside its log lines and errors.
pub trait Hears: ClientContext {
    /// Goes with each message, and comes back with its report.
    type Delivery: Send + Sync;

    /// Reports that came together, in the order of their messages.
    fn reported(&self, reports: Vec<(Report<'_>, Box<Self::Delivery>)>);

    /// A message was acknowledged, and will be reported. Called by librdkafka's thread for the
    /// broker, with none of its own locks held. Messages that are produced here are in that
    /// thread's queue before it looks for more to send, all of them together.
    fn acknowledged(&self, _: &Self::Delivery) {}

    /// The broker held an answer up for this long because of a quota; zero: no longer.
    fn throttled(&self, _: Duration) {}

    /// A request that changes a transaction was not answered: its connection broke, or it timed
    /// out. librdkafka may send it again, but the first request may still reach the broker, at any
    /// later time. Called by librdkafka's threads, before the call that made the request returns.
    fn unanswered(&self) {}
}

/// A producer that is polled.
pub trait Polls: Send + Sync + 'static {
    /// Waits for one event and passes it to the context. To be called by one thread only, and
    /// rdkafka's own poll must not be called.
    fn poll(&self, timeout: Duration);
    /// Gives up everything that is not acknowledged; that is reported.
    fn purge(&self);
    /// Messages that are not reported yet.
    fn outstanding(&self) -> usize;
}

/// `queue` is the main queue of a producer with this context.
fn poll<C: Hears>(queue: &Queue, context: &C, timeout: Duration) {
    let Some(event) = queue.poll(timeout) else {
        return;
    };
    // SAFETY: `event` is alive until the end of this function, and nobody keeps what is borrowed
    // from it.
    match unsafe { sys::rd_kafka_event_type(event.0) } {
        // SAFETY: it is of this kind, and reports are taken out of it this once.
        sys::RD_KAFKA_EVENT_DR => context.reported(unsafe { reports::<C>(&event) }),
        // SAFETY: it is of this kind.
        sys::RD_KAFKA_EVENT_ERROR => unsafe {
            let code = sys::rd_kafka_event_error(event.0);
            let words = text(sys::rd_kafka_event_error_string(event.0));
            context.error(KafkaError::Global(code.into()), &words);
        },
        // SAFETY: it is of this kind.
        sys::RD_KAFKA_EVENT_LOG => {
            if let Event::Log { level, facility, text } = unsafe { log_line(&event) } {
                context.log(level, facility, &text);
            }
        }
        _ => {}
    }
}

/// # Safety
/// `event` is an event of reports of a producer with this context, and is given here once: each
/// message's opaque is taken out.
unsafe fn reports<C: Hears>(event: &EventPtr) -> Vec<(Report<'_>, Box<C::Delivery>)> {
    // SAFETY: the event owns its messages, and lives as long as what is returned. Each opaque was
    // made by `into_ptr` of this type when the message was sent, and comes back in this one report.
    unsafe {
        let count = sys::rd_kafka_event_message_count(event.0);
        let mut messages: Vec<*const sys::rd_kafka_message_t> = vec![ptr::null(); count];
        let count = sys::rd_kafka_event_message_array(event.0, messages.as_mut_ptr(), count);
        let taken = messages.into_iter().take(count);
        taken
            .filter_map(|message| {
                let message = message.as_ref()?;
                Some((Report { message }, Box::from_ptr(message._private)))
            })
            .collect()
    }
}

/// A client of librdkafka that produces.
pub struct Producer<C: Hears> {
    queue: Queue,
    rk: *mut sys::rd_kafka_t,
    /// librdkafka has its address. Boxed, and dropped after the client.
    context: Box<C>,
}

// SAFETY: librdkafka's queues and clients may be used and destroyed by any thread; contexts are
// Send and Sync.
unsafe impl<C: Hears> Send for Producer<C> {}
// SAFETY: as above.
unsafe impl<C: Hears> Sync for Producer<C> {}

const NAME: &CStr = c"highwater";

impl<C: Hears> Producer<C> {
    pub fn create(config: &ClientConfig, context: C) -> KafkaResult<Producer<C>> {
        // Log lines come as events too, and not on standard error.
        let level = config.log_level;
        let config = config.clone().set("log.queue", "true").create_native_config()?;
        let context = Box::new(context);
        let address: *const C = &*context;
        let mut words = [0 as c_char; 512];
        // SAFETY: the copy of the configuration is ours, and librdkafka's as soon as rd_kafka_new
        // succeeds; else it is destroyed here. The context stays where it is until the client is
        // destroyed, and the callbacks are of its type.
        unsafe {
            let conf = sys::rd_kafka_conf_dup(config.ptr());
            let events = sys::RD_KAFKA_EVENT_DR | sys::RD_KAFKA_EVENT_ERROR | sys::RD_KAFKA_EVENT_LOG;
            sys::rd_kafka_conf_set_events(conf, events);
            sys::rd_kafka_conf_set_opaque(conf, address as *mut c_void);
            sys::rd_kafka_conf_set_throttle_cb(conf, Some(on_throttle::<C>));
            let added = sys::rd_kafka_conf_interceptor_add_on_new(
                conf,
                NAME.as_ptr(),
                Some(on_new::<C>),
                address as *mut c_void,
            );
            let rk = match RDKafkaErrorCode::from(added) {
                RDKafkaErrorCode::NoError => sys::rd_kafka_new(
                    sys::rd_kafka_type_t::RD_KAFKA_PRODUCER,
                    conf,
                    words.as_mut_ptr(),
                    words.len(),
                ),
                _ => ptr::null_mut(),
            };
            if rk.is_null() {
                sys::rd_kafka_conf_destroy(conf);
                return Err(KafkaError::ClientCreation(text(words.as_ptr())));
            }
            sys::rd_kafka_set_log_level(rk, level as c_int);
            // Log lines go to the main queue, which is polled.
            sys::rd_kafka_set_log_queue(rk, ptr::null_mut());
            let queue = Queue(sys::rd_kafka_queue_get_main(rk));
            Ok(Producer { queue, rk, context })
        }
    }

    pub fn context(&self) -> &C {
        &self.context
    }

    /// Hands a message over; gives the delivery back if it was not taken.
    pub fn send<'h>(
        &self,
        topic: &CStr,
        partition: i32,
        key: &[u8],
        value: Option<&[u8]>,
        headers: impl ExactSizeIterator<Item = (&'h str, &'h [u8])>,
        delivery: Box<C::Delivery>,
    ) -> Result<(), (RDKafkaErrorCode, Box<C::Delivery>)> {
        let opaque = delivery.into_ptr();
        // SAFETY: what is pointed to outlives the call, which copies it (MSG_F_COPY); headers and
        // opaque become librdkafka's if it succeeds, and stay ours if not.
        unsafe {
            let list = native_headers(headers);
            let value = value.map_or((ptr::null(), 0), |value| (value.as_ptr(), value.len()));
            let code = sys::rd_kafka_producev(
                self.rk,
                vtype::RD_KAFKA_VTYPE_TOPIC,
                topic.as_ptr(),
                vtype::RD_KAFKA_VTYPE_PARTITION,
                partition,
                vtype::RD_KAFKA_VTYPE_MSGFLAGS,
                sys::RD_KAFKA_MSG_F_COPY,
                vtype::RD_KAFKA_VTYPE_VALUE,
                value.0,
                value.1,
                vtype::RD_KAFKA_VTYPE_KEY,
                key.as_ptr(),
                key.len(),
                vtype::RD_KAFKA_VTYPE_OPAQUE,
                opaque,
                vtype::RD_KAFKA_VTYPE_HEADERS,
                list,
                vtype::RD_KAFKA_VTYPE_END,
            );
            let code = RDKafkaErrorCode::from(code);
            if code == RDKafkaErrorCode::NoError {
                return Ok(());
            }
            if !list.is_null() {
                sys::rd_kafka_headers_destroy(list);
            }
            Err((code, Box::from_ptr(opaque)))
        }
    }

    /// Why the producer is of no use any more.
    pub fn fatal_error(&self) -> Option<(RDKafkaErrorCode, String)> {
        let mut words = [0 as c_char; 512];
        // SAFETY: the client is alive, and the buffer as large as told.
        unsafe {
            let code = sys::rd_kafka_fatal_error(self.rk, words.as_mut_ptr(), words.len());
            let code = RDKafkaErrorCode::from(code);
            (code != RDKafkaErrorCode::NoError).then(|| (code, text(words.as_ptr())))
        }
    }

    /// Asks the coordinator for a producer id, and so ends what another producer with this
    /// transactional id left open.
    pub fn init_transactions(&self, timeout: Duration) -> Result<(), TransactionError> {
        // SAFETY: the client is alive.
        TransactionError::check(unsafe { sys::rd_kafka_init_transactions(self.rk, millis(timeout)) })
    }

    pub fn begin_transaction(&self) -> Result<(), TransactionError> {
        // SAFETY: the client is alive.
        TransactionError::check(unsafe { sys::rd_kafka_begin_transaction(self.rk) })
    }

    pub fn commit_transaction(&self, timeout: Duration) -> Result<(), TransactionError> {
        // SAFETY: the client is alive.
        TransactionError::check(unsafe { sys::rd_kafka_commit_transaction(self.rk, millis(timeout)) })
    }

    pub fn abort_transaction(&self, timeout: Duration) -> Result<(), TransactionError> {
        // SAFETY: the client is alive.
        TransactionError::check(unsafe { sys::rd_kafka_abort_transaction(self.rk, millis(timeout)) })
    }

    /// Makes the producer fail for good.
    #[cfg(test)]
    pub fn fail_for_test(&self, code: sys::rd_kafka_resp_err_t) {
        // SAFETY: the client is alive, and the text is zero-terminated and copied.
        unsafe { sys::rd_kafka_test_fatal_error(self.rk, code, c"as a test wants it".as_ptr()) };
    }
}

/// Why a call about a transaction failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionError {
    pub code: RDKafkaErrorCode,
    /// The same call may be made again.
    pub retriable: bool,
    /// The transaction has to be aborted, and the producer can be used after that.
    pub requires_abort: bool,
}

impl TransactionError {
    /// Takes what librdkafka returned: null if all went well.
    fn check(error: *mut sys::rd_kafka_error_t) -> Result<(), TransactionError> {
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: librdkafka gave the error to the caller, and it is destroyed here, once, after it
        // was read.
        unsafe {
            let read = TransactionError {
                code: sys::rd_kafka_error_code(error).into(),
                retriable: sys::rd_kafka_error_is_retriable(error) != 0,
                requires_abort: sys::rd_kafka_error_txn_requires_abort(error) != 0,
            };
            sys::rd_kafka_error_destroy(error);
            Err(read)
        }
    }
}

impl<C: Hears + 'static> Polls for Producer<C> {
    fn poll(&self, timeout: Duration) {
        poll(&self.queue, &*self.context, timeout);
    }

    fn purge(&self) {
        // SAFETY: the client is alive. Both flags are known.
        unsafe { sys::rd_kafka_purge(self.rk, sys::RD_KAFKA_PURGE_F_QUEUE | sys::RD_KAFKA_PURGE_F_INFLIGHT) };
    }

    fn outstanding(&self) -> usize {
        // SAFETY: the client is alive.
        unsafe { sys::rd_kafka_outq_len(self.rk) }.try_into().unwrap_or(0)
    }
}

impl<C: Hears> Drop for Producer<C> {
    fn drop(&mut self) {
        self.queue.release();
        // SAFETY: it was ours, and is not used again; no call of it is under way, since they borrow
        // `self`. The context lives on until this returns, and no callback comes after it.
        unsafe { sys::rd_kafka_destroy(self.rk) };
    }
}

/// Null if there are none.
///
/// # Safety
/// The list is the caller's to give away or to destroy.
unsafe fn native_headers<'h>(
    headers: impl ExactSizeIterator<Item = (&'h str, &'h [u8])>,
) -> *mut sys::rd_kafka_headers_t {
    if headers.len() == 0 {
        return ptr::null_mut();
    }
    // SAFETY: names and values are copied, with the lengths that are told.
    unsafe {
        let list = sys::rd_kafka_headers_new(headers.len());
        for (name, value) in headers {
            sys::rd_kafka_header_add(
                list,
                name.as_ptr().cast(),
                name.len() as isize,
                value.as_ptr().cast(),
                value.len() as isize,
            );
        }
        list
    }
}

/// # Safety
/// Called by librdkafka from rd_kafka_new, with what was given to
/// rd_kafka_conf_interceptor_add_on_new.
unsafe extern "C" fn on_new<C: Hears>(
    rk: *mut sys::rd_kafka_t,
    _: *const sys::rd_kafka_conf_t,
    context: *mut c_void,
    _: *mut c_char,
    _: usize,
) -> resp_err {
    // SAFETY: the client is being made; the context outlives it.
    unsafe {
        let added =
            sys::rd_kafka_interceptor_add_on_acknowledgement(rk, NAME.as_ptr(), Some(on_acknowledgement::<C>), context);
        match RDKafkaErrorCode::from(added) {
            RDKafkaErrorCode::NoError => sys::rd_kafka_interceptor_add_on_response_received(
                rk,
                NAME.as_ptr(),
                Some(on_response_received::<C>),
                context,
            ),
            _ => added,
        }
    }
}

/// # Safety
/// Called by librdkafka when the main queue is polled, with the opaque of a client, which is its
/// context.
unsafe extern "C" fn on_throttle<C: Hears>(
    _: *mut sys::rd_kafka_t,
    _: *const c_char,
    _: i32,
    millis: c_int,
    context: *mut c_void,
) {
    // SAFETY: the context outlives the client, and is only borrowed.
    let context = unsafe { &*context.cast::<C>() };
    context.throttled(Duration::from_millis(u64::try_from(millis).unwrap_or(0)));
}

/// # Safety
/// Called by librdkafka for a message of a client whose context this is, before the message is
/// reported.
unsafe extern "C" fn on_acknowledgement<C: Hears>(
    _: *mut sys::rd_kafka_t,
    message: *mut sys::rd_kafka_message_t,
    context: *mut c_void,
) -> resp_err {
    let none = resp_err::RD_KAFKA_RESP_ERR_NO_ERROR;
    // SAFETY: the message is alive. Its opaque is a delivery of this type that is only borrowed:
    // its report, which takes it out, comes later. Messages that failed, also those that were never
    // taken, are left alone.
    unsafe {
        if (*message).err == none && !(*message)._private.is_null() {
            let (context, delivery) = (&*context.cast::<C>(), &*(*message)._private.cast::<C::Delivery>());
            context.acknowledged(delivery);
        }
    }
    none
}

/// The requests that change a transaction, by Kafka's numbers (API keys): Produce,
/// AddPartitionsToTxn and EndTxn.
const CHANGES_TRANSACTION: [i16; 3] = [0, 24, 26];

/// # Safety
/// Called by librdkafka for each request of a client whose context this is, when its answer has
/// come, and with an error when that will not come.
unsafe extern "C" fn on_response_received<C: Hears>(
    _: *mut sys::rd_kafka_t,
    _: c_int,
    _: *const c_char,
    _: i32,
    api_key: i16,
    _: i16,
    _: i32,
    _: usize,
    _: i64,
    error: resp_err,
    context: *mut c_void,
) -> resp_err {
    if error != resp_err::RD_KAFKA_RESP_ERR_NO_ERROR && CHANGES_TRANSACTION.contains(&api_key) {
        // SAFETY: the context lives longer than the client, and is of this type.
        unsafe { (*context.cast::<C>()).unanswered() };
    }
    resp_err::RD_KAFKA_RESP_ERR_NO_ERROR
}

/// The name of a topic as librdkafka takes it.
pub fn topic_name(name: &str) -> CString {
    // Checked when the configuration was read: letters, digits and some signs.
    CString::new(name).unwrap_or_default()
}
