//! Files that this process creates: only their owner may write them, only their owner and group may
//! read them, and none is created through a symbolic link that somebody else put there.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
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
    let mut file = create(&new)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
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
