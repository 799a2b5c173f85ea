//! The files beside what sled does itself: syncs them, keeps the position file, reserves room on
//! the disk, and notes an orderly close.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use parking_lot::Mutex;

use super::Paths;
use super::position::PositionFile;
use crate::room::{KEPT_BY_STORE, Room};
use crate::store::engine::Failure;
use crate::store::files::{OFTEN_WRITTEN, is_environment, lock_patiently, remove_file, sync_tree};

/// Dropped after sled, it notes that everything was closed in order.
pub(super) struct Closer {
    directory: PathBuf,
    /// Held open from the start: the kernel reports a failed write-back once to every open file.
    data: File,
    path: PathBuf,
    /// As last written. `None` once it was discarded.
    position: Mutex<Option<PositionFile>>,
}

impl Closer {
    pub fn new(paths: &Paths, position: PositionFile) -> Result<Closer, Failure> {
        let opened = File::options().read(true).write(true).open(&paths.data);
        Ok(Closer {
            directory: paths.sled.clone(),
            data: opened.map_err(Failure::at(&paths.data))?,
            path: paths.position.clone(),
            position: Mutex::new(Some(position)),
        })
    }

    /// Makes what the engine has written durable (its own flush does not). Returns the length of
    /// the data file.
    pub fn sync(&self) -> Result<u64, Failure> {
        let synced = self
            .data
            .sync_all()
            .and_then(|()| sync_tree(&self.directory))
            .and_then(|()| self.data.metadata());
        Ok(synced.map_err(Failure::at(&self.directory))?.len())
    }

    /// sled shortens its file when the last segments are free. The position file is soon updated
    /// with the new length, so that a kill does not make it look like damage. The update is not
    /// made durable: it is for a kill, which loses nothing that was written.
    pub fn note_length(&self) -> Result<(), Failure> {
        let metadata = self.data.metadata().map_err(Failure::at(&self.directory))?;
        let length = metadata.len();
        let mut position = self.position.lock();
        if let Some(position) = position.as_mut().filter(|position| length < position.length) {
            let before = std::mem::replace(&mut position.length, length);
            if let Err(cause) = position.write_unsynced(&self.path) {
                position.length = before;
                // Then the length is updated later. A kill until then costs a rebuild.
                if cause.kind() != io::ErrorKind::StorageFull {
                    return Err(Failure::at(&self.directory)(cause));
                }
            }
        }
        Ok(())
    }

    /// Reserves room after the end of the engine's file for changes of so many bytes. Returns the
    /// reason if it cannot.
    pub fn lacks_room(&self, bytes: u64) -> Option<String> {
        // If the disk does not say how much room it has, a write will fail when it is full.
        let room = Room::of(&self.directory).ok()?;
        let needed = room.needed(bytes.saturating_mul(OFTEN_WRITTEN), KEPT_BY_STORE);
        match reserve(&self.data, needed) {
            Ok(()) => None,
            Err(error) if is_environment(&error) => Some(room.shortage(&self.directory, needed)),
            // Not every file system can reserve. Then it has to be enough that there is room now.
            Err(_) => (room.free < needed).then(|| room.shortage(&self.directory, needed)),
        }
    }

    pub fn write_position(&self, change: impl FnOnce(&PositionFile) -> PositionFile) -> Result<(), Failure> {
        let mut position = self.position.lock();
        let Some(last) = position.as_ref() else {
            return Err(Failure::damaged("store, given up"));
        };
        let changed = change(last);
        changed.write(&self.path).map_err(Failure::at(&self.path))?;
        *position = Some(changed);
        Ok(())
    }

    pub fn discard_position(&self) -> io::Result<()> {
        *self.position.lock() = None;
        remove_file(&self.path)
    }

    fn close(&self) -> Result<(), Failure> {
        if self.position.lock().is_none() {
            return Ok(());
        }
        // Waits for the engine's last threads.
        lock_patiently(&self.data).map_err(Failure::at(&self.directory))?;
        let length = self.sync()?;
        self.write_position(|position| PositionFile {
            length,
            closed: true,
            ..position.clone()
        })
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        if let Err(Failure::Io { path, cause }) = self.close() {
            let path = path.unwrap_or_default();
            // Harmless: the next start treats it as an unclean stop.
            tracing::warn!(path = %path.display(), %cause, "the store could not be closed in order");
        }
    }
}

/// Reserves so many bytes of the disk after the end of a file, whose length does not change. Bytes
/// that are already reserved cost nothing.
#[cfg(target_os = "linux")]
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    Ok(fallocate(
        file,
        FallocateFlags::KEEP_SIZE,
        file.metadata()?.len(),
        bytes,
    )?)
}

#[cfg(not(target_os = "linux"))]
fn reserve(_: &File, _: u64) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Identifies the current run of the kernel. Empty where there is no such id.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}
