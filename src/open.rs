//! Opens what the settings name: the data directory's owner, the log, the store. The node does, and
//! so do `highwater copy`, `highwater snapshot` and `highwater restore`, with the same options.

use std::sync::Arc;

use crate::config::Config;
use crate::database::copies::databases_with_copies;
use crate::datadir::{DataDir, Owner};
use crate::log::embedded::{EmbeddedLog, EmbeddedOptions, Fsync};
use crate::log::kafka::{self, KafkaLog, Mapped};
use crate::log::{Log, TopicIdentity};
use crate::store::{self, EngineKind, Opened, Options as StoreOptions};

/// What cannot be done, why, and what to do. Shown after "highwater: cannot".
type Problem = String;

/// The parts of a node.
pub struct Parts {
    pub log: Arc<dyn Log>,
    /// The log, if it is Kafka.
    pub kafka: Option<Arc<KafkaLog>>,
    pub store: Opened,
}

/// Opens the store and the log, after making sure that the directory is theirs. If the log is
/// Kafka, it is not reached yet. Blocking.
pub fn open(config: &Config, directory: &mut DataDir) -> Result<Parts, Problem> {
    directory.check(&owner(config, None))?;
    let on_kafka = is_on_kafka(config);
    let failed = |e| format!("open the log: {e}");
    let (log, kafka): (Arc<dyn Log>, _) = if on_kafka {
        let kafka = Arc::new(KafkaLog::new(kafka_config(config, directory.node()?)?).map_err(failed)?);
        (kafka.clone(), Some(kafka))
    } else {
        let log = EmbeddedLog::open(&directory.log(), embedded_options(config)).map_err(failed)?;
        directory.claim(owner(config, log.identity(0)))?;
        (log, None)
    };
    let store = open_store(config, directory)?;
    Ok(Parts { log, kafka, store })
}

/// Opens the store alone.
pub fn open_store(config: &Config, directory: &DataDir) -> Result<Opened, Problem> {
    let engine = match &*config.store() {
        "fjall" => EngineKind::Fjall,
        _ => EngineKind::Sled,
    };
    let options = StoreOptions {
        cache_bytes: config.store_cache(),
        databases: databases_with_copies(config.databases()),
        // Others that write to Kafka need tombstones to learn what was flushed. The embedded log
        // has no others.
        keeps_hidden: is_on_kafka(config),
    };
    store::open(engine, &directory.store(), &options).map_err(|e| {
        let place = directory.store();
        format!(
            "open the local store: {e}; see to {} (it holds nothing that the log does not)",
            place.display()
        )
    })
}

fn is_on_kafka(config: &Config) -> bool {
    !config.bootstrap_servers().is_empty()
}

/// The owner of the data directory, as far as the log says.
pub fn owner(config: &Config, identity: Option<TopicIdentity>) -> Owner {
    let id = identity.map(|topic| topic.id).unwrap_or_default();
    match is_on_kafka(config) {
        // `cluster/topic id`: a topic that was recreated under its name costs only a rebuild.
        true => Owner::Kafka {
            cluster: id.split('/').next().unwrap_or_default().into(),
            topic: config.topic().to_string(),
        },
        // `log id.generation`
        false => Owner::Embedded {
            id: id.split('.').next().unwrap_or_default().into(),
        },
    }
}

pub fn embedded_options(config: &Config) -> EmbeddedOptions {
    EmbeddedOptions {
        fsync: match &*config.fsync() {
            "no" => Fsync::No,
            "everysec" => Fsync::EverySecond,
            _ => Fsync::Always,
        },
        databases: config.databases(),
        segment_bytes: config.segment_bytes(),
        ..EmbeddedOptions::default()
    }
}

pub fn kafka_config(config: &Config, node: String) -> Result<kafka::Config, Problem> {
    let mapped = config.database_topics().into_iter();
    Ok(kafka::Config {
        bootstrap_servers: config.bootstrap_servers().to_string(),
        topic: config.topic().to_string(),
        mapped: mapped
            .map(|(n, m)| {
                (
                    n,
                    Mapped {
                        topic: m.topic,
                        read_only: m.read_only,
                    },
                )
            })
            .collect(),
        databases: config.databases(),
        partitions: config.partitions(),
        replication_factor: config.replication_factor(),
        properties: config.kafka_properties(),
        partitioner: config
            .partitioner()
            .parse()
            .map_err(|e| format!("use the partitioner: {e}"))?,
        write_timeout: config.write_timeout(),
        startup_timeout: config.startup_timeout(),
        node,
    })
}
