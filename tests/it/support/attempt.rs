//! A client that outlives its server: it connects again when the server is back, and tells of every command whether it had an
//! effect as far as the client can know.

use std::time::Duration;

use super::client::Client;
use super::resp;

/// How a command ended for whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    Answered(Vec<u8>),
    /// It had no effect and will have none.
    Nothing,
    /// It may have taken effect, or may still.
    Open,
}

/// Replies that promise that nothing was done.
const NOTHING: [&[u8]; 4] = [b"-NOTWRITTEN", b"-STALE", b"-LOADING", b"-EXECABORT"];

pub struct Attempts {
    port: u16,
    client: Option<Client>,
}

impl Attempts {
    pub fn on(port: u16) -> Attempts {
        Attempts { port, client: None }
    }

    pub fn is_connected(&self) -> bool {
        self.client.is_some()
    }

    pub fn line(&mut self, line: &str) -> Ended {
        let mut ended = self.lines(&[line]);
        ended.pop().expect("as many as were sent")
    }

    /// Sends all at once.
    pub fn lines(&mut self, lines: &[&str]) -> Vec<Ended> {
        if !self.connect() {
            // Whoever asks in a loop should not keep the machine busy while the server starts.
            std::thread::sleep(Duration::from_millis(5));
            return vec![Ended::Nothing; lines.len()];
        }
        let client = self.client.as_mut().expect("just connected");
        let bytes: Vec<u8> = lines.iter().flat_map(|line| resp::command_line(line)).collect();
        let mut ended = Vec::new();
        if client.try_write(&bytes).is_ok() {
            while ended.len() < lines.len()
                && let Ok(Some(reply)) = client.try_reply()
            {
                ended.push(judged(lines[ended.len()], reply));
            }
        }
        if ended.len() < lines.len() {
            self.client = None;
            ended.resize(lines.len(), Ended::Open);
        }
        ended
    }

    fn connect(&mut self) -> bool {
        if self.client.is_none() {
            self.client = Client::try_connect(self.port).ok();
        }
        self.client.is_some()
    }
}

fn judged(line: &str, reply: Vec<u8>) -> Ended {
    if NOTHING.iter().any(|promise| reply.starts_with(promise)) {
        return Ended::Nothing;
    }
    if reply.starts_with(b"-UNCERTAIN") {
        return Ended::Open;
    }
    assert!(!reply.starts_with(b"-"), "{line}: {}", resp::show(&reply));
    Ended::Answered(reply)
}
