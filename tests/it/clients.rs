//! Other people's clients, each with its defaults: they connect, round-trip binary keys and
//! values, a pipeline, a transaction and an error. Each runs against redis-server as well, so
//! that a fault of the small program itself does not look like one of Highwater's.

use std::process::Command;
use std::time::Duration;

use redis::Commands;

use crate::support::server::{Highwater, RedisServer};
use crate::support::{parts, process};

const DEADLINE: Duration = Duration::from_secs(120);

macro_rules! clients {
    ($($name:ident: $program:ident;)*) => {$(
        mod $name {
            #[test]
            fn self_check_with_redis() {
                super::$program(super::RedisServer::start(&[]).port);
            }

            #[test]
            fn with_highwater() {
                super::$program(super::Highwater::embedded().port);
            }
        }
    )*};
}

clients! {
    redis_py: run_redis_py;
    node_redis: run_node_redis;
    go_redis: run_go_redis;
    jedis: run_jedis;
    redis_rs: run_redis_rs;
}

fn run_redis_py(port: u16) {
    run("redis-py", redis_py(), &url(port));
}

fn run_node_redis(port: u16) {
    run("node-redis", node_redis(), &url(port));
}

fn run_go_redis(port: u16) {
    run("go-redis", go_redis(), &url(port));
}

fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

/// Takes a URL, as the two after it do.
pub fn redis_py() -> Command {
    let mut client = Command::new(parts::python());
    client.arg(parts::clients_dir().join("python/client.py"));
    client
}

pub fn node_redis() -> Command {
    let mut client = parts::node();
    client
        .env("NODE_PATH", parts::node_modules())
        .arg(parts::clients_dir().join("node/client.cjs"));
    client
}

pub fn go_redis() -> Command {
    Command::new(parts::go_client())
}

fn run_jedis(port: u16) {
    let mut client = Command::new("java");
    client
        .arg("-cp")
        .arg(parts::jedis_jars().join("*"))
        .arg(parts::clients_dir().join("java/Client.java"));
    run("Jedis", client, &port.to_string());
}

/// Runs one of the programs, which print OK as their last line when all went well.
pub fn run(name: &str, mut client: Command, server: &str) {
    client.arg(server);
    let output = process::run(name, client, b"", DEADLINE);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().last(), Some("OK"), "{name} printed:\n{text}");
    assert_eq!(text.lines().count(), 1, "{name} complained:\n{text}");
}

fn run_redis_rs(port: u16) {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).expect("a good address");
    let mut connection = client
        .get_connection_with_timeout(Duration::from_secs(10))
        .expect("connect");
    round_trips(&mut connection).expect("round trips");
    in_bulk(&mut connection).expect("a pipeline and a transaction");

    let () = connection.set("rs:word", "abc").expect("SET");
    let failed: redis::RedisResult<i64> = connection.incr("rs:word", 1);
    let error = failed.expect_err("INCR of a word").to_string();
    assert!(error.contains("not an integer"), "{error}");

    let in_one = redis::Client::open(format!("redis://127.0.0.1:{port}/1")).expect("a good address");
    let mut in_one = in_one.get_connection().expect("connect to database 1");
    let () = in_one.set("rs:one", 1).expect("SET");
    assert_eq!(in_one.del("rs:one"), Ok(1));
}

fn round_trips(connection: &mut redis::Connection) -> redis::RedisResult<()> {
    let every_byte: Vec<u8> = (0..=255).collect();
    let large = every_byte.repeat(2048);
    let () = connection.set(&every_byte, &every_byte)?;
    let () = connection.set("rs:large", &large)?;
    assert_eq!(connection.get::<_, Vec<u8>>(&every_byte)?, every_byte);
    assert_eq!(connection.get::<_, Vec<u8>>("rs:large")?, large);
    assert_eq!(connection.get::<_, Option<String>>("rs:absent")?, None);
    let () = connection.set_ex("rs:ttl", "v", 100)?;
    let ttl: i64 = connection.ttl("rs:ttl")?;
    assert!((91..=100).contains(&ttl), "TTL is {ttl}");
    assert_eq!(connection.del::<_, i64>(&["rs:ttl", "rs:absent"])?, 1);
    Ok(())
}

fn in_bulk(connection: &mut redis::Connection) -> redis::RedisResult<()> {
    let mut pipe = redis::pipe();
    for i in 0..100 {
        pipe.set(format!("rs:p{i}"), i).ignore();
    }
    for i in 0..100 {
        pipe.get(format!("rs:p{i}"));
    }
    let got: Vec<i64> = pipe.query(connection)?;
    assert_eq!(got, (0..100).collect::<Vec<_>>());

    let mut transaction = redis::pipe();
    transaction.atomic().set("rs:n", 41).ignore().incr("rs:n", 1);
    let (sum,): (i64,) = transaction.query(connection)?;
    assert_eq!(sum, 42);
    Ok(())
}
