//! What a key holds and what a record says of it: the model that log, memory, store, transactions,
//! copy and digest share. It knows nothing of where records are kept, and does no I/O.
//!
//! A record carries the whole new state of its key, never an operation: only then is compaction
//! correct. So a [`State`] is all that there is to know of a key, and what was read can be written
//! again under another name (RENAME, COPY), whatever it is.
//!
//! A new kind of value is a variant of [`Value`]. Every `match` on it names all variants (the lint
//! below refuses `_`), so the compiler names the places that have to handle the new one.
#![deny(clippy::wildcard_enum_match_arm)]

mod bounds;
pub mod class;
mod features;
mod functions;
mod msgpack;
pub mod order_key;
mod packed;
mod split;
mod stream;
mod tree;

use std::sync::Arc;

use bytes::Bytes;

pub use bounds::{Bounds, SubKeys, as_range};
pub use features::{BOUNDS, FEATURES_KEY, Features, SPLIT, is_known};
pub use functions::{FUNCTION, FUNCTION_KEY, function_key, function_of};
pub use packed::{Collection, Elements, Field, Fields, Items, Members, Named, Names, Packed, Scores, order};
pub use split::{Element, ElementName, Span, Split, Version, home_key, is_control, place_of};
pub use stream::{
    StreamEntry, StreamGroup, StreamHead, StreamId, StreamPart, StreamPending, max_deleted_element, max_deleted_of,
};
pub use tree::{Item, PlaceOf, Sought, Tree};

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    String(Bytes),
    /// A collection that is one record.
    Packed(Packed),
    /// A collection that has a record for each element: this is its head.
    Split(Split),
    /// An element of a split collection. No key of a user holds one.
    Element(Element),
    /// The record could not be understood, for this reason; commands on the key answer it. It is
    /// only ever read: nobody can write it again.
    Unreadable(Arc<str>),
}

impl Value {
    /// Bytes of what is kept.
    pub fn bytes(&self) -> usize {
        match self {
            Value::String(value) => value.len(),
            Value::Packed(packed) => packed.bytes().len(),
            Value::Split(split) => split.bytes().len(),
            Value::Element(element) => element.bytes().len(),
            Value::Unreadable(reason) => reason.len(),
        }
    }

    /// The bytes that are kept, and the type that they are of; or the reason why there are none.
    pub fn kept(&self) -> Result<(Type, &Bytes), &str> {
        match self {
            Value::String(value) => Ok((Type::String, value)),
            Value::Packed(packed) => Ok((Type::Collection(packed.of()), packed.bytes())),
            Value::Split(split) => Ok((Type::Split(split.of()), split.bytes())),
            Value::Element(element) => Ok((Type::Element, element.bytes())),
            Value::Unreadable(reason) => Err(reason),
        }
    }

    /// What [`Value::kept`] gave, as it comes back from memory or the store.
    pub fn of_kept(of: Type, bytes: Bytes) -> Value {
        match of {
            Type::String => Value::String(bytes),
            Type::Collection(of) => Value::Packed(Packed::kept(of, bytes)),
            Type::Split(of) => match Split::kept(of, bytes) {
                Some(split) => Value::Split(split),
                None => Value::Unreadable("its head is damaged".into()),
            },
            Type::Element => match Element::parse(bytes) {
                Ok(element) => Value::Element(element),
                Err(problem) => Value::Unreadable(problem.into()),
            },
        }
    }

    /// The type of collection that it is, if it is one.
    pub fn collection(&self) -> Option<Collection> {
        match self {
            Value::String(_) | Value::Unreadable(_) | Value::Element(_) => None,
            Value::Packed(packed) => Some(packed.of()),
            Value::Split(split) => Some(split.of()),
        }
    }

    /// The features of the topic's format that it needs, see [`Features`].
    pub fn features(&self) -> impl Iterator<Item = &'static str> {
        let (of, split, bounds) = match self {
            Value::String(_) | Value::Unreadable(_) | Value::Element(_) => (None, None, None),
            Value::Packed(packed) => (Some(packed.of().name()), None, None),
            Value::Split(split) => {
                let bounds = (!split.bounds().is_none()).then_some(features::BOUNDS);
                (Some(split.of().name()), Some(features::SPLIT), bounds)
            }
        };
        of.into_iter().chain(split).chain(bounds)
    }

    /// When elements that have expired are to be removed, milliseconds since the epoch.
    pub fn due(&self) -> Option<u64> {
        match self {
            Value::String(_) | Value::Split(_) | Value::Unreadable(_) => None,
            Value::Packed(packed) => packed.due(),
            Value::Element(element) => element.expire_at(),
        }
    }

    /// True if there is something at this time (milliseconds since the epoch): of a collection, an
    /// element that has not expired.
    pub fn is_live(&self, now: u64) -> bool {
        match self {
            Value::String(_) | Value::Split(_) | Value::Unreadable(_) => true,
            Value::Packed(packed) => packed.is_live(now),
            Value::Element(element) => element.expire_at().is_none_or(|at| at > now),
        }
    }
}

/// See [`Type::number`].
const ELEMENT_NUMBER: u8 = 7;
const SPLIT_NUMBERS: u8 = 8;

/// A type of value that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    String,
    /// Packed.
    Collection(Collection),
    /// The head of a split collection.
    Split(Collection),
    /// An element of a split collection.
    Element,
}

impl Type {
    /// As TYPE answers it, and as the header `redis-type` has it.
    pub fn name(self) -> &'static str {
        match self {
            Type::String => "string",
            Type::Collection(of) | Type::Split(of) => of.name(),
            Type::Element => "element",
        }
    }

    /// Its number in the files of this node, below 16. It never changes.
    pub fn number(self) -> u8 {
        match self {
            Type::String => 0,
            Type::Collection(of) => of.number(),
            Type::Element => ELEMENT_NUMBER,
            Type::Split(of) => SPLIT_NUMBERS | of.number(),
        }
    }

    pub fn of_number(number: u8) -> Option<Type> {
        match number {
            0 => Some(Type::String),
            ELEMENT_NUMBER => Some(Type::Element),
            head if head & SPLIT_NUMBERS != 0 => Collection::of_number(head & !SPLIT_NUMBERS).map(Type::Split),
            other => Collection::of_number(other).map(Type::Collection),
        }
    }
}

/// A key's whole state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub value: Value,
    /// Absolute expiry, milliseconds since the epoch.
    pub expire_at: Option<u64>,
}

impl State {
    pub fn string(value: Bytes, expire_at: Option<u64>) -> State {
        let value = Value::String(value);
        State { value, expire_at }
    }

    pub fn unreadable(reason: impl Into<Arc<str>>) -> State {
        State {
            value: Value::Unreadable(reason.into()),
            expire_at: None,
        }
    }
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// The key's state from here on; `None`: the key is deleted (a null value in Kafka).
    Key(Option<State>),
    Control(Control),
}

/// Keys that begin so belong to the topic itself. Clients cannot write them, and what a node does
/// not know of them is never shown.
pub const RESERVED: &[u8; 11] = b"\0highwater:";

/// Key of the tombstone that a node writes behind records that it has aborted. A consumer of
/// librdkafka does not hear that records were aborted before something else comes, so without it
/// every node would take them for undecided for as long as a fetch may wait.
pub const PASSED_KEY: &[u8; 17] = b"\0highwater:passed";

pub fn is_reserved(key: &[u8]) -> bool {
    key.starts_with(RESERVED)
}

/// What a record with a reserved key says. A flush hides none of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Hides every record of its partition with a lower offset, unless its key is reserved.
    Flush,
    /// What the topic uses from here on.
    Features(Features),
    /// The text of the library that the key names ([`function_of`]); `None`: it is deleted.
    Function(Option<Bytes>),
    /// Nothing but its place: see [`PASSED_KEY`].
    Passed,
    /// Nothing that this version understands: from a newer one, or from a producer that does not
    /// know that the key is reserved.
    Unknown,
}

impl Payload {
    pub const TOMBSTONE: Payload = Payload::Key(None);
    pub const FLUSH: Payload = Payload::Control(Control::Flush);
    pub const PASSED: Payload = Payload::Control(Control::Passed);
    pub const UNKNOWN: Payload = Payload::Control(Control::Unknown);

    pub fn string(value: Bytes, expire_at: Option<u64>) -> Payload {
        Payload::Key(Some(State::string(value, expire_at)))
    }

    /// The state that the key has now, if it is not deleted.
    pub fn state(&self) -> Option<&State> {
        match self {
            Payload::Key(state) => state.as_ref(),
            Payload::Control(_) => None,
        }
    }

    /// Bytes of the value.
    pub fn bytes(&self) -> usize {
        match self {
            Payload::Key(state) => state.as_ref().map_or(0, |state| state.value.bytes()),
            Payload::Control(Control::Features(features)) => features.to_string().len(),
            Payload::Control(Control::Function(text)) => text.as_ref().map_or(0, Bytes::len),
            Payload::Control(Control::Flush | Control::Passed | Control::Unknown) => 0,
        }
    }

    pub fn is_unreadable(&self) -> bool {
        matches!(
            self.state(),
            Some(State {
                value: Value::Unreadable(_),
                ..
            })
        )
    }
}

/// What is known of a key besides its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub partition: u32,
    pub offset: u64,
    /// Milliseconds since the epoch, as the log has it.
    pub timestamp: i64,
    /// Absolute expiry, milliseconds since the epoch.
    pub expire_at: Option<u64>,
}

/// A key's state, and where the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub meta: Meta,
    pub value: Value,
}

impl Entry {
    /// The state that a record at this place gives its key.
    pub fn new(state: &State, partition: u32, offset: u64, timestamp: i64) -> Entry {
        Entry {
            meta: Meta {
                partition,
                offset,
                timestamp,
                expire_at: state.expire_at,
            },
            value: state.value.clone(),
        }
    }

    /// True if the key exists at this time (milliseconds since the epoch): neither it nor all that
    /// it holds has expired.
    pub fn is_live(&self, now: u64) -> bool {
        self.meta.expire_at.is_none_or(|at| at > now) && self.value.is_live(now)
    }

    pub fn into_state(self) -> State {
        State {
            value: self.value,
            expire_at: self.meta.expire_at,
        }
    }
}

/// One record, as it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub database: u16,
    pub partition: u32,
    pub offset: u64,
    /// Milliseconds since the epoch; of a deletion it does not matter.
    pub timestamp: i64,
    pub key: Bytes,
    pub payload: Payload,
}

impl Change {
    /// What the record at this place says of a key, given the entry that the key has there.
    pub fn of_key(database: u16, partition: u32, offset: u64, key: Bytes, entry: Option<Entry>) -> Change {
        Change {
            database,
            partition,
            offset,
            timestamp: entry.as_ref().map_or(0, |entry| entry.meta.timestamp),
            key,
            payload: Payload::Key(entry.map(Entry::into_state)),
        }
    }

    pub fn meta(&self, state: &State) -> Meta {
        Meta {
            partition: self.partition,
            offset: self.offset,
            timestamp: self.timestamp,
            expire_at: state.expire_at,
        }
    }

    /// The entry that its key has from here on, unless it is deleted.
    pub fn entry(&self) -> Option<Entry> {
        let state = self.payload.state()?;
        Some(Entry::new(state, self.partition, self.offset, self.timestamp))
    }
}
