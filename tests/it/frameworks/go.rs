//! Frameworks in Go. A program is a list of parts, which run at once in one process.

use std::process::Command;

use super::{Log, Program};
use crate::support::parts;

const PROGRAMS: &[Program] = &[
    ("groups schedules", Log::Embedded),
    ("locks queues", Log::Kafka),
    ("tasks", Log::Kafka),
];

#[test]
fn on_the_embedded_log() {
    super::run(Log::Embedded, PROGRAMS, command);
}

#[test]
fn on_kafka() {
    super::run(Log::Kafka, PROGRAMS, command);
}

fn command(program: &str) -> Command {
    let mut go = Command::new(parts::framework_go());
    go.args(program.split(' '));
    go
}
