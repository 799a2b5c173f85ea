//! Users on a running node: where they are kept, and what a change of their rights does to those
//! that are connected. What the commands reply is in `side_by_side/acl.txt`.

use std::fs;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::server::Highwater;
use crate::support::{resp, temp, wait_for};

const SOON: Duration = Duration::from_secs(20);

fn logged_in(node: &Highwater, user: &str) -> Client {
    let mut client = node.client();
    client.check(&format!("AUTH {user} x"), "+OK");
    client
}

fn wait_until_closed(client: &mut Client) {
    assert!(client.is_closed(), "the connection is open");
}

#[test]
fn a_file_of_users_is_read_at_start_and_on_demand_and_written_on_demand() {
    let temp = temp::dir("users");
    let file = temp.path().join("users.acl");
    fs::write(
        &file,
        "user ann on >x ~a* +@read +acl\n\nuser default on nopass ~* &* +@all\n",
    )
    .expect("write a file");
    let mut node = Highwater::builder()
        .args(&["--aclfile", &file.display().to_string()])
        .start();
    let mut admin = node.client();
    let mut ann = logged_in(&node, "ann");
    ann.check("GET a", "$-1");
    ann.check(
        "SET a 1",
        "-NOPERM User ann has no permissions to run the 'set' command",
    );
    admin.check("ACL SETUSER bob on nopass ~b* +get", "+OK");
    admin.check("ACL SAVE", "+OK");
    let saved = fs::read_to_string(&file).expect("read a file");
    assert!(
        saved.contains("user bob on nopass ~b* resetchannels -@all +get\n"),
        "{saved}"
    );
    assert!(!saved.contains(">x"), "the file has hashes: {saved}");
    // The same users after a restart.
    node.restart();
    let mut admin = node.client();
    let (mut ann, mut bob) = (logged_in(&node, "ann"), logged_in(&node, "bob"));
    bob.check("GET b", "$-1");
    // An error changes nothing.
    fs::write(&file, format!("{saved}user ann off\n")).expect("write a file");
    let refused = admin.text("ACL LOAD");
    assert!(refused.contains("Duplicate user 'ann' found"), "{refused}");
    ann.check("ACL WHOAMI", "$3\r\nann");
    // Users that are gone or changed lose their connections, others keep theirs.
    fs::write(&file, saved.replace("user bob on nopass ~b*", "user bob on nopass ~c*")).expect("write a file");
    admin.check("ACL LOAD", "+OK");
    wait_until_closed(&mut bob);
    ann.check("ACL WHOAMI", "$3\r\nann");
    fs::write(&file, "user bob on\n").expect("write a file");
    admin.check("ACL LOAD", "+OK");
    wait_until_closed(&mut ann);
    admin.check("ACL USERS", "*2\r\n$3\r\nbob\r\n$7\r\ndefault");
}

#[test]
fn users_of_the_configuration_hold_from_the_start() {
    let temp = temp::dir("users");
    let file = temp.path().join("redis.conf");
    let line = "user ann on nopass ~a* +get \"(~b* +get\" +set)\nuser default on nopass +@all -flushall ~*\n";
    fs::write(&file, line).expect("write a file");
    let node = Highwater::builder().arg(&file.display().to_string()).start();
    let mut ann = logged_in(&node, "ann");
    ann.check("SET b 1", "+OK");
    ann.check("GET a", "$-1");
    ann.check("SET a 1", "-NOPERM No permissions to access a key");
    let refused = "-NOPERM User default has no permissions to run the 'flushall' command";
    node.client().check("FLUSHALL", refused);
    drop(node);
    for (lines, args, told) in [
        (
            "user ann +nosuch\n",
            &[][..],
            "redis.conf:1: Error in ACL SETUSER modifier '+nosuch'",
        ),
        ("user ann\nuser ann\n", &[], "redis.conf:2: Duplicate user"),
        ("user ann\n", &["--aclfile", "users.acl"], "users from two places"),
        ("", &["--aclfile", "missing.acl"], "Error loading ACLs, opening file"),
    ] {
        fs::write(&file, lines).expect("write a file");
        let builder = Highwater::builder().arg(&file.display().to_string()).args(args);
        let (status, output) = builder.refuse(SOON);
        assert!(!status.success() && output.contains(told), "{lines}: {output}");
    }
}

#[test]
fn a_change_holds_for_those_who_are_connected() {
    let node = Highwater::embedded();
    let mut admin = node.client();
    admin.check("ACL SETUSER ann on nopass +@all ~* &*", "+OK");
    let mut ann = logged_in(&node, "ann");
    ann.check("SET a 1", "+OK");
    admin.check("ACL SETUSER ann -set", "+OK");
    ann.check(
        "SET a 1",
        "-NOPERM User ann has no permissions to run the 'set' command",
    );
    // A command that waits takes nothing any more.
    ann.write(&resp::command_line("BLPOP list 0"));
    wait_for("ann to wait", SOON, || {
        admin.text("CLIENT LIST").contains("flags=b").then_some(())
    });
    admin.check("ACL SETUSER ann -blpop", "+OK");
    admin.check("RPUSH list x", ":1");
    let refused = ann.reply();
    assert!(
        refused.starts_with(b"-NOPERM "),
        "{}",
        String::from_utf8_lossy(&refused)
    );
    admin.check("LLEN list", ":1");
    // Nor does a client hear what its user may not listen to.
    let mut listener = logged_in(&node, "ann");
    listener.check("SUBSCRIBE news", "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1");
    admin.check("ACL SETUSER ann resetchannels &other", "+OK");
    wait_until_closed(&mut listener);
    // Who is removed is disconnected, and can do nothing.
    admin.check("ACL DELUSER ann nosuch", ":1");
    wait_until_closed(&mut ann);
    admin.check("ACL SETUSER me on nopass +@all ~*", "+OK");
    let mut me = logged_in(&node, "me");
    me.check("ACL DELUSER me", ":1");
    wait_until_closed(&mut me);
}

#[test]
fn a_pipeline_that_logs_in_runs_each_command_as_its_own_user() {
    let node = Highwater::embedded();
    let mut client = node.client();
    client.check("ACL SETUSER ann on nopass +get ~a* +auth", "+OK");
    let lines = [
        "SET a 1",
        "EVAL \"return redis.call('incr','b')\" 0",
        "AUTH ann x",
        "GET a",
        "GET b",
        "INCR a",
    ];
    let replies = client.pipeline(&lines);
    let replies: Vec<_> = replies
        .iter()
        .map(|reply| String::from_utf8_lossy(reply).into_owned())
        .collect();
    let begins = [
        "+OK",
        ":1",
        "+OK",
        "$1\r\n1",
        "-NOPERM No permissions to access a key",
        "-NOPERM User ann",
    ];
    for (reply, begin) in replies.iter().zip(begins) {
        assert!(reply.starts_with(begin), "{replies:?}");
    }
    let mut admin = node.client();
    assert_eq!(admin.info("acl_access_denied_key").as_deref(), Some("1"));
    assert_eq!(admin.info("acl_access_denied_cmd").as_deref(), Some("1"));
    assert!(admin.text("CLIENT LIST").contains("user=ann "));
    // Passwords are in no log.
    admin.check("CONFIG SET slowlog-log-slower-than 0", "+OK");
    admin.check("ACL SETUSER ann >s3cret", "+OK");
    let slow = admin.line("SLOWLOG GET");
    let slow = String::from_utf8_lossy(&slow);
    assert!(slow.contains("(redacted)") && !slow.contains("s3cret"), "{slow}");
}
