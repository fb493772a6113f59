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
        let ended = run(Builder::new(config), operations.handle(), stopped, |_| {});
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

/// Notes every event it gets.
struct Noting(std::sync::Arc<std::sync::Mutex<Vec<u64>>>);

impl sink::Sink for Noting {
    fn deliver<'a>(&'a mut self, batch: &'a sink::Batch) -> sink::DeliverFuture<'a> {
        self.0.lock().unwrap().extend(batch.events.iter().map(|event| event.offset));
        Box::pin(std::future::ready(Ok(sink::Delivery::default())))
    }
}

fn config(dir: &Path) -> Config {
    let text = "[http]\nlisten = \"127.0.0.1:0\"\n[wal]\nbudget = \"1MiB\"\nsegment = \"64KiB\"";
    let mut config = Config::parse("test", text, [], &[]).unwrap();
    config.data_dir = dir.join("data");
    config
}

#[test]
fn a_programs_own_sink_gets_every_event_once_by_any_number_of_workers_and_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let opened = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    for round in 0..2u64 {
        let (seen, opened) = (seen.clone(), opened.clone());
        let mut own = SinkConfig::embedded("own");
        (own.workers, own.batch) = (3, 2);
        let running = Builder::new(config(dir.path()))
            .sink(own, move |_| {
                opened.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok(Box::new(Noting(seen.clone())))
            })
            .start()
            .unwrap();
        let queue = running.queue();
        let mut batch = crate::event::NewBatch::default();
        for at in 0..50u64 {
            let id = round * 50 + at;
            let text = format!(r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t"}}"#);
            batch.push_rendered(0, |out| out.extend_from_slice(text.as_bytes()));
        }
        let appended = futures_block(queue.append(batch, Micros::now()).unwrap());
        assert_eq!(appended.unwrap().accepted, 50);
        while queue.status().sinks.iter().any(|sink| sink.pending > 0) {
            assert!(!running.is_finished());
            std::thread::yield_now();
        }
        running.stop().unwrap();
    }
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_unstable();
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
    assert_eq!(opened.load(std::sync::atomic::Ordering::Relaxed), 6);
}

fn futures_block<T>(future: impl Future<Output = T>) -> T {
    runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn mistakes_of_a_program_around_the_daemon_are_errors_of_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let start = |change: fn(&mut SinkConfig)| {
        let mut sink = SinkConfig::embedded("own");
        change(&mut sink);
        let open = |_| Ok(Box::new(Noting(std::sync::Arc::default())) as Box<dyn sink::Sink>);
        Builder::new(config(dir.path())).sink(sink, open).start().map(|_| ()).unwrap_err().to_string()
    };
    assert!(start(|sink| sink.name = "archive".to_owned()).contains("two sinks"));
    assert!(start(|sink| sink.name = "No Name".to_owned()).contains("a-z"));
    assert!(start(|sink| sink.workers = 0).contains("1 to 64"));
    assert!(start(|sink| sink.batch = 0).contains("batch"));
    let ordered = start(|sink| {
        sink.kind = crate::config::SinkKind::Embedded { keeps_order: true };
        sink.workers = 2;
    });
    assert!(ordered.contains("keeps events in order"), "{ordered}");
    // A sink that cannot be opened, and one that nobody brought along.
    let broken = |_| Err(sink::SinkError { sink: "own".to_owned(), reason: "planted".to_owned() });
    let failed = Builder::new(config(dir.path())).sink(SinkConfig::embedded("own"), broken).start();
    assert!(failed.unwrap_err().to_string().contains("planted"));
    let mut config = config(dir.path());
    config.sinks.push(SinkConfig::embedded("own"));
    assert!(Builder::new(config).start().unwrap_err().to_string().contains("brings it along"));
}
