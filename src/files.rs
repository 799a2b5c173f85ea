//! Files that this process creates: only their owner may write them, only their owner and group may
//! read them, and none is created through a symbolic link that somebody else put there. And files
//! that are there whole or not at all.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Seek, SeekFrom, Stdout, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use tracing::warn;

/// What others may not do, and what the group may not do.
const FORBIDDEN: u32 = 0o027;

/// From now on every new file has at most mode 0640 and every new directory 0750, also those that
/// libraries create. Must be called while there is only one thread.
pub fn restrict_new() {
    let asked = rustix::process::umask(Mode::from_raw_mode(FORBIDDEN));
    rustix::process::umask(asked | Mode::from_raw_mode(FORBIDDEN));
}

/// Removes from an existing directory the rights that new ones do not have.
pub fn restrict(directory: &Path) -> io::Result<()> {
    let mode = fs::metadata(directory)?.permissions().mode() & 0o7777;
    match mode & FORBIDDEN {
        0 => Ok(()),
        _ => fs::set_permissions(directory, Permissions::from_mode(mode & !FORBIDDEN)),
    }
}

/// How to open a file of this process: not through a symbolic link.
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
    options
}

/// Opens a file with [`options`].
pub fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
    options.open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is a symbolic link, which could lead to another's file; remove it",
        ),
        _ => error,
    })
}

/// Creates a file, or empties it.
pub fn create(path: &Path) -> io::Result<File> {
    open(path, options().create(true).truncate(true))
}

/// Gives a file these contents: whole or not at all, also after a crash.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    put(create(&new)?, contents, (&new, path))
}

/// The same for a file that people or other programs have made: it keeps its mode and, where this
/// process may choose it, its owner. A symbolic link to it stays.
pub fn rewrite(path: &Path, contents: &[u8]) -> io::Result<()> {
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".highwater-new");
    let new = path.with_file_name(name);
    let file = create(&new)?;
    let write = || {
        if let Ok(before) = fs::metadata(path) {
            // Only root may give a file away.
            let _ = fchown(&file, Some(before.uid()), Some(before.gid()));
            file.set_permissions(before.permissions())?;
        }
        put(file, contents, (&new, path))
    };
    let written = write();
    if written.is_err() {
        // If that fails too, the first error still says why.
        let _ = fs::remove_file(&new);
    }
    written
}

/// Writes a new file, and gives it the name of the old one.
fn put(mut file: File, contents: &[u8], (new, path): (&Path, &Path)) -> io::Result<()> {
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(new, path)?;
    keep_name(path)
}

/// Makes durable that a file has this name.
fn keep_name(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

/// Where the output of a program goes.
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
    /// A file that will get this name. A file that has the name stays until then.
    pub fn file(name: &Path) -> io::Result<Output> {
        let wrong = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
        if name.file_name().is_none() || fs::metadata(name).is_ok_and(|found| !found.is_file()) {
            return Err(wrong("there is something else than a file; - is standard output"));
        }
        let mut path = name.as_os_str().to_owned();
        path.push(".unfinished");
        let path = PathBuf::from(path);
        // What a killed process has left is of no use.
        let file = open(&path, options().create(true).truncate(false))?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => wrong("another process writes this file now"),
            TryLockError::Error(error) => error,
        })?;
        // Another one may have got its name since it was opened.
        let is_it = fs::symlink_metadata(&path).and_then(|found| Ok(found.ino() == file.metadata()?.ino()));
        if !is_it.is_ok_and(|is_it| is_it) {
            return Err(wrong("another process has written this file just now"));
        }
        // Somebody who has put a file there could read and write it.
        let found = file.metadata()?;
        if found.uid() != rustix::process::geteuid().as_raw() || found.nlink() != 1 {
            return Err(wrong(
                "the .unfinished file beside it belongs to somebody else; remove that",
            ));
        }
        if found.mode() & FORBIDDEN != 0 {
            file.set_permissions(Permissions::from_mode(found.mode() & !FORBIDDEN))?;
        }
        file.set_len(0)?;
        Ok(Output::File(Unnamed {
            file,
            path,
            name: name.to_owned(),
            is_named: false,
        }))
    }

    /// Everything was written. A file gets these first bytes instead of those that it has, is made
    /// durable, and gets its name.
    pub fn keep(self, header: &[u8]) -> io::Result<()> {
        let Output::File(mut unnamed) = self else {
            return Ok(());
        };
        unnamed.file.seek(SeekFrom::Start(0))?;
        unnamed.file.write_all(header)?;
        unnamed.file.sync_all()?;
        fs::rename(&unnamed.path, &unnamed.name)?;
        unnamed.is_named = true;
        if let Err(error) = keep_name(&unnamed.name) {
            warn!(%error, "the name of the file may not be durable yet: its directory cannot be synced");
        }
        Ok(())
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        if !self.is_named {
            // If this fails too, the next one takes its place.
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
    fn nothing_is_written_through_a_symbolic_link() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let victim = temp.path().join("victim");
        fs::write(&victim, "precious").expect("a file");
        std::os::unix::fs::symlink(&victim, temp.path().join("meta.new")).expect("a link");
        let refused = replace(&temp.path().join("meta"), b"new").expect_err("a link");
        assert!(refused.to_string().contains("symbolic link"), "{refused}");
        assert_eq!(fs::read_to_string(&victim).expect("is there"), "precious");
        // The name itself is replaced, not followed.
        fs::remove_file(temp.path().join("meta.new")).expect("is there");
        std::os::unix::fs::symlink(&victim, temp.path().join("meta")).expect("a link");
        replace(&temp.path().join("meta"), b"new").expect("is written");
        assert_eq!(fs::read_to_string(&victim).expect("is there"), "precious");
        assert_eq!(fs::read_to_string(temp.path().join("meta")).expect("is there"), "new");
    }

    #[test]
    fn a_rewritten_file_keeps_its_mode_and_the_links_to_it() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let [file, link] = ["my.conf", "link.conf"].map(|name| temp.path().join(name));
        fs::write(&file, "old").expect("a file");
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        for mode in [0o600, 0o644, 0o444] {
            fs::set_permissions(&file, Permissions::from_mode(mode)).expect("it is ours");
            rewrite(&link, format!("{mode:o}").as_bytes()).expect("it can be written");
            assert_eq!(fs::read_to_string(&file).expect("is there"), format!("{mode:o}"));
            assert_eq!(
                fs::metadata(&file).expect("is there").permissions().mode() & 0o7777,
                mode
            );
        }
        assert!(fs::symlink_metadata(&link).expect("is there").is_symlink());
        // What fails leaves nothing behind.
        fs::remove_file(&file).expect("is there");
        fs::create_dir(&file).expect("a directory");
        rewrite(&file, b"new").expect_err("it is a directory");
        assert_eq!(fs::read_dir(temp.path()).expect("is there").count(), 2);
    }

    #[test]
    fn an_output_gets_its_name_when_it_is_whole() {
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
        // A process that was killed has left more.
        fs::write(temp.path().join("dump.rdb.unfinished"), [b'x'; 100]).expect("a file");
        begin().keep(b"1234").expect("it is kept");
        assert_eq!(fs::read_to_string(&name).expect("a file"), "1234 and more");
        let second = begin();
        assert!(Output::file(&name).is_err(), "it is written already");
        assert_eq!((count(), fs::read(&name).expect("a file").len()), (2, 13));
        second.keep(b"").expect("it is kept");
        assert_eq!(fs::read_to_string(&name).expect("a file"), "0000 and more");
        assert_eq!(count(), 1);
        for other in [temp.path(), Path::new("/dev/null"), &temp.path().join("none/dump.rdb")] {
            assert!(Output::file(other).is_err(), "{}", other.display());
        }
    }

    #[test]
    fn a_directory_loses_what_others_may_do() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let mode = |mode| {
            fs::set_permissions(temp.path(), Permissions::from_mode(mode)).expect("is ours");
            restrict(temp.path()).expect("is ours");
            fs::metadata(temp.path()).expect("is there").permissions().mode() & 0o7777
        };
        assert_eq!([mode(0o777), mode(0o755), mode(0o700)], [0o750, 0o750, 0o700]);
    }
}
