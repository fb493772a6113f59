//! An archive with a layout of its own, against the real binary: every verb reads it by that layout, and a start
//! with another one mixes nothing.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::corpus::{Original, events_file, input};
use crate::harness::{Daemon, eventflow, eventually, files_below, run, words};

const HIVE: &str = "year=%Y/month=%m/day=%d";

fn settings(layout: &str) -> [(&str, &str); 5] {
    [
        ("EVENTFLOW_SINK__ARCHIVE__LAYOUT", layout),
        ("EVENTFLOW_SINK__ARCHIVE__ROTATE_SIZE", "16KiB"),
        ("EVENTFLOW_SINK__ARCHIVE__COMPRESS", "zstd"),
        ("EVENTFLOW_WAL__SEGMENT", "8MiB"),
        ("EVENTFLOW_WAL__BUDGET", "64MiB"),
    ]
}

fn verb(dir: &Path, layout: &str, arguments: &[&str]) -> Output {
    let mut command = eventflow(arguments);
    command.arg("--data-dir").arg(dir).envs(settings(layout)).output().expect("it runs")
}

fn send(daemon: &Daemon, events: &[Original]) {
    let (_folder, file) = events_file(events);
    let sent = run(&["send", &file, "--url", &daemon.url()]);
    assert_eq!(sent.status.code(), Some(0), "{}", words(&sent));
    daemon.drained();
}

/// The archive's files with what is in them.
fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = files_below(&dir.join("archive")).into_iter();
    files.map(|path| (path.clone(), std::fs::read(path).expect("readable"))).collect()
}

/// Everything that was sent comes out once and in order, and verifies.
fn assert_whole(dir: &Path, events: &[Original]) {
    let verified = verb(dir, HIVE, &["archive", "verify", "--json"]);
    assert_eq!(verified.status.code(), Some(0), "{}", words(&verified));
    let verdict: Value = serde_json::from_slice(&verified.stdout).expect("JSON");
    assert_eq!(verdict["events"], events.len());
    let exported = verb(dir, HIVE, &["export"]);
    assert_eq!(exported.status.code(), Some(0), "{}", words(&exported));
    let lines = String::from_utf8(exported.stdout).expect("UTF-8");
    let told: Vec<_> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .map(|event| (event["eventflowoffset"].clone(), event["id"].clone()))
        .collect();
    let sent = events.iter().map(|event| &event.attributes["id"]).enumerate();
    let sent: Vec<_> = sent.map(|(offset, id)| (Value::from(offset.to_string()), id.clone())).collect();
    assert_eq!(told, sent);
}

#[test]
fn every_verb_reads_an_archive_by_its_layout_and_another_one_is_refused_until_it_is_set_back() {
    let (_, events) = input();
    let (first, all) = (&events[..events.len() / 2], &events[..]);
    let folder = tempfile::tempdir().expect("a temporary directory");
    let dir = folder.path();
    let daemon = Daemon::start(dir, &settings(HIVE));
    send(&daemon, first);
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_whole(dir, first);
    let before = content(dir);
    let names: Vec<&str> =
        before.iter().filter_map(|(path, _)| path.strip_prefix(dir.join("archive")).ok()?.to_str()).collect();
    assert!(names.iter().any(|name| name.ends_with(".zst")), "{names:?}");
    let is_hive = |name: &&str| name.starts_with("year=2") && name.contains("/day=");
    assert!(names.iter().all(|name| is_hive(name) || *name == "manifest.ndjson"), "{names:?}");

    let sentence =
        format!("was written with `layout` = \"{HIVE}\", and `layout` = \"%Y/%m/%d\" is configured");
    let assert_named = |said: &str| {
        assert!(said.contains(&sentence), "{said}");
        assert!(said.contains("/archive/year=2") && said.contains("/events-0"), "{said}");
    };
    let mut daemon = Daemon::launch(dir, &settings("%Y/%m/%d"));
    let ended = eventually("the daemon to refuse", || daemon.ended());
    eventually("the last words", || daemon.said().contains("sink `archive`").then_some(()));
    assert_eq!(ended.code(), Some(2), "{}", daemon.said());
    assert_named(&daemon.said());
    let verbs: [&[&str]; 4] =
        [&["export"], &["archive", "verify"], &["archive", "list"], &["archive", "repair", "--yes"]];
    for arguments in verbs {
        let refused = verb(dir, "%Y/%m/%d", arguments);
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}: {}", words(&refused));
        assert_named(&words(&refused));
        assert!(refused.stdout.is_empty(), "{arguments:?}");
    }
    assert!(content(dir) == before, "something was changed");

    let daemon = Daemon::start(dir, &settings(HIVE));
    send(&daemon, all);
    daemon.kill();
    let daemon = Daemon::start(dir, &settings(HIVE));
    daemon.drained();
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_whole(dir, all);
}
