//! Client-side caching: which connections have read which keys ([`Tracking`]), and how one
//! connection's keys are tracked ([`Tracks`]).
//!
//! A connection is entered for a key before the key is read. A change becomes visible before it is
//! looked up here, and the entry is taken out then. So a connection that has read a value hears of
//! the next change of it, once. What is pushed for that change comes after the reply: the task of a
//! connection moves no push into its output while a reply is being computed or held back.
//!
//! The table is bounded by `tracking-table-max-keys` and by [`MOST_BYTES`]. Above that, entries are
//! taken out at random, and their connections are told that the key has changed.
//!
//! As in Redis, keys of all databases count as one: an invalidation says only the name.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use indexmap::IndexMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::clients::Client;
use super::tracking_modes::mode;
use crate::database::Service;
use crate::database::visible::{Event, What};

/// The table has so many parts, each with a lock of its own.
const SHARDS: usize = 16;
/// Bytes that the table may take, whatever `tracking-table-max-keys` says.
const MOST_BYTES: usize = 512 << 20;
/// What a key in the table takes besides its name, and what a connection takes for each key.
const KEY_BYTES: usize = 96;
const CLIENT_BYTES: usize = size_of::<u64>();
/// Changes that are delivered together at most. A group may have more.
const GATHERED: usize = 1_000;
/// Once changes that were put off have so many readers, further ones are delivered later.
const AT_ONCE: usize = 10_000;
/// Bytes of changes that wait to be delivered. Above that they become one change of all keys.
const MOST_WAITING: usize = 64 << 20;
/// Bytes of prefixes that one connection may track.
const MOST_PREFIX_BYTES: usize = 1 << 20;
/// What a prefix takes besides its name.
const PREFIX_BYTES: usize = 128;

/// The connections that have read a key, by their ids, in order.
type Readers = Vec<u64>;
type Table = IndexMap<Bytes, Readers, foldhash::fast::RandomState>;

/// A change that some connections are to be told of.
#[derive(Debug, PartialEq, Eq)]
pub struct Change {
    /// `None`: any key may have changed.
    pub key: Option<Bytes>,
    /// The connection that made it; 0 if that is unknown, or none.
    pub writer: u64,
    /// Those that have read the key.
    pub readers: Vec<u64>,
}

/// Keys that have changed, each with its writer.
pub type Changed = BTreeMap<Bytes, u64>;

/// What those are told that track a prefix.
pub type Broadcast = (Arc<[Arc<Client>]>, Changed);

/// Who tracks which keys on this node.
#[derive(Default)]
pub struct Tracking {
    hasher: foldhash::fast::RandomState,
    shards: [Mutex<Table>; SHARDS],
    keys: AtomicUsize,
    items: AtomicUsize,
    /// Bytes of the names of the keys.
    names: AtomicUsize,
    /// Connections that track.
    clients: AtomicUsize,
    prefixes: Mutex<Prefixes>,
    /// Connections that track prefixes, once for each prefix.
    broadcasting: AtomicUsize,
    /// Changes of a write whose records are becoming visible.
    gathered: Mutex<Vec<Change>>,
    /// Changes that many connections are to be told of: a task of its own does that.
    waiting: Mutex<Waiting>,
    pub(super) has_waiting: Notify,
}

#[derive(Default)]
struct Waiting {
    changes: VecDeque<Change>,
    bytes: usize,
}

#[derive(Default)]
struct Prefixes {
    by_name: HashMap<Bytes, Arc<[Arc<Client>]>>,
    /// The lengths of all prefixes, with how many have each.
    lengths: BTreeMap<usize, usize>,
}

/// Why prefixes cannot be tracked.
pub struct TooMany;

impl Change {
    fn everything() -> Change {
        Change {
            key: None,
            writer: 0,
            readers: Vec::new(),
        }
    }

    fn bytes(&self) -> usize {
        self.key.as_ref().map_or(0, Bytes::len) + KEY_BYTES + self.readers.len() * CLIENT_BYTES
    }
}

/// The table of keys that were read.
impl Tracking {
    fn shard(&self, key: &[u8]) -> &Mutex<Table> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// A connection is about to read a key. `is_there` tells whether a connection still exists.
    fn enter(&self, key: &[u8], client: u64, is_there: impl Fn(u64) -> bool) {
        let mut table = self.shard(key).lock();
        let Some(readers) = table.get_mut(key) else {
            table.insert(Bytes::copy_from_slice(key), vec![client]);
            self.keys.fetch_add(1, Ordering::Relaxed);
            self.items.fetch_add(1, Ordering::Relaxed);
            self.names.fetch_add(key.len(), Ordering::Relaxed);
            return;
        };
        let Err(mut at) = readers.binary_search(&client) else {
            return;
        };
        let before = readers.len();
        // Connections that have ended are forgotten before the list grows.
        if before == readers.capacity() {
            readers.retain(|reader| is_there(*reader));
            at = readers.partition_point(|reader| *reader < client);
        }
        readers.insert(at, client);
        self.items.fetch_add(readers.len(), Ordering::Relaxed);
        self.items.fetch_sub(before, Ordering::Relaxed);
    }

    fn taken(&self, key: &[u8], readers: &Readers) {
        self.keys.fetch_sub(1, Ordering::Relaxed);
        self.items.fetch_sub(readers.len(), Ordering::Relaxed);
        self.names.fetch_sub(key.len(), Ordering::Relaxed);
    }

    /// Those that have read a key. They are not in the table any more, but for the writer if it is
    /// not told of its own writes: it may have read the key while its write was under way, and the
    /// next change of the key is for it.
    fn take(&self, key: &[u8], writer: u64, is_not_told: impl Fn(u64) -> bool) -> Readers {
        if self.keys.load(Ordering::SeqCst) == 0 {
            return Vec::new();
        }
        let mut table = self.shard(key).lock();
        let Some(readers) = table.get_mut(key) else {
            return Vec::new();
        };
        let own = readers.binary_search(&writer).ok().filter(|_| is_not_told(writer));
        if let Some(own) = own {
            let mut taken = std::mem::replace(readers, vec![writer]);
            taken.remove(own);
            self.items.fetch_sub(taken.len(), Ordering::Relaxed);
            return taken;
        }
        let removed = table.swap_remove_entry(key);
        drop(table);
        let (key, readers) = removed.unwrap_or_default();
        self.taken(&key, &readers);
        readers
    }

    fn clear(&self) {
        for shard in &self.shards {
            let table = std::mem::take(&mut *shard.lock());
            table.iter().for_each(|(key, readers)| self.taken(key, readers));
        }
    }

    /// Nobody tracks any more: nobody is to be told of what was read. A connection that begins to
    /// track counts before it enters a key.
    fn clear_unused(&self) {
        for shard in &self.shards {
            let mut locked = shard.lock();
            if self.clients.load(Ordering::SeqCst) > 0 {
                return;
            }
            let table = std::mem::take(&mut *locked);
            drop(locked);
            table.iter().for_each(|(key, readers)| self.taken(key, readers));
        }
    }

    fn is_above(&self, most_keys: usize) -> bool {
        let keys = self.keys.load(Ordering::Relaxed);
        let bytes =
            keys * KEY_BYTES + self.names.load(Ordering::Relaxed) + self.items.load(Ordering::Relaxed) * CLIENT_BYTES;
        (most_keys > 0 && keys > most_keys) || bytes > MOST_BYTES
    }

    /// Takes out random keys until the table is within its bounds. `most_keys`: 0 for any number.
    pub(super) fn shrink(&self, most_keys: usize) -> Vec<Change> {
        let mut evicted = Vec::new();
        while self.is_above(most_keys) && self.keys.load(Ordering::Relaxed) > 0 {
            let first = rand::random_range(0..SHARDS);
            for shard in (0..SHARDS).map(|next| &self.shards[(first + next) % SHARDS]) {
                let mut table = shard.lock();
                if table.is_empty() {
                    continue;
                }
                let at = rand::random_range(0..table.len());
                if let Some((key, readers)) = table.swap_remove_index(at) {
                    self.taken(&key, &readers);
                    evicted.push(Change {
                        key: Some(key),
                        writer: 0,
                        readers,
                    });
                }
                break;
            }
        }
        evicted
    }

    pub fn keys(&self) -> usize {
        self.keys.load(Ordering::Relaxed)
    }

    /// Keys, each as often as connections have read it.
    pub fn items(&self) -> usize {
        self.items.load(Ordering::Relaxed)
    }

    pub fn clients(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    pub fn prefixes(&self) -> usize {
        self.prefixes.lock().by_name.len()
    }
}

/// What changes.
impl Tracking {
    /// Something has become visible. Returns what is to be delivered now. `is_not_told`: whether a
    /// connection is not told of its own writes.
    pub(super) fn heard(&self, event: &Event<'_>, is_not_told: impl Fn(u64) -> bool) -> Vec<Change> {
        let change = match event.what {
            What::Written(key) | What::Deleted(key) => {
                let readers = self.take(key, event.writer, is_not_told);
                let is_tracked = !readers.is_empty() || self.broadcasting() > 0;
                is_tracked.then(|| Change {
                    key: Some(Bytes::copy_from_slice(key)),
                    writer: event.writer,
                    readers,
                })
            }
            What::Flushed | What::Anything => {
                self.clear();
                Some(Change::everything())
            }
            What::GroupShown => None,
        };
        // Another thread may be showing a group: its changes are not for this event to deliver.
        if !event.in_group && event.what != What::GroupShown {
            return change.into_iter().collect();
        }
        if change.is_none() && event.in_group {
            return Vec::new();
        }
        let mut gathered = self.gathered.lock();
        if let Some(change) = change {
            if change.key.is_none() {
                gathered.clear();
            }
            // The elements of a collection are changes of one key.
            if gathered.last() != Some(&change) {
                gathered.push(change);
            }
        }
        match event.in_group && gathered.len() < GATHERED {
            true => Vec::new(),
            false => std::mem::take(&mut gathered),
        }
    }

    /// Connections that track prefixes, once for each prefix.
    pub(super) fn broadcasting(&self) -> usize {
        self.broadcasting.load(Ordering::SeqCst)
    }

    /// What those are told that track prefixes.
    pub(super) fn broadcasts(&self, changes: &[Change]) -> Vec<Broadcast> {
        if self.broadcasting() == 0 {
            return Vec::new();
        }
        let prefixes = self.prefixes.lock();
        let mut found: BTreeMap<&Bytes, Broadcast> = BTreeMap::new();
        for Change { key, writer, .. } in changes {
            let Some(key) = key else {
                found.clear();
                continue;
            };
            for length in prefixes.lengths.keys().take_while(|length| **length <= key.len()) {
                let Some((name, clients)) = prefixes.by_name.get_key_value(&key[..*length]) else {
                    continue;
                };
                let (_, changed) = found.entry(name).or_insert_with(|| (clients.clone(), Changed::new()));
                // Two writers: nobody has made all of the change.
                let before = changed.entry(key.clone()).or_insert(*writer);
                if before != writer {
                    *before = 0;
                }
            }
        }
        found.into_values().collect()
    }

    /// Leaves changes to the task that delivers what many connections are told.
    pub(super) fn put_off(&self, changes: Vec<Change>) {
        let mut waiting = self.waiting.lock();
        for change in changes {
            waiting.bytes += change.bytes();
            waiting.changes.push_back(change);
        }
        if waiting.bytes > MOST_WAITING {
            let everything = Change::everything();
            waiting.bytes = everything.bytes();
            waiting.changes = VecDeque::from([everything]);
        }
        drop(waiting);
        self.has_waiting.notify_one();
    }

    /// Changes that were put off: at least one, if there are any.
    pub(super) fn take_waiting(&self) -> Vec<Change> {
        let mut waiting = self.waiting.lock();
        let mut readers = 0;
        let few = |change: &&Change| {
            let before = readers;
            readers += change.readers.len();
            before < AT_ONCE
        };
        let some = waiting.changes.iter().take(GATHERED).take_while(few).count();
        let taken: Vec<Change> = waiting.changes.drain(..some).collect();
        waiting.bytes -= taken.iter().map(Change::bytes).sum::<usize>();
        taken
    }
}

impl Prefixes {
    fn add(&mut self, prefix: &Bytes, client: &Arc<Client>) {
        let length = prefix.len();
        match self.by_name.get_mut(prefix) {
            Some(clients) => *clients = clients.iter().chain([client]).cloned().collect(),
            None => {
                self.by_name.insert(prefix.clone(), Arc::from([client.clone()]));
                *self.lengths.entry(length).or_default() += 1;
            }
        }
    }

    fn remove(&mut self, prefix: &Bytes, id: u64) {
        let Some(clients) = self.by_name.get_mut(prefix) else {
            return;
        };
        *clients = clients.iter().filter(|client| client.id != id).cloned().collect();
        if clients.is_empty() {
            self.by_name.remove(prefix);
            if let Some(count) = self.lengths.get_mut(&prefix.len()) {
                *count -= 1;
            }
            self.lengths.retain(|_, count| *count > 0);
        }
    }
}

/// An error if one connection cannot track these prefixes besides those that it tracks already.
pub fn check_size(before: Option<&Tracks>, prefixes: &[&[u8]]) -> Result<(), TooMany> {
    let known = before.into_iter().flat_map(Tracks::prefixes).map(|prefix| &prefix[..]);
    let all = known.chain(prefixes.iter().copied());
    match all.map(|prefix| prefix.len() + PREFIX_BYTES).sum::<usize>() > MOST_PREFIX_BYTES {
        true => Err(TooMany),
        false => Ok(()),
    }
}

/// How the keys of one connection are tracked. Dropping it ends that.
pub struct Tracks {
    service: Arc<Service>,
    tracking: Arc<Tracking>,
    client: Arc<Client>,
    modes: u8,
    prefixes: BTreeSet<Bytes>,
    /// What the script under way declares: as in Redis, it counts as read when the script reads
    /// anything.
    declared: Vec<Bytes>,
    /// CLIENT CACHING came before the command under way.
    pub caching: bool,
    /// The command under way is computed again: what CLIENT CACHING said of it is forgotten.
    pub again: bool,
}

impl Tracks {
    pub fn new(service: &Arc<Service>, tracking: &Arc<Tracking>, client: &Arc<Client>) -> Self {
        tracking.clients.fetch_add(1, Ordering::SeqCst);
        service.listeners.want();
        Tracks {
            service: service.clone(),
            tracking: tracking.clone(),
            client: client.clone(),
            modes: 0,
            prefixes: BTreeSet::new(),
            declared: Vec::new(),
            caching: false,
            again: false,
        }
    }

    pub fn has(&self, modes: u8) -> bool {
        self.modes & modes == modes
    }

    /// Changes the modes. `redirect`: 0 if the connection gets the invalidations itself.
    pub fn set(&mut self, modes: u8, redirect: u64) {
        self.modes = modes | mode::ON;
        self.client.tracking.set(self.modes, redirect);
    }

    /// A script begins that declares these keys. It ends with another call, without keys.
    pub fn declare(&mut self, keys: &[&[u8]]) {
        self.declared = keys.iter().map(|key| Bytes::copy_from_slice(key)).collect();
    }

    /// The prefixes that it tracks, in order.
    pub fn prefixes(&self) -> impl Iterator<Item = &Bytes> {
        self.prefixes.iter()
    }

    /// Tracks more prefixes. [`check_size`] has found that they are not too many.
    pub fn add_prefixes(&mut self, prefixes: &[&[u8]]) {
        for prefix in prefixes {
            let prefix = Bytes::copy_from_slice(prefix);
            if self.prefixes.insert(prefix.clone()) {
                self.tracking.broadcasting.fetch_add(1, Ordering::SeqCst);
                self.tracking.prefixes.lock().add(&prefix, &self.client);
            }
        }
    }

    /// Keys are about to be read. Returns whether the table is above its bounds.
    pub fn reads(&self, keys: &[&[u8]], most_keys: usize, is_there: impl Fn(u64) -> bool) -> bool {
        let is_wanted = match () {
            () if self.has(mode::BCAST) => false,
            () if self.has(mode::OPTIN) => self.caching || self.again,
            () if self.has(mode::OPTOUT) => !self.caching || self.again,
            () => true,
        };
        if !is_wanted {
            return false;
        }
        let declared = self.declared.iter().map(|key| &key[..]);
        let all = keys.iter().copied().chain(declared);
        all.for_each(|key| self.tracking.enter(key, self.client.id, &is_there));
        self.tracking.is_above(most_keys)
    }
}

impl Drop for Tracks {
    fn drop(&mut self) {
        self.client.tracking.set(0, 0);
        for prefix in &self.prefixes {
            self.tracking.prefixes.lock().remove(prefix, self.client.id);
            self.tracking.broadcasting.fetch_sub(1, Ordering::SeqCst);
        }
        if self.tracking.clients.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.tracking.clear_unused();
        }
        self.service.listeners.unwant();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::hot::At;

    fn readers(tracking: &Tracking, key: &str) -> Readers {
        tracking.take(key.as_bytes(), 0, |_| false)
    }

    #[test]
    fn a_key_is_taken_out_once_with_all_its_readers() {
        let tracking = Tracking::default();
        for client in [3, 1, 2, 1] {
            tracking.enter(b"k", client, |_| true);
        }
        assert_eq!((tracking.keys(), tracking.items()), (1, 3));
        assert_eq!(readers(&tracking, "k"), [1, 2, 3]);
        assert_eq!(readers(&tracking, "k"), [0; 0]);
        assert_eq!((tracking.keys(), tracking.items()), (0, 0));
    }

    #[test]
    fn a_writer_that_is_not_told_of_its_writes_hears_of_the_next_change() {
        let tracking = Tracking::default();
        for client in 1..=3 {
            tracking.enter(b"k", client, |_| true);
        }
        let take = |writer| tracking.take(b"k", writer, |id| id == 2);
        assert_eq!(take(2), [1, 3]);
        assert_eq!((tracking.keys(), tracking.items()), (1, 1));
        assert_eq!(take(2), [0; 0]);
        assert_eq!(take(3), [2]);
        assert_eq!((tracking.keys(), tracking.items()), (0, 0));
    }

    #[test]
    fn a_change_of_others_leaves_those_of_a_group_to_the_group() {
        let tracking = Tracking::default();
        let event = |key: &'static [u8], in_group| Event {
            database: 0,
            what: What::Written(key),
            at: At {
                partition: 0,
                offset: 0,
            },
            own: in_group,
            writer: 0,
            expired: false,
            in_group,
        };
        for key in ["one", "two", "other"] {
            tracking.enter(key.as_bytes(), 1, |_| true);
        }
        let heard = |event| {
            let changes = tracking.heard(&event, |_| false);
            changes.into_iter().filter_map(|change| change.key).collect::<Vec<_>>()
        };
        assert_eq!(heard(event(b"one", true)), [""; 0]);
        assert_eq!(heard(event(b"other", false)), ["other"]);
        assert_eq!(heard(event(b"two", true)), [""; 0]);
        let shown = Event {
            what: What::GroupShown,
            ..event(b"", false)
        };
        assert_eq!(heard(shown), ["one", "two"]);
    }

    #[test]
    fn changes_with_many_readers_are_delivered_one_by_one() {
        let tracking = Tracking::default();
        let change = || Change {
            key: Some(Bytes::from_static(b"k")),
            writer: 0,
            readers: vec![1; AT_ONCE / 2],
        };
        tracking.put_off((0..5).map(|_| change()).collect());
        let taken: Vec<usize> = (0..4).map(|_| tracking.take_waiting().len()).collect();
        assert_eq!(taken, [2, 2, 1, 0]);
    }

    #[test]
    fn connections_that_have_ended_are_forgotten() {
        let tracking = Tracking::default();
        for client in 1..=1_000 {
            tracking.enter(b"k", client, |other| other + 2 > client);
        }
        assert!(tracking.items() <= 8, "{}", tracking.items());
        assert!(readers(&tracking, "k").contains(&1_000));
    }

    #[test]
    fn the_table_has_at_most_so_many_keys() {
        let tracking = Tracking::default();
        for n in 0..100 {
            tracking.enter(format!("k{n}").as_bytes(), 1, |_| true);
        }
        assert_eq!(tracking.shrink(0), []);
        assert_eq!(tracking.shrink(30).len(), 70);
        assert_eq!((tracking.keys(), tracking.items()), (30, 30));
    }

    #[test]
    fn too_many_changes_become_one_of_all_keys() {
        let tracking = Tracking::default();
        let change = || Change {
            key: Some(Bytes::from_static(&[0; 1 << 20])),
            writer: 0,
            readers: vec![1],
        };
        tracking.put_off(vec![change()]);
        assert_eq!(tracking.take_waiting(), [change()]);
        tracking.put_off((0..65).map(|_| change()).collect());
        assert_eq!(tracking.take_waiting(), [Change::everything()]);
        assert_eq!(tracking.take_waiting(), []);
    }
}
