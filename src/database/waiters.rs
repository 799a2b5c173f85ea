//! Clients that wait for elements (BLPOP and its like), by the keys that they wait for.
//!
//! A change of a key gives the first client in the key's queue its turn: it computes its command
//! again. It either hands a write to the log, and the next client has its turn, or it finds nothing
//! and waits on, and then there is nothing for those behind it either. So a change costs as many
//! computations as there are elements to take, and one more, however many clients wait.
//!
//! A client registers before it looks at its keys, and a change is shown before the queues are
//! asked. So no change is missed: a client that is computing when its key changes computes once
//! more. A change counts from when a write is handed to the log by this node, or is read from the
//! log if another wrote it: what is computed on a write under way is not acknowledged before it.
//!
//! The order is that in which the clients came. A client whose write has lost against another
//! writer goes before those behind it, which wait until it has tried again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Service;
use super::elements;
use super::write::Write;
use crate::model::{Collection, StreamPart, home_key};

/// All clients of this node that wait for elements.
#[derive(Default)]
pub struct Waiters {
    /// How many there are, so that a change costs nothing while there is none.
    count: AtomicUsize,
    queues: Mutex<Queues>,
}

/// The queues of one type of collection in one database, by key.
type ByKey = HashMap<Bytes, Queue>;

#[derive(Default)]
struct Queues {
    next: u64,
    /// By number; later clients have higher ones.
    clients: HashMap<u64, Client>,
    by_type: HashMap<(Collection, u16), ByKey>,
}

struct Client {
    of: Collection,
    database: u16,
    keys: Vec<Bytes>,
    state: State,
    /// A key has changed since its turn began.
    again: bool,
    /// The key that has changed first since its turn began.
    ready: Option<Bytes>,
    /// The key that it looks at first in this turn.
    looks_at: Option<Bytes>,
    /// It found nothing on writes under way. If one of them fails there may be something.
    unsure: bool,
    turn: Arc<Notify>,
}

#[derive(Clone)]
enum State {
    Waits,
    /// It is its turn, or will be when those before it had theirs.
    Due,
    /// It has handed a write to the log.
    Took(Arc<Write>),
}

/// The numbers of the clients that wait for one key, by their state.
#[derive(Default)]
struct Queue {
    waiting: BTreeSet<u64>,
    due: BTreeSet<u64>,
    took: BTreeMap<u64, Arc<Write>>,
}

/// A client's place in the queues. It leaves them when this is dropped.
pub struct Ticket {
    service: Arc<Service>,
    number: u64,
    turn: Arc<Notify>,
}

impl Waiters {
    /// Whether a client waits for elements of this type in one of these keys.
    pub fn any_wait(&self, of: Collection, database: u16, keys: &[&[u8]]) -> bool {
        if self.count.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let queues = self.queues.lock();
        let by_key = queues.by_type.get(&(of, database));
        by_key.is_some_and(|by_key| keys.iter().any(|key| by_key.contains_key(*key)))
    }

    /// A key may have elements now.
    pub(super) fn changed(&self, database: u16, key: &[u8]) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut queues = self.queues.lock();
        for of in [Collection::List, Collection::SortedSet, Collection::Stream] {
            queues.changed(of, database, key);
        }
    }

    /// As [`Waiters::changed`], for the collection of this element, which was written or removed.
    pub(super) fn element_changed(&self, database: u16, record_key: &[u8], is_there: bool) {
        if !self.any() {
            return;
        }
        let key = home_key(record_key);
        let mut queues = self.queues.lock();
        queues.changed(Collection::List, database, key);
        queues.changed(Collection::SortedSet, database, key);
        if concerns_readers(record_key, is_there) {
            queues.changed(Collection::Stream, database, key);
        }
    }

    /// Whether any client waits.
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::SeqCst) > 0
    }

    /// An own write of a key was acknowledged. Those that read a stream and take nothing do not see
    /// it before.
    pub(super) fn shown(&self, database: u16, key: &[u8]) {
        if self.any() {
            self.queues.lock().changed(Collection::Stream, database, key);
        }
    }

    /// As [`Waiters::shown`], for this element of a collection.
    pub(super) fn element_shown(&self, database: u16, record_key: &[u8], is_there: bool) {
        if self.any() && concerns_readers(record_key, is_there) {
            self.shown(database, home_key(record_key));
        }
    }

    /// A key is deleted. Those that wait for entries of a group hear of it.
    pub(super) fn gone(&self, database: u16, key: &[u8]) {
        if self.any() {
            self.queues.lock().changed(Collection::Stream, database, key);
        }
    }

    /// All keys of a database are deleted, see [`Waiters::gone`].
    pub(super) fn all_gone(&self, database: u16) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut queues = self.queues.lock();
        let of = Collection::Stream;
        let keys = queues.by_type.get(&(of, database)).map(|by_key| by_key.keys().cloned());
        let keys: Vec<Bytes> = keys.into_iter().flatten().collect();
        keys.iter().for_each(|key| queues.changed(of, database, key));
    }

    /// Every key may have changed, or the node has failed: then nobody waits any longer.
    pub(super) fn all_changed(&self) {
        if self.count.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut queues = self.queues.lock();
        let keys_of = |(at, by_key): (&(Collection, u16), &ByKey)| {
            let keys: Vec<Bytes> = by_key.keys().cloned().collect();
            (*at, keys)
        };
        queues.clients.values().for_each(|client| client.turn.notify_one());
        let all: Vec<_> = queues.by_type.iter().map(keys_of).collect();
        for ((of, database), keys) in all {
            for key in keys {
                queues.changed(of, database, &key);
            }
        }
    }
}

/// Whether those that wait for entries of a stream have to look again after this element was
/// written or removed: an entry has come, or a group has gone. Deliveries and acknowledgements
/// happen for each entry and bring nobody anything.
pub(super) fn concerns_readers(record_key: &[u8], is_there: bool) -> bool {
    let (_, sub_key) = elements::split(record_key);
    match is_there {
        true => StreamPart::is_entry(sub_key),
        false => matches!(StreamPart::parse(sub_key), Ok(StreamPart::Group(_))),
    }
}

impl Queues {
    fn queue(&mut self, of: Collection, database: u16, key: &[u8]) -> Option<&mut Queue> {
        self.by_type.get_mut(&(of, database))?.get_mut(key)
    }

    /// Gives the first client in the queue its turn: or all of them, in their order, where what one
    /// reads is there for the others too. Those whose write is under way have had it.
    fn changed(&mut self, of: Collection, database: u16, key: &[u8]) {
        let Some(queue) = self.queue(of, database, key) else {
            return;
        };
        let both = queue.waiting.iter().chain(&queue.due).copied();
        let due: Vec<u64> = match of {
            Collection::Stream => both.collect(),
            _ => both.min().into_iter().collect(),
        };
        for number in due {
            if !matches!(self.clients.get(&number), Some(Client { state: State::Due, .. })) {
                self.set(number, State::Due);
            }
            if let Some(client) = self.clients.get_mut(&number) {
                client.again = true;
                client.ready.get_or_insert_with(|| Bytes::copy_from_slice(key));
                client.turn.notify_one();
            }
        }
    }

    /// Puts a client into a state, in all its queues.
    fn set(&mut self, number: u64, state: State) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        let Some(by_key) = self.by_type.get_mut(&(client.of, client.database)) else {
            return;
        };
        client.state = state.clone();
        for key in &client.keys {
            let queue = by_key.entry(key.clone()).or_default();
            queue.forget(number);
            match &state {
                State::Waits => drop(queue.waiting.insert(number)),
                State::Due => drop(queue.due.insert(number)),
                State::Took(write) => drop(queue.took.insert(number, write.clone())),
            }
        }
    }

    /// Wakes the first client in each queue of these keys whose turn it may be now.
    fn next(&mut self, of: Collection, database: u16, keys: &[Bytes]) {
        for key in keys {
            let first = self
                .queue(of, database, key)
                .and_then(|queue| queue.due.first().copied());
            if let Some(client) = first.and_then(|number| self.clients.get(&number)) {
                client.turn.notify_one();
            }
        }
    }

    /// Whether all clients before this one in its queues have had their turn.
    fn is_first(&self, client: &Client, number: u64) -> bool {
        let Some(by_key) = self.by_type.get(&(client.of, client.database)) else {
            return true;
        };
        let mut queues = client.keys.iter().filter_map(|key| by_key.get(key));
        queues.all(|queue| {
            let lost = |(_, write): (&u64, &Arc<Write>)| matches!(write.outcome(), Some(Err(_)));
            queue.due.first().is_none_or(|first| *first >= number) && !queue.took.range(..number).any(lost)
        })
    }
}

impl Queue {
    fn forget(&mut self, number: u64) {
        self.waiting.remove(&number);
        self.due.remove(&number);
        self.took.remove(&number);
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.due.is_empty() && self.took.is_empty()
    }
}

impl Ticket {
    /// Queues a client behind all that wait for these keys. It has its turn at once, or behind
    /// those before it that have theirs.
    pub fn new(service: &Arc<Service>, of: Collection, database: u16, keys: &[&[u8]]) -> Self {
        let turn = Arc::new(Notify::new());
        let waiters = &service.waiters;
        let mut queues = waiters.queues.lock();
        let number = queues.next;
        queues.next += 1;
        // A key may be named several times.
        let mut named = HashSet::new();
        let keys = keys.iter().filter(|key| named.insert(**key));
        let client = Client {
            of,
            database,
            keys: keys.map(|key| Bytes::copy_from_slice(key)).collect(),
            state: State::Due,
            again: false,
            ready: None,
            looks_at: None,
            unsure: false,
            turn: turn.clone(),
        };
        queues.clients.insert(number, client);
        queues.by_type.entry((of, database)).or_default();
        queues.set(number, State::Due);
        waiters.count.store(queues.clients.len(), Ordering::SeqCst);
        Ticket {
            service: service.clone(),
            number,
            turn,
        }
    }

    /// Begins its turn, if it has one. Returns the key that has changed first, if one has.
    pub fn begin(&self) -> Option<Option<Bytes>> {
        let mut queues = self.service.waiters.queues.lock();
        let client = queues.clients.get(&self.number)?;
        let is_due = matches!(client.state, State::Due);
        if !is_due || !queues.is_first(client, self.number) {
            return None;
        }
        let client = queues.clients.get_mut(&self.number)?;
        client.again = false;
        client.looks_at = client.ready.take();
        Some(client.looks_at.clone())
    }

    /// Waits until it may have a turn.
    pub async fn turn(&self) {
        self.turn.notified().await;
    }

    /// It has found nothing, and waits on, unless a key has changed since it looked. `unsure`: what
    /// it found rests on writes under way.
    pub fn found_nothing(&self, unsure: bool) {
        self.move_to(|client| {
            client.unsure = unsure;
            match client.again {
                true => State::Due,
                false => State::Waits,
            }
        });
    }

    /// It has handed over a write that takes elements: those behind it have their turn.
    pub fn took(&self, write: &Arc<Write>) {
        self.move_to(|_| State::Took(write.clone()));
        self.pass_on();
    }

    /// It has to try again.
    pub fn try_again(&self) {
        self.move_to(|_| State::Due);
        self.turn.notify_one();
    }

    fn move_to(&self, state: impl FnOnce(&mut Client) -> State) {
        let mut queues = self.service.waiters.queues.lock();
        let Some(client) = queues.clients.get_mut(&self.number) else {
            return;
        };
        let state = state(client);
        let (of, database, keys) = (client.of, client.database, client.keys.clone());
        queues.set(self.number, state);
        queues.next(of, database, &keys);
    }

    /// Gives the next client in each of its queues a turn. A change of a stream has done so
    /// already.
    fn pass_on(&self) {
        let mut queues = self.service.waiters.queues.lock();
        let Some(client) = queues.clients.get(&self.number) else {
            return;
        };
        if client.of == Collection::Stream {
            return;
        }
        let (of, database, keys) = (client.of, client.database, client.keys.clone());
        // Those behind it look at the key first that it has looked at first.
        let first = client.looks_at.clone();
        first
            .iter()
            .chain(&keys)
            .for_each(|key| queues.changed(of, database, key));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let waiters = &self.service.waiters;
        let mut queues = waiters.queues.lock();
        let Some(client) = queues.clients.remove(&self.number) else {
            return;
        };
        waiters.count.store(queues.clients.len(), Ordering::SeqCst);
        let (of, database, keys) = (client.of, client.database, client.keys);
        if let Some(by_key) = queues.by_type.get_mut(&(of, database)) {
            for key in &keys {
                if let Some(queue) = by_key.get_mut(key) {
                    queue.forget(self.number);
                    if queue.is_empty() {
                        by_key.remove(key);
                    }
                }
            }
            if by_key.is_empty() {
                queues.by_type.remove(&(of, database));
            }
        }
        // What it has not taken is for others. Those that wait at a stream have all been given a
        // turn.
        let has_taken = match &client.state {
            _ if of == Collection::Stream => true,
            State::Took(write) => matches!(write.outcome(), Some(Ok(()))),
            State::Waits => !client.unsure,
            State::Due => false,
        };
        if !has_taken {
            keys.iter().for_each(|key| queues.changed(of, database, key));
        }
        queues.next(of, database, &keys);
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::database::tests::Fixture;
    use crate::model::{ElementName, StreamId, Version};

    /// How often each of these was woken, once or not at all.
    fn woken(tickets: &[Ticket]) -> usize {
        let is_woken = |ticket: &&Ticket| {
            let turn = std::pin::pin!(ticket.turn());
            turn.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
        };
        tickets.iter().filter(is_woken).count()
    }

    #[test]
    fn an_entry_gives_each_reader_of_a_stream_one_turn() {
        const READERS: usize = 20;
        let f = Fixture::new(false);
        let waiters = &f.service.waiters;
        let new = |_| Ticket::new(&f.service, Collection::Stream, 0, &[b"s"]);
        let mut tickets: Vec<Ticket> = (0..READERS).map(new).collect();
        for ticket in &tickets {
            assert!(ticket.begin().is_some(), "it looks when it comes");
            ticket.found_nothing(false);
        }
        woken(&tickets);
        let version = Version::new(1);
        let name = |part: StreamPart| {
            let sub_key = &part.sub_key()[..];
            ElementName {
                key: b"s",
                version,
                sub_key,
            }
            .record_key()
        };
        let id = StreamId { ms: 1, seq: 1 };
        for (part, is_there) in [
            (StreamPart::Pending(b"g", id), true),
            (StreamPart::Pending(b"g", id), false),
            (StreamPart::Group(b"g"), true),
            (StreamPart::Entry(id), false),
        ] {
            waiters.element_changed(0, &name(part), is_there);
            waiters.element_shown(0, &name(part), is_there);
            assert_eq!(woken(&tickets), 0, "{part:?}");
        }
        waiters.element_shown(0, &name(StreamPart::Entry(id)), true);
        assert_eq!(woken(&tickets), READERS);
        while !tickets.is_empty() {
            let served = tickets.remove(0);
            assert!(served.begin().is_some(), "it is its turn");
            drop(served);
            assert_eq!(woken(&tickets), tickets.len().min(1), "the next one alone");
        }
        let tickets = [new(0)];
        assert!(tickets[0].begin().is_some());
        tickets[0].found_nothing(false);
        waiters.element_changed(0, &name(StreamPart::Group(b"g")), false);
        assert_eq!(woken(&tickets), 1, "a group has gone");
    }
}
