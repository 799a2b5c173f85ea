//! Whole RDB files, read from their beginning to their end: one value at a time is in memory.

use std::io::{self, BufRead, BufReader, Read};

use bytes::Bytes;

use super::source::{Limits, Reader, Source};
use super::{LIBRARY, Object, Problem, VALKEY_9, crc64, form, object};

/// What stands in a file besides values, as `rdb.h` has it.
pub mod mark {
    pub const SLOT_INFO: u8 = 244;
    pub const MODULE_AUX: u8 = 247;
    pub const IDLE: u8 = 248;
    pub const FREQUENCY: u8 = 249;
    pub const AUX: u8 = 250;
    pub const RESIZE: u8 = 251;
    pub const EXPIRY_MS: u8 = 252;
    pub const EXPIRY_SECONDS: u8 = 253;
    pub const DATABASE: u8 = 254;
    pub const END: u8 = 255;
}

/// From this version on a file ends with its checksum.
const WITH_CHECKSUM: u16 = 5;
/// The first bytes of the oldest and the newest files.
const MAGIC: usize = 9;

/// What comes next in a file.
#[derive(Debug)]
pub enum Found {
    Key {
        key: Bytes,
        object: Object,
        /// Absolute, milliseconds since the epoch.
        expire_at: Option<u64>,
    },
    /// The text of a library of functions.
    Library(Bytes),
    /// A key whose value only a module of Redis can read.
    OfModule(Bytes),
    /// A collection without elements, which Redis drops too.
    Empty,
}

/// A file that is being read.
pub struct File<R> {
    reader: Reader<Input<R>>,
    version: u16,
    database: u64,
}

impl<R: Read> File<R> {
    /// Reads the header.
    pub fn open(file: R, limits: Limits) -> Result<Self, Problem> {
        const NONE: Problem = Problem::Bad("this is no RDB file: it begins with other bytes");
        let mut reader = Reader::new(Input::new(file), limits);
        let magic: [u8; MAGIC] = reader.array()?;
        let digits = magic.strip_prefix(b"REDIS").or(magic.strip_prefix(b"VALKEY"));
        let digits = digits.and_then(|digits| str::from_utf8(digits).ok());
        let version = digits.and_then(|digits| digits.parse().ok()).ok_or(NONE)?;
        if !(1..=VALKEY_9).contains(&version) {
            return Err(Problem::Bad("the file is of a newer version of Redis or Valkey"));
        }
        Ok(File {
            reader,
            version,
            database: 0,
        })
    }

    /// Goes on where another reader of the same file was: at this [`File::position`], in this
    /// database. The checksum of the file is not compared then.
    pub fn resume(&mut self, database: u64, position: u64) -> Result<(), Problem> {
        let input = &mut self.reader.source;
        let passed = position.checked_sub(input.position);
        let passed = passed.ok_or(Problem::Bad("the place to go on from is before the first value"))?;
        let skipped = io::copy(&mut (&mut input.file).take(passed), &mut io::sink())?;
        if skipped < passed {
            return Err(Problem::Bad("the place to go on from is behind the end of the file"));
        }
        (input.position, input.is_whole) = (position, false);
        self.database = database;
        Ok(())
    }

    /// The database of what was found last.
    pub fn database(&self) -> u64 {
        self.database
    }

    /// How many bytes have been read. What comes next begins there.
    pub fn position(&self) -> u64 {
        self.reader.source.position
    }

    /// What comes next; `None` at the end. After an error there is nothing more to read.
    pub fn next_found(&mut self) -> Result<Option<Found>, Problem> {
        self.reader.next_value();
        let reader = &mut self.reader;
        let mut expire_at = None;
        loop {
            match reader.byte()? {
                mark::SLOT_INFO => (0..3).try_for_each(|_| reader.length().map(drop))?,
                mark::MODULE_AUX => {
                    // The module, and when it reads this: a mark and a number.
                    (0..3).try_for_each(|_| reader.length().map(drop))?;
                    pass_module(reader)?;
                }
                mark::IDLE => drop(reader.length()?),
                mark::FREQUENCY => drop(reader.byte()?),
                mark::AUX => (0..2).try_for_each(|_| reader.string().map(drop))?,
                mark::RESIZE => (0..2).try_for_each(|_| reader.length().map(drop))?,
                // What has expired long ago has a time of 0 or below.
                mark::EXPIRY_MS => expire_at = Some(u64::try_from(reader.time()?).unwrap_or(0)),
                mark::EXPIRY_SECONDS => {
                    let seconds = i32::from_le_bytes(reader.array()?);
                    expire_at = Some(u64::try_from(seconds).unwrap_or(0) * 1000);
                }
                mark::DATABASE => self.database = reader.length()?,
                mark::END => return self.end(),
                LIBRARY => return Ok(Some(Found::Library(reader.text()?))),
                form => return read_key(reader, form, self.version, expire_at).map(Some),
            }
        }
    }

    fn end(&mut self) -> Result<Option<Found>, Problem> {
        let (found, is_whole) = (self.reader.source.checksum, self.reader.source.is_whole);
        if self.version >= WITH_CHECKSUM {
            let announced = u64::from_le_bytes(self.reader.array()?);
            // Redis writes 0 if it was told not to compute it.
            if is_whole && announced != 0 && announced != found {
                return Err(Problem::Bad("the checksum of the file is wrong: it is damaged"));
            }
        }
        // An append-only file may begin as an RDB file. Commands follow, or their times.
        if let Some(b'*' | b'#') = self.reader.source.file.fill_buf()?.first() {
            return Err(Problem::Bad(
                "commands of an append-only file follow, which are not read: import an RDB file (BGSAVE), or the \
                 running server",
            ));
        }
        Ok(None)
    }
}

fn read_key<S: Source>(
    reader: &mut Reader<S>,
    form: u8,
    version: u16,
    expire_at: Option<u64>,
) -> Result<Found, Problem> {
    let is_known = form <= form::HASH_EXPIRING_LISTPACK;
    if !is_known || form == form::MODULE {
        return Err(Problem::Unknown(form));
    }
    let key = reader.string()?;
    if form == form::MODULE_2 {
        // The module.
        reader.length()?;
        pass_module(reader)?;
        return Ok(Found::OfModule(key));
    }
    match object::read(reader, form, version) {
        Ok(object) => Ok(Found::Key { key, object, expire_at }),
        Err(Problem::Empty) => Ok(Found::Empty),
        Err(problem) => Err(problem),
    }
}

/// Passes over what a module has written: a mark before each part, and one at the end.
fn pass_module<S: Source>(reader: &mut Reader<S>) -> Result<(), Problem> {
    loop {
        match reader.length()? {
            0 => return Ok(()),
            1 | 2 => drop(reader.length()?),
            3 => drop(reader.array::<4>()?),
            4 => drop(reader.array::<8>()?),
            5 => {
                reader.next_value();
                reader.string()?;
            }
            _ => return Err(Problem::Bad("a value of a module is in no known form")),
        }
    }
}

/// The bytes of the file, with the checksum of those that were read.
struct Input<R> {
    file: BufReader<R>,
    checksum: u64,
    position: u64,
    /// Nothing was left out, so the checksum is that of the file.
    is_whole: bool,
}

impl<R: Read> Input<R> {
    fn new(file: R) -> Self {
        Input {
            file: BufReader::with_capacity(1 << 20, file),
            checksum: 0,
            position: 0,
            is_whole: true,
        }
    }

    fn passed(&mut self, bytes: &[u8]) {
        self.checksum = crc64::more(self.checksum, bytes);
        self.position += bytes.len() as u64;
    }
}

impl<R: Read> Source for Input<R> {
    fn fill(&mut self, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact(into)?;
        self.passed(into);
        Ok(())
    }

    fn take(&mut self, len: usize) -> io::Result<Bytes> {
        let mut bytes = Vec::with_capacity(len.min(self.file.fill_buf()?.len()));
        (&mut self.file).take(len as u64).read_to_end(&mut bytes)?;
        if bytes.len() < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.passed(&bytes);
        Ok(bytes.into())
    }
}
