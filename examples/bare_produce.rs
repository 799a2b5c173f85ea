//! What one acknowledged record costs without Highwater: an idempotent librdkafka producer, set up as the server's own, that sends
//! one record and waits for its acknowledgement before the next. `bench/run` sets a SET beside it.
//!
//! `cargo run --release --example bare_produce -- BOOTSTRAP TOPIC SECONDS VALUE_BYTES`: prints microseconds as JSON.

use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer};

/// Passes on whether a record has arrived.
struct Acks(Sender<bool>);

impl ClientContext for Acks {}

impl ProducerContext for Acks {
    type DeliveryOpaque = ();

    fn delivery(&self, outcome: &DeliveryResult, _: ()) {
        // At the end nobody listens any more.
        let _ = self.0.send(outcome.is_ok());
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, topic, seconds, value_bytes] = &arguments[..] else {
        panic!("say BOOTSTRAP TOPIC SECONDS VALUE_BYTES");
    };
    let seconds = Duration::from_secs_f64(seconds.parse().expect("a number of seconds"));
    let value = vec![b'v'; value_bytes.parse().expect("a number of bytes")];
    let (sender, acks) = channel();
    let producer: ThreadedProducer<Acks> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "0")
        .set("socket.nagle.disable", "true")
        .create_with_context(Acks(sender))
        .expect("a producer");
    let send = || {
        let start = Instant::now();
        let record = BaseRecord::to(topic).key("key:000000000000").payload(&value);
        producer.send(record).map_err(|(error, _)| error).expect("queued");
        assert!(acks.recv().expect("an answer"), "not acknowledged");
        start.elapsed()
    };
    // Finding the broker and the topic's leader is not what is measured.
    send();
    let (start, mut latencies) = (Instant::now(), Vec::new());
    while start.elapsed() < seconds || latencies.is_empty() {
        latencies.push(send());
    }
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1e3;
    println!(
        r#"{{"p50": {:.1}, "p99": {:.1}, "p999": {:.1}, "records": {}}}"#,
        at(0.5),
        at(0.99),
        at(0.999),
        latencies.len()
    );
}
