//! The arrows between the modules go one way (see `src/lib.rs`).

use std::fs;
use std::path::{Path, PathBuf};

/// What each module of `src` may use of the others.
const MAY_USE: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("log", &["model"]),
    ("store", &["model"]),
    ("resp", &[]),
    ("config", &["log"]),
    ("telemetry", &["config"]),
    ("database", &["model", "log", "store"]),
    ("command", &["model", "database", "resp", "config", "telemetry", "log", "store"]),
    ("server", &["command", "resp", "config", "telemetry"]),
    ("grpc", &["command", "database", "config", "server"]),
];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("src can be listed").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn modules_use_only_what_they_may() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 20, "the sources were not found");
    let mut wrong = Vec::new();
    for path in &files {
        let relative = path.strip_prefix(&src).expect("under src");
        let first = relative
            .components()
            .next()
            .expect("a name")
            .as_os_str()
            .to_string_lossy();
        let module = first.trim_end_matches(".rs").to_owned();
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            continue;
        };
        let text = fs::read_to_string(path).expect("a source can be read");
        for (number, line) in text.lines().enumerate() {
            for used in line.split("crate::").skip(1) {
                let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                let known = MAY_USE.iter().any(|(name, _)| *name == used);
                if known && used != module && !allowed.contains(&used.as_str()) {
                    wrong.push(format!("{}:{}: {module} uses {used}", relative.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that must not be:\n{}", wrong.join("\n"));
}
