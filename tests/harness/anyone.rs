//! What root and any user can do.

pub mod changes;
mod daemon;
mod end;
mod errors;
mod faults;
mod many;
mod snapshots;
