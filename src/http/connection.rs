//! One HTTP/1.1 connection: reads a head, answers it, and so on. What it holds is counted for its
//! client, as at the other front doors.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

use super::request::{MAX_HEAD, Method, Refused, Request, end_of_head};
use super::{Page, Reply};
use crate::acl::Context;
use crate::command::Shared;
use crate::command::admission::{self, Refusal, Wants, admit, log_in_by_call};
use crate::command::clients::Client;
use crate::command::table;
use crate::database::now_ms;
use crate::server;
use crate::server::stream::Stream;
use crate::server::tls::Tls;

/// How long a connection may stay open between two requests, if `timeout` is not shorter.
const IDLE: Duration = Duration::from_secs(120);
/// How long a head may take from its first byte on.
const HEAD: Duration = Duration::from_secs(10);
/// How long the client may take to read a reply.
const SENDING: Duration = Duration::from_secs(30);
/// Room for what is read at once.
const READ: usize = 2 << 10;
/// From so many bytes on, a reply is worth summing up what all connections hold.
const CHECKED: usize = 256 << 10;
/// Refused connections that are sent the reason at one time. Any more are closed without it.
const MAX_REFUSED: usize = 64;
/// How long a refused connection may take to send a request and receive the reason.
const REFUSED_FOR: Duration = Duration::from_secs(2);
/// How long the rest of what a client sends is read, and how much of it. If it were not read, the
/// system could throw the last reply away.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 << 10;

/// What all connections of a listener share.
#[derive(Clone)]
pub(super) struct Front {
    refused: Arc<Semaphore>,
}

impl Default for Front {
    fn default() -> Self {
        Front {
            refused: Arc::new(Semaphore::new(MAX_REFUSED)),
        }
    }
}

impl Front {
    /// Serves a connection to its end.
    pub async fn welcome(self, stream: Stream, tls: Option<Arc<Tls>>, shared: Arc<Shared>) {
        match server::admitted(&stream, &shared) {
            Ok(()) => {
                let connected = server::connected(&stream, &shared).await;
                if let Some(stream) = server::secured(stream, tls.as_deref(), &connected.client, &shared).await {
                    run(stream, &connected.client, &shared).await;
                }
            }
            // The handshake costs more than a refused client should.
            Err(_) if tls.is_some() => {}
            Err(refusal) => {
                if let Ok(_permit) = self.refused.try_acquire() {
                    let _ = timeout(REFUSED_FOR, refuse(stream, &refusal, &shared)).await;
                }
            }
        }
    }
}

async fn run(stream: Stream, client: &Client, shared: &Shared) {
    // Nothing can be pushed to it.
    client.pushes.close();
    let mut connection = Connection {
        stream,
        client,
        shared,
        input: Vec::new(),
    };
    tokio::select! {
        ended = connection.serve() => {
            if let Err(error) = ended {
                debug!(client = client.id, %error, "HTTP connection ended");
            }
        }
        () = client.killed() => {}
    }
    connection.stream.close().await;
}

/// Answers the first request of a connection that is not admitted with the reason. A probe learns
/// that the process lives: whatever restarts dead ones must not do so when there are many clients.
async fn refuse(mut stream: Stream, refusal: &Refusal, shared: &Shared) -> io::Result<()> {
    let mut input = Vec::new();
    while end_of_head(&input).is_none() && input.len() < MAX_HEAD {
        if read(&mut stream, &mut input).await? == 0 {
            break;
        }
    }
    let head = end_of_head(&input).map(|end| &input[..end]);
    let request = head.and_then(|head| Request::parse(head).ok());
    let reply = match request.and_then(|request| Page::at(&request.path)) {
        Some(Page::Live) => Page::Live.show(shared),
        _ => Reply::refusal(status_of(refusal), &refusal.text()),
    };
    stream.write_all(&encode(&reply, true, false)).await?;
    linger(&mut stream).await
}

struct Connection<'c> {
    stream: Stream,
    client: &'c Client,
    shared: &'c Shared,
    /// What has arrived and is not answered yet.
    input: Vec<u8>,
}

impl Connection<'_> {
    async fn serve(&mut self) -> io::Result<()> {
        loop {
            let Some(head) = self.head().await? else {
                return Ok(());
            };
            let request = head.and_then(|head| Request::parse(&head));
            let reply = match &request {
                Ok(request) => self.answer(request).await,
                Err((status, reason)) => Reply::refusal(*status, reason),
            };
            let has_body = !request.as_ref().is_ok_and(|request| request.method == Method::Head);
            let keep_alive = request.is_ok_and(|request| request.keep_alive) && !self.shared.shutdown.is_asked();
            self.send(&reply, has_body, keep_alive).await?;
            if !keep_alive {
                return linger(&mut self.stream).await;
            }
        }
    }

    /// The next head; `None` at the end of the connection.
    async fn head(&mut self) -> io::Result<Option<Result<Vec<u8>, Refused>>> {
        if self.input.is_empty() && !self.first_bytes().await? {
            return Ok(None);
        }
        let (client, shared) = (self.client, self.shared);
        let whole = tokio::select! {
            whole = timeout(HEAD, self.whole_head()) => whole,
            () = client.killed_or(|| shared.shutdown.is_asked()) => return Ok(None),
        };
        let Ok(end) = whole else {
            return Ok(Some(Err((408, "the head of the request did not come in time"))));
        };
        let Some(end) = end? else {
            return Ok(None);
        };
        Ok(Some(end.map(|end| {
            let head = self.input.drain(..end).collect();
            self.count_input();
            head
        })))
    }

    /// Reads until the head is there; returns its length. `None` at the end of the connection.
    async fn whole_head(&mut self) -> io::Result<Option<Result<usize, Refused>>> {
        let mut looked_at = 0;
        loop {
            let end = end_of_head(&self.input[looked_at..]).map(|end| looked_at + end);
            if let Some(end) = end.filter(|end| *end <= MAX_HEAD) {
                return Ok(Some(Ok(end)));
            }
            looked_at = self.input.len().saturating_sub(3);
            if self.input.len() >= MAX_HEAD {
                return Ok(Some(Err((431, "the head of the request is too large"))));
            }
            if !self.read().await? {
                return Ok(None);
            }
        }
    }

    /// Waits for the first bytes of a request. False if the connection is over: the client closed
    /// it, none came in time, or this node stops.
    async fn first_bytes(&mut self) -> io::Result<bool> {
        let (client, shared) = (self.client, self.shared);
        let since = Instant::now();
        loop {
            let limit = shared.config.timeout();
            let idle = limit.map_or(IDLE, |limit| limit.min(IDLE));
            let left = idle.saturating_sub(since.elapsed());
            tokio::select! {
                read = timeout(left, self.read()) => return read.unwrap_or(Ok(false)),
                // CONFIG SET timeout wakes this task.
                () = client.killed_or(|| shared.shutdown.is_asked() || shared.config.timeout() != limit) => {}
            }
            if client.is_killed() || shared.shutdown.is_asked() {
                return Ok(false);
            }
        }
    }

    /// Reads more. Returns false at the end of the connection.
    async fn read(&mut self) -> io::Result<bool> {
        let read = read(&mut self.stream, &mut self.input).await?;
        let traffic = self.shared.stats.traffic.own();
        traffic.input_bytes.fetch_add(read as u64, Ordering::Relaxed);
        self.count_input();
        Ok(read > 0)
    }

    fn count_input(&self) {
        self.client.input_bytes.store(self.input.capacity(), Ordering::Relaxed);
    }

    async fn answer(&self, request: &Request) -> Reply {
        let Some(page) = Page::at(&request.path) else {
            return Reply::refusal(404, "there is no such page");
        };
        if request.method == Method::Other {
            return Reply::refusal(405, "only GET and HEAD are allowed");
        }
        let admitted = match page.is_open(self.shared) {
            true => admit(self.shared, Wants::Health),
            false => self.log_in(request).await,
        };
        if let Err(refusal) = admitted {
            let text = refusal.text();
            self.shared.stats.count_error(text.as_bytes());
            return Reply::refusal(status_of(&refusal), &text);
        }
        let reply = page.show(self.shared);
        self.within_memory(reply)
    }

    /// Whether the caller may see pages that are not open. They show what INFO shows, so the rules
    /// of INFO apply.
    async fn log_in(&self, request: &Request) -> Result<(), Refusal> {
        let command = table::find(b"info").expect("a command of the table");
        self.client.came_with(command.number, now_ms());
        let user = log_in_by_call(self.shared, self.client, request.authorization.as_deref()).await?;
        let caller = admission::Caller {
            client: self.client,
            user: user.as_ref().unwrap_or(self.shared.users.default_account()),
            authenticated: user.is_some(),
            context: Context::TopLevel,
            may_repeat: false,
        };
        admit(
            self.shared,
            Wants::Run {
                caller,
                command,
                args: &[],
            },
        )
    }

    /// The reply, or a refusal if all connections together would hold too much.
    fn within_memory(&self, reply: Reply) -> Reply {
        if reply.body.len() < CHECKED {
            return reply;
        }
        let (held, limit) = (self.shared.clients.memory(), self.shared.config.clients_memory_limit());
        if held + reply.body.len() <= limit {
            return reply;
        }
        Reply::refusal(
            503,
            &format!("connections would hold more than the {limit} bytes of maxmemory-clients"),
        )
    }

    async fn send(&mut self, reply: &Reply, has_body: bool, keep_alive: bool) -> io::Result<()> {
        let bytes = encode(reply, has_body, keep_alive);
        self.client.output_bytes.store(bytes.len(), Ordering::Relaxed);
        let sent = timeout(SENDING, self.stream.write_all(&bytes)).await;
        self.client.output_bytes.store(0, Ordering::Relaxed);
        sent.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).flatten()?;
        let traffic = self.shared.stats.traffic.own();
        traffic.output_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Reads more, at most some kilobytes. Returns how many bytes.
async fn read(stream: &mut Stream, input: &mut Vec<u8>) -> io::Result<usize> {
    input.reserve(READ);
    stream.read_buf(input).await
}

/// Ends a connection so that the client gets the last reply, whatever it still sends.
async fn linger(stream: &mut Stream) -> io::Result<()> {
    let ended = async {
        stream.shutdown().await?;
        let mut rest = stream.take(LINGER_BYTES as u64);
        let mut nowhere = tokio::io::sink();
        tokio::io::copy(&mut rest, &mut nowhere).await.map(drop)
    };
    // The client need not read, nor close the connection.
    timeout(LINGER, ended).await.unwrap_or(Ok(()))
}

/// The status of the reply to what is not admitted.
fn status_of(refusal: &Refusal) -> u16 {
    match refusal {
        Refusal::NotAuthenticated | Refusal::WrongPassword => 401,
        Refusal::Protected | Refusal::NotAllowed(..) | Refusal::OtherKeys(_) => 403,
        Refusal::TooManyClients => 503,
    }
}

/// The bytes of a reply. `has_body`: false for HEAD, whose reply says how long the body would be.
fn encode(reply: &Reply, has_body: bool, keep_alive: bool) -> Vec<u8> {
    let phrase = match reply.status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    };
    let of_status = match reply.status {
        401 => "WWW-Authenticate: Basic realm=\"Highwater\", charset=\"UTF-8\"\r\n",
        405 => "Allow: GET, HEAD\r\n",
        _ => "",
    };
    let end = if keep_alive { "" } else { "Connection: close\r\n" };
    let mut bytes = format!(
        "HTTP/1.1 {} {phrase}\r\nDate: {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\n{of_status}{end}\r\n",
        reply.status,
        httpdate::fmt_http_date(SystemTime::now()),
        reply.content_type,
        reply.body.len(),
    )
    .into_bytes();
    if has_body {
        bytes.extend_from_slice(reply.body.as_bytes());
    }
    bytes
}
