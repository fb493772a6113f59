//! A daemon in this process with sinks of the test's own, over a real directory.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;
use crate::config::SinkKind;
use crate::event::{Micros, NewBatch};
use crate::queue::FailureQuery;
use crate::sink::{Batch, DeliverFuture, Delivery, Outcome, Outcomes};

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

/// Fails every tenth event once, and panics on one of them whenever it sees it.
struct Moody {
    delivered: Arc<Mutex<Vec<u64>>>,
    failed: Arc<Mutex<BTreeSet<u64>>>,
}

const POISON: u64 = 137;

impl Sink for Moody {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliverFuture<'a> {
        Box::pin(async move {
            let offsets: Vec<u64> = batch.events.iter().map(|event| event.offset).collect();
            assert!(!offsets.contains(&POISON), "planted");
            let mut failed = self.failed.lock().unwrap();
            let outcomes = offsets.iter().map(|offset| {
                if offset.is_multiple_of(10) && failed.insert(*offset) {
                    return Outcome::Retry { reason: "later".to_owned(), retry_after: None };
                }
                self.delivered.lock().unwrap().push(*offset);
                Outcome::Delivered
            });
            let outcomes = Outcomes::Each(outcomes.collect());
            Ok(Delivery { outcomes, token: None })
        })
    }
}

#[test]
fn one_poison_event_dies_alone_while_all_others_reach_their_sink_and_a_neighbour_notices_nothing() {
    const EVENTS: u64 = 500;
    let dir = tempfile::tempdir().unwrap();
    let delivered: Arc<Mutex<Vec<u64>>> = Arc::default();
    let failed: Arc<Mutex<BTreeSet<u64>>> = Arc::default();
    let mut moody = SinkConfig::embedded("moody");
    moody.workers = 3;
    moody.retry.max_attempts = 4;
    moody.retry.initial = Duration::from_millis(1);
    let make = {
        let (delivered, failed) = (delivered.clone(), failed.clone());
        move |_| {
            let (delivered, failed) = (delivered.clone(), failed.clone());
            Ok(Box::new(Moody { delivered, failed }) as Box<dyn Sink>)
        }
    };
    let running = Builder::new(config(dir.path())).sink(moody, make).start().unwrap();
    let queue = running.queue();
    wait_for(queue.append(events(0, EVENTS), Micros::now()).unwrap()).unwrap();
    loop {
        let status = queue.status();
        let [archive, moody] = &status.sinks[..] else { panic!("two sinks") };
        for sink in [archive, moody] {
            let parts = [sink.delivered, sink.dropped, sink.dead, sink.retrying, sink.pending, sink.skipped];
            assert_eq!(parts.iter().sum::<u64>(), EVENTS, "{sink:?}");
        }
        assert!(!running.is_finished());
        if archive.delivered == EVENTS && moody.pending == 0 && moody.retrying == 0 {
            assert_eq!((moody.delivered, moody.dead), (EVENTS - 1, 1));
            break;
        }
        std::thread::yield_now();
    }
    let rows = queue.failures(&FailureQuery { limit: 10, ..Default::default() }).unwrap().rows;
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((row.offset, row.attempts), (POISON, 4));
    assert!(row.error.contains("planted"), "{}", row.error);
    running.stop().unwrap();
    let mut delivered = delivered.lock().unwrap().clone();
    delivered.sort_unstable();
    assert_eq!(delivered, (0..EVENTS).filter(|offset| *offset != POISON).collect::<Vec<_>>());
}
