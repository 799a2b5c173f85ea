//! One transactional producer: sends a group, aborts or commits it, and finds out how a commit ended that was not answered.
//! Owns the producer's life; knows nothing of conditions.
//!
//! Its transactional id is the node's own and stays the same over restarts, so that what a killed process left open is aborted when
//! the node starts again, and not after `transaction.timeout.ms`. Where an id is of no use any more, another one takes its place
//! until the next start.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::producer::{DeliveryResult, Producer as _, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;

use super::super::codec::{self, Stamp};
use super::super::config::{Config, Isolation, Sizes};
use super::super::context::{Health, describe_code, describe_error};
use super::super::ffi::{self, Report, Reported};
use super::super::follower::KafkaFollower;
use super::super::polled::Polled;
use super::super::producer::{NO_RIGHT_TO_WRITE, base_record};
use super::super::topics::Topics;
use crate::log::{Appended, Batch, Follower, Positions, TopicPartition};

/// One try to make a producer ready.
const INIT: Duration = Duration::from_secs(1);
/// The same while it is refused, or another may become ready meanwhile: nobody who waits behind it is to be held up.
pub(super) const GLANCE: Duration = Duration::from_millis(50);
/// A refused one tries again that often: perhaps it was allowed meanwhile.
const REFUSED_AGAIN: Duration = Duration::from_secs(5);
/// Between two looks for room in a full queue, or at a commit that has to be asked for again.
pub(super) const AGAIN: Duration = Duration::from_millis(2);
/// Kafka usually has a decided transaction finished within milliseconds. When a broker is lost just then, it may take a coordinator
/// until the next transaction of anybody, or 30 s (its `request.timeout.ms`), and so long the transactional id is of no use.
const UNFINISHED: Duration = Duration::from_secs(1);
/// A producer that has heard nothing for so long is replaced.
const SILENT: Duration = Duration::from_secs(4);
/// For so long it is tried to have Kafka end what an id that is not used any more has left.
const ENDED: Duration = Duration::from_secs(60);
/// The most time that is spent on an abort.
const ABORT: Duration = Duration::from_secs(1);
/// The least time that is spent on finding out how a commit ended, however late it is: so much later than the write timeout the last
/// answer may come.
const LEAST: Duration = Duration::from_secs(1);

pub(super) struct Client {
    config: Arc<Config>,
    topics: Arc<Topics>,
    health: Arc<Health>,
    /// The transactional id, and what it begins with.
    id: String,
    base: String,
    producer: Option<Producer>,
    /// Why there is none that is ready; told once.
    trouble: Option<String>,
    /// It may not be used, so that there is nothing to wait for. Since when; tried again in the background.
    refused: Option<Instant>,
    /// Has Kafka end what the last id has left.
    ending: Option<JoinHandle<()>>,
}

struct Producer {
    inner: Polled<ffi::Producer<Context>>,
    sizes: Sizes,
    ready: bool,
    /// What is answered since when, while it does not become ready.
    not_ready: Option<(RDKafkaErrorCode, Instant)>,
    /// A transaction has begun, which nothing was added to yet.
    begun: Cell<bool>,
}

/// How a transaction ended.
pub(super) enum Decided {
    Committed,
    Aborted(String),
    Unknown(String),
}

/// Collects the acknowledgements of one group at a time.
struct Context {
    health: Arc<Health>,
    acks: Mutex<Acks>,
    all_told: Condvar,
    /// Why librdkafka gave the last transaction up: it says so in a log line only.
    given_up: Mutex<Option<String>>,
}

impl Context {
    /// Why a record was not sent.
    fn cause(&self, code: RDKafkaErrorCode) -> String {
        let purged = matches!(code, RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight);
        match self.given_up.lock().as_deref() {
            Some(why) if purged && why.contains("TOPIC_AUTHORIZATION_FAILED") => NO_RIGHT_TO_WRITE.to_owned(),
            Some(why) if purged => format!("the transaction failed: {why}"),
            _ => describe_code(code),
        }
    }
}

#[derive(Default)]
struct Acks {
    /// Of the group at hand: goes with its records, so that a late report of another is passed over.
    group: u32,
    open: usize,
    /// Offset and timestamp.
    places: Vec<(u64, i64)>,
    failed: Option<String>,
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

impl ProducerContext for Context {
    /// Number of the group, then place in it.
    type DeliveryOpaque = usize;

    /// Only of what is left when the producer is dropped.
    fn delivery(&self, result: &DeliveryResult<'_>, opaque: usize) {
        self.reported(vec![(Report::of(result), opaque)]);
    }
}

impl Reported for Context {
    fn reported(&self, reports: Vec<(Report<'_>, usize)>) {
        let mut acks = self.acks.lock();
        for (report, opaque) in reports {
            if opaque >> 32 != acks.group as usize {
                continue;
            }
            acks.open -= 1;
            match report.outcome() {
                Ok((offset, timestamp)) => match u64::try_from(offset) {
                    Ok(offset) => acks.places[opaque & 0xffff_ffff] = (offset, timestamp),
                    Err(_) => acks.failed = Some("Kafka has a record, but did not tell its offset".into()),
                },
                Err((code, _)) => acks.failed = Some(self.cause(code)),
            }
        }
        if acks.open == 0 || acks.failed.is_some() {
            self.all_told.notify_all();
        }
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
            producer: None,
            trouble: None,
            refused: None,
            ending: None,
        }
    }

    /// For an error's text: why there is no producer.
    pub fn trouble(&self) -> String {
        let last = self.health.last().map(|(_, cause)| cause);
        let cause = self.trouble.clone().or(last);
        cause.map_or(String::new(), |cause| format!(": {cause}"))
    }

    /// Makes the producer ready if it is not, also for a topic with larger records that has come since. Called when there is
    /// nothing else to do.
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
        // What went wrong is told when a write needs it.
        let _ = self.make_ready(Instant::now() + patience);
    }

    /// Whether it is ready, or becomes so within this time.
    pub fn is_ready(&mut self, patience: Duration) -> bool {
        self.ready(Instant::now() + patience).is_ok()
    }

    /// There is nothing to wait for.
    pub fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    fn ready(&mut self, deadline: Instant) -> Result<&Producer, String> {
        if self.refused.is_some() {
            // Where commands never cease, nobody else looks again.
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
            Err(KafkaError::Transaction(error)) if error.is_retriable() => {
                self.replace_if_stuck(error.code());
                Err(describe_code(error.code()))
            }
            Err(error) => match refusal(error.rdkafka_error_code()) {
                Some(why) => {
                    let cause = format!("{why} {}", self.id);
                    self.refuse(cause.clone());
                    Err(cause)
                }
                None => {
                    self.give_up();
                    std::thread::sleep(AGAIN.max(left.min(Duration::from_millis(100))));
                    Err(describe_error(&error))
                }
            },
        }
    }

    /// Others must not wait for a producer that does not become ready when a new one would: told `code` once more.
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

    /// Kafka has not finished what the last transaction of this id was decided to be. Another id need not wait for that.
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
        let ended = std::thread::Builder::new().spawn(move || {
            let end = Instant::now() + ENDED;
            let is_ended = || match inner.init_transactions(INIT) {
                Err(KafkaError::Transaction(error)) => !error.is_retriable(),
                _ => true,
            };
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

    /// Waiting would not help. Told once, until it can be used.
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
            acks: Mutex::default(),
            all_told: Condvar::new(),
            given_up: Mutex::default(),
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

    /// This producer is of no use any more. The next one, under the same id, aborts what it left open.
    fn give_up(&mut self) {
        let Some(Producer { inner, .. }) = self.producer.take() else {
            return;
        };
        if let Some((code, text)) = inner.client().fatal_error() {
            if code == RDKafkaErrorCode::Fenced || code == RDKafkaErrorCode::ProducerFenced {
                // A copy of this node's data directory is in use elsewhere, or a stalled transaction was ended for us.
                self.id = self.another_id();
            }
            tracing::warn!(error = ?code, id = self.id, "a transactional producer cannot go on and is replaced: {text}");
        }
        drop_apart(inner);
    }

    /// Begins a transaction, to be filled by [`Client::add`]. After an error of one of the three nothing will ever be committed of it, and
    /// it is aborted as far as that can be done now.
    pub fn begin(&mut self, deadline: Instant) -> Result<(), String> {
        self.ready(deadline)?;
        self.or_abort(deadline, Producer::begin)
    }

    /// Begins the next transaction already, if that can be done at once: it takes a tenth of what the whole transaction takes, and tells the broker
    /// nothing.
    pub fn begin_early(&mut self) {
        if let Some(producer) = self.producer.as_ref().filter(|producer| producer.ready) {
            // Why it cannot begin is told when a write needs it.
            let _ = producer.begin();
        }
    }

    /// Sends the records of these batches too.
    pub fn add(&mut self, batches: &[&Batch], deadline: Instant) -> Result<(), String> {
        let topics = self.topics.clone();
        self.or_abort(deadline, |producer| producer.add(&topics, batches, deadline))
    }

    /// Waits until all that was added is acknowledged: the records' places, in the order of `batches`, which are all of the transaction's.
    pub fn acknowledged(&mut self, batches: &[&Batch], deadline: Instant) -> Result<Vec<Appended>, String> {
        self.or_abort(deadline, |producer| producer.acknowledged(batches, deadline))
    }

    fn or_abort<T>(
        &mut self,
        deadline: Instant,
        step: impl FnOnce(&Producer) -> Result<T, String>,
    ) -> Result<T, String> {
        let Some(producer) = &self.producer else {
            return Err("there is no producer".into());
        };
        let outcome = step(producer);
        if outcome.is_err() {
            self.abort(deadline);
        }
        outcome.map_err(|cause| format!("{cause}{}", self.trouble()))
    }

    /// What was sent is never committed, whether the broker hears of it now or from the next producer with this id: nobody is made to wait
    /// for that beyond the deadline.
    pub fn abort(&mut self, deadline: Instant) {
        let Some(producer) = &self.producer else { return };
        let left = deadline.saturating_duration_since(Instant::now());
        if let Err(error) = producer.inner.abort_transaction(left.clamp(GLANCE, ABORT)) {
            tracing::debug!(%error, id = self.id, "cannot abort a transaction");
            self.give_up();
        }
    }

    /// Commits what was sent. If Kafka does not say how that ended, it is found out.
    pub fn commit(&mut self, appended: &[Appended], deadline: Instant) -> Decided {
        let Some(producer) = &self.producer else {
            return Decided::Aborted("there is no producer".into());
        };
        let end = deadline + LEAST;
        let cause = loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(AGAIN);
            match producer.inner.commit_transaction(left) {
                Ok(()) => return Decided::Committed,
                Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {
                    std::thread::sleep(AGAIN);
                }
                Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
                    let cause = describe_code(error.code());
                    let left = end.saturating_duration_since(Instant::now()) / 2;
                    if producer.inner.abort_transaction(left.clamp(GLANCE, ABORT)).is_ok() {
                        return Decided::Aborted(cause);
                    }
                    break cause;
                }
                Err(error) => break describe_error(&error),
            }
        };
        self.give_up();
        match self.find_out(appended, end) {
            Ok(true) => Decided::Committed,
            Ok(false) => Decided::Aborted(cause),
            Err(why) => Decided::Unknown(format!(
                "Kafka did not answer a commit ({cause}), and how it ended could not be found out: {why}"
            )),
        }
    }

    /// Whether the records are in the log for good. A new producer with the same id ends what the old one left, so that soon
    /// there is an answer: a consumer of committed records meets ours, or passes their place.
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
            let mut see = |at, offset, _: &[u8]| met |= own.contains(&(at, offset));
            follower
                .poll_keys(&mut see, left().min(INIT))
                .map_err(|e| e.to_string())?;
        }
        Ok(true)
    }
}

/// Its end can take a moment, and nobody has to wait for it.
fn drop_apart(inner: Polled<ffi::Producer<Context>>) {
    let dropped = std::thread::Builder::new().spawn(move || drop(inner));
    if let Err(error) = dropped {
        tracing::warn!(%error, "cannot start a thread");
    }
}

/// What is wrong that only a person can mend, to be followed by the transactional id.
fn refusal(code: Option<RDKafkaErrorCode>) -> Option<&'static str> {
    match code? {
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
    fn begin(&self) -> Result<(), String> {
        if self.begun.get() {
            return Ok(());
        }
        self.inner.begin_transaction().map_err(|e| describe_error(&e))?;
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

    fn add(&self, topics: &Topics, batches: &[&Batch], deadline: Instant) -> Result<(), String> {
        self.begun.set(false);
        let count = batches.iter().map(|batch| batch.records.len()).sum::<usize>();
        let (group, mut place) = {
            let mut acks = self.inner.context().acks.lock();
            let first = acks.places.len();
            acks.places.resize(first + count, (0, 0));
            acks.open += count;
            (acks.group as usize, first)
        };
        for batch in batches {
            let stamp = (batch.records.len() > 1).then(|| Stamp::new(&batch.records));
            for record in &batch.records {
                let header = stamp
                    .as_ref()
                    .map(|stamp| stamp.header(record.to, |database| topics.name(database)));
                let wire = codec::encode(record, header)?;
                let topic = topics.name(record.to.database);
                let mut message = base_record(topic, record.to.partition, &wire, group << 32 | place);
                while let Err((error, back)) = self.inner.send(message) {
                    let full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
                    if !full || Instant::now() >= deadline {
                        return Err(describe_error(&error));
                    }
                    std::thread::sleep(AGAIN);
                    message = back;
                }
                place += 1;
            }
        }
        Ok(())
    }

    fn acknowledged(&self, batches: &[&Batch], deadline: Instant) -> Result<Vec<Appended>, String> {
        let context = self.inner.context();
        let mut acks = context.acks.lock();
        while acks.open > 0 && acks.failed.is_none() {
            if context.all_told.wait_until(&mut acks, deadline).timed_out() {
                return Err("no acknowledgement from Kafka within the write timeout".into());
            }
        }
        if let Some(cause) = &acks.failed {
            return Err(cause.clone());
        }
        // The last report is still being told. A commit that found it unfinished would wait for 100 ms.
        while self.inner.in_flight_count() > 0 && Instant::now() < deadline {
            parking_lot::MutexGuard::unlocked(&mut acks, || std::thread::sleep(Duration::from_micros(20)));
        }
        let records = batches.iter().flat_map(|batch| &batch.records);
        let appended = records
            .zip(&acks.places)
            .map(|(record, &(offset, timestamp))| Appended {
                at: record.to,
                offset,
                timestamp,
            });
        Ok(appended.collect())
    }
}
