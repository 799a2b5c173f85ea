//! Glob patterns of KEYS, SCAN and CONFIG GET, on bytes: `*`, `?`, `[abc]`, `[^a-z]`, and `\`
//! before a byte that stands for itself.
//!
//! Oddities of Redis that clients may rely on are kept: an unclosed class ends with the pattern, a
//! range may be backwards, `]` can end a range, and only the empty pattern matches the empty
//! string. The time is at most the length of the pattern times that of the string. Where clients
//! choose both and there are many strings, [`KeyPattern`] bounds the time for all of them together.

/// True if the whole string matches.
pub fn matches(pattern: &[u8], string: &[u8]) -> bool {
    glob(pattern, string, |byte| byte, &mut { u64::MAX }) == Some(true)
}

/// As [`matches`], letters in any case.
pub fn matches_any_case(pattern: &[u8], string: &[u8]) -> bool {
    glob(pattern, string, |byte| byte.to_ascii_lowercase(), &mut { u64::MAX }) == Some(true)
}

/// A pattern for names of keys. `*` alone matches every key, also the empty one.
pub struct KeyPattern<'p> {
    pattern: &'p [u8],
    every: bool,
    /// Steps left for looking at bytes again; see [`MAX_STEPS_BACK`].
    left: u64,
}

/// How often a pattern may look at a byte of a key again, all keys together: a few seconds' work.
/// Usual patterns hardly ever do.
const MAX_STEPS_BACK: u64 = 1 << 31;
/// The same for a part of the keys.
const MAX_STEPS_BACK_IN_PART: u64 = MAX_STEPS_BACK / 16;

impl<'p> KeyPattern<'p> {
    pub fn new(pattern: &'p [u8]) -> Self {
        KeyPattern {
            pattern,
            every: pattern == b"*",
            left: MAX_STEPS_BACK,
        }
    }

    /// For a part of the keys.
    pub fn of_part(pattern: &'p [u8]) -> Self {
        KeyPattern {
            left: MAX_STEPS_BACK_IN_PART,
            ..KeyPattern::new(pattern)
        }
    }

    /// For one channel. No pattern but the empty one matches the empty channel.
    pub fn of_channel(pattern: &'p [u8]) -> Self {
        KeyPattern {
            every: false,
            ..KeyPattern::of_part(pattern)
        }
    }

    pub fn every() -> Self {
        KeyPattern::new(b"*")
    }

    pub fn is_every(&self) -> bool {
        self.every
    }

    pub fn matches(&mut self, key: &[u8]) -> bool {
        self.every || glob(self.pattern, key, |byte| byte, &mut self.left) == Some(true)
    }

    /// The pattern took too long: a key that did not match since then might match.
    pub fn is_exhausted(&self) -> bool {
        self.left == 0
    }
}

/// If a byte does not match, the last `*` takes one more byte. Earlier stars need not be tried
/// again: for the part between two stars, its first match is the best one. `None`: no steps back
/// are left.
fn glob(pattern: &[u8], string: &[u8], fold: fn(u8) -> u8, left: &mut u64) -> Option<bool> {
    if string.is_empty() {
        return Some(pattern.is_empty());
    }
    let (mut rest, mut at) = (pattern, 0);
    let mut star: Option<(&[u8], usize)> = None;
    loop {
        if let [b'*', behind @ ..] = rest {
            if behind.is_empty() {
                return Some(true);
            }
            rest = behind;
            star = Some((behind, at));
            continue;
        }
        if rest.first() == Some(&b'[') {
            // A class may be long, and is read again for each byte.
            *left = left.saturating_sub(rest.len() as u64);
        }
        if *left == 0 {
            return None;
        }
        let step = match string.get(at) {
            None if rest.is_empty() => return Some(true),
            None => return Some(false),
            Some(&byte) => one(rest, byte, fold),
        };
        if let Some(behind) = step {
            rest = behind;
            at += 1;
        } else if let Some((behind, began)) = star {
            *left = left.saturating_sub((at - began) as u64);
            rest = behind;
            at = began + 1;
            star = Some((behind, at));
        } else {
            return Some(false);
        }
    }
}

/// The pattern after its first element, if that element (not a `*`) matches the byte.
fn one(pattern: &[u8], byte: u8, fold: fn(u8) -> u8) -> Option<&[u8]> {
    match pattern {
        [] => None,
        [b'?', rest @ ..] => Some(rest),
        [b'[', b'^', class @ ..] => {
            let (inside, rest) = in_class(class, byte, fold);
            (!inside).then_some(rest)
        }
        [b'[', class @ ..] => {
            let (inside, rest) = in_class(class, byte, fold);
            inside.then_some(rest)
        }
        [b'\\', meant, rest @ ..] | [meant, rest @ ..] => (fold(*meant) == fold(byte)).then_some(rest),
    }
}

/// Whether the class that begins here (after `[` or `[^`) contains the byte, and the pattern after
/// the class.
fn in_class(class: &[u8], byte: u8, fold: fn(u8) -> u8) -> (bool, &[u8]) {
    let byte = fold(byte);
    let (mut rest, mut inside) = (class, false);
    loop {
        rest = match rest {
            [] => return (inside, rest),
            [b'\\', meant, behind @ ..] => {
                inside |= fold(*meant) == byte;
                behind
            }
            [b']', behind @ ..] => return (inside, behind),
            [from, b'-', to, behind @ ..] => {
                let (low, high) = (from.min(to), from.max(to));
                inside |= (fold(*low)..=fold(*high)).contains(&byte);
                behind
            }
            [meant, behind @ ..] => {
                inside |= fold(*meant) == byte;
                behind
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_as_in_redis() {
        for (pattern, string, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "a", true),
            ("*", "", false),
            ("**", "", false),
            ("a*", "a", true),
            ("a**", "a", true),
            ("*a", "a", true),
            ("*a*", "banana", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[^e]llo", "hallo", true),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-", "ha", true),
            ("[abc", "c", true),
            ("[abc", "d", false),
            ("[^abc", "d", true),
            ("[^", "x", true),
            ("[", "x", false),
            ("[", "[", false),
            ("[]", "]", false),
            ("[^]", "x", true),
            ("[a-]", "_", true),
            ("[a-]x", "ax", false),
            ("[\\]]", "]", true),
            ("[\\a-z]", "-", true),
            ("[\\a-z]", "b", false),
            ("[\\", "\\", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("\\", "\\", true),
            ("a\\", "a\\", true),
            ("a*b*c", "aXXbYYc", true),
            ("a*b*c", "aXXbYY", false),
            ("*ab", "aab", true),
            ("?*", "", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), string.as_bytes()),
                expected,
                "{pattern:?} {string:?}"
            );
        }
        assert!(matches(b"\xff*", b"\xff\x00"));
        assert!(!matches(b"A[B-D]", b"ac") && matches_any_case(b"A[B-D]", b"ac"));
    }

    #[test]
    fn a_star_alone_means_every_key() {
        assert!(KeyPattern::every().matches(b"") && KeyPattern::new(b"*").matches(b"k"));
        assert!(!KeyPattern::new(b"**").matches(b""));
        let mut of_channel = KeyPattern::of_channel(b"*");
        assert!(!of_channel.matches(b"") && of_channel.matches(b"c"));
    }

    #[test]
    fn many_stars_do_not_take_forever() {
        let pattern = b"a*".repeat(2_000);
        assert!(!matches(&[&pattern[..], b"b"].concat(), &[b'a'; 10_000]));
        assert!(!matches(&[&b"*"[..], &[b'a'; 2_000], b"b"].concat(), &[b'a'; 10_000]));
    }

    #[test]
    fn what_takes_too_long_is_given_up() {
        let long = [b'a'; 100_000];
        let stars = [&b"*"[..], &[b'a'; 50_000], b"b"].concat();
        let class = [&b"*["[..], &[b'x'; 1_000_000], b"]"].concat();
        for pattern in [&stars, &class] {
            let mut pattern = KeyPattern::new(pattern);
            assert!(!pattern.matches(&long) && pattern.is_exhausted());
        }
        let mut usual = KeyPattern::new(b"*user:[0-9]*:?ame*");
        for n in 0..100_000 {
            assert!(usual.matches(format!("some-user:{n}:name").as_bytes()));
        }
        assert!(usual.left > MAX_STEPS_BACK / 1_000 * 998);
    }

    /// Tries every length for every star.
    fn simple(pattern: &[u8], string: &[u8]) -> bool {
        match (pattern, string) {
            ([], _) => string.is_empty(),
            ([b'*', rest @ ..], _) => (0..=string.len()).any(|taken| simple(rest, &string[taken..])),
            (_, []) => false,
            (_, [byte, behind @ ..]) => one(pattern, *byte, |b| b).is_some_and(|rest| simple(rest, behind)),
        }
    }

    proptest! {
        #[test]
        fn the_last_star_is_enough(
            pattern in vec(prop::sample::select(b"ab*?[]^-\\".to_vec()), 0..12),
            string in vec(prop::sample::select(b"ab-]\\".to_vec()), 1..12),
        ) {
            prop_assert_eq!(matches(&pattern, &string), simple(&pattern, &string));
        }
    }
}
