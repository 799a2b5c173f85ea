//! A client that hides nothing: it sends the bytes it is given and returns whole replies as the
//! bytes that came, RESP2 or RESP3.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use openssl::ssl::{Ssl, SslStream};

use super::resp::{self, Reply};
use super::wait_for;

const DEADLINE: Duration = Duration::from_secs(20);

/// What a client speaks over: TCP, TLS, or a Unix socket.
trait Transport: Read + Write + Send {
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;
}

impl Transport for TcpStream {
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        TcpStream::set_read_timeout(self, timeout)
    }
}

impl Transport for SslStream<TcpStream> {
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.get_ref().set_read_timeout(timeout)
    }
}

impl Transport for UnixStream {
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        UnixStream::set_read_timeout(self, timeout)
    }
}

pub struct Client {
    stream: Box<dyn Transport>,
    received: Vec<u8>,
    deadline: Duration,
}

impl Client {
    pub fn connect(port: u16) -> Client {
        Client::try_connect(port).unwrap_or_else(|error| panic!("connect to port {port}: {error}"))
    }

    pub fn try_connect(port: u16) -> io::Result<Client> {
        Client::try_connect_to(("127.0.0.1", port))
    }

    /// At another address than the loopback interface's.
    pub fn try_connect_to(address: impl ToSocketAddrs) -> io::Result<Client> {
        Ok(Client::over(Box::new(connected(address)?)))
    }

    /// Over a Unix socket.
    pub fn try_connect_locally(path: &Path) -> io::Result<Client> {
        let stream = UnixStream::connect(path)?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(Client::over(Box::new(stream)))
    }

    /// Over TLS. The error is that of the handshake.
    pub fn try_connect_securely(address: impl ToSocketAddrs, ssl: Ssl) -> io::Result<Client> {
        let stream = connected(address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let stream = ssl
            .connect(stream)
            .map_err(|error| io::Error::other(error.to_string()))?;
        Ok(Client::over(Box::new(stream)))
    }

    fn over(stream: Box<dyn Transport>) -> Client {
        Client {
            stream,
            received: Vec::new(),
            deadline: DEADLINE,
        }
    }

    /// How long a reply may take from now on.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = deadline;
    }

    /// Sends one command and returns its reply, byte for byte.
    pub fn send(&mut self, args: &[&[u8]]) -> Vec<u8> {
        self.write(&resp::command(args));
        self.reply()
    }

    /// The same for a command written as in redis-cli: `SET k "a\x00b"`.
    pub fn line(&mut self, line: &str) -> Vec<u8> {
        self.write(&resp::command_line(line));
        self.reply()
    }

    /// Sends one command and compares the reply, which is written as it is on the wire, without
    /// the last line end: `check("SET k v", "+OK")`, `check("GET k", "$1\r\nv")`.
    #[track_caller]
    pub fn check(&mut self, line: &str, expected: &str) {
        let reply = self.line(line);
        let expected = format!("{expected}\r\n");
        assert_eq!(resp::show(&reply), resp::show(expected.as_bytes()), "reply to {line}");
    }

    /// [`Client::check`] for a write through a node whose write timeout is short, which a busy
    /// machine may not keep, and for what another node has yet to hear of: it is repeated.
    #[track_caller]
    pub fn check_soon(&mut self, line: &str, expected: &str) {
        let expected = format!("{expected}\r\n").into_bytes();
        wait_for(&format!("{line} to be done"), DEADLINE, || {
            (self.line(line) == expected).then_some(())
        });
    }

    /// Sends all commands at once, then returns all replies.
    pub fn pipeline(&mut self, lines: &[&str]) -> Vec<Vec<u8>> {
        let all: Vec<u8> = lines.iter().flat_map(|line| resp::command_line(line)).collect();
        self.write(&all);
        lines.iter().map(|_| self.reply()).collect()
    }

    /// The reply as a tree, for tests that look into it.
    pub fn tree(&mut self, line: &str) -> Reply {
        Reply::parse(&self.line(line))
    }

    /// The text of a bulk, verbatim or simple string reply.
    #[track_caller]
    pub fn text(&mut self, line: &str) -> String {
        let tree = self.tree(line);
        let text = tree
            .bytes()
            .unwrap_or_else(|| panic!("reply to {line} is no string: {tree:?}"));
        String::from_utf8_lossy(text).into_owned()
    }

    /// A field of INFO.
    pub fn info(&mut self, field: &str) -> Option<String> {
        let text = self.text("INFO everything");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.map(str::to_owned)
    }

    /// Sends bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) {
        self.try_write(bytes)
            .unwrap_or_else(|error| panic!("send to the server: {error}"));
    }

    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// The next whole reply.
    pub fn reply(&mut self) -> Vec<u8> {
        match self.try_reply() {
            Ok(Some(reply)) => reply,
            Ok(None) => panic!("the server closed the connection instead of answering"),
            Err(error) => panic!("read a reply: {error}; so far: {}", resp::show(&self.received)),
        }
    }

    /// The next whole reply, or `None` when the server has closed the connection.
    pub fn try_reply(&mut self) -> io::Result<Option<Vec<u8>>> {
        let end = Instant::now() + self.deadline;
        loop {
            let whole = resp::measure(&self.received).map_err(|text| io::Error::new(ErrorKind::InvalidData, text))?;
            if let Some(length) = whole {
                let rest = self.received.split_off(length);
                return Ok(Some(std::mem::replace(&mut self.received, rest)));
            }
            if self.read_some(end)? == 0 {
                return match self.received.is_empty() {
                    true => Ok(None),
                    false => Err(ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }

    /// Whether the server closes the connection, having sent nothing more, before the deadline.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.try_reply(), Ok(None))
    }

    /// Reads what has come; 0 is the end of the connection.
    fn read_some(&mut self, end: Instant) -> io::Result<usize> {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut chunk = [0; 64 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(count) => {
                self.received.extend_from_slice(&chunk[..count]);
                Ok(count)
            }
            // A server that closes with unread input in its buffer makes the kernel send a reset.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(ErrorKind::TimedOut.into()),
            Err(error) if error.kind() == ErrorKind::Interrupted => self.read_some(end),
            Err(error) => Err(error),
        }
    }
}

fn connected(address: impl ToSocketAddrs) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}
