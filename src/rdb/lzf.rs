//! LZF, as RDB files compress long strings.

use bytes::Bytes;

/// Three bytes expand to at most 264.
pub const EXPANDS: usize = 88;

/// Decompresses. A control byte below 32 is followed by that many literal bytes and one more. Any
/// other control byte copies earlier output: it says how far back (13 bits) and how many bytes (3
/// bits, or one byte more). `None` if the bytes are not what compresses `len` bytes.
pub fn decompress(compressed: &[u8], len: usize) -> Option<Bytes> {
    if len > compressed.len().saturating_mul(EXPANDS) {
        return None;
    }
    let mut out = Vec::with_capacity(len);
    let mut rest = compressed;
    while let Some((&control, behind)) = rest.split_first() {
        rest = behind;
        if control < 32 {
            let (literal, behind) = rest.split_at_checked(usize::from(control) + 1)?;
            out.extend_from_slice(literal);
            rest = behind;
        } else {
            let mut count = usize::from(control >> 5) + 2;
            if control >> 5 == 7 {
                let (&more, behind) = rest.split_first()?;
                (count, rest) = (count + usize::from(more), behind);
            }
            let (&low, behind) = rest.split_first()?;
            rest = behind;
            let back = (usize::from(control & 31) << 8 | usize::from(low)) + 1;
            let from = out.len().checked_sub(back)?;
            // Byte by byte, as it may copy bytes that it has just written.
            for at in from..from + count {
                out.push(out[at]);
            }
        }
        if out.len() > len {
            return None;
        }
    }
    (out.len() == len).then(|| out.into())
}
