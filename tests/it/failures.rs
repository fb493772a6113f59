//! The failure table as an operator meets it: looked at, tried again, given up; running and stopped.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::harness::{TINY, eventflow, eventually, words};
use crate::webhook::{daemon, finished, post, receiver};

/// `eventflow failures …` with the daemon's own settings.
fn failures(arguments: &[&str]) -> Output {
    let mut command = eventflow(&[&["failures"], arguments].concat());
    command.envs(TINY.iter().copied()).output().expect("the binary runs")
}

fn lines(output: &Output) -> Vec<Value> {
    assert_eq!(output.status.code(), Some(0), "{}", words(output));
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn offsets(rows: &[Value]) -> Vec<u64> {
    rows.iter().map(|row| row["offset"].as_u64().expect("a number")).collect()
}

#[test]
fn failed_events_are_looked_at_retried_and_dropped_running_and_stopped() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let repaired = Arc::new(AtomicBool::new(false));
    let is_bad = |body: &str| ["3}", "13}", "17}"].iter().any(|n| body.contains(&format!("\"number\":{n}")));
    let (address, received) = receiver({
        let repaired = repaired.clone();
        move |body| if is_bad(body) && !repaired.load(Ordering::SeqCst) { 422 } else { 200 }
    });
    let (config, data) = (dir.path().join("eventflow.toml"), dir.path().join("data"));
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let (config, data) = (text(&config), text(&data));
    let stopped = |verb: &[&str]| failures(&[verb, &["--config", &config, "--data-dir", &data]].concat());

    let running = daemon(dir.path(), address, "mode = \"structured\"");
    post(&running, 0..20);
    eventually("three dead rows", || (finished(&running)["dead"] == 3).then_some(()));
    let url = running.url();
    let live = |verb: &[&str]| failures(&[verb, &["--url", &url]].concat());

    let rows = lines(&live(&["list", "--json"]));
    assert_eq!(offsets(&rows), [3, 13, 17]);
    assert_eq!(
        lines(&live(&["list", "--json", "--error", "422", "--state", "dead", "--type", "eventflow.*"])),
        rows
    );
    assert_eq!(lines(&live(&["list", "--json", "--state", "retrying"])), [Value::Null; 0]);
    let shown = lines(&live(&["show", "hook", "13", "--json"]));
    assert_eq!((&shown[0]["event"]["data"], &shown[0]["id"]), (&json!({"number": 13}), &rows[1]["id"]));
    let table = live(&["list"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("hook"), "{}", words(&table));
    // Looking takes no lock, changing does.
    assert_eq!(lines(&stopped(&["list", "--json"])), rows);
    assert_eq!(lines(&stopped(&["export"])), lines(&live(&["export"])));
    assert_eq!(stopped(&["retry", "hook", "--all"]).status.code(), Some(3));

    repaired.store(true, Ordering::SeqCst);
    assert_eq!(lines(&live(&["retry", "hook", "3", "99", "--json"])), [json!({"changed": 1})]);
    eventually("the retried event", || (finished(&running)["delivered"] == 18).then_some(()));
    let attempts = received.lock().expect("nobody panics with it").clone();
    let mut attempts = attempts.iter().filter(|(_, body)| body.contains("\"number\":3}"));
    let event = |(_, body): &(Vec<(String, String)>, String)| body.clone();
    assert_eq!(attempts.next().map(event), attempts.next().map(event), "the same event, its id as well");
    assert_eq!(running.terminate().code(), Some(0));

    assert_eq!(offsets(&lines(&stopped(&["list", "--json"]))), [13, 17]);
    assert_eq!(lines(&stopped(&["drop", "hook", "17", "--json"])), [json!({"changed": 1})]);
    assert_eq!(offsets(&lines(&stopped(&["list", "--json"]))), [13]);
    assert_eq!(
        lines(&stopped(&["retry", "hook", "--error", "422", "--rate", "100", "--json"])),
        [json!({"changed": 1})]
    );
    assert_eq!(stopped(&["show", "hook", "17"]).status.code(), Some(1));

    let running = daemon(dir.path(), address, "mode = \"structured\"");
    let hook = eventually("the last one", || {
        let hook = finished(&running);
        (hook["delivered"] == 19).then_some(hook)
    });
    assert_eq!([&hook["dropped"], &hook["dead"], &hook["retrying"]], [&json!(1), &json!(0), &json!(0)]);
    let status = crate::harness::run(&["status", "--url", &running.url()]);
    assert_eq!(status.status.code(), Some(0), "the sum: {}", words(&status));
    assert_eq!(running.terminate().code(), Some(0));
}
