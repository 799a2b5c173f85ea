//! Log lines that strangers can cause are written sparingly: a flood of them would hide other lines
//! and fill the disk.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Time between two lines.
const PAUSE: Duration = Duration::from_secs(10);

/// One kind of line, written at most once in [`PAUSE`].
#[derive(Default)]
pub struct Sparing {
    state: Mutex<Suppression>,
}

#[derive(Default)]
struct Suppression {
    last: Option<Instant>,
    suppressed: u64,
}

impl Sparing {
    /// Writes the line, or counts it if the last one is too recent. `line` gets the number of
    /// suppressed lines since the last one.
    pub fn warn(&self, line: impl FnOnce(u64)) {
        let suppressed = {
            let mut state = self.state.lock();
            if state.last.is_some_and(|last| last.elapsed() < PAUSE) {
                state.suppressed += 1;
                return;
            }
            state.last = Some(Instant::now());
            std::mem::take(&mut state.suppressed)
        };
        line(suppressed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line() {
        let (sparing, mut lines) = (Sparing::default(), Vec::new());
        for _ in 0..5 {
            sparing.warn(|suppressed| lines.push(suppressed));
        }
        sparing.state.lock().last = Instant::now().checked_sub(PAUSE);
        sparing.warn(|suppressed| lines.push(suppressed));
        assert_eq!(lines, [0, 4]);
    }
}
