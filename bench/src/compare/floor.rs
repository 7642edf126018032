//! Where ours is behind its bound: what a daemon without a union takes for the same, and how much both were asked.

use super::report::{self, Report};
use super::stats::Measure;
use super::work::Workload;

/// The peer that is no union but has a daemon.
pub(crate) const MIRROR: &str = "mirror";

/// A line for each row and each of ours that is behind its bound; nothing when the mirror was not measured.
pub(crate) fn lines(report: &Report) -> String {
    if !report.peers.iter().any(|p| p == MIRROR) {
        return String::new();
    }
    let ours: Vec<&String> = report.peers.iter().filter(|p| Report::is_ours(p)).collect();
    let rows = report.workloads.iter().flat_map(|w| {
        ours.iter()
            .filter_map(|peer| line(report, w, peer))
            .collect::<Vec<_>>()
    });
    let text: String = rows.collect();
    match text.is_empty() {
        true => text,
        false => format!(
            "\n### Behind the bound\n\n\
             Beside what a daemon takes that has no union to look through, in the same rounds, and requests of one run.\n\n{text}"
        ),
    }
}

/// Of one of ours, if it is behind.
fn line(report: &Report, workload: &Workload, peer: &str) -> Option<String> {
    let ratio = report.ratio(workload, peer)?;
    let bound = report.bound(workload, peer);
    if workload.measure.reaches(ratio, bound) {
        return None;
    }
    let figure = |value: f64| match workload.measure {
        Measure::Latency => report::absolute(Measure::Latency, value),
        Measure::Time | Measure::Throughput => format!("{value:.2}"),
    };
    let mirror = match report.ratio(workload, MIRROR) {
        Some(ratio) => format!("{}{}", figure(ratio), asked(report, workload, MIRROR)),
        None => "not measured".to_owned(),
    };
    let bound = match workload.measure {
        Measure::Latency => figure(bound),
        Measure::Time | Measure::Throughput => bound.to_string(),
    };
    Some(format!(
        "- {}: bound {bound}, {peer} {}{}, {MIRROR} {mirror}\n",
        workload.title,
        figure(ratio),
        asked(report, workload, peer)
    ))
}

/// Requests of one run, if they were counted.
fn asked(report: &Report, workload: &Workload, peer: &str) -> String {
    let counts = report
        .cell(workload, peer)
        .and_then(|c| c.requests.as_ref());
    match counts {
        Some(counts) => format!(" ({} requests)", counts.values().sum::<u64>()),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::example;
    use super::super::round::Cell;
    use super::super::trace::Counts;
    use super::*;

    /// Figures of `find` and the requests for them.
    fn put(report: &mut Report, peer: &str, value: f64, counts: Option<Counts>) {
        let ours = report.results.get(&("find", "unionfs".to_owned()));
        let mut cell: Cell = ours.cloned().unwrap_or_default();
        cell.figures.truncate(1);
        cell.figures[0].value = value;
        cell.requests = counts;
        report.results.insert(("find", peer.to_owned()), cell);
        if !report.peers.iter().any(|p| p == peer) {
            report.peers.push(peer.to_owned());
        }
    }

    #[test]
    fn only_beside_a_mirror() {
        assert_eq!(lines(&example()), "");
    }

    #[test]
    fn a_line_for_each_row_behind_its_bound() {
        let mut report = example();
        let counts = |n| {
            Some(Counts::from([
                ("LOOKUP".to_owned(), n),
                ("GETATTR".to_owned(), 1),
            ]))
        };
        put(&mut report, MIRROR, 0.5, counts(30));
        // 0.1 s of 0.2 is within 0.85; half the throughput is not, and the mirror has no such figure.
        let text = lines(&report);
        let read = "- large read, hot: bound 0.95, unionfs 0.50, mirror not measured\n";
        assert!(text.ends_with(&format!("\n\n{read}")), "{text}");

        put(&mut report, "unionfs none", 0.4, counts(20));
        let text = lines(&report);
        let find =
            "- find, hot: bound 0.9, unionfs none 2.00 (21 requests), mirror 2.50 (31 requests)\n";
        assert!(text.ends_with(&format!("\n\n{find}{read}")), "{text}");
    }

    #[test]
    fn the_mirror_is_no_competitor() {
        let mut report = example();
        let before = report.markdown();
        put(&mut report, MIRROR, 0.001, None);
        assert!(!Report::is_ours(MIRROR));
        let after = report.markdown();
        for line in before.lines().filter(|l| l.contains("times as fast")) {
            assert!(after.contains(line));
        }
        let marks = |text: &str| text.matches("**").count();
        assert_eq!(marks(&before), marks(&after));
    }
}
