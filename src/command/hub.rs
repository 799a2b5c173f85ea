//! Who listens to which channel on this node ([`Hub`]), and what one connection listens to
//! ([`Listening`]).
//!
//! A message is delivered in two looks at the tables: the first one finds out what has to be
//! encoded, the second one adds it to the queues. Nothing is encoded, matched or waited for while
//! the tables are locked. Queues are filled under the lock. So all connections get the messages in
//! one order, and a connection that has stopped listening gets no more.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use indexmap::IndexMap;
use parking_lot::Mutex;
use rustc_hash::FxBuildHasher;

use super::clients::Client;
use super::pushes::{Added, Kind, Push};
use crate::config::checks::OutputLimit;
use crate::glob::KeyPattern;
use crate::resp::{write_bulk, write_length};

/// Most bytes that the names of one connection's channels and patterns may take.
const MAX_NAMES: usize = 256 << 20;
/// What a channel takes besides its name.
const OVERHEAD: usize = 128;

/// Connections, by their ids.
type Listeners = Vec<Arc<Client>>;
type Table = HashMap<Bytes, Listeners, foldhash::fast::RandomState>;

/// Who listens to which channel on this node.
#[derive(Default)]
pub struct Hub {
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    channels: Table,
    shards: Table,
    patterns: IndexMap<Bytes, Listeners, FxBuildHasher>,
    /// The patterns, for publishers; `None` when they have changed.
    names: Option<Arc<[Bytes]>>,
    /// Connections, once for each channel and pattern that they listen to.
    listeners: usize,
}

/// A message as it is published.
#[derive(Clone, Copy)]
pub struct Message<'m> {
    pub channel: &'m [u8],
    pub payload: &'m [u8],
    /// It is for channels of the shard, which patterns do not match.
    pub shard: bool,
}

/// What became of a message.
#[derive(Default)]
pub struct Delivered {
    /// A connection counts once for its channel and once for each of its patterns.
    pub receivers: usize,
    /// Connections that were above their limit and have to be closed.
    pub above_limit: Vec<Arc<Client>>,
    /// Patterns that took too long to match.
    pub given_up: usize,
}

/// What was found in the first look.
struct Heard {
    directly: bool,
    patterns: Arc<[Bytes]>,
}

/// Why a connection cannot listen to more.
pub struct TooMany;

impl Tables {
    fn heard(&mut self, message: &Message<'_>) -> Heard {
        let directly = match message.shard {
            true => self.shards.contains_key(message.channel),
            false => self.channels.contains_key(message.channel),
        };
        let patterns = match message.shard {
            true => Arc::default(),
            false => {
                let patterns = &self.patterns;
                let names = self.names.get_or_insert_with(|| patterns.keys().cloned().collect());
                names.clone()
            }
        };
        Heard { directly, patterns }
    }

    fn add(&mut self, kind: Kind, name: &Bytes, client: &Arc<Client>) {
        let listeners = match kind {
            Kind::Channel => self.channels.entry(name.clone()).or_default(),
            Kind::Shard => self.shards.entry(name.clone()).or_default(),
            Kind::Pattern => {
                if !self.patterns.contains_key(name) {
                    self.names = None;
                }
                self.patterns.entry(name.clone()).or_default()
            }
        };
        if let Err(at) = listeners.binary_search_by_key(&client.id, |client| client.id) {
            listeners.insert(at, client.clone());
            self.listeners += 1;
        }
    }

    fn remove(&mut self, kind: Kind, name: &Bytes, id: u64) {
        fn without(listeners: Option<&mut Listeners>, id: u64, all: &mut usize) -> bool {
            let Some(listeners) = listeners else {
                return false;
            };
            if let Ok(at) = listeners.binary_search_by_key(&id, |client| client.id) {
                listeners.remove(at);
                *all -= 1;
            }
            listeners.is_empty()
        }
        let all = &mut self.listeners;
        match kind {
            Kind::Channel if without(self.channels.get_mut(name), id, all) => drop(self.channels.remove(name)),
            Kind::Shard if without(self.shards.get_mut(name), id, all) => drop(self.shards.remove(name)),
            Kind::Pattern if without(self.patterns.get_mut(name), id, all) => {
                self.patterns.swap_remove(name);
                self.names = None;
            }
            Kind::Channel | Kind::Shard | Kind::Pattern => {}
        }
    }
}

impl Hub {
    /// Adds the message to the queues of all that listen to it here.
    pub fn deliver(&self, message: &Message<'_>, limit: &OutputLimit) -> Delivered {
        let mut delivered = Delivered::default();
        let heard = self.tables.lock().heard(message);
        if !heard.directly && heard.patterns.is_empty() {
            return delivered;
        }
        let direct = heard.directly.then(|| encode(message, None));
        let (matching, given_up) = matching(&heard.patterns, message.channel);
        delivered.given_up = given_up;
        let encoded = |name| (name, encode(message, Some(name)));
        let matching: Vec<(&Bytes, Push)> = matching.into_iter().map(encoded).collect();
        let tables = self.tables.lock();
        let table = if message.shard {
            &tables.shards
        } else {
            &tables.channels
        };
        if let (Some(push), Some(listeners)) = (&direct, table.get(message.channel)) {
            delivered.add(listeners, push, limit);
        }
        for (name, push) in &matching {
            if let Some(listeners) = tables.patterns.get(*name) {
                delivered.add(listeners, push, limit);
            }
        }
        delivered
    }

    /// How many would get the message now.
    pub fn receivers(&self, message: &Message<'_>) -> usize {
        let heard = self.tables.lock().heard(message);
        if !heard.directly && heard.patterns.is_empty() {
            return 0;
        }
        let (matching, _) = matching(&heard.patterns, message.channel);
        let tables = self.tables.lock();
        let table = if message.shard {
            &tables.shards
        } else {
            &tables.channels
        };
        let by_pattern = matching.iter().filter_map(|name| tables.patterns.get(*name));
        by_pattern.map(Vec::len).sum::<usize>() + table.get(message.channel).map_or(0, Vec::len)
    }

    /// The connections that listen to something of which `is_meant` says so.
    pub fn listeners_where(&self, is_meant: impl Fn(&Arc<Client>, Kind, &[u8]) -> bool) -> Vec<Arc<Client>> {
        let tables = self.tables.lock();
        let channels = tables.channels.iter().map(|entry| (Kind::Channel, entry));
        let shards = tables.shards.iter().map(|entry| (Kind::Shard, entry));
        let patterns = tables.patterns.iter().map(|entry| (Kind::Pattern, entry));
        let mut found = Vec::new();
        for (kind, (name, listeners)) in channels.chain(shards).chain(patterns) {
            found.extend(listeners.iter().filter(|client| is_meant(client, kind, name)).cloned());
        }
        found
    }

    /// How many channels or patterns of this kind somebody listens to.
    pub fn count(&self, kind: Kind) -> usize {
        let tables = self.tables.lock();
        match kind {
            Kind::Channel => tables.channels.len(),
            Kind::Pattern => tables.patterns.len(),
            Kind::Shard => tables.shards.len(),
        }
    }

    /// The names of all channels that somebody listens to.
    pub fn channels(&self, shard: bool) -> Vec<Bytes> {
        let tables = self.tables.lock();
        let table = if shard { &tables.shards } else { &tables.channels };
        table.keys().cloned().collect()
    }

    /// How many connections listen, each once for each of its channels and patterns.
    pub fn all_listeners(&self) -> usize {
        self.tables.lock().listeners
    }

    /// How many connections listen to a channel.
    pub fn listeners(&self, channel: &[u8], shard: bool) -> usize {
        let tables = self.tables.lock();
        let table = if shard { &tables.shards } else { &tables.channels };
        table.get(channel).map_or(0, Vec::len)
    }
}

impl Delivered {
    fn add(&mut self, listeners: &Listeners, push: &Push, limit: &OutputLimit) {
        self.receivers += listeners.len();
        for client in listeners {
            let output = client.output_bytes.load(Ordering::Relaxed);
            match client.pushes.add(push, output, limit) {
                Added::First => client.wake(),
                Added::AboveLimit => self.above_limit.push(client.clone()),
                Added::Behind | Added::Closed => {}
            }
        }
    }
}

/// The patterns that match a channel, and how many took too long.
fn matching<'n>(patterns: &'n [Bytes], channel: &[u8]) -> (Vec<&'n Bytes>, usize) {
    let mut given_up = 0;
    let matches = |name: &&Bytes| {
        let mut pattern = KeyPattern::of_channel(name);
        let matches = pattern.matches(channel);
        given_up += usize::from(pattern.is_exhausted());
        matches
    };
    let matching = patterns.iter().filter(matches).collect();
    (matching, given_up)
}

fn encode(message: &Message<'_>, pattern: Option<&Bytes>) -> Push {
    let Message {
        channel,
        payload,
        shard,
    } = message;
    let names = channel.len() + pattern.map_or(0, Bytes::len);
    let mut out = BytesMut::with_capacity(names + payload.len() + 80);
    write_length(&mut out, if pattern.is_some() { 4 } else { 3 });
    match pattern {
        Some(pattern) => {
            write_bulk(&mut out, b"pmessage");
            write_bulk(&mut out, pattern);
        }
        None if *shard => write_bulk(&mut out, b"smessage"),
        None => write_bulk(&mut out, b"message"),
    }
    write_bulk(&mut out, channel);
    write_bulk(&mut out, payload);
    Push::Message(out.freeze())
}

/// What one connection listens to. Dropping it ends that.
pub struct Listening {
    hub: Arc<Hub>,
    client: Arc<Client>,
    /// Per [`Kind`].
    own: [BTreeSet<Bytes>; 3],
    bytes: usize,
}

impl Listening {
    pub fn new(hub: &Arc<Hub>, client: &Arc<Client>) -> Self {
        Listening {
            hub: hub.clone(),
            client: client.clone(),
            own: Default::default(),
            bytes: 0,
        }
    }

    /// Begins to listen to a channel or a pattern.
    pub fn add(&mut self, kind: Kind, name: &[u8]) -> Result<(), TooMany> {
        if self.own[kind as usize].contains(name) {
            return Ok(());
        }
        let bytes = self.bytes + name.len() + OVERHEAD;
        if bytes > MAX_NAMES {
            return Err(TooMany);
        }
        self.bytes = bytes;
        let name = Bytes::copy_from_slice(name);
        self.hub.tables.lock().add(kind, &name, &self.client);
        self.own[kind as usize].insert(name);
        self.note(kind);
        Ok(())
    }

    /// Stops listening to a channel or a pattern.
    pub fn remove(&mut self, kind: Kind, name: &[u8]) {
        if let Some(name) = self.own[kind as usize].take(name) {
            self.hub.tables.lock().remove(kind, &name, self.client.id);
            self.bytes -= name.len() + OVERHEAD;
            self.note(kind);
        }
    }

    /// All channels or patterns of this kind.
    pub fn all(&self, kind: Kind) -> Vec<Bytes> {
        self.own[kind as usize].iter().cloned().collect()
    }

    pub fn count(&self, kind: Kind) -> usize {
        self.own[kind as usize].len()
    }

    pub fn is_empty(&self) -> bool {
        self.own.iter().all(BTreeSet::is_empty)
    }

    fn note(&self, kind: Kind) {
        let pushes = &self.client.pushes;
        pushes.set_listens_to(kind, self.count(kind));
        pushes.names.store(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        for kind in Kind::ALL {
            // One lock for each name, so that others get in between.
            for name in std::mem::take(&mut self.own[kind as usize]) {
                self.hub.tables.lock().remove(kind, &name, self.client.id);
            }
            self.client.pushes.set_listens_to(kind, 0);
        }
        self.client.pushes.names.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::command::clients::Clients;
    use crate::resp::Version;

    fn said<'m>(channel: &'m str, payload: &'m str) -> Message<'m> {
        Message {
            channel: channel.as_bytes(),
            payload: payload.as_bytes(),
            shard: false,
        }
    }

    fn connected(clients: &Clients) -> Arc<Client> {
        clients.add(Waker::noop(), None, None, 0)
    }

    fn pushed(client: &Client) -> String {
        let mut out = BytesMut::new();
        client.pushes.take(&mut out, usize::MAX, Version::Resp2);
        String::from_utf8(out.to_vec()).expect("text")
    }

    #[test]
    fn a_message_reaches_its_channel_and_the_patterns_that_match() {
        let (hub, clients) = (Arc::<Hub>::default(), Clients::default());
        let (one, other) = (connected(&clients), connected(&clients));
        let mut listening = Listening::new(&hub, &one);
        let mut others = Listening::new(&hub, &other);
        assert!(listening.add(Kind::Channel, b"news").is_ok() && listening.add(Kind::Channel, b"news").is_ok());
        assert!(others.add(Kind::Pattern, b"n*").is_ok() && others.add(Kind::Shard, b"news").is_ok());
        let (message, free) = (said("news", "hello"), OutputLimit::default());
        assert_eq!(hub.receivers(&message), 2);
        assert_eq!(hub.deliver(&message, &free).receivers, 2);
        assert_eq!(pushed(&one), "*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$5\r\nhello\r\n");
        assert_eq!(
            pushed(&other),
            "*4\r\n$8\r\npmessage\r\n$2\r\nn*\r\n$4\r\nnews\r\n$5\r\nhello\r\n"
        );
        let sharded = Message { shard: true, ..message };
        assert_eq!(hub.deliver(&sharded, &free).receivers, 1);
        assert_eq!(pushed(&other), "*3\r\n$8\r\nsmessage\r\n$4\r\nnews\r\n$5\r\nhello\r\n");
        assert!(pushed(&one).is_empty());
    }

    #[test]
    fn a_connection_that_is_gone_leaves_nothing_behind() {
        let (hub, clients) = (Arc::<Hub>::default(), Clients::default());
        let client = connected(&clients);
        let mut listening = Listening::new(&hub, &client);
        for (kind, name) in [(Kind::Channel, "c"), (Kind::Pattern, "p*"), (Kind::Shard, "s")] {
            assert!(listening.add(kind, name.as_bytes()).is_ok());
        }
        assert_eq!(Kind::ALL.map(|kind| hub.count(kind)), [1, 1, 1]);
        assert!(client.pushes.listens() && client.pushes.names.load(Ordering::Relaxed) > 0);
        listening.remove(Kind::Channel, b"c");
        assert_eq!(Kind::ALL.map(|kind| hub.count(kind)), [0, 1, 1]);
        assert_eq!(hub.all_listeners(), 2);
        drop(listening);
        assert_eq!(hub.all_listeners(), 0);
        assert_eq!(Kind::ALL.map(|kind| hub.count(kind)), [0, 0, 0]);
        assert!(!client.pushes.listens() && client.pushes.names.load(Ordering::Relaxed) == 0);
        assert_eq!(hub.deliver(&said("pc", "x"), &OutputLimit::default()).receivers, 0);
    }

    #[test]
    fn a_slow_listener_does_not_hold_others_up() {
        let (hub, clients) = (Arc::<Hub>::default(), Clients::default());
        let (slow, quick) = (connected(&clients), connected(&clients));
        let (mut one, mut other) = (Listening::new(&hub, &slow), Listening::new(&hub, &quick));
        assert!(one.add(Kind::Channel, b"c").is_ok() && other.add(Kind::Channel, b"c").is_ok());
        let limit = OutputLimit {
            hard: 1_000,
            ..OutputLimit::default()
        };
        let payload = "x".repeat(100);
        let mut closed = Vec::new();
        for _ in 0..20 {
            closed.extend(hub.deliver(&said("c", &payload), &limit).above_limit);
            assert!(pushed(&quick).contains(&payload));
        }
        assert_eq!(closed.iter().map(|client| client.id).collect::<Vec<_>>(), [slow.id]);
        assert!(slow.pushes.is_empty());
    }
}
