//! Room on the disk, and who may use the last of it. This module does not know what is written
//! there.
//!
//! Storage engines do not survive a write to a full disk, so no writer may reach the end of the
//! disk. The embedded log already stops at [`KEPT_BY_LOG`]: below it, only what makes room is
//! written. The rest is for the local store, which waits at [`KEPT_BY_STORE`]. Other programs may
//! take all of that, so the embedded log keeps two [`Reserve`]s beside it: one for deletes, and one
//! that only compaction uses. So the space of deleted data can always be freed, whatever the store
//! takes for itself meanwhile.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::files;

/// The embedded log accepts no values while less than this is free.
pub const KEPT_BY_LOG: u64 = 64 << 20;
/// The local store waits while less than this is free. What its engine does by itself goes on.
pub const KEPT_BY_STORE: u64 = 16 << 20;
/// How much is left to the store, which waits, while compaction makes room.
pub const KEPT_WHILE_MAKING_ROOM: u64 = 8 << 20;
/// Small disks keep less: this part of the disk for [`KEPT_BY_LOG`], and the others in proportion.
const SMALL_DISK: u64 = 8;
/// A file of the embedded log takes at most this part of a disk. Compaction keeps room for one.
pub const SEGMENTS_OF_SMALL_DISK: u64 = 32;

/// The room on the file system of a directory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub free: u64,
    pub total: u64,
}

impl Room {
    pub fn of(directory: &Path) -> io::Result<Room> {
        let told = rustix::fs::statvfs(directory)?;
        let (block, free, total) = (told.f_frsize, told.f_bavail, told.f_blocks);
        Ok(Room {
            free: block.saturating_mul(free),
            total: block.saturating_mul(total),
        })
    }

    /// How much must be free so that `kept` (one of the above) remains after `bytes` were written.
    pub fn needed(&self, bytes: u64, kept: u64) -> u64 {
        let small = self.total / SMALL_DISK;
        let kept = kept.min(small.saturating_mul(kept) / KEPT_BY_LOG);
        kept.saturating_add(bytes)
    }

    /// The error instead of writing `bytes`, if less than `kept` would be free after that.
    pub fn refusal(&self, directory: &Path, bytes: u64, kept: u64) -> Option<String> {
        let needed = self.needed(bytes, kept);
        (self.free < needed).then(|| self.shortage(directory, needed))
    }

    /// The error text, for people.
    pub fn shortage(&self, directory: &Path, needed: u64) -> String {
        format!(
            "no space left for {}: {} MB are free, {} MB are needed",
            directory.display(),
            self.free >> 20,
            needed.div_ceil(1 << 20)
        )
    }
}

/// Room in a file, which others cannot take. It is used when they have taken everything else.
pub struct Reserve {
    path: PathBuf,
    /// The reserve is as large as this, or a part of a small disk.
    most: u64,
    part: u64,
    /// Bytes. 0 while nothing is kept.
    kept: Mutex<u64>,
}

impl Reserve {
    /// For deletes, and for a node that starts: once it is given up, the disk is as full as it is
    /// where values begin to be refused.
    pub fn for_deletes(directory: &Path) -> Reserve {
        Reserve::of(directory.join("reserve"), KEPT_BY_LOG, 2 * SMALL_DISK)
    }

    /// For the file that compaction writes beside an old one of at most this length: it must not
    /// depend on what others leave.
    pub fn for_compaction(directory: &Path, bytes: u64) -> Reserve {
        Reserve::of(directory.join("reserve-compaction"), bytes, SEGMENTS_OF_SMALL_DISK)
    }

    fn of(path: PathBuf, most: u64, part: u64) -> Reserve {
        let kept = fs::metadata(&path).map_or(0, |file| file.len());
        Reserve {
            path,
            most,
            part,
            kept: Mutex::new(kept),
        }
    }

    /// Keeps the room if `left` bytes stay free beside it.
    pub fn keep(&self, left: u64) -> io::Result<()> {
        self.grow(|room, missing| match room.free >= room.needed(missing, left) {
            true => missing,
            false => 0,
        })
    }

    /// Keeps as much of the room as is free.
    pub fn keep_what_there_is(&self) -> io::Result<()> {
        self.grow(|room, missing| missing.min(room.free))
    }

    /// `by` gets the room on the disk and the missing bytes, and returns how many bytes are to be
    /// allocated.
    fn grow(&self, by: impl FnOnce(Room, u64) -> u64) -> io::Result<()> {
        let mut kept = self.kept.lock();
        let room = Room::of(self.path.parent().unwrap_or(Path::new(".")))?;
        let wanted = self.most.min(room.total / self.part);
        let more = by(room, wanted.saturating_sub(*kept));
        if more > 0 {
            let allocated = allocate(&self.path, *kept + more);
            *kept = fs::metadata(&self.path).map_or(0, |file| file.len());
            allocated?;
        }
        Ok(())
    }

    /// Bytes that are kept.
    pub fn kept(&self) -> u64 {
        *self.kept.lock()
    }

    /// Gives the room up to everybody. False if there is none.
    pub fn give_up(&self) -> bool {
        self.taken(|path| fs::remove_file(path))
    }

    /// Renames the file to `name`: what is written into it needs no other room. False if there is
    /// none.
    pub fn become_file(&self, name: &Path) -> bool {
        self.taken(|path| fs::rename(path, name))
    }

    fn taken(&self, take: impl FnOnce(&Path) -> io::Result<()>) -> bool {
        let mut kept = self.kept.lock();
        let taken = *kept > 0 && take(&self.path).is_ok();
        *kept *= u64::from(!taken);
        taken
    }
}

/// Makes the file this long, with all of its blocks.
fn allocate(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = files::open(path, files::options().create(true))?;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP) => {
            let missing = bytes.saturating_sub(file.seek(SeekFrom::End(0))?);
            io::copy(&mut io::repeat(0).take(missing), &mut file).map(drop)
        }
        allocated => Ok(allocated?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_once_and_taken_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("reserve");
        let reserve = Reserve::for_deletes(dir.path());
        assert!(!reserve.give_up(), "nothing is kept yet");
        for _ in 0..2 {
            reserve.keep(KEPT_BY_LOG).expect("kept");
        }
        let on_disk = fs::metadata(&file).expect("it is there");
        assert_eq!((on_disk.len(), reserve.kept()), (KEPT_BY_LOG, KEPT_BY_LOG));
        assert!(
            std::os::unix::fs::MetadataExt::blocks(&on_disk) * 512 >= on_disk.len(),
            "it has its room"
        );
        // As the next process finds it.
        let reserve = Reserve::for_deletes(dir.path());
        assert!(reserve.give_up() && !reserve.give_up() && !file.exists());
        reserve.keep(0).expect("kept");
        let other = dir.path().join("other");
        assert!(reserve.become_file(&other) && !reserve.become_file(&other) && !file.exists());
        assert_eq!(fs::metadata(&other).expect("it is there").len(), KEPT_BY_LOG);
        let all = Room::of(dir.path()).expect("room").total;
        reserve.keep(all).expect("no error");
        assert_eq!((reserve.kept(), file.exists()), (0, false), "too little would be left");
    }

    #[test]
    fn small_disks_keep_less_and_the_store_stops_last() {
        let dir = Path::new("d");
        let large = Room {
            free: KEPT_BY_LOG,
            total: 1 << 40,
        };
        assert_eq!(large.refusal(dir, 0, KEPT_BY_LOG), None);
        assert!(
            large
                .refusal(dir, 1, KEPT_BY_LOG)
                .expect("refused")
                .contains("no space left for d: 64 MB are free, 65 MB are needed")
        );
        assert_eq!(large.refusal(dir, KEPT_BY_LOG - KEPT_BY_STORE, KEPT_BY_STORE), None);
        let small = Room {
            free: 8 << 20,
            total: 64 << 20,
        };
        assert_eq!(small.refusal(dir, 0, KEPT_BY_LOG), None);
        assert!(small.refusal(dir, 1, KEPT_BY_LOG).is_some());
        assert_eq!(small.refusal(dir, 6 << 20, KEPT_BY_STORE), None);
        assert!(small.refusal(dir, (6 << 20) + 1, KEPT_BY_STORE).is_some());
    }

    #[test]
    fn a_directory_has_room_and_a_missing_one_is_an_error() {
        let room = Room::of(&std::env::temp_dir()).expect("told");
        assert!(room.total > 0 && room.free <= room.total);
        assert!(Room::of(Path::new("/no/such/directory")).is_err());
    }
}
