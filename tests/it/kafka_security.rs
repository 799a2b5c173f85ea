//! A node on a Kafka that asks who it is (SASL over TLS) and what it may do (ACLs).

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::support::client::Client;
use crate::support::kafka::{Kafka, fresh_topic};
use crate::support::server::{Builder, Highwater};
use crate::support::{process, temp, wait_for};

const SOON: Duration = Duration::from_secs(20);
/// A change of rights is looked for every 5 s, and on a busy machine not every look comes to an end.
const NOTICED: Duration = Duration::from_secs(60);
/// An answer that no timeout is needed for.
const PROMPTLY: Duration = Duration::from_secs(2);
/// In every password, so that one that leaks is found.
const SECRET: &str = "hush";
const KEYSTORE_PASSWORD: &str = "keystore";

/// A principal, what it may do with topics that begin with `mine`, and with transactional ids that begin with `highwater-`.
type Rights = (&'static str, &'static [&'static str], &'static [&'static str]);

/// The first has what `docs/kafka-rights.md` says that a node needs, the others less.
const RIGHTS: &[Rights] = &[
    ("node", &["Read", "Write", "DescribeConfigs", "Create"], &["Write"]),
    ("reader", &["Read", "DescribeConfigs"], &[]),
    ("half-reader", &["Read", "DescribeConfigs"], &["Write"]),
    ("untransactional", &["Read", "Write", "DescribeConfigs", "Create"], &[]),
    ("blind", &["Write"], &["Write"]),
    ("uncreative", &["Read", "Write", "DescribeConfigs"], &["Write"]),
    ("stranger", &[], &[]),
    // What the last two have is changed while they run.
    ("fickle", &["Read", "Write", "DescribeConfigs"], &["Write"]),
    ("late", &["Read", "DescribeConfigs"], &[]),
];

struct Secured {
    kafka: Kafka,
    /// The certificates' directory.
    dir: TempDir,
}

impl Secured {
    /// One for all tests here. Each takes topics of its own.
    fn shared() -> &'static Secured {
        static SHARED: OnceLock<Secured> = OnceLock::new();
        SHARED.get_or_init(Secured::start)
    }

    fn start() -> Secured {
        let dir = temp::dir("certificates");
        let (keystore, certificate) = make_certificate(&dir, "broker");
        make_certificate(&dir, "other");
        let users: String = RIGHTS
            .iter()
            .map(|(name, ..)| format!(" user_{name}=\"{}\"", password(name)))
            .collect();
        let login = format!(
            "org.apache.kafka.common.security.plain.PlainLoginModule required username=\"admin\" \
             password=\"{0}\" user_admin=\"{0}\"{users};",
            password("admin")
        );
        let properties = [
            "sasl.enabled.mechanisms=PLAIN",
            "sasl.mechanism.inter.broker.protocol=PLAIN",
            &format!("listener.name.sasl_ssl.plain.sasl.jaas.config={login}"),
            "ssl.keystore.type=PKCS12",
            &format!("ssl.keystore.location={}", keystore.display()),
            &format!("ssl.keystore.password={KEYSTORE_PASSWORD}"),
            "ssl.truststore.type=PEM",
            &format!("ssl.truststore.location={}", certificate.display()),
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            // The controller's own listener asks nobody who he is.
            "super.users=User:admin;User:ANONYMOUS",
        ];
        let certificate = certificate.display().to_string();
        let client = [
            ("security.protocol", "SASL_SSL"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", "admin"),
            ("sasl.password", &password("admin")),
            ("ssl.ca.location", &certificate),
        ];
        let kafka = Kafka::start_on("SASL_SSL", &client, &properties);
        let secured = Secured { kafka, dir };
        secured.write_admin_properties();
        secured.give_rights();
        secured
    }

    fn admin_properties(&self) -> PathBuf {
        self.dir.path().join("admin.properties")
    }

    fn write_admin_properties(&self) {
        let truststore = self.certificate("broker");
        let text = format!(
            "security.protocol=SASL_SSL\nsasl.mechanism=PLAIN\nssl.truststore.type=PEM\nssl.truststore.location={}\n\
             sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username=\"admin\" password=\"{}\";\n",
            truststore.display(),
            password("admin")
        );
        std::fs::write(self.admin_properties(), text).expect("write the properties of a client");
    }

    /// `--add` or `--remove` for what these principals may do with what begins like this.
    fn change_rights(&self, how: &str, kind: &str, prefix: &str, operations: &[&str], principals: &[&str]) {
        let file = self.admin_properties().display().to_string();
        let names: Vec<String> = principals.iter().map(|name| format!("User:{name}")).collect();
        let mut args = vec!["--bootstrap-server", &self.kafka.bootstrap, "--command-config", &file];
        args.extend([how, "--force", kind, prefix, "--resource-pattern-type", "prefixed"]);
        operations
            .iter()
            .for_each(|operation| args.extend(["--operation", operation]));
        names.iter().for_each(|name| args.extend(["--allow-principal", name]));
        self.kafka.java("org.apache.kafka.tools.AclCommand", &args, b"");
    }

    fn give_rights(&self) {
        // A Java program starts slowly: principals with the same rights get them in one go.
        std::thread::scope(|scope| {
            for (kind, prefix, operations) in [
                ("--topic", "mine", ["Read", "DescribeConfigs"].as_slice()),
                ("--topic", "mine", &["Write"]),
                ("--topic", "mine", &["Create"]),
                ("--transactional-id", "highwater-", &["Write"]),
            ] {
                let has_all = |rights: &&Rights| {
                    let given = if kind == "--topic" { rights.1 } else { rights.2 };
                    operations.iter().all(|operation| given.contains(operation))
                };
                let names: Vec<&str> = RIGHTS.iter().filter(has_all).map(|of| of.0).collect();
                scope.spawn(move || self.change_rights("--add", kind, prefix, operations, &names));
            }
        });
    }

    fn certificate(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.pem"))
    }

    /// A node that is this principal.
    fn node(&self, principal: &str, topic: &str) -> Builder {
        self.node_with(principal, &password(principal), "broker", topic)
    }

    fn node_with(&self, principal: &str, password: &str, certificate: &str, topic: &str) -> Builder {
        let authority = self.certificate(certificate);
        Highwater::builder().kafka(&self.kafka, topic).args(&[
            "-X",
            "security.protocol=SASL_SSL",
            "-X",
            "sasl.mechanism=PLAIN",
            "-X",
            &format!("sasl.username={principal}"),
            "-X",
            &format!("sasl.password={password}"),
            "-X",
            &format!("ssl.ca.location={}", authority.display()),
        ])
    }

    fn topic(&self, hint: &str) -> String {
        let topic = fresh_topic(&format!("mine-{hint}"));
        self.kafka.create_topic(&topic, 1, &[("cleanup.policy", "compact")]);
        topic
    }
}

fn password(principal: &str) -> String {
    format!("{SECRET}-{principal}")
}

/// A key with a certificate that it signs itself, for 127.0.0.1; the store of both, and the certificate as PEM.
fn make_certificate(dir: &TempDir, name: &str) -> (PathBuf, PathBuf) {
    let (store, pem) = (
        dir.path().join(format!("{name}.p12")),
        dir.path().join(format!("{name}.pem")),
    );
    let keytool = |args: &[&str]| {
        let mut keytool = Command::new("keytool");
        keytool.args(args).arg("-keystore").arg(&store);
        keytool.args(["-storepass", KEYSTORE_PASSWORD, "-alias", name]);
        process::run("keytool", keytool, b"", SOON).stdout
    };
    let subject = format!("CN={name}");
    keytool(&[
        "-genkeypair",
        "-keyalg",
        "RSA",
        "-keysize",
        "2048",
        "-storetype",
        "PKCS12",
        "-validity",
        "30",
        "-dname",
        &subject,
        "-ext",
        "san=ip:127.0.0.1,dns:localhost",
    ]);
    std::fs::write(&pem, keytool(&["-exportcert", "-rfc"])).expect("write a certificate");
    (store, pem)
}

/// The node must end at once, with one line behind `highwater: cannot`, which is returned.
#[track_caller]
fn refusal(node: Builder) -> String {
    let asked = Instant::now();
    let (status, output) = node.args(&["--startup-timeout", "10s"]).refuse(Duration::from_secs(12));
    assert!(!status.success(), "{output}");
    assert!(!output.contains(SECRET), "a password is shown: {output}");
    let told: Vec<&str> = output
        .lines()
        .filter(|line| line.starts_with("highwater: cannot"))
        .collect();
    assert_eq!(told.len(), 1, "{output}");
    println!("after {:?}: {}", asked.elapsed(), told[0]);
    told[0].to_owned()
}

/// The write must be refused at once for a reason with this text.
#[track_caller]
fn check_not_written(client: &mut Client, line: &str, reason: &str) {
    let asked = Instant::now();
    let reply = String::from_utf8_lossy(&client.line(line)).into_owned();
    println!("{line}: {reply}");
    assert!(
        reply.starts_with("-NOTWRITTEN ") && reply.contains(reason),
        "{line}: {reply}"
    );
    assert!(asked.elapsed() < PROMPTLY, "{line} took {:?}: {reply}", asked.elapsed());
}

#[test]
fn a_node_with_the_rights_that_are_documented_does_everything() {
    let secured = Secured::shared();
    let topic = fresh_topic("mine-new");
    let node = secured.node("node", &topic).start();
    let mut client = node.client();
    client.check("SET greeting hello", "+OK");
    client.check("GET greeting", "$5\r\nhello");
    client.check("INCR counter", ":1");
    client.check("MSET a 1 b 2", "+OK");
    client.check("SELECT 2", "+OK");
    client.check("SET elsewhere 1", "+OK");
    client.check("FLUSHALL", "+OK");
    client.check("DBSIZE", ":0");
    for command in ["CONFIG GET *", "INFO everything", "CLIENT LIST"] {
        let shown = String::from_utf8_lossy(&client.line(command)).into_owned();
        assert!(!shown.contains(SECRET), "{command} shows a password");
    }
    assert!(!node.log().contains(SECRET), "the log shows a password");
    assert_eq!(
        secured.kafka.topic_config(&topic, "cleanup.policy").as_deref(),
        Some("compact")
    );
}

#[test]
fn a_wrong_password_ends_the_start_with_the_reason() {
    let secured = Secured::shared();
    let told = refusal(secured.node_with("node", "hush-hush", "broker", &secured.topic("password")));
    assert!(
        told.contains("does not let us in") && told.contains("uthentication"),
        "{told}"
    );
}

#[test]
fn an_untrusted_certificate_ends_the_start_with_the_reason() {
    let secured = Secured::shared();
    let told = refusal(secured.node_with("node", &password("node"), "other", &secured.topic("certificate")));
    assert!(told.contains("ssl.") && told.contains("certificate"), "{told}");
}

#[test]
fn a_node_that_may_only_read_serves_reads_and_refuses_writes_at_once() {
    let secured = Secured::shared();
    let topic = secured.topic("reader");
    let writer = secured.node("node", &topic).start();
    writer.client().check("SET known 1", "+OK");
    let told = "are refused until that is mended";
    // With the right to transactions alone, each of them is begun and has to be given up.
    for (principal, reason, allowed) in [
        ("reader", "transactional id", told),
        ("half-reader", "allow Write", "WARN"),
    ] {
        let node = secured.node(principal, &topic).allow(allowed).start();
        let mut client = node.client();
        client.check("GET known", "$1\r\n1");
        for _ in 0..3 {
            check_not_written(&mut client, "SET known 2", "allow Write");
            check_not_written(&mut client, "INCR known", reason);
            check_not_written(&mut client, "MSET known 2 other 2", reason);
        }
        writer.client().check("SET known 1", "+OK");
        writer.client().check(&format!("SET for {principal}"), "+OK");
        let expected = format!("${}\r\n{principal}\r\n", principal.len()).into_bytes();
        wait_for("the other node's write", SOON, || {
            (client.line("GET for") == expected).then_some(())
        });
        wait_for("a line about it", SOON, || node.log().contains(told).then_some(()));
    }
}

#[test]
fn without_rights_on_transactional_ids_plain_writes_are_served() {
    let secured = Secured::shared();
    let told = "are refused until that is mended: not authorized";
    let node = secured
        .node("untransactional", &secured.topic("plain"))
        .allow(told)
        .start();
    let mut client = node.client();
    for _ in 0..3 {
        client.check("SET known 1", "+OK");
        check_not_written(&mut client, "INCR known", "transactional id");
        client.check("GET known", "$1\r\n1");
    }
    assert_eq!(
        node.log().matches(told).count(),
        2,
        "once for each producer: {}",
        node.log()
    );
}

#[test]
fn a_right_to_read_that_is_taken_away_and_given_back_costs_no_restart() {
    let secured = Secured::shared();
    let topic = secured.topic("fickle");
    let writer = secured.node("node", &topic).start();
    let told = "allow Read on it";
    let node = secured.node("fickle", &topic).allow(told).start();
    let mut client = node.client();
    writer.client().check("SET known 1", "+OK");
    let shown = |client: &mut Client, key: &str, value: &str| {
        let expected = format!("${}\r\n{value}\r\n", value.len()).into_bytes();
        (client.line(&format!("GET {key}")) == expected).then_some(())
    };
    wait_for("the other node's write", NOTICED, || shown(&mut client, "known", "1"));

    secured.change_rights("--remove", "--topic", "mine", &["Read"], &["fickle"]);
    wait_for("a line about it", NOTICED, || node.log().contains(told).then_some(()));
    writer.client().check("SET known 2", "+OK");
    // What it has is served, own writes go on, and who wants more is told.
    client.check("GET known", "$1\r\n1");
    client.check("SET own 1", "+OK");
    client.check("GET own", "$1\r\n1");
    client.check("HIGHWATER CONSISTENCY LINEARIZABLE", "+OK");
    let reply = client.line("GET known");
    assert!(reply.starts_with(b"-STALE "), "{}", String::from_utf8_lossy(&reply));
    client.check("HIGHWATER CONSISTENCY DEFAULT", "+OK");

    secured.change_rights("--add", "--topic", "mine", &["Read"], &["fickle"]);
    wait_for("what was written meanwhile", NOTICED, || {
        shown(&mut client, "known", "2")
    });
    client.check("INCR known", ":3");
}

#[test]
fn a_right_to_write_that_is_given_later_is_noticed() {
    let secured = Secured::shared();
    let topic = secured.topic("late");
    let node = secured
        .node("late", &topic)
        .allow("are refused until that is mended")
        .start();
    let mut client = node.client();
    check_not_written(&mut client, "SET key 1", "allow Write");
    check_not_written(&mut client, "INCR counter", "transactional id");
    secured.change_rights("--add", "--topic", "mine", &["Write"], &["late"]);
    secured.change_rights("--add", "--transactional-id", "highwater-", &["Write"], &["late"]);
    wait_for("plain writes", NOTICED, || {
        (client.line("SET key 1") == b"+OK\r\n").then_some(())
    });
    wait_for("transactions", NOTICED, || {
        client.line("INCR counter").starts_with(b":").then_some(())
    });
    client.check("GET key", "$1\r\n1");
}

#[test]
fn a_node_that_lacks_a_right_at_its_start_says_which() {
    let secured = Secured::shared();
    let topic = secured.topic("stranger");
    let told = refusal(secured.node("stranger", &topic));
    assert!(
        told.contains(&topic) && told.contains("allow Describe, Read and Write"),
        "{told}"
    );
    let told = refusal(secured.node("blind", &topic));
    assert!(
        told.contains(&topic) && told.contains("allow DescribeConfigs"),
        "{told}"
    );
    let told = refusal(secured.node("uncreative", &fresh_topic("mine-none")));
    assert!(
        told.contains("cannot create topic") && told.contains("uthoriz"),
        "{told}"
    );
}
