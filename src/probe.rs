//! `highwater --ping`: the healthcheck of an image that has no shell and no redis-cli.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::config::Config;
use crate::server::tls;

const PATIENCE: Duration = Duration::from_secs(2);

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// Sends PING to the server on this machine's loopback interface. An error contains its answer.
pub fn ping(config: &Config) -> Result<(), String> {
    let (port, is_plain) = match config.port() {
        0 => (config.tls_port(), false),
        port => (port, true),
    };
    let failed = |error: std::io::Error| match error.kind() {
        // The system's text for a timeout explains nothing.
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!(
            "reach the server on port {port}: it does not answer within {} s; it is starting, or overloaded",
            PATIENCE.as_secs()
        ),
        _ => format!("reach the server on port {port}: {error}"),
    };
    let address = ("127.0.0.1", port).to_socket_addrs().map_err(failed)?.next();
    let address = address.ok_or("resolve the loopback address")?;
    let stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut stream: Box<dyn Stream> = match is_plain {
        true => Box::new(stream),
        false => Box::new(tls::as_client(&config.tls(), stream)?),
    };
    let mut request = Vec::new();
    let mut replies = 1;
    if let Some(password) = config.requirepass() {
        request.extend_from_slice(format!("*2\r\n$4\r\nAUTH\r\n${}\r\n{password}\r\n", password.len()).as_bytes());
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
