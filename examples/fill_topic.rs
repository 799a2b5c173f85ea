//! Fills a topic as fast as librdkafka can: for measuring how fast a node takes it in.
//!
//! `cargo run --release --example fill_topic -- BOOTSTRAP TOPIC RECORDS KEYS VALUE_BYTES`. Each key comes at least once if there are as
//! many records; a value begins with the 12 digits of its key, as those of `bench/run` do. Prints what it did as JSON.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

#[derive(Default)]
struct Failures(Arc<AtomicU64>);

impl ClientContext for Failures {}

impl ProducerContext for Failures {
    type DeliveryOpaque = ();

    fn delivery(&self, outcome: &DeliveryResult, _: ()) {
        if outcome.is_err() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [bootstrap, topic, numbers @ ..] = &arguments[..] else {
        panic!("say BOOTSTRAP TOPIC RECORDS KEYS VALUE_BYTES");
    };
    let numbers: Vec<u64> = numbers.iter().map(|number| number.parse().expect("a number")).collect();
    let [records, keys, value_bytes] = numbers[..] else {
        panic!("say RECORDS KEYS VALUE_BYTES");
    };
    let failures = Failures::default();
    let failed = Arc::clone(&failures.0);
    let producer: BaseProducer<Failures> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "5")
        .set("batch.size", "1000000")
        .set("queue.buffering.max.messages", "500000")
        // As all producers of a topic with more than one partition must.
        .set("partitioner", "murmur2_random")
        .create_with_context(failures)
        .expect("a producer");
    let start = Instant::now();
    for number in 0..records {
        send(&producer, topic, spread(number, keys), value_bytes as usize);
    }
    producer.flush(Duration::from_secs(120)).expect("flushed in time");
    let (failed, seconds) = (failed.load(Ordering::Relaxed), start.elapsed().as_secs_f64());
    assert_eq!(failed, 0, "records were not acknowledged");
    println!(
        r#"{{"records": {records}, "seconds": {seconds:.2}, "per_second": {:.0}}}"#,
        records as f64 / seconds
    );
}

/// Goes through all keys, neighbours far apart, and then again.
fn spread(number: u64, keys: u64) -> u64 {
    const STEP: u64 = 1_000_000_007;
    // A prime: every key comes once, unless their number is a multiple of it.
    ((u128::from(number) * u128::from(STEP)) % u128::from(keys)) as u64
}

fn send(producer: &BaseProducer<Failures>, topic: &str, key: u64, value_bytes: usize) {
    let name = format!("key:{key:012}");
    let mut value = name.as_bytes()[4..].to_vec();
    value.resize(value_bytes, b'v');
    loop {
        let record = BaseRecord::to(topic).key(&name).payload(&value);
        match producer.send(record) {
            Ok(()) => return,
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                producer.poll(Duration::from_millis(10));
            }
            Err((error, _)) => panic!("produce: {error}"),
        }
    }
}
