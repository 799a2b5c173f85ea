//! One HTTP/2 connection, and what each of its requests passes before the API gets it: admission,
//! deadline, bounds on memory.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2::Builder;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Notify, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Response, header};
use tonic::service::Routes;
use tracing::debug;

use super::memory::{Memory, Received, Sent};
use super::status;
use crate::acl::{Account, Context};
use crate::command::admission::{self, Refusal, Wants, admit, log_in_by_call};
use crate::command::clients::Client;
use crate::command::table::{self, CommandEntry};
use crate::command::{Session, Shared};
use crate::database::now_ms;
use crate::server::stream::Stream;
use crate::server::tls::Tls;
use crate::{server, supervise};

/// Requests under way on one connection. At this number its client waits before it sends more.
const MAX_REQUESTS: u32 = 256;
/// Refused connections that are sent the reason at one time. Any more are closed without it.
const MAX_REFUSED: usize = 64;
/// How long a refused connection may take to send a request and receive the reason.
const REFUSED_FOR: Duration = Duration::from_secs(2);

/// How long requests under way may take when their connection is to end: longer than a write takes,
/// shorter than the server waits.
const LAST_ANSWERS: Duration = Duration::from_secs(8);

/// What all connections of a listener share.
#[derive(Clone)]
pub struct Front {
    pub routes: Routes,
    refused: Arc<Semaphore>,
}

/// The client that sent a request. The API finds it among the extensions of the request.
#[derive(Clone)]
pub struct Caller {
    client: Arc<Client>,
    shared: Arc<Shared>,
    /// Who has logged in; `None`: the default user, who need not.
    user: Option<Arc<Account>>,
    pub memory: Arc<Memory>,
}

/// Takes the requests of one connection.
#[derive(Clone)]
struct Door {
    routes: Routes,
    shared: Arc<Shared>,
    client: Arc<Client>,
}

impl Front {
    pub fn new(routes: Routes) -> Self {
        Front {
            routes: routes.prepare(),
            refused: Arc::new(Semaphore::new(MAX_REFUSED)),
        }
    }

    /// Serves a connection to its end.
    pub async fn welcome(self, stream: Stream, tls: Option<Arc<Tls>>, shared: Arc<Shared>) {
        match server::admitted(&stream, &shared) {
            Ok(()) => {
                let connected = server::connected(&stream, &shared).await;
                if let Some(stream) = server::secured(stream, tls.as_deref(), &connected.client, &shared).await {
                    self.run(stream, &connected.client, shared).await;
                }
            }
            // The handshake costs more than a refused client should.
            Err(_) if tls.is_some() => {}
            Err(refusal) => {
                if let Ok(_told) = self.refused.try_acquire() {
                    let _ = tokio::time::timeout(REFUSED_FOR, refuse(stream, refusal)).await;
                }
            }
        }
    }

    async fn run(self, stream: Stream, client: &Arc<Client>, shared: Arc<Shared>) {
        // Nothing can be pushed to it.
        client.pushes.close();
        let door = Door {
            routes: self.routes,
            shared: shared.clone(),
            client: client.clone(),
        };
        let answer = move |request| door.clone().answer(request);
        let stopped = async {
            tokio::select! {
                () = client.killed_or(|| shared.shutdown.is_asked()) => {}
                () = idle(&shared, client) => {}
            }
        };
        tokio::select! {
            () = serve(stream, answer, stopped) => {}
            () = client.killed() => {}
        }
    }
}

/// Waits until no command has come for as long as `timeout` says. Who changes it wakes the task.
async fn idle(shared: &Shared, client: &Client) {
    loop {
        let timeout = shared.config.timeout();
        let idle = now_ms().saturating_sub(client.last_command_at.load(Ordering::Relaxed));
        let left = timeout.map_or(Duration::MAX, |timeout| {
            timeout.saturating_sub(Duration::from_millis(idle))
        });
        if left.is_zero() {
            return;
        }
        let changed = poll_fn(|_| match shared.config.timeout() == timeout {
            true => Poll::Pending,
            false => Poll::Ready(()),
        });
        let _ = tokio::time::timeout(left, changed).await;
    }
}

/// Answers requests until the client closes the connection or, once `stopped`, until those under
/// way are answered.
async fn serve<F>(stream: Stream, answer: impl Fn(Request<Incoming>) -> F, stopped: impl Future<Output = ()>)
where
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    let mut http = Builder::new(Tasks);
    http.timer(TokioTimer::new()).max_concurrent_streams(MAX_REQUESTS);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service_fn(answer)));
    let ended = tokio::select! {
        ended = connection.as_mut() => Ok(ended),
        () = stopped => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST_ANSWERS, connection).await
        }
    };
    if let Ok(Err(error)) = ended {
        debug!(%error, "gRPC connection ended");
    }
}

/// Starts a task for each request.
#[derive(Clone)]
struct Tasks;

impl<F> Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, request: F) {
        supervise::task(&supervise::GRPC_REQUEST, request);
    }
}

/// Answers the first requests of a refused connection with the reason.
async fn refuse(stream: Stream, refusal: Refusal) {
    let told = Arc::new(Notify::new());
    let tell = told.clone();
    let status = status::of_error(refusal.text().as_bytes());
    let answer = move |_| {
        tell.notify_one();
        let status = status.clone();
        async move { Ok(status.into_http()) }
    };
    serve(stream, answer, told.notified()).await;
}

impl Door {
    async fn answer(self, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let deadline = deadline(request.headers());
        let shared = self.shared.clone();
        let pass = shared.service.or_failure(self.pass(request));
        let answered = match deadline {
            Ok(None) => pass.await,
            Ok(Some(time)) => match tokio::time::timeout(time, pass).await {
                Ok(answered) => answered,
                Err(_) => Err(Status::deadline_exceeded(
                    "the deadline of the call is over; a Set may still take effect",
                )),
            },
            Err(status) => Err(status),
        };
        Ok(answered.unwrap_or_else(Status::into_http))
    }

    async fn pass(mut self, request: Request<Incoming>) -> Result<Response<Body>, Status> {
        let command = command_of(request.uri().path());
        let user = match command {
            Some(_) => {
                let given = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
                let logged_in = log_in_by_call(&self.shared, &self.client, given).await;
                logged_in.map_err(|refusal| self.refused(&refusal))?
            }
            None => None,
        };
        let wants = match command {
            Some(command) => Wants::Run {
                caller: admission::Caller {
                    client: &self.client,
                    user: user.as_ref().unwrap_or(self.shared.users.default_account()),
                    authenticated: user.is_some(),
                    context: Context::TopLevel,
                    may_repeat: false,
                },
                command,
                // The keys are checked when the command runs.
                args: &[],
            },
            None => Wants::Health,
        };
        admit(&self.shared, wants).map_err(|refusal| self.refused(&refusal))?;
        let memory = Arc::new(Memory::new(self.shared.clone(), self.client.clone()));
        let mut request = request.map(|body| Received::new(body, memory.clone()));
        request.extensions_mut().insert(Caller {
            client: self.client,
            shared: self.shared,
            user,
            memory: memory.clone(),
        });
        let Ok(response) = self.routes.call(request).await;
        Ok(response.map(|body| Body::new(Sent { body, memory })))
    }

    fn refused(&self, refusal: &Refusal) -> Status {
        self.shared.stats.count_error(refusal.text().as_bytes());
        status::of_error(refusal.text().as_bytes())
    }
}

impl Caller {
    /// Each request is a session of its own: requests of one connection have no order.
    pub fn session(&self) -> Session {
        let mut session = Session::new(self.client.clone(), &self.shared.users);
        if let Some(user) = &self.user {
            session.act_for(user.clone());
        }
        session
    }
}

/// The command whose rules of admission apply to a method. `None` for the health service, which has
/// none. Reflection returns what COMMAND returns, so the rules of COMMAND apply.
fn command_of(path: &str) -> Option<&'static CommandEntry> {
    let name: &[u8] = match path {
        "/kvs2.Kvs2/Get" => b"get",
        "/kvs2.Kvs2/Set" => b"set",
        "/kvs2.Kvs2/MultiGet" => b"mget",
        path if path.starts_with("/grpc.health.v1.Health/") => return None,
        _ => b"command",
    };
    Some(table::find(name).expect("a command of the table"))
}

/// The time that the caller gives the request (`grpc-timeout`): up to eight digits and a unit.
fn deadline(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    let parsed = value.to_str().ok().and_then(|text| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let all_digits = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        let count: u64 = all_digits.then(|| digits.parse().ok())??;
        Some(match unit {
            "H" => Duration::from_secs(count * 3_600),
            "M" => Duration::from_secs(count * 60),
            "S" => Duration::from_secs(count),
            "m" => Duration::from_millis(count),
            "u" => Duration::from_micros(count),
            "n" => Duration::from_nanos(count),
            _ => return None,
        })
    });
    parsed
        .map(Some)
        .ok_or_else(|| Status::invalid_argument("grpc-timeout is not up to eight digits and a unit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            header::HeaderName::from_static(name),
            HeaderValue::from_str(value).expect("a header's value"),
        )])
    }

    #[test]
    fn a_deadline_is_digits_and_a_unit() {
        let read = |value: &str| deadline(&headers("grpc-timeout", value)).map_err(|status| status.code());
        assert_eq!(read("250m"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(read("99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3_600))));
        for wrong in ["", "1", "m", "123456789S", "-1S", "1 S", "1s"] {
            assert_eq!(read(wrong), Err(tonic::Code::InvalidArgument), "{wrong}");
        }
        assert_eq!(deadline(&HeaderMap::new()).ok().flatten(), None);
    }
}
