//! Metrics of the log, how far this node has read it, and the store.

use super::Kind::{Counter, Gauge};
use super::{Family, Samples, get};
use crate::command::Shared;
use crate::database::Partition;
use crate::log::LogCounts;

/// Most partitions of a database that are listed one by one.
const MAX_PARTITIONS: usize = 100;

pub(super) const RECORDS: &[Family] = &[
    Family::counter(
        "highwater_records_applied_total",
        "Records that were read from the log and applied.",
        |shared| get(&shared.service.counters.records_applied),
    ),
    Family::each(
        Counter,
        ("highwater_records_unusual_total", &["reason"]),
        "Records of other producers that need a look: skipped (without a key), misplaced (outside of the key's partition), reserved (a reserved key that this version does not know).",
        |shared, to| {
            let counters = &shared.service.counters;
            to.add(&["skipped"], get(&counters.records_skipped));
            to.add(&["misplaced"], get(&counters.records_misplaced));
            to.add(&["reserved"], get(&counters.records_reserved));
        },
    ),
    Family::gauge(
        "highwater_last_applied_time_seconds",
        "When a record was applied last, in seconds since the epoch.",
        |shared| get(&shared.service.counters.last_applied_ms) / 1e3,
    ),
    Family::each(
        Counter,
        ("highwater_tombstones_total", &["reason"]),
        "Tombstones that this node wrote in the background: flush (for what a flush has hidden), orphan (for elements without a collection).",
        |shared, to| {
            to.add(&["flush"], get(&shared.service.counters.flushed));
            to.add(&["orphan"], get(&shared.service.counters.orphans));
        },
    ),
    Family::counter(
        "highwater_writes_refused_total",
        "Writes that the log certainly does not have (NOTWRITTEN).",
        |shared| get(&shared.service.counters.writes_refused),
    ),
    Family::counter(
        "highwater_writes_uncertain_total",
        "Writes that the log may have (UNCERTAIN).",
        |shared| get(&shared.service.counters.writes_uncertain),
    ),
    Family::counter(
        "highwater_writes_conflicted_total",
        "Writes that were computed again since another writer came first.",
        |shared| get(&shared.service.counters.writes_conflicted),
    ),
];

pub(super) const POSITIONS: &[Family] = &[
    Family::each(
        Gauge,
        ("highwater_database_lag_records", &["database", "topic"]),
        "Offsets between what this node has stored and the log's end, all partitions together. Missing while the log does not answer.",
        |shared, to| {
            if shared.service.log.outage().is_none() {
                of_databases(shared, to, |partitions| {
                    Some(partitions.iter().map(Partition::lag).sum::<u64>() as f64)
                });
            }
        },
    ),
    Family::each(
        Gauge,
        ("highwater_database_age_seconds", &["database", "topic"]),
        "How long ago this node had everything that the log had then: of the partition where that is longest. Missing before it had it once.",
        |shared, to| {
            of_databases(shared, to, |partitions| {
                partitions.iter().map(age).reduce(|a, b| Some(a?.max(b?))).flatten()
            });
        },
    ),
    Family::each(
        Gauge,
        ("highwater_partition_position", PARTITION),
        "The next offset to be stored here. Partitions 0 to 99 of each database.",
        |shared, to| of_partitions(shared, to, |partition| Some(get(&partition.stored))),
    ),
    Family::each(
        Gauge,
        ("highwater_partition_end", PARTITION),
        "The log's end as far as it is known.",
        |shared, to| of_partitions(shared, to, |partition| Some(partition.known_end() as f64)),
    ),
    Family::each(
        Gauge,
        ("highwater_partition_acknowledged", PARTITION),
        "The offset after the newest record of this node.",
        |shared, to| of_partitions(shared, to, |partition| Some(get(&partition.acknowledged))),
    ),
    Family::each(
        Gauge,
        ("highwater_partition_lag_records", PARTITION),
        "Offsets between the position and the end. Missing while the log does not answer.",
        |shared, to| {
            if shared.service.log.outage().is_none() {
                of_partitions(shared, to, |partition| Some(partition.lag() as f64));
            }
        },
    ),
    Family::each(
        Gauge,
        ("highwater_partition_age_seconds", PARTITION),
        "How long ago this node had everything that the partition had then. Missing before it had it once.",
        |shared, to| of_partitions(shared, to, age),
    ),
    Family::each(
        Gauge,
        ("highwater_database_refuses_writes", &["database", "topic"]),
        "1 while nothing may be written to the topic since its settings are not safe.",
        |shared, to| {
            for (database, topic) in databases(shared) {
                let refuses = shared.service.log.refuses_writes(database).is_some();
                to.add(&[&database.to_string(), &topic], super::flag(refuses));
            }
        },
    ),
];

const PARTITION: &[&str] = &["database", "topic", "partition"];

/// Databases that have a topic and are in use, with its name.
fn databases(shared: &Shared) -> impl Iterator<Item = (u16, String)> {
    let numbers = 0..shared.service.database_count();
    let shown = numbers.filter(|number| shared.service.is_in_use(*number));
    shown.filter_map(|number| Some((number, shared.service.log.identity(number)?.topic)))
}

fn of_databases(shared: &Shared, to: &mut Samples<'_>, value: impl Fn(&[Partition]) -> Option<f64>) {
    for (database, topic) in databases(shared) {
        if let Some(value) = value(shared.service.database(database).partitions()) {
            to.add(&[&database.to_string(), &topic], value);
        }
    }
}

fn of_partitions(shared: &Shared, to: &mut Samples<'_>, value: impl Fn(&Partition) -> Option<f64>) {
    for (database, topic) in databases(shared) {
        let partitions = shared.service.database(database).partitions();
        for (number, partition) in partitions.iter().enumerate().take(MAX_PARTITIONS) {
            if let Some(value) = value(partition) {
                to.add(&[&database.to_string(), &topic, &number.to_string()], value);
            }
        }
    }
}

fn age(partition: &Partition) -> Option<f64> {
    Some(partition.age()?.as_secs_f64())
}

pub(super) const LOG: &[Family] = &[
    Family::each(
        Gauge,
        ("highwater_log_info", &["kind"]),
        "Always 1. The label says which log holds the data: kafka or embedded.",
        |shared, to| to.add(&[shared.service.log.kind()], 1.0),
    ),
    Family::each(
        Counter,
        ("highwater_transactions_total", &["outcome"]),
        "Kafka transactions of this node, each a group of writes: committed, conflict (aborted, another writer came first), failed (not committed for other reasons; what was in it may have been sent again), uncertain.",
        |shared, to| {
            if let LogCounts::Kafka {
                committed,
                conflicts,
                failed,
                uncertain,
            } = shared.service.log.counts()
            {
                to.add(&["committed"], committed as f64);
                to.add(&["conflict"], conflicts as f64);
                to.add(&["failed"], failed as f64);
                to.add(&["uncertain"], uncertain as f64);
            }
        },
    ),
    Family::each(
        Gauge,
        ("highwater_log_disk_bytes", &[]),
        "Bytes of the embedded log on the disk.",
        |shared, to| embedded(shared, to, |[disk_bytes, ..]| disk_bytes),
    ),
    Family::each(
        Gauge,
        ("highwater_log_segments", &[]),
        "Files of the embedded log.",
        |shared, to| embedded(shared, to, |[_, segments, ..]| segments),
    ),
    Family::each(
        Counter,
        ("highwater_log_compactions_total", &[]),
        "Compactions of the embedded log.",
        |shared, to| embedded(shared, to, |[_, _, compactions, _]| compactions),
    ),
    Family::each(
        Counter,
        ("highwater_log_fsyncs_total", &[]),
        "Flushes of the embedded log to the disk.",
        |shared, to| embedded(shared, to, |[.., fsyncs]| fsyncs),
    ),
];

fn embedded(shared: &Shared, to: &mut Samples<'_>, value: fn([u64; 4]) -> u64) {
    if let LogCounts::Embedded {
        disk_bytes,
        segments,
        compactions,
        fsyncs,
    } = shared.service.log.counts()
    {
        to.add(&[], value([disk_bytes, segments, compactions, fsyncs]) as f64);
    }
}

pub(super) const STORE: &[Family] = &[
    Family::each(
        Gauge,
        ("highwater_store_keys", &["database"]),
        "Keys in the local store. Keys that have expired count until they are deleted.",
        |shared, to| of_store(shared, to, |shared, database| shared.service.store.count(database).ok()),
    ),
    Family::each(
        Gauge,
        ("highwater_store_expiring_keys", &["database"]),
        "Keys with an expiry in the local store.",
        |shared, to| {
            of_store(shared, to, |shared, database| {
                shared.service.store.count_expiring(database).ok()
            });
        },
    ),
    Family::each(
        Gauge,
        ("highwater_store_hidden_entries", &["database"]),
        "Entries that a flush has hidden and that still need a tombstone.",
        |shared, to| {
            of_store(shared, to, |shared, database| {
                shared.service.store.count_hidden(database).ok()
            });
        },
    ),
    Family::gauge(
        "highwater_store_disk_bytes",
        "Bytes of the local store on the disk.",
        |shared| shared.service.store.disk_bytes() as f64,
    ),
    Family::counter(
        "highwater_store_reads_total",
        "Reads of keys from the store, since memory did not have them.",
        |shared| get(&shared.service.counters.store_reads),
    ),
    Family::gauge(
        "highwater_store_lacks_room",
        "1 while the disk has no room for what the store should take in.",
        |shared| super::flag(shared.service.store_lacks_room().is_some()),
    ),
    Family::gauge(
        "highwater_checkpoint_time_seconds",
        "When the last checkpoint of the store was written, in seconds since the epoch; 0 for never.",
        |shared| get(&shared.service.counters.last_checkpoint_ms) / 1e3,
    ),
    Family::gauge(
        "highwater_checkpoint_applied_records",
        "Records that had been applied by then.",
        |shared| get(&shared.service.counters.last_checkpoint_records),
    ),
];

/// `count`: `None` while the store cannot be read.
fn of_store(shared: &Shared, to: &mut Samples<'_>, count: fn(&Shared, u16) -> Option<u64>) {
    for (database, _) in databases(shared) {
        if let Some(count) = count(shared, database) {
            to.add(&[&database.to_string()], count as f64);
        }
    }
}
