//! Workers against a queue and sinks that exist in memory only. Time is tokio's paused clock.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;

use bytes::Bytes;
use tokio::time::Instant;

use super::*;
use crate::config::SinkKind;
use crate::event::{Micros, NewBatch, StoredBatch};
use crate::queue::{
    BoxFuture, ClaimOwner, FailedEvent, FailurePage, FailureQuery, Lookup, Origin, Receipt, Redrive, Refusal,
    Selection, SinkInfo, Status,
};
use crate::sink::{DeliverFuture, Outcome, SinkError};

const SINK: SinkId = SinkId(0);

/// What a claim finds in turn.
enum Supply {
    Events(u64),
    ReadError,
    StorageFailed,
}

#[derive(Default)]
struct Book {
    supply: VecDeque<Supply>,
    next: u64,
    returned: VecDeque<Range<u64>>,
    claimed_at: Vec<Instant>,
    resolved: Vec<(Range<u64>, Resolution)>,
    given_back: Vec<Range<u64>>,
    backing_off: Vec<Option<String>>,
}

/// Hands out what it was stocked with, then drains.
#[derive(Default)]
struct FakeQueue(Arc<FakeOwner>);

#[derive(Default)]
struct FakeOwner(Mutex<Book>);

impl ClaimOwner for FakeOwner {
    fn resolve(&self, _: SinkId, origin: &Origin, _: &Batch, resolution: Resolution) {
        self.0.lock().unwrap().resolved.push((range_of(origin), resolution));
    }
    fn give_back(&self, _: SinkId, origin: &Origin, _: &Batch) {
        let mut book = self.0.lock().unwrap();
        let range = range_of(origin);
        book.given_back.push(range.clone());
        book.returned.push_back(range);
    }
}

fn range_of(origin: &Origin) -> Range<u64> {
    match origin {
        Origin::Log(range) => range.clone(),
        Origin::FailureTable => unreachable!("this queue has no failure table"),
    }
}

fn batch_of(range: Range<u64>) -> Batch {
    let mut events = StoredBatch::over(Bytes::from_static(br#"{"id":"a"}"#));
    for offset in range {
        events.push(offset, Micros(0), 0..10);
    }
    Batch { events, voids: Vec::new() }
}

impl Queue for FakeQueue {
    fn admit(&self, _: u64) -> Result<(), Refusal> {
        Ok(())
    }
    fn append(&self, _: NewBatch, _: Micros) -> Result<Receipt, Refusal> {
        Err(Refusal::ShuttingDown)
    }
    fn claim<'a>(&'a self, sink: SinkId, _: ClaimLimit) -> BoxFuture<'a, Result<Option<Claim>, QueueError>> {
        let mut book = self.0.0.lock().unwrap();
        book.claimed_at.push(Instant::now());
        let range = match book.returned.pop_front() {
            Some(range) => Ok(Some(range)),
            None => match book.supply.pop_front() {
                Some(Supply::Events(count)) => {
                    let range = book.next..book.next + count;
                    book.next = range.end;
                    Ok(Some(range))
                }
                Some(Supply::ReadError) => {
                    Err(QueueError::Read { offset: book.next, source: io::ErrorKind::Other.into() })
                }
                Some(Supply::StorageFailed) => Err(QueueError::StorageFailed("planted".into())),
                None => Ok(None),
            },
        };
        let owner = self.0.clone();
        let claim = range.map(|range| {
            range.map(|r| Claim::new(owner, sink, Origin::Log(r.clone()), batch_of(r), Vec::new()))
        });
        Box::pin(std::future::ready(claim))
    }
    fn set_paused<'a>(&'a self, _: SinkId, _: bool) -> BoxFuture<'a, Result<(), QueueError>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn set_backing_off(&self, _: SinkId, reason: Option<String>) {
        self.0.0.lock().unwrap().backing_off.push(reason);
    }
    fn event(&self, _: u64) -> Result<Lookup, QueueError> {
        Ok(Lookup::NotYet)
    }
    fn failures(&self, _: &FailureQuery) -> Result<FailurePage, QueueError> {
        Ok(FailurePage::default())
    }
    fn failure(&self, _: SinkId, _: u64) -> Result<Option<FailedEvent>, QueueError> {
        Ok(None)
    }
    fn redrive<'a>(&'a self, _: SinkId, _: Selection, _: Redrive) -> BoxFuture<'a, Result<u64, QueueError>> {
        Box::pin(std::future::ready(Ok(0)))
    }
    fn sinks(&self) -> &[SinkInfo] {
        &[]
    }
    fn status(&self) -> Status {
        Status::default()
    }
}

/// How the test sink meets one batch.
enum Act {
    Answer(Result<Delivery, Unavailable>),
    Panic,
    PanicBeforeFuture,
    Hang,
}

/// Plays its acts, then delivers everything.
struct FakeSink {
    acts: VecDeque<Act>,
    closed: Arc<Mutex<u32>>,
}

impl Sink for FakeSink {
    fn deliver<'a>(&'a mut self, _: &'a Batch) -> DeliverFuture<'a> {
        match self.acts.pop_front().unwrap_or(Act::Answer(Ok(Delivery::default()))) {
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

fn unavailable(retry_after: Option<Duration>) -> Act {
    Act::Answer(Err(Unavailable { reason: "planted outage".into(), retry_after }))
}

fn config() -> SinkConfig {
    SinkConfig {
        name: "test".into(),
        kind: SinkKind::Stdout,
        paused: false,
        batch: 100,
        batch_bytes: 1 << 20,
        linger: Duration::ZERO,
        timeout: Duration::from_secs(10),
        backoff_initial: Duration::from_secs(1),
        backoff_max: Duration::from_secs(60),
    }
}

struct End {
    ended: Result<(), QueueError>,
    book: Book,
    closed: u32,
    took: Duration,
}

/// Runs a worker over `supply` until the queue drains, with jitter that always takes the longest wait.
fn run(supply: Vec<Supply>, acts: Vec<Act>, config: SinkConfig) -> End {
    let queue = FakeQueue::default();
    queue.0.0.lock().unwrap().supply = supply.into();
    let owner = queue.0.clone();
    let closed = Arc::new(Mutex::new(0));
    let (_stop, stopped) = watch::channel(false);
    let sink = FakeSink { acts: acts.into(), closed: closed.clone() };
    let worker =
        Worker { queue: Arc::new(queue), sink_id: SINK, config, sink: Box::new(sink), stop: stopped };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (ended, took) = runtime.block_on(async move {
        let start = Instant::now();
        (worker.run_with(Box::new(|| u64::MAX)).await, start.elapsed())
    });
    let closed = *closed.lock().unwrap();
    let book = std::mem::take(&mut *owner.0.lock().unwrap());
    End { ended, book, closed, took }
}

fn ranges(book: &Book) -> Vec<Range<u64>> {
    book.resolved.iter().map(|(range, _)| range.clone()).collect()
}

#[test]
fn every_claim_is_resolved_in_order_and_the_sink_is_closed_once() {
    let end = run(vec![Supply::Events(3), Supply::Events(2)], vec![], config());
    assert!(end.ended.is_ok());
    assert_eq!(ranges(&end.book), [0..3, 3..5]);
    assert!(end.book.given_back.is_empty());
    assert_eq!(end.closed, 1);
}

#[test]
fn the_token_and_the_outcomes_reach_the_queue_as_the_sink_gave_them() {
    let each = vec![Outcome::Delivered, Outcome::Retry { reason: "later".into() }];
    let delivery = Delivery { outcomes: Outcomes::Each(each), token: Some(vec![7]) };
    let end = run(vec![Supply::Events(2)], vec![Act::Answer(Ok(delivery))], config());
    let (_, got) = &end.book.resolved[0];
    assert_eq!(got.token.as_deref(), Some(&[7][..]));
    let Fates::Each(fates) = &got.fates else { panic!("{got:?}") };
    assert_eq!(fates[0], Fate::Delivered);
    assert!(matches!(&fates[1], Fate::Retry { reason, attempts: 1, .. } if reason == "later"));
    assert_eq!(fates.len(), 2);
}

#[test]
fn an_unavailable_sink_gets_the_same_events_again_after_growing_waits_and_status_is_told() {
    let end = run(vec![Supply::Events(3)], vec![unavailable(None), unavailable(None)], config());
    assert_eq!(end.book.given_back, [0..3, 0..3]);
    assert_eq!(ranges(&end.book), std::slice::from_ref(&(0..3)));
    assert_eq!(end.took, Duration::from_secs(1 + 2));
    let told: Vec<bool> = end.book.backing_off.iter().map(Option::is_some).collect();
    assert_eq!(told, [true, true, false]);
}

#[test]
fn a_success_makes_the_next_outage_start_with_the_shortest_wait() {
    let acts =
        vec![unavailable(None), unavailable(None), Act::Answer(Ok(Delivery::default())), unavailable(None)];
    let end = run(vec![Supply::Events(1), Supply::Events(1)], acts, config());
    assert_eq!(end.took, Duration::from_secs(1 + 2 + 1));
}

#[test]
fn the_time_a_target_asks_for_is_kept() {
    let end = run(vec![Supply::Events(1)], vec![unavailable(Some(Duration::from_secs(30)))], config());
    assert_eq!(end.took, Duration::from_secs(30));
}

#[test]
fn a_panicking_sink_costs_its_batch_a_retry_and_the_worker_nothing() {
    let end = run(vec![Supply::Events(2)], vec![Act::Panic, Act::PanicBeforeFuture], config());
    assert!(end.ended.is_ok());
    assert_eq!(end.book.given_back, [0..2, 0..2]);
    assert_eq!(ranges(&end.book), std::slice::from_ref(&(0..2)));
    assert!(end.book.backing_off[0].as_deref().unwrap().contains("planted"));
}

#[test]
fn a_sink_that_hangs_loses_its_batch_after_the_timeout() {
    let end = run(vec![Supply::Events(2)], vec![Act::Hang], config());
    assert_eq!(end.took, Duration::from_secs(10 + 1));
    assert_eq!(end.book.given_back, std::slice::from_ref(&(0..2)));
    assert_eq!(ranges(&end.book), std::slice::from_ref(&(0..2)));
}

#[test]
fn an_answer_that_forgets_an_event_is_not_believed() {
    let short = Delivery { outcomes: Outcomes::Each(vec![Outcome::Delivered]), token: None };
    let end = run(vec![Supply::Events(2)], vec![Act::Answer(Ok(short))], config());
    assert_eq!(end.book.given_back, std::slice::from_ref(&(0..2)));
    assert_eq!(end.book.resolved.len(), 1);
}

#[test]
fn a_read_error_is_tried_again_and_a_storage_failure_ends_the_worker() {
    let end = run(vec![Supply::ReadError, Supply::Events(1), Supply::StorageFailed], vec![], config());
    assert_eq!(ranges(&end.book), std::slice::from_ref(&(0..1)));
    assert!(matches!(end.ended, Err(QueueError::StorageFailed(_))));
    assert_eq!(end.closed, 1);
}

#[test]
fn only_a_batch_that_emptied_the_queue_is_followed_by_a_gathering_pause() {
    let config = SinkConfig { linger: Duration::from_millis(50), ..config() };
    let end = run(vec![Supply::Events(100), Supply::Events(100), Supply::Events(3)], vec![], config);
    let at = &end.book.claimed_at;
    let gaps: Vec<u128> = at.windows(2).map(|pair| (pair[1] - pair[0]).as_millis()).collect();
    assert_eq!(gaps, [0, 0, 50]);
}

#[test]
fn a_drain_ends_the_wait_of_an_unavailable_sink_at_once() {
    let queue = FakeQueue::default();
    queue.0.0.lock().unwrap().supply = vec![Supply::Events(1)].into();
    let owner = queue.0.clone();
    let acts = (0..100).map(|_| unavailable(Some(Duration::from_secs(60)))).collect();
    let sink = FakeSink { acts, closed: Arc::default() };
    let (stop, stopped) = watch::channel(false);
    let worker = Worker {
        queue: Arc::new(queue),
        sink_id: SINK,
        config: config(),
        sink: Box::new(sink),
        stop: stopped,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let took = runtime.block_on(async move {
        let start = Instant::now();
        let stopper = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            stop.send(true).unwrap();
        };
        let (ended, ()) = tokio::join!(worker.run_with(Box::new(|| u64::MAX)), stopper);
        ended.unwrap();
        start.elapsed()
    });
    assert_eq!(took, Duration::from_secs(5));
    let book = owner.0.lock().unwrap();
    assert_eq!(book.given_back, std::slice::from_ref(&(0..1)));
    assert!(book.resolved.is_empty());
}

#[test]
fn a_spawned_worker_runs_on_a_thread_named_after_its_sink_and_returns_its_end() {
    let (_stop, stopped) = watch::channel(false);
    let sink = FakeSink { acts: VecDeque::new(), closed: Arc::default() };
    let worker = Worker {
        queue: Arc::new(FakeQueue::default()),
        sink_id: SINK,
        config: config(),
        sink: Box::new(sink),
        stop: stopped,
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    let thread = worker.spawn(runtime.handle().clone()).unwrap();
    assert_eq!(thread.thread().name(), Some("sink-test"));
    assert!(thread.join().unwrap().is_ok());
}
