//! What librdkafka tells beside records: its log lines, passed on to `tracing`, and its errors, remembered so that
//! an error message can say why. One [`Context`] per client, one [`Health`] for all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

use super::ffi::{Hears, Report};
use super::producer::{Delivery, Sender};
use crate::log::{EXPECTED, expect_all};

/// A broker that is away makes librdkafka say so every second: one line per facility in this time.
const QUIET: Duration = Duration::from_secs(30);
/// Facilities whose last line is remembered.
const MAX_FACILITIES: usize = 64;

/// Why the cluster cannot be used, as far as the clients have told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    Unreachable,
    /// The broker is there and does not let us in.
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
}

#[derive(Default)]
pub(super) struct Health {
    last: Mutex<Option<(Trouble, String)>>,
    lines: Mutex<HashMap<String, Line>>,
}

struct Line {
    shown: Instant,
    hidden: u64,
}

impl Health {
    /// The last error of any client.
    pub fn last(&self) -> Option<(Trouble, String)> {
        self.last.lock().clone()
    }

    /// The cluster answered: older errors explain nothing any more.
    pub fn clear(&self) {
        *self.last.lock() = None;
    }

    pub fn error(&self, code: RDKafkaErrorCode, text: &str) {
        // "(after 0ms in state CONNECT, 1 identical error(s) suppressed)" explains nothing to a user.
        let text = text.split_once(" (after ").map_or(text, |(text, _)| text);
        let Some(trouble) = Trouble::of(code) else {
            tracing::debug!(target: "librdkafka", error = ?code, "{text}");
            return;
        };
        let mut last = self.last.lock();
        // "all brokers are down" says less than why, and a refusal less than a broken connection after it.
        let replace = match &*last {
            None => true,
            Some(_) if code == RDKafkaErrorCode::AllBrokersDown => false,
            Some((Trouble::Refused, _)) => trouble == Trouble::Refused,
            Some((Trouble::Unreachable, _)) => true,
        };
        if replace {
            *last = Some((trouble, text.to_owned()));
        }
    }

    pub fn line(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        match (level, facility) {
            (RDKafkaLogLevel::Debug | RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice, _)
            // Properties for producers are given to consumers too, on purpose.
            | (_, "CONFWARN")
            // A cluster that is new or has just started is not ready to give out producer ids; it is asked again.
            | (_, "GETPID")
            // Whoever replaces the producer tells why.
            | (_, "FATAL" | "TXNERR") => tracing::debug!(target: "librdkafka", facility, "{text}"),
            _ => {
                if let Some(hidden) = self.may_show(facility) {
                    tracing::warn!(target: "librdkafka", facility, hidden, "{text}");
                }
            }
        }
    }

    /// How many lines were held back since the last one that was shown; `None` to hold this one back too.
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
    /// The last error of this client that is none of the connection: why it failed for good, if it did.
    last: Mutex<Option<(RDKafkaErrorCode, String)>>,
    closing: AtomicBool,
    /// Whom a producer's reports make send more.
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
        self.health.last().map(|(_, cause)| cause)
    }

    /// For a client that failed for good: why.
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

    /// Only asked for with `statistics.interval.ms`, and there is nobody to read them.
    fn stats_raw(&self, _: &[u8]) {}
}

impl ConsumerContext for Context {}

impl Hears for Context {
    type Delivery = Delivery;

    fn reported(&self, reports: Vec<(Report<'_>, Box<Delivery>)>) {
        let mut reports = reports.into_iter();
        while !reports.as_slice().is_empty() {
            expect_all(
                reports
                    .as_slice()
                    .iter()
                    .take(EXPECTED)
                    .map(|(_, delivery)| delivery.completion()),
            );
            for (report, delivery) in reports.by_ref().take(EXPECTED) {
                self.report(&report, *delivery);
            }
        }
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
        // Of an acknowledged one this is known already.
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
