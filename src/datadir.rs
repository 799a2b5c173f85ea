//! The data directory: one process at a time (`LOCK`), and one log for ever (`meta`).
//!
//! ```text
//! log/    the embedded log, where the data is     store/  the local view of the log, disposable
//! meta    which log this directory belongs to     LOCK    held while a process runs, with its id
//! node    this node's own id, on a shared log
//! unpacking/  what is unpacked of a snapshot until it is whole
//! snapshot    there until a node that began from a snapshot serves
//! ```

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::files;
use crate::log::embedded::lock::{DirectoryLock, LOCK_FILE, LockError};

const LOG: &str = "log";
const STORE: &str = "store";
const META: &str = "meta";
const NODE: &str = "node";
const UNPACKING: &str = "unpacking";
const SNAPSHOT: &str = "snapshot";
const FORMAT: u32 = 1;

/// The log that a directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    Embedded { id: String },
    Kafka { cluster: String, topic: String },
}

/// The directory belongs to this process as long as this exists.
pub struct DataDir {
    path: PathBuf,
    owner: Option<Owner>,
    _lock: DirectoryLock,
}

impl DataDir {
    /// Creates the directory if it is missing, locks it, and reads its owner.
    pub fn open(path: &Path) -> Result<DataDir, String> {
        fs::create_dir_all(path).map_err(|e| {
            format!(
                "create the data directory {}: {e}; name another with --dir",
                path.display()
            )
        })?;
        let lock = DirectoryLock::take(path).map_err(|error| match error {
            LockError::InUse { .. } => format!("use the data directory: {error} (--dir)"),
            LockError::Io { .. } => format!(
                "use the data directory {}: {error}; name another with --dir",
                path.display()
            ),
        })?;
        restrict(path);
        remove_unpacked(&path.join(UNPACKING));
        Ok(DataDir {
            owner: read(path)?,
            path: path.to_path_buf(),
            _lock: lock,
        })
    }

    /// Where the embedded log is.
    pub fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// Where the local store is.
    pub fn store(&self) -> PathBuf {
        self.path.join(STORE)
    }

    /// True if the directory holds no data.
    pub fn is_empty(&self) -> bool {
        !self.log().exists() && !self.store().exists()
    }

    /// A place for what a snapshot holds, until it is whole.
    pub fn unpacking(&self) -> Result<Unpacking, String> {
        let path = self.path.join(UNPACKING);
        fs::create_dir(&path).map_err(|e| format!("create {}: {e}", path.display()))?;
        Ok(Unpacking { path })
    }

    /// Makes what was unpacked the data of this directory, which is empty. It is that after a crash
    /// too, or the directory is empty still.
    pub fn take_over(&mut self, unpacked: Unpacking, owner: Owner) -> Result<(), String> {
        let taken = (|| {
            // An embedded log is whole by itself; its store is built from it.
            if unpacked.store().exists() {
                files::replace(&self.path.join(SNAPSHOT), b"")?;
            }
            write(&self.path, &owner)?;
            for name in [LOG, STORE] {
                match fs::rename(unpacked.path.join(name), self.path.join(name)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            fs::File::open(&self.path)?.sync_all()
        })();
        taken.map_err(|e: io::Error| format!("write to {}: {e}; is the disk full?", self.path.display()))?;
        self.owner = Some(owner);
        Ok(())
    }

    /// True if the store came from a snapshot and no node has served it yet ([`serves`]).
    pub fn is_from_snapshot(&self) -> bool {
        self.path.join(SNAPSHOT).exists() && self.store().exists()
    }

    /// This node's own id, made at its first start: 16 hex digits.
    pub fn node(&self) -> Result<String, String> {
        let path = self.path.join(NODE);
        match fs::read_to_string(&path) {
            Ok(id) if id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => return Ok(id),
            // Without the id, only the quick end of what a killed process left open is lost. A new
            // id will do.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("read {}: {error}", path.display())),
        }
        let id = format!("{:016x}", rand::random::<u64>());
        files::replace(&path, id.as_bytes())
            .map_err(|e| format!("write {}: {e}; is the disk full?", path.display()))?;
        Ok(id)
    }

    /// Refuses a log of the wrong kind or name before it is touched. Ids are not compared.
    pub fn check(&self, wanted: &Owner) -> Result<(), String> {
        match &self.owner {
            Some(owner) if !owner.is_like(wanted) => Err(self.refusal(owner, wanted)),
            Some(Owner::Embedded { .. }) if !self.log().exists() => Err(format!(
                "find the log that was in {}; put it back, or remove {} to begin with an empty one",
                self.log().display(),
                self.path.join(META).display()
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// Makes this log the owner of the directory. Refused if it belongs to another one.
    pub fn claim(&mut self, wanted: Owner) -> Result<(), String> {
        match &self.owner {
            Some(owner) if *owner == wanted => return Ok(()),
            Some(owner) if !owner.is_unknown() && !wanted.is_unknown() => return Err(self.refusal(owner, &wanted)),
            Some(_) if wanted.is_unknown() => return Ok(()),
            _ => {}
        }
        write(&self.path, &wanted)
            .map_err(|e| format!("write {}: {e}; is the disk full?", self.path.join(META).display()))?;
        self.owner = Some(wanted);
        Ok(())
    }

    fn refusal(&self, owner: &Owner, wanted: &Owner) -> String {
        format!(
            "use the data directory {} for {wanted}: it belongs to {owner}; name another with --dir",
            self.path.display()
        )
    }
}

/// A directory inside of the data directory. What is left of it goes when this is dropped.
pub struct Unpacking {
    path: PathBuf,
}

impl Unpacking {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where an embedded log is made, for [`DataDir::take_over`].
    pub fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    pub fn store(&self) -> PathBuf {
        self.path.join(STORE)
    }
}

impl Drop for Unpacking {
    fn drop(&mut self) {
        remove_unpacked(&self.path);
    }
}

/// Removes what was unpacked and not taken over. If that fails, the next start does it.
fn remove_unpacked(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(%error, "cannot remove {}", path.display());
        }
        _ => {}
    }
}

/// A node serves what is in this data directory. Where it came from does not matter any more.
pub fn serves(path: &Path) {
    match fs::remove_file(path.join(SNAPSHOT)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warn!(%error, "cannot remove {}", path.join(SNAPSHOT).display());
        }
        _ => {}
    }
}

impl Owner {
    /// Whether both are logs of one kind and, if it has names, of one name. Ids are not compared.
    pub fn is_like(&self, other: &Owner) -> bool {
        match (self, other) {
            (Owner::Embedded { .. }, Owner::Embedded { .. }) => true,
            (Owner::Kafka { topic, .. }, Owner::Kafka { topic: other, .. }) => topic == other,
            (Owner::Kafka { .. }, Owner::Embedded { .. }) | (Owner::Embedded { .. }, Owner::Kafka { .. }) => false,
        }
    }

    /// Whether the log could not report its id.
    fn is_unknown(&self) -> bool {
        match self {
            Owner::Embedded { id } => id.is_empty(),
            Owner::Kafka { cluster, .. } => cluster.is_empty(),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Embedded { id } if id.is_empty() => write!(f, "an embedded log"),
            Owner::Embedded { id } => write!(f, "the embedded log {id}"),
            Owner::Kafka { cluster, topic } if cluster.is_empty() => write!(f, "the Kafka topic {topic}"),
            Owner::Kafka { cluster, topic } => write!(f, "the Kafka topic {topic} of cluster {cluster}"),
        }
    }
}

/// A directory of an older version, or one that was created beforehand, may be open to everybody.
/// If it holds anything else, only what is ours in it is restricted.
fn restrict(dir: &Path) {
    for ours in [LOG, STORE]
        .map(|name| dir.join(name))
        .iter()
        .filter(|dir| dir.exists())
    {
        if let Err(error) = files::restrict(ours) {
            let directory = ours.display();
            warn!(%error, "cannot keep other users out of {directory}");
        }
    }
    let is_ours = |name: &str| {
        [LOG, STORE, META, NODE, LOCK_FILE, UNPACKING, SNAPSHOT, "lost+found"].contains(&name) || name.ends_with(".new")
    };
    let holds_ours_alone = fs::read_dir(dir).is_ok_and(|mut entries| {
        entries.all(|entry| entry.is_ok_and(|entry| entry.file_name().to_str().is_some_and(is_ours)))
    });
    if holds_ours_alone {
        // It may belong to another user, such as the root of a volume. What is in it is restricted
        // by now.
        let _ = files::restrict(dir);
    }
}

fn read(dir: &Path) -> Result<Option<Owner>, String> {
    let path = dir.join(META);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("read {}: {error}", path.display())),
    };
    let field = |name: &str| {
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix('=').map(str::to_string);
        text.lines().find_map(value)
    };
    let format: Option<u32> = field("format").and_then(|number| number.parse().ok());
    match format {
        Some(FORMAT) => {}
        Some(newer) => {
            return Err(format!(
                "use the data directory {}: it has format {newer}, this version knows {FORMAT}; start the version that wrote it, or a newer one",
                dir.display()
            ));
        }
        None => return Err(damaged(&path)),
    }
    let owner = match field("log").as_deref() {
        Some("embedded") => field("id").map(|id| Owner::Embedded { id }),
        Some("kafka") => field("cluster")
            .zip(field("topic"))
            .map(|(cluster, topic)| Owner::Kafka { cluster, topic }),
        _ => None,
    };
    owner.map(Some).ok_or_else(|| damaged(&path))
}

fn damaged(path: &Path) -> String {
    format!(
        "read {}: it is damaged; if you know which log this directory belongs to, remove the file",
        path.display()
    )
}

fn write(dir: &Path, owner: &Owner) -> io::Result<()> {
    let text = match owner {
        Owner::Embedded { id } => format!("format={FORMAT}\nlog=embedded\nid={id}\n"),
        Owner::Kafka { cluster, topic } => format!("format={FORMAT}\nlog=kafka\ncluster={cluster}\ntopic={topic}\n"),
    };
    files::replace(&dir.join(META), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn embedded(id: &str) -> Owner {
        Owner::Embedded { id: id.into() }
    }

    fn kafka(cluster: &str, topic: &str) -> Owner {
        Owner::Kafka {
            cluster: cluster.into(),
            topic: topic.into(),
        }
    }

    #[test]
    fn a_directory_belongs_to_one_log() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let path = temp.path().join("a/b");
        let mut dir = DataDir::open(&path).expect("is made");
        assert_eq!(dir.check(&kafka("", "kv")), Ok(()));
        assert_eq!(dir.claim(kafka("c", "kv")), Ok(()));
        assert_eq!(dir.claim(kafka("c", "kv")), Ok(()));
        drop(dir);
        let mut dir = DataDir::open(&path).expect("is free");
        assert_eq!(dir.check(&kafka("", "kv")), Ok(()));
        assert_eq!(dir.claim(kafka("", "kv")), Ok(()));
        for other in [kafka("", "other"), embedded("")] {
            let refused = dir.check(&other).expect_err("another log");
            assert!(
                refused.contains("belongs to the Kafka topic kv of cluster c") && refused.contains("--dir"),
                "{refused}"
            );
        }
        assert!(dir.claim(kafka("d", "kv")).is_err());
    }

    #[test]
    fn an_embedded_log_that_is_gone_is_no_empty_one() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let mut dir = DataDir::open(temp.path()).expect("is free");
        assert_eq!(dir.check(&embedded("")), Ok(()));
        fs::create_dir(dir.log()).expect("a directory");
        assert_eq!(dir.claim(embedded("1")), Ok(()));
        assert_eq!(dir.check(&embedded("")), Ok(()));
        assert!(dir.claim(embedded("2")).is_err());
        fs::remove_dir(dir.log()).expect("the directory goes");
        assert!(dir.check(&embedded("")).expect_err("gone").contains("put it back"));
    }

    #[test]
    fn a_second_process_and_a_damaged_file_are_refused() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = DataDir::open(temp.path()).expect("is free");
        let refused = DataDir::open(temp.path()).err().expect("in use");
        assert!(
            refused.contains("in use") && refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
        drop(dir);
        for text in [
            "",
            "format=1\n",
            "format=1\nlog=kafka\ntopic=x\n",
            "format=2\nlog=embedded\nid=1\n",
        ] {
            fs::write(temp.path().join(META), text).expect("a file");
            assert!(DataDir::open(temp.path()).is_err(), "{text}");
        }
    }
}
