//! One connection: reads, decodes all complete requests, executes them in order, and sends their
//! replies in order with one write.
//!
//! Replies that wait for the log are held back. A pipeline of writes is handed to the log as one
//! burst and waited for once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Buf;
use tracing::debug;

use super::stream::Stream;
use super::wire::Wire;
use crate::command::blocked::{found_at_once, serve};
use crate::command::clients::Client;
use crate::command::execute::{PREFETCHED, execute, execute_waiting, prefetch};
use crate::command::settle::{HeldReply, settle_all};
use crate::command::step::{Blocks, PendingReply, Step};
use crate::command::{Session, Shared};
use crate::resp::{Decoder, Encoding, Limits, Next, ProtocolError, Reply, Version, Weight, encode};

/// Requests decoded, executed and answered together.
const BURST: usize = 1_024;
/// How long the requests of one connection are computed without letting others in.
const SLICE: Duration = Duration::from_millis(5);
/// Once so many bytes of replies are there, they are sent before the burst, or a large reply, is
/// complete.
const FLUSH_AT: usize = 256 << 10;
/// Once so many bytes of replies are held back behind writes under way, the writes are waited for.
const MAX_HELD: usize = 1 << 20;

/// Once a connection has so many bytes of values under way, they are waited for before it writes
/// more: it must not fill the log's queue, which others need too.
const MAX_WRITING: usize = 16 << 20;

struct Connection {
    /// Dropped before the socket is closed: who sees the connection end knows that it listens no
    /// more.
    session: Session,
    wire: Wire,
    shared: Arc<Shared>,
    decoder: Decoder,
}

/// Serves a connection to its end.
pub async fn run(stream: Stream, client: &Arc<Client>, shared: Arc<Shared>) {
    let mut connection = Connection {
        wire: Wire::new(stream, client.clone(), shared.clone()),
        session: Session::new(client.clone(), &shared.users),
        shared: shared.clone(),
        decoder: Decoder::new(),
    };
    connection.session.takes_pushes = true;
    connection.session.may_block = true;
    if let Err(error) = connection.serve().await {
        debug!(client = client.id, %error, "connection ended");
    }
    let Connection { session, wire, .. } = connection;
    drop(session);
    wire.close().await;
}

impl Connection {
    async fn serve(&mut self) -> io::Result<()> {
        loop {
            let mut input = self.wire.take();
            let next = self.decoder.decode(&mut input, &self.limits(), BURST);
            let decoder = std::mem::take(&mut self.decoder);
            let outcome = self.answer(&decoder, &input).await;
            self.session.tally.settle(&self.shared);
            self.decoder = decoder;
            outcome?;
            input.advance(self.decoder.finish());
            self.wire.put_back(input);
            if let Next::Failed(error) = next
                && !self.session.close
            {
                self.fail(error);
            }
            if self.session.close || self.session.client.is_killed() || self.shared.shutdown.is_asked() {
                return self.wire.finish().await;
            }
            self.wire.take_pushes();
            self.wire.flush().await?;
            if matches!(next, Next::More) || self.wire.has_news() {
                // A giant pipeline takes turns with other connections.
                tokio::task::yield_now().await;
            } else if !self.wire.read(|buffered| next.room(buffered)).await? {
                return self.wire.finish().await;
            }
            if self.wire.has_news() {
                self.session.reads.arrived = Instant::now();
            }
        }
    }

    /// The client sent something that is not a request: it gets this error, and the connection is
    /// closed.
    fn fail(&mut self, error: ProtocolError) {
        if matches!(error, ProtocolError::RequestTooBig) {
            let count = &self.shared.stats.query_limit_disconnections;
            count.fetch_add(1, Ordering::Relaxed);
        }
        if self.session.replies.are_sent() {
            error.encode(&mut self.wire.output);
        }
        self.session.close = true;
    }

    fn limits(&self) -> Limits {
        Limits {
            max_bulk: self.shared.config.proto_max_bulk_len(),
            max_request: self.shared.config.client_query_buffer_limit(),
            authenticated: self.session.is_authenticated(&self.shared.users),
            ..Limits::default()
        }
    }

    /// Executes the decoded requests and puts their replies, in order, into the output.
    #[expect(clippy::too_many_lines, reason = "it is still to be split")]
    async fn answer(&mut self, decoder: &Decoder, input: &[u8]) -> io::Result<()> {
        let mut held: Vec<HeldReply<'_>> = Vec::new();
        let (mut held_bytes, mut writing) = (0, 0);
        let mut slice = None;
        self.session.tally.interrupt();
        for (index, request) in decoder.requests(input).enumerate() {
            if index % PREFETCHED == 0 && decoder.len() > 1 {
                let next = index..decoder.len().min(index + PREFETCHED);
                prefetch(
                    &self.session,
                    &self.shared,
                    next.map(|next| decoder.request(next, input)),
                );
            }
            if decoder.follows_empty(index) {
                self.session.replies.next();
            }
            let args = request.args();
            let replies_sent = self.session.replies.are_sent();
            let version_before = self.session.version;
            let mut step = execute(&mut self.session, &self.shared, &args, false);
            if matches!(step, Step::Before(_) | Step::Later(_)) {
                self.settle_all(&mut held).await?;
                self.wire.flush().await?;
                self.session.tally.interrupt();
                let waiting = execute_waiting(&mut self.session, &self.shared, &args, step);
                step = self.wire.during(waiting).await?;
                self.session.tally.interrupt();
            }
            if std::mem::take(&mut self.session.pushes_first) {
                self.settle_all(&mut held).await?;
                // The command may have changed the protocol. They come before it.
                self.wire.take_all_pushes(version_before);
            }
            if let Step::Blocks(blocks) = step {
                self.settle_all(&mut held).await?;
                step = match self.block(&args, blocks).await? {
                    Some(reply) => Step::Reply(reply),
                    None => break,
                };
            }
            if let Some(delay) = self.session.delay.take() {
                self.settle_all(&mut held).await?;
                self.wire.flush().await?;
                let ended = self.session.client.killed_or(|| self.shared.shutdown.is_asked());
                let _ = tokio::time::timeout(delay, ended).await;
                self.session.tally.interrupt();
            }
            // A command that turns replies off is still answered, and so is one that turns them on.
            let is_sent = replies_sent || self.session.replies.are_sent();
            self.session.replies.next();
            let version = self.session.version;
            let reply = match step {
                Step::Reply(reply) => Ok(reply),
                Step::Pending(pending) => Err(pending),
                // None of these is left.
                Step::Before(_) | Step::Later(_) | Step::Blocks(_) => continue,
            };
            match reply {
                Ok(reply) if held.is_empty() => {
                    self.put(&reply, is_sent, version).await?;
                    self.wire.take_pushes();
                }
                reply => {
                    let barrier = reply.as_ref().is_err_and(|pending| pending.barrier);
                    held_bytes += reply.as_ref().map_or_else(|p| p.reply.size(), Reply::size);
                    if let Err(PendingReply { write: Some(write), .. }) = &reply {
                        writing += write.bytes();
                    }
                    held.push(HeldReply {
                        args,
                        reply,
                        is_sent,
                        version,
                    });
                    if barrier || held_bytes > MAX_HELD || writing > MAX_WRITING {
                        self.settle_all(&mut held).await?;
                        self.session.tally.interrupt();
                        (held_bytes, writing) = (0, 0);
                    }
                }
            }
            if self.session.close || self.session.client.is_killed() {
                break;
            }
            if self.wire.output.len() >= FLUSH_AT {
                self.wire.flush().await?;
            }
            self.let_others_in(&mut slice).await;
        }
        if decoder.follows_empty(decoder.len()) {
            self.session.replies.next();
        }
        self.settle_all(&mut held).await
    }

    /// Waits for elements. `None`: the connection ends instead, as it is asked to, or as the client
    /// has gone.
    async fn block(&mut self, args: &[&[u8]], mut blocks: Blocks) -> io::Result<Option<Reply>> {
        if let Some(reply) = found_at_once(&mut self.session, &self.shared, args, &mut blocks).await {
            self.session.tally.interrupt();
            return Ok(Some(reply));
        }
        self.wire.flush().await?;
        self.session.tally.interrupt();
        let reply = tokio::select! {
            // Each time, the socket is looked at first.
            biased;
            () = self.wire.gone() => None,
            reply = serve(&mut self.session, &self.shared, args, blocks) => reply,
        };
        self.session.tally.interrupt();
        self.session.close |= reply.is_none();
        Ok(reply)
    }

    /// Yields when the connection's slice of time is over. The slice began with the first command
    /// after the last wait.
    #[inline]
    async fn let_others_in(&mut self, slice: &mut Option<Instant>) {
        let Some(now) = self.session.tally.last() else {
            *slice = None;
            return;
        };
        if now.duration_since(*slice.get_or_insert(now)) > SLICE {
            tokio::task::yield_now().await;
            self.session.tally.interrupt();
            *slice = None;
        }
    }

    /// Waits for the writes under way, and puts the replies held back behind them into the output.
    async fn settle_all(&mut self, held: &mut Vec<HeldReply<'_>>) -> io::Result<()> {
        settle_all(&mut self.session, &self.shared, held).await;
        for HeldReply {
            reply,
            is_sent,
            version,
            ..
        } in held.drain(..)
        {
            if let Ok(reply) = reply {
                self.put(&reply, is_sent, version).await?;
            }
        }
        Ok(())
    }

    async fn put(&mut self, reply: &Reply, is_sent: bool, version: Version) -> io::Result<()> {
        if let Reply::Error(text) = reply {
            self.shared.stats.count_error(text);
        }
        // CLIENT REPLY silences replies, not pushes.
        let is_push = matches!(reply, Reply::Push(_) | Reply::Several(_));
        if !is_sent && !is_push {
            return Ok(());
        }
        let size = reply.size();
        if size > FLUSH_AT {
            return self.put_large(reply, size, version).await;
        }
        encode(reply, version, &mut self.wire.output);
        self.wire.check_hard_limit(0)
    }

    /// A reply may be larger than memory, as one value may be in it many times: it is encoded only
    /// as fast as the client reads it.
    #[cold]
    async fn put_large(&mut self, reply: &Reply, size: usize, version: Version) -> io::Result<()> {
        self.wire.check_hard_limit(size)?;
        let mut weight = Weight::default();
        weight.add(reply);
        self.wire.owed = weight.bytes();
        let mut encoding = Encoding::new(reply, version);
        while encoding.encode(&mut self.wire.output, FLUSH_AT) {
            self.wire.flush().await?;
            // A client that reads as fast as this encodes must not keep the thread.
            tokio::task::coop::consume_budget().await;
        }
        self.wire.owed = 0;
        Ok(())
    }
}
