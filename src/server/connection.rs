//! One connection: reads, decodes everything that has come, executes it in order, and answers in order with one write.
//!
//! Replies that wait for the log are kept behind; a pipeline of writes is handed to the log as one burst and waited for once.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tracing::debug;

use crate::command::execute::{Pending, Step, execute, execute_waiting, settle};
use crate::command::session::Replies;
use crate::command::{Session, Shared};
use crate::resp::{Args, Decoder, Limits, Next, Reply, Version, encode};

/// Requests decoded, executed and answered together.
const BURST: usize = 1_024;
/// Bytes of replies that are sent without waiting for the end of the burst.
const FLUSH_AT: usize = 256 << 10;
/// Capacity that an idle connection keeps for reading and for writing.
const KEPT: usize = 64 << 10;

/// Bytes of replies that are held back behind writes under way before those are waited for.
const MAX_HELD: usize = 1 << 20;

/// A reply that is held back, its own or an earlier one's write being under way.
struct Held<'a> {
    args: Args<'a>,
    reply: Result<Reply, Pending>,
    mode: Replies,
    version: Version,
}

struct Connection {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    shared: Arc<Shared>,
    session: Session,
    input: BytesMut,
    output: BytesMut,
    decoder: Decoder,
}

/// Serves a connection to its end.
pub async fn run(stream: TcpStream, shared: Arc<Shared>) {
    let client = shared
        .clients
        .add(stream.peer_addr().ok(), stream.local_addr().ok(), stream.as_raw_fd());
    let authenticated = shared.config.requirepass().is_none();
    let (reader, writer) = stream.into_split();
    let mut connection = Connection {
        reader,
        writer,
        session: Session::new(client.clone(), authenticated),
        shared: shared.clone(),
        input: BytesMut::new(),
        output: BytesMut::new(),
        decoder: Decoder::new(),
    };
    if let Err(error) = connection.serve().await {
        debug!(client = client.id, %error, "connection ended");
    }
    shared.clients.remove(client.id);
}

impl Connection {
    async fn serve(&mut self) -> std::io::Result<()> {
        loop {
            let mut input = std::mem::take(&mut self.input);
            let next = self.decoder.decode(&mut input, &self.limits(), BURST);
            self.session.client.input_bytes.store(input.len(), Ordering::Relaxed);
            let decoder = std::mem::take(&mut self.decoder);
            let outcome = self.answer(&decoder, &input).await;
            let commands = &self.shared.stats.commands_processed;
            commands.fetch_add(decoder.len() as u64, Ordering::Relaxed);
            self.decoder = decoder;
            self.input = input;
            outcome?;
            self.input.advance(self.decoder.finish());
            if let Next::Failed(error) = next
                && !self.session.close
            {
                error.encode(&mut self.output);
                self.session.close = true;
            }
            self.flush().await?;
            if self.session.close || self.session.client.is_killed() || self.shared.shutdown.is_asked() {
                return Ok(());
            }
            if !matches!(next, Next::More) && !self.read(next).await? {
                return Ok(());
            }
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            max_bulk: self.shared.config.proto_max_bulk_len(),
            max_request: self.shared.config.client_query_buffer_limit(),
            authenticated: self.session.authenticated,
            ..Limits::default()
        }
    }

    /// Reads more; false at the end of the connection.
    async fn read(&mut self, next: Next) -> std::io::Result<bool> {
        if self.input.is_empty() && self.input.capacity() > KEPT {
            self.input = BytesMut::new();
        }
        self.input.reserve(next.room(self.input.len()));
        self.session
            .client
            .input_bytes
            .store(self.input.len(), Ordering::Relaxed);
        let client = self.session.client.clone();
        let idle = self.shared.config.timeout();
        let read = tokio::select! {
            biased;
            read = self.reader.read_buf(&mut self.input) => read?,
            () = client.killed() => 0,
            () = self.shared.shutdown.asked() => 0,
            () = tokio::time::sleep(idle.unwrap_or(Duration::MAX)), if idle.is_some() => 0,
        };
        self.shared.stats.input_bytes.fetch_add(read as u64, Ordering::Relaxed);
        self.session.reads.arrived = Instant::now();
        Ok(read > 0)
    }

    /// Executes the decoded requests and puts their replies, in order, into the output.
    async fn answer(&mut self, decoder: &Decoder, input: &[u8]) -> std::io::Result<()> {
        let mut held: Vec<Held<'_>> = Vec::new();
        let mut held_bytes = 0;
        for request in decoder.requests(input) {
            let args = request.args();
            let mut step = execute(&mut self.session, &self.shared, &args, false);
            if matches!(step, Step::Before(_) | Step::Later(_)) {
                self.settle_all(&mut held).await;
                self.flush().await?;
                step = execute_waiting(&mut self.session, &self.shared, &args, step).await;
            }
            let (mode, version) = (self.next_mode(), self.session.version);
            let reply = match step {
                Step::Reply(reply) => Ok(reply),
                Step::Pending(pending) => Err(pending),
                // `execute_waiting` leaves neither.
                Step::Before(_) | Step::Later(_) => continue,
            };
            match reply {
                Ok(reply) if held.is_empty() => self.put(&reply, mode, version),
                reply => {
                    let barrier = reply.as_ref().is_err_and(|pending| pending.barrier);
                    held_bytes += reply.as_ref().map_or_else(|p| p.reply.size(), Reply::size);
                    held.push(Held {
                        args,
                        reply,
                        mode,
                        version,
                    });
                    if barrier || held_bytes > MAX_HELD {
                        self.settle_all(&mut held).await;
                        held_bytes = 0;
                    }
                }
            }
            if self.session.close || self.session.client.is_killed() {
                break;
            }
            if self.output.len() >= FLUSH_AT {
                self.flush().await?;
            }
        }
        self.settle_all(&mut held).await;
        Ok(())
    }

    /// Waits for the writes under way, once for all of them, and puts the replies behind them into the output.
    async fn settle_all(&mut self, held: &mut Vec<Held<'_>>) {
        let deadline = Instant::now() + self.shared.service.write_timeout();
        let mut open = !held.is_empty();
        while open {
            self.session.outstanding.none().await;
            open = false;
            for held in held.iter_mut() {
                held.reply = match std::mem::replace(&mut held.reply, Ok(Reply::None)) {
                    Err(pending) => settle(&mut self.session, &self.shared, &held.args, pending, deadline).await,
                    settled => settled,
                };
                open |= held.reply.is_err();
            }
        }
        for Held {
            reply, mode, version, ..
        } in held.drain(..)
        {
            if let Ok(reply) = reply {
                self.put(&reply, mode, version);
            }
        }
    }

    /// CLIENT REPLY as it holds for the command just executed.
    fn next_mode(&mut self) -> Replies {
        let mode = self.session.replies;
        self.session.replies = match mode {
            Replies::SkipNext => Replies::SkipThis,
            Replies::SkipThis => Replies::On,
            mode => mode,
        };
        mode
    }

    fn put(&mut self, reply: &Reply, mode: Replies, version: Version) {
        if let Reply::Error(text) = reply {
            self.shared.stats.count_error(text);
        }
        if mode == Replies::On {
            encode(reply, version, &mut self.output);
        }
    }

    async fn flush(&mut self) -> std::io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        let client = self.session.client.clone();
        client.output_bytes.store(self.output.len(), Ordering::Relaxed);
        self.shared
            .stats
            .output_bytes
            .fetch_add(self.output.len() as u64, Ordering::Relaxed);
        tokio::select! {
            biased;
            written = self.writer.write_all(&self.output) => written?,
            () = client.killed() => {}
        }
        client.output_bytes.store(0, Ordering::Relaxed);
        if self.output.capacity() > KEPT {
            self.output = BytesMut::new();
        } else {
            self.output.clear();
        }
        Ok(())
    }
}
