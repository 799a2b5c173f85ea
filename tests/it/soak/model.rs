//! What a key may hold, as far as the one client that writes it can know. It judges every answer.

use std::time::{SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use crate::support::attempt::{Attempts, Ended};
use crate::support::resp;

/// Milliseconds by which a clock that is read in whole ones may be wrong.
const ROUNDING: u64 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Absent,
    Number(u64),
    /// So many random bytes from this seed.
    Bytes {
        seed: u64,
        length: usize,
    },
}

#[derive(Debug, Clone, Copy)]
pub enum Operation {
    Get,
    /// With a time to live in milliseconds, or without.
    Set(Content, Option<u64>),
    /// The same in MULTI … EXEC.
    Exec(Content),
    Delete,
    Expire(u64),
    Increment,
}

/// Milliseconds since the epoch between which something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    from: u64,
    to: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    content: Content,
    expires: Option<Span>,
}

/// A key, or several that are only written together, with the same value, and so are as one; or a field of a hash.
pub struct Register {
    names: Vec<String>,
    /// Of the hash with this name.
    field: Option<String>,
    /// The states that it may be in, by age. There is more than one where nobody knows whether a write took effect.
    possible: Vec<State>,
}

/// What an operation does to one of the possible states.
struct Outcome {
    of: usize,
    reply: Vec<u8>,
    after: State,
}

impl Register {
    pub fn new(names: Vec<String>) -> Register {
        Register {
            names,
            field: None,
            possible: vec![State::ABSENT],
        }
    }

    pub fn of_field(hash: String, field: String) -> Register {
        Register {
            field: Some(field),
            ..Register::new(vec![hash])
        }
    }

    /// Bytes of keys and values, as far as known.
    pub fn live_bytes(&self) -> u64 {
        let bytes = |name: &String| match self.possible.last().map(|state| state.content) {
            None | Some(Content::Absent) => 0,
            Some(Content::Number(number)) => name.len() + number.to_string().len(),
            Some(Content::Bytes { length, .. }) => name.len() + length,
        };
        self.names.iter().map(bytes).sum::<usize>() as u64
    }

    /// Returns whether it was answered. An answer that none of the possible states gives is a failure.
    pub fn perform(&mut self, node: &mut Attempts, operation: Operation) -> bool {
        let from = now() - ROUNDING;
        let ended = node.send(&self.requests(operation)).pop();
        let span = Span {
            from,
            to: now() + ROUNDING,
        };
        let mut outcomes = self.outcomes(operation, span);
        match ended.expect("as many as were sent") {
            Ended::Nothing => return false,
            Ended::Open => {
                self.possible.extend(outcomes.into_iter().map(|outcome| outcome.after));
                self.forget_duplicates();
                return false;
            }
            Ended::Answered(reply) => {
                outcomes.retain(|outcome| outcome.reply == reply);
                assert!(!outcomes.is_empty(), "{}", self.complaint(operation, span, &reply));
            }
        }
        match operation {
            // What was written after it may still come, what was written before it cannot come again.
            Operation::Get => {
                let seen = &outcomes[0];
                self.possible.drain(..seen.of);
                self.possible[0] = seen.after;
            }
            _ => self.possible = outcomes.into_iter().map(|outcome| outcome.after).collect(),
        }
        self.forget_duplicates();
        true
    }

    fn forget_duplicates(&mut self) {
        let mut seen = Vec::new();
        self.possible.retain(|state| {
            let new = !seen.contains(state);
            seen.push(*state);
            new
        });
    }

    fn outcomes(&self, operation: Operation, span: Span) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for (of, state) in self.possible.iter().enumerate() {
            for seen in state.seen_in(span) {
                let (reply, after) = self.outcome(operation, seen, span);
                outcomes.push(Outcome { of, reply, after });
            }
        }
        outcomes
    }

    fn outcome(&self, operation: Operation, seen: State, span: Span) -> (Vec<u8>, State) {
        let present = seen.content != Content::Absent;
        let integer = |number: u64| format!(":{number}\r\n").into_bytes();
        match operation {
            Operation::Get => (self.shown(seen.content), seen),
            Operation::Set(content, ttl) => {
                let expires = ttl.map(|ttl| span.later(ttl));
                let reply = match (&self.field, ttl) {
                    (Some(_), Some(_)) => integer(1),
                    _ => b"+OK\r\n".to_vec(),
                };
                (reply, State { content, expires })
            }
            Operation::Exec(content) => {
                let replies = "+OK\r\n".repeat(self.names.len());
                let reply = format!("*{}\r\n{replies}", self.names.len());
                (reply.into_bytes(), State { content, expires: None })
            }
            Operation::Delete => (
                integer(if present { self.names.len() as u64 } else { 0 }),
                State::ABSENT,
            ),
            Operation::Expire(ttl) if present => {
                let expires = Some(span.later(ttl));
                let reply = self.field.as_ref().map_or(integer(1), |_| b"*1\r\n:1\r\n".to_vec());
                (reply, State { expires, ..seen })
            }
            Operation::Expire(_) if self.field.is_some() => (b"*1\r\n:-2\r\n".to_vec(), seen),
            Operation::Expire(_) => (integer(0), seen),
            Operation::Increment => {
                let number = match seen.content {
                    Content::Number(number) => number + 1,
                    _ => 1,
                };
                let content = Content::Number(number);
                (integer(number), State { content, ..seen })
            }
        }
    }

    /// What it asks of a hash.
    fn request_of_field(&self, field: &str, operation: Operation) -> Vec<u8> {
        let (hash, field) = (self.names[0].as_bytes(), field.as_bytes());
        match operation {
            Operation::Get => resp::command(&[b"HGET", hash, field]),
            Operation::Delete => resp::command(&[b"HDEL", hash, field]),
            Operation::Increment => resp::command(&[b"HINCRBY", hash, field, b"1"]),
            Operation::Expire(ttl) => {
                let ttl = ttl.to_string();
                resp::command(&[b"HPEXPIRE", hash, ttl.as_bytes(), b"FIELDS", b"1", field])
            }
            Operation::Set(content, Some(ttl)) => {
                let (value, ttl) = (content.bytes(), ttl.to_string());
                resp::command(&[b"HSETEX", hash, b"PX", ttl.as_bytes(), b"FIELDS", b"1", field, &value])
            }
            Operation::Set(content, None) | Operation::Exec(content) => {
                resp::command(&[b"HMSET", hash, field, &content.bytes()])
            }
        }
    }

    fn requests(&self, operation: Operation) -> Vec<Vec<u8>> {
        if let Some(field) = &self.field {
            return vec![self.request_of_field(field, operation)];
        }
        let one = |command: &str, more: &[&str]| {
            let names = self.names.iter().map(String::as_str);
            let args: Vec<&[u8]> = [command]
                .into_iter()
                .chain(names)
                .chain(more.iter().copied())
                .map(str::as_bytes)
                .collect();
            vec![resp::command(&args)]
        };
        match operation {
            Operation::Get if self.names.len() == 1 => one("GET", &[]),
            Operation::Get => one("MGET", &[]),
            Operation::Delete => one("DEL", &[]),
            Operation::Expire(ttl) => one("PEXPIRE", &[&ttl.to_string()]),
            Operation::Increment => one("INCR", &[]),
            Operation::Set(content, ttl) => {
                let (value, ttl) = (content.bytes(), ttl.map(|ttl| ttl.to_string()));
                let mut args: Vec<&[u8]> = vec![if self.names.len() == 1 { b"SET" } else { b"MSET" }];
                args.extend(self.names.iter().flat_map(|name| [name.as_bytes(), &value[..]]));
                if let Some(ttl) = &ttl {
                    args.extend([&b"PX"[..], ttl.as_bytes()]);
                }
                vec![resp::command(&args)]
            }
            Operation::Exec(content) => {
                let value = content.bytes();
                let sets = self
                    .names
                    .iter()
                    .map(|name| resp::command(&[b"SET", name.as_bytes(), &value]));
                let begin = std::iter::once(resp::command(&[b"MULTI"]));
                begin.chain(sets).chain([resp::command(&[b"EXEC"])]).collect()
            }
        }
    }

    /// The reply of GET, or of MGET for several names.
    fn shown(&self, content: Content) -> Vec<u8> {
        let one = match content {
            Content::Absent => b"$-1\r\n".to_vec(),
            content => {
                let value = content.bytes();
                [format!("${}\r\n", value.len()).as_bytes(), &value, b"\r\n"].concat()
            }
        };
        match self.names.len() {
            1 => one,
            several => [format!("*{several}\r\n").into_bytes(), one.repeat(several)].concat(),
        }
    }

    fn complaint(&self, operation: Operation, span: Span, reply: &[u8]) -> String {
        let Register { names, field, possible } = self;
        let shown = resp::show(&reply[..reply.len().min(100)]);
        format!(
            "{names:?} {field:?}: {operation:?} in {span:?} was answered with {} bytes that begin with {shown}; possible: {possible:?}",
            reply.len()
        )
    }
}

impl Content {
    fn bytes(self) -> Vec<u8> {
        match self {
            Content::Absent => Vec::new(),
            Content::Number(number) => number.to_string().into_bytes(),
            Content::Bytes { seed, length } => {
                let mut bytes = vec![0; length];
                StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
                bytes
            }
        }
    }
}

impl State {
    const ABSENT: State = State {
        content: Content::Absent,
        expires: None,
    };

    /// As what it may be met in this time.
    fn seen_in(self, span: Span) -> Vec<State> {
        match self.expires {
            Some(end) if end.to < span.from => vec![State::ABSENT],
            Some(end) if end.from <= span.to => vec![self, State::ABSENT],
            _ => vec![self],
        }
    }
}

impl Span {
    fn later(self, by: u64) -> Span {
        Span {
            from: self.from + by,
            to: self.to + by,
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("later than 1970").as_millis() as u64
}
