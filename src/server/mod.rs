//! The network side: listeners and one task per connection. It knows the protocol and the commands, not the databases.

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

/// Bytes that the kernel takes over for a client before they can go out: as many megabytes as it would take otherwise, for each of
/// thousands of clients that do not read, would use up its memory for everybody's connections. What is on its way does not count.
const UNSENT: u32 = 256 << 10;

/// Serves Redis clients until shutdown is asked.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    accept(listener, shared, welcome).await;
}

/// Accepts connections until shutdown is asked, then waits for the open ones to finish what is under way.
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
                    // Out of descriptors, most likely: let others end first.
                    let lines = &shared.stats.not_accepted;
                    lines.warn(|suppressed| warn!(%error, suppressed, "cannot accept a connection"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    drop(listener);
    // Those that have nothing under way end at once.
    shared.clients.list().iter().for_each(|client| client.wake());
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        warn!("connections did not end in time; closing them");
    }
}

/// Redis clients are told in their protocol why they are not let in.
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
    // Any of them failing only costs latency, memory or a late notice of a dead peer.
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
