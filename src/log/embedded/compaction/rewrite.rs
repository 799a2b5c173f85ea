//! Writes what stays of segments into a new file, and puts that in their place.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::rule::Looked;
use super::{Stop, check_stop, records};
use crate::log::embedded::Shared;
use crate::log::embedded::disk::{DiskFile, write_all};
use crate::log::embedded::frame::{FRAME_TARGET, FrameBuilder};
use crate::log::embedded::segment::{
    Compacted, Frame, FrameReader, SEGMENT_HEADER_LEN, Segment, TEMPORARY_SUFFIX, encode_header, io_error,
};

/// How much is written at once, and fsynced at once. Fsyncs go in steps, so that the fsyncs of the
/// writer need not wait for one large one.
const WRITE_CHUNK: usize = 1024 * 1024;
const SYNC_STEP: u64 = 8 * 1024 * 1024;

/// Writes the remaining records of the segments into one file and puts it in their place, if that
/// much room is kept beside it.
pub(super) fn rewrite(
    shared: &Shared,
    segments: &[Arc<Segment>],
    looked: &[Looked],
    end: u64,
    (purge_below, kept): (u64, u64),
) -> Result<(), Stop> {
    let left: u64 = looked.iter().map(|l| l.left).sum();
    let first = &segments[0];
    let mut name = first.path.clone().into_os_string();
    name.push(TEMPORARY_SUFFIX);
    let temporary = PathBuf::from(name);
    let room = shared.disk.room(&shared.dir).ok();
    let refusal = room.and_then(|room| room.refusal(&shared.dir, left, kept));
    let created = match (refusal, &shared.reserves) {
        (None, _) => shared.disk.create(&temporary),
        (Some(_), Some(reserves))
            if left <= reserves.for_compaction.kept() && reserves.for_compaction.become_file(&temporary) =>
        {
            shared.disk.open(&temporary)
        }
        (Some(refusal), _) => return Err(Stop::NoRoom(refusal)),
    };
    let file = created.map_err(|e| io_error("create", &temporary, &e).into());
    let written = file.and_then(|file| {
        let mut output = Output::new(file, first.base, &temporary, end);
        for (segment, looked) in segments.iter().zip(looked) {
            let mut reader = FrameReader::new(segment.clone(), 0);
            let mut record = 0;
            while let Some(frame) = reader.next()? {
                check_stop(shared)?;
                output.copy(segment, &frame, looked, &mut record)?;
            }
        }
        output.finish(first, segments.iter().map(|s| s.closed_at()).max().flatten())
    });
    let replaced = written.and_then(|segment| replace(shared, segments, segment, &temporary, purge_below));
    if replaced.is_err() {
        // It may never have been created. What is left of it is removed at the next open at the
        // latest.
        let _ = shared.disk.remove(&temporary);
    }
    replaced
}

/// A compacted segment being written.
struct Output {
    temporary: PathBuf,
    file: Arc<dyn DiskFile>,
    salt: u32,
    base: u64,
    end: u64,
    buffer: Vec<u8>,
    frame: Option<(FrameBuilder, u64)>,
    written: u64,
    synced: u64,
}

impl Output {
    fn new(file: Arc<dyn DiskFile>, base: u64, temporary: &Path, end: u64) -> Self {
        Self {
            temporary: temporary.to_path_buf(),
            file,
            salt: rand::random(),
            base,
            end,
            buffer: Vec::new(),
            frame: None,
            written: SEGMENT_HEADER_LEN as u64,
            synced: 0,
        }
    }

    /// Copies the remaining records of a frame. Groups never span frames, so neither do their
    /// remaining records here.
    fn copy(&mut self, segment: &Segment, frame: &Frame, looked: &Looked, index: &mut usize) -> Result<(), Stop> {
        let end = frame.header.end();
        if let Some((open, _)) = &self.frame {
            let body = open.body_len(&self.buffer) + frame.body.len();
            if body > FRAME_TARGET || end - open.base() > u64::from(u32::MAX) {
                self.end_frame();
            }
        }
        for record in records(segment, frame) {
            let record = record?;
            let goes = looked.goes(*index);
            *index += 1;
            if goes {
                continue;
            }
            let (open, open_end) = self.frame.get_or_insert_with(|| {
                (
                    FrameBuilder::begin(&mut self.buffer, frame.header.base, frame.header.timestamp),
                    end,
                )
            });
            *open_end = end;
            open.push(&mut self.buffer, &record);
        }
        if self.frame.is_none() && self.buffer.len() >= WRITE_CHUNK || self.buffer.len() >= 2 * WRITE_CHUNK {
            self.end_frame();
            self.flush()?;
        }
        Ok(())
    }

    fn end_frame(&mut self) {
        if let Some((frame, end)) = self.frame.take() {
            frame.finish(&mut self.buffer, end, self.end, self.salt);
        }
    }

    fn flush(&mut self) -> Result<(), Stop> {
        let failed = |e: std::io::Error| io_error("write", &self.temporary, &e);
        write_all(&*self.file, &self.buffer, self.written).map_err(failed)?;
        self.written += self.buffer.len() as u64;
        if self.written - self.synced >= SYNC_STEP {
            self.file.sync_data().map_err(failed)?;
            self.synced = self.written;
        }
        self.buffer.clear();
        self.buffer.shrink_to(2 * WRITE_CHUNK);
        Ok(())
    }

    /// Returns the segment, wholly on the disk under its temporary name.
    fn finish(mut self, first: &Segment, closed_at: Option<Instant>) -> Result<Segment, Stop> {
        self.end_frame();
        self.flush()?;
        let compacted = Compacted {
            end: self.end,
            file_len: self.written,
        };
        let header = encode_header(self.base, self.salt, Some(compacted));
        let synced = write_all(&*self.file, &header, 0)
            .and_then(|()| self.file.set_len(self.written))
            .and_then(|()| self.file.sync_all());
        synced.map_err(|e| io_error("write", &self.temporary, &e))?;
        let segment = Segment::new(
            first.path.clone(),
            self.file,
            self.base,
            self.salt,
            Some(compacted),
            self.written,
        );
        if let Some(closed_at) = closed_at {
            segment.close_at(closed_at);
        }
        Ok(segment)
    }
}

/// Puts the new file in the place of the old ones. Readers of the old files read them to their end.
fn replace(
    shared: &Shared,
    old: &[Arc<Segment>],
    new: Segment,
    temporary: &Path,
    purge_below: u64,
) -> Result<(), Stop> {
    // Held so that no follower begins between this check and the change.
    let registry = shared.registry.lock();
    if registry.slowest_follower() < purge_below {
        return Err(Stop::FollowerBehind);
    }
    shared
        .disk
        .rename(temporary, &new.path)
        .map_err(|e| io_error("rename", temporary, &e))?;
    let lasting = shared.disk.sync_dir(&shared.dir);
    let mut segments = shared.segments.write();
    let first = segments.partition_point(|segment| segment.base < old[0].base);
    segments.splice(first..first + old.len(), [Arc::new(new)]);
    drop(segments);
    drop(registry);
    // Until the new name is durable, the other files are needed beside the old file.
    lasting.map_err(|e| io_error("fsync", &shared.dir, &e))?;
    for segment in &old[1..] {
        shared
            .disk
            .remove(&segment.path)
            .map_err(|e| io_error("remove", &segment.path, &e))?;
    }
    Ok(())
}
