//! A write under way: what was handed to the log as one batch, which connection it belongs to, and
//! its outcome.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::Service;
use super::functions;
use super::hot::At;
use super::notices::Notice;
use super::visible::Shown;
use super::waiters;
use crate::log::{Appended, Completion, Condition, ProduceError, Read, TopicPartition};
use crate::model::{Element, ElementName, Entry, Features, State, Value, home_key};

/// One record of a write.
#[derive(Clone, Debug)]
pub enum Item {
    Key {
        database: u16,
        key: Bytes,
        /// The key's new state; `None` deletes the key.
        state: Option<State>,
    },
    /// An element of a split collection, under its record's key; `None` removes it.
    Element {
        database: u16,
        key: Bytes,
        element: Option<Element>,
    },
    /// Flush marker of one partition.
    Flush { database: u16 },
    /// Removes a key from one partition where that changes nothing of what is shown: a copy that
    /// another producer left outside of the home partition (a [`Item::Key`] says what is shown), or
    /// a record that a flush has hidden.
    Tombstone { database: u16, key: Bytes, partition: u32 },
    /// Names what a partition uses of the topic's format.
    Features {
        database: u16,
        partition: u32,
        features: Features,
    },
    /// Changes a library of functions; `None` deletes it. See [`super::functions`].
    Function { library: Bytes, text: Option<Bytes> },
}

impl Item {
    pub fn database(&self) -> u16 {
        match self {
            Item::Key { database, .. }
            | Item::Element { database, .. }
            | Item::Flush { database }
            | Item::Tombstone { database, .. }
            | Item::Features { database, .. } => *database,
            Item::Function { .. } => functions::DATABASE,
        }
    }

    /// The key of its record, if that is a user's or an element's.
    pub fn name(&self) -> Option<(u16, &Bytes)> {
        match self {
            Item::Key { database, key, .. } | Item::Element { database, key, .. } => Some((*database, key)),
            Item::Flush { .. } | Item::Tombstone { .. } | Item::Features { .. } | Item::Function { .. } => None,
        }
    }

    /// See [`waiters::concerns_readers`].
    pub fn concerns_readers(&self) -> bool {
        match self {
            Item::Element { key, element, .. } => waiters::concerns_readers(key, element.is_some()),
            _ => false,
        }
    }

    /// True if both are elements of the same collection.
    pub fn is_of_collection(&self, other: &Item) -> bool {
        let collection = |item: &Item| match item {
            Item::Element { database, key, .. } => {
                let name = ElementName::parse(key)?;
                Some((*database, key.slice(..key.len() - name.sub_key.len())))
            }
            Item::Key { .. }
            | Item::Flush { .. }
            | Item::Tombstone { .. }
            | Item::Features { .. }
            | Item::Function { .. } => None,
        };
        collection(self).is_some_and(|own| collection(other) == Some(own))
    }

    /// The state that it gives its key; `None` if it deletes the key.
    pub fn state(&self) -> Option<&State> {
        match self {
            Item::Key { state, .. } => state.as_ref(),
            Item::Element { .. }
            | Item::Flush { .. }
            | Item::Tombstone { .. }
            | Item::Features { .. }
            | Item::Function { .. } => None,
        }
    }

    /// Bytes of the value that it writes.
    pub fn value_bytes(&self) -> usize {
        match self {
            Item::Key { state, .. } => state.as_ref().map_or(0, |state| state.value.bytes()),
            Item::Element { element, .. } => element.as_ref().map_or(0, |element| element.bytes().len()),
            Item::Function { text, .. } => text.as_ref().map_or(0, Bytes::len),
            Item::Flush { .. } | Item::Tombstone { .. } | Item::Features { .. } => 0,
        }
    }

    /// The value that it gives its element; `None` if it removes the element.
    pub fn element_value(&self) -> Option<Value> {
        match self {
            Item::Element { element, .. } => element.clone().map(Value::Element),
            Item::Key { .. }
            | Item::Flush { .. }
            | Item::Tombstone { .. }
            | Item::Features { .. }
            | Item::Function { .. } => None,
        }
    }
}

/// The place of the only key among these items, if it gets a collection that could be split or may
/// have held one, and if they rest on that key alone.
fn only_collection(items: &[Item], condition: &Condition) -> Option<usize> {
    let mut keys = items.iter().enumerate().filter(|(_, item)| item.name().is_some());
    let (Some((place, only)), None) = (keys.next(), keys.next()) else {
        return None;
    };
    // Who takes the last item out of a list deletes it.
    let Item::Key { database, key, state } = only else {
        return None;
    };
    if !matches!(state.as_ref().map(|state| &state.value), None | Some(Value::Packed(_))) {
        return None;
    }
    let is_of_key = |read: &Read| {
        let name = read.key.as_deref();
        read.at.database == *database && name.is_some_and(|name| home_key(name) == key)
    };
    condition.reads.iter().all(is_of_key).then_some(place)
}

/// One batch under way to the log.
pub struct Write {
    pub items: SmallVec<[Item; 1]>,
    /// It was handed over with a condition. Other writes with a condition may be computed on it.
    pub conditional: bool,
    /// The place in `items` of the small collection that it writes, if it rests on nothing else:
    /// when it loses, others write that collection.
    collection: Option<usize>,
    service: Arc<Service>,
    /// The service's generation when this was handed over.
    generation: u64,
    owner: Arc<Outstanding>,
    /// The events that it makes.
    notices: Vec<Notice>,
    outcome: OnceLock<Result<(), ProduceError>>,
    done: Notify,
}

impl Write {
    pub(super) fn new(
        service: Arc<Service>,
        owner: Arc<Outstanding>,
        items: SmallVec<[Item; 1]>,
        condition: Option<&Condition>,
        notices: Vec<Notice>,
    ) -> Arc<Self> {
        let conditional = condition.is_some();
        let written_for_client = condition.filter(|_| owner.client != 0);
        let write = Arc::new(Write {
            collection: written_for_client.and_then(|condition| only_collection(&items, condition)),
            items,
            conditional,
            generation: service.generation.load(Ordering::Acquire),
            service,
            owner,
            notices,
            outcome: OnceLock::new(),
            done: Notify::new(),
        });
        write.owner.count.fetch_add(1, Ordering::Relaxed);
        if conditional {
            write.service.conditional_writes.fetch_add(1, Ordering::Relaxed);
            write.owner.conditional.fetch_add(1, Ordering::Relaxed);
            *write.owner.last_conditional.lock() = Arc::downgrade(&write);
        }
        write
    }

    /// The outcome; `None` while it is under way.
    pub fn outcome(&self) -> Option<&Result<(), ProduceError>> {
        self.outcome.get()
    }

    /// The connection that wrote it; 0 if none did.
    pub fn writer(&self) -> u64 {
        self.owner.client
    }

    /// Bytes of the values that it writes.
    pub fn bytes(&self) -> usize {
        self.items.iter().map(Item::value_bytes).sum()
    }

    /// Waits for the outcome. The log bounds the time (`--write-timeout`), unless this node fails:
    /// then the wait ends when the waiting task is woken.
    pub async fn finished(&self) -> &Result<(), ProduceError> {
        loop {
            let notified = self.done.notified();
            if let Some(outcome) = self.outcome.get() {
                return outcome;
            }
            self.service.unless_failed(notified).await;
            if let Some(why) = self.service.failure() {
                self.end(Err(ProduceError::Uncertain(format!("this node {why}"))));
            }
        }
    }

    /// The state that the item gives its key, as an entry that is not in the log yet.
    pub fn entry(&self, item: usize, at: At, timestamp: i64) -> Option<Entry> {
        let state = self.items[item].state()?;
        Some(Entry::new(state, at.partition, at.offset, timestamp))
    }

    fn acknowledged(self: &Arc<Self>, appended: &[Appended]) {
        if self.is_of_the_past() {
            return self.failed();
        }
        self.show(appended);
        // Others need not wait for those who listen.
        self.service.listeners.tell_notices(&self.notices);
    }

    /// Makes it visible.
    fn show(self: &Arc<Self>, appended: &[Appended]) {
        // Several keys become visible at once to everyone who reads several keys.
        let _group = (self.items.len() > 1).then(|| self.service.groups.show());
        let in_group = self.items.len() > 1;
        for (index, (item, at)) in self.items.iter().zip(appended).enumerate() {
            let place = At {
                partition: at.at.partition,
                offset: at.offset,
            };
            match item {
                Item::Key { database, key, .. } => {
                    let shown = Shown {
                        database: *database,
                        key,
                        at: place,
                        entry: self.entry(index, place, at.timestamp),
                    };
                    self.service.show_own(shown, self, in_group);
                    let database = &self.service.databases[*database as usize];
                    database.acknowledged(place);
                    // The applier takes the records of a group: it shows them together when all
                    // have come.
                    if let (1, Some(partition)) = (self.items.len(), database.only_partition()) {
                        partition.own.acknowledged(place.offset, at.timestamp, key);
                    }
                }
                Item::Element { database, key, .. } => {
                    self.service
                        .show_own_element(*database, key, place, (self, index), in_group);
                    self.service.databases[*database as usize].acknowledged(place);
                }
                Item::Flush { database } => {
                    self.service.show_flush(*database, place, Some((self, in_group)));
                    self.service.databases[*database as usize].acknowledged(place);
                }
                Item::Tombstone { database, .. } => self.service.databases[*database as usize].acknowledged(place),
                Item::Features { database, features, .. } => {
                    let database = &self.service.databases[*database as usize];
                    database.features.meet(place, features);
                    database.acknowledged(place);
                }
                Item::Function { library, text } => {
                    let database = &self.service.databases[functions::DATABASE as usize];
                    database.functions.meet(place, library, text.as_ref());
                    database.acknowledged(place);
                }
            }
        }
        if in_group {
            self.service.listeners.tell_group_shown();
        }
        // A state that was forgotten meanwhile must not come back.
        if self.is_of_the_past() {
            for item in &self.items {
                let database = &self.service.databases[item.database() as usize];
                match item {
                    Item::Key { key, .. } => database.hot.forget_key(key),
                    Item::Element { .. } => database.elements.forget_all(),
                    Item::Flush { .. } | Item::Tombstone { .. } | Item::Features { .. } | Item::Function { .. } => {}
                }
            }
        }
    }

    /// True if topics were recreated after this was handed over. What it wrote is then read from
    /// the log, if it is there.
    fn is_of_the_past(&self) -> bool {
        self.service.generation.load(Ordering::Acquire) != self.generation
    }

    /// Sets the outcome. Only the first one counts.
    fn end(&self, outcome: Result<(), ProduceError>) {
        if self.outcome.set(outcome).is_ok() {
            self.done.notify_waiters();
            if self.conditional {
                self.service.conditional_writes.fetch_sub(1, Ordering::Relaxed);
            }
            self.owner.finish_one(self.conditional);
        }
    }

    /// It has lost against another writer's record, which is before this place.
    fn note_loss(&self, (at, after): (TopicPartition, u64)) {
        let Some((database, key)) = self.collection.and_then(|item| self.items[item].name()) else {
            return;
        };
        // What is elsewhere is no write of the collection, but a copy.
        let partition = self.service.log.partition(database, key);
        if at == (TopicPartition { database, partition }) {
            self.service.databases[database as usize].contention.lost(key, after);
        }
    }

    fn failed(self: &Arc<Self>) {
        for item in &self.items {
            let database = &self.service.databases[item.database() as usize];
            match item {
                Item::Key { key, .. } => drop(database.hot.resolve(key, self, None)),
                Item::Element { key, .. } => drop(database.elements.resolve(key, self, None, 0)),
                Item::Flush { .. } | Item::Tombstone { .. } | Item::Features { .. } | Item::Function { .. } => {}
            }
        }
    }
}

impl Completion for Write {
    fn complete(self: Arc<Self>, outcome: Result<&[Appended], ProduceError>) {
        let outcome = match outcome {
            Ok(appended) => {
                self.acknowledged(appended);
                Ok(())
            }
            Err(error) => {
                if let ProduceError::Stale { after: Some(after) } = error {
                    let conflicts = &self.service.counters.writes_conflicted;
                    conflicts.fetch_add(1, Ordering::Relaxed);
                    self.note_loss(after);
                }
                // The flag is set before the write disappears from memory, so nothing can miss it.
                // On a log that chains, what follows a batch that failed is stale without a
                // condition.
                if self.conditional || matches!(error, ProduceError::Stale { .. }) {
                    self.owner.failed.store(true, Ordering::Release);
                }
                self.failed();
                Err(error)
            }
        };
        self.end(outcome);
    }

    fn prefetch(&self, again: bool) {
        if let [Item::Key { database, key, .. }] = &self.items[..] {
            self.service.databases[*database as usize].hot.prefetch_one(key, again);
        }
    }

    fn has_failed(&self) -> bool {
        matches!(self.outcome(), Some(Err(_)))
    }
}

/// The writes that one connection has under way. Wakes the connection once, when the last of a
/// burst has ended.
#[derive(Default)]
pub struct Outstanding {
    count: AtomicUsize,
    /// How many of them were handed over with a condition, and the last of those.
    conditional: AtomicUsize,
    last_conditional: Mutex<Weak<Write>>,
    /// The connection; 0 if these are writes of nobody's.
    client: u64,
    /// What is computed after a failed write has to wait until that write was computed again.
    in_order: bool,
    /// A write with a condition failed and is not settled yet.
    failed: AtomicBool,
    none: Notify,
}

impl Outstanding {
    /// For a connection (its id) whose commands take effect in their order, each seeing those
    /// before it. [`Outstanding::settling`] has to be called when failed writes are looked at.
    pub fn in_order(client: u64) -> Self {
        Outstanding {
            client,
            in_order: true,
            ..Outstanding::default()
        }
    }

    /// Everything that has failed so far is settled now, in order: nothing has to come after the
    /// failed writes any more, or to wait for them.
    pub fn settling(&self) {
        self.failed.store(false, Ordering::Release);
        let mut last = self.last_conditional.lock();
        if last.upgrade().is_some_and(|write| write.has_failed()) {
            *last = Weak::new();
        }
    }

    /// True if a write failed that nobody has looked at yet.
    pub fn is_unsettled(&self) -> bool {
        self.in_order && self.failed.load(Ordering::Acquire)
    }

    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Writes under way without a condition.
    pub(super) fn plain(&self) -> usize {
        self.count().saturating_sub(self.conditional())
    }

    pub(super) fn conditional(&self) -> usize {
        self.conditional.load(Ordering::Acquire)
    }

    /// The newest write with a condition, while anything still holds it.
    pub(super) fn last_conditional(&self) -> Option<Arc<Write>> {
        self.last_conditional.lock().upgrade()
    }

    fn finish_one(&self, conditional: bool) {
        if conditional {
            self.conditional.fetch_sub(1, Ordering::AcqRel);
        }
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.none.notify_waiters();
        }
    }

    /// Waits until every write of this connection has ended, or this node has failed: then
    /// [`Write::finished`] ends them.
    pub async fn none(&self, service: &Service) {
        loop {
            let notified = self.none.notified();
            if self.count() == 0 || service.failure().is_some() {
                return;
            }
            service.unless_failed(notified).await;
        }
    }
}
