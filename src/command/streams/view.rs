//! A stream as a command sees it: its entries, groups and pending entries, each in the order of
//! their names. Nothing is copied: a page costs no more than its entries.

use std::ops::Range;

use bytes::Bytes;

use crate::command::{Data, Fault, Reply};
use crate::database::consumers::GroupName;
use crate::database::hot::own;
use crate::database::transaction::element_of;
use crate::database::{Form, Held, Indexed, Order, Ranked};
use crate::model::{
    Collection, Element, ElementName, Entry, Split, StreamEntry, StreamGroup, StreamHead, StreamId, StreamPart,
    StreamPending, Tree, max_deleted_of,
};

/// What it costs to answer an entry, as bytes to go through.
pub const SHOWN: usize = 200;

/// Which elements a command needs. A stream that is not in memory is read from the store only from
/// there on.
pub enum Reach {
    All,
    /// The newest entry, groups, and what they have delivered.
    Newest,
    /// The entries from this one on, the newest entry, groups, and what they have delivered.
    From(StreamId),
    /// Groups, and what they have delivered.
    Groups,
}

pub struct Stream<'k> {
    pub key: &'k [u8],
    pub split: Split,
    /// Of the key, absolute, milliseconds since the epoch.
    pub expire_at: Option<u64>,
    head: StreamHead,
    all: Indexed,
    /// Elements with lower names may be missing, see [`Reach`].
    from: Bytes,
}

/// A pending entry of a group.
pub struct PendingEntry {
    pub id: StreamId,
    pub held: StreamPending,
}

impl<'k> Stream<'k> {
    /// The stream at a key. What is written rests on all of it. `None` if the key is missing; the
    /// error of Redis if it holds something else.
    pub fn read(data: &mut Data, key: &'k [u8]) -> Result<Option<Self>, Fault> {
        Self::open(data, key, Reach::All, true)
    }

    /// As [`Stream::read`], for a command that need not know all of it.
    pub fn read_from(data: &mut Data, key: &'k [u8], reach: Reach) -> Result<Option<Self>, Fault> {
        Self::open(data, key, reach, true)
    }

    /// As [`Stream::read`], for a command that writes. What it writes rests only on what it reads
    /// by itself.
    pub fn change(data: &mut Data, key: &'k [u8]) -> Result<Option<Self>, Fault> {
        Self::open(data, key, Reach::All, false)
    }

    /// As [`Stream::change`], for a command that need not know all of it.
    pub fn change_from(data: &mut Data, key: &'k [u8], reach: Reach) -> Result<Option<Self>, Fault> {
        Self::open(data, key, reach, false)
    }

    fn open(data: &mut Data, key: &'k [u8], reach: Reach, rests_on_all: bool) -> Result<Option<Self>, Fault> {
        let entry = data.transaction.head(data.database, key)?;
        let stream = entry.map(|entry| Self::reaching(data, key, &entry, reach, rests_on_all));
        stream.transpose()
    }

    /// The stream that was read at a key. What is written rests on all of it.
    pub fn of(data: &mut Data, key: &'k [u8], entry: &Entry) -> Result<Self, Fault> {
        Self::reaching(data, key, entry, Reach::All, true)
    }

    fn reaching(
        data: &mut Data,
        key: &'k [u8],
        entry: &Entry,
        reach: Reach,
        rests_on_all: bool,
    ) -> Result<Self, Fault> {
        let Form::Split(split) = entry.collection(Collection::Stream)? else {
            return Err(entry.unreadable("a stream has a record for each entry"));
        };
        let mut head = StreamHead::of(split).map_err(|problem| entry.unreadable(problem))?;
        // Another producer's bound can be above the last id. XADD gives no id that it excludes.
        head.last = head.last.max(head.first.previous().unwrap_or(StreamId::MIN));
        let mut stream = Stream {
            key,
            split: split.clone(),
            expire_at: entry.meta.expire_at,
            head,
            all: Indexed::default(),
            from: Bytes::new(),
        };
        let (database, transaction) = (data.database, &mut data.transaction);
        stream.from = match reach {
            Reach::All => Bytes::new(),
            Reach::Newest => transaction.highest_from(database, key, split, StreamPart::ENTRIES)?,
            // Memory keeps this range, and XADD finds the newest entry in it: so it has to be
            // there.
            Reach::From(first) => transaction
                .highest_from(database, key, split, StreamPart::ENTRIES)?
                .min(StreamPart::Entry(first).sub_key().into()),
            Reach::Groups => Bytes::from_static(StreamPart::GROUPS.0),
        };
        let how = (Order::Name, &stream.from[..]);
        stream.all = match rests_on_all {
            true => transaction.elements_in_order(database, key, split, how)?,
            false => transaction.elements_in_order_to_pick(database, key, split, how)?,
        };
        Ok(stream)
    }

    /// Makes an empty stream at a key that holds nothing.
    pub fn create(data: &mut Data, key: &'k [u8]) -> Self {
        let database = data.database;
        let split = data.transaction.put_split(database, key, Collection::Stream, b"", None);
        let mut all = Indexed::default();
        all.put_in_order(Order::Name);
        Stream {
            key,
            split,
            expire_at: None,
            head: StreamHead::default(),
            all,
            from: Bytes::new(),
        }
    }

    fn order(&self) -> Result<&Tree<Ranked>, Fault> {
        let order = self.all.in_order(Order::Name);
        order.ok_or_else(|| self.broken("its elements have no order"))
    }

    /// An error unless the stream was read with [`Reach::All`].
    fn check_whole(&self) -> Result<(), Fault> {
        match self.from.is_empty() {
            true => Ok(()),
            false => Err(self.broken("the stream was not read whole")),
        }
    }

    fn broken(&self, problem: &str) -> Fault {
        Fault::unreadable_element(self.key, problem)
    }

    /// How many elements come before this name.
    fn place(&self, sub_key: &[u8]) -> Result<usize, Fault> {
        Ok(self.order()?.rank(Ranked::named(sub_key)))
    }

    fn places(&self, (start, end): (&[u8], &[u8])) -> Result<Range<usize>, Fault> {
        Ok(self.place(start)?..self.place(end)?)
    }

    /// The element at a place.
    fn at(&self, place: usize) -> Result<&Held, Fault> {
        let ranked = self.order()?.nth(place);
        let held = ranked.and_then(|ranked| self.all.by_name().get(Held::named(&ranked.name)));
        held.ok_or_else(|| self.broken("it is missing"))
    }

    fn named(&self, part: &StreamPart) -> Option<&Held> {
        self.all.by_name().get(Held::named(&part.sub_key()))
    }

    fn read_as<T>(&self, held: &Held, read: fn(&Element) -> Result<T, &'static str>) -> Result<T, Fault> {
        read(element_of(self.key, held)?).map_err(|problem| self.broken(problem))
    }

    /// The places of all entries that were read.
    pub fn entries(&self) -> Result<Range<usize>, Fault> {
        self.between(StreamId::MIN, StreamId::MAX)
    }

    pub fn len(&self) -> Result<usize, Fault> {
        self.check_whole()?;
        Ok(self.entries()?.len())
    }

    /// The places of the entries from this id to that one, both included.
    pub fn between(&self, first: StreamId, last: StreamId) -> Result<Range<usize>, Fault> {
        let first = StreamPart::Entry(first.max(self.head.first)).sub_key();
        let start = self.place(first.as_slice().max(&self.from))?;
        let end = match last.next() {
            Some(next) => self.place(&StreamPart::Entry(next).sub_key())?,
            None => self.place(StreamPart::ENTRIES.1)?,
        };
        Ok(start..end.max(start))
    }

    /// The id of the entry at a place.
    pub fn id_at(&self, place: usize) -> Result<StreamId, Fault> {
        self.id_of(self.at(place)?)
    }

    fn id_of(&self, held: &Held) -> Result<StreamId, Fault> {
        match StreamPart::parse(&held.name) {
            Ok(StreamPart::Entry(id)) => Ok(id),
            Ok(_) => Err(self.broken("it is no entry")),
            Err(problem) => Err(self.broken(problem)),
        }
    }

    /// The entry at a place.
    pub fn entry_at(&self, place: usize) -> Result<(StreamId, StreamEntry), Fault> {
        let held = self.at(place)?;
        Ok((self.id_of(held)?, self.read_as(held, StreamEntry::of)?))
    }

    /// The ordinal of the entry at a place.
    pub fn ordinal_at(&self, place: usize) -> Result<u64, Fault> {
        self.read_as(self.at(place)?, StreamEntry::ordinal_of)
    }

    pub fn entry(&self, id: StreamId) -> Result<Option<StreamEntry>, Fault> {
        self.check_whole()?;
        let held = self.named(&StreamPart::Entry(id)).filter(|_| id >= self.head.first);
        held.map(|held| self.read_as(held, StreamEntry::of)).transpose()
    }

    pub fn first_id(&self) -> Result<Option<StreamId>, Fault> {
        self.check_whole()?;
        let entries = self.entries()?;
        (!entries.is_empty()).then(|| self.id_at(entries.start)).transpose()
    }

    pub fn newest_id(&self) -> Result<Option<StreamId>, Fault> {
        let entries = self.entries()?;
        (!entries.is_empty()).then(|| self.id_at(entries.end - 1)).transpose()
    }

    /// The highest id that the stream has had, and how many entries were added.
    pub fn last(&self) -> Result<StreamHead, Fault> {
        let entries = self.entries()?;
        if entries.is_empty() {
            return Ok(self.head);
        }
        let newest = entries.end - 1;
        match self.id_at(newest)? {
            last if last > self.head.last => Ok(StreamHead {
                last,
                added: self.ordinal_at(newest)?,
                first: self.head.first,
            }),
            _ => Ok(self.head),
        }
    }

    /// As [`Stream::last`], for a command whose outcome depends on the write under way that the
    /// newest entry comes from.
    pub fn last_to_rest_on(&self, data: &mut Data) -> Result<StreamHead, Fault> {
        let entries = self.entries()?;
        if !entries.is_empty() {
            let held = self.at(entries.end - 1)?;
            data.transaction
                .depend_on_picked(data.database, self.key, &self.split, held)?;
        }
        self.last()
    }

    /// The highest id that XDEL has removed.
    pub fn max_deleted(&self) -> Result<StreamId, Fault> {
        self.check_whole()?;
        match self.named(&StreamPart::MaxDeleted) {
            Some(held) => self.read_as(held, max_deleted_of),
            None => Ok(StreamId::MIN),
        }
    }

    pub fn group(&self, name: &[u8]) -> Result<Option<StreamGroup>, Fault> {
        let held = self.named(&StreamPart::Group(name));
        held.map(|held| self.read_as(held, StreamGroup::of)).transpose()
    }

    /// All groups, in the order of their names.
    pub fn groups(&self) -> Result<Vec<(Bytes, StreamGroup)>, Fault> {
        let places = self.places(StreamPart::GROUPS)?;
        let mut groups = Vec::with_capacity(places.len());
        for place in places {
            let held = self.at(place)?;
            groups.push((own(&held.name[1..]), self.read_as(held, StreamGroup::of)?));
        }
        Ok(groups)
    }

    /// The places of the pending entries of a group from this id to that one, both included.
    pub fn pending_places(&self, group: &[u8], first: StreamId, last: StreamId) -> Result<Range<usize>, Fault> {
        let start = self.place(&StreamPart::Pending(group, first).sub_key())?;
        let last = StreamPart::Pending(group, last).sub_key();
        let end = self.order()?.rank(|ranked: &Ranked| match ranked.name[..] > last[..] {
            true => std::cmp::Ordering::Greater,
            false => std::cmp::Ordering::Less,
        });
        Ok(start..end.max(start))
    }

    pub fn all_pending(&self, group: &[u8]) -> Result<Range<usize>, Fault> {
        self.pending_places(group, StreamId::MIN, StreamId::MAX)
    }

    pub fn pending_at(&self, place: usize) -> Result<PendingEntry, Fault> {
        let held = self.at(place)?;
        let id = match StreamPart::parse(&held.name) {
            Ok(StreamPart::Pending(_, id)) => id,
            Ok(_) => return Err(self.broken("it is no pending entry")),
            Err(problem) => return Err(self.broken(problem)),
        };
        let held = self.read_as(held, StreamPending::of)?;
        Ok(PendingEntry { id, held })
    }

    /// The name under which the group's consumers are remembered.
    pub fn group_name(&self, database: u16, group: &[u8]) -> GroupName {
        let prefix = ElementName::prefix(self.key, self.split.version());
        (database, prefix, own(group))
    }
}

impl Stream<'_> {
    /// Reads one element; what is written rests on it.
    pub fn rest_on(&self, data: &mut Data, part: &StreamPart) -> Result<Option<Element>, Fault> {
        let sub_key = part.sub_key();
        data.transaction.element(data.database, self.key, &self.split, &sub_key)
    }

    /// The group; what is written rests on it.
    pub fn group_to_change(&self, data: &mut Data, name: &[u8]) -> Result<Option<StreamGroup>, Fault> {
        let element = self.rest_on(data, &StreamPart::Group(name))?;
        let group = element.map(|element| StreamGroup::of(&element)).transpose();
        group.map_err(|problem| self.broken(problem))
    }

    /// Whether there is such a group. The outcome depends on the write under way that it comes
    /// from, or that has removed it. Nothing rests on the group's state: each delivery changes it.
    pub fn has_group(&self, data: &mut Data, name: &[u8]) -> Result<bool, Fault> {
        match self.named(&StreamPart::Group(name)) {
            Some(held) => {
                data.transaction
                    .depend_on_picked(data.database, self.key, &self.split, held)?;
                Ok(true)
            }
            None => Ok(self.group_to_change(data, name)?.is_some()),
        }
    }

    /// The outcome depends on every write under way of the stream: for a command that finds
    /// nothing, perhaps because others remove it just now.
    pub fn depend_on_all(&self, data: &mut Data) -> Result<(), Fault> {
        data.transaction.depend_on_seen(data.database, self.key, &self.split)
    }

    /// A pending entry; what is written rests on it.
    pub fn pending_to_change(
        &self,
        data: &mut Data,
        group: &[u8],
        id: StreamId,
    ) -> Result<Option<StreamPending>, Fault> {
        let element = self.rest_on(data, &StreamPart::Pending(group, id))?;
        let pending = element.map(|element| StreamPending::of(&element)).transpose();
        pending.map_err(|problem| self.broken(problem))
    }

    /// Writes an element, or removes it.
    pub fn put(&self, data: &mut Data, part: &StreamPart, element: Option<Element>) -> Result<(), Fault> {
        let sub_key = part.sub_key();
        data.transaction
            .put_element(data.database, self.key, &self.split, &sub_key, element);
        data.transaction.check_size()
    }

    pub fn put_head(&mut self, data: &mut Data, head: StreamHead) {
        let metadata = (&head.metadata()[..], self.expire_at);
        self.split = data
            .transaction
            .put_metadata(data.database, self.key, &self.split, metadata);
        self.head = head;
    }

    /// Takes in what this command has written.
    pub fn refresh(&mut self, data: &mut Data) -> Result<(), Fault> {
        let (database, how) = (data.database, (Order::Name, &self.from[..]));
        let transaction = &mut data.transaction;
        self.all = transaction.elements_in_order_to_pick(database, self.key, &self.split, how)?;
        Ok(())
    }

    /// The replies for the entries at some places, or from the last to the first.
    pub fn show(&self, data: &mut Data, places: Range<usize>, reverse: bool) -> Result<Vec<Reply>, Fault> {
        let mut shown = Vec::with_capacity(places.len());
        let forward = (!reverse).then(|| places.clone());
        let backward = reverse.then(|| places.rev());
        for place in forward.into_iter().flatten().chain(backward.into_iter().flatten()) {
            let (id, entry) = self.entry_at(place)?;
            shown.push(show_entry(data, id, entry)?);
        }
        Ok(shown)
    }

    /// The lag of a group: how many entries it has not read, if that is known.
    pub fn lag(&self, group: &StreamGroup) -> Result<Option<i64>, Fault> {
        let StreamHead { added, .. } = self.last()?;
        if added == 0 {
            return Ok(Some(0));
        }
        let read = match group.read {
            Some(read) if !self.has_gaps_from(group.last)? => Some(read),
            _ => self.read_up_to(group.last)?,
        };
        Ok(read.map(|read| (added as i64).wrapping_sub(read)))
    }

    /// Whether XDEL has removed an entry from this id on, as far as Redis keeps that.
    pub fn has_gaps_from(&self, start: StreamId) -> Result<bool, Fault> {
        let deleted = self.max_deleted()?;
        Ok(match self.first_id()? {
            None => false,
            Some(first) => deleted != StreamId::MIN && first <= deleted && start <= deleted,
        })
    }

    /// How many entries have been added up to this id, if that can be said.
    pub fn read_up_to(&self, id: StreamId) -> Result<Option<i64>, Fault> {
        let StreamHead { last, added, .. } = self.last()?;
        let length = self.len()? as u64;
        if added == 0 {
            return Ok(Some(0));
        }
        if (length == 0 && id <= last) || id == last {
            return Ok(Some(added as i64));
        }
        let (Some(first), true) = (self.first_id()?, id < last) else {
            return Ok(None);
        };
        let deleted = self.max_deleted()?;
        let is_whole = deleted == StreamId::MIN || deleted < first;
        let before = added.wrapping_sub(length) as i64;
        Ok(match id.cmp(&first) {
            std::cmp::Ordering::Less if is_whole => Some(before),
            std::cmp::Ordering::Equal if is_whole => Some(before.wrapping_add(1)),
            _ => None,
        })
    }
}

/// The reply for an entry: its id, then its fields and values.
pub fn show_entry(data: &mut Data, id: StreamId, entry: StreamEntry) -> Result<Reply, Fault> {
    let bytes: usize = entry.fields.iter().map(|part| part.len() + size_of::<Reply>()).sum();
    data.transaction.works(SHOWN + bytes)?;
    let fields = entry.fields.into_iter().map(Reply::Bulk).collect();
    Ok(Reply::Array(vec![show_id(id), Reply::Array(fields)]))
}

pub fn show_id(id: StreamId) -> Reply {
    Reply::Bulk(id.to_string().into())
}
