//! Changes of the layers of a running mount, and of what is kept for speed, for `unionfs ctl`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::union::LayerChange;

use super::desk::Desk;
use super::watching::tell;

/// A path of a question: a text, or bytes that are none.
fn path_of(value: &Value) -> Option<PathBuf> {
    if let Some(text) = value.as_str() {
        return Some(text.into());
    }
    let bytes = value
        .as_array()?
        .iter()
        .map(|byte| byte.as_u64()?.try_into().ok());
    let bytes: Option<Vec<u8>> = bytes.collect();
    Some(OsString::from_vec(bytes?).into())
}

impl Desk {
    /// Changes the layers as the question says, and tells of those there are then.
    pub(super) fn change_layers(&self, question: &Value) -> Result<Value, String> {
        let path = |key: &str| path_of(&question[key]).filter(|path| path.is_absolute());
        let change = match (question["change"].as_str(), path("path"), path("new")) {
            (Some("add"), Some(path), _) => LayerChange::Add {
                path,
                below: path_of(&question["below"]),
            },
            (Some("remove"), Some(path), _) => LayerChange::Remove { path },
            (Some("replace"), Some(old), Some(new)) => LayerChange::Replace { old, new },
            _ => return Err("no change of layers that this daemon knows".to_owned()),
        };
        // Without a way to tell the kernel it would go on showing what was.
        let notifier = self.notifier.get().ok_or("the mount is not served yet")?;
        let notices = self.union.change_layers(&change)?;
        tell(&self.union, notifier, notices);
        Ok(json!({ "layers": self.layers(&self.union.layer_facts()) }))
    }

    /// Has everybody let go of what he keeps for speed, and write what is not written yet.
    pub(super) fn flush(&self) -> Result<Value, String> {
        let notices = self.union.flush_caches();
        let count = notices.len();
        if let Some(notifier) = self.notifier.get() {
            tell(&self.union, notifier, notices);
        }
        let synced = self.union.sync_upper();
        synced.map_err(|e| {
            format!(
                "writing the upper to its device: {}",
                std::io::Error::from(e)
            )
        })?;
        Ok(json!({ "nodes": count }))
    }
}
