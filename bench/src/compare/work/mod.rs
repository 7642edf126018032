//! What is measured: each workload with its preparation, its timed part, and a look whether the work was
//! really done.

mod micro;
pub(crate) mod tools;

use std::path::PathBuf;

use super::Result;
use super::data::Sizes;
use super::stats::Measure;

/// Where a workload works.
#[derive(Debug)]
pub(crate) struct Context {
    /// The merged tree.
    pub root: PathBuf,
    /// The layers, read-only.
    pub layers: PathBuf,
    pub sizes: Sizes,
    /// No union but a directory.
    pub plain: bool,
}

impl Context {
    /// A place of the merged tree where lowers have something for the workloads.
    pub(crate) fn srv(&self, name: &str) -> PathBuf {
        self.root.join("srv").join(name)
    }
}

type Step = fn(&Context) -> Result<()>;

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Workload {
    /// On the command line.
    pub name: &'static str,
    /// In the table.
    pub title: &'static str,
    pub measure: Measure,
    /// What ours has to reach: with passthrough, and rootless or without OPEN. A multiple of the kernel
    /// overlayfs's figure; seconds for a latency.
    pub bounds: (f64, f64),
    /// Counts for the mean over metadata.
    pub metadata: bool,
    /// The first look at the tree is measured: the layers are made warm before the mount.
    pub cold: bool,
    /// Needs the programs of a Debian root.
    pub debian: bool,
    /// Changes what the lowers have, or leaves much behind.
    pub changes: bool,
    pub setup: Step,
    /// The timed part; gives bytes for a throughput, seconds for a latency, else anything.
    pub run: fn(&Context) -> Result<f64>,
    pub check: Step,
}

/// A workload of metadata that looks at what there is.
const READS: Workload = Workload {
    name: "",
    title: "",
    measure: Measure::Time,
    bounds: (1.0, 1.0),
    metadata: true,
    cold: false,
    debian: false,
    changes: false,
    setup: |_| Ok(()),
    run: |_| Ok(0.0),
    check: |_| Ok(()),
};
const COLD: Workload = Workload {
    cold: true,
    bounds: (2.5, 2.5),
    ..READS
};
const CHANGES: Workload = Workload {
    changes: true,
    bounds: (3.0, 3.0),
    ..READS
};
const DATA: Workload = Workload {
    measure: Measure::Throughput,
    metadata: false,
    ..READS
};

/// All of them, in the order of the table.
pub(crate) const ALL: &[Workload] = &[
    Workload {
        name: "stat",
        title: "stat, hot",
        setup: micro::stat_once,
        run: micro::stat_many,
        ..READS
    },
    Workload {
        name: "stat-missing",
        title: "failed stat, hot",
        setup: micro::stat_missing_once,
        run: micro::stat_missing_many,
        ..READS
    },
    Workload {
        name: "find",
        title: "find, hot",
        bounds: (0.85, 0.9),
        setup: tools::find_warm,
        run: tools::find,
        ..READS
    },
    Workload {
        name: "du",
        title: "du, hot",
        bounds: (0.85, 0.9),
        setup: tools::du_warm,
        run: tools::du,
        ..READS
    },
    Workload {
        name: "git-status",
        title: "git status, hot",
        bounds: (0.85, 0.9),
        setup: tools::git_status_warm,
        run: tools::git_statuses,
        ..READS
    },
    Workload {
        name: "ls-lR",
        title: "ls -lR, hot",
        bounds: (1.5, 1.5),
        setup: tools::ls_warm,
        run: tools::ls,
        ..READS
    },
    Workload {
        name: "find-fresh",
        title: "find, fresh mount",
        run: tools::find,
        check: tools::find_checked,
        ..COLD
    },
    Workload {
        name: "git-status-fresh",
        title: "git status, fresh mount",
        run: tools::git_status,
        check: tools::git_status_checked,
        ..COLD
    },
    Workload {
        name: "stat-fresh",
        title: "stat, fresh mount",
        run: micro::stat_first,
        ..COLD
    },
    Workload {
        name: "readdir",
        title: "readdir of 20,000, again",
        setup: micro::list_once,
        run: micro::list_many,
        ..READS
    },
    Workload {
        name: "open",
        title: "open-read-close 4 KiB, hot",
        bounds: (2.5, 0.9),
        setup: micro::read_files_once,
        run: micro::read_files_many,
        ..READS
    },
    Workload {
        name: "open-first",
        title: "open-read-close 4 KiB, first",
        bounds: (1.7, 2.5),
        run: micro::read_files,
        ..COLD
    },
    Workload {
        name: "read",
        title: "large read, hot",
        bounds: (0.95, 0.95),
        setup: micro::read_large_once,
        run: micro::read_large_many,
        ..DATA
    },
    Workload {
        name: "read-first",
        title: "large read, first",
        bounds: (0.95, 0.4),
        setup: micro::warm_layers,
        run: micro::read_large,
        ..DATA
    },
    Workload {
        name: "write-4k",
        title: "4 KiB writes",
        bounds: (0.8, 0.5),
        setup: micro::make_output,
        run: micro::write_small,
        check: micro::check_small_output,
        changes: true,
        ..DATA
    },
    Workload {
        name: "write",
        title: "large writes",
        bounds: (0.9, 0.5),
        setup: micro::make_output,
        run: micro::write_large,
        check: micro::check_large_output,
        changes: true,
        ..DATA
    },
    Workload {
        name: "untar",
        title: "untar of a Debian root",
        bounds: (2.4, 1.7),
        setup: tools::make_target,
        run: tools::untar,
        check: tools::check_untar,
        ..CHANGES
    },
    Workload {
        name: "create",
        title: "create 4 KiB files, 1 thread",
        bounds: (1.5, 1.5),
        setup: micro::make_new_dirs,
        run: micro::create,
        check: micro::check_created,
        ..CHANGES
    },
    Workload {
        name: "create-4",
        title: "create 4 KiB files, 4 threads",
        setup: micro::make_new_dirs,
        run: micro::create_in_threads,
        check: micro::check_created,
        ..CHANGES
    },
    Workload {
        name: "unlink",
        title: "unlink, new files",
        setup: micro::make_new_files,
        run: micro::unlink_new,
        check: micro::check_new_gone,
        ..CHANGES
    },
    Workload {
        name: "unlink-lower",
        title: "unlink, files of a lower",
        setup: micro::stat_once,
        run: micro::unlink_lower,
        check: micro::check_lower_gone,
        ..CHANGES
    },
    Workload {
        name: "rename",
        title: "rename, new files",
        setup: micro::make_new_files,
        run: micro::rename,
        check: micro::check_renamed,
        ..CHANGES
    },
    Workload {
        name: "rm-lower",
        title: "rm -rf, lower tree",
        bounds: (1.5, 2.0),
        setup: tools::walk_tree,
        run: tools::remove_tree,
        check: tools::check_tree_gone,
        ..CHANGES
    },
    Workload {
        name: "rm-new",
        title: "rm -rf, new tree",
        bounds: (2.2, 2.5),
        setup: tools::copy_tree_first,
        run: tools::remove_copy,
        check: tools::check_copy_gone,
        ..CHANGES
    },
    Workload {
        name: "cp",
        title: "cp -a of a tree",
        setup: tools::walk_tree,
        run: tools::copy_tree,
        check: tools::check_copy,
        ..CHANGES
    },
    Workload {
        name: "chmod",
        title: "chmod -R, lower tree",
        bounds: (0.6, 0.8),
        setup: tools::walk_tree,
        run: tools::chmod,
        check: tools::check_chmod,
        ..CHANGES
    },
    Workload {
        name: "append",
        title: "append -R, lower tree",
        bounds: (0.6, 0.8),
        setup: tools::walk_tree,
        run: tools::append,
        check: tools::check_append,
        ..CHANGES
    },
    Workload {
        name: "compile",
        title: "C compile, make -j2",
        bounds: (1.1, 1.1),
        metadata: false,
        run: tools::compile,
        check: tools::check_compile,
        ..CHANGES
    },
    Workload {
        name: "python",
        title: "python start in a chroot",
        bounds: (1.2, 1.2),
        metadata: false,
        debian: true,
        setup: tools::python_once,
        run: tools::python,
        ..READS
    },
    Workload {
        name: "gcc",
        title: "gcc start in a chroot",
        bounds: (1.2, 1.2),
        metadata: false,
        debian: true,
        changes: true,
        setup: tools::gcc_once,
        run: tools::gcc,
        check: tools::check_gcc,
        ..READS
    },
    Workload {
        name: "latency",
        title: "stat during a copy-up of 1 GiB, extra at p99",
        measure: Measure::Latency,
        bounds: (0.001, 0.001),
        metadata: false,
        changes: true,
        setup: micro::warm_layers,
        run: micro::latency,
        check: micro::check_copied_up,
        ..READS
    },
];

/// The one with this name.
pub(crate) fn find(name: &str) -> Option<&'static Workload> {
    ALL.iter().find(|w| w.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<_> = ALL.iter().map(|w| w.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
        assert!(
            ALL.iter()
                .all(|w| find(w.name).is_some_and(|f| f.title == w.title))
        );
    }

    #[test]
    fn latencies_are_no_metadata() {
        let mut latencies = ALL.iter().filter(|w| w.measure == Measure::Latency);
        assert!(latencies.all(|w| !w.metadata));
    }
}
