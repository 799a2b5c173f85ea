//! Metrics of the process, its status, its clients and its memory.

use std::sync::atomic::Ordering;

use super::Kind::{Counter, Gauge};
use super::{Family, flag, get, used};
use crate::acl::Reason;
use crate::command::pushes::Kind as Listening;
use crate::command::{REDIS_VERSION, Shared};
use crate::config::{COMMIT, VERSION};
use crate::database::Status;
use crate::log::Outage;
use crate::telemetry::process;

pub(super) const PROCESS: &[Family] = &[
    Family::each(
        Gauge,
        ("highwater_build_info", &["version", "commit", "redis_version"]),
        "Always 1. The labels say what runs.",
        |_, to| to.add(&[VERSION, COMMIT, REDIS_VERSION], 1.0),
    ),
    Family::gauge(
        "process_start_time_seconds",
        "When the process was started, in seconds since the epoch.",
        |shared| shared.started_at as f64 / 1e3,
    ),
    Family::counter(
        "process_cpu_seconds_total",
        "Processor time of the process, in the kernel and outside of it.",
        |_| {
            let (system, user) = process::cpu_times();
            (system + user).as_secs_f64()
        },
    ),
    Family::gauge(
        "process_resident_memory_bytes",
        "Memory that the process has (resident set).",
        |_| process::resident_bytes() as f64,
    ),
];

pub(super) const STATUS: &[Family] = &[
    Family::each(
        Gauge,
        ("highwater_status", &["status"]),
        "1 for the status of this node, 0 for the others: loading, serving, outage (the log does not answer), stale (nor did it since the start), failed.",
        |shared, to| {
            let now = shared.service.status().name(shared.service.log.outage().is_some());
            for name in Status::NAMES {
                to.add(&[name], flag(name == now));
            }
        },
    ),
    Family::gauge(
        "highwater_loading_applied_records",
        "Records that were read so far, by offsets; 0 while this node is not loading.",
        |shared| loading(shared).0,
    ),
    Family::gauge(
        "highwater_loading_goal_records",
        "Records that have to be read before this node serves, by offsets; 0 while this node is not loading.",
        |shared| loading(shared).1,
    ),
    Family::counter(
        "highwater_rebuilds_total",
        "Times that the local store was rebuilt from the log.",
        |shared| get(&shared.service.counters.rebuilds),
    ),
    Family::gauge(
        "highwater_log_outage_seconds",
        "How long the log has not answered; 0 while it does.",
        |shared| match shared.service.log.outage() {
            Some(Outage { since, .. }) => since.elapsed().unwrap_or_default().as_secs_f64(),
            None => 0.0,
        },
    ),
    Family::gauge(
        "highwater_log_held_up",
        "1 while open transactions of other producers keep newer records from being read.",
        |shared| flag(shared.service.log.held_up(None).is_some()),
    ),
];

/// Records read so far, and to be read, while this node is loading.
fn loading(shared: &Shared) -> (f64, f64) {
    match *shared.service.status() {
        Status::Loading { applied, total, .. } => (applied as f64, total as f64),
        _ => (0.0, 0.0),
    }
}

pub(super) const CLIENTS: &[Family] = &[
    Family::gauge("highwater_clients", "Open connections, at all ports.", |shared| {
        shared.clients.len() as f64
    }),
    Family::gauge("highwater_clients_limit", "Most connections (maxclients).", |shared| {
        shared.config.maxclients() as f64
    }),
    Family::gauge(
        "highwater_clients_blocked",
        "Connections that wait in a command that blocks, or for the end of a pause.",
        |shared| {
            let clients = shared.clients.list();
            let blocked = clients.iter().filter(|client| client.blocked.load(Ordering::Relaxed));
            blocked.count() as f64
        },
    ),
    Family::gauge(
        "highwater_clients_memory_bytes",
        "Memory that connections hold together.",
        |shared| shared.clients.memory() as f64,
    ),
    Family::gauge(
        "highwater_clients_memory_limit_bytes",
        "Most memory that connections may hold together (maxmemory-clients).",
        |shared| shared.config.clients_memory_limit() as f64,
    ),
    Family::counter(
        "highwater_connections_received_total",
        "Connections that came, at all ports.",
        |shared| get(&shared.stats.connections_received),
    ),
    Family::counter(
        "highwater_connections_rejected_total",
        "Connections that were refused: by maxclients, by protected mode, or in the handshake of TLS.",
        |shared| get(&shared.stats.connections_rejected),
    ),
    Family::each(
        Counter,
        ("highwater_clients_closed_total", &["limit"]),
        "Connections that were closed above a limit: output and query (of one connection's buffers), memory (maxmemory-clients).",
        |shared, to| {
            let stats = &shared.stats;
            to.add(&["output"], get(&stats.output_limit_disconnections));
            to.add(&["query"], get(&stats.query_limit_disconnections));
            to.add(&["memory"], get(&stats.evicted_clients));
        },
    ),
    Family::counter(
        "highwater_network_received_bytes_total",
        "Bytes that clients sent.",
        |shared| shared.stats.traffic.sum(|t| &t.input_bytes) as f64,
    ),
    Family::counter(
        "highwater_network_sent_bytes_total",
        "Bytes that were sent to clients.",
        |shared| shared.stats.traffic.sum(|t| &t.output_bytes) as f64,
    ),
    Family::each(
        Counter,
        ("highwater_access_denied_total", &["reason"]),
        "What users were refused: auth (failed logins), command, key, channel, tls-cert (certificates without a user).",
        |shared, to| {
            use Reason::*;
            for reason in [LogIn, Command, Key, Channel, Certificate] {
                to.add(&[reason.name()], shared.users.denials.count(reason) as f64);
            }
        },
    ),
];

pub(super) const MEMORY: &[Family] = &[
    Family::gauge(
        "highwater_memory_used_bytes",
        "Keys and values in memory, which maxmemory bounds.",
        |shared| used(&shared.service.memory.used),
    ),
    Family::gauge(
        "highwater_memory_limit_bytes",
        "Most bytes of keys and values in memory (maxmemory).",
        |shared| used(&shared.service.memory.limit),
    ),
    Family::gauge(
        "highwater_memory_peak_bytes",
        "Most bytes of keys and values that were in memory when that was measured.",
        |shared| get(&shared.stats.peak_memory),
    ),
    Family::counter(
        "highwater_memory_evicted_total",
        "Keys that left memory. They stay in the store.",
        |shared| used(&shared.service.memory.evicted),
    ),
    Family::gauge(
        "highwater_memory_unstored_bytes",
        "What was acknowledged or applied and is not in the store yet.",
        |shared| used(&shared.service.memory.unstored),
    ),
    Family::gauge(
        "highwater_memory_unstored_limit_bytes",
        "Most bytes of that. Writes wait above it.",
        |shared| get(&shared.service.settings.max_unstored_bytes),
    ),
    Family::gauge(
        "highwater_scripts_memory_bytes",
        "Memory of the interpreters of scripts.",
        |shared| shared.scripts.memory() as f64,
    ),
    Family::gauge("highwater_scripts_cached", "Scripts that are known.", |shared| {
        shared.scripts.scripts.size().0 as f64
    }),
];

pub(super) const MESSAGES: &[Family] = &[
    Family::each(
        Gauge,
        ("highwater_pubsub_listened", &["kind"]),
        "Different channels, patterns and shard channels that clients of this node listen to.",
        |shared, to| {
            let kinds = [
                ("channel", Listening::Channel),
                ("pattern", Listening::Pattern),
                ("shard", Listening::Shard),
            ];
            for (name, kind) in kinds {
                to.add(&[name], shared.pubsub.hub.count(kind) as f64);
            }
        },
    ),
    Family::each(
        Counter,
        ("highwater_pubsub_topic_records_total", &["outcome"]),
        "Records of the topic of messages: received, skipped (no messages), early (delivered before this node had what their publishers had).",
        |shared, to| {
            if let Some(topic) = &shared.pubsub.topic {
                to.add(&["received"], get(&topic.counters().received));
                to.add(&["skipped"], get(&topic.counters().skipped));
                to.add(&["early"], get(&shared.pubsub.counters.early));
            }
        },
    ),
    Family::each(
        Counter,
        ("highwater_pubsub_gaps_total", &[]),
        "Times that messages of the topic may have been lost.",
        |shared, to| {
            if let Some(topic) = &shared.pubsub.topic {
                to.add(&[], get(&topic.counters().gaps));
            }
        },
    ),
    Family::counter(
        "highwater_pubsub_closed_total",
        "Connections that were closed because they may have missed messages.",
        |shared| get(&shared.pubsub.counters.closed),
    ),
    Family::counter(
        "highwater_keyspace_events_dropped_total",
        "Keyspace events that were not delivered.",
        |shared| get(&shared.pubsub.events.dropped),
    ),
    Family::gauge("highwater_tracking_clients", "Clients that track keys.", |shared| {
        shared.tracking.clients() as f64
    }),
    Family::gauge("highwater_tracking_keys", "Keys that clients track.", |shared| {
        shared.tracking.keys() as f64
    }),
];
