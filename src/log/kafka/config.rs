//! The settings of the Kafka log, and librdkafka's configuration made from them. This module owns
//! which properties a user may set, and knows nothing of what the clients do.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;

use super::gate;
use super::partitioner::Partitioner;
use super::topics::BATCH_BYTES;

/// Records under way in the producer: the bound on its memory.
pub(super) const MAX_QUEUED_RECORDS: usize = 250_000;
const MAX_QUEUED_KIBIBYTES: usize = 128 << 10;
/// Bytes that a follower fetches ahead.
const PREFETCH_KIBIBYTES: usize = 32 << 10;
/// librdkafka writes an offset into every message of a batch by counting up from the batch's
/// offset. It takes -1001 for that when the broker gave none (a retry that the log already had). In
/// batches of at most 1000 records such a made-up offset is always negative, so it is never taken
/// for a real one.
const MAX_BATCH_RECORDS: usize = 1000;

/// librdkafka's bound on what it receives, and on what zstd unpacks a batch to.
pub(super) const RECEIVE_BYTES: &str = "receive.message.max.bytes";
pub(super) const LARGEST_RECEIVE_BYTES: usize = i32::MAX as usize;

#[derive(Clone)]
pub struct Config {
    /// `host:port,host:port`.
    pub bootstrap_servers: String,
    /// Database 0; database N is `topic.dbN`.
    pub topic: String,
    /// Databases that are other topics.
    pub mapped: BTreeMap<u16, Mapped>,
    pub databases: u16,
    /// The number of partitions of topics that are created.
    pub partitions: u32,
    /// The replication factor of topics that are created; `None` is the broker's default.
    pub replication_factor: Option<u16>,
    /// librdkafka properties of the user (`-X`), for all clients.
    pub properties: Vec<(String, String)>,
    pub partitioner: Partitioner,
    /// A write is answered within this time, one way or the other.
    pub write_timeout: Duration,
    /// How long a start may take to reach the broker.
    pub startup_timeout: Duration,
    /// Names this node in its transactional ids. It is the same after a restart, and no other
    /// node's.
    pub node: String,
}

/// Which records a follower is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isolation {
    /// Data: records that are not committed (yet) are not there.
    Committed,
    /// Every record up to the high watermark, also of open and of aborted transactions.
    Uncommitted,
}

/// A database that is a topic with a name of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    pub topic: String,
    pub read_only: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            bootstrap_servers: "127.0.0.1:9092".into(),
            topic: "highwater".into(),
            mapped: BTreeMap::new(),
            databases: 16,
            partitions: 1,
            replication_factor: None,
            properties: Vec::new(),
            partitioner: Partitioner::Murmur2,
            write_timeout: Duration::from_secs(5),
            startup_timeout: Duration::from_secs(30),
            node: format!("{:016x}", rand::random::<u64>()),
        }
    }
}

/// Values of properties stay out: they may be secrets.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let properties: Vec<&str> = self.properties.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Config")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("topic", &self.topic)
            .field("mapped", &self.mapped)
            .field("databases", &self.databases)
            .field("partitions", &self.partitions)
            .field("replication_factor", &self.replication_factor)
            .field("properties", &properties)
            .field("partitioner", &self.partitioner)
            .field("write_timeout", &self.write_timeout)
            .field("startup_timeout", &self.startup_timeout)
            .field("node", &self.node)
            .finish()
    }
}

/// Sizes that the producer takes from the topics it writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// The largest message of any topic.
    pub message: usize,
    /// A batch has to fit the topic with the smallest messages.
    pub batch: usize,
}

impl Config {
    /// The topic of each database, in order.
    pub(super) fn topics(&self) -> Vec<Mapped> {
        let named = |database: u16| match database {
            0 => self.topic.clone(),
            other => format!("{}.db{other}", self.topic),
        };
        let topic = |database| match self.mapped.get(&database) {
            Some(mapped) => mapped.clone(),
            None => Mapped {
                topic: named(database),
                read_only: false,
            },
        };
        (0..self.databases).map(topic).collect()
    }

    /// The topic of messages between nodes.
    pub(super) fn messages_topic(&self) -> String {
        format!("{}.pubsub", self.topic)
    }

    /// What is wrong, for a person to mend.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.databases == 0 {
            return Err("there must be at least one database".into());
        }
        if let Some(database) = self.mapped.keys().find(|database| **database >= self.databases) {
            let last = self.databases - 1;
            return Err(format!(
                "database {database} is mapped to a topic, but the last database is {last}"
            ));
        }
        let mut taken = BTreeMap::new();
        for (database, Mapped { topic, .. }) in self.topics().into_iter().enumerate() {
            check_topic_name(&topic)?;
            if topic == self.messages_topic() {
                return Err(format!(
                    "database {database} cannot be topic {topic}: it carries messages (PUBLISH)"
                ));
            }
            if let Some(other) = taken.insert(topic.clone(), database) {
                return Err(format!("databases {other} and {database} are both the topic {topic}"));
            }
        }
        if self.partitions == 0 || self.replication_factor == Some(0) {
            return Err("a topic has at least one partition and one replica".into());
        }
        if self.write_timeout < Duration::from_secs(1) {
            return Err("the write timeout is at least one second".into());
        }
        self.properties
            .iter()
            .try_for_each(|(name, value)| check_property(name, value))
    }

    /// For the producer.
    pub(super) fn producer(&self, sizes: Sizes) -> ClientConfig {
        let mut config = self.common();
        config
            .set("enable.idempotence", "true")
            .set("acks", "all")
            // Records that come while a request is under way wait for the next request and so make
            // a batch anyway. Any value above 0 is a whole millisecond in librdkafka, five times
            // the way to the broker and back.
            .set("linger.ms", "0")
            .set("queue.buffering.max.messages", MAX_QUEUED_RECORDS.to_string())
            // One record has to fit, however large it is.
            .set(
                "queue.buffering.max.kbytes",
                MAX_QUEUED_KIBIBYTES.max(sizes.message / 1024 + 1024).to_string(),
            )
            .set("retry.backoff.ms", "50");
        self.add_users(&mut config);
        config
            .set("message.timeout.ms", self.message_timeout().as_millis().to_string())
            .set(
                "message.max.bytes",
                sizes.message.clamp(1000, 1_000_000_000).to_string(),
            )
            .set("batch.size", sizes.batch.to_string())
            .set("batch.num.messages", MAX_BATCH_RECORDS.to_string());
        config
    }

    /// For a producer of the transaction lane. A transaction that is left open (its node was
    /// killed, or is stalled) holds the other nodes up until it times out, so the time is as short
    /// as a write may take.
    pub(super) fn transactional_producer(&self, sizes: Sizes, id: &str) -> ClientConfig {
        let mut config = self.producer(sizes);
        config
            .set("transactional.id", id)
            .set("transaction.timeout.ms", self.write_timeout.as_millis().to_string());
        config
    }

    /// librdkafka looks for messages that are too old once a second, so a timeout is reported up to
    /// a second late. Messages may also have waited before librdkafka had them.
    fn message_timeout(&self) -> Duration {
        let early = Duration::from_secs(1) + gate::PATIENCE * 2;
        self.write_timeout - early.min(self.write_timeout / 2)
    }

    /// Bounds of what waits to be handed to the producer, besides what the producer has.
    pub(super) fn gate(&self) -> gate::Bounds {
        gate::Bounds {
            records: MAX_QUEUED_RECORDS,
            bytes: MAX_QUEUED_KIBIBYTES << 10,
            batch_records: MAX_BATCH_RECORDS,
            batch_bytes: BATCH_BYTES,
        }
    }

    /// For a follower. The group is only a name that librdkafka demands: nothing joins it or
    /// commits to it.
    pub(super) fn follower(&self, isolation: Isolation, receive_bytes: usize) -> ClientConfig {
        let mut config = self.common();
        config
            .set("fetch.queue.backoff.ms", "5")
            // This is how late an end is reported after records of aborted transactions, which are
            // not reported. A batch that lost to such a transaction waits for it.
            .set("fetch.wait.max.ms", "100")
            .set("fetch.error.backoff.ms", "100")
            // librdkafka fetches no less at once, and demands that what it receives may be this
            // large.
            .set(
                "queued.max.messages.kbytes",
                PREFETCH_KIBIBYTES.min(receive_bytes.max(2048) / 1024 - 1).to_string(),
            )
            .set(RECEIVE_BYTES, receive_bytes.to_string());
        self.add_users(&mut config);
        config
            .set("group.id", "highwater-follower")
            // Nobody waits for this consumer, however long its caller takes.
            .set("max.poll.interval.ms", "86400000")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set(
                "isolation.level",
                match isolation {
                    Isolation::Committed => "read_committed",
                    Isolation::Uncommitted => "read_uncommitted",
                },
            )
            .set("enable.partition.eof", "true")
            .set("check.crcs", "true");
        config
    }

    /// The bound that the user has set on what is received.
    pub(super) fn receive_bytes(&self) -> Option<usize> {
        let (_, bytes) = self.properties.iter().find(|(name, _)| name == RECEIVE_BYTES)?;
        bytes.parse().ok()
    }

    /// For questions about topics and their ends. Uncommitted, since the end that is asked for is
    /// the high watermark.
    pub(super) fn questions(&self) -> ClientConfig {
        let mut config = self.common();
        // This consumer fetches nothing. With the default the user could not set a small
        // `receive.message.max.bytes`.
        config.set("queued.max.messages.kbytes", "1");
        self.add_users(&mut config);
        config.set("isolation.level", "read_uncommitted");
        config
    }

    /// For topics that are created and for their settings.
    pub(super) fn admin(&self) -> ClientConfig {
        let mut config = self.common();
        self.add_users(&mut config);
        config
    }

    fn common(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("client.id", "highwater")
            // A deleted topic must not come back by itself, without compaction.
            .set("allow.auto.create.topics", "false")
            .set("socket.nagle.disable", "true")
            .set("socket.keepalive.enable", "true")
            .set("socket.connection.setup.timeout.ms", "10000")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000");
        let debug = self.properties.iter().any(|(name, _)| name == "debug");
        config.set_log_level(if debug {
            RDKafkaLogLevel::Debug
        } else {
            RDKafkaLogLevel::Info
        });
        config
    }

    fn add_users(&self, config: &mut ClientConfig) {
        for (name, value) in &self.properties {
            config.set(name, value);
        }
    }
}

/// Properties that a guarantee rests on, or that have a setting of their own, each with the reason.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &["bootstrap.servers", "metadata.broker.list"],
        "use --bootstrap-servers",
    ),
    (&["message.timeout.ms", "delivery.timeout.ms"], "use --write-timeout"),
    (&["partitioner", "partitioner_cb", "msg_order_cmp"], "use --partitioner"),
    (
        &[
            "acks",
            "request.required.acks",
            "enable.idempotence",
            "enable.gapless.guarantee",
            "retries",
            "message.send.max.retries",
            "max.in.flight",
            "max.in.flight.requests.per.connection",
            "queuing.strategy",
            "transactional.id",
            "transaction.timeout.ms",
            "batch.num.messages",
            "delivery.report.only.error",
            "produce.offset.report",
            "test.mock.num.brokers",
        ],
        "an acknowledged write rests on it",
    ),
    (
        &["message.max.bytes", "batch.size"],
        "it follows the topics' max.message.bytes",
    ),
    (
        &[
            "group.id",
            "group.instance.id",
            "group.protocol",
            "enable.auto.commit",
            "auto.commit.enable",
            "auto.commit.interval.ms",
            "enable.auto.offset.store",
            "offset.store.method",
            "auto.offset.reset",
            "isolation.level",
            "enable.partition.eof",
            "check.crcs",
        ],
        "every node reads all of the topic, from its own position",
    ),
    (
        &["allow.auto.create.topics"],
        "topics are created compacted or not at all",
    ),
    (
        &[
            "log.queue",
            "log_cb",
            "enabled_events",
            "opaque",
            "error_cb",
            "dr_cb",
            "dr_msg_cb",
            "stats_cb",
            "throttle_cb",
            "rebalance_cb",
            "offset_commit_cb",
            "consume_cb",
        ],
        "it is used by the program itself",
    ),
];

/// `Err` if the property is not the user's to set, or is not known to librdkafka. Its value is
/// never in the text.
fn check_property(name: &str, value: &str) -> Result<(), String> {
    let refused = REFUSED.iter().find(|(names, _)| names.contains(&name));
    if let Some((_, why)) = refused {
        return Err(format!("the Kafka property {name} cannot be set: {why}"));
    }
    let mut config = ClientConfig::new();
    config.set(name, value);
    match config.create_native_config() {
        Ok(_) => Ok(()),
        Err(error) => Err(super::context::describe_error(&error)),
    }
}

fn check_topic_name(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > 249 || name == "." || name == ".." || !name.bytes().all(allowed) {
        return Err(format!(
            "{name:?} is no name of a topic: 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'"
        ));
    }
    if name.starts_with("__") {
        return Err(format!(
            "topic {name} cannot be used: names that begin with __ are those of Kafka's own topics"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(properties: &[(&str, &str)]) -> Config {
        let owned = properties
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        Config {
            properties: owned.collect(),
            ..Config::default()
        }
    }

    #[test]
    fn databases_are_topics() {
        let prices = Mapped {
            topic: "prices".into(),
            read_only: true,
        };
        let config = Config {
            databases: 3,
            mapped: [(2, prices.clone())].into(),
            ..Config::default()
        };
        let topics = config.topics();
        assert_eq!([&topics[0].topic, &topics[1].topic], ["highwater", "highwater.db1"]);
        assert_eq!(topics[2], prices);
        assert_eq!(config.check(), Ok(()));
    }

    #[test]
    fn two_databases_cannot_be_one_topic() {
        let same = Mapped {
            topic: "highwater".into(),
            read_only: false,
        };
        let config = Config {
            mapped: [(3, same)].into(),
            ..Config::default()
        };
        assert_eq!(
            config.check(),
            Err("databases 0 and 3 are both the topic highwater".into())
        );
    }

    #[test]
    fn a_topic_name_is_checked() {
        let config = Config {
            topic: "a b".into(),
            ..Config::default()
        };
        assert!(config.check().is_err_and(|text| text.contains("\"a b\"")));
        for own in ["__transaction_state", "__consumer_offsets", "__anything"] {
            let config = Config {
                topic: own.into(),
                ..Config::default()
            };
            assert!(config.check().is_err_and(|text| text.contains("Kafka's own")));
        }
    }

    #[test]
    fn properties_that_a_guarantee_rests_on_are_refused() {
        assert_eq!(
            with(&[("compression.type", "zstd"), ("linger.ms", "2")]).check(),
            Ok(())
        );
        for (names, why) in REFUSED {
            for name in *names {
                let told = with(&[(name, "1")]).check();
                assert!(
                    told.as_ref()
                        .is_err_and(|text| text.contains(name) && text.contains(why)),
                    "{told:?}"
                );
            }
        }
    }

    #[test]
    fn a_property_that_is_none_is_told_and_no_secret_is() {
        let told = with(&[("no.such.thing", "hush")]).check().expect_err("is refused");
        assert!(told.contains("no.such.thing") && !told.contains("hush"), "{told}");
        let told = with(&[("linger.ms", "hush")]).check().expect_err("is refused");
        assert!(told.contains("linger.ms") && !told.contains("hush"), "{told}");
        let config = with(&[("sasl.password", "hush")]);
        assert!(!format!("{config:?}").contains("hush"));
    }

    #[test]
    fn a_users_property_reaches_every_client() {
        let config = with(&[("client.id", "mine"), ("linger.ms", "7")]);
        let sizes = Sizes {
            message: 1 << 20,
            batch: 1 << 20,
        };
        for client in [
            config.producer(sizes),
            config.follower(Isolation::Committed, 100_000_000),
            config.follower(Isolation::Uncommitted, 100_000_000),
            config.transactional_producer(sizes, "id"),
            config.questions(),
            config.admin(),
        ] {
            assert_eq!(client.get("client.id"), Some("mine"));
            assert_eq!(client.get("linger.ms"), Some("7"));
        }
    }
}
