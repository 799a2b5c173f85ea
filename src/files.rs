//! Files that this process creates: only their owner may write them, only their owner and group may
//! read them, and none is created through a symbolic link that somebody else put there.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use rustix::fs::Mode;

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
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
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
