//! Plots as SVG, without any library: bars in groups, and lines over seconds.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const LABELS: f64 = 215.0;
const VALUES: f64 = 90.0;
const BAR: f64 = 18.0;
const TITLE: f64 = 44.0;
const PLOT_HEIGHT: f64 = 260.0;
/// Colours that people with colour-blindness tell apart (Okabe and Ito).
const COLOURS: [&str; 6] = ["#999999", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00"];

pub struct Bar<'a> {
    pub group: &'a str,
    pub name: &'a str,
    pub value: f64,
    /// The value as text.
    pub shown: String,
}

/// Horizontal bars; those of a group stand together, those of a name have one colour.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> String {
    let names = distinct(bars.iter().map(|bar| bar.name));
    let groups = distinct(bars.iter().map(|bar| bar.group));
    let most = bars.iter().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
    let height = TITLE + groups.len() as f64 * 24.0 + bars.len() as f64 * (BAR + 3.0) + 8.0;
    let mut svg = begin(title, unit, height);
    let mut y = TITLE;
    for group in groups {
        text(&mut svg, 8.0, y + 16.0, "font-weight=\"bold\"", group);
        y += 22.0;
        for bar in bars.iter().filter(|bar| bar.group == group) {
            let width = (bar.value / most * (WIDTH - LABELS - VALUES)).max(1.0);
            text(&mut svg, LABELS - 8.0, y + 13.0, "text-anchor=\"end\"", bar.name);
            let colour = colour(&names, bar.name);
            push(
                &mut svg,
                format_args!(
                    "<rect x=\"{LABELS}\" y=\"{y:.0}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
                ),
            );
            text(&mut svg, LABELS + width + 6.0, y + 13.0, "", &bar.shown);
            y += BAR + 3.0;
        }
        y += 2.0;
    }
    svg + "</svg>\n"
}

/// A line for each name, one value a second.
pub fn lines(title: &str, unit: &str, series: &[(&str, &[u64])]) -> String {
    let names = distinct(series.iter().map(|(name, _)| *name));
    let most = series
        .iter()
        .flat_map(|(_, values)| values.iter())
        .max()
        .copied()
        .unwrap_or(0)
        .max(1) as f64;
    let seconds = series.iter().map(|(_, values)| values.len()).max().unwrap_or(0).max(2) as f64;
    let (left, right, bottom) = (80.0, WIDTH - 20.0, TITLE + PLOT_HEIGHT);
    let mut svg = begin(title, unit, bottom + 44.0 + 18.0 * names.len() as f64);
    for step in 0..=4 {
        let y = bottom - PLOT_HEIGHT * f64::from(step) / 4.0;
        push(
            &mut svg,
            format_args!("<line x1=\"{left}\" y1=\"{y}\" x2=\"{right}\" y2=\"{y}\" stroke=\"#dddddd\"/>"),
        );
        let value = crate::report::thousands(most * f64::from(step) / 4.0, 0);
        text(&mut svg, left - 6.0, y + 4.0, "text-anchor=\"end\"", &value);
    }
    text(
        &mut svg,
        right,
        bottom + 18.0,
        "text-anchor=\"end\"",
        &format!("{seconds:.0} s"),
    );
    for (number, (name, values)) in series.iter().enumerate() {
        let mut points = String::new();
        for (second, value) in values.iter().enumerate() {
            let x = left + (right - left) * second as f64 / (seconds - 1.0);
            let y = bottom - PLOT_HEIGHT * *value as f64 / most;
            write!(points, "{x:.1},{y:.1} ").expect("a string takes all");
        }
        let colour = colour(&names, name);
        push(
            &mut svg,
            format_args!("<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"),
        );
        let y = bottom + 40.0 + 18.0 * number as f64;
        push(
            &mut svg,
            format_args!(
                "<rect x=\"{left}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>",
                y - 11.0
            ),
        );
        text(&mut svg, left + 18.0, y, "", name);
    }
    svg + "</svg>\n"
}

fn begin(title: &str, unit: &str, height: f64) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut svg, 8.0, 20.0, "font-size=\"15\"", &format!("{title}: {unit}"));
    svg
}

fn text(svg: &mut String, x: f64, y: f64, attributes: &str, text: &str) {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;");
    push(
        svg,
        format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{escaped}</text>"),
    );
}

fn push(svg: &mut String, line: std::fmt::Arguments) {
    writeln!(svg, "{line}").expect("a string takes all");
}

fn colour(names: &[&str], name: &str) -> &'static str {
    let number = names.iter().position(|other| *other == name).unwrap_or(0);
    COLOURS[number % COLOURS.len()]
}

fn distinct<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    all.for_each(|item| {
        if !seen.contains(&item) {
            seen.push(item);
        }
    });
    seen
}
