//! How far the store is, and the text in which an engine keeps that as its note: one fact per line,
//! so that people can read it too.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bytes::Bytes;

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
    /// Libraries of functions: the offset of each, and its text.
    pub functions: BTreeMap<Bytes, (u64, Bytes)>,
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

impl Checkpoint {
    pub(super) fn format(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        for (database, of_database) in &self.databases {
            let _ = writeln!(text, "source {database} {}", escape(&of_database.source));
            for (partition, features) in &of_database.features {
                let _ = writeln!(
                    text,
                    "features {database} {partition} {}",
                    escape(&features.to_string())
                );
            }
            for (name, (offset, text_of)) in &of_database.functions {
                let (name, text_of) = (escape_bytes(name), escape_bytes(text_of));
                let _ = writeln!(text, "function {database} {offset} {name} {text_of}");
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
        text
    }

    pub(super) fn parse(text: &str) -> Result<Checkpoint, String> {
        let mut checkpoint = Checkpoint::default();
        for line in text.lines() {
            parse_line(line, &mut checkpoint).ok_or_else(|| format!("its position is damaged ({line})"))?;
        }
        Ok(checkpoint)
    }
}

fn parse_line(line: &str, checkpoint: &mut Checkpoint) -> Option<()> {
    let mut words = line.split(' ');
    let name = words.next()?;
    let of_database = checkpoint.databases.entry(number(words.next())?).or_default();
    match name {
        "features" => {
            let partition = number(words.next())?;
            let features = Features::parse(unescape(words.next()?)?.as_bytes());
            of_database.features.insert(partition, features);
        }
        "function" => {
            let offset = number(words.next())?;
            let name = unescape_bytes(words.next()?)?;
            let text = unescape_bytes(words.next()?)?;
            of_database.functions.insert(name.into(), (offset, text.into()));
        }
        "source" => of_database.source = unescape(words.next()?)?,
        "position" => {
            let partition = number(words.next())?;
            let position = PartitionPosition {
                next_offset: number(words.next())?,
                as_of: number(words.next())?,
                mark: match words.next() {
                    None => None,
                    offset => Some((number(offset)?, number(words.next())?)),
                },
            };
            of_database.partitions.insert(partition, position);
        }
        _ => return None,
    }
    words.next().is_none().then_some(())
}

fn number<T: std::str::FromStr>(word: Option<&str>) -> Option<T> {
    word?.parse().ok()
}

/// Percent-encodes what would break the line format: everything but visible ASCII, and `%` itself.
pub(super) fn escape(text: &str) -> String {
    escape_bytes(text.as_bytes())
}

fn escape_bytes(bytes: &[u8]) -> String {
    let mut escaped = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_graphic() && byte != b'%' {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "%{byte:02x}");
        }
    }
    escaped
}

pub(super) fn unescape(text: &str) -> Option<String> {
    String::from_utf8(unescape_bytes(text)?).ok()
}

fn unescape_bytes(text: &str) -> Option<Vec<u8>> {
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
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_a_round_trip() {
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
                    functions: BTreeMap::from([("lib".into(), (3, Bytes::from_static(b"#!lua name=lib\n\xff \0")))]),
                    partitions,
                },
            ),
            (15, DatabaseCheckpoint::default()),
        ]);
        for checkpoint in [Checkpoint { databases }, Checkpoint::default()] {
            assert_eq!(Checkpoint::parse(&checkpoint.format()), Ok(checkpoint));
        }
        for nonsense in ["source", "source 0 x y", "position 0 0 1", "other 0 1", " "] {
            assert!(Checkpoint::parse(nonsense).is_err(), "{nonsense}");
        }
    }
}
