//! `stats --prometheus`: the text format that Prometheus reads, version 0.0.4.

use std::io::{self, Write};

use serde_json::Value;

use super::times::{counts, number};

/// A figure: its name, kind, what it is, where it is in the answer.
type Figure = (&'static str, &'static str, &'static str, &'static str);

const FIGURES: [Figure; 14] = [
    (
        "uptime_seconds",
        "gauge",
        "Time since this process serves the mount.",
        "/uptime_seconds",
    ),
    (
        "copy_ups_total",
        "counter",
        "Objects brought to the upper.",
        "/copy_ups/count",
    ),
    (
        "copied_bytes_total",
        "counter",
        "Data that went with them.",
        "/copy_ups/bytes",
    ),
    (
        "names_known_total",
        "counter",
        "Names looked for that were known.",
        "/names/known",
    ),
    (
        "names_asked_total",
        "counter",
        "Names for which layers were asked.",
        "/names/asked",
    ),
    (
        "listing_bytes",
        "gauge",
        "Memory of the listings kept.",
        "/names/listing_bytes",
    ),
    (
        "inodes",
        "gauge",
        "Objects that the kernel knows.",
        "/inodes",
    ),
    (
        "plinks",
        "gauge",
        "Linked files held together by pseudo-links.",
        "/plinks",
    ),
    (
        "open_descriptors",
        "gauge",
        "Descriptors open.",
        "/descriptors/open",
    ),
    (
        "max_descriptors",
        "gauge",
        "Descriptors that may be open.",
        "/descriptors/limit",
    ),
    (
        "nameless_objects",
        "gauge",
        "Objects without a name held open.",
        "/descriptors/nameless",
    ),
    (
        "file_hits_total",
        "counter",
        "Files needed that were open.",
        "/descriptors/file_hits",
    ),
    (
        "file_misses_total",
        "counter",
        "Files that had to be opened.",
        "/descriptors/file_misses",
    ),
    (
        "resident_bytes",
        "gauge",
        "Memory of the daemon.",
        "/memory_bytes",
    ),
];

pub(super) fn show(told: &Value, out: &mut dyn Write) -> io::Result<()> {
    for (name, kind, what, place) in FIGURES {
        let Some(value) = told.pointer(place).filter(|value| value.is_number()) else {
            continue;
        };
        head(name, kind, what, out)?;
        writeln!(out, "unionfs_{name} {value}")?;
    }
    head("requests_total", "counter", "Requests of the kernel.", out)?;
    for (op, count) in told["requests"].as_object().into_iter().flatten() {
        writeln!(
            out,
            "unionfs_requests_total{{op=\"{op}\"}} {}",
            number(count)
        )?;
    }
    let times = &told["latencies"];
    head(
        "times_measured",
        "gauge",
        "1 while requests are measured.",
        out,
    )?;
    let is_on = u8::from(times["measured"] != "no");
    writeln!(out, "unionfs_times_measured {is_on}")?;
    let of = times["of"].as_object().into_iter().flatten();
    let mut of = of.peekable();
    if of.peek().is_some() {
        let what = "Time until the answer, while measured.";
        head("request_seconds", "histogram", what, out)?;
    }
    of.try_for_each(|(op, histogram)| histogram_of(op, histogram, out))
}

fn head(name: &str, kind: &str, what: &str, out: &mut dyn Write) -> io::Result<()> {
    writeln!(
        out,
        "# HELP unionfs_{name} {what}\n# TYPE unionfs_{name} {kind}"
    )
}

/// Each bucket counts all that took no longer.
fn histogram_of(op: &str, histogram: &Value, out: &mut dyn Write) -> io::Result<()> {
    const NAME: &str = "unionfs_request_seconds";
    let mut sum = 0;
    for (limit, count) in counts(histogram) {
        sum += count;
        if let Some(limit) = limit {
            writeln!(out, "{NAME}_bucket{{op=\"{op}\",le=\"{limit}\"}} {sum}")?;
        }
    }
    writeln!(out, "{NAME}_bucket{{op=\"{op}\",le=\"+Inf\"}} {sum}")?;
    writeln!(
        out,
        "{NAME}_sum{{op=\"{op}\"}} {}",
        histogram["sum_seconds"]
    )?;
    writeln!(out, "{NAME}_count{{op=\"{op}\"}} {sum}")
}
