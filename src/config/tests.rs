//! The settings table and what is derived from it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::checks::Mapping;
use super::table::{Effect, Group, SETTINGS};
use super::*;
use crate::model::Features;

/// The names that CONFIG GET * of Redis 7.0.15 gives.
const REDIS_NAMES: &str = include_str!("redis_names.txt");

fn load(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Config, String> {
    let arguments = std::iter::once("highwater")
        .chain(arguments.iter().copied())
        .map(OsString::from);
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
    Config::load(arguments, environment).map_err(|refused| match refused {
        Refused::Wrong(line) => line,
        Refused::Shown(text) => text.to_string(),
    })
}

fn refusal(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    load(arguments, environment).map(|_| ()).expect_err("should be refused")
}

fn get(config: &Config, name: &str) -> String {
    let found = config.get(|known| known == name);
    assert_eq!(found.len(), 1, "{name}");
    found.into_iter().next().map(|(_, value)| value).unwrap_or_default()
}

fn set(config: &Config, pairs: &[(&str, &str)]) -> Result<(), String> {
    let pairs: Vec<(&[u8], &[u8])> = pairs.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())).collect();
    config.set(&pairs).map_err(|error| error.to_string())
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), text).expect("a temporary file can be written");
    file
}

fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().expect("temporary paths are UTF-8")
}

#[test]
fn every_name_stands_once_and_every_name_of_redis_is_there() {
    let names: Vec<&str> = SETTINGS.iter().flat_map(|setting| setting.names()).collect();
    let distinct: BTreeSet<&str> = names.iter().copied().collect();
    assert_eq!(names.len(), distinct.len());
    let missing: Vec<&str> = REDIS_NAMES.lines().filter(|name| !distinct.contains(name)).collect();
    assert!(missing.is_empty(), "missing: {missing:?}");
    assert_eq!(REDIS_NAMES.lines().count(), 192);
}

#[test]
fn the_help_names_every_feature_of_topics() {
    let place = table::place("max-features").expect("a setting");
    let known = Features::known().to_string().replace(' ', ", ");
    assert!(SETTINGS[place].summary.contains(&format!("({known})")), "{known}");
}

#[test]
fn every_row_is_whole() {
    let mut letters = BTreeSet::new();
    for setting in SETTINGS.iter() {
        let name = setting.name;
        assert!(setting.summary.len() > 8, "{name} has no summary");
        assert_eq!(
            setting.effect == Effect::Works,
            setting.group != Group::WithoutEffect,
            "{name}"
        );
        assert_eq!(name, name.to_ascii_lowercase());
        assert_eq!(
            setting.kind.normalise(setting.default, setting.default).as_deref(),
            Ok(setting.default),
            "the default of {name} is not written as its values are"
        );
        assert!(setting.short.is_none_or(|letter| letters.insert(letter)), "{name}");
    }
}

#[test]
fn the_command_line_is_sound_and_its_help_names_every_setting() {
    cli::command().debug_assert();
    let help = cli::command().render_long_help().to_string();
    for setting in SETTINGS.iter() {
        assert!(help.contains(setting.name), "{}", setting.name);
    }
    let short = cli::command().render_help().to_string();
    for heading in [
        "Server",
        "TLS",
        "Log",
        "Kafka",
        "Store",
        "Limits",
        "Logging and statistics",
    ] {
        assert!(short.contains(&format!("\n{heading}:\n")), "{heading}");
    }
    assert!(!short.contains("oom-score-adj-values"));
    assert!(short.lines().count() < 210, "{} lines", short.lines().count());
}

#[test]
fn the_version_tells_the_build_and_librdkafka() {
    let text = load(&["--version"], &[]).map(|_| ()).expect_err("shown");
    assert!(text.starts_with(&format!("highwater {VERSION} (")), "{text}");
    assert!(text.contains("librdkafka 2."), "{text}");
}

#[test]
fn the_command_line_wins_over_the_environment_and_that_over_the_file() {
    let conf = file("port 1\nmaxclients 1\ntimeout 1\n# a comment\n\n");
    let config = load(
        &[path(&conf), "--port", "3"],
        &[
            ("HIGHWATER_PORT", "2"),
            ("HIGHWATER_MAXCLIENTS", "2"),
            ("HIGHWATER_TCP_KEEPALIVE", ""),
        ],
    )
    .unwrap();
    assert_eq!(
        (config.port(), config.maxclients(), config.timeout()),
        (3, 2, Some(Duration::from_secs(1)))
    );
    assert_eq!(config.tcp_keepalive(), 300);
    assert_eq!(config.file(), Some(conf.path()));
    let config = load(&["--config", path(&conf), "--timeout=9"], &[]).unwrap();
    assert_eq!((config.port(), config.timeout()), (1, Some(Duration::from_secs(9))));
}

#[test]
fn files_have_the_syntax_of_redis_conf() {
    let inner = file("maxmemory 2gb\n");
    let conf = file(&format!(
        "  PORT 7000\nrequirepass \"a \\\"b\\x41\"\nlogfile 'it\\'s.log'\nsave 900 1\nsave 300 10\nbind 127.0.0.1 -::1\n\
         slave-priority 5\nclient-output-buffer-limit normal 1mb 2 3\nclient-output-buffer-limit pubsub 4 5 6\ninclude {}\n",
        path(&inner)
    ));
    let config = load(&[path(&conf)], &[]).unwrap();
    assert_eq!(config.port(), 7000);
    assert_eq!(config.requirepass().as_deref(), Some("a \"bA"));
    assert_eq!(config.logfile(), Some(PathBuf::from("it's.log")));
    assert_eq!(get(&config, "save"), "900 1 300 10");
    assert_eq!(
        config.bind(),
        [("127.0.0.1".to_string(), false), ("::1".to_string(), true)]
    );
    assert_eq!(
        (get(&config, "replica-priority"), get(&config, "slave-priority")),
        ("5".into(), "5".into())
    );
    assert_eq!(
        get(&config, "client-output-buffer-limit"),
        "normal 1048576 2 3 slave 268435456 67108864 60 pubsub 4 5 6"
    );
    assert_eq!(config.memory_limit(), 2 << 30);
}

#[test]
fn the_command_line_takes_what_redis_server_takes() {
    let config = load(
        &[
            "--port",
            "7000",
            "--save",
            "",
            "--appendonly",
            "no",
            "--client-output-buffer-limit",
            "normal",
            "1",
            "2",
            "3",
        ],
        &[],
    )
    .unwrap();
    assert_eq!(get(&config, "save"), "");
    assert_eq!(config.output_limits().normal.hard, 1);
    let config = load(&["--save", "60", "1", "--slowlog-log-slower-than", "-1"], &[]).unwrap();
    assert_eq!(
        (get(&config, "save"), config.slowlog_log_slower_than()),
        ("60 1".into(), -1)
    );
}

#[test]
fn what_is_wrong_is_told_with_its_place_and_the_nearest_name() {
    let conf = file("port 7000\n\nprot 7001\n");
    assert_eq!(
        refusal(&[path(&conf)], &[]),
        format!("{}:3: there is no setting 'prot'; did you mean 'port'?", path(&conf))
    );
    assert_eq!(
        refusal(&["--prot", "1"], &[]),
        "--prot: there is no setting 'prot'; did you mean --port?"
    );
    assert_eq!(
        refusal(&[], &[("HIGHWATER_BOOTSTRAP_SERVER", "x")]),
        "environment variable HIGHWATER_BOOTSTRAP_SERVER: there is no setting 'bootstrap-server'; did you mean HIGHWATER_BOOTSTRAP_SERVERS?"
    );
    assert_eq!(
        refusal(&["--port", "70000"], &[]),
        "--port '70000': port takes a whole number from 0 to 65535"
    );
    let conf = file("maxmemory 1zb\n");
    assert_eq!(
        refusal(&[path(&conf)], &[]),
        format!(
            "{}:1: maxmemory '1zb': maxmemory takes bytes, such as 1048576, 64mb or 2gb",
            path(&conf)
        )
    );
    let conf = file("port 7000 # inline\n");
    assert_eq!(
        refusal(&[path(&conf)], &[]),
        format!(
            "{}:1: port takes one value: a whole number from 0 to 65535",
            path(&conf)
        )
    );
    for text in [
        "port",
        "requirepass \"x",
        "requirepass \"x\"y",
        "rename-command GET \"\"",
    ] {
        let conf = file(text);
        assert!(
            refusal(&[path(&conf)], &[]).starts_with(&format!("{}:1: ", path(&conf))),
            "{text}"
        );
    }
    assert!(refusal(&["/nowhere/x.conf"], &[]).starts_with("cannot read /nowhere/x.conf: No such file"));
    assert_eq!(refusal(&["--port"], &[]), "--port: a value is missing");
    assert!(refusal(&["--port", "1", "a", "b"], &[]).contains("'b'"));
    assert!(refusal(&["--write-timeout", "5"], &[]).contains("500ms, 5s"));
}

#[test]
fn what_would_do_harm_if_ignored_is_refused() {
    for (name, value) in [("cluster-enabled", "yes"), ("replicaof", "h 1")] {
        assert!(
            refusal(&[&format!("--{name}"), value], &[]).contains("not supported: "),
            "{name}"
        );
    }
    assert!(refusal(&["--topic", "kv"], &[]).contains("--bootstrap-servers"));
    assert!(refusal(&["-X", "a=b"], &[]).contains("--bootstrap-servers"));
    let config = load(&["--cluster-enabled", "no", "--appendonly", "yes"], &[]).unwrap();
    assert_eq!(config.given_without_effect(), ["appendonly"]);
}

#[test]
fn kafka_properties_come_from_flags_environment_and_a_file() {
    let properties = file("# kcat's\nbootstrap.servers = h:1\nsasl.password=from file\nlinger.ms=1\n");
    let config = load(
        &[
            "-F",
            path(&properties),
            "-X",
            "linger.ms=3",
            "-Xsasl.username=me",
            "--database",
            "3=prices,readonly",
            "--database",
            "4=x",
        ],
        &[("HIGHWATER_KAFKA_PROPERTY", "linger.ms=2\nacks=all")],
    )
    .unwrap();
    assert_eq!(&*config.bootstrap_servers(), "h:1");
    let properties = config.kafka_properties();
    let value = |name: &str| properties.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    assert_eq!(
        (value("linger.ms"), value("acks"), value("sasl.username")),
        (Some("3"), Some("all"), Some("me"))
    );
    assert_eq!(
        (value("sasl.password"), value("bootstrap.servers")),
        (Some("from file"), None)
    );
    let mapping = Mapping {
        topic: "prices".into(),
        read_only: true,
    };
    assert_eq!(config.database_topics().get(&3), Some(&mapping));
    assert_eq!(get(&config, "database"), "3=prices,readonly 4=x");
    assert!(refusal(&["--bootstrap-servers", "h", "--database", "16=x"], &[]).contains("last database is 15"));
}

#[test]
fn secrets_are_not_shown() {
    let config = load(
        &[
            "--requirepass",
            "S3CRET",
            "--masterauth",
            "S3CRET",
            "--tls-key-file-pass",
            "S3CRET",
            "--bootstrap-servers",
            "h:1",
            "-X",
            "sasl.password=S3CRET",
            "-X",
            "ssl.key.password=S3CRET",
            "-X",
            "ssl.key.pem=S3CRET",
            "-X",
            "sasl.oauthbearer.client.secret=S3CRET",
            "-X",
            "sasl.username=me",
        ],
        &[],
    )
    .unwrap();
    // CONFIG GET is for clients that have given the password: it shows Redis's own secrets, as
    // Redis does, and none of Kafka's.
    let of_redis = ["requirepass", "masterauth", "tls-key-file-pass"];
    for name in of_redis {
        assert_eq!(get(&config, name), "S3CRET", "{name}");
    }
    let shown = format!("{config:?} {:?}", config.get(|name| !of_redis.contains(&name)));
    assert!(!shown.contains("S3CRET"), "{shown}");
    assert!(shown.contains("sasl.password=***") && shown.contains("sasl.username=me"));
    assert!(config.kafka_properties().iter().any(|(_, value)| value == "S3CRET"));
    let wrong = refusal(&["--bootstrap-servers", "h:1", "-X", "S3CRET"], &[]);
    assert!(!wrong.contains("S3CRET"), "{wrong}");
}

#[test]
fn variables_that_others_set_are_passed_over() {
    let others = [
        ("HIGHWATER_SERVICE_HOST", "10.0.0.1"),
        ("HIGHWATER_PORT", "tcp://10.0.0.1:6379"),
        ("HIGHWATER_PORT_6379_TCP_ADDR", "10.0.0.1"),
        ("HIGHWATER_TEST_PARTS", "x"),
        ("PATH", "/bin"),
    ];
    assert_eq!(load(&[], &others).unwrap().port(), 6379);
}

#[test]
#[expect(clippy::too_many_lines, reason = "it is still to be split")]
fn config_set_has_redis_texts() {
    let config = Config::default();
    let failed = |name: &str, reason: &str| {
        Err(format!(
            "ERR CONFIG SET failed (possibly related to argument '{name}') - {reason}"
        ))
    };
    let unknown = Err("ERR Unknown option or number of arguments for CONFIG SET - 'nosuch'".to_string());
    type Case<'a> = (&'a [(&'a str, &'a str)], Result<(), String>);
    let cases: &[Case<'_>] = &[
        (&[("nosuch", "1")], unknown.clone()),
        (&[("nosuch", "1"), ("databases", "3")], unknown.clone()),
        (&[("timeout", "7"), ("nosuch", "1")], unknown),
        (
            &[("timeout", "1"), ("databases", "2")],
            failed("databases", "can't set immutable config"),
        ),
        (
            &[("databases", "16")],
            failed("databases", "can't set immutable config"),
        ),
        (&[("dir", "/tmp")], failed("dir", "can't set protected config")),
        (
            &[("timeout", "1"), ("Timeout", "2")],
            failed("Timeout", "duplicate parameter"),
        ),
        (
            &[("timeout", "abc")],
            failed("timeout", "argument couldn't be parsed into an integer"),
        ),
        (
            &[("timeout", "007")],
            failed("timeout", "argument couldn't be parsed into an integer"),
        ),
        (
            &[("timeout", "-1")],
            failed("timeout", "argument must be between 0 and 2147483647 inclusive"),
        ),
        (
            &[("appendonly", "maybe")],
            failed("appendonly", "argument must be 'yes' or 'no'"),
        ),
        (
            &[("maxmemory", "1zz")],
            failed("maxmemory", "argument must be a memory value"),
        ),
        (
            &[("maxmemory-clients", "500%")],
            failed("maxmemory-clients", "percentage argument must be less or equal to 100"),
        ),
        (
            &[("proto-max-bulk-len", "1")],
            failed(
                "proto-max-bulk-len",
                "argument must be between 1048576 and 9223372036854775807 inclusive",
            ),
        ),
        (
            &[("appendfsync", "x")],
            failed(
                "appendfsync",
                "argument(s) must be one of the following: everysec, always, no",
            ),
        ),
        (&[("save", "10 x")], failed("save", "Invalid save parameters")),
        (
            &[("oom-score-adj-values", "1 2")],
            failed("oom-score-adj-values", "wrong number of arguments"),
        ),
        (
            &[("client-output-buffer-limit", "foo 1 2 3")],
            failed(
                "client-output-buffer-limit",
                "Invalid client class specified in buffer limit configuration.",
            ),
        ),
        (
            &[("list-max-ziplist-size", "5"), ("list-max-listpack-size", "6")],
            Ok(()),
        ),
        (
            &[("port", "6379"), ("bind", "127.0.0.1 -::1"), ("appendfsync", "always")],
            Ok(()),
        ),
        (
            &[("port", "6380")],
            failed("port", "can only be set when the server is started"),
        ),
        (
            &[("tls-port", "1")],
            failed("tls-port", "can only be set when the server is started"),
        ),
    ];
    for (pairs, expected) in cases {
        assert_eq!(&set(&config, pairs), expected, "{pairs:?}");
    }
    assert_eq!(config.timeout(), None, "nothing of a refused CONFIG SET holds");
    assert_eq!(get(&config, "list-max-ziplist-size"), "6");
}

#[test]
fn values_are_written_as_redis_writes_them() {
    let config = Config::default();
    for (name, value, shown) in [
        ("maxmemory", "1k", "1000"),
        ("maxmemory", "1KB", "1024"),
        ("maxmemory", "", "0"),
        ("appendonly", "YES", "yes"),
        ("loglevel", "NOTICE", "notice"),
        ("notify-keyspace-events", "KEA", "AKE"),
        ("notify-keyspace-events", "g$lshzxetdmnKE", "AKEm"),
        ("notify-keyspace-events", "Kn", "nK"),
        ("notify-keyspace-events", "Kx", "xK"),
        ("notify-keyspace-events", "", ""),
        ("latency-tracking-info-percentiles", "50.123456789 1e1", "50.123457 10"),
        ("latency-tracking-info-percentiles", "", ""),
        ("save", "900 1 300 10", "900 1 300 10"),
        ("save", "", ""),
        ("oom-score-adj-values", "300 200 100", "300 200 100"),
        ("maxmemory-clients", "5%", "5%"),
        (
            "client-output-buffer-limit",
            "replica 1gb 1k 1 pubsub 1 1 1",
            "normal 0 0 0 slave 1073741824 1000 1 pubsub 1 1 1",
        ),
        (
            "client-output-buffer-limit",
            "",
            "normal 0 0 0 slave 1073741824 1000 1 pubsub 1 1 1",
        ),
    ] {
        assert_eq!(set(&config, &[(name, value)]), Ok(()), "{name} {value}");
        assert_eq!(get(&config, name), shown, "{name} {value}");
    }
}

#[test]
fn everything_that_config_get_shows_can_be_set_again() {
    let config = load(
        &[
            "--bootstrap-servers",
            "h:1",
            "-X",
            "sasl.password=x",
            "--database",
            "3=p",
        ],
        &[],
    )
    .unwrap();
    for (name, value) in config.get(|_| true) {
        let place = table::place(&name).unwrap();
        if matches!(SETTINGS[place].change, Change::Any | Change::AtStart) {
            assert_eq!(set(&config, &[(&name, &value)]), Ok(()), "{name}");
            assert_eq!(get(&config, &name), value, "{name}");
        }
    }
    assert!(config.kafka_properties().iter().any(|(_, value)| value == "x"));
}

#[test]
fn changes_take_effect_and_are_told() {
    let config = Config::default();
    let told = Arc::new(AtomicUsize::new(0));
    let seen = told.clone();
    config.on_change("maxmemory", move |config| {
        seen.store(config.memory_limit(), Ordering::Relaxed)
    });
    assert_eq!(told.load(Ordering::Relaxed), config.memory_limit());
    set(
        &config,
        &[
            ("maxmemory", "1mb"),
            ("requirepass", "p"),
            ("timeout", "2"),
            ("slowlog-max-len", "3"),
        ],
    )
    .unwrap();
    assert_eq!(told.load(Ordering::Relaxed), 1 << 20);
    assert_eq!(config.requirepass().as_deref(), Some("p"));
    assert_eq!(
        (config.timeout(), config.slowlog_max_len()),
        (Some(Duration::from_secs(2)), 3)
    );
    set(&config, &[("requirepass", "")]).unwrap();
    assert!(config.requirepass().is_none());
}

#[test]
fn a_copy_has_a_source_and_a_target() {
    let config = load(
        &[
            "copy",
            "--bootstrap-servers",
            "a:1",
            "--topic",
            "old",
            "--to-topic",
            "new",
            "--to-partitions",
            "6",
        ],
        &[("HIGHWATER_PORT", "7000")],
    )
    .expect("is whole");
    let options = config.copy().expect("is a copy");
    assert_eq!((&*config.bootstrap_servers(), &*config.topic()), ("a:1", "old"));
    assert_eq!((&*options.to_topic, options.to_partitions), ("new", Some(6)));
    // The copy reads the embedded log; then what is set for Kafka is for the copy's target.
    let arguments = [
        "--to-bootstrap-servers",
        "b:1",
        "-X",
        "linger.ms=1",
        "-X",
        "debug=broker",
    ];
    let other = ["--to-kafka-property", "linger.ms=2", "--replication-factor", "3"];
    let arguments = [&["copy", "--dir", "d", "--to-topic", "new"][..], &arguments, &other].concat();
    let config = load(&arguments, &[]).expect("is whole");
    let options = config.copy().expect("is a copy");
    let properties = options.kafka_properties(config.kafka_properties());
    let expected = [("debug", "broker"), ("linger.ms", "2")].map(|(n, v)| (n.to_string(), v.to_string()));
    assert_eq!(properties, Ok(expected.to_vec()));
    assert!(load(&["--port", "1"], &[]).expect("a server").copy().is_none());
}

#[test]
fn a_copy_that_is_not_whole_is_refused_with_what_is_missing() {
    let told = |arguments: &[&str]| refusal(&[&["copy"], arguments].concat(), &[]);
    let to = ["--to-topic", "new"];
    assert!(told(&["--bootstrap-servers", "a:1"]).contains("--to-topic"));
    assert!(told(&to).contains("--to-bootstrap-servers"));
    let both = [&to[..], &["--dir", "d", "--bootstrap-servers", "a:1"]].concat();
    assert!(told(&both).contains("two sources"));
    let forgotten = [&to[..], &["--topic", "old", "--to-bootstrap-servers", "b:1"]].concat();
    assert!(told(&forgotten).contains("--bootstrap-servers"));
    let secret = [&to[..], &["--bootstrap-servers", "a:1", "--to-kafka-property", "hush"]].concat();
    let refused = told(&secret);
    assert!(
        refused.contains("--to-kafka-property") && !refused.contains("hush"),
        "{refused}"
    );
    assert!(told(&[&to[..], &["--to-partitions", "0"]].concat()).contains("--to-partitions"));
    let help = load(&["copy", "--help"], &[]).map(|_| ()).expect_err("shown");
    assert!(
        help.contains("--to-topic") && help.contains("--kafka-property") && !help.contains("--port"),
        "{help}"
    );
}

#[test]
fn files_with_a_password_that_everybody_can_read_are_told() {
    let exposed = |file: &tempfile::NamedTempFile, arguments: &[&str], mode: u32| {
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).expect("the file is ours");
        load(arguments, &[]).expect("good settings").exposed_files().to_vec()
    };
    let with = file("requirepass secret\n");
    assert_eq!(exposed(&with, &[path(&with)], 0o644), [with.path()]);
    assert!(exposed(&with, &[path(&with)], 0o640).is_empty());
    for without in [
        "port 7000\n",
        "requirepass \"\"\n",
        "bootstrap-servers a:1\nkafka-property a.b=c\n",
    ] {
        let without = file(without);
        assert!(exposed(&without, &[path(&without)], 0o644).is_empty());
    }
    let property = file("bootstrap-servers a:1\nkafka-property sasl.password=p\n");
    assert_eq!(exposed(&property, &[path(&property)], 0o604), [property.path()]);
    let properties = file("sasl.password=p\n");
    let arguments = ["--bootstrap-servers", "a:1", "-F", path(&properties)];
    assert_eq!(exposed(&properties, &arguments, 0o644), [properties.path()]);
    let user = file("user ann on >secret\n");
    assert_eq!(exposed(&user, &[path(&user)], 0o644), [user.path()]);
    let users = file("user ann on #0123\nuser bob on nopass\n");
    assert_eq!(exposed(&users, &["--aclfile", path(&users)], 0o644), [users.path()]);
    assert!(exposed(&users, &["--aclfile", path(&users)], 0o640).is_empty());
    let open = file("user default on nopass ~* &* +@all\n");
    assert!(exposed(&open, &["--aclfile", path(&open)], 0o644).is_empty());
    // A file that is included by another.
    let including = file(&format!("include {}\n", path(&with)));
    std::fs::set_permissions(with.path(), std::fs::Permissions::from_mode(0o644)).expect("the file is ours");
    assert_eq!(exposed(&including, &[path(&including)], 0o600), [with.path()]);
}

#[test]
fn the_image_keeps_protected_mode() {
    let dockerfile = include_str!("../../docker/Dockerfile");
    let entry = dockerfile.lines().find_map(|line| line.strip_prefix("ENTRYPOINT "));
    let words = entry.expect("an entry point").trim_matches(['[', ']']);
    let words: Vec<&str> = words.split(", ").map(|word| word.trim_matches('"')).collect();
    assert!(load(&words[1..], &[]).expect("good settings").protected_mode());
    assert!(!include_str!("../../docker/compose.yaml").contains("protected-mode"));
}
