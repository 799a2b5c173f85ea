//! Histories of single keys: what clients asked, when, and what came back. Whether a key could have answered so is judged by
//! porcupine (`tests/it/judge`).

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::attempt::{Attempts, Ended};
use super::resp::Reply;
use super::{parts, process};

const JUDGE: Duration = Duration::from_secs(120);
/// A key that is not there, and what has no argument or answer.
pub const ABSENT: &str = "-";

/// One operation on a key, in the words of the judge.
#[derive(Debug, Clone)]
pub struct Operation {
    pub key: String,
    pub session: u32,
    pub call: u128,
    /// `None` where nobody knows whether it took effect.
    pub done: Option<u128>,
    pub kind: &'static str,
    pub argument: String,
    pub answer: String,
}

pub struct Recorder {
    begun: Instant,
    operations: Mutex<Vec<Operation>>,
}

impl Recorder {
    pub fn new() -> Recorder {
        Recorder {
            begun: Instant::now(),
            operations: Mutex::default(),
        }
    }

    /// Does something to a key and writes down how it ended; what had no effect is left out, and so is a read without an answer.
    pub fn record(
        &self,
        session: u32,
        key: &str,
        kind: &'static str,
        argument: &str,
        act: impl FnOnce() -> Ended,
    ) -> Ended {
        let call = self.begun.elapsed().as_nanos();
        let ended = act();
        let done = self.begun.elapsed().as_nanos();
        let mut operation = Operation {
            key: key.to_owned(),
            session,
            call,
            done: Some(done),
            kind,
            argument: argument.to_owned(),
            answer: ABSENT.to_owned(),
        };
        match &ended {
            Ended::Answered(reply) if kind != "del" => operation.answer = text_of(reply),
            Ended::Answered(_) => {}
            Ended::Open if kind != "get" => operation.done = None,
            _ => return ended,
        }
        self.locked().push(operation);
        ended
    }

    pub fn operations(&self) -> Vec<Operation> {
        self.locked().clone()
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Operation>> {
        self.operations.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Of several values, which must be the same, the one that they are.
fn text_of(reply: &[u8]) -> String {
    let reply = Reply::parse(reply);
    let text = |reply: &Reply| {
        let bytes = reply.bytes();
        bytes.map_or(ABSENT.to_owned(), |bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    match reply.items() {
        [] => text(&reply),
        [first, others @ ..] => {
            assert!(
                others.iter().all(|other| other == first),
                "half of a write was seen: {reply:?}"
            );
            text(first)
        }
    }
}

/// Says of each key whether its history is linearizable: "Ok", "Illegal", or "Unknown" if it took too long to tell.
pub fn judge(operations: &[Operation]) -> BTreeMap<String, String> {
    let input: String = operations.iter().map(line).collect();
    let output = process::run("the judge", Command::new(parts::judge()), input.as_bytes(), JUDGE);
    let verdicts = String::from_utf8(output.stdout).expect("the judge writes text");
    let pairs = verdicts.lines().map(|line| line.split_once(' ').expect("key verdict"));
    pairs
        .map(|(key, verdict)| (key.to_owned(), verdict.to_owned()))
        .collect()
}

fn line(operation: &Operation) -> String {
    let done = operation.done.map_or("open".to_owned(), |done| done.to_string());
    let Operation { key, session, call, .. } = operation;
    let Operation {
        kind, argument, answer, ..
    } = operation;
    format!("{key}\t{session}\t{call}\t{done}\t{kind}\t{argument}\t{answer}\n")
}

/// Fails with the first history that no key can have.
#[track_caller]
pub fn assert_linearizable(operations: &[Operation], context: &str) {
    let verdicts = judge(operations);
    println!(
        "{} histories, {} operations, {context}",
        verdicts.len(),
        operations.len()
    );
    if let Some((key, verdict)) = verdicts.iter().find(|(_, verdict)| *verdict != "Ok") {
        let mut of_key: Vec<&Operation> = operations.iter().filter(|o| o.key == *key).collect();
        of_key.sort_by_key(|operation| operation.call);
        let lines: String = of_key.into_iter().map(line).collect();
        panic!("{verdict}, {context}:\nkey, session, call, return, operation, argument, answer\n{lines}");
    }
}

/// A client whose every operation is recorded. A connection is a session; after it broke the next one has another number.
pub struct Actor<'r> {
    recorder: &'r Recorder,
    attempts: Attempts,
    session: u32,
}

impl<'r> Actor<'r> {
    /// `number` is below 1000 and no other actor's.
    pub fn new(recorder: &'r Recorder, port: u16, number: u32) -> Actor<'r> {
        Actor {
            recorder,
            attempts: Attempts::on(port),
            session: number,
        }
    }

    pub fn get(&mut self, key: &str) -> Ended {
        self.act(key, "get", ABSENT, &format!("GET {key}"))
    }

    pub fn set(&mut self, key: &str, value: &str) -> Ended {
        self.act(key, "set", value, &format!("SET {key} {value}"))
    }

    pub fn getset(&mut self, key: &str, value: &str) -> Ended {
        self.act(key, "getset", value, &format!("SET {key} {value} GET"))
    }

    pub fn set_nx(&mut self, key: &str, value: &str) -> Ended {
        self.act(key, "setnx", value, &format!("SET {key} {value} NX"))
    }

    pub fn incr(&mut self, key: &str) -> Ended {
        self.act(key, "incr", ABSENT, &format!("INCR {key}"))
    }

    pub fn del(&mut self, key: &str) -> Ended {
        self.act(key, "del", ABSENT, &format!("DEL {key}"))
    }

    /// Deletes the key if it has this value, by WATCH and MULTI … EXEC.
    pub fn delete_if(&mut self, key: &str, value: &str) -> Ended {
        if !matches!(self.attempts.line(&format!("WATCH {key}")), Ended::Answered(_)) {
            return self.after(Ended::Nothing);
        }
        let seen = self.get(key);
        if seen != Ended::Answered(format!("${}\r\n{value}\r\n", value.len()).into_bytes()) {
            self.attempts.line("UNWATCH");
            return self.after(seen);
        }
        let (recorder, attempts) = (self.recorder, &mut self.attempts);
        let ended = recorder.record(self.session, key, "delete-if", value, || {
            let replies = attempts.lines(&["MULTI", &format!("DEL {key}"), "EXEC"]);
            match &replies[2] {
                // It was changed by somebody, or may have been.
                Ended::Answered(reply) if reply == b"*-1\r\n" => Ended::Nothing,
                Ended::Answered(_) => Ended::Answered(b":1\r\n".to_vec()),
                other => other.clone(),
            }
        });
        self.after(ended)
    }

    /// Any other command that does to the key what the operation says. `key` may stand for several keys that are one.
    pub fn act(&mut self, key: &str, kind: &'static str, argument: &str, line: &str) -> Ended {
        let (recorder, attempts) = (self.recorder, &mut self.attempts);
        let ended = recorder.record(self.session, key, kind, argument, || attempts.line(line));
        self.after(ended)
    }

    fn after(&mut self, ended: Ended) -> Ended {
        if !self.attempts.is_connected() {
            self.session += 1000;
        }
        ended
    }
}
