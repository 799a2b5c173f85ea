//! HTTP beside RESP, for operators and their tools: metrics, probes, status. It is read-only, and
//! every connection and request passes the admission of the other front doors.
//!
//! It speaks as much of HTTP/1.1 (RFC 9112) as that needs: GET and HEAD without a body, one request
//! after the other, replies of a known length. So [`request`] reads a head of bounded size and
//! refuses everything else. hyper, which gRPC uses, would need one more crate for HTTP/1.1.

mod connection;
mod ready;
mod request;
mod status;

use std::sync::Arc;

use crate::command::Shared;
use crate::metrics;
use crate::server::{self, Listener};
use connection::Front;

/// Serves until shutdown is asked.
pub async fn serve(listener: Listener, shared: Arc<Shared>) {
    let front = Front::default();
    server::accept(listener.socket, shared, |stream, shared| {
        front.clone().welcome(stream, listener.tls.clone(), shared)
    })
    .await;
}

/// What a path shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    /// Whether this process works.
    Live,
    /// Whether this node is ready for clients.
    Ready,
    Metrics,
    Status,
}

impl Page {
    fn at(path: &str) -> Option<Page> {
        Some(match path {
            "/livez" => Page::Live,
            "/readyz" => Page::Ready,
            "/metrics" => Page::Metrics,
            "/status" => Page::Status,
            _ => return None,
        })
    }

    /// Whether everybody may see it. Probes show no data.
    fn is_open(self, shared: &Shared) -> bool {
        match self {
            Page::Live | Page::Ready => true,
            Page::Metrics => shared.config.metrics_open(),
            Page::Status => false,
        }
    }

    fn show(self, shared: &Shared) -> Reply {
        let probe = |found: Result<(), &str>| match found {
            Ok(()) => Reply::text(200, "ok\n"),
            Err(reason) => Reply::text(503, format!("{reason}\n")),
        };
        match self {
            Page::Live => probe(ready::live(shared)),
            Page::Ready => probe(ready::ready(shared)),
            Page::Metrics => Reply {
                status: 200,
                content_type: metrics::CONTENT_TYPE,
                body: metrics::render(shared),
            },
            Page::Status => Reply {
                status: 200,
                content_type: "application/json",
                body: status::render(shared),
            },
        }
    }
}

/// A reply, whole in memory.
struct Reply {
    status: u16,
    content_type: &'static str,
    body: String,
}

impl Reply {
    fn text(status: u16, body: impl Into<String>) -> Reply {
        Reply {
            status,
            content_type: "text/plain; charset=utf-8",
            body: body.into(),
        }
    }

    /// Says why a request is refused.
    fn refusal(status: u16, reason: &str) -> Reply {
        Reply::text(status, format!("{reason}\n"))
    }
}
