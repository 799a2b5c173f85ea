//! A list: an array of its items.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Collection, Packed, at_end, part_of, room};
use crate::model::Element;
use crate::model::msgpack::{Problem, Reader, put_array, put_bytes};

/// The items of a list, in their order. The same item may stand there several times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Items(pub VecDeque<Bytes>);

impl Items {
    /// `None` if there is no item.
    pub fn pack(&self) -> Option<Packed> {
        if self.0.is_empty() {
            return None;
        }
        let bytes: usize = self.0.iter().map(|item| item.len() + 5).sum();
        let mut out = Vec::with_capacity(bytes + 5);
        put_array(self.0.len(), &mut out);
        self.0.iter().for_each(|item| put_bytes(item, &mut out));
        Some(Packed::kept(Collection::List, out.into()))
    }

    /// The item that an element's record holds. Items do not expire.
    pub fn of(element: &Element) -> Result<Bytes, Problem> {
        match element.expire_at() {
            Some(_) => Err("an item of a list does not expire"),
            None => Ok(element.payload()),
        }
    }
}

pub(super) fn read(bytes: &Bytes) -> Result<Items, Problem> {
    let mut reader = Reader::new(bytes);
    let len = reader.array()?;
    let mut items = VecDeque::with_capacity(room(len, &reader));
    for _ in 0..len {
        items.push_back(part_of(bytes, reader.bytes()?));
    }
    at_end(&reader)?;
    Ok(Items(items))
}
