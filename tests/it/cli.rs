//! The command line from outside: exit codes, what goes to which stream, and what `send` does with
//! every kind of answer, from a daemon played by the test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::JoinHandle;

/// The built binary, without any of our variables from outside.
fn eventflow(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eventflow"));
    for (name, _) in std::env::vars() {
        if name.starts_with("EVENTFLOW_") {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    eventflow(args).output().expect("the binary runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// Runs `send` with `input` on its standard input.
fn send(args: &[&str], input: &str) -> Output {
    let mut child = eventflow(&[&["send", "-"], args].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    // The command may stop reading early; that is for its exit code to say.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("it ends")
}

/// A daemon played by the test: answers one request after another as told (`None` hangs up without
/// an answer), and returns the bodies it got.
fn answering(answers: Vec<Option<(u16, &'static str, String)>>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let played = std::thread::spawn(move || {
        let mut bodies = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).expect("a header");
                let line = line.trim().to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
                if line.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).expect("the body");
            bodies.push(String::from_utf8(body).expect("UTF-8"));
            if let Some((status, header, body)) = answer {
                write!(
                    stream,
                    "HTTP/1.1 {status} X\r\n{header}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                )
                .expect("answered");
            }
        }
        bodies
    });
    (url, played)
}

fn accepted(first: u64, last: u64) -> Option<(u16, &'static str, String)> {
    let count = last - first + 1;
    Some((
        202,
        "",
        format!(r#"{{"accepted":{count},"duplicates":0,"first_offset":{first},"last_offset":{last}}}"#),
    ))
}

fn refused(status: u16, errors: &str) -> Option<(u16, &'static str, String)> {
    Some((
        status,
        "",
        format!(r#"{{"title":"refused","status":{status},"detail":"no","errors":[{errors}]}}"#),
    ))
}

#[test]
fn wrong_usage_and_wrong_configuration_end_with_2() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("e.toml");
    std::fs::write(&file, "[http]\nlistn = \"127.0.0.1:1\"\n").expect("written");
    let file = file.to_str().expect("UTF-8");
    for args in [
        &["frobnicate"][..],
        &["serve", "--no-such-flag"],
        &["check", "--config", file],
        &["check", "--config", "/nonexistent/e.toml"],
        &["serve", "--config", file],
        &["serve", "--listen", "0.0.0.0:0"],
        &["send"],
        &["send", "-", "--rate", "0"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{args:?}");
    }
    let said = stderr(&run(&["check", "--config", file]));
    assert!(
        said.starts_with("eventflow: ") && said.contains("`http.listen`") && said.contains(".toml:2:"),
        "{said}"
    );
}

#[test]
fn what_check_prints_can_be_fed_back_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = eventflow(&["check", "--data-dir", "/srv/e"])
        .env("EVENTFLOW_WAL__BUDGET", "2GiB")
        .output()
        .expect("the binary runs");
    assert_eq!(first.status.code(), Some(0), "{}", stderr(&first));
    let file = dir.path().join("e.toml");
    std::fs::write(&file, &first.stdout).expect("written");
    let second = run(&["check", "--config", file.to_str().expect("UTF-8")]);
    assert_eq!(stdout(&first), stdout(&second));
    assert!(stdout(&second).contains("budget = \"2GiB\""));
    assert!(!Path::new("/srv/e").exists(), "checking creates nothing");
}

#[test]
fn help_has_examples_and_exit_codes() {
    for verb in ["serve", "check", "send", "status", "failures", "completions"] {
        let help = run(&[verb, "--help"]);
        assert_eq!(help.status.code(), Some(0));
        assert!(stdout(&help).contains("Example"), "{verb}");
    }
    let help = stdout(&run(&["--help"]));
    assert!(help.contains("Exit codes") && help.contains("EVENTFLOW_WAL__BUDGET"), "{help}");
    assert!(stdout(&run(&["completions", "bash"])).contains("eventflow"));
}

#[test]
fn a_daemon_that_is_not_there_is_said_and_ends_with_1() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    for output in [run(&["status", "--url", &url]), send(&["--url", &url], "1\n")] {
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("is the daemon running?"), "{}", stderr(&output));
    }
    let output = run(&["wal", "verify", "--data-dir", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

#[test]
fn send_posts_batches_and_tallies_them() {
    let (url, played) = answering(vec![accepted(5, 6), accepted(7, 7)]);
    let output = send(&["--url", &url, "--batch", "2", "--json"], "{\"a\":1}\n\n2\n\"drei\"");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(played.join().expect("played"), ["{\"a\":1}\n2\n", "\"drei\"\n"]);
    let tally: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("one JSON object");
    assert_eq!((&tally["accepted"], &tally["refused"]), (&3.into(), &0.into()));
    assert_eq!((&tally["first_offset"], &tally["last_offset"]), (&5.into(), &7.into()));
    assert!(stderr(&output).contains("3 accepted"), "{}", stderr(&output));
}

#[test]
fn send_names_refused_lines_and_sends_the_others() {
    let errors = r#"{"index":1,"detail":"not JSON"}"#;
    let (url, played) = answering(vec![refused(400, errors), accepted(0, 1)]);
    let output = send(&["--url", &url], "1\n\nrubbish\n3\n");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(played.join().expect("played"), ["1\nrubbish\n3\n", "1\n3\n"]);
    let said = stderr(&output);
    assert!(said.contains("line 3 was refused: not JSON") && said.contains("2 accepted"), "{said}");
}

#[test]
fn send_halves_a_batch_that_is_too_large_until_the_line_is_found() {
    let (url, played) = answering(vec![refused(413, ""), accepted(0, 0), refused(413, "")]);
    let output = send(&["--url", &url], "1\n2\n");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(played.join().expect("played"), ["1\n2\n", "1\n", "2\n"]);
    assert!(stderr(&output).contains("line 2 was refused"), "{}", stderr(&output));
}

#[test]
fn send_waits_when_asked_to_and_goes_on() {
    let busy = Some((429, "retry-after: 1\r\n", "{}".to_owned()));
    let (url, played) = answering(vec![busy.clone(), accepted(0, 0)]);
    let output = send(&["--url", &url], "1\n");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(played.join().expect("played"), ["1\n", "1\n"]);
    let (url, played) = answering(vec![busy]);
    let output = send(&["--url", &url, "--patience", "0s"], "1\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("gave up at line 1"), "{}", stderr(&output));
    played.join().expect("played");
}

#[test]
fn a_lost_answer_is_sent_again_only_where_that_cannot_double_events() {
    let event = "{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\"}\n";
    let (url, played) = answering(vec![None, accepted(0, 0)]);
    let output = send(&["--url", &url], event);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(played.join().expect("played"), [event, event]);

    let (url, played) = answering(vec![None]);
    let output = send(&["--url", &url], "1\n");
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("line 1 was lost") && said.contains("--at-least-once"), "{said}");
    played.join().expect("played");

    let (url, played) = answering(vec![None, accepted(0, 0)]);
    let output = send(&["--url", &url, "--at-least-once"], "1\n");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    played.join().expect("played");
}

#[test]
fn status_prints_a_table_or_the_answer_and_checks_the_sum() {
    let answer = |delivered: u64| {
        format!(
            r#"{{"version":"0.1.0","uptime_seconds":1.0,"state":"serving","wal":{{"first_offset":0,"next_offset":3,
            "bytes":1,"budget_bytes":2,"segments":1,"damaged_ranges":0}},"sinks":[{{"name":"archive","type":"json_file",
            "state":"running","acked_offset":3,"pending":0,"in_flight":0,"retrying":0,"dead":0,
            "delivered":{delivered},"dropped":0,"last_error":null}}]}}"#
        )
    };
    let ok = |body: String| Some((200, "", body));
    let (url, played) = answering(vec![ok(answer(3)), ok(answer(3)), ok(answer(4))]);
    let table = run(&["status", "--url", &url]);
    assert_eq!(table.status.code(), Some(0), "{}", stderr(&table));
    assert!(stdout(&table).contains("archive") && !stdout(&table).contains('\u{1b}'), "{}", stdout(&table));
    let json = run(&["status", "--url", &url, "--json"]);
    assert_eq!(stdout(&json).trim(), answer(3));
    let wrong = run(&["status", "--url", &url]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(stderr(&wrong).contains("accounts for 4 events"), "{}", stderr(&wrong));
    played.join().expect("played");
}

fn failure(offset: u64) -> String {
    format!(
        r#"{{"sink":"orders","offset":{offset},"state":"dead","attempts":10,"first_failed_at":"2026-01-31T12:00:00.000000Z",
        "last_failed_at":"2026-01-31T12:00:01.000000Z","due_at":null,"error":"answered 500","id":"e-{offset}",
        "source":"/s","type":"t""#
    )
}

#[test]
fn failures_are_listed_page_after_page_and_changed_as_found() {
    let ok = |body: String| Some((200, "", body));
    let page = |offsets: &[u64], next: &str| {
        let rows: Vec<String> = offsets.iter().map(|offset| failure(*offset) + "}").collect();
        ok(format!(r#"{{"failures":[{}],"next":{next}}}"#, rows.join(",")))
    };
    let pages = || vec![page(&[4, 7], "\"orders:7\""), page(&[], "\"orders:90\""), page(&[91], "null")];

    let (url, played) = answering(pages());
    let listed = run(&["failures", "list", "--json", "--url", &url]);
    assert_eq!(listed.status.code(), Some(0), "{}", stderr(&listed));
    let offsets = stdout(&listed)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect::<Vec<serde_json::Value>>();
    assert_eq!(
        offsets.iter().map(|row| row["offset"].as_u64()).collect::<Vec<_>>(),
        [Some(4), Some(7), Some(91)]
    );
    played.join().expect("played");

    let changed = |n: u64| ok(format!(r#"{{"changed":{n}}}"#));
    let mut answers = pages();
    answers.insert(1, changed(2));
    answers.push(changed(0));
    let (url, played) = answering(answers);
    let retried = run(&["failures", "retry", "orders", "--error", "500", "--json", "--url", &url]);
    assert_eq!(stdout(&retried).trim(), r#"{"changed":2}"#, "{}", stderr(&retried));
    assert!(stderr(&retried).contains("2 events to be tried again"), "{}", stderr(&retried));
    let bodies = played.join().expect("played");
    assert_eq!(
        bodies.iter().filter(|body| !body.is_empty()).collect::<Vec<_>>(),
        [r#"{"offsets":[4,7],"sink":"orders"}"#, r#"{"offsets":[91],"sink":"orders"}"#,]
    );

    let (url, played) = answering(vec![changed(7)]);
    let dropped = run(&["failures", "drop", "orders", "--all", "--url", &url]);
    assert!(stderr(&dropped).contains("7 events dropped"), "{}", stderr(&dropped));
    assert_eq!(played.join().expect("played"), [r#"{"all":true,"sink":"orders"}"#]);
}

#[test]
fn failures_are_exported_with_their_events_and_refusals_are_said() {
    let ok = |body: String| Some((200, "", body));
    let shown = format!(
        r#"{},"accepted_at":"2026-01-31T11:00:00.000000Z","event":{{"id":"e-4","data":1e400}}}}"#,
        failure(4)
    );
    let gone = || Some((404, "", r#"{"detail":"the failure table has no row"}"#.to_owned()));
    let page = format!(r#"{{"failures":[{}}},{}}}],"next":null}}"#, failure(4), failure(5));
    let (url, played) = answering(vec![ok(page), ok(shown), gone()]);
    let exported = run(&["failures", "export", "--url", &url]);
    assert_eq!(exported.status.code(), Some(0), "{}", stderr(&exported));
    assert_eq!(stdout(&exported).lines().count(), 1, "{}", stdout(&exported));
    assert!(stdout(&exported).contains(r#""event":{"id":"e-4","data":1e400}"#), "{}", stdout(&exported));
    played.join().expect("played");

    for (status, code) in [(400, 2), (404, 1), (503, 1)] {
        let (url, played) = answering(vec![Some((status, "", r#"{"detail":"because"}"#.to_owned()))]);
        let refused = run(&["failures", "list", "--url", &url]);
        assert_eq!(refused.status.code(), Some(code));
        assert!(stderr(&refused).contains("because"), "{}", stderr(&refused));
        played.join().expect("played");
    }
    let (url, played) = answering(vec![gone()]);
    let nothing = run(&["failures", "show", "orders", "5", "--url", &url]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(stderr(&nothing).contains("no row for offset 5"), "{}", stderr(&nothing));
    played.join().expect("played");
    for words in [&["retry", "orders"][..], &["drop", "orders", "1", "--all"], &["list", "--state", "lost"]] {
        assert_eq!(run(&[&["failures"], words].concat()).status.code(), Some(2), "{words:?}");
    }
}
