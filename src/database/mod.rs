//! The service layer: databases of keys on top of a log and a store. It knows neither RESP nor
//! Kafka.
//!
//! Reading order: this file (the parts of a database, and reads), [`transaction`] (how a command
//! reads and writes), [`write`] (a batch under way), [`visible`] (what readers see changes there),
//! [`hot`] (memory), [`applier`] (the thread that follows the log; [`waiting`]: groups that are not
//! complete yet; [`own`]: records that it can pass over; [`as_of`]: deletes that it may have
//! missed), [`write_behind`] (from there to the store), [`copies`] (topics with several
//! partitions), [`flushed`], [`features`] (of the topics' format), [`stripes`] (locks of keys),
//! [`watch`], [`waiters`] (clients that wait for elements), [`together`] (several keys at once),
//! [`consistency`] (how new a read is), [`digest`].
//!
//! Rules kept here:
//! - Only the applier changes the store; only [`Service::commit`] hands records to the log.
//! - A state becomes visible to others when the log has acknowledged it or the applier has read it,
//!   whichever comes first.
//! - A reply that rests on a write under way is sent only when that write is acknowledged.

pub mod applier;
mod as_of;
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
pub mod source;
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
use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::log::{Batch, Completion, Condition, Log, ProduceError, Record, TopicPartition};
use crate::model::{Change, Control, Entry, FEATURES_KEY, Payload, State, Value, function_key, home_key, is_reserved};
use crate::store::{Checkpoint, Store, StoreError};
use crate::striped::Striped;
use crate::supervise;
use contention::Contention;
use elements::Elements;
use features::TopicFeatures;
use hot::{At, Budget, HotTier, Lookup};
use notices::Notice;
use own::OwnRecords;
use stripes::Stripes;
use together::Groups;
use watch::Watches;
use write::{Item, Outstanding, Write};
use write_behind::WriteBehind;

pub use elements::{Held, Indexed, Order, Ranked};
pub use fault::{Fault, Form, Pace, SHORT_WORK, Size, Turn, WRONG_TYPE, Wait};
pub use stripes::Taken;
pub use together::Place;
pub use transaction::{Lookups, Transaction};

/// How long commands that look at the whole store wait until it has what was acknowledged.
const STORE_PATIENCE: Duration = Duration::from_secs(30);

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

/// Ends a write whose thread panics before the log has the write, so that no other connection waits
/// for it.
struct GivenUp<'w>(&'w Arc<Write>);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let cause = "the command panicked".to_owned();
            self.0.clone().complete(Err(ProduceError::Uncertain(cause)));
        }
    }
}

/// The result of reading a key.
#[derive(Clone)]
pub struct Seen {
    pub entry: Option<Entry>,
    /// The write under way that the entry comes from.
    pub depends: Option<Arc<Write>>,
    /// The record that the state comes from, if it is known.
    at: Option<At>,
    /// It was read from the store.
    from_store: bool,
}

impl Seen {
    /// Bytes of the value, unless memory holds them anyway.
    fn own_bytes(&self) -> usize {
        match self.entry.as_ref().map(|entry| &entry.value) {
            Some(value) if self.from_store || value.bytes() <= hot::INLINE => value.bytes(),
            _ => 0,
        }
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

    pub fn status(&self) -> Arc<Status> {
        self.status.load_full()
    }

    pub fn is_serving(&self) -> bool {
        self.era().is_multiple_of(2)
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
    async fn unless_failed(&self, wait: impl Future<Output = ()>) {
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

    fn era(&self) -> u64 {
        self.era.load(Ordering::Acquire)
    }

    /// True if this node has been serving since that era was read. Then nothing was read meanwhile
    /// from a store that was being emptied or filled.
    fn has_served_since(&self, era: u64) -> bool {
        era.is_multiple_of(2) && self.era() == era
    }

    /// Called by the applier, and by what starts it, before they take away what was served, and by
    /// [`Service::fail`], after which the status does not change any more.
    fn set_status(&self, status: Status) {
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

    /// Prefetch hint: these keys are about to be read.
    pub fn prefetch<'k>(&self, database: u16, keys: impl Iterator<Item = &'k [u8]>) {
        self.databases[database as usize].hot.prefetch(keys);
    }

    /// The newest state of a key, expired or not. With `pending`, writes under way count.
    pub fn read(&self, database: u16, key: &[u8], pending: bool) -> Result<Seen, StoreError> {
        self.read_up_to(database, key, pending, usize::MAX)
    }

    /// As [`Service::read`], but a value of more than `most` bytes is not read from the store
    /// ([`StoreError::Larger`]).
    fn read_up_to(&self, database: u16, key: &[u8], pending: bool, most: usize) -> Result<Seen, StoreError> {
        let number = database;
        let database = &self.databases[number as usize];
        if is_reserved(key) {
            // The topic's own records, and elements of collections: no key of a user.
            return Ok(Seen {
                entry: None,
                depends: None,
                at: None,
                from_store: false,
            });
        }
        match database.hot.get(key, pending) {
            Lookup::Committed(at, entry) => Ok(Seen {
                entry: entry.filter(|e| database.visible(e)),
                depends: None,
                at: Some(at),
                from_store: false,
            }),
            Lookup::Pending(write, item) => {
                let at = At {
                    partition: 0,
                    offset: u64::MAX,
                };
                Ok(Seen {
                    entry: write.entry(item, at, now_ms() as i64),
                    depends: Some(write),
                    at: None,
                    from_store: false,
                })
            }
            Lookup::Absent => {
                debug_assert!(self.is_absent(number, key), "memory lacks a key that is there");
                Ok(Seen {
                    entry: None,
                    depends: None,
                    at: None,
                    from_store: false,
                })
            }
            Lookup::Cold(token) => {
                self.counters.store_reads.fetch_add(1, Ordering::Relaxed);
                // While loading, what was applied is neither in memory nor in the store, so what is
                // read then (by WATCH) must not be remembered.
                let lasts = self.is_serving();
                let entry = self.beneath(number, key, most)?;
                if lasts {
                    database.hot.fill(key, entry.as_ref(), token);
                }
                let at = entry.as_ref().map(|e| At {
                    partition: e.meta.partition,
                    offset: e.meta.offset,
                });
                Ok(Seen {
                    entry,
                    depends: None,
                    at,
                    from_store: true,
                })
            }
        }
    }

    /// The entry of a key that is not in memory: from the store, or on its way to the store since
    /// it was loaded.
    fn beneath(&self, number: u16, key: &[u8], most: usize) -> Result<Option<Entry>, StoreError> {
        let entry = match self.behind.get(number, key) {
            Some(entry) => entry,
            None => self.store.get_up_to(number, key, most)?,
        };
        Ok(entry.filter(|entry| self.databases[number as usize].visible(entry)))
    }

    /// True if the store and what is on its way there have no such key either, or if memory has the
    /// key by now.
    fn is_absent(&self, number: u16, key: &[u8]) -> bool {
        let is_now_known = || !matches!(self.databases[number as usize].hot.get(key, true), Lookup::Absent);
        let beneath = match self.beneath(number, key, 0) {
            // Only the whole entry says whether a flush hides it.
            Err(StoreError::Larger) => self.beneath(number, key, usize::MAX),
            beneath => beneath,
        };
        !matches!(beneath, Ok(Some(_))) || is_now_known()
    }

    /// A record with a reserved key that says nothing. If this version does not understand it, it
    /// is counted, and the first one is reported.
    fn met_reserved(&self, change: &Change) {
        if change.payload == Payload::PASSED {
            return;
        }
        if self.counters.records_reserved.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                database = change.database,
                partition = change.partition,
                offset = change.offset,
                key = %change.key.escape_ascii(),
                "a record with a reserved key is never shown: keys that begin with \\0highwater: are the topic's own"
            );
        }
    }

    /// The records of the items, and the item of each record: a flush has a record in every
    /// partition.
    fn records_of(&self, items: SmallVec<[Item; 1]>) -> (SmallVec<[Record; 1]>, SmallVec<[Item; 1]>) {
        let (mut records, mut of_each) = (SmallVec::new(), SmallVec::new());
        let mut add = |item: Item, database, partition, key, payload| {
            let to = TopicPartition { database, partition };
            records.push(Record { to, key, payload });
            of_each.push(item);
        };
        for item in items {
            match &item {
                Item::Key { database, key, state } => {
                    let (database, key, state) = (*database, key.clone(), state.clone());
                    let home = self.log.partition(database, &key);
                    add(item, database, home, key, Payload::Key(state));
                }
                Item::Element { database, key, element } => {
                    let (database, key) = (*database, key.clone());
                    let state = element.clone().map(|element| State {
                        value: Value::Element(element),
                        expire_at: None,
                    });
                    let home = self.log.partition(database, &key);
                    add(item, database, home, key, Payload::Key(state));
                }
                Item::Flush { database } => {
                    let database = *database;
                    for partition in 0..self.databases[database as usize].partitions().len() as u32 {
                        let key = bytes::Bytes::from_static(crate::log::record::FLUSH_KEY);
                        add(item.clone(), database, partition, key, Payload::FLUSH);
                    }
                }
                Item::Tombstone {
                    database,
                    key,
                    partition,
                } => {
                    let (database, partition, key) = (*database, *partition, key.clone());
                    add(item, database, partition, key, Payload::TOMBSTONE);
                }
                Item::Features {
                    database,
                    partition,
                    features,
                } => {
                    let (database, partition, features) = (*database, *partition, features.clone());
                    let key = bytes::Bytes::from_static(FEATURES_KEY);
                    add(
                        item,
                        database,
                        partition,
                        key,
                        Payload::Control(Control::Features(features)),
                    );
                }
                Item::Function { library, text } => {
                    let (key, payload) = (function_key(library), Control::Function(text.clone()));
                    let payload = Payload::Control(payload);
                    add(item, functions::DATABASE, functions::PARTITION, key, payload);
                }
            }
        }
        (records, of_each)
    }

    /// Hands the items to the log as one batch. The caller holds the stripes of all keys.
    fn commit(
        self: &Arc<Self>,
        items: SmallVec<[Item; 1]>,
        owner: &Arc<Outstanding>,
        epoch: u64,
        condition: Option<Condition>,
        notices: Vec<Notice>,
    ) -> Arc<Write> {
        let (records, items) = self.records_of(items);
        let write = Write::new(self.clone(), owner.clone(), items, condition.as_ref(), notices);
        let given_up = GivenUp(&write);
        for (index, item) in write.items.iter().enumerate() {
            match item {
                Item::Key { database, key, .. } => {
                    let database = &self.databases[*database as usize];
                    database.hot.pend(key, &write, index);
                    database.watches.changed(key);
                    match item.state() {
                        Some(_) => self.waiters.changed(item.database(), key),
                        None => self.waiters.gone(item.database(), key),
                    }
                }
                Item::Element { .. } if index > 0 && item.is_of_collection(&write.items[index - 1]) => {}
                Item::Element { database, key, .. } => {
                    let database = &self.databases[*database as usize];
                    let alike = write.items[index..].iter();
                    let alike = alike.take_while(|other| other.is_of_collection(item));
                    let names = alike.clone().filter_map(|item| Some(&item.name()?.1[..]));
                    database.elements.pend(names, &write, index);
                    database.watches.changed(home_key(key));
                    if self.waiters.any() {
                        self.wake(item.database(), alike);
                    }
                }
                Item::Flush { database } => {
                    let number = *database;
                    self.databases[number as usize].flushes.fetch_add(1, Ordering::Relaxed);
                    let exists = |key: &[u8]| matches!(self.read(number, key, true), Ok(Seen { entry: Some(_), .. }));
                    self.databases[number as usize].watches.flushed(exists);
                    self.waiters.all_gone(number);
                }
                Item::Function { .. } => {
                    let database = &self.databases[functions::DATABASE as usize];
                    database.functions.pend(&write);
                }
                Item::Tombstone { .. } | Item::Features { .. } => {}
            }
        }
        if supervise::is_injected("panic", "commit") {
            panic!("injected");
        }
        self.log.produce(
            Batch {
                records,
                condition,
                completion: write.clone(),
            },
            epoch,
        );
        drop(given_up);
        write
    }

    /// Wakes those that wait at the collection of these elements, once for all of them.
    fn wake<'i>(&self, database: u16, mut alike: impl Iterator<Item = &'i Item> + Clone) {
        let first = alike.clone().next();
        let concerning = alike.find(|item| item.concerns_readers());
        if let Some(Item::Element { key, element, .. }) = concerning.or(first) {
            self.waiters.element_changed(database, key, element.is_some());
        }
    }

    /// True if so many states wait for the store that writes have to wait.
    fn is_behind(&self, size: Size) -> bool {
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

    /// Asks the applier to stop, after a last checkpoint.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}
