//! `highwater --ping`: the healthcheck of an image that has no shell and no redis-cli.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::Config;
use crate::server::tls;

const PATIENCE: Duration = Duration::from_secs(2);

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// Where the server is asked: its first door that there is.
enum Door {
    Plain(u16),
    Tls(u16),
    Unix(String),
}

impl Door {
    fn of(config: &Config) -> Door {
        match (config.port(), config.tls_port(), config.unixsocket()) {
            (0, 0, Some(path)) => Door::Unix(path),
            (0, port, _) => Door::Tls(port),
            (port, ..) => Door::Plain(port),
        }
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Door::Plain(port) | Door::Tls(port) => write!(f, "port {port}"),
            Door::Unix(path) => write!(f, "unix socket {path}"),
        }
    }
}

fn loopback(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn local(path: &str) -> std::io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // It holds for the connection too: a server that does not accept lets clients wait.
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(OwnedFd::from(socket).into())
}

/// Sends PING to the server on this machine. An error contains its answer.
pub fn ping(config: &Config) -> Result<(), String> {
    let door = Door::of(config);
    let failed = |error: std::io::Error| match error.kind() {
        // The system's text for a timeout explains nothing.
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
            "reach the server on {door}: it does not answer within {} s; it is starting, or overloaded",
            PATIENCE.as_secs()
        ),
        _ => format!("reach the server on {door}: {error}"),
    };
    let mut stream: Box<dyn Stream> = match &door {
        Door::Plain(port) => Box::new(loopback(*port).map_err(failed)?),
        Door::Tls(port) => Box::new(tls::as_client(&config.tls(), loopback(*port).map_err(failed)?)?),
        Door::Unix(path) => Box::new(local(path).map_err(failed)?),
    };
    let mut request = Vec::new();
    let mut replies = 1;
    if let Some((user, password)) = config.ping_login() {
        request.extend_from_slice(b"*3\r\n$4\r\nAUTH\r\n");
        for word in [user, password] {
            request.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
        }
        replies += 1;
    }
    request.extend_from_slice(b"PING\r\n");
    stream.write_all(&request).map_err(failed)?;
    let mut answer = String::new();
    let mut buffer = [0; 512];
    while answer.matches("\r\n").count() < replies {
        let read = stream.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            break;
        }
        answer.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    if answer.ends_with("+PONG\r\n") {
        Ok(())
    } else {
        Err(format!("serve yet: {}", answer.trim_end()))
    }
}
