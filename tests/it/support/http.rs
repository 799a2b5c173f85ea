//! An HTTP/1.1 client that hides nothing: it sends the bytes it is given, and returns the replies
//! as they came.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openssl::ssl::Ssl;

const DEADLINE: Duration = Duration::from_secs(20);

trait Transport: Read + Write + Send {}

impl<T: Read + Write + Send> Transport for T {}

/// A connection.
pub struct Http {
    stream: Box<dyn Transport>,
    received: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// In the order in which they came.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let found = headers.find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// One request, on a connection of its own.
#[track_caller]
pub fn get(port: u16, path: &str) -> Answer {
    let connected = Http::connect(("127.0.0.1", port));
    let answer = connected.and_then(|mut http| http.get(path, None));
    answer.unwrap_or_else(|error| panic!("{path} at port {port}: {error}"))
}

impl Http {
    pub fn connect(address: impl ToSocketAddrs) -> io::Result<Http> {
        Ok(Http::over(Box::new(connected(address)?)))
    }

    /// Over TLS. The error is that of the handshake.
    pub fn connect_securely(address: impl ToSocketAddrs, ssl: Ssl) -> io::Result<Http> {
        let stream = ssl
            .connect(connected(address)?)
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Http::over(Box::new(stream)))
    }

    fn over(stream: Box<dyn Transport>) -> Http {
        Http {
            stream,
            received: Vec::new(),
        }
    }

    /// `login`: `user:password`.
    pub fn get(&mut self, path: &str, login: Option<&str>) -> io::Result<Answer> {
        let login = login.map_or(String::new(), |login| {
            format!("Authorization: Basic {}\r\n", STANDARD.encode(login))
        });
        self.write(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n{login}\r\n"))?;
        self.answer(true)
    }

    pub fn write(&mut self, bytes: &str) -> io::Result<()> {
        self.stream.write_all(bytes.as_bytes())
    }

    /// The next reply. `has_body`: false for that to HEAD.
    pub fn answer(&mut self, has_body: bool) -> io::Result<Answer> {
        let end = loop {
            if let Some(end) = self.received.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            self.read()?;
        };
        let head: Vec<u8> = self.received.drain(..end).collect();
        let head = String::from_utf8(head).expect("a head is text");
        let mut lines = head.trim_end().split("\r\n");
        let line = lines.next().expect("a status line");
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.split_once(' ')?.0.parse().ok());
        let mut answer = Answer {
            status: status.unwrap_or_else(|| panic!("a status line: {line:?}")),
            headers: lines
                .map(|line| line.split_once(": ").expect("a header"))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            body: String::new(),
        };
        let length = answer.header("Content-Length").expect("a length");
        let length: usize = length.parse().expect("a number");
        if has_body {
            while self.received.len() < length {
                self.read()?;
            }
            let body = self.received.drain(..length).collect();
            answer.body = String::from_utf8(body).expect("a body is text");
        }
        Ok(answer)
    }

    /// Whether the server closes the connection without another byte.
    pub fn is_closed(&mut self) -> bool {
        self.received.is_empty() && self.read().is_err_and(|error| error.kind() == ErrorKind::UnexpectedEof)
    }

    fn read(&mut self) -> io::Result<()> {
        let mut bytes = [0; 16 << 10];
        match self.stream.read(&mut bytes)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            count => {
                self.received.extend_from_slice(&bytes[..count]);
                Ok(())
            }
        }
    }
}

fn connected(address: impl ToSocketAddrs) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}
