//! How far long work has come: drawn on a terminal, and nowhere else.

use crate::support::Place;

/// What a command writes to a terminal, whose user gives nothing.
fn on_terminal(place: &Place, command: &str) -> String {
    place.shell(&format!(
        "TERM=xterm script -qefc '{command}' typed < /dev/null > /dev/null; cat typed"
    ))
}

#[test]
fn drawn_on_a_terminal_alone() {
    let place = Place::new("");
    place.shell("mkdir in; cd u; mkdir d; : > .wh.x; : > d/.wh.y; echo z > d/.wh..wh.z");
    for (command, words) in [
        (
            "check --repair u",
            &["reading directories", "mending ["][..],
        ),
        (
            "convert --to overlay u",
            &["reading directories", "marking [", "removing old marks ["],
        ),
        ("diff --tar t u", &["reading directories", "writing ["]),
        ("apply t in", &["unpacking ["]),
    ] {
        let drawn = on_terminal(&place, &format!("$unionfs {command}"));
        for word in words {
            assert!(drawn.contains(word), "{command}: {word}: {drawn:?}");
        }
        // The line is gone at the end: nothing but control characters follows the last one's removal.
        let (_, rest) = drawn.rsplit_once("\x1b[2K").unwrap();
        let rest = rest.replace(|c: char| c.is_control(), "");
        assert!(!words.iter().any(|word| rest.contains(word)), "{rest:?}");
        // Elsewhere there is no trace of it.
        let quiet = place.shell(&format!("$unionfs {command} 2>&1 | cat"));
        assert_eq!(quiet, "", "{command}");
        let dumb = place.shell(&format!(
            "TERM=dumb script -qefc '$unionfs {command}' typed < /dev/null > /dev/null; \
             grep -av '^Script ' typed || :"
        ));
        assert_eq!(dumb.trim(), "", "{command}");
    }
}

/// A list on a terminal is not mixed with what is drawn.
#[test]
fn results_come_after_what_was_drawn() {
    let place = Place::new("");
    place.shell("echo new > u/new");
    let drawn = on_terminal(&place, "$unionfs diff u");
    let (_, rest) = drawn.rsplit_once("\x1b[2K").unwrap();
    assert!(rest.starts_with("A\tnew"), "{drawn:?}");
}
