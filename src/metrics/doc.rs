//! `docs/metrics.md`, made from the rows. `UPDATE_DOCS=1 cargo test --lib metrics` writes it.

use std::fmt::Write as _;
use std::path::Path;

use super::{Family, GROUPS};

const INTRODUCTION: &str = "\
# Metrics

`/metrics` at `--http-port` has these, in the text format of Prometheus. They are numbers of this
node since its start. `CONFIG RESETSTAT` sets many counters to 0, which Prometheus takes for a
restart.

    scrape_configs:
      - job_name: highwater
        basic_auth: { username: prometheus, password: LONG-PASSWORD }
        static_configs: [{ targets: ['127.0.0.1:9121'] }]

The user needs the right to run INFO, and no other (`ACL SETUSER prometheus on >PASSWORD +info`).
With `metrics-open yes` nobody needs a user: everybody who reaches the port sees the names of
topics, and how much the node holds and does. Keys and values are not shown.

A family without values is left out. Most counters by command begin with the first call.

This file is made from the table of metrics: `UPDATE_DOCS=1 cargo test --lib metrics` writes it.
";

/// The unit, which Prometheus has at the end of the name.
fn unit(family: &Family) -> &'static str {
    let name = family.name.trim_end_matches("_total");
    let units = ["seconds", "bytes", "records", "keys"];
    units.into_iter().find(|unit| name.ends_with(unit)).unwrap_or_default()
}

fn document() -> String {
    let mut text = INTRODUCTION.to_owned();
    for (heading, families) in GROUPS {
        let _ = write!(
            text,
            "\n## {heading}\n\n| name | type | labels | unit | what |\n|---|---|---|---|---|\n"
        );
        for family in *families {
            let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
            let _ = writeln!(
                text,
                "| `{}` | {} | {} | {} | {} |",
                family.name,
                family.kind.name(),
                labels.join(", "),
                unit(family),
                family.help
            );
        }
    }
    text
}

#[test]
fn the_document_of_metrics_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let document = document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &document).expect("docs/metrics.md can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == document,
        "docs/metrics.md is stale; write it with: UPDATE_DOCS=1 cargo test --lib metrics"
    );
}
