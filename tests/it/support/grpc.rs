//! A gRPC client: Python's, in a process that makes the calls it is ordered to.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::{parts, process};

pub struct Grpc {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// One call, or several at once.
#[derive(Clone)]
pub struct Call {
    /// HOST:PORT, or over TLS CA_FILE@HOST:PORT, or CA_FILE,KEY_FILE,CERTIFICATE_FILE@HOST:PORT.
    pub target: String,
    /// Stays open; none: a connection of its own.
    pub channel: Option<String>,
    pub method: &'static str,
    pub key: &'static str,
    /// MultiGet: how often the key is named. Set: bytes of the value.
    pub number: usize,
    /// `user:password`, or a whole header that begins with `Bearer`.
    pub login: Option<String>,
    pub deadline: f64,
    pub times: usize,
}

/// How a call ended: `OK`, or another code and what the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: String,
    pub details: String,
}

impl Call {
    pub fn new(target: impl Into<String>, method: &'static str, key: &'static str) -> Call {
        Call {
            target: target.into(),
            channel: None,
            method,
            key,
            number: 0,
            login: None,
            deadline: 20.0,
            times: 1,
        }
    }
}

impl Grpc {
    pub fn start() -> Grpc {
        let mut client = Command::new(parts::python());
        client
            .arg(parts::clients_dir().join("python/grpc_calls.py"))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/kvs2.proto"))
            // What a server refuses is no error of the client's.
            .env("GRPC_VERBOSITY", "NONE")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = process::spawn(client).expect("start the Python client");
        let mut client = Grpc {
            orders: child.stdin.take().expect("stdin is piped"),
            answers: BufReader::new(child.stdout.take().expect("stdout is piped")),
            child,
        };
        assert_eq!(client.answer(), "READY");
        client
    }

    /// Makes one call.
    pub fn call(&mut self, call: &Call) -> Ended {
        let mut ended = self.calls(call);
        assert_eq!(ended.len(), 1, "one call");
        ended.remove(0)
    }

    /// Makes the calls, all at once, and waits for them.
    pub fn calls(&mut self, call: &Call) -> Vec<Ended> {
        self.order(call);
        (0..call.times).map(|_| self.ended()).collect()
    }

    /// Begins the calls; [`Grpc::ended`] gives their ends.
    pub fn order(&mut self, call: &Call) {
        let Call {
            target,
            method,
            key,
            number,
            deadline,
            times,
            ..
        } = call;
        let channel = call.channel.as_deref().unwrap_or("-");
        let login = call.login.as_deref().unwrap_or("-");
        writeln!(
            self.orders,
            "{channel}\t{target}\t{method}\t{key}\t{number}\t{login}\t{deadline}\t{times}"
        )
        .expect("the Python client reads");
    }

    pub fn ended(&mut self) -> Ended {
        let line = self.answer();
        let (code, details) = line.split_once('\t').expect("a code and details");
        Ended {
            code: code.into(),
            details: details.into(),
        }
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the Python client writes");
        assert!(!line.is_empty(), "the Python client ended");
        line.trim_end_matches('\n').to_owned()
    }
}

impl Drop for Grpc {
    fn drop(&mut self) {
        process::kill_group(&mut self.child);
    }
}
