//! `top`: what goes on in a mount, shown anew every few seconds.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::ask::Mount;
use super::times::{counts, limit, number, size, within};
use super::{CtlError, text};

/// Requests are measured for so much longer than until the next look.
const LENT: Duration = Duration::from_secs(5);
/// Kinds of requests that are shown.
const MOST: usize = 16;

/// Looks until there is nobody to show it to, or the mount is gone.
pub(super) fn run(
    mount: &Mount, every: Duration, count: Option<u64>, out: &mut dyn Write,
) -> Result<(), CtlError> {
    let lent = u64::try_from((every + LENT).as_millis()).unwrap_or(u64::MAX);
    let question = json!({ "ask": "stats", "measure": lent });
    let mut last = (mount.ask(&question)?, Instant::now());
    let is_terminal = io::stdout().is_terminal();
    let mut looks = 0;
    while count.is_none_or(|count| looks < count) {
        thread::sleep(every);
        let now = (mount.ask(&question)?, Instant::now());
        let since = now.1.duration_since(last.1).as_secs_f64();
        let mut screen = Vec::new();
        frame(&last.0, &now.0, since, &mut screen)?;
        if is_terminal {
            // To the beginning, and away with what was there.
            out.write_all(b"\x1b[H\x1b[J")?;
        }
        out.write_all(&screen)?;
        out.flush()?;
        last = now;
        looks += 1;
    }
    Ok(())
}

/// What was done between two looks.
fn frame(before: &Value, now: &Value, seconds: f64, out: &mut dyn Write) -> io::Result<()> {
    let more = |place: &str| {
        let at = |told: &Value| told.pointer(place).map(number).unwrap_or_default();
        at(now).saturating_sub(at(before))
    };
    #[allow(clippy::cast_precision_loss)] // for people
    let rate = |count: u64| count as f64 / seconds.max(1e-9);
    let fds = &now["descriptors"];
    writeln!(
        out,
        "unionfs {}: {} inodes, {} descriptors of {}, {} of memory",
        text(&now["version"]),
        now["inodes"],
        fds["open"],
        fds["limit"],
        size(number(&now["memory_bytes"]))
    )?;
    let (known, asked) = (more("/names/known"), more("/names/asked"));
    writeln!(
        out,
        "{} copy-ups of {}; names: {known} known, {asked} looked for in layers",
        more("/copy_ups/count"),
        size(more("/copy_ups/bytes"))
    )?;
    writeln!(
        out,
        "{:<16}{:>12}{:>10}{:>10}",
        "request", "per second", "half", "99 %"
    )?;
    let names = now["requests"].as_object().into_iter().flatten();
    let mut busy: Vec<(u64, &String)> = names
        .map(|(name, _)| (more(&format!("/requests/{name}")), name))
        .filter(|(count, _)| *count > 0)
        .collect();
    busy.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    for (count, name) in busy.into_iter().take(MOST) {
        let times = since(
            &before["latencies"]["of"][name],
            &now["latencies"]["of"][name],
        );
        let (half, most) = match times.iter().any(|(_, count)| *count > 0) {
            true => (limit(within(&times, 50)), limit(within(&times, 99))),
            false => ("-".to_owned(), "-".to_owned()),
        };
        writeln!(out, "{name:<16}{:>12.1}{half:>10}{most:>10}", rate(count))?;
    }
    writeln!(out)
}

/// What a histogram counts beyond an earlier one.
fn since(before: &Value, now: &Value) -> Vec<(Option<f64>, u64)> {
    let before = counts(before);
    let now = counts(now).into_iter().enumerate();
    now.map(|(at, (limit, count))| {
        let was = before.get(at).map_or(0, |(_, count)| *count);
        (limit, count.saturating_sub(was))
    })
    .collect()
}
