//! A strict reader of Prometheus's text format, version 0.0.4: what Prometheus would take in spite
//! of a mistake is refused.

use std::collections::{BTreeMap, BTreeSet};

pub type Labels = BTreeMap<String, String>;

/// The metrics of one name.
#[derive(Clone, Debug, Default)]
pub struct Family {
    pub kind: String,
    /// What comes after the family's name (`_sum` and the like), labels, value.
    pub samples: Vec<(String, Labels, f64)>,
}

#[derive(Clone, Debug)]
pub struct Metrics(pub BTreeMap<String, Family>);

impl Metrics {
    /// Panics where the page breaks the rules.
    #[track_caller]
    pub fn read(page: &str) -> Metrics {
        assert!(page.ends_with('\n'), "the last line has no end");
        let mut families: BTreeMap<String, Family> = BTreeMap::new();
        let mut series = BTreeSet::new();
        let mut lines = page.lines();
        let mut current = String::new();
        while let Some(line) = lines.next() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help");
                assert!(!help.is_empty() && !help.contains('\\'), "{line}");
                let kind = lines
                    .next()
                    .and_then(|next| next.strip_prefix(&format!("# TYPE {name} ")));
                let kind = kind.unwrap_or_else(|| panic!("no TYPE after {line}"));
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{name}: {kind}");
                current = name.to_owned();
                let family = Family {
                    kind: kind.to_owned(),
                    samples: Vec::new(),
                };
                assert!(families.insert(current.clone(), family).is_none(), "{name} comes twice");
                continue;
            }
            assert!(!line.starts_with('#') && !line.is_empty(), "{line:?}");
            let (name, labels, value) = sample(line);
            assert!(series.insert((name.clone(), labels.clone())), "{line} comes twice");
            let family = families.get_mut(&current).expect("HELP comes first");
            let suffix = name
                .strip_prefix(&current)
                .unwrap_or_else(|| panic!("{line} below {current}"));
            let suffixes: &[&str] = match &*family.kind {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(suffixes.contains(&suffix), "{line} below {current}");
            assert!(family.kind == "gauge" || value >= 0.0, "{line}");
            family.samples.push((suffix.to_owned(), labels, value));
        }
        for (name, family) in &families {
            assert!(!family.samples.is_empty(), "{name} has no sample");
            if family.kind == "histogram" {
                check_histogram(name, family);
            }
        }
        Metrics(families)
    }

    /// The value of a series; its labels as `name=value,name=value`. For parts of histograms the
    /// name has the suffix.
    pub fn value(&self, name: &str, labels: &str) -> Option<f64> {
        let wanted: Labels = labels
            .split(',')
            .filter_map(|label| label.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let (of, suffix) = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| Some((name.strip_suffix(suffix)?, *suffix)))
            .unwrap_or((name, ""));
        let mut samples = self.0.get(of)?.samples.iter();
        samples
            .find(|(known, labels, _)| known == suffix && *labels == wanted)
            .map(|(_, _, value)| *value)
    }

    /// Every series of counters and histograms.
    pub fn counters(&self) -> impl Iterator<Item = ((&str, &str, &Labels), f64)> {
        let families = self.0.iter().filter(|(_, family)| family.kind != "gauge");
        families.flat_map(|(name, family)| {
            let samples = family.samples.iter();
            samples.map(move |(suffix, labels, value)| ((&**name, &**suffix, labels), *value))
        })
    }
}

/// Name, labels and value of a line.
fn sample(line: &str) -> (String, Labels, f64) {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let end = line.find(|c| !is_of_name(c)).expect("a name ends");
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"").expect("a label");
            assert!(!label.is_empty() && label.chars().all(is_of_name), "{line}");
            let (value, after) = quoted(after);
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            match after.split_at(1) {
                (",", after) => rest = after,
                ("}", after) => {
                    rest = after;
                    break;
                }
                _ => panic!("{line}"),
            }
        }
    }
    let value = rest.strip_prefix(' ').expect("one space before the value");
    assert!(!value.contains(' '), "{line}");
    (name.to_owned(), labels, value.parse().expect("a number"))
}

/// The value of a label, and what comes after its quote.
fn quoted(text: &str) -> (String, &str) {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.push(match chars.next() {
                Some((_, 'n')) => '\n',
                Some((_, c @ ('\\' | '"'))) => c,
                other => panic!("{other:?} after a backslash"),
            }),
            c => value.push(c),
        }
    }
    panic!("a label without its end: {text:?}")
}

/// The samples of a histogram with the same labels.
#[derive(Default)]
struct Histogram {
    /// Bounds and counts.
    buckets: Vec<(f64, f64)>,
    sum: Option<f64>,
    count: Option<f64>,
}

/// Buckets grow with their bounds up to the count.
fn check_histogram(name: &str, family: &Family) {
    let mut by_labels: BTreeMap<Labels, Histogram> = BTreeMap::new();
    for (suffix, labels, value) in &family.samples {
        let mut labels = labels.clone();
        let bound = labels.remove("le");
        assert_eq!(bound.is_some(), suffix == "_bucket", "{name}");
        let histogram = by_labels.entry(labels).or_default();
        match (bound, &**suffix) {
            (Some(bound), _) => histogram.buckets.push((bound.parse().expect("a bound"), *value)),
            (None, "_sum") => histogram.sum = Some(*value),
            (None, _) => histogram.count = Some(*value),
        }
    }
    for (labels, Histogram { buckets, sum, count }) in by_labels {
        assert!(sum.is_some(), "{name} {labels:?} has no sum");
        let rises = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
        assert!(buckets.windows(2).all(rises), "{name} {labels:?}: {buckets:?}");
        let last = buckets.last().expect("buckets");
        assert_eq!((last.0, Some(last.1)), (f64::INFINITY, count), "{name} {labels:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_refused() {
        let good = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"1\\n\\\"\"} 1\n";
        assert_eq!(Metrics::read(good).0["a_total"].samples[0].1["x"], "1\n\"");
        let histogram = |buckets: &str| {
            let buckets: String = buckets
                .split(' ')
                .map(|b| {
                    let (le, count) = b.split_once(':').expect("a bucket");
                    format!("h_bucket{{le=\"{le}\"}} {count}\n")
                })
                .collect();
            format!("# HELP h H.\n# TYPE h histogram\n{buckets}h_sum 1\nh_count 2\n")
        };
        Metrics::read(&histogram("0.1:1 +Inf:2"));
        for wrong in [
            "a_total 1\n".to_owned(),
            "# TYPE a_total counter\na_total 1\n".to_owned(),
            format!("{good}a_total{{x=\"1\\n\\\"\"}} 2\n"),
            format!("{good}{good}"),
            good.trim_end().to_owned(),
            good.replace("} 1", "}  1"),
            good.replace("a_total{", "b_total{"),
            histogram("0.1:1"),
            histogram("0.1:2 0.2:1 +Inf:2"),
            histogram("0.1:1 +Inf:3"),
        ] {
            assert!(std::panic::catch_unwind(|| Metrics::read(&wrong)).is_err(), "{wrong}");
        }
    }
}
