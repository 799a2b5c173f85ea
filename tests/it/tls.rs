//! Clients over TLS. What holds for all front doors alike is in `front_doors`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use openssl::ssl::{SslContext, SslOptions, SslSession, SslVersion};

use crate::support::certificates::{Authority, Pair, to_loopback};
use crate::support::client::Client;
use crate::support::server::{Builder, Highwater};
use crate::support::{eventually, parts, ports, process, resp, wait_for};
use crate::{clients, frameworks};

const SOON: Duration = Duration::from_secs(20);
const CANNOT: &str = "Unable to update TLS configuration. Check server logs.";

/// A node with a port for TLS, and whom its clients trust.
struct Secured {
    node: Highwater,
    port: u16,
    authority: Authority,
    server: Pair,
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

impl Secured {
    fn start(args: &[&str]) -> Secured {
        Secured::start_with(Highwater::builder().args(args), None)
    }

    fn start_with(builder: Builder, passphrase: Option<&str>) -> Secured {
        let authority = Authority::new("tests");
        let server = authority.issue_locked("server", passphrase);
        let port = ports::free();
        let node = builder
            .args(&["--tls-port", &port.to_string()])
            .args(&["--tls-cert-file", text(&server.certificate)])
            .args(&["--tls-key-file", text(&server.key)])
            .args(&["--tls-ca-cert-file", text(&authority.file())])
            .allow("TLS")
            .start();
        Secured {
            node,
            port,
            authority,
            server,
        }
    }

    /// A client without a certificate.
    fn client(&self) -> Client {
        self.client_with(None).expect("a connection over TLS")
    }

    /// A client, once the server has answered: with TLS 1.3, only then it has taken the certificate.
    fn client_with(&self, own: Option<&Pair>) -> Result<Client, String> {
        self.connect(self.authority.client(own))
    }

    fn connect(&self, ssl: openssl::ssl::Ssl) -> Result<Client, String> {
        let connected = Client::try_connect_securely(("127.0.0.1", self.port), ssl);
        let mut client = connected.map_err(|error| error.to_string())?;
        let asked = client.try_write(&resp::command_line("PING"));
        match asked.and_then(|()| client.try_reply()) {
            Ok(Some(reply)) if reply == b"+PONG\r\n" => Ok(client),
            other => Err(format!("{other:?}")),
        }
    }
}

#[test]
fn clients_with_a_certificate_are_served() {
    let secured = Secured::start(&[]);
    assert!(secured.client_with(None).is_err(), "the default asks for one");
    let known = secured.authority.issue("client");
    let mut client = secured.client_with(Some(&known)).expect("is known");
    client.check("SET k v", "+OK");
    let others = Authority::new("others");
    let stranger = others.issue("stranger");
    assert!(secured.client_with(Some(&stranger)).is_err());
    // What they say is the same data.
    secured.node.client().check("GET k", "$1\r\nv");
    client.check("CONFIG SET tls-auth-clients optional", "+OK");
    assert!(secured.client_with(Some(&stranger)).is_err());
    assert!(secured.client_with(None).is_ok());
    client.check("CONFIG SET tls-auth-clients no", "+OK");
    assert!(secured.client_with(Some(&stranger)).is_ok());
}

#[test]
fn large_values_and_long_pipelines_pass_in_both_directions() {
    let secured = Secured::start(&["--tls-auth-clients", "no"]);
    let mut client = secured.client();
    let large: Vec<u8> = (0..20_000_000u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(client.send(&[b"SET", b"large", &large]), b"+OK\r\n");
    let reply = client.send(&[b"GET", b"large"]);
    assert!(
        reply.len() > large.len() && reply[11..].starts_with(&large),
        "{} bytes",
        reply.len()
    );
    let mut pipeline = Vec::new();
    for number in 0..20_000 {
        pipeline.extend(resp::command_line(&format!("SET key:{number} {number}")));
        pipeline.extend(resp::command_line(&format!("GET key:{number}")));
    }
    client.write(&pipeline);
    for number in 0..20_000 {
        assert_eq!(client.reply(), b"+OK\r\n");
        let number = number.to_string();
        assert_eq!(client.reply(), format!("${}\r\n{number}\r\n", number.len()).as_bytes());
    }
    // Pushes, and a client that waits.
    client.check("SUBSCRIBE news", "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1");
    secured.node.client().check("PUBLISH news hello", ":1");
    assert_eq!(client.reply(), b"*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$5\r\nhello\r\n");
    let mut waiting = secured.client();
    waiting.write(&resp::command_line("BLPOP list 0"));
    let mut other = secured.node.client();
    wait_for("a blocked client", SOON, || {
        other.info("blocked_clients").filter(|n| n == "1")
    });
    other.check("RPUSH list a", ":1");
    assert_eq!(waiting.reply(), b"*2\r\n$4\r\nlist\r\n$1\r\na\r\n");
    // A client that goes while it waits takes nothing.
    waiting.write(&resp::command_line("BLPOP list 0"));
    wait_for("a blocked client", SOON, || {
        other.info("blocked_clients").filter(|n| n == "1")
    });
    drop(waiting);
    wait_for("no blocked client", SOON, || {
        other.info("blocked_clients").filter(|n| n == "0")
    });
    other.check("RPUSH list b", ":1");
    other.check("LRANGE list 0 -1", "*1\r\n$1\r\nb");
}

#[test]
fn a_new_certificate_is_taken_over_while_it_runs() {
    let secured = Secured::start(&["--tls-auth-clients", "no"]);
    let mut old = secured.client();
    // Of another authority, under the same name.
    let next = Authority::new("next");
    let pair = next.issue("server");
    std::fs::copy(&pair.certificate, &secured.server.certificate).expect("copy a certificate");
    let file = text(&secured.server.certificate).to_owned();
    let wrong = format!("-ERR CONFIG SET failed (possibly related to argument 'tls-cert-file') - {CANNOT}");
    old.check(&format!("CONFIG SET tls-cert-file {file}"), &wrong);
    assert!(
        secured.client_with(None).is_ok(),
        "the key does not fit: nothing has changed"
    );
    std::fs::copy(&pair.key, &secured.server.key).expect("copy a key");
    old.check(&format!("CONFIG SET tls-cert-file {file}"), "+OK");
    assert!(
        secured.client_with(None).is_err(),
        "it is another server for who trusts the first"
    );
    assert!(secured.connect(next.client(None)).is_ok());
    old.check("PING", "+PONG");
    for (setting, value) in [
        ("tls-key-file", "/no/such/file"),
        ("tls-ca-cert-file", "/no/such/file"),
        ("tls-protocols", "SSLv3"),
        ("tls-ciphers", "none-of-these"),
        ("tls-ciphersuites", "none-of-these"),
    ] {
        let wrong = format!("-ERR CONFIG SET failed (possibly related to argument '{setting}') - {CANNOT}");
        old.check(&format!("CONFIG SET {setting} {value}"), &wrong);
    }
    assert!(secured.connect(next.client(None)).is_ok());
}

#[test]
fn each_door_speaks_its_protocol_and_all_take_a_new_certificate() {
    let [grpc, http] = [(); 2].map(|()| ports::free());
    let doors = [
        "--grpc-tls-port",
        &grpc.to_string(),
        "--http-tls-port",
        &http.to_string(),
    ];
    let secured = Secured::start(&[&["--tls-auth-clients", "no"][..], &doors].concat());
    // What a client gets that speaks both; nothing if it does not trust the server.
    let spoken = |authority: &Authority, port: u16| {
        let mut context = authority.context(None, None);
        context.set_alpn_protos(b"\x02h2\x08http/1.1").expect("protocols");
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
        let stream = to_loopback(&context.build()).connect(stream).ok()?;
        let chosen = stream.ssl().selected_alpn_protocol()?;
        Some(String::from_utf8_lossy(chosen).into_owned())
    };
    let all = |authority: &Authority| [grpc, http].map(|port| spoken(authority, port));
    let expected = ["h2", "http/1.1"].map(|name| Some(name.to_owned()));
    assert_eq!(all(&secured.authority), expected);
    let next = Authority::new("next");
    let pair = next.issue("server");
    std::fs::copy(&pair.certificate, &secured.server.certificate).expect("copy a certificate");
    std::fs::copy(&pair.key, &secured.server.key).expect("copy a key");
    let file = text(&secured.server.certificate);
    secured
        .node
        .client()
        .check(&format!("CONFIG SET tls-cert-file {file}"), "+OK");
    assert_eq!(all(&secured.authority), [None, None]);
    assert_eq!(all(&next), expected);
}

#[test]
fn a_hangup_reads_the_certificate_again() {
    let authority = Authority::new("tests");
    let server = authority.issue("server");
    let file = authority.dir().join("highwater.conf");
    let port = ports::free();
    let lines = format!(
        "tls-port {port}\ntls-auth-clients no\ntls-cert-file {}\ntls-key-file {}\n",
        text(&server.certificate),
        text(&server.key)
    );
    std::fs::write(&file, lines).expect("write a file of settings");
    let node = Highwater::builder().arg(text(&file)).allow("TLS").start();
    let secured = Secured {
        node,
        port,
        authority,
        server,
    };
    assert!(secured.client_with(None).is_ok());
    let next = Authority::new("next");
    let pair = next.issue("server");
    std::fs::copy(&pair.certificate, &secured.server.certificate).expect("copy a certificate");
    std::fs::copy(&pair.key, &secured.server.key).expect("copy a key");
    secured.node.signal(libc::SIGHUP);
    wait_for("the new certificate", SOON, || secured.connect(next.client(None)).ok());
    // Without a file of settings, too.
    let secured = Secured::start(&["--tls-auth-clients", "no"]);
    std::fs::copy(&pair.certificate, &secured.server.certificate).expect("copy a certificate");
    std::fs::copy(&pair.key, &secured.server.key).expect("copy a key");
    secured.node.signal(libc::SIGHUP);
    wait_for("the new certificate", SOON, || secured.connect(next.client(None)).ok());
}

#[test]
fn protocols_and_passphrases_are_those_of_the_settings() {
    let builder = Highwater::builder().args(&["--tls-auth-clients", "no", "--tls-key-file-pass", "open sesame"]);
    let secured = Secured::start_with(builder, Some("open sesame"));
    let speaks = |version| {
        let ssl = secured.authority.client_of(None, Some(version));
        secured.connect(ssl).is_ok()
    };
    let spoken = || [SslVersion::TLS1_1, SslVersion::TLS1_2, SslVersion::TLS1_3].map(speaks);
    assert_eq!(spoken(), [false, true, true], "by default");
    let mut client = secured.node.client();
    client.check("CONFIG SET tls-protocols TLSv1.3", "+OK");
    assert_eq!(spoken(), [false, false, true]);
    client.check("CONFIG SET tls-protocols \"TLSv1.2\"", "+OK");
    assert_eq!(spoken(), [false, true, false]);
    client.check(
        "CONFIG SET tls-key-file-pass wrong",
        &format!("-ERR CONFIG SET failed (possibly related to argument 'tls-key-file-pass') - {CANNOT}"),
    );
}

#[test]
fn what_does_not_fit_together_is_refused_at_the_start() {
    let authority = Authority::new("tests");
    let (server, other) = (authority.issue("server"), authority.issue("other"));
    let locked = authority.issue_locked("locked", Some("secret"));
    let (cert, key) = (text(&server.certificate), text(&server.key));
    for (args, reason) in [
        (vec![], "tls-cert-file and tls-key-file must be given"),
        (
            vec!["--tls-cert-file", cert, "--tls-key-file", key],
            "tls-auth-clients needs tls-ca-cert-file or tls-ca-cert-dir",
        ),
        (
            vec!["--tls-cert-file", cert, "--tls-key-file", text(&other.key)],
            "tls-key-file",
        ),
        (
            vec!["--tls-cert-file", "/none", "--tls-key-file", key],
            "tls-cert-file /none",
        ),
        (
            vec![
                "--tls-cert-file",
                text(&locked.certificate),
                "--tls-key-file",
                text(&locked.key),
            ],
            "tls-key-file",
        ),
    ] {
        let port = ports::free().to_string();
        let builder = Highwater::builder().args(&["--tls-port", &port]).args(&args);
        let (status, log) = builder.refuse(SOON);
        assert!(!status.success() && log.contains(reason), "{args:?}: {log}");
        assert!(log.contains("serve clients over TLS"), "{args:?}: {log}");
    }
}

#[test]
fn who_begins_no_handshake_holds_up_nobody_and_counts_as_a_client() {
    let secured = Secured::start(&["--tls-auth-clients", "no", "--maxclients", "3"]);
    let mut silent = TcpStream::connect(("127.0.0.1", secured.port)).expect("connect");
    // Not TLS.
    let mut plain = TcpStream::connect(("127.0.0.1", secured.port)).expect("connect");
    plain.write_all(b"PING\r\nPING\r\n").expect("send");
    let mut observer = secured.node.client();
    wait_for("the silent one to be counted", SOON, || {
        observer.info("connected_clients").filter(|n| n == "2")
    });
    let mut served = secured.client();
    served.check("PING", "+PONG");
    assert!(secured.client_with(None).is_err(), "maxclients");
    silent.write_all(b"\x16\x03\x01").expect("send");
    drop(silent);
    wait_for("a free place", SOON, || secured.client_with(None).ok());
    // The stop of the server does not wait for one.
    let mut secured = secured;
    let _silent = TcpStream::connect(("127.0.0.1", secured.port)).expect("connect");
    let began = std::time::Instant::now();
    assert!(secured.node.terminate().success());
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

/// Opens a connection and closes it. Returns its session, and whether that is `before`.
fn resume(port: u16, context: &SslContext, before: Option<&SslSession>) -> (SslSession, bool) {
    let mut ssl = to_loopback(context);
    if let Some(before) = before {
        // SAFETY: it is a session of this context.
        unsafe { ssl.set_session(before) }.expect("a session");
    }
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    let mut stream = ssl.connect(stream).expect("a handshake");
    let session = stream.ssl().session().expect("a session").to_owned();
    // OpenSSL forgets the sessions of connections that are cut off.
    stream.shutdown().expect("send the end");
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
    (session, stream.ssl().session_reused())
}

#[test]
fn sessions_are_resumed_for_as_long_as_the_settings_say() {
    let secured = Secured::start(&["--tls-auth-clients", "no"]);
    let mut admin = secured.node.client();
    let context = |options| {
        let mut builder = secured.authority.context(None, Some(SslVersion::TLS1_2));
        builder.set_options(options);
        builder.build()
    };
    // A client that keeps what it needs in a ticket.
    let keeps = context(SslOptions::empty());
    let new = || resume(secured.port, &keeps, None).0;
    let is_resumed = |session: &SslSession| resume(secured.port, &keeps, Some(session)).1;
    assert!(is_resumed(&new()));
    admin.check("CONFIG SET tls-session-cache-timeout 1", "+OK");
    let short = new();
    eventually("the session to be over", SOON, || !is_resumed(&short));
    admin.check("CONFIG SET tls-session-cache-timeout 300", "+OK");
    assert!(is_resumed(&new()));
    admin.check("CONFIG SET tls-session-caching no", "+OK");
    assert!(!is_resumed(&new()));
    // One for which the server has to remember it.
    admin.check("CONFIG SET tls-session-caching yes tls-session-cache-size 1", "+OK");
    let keeps_nothing = context(SslOptions::NO_TICKET);
    let first = resume(secured.port, &keeps_nothing, None).0;
    assert!(resume(secured.port, &keeps_nothing, Some(&first)).1);
    let second = resume(secured.port, &keeps_nothing, None).0;
    assert!(resume(secured.port, &keeps_nothing, Some(&second)).1);
    assert!(
        !resume(secured.port, &keeps_nothing, Some(&first)).1,
        "there is room for one"
    );
}

#[test]
fn the_name_in_a_certificate_is_a_user() {
    let secured = Secured::start(&["--tls-auth-clients", "optional"]);
    let ann = secured.authority.issue("ann");
    let who = |own: Option<&Pair>| secured.client_with(own).expect("is served").text("ACL WHOAMI");
    let mut admin = secured.node.client();
    admin.check("ACL SETUSER ann on >secret +@connection +acl|whoami +reset", "+OK");
    assert_eq!(who(Some(&ann)), "default", "it is off by default");
    admin.check("CONFIG SET tls-auth-clients-user cn", "+OK");
    admin.check(
        "CONFIG GET tls-auth-clients-user",
        "*2\r\n$21\r\ntls-auth-clients-user\r\n$2\r\nCN",
    );
    assert_eq!(who(Some(&ann)), "ann");
    assert_eq!(who(None), "default");
    // Nobody can log in without a certificate just because one would do.
    let mut guest = secured.client();
    guest.check(
        "AUTH ann wrong",
        "-WRONGPASS invalid username-password pair or user is disabled.",
    );
    // A login counts for more than a certificate, and RESET ends both, as in Redis.
    let mut client = secured.client_with(Some(&ann)).expect("is served");
    assert!(client.text("CLIENT INFO").contains(" user=ann "));
    client.check("AUTH default any", "+OK");
    assert_eq!(client.text("ACL WHOAMI"), "default");
    client.check("AUTH ann secret", "+OK");
    client.check("RESET", "+RESET");
    assert_eq!(client.text("ACL WHOAMI"), "default");
    // A user that is off or does not exist is noted.
    let denied = |admin: &mut Client| admin.info("acl_access_denied_tls_cert");
    assert_eq!(denied(&mut admin).as_deref(), Some("0"));
    let mut client = secured.client_with(Some(&ann)).expect("is served");
    admin.check("ACL SETUSER ann off", "+OK");
    assert_eq!(client.text("ACL WHOAMI"), "ann", "it stays who it was");
    assert_eq!(who(Some(&ann)), "default");
    assert_eq!(denied(&mut admin).as_deref(), Some("1"));
    admin.check("ACL DELUSER ann", ":1");
    assert!(client.is_closed(), "its user has gone");
    assert_eq!(who(Some(&ann)), "default");
    let log = resp::show(&admin.line("ACL LOG"));
    let is_noted = |text: &&str| log.contains(*text);
    assert!(["tls-cert", "toplevel", "ann"].iter().all(is_noted), "{log}");
    assert_eq!(admin.tree("ACL LOG").items().len(), 2, "with the wrong password: {log}");
}

#[test]
fn redis_cli_and_clients_in_four_languages_connect() {
    let secured = Secured::start(&["--tls-auth-clients", "optional", "--tls-auth-clients-user", "CN"]);
    let authority = secured.authority.file();
    let mut cli = parts::redis_cli();
    cli.args(["--tls", "--cacert", text(&authority), "-p", &secured.port.to_string()]);
    let output = process::run("redis-cli", cli, b"SET k v\nGET k\n", SOON);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "OK\nv\n");
    let url = format!("rediss://127.0.0.1:{}", secured.port);
    let mut python = clients::redis_py();
    python.env("SSL_CERT_FILE", &authority);
    clients::run("redis-py", python, &url);
    let mut node = clients::node_redis();
    node.env("NODE_EXTRA_CA_CERTS", &authority);
    clients::run("node-redis", node, &url);
    let mut go = clients::go_redis();
    go.env("SSL_CERT_FILE", &authority);
    clients::run("go-redis", go, &url);
    secured.node.client().check("ACL SETUSER lettuce on ~* &* +@all", "+OK");
    let own = secured.authority.issue("lettuce");
    let mut java = frameworks::java::command("Secured");
    java.env("REDIS_URL", &url).env("SECOND_URL", &url);
    java.env("CA_FILE", &authority);
    java.env("CERTIFICATE_FILE", &own.certificate).env("KEY_FILE", &own.key);
    let output = process::run("Lettuce", java, b"", Duration::from_secs(120));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "OK\n");
    // The healthcheck finds the port.
    let mut ping = std::process::Command::new(crate::support::server::binary());
    ping.args(["--ping", "--port", "0", "--tls-port", &secured.port.to_string()]);
    let client = secured.authority.issue("client");
    ping.args(["--tls-client-cert-file", text(&client.certificate)]);
    ping.args(["--tls-client-key-file", text(&client.key)]);
    process::run("highwater --ping", ping, b"", SOON);
}
