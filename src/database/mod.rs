//! The service layer: databases of keys on top of a log and a store. It knows neither RESP nor
//! Kafka.
//!
//! Reading order: this file (the parts of a database), [`seen`] (reads of a key), [`transaction`]
//! (how a command reads and writes), [`commit`] and [`write`] (a batch under way), [`visible`]
//! (what readers see changes there), [`hot`] (memory), [`applier`] (the thread that follows the
//! log; [`waiting`]: groups that are not complete yet; [`own`]: records that it can pass over;
//! [`as_of`]: deletes that it may have missed; [`usable`]: what of a store still fits),
//! [`write_behind`] (from there to the store), [`copies`] (topics with several partitions),
//! [`flushed`], [`features`] (of the topics' format), [`stripes`] (locks of keys), [`watch`],
//! [`waiters`] (clients that wait for elements), [`together`] (several keys at once), [`status`],
//! [`room`] (other waits), [`consistency`] (how new a read is), [`digest`].
//!
//! Rules kept here:
//! - Only the applier changes the store; only [`Service::commit`] hands records to the log.
//! - A state becomes visible to others when the log has acknowledged it or the applier has read it,
//!   whichever comes first.
//! - A reply that rests on a write under way is sent only when that write is acknowledged.

pub mod applier;
mod as_of;
mod commit;
pub mod consistency;
pub mod consumers;
mod contention;
pub mod copies;
pub mod digest;
mod elements;
pub mod emptied;
mod expired;
mod fault;
mod features;
pub mod flushed;
pub mod functions;
pub mod hot;
pub mod notices;
pub mod orphans;
mod own;
mod preload;
mod room;
mod seen;
pub mod source;
mod status;
mod stripes;
#[cfg(test)]
pub(crate) mod tests;
mod together;
pub mod transaction;
pub mod usable;
pub mod visible;
pub mod waiters;
mod waiting;
pub mod watch;
pub mod write;
mod write_behind;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::log::{Log, TopicPartition};
use crate::model::Entry;
use crate::store::Store;
use crate::striped::Striped;
use contention::Contention;
use elements::Elements;
use features::TopicFeatures;
use hot::{At, Budget, HotTier, SLOT_OVERHEAD};
use own::OwnRecords;
use stripes::Stripes;
use together::Groups;
use watch::Watches;
use write_behind::WriteBehind;

pub use elements::{Held, Indexed, Order, Ranked};
pub use fault::{Fault, Form, Pace, SHORT_WORK, Size, Turn, WRONG_TYPE, Wait};
pub use seen::Seen;
pub use status::Status;
pub use stripes::Taken;
pub use together::Place;
pub use transaction::{Lookups, Transaction};

/// Bounds of the service layer, changeable at run time.
pub struct Settings {
    /// Longest time between a write and its acknowledgement or error, milliseconds.
    pub write_timeout_ms: AtomicU64,
    /// Bytes of states that may be acknowledged or applied but not yet in the store. Above this,
    /// writes wait.
    pub max_unstored_bytes: AtomicU64,
    /// How long an applied record may wait for later records of its key before it goes to the
    /// store, milliseconds.
    pub store_delay_ms: AtomicU64,
    /// Time between checkpoints of the store, milliseconds.
    pub checkpoint_interval_ms: AtomicU64,
    /// Delete expired keys in the background.
    pub active_expire: AtomicBool,
    /// The store came from a snapshot and has not caught up yet: a store that does not fit is an
    /// error, and no reason to build another one.
    pub refuses_rebuild: AtomicBool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            write_timeout_ms: AtomicU64::new(5_000),
            max_unstored_bytes: AtomicU64::new(128 << 20),
            store_delay_ms: AtomicU64::new(1_000),
            checkpoint_interval_ms: AtomicU64::new(5_000),
            active_expire: AtomicBool::new(true),
            refuses_rebuild: AtomicBool::new(false),
        }
    }
}

/// See [`Lookups`].
#[derive(Default)]
pub struct LookupCounts {
    pub hits: AtomicU64,
    pub misses: AtomicU64,
}

/// Counters for INFO and metrics.
#[derive(Default)]
pub struct Counters {
    pub lookups: Striped<LookupCounts>,
    pub store_reads: AtomicU64,
    pub expired: AtomicU64,
    /// Tombstones for what flushes have hidden.
    pub flushed: AtomicU64,
    /// Tombstones for elements without a head.
    pub orphans: AtomicU64,
    pub records_applied: AtomicU64,
    pub records_skipped: AtomicU64,
    /// Values found outside of their key's home partition.
    pub records_misplaced: AtomicU64,
    /// Records with a reserved key that this version does not understand.
    pub records_reserved: AtomicU64,
    pub rebuilds: AtomicU64,
    pub writes_refused: AtomicU64,
    pub writes_uncertain: AtomicU64,
    /// Writes that another writer came before: they were computed again.
    pub writes_conflicted: AtomicU64,
    pub last_applied_ms: AtomicU64,
    /// When the last checkpoint was written (ms since the epoch), and how many records had been
    /// applied by then.
    pub last_checkpoint_ms: AtomicU64,
    pub last_checkpoint_records: AtomicU64,
}

impl Counters {
    pub fn add(&self, lookups: Lookups) {
        let own = self.lookups.own();
        for (counter, more) in [(&own.hits, lookups.hits), (&own.misses, lookups.misses)] {
            if more > 0 {
                counter.fetch_add(more, Ordering::Relaxed);
            }
        }
    }
}

/// All databases of this node.
pub struct Service {
    pub log: Arc<dyn Log>,
    pub store: Arc<dyn Store>,
    pub settings: Settings,
    pub counters: Counters,
    pub memory: Arc<Budget>,
    /// Hear every change of what readers see.
    pub listeners: visible::Listeners,
    /// Clients that wait for elements.
    pub waiters: waiters::Waiters,
    /// Consumers of groups of streams that have asked for entries here.
    pub consumers: consumers::Consumers,
    pub emptied: emptied::Emptied,
    behind: WriteBehind,
    pub reads: consistency::Reads,
    digests: digest::Digests,
    databases: Box<[Database]>,
    stripes: Stripes,
    groups: Groups,
    status: ArcSwap<Status>,
    /// Held while the status changes.
    changing: Mutex<()>,
    /// Odd while this node is not serving. Grows when that begins and when it ends.
    era: AtomicU64,
    /// Notified when the applier has made progress or the status has changed.
    progress: Notify,
    stopping: AtomicBool,
    /// Grows when topics were recreated. The offsets of writes handed over before that mean nothing
    /// any more.
    generation: AtomicU64,
    /// Why this node has failed for good.
    failure: OnceLock<String>,
    /// Writes with a condition under way.
    conditional_writes: AtomicUsize,
    /// Held while this node names a feature in a topic.
    naming: tokio::sync::Mutex<()>,
}

/// One database: a topic, and what is in memory of it.
pub struct Database {
    hot: HotTier,
    elements: Elements,
    pub watches: Watches,
    /// Keys that are being read together. A record that becomes visible meanwhile may be in one
    /// group with others of them.
    snapshots: Watches,
    /// Keys that scripts have read: whatever becomes visible of them counts.
    moments: Watches,
    /// Set when the topic is known to exist.
    topic: OnceLock<Topic>,
    /// The source that the store is filled from.
    source: Mutex<Option<String>>,
    /// Keys may have values outside of their home partitions.
    copies: AtomicBool,
    /// Flushes that this node has handed to the log.
    flushes: AtomicU64,
    /// What its topic uses of the format.
    features: TopicFeatures,
    contention: Contention,
    functions: functions::Libraries,
}

/// What every write needs to know about a topic, kept here so that the log is not asked each time.
struct Topic {
    name: String,
    read_only: bool,
    max_record_bytes: AtomicUsize,
    partitions: Box<[Partition]>,
}

/// How far one partition is. Each offset is the one after the last record meant. Offsets only grow,
/// unless the store is rebuilt.
#[derive(Default)]
pub struct Partition {
    /// After the newest own record that was acknowledged.
    pub acknowledged: AtomicU64,
    /// Everything decided below this offset is visible to readers of this node. A group that waits
    /// for its other records bounds it.
    pub applied: AtomicU64,
    /// After the newest record that is in the store.
    pub stored: AtomicU64,
    /// A flush hides everything below this offset.
    pub flushed: AtomicU64,
    /// The log's end when the log was last asked for it.
    pub end: AtomicU64,
    /// Time (ms since the epoch) at which the log held nothing that the store does not hold.
    pub as_of: AtomicI64,
    /// Own records that were acknowledged and that the applier has not reached yet.
    own: OwnRecords,
}

impl Partition {
    /// The log's end as far as it is known. What this node has of the log is below it.
    pub fn known_end(&self) -> u64 {
        let known = [&self.end, &self.acknowledged, &self.applied, &self.stored];
        let known = known.into_iter().map(|offset| offset.load(Ordering::Relaxed));
        known.max().unwrap_or_default()
    }

    /// Offsets between what this node has stored and the log's known end.
    pub fn lag(&self) -> u64 {
        let stored = self.stored.load(Ordering::Relaxed);
        self.known_end().saturating_sub(stored)
    }

    /// How long ago this node had everything that the log had; `None` if it never had.
    pub fn age(&self) -> Option<Duration> {
        match self.as_of.load(Ordering::Relaxed) {
            ..=0 => None,
            as_of => Some(Duration::from_millis(now_ms().saturating_sub(as_of as u64))),
        }
    }
}

impl Database {
    fn new(budget: Arc<Budget>) -> Self {
        Database {
            hot: HotTier::new(budget.clone()),
            elements: Elements::new(budget),
            watches: Watches::default(),
            snapshots: Watches::default(),
            moments: Watches::default(),
            topic: OnceLock::new(),
            source: Mutex::default(),
            copies: AtomicBool::new(false),
            flushes: AtomicU64::new(0),
            features: TopicFeatures::default(),
            contention: Contention::default(),
            functions: functions::Libraries::default(),
        }
    }

    pub fn partitions(&self) -> &[Partition] {
        self.topic.get().map_or(&[], |topic| &topic.partitions)
    }

    /// Whether nothing was ever written to it, as far as this node knows.
    fn is_untouched(&self) -> bool {
        let ends = |p: &Partition| p.stored.load(Ordering::Relaxed).max(p.end.load(Ordering::Relaxed));
        self.partitions().iter().all(|partition| ends(partition) == 0)
    }

    /// Bytes that the hot tier takes for its slots, besides keys and values.
    pub fn slot_bytes(&self) -> u64 {
        match self.partitions() {
            // Without a topic there are no keys.
            [] => 0,
            _ => (self.hot.count() * SLOT_OVERHEAD) as u64,
        }
    }

    /// The topic is now another one of the same name. Nothing that was known about it holds.
    fn forget(&self) {
        self.watches.flushed(|_| true);
        self.hot.forget_all();
        self.elements.forget_all();
        self.features.forget();
        self.functions.forget();
        for partition in self.partitions() {
            for offset in [
                &partition.acknowledged,
                &partition.applied,
                &partition.stored,
                &partition.flushed,
                &partition.end,
            ] {
                offset.store(0, Ordering::Release);
            }
            partition.as_of.store(0, Ordering::Release);
            partition.own.forget();
        }
    }

    /// The partition of a topic that has only one. A record applied there needs no look at other
    /// partitions, and is taken to the store from memory.
    fn only_partition(&self) -> Option<&Partition> {
        match self.partitions() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// The store has everything below this offset.
    fn stored(&self, partition: u32) -> u64 {
        let partition = self.partitions().get(partition as usize);
        partition.map_or(0, |partition| partition.stored.load(Ordering::Acquire))
    }

    fn acknowledged(&self, at: At) {
        if let Some(partition) = self.partitions().get(at.partition as usize) {
            partition.acknowledged.fetch_max(at.offset + 1, Ordering::AcqRel);
        }
    }

    fn visible(&self, entry: &Entry) -> bool {
        self.partitions()
            .get(entry.meta.partition as usize)
            .is_none_or(|p| entry.meta.offset >= p.flushed.load(Ordering::Acquire))
    }
}

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |d| d.as_millis() as u64)
        .saturating_add_signed(wrong_by())
}

/// In a debug build a test can make the node's clock wrong, by this many milliseconds, or by the
/// number that a file holds at the time.
fn wrong_by() -> i64 {
    static TOLD: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("HIGHWATER_TEST_CLOCK_WRONG_BY_MS").ok());
    let Some(told) = TOLD.as_ref().filter(|_| cfg!(debug_assertions)) else {
        return 0;
    };
    let in_file = || std::fs::read_to_string(told).ok()?.parse().ok();
    told.parse().ok().or_else(in_file).unwrap_or(0)
}

impl Service {
    pub fn new(log: Arc<dyn Log>, store: Arc<dyn Store>, databases: u16, settings: Settings) -> Arc<Self> {
        let memory = Arc::new(Budget::default());
        let service = Service {
            log,
            store,
            digests: Default::default(),
            settings,
            counters: Counters::default(),
            databases: (0..databases).map(|_| Database::new(memory.clone())).collect(),
            memory,
            listeners: Default::default(),
            waiters: Default::default(),
            consumers: Default::default(),
            emptied: Default::default(),
            behind: WriteBehind::default(),
            reads: Default::default(),
            stripes: Stripes::default(),
            groups: Groups::default(),
            status: ArcSwap::from_pointee(Status::Loading {
                applied: 0,
                total: 0,
                rebuilding: None,
            }),
            changing: Mutex::default(),
            era: AtomicU64::new(1),
            progress: Notify::new(),
            stopping: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            failure: OnceLock::new(),
            conditional_writes: AtomicUsize::new(0),
            naming: Default::default(),
        };
        service.notice_databases();
        Arc::new(service)
    }

    pub fn database_count(&self) -> u16 {
        self.databases.len() as u16
    }

    pub fn database(&self, database: u16) -> &Database {
        &self.databases[database as usize]
    }

    fn partition(&self, at: &TopicPartition) -> Option<&Partition> {
        let partitions = self.databases[at.database as usize].partitions();
        partitions.get(at.partition as usize)
    }

    /// Notices the databases whose topics exist by now.
    fn notice_databases(&self) {
        for (number, database) in self.databases.iter().enumerate() {
            if database.topic.get().is_none()
                && let Some(identity) = self.log.identity(number as u16)
            {
                // The first caller sets it, before anything is applied.
                *database.source.lock() = source::of(self, number as u16);
                database.topic.get_or_init(|| {
                    if identity.partitions == 1 {
                        database.hot.name_unstored();
                        if self.is_serving() {
                            database.hot.hold_all();
                        }
                    }
                    Topic {
                        name: identity.topic,
                        read_only: identity.read_only,
                        max_record_bytes: self.log.max_record_bytes(number as u16).into(),
                        partitions: (0..identity.partitions).map(|_| Partition::default()).collect(),
                    }
                });
            }
        }
    }

    /// Notes the sources of the databases: from here on the log is read as it is now.
    fn note_sources(&self) {
        for (number, database) in (0..).zip(&self.databases) {
            *database.source.lock() = source::of(self, number);
        }
    }

    /// Creates the database's topic. Blocking.
    pub fn create_database(&self, database: u16) -> Result<(), crate::log::LogError> {
        self.log.create(database)?;
        self.notice_databases();
        Ok(())
    }

    /// Asks the applier to stop, after a last checkpoint.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}
