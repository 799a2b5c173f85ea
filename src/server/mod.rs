//! The network side: listeners and one task for each connection. It knows the protocol and the
//! commands, not the databases.

pub mod connection;
pub mod stream;
pub mod tls;
mod wire;

use std::fs;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;
use tracing::warn;

use crate::command::Shared;
use crate::command::admission::{Refusal, Wants, admit, log_in_by_certificate};
use crate::command::clients::{Address, Client};
use crate::command::shared::Connected;
use crate::supervise;
use stream::Stream;
use tls::Tls;

/// How long connections get to send their last replies when the server stops.
const DRAIN: Duration = Duration::from_secs(10);

/// Bytes that the kernel accepts for a client before it can send them. By default it would take
/// megabytes. For thousands of clients that do not read, that would use up the kernel's memory for
/// all connections. Bytes that are already on their way do not count.
const UNSENT: u32 = 256 << 10;

/// An address that is listened on.
pub struct Listener {
    pub socket: Socket,
    /// With TLS, if there is any.
    pub tls: Option<Arc<Tls>>,
}

pub enum Socket {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

/// A Unix socket that is listened on.
pub struct UnixSocket {
    pub listener: UnixListener,
    pub file: UnixFile,
}

/// The file of a Unix socket. It is removed with this, unless another one is there by then.
pub struct UnixFile {
    path: Arc<str>,
    /// Device and inode.
    id: (u64, u64),
}

impl UnixFile {
    pub fn of(path: &str) -> io::Result<UnixFile> {
        Ok(UnixFile {
            path: path.into(),
            id: UnixFile::id(path)?,
        })
    }

    fn id(path: &str) -> io::Result<(u64, u64)> {
        fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
    }
}

impl Drop for UnixFile {
    fn drop(&mut self) {
        if UnixFile::id(&self.path).is_ok_and(|id| id == self.id) {
            // It may be gone by now.
            let _ = fs::remove_file(&*self.path);
        }
    }
}

impl Socket {
    async fn accept(&self) -> io::Result<Stream> {
        Ok(match self {
            Socket::Tcp(listener) => Stream::Plain(listener.accept().await?.0),
            Socket::Unix(UnixSocket { listener, file }) => Stream::Unix(listener.accept().await?.0, file.path.clone()),
        })
    }

    pub fn address(&self) -> Option<Address> {
        match self {
            Socket::Tcp(listener) => listener.local_addr().ok().map(Address::Tcp),
            Socket::Unix(socket) => Some(Address::Unix(socket.file.path.clone())),
        }
    }
}

/// Serves Redis clients until shutdown is asked.
pub async fn serve(listener: Listener, shared: Arc<Shared>) {
    accept(listener.socket, shared, |stream, shared| {
        welcome(stream, listener.tls.clone(), shared)
    })
    .await;
}

/// Accepts connections until shutdown is asked, then waits until the open ones have finished what
/// is under way.
pub async fn accept<F>(listener: Socket, shared: Arc<Shared>, welcome: impl Fn(Stream, Arc<Shared>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shared.shutdown.asked() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok(stream) => {
                    supervise::task_of(&mut connections, &supervise::CONNECTION, welcome(stream, shared.clone()));
                }
                Err(error) => {
                    // Most likely out of file descriptors: wait until other connections have ended.
                    let lines = &shared.stats.not_accepted;
                    lines.warn(|suppressed| warn!(%error, suppressed, "cannot accept a connection"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    drop(listener);
    // Connections with nothing under way end at once.
    shared.clients.list().iter().for_each(|client| client.wake());
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        warn!("connections did not end in time; closing them");
    }
}

/// A Redis client that is refused gets the reason as an error in its protocol. A client of TLS gets
/// none, as in Redis: the handshake costs more than a refused client should.
async fn welcome(mut stream: Stream, tls: Option<Arc<Tls>>, shared: Arc<Shared>) {
    match admitted(&stream, &shared) {
        Ok(()) => {
            let connected = connected(&stream, &shared).await;
            if let Some(stream) = secured(stream, tls.as_deref(), &connected.client, &shared).await {
                connection::run(stream, &connected.client, shared).await;
            }
        }
        Err(refusal) if tls.is_none() => drop(stream.try_write(format!("-{}\r\n", refusal.text()).as_bytes())),
        Err(_) => {}
    }
}

/// Makes the connection one of the clients, until the result is dropped.
pub async fn connected(stream: &Stream, shared: &Arc<Shared>) -> Connected {
    let task = poll_fn(|context| Poll::Ready(context.waker().clone())).await;
    Connected::new(shared, &task, stream.addresses(), stream.socket().as_raw_fd())
}

/// The stream of a connection, after the handshake of TLS if that is wanted. `None` if that failed.
pub async fn secured(stream: Stream, tls: Option<&Tls>, client: &Client, shared: &Shared) -> Option<Stream> {
    let (tls, stream) = match (tls, stream) {
        (Some(tls), Stream::Plain(stream)) => (tls, stream),
        (_, stream) => return Some(stream),
    };
    let peer = stream.peer_addr().ok();
    let accepted = tokio::select! {
        biased;
        accepted = tls.accept(stream) => accepted,
        () = client.killed_or(|| shared.shutdown.is_asked()) => return None,
    };
    match accepted {
        Ok(stream) => {
            let asked = shared.config.users_by_common_name();
            if let Some(name) = asked.then(|| tls::common_name(stream.ssl())).flatten() {
                log_in_by_certificate(shared, client, &name);
            }
            Some(Stream::Tls(Box::new(stream)))
        }
        Err(reason) => {
            shared.stats.connections_rejected.fetch_add(1, Ordering::Relaxed);
            let lines = &shared.stats.handshakes_failed;
            lines.warn(|suppressed| warn!(?peer, reason, suppressed, "a client's TLS handshake failed"));
            None
        }
    }
}

/// Counts a connection, and prepares it if it is let in.
pub fn admitted(stream: &Stream, shared: &Shared) -> Result<(), Refusal> {
    shared.stats.connections_received.fetch_add(1, Ordering::Relaxed);
    let (peer, _) = stream.addresses();
    let admitted = admit(shared, Wants::Connect(peer.as_ref()));
    match admitted {
        Ok(()) => prepare(stream, shared),
        Err(_) => drop(shared.stats.connections_rejected.fetch_add(1, Ordering::Relaxed)),
    }
    admitted
}

fn prepare(stream: &Stream, shared: &Shared) {
    let Stream::Plain(stream) = stream else {
        return;
    };
    // If one of these fails, that only costs latency, memory, or late notice of a dead peer.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(UNSENT);
    let seconds = shared.config.tcp_keepalive();
    if seconds > 0 {
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(seconds))
            .with_interval(Duration::from_secs((seconds / 3).max(1)));
        let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
    }
}
