//! What of a store can be used when a node starts or finds that it cannot go on: the positions that
//! fit today's topics, and whether the node may build its store anew.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::warn;

use super::as_of::is_too_old;
use super::{Service, now_ms, source};
use crate::log::{LogError, Mark, Marks, Positions, TopicPartition};
use crate::store::{Checkpoint, StoreError};

/// The checkpoint's positions that fit today's topics. Other databases are cleared and read again.
pub(super) fn usable_positions(service: &Service, checkpoint: &Checkpoint) -> Result<(Positions, Marks), LogError> {
    let (mut positions, mut marks) = (Positions::new(), Marks::new());
    let failed = |e: StoreError| LogError::Failed(e.to_string());
    service.clear_unknown(checkpoint).map_err(failed)?;
    // The store is of as many databases as the service: it has no others.
    for (&database, known) in checkpoint.databases.range(..service.database_count()) {
        let source = source::of(service, database);
        let retention = service.log.tombstone_retention(database);
        let (now, as_of) = (now_ms(), known.partitions.values().map(|p| p.as_of));
        let (oldest, newest) = (as_of.clone().min().unwrap_or(0), as_of.max().unwrap_or(0));
        let reason = if source.as_deref() != Some(known.source.as_str()) {
            Some(format!(
                "it was filled from {}, the topic is now {}",
                known.source,
                source.as_deref().unwrap_or("gone")
            ))
        } else if retention.is_some() && newest > now {
            Some("it is from the future: the clock was set back, or that of the machine that made it is ahead; how long this node was away is not known, so deletes may have been missed".into())
        } else if retention.is_some_and(|r| is_too_old(Duration::from_millis(now.saturating_sub(oldest)), r)) {
            Some("it is older than the topic keeps its tombstones (delete.retention.ms), so deletes may have been missed".into())
        } else {
            None
        };
        if let Some(reason) = reason {
            refuse_rebuild(service, &reason)?;
            warn!(database, reason, "rebuilding the local store of a database");
            service.counters.rebuilds.fetch_add(1, Ordering::Relaxed);
            service.clear_store(database).map_err(failed)?;
            continue;
        }
        service.databases[database as usize].features.restore(&known.features);
        service.databases[database as usize].functions.restore(&known.functions);
        for (&partition, position) in &known.partitions {
            let at = TopicPartition { database, partition };
            if let Some(partition) = service.partition(&at) {
                partition.as_of.store(position.as_of as i64, Ordering::Relaxed);
            }
            positions.insert(at, position.next_offset);
            marks.extend(position.mark.map(|(offset, epoch)| (at, Mark { offset, epoch })));
        }
    }
    Ok((positions, marks))
}

/// What to do if a node cannot go on from the snapshot that it began from.
pub const NO_SNAPSHOT: &str =
    "empty the data directory (--dir), then begin from a newer snapshot, or from none to read the whole topic";

/// An error if the store came from a snapshot and did not catch up yet. Who begins from a snapshot
/// counts on it, and wants to know that it is of no use.
pub(super) fn refuse_rebuild(service: &Service, reason: &str) -> Result<(), LogError> {
    match service.settings.refuses_rebuild.load(Ordering::Relaxed) {
        true => Err(LogError::Failed(format!(
            "the snapshot that this node began from does not fit: {reason}; {NO_SNAPSHOT}"
        ))),
        false => Ok(()),
    }
}
