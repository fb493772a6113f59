//! The whole daemon in this process: a real directory, a real socket, and a stop.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;

use super::*;

type Daemon = JoinHandle<Result<(), Error>>;

/// A daemon with a Unix socket in its own directory, stopped by the returned sender.
fn start(dir: &Path, more: &str) -> (watch::Sender<bool>, Daemon) {
    let text = format!(
        "data_dir = {:?}\n[http]\nlisten = \"unix:{}\"\n[wal]\nbudget = \"1MiB\"\nsegment = \"64KiB\"\n{more}",
        dir.join("data").display().to_string(),
        dir.join("socket").display()
    );
    let config = Config::parse("test", &text, [], &[]).unwrap();
    let (stop, stopped) = watch::channel(false);
    let daemon = std::thread::spawn(move || {
        let operations = operations().unwrap();
        let ended = run(
            Builder::new(config),
            Passed::default(),
            operations.handle(),
            (stopped, Reload::never()),
            |_| {},
        );
        operations.shutdown_background();
        ended
    });
    (stop, daemon)
}

/// One request on a connection of its own; nothing while nobody listens.
fn ask(dir: &Path, request: &str) -> Option<String> {
    let mut stream = UnixStream::connect(dir.join("socket")).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
}

fn post(body: &str) -> String {
    format!(
        "POST /v1/events HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Asks until the answer is as wanted, as long as the daemon runs.
fn until(daemon: &Daemon, dir: &Path, request: &str, wanted: impl Fn(&str) -> bool) -> String {
    loop {
        assert!(!daemon.is_finished(), "the daemon ended before its answer was as wanted");
        match ask(dir, request) {
            Some(answer) if wanted(&answer) => return answer,
            _ => std::thread::yield_now(),
        }
    }
}

#[test]
fn what_was_accepted_is_archived_and_a_stop_in_order_ends_well() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3u64 {
        let (stop, daemon) = start(dir.path(), "");
        until(&daemon, dir.path(), &get("/readyz"), |answer| answer.starts_with("HTTP/1.1 200"));
        let answer = ask(dir.path(), &post(&format!("{{\"round\":{round}}}"))).unwrap();
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
        assert!(answer.contains(&format!("\"first_offset\":{round}")), "{answer}");
        until(&daemon, dir.path(), &get("/v1/status"), |answer| answer.contains("\"pending\":0"));
        stop.send(true).unwrap();
        daemon.join().unwrap().unwrap();
    }
}

#[test]
fn a_second_daemon_is_kept_out_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (stop, daemon) = start(dir.path(), "");
    until(&daemon, dir.path(), &get("/readyz"), |answer| answer.starts_with("HTTP/1.1 200"));
    let (_stop, second) = start(dir.path(), "");
    assert!(matches!(second.join().unwrap(), Err(Error::InUse { pid: Some(_), .. })));
    assert!(ask(dir.path(), &post("1")).unwrap().starts_with("HTTP/1.1 202"));
    stop.send(true).unwrap();
    daemon.join().unwrap().unwrap();
}

#[test]
fn a_directory_that_cannot_be_made_and_an_address_that_cannot_be_had_are_said() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("data"), "not a directory").unwrap();
    let (_stop, daemon) = start(dir.path(), "");
    assert!(matches!(daemon.join().unwrap(), Err(Error::DataDir { .. })));
    std::fs::remove_file(dir.path().join("data")).unwrap();
    std::fs::create_dir(dir.path().join("socket")).unwrap();
    let (_stop, daemon) = start(dir.path(), "");
    assert!(matches!(daemon.join().unwrap(), Err(Error::Listen { .. })));
}

#[test]
fn a_daemon_whose_stop_is_out_of_reach_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (stop, daemon) = start(dir.path(), "");
    drop(stop);
    daemon.join().unwrap().unwrap();
}

fn archived(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut waiting = vec![dir.join("data/archive")];
    while let Some(at) = waiting.pop() {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.file_name().unwrap().to_str().unwrap().starts_with("events-") {
                lines.extend(std::fs::read_to_string(path).unwrap().lines().map(str::to_owned));
            }
        }
    }
    lines.sort();
    lines
}

#[test]
fn a_filtered_archive_holds_what_matches_exactly_once_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let sink = "[[sink]]\nname = \"archive\"\ntype = \"json_file\"\nfilter = { type = \"keep.*\" }\n";
    for round in 0..4u64 {
        let (stop, daemon) = start(dir.path(), sink);
        until(&daemon, dir.path(), &get("/readyz"), |answer| answer.starts_with("HTTP/1.1 200"));
        for event_type in ["keep.a", "other", "keep.b", "other"] {
            let path = format!("/v1/events?type={event_type}");
            let answer = ask(dir.path(), &post("7").replace("/v1/events", &path)).unwrap();
            assert!(answer.starts_with("HTTP/1.1 202"), "{round}: {answer}");
        }
        until(&daemon, dir.path(), &get("/v1/status"), |answer| answer.contains("\"pending\":0"));
        stop.send(true).unwrap();
        daemon.join().unwrap().unwrap();
    }
    let lines = archived(dir.path());
    assert_eq!(lines.len(), 8, "{lines:#?}");
    for (offset, event_type) in [(0, "keep.a"), (2, "keep.b"), (12, "keep.a"), (14, "keep.b")] {
        let has = |line: &&String| {
            line.contains(&format!("\"eventflowoffset\":\"{offset}\""))
                && line.contains(&format!("\"type\":\"{event_type}\""))
        };
        assert_eq!(lines.iter().filter(has).count(), 1, "{offset} in {lines:#?}");
    }
}
