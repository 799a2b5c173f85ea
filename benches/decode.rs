//! What decoding a request costs, beside redis-protocol's decoder: `cargo bench --bench decode`.
//! The figures and what follows from them are in `docs/decisions/request-decoder.md`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use highwater::resp::{self, Decoder, Limits, Next, Version};
use redis_protocol::resp2::{decode::decode_bytes_mut, types::BytesFrame};

/// One read from a socket.
const READ: usize = 16 << 10;

fn main() {
    let get = |key: usize| request(&[b"GET", format!("key:{key:012}").as_bytes()]);
    let set = |key: usize| request(&[b"SET", format!("key:{key:012}").as_bytes(), &[b'v'; 64]]);
    let mset: Vec<&[u8]> = [&b"MSET"[..]].into_iter().chain([&b"value"[..]; 20_000]).collect();
    let runs = [
        ("64 GETs in one read", (0..64).flat_map(get).collect(), 64),
        (
            "64 SETs of 64 B in one read",
            (0..64).flat_map(set).collect::<Vec<u8>>(),
            64,
        ),
        ("one SET of 64 B", set(1), 1),
        (
            "one SET of 1 MiB in reads of 16 KiB",
            request(&[b"SET", b"key", &vec![b'v'; 1 << 20]]),
            1,
        ),
        ("one MSET of 20,000 arguments, the same", request(&mset), 1),
    ];
    println!(
        "ns per request                           {:>12} {:>14}",
        "ours", "redis-protocol"
    );
    for (name, bytes, requests) in runs {
        let (mut buffer, mut decoder) = (BytesMut::new(), Decoder::new());
        let ours = measure(requests, || ours(&bytes, &mut buffer, &mut decoder));
        let mut buffer = BytesMut::new();
        let theirs = measure(requests, || theirs(&bytes, &mut buffer));
        println!("{name:40} {ours:>12.1} {theirs:>14.1}");
    }
    let mut out = BytesMut::new();
    let reply = measure(64, || {
        out.clear();
        (0..64).for_each(|_| resp::write_bulk(&mut out, black_box(&[b'v'; 64])));
    });
    println!("encoding a bulk string of 64 B           {reply:>12.1}");
    let bulk = resp::Reply::bulk([b'v'; 64]);
    let reply = measure(64, || {
        out.clear();
        (0..64).for_each(|_| resp::encode(black_box(&bulk), Version::Resp2, &mut out));
    });
    println!("the same as a Reply                      {reply:>12.1}");
}

fn request(args: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The best of several rounds, for other work on the machine only ever adds time.
fn measure(requests: u32, mut run: impl FnMut()) -> f64 {
    const AT_ONCE: u32 = 16;
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let (start, mut runs) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_millis(20) {
            (0..AT_ONCE).for_each(|_| run());
            runs += AT_ONCE;
        }
        best = best.min(start.elapsed() / runs);
    }
    best.as_nanos() as f64 / f64::from(requests)
}

fn ours(bytes: &[u8], buffer: &mut BytesMut, decoder: &mut Decoder) {
    for read in bytes.chunks(READ) {
        buffer.extend_from_slice(read);
        let next = decoder.decode(buffer, &Limits::default(), 1024);
        for request in decoder.requests(buffer) {
            black_box(&request.args()[..]);
        }
        buffer.advance(decoder.finish());
        assert!(matches!(next, Next::Missing(_)));
    }
}

fn theirs(bytes: &[u8], buffer: &mut BytesMut) {
    for read in bytes.chunks(READ) {
        buffer.extend_from_slice(read);
        while let Some((frame, _, _)) = decode_bytes_mut(buffer).expect("well-formed") {
            let BytesFrame::Array(args) = frame else {
                panic!("not an array")
            };
            black_box(&args[..]);
        }
    }
}
