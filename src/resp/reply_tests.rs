//! Unit tests of the encoding, and property tests with redis-protocol's decoders as the oracle.

use proptest::prelude::*;
use redis_protocol::resp2::{decode::decode as decode2, types::OwnedFrame as Frame2};
use redis_protocol::resp3::{
    decode::complete::decode as decode3,
    types::{OwnedFrame as Frame3, VerbatimStringFormat},
};

use super::*;

fn encoded(reply: &Reply, version: Version) -> BytesMut {
    let mut out = BytesMut::new();
    encode(reply, version, &mut out);
    out
}

#[track_caller]
fn check(reply: Reply, resp2: &str, resp3: &str) {
    for (version, expected) in [(Version::Resp2, resp2), (Version::Resp3, resp3)] {
        let text = encoded(&reply, version).escape_ascii().to_string();
        assert_eq!(text, expected.as_bytes().escape_ascii().to_string(), "{reply:?}");
    }
}

#[track_caller]
fn check_both(reply: Reply, expected: &str) {
    check(reply, expected, expected);
}

#[test]
fn scalars() {
    check_both(Reply::Ok, "+OK\r\n");
    check_both(Reply::simple("PONG"), "+PONG\r\n");
    check_both(Reply::Int(0), ":0\r\n");
    check_both(Reply::Int(i64::MIN), ":-9223372036854775808\r\n");
    check_both(Reply::bulk(""), "$0\r\n\r\n");
    check_both(Reply::bulk("a\r\nb"), "$4\r\na\r\nb\r\n");
    check_both(Reply::from(Some(Bytes::from_static(b"a"))), "$1\r\na\r\n");
    check(Reply::from(None), "$-1\r\n", "_\r\n");
    check(Reply::NullArray, "*-1\r\n", "_\r\n");
    check(Reply::Bool(true), ":1\r\n", "#t\r\n");
    check(Reply::Bool(false), ":0\r\n", "#f\r\n");
    check(Reply::Double(3.0), "$1\r\n3\r\n", ",3\r\n");
    check(
        Reply::Double(0.1),
        "$19\r\n0.10000000000000001\r\n",
        ",0.10000000000000001\r\n",
    );
    check(Reply::Double(f64::INFINITY), "$3\r\ninf\r\n", ",inf\r\n");
    check(Reply::Double(f64::NEG_INFINITY), "$4\r\n-inf\r\n", ",-inf\r\n");
    check(Reply::Double(f64::NAN), "$3\r\nnan\r\n", ",nan\r\n");
    check(
        Reply::Decimal("85.0511287799999991".into()),
        "$19\r\n85.0511287799999991\r\n",
        ",85.0511287799999991\r\n",
    );
    check(
        Reply::BigNumber("-12345678901234567890".into()),
        "$21\r\n-12345678901234567890\r\n",
        "(-12345678901234567890\r\n",
    );
    let text = Bytes::from_static(b"some");
    check(
        Reply::Verbatim { format: *b"txt", text },
        "$4\r\nsome\r\n",
        "=8\r\ntxt:some\r\n",
    );
}

#[test]
fn aggregates() {
    let items = || vec![Reply::Int(1), Reply::Null];
    check(Reply::Array(items()), "*2\r\n:1\r\n$-1\r\n", "*2\r\n:1\r\n_\r\n");
    check(Reply::Set(items()), "*2\r\n:1\r\n$-1\r\n", "~2\r\n:1\r\n_\r\n");
    check(Reply::Push(items()), "*2\r\n:1\r\n$-1\r\n", ">2\r\n:1\r\n_\r\n");
    let pairs = vec![
        (Reply::bulk("k"), Reply::Bool(true)),
        (Reply::Int(2), Reply::Array(vec![])),
    ];
    check(
        Reply::Map(pairs),
        "*4\r\n$1\r\nk\r\n:1\r\n:2\r\n*0\r\n",
        "%2\r\n$1\r\nk\r\n#t\r\n:2\r\n*0\r\n",
    );
    check_both(Reply::Several(vec![Reply::Ok, Reply::Int(1)]), "+OK\r\n:1\r\n");
    check_both(Reply::None, "");
}

#[test]
fn a_line_stays_one_line() {
    check_both(Reply::error("ERR syntax error"), "-ERR syntax error\r\n");
    check_both(Reply::error("\r\nERR a\r\nb\nc\r\n"), "-ERR a  b c\r\n");
    check_both(Reply::error("\r\n"), "-\r\n");
    check_both(Reply::simple("a\r\nb"), "+a  b\r\n");
    check_both(Reply::simple(""), "+\r\n");
    let mut out = BytesMut::new();
    write_error(&mut out, b"ERR unknown command '\xff'");
    assert_eq!(&out[..], b"-ERR unknown command '\xff'\r\n");
}

/// What an oracle of RESP2 sees of a reply, as a reply of RESP2's types.
fn downgraded(reply: &Reply) -> Reply {
    let all = |items: &[Reply]| items.iter().map(downgraded).collect();
    match reply {
        Reply::Ok => Reply::simple("OK"),
        Reply::NullArray => Reply::Null,
        Reply::Array(items) | Reply::Set(items) | Reply::Push(items) => Reply::Array(all(items)),
        Reply::Map(pairs) => {
            let flat = pairs
                .iter()
                .flat_map(|(key, value)| [downgraded(key), downgraded(value)]);
            Reply::Array(flat.collect())
        }
        Reply::Double(value) => Reply::bulk(format_double(*value)),
        Reply::Bool(value) => Reply::Int(i64::from(*value)),
        Reply::Verbatim { text, .. } => Reply::Bulk(text.clone()),
        Reply::BigNumber(digits) => Reply::bulk(digits.as_bytes()),
        other => other.clone(),
    }
}

fn from_frame2(frame: Frame2) -> Reply {
    match frame {
        Frame2::SimpleString(text) => Reply::simple(String::from_utf8(text).expect("UTF-8")),
        Frame2::Error(text) => Reply::error(text),
        Frame2::Integer(value) => Reply::Int(value),
        Frame2::BulkString(bytes) => Reply::bulk(bytes),
        Frame2::Array(items) => Reply::Array(items.into_iter().map(from_frame2).collect()),
        Frame2::Null => Reply::Null,
    }
}

fn from_frame3(frame: Frame3) -> Reply {
    let all = |items: Vec<Frame3>| items.into_iter().map(from_frame3).collect();
    match frame {
        Frame3::SimpleString { data, .. } => Reply::simple(String::from_utf8(data).expect("UTF-8")),
        Frame3::SimpleError { data, .. } => Reply::error(data),
        Frame3::Number { data, .. } => Reply::Int(data),
        Frame3::BlobString { data, .. } => Reply::bulk(data),
        Frame3::Null => Reply::Null,
        Frame3::Boolean { data, .. } => Reply::Bool(data),
        Frame3::Double { data, .. } => Reply::Double(data),
        Frame3::BigNumber { data, .. } => Reply::BigNumber(String::from_utf8(data).expect("UTF-8").into()),
        Frame3::VerbatimString { data, format, .. } => Reply::Verbatim {
            format: match format {
                VerbatimStringFormat::Text => *b"txt",
                VerbatimStringFormat::Markdown => *b"mkd",
            },
            text: data.into(),
        },
        Frame3::Array { data, .. } => Reply::Array(all(data)),
        Frame3::Push { data, .. } => Reply::Push(all(data)),
        Frame3::Set { data, .. } => Reply::Set(data.into_iter().map(from_frame3).collect()),
        Frame3::Map { data, .. } => Reply::Map(
            data.into_iter()
                .map(|(key, value)| (from_frame3(key), from_frame3(value)))
                .collect(),
        ),
        other => panic!("never encoded: {other:?}"),
    }
}

/// The oracle of RESP3 returns sets and maps in any order, and does not distinguish the two nulls.
fn ordered(reply: Reply) -> Reply {
    let all = |items: Vec<Reply>| items.into_iter().map(ordered).collect::<Vec<_>>();
    match reply {
        Reply::Ok => Reply::simple("OK"),
        Reply::NullArray => Reply::Null,
        Reply::Array(items) => Reply::Array(all(items)),
        Reply::Push(items) => Reply::Push(all(items)),
        Reply::Set(items) => {
            let mut items = all(items);
            items.sort_by_key(|item| format!("{item:?}"));
            Reply::Set(items)
        }
        Reply::Map(pairs) => {
            let mut pairs: Vec<_> = pairs.into_iter().map(|(key, value)| (key, ordered(value))).collect();
            pairs.sort_by_key(|(key, _)| format!("{key:?}"));
            Reply::Map(pairs)
        }
        other => other,
    }
}

fn replies() -> impl Strategy<Value = Reply> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..30).prop_map(Bytes::from);
    let format = prop::sample::select(vec![*b"txt", *b"mkd"]);
    let scalar = prop_oneof![
        Just(Reply::Ok),
        "[a-zA-Z ]{0,20}".prop_map(Reply::simple),
        "[A-Z]{1,10} \\PC{0,20}".prop_map(Reply::error),
        any::<i64>().prop_map(Reply::Int),
        bytes().prop_map(Reply::Bulk),
        Just(Reply::Null),
        Just(Reply::NullArray),
        any::<f64>()
            .prop_filter("equal to itself", |value| !value.is_nan())
            .prop_map(Reply::Double),
        any::<bool>().prop_map(Reply::Bool),
        (format, bytes()).prop_map(|(format, text)| Reply::Verbatim { format, text }),
        "-?[1-9][0-9]{0,40}".prop_map(|digits| Reply::BigNumber(digits.into())),
    ];
    scalar.prop_recursive(3, 40, 6, move |inner| {
        let items = prop::collection::vec(inner.clone(), 0..6);
        let keys = prop::collection::btree_set(any::<i64>(), 0..6);
        let pairs = prop::collection::btree_map(prop::collection::vec(any::<u8>(), 0..10), inner, 0..6);
        prop_oneof![
            items.clone().prop_map(Reply::Array),
            items.prop_map(Reply::Push),
            keys.prop_map(|keys| Reply::Set(keys.into_iter().map(Reply::Int).collect())),
            pairs.prop_map(|pairs| Reply::Map(
                pairs
                    .into_iter()
                    .map(|(key, value)| (Reply::bulk(key), value))
                    .collect()
            )),
        ]
    })
}

proptest! {
    #![proptest_config(crate::resp::test_cases())]

    #[test]
    fn resp2_reads_back(reply in replies()) {
        let bytes = encoded(&reply, Version::Resp2);
        let (frame, used) = decode2(&bytes).expect("well-formed").expect("complete");
        prop_assert_eq!(used, bytes.len());
        prop_assert_eq!(from_frame2(frame), downgraded(&reply));
    }

    #[test]
    fn resp3_reads_back(reply in replies()) {
        let bytes = encoded(&reply, Version::Resp3);
        let (frame, used) = decode3(&bytes).expect("well-formed").expect("complete");
        prop_assert_eq!(used, bytes.len());
        prop_assert_eq!(ordered(from_frame3(frame)), ordered(reply));
    }

    #[test]
    fn an_error_is_one_line(text in prop::collection::vec(any::<u8>(), 0..60)) {
        let bytes = encoded(&Reply::error(text), Version::Resp2);
        let breaks = bytes.iter().filter(|byte| matches!(byte, b'\r' | b'\n')).count();
        prop_assert_eq!(breaks, 2);
        prop_assert!(bytes.ends_with(b"\r\n"));
    }
}
