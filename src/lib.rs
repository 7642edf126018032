//! unionfs: a union filesystem for FUSE.
