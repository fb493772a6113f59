//! Real input: 329 webhook payloads through every way in, and back out of the archive byte for byte.
//!
//! The corpus lies beside the project (`../shared/corpus`); without it the sample events of `data/`
//! go the same ways, and a printed line says so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use serde_json::value::RawValue;

use crate::harness::{Archived, Daemon, ROOMY, archive, eventflow, run, words};

/// One event as its sender wrote it.
pub struct Original {
    line: String,
    pub attributes: BTreeMap<String, Value>,
    pub data: Option<String>,
}

/// The file to send, and what is in it. Plain JSON lines are left out: they get new ids each time.
pub fn input() -> (PathBuf, Vec<Original>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = root.join("../shared/corpus/github-webhooks.ndjson");
    let file = if shared.exists() {
        shared
    } else {
        println!("skipped the corpus: {} is not there; sending data/events.ndjson instead", shared.display());
        root.join("data/events.ndjson")
    };
    let text = std::fs::read_to_string(&file).expect("readable");
    let originals: Vec<Original> =
        text.lines().filter(|l| l.contains("\"specversion\"")).map(original).collect();
    assert!(originals.len() == 329 || !file.starts_with(root.join("../shared")), "{}", originals.len());
    (file, originals)
}

fn original(line: &str) -> Original {
    let raw: BTreeMap<String, Box<RawValue>> = serde_json::from_str(line).expect("an object");
    let mut attributes: BTreeMap<String, Value> = serde_json::from_str(line).expect("an object");
    attributes.remove("data");
    Original { line: line.to_string(), attributes, data: raw.get("data").map(|d| d.get().to_string()) }
}

/// A folder with the events to send, one a line.
pub fn events_file(originals: &[Original]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("events.ndjson");
    let lines: Vec<&str> = originals.iter().map(|o| o.line.as_str()).collect();
    std::fs::write(&file, lines.join("\n") + "\n").expect("writable");
    let file = file.to_str().expect("UTF-8").to_string();
    (dir, file)
}

/// Everything sent is in the archive in order, attributes as sent, `data` byte for byte.
fn assert_unchanged(originals: &[Original], archived: &[Archived]) {
    assert_eq!(originals.len(), archived.len());
    for (position, (sent, kept)) in originals.iter().zip(archived).enumerate() {
        assert_eq!(kept.offset, position as u64);
        assert_eq!(kept.data, sent.data, "`data` changed: {}", kept.line);
        let mut attributes: BTreeMap<String, Value> = serde_json::from_str(&kept.line).expect("an object");
        attributes.remove("data");
        assert!(attributes.remove("eventflowoffset").is_some_and(|o| o == position.to_string().as_str()));
        assert!(attributes.remove("eventflowtime").is_some_and(|t| t.is_string()));
        assert_eq!(attributes, sent.attributes);
    }
}

/// The archive's files, byte for byte.
fn archive_bytes(daemon: &Daemon) -> Vec<(PathBuf, Vec<u8>)> {
    let files = crate::harness::files_below(&daemon.data_dir.join("archive"));
    files.into_iter().map(|f| (f.clone(), std::fs::read(f).expect("readable"))).collect()
}

#[test]
fn send_puts_every_event_into_the_archive_and_sent_again_changes_nothing() {
    let (_, originals) = input();
    let (_folder, file) = events_file(&originals);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let daemon = Daemon::start(dir.path(), &[]);
    let first = run(&["send", &file, "--url", &daemon.url()]);
    assert_eq!(first.status.code(), Some(0), "{}", words(&first));
    daemon.drained();
    assert_unchanged(&originals, &archive(dir.path()));
    let before = archive_bytes(&daemon);

    let again = run(&["send", &file, "--url", &daemon.url(), "--batch", "7"]);
    assert_eq!(again.status.code(), Some(0), "{}", words(&again));
    let tally = format!("{}{}", String::from_utf8_lossy(&again.stdout), words(&again));
    assert!(tally.contains(&originals.len().to_string()) && tally.contains("duplicate"), "{tally}");
    let status = daemon.drained();
    assert_eq!(status["wal"]["next_offset"], originals.len());
    assert_eq!(before, archive_bytes(&daemon), "the archive changed");

    // Across a restart the answer is the same.
    assert_eq!(daemon.terminate().code(), Some(0));
    let daemon = Daemon::start(dir.path(), &[]);
    let answer = daemon
        .client()
        .post("application/x-ndjson", &std::fs::read(&file).expect("readable"))
        .expect("answered");
    assert_eq!((answer.status, answer.json()["duplicates"].as_u64()), (202, Some(originals.len() as u64)));
    assert_eq!(before, archive_bytes(&daemon), "the archive changed");
}

#[test]
fn ndjson_in_one_request_arrives_byte_for_byte() {
    let (_, originals) = input();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let daemon = Daemon::start(dir.path(), ROOMY);
    let body: Vec<&str> = originals.iter().map(|o| o.line.as_str()).collect();
    for accepted in [originals.len(), 0] {
        let answer =
            daemon.client().post("application/x-ndjson", body.join("\n").as_bytes()).expect("answered");
        assert_eq!(answer.status, 202, "{}", answer.text());
        assert_eq!(answer.json()["accepted"], accepted);
        assert_eq!(answer.json()["duplicates"], originals.len() - accepted);
    }
    daemon.drained();
    assert_unchanged(&originals, &archive(dir.path()));
}

#[test]
fn a_batch_arrives_byte_for_byte() {
    let (_, originals) = input();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let daemon = Daemon::start(dir.path(), ROOMY);
    let body: Vec<&str> = originals.iter().map(|o| o.line.as_str()).collect();
    let body = format!("[{}]", body.join(" ,\r\n"));
    for accepted in [originals.len(), 0] {
        let answer =
            daemon.client().post("application/cloudevents-batch+json", body.as_bytes()).expect("answered");
        assert_eq!(answer.status, 202, "{}", answer.text());
        assert_eq!(answer.json()["accepted"], accepted);
    }
    daemon.drained();
    assert_unchanged(&originals, &archive(dir.path()));
}

#[test]
fn one_by_one_in_binary_mode_arrives_byte_for_byte() {
    let (_, originals) = input();
    // Binary mode carries JSON data only as a JSON media type, and no event without a data type.
    let originals: Vec<Original> = originals
        .into_iter()
        .filter(|o| {
            o.data.is_some() && o.attributes.get("datacontenttype").is_some_and(|t| t == "application/json")
        })
        .map(|mut o| {
            // A header is text: numbers and booleans of the JSON form arrive as strings.
            for value in o.attributes.values_mut().filter(|v| !v.is_string()) {
                *value = Value::String(value.to_string());
            }
            o
        })
        .collect();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let daemon = Daemon::start(dir.path(), ROOMY);
    let mut client = daemon.client();
    for (position, event) in originals.iter().enumerate() {
        let headers: Vec<(String, String)> = event
            .attributes
            .iter()
            .map(|(name, value)| {
                let value = value.as_str().expect("text");
                match name.as_str() {
                    "datacontenttype" => ("content-type".to_string(), value.to_string()),
                    name => (format!("ce-{name}"), percent_encoded(value)),
                }
            })
            .collect();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let data = event.data.as_deref().expect("kept only such");
        let answer = client.request("POST", "/v1/events", &headers, data.as_bytes()).expect("answered");
        assert_eq!(answer.status, 202, "{}", answer.text());
        assert_eq!(answer.json()["first_offset"], position);
        assert_eq!(answer.json()["id"], event.attributes["id"]);
    }
    daemon.drained();
    assert_unchanged(&originals, &archive(dir.path()));
}

/// As the CloudEvents HTTP binding asks for.
fn percent_encoded(text: &str) -> String {
    let plain = |b: u8| (0x21..=0x7e).contains(&b) && b != b'"' && b != b'%';
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[test]
fn export_gives_back_what_was_sent_running_and_stopped() {
    let (_, originals) = input();
    let (_folder, file) = events_file(&originals);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data_dir = dir.path().to_str().expect("UTF-8");
    let daemon = Daemon::start(dir.path(), ROOMY);
    let sent = run(&["send", &file, "--url", &daemon.url()]);
    assert_eq!(sent.status.code(), Some(0), "{}", words(&sent));
    let exported = |arguments: &[&str]| -> String {
        let all = [&["export", "--data-dir", data_dir], arguments].concat();
        let output = eventflow(&all).output().expect("it runs");
        assert_eq!(output.status.code(), Some(0), "{}", words(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    // Not waiting for the archive: what it lacks comes out of the log.
    let running = exported(&[]);
    assert_eq!(running.lines().count(), originals.len());
    daemon.drained();
    assert_eq!(exported(&[]), running, "the archive and the log tell the same");
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(exported(&[]), running);
    for (sent, line) in originals.iter().zip(running.lines()) {
        assert_eq!(original(line).data, sent.data);
    }
    let array: Vec<Value> = serde_json::from_str(&exported(&["--format", "json"])).expect("one array");
    assert_eq!(array.len(), originals.len());
    let middle: Vec<String> = exported(&["--from", "3", "--to", "6"]).lines().map(str::to_string).collect();
    let all: Vec<&str> = running.lines().collect();
    assert_eq!(middle, all[3..6], "from is included, to is not");
    let kind = originals[0].attributes["type"].as_str().expect("text");
    let expected = originals.iter().filter(|o| o.attributes["type"] == kind).count();
    assert_eq!(exported(&["--type", kind]).lines().count(), expected);
    assert_eq!(exported(&["--type", "*"]).lines().count(), originals.len());
    assert_eq!(exported(&["--source", "/no/such"]), "");
}
