//! Log lines that strangers can cause are written sparingly: a flood of them would hide the others and fill the disk.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Time between two lines.
const PAUSE: Duration = Duration::from_secs(10);

/// One kind of line, at most one in [`PAUSE`].
#[derive(Default)]
pub struct Sparing {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

impl Sparing {
    /// Writes the line, which is told how many there were since the last one, or counts it.
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
