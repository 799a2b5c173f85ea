//! INFO's section `Kafka`: the log behind the databases, how far this node has read it, and what
//! went wrong. Positions, ends and lags are offsets.

use std::time::UNIX_EPOCH;

use super::{Fields, fields, get, used};
use crate::command::{Fault, Shared};
use crate::database::{Partition, Status};
use crate::log::Outage;

/// Most partitions of a database that are listed one by one.
const MAX_PARTITIONS: usize = 32;

pub(super) fn kafka(shared: &Shared, to: &mut Fields) -> Result<(), Fault> {
    let service = &shared.service;
    let (status, outage) = (service.status(), service.log.outage());
    fields!(to,
        "log_kind": service.log.kind(),
        "log_description": service.log.describe(),
        "log_status": status.name(outage.is_some()),
    );
    if let Some(Outage { cause, since }) = &outage {
        let began = since.duration_since(UNIX_EPOCH).unwrap_or_default();
        fields!(to,
            "log_outage": cause,
            "log_outage_since": began.as_secs(),
            "log_outage_seconds": since.elapsed().unwrap_or_default().as_secs(),
        );
    }
    match &*status {
        Status::Failed(reason) => fields!(to, "log_failure": reason),
        Status::Loading {
            rebuilding: Some(reason),
            ..
        } => {
            fields!(to, "log_rebuilding": reason);
        }
        _ => {}
    }
    if let Some(cause) = service.log.held_up(None) {
        fields!(to, "log_held_up": cause);
    }
    kafka_counters(shared, to);
    for database in 0..service.database_count() {
        kafka_database(shared, database, outage.is_none(), to);
    }
    Ok(())
}

fn kafka_counters(shared: &Shared, to: &mut Fields) {
    let (service, counters) = (&shared.service, &shared.service.counters);
    fields!(to,
        "records_applied": get(&counters.records_applied),
        "records_skipped": get(&counters.records_skipped),
        "records_misplaced": get(&counters.records_misplaced),
        "records_reserved": get(&counters.records_reserved),
        "flush_tombstones": get(&counters.flushed),
        "orphan_tombstones": get(&counters.orphans),
        "last_applied_time_ms": get(&counters.last_applied_ms),
        "last_checkpoint_time": get(&counters.last_checkpoint_ms) / 1_000,
        "last_checkpoint_records": get(&counters.last_checkpoint_records),
        "rebuilds": get(&counters.rebuilds),
        "writes_refused": get(&counters.writes_refused),
        "writes_uncertain": get(&counters.writes_uncertain),
        "writes_conflicted": get(&counters.writes_conflicted),
        "unstored_bytes": used(&service.memory.unstored),
        "unstored_limit_bytes": get(&service.settings.max_unstored_bytes),
        "hot_tier_used_bytes": used(&service.memory.used),
        "hot_tier_limit_bytes": used(&service.memory.limit),
        "hot_tier_evicted": used(&service.memory.evicted),
        "store_reads": get(&counters.store_reads),
        "store_disk_bytes": service.store.disk_bytes(),
        "store_lacks_room": service.store_lacks_room().unwrap_or_default(),
    );
    pubsub_counters(shared, to);
}

/// Messages between nodes.
fn pubsub_counters(shared: &Shared, to: &mut Fields) {
    let pubsub = &shared.pubsub;
    fields!(to, "keyspace_events_dropped": get(&pubsub.events.dropped));
    let Some(topic) = &pubsub.topic else {
        return;
    };
    fields!(to,
        "pubsub_received": get(&topic.counters().received),
        "pubsub_skipped": get(&topic.counters().skipped),
        "pubsub_early": get(&pubsub.counters.early),
        "pubsub_gaps": get(&topic.counters().gaps),
        "pubsub_closed": get(&pubsub.counters.closed),
        "pubsub_patterns_given_up": get(&pubsub.counters.patterns_given_up),
    );
}

/// How far this node has read one database. `is_known`: the log reports its ends.
fn kafka_database(shared: &Shared, database: u16, is_known: bool, to: &mut Fields) {
    let service = &shared.service;
    let Some(identity) = service.log.identity(database) else {
        return;
    };
    let partitions = service.database(database).partitions();
    if !service.is_in_use(database) {
        return;
    }
    let lag = |partition: &Partition| if is_known { partition.lag() as i64 } else { -1 };
    let total: i64 = if is_known { partitions.iter().map(lag).sum() } else { -1 };
    to.add(
        format!("kafka_db{database}"),
        format_args!(
            "topic={},id={},partitions={},read_only={},lag={total},as_of_age_ms={}",
            identity.topic,
            identity.id,
            identity.partitions,
            u8::from(identity.read_only),
            partitions.iter().map(age).max().unwrap_or(-1),
        ),
    );
    if let Some(reason) = service.log.refuses_writes(database) {
        to.add(format!("kafka_db{database}_refuses_writes"), reason);
    }
    for (number, partition) in partitions.iter().enumerate().take(MAX_PARTITIONS) {
        to.add(
            format!("kafka_db{database}_p{number}"),
            format_args!(
                "position={},end={},lag={},acknowledged={},as_of_age_ms={}",
                get(&partition.stored),
                partition.known_end(),
                lag(partition),
                get(&partition.acknowledged),
                age(partition),
            ),
        );
    }
}

/// Milliseconds since this node had everything that the log had; -1 if it never had.
fn age(partition: &Partition) -> i64 {
    partition.age().map_or(-1, |age| age.as_millis() as i64)
}
