//! Clients over a Unix socket.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::server::{Builder, Highwater, binary};
use crate::support::{parts, temp, wait_for};

const SOON: Duration = Duration::from_secs(20);

fn on(socket: &Path) -> Builder {
    Highwater::builder().args(&["--unixsocket", &socket.display().to_string()])
}

/// What redis-cli prints for a command that it sends over the socket.
fn ask(socket: &Path, args: &[&str]) -> String {
    let mut cli = parts::redis_cli();
    cli.arg("-s").arg(socket).args(args);
    let output = cli.output().expect("run redis-cli");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

fn ping(args: &[&str]) -> bool {
    let mut ping = Command::new(binary());
    ping.arg("--ping").args(args);
    ping.output().expect("run the probe").status.success()
}

#[test]
fn redis_cli_talks_over_a_unix_socket() {
    let dir = temp::dir("unix");
    let socket = dir.path().join("socket");
    let mut node = on(&socket).args(&["--unixsocketperm", "700"]).start();
    let mode = fs::metadata(&socket).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    assert_eq!(ask(&socket, &["SET", "k", "v"]), "OK");
    node.client().check("GET k", "$1\r\nv");
    let large = "x".repeat(300_000);
    assert_eq!(ask(&socket, &["EVAL", "return string.rep('x', 300000)", "0"]), large);
    let line = ask(&socket, &["CLIENT", "INFO"]);
    let path = socket.display();
    assert!(line.contains(&format!(" addr={path}:0 laddr={path}:0 ")), "{line}");
    assert!(line.contains(" flags=U "), "{line}");
    assert_eq!(
        ask(&socket, &["CONFIG", "GET", "unixsocketperm"]),
        "unixsocketperm\n700"
    );
    node.terminate();
    assert!(!socket.exists(), "the socket's file goes with the server");
}

/// All that a connection needs is asked for at this door too.
#[test]
fn passwords_and_maxclients_hold_for_a_unix_socket() {
    let dir = temp::dir("unix");
    let socket = dir.path().join("socket");
    let node = on(&socket)
        .args(&["--requirepass", "right", "--maxclients", "2"])
        .start();
    let mut first = node.client();
    first.check("AUTH right", "+OK");
    first.check_soon("PING", "+PONG");
    // A connection that has ended counts for a moment longer.
    let mut is_alone = || {
        wait_for("the others to be gone", SOON, || {
            (first.text("CLIENT LIST").lines().count() == 1).then_some(())
        });
    };
    is_alone();
    assert_eq!(ask(&socket, &["GET", "k"]), "NOAUTH Authentication required.");
    is_alone();
    assert_eq!(ask(&socket, &["-a", "right", "--no-auth-warning", "PING"]), "PONG");
    is_alone();
    let mut second = node.client();
    second.check("AUTH right", "+OK");
    let mut told = String::new();
    let mut refused = UnixStream::connect(&socket).expect("connect");
    refused.read_to_string(&mut told).expect("the reason");
    assert_eq!(told, "-ERR max number of clients reached\r\n");
}

/// A node may have this door alone; the healthcheck of an image then asks there.
#[test]
fn a_unix_socket_may_be_the_only_door() {
    let dir = temp::dir("unix");
    let socket = dir.path().join("socket");
    let path = socket.display().to_string();
    let _node = on(&socket).start();
    assert!(ping(&["--port", "0", "--unixsocket", &path]));
    assert!(!ping(&["--port", "0", "--unixsocket", "/nowhere"]));
}

#[test]
fn what_a_killed_server_left_is_replaced_and_nothing_else() {
    let dir = temp::dir("unix");
    let socket = dir.path().join("socket");
    let mut node = on(&socket).start();
    node.kill9();
    assert!(socket.exists());
    node.restart();
    assert_eq!(ask(&socket, &["PING"]), "PONG");

    let (_, log) = on(&socket).refuse(SOON);
    assert!(log.contains("another server listens there"), "{log}");
    assert_eq!(ask(&socket, &["PING"]), "PONG");

    let file = dir.path().join("file");
    fs::write(&file, "mine").expect("write a file");
    let (status, log) = on(&file).refuse(SOON);
    assert!(!status.success() && log.contains("listen on unix socket"), "{log}");
    assert_eq!(fs::read(&file).expect("it is still there"), b"mine");

    // What a program left that ended without removing its socket.
    let left = dir.path().join("left");
    drop(UnixListener::bind(&left).expect("bind a socket"));
    assert!(left.exists());
    let _other = on(&left).start();
    assert_eq!(ask(&left, &["PING"]), "PONG");
}
