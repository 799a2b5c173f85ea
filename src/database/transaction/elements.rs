//! How a command reads and writes the elements of a split collection. What it read is what its
//! write rests on: an element, or all of them. So two nodes that write different fields of one hash
//! do not hinder each other.

use bytes::Bytes;

use super::compute::known as newest;
use super::known_elements::Whole;
use super::{LINEAR, Transaction, View};
use crate::database::elements::{self, All, Held, Indexed, Known, Order, Writes, has_live};
use crate::database::fault::{Fault, STORE_READ, Wait};
use crate::database::hot::At;
use crate::database::write::{Item, Write};
use crate::log::Read;
use crate::model::{
    Collection, Element, ElementName, Entry, Meta, Span, Split, State, StreamPart, Tree, Value, Version,
};
use std::sync::Arc;

/// The most elements that are read one by one while nothing else may become visible.
const MOST_AT_ONCE: usize = 64;

/// All elements of a collection from one on, as they were read and with what the transaction has
/// written.
#[derive(Clone)]
pub(super) struct SeenAll {
    elements: Indexed,
    /// What the transaction has written or removed since, and `elements` does not have yet. Most
    /// commands write last, and what they write need not be put among all elements for them.
    written: Vec<(Bytes, Option<Element>)>,
    /// Those with lower names may be missing.
    from: Bytes,
    /// What the outcome rests on once it depends on all of them: this, and the writes under way
    /// that they come from.
    rest: Option<Read>,
    depends: Writes,
}

/// How many elements of one collection a transaction has written or removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Own {
    all: usize,
    /// Those that it has written, and that have not expired.
    live: usize,
}

impl SeenAll {
    /// Brings `elements` up to date.
    fn put_written(&mut self) {
        for (sub_key, element) in self.written.drain(..) {
            put(&mut self.elements, &sub_key, element.map(Value::Element));
        }
    }
}

impl Own {
    fn note(&mut self, is_live: bool, is_there: bool) {
        for (count, counts) in [(&mut self.all, true), (&mut self.live, is_live)] {
            match is_there {
                _ if !counts => {}
                true => *count += 1,
                false => *count -= 1,
            }
        }
    }
}

pub(super) fn record_key(key: &[u8], split: &Split, sub_key: &[u8]) -> Bytes {
    let version = split.version();
    ElementName { key, version, sub_key }.record_key()
}

impl Transaction<'_> {
    /// What a key holds. A split collection may have no elements any more: then it does not exist.
    /// For commands that look at single elements, and so find that out or need not know it.
    pub fn head(&mut self, database: u16, key: &[u8]) -> Result<Option<Entry>, Fault> {
        let mut entry = self.peek_head(database, key)?;
        // A list that serves as a queue is empty again and again.
        if let Some(Value::Split(split)) = entry.as_ref().map(|entry| &entry.value)
            && split.of() == Collection::List
            && !self.keeps_elements(database, key, split)?
        {
            entry = None;
        }
        if self.counts {
            match entry {
                Some(_) => self.lookups.hits += 1,
                None => self.lookups.misses += 1,
            }
        }
        Ok(entry)
    }

    /// As [`Transaction::head`], but a list without items is there, too. For commands that write
    /// items.
    pub fn head_of_list(&mut self, database: u16, key: &[u8]) -> Result<Option<Entry>, Fault> {
        self.peek_head(database, key)
    }

    /// An element of the split collection that a key holds, unless it has expired.
    pub fn element(
        &mut self,
        database: u16,
        key: &[u8],
        split: &Split,
        sub_key: &[u8],
    ) -> Result<Option<Element>, Fault> {
        let value = self.element_value(database, key, split, sub_key)?;
        match value.filter(|value| value.is_live(self.now)) {
            None => Ok(None),
            Some(Value::Element(element)) => Ok(Some(element)),
            Some(other) => Err(unreadable(key, &other)),
        }
    }

    /// As [`Transaction::element`], for several elements as they are at one moment.
    pub fn some_elements(
        &mut self,
        database: u16,
        key: &[u8],
        split: &Split,
        sub_keys: &[&[u8]],
    ) -> Result<Vec<Option<Element>>, Fault> {
        if sub_keys.len() > MOST_AT_ONCE {
            self.elements(database, key, split)?;
        }
        let service = self.service;
        let (pending, most) = (self.view != View::Committed, self.turn.work());
        for sub_key in sub_keys {
            // From here on memory has it. It is not read from the store while others wait.
            service.element(database, &record_key(key, split, sub_key), pending, most)?;
        }
        // Several elements can become visible at once.
        let _one_moment = service.groups.hold_again();
        let elements = sub_keys.iter();
        elements
            .map(|sub_key| self.element(database, key, split, sub_key))
            .collect()
    }

    /// True if there is such an element, be it one that cannot be read, and it has not expired.
    pub fn has_element(&mut self, database: u16, key: &[u8], split: &Split, sub_key: &[u8]) -> Result<bool, Fault> {
        let value = self.element_value(database, key, split, sub_key)?;
        Ok(value.is_some_and(|value| value.is_live(self.now)))
    }

    /// True if there is such an element, and it has expired.
    pub fn has_expired_element(
        &mut self,
        database: u16,
        key: &[u8],
        split: &Split,
        sub_key: &[u8],
    ) -> Result<bool, Fault> {
        let value = self.element_value(database, key, split, sub_key)?;
        Ok(value.is_some_and(|value| !value.is_live(self.now)))
    }

    /// What an element holds, also if it has expired.
    fn element_value(
        &mut self,
        database: u16,
        key: &[u8],
        split: &Split,
        sub_key: &[u8],
    ) -> Result<Option<Value>, Fault> {
        if split.excludes(sub_key) {
            return Ok(None);
        }
        let name = record_key(key, split, sub_key);
        if let Some(place) = self.place(database, &name) {
            return Ok(self.items[place].element_value());
        }
        if let Some(all) = self.trees.get(&(database, record_key(key, split, b"")))
            && *sub_key >= *all.from
        {
            let held = all.elements.by_name().get(Held::named(sub_key)).cloned();
            self.rests_on_seen_element(database, key, split, sub_key);
            self.depend_on_element(database, key, split, (&name, held.as_ref()))?;
            return Ok(held.map(|held| held.value));
        }
        self.looks();
        // In this order: what is read is at least as new as what was applied before.
        let applied = self
            .is_conditional()
            .then(|| self.service.applied_at_home(database, &name));
        let service = self.service;
        let (pending, most) = (self.view != View::Committed, self.turn.work());
        let mut seen = service.element(database, &name, pending, most)?;
        // A head and its elements become visible one after the other. What is missing is looked for
        // once more when that is over.
        let one_moment = seen.value.is_none().then(|| service.groups.hold_again());
        if one_moment.is_some() {
            seen = service.element(database, &name, pending, most)?;
        }
        if seen.from_store {
            self.works(STORE_READ + seen.value.as_ref().map_or(0, Value::bytes))?;
        }
        if let Some((at, applied)) = applied.flatten() {
            self.rests_on(Read {
                at,
                key: Some(name),
                added: None,
                known: newest(at, applied, seen.at),
            });
        }
        if let Some(write) = seen.depends {
            self.depend_on(write)?;
        }
        if seen.value.is_none() {
            self.check_head(database, key, split)?;
        }
        drop(one_moment);
        Ok(seen.value)
    }

    /// What is written rests on this element, or on its absence, as it is among all elements that
    /// were read.
    pub fn rests_on_seen_element(&mut self, database: u16, key: &[u8], split: &Split, sub_key: &[u8]) {
        let name = record_key(key, split, sub_key);
        if self.place(database, &name).is_some() {
            return;
        }
        let all = self.trees.get(&(database, record_key(key, split, b"")));
        let Some((all, &Read { at, known, .. })) = all.and_then(|all| Some((all, all.rest.as_ref()?))) else {
            return;
        };
        let held = all.elements.by_name().get(Held::named(sub_key));
        // An element is at home where its collection is.
        let place = held.filter(|held| held.offset < u64::MAX).map(|held| At {
            partition: at.partition,
            offset: held.offset,
        });
        let known = newest(at, known, place);
        self.rests_on(Read {
            at,
            key: Some(name),
            added: None,
            known,
        });
    }

    /// What is written rests on no element being added in this span since all were read.
    pub fn rests_on_none_added(&mut self, database: u16, key: &[u8], split: &Split, span: Span) {
        let prefix = record_key(key, split, b"");
        let all = self.trees.get(&(database, prefix.clone()));
        if let Some(&Read { at, known, .. }) = all.and_then(|all| all.rest.as_ref()) {
            self.rests_on(Read {
                at,
                key: Some(prefix),
                added: Some(span),
                known,
            });
        }
    }

    /// All elements of the split collection that a key holds, also those that have expired.
    pub fn elements(&mut self, database: u16, key: &[u8], split: &Split) -> Result<Tree<Held>, Fault> {
        let all = self.all_of(database, key, split, (None, b""))?.by_name().clone();
        self.admitted(split, all)
    }

    /// Those of all elements that the head does not exclude.
    fn admitted(&mut self, split: &Split, all: Tree<Held>) -> Result<Tree<Held>, Fault> {
        if split.bounds().is_none() {
            return Ok(all);
        }
        self.works(all.len() * size_of::<Held>())?;
        let admitted = all.iter().filter(|held| !split.excludes(&held.name));
        Ok(admitted.cloned().collect())
    }

    /// As [`Transaction::elements`], in this order as well, and with those that the head excludes.
    /// Elements with names lower than `from` may be missing.
    pub fn elements_in_order(
        &mut self,
        database: u16,
        key: &[u8],
        split: &Split,
        (order, from): (Order, &[u8]),
    ) -> Result<Indexed, Fault> {
        self.all_of(database, key, split, (Some(order), from))
    }

    /// As [`Transaction::elements`], in this order as well if one is given, and with those that the
    /// head excludes. Elements with names lower than the second part of `how` may be missing.
    pub fn all_of(
        &mut self,
        database: u16,
        key: &[u8],
        split: &Split,
        how: (Option<Order>, &[u8]),
    ) -> Result<Indexed, Fault> {
        let all = self.see_all(database, key, split, how)?;
        let elements = all.elements.clone();
        self.rest_on_seen(database, key, split)?;
        Ok(elements)
    }

    /// From here on the outcome depends on all elements, which were read.
    fn rest_on_seen(&mut self, database: u16, key: &[u8], split: &Split) -> Result<(), Fault> {
        let Some(all) = self.trees.get_mut(&(database, record_key(key, split, b""))) else {
            return Ok(());
        };
        let (rest, depends) = (all.rest.take(), std::mem::take(&mut all.depends));
        self.rests_on_these(rest);
        self.depend_on_all(&depends)
    }

    /// As [`Transaction::elements_in_order`], for a command that looks at some of them. What is
    /// written rests only on those that it reads once more, with [`Transaction::element`].
    pub fn elements_in_order_to_pick(
        &mut self,
        database: u16,
        key: &[u8],
        split: &Split,
        (order, from): (Order, &[u8]),
    ) -> Result<Indexed, Fault> {
        let how = (Some(order), from);
        Ok(self.see_all(database, key, split, how)?.elements.clone())
    }

    /// A name from which on to read, so that the highest element within this range is among what is
    /// read. The end of the range is excluded.
    pub fn highest_from(
        &mut self,
        database: u16,
        key: &[u8],
        split: &Split,
        range: (&[u8], &[u8]),
    ) -> Result<Bytes, Fault> {
        let prefix = record_key(key, split, b"");
        if let Some(all) = self.trees.get(&(database, prefix.clone()))
            && *all.from < *range.1
        {
            return Ok(all.from.clone());
        }
        let of = (key, split.version());
        Ok(self.service.highest_from(database, of, &prefix, range)?)
    }

    /// Notes the write under way that an element comes from, or that has removed it. `held`: the
    /// element as it is among all elements that were read.
    fn depend_on_element(
        &mut self,
        database: u16,
        key: &[u8],
        split: &Split,
        (name, held): (&Bytes, Option<&Held>),
    ) -> Result<(), Fault> {
        let Some(all) = self.trees.get(&(database, record_key(key, split, b""))) else {
            return Ok(());
        };
        if all.depends.is_empty() || held.is_some_and(|held| held.offset < u64::MAX) {
            return Ok(());
        }
        let under_way = self.service.databases[database as usize].elements.get(name, true);
        if let Known::Here(_, Some(write)) = under_way
            && all.depends.iter().any(|other| Arc::ptr_eq(other, &write))
        {
            return self.depend_on(write);
        }
        // A write of it may have ended since: perhaps it has failed. No other write matters.
        let writes_it = |item: &Item| item.name() == Some((database, name));
        let of_it = all.depends.iter().filter(|write| write.items.iter().any(writes_it));
        let of_it: Vec<Arc<Write>> = of_it.cloned().collect();
        of_it.into_iter().try_for_each(|write| self.depend_on(write))
    }

    /// The outcome depends on all writes under way that the elements come from, which were read.
    /// For a command that finds nothing, so that it need not rest on all elements.
    pub fn depend_on_seen(&mut self, database: u16, key: &[u8], split: &Split) -> Result<(), Fault> {
        let Some(all) = self.trees.get(&(database, record_key(key, split, b""))) else {
            return Ok(());
        };
        let depends = all.depends.clone();
        self.depend_on_all(&depends)
    }

    /// As [`Transaction::depend_on_seen`], for a command that writes a list. Each client's write of
    /// a list fails if one before it does: so the newest one stands for all before it. On a log
    /// that chains, that holds without a condition.
    pub fn write_after_seen(&mut self, database: u16, key: &[u8], split: &Split) -> Result<(), Fault> {
        if !self.is_conditional() {
            return Ok(());
        }
        let Some(all) = self.trees.get(&(database, record_key(key, split, b""))) else {
            return Ok(());
        };
        let mut depends: Vec<Arc<Write>> = Vec::new();
        for write in all.depends.iter().rev() {
            depends.push(write.clone());
            // Nobody's writes, those of the sweep, rest on their element alone.
            if write.writer() != 0 {
                break;
            }
        }
        depends.into_iter().try_for_each(|write| self.depend_on(write))
    }

    /// As [`Transaction::elements`], for a command that picks some of them. What is written rests
    /// only on those that it reads once more, with [`Transaction::element`].
    pub fn elements_to_pick(&mut self, database: u16, key: &[u8], split: &Split) -> Result<Tree<Held>, Fault> {
        let all = self.see_all(database, key, split, (None, b""))?;
        let (elements, depends) = (all.elements.by_name().clone(), std::mem::take(&mut all.depends));
        self.depend_on_all(&depends)?;
        self.admitted(split, elements)
    }

    fn depend_on_all(&mut self, writes: &Writes) -> Result<(), Fault> {
        writes.iter().try_for_each(|write| self.depend_on(write.clone()))
    }

    fn see_all(
        &mut self,
        database: u16,
        key: &[u8],
        split: &Split,
        (order, from): (Option<Order>, &[u8]),
    ) -> Result<&mut SeenAll, Fault> {
        let prefix = record_key(key, split, b"");
        let place = (database, prefix.clone());
        let mut all = match self.trees.remove(&place) {
            Some(mut all) if *all.from <= *from => {
                all.put_written();
                all
            }
            before => {
                let mut all = self.read_all(database, key, split, &prefix, (order, from))?;
                if let Some(before) = before {
                    // What was found earlier is what the outcome rests on.
                    all.rest = before.rest.or(all.rest);
                    all.depends.extend(&before.depends);
                }
                all
            }
        };
        if let Some(order) = order.filter(|order| all.elements.in_order(*order).is_none()) {
            self.works(all.elements.work())?;
            all.elements.put_in_order(order);
        }
        Ok(self.trees.entry(place).or_insert(all))
    }

    /// All elements from one on, with what this transaction has written. They may lack the order.
    fn read_all(
        &mut self,
        database: u16,
        key: &[u8],
        split: &Split,
        prefix: &Bytes,
        (order, from): (Option<Order>, &[u8]),
    ) -> Result<SeenAll, Fault> {
        // In this order: what is read is at least as new as what was applied before.
        let rest = self.rest_on_all(database, prefix);
        self.looks();
        let pending = self.view != View::Committed;
        let service = self.service;
        let whole = Whole {
            of: (key, split.version()),
            prefix,
            order,
            from,
        };
        let All { mut elements, depends } =
            service.elements(database, &whole, pending, &mut |bytes| self.works(bytes))?;
        self.check_head(database, key, split)?;
        for item in &self.items {
            if let Item::Element { database: of, key, .. } = item
                && *of == database
                && let Some(sub_key) = key.strip_prefix(&prefix[..])
            {
                put(&mut elements, sub_key, item.element_value());
            }
        }
        if let Some(undo) = &mut self.undo {
            undo.read_whole(&(database, prefix.clone()));
        }
        Ok(SeenAll {
            elements,
            written: Vec::new(),
            from: Bytes::copy_from_slice(from),
            rest,
            depends,
        })
    }

    /// Orphans get tombstones: elements that were read after their head has gone, or has excluded
    /// them, may be missing. Then all is read again. (What is written rests on the head anyway.)
    fn check_head(&self, database: u16, key: &[u8], split: &Split) -> Result<(), Fault> {
        if self.view == View::Update || self.place(database, key).is_some() {
            return Ok(());
        }
        let seen = self.service.read(database, key, self.view != View::Committed)?;
        match seen.entry.map(|entry| entry.value) {
            Some(Value::Split(now)) if now.version() == split.version() && now.bounds() == split.bounds() => Ok(()),
            _ => Err(Fault::Wait(Wait::Changed)),
        }
    }

    pub(in crate::database) fn rests_on_all(&mut self, database: u16, prefix: &Bytes) {
        let read = self.rest_on_all(database, prefix);
        self.rests_on_these(read);
    }

    fn rests_on_these(&mut self, read: Option<Read>) {
        if let Some(read) = read {
            self.rests_on(read);
        }
    }

    fn rest_on_all(&self, database: u16, prefix: &Bytes) -> Option<Read> {
        if !self.is_conditional() {
            return None;
        }
        let (at, known) = self.service.applied_at_home(database, prefix)?;
        Some(Read {
            at,
            key: Some(prefix.clone()),
            added: None,
            known,
        })
    }

    /// True if a split collection has an element that has not expired.
    pub fn has_elements(&mut self, database: u16, key: &[u8], split: &Split) -> Result<bool, Fault> {
        if split.of().may_be_empty() {
            return Ok(true);
        }
        let prefix = record_key(key, split, b"");
        match self.trees.contains_key(&(database, prefix.clone())) {
            // They were read earlier, so that is what it rests on.
            true => self.rest_on_seen(database, key, split)?,
            false => self.rests_on_all(database, &prefix),
        }
        self.seems_to_have_elements(database, key, split)
    }

    /// As [`Transaction::has_elements`], for the reply alone: what is written does not rest on it.
    pub fn seems_to_have_elements(&mut self, database: u16, key: &[u8], split: &Split) -> Result<bool, Fault> {
        if split.of().may_be_empty() {
            return Ok(true);
        }
        let prefix = record_key(key, split, b"");
        let now = self.now;
        if !split.bounds().is_none() {
            let admitted = self.elements_to_pick(database, key, split)?;
            return Ok(has_live(&admitted, now));
        }
        if let Some(all) = self.trees.get_mut(&(database, prefix.clone())) {
            // With what is written here.
            all.put_written();
            return Ok(has_live(all.elements.by_name(), now));
        }
        let own = self.own_of(database, &prefix);
        if own.live > 0 {
            return Ok(true);
        }
        if own.all > 0 {
            // It has removed some: all others have to be looked at.
            let tree = self.elements_to_pick(database, key, split)?;
            return Ok(has_live(&tree, now));
        }
        self.looks();
        let pending = self.view != View::Committed;
        let (service, place) = (self.service, (key, split.version()));
        if service.has_elements(database, place, &prefix, pending, now)? {
            return Ok(true);
        }
        // As for one element that is missing.
        let _one_moment = service.groups.hold_again();
        let has = service.has_elements(database, place, &prefix, pending, now)?;
        // Others can write the head of another collection first, and its elements later.
        if !has && split.of() == Collection::List {
            service.emptied.note(database, key);
        }
        Ok(has)
    }

    /// Elements of a collection that it has written or removed.
    fn own_of(&self, database: u16, prefix: &Bytes) -> Own {
        if self.items.len() > LINEAR {
            return self.own.get(&(database, prefix.clone())).copied().unwrap_or_default();
        }
        let mut own = Own::default();
        for item in &self.items {
            if let Item::Element { database: of, key, .. } = item
                && *of == database
                && key.starts_with(prefix)
            {
                own.note(self.is_live_element(item), true);
            }
        }
        own
    }

    /// Adds an item to [`Transaction::own`], or takes it from there.
    pub(super) fn count_own(&mut self, item: &Item, is_there: bool) {
        let Item::Element { database, key, .. } = item else {
            return;
        };
        let prefix = key.slice_ref(elements::split(key).0);
        let is_live = self.is_live_element(item);
        self.own.entry((*database, prefix)).or_default().note(is_live, is_there);
    }

    fn is_live_element(&self, item: &Item) -> bool {
        item.element_value().is_some_and(|value| value.is_live(self.now))
    }

    /// As [`Transaction::has_elements`], but what is written rests on it only if there is none. So
    /// those who write different elements do not hinder each other.
    pub fn keeps_elements(&mut self, database: u16, key: &[u8], split: &Split) -> Result<bool, Fault> {
        Ok(self.seems_to_have_elements(database, key, split)? || self.has_elements(database, key, split)?)
    }

    /// What is written rests on no entry being added to this stream since its elements were read.
    pub fn rests_on_last_entry(&mut self, database: u16, key: &[u8], split: &Split) {
        self.rests_on_none_added(database, key, split, StreamPart::span_of_entries());
    }

    /// What is written rests on this element, which was found by
    /// [`Transaction::elements_in_order_to_pick`], only as far as the write under way goes that it
    /// comes from.
    pub fn depend_on_picked(&mut self, database: u16, key: &[u8], split: &Split, held: &Held) -> Result<(), Fault> {
        let name = record_key(key, split, &held.name);
        match self.place(database, &name) {
            Some(_) => Ok(()),
            None => self.depend_on_element(database, key, split, (&name, Some(held))),
        }
    }

    /// Writes what the head of a split collection says besides its version.
    pub fn put_metadata(
        &mut self,
        database: u16,
        key: &[u8],
        split: &Split,
        (metadata, expire_at): (&[u8], Option<u64>),
    ) -> Split {
        let split = Split::new(split.of(), split.version(), metadata);
        let value = Value::Split(split.clone());
        self.put(database, key, State { value, expire_at });
        split
    }

    /// Writes the tombstone of an orphan whose record is at this place, on the condition that no
    /// other record came after those that are applied.
    pub(in crate::database) fn bury_element(&mut self, database: u16, name: &Bytes, meta: &Meta) {
        let Some((at, applied)) = self.service.applied_at_home(database, name) else {
            return;
        };
        let place = At {
            partition: meta.partition,
            offset: meta.offset,
        };
        let read = Read {
            at,
            key: Some(name.clone()),
            added: None,
            known: newest(at, applied, Some(place)),
        };
        let item = Item::Tombstone {
            database,
            key: name.clone(),
            partition: at.partition,
        };
        self.add(read, item);
    }

    /// Gives the split collection an element, or removes one.
    pub fn put_element(&mut self, database: u16, key: &[u8], split: &Split, sub_key: &[u8], element: Option<Element>) {
        let name = record_key(key, split, sub_key);
        let collection = (database, record_key(key, split, b""));
        if let Some(all) = self.trees.get_mut(&collection) {
            if let Some(undo) = &mut self.undo {
                undo.changes(&collection, all);
            }
            all.written
                .push((name.slice_ref(elements::split(&name).1), element.clone()));
        }
        self.write_item(Item::Element {
            database,
            key: name,
            element,
        });
    }
}

/// What a key held, to be written under another name.
pub struct Taken {
    state: State,
    /// Of a split collection.
    elements: Option<Tree<Held>>,
}

impl Taken {
    /// Bytes of the values.
    pub fn bytes(&self) -> usize {
        let elements = self.elements.iter().flat_map(|tree| tree.iter());
        let elements = elements.map(|held| held.name.len() + held.value.bytes());
        self.state.value.bytes() + elements.sum::<usize>()
    }

    pub fn records(&self) -> usize {
        1 + self.elements.as_ref().map_or(0, Tree::len)
    }
}

impl Transaction<'_> {
    /// What a key holds, whole. `entry` was read of it.
    pub fn take(&mut self, database: u16, key: &[u8], entry: Entry) -> Result<Taken, Fault> {
        let elements = match &entry.value {
            Value::Split(split) => {
                let all = self.elements(database, key, split)?;
                self.works(all.len() * size_of::<Held>())?;
                Some(all)
            }
            Value::String(_) | Value::Packed(_) | Value::Element(_) | Value::Unreadable(_) => None,
        };
        Ok(Taken {
            state: entry.state()?,
            elements,
        })
    }

    /// Gives a key what another one held. A split collection becomes one of a new version.
    pub fn give(&mut self, database: u16, key: &[u8], taken: Taken) -> Result<(), Fault> {
        let Taken { state, elements } = taken;
        let (Value::Split(old), Some(elements)) = (&state.value, &elements) else {
            self.put(database, key, state);
            return Ok(());
        };
        let now = self.now;
        let split = self.put_split(database, key, old.of(), &old.metadata(), state.expire_at);
        for held in elements.iter().filter(|held| held.is_live(now)) {
            let element = element_of(key, held)?.clone();
            self.put_element(database, key, &split, &held.name, Some(element));
            self.check_size()?;
        }
        Ok(())
    }

    /// Gives a key a split collection of a new version. It has no elements yet: a head comes before
    /// its elements.
    pub fn put_split(
        &mut self,
        database: u16,
        key: &[u8],
        of: Collection,
        metadata: &[u8],
        expire_at: Option<u64>,
    ) -> Split {
        let split = Split::new(of, Version::new(self.now), metadata);
        let value = Value::Split(split.clone());
        self.begun.push((database, record_key(key, &split, b"")));
        self.put(database, key, State { value, expire_at });
        split
    }
}

fn put(elements: &mut Indexed, sub_key: &[u8], value: Option<Value>) {
    match value {
        Some(value) => drop(elements.insert(Held::new(sub_key, value, u64::MAX))),
        None => drop(elements.remove(sub_key)),
    }
}

/// What an element of the collection at a key holds.
pub fn element_of<'h>(key: &[u8], held: &'h Held) -> Result<&'h Element, Fault> {
    match &held.value {
        Value::Element(element) => Ok(element),
        other => Err(unreadable(key, other)),
    }
}

/// The score of a member of the sorted set at a key.
pub fn score_of(key: &[u8], element: &Element) -> Result<f64, Fault> {
    let score = element.score();
    score.map_err(|problem| Fault::unreadable_element(key, problem))
}

/// The error for a collection with this element, which is none.
fn unreadable(key: &[u8], value: &Value) -> Fault {
    let why = match value {
        Value::Unreadable(why) => why,
        Value::String(_) | Value::Packed(_) | Value::Split(_) | Value::Element(_) => "it is of another type",
    };
    Fault::unreadable_element(key, why)
}
