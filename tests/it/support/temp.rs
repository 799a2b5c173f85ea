//! Where tests put their files: a directory per test process under `target/tmp`, removed by the
//! next process once its owner is gone (a killed test process cannot clean up after itself).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

const PREFIX: &str = "it-";

/// A new empty directory, removed when dropped.
pub fn dir(name: &str) -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .tempdir_in(root())
        .expect("create a directory under target/tmp")
}

/// Bytes that all files below a directory take on the disk, which may change meanwhile.
pub fn disk_usage(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    let usage = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_usage(&entry.path()),
        // In units of 512 bytes, whatever the file system's own are.
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(usage).sum()
}

/// The directory of this process.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<(PathBuf, File)> = OnceLock::new();
    &ROOT.get_or_init(create_root).0
}

fn create_root() -> (PathBuf, File) {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(parent).expect("create target/tmp");
    let _one_at_a_time = lock(&parent.join("it.lock"));
    remove_abandoned(parent);
    let root = parent.join(format!("{PREFIX}{}", std::process::id()));
    fs::create_dir_all(&root).expect("create the directory of this test process");
    let alive = lock(&root.join("alive"));
    (root, alive)
}

fn remove_abandoned(parent: &Path) {
    for entry in fs::read_dir(parent).expect("list target/tmp").flatten() {
        let abandoned = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.path().is_dir()
            && try_lock(&entry.path().join("alive")).is_some();
        if abandoned && let Err(error) = fs::remove_dir_all(entry.path()) {
            eprintln!("cannot remove {}: {error}", entry.path().display());
        }
    }
}

/// Takes an exclusive lock that ends with the returned file, or with the process.
pub fn lock(path: &Path) -> File {
    flock(path, libc::LOCK_EX).unwrap_or_else(|error| panic!("lock {}: {error}", path.display()))
}

fn try_lock(path: &Path) -> Option<File> {
    flock(path, libc::LOCK_EX | libc::LOCK_NB).ok()
}

fn flock(path: &Path, operation: libc::c_int) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    loop {
        // SAFETY: the descriptor belongs to `file`, which outlives the call.
        if unsafe { libc::flock(file.as_raw_fd(), operation) } == 0 {
            return Ok(file);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
