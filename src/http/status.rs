//! `/status`: what this node is and does, as JSON. Names of fields stay; new ones may come.

use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::ready;
use crate::command::Shared;
use crate::config::{COMMIT, VERSION};
use crate::database::{Partition, Status};
use crate::log::Outage;

/// Most partitions of a database that are listed one by one.
const MAX_PARTITIONS: usize = 100;

pub fn render(shared: &Shared) -> String {
    let service = &shared.service;
    let (status, outage) = (service.status(), service.log.outage());
    let ready = ready::ready(shared);
    let memory = &service.memory;
    let described = json!({
        "version": VERSION,
        "commit": COMMIT,
        "run_id": shared.run_id,
        "uptime_seconds": shared.started.elapsed().as_secs(),
        "status": status.name(outage.is_some()),
        "failure": service.failure(),
        "ready": ready.is_ok(),
        "not_ready": ready.err(),
        "loading": loading(&status),
        "log": {
            "kind": service.log.kind(),
            "description": service.log.describe(),
            "outage": outage.map(|Outage { cause, since }| json!({
                "cause": cause,
                "seconds": since.elapsed().unwrap_or_default().as_secs(),
            })),
            "held_up": service.log.held_up(None),
        },
        "clients": {
            "connected": shared.clients.len(),
            "limit": shared.config.maxclients(),
            "memory_bytes": shared.clients.memory(),
        },
        "commands_per_second": shared.stats.rates().commands,
        "memory": {
            "used_bytes": memory.used.load(Ordering::Relaxed),
            "limit_bytes": memory.limit.load(Ordering::Relaxed),
            "unstored_bytes": memory.unstored.load(Ordering::Relaxed),
        },
        "store": {
            "disk_bytes": service.store.disk_bytes(),
            "lacks_room": service.store_lacks_room(),
        },
        "databases": (0..service.database_count())
            .filter_map(|number| database(shared, number))
            .collect::<Vec<_>>(),
    });
    format!("{described:#}\n")
}

/// How far loading is; nothing while this node is not loading.
fn loading(status: &Status) -> Option<Value> {
    match status {
        Status::Loading {
            applied,
            total,
            rebuilding,
        } => Some(json!({ "applied": applied, "total": total, "rebuilding": rebuilding })),
        Status::Serving | Status::Stale | Status::Failed(_) => None,
    }
}

/// A database that has a topic and is in use.
fn database(shared: &Shared, number: u16) -> Option<Value> {
    let service = &shared.service;
    if !service.is_in_use(number) {
        return None;
    }
    let identity = service.log.identity(number)?;
    let partitions = service.database(number).partitions();
    Some(json!({
        "number": number,
        "topic": identity.topic,
        "id": identity.id,
        "read_only": identity.read_only,
        "refuses_writes": service.log.refuses_writes(number),
        "keys": service.store.count(number).ok(),
        "partition_count": identity.partitions,
        "partitions": partitions.iter().take(MAX_PARTITIONS).map(partition).collect::<Vec<_>>(),
    }))
}

/// Offsets, and milliseconds since this node had everything.
fn partition(partition: &Partition) -> Value {
    json!({
        "position": partition.stored.load(Ordering::Relaxed),
        "end": partition.known_end(),
        "lag": partition.lag(),
        "age_ms": partition.age().map(|age| age.as_millis() as u64),
    })
}
