//! Waits of commands: for the store, for the applier, for a stripe.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Fault, Service, Size, Taken};
use crate::log::TopicPartition;

/// How long commands that look at the whole store wait until it has what was acknowledged.
const STORE_PATIENCE: Duration = Duration::from_secs(30);

impl Service {
    /// True if so many states wait for the store that writes have to wait.
    pub(super) fn is_behind(&self, size: Size) -> bool {
        let unstored = self.memory.unstored.load(Ordering::Relaxed).max(self.behind.bytes());
        let bound = self.settings.max_unstored_bytes.load(Ordering::Relaxed) as usize;
        let bound = self.behind.bound(bound);
        unstored > if size == Size::Large { bound / 2 } else { bound }
    }

    pub fn write_timeout(&self) -> Duration {
        Duration::from_millis(self.settings.write_timeout_ms.load(Ordering::Relaxed))
    }

    /// Waits until the store has everything that was acknowledged or applied when this was called.
    pub async fn store_caught_up(&self) -> Result<(), Fault> {
        // Otherwise a key that is written again and again would never be taken from memory, and
        // would be missing.
        let _exactly = self.digests.exactly();
        let wanted: Vec<(usize, usize, u64)> = self
            .databases
            .iter()
            .enumerate()
            .flat_map(|(d, database)| {
                let partitions = database.partitions().iter().enumerate();
                partitions.map(move |(p, partition)| {
                    let acknowledged = partition.acknowledged.load(Ordering::Acquire);
                    (d, p, acknowledged.max(partition.applied.load(Ordering::Acquire)))
                })
            })
            .collect();
        let _hurry = self.behind.hurry();
        let reached = || {
            !self.behind.is_loaded_only()
                && self.digests.lacks_nothing(&self.databases)
                && wanted
                    .iter()
                    .all(|&(d, p, offset)| self.databases[d].partitions()[p].stored.load(Ordering::Acquire) >= offset)
        };
        self.wait_until(
            reached,
            self.write_timeout().max(STORE_PATIENCE),
            (
                "STALE",
                "the local store did not reach what was acknowledged and applied",
            ),
        )
        .await
    }

    /// Waits until everything below this position is visible here, or this node has failed. It has
    /// no time limit of its own: the caller sets one.
    pub async fn applied_to(&self, at: TopicPartition, position: u64) {
        let reached = || {
            let partitions = self.databases[at.database as usize].partitions();
            partitions
                .get(at.partition as usize)
                .is_some_and(|partition| partition.applied.load(Ordering::Acquire) >= position)
        };
        loop {
            let progress = self.progress.notified();
            if reached() || self.failure().is_some() {
                return;
            }
            progress.await;
        }
    }

    /// Waits until the long computation that holds this stripe is over.
    pub async fn unlocked(&self, taken: Taken) {
        self.stripes.freed(taken).await;
    }

    /// Waits until the store has room again for writes of this size.
    pub async fn room(&self, size: Size) -> Result<(), Fault> {
        let _hurry = self.behind.hurry();
        self.wait_until(
            || !self.is_behind(size),
            self.write_timeout(),
            ("NOTWRITTEN", "the local store is too far behind the log"),
        )
        .await
    }

    /// Why the local store takes in nothing for now; `None` if it does.
    pub fn store_lacks_room(&self) -> Option<String> {
        self.behind.lacking()
    }

    async fn wait_until(
        &self,
        reached: impl Fn() -> bool,
        patience: Duration,
        (code, otherwise): (&'static str, &'static str),
    ) -> Result<(), Fault> {
        let wait = async {
            loop {
                let progress = self.progress.notified();
                if reached() {
                    return Ok(());
                }
                if let Some(why) = self.failure() {
                    return Err(Fault::error(format!("{code} this node {why}")));
                }
                // This can last long, so do not wait for it.
                if let Some(reason) = self.behind.lacking() {
                    return Err(Fault::error(format!("{code} {reason}")));
                }
                progress.await;
            }
        };
        tokio::time::timeout(patience, wait).await.unwrap_or_else(|_| {
            let seconds = patience.as_secs();
            Err(Fault::error(format!(
                "{code} {otherwise} within {seconds} s; try again later"
            )))
        })
    }
}
