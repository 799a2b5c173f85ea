//! A command of EXEC or of a script that fails writes nothing, while the others of its transaction
//! go on. So what it has written is taken back.

use bytes::Bytes;

use super::elements::SeenAll;
use super::{LINEAR, Transaction};
use crate::database::fault::Fault;
use crate::database::write::Item;

/// What a transaction was like before a command, as far as the command changes it.
#[derive(Default)]
pub(super) struct Undo {
    items: usize,
    bytes: usize,
    elements: usize,
    begun: usize,
    notices: usize,
    consumer_notes: usize,
    /// Items that stood there before, in the order in which they were replaced.
    replaced: Vec<(usize, Item)>,
    /// Collections whose elements it has changed; `None`: they were not read before.
    trees: Vec<((u16, Bytes), Option<SeenAll>)>,
}

impl Undo {
    pub fn replaced(&mut self, place: usize, old: Item) {
        if place < self.items {
            self.replaced.push((place, old));
        }
    }

    /// The elements of a collection are about to be changed.
    pub fn changes(&mut self, collection: &(u16, Bytes), all: &SeenAll) {
        if !self.trees.iter().any(|(of, _)| of == collection) {
            self.trees.push((collection.clone(), Some(all.clone())));
        }
    }

    /// A collection was read whole after this command has written elements of it.
    pub fn read_whole(&mut self, collection: &(u16, Bytes)) {
        if !self.trees.iter().any(|(of, _)| of == collection) {
            self.trees.push((collection.clone(), None));
        }
    }
}

impl Transaction<'_> {
    /// Computes one of several commands. If it answers an error, nothing of it is written.
    pub fn whole<T>(&mut self, command: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        self.undo = Some(Undo {
            items: self.items.len(),
            bytes: self.bytes,
            elements: self.elements,
            begun: self.begun.len(),
            notices: self.notices.len(),
            consumer_notes: self.consumer_notes.len(),
            ..Undo::default()
        });
        let result = command(self);
        let undo = self.undo.take();
        if let (Err(Fault::Error(_)), Some(undo)) = (&result, undo) {
            self.take_back(undo);
        }
        result
    }

    fn take_back(&mut self, undo: Undo) {
        // Else the maps of its own writes are not in use.
        let are_mapped = self.items.len() > LINEAR;
        let written: Vec<Item> = self.items.drain(undo.items..).collect();
        for item in written {
            if let Some((database, key)) = item.name() {
                self.places.remove(&(database, key.clone()));
            }
            if are_mapped {
                self.count_own(&item, false);
            }
        }
        for (place, old) in undo.replaced.into_iter().rev() {
            if are_mapped {
                self.count_own(&old, true);
            }
            let new = std::mem::replace(&mut self.items[place], old);
            if are_mapped {
                self.count_own(&new, false);
            }
        }
        self.bytes = undo.bytes;
        self.elements = undo.elements;
        self.begun.truncate(undo.begun);
        self.notices.truncate(undo.notices);
        self.consumer_notes.truncate(undo.consumer_notes);
        for (collection, before) in undo.trees {
            match before {
                Some(all) => drop(self.trees.insert(collection, all)),
                None => drop(self.trees.remove(&collection)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};
    use std::sync::Arc;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::database::functions::Texts;
    use crate::database::tests::Fixture;
    use crate::database::transaction::elements::Own;
    use crate::database::transaction::{Keys, View};
    use crate::model::{Collection, Element, Split, Value};

    const KEYS: u8 = 12;
    const COLLECTIONS: u8 = 2;
    const FIELDS: u8 = 6;

    #[derive(Clone, Debug)]
    enum Step {
        Set(u8, u8),
        Delete(u8),
        Make(u8),
        Put { collection: u8, field: u8, expired: bool },
        Remove(u8, u8),
        ReadAll(u8),
        Library(u8, bool),
    }

    /// Several steps, and whether they fail in the end.
    type Command = (Vec<Step>, bool);

    /// Names of elements, and whether they are live.
    type Elements = Vec<(Arc<[u8]>, bool)>;

    /// What a transaction sees in the end.
    #[derive(Debug, PartialEq)]
    struct Seen {
        keys: Vec<Option<Bytes>>,
        /// Whether each seems to have elements, and those that it has.
        collections: Vec<(bool, Elements)>,
        libraries: Arc<Texts>,
        items: usize,
        bytes: usize,
        elements: usize,
    }

    fn commands() -> impl Strategy<Value = Vec<Command>> {
        let (key, collection, field) = (0..KEYS, 0..COLLECTIONS, 0..FIELDS);
        let step = prop_oneof![
            3 => (key.clone(), any::<u8>()).prop_map(|(key, value)| Step::Set(key, value)),
            1 => key.prop_map(Step::Delete),
            1 => collection.clone().prop_map(Step::Make),
            3 => (collection.clone(), field.clone(), any::<bool>())
                .prop_map(|(collection, field, expired)| Step::Put { collection, field, expired }),
            2 => (collection.clone(), field).prop_map(|(collection, field)| Step::Remove(collection, field)),
            1 => collection.prop_map(Step::ReadAll),
            1 => (0..3_u8, any::<bool>()).prop_map(|(name, is_there)| Step::Library(name, is_there)),
        ];
        vec((vec(step, 0..6), any::<bool>()), 0..10)
    }

    fn split_of(t: &mut Transaction<'_>, collection: u8) -> Result<Option<Split>, Fault> {
        let entry = t.head(0, &[b'c', collection])?;
        Ok(entry.and_then(|entry| match entry.value {
            Value::Split(split) => Some(split),
            _ => None,
        }))
    }

    fn take(t: &mut Transaction<'_>, step: &Step) -> Result<(), Fault> {
        let element = |expired: bool| Element::new(b"v", expired.then_some(1));
        match *step {
            Step::Set(key, value) => t.set(0, &[b'k', key], vec![value; 3].into(), None),
            Step::Delete(key) => t.delete(0, &[b'k', key]),
            Step::Make(collection) => drop(t.put_split(0, &[b'c', collection], Collection::Hash, b"", None)),
            Step::Put {
                collection,
                field,
                expired,
            } => {
                if let Some(split) = split_of(t, collection)? {
                    t.put_element(0, &[b'c', collection], &split, &[field], Some(element(expired)));
                }
            }
            Step::Remove(collection, field) => {
                if let Some(split) = split_of(t, collection)? {
                    t.put_element(0, &[b'c', collection], &split, &[field], None);
                }
            }
            Step::ReadAll(collection) => {
                if let Some(split) = split_of(t, collection)? {
                    t.elements(0, &[b'c', collection], &split)?;
                }
            }
            Step::Library(name, is_there) => {
                t.put_libraries([(vec![b'l', name].into(), is_there.then(|| Bytes::from_static(b"text")))]);
            }
        }
        Ok(())
    }

    fn seen(t: &mut Transaction<'_>) -> Result<Seen, Fault> {
        let (items, bytes, elements) = (t.items.len(), t.bytes, t.elements);
        let mut collections = Vec::new();
        for collection in 0..COLLECTIONS {
            let key = [b'c', collection];
            let Some(split) = split_of(t, collection)? else {
                collections.push((false, Vec::new()));
                continue;
            };
            let seems = t.seems_to_have_elements(0, &key, &split)?;
            let all = t.elements(0, &key, &split)?;
            let all = all.iter().map(|held| (held.name.clone(), held.value.is_live(t.now)));
            collections.push((seems, all.collect()));
        }
        Ok(Seen {
            keys: (0..KEYS)
                .map(|key| t.get_string(0, &[b'k', key]))
                .collect::<Result<_, _>>()?,
            collections,
            libraries: t.libraries()?,
            items,
            bytes,
            elements,
        })
    }

    /// The maps of own writes are as if they were made from the items.
    fn check_maps(t: &mut Transaction<'_>) {
        if t.items.len() > LINEAR {
            let counted = |t: &Transaction<'_>| -> HashMap<(u16, Bytes), Own> {
                let own = t.own.iter().filter(|(_, own)| **own != Own::default());
                own.map(|(of, own)| (of.clone(), *own)).collect()
            };
            let (places, own) = (t.places.clone(), counted(t));
            t.find_by_map();
            assert_eq!((places, own), (t.places.clone(), counted(t)));
        }
    }

    /// What is seen after these commands. Nothing is written.
    fn outcome(f: &Fixture, commands: &[&Command]) -> Seen {
        let mut outcome = None;
        let ended = f.service.transact(&Arc::default(), Keys::All, View::Update, |t| {
            for (steps, fails) in commands {
                let done = t.whole(|t| {
                    steps.iter().try_for_each(|step| take(t, step))?;
                    match fails {
                        true => Err("ERR it fails".into()),
                        false => Ok(()),
                    }
                });
                assert_eq!(done.is_err(), *fails);
                check_maps(t);
            }
            outcome = Some(seen(t)?);
            Err::<(), Fault>("ERR nothing is written".into())
        });
        assert!(matches!(ended, Err(Fault::Error(_))));
        outcome.expect("it was seen")
    }

    #[test]
    fn of_commands_that_fail_nothing_is_left() {
        let f = Fixture::new(true);
        let config = ProptestConfig::with_cases(300);
        proptest!(config, |(commands in commands())| {
            let all: Vec<&Command> = commands.iter().collect();
            let good: Vec<&Command> = commands.iter().filter(|(_, fails)| !fails).collect();
            let seen = outcome(&f, &good);
            prop_assert_eq!(&outcome(&f, &all), &seen);
            let mut keys = BTreeMap::new();
            for step in good.iter().flat_map(|(steps, _)| steps) {
                match step {
                    Step::Set(key, value) => drop(keys.insert(*key, Bytes::from(vec![*value; 3]))),
                    Step::Delete(key) => drop(keys.remove(key)),
                    _ => {}
                }
            }
            let keys: Vec<Option<Bytes>> = (0..KEYS).map(|key| keys.get(&key).cloned()).collect();
            prop_assert_eq!(&seen.keys, &keys);
        });
    }
}
