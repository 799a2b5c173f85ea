//! What is kept under one hash: the keys that have it, one except for collisions, with their
//! states. Pure functions. Reading validates, so damaged bytes are an error and never a wrong
//! value.

use crate::store::entry::{Damaged, put_varint, take_varint};

/// `length key length state`, repeated. The length of the last state is left out (0): it goes to
/// the end.
pub(super) struct Slot<'a>(pub &'a [u8]);

impl<'a> Slot<'a> {
    /// Keys and states.
    pub fn records(&self) -> impl Iterator<Item = Result<(&'a [u8], &'a [u8]), Damaged>> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            (!rest.is_empty()).then(|| {
                take_record(&mut rest).ok_or_else(|| {
                    rest = &[];
                    Damaged("slot")
                })
            })
        })
    }

    /// The state of a key.
    pub fn find(&self, key: &[u8]) -> Result<Option<&'a [u8]>, Damaged> {
        for record in self.records() {
            let (of, state) = record?;
            if of == key {
                return Ok(Some(state));
            }
        }
        Ok(None)
    }
}

fn take_record<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let key = take(rest)?;
    let length = take_varint(rest)?;
    let state = match length {
        0 => std::mem::take(rest),
        length => rest.split_off(..usize::try_from(length).ok()?)?,
    };
    Some((key, state))
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(take_varint(rest)?).ok()?;
    rest.split_off(..length)
}

/// Joins keys and states. The result is empty if there are none. No state is empty.
pub(super) fn build<'a>(records: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let mut slot = Vec::new();
    let mut records = records.peekable();
    while let Some((key, state)) = records.next() {
        put_varint(key.len() as u64, &mut slot);
        slot.extend_from_slice(key);
        let length = if records.peek().is_some() { state.len() } else { 0 };
        put_varint(length as u64, &mut slot);
        slot.extend_from_slice(state);
    }
    slot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_survive_a_round_trip_and_nonsense_is_an_error() {
        let long = [7; 300];
        let records: [(&[u8], &[u8]); 3] = [(b"", b"1"), (b"key", &long), (&long, b"3")];
        for count in 0..=3 {
            let built = build(records[..count].iter().copied());
            let read: Vec<_> = Slot(&built).records().map(|record| record.expect("is whole")).collect();
            assert_eq!(read, records[..count]);
            for (key, state) in &records[..count] {
                assert_eq!(Slot(&built).find(key), Ok(Some(*state)));
            }
            assert_eq!(Slot(&built).find(b"other"), Ok(None));
        }
        let built = build(records.iter().copied());
        assert!(Slot(&built[..20]).find(b"other").is_err());
    }
}
