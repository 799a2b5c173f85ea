//! Frameworks and libraries that stand on Redis: caches, locks, queues, rate limiters. A small
//! program uses each of them as its documentation says.
//!
//! A program finds its node in the environment, prints OK as its last line when all went well, and
//! ends with what it has started:
//!
//! - `REDIS_URL`: a node, with a database of the program's own, `redis://127.0.0.1:PORT/DATABASE`.
//! - `SECOND_URL`: the same database on another node; on the embedded log it is the same node. The
//!   second node shows what was written on the first a moment later.

mod go;
pub mod java;
mod node;
mod python;

use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::support::server::{Highwater, RedisServer};
use crate::support::{kafka, longer, process};

/// What a program may take. The longest takes 35 s on a busy machine.
const PROGRAM: Duration = Duration::from_secs(180);
/// The databases of a server with its defaults, and so the programs that it can serve at once.
const DATABASES: usize = 16;

/// What the nodes stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Log {
    /// One node.
    Embedded,
    /// Two nodes on one topic.
    Kafka,
}

/// A program, and the log on which it runs. The long run of the tests takes both logs.
type Program = (&'static str, Log);

/// Runs the programs of this log, all at once and each on a database of its own. `command` makes
/// the command line of a program from its name.
fn run(log: Log, programs: &[Program], command: impl Fn(&str) -> Command + Sync) {
    let chosen = programs.iter().filter(|(_, usual)| *usual == log || longer() > 1);
    let nodes = start_nodes(log);
    let (nodes, command) = (&nodes, &command);
    let problems: Vec<String> = thread::scope(|scope| {
        let start = |(database, (name, _)): (usize, &Program)| {
            let (first, second) = (nodes[0].port, nodes[nodes.len() - 1].port);
            let name = *name;
            scope.spawn(move || judge(name, command, [first, second], database))
        };
        let running: Vec<_> = chosen.enumerate().map(start).collect();
        let ended = running.into_iter().map(|program| program.join().expect("its thread"));
        ended.filter_map(Result::err).collect()
    });
    assert!(problems.is_empty(), "on {log:?}:\n{}", problems.join("\n"));
}

fn start_nodes(log: Log) -> Vec<Highwater> {
    match log {
        Log::Embedded => vec![Highwater::embedded()],
        Log::Kafka => {
            let topic = kafka::fresh_topic("frameworks");
            let node = Highwater::builder().kafka(kafka::shared(), &topic);
            // What a busy machine delays is no fault of a framework.
            let node = node.args(&["--write-timeout", "15s"]);
            (0..2).map(|_| node.clone().start()).collect()
        }
    }
}

/// Runs a program. One that fails is run on redis-server too: its own fault must not look like one
/// of Highwater's.
fn judge<C>(name: &str, command: C, ports: [u16; 2], database: usize) -> Result<(), String>
where
    C: Fn(&str) -> Command,
{
    let Err(problem) = try_program(command(name), ports, database) else {
        return Ok(());
    };
    let redis = RedisServer::start(&[]);
    let on_redis = match try_program(command(name), [redis.port; 2], database) {
        Ok(()) => "redis-server passes".to_owned(),
        Err(problem) => format!("redis-server fails as well: {problem}"),
    };
    Err(format!("---- {name}: {problem}\n({on_redis})"))
}

fn try_program(mut program: Command, ports: [u16; 2], database: usize) -> Result<(), String> {
    assert!(database < DATABASES, "no database is left for this program");
    let [first, second] = ports.map(|port| format!("redis://127.0.0.1:{port}/{database}"));
    program.env("REDIS_URL", first).env("SECOND_URL", second);
    let ended = process::try_run(program, b"", PROGRAM);
    let ended = ended.map_err(|error| format!("cannot be started: {error}"))?;
    let printed = String::from_utf8_lossy(&ended.stdout);
    match ended.success() && printed.lines().last() == Some("OK") {
        true => Ok(()),
        false => Err(ended.text()),
    }
}
