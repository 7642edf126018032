//! What `make install` and the Debian package put in place.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::command::run;
use crate::machine::{Machine, alone, make};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The files and links below a directory.
fn files(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                todo.push(path);
            } else {
                found.insert(
                    path.strip_prefix(root)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned(),
                );
            }
        }
    }
    found
}

/// The names in a directory of the project that end so.
fn documents(dir: &str, end: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(Path::new(ROOT).join(dir)) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(end)).collect()
}

/// Man pages and completions below `usr` or the like.
fn extras(prefix: &str, zsh: &str) -> Vec<String> {
    let mut expected = Vec::new();
    for page in documents("docs", ".8") {
        expected.push(format!("{prefix}/share/man/man8/{page}"));
    }
    for file in documents("docs/completions", "") {
        let (dir, name) = match file.rsplit_once('.') {
            Some((stem, "bash")) => ("bash-completion/completions", stem),
            Some((_, "fish")) => ("fish/vendor_completions.d", file.as_str()),
            _ => (zsh, file.as_str()),
        };
        expected.push(format!("{prefix}/share/{dir}/{name}"));
    }
    expected
}

#[test]
fn install_and_uninstall() {
    alone();
    let dir = tempfile::tempdir().unwrap();
    for (variables, bin, helpers, prefix) in [
        (&["PREFIX=/usr"][..], "usr/bin", "sbin", "usr"),
        (&[], "usr/local/bin", "sbin", "usr/local"),
        (
            &["PREFIX=/opt/a b", "SBINDIR=/opt/a b/sbin"],
            "opt/a b/bin",
            "opt/a b/sbin",
            "opt/a b",
        ),
        (
            &["PREFIX=/usr", "FUSE_OVERLAYFS=1"],
            "usr/bin",
            "sbin",
            "usr",
        ),
    ] {
        make("install", dir.path(), variables);
        let found = files(dir.path());
        let mut expected = extras(prefix, "zsh/site-functions");
        expected.push(format!("{bin}/unionfs"));
        expected.push(format!("{prefix}/share/doc/unionfs/LICENSE-MIT"));
        expected.push(format!("{prefix}/share/doc/unionfs/README.md"));
        for helper in ["mount.unionfs", "mount.fuse.unionfs", "mount.fuse3.unionfs"] {
            expected.push(format!("{helpers}/{helper}"));
        }
        for file in &expected {
            assert!(
                found.contains(file),
                "{variables:?}: no {file} in {found:?}"
            );
        }
        let link = dir.path().join(bin).join("fuse-overlayfs");
        let wanted = variables.contains(&"FUSE_OVERLAYFS=1");
        assert_eq!(
            fs::read_link(&link).is_ok_and(|to| to == Path::new("unionfs")),
            wanted
        );
        let mode = dir
            .path()
            .join(bin)
            .join("unionfs")
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o755);
        make("uninstall", dir.path(), variables);
        assert_eq!(files(dir.path()), BTreeSet::new(), "{variables:?}");
    }
}

#[test]
fn uninstall_leaves_what_others_put_there() {
    alone();
    let dir = tempfile::tempdir().unwrap();
    make("install", dir.path(), &["PREFIX=/usr"]);
    let real = dir.path().join("usr/bin/fuse-overlayfs");
    fs::write(&real, "another program").unwrap();
    make("uninstall", dir.path(), &["PREFIX=/usr"]);
    assert!(real.exists());
}

#[test]
fn debian_package() {
    alone();
    let dir = tempfile::tempdir().unwrap();
    let package = dir.path().join("unionfs.deb");
    let mut build = Command::new(env!("CARGO"));
    build
        .current_dir(ROOT)
        .args(["deb", "--locked", "--quiet", "--fast", "--output"]);
    let output = build.arg(&package).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "cargo deb (tests/setup.sh installs it): {text}"
    );

    let root = dir.path().join("root");
    let database = root.join("var/lib/dpkg");
    fs::create_dir_all(database.join("updates")).unwrap();
    fs::create_dir(database.join("info")).unwrap();
    for file in ["status", "available"] {
        fs::write(database.join(file), "").unwrap();
    }
    let mut install = Command::new("dpkg");
    install
        .arg("--instdir")
        .arg(&root)
        .arg("--admindir")
        .arg(&database);
    // Its own database knows of no other package.
    install
        .args(["--log=/dev/null", "--force-depends", "--install"])
        .arg(&package);
    let outcome = run(&mut install);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);

    let found = files(&root);
    let mut expected = extras("usr", "zsh/vendor-completions");
    for file in ["usr/bin/unionfs", "usr/share/doc/unionfs/copyright"] {
        expected.push(file.to_owned());
    }
    for helper in ["mount.unionfs", "mount.fuse.unionfs", "mount.fuse3.unionfs"] {
        expected.push(format!("usr/sbin/{helper}"));
    }
    for file in expected {
        let packed = format!("{file}.gz");
        assert!(
            found.contains(&file) || found.contains(&packed),
            "no {file} in {found:?}"
        );
    }
    let control = run(Command::new("dpkg-deb").arg("-f").arg(&package));
    for line in [
        "Package: unionfs",
        "Suggests: podman",
        "Conflicts: unionfs-fuse",
    ] {
        assert!(control.good().stdout.contains(line), "{}", control.stdout);
    }
    assert!(control.stdout.contains("fuse3"), "{}", control.stdout);

    let machine = Machine::with(&root.join("usr/bin"), &root.join("usr/sbin"));
    machine.fstab("@/l1:@/l2 @/m unionfs upperdir=@/u,workdir=@/w 0 0\n");
    machine.sh("mount -a").good();
    machine.works("m");
    machine.umount("m");
}
