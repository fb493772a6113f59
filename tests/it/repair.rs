//! `eventflow wal repair` on the real binary: it says first, does when told to, and loses nothing intact.

use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};

use crate::faults::{assert_fails, find, folder, held, set_paused, text, verify};
use crate::harness::{Daemon, TINY, archive, files_below, run, words};

fn repair(dir: &Path, more: &[&str]) -> (Option<i32>, String, Output) {
    let output = run(&[&["wal", "repair", "--data-dir", text(dir)], more].concat());
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), words(&output));
    (output.status.code(), said, output)
}

/// Every file of the data directory but the lock, with its bytes.
fn content(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let files = files_below(dir).into_iter().filter(|file| !file.ends_with("lock"));
    files.map(|file| (file.clone(), std::fs::read(file).expect("readable"))).collect()
}

#[test]
fn a_damaged_log_is_repaired_when_told_to_and_delivers_what_is_intact_once() {
    let dir = folder();
    let count = 1_200;
    held(dir.path(), count, |daemon| assert_eq!(daemon.terminate().code(), Some(0)));
    assert_eq!(repair(dir.path(), &[]).0, Some(0), "nothing to repair");
    assert!(repair(dir.path(), &["--yes"]).1.contains("nothing to repair"));

    // A wrong bit in the first segment, the second one gone, the last event wrong.
    for victim in [7, count - 1] {
        let (file, mut bytes, at) = find(dir.path(), &format!("payload-of-{victim}-"));
        bytes[at + 2] ^= 0x10;
        std::fs::write(&file, &bytes).expect("writable");
    }
    let is_segment = |file: &std::path::PathBuf| {
        file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("0000"))
    };
    let mut segments: Vec<_> = files_below(&dir.path().join("wal")).into_iter().filter(is_segment).collect();
    segments.sort();
    assert!(segments.len() > 3, "{segments:?}");
    let base = |at: usize| -> u64 {
        let name = segments[at].file_stem().expect("a name").to_string_lossy().into_owned();
        name.parse().expect("an offset")
    };
    let gone = base(1)..base(2);
    std::fs::remove_file(&segments[1]).expect("removable");

    let before = content(dir.path());
    let (code, said, _) = repair(dir.path(), &[]);
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("would: write") && said.contains("--yes does it"), "{said}");
    assert!(before == content(dir.path()), "a dry run changed something");

    let (code, said, output) = repair(dir.path(), &["--yes", "--json"]);
    assert_eq!(code, Some(0), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (&report["done"], report["repairs"].as_array().map(Vec::len)),
        (&json!(true), Some(2)),
        "{report}"
    );
    for one in report["repairs"].as_array().expect("a list") {
        let kept = std::fs::read(one["quarantined"].as_str().expect("a path")).expect("readable");
        let was = before.iter().find(|(file, _)| Some(text(file)) == one["file"].as_str());
        assert!(was.is_some_and(|(_, bytes)| *bytes == kept), "the original is kept: {one}");
    }
    assert_eq!(verify(dir.path()).0, Some(0), "it verifies");
    assert!(repair(dir.path(), &["--yes"]).1.contains("nothing to repair"));

    let daemon = Daemon::start(dir.path(), TINY);
    set_paused(&daemon, false);
    let status = daemon.drained();
    assert_eq!(status["wal"]["damaged_ranges"], 3, "the losses stay counted: {status}");
    let kept: Vec<u64> = archive(dir.path()).iter().map(|a| a.offset).collect();
    let is_lost = |offset: &u64| *offset == 7 || *offset == count as u64 - 1 || gone.contains(offset);
    assert_eq!(kept, (0..count as u64).filter(|offset| !is_lost(offset)).collect::<Vec<_>>());
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(run(&["archive", "verify", "--data-dir", text(dir.path())]).status.code(), Some(0));
}

#[test]
fn beside_a_running_daemon_a_repair_only_says_what_it_would_do() {
    let dir = folder();
    let nothing = run(&["wal", "repair", "--yes", "--data-dir", text(dir.path())]);
    assert_fails(&nothing, 1, &["there is no log in", "--data-dir"]);
    let daemon = Daemon::start(dir.path(), TINY);
    assert_eq!(repair(dir.path(), &[]).0, Some(0));
    assert_fails(&repair(dir.path(), &["--yes"]).2, 3, &["in use by another eventflow process"]);
    assert_eq!(daemon.terminate().code(), Some(0));
}
