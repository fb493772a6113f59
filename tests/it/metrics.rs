//! What `GET /metrics` of the real binary says, and the page, the dashboard and the alert rules that go by it.
//!
//! `promtool` comes from `tests/monitoring/install`; without it the tests that need it say so and pass, unless
//! `EVENTFLOW_REQUIRE_PROMTOOL` is set, as CI does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::{Daemon, TINY, eventually, installed, run, words};

fn document(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(document(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn promtool() -> Option<Command> {
    let path = "monitoring/prometheus/usr/bin/promtool";
    installed(path, "tests/monitoring/install", "EVENTFLOW_REQUIRE_PROMTOOL").map(Command::new)
}

fn scrape(daemon: &Daemon) -> String {
    let answer = daemon.client().get("/metrics").expect("an answer");
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    answer.text()
}

/// Samples by name and labels.
fn samples(page: &str) -> BTreeMap<&str, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').expect("a sample and its value"))
        .map(|(name, value)| (name, value.parse().expect("a number")))
        .collect()
}

/// Metrics by name, with their types.
fn families(page: &str) -> BTreeMap<String, String> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// A daemon that has taken, refused, delivered and kept back events.
fn busy(dir: &Path) -> Daemon {
    let daemon = Daemon::start(dir, TINY);
    let mut client = daemon.client();
    let event = br#"{"specversion":"1.0","id":"a","source":"/s","type":"t"}"#;
    assert_eq!(client.post("application/json", b"1").expect("an answer").status, 202);
    assert_eq!(client.post("application/x-ndjson", b"1\n2\n3\n").expect("an answer").status, 202);
    assert_eq!(client.post("application/cloudevents+json", event).expect("an answer").status, 202);
    assert_eq!(client.post("application/cloudevents+json", event).expect("an answer").status, 202);
    assert_eq!(client.post("application/json", b"{").expect("an answer").status, 400);
    assert_eq!(client.post("text/plain", b"x").expect("an answer").status, 415);
    daemon.drained();
    daemon
}

#[test]
fn every_number_of_a_scrape_is_what_happened() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let daemon = busy(dir.path());
    let page = scrape(&daemon);
    let found = samples(&page);
    for (sample, value) in [
        ("eventflow_ready", 1.0),
        ("eventflow_state{state=\"serving\"}", 1.0),
        ("eventflow_state{state=\"draining\"}", 0.0),
        ("eventflow_ingest_requests_total{format=\"json\"}", 1.0),
        ("eventflow_ingest_requests_total{format=\"structured\"}", 2.0),
        ("eventflow_ingest_events_total{format=\"lines\"}", 3.0),
        ("eventflow_ingest_events_total{format=\"structured\"}", 1.0),
        ("eventflow_ingest_duplicates_total{format=\"structured\"}", 1.0),
        ("eventflow_ingest_refusals_total{reason=\"malformed\"}", 1.0),
        ("eventflow_ingest_refusals_total{reason=\"unsupported-media-type\"}", 1.0),
        ("eventflow_ingest_refusals_total{reason=\"wal-full\"}", 0.0),
        ("eventflow_commit_group_requests_sum", 4.0),
        ("eventflow_commit_group_events_sum", 5.0),
        ("eventflow_wal_next_offset", 5.0),
        ("eventflow_wal_budget_bytes", 4194304.0),
        ("eventflow_wal_segment_bytes", 65536.0),
        ("eventflow_sink_delivered_events_total{sink=\"archive\"}", 5.0),
        ("eventflow_sink_attempted_events_total{sink=\"archive\"}", 5.0),
        ("eventflow_sink_pending_events{sink=\"archive\"}", 0.0),
        ("eventflow_sink_lag_seconds{sink=\"archive\"}", 0.0),
        ("eventflow_sink_state{sink=\"archive\",state=\"running\"}", 1.0),
        ("eventflow_sink_info{sink=\"archive\",type=\"json_file\"}", 1.0),
        ("eventflow_quarantine_files", 0.0),
    ] {
        assert_eq!(found.get(sample), Some(&value), "{sample}");
    }
    for sample in ["process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"] {
        assert!(found[sample] > 0.0, "{sample}");
    }
    let pause = daemon.client().request("POST", "/v1/sinks/archive/pause", &[], b"").expect("an answer");
    assert_eq!(pause.status, 200);
    assert_eq!(daemon.client().post("application/json", b"1").expect("an answer").status, 202);
    eventually("the event that waits to grow old", || {
        let page = scrape(&daemon);
        let found = samples(&page);
        assert_eq!(found["eventflow_sink_pending_events{sink=\"archive\"}"], 1.0);
        assert_eq!(found["eventflow_sink_state{sink=\"archive\",state=\"paused\"}"], 1.0);
        (found["eventflow_sink_lag_seconds{sink=\"archive\"}"] > 0.0).then_some(())
    });
}

#[test]
fn promtool_finds_nothing_wrong_with_a_scrape() {
    let Some(mut promtool) = promtool() else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let page = scrape(&busy(dir.path()));
    let command = promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("it runs");
    child.stdin.take().expect("it is piped").write_all(page.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

#[test]
fn the_alert_rules_are_valid_and_wake_somebody_when_they_should() {
    for arguments in [["check", "rules", "alerts.yml"], ["test", "rules", "alerts_test.yml"]] {
        let Some(mut promtool) = promtool() else { return };
        let output = promtool.args(arguments).current_dir(document("monitoring")).output().expect("it runs");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

#[test]
fn the_page_of_metrics_lists_what_there_is_with_its_type_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let page = scrape(&busy(dir.path()));
    let rows = read("METRICS.md");
    let rows =
        rows.lines().filter(|line| line.starts_with("| `eventflow_") || line.starts_with("| `process_"));
    let listed: BTreeMap<String, String> = rows
        .map(|row| row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect::<Vec<_>>())
        .map(|cells| (cells[1].clone(), cells[2].clone()))
        .collect();
    assert_eq!(listed, families(&page), "docs/METRICS.md (left) against a scrape (right)");
}

#[test]
fn dashboard_and_alerts_name_metrics_that_exist_and_every_alert_is_explained() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let page = scrape(&busy(dir.path()));
    let known = families(&page);
    for file in ["monitoring/grafana.json", "monitoring/alerts.yml", "monitoring/alerts_test.yml"] {
        let text = read(file);
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let named: BTreeSet<&str> =
            words.filter(|word| word.starts_with("eventflow_") || word.starts_with("process_")).collect();
        assert!(named.len() > 10, "{file}");
        for name in named {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let is_histogram = |family: &str| known.get(family).is_some_and(|kind| kind == "histogram");
            assert!(known.contains_key(name) || family.is_some_and(is_histogram), "{file} names {name}");
        }
    }
    let operations = read("OPERATIONS.md");
    let alerts = read("monitoring/alerts.yml");
    let alerts: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let rows = operations.lines().filter_map(|line| line.strip_prefix("| `EventFlow"));
    let rows: Vec<String> =
        rows.map(|row| format!("EventFlow{}", row.split('`').next().unwrap_or_default())).collect();
    assert_eq!(rows, alerts, "docs/OPERATIONS.md (left) against docs/monitoring/alerts.yml (right)");
    serde_json::from_str::<serde_json::Value>(&read("monitoring/grafana.json"))
        .expect("the dashboard is JSON");
}

#[test]
fn top_on_a_pipe_prints_a_line_or_an_object_each_time_and_ends_when_told() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let daemon = Daemon::start(dir.path(), TINY);
    let url = daemon.url();
    let top = |more: &[&str]| run(&[&["top", "--url", &url, "--interval", "100ms"][..], more].concat());
    let lines = top(&["--count", "2"]);
    let text = String::from_utf8_lossy(&lines.stdout).into_owned();
    assert_eq!((lines.status.code(), text.lines().count()), (Some(0), 2), "{text}{}", words(&lines));
    assert!(
        text.lines().all(|line| line.starts_with("serving in ") && line.contains("| archive running")),
        "{text}"
    );
    let object = top(&["--count", "1", "--json"]);
    let object: serde_json::Value = serde_json::from_slice(&object.stdout).expect("JSON");
    assert_eq!(
        (&object["ready"], &object["sinks"][0]["name"]),
        (&true.into(), &"archive".into()),
        "{object}"
    );
    assert_eq!(daemon.terminate().code(), Some(0));
    let gone = top(&[]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(words(&gone).contains("is the daemon running?"), "{}", words(&gone));
    assert_eq!(top(&["--interval", "1ms"]).status.code(), Some(2));
}
