//! The report as bars: one group per case, one bar per candidate, a whisker from least to greatest.

use crate::report::{Case, Report, Series};
use std::fmt::Write;

const LEFT: f64 = 160.0;
const WIDTH: f64 = 620.0;
const BAR: f64 = 15.0;
const LINE: f64 = BAR + 3.0;
const GAP: f64 = 14.0;

/// The same for a candidate in all groups.
fn colour(name: &str) -> &'static str {
    match name {
        crate::OURS => "#1f5fbf",
        "testpmd-io" => "#9aa5b1",
        "testpmd-mac" => "#7a9e7e",
        "ovs-dpdk" => "#c9a227",
        _ => "#b5651d",
    }
}

/// An SVG that any browser shows.
#[must_use]
pub fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut y = 60.0;
    for case in &report.cases {
        y = group(&mut body, case, y) + GAP;
    }
    let m = &report.machine;
    let head = format!(
        "commit {}, {} ({} cores), Linux {}; median, whiskers from least to greatest run",
        report.commit, m.cpu, m.cores, m.kernel
    );
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1080\" height=\"{:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"24\" font-size=\"16\">Bowline beside its peers</text>\n\
         <text x=\"16\" y=\"42\" fill=\"#555\">{}</text>\n{body}</svg>\n",
        y + 20.0,
        escape(&head)
    )
}

/// A line with the case's name, and its bars, scaled to the longest; the next free line.
fn group(out: &mut String, case: &Case, top: f64) -> f64 {
    let all: Vec<(&str, &Series)> = std::iter::once((crate::OURS, &case.ours))
        .chain(case.peers.iter().map(|(name, series)| (name.as_str(), series)))
        .collect();
    let longest = all.iter().map(|(_, s)| s.max).fold(1e-9, f64::max);
    let mut size = String::new();
    if case.size_bytes > 0 {
        let _ = write!(size, ", {} B", case.size_bytes);
    }
    if case.flows > 1 {
        let _ = write!(size, ", {} flows", case.flows);
    }
    let mut y = top;
    let _ = writeln!(
        out,
        "<text x=\"16\" y=\"{:.1}\" font-weight=\"bold\">{}{size}</text>",
        y + 12.0,
        escape(&case.case)
    );
    for (name, series) in all {
        y += LINE;
        let cycles = case.cycles.get(name).filter(|_| case.unit == "pps");
        let note = cycles.map(|c| format!(", {:.0} cycles per packet", c.median));
        bar(out, (name, series), y, longest, (case.unit, &note.unwrap_or_default()));
    }
    y + LINE
}

fn bar(
    out: &mut String,
    (name, series): (&str, &Series),
    y: f64,
    longest: f64,
    (unit, note): (&str, &str),
) {
    let x = |value: f64| LEFT + WIDTH * value / longest;
    let middle = y + BAR / 2.0;
    let text = match unit {
        "pps" => format!("{:.2} Mpps", series.median / 1e6),
        "bps" => format!("{:.2} Gb/s", series.median / 1e9),
        _ => format!("{:.2} µs", series.median / 1e3),
    };
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
         <rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"/>\
         <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"black\"/>\
         <text x=\"{:.1}\" y=\"{:.1}\">{text}{note}</text>",
        LEFT - 6.0,
        y + 12.0,
        escape(name),
        x(series.median) - LEFT,
        colour(name),
        x(series.min),
        x(series.max),
        x(series.max) + 6.0,
        y + 12.0,
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::candidate::Load;
    use crate::report::{Metric, Sample};
    use std::collections::BTreeMap;

    #[test]
    fn every_candidate_has_a_bar() {
        let sample = |rate| vec![Sample { rate, ..Sample::default() }];
        let samples = BTreeMap::from([
            (crate::OURS.to_owned(), sample(2e6)),
            ("a<b".to_owned(), sample(1e6)),
        ]);
        let machine = crate::report::Machine {
            cpu: "x & y".into(),
            cores: 2,
            memory_mib: 1,
            kernel: "k".into(),
            hugepages_free: 0,
        };
        let cases = vec![Case::of("c", Load::of(64), Metric::Pps, &samples)];
        let text = svg(&Report { machine, commit: "abc".into(), cases });
        assert_eq!(text.matches("<rect x=").count(), 2);
        assert!(
            text.contains("2.00 Mpps") && text.contains("a&lt;b") && text.contains("x &amp; y")
        );
        assert!(text.ends_with("</svg>\n"));
    }
}
