//! HyperLogLogs: the bytes that Redis has for them, and the estimate.
//!
//! The hash of an element picks one of 16,384 registers. A register keeps the longest run of zero
//! bits, plus one, that its elements had in the rest of their hashes. How many registers have which
//! value tells about how many elements were different.
//!
//! The bytes begin with a header:
//!
//! | bytes | what they are |
//! |---|---|
//! | 0 to 3 | `HYLL` |
//! | 4 | the form: 0 dense, 1 sparse |
//! | 5 to 7 | not used |
//! | 8 to 15 | a count that Redis keeps, little endian; not valid if the highest bit is set |
//!
//! The dense form has six bits for each register, the lowest bits of a byte first. The sparse form
//! has runs of registers that have the same value:
//!
//! | bits | a run of |
//! |---|---|
//! | `00llllll` | `l + 1` zeros |
//! | `01llllll llllllll` | `l + 1` zeros |
//! | `1vvvvvll` | `l + 1` registers of the value `v + 1` |
//!
//! The bytes may come from a client. So anything can be in them.

use std::fmt::Write;

/// How many registers there are.
pub const REGISTERS: usize = 1 << INDEX_BITS;
/// Bits of the hash that pick the register.
const INDEX_BITS: u32 = 14;
/// The highest value that an element can give a register.
const MOST: usize = 64 - INDEX_BITS as usize + 1;
/// Bits of a register in the dense form.
const BITS: usize = 6;

const MAGIC: &[u8] = b"HYLL";
const FORM: usize = 4;
const SPARSE: u8 = 1;
const HEADER: usize = 16;
const DENSE_BYTES: usize = HEADER + REGISTERS * BITS / 8;
/// The last byte of the count in the header, and its bit that says that it is not valid.
const COUNT_END: usize = HEADER - 1;
const NOT_VALID: u8 = 1 << 7;

/// The sparse form has more or fewer registers than it must.
#[derive(Debug, PartialEq, Eq)]
pub struct Corrupted;

/// The bytes of a HyperLogLog, to be read.
#[derive(Clone, Copy)]
pub struct View<'b>(&'b [u8]);

/// Registers that have the same value.
#[derive(Clone, Copy)]
struct Run {
    value: u8,
    registers: usize,
    /// Bytes that it takes. The second one may be missing at the end; it then counts as 0.
    bytes: usize,
}

impl Run {
    const MOST_ZEROS: usize = 64;
    const MOST_VALUES: usize = 4;
    const HIGHEST_VALUE: u8 = 32;

    /// The run at the start of these bytes.
    fn first(bytes: &[u8]) -> Option<Run> {
        let [first, behind @ ..] = bytes else {
            return None;
        };
        let low = usize::from(first & 0x3f);
        Some(match first >> 6 {
            0 => Run {
                value: 0,
                registers: low + 1,
                bytes: 1,
            },
            1 => Run {
                value: 0,
                registers: (low << 8 | usize::from(behind.first().copied().unwrap_or(0))) + 1,
                bytes: 2,
            },
            _ => Run {
                value: (first >> 2 & 0x1f) + 1,
                registers: usize::from(first & 3) + 1,
                bytes: 1,
            },
        })
    }

    /// Appends a run, unless it is one of no registers.
    fn put(value: u8, registers: usize, out: &mut Vec<u8>) {
        match (value, registers) {
            (_, 0) => {}
            (0, 1..=Run::MOST_ZEROS) => out.push((registers - 1) as u8),
            (0, _) => out.extend([0x40 | ((registers - 1) >> 8) as u8, (registers - 1) as u8]),
            (value, _) => out.push(0x80 | (value - 1) << 2 | (registers - 1) as u8),
        }
    }
}

/// The runs of the sparse form, each with its place.
struct Runs<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Iterator for Runs<'_> {
    type Item = (usize, Run);

    fn next(&mut self) -> Option<(usize, Run)> {
        let at = self.at;
        let run = Run::first(self.bytes.get(at..)?)?;
        self.at += run.bytes;
        Some((at, run))
    }
}

impl<'b> View<'b> {
    /// `None` if the bytes are no HyperLogLog at all.
    pub fn new(bytes: &'b [u8]) -> Option<Self> {
        let form = *bytes.get(FORM)?;
        let is_one = bytes.len() >= HEADER
            && bytes.starts_with(MAGIC)
            && form <= SPARSE
            && (form == SPARSE || bytes.len() == DENSE_BYTES);
        is_one.then_some(View(bytes))
    }

    pub fn is_dense(self) -> bool {
        self.0[FORM] != SPARSE
    }

    fn runs(self) -> Runs<'b> {
        Runs {
            bytes: self.0,
            at: HEADER,
        }
    }

    fn dense_registers(self) -> impl Iterator<Item = u8> {
        self.0[HEADER..].as_chunks::<3>().0.iter().flat_map(|[a, b, c]| {
            let four = u32::from_le_bytes([*a, *b, *c, 0]);
            [0, 6, 12, 18].map(|shift| (four >> shift) as u8 & 0x3f)
        })
    }

    /// About how many different elements were added.
    pub fn count(self) -> Result<i64, Corrupted> {
        if self.0[COUNT_END] & NOT_VALID == 0 {
            let (count, _) = self.0[HEADER - 8..].split_at(8);
            return Ok(count.iter().rfold(0, |count, byte| count << 8 | i64::from(*byte)));
        }
        if self.is_dense() {
            return Ok(estimate(self.dense_registers().map(|value| (value, 1))));
        }
        let all: usize = self.runs().map(|(_, run)| run.registers).sum();
        match all {
            REGISTERS => Ok(estimate(self.runs().map(|(_, run)| (run.value, run.registers)))),
            _ => Err(Corrupted),
        }
    }

    /// Raises each register to its value here.
    pub fn merge_into(self, registers: &mut Registers) -> Result<(), Corrupted> {
        if self.is_dense() {
            for (register, value) in registers.0.iter_mut().zip(self.dense_registers()) {
                *register = value.max(*register);
            }
            return Ok(());
        }
        let mut first = 0;
        for (_, run) in self.runs() {
            let registers = registers.0[first..].get_mut(..run.registers).ok_or(Corrupted)?;
            if run.value > 0 {
                registers
                    .iter_mut()
                    .for_each(|register| *register = run.value.max(*register));
            }
            first += run.registers;
        }
        if first == REGISTERS { Ok(()) } else { Err(Corrupted) }
    }

    /// The runs of the sparse form as text. No valid one has more than there are registers.
    pub fn describe(self) -> Result<String, Corrupted> {
        let mut text = String::new();
        for (place, (_, run)) in self.runs().enumerate() {
            if place == REGISTERS {
                return Err(Corrupted);
            }
            let _ = match (run.value, run.bytes) {
                (0, 1) => write!(text, "z:{} ", run.registers),
                (0, _) => write!(text, "Z:{} ", run.registers),
                (value, _) => write!(text, "v:{value},{} ", run.registers),
            };
        }
        text.truncate(text.trim_end().len());
        Ok(text)
    }
}

/// The values of all registers.
pub struct Registers(pub Vec<u8>);

impl Default for Registers {
    fn default() -> Self {
        Registers(vec![0; REGISTERS])
    }
}

impl Registers {
    /// About how many different elements were added.
    pub fn count(&self) -> i64 {
        estimate(self.0.iter().map(|value| (*value, 1)))
    }
}

/// The estimate of Otmar Ertl, "New cardinality estimation algorithms for HyperLogLog sketches"
/// (arXiv:1702.01284), from registers: values, each with how many have it.
fn estimate(registers: impl Iterator<Item = (u8, usize)>) -> i64 {
    /// `0.5 / ln(2)`.
    const ALPHA: f64 = 0.721_347_520_444_481_7;
    const ALL: f64 = REGISTERS as f64;
    let mut histogram = [0.0; 1 << BITS];
    for (value, registers) in registers {
        histogram[usize::from(value)] += registers as f64;
    }
    let mut sum = ALL * tau((ALL - histogram[MOST]) / ALL);
    for registers in histogram[1..MOST].iter().rev() {
        sum = (sum + registers) * 0.5;
    }
    sum += ALL * sigma(histogram[0] / ALL);
    let count = (ALPHA * ALL * ALL / sum).round();
    // Only registers that no elements have given can lead here. Redis answers the lowest integer.
    if count < i64::MAX as f64 {
        count as i64
    } else {
        i64::MIN
    }
}

/// `x + 1 x² + 2 x⁴ + 4 x⁸ + …`
fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let (mut factor, mut sum) = (1.0, x);
    loop {
        x *= x;
        let before = sum;
        sum += x * factor;
        factor += factor;
        if sum == before {
            return sum;
        }
    }
}

/// A third of `1 - x - ½ (1 - x^½)² - ¼ (1 - x^¼)² - …`
fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut factor, mut sum) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = sum;
        factor *= 0.5;
        sum -= (1.0 - x) * (1.0 - x) * factor;
        if sum == before {
            return sum / 3.0;
        }
    }
}

/// A HyperLogLog that is changed.
pub struct Sketch {
    bytes: Vec<u8>,
}

impl From<View<'_>> for Sketch {
    fn from(view: View<'_>) -> Self {
        Sketch { bytes: view.0.to_vec() }
    }
}

impl Sketch {
    /// One without elements.
    pub fn empty() -> Self {
        let mut bytes = MAGIC.to_vec();
        bytes.resize(HEADER, 0);
        bytes[FORM] = SPARSE;
        Run::put(0, REGISTERS, &mut bytes);
        Sketch { bytes }
    }

    pub fn view(&self) -> View<'_> {
        View(&self.bytes)
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Bytes that a change may go through.
    pub fn work(&self) -> usize {
        if self.view().is_dense() { BITS } else { self.bytes.len() }
    }

    /// Marks the count that Redis keeps as not valid.
    pub fn forget_count(&mut self) {
        self.bytes[COUNT_END] |= NOT_VALID;
    }

    /// Adds an element. Returns whether a register changed. A sparse form that would get longer
    /// than so many bytes becomes dense.
    pub fn add(&mut self, element: &[u8], most_sparse: usize) -> Result<bool, Corrupted> {
        let hash = murmur(element);
        let rest = hash >> INDEX_BITS | 1 << (64 - INDEX_BITS);
        let register = hash as usize & (REGISTERS - 1);
        self.raise(register, rest.trailing_zeros() as u8 + 1, most_sparse)
    }

    /// Raises a register to a value, which is at least 1. Returns whether it changed.
    pub fn raise(&mut self, register: usize, value: u8, most_sparse: usize) -> Result<bool, Corrupted> {
        if !self.view().is_dense() {
            if value <= Run::HIGHEST_VALUE
                && let Some(changed) = self.raise_sparse(register, value, most_sparse)?
            {
                return Ok(changed);
            }
            self.make_dense()?;
        }
        Ok(self.raise_dense(register, value))
    }

    fn raise_dense(&mut self, register: usize, value: u8) -> bool {
        let (at, shift) = (HEADER + register * BITS / 8, register * BITS % 8);
        let second = self.bytes.get(at + 1).copied().unwrap_or(0);
        let two = u16::from_le_bytes([self.bytes[at], second]);
        if two >> shift & 0x3f >= u16::from(value) {
            return false;
        }
        let [first, second] = (two & !(0x3f << shift) | u16::from(value) << shift).to_le_bytes();
        self.bytes[at] = first;
        if let Some(place) = self.bytes.get_mut(at + 1) {
            *place = second;
        }
        true
    }

    /// As [`Sketch::raise`]. `None`: the sparse form would become too long.
    fn raise_sparse(&mut self, register: usize, value: u8, most: usize) -> Result<Option<bool>, Corrupted> {
        let (mut first, mut previous) = (0, HEADER);
        let found = self.view().runs().find(|(at, run)| {
            let is_it = register < first + run.registers;
            if !is_it {
                first += run.registers;
                previous = *at;
            }
            is_it
        });
        let (at, run) = found.ok_or(Corrupted)?;
        if run.value >= value {
            return Ok(Some(false));
        }
        let before = register - first;
        let mut runs = Vec::with_capacity(5);
        Run::put(run.value, before, &mut runs);
        Run::put(value, 1, &mut runs);
        Run::put(run.value, run.registers - before - 1, &mut runs);
        let len = self.bytes.len() + runs.len() - run.bytes;
        if runs.len() > run.bytes && len > most {
            return Ok(None);
        }
        let end = self.bytes.len().min(at + run.bytes);
        self.bytes.splice(at..end, runs);
        self.bytes.truncate(len);
        self.join_runs(previous);
        self.forget_count();
        Ok(Some(true))
    }

    /// Joins runs of the same value that stand side by side, among a few from this one on. These
    /// are as many as in Redis, for the bytes to be the same.
    fn join_runs(&mut self, mut at: usize) {
        const STEPS: usize = 5;
        for _ in 0..STEPS {
            let Some(run) = self.bytes.get(at..).and_then(Run::first) else {
                return;
            };
            let next = self.bytes.get(at + 1..).and_then(Run::first);
            let joined = next.filter(|next| run.value > 0 && next.value == run.value);
            let registers = joined.map_or(usize::MAX, |next| next.registers + run.registers);
            if registers > Run::MOST_VALUES {
                at += run.bytes;
                continue;
            }
            let mut one = Vec::with_capacity(1);
            Run::put(run.value, registers, &mut one);
            self.bytes.splice(at..at + 2, one);
        }
    }

    /// Changes the sparse form into the dense one.
    pub fn make_dense(&mut self) -> Result<(), Corrupted> {
        if self.view().is_dense() {
            return Ok(());
        }
        let mut registers = Registers::default();
        self.view().merge_into(&mut registers)?;
        self.bytes.truncate(HEADER);
        self.bytes[FORM] = 0;
        for four in registers.0.as_chunks::<4>().0 {
            let bits = four
                .iter()
                .rfold(0, |bits: u32, value| bits << BITS | u32::from(*value));
            self.bytes.extend_from_slice(&bits.to_le_bytes()[..3]);
        }
        Ok(())
    }

    /// The value of every register.
    pub fn registers(&self) -> Result<Registers, Corrupted> {
        let mut registers = Registers::default();
        self.view().merge_into(&mut registers)?;
        Ok(registers)
    }
}

/// MurmurHash64A (<https://github.com/aappleby/smhasher/blob/master/src/MurmurHash2.cpp>).
fn murmur(bytes: &[u8]) -> u64 {
    const SEED: u64 = 0xadc8_3b19;
    const FACTOR: u64 = 0xc6a4_a793_5bd1_e995;
    const SHIFT: u32 = 47;
    let mix = |word: u64| {
        let word = word.wrapping_mul(FACTOR);
        (word ^ word >> SHIFT).wrapping_mul(FACTOR)
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(FACTOR);
    for word in words {
        hash = (hash ^ mix(u64::from_le_bytes(*word))).wrapping_mul(FACTOR);
    }
    if !rest.is_empty() {
        let mut word = [0; 8];
        word[..rest.len()].copy_from_slice(rest);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(FACTOR);
    }
    hash = (hash ^ hash >> SHIFT).wrapping_mul(FACTOR);
    hash ^ hash >> SHIFT
}

/// Compares the two forms with each other, and the estimate with the truth.
pub fn self_test(seed: u64) -> Result<(), String> {
    const ELEMENTS: u64 = 100_000;
    const SPARSE_BYTES: usize = 3_000;
    // Six times the standard error.
    let tolerance = 6.0 * 1.04 / (REGISTERS as f64).sqrt();
    let (mut sketch, mut dense) = (Sketch::empty(), Sketch::empty());
    let corrupted = |_: Corrupted| "TESTFAILED a valid form was taken for a corrupted one".to_owned();
    dense.make_dense().map_err(corrupted)?;
    let mut checkpoint = 1;
    for number in 1..=ELEMENTS {
        let element = (number ^ seed).to_le_bytes();
        let changed = sketch.add(&element, SPARSE_BYTES).map_err(corrupted)?;
        if dense.add(&element, 0).map_err(corrupted)? != changed {
            return Err(format!("TESTFAILED dense/sparse disagree. card:{number}"));
        }
        if number != checkpoint {
            continue;
        }
        checkpoint *= 10;
        if sketch.view().is_dense() && number < SPARSE_BYTES as u64 / 2 {
            return Err("TESTFAILED sparse encoding not used".to_owned());
        }
        dense.forget_count();
        let (count, other) = (sketch.view().count(), dense.view().count());
        let (count, other) = (count.map_err(corrupted)?, other.map_err(corrupted)?);
        if count != other || sketch.registers().map_err(corrupted)?.0 != dense.registers().map_err(corrupted)?.0 {
            return Err(format!("TESTFAILED dense/sparse disagree. card:{number}"));
        }
        let error = count.abs_diff(number as i64);
        if error as f64 > (tolerance * number as f64).ceil() {
            return Err(format!("TESTFAILED Too big error. card:{number} abserr:{error}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST_SPARSE: usize = 3_000;

    fn sketch_of(elements: &[Vec<u8>], most_sparse: usize) -> Sketch {
        let mut sketch = Sketch::empty();
        for element in elements {
            sketch.add(element, most_sparse).expect("it is valid");
        }
        sketch.forget_count();
        sketch
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn bytes_are_those_of_redis() {
        let abc = sketch_of(&[b"a".to_vec(), b"b".to_vec(), b"c".to_vec()], MOST_SPARSE);
        assert_eq!(
            abc.view().describe().as_deref(),
            Ok("Z:8436 v:1,1 Z:4274 v:2,1 Z:3068 v:1,1 Z:603")
        );
        assert_eq!(
            hex(&abc.bytes),
            "48594c4c01000000000000000000008060f38050b1844bfb80425a"
        );
        assert_eq!(abc.view().count(), Ok(3));
    }

    #[test]
    fn counts_that_no_elements_give() {
        let mut full = Sketch::empty();
        full.make_dense().expect("it is valid");
        full.bytes[HEADER..].fill(0xff);
        full.forget_count();
        assert_eq!(full.view().count(), Ok(i64::MIN));
        full.bytes[HEADER..].fill(0);
        assert_eq!(full.view().count(), Ok(0));
        full.bytes[8..16].copy_from_slice(&[1, 2, 0, 0, 0, 0, 0, 0x7f]);
        assert_eq!(full.view().count(), Ok(0x7f00_0000_0000_0201));
    }

    #[test]
    fn it_tests_itself() {
        for seed in [0, 1, u64::MAX, rand::random()] {
            assert_eq!(self_test(seed), Ok(()), "seed {seed}");
        }
    }

    #[test]
    fn runs_are_joined() {
        let mut sketch = Sketch::empty();
        for register in [5, 7, 6, 4, 3, 8, 100] {
            assert_eq!(sketch.raise(register, 9, MOST_SPARSE), Ok(true));
            assert_eq!(sketch.raise(register, 9, MOST_SPARSE), Ok(false));
        }
        let runs = sketch.view().describe().expect("it is valid");
        assert_eq!(runs, "z:3 v:9,1 v:9,4 v:9,1 Z:91 v:9,1 Z:16283");
        // A higher value splits the run that it is in.
        assert_eq!(sketch.raise(5, 10, MOST_SPARSE), Ok(true));
        let runs = sketch.view().describe().expect("it is valid");
        assert_eq!(runs, "z:3 v:9,2 v:10,1 v:9,3 Z:91 v:9,1 Z:16283");
    }

    #[test]
    fn what_sparse_has_no_room_for_is_dense() {
        let mut sketch = Sketch::empty();
        assert_eq!(sketch.raise(REGISTERS - 1, 32, MOST_SPARSE), Ok(true));
        assert!(!sketch.view().is_dense());
        assert_eq!(sketch.raise(0, 33, MOST_SPARSE), Ok(true));
        assert_eq!(sketch.bytes.len(), DENSE_BYTES);
        let registers = sketch.registers().expect("it is valid").0;
        assert_eq!((registers[0], registers[1], registers[REGISTERS - 1]), (33, 0, 32));

        let mut sketch = Sketch::empty();
        assert_eq!(sketch.raise(9, 1, HEADER + 2), Ok(true));
        assert!(sketch.view().is_dense());
    }

    /// Bytes of a HyperLogLog with some of them changed, added or cut off.
    fn corrupted() -> impl Strategy<Value = Vec<u8>> {
        let elements = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..300);
        let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
        let tail = prop::collection::vec(any::<u8>(), 0..4);
        (elements, any::<bool>(), changes, tail, 0..3_usize).prop_map(|(elements, dense, changes, tail, cut)| {
            let mut bytes = sketch_of(&elements, if dense { 0 } else { MOST_SPARSE }).bytes;
            bytes.extend(tail);
            bytes.truncate(bytes.len() - cut);
            for (place, byte) in changes {
                let place = HEADER - 1 + place.index(bytes.len() - HEADER + 1);
                bytes[place] = byte;
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn both_forms_say_the_same(elements in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..500)) {
            let (sparse, dense) = (sketch_of(&elements, usize::MAX), sketch_of(&elements, 0));
            prop_assert!(!sparse.view().is_dense() && (dense.view().is_dense() || elements.is_empty()));
            prop_assert_eq!(&sparse.registers().expect("valid").0, &dense.registers().expect("valid").0);
            prop_assert_eq!(sparse.view().count(), dense.view().count());
            prop_assert_eq!(sparse.view().count(), Ok(dense.registers().expect("valid").count()));
            let mut made = sparse;
            made.make_dense().expect("valid");
            prop_assert!(elements.is_empty() || made.bytes == dense.bytes);
        }

        #[test]
        fn corrupted_bytes_do_no_harm(bytes in corrupted(), more in prop::collection::vec(any::<u64>(), 0..50)) {
            let Some(view) = View::new(&bytes) else {
                return Ok(());
            };
            let _ = (view.count(), view.describe(), view.merge_into(&mut Registers::default()));
            let mut sketch = Sketch::from(view);
            for number in &more {
                if sketch.add(&number.to_le_bytes(), MOST_SPARSE).is_err() {
                    break;
                }
            }
            let _ = (sketch.registers().is_ok(), sketch.make_dense());
            // A form that is valid stays so.
            if view.merge_into(&mut Registers::default()).is_ok() {
                prop_assert!(sketch.view().merge_into(&mut Registers::default()).is_ok());
            }
        }

        #[test]
        fn any_bytes_do_no_harm(tail in prop::collection::vec(any::<u8>(), 0..50), register in 0..REGISTERS, value in 1..52_u8) {
            let mut bytes = b"HYLL\x01\0\0\0\0\0\0\0\0\0\0\x80".to_vec();
            bytes.extend(tail);
            let mut sketch = Sketch::from(View::new(&bytes).expect("a header is enough"));
            let _ = (sketch.view().count(), sketch.view().describe());
            let _ = (sketch.raise(register, value, MOST_SPARSE), sketch.make_dense());
        }
    }
}
