//! Every front door (RESP and gRPC, each also over TLS) refuses the same, with the same words. A check that one of them lacks fails here.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use openssl::ssl::SslVerifyMode;

use crate::support::certificates::Authority;
use crate::support::client::Client;
use crate::support::grpc::{Call, Ended, Grpc};
use crate::support::resp;
use crate::support::server::{Builder, Highwater};
use crate::support::{ports, wait_for};

const SOON: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;
const TOO_MANY: &str = "ERR max number of clients reached";
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A node with all doors.
struct House {
    node: Highwater,
    tls_port: u16,
    grpc_port: u16,
    grpc_tls_port: u16,
    grpc: Grpc,
    authority: Authority,
}

impl House {
    fn new(args: &[&str]) -> House {
        House::start(Highwater::builder().args(args))
    }

    fn start(builder: Builder) -> House {
        let [tls_port, grpc_port, grpc_tls_port] = [(); 3].map(|()| ports::free());
        let authority = Authority::new("tests");
        let server = authority.issue("server");
        let builder = [
            ("--tls-port", tls_port.to_string()),
            ("--grpc-port", grpc_port.to_string()),
            ("--grpc-tls-port", grpc_tls_port.to_string()),
            ("--tls-auth-clients", "no".to_owned()),
            ("--tls-cert-file", server.certificate.display().to_string()),
            ("--tls-key-file", server.key.display().to_string()),
        ]
        .iter()
        .fold(builder, |builder, (name, value)| builder.args(&[name, value]));
        House {
            node: builder.start(),
            tls_port,
            grpc_port,
            grpc_tls_port,
            grpc: Grpc::start(),
            authority,
        }
    }

    fn call(&self, method: &'static str, key: &'static str) -> Call {
        Call::new(format!("{LOOPBACK}:{}", self.grpc_port), method, key)
    }

    /// What GET of a missing key, on a connection of its own, is answered at the doors without TLS;
    /// `None` where it is served.
    fn refusals(&mut self, from: IpAddr, password: Option<&str>) -> (Option<String>, Option<Ended>) {
        let client = Client::connect_to((from, self.node.port));
        let refused = refusal(client, password).expect("a reply");
        let ended = self.grpc.call(&Call {
            target: format!("{from}:{}", self.grpc_port),
            login: password.map(login),
            ..self.call("Get", "missing")
        });
        (refused, Some(ended).filter(|ended| ended.code != "OK"))
    }

    /// The same at the doors with TLS. The error: there was no handshake.
    fn refusals_with_tls(
        &mut self,
        from: IpAddr,
        password: Option<&str>,
    ) -> (std::io::Result<Option<String>>, Option<Ended>) {
        let mut ssl = self.authority.client(None);
        // The certificate is for the loopback interface.
        ssl.set_verify(SslVerifyMode::NONE);
        let client = Client::try_connect_securely((from, self.tls_port), ssl);
        let refused = client.and_then(|client| refusal(client, password));
        let ended = self.grpc.call(&Call {
            target: format!("{}@{from}:{}", self.authority.file().display(), self.grpc_tls_port),
            login: password.map(login),
            ..self.call("Get", "missing")
        });
        (refused, Some(ended).filter(|ended| ended.code != "OK"))
    }
    #[track_caller]
    fn refuses_alike(&mut self, from: IpAddr, password: Option<&str>, expected: Option<(&str, &str)>) {
        let (resp, grpc) = self.refusals(from, password);
        let (text, code) = expected.unzip();
        let begins = |refused: Option<&str>| refused.map(|refused| refused.starts_with(text.unwrap_or("served")));
        assert_eq!(begins(resp.as_deref()), text.map(|_| true), "RESP: {resp:?}");
        assert_eq!(grpc.as_ref().map(|ended| &*ended.code), code, "gRPC: {grpc:?}");
        assert_eq!(resp, grpc.clone().map(|ended| ended.details), "the same words");
        match self.refusals_with_tls(from, password) {
            // Who may not connect at all has no handshake, and so no reason.
            (Err(_), Some(ended)) if matches!(text, Some("DENIED " | TOO_MANY)) => {
                assert_eq!(ended.code, "UNAVAILABLE", "{ended:?}");
            }
            (with_tls, ended) if from == LOOPBACK => {
                assert_eq!((with_tls.expect("a reply"), ended), (resp, grpc), "with TLS");
            }
            // The certificate is not for that address, so gRPC does not trust it.
            (with_tls, _) => assert_eq!(with_tls.expect("a reply"), resp, "with TLS"),
        }
    }
}

/// The words of AUTH as gRPC takes them: a password, or a user and a password.
fn login(words: &str) -> String {
    let (user, password) = words.split_once(' ').unwrap_or(("default", words));
    format!("{user}:{password}")
}

/// What GET of a missing key is answered; `None` if it is served.
fn refusal(mut client: Client, password: Option<&str>) -> std::io::Result<Option<String>> {
    let login = password.map(|password| format!("AUTH {password}"));
    for line in login.iter().map(String::as_str).chain(["GET missing"]) {
        client.try_write(&resp::command_line(line))?;
        let reply = client.try_reply()?.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        let reply = String::from_utf8_lossy(&reply).into_owned();
        if let Some(error) = reply.strip_prefix('-') {
            return Ok(Some(error.trim_end().to_owned()));
        }
    }
    Ok(None)
}

/// An address of this machine that is not the loopback interface's.
fn other_address() -> IpAddr {
    // Nothing is sent: the system only chooses the address that it would send from.
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    socket.connect("192.0.2.1:9").expect("a machine with a network");
    socket.local_addr().expect("an address").ip()
}

#[test]
fn who_is_not_let_in_is_refused_alike() {
    const OPEN: &[&str] = &["--bind", "*"];
    const LOCKED: &[&str] = &["--bind", "*", "--requirepass", "secret"];
    const TRUSTING: &[&str] = &["--bind", "*", "--protected-mode", "no"];
    let no_password = Some(("NOAUTH ", "UNAUTHENTICATED"));
    let wrong = Some(("WRONGPASS ", "UNAUTHENTICATED"));
    let protected = Some(("DENIED ", "FAILED_PRECONDITION"));
    let other = other_address();
    for (args, cases) in [
        (OPEN, &[(LOOPBACK, None, None), (other, None, protected)][..]),
        (TRUSTING, &[(other, None, None)]),
        (
            LOCKED,
            &[
                (LOOPBACK, None, no_password),
                (LOOPBACK, Some("wrong"), wrong),
                (LOOPBACK, Some("secrets"), wrong),
                (LOOPBACK, Some("secret"), None),
                (other, None, no_password),
                (other, Some("secret"), None),
            ],
        ),
    ] {
        let mut house = House::start(Highwater::builder().args(args).allow("without a password"));
        for &(from, password, expected) in cases {
            println!("{args:?} {from} {password:?}");
            house.refuses_alike(from, password, expected);
        }
    }
}

#[test]
fn a_user_without_rights_is_refused_alike() {
    let denied = |text| Some((text, "PERMISSION_DENIED"));
    let no_key = denied("NOPERM No permissions to access a key");
    let mut house = House::new(&[]);
    let mut admin = house.node.client();
    for (rules, expected) in [
        (
            "on >secret",
            denied("NOPERM User ann has no permissions to run the 'get' command"),
        ),
        ("+get ~other", no_key),
        ("%W~missing", no_key),
        ("%R~missing", None),
        ("off", Some(("WRONGPASS ", "UNAUTHENTICATED"))),
    ] {
        println!("{rules}");
        admin.check(&format!("ACL SETUSER ann {rules}"), "+OK");
        house.refuses_alike(LOOPBACK, Some("ann secret"), expected);
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
    // The connection is nobody's: it stays when a user goes.
    let local = format!(":{} ", house.grpc_port);
    let ids = |admin: &mut Client| -> Vec<String> {
        let list = admin.text("CLIENT LIST");
        let of_door = list.lines().filter(|line| line.contains(&local));
        of_door
            .filter_map(|line| line.split(' ').next().map(str::to_owned))
            .collect()
    };
    let before = ids(&mut admin);
    assert_eq!(before.len(), 1, "{before:?}");
    admin.check("ACL DELUSER ann", ":1");
    assert_eq!(call(&mut house, "ann", "a"), "UNAUTHENTICATED");
    assert_eq!(call(&mut house, "bob", "b"), "OK");
    assert_eq!(ids(&mut admin), before);
}

#[test]
fn both_doors_share_maxclients() {
    let full = Some((TOO_MANY, "RESOURCE_EXHAUSTED"));
    let mut house = House::new(&["--maxclients", "2"]);
    // It stays open: a connection that asks and goes may still have its place when the next ones come.
    let mut first = house.node.client();
    wait_for("the connection of the start to be gone", SOON, || {
        let is_alone = first.info("connected_clients").is_some_and(|n| n == "1");
        is_alone.then_some(())
    });
    let by_redis = [first, house.node.client()].map(|mut client| {
        client.check("PING", "+PONG");
        client
    });
    house.refuses_alike(LOOPBACK, None, full);
    drop(by_redis);
    let open = |house: &mut House, name: &str| {
        let call = Call {
            channel: Some(name.into()),
            ..house.call("Get", "missing")
        };
        wait_for("a free place", SOON, || {
            (house.grpc.call(&call).code == "OK").then_some(())
        });
    };
    open(&mut house, "first");
    open(&mut house, "second");
    house.refuses_alike(LOOPBACK, None, full);
}

#[test]
fn idle_connections_are_closed_at_both_doors() {
    let mut house = House::new(&["--timeout", "1"]);
    let by_grpc = Call {
        channel: Some("idle".into()),
        ..house.call("Get", "missing")
    };
    assert_eq!(house.grpc.call(&by_grpc).code, "OK");
    let mut by_redis = house.node.client();
    by_redis.check("PING", "+PONG");
    let connected = || house.node.client().info("connected_clients");
    assert_eq!(connected().as_deref(), Some("3"), "both, and who asks");
    wait_for("both to be closed", SOON, || connected().filter(|left| left == "1"));
    assert!(by_redis.is_closed());
    assert_eq!(house.grpc.call(&by_grpc).code, "OK", "it connects anew");
    // CLIENT KILL closes it, too.
    let mut observer = house.node.client();
    observer.check("CONFIG SET timeout 0", "+OK");
    assert_eq!(house.grpc.call(&by_grpc).code, "OK");
    observer.check("CLIENT KILL TYPE normal", ":1");
    wait_for("it to be closed", SOON, || connected().filter(|left| left == "2"));
}

#[test]
fn what_is_too_large_is_refused_alike() {
    // A setting, what is asked with 1 MB in key `large`, and whether that is a write.
    for (args, times, size) in [
        (["--proto-max-bulk-len", "2mb"], 0, 3 << 20),
        (["--client-query-buffer-limit", "2mb"], 0, 3 << 20),
        (["--client-output-buffer-limit", "normal 2mb 0 0"], 4, 0),
        (["--maxmemory-clients", "8mb"], 0, 40 << 20),
    ] {
        println!("{args:?}");
        let mut house = House::start(Highwater::builder().args(&args).allow("above").allow("more than"));
        let large = vec![b'x'; 1_000_000];
        assert_eq!(house.node.client().send(&[b"SET", b"large", &large]), b"+OK\r\n");
        let mut client = house.node.client();
        let request = match times {
            // Not quite all of it: what connections hold is summed up ten times a second, and a request can be quicker.
            0 => {
                let mut request = resp::command(&[b"SET", b"key", &vec![b'v'; size]]);
                request.truncate(request.len() - 2);
                request
            }
            times => resp::command(&[&[&b"MGET"[..]], &vec![&b"large"[..]; times][..]].concat()),
        };
        let _ = client.try_write(&request);
        let refused = match client.try_reply() {
            Ok(Some(reply)) => reply.starts_with(b"-ERR Protocol error") && client.is_closed(),
            Ok(None) | Err(_) => true,
        };
        assert!(refused, "RESP is refused: {args:?}");
        let ended = house.grpc.call(&match times {
            0 => Call {
                number: size,
                ..house.call("Set", "key")
            },
            times => Call {
                number: times,
                ..house.call("MultiGet", "large")
            },
        });
        assert_eq!(ended.code, "RESOURCE_EXHAUSTED", "{ended:?}");
        assert!(ended.details.contains(args[0].trim_start_matches("--")), "{ended:?}");
        let mut client = house.node.client();
        client.check("GET key", "$-1");
        let ended = house.grpc.call(&house.call("Get", "large"));
        assert_eq!(ended.code, "OK", "others are served: {ended:?}");
    }
}

#[test]
fn grpc_memory_is_bounded() {
    let mut house = House::new(&["--maxmemory-clients", "100mb", "--maxmemory", "64mb"]);
    let large = vec![b'x'; 1_000_000];
    assert_eq!(house.node.client().send(&[b"SET", b"large", &large]), b"+OK\r\n");
    let before = house.node.memory();
    let too_much = Call {
        number: 6_000,
        ..house.call("MultiGet", "large")
    };
    assert_eq!(house.grpc.call(&too_much).code, "RESOURCE_EXHAUSTED");
    // As many as the client likes at once: some are taken, more than fit are not.
    let many = Call {
        number: 30_000_000,
        times: 10,
        deadline: 60.0,
        ..house.call("Set", "key")
    };
    let ended = house.grpc.calls(&many);
    let refused = ended.iter().filter(|ended| ended.code == "RESOURCE_EXHAUSTED").count();
    let taken = ended.iter().filter(|ended| ended.code == "OK").count();
    assert_eq!((taken + refused, refused > 0), (10, true), "{ended:?}");
    let most = house.node.peak_memory() - before;
    println!("{taken} were taken; {} MiB at most", most / MIB);
    assert!(most < 600 * MIB, "{most} bytes");
    // What was held is given back.
    let held = || {
        house
            .node
            .client()
            .info("mem_clients_normal")
            .and_then(|n| n.parse().ok())
    };
    wait_for("memory to be free again", SOON, || {
        held().filter(|&held: &u64| held < MIB)
    });
    // Many keys of no bytes.
    let keys = Call {
        number: 100_001,
        ..house.call("MultiGet", "")
    };
    assert_eq!(house.grpc.call(&keys).code, "INVALID_ARGUMENT");
}

#[test]
fn failed_logins_delay_their_connection_alone() {
    const TRIES: u32 = 5;
    // 50 ms, then twice as much each time.
    let least = Duration::from_millis(50 * (2_u64.pow(TRIES) - 1));
    let mut house = House::new(&["--requirepass", "secret"]);
    let mut friend = house.node.client();
    friend.check("AUTH secret", "+OK");
    let mut guesser = house.node.client();
    let began = Instant::now();
    guesser.write(&resp::command_line("AUTH guess").repeat(TRIES as usize));
    friend.check("PING", "+PONG");
    assert!(began.elapsed() < least, "others are not held up");
    for _ in 0..TRIES {
        assert!(guesser.reply().starts_with(b"-WRONGPASS"));
    }
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    // A login that succeeds gives no new tries.
    guesser.check("AUTH secret", "+OK");
    let began = Instant::now();
    assert!(guesser.line("AUTH guess").starts_with(b"-WRONGPASS"));
    assert!(
        began.elapsed() >= Duration::from_millis(50 << TRIES),
        "{:?}",
        began.elapsed()
    );
    let guess = Call {
        channel: Some("guesser".into()),
        login: Some("default:guess".into()),
        ..house.call("Get", "key")
    };
    let began = Instant::now();
    for _ in 0..TRIES {
        assert_eq!(house.grpc.call(&guess).code, "UNAUTHENTICATED");
    }
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
}

#[test]
fn health_needs_no_password_and_reflection_does() {
    let mut house = House::new(&["--requirepass", "secret"]);
    let login = Some("default:secret".to_owned());
    assert_eq!(house.grpc.call(&house.call("Health", "")).code, "OK");
    assert_eq!(house.grpc.call(&house.call("Reflection", "")).code, "UNAUTHENTICATED");
    let reflection = Call {
        login,
        ..house.call("Reflection", "")
    };
    assert_eq!(house.grpc.call(&reflection).code, "OK");
}

#[test]
fn a_call_ends_at_its_deadline_and_pauses_hold_for_it() {
    let mut house = House::new(&[]);
    let mut client = house.node.client();
    client.check("CLIENT PAUSE 60000 WRITE", "+OK");
    let call = Call {
        deadline: 1.0,
        ..house.call("Set", "key")
    };
    assert_eq!(house.grpc.call(&call).code, "DEADLINE_EXCEEDED");
    assert_eq!(house.grpc.call(&house.call("Get", "key")).code, "OK");
    client.check("GET key", "$-1");
    client.check("CLIENT UNPAUSE", "+OK");
    assert_eq!(house.grpc.call(&house.call("Set", "key")).code, "OK");
    client.check("EXISTS key", ":1");
    // Its commands are counted as others are.
    assert!(client.text("INFO commandstats").contains("cmdstat_set:calls=1,"));
}

#[test]
fn those_that_watch_the_health_do_not_hold_up_a_stop() {
    let mut house = House::new(&[]);
    let watch = Call {
        channel: Some("watcher".into()),
        ..house.call("Watch", "")
    };
    assert_eq!(house.grpc.call(&watch).code, "OK");
    let began = Instant::now();
    assert!(house.node.terminate().success());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
