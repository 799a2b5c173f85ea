//! A TCP proxy that is a bad network on demand: it delays, holds back and resets.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

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

/// Its threads end with their connections, and the one that listens with the process.
pub struct Proxy {
    pub port: u16,
    pub to_server: Arc<Way>,
    pub to_client: Arc<Way>,
    open: Arc<Mutex<Vec<Connection>>>,
}

struct Connection {
    streams: [TcpStream; 2],
    /// Its ends are not to be closed in good order.
    reset: Arc<AtomicBool>,
}

impl Proxy {
    /// From a port of its own to this one.
    pub fn start(server: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", super::ports::free())).expect("listen");
        let proxy = Proxy {
            port: listener.local_addr().expect("an address").port(),
            to_server: Arc::default(),
            to_client: Arc::default(),
            open: Arc::default(),
        };
        let (to_server, to_client) = (proxy.to_server.clone(), proxy.to_client.clone());
        let open = proxy.open.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A server that is not there is a connection that is closed.
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else {
                    continue;
                };
                let twin = |stream: &TcpStream| stream.try_clone().expect("duplicate a descriptor");
                let reset = Arc::new(AtomicBool::new(false));
                open.lock().expect("nobody panics").push(Connection {
                    streams: [twin(&client), twin(&server)],
                    reset: reset.clone(),
                });
                let (client_too, server_too, reset_too) = (twin(&client), twin(&server), reset.clone());
                let (to_server, to_client) = (to_server.clone(), to_client.clone());
                thread::spawn(move || copy(client, server, &to_server, &reset));
                thread::spawn(move || copy(server_too, client_too, &to_client, &reset_too));
            }
        });
        proxy
    }

    /// Breaks all connections as a machine does that knows nothing of them.
    pub fn reset(&self) {
        for Connection { streams, reset } in self.open.lock().expect("nobody panics").drain(..) {
            reset.store(true, Ordering::Relaxed);
            for stream in streams {
                // One that is closed already is none to reset.
                let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                let _ = stream.shutdown(Shutdown::Read);
            }
        }
    }
}

fn copy(mut from: TcpStream, mut to: TcpStream, way: &Way, reset: &AtomicBool) {
    let mut bytes = [0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        way.pass();
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    if reset.load(Ordering::Relaxed) {
        return;
    }
    // The other direction ends too; with both, the connection is closed.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
