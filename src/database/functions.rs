//! The libraries of functions that the topic of database 0 holds ([`crate::model::FUNCTION_KEY`]).
//! Flushes do not touch them. What a library means is not known here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use parking_lot::Mutex;

use super::fault::{Fault, Wait};
use super::hot::At;
use super::transaction::{View, known};
use super::write::{Item, Write};
use super::{Database, Service, Transaction};
use crate::log::{Read, TopicPartition};
use crate::model::function_key;

/// Where their records are.
pub(super) const DATABASE: u16 = 0;
pub(super) const PARTITION: u32 = 0;

/// The texts of libraries, by their names.
pub type Texts = BTreeMap<Bytes, Bytes>;

/// What a checkpoint keeps of each: the offset of its record, and the text.
pub type Stored = BTreeMap<Bytes, (u64, Bytes)>;

/// The libraries of one topic, as far as this node knows.
#[derive(Default)]
pub struct Libraries {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    texts: Arc<Texts>,
    /// The newest record of each, also of those that are deleted.
    offsets: BTreeMap<Bytes, u64>,
    /// The last change that was handed to the log.
    under_way: Option<Arc<Write>>,
}

impl Libraries {
    /// A record became visible. `None`: the library is deleted.
    pub(super) fn meet(&self, at: At, library: &[u8], text: Option<&Bytes>) {
        if at.partition != PARTITION {
            return;
        }
        let mut known = self.known.lock();
        let offset = known.offsets.entry(Bytes::copy_from_slice(library)).or_default();
        if *offset > at.offset {
            return;
        }
        *offset = at.offset;
        if library.is_empty() {
            return;
        }
        let texts = Arc::make_mut(&mut known.texts);
        match text {
            Some(text) => drop(texts.insert(Bytes::copy_from_slice(library), text.clone())),
            None => drop(texts.remove(library)),
        }
    }

    /// Those of an earlier run of this node.
    pub(super) fn restore(&self, stored: &Stored) {
        let mut known = self.known.lock();
        let texts = stored.iter().map(|(name, (_, text))| (name.clone(), text.clone()));
        known.texts = Arc::new(texts.collect());
        known.offsets = stored
            .iter()
            .map(|(name, (offset, _))| (name.clone(), *offset))
            .collect();
    }

    /// For a checkpoint. All records before `applied` are known.
    pub(super) fn stored(&self, applied: u64) -> Stored {
        let mut known = self.known.lock();
        known.forget_deleted(applied);
        let offset = |name: &Bytes| known.offsets.get(name).copied().unwrap_or(0);
        let texts = known.texts.iter();
        texts
            .map(|(name, text)| (name.clone(), (offset(name), text.clone())))
            .collect()
    }

    pub(super) fn forget(&self) {
        *self.known.lock() = Known::default();
    }

    /// A change was handed to the log.
    pub(super) fn pend(&self, write: &Arc<Write>) {
        self.known.lock().under_way = Some(write.clone());
    }

    /// The change that is under way, if there is one.
    fn under_way(&self) -> Option<Arc<Write>> {
        let mut known = self.known.lock();
        known.under_way.take_if(|write| write.outcome().is_some());
        known.under_way.clone()
    }

    fn texts(&self) -> Arc<Texts> {
        self.known.lock().texts.clone()
    }

    fn offset(&self) -> u64 {
        self.known.lock().offsets.get(&b""[..]).copied().unwrap_or(0)
    }
}

impl Known {
    /// Forgets where libraries were deleted of which no older record can come any more: neither
    /// from the log nor by an acknowledgement of an own write.
    fn forget_deleted(&mut self, applied: u64) {
        self.under_way.take_if(|write| write.outcome().is_some());
        if self.under_way.is_none() {
            let texts = &self.texts;
            let is_needed =
                |name: &Bytes, offset: u64| name.is_empty() || offset >= applied || texts.contains_key(name);
            self.offsets.retain(|name, offset| is_needed(name, *offset));
        }
    }
}

impl Database {
    /// How far the partition of the libraries has been applied.
    pub(super) fn applied_of_functions(&self) -> u64 {
        let partition = self.partitions().get(PARTITION as usize);
        partition.map_or(0, |partition| partition.applied.load(Ordering::Acquire))
    }
}

impl Service {
    /// Bytes of the texts of all libraries that this node knows.
    pub fn bytes_of_libraries(&self) -> usize {
        let texts = self.database(DATABASE).functions.texts();
        texts.values().map(Bytes::len).sum()
    }
}

impl Transaction<'_> {
    fn of_functions(&self) -> &Database {
        self.service().database(DATABASE)
    }

    fn look_at_libraries(&mut self) -> Result<(), Fault> {
        self.looks();
        self.service().check_features(DATABASE)
    }

    /// The libraries, with what this transaction has changed.
    pub fn libraries(&mut self) -> Result<Arc<Texts>, Fault> {
        self.look_at_libraries()?;
        let texts = {
            // Several libraries can become visible at once.
            let _one_moment = self.service().groups.hold_again();
            self.of_functions().functions.texts()
        };
        Ok(self.with_own(texts))
    }

    /// As [`Transaction::libraries`], for a command that changes them: what it writes rests on all
    /// of them.
    pub fn libraries_to_change(&mut self) -> Result<Arc<Texts>, Fault> {
        if let Some(write) = self.of_functions().functions.under_way() {
            return Err(Fault::Wait(Wait::Write(write)));
        }
        self.look_at_libraries()?;
        let at = TopicPartition {
            database: DATABASE,
            partition: PARTITION,
        };
        let (known, texts) = {
            // The libraries and the record that stands for all of them become visible together.
            let _one_moment = self.service().groups.hold_again();
            let of = self.of_functions();
            // In this order: what is known is at least as new as what was applied before.
            let applied = of.applied_of_functions();
            let seen = At {
                partition: PARTITION,
                offset: of.functions.offset(),
            };
            (known(at, applied, Some(seen)), of.functions.texts())
        };
        if self.view() == View::Update && !self.service().log.chains() {
            self.rests_on(Read {
                at,
                key: Some(function_key(b"")),
                added: None,
                known,
            });
        }
        Ok(self.with_own(texts))
    }

    /// The libraries with what this transaction has changed.
    fn with_own(&self, mut texts: Arc<Texts>) -> Arc<Texts> {
        for item in self.items() {
            if let Item::Function { library, text } = item
                && !library.is_empty()
            {
                let texts = Arc::make_mut(&mut texts);
                match text {
                    Some(text) => drop(texts.insert(library.clone(), text.clone())),
                    None => drop(texts.remove(library)),
                }
            }
        }
        texts
    }

    /// Gives libraries new texts, or deletes them. The caller has read them
    /// ([`Transaction::libraries_to_change`]).
    pub fn put_libraries(&mut self, libraries: impl IntoIterator<Item = (Bytes, Option<Bytes>)>) {
        for (library, text) in libraries {
            self.put_function(library, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_record_of_a_library_counts() {
        let libraries = Libraries::default();
        let meet = |offset, name: &str, text: Option<&'static str>| {
            let text = text.map(Bytes::from);
            let at = At { partition: 0, offset };
            libraries.meet(at, name.as_bytes(), text.as_ref());
        };
        meet(1, "", Some(""));
        meet(2, "a", Some("one"));
        meet(3, "b", Some("two"));
        meet(5, "a", None);
        meet(4, "a", Some("late"));
        let texts = |of: &Libraries| of.texts().keys().cloned().collect::<Vec<_>>();
        assert_eq!(texts(&libraries), ["b"]);
        // The deletion is kept until no older record can come.
        let kept = |applied| {
            libraries.stored(applied);
            libraries.known.lock().offsets.len()
        };
        assert_eq!((kept(5), kept(6)), (3, 2));
        let again = Libraries::default();
        again.restore(&libraries.stored(0));
        assert_eq!(texts(&again), ["b"]);
        assert_eq!(again.stored(0)[&b"b"[..]], (3, "two".into()));
        // A record elsewhere is none of ours.
        let elsewhere = At {
            partition: 1,
            offset: 9,
        };
        again.meet(elsewhere, b"b", None);
        assert_eq!(texts(&again), ["b"]);
        again.forget();
        assert!(texts(&again).is_empty());
    }
}
