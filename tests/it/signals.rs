//! Signals that ask a node for something else than to stop, and a terminal that is closed.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::client::Client;
use crate::support::server::{self, Highwater};
use crate::support::{eventually, ports, process, temp, wait_for};

const SOON: Duration = Duration::from_secs(20);

fn setting(client: &mut Client, name: &str) -> String {
    let reply = client.tree(&format!("CONFIG GET {name}"));
    String::from_utf8_lossy(reply.items()[1].bytes().expect("a value")).into_owned()
}

#[test]
fn sighup_goes_on_in_a_new_log_file_and_reads_the_settings_again() {
    let dir = temp::dir("signals");
    let (conf, log, moved) = (
        dir.path().join("my.conf"),
        dir.path().join("log"),
        dir.path().join("log.1"),
    );
    fs::write(&conf, "maxmemory 100mb\nslowlog-max-len 10\ntimeout 9\ndatabases 8\n").expect("a file");
    let mut node = Highwater::builder()
        .args(&[
            &conf.to_string_lossy(),
            "--logfile",
            &log.to_string_lossy(),
            "--timeout",
            "700",
        ])
        .start();
    let mut client = node.client();
    assert_eq!(setting(&mut client, "slowlog-max-len"), "10");
    client.check("CONFIG SET hz 20", "+OK");
    fs::rename(&log, &moved).expect("it is renamed");
    fs::write(&conf, "maxmemory 50mb\nslowlog-max-len 20\ntimeout 10\ndatabases 4\n").expect("a file");
    node.signal(libc::SIGHUP);
    let lines = || fs::read_to_string(&log).unwrap_or_default();
    eventually("the settings are read", SOON, || lines().contains("SIGHUP: read"));
    assert!(lines().contains("changed: maxmemory slowlog-max-len"), "{}", lines());
    assert!(lines().contains("at the next start: databases"), "{}", lines());
    let before = fs::read_to_string(&moved).expect("the lines so far");
    assert!(before.contains("ready: redis-cli") && !before.contains("SIGHUP"));
    assert_eq!(setting(&mut client, "maxmemory"), (50 << 20).to_string());
    assert_eq!(setting(&mut client, "slowlog-max-len"), "20");
    // What the command line gave holds, and so does what CONFIG SET gave and the file does not name.
    assert_eq!(setting(&mut client, "timeout"), "700");
    assert_eq!(setting(&mut client, "hz"), "20");
    // With an error in it nothing of the file is taken.
    fs::write(&conf, "slowlog-max-len 30\nmaxmemory much\n").expect("a file");
    node.signal(libc::SIGHUP);
    eventually("the error is told", SOON, || lines().contains("SIGHUP: nothing of"));
    assert!(lines().contains("my.conf:2"), "{}", lines());
    assert_eq!(setting(&mut client, "slowlog-max-len"), "20");
    assert!(node.terminate().success());
}

#[test]
fn other_signals_are_ignored() {
    let mut node = Highwater::embedded();
    for signal in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGHUP, libc::SIGXFSZ] {
        node.signal(signal);
    }
    eventually("SIGHUP is told", SOON, || {
        node.log().contains("SIGHUP: there is no file")
    });
    node.client().check("SET k v", "+OK");
    assert!(node.terminate().success());
}

#[test]
fn a_terminal_that_is_closed_costs_log_lines_alone() {
    let (dir, port) = (temp::dir("terminal"), ports::free());
    let mut command = Command::new(server::binary());
    command
        .args(["--port", &port.to_string(), "--dir"])
        .arg(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = process::spawn(command).expect("starts");
    let mut client = wait_for("the node", SOON, || {
        let mut client = Client::try_connect(port).ok()?;
        (client.line("PING") == b"+PONG\r\n").then_some(client)
    });
    drop(child.stderr.take());
    for signal in [libc::SIGHUP, libc::SIGHUP] {
        process::signal(&child, signal);
        std::thread::sleep(Duration::from_millis(100));
    }
    client.check("SET k v", "+OK");
    process::signal(&child, libc::SIGTERM);
    let status = process::wait_until_exit(&mut child, SOON).expect("it ends");
    assert!(status.success(), "{status}");
}
