//! The log on Apache Kafka, by rdkafka.
