//! What a command is about: an upper with or without its union, or a running mount.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::mount;
use crate::options::ownership::Records;
use crate::options::{Lower, Options};
use crate::sys::{self, Errno, ioctl};
use crate::union::Union;
use crate::union::control::{LAYER_HEAD, LAYER_PIECE, layer_flag};

use super::{Result, ToolError};

/// The type of our mounts.
const OURS: &[u8] = b"fuse.unionfs";
/// More layers than any union can have, and longer paths than anyone can name.
const MAX_LAYERS: u64 = 1 << 16;
const MAX_PATH: usize = 4096;

/// An upper, opened for looking.
pub(super) struct Place {
    /// Its root directory, an O_PATH handle.
    pub upper: OwnedFd,
    /// All layers as one, nothing of which is changed.
    pub all: Union,
    /// The layers below the upper, if they are known.
    pub below: Option<Union>,
}

impl Place {
    /// Opens the upper at `path`, of the union with these options if they are given; or the upper
    /// of what is mounted at `path`.
    pub fn open(path: &Path, options: Option<&Options>) -> Result<Self> {
        if let Some(options) = options {
            return Self::of(path, options);
        }
        let fail = |e: std::io::Error| ToolError::new(format_args!("{}: {e}", path.display()));
        let dir = File::open(path).map_err(fail)?;
        let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        let mounted = match sys::mount::kind_of(&mounts, &dir) {
            // Who serves a mount could answer anything, and we may have more rights than he has.
            Some((kind, user)) if kind.starts_with(b"fuse") => {
                let trusted = [Some(0), Some(sys::cred::own_uid())].contains(&user);
                if trusted {
                    mounted_layers(&dir)
                } else {
                    Ok(None)
                }
            }
            _ => Ok(None),
        };
        match mounted {
            Ok(Some(options)) => {
                let Some(upper) = options.upper.clone() else {
                    let text = format_args!("{}: the mount has no upper", path.display());
                    return Err(ToolError::new(text));
                };
                // What the kernel keeps of files that were written is to be in the upper.
                crate::ctl::write_back(path).map_err(|e| ToolError::new(format_args!("{e}")))?;
                Self::of(&upper, &options)
            }
            Ok(None) | Err(Errno::NOTTY | Errno::INVAL) => {
                let is_ours =
                    sys::mount::kind_of(&mounts, &dir).is_some_and(|(kind, _)| kind == OURS);
                let inner = sys::mount::inner_path(&mounts, &dir);
                if is_ours && inner.is_some_and(|inner| inner != Path::new("/")) {
                    let text = format_args!(
                        "{}: a directory of a mounted union; give its mountpoint",
                        path.display()
                    );
                    return Err(ToolError::new(text));
                }
                Self::of(path, &Options::default())
            }
            Err(Errno::PERM) => Err(ToolError::new(format_args!(
                "{}: only root and the user of its daemon may ask a mount for its layers",
                path.display()
            ))),
            Err(Errno::STALE) => Err(ToolError::new(format_args!(
                "{}: the mount's layers are not where it says; give the upper, and its lowers in \
                 -o lowerdir=",
                path.display()
            ))),
            Err(e) => Err(fail(e.into())),
        }
    }

    fn of(upper: &Path, options: &Options) -> Result<Self> {
        let open = |options: &Options| {
            mount::open_union(options).map_err(|e| ToolError::new(format_args!("{e}")))
        };
        let all = Options {
            upper: Some(upper.to_owned()),
            work: None,
            read_only: true,
            ..options.clone()
        };
        let below = Options {
            upper: None,
            ..all.clone()
        };
        let fd = sys::at::open_root(upper.as_os_str().as_bytes());
        let fd = fd.map_err(|e| ToolError::at(upper.as_os_str().as_bytes(), e))?;
        Ok(Self {
            upper: fd,
            all: open(&all)?,
            below: match below.lowers.is_empty() {
                true => None,
                false => Some(open(&below)?),
            },
        })
    }
}

/// The layers of what is mounted at `dir`, as its daemon tells them; ESTALE when another directory
/// is at that path for us.
fn mounted_layers(dir: &File) -> sys::Result<Option<Options>> {
    let mut options = Options::default();
    for index in 0..MAX_LAYERS {
        let Some(layer) = mounted_layer(dir, index)? else {
            break;
        };
        let is = |flag| layer.flags & flag != 0;
        options.userxattr |= is(layer_flag::USER_RECORDS);
        options.identity.noplink |= is(layer_flag::PARTED);
        if is(layer_flag::SECURITY) {
            options.ownership.records = Records::Security;
        } else if is(layer_flag::USER) {
            options.ownership.records = Records::User;
        }
        if is(layer_flag::UPPER) {
            options.upper = Some(layer.path);
        } else {
            options.lowers.push(Lower {
                path: layer.path,
                whiteouts: is(layer_flag::WHITEOUTS),
            });
        }
    }
    let any = options.upper.is_some() || !options.lowers.is_empty();
    Ok(any.then_some(options))
}

struct MountedLayer {
    flags: u64,
    path: PathBuf,
}

fn mounted_layer(dir: &File, index: u64) -> sys::Result<Option<MountedLayer>> {
    let mut path = Vec::new();
    loop {
        let piece = (path.len() / LAYER_PIECE) as u64;
        let words = ioctl::control(dir, ioctl::LAYER, index << 16 | piece)?;
        let length = usize::try_from(words[0] & 0xffff_ffff).unwrap_or(0);
        if length == 0 {
            return Ok(None);
        }
        if length > MAX_PATH {
            return Err(Errno::STALE);
        }
        let bytes = words[LAYER_HEAD..].iter().flat_map(|w| w.to_ne_bytes());
        path.extend(bytes.take(length.checked_sub(path.len()).ok_or(Errno::STALE)?));
        if path.len() < length {
            continue;
        }
        let path = PathBuf::from(OsString::from_vec(path));
        let here = sys::at::open_root(path.as_os_str().as_bytes());
        let stat = here.and_then(sys::stat::fstat).map_err(|_| Errno::STALE)?;
        if [stat.dev, stat.ino] != words[1..LAYER_HEAD] {
            return Err(Errno::STALE);
        }
        return Ok(Some(MountedLayer {
            flags: words[0],
            path,
        }));
    }
}
