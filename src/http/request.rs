//! The head of a request (RFC 9112), and what of it matters here. It is strict: what a proxy before
//! this server could understand in another way is refused.

/// Most bytes of a head.
pub const MAX_HEAD: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: Method,
    /// Without the query.
    pub path: String,
    pub authorization: Option<Vec<u8>>,
    /// The client may send more requests on this connection.
    pub keep_alive: bool,
}

/// Why a head is refused: the status of the reply, and a reason.
pub type Refused = (u16, &'static str);

/// Where the head ends that these bytes begin with, if all of it is there.
pub fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

impl Request {
    /// Reads a head, up to its empty line.
    pub fn parse(head: &[u8]) -> Result<Request, Refused> {
        const MALFORMED: Refused = (400, "the request line is malformed");
        let head = head.strip_suffix(b"\r\n\r\n").ok_or(MALFORMED)?;
        let mut lines = split(head, b"\r\n");
        let line = lines
            .next()
            .and_then(|line| std::str::from_utf8(line).ok())
            .ok_or(MALFORMED)?;
        let [method, target, version] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err(MALFORMED);
        };
        let is_new = match version {
            "HTTP/1.1" => true,
            "HTTP/1.0" => false,
            _ if version.starts_with("HTTP/") => return Err((505, "only HTTP/1.1 is spoken here")),
            _ => return Err(MALFORMED),
        };
        if method.is_empty() || !method.bytes().all(is_of_token) || target.bytes().any(|byte| !byte.is_ascii_graphic())
        {
            return Err(MALFORMED);
        }
        let mut request = Request {
            method: match method {
                "GET" => Method::Get,
                "HEAD" => Method::Head,
                _ => Method::Other,
            },
            path: path(target).ok_or(MALFORMED)?,
            authorization: None,
            keep_alive: is_new,
        };
        let mut hosts = 0;
        for line in lines {
            let (name, value) = field(line)?;
            match &*name {
                "host" => hosts += 1,
                "authorization" if request.authorization.is_some() => {
                    return Err((400, "two authorizations"));
                }
                "authorization" => request.authorization = Some(value.to_vec()),
                "connection" if names(value, b"close") => request.keep_alive = false,
                // A body that is not read would be taken for the next request.
                "transfer-encoding" => return Err((411, "a request has no body here")),
                "content-length" if value != b"0" => return Err((413, "a request has no body here")),
                _ => {}
            }
        }
        match hosts {
            1 => Ok(request),
            0 if !is_new => Ok(request),
            _ => Err((400, "a request has one Host")),
        }
    }
}

/// The name of a field in lower case, and its value.
fn field(line: &[u8]) -> Result<(String, &[u8]), Refused> {
    const MALFORMED: Refused = (400, "a header field is malformed");
    let colon = line.iter().position(|&byte| byte == b':').ok_or(MALFORMED)?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    let is_text = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    if name.is_empty() || !name.iter().copied().all(is_of_token) || !value.iter().all(is_text) {
        return Err(MALFORMED);
    }
    Ok((String::from_utf8_lossy(name).to_ascii_lowercase(), value))
}

/// Whether a list with commas has this word, in any case.
fn names(list: &[u8], word: &[u8]) -> bool {
    list.split(|&byte| byte == b',')
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(word))
}

/// The path in a target: `/path?query`, or a whole address.
fn path(target: &str) -> Option<String> {
    let rest = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") => {
            rest.find(['/', '?']).map_or("/", |slash| &rest[slash..])
        }
        _ => target,
    };
    let path = rest.split(['?', '#']).next().unwrap_or_default();
    match path {
        "" if rest.len() < target.len() => Some("/".to_owned()),
        // Of OPTIONS.
        "*" => Some(path.to_owned()),
        path => path.starts_with('/').then(|| path.to_owned()),
    }
}

fn is_of_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn split<'b>(bytes: &'b [u8], by: &'static [u8]) -> impl Iterator<Item = &'b [u8]> {
    let mut rest = Some(bytes);
    std::iter::from_fn(move || {
        let bytes = rest?;
        let at = bytes.windows(by.len()).position(|window| window == by);
        rest = at.map(|at| &bytes[at + by.len()..]);
        Some(&bytes[..at.unwrap_or(bytes.len())])
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(line: &str, fields: &[&str]) -> Result<Request, u16> {
        let head = format!(
            "{line}\r\n{}\r\n",
            fields.iter().map(|f| format!("{f}\r\n")).collect::<String>()
        );
        assert_eq!(end_of_head(head.as_bytes()), Some(head.len()));
        Request::parse(head.as_bytes()).map_err(|(status, _)| status)
    }

    #[test]
    fn heads_are_read() {
        let request = parse("GET /metrics?a=b HTTP/1.1", &["Host: x", "aUTHORIZATION:  Basic eA== "]);
        let expected = Request {
            method: Method::Get,
            path: "/metrics".into(),
            authorization: Some(b"Basic eA==".to_vec()),
            keep_alive: true,
        };
        assert_eq!(request, Ok(expected));
        let kept = |line, fields: &[&str]| parse(line, fields).map(|request| request.keep_alive);
        assert_eq!(
            kept("HEAD / HTTP/1.1", &["Host: x", "Connection: te, Close"]),
            Ok(false)
        );
        assert_eq!(kept("GET / HTTP/1.0", &[]), Ok(false));
        let path = |target: &str| parse(&format!("GET {target} HTTP/1.0"), &[]).map(|request| request.path);
        for (target, expected) in [
            ("/", "/"),
            ("/a/../b#c", "/a/../b"),
            ("http://host:1/livez?x", "/livez"),
            ("HTTP://host", "/"),
            ("http://host?x", "/"),
            ("*", "*"),
        ] {
            assert_eq!(path(target).as_deref(), Ok(expected), "{target}");
        }
        let method = |line: &str| parse(line, &["Host: x", "Content-Length: 0"]).map(|request| request.method);
        assert_eq!(method("DELETE / HTTP/1.1"), Ok(Method::Other));
        assert_eq!(method("get / HTTP/1.1"), Ok(Method::Other));
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        for line in [
            "",
            "GET /",
            "GET  / HTTP/1.1",
            "GET x HTTP/1.1",
            "G\u{e9}T / HTTP/1.1",
            "GET / FTP/1.1",
            "GET /\t HTTP/1.1",
        ] {
            assert_eq!(parse(line, &["Host: x"]), Err(400), "{line:?}");
        }
        for fields in [
            &[][..],
            &["Host: x", "Host: y"],
            &["Host : x"],
            &["Host: x", " folded"],
            &["Host: x", "no colon"],
            &["Host: x", ": nothing"],
            &["Host: x\ny"],
            &["Host: x", "Authorization: a", "Authorization: b"],
        ] {
            assert_eq!(parse("GET / HTTP/1.1", fields), Err(400), "{fields:?}");
        }
        assert_eq!(parse("GET / HTTP/2.0", &["Host: x"]), Err(505));
        assert_eq!(parse("GET / HTTP/1.1", &["Host: x", "Content-Length: 5"]), Err(413));
        assert_eq!(
            parse("GET / HTTP/1.1", &["Host: x", "Transfer-Encoding: chunked"]),
            Err(411)
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&bytes);
            let _ = Request::parse(&[b"GET / HTTP/1.1\r\n", &bytes[..], b"\r\n\r\n"].concat());
        }
    }
}
