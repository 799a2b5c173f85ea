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

/// How long connections get to send their last replies when the server stops.
const DRAIN: Duration = Duration::from_secs(10);

/// Bytes that the kernel takes over for a client before they can go out: as many megabytes as it would take otherwise, for each of
/// thousands of clients that do not read, would use up its memory for everybody's connections. What is on its way does not count.
const UNSENT: u32 = 256 << 10;

/// Accepts connections until shutdown is asked, then waits for the open ones to finish what is under way.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shared.shutdown.asked() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(welcome(stream, shared.clone()));
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

/// Limits that hold before a connection is served.
async fn welcome(stream: TcpStream, shared: Arc<Shared>) {
    shared.stats.connections_received.fetch_add(1, Ordering::Relaxed);
    let refusal = if shared.clients.len() >= shared.config.maxclients() {
        Some("-ERR max number of clients reached\r\n")
    } else if is_protected(&stream, &shared) {
        Some(concat!(
            "-DENIED Highwater is running in protected mode because protected mode is enabled and no password is set. ",
            "In this mode connections are only accepted from the loopback interface. To connect from elsewhere, set a password ",
            "(requirepass), or turn protected mode off (protected-mode no) if the network is trusted.\r\n"
        ))
    } else {
        None
    };
    if let Some(refusal) = refusal {
        shared.stats.connections_rejected.fetch_add(1, Ordering::Relaxed);
        let _ = stream.try_write(refusal.as_bytes());
        return;
    }
    prepare(&stream, &shared);
    connection::run(stream, shared).await;
}

fn is_protected(stream: &TcpStream, shared: &Shared) -> bool {
    shared.config.protected_mode()
        && shared.config.requirepass().is_none()
        && !stream
            .peer_addr()
            .is_ok_and(|peer| peer.ip().to_canonical().is_loopback())
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
