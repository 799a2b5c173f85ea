//! Split collections that may have lost their last element while their head is still there. Nobody
//! finds such a key, but its head is in the counts. The head is removed some time later
//! ([`crate::sweep`]).
//!
//! A list that serves as a queue is empty again and again. Its head stays meanwhile: else the node
//! that takes the last item and the one that puts in the next would hinder each other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::transaction::{Keys, View};
use super::write::Write;
use super::{Fault, Service};
use crate::model::Value;

/// How long a head stays after its collection was last seen without elements.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most keys that are remembered. Others keep their head until they are seen again.
const MOST: usize = 10_000;
/// Longer keys are not remembered, either.
const LONGEST: usize = 2_048;

/// When keys were last seen without elements.
#[derive(Default)]
pub struct Emptied(Mutex<HashMap<(u16, Bytes), Instant>>);

impl Emptied {
    pub fn note(&self, database: u16, key: &[u8]) {
        if key.len() > LONGEST {
            return;
        }
        let mut keys = self.0.lock();
        let key = (database, Bytes::copy_from_slice(key));
        if keys.len() < MOST || keys.contains_key(&key) {
            keys.insert(key, Instant::now());
        }
    }

    /// Takes out keys of a database, at most so many, that were seen long enough ago.
    pub fn take_due(&self, database: u16, most: usize) -> Vec<Bytes> {
        let mut keys = self.0.lock();
        let due = keys
            .iter()
            .filter(|(of, seen)| of.0 == database && seen.elapsed() >= PATIENCE);
        let due: Vec<(u16, Bytes)> = due.map(|(of, _)| of.clone()).take(most).collect();
        for of in &due {
            keys.remove(of);
        }
        due.into_iter().map(|(_, key)| key).collect()
    }
}

impl Service {
    /// Removes the head of a split collection that has no elements. The write rests on that.
    /// `None`: there is nothing to remove.
    pub fn remove_emptied(self: &Arc<Self>, database: u16, key: &[u8]) -> Result<Option<Arc<Write>>, Fault> {
        // It has an owner of its own: it rests on no other write.
        let computed = self.transact(&Arc::default(), Keys::Some(&[key]), View::Update, |transaction| {
            let entry = transaction.get_even_expired(database, key)?;
            if let Some(Value::Split(split)) = entry.map(|entry| entry.value)
                && !transaction.keeps_elements(database, key, &split)?
            {
                transaction.delete(database, key);
            }
            Ok(())
        })?;
        Ok(computed.write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_due_when_they_were_seen_empty_for_a_while() {
        let emptied = Emptied::default();
        emptied.note(0, b"a");
        emptied.note(0, b"b");
        emptied.note(1, b"a");
        assert!(emptied.take_due(0, 9).is_empty());
        let long_ago = Instant::now().checked_sub(PATIENCE).expect("a time");
        emptied.0.lock().values_mut().for_each(|seen| *seen = long_ago);
        emptied.note(0, b"b");
        assert_eq!(emptied.take_due(0, 9), [&b"a"[..]]);
        assert!(emptied.take_due(0, 9).is_empty(), "each comes once");
        assert!(emptied.take_due(1, 0).is_empty());
        assert_eq!(emptied.take_due(1, 1), [&b"a"[..]]);
    }

    #[test]
    fn few_keys_are_remembered() {
        let emptied = Emptied::default();
        for n in 0..2 * MOST {
            emptied.note(0, n.to_string().as_bytes());
        }
        emptied.note(0, &[0; LONGEST + 1]);
        assert_eq!(emptied.0.lock().len(), MOST);
    }
}
