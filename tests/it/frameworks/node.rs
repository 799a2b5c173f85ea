//! Frameworks in JavaScript.

use std::process::Command;
use std::thread;
use std::time::Duration;

use super::{Log, Program};
use crate::support::server::Highwater;
use crate::support::{kafka, parts, wait_for};

const PROGRAMS: &[Program] = &[
    ("caching", Log::Embedded),
    ("limiter", Log::Embedded),
    ("bullmq", Log::Kafka),
    ("redlock", Log::Kafka),
    ("sessions", Log::Kafka),
    ("socketio", Log::Kafka),
];
/// How long a program may take until it is where a test wants it.
const SOON: Duration = Duration::from_secs(90);

#[test]
fn on_the_embedded_log() {
    super::run(Log::Embedded, PROGRAMS, command);
}

#[test]
fn on_kafka() {
    super::run(Log::Kafka, PROGRAMS, command);
}

#[test]
fn a_client_that_caches_hears_of_another_producer() {
    let (kafka, topic) = (kafka::shared(), kafka::fresh_topic("frameworks"));
    let node = Highwater::on_kafka(kafka, &topic);
    let mut program = command("caching");
    program.env("FOREIGN", "yes");
    thread::scope(|scope| {
        let running = scope.spawn(|| super::try_program(program, [node.port; 2], 0));
        let mut client = node.client();
        wait_for("the program to want a new value", SOON, || {
            let wanted = client.line("EXISTS wanted") == b":1\r\n";
            (wanted || running.is_finished()).then_some(())
        });
        kafka.kcat(&["-P", "-t", &topic, "-K:"], b"produced:after\n");
        let ended = running.join().expect("its thread");
        assert_eq!(ended, Ok(()));
    });
}

fn command(program: &str) -> Command {
    let mut node = parts::node();
    node.env("NODE_PATH", parts::framework_node_modules())
        .arg(parts::frameworks_dir().join(format!("node/{program}.cjs")));
    node
}
