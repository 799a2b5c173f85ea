//! Packed collections: a whole hash, set, sorted set or list in one record, as MessagePack. Any
//! producer can write one, in any language; `docs/topic-format.md` is the contract.
//!
//! Reading is exact, so that all nodes agree on what a record says. What this version writes has
//! one form ([`Packed::parse`] brings every readable record into it): no name twice, no empty
//! collection, text as strings, other bytes as bytes, a sorted set in its order.

mod hash;
mod list;
mod set;
mod sorted_set;

use std::borrow::Cow;
use std::collections::HashSet;

use bytes::Bytes;

use super::msgpack::{Problem, Reader};
use super::{Element, StreamHead};

pub use hash::{Field, Fields};
pub use list::Items;
pub use set::Members;
pub use sorted_set::{Scores, order};

/// A type of collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Collection {
    Hash,
    Set,
    SortedSet,
    List,
    /// It has no packed form.
    Stream,
}

impl Collection {
    pub const ALL: [Collection; 5] = [
        Collection::Hash,
        Collection::Set,
        Collection::SortedSet,
        Collection::List,
        Collection::Stream,
    ];

    /// As TYPE answers it, and as the header `redis-type` has it.
    pub fn name(self) -> &'static str {
        match self {
            Collection::Hash => "hash",
            Collection::Set => "set",
            Collection::SortedSet => "zset",
            Collection::List => "list",
            Collection::Stream => "stream",
        }
    }

    pub fn of_name(name: &[u8]) -> Option<Collection> {
        Collection::ALL.into_iter().find(|of| of.name().as_bytes() == name)
    }

    /// Its number in the files of this node, at least 1. It never changes.
    pub fn number(self) -> u8 {
        match self {
            Collection::Hash => 1,
            Collection::Set => 2,
            Collection::SortedSet => 3,
            Collection::List => 4,
            Collection::Stream => 5,
        }
    }

    /// True if a collection without elements exists until it is deleted.
    pub fn may_be_empty(self) -> bool {
        self == Collection::Stream
    }

    /// Bytes that it keeps in the head of a split collection, in front of the bounds.
    pub(super) fn metadata_bytes(self) -> usize {
        match self {
            Collection::Stream => StreamHead::BYTES,
            Collection::Hash | Collection::Set | Collection::SortedSet | Collection::List => 0,
        }
    }

    pub fn of_number(number: u8) -> Option<Collection> {
        Collection::ALL.into_iter().find(|of| of.number() == number)
    }
}

const NO_PACKED_STREAM: Problem = "a stream has a record for each entry";

/// A collection that is not empty, in the form that this version writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    of: Collection,
    bytes: Bytes,
}

impl Packed {
    /// Reads a record's value. `None`: the collection is empty, so the key does not exist.
    pub fn parse(of: Collection, bytes: &Bytes) -> Result<Option<Packed>, Problem> {
        let mut packed = match of {
            Collection::Hash => hash::read(bytes)?.pack(),
            Collection::Set => set::read(bytes)?.pack(),
            Collection::SortedSet => sorted_set::read(bytes)?.pack(),
            Collection::List => list::read(bytes)?.pack(),
            Collection::Stream => return Err(NO_PACKED_STREAM),
        };
        if let Some(packed) = packed.as_mut().filter(|packed| packed.bytes == *bytes) {
            packed.bytes = bytes.clone();
        }
        Ok(packed)
    }

    /// What [`Packed::bytes`] gave, as it comes back from memory or the store.
    pub fn kept(of: Collection, bytes: Bytes) -> Packed {
        Packed { of, bytes }
    }

    pub fn of(&self) -> Collection {
        self.of
    }

    /// The record's value.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The value of one field of a hash, and when it expires. Nothing is copied.
    pub fn field(&self, name: &[u8]) -> Result<Option<Field>, Problem> {
        hash::find(&self.bytes, name)
    }

    /// The score of one member of a sorted set.
    pub fn score(&self, member: &[u8]) -> Result<Option<f64>, Problem> {
        sorted_set::find(&self.bytes, member)
    }

    /// How many elements are there at this time (milliseconds since the epoch).
    pub fn len(&self, now: u64) -> Result<usize, Problem> {
        let mut reader = Reader::new(&self.bytes);
        match self.of {
            Collection::Hash => hash::count(reader, now, usize::MAX),
            Collection::Set | Collection::List => reader.array(),
            Collection::SortedSet => reader.map(),
            Collection::Stream => Err(NO_PACKED_STREAM),
        }
    }

    /// True if an element is there at this time. A collection without one does not exist.
    pub fn is_live(&self, now: u64) -> bool {
        match self.of {
            Collection::Hash => hash::count(Reader::new(&self.bytes), now, 1) != Ok(0),
            Collection::Set | Collection::SortedSet | Collection::List | Collection::Stream => true,
        }
    }
}

impl Packed {
    /// When elements that have expired are to be removed, milliseconds since the epoch. `None` if
    /// no element expires.
    pub fn due(&self) -> Option<u64> {
        match self.of {
            Collection::Hash => hash::due(&self.bytes),
            Collection::Set | Collection::SortedSet | Collection::List | Collection::Stream => None,
        }
    }

    /// The collection without the elements that have expired at this time. `None` if none has
    /// expired, or all have.
    pub fn without_expired(&self, now: u64) -> Result<Option<Packed>, Problem> {
        if self.of != Collection::Hash {
            return Ok(None);
        }
        let mut fields = hash::read(&self.bytes)?;
        let before = fields.0.len();
        fields.forget_expired(now);
        Ok(fields.pack().filter(|_| fields.0.len() < before))
    }
}

/// The elements of a type of collection, taken apart.
pub trait Elements: Default {
    const OF: Collection;
    /// [`Elements::add`] has to be called in the order of the names.
    const IN_ORDER: bool = false;

    fn unpack(packed: &Packed) -> Result<Self, Problem>;

    /// `None` if there is no element.
    fn pack(&self) -> Option<Packed>;

    /// Adds what an element's record of a split collection holds.
    fn add(&mut self, name: Bytes, element: &Element) -> Result<(), Problem>;

    /// To be called when all were added.
    fn all_added(&mut self) {}

    /// Removes the elements that have expired at this time (milliseconds since the epoch).
    fn forget_expired(&mut self, _now: u64) {}
}

/// A type of collection whose elements have names: all but lists. In the split form each element is
/// a record of its own.
pub trait Named: Elements {
    /// What an element holds besides its name.
    type Held: Clone;

    /// One element of a packed collection, which is not taken apart.
    fn find(packed: &Packed, name: &[u8]) -> Result<Option<Self::Held>, Problem>;

    /// True if the element is there at this time (milliseconds since the epoch).
    fn is_live(_held: &Self::Held, _now: u64) -> bool {
        true
    }

    /// What an element's record says.
    fn of(element: &Element) -> Result<Self::Held, Problem>;

    /// The element's record.
    fn element(held: &Self::Held) -> Element;

    fn len(&self) -> usize;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn get(&self, name: &[u8]) -> Option<Self::Held>;

    /// Adds an element, or replaces what it holds. [`Elements::all_added`] is to be called later.
    fn put(&mut self, name: &[u8], held: Self::Held);

    /// Removes elements, in one pass. The others keep their order.
    fn remove(&mut self, names: &Names);

    /// The name at a place, counted from 0.
    fn name_at(&self, place: usize) -> Option<&Bytes>;

    fn into_elements(self) -> impl Iterator<Item = (Bytes, Self::Held)>;
}

/// Names of elements.
pub type Names = HashSet<Bytes, foldhash::fast::RandomState>;

impl Elements for Fields {
    const OF: Collection = Collection::Hash;

    fn unpack(packed: &Packed) -> Result<Fields, Problem> {
        hash::read(&packed.bytes)
    }

    fn pack(&self) -> Option<Packed> {
        self.pack()
    }

    fn add(&mut self, name: Bytes, element: &Element) -> Result<(), Problem> {
        self.0.insert(name, Fields::of(element)?);
        Ok(())
    }

    fn forget_expired(&mut self, now: u64) {
        if self.0.values().any(|field| !field.is_live(now)) {
            self.0.retain(|_, field| field.is_live(now));
        }
    }
}

impl Named for Fields {
    type Held = Field;

    fn find(packed: &Packed, name: &[u8]) -> Result<Option<Field>, Problem> {
        packed.field(name)
    }

    fn is_live(field: &Field, now: u64) -> bool {
        field.is_live(now)
    }

    fn of(element: &Element) -> Result<Field, Problem> {
        Ok(Field::of(element))
    }

    fn element(field: &Field) -> Element {
        Element::new(&field.value, field.expire_at)
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, name: &[u8]) -> Option<Field> {
        self.0.get(name).cloned()
    }

    fn put(&mut self, name: &[u8], field: Field) {
        match self.0.get_mut(name) {
            Some(known) => *known = field,
            None => drop(self.0.insert(Bytes::copy_from_slice(name), field)),
        }
    }

    fn remove(&mut self, names: &Names) {
        if !names.is_empty() {
            self.0.retain(|name, _| !names.contains(name));
        }
    }

    fn name_at(&self, place: usize) -> Option<&Bytes> {
        self.0.get_index(place).map(|(name, _)| name)
    }

    fn into_elements(self) -> impl Iterator<Item = (Bytes, Field)> {
        self.0.into_iter()
    }
}

impl Elements for Members {
    const OF: Collection = Collection::Set;

    fn unpack(packed: &Packed) -> Result<Members, Problem> {
        set::read(&packed.bytes)
    }

    fn add(&mut self, name: Bytes, _: &Element) -> Result<(), Problem> {
        self.0.insert(name);
        Ok(())
    }

    fn pack(&self) -> Option<Packed> {
        self.pack()
    }
}

impl Named for Members {
    type Held = ();

    fn find(packed: &Packed, name: &[u8]) -> Result<Option<()>, Problem> {
        Ok(set::contains(&packed.bytes, name)?.then_some(()))
    }

    fn of(_: &Element) -> Result<(), Problem> {
        Ok(())
    }

    fn element((): &()) -> Element {
        Element::new(b"", None)
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, name: &[u8]) -> Option<()> {
        self.0.contains(name).then_some(())
    }

    fn put(&mut self, name: &[u8], (): ()) {
        if !self.0.contains(name) {
            self.0.insert(Bytes::copy_from_slice(name));
        }
    }

    fn remove(&mut self, names: &Names) {
        if !names.is_empty() {
            self.0.retain(|name| !names.contains(name));
        }
    }

    fn name_at(&self, place: usize) -> Option<&Bytes> {
        self.0.get_index(place)
    }

    fn into_elements(self) -> impl Iterator<Item = (Bytes, ())> {
        self.0.into_iter().map(|name| (name, ()))
    }
}

impl Elements for Scores {
    const OF: Collection = Collection::SortedSet;

    fn unpack(packed: &Packed) -> Result<Scores, Problem> {
        sorted_set::read(&packed.bytes)
    }

    fn add(&mut self, name: Bytes, element: &Element) -> Result<(), Problem> {
        self.0.insert(name, element.score()?);
        Ok(())
    }

    fn all_added(&mut self) {
        self.sort();
    }

    fn pack(&self) -> Option<Packed> {
        self.pack()
    }
}

impl Named for Scores {
    type Held = f64;

    fn find(packed: &Packed, member: &[u8]) -> Result<Option<f64>, Problem> {
        packed.score(member)
    }

    fn of(element: &Element) -> Result<f64, Problem> {
        element.score()
    }

    fn element(score: &f64) -> Element {
        // Minus zero becomes zero, as in a packed one.
        Element::new(&(score + 0.0).to_be_bytes(), None)
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn get(&self, member: &[u8]) -> Option<f64> {
        self.0.get(member).copied()
    }

    fn put(&mut self, member: &[u8], score: f64) {
        match self.0.get_mut(member) {
            Some(known) => *known = score,
            None => drop(self.0.insert(Bytes::copy_from_slice(member), score)),
        }
    }

    fn remove(&mut self, names: &Names) {
        if !names.is_empty() {
            self.0.retain(|member, _| !names.contains(member));
        }
    }

    fn name_at(&self, place: usize) -> Option<&Bytes> {
        self.0.get_index(place).map(|(name, _)| name)
    }

    fn into_elements(self) -> impl Iterator<Item = (Bytes, f64)> {
        self.0.into_iter()
    }
}

impl Elements for Items {
    const OF: Collection = Collection::List;
    const IN_ORDER: bool = true;

    fn unpack(packed: &Packed) -> Result<Items, Problem> {
        list::read(&packed.bytes)
    }

    fn add(&mut self, _: Bytes, element: &Element) -> Result<(), Problem> {
        self.0.push_back(Items::of(element)?);
        Ok(())
    }

    fn pack(&self) -> Option<Packed> {
        self.pack()
    }
}

/// A part of `all`, which shares its memory, or bytes of its own.
pub(super) fn part_of(all: &Bytes, part: Cow<'_, [u8]>) -> Bytes {
    match part {
        Cow::Borrowed(part) => all.slice_ref(part),
        Cow::Owned(own) => own.into(),
    }
}

/// Room for this many elements: not more than their bytes allow.
pub(super) fn room(announced: usize, reader: &Reader<'_>) -> usize {
    announced.min(reader.left())
}

fn at_end(reader: &Reader<'_>) -> Result<(), Problem> {
    match reader.is_at_end() {
        true => Ok(()),
        false => Err("bytes follow after its end"),
    }
}

#[cfg(test)]
mod tests;
