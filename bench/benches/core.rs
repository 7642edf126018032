//! The core without a mount.
fn main() {}
