//! Which requests took long lately, for `unionfs ctl trace`.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};

use super::desk::Desk;

impl Desk {
    /// The requests that took long, oldest first. `"slower_ms"` in the question says what is long from
    /// now on.
    pub(super) fn trace(&self, question: &Value) -> Value {
        if let Some(ms) = question["slower_ms"].as_u64() {
            self.clock.set_slow(Duration::from_millis(ms));
        }
        let recent = self.clock.recent().into_iter().map(|slow| {
            let path = self.union.path_of(slow.node);
            let ended = slow.ended.duration_since(UNIX_EPOCH).unwrap_or_default();
            json!({
                "ended": ended.as_secs_f64(),
                "seconds": slow.took.as_secs_f64(),
                "request": slow.op.name(),
                "node": slow.node,
                "path": path.map(|path| String::from_utf8_lossy(&path).into_owned()),
                "thread": slow.pid,
                "uid": slow.uid,
            })
        });
        json!({
            "measured": self.measured(),
            "slower_than_seconds": self.clock.slow().as_secs_f64(),
            "recent": recent.collect::<Value>(),
        })
    }

    /// Measures from now on, or no longer.
    pub(super) fn measure(&self, question: &Value) -> Value {
        match question["on"] == true {
            true => self.clock.start(None),
            false => self.clock.stop(),
        }
        json!({ "measured": self.measured() })
    }

    /// Whether requests are measured, in words.
    pub(super) fn measured(&self) -> &'static str {
        match (self.clock.is_on(), self.clock.is_lent()) {
            (false, _) => "no",
            (true, true) => "while somebody looks",
            (true, false) => "yes",
        }
    }
}
