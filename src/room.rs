//! Room on the disk, and who may use the last of it. It knows nothing of what is written there.
//!
//! Storage engines do not survive a write that finds the disk full, so nobody runs into its end. The embedded log stops at
//! [`KEPT_BY_LOG`] already: below it, only what makes room is written. The rest is for the local store, which waits at
//! [`KEPT_BY_STORE`]. Others may take all of that, so the embedded log keeps a [`Reserve`] beside it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::files;

/// The embedded log takes no values while less than this is free.
pub const KEPT_BY_LOG: u64 = 64 << 20;
/// The local store waits while less than this is free; what its engine does by itself goes on.
pub const KEPT_BY_STORE: u64 = 16 << 20;
/// So much is left to the store, which waits, while compaction makes room.
pub const KEPT_WHILE_MAKING_ROOM: u64 = 8 << 20;
/// On small disks it is less: this part of the disk for [`KEPT_BY_LOG`], the others in proportion.
const SMALL_DISK: u64 = 8;

/// The room on a directory's file system, bytes.
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

    /// What is to be free, so that this much (one of those above) is kept when `bytes` have been written.
    pub fn needed(&self, bytes: u64, kept: u64) -> u64 {
        let kept = kept.min(self.total / SMALL_DISK / (KEPT_BY_LOG / kept));
        kept.saturating_add(bytes)
    }

    /// What is said instead of writing `bytes`, if after that less than `kept` were free.
    pub fn refusal(&self, directory: &Path, bytes: u64, kept: u64) -> Option<String> {
        let needed = self.needed(bytes, kept);
        (self.free < needed).then(|| self.shortage(directory, needed))
    }

    /// For people.
    pub fn shortage(&self, directory: &Path, needed: u64) -> String {
        format!(
            "no space left for {}: {} MB are free, {} MB are needed",
            directory.display(),
            self.free >> 20,
            needed.div_ceil(1 << 20)
        )
    }
}

/// What a [`Reserve`] keeps: with it given up the disk is as full as it is where values begin to be refused. On small disks it is this part of them.
const RESERVED: u64 = KEPT_BY_LOG;
const RESERVED_OF_SMALL_DISK: u64 = 16;
/// The file of a [`Reserve`].
const RESERVE: &str = "reserve";

/// Room that others cannot take: a file that is removed when they have taken everything else. Then a node can still start there, and write what
/// makes room.
pub struct Reserve {
    directory: PathBuf,
    is_kept: Mutex<bool>,
}

impl Reserve {
    /// What is kept in this directory.
    pub fn of(directory: &Path) -> Reserve {
        Reserve {
            directory: directory.to_path_buf(),
            is_kept: Mutex::new(directory.join(RESERVE).exists()),
        }
    }

    /// Keeps room, unless that is so already or there is too little of it.
    pub fn keep(&self) -> io::Result<()> {
        let mut is_kept = self.is_kept.lock();
        if *is_kept {
            return Ok(());
        }
        let room = Room::of(&self.directory)?;
        let bytes = RESERVED.min(room.total / RESERVED_OF_SMALL_DISK);
        if room.free < room.needed(bytes, KEPT_BY_LOG) {
            return Ok(());
        }
        let path = self.directory.join(RESERVE);
        if let Err(error) = allocate(&path, bytes) {
            // Less is of no use, and nobody else would remove it.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        *is_kept = true;
        Ok(())
    }

    /// Gives the room up. False if there is none.
    pub fn give_up(&self) -> bool {
        let mut is_kept = self.is_kept.lock();
        let gone = *is_kept && fs::remove_file(self.directory.join(RESERVE)).is_ok();
        *is_kept &= !gone;
        gone
    }
}

fn allocate(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = files::create(path)?;
    match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP) => {
            let chunk = vec![0; 1 << 20];
            (0..bytes.div_ceil(1 << 20)).try_for_each(|_| file.write_all(&chunk))
        }
        allocated => Ok(allocated?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_kept_once_and_given_up_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join(RESERVE);
        let reserve = Reserve::of(dir.path());
        assert!(!reserve.give_up(), "nothing is kept yet");
        for _ in 0..2 {
            reserve.keep().expect("kept");
        }
        let kept = fs::metadata(&file).expect("it is there");
        assert_eq!(kept.len(), RESERVED);
        assert!(
            std::os::unix::fs::MetadataExt::blocks(&kept) * 512 >= kept.len(),
            "it has its room"
        );
        let reserve = Reserve::of(dir.path());
        assert!(reserve.give_up() && !reserve.give_up() && !file.exists());
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
