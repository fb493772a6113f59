//! The index of the failure table under the real binary: deleted, damaged, in the way, killed while it
//! opens. The same rows each time, one warning, and the daemon serves.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Daemon, Random, eventually, run, words};
use crate::webhook::{daemon, finished, post, receiver};

/// Two of three events are refused for good.
fn is_bad(body: &str) -> bool {
    let value: Value = serde_json::from_str(body).expect("an event");
    value["data"]["number"].as_u64().is_some_and(|number| number % 3 != 0)
}

fn rows(daemon: &Daemon) -> String {
    let output = run(&["failures", "list", "--limit", "0", "--json", "--url", &daemon.url()]);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    let filtered = ["failures", "list", "--limit", "0", "--json", "--error", "422", "--type", "eventflow.*"];
    let filtered = run(&[&filtered[..], &["--url", &daemon.url()]].concat());
    let text = String::from_utf8(output.stdout).expect("JSON");
    assert_eq!(String::from_utf8_lossy(&filtered.stdout), text, "a filter finds the same");
    text
}

fn rebuilds(daemon: &Daemon) -> u64 {
    daemon.status()["failures"]["index_rebuilds"].as_u64().expect("a number")
}

fn warnings(daemon: &Daemon) -> usize {
    let said = daemon.said();
    said.lines().filter(|line| line.contains("WARN") && line.contains("index of the failure table")).count()
}

/// Overwrites bytes of a file.
fn overwrite(file: &Path, at: usize, with: impl Fn(u8) -> u8, count: usize) {
    let mut bytes = fs::read(file).expect("the file");
    bytes.iter_mut().skip(at).take(count).for_each(|byte| *byte = with(*byte));
    fs::write(file, bytes).expect("the file");
}

#[test]
fn whatever_becomes_of_the_index_the_rows_are_the_same_and_the_daemon_serves() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (address, _) = receiver(|body| if is_bad(body) { 422 } else { 200 });
    let start = || {
        let running = daemon(dir.path(), address, "mode = \"structured\"");
        eventually("it to be ready", || (running.client().get("/readyz").ok()?.status == 200).then_some(()));
        running
    };
    let index = dir.path().join("data").join("state.sled");
    let db = index.join("db");
    let running = start();
    (0..3).for_each(|part| post(&running, part * 100..(part + 1) * 100));
    eventually("two hundred dead rows", || (finished(&running)["dead"] == 200).then_some(()));
    let before = rows(&running);
    assert_eq!((before.lines().count(), rebuilds(&running), warnings(&running)), (200, 0, 0));
    assert_eq!(running.terminate().code(), Some(0));

    // What is done to it, and whether anything is to be noticed.
    let damages: &[(&str, u64, &dyn Fn())] = &[
        ("nothing", 0, &|| ()),
        ("deleted", 1, &|| fs::remove_dir_all(&index).expect("it is there")),
        ("emptied", 1, &|| {
            fs::remove_dir_all(&index).expect("it is there");
            fs::create_dir(&index).expect("a directory");
        }),
        ("a file in its place", 1, &|| {
            fs::remove_dir_all(&index).expect("it is there");
            fs::write(&index, "no directory").expect("a file");
        }),
        ("its beginning overwritten", 1, &|| overwrite(&db, 0, |_| 0x5a, 8192)),
        ("every bit of a stretch flipped", 1, &|| overwrite(&db, 40_000, |byte| !byte, 4096)),
        ("cut in half", 1, &|| {
            let bytes = fs::read(&db).expect("the file");
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
            fs::write(&db, &bytes[..used / 2]).expect("the file");
        }),
        ("rubbish", 1, &|| fs::write(&db, "rubbish ".repeat(9000)).expect("the file")),
        ("its configuration gone", 0, &|| fs::remove_file(index.join("conf")).expect("it is there")),
        ("an opening that did not end", 1, &|| fs::write(index.join("opening"), "").expect("a file")),
    ];
    for (number, (what, noticed, damage)) in damages.iter().enumerate() {
        damage();
        let running = start();
        assert_eq!(rows(&running), before, "{what}");
        let said = running.said();
        assert_eq!((rebuilds(&running), warnings(&running) as u64), (*noticed, *noticed), "{what}: {said}");
        let delivered = 100 + number as u32;
        assert_eq!(finished(&running)["delivered"], delivered, "{what}");
        post(&running, 3 * (1000 + delivered)..3 * (1000 + delivered) + 1);
        eventually("one more event", || (finished(&running)["delivered"] == delivered + 1).then_some(()));
        assert_eq!(running.terminate().code(), Some(0), "{what}");
    }
    let asides: Vec<PathBuf> = fs::read_dir(dir.path().join("data"))
        .expect("the data directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.to_string_lossy().contains("state.sled."))
        .collect();
    assert_eq!(asides, [dir.path().join("data").join("state.sled.broken")], "one copy is kept");
}

/// `EVENTFLOW_KILL_SEED` plays the same moments again.
#[test]
fn killed_while_the_index_opens_or_is_built_the_next_start_has_every_row() {
    let seed = std::env::var("EVENTFLOW_KILL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20);
    println!("EVENTFLOW_KILL_SEED={seed}");
    let mut random = Random(seed);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (address, _) = receiver(|body| if is_bad(body) { 422 } else { 200 });
    let start = || daemon(dir.path(), address, "mode = \"structured\"");
    let index = dir.path().join("data").join("state.sled");
    let running = start();
    (0..3).for_each(|part| post(&running, part * 100..(part + 1) * 100));
    eventually("two hundred dead rows", || (finished(&running)["dead"] == 200).then_some(()));
    let before = rows(&running);
    running.kill();
    for round in 0..12 {
        // Something to build now and then, so that not only openings are met.
        if random.below(3) == 0 {
            let _ = fs::remove_dir_all(&index);
        }
        let starting = start();
        std::thread::park_timeout(Duration::from_millis(random.below(40)));
        starting.kill();
        let running = start();
        eventually("it to be ready", || (running.client().get("/readyz").ok()?.status == 200).then_some(()));
        assert_eq!(rows(&running), before, "round {round}");
        match random.below(2) {
            0 => running.kill(),
            _ => assert_eq!(running.terminate().code(), Some(0), "round {round}"),
        }
    }
}
