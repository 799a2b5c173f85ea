//! What jemalloc, the program's allocator, tells of itself, and how it gives free memory back.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::ptr::null_mut;

use tikv_jemalloc_sys::{mallctl, malloc_stats_print};

/// The allocator's own report.
pub fn report() -> String {
    unsafe extern "C" fn append(report: *mut c_void, text: *const c_char) {
        // SAFETY: `report` is the vector below, which nothing else uses meanwhile. `text` is a
        // string that ends with NUL.
        let (report, text) = unsafe { (&mut *report.cast::<Vec<u8>>(), CStr::from_ptr(text)) };
        report.extend_from_slice(text.to_bytes());
    }
    let mut report: Vec<u8> = Vec::new();
    // SAFETY: the callback takes this vector, and is called before this call returns.
    unsafe { malloc_stats_print(Some(append), (&raw mut report).cast(), std::ptr::null()) };
    String::from_utf8_lossy(&report).into_owned()
}

/// Gives all free pages back to the system.
pub fn purge() -> io::Result<()> {
    /// 4096 stands for all arenas (`MALLCTL_ARENAS_ALL`).
    const PURGE: &CStr = c"arena.4096.purge";
    // SAFETY: the name ends with NUL. Nothing is read and nothing written.
    let outcome: c_int = unsafe { mallctl(PURGE.as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
    match outcome {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocator_reports_and_gives_memory_back() {
        drop(vec![1_u8; 64 << 20]);
        purge().expect("all arenas can be purged");
        let report = report();
        assert!(
            report.contains("jemalloc") && report.contains("tcache_max: 4096"),
            "{report}"
        );
    }
}
