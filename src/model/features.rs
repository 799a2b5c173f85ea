//! Features of the topic's format: what a topic uses beyond strings. A record of its own names them
//! ([`FEATURES_KEY`]), in every partition, before the first record that needs one. A node that does
//! not know one of them cannot be right about that topic, and says so.

use std::collections::BTreeSet;
use std::fmt;

use super::{Collection, FUNCTION};

/// Key of the record that names the features that its partition's topic uses.
pub const FEATURES_KEY: &[u8; 19] = b"\0highwater:features";

/// Longest name that is kept, bytes. What is longer is cut: it is not known anyway.
const NAME: usize = 40;
/// The most names that are kept of one record.
const NAMES: usize = 64;

/// Collections with a record for each element, of whatever type.
pub const SPLIT: &str = "split";
/// Heads of split collections that exclude elements ([`Bounds`](super::Bounds)).
pub const BOUNDS: &str = "bounds";

const OTHERS: [&str; 3] = [SPLIT, BOUNDS, FUNCTION];

/// A feature that this version knows. One for each type: a node that does not know a type cannot
/// show its keys.
pub fn is_known(feature: &str) -> bool {
    OTHERS.contains(&feature) || Collection::ALL.iter().any(|of| of.name() == feature)
}

/// Names of features.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Features(BTreeSet<String>);

impl Features {
    /// The names in a record's value, which stand there with spaces between them. It never fails: a
    /// name that nobody would write is a feature that nobody knows.
    pub fn parse(value: &[u8]) -> Features {
        let words = value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let names = words.take(NAMES).map(|word| {
            let name = word.escape_ascii().to_string();
            name.chars().take(NAME).collect()
        });
        Features(names.collect())
    }

    /// All that this version knows.
    pub fn known() -> Features {
        let types = Collection::ALL.iter().map(|of| of.name());
        Features(types.chain(OTHERS).map(str::to_owned).collect())
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    #[must_use]
    pub fn with(mut self, name: &str) -> Features {
        self.0.insert(name.to_owned());
        self
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names that this version does not know.
    pub fn unknown(&self) -> Vec<&str> {
        let names = self.0.iter().map(String::as_str);
        names.filter(|name| !is_known(name)).collect()
    }
}

/// As in a record's value.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(String::as_str).collect();
        f.write_str(&names.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_were_written() {
        let features = Features::default().with("zset").with("hash");
        assert_eq!(features.to_string(), "hash zset");
        assert_eq!(Features::parse(b"zset  hash\n"), features);
        assert_eq!(features.unknown(), [""; 0]);
        assert!(Features::parse(b" ").is_empty());
    }

    #[test]
    fn the_document_on_upgrading_names_every_feature() {
        let document = include_str!("../../docs/upgrading.md");
        let known = Features::known().to_string().replace(' ', ",");
        assert!(document.contains(&format!("max-features {known}\n")), "{known}");
    }

    #[test]
    fn whatever_a_record_holds_is_names_and_little() {
        let strange = Features::parse(b"hash \xff\0 from-the-future");
        assert!(strange.has("hash"));
        assert_eq!(strange.unknown(), ["\\xff\\x00", "from-the-future"]);
        let long = Features::parse(&[b'x'; 1_000_000]);
        assert_eq!(long.unknown(), ["x".repeat(NAME)]);
        let many: Vec<String> = (0..1_000).map(|n| n.to_string()).collect();
        assert_eq!(Features::parse(many.join(" ").as_bytes()).unknown().len(), NAMES);
    }
}
