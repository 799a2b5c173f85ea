//! A real Kafka: one broker in KRaft combined mode, from the jars of Apache Kafka. One is shared
//! by all tests of this process; a test that stops, freezes or kills it starts its own.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tempfile::TempDir;

use super::proxy::Proxy;
use super::{parts, ports, process, temp, wait_for};

/// Key of the mark that nodes write behind aborted records (docs/topic-format.md).
pub const PASSED_KEY: &[u8] = b"\0highwater:passed";
const START: Duration = Duration::from_secs(90);
const TOOL: Duration = Duration::from_secs(60);

/// The broker that all tests of this process share. It is up to each test to take a topic of its
/// own (`fresh_topic`).
pub fn shared() -> &'static Kafka {
    static SHARED: OnceLock<Kafka> = OnceLock::new();
    SHARED.get_or_init(Kafka::start)
}

/// A topic name that no other test uses.
pub fn fresh_topic(hint: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{hint}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub struct Kafka {
    pub bootstrap: String,
    /// What the broker's listener speaks: `PLAINTEXT` or `SASL_SSL`.
    protocol: &'static str,
    /// What its clients need for that.
    client: Vec<(String, String)>,
    /// Of its cluster.
    brokers: usize,
    dir: TempDir,
    broker: Mutex<Option<Child>>,
}

/// Brokers that are one cluster, each of them a controller too. Topics are kept by all of them.
pub struct Cluster {
    /// Of all.
    pub bootstrap: String,
    /// By their ids, the first is 1.
    pub brokers: Vec<Kafka>,
}

/// A record as any consumer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRecord {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: Option<i64>,
    pub key: Option<Vec<u8>>,
    /// `None` is a tombstone.
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Kafka {
    /// Starts a broker of the caller's own, stopped when dropped.
    pub fn start() -> Kafka {
        Kafka::start_with(&[])
    }

    /// The same with further lines for `server.properties`.
    pub fn start_with(properties: &[&str]) -> Kafka {
        Kafka::start_on("PLAINTEXT", &[], properties)
    }

    /// The same with a listener of another protocol, and what this harness needs as its client.
    pub fn start_on(protocol: &'static str, client: &[(&str, &str)], properties: &[&str]) -> Kafka {
        let port = ports::free();
        let id = format!("{port:022}");
        let kafka = Kafka::prepare((port, ports::free()), &id, 1, protocol, client, properties);
        kafka.launch();
        kafka.wait_until_ready();
        kafka
    }

    /// Starts a broker that its clients reach only through a proxy.
    pub fn start_behind_proxy() -> (Kafka, Proxy) {
        let (port, internal, controller) = (ports::free(), ports::free(), ports::free());
        let proxy = Proxy::start(port, internal);
        let address = format!("127.0.0.1:{}", proxy.port);
        let properties = [
            "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,INTERNAL:PLAINTEXT",
            "inter.broker.listener.name=INTERNAL",
            &format!(
                "listeners=PLAINTEXT://127.0.0.1:{port},INTERNAL://127.0.0.1:{internal},CONTROLLER://127.0.0.1:{controller}"
            ),
            &format!("advertised.listeners=PLAINTEXT://{address},INTERNAL://127.0.0.1:{internal}"),
        ];
        let id = format!("{port:022}");
        let mut kafka = Kafka::prepare((port, controller), &id, 1, "PLAINTEXT", &[], &properties);
        kafka.bootstrap = address;
        kafka.launch();
        kafka.wait_until_ready();
        (kafka, proxy)
    }

    /// Starts several brokers as one cluster.
    pub fn cluster(size: usize) -> Cluster {
        let ports: Vec<(u16, u16)> = (0..size).map(|_| (ports::free(), ports::free())).collect();
        let listed = |all: &mut dyn Iterator<Item = String>| all.collect::<Vec<_>>().join(",");
        let voters = listed(
            &mut (1..)
                .zip(&ports)
                .map(|(id, (_, port))| format!("{id}@127.0.0.1:{port}")),
        );
        let cluster = format!("{:022}", ports[0].0);
        let prepare = |id: usize| {
            let properties = [
                format!("node.id={id}"),
                format!("controller.quorum.voters={voters}"),
                format!("offsets.topic.replication.factor={size}"),
                format!("transaction.state.log.replication.factor={size}"),
                "transaction.state.log.min.isr=2".to_owned(),
                "replica.lag.time.max.ms=5000".to_owned(),
                "controller.quorum.election.timeout.ms=1000".to_owned(),
                "controller.quorum.fetch.timeout.ms=2000".to_owned(),
            ];
            let properties: Vec<&str> = properties.iter().map(String::as_str).collect();
            Kafka::prepare(ports[id - 1], &cluster, size, "PLAINTEXT", &[], &properties)
        };
        let brokers: Vec<Kafka> = std::thread::scope(|scope| {
            let prepare = &prepare;
            let all: Vec<_> = (1..=size).map(|id| scope.spawn(move || prepare(id))).collect();
            all.into_iter()
                .map(|one| one.join().expect("prepare a broker"))
                .collect()
        });
        brokers.iter().for_each(Kafka::launch);
        brokers.iter().for_each(Kafka::wait_until_ready);
        let bootstrap = listed(&mut brokers.iter().map(|broker| broker.bootstrap.clone()));
        Cluster { bootstrap, brokers }
    }

    /// Writes the files of a broker with these ports (its own, its controller's).
    fn prepare(
        (port, controller): (u16, u16),
        cluster: &str,
        brokers: usize,
        protocol: &'static str,
        client: &[(&str, &str)],
        properties: &[&str],
    ) -> Kafka {
        let kafka = Kafka {
            bootstrap: format!("127.0.0.1:{port}"),
            protocol,
            client: client
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
            brokers,
            dir: temp::dir("kafka"),
            broker: Mutex::new(None),
        };
        let text = kafka.properties(port, controller, properties);
        fs::write(kafka.properties_file(), text).expect("write server.properties");
        let file = kafka.properties_file().display().to_string();
        kafka.java("kafka.tools.StorageTool", &["format", "-t", cluster, "-c", &file], b"");
        kafka
    }

    /// Stops it at once, as a power cut would; it can be started again with `restart`.
    pub fn kill(&self) {
        if let Some(mut broker) = self.broker().take() {
            process::kill_group(&mut broker);
        }
    }

    /// Freezes it: connections stay open and nothing answers.
    pub fn freeze(&self) {
        process::freeze(self.broker().as_ref().expect("the broker runs"));
    }

    /// Lets a frozen broker go on.
    pub fn thaw(&self) {
        process::thaw(self.broker().as_ref().expect("the broker runs"));
    }

    /// Starts it again on the same port with the same data, killing it first if it runs.
    pub fn restart(&self) {
        self.kill();
        self.launch();
        self.wait_until_ready();
    }

    /// Creates a topic with any settings, and waits until the broker serves it.
    pub fn create_topic(&self, name: &str, partitions: i32, config: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (setting, value) in config {
            topic = topic.set(setting, value);
        }
        let created = block_on(self.admin().create_topics([&topic], &admin_options()));
        self.judged(&format!("create topic {name}"), created.map(|mut all| all.remove(0)));
        self.wait_for_topic(name, partitions);
    }

    /// A compacted topic under a name of its own.
    pub fn compacted_topic(&self, hint: &str, partitions: i32) -> String {
        let name = fresh_topic(hint);
        self.create_topic(&name, partitions, &[("cleanup.policy", "compact")]);
        name
    }

    /// A compacted topic whose old records and tombstones vanish within seconds, as long as other
    /// records keep coming (the active segment is never cleaned).
    pub fn quickly_compacted_topic(&self, hint: &str, partitions: i32) -> String {
        self.topic_compacted_all_the_time(hint, partitions, Duration::from_secs(1))
    }

    /// As [`Kafka::quickly_compacted_topic`], but tombstones are kept for this long: a node that
    /// stands still for less misses none.
    pub fn topic_compacted_all_the_time(&self, hint: &str, partitions: i32, tombstones: Duration) -> String {
        let name = fresh_topic(hint);
        let retention = tombstones.as_millis().to_string();
        let config = [
            ("cleanup.policy", "compact"),
            ("segment.ms", "1000"),
            ("min.cleanable.dirty.ratio", "0.001"),
            ("max.compaction.lag.ms", "2000"),
            ("delete.retention.ms", &retention),
        ];
        self.create_topic(&name, partitions, &config);
        name
    }

    pub fn delete_topic(&self, name: &str) {
        let deleted = block_on(self.admin().delete_topics(&[name], &admin_options()));
        self.judged(&format!("delete topic {name}"), deleted.map(|mut all| all.remove(0)));
        wait_for(&format!("topic {name} to vanish"), TOOL, || {
            (!self.topic_exists(name)).then_some(())
        });
    }

    pub fn add_partitions(&self, name: &str, total: usize) {
        let grown = block_on(
            self.admin()
                .create_partitions(&[NewPartitions::new(name, total)], &admin_options()),
        );
        self.judged(&format!("add partitions to {name}"), grown.map(|mut all| all.remove(0)));
        self.wait_for_topic(name, total as i32);
    }

    /// Replaces the settings of a topic.
    pub fn set_topic_config(&self, name: &str, config: &[(&str, &str)]) {
        let mut alter = AlterConfig::new(ResourceSpecifier::Topic(name));
        for (setting, value) in config {
            alter = alter.set(setting, value);
        }
        let altered = block_on(self.admin().alter_configs([&alter], &admin_options()));
        if let Err((_, code)) = altered.expect("ask the broker").remove(0) {
            panic!("set {config:?} of topic {name}: {code}");
        }
    }

    /// Removes the records of partition 0 below `offset`. (Kafka does so only with topics that are not compacted.)
    pub fn delete_records(&self, topic: &str, offset: u64) {
        self.set_topic_config(topic, &[("cleanup.policy", "delete")]);
        let mut below = TopicPartitionList::new();
        below
            .add_partition_offset(topic, 0, Offset::Offset(offset as i64))
            .expect("name a partition");
        // The broker refuses it for as long as it has not heard of the policy.
        wait_for("records are removed", TOOL, || {
            let removed = block_on(self.admin().delete_records(&below, &admin_options()));
            let removed = removed.expect("ask the broker");
            removed.elements_for_topic(topic)[0].error().is_ok().then_some(())
        });
        self.set_topic_config(topic, &[("cleanup.policy", "compact")]);
        wait_for("the broker to have heard of it", TOOL, || {
            (self.topic_config(topic, "cleanup.policy").as_deref() == Some("compact")).then_some(())
        });
    }

    /// Cuts the records of partition 0 from `offset` on out of the stopped broker's files, as a disk does that loses what was not
    /// synced. All of them are in the first segment.
    pub fn lose_records(&self, topic: &str, offset: u64) {
        assert!(self.broker().is_none(), "the broker has to be stopped");
        let partition = self.dir.path().join("data").join(format!("{topic}-0"));
        let log = partition.join(format!("{:020}.log", 0));
        let bytes = fs::read(&log).expect("read a segment");
        let number = |at: usize, size: usize| -> u64 {
            let digits = bytes.get(at..at + size).expect("a whole batch");
            digits.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        let mut at = 0;
        // A batch begins with its first offset (8 bytes) and the length of the rest (4).
        while at < bytes.len() && number(at, 8) < offset {
            at += 12 + number(at + 8, 4) as usize;
        }
        assert!(at < bytes.len(), "there is nothing to lose");
        let file = File::options().write(true).open(&log).expect("open a segment");
        file.set_len(at as u64).expect("cut a segment");
        for entry in fs::read_dir(&partition).expect("list a partition").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if [".index", ".timeindex", ".snapshot"]
                .iter()
                .any(|end| name.ends_with(end))
            {
                fs::remove_file(entry.path()).expect("remove what is made from the segment");
            }
        }
    }

    /// Bytes that the broker's files of partition 0 take.
    pub fn disk_usage(&self, topic: &str) -> u64 {
        temp::disk_usage(&self.dir.path().join("data").join(format!("{topic}-0")))
    }

    /// The settings of a topic that differ from the broker's defaults or were given at creation.
    pub fn topic_config(&self, name: &str, setting: &str) -> Option<String> {
        let asked = [ResourceSpecifier::Topic(name)];
        let mut described = block_on(self.admin().describe_configs(&asked, &admin_options())).expect("ask the broker");
        let described = described
            .remove(0)
            .unwrap_or_else(|code| panic!("settings of {name}: {code}"));
        described.get(setting).and_then(|entry| entry.value.clone())
    }

    pub fn topic_exists(&self, name: &str) -> bool {
        self.partitions(name).is_some()
    }

    /// Every record that is in the topic now, in the order of partitions and offsets, but for the
    /// marks behind aborted records. `isolation` is `read_committed` or `read_uncommitted`.
    pub fn records(&self, topic: &str, isolation: &str) -> Vec<SeenRecord> {
        let mut all = self.records_with_marks(topic, isolation);
        all.retain(|record| record.key.as_deref() != Some(PASSED_KEY));
        all
    }

    /// The same with these marks.
    pub fn records_with_marks(&self, topic: &str, isolation: &str) -> Vec<SeenRecord> {
        let consumer: BaseConsumer = self
            .client_config()
            .set("group.id", "seen-by-tests")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", isolation)
            .set("auto.offset.reset", "error")
            .create()
            .expect("create a consumer");
        let partitions = self.partitions(topic).unwrap_or_else(|| panic!("no topic {topic}"));
        let mut all = Vec::new();
        for partition in 0..partitions {
            read_partition(&consumer, topic, partition, &mut all);
        }
        all
    }

    /// Runs kcat against this broker: `kcat(&["-P", "-t", "x", "-K:"], b"key:value")`.
    pub fn kcat(&self, args: &[&str], stdin: &[u8]) -> Output {
        let mut kcat = parts::kcat();
        kcat.arg("-b").arg(&self.bootstrap).args(args);
        process::run("kcat", kcat, stdin, TOOL)
    }

    /// Runs one of Kafka's own Java programs, for example
    /// `java("org.apache.kafka.tools.TopicCommand", &["--bootstrap-server", &kafka.bootstrap, "--list"], b"")`.
    pub fn java(&self, class: &str, args: &[&str], stdin: &[u8]) -> Output {
        let mut java = java("-Xmx128m");
        java.arg("-XX:TieredStopAtLevel=1")
            .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
            .arg(class)
            .args(args);
        process::run(class, java, stdin, TOOL)
    }

    /// The start of a client configuration for this broker.
    pub fn client_config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        for (name, value) in &self.client {
            config.set(name, value);
        }
        config
    }

    /// Where its controller listens, which is no place for a client.
    pub fn controller(&self) -> String {
        let properties = fs::read_to_string(self.properties_file()).expect("read server.properties");
        let voters = properties
            .lines()
            .find_map(|line| line.strip_prefix("controller.quorum.voters=1@"));
        voters.expect("a controller").to_owned()
    }

    /// The last lines that the broker logged.
    pub fn log_tail(&self) -> String {
        process::tail(&self.log_file(), 60)
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client_config().create().expect("create an admin client")
    }

    fn judged(
        &self,
        what: &str,
        outcome: Result<Result<String, (String, rdkafka::types::RDKafkaErrorCode)>, rdkafka::error::KafkaError>,
    ) {
        match outcome {
            Ok(Ok(_)) => {}
            Ok(Err((_, code))) => panic!("{what}: {code}"),
            Err(error) => panic!("{what}: {error}\n{}", self.log_tail()),
        }
    }

    fn wait_for_topic(&self, name: &str, partitions: i32) {
        wait_for(&format!("topic {name}"), TOOL, || {
            (self.partitions(name) == Some(partitions)).then_some(())
        });
    }

    /// How many partitions the topic has, each with a leader; `None` when it is not there (yet).
    fn partitions(&self, name: &str) -> Option<i32> {
        let client = self.admin();
        let metadata = client.inner().fetch_metadata(Some(name), Duration::from_secs(5)).ok()?;
        let topic = metadata.topics().iter().find(|topic| topic.name() == name)?;
        let served = topic
            .partitions()
            .iter()
            .all(|partition| partition.error().is_none() && partition.leader() >= 0);
        let known = topic.error().is_none() && served && !topic.partitions().is_empty();
        known.then_some(topic.partitions().len() as i32)
    }

    fn broker(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.broker.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn properties_file(&self) -> PathBuf {
        self.dir.path().join("server.properties")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("broker.log")
    }

    fn launch(&self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("open the broker's log");
        let mut java = java(if self.brokers > 1 { "-Xmx256m" } else { "-Xmx512m" });
        java.args(["-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
            .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
            .arg("kafka.Kafka")
            .arg(self.properties_file())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate a descriptor"))
            .stderr(log);
        *self.broker() = Some(process::spawn(java).expect("start Java (needs Java 17)"));
    }

    fn wait_until_ready(&self) {
        let end = Instant::now() + START;
        let client = self.admin();
        loop {
            let exited = self
                .broker()
                .as_mut()
                .expect("just started")
                .try_wait()
                .expect("wait for a child");
            assert!(exited.is_none(), "the Kafka broker ended: {}", self.log_tail());
            let metadata = client.inner().fetch_metadata(None, Duration::from_millis(500));
            if metadata.is_ok_and(|metadata| metadata.brokers().len() == self.brokers) {
                return;
            }
            assert!(
                Instant::now() < end,
                "no Kafka broker within {START:?}: {}",
                self.log_tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn properties(&self, port: u16, controller: u16, further: &[&str]) -> String {
        let data = self.dir.path().join("data");
        let data = data.display();
        let further = further.join("\n");
        let protocol = self.protocol;
        format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners={protocol}://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners={protocol}://127.0.0.1:{port}\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,{protocol}:{protocol}\n\
             inter.broker.listener.name={protocol}\n\
             controller.listener.names=CONTROLLER\n\
             log.dirs={data}\n\
             auto.create.topics.enable=false\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=1\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=4\n\
             transaction.abort.timed.out.transaction.cleanup.interval.ms=1000\n\
             group.initial.rebalance.delay.ms=0\n\
             broker.session.timeout.ms=3000\n\
             broker.heartbeat.interval.ms=500\n\
             log.cleaner.backoff.ms=500\n\
             log.cleaner.dedupe.buffer.size=16777216\n\
             log.initial.task.delay.ms=500\n\
             log.retention.check.interval.ms=1000\n\
             num.network.threads=2\n\
             num.io.threads=4\n\
             {further}\n"
        )
    }
}

impl Cluster {
    /// The broker that leads partition 0 of the topic.
    pub fn leader(&self, topic: &str) -> &Kafka {
        let client = self.brokers[0].admin();
        let leader = wait_for("a leader", TOOL, || {
            let metadata = client
                .inner()
                .fetch_metadata(Some(topic), Duration::from_secs(5))
                .ok()?;
            let partition = metadata.topics().first()?.partitions().first()?;
            usize::try_from(partition.leader()).ok().filter(|id| *id > 0)
        });
        &self.brokers[leader - 1]
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- end of the Kafka broker's log ----\n{}", self.log_tail());
        }
        self.kill();
    }
}

fn java(heap: &str) -> Command {
    let mut java = Command::new("java");
    java.arg(heap).arg("-cp").arg(parts::kafka_jars().join("*"));
    java
}

fn admin_options() -> AdminOptions {
    AdminOptions::new()
        .operation_timeout(Some(TOOL))
        .request_timeout(Some(TOOL))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("create a runtime")
        .block_on(future)
}

fn read_partition(consumer: &BaseConsumer, topic: &str, partition: i32, into: &mut Vec<SeenRecord>) {
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, partition, Offset::Beginning)
        .expect("name a partition");
    consumer.assign(&from).expect("assign a partition");
    let end = Instant::now() + TOOL;
    while Instant::now() < end {
        match consumer.poll(Duration::from_millis(500)) {
            Some(Ok(record)) => into.push(seen(&record)),
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(_))) => return,
            Some(Err(error)) => panic!("read {topic}/{partition}: {error}"),
            None => {}
        }
    }
    panic!("the end of {topic}/{partition} was not reached within {TOOL:?}");
}

fn seen(record: &impl Message) -> SeenRecord {
    let headers = record.headers().map(|headers| {
        headers
            .iter()
            .map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_vec()))
            .collect()
    });
    SeenRecord {
        partition: record.partition(),
        offset: record.offset(),
        timestamp: record.timestamp().to_millis(),
        key: record.key().map(<[u8]>::to_vec),
        value: record.payload().map(<[u8]>::to_vec),
        headers: headers.unwrap_or_default(),
    }
}
