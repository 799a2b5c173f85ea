//! The first pass of a copy: for each key of the source, where its newest record is; and from that,
//! which records are copied. Rules for a key in several partitions: see [`super`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::iter::Peekable;
use std::vec::IntoIter;

use foldhash::fast::RandomState;
use smallvec::{SmallVec, smallvec};
use tracing::{info, warn};

use super::Problem;
use crate::log::record::HEADER_BYTES;
use crate::log::{Log, LogRecord, TopicPartition};
use crate::model::{Control, ElementName, Features, Payload, State, Value, Version, is_control};

/// So many records that are not copied are logged one by one.
const NAMED: usize = 20;
/// So many bytes of a key are shown.
const SHOWN: usize = 100;

/// What the newest record of a key in a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Value,
    /// The head of a split collection.
    Head(Version),
    /// Too large for the topic that it would be copied to.
    TooLarge,
    Tombstone,
    Unreadable,
}

/// Where the newest record of a key in a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    offset: u64,
    timestamp: i64,
    partition: u32,
    state: Found,
}

/// One database: for each key, its newest record in each partition that has one.
#[derive(Default)]
struct KeyPlaces {
    /// The topic has more than one partition.
    is_spread: bool,
    places: HashMap<Box<[u8]>, SmallVec<[Place; 1]>, RandomState>,
}

impl KeyPlaces {
    fn note(&mut self, key: &[u8], place: Place) {
        match self.places.get_mut(key) {
            Some(places) => match places.iter_mut().find(|known| known.partition == place.partition) {
                Some(known) => *known = place,
                None => places.push(place),
            },
            None => drop(self.places.insert(key.into(), smallvec![place])),
        }
    }

    /// The key has no record in this partition any more.
    fn forget(&mut self, key: &[u8], partition: u32) {
        if let Some(places) = self.places.get_mut(key) {
            places.retain(|place| place.partition != partition);
            if places.is_empty() {
                self.places.remove(key);
            }
        }
    }
}

/// The keys of the source.
pub(super) struct Index {
    databases: Vec<KeyPlaces>,
    /// The newest flush marker of each partition: it hides every record with a lower offset.
    flushed: BTreeMap<TopicPartition, u64>,
    /// What each partition's topic uses of the format.
    features: BTreeMap<TopicPartition, Features>,
    pub(super) records: u64,
}

impl Index {
    pub(super) fn new(source: &dyn Log, databases: u16) -> Index {
        let keys = |database| KeyPlaces {
            is_spread: source.identity(database).is_some_and(|topic| topic.partitions > 1),
            ..KeyPlaces::default()
        };
        Index {
            databases: (0..databases).map(keys).collect(),
            flushed: BTreeMap::new(),
            features: BTreeMap::new(),
            records: 0,
        }
    }

    /// Takes in a record. `largest`: how large a record may be in the target.
    pub(super) fn see(&mut self, record: &LogRecord, largest: usize) {
        self.records += 1;
        let Some(keys) = self.databases.get_mut(usize::from(record.at.database)) else {
            return;
        };
        let state = match &record.payload {
            Payload::Control(Control::Flush) => {
                self.flushed.insert(record.at, record.offset);
                return;
            }
            Payload::Key(None) if !keys.is_spread || record.group.is_some() => {
                keys.forget(&record.key, record.at.partition);
                return;
            }
            // The target names its own.
            Payload::Control(Control::Features(features)) => {
                self.features.insert(record.at, features.clone());
                return;
            }
            Payload::Control(Control::Passed) => return,
            Payload::Control(Control::Function(Some(_))) => Found::Value,
            Payload::Key(None) | Payload::Control(Control::Function(None)) => Found::Tombstone,
            Payload::Key(Some(_)) if record.payload.is_unreadable() => Found::Unreadable,
            Payload::Control(Control::Unknown) => Found::Unreadable,
            Payload::Key(Some(state)) if record.key.len() + state.value.bytes() + HEADER_BYTES > largest => {
                Found::TooLarge
            }
            Payload::Key(Some(State {
                value: Value::Split(split),
                ..
            })) => Found::Head(split.version()),
            Payload::Key(Some(_)) => Found::Value,
        };
        let place = Place {
            offset: record.offset,
            timestamp: record.timestamp,
            partition: record.at.partition,
            state,
        };
        keys.note(&record.key, place);
    }

    /// An error if a topic uses what this version does not know: the copy would lack that.
    pub(super) fn check_features(&self, source: &dyn Log) -> Result<(), Problem> {
        let unknown = |(at, features): (&TopicPartition, &Features)| {
            let unknown = features.unknown().join(" ");
            (!unknown.is_empty()).then_some((at.database, unknown))
        };
        let Some((database, unknown)) = self.features.iter().find_map(unknown) else {
            return Ok(());
        };
        let topic = source.identity(database).map_or_else(String::new, |topic| topic.topic);
        Err(format!(
            "copy topic {topic}: it uses features of the format that this version does not know: {unknown}; copy it with \
             the version that wrote it, or a newer one"
        ))
    }

    /// Decides what is copied, given each key's home partition.
    pub(super) fn choose(self, home: impl Fn(u16, &[u8]) -> u32) -> Chosen {
        let mut chosen = Chosen::default();
        for (database, keys) in (0..).zip(self.databases) {
            let at = |place: &Place| TopicPartition {
                database,
                partition: place.partition,
            };
            let is_shown = |place: &&Place| self.flushed.get(&at(place)).is_none_or(|flush| place.offset >= *flush);
            let newest = |key: &[u8], places: &SmallVec<[Place; 1]>| {
                let home = home(database, key);
                let shown = places.iter().filter(|place| is_control(key) || is_shown(place));
                shown.max_by_key(|place| rank(place, home)).copied()
            };
            let has_head = |name: ElementName<'_>| {
                let head = keys.places.get(name.key).and_then(|places| newest(name.key, places));
                head.is_some_and(|head| head.state == Found::Head(name.version))
            };
            for (key, places) in &keys.places {
                // An element without its head is not shown.
                if ElementName::parse(key).is_some_and(|name| !has_head(name)) {
                    continue;
                }
                chosen.several += u64::from(places.iter().filter(is_shown).count() > 1);
                if let Some(newest) = newest(key, places) {
                    chosen.add(at(&newest), &newest, key);
                }
            }
        }
        chosen.places.values_mut().for_each(|offsets| offsets.sort_unstable());
        chosen
    }
}

/// Of several records of a key, the one with the highest rank wins.
fn rank(place: &Place, home: u32) -> impl Ord + use<> {
    let is_value = place.state != Found::Tombstone;
    (
        place.timestamp,
        is_value,
        place.partition == home,
        Reverse(place.partition),
    )
}

/// The records to be copied, and what is to be reported about the others.
#[derive(Default)]
pub(super) struct Chosen {
    /// Their offsets, ascending.
    pub(super) places: BTreeMap<TopicPartition, Vec<u64>>,
    several: u64,
    unreadable: Left,
    too_large: Left,
}

/// The places of chosen records that have not been read yet.
pub(super) struct Places(BTreeMap<TopicPartition, Peekable<IntoIter<u64>>>);

impl Places {
    /// Whether the record at this place was chosen. Places of a partition are asked for in order.
    pub(super) fn next_is(&mut self, at: TopicPartition, offset: u64) -> bool {
        let Some(offsets) = self.0.get_mut(&at) else {
            return false;
        };
        // An offset that is passed over does not exist any more.
        while offsets.next_if(|chosen| *chosen < offset).is_some() {}
        offsets.next_if_eq(&offset).is_some()
    }
}

/// Records that are not copied although they are the newest of their keys.
#[derive(Default)]
struct Left {
    count: u64,
    named: Vec<(TopicPartition, u64, String)>,
}

impl Left {
    fn add(&mut self, at: TopicPartition, offset: u64, key: &[u8]) {
        self.count += 1;
        if self.named.len() < NAMED {
            let shown = &key[..key.len().min(SHOWN)];
            self.named.push((at, offset, shown.escape_ascii().to_string()));
        }
    }
}

impl Chosen {
    fn add(&mut self, at: TopicPartition, newest: &Place, key: &[u8]) {
        match newest.state {
            Found::Tombstone => {}
            Found::Value | Found::Head(_) => self.places.entry(at).or_default().push(newest.offset),
            Found::Unreadable => self.unreadable.add(at, newest.offset, key),
            Found::TooLarge => self.too_large.add(at, newest.offset, key),
        }
    }

    /// Their places, to be found again when the records are read once more.
    pub(super) fn places(self) -> Places {
        let to_come = |(at, offsets): (_, Vec<u64>)| (at, offsets.into_iter().peekable());
        Places(self.places.into_iter().map(to_come).collect())
    }

    pub(super) fn count(&self) -> u64 {
        self.places.values().map(|offsets| offsets.len() as u64).sum()
    }

    /// Reports what is not copied, or not as one may expect. An error before anything is written is
    /// better than half a copy.
    pub(super) fn tell(&self, source: &dyn Log) -> Result<(), Problem> {
        let topic = |at: &TopicPartition| {
            source
                .identity(at.database)
                .map_or_else(String::new, |topic| topic.topic)
        };
        for (at, offset, key) in &self.unreadable.named {
            let (topic, partition) = (topic(at), at.partition);
            warn!(
                topic,
                partition, offset, "a record cannot be read and is not copied; its key begins with \"{key}\""
            );
        }
        if self.unreadable.count > 0 {
            warn!(
                "{} keys cannot be read and are not copied: another program wrote them, or a newer version of this one",
                self.unreadable.count
            );
        }
        if self.several > 0 {
            info!(
                "{} keys stand in several partitions: of each the newest record counts, by its timestamp",
                self.several
            );
        }
        match self.too_large.named.first() {
            Some((at, offset, key)) => Err(format!(
                "copy {} values: they are larger than the new topic takes (max.message.bytes), the first of them in {} partition {} offset \
                 {offset}, its key begins with \"{key}\"; raise it, or delete these keys; nothing was copied",
                self.too_large.count,
                topic(at),
                at.partition
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::log::Group;

    const LARGEST: usize = 1000;

    fn index(databases: u16, is_spread: bool) -> Index {
        let keys = |_| KeyPlaces {
            is_spread,
            ..KeyPlaces::default()
        };
        Index {
            databases: (0..databases).map(keys).collect(),
            flushed: BTreeMap::new(),
            features: BTreeMap::new(),
            records: 0,
        }
    }

    fn at(partition: u32) -> TopicPartition {
        TopicPartition { database: 0, partition }
    }

    fn record(partition: u32, offset: u64, timestamp: i64, key: &'static str, payload: Payload) -> LogRecord {
        LogRecord {
            at: at(partition),
            offset,
            timestamp,
            key: Bytes::from_static(key.as_bytes()),
            payload,
            group: None,
        }
    }

    fn value(bytes: usize) -> Payload {
        Payload::string(vec![b'v'; bytes].into(), None)
    }

    /// What is chosen of these records when the home partition of every key is 1.
    fn chosen(is_spread: bool, records: &[LogRecord]) -> Chosen {
        let mut index = index(1, is_spread);
        records.iter().for_each(|record| index.see(record, LARGEST));
        assert_eq!(index.records, records.len() as u64);
        index.choose(|_, _| 1)
    }

    fn places(chosen: &Chosen) -> Vec<(u32, Vec<u64>)> {
        let places = chosen.places.iter();
        places.map(|(at, offsets)| (at.partition, offsets.clone())).collect()
    }

    #[test]
    fn of_one_partition_the_newest_value_of_each_key_is_copied() {
        let records = [
            record(0, 1, 9, "a", value(1)),
            record(0, 3, 9, "b", value(1)),
            record(0, 4, 9, "c", value(1)),
            // Timestamps mean nothing within a partition.
            record(0, 7, 5, "a", value(2)),
            record(0, 8, 5, "c", Payload::TOMBSTONE),
            record(0, 9, 5, "never there", Payload::TOMBSTONE),
        ];
        let chosen = chosen(false, &records);
        assert_eq!(places(&chosen), [(0, vec![3, 7])]);
        assert_eq!((chosen.count(), chosen.several), (2, 0));
    }

    #[test]
    fn a_flush_hides_what_is_before_it_in_its_partition() {
        let flush = Payload::FLUSH;
        let records = [
            record(0, 1, 1, "old", value(1)),
            record(0, 2, 1, "again", value(1)),
            record(0, 5, 1, "flush", flush),
            record(0, 6, 1, "again", value(1)),
            record(2, 1, 1, "elsewhere", value(1)),
            // It is hidden where it was newer, so the record in the other partition is shown.
            record(0, 3, 9, "elsewhere", value(1)),
        ];
        assert_eq!(places(&chosen(true, &records)), [(0, vec![6]), (2, vec![1])]);
    }

    #[test]
    fn of_several_partitions_the_newest_record_wins() {
        let records = [
            // Written to the former home, after the write to the new one, by a producer that did
            // not know the new partitions.
            record(0, 1, 8, "late", value(1)),
            record(1, 1, 7, "late", value(1)),
            // The usual case: written again after the partitions were added.
            record(0, 2, 3, "anew", value(1)),
            record(1, 2, 4, "anew", value(1)),
            // Deleted in the new home.
            record(0, 3, 3, "deleted", value(1)),
            record(1, 3, 4, "deleted", Payload::TOMBSTONE),
            // Written again elsewhere after that.
            record(0, 4, 5, "revived", value(1)),
            record(1, 4, 4, "revived", Payload::TOMBSTONE),
            // Equal timestamps: values win, then the home partition, then the lowest one.
            record(0, 5, 4, "value", value(1)),
            record(1, 5, 4, "value", Payload::TOMBSTONE),
            record(0, 6, 4, "home", value(1)),
            record(1, 6, 4, "home", value(1)),
            record(2, 7, 4, "lowest", value(1)),
            record(0, 7, 4, "lowest", value(1)),
        ];
        let chosen = chosen(true, &records);
        assert_eq!(places(&chosen), [(0, vec![1, 4, 5, 7]), (1, vec![2, 6])]);
        assert_eq!(chosen.several, 7);
    }

    #[test]
    fn a_tombstone_of_a_group_counts_for_its_partition_alone() {
        let mut moved_home = record(0, 2, 9, "moved", Payload::TOMBSTONE);
        moved_home.group = Some(Group { id: 1, records: 2 });
        let records = [
            record(0, 1, 1, "moved", value(1)),
            record(1, 1, 8, "moved", value(1)),
            moved_home,
        ];
        let chosen = chosen(true, &records);
        assert_eq!(places(&chosen), [(1, vec![1])]);
        assert_eq!(chosen.several, 0);
    }

    #[test]
    fn what_cannot_be_copied_is_counted_only_where_it_is_the_newest() {
        let unreadable = || Payload::Key(Some(crate::model::State::unreadable("?")));
        let records = [
            record(0, 1, 1, "bad", unreadable()),
            record(0, 2, 1, "mended", unreadable()),
            record(0, 3, 1, "mended", value(1)),
            record(0, 4, 1, "large", value(LARGEST)),
            record(0, 5, 1, "was large", value(LARGEST)),
            record(0, 6, 1, "was large", value(1)),
            record(0, 7, 1, "\0highwater:later", Payload::UNKNOWN),
        ];
        let chosen = chosen(false, &records);
        assert_eq!(places(&chosen), [(0, vec![3, 6])]);
        assert_eq!((chosen.unreadable.count, chosen.too_large.count), (2, 1));
        assert_eq!(chosen.too_large.named, [(at(0), 4, "large".to_string())]);
    }
}
