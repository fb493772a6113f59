//! A daemon in this process with sinks of the test's own, over a real directory.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::config::SinkKind;
use crate::event::{Micros, NewBatch};
use crate::sink::{Batch, DeliverFuture, Delivery};

/// So many events, numbered on from `first`.
fn events(first: u64, count: u64) -> NewBatch {
    let mut batch = NewBatch::default();
    for id in first..first + count {
        let text = format!(r#"{{"specversion":"1.0","id":"{id}","source":"/s","type":"t"}}"#);
        batch.push_rendered(0, |out| out.extend_from_slice(text.as_bytes()));
    }
    batch
}

/// Notes every event it gets.
struct Noting(Arc<Mutex<Vec<u64>>>);

impl Sink for Noting {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliverFuture<'a> {
        self.0.lock().unwrap().extend(batch.events.iter().map(|event| event.offset));
        Box::pin(std::future::ready(Ok(Delivery::default())))
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
    let seen = Arc::new(Mutex::new(Vec::new()));
    let opened = Arc::new(AtomicU32::new(0));
    for round in 0..2u64 {
        let (seen, opened) = (seen.clone(), opened.clone());
        let mut own = SinkConfig::embedded("own");
        (own.workers, own.batch) = (3, 2);
        let running = Builder::new(config(dir.path()))
            .sink(own, move |_| {
                opened.fetch_add(1, Ordering::Relaxed);
                Ok(Box::new(Noting(seen.clone())))
            })
            .start()
            .unwrap();
        let queue = running.queue();
        let appended = wait_for(queue.append(events(round * 50, 50), Micros::now()).unwrap());
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
    assert_eq!(opened.load(Ordering::Relaxed), 6);
}

fn wait_for<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn mistakes_of_a_program_around_the_daemon_are_errors_of_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let start = |change: fn(&mut SinkConfig)| {
        let mut sink = SinkConfig::embedded("own");
        change(&mut sink);
        let open = |_| Ok(Box::new(Noting(Arc::default())) as Box<dyn Sink>);
        Builder::new(config(dir.path())).sink(sink, open).start().map(|_| ()).unwrap_err().to_string()
    };
    assert!(start(|sink| sink.name = "archive".to_owned()).contains("two sinks"));
    assert!(start(|sink| sink.name = "No Name".to_owned()).contains("a-z"));
    assert!(start(|sink| sink.workers = 0).contains("1 to 64"));
    assert!(start(|sink| sink.batch = 0).contains("batch"));
    let ordered = start(|sink| {
        sink.kind = SinkKind::Embedded { keeps_order: true };
        sink.workers = 2;
    });
    assert!(ordered.contains("keeps events in order"), "{ordered}");
    // A sink that cannot be opened, and one that nobody brought along.
    let broken = |_| Err(SinkError { sink: "own".to_owned(), reason: "planted".to_owned() });
    let failed = Builder::new(config(dir.path())).sink(SinkConfig::embedded("own"), broken).start();
    assert!(failed.unwrap_err().to_string().contains("planted"));
    let mut config = config(dir.path());
    config.sinks.push(SinkConfig::embedded("own"));
    assert!(Builder::new(config).start().unwrap_err().to_string().contains("brings it along"));
}
