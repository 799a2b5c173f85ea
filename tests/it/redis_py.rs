//! redis-py's own tests, from its source distribution: what they ask of a server, Highwater does,
//! but for the tests that `tests/redis-py-skips.txt` lists with a reason.
//!
//! The list is the difference to what redis-server does, so only Highwater is run here.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::server::Highwater;
use crate::support::{parts, process};

/// What a run may take: the longest takes a minute on a machine that does nothing else.
const RUN: Duration = Duration::from_secs(400);
/// Clusters, modules and TLS need servers of their own.
const MARKERS: &str = "not onlycluster and not redismod and not ssl";

#[test]
fn commands() {
    check(&["test_commands"], 400);
}

#[test]
fn messages() {
    check(&["test_keyspace_notifications", "test_monitor", "test_pubsub"], 230);
}

#[test]
fn pipelines_scripts_and_locks() {
    let files = [
        "test_cache",
        "test_encoding",
        "test_function",
        "test_lock",
        "test_multiprocessing",
        "test_pipeline",
        "test_scripting",
    ];
    check(&files, 140);
}

/// Runs the tests of these files, of which `at_least` so many must pass whatever the list says.
fn check(files: &[&str], at_least: usize) {
    let highwater = Highwater::builder().args(&["--fsync", "no"]).start();
    let mut skips = skips();
    skips.retain(|skip| files.contains(&skip.file()));
    let (run, output) = run(files, highwater.port, &skips);
    let problems = run.problems(&skips, at_least);
    assert!(problems.is_empty(), "{}\n{output}", problems.join("\n"));
}

fn run(files: &[&str], port: u16, skips: &[Skip]) -> (Run, String) {
    let mut pytest = Command::new(parts::python());
    pytest
        .args(["-m", "pytest", "-m", MARKERS, "--redis-url"])
        .arg(format!("redis://127.0.0.1:{port}/0"))
        // A line for each test at the end. Short stack traces: the long ones take seconds each.
        .args(["--quiet", "-rA", "--tb", "native", "-p", "no:cacheprovider"])
        .args(["-o", "addopts=", "-o", "filterwarnings=ignore"])
        .env("COLUMNS", "500")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(parts::redis_py_source());
    for skip in skips.iter().filter(|skip| !skip.run) {
        pytest.args(["--deselect", &skip.test]);
    }
    pytest.args(files.iter().map(|file| format!("tests/{file}.py")));
    let outcome = process::try_run(pytest, b"", RUN).expect("start Python");
    let ended = outcome.status.and_then(|status| status.code());
    // 0: all tests passed, 1: some did not.
    assert!(matches!(ended, Some(0 | 1)), "pytest: {}", outcome.text());
    (read_output(&String::from_utf8_lossy(&outcome.stdout)), outcome.text())
}

/// Reads the lines at the end of pytest's output. A test whose end failed has passed and failed.
fn read_output(text: &str) -> Run {
    let mut run = Run::default();
    for line in text.lines() {
        let Some((status, rest)) = line.split_once(" tests/") else {
            continue;
        };
        let test = format!("tests/{}", rest.split(" - ").next().unwrap_or(rest));
        match status {
            "PASSED" => run.passed.insert(test),
            "FAILED" | "ERROR" => run.failed.insert(test),
            _ => continue,
        };
    }
    run
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Run {
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
}

impl Run {
    fn problems(&self, skips: &[Skip], at_least: usize) -> Vec<String> {
        let listed = |test: &str| skips.iter().any(|skip| skip.run && skip.test == test);
        let failed = self.failed.iter().filter(|test| !listed(test));
        let mut problems: Vec<String> = failed.map(|test| format!("not passed: {test}")).collect();
        let must_fail = skips.iter().filter(|skip| skip.run);
        problems.extend(
            must_fail
                .filter(|skip| !self.failed.contains(&skip.test))
                .map(|skip| format!("did not fail, take it out of {LIST}: {}", skip.test)),
        );
        let passed = self.passed.difference(&self.failed).count();
        println!("{passed} passed, {} in the list", skips.len());
        if passed < at_least {
            problems.push(format!("{passed} passed, at least {at_least} must"));
        }
        problems
    }
}

// ---- the list ----

const LIST: &str = "tests/redis-py-skips.txt";

#[derive(Debug, PartialEq, Eq)]
struct Skip {
    /// `tests/FILE.py::CLASS::TEST`, as pytest names it.
    test: String,
    /// Whether it may run at all.
    run: bool,
}

impl Skip {
    /// The name of its file.
    fn file(&self) -> &str {
        let file = self.test.split(".py::").next().unwrap_or_default();
        file.trim_start_matches("tests/")
    }
}

fn skips() -> Vec<Skip> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(LIST);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {LIST}: {error}"));
    let lines = text.lines().map(str::trim);
    let entries = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    entries.map(read_skip).collect()
}

fn read_skip(line: &str) -> Skip {
    let parts: Vec<&str> = line.split('|').map(str::trim).collect();
    let &[kind @ ("fails" | "skip"), test, reason] = parts.as_slice() else {
        panic!("{LIST}: not 'fails | test | reason' nor 'skip | test | reason': {line}");
    };
    let named = test.starts_with("tests/") && test.contains(".py::") && !reason.is_empty();
    assert!(named, "{LIST}: no test or no reason: {line}");
    Skip {
        test: test.to_owned(),
        run: kind == "fails",
    }
}

#[test]
fn self_check_of_the_list_and_of_what_pytest_prints() {
    let text = "..F\nPASSED tests/test_a.py::A::one\nPASSED tests/test_a.py::A::end\n\
        FAILED tests/test_a.py::A::two[x] - assert 1 == 2\nERROR tests/test_a.py::A::end - E\n\
        SKIPPED [1] tests/test_a.py:7: reason\n1 failed, 2 passed\n";
    let run = read_output(text);
    let names = |names: [&str; 2]| names.map(|name| format!("tests/test_a.py::A::{name}")).into();
    let expected = Run {
        passed: names(["one", "end"]),
        failed: names(["two[x]", "end"]),
    };
    assert_eq!(run, expected);
    assert_eq!(run.problems(&[], 1).len(), 2);
    assert_eq!(run.problems(&[], 2).len(), 3, "one test is too few");
    let skips = [
        read_skip("fails | tests/test_a.py::A::two[x] | reason"),
        read_skip("fails | tests/test_a.py::A::end | reason"),
        read_skip("fails | tests/test_a.py::A::one | reason"),
        read_skip("skip | tests/test_a.py::A::three | reason"),
    ];
    assert_eq!(skips[0].file(), "test_a");
    assert_eq!(run.problems(&skips, 1).len(), 1, "one passed");
}
