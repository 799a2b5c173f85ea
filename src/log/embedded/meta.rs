//! The two small files beside the segments.
//!
//! `meta` says which log this is and how far tombstones were removed; it changes rarely and is
//! replaced atomically. It is read before anything else, so its format stands for the whole log: a
//! version that is about to write what older ones cannot read (a type of value, a flag of a record)
//! first replaces `meta` by one with a higher format.
//!
//! `mark` says up to which offset everything was fsynced. It is written after each fsync of a
//! segment, and not itself fsynced: that would double the cost of a write. So it can be behind the
//! truth but never ahead of it. Recovery may only cut off what lies past it. Two slots are written
//! in turn, so that a torn write leaves the one before.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::{BootId, Disk, DiskFile, read_full, write_all};
use super::frame::checksum;
use super::segment::{TEMPORARY_SUFFIX, io_error, refuse_newer};
use crate::log::LogError;

pub(super) const META_FILE: &str = "meta";
const META_MAGIC: [u8; 8] = *b"hwMETA\0\x01";
const META_LEN: usize = 52;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Random, created with the directory.
    pub id: u128,
    /// Grows when records that readers may have seen were lost (power failure without `--fsync
    /// always`).
    pub generation: u32,
    /// Tombstones and flush markers below this offset may be gone.
    pub purged_below: u64,
    /// Below this offset no record is hidden by another one below it.
    pub clean_below: u64,
}

impl Meta {
    pub fn new() -> Self {
        Self {
            id: rand::random(),
            generation: 0,
            purged_below: 0,
            clean_below: 0,
        }
    }

    /// `None` if there is no such file.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<Self>, LogError> {
        let path = dir.join(META_FILE);
        if !disk
            .list(dir)
            .map_err(|e| io_error("read", dir, &e))?
            .iter()
            .any(|name| name == META_FILE)
        {
            return Ok(None);
        }
        let file = disk.open(&path).map_err(|e| io_error("read", &path, &e))?;
        Self::read(&*file, &path).map(Some)
    }

    /// Reads it from a file that is open.
    pub(super) fn read(file: &dyn DiskFile, path: &Path) -> Result<Self, LogError> {
        let mut bytes = [0; META_LEN + 1];
        let read = read_full(file, &mut bytes, 0).map_err(|e| io_error("read", path, &e))?;
        if let Some(meta) = bytes.first_chunk().filter(|_| read == META_LEN).and_then(Self::decode) {
            return Ok(meta);
        }
        let damaged = || {
            LogError::Failed(format!(
                "the log's file {} is damaged; restore it from a backup, or remove it: the log then gets a new \
                 identity and the local store is rebuilt from it, no data is lost",
                path.display()
            ))
        };
        Err(refuse_newer(&META_MAGIC, &bytes[..read], (path, 0)).unwrap_or_else(damaged))
    }

    /// The log's id, for people and for files that name it.
    pub fn id_text(&self) -> String {
        format!("{:032x}", self.id)
    }

    pub fn save(&self, disk: &dyn Disk, dir: &Path) -> std::io::Result<()> {
        let temporary = dir.join(format!("{META_FILE}{TEMPORARY_SUFFIX}"));
        let file = disk.create(&temporary)?;
        write_all(&*file, &self.encode(), 0)?;
        file.sync_all()?;
        disk.rename(&temporary, &dir.join(META_FILE))?;
        disk.sync_dir(dir)
    }

    fn encode(&self) -> [u8; META_LEN] {
        let mut bytes = [0; META_LEN];
        bytes[..8].copy_from_slice(&META_MAGIC);
        bytes[8..24].copy_from_slice(&self.id.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.generation.to_le_bytes());
        bytes[28..36].copy_from_slice(&self.purged_below.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.clean_below.to_le_bytes());
        let crc = checksum(0, &bytes[..48]);
        bytes[48..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; META_LEN]) -> Option<Self> {
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let crc = u32::from_le_bytes(bytes[48..].try_into().expect("4 bytes"));
        if bytes[..8] != META_MAGIC || checksum(0, &bytes[..48]) != crc {
            return None;
        }
        Some(Self {
            id: u128::from_be_bytes(bytes[8..24].try_into().expect("16 bytes")),
            generation: u32::from_le_bytes(bytes[24..28].try_into().expect("4 bytes")),
            purged_below: u64_at(28),
            clean_below: u64_at(36),
        })
    }
}

const MARK_FILE: &str = "mark";
const MARK_MAGIC: [u8; 4] = *b"hwM\x01";
const SLOT_LEN: usize = 48;
/// The slots are pages apart, so that one torn write cannot reach both.
const SLOT_AT: [u64; 2] = [0, 8192];
const MARK_FILE_LEN: usize = 16384;

const FLAG_CLEAN: u32 = 1;
const FLAG_LOSSY: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Everything below this offset is on the disk.
    pub durable: u64,
    /// The log was closed in order; nothing was written since.
    pub clean: bool,
    /// Readers may have seen records past `durable`.
    pub lossy: bool,
    /// The run of the operating system that wrote the mark.
    pub boot: Option<BootId>,
}

pub struct MarkFile {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    sequence: u64,
    mark: Mark,
    /// Written since the last fsync of the mark itself.
    dirty: bool,
}

impl MarkFile {
    /// The newest readable mark in the directory, and its sequence number.
    pub fn load(disk: &dyn Disk, dir: &Path) -> Result<Option<(Mark, u64)>, LogError> {
        let path = dir.join(MARK_FILE);
        let failed = |e: std::io::Error| io_error("read", &path, &e);
        if !disk
            .list(dir)
            .map_err(|e| io_error("read", dir, &e))?
            .iter()
            .any(|name| name == MARK_FILE)
        {
            return Ok(None);
        }
        let file = disk.open(&path).map_err(failed)?;
        let (mut newest, mut newer) = (None, None);
        for at in SLOT_AT {
            let mut bytes = [0; SLOT_LEN];
            let read = read_full(&*file, &mut bytes, at).map_err(failed)?;
            let slot = (read == SLOT_LEN).then(|| decode_slot(&bytes)).flatten();
            newest = slot.into_iter().chain(newest).max_by_key(|&(_, sequence)| sequence);
            newer = newer.or_else(|| refuse_newer(&MARK_MAGIC, &bytes[..read], (&path, at)));
        }
        match (newest, newer) {
            // Without the mark, what it vouches for could be cut off as an unfinished write.
            (None, Some(newer)) => Err(newer),
            _ => Ok(newest),
        }
    }

    /// Begins this run's marks, in the existing file if it can be used: on a full disk the log
    /// still opens.
    pub fn start(disk: &dyn Disk, dir: &Path, mark: Mark, sequence: u64) -> std::io::Result<Self> {
        let path = dir.join(MARK_FILE);
        if let Ok(file) = disk.open(&path)
            && file.len()? == MARK_FILE_LEN as u64
        {
            let mut started = Self {
                path,
                file,
                sequence,
                mark,
                dirty: false,
            };
            started.write_both()?;
            return Ok(started);
        }
        let temporary = dir.join(format!("{MARK_FILE}{TEMPORARY_SUFFIX}"));
        let file = disk.create(&temporary)?;
        // In full length, so that writing marks never needs room.
        write_all(&*file, &[0; MARK_FILE_LEN], 0)?;
        let mut made = Self {
            path,
            file,
            sequence,
            mark,
            dirty: false,
        };
        made.write_both()?;
        disk.rename(&temporary, &made.path)?;
        disk.sync_dir(dir)?;
        Ok(made)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn dirty(&self) -> bool {
        self.dirty
    }

    pub fn advance(&mut self, durable: u64) -> std::io::Result<()> {
        if durable <= self.mark.durable {
            return Ok(());
        }
        self.mark.durable = durable;
        self.write()
    }

    pub fn sync(&mut self) -> std::io::Result<()> {
        self.file.sync_data()?;
        self.dirty = false;
        Ok(())
    }

    /// The last mark of a log that is closed in order.
    pub fn close(&mut self, durable: u64) -> std::io::Result<()> {
        self.mark.durable = durable;
        self.mark.clean = true;
        self.write_both()
    }

    fn write_both(&mut self) -> std::io::Result<()> {
        self.write()?;
        self.write()?;
        self.file.sync_all()?;
        self.dirty = false;
        Ok(())
    }

    fn write(&mut self) -> std::io::Result<()> {
        self.sequence += 1;
        self.dirty = true;
        let at = SLOT_AT[(self.sequence % 2) as usize];
        write_all(&*self.file, &encode_slot(&self.mark, self.sequence), at)
    }
}

fn encode_slot(mark: &Mark, sequence: u64) -> [u8; SLOT_LEN] {
    let mut bytes = [0; SLOT_LEN];
    let flags = if mark.clean { FLAG_CLEAN } else { 0 } | if mark.lossy { FLAG_LOSSY } else { 0 };
    bytes[..4].copy_from_slice(&MARK_MAGIC);
    bytes[4..8].copy_from_slice(&flags.to_le_bytes());
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    bytes[16..24].copy_from_slice(&mark.durable.to_le_bytes());
    bytes[24..40].copy_from_slice(&mark.boot.unwrap_or_default());
    let crc = checksum(0, &bytes[..44]);
    bytes[44..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode_slot(bytes: &[u8; SLOT_LEN]) -> Option<(Mark, u64)> {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    if bytes[..4] != MARK_MAGIC || checksum(0, &bytes[..44]) != u32_at(44) {
        return None;
    }
    let boot: BootId = bytes[24..40].try_into().expect("16 bytes");
    let mark = Mark {
        durable: u64_at(16),
        clean: u32_at(4) & FLAG_CLEAN != 0,
        lossy: u32_at(4) & FLAG_LOSSY != 0,
        boot: Some(boot).filter(|&b| b != BootId::default()),
    };
    Some((mark, u64_at(8)))
}
