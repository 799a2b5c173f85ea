//! The file of a snapshot: a few lines of text that say what it is, then files, then a checksum of
//! everything before it. Each part begins with a line of text, so that `head` shows what a file is.
//!
//! ```text
//! highwater snapshot 1              the format
//! created 1764500000000             when, milliseconds since the epoch
//! version 0.1.0                     of the program that made it
//! databases 16
//! log kafka <cluster> <topic>       or: log embedded <id>
//! store sled                        the engine of the store (of a topic alone)
//! position <database> <partition> <offset>
//!                                   everything below this offset is in it; one line a partition
//! contents
//! dir store/db
//! file <bytes> store/db/conf        then so many bytes, and a line feed
//! end <files> <xxh3 of all bytes before this line, 16 hex digits>
//! ```

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::path::{Component, Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::Problem;
use crate::datadir::Owner;
use crate::files;
use crate::log::{Positions, TopicPartition};

const MAGIC: &str = "highwater snapshot";
const FORMAT: u32 = 1;
/// A line that is longer is none of ours.
const MAX_LINE: u64 = 64 * 1024;
const CHUNK: usize = 256 * 1024;

/// What a snapshot says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    /// Milliseconds since the epoch.
    pub(super) created: u64,
    pub(super) version: String,
    pub(super) databases: u16,
    pub(super) owner: Owner,
    /// The engine of the store, if there is a store in it.
    pub(super) engine: Option<String>,
    pub(super) positions: Positions,
}

impl Manifest {
    fn format(&self) -> String {
        let mut lines = vec![
            format!("{MAGIC} {FORMAT}"),
            format!("created {}", self.created),
            format!("version {}", self.version),
            format!("databases {}", self.databases),
            match &self.owner {
                Owner::Kafka { cluster, topic } => format!("log kafka {cluster} {topic}"),
                Owner::Embedded { id } => format!("log embedded {id}"),
            },
        ];
        lines.extend(self.engine.iter().map(|engine| format!("store {engine}")));
        let position =
            |(at, offset): (&TopicPartition, &u64)| format!("position {} {} {offset}", at.database, at.partition);
        lines.extend(self.positions.iter().map(position));
        lines.push("contents\n".into());
        lines.join("\n")
    }

    /// Takes in one line after the first one. `None` if it cannot be right.
    fn take(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["created", created] => self.created = created.parse().ok()?,
            ["version", version] => self.version = version.to_owned(),
            ["databases", databases] => self.databases = databases.parse().ok()?,
            ["log", "kafka", cluster, topic] => {
                self.owner = Owner::Kafka {
                    cluster: cluster.to_owned(),
                    topic: topic.to_owned(),
                }
            }
            ["log", "embedded", id] => self.owner = Owner::Embedded { id: id.to_owned() },
            ["store", engine] => self.engine = Some(engine.to_owned()),
            ["position", database, partition, offset] => {
                let at = TopicPartition {
                    database: database.parse().ok()?,
                    partition: partition.parse().ok()?,
                };
                self.positions.insert(at, offset.parse().ok()?);
            }
            _ => return None,
        }
        Some(())
    }
}

/// Writes a snapshot.
pub(super) struct Writer<W: Write> {
    out: W,
    sum: Xxh3,
    files: u64,
    pub(super) bytes: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(out: W, manifest: &Manifest) -> io::Result<Writer<W>> {
        let mut writer = Writer {
            out,
            sum: Xxh3::new(),
            files: 0,
            bytes: 0,
        };
        writer.put(manifest.format().as_bytes())?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Adds an empty directory. It has to come before what is in it.
    pub(super) fn directory(&mut self, name: &str) -> io::Result<()> {
        self.put(format!("dir {name}\n").as_bytes())
    }

    /// Adds everything under a directory, under this name.
    pub(super) fn tree(&mut self, directory: &Path, name: &str, progress: &mut dyn FnMut(u64)) -> io::Result<()> {
        self.directory(name)?;
        let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, file_name) = (entry.path(), entry.file_name());
            let file_name = file_name.to_str().filter(|name| !name.contains('\n'));
            let file_name = file_name.ok_or_else(|| invalid(format!("{} has a strange name", path.display())))?;
            let name = format!("{name}/{file_name}");
            match entry.file_type()?.is_dir() {
                true => self.tree(&path, &name, progress)?,
                false => {
                    let file = File::open(&path)?;
                    let bytes = file.metadata()?.len();
                    self.file(file, bytes, &name, progress)?;
                }
            }
        }
        Ok(())
    }

    /// Adds the first so many bytes of a file.
    pub(super) fn file(
        &mut self,
        file: impl Read,
        bytes: u64,
        name: &str,
        progress: &mut dyn FnMut(u64),
    ) -> io::Result<()> {
        self.put(format!("file {bytes} {name}\n").as_bytes())?;
        let mut file = file.take(bytes);
        let (mut buffer, mut left) = (vec![0; CHUNK], bytes);
        while left > 0 {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                return Err(invalid(format!("{name} became shorter while it was read")));
            }
            self.put(&buffer[..read])?;
            left -= read as u64;
            progress(self.bytes);
        }
        self.files += 1;
        self.put(b"\n")
    }

    /// Ends the snapshot. Without this it is not whole. Returns the output, which is flushed.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let end = format!("end {} {:016x}\n", self.files, self.sum.digest());
        self.put(end.as_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads a snapshot.
pub(super) struct Reader<R: BufRead> {
    input: R,
    sum: Xxh3,
    files: u64,
    bytes: u64,
}

impl<R: BufRead> Reader<R> {
    /// Reads what a snapshot says of itself.
    pub(super) fn open(input: R) -> Result<(Manifest, Reader<R>), Problem> {
        let mut reader = Reader {
            input,
            sum: Xxh3::new(),
            files: 0,
            bytes: 0,
        };
        let first = reader.line()?;
        let format = first.strip_prefix(MAGIC).and_then(|rest| rest.strip_prefix(' '));
        match format.map(str::parse::<u32>) {
            Some(Ok(FORMAT)) => {}
            Some(Ok(other)) => {
                return Err(format!(
                    "read the snapshot: it has format {other}, and this version knows {FORMAT}; use the version that made it, or a newer one"
                ));
            }
            Some(Err(_)) | None => {
                return Err("read the snapshot: it is none; highwater snapshot makes them".into());
            }
        }
        let mut manifest = Manifest {
            created: 0,
            version: String::new(),
            databases: 0,
            owner: Owner::Embedded { id: String::new() },
            engine: None,
            positions: Positions::new(),
        };
        loop {
            let line = reader.line()?;
            if line == "contents" {
                return Ok((manifest, reader));
            }
            manifest.take(&line).ok_or_else(damaged)?;
        }
    }

    /// The next line, without its end.
    fn line(&mut self) -> Result<String, Problem> {
        let line = self.raw_line()?;
        self.sum.update(line.as_bytes());
        Ok(line.trim_end_matches('\n').to_owned())
    }

    fn raw_line(&mut self) -> Result<String, Problem> {
        let mut line = Vec::new();
        let read = (&mut self.input).take(MAX_LINE).read_until(b'\n', &mut line);
        self.bytes += read.map_err(|error| format!("read the snapshot: {error}"))? as u64;
        let line = String::from_utf8(line).map_err(|_| damaged())?;
        match line.ends_with('\n') {
            true => Ok(line),
            false => Err(cut_short()),
        }
    }

    /// Writes its files into a directory, fsynced, and compares the checksum. After an error, what
    /// is there is not to be used.
    pub(super) fn unpack(mut self, into: &Path, progress: &mut dyn FnMut(u64)) -> Result<(), Problem> {
        let mut directories = vec![into.to_owned()];
        loop {
            let line = self.raw_line()?;
            let trimmed = line.trim_end_matches('\n');
            if let Some(end) = trimmed.strip_prefix("end ") {
                let right = format!("{} {:016x}", self.files, self.sum.digest());
                if end != right {
                    return Err(damaged());
                }
                break;
            }
            self.sum.update(line.as_bytes());
            match trimmed.splitn(3, ' ').collect::<Vec<_>>()[..] {
                ["dir", name] => {
                    let path = place(into, name)?;
                    fs::create_dir_all(&path).map_err(|error| not_written(&path, &error))?;
                    directories.push(path);
                }
                ["file", bytes, name] => {
                    let bytes = bytes.parse().map_err(|_| damaged())?;
                    self.unpack_file(&place(into, name)?, bytes, progress)?;
                    self.files += 1;
                }
                _ => return Err(damaged()),
            }
        }
        for directory in directories.iter().rev() {
            let synced = File::open(directory).and_then(|directory| directory.sync_all());
            synced.map_err(|error| not_written(directory, &error))?;
        }
        Ok(())
    }

    fn unpack_file(&mut self, path: &Path, bytes: u64, progress: &mut dyn FnMut(u64)) -> Result<(), Problem> {
        let failed = |error: io::Error| not_written(path, &error);
        let mut file = files::create(path).map_err(failed)?;
        let mut left = bytes;
        // The line feed behind the file counts for the sum.
        while left > 0 {
            let buffer = self
                .input
                .fill_buf()
                .map_err(|error| format!("read the snapshot: {error}"))?;
            if buffer.is_empty() {
                return Err(cut_short());
            }
            let taken = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.sum.update(&buffer[..taken]);
            file.write_all(&buffer[..taken]).map_err(failed)?;
            self.input.consume(taken);
            left -= taken as u64;
            self.bytes += taken as u64;
            progress(self.bytes);
        }
        file.sync_all().map_err(failed)?;
        match self.line()?.as_str() {
            "" => Ok(()),
            _ => Err(damaged()),
        }
    }
}

/// Where a file of the snapshot goes: below the directory, whatever its name is.
fn place(into: &Path, name: &str) -> Result<PathBuf, Problem> {
    let path = Path::new(name);
    let is_below = path.components().all(|part| matches!(part, Component::Normal(_)));
    match is_below && ["store", "log"].iter().any(|top| path.starts_with(top)) {
        true => Ok(into.join(path)),
        false => Err(damaged()),
    }
}

fn not_written(path: &Path, error: &io::Error) -> Problem {
    format!("write {}: {error}; is the disk full?", path.display())
}

fn damaged() -> Problem {
    "use the snapshot: it is damaged; take another one".into()
}

fn cut_short() -> Problem {
    "use the snapshot: it ends too early, so it is not whole; take another one".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let at = |database, partition| TopicPartition { database, partition };
        Manifest {
            created: 1_764_500_000_000,
            version: "0.1.0".into(),
            databases: 16,
            owner: Owner::Kafka {
                cluster: "5L6g3nShT-eMCtK--X86sw".into(),
                topic: "kv".into(),
            },
            engine: Some("sled".into()),
            positions: [(at(0, 0), 7), (at(3, 1), u64::MAX)].into(),
        }
    }

    /// A snapshot of a small tree.
    fn written() -> Vec<u8> {
        let source = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(source.path().join("db/empty")).expect("is made");
        fs::write(source.path().join("db/a"), b"text\nend 1 x\n").expect("is written");
        fs::write(source.path().join("b"), vec![7; CHUNK + 1]).expect("is written");
        let mut writer = Writer::new(Vec::new(), &manifest()).expect("has room");
        writer.tree(source.path(), "store", &mut |_| {}).expect("is read");
        writer.finish().expect("has room")
    }

    fn unpacked(bytes: &[u8]) -> Result<(Manifest, tempfile::TempDir), Problem> {
        let target = tempfile::tempdir().expect("a directory");
        let (manifest, reader) = Reader::open(bytes)?;
        reader.unpack(target.path(), &mut |_| {})?;
        Ok((manifest, target))
    }

    #[test]
    fn comes_back_as_it_was() {
        let (read, target) = unpacked(&written()).expect("is whole");
        assert_eq!(read, manifest());
        let at = |name: &str| target.path().join("store").join(name);
        assert_eq!(fs::read(at("db/a")).expect("is there"), b"text\nend 1 x\n");
        assert_eq!(fs::read(at("b")).expect("is there"), vec![7; CHUNK + 1]);
        assert!(at("db/empty").is_dir());
        let embedded = Manifest {
            owner: Owner::Embedded { id: "ab".into() },
            engine: None,
            ..manifest()
        };
        let bytes = Writer::new(Vec::new(), &embedded)
            .and_then(Writer::finish)
            .expect("has room");
        assert_eq!(unpacked(&bytes).expect("is whole").0, embedded);
    }

    #[test]
    fn what_is_not_whole_is_refused() {
        let bytes = written();
        for len in (0..bytes.len()).filter(|len| *len < 600 || *len % 997 == 0 || *len > bytes.len() - 40) {
            assert!(unpacked(&bytes[..len]).is_err(), "cut at {len}");
        }
        for at in (0..bytes.len()).filter(|at| *at < 600 || *at % 997 == 0 || *at > bytes.len() - 40) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(unpacked(&flipped).is_err(), "a flip at {at}");
        }
    }

    #[test]
    fn no_file_leaves_the_directory() {
        for name in ["../store/x", "store/../../x", "/store/x", "meta", "storex/y", ""] {
            let mut writer = Writer::new(Vec::new(), &manifest()).expect("has room");
            writer.file(&b"x"[..], 1, name, &mut |_| {}).expect("has room");
            let bytes = writer.finish().expect("has room");
            assert!(unpacked(&bytes).is_err(), "{name}");
        }
    }

    #[test]
    fn another_format_is_refused_with_what_to_do() {
        let text = String::from_utf8_lossy(&written()).replacen("snapshot 1", "snapshot 2", 1);
        let told = unpacked(text.as_bytes()).expect_err("is newer");
        assert!(told.contains("format 2") && told.contains("newer"), "{told}");
        let told = unpacked(b"REDIS0011\n").expect_err("is none");
        assert!(told.contains("it is none"), "{told}");
    }
}
