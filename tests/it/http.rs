//! What HTTP shows: metrics, probes, status. Who may see it is in `front_doors`.

use std::fs::{self, File};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::foreign::Foreign;
use crate::support::http::{Http, get};
use crate::support::kafka::{self, Kafka};
use crate::support::metrics::Metrics;
use crate::support::server::{Builder, Highwater};
use crate::support::tree::root;
use crate::support::{eventually, parts, ports, process, temp, wait_for};

const SOON: Duration = Duration::from_secs(30);

/// A node that serves HTTP at this port.
struct Shown {
    node: Highwater,
    port: u16,
}

impl Shown {
    fn start(builder: Builder) -> Shown {
        let port = ports::free();
        let node = builder.args(&["--http-port", &port.to_string()]).start();
        Shown { node, port }
    }

    fn connect(&self) -> Http {
        Http::connect(("127.0.0.1", self.port)).expect("a connection")
    }

    /// Status and text of a probe.
    fn probe(&self, path: &str) -> (u16, String) {
        let answer = get(self.port, path);
        (answer.status, answer.body.trim_end().to_owned())
    }

    #[track_caller]
    fn ready_soon(&self, status: u16, text: &str) {
        wait_for(&format!("/readyz to answer {status} {text}"), SOON, || {
            (self.probe("/readyz") == (status, text.to_owned())).then_some(())
        });
    }

    fn metrics(&self) -> Metrics {
        let answer = get(self.port, "/metrics");
        let kind = answer.header("Content-Type");
        assert_eq!(kind, Some("text/plain; version=0.0.4; charset=utf-8"));
        Metrics::read(&answer.body)
    }

    fn status(&self) -> Value {
        let answer = get(self.port, "/status");
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
        serde_json::from_str(&answer.body).expect("JSON")
    }
}

#[test]
fn requests_are_answered_as_http_says() {
    let mut shown = Shown::start(Highwater::builder());
    let mut http = shown.connect();
    for path in ["/livez", "/readyz?verbose", "/livez"] {
        let answer = http.get(path, None).expect("the connection stays open");
        assert_eq!((answer.status, &*answer.body), (200, "ok\n"), "{path}");
        assert!(answer.header("Date").is_some_and(|date| date.ends_with(" GMT")));
        assert_eq!(answer.header("Cache-Control"), Some("no-store"));
        assert_eq!(answer.header("Connection"), None);
    }
    // Several at once, and in pieces.
    http.write("HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\nGET /nosuch HTTP/1.1\r\nHost: x\r\n\r\nPUT /li")
        .expect("write");
    let head = http.answer(false).expect("an answer");
    assert_eq!((head.status, head.header("Content-Length")), (200, Some("3")));
    assert_eq!(http.answer(true).expect("an answer").status, 404);
    http.write("vez HTTP/1.1\r\nHost: x\r\n\r\n").expect("write");
    let refused = http.answer(true).expect("an answer");
    assert_eq!((refused.status, refused.header("Allow")), (405, Some("GET, HEAD")));
    // What ends the connection.
    let large = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    for (request, status) in [
        ("GET /livez HTTP/1.0\r\n\r\n", 200),
        ("GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
        ("POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc", 413),
        (
            "GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            411,
        ),
        ("GET /livez HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        ("PING\r\n\r\n", 400),
        (&large, 431),
    ] {
        let mut http = shown.connect();
        http.write(request).expect("write");
        let answer = http
            .answer(true)
            .unwrap_or_else(|error| panic!("{request:.60}: {error}"));
        assert_eq!(answer.status, status, "{request:.60}");
        assert_eq!(answer.header("Connection"), Some("close"), "{request:.60}");
        assert!(http.is_closed(), "{request:.60}");
    }
    // A connection is a client as others are, and does not hold up a stop.
    let mut client = shown.node.client();
    eventually("the others to be gone", SOON, || {
        client.info("connected_clients").as_deref() == Some("2")
    });
    client.check("CLIENT KILL TYPE normal", ":1");
    assert!(http.is_closed());
    let mut idle = shown.connect();
    assert_eq!(idle.get("/livez", None).expect("an answer").status, 200);
    let mut half = shown.connect();
    half.write("GET /livez HTTP/1.1\r\n").expect("write");
    let began = Instant::now();
    assert!(shown.node.terminate().success());
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    assert!(idle.is_closed());
}

/// A client that sends one byte after the other does not keep its connection.
#[test]
fn a_head_that_does_not_come_in_time_is_not_waited_for() {
    let shown = Shown::start(Highwater::builder());
    let mut http = shown.connect();
    let began = Instant::now();
    http.write("GET /livez HTTP/1.1\r\n").expect("write");
    while began.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(100));
        http.write("X").expect("write");
    }
    assert_eq!(http.answer(true).expect("an answer").status, 408);
    assert!(http.is_closed());
    let took = began.elapsed();
    assert!(took > Duration::from_secs(9), "{took:?}");
    shown.ready_soon(200, "ok");
}

#[test]
fn probes_need_no_user_and_everything_else_does() {
    let shown = Shown::start(Highwater::builder().args(&["--requirepass", "secret"]));
    // The start does not wait for a node with a password to be loaded.
    shown.ready_soon(200, "ok");
    let mut admin = shown.node.client();
    admin.check("AUTH secret", "+OK");
    admin.check("ACL SETUSER watcher on >sees +info", "+OK");
    let mut http = shown.connect();
    let mut status = |path, login| {
        let answer = http.get(path, login).expect("an answer");
        let asks = answer.header("WWW-Authenticate").is_some();
        assert_eq!(asks, answer.status == 401, "{path}");
        answer.status
    };
    let pages = ["/livez", "/readyz", "/metrics", "/status"];
    assert_eq!(pages.map(|path| status(path, None)), [200, 200, 401, 401]);
    assert_eq!(pages.map(|path| status(path, Some("watcher:sees"))), [200; 4]);
    assert_eq!(pages.map(|path| status(path, Some(":secret"))), [200; 4]);
    // Each request has its own user.
    assert_eq!(status("/status", None), 401);
    admin.check("CONFIG SET metrics-open yes", "+OK");
    assert_eq!(pages.map(|path| status(path, None)), [200, 200, 200, 401]);
    admin.check("ACL SETUSER watcher -info", "+OK");
    assert_eq!(status("/status", Some("watcher:sees")), 403);
    assert_eq!(
        status("/metrics", Some("watcher:wrong")),
        200,
        "nobody is asked who it is"
    );
    admin.check("CONFIG SET metrics-open no", "+OK");
    assert_eq!(status("/metrics", Some("watcher:wrong")), 401);
}

/// Commands whose metrics are known, then two looks at the page.
fn the_page_of_metrics_is_sound(shown: &Shown, topic: &str) -> Metrics {
    let mut client = shown.node.client();
    client.check("CONFIG RESETSTAT", "+OK");
    for n in 0..20 {
        client.check(&format!("SET k{n} v"), "+OK");
    }
    client.check("INCR counter", ":1");
    client.check("GET k1", "$1\r\nv");
    client.check("GET nosuch", "$-1");
    client.check("CLIENT NO-EVICT ON", "+OK");
    assert!(client.line("INCR k1").starts_with(b"-ERR"));
    assert!(client.line("GET").starts_with(b"-ERR"));
    assert!(
        client
            .line("EVAL \"return redis.error_reply('A\\\"B\\\\\\\\ x')\" 0")
            .starts_with(b"-")
    );
    let first = shown.metrics();
    for (name, labels, value) in [
        ("highwater_command_calls_total", "command=set", 20.0),
        ("highwater_command_calls_total", "command=client|no-evict", 1.0),
        ("highwater_command_errors_total", "command=incr,outcome=failed", 1.0),
        ("highwater_command_errors_total", "command=get,outcome=rejected", 1.0),
        ("highwater_command_duration_seconds_count", "command=set", 20.0),
        ("highwater_command_computation_seconds_count", "command=set", 20.0),
        ("highwater_keyspace_hits_total", "", 1.0),
        ("highwater_keyspace_misses_total", "", 1.0),
        ("highwater_status", "status=serving", 1.0),
        ("highwater_status", "status=loading", 0.0),
        ("highwater_clients_blocked", "", 0.0),
        ("highwater_log_outage_seconds", "", 0.0),
        (
            "highwater_database_refuses_writes",
            &format!("database=0,topic={topic}"),
            0.0,
        ),
    ] {
        assert_eq!(first.value(name, labels), Some(value), "{name} {labels}");
    }
    // It waits for the log, and is computed in less time.
    let [waited, computed] = ["duration", "computation"].map(|what| {
        let name = format!("highwater_command_{what}_seconds_sum");
        first.value(&name, "command=incr").expect("a sum")
    });
    assert!(
        0.0 < computed && computed < waited && waited < 60.0,
        "{computed} {waited}"
    );
    // The store has all of it soon.
    let at = format!("database=0,topic={topic},partition=0");
    eventually("the store to be up to date", SOON, || {
        let now = shown.metrics();
        let of = |name: &str| now.value(name, &at);
        let keys = now.value("highwater_store_keys", "database=0");
        of("highwater_partition_lag_records") == Some(0.0)
            && of("highwater_partition_position") == of("highwater_partition_end")
            && of("highwater_partition_age_seconds").is_some_and(|age| age < 60.0)
            && keys == Some(21.0)
    });
    client.check("SET k1 w", "+OK");
    let second = shown.metrics();
    assert_eq!(second.value("highwater_command_calls_total", "command=set"), Some(21.0));
    check_counters(&first, &second);
    check_document(&second);
    second
}

/// No counter has gone or went down.
fn check_counters(first: &Metrics, second: &Metrics) {
    for ((name, suffix, labels), before) in first.counters() {
        let family = second.0.get(name).unwrap_or_else(|| panic!("{name} has gone"));
        let mut samples = family.samples.iter();
        let after = samples.find(|(other, of, _)| other == suffix && of == labels);
        let after = after.map(|(_, _, value)| *value);
        assert!(
            after.is_some_and(|after| after >= before),
            "{name}{suffix} {labels:?}: {before}, {after:?}"
        );
    }
}

/// The document has every family, with its type.
fn check_document(metrics: &Metrics) {
    let documented = fs::read_to_string(root().join("docs/metrics.md")).expect("docs/metrics.md");
    for (name, family) in &metrics.0 {
        let row = format!("| `{name}` | {} |", family.kind);
        assert!(documented.contains(&row), "docs/metrics.md has no {row}");
    }
}

#[test]
fn metrics_of_a_node_on_the_embedded_log_are_sound() {
    let shown = Shown::start(Highwater::builder());
    let topic = shown.status()["databases"][0]["topic"]
        .as_str()
        .expect("a name")
        .to_owned();
    let metrics = the_page_of_metrics_is_sound(&shown, &topic);
    assert!(
        metrics
            .value("highwater_log_fsyncs_total", "")
            .is_some_and(|count| count > 0.0)
    );
    assert!(
        metrics
            .value("highwater_log_disk_bytes", "")
            .is_some_and(|bytes| bytes > 0.0)
    );
    assert_eq!(metrics.value("highwater_log_info", "kind=embedded"), Some(1.0));
    let status = shown.status();
    assert_eq!((&status["status"], &status["ready"]), (&"serving".into(), &true.into()));
    let databases = status["databases"].as_array().expect("a list");
    assert_eq!(databases.len(), 1, "all others are empty: {databases:?}");
    assert_eq!(databases[0]["keys"], 21);
    assert_eq!(status["log"]["outage"], Value::Null);
    assert!(
        status["databases"][0]["partitions"][0]["end"]
            .as_u64()
            .is_some_and(|end| end >= 22)
    );
}

#[test]
fn metrics_of_a_node_on_kafka_are_sound() {
    let topic = kafka::fresh_topic("metrics");
    let builder = Highwater::builder().kafka(kafka::shared(), &topic);
    let shown = Shown::start(
        builder
            .args(&["--write-timeout", "3s", "--ready-max-lag", "2s"])
            .allow("a transaction of another producer"),
    );
    let metrics = the_page_of_metrics_is_sound(&shown, &topic);
    let of_transactions = |metrics: &Metrics, outcome: &str| {
        let value = metrics.value("highwater_transactions_total", &format!("outcome={outcome}"));
        value.expect("a counter")
    };
    assert!(of_transactions(&metrics, "committed") >= 1.0);
    assert_eq!(metrics.value("highwater_log_disk_bytes", ""), None);
    shown.ready_soon(200, "ok");
    // Another producer's open transaction hides what comes after it: this node is behind.
    let foreign = Foreign::new(kafka::shared(), &topic);
    foreign.begin(&[("counter", Some("5"))]);
    shown.ready_soon(503, "behind the log");
    assert_eq!(shown.probe("/livez").0, 200);
    let refused = shown.node.client().line("INCR counter");
    assert!(
        refused.starts_with(b"-NOTWRITTEN"),
        "{}",
        String::from_utf8_lossy(&refused)
    );
    let errors = shown.metrics();
    let by_cause = &errors.0["highwater_write_errors_total"].samples;
    assert!(
        by_cause
            .iter()
            .any(|(_, labels, count)| labels["error"] == "notwritten" && *count == 1.0),
        "{by_cause:?}"
    );
    assert_eq!(shown.status()["not_ready"], "behind the log");
    foreign.commit();
    shown.ready_soon(200, "ok");
}

#[test]
fn a_node_stays_ready_without_kafka_unless_told_otherwise() {
    let kafka = Kafka::start();
    let topic = kafka::fresh_topic("ready");
    let builder = Highwater::builder()
        .kafka(&kafka, &topic)
        .args(&["--startup-timeout", "2m"]);
    // The outage is reported.
    let mut shown = Shown::start(builder.allow("WARN"));
    let mut client = shown.node.client();
    client.check("SET k v", "+OK");
    shown.ready_soon(200, "ok");
    kafka.kill();
    eventually("the outage to be seen", SOON, || {
        shown.metrics().value("highwater_status", "status=outage") == Some(1.0)
    });
    client.check("GET k", "$1\r\nv");
    assert_eq!(shown.probe("/readyz"), (200, "ok".into()));
    client.check("CONFIG SET ready-without-log no", "+OK");
    assert_eq!(shown.probe("/readyz"), (503, "the log does not answer".into()));
    assert_eq!(shown.probe("/livez"), (200, "ok".into()));
    let metrics = shown.metrics();
    assert!(
        metrics
            .value("highwater_log_outage_seconds", "")
            .is_some_and(|seconds| seconds > 0.0)
    );
    assert!(
        !metrics.0.contains_key("highwater_partition_lag_records"),
        "the end is not known"
    );
    assert!(shown.status()["log"]["outage"]["cause"].is_string());
    // A start without Kafka is loading.
    shown.node.restart_without_waiting();
    let answer = wait_for("the port to be open", SOON, || {
        Http::connect(("127.0.0.1", shown.port)).ok()?.get("/readyz", None).ok()
    });
    assert_eq!((answer.status, &*answer.body), (503, "loading\n"));
    assert_eq!(shown.probe("/livez"), (200, "ok".into()));
    assert_eq!(shown.metrics().value("highwater_status", "status=loading"), Some(1.0));
    kafka.restart();
    shown.ready_soon(200, "ok");
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        process::kill_group(&mut self.0);
    }
}

#[test]
fn prometheus_itself_reads_the_metrics() {
    let shown = Shown::start(Highwater::builder().args(&["--requirepass", "secret"]));
    // The start does not wait for a node with a password to be loaded.
    shown.ready_soon(200, "ok");
    let mut client = shown.node.client();
    client.check("AUTH secret", "+OK");
    client.check("ACL SETUSER watcher on >sees +info", "+OK");
    client.check("SET k v", "+OK");
    client.check("GET k", "$1\r\nv");
    let page = shown
        .connect()
        .get("/metrics", Some("watcher:sees"))
        .expect("an answer")
        .body;
    let mut lint = parts::prometheus("promtool");
    lint.args(["check", "metrics"]);
    process::run("promtool", lint, page.as_bytes(), SOON);

    let (dir, port) = (temp::dir("prometheus"), ports::free());
    let config = format!(
        "global: {{ scrape_interval: 1s }}\nscrape_configs:\n  - job_name: highwater\n    basic_auth: {{ username: watcher, password: sees }}\n    \
         static_configs: [{{ targets: ['127.0.0.1:{}'] }}]\n",
        shown.port
    );
    let file = dir.path().join("prometheus.yml");
    fs::write(&file, config).expect("write a file");
    let log = dir.path().join("log");
    let mut server = parts::prometheus("prometheus");
    server
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .stdout(Stdio::null())
        .stderr(File::create(&log).expect("create a file"));
    let _running = Running(process::spawn(server).expect("start prometheus"));
    for query in [
        "up",
        "highwater_command_calls_total%7Bcommand%3D%22set%22%7D",
        "highwater_command_duration_seconds_count%7Bcommand%3D%22get%22%7D",
    ] {
        let path = format!("/api/v1/query?query={query}");
        let what = format!(
            "{query} to be 1; the log of prometheus ends: {}",
            process::tail(&log, 5)
        );
        wait_for(&what, SOON, || {
            let answer = Http::connect(("127.0.0.1", port)).ok()?.get(&path, None).ok()?;
            let found: Value = serde_json::from_str(&answer.body).ok()?;
            (found["data"]["result"][0]["value"][1] == "1").then_some(())
        });
    }
}
