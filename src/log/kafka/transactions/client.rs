//! One transactional producer: sends a group, aborts or commits it, and finds out how a commit
//! ended that was not answered. It owns the producer's life and knows nothing of conditions.
//!
//! A request that was not answered may reach the broker at any later time. A late EndTxn ends
//! whatever transaction its producer has then: librdkafka has no KIP-890, which would give each
//! transaction an epoch of its own. So a producer with an unanswered request is replaced before its
//! next transaction. The new producer begins a new epoch, and Kafka refuses requests of older
//! epochs.
//!
//! Its transactional id is the node's own and stays the same over restarts. So a transaction that a
//! killed process left open is aborted when the node starts again, and not after
//! `transaction.timeout.ms`. Where an id is of no use any more, another one takes its place until
//! the next start.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use super::super::codec::{self, Stamp};
use super::super::config::{Config, Isolation, Sizes};
use super::super::context::{Health, describe_code, describe_error};
use super::super::ffi::{self, Hears, Polls as _, Report, Status};
use super::super::follower::KafkaFollower;
use super::super::polled::Polled;
use super::super::producer::NO_RIGHT_TO_WRITE;
use super::super::topics::Topics;
use crate::log::{Appended, Batch, Follower, Positions, Record, TopicPartition};
use crate::supervise;

/// One try to make a producer ready.
const INIT: Duration = Duration::from_secs(1);
/// The same while the producer is refused, or while another may become ready meanwhile. It is
/// short, so that the batches that wait are not held up.
pub(super) const GLANCE: Duration = Duration::from_millis(50);
/// How often a refused producer tries again: perhaps it was allowed meanwhile.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);
/// The time between two looks for room in a full queue, or between two requests for a commit.
pub(super) const AGAIN: Duration = Duration::from_millis(2);
/// Kafka usually has a decided transaction finished within milliseconds. When a broker is lost just
/// then, a coordinator may take until the next transaction of anybody, or 30 s (its
/// `request.timeout.ms`). Until then the transactional id is of no use.
const UNFINISHED: Duration = Duration::from_secs(1);
/// A producer that has heard nothing for this long is replaced.
const SILENT: Duration = Duration::from_secs(4);
/// For how long the node tries to have Kafka end what an id that is not used any more has left.
const ENDED: Duration = Duration::from_secs(60);
/// The most time that is spent on an abort.
const ABORT: Duration = Duration::from_secs(1);
/// The least time that is spent on finding out how a commit ended, however late it is. The last
/// answer may come this much later than the write timeout.
const LEAST: Duration = Duration::from_secs(1);

pub(super) struct Client {
    config: Arc<Config>,
    topics: Arc<Topics>,
    health: Arc<Health>,
    /// The names of the databases' topics.
    names: Arc<[CString]>,
    /// The transactional id, and what it begins with.
    id: String,
    base: String,
    producer: Option<Producer>,
    /// Why there is no producer that is ready; logged once.
    trouble: Option<String>,
    /// Since when the id may not be used, so that there is nothing to wait for. It is tried again
    /// in the background.
    refused: Option<Instant>,
    /// Has Kafka end what the last id has left.
    ending: Option<JoinHandle<Option<()>>>,
}

struct Producer {
    inner: Polled<ffi::Producer<Context>>,
    sizes: Sizes,
    ready: bool,
    /// The error that Kafka answers, and since when, while the producer does not become ready.
    not_ready: Option<(RDKafkaErrorCode, Instant)>,
    /// A transaction has begun, and nothing was added to it yet.
    begun: Cell<bool>,
}

/// How a transaction ended.
pub(super) enum Decided {
    Committed,
    Aborted(TransactionFailure),
    Unknown(String),
}

/// Whether Kafka aborted a transaction.
#[derive(Clone, Copy)]
enum Aborted {
    Yes,
    /// Somebody else had ended it already.
    ByOthers,
    /// It is aborted, unless somebody else committed it.
    Unknown,
}

/// Why a transaction failed.
pub(super) struct TransactionFailure {
    pub cause: String,
    pub kind: FailureKind,
    /// Where the records are that were acknowledged before the failure.
    pub appended: Vec<Appended>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// Nothing is in the log, and the records that were sent may be at fault.
    Refused,
    /// Nothing is in the log, and the producer was at fault: the same records may be sent again.
    Producer,
    /// Somebody else ended the transaction, so that some of it may be in the log.
    Uncertain,
}

impl TransactionFailure {
    pub fn refused(cause: impl Into<String>) -> TransactionFailure {
        TransactionFailure::new(cause.into(), FailureKind::Refused)
    }

    fn new(cause: String, kind: FailureKind) -> TransactionFailure {
        TransactionFailure {
            cause,
            kind,
            appended: Vec::new(),
        }
    }

    fn of(code: RDKafkaErrorCode) -> TransactionFailure {
        let kind = match code {
            code if PRODUCER_AT_FAULT.iter().any(|(at_fault, _)| *at_fault == code) => FailureKind::Producer,
            _ => FailureKind::Refused,
        };
        TransactionFailure::new(describe_code(code), kind)
    }
}

/// What Kafka answers where it does not know the producer as the producer knows itself, and Kafka's
/// names for it. No record is at fault: a new producer, or a new epoch, can send the same records.
const PRODUCER_AT_FAULT: [(RDKafkaErrorCode, &str); 8] = [
    (
        RDKafkaErrorCode::OutOfOrderSequenceNumber,
        "OUT_OF_ORDER_SEQUENCE_NUMBER",
    ),
    (RDKafkaErrorCode::UnknownProducerId, "UNKNOWN_PRODUCER_ID"),
    (
        RDKafkaErrorCode::InvalidProducerIdMapping,
        "INVALID_PRODUCER_ID_MAPPING",
    ),
    (RDKafkaErrorCode::InvalidProducerEpoch, "INVALID_PRODUCER_EPOCH"),
    (RDKafkaErrorCode::ProducerFenced, "PRODUCER_FENCED"),
    (RDKafkaErrorCode::Fenced, "_FENCED"),
    (RDKafkaErrorCode::InvalidTransactionalState, "INVALID_TXN_STATE"),
    (RDKafkaErrorCode::Fatal, "_FATAL"),
];

/// Collects the acknowledgements of one group at a time.
struct Context {
    health: Arc<Health>,
    acks: Arc<Mutex<Acks>>,
    all_told: Condvar,
    /// Why librdkafka gave up the last transaction. It says so in a log line only.
    given_up: Mutex<Option<String>>,
    /// A request was not answered, and may still reach the broker.
    unanswered: AtomicBool,
}

impl Context {
    /// Why a record was not sent.
    fn failure(&self, code: RDKafkaErrorCode) -> TransactionFailure {
        let purged = matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight);
        let given_up = self.given_up.lock();
        let Some(why) = given_up.as_deref().filter(|_| purged) else {
            return TransactionFailure::of(code);
        };
        if why.contains("TOPIC_AUTHORIZATION_FAILED") {
            return TransactionFailure::refused(NO_RIGHT_TO_WRITE);
        }
        let kind = match PRODUCER_AT_FAULT.iter().any(|(_, name)| why.contains(name)) {
            true => FailureKind::Producer,
            false => FailureKind::Refused,
        };
        TransactionFailure::new(format!("the transaction failed: {why}"), kind)
    }
}

#[derive(Default)]
struct Acks {
    /// The number of the current group. It goes with the group's records, so that a late report of
    /// another group is ignored.
    group: u32,
    open: usize,
    /// Where each record belongs, and its offset and timestamp when it is acknowledged.
    places: Vec<(TopicPartition, Option<(u64, i64)>)>,
    failed: Option<TransactionFailure>,
    /// The log may have some of it.
    sent: bool,
}

impl Acks {
    /// The records that are acknowledged, in the order in which they were added.
    fn appended(&self) -> Vec<Appended> {
        let appended = |&(at, acknowledged): &(TopicPartition, Option<(u64, i64)>)| {
            let (offset, timestamp) = acknowledged?;
            Some(Appended { at, offset, timestamp })
        };
        self.places.iter().filter_map(appended).collect()
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        if facility == "TXNERR" {
            let why = text.split_once("]: ").map_or(text, |(_thread, why)| why);
            *self.given_up.lock() = Some(why.to_owned());
        }
        self.health.line(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if let Some(code) = error.rdkafka_error_code() {
            self.health.error(code, reason);
        }
    }

    fn stats_raw(&self, _: &[u8]) {}
}

impl Hears for Context {
    /// Number of the group, and place in it.
    type Delivery = (u32, usize);

    fn throttled(&self, time: Duration) {
        self.health.throttled(time);
    }

    fn reported(&self, reports: Vec<(Report<'_>, Box<Self::Delivery>)>) {
        let mut acks = self.acks.lock();
        for (report, delivery) in reports {
            let (group, place) = *delivery;
            if group != acks.group {
                continue;
            }
            acks.open -= 1;
            let outcome = report.outcome();
            acks.sent |= !matches!(outcome, Err((_, Status::NotPersisted)));
            let failure = match outcome {
                Ok((offset, timestamp)) => match u64::try_from(offset) {
                    Ok(offset) => {
                        acks.places[place].1 = Some((offset, timestamp));
                        continue;
                    }
                    Err(_) => TransactionFailure::refused("Kafka has a record, but did not tell its offset"),
                },
                Err((code, _)) => self.failure(code),
            };
            // A record that is refused makes those after it fail too, as the producer's fault.
            if acks
                .failed
                .as_ref()
                .is_none_or(|first| first.kind == FailureKind::Producer)
            {
                acks.failed = Some(failure);
            }
        }
        if acks.open == 0 || acks.failed.is_some() {
            self.all_told.notify_all();
        }
    }

    fn unanswered(&self) {
        self.unanswered.store(true, Ordering::Release);
    }
}

impl Client {
    pub fn new(config: &Arc<Config>, topics: &Arc<Topics>, health: &Arc<Health>, number: usize) -> Client {
        let base = format!("highwater-{}-{}-{number}", config.topic, config.node);
        Client {
            id: base.clone(),
            base,
            config: config.clone(),
            topics: topics.clone(),
            health: health.clone(),
            names: topics.native_names().collect(),
            producer: None,
            trouble: None,
            refused: None,
            ending: None,
        }
    }

    /// For an error's text: why there is no producer.
    pub fn trouble(&self) -> String {
        let last = self.health.delay();
        let cause = self.trouble.clone().or(last);
        cause.map_or(String::new(), |cause| format!(": {cause}"))
    }

    /// Makes the producer ready if it is not, also for a topic with larger records that has come
    /// since. Called when there is nothing else to do.
    pub fn mend(&mut self) {
        let wanted = self.topics.sizes();
        let fits = |sizes: &Sizes| sizes.message >= wanted.message && sizes.batch <= wanted.batch;
        if self.producer.as_ref().is_some_and(|producer| !fits(&producer.sizes)) {
            self.give_up();
        }
        let patience = match self.refused {
            Some(since) if self.producer.is_none() && since.elapsed() < REFUSED_AGAIN => return,
            Some(_) => GLANCE,
            None => INIT,
        };
        // The error is reported when a write needs the producer.
        let _ = self.make_ready(Instant::now() + patience);
    }

    /// Whether the producer is ready, or becomes ready within this time.
    pub fn is_ready(&mut self, patience: Duration) -> bool {
        self.ready(Instant::now() + patience).is_ok()
    }

    /// Whether the producer is refused, so that there is nothing to wait for.
    pub fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    fn ready(&mut self, deadline: Instant) -> Result<&Producer, String> {
        if self.refused.is_some() {
            // While commands keep coming, nothing else tries again.
            self.mend();
        }
        match self.refused {
            Some(_) => Err(self.not_usable()),
            None => self.make_ready(deadline),
        }
    }

    pub fn not_usable(&self) -> String {
        format!("Kafka transactions cannot be used{}", self.trouble())
    }

    fn make_ready(&mut self, deadline: Instant) -> Result<&Producer, String> {
        while !self.producer.as_ref().is_some_and(|producer| producer.ready) {
            if let Err(cause) = self.try_ready(deadline) {
                if self.refused.is_some() {
                    return Err(self.not_usable());
                }
                if self.trouble.as_ref() != Some(&cause) {
                    tracing::debug!(cause, id = self.id, "a transactional producer is not ready");
                    self.trouble = Some(cause);
                }
                if Instant::now() >= deadline {
                    return Err(self.not_usable());
                }
            }
        }
        self.trouble = None;
        self.refused = None;
        self.producer.as_ref().ok_or_else(|| "there is no producer".to_owned())
    }

    fn try_ready(&mut self, deadline: Instant) -> Result<(), String> {
        if self.producer.is_none() {
            self.producer = Some(self.create()?);
        }
        let Some(producer) = &mut self.producer else {
            return Ok(());
        };
        let left = deadline.saturating_duration_since(Instant::now()).min(INIT);
        match producer.inner.init_transactions(left) {
            Ok(()) => {
                producer.ready = true;
                Ok(())
            }
            Err(error) if error.retriable => {
                self.replace_if_stuck(error.code);
                Err(describe_code(error.code))
            }
            Err(error) => match refusal(error.code) {
                Some(why) => {
                    let cause = format!("{why} {}", self.id);
                    self.refuse(cause.clone());
                    Err(cause)
                }
                None => {
                    self.give_up();
                    std::thread::sleep(AGAIN.max(left.min(Duration::from_millis(100))));
                    Err(describe_code(error.code))
                }
            },
        }
    }

    /// Called with `code`, the error that was just answered. Batches must not wait for a producer
    /// that does not become ready when a new one would.
    fn replace_if_stuck(&mut self, code: RDKafkaErrorCode) {
        let Some(producer) = &mut self.producer else {
            return;
        };
        let since = match producer.not_ready {
            Some((last, since)) if last == code => since,
            _ => producer.not_ready.insert((code, Instant::now())).1,
        };
        let unfinished = code == RDKafkaErrorCode::ConcurrentTransactions && since.elapsed() >= UNFINISHED;
        let silent = code == RDKafkaErrorCode::OperationTimedOut && since.elapsed() >= SILENT;
        if unfinished && self.ending.as_ref().is_none_or(JoinHandle::is_finished) {
            self.change_id();
        } else if silent {
            self.give_up();
        }
    }

    /// Kafka has not finished what the last transaction of this id was decided to be. Another id
    /// need not wait for that.
    fn change_id(&mut self) {
        let Some(Producer { inner, .. }) = self.producer.take() else {
            return;
        };
        let another = self.another_id();
        let last = std::mem::replace(&mut self.id, another);
        tracing::info!(
            last,
            id = self.id,
            "Kafka does not finish a transaction: another transactional id is used"
        );
        let ended = supervise::thread(&supervise::TRANSACTION_END, move || {
            let end = Instant::now() + ENDED;
            let is_ended = || !matches!(inner.init_transactions(INIT), Err(error) if error.retriable);
            while !is_ended() && Instant::now() < end {}
        });
        match ended {
            Ok(thread) => self.ending = Some(thread),
            Err(error) => tracing::warn!(%error, "cannot start a thread"),
        }
    }

    fn another_id(&self) -> String {
        format!("{}-{:08x}", self.base, rand::random::<u32>())
    }

    /// Waiting would not help. Logged once, until the id can be used.
    fn refuse(&mut self, cause: String) {
        if self.refused.replace(Instant::now()).is_none() {
            tracing::warn!(
                "commands that read before they write, or that write several keys, are refused until that is mended: {cause}"
            );
        }
        self.trouble = Some(cause);
        if let Some(producer) = self.producer.take() {
            drop_apart(producer.inner);
        }
    }

    fn create(&self) -> Result<Producer, String> {
        let sizes = self.topics.sizes();
        let context = Context {
            health: self.health.clone(),
            acks: Arc::default(),
            all_told: Condvar::new(),
            given_up: Mutex::default(),
            unanswered: AtomicBool::new(false),
        };
        let settings = self.config.transactional_producer(sizes, &self.id);
        let inner = ffi::Producer::create(&settings, context).map_err(|error| describe_error(&error))?;
        let inner = Polled::start(inner, || ())?;
        Ok(Producer {
            inner,
            sizes,
            ready: false,
            not_ready: None,
            begun: Cell::new(false),
        })
    }

    /// Drops this producer, which is of no use any more. The next one, under the same id, aborts
    /// what it left open.
    fn give_up(&mut self) {
        let Some(Producer { inner, .. }) = self.producer.take() else {
            return;
        };
        if let Some((code, text)) = inner.fatal_error() {
            if code == RDKafkaErrorCode::Fenced || code == RDKafkaErrorCode::ProducerFenced {
                // A copy of this node's data directory is in use elsewhere, or Kafka ended a
                // stalled transaction of this node.
                self.id = self.another_id();
            }
            tracing::warn!(error = ?code, id = self.id, "a transactional producer cannot go on and is replaced: {text}");
        }
        drop_apart(inner);
    }

    /// Replaces a producer with an unanswered request, now that its transaction has ended.
    /// Otherwise that request could still end the next transaction.
    fn retire_if_unanswered(&mut self) {
        let is_unanswered = |producer: &Producer| producer.inner.context().unanswered.load(Ordering::Acquire);
        if self.producer.as_ref().is_some_and(is_unanswered) {
            tracing::debug!(
                id = self.id,
                "a request was not answered: the transactional producer is replaced"
            );
            self.give_up();
        }
    }

    /// Begins a transaction, to be filled by [`Client::add`]. After an error of `begin`, `add` or
    /// [`Client::acknowledged`], nothing of the transaction will ever be committed, unless the
    /// error says so. It is aborted as far as that can be done now.
    pub fn begin(&mut self, deadline: Instant) -> Result<(), TransactionFailure> {
        self.ready(deadline).map_err(TransactionFailure::refused)?;
        self.or_abort(deadline, Producer::begin)
    }

    /// Begins the next transaction already, if that can be done at once. This takes a tenth of the
    /// time of the whole transaction, and tells the broker nothing.
    pub fn begin_early(&mut self) {
        if let Some(producer) = self.producer.as_ref().filter(|producer| producer.ready) {
            // Why it cannot begin is reported when a write needs it.
            let _ = producer.begin();
        }
    }

    /// Sends the records of these batches too.
    pub fn add(&mut self, batches: &[&Batch], deadline: Instant) -> Result<(), TransactionFailure> {
        let names = self.names.clone();
        let topics = self.topics.clone();
        self.or_abort(deadline, |producer| producer.add(&topics, &names, batches, deadline))
    }

    /// Waits until all added records are acknowledged. Returns their places, in the order in which
    /// they were added.
    pub fn acknowledged(&mut self, deadline: Instant) -> Result<Vec<Appended>, TransactionFailure> {
        self.or_abort(deadline, |producer| producer.acknowledged(deadline))
    }

    fn or_abort<T>(
        &mut self,
        deadline: Instant,
        step: impl FnOnce(&Producer) -> Result<T, TransactionFailure>,
    ) -> Result<T, TransactionFailure> {
        let Some(producer) = &self.producer else {
            return Err(TransactionFailure::refused("there is no producer"));
        };
        let acks = producer.inner.context().acks.clone();
        step(producer).map_err(|failure| {
            let aborted = !matches!(self.abort_all(deadline), Aborted::ByOthers);
            let acks = acks.lock();
            let cause = format!("{}{}", failure.cause, self.trouble());
            if aborted || (acks.open == 0 && !acks.sent) {
                let appended = acks.appended();
                return TransactionFailure {
                    cause,
                    appended,
                    ..failure
                };
            }
            TransactionFailure::new(format!("{cause}; {ENDED_BY_OTHERS}"), FailureKind::Uncertain)
        })
    }

    /// Aborts the transaction, whose records are at these places. If Kafka does not say that it
    /// did, somebody else may have ended the transaction, and the log is read to find out how.
    pub fn abort(&mut self, appended: &[Appended], deadline: Instant) -> Result<(), String> {
        let why = match self.abort_all(deadline) {
            Aborted::Yes => return Ok(()),
            Aborted::ByOthers => ENDED_BY_OTHERS,
            Aborted::Unknown => "Kafka did not answer an abort",
        };
        match self.find_out(appended, deadline + LEAST) {
            Ok(false) => Ok(()),
            Ok(true) => Err(format!("{ENDED_BY_OTHERS}, and it was committed")),
            Err(error) => Err(format!(
                "{why}, and how the transaction ended could not be found out: {error}"
            )),
        }
    }

    /// Aborts the transaction, if Kafka answers soon. If it does not, the next producer with this
    /// id aborts what is open.
    fn abort_all(&mut self, deadline: Instant) -> Aborted {
        let Some(producer) = &self.producer else {
            return Aborted::Yes;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let aborted = producer.inner.abort_transaction(left.clamp(GLANCE, ABORT));
        match aborted {
            Ok(()) => self.retire_if_unanswered(),
            Err(error) => {
                tracing::debug!(?error, id = self.id, "cannot abort a transaction");
                self.give_up();
            }
        }
        match aborted {
            Ok(()) => Aborted::Yes,
            Err(error) if error.code == RDKafkaErrorCode::InvalidTransactionalState => Aborted::ByOthers,
            Err(_) => Aborted::Unknown,
        }
    }

    /// Commits what was sent. If Kafka does not say how the commit ended, that is found out.
    pub fn commit(&mut self, appended: &[Appended], deadline: Instant) -> Decided {
        let Some(producer) = &self.producer else {
            return Decided::Aborted(TransactionFailure::refused("there is no producer"));
        };
        let failure = loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(AGAIN);
            match producer.inner.commit_transaction(left) {
                Ok(()) => {
                    self.retire_if_unanswered();
                    return Decided::Committed;
                }
                Err(error) if error.retriable && Instant::now() < deadline => std::thread::sleep(AGAIN),
                Err(error) => break TransactionFailure::of(error.code),
            }
        };
        self.give_up();
        match self.find_out(appended, deadline + LEAST) {
            Ok(true) => Decided::Committed,
            Ok(false) => Decided::Aborted(failure),
            Err(why) => Decided::Unknown(format!(
                "Kafka did not answer a commit ({}), and how it ended could not be found out: {why}",
                failure.cause
            )),
        }
    }

    /// Whether the records are in the log for good. A new producer with the same id ends what the
    /// old one left, so there is an answer soon: a consumer of committed records reads these
    /// records, or passes their place.
    fn find_out(&mut self, appended: &[Appended], deadline: Instant) -> Result<bool, String> {
        self.ready(deadline)?;
        let left = || deadline.saturating_duration_since(Instant::now());
        let mut from: Positions = self.topics.ends(left()).map_err(|e| e.to_string())?;
        let mut last = Positions::new();
        for own in appended {
            let first = from.entry(own.at).or_insert(own.offset);
            *first = (*first).min(own.offset);
            let last = last.entry(own.at).or_insert(own.offset);
            *last = (*last).max(own.offset);
        }
        let own: HashSet<(TopicPartition, u64)> = appended.iter().map(|own| (own.at, own.offset)).collect();
        let mut follower = KafkaFollower::start(&self.config, &self.topics, &self.health, &from, Isolation::Committed)
            .map_err(|e| e.to_string())?;
        let mut met = false;
        while !met {
            let positions = follower.positions();
            if last
                .iter()
                .all(|(at, last)| positions.get(at).is_some_and(|next| next > last))
            {
                return Ok(false);
            }
            if left().is_zero() {
                return Err("it took longer than the write timeout".into());
            }
            let mut see = |at, offset, _: &[u8], _| met |= own.contains(&(at, offset));
            follower
                .poll_keys(&mut see, left().min(INIT))
                .map_err(|e| e.to_string())?;
        }
        Ok(true)
    }
}

/// Drops a producer on a thread of its own: that can take a moment, and nobody has to wait for it.
fn drop_apart(inner: Polled<ffi::Producer<Context>>) {
    let dropped = supervise::thread(&supervise::PRODUCER_END, move || drop(inner));
    if let Err(error) = dropped {
        tracing::warn!(%error, "cannot start a thread");
    }
}

const ENDED_BY_OTHERS: &str = "another process that uses this node's transactional id ended the transaction";

/// An error that only a person can mend, to be followed by the transactional id.
fn refusal(code: RDKafkaErrorCode) -> Option<&'static str> {
    match code {
        RDKafkaErrorCode::TransactionalIdAuthorizationFailed => Some(
            "not authorized (allow Write on transactional ids that begin with highwater-) to use the transactional id",
        ),
        RDKafkaErrorCode::ClusterAuthorizationFailed => {
            Some("not authorized by the cluster to use the transactional id")
        }
        RDKafkaErrorCode::InvalidTransactionTimeout => Some(
            "--write-timeout is longer than the broker lets a transaction take (transaction.max.timeout.ms); transactional id",
        ),
        _ => None,
    }
}

impl Producer {
    fn begin(&self) -> Result<(), TransactionFailure> {
        if self.begun.get() {
            return Ok(());
        }
        self.inner
            .begin_transaction()
            .map_err(|error| TransactionFailure::of(error.code))?;
        let context = self.inner.context();
        *context.given_up.lock() = None;
        let mut acks = context.acks.lock();
        *acks = Acks {
            group: acks.group.wrapping_add(1),
            ..Acks::default()
        };
        self.begun.set(true);
        Ok(())
    }

    fn add(
        &self,
        topics: &Topics,
        names: &[CString],
        batches: &[&Batch],
        deadline: Instant,
    ) -> Result<(), TransactionFailure> {
        self.begun.set(false);
        let (group, mut place) = {
            let mut acks = self.inner.context().acks.lock();
            let first = acks.places.len();
            let records = batches.iter().flat_map(|batch| &batch.records);
            acks.places.extend(records.map(|record| (record.to, None)));
            acks.open += acks.places.len() - first;
            (acks.group, first)
        };
        for batch in batches {
            let stamp = (batch.records.len() > 1).then(|| Stamp::new(&batch.records));
            for record in &batch.records {
                let header = stamp
                    .as_ref()
                    .map(|stamp| stamp.header(record.to, |database| topics.name(database)));
                self.send(record, header, names, Box::new((group, place)), deadline)?;
                place += 1;
            }
        }
        Ok(())
    }

    /// Hands one record over, and waits while there is no room for it.
    fn send(
        &self,
        record: &Record,
        group: Option<Vec<u8>>,
        names: &[CString],
        mut delivery: Box<(u32, usize)>,
        deadline: Instant,
    ) -> Result<(), TransactionFailure> {
        let wire = codec::encode(record, group).map_err(TransactionFailure::refused)?;
        let topic = &names[usize::from(record.to.database)];
        loop {
            let headers = wire.headers.iter().map(|(name, value)| (*name, value.as_slice()));
            let partition = record.to.partition as i32;
            let sent = self
                .inner
                .send(topic, partition, wire.key, wire.value.as_deref(), headers, delivery);
            delivery = match sent {
                Ok(()) => return Ok(()),
                Err((RDKafkaErrorCode::QueueFull, back)) if Instant::now() < deadline => back,
                Err((code, _)) => return Err(TransactionFailure::of(code)),
            };
            std::thread::sleep(AGAIN);
        }
    }

    fn acknowledged(&self, deadline: Instant) -> Result<Vec<Appended>, TransactionFailure> {
        let context = self.inner.context();
        let mut acks = context.acks.lock();
        while acks.open > 0 && acks.failed.is_none() {
            if context.all_told.wait_until(&mut acks, deadline).timed_out() {
                return Err(TransactionFailure::refused(
                    "no acknowledgement from Kafka within the write timeout",
                ));
            }
        }
        if let Some(failure) = acks.failed.take() {
            return Err(failure);
        }
        // The last report is still being delivered. A commit that found it unfinished would wait
        // for 100 ms.
        while self.inner.outstanding() > 0 && Instant::now() < deadline {
            parking_lot::MutexGuard::unlocked(&mut acks, || std::thread::sleep(Duration::from_micros(20)));
        }
        Ok(acks.appended())
    }
}
