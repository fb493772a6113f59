//! Snapshots of the real daemon under load, and what becomes of them: each verifies, starts, and has
//! everything that was acknowledged before it began; and what cannot be one is refused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::harness::{Archived, Daemon, TINY, archive, eventually, files_below, run, words};

/// Many small files, so that most of a snapshot's archive is finished.
fn settings() -> Vec<(&'static str, &'static str)> {
    [TINY, &[("EVENTFLOW_SINK__ARCHIVE__ROTATE_SIZE", "32KiB"), ("EVENTFLOW_WAL__BUDGET", "1MiB")]].concat()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn snapshot(daemon: &Daemon, dir: &Path) -> Output {
    run(&["snapshot", text(dir), "--url", &daemon.url(), "--json"])
}

/// Posts until it is told to stop; every id that was acknowledged goes into `known`.
fn load(daemon: &Daemon, number: u64, known: &Mutex<BTreeSet<String>>, stop: &AtomicBool) {
    let mut client = daemon.client();
    for request in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let ids: Vec<String> = (0..1 + request % 9).map(|i| format!("c{number}-{request}-{i}")).collect();
        let event = |id: &String| {
            format!(r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t","data":"{:>200}"}}"#, id)
        };
        let body = ids.iter().map(event).collect::<Vec<_>>().join("\n");
        let answer = eventually("an answer that is no refusal", || {
            let answer = client.post("application/x-ndjson", body.as_bytes()).expect("an answer");
            (answer.status != 429).then_some(answer)
        });
        assert_eq!(answer.status, 202, "{}", answer.text());
        known.lock().expect("nobody panics with it").extend(ids);
    }
}

/// Ids in the archive, which holds each once and in order.
fn ids(archived: &[Archived]) -> BTreeSet<String> {
    assert!(archived.is_sorted_by(|a, b| a.offset < b.offset), "offsets must ascend without repeat");
    let ids: BTreeSet<String> = archived.iter().map(|line| line.id.clone()).collect();
    assert_eq!(ids.len(), archived.len(), "an event twice");
    ids
}

/// Four snapshots while eight clients post, each with what had been acknowledged before it began.
fn taken_under_load(
    daemon: &Daemon,
    dir: &Path,
    known: &Mutex<BTreeSet<String>>,
) -> Vec<(PathBuf, BTreeSet<String>)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let stop = &stop;
            scope.spawn(move || load(daemon, number, known, stop));
        }
        let mut taken = Vec::new();
        for round in 0..4 {
            let wanted = (round + 1) * 4000;
            eventually("enough events", || {
                (known.lock().expect("nobody panics with it").len() >= wanted).then_some(())
            });
            let before = known.lock().expect("nobody panics with it").clone();
            let at = dir.join(format!("snapshot-{round}"));
            let output = snapshot(daemon, &at);
            assert_eq!(output.status.code(), Some(0), "{}", words(&output));
            taken.push((at, before));
        }
        stop.store(true, Ordering::Relaxed);
        taken
    })
}

fn verified(of: &str, at: &Path) -> Value {
    let output = run(&[of, "verify", "--json", "--data-dir", text(at)]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{of} of {}: {}{}",
        at.display(),
        words(&output),
        String::from_utf8_lossy(&output.stdout)
    );
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn snapshots_under_full_load_verify_start_and_miss_nothing_accepted_before_they_began() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let daemon = Daemon::start(&dir.path().join("data"), &settings());
    let known = Mutex::new(BTreeSet::new());
    let taken = taken_under_load(&daemon, dir.path(), &known);
    daemon.drained();
    assert_eq!(daemon.terminate().code(), Some(0));

    for (at, before) in &taken {
        assert!(!at.join("lock").exists() && !at.join("snapshot.incomplete").exists());
        verified("wal", at);
        verified("archive", at);
        let restored = Daemon::start(at, &settings());
        let status = restored.drained();
        assert_eq!(status["wal"]["damaged_ranges"], 0, "{status}");
        assert_eq!(restored.client().post("application/json", b"\"new\"").expect("answered").status, 202);
        restored.drained();
        assert_eq!(restored.terminate().code(), Some(0));
        let archived = archive(at);
        let missing: Vec<_> = before.difference(&ids(&archived)).cloned().collect();
        assert!(missing.is_empty(), "{} of {} are missing: {missing:?}", missing.len(), before.len());
        let last = archived.last().expect("there are events").offset;
        assert_eq!(archived.len() as u64, last + 1, "every offset from 0 on");
        verified("archive", at);
    }
    // What was done with the snapshots does not show in the original.
    assert_eq!(ids(&archive(&dir.path().join("data"))), *known.lock().unwrap());
    use std::os::unix::fs::MetadataExt;
    let files = files_below(&taken[3].0.join("archive"));
    let shared = files.iter().filter(|file| file.metadata().is_ok_and(|file| file.nlink() > 1)).count();
    assert!(shared > 10, "finished files are shared: {shared}");
}

#[test]
fn a_snapshot_while_files_are_compressed_and_removed_says_what_was_removed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let retention =
        [("EVENTFLOW_SINK__ARCHIVE__COMPRESS", "zstd"), ("EVENTFLOW_SINK__ARCHIVE__RETAIN_SIZE", "64KiB")];
    let settings = [settings(), retention.to_vec()].concat();
    let daemon = Daemon::start(&dir.path().join("data"), &settings);
    let taken = taken_under_load(&daemon, dir.path(), &Mutex::new(BTreeSet::new()));
    assert_eq!(daemon.terminate().code(), Some(0));
    for (at, _) in &taken {
        verified("archive", at);
        let restored = Daemon::start(at, &settings);
        restored.drained();
        assert_eq!(restored.terminate().code(), Some(0));
        verified("archive", at);
    }
    let found = verified("archive", &taken[3].0);
    assert!(found["removed_files"].as_u64().is_some_and(|files| files > 5), "{found}");
}

#[test]
fn what_cannot_be_a_snapshot_is_refused_and_nothing_of_it_stays() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let daemon = Daemon::start(&dir.path().join("data"), &settings());
    let mut client = daemon.client();
    let mut ask = |body: &str| {
        let headers = [("content-type", "application/json")];
        client.request("POST", "/v1/snapshot", &headers, body.as_bytes()).expect("an answer")
    };
    let full = dir.path().join("full");
    std::fs::create_dir(&full).expect("a directory");
    std::fs::write(full.join("file"), "mine").expect("a file");
    let inside = dir.path().join("data/snapshot");
    for (asked, status, slug) in [
        (r#"{"dir":"relative"}"#.to_owned(), 400, "malformed"),
        (r#"{"dir":"/tmp/../etc"}"#.to_owned(), 400, "malformed"),
        (r#"{"directory":"/x"}"#.to_owned(), 400, "malformed"),
        (format!(r#"{{"dir":"{}"}}"#, inside.display()), 400, "malformed"),
        (format!(r#"{{"dir":"{}"}}"#, full.join("file").display()), 400, "malformed"),
        (format!(r#"{{"dir":"{}"}}"#, full.display()), 409, "conflict"),
    ] {
        let answer = ask(&asked);
        assert_eq!((answer.status, answer.slug().as_str()), (status, slug), "{asked}: {}", answer.text());
    }
    assert!(!inside.exists());
    assert_eq!(files_below(&full).len(), 1);

    // A half snapshot, as a power loss may leave it, is no data directory.
    let half = dir.path().join("half");
    let output = snapshot(&daemon, &half);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    std::fs::write(half.join("snapshot.incomplete"), "").expect("a file");
    let refused = run(&["serve", "--data-dir", text(&half), "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(words(&refused).contains("never finished"), "{}", words(&refused));
}

#[test]
fn a_pause_and_the_failure_table_are_in_a_snapshot() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (address, _received) =
        crate::webhook::receiver(|body| if body.contains("\"number\":3}") { 422 } else { 200 });
    let daemon = crate::webhook::daemon(dir.path(), address, "mode = \"structured\"");
    crate::webhook::post(&daemon, 0..10);
    eventually("a dead row", || (crate::webhook::finished(&daemon)["dead"] == 1).then_some(()));
    let paused = daemon.client().request("POST", "/v1/sinks/hook/pause", &[], b"").expect("an answer");
    assert_eq!(paused.status, 200);
    let at = dir.path().join("snapshot");
    let output = snapshot(&daemon, &at);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    assert_eq!(daemon.terminate().code(), Some(0));

    let mut command = crate::harness::eventflow(&["serve", "--listen", "127.0.0.1:0", "--config"]);
    command.arg(dir.path().join("eventflow.toml")).arg("--data-dir").arg(&at).envs(TINY.iter().copied());
    let restored = Daemon::spawn(command, &at).listening();
    let hook = eventually("the daemon to serve", || {
        let status = restored.status();
        let sinks = status["sinks"].as_array()?;
        sinks.iter().find(|sink| sink["name"] == "hook").cloned()
    });
    assert_eq!((&hook["state"], &hook["dead"], &hook["delivered"]), (&"paused".into(), &1.into(), &9.into()));
    let shown = run(&["failures", "show", "hook", "3", "--json", "--url", &restored.url()]);
    assert_eq!(shown.status.code(), Some(0), "{}", words(&shown));
    assert_eq!(restored.terminate().code(), Some(0));
}
