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

/// What does not come through; the connection breaks there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The broker never sees it.
    Request,
    /// The broker has done what it was asked for.
    Answer,
}

#[derive(Default)]
struct Loss {
    /// The kinds of requests, what is lost of them, and how often still.
    next: Option<(Vec<u16>, Lost, u64)>,
    /// How many were lost since that was asked for.
    lost: u64,
}

/// Its threads end with their connections, and the one that listens with the process.
pub struct Proxy {
    pub port: u16,
    /// The broker's address for those who do not go through here.
    pub around: String,
    pub to_server: Arc<Way>,
    pub to_client: Arc<Way>,
    open: Arc<Mutex<Vec<Arc<Connection>>>>,
    loss: Arc<Mutex<Loss>>,
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
            around: format!("127.0.0.1:{around}"),
            to_server: Arc::default(),
            to_client: Arc::default(),
            open: Arc::default(),
            loss: Arc::default(),
        };
        let (to_server, to_client) = (proxy.to_server.clone(), proxy.to_client.clone());
        let (open, loss) = (proxy.open.clone(), proxy.loss.clone());
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
                let (to_server, to_client, loss) = (to_server.clone(), to_client.clone(), loss.clone());
                let (open, twin, open_too) = (open.clone(), connection.clone(), open.clone());
                thread::spawn(move || connection.forward(&open, &to_server, &loss));
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
        *locked(&self.loss) = Loss {
            next: Some((kinds.to_vec(), lost, times)),
            lost: 0,
        };
    }

    /// Everything comes through again. Tells how many got lost.
    pub fn lose_no_more(&self) -> u64 {
        std::mem::take(&mut *locked(&self.loss)).lost
    }

    pub fn lost(&self) -> u64 {
        locked(&self.loss).lost
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
    fn forward(self: Arc<Self>, open: &Mutex<Vec<Arc<Connection>>>, way: &Way, loss: &Mutex<Loss>) {
        copy::<12>(&self.client, &self.server, way, |head| {
            match locked(loss).of(number(&head[4..6]) as u16) {
                Some(Lost::Request) => {
                    self.reset();
                    return false;
                }
                Some(Lost::Answer) => *locked(&self.unanswered) = Some(number(&head[8..12])),
                None => {}
            }
            true
        });
        self.end(open);
    }

    /// Answers: length (4 bytes), correlation id (4) …
    fn backward(self: Arc<Self>, open: &Mutex<Vec<Arc<Connection>>>, way: &Way) {
        copy::<8>(&self.server, &self.client, way, |head| {
            let lost = *locked(&self.unanswered) == Some(number(&head[4..8]));
            if lost {
                self.reset();
            }
            !lost
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

/// Copies one message after the other until the end, or until one does not pass, of which the first bytes are told.
fn copy<const HEAD: usize>(mut from: &TcpStream, mut to: &TcpStream, way: &Way, passes: impl Fn(&[u8]) -> bool) {
    let mut bytes = vec![0; CHUNK];
    while from.read_exact(&mut bytes[..HEAD]).is_ok() && passes(&bytes[..HEAD]) {
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
