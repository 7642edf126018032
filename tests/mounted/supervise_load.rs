//! Real programs on a mount whose server is killed again and again.
//!
//! With `UNIONFS_STRESS_SECONDS=60` the server is killed every two seconds for a minute.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{Outcome, finish};
use crate::supervise::{duration, kill_server, while_killed};
use crate::support::Stack;
use crate::ways_user::good;

fn shell(dir: &Path, text: &str) -> Outcome {
    finish(Command::new("sh").args(["-ec", text]).current_dir(dir))
}

/// A small repository.
fn repository(at: &Path) {
    fs::create_dir(at).unwrap();
    good(&shell(
        at,
        "git init -q . && mkdir d && for n in $(seq 300); do seq $n $((n * 7)) > d/f$n; done && git add . &&
         git -c user.name=n -c user.email=e commit -qm one",
    ));
}

const COMPILE: &str = "rm -rf c && mkdir c && cd c
for n in $(seq 12); do echo \"int f$n(int x) { return x * $n; }\" > f$n.c; done
{ echo 'int main(void) { int sum = 0;'; for n in $(seq 12); do echo \"int f$n(int); sum += f$n(1);\"; done
  echo 'return sum == 78 ? 0 : 1; }'; } > main.c
for n in $(seq 12); do cc -O1 -c f$n.c; done
cc -o prog main.c f*.o && ./prog";

const CLONE: &str = "rm -rf clone && git clone -q --no-hardlinks ../repository clone
git -C clone fsck --full && test -z \"$(git -C clone status --porcelain)\" && diff -r ../repository/d clone/d";

#[test]
fn programs_that_write_and_verify() {
    let limit = 120 + duration().as_secs() * 2;
    let m = Stack::new()
        .lower(["f=1"])
        .limit(limit)
        .mount_with("supervise");
    repository(&m.layers.scratch().join("repository"));
    let seconds = duration().as_secs();
    let pause = if seconds >= 60 { 2000 } else { 400 };
    let fio = format!(
        "fio --name=v --size=16m --bs=16k --rw=randrw --verify=crc32c --verify_backlog=64 --numjobs=2 \
         --time_based --runtime={} --verify_fatal=1",
        seconds.min(20)
    );
    let work = || {
        let end = Instant::now() + Duration::from_secs(seconds);
        let again = |text: &str| {
            let mut runs = 0;
            while Instant::now() < end || runs == 0 {
                good(&shell(m.path(), text));
                runs += 1;
            }
            runs
        };
        thread::scope(|scope| {
            let runs = [&fio, COMPILE, CLONE].map(|text| scope.spawn(move || again(text)));
            runs.map(|run| run.join().unwrap())
        })
    };
    let (runs, kills) = while_killed(m.path(), Duration::from_millis(pause), work, |_| {
        kill_server(m.path());
    });
    assert!(kills > 0 && runs.iter().all(|runs| *runs > 0));
    good(&shell(m.path(), "rm -rf clone c v.*"));
}
