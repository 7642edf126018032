//! The table, and the document it stands in.

use std::fs;
use std::path::Path;

use super::floor;
use super::round::{Cell, Results};
use super::stats::{self, Measure};
use super::svg;
use super::trace;
use super::work::Workload;
use super::{OURS, Result};

/// What others are multiples of.
const REFERENCE: &str = "overlayfs";

/// Everything that one call has measured.
#[derive(Debug)]
pub(crate) struct Report {
    pub rootless: bool,
    pub rounds: usize,
    /// Facts about the machine.
    pub machine: Vec<(String, String)>,
    /// Names, in the order of columns.
    pub peers: Vec<String>,
    pub workloads: Vec<&'static Workload>,
    pub results: Results,
}

impl Report {
    pub(super) fn cell(&self, workload: &Workload, peer: &str) -> Option<&Cell> {
        self.results.get(&(workload.name, peer.to_owned()))
    }

    /// The median figure.
    pub(crate) fn figure(&self, workload: &Workload, peer: &str) -> Option<f64> {
        let figures = &self.cell(workload, peer)?.figures;
        stats::median(&figures.iter().map(|f| f.value).collect::<Vec<_>>())
    }

    /// What a bound is compared with: a multiple of the reference's figure, or a latency itself.
    pub(crate) fn ratio(&self, workload: &Workload, peer: &str) -> Option<f64> {
        let figure = self.figure(workload, peer)?;
        match workload.measure {
            Measure::Latency => Some(figure),
            measure => measure.ratio(figure, self.figure(workload, REFERENCE)?),
        }
    }

    /// Which of them are ours: those that are nobody else.
    pub(crate) fn is_ours(peer: &str) -> bool {
        let others = [
            "plain",
            REFERENCE,
            floor::MIRROR,
            "fuse-overlayfs",
            "unionfs-fuse",
        ];
        let first = peer.split(' ').next().unwrap_or(OURS);
        !others.contains(&first)
    }

    /// What one of ours has to reach.
    pub(super) fn bound(&self, workload: &Workload, peer: &str) -> f64 {
        match self.rootless || peer.split(' ').any(|word| word == "none") {
            true => workload.bounds.1,
            false => workload.bounds.0,
        }
    }

    /// Whether one of ours is within its bound and not behind any fuse-overlayfs.
    fn is_good(&self, workload: &Workload, peer: &str) -> Option<bool> {
        let ratio = self.ratio(workload, peer)?;
        let figure = self.figure(workload, peer)?;
        let ahead = |other: &String| match self.figure(workload, other) {
            Some(theirs) => workload.measure.reaches(figure, theirs),
            None => true,
        };
        let mut rivals = self
            .peers
            .iter()
            .filter(|p| p.starts_with("fuse-overlayfs"));
        Some(workload.measure.reaches(ratio, self.bound(workload, peer)) && rivals.all(ahead))
    }

    /// The section of the document.
    pub(crate) fn markdown(&self) -> String {
        let who = match self.rootless {
            true => "An ordinary user in a user namespace",
            false => "Root",
        };
        let mut text = format!("## {who}\n\n");
        for (word, value) in &self.machine {
            text += &format!("- {word}: {}\n", code_if_command(word, value));
        }
        text += &format!(
            "\n![Ratios to the kernel's overlayfs]({})\n\n{}\n",
            self.picture(),
            self.table()
        );
        text += &self.means();
        text += &self.untar_costs();
        text += &self.spread();
        text += &floor::lines(self);
        text += &format!("\n### Requests of one run\n\n{}", self.requests());
        text += &format!("\n### Processor time and memory\n\n{}", self.costs());
        text += &self.failures();
        text
    }

    fn table(&self) -> String {
        let mut text = format!(
            "Medians of {} interleaved rounds. {REFERENCE}: time, or throughput. Others: multiples of that; \
             a higher throughput is better, a lower time. Bold: ours behind its bound (first with passthrough, \
             then rootless or open=none) or behind a fuse-overlayfs.\n\n| workload |",
            self.rounds
        );
        for peer in &self.peers {
            text += &format!(" {peer} |");
        }
        text += " bounds |\n|---|";
        text += &"---:|".repeat(self.peers.len());
        text += "---:|\n";
        for workload in &self.workloads {
            text += &format!("| {} |", workload.title);
            for peer in &self.peers {
                text += &format!(" {} |", self.shown(workload, peer));
            }
            text += &format!(" {} |\n", bounds(workload));
        }
        text
    }

    fn shown(&self, workload: &Workload, peer: &str) -> String {
        let Some(figure) = self.figure(workload, peer) else {
            let failed = self
                .cell(workload, peer)
                .is_some_and(|c| c.failure.is_some());
            return if failed { "failed" } else { "-" }.to_owned();
        };
        if peer == REFERENCE || workload.measure == Measure::Latency {
            let text = absolute(workload.measure, figure);
            return self.marked(workload, peer, text);
        }
        match self.ratio(workload, peer) {
            Some(ratio) => self.marked(workload, peer, format!("{ratio:.2}")),
            None => absolute(workload.measure, figure),
        }
    }

    fn marked(&self, workload: &Workload, peer: &str, text: String) -> String {
        match Self::is_ours(peer) && self.is_good(workload, peer) == Some(false) {
            true => format!("**{text}**"),
            false => text,
        }
    }

    /// How much better ours is than each fuse-overlayfs over metadata.
    fn means(&self) -> String {
        let mut text = String::new();
        for ours in self.peers.iter().filter(|p| Self::is_ours(p)) {
            for other in self
                .peers
                .iter()
                .filter(|p| p.starts_with("fuse-overlayfs"))
            {
                let rows = self.workloads.iter().filter(|w| w.metadata);
                let advantages: Vec<f64> = rows
                    .filter_map(|w| {
                        let (ours, theirs) = (self.figure(w, ours)?, self.figure(w, other)?);
                        w.measure.advantage(ours, theirs)
                    })
                    .collect();
                if let Some(mean) = stats::geometric_mean(&advantages) {
                    text += &format!(
                        "- {ours}: {mean:.2} times as fast as {other}, geometric mean of {} rows of metadata\n",
                        advantages.len()
                    );
                }
            }
        }
        text
    }

    /// The daemon's time for each file that tar makes.
    #[allow(clippy::cast_precision_loss)] // Thousands.
    fn untar_costs(&self) -> String {
        let mut text = String::new();
        for peer in &self.peers {
            let untar = |cell: &&Cell| cell.requests.is_some();
            let Some(cell) = self.results.get(&("untar", peer.clone())).filter(untar) else {
                continue;
            };
            let made = cell
                .requests
                .as_ref()
                .and_then(|counts| counts.get("CREATE"));
            let times: Vec<f64> = cell.figures.iter().map(|f| f.daemon).collect();
            if let (Some(made), Some(time)) = (made, stats::median(&times)) {
                let each = time * 1e6 / *made as f64;
                text += &format!("- {peer}: {each:.0} us of the daemon for each untarred file\n");
            }
        }
        text
    }

    /// How far runs of the same lie apart: what a difference has to exceed to mean something.
    fn spread(&self) -> String {
        let spreads: Vec<f64> = self.results.values().filter_map(spread).collect();
        match stats::median(&spreads) {
            Some(spread) => format!(
                "- spread: the slowest and the fastest run of a cell lie {:.0} % of its median apart (median of all cells)\n",
                spread * 100.0
            ),
            None => String::new(),
        }
    }

    fn requests(&self) -> String {
        let mut text = "| workload | peer | requests |\n|---|---|---|\n".to_owned();
        for workload in &self.workloads {
            for peer in &self.peers {
                let counts = self.cell(workload, peer).and_then(|c| c.requests.as_ref());
                if let Some(counts) = counts {
                    let total: u64 = counts.values().sum();
                    let title = workload.title;
                    text += &format!("| {title} | {peer} | {total}: {} |\n", trace::line(counts));
                }
            }
        }
        text
    }

    /// Client and daemon in ms, peak memory in MiB.
    fn costs(&self) -> String {
        let mut text = "Milliseconds of the client and what it starts + of the daemon; the daemon's peak in MiB.\n\n\
                        | workload |"
            .to_owned();
        for peer in &self.peers {
            text += &format!(" {peer} |");
        }
        text += "\n|---|";
        text += &"---:|".repeat(self.peers.len());
        text += "\n";
        for workload in &self.workloads {
            text += &format!("| {} |", workload.title);
            for peer in &self.peers {
                text += &format!(
                    " {} |",
                    self.cell(workload, peer).and_then(cost).unwrap_or_default()
                );
            }
            text += "\n";
        }
        text
    }

    fn failures(&self) -> String {
        let mut text = String::new();
        for workload in &self.workloads {
            for peer in &self.peers {
                let failure = self.cell(workload, peer).and_then(|c| c.failure.as_ref());
                if let Some(reason) = failure {
                    text += &format!("- {}, {peer}: {reason}\n", workload.title);
                }
            }
        }
        match text.is_empty() {
            true => text,
            false => format!("\n### Not measured\n\n{text}"),
        }
    }

    fn picture(&self) -> &'static str {
        match self.rootless {
            true => "performance-rootless.svg",
            false => "performance.svg",
        }
    }

    /// Writes the section into `dir/PERFORMANCE.md`, and the picture beside it.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        let path = dir.join("PERFORMANCE.md");
        let before = fs::read_to_string(&path).unwrap_or_else(|_| HEAD.to_owned());
        let name = if self.rootless { "rootless" } else { "root" };
        fs::write(&path, with_section(&before, name, &self.markdown()))?;
        fs::write(dir.join(self.picture()), svg::picture(self))?;
        println!("written: {}", path.display());
        Ok(())
    }
}

const HEAD: &str = "# Performance\n\nWritten by `bench`; the command is given with each table. \
                    Each workload runs on a fresh mount with an empty upper, over five lowers \
                    that hold a Debian root and the trees the workloads need.\n";

/// Puts a section between its marks, or at the end when there are none.
fn with_section(document: &str, name: &str, section: &str) -> String {
    let (begin, end) = (
        format!("<!-- {name} -->\n"),
        format!("<!-- end of {name} -->\n"),
    );
    let text = format!("{begin}{section}{end}");
    let marked = document
        .split_once(begin.as_str())
        .and_then(|(head, rest)| Some((head, rest.split_once(end.as_str())?.1)));
    match marked {
        Some((head, tail)) => format!("{head}{text}{tail}"),
        None => format!("{document}\n{text}"),
    }
}

fn code_if_command(word: &str, value: &str) -> String {
    match word {
        "command" => format!("`{value}`"),
        _ => value.to_owned(),
    }
}

pub(super) fn absolute(measure: Measure, figure: f64) -> String {
    match measure {
        Measure::Throughput => format!("{:.0} MiB/s", figure / f64::from(1 << 20)),
        Measure::Time | Measure::Latency => format!("{:.2} ms", figure * 1000.0),
    }
}

fn bounds(workload: &Workload) -> String {
    let (passthrough, none) = workload.bounds;
    match workload.measure {
        Measure::Time => format!("<= {passthrough} / {none}"),
        Measure::Throughput => format!(">= {passthrough} / {none}"),
        Measure::Latency => format!("<= {}", absolute(Measure::Latency, passthrough)),
    }
}

/// Of two runs or more.
fn spread(cell: &Cell) -> Option<f64> {
    let values: Vec<f64> = cell.figures.iter().map(|f| f.value).collect();
    let most = values.iter().copied().reduce(f64::max)?;
    let least = values.iter().copied().reduce(f64::min)?;
    let middle = stats::median(&values).filter(|m| *m > 0.0 && values.len() > 1)?;
    Some((most - least) / middle)
}

#[allow(clippy::cast_precision_loss)] // KiB.
fn cost(cell: &Cell) -> Option<String> {
    let middle = |of: fn(&super::client::Figures) -> f64| {
        stats::median(&cell.figures.iter().map(of).collect::<Vec<_>>())
    };
    let (client, daemon) = (middle(|f| f.client)?, middle(|f| f.daemon)?);
    let memory = middle(|f| f.memory as f64)?;
    Some(match memory > 0.0 {
        true => format!(
            "{:.0}+{:.0}; {:.1}",
            client * 1000.0,
            daemon * 1000.0,
            memory / 1024.0
        ),
        false => format!("{:.0}", client * 1000.0),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::client::Figures;
    use super::super::work;
    use super::*;

    /// A report of two workloads: times and a throughput.
    pub(crate) fn example() -> Report {
        let mut results = Results::new();
        let mut put = |name: &'static str, peer: &str, values: &[f64]| {
            let figures = |value: &f64| Figures {
                value: *value,
                client: 0.010,
                daemon: 0.020,
                memory: if peer == REFERENCE { 0 } else { 2048 },
            };
            let cell = Cell {
                figures: values.iter().map(figures).collect(),
                ..Cell::default()
            };
            results.insert((name, peer.to_owned()), cell);
        };
        put("find", REFERENCE, &[0.2, 0.1, 0.3]);
        put("find", "fuse-overlayfs 2.0.0", &[0.8]);
        put("find", OURS, &[0.1, 0.1, 0.9]);
        put("read", REFERENCE, &[1e9]);
        put("read", "fuse-overlayfs 2.0.0", &[9e8]);
        put("read", OURS, &[5e8]);
        Report {
            rootless: false,
            rounds: 3,
            machine: vec![("kernel".to_owned(), "Linux".to_owned())],
            peers: [REFERENCE, "fuse-overlayfs 2.0.0", OURS]
                .map(str::to_owned)
                .into(),
            workloads: ["find", "read"]
                .into_iter()
                .filter_map(work::find)
                .collect(),
            results,
        }
    }

    #[test]
    fn rows_of_the_table() {
        let text = example().markdown();
        let row = |title: &str| {
            let start = format!("| {title} |");
            text.lines()
                .find(|l| l.starts_with(&start))
                .unwrap_or_default()
                .to_owned()
        };
        assert_eq!(
            row("find, hot"),
            "| find, hot | 200.00 ms | 4.00 | 0.50 | <= 0.85 / 0.9 |"
        );
        // Less throughput is worse, and marked.
        assert_eq!(
            row("large read, hot"),
            "| large read, hot | 954 MiB/s | 0.90 | **0.50** | >= 0.95 / 0.95 |"
        );
        assert!(text.contains("unionfs: 8.00 times as fast as fuse-overlayfs 2.0.0"));
        assert!(text.contains("10+20; 2.0"));
        // (0.3 - 0.1) / 0.2 and (0.9 - 0.1) / 0.1; the others ran once.
        assert!(text.contains("run of a cell lie 450 % of"));
    }

    #[test]
    fn ours_behind_a_rival_is_marked_even_within_its_bound() {
        let mut report = example();
        let key = ("find", "fuse-overlayfs 2.0.0".to_owned());
        if let Some(cell) = report.results.get_mut(&key) {
            cell.figures[0].value = 0.05;
        }
        assert!(report.table().contains("**0.50**"));
        let find = report.workloads[0];
        assert_eq!(report.is_good(find, OURS), Some(false));
    }

    #[test]
    fn sections_are_replaced_in_place() {
        let first = with_section("head\n", "root", "one\n");
        let second = with_section(&first, "rootless", "two\n");
        let third = with_section(&second, "root", "three\n");
        assert!(third.starts_with("head\n"));
        assert!(!third.contains("one"));
        let places = (third.find("three"), third.find("two"));
        assert!(places.0.is_some() && places.0 < places.1);
        assert_eq!(with_section(&third, "root", "three\n"), third);
    }
}
