//! Consumers of groups of streams, as this node has seen them: there is no record of a consumer.
//! One that has entries pending is known from those. Here is who else has asked for entries, and
//! when.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use parking_lot::Mutex;

/// The most consumers that are remembered. Those that were not seen for longest go first.
const MOST: usize = 100_000;

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
#[derive(Clone, Debug)]
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
    by_group: HashMap<GroupName, ByName>,
    count: usize,
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
    pub fn of(&self, group: &GroupName) -> ByName {
        self.groups.lock().by_group.get(group).cloned().unwrap_or_default()
    }

    pub fn note(&self, notes: &[(GroupName, ConsumerNote)]) {
        if notes.is_empty() {
            return;
        }
        let mut groups = self.groups.lock();
        for (group, what) in notes {
            let consumers = groups.by_group.entry(group.clone()).or_default();
            let before = consumers.len();
            note(consumers, what);
            let after = consumers.len();
            if after == 0 {
                groups.by_group.remove(group);
            }
            groups.count = groups.count + after - before;
        }
        if groups.count > MOST {
            groups.forget_oldest();
        }
    }
}

impl Groups {
    /// Forgets half of them.
    fn forget_oldest(&mut self) {
        let all = self.by_group.values().flat_map(|consumers| consumers.values());
        let mut times: Vec<u64> = all.map(|consumer| consumer.seen).collect();
        let middle = times.len() / 2;
        let (_, limit, _) = times.select_nth_unstable(middle);
        let (limit, mut left) = (*limit, MOST / 2);
        self.by_group.retain(|_, consumers| {
            consumers.retain(|_, consumer| {
                let stays = consumer.seen >= limit && left > 0;
                left -= usize::from(stays);
                stays
            });
            !consumers.is_empty()
        });
        self.count = self.by_group.values().map(BTreeMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(consumers.of(&group("h")), ByName::new());
        note(ConsumerNote::Gone { consumer: "c".into() });
        assert_eq!(consumers.of(&group("g")).len(), 1);
        note(ConsumerNote::GroupGone);
        assert_eq!(consumers.of(&group("g")), ByName::new());
        assert_eq!(consumers.groups.lock().count, 0);
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
