//! A range of a space.

use std::collections::VecDeque;
use std::ops::RangeBounds;

use bytes::Bytes;

use super::long::{self, NUMBER, Records};
use crate::store::engine::{Failure, Range};

/// Keys and values of a range in the order of the whole keys.
pub(super) struct Found<'a> {
    range: Range<'a>,
    /// `None` if the range is empty.
    stored: Option<fjall::Iter>,
    /// Read ahead from `stored`.
    next: Option<(Bytes, Bytes)>,
    /// Long keys that begin with the same bytes, sorted.
    long: VecDeque<(Bytes, Bytes)>,
}

impl<'a> Found<'a> {
    pub fn new(keyspace: &fjall::Keyspace, space: u32, range: Range<'a>) -> Found<'a> {
        Found {
            range,
            stored: long::places(space, range).map(|places| keyspace.range(places)),
            next: None,
            long: VecDeque::new(),
        }
    }

    fn read(&mut self) -> Result<Option<(Bytes, Bytes)>, Failure> {
        if self.next.is_some() {
            return Ok(self.next.take());
        }
        let Some(found) = self.stored.as_mut().and_then(Iterator::next) else {
            return Ok(None);
        };
        let (key, value) = found.into_inner()?;
        Ok(Some((key.into(), value.into())))
    }

    /// Reads all long keys that begin as this one does.
    fn gather(&mut self, stored: &Bytes, value: &Bytes) -> Result<(), Failure> {
        let mut records = Records::read(value)?.0;
        while let Some((next, value)) = self.read()? {
            if !long::begin_alike(stored, &next) {
                self.next = Some((next, value));
                break;
            }
            records.extend(Records::read(&value)?.0);
        }
        records.retain(|(name, _)| RangeBounds::<[u8]>::contains(&self.range, &name[..]));
        records.sort_unstable();
        self.long = records.into();
        Ok(())
    }

    fn try_next(&mut self) -> Result<Option<(Bytes, Bytes)>, Failure> {
        loop {
            if let Some(long) = self.long.pop_front() {
                return Ok(Some(long));
            }
            let Some((stored, value)) = self.read()? else {
                return Ok(None);
            };
            if !long::is_long(&stored) {
                return Ok(Some((stored.slice(NUMBER..), value)));
            }
            self.gather(&stored, &value)?;
        }
    }
}

impl Iterator for Found<'_> {
    type Item = Result<(Bytes, Bytes), Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        self.try_next().transpose()
    }
}
