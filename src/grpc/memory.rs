//! The memory of requests and replies. It is counted for their connection like that of Redis
//! clients, and bounded by the same settings. What would be too much is refused
//! (`RESOURCE_EXHAUSTED`), if possible before it is allocated.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::StdError;

use crate::command::clients::Client;
use crate::command::{MAX_REPLY_MEMORY, Shared};

/// From so many bytes on, a message or a reply is worth summing up what all connections hold.
const CHECKED: usize = 256 << 10;
/// A message on the wire begins with a flag and its length.
const PREFIX: usize = 5;

/// Memory of one request and its reply, counted until both are gone.
pub struct Memory {
    shared: Arc<Shared>,
    client: Arc<Client>,
    input: AtomicUsize,
    output: AtomicUsize,
}

impl Memory {
    pub fn new(shared: Arc<Shared>, client: Arc<Client>) -> Self {
        Memory {
            shared,
            client,
            input: AtomicUsize::new(0),
            output: AtomicUsize::new(0),
        }
    }

    /// A message of so many bytes begins; the one before it, in a stream, is gone. All its bytes
    /// count from here on: tonic reserves room for the whole message.
    fn begin(&self, bytes: usize) -> Result<(), Status> {
        let config = &self.shared.config;
        for (name, limit) in [
            ("proto-max-bulk-len", config.proto_max_bulk_len()),
            ("client-query-buffer-limit", config.client_query_buffer_limit()),
        ] {
            if bytes > limit {
                return Err(Status::resource_exhausted(format!(
                    "the request has {bytes} bytes, more than the {limit} of {name}"
                )));
            }
        }
        self.client
            .input_bytes
            .fetch_sub(self.input.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        self.take(bytes, &self.input, &self.client.input_bytes)
    }

    /// Must be called before a reply of so many bytes is encoded.
    pub fn reply(&self, bytes: usize) -> Result<(), Status> {
        if bytes > MAX_REPLY_MEMORY {
            return Err(Status::resource_exhausted(format!(
                "the reply would have {bytes} bytes, more than {MAX_REPLY_MEMORY}"
            )));
        }
        let hard = self.shared.config.output_limits().normal.hard;
        let waiting = self.client.output_bytes.load(Ordering::Relaxed) + bytes;
        if hard > 0 && waiting as u64 > hard {
            return Err(Status::resource_exhausted(format!(
                "{waiting} bytes of replies would wait for this connection, more than the {hard} of client-output-buffer-limit"
            )));
        }
        self.take(bytes, &self.output, &self.client.output_bytes)
    }

    /// Counts bytes; fails if all connections together would hold too much. For a few bytes that
    /// sum is not computed.
    fn take(&self, bytes: usize, own: &AtomicUsize, of_client: &AtomicUsize) -> Result<(), Status> {
        of_client.fetch_add(bytes, Ordering::Relaxed);
        if bytes >= CHECKED {
            let held = self.shared.clients.memory();
            let limit = self.shared.config.clients_memory_limit();
            if held > limit {
                of_client.fetch_sub(bytes, Ordering::Relaxed);
                return Err(Status::resource_exhausted(format!(
                    "connections would hold {held} bytes together, more than the {limit} of maxmemory-clients"
                )));
            }
        }
        own.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let (input, output) = (*self.input.get_mut(), *self.output.get_mut());
        self.client.input_bytes.fetch_sub(input, Ordering::Relaxed);
        self.client.output_bytes.fetch_sub(output, Ordering::Relaxed);
    }
}

/// The body of a request, counted as it comes in.
pub struct Received {
    body: Incoming,
    memory: Arc<Memory>,
    /// The bytes of the next message's prefix that have arrived.
    prefix: Vec<u8>,
    /// Bytes of the current message that have not arrived yet.
    left: usize,
}

impl Received {
    pub fn new(body: Incoming, memory: Arc<Memory>) -> Self {
        Received {
            body,
            memory,
            prefix: Vec::with_capacity(PREFIX),
            left: 0,
        }
    }

    fn count(&mut self, mut data: &[u8]) -> Result<(), Status> {
        let traffic = self.memory.shared.stats.traffic.own();
        traffic.input_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        while !data.is_empty() {
            if self.left == 0 {
                let taken = data.len().min(PREFIX - self.prefix.len());
                self.prefix.extend_from_slice(&data[..taken]);
                data.advance(taken);
                if let &[_, a, b, c, d] = &self.prefix[..] {
                    self.prefix.clear();
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                    self.memory.begin(self.left)?;
                }
            } else {
                let taken = data.len().min(self.left);
                data.advance(taken);
                self.left -= taken;
            }
        }
        Ok(())
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(match frame {
            Some(Ok(frame)) => match frame.data_ref().map(|data| self.count(data)) {
                Some(Err(status)) => Some(Err(status.into())),
                _ => Some(Ok(frame)),
            },
            Some(Err(error)) => Some(Err(error.into())),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The body of a reply.
pub struct Sent {
    pub body: Body,
    pub memory: Arc<Memory>,
}

/// A part of a reply that was handed to the connection. It counts until it has been sent.
struct Piece {
    bytes: Bytes,
    _memory: Arc<Memory>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        let memory = &self.memory;
        Poll::Ready(frame.map(|frame| {
            Ok(frame?.map_data(|bytes| {
                let traffic = memory.shared.stats.traffic.own();
                traffic.output_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Bytes::from_owner(Piece {
                    bytes,
                    _memory: memory.clone(),
                })
            }))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
