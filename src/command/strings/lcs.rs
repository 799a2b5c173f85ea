//! The longest common subsequence of two strings.
//!
//! It is computed with the usual table of lengths, of which only one row is kept. Of every cell one
//! bit is kept: whether the longer sequence came from above or from the left. These bits lead back
//! from the end. If both are equally long, the path goes left (towards the start of `b`), as Redis
//! chooses among sequences of equal length.

/// Most cells of the table. They bound the time and the memory (one bit each).
const MAX_CELLS: usize = 1 << 30;

#[derive(Debug, PartialEq)]
pub struct Common {
    pub length: usize,
    /// Runs of equal bytes, the last one first.
    pub matches: Vec<Match>,
}

#[derive(Debug, PartialEq)]
pub struct Match {
    pub in_a: usize,
    pub in_b: usize,
    pub length: usize,
}

/// False if it would take too long.
pub fn fits(a: &[u8], b: &[u8]) -> bool {
    a.len().checked_mul(b.len()).is_some_and(|cells| cells <= MAX_CELLS)
}

pub fn length(a: &[u8], b: &[u8]) -> usize {
    fill(a, b, |_| {})
}

pub fn find(a: &[u8], b: &[u8]) -> Common {
    let mut up = vec![0u64; (a.len() * b.len()).div_ceil(64)];
    let length = fill(a, b, |cell| up[cell / 64] |= 1 << (cell % 64));
    let goes_up = |i: usize, j: usize| {
        let cell = i * b.len() + j;
        up[cell / 64] & (1 << (cell % 64)) != 0
    };
    let mut matches: Vec<Match> = Vec::new();
    let mut contiguous = false;
    let (mut i, mut j) = (a.len(), b.len());
    while i > 0 && j > 0 {
        if a[i - 1] != b[j - 1] {
            contiguous = false;
            if goes_up(i - 1, j - 1) {
                i -= 1
            } else {
                j -= 1
            }
            continue;
        }
        (i, j) = (i - 1, j - 1);
        let length = match matches.pop_if(|_| contiguous) {
            Some(run) => run.length + 1,
            None => 1,
        };
        matches.push(Match {
            in_a: i,
            in_b: j,
            length,
        });
        contiguous = true;
    }
    Common { length, matches }
}

/// Computes the table and returns its last cell. Calls `up` with every cell whose sequence came
/// from the cell above rather than from the left. Cells count row by row, one row per byte of `a`.
fn fill(a: &[u8], b: &[u8], mut up: impl FnMut(usize)) -> usize {
    let mut row = vec![0u32; b.len() + 1];
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let (left, above) = (row[j], row[j + 1]);
            row[j + 1] = if x == y {
                diagonal + 1
            } else if above > left {
                up(i * b.len() + j);
                above
            } else {
                left
            };
            diagonal = above;
        }
    }
    row[b.len()] as usize
}

impl Common {
    /// The sequence itself.
    pub fn text(&self, a: &[u8]) -> Vec<u8> {
        let runs = self.matches.iter().rev();
        runs.flat_map(|run| &a[run.in_a..run.in_a + run.length])
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `text; in_a-in_b+length …`
    fn show(a: &str, b: &str) -> String {
        let common = find(a.as_bytes(), b.as_bytes());
        let text = String::from_utf8_lossy(&common.text(a.as_bytes())).into_owned();
        let runs = common
            .matches
            .iter()
            .map(|m| format!(" {}-{}+{}", m.in_a, m.in_b, m.length));
        format!("{text};{}", runs.collect::<String>())
    }

    #[test]
    fn as_redis_answers() {
        for (a, b, expected) in [
            ("ohmytext", "mynewtext", "mytext; 4-5+4 2-0+2"),
            ("", "x", ";"),
            ("x", "", ";"),
            ("abc", "xyz", ";"),
            ("abcab", "ab", "ab; 3-0+2"),
            ("ab", "abcab", "ab; 0-3+2"),
            ("aXbXc", "aYbYc", "abc; 4-4+1 2-2+1 0-0+1"),
        ] {
            assert_eq!(show(a, b), expected, "{a} {b}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn is_common_and_as_long_as_the_table_says(a in "[abc]{0,40}", b in "[abc]{0,40}") {
            let (a, b) = (a.as_bytes(), b.as_bytes());
            let common = find(a, b);
            prop_assert_eq!(common.length, length(a, b));
            prop_assert_eq!(common.length, length(b, a));
            prop_assert_eq!(common.matches.iter().map(|m| m.length).sum::<usize>(), common.length);
            for run in &common.matches {
                prop_assert_eq!(&a[run.in_a..run.in_a + run.length], &b[run.in_b..run.in_b + run.length]);
            }
            for pair in common.matches.windows(2) {
                prop_assert!(pair[1].in_a + pair[1].length <= pair[0].in_a);
                prop_assert!(pair[1].in_b + pair[1].length <= pair[0].in_b);
            }
        }
    }
}
