//! How far long work has come: one line on a terminal, which goes when the work ends. Nothing is
//! drawn where stderr is no terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unit {
    /// Files, directories, marks.
    Items,
    /// Bytes, shown as KiB, MiB and so on.
    Bytes,
}

/// Work that is under way.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    unit: Unit,
    /// What was not yet told to the bar: it takes a lock.
    pending: AtomicU64,
}

/// So much is counted before the bar is told of it.
const ITEMS_AT_ONCE: u64 = 64;
const BYTES_AT_ONCE: u64 = 1 << 20;

impl Progress {
    /// Begins with `what` is done, such as `reading`, whose end is not known yet.
    pub fn new(what: &'static str, unit: Unit) -> Self {
        let stderr = io::stderr().is_terminal();
        let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
        let bar = (stderr && !dumb).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style(unit, false));
            bar.set_message(what);
            bar.tick();
            bar
        });
        Self {
            bar,
            unit,
            pending: AtomicU64::new(0),
        }
    }

    /// Goes on with another part of the work, of `total` units if that is known, from nothing.
    pub fn next(&self, what: &'static str, total: Option<u64>) {
        let Some(bar) = &self.bar else { return };
        self.pending.store(0, Ordering::Relaxed);
        match total {
            Some(total) => bar.set_length(total),
            None => bar.unset_length(),
        }
        bar.set_style(style(self.unit, total.is_some()));
        bar.set_message(what);
        bar.set_position(0);
        bar.tick();
    }

    /// So much more is done.
    pub fn add(&self, done: u64) {
        let Some(bar) = &self.bar else { return };
        let at_once = match self.unit {
            Unit::Items => ITEMS_AT_ONCE,
            Unit::Bytes => BYTES_AT_ONCE,
        };
        let sum = self.pending.fetch_add(done, Ordering::Relaxed) + done;
        if sum >= at_once {
            bar.inc(self.pending.swap(0, Ordering::Relaxed));
        }
    }

    /// A line for whoever started the work, on stderr; what is drawn does not get in its way.
    pub fn tell(&self, line: &str) {
        let print = || {
            // There is nobody to tell when stderr is gone.
            let _ = writeln!(io::stderr(), "unionfs: {line}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn template(unit: Unit, total: bool) -> &'static str {
    match (unit, total) {
        (Unit::Items, false) => "{spinner} {msg}: {human_pos}",
        (Unit::Items, true) => "{msg} [{bar:30}] {human_pos}/{human_len} {eta}",
        (Unit::Bytes, false) => "{spinner} {msg}: {bytes} {binary_bytes_per_sec}",
        (Unit::Bytes, true) => {
            "{msg} [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}"
        }
    }
}

fn style(unit: Unit, total: bool) -> ProgressStyle {
    let style = ProgressStyle::with_template(template(unit, total));
    style
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .tick_chars("-\\|/ ")
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_well_formed() {
        for unit in [Unit::Items, Unit::Bytes] {
            for total in [false, true] {
                assert!(ProgressStyle::with_template(template(unit, total)).is_ok());
            }
        }
    }

    /// Tests have no terminal.
    #[test]
    fn without_a_terminal_there_is_none() {
        let progress = Progress::new("reading", Unit::Items);
        if !io::stderr().is_terminal() {
            assert!(progress.bar.is_none());
        }
        progress.add(1);
        progress.next("writing", Some(3));
        progress.add(3);
    }
}
