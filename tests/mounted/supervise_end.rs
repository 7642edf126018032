//! How a supervised mount ends, and how it passes to another program.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::mount::UnmountFlags;
use rustix::process::{Pid, Signal, kill_process};

use crate::process::{copy_program, daemons, device_of, finish, run, unionfs, wait_for};
use crate::supervise::{STEP, keeper, kill_server, server, while_killed};
use crate::support::Stack;
use crate::ways_user::good;

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[track_caller]
fn over(mnt: &Path) {
    let gone = || daemons(mnt).is_empty().then_some(());
    assert!(wait_for(STEP, gone).is_some(), "a process stays");
    assert_eq!(device_of(mnt), None, "it is still mounted");
}

#[test]
fn signals_end_both() {
    for of_server in [false, true] {
        let mut m = Stack::new().lower(["f=1"]).mount_with("supervise");
        kill_server(m.path());
        let keeper = keeper(m.path());
        let server = server(m.path(), keeper);
        m.assert_file("f", "1");
        signal(if of_server { server } else { keeper }, Signal::TERM);
        m.ended().unwrap();
        over(m.path());
    }
}

/// Root of a container has the daemon's user id, but no business with what is outside.
#[test]
fn no_programs_for_a_containers_root() {
    let m = Stack::new().lower(["f=1"]).mount_with("supervise");
    let server_before = server(m.path(), keeper(m.path()));
    let contained = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args([
            "-m",
            "setpriv",
            "--bounding-set=-all",
            "--inh-caps=-all",
            unionfs(),
        ]);
        finish(command.args(words).arg(m.path()))
    };
    for words in [&["upgrade"][..], &["plink", "list"], &["diff"]] {
        let outcome = contained(words);
        assert!(!outcome.status.success(), "{words:?}: {}", outcome.stdout);
    }
    assert_eq!(server(m.path(), keeper(m.path())), server_before);
    good(&finish(
        Command::new(unionfs())
            .args(["plink", "list"])
            .arg(m.path()),
    ));
}

/// Unmounting needs nobody who serves.
#[test]
fn unmounted_while_nobody_serves() {
    let layers = Stack::new().lower(["f=1"]).build();
    let options = layers.options("supervise");
    good(&run(&[OsStr::new("-o"), &options, layers.mnt.as_os_str()]));
    let keeper = keeper(&layers.mnt);
    signal(keeper, Signal::STOP);
    signal(server(&layers.mnt, keeper), Signal::KILL);
    rustix::mount::unmount(&layers.mnt, UnmountFlags::empty()).unwrap();
    signal(keeper, Signal::CONT);
    over(&layers.mnt);
}

/// A server that cannot begin is not tried for ever, and nobody hangs.
#[test]
fn an_end_without_a_server() {
    let layers = Stack::new().lower(["f=1"]).build();
    let options = layers.options("supervise,auto_unmount");
    good(&run(&[OsStr::new("-o"), &options, layers.mnt.as_os_str()]));
    let keeper = keeper(&layers.mnt);
    let ends = || {
        // As soon as one is there.
        let server = daemons(&layers.mnt).into_iter().find(|pid| *pid != keeper);
        if let Some(pid) = server.and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        daemons(&layers.mnt).is_empty().then_some(())
    };
    wait_for(Duration::from_secs(50), ends).expect("it ends");
    over(&layers.mnt);
}

#[test]
fn an_upgrade_while_it_is_used() {
    let m = Stack::new().lower(["f=1"]).mount_with("supervise");
    let keeper = keeper(m.path());
    let programs: Vec<_> = (0..2)
        .map(|n| {
            let dir = m.layers.scratch().join(format!("program{n}"));
            fs::create_dir(&dir).unwrap();
            let program = dir.join("unionfs");
            copy_program(unionfs(), &program);
            program
        })
        .collect();
    let open = fs::File::create(m.p("gone")).unwrap();
    fs::remove_file(m.p("gone")).unwrap();
    let work = || {
        for n in 0..3000 {
            let (one, other) = (m.p(format!("a{n}")), m.p(format!("b{n}")));
            fs::write(&one, n.to_string()).unwrap();
            fs::rename(&one, &other).unwrap();
            assert_eq!(fs::read_to_string(&other).unwrap(), n.to_string());
            fs::remove_file(&other).unwrap();
        }
    };
    let ((), upgrades) = while_killed(m.path(), Duration::from_millis(200), work, |n| {
        let program = &programs[usize::try_from(n % 2).unwrap()];
        let mut command = std::process::Command::new(program);
        good(&finish(command.arg("upgrade").arg(m.path())));
        assert_eq!(
            fs::read_link(format!("/proc/{keeper}/exe")).unwrap(),
            *program
        );
        let server = server(m.path(), keeper);
        assert_eq!(
            fs::read_link(format!("/proc/{server}/exe")).unwrap(),
            *program
        );
    });
    assert!(upgrades > 0);
    assert_eq!(open.metadata().unwrap().len(), 0);
    m.assert_ls("", &["f"]);
}

#[test]
fn an_upgrade_that_cannot_be() {
    let layers = Stack::new().lower(["f=1"]).build();
    let upgrade = |place: &Path| run(&[OsStr::new("upgrade"), place.as_os_str()]);
    let outcome = upgrade(&layers.mnt);
    assert!(
        outcome.stderr.contains("not the root of a union"),
        "{}",
        outcome.stderr
    );
    let m = layers.mount();
    let outcome = upgrade(m.path());
    assert_eq!(outcome.status.code(), Some(1));
    assert!(outcome.stderr.contains("supervise"), "{}", outcome.stderr);
    m.assert_file("f", "1");
}

/// Something that is none of ours, does not begin, or understands the kernel otherwise: the program
/// before serves on, and is asked to pass the mount on once more.
#[test]
fn an_upgrade_that_fails() {
    use std::os::unix::fs::PermissionsExt;

    let m = Stack::new()
        .lower(["f=1"])
        .mount_with("supervise,open=cached");
    let keeper = keeper(m.path());
    let runs = || fs::read_link(format!("/proc/{keeper}/exe")).unwrap();
    let before = runs();
    let dir = m.layers.scratch().join("program");
    let program = dir.join("unionfs");
    fs::create_dir(&dir).unwrap();
    let open = fs::File::create(m.p("gone")).unwrap();
    fs::remove_file(m.p("gone")).unwrap();
    let own = unionfs();
    let other_options = format!("#!/bin/sh\nexec {own} \"$1\" \"$2,open=none\" \"$3\"\n");
    let programs = [
        (None, "No such file"),
        (Some("exit 0"), "serves on"),
        (Some("#!/bin/sh\nexit 3\n"), "serves on"),
        (Some("#!/bin/sh\nkill -9 $$\n"), "serves on"),
        (Some(other_options.as_str()), "serves on"),
    ];
    for (text, words) in programs {
        if let Some(text) = text {
            let script = m.layers.scratch().join("script");
            fs::write(&script, text).unwrap();
            copy_program(&script, &program);
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        // Its name is the one of this program only for who calls it.
        let mut command = std::process::Command::new("unshare");
        let call = "cp \"$1\" \"$2/copy\" && mount -t tmpfs none \"$3\" && cp \"$2/copy\" \"$3/unionfs\" && \
                    exec \"$3/unionfs\" upgrade \"$4\"";
        command.args(["-m", "sh", "-c", call, "sh", own]);
        let outcome = finish(command.arg(m.layers.scratch()).arg(&dir).arg(m.path()));
        assert_eq!(outcome.status.code(), Some(1), "{text:?}");
        assert!(
            outcome.stderr.contains(words),
            "{text:?}: {}",
            outcome.stderr
        );
        assert_eq!(runs(), before);
        m.assert_file("f", "1");
        assert_eq!(open.metadata().unwrap().len(), 0);
        fs::write(m.p("new"), "2").unwrap();
        fs::remove_file(m.p("new")).unwrap();
    }
    fs::remove_file(&program).unwrap();
    copy_program(own, &program);
    good(&finish(
        std::process::Command::new(&program)
            .arg("upgrade")
            .arg(m.path()),
    ));
    assert_eq!(runs(), program);
    m.assert_ls("", &["f"]);
}
