//! Files that were damaged, cut short or lost: the log refuses to open, or no acknowledged record
//! is missing.

use super::*;

/// A disk with some dozens of frames in two segments, as a kill leaves it, and what the log holds.
fn two_segments() -> (FaultDisk, Vec<LogRecord>) {
    let disk = FaultDisk::new();
    let log = open(&disk, options()).expect("open");
    let mut i = 0;
    while log.status().segments < 2 || i < 50 {
        let value = vec![b'v'; 40 + i * 7 % 90];
        let batch = match i % 5 {
            0 => vec![put(0, &format!("a{i}"), &value), delete(1, "b"), put(0, "c", b"")],
            1 => vec![delete(2, "gone")],
            _ => vec![put(0, &format!("k{i}"), &value)],
        };
        written(&log, batch);
        i += 1;
    }
    let records = read_all(&log);
    let killed = disk.after_kill();
    drop(log);
    // Of the zeros after the last frame a few are enough.
    let active = segment_files(&killed).pop().expect("a segment");
    let mut bytes = killed.contents(&active);
    bytes.truncate(used_len(&bytes) + 2000);
    killed.set_contents(&active, bytes);
    (killed, records)
}

/// Opens the disk once for each byte of the file with one bit of it flipped.
fn flip_every_byte(
    disk: &FaultDisk,
    path: &Path,
    len: usize,
    mut check: impl FnMut(usize, Result<Vec<LogRecord>, LogError>),
) {
    let whole = disk.contents(path);
    for i in 0..len {
        let mut flipped = whole.clone();
        flipped[i] ^= 1 << (i % 8);
        let copy = disk.after_kill();
        copy.set_contents(path, flipped);
        check(i, open_and_read(&copy));
    }
}

/// The same after a compaction, so that one segment is compacted.
fn compacted() -> (FaultDisk, Vec<LogRecord>) {
    let (disk, _) = two_segments();
    let log = open(&disk, options()).expect("open");
    compact(&log);
    let records = read_all(&log);
    let killed = disk.after_kill();
    drop(log);
    (killed, records)
}

#[test]
fn a_flipped_bit_anywhere_is_refused_or_does_no_harm() {
    for (disk, records) in [two_segments(), compacted()] {
        for path in disk.names() {
            let is_segment = segment_files(&disk).contains(&path);
            // Past it are the zeros that were written ahead, and what the mark file does not use.
            let len = used_len(&disk.contents(&path));
            flip_every_byte(&disk, &path, len, |i, outcome| match outcome {
                Ok(read) => {
                    assert!(!is_segment, "{path:?}: byte {i} of a segment is covered by a checksum");
                    assert_eq!(read, records, "{path:?}, byte {i}");
                }
                Err(e) => {
                    let text = e.to_string();
                    let named = text.contains(&*path.to_string_lossy());
                    assert!(text.contains("damaged") && named, "byte {i}: {text}");
                }
            });
        }
    }
}

/// Raises the format of what begins with `magic`, up to its last byte, wherever it is in the file.
fn raise_format(disk: &FaultDisk, path: &Path, magic: &[u8]) {
    let mut bytes = disk.contents(path);
    let found: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(magic)).collect();
    assert!(!found.is_empty(), "{path:?} has no {magic:?}");
    for at in found {
        bytes[at + magic.len() - 1] += 1;
    }
    disk.set_contents(path, bytes);
}

#[test]
fn a_newer_format_is_refused_and_left_as_it_is() {
    let (disk, _) = two_segments();
    let segments = segment_files(&disk);
    let active = segments.last().expect("a segment");
    for (path, magic) in [
        (&file("meta"), &b"hwMETA\0\x01"[..]),
        (&file("mark"), b"hwM\x01"),
        (&segments[0], b"hwSEG\0\0\x01"),
        (active, b"hwSEG\0\0\x01"),
        (active, b"hwF\x01"),
    ] {
        for has_mark in [true, false] {
            let newer = disk.after_kill();
            raise_format(&newer, path, magic);
            if !has_mark && *path != file("mark") {
                newer.remove(&file("mark")).expect("there");
            }
            let before: Vec<_> = newer.names().iter().map(|name| newer.contents(name)).collect();
            let refused = open_and_read(&newer).expect_err("a newer format").to_string();
            let named = refused.contains(&*path.to_string_lossy()) && refused.contains("has format 2 at byte ");
            assert!(
                named && refused.contains("start the version that wrote it"),
                "{refused}"
            );
            let after: Vec<_> = newer.names().iter().map(|name| newer.contents(name)).collect();
            assert!(before == after, "{path:?} {magic:?}: a file was changed");
        }
    }
}

#[test]
fn a_compacted_segment_that_was_cut_short_is_refused() {
    let (disk, _) = compacted();
    let path = segment_files(&disk).remove(0);
    let whole = disk.contents(&path);
    for len in 0..whole.len() {
        let copy = disk.after_kill();
        copy.set_contents(&path, whole[..len].to_vec());
        let refused = open_and_read(&copy).expect_err("cut short").to_string();
        assert!(refused.contains("damaged"), "{refused}");
    }
}

/// A power failure may take the mark back to what it was at the opening. Only the last write is
/// without a witness then.
#[test]
fn without_the_mark_a_flipped_bit_costs_at_most_the_last_write() {
    let (disk, records) = two_segments();
    disk.remove(&file("mark")).expect("there");
    for path in segment_files(&disk) {
        let len = used_len(&disk.contents(&path));
        let mut cut = 0;
        flip_every_byte(&disk, &path, len, |i, outcome| {
            if let Ok(read) = outcome {
                cut += 1;
                assert_eq!(read, records[..records.len() - 1], "{path:?}, byte {i}");
            }
        });
        assert!(
            cut < 300,
            "{path:?}: only the last frame may be cut, not {cut} bytes' worth"
        );
    }
}

#[test]
fn a_log_that_was_cut_short_opens_with_whole_batches_or_is_refused() {
    let (disk, records) = two_segments();
    let path = segment_files(&disk).pop().expect("a segment");
    let whole = disk.contents(&path);
    let used = used_len(&whole);
    let unmarked = disk.after_kill();
    unmarked.remove(&file("mark")).expect("there");
    let mut before = 0;
    for len in segment::SEGMENT_HEADER_LEN..used {
        let cut = |disk: &FaultDisk| {
            let copy = disk.after_kill();
            copy.set_contents(&path, whole[..len].to_vec());
            copy
        };
        let refused = open_and_read(&cut(&disk))
            .expect_err("acknowledged records are missing")
            .to_string();
        assert!(refused.contains("had been stored safely"), "{refused}");

        let read = open_and_read(&cut(&unmarked)).expect("nothing says that there was more");
        assert_eq!(read, records[..read.len()]);
        assert!(read.len() >= before);
        before = read.len();
        let last = read.last().and_then(|r| r.group);
        let in_group = read
            .iter()
            .filter(|r| last.is_some() && r.group.map(|g| g.id) == last.map(|g| g.id));
        assert!([0, 3].contains(&in_group.count()), "a group is there as a whole");
    }
    assert_eq!(before, records.len() - 1);
    let refused = open_and_read(&{
        let copy = disk.after_kill();
        copy.remove(&path).expect("there");
        copy
    });
    assert!(
        refused
            .expect_err("a segment is missing")
            .to_string()
            .contains("had been stored safely")
    );
}

#[test]
fn a_segment_missing_in_the_middle_is_refused() {
    let (disk, _) = two_segments();
    disk.remove(&segment_files(&disk)[0]).expect("there");
    let refused = open_and_read(&disk)
        .expect_err("the first segment is missing")
        .to_string();
    assert!(refused.contains("a file is missing or cut short"), "{refused}");
}

#[test]
fn a_missing_meta_file_gives_a_new_identity_and_loses_nothing() {
    let (disk, records) = two_segments();
    let identity = open(&disk.after_kill(), options()).expect("open").identity(0);
    disk.remove(&file("meta")).expect("there");
    let log = open(&disk, options()).expect("open");
    assert_ne!(log.identity(0), identity);
    let contents = |records: Vec<LogRecord>| -> Vec<_> {
        records
            .into_iter()
            .map(|r| (r.at, r.offset, r.key, r.payload))
            .collect()
    };
    assert_eq!(contents(read_all(&log)), contents(records));
}
