//! Patterns of Lua (section 5.4.1 of its reference manual), matched in steps that can be stopped:
//! a short pattern can make a matcher that goes back and tries again run for years.

use super::control::{Control, Stop};

/// Most captures of a pattern.
const MAX_CAPTURES: usize = 32;
/// How deep the matcher goes into itself. A pattern goes one deeper for each repetition or capture.
const MAX_DEPTH: usize = 200;
/// Steps between two looks at whether to stop.
const STEPS: u32 = 10_000;

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The pattern means nothing.
    Pattern(&'static str),
    Stopped(Stop),
}

impl From<Stop> for Failure {
    fn from(stop: Stop) -> Self {
        Failure::Stopped(stop)
    }
}

/// What a capture holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// From here up to there.
    Text(usize, usize),
    /// `()`: a place.
    Place(usize),
    /// It has begun here and not ended.
    Open(usize),
}

pub struct Matcher<'a> {
    text: &'a [u8],
    pattern: &'a [u8],
    control: &'a Control,
    captures: Vec<Capture>,
    depth: usize,
    steps: u32,
}

type Matched = Result<Option<usize>, Failure>;

impl<'a> Matcher<'a> {
    pub fn new(text: &'a [u8], pattern: &'a [u8], control: &'a Control) -> Self {
        Matcher {
            text,
            pattern,
            control,
            captures: Vec::new(),
            depth: 0,
            steps: 0,
        }
    }

    /// Where the first match at or after `from` begins and ends. A pattern that begins with `^`
    /// matches at `from` only.
    pub fn find(&mut self, from: usize) -> Result<Option<(usize, usize)>, Failure> {
        let anchored = self.pattern.first() == Some(&b'^');
        let mut start = from;
        loop {
            if let Some(end) = self.match_at(start, anchored)? {
                return Ok(Some((start, end)));
            }
            start += 1;
            if anchored || start > self.text.len() {
                return Ok(None);
            }
        }
    }

    /// The end of a match that begins here. `anchored`: the pattern begins with a `^`, which is
    /// passed over.
    pub fn match_at(&mut self, start: usize, anchored: bool) -> Matched {
        self.captures.clear();
        self.depth = 0;
        self.rest(start, usize::from(anchored))
    }

    /// The captures of the last match; the whole match if there are none.
    pub fn captures(&self, start: usize, end: usize) -> Result<Vec<Capture>, Failure> {
        if self.captures.is_empty() {
            return Ok(vec![Capture::Text(start, end)]);
        }
        self.own_captures()
    }

    /// The captures of the last match, without the whole.
    pub fn own_captures(&self) -> Result<Vec<Capture>, Failure> {
        if self.captures.iter().any(|capture| matches!(capture, Capture::Open(_))) {
            return Err(Failure::Pattern("unfinished capture"));
        }
        Ok(self.captures.clone())
    }

    fn step(&mut self) -> Result<(), Failure> {
        self.steps += 1;
        if self.steps >= STEPS {
            self.steps = 0;
            self.control.check()?;
        }
        Ok(())
    }

    /// Matches the pattern from `p` on at `s`, going one deeper.
    fn rest(&mut self, s: usize, p: usize) -> Matched {
        if self.depth >= MAX_DEPTH {
            return Err(Failure::Pattern("pattern too complex"));
        }
        self.depth += 1;
        let matched = self.parts(s, p);
        self.depth -= 1;
        matched
    }

    fn parts(&mut self, mut s: usize, mut p: usize) -> Matched {
        loop {
            self.step()?;
            match self.pattern.get(p) {
                None => return Ok(Some(s)),
                Some(b'(') => return self.open(s, p + 1),
                Some(b')') => return self.close(s, p + 1),
                Some(b'$') if p + 1 == self.pattern.len() => {
                    return Ok((s == self.text.len()).then_some(s));
                }
                Some(b'%') => match self.pattern.get(p + 1) {
                    Some(b'b') => match self.balanced(s, p + 2)? {
                        Some(end) => {
                            (s, p) = (end, p + 4);
                            continue;
                        }
                        None => return Ok(None),
                    },
                    Some(b'f') => {
                        let set = p + 2;
                        if self.pattern.get(set) != Some(&b'[') {
                            return Err(Failure::Pattern("missing '[' after '%f' in pattern"));
                        }
                        let end = self.end_of_class(set)?;
                        let before = s.checked_sub(1).map_or(0, |before| self.text[before]);
                        let here = self.text.get(s).copied().unwrap_or(0);
                        if self.in_set(before, set, end) || !self.in_set(here, set, end) {
                            return Ok(None);
                        }
                        p = end;
                        continue;
                    }
                    Some(digit @ b'0'..=b'9') => match self.back(s, *digit)? {
                        Some(end) => {
                            (s, p) = (end, p + 2);
                            continue;
                        }
                        None => return Ok(None),
                    },
                    _ => {}
                },
                Some(_) => {}
            }
            let end = self.end_of_class(p)?;
            let fits = self.is_one(s, p, end);
            match self.pattern.get(end) {
                Some(b'?') => {
                    if fits && let Some(matched) = self.rest(s + 1, end + 1)? {
                        return Ok(Some(matched));
                    }
                    p = end + 1;
                }
                Some(b'*') => return self.longest(s, p, end, 0),
                Some(b'+') => return if fits { self.longest(s, p, end, 1) } else { Ok(None) },
                Some(b'-') => return self.shortest(s, p, end),
                _ if fits => (s, p) = (s + 1, end),
                _ => return Ok(None),
            }
        }
    }

    /// As many of the class as there are, then fewer, down to `least`.
    fn longest(&mut self, s: usize, p: usize, end: usize, least: usize) -> Matched {
        let mut times = 0;
        while self.is_one(s + times, p, end) {
            self.step()?;
            times += 1;
        }
        loop {
            if let Some(matched) = self.rest(s + times, end + 1)? {
                return Ok(Some(matched));
            }
            if times == least {
                return Ok(None);
            }
            times -= 1;
        }
    }

    /// None of the class, then more.
    fn shortest(&mut self, mut s: usize, p: usize, end: usize) -> Matched {
        loop {
            if let Some(matched) = self.rest(s, end + 1)? {
                return Ok(Some(matched));
            }
            if !self.is_one(s, p, end) {
                return Ok(None);
            }
            s += 1;
        }
    }

    fn open(&mut self, s: usize, p: usize) -> Matched {
        if self.captures.len() >= MAX_CAPTURES {
            return Err(Failure::Pattern("too many captures"));
        }
        let (capture, p) = match self.pattern.get(p) {
            Some(b')') => (Capture::Place(s), p + 1),
            _ => (Capture::Open(s), p),
        };
        let before = self.captures.len();
        self.captures.push(capture);
        let matched = self.rest(s, p)?;
        if matched.is_none() {
            self.captures.truncate(before);
        }
        Ok(matched)
    }

    fn close(&mut self, s: usize, p: usize) -> Matched {
        let open = |capture: &Capture| matches!(capture, Capture::Open(_));
        let Some(at) = self.captures.iter().rposition(open) else {
            return Err(Failure::Pattern("invalid pattern capture"));
        };
        let Capture::Open(start) = self.captures[at] else {
            return Ok(None);
        };
        self.captures[at] = Capture::Text(start, s);
        let matched = self.rest(s, p)?;
        if matched.is_none() {
            self.captures[at] = Capture::Open(start);
        }
        Ok(matched)
    }

    /// `%bxy`: from x to the y that balances it.
    fn balanced(&mut self, s: usize, p: usize) -> Matched {
        let (Some(&open), Some(&close)) = (self.pattern.get(p), self.pattern.get(p + 1)) else {
            return Err(Failure::Pattern("unbalanced pattern"));
        };
        if self.text.get(s) != Some(&open) {
            return Ok(None);
        }
        let mut depth = 1;
        for at in s + 1..self.text.len() {
            self.step()?;
            let byte = self.text[at];
            if byte == close {
                depth -= 1;
                if depth == 0 {
                    return Ok(Some(at + 1));
                }
            } else if byte == open {
                depth += 1;
            }
        }
        Ok(None)
    }

    /// `%1`: what a capture holds, again.
    fn back(&self, s: usize, digit: u8) -> Matched {
        let number = usize::from(digit).checked_sub(usize::from(b'1'));
        let capture = number.and_then(|number| self.captures.get(number));
        let (start, end) = match capture {
            Some(Capture::Text(start, end)) => (*start, *end),
            Some(Capture::Place(_)) => return Ok(None),
            Some(Capture::Open(_)) | None => return Err(Failure::Pattern("invalid capture index")),
        };
        let wanted = &self.text[start..end];
        Ok(self.text[s..].starts_with(wanted).then_some(s + wanted.len()))
    }

    /// Where the class that begins at `p` ends.
    fn end_of_class(&self, p: usize) -> Result<usize, Failure> {
        match self.pattern.get(p) {
            Some(b'%') if p + 1 >= self.pattern.len() => Err(Failure::Pattern("malformed pattern (ends with '%')")),
            Some(b'%') => Ok(p + 2),
            Some(b'[') => {
                let mut at = p + 1;
                if self.pattern.get(at) == Some(&b'^') {
                    at += 1;
                }
                // A bracket that comes first is meant itself.
                let mut first = true;
                loop {
                    match self.pattern.get(at) {
                        None => return Err(Failure::Pattern("malformed pattern (missing ']')")),
                        Some(b']') if !first => return Ok(at + 1),
                        Some(b'%') => at += 2,
                        Some(_) => at += 1,
                    }
                    first = false;
                }
            }
            _ => Ok(p + 1),
        }
    }

    /// Whether the byte at `s` is of the class from `p` to `end`.
    fn is_one(&self, s: usize, p: usize, end: usize) -> bool {
        let Some(&byte) = self.text.get(s) else {
            return false;
        };
        match self.pattern[p] {
            b'.' => true,
            b'%' => is_of(byte, self.pattern[p + 1]),
            b'[' => self.in_set(byte, p, end),
            other => other == byte,
        }
    }

    /// Whether a byte is in the set from `[` at `p` to the end behind its `]`.
    fn in_set(&self, byte: u8, p: usize, end: usize) -> bool {
        let mut set = &self.pattern[p + 1..end - 1];
        let negated = set.first() == Some(&b'^');
        if negated {
            set = &set[1..];
        }
        let mut found = false;
        while let [first, rest @ ..] = set {
            (found, set) = match (first, rest) {
                (b'%', [class, rest @ ..]) => (found || is_of(byte, *class), rest),
                (low, [b'-', high, rest @ ..]) => (found || (*low..=*high).contains(&byte), rest),
                (one, rest) => (found || *one == byte, rest),
            };
        }
        found != negated
    }
}

/// Whether a byte is of a class such as `%a`. An upper-case letter means all other bytes.
fn is_of(byte: u8, class: u8) -> bool {
    let is = match class.to_ascii_lowercase() {
        b'a' => byte.is_ascii_alphabetic(),
        b'c' => byte.is_ascii_control(),
        b'd' => byte.is_ascii_digit(),
        b'l' => byte.is_ascii_lowercase(),
        b'p' => byte.is_ascii_punctuation(),
        b's' => byte.is_ascii_whitespace() || byte == 0x0B,
        b'u' => byte.is_ascii_uppercase(),
        b'w' => byte.is_ascii_alphanumeric(),
        b'x' => byte.is_ascii_hexdigit(),
        b'z' => byte == 0,
        _ => return class == byte,
    };
    is != class.is_ascii_uppercase()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn found(text: &str, pattern: &str) -> Option<String> {
        let control = Control::default();
        let mut matcher = Matcher::new(text.as_bytes(), pattern.as_bytes(), &control);
        let (start, end) = matcher.find(0).expect("a pattern")?;
        let captures = matcher.captures(start, end).expect("captures");
        let shown = captures.iter().map(|capture| match capture {
            Capture::Text(start, end) => text[*start..*end].to_owned(),
            Capture::Place(place) | Capture::Open(place) => place.to_string(),
        });
        Some(shown.collect::<Vec<_>>().join("|"))
    }

    #[test]
    fn patterns_are_those_of_lua() {
        for (text, pattern, expected) in [
            ("hello world", "o w", Some("o w")),
            ("hello", "l+", Some("ll")),
            ("hello", "l-o", Some("llo")),
            ("hello", "x*", Some("")),
            ("hello", "^ell", None),
            ("hello", "o$", Some("o")),
            ("key = value", "(%w+)%s*=%s*(%w+)", Some("key|value")),
            ("f(a(b)c)d", "%b()", Some("(a(b)c)")),
            ("THE (quick) fox", "%f[%a]%a+%f[%A]", Some("THE")),
            ("abcabc", "(abc)%1", Some("abc")),
            ("a]b", "[]]", Some("]")),
            ("a-b", "[a%-]+", Some("a-")),
            ("x9y", "[^%a]", Some("9")),
            ("hello", "()ll()", Some("2|4")),
            ("aXb", "%u", Some("X")),
            ("a.b", "%.", Some(".")),
            ("colour", "colou?r", Some("colour")),
            ("color", "colou?r", Some("color")),
            ("", "", Some("")),
            ("a$b", "$b", Some("$b")),
        ] {
            assert_eq!(found(text, pattern).as_deref(), expected, "{text} {pattern}");
        }
    }

    #[test]
    fn what_means_nothing_is_an_error() {
        let control = Control::default();
        for (pattern, error) in [
            ("%", "malformed pattern (ends with '%')"),
            ("[a", "malformed pattern (missing ']')"),
            (")", "invalid pattern capture"),
            ("%1", "invalid capture index"),
            ("%f", "missing '[' after '%f' in pattern"),
            ("%b", "unbalanced pattern"),
        ] {
            let mut matcher = Matcher::new(b"abc", pattern.as_bytes(), &control);
            assert_eq!(matcher.find(0), Err(Failure::Pattern(error)), "{pattern}");
        }
        let deep = "(".repeat(40);
        let mut matcher = Matcher::new(b"abc", deep.as_bytes(), &control);
        assert_eq!(matcher.find(0), Err(Failure::Pattern("too many captures")));
        let long = "a?".repeat(10_000);
        let text = "a".repeat(10_000);
        let mut matcher = Matcher::new(text.as_bytes(), long.as_bytes(), &control);
        assert_eq!(matcher.find(0), Err(Failure::Pattern("pattern too complex")));
    }

    #[test]
    fn a_pattern_that_would_take_years_is_stopped() {
        let control = Control::default();
        control.begin(Some(Duration::from_millis(20)));
        let (text, pattern) = ("a".repeat(100), "a*".repeat(40) + "b");
        let mut matcher = Matcher::new(text.as_bytes(), pattern.as_bytes(), &control);
        assert_eq!(matcher.find(0), Err(Failure::Stopped(Stop::Late)));
    }
}
