//! Why a test fails, said once more after the logs of its servers: where only the end of what a
//! test prints is kept, those logs would hide it.

use std::panic::PanicHookInfo;
use std::sync::{Mutex, Once, PoisonError};

/// How many are kept. Tests run side by side, and one test may have several threads.
const KEPT: usize = 3;
/// Of each: enough for a message, too little for a whole history.
const CHARACTERS: usize = 1_000;

static LAST: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// From now on panics are kept, besides being told as usual.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            remember(info);
            usual(info);
        }));
    });
}

fn remember(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let text = format!("{}: {info}", thread.name().unwrap_or("a thread without a name"));
    let text = text.chars().take(CHARACTERS).collect();
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.len() == KEPT {
        last.remove(0);
    }
    last.push(text);
}

/// The last panics of all tests, the newest at the end.
pub fn last() -> String {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
}
