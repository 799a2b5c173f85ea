//! Child processes that cannot outlive the tests.
//!
//! Linux kills a child that asked for it (`PR_SET_PDEATHSIG`) when the *thread* that started it
//! ends, and each test is a thread of its own. So one thread that never ends starts them all: a
//! child then lives until it is stopped, or until this process is gone for whatever reason.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

type Order = (Command, Sender<io::Result<Child>>);

/// Starts a child that leads a process group of its own and dies with this process.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<Sender<Order>> = OnceLock::new();
    let parent = std::process::id() as libc::pid_t;
    command.process_group(0);
    // SAFETY: the closure makes only async-signal-safe calls.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            if libc::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        })
    };
    let (sender, started) = channel();
    STARTER
        .get_or_init(start_starter)
        .send((command, sender))
        .expect("the starter never ends");
    started.recv().expect("the starter answers every order")
}

fn start_starter() -> Sender<Order> {
    let (sender, orders) = channel::<Order>();
    thread::spawn(move || {
        for (mut command, started) in orders {
            // Nobody waiting for the answer any more is no error of the starter's.
            let _ = started.send(command.spawn());
        }
    });
    sender
}

/// A program's command line behind that of the program that is to start it; none if that is empty.
pub fn within(starter: &[String], program: &Path) -> Command {
    let Some((first, rest)) = starter.split_first() else {
        return Command::new(program);
    };
    let mut command = Command::new(first);
    command.args(rest).arg(program);
    command
}

/// Stops a child (`SIGSTOP`), and waits until it stands.
///
/// `kill` returns before that: the signal is acted upon by a thread that must first get a processor,
/// and on a busy machine the others run for milliseconds more.
pub fn freeze(child: &Child) {
    signal(child, libc::SIGSTOP);
    let end = Instant::now() + Duration::from_secs(30);
    while !has_stopped(child) {
        assert!(Instant::now() < end, "a child does not stop");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a child has come to a stop since it was last asked about.
fn has_stopped(child: &Child) -> bool {
    // SAFETY: plain system call with a place for its answer, which stays all zero as long as there is none.
    let (outcome, stopped) = unsafe {
        let mut found: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WSTOPPED | libc::WNOHANG;
        let outcome = libc::waitid(libc::P_PID, child.id(), &mut found, options);
        (outcome, found.si_pid() != 0)
    };
    assert_eq!(outcome, 0, "waitid: {}", io::Error::last_os_error());
    stopped
}

/// Lets a child that was frozen go on.
pub fn thaw(child: &Child) {
    signal(child, libc::SIGCONT);
}

/// Sends a signal to one child.
pub fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: plain system call; the child is not yet waited for, so its id is still its own.
    let outcome = unsafe { libc::kill(child.id() as libc::pid_t, signal) };
    assert_eq!(outcome, 0, "signal {signal}: {}", io::Error::last_os_error());
}

/// Kills a child and all it started in its process group, and waits for it.
pub fn kill_group(child: &mut Child) -> ExitStatus {
    if let Ok(Some(status)) = child.try_wait() {
        return status;
    }
    // SAFETY: as above; the group has the id of the child that leads it.
    unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
    child.wait().unwrap_or_else(|_| ExitStatus::from_raw(libc::SIGKILL))
}

/// Waits for the child's end; `None` when it still runs after `deadline`.
pub fn wait_until_exit(child: &mut Child, deadline: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return Some(status);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// What a program printed before it ended, or before its time was up (then `status` is `None`).
pub struct Outcome {
    pub status: Option<ExitStatus>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Outcome {
    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// All that was printed, for an error message.
    pub fn text(&self) -> String {
        let stdout = String::from_utf8_lossy(&self.stdout);
        let stderr = String::from_utf8_lossy(&self.stderr);
        let end = match self.status {
            Some(status) => status.to_string(),
            None => "its time was up".to_owned(),
        };
        format!("{end}\n{stdout}{stderr}")
    }
}

/// Runs a program to its end, which must come within `deadline`, with `stdin` as its input.
pub fn try_run(mut command: Command, stdin: &[u8], deadline: Duration) -> io::Result<Outcome> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = spawn(command)?;
    let mut input = child.stdin.take().expect("stdin is piped");
    let stdin = stdin.to_vec();
    // A program that does not read its input closes it: that is its right.
    let writer = thread::spawn(move || drop(input.write_all(&stdin)));
    let stdout = read_in_background(child.stdout.take().expect("stdout is piped"));
    let stderr = read_in_background(child.stderr.take().expect("stderr is piped"));
    let status = wait_until_exit(&mut child, deadline);
    if status.is_none() {
        kill_group(&mut child);
    }
    // What the program has left running may hold its pipes open.
    // SAFETY: plain system call; the group has the id of the child that led it.
    unsafe { libc::kill(-(child.id() as libc::pid_t), libc::SIGKILL) };
    let joined = "the thread that reads a child's output does not panic";
    writer.join().expect(joined);
    Ok(Outcome {
        status,
        stdout: stdout.join().expect(joined),
        stderr: stderr.join().expect(joined),
    })
}

/// As `try_run`, but anything else than success is a panic that shows all that was printed.
pub fn run(what: &str, command: Command, stdin: &[u8], deadline: Duration) -> Output {
    let shown = format!("{command:?}");
    let outcome =
        try_run(command, stdin, deadline).unwrap_or_else(|error| panic!("{what}: cannot start {shown}: {error}"));
    match outcome.status {
        Some(status) if status.success() => Output {
            status,
            stdout: outcome.stdout,
            stderr: outcome.stderr,
        },
        _ => panic!("{what}: {shown}: {}", outcome.text()),
    }
}

fn read_in_background(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        // What came before an error is all there is to show.
        let _ = from.read_to_end(&mut all);
        all
    })
}

/// The last lines of a log file, for an error message.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_else(|error| error.to_string().into_bytes());
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
