//! Users on a running node: where they are kept, and what a change of their rights does to those
//! that are connected. What the commands reply is in `side_by_side/acl.txt`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::client::Client;
use crate::support::server::{Highwater, RedisServer, binary};
use crate::support::{eventually, resp, temp, wait_for};

const SOON: Duration = Duration::from_secs(20);

fn logged_in(node: &Highwater, user: &str) -> Client {
    let mut client = node.client();
    client.check(&format!("AUTH {user} x"), "+OK");
    client
}

/// The file has passwords: only its owner may read it.
fn hide(file: &Path) {
    fs::set_permissions(file, Permissions::from_mode(0o600)).expect("the file is ours");
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
    hide(&file);
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
    let mode = fs::metadata(&file).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it keeps its mode");
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
    assert_eq!(
        admin.info("acl_access_denied_cmd").as_deref(),
        Some("2"),
        "SET and BLPOP"
    );
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

/// A look at very many keys waits for its turn. Meanwhile the user may lose the right. One of a few
/// times that is so late: the machine may be busy.
#[test]
fn a_client_that_waits_for_its_turn_is_checked_when_it_has_it() {
    const TIMES: usize = 5;
    let node = Highwater::builder().args(&["--threads", "2"]).start();
    let (mut admin, mut busy) = (node.client(), node.client());
    for key in ["one", "other"] {
        // As long as LCS takes them.
        let value = &key.repeat(10_000)[..30_000];
        assert_eq!(admin.send(&[b"SET", key.as_bytes(), value.as_bytes()]), b"+OK\r\n");
    }
    let keys: String = (0..9_999).map(|number| format!(" k{number}")).collect();
    let mut is_refused = || {
        admin.check("ACL SETUSER ann on nopass +@all ~*", "+OK");
        let mut ann = logged_in(&node, "ann");
        ann.write(&resp::command_line(&format!("BLPOP{keys} 0")));
        wait_for("ann to wait", SOON, || {
            admin.text("CLIENT LIST").contains("flags=b").then_some(())
        });
        busy.write(&resp::command_line("LCS one other LEN"));
        wait_for("the turn to be taken", SOON, || {
            admin.text("CLIENT LIST").contains("cmd=lcs").then_some(())
        });
        std::thread::sleep(Duration::from_millis(20));
        admin.check("RPUSH k0 x", ":1");
        std::thread::sleep(Duration::from_millis(20));
        admin.check("ACL SETUSER ann -blpop", "+OK");
        let reply = ann.reply();
        assert!(busy.reply().starts_with(b":"));
        let is_refused = reply.starts_with(b"-NOPERM ");
        admin.check("DEL k0", if is_refused { ":1" } else { ":0" });
        is_refused
    };
    assert!((0..TIMES).any(|_| is_refused()), "it takes without the right");
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

/// As in Redis 7.0: the user whom everybody is at first is then as on a server without a file.
#[test]
fn a_file_of_users_without_the_default_user_leaves_everybody_in() {
    let temp = temp::dir("users");
    let file = temp.path().join("users.acl");
    fs::write(&file, "user ann on >x ~a* +@read\n").expect("write a file");
    hide(&file);
    let args = ["--aclfile", &*file.to_string_lossy(), "--requirepass", "secret"];
    let node = Highwater::builder()
        .args(&args)
        .allow("requirepass has no effect")
        .start();
    assert!(
        node.log().contains("the user default needs no password"),
        "{}",
        node.log()
    );
    let redis = RedisServer::start(&args);
    let mut clients = [node.client(), redis.client()];
    let mut both = |line: &str| {
        let [ours, theirs] = clients.each_mut().map(|client| client.line(line));
        assert_eq!(resp::show(&ours), resp::show(&theirs), "{line}");
        resp::show(&ours)
    };
    assert!(both("ACL LIST").contains("user default on nopass"));
    both("ACL SETUSER default -set >other");
    assert!(!both("ACL LIST").contains("nopass"));
    both("CONFIG GET requirepass");
    both("ACL LOAD");
    assert!(both("ACL LIST").contains("user default on nopass"));
    both("SET k v");
}

#[test]
fn a_healthcheck_has_a_user_of_its_own() {
    let temp = temp::dir("users");
    let file = temp.path().join("redis.conf");
    let probe = "ping-user probe\nping-password secret\nuser probe on >secret +ping\n";
    fs::write(&file, format!("{probe}user default off\n")).expect("write a file");
    hide(&file);
    let node = Highwater::builder()
        .arg(&file.to_string_lossy())
        .allow("a user is disabled")
        .start();
    let ping = |args: &[&str]| {
        let mut ping = Command::new(binary());
        ping.args(["--ping", "--port", &node.port.to_string()]).args(args);
        let output = ping.output().expect("it runs");
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    eventually("the healthcheck to succeed", SOON, || {
        ping(&[&file.to_string_lossy()]).0
    });
    let (is_served, told) = ping(&[]);
    assert!(!is_served && told.contains("NOAUTH"), "{told}");
    let (is_served, told) = ping(&["--ping-user", "probe", "--ping-password", "wrong"]);
    assert!(!is_served && told.contains("WRONGPASS"), "{told}");
}

/// A script is run once more for each key that it uses and does not declare.
#[test]
fn what_is_computed_again_is_refused_once() {
    let (node, redis) = (Highwater::embedded(), RedisServer::start(&[]));
    for mut client in [node.client(), redis.client()] {
        client.check("ACL SETUSER ann on nopass ~a* +@all", "+OK");
        client.check("AUTH ann x", "+OK");
        let script =
            "for i = 1, 3 do redis.call('incr', 'a' .. i); redis.pcall('get', 'b') end; return redis.call('get', 'a3')";
        client.check(&format!("EVAL \"{script}\" 0"), "$1\r\n1");
        let log = client.tree("ACL LOG");
        assert_eq!(log.items().len(), 1, "{log:?}");
        assert_eq!(log.items()[0].items()[1].integer(), Some(3), "{log:?}");
    }
}

#[test]
fn sighup_gives_users_the_rules_that_their_lines_have_by_now() {
    let temp = temp::dir("users");
    let file = temp.path().join("redis.conf");
    let write = |lines: &str| {
        fs::write(&file, lines).expect("write a file");
        hide(&file);
    };
    write(
        "user ann on >x ~a* +get +subscribe &news\nuser bob on nopass +@all ~*\nuser default on nopass ~* &* +@all\n",
    );
    let mut node = Highwater::builder().arg(&file.to_string_lossy()).start();
    let (mut admin, mut ann, mut listener) = (node.client(), logged_in(&node, "ann"), logged_in(&node, "ann"));
    ann.check("GET a", "$-1");
    listener.check("SUBSCRIBE news", "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1");
    admin.check("ACL SETUSER eve on nopass ~e* +get", "+OK");
    let read_again = |node: &Highwater, told: &str| {
        let times = || node.log().matches("SIGHUP: ").count();
        let before = times();
        node.signal(libc::SIGHUP);
        eventually("the file is read", SOON, || times() > before);
        assert!(node.log().contains(told), "{}", node.log());
    };
    write("timeout 100\nuser ann on >x ~b* +get\nuser cid on nopass ~c* +get\n");
    read_again(&node, "changed: timeout");
    ann.check("GET a", "-NOPERM No permissions to access a key");
    ann.check("GET b", "$-1");
    wait_until_closed(&mut listener);
    // A user without a line stays, as a setting does.
    for user in ["bob", "eve"] {
        logged_in(&node, user).check(&format!("GET {user}"), "$-1");
    }
    logged_in(&node, "cid").check("GET c", "$-1");
    // All or nothing.
    node.allow("nothing of");
    write("timeout 200\nuser ann off\nuser cid +nosuch\n");
    read_again(&node, "redis.conf:3: Error in ACL SETUSER modifier '+nosuch'");
    admin.check("CONFIG GET timeout", "*2\r\n$7\r\ntimeout\r\n$3\r\n100");
    logged_in(&node, "ann").check("GET b", "$-1");
}
