//! The gRPC API, by a Python client, beside RESP on the same data.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::grpc::{Call, Grpc};
use crate::support::kafka::{self, fresh_topic};
use crate::support::server::{Builder, Highwater};
use crate::support::{parts, ports, process};

fn serve_and_try(builder: Builder, too_large: Option<usize>) {
    let port = ports::free();
    let node = builder.args(&["--grpc-port", &port.to_string()]).start();
    let mut client = Command::new(parts::python());
    client
        .arg(parts::clients_dir().join("python/grpc_client.py"))
        .arg(port.to_string())
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/kvs2.proto"))
        .args(too_large.map(|bytes| bytes.to_string()));
    let output = process::run("the Python client", client, b"", Duration::from_secs(120));
    assert!(String::from_utf8_lossy(&output.stdout).contains("OK"));
    node.client().check("GET empty", "$0\r\n");
    node.client().check("DBSIZE", ":2");
}

#[test]
fn on_the_embedded_log() {
    serve_and_try(Highwater::builder(), None);
}

#[test]
fn a_write_to_a_topic_that_is_read_only_is_a_failed_precondition() {
    let (kafka, topic, port) = (kafka::shared(), fresh_topic("shown"), ports::free());
    kafka.create_topic(&topic, 1, &[("cleanup.policy", "compact")]);
    let _node = Highwater::builder()
        .kafka(kafka, &topic)
        .args(&[
            "--database",
            &format!("0={topic},readonly"),
            "--grpc-port",
            &port.to_string(),
        ])
        .start();
    let ended = Grpc::start().call(&Call::new(format!("127.0.0.1:{port}"), "Set", "key"));
    assert_eq!(ended.code, "FAILED_PRECONDITION", "{ended:?}");
    assert!(ended.details.starts_with("READONLY "), "{ended:?}");
}

#[test]
fn on_kafka() {
    let topic = fresh_topic("grpc");
    serve_and_try(Highwater::builder().kafka(kafka::shared(), &topic), Some(17 << 20));
}
