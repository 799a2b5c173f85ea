//! Opening a log directory: everything is verified, and what a crash left unfinished is repaired.
//!
//! The rule for bad bytes: they are cut off only if they are the end of the newest segment *and
//! nothing says that they were once safely on the disk*. Two things can say so: the `mark` file,
//! and the `durable` field of a readable frame header after the bad place (the writer knew of an
//! fsync beyond it). All other bad bytes are refused, and so are those of a newer format.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tracing::{info, warn};

use super::disk::{Disk, read_full, write_all};
use super::frame::{FrameHeader, HEADER_LEN, MAGIC};
use super::meta::{Mark, MarkFile, Meta};
use super::segment::{FrameReader, ReadError, Segment, TEMPORARY_SUFFIX, base_of, damage, io_error, segment_name};
use crate::log::LogError;

const COPY_CHUNK: u64 = 1024 * 1024;

/// A log that is ready for the writer.
pub struct Recovered {
    /// In the order of their offsets; the last one is the writer's.
    pub segments: Vec<Arc<Segment>>,
    /// Offset after the newest record.
    pub next: u64,
    pub meta: Meta,
    pub mark: MarkFile,
}

/// `lossy`: whether this run will show readers what is not fsynced yet.
pub fn recover(disk: &dyn Disk, dir: &Path, lossy: bool) -> Result<Recovered, LogError> {
    let write_failed = |e: std::io::Error| io_error("write to", dir, &e);
    disk.create_dir(dir).map_err(|e| io_error("create", dir, &e))?;
    // These first: a log of a newer format is left as it is.
    let stored_meta = Meta::load(disk, dir)?;
    let stored_mark = MarkFile::load(disk, dir)?;
    let mut segments = open_segments(disk, dir)?;
    let known_durable = stored_mark.map_or(0, |(mark, _)| mark.durable);

    let mut next = 0;
    let mut cut = 0;
    let newest = segments.len().saturating_sub(1);
    for (i, segment) in segments.iter().enumerate() {
        if segment.base != next {
            let what = format!("the segment before it ends at offset {next}; a file is missing or cut short");
            return Err(damage(&segment.path, 0, segment.base, &what));
        }
        if i == newest && segment.compacted.is_none() {
            (next, cut) = recover_tail(segment, known_durable)?;
        } else {
            next = verify(segment)?;
        }
    }
    if known_durable > next {
        return Err(missing(dir, next, known_durable));
    }

    let fresh = segments.is_empty();
    let mut meta = stored_meta.unwrap_or_else(Meta::new);
    let lossless = stored_mark.is_some_and(|(mark, _)| nothing_lost(&mark, disk, cut));
    if !fresh && !lossless {
        meta.generation += 1;
        info!(
            generation = meta.generation,
            "the log was not closed in order and may have lost its newest records: local stores are rebuilt from it"
        );
    }
    if stored_meta.is_none() && !fresh {
        warn!(directory = %dir.display(), "the log's meta file is missing: the log gets a new identity");
    }
    if stored_meta != Some(meta) {
        meta.save(disk, dir).map_err(write_failed)?;
    }
    if segments.last().is_none_or(|last| last.compacted.is_some()) {
        segments.push(Arc::new(Segment::create(disk, dir, next).map_err(write_failed)?));
    }
    for closed in &segments[..segments.len() - 1] {
        closed.close_at(Instant::now());
    }
    let sequence = stored_mark.map_or(0, |(_, sequence)| sequence);
    let mark = Mark {
        durable: next,
        clean: false,
        lossy,
        boot: disk.boot_id(),
    };
    let mark = MarkFile::start(disk, dir, mark, sequence).map_err(write_failed)?;
    Ok(Recovered {
        segments,
        next,
        meta,
        mark,
    })
}

/// Whether every record that a reader may have seen is still there.
fn nothing_lost(mark: &Mark, disk: &dyn Disk, cut: u64) -> bool {
    let same_boot = mark.boot.is_some() && mark.boot == disk.boot_id();
    mark.clean || !mark.lossy || (same_boot && cut == 0)
}

/// Opens the segments by their headers. Removes what an interrupted compaction left.
fn open_segments(disk: &dyn Disk, dir: &Path) -> Result<Vec<Arc<Segment>>, LogError> {
    let removal_failed = |e: std::io::Error| io_error("remove a leftover file from", dir, &e);
    let mut bases = Vec::new();
    for name in disk.list(dir).map_err(|e| io_error("read", dir, &e))? {
        if name.ends_with(TEMPORARY_SUFFIX) {
            disk.remove(&dir.join(name)).map_err(removal_failed)?;
        } else if let Some(base) = base_of(&name) {
            bases.push(base);
        }
    }
    bases.sort_unstable();
    let mut segments: Vec<Arc<Segment>> = Vec::new();
    for base in bases {
        let merged = segments.last().and_then(|last| last.compacted);
        if merged.is_some_and(|c| base < c.end) {
            // Its records are in the compacted segment before it; only its removal was not
            // finished.
            disk.remove(&dir.join(segment_name(base))).map_err(removal_failed)?;
            continue;
        }
        segments.push(Arc::new(Segment::open(disk, dir, base)?));
    }
    Ok(segments)
}

/// Reads all of a closed segment; returns the offset that the next segment begins at.
fn verify(segment: &Arc<Segment>) -> Result<u64, LogError> {
    let mut reader = FrameReader::new(segment.clone(), 0);
    while reader.next()?.is_some() {}
    Ok(segment.compacted.map_or(reader.next_offset(), |c| c.end))
}

fn missing(dir: &Path, next: u64, durable: u64) -> LogError {
    LogError::Failed(format!(
        "the log is damaged: {} ends at offset {next}, but records up to offset {durable} had been stored safely; \
         restore the missing or shortened segment file from a backup, or, to do without those records, remove {}",
        dir.display(),
        dir.join("mark").display()
    ))
}

/// Verifies the newest segment, cuts off an unfinished write and makes the rest durable. Returns
/// the log's end and how many bytes were cut off.
fn recover_tail(segment: &Arc<Segment>, known_durable: u64) -> Result<(u64, u64), LogError> {
    let len = segment.readable();
    let mut reader = FrameReader::new(segment.clone(), 0);
    // Where the frames begin that are not known to be durable.
    let mut unsafe_at = reader.at();
    let bad = loop {
        match reader.next() {
            Ok(Some(frame)) if frame.header.end() <= known_durable => unsafe_at = reader.at(),
            Ok(Some(_)) => {}
            Ok(None) => break None,
            Err(ReadError::Damaged(e)) => break Some(e),
            Err(ReadError::Newer(e) | ReadError::Io(e)) => return Err(e),
        }
    };
    let (at, next) = (reader.at(), reader.next_offset());
    let failed = |e: std::io::Error| io_error("write", &segment.path, &e);
    if let Some(bad) = bad {
        let tail = examine_tail(segment, at, len, next)?;
        if tail.durable.max(known_durable) > next {
            let durable = tail.durable.max(known_durable);
            return Err(LogError::Failed(format!(
                "{bad} (this is no unfinished write: records up to offset {durable} had been stored safely)"
            )));
        }
        if !tail.blank {
            warn!(
                file = %segment.path.display(), at, bytes = len - at, offset = next,
                "cut an unfinished write off the log's end; nothing in it was acknowledged as durable"
            );
        }
        segment.file.set_len(at).map_err(failed)?;
    }
    segment.set_readable(at);
    rewrite(segment, unsafe_at, at)?;
    segment.file.sync_all().map_err(failed)?;
    Ok((next, len - at))
}

pub(super) struct Tail {
    /// Nothing but zeros.
    blank: bool,
    /// The furthest offset that a frame header in it knows to be durable.
    pub(super) durable: u64,
}

/// Searches the bytes after the last good frame for signs that they were once safe.
pub(super) fn examine_tail(segment: &Segment, from: u64, len: u64, next: u64) -> Result<Tail, LogError> {
    let mut tail = Tail {
        blank: true,
        durable: 0,
    };
    let mut buffer = vec![0; COPY_CHUNK as usize];
    let mut at = from;
    while at < len {
        let read = read_full(&*segment.file, &mut buffer, at).map_err(|e| io_error("read", &segment.path, &e))?;
        let chunk = &buffer[..read];
        tail.blank &= chunk.iter().all(|&b| b == 0);
        for start in memchr_magic(chunk) {
            let header = chunk
                .get(start..start + HEADER_LEN)
                .and_then(|bytes| bytes.first_chunk());
            if let Some(header) = header.and_then(|bytes| FrameHeader::decode(bytes, segment.salt))
                && header.base >= next
            {
                tail.durable = tail.durable.max(header.durable);
            }
        }
        if read < buffer.len() {
            break;
        }
        // Overlap, so that a header across the border is seen whole.
        at += (read - HEADER_LEN + 1) as u64;
    }
    Ok(tail)
}

fn memchr_magic(chunk: &[u8]) -> impl Iterator<Item = usize> {
    chunk
        .windows(MAGIC.len())
        .enumerate()
        .filter(|(_, window)| *window == MAGIC)
        .map(|(i, _)| i)
}

/// Writes the bytes again as they are. After an fsync that failed, the system may take pages for
/// written that are not on the disk, and a further fsync would not write them.
fn rewrite(segment: &Segment, from: u64, to: u64) -> Result<(), LogError> {
    let mut at = from;
    while at < to {
        let mut buffer = vec![0; (to - at).min(COPY_CHUNK) as usize];
        let read = read_full(&*segment.file, &mut buffer, at).map_err(|e| io_error("read", &segment.path, &e))?;
        if read == 0 {
            return Err(io_error(
                "read",
                &segment.path,
                &std::io::ErrorKind::UnexpectedEof.into(),
            ));
        }
        write_all(&*segment.file, &buffer[..read], at).map_err(|e| io_error("write", &segment.path, &e))?;
        at += read as u64;
    }
    Ok(())
}
