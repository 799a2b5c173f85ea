//! The log on local disk: no Kafka needed.
