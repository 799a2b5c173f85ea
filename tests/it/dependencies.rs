//! What the program depends on: licences, sources and bans are those of `deny.toml`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{parts, process};

/// Advisories need the network, so CI asks for them elsewhere (`.github/workflows/ci.yml`).
#[test]
fn licences_and_sources_are_those_that_are_allowed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut deny = Command::new(parts::cargo_deny());
    deny.current_dir(root);
    deny.args(["--locked", "check", "licenses", "bans", "sources"]);
    let outcome = process::try_run(deny, b"", Duration::from_secs(120)).expect("cargo-deny can be started");
    let text = outcome.text();
    for checked in ["licenses ok", "bans ok", "sources ok"] {
        assert!(text.contains(checked), "{text}");
    }
}
