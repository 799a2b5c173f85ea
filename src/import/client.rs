//! A connection to a Redis server, for requests in pipelines.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use redis_protocol::codec::Resp2;
use redis_protocol::resp2::types::{BytesFrame, Resp2Frame};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_util::codec::FramedRead;

use super::{Problem, tls};
use crate::config::import::{Server, Trust};

/// The longest that a server may take to take a request, or to answer one.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Keys that SCAN is asked for at once.
const PAGE: &[u8] = b"1000";
/// Requests of so many bytes are sent at once.
const SEND: usize = 64 << 10;

/// Whether the error of a server is about one key alone. After another one the next keys would fare
/// no better.
pub fn is_about_key(error: &str) -> bool {
    error.starts_with("ERR ")
}

/// Both directions of a connection, over TCP or TLS.
type Halves = (Box<dyn AsyncRead + Unpin>, Box<dyn AsyncWrite + Unpin>);

/// A connection to a server.
pub struct Client {
    replies: FramedRead<Box<dyn AsyncRead + Unpin>, Resp2>,
    requests: Box<dyn AsyncWrite + Unpin>,
    unsent: BytesMut,
    /// For messages.
    name: String,
}

async fn reach(server: &Server, trust: &Trust) -> Result<Halves, String> {
    let stream = TcpStream::connect((&server.host[..], server.port)).await;
    let stream = stream.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    if !server.tls {
        let (replies, requests) = stream.into_split();
        return Ok((Box::new(replies), Box::new(requests)));
    }
    let stream = tls::connect(stream, &server.host, trust).await?;
    let (replies, requests) = tokio::io::split(stream);
    Ok((Box::new(replies), Box::new(requests)))
}

impl Client {
    /// Connects, and authenticates as the URL says.
    pub async fn connect(server: &Server, trust: &Trust) -> Result<Client, Problem> {
        let name = server.to_string();
        let (replies, requests) = match timeout(PATIENCE, reach(server, trust)).await {
            Ok(reached) => reached.map_err(|error| format!("reach {name}: {error}"))?,
            Err(_) => return Err(format!("reach {name}: no connection within {} s", PATIENCE.as_secs())),
        };
        let mut client = Client {
            replies: FramedRead::new(replies, Resp2::new(false)),
            requests,
            unsent: BytesMut::new(),
            name,
        };
        if let Some(password) = &server.password {
            let user = server.user.iter().map(|user| user.as_bytes());
            let parts: Vec<&[u8]> = [&b"AUTH"[..]]
                .into_iter()
                .chain(user)
                .chain([password.as_bytes()])
                .collect();
            client.ask(&parts).await?;
        }
        // Tells a server that is loading, or that wants a password, at once.
        client.ask(&[b"PING"]).await?;
        Ok(client)
    }

    /// The server's name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sends a request, now or with the next ones.
    pub async fn send(&mut self, parts: &[&[u8]]) -> Result<(), Problem> {
        self.unsent.put_slice(format!("*{}\r\n", parts.len()).as_bytes());
        for part in parts {
            self.unsent.put_slice(format!("${}\r\n", part.len()).as_bytes());
            self.unsent.put_slice(part);
            self.unsent.put_slice(b"\r\n");
        }
        match self.unsent.len() < SEND {
            true => Ok(()),
            false => self.flush().await,
        }
    }

    /// Sends what has not been sent yet.
    pub async fn flush(&mut self) -> Result<(), Problem> {
        let sent = timeout(PATIENCE, self.requests.write_all(&self.unsent)).await;
        self.unsent.clear();
        match sent {
            Ok(sent) => sent.map_err(|error| format!("write to {}: {error}", self.name)),
            Err(_) => Err(format!(
                "write to {}: it takes nothing for {} s",
                self.name,
                PATIENCE.as_secs()
            )),
        }
    }

    /// The next reply, which may be an error. All requests must have been flushed.
    pub async fn reply(&mut self) -> Result<BytesFrame, Problem> {
        match timeout(PATIENCE, self.push()).await {
            Ok(reply) => reply,
            Err(_) => Err(format!(
                "read from {}: no answer within {} s",
                self.name,
                PATIENCE.as_secs()
            )),
        }
    }

    /// What comes next, however long that takes. If this is given up, nothing is lost.
    pub async fn push(&mut self) -> Result<BytesFrame, Problem> {
        match self.replies.next().await {
            Some(Ok(push)) => Ok(push),
            Some(Err(error)) => Err(format!("read from {}: {error}", self.name)),
            None => Err(format!("read from {}: it closed the connection", self.name)),
        }
    }

    /// The next reply; an error of the server is an error.
    pub async fn good_reply(&mut self) -> Result<BytesFrame, Problem> {
        let reply = self.reply().await?;
        self.good(reply)
    }

    /// A reply that must not be an error.
    pub fn good(&self, reply: BytesFrame) -> Result<BytesFrame, Problem> {
        match reply {
            BytesFrame::Error(error) => Err(format!("use {}: it answers {error}", self.name)),
            reply => Ok(reply),
        }
    }

    /// Sends a request, and waits for its reply.
    pub async fn ask(&mut self, parts: &[&[u8]]) -> Result<BytesFrame, Problem> {
        self.send(parts).await?;
        self.flush().await?;
        self.good_reply().await
    }

    /// Goes to a database.
    pub async fn select(&mut self, database: u64) -> Result<(), Problem> {
        self.ask(&[b"SELECT", database.to_string().as_bytes()]).await.map(drop)
    }

    /// A reply that must be bytes, or null.
    pub fn bytes(&self, reply: BytesFrame) -> Result<Option<Bytes>, Problem> {
        match reply {
            BytesFrame::BulkString(bytes) | BytesFrame::SimpleString(bytes) => Ok(Some(bytes)),
            BytesFrame::Null => Ok(None),
            other => Err(self.unexpected(&other)),
        }
    }

    /// A reply that must be a number.
    pub fn integer(&self, reply: BytesFrame) -> Result<i64, Problem> {
        match reply {
            BytesFrame::Integer(number) => Ok(number),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The problem that a reply is of another type.
    pub fn unexpected(&self, reply: &BytesFrame) -> Problem {
        let kind = reply.kind();
        format!("use {}: it answers with another type, {kind:?}", self.name)
    }

    /// The keys of one page of SCAN, and the cursor of the next page; 0 after the last one.
    pub async fn scan(&mut self, cursor: u64) -> Result<(u64, Vec<Bytes>), Problem> {
        let reply = self
            .ask(&[b"SCAN", cursor.to_string().as_bytes(), b"COUNT", PAGE])
            .await?;
        let (next, keys) = match reply {
            BytesFrame::Array(parts) => match <[BytesFrame; 2]>::try_from(parts) {
                Ok([next, BytesFrame::Array(keys)]) => (self.bytes(next)?, keys),
                _ => return Err(format!("use {}: it answers SCAN in no known form", self.name)),
            },
            other => return Err(self.unexpected(&other)),
        };
        let next = next.and_then(|next| str::from_utf8(&next).ok()?.parse().ok());
        let next = next.ok_or_else(|| format!("use {}: SCAN answers a cursor that is no number", self.name))?;
        let keys = keys
            .into_iter()
            .map(|key| self.bytes(key).map(Option::unwrap_or_default));
        Ok((next, keys.collect::<Result<_, _>>()?))
    }

    /// The databases that have keys, and how many each has.
    pub async fn databases(&mut self) -> Result<Vec<(u64, u64)>, Problem> {
        let reply = self.ask(&[b"INFO", b"keyspace"]).await?;
        let text = self.bytes(reply)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix("db")?.split_once(":keys="));
        let read = |(database, rest): (&str, &str)| {
            let keys = rest.split(',').next()?;
            Some((database.parse().ok()?, keys.parse().ok()?))
        };
        Ok(lines.filter_map(read).collect())
    }
}
