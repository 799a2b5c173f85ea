//! The benchmark works: every row runs against the real parts and every reply is right. No time is judged.

mod slow {
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;

    use crate::support::{process, server};

    const LIMIT: Duration = Duration::from_secs(900);

    /// The rows, as the benchmark lists them.
    fn rows(run: &Path) -> Vec<String> {
        let mut list = Command::new(run);
        list.args(["--smoke", "--list"]);
        let output = process::run("bench/run --list", list, b"", LIMIT);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines()
            .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
            .collect()
    }

    #[test]
    fn every_row_of_the_benchmark_runs() {
        let run = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/run");
        let rows = rows(&run);
        assert!(rows.len() > 20, "{rows:?}");
        let mut smoke = Command::new(&run);
        smoke.arg("--smoke").arg("--binary").arg(server::binary());
        // `cargo test` has built the examples beside the tests; `cargo test --test it` leaves that to bench/run.
        let test = std::env::current_exe().expect("this test has a path");
        let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/it");
        if profile.join("examples/fill_topic").is_file() {
            smoke.arg("--examples").arg(profile.join("examples"));
        }
        let output = process::run("bench/run --smoke", smoke, b"", LIMIT);
        let progress = String::from_utf8_lossy(&output.stderr).into_owned();
        for row in rows {
            let measured = format!("{row}: ");
            let found = progress.lines().any(|line| line.starts_with(&measured));
            assert!(found, "{row} was not measured:\n{progress}");
        }
    }
}
