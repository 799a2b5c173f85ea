//! CRC-64 of RDB files: polynomial ad93d23594c935a9, reflected, from 0.

const REFLECTED: u64 = 0xad93_d235_94c9_35a9_u64.reverse_bits();

/// What a byte contributes, by the number of bytes that follow it.
static TABLES: [[u64; 256]; 8] = {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u64, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ REFLECTED } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut followers = 1;
    while followers < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[followers - 1][byte];
            tables[followers][byte] = tables[0][before as u8 as usize] ^ before >> 8;
            byte += 1;
        }
        followers += 1;
    }
    tables
};

pub fn of(bytes: &[u8]) -> u64 {
    more(0, bytes)
}

/// The checksum of what has this checksum, followed by more bytes. It takes eight bytes at a time,
/// each with its own table ("slicing by 8"). Byte by byte, a large value takes six times as long.
pub fn more(crc: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks();
    let crc = words.iter().fold(crc, |crc, word| {
        let word = (u64::from_le_bytes(*word) ^ crc).to_le_bytes();
        let parts = word.iter().zip(TABLES.iter().rev());
        parts.fold(0, |crc, (byte, table)| crc ^ table[usize::from(*byte)])
    });
    rest.iter()
        .fold(crc, |crc, byte| TABLES[0][usize::from(crc as u8 ^ byte)] ^ crc >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rdb_files() {
        assert_eq!(of(b"123456789"), 0xe9c6_d914_c4b8_d9ca);
        // The checksum of bytes that are followed by their checksum is 0.
        for length in 0..40 {
            let covered: Vec<u8> = (0..length).map(|i: u8| i.wrapping_mul(37)).collect();
            let all = [&covered[..], &of(&covered).to_le_bytes()].concat();
            assert_eq!(of(&all), 0, "{length} bytes");
            let (first, rest) = covered.split_at(covered.len() / 3);
            assert_eq!(more(of(first), rest), of(&covered), "in two parts");
        }
    }
}
