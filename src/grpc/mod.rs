//! The gRPC API beside RESP, on the same service layer: package `kvs2` (`proto/kvs2.proto`), database 0.
//! With the standard health service (NOT_SERVING while loading) and server reflection.

use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;

use crate::command::Shared;
use crate::command::execute::Before;
use crate::database::transaction::{Keys, Transaction, View};
use crate::database::write::Outstanding;
use crate::database::{Fault, Service, Wait};
use crate::log::ProduceError;

#[allow(clippy::all, reason = "generated code")]
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
const DATABASE: u16 = 0;
/// Keys that one MultiGet may ask for.
const MAX_KEYS: usize = 100_000;

/// Serves until shutdown is asked.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>) -> Result<(), String> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|e| format!("gRPC reflection: {e}"))?;
    let limit = shared.config.proto_max_bulk_len();
    let api = Kvs2Server::new(Api { shared: shared.clone() })
        .max_decoding_message_size(limit)
        .max_encoding_message_size(usize::MAX);
    let watch = shared.clone();
    let reporting = tokio::spawn(async move {
        loop {
            let changed = watch.service.changed();
            let status = if watch.service.is_serving() {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            reporter.set_service_status(SERVICE, status).await;
            reporter.set_service_status("", status).await;
            let _ = tokio::time::timeout(std::time::Duration::from_millis(200), changed).await;
        }
    });
    let stop = shared.clone();
    let served = tonic::transport::Server::builder()
        .add_service(health)
        .add_service(reflection)
        .add_service(api)
        .serve_with_incoming_shutdown(
            TcpListenerStream::new(listener),
            async move { stop.shutdown.asked().await },
        )
        .await
        .map_err(|e| format!("gRPC server: {e}"));
    reporting.abort();
    served
}

struct Api {
    shared: Arc<Shared>,
}

impl Api {
    fn service(&self) -> Result<&Arc<Service>, Status> {
        let service = &self.shared.service;
        if service.is_serving() {
            Ok(service)
        } else {
            Err(Status::unavailable(format!("not serving: {:?}", service.status())))
        }
    }

    /// Computes `f`, waiting for what it needs, and for the log to have what it wrote.
    async fn transact<T>(
        &self,
        key: &[u8],
        view: View,
        f: impl Fn(&mut Transaction<'_>) -> Result<T, Fault>,
    ) -> Result<T, Status> {
        let owner = Arc::new(Outstanding::default());
        loop {
            let service = self.service()?;
            match service.transact(&owner, Keys::Some(&[key]), view, &f) {
                Ok(computed) => {
                    service.counters.add(computed.lookups);
                    let Some(write) = computed.write else {
                        return Ok(computed.value);
                    };
                    match write.finished().await {
                        Ok(()) => return Ok(computed.value),
                        Err(ProduceError::Stale { after }) => {
                            if let Some((at, position)) = *after {
                                service.applied_to(at, position).await;
                            }
                        }
                        Err(error @ ProduceError::NotWritten(_)) => return Err(Status::unavailable(error.to_string())),
                        Err(error @ ProduceError::Uncertain(_)) => return Err(Status::unknown(error.to_string())),
                    }
                }
                Err(Fault::Wait(wait)) => Before::Wait(wait)
                    .happened(&owner, &self.shared)
                    .await
                    .map_err(refused)?,
                Err(fault) => return Err(refused(fault)),
            }
        }
    }
}

fn refused(fault: Fault) -> Status {
    match fault {
        Fault::Error(text) => Status::unavailable(String::from_utf8_lossy(&text)),
        Fault::Wait(Wait::Loading) => Status::unavailable("not serving: the local store is being filled"),
        Fault::Wait(_) => Status::unavailable("NOTWRITTEN the command could not be computed"),
    }
}

fn part(value: Option<Bytes>) -> (i32, Bytes) {
    match value {
        Some(data) => (ReadStatus::Ok.into(), data),
        None => (ReadStatus::NotFound.into(), Bytes::new()),
    }
}

#[tonic::async_trait]
impl Kvs2 for Api {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        let key = request.into_inner().key;
        let read = self
            .service()?
            .transact(&Arc::default(), Keys::Unlocked, View::Committed, |t| {
                t.get_string(DATABASE, &key)
            });
        let (status, data) = part(read.map_err(refused)?.value);
        Ok(Response::new(GetReply { status, data }))
    }

    async fn set(&self, request: Request<SetRequest>) -> Result<Response<SetReply>, Status> {
        let SetRequest { key, value } = request.into_inner();
        self.transact(&key, View::Update, |t| {
            t.set(DATABASE, &key, value.clone(), None);
            Ok(())
        })
        .await?;
        Ok(Response::new(SetReply {
            status: SetStatus::Published.into(),
        }))
    }

    async fn multi_get(&self, request: Request<MultiGetRequest>) -> Result<Response<MultiGetReply>, Status> {
        let keys = request.into_inner().keys;
        if keys.len() > MAX_KEYS {
            return Err(Status::invalid_argument(format!("at most {MAX_KEYS} keys at once")));
        }
        let read = self
            .service()?
            .transact(&Arc::default(), Keys::Snapshot, View::Committed, |t| {
                let mut parts = Vec::with_capacity(keys.len());
                for key in &keys {
                    let (status, data) = part(t.get_string(DATABASE, key)?);
                    parts.push(MultiGetResponsePart {
                        key: key.clone(),
                        status,
                        data,
                    });
                }
                Ok(parts)
            });
        Ok(Response::new(MultiGetReply {
            parts: read.map_err(refused)?.value,
        }))
    }
}
