//! The position file: how far the store is. It is written after the store's data is durable, so a
//! position is never ahead of its data. A store that does not match its file is rebuilt.
//!
//! The file is text, so that people can read it too: one fact per line, the last line a checksum of
//! all before it. It is replaced as a whole (temporary file, fsync, rename, fsync of the
//! directory), so a crash leaves the old one or the new one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use super::Meta;
use crate::files;
use crate::model::Features;

/// How far the store is, per database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    pub databases: BTreeMap<u16, DatabaseCheckpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseCheckpoint {
    /// The log that this database was filled from, opaque here (cluster id, topic id, partition
    /// count).
    pub source: String,
    /// Per partition: what the log uses of its format, where a record was applied that says it.
    pub features: BTreeMap<u32, Features>,
    pub partitions: BTreeMap<u32, PartitionPosition>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionPosition {
    /// Last applied offset + 1.
    pub next_offset: u64,
    /// Milliseconds since the epoch: the store holds everything that the log held at this time.
    pub as_of: u64,
    /// The log's mark of the last record, opaque here: its offset, and the epoch in which the log
    /// got it.
    pub mark: Option<(u64, i32)>,
}

/// First line of the file. The number changes with the format of the file or of the store.
const HEADER: &str = "highwater store position 4";

/// The counts of one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyCount {
    /// Visible keys, and how many of them have an expiry.
    pub keys: u64,
    pub expiring: u64,
    /// Entries that a flush has hidden and that still exist.
    pub hidden: u64,
    /// No entry with a higher offset was ever counted.
    pub newest: u64,
}

impl KeyCount {
    /// Called when an entry has this offset now.
    pub fn meet(&mut self, offset: u64) {
        self.newest = self.newest.max(offset);
    }

    pub fn add(&mut self, meta: &Meta, is_hidden: bool) {
        self.meet(meta.offset);
        if is_hidden {
            self.hidden += 1;
        } else {
            self.keys += 1;
            self.expiring += u64::from(meta.expire_at.is_some());
        }
    }

    pub fn remove(&mut self, meta: &Meta, is_hidden: bool) {
        let number = if is_hidden { &mut self.hidden } else { &mut self.keys };
        debug_assert!(*number > 0, "more removed than counted");
        *number = number.saturating_sub(1);
        if !is_hidden {
            self.expiring = self.expiring.saturating_sub(u64::from(meta.expire_at.is_some()));
        }
    }

    /// The counts when everything below an offset is hidden. `None` if some entry may not be below:
    /// then the partition has to be counted again.
    pub fn hidden_below(&self, offset: u64) -> Option<KeyCount> {
        (self.newest < offset).then(|| KeyCount {
            hidden: self.hidden + self.keys,
            newest: self.newest,
            ..KeyCount::default()
        })
    }
}

/// Everything the position file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PositionFile {
    /// Random id of the store, kept in the engine too: a file beside another store is of no use.
    pub store: u64,
    /// Number of this checkpoint. The engine holds the same number or a higher one; otherwise it
    /// has lost data.
    pub number: u64,
    /// The boot of the machine during which it was written. After a crash of the machine the pages
    /// that the engine had not synced are gone.
    pub boot: String,
    /// Length of the engine's data file: a shorter file was truncated. Exact if `closed`.
    pub length: u64,
    /// Everything was flushed, synced and closed after this checkpoint.
    pub closed: bool,
    /// Key counts per database and partition. A database that is missing has to be counted.
    pub counts: BTreeMap<u16, BTreeMap<u32, KeyCount>>,
    pub checkpoint: Checkpoint,
}

impl PositionFile {
    /// `Ok(None)` if there is no file, `Err` with the reason if it cannot be used.
    pub fn read(path: &Path) -> Result<Option<PositionFile>, String> {
        match fs::read(path) {
            Ok(bytes) => parse(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("position file cannot be read: {error}")),
        }
    }

    /// Replaces the file, durably.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        self.replace(path, File::sync_all)?;
        sync_parent(path)
    }

    /// Replaces the file. A crash of the machine may leave the old one or a damaged one.
    pub fn write_unsynced(&self, path: &Path) -> io::Result<()> {
        self.replace(path, |_| Ok(()))
    }

    fn replace(&self, path: &Path, sync: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = files::create(&temporary)?;
        file.write_all(self.format().as_bytes())?;
        sync(&file)?;
        drop(file);
        fs::rename(&temporary, path)
    }

    pub fn parse(bytes: &[u8]) -> Result<PositionFile, String> {
        parse(bytes)
    }

    pub fn format(&self) -> String {
        let mut text = format!(
            "{HEADER}\nstore {:016x}\nnumber {}\nboot {}\nlength {}\nclosed {}\n",
            self.store,
            self.number,
            escape(&self.boot),
            self.length,
            self.closed
        );
        // Writing into a String cannot fail.
        for (database, of_database) in &self.checkpoint.databases {
            let _ = writeln!(text, "source {database} {}", escape(&of_database.source));
            for (partition, features) in &of_database.features {
                let _ = writeln!(
                    text,
                    "features {database} {partition} {}",
                    escape(&features.to_string())
                );
            }
            for (partition, position) in &of_database.partitions {
                let PartitionPosition {
                    next_offset,
                    as_of,
                    mark,
                } = position;
                let mark = mark.map_or(String::new(), |(offset, epoch)| format!(" {offset} {epoch}"));
                let _ = writeln!(text, "position {database} {partition} {next_offset} {as_of}{mark}");
            }
        }
        for (database, partitions) in &self.counts {
            let _ = writeln!(text, "counted {database}");
            for (partition, count) in partitions {
                let KeyCount {
                    keys,
                    expiring,
                    hidden,
                    newest,
                } = count;
                let _ = writeln!(text, "count {database} {partition} {keys} {expiring} {hidden} {newest}");
            }
        }
        let crc = crc32fast::hash(text.as_bytes());
        let _ = writeln!(text, "crc {crc:08x}");
        text
    }
}

/// Fsync of the directory that holds `path`: makes a rename or removal in it durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn parse(bytes: &[u8]) -> Result<PositionFile, String> {
    let damaged = |what: &str| format!("position file is damaged ({what})");
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("not text"))?;
    let body_len = text.rfind("crc ").ok_or_else(|| damaged("no checksum"))?;
    let (body, crc_line) = text.split_at(body_len);
    if crc_line != format!("crc {:08x}\n", crc32fast::hash(body.as_bytes())) {
        return Err(damaged("checksum"));
    }
    let mut lines = body.lines();
    if lines.next() != Some(HEADER) {
        return Err("position file is of another version".to_owned());
    }
    let mut file = PositionFile::default();
    for line in lines {
        parse_line(line, &mut file).ok_or_else(|| damaged(line))?;
    }
    Ok(file)
}

fn parse_line(line: &str, file: &mut PositionFile) -> Option<()> {
    let (name, rest) = line.split_once(' ')?;
    let mut words = rest.split(' ');
    match name {
        "store" => file.store = u64::from_str_radix(rest, 16).ok()?,
        "number" => file.number = rest.parse().ok()?,
        "boot" => file.boot = unescape(rest)?,
        "length" => file.length = rest.parse().ok()?,
        "closed" => file.closed = rest.parse().ok()?,
        "source" => {
            let database = number(words.next())?;
            let source = unescape(words.next()?)?;
            file.checkpoint.databases.entry(database).or_default().source = source;
        }
        "features" => {
            let (database, partition) = (number(words.next())?, number(words.next())?);
            let features = Features::parse(unescape(words.next()?)?.as_bytes());
            let of_database = file.checkpoint.databases.entry(database).or_default();
            of_database.features.insert(partition, features);
        }
        "position" => {
            let (database, partition) = (number(words.next())?, number(words.next())?);
            let position = PartitionPosition {
                next_offset: number(words.next())?,
                as_of: number(words.next())?,
                mark: match words.next() {
                    None => None,
                    offset => Some((number(offset)?, number(words.next())?)),
                },
            };
            file.checkpoint
                .databases
                .entry(database)
                .or_default()
                .partitions
                .insert(partition, position);
        }
        "counted" => {
            file.counts.entry(number(words.next())?).or_default();
        }
        "count" => {
            let (database, partition) = (number(words.next())?, number(words.next())?);
            let count = KeyCount {
                keys: number(words.next())?,
                expiring: number(words.next())?,
                hidden: number(words.next())?,
                newest: number(words.next())?,
            };
            file.counts.entry(database).or_default().insert(partition, count);
        }
        _ => return None,
    }
    Some(())
}

fn number<T: std::str::FromStr>(word: Option<&str>) -> Option<T> {
    word?.parse().ok()
}

/// Percent-encodes what would break the line format: everything but visible ASCII, and `%` itself.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02x}");
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> PositionFile {
        let partitions = BTreeMap::from([
            (
                0,
                PartitionPosition {
                    next_offset: 42,
                    as_of: 1_700_000_000_000,
                    mark: Some((40, 3)),
                },
            ),
            (
                7,
                PartitionPosition {
                    next_offset: u64::MAX,
                    as_of: 0,
                    mark: None,
                },
            ),
        ]);
        let databases = BTreeMap::from([
            (
                0,
                DatabaseCheckpoint {
                    source: "cluster=ä b\n%crc topic=x".to_owned(),
                    features: BTreeMap::from([(0, Features::default()), (7, Features::parse(b"a b"))]),
                    partitions,
                },
            ),
            (15, DatabaseCheckpoint::default()),
        ]);
        let counts = BTreeMap::from([
            (
                0,
                BTreeMap::from([(
                    0,
                    KeyCount {
                        keys: 5,
                        expiring: 2,
                        hidden: 1,
                        newest: 41,
                    },
                )]),
            ),
            (3, BTreeMap::new()),
        ]);
        PositionFile {
            store: 0xabcd_ef01,
            number: 3,
            boot: "7a-b".to_owned(),
            length: 524_288,
            closed: true,
            counts,
            checkpoint: Checkpoint { databases },
        }
    }

    #[test]
    fn survives_a_round_trip() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("position");
        assert_eq!(PositionFile::read(&path), Ok(None));
        for file in [example(), PositionFile::default()] {
            file.write(&path).unwrap();
            assert_eq!(PositionFile::read(&path), Ok(Some(file)));
        }
    }

    #[test]
    fn any_flipped_or_missing_byte_is_noticed() {
        let text = example().format().into_bytes();
        assert!(parse(&text).is_ok());
        for at in 0..text.len() {
            assert!(parse(&text[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut damaged = text.clone();
                damaged[at] ^= 1 << bit;
                assert!(parse(&damaged).is_err(), "bit {bit} of byte {at}");
            }
        }
    }
}
