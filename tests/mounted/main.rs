//! The built program, mounted over real layers and used through real system calls. Needs root.
#![allow(missing_docs, unreachable_pub, reason = "nothing outside uses this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking, in its helpers too"
)]

mod acknowledged;
mod acknowledged_cut;
mod bad_disk;
mod bare;
mod behind;
mod budgets;
mod budgets_passthrough;
mod calls;
mod crash;
mod ctl;
mod ctl_layers;
mod ctl_layers_use;
mod disk_log;
mod disk_server;
mod found;
mod hostile_callers;
mod hostile_layers;
mod hostile_races;
mod hostile_sizes;
mod idmap;
mod kept;
mod load;
mod mapped;
mod memory;
mod metacopy;
mod rename_dir;
mod snapshot;
mod spec;
mod stale;
mod stress;
mod support;
mod user;
mod waiting;

mod ops_filesystems;
mod ops_io;
mod ops_links;
mod ops_locks;
mod ops_names;
mod ops_numbers;
mod ops_options;
mod ops_plinks;
mod ops_readonly;
mod ops_refused;
mod ops_rootless;
mod ops_times;
mod ops_xattr;
mod orphans;
mod ownership;
mod ownership_map;
mod ownership_others;
mod ownership_records;
mod passthrough;
mod passthrough_cached;
mod passthrough_nodes;
mod plinks;
mod plinks_crash;
mod plinks_rootless;
mod plinks_stress;
mod plinks_without;
mod power_cut;
mod privileges;
mod process;
mod random;
mod regressions_copy_up;
mod regressions_failed_steps;
mod regressions_layers;
mod regressions_life;
mod regressions_modes;
mod regressions_unlinked;
mod requests;
mod supervise;
mod supervise_again;
mod supervise_end;
mod supervise_load;
mod supervise_passthrough;
mod system_calls;
mod trace;
mod truth_table_plinks;
mod truth_table_read;
mod truth_table_remove;
mod truth_table_rename;
mod truth_table_rename_modes;
mod truth_table_write;
mod udba;
mod udba_exact;
mod udba_rootless;
mod ways_caller;
mod ways_descriptor;
mod ways_end;
mod ways_engines;
mod ways_sandbox;
mod ways_shown;
mod ways_user;
