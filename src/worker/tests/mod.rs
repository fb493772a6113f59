//! Workers against a queue and sinks that exist in memory only. Time is tokio's paused clock, and
//! jitter always takes the longest wait.

mod fates;
mod mixed;
mod queue;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::config::SinkKind;
use crate::sink::{DeliverFuture, Delivery, SinkError};
use queue::{Book, FakeQueue, Supply};

const SINK: SinkId = SinkId(0);

/// How the test sink meets one batch.
enum Act {
    Answer(Result<Delivery, Unavailable>),
    Panic,
    PanicBeforeFuture,
    Hang,
}

/// Decides for each batch.
type Script = Box<dyn FnMut(&Batch) -> Act + Send>;

/// What a sink was called with: offsets and voids.
type Calls = Arc<Mutex<Vec<(Vec<u64>, Vec<Range<u64>>)>>>;

struct FakeSink {
    script: Script,
    calls: Calls,
    closed: Arc<Mutex<u32>>,
}

impl Sink for FakeSink {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliverFuture<'a> {
        self.calls.lock().unwrap().push((offsets(batch), batch.voids.clone()));
        match (self.script)(batch) {
            Act::Answer(answer) => Box::pin(std::future::ready(answer)),
            Act::Panic => Box::pin(async { panic!("planted") }),
            Act::PanicBeforeFuture => panic!("planted early"),
            Act::Hang => Box::pin(std::future::pending()),
        }
    }
    fn close(&mut self) -> Result<(), SinkError> {
        *self.closed.lock().unwrap() += 1;
        Ok(())
    }
}

fn offsets(batch: &Batch) -> Vec<u64> {
    batch.events.iter().map(|event| event.offset).collect()
}

fn fine() -> Act {
    Act::Answer(Ok(Delivery::default()))
}

fn unavailable(retry_after: Option<Duration>) -> Act {
    Act::Answer(Err(Unavailable { reason: "planted outage".into(), retry_after }))
}

/// Plays these, then delivers everything.
fn acts(acts: Vec<Act>) -> Script {
    let mut acts = VecDeque::from(acts);
    Box::new(move |_| acts.pop_front().unwrap_or_else(fine))
}

/// A sink that parks single events.
fn config() -> SinkConfig {
    SinkConfig {
        batch: 100,
        timeout: Duration::from_secs(10),
        backoff_initial: Duration::from_secs(1),
        backoff_max: Duration::from_secs(60),
        ..SinkConfig::embedded("test")
    }
}

/// A sink that keeps order.
fn ordered() -> SinkConfig {
    SinkConfig { kind: SinkKind::Stdout, ..config() }
}

struct End {
    ended: Result<(), QueueError>,
    book: Book,
    calls: Vec<(Vec<u64>, Vec<Range<u64>>)>,
    closed: u32,
    took: Duration,
}

/// Runs a worker over `supply` until the queue drains.
fn run(supply: Vec<Supply>, script: Script, config: SinkConfig) -> End {
    run_until(supply, script, config, None)
}

/// Runs a worker until the queue drains, or until the daemon does after `time`.
fn run_until(supply: Vec<Supply>, script: Script, config: SinkConfig, time: Option<Duration>) -> End {
    let queue = FakeQueue::stocked(supply);
    let owner = queue.owner.clone();
    let (closed, calls) = (Arc::new(Mutex::new(0)), Calls::default());
    let (stop, stopped) = watch::channel(false);
    let sink = FakeSink { script, calls: calls.clone(), closed: closed.clone() };
    let worker = Worker {
        queue: Arc::new(queue),
        sink_id: SINK,
        availability: Arc::new(Availability::new(&config)),
        config,
        sink: Box::new(sink),
        stop: stopped,
        pulse: Arc::default(),
    };
    let clock = owner.clone();
    let (ended, took) = runtime().block_on(async move {
        let start = Instant::now();
        let stopper = async {
            match time {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
            stop.send(true).unwrap();
            std::future::pending::<()>().await;
        };
        let worker = worker.run_with(Box::new(|| u64::MAX), Box::new(move || clock.now()));
        let ended = tokio::select! {
            ended = worker => ended,
            () = stopper => unreachable!("it never ends"),
        };
        (ended, start.elapsed())
    });
    let (closed, calls) = (*closed.lock().unwrap(), std::mem::take(&mut *calls.lock().unwrap()));
    let book = std::mem::take(&mut *owner.book());
    End { ended, book, calls, closed, took }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

fn one(range: Range<u64>) -> Vec<Range<u64>> {
    vec![range]
}

#[test]
fn every_claim_is_resolved_in_order_and_the_sink_is_closed_once() {
    let end = run(vec![Supply::Events(3), Supply::Events(2)], acts(vec![]), config());
    assert!(end.ended.is_ok());
    assert_eq!(end.book.resolved, [0..3, 3..5]);
    assert!(end.book.given_back.is_empty());
    assert_eq!(end.closed, 1);
}

#[test]
fn the_token_reaches_the_queue_as_the_sink_gave_it() {
    let delivery = Delivery { outcomes: Outcomes::AllDelivered, token: Some(vec![7]) };
    let end = run(vec![Supply::Events(2)], acts(vec![Act::Answer(Ok(delivery))]), ordered());
    assert_eq!(end.book.tokens, [Some(vec![7])]);
}

#[test]
fn an_unavailable_sink_gets_the_same_events_again_after_growing_waits_and_status_is_told() {
    for config in [config(), ordered()] {
        let end = run(vec![Supply::Events(3)], acts(vec![unavailable(None), unavailable(None)]), config);
        assert_eq!(end.book.given_back, [0..3, 0..3]);
        assert_eq!(end.book.resolved, one(0..3));
        assert_eq!(end.took, Duration::from_secs(1 + 2));
        let told: Vec<bool> = end.book.backing_off.iter().map(Option::is_some).collect();
        assert_eq!(told, [true, true, false]);
    }
}

#[test]
fn a_success_makes_the_next_outage_start_with_the_shortest_wait() {
    let script = acts(vec![unavailable(None), unavailable(None), fine(), unavailable(None)]);
    let end = run(vec![Supply::Events(1), Supply::Events(1)], script, config());
    assert_eq!(end.took, Duration::from_secs(1 + 2 + 1));
}

#[test]
fn the_time_a_target_asks_for_is_kept() {
    let script = acts(vec![unavailable(Some(Duration::from_secs(300)))]);
    let end = run(vec![Supply::Events(1)], script, config());
    assert_eq!(end.took, Duration::from_secs(300));
}

#[test]
fn a_sink_that_keeps_order_and_panics_or_hangs_gets_the_same_events_again() {
    let script = acts(vec![Act::Panic, Act::PanicBeforeFuture, Act::Hang]);
    let end = run(vec![Supply::Events(2), Supply::Events(1)], script, ordered());
    assert!(end.ended.is_ok());
    assert_eq!(end.book.given_back, [0..2, 0..2, 0..2]);
    assert_eq!(end.book.resolved, [0..2, 2..3]);
    assert!(end.book.backing_off[0].as_deref().unwrap().contains("planted"));
    assert!(end.book.backing_off[2].as_deref().unwrap().contains("10s"));
    assert_eq!(end.took, Duration::from_secs(1 + 2 + 10 + 4));
}

#[test]
fn a_sink_that_keeps_order_cannot_go_on_without_an_event() {
    for odd in [
        Outcome::Retry { reason: "later".into(), retry_after: None },
        Outcome::Reject { reason: "never".into() },
    ] {
        let outcomes = Outcomes::Each(vec![Outcome::Delivered, odd]);
        let script = acts(vec![Act::Answer(Ok(Delivery { outcomes, token: Some(vec![1]) }))]);
        let end = run(vec![Supply::Events(2)], script, ordered());
        assert_eq!(end.book.given_back, one(0..2));
        assert_eq!(end.book.resolved, one(0..2));
        assert!(end.book.fates.values().all(|fates| *fates == [Fate::Delivered]));
        assert_eq!(end.book.tokens, [None]);
    }
}

#[test]
fn an_answer_that_forgets_an_event_is_not_believed() {
    let short = Delivery { outcomes: Outcomes::Each(vec![Outcome::Delivered]), token: None };
    let end = run(vec![Supply::Events(2)], acts(vec![Act::Answer(Ok(short))]), config());
    assert_eq!(end.book.given_back, one(0..2));
    assert_eq!(end.book.resolved, one(0..2));
}

#[test]
fn a_read_error_is_tried_again_and_a_storage_failure_ends_the_worker() {
    let supply = vec![Supply::ReadError, Supply::Events(1), Supply::StorageFailed];
    let end = run(supply, acts(vec![]), config());
    assert_eq!(end.book.resolved, one(0..1));
    assert!(matches!(end.ended, Err(QueueError::StorageFailed(_))));
    assert_eq!(end.closed, 1);
}

#[test]
fn a_batch_that_is_worth_a_delivery_did_not_empty_the_queue_however_much_was_asked_for() {
    let limit = ClaimLimit { events: 100_000, bytes: 256 << 20 };
    let of = |bytes: usize| {
        let mut events = crate::event::StoredBatch::over(vec![b'x'; bytes].into());
        events.push(0, Micros(0), 0..bytes);
        emptied_the_queue(&Batch { events, voids: Vec::new() }, limit)
    };
    assert!(of(1000) && !of(1 << 20));
}

#[test]
fn only_a_batch_that_emptied_the_queue_is_followed_by_a_gathering_pause() {
    let config = SinkConfig { linger: Duration::from_millis(50), ..config() };
    let end = run(vec![Supply::Events(100), Supply::Events(100), Supply::Events(3)], acts(vec![]), config);
    let at = &end.book.claimed_at;
    let gaps: Vec<u128> = at.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert_eq!(gaps, [0, 0, 50]);
}

#[test]
fn a_drain_ends_the_wait_of_an_unavailable_sink_at_once() {
    let script: Script = Box::new(|_| unavailable(Some(Duration::from_secs(60))));
    let end = run_until(vec![Supply::Events(1)], script, config(), Some(Duration::from_secs(5)));
    assert!(end.ended.is_ok());
    assert_eq!(end.took, Duration::from_secs(5));
    assert_eq!(end.book.given_back, one(0..1));
    assert!(end.book.resolved.is_empty());
}
