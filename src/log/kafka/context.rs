//! What librdkafka reports beside records: its log lines, passed on to `tracing`, and its errors,
//! remembered so that an error message can give the cause. There is one [`Context`] per client, and
//! one [`Health`] for all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use super::ffi::{Hears, Report};
use super::producer::{Delivery, Sender};
use crate::log::{Outage, PREFETCHED, prefetch_all};

/// While a broker is away, librdkafka logs it every second. One line per facility is shown in this
/// time.
const QUIET: Duration = Duration::from_secs(30);
/// A quota counts as a cause for this long: Kafka looks at windows of 10 s.
const THROTTLED: Duration = Duration::from_secs(10);
const QUOTA: &str = "a quota of Kafka holds this node's requests up (producer_byte_rate, request_percentage)";
/// librdkafka's name for the broker at which it would join a group.
const COORDINATOR: &str = "GroupCoordinator";
/// The most facilities whose last line is remembered.
const MAX_FACILITIES: usize = 64;

/// Why the cluster cannot be used, as far as the clients have reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Unreachable,
    /// A broker is not where the cluster says that it is.
    Misadvertised,
    /// Something answers that is not a broker.
    NoBroker,
    /// The broker is there and refuses this node.
    Refused,
}

impl Trouble {
    fn of(code: RDKafkaErrorCode) -> Option<Trouble> {
        use RDKafkaErrorCode::*;
        match code {
            Authentication | SaslAuthenticationFailed | UnsupportedSASLMechanism | IllegalSASLState | SSL => {
                Some(Trouble::Refused)
            }
            BrokerTransportFailure | Resolve | AllBrokersDown | OperationTimedOut => Some(Trouble::Unreachable),
            _ => None,
        }
    }

    /// What a person can do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Trouble::Unreachable => "check --bootstrap-servers and that the broker runs",
            Trouble::Misadvertised => {
                "the cluster gives that address for its broker: check advertised.listeners there, and that this machine \
                 reaches it"
            }
            Trouble::NoBroker => "check --bootstrap-servers: it has to name a broker's port, not a controller's",
            Trouble::Refused => "check the security settings (security.protocol, sasl.*, ssl.*)",
        }
    }
}

/// The questions that the cluster is asked all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Which topics there are.
    Topics,
    /// Where the log ends: only a partition's leader knows.
    Ends,
}

#[derive(Default)]
pub(super) struct Health {
    /// The addresses that the user gave.
    servers: String,
    last: Mutex<Option<(Trouble, String)>>,
    /// Per [`Question`]: since when it is not answered, and why.
    unanswered: Mutex<[Option<Outage>; 2]>,
    lines: Mutex<HashMap<String, Line>>,
    /// When a quota last held a request up.
    throttled: Mutex<Option<Instant>>,
}

struct Line {
    shown: Instant,
    hidden: u64,
}

impl Health {
    pub fn of(servers: &str) -> Health {
        Health {
            servers: servers.to_owned(),
            ..Health::default()
        }
    }

    /// The last error of any client.
    pub fn last(&self) -> Option<(Trouble, String)> {
        self.last.lock().clone()
    }

    /// The cluster answered: older errors explain nothing any more.
    pub fn clear(&self) {
        *self.last.lock() = None;
    }

    pub fn answered(&self, question: Question) {
        self.unanswered.lock()[question as usize] = None;
    }

    pub fn unanswered(&self, question: Question, cause: String) {
        let mut all = self.unanswered.lock();
        let since = all[question as usize]
            .take()
            .map_or_else(SystemTime::now, |before| before.since);
        all[question as usize] = Some(Outage { cause, since });
    }

    /// The question that has not been answered for the longest time.
    pub fn outage(&self) -> Option<Outage> {
        let all = self.unanswered.lock();
        let oldest = all.iter().flatten().min_by_key(|outage| outage.since)?;
        let cause = self.last().map_or_else(|| oldest.cause.clone(), |(_, cause)| cause);
        Some(Outage {
            cause,
            since: oldest.since,
        })
    }

    pub fn error(&self, code: RDKafkaErrorCode, text: &str) {
        // "(after 0ms in state CONNECT, 1 identical error(s) suppressed)" explains nothing to a
        // user.
        let text = text.split_once(" (after ").map_or(text, |(text, _)| text);
        // A second name of a broker; no group is joined.
        let text = text
            .strip_prefix(COORDINATOR)
            .map_or(text, |text| text.trim_start_matches(": "));
        let Some(mut trouble) = Trouble::of(code) else {
            tracing::debug!(target: "librdkafka", error = ?code, "{text}");
            return;
        };
        if trouble == Trouble::Unreachable && self.is_of_the_clusters_making(text) {
            trouble = Trouble::Misadvertised;
        }
        self.note(trouble, text, code == RDKafkaErrorCode::AllBrokersDown);
    }

    fn note(&self, trouble: Trouble, text: &str, is_summary: bool) {
        let mut last = self.last.lock();
        // "all brokers are down" says less than why, and a refusal less than a broken connection
        // after it.
        let replace = match &*last {
            None => true,
            Some(_) if is_summary => false,
            Some((Trouble::Refused, _)) => trouble == Trouble::Refused,
            Some(_) => true,
        };
        if replace {
            *last = Some((trouble, text.to_owned()));
        }
    }

    /// Whether an error is of a broker at an address that only the cluster has given:
    /// `host:port/1: …`.
    fn is_of_the_clusters_making(&self, text: &str) -> bool {
        let name = text.split(": ").next().unwrap_or_default();
        let name = name.split_once("://").map_or(name, |(_, name)| name);
        let Some((address, id)) = name.split_once('/') else {
            return false;
        };
        let given = self.servers.split(',').map(str::trim);
        id.parse::<u32>().is_ok() && given.into_iter().all(|given| given != address)
    }

    /// A quota of the cluster held a request up for this long.
    pub fn throttled(&self, time: Duration) {
        if time.is_zero() {
            return;
        }
        *self.throttled.lock() = Some(Instant::now());
        if let Some(hidden) = self.may_show("THROTTLE") {
            let millis = time.as_millis();
            tracing::warn!(hidden, "{QUOTA}: by {millis} ms");
        }
    }

    /// Why requests take long, as far as that is known.
    pub fn delay(&self) -> Option<String> {
        let recent = (*self.throttled.lock()).is_some_and(|at| at.elapsed() < THROTTLED);
        match self.last() {
            Some((_, cause)) => Some(cause),
            None => recent.then(|| QUOTA.to_owned()),
        }
    }

    pub fn line(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        if facility == "METADATA" && text.contains("feature not supported by broker") {
            self.note(Trouble::NoBroker, "it does not tell what brokers there are", false);
        }
        match (level, facility) {
            // A second name of a broker; no group is joined.
            _ if text.contains(COORDINATOR) => tracing::debug!(target: "librdkafka", facility, "{text}"),
            (RDKafkaLogLevel::Debug | RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice, _)
            // Properties for producers are given to consumers too, on purpose.
            | (_, "CONFWARN")
            // A cluster that is new or has just started is not ready to give out producer ids. It
            // is asked again.
            | (_, "GETPID")
            // The code that replaces the producer logs why.
            | (_, "FATAL" | "TXNERR") => tracing::debug!(target: "librdkafka", facility, "{text}"),
            _ => {
                if let Some(hidden) = self.may_show(facility) {
                    tracing::warn!(target: "librdkafka", facility, hidden, "{text}");
                }
            }
        }
    }

    /// How many lines were held back since the last one that was shown; `None` to hold this one
    /// back too.
    fn may_show(&self, facility: &str) -> Option<u64> {
        let mut lines = self.lines.lock();
        if let Some(line) = lines.get_mut(facility) {
            if line.shown.elapsed() < QUIET {
                line.hidden += 1;
                return None;
            }
            let hidden = std::mem::take(&mut line.hidden);
            line.shown = Instant::now();
            return Some(hidden);
        }
        if lines.len() < MAX_FACILITIES {
            lines.insert(
                facility.to_owned(),
                Line {
                    shown: Instant::now(),
                    hidden: 0,
                },
            );
        }
        Some(0)
    }
}

pub(super) struct Context {
    health: Arc<Health>,
    /// The last error of this client that is not an error of the connection: why it failed for
    /// good, if it did.
    last: Mutex<Option<(RDKafkaErrorCode, String)>>,
    closing: AtomicBool,
    /// The sender that sends more when a report of the producer comes.
    sender: Weak<Sender>,
}

impl Context {
    pub fn new(health: &Arc<Health>) -> Context {
        Context::of_producer(health, Weak::new())
    }

    pub fn of_producer(health: &Arc<Health>, sender: Weak<Sender>) -> Context {
        Context {
            health: Arc::clone(health),
            last: Mutex::new(None),
            closing: AtomicBool::new(false),
            sender,
        }
    }

    /// What is left is given up because the server stops, and not because the client failed.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// For an error's text: what is wrong with the cluster.
    pub fn trouble(&self) -> Option<String> {
        self.health.delay()
    }

    /// For a client that failed for good: the reason.
    pub fn last(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.last.lock().clone()
    }
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.health.line(level, facility, text);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else {
            return;
        };
        if Trouble::of(code).is_none() {
            *self.last.lock() = Some((code, reason.to_owned()));
        }
        self.health.error(code, reason);
    }

    /// Statistics come only with `statistics.interval.ms`, and nobody reads them.
    fn stats_raw(&self, _: &[u8]) {}
}

impl ConsumerContext for Context {}

impl Hears for Context {
    type Delivery = Delivery;

    fn reported(&self, reports: Vec<(Report<'_>, Box<Delivery>)>) {
        let mut reports = reports.into_iter();
        while !reports.as_slice().is_empty() {
            prefetch_all(
                reports
                    .as_slice()
                    .iter()
                    .take(PREFETCHED)
                    .map(|(_, delivery)| delivery.completion()),
            );
            for (report, delivery) in reports.by_ref().take(PREFETCHED) {
                self.report(&report, *delivery);
            }
        }
    }

    fn throttled(&self, time: Duration) {
        self.health.throttled(time);
    }

    fn acknowledged(&self, delivery: &Delivery) {
        if let Some(sender) = self.sender.upgrade() {
            sender.left(delivery.to());
        }
    }
}

impl Context {
    fn report(&self, report: &Report<'_>, delivery: Delivery) {
        let outcome = report.outcome();
        // For an acknowledged record this is known already.
        if outcome.is_err()
            && let Some(sender) = self.sender.upgrade()
        {
            sender.left(delivery.to());
        }
        delivery.report(outcome, self);
    }
}

/// An error in words, without the values of settings: they may be secrets.
pub(super) fn describe_error(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientConfig(result, _, name, _) => match *result as i32 {
            // RD_KAFKA_CONF_UNKNOWN
            -2 => format!("there is no Kafka property {name}"),
            _ => format!("the Kafka property {name} has a value that is not allowed"),
        },
        KafkaError::Nul(_) => "a Kafka property has a zero byte".into(),
        KafkaError::AdminOp(code) => describe_code(*code),
        other => match other.rdkafka_error_code() {
            Some(code) => describe_code(code),
            None => other.to_string(),
        },
    }
}

/// librdkafka's words, without its `Local:` and `Broker:`.
pub(super) fn describe_code(code: RDKafkaErrorCode) -> String {
    if code == RDKafkaErrorCode::InvalidTimestamp {
        return "the topic does not take records of this time: is this node's clock right?".into();
    }
    let full = code.to_string();
    let words = full
        .split_once('(')
        .map_or(full.as_str(), |(_, words)| words.strip_suffix(')').unwrap_or(words));
    let words = words
        .strip_prefix("Broker: ")
        .or(words.strip_prefix("Local: "))
        .unwrap_or(words);
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_apart_and_kept() {
        let health = Health::default();
        health.error(RDKafkaErrorCode::BrokerTransportFailure, "connection refused");
        health.error(RDKafkaErrorCode::AllBrokersDown, "1/1 brokers are down");
        assert_eq!(health.last(), Some((Trouble::Unreachable, "connection refused".into())));
        health.error(RDKafkaErrorCode::Authentication, "wrong password");
        health.error(RDKafkaErrorCode::BrokerTransportFailure, "disconnected");
        assert_eq!(health.last(), Some((Trouble::Refused, "wrong password".into())));
        health.clear();
        assert_eq!(health.last(), None);
    }

    #[test]
    fn causes_are_told_apart() {
        let told = |code, text: &str| {
            let health = Health::of("one:9092,two:9092");
            health.error(code, text);
            health.last()
        };
        let down = RDKafkaErrorCode::BrokerTransportFailure;
        let failed = "Connect to ipv4#10.0.0.1:9092 failed: Connection refused";
        for (place, expected) in [
            ("one:9092/bootstrap", Trouble::Unreachable),
            ("two:9092/2", Trouble::Unreachable),
            ("sasl_ssl://two:9092/2", Trouble::Unreachable),
            ("three:9092/3", Trouble::Misadvertised),
            ("ssl://three:9092/3", Trouble::Misadvertised),
        ] {
            let text = format!("{place}: {failed}");
            assert_eq!(told(down, &text), Some((expected, text)));
        }
        let text = format!("GroupCoordinator: one:9092: {failed} (after 1ms in state CONNECT)");
        assert_eq!(
            told(down, &text),
            Some((Trouble::Unreachable, format!("one:9092: {failed}")))
        );
    }

    #[test]
    fn an_outage_lasts_until_the_question_is_answered() {
        let health = Health::default();
        assert_eq!(health.outage(), None);
        health.unanswered(Question::Ends, "no leader".into());
        let since = health.outage().expect("an outage").since;
        health.unanswered(Question::Topics, "timed out".into());
        health.unanswered(Question::Ends, "still no leader".into());
        let outage = health.outage().expect("an outage");
        assert_eq!((outage.cause.as_str(), outage.since), ("still no leader", since));
        health.answered(Question::Ends);
        health.error(RDKafkaErrorCode::BrokerTransportFailure, "connection refused");
        assert_eq!(health.outage().expect("an outage").cause, "connection refused");
        health.answered(Question::Topics);
        assert_eq!(health.outage(), None);
    }

    #[test]
    fn repeated_lines_are_held_back() {
        let health = Health::default();
        assert_eq!(health.may_show("FAIL"), Some(0));
        assert_eq!(health.may_show("FAIL"), None);
        assert_eq!(health.may_show("ERROR"), Some(0));
    }

    #[test]
    fn codes_are_words() {
        assert_eq!(
            describe_code(RDKafkaErrorCode::InvalidReplicationFactor),
            "Invalid replication factor"
        );
        assert_eq!(describe_code(RDKafkaErrorCode::MessageTimedOut), "Message timed out");
    }
}
