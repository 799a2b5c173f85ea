//! What a start says to somebody who expects something else of it.

use std::fs;
use std::time::Duration;

use crate::support::server::{Builder, Highwater};
use crate::support::{kafka, temp};

/// The lines with WARN of a start.
fn warnings(builder: Builder) -> Vec<String> {
    let node = builder.allow("").start();
    let log = node.log();
    log.lines()
        .filter(|line| line.contains(" WARN "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn data_of_redis_in_the_directory_is_not_passed_over_in_silence() {
    let temp = temp::dir("redis-data");
    fs::write(temp.path().join("dump.rdb"), "REDIS0011").expect("write a file");
    fs::create_dir(temp.path().join("appendonlydir")).expect("make a directory");
    let told = warnings(Highwater::builder().dir(temp.path()));
    assert_eq!(told.len(), 2, "{told:?}");
    for (line, name) in told.iter().zip(["dump.rdb", "appendonlydir"]) {
        assert!(line.contains(name) && line.contains("is not read"), "{line}");
    }
    // Wherever its own settings say that it is.
    fs::rename(temp.path().join("dump.rdb"), temp.path().join("my.rdb")).expect("rename a file");
    let own_names = Highwater::builder()
        .dir(temp.path())
        .args(&["--dbfilename", "my.rdb", "--appenddirname", "none"]);
    let told = warnings(own_names);
    assert!(told.len() == 1 && told[0].contains("my.rdb"), "{told:?}");
}

#[test]
fn an_eviction_policy_does_not_make_anybody_wait_for_evictions() {
    let temp = temp::dir("redis-conf");
    let file = temp.path().join("redis.conf");
    fs::write(&file, "maxmemory 64mb\nmaxmemory-policy allkeys-lru\n").expect("write a file");
    let told = warnings(Highwater::builder().arg(&file.to_string_lossy()));
    assert!(
        told.len() == 1 && told[0].contains("allkeys-lru") && told[0].contains("never evicted"),
        "{told:?}"
    );
    assert_eq!(
        warnings(Highwater::builder().args(&["--maxmemory-policy", "noeviction"])),
        [""; 0]
    );
}

#[test]
fn listening_for_everybody_without_a_password_is_said() {
    let open = || Highwater::builder().args(&["--bind", "0.0.0.0"]);
    let told = warnings(open());
    assert!(
        told.len() == 1 && told[0].contains("protected mode refuses"),
        "{told:?}"
    );
    let told = warnings(open().args(&["--protected-mode", "no"]));
    assert!(
        told.len() == 1 && told[0].contains("can read and change everything"),
        "{told:?}"
    );
    assert_eq!(warnings(open().args(&["--requirepass", "secret"])), [""; 0]);
    assert_eq!(warnings(Highwater::builder()), [""; 0]);
}

#[test]
fn partitions_that_an_existing_topic_does_not_have_are_said() {
    let (kafka, topic) = (kafka::shared(), kafka::fresh_topic("one"));
    let on_topic = || Highwater::builder().kafka(kafka, &topic);
    assert_eq!(warnings(on_topic()), [""; 0]);
    let told = warnings(on_topic().args(&["--partitions", "4"]));
    let text = format!("--partitions 4 holds for topics that are created: topic {topic} was there, with 1");
    assert!(told.len() == 1 && told[0].contains(&text), "{told:?}");
    assert_eq!(warnings(on_topic().args(&["--partitions", "1"])), [""; 0]);
}

#[test]
fn a_bad_number_is_reported_once() {
    for (args, expected) in [
        (
            ["--port", "abc"],
            "highwater: --port 'abc': port takes a whole number from 0 to 65535\n",
        ),
        (
            ["--port", "70000"],
            "highwater: --port '70000': port takes a whole number from 0 to 65535\n",
        ),
        (
            ["--maxclients", "0"],
            "highwater: --maxclients '0': maxclients takes a whole number from 1 to 4294967295\n",
        ),
    ] {
        let (_, told) = Highwater::builder().args(&args).refuse(Duration::from_secs(20));
        assert_eq!(told, expected);
    }
}
