//! What a mount is and does, for `unionfs ctl status` and `stats`.

use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::options::{RenameDir, WhiteoutForm};
use crate::stats::{BUCKETS, Op, limit_of};
use crate::sys::{cred, own};
use crate::union::{LayerFacts, journal};

use super::clock::Histogram;
use super::desk::Desk;

/// A path for people, with its bytes beside it if it is not UTF-8.
fn put_path(object: &mut Value, path: &Path) {
    use std::os::unix::ffi::OsStrExt;
    object["path"] = json!(path.to_string_lossy());
    if path.to_str().is_none() {
        object["bytes"] = json!(path.as_os_str().as_bytes());
    }
}

fn form_name(form: WhiteoutForm) -> &'static str {
    match form {
        WhiteoutForm::Aufs => "aufs",
        WhiteoutForm::Overlay => "overlay",
    }
}

fn seconds(time: Option<Duration>) -> Value {
    time.map_or(Value::Null, |time| json!(time.as_secs_f64()))
}

impl Desk {
    /// What the mount is made of, and what is used instead of something better.
    pub(super) fn status(&self) -> Value {
        let layers = self.union.layer_facts();
        let command: Vec<String> = std::env::args_os()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uid": cred::own_uid(),
            "uptime_seconds": self.clock.age().as_secs(),
            "takes_changes": !self.union.is_read_only(),
            "supervised": journal::active().is_some(),
            "layers": self.layers(&layers),
            "data": {
                "way": self.choice.way.name(),
                "why": self.choice.why,
            },
            "fallbacks": self.fallbacks(&layers),
            "not_possible_on_upper": self.union.upper_facts().and_then(|upper| upper.missing),
            "options": self.options_told(),
            "command": command,
        })
    }

    pub(super) fn layers(&self, layers: &[LayerFacts]) -> Value {
        let upper = self.union.upper_facts();
        let told = layers.iter().map(|layer| {
            let mut told = json!({
                "role": if layer.is_upper { "upper" } else { "lower" },
                "reads": if layer.whiteouts { json!(["aufs", "overlay"]) } else { json!([]) },
                "private_mount": layer.is_private,
                "device": own::device_name(layer.dev),
                "filesystem": format!("{:#x}", layer.filesystem),
            });
            if let Some(upper) = upper.as_ref().filter(|_| layer.is_upper) {
                told["writes"] = json!(form_name(upper.form));
            }
            put_path(&mut told, &layer.path);
            told
        });
        told.collect()
    }

    /// What is used instead of something better, each with the reason.
    fn fallbacks(&self, layers: &[LayerFacts]) -> Value {
        let mut all = Vec::new();
        let mut add = |what: String, why: String| all.push(json!({ "what": what, "why": why }));
        if self.choice.falls_short || self.choice.why.starts_with("no passthrough") {
            let way = self.choice.way.name();
            add(format!("data: open={way}"), self.choice.why.clone());
        }
        if let Some(upper) = self.union.upper_facts()
            && upper.form != upper.asked
        {
            let why = match upper.missing {
                Some(missing) if missing.contains(&"trusted attributes") => {
                    "neither attributes nor devices that mark as overlayfs does can be made there"
                }
                _ => "what marks as overlayfs does cannot be made there",
            };
            let form = form_name(upper.form);
            add(
                format!("whiteouts: written as {form} files"),
                why.to_owned(),
            );
        }
        for layer in layers.iter().filter(|layer| !layer.is_private) {
            let path = layer.path.display();
            let what = format!("layer {path}: reached through the mount that it is on");
            add(
                what,
                "a private clone of that mount is not permitted".to_owned(),
            );
        }
        let refused = self.passthrough.iter().flat_map(|table| table.refused());
        for layer in refused.filter_map(|at| layers.iter().find(|layer| layer.index == at)) {
            let path = layer.path.display();
            let what = format!("layer {path}: data of its files go through the daemon");
            add(
                what,
                "the kernel does not take files of its filesystem".to_owned(),
            );
        }
        Value::Array(all)
    }

    fn options_told(&self) -> Value {
        let options = &self.options;
        let rename_dir = match options.rename_dir {
            RenameDir::Copy => "copy",
            RenameDir::Redirect => "redirect",
            RenameDir::Exdev => "exdev",
        };
        json!({
            "threads": super::flags::threads(options),
            "volatile": options.volatile,
            "rename_dir": rename_dir,
            "metacopy": options.metacopy,
            "plinks": !options.identity.noplink,
            "entry_timeout": seconds(options.cache.entry),
            "negative_timeout": seconds(options.cache.negative),
            "attr_timeout": seconds(options.cache.attr),
            "xattrs": !options.no_xattrs,
        })
    }

    /// How much was done. `"measure": MS` in the question has requests be measured for so long.
    pub(super) fn stats(&self, question: &Value) -> Value {
        if let Some(ms) = question["measure"].as_u64() {
            self.clock.start(Some(ms));
        }
        let mut requests = Map::new();
        for op in Op::ALL {
            requests.insert(op.name(), json!(self.counts.of(op)));
        }
        let figures = self.union.figures();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.clock.age().as_secs_f64(),
            "requests": requests,
            "latencies": self.latencies(),
            "copy_ups": { "count": figures.copy_ups, "bytes": figures.copied_bytes },
            "names": {
                "known": figures.names_known,
                "asked": figures.names_asked,
                "listing_bytes": figures.listing_bytes,
            },
            "inodes": figures.inodes,
            "plinks": figures.plinks,
            "descriptors": {
                "directories": figures.dir_handles,
                "files": figures.file_handles,
                "nameless": figures.held,
                "open": own::open_descriptors(),
                "limit": own::descriptor_limit(),
                "file_hits": figures.files_open,
                "file_misses": figures.files_opened,
            },
            "memory_bytes": own::resident_bytes(),
        })
    }

    fn latencies(&self) -> Value {
        let mut of = Map::new();
        for op in Op::ALL {
            if let Some(told) = told(self.clock.of(op)) {
                of.insert(op.name(), told);
            }
        }
        json!({
            "measured": self.measured(),
            "of": of,
        })
    }
}

/// The buckets up to the last that counts, each with its limit in seconds.
fn told(histogram: &Histogram) -> Option<Value> {
    let read = |n: &std::sync::atomic::AtomicU64| n.load(std::sync::atomic::Ordering::Relaxed);
    let counts: Vec<u64> = histogram.buckets.iter().map(read).collect();
    let count: u64 = counts.iter().sum();
    let last = counts.iter().rposition(|&n| n > 0)?;
    let buckets: Vec<Value> = (0..BUCKETS.min(last + 1))
        .map(|at| json!({ "up_to_seconds": limit_of(at), "count": counts[at] }))
        .collect();
    #[allow(clippy::cast_precision_loss)] // of nanoseconds
    let sum = read(&histogram.sum_ns) as f64 / 1e9;
    Some(json!({ "count": count, "sum_seconds": sum, "buckets": buckets }))
}
