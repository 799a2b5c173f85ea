//! Which key comes next: uniform, zipfian, each in turn, or always the same one.

/// Skew of the zipfian keys, as YCSB has it.
const THETA: f64 = 0.99;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    Uniform,
    Zipf,
    /// Every key once, in order: to fill a server.
    InTurn,
    One,
}

/// A range of key numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Range {
    pub first: u64,
    pub count: u64,
}

pub struct Keys {
    range: Range,
    spread: Spread,
    random: Random,
    zipf: Zipf,
    turn: u64,
}

impl Keys {
    pub fn new(range: Range, spread: Spread, seed: u64) -> Keys {
        let zipf = match spread {
            Spread::Zipf => Zipf::new(range.count),
            _ => Zipf::default(),
        };
        Keys {
            range,
            spread,
            random: Random(seed),
            zipf,
            turn: 0,
        }
    }

    pub fn next(&mut self) -> u64 {
        let count = self.range.count;
        let number = match self.spread {
            Spread::Uniform => self.random.below(count),
            Spread::Zipf => scatter(self.zipf.rank(self.random.fraction())) % count,
            Spread::One => 0,
            Spread::InTurn => {
                self.turn += 1;
                (self.turn - 1) % count
            }
        };
        self.range.first + number
    }

    /// Any number of twelve digits.
    pub fn any(&mut self) -> u64 {
        self.random.below(1_000_000_000_000)
    }

    /// A number below 100, for mixing commands.
    pub fn percent(&mut self) -> u64 {
        self.random.below(100)
    }
}

/// Spreads popular keys over the whole range.
fn scatter(rank: u64) -> u64 {
    Random(rank).next()
}

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Ranks with zipfian popularity by Gray's approximation ("Quickly generating billion-record synthetic databases",
/// 1994): one power per rank instead of a search in a table.
#[derive(Default)]
struct Zipf {
    count: f64,
    sum: f64,
    alpha: f64,
    eta: f64,
}

impl Zipf {
    fn new(count: u64) -> Zipf {
        let sum_to = |last: u64| (1..=last).map(|rank| (rank as f64).powf(-THETA)).sum::<f64>();
        let sum = sum_to(count);
        let n = count as f64;
        Zipf {
            count: n,
            sum,
            alpha: 1.0 / (1.0 - THETA),
            eta: (1.0 - (2.0 / n).powf(1.0 - THETA)) / (1.0 - sum_to(2) / sum),
        }
    }

    fn rank(&self, fraction: f64) -> u64 {
        let scaled = fraction * self.sum;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5f64.powf(THETA) {
            return 1;
        }
        (self.count * (self.eta * fraction - self.eta + 1.0).powf(self.alpha)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: Range = Range {
        first: 1_000,
        count: 10_000,
    };

    fn counts(spread: Spread) -> Vec<u32> {
        let mut keys = Keys::new(RANGE, spread, 1);
        let mut counts = vec![0; RANGE.count as usize];
        for _ in 0..200_000 {
            counts[(keys.next() - RANGE.first) as usize] += 1;
        }
        counts
    }

    #[test]
    fn zipfian_keys_are_skewed_and_uniform_ones_are_not() {
        let zipf = counts(Spread::Zipf);
        // With 10,000 keys the most popular one has 1 / (sum of 1 / rank^0.99) = 9.9% of all.
        let most = *zipf.iter().max().expect("not empty");
        assert!((16_000..26_000).contains(&most), "{most}");
        let most = *counts(Spread::Uniform).iter().max().expect("not empty");
        assert!(most < 60, "{most}");
    }

    #[test]
    fn in_turn_is_every_key_once() {
        let mut keys = Keys::new(RANGE, Spread::InTurn, 1);
        let all: Vec<u64> = (0..RANGE.count).map(|_| keys.next()).collect();
        assert_eq!(all, (1_000..11_000).collect::<Vec<u64>>());
    }
}
