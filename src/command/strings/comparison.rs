//! Compare-and-set: what the string at a key must be for SET or DELEX to change the key, by the
//! string itself or by its digest.

use xxhash_rust::xxh3::xxh3_64;

use crate::command::Fault;
use crate::command::args::is;

/// Characters of a digest.
const DIGEST_LENGTH: usize = 16;

/// IFEQ, IFNE, IFDEQ or IFDNE, with its argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison<'a> {
    /// The strings must be equal; otherwise they must differ.
    wants_equal: bool,
    /// The argument is a digest.
    by_digest: bool,
    argument: &'a [u8],
}

impl<'a> Comparison<'a> {
    /// `None` if the word is no condition.
    pub fn parse(word: &[u8], argument: &'a [u8]) -> Option<Self> {
        let conditions = [
            ("IFEQ", true, false),
            ("IFNE", false, false),
            ("IFDEQ", true, true),
            ("IFDNE", false, true),
        ];
        let (_, wants_equal, by_digest) = conditions.into_iter().find(|(name, ..)| is(word, name))?;
        Some(Comparison {
            wants_equal,
            by_digest,
            argument,
        })
    }

    /// Whether both have the same word.
    pub fn is_like(self, other: Self) -> bool {
        (self.wants_equal, self.by_digest) == (other.wants_equal, other.by_digest)
    }

    /// Whether a missing key may be set.
    pub fn allows_missing(self) -> bool {
        !self.wants_equal
    }

    /// Whether a key with this string may be changed. As in Redis, a digest is checked only when it
    /// is compared.
    pub fn allows(self, value: &[u8]) -> Result<bool, Fault> {
        let is_equal = match self.by_digest {
            false => value == self.argument,
            true if self.argument.len() != DIGEST_LENGTH => {
                return Err("ERR must be exactly 16 hexadecimal characters".into());
            }
            true => digest(value).as_bytes().eq_ignore_ascii_case(self.argument),
        };
        Ok(is_equal == self.wants_equal)
    }
}

/// The 64-bit XXH3 of a string in hexadecimal.
pub fn digest(value: &[u8]) -> String {
    format!("{:0DIGEST_LENGTH$x}", xxh3_64(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From <https://redis.io/docs/latest/commands/digest/>, from
    /// <https://github.com/redis/redis/issues/14496> (with leading zeros), and the empty string's
    /// from <https://github.com/Cyan4973/xxHash/blob/v0.8.2/tests/sanity_test_vectors.h>.
    #[test]
    fn digests_are_those_that_redis_documents() {
        const WITH_ZEROS: &str =
            "v8lf0c11xh8ymlqztfd3eeq16kfn4sspw7fqmnuuq3k3t75em5wdizgcdw7uc26nnf961u2jkfzkjytls2kwlj7626sd";
        for (value, expected) in [
            ("Hello world", "b6acb9d84a38ff74"),
            (WITH_ZEROS, "00006c38adf31777"),
            ("", "2d06800538d394c2"),
        ] {
            assert_eq!(digest(value.as_bytes()), expected, "{value}");
        }
    }

    /// The vectors of xxHash itself, one for each of its ways to hash, by length:
    /// <https://github.com/Cyan4973/xxHash/blob/v0.8.2/tests/sanity_test_vectors.h>.
    #[test]
    fn digests_of_all_lengths_are_those_of_xxhash() {
        let mut state: u64 = 2_654_435_761;
        let mut next = || {
            let byte = (state >> 56) as u8;
            state = state.wrapping_mul(11_400_714_785_074_694_797);
            byte
        };
        let buffer: Vec<u8> = (0..2367).map(|_| next()).collect();
        for (length, expected) in [
            (1, "c44bdff4074eecdb"),
            (6, "27b56a84cd2d7325"),
            (12, "a713daf0dfbb77e7"),
            (24, "a3fe70bf9d3510eb"),
            (48, "397da259ecba1f11"),
            (80, "bcdefbbb2c47c90a"),
            (195, "cd94217ee362ec3a"),
            (403, "cdeb804d65c6dea4"),
            (512, "617e49599013cb6b"),
            (2048, "dd59e2c3a5f038e0"),
            (2240, "6e73a90539cf2948"),
            (2367, "cb37aeb9e5d361ed"),
        ] {
            assert_eq!(digest(&buffer[..length]), expected, "{length} bytes");
        }
    }

    #[test]
    fn conditions_compare_strings_or_digests() {
        const HELLO: &str = "9555E8555C62DCFD";
        let allows = |word: &str, argument: &'static str, value: &str| {
            let comparison = Comparison::parse(word.as_bytes(), argument.as_bytes());
            let comparison = comparison.expect("a condition");
            comparison.allows(value.as_bytes()).ok()
        };
        for (word, argument, allowed) in [
            ("IFEQ", "hello", Some(true)),
            ("ifeq", "Hello", Some(false)),
            ("IfNe", "hello", Some(false)),
            ("IFNE", "", Some(true)),
            ("IFDEQ", HELLO, Some(true)),
            ("ifdne", HELLO, Some(false)),
            ("IFDEQ", "zzzzzzzzzzzzzzzz", Some(false)),
            ("IFDNE", "0000000000000000", Some(true)),
            ("IFDEQ", "", None),
            ("IFDNE", "09555E8555C62DCFD", None),
        ] {
            assert_eq!(allows(word, argument, "hello"), allowed, "{word} {argument}");
        }
        assert_eq!(Comparison::parse(b"EQ", b""), None);
    }
}
