//! The arrows between the modules go one way (see `src/lib.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::support::tree::{files, root};

/// What each module of `src` may use of the others: all of them are here.
const MAY_USE: &[(&str, &[&str])] = &[
    // Tools, which know nothing of the server.
    ("files", &[]),
    ("striped", &[]),
    ("supervise", &[]),
    ("glob", &[]),
    ("room", &["files"]),
    // What is kept, and where.
    ("model", &[]),
    ("rdb", &["model"]),
    ("log", &["model", "files", "room", "supervise"]),
    ("store", &["model", "files", "room", "supervise"]),
    ("datadir", &["log", "files"]),
    ("database", &["model", "log", "store", "striped", "supervise"]),
    ("sweep", &["database", "log", "supervise"]),
    // How clients are served.
    ("acl", &["glob"]),
    ("resp", &[]),
    ("script", &["resp"]),
    ("config", &["model"]),
    ("telemetry", &["config", "striped", "supervise"]),
    (
        "command",
        &[
            "acl",
            "files",
            "glob",
            "model",
            "rdb",
            "database",
            "resp",
            "script",
            "config",
            "telemetry",
            "log",
            "store",
            "striped",
            "supervise",
        ],
    ),
    ("server", &["command", "resp", "config", "supervise"]),
    ("grpc", &["acl", "command", "database", "server", "supervise"]),
    ("metrics", &["acl", "command", "config", "database", "log", "telemetry"]),
    (
        "http",
        &["acl", "command", "config", "database", "log", "metrics", "server"],
    ),
    // Programs.
    ("probe", &["config", "server"]),
    ("import", &["model", "rdb", "config", "telemetry"]),
    ("export", &["files", "rdb", "config", "telemetry", "import"]),
    ("open", &["config", "database", "datadir", "log", "store"]),
    (
        "copy",
        &[
            "model",
            "config",
            "database",
            "datadir",
            "log",
            "open",
            "supervise",
            "telemetry",
        ],
    ),
    (
        "snapshot",
        &[
            "config",
            "copy",
            "database",
            "datadir",
            "files",
            "log",
            "model",
            "open",
            "store",
            "supervise",
            "telemetry",
        ],
    ),
    (
        "run",
        &[
            "acl",
            "command",
            "config",
            "database",
            "datadir",
            "files",
            "grpc",
            "http",
            "log",
            "open",
            "script",
            "server",
            "snapshot",
            "store",
            "supervise",
            "sweep",
            "telemetry",
        ],
    ),
];

/// A source without its comments, which may link where they like.
fn code(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The modules that a source names as `crate::module`, or in a group as `use crate::{module, …}`.
fn used(text: &str) -> BTreeSet<&str> {
    used_of(text, "crate::")
}

/// The same for what comes after another prefix.
fn used_of<'t>(text: &'t str, prefix: &str) -> BTreeSet<&'t str> {
    let mut used = BTreeSet::new();
    for rest in text.split(prefix).skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            used.insert(word(rest));
            continue;
        };
        let (mut depth, mut first) = (1, 0);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            let ends = depth == 0 || (depth == 1 && c == ',');
            if ends {
                used.insert(word(group[first..at].trim_start()));
                first = at + 1;
            }
            if depth == 0 {
                break;
            }
        }
    }
    used
}

#[test]
fn groups_of_used_modules_are_read() {
    let text = "use crate::a::X;\nuse crate::{b, c::{D, e},\n    f::g};\nlet x = crate::h::i(j);";
    let expected = ["a", "b", "c", "f", "h"];
    assert_eq!(used(text), expected.into());
}

#[test]
fn modules_use_only_what_they_may() {
    let src = root().join("src");
    let files = files(&["src"], ".rs");
    assert!(files.len() > 20, "the sources were not found");
    let modules: BTreeSet<&str> = MAY_USE.iter().map(|(module, _)| *module).collect();
    let (mut wrong, mut met) = (Vec::new(), BTreeSet::new());
    for path in &files {
        let relative = path.strip_prefix(&src).expect("under src");
        let name = relative
            .components()
            .next()
            .expect("a name")
            .as_os_str()
            .to_string_lossy();
        let module = name.trim_end_matches(".rs").to_owned();
        let allowed = MAY_USE.iter().find(|(name, _)| *name == module);
        if module != "lib" && module != "main" && allowed.is_none() {
            wrong.push(format!("{module} is not listed here"));
        }
        let text = code(&fs::read_to_string(path).expect("a source can be read"));
        for used in used(&text) {
            let may = allowed.is_none_or(|(_, allowed)| used == module || allowed.contains(&used));
            if modules.contains(used) && !may {
                wrong.push(format!("{}: {module} uses {used}", relative.display()));
            }
        }
        met.insert(module);
    }
    let gone = modules.iter().filter(|module| !met.contains(**module));
    wrong.extend(gone.map(|module| format!("{module} is listed here and does not exist")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What each module of `src/command` uses of the others, without its tests. The table names every
/// family: that is left out.
fn uses_in_command() -> BTreeMap<String, BTreeSet<String>> {
    let root = root().join("src/command");
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in files(&["src/command"], ".rs") {
        let relative = path.strip_prefix(&root).expect("below src/command");
        let first = relative.iter().next().expect("a name").to_string_lossy();
        let module = first.trim_end_matches(".rs").to_owned();
        if module == "mod" || module.ends_with("_tests") {
            continue;
        }
        let text = code(&fs::read_to_string(&path).expect("a source can be read"));
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let is_direct = relative.iter().count() == 1;
        let beside = if is_direct {
            used_of(text, "super::")
        } else {
            BTreeSet::new()
        };
        let named = used_of(text, "crate::command::").into_iter().chain(beside);
        uses.entry(module).or_default().extend(named.map(str::to_owned));
    }
    let table = fs::read_to_string(root.join("table.rs")).expect("a source can be read");
    if let Some(named) = uses.get_mut("table") {
        named.retain(|module| !table.contains(&format!("{module}::COMMANDS")));
    }
    uses
}

/// A module that uses nothing of the modules that are left is taken away, until none is left.
#[test]
fn the_modules_of_command_form_no_circle() {
    let mut uses = uses_in_command();
    assert!(uses.len() > 20, "the sources were not found");
    while let Some(free) = uses.iter().find_map(|(module, used)| {
        let is_free = used.iter().all(|used| used == module || !uses.contains_key(used));
        is_free.then(|| module.clone())
    }) {
        uses.remove(&free);
    }
    assert!(uses.is_empty(), "in a circle, or above one: {:?}", uses.keys());
}

/// Below a module of the list come only those above it: there is no circle.
#[test]
fn arrows_go_up_the_list() {
    let place = |module: &str| MAY_USE.iter().position(|(name, _)| *name == module);
    for (module, used) in MAY_USE {
        for used in *used {
            assert!(
                place(used).expect("listed") < place(module).expect("listed"),
                "{module} uses {used}"
            );
        }
    }
}
