//! Samples as tables: printed, and in `docs/performance.md`, where each row has a section between markers of its own, so
//! that a run replaces the rows that it measured and leaves the others and the text around them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::bench::Sample;
use crate::machine;
use crate::options::Options;
use crate::plot;
use crate::rows::{Compare, ROWS, Row};
use crate::servers::Site;
use crate::support::parts;

const BEGIN: &str = "<!-- bench/run: what stands from here on is rewritten by it -->";
const END: &str = "<!-- bench/run: up to here -->";

/// What the figures were measured with.
#[derive(Serialize)]
pub struct About {
    pub date: String,
    machine: String,
    versions: String,
    sizes: String,
    command: String,
}

impl About {
    pub fn find(options: &Options, site: &Site) -> Result<About> {
        let mut version = Command::new(&site.highwater);
        version.arg("--version");
        let mut redis = parts::redis_server();
        redis.arg("--version");
        let redis = machine::first_line(redis)?;
        let redis = redis.split("v=").nth(1).and_then(|rest| rest.split(' ').next());
        let mut date = Command::new("date");
        date.args(["-u", "+%Y-%m-%d"]);
        let kafka = match &options.bootstrap_servers {
            Some(_) => "a Kafka that was given".to_owned(),
            None => format!("Apache Kafka {}", parts::KAFKA_VERSION),
        };
        Ok(About {
            date: machine::first_line(date)?,
            machine: machine::describe(),
            versions: format!(
                "{}, redis-server {}, {kafka}",
                machine::first_line(version)?,
                redis.unwrap_or("of an unknown version")
            ),
            sizes: format!(
                "{} clients, {} keys, values of {} B, {} s each, unless the row says otherwise",
                options.clients,
                thousands(options.range().count as f64, 0),
                options.value_bytes,
                options.time().as_secs_f64()
            ),
            command: std::env::args()
                .skip(1)
                .fold("bench/run".to_owned(), |line, arg| line + " " + &arg),
        })
    }

    /// One line for the section of a row.
    fn line(&self, rounds: u32) -> String {
        format!(
            "`{}`, {}: {}; {}; {}; medians of {rounds} round{}.",
            self.command,
            self.date,
            self.machine,
            self.versions,
            self.sizes,
            if rounds == 1 { "" } else { "s" }
        )
    }
}

/// All rows that have samples.
pub fn tables(rows: &[&'static Row], samples: &[Sample], about: &About) -> String {
    let sections = rows.iter().filter_map(|row| section(row, samples, about));
    sections.collect::<Vec<_>>().join("\n")
}

fn section(row: &Row, samples: &[Sample], about: &About) -> Option<String> {
    let samples: Vec<&Sample> = samples.iter().filter(|sample| sample.row == row.name).collect();
    let rounds = samples.iter().map(|sample| sample.round + 1).max()?;
    let mut text = format!("### {}\n\n{}", row.title, row.about);
    if !row.goal.is_empty() {
        write!(text, " Goal: {}.", row.goal).expect("a string takes all");
    }
    write!(text, "\n\n{}", table(row, &samples)).expect("a string takes all");
    writeln!(text, "\n<sub>{}</sub>", about.line(rounds)).expect("a string takes all");
    Some(text)
}

fn table(row: &Row, samples: &[&Sample]) -> String {
    let has = |figure: &str| samples.iter().any(|sample| sample.figures.contains_key(figure));
    let columns: Vec<_> = row.columns.iter().filter(|column| has(column.figure)).collect();
    let mut headers = vec![String::new(), "server".to_owned()];
    for column in &columns {
        headers.push(column.header.to_owned());
        headers.extend(compared_header(row, column.figure));
    }
    let mut text = format!(
        "| {} |\n|---|---|{}\n",
        headers.join(" | "),
        "---:|".repeat(headers.len() - 2)
    );
    for (case, server) in in_order(samples) {
        let mut cells = vec![case.to_owned(), server.to_owned()];
        for column in &columns {
            let median = median(figures(samples, case, server, column.figure));
            cells.push(median.map_or_else(String::new, |median| thousands(median, column.decimals)));
            if compared_header(row, column.figure).is_some() {
                cells.push(compared(row, samples, case, server, column.figure));
            }
        }
        writeln!(text, "| {} |", cells.join(" | ")).expect("a string takes all");
    }
    text
}

/// The header of the comparison that follows this figure's column, if there is one.
fn compared_header(row: &Row, figure: &str) -> Option<String> {
    match row.compare {
        Compare::Ratio(compared, against) if compared.contains(&figure) => Some(format!("of {}", against.name())),
        Compare::Difference(compared, against) if compared == figure => Some(format!("over {against}")),
        _ => None,
    }
}

/// The median over the rounds of what the figure is beside the other server's in the same round.
fn compared(row: &Row, samples: &[&Sample], case: &str, server: &str, figure: &str) -> String {
    let beside = |against: &str, how: fn(f64, f64) -> f64| {
        let others = figures(samples, case, against, figure);
        let own = figures(samples, case, server, figure).into_iter();
        let each = own.filter_map(|(round, value)| Some((round, how(value, *others.get(&round)?))));
        median(each.filter(|(_, compared)| compared.is_finite()).collect())
    };
    match row.compare {
        Compare::Nothing => None,
        Compare::Ratio(_, against) => {
            beside(against.name(), |own, other| own / other).map(|ratio| format!("{ratio:.2} ×"))
        }
        Compare::Difference(_, against) => {
            beside(against, |own, other| own - other).map(|difference| format!("{difference:+.0}"))
        }
    }
    .unwrap_or_default()
}

/// A figure in each round.
fn figures(samples: &[&Sample], case: &str, server: &str, figure: &str) -> BTreeMap<u32, f64> {
    let of_server = samples
        .iter()
        .filter(|sample| sample.case == case && sample.server == server);
    of_server
        .filter_map(|sample| Some((sample.round, *sample.figures.get(figure)?)))
        .collect()
}

fn median(rounds: BTreeMap<u32, f64>) -> Option<f64> {
    let mut values: Vec<f64> = rounds.into_values().collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        even if even % 2 == 0 => Some((values[middle - 1] + values[middle]) / 2.0),
        _ => Some(values[middle]),
    }
}

/// Cases and servers in the order in which they were first measured.
fn in_order<'a>(samples: &[&'a Sample]) -> Vec<(&'a str, &'a str)> {
    let mut seen = Vec::new();
    for sample in samples {
        let pair = (sample.case.as_str(), sample.server.as_str());
        if !seen.contains(&pair) {
            seen.push(pair);
        }
    }
    seen
}

/// `1234567.8` as `1,234,568`.
pub fn thousands(number: f64, decimals: usize) -> String {
    let plain = format!("{number:.decimals$}");
    let (whole, rest) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut text = String::new();
    for (position, digit) in whole.char_indices() {
        let left = whole.len() - position;
        if position > 0 && left % 3 == 0 && !text.ends_with('-') {
            text.push(',');
        }
        text.push(digit);
    }
    text + rest
}

// ---- the document ----

/// Replaces the sections of the measured rows, and writes their plots.
pub fn write_docs(root: &Path, rows: &[&'static Row], samples: &[Sample], about: &About) -> Result<()> {
    let plots = root.join("docs/plots");
    fs::create_dir_all(&plots).context("create docs/plots")?;
    let mut sections = BTreeMap::new();
    for row in rows {
        let Some(mut section) = section(row, samples, about) else {
            continue;
        };
        if let Some(svg) = plot_of(row, samples) {
            fs::write(plots.join(format!("{}.svg", row.name)), svg).context("write a plot")?;
            writeln!(section, "\n![{}](plots/{}.svg)", row.title, row.name)?;
        }
        sections.insert(row.name, section);
    }
    let path = root.join("docs/performance.md");
    let old = fs::read_to_string(&path).context("read docs/performance.md")?;
    fs::write(&path, merged(&old, &sections)).context("write docs/performance.md")
}

fn plot_of(row: &Row, samples: &[Sample]) -> Option<String> {
    let samples: Vec<&Sample> = samples.iter().filter(|sample| sample.row == row.name).collect();
    let series: Vec<(&str, &[u64])> = samples
        .iter()
        .filter(|sample| sample.each_second.len() > 1)
        .map(|sample| (sample.server.as_str(), sample.each_second.as_slice()))
        .collect();
    if !series.is_empty() {
        return Some(plot::lines(row.title, "per second", &series));
    }
    let column = row.columns.first()?;
    let bars: Vec<plot::Bar> = in_order(&samples)
        .into_iter()
        .filter_map(|(case, server)| {
            let value = median(figures(&samples, case, server, column.figure))?;
            Some(plot::Bar {
                group: case,
                name: server,
                value,
                shown: thousands(value, column.decimals),
            })
        })
        .collect();
    (bars.len() > 1).then(|| plot::bars(row.title, column.header, &bars))
}

/// The document with these sections instead of the old ones, in the order of the rows.
fn merged(document: &str, new: &BTreeMap<&'static str, String>) -> String {
    let (before, old, after) = match document.split_once(BEGIN) {
        Some((before, rest)) => {
            let (old, after) = rest.split_once(END).unwrap_or((rest, ""));
            (before, old, after)
        }
        None => (document, "", ""),
    };
    let mut text = format!("{before}{BEGIN}\n");
    for row in ROWS {
        let (begin, end) = (format!("<!-- {} -->\n", row.name), format!("<!-- /{} -->\n", row.name));
        let kept = || {
            let (_, rest) = old.split_once(&begin)?;
            Some(rest.split_once(&end)?.0.to_owned())
        };
        if let Some(section) = new.get(row.name).cloned().or_else(kept) {
            write!(text, "\n{begin}{section}{end}").expect("a string takes all");
        }
    }
    text + "\n" + END + after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_thousands() {
        assert_eq!(thousands(1_234_567.8, 0), "1,234,568");
        assert_eq!(thousands(999.0, 0), "999");
        assert_eq!(thousands(-1234.56, 1), "-1,234.6");
        assert_eq!(thousands(-123.0, 0), "-123");
    }

    #[test]
    fn a_run_replaces_its_rows_and_keeps_the_others() {
        let first = merged(
            "text\n",
            &BTreeMap::from([("get", "old get\n".into()), ("set", "old set\n".into())]),
        );
        let second = merged(&(first + "\nmore\n"), &BTreeMap::from([("set", "new set\n".into())]));
        assert!(second.starts_with("text\n") && second.ends_with("\nmore\n"));
        assert!(second.contains("old get") && second.contains("new set") && !second.contains("old set"));
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let sample = |server: &str, round, value| Sample {
            row: "get",
            case: "c".into(),
            server: server.into(),
            round,
            figures: BTreeMap::from([("per_second", value)]),
            each_second: Vec::new(),
        };
        let samples = [
            sample("redis", 0, 100.0),
            sample("x", 0, 200.0),
            sample("redis", 1, 10.0),
            sample("x", 1, 20.0),
        ];
        let samples: Vec<&Sample> = samples.iter().collect();
        assert_eq!(compared(&ROWS[0], &samples, "c", "x", "per_second"), "2.00 ×");
    }
}
