//! Consumers of groups of streams, as this node has seen them: there is no record of a consumer.
//! One that has entries pending is known from those. Here is who else has asked for entries, and
//! when.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::model::{ElementName, StreamPart};

/// The most consumers that are remembered, and the most bytes of their names and their groups'.
/// Those that were not seen for longest go first.
const MOST: usize = 100_000;
const MOST_BYTES: usize = 16 << 20;
/// A consumer is not remembered if its name and that of its group have more bytes together.
const LONGEST: usize = 2_048;

/// When a consumer was seen, milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenConsumer {
    /// It has asked for entries.
    pub seen: u64,
    /// It was given some.
    pub active: Option<u64>,
}

/// A group of a stream: the number of the database, what the names of the stream's elements begin
/// with, and the group's name.
pub type GroupName = (u16, Bytes, Bytes);

/// What a command notes, once it has been computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumerNote {
    Seen {
        consumer: Bytes,
        at: u64,
        active: bool,
    },
    Gone {
        consumer: Bytes,
    },
    /// The group is no more.
    GroupGone,
}

pub type ByName = BTreeMap<Bytes, SeenConsumer>;

#[derive(Default)]
pub struct Consumers {
    groups: Mutex<Groups>,
}

#[derive(Default)]
struct Groups {
    by_group: HashMap<GroupName, Arc<ByName>>,
    count: usize,
    bytes: usize,
}

fn bytes_of(group: &GroupName) -> usize {
    group.1.len() + group.2.len()
}

impl ConsumerNote {
    /// Whether it can be remembered.
    pub fn fits(&self, group: &GroupName) -> bool {
        match self {
            ConsumerNote::Seen { consumer, .. } => bytes_of(group) + consumer.len() <= LONGEST,
            ConsumerNote::Gone { .. } | ConsumerNote::GroupGone => true,
        }
    }
}

/// Brings what is known of a group's consumers up to date.
pub fn note(consumers: &mut ByName, note: &ConsumerNote) {
    match note {
        ConsumerNote::Seen { consumer, at, active } => {
            let active = active.then_some(*at);
            let known = consumers.entry(consumer.clone());
            let known = known.or_insert(SeenConsumer { seen: *at, active });
            known.seen = known.seen.max(*at);
            known.active = known.active.max(active);
        }
        ConsumerNote::Gone { consumer } => drop(consumers.remove(consumer)),
        ConsumerNote::GroupGone => consumers.clear(),
    }
}

impl Consumers {
    /// The consumers of a group that were seen.
    pub fn of(&self, group: &GroupName) -> Arc<ByName> {
        self.groups.lock().by_group.get(group).cloned().unwrap_or_default()
    }

    /// Whether this consumer of a group was seen.
    pub fn has(&self, group: &GroupName, consumer: &[u8]) -> bool {
        let groups = self.groups.lock();
        let of_group = groups.by_group.get(group);
        of_group.is_some_and(|consumers| consumers.contains_key(consumer))
    }

    /// Another node, or another producer, has removed an element. If it was a group, its consumers
    /// have gone with it: a group of that name that is made later has others.
    pub fn element_removed(&self, database: u16, record_key: &[u8]) {
        let Some(name) = ElementName::parse(record_key) else {
            return;
        };
        let Ok(StreamPart::Group(group)) = StreamPart::parse(name.sub_key) else {
            return;
        };
        let mut groups = self.groups.lock();
        if groups.count > 0 {
            let stream = ElementName::prefix(name.key, name.version);
            let group = (database, stream, Bytes::copy_from_slice(group));
            groups.note(&group, &ConsumerNote::GroupGone);
        }
    }

    pub fn note(&self, notes: &[(GroupName, ConsumerNote)]) {
        if notes.is_empty() {
            return;
        }
        let mut groups = self.groups.lock();
        for (group, what) in notes {
            groups.note(group, what);
        }
        while groups.count > MOST || groups.bytes > MOST_BYTES {
            groups.forget_oldest();
        }
    }
}

impl Groups {
    fn note(&mut self, group: &GroupName, what: &ConsumerNote) {
        let known = self.by_group.get_mut(group);
        match (what, known) {
            (ConsumerNote::Seen { consumer, .. }, Some(consumers)) => {
                if !consumers.contains_key(consumer) {
                    self.count += 1;
                    self.bytes += consumer.len();
                }
                note(Arc::make_mut(consumers), what);
            }
            (ConsumerNote::Seen { consumer, .. }, None) => {
                let mut consumers = ByName::new();
                note(&mut consumers, what);
                self.by_group.insert(group.clone(), Arc::new(consumers));
                self.count += 1;
                self.bytes += bytes_of(group) + consumer.len();
            }
            (ConsumerNote::Gone { consumer }, Some(consumers)) => {
                if Arc::make_mut(consumers).remove(consumer).is_some() {
                    self.count -= 1;
                    self.bytes -= consumer.len();
                }
                if consumers.is_empty() {
                    self.by_group.remove(group);
                    self.bytes -= bytes_of(group);
                }
            }
            (ConsumerNote::GroupGone, Some(_)) => {
                let consumers = self.by_group.remove(group).unwrap_or_default();
                self.count -= consumers.len();
                self.bytes -= bytes_of(group) + consumers.keys().map(Bytes::len).sum::<usize>();
            }
            (ConsumerNote::Gone { .. } | ConsumerNote::GroupGone, None) => {}
        }
    }

    /// Forgets half of them.
    fn forget_oldest(&mut self) {
        let all = self.by_group.values().flat_map(|consumers| consumers.values());
        let mut times: Vec<u64> = all.map(|consumer| consumer.seen).collect();
        let middle = times.len() / 2;
        let (_, limit, _) = times.select_nth_unstable(middle);
        let (limit, mut left) = (*limit, times.len() - middle);
        self.by_group.retain(|_, consumers| {
            Arc::make_mut(consumers).retain(|_, consumer| {
                let stays = consumer.seen >= limit && left > 0;
                left -= usize::from(stays);
                stays
            });
            !consumers.is_empty()
        });
        self.count = self.by_group.values().map(|consumers| consumers.len()).sum();
        let names = self
            .by_group
            .values()
            .flat_map(|consumers| consumers.keys())
            .map(Bytes::len);
        self.bytes = self.by_group.keys().map(bytes_of).sum::<usize>() + names.sum::<usize>();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{StreamId, Version};

    fn group(name: &str) -> GroupName {
        (
            0,
            Bytes::from_static(b"stream"),
            Bytes::copy_from_slice(name.as_bytes()),
        )
    }

    fn seen(consumer: impl ToString, at: u64, active: bool) -> ConsumerNote {
        let consumer = consumer.to_string().into();
        ConsumerNote::Seen { consumer, at, active }
    }

    #[test]
    fn what_was_noted_is_known_until_it_is_gone() {
        let consumers = Consumers::default();
        let note = |note| consumers.note(&[(group("g"), note)]);
        note(seen("c", 5, true));
        note(seen("c", 7, false));
        note(seen("d", 6, false));
        let [c, d] = ["c", "d"].map(|name| consumers.of(&group("g")).get(name.as_bytes()).copied());
        let at = |seen, active| Some(SeenConsumer { seen, active });
        assert_eq!((c, d), (at(7, Some(5)), at(6, None)));
        assert_eq!(*consumers.of(&group("h")), ByName::new());
        note(ConsumerNote::Gone { consumer: "c".into() });
        assert_eq!(consumers.of(&group("g")).len(), 1);
        note(ConsumerNote::GroupGone);
        assert_eq!(*consumers.of(&group("g")), ByName::new());
        let groups = consumers.groups.lock();
        assert_eq!((groups.count, groups.bytes), (0, 0));
    }

    #[test]
    fn a_group_that_others_remove_has_no_consumers() {
        let consumers = Consumers::default();
        let (version, key) = (Version::new(0), &b"s"[..]);
        let prefix = ElementName::prefix(key, version);
        let [g, h] = ["g", "h"].map(|name| (0, prefix.clone(), Bytes::from(name)));
        consumers.note(&[(g.clone(), seen("c", 1, false)), (h.clone(), seen("c", 1, false))]);
        let remove = |part: StreamPart| {
            let sub_key = &part.sub_key()[..];
            let name = ElementName { key, version, sub_key };
            consumers.element_removed(0, &name.record_key());
        };
        remove(StreamPart::Pending(b"g", StreamId::MIN));
        assert_eq!(consumers.of(&g).len(), 1);
        remove(StreamPart::Group(b"g"));
        assert_eq!((consumers.of(&g).len(), consumers.of(&h).len()), (0, 1));
    }

    #[test]
    fn their_names_are_bounded() {
        let consumers = Consumers::default();
        let name = |at: u64| format!("{at:0width$}", width = LONGEST - 100);
        let last = 3 * (MOST_BYTES / LONGEST) as u64;
        for at in 0..=last {
            consumers.note(&[(group("g"), seen(name(at), at, false))]);
        }
        let of = consumers.of(&group("g"));
        let bytes: usize = of.keys().map(Bytes::len).sum();
        let groups = consumers.groups.lock();
        assert_eq!((groups.count, groups.bytes), (of.len(), bytes + bytes_of(&group("g"))));
        assert!(
            (MOST_BYTES / 3..=MOST_BYTES).contains(&groups.bytes),
            "{}",
            groups.bytes
        );
        assert!(of.contains_key(name(last).as_bytes()), "the newest is known");
        assert!(!seen(name(0).repeat(2), 0, false).fits(&group("g")));
    }

    #[test]
    fn there_is_a_bound() {
        let consumers = Consumers::default();
        for at in 0..=MOST as u64 {
            consumers.note(&[(group(&(at % 10).to_string()), seen(at, at, false))]);
        }
        let count = consumers.groups.lock().count;
        assert!((MOST / 3..MOST).contains(&count), "{count}");
        let newest = MOST as u64;
        let of = consumers.of(&group(&(newest % 10).to_string()));
        assert!(of.contains_key(newest.to_string().as_bytes()), "the newest is known");
    }
}
