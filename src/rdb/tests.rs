use bytes::{BufMut, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::model::{Field, StreamGroup, StreamHead, StreamId, StreamPending};

const LIMIT: usize = 1 << 20;
const LIMITS: Limits = Limits {
    string: LIMIT,
    memory: 4 * LIMIT,
};

fn read_payload(payload: &[u8]) -> Result<Object, Problem> {
    read(verified(payload).expect("its checksum is right"), LIMITS)
}

fn string_of(payload: &[u8]) -> Option<Bytes> {
    match read(verified(payload)?, LIMITS) {
        Ok(Object::String(value)) => Some(value),
        _ => None,
    }
}

fn text(value: &[u8]) -> Object {
    Object::String(Bytes::copy_from_slice(value))
}

/// A payload with this content, as Redis 7.2 would finish it.
fn payload_of(content: &[u8]) -> Bytes {
    finish(BytesMut::from(content), 11)
}

/// What redis-server 7.0.15 dumped for `123` and for 45 times `a`.
#[test]
fn strings_of_redis_are_read() {
    let number = b"\x00\xc0{\n\x00H\xe2S\xe1\x00zg\xb9";
    assert_eq!(&dump(&text(b"123"))[..], number);
    assert_eq!(string_of(number).as_deref(), Some(&b"123"[..]));
    let compressed = b"\x00\xc3\t-\x01aa\xe0 \x00\x01aa\n\x00\xb8%\xa6\xf9\xa5\x12\x8e\xd9";
    assert_eq!(string_of(compressed).as_deref(), Some(&[b'a'; 45][..]));
}

/// Version numbers of Redis 7.2, Redis 8 and Valkey 9, and one that no server has yet.
#[test]
fn strings_of_all_versions_are_read() {
    let dumped = dump(&text(b"text"));
    let content = &dumped[..dumped.len() - TRAILER];
    let of_version = |version: u16| finish(BytesMut::from(content), version);
    for version in [1, 11, 12, 14, 80] {
        assert_eq!(
            string_of(&of_version(version)).as_deref(),
            Some(&b"text"[..]),
            "{version}"
        );
    }
    assert_eq!(verified(&of_version(81)), None);
}

#[test]
fn strings_come_back() {
    for value in [
        "",
        "0",
        "-1",
        "127",
        "128",
        "-32769",
        "2147483648",
        "-2147483648",
        "007",
        "-0",
        "+1",
        "text",
    ] {
        let dumped = dump(&text(value.as_bytes()));
        assert_eq!(string_of(&dumped).as_deref(), Some(value.as_bytes()), "{value}");
    }
    for len in [63, 64, 16_383, 16_384, LIMIT] {
        assert_eq!(string_of(&dump(&text(&vec![b'x'; len]))).map(|v| v.len()), Some(len));
    }
    let too_long = read_payload(&dump(&text(&vec![b'x'; LIMIT + 1])));
    assert!(matches!(too_long, Err(Problem::TooLarge)), "{too_long:?}");
}

#[test]
fn damage_is_noticed() {
    let good = dump(&text(b"some value"));
    for at in 0..good.len() {
        let mut bad = good.to_vec();
        bad[at] ^= 1;
        assert_eq!(verified(&bad), None, "byte {at}");
        assert_eq!(verified(&good[..at]), None, "cut at {at}");
    }
}

#[test]
fn libraries_come_back() {
    for sizes in [&[][..], &[1], &[63, 64, 16_383, 16_384, 100_000]] {
        let texts: Vec<Bytes> = sizes.iter().map(|size| vec![b'x'; *size].into()).collect();
        let payload = dump_libraries(texts.iter());
        assert_eq!(libraries_in(&payload, 1 << 20), Ok(texts));
        assert!(libraries_in(&payload[..payload.len() - 1], 1 << 20).is_err());
    }
    // As Redis 7.0 answers without a library.
    let empty = b"\x0a\x00\x5d\x9b\x5c\x40\x0f\x7f\xa2\xda";
    assert_eq!(&dump_libraries([].iter())[..], empty);
    let large = dump_libraries([Bytes::from(vec![b'x'; 100])].iter());
    assert!(libraries_in(&large, 99).is_err());
    assert!(libraries_in(&dump_libraries([Bytes::new()].iter()), 99).is_err());
    let many = dump_libraries(vec![Bytes::from("x"); 100].iter());
    assert!(libraries_in(&many, 94).is_err() && libraries_in(&many, 100).is_ok());
    // As Redis compresses a text: two bytes, the last of which is repeated seven times.
    let payload = payload_of(&[LIBRARY, source::LZF, 5, 9, 1, b'a', b'b', 5 << 5, 0]);
    assert_eq!(libraries_in(&payload, 1 << 20), Ok(vec!["abbbbbbbb".into()]));
}

// ---- what other servers have written ----

/// A payload or a file of another server.
struct Real {
    /// Those with the same name hold the same value.
    name: &'static str,
    /// The server and the form.
    of: &'static str,
    bytes: Vec<u8>,
}

/// `payloads.txt`: what real servers have written for the same values in all forms.
fn real() -> Vec<Real> {
    let mut real: Vec<Real> = Vec::new();
    let lines = include_str!("payloads.txt").lines();
    for line in lines.filter(|line| !line.starts_with('#')) {
        match (line.strip_prefix(' '), line.split_once(' '), real.last_mut()) {
            (Some(hex), _, Some(last)) => {
                let digits = hex.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).expect("hex"));
                let bytes = digits.map(|digits| u8::from_str_radix(digits, 16).expect("hex"));
                last.bytes.extend(bytes);
            }
            (None, Some((name, of)), _) => {
                let bytes = Vec::new();
                real.push(Real { name, of, bytes });
            }
            _ => panic!("neither a name nor bytes: {line}"),
        }
    }
    real
}

#[test]
fn the_forms_of_other_servers_hold_the_same() {
    let mut forms = std::collections::BTreeSet::new();
    let real = real();
    let payloads: Vec<&Real> = real.iter().filter(|real| real.name != "file").collect();
    for Real { name, of, bytes } in &payloads {
        forms.insert(bytes[0]);
        let object = read_payload(bytes).unwrap_or_else(|problem| panic!("{name} of {of}: {problem}"));
        let first = payloads.iter().find(|first| first.name == *name).expect("there is one");
        let expected = read_payload(&first.bytes).expect("it is read");
        assert_eq!(object, expected, "{name} of {of} and of {}", first.of);
        assert_eq!(
            read_payload(&dump(&object)).expect("it is read"),
            object,
            "{name} of {of}"
        );
    }
    // Sorted sets with decimal scores and those of release candidates are written by hand below.
    let expected = [0, 2, 4, 5, 11, 16, 17, 18, 19, 20, 21, 24, 25];
    assert_eq!(forms, expected.into(), "the forms of payloads.txt");
}

/// Every key of a file, and the forms that were met.
fn keys_of(file: &[u8]) -> Result<Vec<(Bytes, Object)>, Problem> {
    let mut file = File::open(file, LIMITS)?;
    let mut keys = Vec::new();
    while let Some(found) = file.next_found()? {
        if let Found::Key { key, object, .. } = found {
            keys.push((key, object));
        }
    }
    Ok(keys)
}

#[test]
fn files_of_old_servers_are_read() {
    let mut files = 0;
    for Real { of, bytes, .. } in real().iter().filter(|real| real.name == "file") {
        let keys = keys_of(bytes).unwrap_or_else(|problem| panic!("{of}: {problem}"));
        assert!(!keys.is_empty(), "{of}");
        files += 1;
    }
    assert!(files >= 5, "the files of payloads.txt");
}

#[test]
fn commands_after_a_file_are_noticed() {
    let file = [&b"REDIS0011\xff"[..], &[0; 8]].concat();
    assert!(keys_of(&file).is_ok_and(|keys| keys.is_empty()));
    for commands in [&b"*1\r\n$4\r\nPING\r\n"[..], b"#TS:1700000000\r\n"] {
        let result = keys_of(&[&file[..], commands].concat());
        assert!(matches!(result, Err(Problem::Bad(_))), "{result:?}");
    }
}

/// Whatever is done to what a real server has written, reading it ends, within its limits.
#[test]
fn mutated_payloads_are_read_or_refused() {
    const MUTATIONS: usize = 100_000;
    let real = real();
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut refused = 0;
    for _ in 0..MUTATIONS {
        let Real { name, bytes, .. } = &real[random.random_range(0..real.len())];
        let is_file = *name == "file";
        let mut bytes = bytes.clone();
        if !is_file {
            bytes.truncate(bytes.len() - TRAILER);
        }
        for _ in 0..random.random_range(1..4) {
            mutate(&mut bytes, &mut random);
        }
        let is_read = match is_file {
            true => keys_of(&bytes).is_ok(),
            false => read((11, &bytes), LIMITS).is_ok(),
        };
        refused += usize::from(!is_read);
    }
    assert!(
        refused > MUTATIONS / 10 && refused < MUTATIONS,
        "{refused} were refused"
    );
}

fn mutate(bytes: &mut Vec<u8>, random: &mut StdRng) {
    let at = random.random_range(0..bytes.len().max(1));
    match random.random_range(0..6) {
        _ if bytes.is_empty() => bytes.push(random.random()),
        0 => bytes[at] = random.random(),
        1 => bytes[at] ^= 1 << random.random_range(0..8),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, random.random()),
        4 => drop(bytes.remove(at)),
        _ => {
            // Lengths are often at such bounds.
            let bounds = [0, 1, 0x3f, 0x40, 0x7f, 0x80, 0x81, 0xc0, 0xc3, 0xf0, 0xfe, 0xff];
            bytes[at] = bounds[random.random_range(0..bounds.len())];
        }
    }
}

// ---- limits ----

#[test]
fn announced_lengths_allocate_nothing() {
    let huge = u64::MAX.to_be_bytes();
    for of in 0..=form::HASH_EXPIRING_LISTPACK {
        let is_after_time = matches!(of, form::HASH_EXPIRING | form::HASH_EXPIRING_LISTPACK);
        let time = if is_after_time { &[0; 8][..] } else { &[] };
        let content = [&[of][..], time, &[0x81], &huge].concat();
        let result = read((11, &content), LIMITS);
        assert!(result.is_err(), "form {of}: {result:?}");
    }
}

#[test]
fn small_payloads_take_no_more_than_the_limit() {
    // A list of so many empty items: a byte each.
    let mut content = BytesMut::from(&[form::LIST, 0x80][..]);
    content.put_u32(LIMIT as u32);
    content.put_bytes(0, LIMIT);
    let result = read((11, &content), LIMITS);
    assert!(matches!(result, Err(Problem::TooLarge)), "{result:?}");
    // An announced length that LZF cannot reach.
    let content = [&[form::STRING, source::LZF, 3][..], &[0x80, 0, 0x0f, 0, 0, 0, 0, 0]].concat();
    let result = read((11, &content), LIMITS);
    assert!(matches!(result, Err(Problem::Bad(_))), "{result:?}");
    let dumped = dump(&Object::List(Items(vec![Bytes::new(); 1000].into())));
    assert!(most_bytes(&dumped) >= 1000 * size_of::<Bytes>());
    // Compressed listpacks have elements of two bytes.
    let packed = most_bytes(&[form::LIST_QUICKLIST_2, source::LZF]);
    assert!(packed >= lzf::EXPANDS * size_of::<Bytes>(), "{packed}");
}

#[test]
fn what_is_no_value_is_told_apart() {
    let told = |content: &[u8]| read((11, content), LIMITS).expect_err("it is no value").to_string();
    assert!(told(&[form::MODULE_2, 0]).contains("module"));
    assert!(told(&[26, 0]).contains("type 26"));
    for empty in [
        form::LIST,
        form::SET,
        form::SORTED_SET,
        form::HASH,
        form::LIST_QUICKLIST_2,
    ] {
        assert!(
            matches!(read((11, &[empty, 0]), LIMITS), Err(Problem::Empty)),
            "{empty}"
        );
    }
    let twice = [form::SET, 2, 1, b'a', 1, b'a'];
    assert!(matches!(read((11, &twice), LIMITS), Err(Problem::Bad(_))));
    let nan = [form::SORTED_SET, 1, 1, b'a', 253];
    assert!(matches!(read((11, &nan), LIMITS), Err(Problem::Bad(_))));
}

#[test]
fn forms_that_no_release_writes_any_more_are_read() {
    let scores = [
        form::SORTED_SET,
        3,
        1,
        b'a',
        254,
        1,
        b'b',
        255,
        1,
        b'c',
        3,
        b'1',
        b'.',
        b'5',
    ];
    let Ok(Object::SortedSet(scores)) = read((11, &scores), LIMITS) else {
        panic!("it is a sorted set");
    };
    let scores: Vec<(&[u8], f64)> = scores.0.iter().map(|(member, score)| (&member[..], *score)).collect();
    let expected = [(&b"b"[..], f64::NEG_INFINITY), (b"c", 1.5), (b"a", f64::INFINITY)];
    assert_eq!(scores, expected);
    let mut fields = Fields::default();
    for (name, expire_at) in [("a", Some(7)), ("b", None)] {
        let value = Bytes::from("1");
        fields.0.insert(name.into(), Field { value, expire_at });
    }
    let early = [form::HASH_EXPIRING_EARLY, 2, 7, 1, b'a', 1, b'1', 0, 1, b'b', 1, b'1'];
    assert_eq!(read((12, &early), LIMITS).ok(), Some(Object::Hash(fields.clone())));
    let mut of_valkey = vec![form::HASH_EXPIRING_EARLY, 2, 1, b'a', 1, b'1'];
    of_valkey.extend(7i64.to_le_bytes());
    of_valkey.extend([1, b'b', 1, b'1']);
    of_valkey.extend((-1i64).to_le_bytes());
    assert_eq!(read((VALKEY_9, &of_valkey), LIMITS).ok(), Some(Object::Hash(fields)));
}

// ---- round trips ----

fn bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..20),
        1 => vec(any::<u8>(), 60..70),
        2 => any::<i64>().prop_map(|number| number.to_string().into_bytes()),
        2 => (-200i64..200).prop_map(|number| number.to_string().into_bytes()),
    ]
    .prop_map(Bytes::from)
}

fn id() -> impl Strategy<Value = StreamId> {
    let ms = prop_oneof![0..5u64, any::<u64>()];
    let seq = prop_oneof![0..5u64, any::<u64>()];
    (ms, seq).prop_map(|(ms, seq)| StreamId { ms, seq })
}

/// What a group has: consumers with their pending entries.
type OfGroup = (StreamId, Option<i64>, Vec<(Bytes, u64, Vec<StreamId>)>);

fn group() -> impl Strategy<Value = OfGroup> {
    let consumer = (bytes(), 0..1u64 << 40, vec(id(), 0..4));
    (id(), prop::option::of(0..i64::MAX), vec(consumer, 0..4))
}

prop_compose! {
    fn stream()(
        entries in prop::collection::btree_map(id(), vec((bytes(), bytes()), 1..4), 0..130),
        same in any::<bool>(),
        last in id(), added in any::<u64>(), max_deleted in id(),
        groups in prop::collection::btree_map(bytes(), group(), 0..3),
    ) -> Stream {
        let fields = |pairs: Vec<(Bytes, Bytes)>| -> Vec<Bytes> {
            let named = |(name, value)| [if same { Bytes::from("name") } else { name }, value];
            pairs.into_iter().flat_map(named).collect()
        };
        let entries: Vec<_> = entries.into_iter().map(|(id, pairs)| (id, fields(pairs))).collect();
        let newest = entries.last().map_or(StreamId::MIN, |(id, _)| *id);
        let head = StreamHead { last: last.max(newest), added, first: StreamId::MIN };
        let groups = groups.into_iter().map(|(name, of)| group_of(name, of)).collect();
        Stream { entries, head, max_deleted, groups }
    }
}

fn group_of(name: Bytes, (last, read, of_consumers): OfGroup) -> Group {
    let mut pending = std::collections::BTreeMap::new();
    let mut consumers: Vec<Consumer> = Vec::new();
    for (name, seen, ids) in of_consumers {
        if consumers.iter().any(|known| known.name == name) {
            continue;
        }
        for id in ids {
            let held = StreamPending {
                delivered: seen,
                count: seen % 7,
                consumer: name.clone(),
            };
            pending.entry(id).or_insert(held);
        }
        // Redis 7.0 knows no time at which a consumer was given entries.
        let active = Some(seen);
        consumers.push(Consumer { name, seen, active });
    }
    Group {
        name,
        group: StreamGroup { last, read },
        pending: pending.into_iter().collect(),
        consumers,
    }
}

fn object() -> impl Strategy<Value = Object> {
    let score = prop_oneof![
        any::<f64>().prop_filter("no NaN", |score| !score.is_nan()),
        -5.0..5.0f64
    ];
    let expire_at = prop::option::of(1..1u64 << 45);
    prop_oneof![
        bytes().prop_map(Object::String),
        vec(bytes(), 1..40).prop_map(|items| Object::List(Items(items.into()))),
        vec(bytes(), 1..40).prop_map(|members| Object::Set(Members(members.into_iter().collect()))),
        vec((bytes(), score), 1..40).prop_map(|members| {
            let mut scores = Scores(members.into_iter().collect());
            scores.sort();
            Object::SortedSet(scores)
        }),
        vec((bytes(), bytes(), expire_at), 1..40).prop_map(|fields| {
            let field = |(name, value, expire_at)| (name, Field { value, expire_at });
            Object::Hash(Fields(fields.into_iter().map(field).collect()))
        }),
        stream().prop_map(Object::Stream),
    ]
}

proptest! {
    #[test]
    fn what_was_dumped_is_read(object in object()) {
        let read = read_payload(&dump(&object)).expect("it is read");
        prop_assert_eq!(read, object);
    }

    #[test]
    fn no_content_makes_it_fail(content in vec(any::<u8>(), 0..64), of in 0..30u8, second in 0xc0u8..=0xc3) {
        let _ = read((11, &content), LIMITS);
        let _ = read((11, &[&[of], &content[..]].concat()), LIMITS);
        let _ = read((11, &[&[of, second], &content[..]].concat()), LIMITS);
        let _ = keys_of(&[&b"REDIS0011"[..], &content].concat());
        lzf::decompress(&content, LIMIT);
    }
}
