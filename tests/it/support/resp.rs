//! The Redis protocol, seen from the client: how long a reply is, what is in it, and how a
//! command line becomes bytes. Written apart from the server's own code, so that one can catch
//! the other's mistakes.

/// A list with more items than this is a collection rather than a record with fields.
const LONG_LIST: usize = 16;

/// A reply as a tree. `kind` is its first byte.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reply {
    /// `+ - : , # ( _` with the rest of the line, and `$ ! =` with their content.
    Scalar { kind: u8, bytes: Vec<u8> },
    /// `$-1` and `*-1`.
    Null { kind: u8 },
    /// `* ~ > %`; a map has its keys and values in turn.
    Aggregate { kind: u8, items: Vec<Reply> },
}

impl Reply {
    /// The tree of one whole reply, as `Client` returns it.
    #[track_caller]
    pub fn parse(raw: &[u8]) -> Reply {
        let mut rest = raw;
        let tree = read(&mut rest).unwrap_or_else(|text| panic!("{text}: {}", show(raw)));
        assert!(rest.is_empty(), "more than one reply: {}", show(raw));
        tree
    }

    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            // A verbatim string starts with its format: "txt:".
            Reply::Scalar { kind: b'=', bytes } => bytes.get(4..),
            Reply::Scalar { bytes, .. } => Some(bytes),
            _ => None,
        }
    }

    pub fn items(&self) -> &[Reply] {
        match self {
            Reply::Aggregate { items, .. } => items,
            _ => &[],
        }
    }

    pub fn integer(&self) -> Option<i64> {
        std::str::from_utf8(self.bytes()?).ok()?.parse().ok()
    }

    pub fn is_error(&self) -> bool {
        matches!(self, Reply::Scalar { kind: b'-' | b'!', .. })
    }

    /// What stays the same when the content may vary: the types, the code of an error, whether a
    /// string is a number. Lists of any length have one shape when all their items have the same;
    /// in a long one the order of the shapes does not count.
    pub fn shape(&self) -> String {
        match self {
            Reply::Null { kind } => format!("{}nil", *kind as char),
            Reply::Scalar {
                kind: kind @ (b'-' | b'!'),
                bytes,
            } => {
                let text = String::from_utf8_lossy(bytes);
                format!("{}{}", *kind as char, text.split(' ').next().unwrap_or_default())
            }
            Reply::Scalar { kind: b'$', bytes } => match std::str::from_utf8(bytes).map(str::parse::<f64>) {
                Ok(Ok(_)) => "$number".to_owned(),
                _ => "$".to_owned(),
            },
            Reply::Scalar { kind, .. } => (*kind as char).to_string(),
            Reply::Aggregate { kind, items } => {
                let mut shapes: Vec<String> = items.iter().map(Reply::shape).collect();
                if shapes.len() > LONG_LIST {
                    shapes.sort();
                }
                shapes.dedup();
                format!("{}[{}]", *kind as char, shapes.join(" "))
            }
        }
    }

    /// The same reply with the order taken out of maps, sets and flat lists (those of scalars
    /// only), for replies whose order means nothing.
    pub fn unordered(self) -> Reply {
        let Reply::Aggregate { kind, items } = self else {
            return self;
        };
        let mut items: Vec<Reply> = items.into_iter().map(Reply::unordered).collect();
        let flat = items.iter().all(|item| !matches!(item, Reply::Aggregate { .. }));
        if kind == b'%' {
            let mut pairs: Vec<Vec<Reply>> = items.chunks(2).map(<[Reply]>::to_vec).collect();
            pairs.sort();
            items = pairs.concat();
        } else if flat || kind == b'~' {
            items.sort();
        }
        Reply::Aggregate { kind, items }
    }
}

/// The length of the whole reply at the start of `bytes`; `None` when more has to come.
pub fn measure(bytes: &[u8]) -> Result<Option<usize>, String> {
    let mut position = 0;
    // Replies that are still to come before the whole is complete.
    let mut missing: usize = 1;
    while missing > 0 {
        let Some(line_length) = bytes[position..].windows(2).position(|pair| pair == b"\r\n") else {
            return Ok(None);
        };
        let line = &bytes[position..position + line_length];
        position += line_length + 2;
        let (&kind, text) = line.split_first().ok_or("an empty line instead of a reply")?;
        missing -= 1;
        match kind {
            b'+' | b'-' | b':' | b',' | b'#' | b'(' | b'_' => {}
            b'$' | b'!' | b'=' => {
                if let Some(length) = count(text)? {
                    position += length + 2;
                    if bytes.len() < position {
                        return Ok(None);
                    }
                }
            }
            b'*' | b'~' | b'>' => missing += count(text)?.unwrap_or(0),
            b'%' => missing += count(text)?.unwrap_or(0) * 2,
            // Attributes come before the reply they belong to.
            b'|' => missing += count(text)?.unwrap_or(0) * 2 + 1,
            _ => return Err(format!("not a reply: {}", show(line))),
        }
    }
    Ok(Some(position))
}

fn count(text: &[u8]) -> Result<Option<usize>, String> {
    let number: Option<i64> = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    match number {
        Some(-1) => Ok(None),
        Some(length) if length >= 0 => Ok(Some(length as usize)),
        _ => Err(format!("not a length: {}", show(text))),
    }
}

fn read(rest: &mut &[u8]) -> Result<Reply, String> {
    let end = rest.windows(2).position(|pair| pair == b"\r\n").ok_or("no line end")?;
    let (line, after) = (&rest[..end], &rest[end + 2..]);
    *rest = after;
    let (&kind, text) = line.split_first().ok_or("an empty line")?;
    match kind {
        b'$' | b'!' | b'=' => {
            let Some(length) = count(text)? else {
                return Ok(Reply::Null { kind });
            };
            let bytes = rest.get(..length).ok_or("cut short")?.to_vec();
            *rest = rest.get(length + 2..).ok_or("cut short")?;
            Ok(Reply::Scalar { kind, bytes })
        }
        b'*' | b'~' | b'>' | b'%' | b'|' => {
            let Some(length) = count(text)? else {
                return Ok(Reply::Null { kind });
            };
            let length = if matches!(kind, b'%' | b'|') {
                length * 2
            } else {
                length
            };
            let items = (0..length).map(|_| read(rest)).collect::<Result<_, _>>()?;
            if kind == b'|' {
                read(rest)
            } else {
                Ok(Reply::Aggregate { kind, items })
            }
        }
        _ => Ok(Reply::Scalar {
            kind,
            bytes: text.to_vec(),
        }),
    }
}

/// A command as clients send it.
pub fn command(args: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// A command line as bytes on the wire.
pub fn command_line(line: &str) -> Vec<u8> {
    let args = split(line);
    command(&args.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// Splits a line into arguments: words, "..." with \n \r \t \\ \" \xHH, and '...' taken literally.
#[track_caller]
pub fn split(line: &str) -> Vec<Vec<u8>> {
    let mut args = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let mut arg = Vec::new();
        while !rest.is_empty() && !rest.starts_with(char::is_whitespace) {
            rest = match rest.as_bytes()[0] {
                b'"' => {
                    let end = closing_quote(rest).unwrap_or_else(|| panic!("unbalanced quotes: {line}"));
                    arg.extend(unescape(&rest[1..end]));
                    &rest[end + 1..]
                }
                b'\'' => {
                    let end = rest[1..]
                        .find('\'')
                        .unwrap_or_else(|| panic!("unbalanced quotes: {line}"))
                        + 1;
                    arg.extend_from_slice(&rest.as_bytes()[1..end]);
                    &rest[end + 1..]
                }
                _ => {
                    let end = rest
                        .find(|c: char| c.is_whitespace() || c == '"' || c == '\'')
                        .unwrap_or(rest.len());
                    arg.extend_from_slice(&rest.as_bytes()[..end]);
                    &rest[end..]
                }
            };
        }
        args.push(arg);
        rest = rest.trim_start();
    }
    args
}

fn closing_quote(quoted: &str) -> Option<usize> {
    let bytes = quoted.as_bytes();
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return Some(at),
            _ => at += 1,
        }
    }
    None
}

/// Replaces \n \r \t \\ \" and \xHH by the bytes that they stand for.
#[track_caller]
pub fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'\\' {
            bytes.push(first);
            continue;
        }
        let (&escaped, after) = rest
            .split_first()
            .unwrap_or_else(|| panic!("ends in a backslash: {text}"));
        rest = after;
        bytes.push(match escaped {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let digits = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
                rest = rest.get(2..).unwrap_or_default();
                let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                byte.unwrap_or_else(|| panic!("\\x without two digits: {text}"))
            }
            other => other,
        });
    }
    bytes
}

/// Bytes as a person can read them.
pub fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
