//! A producer of the topic that is not Highwater, plain and transactional. Its records bear a header, so that a test can tell them
//! from those of the nodes.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::kafka::{Kafka, SeenRecord, fresh_topic};

const SOON: Duration = Duration::from_secs(30);
const MARK: &str = "from-elsewhere";

pub struct Foreign {
    plain: BaseProducer,
    transactional: BaseProducer,
    topic: String,
}

impl Foreign {
    pub fn new(kafka: &Kafka, topic: &str) -> Foreign {
        Foreign::with(kafka.client_config(), topic)
    }

    /// One that reaches the broker in its own way.
    pub fn with(mut config: ClientConfig, topic: &str) -> Foreign {
        config.set("acks", "all").set("linger.ms", "0");
        // As Kafka's own clients do.
        config.set("partitioner", "murmur2_random");
        let plain = config.create().expect("create a producer");
        config.set("transactional.id", fresh_topic("foreign"));
        let transactional: BaseProducer = config.create().expect("create a producer");
        transactional.init_transactions(SOON).expect("begin");
        Foreign {
            plain,
            transactional,
            topic: topic.to_owned(),
        }
    }

    /// A write of one key, acknowledged when this returns; no value is a tombstone.
    pub fn write(&self, key: &str, value: Option<&str>) {
        self.send(&self.plain, key, value);
        self.plain.flush(SOON).expect("a record is acknowledged");
    }

    /// The same for several keys in a transaction.
    pub fn write_in_transaction(&self, records: &[(&str, Option<&str>)]) {
        self.begin(records);
        self.commit();
    }

    /// The first half of that: the topic has the records, and nobody knows yet whether they count.
    pub fn begin(&self, records: &[(&str, Option<&str>)]) {
        self.transactional.begin_transaction().expect("begin a transaction");
        for (key, value) in records {
            self.send(&self.transactional, key, *value);
        }
        self.transactional.flush(SOON).expect("records are acknowledged");
    }

    pub fn commit(&self) {
        self.transactional.commit_transaction(SOON).expect("commit");
    }

    fn send(&self, producer: &BaseProducer, key: &str, value: Option<&str>) {
        let headers = OwnedHeaders::new().insert(Header {
            key: MARK,
            value: Some("1"),
        });
        let mut record = BaseRecord::to(&self.topic).key(key).headers(headers);
        record.payload = value;
        producer
            .send(record)
            .map_err(|(error, _)| error)
            .expect("hand over a record");
    }
}

pub fn is_foreign(record: &SeenRecord) -> bool {
    record.headers.iter().any(|(name, _)| name == MARK)
}
