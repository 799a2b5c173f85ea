//! A segment: one file of frames, named by its first offset, and the reader that walks it.
//!
//! A segment is either *in order* (the writer appended to it: its frames follow each other without
//! a gap) or *compacted* (rewritten as a whole: it has gaps, and its header says where it ends).
//! The reader checks every checksum, on each read. Damaged bytes are an error that names file and
//! place, never data.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::disk::{Disk, DiskFile, read_full, write_all};
use super::frame::{self, FrameHeader, HEADER_LEN, Malformed, checksum};
use crate::log::LogError;

pub const SEGMENT_SUFFIX: &str = ".segment";
pub const TEMPORARY_SUFFIX: &str = ".tmp";
pub const SEGMENT_HEADER_LEN: usize = 48;
const SEGMENT_MAGIC: [u8; 8] = *b"hwSEG\0\0\x01";

/// How much is read at once. Larger frames are read alone.
const CHUNK: u64 = 256 * 1024;

pub struct Segment {
    pub base: u64,
    pub path: PathBuf,
    pub salt: u32,
    pub compacted: Option<Compacted>,
    pub file: Arc<dyn DiskFile>,
    /// Bytes that readers may see; always at the end of a frame.
    readable: AtomicU64,
    /// When the writer left the segment, or the log was opened.
    closed_at: OnceLock<Instant>,
}

/// What the header of a compacted segment says of the whole segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// Offset after the range that the segment stands for.
    pub end: u64,
    pub file_len: u64,
}

pub fn segment_name(base: u64) -> String {
    format!("{base:020}{SEGMENT_SUFFIX}")
}

pub fn base_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SEGMENT_SUFFIX)?;
    (digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok())?
}

pub fn io_error(doing: &str, path: &Path, cause: &std::io::Error) -> LogError {
    LogError::Failed(format!("cannot {doing} {}: {cause}", path.display()))
}

impl Segment {
    /// Creates an empty segment for the writer. It appears under its name only when its header is
    /// on the disk.
    pub fn create(disk: &dyn Disk, dir: &Path, base: u64) -> std::io::Result<Self> {
        let path = dir.join(segment_name(base));
        let temporary = dir.join(format!("{}{TEMPORARY_SUFFIX}", segment_name(base)));
        let salt = rand::random();
        let made = (|| -> std::io::Result<_> {
            let file = disk.create(&temporary)?;
            write_all(&*file, &encode_header(base, salt, None), 0)?;
            file.sync_all()?;
            disk.rename(&temporary, &path)?;
            disk.sync_dir(dir)?;
            Ok(file)
        })();
        let file = made.inspect_err(|_| {
            // What is left of it is removed at the next open at the latest.
            let _ = disk.remove(&temporary);
        })?;
        Ok(Self::new(path, file, base, salt, None, SEGMENT_HEADER_LEN as u64))
    }

    pub fn new(
        path: PathBuf,
        file: Arc<dyn DiskFile>,
        base: u64,
        salt: u32,
        compacted: Option<Compacted>,
        readable: u64,
    ) -> Self {
        Self {
            base,
            path,
            salt,
            compacted,
            file,
            readable: AtomicU64::new(readable),
            closed_at: OnceLock::new(),
        }
    }

    /// Opens a segment by its header; its whole length is readable.
    pub fn open(disk: &dyn Disk, dir: &Path, base: u64) -> Result<Self, LogError> {
        let path = dir.join(segment_name(base));
        let file = disk.open(&path).map_err(|cause| io_error("read", &path, &cause))?;
        Self::of_file(path, file, base)
    }

    /// A segment in a file that is open.
    pub fn of_file(path: PathBuf, file: Arc<dyn DiskFile>, base: u64) -> Result<Self, LogError> {
        let failed = |cause: std::io::Error| io_error("read", &path, &cause);
        let len = file.len().map_err(failed)?;
        let mut bytes = [0; SEGMENT_HEADER_LEN];
        let read = read_full(&*file, &mut bytes, 0).map_err(failed)?;
        let header = (read == SEGMENT_HEADER_LEN).then(|| decode_header(&bytes)).flatten();
        let Some((named, salt, compacted)) = header else {
            let damaged = || damage(&path, 0, base, "its header is not readable");
            return Err(refuse_newer(&SEGMENT_MAGIC, &bytes, (&path, 0)).unwrap_or_else(damaged));
        };
        if named != base {
            return Err(damage(
                &path,
                0,
                base,
                &format!("it is the segment of offset {named} under another name"),
            ));
        }
        if let Some(c) = compacted
            && c.file_len != len
        {
            let what = format!("it should have {} bytes and has {len}", c.file_len);
            return Err(damage(&path, len.min(c.file_len), base, &what));
        }
        Ok(Self::new(path, file, base, salt, compacted, len))
    }

    pub fn readable(&self) -> u64 {
        self.readable.load(Ordering::Acquire)
    }

    pub fn close_at(&self, when: Instant) {
        self.closed_at.get_or_init(|| when);
    }

    pub fn closed_at(&self) -> Option<Instant> {
        self.closed_at.get().copied()
    }

    /// How long the segment has been closed; zero for the writer's.
    pub fn closed_for(&self) -> Duration {
        self.closed_at().map_or(Duration::ZERO, |when| when.elapsed())
    }

    pub fn set_readable(&self, len: u64) {
        self.readable.store(len, Ordering::Release);
    }
}

/// The error for bytes that cannot be right.
pub fn damage(path: &Path, at: u64, offset: u64, what: &str) -> LogError {
    LogError::Failed(format!(
        "the log is damaged: {} at byte {at} (offset {offset}): {what}; restore the file from a backup, or move the \
         log's directory away to start with an empty log",
        path.display()
    ))
}

/// The error for bytes that begin as `magic` does, but with a newer format, which is its last byte.
pub fn refuse_newer(magic: &[u8], bytes: &[u8], (path, at): (&Path, u64)) -> Option<LogError> {
    let (known, name) = magic.split_last()?;
    let (format, named) = bytes.get(..magic.len())?.split_last()?;
    (named == name && format > known).then(|| {
        LogError::Failed(format!(
            "{} has format {format} at byte {at}, and this version knows format {known}: start the version that \
             wrote it, or a newer one. If no other version was used here, the file is damaged: restore it from a backup",
            path.display()
        ))
    })
}

/// The error for a frame whose checksums are right and whose records are not of this format.
pub fn unreadable(segment: &Segment, header: &FrameHeader, cause: Malformed) -> LogError {
    LogError::Failed(format!(
        "{} holds a record that this version cannot read, in the frame of offset {}: {cause}; start the version that \
         wrote it, or a newer one",
        segment.path.display(),
        header.base
    ))
}

pub fn encode_header(base: u64, salt: u32, compacted: Option<Compacted>) -> [u8; SEGMENT_HEADER_LEN] {
    let mut bytes = [0; SEGMENT_HEADER_LEN];
    bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
    bytes[8..16].copy_from_slice(&base.to_le_bytes());
    bytes[16..20].copy_from_slice(&salt.to_le_bytes());
    if let Some(c) = compacted {
        bytes[20..24].copy_from_slice(&1u32.to_le_bytes());
        bytes[24..32].copy_from_slice(&c.end.to_le_bytes());
        bytes[32..40].copy_from_slice(&c.file_len.to_le_bytes());
    }
    let crc = checksum(0, &bytes[..44]);
    bytes[44..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode_header(bytes: &[u8; SEGMENT_HEADER_LEN]) -> Option<(u64, u32, Option<Compacted>)> {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    if bytes[..8] != SEGMENT_MAGIC || checksum(0, &bytes[..44]) != u32_at(44) {
        return None;
    }
    let compacted = (u32_at(20) == 1).then(|| Compacted {
        end: u64_at(24),
        file_len: u64_at(32),
    });
    Some((u64_at(8), u32_at(16), compacted))
}

/// Why a frame could not be read. Only recovery tells these apart.
#[derive(Debug)]
pub enum ReadError {
    /// The bytes are wrong.
    Damaged(LogError),
    /// The bytes are those of a newer format.
    Newer(LogError),
    /// The bytes could not be read.
    Io(LogError),
}

impl From<ReadError> for LogError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Damaged(e) | ReadError::Newer(e) | ReadError::Io(e) => e,
        }
    }
}

/// A frame that was read and whose checksums are right.
pub struct Frame {
    pub header: FrameHeader,
    pub body: Bytes,
}

/// Walks a segment's frames from its start.
pub struct FrameReader {
    segment: Arc<Segment>,
    /// Byte position of the next frame.
    at: u64,
    /// Offset that the next frame begins at (or, in a compacted segment, not before).
    next: u64,
    /// Frames that end at or below this offset are skipped, and their bodies are not read.
    from: u64,
    chunk: Bytes,
    chunk_at: u64,
}

impl FrameReader {
    pub fn new(segment: Arc<Segment>, from: u64) -> Self {
        let (at, next) = (SEGMENT_HEADER_LEN as u64, segment.base);
        Self {
            segment,
            at,
            next,
            from,
            chunk: Bytes::new(),
            chunk_at: 0,
        }
    }

    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Byte position after the last frame read.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Offset after the last frame read.
    pub fn next_offset(&self) -> u64 {
        self.next
    }

    /// The next frame, or `None` at the end of what is readable.
    pub fn next(&mut self) -> Result<Option<Frame>, ReadError> {
        loop {
            let limit = self.segment.readable();
            if self.at >= limit {
                return Ok(None);
            }
            let header = self.header(limit)?;
            let body_at = self.at + HEADER_LEN as u64;
            if header.end() > self.from {
                let body = self.bytes(body_at, header.body_len as usize, limit)?;
                if checksum(self.segment.salt, &body) != header.body_crc {
                    return Err(self.damaged("the checksum of a frame's records is wrong"));
                }
                self.advance(&header);
                return Ok(Some(Frame { header, body }));
            }
            self.advance(&header);
        }
    }

    fn advance(&mut self, header: &FrameHeader) {
        self.at += header.frame_len();
        self.next = header.end();
    }

    fn header(&mut self, limit: u64) -> Result<FrameHeader, ReadError> {
        let bytes = self.bytes(self.at, HEADER_LEN, limit)?;
        let bytes: &[u8; HEADER_LEN] = bytes[..].try_into().expect("as long as asked");
        let Some(header) = FrameHeader::decode(bytes, self.segment.salt) else {
            let newer = refuse_newer(&frame::MAGIC, bytes, (&self.segment.path, self.at)).map(ReadError::Newer);
            return Err(newer.unwrap_or_else(|| self.damaged("here should be a frame's header")));
        };
        let end = self.segment.compacted.map_or(u64::MAX, |c| c.end);
        let in_place = match self.segment.compacted {
            None => header.base == self.next,
            Some(_) => header.base >= self.next,
        };
        if !in_place || header.end() > end {
            return Err(self.damaged(&format!("a frame of offset {} is out of place", header.base)));
        }
        Ok(header)
    }

    fn bytes(&mut self, at: u64, len: usize, limit: u64) -> Result<Bytes, ReadError> {
        if limit.saturating_sub(at) < len as u64 {
            return Err(self.damaged("the file ends within a frame"));
        }
        let chunk_end = self.chunk_at + self.chunk.len() as u64;
        if at < self.chunk_at || at + len as u64 > chunk_end {
            let wanted = (limit - at).min(CHUNK).max(len as u64) as usize;
            let mut buffer = self.buffer(wanted);
            let read = read_full(&*self.segment.file, &mut buffer, at)
                .map_err(|e| ReadError::Io(io_error("read", &self.segment.path, &e)))?;
            if read < len {
                return Err(self.damaged("the file ends within a frame"));
            }
            buffer.truncate(read);
            self.chunk = buffer.freeze();
            self.chunk_at = at;
        }
        let start = (at - self.chunk_at) as usize;
        Ok(self.chunk.slice(start..start + len))
    }

    /// A buffer of `len` bytes to read into: that of the last chunk, if nothing holds a part of it.
    /// jemalloc gives out large zeroed memory as pages that the kernel creates again, which takes
    /// longer than to read them.
    fn buffer(&mut self, len: usize) -> BytesMut {
        match std::mem::take(&mut self.chunk).try_into_mut() {
            Ok(mut last) if len <= last.capacity() && last.capacity() <= CHUNK as usize => {
                last.resize(len, 0);
                last
            }
            _ => BytesMut::zeroed(len),
        }
    }

    fn damaged(&self, what: &str) -> ReadError {
        ReadError::Damaged(damage(&self.segment.path, self.at, self.next, what))
    }
}
