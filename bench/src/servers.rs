//! The servers that are compared, each a process on 127.0.0.1 with a directory of its own. Knows how to start and stop
//! them; nothing of loads.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::machine;
use crate::support::{parts, ports, process, temp};

const START: Duration = Duration::from_secs(120);
const SNAPSHOT: Duration = Duration::from_secs(600);
const STOP: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Redis,
    RedisAlways,
    RedisEverysec,
    Embedded,
    EmbeddedEverysec,
    OnKafka,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Redis => "redis",
            Kind::RedisAlways => "redis, fsync always",
            Kind::RedisEverysec => "redis, fsync everysec",
            Kind::Embedded => "embedded, fsync always",
            Kind::EmbeddedEverysec => "embedded, fsync everysec",
            Kind::OnKafka => "on Kafka",
        }
    }

    pub fn is_highwater(self) -> bool {
        matches!(self, Kind::Embedded | Kind::EmbeddedEverysec | Kind::OnKafka)
    }
}

/// Children that run, for whoever has to end in a hurry.
static CHILDREN: Mutex<Vec<u32>> = Mutex::new(Vec::new());

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ends all children and removes their files: at Ctrl-C.
pub fn clean_up() {
    INTERRUPTED.store(true, Ordering::Relaxed);
    let children = CHILDREN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for pid in children.iter() {
        // SAFETY: plain system call; each child leads a group of its own, and is taken off the list before it is waited for.
        unsafe { libc::kill(-(*pid as libc::pid_t), libc::SIGKILL) };
    }
    // Those that still write make this fail; the next run removes what is left then.
    let _ = fs::remove_dir_all(temp::root());
}

/// Whether children are missing because the process is about to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

fn spawn(command: Command) -> Result<Child> {
    let shown = format!("{command:?}");
    let child = process::spawn(command).with_context(|| format!("start {shown}"))?;
    let mut children = CHILDREN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    children.push(child.id());
    Ok(child)
}

fn kill(child: &mut Child) {
    let mut children = CHILDREN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    children.retain(|pid| *pid != child.id());
    process::kill_group(child);
}

/// Where the programs are, and the Kafka that is used.
pub struct Site {
    pub highwater: PathBuf,
    /// The directory with the built examples.
    pub examples: PathBuf,
    pub bootstrap_servers: Option<String>,
    broker: Option<Broker>,
    topics: u32,
}

impl Site {
    pub fn new(highwater: PathBuf, examples: PathBuf, bootstrap_servers: Option<String>) -> Site {
        Site {
            highwater,
            examples,
            bootstrap_servers,
            broker: None,
            topics: 0,
        }
    }

    /// The address of the given Kafka, or of one that is started here.
    pub fn kafka(&mut self) -> Result<String> {
        if let Some(given) = &self.bootstrap_servers {
            return Ok(given.clone());
        }
        if self.broker.is_none() {
            self.broker = Some(Broker::start()?);
        }
        let broker = self.broker.as_ref().context("was started")?;
        Ok(format!("127.0.0.1:{}", broker.port))
    }

    /// The broker's process, if it was started here.
    pub fn broker_pid(&self) -> Option<u32> {
        self.broker.as_ref().map(|broker| broker.child.id())
    }

    pub fn stop_kafka(&mut self) {
        self.broker = None;
    }

    pub fn fresh_topic(&mut self) -> String {
        self.topics += 1;
        format!("bench-{}-{}", std::process::id(), self.topics)
    }

    /// Keeps a topic's records from being compacted away before they are read.
    pub fn keep_all_records(&mut self, topic: &str) -> Result<()> {
        let mut configure = java("-Xmx128m");
        configure.args(["kafka.admin.ConfigCommand", "--alter", "--entity-type", "topics"]);
        configure.args(["--entity-name", topic, "--add-config", "min.compaction.lag.ms=86400000"]);
        configure.args(["--bootstrap-server", &self.kafka()?]);
        let outcome = process::try_run(configure, b"", START).context("configure a topic")?;
        ensure!(outcome.success(), "configure a topic: {}", outcome.text());
        Ok(())
    }

    /// Makes a snapshot of a topic; `dir` is the data directory that this needs.
    pub fn snapshot(&mut self, topic: &str, dir: &Path, file: &Path, more: &[String]) -> Result<()> {
        let mut make = Command::new(&self.highwater);
        make.args([
            "snapshot",
            "--bootstrap-servers",
            &self.kafka()?,
            "--topic",
            topic,
            "--dir",
        ]);
        make.arg(dir).arg("--to").arg(file).args(more);
        let outcome = process::try_run(make, b"", SNAPSHOT).context("make a snapshot")?;
        ensure!(outcome.success(), "make a snapshot: {}", outcome.text());
        Ok(())
    }

    /// Runs one of the project's examples, and returns the JSON that it prints.
    pub fn example(&self, name: &str, args: &[String]) -> Result<BTreeMap<String, f64>> {
        let mut command = Command::new(self.examples.join(name));
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = spawn(command)?;
        let mut text = String::new();
        let mut stdout = child.stdout.take().context("stdout is piped")?;
        stdout
            .read_to_string(&mut text)
            .context("read what an example prints")?;
        let status = child.wait().context("wait for an example")?;
        kill(&mut child);
        ensure!(status.success(), "{name}: {status}");
        serde_json::from_str(&text).with_context(|| format!("{name} printed {text:?}"))
    }
}

pub struct Server {
    pub kind: Kind,
    pub port: u16,
    child: Child,
    args: Vec<String>,
    dir: PathBuf,
    log: PathBuf,
    program: Command,
    _temp: TempDir,
}

impl Server {
    /// Starts it with an empty directory, and returns when it serves.
    pub fn start(kind: Kind, site: &mut Site, more: &[String]) -> Result<Server> {
        let mut args = more.to_vec();
        if kind == Kind::OnKafka && !more.iter().any(|arg| arg == "--topic") {
            args.extend(["--topic".to_owned(), site.fresh_topic()]);
        }
        let server = Server::start_without_waiting(kind, site, args)?;
        server.wait_until_ready()?;
        Ok(server)
    }

    /// The same without waiting; on Kafka the topic is among the arguments.
    pub fn start_without_waiting(kind: Kind, site: &mut Site, more: Vec<String>) -> Result<Server> {
        let temp = temp::dir("bench");
        let dir = temp.path().join("data");
        fs::create_dir(&dir).context("create a data directory")?;
        let (program, mut args) = match kind.is_highwater() {
            true => (Command::new(&site.highwater), Vec::new()),
            false => {
                let save = ["--save", "", "--bind", "127.0.0.1"].map(str::to_owned);
                (parts::redis_server(), save.to_vec())
            }
        };
        let own: &[&str] = match kind {
            Kind::Redis => &["--appendonly", "no"],
            Kind::RedisAlways => &["--appendonly", "yes", "--appendfsync", "always"],
            Kind::RedisEverysec => &["--appendonly", "yes", "--appendfsync", "everysec"],
            Kind::Embedded => &["--fsync", "always"],
            Kind::EmbeddedEverysec => &["--fsync", "everysec"],
            Kind::OnKafka => &[],
        };
        args.extend(own.iter().map(|arg| (*arg).to_owned()));
        if kind == Kind::OnKafka {
            args.extend(["--bootstrap-servers".to_owned(), site.kafka()?]);
        }
        args.extend(more);
        let port = ports::free();
        let log = temp.path().join("log");
        Ok(Server {
            kind,
            port,
            child: launch(&program, port, &dir, &args, &log)?,
            program,
            args,
            dir,
            log,
            _temp: temp,
        })
    }

    /// True if its store lacks something. That Highwater is quiet does not tell: its writer rests between batches.
    pub fn has_unstored(&self) -> bool {
        let lacks = |line: &str| line.strip_prefix("unstored_bytes:").is_some_and(|bytes| bytes != "0");
        ask(self.port, "INFO kafka").is_ok_and(|info| info.lines().any(lacks))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until it serves: how long that took.
    pub fn wait_until_ready(&self) -> Result<Duration> {
        self.wait_until_ready_within(START)
    }

    pub fn wait_until_ready_within(&self, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            if is_ready(self.port) {
                return Ok(start.elapsed());
            }
            let runs = machine::runs(self.pid());
            if !runs || start.elapsed() > limit {
                bail!(
                    "{} does not serve after {:?}; its log ends:\n{}",
                    self.kind.name(),
                    start.elapsed(),
                    process::tail(&self.log, 20)
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops it with a signal and starts it again on the same directory: how long it took from the start until it served.
    pub fn restart(&mut self, signal: libc::c_int) -> Result<Duration> {
        process::signal(&self.child, signal);
        process::wait_until_exit(&mut self.child, STOP).context("did not stop in time")?;
        kill(&mut self.child);
        let start = Instant::now();
        self.child = launch(&self.program, self.port, &self.dir, &self.args, &self.log)?;
        self.wait_until_ready()?;
        Ok(start.elapsed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

fn launch(program: &Command, port: u16, dir: &Path, args: &[String], log: &Path) -> Result<Child> {
    let output = File::options().create(true).append(true).open(log)?;
    let mut command = Command::new(program.get_program());
    for (name, value) in program.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    command
        .args(["--port", &port.to_string(), "--dir"])
        .arg(dir)
        .args(args)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output);
    spawn(command)
}

fn is_ready(port: u16) -> bool {
    ask(port, "PING").is_ok_and(|reply| reply == "+PONG")
        && ask(port, "INFO persistence").is_ok_and(|info| info.lines().any(|line| line == "loading:0"))
}

/// Sends one inline command on a connection of its own, and returns the line or the bulk string that it is answered with.
pub fn ask(port: u16, line: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("{line}\r\n").as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let Some(length) = first.strip_prefix('$') else {
        return Ok(first.trim_end().to_owned());
    };
    let mut text = vec![0; length.trim_end().parse().context("length of a reply")?];
    reader.read_exact(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A real Kafka: one broker in KRaft combined mode with the broker's own defaults, as far as one node allows.
struct Broker {
    port: u16,
    child: Child,
    _dir: TempDir,
}

impl Broker {
    fn start() -> Result<Broker> {
        let dir = temp::dir("kafka");
        let (port, controller) = (ports::free(), ports::free());
        let file = dir.path().join("server.properties");
        fs::write(&file, properties(port, controller, dir.path())).context("write server.properties")?;
        let mut format = java("-Xmx128m");
        let id = format!("{port:022}");
        format
            .args(["kafka.tools.StorageTool", "format", "-t", &id, "-c"])
            .arg(&file);
        let formatted = process::try_run(format, b"", START).context("format Kafka's directory (needs Java 17)")?;
        ensure!(formatted.success(), "Kafka's directory: {}", formatted.text());
        let log = File::create(dir.path().join("broker.log"))?;
        let mut broker = java("-Xmx1g");
        broker
            .args(["-Xms1g", "-XX:+UseG1GC", "kafka.Kafka"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let broker = Broker {
            port,
            child: spawn(broker)?,
            _dir: dir,
        };
        broker.wait_until_it_listens()?;
        Ok(broker)
    }

    /// Clients wait by themselves until it also serves.
    fn wait_until_it_listens(&self) -> Result<()> {
        let end = Instant::now() + START;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let runs = machine::runs(self.child.id());
            ensure!(
                runs && Instant::now() < end,
                "no Kafka broker: {}",
                process::tail(&self._dir.path().join("broker.log"), 20)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

fn java(heap: &str) -> Command {
    let mut java = Command::new("java");
    java.arg(heap)
        .arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn")
        .arg("-cp")
        .arg(parts::kafka_jars().join("*"));
    java
}

fn properties(port: u16, controller: u16, dir: &Path) -> String {
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
         controller.listener.names=CONTROLLER\n\
         log.dirs={}\n\
         auto.create.topics.enable=false\n\
         offsets.topic.replication.factor=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n",
        dir.join("data").display()
    )
}
