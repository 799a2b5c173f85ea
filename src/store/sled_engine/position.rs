//! The position file: the store's note, with what is needed to trust sled's files. It is written
//! after the data is durable, so a position is never ahead of its data. A store that does not match
//! its file is rebuilt.
//!
//! The file is text, so that people can read it too: one fact per line, then the note as it is, the
//! last line a checksum of all before it. It is replaced as a whole (temporary file, fsync, rename,
//! fsync of the directory), so a crash leaves the old one or the new one.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use crate::files;
use crate::store::checkpoint::{escape, unescape};
use crate::store::files::sync_parent;

/// First line of the file. The number changes with the format of the file.
const HEADER: &str = "highwater store position 4";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct PositionFile {
    /// Random id of the store, kept in the engine too: a file beside another store is of no use.
    pub store: u64,
    /// Number of the checkpoint. The engine holds the same number or a higher one; otherwise it has
    /// lost data.
    pub number: u64,
    /// The boot of the machine during which it was written. After a crash of the machine the pages
    /// that the engine had not synced are gone.
    pub boot: String,
    /// Length of the engine's data file: a shorter file was truncated. Exact if `closed`.
    pub length: u64,
    /// Everything was flushed, synced and closed after this checkpoint.
    pub closed: bool,
    /// See [`Engine`](crate::store::engine::Engine).
    pub note: String,
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

    fn format(&self) -> String {
        let PositionFile {
            store,
            number,
            boot,
            length,
            closed,
            note,
        } = self;
        let boot = escape(boot);
        let text = format!(
            "{HEADER}\nstore {store:016x}\nnumber {number}\nboot {boot}\nlength {length}\nclosed {closed}\n{note}"
        );
        let crc = crc32fast::hash(text.as_bytes());
        format!("{text}crc {crc:08x}\n")
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
    let (header, facts) = body.split_once('\n').unwrap_or_default();
    if header != HEADER {
        return Err("position file is of another version".to_owned());
    }
    parse_facts(facts).ok_or_else(|| damaged("facts"))
}

fn parse_facts(facts: &str) -> Option<PositionFile> {
    let mut rest = facts;
    let mut fact = |name: &str| {
        let (line, after) = rest.split_once('\n')?;
        rest = after;
        line.strip_prefix(name)?.strip_prefix(' ')
    };
    Some(PositionFile {
        store: u64::from_str_radix(fact("store")?, 16).ok()?,
        number: fact("number")?.parse().ok()?,
        boot: unescape(fact("boot")?)?,
        length: fact("length")?.parse().ok()?,
        closed: fact("closed")?.parse().ok()?,
        note: rest.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> PositionFile {
        PositionFile {
            store: 0xabcd_ef01,
            number: 3,
            boot: "7a-b".to_owned(),
            length: 524_288,
            closed: true,
            note: "source 0 crc\nposition 0 0 42 7\n".to_owned(),
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
