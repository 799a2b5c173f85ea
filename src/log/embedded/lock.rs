//! One process per directory: a lock file that the operating system frees when its holder ends,
//! however it ends.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::files;

/// Name of the lock file in the directory.
pub const LOCK_FILE: &str = "LOCK";

/// This process holds the directory as long as this lives.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "the directory {dir} is in use by another process{holder}: stop that one, or give this one a directory of its own"
    )]
    InUse { dir: PathBuf, holder: String },
    #[error("cannot lock {path}: {cause}")]
    Io { path: PathBuf, cause: std::io::Error },
}

impl DirectoryLock {
    /// Takes the lock, or reports who has it; does not wait. The directory exists.
    pub fn take(dir: &Path) -> Result<Self, LockError> {
        let path = dir.join(LOCK_FILE);
        let io = |cause| LockError::Io {
            path: path.clone(),
            cause,
        };
        let mut file = files::open(&path, files::options().create(true)).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::InUse {
                    dir: dir.to_path_buf(),
                    holder: holder(&mut file),
                });
            }
            Err(TryLockError::Error(cause)) => return Err(io(cause)),
        }
        // The process id is only for the message that the next process gets. On a full disk the id
        // is missing, and nothing else.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(std::process::id().to_string().as_bytes()));
        Ok(Self { _file: file })
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(20).read_to_string(&mut text) {
        Ok(_) if text.parse::<u32>().is_ok() => format!(" (process {text})"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_holder_is_told_who_has_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = DirectoryLock::take(dir.path()).expect("free");
        let refused = DirectoryLock::take(dir.path()).expect_err("taken").to_string();
        assert!(refused.contains("in use by another process"), "{refused}");
        assert!(
            refused.contains(&format!("(process {})", std::process::id())),
            "{refused}"
        );
        drop(first);
        DirectoryLock::take(dir.path()).expect("free again");
    }

    #[test]
    fn the_file_of_another_behind_a_link_is_left_alone() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "precious").expect("a file");
        std::os::unix::fs::symlink(&victim, dir.path().join(LOCK_FILE)).expect("a link");
        let refused = DirectoryLock::take(dir.path()).expect_err("a link").to_string();
        assert!(refused.contains("symbolic link"), "{refused}");
        assert_eq!(std::fs::read_to_string(&victim).expect("is there"), "precious");
    }
}
