//! The texts of scripts: the line that may say how a script is to be run, and which scripts a node
//! knows by their digest.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::sha1::{Sha, sha1_hex};

/// Scripts that EVAL made known: more of them, and those that were not used for the longest time
/// are forgotten. Redis 7.4 keeps as many.
const MOST_EVALUATED: usize = 500;
/// Most bytes of their texts.
const MOST_EVALUATED_BYTES: usize = 16 << 20;
/// Most scripts that SCRIPT LOAD made known, and most bytes of them. They are not forgotten.
const MOST_LOADED: usize = 100_000;
const MOST_LOADED_BYTES: usize = 256 << 20;
/// What a script takes besides its text.
const SCRIPT: usize = 512;

/// Flags of a script, as its first line names them.
pub mod flags {
    pub const NO_WRITES: u8 = 1 << 0;
    pub const ALLOW_OOM: u8 = 1 << 1;
    pub const ALLOW_STALE: u8 = 1 << 2;
    pub const NO_CLUSTER: u8 = 1 << 3;
    pub const ALLOW_CROSS_SLOT_KEYS: u8 = 1 << 4;

    pub const NAMES: &[(&str, u8)] = &[
        ("no-writes", NO_WRITES),
        ("allow-oom", ALLOW_OOM),
        ("allow-stale", ALLOW_STALE),
        ("no-cluster", NO_CLUSTER),
        ("allow-cross-slot-keys", ALLOW_CROSS_SLOT_KEYS),
    ];
}

/// A script that can be run.
pub struct Script {
    pub sha: Sha,
    /// Without the first line if that is not Lua, so that lines keep their numbers.
    pub code: Bytes,
    pub flags: u8,
}

impl Script {
    /// Reads the text of a script; the error is a reply.
    fn read_as(sha: Sha, text: &[u8]) -> Result<Script, Vec<u8>> {
        let (mut flags, mut code) = (0, text);
        if text.starts_with(b"#!") {
            let end = text.iter().position(|byte| *byte == b'\n');
            let end = end.ok_or_else(|| b"ERR Invalid script shebang".to_vec())?;
            flags = flags_of(&text[..end])?;
            code = &text[end..];
        }
        Ok(Script {
            sha,
            code: Bytes::copy_from_slice(code),
            flags,
        })
    }
}

/// The flags in a line such as `#!lua flags=no-writes`.
fn flags_of(line: &[u8]) -> Result<u8, Vec<u8>> {
    let error = |text: &str, word: &[u8]| [b"ERR ", text.as_bytes(), word].concat();
    let mut words = line
        .split(|byte| byte.is_ascii_whitespace())
        .filter(|word| !word.is_empty());
    let engine = words.next().unwrap_or_default();
    if engine != b"#!lua" {
        return Err(error("Unexpected engine in script shebang: ", engine));
    }
    let mut flags = 0;
    for word in words {
        let Some(names) = word.strip_prefix(b"flags=") else {
            return Err(error("Unknown lua shebang option: ", word));
        };
        for name in names.split(|byte| *byte == b',').filter(|name| !name.is_empty()) {
            let known = flags::NAMES.iter().find(|(known, _)| known.as_bytes() == name);
            flags |= known
                .ok_or_else(|| error("Unexpected flag in script shebang: ", name))?
                .1;
        }
    }
    Ok(flags)
}

/// The scripts that a node knows.
#[derive(Default)]
pub struct Scripts {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_sha: HashMap<Sha, Kept>,
    /// Of scripts that EVAL made known: when each was used last.
    evaluated: BTreeMap<u64, Sha>,
    evaluated_bytes: usize,
    loaded: usize,
    loaded_bytes: usize,
    uses: u64,
}

struct Kept {
    script: Arc<Script>,
    bytes: usize,
    loaded: bool,
    /// When it was used last.
    used: u64,
}

impl Scripts {
    /// The script of a text, and whether it is known.
    pub fn evaluated(&self, text: &[u8]) -> Result<(Arc<Script>, bool), Vec<u8>> {
        let sha = sha1_hex(text);
        match self.find(&sha) {
            Some(script) => Ok((script, true)),
            None => Ok((Arc::new(Script::read_as(sha, text)?), false)),
        }
    }

    /// Makes a script known that could be compiled.
    pub fn keep(&self, script: &Arc<Script>, bytes: usize, loaded: bool) -> Result<(), Vec<u8>> {
        let mut known = self.known.lock();
        let (used, bytes) = (known.next_use(), bytes + SCRIPT);
        if let Some(before) = known.by_sha.get(&script.sha)
            && (before.loaded || !loaded)
        {
            return Ok(());
        }
        if loaded && (known.loaded >= MOST_LOADED || known.loaded_bytes + bytes > MOST_LOADED_BYTES) {
            return Err(format!(
                "ERR at most {MOST_LOADED} scripts can be loaded, of {MOST_LOADED_BYTES} bytes together; SCRIPT FLUSH forgets them"
            )
            .into());
        }
        known.forget(&script.sha);
        let kept = Kept {
            script: script.clone(),
            bytes,
            loaded,
            used,
        };
        if loaded {
            known.loaded += 1;
            known.loaded_bytes += bytes;
        } else {
            known.evaluated.insert(used, script.sha);
            known.evaluated_bytes += bytes;
        }
        known.by_sha.insert(script.sha, kept);
        known.shrink();
        Ok(())
    }

    /// A known script.
    pub fn find(&self, sha: &Sha) -> Option<Arc<Script>> {
        let mut known = self.known.lock();
        let used = known.next_use();
        let Known { by_sha, evaluated, .. } = &mut *known;
        let kept = by_sha.get_mut(sha)?;
        if !kept.loaded {
            evaluated.remove(&kept.used);
            evaluated.insert(used, *sha);
        }
        kept.used = used;
        Some(kept.script.clone())
    }

    /// As [`Scripts::find`], by 40 hex digits in any case.
    pub fn find_named(&self, name: &[u8]) -> Option<Arc<Script>> {
        let mut sha: Sha = name.try_into().ok()?;
        sha.make_ascii_lowercase();
        self.find(&sha)
    }

    pub fn clear(&self) {
        *self.known.lock() = Known::default();
    }

    /// How many scripts are known, and the bytes that they take.
    pub fn size(&self) -> (usize, usize) {
        let known = self.known.lock();
        (known.by_sha.len(), known.loaded_bytes + known.evaluated_bytes)
    }
}

impl Known {
    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    fn forget(&mut self, sha: &Sha) {
        let Some(kept) = self.by_sha.remove(sha) else {
            return;
        };
        if kept.loaded {
            self.loaded -= 1;
            self.loaded_bytes -= kept.bytes;
        } else {
            self.evaluated.remove(&kept.used);
            self.evaluated_bytes -= kept.bytes;
        }
    }

    /// Forgets what was not used for the longest time, except for the newest one.
    fn shrink(&mut self) {
        let is_much = |known: &Known| known.evaluated_bytes > MOST_EVALUATED_BYTES;
        while self.evaluated.len() > MOST_EVALUATED || self.evaluated.len() > 1 && is_much(self) {
            let Some((_, &oldest)) = self.evaluated.first_key_value() else {
                return;
            };
            self.forget(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(scripts: &Scripts, text: &str, loaded: bool) -> Sha {
        let (script, _) = scripts.evaluated(text.as_bytes()).expect("a script");
        scripts.keep(&script, text.len(), loaded).expect("room");
        script.sha
    }

    #[test]
    fn what_was_not_used_is_forgotten_unless_it_was_loaded() {
        let scripts = Scripts::default();
        let loaded = known(&scripts, "return 'loaded'", true);
        let first = known(&scripts, "return 'first'", false);
        let second = known(&scripts, "return 'second'", false);
        for number in 0..MOST_EVALUATED - 1 {
            assert!(scripts.find(&first).is_some());
            known(&scripts, &format!("return {number}"), false);
        }
        assert!(scripts.find(&loaded).is_some());
        assert!(scripts.find(&first).is_some());
        assert!(scripts.find(&second).is_none());
        assert_eq!(scripts.size().0, MOST_EVALUATED + 1);
        // Loaded later, it stays.
        known(&scripts, "return 'first'", true);
        assert_eq!(scripts.known.lock().evaluated.len(), MOST_EVALUATED - 1);
        scripts.clear();
        assert_eq!(scripts.size(), (0, 0));
    }

    #[test]
    fn the_first_line_may_have_flags() {
        let read = |text: &str| Script::read_as([0; 40], text.as_bytes());
        let flags = |text: &str| read(text).map(|script| script.flags);
        assert_eq!(flags("return 1"), Ok(0));
        assert_eq!(flags("#!lua flags=no-writes,allow-oom\nreturn 1"), Ok(3));
        assert_eq!(flags("#!lua\nreturn 1"), Ok(0));
        assert_eq!(flags("#!lua flags=\nreturn 1"), Ok(0));
        let error = |text: &str| String::from_utf8(flags(text).unwrap_err()).expect("text");
        assert_eq!(error("#!lua"), "ERR Invalid script shebang");
        assert_eq!(error("#!x\n"), "ERR Unexpected engine in script shebang: #!x");
        assert_eq!(error("#!lua a=1\n"), "ERR Unknown lua shebang option: a=1");
        assert_eq!(error("#!lua flags=b\n"), "ERR Unexpected flag in script shebang: b");
        let script = read("#!lua\nreturn 1").expect("a script");
        assert_eq!(&script.code[..], b"\nreturn 1");
    }
}
