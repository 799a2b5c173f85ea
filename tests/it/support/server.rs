//! The server under test, and redis-server to compare it with.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::client::Client;
use super::kafka::Kafka;
use super::{panics, parts, ports, process, resp, temp};

const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(30);
/// A port can be taken between the choice and the bind, however rarely.
const PORTS_TRIED: usize = 5;

/// A running Highwater. Killed when dropped; the drop then fails the test if the server logged a
/// warning, an error or a panic that the test has not allowed.
pub struct Highwater {
    pub port: u16,
    /// `None` after `kill9` and `terminate`.
    child: Option<Child>,
    setup: Builder,
    dir: PathBuf,
    log: PathBuf,
    /// Holds the log and, where the test gave none, the data directory.
    _temp: TempDir,
}

/// How to start a Highwater.
#[derive(Clone, Default)]
pub struct Builder {
    /// A program that starts another one, with its arguments; empty: none.
    within: Vec<String>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    dir: Option<PathBuf>,
    port: Option<u16>,
    allowed: Vec<String>,
}

impl Highwater {
    /// On the embedded log, in a directory of its own.
    pub fn embedded() -> Highwater {
        Highwater::builder().start()
    }

    /// On a topic of this broker.
    pub fn on_kafka(kafka: &Kafka, topic: &str) -> Highwater {
        Highwater::builder().kafka(kafka, topic).start()
    }

    pub fn builder() -> Builder {
        Builder::default()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.port)
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    /// Bytes of memory that it has.
    pub fn memory(&self) -> u64 {
        self.status("VmRSS:")
    }

    /// Bytes of memory that it had at most since it was started.
    pub fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    fn status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the server runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.expect("a process has memory").trim().trim_end_matches(" kB");
        kib.parse::<u64>().expect("a number") << 10
    }

    /// Lets log lines with this text pass the check at the end.
    pub fn allow(&mut self, text: &str) {
        self.setup.allowed.push(text.to_owned());
    }

    /// All that the server has printed, in all its runs.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Ends it as a crash would. What it was writing may then be cut off at the next start, as its log says.
    pub fn kill9(&mut self) {
        self.allow("cut an unfinished write off the log's end");
        self.kill();
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            process::kill_group(&mut child);
        }
    }

    /// Asks it to stop (SIGTERM) and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the server runs");
        process::signal(&child, libc::SIGTERM);
        process::wait_until_exit(&mut child, STOP).unwrap_or_else(|| {
            process::kill_group(&mut child);
            panic!(
                "did not stop within {STOP:?} of SIGTERM; its log ends:\n{}",
                self.tail()
            )
        })
    }

    /// Stops it where it is, until `thaw`: its connections stay open and nothing answers.
    pub fn freeze(&self) {
        process::freeze(self.child.as_ref().expect("the server runs"));
    }

    /// Lets it go on after `freeze`.
    pub fn thaw(&self) {
        process::thaw(self.child.as_ref().expect("the server runs"));
    }

    /// Sends any signal.
    pub fn signal(&self, signal: libc::c_int) {
        process::signal(self.child.as_ref().expect("the server runs"), signal);
    }

    /// Waits until the process ends by itself.
    pub fn wait_until_exit(&mut self, deadline: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("the server runs");
        process::wait_until_exit(&mut child, deadline).unwrap_or_else(|| {
            process::kill_group(&mut child);
            panic!("still ran after {deadline:?}; its log ends:\n{}", self.tail())
        })
    }

    /// Starts it again on the same port and directory, killing it first if it runs, and waits
    /// until it serves.
    pub fn restart(&mut self) {
        self.restart_without_waiting();
        self.wait_until_ready();
    }

    /// Starts it again with another value of an environment variable.
    pub fn restart_with_env(&mut self, name: &str, value: &str) {
        self.setup.env.push((name.to_owned(), value.to_owned()));
        self.restart();
    }

    pub fn restart_without_waiting(&mut self) {
        self.kill9();
        self.launch();
    }

    /// Restarts it with further arguments (the last one of a kind wins).
    pub fn restart_with(&mut self, args: &[&str]) {
        self.setup.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self.restart();
    }

    /// Waits until it answers PING and has loaded its data.
    pub fn wait_until_ready(&mut self) {
        if let Err(problem) = self.try_wait_until_ready() {
            panic!("highwater {problem}; its log ends:\n{}", self.tail());
        }
    }

    fn try_wait_until_ready(&mut self) -> Result<(), String> {
        let child = self.child.as_mut().expect("the server was started");
        wait_until_ready(child, self.port)
    }

    fn launch(&mut self) {
        panics::keep();
        let mut command = process::within(&self.setup.within, &binary());
        let log = append(&self.log);
        command
            .args(["--port", &self.port.to_string(), "--dir"])
            .arg(&self.dir)
            .args(&self.setup.args)
            .env("NO_COLOR", "1")
            // Ours, not a setting of it.
            .env_remove("HIGHWATER_BIN")
            .envs(self.setup.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate a descriptor"))
            .stderr(log);
        self.child = Some(process::spawn(command).expect("start highwater"));
    }

    fn tail(&self) -> String {
        process::tail(&self.log, 60)
    }

    fn unexpected_lines(&self) -> Vec<String> {
        let suspicious = |line: &&str| [" WARN ", " ERROR ", "panicked"].iter().any(|mark| line.contains(mark));
        let allowed = |line: &&str| self.setup.allowed.iter().any(|text| line.contains(text.as_str()));
        self.log()
            .lines()
            .filter(suspicious)
            .filter(|line| !allowed(line))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Highwater {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!(
                "---- end of the log of highwater on port {} ----\n{}\n---- the last panics ----\n{}",
                self.port,
                self.tail(),
                panics::last()
            );
            return;
        }
        let unexpected = self.unexpected_lines();
        assert!(
            unexpected.is_empty(),
            "highwater logged what no test allowed:\n{}",
            unexpected.join("\n")
        );
    }
}

impl Builder {
    pub fn kafka(self, kafka: &Kafka, topic: &str) -> Builder {
        self.args(&["--bootstrap-servers", &kafka.bootstrap, "--topic", topic])
    }

    pub fn arg(self, arg: &str) -> Builder {
        self.args(&[arg])
    }

    pub fn args(mut self, args: &[&str]) -> Builder {
        self.args.extend(args.iter().map(|arg| (*arg).to_owned()));
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Builder {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Started by another program, which is given the server's path and arguments.
    pub fn within(mut self, starter: &[String]) -> Builder {
        self.within = starter.to_vec();
        self
    }

    /// A data directory that the test keeps.
    pub fn dir(mut self, dir: &Path) -> Builder {
        self.dir = Some(dir.to_owned());
        self
    }

    pub fn port(mut self, port: u16) -> Builder {
        self.port = Some(port);
        self
    }

    /// Log lines with this text are no reason to fail.
    pub fn allow(mut self, text: &str) -> Builder {
        self.allowed.push(text.to_owned());
        self
    }

    /// Starts it and waits until it serves.
    pub fn start(self) -> Highwater {
        for _ in 0..PORTS_TRIED {
            let mut server = self.clone().start_without_waiting();
            match server.try_wait_until_ready() {
                Ok(()) => return server,
                Err(_) if self.port.is_none() && port_was_taken(&server.log()) => {
                    server.setup.allowed.push(String::new())
                }
                Err(problem) => panic!("highwater {problem}; its log ends:\n{}", server.tail()),
            }
        }
        panic!("no free port in {PORTS_TRIED} tries");
    }

    /// Starts it and returns at once, while it may still be loading.
    pub fn start_without_waiting(self) -> Highwater {
        let temp = temp::dir("highwater");
        let mut server = Highwater {
            port: self.port.unwrap_or_else(ports::free),
            child: None,
            dir: self.dir.clone().unwrap_or_else(|| temp.path().join("data")),
            log: temp.path().join("log"),
            setup: self,
            _temp: temp,
        };
        server.launch();
        server
    }

    /// Starts it where it must refuse to: returns how it ended and what it printed.
    pub fn refuse(self, deadline: Duration) -> (ExitStatus, String) {
        let mut server = self.allow("").start_without_waiting();
        let status = server.wait_until_exit(deadline);
        (status, server.log())
    }
}

/// The program under test.
pub fn binary() -> PathBuf {
    match std::env::var_os("HIGHWATER_BIN") {
        Some(path) => path.into(),
        None => env!("CARGO_BIN_EXE_highwater").into(),
    }
}

/// Debian's redis-server, without persistence, in a directory of its own.
pub struct RedisServer {
    pub port: u16,
    child: Child,
    log: PathBuf,
    _temp: TempDir,
}

impl RedisServer {
    /// `args` as on its command line: `&["--appendonly", "yes"]`.
    pub fn start(args: &[&str]) -> RedisServer {
        RedisServer::start_as(parts::redis_server, args)
    }

    /// Redis 8.0, for commands that came after 7.2.
    pub fn start_8(args: &[&str]) -> RedisServer {
        RedisServer::start_as(parts::redis_8_server, args)
    }

    pub fn start_valkey(args: &[&str]) -> RedisServer {
        RedisServer::start_as(parts::valkey_server, args)
    }

    /// With this file of settings.
    pub fn start_with_file(file: &Path) -> RedisServer {
        let program = || {
            let mut command = parts::redis_server();
            command.arg(file);
            command
        };
        RedisServer::start_as(program, &[])
    }

    fn start_as(program: impl Fn() -> Command, args: &[&str]) -> RedisServer {
        for _ in 0..PORTS_TRIED {
            let mut server = RedisServer::launch(program(), args);
            match wait_until_ready(&mut server.child, server.port) {
                Ok(()) => return server,
                Err(_) if port_was_taken(&process::tail(&server.log, 20)) => {}
                Err(problem) => panic!(
                    "redis-server {problem}; its log ends:\n{}",
                    process::tail(&server.log, 20)
                ),
            }
        }
        panic!("no free port in {PORTS_TRIED} tries");
    }

    pub fn client(&self) -> Client {
        Client::connect(self.port)
    }

    fn launch(mut command: Command, args: &[&str]) -> RedisServer {
        let temp = temp::dir("redis");
        let port = ports::free();
        let log = temp.path().join("log");
        let output = append(&log);
        command
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
            ])
            .arg(temp.path())
            .args(args)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("duplicate a descriptor"))
            .stderr(output);
        let child = process::spawn(command).expect("start redis-server");
        RedisServer {
            port,
            child,
            log,
            _temp: temp,
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}

fn append(path: &Path) -> File {
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .expect("open a log file")
}

fn port_was_taken(log: &str) -> bool {
    log.to_lowercase().contains("address already in use")
}

fn wait_until_ready(child: &mut Child, port: u16) -> Result<(), String> {
    let end = Instant::now() + START;
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Err(format!("ended at its start ({status})"));
        }
        let Err(obstacle) = ask_if_ready(port) else {
            return Ok(());
        };
        if Instant::now() >= end {
            return Err(format!("did not serve within {START:?} ({obstacle})"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Says what stands in the way where the server is not ready.
fn ask_if_ready(port: u16) -> Result<(), String> {
    let mut client = Client::try_connect(port).map_err(|error| format!("connect: {error}"))?;
    client.set_deadline(Duration::from_secs(2));
    let mut ask = |line| -> io::Result<Vec<u8>> {
        client.try_write(&resp::command_line(line))?;
        client.try_reply()?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    };
    let pong = ask("PING").map_err(|error| format!("PING: {error}"))?;
    if pong.starts_with(b"-NOAUTH") {
        // It serves, though not a stranger.
        return Ok(());
    }
    if pong != b"+PONG\r\n" {
        return Err(format!("PING: {}", resp::show(&pong)));
    }
    let info = ask("INFO persistence").map_err(|error| format!("INFO: {error}"))?;
    match String::from_utf8_lossy(&info).lines().any(|line| line == "loading:0") {
        true => Ok(()),
        false => Err(format!("no loading:0 in INFO persistence: {}", resp::show(&info))),
    }
}
