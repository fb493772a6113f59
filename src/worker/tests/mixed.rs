//! Sinks and events of every temper at once, against what must hold whatever happens.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// How an event behaves each time it is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Temper {
    Good,
    Rejected,
    /// Fails this often, then goes through.
    Fails(u32),
    /// Makes the sink panic this often, then goes through.
    Panics(u32),
    AlwaysPanics,
    AlwaysHangs,
}

fn temper() -> impl Strategy<Value = Temper> {
    prop_oneof![
        20 => Just(Temper::Good),
        1 => Just(Temper::Rejected),
        2 => (1u32..4).prop_map(Temper::Fails),
        1 => (1u32..4).prop_map(Temper::Panics),
        1 => Just(Temper::AlwaysPanics),
        1 => Just(Temper::AlwaysHangs),
    ]
}

const MAX_ATTEMPTS: u32 = 30;

/// What all instances of the sink share.
struct Target {
    tempers: Vec<Temper>,
    tried: BTreeMap<u64, u32>,
    delivered: BTreeMap<u64, u32>,
    /// Calls that find the target away.
    outages: Vec<u8>,
    calls: usize,
}

impl Target {
    fn meet(&mut self, batch: &Batch) -> Act {
        self.calls += 1;
        if self.outages.contains(&u8::try_from(self.calls).unwrap_or(0)) {
            return unavailable(None);
        }
        let offsets = offsets(batch);
        for offset in &offsets {
            let tried = self.tried.get(offset).copied().unwrap_or(0);
            match self.tempers[*offset as usize] {
                Temper::AlwaysHangs => return Act::Hang,
                Temper::AlwaysPanics => return Act::Panic,
                Temper::Panics(times) if tried < times => {
                    // It counts only alone: else who knows which one did it?
                    if offsets.len() == 1 {
                        self.tried.insert(*offset, tried + 1);
                    }
                    return Act::PanicBeforeFuture;
                }
                _ => {}
            }
        }
        let outcomes = offsets.iter().map(|offset| self.take(*offset)).collect();
        Act::Answer(Ok(Delivery { outcomes: Outcomes::Each(outcomes), token: None }))
    }

    fn take(&mut self, offset: u64) -> Outcome {
        let tried = self.tried.entry(offset).or_default();
        match self.tempers[offset as usize] {
            Temper::Rejected => Outcome::Reject { reason: "never".into() },
            Temper::Fails(times) if *tried < times => {
                *tried += 1;
                Outcome::Retry { reason: "later".into(), retry_after: None }
            }
            _ => {
                *self.delivered.entry(offset).or_default() += 1;
                Outcome::Delivered
            }
        }
    }
}

/// Runs workers over the events until nothing is left to do; all fates and deliveries.
fn play(
    tempers: Vec<Temper>,
    outages: Vec<u8>,
    workers: usize,
    batch: u32,
) -> (BTreeMap<u64, Vec<Fate>>, BTreeMap<u64, u32>) {
    let events = tempers.len() as u64;
    let queue = FakeQueue::stocked(
        (0..events.div_ceil(20)).map(|at| Supply::Events(20.min(events - at * 20))).collect(),
    );
    let owner = queue.owner.clone();
    let queue: Arc<dyn Queue> = Arc::new(queue);
    let retry = crate::config::Retry { max_attempts: MAX_ATTEMPTS, ..config().retry };
    let config = SinkConfig { batch, retry, ..config() };
    let availability = Arc::new(Availability::new(&config));
    let (_stop, stopped) = watch::channel(false);
    let target = Target { tempers, tried: BTreeMap::new(), delivered: BTreeMap::new(), outages, calls: 0 };
    let target = Arc::new(Mutex::new(target));
    let worker = |_| {
        let target = target.clone();
        let meet = move |batch: &Batch| target.lock().unwrap().meet(batch);
        let sink = FakeSink { script: Box::new(meet), calls: Calls::default(), closed: Arc::default() };
        let worker = Worker {
            queue: queue.clone(),
            sink_id: SINK,
            config: config.clone(),
            sink: Box::new(sink),
            availability: availability.clone(),
            stop: stopped.clone(),
            pulse: Arc::default(),
        };
        let clock = owner.clone();
        worker.run_with(Box::new(|| u64::MAX), Box::new(move || clock.now()))
    };
    let local = tokio::task::LocalSet::new();
    runtime().block_on(local.run_until(async {
        let workers: Vec<_> = (0..workers).map(worker).map(tokio::task::spawn_local).collect();
        for worker in workers {
            assert!(worker.await.unwrap().is_ok());
        }
    }));
    let fates = std::mem::take(&mut owner.book().fates);
    let delivered = std::mem::take(&mut target.lock().unwrap().delivered);
    (fates, delivered)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_event_meets_the_end_it_deserves_and_only_once(
        tempers in prop::collection::vec(temper(), 1..120),
        outages in prop::collection::vec(1u8..60, 0..10),
        workers in 1usize..5,
        batch in prop_oneof![Just(1u32), Just(7), Just(100)],
    ) {
        let (fates, delivered) = play(tempers.clone(), outages, workers, batch);
        prop_assert_eq!(fates.len(), tempers.len());
        for (offset, temper) in (0u64..).zip(&tempers) {
            let fates = &fates[&offset];
            let (last, before) = fates.split_last().unwrap();
            // One end, and on the way to it nothing but retries, counted one by one.
            for (at, fate) in (1u32..).zip(before) {
                prop_assert!(matches!(fate, Fate::Retry { attempts, .. } if *attempts == at), "{fates:?}");
            }
            let times = delivered.get(&offset).copied().unwrap_or(0);
            match temper {
                Temper::Good => prop_assert!(before.is_empty() && *last == Fate::Delivered && times == 1),
                Temper::Fails(failures) | Temper::Panics(failures) => {
                    prop_assert_eq!(before.len() as u32, *failures);
                    prop_assert!(*last == Fate::Delivered && times == 1, "{:?} {}", fates, times);
                }
                Temper::Rejected => {
                    prop_assert_eq!(last, &Fate::Dead { reason: "never".into(), attempts: 1 });
                }
                Temper::AlwaysPanics | Temper::AlwaysHangs => {
                    prop_assert!(matches!(last, Fate::Dead { attempts: MAX_ATTEMPTS, .. }), "{fates:?}");
                    prop_assert_eq!(times, 0);
                }
            }
        }
    }
}
