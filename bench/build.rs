//! The tests' helpers that fetch real parts (`src/support.rs`) look for `target` as Cargo tells it to tests.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!(
        "cargo::rustc-env=CARGO_TARGET_TMPDIR={}/../target/tmp",
        env!("CARGO_MANIFEST_DIR")
    );
}
