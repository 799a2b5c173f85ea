//! The status of a node, and what waits for it or ends with it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Service, source};
use crate::log::TopicPartition;
use crate::store::Checkpoint;

/// The status of this node. A node that cannot be right says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The store is being filled up to the log's end.
    Loading {
        applied: u64,
        total: u64,
        rebuilding: Option<String>,
    },
    Serving,
    /// The log has not been reached since the start. Reads are answered from the store.
    Stale,
    /// This node cannot be right any more. The text continues "this node".
    Failed(String),
}

impl Status {
    /// All names of [`Status::name`].
    pub const NAMES: [&str; 5] = ["loading", "serving", "outage", "stale", "failed"];

    /// For people and their tools. `has_outage`: the log does not answer.
    pub fn name(&self, has_outage: bool) -> &'static str {
        match self {
            Status::Loading { .. } => "loading",
            Status::Serving if has_outage => "outage",
            Status::Serving => "serving",
            Status::Stale => "stale",
            Status::Failed(_) => "failed",
        }
    }
}

impl Service {
    pub fn status(&self) -> Arc<Status> {
        self.status.load_full()
    }

    pub fn is_serving(&self) -> bool {
        self.era().is_multiple_of(2)
    }

    /// Whether a database is worth telling of: the first, and those that were ever written to.
    /// Where all databases are in one log, only what they hold tells.
    pub fn is_in_use(&self, database: u16) -> bool {
        let is_untouched = || self.databases[database as usize].is_untouched();
        let is_empty = || self.log.chains() && self.store.is_empty(database).unwrap_or(false);
        database == 0 || !is_untouched() && !is_empty()
    }

    /// Why this node has failed for good; goes after "this node".
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// This node has failed for good. A task that waits for a write notices when it is woken
    /// ([`Write::finished`]).
    pub fn fail(&self, why: String) {
        let why = self.failure.get_or_init(|| why).clone();
        self.set_status(Status::Failed(why));
    }

    /// Waits for `wait`, or until this node has failed. The failure is checked only when the task
    /// is woken, which costs nothing while all is well. What fails the node has to wake the tasks.
    pub(super) async fn unless_failed(&self, wait: impl Future<Output = ()>) {
        let mut wait = std::pin::pin!(wait);
        std::future::poll_fn(|context| match self.failure() {
            Some(_) => std::task::Poll::Ready(()),
            None => wait.as_mut().poll(context),
        })
        .await;
    }

    /// Waits until this node has failed for good.
    pub async fn failed(&self) {
        loop {
            let changed = self.progress.notified();
            if self.failure().is_some() {
                return;
            }
            changed.await;
        }
    }

    /// Waits for `wait`, and polls it again when this node fails: for tasks that nothing else
    /// wakes.
    pub async fn or_failure<T>(&self, wait: impl Future<Output = T>) -> T {
        let mut wait = std::pin::pin!(wait);
        loop {
            let changed = self.progress.notified();
            if self.failure().is_some() {
                return wait.await;
            }
            tokio::select! {
                done = wait.as_mut() => return done,
                () = changed => {}
            }
        }
    }

    pub(super) fn era(&self) -> u64 {
        self.era.load(Ordering::Acquire)
    }

    /// True if this node has been serving since that era was read. Then nothing was read meanwhile
    /// from a store that was being emptied or filled.
    pub(super) fn has_served_since(&self, era: u64) -> bool {
        era.is_multiple_of(2) && self.era() == era
    }

    /// Called by the applier, and by what starts it, before they take away what was served, and by
    /// [`Service::fail`], after which the status does not change any more.
    pub(super) fn set_status(&self, status: Status) {
        let _changing = self.changing.lock();
        let status = match self.failure() {
            Some(why) => Status::Failed(why.to_owned()),
            None => status,
        };
        let changes = self.is_serving() != matches!(status, Status::Serving | Status::Stale);
        self.status.store(Arc::new(status));
        if changes {
            self.era.fetch_add(1, Ordering::AcqRel);
        }
        if changes || self.failure().is_some() {
            self.waiters.all_changed();
            self.listeners.tell_all_changed();
        }
        self.progress.notify_waiters();
    }

    /// Answers reads from the store, until [`Service::stop_stale`]. The log remembers its
    /// databases. An error if the store holds only a part of what the log held at some time.
    pub fn serve_stale(&self, checkpoint: &Checkpoint) -> Result<(), String> {
        let is_half_loaded = self.has_unknown(checkpoint).map_err(|error| error.to_string())?;
        if is_half_loaded || checkpoint.databases.is_empty() {
            return Err("the local store has no position: it was never filled to its end".to_owned());
        }
        self.notice_databases();
        self.look_for_copies().map_err(|error| error.to_string())?;
        for (&database, known) in &checkpoint.databases {
            if database >= self.database_count() || source::of(self, database).as_ref() != Some(&known.source) {
                return Err(format!("the local store was filled from {}", known.source));
            }
            self.databases[database as usize].features.restore(&known.features);
            self.databases[database as usize].functions.restore(&known.functions);
            for (&partition, position) in &known.partitions {
                if let Some(partition) = self.partition(&TopicPartition { database, partition }) {
                    partition.applied.store(position.next_offset, Ordering::Release);
                    partition.stored.store(position.next_offset, Ordering::Release);
                    partition.as_of.store(position.as_of as i64, Ordering::Release);
                }
            }
        }
        self.set_status(Status::Stale);
        Ok(())
    }

    /// The log was reached: the node loads it as at any start. An error says why that takes another
    /// start.
    pub fn stop_stale(&self) -> Result<(), String> {
        if *self.status() != Status::Stale {
            return Ok(());
        }
        self.set_status(Status::Loading {
            applied: 0,
            total: 0,
            rebuilding: None,
        });
        for (number, database) in (0..).zip(&self.databases) {
            database.forget();
            let (Some(known), Some(found)) = (database.topic.get(), self.log.identity(number)) else {
                continue;
            };
            if known.partitions.len() != found.partitions as usize {
                return Err(format!(
                    "topic {} has {} partitions now, not {}; start this node again to read it anew",
                    known.name,
                    found.partitions,
                    known.partitions.len()
                ));
            }
            let bytes = self.log.max_record_bytes(number);
            known.max_record_bytes.store(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Waits until the applier made progress or the status changed.
    pub async fn changed(&self) {
        self.progress.notified().await;
    }
}
