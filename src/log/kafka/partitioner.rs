//! Which partition is a key's home. This module owns the two hashes that other producers of a topic
//! use, and knows nothing of topics or clients.

/// How keys are spread over the partitions. It has to be what the topic's other producers use.
/// Otherwise their records of a key are looked for in the wrong partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partitioner {
    /// The Java client's default.
    #[default]
    Murmur2,
    /// librdkafka's default (`consistent_random`) for keys that are not empty, kcat's too.
    Crc32,
}

impl Partitioner {
    pub fn name(self) -> &'static str {
        match self {
            Partitioner::Murmur2 => "murmur2",
            Partitioner::Crc32 => "crc32",
        }
    }

    /// `partitions` is at least 1.
    pub fn partition(self, key: &[u8], partitions: u32) -> u32 {
        match self {
            // One partition is the usual topic: no need to hash.
            _ if partitions <= 1 => 0,
            Partitioner::Murmur2 => (murmur2(key) & 0x7fff_ffff) % partitions,
            Partitioner::Crc32 => crc32fast::hash(key) % partitions,
        }
    }
}

impl std::str::FromStr for Partitioner {
    type Err = String;

    fn from_str(name: &str) -> Result<Partitioner, String> {
        match name {
            "murmur2" => Ok(Partitioner::Murmur2),
            "crc32" => Ok(Partitioner::Crc32),
            other => Err(format!("no partitioner {other:?}: it is murmur2 or crc32")),
        }
    }
}

/// 32-bit MurmurHash2 with the seed and in the byte order that the Java client fixed.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    const R: u32 = 24;

    let mut hash = SEED ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> R;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (place, &byte) in rest.iter().enumerate() {
            hash ^= u32::from(byte) << (8 * place);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that Kafka's own test of its Java client has.
    #[test]
    fn murmur2_is_the_java_clients() {
        let known: [(&[u8], i32); 6] = [
            (b"21", -973932308),
            (b"foobar", -790332482),
            (b"a-little-bit-long-string", -985981536),
            (b"a-little-bit-longer-string", -1486304829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
            (b"abc", 479470107),
        ];
        for (key, hash) in known {
            assert_eq!(murmur2(key) as i32, hash, "{}", key.escape_ascii());
        }
    }

    #[test]
    fn crc32_is_the_usual_one() {
        assert_eq!(crc32fast::hash(b"123456789"), 0xcbf4_3926);
        assert_eq!(Partitioner::Crc32.partition(b"123456789", 7), 0xcbf4_3926 % 7);
        assert_eq!(Partitioner::Crc32.partition(b"", 7), 0);
    }

    #[test]
    fn one_partition_needs_no_hash() {
        assert_eq!(Partitioner::Murmur2.partition(b"anything", 1), 0);
    }
}
