//! Requests and replies as bytes, as cheaply as the load generator needs them: no allocation, no copy. It knows the
//! Redis protocol and how keys and values of the benchmark look; it knows no sockets.

/// Keys look as those of redis-benchmark: `key:` and 12 digits.
pub const KEY_BYTES: usize = 16;
const DIGITS: usize = 12;
/// A value begins with its key's number, so that a reply that belongs to another key is noticed.
pub const SMALLEST_VALUE: usize = 16;
/// What the values that redis-benchmark sets begin with.
pub const FOREIGN_VALUE: &[u8] = b"redis-bench";
/// Keys of one MGET.
pub const MGET_KEYS: usize = 10;
/// Fields of a small hash.
pub const SMALL_FIELDS: usize = 10;
/// Members that ZRANGE asks for.
pub const ZRANGE_MEMBERS: usize = 100;
/// Items that LRANGE asks for.
pub const LRANGE_ITEMS: usize = 100;
const GET_SET: &[u8] = b"local old = redis.call('GET', KEYS[1]) redis.call('SET', KEYS[1], ARGV[1]) return old";
/// A bucket holds ARGV[1] tokens and gets ARGV[2] a second.
const BUCKET: &[u8] = b"
    local time = redis.call('TIME')
    local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
    local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'at')
    local size, rate = tonumber(ARGV[1]), tonumber(ARGV[2])
    local tokens = math.min(size, (tonumber(bucket[1]) or size) + (now - (tonumber(bucket[2]) or now)) * rate)
    local allowed = tokens >= 1
    if allowed then tokens = tokens - 1 end
    redis.call('HSET', KEYS[1], 'tokens', tokens, 'at', now)
    redis.call('PEXPIRE', KEYS[1], 60000)
    return allowed and 1 or 0";

/// Appends requests; holds what the values are filled with.
pub struct Requests {
    value_header: Vec<u8>,
    filler: Vec<u8>,
}

impl Requests {
    pub fn new(value_bytes: usize) -> Requests {
        assert!(value_bytes >= SMALLEST_VALUE, "a value has at least {SMALLEST_VALUE} B");
        Requests {
            value_header: format!("\r\n${value_bytes}\r\n").into_bytes(),
            filler: filler(value_bytes - DIGITS),
        }
    }

    pub fn get(&self, key: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n$16\r\nkey:");
        push_digits(key, out);
        out.extend_from_slice(b"\r\n");
    }

    pub fn set(&self, key: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*3\r\n$3\r\nSET\r\n$16\r\nkey:");
        push_digits(key, out);
        out.extend_from_slice(&self.value_header);
        push_digits(key, out);
        out.extend_from_slice(&self.filler);
        out.extend_from_slice(b"\r\n");
    }

    /// Counters are keys apart from the strings.
    pub fn incr(&self, key: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*2\r\n$4\r\nINCR\r\n$16\r\ncnt:");
        push_digits(key, out);
        out.extend_from_slice(b"\r\n");
    }

    pub fn mget(&self, keys: [u64; MGET_KEYS], out: &mut Vec<u8>) {
        out.extend_from_slice(b"*11\r\n$4\r\nMGET\r\n");
        for key in keys {
            out.extend_from_slice(b"$16\r\nkey:");
            push_digits(key, out);
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Collections. A small hash is named `hsh:` and its digits. A large collection has a field or
/// member for each key.
impl Requests {
    pub fn fill_small(&self, key: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*22\r\n$4\r\nHSET\r\n$16\r\nhsh:");
        push_digits(key, out);
        for field in 0..SMALL_FIELDS {
            push_field(field as u64, out);
            self.push_value(key, out);
        }
        out.extend_from_slice(b"\r\n");
    }

    pub fn hset_small(&self, key: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*4\r\n$4\r\nHSET\r\n$16\r\nhsh:");
        push_digits(key, out);
        push_field(key, out);
        self.push_value(key, out);
        out.extend_from_slice(b"\r\n");
    }

    pub fn hget_small(&self, key: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*3\r\n$4\r\nHGET\r\n$16\r\nhsh:");
        push_digits(key, out);
        push_field(key, out);
        out.extend_from_slice(b"\r\n");
    }

    pub fn hgetall(&self, key: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*2\r\n$7\r\nHGETALL\r\n$16\r\nhsh:");
        push_digits(key, out);
        out.extend_from_slice(b"\r\n");
    }

    pub fn hset(&self, key: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*4\r\n$4\r\nHSET\r\n$5\r\nlarge\r\n$16\r\nkey:");
        push_digits(key, out);
        self.push_value(key, out);
        out.extend_from_slice(b"\r\n");
    }

    pub fn hget(&self, key: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*3\r\n$4\r\nHGET\r\n$5\r\nlarge\r\n$16\r\nkey:");
        push_digits(key, out);
        out.extend_from_slice(b"\r\n");
    }

    pub fn sadd(&self, member: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*3\r\n$4\r\nSADD\r\n$3\r\nset\r\n$16\r\nkey:");
        push_digits(member, out);
        out.extend_from_slice(b"\r\n");
    }

    pub fn zadd(&self, score: u64, member: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*4\r\n$4\r\nZADD\r\n$4\r\nzset\r\n$12\r\n");
        push_digits(score, out);
        out.extend_from_slice(b"\r\n$16\r\nkey:");
        push_digits(member, out);
        out.extend_from_slice(b"\r\n");
    }

    pub fn zrange(&self, first: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(b"*4\r\n$6\r\nZRANGE\r\n$4\r\nzset\r\n");
        for place in [first, first + ZRANGE_MEMBERS as u64 - 1] {
            // Redis takes no zeros before a place.
            let place = place.to_string();
            out.extend_from_slice(format!("${}\r\n{place}\r\n", place.len()).as_bytes());
        }
    }

    pub fn push(&self, command: &[u8], list: &[u8], key: u64, out: &mut Vec<u8>) {
        push_words(3, &[command, list], out);
        self.push_value_alone(key, out);
    }

    pub fn lpop(&self, out: &mut Vec<u8>) {
        push_words(2, &[b"LPOP", b"queue"], out);
    }

    pub fn lrange(&self, first: u64, out: &mut Vec<u8>) {
        let last = first + LRANGE_ITEMS as u64 - 1;
        let (first, last) = (first.to_string(), last.to_string());
        push_words(4, &[b"LRANGE", b"list", first.as_bytes(), last.as_bytes()], out);
    }

    pub fn xadd(&self, stream: &[u8], key: u64, out: &mut Vec<u8>) {
        push_words(5, &[b"XADD", stream, b"*", b"field"], out);
        self.push_value_alone(key, out);
    }

    pub fn xread(&self, out: &mut Vec<u8>) {
        push_words(6, &[b"XREAD", b"COUNT", b"10", b"STREAMS", b"stream", b"0"], out);
    }

    pub fn xreadgroup(&self, out: &mut Vec<u8>) {
        let head: [&[u8]; 4] = [b"XREADGROUP", b"GROUP", b"workers", b"worker"];
        push_words(9, &head, out);
        push_arguments(&[b"COUNT", b"1", b"STREAMS", b"jobs", b">"], out);
    }

    pub fn xack(&self, id: &[u8], out: &mut Vec<u8>) {
        push_words(4, &[b"XACK", b"jobs", b"workers", id], out);
    }

    pub fn eval_get_set(&self, key: u64, out: &mut Vec<u8>) {
        push_words(5, &[b"EVAL", GET_SET, b"1"], out);
        out.extend_from_slice(b"$16\r\nkey:");
        push_digits(key, out);
        out.extend_from_slice(b"\r\n");
        self.push_value_alone(key, out);
    }

    pub fn eval_bucket(&self, key: u64, out: &mut Vec<u8>) {
        push_words(6, &[b"EVAL", BUCKET, b"1"], out);
        out.extend_from_slice(b"$16\r\nbkt:");
        push_digits(key, out);
        out.extend_from_slice(b"\r\n");
        push_arguments(&[b"100", b"10"], out);
    }

    /// A value where the line before it has ended.
    fn push_value_alone(&self, key: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.value_header[2..]);
        push_digits(key, out);
        out.extend_from_slice(&self.filler);
        out.extend_from_slice(b"\r\n");
    }

    fn push_value(&self, key: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.value_header);
        push_digits(key, out);
        out.extend_from_slice(&self.filler);
    }
}

/// The head of a command of so many words, and its first ones.
fn push_words(count: usize, words: &[&[u8]], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{count}\r\n").as_bytes());
    push_arguments(words, out);
}

fn push_arguments(words: &[&[u8]], out: &mut Vec<u8>) {
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

/// The id of the first entry in a reply to XREAD or XREADGROUP of one stream.
pub fn first_entry(reply: &[u8]) -> Option<&[u8]> {
    // Arrays of one stream, of its name and entries; the name in two lines; arrays of the entries,
    // of the first one's id and fields; the length of the id.
    const LINES_BEFORE: usize = 7;
    let mut lines = reply.split(|byte| *byte == b'\n');
    let id = lines.nth(LINES_BEFORE)?.strip_suffix(b"\r")?;
    id.contains(&b'-').then_some(id)
}

/// One of the ten fields of a small hash.
fn push_field(number: u64, out: &mut Vec<u8>) {
    let digit = b'0' + (number % SMALL_FIELDS as u64) as u8;
    out.extend_from_slice(b"\r\n$6\r\nfield");
    out.push(digit);
}

/// Printable bytes that do not compress to nothing.
pub fn filler(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        b'A' + ((state >> 40) % 26) as u8
    };
    (0..bytes).map(|_| next()).collect()
}

fn push_digits(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [b'0'; DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&digits);
}

/// Whether a value is one that was set for this key.
pub fn belongs(value: &[u8], key: u64) -> bool {
    let digits = value.get(..DIGITS).unwrap_or_default();
    let number = digits
        .iter()
        .fold(0u64, |number, digit| number * 10 + u64::from(digit.wrapping_sub(b'0')));
    number == key || value.starts_with(FOREIGN_VALUE)
}

#[derive(Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    Status(&'a [u8]),
    Error(&'a [u8]),
    Int(i64),
    Bulk(&'a [u8]),
    Null,
    /// Bulk strings: how many there are, and the first one. `None` when anything else is among them.
    Bulks(Option<(usize, &'a [u8])>),
}

#[derive(Debug)]
pub struct Malformed;

/// The reply that the buffer begins with and its length, or `None` when it has not come whole.
pub fn reply(buffer: &[u8]) -> Result<Option<(Reply<'_>, usize)>, Malformed> {
    let Some(line) = line(buffer) else {
        return Ok(None);
    };
    let end = line.len() + 2;
    let Some((kind, rest)) = line.split_first() else {
        return Err(Malformed);
    };
    let reply = match kind {
        b'+' => Reply::Status(rest),
        b'-' => Reply::Error(rest),
        b':' => Reply::Int(number(rest)?),
        b'$' => match number(rest)? {
            -1 => Reply::Null,
            length => {
                let whole = end + usize::try_from(length).map_err(|_| Malformed)?;
                return match buffer.get(whole..whole + 2) {
                    Some(b"\r\n") => Ok(Some((Reply::Bulk(&buffer[end..whole]), whole + 2))),
                    Some(_) => Err(Malformed),
                    None => Ok(None),
                };
            }
        },
        b'*' => match number(rest)? {
            -1 => Reply::Null,
            count => return bulks(buffer, end, count),
        },
        _ => return Err(Malformed),
    };
    Ok(Some((reply, end)))
}

fn bulks(buffer: &[u8], mut end: usize, count: i64) -> Result<Option<(Reply<'_>, usize)>, Malformed> {
    let (mut first, mut other) = (None, false);
    for _ in 0..count {
        match reply(&buffer[end..])? {
            None => return Ok(None),
            Some((item, length)) => {
                match item {
                    Reply::Bulk(value) => first = first.or(Some(value)),
                    _ => other = true,
                }
                end += length;
            }
        }
    }
    let all = first.filter(|_| !other).map(|value| (count as usize, value));
    Ok(Some((Reply::Bulks(all), end)))
}

fn line(buffer: &[u8]) -> Option<&[u8]> {
    let end = buffer.iter().position(|byte| *byte == b'\r')?;
    (end + 1 < buffer.len()).then(|| &buffer[..end])
}

fn number(digits: &[u8]) -> Result<i64, Malformed> {
    let (negative, digits) = match digits.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, digits),
    };
    let mut number = 0i64;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return Err(Malformed);
        }
        number = number.wrapping_mul(10).wrapping_add(i64::from(digit));
    }
    Ok(if negative { -number } else { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_read_only_when_whole() {
        let replies: [(&[u8], Reply); 6] = [
            (b"+OK\r\n", Reply::Status(b"OK")),
            (b"-ERR no\r\n", Reply::Error(b"ERR no")),
            (b":-12\r\n", Reply::Int(-12)),
            (b"$3\r\nabc\r\n", Reply::Bulk(b"abc")),
            (b"$-1\r\n", Reply::Null),
            (b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", Reply::Bulks(Some((2, b"a")))),
        ];
        for (bytes, expected) in replies {
            for cut in 0..bytes.len() {
                assert!(reply(&bytes[..cut]).expect("well formed").is_none());
            }
            let (found, length) = reply(bytes).expect("well formed").expect("whole");
            assert_eq!((found, length), (expected, bytes.len()));
        }
        let with_null = b"*2\r\n$1\r\na\r\n$-1\r\n";
        assert_eq!(
            reply(with_null).expect("well formed").expect("whole").0,
            Reply::Bulks(None)
        );
        assert!(reply(b"what\r\n").is_err());
    }

    #[test]
    fn the_first_entry_of_a_stream_is_found() {
        let answer = b"*1\r\n*2\r\n$4\r\njobs\r\n*1\r\n*2\r\n$3\r\n7-1\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n";
        let (found, length) = reply(answer).expect("well formed").expect("whole");
        assert_eq!((found, length), (Reply::Bulks(None), answer.len()));
        assert_eq!(first_entry(answer), Some(&b"7-1"[..]));
        assert_eq!(first_entry(b"*1\r\n$1\r\na\r\n"), None);
    }

    #[test]
    fn commands_have_as_many_words_as_they_announce() {
        let requests = Requests::new(16);
        let mut out = Vec::new();
        requests.push(b"LPUSH", b"list", 1, &mut out);
        requests.lpop(&mut out);
        requests.lrange(0, &mut out);
        requests.xadd(b"stream", 1, &mut out);
        requests.xread(&mut out);
        requests.xreadgroup(&mut out);
        requests.xack(b"1-1", &mut out);
        requests.eval_get_set(1, &mut out);
        requests.eval_bucket(1, &mut out);
        let mut rest = &out[..];
        for _ in 0..9 {
            let (command, length) = reply(rest).expect("well formed").expect("whole");
            assert!(matches!(command, Reply::Bulks(Some(_))), "{command:?}");
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn a_value_belongs_to_its_key() {
        let mut out = Vec::new();
        Requests::new(16).set(42, &mut out);
        assert!(out.starts_with(b"*3\r\n$3\r\nSET\r\n$16\r\nkey:000000000042\r\n$16\r\n000000000042"));
        let value = &out[out.len() - 18..out.len() - 2];
        assert!(belongs(value, 42) && !belongs(value, 43));
    }
}
