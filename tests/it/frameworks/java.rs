//! Frameworks in Java. A program is a list of parts, which run at once in one JVM.

use std::process::Command;

use super::{Log, Program};
use crate::support::parts;

const PROGRAMS: &[Program] = &[
    ("Caching Objects SpringData", Log::Embedded),
    ("Buckets Locks SpringData SpringSession", Log::Kafka),
];

#[test]
fn on_the_embedded_log() {
    super::run(Log::Embedded, PROGRAMS, command);
}

#[test]
fn on_kafka() {
    super::run(Log::Kafka, PROGRAMS, command);
}

/// A program of these parts.
pub fn command(program: &str) -> Command {
    let mut java = Command::new("java");
    java.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"])
        .args(["-cp", &parts::framework_classes(), "Frameworks"])
        .args(program.split(' '));
    java
}
