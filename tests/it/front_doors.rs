//! The front doors: RESP over TCP, a Unix socket and TLS, gRPC and HTTP without and with TLS. All
//! refuse the same, with the same words. A check that one of them lacks fails here.

mod bounds;

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::certificates::{Authority, Pair};
use crate::support::client::Client;
use crate::support::grpc::{Call, Grpc};
use crate::support::http::Http;
use crate::support::resp;
use crate::support::server::Highwater;
use crate::support::{ports, temp, wait_for};

const SOON: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const DOORS: [Door; 7] = [
    Door::Resp,
    Door::Unix,
    Door::Tls,
    Door::Grpc,
    Door::GrpcTls,
    Door::Http,
    Door::HttpTls,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Resp,
    Unix,
    Tls,
    Grpc,
    GrpcTls,
    Http,
    HttpTls,
}

/// How each door answers GET of a missing key: `served`, or how its error begins. The code of gRPC
/// comes first. `cut off`: without a reason, which gRPC's client reports as `UNAVAILABLE`. HTTP has
/// no keys: it is asked for its status, for which the user needs the right to run INFO.
type Expected = [&'static str; DOORS.len()];

const SERVED: Expected = ["served"; DOORS.len()];
/// For the doors with TLS alone. Others are served.
const NO_HANDSHAKE: Expected = [
    "served",
    "served",
    "cut off",
    "served",
    "UNAVAILABLE",
    "served",
    "cut off",
];
const NO_PASSWORD: Expected = alike("NOAUTH ", "UNAUTHENTICATED NOAUTH ", "401 NOAUTH ");
const WRONG_PASSWORD: Expected = alike("WRONGPASS ", "UNAUTHENTICATED WRONGPASS ", "401 WRONGPASS ");
const NO_COMMAND: Expected = alike(
    "NOPERM User ann has no permissions to run the 'get' command",
    "PERMISSION_DENIED NOPERM User ann has no permissions to run the 'get' command",
    "403 NOPERM User ann has no permissions to run the 'info' command",
);
const NO_KEY: Expected = alike(
    "NOPERM No permissions to access a key",
    "PERMISSION_DENIED NOPERM No permissions to access a key",
    "served",
);
/// A client of TLS is refused before the handshake. A Unix socket is never reached from elsewhere.
const PROTECTED: Expected = [
    "DENIED ",
    "served",
    "cut off",
    "FAILED_PRECONDITION DENIED ",
    "UNAVAILABLE",
    "403 DENIED ",
    "cut off",
];
/// `ann` by her certificate, without rights.
const ANN_BY_CERTIFICATE: Expected = [
    "served",
    "served",
    NO_COMMAND[2],
    "served",
    NO_COMMAND[4],
    "served",
    NO_COMMAND[6],
];
/// Where the default user needs a password.
const ONLY_BY_CERTIFICATE: Expected = [
    NO_PASSWORD[0],
    NO_PASSWORD[1],
    "served",
    NO_PASSWORD[3],
    "served",
    NO_PASSWORD[5],
    "served",
];
const FULL: Expected = [
    "ERR max number of clients reached",
    "ERR max number of clients reached",
    "cut off",
    "RESOURCE_EXHAUSTED ERR max number of clients reached",
    "UNAVAILABLE",
    "503 ERR max number of clients reached",
    "cut off",
];

const fn alike(error: &'static str, status: &'static str, http: &'static str) -> Expected {
    [error, error, error, status, status, http, http]
}

/// Who asks.
#[derive(Clone, Copy, Debug, Default)]
struct Guest {
    /// From another address than the loopback interface's.
    from_outside: bool,
    /// A password, or a user and a password.
    login: Option<&'static str>,
    certificate: Certificate,
}

/// What a guest shows at the doors with TLS.
#[derive(Clone, Copy, Debug, Default)]
enum Certificate {
    #[default]
    None,
    /// Of this name.
    Known(&'static str),
    /// Of this name, and signed by an authority that the node does not know.
    Foreign(&'static str),
}

const ANYBODY: Guest = Guest {
    from_outside: false,
    login: None,
    certificate: Certificate::None,
};
const OUTSIDER: Guest = Guest {
    from_outside: true,
    ..ANYBODY
};

const fn logs_in(login: &'static str) -> Guest {
    Guest {
        login: Some(login),
        ..ANYBODY
    }
}

const fn shows(certificate: Certificate) -> Guest {
    Guest { certificate, ..ANYBODY }
}

/// A node with all doors.
struct House {
    node: Highwater,
    socket: PathBuf,
    tls_port: u16,
    grpc_port: u16,
    grpc_tls_port: u16,
    http_port: u16,
    http_tls_port: u16,
    grpc: Grpc,
    authority: Authority,
    strangers: Authority,
    _dir: TempDir,
}

impl House {
    fn new(args: &[&str]) -> House {
        House::allowing(&[], args)
    }

    /// Log lines with these texts are no reason to fail.
    fn allowing(allowed: &[&str], args: &[&str]) -> House {
        let [tls_port, grpc_port, grpc_tls_port, http_port, http_tls_port] = [(); 5].map(|()| ports::free());
        let authority = Authority::new("tests");
        let server = authority.issue("server");
        let dir = temp::dir("doors");
        let socket = dir.path().join("socket");
        let builder = [
            ("--unixsocket", socket.display().to_string()),
            ("--tls-port", tls_port.to_string()),
            ("--grpc-port", grpc_port.to_string()),
            ("--grpc-tls-port", grpc_tls_port.to_string()),
            ("--http-port", http_port.to_string()),
            ("--http-tls-port", http_tls_port.to_string()),
            ("--tls-auth-clients", "no".to_owned()),
            ("--tls-ca-cert-file", authority.file().display().to_string()),
            ("--tls-cert-file", server.certificate.display().to_string()),
            ("--tls-key-file", server.key.display().to_string()),
        ]
        .iter()
        .fold(Highwater::builder(), |builder, (name, value)| {
            builder.args(&[name, value])
        });
        let builder = allowed.iter().fold(builder, |builder, text| builder.allow(text));
        House {
            node: builder.args(args).start(),
            socket,
            tls_port,
            grpc_port,
            grpc_tls_port,
            http_port,
            http_tls_port,
            grpc: Grpc::start(),
            authority,
            strangers: Authority::new("strangers"),
            _dir: dir,
        }
    }

    fn call(&self, method: &'static str, key: &'static str) -> Call {
        Call::new(format!("{LOOPBACK}:{}", self.grpc_port), method, key)
    }

    fn certificate(&self, certificate: Certificate) -> Option<Pair> {
        match certificate {
            Certificate::None => None,
            Certificate::Known(name) => Some(self.authority.issue(name)),
            Certificate::Foreign(name) => Some(self.strangers.issue(name)),
        }
    }

    /// A connection at one of the doors that speak RESP.
    fn enter(&self, door: Door, guest: Guest) -> io::Result<Client> {
        let from = guest.address();
        match door {
            Door::Resp => Client::try_connect_to((from, self.node.port)),
            Door::Unix => Client::try_connect_locally(&self.socket),
            Door::Tls => {
                let own = self.certificate(guest.certificate);
                let mut ssl = self.authority.client(own.as_ref());
                ssl.param_mut().set_ip(from).expect("an address");
                Client::try_connect_securely((from, self.tls_port), ssl)
            }
            Door::Grpc | Door::GrpcTls | Door::Http | Door::HttpTls => panic!("{door:?} does not speak RESP"),
        }
    }

    /// A connection at one of the doors that speak HTTP.
    fn enter_http(&self, door: Door, guest: Guest) -> io::Result<Http> {
        let from = guest.address();
        if door == Door::Http {
            return Http::connect((from, self.http_port));
        }
        let own = self.certificate(guest.certificate);
        let mut ssl = self.authority.client(own.as_ref());
        ssl.param_mut().set_ip(from).expect("an address");
        Http::connect_securely((from, self.http_tls_port), ssl)
    }

    fn ask_http(&self, door: Door, guest: Guest) -> (String, Option<String>) {
        let login = guest.login.map(login);
        let entered = self.enter_http(door, guest);
        match entered.and_then(|mut http| http.get("/status", login.as_deref())) {
            Ok(answer) if answer.status == 200 => ("served".into(), None),
            Ok(answer) => {
                let words = answer.body.trim_end();
                // The words name the command.
                (
                    format!("{} {words}", answer.status),
                    Some(words.replace("'info'", "'get'")),
                )
            }
            Err(error) if error.kind() == ErrorKind::TimedOut => ("no answer".into(), None),
            Err(_) => ("cut off".into(), None),
        }
    }

    /// Where gRPC's client finds one of the other doors.
    fn target(&self, door: Door, guest: Guest) -> String {
        let from = guest.address();
        if door == Door::Grpc {
            return format!("{from}:{}", self.grpc_port);
        }
        let own = self.certificate(guest.certificate);
        let own = own.map_or(String::new(), |own| {
            format!(",{},{}", own.key.display(), own.certificate.display())
        });
        format!("{}{own}@{from}:{}", self.authority.file().display(), self.grpc_tls_port)
    }

    /// How a door answers GET of a missing key on a connection of its own, and with which words.
    fn ask(&mut self, door: Door, guest: Guest) -> (String, Option<String>) {
        if let Door::Resp | Door::Unix | Door::Tls = door {
            return match self.enter(door, guest).and_then(|client| refusal(client, guest.login)) {
                Ok(None) => ("served".into(), None),
                Ok(Some(words)) => (words.clone(), Some(words)),
                Err(error) if error.kind() == ErrorKind::TimedOut => ("no answer".into(), None),
                Err(_) => ("cut off".into(), None),
            };
        }
        if let Door::Http | Door::HttpTls = door {
            return self.ask_http(door, guest);
        }
        let ended = self.grpc.call(&Call {
            target: self.target(door, guest),
            login: guest.login.map(login),
            ..self.call("Get", "missing")
        });
        match &*ended.code {
            "OK" => ("served".into(), None),
            // The words are those of the client's library.
            "UNAVAILABLE" => (ended.code, None),
            code => (format!("{code} {}", ended.details), Some(ended.details)),
        }
    }

    /// Asks at every door. All that give a reason give it in the same words.
    #[track_caller]
    fn check(&mut self, guest: Guest, expected: Expected) {
        let mut all_words: Vec<String> = Vec::new();
        for (door, expected) in DOORS.into_iter().zip(expected) {
            let (answer, words) = self.ask(door, guest);
            assert!(
                answer.starts_with(expected),
                "{door:?}: {answer:?}, and not {expected:?}"
            );
            all_words.extend(words);
        }
        all_words.dedup();
        assert!(all_words.len() <= 1, "different words: {all_words:?}");
    }
}

impl Guest {
    fn address(&self) -> IpAddr {
        match self.from_outside {
            true => ports::other_address().expect("a machine with a network"),
            false => LOOPBACK,
        }
    }
}

/// The words of AUTH as gRPC takes them: a password, or a user and a password.
fn login(words: &str) -> String {
    let (user, password) = words.split_once(' ').unwrap_or(("default", words));
    format!("{user}:{password}")
}

/// What GET of a missing key is answered; `None` if it is served.
fn refusal(mut client: Client, password: Option<&str>) -> io::Result<Option<String>> {
    let login = password.map(|password| format!("AUTH {password}"));
    for line in login.iter().map(String::as_str).chain(["GET missing"]) {
        let written = client.try_write(&resp::command_line(line));
        // A server that closes the connection may have said why before.
        let Some(reply) = client.try_reply()? else {
            return Err(written.err().unwrap_or(io::ErrorKind::UnexpectedEof.into()));
        };
        let reply = String::from_utf8_lossy(&reply).into_owned();
        if let Some(error) = reply.strip_prefix('-') {
            return Ok(Some(error.trim_end().to_owned()));
        }
    }
    Ok(None)
}

/// What an administrator does first (nothing if it is empty), who asks then, and how each door
/// answers.
type Row = (&'static str, Guest, Expected);

/// Nodes with their arguments.
const HOUSES: &[(&[&str], &[Row])] = &[
    (
        &["--bind", "*"],
        &[
            ("", ANYBODY, SERVED),
            ("", OUTSIDER, PROTECTED),
            ("ACL SETUSER ann on >secret", logs_in("ann secret"), NO_COMMAND),
            ("ACL SETUSER ann +get +info ~other", logs_in("ann secret"), NO_KEY),
            ("ACL SETUSER ann %W~missing", logs_in("ann secret"), NO_KEY),
            ("ACL SETUSER ann %R~missing", logs_in("ann secret"), SERVED),
            ("", logs_in("ann wrong"), WRONG_PASSWORD),
            ("", logs_in("bob secret"), WRONG_PASSWORD),
            ("ACL SETUSER ann off", logs_in("ann secret"), WRONG_PASSWORD),
        ],
    ),
    (&["--bind", "*", "--protected-mode", "no"], &[("", OUTSIDER, SERVED)]),
    (
        &["--bind", "*", "--requirepass", "secret"],
        &[
            ("", ANYBODY, NO_PASSWORD),
            ("", logs_in("wrong"), WRONG_PASSWORD),
            ("", logs_in("secrets"), WRONG_PASSWORD),
            ("", logs_in("secret"), SERVED),
            ("", OUTSIDER, NO_PASSWORD),
            (
                "",
                Guest {
                    from_outside: true,
                    ..logs_in("secret")
                },
                SERVED,
            ),
        ],
    ),
    (
        &["--tls-auth-clients", "yes", "--tls-auth-clients-user", "CN"],
        &[
            ("", ANYBODY, NO_HANDSHAKE),
            ("", shows(Certificate::Foreign("ann")), NO_HANDSHAKE),
            ("", shows(Certificate::Known("ann")), SERVED),
            (
                "ACL SETUSER ann on >secret",
                shows(Certificate::Known("ann")),
                ANN_BY_CERTIFICATE,
            ),
            ("", shows(Certificate::Known("bob")), SERVED),
            ("", shows(Certificate::Foreign("ann")), NO_HANDSHAKE),
            (
                "ACL SETUSER ann +get +info ~*",
                shows(Certificate::Known("ann")),
                SERVED,
            ),
            (
                "CONFIG SET requirepass secret",
                shows(Certificate::Known("ann")),
                ONLY_BY_CERTIFICATE,
            ),
            ("ACL SETUSER ann off", shows(Certificate::Known("ann")), NO_PASSWORD),
        ],
    ),
];

#[test]
fn who_may_not_is_refused_alike() {
    for (args, rows) in HOUSES {
        let mut house = House::allowing(&["without a password", "TLS handshake failed"], args);
        let mut admin = house.node.client();
        if args.contains(&"--requirepass") {
            admin.check("AUTH secret", "+OK");
        }
        for &(before, guest, expected) in *rows {
            println!("{args:?} {before:?} {guest:?}");
            if !before.is_empty() {
                admin.check(before, "+OK");
            }
            house.check(guest, expected);
        }
    }
}

/// Who makes the calls of a connection is a matter of each call.
#[test]
fn calls_of_one_connection_have_users_of_their_own() {
    let mut house = House::new(&[]);
    let mut admin = house.node.client();
    admin.check("ACL SETUSER ann on >secret +get ~a*", "+OK");
    admin.check("ACL SETUSER bob on >secret +get ~b*", "+OK");
    let call = |house: &mut House, user: &str, key: &'static str| {
        let call = Call {
            channel: Some("shared".into()),
            login: Some(format!("{user}:secret")),
            ..house.call("Get", key)
        };
        house.grpc.call(&call).code
    };
    let denied = "PERMISSION_DENIED";
    assert_eq!(["a", "b"].map(|key| call(&mut house, "ann", key)), ["OK", denied]);
    assert_eq!(["b", "a"].map(|key| call(&mut house, "bob", key)), ["OK", denied]);
    let log = admin.tree("ACL LOG");
    for (entry, user) in log.items().iter().zip(["bob", "ann"]) {
        let text = format!("{entry:?}");
        let fields: Vec<_> = entry.items().iter().filter_map(|item| item.bytes()).collect();
        let info = fields.iter().find(|field| field.starts_with(b"id=")).expect("a client");
        let info = String::from_utf8_lossy(info);
        assert!(info.contains(&format!(" user={user} ")), "{info} {text}");
    }
    // The connection is that of the user of its last call: it stays when another one goes.
    let local = format!(":{} ", house.grpc_port);
    let shown = |admin: &mut Client| -> Vec<[String; 2]> {
        let list = admin.text("CLIENT LIST");
        let of_door = list.lines().filter(|line| line.contains(&local));
        let field = |line: &str, name: &str| {
            let mut fields = line.split(' ').filter_map(|field| field.strip_prefix(name));
            fields.next().expect("a field").to_owned()
        };
        of_door
            .map(|line| ["id=", "user="].map(|name| field(line, name)))
            .collect()
    };
    let before = shown(&mut admin);
    assert!(matches!(&before[..], [[_, user]] if user == "bob"), "{before:?}");
    admin.check("ACL DELUSER ann", ":1");
    assert_eq!(call(&mut house, "ann", "a"), "UNAUTHENTICATED");
    admin.check("ACL SETUSER bob resetpass >other", "+OK");
    assert_eq!(call(&mut house, "bob", "b"), "UNAUTHENTICATED");
    admin.check("ACL SETUSER bob >secret", "+OK");
    assert_eq!(call(&mut house, "bob", "b"), "OK");
    assert_eq!(shown(&mut admin), before);
    admin.check("ACL DELUSER bob", ":1");
    // It was closed, and the client connects anew.
    admin.check("ACL SETUSER cid on >secret +get ~c*", "+OK");
    wait_for("another connection", SOON, || {
        (call(&mut house, "cid", "c") == "OK").then_some(())
    });
    let after = shown(&mut admin);
    assert!(
        matches!(&after[..], [[id, user]] if *id != before[0][0] && user == "cid"),
        "{after:?}"
    );
    admin.check("CLIENT KILL USER cid", ":1");
}

/// A certificate counts for calls without credentials, while its user is on.
#[test]
fn a_call_is_by_certificate_if_it_names_nobody() {
    let args = [
        "--tls-auth-clients",
        "yes",
        "--tls-auth-clients-user",
        "CN",
        "--requirepass",
        "secret",
    ];
    let mut house = House::new(&args);
    let mut admin = house.node.client();
    admin.check("AUTH secret", "+OK");
    admin.check("ACL SETUSER ann on >hers +get ~*", "+OK");
    let call = Call {
        target: house.target(Door::GrpcTls, shows(Certificate::Known("ann"))),
        channel: Some("ann".into()),
        ..house.call("Get", "missing")
    };
    let mut code = |login: Option<&str>| {
        let login = login.map(str::to_owned);
        house.grpc.call(&Call { login, ..call.clone() }).code
    };
    assert_eq!(code(None), "OK");
    assert_eq!(code(Some("Bearer hers")), "UNAUTHENTICATED");
    assert_eq!(code(Some("ann:hers")), "OK");
    assert_eq!(code(None), "OK");
    admin.check("ACL SETUSER ann off", "+OK");
    assert_eq!(code(None), "UNAUTHENTICATED");
    admin.check("ACL SETUSER ann on", "+OK");
    assert_eq!(code(None), "OK");
}

#[test]
fn all_doors_share_maxclients() {
    let mut house = House::new(&["--maxclients", "2"]);
    // It stays open: a connection that asks and goes may still have its place when the next ones
    // come.
    let mut first = house.node.client();
    wait_for("the connection of the start to be gone", SOON, || {
        let is_alone = first.info("connected_clients").is_some_and(|n| n == "1");
        is_alone.then_some(())
    });
    let mut second = house.node.client();
    second.check("PING", "+PONG");
    house.check(ANYBODY, FULL);
    drop([first, second]);
    // Those of any door take the places.
    let mut enter = |door| {
        wait_for("a free place", SOON, || {
            let mut client = house.enter(door, ANYBODY).ok()?;
            client.try_write(&resp::command_line("PING")).ok()?;
            let is_served = client
                .try_reply()
                .is_ok_and(|reply| reply.as_deref() == Some(b"+PONG\r\n"));
            is_served.then_some(client)
        })
    };
    let by_redis = [Door::Unix, Door::Tls].map(&mut enter);
    house.check(ANYBODY, FULL);
    drop(by_redis);
    let by_http = [Door::Http, Door::HttpTls].map(|door| {
        wait_for("a free place", SOON, || {
            let mut http = house.enter_http(door, ANYBODY).ok()?;
            let answer = http.get("/livez", None).ok()?;
            (answer.status == 200).then_some(http)
        })
    });
    house.check(ANYBODY, FULL);
    drop(by_http);
    for door in [Door::Grpc, Door::GrpcTls] {
        let call = Call {
            target: house.target(door, ANYBODY),
            channel: Some(format!("{door:?}")),
            ..house.call("Get", "missing")
        };
        wait_for("a free place", SOON, || {
            (house.grpc.call(&call).code == "OK").then_some(())
        });
    }
    house.check(ANYBODY, FULL);
}

/// Whether a door that speaks RESP refuses this request, however that is said.
fn is_refused(mut client: Client, request: &[u8]) -> bool {
    let _ = client.try_write(request);
    match client.try_reply() {
        Ok(Some(reply)) => reply.starts_with(b"-ERR Protocol error") && client.is_closed(),
        Ok(None) => true,
        Err(error) => error.kind() != ErrorKind::TimedOut,
    }
}

#[test]
fn what_is_too_large_is_refused_alike() {
    // A setting, how often a key of 1 MB is asked for, and how large a written value is.
    for (args, times, size) in [
        (["--proto-max-bulk-len", "2mb"], 0, 3 << 20),
        (["--client-query-buffer-limit", "2mb"], 0, 3 << 20),
        (["--client-output-buffer-limit", "normal 2mb 0 0"], 4, 0),
        (["--maxmemory-clients", "8mb"], 0, 40 << 20),
    ] {
        let mut house = House::allowing(&["above", "more than"], &args);
        let large = vec![b'x'; 1_000_000];
        assert_eq!(house.node.client().send(&[b"SET", b"large", &large]), b"+OK\r\n");
        let request = match times {
            // Not quite all of it: what connections hold is summed up ten times a second, and a
            // request can be quicker.
            0 => {
                let mut request = resp::command(&[b"SET", b"key", &vec![b'v'; size]]);
                request.truncate(request.len() - 2);
                request
            }
            times => resp::command(&[&[&b"MGET"[..]], &vec![&b"large"[..]; times][..]].concat()),
        };
        for door in DOORS {
            println!("{args:?} {door:?}");
            if let Door::Resp | Door::Unix | Door::Tls = door {
                let client = house.enter(door, ANYBODY).expect("a connection");
                assert!(is_refused(client, &request));
                continue;
            }
            // HTTP takes no data, and gives none.
            if let Door::Http | Door::HttpTls = door {
                continue;
            }
            let call = match times {
                0 => Call {
                    number: size,
                    ..house.call("Set", "key")
                },
                times => Call {
                    number: times,
                    ..house.call("MultiGet", "large")
                },
            };
            let ended = house.grpc.call(&Call {
                target: house.target(door, ANYBODY),
                ..call
            });
            assert_eq!(ended.code, "RESOURCE_EXHAUSTED", "{ended:?}");
            assert!(ended.details.contains(args[0].trim_start_matches("--")), "{ended:?}");
        }
        let mut client = house.node.client();
        client.check("GET key", "$-1");
        house.check(ANYBODY, SERVED);
    }
}

#[test]
fn idle_connections_are_closed_at_every_door() {
    let mut house = House::new(&[]);
    let by_grpc = Call {
        channel: Some("idle".into()),
        ..house.call("Get", "missing")
    };
    let secured = Call {
        target: house.target(Door::GrpcTls, ANYBODY),
        channel: Some("secured".into()),
        ..by_grpc.clone()
    };
    assert_eq!(
        [&by_grpc, &secured].map(|call| house.grpc.call(call).code),
        ["OK", "OK"]
    );
    let mut by_redis = [Door::Resp, Door::Unix, Door::Tls].map(|door| {
        let mut client = house.enter(door, ANYBODY).expect("a connection");
        client.check("PING", "+PONG");
        client
    });
    let mut by_http = house.enter_http(Door::Http, ANYBODY).expect("a connection");
    assert_eq!(by_http.get("/livez", None).expect("an answer").status, 200);
    // They wait already.
    house.node.client().check("CONFIG SET timeout 1", "+OK");
    let connected = || house.node.client().info("connected_clients");
    wait_for("all to be closed", SOON, || connected().filter(|left| left == "1"));
    assert!(by_redis.iter_mut().all(Client::is_closed) && by_http.is_closed());
    // CLIENT KILL closes them, too.
    let mut observer = house.node.client();
    observer.check("CONFIG SET timeout 0", "+OK");
    wait_for("another connection", SOON, || {
        (house.grpc.call(&by_grpc).code == "OK").then_some(())
    });
    wait_for("those who asked to be gone", SOON, || {
        observer.info("connected_clients").filter(|left| left == "2")
    });
    observer.check("CLIENT KILL TYPE normal", ":1");
    wait_for("it to be closed", SOON, || connected().filter(|left| left == "2"));
}
