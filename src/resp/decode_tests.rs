//! Unit and property tests of the decoder. Every expectation about accepted and refused bytes was
//! taken from redis-server 7.0.15 by sending it the same bytes.

use bytes::Buf;
use proptest::prelude::*;
use redis_protocol::resp2::{decode::decode as oracle, types::OwnedFrame};

use super::*;

type Requests = Vec<Vec<Vec<u8>>>;

/// Plays a connection: `pieces` are the sizes of its reads, over and over. Returns the requests
/// that were executed and the error that closed the connection.
fn play(bytes: &[u8], pieces: &[usize], limits: &Limits, max_requests: usize) -> (Requests, Option<ProtocolError>) {
    let (mut decoder, mut buffer, mut executed) = (Decoder::new(), BytesMut::new(), Vec::new());
    let (mut received, mut nothing_before, mut calls) = (0, 0, 0);
    let mut pieces = pieces.iter().cycle();
    while received < bytes.len() {
        let piece = (*pieces.next().expect("at least one piece")).clamp(1, bytes.len() - received);
        buffer.extend_from_slice(&bytes[received..received + piece]);
        received += piece;
        loop {
            calls += 1;
            let next = decoder.decode(&mut buffer, limits, max_requests);
            assert_eq!(decoder.requests(&buffer).len(), decoder.len());
            assert!(decoder.len() <= max_requests);
            assert!(
                decoder.is_empty() || received >= nothing_before,
                "complete before what was missing came"
            );
            for request in decoder.requests(&buffer) {
                assert!(!request.is_empty());
                executed.push(request.iter().map(<[u8]>::to_vec).collect());
            }
            buffer.advance(decoder.finish());
            match next {
                Next::More => {}
                Next::Missing(bytes) => {
                    assert!(bytes > 0);
                    nothing_before = received + bytes;
                    break;
                }
                Next::Failed(error) => {
                    assert_eq!(decoder.decode(&mut buffer, limits, max_requests), next, "stays failed");
                    return (executed, Some(error));
                }
            }
        }
    }
    // Once per byte, at most eleven more for the usual form of a line, and a call may look at the
    // last byte of a line again. A line takes at least three bytes.
    assert!(decoder.examined <= received + 11 * (received / 3 + 1) + 12 * calls);
    (executed, None)
}

fn whole(bytes: &[u8], limits: &Limits) -> (Requests, Option<ProtocolError>) {
    play(bytes, &[bytes.len()], limits, usize::MAX)
}

/// The requests are `expected` (arguments separated by `|`), both whole and byte by byte, and then
/// comes `error`, if any.
#[track_caller]
fn check_with(limits: &Limits, bytes: impl AsRef<[u8]>, expected: &[&str], error: &[u8]) {
    let bytes = bytes.as_ref();
    for pieces in [bytes.len(), 1] {
        let (requests, failed) = play(bytes, &[pieces], limits, 1024);
        let text = |args: &Vec<Vec<u8>>| args.join(&b'|').escape_ascii().to_string();
        let shown = bytes[..bytes.len().min(60)].escape_ascii();
        assert_eq!(
            requests.iter().map(text).collect::<Vec<_>>(),
            expected,
            "{shown} in {pieces}"
        );
        let mut reply = BytesMut::new();
        if let Some(failed) = failed {
            failed.encode(&mut reply);
        }
        assert_eq!(
            reply.escape_ascii().to_string(),
            error.escape_ascii().to_string(),
            "{shown} in {pieces}"
        );
    }
}

#[track_caller]
fn check(bytes: impl AsRef<[u8]>, expected: &[&str]) {
    check_with(&Limits::default(), bytes, expected, b"");
}

#[track_caller]
fn refused(bytes: impl AsRef<[u8]>, text: &str) {
    let error = format!("-ERR Protocol error: {text}\r\n");
    check_with(&Limits::default(), bytes, &[], error.as_bytes());
}

/// `head`, then as many `filler` as make the line after `head` `len` bytes long.
fn line(head: &[u8], before: &[u8], filler: u8, len: usize) -> Vec<u8> {
    let mut bytes = [head, before].concat();
    bytes.resize(head.len() + len, filler);
    bytes
}

const LINE: usize = 64 << 10;

#[test]
fn empty_requests_are_skipped() {
    for empty in [
        "*0\r\n",
        "*-1\r\n",
        "*-5\r\n",
        "\r\n",
        "\n",
        "   \r\n",
        "*-9223372036854775808\r\n",
    ] {
        check(empty, &[]);
        check(
            format!("{empty}PING\r\n{empty}{empty}*1\r\n$1\r\na\r\n{empty}"),
            &["PING", "a"],
        );
    }
    check("\x0b\x0c \r\nPING\r\n", &["PING"]);
}

#[test]
fn places_of_empty_requests_are_known() {
    let mut buffer = *b"\r\nPING\r\n*0\r\n \r\nPING\r\nPING\r\n\n\n";
    let mut decoder = Decoder::new();
    decoder.decode(&mut buffer, &Limits::default(), 10);
    let places = (0..=decoder.len()).filter(|&index| decoder.follows_empty(index));
    assert_eq!(places.collect::<Vec<_>>(), [0, 1, 3]);
    decoder.finish();
    assert!(!decoder.follows_empty(0));
}

#[test]
fn multibulk() {
    check("*2\r\n$4\r\nECHO\r\n$0\r\n\r\n", &["ECHO|"]);
    check("*1\r\n$4\r\nPI\r\n\r\n", &["PI\\r\\n"]);
    check("*1\r\n$4\r\nPINGPING\r\n", &["PING", "NG"]);
    check("*1\rX$4\rYPINGzz", &["PING"]);
    check("*1\n$4\nPING\n", &[]);
    check("*1\r\nX", &[]);
    check("*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r", &["PING"]);
}

#[test]
fn count() {
    for bad in ["", "a", "+1", "01", "-0", " 1", "1 ", "2147483648", "3000000000"] {
        refused(format!("*{bad}\r\n"), "invalid multibulk length");
    }
    refused("*9223372036854775808\r\n", "invalid multibulk length");
    refused("*-9223372036854775809\r\n", "invalid multibulk length");
    refused("*-\r\n", "invalid multibulk length");
    check("*2147483647\r\n", &[]);
}

#[test]
fn bulk_header() {
    for bad in [
        "-1",
        "",
        "a",
        "01",
        "+4",
        "536870913",
        "1073741824",
        "9223372036854775807",
    ] {
        refused(format!("*1\r\n${bad}\r\n"), "invalid bulk length");
    }
    check("*1\r\n$536870912\r\n", &[]);
    let got = [
        ("foo", 'f'),
        ("", ' '),
        ("\n", ' '),
        ("'", '\''),
        ("*1", '*'),
        (":1", ':'),
    ];
    for (bad, shown) in got {
        refused(format!("*1\r\n{bad}\r\n"), &format!("expected '$', got '{shown}'"));
    }
    let error = b"-ERR Protocol error: expected '$', got '\xff'\r\n";
    check_with(&Limits::default(), b"*1\r\n\xff\r\n", &[], error);
    let error = b"-ERR Protocol error: invalid bulk length\r\n";
    check_with(&Limits::default(), "PING\r\n*1\r\n$-3\r\nPING\r\n", &["PING"], error);
}

#[test]
fn lines_have_an_end() {
    let header = b"*1\r\n";
    for (head, before, text) in [
        (&b""[..], &b"*"[..], "too big mbulk count string"),
        (b"", b"*\0", "too big mbulk count string"),
        (header, b"$", "too big bulk count string"),
        (header, b"$\0", "too big bulk count string"),
        (header, b"\0", "too big bulk count string"),
        (b"", b"1", "too big inline request"),
        (b"", b"\0", "too big inline request"),
        (b"", b"$\0", "too big inline request"),
    ] {
        check(line(head, before, b'1', LINE), &[]);
        refused(line(head, before, b'1', LINE + 1), text);
    }
    check("a\0\nPING\r\n", &[]);
    check("*\0\r\n", &[]);
    check("*1\r\n\0\r\n", &[]);
    let longest = [&line(b"", b"a ", b'\t', LINE)[..], b"\nPING\n"].concat();
    check(longest, &["a", "PING"]);
}

#[test]
fn inline() {
    check("ECHO \"a b\" 'c d' e\r\n", &["ECHO|a b|c d|e"]);
    check(
        "ECHO \"\\x41\\n\\r\\t\\b\\a\\q\\\"\\\\\\x4\"\r\n",
        &[r#"ECHO|A\n\r\t\x08\x07q\"\\x4"#],
    );
    check("ECHO 'a\\'b\\n'\r\n", &[r"ECHO|a\'b\\n"]);
    check("ECHO \"\"\r\n", &["ECHO|"]);
    check("\"ECHO\" x\n", &["ECHO|x"]);
    check("ECHO a\r\r\n", &["ECHO|a"]);
    check("PING\rPING\r\n", &["PING|PING"]);
    check(
        "ECHO \"\\x41\"\r\n*1\r\n$4\r\nPING\r\nECHO '\\''\r\n",
        &["ECHO|A", "PING", "ECHO|\\'"],
    );
    for bad in ["\"a", "'a", "\"a\"b", "'a'b", "\"a\\", "\"a\\\"", "a'b'\"c\""] {
        refused(format!("ECHO {bad}\r\n"), "unbalanced quotes in request");
    }
}

#[test]
fn small_limits_before_authentication() {
    let limits = Limits {
        authenticated: false,
        ..Limits::default()
    };
    let refused = |bytes: &str, text: &str| {
        let error = format!("-ERR Protocol error: {text}\r\n");
        check_with(&limits, bytes, &[], error.as_bytes());
    };
    refused("*11\r\n", "unauthenticated multibulk length");
    refused("*3000000000\r\n", "invalid multibulk length");
    refused("*1\r\n$16385\r\n", "unauthenticated bulk length");
    refused("*1\r\n$536870913\r\n", "invalid bulk length");
    check_with(&limits, "*10\r\n$16384\r\n", &[], b"");
    check_with(
        &limits,
        "P 2 3 4 5 6 7 8 9 10 11\r\n",
        &["P|2|3|4|5|6|7|8|9|10|11"],
        b"",
    );
}

#[test]
fn authentication_counts_from_the_next_request_on() {
    let mut limits = Limits {
        authenticated: false,
        ..Limits::default()
    };
    let mut bytes = b"AUTH pw\r\n*11\r\n".to_vec();
    let mut decoder = Decoder::new();
    assert_eq!(decoder.decode(&mut bytes, &limits, 1024), Next::More);
    assert_eq!(decoder.len(), 1);
    limits.authenticated = true;
    let served = decoder.finish();
    assert_eq!(decoder.decode(&mut bytes[served..], &limits, 1024), Next::Missing(1));
}

#[test]
fn a_request_has_a_bound() {
    let limits = Limits {
        max_request: 40,
        ..Limits::default()
    };
    let error = b"-ERR Protocol error: request exceeds client-query-buffer-limit\r\n";
    let fits = "*1\r\n$29\r\naaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n";
    assert_eq!(fits.len(), 40);
    check_with(&limits, fits.repeat(3), &["a".repeat(29).as_str(); 3], b"");
    check_with(
        &limits,
        format!("{fits}*1\r\n$30\r\n"),
        &["a".repeat(29).as_str()],
        error,
    );
    check_with(&limits, format!("*9\r\n{}", "$0\r\n\r\n".repeat(8)), &[], error);
}

#[test]
fn announcing_costs_no_memory() {
    let mut decoder = Decoder::new();
    let mut bytes = b"*2147483647\r\n$536870912\r\n".to_vec();
    let next = decoder.decode(&mut bytes, &Limits::default(), 1024);
    assert_eq!(next, Next::Missing((512 << 20) + 2));
    assert_eq!(decoder.spans.capacity(), 0);
    assert_eq!(next.room(bytes.len()), 1 << 20);
    assert_eq!(next.room(300 << 20), 300 << 20);
    assert_eq!(Next::Missing(1).room(0), 16 << 10);
}

#[test]
fn a_nested_array_is_refused_at_its_second_level() {
    let mut bytes = b"*1\r\n".repeat(1 << 20);
    let mut decoder = Decoder::new();
    let next = decoder.decode(&mut bytes, &Limits::default(), 1024);
    assert_eq!(next, Next::Failed(ProtocolError::ExpectedDollar(b'*')));
    assert!(decoder.examined < 100);
}

#[test]
fn work_is_linear_in_the_bytes_of_headers() {
    let value = vec![b'v'; 100_000];
    let set = request(&[b"SET".to_vec(), b"key".to_vec(), value]);
    let many = request(&vec![b"a".to_vec(); 10_000]);
    for (bytes, lines) in [(set, 4), (many, 10_001)] {
        let mut decoder = Decoder::new();
        let mut buffer = BytesMut::new();
        for byte in &bytes {
            buffer.put_u8(*byte);
            decoder.decode(&mut buffer, &Limits::default(), 1024);
        }
        assert_eq!(decoder.len(), 1);
        // A line has up to 8 bytes here. Each is looked at once, except for the last one and the
        // vain attempt at the usual form.
        assert!(decoder.examined <= lines * 20, "{} bytes examined", decoder.examined);
    }
}

#[test]
fn an_idle_decoder_keeps_little() {
    let mut bytes = request(&vec![b"a".to_vec(); 100_000]);
    let mut decoder = Decoder::new();
    decoder.decode(&mut bytes, &Limits::default(), 1024);
    assert_eq!(decoder.finish(), bytes.len());
    assert!(decoder.spans.capacity() <= KEPT_SPANS);
}

#[test]
fn a_password_does_not_get_into_a_log() {
    let mut bytes = b"AUTH secret\r\n".to_vec();
    let mut decoder = Decoder::new();
    decoder.decode(&mut bytes, &Limits::default(), 1);
    let shown = format!("{:?}", decoder.request(0, &bytes));
    assert_eq!(shown, "Request(AUTH and 1 arguments)");
}

/// A request as clients send it.
fn request(args: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        bytes.extend_from_slice(arg);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// A request as typed at a terminal, with every byte that could have a meaning escaped.
fn typed(args: &[Vec<u8>]) -> Vec<u8> {
    let quoted = |arg: &Vec<u8>| {
        let escaped: String = arg.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        format!("\"{escaped}\"")
    };
    let words: Vec<String> = args.iter().map(quoted).collect();
    format!("{}\r\n", words.join(" ")).into_bytes()
}

fn oracle_says(mut bytes: &[u8]) -> Requests {
    let mut requests = Vec::new();
    while let Some((frame, used)) = oracle(bytes).expect("well-formed") {
        let OwnedFrame::Array(items) = frame else {
            panic!("not an array")
        };
        let args = items.into_iter().map(|item| match item {
            OwnedFrame::BulkString(arg) => arg,
            other => panic!("not a bulk string: {other:?}"),
        });
        requests.push(args.collect());
        bytes = &bytes[used..];
    }
    requests
}

fn args() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..12)
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![Just(vec![1]), prop::collection::vec(1usize..50, 1..20)]
}

/// Bytes that are often almost a request.
fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        prop::sample::select(vec![
            "*1\r\n",
            "*2\r\n",
            "*0\r\n",
            "*-1\r\n",
            "$0\r\n\r\n",
            "$1\r\n",
            "$3\r\nGET\r\n",
            "$12\r\n",
            "$10\r\n",
            "\r\n",
            "\r",
            "\n",
            "*",
            "$",
            "\"",
            "'",
            "\\",
            "\\x4",
            " ",
            "PING\r\n",
            "a b",
            "*99999999999\r\n",
            "$99\r\n",
            "\0",
            "*3\rX",
            "12"
        ])
        .prop_map(|token| token.as_bytes().to_vec()),
        args().prop_map(|args| request(&args)),
        args().prop_map(|args| typed(&args)),
        prop::collection::vec(any::<u8>(), 1..8),
    ];
    prop::collection::vec(token, 0..30).prop_map(|tokens| tokens.concat())
}

fn limits() -> impl Strategy<Value = Limits> {
    let small = (3usize..12, 10usize..60, 16usize..80, 40usize..400, any::<bool>());
    let small = small.prop_map(|(max_args, max_bulk, max_line, max_request, authenticated)| Limits {
        max_args,
        max_bulk,
        max_line,
        max_request,
        authenticated,
    });
    prop_oneof![Just(Limits::default()), small]
}

proptest! {
    #![proptest_config(crate::resp::test_cases())]

    #[test]
    fn requests_come_out_as_they_went_in(requests in prop::collection::vec(args(), 0..12), pieces in pieces(), max in 1usize..6) {
        let bytes: Vec<u8> = requests.iter().flat_map(|args| request(args)).collect();
        prop_assert_eq!(&oracle_says(&bytes), &requests);
        prop_assert_eq!(play(&bytes, &pieces, &Limits::default(), max), (requests, None));
    }

    #[test]
    fn both_forms_mix(requests in prop::collection::vec((args(), any::<bool>()), 0..12), pieces in pieces()) {
        let form = |(args, inline): &(Vec<Vec<u8>>, bool)| if *inline { typed(args) } else { request(args) };
        let bytes: Vec<u8> = requests.iter().flat_map(form).collect();
        let expected = requests.into_iter().map(|(args, _)| args).collect();
        prop_assert_eq!(play(&bytes, &pieces, &Limits::default(), 1024), (expected, None));
    }

    #[test]
    fn splitting_changes_nothing(bytes in any_bytes(), pieces in pieces(), max in 1usize..6, limits in limits()) {
        prop_assert_eq!(play(&bytes, &pieces, &limits, max), whole(&bytes, &limits));
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), pieces in pieces()) {
        prop_assert_eq!(play(&bytes, &pieces, &Limits::default(), 8), whole(&bytes, &Limits::default()));
    }

    #[test]
    fn numbers_are_read_as_redis_reads_them(value in any::<i64>(), junk in "[-+ 0-9a]{0,22}") {
        prop_assert_eq!(number(value.to_string().as_bytes()), Some(value));
        // A strict number is one that prints as it was written.
        let strict = junk.parse::<i64>().ok().filter(|value| value.to_string() == junk);
        prop_assert_eq!(number(junk.as_bytes()), strict);
        let line = format!("${junk}\r\n");
        if let Some((value, next)) = usual_number(line.as_bytes()) {
            prop_assert_eq!((Some(value), next), (strict, line.len()));
        }
    }
}

/// Small changes to almost correct input find more than random bytes: they get further.
mod mutations {
    use std::time::{Duration, Instant};

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// `HIGHWATER_TEST_LONG` multiplies it.
    const BUDGET: Duration = Duration::from_secs(15);
    /// However long that takes on a machine that is busy with other things.
    const LEAST: u64 = 1_000_000;
    const PARTS: &[&[u8]] = &[
        b"*1\r\n$4\r\nPING\r\n",
        b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
        b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nva\r\nl\r\n",
        b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n",
        b"*0\r\n",
        b"*-1\r\n",
        b"\r\n",
        b"PING\r\n",
        b"ECHO \"a \\x41\\n\" 'b\\'c'\r\n",
        b"SET k 'v' \n",
        b"*4\r\n$4\r\nMSET\r\n$2\r\nk1\r\n$12\r\nabcdefghijkl\r\n$2\r\nk2\r\n",
    ];
    const NUMBERS: &[&[u8]] = &[
        b"0",
        b"-1",
        b"1",
        b"2",
        b"01",
        b"+1",
        b"16",
        b"2147483647",
        b"2147483648",
        b"4294967296",
        b"536870912",
        b"536870913",
        b"9223372036854775807",
        b"9223372036854775808",
        b"-9223372036854775809",
        b"99999999999999999999999",
        b"",
    ];

    fn part<'a>(random: &mut SmallRng, parts: &[&'a [u8]]) -> &'a [u8] {
        parts[random.random_range(0..parts.len())]
    }

    fn pipeline(random: &mut SmallRng) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..random.random_range(1..6) {
            bytes.extend_from_slice(part(random, PARTS));
        }
        bytes
    }

    fn mutate(random: &mut SmallRng, bytes: &mut Vec<u8>) {
        let at = random.random_range(0..=bytes.len());
        let end = (at + random.random_range(0..6)).min(bytes.len());
        match random.random_range(0..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes.insert(at, b"\r\n*$\"'\\ \0\xff0-"[random.random_range(0..12)]),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let again = bytes[at..end].to_vec();
                bytes.splice(at..at, again);
            }
            4 => bytes.truncate(at),
            5 => {
                let other = part(random, PARTS);
                bytes.splice(at..end, other.iter().copied());
            }
            _ => {
                // The number of a header.
                let start = bytes[at..].iter().position(|byte| matches!(byte, b'*' | b'$'));
                if let Some(start) = start.map(|start| at + start + 1) {
                    let digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                    bytes.splice(start..start + digits, part(random, NUMBERS).iter().copied());
                }
            }
        }
    }

    fn limits(random: &mut SmallRng) -> Limits {
        if random.random_bool(0.5) {
            return Limits::default();
        }
        Limits {
            max_args: random.random_range(1..12),
            max_bulk: random.random_range(1..60),
            max_line: random.random_range(16..80),
            max_request: random.random_range(20..200),
            authenticated: random.random(),
        }
    }

    #[test]
    fn millions_of_mutations_do_no_harm() {
        let factor = std::env::var("HIGHWATER_TEST_LONG")
            .ok()
            .and_then(|text| text.parse().ok());
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let end = Instant::now() + BUDGET * factor.unwrap_or(1);
        let (mut cases, mut refused, mut executed) = (0u64, 0, 0);
        while Instant::now() < end || cases < LEAST {
            let mut bytes = pipeline(&mut random);
            for _ in 0..random.random_range(1..5) {
                mutate(&mut random, &mut bytes);
            }
            if bytes.is_empty() {
                continue;
            }
            let limits = limits(&mut random);
            let pieces: [usize; 3] = std::array::from_fn(|_| random.random_range(1..40));
            let expected = whole(&bytes, &limits);
            assert_eq!(
                play(&bytes, &pieces, &limits, random.random_range(1..4)),
                expected,
                "seed {seed}, case {cases}: {} in {pieces:?} with {limits:?}",
                bytes.escape_ascii()
            );
            cases += 1;
            refused += u64::from(expected.1.is_some());
            executed += expected.0.len();
        }
        println!("{cases} cases, {refused} refused, {executed} requests executed");
        assert!(refused > cases / 10 && executed as u64 > cases / 10);
    }
}
