//! Where an export goes: a file that gets its name when it is whole, or standard output.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Stdout, Write};
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::files;

pub enum Output {
    Standard(Stdout),
    File(Unnamed),
}

/// A file that does not have its name yet. If it is dropped before, it is removed.
pub struct Unnamed {
    file: File,
    /// Where it is now: beside its later place.
    path: PathBuf,
    name: PathBuf,
    is_named: bool,
}

impl Output {
    /// A file that will get this name.
    pub fn file(name: &Path) -> io::Result<Output> {
        if fs::metadata(name).is_ok_and(|found| !found.is_file()) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "there is something else than a file; - is standard output",
            ));
        }
        let mut path = name.as_os_str().to_owned();
        path.push(format!(".{:016x}.part", rand::random::<u64>()));
        let path = PathBuf::from(path);
        let file = files::open(&path, files::options().create_new(true))?;
        Ok(Output::File(Unnamed {
            file,
            path,
            name: name.to_owned(),
            is_named: false,
        }))
    }

    /// Everything was written. A file gets these first bytes, is made durable, and gets its name.
    pub fn keep(self, header: &[u8]) -> io::Result<()> {
        let Output::File(mut unnamed) = self else {
            return Ok(());
        };
        unnamed.file.seek(SeekFrom::Start(0))?;
        unnamed.file.write_all(header)?;
        unnamed.file.sync_all()?;
        fs::rename(&unnamed.path, &unnamed.name)?;
        unnamed.is_named = true;
        let directory = unnamed.name.parent().filter(|directory| *directory != Path::new(""));
        let synced = File::open(directory.unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all());
        // The file has its name already.
        if let Err(error) = synced {
            warn!(%error, "the name of the file may not be durable yet: its directory cannot be synced");
        }
        Ok(())
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if !self.is_named {
            // If this fails too, a file is left whose name ends in .part.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Standard(output) => output.write(bytes),
            Output::File(unnamed) => unnamed.file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Standard(output) => output.flush(),
            Output::File(unnamed) => unnamed.file.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gets_its_name_when_it_is_whole() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let name = temp.path().join("dump.rdb");
        let count = || fs::read_dir(temp.path()).expect("it is there").count();
        let begin = || {
            let mut output = Output::file(&name).expect("a file");
            output.write_all(b"0000 and more").expect("it is written");
            output
        };
        drop(begin());
        assert_eq!(count(), 0);
        begin().keep(b"1234").expect("it is kept");
        assert_eq!(fs::read_to_string(&name).expect("a file"), "1234 and more");
        let second = begin();
        assert_eq!((count(), fs::read(&name).expect("a file").len()), (2, 13));
        second.keep(b"5678").expect("it is kept");
        assert_eq!(fs::read_to_string(&name).expect("a file"), "5678 and more");
        assert_eq!(count(), 1);
        for other in [temp.path(), Path::new("/dev/null"), &temp.path().join("none/dump.rdb")] {
            assert!(Output::file(other).is_err(), "{}", other.display());
        }
    }
}
