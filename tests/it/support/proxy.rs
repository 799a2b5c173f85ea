//! A TCP proxy before a Kafka broker that is a bad network on demand: it delays, holds back, resets, and loses requests of one kind or
//! their answers. Of Kafka's protocol it knows where a message begins, what kind of request it is, and which answer belongs to it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

const CHUNK: usize = 64 << 10;

/// Kafka's numbers of some kinds of requests (API keys).
pub const PRODUCE: u16 = 0;
pub const FETCH: u16 = 1;
pub const INIT_PRODUCER_ID: u16 = 22;
pub const ADD_PARTITIONS_TO_TXN: u16 = 24;
pub const END_TXN: u16 = 26;

/// What is done to the bytes of one direction.
#[derive(Default)]
pub struct Way {
    delay_ms: AtomicU64,
    held: AtomicBool,
}

impl Way {
    pub fn delay(&self, delay: Duration) {
        self.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// Nothing passes until it is let go, and nobody is told.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }

    fn pass(&self) {
        thread::sleep(Duration::from_millis(self.delay_ms.load(Ordering::Relaxed)));
        while self.held.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// What does not come through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The broker never sees it. The connection breaks.
    Request,
    /// The broker has done what it was asked for. The connection breaks.
    Answer,
    /// The broker sees the request when [`Proxy::deliver`] is called. The connection breaks at once.
    Late,
    /// The same, and the connection stays open.
    LateOnOpenConnection,
    /// Nothing is lost: the broker sees the request now, and a copy of it when [`Proxy::deliver`] is called.
    Copied,
}

#[derive(Default)]
struct Loss {
    /// The kinds of requests, what is lost of them, and how often still.
    next: Option<(Vec<u16>, Lost, u64)>,
    /// How many were lost since that was asked for.
    lost: u64,
    /// The last request that is to come late.
    late: Option<Vec<u8>>,
}

/// Requests of one kind wait, after so many that pass.
#[derive(Default)]
struct Gate {
    kind: Option<u16>,
    passing: u64,
    waiting: u64,
}

/// Its threads end with their connections, and the one that listens with the process.
pub struct Proxy {
    pub port: u16,
    server: u16,
    /// The broker's address for those who do not go through here.
    pub around: String,
    pub to_server: Arc<Way>,
    pub to_client: Arc<Way>,
    open: Arc<Mutex<Vec<Arc<Connection>>>>,
    loss: Arc<Mutex<Loss>>,
    gate: Arc<Mutex<Gate>>,
}

struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// Its ends are not to be closed in good order.
    reset: AtomicBool,
    /// The request whose answer is to be lost, by its correlation id.
    unanswered: Mutex<Option<u32>>,
}

impl Proxy {
    /// From a port of its own to this one; `around` is a further one of the same server.
    pub fn start(server: u16, around: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", super::ports::free())).expect("listen");
        let proxy = Proxy {
            port: listener.local_addr().expect("an address").port(),
            server,
            around: format!("127.0.0.1:{around}"),
            to_server: Arc::default(),
            to_client: Arc::default(),
            open: Arc::default(),
            loss: Arc::default(),
            gate: Arc::default(),
        };
        let (to_server, to_client) = (proxy.to_server.clone(), proxy.to_client.clone());
        let (open, loss, gate) = (proxy.open.clone(), proxy.loss.clone(), proxy.gate.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A server that is not there is a connection that is closed.
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else {
                    continue;
                };
                let connection = Arc::new(Connection {
                    client,
                    server,
                    reset: AtomicBool::new(false),
                    unanswered: Mutex::default(),
                });
                locked(&open).push(connection.clone());
                let (to_server, to_client) = (to_server.clone(), to_client.clone());
                let (loss, gate) = (loss.clone(), gate.clone());
                let (open, twin, open_too) = (open.clone(), connection.clone(), open.clone());
                thread::spawn(move || connection.forward(&open, &to_server, &loss, &gate));
                thread::spawn(move || twin.backward(&open_too, &to_client));
            }
        });
        proxy
    }

    /// Breaks all connections as a machine does that knows nothing of them.
    pub fn reset(&self) {
        locked(&self.open).drain(..).for_each(|connection| connection.reset());
    }

    /// From now on so many requests of these kinds, or their answers, get lost, and their connections break.
    pub fn lose(&self, kinds: &[u16], lost: Lost, times: u64) {
        let mut loss = locked(&self.loss);
        (loss.next, loss.lost) = (Some((kinds.to_vec(), lost, times)), 0);
    }

    /// Everything comes through again. Tells how many got lost.
    pub fn lose_no_more(&self) -> u64 {
        std::mem::take(&mut *locked(&self.loss)).lost
    }

    pub fn lost(&self) -> u64 {
        locked(&self.loss).lost
    }

    /// Gives the broker the request that is to come late, on a connection of its own. Returns its answer: correlation id and body.
    /// May be called again.
    pub fn deliver(&self) -> Vec<u8> {
        let late = locked(&self.loss).late.clone().expect("a request that is late");
        let mut stream = TcpStream::connect(("127.0.0.1", self.server)).expect("a broker");
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .expect("a timeout");
        stream.write_all(&late).expect("a request is sent");
        let mut length = [0; 4];
        stream.read_exact(&mut length).expect("an answer");
        let mut answer = vec![0; number(&length) as usize];
        stream.read_exact(&mut answer).expect("an answer");
        answer
    }

    /// Requests of this kind wait from now on, after so many that pass.
    pub fn hold(&self, kind: u16, passing: u64) {
        *locked(&self.gate) = Gate {
            kind: Some(kind),
            passing,
            waiting: 0,
        };
    }

    /// The requests that wait are stranded, and with them all that their connections carry. Others pass.
    pub fn strand(&self) {
        locked(&self.gate).passing = u64::MAX;
    }

    /// How many requests wait.
    pub fn held(&self) -> u64 {
        locked(&self.gate).waiting
    }

    pub fn let_go(&self) {
        *locked(&self.gate) = Gate::default();
    }
}

impl Gate {
    fn pass(gate: &Mutex<Gate>, kind: u16) {
        {
            let mut gate = locked(gate);
            if gate.kind != Some(kind) {
                return;
            }
            if gate.passing > 0 {
                gate.passing -= 1;
                return;
            }
            gate.waiting += 1;
        }
        while locked(gate).kind == Some(kind) {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Loss {
    fn of(&mut self, kind: u16) -> Option<Lost> {
        let (kinds, lost, times) = self.next.as_mut()?;
        if *times == 0 || !kinds.contains(&kind) {
            return None;
        }
        *times -= 1;
        self.lost += 1;
        Some(*lost)
    }
}

impl Connection {
    fn reset(&self) {
        self.reset.store(true, Ordering::Relaxed);
        for stream in [&self.client, &self.server] {
            // One that is closed already is none to reset.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    /// Requests: length (4 bytes), kind (2), version (2), correlation id (4) …
    fn forward(self: Arc<Self>, open: &Mutex<Vec<Arc<Connection>>>, way: &Way, loss: &Mutex<Loss>, gate: &Mutex<Gate>) {
        copy::<12>(&self.client, &self.server, way, |head| {
            let kind = number(&head[4..6]) as u16;
            Gate::pass(gate, kind);
            let lost = locked(loss).of(kind);
            match lost {
                None => return Fate::Passes,
                Some(Lost::Answer) => {
                    *locked(&self.unanswered) = Some(number(&head[8..12]));
                    return Fate::Passes;
                }
                Some(Lost::Request) => {}
                Some(Lost::Late | Lost::LateOnOpenConnection | Lost::Copied) => {
                    let Some(request) = self.rest(head) else {
                        return Fate::Breaks;
                    };
                    let passes = lost != Some(Lost::Copied) || (&self.server).write_all(&request).is_ok();
                    locked(loss).late = Some(request);
                    if passes && lost != Some(Lost::Late) {
                        return Fate::IsDone;
                    }
                }
            }
            self.reset();
            Fate::Breaks
        });
        self.end(open);
    }

    /// The whole request that begins so.
    fn rest(&self, head: &[u8]) -> Option<Vec<u8>> {
        let mut request = head.to_vec();
        request.resize(4 + number(&head[..4]) as usize, 0);
        (&self.client).read_exact(&mut request[head.len()..]).ok()?;
        Some(request)
    }

    /// Answers: length (4 bytes), correlation id (4) …
    fn backward(self: Arc<Self>, open: &Mutex<Vec<Arc<Connection>>>, way: &Way) {
        copy::<8>(&self.server, &self.client, way, |head| {
            let lost = *locked(&self.unanswered) == Some(number(&head[4..8]));
            if !lost {
                return Fate::Passes;
            }
            self.reset();
            Fate::Breaks
        });
        self.end(open);
    }

    /// With the last of its threads it is closed.
    fn end(&self, open: &Mutex<Vec<Arc<Connection>>>) {
        locked(open).retain(|other| !std::ptr::eq(&**other, self));
        if !self.reset.load(Ordering::Relaxed) {
            // The other direction ends too.
            let _ = self.client.shutdown(Shutdown::Both);
            let _ = self.server.shutdown(Shutdown::Both);
        }
    }
}

/// What becomes of a message.
enum Fate {
    Passes,
    /// Its connection ends there.
    Breaks,
    /// All of it was read, and what had to be done with it is done.
    IsDone,
}

/// Copies one message after the other until the end, or until one breaks the connection. `fate` is given a message's first bytes.
fn copy<const HEAD: usize>(mut from: &TcpStream, mut to: &TcpStream, way: &Way, fate: impl Fn(&[u8]) -> Fate) {
    let mut bytes = vec![0; CHUNK];
    while from.read_exact(&mut bytes[..HEAD]).is_ok() {
        match fate(&bytes[..HEAD]) {
            Fate::Passes => {}
            Fate::Breaks => return,
            Fate::IsDone => continue,
        }
        let mut left = 4 + number(&bytes[..4]) as usize;
        let mut filled = HEAD;
        while left > 0 {
            let room = left.min(CHUNK);
            if filled < room {
                let Ok(count @ 1..) = from.read(&mut bytes[filled..room]) else {
                    return;
                };
                filled += count;
            }
            way.pass();
            if to.write_all(&bytes[..filled]).is_err() {
                return;
            }
            left -= filled;
            filled = 0;
        }
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics")
}
