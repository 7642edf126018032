//! A layer as an image that engines load: the OCI image layout in a tar archive.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::Header;

use crate::sys;

use super::{Result, ToolError};

/// A file without a name in `dir`.
pub(super) fn scratch(dir: &Path) -> io::Result<File> {
    use std::os::unix::ffi::OsStrExt;
    let handle = sys::at::open_root(dir.as_os_str().as_bytes())?;
    if let Ok(file) = sys::at::open_tmpfile(handle, 0o600) {
        return Ok(file.into());
    }
    // Filesystems over a network, say, have no such files.
    let path = dir.join(format!(".unionfs-image.{}", std::process::id()));
    let mut options = File::options();
    let file = options
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Writes through, and makes the digest of it.
struct Hashed<'a> {
    to: &'a mut File,
    hash: Sha256,
    size: u64,
}

impl Write for Hashed<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.to.write(data)?;
        self.hash.update(&data[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// What names a blob.
struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    fn of(hash: Sha256, size: u64) -> Self {
        let digest = hash.finalize();
        let digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { digest, size }
    }

    fn descriptor(&self, kind: &str) -> Value {
        json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{}", self.digest),
            "size": self.size,
        })
    }
}

/// The machine's name in images.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// Writes an image of the one layer that `layer` writes; `scratch` holds it meanwhile. Its time, if
/// it has one, is `latest`.
pub(super) fn image(
    mut scratch: File, out: impl Write, latest: Option<i64>,
    layer: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut hashed = Hashed {
        to: &mut scratch,
        hash: Sha256::new(),
        size: 0,
    };
    let mut buffered = io::BufWriter::with_capacity(1 << 18, &mut hashed);
    layer(&mut buffered)?;
    let fail = |e: io::Error| ToolError::new(format_args!("writing: {e}"));
    buffered.flush().map_err(fail)?;
    drop(buffered);
    let blob = Blob::of(hashed.hash, hashed.size);
    scratch.seek(SeekFrom::Start(0)).map_err(fail)?;
    archive(&scratch, &blob, out, latest).map_err(fail)
}

fn archive(layer: &File, blob: &Blob, out: impl Write, latest: Option<i64>) -> io::Result<()> {
    let mut config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {},
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", blob.digest)] },
        "history": [{ "created_by": "unionfs diff" }],
    });
    if let Some(created) = latest.and_then(date) {
        config["created"] = json!(created);
    }
    let (config, config_blob) = text(&config);
    let (manifest, manifest_blob) = text(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config_blob.descriptor("config.v1+json"),
        "layers": [blob.descriptor("layer.v1.tar")],
    }));
    let (index, _) = text(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest_blob.descriptor("manifest.v1+json")],
    }));
    let (layout, _) = text(&json!({ "imageLayoutVersion": "1.0.0" }));
    let mut out = tar::Builder::new(out);
    put(
        &mut out,
        "oci-layout",
        layout.len() as u64,
        layout.as_slice(),
    )?;
    put(&mut out, "index.json", index.len() as u64, index.as_slice())?;
    let mut blobs: Vec<(&Blob, Box<dyn Read>)> = vec![
        (blob, Box::new(layer)),
        (&config_blob, Box::new(config.as_slice())),
        (&manifest_blob, Box::new(manifest.as_slice())),
    ];
    for (blob, data) in &mut blobs {
        let name = format!("blobs/sha256/{}", blob.digest);
        put(&mut out, &name, blob.size, data)?;
    }
    out.into_inner()?.flush()
}

fn text(value: &Value) -> (Vec<u8>, Blob) {
    let text = value.to_string().into_bytes();
    let blob = Blob::of(Sha256::new_with_prefix(&text), text.len() as u64);
    (text, blob)
}

fn put(
    out: &mut tar::Builder<impl Write>, name: &str, size: u64, data: impl Read,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    out.append_data(&mut header, name, data)
}

/// Seconds since 1970 as RFC 3339 has them; `None` before, and after the year 9999.
fn date(seconds: i64) -> Option<String> {
    let days = u32::try_from(seconds / 86400)
        .ok()
        .filter(|_| seconds >= 0)?;
    let rest = seconds % 86400;
    let (mut year, mut day) = (1970, days);
    let is_leap = |year: u32| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while day >= 365 + u32::from(is_leap(year)) {
        day -= 365 + u32::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u32::from(is_leap(year));
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= months[month] {
        day -= months[month];
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let (month, day) = (month + 1, day + 1);
    (year < 10_000)
        .then(|| format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z"))
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(seconds).as_deref(), Some(text));
        }
        assert_eq!(date(-1), None);
        assert_eq!(date(i64::MAX), None);
    }
}
