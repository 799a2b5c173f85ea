//! A list as a command sees and changes it: one record, or a head and a record for each item. What
//! is small is one record; what grows beyond that, or what several nodes write, is split.
//!
//! Of a split list nothing is copied: a page costs no more than its items. What is written rests on
//! the whole list ([`List::read`]), or only on what the command takes and on the end that it works
//! on ([`List::at_ends`]): so a node that puts in at one end does not hinder another that takes out
//! at the other.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use super::ends::End;
use crate::command::{Data, Fault};
use crate::database::hot::own;
use crate::database::transaction::{MOST_ELEMENTS, element_of};
use crate::database::{Form, Held, Indexed, Order};
use crate::model::order_key::{self, Near};
use crate::model::{Collection, Element, Items, Span, Split};

/// What it costs to look at an item of a split list, as bytes to go through.
const LOOKED_AT: usize = 100;
/// A trim that removes more items than this, and more than it leaves, writes those that are left
/// under a new version.
const MANY: usize = 1_000;

const ORDER: Order = Order::Name;

pub struct List<'k> {
    key: &'k [u8],
    /// The key holds something, be it a list without items.
    exists: bool,
    /// Of the key, absolute, milliseconds since the epoch.
    expire_at: Option<u64>,
    held: Kind,
}

enum Kind {
    /// It is written whole if it has changed.
    Packed { items: VecDeque<Bytes>, is_changed: bool },
    /// Each change is a record of its own.
    Split { split: Split, all: Indexed, is_less: bool },
}

impl<'k> List<'k> {
    /// The list at a key; an empty one if the key is missing. The error of Redis if it holds
    /// something else. What is written rests on all of it.
    pub fn read(data: &mut Data, key: &'k [u8]) -> Result<Self, Fault> {
        let entry = data.transaction.head(data.database, key)?;
        let Some(entry) = entry else {
            return Ok(List::missing(key));
        };
        let held = match entry.collection(Collection::List)? {
            Form::Packed(_) => Kind::packed(data.elements(key, &entry)?),
            // No node writes such a head. A change gives the list another version.
            Form::Split(split) if !split.bounds().is_none() => Kind::packed(data.elements(key, &entry)?),
            Form::Split(split) => {
                let all = data.transaction.all_of(data.database, key, split, (Some(ORDER), b""))?;
                Kind::split(split, all)
            }
        };
        Ok(List {
            key,
            exists: true,
            expire_at: entry.meta.expire_at,
            held,
        })
    }

    /// As [`List::read`], for a command that works on the ends. What it writes rests on what it
    /// takes out, and on no item having been put in at the ends that it works on.
    pub fn at_ends(data: &mut Data, key: &'k [u8]) -> Result<Self, Fault> {
        let entry = data.transaction.head_of_list(data.database, key)?;
        let Some(entry) = entry else {
            return Ok(List::missing(key));
        };
        let mut list = List {
            key,
            exists: true,
            expire_at: entry.meta.expire_at,
            held: Kind::packed(Items::default()),
        };
        list.held = match entry.collection(Collection::List)? {
            Form::Packed(_) => Kind::packed(data.elements(key, &entry)?),
            Form::Split(split) if !split.bounds().is_none() => Kind::packed(data.elements(key, &entry)?),
            Form::Split(split) => {
                let (database, transaction) = (data.database, &mut data.transaction);
                let all = match transaction.may_decide() {
                    // The length that a script sees can decide on what it writes elsewhere.
                    true => transaction.all_of(database, key, split, (Some(ORDER), b""))?,
                    false => transaction.elements_in_order_to_pick(database, key, split, (ORDER, b""))?,
                };
                if all.by_name().is_empty() && list.expire_at.is_some() {
                    // What comes now has another version, and no expiry.
                    transaction.all_of(database, key, split, (Some(ORDER), b""))?;
                    Kind::packed(Items::default())
                } else {
                    transaction.write_after_seen(database, key, split)?;
                    Kind::split(split, all)
                }
            }
        };
        if list.is_empty() {
            // The next list does not inherit it.
            list.expire_at = None;
        }
        Ok(list)
    }

    fn missing(key: &'k [u8]) -> Self {
        List {
            key,
            exists: false,
            expire_at: None,
            held: Kind::packed(Items::default()),
        }
    }

    pub fn len(&self) -> usize {
        match &self.held {
            Kind::Packed { items, .. } => items.len(),
            Kind::Split { all, .. } => all.by_name().len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn broken(&self, problem: &str) -> Fault {
        Fault::unreadable_element(self.key, problem)
    }

    fn missing_item(&self) -> Fault {
        self.broken("it is missing")
    }

    /// The item at a place, which is there.
    pub fn at(&self, data: &mut Data, place: usize) -> Result<Bytes, Fault> {
        match &self.held {
            Kind::Packed { items, .. } => items.get(place).cloned().ok_or_else(|| self.missing_item()),
            Kind::Split { all, .. } => {
                data.transaction.works(LOOKED_AT)?;
                let held = all.nth(ORDER, place).ok_or_else(|| self.missing_item())?;
                self.item_of(held)
            }
        }
    }

    fn item_of(&self, held: &Held) -> Result<Bytes, Fault> {
        Items::of(element_of(self.key, held)?).map_err(|problem| self.broken(problem))
    }

    /// The items at some places.
    pub fn items(&self, data: &mut Data, places: Range<usize>) -> Result<Vec<Bytes>, Fault> {
        places.map(|place| self.at(data, place)).collect()
    }

    /// The outcome rests on the list having no items: none may have come, and perhaps others take
    /// the last ones just now.
    pub fn rest_on_none(&self, data: &mut Data) -> Result<(), Fault> {
        let Kind::Split { split, .. } = &self.held else {
            return Ok(());
        };
        let (database, transaction) = (data.database, &mut data.transaction);
        transaction.rests_on_none_added(database, self.key, split, Span::ALL);
        transaction.depend_on_seen(database, self.key, split)
    }

    /// What is written rests on the list having an item, which it has.
    pub fn rest_on_an_item(&self, data: &mut Data) {
        if let Kind::Split { split, all, .. } = &self.held
            && let Some(held) = all.nth(ORDER, 0)
        {
            data.transaction
                .rests_on_seen_element(data.database, self.key, split, &held.name);
        }
    }
}

impl Kind {
    fn packed(items: Items) -> Kind {
        Kind::Packed {
            items: items.0,
            is_changed: false,
        }
    }

    fn split(split: &Split, all: Indexed) -> Kind {
        Kind::Split {
            split: split.clone(),
            all,
            is_less: false,
        }
    }
}

// ---- changes ----

impl List<'_> {
    /// Puts items in at an end, one after the other.
    pub fn push(&mut self, data: &mut Data, end: End, new: &[&[u8]]) -> Result<(), Fault> {
        let (split, all) = match &mut self.held {
            Kind::Packed { items, is_changed } => {
                *is_changed = true;
                new.iter().for_each(|item| end.push(items, own(item)));
                return Ok(());
            }
            Kind::Split { split, all, .. } => (split.clone(), all),
        };
        let (database, key) = (data.database, self.key);
        let outer = match end {
            End::Left => all.nth(ORDER, 0),
            End::Right => all.by_name().len().checked_sub(1).and_then(|last| all.nth(ORDER, last)),
        };
        let mut outer: Option<Vec<u8>> = outer.map(|held| held.name.to_vec());
        let span = outer.as_deref().map_or(Span::ALL, |outer| end.beyond(outer));
        data.transaction.rests_on_none_added(database, key, &split, span);
        for (done, item) in new.iter().enumerate() {
            let next = match (&outer, end) {
                (None, _) => Some(order_key::FIRST.to_be_bytes().into()),
                (Some(outer), End::Left) => order_key::before(outer),
                (Some(outer), End::Right) => order_key::after(outer),
            };
            let Some(next) = next.filter(|next| next.len() <= order_key::LONGEST) else {
                self.refresh(data)?;
                self.take_apart(data)?;
                return self.push(data, end, &new[done..]);
            };
            put(data, key, &split, &next, Some(item))?;
            outer = Some(next);
        }
        self.refresh(data)
    }

    /// Takes up to so many items out. They come in the order in which they are taken.
    pub fn pop(&mut self, data: &mut Data, end: End, count: usize) -> Result<Vec<Bytes>, Fault> {
        let len = self.len();
        let count = count.min(len);
        if count == 0 {
            self.rest_on_none(data)?;
            return Ok(Vec::new());
        }
        let places = match end {
            End::Left => 0..count,
            End::Right => len - count..len,
        };
        if let Kind::Split { split, all, .. } = &self.held {
            let innermost = match end {
                End::Left => all.nth(ORDER, count - 1),
                End::Right => all.nth(ORDER, len - count),
            };
            let span = innermost.map_or(Span::ALL, |held| end.beyond(&held.name));
            data.transaction
                .rests_on_none_added(data.database, self.key, split, span);
        }
        let mut taken = self.items(data, places.clone())?;
        if matches!(end, End::Right) {
            taken.reverse();
        }
        self.remove(data, places)?;
        Ok(taken)
    }

    /// Replaces the item at a place, which is there.
    pub fn set(&mut self, data: &mut Data, place: usize, item: &[u8]) -> Result<(), Fault> {
        match &mut self.held {
            Kind::Packed { items, is_changed } => {
                *is_changed = true;
                items[place] = own(item);
                Ok(())
            }
            Kind::Split { split, all, .. } => {
                let name = all.nth(ORDER, place).map(|held| held.name.clone());
                let Some(name) = name else {
                    return Err(self.missing_item());
                };
                put(data, self.key, split, &name, Some(item))?;
                self.refresh(data)
            }
        }
    }

    /// Puts an item before the one at a place, or after it. The command has read the whole list.
    pub fn insert(&mut self, data: &mut Data, place: usize, near: Near, item: &[u8]) -> Result<(), Fault> {
        let at = match near {
            Near::Lower => place,
            Near::Upper => place + 1,
        };
        let (split, all) = match &mut self.held {
            Kind::Packed { items, is_changed } => {
                *is_changed = true;
                items.insert(at, own(item));
                return Ok(());
            }
            Kind::Split { split, all, .. } => (split, all),
        };
        let name = |place: usize| all.nth(ORDER, place).map(|held| held.name.clone());
        let before = at.checked_sub(1).and_then(&name);
        let key = match (before, name(at)) {
            (Some(before), Some(after)) => order_key::between(&before, Some(&after), near),
            (Some(before), None) => order_key::after(&before),
            (None, Some(after)) => order_key::before(&after),
            (None, None) => return Err(self.missing_item()),
        };
        match key.filter(|key| key.len() <= order_key::LONGEST) {
            Some(key) => {
                put(data, self.key, split, &key, Some(item))?;
                self.refresh(data)
            }
            None => {
                self.take_apart(data)?;
                self.insert(data, place, near, item)
            }
        }
    }

    /// Removes the items at some places, which are there.
    pub fn remove(&mut self, data: &mut Data, places: Range<usize>) -> Result<(), Fault> {
        match &mut self.held {
            Kind::Packed { items, is_changed } => {
                *is_changed |= !places.is_empty();
                items.drain(places);
                Ok(())
            }
            Kind::Split { split, all, is_less } => {
                *is_less |= !places.is_empty();
                for place in places {
                    if let Some(held) = all.nth(ORDER, place) {
                        data.transaction
                            .rests_on_seen_element(data.database, self.key, split, &held.name);
                        put(data, self.key, split, &held.name, None)?;
                    }
                }
                self.refresh(data)
            }
        }
    }

    /// Removes the items at these places, which are in their order.
    pub fn remove_each(&mut self, data: &mut Data, places: &[usize]) -> Result<(), Fault> {
        if let Kind::Packed { items, is_changed } = &mut self.held {
            *is_changed |= !places.is_empty();
            let (mut place, mut gone) = (0, places.iter().peekable());
            items.retain(|_| {
                let goes = gone.next_if_eq(&&place).is_some();
                place += 1;
                !goes
            });
            return Ok(());
        }
        // From the last one on, so that places before stay.
        places
            .iter()
            .rev()
            .try_for_each(|place| self.remove(data, *place..place + 1))
    }

    /// Removes all items but those at some places. The command has read the whole list.
    pub fn keep(&mut self, data: &mut Data, places: Range<usize>) -> Result<(), Fault> {
        let len = self.len();
        let removed = len - places.len();
        let fits = places.len() <= MOST_ELEMENTS;
        if matches!(self.held, Kind::Split { .. }) && removed > MANY.max(places.len()) && fits {
            let items = self.items(data, places)?.into();
            self.held = Kind::Packed {
                items,
                is_changed: true,
            };
            return Ok(());
        }
        self.remove(data, places.end..len)?;
        self.remove(data, 0..places.start)
    }

    /// Takes in what was written.
    fn refresh(&mut self, data: &mut Data) -> Result<(), Fault> {
        if let Kind::Split { split, all, .. } = &mut self.held {
            *all = data
                .transaction
                .elements_in_order_to_pick(data.database, self.key, split, (ORDER, b""))?;
        }
        Ok(())
    }

    /// All items, to be written again whole: there is no room for a key between two others, or
    /// it would be too long. An error if that is more than one transaction can write.
    fn take_apart(&mut self, data: &mut Data) -> Result<(), Fault> {
        if let Kind::Split { split, .. } = &self.held {
            if self.len() > MOST_ELEMENTS {
                return Err("ERR this list has no room for an item there, and is too long to be written again".into());
            }
            data.transaction
                .all_of(data.database, self.key, split, (Some(ORDER), b""))?;
            let items = self.items(data, 0..self.len())?.into();
            self.held = Kind::Packed {
                items,
                is_changed: true,
            };
        }
        Ok(())
    }

    /// Writes what is not written yet. The key goes with its last item.
    pub fn write(self, data: &mut Data) -> Result<(), Fault> {
        let (database, key) = (data.database, self.key);
        match self.held {
            Kind::Packed { is_changed: false, .. } => Ok(()),
            Kind::Packed { items, .. } => {
                let is_contended = data.transaction.is_contended(database, key);
                let is_queue = is_contended && self.expire_at.is_none() && data.config.may_split();
                if is_queue && items.is_empty() {
                    // The next item may come from another node.
                    data.transaction.put_split(database, key, Collection::List, b"", None);
                    data.transaction.note_emptied(database, key);
                } else if self.exists || !items.is_empty() {
                    // What did not exist before is not deleted.
                    data.put_items(key, Items(items), self.expire_at, is_contended)?;
                }
                Ok(())
            }
            Kind::Split { split, all, is_less } => {
                if !is_less || !all.by_name().is_empty() {
                    return Ok(());
                }
                if self.expire_at.is_none() && !data.transaction.is_only_writer() {
                    // The next item may come from another node.
                    data.transaction.note_emptied(database, key);
                } else if !data.transaction.keeps_elements(database, key, &split)? {
                    data.delete(key);
                }
                Ok(())
            }
        }
    }
}

/// Writes an item of a split list, or removes it.
fn put(data: &mut Data, key: &[u8], split: &Split, name: &[u8], item: Option<&[u8]>) -> Result<(), Fault> {
    let element = item.map(|item| Element::new(item, None));
    data.transaction.put_element(data.database, key, split, name, element);
    data.transaction.check_size()
}

impl End {
    /// What is at this end of an item, and the item itself.
    fn beyond(self, name: &[u8]) -> Span {
        match self {
            End::Left => Span::up_to(name),
            End::Right => Span::since(name),
        }
    }
}

impl Data<'_, '_> {
    /// Gives a key a list: one record, or a record for each item if it is large or contended. An
    /// empty one deletes the key.
    pub fn put_items(
        &mut self,
        key: &[u8],
        items: Items,
        expire_at: Option<u64>,
        is_contended: bool,
    ) -> Result<(), Fault> {
        let len = items.0.len();
        match items.pack() {
            Some(packed) if self.is_to_split(&packed, len, is_contended) => {
                let database = self.database;
                let split = self
                    .transaction
                    .put_split(database, key, Collection::List, b"", expire_at);
                for (place, item) in (order_key::FIRST..).zip(&items.0) {
                    put(self, key, &split, &place.to_be_bytes(), Some(item))?;
                }
            }
            packed => self.put_packed(key, packed, expire_at),
        }
        Ok(())
    }
}
