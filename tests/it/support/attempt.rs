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
        let requests: Vec<Vec<u8>> = lines.iter().map(|line| resp::command_line(line)).collect();
        self.send(&requests)
    }

    /// The same for requests as they are on the wire.
    pub fn send(&mut self, requests: &[Vec<u8>]) -> Vec<Ended> {
        if !self.connect() {
            // Whoever asks in a loop should not keep the machine busy while the server starts.
            std::thread::sleep(Duration::from_millis(5));
            return vec![Ended::Nothing; requests.len()];
        }
        let client = self.client.as_mut().expect("just connected");
        let mut ended = Vec::new();
        if client.try_write(&requests.concat()).is_ok() {
            while ended.len() < requests.len()
                && let Ok(Some(reply)) = client.try_reply()
            {
                ended.push(judged(&requests[ended.len()], reply));
            }
        }
        if ended.len() < requests.len() {
            self.client = None;
            ended.resize(requests.len(), Ended::Open);
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

fn judged(request: &[u8], reply: Vec<u8>) -> Ended {
    if NOTHING.iter().any(|promise| reply.starts_with(promise)) {
        return Ended::Nothing;
    }
    if reply.starts_with(b"-UNCERTAIN") {
        return Ended::Open;
    }
    let shown = || resp::show(&request[..request.len().min(200)]);
    assert!(!reply.starts_with(b"-"), "{}: {}", shown(), resp::show(&reply));
    Ended::Answered(reply)
}
