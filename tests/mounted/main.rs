//! The built program, mounted over real layers and used through real system calls. Needs root.
#![allow(missing_docs, unreachable_pub)]

mod calls;
mod snapshot;
mod spec;
mod support;

mod truth_table_read;
mod truth_table_remove;
mod truth_table_rename;
mod truth_table_write;
