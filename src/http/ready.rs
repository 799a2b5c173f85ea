//! Whether this node lives, and whether it is ready for clients. The reasons name no data: probes
//! have no password.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::command::Shared;
use crate::database::{Partition, Status};

/// `/livez`: a process that has failed cannot mend itself. One that loads or waits for Kafka lives.
pub fn live(shared: &Shared) -> Result<(), &'static str> {
    match *shared.service.status() {
        Status::Failed(_) => Err("failed"),
        Status::Loading { .. } | Status::Serving | Status::Stale => Ok(()),
    }
}

/// `/readyz`: this node answers reads, and it is not further behind the log than `ready-max-lag`.
/// While the log does not answer, nobody knows how far that is, and `ready-without-log` decides.
pub fn ready(shared: &Shared) -> Result<(), &'static str> {
    if shared.shutdown.is_asked() {
        return Err("stopping");
    }
    let has_log = match *shared.service.status() {
        Status::Loading { .. } => return Err("loading"),
        Status::Failed(_) => return Err("failed"),
        Status::Stale => false,
        Status::Serving => shared.service.log.outage().is_none(),
    };
    let behind = match has_log {
        true => behind(shared, shared.config.ready_max_lag()),
        false => Behind::Unknown,
    };
    match behind {
        Behind::No => Ok(()),
        Behind::Unknown if shared.config.ready_without_log() => Ok(()),
        Behind::Unknown => Err("the log does not answer"),
        Behind::Yes => Err("behind the log"),
        Behind::Incomplete => Err("not all partitions are read"),
    }
}

/// Whether this node lacks records that are older than a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Behind {
    No,
    /// The log has not said its end for that long.
    Unknown,
    Yes,
    /// The topic has got partitions that this node does not read before it is restarted.
    Incomplete,
}

fn behind(shared: &Shared, max_lag: Duration) -> Behind {
    let service = &shared.service;
    if (0..service.database_count()).any(|number| service.log.incomplete(number).is_some()) {
        return Behind::Incomplete;
    }
    let databases = (0..service.database_count()).map(|number| service.database(number));
    let partitions = databases.flat_map(|database| database.partitions());
    partitions
        .map(|partition| is_behind(partition, max_lag))
        .max()
        .unwrap_or(Behind::No)
}

fn is_behind(partition: &Partition, max_lag: Duration) -> Behind {
    match partition.age() {
        // A new database: nothing was missing yet.
        None => Behind::No,
        Some(age) if age <= max_lag => Behind::No,
        Some(_) if partition.applied.load(Ordering::Acquire) < partition.end.load(Ordering::Relaxed) => Behind::Yes,
        Some(_) => Behind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::now_ms;

    #[test]
    fn a_node_is_behind_what_it_knows_of() {
        let max_lag = Duration::from_secs(10);
        let partition = Partition::default();
        assert_eq!(is_behind(&partition, max_lag), Behind::No);
        let seconds_ago = |seconds: i64| now_ms() as i64 - seconds * 1_000;
        partition.as_of.store(seconds_ago(5), Ordering::Relaxed);
        partition.end.store(7, Ordering::Relaxed);
        assert_eq!(is_behind(&partition, max_lag), Behind::No);
        partition.as_of.store(seconds_ago(15), Ordering::Relaxed);
        assert_eq!(is_behind(&partition, max_lag), Behind::Yes);
        partition.applied.store(7, Ordering::Release);
        assert_eq!(is_behind(&partition, max_lag), Behind::Unknown);
    }
}
