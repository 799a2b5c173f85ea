//! Where a snapshot is written: a file that appears under its name only when it is whole and on the
//! disk, or the standard output.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::Problem;
use crate::files;

const CHUNK: usize = 1 << 20;

pub(super) enum Output {
    File {
        path: PathBuf,
        unfinished: PathBuf,
        file: File,
    },
    Stdout,
}

impl Output {
    /// `to`: a path, or `-`. What is there already stays until the new one is whole.
    pub(super) fn create(to: &str) -> Result<Output, Problem> {
        if to == "-" {
            return Ok(Output::Stdout);
        }
        let path = PathBuf::from(to);
        if path.is_dir() || path.file_name().is_none() {
            return Err(format!("write a snapshot to {to}: that is no name of a file"));
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".unfinished");
        let unfinished = path.with_file_name(name);
        let failed = |e| format!("create {}: {e}", unfinished.display());
        let file = files::open(&unfinished, files::options().create(true).truncate(false)).map_err(failed)?;
        file.try_lock()
            .map_err(|_| format!("write {}: another snapshot is written there now", unfinished.display()))?;
        // Another one may have got its name since it was opened.
        let is_it = fs::symlink_metadata(&unfinished).and_then(|named| Ok(named.ino() == file.metadata()?.ino()));
        if !is_it.map_err(failed)? {
            return Err(format!(
                "write {}: another snapshot was written there just now",
                unfinished.display()
            ));
        }
        file.set_len(0).map_err(failed)?;
        Ok(Output::File { path, unfinished, file })
    }

    /// Lets `write` write all of it. Returns what it returned.
    pub(super) fn fill<T>(
        self,
        write: impl FnOnce(Box<dyn Write>) -> io::Result<(Box<dyn Write>, T)>,
    ) -> Result<T, Problem> {
        match self {
            Output::Stdout => {
                let written = write(Box::new(BufWriter::with_capacity(CHUNK, io::stdout())));
                written
                    .map(|(_, told)| told)
                    .map_err(|e| format!("write the snapshot: {e}"))
            }
            Output::File { path, unfinished, file } => {
                let filled = (|| {
                    let out = BufWriter::with_capacity(CHUNK, file.try_clone()?);
                    let (_, told) = write(Box::new(out))?;
                    file.sync_all()?;
                    fs::rename(&unfinished, &path)?;
                    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
                    Ok(told)
                })();
                filled.map_err(|error: io::Error| {
                    // It is of no use to anybody. If it stays, the next snapshot replaces it.
                    let _ = fs::remove_file(&unfinished);
                    format!("write the snapshot {}: {error}", path.display())
                })
            }
        }
    }
}
