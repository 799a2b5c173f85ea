//! Inline requests: a line that a person types, with arguments separated by blanks and optionally
//! quoted.

use super::decode::Span;

/// A quote is not closed, or something other than a blank follows the closing one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unbalanced;

/// Splits `line`, which starts at `base` in the buffer, and appends the place of every argument to
/// `spans`.
///
/// Quotes and escapes are removed in place: an argument is never longer than what was typed, so it
/// fits before the byte being read, and inline arguments are plain ranges into the buffer like any
/// others.
pub(super) fn split(line: &mut [u8], base: usize, spans: &mut Vec<Span>) -> Result<(), Unbalanced> {
    let mut words = Words {
        line,
        read: 0,
        write: 0,
    };
    loop {
        words.skip_blanks();
        if words.peek(0).is_none() {
            return Ok(());
        }
        let start = words.write;
        words.word()?;
        spans.push(Span::new(base + start, base + words.write));
    }
}

/// C's `isspace`.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c)
}

struct Words<'a> {
    line: &'a mut [u8],
    read: usize,
    write: usize,
}

impl Words<'_> {
    fn peek(&self, ahead: usize) -> Option<u8> {
        self.line.get(self.read + ahead).copied()
    }

    fn skip_blanks(&mut self) {
        while self.peek(0).is_some_and(is_blank) {
            self.read += 1;
        }
    }

    /// Writes `byte` to the argument, for `taken` bytes of the line.
    fn put(&mut self, byte: u8, taken: usize) {
        self.line[self.write] = byte;
        self.write += 1;
        self.read += taken;
    }

    /// One argument. A quote may open anywhere in it; where it closes, the argument ends. Vertical
    /// tab and form feed separate only before an argument, as in Redis.
    fn word(&mut self) -> Result<(), Unbalanced> {
        while let Some(byte) = self.peek(0) {
            match byte {
                b' ' | b'\t' | b'\n' | b'\r' => break,
                b'"' | b'\'' => {
                    self.read += 1;
                    return if byte == b'"' {
                        self.double_quoted()
                    } else {
                        self.single_quoted()
                    };
                }
                other => self.put(other, 1),
            }
        }
        Ok(())
    }

    fn double_quoted(&mut self) -> Result<(), Unbalanced> {
        loop {
            match (self.peek(0).ok_or(Unbalanced)?, self.peek(1)) {
                (b'"', after) => return self.close(after),
                (b'\\', Some(escaped)) => self.escape(escaped),
                (other, _) => self.put(other, 1),
            }
        }
    }

    fn escape(&mut self, escaped: u8) {
        let hex = |ahead| self.peek(ahead).and_then(|byte| char::from(byte).to_digit(16));
        match (escaped, hex(2), hex(3)) {
            (b'x', Some(high), Some(low)) => self.put((high * 16 + low) as u8, 4),
            (b'n', ..) => self.put(b'\n', 2),
            (b'r', ..) => self.put(b'\r', 2),
            (b't', ..) => self.put(b'\t', 2),
            (b'b', ..) => self.put(0x08, 2),
            (b'a', ..) => self.put(0x07, 2),
            (other, ..) => self.put(other, 2),
        }
    }

    fn single_quoted(&mut self) -> Result<(), Unbalanced> {
        loop {
            match (self.peek(0).ok_or(Unbalanced)?, self.peek(1)) {
                (b'\'', after) => return self.close(after),
                (b'\\', Some(b'\'')) => self.put(b'\'', 2),
                (other, _) => self.put(other, 1),
            }
        }
    }

    fn close(&mut self, after: Option<u8>) -> Result<(), Unbalanced> {
        self.read += 1;
        if after.is_none_or(is_blank) {
            Ok(())
        } else {
            Err(Unbalanced)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Option<Vec<String>> {
        let mut line = line.as_bytes().to_vec();
        let mut spans = Vec::new();
        split(&mut line, 100, &mut spans).ok()?;
        let text = |span: &Span| &line[span.start as usize - 100..span.end as usize - 100];
        Some(spans.iter().map(|span| text(span).escape_ascii().to_string()).collect())
    }

    #[track_caller]
    fn check(line: &str, expected: &[&str]) {
        assert_eq!(words(line).expect("balanced"), expected, "{line}");
    }

    #[test]
    fn blanks_separate() {
        check("", &[]);
        check(" \t\x0b\x0c ", &[]);
        check("  GET  key ", &["GET", "key"]);
        check("a\rb", &["a", "b"]);
        check("a\x0bb", &["a\\x0bb"]);
    }

    #[test]
    fn quotes_and_escapes() {
        check(r#"a "" '' b"#, &["a", "", "", "b"]);
        check(r#"a"b c" d'e f'"#, &["ab c", "de f"]);
        check(r#""\x41\x0g\n\r\t\b\a\q\"\\""#, &[r#"Ax0g\n\r\t\x08\x07q\"\\"#]);
        check(r"'it\'s \n'", &[r"it\'s \\n"]);
        check(r"plain\n\x41", &[r"plain\\n\\x41"]);
        check("\"a\"\x0bb", &["a", "b"]);
    }

    #[test]
    fn unbalanced() {
        for line in ["\"a", "'a", "\"a\"b", "'a'b", "\"a\\", "\"a\\\"", "a'b'\"c\"", "'a\\'"] {
            assert_eq!(words(line), None, "{line}");
        }
    }
}
