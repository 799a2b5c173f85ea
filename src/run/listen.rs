//! The addresses that the server listens on, and who may reach them.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::sync::Arc;

use socket2::{Domain, SockAddr, SockRef, Socket as Socket2, Type};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tracing::warn;

use super::Problem;
use crate::command::Shared;
use crate::command::clients::Address;
use crate::config::Config;
use crate::server::tls::{HTTP1, HTTP2, Tls};
use crate::server::{Listener, Socket, UnixFile, UnixSocket};

/// Listens on the addresses of `bind`, or on none if the port is 0.
async fn listen(config: &Config, port: u16) -> Result<Vec<TcpListener>, Problem> {
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

/// Listens on a Unix socket. What a server left there that has ended is replaced; anything else is
/// not. `mode`: the permissions of the file, or 0 for those that the process gives to files.
fn listen_unix(path: &str, mode: u32, backlog: u32) -> Result<UnixSocket, Problem> {
    let cannot = |cause: String| format!("listen on unix socket {path}: {cause}; see to --unixsocket");
    let failed = |cause: io::Error| cannot(cause.to_string());
    let address = SockAddr::unix(path).map_err(failed)?;
    match fs::symlink_metadata(path) {
        Ok(left) if left.file_type().is_socket() => {
            let asking = Socket2::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
            asking.set_nonblocking(true).map_err(failed)?;
            match asking.connect(&address).map_err(|cause| cause.kind()) {
                Err(io::ErrorKind::ConnectionRefused) => fs::remove_file(path).map_err(failed)?,
                Err(io::ErrorKind::NotFound) => {}
                _ => return Err(cannot("another server listens there".into())),
            }
        }
        Ok(_) => return Err(cannot("there is a file that is no socket".into())),
        Err(_) => {}
    }
    let socket = Socket2::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    socket.bind(&address).map_err(failed)?;
    let file = UnixFile::of(path).map_err(failed)?;
    if mode != 0 {
        // Before anybody can connect.
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
    }
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    socket.listen(backlog).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    let listener = UnixListener::from_std(OwnedFd::from(socket).into()).map_err(failed)?;
    Ok(UnixSocket { listener, file })
}

/// All that is listened on.
pub(super) struct Listeners {
    pub redis: Vec<Listener>,
    pub grpc: Vec<Listener>,
    pub http: Vec<Listener>,
}

impl Listeners {
    /// Listens on every port that the settings name. If any is for TLS, reads what that needs, and
    /// again when its settings change.
    pub(super) async fn open(config: &Arc<Config>) -> Result<Listeners, Problem> {
        let tls = open_tls(config, &[config.tls_port(), config.grpc_tls_port()], HTTP2)?;
        let http_tls = open_tls(config, &[config.http_tls_port()], HTTP1)?;
        let all_tls: Vec<Arc<Tls>> = tls.iter().chain(&http_tls).cloned().collect();
        if !all_tls.is_empty() {
            config.on_tls_change(move |settings| {
                let prepared: Result<Vec<_>, String> = all_tls.iter().map(|tls| tls.prepare(settings)).collect();
                let prepared = prepared?;
                Ok(Box::new(move || prepared.into_iter().for_each(|enforce| enforce())))
            });
        }
        let mut all = Listeners {
            redis: Vec::new(),
            grpc: Vec::new(),
            http: Vec::new(),
        };
        add(&mut all.redis, config, config.port(), None).await?;
        add(&mut all.redis, config, config.tls_port(), tls.clone()).await?;
        if let Some(path) = config.unixsocket() {
            let socket = Socket::Unix(listen_unix(&path, config.unixsocketperm(), config.tcp_backlog())?);
            all.redis.push(Listener { socket, tls: None });
        }
        add(&mut all.grpc, config, config.grpc_port(), None).await?;
        add(&mut all.grpc, config, config.grpc_tls_port(), tls).await?;
        add(&mut all.http, config, config.http_port(), None).await?;
        add(&mut all.http, config, config.http_tls_port(), http_tls).await?;
        if all.iter().next().is_none() {
            return Err(
                "serve anybody: no port is given; give --port, --tls-port, --unixsocket, --grpc-port, --grpc-tls-port, --http-port or --http-tls-port"
                    .into(),
            );
        }
        Ok(all)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.redis.iter().chain(&self.grpc).chain(&self.http)
    }

    /// The addresses, for people.
    pub(super) fn addresses(&self) -> String {
        let of = |listeners: &[Listener], protocol: &str| -> Vec<String> {
            let known = listeners.iter().filter_map(|listener| {
                let what = match (protocol, listener.tls.is_some()) {
                    ("", false) => String::new(),
                    ("", true) => " (TLS)".to_owned(),
                    (protocol, false) => format!(" ({protocol})"),
                    (protocol, true) => format!(" ({protocol}, TLS)"),
                };
                match listener.socket.address()? {
                    Address::Tcp(address) => Some(format!("{address}{what}")),
                    Address::Unix(path) => Some(path.to_string()),
                }
            });
            known.collect()
        };
        [of(&self.redis, ""), of(&self.grpc, "gRPC"), of(&self.http, "HTTP")]
            .concat()
            .join(", ")
    }
}

/// What the listeners on these ports need for TLS, if any of them is in use.
fn open_tls(config: &Config, ports: &[u16], protocol: &'static [u8]) -> Result<Option<Arc<Tls>>, Problem> {
    if ports.iter().all(|port| *port == 0) {
        return Ok(None);
    }
    let opened = Tls::new(&config.tls(), protocol);
    opened
        .map(Some)
        .map_err(|cause| format!("serve clients over TLS: {cause}"))
}

async fn add(listeners: &mut Vec<Listener>, config: &Config, port: u16, tls: Option<Arc<Tls>>) -> Result<(), Problem> {
    let sockets = listen(config, port).await?;
    listeners.extend(sockets.into_iter().map(|socket| Listener {
        socket: Socket::Tcp(socket),
        tls: tls.clone(),
    }));
    Ok(())
}

/// Warns if there is no password, and says what then protects the data from other machines.
pub(super) fn warn_of_strangers(shared: &Shared, listeners: &Listeners) {
    let is_open = |listener: &Listener| listener.socket.address().is_some_and(|address| !address.is_local());
    if !shared.users.needs_no_login() || !listeners.iter().any(is_open) {
        return;
    }
    match shared.config.protected_mode() {
        true => warn!(
            "listening on other addresses than the loopback without a password: protected mode refuses clients of other machines; set requirepass"
        ),
        false => warn!(
            "listening on other addresses than the loopback without a password and with protected-mode no: everyone who reaches them can read and \
             change everything; set requirepass"
        ),
    }
}
