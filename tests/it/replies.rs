//! Which requests are answered, and what a redis-server beside would not show: it gets some of this wrong itself.

use crate::support::resp::{self, Reply};
use crate::support::server::{Highwater, RedisServer};

/// redis-server counts a reply for CLIENT REPLY OFF and SKIP in the length of EXEC's reply, and leaves it out: its client then takes the
/// reply of a later command for it.
#[test]
fn the_reply_of_exec_is_whole_whatever_client_reply_says_in_it() {
    let node = Highwater::embedded();
    let mut client = node.client();
    let mut check = |sent: &[&str], expected: &str| {
        let all: Vec<u8> = sent.iter().flat_map(|line| resp::command_line(line)).collect();
        client.write(&all);
        // What comes after shows that nothing was left out, and nothing was too much.
        client.write(&resp::command_line("CLIENT REPLY ON"));
        client.write(&resp::command_line("ECHO end"));
        let mut got = String::new();
        while !got.ends_with("$3\\r\\nend\\r\\n") {
            got += &resp::show(&client.reply());
        }
        let expected = format!("{expected}+OK\r\n$3\r\nend\r\n");
        assert_eq!(got, resp::show(expected.as_bytes()), "{sent:?}");
    };
    let queued = "+OK\r\n+QUEUED\r\n+QUEUED\r\n+QUEUED\r\n";
    let reply = "*3\r\n+PONG\r\n+OK\r\n+PONG\r\n";
    for word in ["SKIP", "OFF"] {
        let choice = format!("CLIENT REPLY {word}");
        let transaction = ["MULTI", "PING", &choice, "PING", "EXEC", "PING"];
        check(&transaction, &format!("{queued}{reply}"));
    }
    check(
        &["MULTI", "PING", "CLIENT REPLY SKIP", "PING", "EXEC", "PING", "ECHO x"],
        &format!("{queued}{reply}$1\r\nx\r\n"),
    );
    // What turns replies on is answered.
    let off = ["CLIENT REPLY OFF", "MULTI", "PING", "CLIENT REPLY ON", "PING", "EXEC"];
    check(&off, reply);
    // A transaction that is refused has turned nothing off.
    check(
        &["MULTI", "CLIENT REPLY OFF", "PING", "NOSUCH", "EXEC"],
        "+OK\r\n+QUEUED\r\n+QUEUED\r\n-ERR unknown command 'NOSUCH', with args beginning with: \r\n\
         -EXECABORT Transaction discarded because of previous errors.\r\n",
    );
}

/// redis-server moves keys of every type here: MIGRATE sends RESTORE with the payload of DUMP.
#[test]
fn migrate_brings_every_type() {
    let (redis, node) = (RedisServer::start(&[]), Highwater::embedded());
    let (mut client, mut target) = (redis.client(), node.client());
    let long = "x".repeat(100);
    for (create, read) in [
        ("SET k value", "GET k"),
        ("RPUSH k a b", "LRANGE k 0 -1"),
        ("SADD k 1 2", "SMEMBERS k"),
        ("SADD k a", "SMEMBERS k"),
        ("ZADD k 1 a", "ZRANGE k 0 -1 WITHSCORES"),
        (&format!("ZADD k 1 {long}"), "ZRANGE k 0 -1 WITHSCORES"),
        ("HSET k a b", "HGETALL k"),
        (&format!("HSET k a {long}"), "HGETALL k"),
        ("XADD k 1-1 a b", "XRANGE k - +"),
    ] {
        client.check("FLUSHALL", "+OK");
        target.check("FLUSHALL", "+OK");
        assert!(!Reply::parse(&client.line(create)).is_error(), "{create}");
        let expected = client.line(read);
        client.check(&format!("MIGRATE 127.0.0.1 {} k 0 5000", node.port), "+OK");
        client.check("EXISTS k", ":0");
        assert_eq!(resp::show(&target.line(read)), resp::show(&expected), "{create}");
    }
}
