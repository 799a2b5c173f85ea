//! The addresses that the server listens on, and who may reach them.

use std::io;
use std::net::SocketAddr;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};
use tracing::warn;

use super::Problem;
use crate::config::Config;

/// Listens on the addresses of `bind`, or on none if the port is 0.
pub(super) async fn listen(config: &Config, port: u16) -> Result<Vec<TcpListener>, Problem> {
    let mut listeners = Vec::new();
    if port == 0 {
        return Ok(listeners);
    }
    for (host, optional) in config.bind() {
        let cannot = |cause: io::Error| {
            let remedy = match cause.kind() {
                io::ErrorKind::AddrInUse => "stop what listens there, or choose another with --port",
                io::ErrorKind::PermissionDenied => "ports below 1024 need rights; choose another with --port",
                _ => "see to --bind",
            };
            format!("listen on {host} port {port}: {cause}; {remedy}")
        };
        let name = match host.as_str() {
            "*" => "0.0.0.0",
            "::*" => "::",
            name => name,
        };
        let found: io::Result<Vec<SocketAddr>> = tokio::net::lookup_host((name, port)).await.map(Iterator::collect);
        let bound = found.and_then(|addresses| {
            addresses
                .into_iter()
                .map(|address| bind(address, config.tcp_backlog()))
                .collect()
        });
        let bound: io::Result<Vec<TcpListener>> = bound;
        match bound {
            Ok(bound) => listeners.extend(bound),
            // As in Redis: an address with a minus may be missing, but must not be in use.
            Err(cause) if optional && cause.kind() != io::ErrorKind::AddrInUse => {}
            Err(cause) => return Err(cannot(cause)),
        }
    }
    match listeners.is_empty() {
        true => Err(format!(
            "listen on port {port}: none of the addresses of --bind is on this machine"
        )),
        false => Ok(listeners),
    }
}

fn bind(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if address.is_ipv6() {
        SockRef::from(&socket).set_only_v6(true)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

pub(super) fn addresses(listeners: &[TcpListener], grpc: &[TcpListener]) -> String {
    let of = |listeners: &[TcpListener], what: &str| -> Vec<String> {
        let known = listeners.iter().filter_map(|listener| listener.local_addr().ok());
        known.map(|address| format!("{address}{what}")).collect()
    };
    [of(listeners, ""), of(grpc, " (gRPC)")].concat().join(", ")
}

/// Warns if there is no password, and says what then protects the data from other machines.
pub(super) fn warn_of_strangers<'l>(config: &Config, mut listeners: impl Iterator<Item = &'l TcpListener>) {
    let is_open = |listener: &TcpListener| {
        let address = listener.local_addr();
        address.is_ok_and(|address| !address.ip().to_canonical().is_loopback())
    };
    if config.requirepass().is_some() || !listeners.any(is_open) {
        return;
    }
    match config.protected_mode() {
        true => warn!(
            "listening on other addresses than the loopback without a password: protected mode refuses clients of other machines; set requirepass"
        ),
        false => warn!(
            "listening on other addresses than the loopback without a password and with protected-mode no: everyone who reaches them can read and \
             change everything; set requirepass"
        ),
    }
}
