//! `trace`, for people.

use std::io::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::text;
use super::times::{number, time};

pub(super) fn show(told: &Value, out: &mut dyn Write) -> io::Result<()> {
    let slow = told["slower_than_seconds"].as_f64().unwrap_or_default();
    writeln!(
        out,
        "times measured {}; requests of {} or longer are kept",
        text(&told["measured"]),
        time(slow)
    )?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs_f64();
    for one in told["recent"].as_array().into_iter().flatten() {
        let ago = now - one["ended"].as_f64().unwrap_or(now);
        let took = one["seconds"].as_f64().unwrap_or_default();
        let path = match one["path"].as_str() {
            Some(_) => text(&one["path"]),
            None => format!("node {}", number(&one["node"])),
        };
        writeln!(
            out,
            "{:>8} ago {:>9}  {:<12} {path}  (thread {} of user {})",
            time(ago.max(0.0)),
            time(took),
            text(&one["request"]),
            one["thread"],
            one["uid"]
        )?;
    }
    Ok(())
}
