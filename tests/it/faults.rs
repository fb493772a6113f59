//! What goes wrong around a daemon, and the one clear answer it gives to each.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Client, Daemon, Random, TINY, archive, eventflow, eventually, files_below, run, words};

pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn event(id: &str, data: &str) -> Vec<u8> {
    format!(r#"{{"specversion":"1.0","id":"{id}","source":"/faults","type":"t","data":"{data}"}}"#)
        .into_bytes()
}

fn accepted(client: &mut Client, id: &str, data: &str) -> u64 {
    let answer = client.post("application/cloudevents+json", &event(id, data)).expect("answered");
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.json()["first_offset"].as_u64().expect("newly appended")
}

pub fn set_paused(daemon: &Daemon, paused: bool) {
    let verb = if paused { "pause" } else { "resume" };
    let path = format!("/v1/sinks/archive/{verb}");
    let answer = daemon.client().request("POST", &path, &[], b"").expect("answered");
    assert!(matches!(answer.status, 200 | 204), "{path}: {} {}", answer.status, answer.text());
}

/// Failed with this code, and said why in words a person can act on.
pub fn assert_fails(output: &Output, code: i32, about: &[&str]) {
    let said = words(output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "{said}");
    for word in about {
        assert!(said.contains(word), "does not speak of {word}: {said}");
    }
    assert!(said.lines().filter(|l| !l.trim().is_empty()).count() <= 4, "one clear sentence, not: {said}");
}

fn serve(arguments: &[&str]) -> Output {
    run(&[&["serve"], arguments].concat())
}

#[test]
fn a_second_daemon_on_the_same_data_is_refused_with_code_3_also_without_the_lock_file() {
    let dir = folder();
    let daemon = Daemon::start(dir.path(), TINY);
    let second = || serve(&["--data-dir", text(dir.path()), "--listen", "127.0.0.1:0"]);
    assert_fails(&second(), 3, &[text(dir.path())]);
    let _ = std::fs::remove_file(dir.path().join("lock"));
    assert_fails(&second(), 3, &[text(dir.path())]);
    accepted(&mut daemon.client(), "1", "the first one works on");
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn a_log_of_a_newer_format_is_refused_and_left_as_it_is() {
    let dir = folder();
    let daemon = Daemon::start(dir.path(), TINY);
    accepted(&mut daemon.client(), "1", "from tomorrow");
    assert_eq!(daemon.terminate().code(), Some(0));
    let wal = dir.path().join("wal");
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "seg");
    let segments: Vec<PathBuf> = files_below(&wal).into_iter().filter(is_segment).collect();
    assert!(!segments.is_empty());
    for path in &segments {
        let mut bytes = std::fs::read(path).expect("readable");
        for copy in [0, 512] {
            bytes[copy + 7] = b'2'; // of `EVFLSEG1`
        }
        std::fs::write(path, bytes).expect("writable");
    }
    let before: Vec<Vec<u8>> = segments.iter().map(|path| std::fs::read(path).expect("readable")).collect();
    let version = ["version 2", "start the version that wrote it"];
    assert_fails(&serve(&["--data-dir", text(dir.path()), "--listen", "127.0.0.1:0"]), 1, &version);
    assert_fails(&run(&["wal", "verify", "--data-dir", text(dir.path())]), 1, &version);
    let after: Vec<Vec<u8>> = segments.iter().map(|path| std::fs::read(path).expect("readable")).collect();
    assert!(before == after, "the log was touched");
    assert!(
        !dir.path().join("quarantine").exists() || files_below(&dir.path().join("quarantine")).is_empty()
    );
}

#[test]
fn a_used_port_is_one_clear_sentence() {
    let dir = folder();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    assert_fails(&serve(&["--data-dir", text(dir.path()), "--listen", &address]), 1, &[&address]);
}

#[test]
fn a_data_directory_that_cannot_be_written_is_one_clear_sentence() {
    let dir = folder();
    let file = dir.path().join("a-file");
    std::fs::write(&file, "not a directory").expect("writable");
    let below = file.join("data");
    let output = serve(&["--data-dir", text(&below), "--listen", "127.0.0.1:0"]);
    assert_fails(&output, 1, &[text(&below)]);
}

#[test]
fn a_wrong_configuration_ends_with_code_2_and_names_the_key() {
    let dir = folder();
    let file = dir.path().join("eventflow.toml");
    std::fs::write(&file, "[wal]\nbugdet = \"1GiB\"\n").expect("writable");
    for verb in ["check", "serve"] {
        assert_fails(&run(&[verb, "--config", text(&file)]), 2, &["bugdet", "budget"]);
        let none = dir.path().join("none.toml");
        assert_fails(&run(&[verb, "--config", text(&none)]), 2, &["none.toml"]);
    }
    let mut command = eventflow(&["check"]);
    let output = command.env("EVENTFLOW_HTTP__MAX_BODY", "plenty").output().expect("it runs");
    assert_fails(&output, 2, &["EVENTFLOW_HTTP__MAX_BODY", "plenty"]);
    assert_fails(&serve(&["--listen", "0.0.0.0:0"]), 2, &["allow_anonymous"]);
    assert_eq!(run(&["serve", "--no-such-flag"]).status.code(), Some(2));
    assert_eq!(run(&["no-such-verb"]).status.code(), Some(2));
}

#[test]
fn the_sample_configuration_is_valid_and_check_prints_what_serve_would_use() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/eventflow.toml");
    let output = run(&["check", "--config", text(&sample)]);
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let again = eventflow::config::Config::parse("printed", &printed, Vec::new(), &[]).expect("valid itself");
    let sample = std::fs::read_to_string(sample).expect("readable");
    assert_eq!(Ok(again), eventflow::config::Config::parse("f", &sample, Vec::new(), &[]).map_err(|_| ()));
}

#[test]
fn a_full_log_refuses_at_once_and_resume_delivers_everything() {
    let dir = folder();
    let settings = [("EVENTFLOW_WAL__SEGMENT", "64KiB"), ("EVENTFLOW_WAL__BUDGET", "512KiB")];
    let daemon = Daemon::start(dir.path(), &settings);
    set_paused(&daemon, true);
    let mut client = daemon.client();
    let data = "x".repeat(4_000);
    let mut held = 0;
    // Until not even a small one fits.
    let mut refused = None;
    for data in [data.as_str(), ""] {
        refused = loop {
            let answer = client
                .post("application/cloudevents+json", &event(&held.to_string(), data))
                .expect("answered");
            if answer.status != 202 {
                break Some(answer);
            }
            held += 1;
            assert!(held < 10_000, "512 KiB do not hold that many events");
        };
    }
    let refusal = refused.expect("refused in the end");
    assert!(held > 50, "only {held} events fit");
    assert_eq!((refusal.status, refusal.slug().as_str()), (429, "wal-full"));
    assert!(refusal.headers["retry-after"].parse::<u64>().is_ok_and(|s| s >= 1), "{refusal:?}");
    for _ in 0..20 {
        let begun = Instant::now();
        let answer = client.post("application/cloudevents+json", &event("again", &data)).expect("answered");
        assert_eq!(answer.status, 429);
        assert!(begun.elapsed() < Duration::from_secs(1), "a refusal is a matter of milliseconds");
    }
    assert_eq!(daemon.client().get("/readyz").expect("answered").status, 503);
    assert_eq!(daemon.client().get("/livez").expect("answered").status, 200);
    let wal: u64 =
        files_below(&dir.path().join("wal")).iter().map(|f| f.metadata().expect("there").len()).sum();
    assert!(wal <= 512 * 1024, "{wal} bytes on disk");

    // A pause lasts across a restart, and a full log opens.
    assert_eq!(daemon.terminate().code(), Some(0));
    let daemon = Daemon::launch(dir.path(), &settings).listening();
    let status = eventually("serving", || Some(daemon.status()).filter(|s| s["state"] == "serving"));
    assert_eq!(status["sinks"][0]["state"], "paused", "{status}");
    assert_eq!(status["sinks"][0]["pending"], held);

    set_paused(&daemon, false);
    eventually("room again", || {
        let answer = daemon.client().post("application/cloudevents+json", &event("after", &data)).ok()?;
        (answer.status == 202).then_some(())
    });
    daemon.drained();
    let ids: Vec<String> = archive(dir.path()).into_iter().map(|a| a.id).collect();
    let expected: Vec<String> = (0..held).map(|n| n.to_string()).chain(["after".to_string()]).collect();
    assert_eq!(ids, expected);
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn accounting_adds_up_at_every_look() {
    let dir = folder();
    let daemon = Daemon::start(dir.path(), TINY);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut client = daemon.client();
            for n in 0..400 {
                accepted(&mut client, &n.to_string(), "x");
            }
            stop.store(true, Ordering::Relaxed);
        });
        while !stop.load(Ordering::Relaxed) && !sender.is_finished() {
            let status = daemon.status();
            let sink = &status["sinks"][0];
            let sum: u64 = ["delivered", "dropped", "dead", "retrying", "pending"]
                .iter()
                .map(|part| sink[part].as_u64().expect("a count"))
                .sum();
            assert_eq!(status["wal"]["next_offset"], sum, "{status}");
        }
        sender.join().expect("all accepted");
    });
    assert_eq!(daemon.drained()["sinks"][0]["delivered"], 400);
}

#[test]
fn sigterm_under_load_ends_with_code_0_and_loses_nothing() {
    let dir = folder();
    let daemon = Daemon::start(dir.path(), TINY);
    let told = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|number| {
                let mut client = daemon.client();
                scope.spawn(move || {
                    let mut told = Vec::new();
                    for n in 0.. {
                        let id = format!("{number}-{n}");
                        match client.post("application/cloudevents+json", &event(&id, "x")) {
                            Ok(answer) if answer.status == 202 => told.push(id),
                            Ok(answer) => {
                                assert_eq!((answer.status, answer.slug().as_str()), (503, "shutting-down"));
                                assert!(answer.headers.contains_key("retry-after"));
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    told
                })
            })
            .collect();
        eventually("some load", || (daemon.status()["wal"]["next_offset"].as_u64()? > 200).then_some(()));
        daemon.signal("TERM");
        clients.into_iter().flat_map(|c| c.join().expect("a client that ends")).collect::<Vec<String>>()
    });
    assert_eq!(daemon.wait().code(), Some(0));
    let before = archive(dir.path()).len();
    let daemon = Daemon::start(dir.path(), TINY);
    daemon.drained();
    assert_eq!(daemon.terminate().code(), Some(0));
    let archived = archive(dir.path());
    assert!(before <= archived.len() && archived.is_sorted_by(|a, b| a.offset < b.offset));
    let mut ids: Vec<&str> = archived.iter().map(|a| a.id.as_str()).collect();
    ids.sort_unstable();
    assert!(ids.is_sorted_by(|a, b| a < b), "an event twice");
    for id in &told {
        assert!(ids.binary_search(&id.as_str()).is_ok(), "{id} was acknowledged and is gone");
    }
}

/// A stopped data directory whose log still holds `count` events, undelivered.
pub fn held(dir: &Path, count: usize, end: fn(Daemon)) {
    let daemon = Daemon::start(dir, TINY);
    set_paused(&daemon, true);
    let mut client = daemon.client();
    for n in 0..count {
        accepted(&mut client, &n.to_string(), &format!("payload-of-{n}-"));
    }
    end(daemon);
}

/// The segment that holds `needle`, its bytes, and where.
pub fn find(dir: &Path, needle: &str) -> (std::path::PathBuf, Vec<u8>, usize) {
    files_below(&dir.join("wal"))
        .into_iter()
        .find_map(|file| {
            let bytes = std::fs::read(&file).expect("readable");
            let at = bytes.windows(needle.len()).position(|w| w == needle.as_bytes())?;
            Some((file, bytes, at))
        })
        .unwrap_or_else(|| panic!("{needle} is in no segment"))
}

pub fn verify(dir: &Path) -> (Option<i32>, Value, String) {
    let output = run(&["wal", "verify", "--json", "--data-dir", text(dir)]);
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), report, words(&output))
}

#[test]
fn a_flipped_bit_costs_one_event_is_told_and_everything_around_it_is_delivered() {
    for (victim, end) in [
        (7, (|d| assert_eq!(d.terminate().code(), Some(0))) as fn(Daemon)),
        (0, |d: Daemon| d.kill()),
        // The last one, after a clean stop: known to have been acknowledged.
        (19, |d: Daemon| assert_eq!(d.terminate().code(), Some(0))),
    ] {
        let dir = folder();
        held(dir.path(), 20, end);
        assert_eq!(verify(dir.path()).0, Some(0), "intact before");
        let (file, mut bytes, at) = find(dir.path(), &format!("payload-of-{victim}-"));
        bytes[at + 2] ^= 0x10;
        std::fs::write(&file, &bytes).expect("writable");

        let (code, _, said) = verify(dir.path());
        assert_eq!(code, Some(5), "{said}");
        let inspected = run(&["wal", "inspect", "--data-dir", text(dir.path())]);
        assert!(inspected.status.code().is_some_and(|c| c == 0 || c == 5), "{}", words(&inspected));

        let daemon = Daemon::start(dir.path(), TINY);
        set_paused(&daemon, false);
        let next = accepted(&mut daemon.client(), "new", "after the damage");
        assert!(next >= 20, "offset {next} was used before");
        let status = daemon.drained();
        assert_eq!(status["wal"]["damaged_ranges"], 1, "{status}");
        let kept: Vec<u64> = archive(dir.path()).iter().map(|a| a.offset).collect();
        let expected: Vec<u64> = (0..20).filter(|o| *o != victim).chain([next]).collect();
        assert_eq!(kept, expected);
        assert!(!files_below(&dir.path().join("quarantine")).is_empty(), "nothing in quarantine");
        assert_eq!(daemon.terminate().code(), Some(0));
    }
}

#[test]
fn a_torn_tail_is_cut_and_nothing_acknowledged_is_lost() {
    let dir = folder();
    held(dir.path(), 20, Daemon::kill);
    // Where the last frame ends, a next one began and never got whole.
    let (file, mut bytes, _) = find(dir.path(), "payload-of-19-");
    let end = bytes.iter().rposition(|b| *b != 0).expect("not empty") / 8 * 8 + 8;
    let mut random = Random(42);
    bytes[end..end + 4].copy_from_slice(b"EVFR");
    for byte in &mut bytes[end + 4..end + 300] {
        *byte = random.next() as u8;
    }
    std::fs::write(&file, &bytes).expect("writable");
    let daemon = Daemon::start(dir.path(), TINY);
    set_paused(&daemon, false);
    let next = accepted(&mut daemon.client(), "new", "after the tear");
    let status = daemon.drained();
    assert_eq!(status["wal"]["damaged_ranges"], 0, "{status}");
    let kept: Vec<u64> = archive(dir.path()).iter().map(|a| a.offset).collect();
    assert_eq!(kept, (0..20).chain([next]).collect::<Vec<_>>());
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(verify(dir.path()).0, Some(0));
}

#[test]
fn a_tail_that_vanished_is_told_by_what_the_ledger_knows_of_it() {
    let dir = folder();
    let daemon = Daemon::start(dir.path(), TINY);
    for n in 0..20 {
        accepted(&mut daemon.client(), &n.to_string(), &format!("payload-of-{n}-"));
    }
    daemon.drained();
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(verify(dir.path()).0, Some(0), "intact before");
    // Zeros, as if nothing had ever been written: the log itself tells of no loss.
    let (file, mut bytes, _) = find(dir.path(), "payload-of-19-");
    bytes[4096..].fill(0);
    std::fs::write(&file, &bytes).expect("writable");
    let (code, report, said) = verify(dir.path());
    assert_eq!(code, Some(5), "{said}");
    assert_eq!(report["damage"][0]["lost"], json!([0, 20]), "{report}");
}

#[test]
fn a_missing_segment_costs_its_own_events_and_is_told() {
    let dir = folder();
    let daemon = Daemon::start(dir.path(), TINY);
    set_paused(&daemon, true);
    let mut client = daemon.client();
    let data = "x".repeat(4_000);
    for n in 0..100 {
        accepted(&mut client, &n.to_string(), &data);
    }
    assert_eq!(daemon.terminate().code(), Some(0));
    let mut segments: Vec<_> = files_below(&dir.path().join("wal"));
    segments.retain(|f| f.file_name().is_some_and(|n| !n.to_string_lossy().starts_with("spare")));
    assert!(segments.len() >= 4, "{segments:?}");
    let base = |f: &Path| f.file_stem().and_then(|s| s.to_str()?.parse::<u64>().ok()).expect("a base offset");
    let (lost_from, lost_to) = (base(&segments[1]), base(&segments[2]));
    std::fs::remove_file(&segments[1]).expect("removable");
    assert_eq!(verify(dir.path()).0, Some(5));
    let daemon = Daemon::start(dir.path(), TINY);
    set_paused(&daemon, false);
    let status = daemon.drained();
    assert_eq!(status["wal"]["damaged_ranges"], 1, "{status}");
    let kept: Vec<u64> = archive(dir.path()).iter().map(|a| a.offset).collect();
    assert_eq!(kept, (0..100).filter(|o| !(lost_from..lost_to).contains(o)).collect::<Vec<_>>());
}

#[test]
fn bad_requests_get_their_problem_and_nothing_of_them_is_archived() {
    let dir = folder();
    let daemon = Daemon::start(dir.path(), TINY);
    let mut client = daemon.client();
    let structured = "application/cloudevents+json";
    for (media_type, body, status, slug) in [
        ("application/json", "{", 400, "malformed"),
        ("application/x-ndjson", "{}\n{\n", 400, "malformed"),
        (structured, r#"{"specversion":"1.0","id":"1","source":"/x"}"#, 400, "malformed"),
        (structured, r#"{"specversion":"0.3","id":"1","source":"/x","type":"t"}"#, 400, "malformed"),
        ("application/cloudevents-batch+json", r#"{"not":"an array"}"#, 400, "malformed"),
        ("application/cloudevents+xml", "<event/>", 415, "unsupported-media-type"),
        ("text/plain", "words", 415, "unsupported-media-type"),
    ] {
        let answer = client.post(media_type, body.as_bytes()).expect("answered");
        assert_eq!((answer.status, answer.slug().as_str()), (status, slug), "{media_type}: {body}");
    }
    let batch = r#"[{"specversion":"1.0","id":"1","source":"/x","type":"t"},{"specversion":"1.0"},7]"#;
    let answer = client.post("application/cloudevents-batch+json", batch.as_bytes()).expect("answered");
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["errors"][0]["index"], 1, "{}", answer.text());
    let large = format!("\"{}\"", "x".repeat(2 << 20));
    let answer = client.post("application/json", large.as_bytes()).expect("answered");
    assert_eq!((answer.status, answer.slug().as_str()), (413, "too-large"));
    let mut client = daemon.client();
    let bomb = [("content-type", "application/json"), ("content-encoding", "br")];
    let answer = client.request("POST", "/v1/events", &bomb, b"{}").expect("answered");
    assert_eq!((answer.status, answer.slug().as_str()), (415, "unsupported-media-type"));
    assert_eq!(daemon.client().get("/no/such/path").expect("answered").status, 404);
    assert_eq!(daemon.client().request("DELETE", "/v1/events", &[], b"").expect("answered").status, 405);
    assert_eq!(daemon.client().get("/v1/events/0").expect("answered").status, 404);
    assert_eq!(daemon.drained()["wal"]["next_offset"], 0, "something was stored");
    accepted(&mut daemon.client(), "good", "x");
    daemon.drained();
    assert_eq!(archive(dir.path()).len(), 1);
}

#[test]
fn an_event_can_be_looked_up_and_status_is_for_people_and_programs() {
    let dir = folder();
    let daemon = Daemon::start(dir.path(), TINY);
    set_paused(&daemon, true);
    let offset = accepted(&mut daemon.client(), "1", "looked up");
    let answer = daemon.client().get(&format!("/v1/events/{offset}")).expect("answered");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("looked up") && answer.text().contains("pending"), "{}", answer.text());
    let human = run(&["status", "--url", &daemon.url()]);
    assert_eq!(human.status.code(), Some(0), "{}", words(&human));
    assert!(String::from_utf8_lossy(&human.stdout).contains("archive"));
    let machine = run(&["status", "--json", "--url", &daemon.url()]);
    let machine: Value = serde_json::from_slice(&machine.stdout).expect("JSON");
    assert_eq!(machine["sinks"][0]["state"], json!("paused"));
    let url = daemon.url();
    assert_eq!(daemon.terminate().code(), Some(0));
    let nobody = run(&["status", "--url", &url]);
    assert_fails(&nobody, 1, &[url.trim_start_matches("http://")]);
}
