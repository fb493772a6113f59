//! Replays to a webhook of the real daemon: marked, apart from the live flow, stopped and continued.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;

use crate::harness::{Daemon, eventflow, eventually, words};
use crate::webhook::{Received, daemon, finished, post, receiver};

fn replay(dir: &Path, daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = eventflow(&["replay", "--url", &daemon.url(), "--config"]);
    command.arg(dir.join("eventflow.toml")).arg("--data-dir").arg(dir.join("data")).args(arguments);
    command
}

fn done(mut command: Command) -> Output {
    command.output().expect("the binary runs")
}

/// The replays that arrived: number and `webhook-id` of each. Live deliveries have no mark.
fn replays(received: &Received) -> Vec<(u64, String)> {
    let received = received.lock().expect("nobody panics with it");
    let header = |headers: &[(String, String)], name: &str| {
        headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.clone())
    };
    let marked = |(headers, body): &(Vec<(String, String)>, String)| {
        let event: Value = serde_json::from_str(body).expect("JSON");
        let is_replay = header(headers, "eventflow-replay").as_deref() == Some("true");
        assert_eq!(event["eventflowreplay"] == "true", is_replay, "header and attribute say the same");
        let number = event["data"]["number"].as_u64().expect("a number");
        is_replay.then(|| (number, header(headers, "webhook-id").expect("an id")))
    };
    received.iter().filter_map(marked).collect()
}

fn numbers(received: &Received) -> Vec<u64> {
    replays(received).into_iter().map(|(number, _)| number).collect()
}

const STRUCTURED: &str = "mode = \"structured\"";

#[test]
fn a_replay_is_marked_and_moves_no_number_of_the_live_flow() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (address, received) = receiver(|body| {
        let is_replay = body.contains("eventflowreplay");
        if is_replay && body.contains("\"number\":13}") { 422 } else { 200 }
    });
    let running = daemon(dir.path(), address, STRUCTURED);
    post(&running, 0..40);
    let before = finished(&running);
    running.drained();
    let live: Vec<_> = received.lock().expect("nobody panics with it").clone();

    let output =
        done(replay(dir.path(), &running, &["--sink", "hook", "--from", "10", "--to", "30", "--json"]));
    assert_eq!(output.status.code(), Some(1), "one event failed");
    assert!(
        words(&output).contains("offset 13 failed") && words(&output).contains("422"),
        "{}",
        words(&output)
    );
    let tally: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!([&tally["delivered"], &tally["failed"], &tally["next_offset"]], [19, 1, 30]);
    let attempts = replays(&received);
    let seen: BTreeSet<u64> = attempts.iter().map(|(number, _)| *number).collect();
    assert_eq!(seen, (10..30).collect());
    // The same delivery once more, as its id says.
    let id_of = |number: u64| {
        let first = live.iter().find(|(_, body)| body.contains(&format!("\"number\":{number}}}")));
        let header = first.and_then(|(headers, _)| headers.iter().find(|(name, _)| name == "webhook-id"));
        header.map(|(_, id)| id.clone())
    };
    assert!(attempts.iter().all(|(number, id)| Some(id.clone()) == id_of(*number)));

    let mut after = finished(&running);
    after["last_error"] = before["last_error"].clone();
    assert_eq!(after, before, "no number of the live flow moved");
    let shown = crate::harness::run(&["failures", "list", "--json", "--url", &running.url()]);
    assert!(shown.stdout.is_empty(), "no row: {}", String::from_utf8_lossy(&shown.stdout));
    assert_eq!(running.terminate().code(), Some(0));
}

#[test]
fn a_replay_that_hangs_holds_up_no_live_delivery() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (go_on, hanging) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (address, _received) = receiver({
        let (go_on, hanging) = (go_on.clone(), hanging.clone());
        move |body| {
            if body.contains("eventflowreplay") {
                hanging.fetch_add(1, Ordering::SeqCst);
                eventually("the end of the test", || go_on.load(Ordering::SeqCst).then_some(()));
            }
            200
        }
    });
    let running = daemon(dir.path(), address, STRUCTURED);
    post(&running, 0..5);
    assert_eq!(finished(&running)["delivered"], 5);
    running.drained();
    let mut command = replay(dir.path(), &running, &["--sink", "hook", "--from", "0", "--to", "5"]);
    let mut child = command.stderr(Stdio::null()).spawn().expect("the binary starts");
    eventually("the replay to hang", || (hanging.load(Ordering::SeqCst) > 0).then_some(()));
    post(&running, 5..25);
    eventually("live deliveries", || (finished(&running)["delivered"] == 25).then_some(()));
    go_on.store(true, Ordering::SeqCst);
    let ended = eventually("the replay to end", || child.try_wait().expect("it is ours"));
    assert_eq!(ended.code(), Some(0));
    assert_eq!(running.terminate().code(), Some(0));
}

#[test]
fn a_replay_that_is_stopped_says_where_to_go_on_and_goes_on_there() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (address, received) = receiver(|_| 200);
    let running = daemon(dir.path(), address, STRUCTURED);
    post(&running, 0..200);
    finished(&running);
    running.drained();
    let arguments = ["--sink", "hook", "--from", "0", "--to", "200", "--rate", "100"];
    let mut command = replay(dir.path(), &running, &arguments);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    eventually("a part of it", || (numbers(&received).len() >= 20).then_some(()));
    let signalled = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(signalled.expect("kill runs").success());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{}", words(&output));
    let said = words(&output);
    let from = said.split("--from ").nth(1).and_then(|rest| rest.split('`').next()).expect("where to go on");
    let first = numbers(&received);
    assert!(first.len() < 200, "it was stopped on the way");
    assert_eq!(first, (0..from.parse().expect("an offset")).collect::<Vec<u64>>(), "{said}");

    let rest = done(replay(dir.path(), &running, &["--sink", "hook", "--from", from, "--to", "200"]));
    assert_eq!(rest.status.code(), Some(0), "{}", words(&rest));
    assert_eq!(numbers(&received), (0..200).collect::<Vec<u64>>(), "every event once");
    assert_eq!(running.terminate().code(), Some(0));
}

#[test]
fn an_outage_is_waited_out_and_what_cannot_be_replayed_is_said_in_a_sentence() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let refusals = Arc::new(AtomicU64::new(3));
    let (address, received) = receiver({
        let refusals = refusals.clone();
        move |body| {
            let is_replay = body.contains("eventflowreplay");
            let left = refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                if is_replay { left.checked_sub(1) } else { None }
            });
            if left.is_ok() { 503 } else { 200 }
        }
    });
    let running = daemon(dir.path(), address, STRUCTURED);
    post(&running, 0..10);
    finished(&running);
    running.drained();
    let all = ["--from", "0", "--to", "10"];
    let output = done(replay(dir.path(), &running, &[&["--sink", "hook"], &all[..]].concat()));
    assert_eq!(output.status.code(), Some(0), "{}", words(&output));
    let seen: BTreeSet<u64> = numbers(&received).into_iter().collect();
    assert_eq!((seen, refusals.load(Ordering::SeqCst)), ((0..10).collect(), 0));

    for (sink, sentence) in [("archive", "keeps order"), ("nobody", "no sink is named `nobody`")] {
        let output = done(replay(dir.path(), &running, &[&["--sink", sink], &all[..]].concat()));
        assert_eq!(output.status.code(), Some(1));
        assert!(words(&output).contains(sentence), "{}", words(&output));
    }
    let mut client = running.client();
    let mut ask = |body: &str| {
        let headers = [("content-type", "application/x-ndjson")];
        client.request("POST", "/v1/sinks/hook/replay", &headers, body.as_bytes()).expect("an answer")
    };
    let line = |offset: u64| {
        format!(
            r#"{{"specversion":"1.0","id":"1","source":"/","type":"t","data":{{"number":1}},"eventflowoffset":"{offset}","eventflowtime":"2026-01-01T00:00:00Z"}}"#
        )
    };
    let halved = line(1).replace("\"data\":{", "\"data\":");
    for (body, index) in [
        ("{}".to_owned(), 0),
        (format!("{}\n{halved}", line(0)), 1),
        (format!("{}\n{}", line(7), line(7)), 1),
    ] {
        let answer = ask(&body);
        assert_eq!((answer.status, answer.slug().as_str()), (400, "malformed"), "{body}");
        assert_eq!(answer.json()["errors"][0]["index"], index, "{body}");
    }
    let many: Vec<String> = (0..1001).map(line).collect();
    assert_eq!(ask(&many.join("\n")).status, 413);
    let answer = ask(&line(3));
    assert_eq!((answer.status, &answer.json()["delivered"]), (200, &1.into()), "{}", answer.text());
    assert_eq!(running.terminate().code(), Some(0));
}
