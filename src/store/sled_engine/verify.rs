//! Finds damage in sled's files that sled itself ignores. Knows the file format of sled 0.34 (the
//! dependency is pinned).
//!
//! At its start sled replays the part of its log that is newer than its snapshot. Where a message
//! has a wrong checksum, it takes the rest of that segment for unwritten and goes on with the next
//! segment: updates in the middle of the log are lost silently. (What is older than the snapshot is
//! checked by sled whenever it reads a page.) So exactly the part that is about to be replayed is
//! checked here, and only where a crash cannot be the cause: in the newest segments sled cuts the
//! log at the first tear, which the checkpoint number in the engine reveals.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

pub(in crate::store) const SEGMENT: usize = 512 * 1024;
const SEGMENT_HEADER: usize = 20;
/// The longest header of a message. Fewer bytes than this at the end of a segment stay unused.
const MAX_MESSAGE_HEADER: usize = 32;

const KIND_UNWRITTEN: u8 = 0;
const KIND_CAP: u8 = 2;
const KIND_FREE: u8 = 4;
/// Kinds whose content is in a file of its own under `blobs/`.
const KINDS_BLOB: [u8; 3] = [7, 9, 11];
/// Kinds that replace a page as a whole.
const KINDS_WHOLE: [u8; 5] = [KIND_FREE, 6, 7, 8, 9];

/// Checks the files in `directory`. `Err` says what is damaged.
pub(super) fn verify(directory: &Path) -> Result<(), String> {
    let replayed_from = prepare_snapshots(directory).map_err(|error| format!("its snapshot: {error}"))?;
    let path = directory.join("db");
    let stable = newest_stable_lsn(&path).map_err(|error| format!("its data file: {error}"))?;
    let mut check = Check {
        replayed_from: segment_start(replayed_from),
        tail_from: segment_start(stable.unwrap_or(0)),
        blobs: directory.join("blobs"),
        ..Check::default()
    };
    for_each_segment(&path, |offset, segment| check.segment(offset, segment))
        .map_err(|error| format!("its data file: {error}"))?;
    check.outcome()
}

/// Removes snapshots that a crash left half-written (sled would read them). Returns the log
/// position (LSN) that the newest one reaches, which is in its name.
pub(in crate::store) fn prepare_snapshots(directory: &Path) -> io::Result<i64> {
    let mut newest = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix("snap.")) else {
            continue;
        };
        if number.ends_with(".generating") {
            fs::remove_file(entry.path())?;
        } else if let Ok(lsn) = i64::from_str_radix(number, 16) {
            newest = newest.max(lsn);
        }
    }
    Ok(newest)
}

#[derive(Default)]
struct Check {
    /// LSN of the first segment that is replayed.
    replayed_from: i64,
    /// From this LSN on, sled itself looks for the first tear and cuts there.
    tail_from: i64,
    blobs: std::path::PathBuf,
    damage: Option<String>,
    /// Page → newest LSN of a message whose file is missing. Harmless if the page was replaced or
    /// freed later.
    dangling: HashMap<u64, i64>,
    /// Page → newest LSN of a message that replaced it as a whole.
    whole: HashMap<u64, i64>,
}

impl Check {
    fn segment(&mut self, offset: u64, segment: &[u8]) {
        match SegmentHeader::read(segment) {
            Some(header) if header.lsn >= self.replayed_from => self.messages(offset, header.lsn, segment),
            Some(_) => {}
            // Freed segments are filled with zeros.
            None if segment.iter().all(|byte| *byte == 0) => {}
            None => self.damaged(offset),
        }
    }

    fn messages(&mut self, offset: u64, lsn: i64, segment: &[u8]) {
        let expected_number = lsn as u64 / SEGMENT as u64;
        let mut at = SEGMENT_HEADER;
        while at + MAX_MESSAGE_HEADER <= SEGMENT {
            match Message::read(segment, at) {
                Some(message) if message.segment_number == expected_number => {
                    if message.kind == KIND_CAP {
                        return;
                    }
                    self.message(&message, lsn + at as i64);
                    at = message.end;
                }
                // The segment was being reused when the process died.
                Some(message) if message.segment_number > expected_number => return,
                _ if lsn >= self.tail_from => return,
                _ => return self.damaged(offset + at as u64),
            }
        }
    }

    fn message(&mut self, message: &Message<'_>, lsn: i64) {
        let newest = |pages: &mut HashMap<u64, i64>| {
            let known = pages.entry(message.page).or_insert(lsn);
            *known = lsn.max(*known);
        };
        if KINDS_WHOLE.contains(&message.kind) {
            newest(&mut self.whole);
        }
        if KINDS_BLOB.contains(&message.kind) {
            let file = message
                .body
                .try_into()
                .map(i64::from_le_bytes)
                .map(|id| self.blobs.join(id.to_string()));
            if !file.is_ok_and(|file| file.exists()) {
                newest(&mut self.dangling);
            }
        }
    }

    fn damaged(&mut self, at: u64) {
        self.damage
            .get_or_insert_with(|| format!("its data file is damaged at byte {at}"));
    }

    fn outcome(self) -> Result<(), String> {
        if let Some(damage) = self.damage {
            return Err(damage);
        }
        let is_replaced = |(page, lsn): (&u64, &i64)| self.whole.get(page).is_some_and(|whole| whole > lsn);
        match self.dangling.iter().all(is_replaced) {
            true => Ok(()),
            false => Err("a file of its large keys is missing".to_owned()),
        }
    }
}

pub(in crate::store) struct SegmentHeader {
    pub lsn: i64,
    stable_lsn: i64,
}

impl SegmentHeader {
    pub fn read(segment: &[u8]) -> Option<SegmentHeader> {
        let (crc, rest) = segment.split_first_chunk::<4>()?;
        let numbers: &[u8; 16] = rest.first_chunk()?;
        if !u32::from_le_bytes(*crc) != crc32fast::hash(numbers) {
            return None;
        }
        let (lsn, stable_lsn) = numbers.split_first_chunk::<8>()?;
        let number = |bytes: [u8; 8]| i64::from_le_bytes(bytes) ^ i64::MAX;
        Some(SegmentHeader {
            lsn: number(*lsn),
            stable_lsn: number(stable_lsn.try_into().ok()?),
        })
    }
}

struct Message<'a> {
    kind: u8,
    segment_number: u64,
    page: u64,
    body: &'a [u8],
    /// Where the next message begins.
    end: usize,
}

impl Message<'_> {
    /// `None` unless a whole message with a correct checksum begins there.
    fn read(segment: &[u8], at: usize) -> Option<Message<'_>> {
        let message = segment.get(at..)?;
        let (crc, rest) = message.split_first_chunk::<4>()?;
        let (&kind, mut rest) = rest.split_first()?;
        if kind == KIND_UNWRITTEN || kind > 11 {
            return None;
        }
        let length = usize::try_from(take_number(&mut rest)?).ok()?;
        let segment_number = take_number(&mut rest)?;
        let page = take_number(&mut rest)?;
        let header_length = message.len() - rest.len();
        let body = rest.get(..length)?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(body);
        hasher.update(&message[4..header_length]);
        let is_right = !hasher.finalize() == u32::from_le_bytes(*crc);
        is_right.then_some(Message {
            kind,
            segment_number,
            page,
            body,
            end: at + header_length + length,
        })
    }
}

/// sled's variable-length numbers: up to 240 in the byte itself, then two and three bytes, then a
/// length and bytes.
fn take_number(input: &mut &[u8]) -> Option<u64> {
    let (&first, rest) = input.split_first()?;
    let length = match first {
        0..=240 => 0,
        241..=248 => 1,
        249 => 2,
        longer => usize::from(longer) - 247,
    };
    let bytes = rest.get(..length)?;
    *input = &rest[length..];
    Some(match (first, bytes) {
        (241..=248, [low]) => 240 + 256 * (u64::from(first) - 241) + u64::from(*low),
        (249, [high, low]) => 2288 + 256 * u64::from(*high) + u64::from(*low),
        (250.., bytes) => {
            let mut number = [0; 8];
            number[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(number)
        }
        _ => u64::from(first),
    })
}

fn segment_start(lsn: i64) -> i64 {
    lsn / SEGMENT as i64 * SEGMENT as i64
}

fn newest_stable_lsn(path: &Path) -> io::Result<Option<i64>> {
    use std::os::unix::fs::FileExt;
    let file = File::open(path)?;
    let mut newest = None;
    for offset in (0..file.metadata()?.len()).step_by(SEGMENT) {
        let mut header = [0; SEGMENT_HEADER];
        match file.read_exact_at(&mut header, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            other => other?,
        }
        newest = newest.max(SegmentHeader::read(&header).map(|header| header.stable_lsn));
    }
    Ok(newest)
}

/// Visits all segments in the order of the file. The last one may be shorter.
fn for_each_segment(path: &Path, mut visit: impl FnMut(u64, &[u8])) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut segment = Vec::with_capacity(SEGMENT);
    let mut offset = 0;
    loop {
        segment.clear();
        let length = (&mut file).take(SEGMENT as u64).read_to_end(&mut segment)?;
        if length == 0 {
            return Ok(());
        }
        visit(offset, &segment);
        offset += length as u64;
    }
}
