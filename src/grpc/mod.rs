//! The gRPC API beside RESP: package `kvs2` (`proto/kvs2.proto`), database 0. Its methods run the
//! commands GET, SET and MGET, so what holds for those commands holds for the API.
//!
//! It includes the standard health service (NOT_SERVING while loading), which needs no password:
//! probes have none, and it reveals nothing else. Server reflection needs one, as COMMAND does.

mod codec;
mod connection;
mod memory;
mod status;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::command::execute::execute_alone;
use crate::command::{Reply, Shared};
use crate::server::{self, Listener};
use connection::{Caller, Front};

#[allow(clippy::all, reason = "generated code")]
#[allow(clippy::too_many_lines, reason = "it is generated")]
mod kvs2 {
    tonic::include_proto!("kvs2");
}

use kvs2::kvs2_server::{Kvs2, Kvs2Server};
use kvs2::{
    GetReply, GetRequest, MultiGetReply, MultiGetRequest, MultiGetResponsePart, ReadStatus, SetReply, SetRequest,
    SetStatus,
};

const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kvs2.descriptors"));
const SERVICE: &str = "kvs2.Kvs2";
/// Number of keys that one MultiGet may read.
const MAX_KEYS: usize = 100_000;
/// Longest time between two looks at the status of the node.
const LOOK: Duration = Duration::from_millis(200);

/// Serves until shutdown is asked.
pub async fn serve(listener: Listener, shared: Arc<Shared>) -> Result<(), String> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|e| format!("gRPC reflection: {e}"))?;
    // What comes in and goes out is bounded by `memory`, with the settings of that time.
    let api = Kvs2Server::new(Api { shared: shared.clone() })
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX);
    let front = Front::new(Routes::new(health).add_service(reflection).add_service(api));
    tokio::select! {
        () = server::accept(listener.socket, shared.clone(), |stream, shared| {
            front.clone().welcome(stream, listener.tls.clone(), shared)
        }) => {}
        () = report_health(reporter, &shared) => {}
    }
    Ok(())
}

/// Keeps the health service up to date. When the server stops, the streams of its watchers end.
async fn report_health(mut reporter: HealthReporter, shared: &Shared) {
    while !shared.shutdown.is_asked() {
        let changed = shared.service.changed();
        let status = match shared.service.is_serving() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        reporter.set_service_status(SERVICE, status).await;
        reporter.set_service_status("", status).await;
        let _ = tokio::time::timeout(LOOK, changed).await;
    }
    for service in [SERVICE, ""] {
        reporter.set_service_status(service, ServingStatus::NotServing).await;
        reporter.clear_service_status(service).await;
    }
    std::future::pending().await
}

struct Api {
    shared: Arc<Shared>,
}

impl Api {
    async fn run(&self, caller: &Caller, args: &[&[u8]]) -> Result<Reply, Status> {
        match execute_alone(&mut caller.session(), &self.shared, args).await {
            Reply::Error(text) => Err(status::of_error(&text)),
            reply => Ok(reply),
        }
    }
}

/// The caller, and the request.
fn opened<T>(request: Request<T>) -> Result<(Caller, T), Status> {
    let caller = request.extensions().get().cloned();
    let caller = caller.ok_or_else(|| Status::internal("a request that nobody sent"))?;
    Ok((caller, request.into_inner()))
}

fn part(value: Reply) -> (i32, Bytes) {
    match value {
        Reply::Bulk(data) => (ReadStatus::Ok.into(), data),
        _ => (ReadStatus::NotFound.into(), Bytes::new()),
    }
}

/// The reply, if there is room for it.
fn bounded<T: Message>(caller: &Caller, reply: T) -> Result<Response<T>, Status> {
    caller.memory.reply(reply.encoded_len())?;
    Ok(Response::new(reply))
}

#[tonic::async_trait]
impl Kvs2 for Api {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        let (caller, GetRequest { key }) = opened(request)?;
        let (status, data) = part(self.run(&caller, &[b"get", &key]).await?);
        bounded(&caller, GetReply { status, data })
    }

    async fn set(&self, request: Request<SetRequest>) -> Result<Response<SetReply>, Status> {
        let (caller, SetRequest { key, value }) = opened(request)?;
        self.run(&caller, &[b"set", &key, &value]).await?;
        Ok(Response::new(SetReply {
            status: SetStatus::Published.into(),
        }))
    }

    async fn multi_get(&self, request: Request<MultiGetRequest>) -> Result<Response<MultiGetReply>, Status> {
        let (caller, MultiGetRequest { keys }) = opened(request)?;
        if keys.is_empty() {
            return Ok(Response::new(MultiGetReply { parts: Vec::new() }));
        }
        let mut args: Vec<&[u8]> = vec![b"mget"];
        args.extend(keys.iter().map(|key| &key[..]));
        let Reply::Array(values) = self.run(&caller, &args).await? else {
            return Err(Status::internal("MGET answered no array"));
        };
        let parts = keys.iter().zip(values).map(|(key, value)| {
            let (status, data) = part(value);
            let key = key.clone();
            MultiGetResponsePart { key, status, data }
        });
        bounded(&caller, MultiGetReply { parts: parts.collect() })
    }
}
