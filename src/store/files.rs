//! What engines and the store do with files, and what they make of an error there.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::StoreError;

/// An engine writes its data more than once: to its journal, to a new place for a whole page, and
/// when it tidies up.
pub(super) const OFTEN_WRITTEN: u64 = 4;

/// After an engine was dropped, its threads hold the lock of its directory for a moment.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Whether an error comes from where the process runs, rather than from the contents of the files.
pub(super) fn is_environment(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(
        error.kind(),
        PermissionDenied | ReadOnlyFilesystem | StorageFull | QuotaExceeded
    ) || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// Whether an error says that a file is shorter than it was, or missing.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound)
}

pub(super) fn io_error(doing: &'static str, path: &Path, cause: io::Error) -> StoreError {
    StoreError::Io {
        doing,
        path: path.display().to_string(),
        cause,
    }
}

pub(super) fn remove_directory(directory: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(directory) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(io_error("remove", directory, cause)),
        _ => Ok(()),
    }
}

/// Removes a file, durably, if it is there.
pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_parent(path),
    }
}

/// Fsync of the directory that holds `path`: makes a rename or removal in it durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// Fsyncs every file under a directory, and the directory.
pub(super) fn sync_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let synced = match entry.file_type()?.is_dir() {
            true => sync_tree(&entry.path()),
            false => File::open(entry.path()).and_then(|file| file.sync_all()),
        };
        match synced {
            // The engine removes files of its own at any time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    File::open(directory)?.sync_all()
}

/// Bytes of all files under a directory. Files come and go meanwhile; what cannot be read counts as
/// nothing.
pub fn directory_bytes(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    let bytes_of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => directory_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(bytes_of).sum()
}

/// Waits until no engine holds this file: one that was dropped releases it a moment later.
pub(super) fn wait_for_lock(path: &Path) -> Result<(), StoreError> {
    match File::options().read(true).write(true).open(path) {
        Ok(file) => lock_patiently(&file).map_err(|cause| io_error("lock", path, cause)),
        Err(cause) if is_environment(&cause) => Err(io_error("open", path, cause)),
        // Missing, or not a file: the engine or the rebuild handles that.
        Err(_) => Ok(()),
    }
}

pub(super) fn lock_patiently(file: &File) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(cause)) => return Err(cause),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(io::ErrorKind::WouldBlock, "in use by another process"));
            }
        }
    }
}
