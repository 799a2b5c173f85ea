//! The network side: listeners and one task for each connection. It knows the protocol and the
//! commands, not the databases.

pub mod connection;
mod wire;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tracing::warn;

use crate::command::Shared;
use crate::command::admission::{Refusal, Wants, admit};
use crate::supervise;

/// How long connections get to send their last replies when the server stops.
const DRAIN: Duration = Duration::from_secs(10);

/// Bytes that the kernel accepts for a client before it can send them. By default it would take
/// megabytes. For thousands of clients that do not read, that would use up the kernel's memory for
/// all connections. Bytes that are already on their way do not count.
const UNSENT: u32 = 256 << 10;

/// Serves Redis clients until shutdown is asked.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    accept(listener, shared, welcome).await;
}

/// Accepts connections until shutdown is asked, then waits until the open ones have finished what
/// is under way.
pub async fn accept<F>(listener: TcpListener, shared: Arc<Shared>, welcome: impl Fn(TcpStream, Arc<Shared>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shared.shutdown.asked() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
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

/// A Redis client that is refused gets the reason as an error in its protocol.
async fn welcome(stream: TcpStream, shared: Arc<Shared>) {
    match admitted(&stream, &shared) {
        Ok(()) => connection::run(stream, shared).await,
        Err(refusal) => drop(stream.try_write(format!("-{}\r\n", refusal.text()).as_bytes())),
    }
}

/// Counts a connection, and prepares it if it is let in.
pub fn admitted(stream: &TcpStream, shared: &Shared) -> Result<(), Refusal> {
    shared.stats.connections_received.fetch_add(1, Ordering::Relaxed);
    let admitted = admit(shared, Wants::Connect(stream.peer_addr().ok()));
    match admitted {
        Ok(()) => prepare(stream, shared),
        Err(_) => drop(shared.stats.connections_rejected.fetch_add(1, Ordering::Relaxed)),
    }
    admitted
}

fn prepare(stream: &TcpStream, shared: &Shared) {
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
