//! Syncs that fail and syncs that take long, on the real binary: a library put before the C library's
//! own (`eio.c`) decides about each. Where there is no C compiler, these tests say so and pass.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Answer, Client, Daemon, TINY, archive, eventflow, eventually};

/// Requests of a daemon whose syncs of the event log fail, one of them in each: they need several segments.
const REQUESTS: u32 = 30;

/// Builds the library; `None` where that cannot be done.
pub fn library(dir: &Path) -> Option<PathBuf> {
    let library = dir.join("eio.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/eio.c");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").output();
    match built {
        Ok(output) if output.status.success() => Some(library),
        other => {
            eprintln!("skipped: no library to fail syncs with could be built: {other:?}");
            None
        }
    }
}

fn spawn(data_dir: &Path, library: &Path, settings: &[(&str, &str)]) -> Daemon {
    let mut command = eventflow(&["serve", "--listen", "127.0.0.1:0"]);
    command.arg("--data-dir").arg(data_dir).envs(TINY.iter().copied());
    command.env("LD_PRELOAD", library).envs(settings.iter().copied());
    Daemon::spawn(command, data_dir)
}

fn post(client: &mut Client, id: &str) -> std::io::Result<Answer> {
    let data = "x".repeat(3_000);
    let event = format!(r#"{{"specversion":"1.0","id":"{id}","source":"/eio","type":"t","data":"{data}"}}"#);
    client.post("application/cloudevents+json", event.as_bytes())
}

/// Posts again while a segment that could not be prepared is missing: the next one is on its way.
fn until_there_is_room(client: &mut Client, id: &str) -> std::io::Result<Answer> {
    eventually("room", || match post(client, id) {
        Ok(answer) if answer.status != 202 && answer.slug() == "storage-full" => None,
        other => Some(other),
    })
}

/// The thread whose sync failed; `None` when none did.
fn whose_was_it(word: &Path) -> Option<String> {
    std::fs::read_to_string(word).ok()
}

/// How often each id is in the archive, after a start without any fault.
fn archived(data_dir: &Path) -> BTreeMap<String, usize> {
    let daemon = Daemon::start(data_dir, TINY);
    daemon.drained();
    assert_eq!(daemon.terminate().code(), Some(0));
    let mut ids = BTreeMap::new();
    for line in archive(data_dir) {
        *ids.entry(line.id).or_default() += 1;
    }
    ids
}

#[test]
fn whichever_sync_fails_whoever_waits_hears_it_and_nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(library) = library(dir.path()) else { return };
    let (mut told, mut refused_starts, mut refused_stops, mut spares, mut acknowledged_in_all) =
        (0, 0, 0, 0, 0);
    // Until a daemon starts, takes all its requests and stops in fewer syncs.
    let mut syncs = 0;
    for at in 1.. {
        let data_dir = dir.path().join(at.to_string());
        let whose = dir.path().join(format!("{at}.whose"));
        let settings = [
            ("EIO_AT", at.to_string()),
            ("EIO_WHOSE", whose.to_str().expect("UTF-8").to_owned()),
            // Between two requests nobody waits: a marker that failed there would end the daemon unheard.
            ("EVENTFLOW_WAL__IDLE_MARKER", "1h".to_owned()),
        ];
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        let mut daemon = spawn(&data_dir, &library, &settings);
        let started = eventually("the daemon to serve or to end", || match daemon.ended() {
            Some(status) => Some(Err(status)),
            None => {
                let answer = Client::to(daemon.look()?).get("/readyz").ok()?;
                (answer.status == 200).then_some(Ok(()))
            }
        });
        let (mut acknowledged, mut sent) = (Vec::new(), Vec::new());
        match started {
            Err(status) => {
                assert_eq!(status.code(), Some(4), "sync {at}");
                refused_starts += 1;
            }
            Ok(()) => {
                let mut client = daemon.client();
                let failed = (0..REQUESTS).map(|id| id.to_string()).find_map(|id| {
                    sent.push(id.clone());
                    match until_there_is_room(&mut client, &id) {
                        Ok(answer) if answer.status == 202 => {
                            acknowledged.push(id);
                            None
                        }
                        other => Some(other),
                    }
                });
                if let Some(answer) = failed {
                    // The stock syncs for nobody: the daemon may close the connection between two requests.
                    let is_the_stocks = whose_was_it(&whose).is_some_and(|name| name == "stock");
                    if answer.is_ok() || !is_the_stocks {
                        let answer = answer.expect("whoever waits hears it");
                        assert_eq!(
                            (answer.status, answer.slug().as_str()),
                            (503, "storage-failed"),
                            "sync {at}"
                        );
                        told += 1;
                    }
                    assert_eq!(daemon.wait().code(), Some(4), "sync {at}");
                } else {
                    let said = daemon.said();
                    let stopped = daemon.terminate().code();
                    match whose_was_it(&whose).as_deref() {
                        // It hit the preparation of a spare, by the stock or at the start, which is made anew.
                        Some(thread) if thread == "stock" || said.contains("can be prepared") => {
                            assert_eq!(stopped, Some(0), "sync {at}: {said}");
                            spares += 1;
                        }
                        // The mark of an orderly stop is not on the disk, and the daemon says so.
                        Some(thread) => {
                            assert_eq!(stopped, Some(4), "sync {at}, of {thread}: {said}");
                            refused_stops += 1;
                        }
                        None => {
                            assert_eq!(stopped, Some(0), "sync {at}");
                            syncs = at - 1;
                        }
                    }
                }
            }
        }
        let archived = archived(&data_dir);
        acknowledged_in_all += acknowledged.len();
        for id in &acknowledged {
            assert_eq!(archived.get(id), Some(&1), "sync {at}: event {id} was acknowledged");
        }
        for (id, times) in &archived {
            assert!(*times == 1 && sent.contains(id), "sync {at}: event {id}, {times} times");
        }
        if syncs > 0 {
            break;
        }
    }
    println!(
        "EIO on each of {syncs} syncs: {told} requests told, {refused_starts} starts and {refused_stops} stops refused, \
         {spares} spares made anew; of {acknowledged_in_all} acknowledged events 0 lost, 0 archived twice"
    );
    assert!(told >= REQUESTS / 2 && syncs > REQUESTS, "too few syncs failed under a request");
}

#[test]
fn nobody_hears_of_an_event_before_a_slow_sync_is_done_and_health_is_answered_meanwhile() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(library) = library(dir.path()) else { return };
    let (gate, fail) = (dir.path().join("gate"), dir.path().join("fail"));
    let settings = [
        // The first sync shows that the disk is slow.
        ("EIO_DELAY_MS", "30"),
        ("EIO_GATE", gate.to_str().expect("UTF-8")),
        ("EIO_FAIL", fail.to_str().expect("UTF-8")),
    ];
    let data_dir = dir.path().join("data");
    let daemon = spawn(&data_dir, &library, &settings).listening();
    eventually("the daemon to be ready", || {
        daemon.client().get("/readyz").is_ok_and(|answer| answer.status == 200).then_some(())
    });
    assert_eq!(post(&mut daemon.client(), "first").expect("answered").status, 202);

    for (id, status) in [("second", 202), ("third", 503)] {
        std::fs::write(&gate, "").expect("writable");
        let mut client = daemon.client();
        let waiting = std::thread::spawn(move || post(&mut client, id));
        for path in ["/livez", "/v1/status", "/livez"] {
            assert_eq!(daemon.client().get(path).expect("answered").status, 200, "{path}");
        }
        assert!(!waiting.is_finished(), "{id} was answered before its sync was done");
        if status == 503 {
            std::fs::write(&fail, "").expect("writable");
        }
        std::fs::remove_file(&gate).expect("it is there");
        let answer = waiting.join().expect("no panic").expect("answered");
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    assert_eq!(daemon.wait().code(), Some(4));
    let archived = archived(&data_dir);
    assert_eq!((archived.get("first"), archived.get("second")), (Some(&1), Some(&1)));
}

#[test]
fn behind_a_sync_that_hangs_requests_are_refused_at_once_until_it_is_done() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(library) = library(dir.path()) else { return };
    let gate = dir.path().join("gate");
    let settings = [
        // The first sync shows that the disk is slow.
        ("EIO_DELAY_MS", "30"),
        ("EIO_GATE", gate.to_str().expect("UTF-8")),
        ("EVENTFLOW_HTTP__MAX_WAIT", "50ms"),
    ];
    let daemon = spawn(&dir.path().join("data"), &library, &settings).listening();
    let is_ready = |ready: bool| {
        let answer = daemon.client().get("/readyz").ok()?;
        ((answer.status == 200) == ready).then_some(())
    };
    eventually("the daemon to be ready", || is_ready(true));
    assert_eq!(post(&mut daemon.client(), "first").expect("answered").status, 202);

    std::fs::write(&gate, "").expect("writable");
    let mut client = daemon.client();
    let waiting = std::thread::spawn(move || post(&mut client, "second"));
    eventually("the daemon to take nothing", || is_ready(false));
    for id in ["third", "fourth"] {
        let answer = post(&mut daemon.client(), id).expect("answered");
        assert_eq!((answer.status, answer.slug()), (429, "overloaded".to_owned()), "{}", answer.text());
        assert!(answer.headers.contains_key("retry-after"));
    }
    assert!(!waiting.is_finished(), "it was answered before its sync was done");
    std::fs::remove_file(&gate).expect("it is there");
    assert_eq!(waiting.join().expect("no panic").expect("answered").status, 202);
    eventually("the daemon to take events again", || is_ready(true));
    let again = post(&mut daemon.client(), "third").expect("answered");
    assert_eq!((again.status, &again.json()["first_offset"]), (202, &serde_json::json!(2)));
}
