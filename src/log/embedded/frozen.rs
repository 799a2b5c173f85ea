//! The files of an embedded log at one moment, for a copy of them. The log may belong to a running
//! node: nothing is locked and nothing is written.
//!
//! A segment only grows at its end, and compaction replaces whole files by new ones. So files that
//! are open keep what they had, and it is enough to open all files of one moment: those that the
//! directory has under the same names before and after they were opened. The newest segment counts
//! up to its last whole frame, and a frame holds whole batches: so it has everything that was
//! acknowledged by then, and no part of a group.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::disk::LocalDisk;
use super::meta::{META_FILE, MarkFile, Meta};
use super::recovery::examine_tail;
use super::segment::{FrameReader, ReadError, Segment, base_of, damage, io_error};
use crate::log::LogError;

/// Compaction replaces files now and then, never all the time.
const TRIES: u32 = 20;
/// The pause before the second try. It grows with each one.
const PAUSE: Duration = Duration::from_millis(2);
/// How many times what is written just now may look like damage.
const LOOKS: u32 = 5;

/// The log at one moment.
pub struct Frozen {
    /// As [`TopicIdentity::id`](crate::log::TopicIdentity::id) begins.
    pub id: String,
    /// Offset after the newest record.
    pub end: u64,
    /// Name, file, and how many bytes of it count.
    pub files: Vec<(String, File, u64)>,
}

/// Opens the files of a log.
pub fn freeze(dir: &Path) -> Result<Frozen, LogError> {
    let failed = |error: io::Error| io_error("read", dir, &error);
    for number in 0..TRIES {
        std::thread::sleep(PAUSE * number);
        // Before the rest: it is never ahead of what is on the disk.
        let durable = MarkFile::load(&LocalDisk, dir)?.map_or(0, |(mark, _)| mark.durable);
        let before = listing(dir).map_err(failed)?;
        let opened = match open_all(dir, &before) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(failed)?,
        };
        if listing(dir).map_err(failed)? == before {
            return measured(dir, opened, durable);
        }
    }
    Err(LogError::Failed(format!(
        "the files in {} change all the time: compaction replaces them; try again later",
        dir.display()
    )))
}

/// The names of what is copied, each with the number of the file that has it.
fn listing(dir: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // A name that is not UTF-8 is not a name of this log.
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if name == META_FILE || base_of(&name).is_some() {
            names.push((name, entry.metadata()?.ino()));
        }
    }
    names.sort();
    Ok(names)
}

fn open_all(dir: &Path, names: &[(String, u64)]) -> io::Result<Vec<(String, File)>> {
    let open = |(name, number): &(String, u64)| {
        let file = File::open(dir.join(name))?;
        match file.metadata()?.ino() == *number {
            true => Ok((name.clone(), file)),
            // It was replaced meanwhile.
            false => Err(io::ErrorKind::NotFound.into()),
        }
    };
    names.iter().map(open).collect()
}

/// Reads all of it, so that no damaged log is taken for a good copy. `durable`: everything below
/// this offset was on the disk before.
fn measured(dir: &Path, opened: Vec<(String, File)>, durable: u64) -> Result<Frozen, LogError> {
    let mut frozen = Frozen {
        id: String::new(),
        end: 0,
        files: Vec::new(),
    };
    let newest = opened.iter().filter_map(|(name, _)| base_of(name)).max();
    let Some(newest) = newest else {
        return Err(LogError::Failed(format!(
            "there is no embedded log in {}",
            dir.display()
        )));
    };
    // What begins below this offset is in the compacted segment before it.
    let mut covered = 0;
    for (name, file) in opened {
        let path = dir.join(&name);
        let failed = |error: io::Error| io_error("read", &path, &error);
        let clone = Arc::new(file.try_clone().map_err(failed)?);
        let Some(base) = base_of(&name) else {
            frozen.id = Meta::read(&*clone, &path)?.id_text();
            let bytes = file.metadata().map_err(failed)?.len();
            frozen.files.push((name, file, bytes));
            continue;
        };
        if base < covered {
            continue;
        }
        let segment = Arc::new(Segment::of_file(path.clone(), clone, base)?);
        if base != frozen.end {
            let what = format!("the segment before it ends at offset {}", frozen.end);
            return Err(damage(&path, 0, base, &what));
        }
        let compacted = segment.compacted;
        let (bytes, next) = match base == newest && compacted.is_none() {
            true => whole_frames(&segment, durable)?,
            false => {
                let mut reader = FrameReader::new(segment, 0);
                while reader.next()?.is_some() {}
                (reader.at(), reader.next_offset())
            }
        };
        frozen.end = compacted.map_or(next, |compacted| compacted.end);
        covered = frozen.end;
        frozen.files.push((name, file, bytes));
    }
    match frozen.end < durable {
        true => Err(LogError::Failed(format!(
            "the log in {} ends at offset {}, but records up to offset {durable} had been stored safely",
            dir.display(),
            frozen.end
        ))),
        false => Ok(frozen),
    }
}

/// Up to where the newest segment has whole frames: the place, and the offset. What comes behind
/// that is room for what will be written, or a write that is under way; but not what was once safe
/// on the disk, by the same signs as when a log is opened ([`super::recovery`]).
fn whole_frames(segment: &Arc<Segment>, durable: u64) -> Result<(u64, u64), LogError> {
    let mut looks = 0;
    loop {
        let mut reader = FrameReader::new(segment.clone(), 0);
        let bad = loop {
            match reader.next() {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(ReadError::Damaged(error)) => break Some(error),
                Err(error) => return Err(error.into()),
            }
        };
        let (at, next) = (reader.at(), reader.next_offset());
        let Some(bad) = bad else {
            return Ok((at, next));
        };
        let tail = examine_tail(segment, at, segment.readable(), next)?;
        if tail.durable.max(durable) <= next {
            return Ok((at, next));
        }
        // More may have been written since the frame was read.
        looks += 1;
        if looks > LOOKS {
            return Err(bad);
        }
        std::thread::sleep(PAUSE * looks);
    }
}
