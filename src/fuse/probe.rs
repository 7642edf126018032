//! Whether the kernel would read and write the layers' files itself (passthrough).

/// Tries it.
///
/// # Errors
/// Why it cannot be had, in words.
pub(super) fn passthrough() -> Result<(), String> {
    Err("it is not implemented".to_owned())
}
