//! Follows the log up to its end without serving anybody, for `highwater snapshot`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::warn;

use super::Problem;
use crate::config::Config;
use crate::database::{Partition, Service, Settings, Status, applier};
use crate::datadir::{DataDir, Owner};
use crate::log::{Log as _, LogError, Positions, TopicPartition};
use crate::open::{Parts, open, open_store, owner};
use crate::store::{self, DatabaseCheckpoint};
use crate::supervise;
use crate::telemetry::logging::Logging;
use crate::telemetry::progress::Progress;

const STEP: Duration = Duration::from_millis(50);

/// Brings the store of this directory to the end of the topics, as a node does when it starts, and
/// closes it in good order. Everything below the positions that it returns is in the store, whole
/// groups of records, and nothing else is. Nothing is written to Kafka. Blocking.
pub(super) fn catch_up(
    config: &Config,
    directory: &mut DataDir,
    logging: &Logging,
) -> Result<(Owner, Positions), Problem> {
    let Parts { log, kafka, store } = open(config, directory)?;
    let Some(kafka) = kafka else {
        return Err("follow the topic: no brokers are named".into());
    };
    if let Some(reason) = store.rebuilt {
        warn!(reason, "the local store cannot be used; building it anew from the log");
    }
    kafka
        .reach(config.startup_timeout())
        .map_err(|e| format!("open the log: {e}"))?;
    let owner = owner(config, kafka.identity(0));
    directory.claim(owner.clone())?;
    let service = Service::new(log, store.store, config.databases(), Settings::default());
    service.memory.limit.store(config.memory_limit(), Ordering::Relaxed);
    let failed = |e: LogError| format!("read the log: {e}");
    let applier = applier::start(service.clone(), &store.checkpoint).map_err(failed)?;
    let followed = wait_until_stored(&service, &applier, logging);
    service.log.close(config.write_timeout());
    service.stop();
    // If it panicked, it has reported that.
    let _ = applier.join();
    followed?;
    if let Some(problem) = supervise::failure() {
        return Err(problem.to_owned());
    }
    let applied = positions(&service, |partition| &partition.applied);
    if Arc::into_inner(service).is_none() {
        return Err("close the local store: something still uses it".into());
    }
    Ok((owner, stored(config, directory, &applied)?))
}

/// What the closed store says of itself. An error if that is not everything that was applied: when
/// it was closed it may have had no room, or not enough time.
fn stored(config: &Config, directory: &DataDir, applied: &Positions) -> Result<Positions, Problem> {
    let path = directory.store();
    let closed = || store::wait_until_closed(&path).map_err(|e| format!("close the local store: {e}"));
    closed()?;
    let opened = open_store(config, directory)?;
    if let Some(reason) = opened.rebuilt {
        return Err(format!(
            "use the local store: {reason}; do it again, and the store is made from the topic"
        ));
    }
    let of_database = |(database, known): (u16, DatabaseCheckpoint)| {
        let at = move |partition| TopicPartition { database, partition };
        known
            .partitions
            .into_iter()
            .map(move |(partition, position)| (at(partition), position.next_offset))
    };
    let stored: Positions = opened.checkpoint.databases.into_iter().flat_map(of_database).collect();
    drop(opened.store);
    closed()?;
    let lacks = |(at, position): &(&TopicPartition, &u64)| stored.get(at).is_none_or(|stored| stored < *position);
    match applied.iter().find(lacks) {
        None => Ok(stored),
        Some((at, position)) => Err(format!(
            "store everything: of database {} partition {} the store has what is below offset {}, and {position} was read; is the disk of {} \
             full, or slow? Do it again: it goes on from there",
            at.database,
            at.partition,
            stored.get(at).unwrap_or(&0),
            path.display()
        )),
    }
}

/// Waits until the store has what the topics had at the start.
fn wait_until_stored(service: &Service, applier: &JoinHandle<Option<()>>, logging: &Logging) -> Result<(), Problem> {
    let mut progress = Progress::new(logging, "reading", "records");
    let mut wanted = None;
    loop {
        match &*service.status() {
            Status::Loading { applied, total, .. } => progress.show(*applied, *total),
            Status::Failed(why) => return Err(format!("read the log: this node {why}")),
            Status::Serving | Status::Stale => {
                let wanted = wanted.get_or_insert_with(|| positions(service, |partition| &partition.applied));
                if positions(service, |partition| &partition.stored)
                    .iter()
                    // A database that came since then has come after the start.
                    .all(|(at, stored)| wanted.get(at).is_none_or(|wanted| stored >= wanted))
                {
                    return Ok(());
                }
                if let Some(reason) = service.store_lacks_room() {
                    return Err(format!("store everything: {reason}"));
                }
            }
        }
        if applier.is_finished() {
            return Err(supervise::failure()
                .unwrap_or("read the log: the reader ended")
                .to_owned());
        }
        std::thread::sleep(STEP);
    }
}

/// One of the positions of every partition.
fn positions(service: &Service, of: impl Fn(&Partition) -> &AtomicU64 + Copy) -> Positions {
    let databases = 0..service.database_count();
    let of_database = |database| {
        let partitions = (0..).zip(service.database(database).partitions());
        partitions.map(move |(partition, known)| {
            let at = TopicPartition { database, partition };
            (at, of(known).load(Ordering::Acquire))
        })
    };
    databases.flat_map(of_database).collect()
}
