//! The picture: a bar for each peer and workload, on a logarithmic scale.
//!
//! Written here since a chart library has no such chart: it would be told the same rectangles and words,
//! and bring a dozen crates.

use super::report::Report;
use super::stats::Measure;
use super::work::Workload;

const LEFT: f64 = 300.0;
const WIDTH: f64 = 900.0;
const BAR: f64 = 9.0;
const GAP: f64 = 10.0;
const TOP: f64 = 70.0;
/// Ends of the scale, in multiples of the kernel overlayfs's time.
const SCALE: (f64, f64) = (0.1, 20.0);
const MARKS: [f64; 8] = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0];
const COLOURS: [&str; 8] = [
    "#9e9e9e", "#c5b0d5", "#ff9896", "#d62728", "#ffbb78", "#1f77b4", "#2ca02c", "#17becf",
];

/// Where a multiple stands, from the left.
fn x(ratio: f64) -> f64 {
    let (least, most) = SCALE;
    let part = (ratio.clamp(least, most) / least).ln() / (most / least).ln();
    LEFT + part * WIDTH
}

/// Text with what XML has a meaning for written otherwise.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn text(at: (f64, f64), anchor: &str, words: &str) -> String {
    let (x, y) = at;
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>\n",
        escaped(words)
    )
}

/// The time of `peer` as a multiple; for a throughput, its inverse, so that shorter bars are better everywhere.
fn multiple(report: &Report, workload: &Workload, peer: &str) -> Option<f64> {
    let ratio = report.ratio(workload, peer)?;
    match workload.measure {
        Measure::Time => Some(ratio),
        Measure::Throughput => (ratio > 0.0).then(|| 1.0 / ratio),
        Measure::Latency => None,
    }
}

/// The whole picture.
pub(crate) fn picture(report: &Report) -> String {
    let peers: Vec<&String> = report.peers.iter().filter(|p| *p != "overlayfs").collect();
    let rows: Vec<_> = report
        .workloads
        .iter()
        .filter(|w| w.measure != Measure::Latency)
        .collect();
    #[allow(clippy::cast_precision_loss)] // A few dozen.
    let (bars, count) = (peers.len() as f64, rows.len() as f64);
    let row_height = bars * BAR + GAP;
    let height = TOP + count * row_height + 20.0;
    let width = LEFT + WIDTH + 60.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let title = "Time as a multiple of the kernel overlayfs's; shorter is better";
    svg += &text((LEFT, 16.0), "start", title);
    let mut at = LEFT;
    for (n, peer) in peers.iter().enumerate() {
        let colour = COLOURS[n % COLOURS.len()];
        svg += &format!(
            "<rect x=\"{at:.1}\" y=\"26\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\n"
        );
        svg += &text((at + 14.0, 36.0), "start", peer);
        at += WIDTH / bars.max(1.0);
    }
    for mark in MARKS {
        let (x, end) = (x(mark), height - 15.0);
        let colour = if mark == 1.0 { "black" } else { "#dddddd" };
        svg += &format!(
            "<line x1=\"{x:.1}\" y1=\"{TOP:.1}\" x2=\"{x:.1}\" y2=\"{end:.1}\" stroke=\"{colour}\"/>\n"
        );
        svg += &text((x, TOP - 8.0), "middle", &mark.to_string());
    }
    let mut y = TOP + GAP / 2.0;
    for workload in rows {
        svg += &text((LEFT - 8.0, y + row_height / 2.0), "end", workload.title);
        for (n, peer) in peers.iter().enumerate() {
            if let Some(ratio) = multiple(report, workload, peer) {
                svg += &bar(y, ratio, COLOURS[n % COLOURS.len()]);
            }
            y += BAR;
        }
        y += GAP;
    }
    svg + "</svg>\n"
}

/// A bar from 1 to the multiple, with the number at its end.
fn bar(y: f64, ratio: f64, colour: &str) -> String {
    let (from, to) = (x(1.0).min(x(ratio)), x(1.0).max(x(ratio)));
    let wide = (to - from).max(1.0);
    let height = BAR - 1.0;
    format!(
        "<rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{wide:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"8\">{ratio:.2}</text>\n",
        to + 3.0,
        y + BAR - 2.0
    )
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::*;

    #[test]
    fn scale_is_logarithmic() {
        assert!((x(0.1) - LEFT).abs() < 1e-9);
        assert!((x(20.0) - LEFT - WIDTH).abs() < 1e-9);
        assert!(((x(2.0) - x(1.0)) - (x(4.0) - x(2.0))).abs() < 1e-9);
        assert!((x(1000.0) - LEFT - WIDTH).abs() < 1e-9);
    }

    #[test]
    fn a_bar_for_each_peer_and_row() {
        let svg = picture(&example());
        assert_eq!(svg.matches("font-size=\"8\"").count(), 4);
        // Half the throughput is drawn as twice the time.
        assert!(svg.contains(">2.00</text>"));
        assert!(svg.contains(">0.50</text>"));
        assert_eq!(svg.matches("<svg").count(), svg.matches("</svg>").count());
        assert_eq!(escaped("a<b&c"), "a&lt;b&amp;c");
    }
}
