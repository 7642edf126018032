//! `unionfs ctl layers` and `flush` while programs are at work, and by the user of a rootless mount.

use std::fs;
use std::io::Write;
use std::process::Command;

use crate::ctl_layers::{change, ctl, is_as_anew, layer, text, tree};
use crate::process::finish;
use crate::support::Stack;
use crate::user::{DeviceMode, Place};

/// C is compiled in the mount, over and over, while layers with unused and with equal headers come and go.
#[test]
fn a_compiler_at_work_notices_nothing() {
    let m = Stack::new()
        .lower([
            "src/main.c=x",
            "inc/a.h=#define A 1\n",
            "inc/b.h=#define B 2\n",
        ])
        .lower(["inc/c.h=#define C 3\n"])
        .limit(120)
        .mount();
    let main = "#include <stdio.h>\n#include \"a.h\"\n#include \"b.h\"\n#include \"c.h\"\n\
                int main(void) { printf(\"%d\\n\", A * 100 + B * 10 + C); return 0; }\n";
    fs::write(m.p("src/main.c"), main).unwrap();
    let more = layer(
        &m,
        "more",
        &["inc/d.h=#define D 4\n", "inc/sub/e.h=\n", "bin/t=1"],
    );
    let same = layer(
        &m,
        "same",
        &["inc/a.h=#define A 1\n", "inc/c.h=#define C 3\n"],
    );
    let other = layer(
        &m,
        "other",
        &[
            "inc/a.h=#define A 1\n",
            "inc/c.h=#define C 3\n",
            "inc/f.h=\n",
        ],
    );
    std::thread::scope(|scope| {
        let compiling = scope.spawn(|| {
            for round in 0..8 {
                let text = format!(
                    "gcc -O1 -Iinc -c -o out{round}.o src/main.c && gcc -o prog{round} out{round}.o \
                     && ./prog{round}"
                );
                let mut command = Command::new("timeout");
                let command = command.args(["60", "sh", "-euc", &text]).current_dir(m.path());
                let outcome = finish(command);
                assert!(outcome.status.success(), "{}", outcome.stderr);
                assert_eq!(outcome.stdout, "123\n");
            }
        });
        let mut rounds = 0;
        while !compiling.is_finished() || rounds < 3 {
            change(&m, &["add", text(&more)]);
            change(&m, &["add", text(&same), "--below", text(&more)]);
            change(&m, &["replace", text(&same), text(&other)]);
            change(&m, &["remove", text(&more)]);
            change(&m, &["remove", text(&other)]);
            rounds += 1;
        }
        compiling.join().unwrap();
    });
    let (one, two) = (&m.layers.lowers[0], &m.layers.lowers[1]);
    is_as_anew(&m, &[one, two]);
}

#[test]
fn flush_lets_go_and_loses_nothing() {
    let m = Stack::new()
        .lower(["d/a=1", "d/b=2"])
        .mount_with("open=none");
    let mut file = fs::File::create(m.p("new")).unwrap();
    file.write_all(b"not written back yet").unwrap();
    tree(m.path());
    let outcome = ctl(&m, &["flush"]);
    assert!(outcome.status.success(), "{}", outcome.stderr);
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", ""));
    assert_eq!(fs::read(m.up("new")).unwrap(), b"not written back yet");
    let stats = ctl(&m, &["stats"]).stdout;
    assert!(stats.contains("listings take 0 bytes"), "{stats}");
    assert!(stats.contains(": 0 directories, 0 files, "), "{stats}");
    assert_eq!(tree(m.path()).len(), 4);
}

/// The user of a rootless mount changes its layers himself.
#[test]
fn the_mounting_user_may_change_layers() {
    let _device = DeviceMode::set(0o666);
    let place = Place::new();
    let text = r#"
mkdir -p more/d; echo new > more/d/new; echo other > more/f
$unionfs -o "$options" "$mnt"
exec 3< "$mnt/f"
test ! -e "$mnt/d/new"; test "$(cat "$mnt/f")" = lower
$unionfs ctl "$mnt" layers add more > /dev/null
test "$(cat "$mnt/d/new")" = new; test "$(cat "$mnt/f")" = other
test "$(cat <&3)" = lower
$unionfs ctl "$mnt" layers remove more > /dev/null
test ! -e "$mnt/d/new"; test "$(cat "$mnt/f")" = lower
$unionfs ctl "$mnt" flush
exec 3<&-
rm -r more
$end "$mnt"
"#;
    for (wrapper, end) in [
        (&[][..], "$unionfs umount"),
        (&["unshare", "-Urm"][..], "umount"),
    ] {
        let text = format!("end='{end}'\n{}", text.replace("$end", end));
        let outcome = place.script(wrapper, &text);
        assert!(
            outcome.status.success(),
            "{wrapper:?}: {}{}",
            outcome.stdout,
            outcome.stderr
        );
    }
    place.check();
}
