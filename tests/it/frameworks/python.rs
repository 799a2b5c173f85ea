//! Frameworks in Python.

use std::process::Command;

use super::{Log, Program};
use crate::support::parts;

const PROGRAMS: &[Program] = &[
    ("django_caches", Log::Embedded),
    ("leaderboard", Log::Embedded),
    ("limiters", Log::Embedded),
    ("rq_jobs", Log::Embedded),
    ("celery_tasks", Log::Kafka),
    ("channel_layers", Log::Kafka),
    ("dogpile_regions", Log::Kafka),
    ("huey_tasks", Log::Kafka),
    ("locks", Log::Kafka),
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
    let mut python = Command::new(parts::framework_python());
    python.arg(parts::frameworks_dir().join(format!("python/{program}.py")));
    // Not into the source tree.
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    python
}
