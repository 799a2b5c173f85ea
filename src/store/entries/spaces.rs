//! The spaces of a database, and what is visible in them.

use std::ops::Bound;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::model::{Meta, Split, State, Version};
use crate::store::engine::{Engine, Failure};
use crate::store::entry::{self, Body, Head, KeyBuf};

/// A consistent view of what is visible. While it is held, its spaces are not dropped.
pub(super) struct View<E: Engine> {
    /// `None`: nothing was ever written.
    pub spaces: Option<Arc<Spaces<E>>>,
    /// Per partition: entries with a lower offset are hidden.
    pub flushed_below: Vec<(u32, u64)>,
}

/// The spaces of one generation of a database.
pub(super) struct Spaces<E: Engine> {
    /// Their names in the engine begin with this.
    prefix: String,
    pub entries: E::Space,
    /// `due ‖ hash ‖ key`, no value. See [`Head::due`].
    pub expiry: E::Space,
    /// `hash ‖ key ‖ partition ‖ offset ‖ number` → up to [`Engine::PIECE_BYTES`].
    pub pieces: E::Space,
    /// The elements of split collections; the keys are those of [`entry::element_key`].
    pub elements: E::Space,
    /// What the keys of elements begin with that have lost their head, no value.
    pub orphans: E::Space,
}

/// What the names of the spaces end with.
const NAMES: [&str; 5] = ["entries", "expiry", "pieces", "elements", "orphans"];

/// Where the entry of a record is kept.
pub(super) struct Place<'s, E: Engine> {
    pub space: &'s E::Space,
    pub key: KeyBuf,
    pub is_element: bool,
}

impl<E: Engine> Default for View<E> {
    fn default() -> Self {
        View {
            spaces: None,
            flushed_below: Vec::new(),
        }
    }
}

impl<E: Engine> Clone for View<E> {
    fn clone(&self) -> Self {
        View {
            spaces: self.spaces.clone(),
            flushed_below: self.flushed_below.clone(),
        }
    }
}

impl<E: Engine> View<E> {
    pub fn hides(&self, meta: &Meta) -> bool {
        meta.offset < self.flushed_below(meta.partition)
    }

    pub fn flushed_below(&self, partition: u32) -> u64 {
        self.flushed_below
            .iter()
            .find(|(of, _)| *of == partition)
            .map_or(0, |(_, offset)| *offset)
    }
}

impl<E: Engine> Spaces<E> {
    pub fn open(engine: &E, batch: &mut E::Batch, database: u16, generation: u64) -> Result<Spaces<E>, Failure> {
        let prefix = format!("{database}.{generation}.");
        let [entries, expiry, pieces, elements, orphans] =
            NAMES.map(|name| engine.space(batch, &format!("{prefix}{name}")));
        Ok(Spaces {
            entries: entries?,
            expiry: expiry?,
            pieces: pieces?,
            elements: elements?,
            orphans: orphans?,
            prefix,
        })
    }

    pub fn place(&self, record_key: &[u8]) -> Place<'_, E> {
        match entry::element_key(record_key) {
            Some(key) => Place {
                space: &self.elements,
                key,
                is_element: true,
            },
            None => Place {
                space: &self.entries,
                key: entry::store_key(record_key),
                is_element: false,
            },
        }
    }

    /// The head of a split collection if it has this version, with what the batch has written.
    pub fn head(&self, engine: &E, batch: &E::Batch, key: &[u8], version: Version) -> Result<Option<Split>, Failure> {
        let Some(stored) = engine.get_in(batch, &self.entries, &entry::store_key(key))? else {
            return Ok(None);
        };
        let (_, body) = entry::decode(&stored)?;
        Ok(body.split().filter(|split| split.version() == version))
    }

    /// Database and generation of a space with this name. `None` if it belongs to neither.
    pub fn owner(name: &str) -> Option<(u16, u64)> {
        let mut parts = name.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }

    /// Removes the spaces from the engine. No view of them may be held. Returns false if there is
    /// more to do.
    pub fn drop_from(&self, engine: &E, batch: &mut E::Batch, budget: usize) -> Result<bool, Failure> {
        for name in NAMES {
            if !engine.drop_space(batch, &format!("{}{name}", self.prefix), budget)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The bytes of a value that was cut, or `None` if a piece is missing.
    pub fn join_pieces(
        &self,
        engine: &E,
        store_key: &[u8],
        meta: &Meta,
        length: usize,
    ) -> Result<Option<Bytes>, Failure> {
        const TRUSTED: usize = 64 << 20;
        let mut value = BytesMut::with_capacity(length.min(TRUSTED));
        let [first, last] =
            [0, u32::MAX].map(|number| entry::piece_key(store_key, meta.partition, meta.offset, number));
        let pieces = engine.range(&self.pieces, (Bound::Included(&first), Bound::Included(&last)));
        for (expected_number, found) in (0u32..).zip(pieces) {
            let (key, piece) = found?;
            let (_, _, _, number) = entry::split_piece_key(&key)?;
            if number > expected_number {
                return Ok(None);
            }
            if piece.len() != E::PIECE_BYTES.min(length - value.len()) {
                return Err(Failure::damaged("piece"));
            }
            value.extend_from_slice(&piece);
        }
        Ok((value.len() == length).then(|| value.freeze()))
    }

    /// Writes what comes before an entry: its pieces, and its place in the index.
    pub fn set_parts(
        &self,
        engine: &E,
        batch: &mut E::Batch,
        store_key: &[u8],
        Head { meta, due }: &Head,
        state: &State,
    ) -> Result<(), Failure> {
        if let (Body::Cut(..), Ok((_, value))) = (Body::of(&state.value, E::PIECE_BYTES), state.value.kept()) {
            for (number, piece) in (0u32..).zip(value.chunks(E::PIECE_BYTES)) {
                let key = entry::piece_key(store_key, meta.partition, meta.offset, number);
                engine.set(batch, &self.pieces, &key, piece)?;
            }
        }
        match due {
            Some(due) => engine.set(batch, &self.expiry, &entry::expiry_key(*due, store_key), &[]),
            None => Ok(()),
        }
    }

    pub fn remove_entry(
        &self,
        engine: &E,
        batch: &mut E::Batch,
        space: &E::Space,
        store_key: &[u8],
        head: &Head,
        pieces: u32,
    ) -> Result<(), Failure> {
        engine.remove(batch, space, store_key)?;
        self.remove_expiry(engine, batch, store_key, head)?;
        self.remove_pieces(engine, batch, store_key, &head.meta, pieces)
    }

    pub fn remove_expiry(
        &self,
        engine: &E,
        batch: &mut E::Batch,
        store_key: &[u8],
        head: &Head,
    ) -> Result<(), Failure> {
        match head.due {
            Some(due) => engine.remove(batch, &self.expiry, &entry::expiry_key(due, store_key)),
            None => Ok(()),
        }
    }

    pub fn remove_pieces(
        &self,
        engine: &E,
        batch: &mut E::Batch,
        store_key: &[u8],
        meta: &Meta,
        pieces: u32,
    ) -> Result<(), Failure> {
        for number in 0..pieces {
            let key = entry::piece_key(store_key, meta.partition, meta.offset, number);
            engine.remove(batch, &self.pieces, &key)?;
        }
        Ok(())
    }
}
