//! Libraries of functions: what their first line says, how one is loaded, and how a function is
//! called. A state loads a library when it calls one of its functions for the first time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use mlua::chunk::ChunkMode;
use mlua::{Function, Table, Value};

use super::control::Stop;
use super::sha1::{Sha, sha1_hex};
use super::state::{Ended, Host, State};

/// Name of a library in the texts of errors.
const NAME: &str = "@user_function";
/// Most libraries that one state keeps.
const MOST_LOADED: usize = 100;
/// Most bytes of the name of a library.
const MOST_NAME: usize = 1_024;
/// Most bytes that the functions of one library may take besides its text.
const MOST_REGISTERED: usize = 1 << 20;
/// What a function counts besides its name and description.
const FUNCTION_BYTES: usize = 128;

pub const WRONG_NAME: &str =
    "ERR Library names can only contain letters, numbers, or underscores(_) and must be at least one character long";

/// The functions of a library that a state has loaded, by their names.
pub type Functions = HashMap<Bytes, Function>;

/// A function, as its library registers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    pub name: Bytes,
    pub description: Option<Bytes>,
    /// See [`flags`](super::flags).
    pub flags: u8,
}

/// A library that was loaded.
pub struct Library {
    pub name: Bytes,
    pub text: Bytes,
    pub functions: Vec<Registered>,
    sha: Sha,
}

/// All libraries, and where each function is.
#[derive(Default)]
pub struct Index {
    pub libraries: BTreeMap<Bytes, Arc<Library>>,
    /// By the name in lower case: the library, and the place in it.
    functions: HashMap<Vec<u8>, (Arc<Library>, usize)>,
}

/// Why a library was not loaded.
pub enum Refused {
    /// The reply.
    Error(Vec<u8>),
    Stopped(Stop),
    /// Lua could not be prepared. The reply.
    Unprepared(Bytes),
}

impl Library {
    /// Bytes that a node keeps of it.
    pub fn bytes(&self) -> usize {
        let functions = self.functions.iter().map(|function| {
            let description = function.description.as_ref().map_or(0, Bytes::len);
            FUNCTION_BYTES + function.name.len() + description
        });
        self.text.len() + functions.sum::<usize>()
    }
}

impl From<&str> for Refused {
    fn from(error: &str) -> Self {
        Refused::Error(error.as_bytes().to_vec())
    }
}

impl Index {
    /// Adds a library. The error names a function of another library.
    pub fn add(&mut self, library: &Arc<Library>) -> Result<(), Bytes> {
        let is_taken = |function: &&Registered| self.functions.contains_key(&function.name.to_ascii_lowercase());
        if let Some(taken) = library.functions.iter().find(is_taken) {
            return Err(taken.name.clone());
        }
        for (place, function) in library.functions.iter().enumerate() {
            let name = function.name.to_ascii_lowercase();
            self.functions.insert(name, (library.clone(), place));
        }
        self.libraries.insert(library.name.clone(), library.clone());
        Ok(())
    }

    /// Removes a library, if there is one of this name.
    pub fn remove(&mut self, name: &[u8]) {
        if self.libraries.remove(name).is_some() {
            self.functions.retain(|_, (library, _)| library.name != name);
        }
    }

    /// A function by its name, in any case.
    pub fn find(&self, function: &[u8]) -> Option<(&Arc<Library>, &Registered)> {
        let (library, place) = self.functions.get(&function.to_ascii_lowercase())?;
        Some((library, &library.functions[*place]))
    }

    pub fn functions(&self) -> usize {
        self.functions.len()
    }
}

impl Clone for Index {
    fn clone(&self) -> Self {
        Index {
            libraries: self.libraries.clone(),
            functions: self.functions.clone(),
        }
    }
}

/// The name of a library, and its code from the end of the first line on.
pub fn metadata(text: &Bytes) -> Result<(Bytes, Bytes), Vec<u8>> {
    if !text.starts_with(b"#!") {
        return Err(b"ERR Missing library metadata".to_vec());
    }
    let invalid = || b"ERR Invalid library metadata".to_vec();
    let end = text.iter().position(|byte| *byte == b'\n').ok_or_else(invalid)?;
    let words = split(&text[..end]).ok_or_else(invalid)?;
    let mut name = None;
    for word in words.iter().skip(1) {
        let parts = word.split_at_checked(5);
        let Some((_, value)) = parts.filter(|(key, _)| key.eq_ignore_ascii_case(b"name=")) else {
            return Err([b"ERR Invalid metadata value given: ", &word[..]].concat());
        };
        if name.replace(Bytes::copy_from_slice(value)).is_some() {
            return Err(b"ERR Invalid metadata value, name argument was given multiple times".to_vec());
        }
    }
    let name = name.ok_or_else(|| b"ERR Library name was not given".to_vec())?;
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    if name.is_empty() || !name.iter().all(is_letter) {
        return Err(WRONG_NAME.as_bytes().to_vec());
    }
    if name.len() > MOST_NAME {
        return Err(format!("ERR Library names can have at most {MOST_NAME} bytes").into_bytes());
    }
    let engine = words.first().map_or(&b""[..], |word| &word[2..]);
    if !engine.eq_ignore_ascii_case(b"lua") {
        return Err([b"ERR Engine '", engine, b"' not found"].concat());
    }
    Ok((name, text.slice(end..)))
}

/// The words of a line, as Redis splits one: quotes keep blanks together. `None`: a quote is open.
fn split(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Some(words);
        }
        let mut word = Vec::new();
        let mut quote = None;
        while let [first, tail @ ..] = rest {
            rest = tail;
            match (quote, *first) {
                (None, byte) if byte.is_ascii_whitespace() => break,
                (None, byte @ (b'"' | b'\'')) => quote = Some(byte),
                (Some(open), byte) if byte == open => {
                    // Only a blank may follow.
                    if rest.first().is_some_and(|next| !next.is_ascii_whitespace()) {
                        return None;
                    }
                    quote = None;
                }
                (Some(b'"'), b'\\') if !rest.is_empty() => {
                    let (byte, after) = escaped(rest);
                    word.push(byte);
                    rest = after;
                }
                (Some(_), b'\\') if rest.first() == Some(&b'\'') => {
                    word.push(b'\'');
                    rest = &rest[1..];
                }
                (_, byte) => word.push(byte),
            }
        }
        if quote.is_some() {
            return None;
        }
        words.push(word);
    }
}

/// The byte that stands after a backslash, and what follows. `rest` is not empty.
fn escaped(rest: &[u8]) -> (u8, &[u8]) {
    if let [b'x', high, low, after @ ..] = rest
        && let (Some(high), Some(low)) = ((*high as char).to_digit(16), (*low as char).to_digit(16))
    {
        return ((high << 4 | low) as u8, after);
    }
    let byte = match rest[0] {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    };
    (byte, &rest[1..])
}

impl State {
    /// Loads a library; its time has begun.
    pub(super) fn load_library(&mut self, host: &mut dyn Host, text: &Bytes) -> Result<Arc<Library>, Refused> {
        let (name, code) = metadata(text).map_err(Refused::Error)?;
        let sha = sha1_hex(text);
        let loaded = self.try_load(host, &code);
        if let Some(stop) = self.control().stopped() {
            return Err(Refused::Stopped(stop));
        }
        let (functions, registered) = loaded.map_err(|error| match error {
            Failure::Reply(error) => Refused::Error(error),
            Failure::Lua(mlua::Error::MemoryError(_)) => Refused::Stopped(Stop::Memory),
            Failure::Lua(error) => Refused::Error(format!("ERR Error registering functions: {error}").into()),
        })?;
        if registered.is_empty() {
            return Err("ERR No functions registered".into());
        }
        if self.libraries.len() >= MOST_LOADED {
            self.libraries.clear();
        }
        self.libraries.insert(sha, functions);
        Ok(Arc::new(Library {
            name,
            text: text.clone(),
            functions: registered,
            sha,
        }))
    }

    fn try_load(&self, host: &mut dyn Host, code: &[u8]) -> Result<(Functions, Vec<Registered>), Failure> {
        let chunk = self.lua.load(code).set_name(NAME).set_mode(ChunkMode::Text);
        let chunk = chunk.into_function().map_err(|error| match error {
            mlua::Error::SyntaxError { message, .. } => {
                Failure::Reply(format!("ERR Error compiling function: {message}").into())
            }
            other => Failure::Lua(other),
        })?;
        let (ok, result) = self.with_host(host, || self.load.call::<(bool, Value)>(chunk))?;
        let Value::Table(result) = result else {
            let text = match &result {
                Value::String(text) => text.to_string_lossy(),
                _ => "stack overflow".to_owned(),
            };
            return Err(Failure::Reply(
                format!("ERR Error registering functions: ERR {text}").into(),
            ));
        };
        if !ok {
            let error = result.raw_get::<Option<mlua::LuaString>>("err")?;
            let error = error.map_or_else(Vec::new, |error| error.as_bytes().to_vec());
            return Err(Failure::Reply(
                [b"ERR Error registering functions: ", &error[..]].concat(),
            ));
        }
        registered(&result)
    }

    /// Calls a function; its time has begun.
    pub(super) fn call_function(
        &mut self,
        host: &mut dyn Host,
        (library, name): (&Library, &Bytes),
        keys: &[&[u8]],
        args: &[&[u8]],
    ) -> Ended {
        let failed = |error: Bytes| Ended::Reply {
            reply: crate::resp::Reply::Error(error),
            counted: false,
        };
        if !self.libraries.contains_key(&library.sha) {
            match self.load_library(host, &library.text) {
                Ok(_) => {}
                Err(Refused::Stopped(stop)) => return Ended::Stopped(stop),
                Err(Refused::Error(error)) => return failed(error.into()),
                Err(Refused::Unprepared(error)) => return failed(error),
            }
        }
        let ended = self.try_call(host, (library, name), keys, args);
        self.outcome(ended)
    }

    fn try_call(
        &self,
        host: &mut dyn Host,
        (library, name): (&Library, &Bytes),
        keys: &[&[u8]],
        args: &[&[u8]],
    ) -> mlua::Result<Ended> {
        let functions = self.libraries.get(&library.sha);
        let Some(function) = functions.and_then(|functions| functions.get(name)) else {
            // It has registered other functions this time.
            return Ok(Ended::Reply {
                reply: crate::resp::Reply::error("ERR Function not found"),
                counted: false,
            });
        };
        let (keys, args) = (self.list(keys)?, self.list(args)?);
        let (ok, result) = self.with_host(host, || self.call.call::<(bool, Value)>((function, keys, args)))?;
        self.ended(name, ok, &result)
    }
}

/// What a library has registered.
fn registered(all: &Table) -> Result<(Functions, Vec<Registered>), Failure> {
    let (mut functions, mut list, mut bytes) = (Functions::new(), Vec::new(), 0);
    for of in all.sequence_values::<Table>() {
        let of = of?;
        let text = |name: &str| of.raw_get::<Option<mlua::LuaString>>(name);
        let (name, description) = (text("function_name")?, text("description")?);
        let len = |text: &Option<mlua::LuaString>| text.as_ref().map_or(0, |text| text.as_bytes().len());
        bytes += FUNCTION_BYTES + len(&name) + len(&description);
        if bytes > MOST_REGISTERED {
            return Err(Failure::Reply(
                format!(
                    "ERR Error registering functions: ERR the functions of a library take more than {MOST_REGISTERED} bytes"
                )
                .into(),
            ));
        }
        let copied = |text: mlua::LuaString| Bytes::copy_from_slice(&text.as_bytes());
        let name = name.map(copied).unwrap_or_default();
        functions.insert(name.clone(), of.raw_get("callback")?);
        list.push(Registered {
            name,
            description: description.map(copied),
            flags: of.raw_get("flags")?,
        });
    }
    Ok((functions, list))
}

enum Failure {
    Reply(Vec<u8>),
    Lua(mlua::Error),
}

impl From<mlua::Error> for Failure {
    fn from(error: mlua::Error) -> Self {
        Failure::Lua(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_names_the_library() {
        let read =
            |text: &str| metadata(&Bytes::copy_from_slice(text.as_bytes())).map(|(name, code)| (name, code.len()));
        assert_eq!(read("#!LUA NAME=\"l\\x61b\"\nx"), Ok(("lab".into(), 2)));
        assert_eq!(read("#!lua name='a_1' \n"), Ok(("a_1".into(), 1)));
        for (text, error) in [
            ("x", "Missing library metadata"),
            ("#!lua name=x", "Invalid library metadata"),
            ("#!lua name=\"x\n", "Invalid library metadata"),
            ("#!lua name=\"x\"y\n", "Invalid library metadata"),
            ("#!lua\n", "Library name was not given"),
            ("#!lua nam=x\n", "Invalid metadata value given: nam=x"),
            ("#! name=x\n", "Engine '' not found"),
            (
                "#!lua name=x name=y\n",
                "Invalid metadata value, name argument was given multiple times",
            ),
        ] {
            assert_eq!(read(text), Err(format!("ERR {error}").into_bytes()), "{text}");
        }
        assert_eq!(read("#!lua name=a-b\n"), Err(WRONG_NAME.as_bytes().to_vec()));
        let long = "x".repeat(MOST_NAME);
        assert!(read(&format!("#!lua name={long}\n")).is_ok());
        assert!(read(&format!("#!lua name={long}x\n")).is_err());
    }

    #[test]
    fn a_function_is_found_in_any_case_and_in_one_library() {
        let library = |name: &'static str, function: &'static str| {
            let functions = vec![Registered {
                name: function.into(),
                description: None,
                flags: 0,
            }];
            Arc::new(Library {
                name: name.into(),
                text: Bytes::new(),
                functions,
                sha: [0; 40],
            })
        };
        let mut index = Index::default();
        assert_eq!(index.add(&library("a", "f")), Ok(()));
        assert_eq!(index.add(&library("b", "F")), Err("F".into()));
        assert_eq!(index.find(b"F").map(|(of, _)| of.name.clone()), Some("a".into()));
        index.remove(b"a");
        assert!(index.find(b"f").is_none());
        assert_eq!(index.add(&library("b", "F")), Ok(()));
        assert_eq!((index.functions(), index.libraries.len()), (1, 1));
    }
}
