//! `stats`, for people.

use std::io::{self, Write};

use serde_json::Value;

use super::text;

/// A number of an answer; 0 when it is not there.
pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

pub(super) fn show(told: &Value, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "inodes         {}", number(&told["inodes"]))?;
    let copy_ups = &told["copy_ups"];
    let (count, bytes) = (number(&copy_ups["count"]), number(&copy_ups["bytes"]));
    writeln!(out, "copy-ups       {count}, {}", size(bytes))?;
    let names = &told["names"];
    let (known, asked) = (number(&names["known"]), number(&names["asked"]));
    let bytes = size(number(&names["listing_bytes"]));
    writeln!(
        out,
        "names          {known} known, {asked} looked for in layers; listings take {bytes}"
    )?;
    let fds = &told["descriptors"];
    writeln!(
        out,
        "descriptors    {} open of {}: {} directories, {} files, {} without a name",
        fds["open"], fds["limit"], fds["directories"], fds["files"], fds["nameless"]
    )?;
    let (hits, misses) = (number(&fds["file_hits"]), number(&fds["file_misses"]));
    writeln!(
        out,
        "files          {hits} times open already, {misses} times opened"
    )?;
    writeln!(out, "linked files   {}", number(&told["plinks"]))?;
    writeln!(
        out,
        "memory         {}",
        size(number(&told["memory_bytes"]))
    )?;
    let times = &told["latencies"];
    let measured = text(&times["measured"]);
    writeln!(out, "times measured {measured}")?;
    writeln!(out)?;
    requests(told, out)
}

fn requests(told: &Value, out: &mut dyn Write) -> io::Result<()> {
    let of = &told["latencies"]["of"];
    let any_times = of.as_object().is_some_and(|of| !of.is_empty());
    write!(out, "{:<16}{:>12}", "request", "count")?;
    if any_times {
        write!(
            out,
            "{:>12}{:>10}{:>10}{:>10}",
            "measured", "half", "99 %", "mean"
        )?;
    }
    writeln!(out)?;
    for (name, count) in told["requests"].as_object().into_iter().flatten() {
        if number(count) == 0 {
            continue;
        }
        write!(out, "{name:<16}{:>12}", number(count))?;
        if let Some(times) = of.get(name) {
            let mean = times["sum_seconds"].as_f64().unwrap_or_default();
            #[allow(clippy::cast_precision_loss)] // for people
            let mean = mean / number(&times["count"]).max(1) as f64;
            let all = counts(times);
            let (half, most) = (within(&all, 50), within(&all, 99));
            write!(
                out,
                "{:>12}{:>10}{:>10}{:>10}",
                number(&times["count"]),
                limit(half),
                limit(most),
                time(mean)
            )?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// The counts of a histogram, each with the longest time of its bucket.
pub(super) fn counts(histogram: &Value) -> Vec<(Option<f64>, u64)> {
    let buckets = histogram["buckets"].as_array().into_iter().flatten();
    buckets
        .map(|bucket| (bucket["up_to_seconds"].as_f64(), number(&bucket["count"])))
        .collect()
}

/// The longest time of the bucket within which so many of a hundred are; `None` in the last one.
pub(super) fn within(counts: &[(Option<f64>, u64)], percent: u64) -> Option<f64> {
    let all: u64 = counts.iter().map(|(_, count)| count).sum();
    let wanted = (all * percent).div_ceil(100);
    let mut sum = 0;
    let found = counts.iter().find(|(_, count)| {
        sum += count;
        sum >= wanted
    });
    found.and_then(|(limit, _)| *limit)
}

/// A limit for people.
pub(super) fn limit(seconds: Option<f64>) -> String {
    seconds.map_or_else(
        || "longer".to_owned(),
        |seconds| format!("<{}", time(seconds)),
    )
}

/// A time for people.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.1}s"),
        s if s >= 1e-3 => format!("{:.1}ms", s * 1e3),
        s => format!("{:.0}us", s * 1e6),
    }
}

/// A size for people.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    #[allow(clippy::cast_precision_loss)] // for people
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} bytes"),
        unit => format!("{value:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_are_within_the_bucket_that_is_told() {
        let counts = [(Some(1.0), 98), (Some(2.0), 1), (None, 1)];
        assert_eq!(within(&counts, 50), Some(1.0));
        assert_eq!(within(&counts, 99), Some(2.0));
        assert_eq!(within(&counts, 100), None);
        assert_eq!(within(&[], 50), None);
    }

    #[test]
    fn figures_for_people() {
        assert_eq!(
            [0.000_001, 0.0123, 75.0].map(time),
            ["1us", "12.3ms", "75.0s"]
        );
        assert_eq!(
            [7, 1536, 3 << 30].map(size),
            ["7 bytes", "1.5 KiB", "3.0 GiB"]
        );
    }
}
