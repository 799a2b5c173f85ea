//! Follows the log up to its end without serving anybody, for `highwater snapshot`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::warn;

use super::Problem;
use crate::config::Config;
use crate::database::{Service, Settings, Status, applier};
use crate::datadir::{DataDir, Owner};
use crate::log::{Log as _, LogError, Positions, TopicPartition};
use crate::open::{Parts, open, owner};
use crate::supervise;
use crate::telemetry::logging::Logging;
use crate::telemetry::progress::Progress;

const STEP: Duration = Duration::from_millis(50);

/// What the store of the directory has now.
pub(super) struct CaughtUp {
    pub(super) owner: Owner,
    /// Everything below these offsets.
    pub(super) positions: Positions,
}

/// Brings the store of this directory to the end of the topics, as a node does when it starts, and
/// closes it in good order. Nothing is written to Kafka. Blocking.
pub(super) fn catch_up(config: &Config, directory: &mut DataDir, logging: &Logging) -> Result<CaughtUp, Problem> {
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
    let followed = wait_until_followed(&service, &applier, logging);
    service.log.close(config.write_timeout());
    service.stop();
    // If it panicked, it has reported that.
    let _ = applier.join();
    followed?;
    if let Some(problem) = supervise::failure() {
        return Err(problem.to_owned());
    }
    let positions = positions(&service);
    match Arc::into_inner(service) {
        Some(_) => Ok(CaughtUp { owner, positions }),
        None => Err("close the local store: something still uses it".into()),
    }
}

fn wait_until_followed(service: &Service, applier: &JoinHandle<Option<()>>, logging: &Logging) -> Result<(), Problem> {
    let mut progress = Progress::new(logging, "reading", "records");
    loop {
        match &*service.status() {
            Status::Loading { applied, total, .. } => progress.show(*applied, *total),
            Status::Failed(why) => return Err(format!("read the log: this node {why}")),
            Status::Serving | Status::Stale => return Ok(()),
        }
        if applier.is_finished() {
            return Err(supervise::failure()
                .unwrap_or("read the log: the reader ended")
                .to_owned());
        }
        std::thread::sleep(STEP);
    }
}

/// What the store was given, once its writer has ended.
fn positions(service: &Service) -> Positions {
    let databases = 0..service.database_count();
    let of_database = |database| {
        let partitions = (0..).zip(service.database(database).partitions());
        partitions.map(move |(partition, known)| {
            let at = TopicPartition { database, partition };
            (at, known.stored.load(Ordering::Acquire))
        })
    };
    databases.flat_map(of_database).collect()
}
