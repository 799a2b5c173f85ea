//! `math.random`: the generator of Redis, so that a seed gives the same numbers. It is the linear
//! congruential generator of 48 bits that POSIX describes as `lrand48`.

pub struct Random(u64);

/// Greatest number that [`Random::next`] returns.
const MOST: u32 = i32::MAX as u32;

impl Random {
    pub fn seeded(seed: i32) -> Self {
        Random(u64::from(seed.cast_unsigned()) << 16 | 0x330E)
    }

    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(0x5_DEEC_E66D).wrapping_add(0xB) & 0xFFFF_FFFF_FFFF;
        (self.0 >> 17) as u32
    }

    /// A number from 0 up to, but without, 1.
    pub fn fraction(&mut self) -> f64 {
        f64::from(self.next() % MOST) / f64::from(MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_lrand48() {
        // What glibc answers after srand48(0).
        let mut random = Random::seeded(0);
        assert_eq!(
            [random.next(), random.next(), random.next()],
            [366_850_414, 1_610_402_240, 206_956_554]
        );
    }
}
