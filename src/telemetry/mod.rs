//! Observation: log lines ([`logging`]), the counters of INFO ([`Stats`]), causes of failed writes
//! ([`causes`]), slow commands ([`slowlog`]), slow events ([`latency`]), durations by length
//! ([`histogram`]), the progress of long tasks ([`progress`]), and what the system and the
//! allocator report about the process ([`process`], [`allocator`]). It knows no command and no
//! database: their modules report to it.

pub mod allocator;
pub mod causes;
pub mod histogram;
pub mod latency;
pub mod logging;
pub mod process;
pub mod progress;
pub mod slowlog;
pub mod sparing;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::striped::Striped;
use latency::Latency;
use slowlog::Slowlog;
use sparing::Sparing;

/// Time between samples of the rates, as in Redis.
pub const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// A rate is the mean of so many samples.
const SAMPLES: usize = 16;
/// Kinds of errors that are counted separately.
const MAX_ERROR_KINDS: usize = 128;
/// Longest kind of error, bytes.
const MAX_ERROR_KIND: usize = 32;

/// Counters of the whole server since its start or CONFIG RESETSTAT. Those of single commands are
/// in the command table.
#[derive(Default)]
pub struct Stats {
    pub connections_received: AtomicU64,
    pub connections_rejected: AtomicU64,
    pub traffic: Striped<Traffic>,
    pub error_replies: AtomicU64,
    /// Clients that were disconnected because of `client-output-buffer-limit` and
    /// `client-query-buffer-limit`.
    pub output_limit_disconnections: AtomicU64,
    pub query_limit_disconnections: AtomicU64,
    /// Clients that were disconnected because all together held more than `maxmemory-clients`.
    pub evicted_clients: AtomicU64,
    /// Most bytes of keys and values that were in memory when this was measured.
    pub peak_memory: AtomicU64,
    /// Log lines about clients above those limits.
    pub above_limits: Sparing,
    /// Log lines about patterns of channels that took too long to match.
    pub patterns_given_up: Sparing,
    /// Log lines about connections that could not be accepted.
    pub not_accepted: Sparing,
    /// Log lines about handshakes of TLS that failed.
    pub handshakes_failed: Sparing,
    pub slowlog: Slowlog,
    pub latency: Latency,
    /// Error replies by their first word.
    error_kinds: Mutex<BTreeMap<String, u64>>,
    /// Of the kinds NOTWRITTEN and UNCERTAIN, also by their causes.
    write_errors: Mutex<BTreeMap<(WriteError, &'static str), u64>>,
    sampler: Mutex<Sampler>,
}

/// An error of a write that Redis does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WriteError {
    NotWritten,
    Uncertain,
}

/// What is counted at every command.
#[derive(Default)]
pub struct Traffic {
    pub commands: AtomicU64,
    pub input_bytes: AtomicU64,
    pub output_bytes: AtomicU64,
}

/// What happens per second, over the last 1.6 seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    pub commands: u64,
    pub input_kib: f64,
    pub output_kib: f64,
}

#[derive(Default)]
struct Sampler {
    /// When the last sample was taken, and the counters then.
    last: Option<(Instant, [u64; 3])>,
    /// Per second.
    samples: [[f64; 3]; SAMPLES],
    next: usize,
}

impl Stats {
    /// Counts a client that is closed for `client-output-buffer-limit`.
    pub fn above_output_limit(&self, client: u64) {
        self.output_limit_disconnections.fetch_add(1, Ordering::Relaxed);
        self.above_limits.warn(|suppressed| {
            tracing::warn!(
                client,
                suppressed,
                "closing a client that is above client-output-buffer-limit"
            );
        });
    }

    /// Counts an error reply (without the leading `-`) by its first word.
    pub fn count_error(&self, text: &[u8]) {
        self.error_replies.fetch_add(1, Ordering::Relaxed);
        let end = text.iter().position(u8::is_ascii_whitespace).unwrap_or(text.len());
        let kind = String::from_utf8_lossy(&text[..end.min(MAX_ERROR_KIND)]);
        let write_error = match &*kind {
            "NOTWRITTEN" => Some(WriteError::NotWritten),
            "UNCERTAIN" => Some(WriteError::Uncertain),
            _ => None,
        };
        if let Some(error) = write_error {
            let cause = causes::cause(&String::from_utf8_lossy(text));
            *self.write_errors.lock().entry((error, cause)).or_default() += 1;
        }
        let mut kinds = self.error_kinds.lock();
        if let Some(count) = kinds.get_mut(&*kind) {
            *count += 1;
        } else if kinds.len() < MAX_ERROR_KINDS {
            kinds.insert(kind.into_owned(), 1);
        }
    }

    /// Error replies by kind, for `INFO errorstats`.
    pub fn errors(&self) -> Vec<(String, u64)> {
        self.error_kinds
            .lock()
            .iter()
            .map(|(kind, &count)| (kind.clone(), count))
            .collect()
    }

    /// Error replies to writes that the log does not have, or may not have, by their causes.
    pub fn write_errors(&self) -> BTreeMap<(WriteError, &'static str), u64> {
        self.write_errors.lock().clone()
    }

    /// Takes a sample of the rates. Must be called at each [`SAMPLE_INTERVAL`].
    pub fn sample(&self, now: Instant) {
        let counts = [
            self.traffic.sum(|t| &t.commands),
            self.traffic.sum(|t| &t.input_bytes),
            self.traffic.sum(|t| &t.output_bytes),
        ];
        let mut sampler = self.sampler.lock();
        if let Some((then, before)) = sampler.last {
            let seconds = now.saturating_duration_since(then).as_secs_f64();
            if seconds <= 0.0 {
                return;
            }
            let next = sampler.next;
            for which in 0..counts.len() {
                sampler.samples[next][which] = counts[which].saturating_sub(before[which]) as f64 / seconds;
            }
            sampler.next = (next + 1) % SAMPLES;
        }
        sampler.last = Some((now, counts));
    }

    pub fn rates(&self) -> Rates {
        let sampler = self.sampler.lock();
        let mean = |which: usize| sampler.samples.iter().map(|sample| sample[which]).sum::<f64>() / SAMPLES as f64;
        Rates {
            commands: mean(0) as u64,
            input_kib: mean(1) / 1024.0,
            output_kib: mean(2) / 1024.0,
        }
    }

    /// CONFIG RESETSTAT. The slow log and the latency events have their own commands for that.
    pub fn reset(&self) {
        let counters = [
            &self.connections_received,
            &self.connections_rejected,
            &self.error_replies,
            &self.output_limit_disconnections,
            &self.query_limit_disconnections,
            &self.evicted_clients,
        ];
        for counter in counters {
            counter.store(0, Ordering::Relaxed);
        }
        self.traffic.reset(|t| [&t.commands, &t.input_bytes, &t.output_bytes]);
        self.error_kinds.lock().clear();
        self.write_errors.lock().clear();
        *self.sampler.lock() = Sampler::default();
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_the_mean_of_the_last_samples() {
        let stats = Stats::default();
        let start = Instant::now();
        stats.sample(start);
        for tick in 1..=SAMPLES as u32 {
            stats.traffic.own().commands.fetch_add(10, Ordering::Relaxed);
            stats.traffic.own().input_bytes.fetch_add(1024, Ordering::Relaxed);
            stats.sample(start + SAMPLE_INTERVAL * tick);
        }
        let rates = stats.rates();
        assert!((99..=100).contains(&rates.commands), "{rates:?}");
        assert!((rates.input_kib - 10.0).abs() < 0.01, "{rates:?}");
        assert_eq!(rates.output_kib, 0.0);
        stats.reset();
        assert_eq!(stats.rates(), Rates::default());
    }

    #[test]
    fn errors_are_counted_by_their_first_word() {
        let stats = Stats::default();
        stats.count_error(b"ERR one");
        stats.count_error(b"ERR two");
        stats.count_error(b"WRONGTYPE");
        assert_eq!(stats.errors(), [("ERR".to_string(), 2), ("WRONGTYPE".to_string(), 1)]);
        stats.count_error(b"UNCERTAIN this node is about to end");
        let of_writes = stats.write_errors();
        assert_eq!(
            of_writes.into_iter().collect::<Vec<_>>(),
            [((WriteError::Uncertain, "failed"), 1)]
        );
        for n in 0..1_000 {
            stats.count_error(format!("E{n} x").as_bytes());
        }
        assert_eq!(stats.errors().len(), MAX_ERROR_KINDS);
        assert_eq!(stats.error_replies.load(Ordering::Relaxed), 1_004);
    }
}
