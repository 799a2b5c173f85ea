//! Metrics of commands: how often each was called, how it ended, and how long it took.

use super::Kind::{Counter, Histogram};
use super::{Family, get};
use crate::command::table;
use crate::telemetry::WriteError;

pub(super) const FAMILIES: &[Family] = &[
    Family::counter("highwater_commands_total", "Commands that were computed.", |shared| {
        shared.stats.traffic.sum(|t| &t.commands) as f64
    }),
    Family::each(
        Counter,
        ("highwater_command_calls_total", &["command"]),
        "Commands that were computed, by their names.",
        |_, to| {
            for entry in table::with_subcommands() {
                let calls = entry.stats.sum(|s| &s.calls);
                if calls > 0 {
                    to.add(&[entry.name], calls as f64);
                }
            }
        },
    ),
    Family::each(
        Counter,
        ("highwater_command_errors_total", &["command", "outcome"]),
        "Commands that were answered with an error: rejected before they were computed (arity, rights, loading), or failed.",
        |_, to| {
            for entry in table::with_subcommands() {
                let [rejected, failed] = [entry.stats.sum(|s| &s.rejected), entry.stats.sum(|s| &s.failed)];
                for (outcome, count) in [("rejected", rejected), ("failed", failed)] {
                    if count > 0 {
                        to.add(&[entry.name, outcome], count as f64);
                    }
                }
            }
        },
    ),
    Family::each(
        Histogram,
        ("highwater_command_computation_seconds", &["command"]),
        "How long commands were computed, without waiting for the log, also those of scripts. Counted while latency-tracking is yes; the sum is right to 2 %.",
        |_, to| {
            for entry in table::with_subcommands() {
                to.durations(&[entry.name], &entry.computations());
            }
        },
    ),
    Family::each(
        Histogram,
        ("highwater_command_duration_seconds", &["command"]),
        "How long clients waited for commands: for the computation, and for what it waits for, as the log. Counted while latency-tracking is yes; the sum is right to 2 %.",
        |_, to| {
            for entry in table::with_subcommands() {
                to.durations(&[entry.name], &entry.waits());
            }
        },
    ),
    Family::each(
        Counter,
        ("highwater_error_replies_total", &["kind"]),
        "Error replies, by their first words. Those of other than capital letters are other: scripts can answer any words.",
        |shared, to| {
            let mut other = 0;
            for (kind, count) in shared.stats.errors() {
                match kind.bytes().all(|byte| byte.is_ascii_uppercase()) {
                    true => to.add(&[&kind], count as f64),
                    false => other += count,
                }
            }
            if other > 0 {
                to.add(&["other"], other as f64);
            }
        },
    ),
    Family::each(
        Counter,
        ("highwater_write_errors_total", &["error", "cause"]),
        "NOTWRITTEN and UNCERTAIN replies by cause: conflict (other writers came first), waiting (for keys, a topic or the store), store (it is behind), queue (full), unreachable (Kafka, since the start), failed (this node), log (everything else).",
        |shared, to| {
            for ((error, cause), count) in shared.stats.write_errors() {
                let error = match error {
                    WriteError::NotWritten => "notwritten",
                    WriteError::Uncertain => "uncertain",
                };
                to.add(&[error, cause], count as f64);
            }
        },
    ),
    Family::counter(
        "highwater_keyspace_hits_total",
        "Keys that commands looked for and found.",
        |shared| shared.service.counters.lookups.sum(|l| &l.hits) as f64,
    ),
    Family::counter(
        "highwater_keyspace_misses_total",
        "Keys that commands looked for and did not find.",
        |shared| shared.service.counters.lookups.sum(|l| &l.misses) as f64,
    ),
    Family::counter(
        "highwater_expired_keys_total",
        "Expired keys that this node deleted.",
        |shared| get(&shared.service.counters.expired),
    ),
    Family::gauge("highwater_slowlog_entries", "Entries of SLOWLOG.", |shared| {
        shared.stats.slowlog.len() as f64
    }),
];
