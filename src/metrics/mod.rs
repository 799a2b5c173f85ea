//! What `/metrics` shows, in the text format of Prometheus, version 0.0.4:
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.
//!
//! Each family of metrics is one row of [`GROUPS`]: its name by Prometheus's rules, its type, its
//! labels, its help, and how it is read. `docs/metrics.md` is made from the rows. Values are read
//! when somebody asks; nothing is counted for metrics that is not counted anyway.

mod commands;
#[cfg(test)]
mod doc;
mod log;
mod node;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::command::Shared;
use crate::telemetry::histogram::Times;

/// The `Content-Type` of the page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the buckets of histograms, in nanoseconds: from a microsecond to 17 seconds,
/// each four times the one before.
const BUCKETS: [u64; 13] = {
    let mut bounds = [1 << 10; 13];
    let mut at = 1;
    while at < bounds.len() {
        bounds[at] = bounds[at - 1] * 4;
        at += 1;
    }
    bounds
};

/// Every family, in groups with their headings.
const GROUPS: &[(&str, &[Family])] = &[
    ("Process", node::PROCESS),
    ("Status", node::STATUS),
    ("Clients", node::CLIENTS),
    ("Memory", node::MEMORY),
    ("Commands", commands::FAMILIES),
    ("Writes and records", log::RECORDS),
    ("Positions", log::POSITIONS),
    ("Log", log::LOG),
    ("Store", log::STORE),
    ("Messages and notifications", node::MESSAGES),
];

/// Metrics of one name.
struct Family {
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    read: Read,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// How a family is read.
enum Read {
    /// One value without labels.
    One(fn(&Shared) -> f64),
    /// Any number of values.
    Each(fn(&Shared, &mut Samples<'_>)),
}

/// Takes in the values of one family.
struct Samples<'t> {
    family: &'static Family,
    text: &'t mut String,
}

/// All metrics of this node.
pub fn render(shared: &Shared) -> String {
    let mut text = String::new();
    for family in GROUPS.iter().flat_map(|(_, families)| families.iter()) {
        family.render(shared, &mut text);
    }
    text
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

impl Family {
    /// What never goes down while the node runs, until CONFIG RESETSTAT.
    const fn counter(name: &'static str, help: &'static str, read: fn(&Shared) -> f64) -> Family {
        Family::one(Kind::Counter, name, help, read)
    }

    const fn gauge(name: &'static str, help: &'static str, read: fn(&Shared) -> f64) -> Family {
        Family::one(Kind::Gauge, name, help, read)
    }

    const fn one(kind: Kind, name: &'static str, help: &'static str, read: fn(&Shared) -> f64) -> Family {
        Family {
            name,
            kind,
            labels: &[],
            help,
            read: Read::One(read),
        }
    }

    const fn each(
        kind: Kind,
        (name, labels): (&'static str, &'static [&'static str]),
        help: &'static str,
        read: fn(&Shared, &mut Samples<'_>),
    ) -> Family {
        Family {
            name,
            kind,
            labels,
            help,
            read: Read::Each(read),
        }
    }

    /// Adds the family, if it has values.
    fn render(&'static self, shared: &Shared, text: &mut String) {
        let begin = text.len();
        let (name, kind) = (self.name, self.kind.name());
        put(
            text,
            format_args!("# HELP {name} {}\n# TYPE {name} {kind}\n", self.help),
        );
        let head = text.len();
        let mut samples = Samples { family: self, text };
        match self.read {
            Read::One(read) => samples.add(&[], read(shared)),
            Read::Each(read) => read(shared, &mut samples),
        }
        if text.len() == head {
            text.truncate(begin);
        }
    }
}

impl Samples<'_> {
    /// Adds a value. `labels`: the values of the family's labels, in their order.
    fn add(&mut self, labels: &[&str], value: f64) {
        self.line("", labels, None, value);
    }

    /// Adds a histogram of durations; nothing if there were none.
    fn durations(&mut self, labels: &[&str], times: &Times) {
        if times.total == 0 {
            return;
        }
        for (bound, count) in BUCKETS.iter().zip(times.below(BUCKETS)) {
            let bound = (*bound as f64 / 1e9).to_string();
            self.line("_bucket", labels, Some(&bound), count as f64);
        }
        self.line("_bucket", labels, Some("+Inf"), times.total as f64);
        self.line("_sum", labels, None, times.seconds());
        self.line("_count", labels, None, times.total as f64);
    }

    fn line(&mut self, suffix: &str, values: &[&str], bound: Option<&str>, value: f64) {
        debug_assert_eq!(self.family.labels.len(), values.len(), "{}", self.family.name);
        self.text.extend([self.family.name, suffix]);
        let labels = self.family.labels.iter().copied().zip(values.iter().copied());
        let mut before = '{';
        for (label, value) in labels.chain(bound.map(|bound| ("le", bound))) {
            put(self.text, format_args!("{before}{label}=\"{}\"", escaped(value)));
            before = ',';
        }
        let end = if before == ',' { "}" } else { "" };
        put(self.text, format_args!("{end} {value}\n"));
    }
}

/// The value of a label, as the format writes it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    text.write_fmt(what).expect("a string takes everything");
}

fn get(counter: &AtomicU64) -> f64 {
    counter.load(Ordering::Relaxed) as f64
}

fn used(counter: &AtomicUsize) -> f64 {
    counter.load(Ordering::Relaxed) as f64
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::telemetry::histogram::Histogram;

    static OF_TEST: Family = Family::each(Kind::Histogram, ("test_seconds", &["name"]), "Help.", |_, _| {});

    #[test]
    fn names_follow_the_rules_of_prometheus() {
        let mut names = BTreeSet::new();
        for family in GROUPS.iter().flat_map(|(_, families)| families.iter()) {
            let Family { name, kind, help, .. } = family;
            let is_ours = name.starts_with("highwater_") || name.starts_with("process_");
            assert!(
                is_ours && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                "{name}"
            );
            assert_eq!(*kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert_eq!(
                *kind == Kind::Histogram,
                name.ends_with("_seconds") && name.contains("_command_"),
                "{name}"
            );
            for word in ["_ms", "_milliseconds", "_kb", "_percent", "_count", "_sum", "_bucket"] {
                assert!(!name.ends_with(word), "{name}");
            }
            assert!(help.ends_with('.') && !help.contains(['\n', '\\']), "{name}: {help}");
            assert!(names.insert(*name), "{name} is there twice");
        }
        assert!(names.len() > 60, "{}", names.len());
    }

    #[test]
    fn lines_are_those_of_the_text_format() {
        let mut text = String::new();
        let mut samples = Samples {
            family: &OF_TEST,
            text: &mut text,
        };
        samples.add(&["a\"b\\c\nd"], 1e15);
        let histogram = Histogram::default();
        samples.durations(&["none"], &Times::of([&histogram].into_iter()));
        histogram.add(Duration::from_nanos(1_000));
        histogram.add(Duration::from_secs(60));
        samples.durations(&["x"], &Times::of([&histogram].into_iter()));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], r#"test_seconds{name="a\"b\\c\nd"} 1000000000000000"#);
        assert_eq!(lines[1], r#"test_seconds_bucket{name="x",le="0.000001024"} 1"#);
        assert_eq!(lines[13], r#"test_seconds_bucket{name="x",le="17.179869184"} 1"#);
        assert_eq!(lines[14], r#"test_seconds_bucket{name="x",le="+Inf"} 2"#);
        let sum = lines[15]
            .strip_prefix(r#"test_seconds_sum{name="x"} "#)
            .expect("the sum");
        assert!((58.8..61.2).contains(&sum.parse::<f64>().expect("a number")), "{sum}");
        assert_eq!(lines[16..], [r#"test_seconds_count{name="x"} 2"#]);
    }
}
