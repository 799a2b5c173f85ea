//! Why the computation of a command did not complete: an error that is its reply, or what it waits
//! for.
#![deny(clippy::wildcard_enum_match_arm)]

use std::sync::Arc;

use bytes::Bytes;

use super::stripes::{Hold, Taken};
use super::write::Write;
use crate::model::{Collection, Entry, Packed, Split, State, Value};
use crate::store::StoreError;

/// Bytes that a transaction may go through on a thread that serves connections: about a
/// millisecond's work.
pub const SHORT_WORK: usize = 4 << 20;
/// Bytes above which a transaction counts as one that takes seconds.
pub(super) const LARGE_WORK: usize = 1 << 30;
/// What a read from the store counts as work, in bytes.
pub(super) const STORE_READ: usize = 16 << 10;

/// Why the computation of a command did not complete.
#[derive(Clone)]
pub enum Fault {
    /// The reply is this error: a code word, a space, a text.
    Error(Bytes),
    /// Wait, then compute again.
    Wait(Wait),
}

/// What has to happen before a command can be computed.
#[derive(Clone)]
pub enum Wait {
    /// This write must have ended: the command's outcome depends on it, and the log cannot chain
    /// the two.
    Write(Arc<Write>),
    /// All writes of this connection must have ended: the log takes what follows by another lane,
    /// which could be faster.
    Own,
    /// The database's topic must be created.
    CreateDatabase(u16),
    /// The database's topic must name this feature of the format.
    Feature(u16, &'static str),
    /// The topic of messages must be ready to take one.
    Messages,
    /// The store must take in what was acknowledged: too much is in memory only.
    Room(Size),
    /// This node is not serving, or was not serving all the time. The command may have read a store
    /// that is being filled.
    Loading,
    /// The command takes longer than its thread has time for. It has to be computed elsewhere, when
    /// it has a turn.
    Turn(Turn),
    /// A long computation holds the lock of a key.
    Locked(Taken),
    /// A key that the command read has changed while it was computed.
    Changed,
}

/// How much a transaction writes. Large writes leave half of `max_unstored_bytes` to small ones,
/// which would otherwise have to wait until the store has taken the large ones in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Small,
    Large,
}

/// Where a transaction is computed. Few long ones run at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Turn {
    /// On a thread that serves connections.
    #[default]
    Short,
    /// Elsewhere, for a fraction of a second.
    Large,
    /// Elsewhere, for as long as it takes.
    Long,
    /// As `Long`, for a script that has run for long. It may never end.
    Script,
}

impl Turn {
    /// Bytes that a transaction may go through in this turn.
    pub(super) fn work(self) -> usize {
        match self {
            Turn::Short => SHORT_WORK,
            Turn::Large => LARGE_WORK,
            Turn::Long | Turn::Script => usize::MAX,
        }
    }
}

/// How a transaction is computed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    pub turn: Turn,
    /// Even a long transaction keeps its keys locked while it is computed, so that it comes to an
    /// end.
    pub locked: bool,
}

impl Pace {
    pub(super) fn is_long(self) -> bool {
        self.turn > Turn::Short
    }

    pub(super) fn hold(self) -> Hold {
        if self.is_long() { Hold::Long } else { Hold::Short }
    }

    /// True if the keys are watched while it is computed, and locked only after that.
    pub(super) fn watches(self) -> bool {
        self.is_long() && !self.locked
    }
}

impl Fault {
    pub fn error(text: impl Into<Bytes>) -> Self {
        Fault::Error(text.into())
    }

    /// The error for an element's record, of the collection at this key, that cannot be read.
    pub fn unreadable_element(key: &[u8], reason: &str) -> Self {
        let shown = &key[..key.len().min(100)];
        Fault::error(format!(
            "ERR an element of the collection at {} cannot be read: {reason}",
            shown.escape_ascii()
        ))
    }

    /// True if it is an error about what a key holds: something else, or what cannot be read.
    pub fn is_about_value(&self) -> bool {
        match self {
            Fault::Error(text) => text == WRONG_TYPE || text.starts_with(UNREADABLE.as_bytes()),
            Fault::Wait(_) => false,
        }
    }
}

impl From<&'static str> for Fault {
    fn from(text: &'static str) -> Self {
        Fault::error(text)
    }
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Fault::error(text)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        match error {
            // The applier will notice the damage.
            StoreError::Damaged { .. } => Fault::error(format!("LOADING rebuilding the local store: {error}")),
            StoreError::Larger => Fault::Wait(Wait::Turn(Turn::Large)),
            error @ (StoreError::Engine { .. } | StoreError::Io { .. }) => {
                Fault::error(format!("ERR the local store cannot be read: {error}"))
            }
        }
    }
}

/// The error of a command on a key that holds something else.
pub const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
/// The beginning of the error for a record that cannot be read.
const UNREADABLE: &str = "ERR the record of this key";

/// How a key holds a collection.
#[derive(Clone, Copy)]
pub enum Form<'e> {
    Packed(&'e Packed),
    Split(&'e Split),
}

impl Entry {
    /// The string, or an error that says why it is not one.
    pub fn string(&self) -> Result<Bytes, Fault> {
        match &self.value {
            Value::String(value) => Ok(value.clone()),
            Value::Packed(_) | Value::Split(_) | Value::Element(_) => Err(WRONG_TYPE.into()),
            Value::Unreadable(reason) => Err(self.unreadable(reason)),
        }
    }

    /// The collection, if it is of this type.
    pub fn collection(&self, of: Collection) -> Result<Form<'_>, Fault> {
        match &self.value {
            Value::Packed(packed) if packed.of() == of => Ok(Form::Packed(packed)),
            Value::Split(split) if split.of() == of => Ok(Form::Split(split)),
            Value::Packed(_) | Value::Split(_) | Value::Element(_) | Value::String(_) => Err(WRONG_TYPE.into()),
            Value::Unreadable(reason) => Err(self.unreadable(reason)),
        }
    }

    /// The state, of whatever kind, if it can be written again under the same key. Elements of a
    /// split collection do not belong to it.
    pub fn state(self) -> Result<State, Fault> {
        self.type_name()?;
        Ok(self.into_state())
    }

    /// The type as TYPE returns it.
    pub fn type_name(&self) -> Result<&'static str, Fault> {
        let kept = self.value.kept();
        kept.map(|(of, _)| of.name()).map_err(|reason| self.unreadable(reason))
    }

    /// The error for a record that cannot be read.
    pub fn unreadable(&self, reason: &str) -> Fault {
        Fault::error(format!(
            "{UNREADABLE} (partition {}, offset {}) cannot be read: {reason}",
            self.meta.partition, self.meta.offset
        ))
    }
}
