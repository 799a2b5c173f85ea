//! Collections that come into memory: what memory lacks is read from the store, and all elements
//! are put in an order. Both take a while. No lock is held meanwhile, and what becomes visible in
//! that time is merged at the end. Elements that the head excludes leave memory again.

use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;

use super::{All, Elements, Held, Indexed, Loaded, Order};
use crate::database::hot::At;

/// While this lives, nothing leaves memory of the collection that is being filled in.
pub struct Fill<'e> {
    elements: &'e Elements,
    prefix: &'e [u8],
    /// The store had everything before this place when it began.
    stored: At,
    epoch: u64,
}

impl Drop for Fill<'_> {
    fn drop(&mut self) {
        let mut shard = self.elements.shard(self.prefix);
        if let Some(loaded) = shard.collections.get_mut(self.prefix) {
            loaded.fills = loaded.fills.saturating_sub(1);
            match loaded.is_unused() {
                true => drop(shard.collections.swap_remove(self.prefix)),
                // What was kept may be more than there is room for.
                false => self.elements.tidy(&mut shard, self.prefix, self.stored.offset),
            }
        }
    }
}

/// All elements of a collection in an order.
pub enum InOrder<'e> {
    Here(All),
    /// They have to be put in order first.
    ToMake(Making<'e>),
}

/// All elements of a collection as they were when it began to put them in order. Changes are noted
/// while this lives.
pub struct Making<'e> {
    fill: Fill<'e>,
    order: Order,
    elements: Indexed,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let mut shard = self.fill.elements.shard(self.fill.prefix);
        if let Some(loaded) = shard.collections.get_mut(self.fill.prefix) {
            loaded.makers = loaded.makers.saturating_sub(1);
            if loaded.makers == 0 {
                loaded.changed = HashSet::new();
            }
        }
    }
}

impl Elements {
    /// All elements of a collection from this name on, and perhaps others; `None` if memory has not
    /// all of them.
    pub fn all(&self, prefix: &[u8], from: &[u8], pending: bool) -> Option<All> {
        let mut shard = self.shard(prefix);
        let loaded = shard.collections.get_mut(prefix).filter(|loaded| loaded.covers(from))?;
        loaded.touched = true;
        Some(loaded.all(pending))
    }

    /// This node makes a collection, whose version nobody else knows: so far it has no elements.
    pub fn begin<'e>(&'e self, prefix: &'e [u8], stored: At) -> Fill<'e> {
        let fill = self.fill(prefix, stored);
        self.shard(prefix).of(prefix).from = Some(Box::default());
        fill
    }

    /// The name from which on memory has all elements of a collection.
    pub fn covered_from(&self, prefix: &[u8]) -> Option<Box<[u8]>> {
        self.shard(prefix).collections.get(prefix)?.from.clone()
    }

    /// Begins to fill in what memory lacks of a collection. What becomes visible from now on is
    /// kept. `stored`: the store has everything before this place in the collection's partition.
    pub fn fill<'e>(&'e self, prefix: &'e [u8], stored: At) -> Fill<'e> {
        let mut shard = self.shard(prefix);
        let loaded = shard.of(prefix);
        loaded.partition = stored.partition;
        loaded.fills += 1;
        Fill {
            elements: self,
            prefix,
            stored,
            epoch: loaded.epoch,
        }
    }

    /// As [`Elements::all`], in an order. To put them in order takes a while, and no lock is held.
    pub fn in_order<'e>(
        &'e self,
        prefix: &'e [u8],
        (order, from): (Order, &[u8]),
        stored: At,
        pending: bool,
    ) -> Option<InOrder<'e>> {
        let mut shard = self.shard(prefix);
        let loaded = shard.collections.get_mut(prefix).filter(|loaded| loaded.covers(from))?;
        loaded.touched = true;
        if loaded.shown.in_order(order).is_some() {
            return Some(InOrder::Here(loaded.all(pending)));
        }
        loaded.makers += 1;
        loaded.fills += 1;
        let epoch = loaded.epoch;
        Some(InOrder::ToMake(Making {
            fill: Fill {
                elements: self,
                prefix,
                stored,
                epoch,
            },
            order,
            elements: loaded.shown.clone(),
        }))
    }
}

impl Elements {
    /// Forgets elements that the head of their collection excludes for ever.
    pub fn forget_excluded(&self, prefix: &[u8], names: &[Box<[u8]>]) {
        let mut shard = self.shard(prefix);
        let Some(loaded) = shard.collections.get_mut(prefix) else {
            return;
        };
        for name in names {
            if loaded.makers > 0 {
                loaded.changed.insert(name.clone());
            }
            let place = loaded.shown.weight_of_place();
            let old = loaded.shown.remove(name);
            self.release(old.map_or(0, |old| old.weight() + place));
            loaded.refresh(name);
        }
        if loaded.is_unused() {
            shard.collections.swap_remove(prefix);
        }
    }
}

impl Fill<'_> {
    /// Keeps one element that the store had, for the next reader.
    pub fn keep(self, held: Held) {
        let mut shard = self.elements.shard(self.prefix);
        let loaded = shard.of(self.prefix);
        if loaded.epoch == self.epoch {
            loaded.stored = loaded.stored.max(self.stored.offset);
            self.merge(loaded, held);
        }
    }

    fn merge(&self, loaded: &mut Loaded, held: Held) {
        let at = At {
            partition: self.stored.partition,
            offset: held.offset,
        };
        if loaded.known(&held.name).is_none_or(|known| known < at.offset) {
            self.elements.keep(loaded, &held.name, at, Some(held.value));
        }
    }

    /// Merges what the store had from this name on. From now on all elements from there on are in
    /// memory, as long as there is room. `None`: what was read is of no use, since all was
    /// forgotten meanwhile.
    pub fn complete(self, found: Vec<Held>, from: &[u8], pending: bool) -> Option<All> {
        let elements = self.elements;
        let mut shard = elements.shard(self.prefix);
        let loaded = shard.of(self.prefix);
        if loaded.epoch != self.epoch {
            return None;
        }
        if !loaded.covers(from) {
            for held in found {
                self.merge(loaded, held);
            }
            loaded.from = Some(from.into());
            // It may have been made of what was here.
            loaded.ahead = None;
        }
        loaded.touched = true;
        loaded.stored = loaded.stored.max(self.stored.offset);
        Some(loaded.all(pending))
    }
}

impl Making<'_> {
    /// What [`Making::put_in_order`] costs, as bytes to go through.
    pub fn work(&self) -> usize {
        self.elements.work()
    }

    /// Puts the elements in order as they were.
    pub fn put_in_order(&mut self) {
        self.elements.put_in_order(self.order);
    }

    /// Brings the order up to date, and keeps it in memory. `None`: it is of no use, since all was
    /// forgotten meanwhile.
    pub fn complete(mut self, pending: bool) -> Option<All> {
        let Fill {
            elements,
            prefix,
            epoch,
            ..
        } = self.fill;
        let mut shard = elements.shard(prefix);
        let loaded = shard.of(prefix);
        if loaded.epoch != epoch || loaded.from.is_none() {
            return None;
        }
        if loaded.shown.in_order(self.order).is_none() {
            let earlier = std::mem::take(&mut self.elements);
            let changed = std::mem::take(&mut loaded.changed);
            loaded.shown.take_order(earlier, changed.iter().map(|name| &name[..]));
            loaded.changed = changed;
            let weight = loaded.shown.weight_of_order();
            elements.budget.used.fetch_add(weight, Relaxed);
            // It is made again, in order.
            loaded.ahead = None;
        }
        loaded.touched = true;
        Some(loaded.all(pending))
    }
}
