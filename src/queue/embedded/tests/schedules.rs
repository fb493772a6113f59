//! Committer, ledger, stock, workers and callers on threads whose every step a model checker decides.
//!
//! This is the queue itself on a simulated disk; only what threads wait on is the checker's (`waits`). Nothing here
//! times out, so whoever sleeps through the wake-up meant for him sleeps for ever, and the checker reports who does,
//! with the schedule: `EVENTFLOW_SCHEDULE=<it> cargo test --features schedules --lib schedules::<test>` has it again.

use std::collections::BTreeSet;
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::{Condvar, Mutex};
use shuttle::thread::{JoinHandle, spawn, yield_now};

use crate::disk::simulated::{PagesAfter, Policy, Times};
use crate::log::LogError;
use crate::queue::{Fate, KeyOf, QueueError, Redrive, Selection};
use crate::waits::explore;

use super::*;

/// What a daemon would be, around one queue.
struct Running {
    queue: Arc<EmbeddedQueue>,
    committer: JoinHandle<Result<(), LogError>>,
    ledger: JoinHandle<Result<(), QueueError>>,
    stock: JoinHandle<()>,
    workers: Vec<JoinHandle<Result<(), QueueError>>>,
    delivered: Arc<Delivered>,
}

/// The ids that workers delivered, and who waits for them.
#[derive(Default)]
struct Delivered {
    ids: Mutex<Vec<u64>>,
    more: Condvar,
}

impl Running {
    fn start(house: House, workers: usize) -> Self {
        let House { queue, committer, ledger, stock, .. } = house;
        let delivered = Arc::new(Delivered::default());
        // Each but the last is busy for ever with what comes after its first claim, so none rests on another's next one.
        let worker = |number| {
            let most = if number + 1 < workers { 1 } else { usize::MAX };
            let (queue, delivered) = (Arc::clone(&queue), Arc::clone(&delivered));
            spawn(move || block_on(work(&queue, &delivered, most)))
        };
        Self {
            workers: (0..workers).map(worker).collect(),
            committer: spawn(move || block_on(committer.run())),
            ledger: spawn(move || ledger.run()),
            stock: spawn(move || stock.run()),
            queue,
            delivered,
        }
    }

    /// Posts batches of these sizes one after another on a thread of its own, the ids from `first` on, each
    /// again as long as there is no room; gives the ids of those that were accepted.
    fn post(&self, first: u64, sizes: &'static [u64]) -> JoinHandle<Vec<u64>> {
        let queue = Arc::clone(&self.queue);
        spawn(move || {
            let mut ids = first..;
            let mut accepted = Vec::new();
            for size in sizes {
                let ids: Vec<u64> = ids.by_ref().take(*size as usize).collect();
                if post_until_taken(&queue, &ids).is_ok() {
                    accepted.extend(ids);
                }
            }
            accepted
        })
    }

    /// Sleeps until so many events were delivered.
    fn await_delivered(&self, events: usize) {
        let ids = self.delivered.ids.lock().unwrap();
        drop(self.delivered.more.wait_while(ids, |ids| ids.len() < events).unwrap());
    }

    /// The orderly stop, in the daemon's order; how workers, committer and ledger ended.
    fn drain(self) -> Vec<Result<(), String>> {
        self.queue.begin_drain();
        let workers = self.workers.into_iter().map(|worker| worker.join().unwrap());
        let mut ends: Vec<_> = workers.map(|end| end.map_err(|error| error.to_string())).collect();
        self.queue.close_appends();
        ends.push(self.committer.join().unwrap().map_err(|error| error.to_string()));
        self.queue.stop_background();
        ends.push(self.ledger.join().unwrap().map_err(|error| error.to_string()));
        self.stock.join().unwrap();
        ends
    }
}

fn post_until_taken(queue: &EmbeddedQueue, ids: &[u64]) -> Result<Appended, Refusal> {
    loop {
        match queue.append(batch(ids), Micros(5)).map(block_on) {
            Err(Refusal::WalFull | Refusal::Overloaded) => yield_now(),
            Ok(Err(Refusal::WalFull | Refusal::Overloaded)) => yield_now(),
            told => return told.flatten(),
        }
    }
}

/// Delivers what it claims, at most so often; every event whose number is odd fails once.
async fn work(queue: &EmbeddedQueue, delivered: &Delivered, most: usize) -> Result<(), QueueError> {
    for _ in 0..most {
        let limit = ClaimLimit { events: 3, bytes: 1 << 20 };
        let Some(claim) = queue.claim(ARCHIVE, limit).await? else { break };
        let parks = queue.sinks()[0].parks && claim.origin != Origin::FailureTable;
        let (failed, taken): (Vec<u64>, Vec<u64>) =
            ids_of(&claim.batch).into_iter().partition(|id| parks && id % 2 == 1);
        let fates = claim.batch.events.iter().map(|event| match failed.contains(&id_of(event.json)) {
            true => Fate::Retry { reason: "once".to_owned(), attempts: 1, due_at: Micros(2_000) },
            false => Fate::Delivered,
        });
        let fates = Fates::Each(fates.collect());
        delivered.ids.lock().unwrap().extend(taken);
        delivered.more.notify_all();
        claim.resolve(Resolution { fates, token: None });
    }
    Ok(())
}

/// Posts from two threads until a worker has it all; gives the ids in the order of their deliveries.
fn everything_is_delivered(running: Running, sizes: &'static [u64]) -> Vec<u64> {
    let posts = [running.post(0, sizes), running.post(100, sizes)];
    let mut accepted: Vec<u64> = posts.into_iter().flat_map(|post| post.join().unwrap()).collect();
    running.await_delivered(accepted.len());
    let delivered = Arc::clone(&running.delivered);
    running.drain().into_iter().for_each(Result::unwrap);
    let delivered = delivered.ids.lock().unwrap().clone();
    accepted.sort_unstable();
    let each: Vec<u64> = BTreeSet::from_iter(delivered.clone()).into_iter().collect();
    assert_eq!(each, accepted, "every accepted event, and nothing of what was refused");
    assert_eq!(delivered.len(), accepted.len(), "and each once: {delivered:?}");
    delivered
}

fn accepted_events_reach_a_worker() {
    // With two, one may wake the other all the same.
    let workers = thread_rng().gen_range(1..=2);
    everything_is_delivered(Running::start(House::new().1, workers), &[1, 3]);
}

#[test]
fn no_accepted_event_is_slept_through() {
    explore(2000, accepted_events_reach_a_worker);
}

/// A house with so many segments and one sink, on a day when every row is due; its ledger never pauses.
fn house(disk: &SimulatedDisk, segments: u64, sink: impl Fn(&mut SinkInfo)) -> House {
    let mut config = tiny();
    config.wal.budget_bytes = segments * config.wal.segment_bytes;
    config.ledger.checkpoint_interval = Duration::ZERO;
    let mut infos = infos(&["sink"]);
    sink(&mut infos[0]);
    let mut house = House::open_with(disk, &config, infos).unwrap();
    house.work();
    house.time.store(3_000, Ordering::Relaxed);
    house
}

fn parking(sink: &mut SinkInfo) {
    sink.parks = true;
}

fn failed_events_come_again() {
    everything_is_delivered(Running::start(house(&SimulatedDisk::new(1), 8, parking), 2), &[1, 3]);
}

#[test]
fn no_due_row_is_slept_through() {
    explore(2000, failed_events_come_again);
}

fn events_wait_for_those_before_them_of_their_key() {
    let house = house(&SimulatedDisk::new(1), 8, |sink| {
        sink.parks = true;
        sink.order = Some(KeyOf::new(|json| Some(id_of(json) / 100)));
    });
    let delivered = everything_is_delivered(Running::start(house, 2), &[1, 3]);
    for key in [0, 1] {
        assert!(delivered.iter().filter(|id| **id / 100 == key).is_sorted(), "{delivered:?}");
    }
}

#[test]
fn nobody_sleeps_through_the_turn_of_a_key() {
    explore(1000, events_wait_for_those_before_them_of_their_key);
}

fn a_full_log_takes_more_as_it_is_freed() {
    everything_is_delivered(Running::start(house(&SimulatedDisk::new(1), 3, |_| {}), 1), &[8, 8]);
}

#[test]
fn nobody_sleeps_through_a_freed_segment() {
    explore(500, a_full_log_takes_more_as_it_is_freed);
}

fn a_failed_sync_is_told() {
    let disk = SimulatedDisk::new(1);
    let house = house(&disk, 8, parking);
    disk.fail_sync(thread_rng().gen_range(1..12), PagesAfter::Clean, Policy::Drop, Times::Once);
    let mut running = Running::start(house, 2);
    let posts = [running.post(0, &[1, 8, 2]), running.post(100, &[3, 8])];
    let queue = Arc::clone(&running.queue);
    let pause = spawn(move || {
        block_on(queue.set_paused(ARCHIVE, true)).and_then(|()| block_on(queue.set_paused(ARCHIVE, false)))
    });
    let queue = Arc::clone(&running.queue);
    let redrive = spawn(move || block_on(queue.redrive(ARCHIVE, Selection::All, Redrive::Retry)));
    posts.into_iter().for_each(|post| drop(post.join().unwrap()));
    let _ = (pause.join().unwrap(), redrive.join().unwrap());
    let has_failed = running.queue.failed().is_some();
    if has_failed {
        let ends = std::mem::take(&mut running.workers).into_iter().map(|worker| worker.join().unwrap());
        assert!(ends.last().is_some_and(|end| end.is_err()), "before anybody drains");
    }
    let ends = running.drain();
    assert!(!has_failed || ends.iter().any(Result::is_err), "committer or ledger says so");
}

#[test]
fn nobody_sleeps_through_a_failed_sync() {
    explore(2000, a_failed_sync_is_told);
}

/// The tests of this file can fail: a wake-up that is lost on purpose is found by one of them.
#[cfg(feature = "planted")]
mod planted {
    use crate::planted::{Mistake, plant};
    use crate::waits::finds;

    use super::*;

    fn is_found(mistake: Mistake, scenario: fn()) {
        plant(Some(mistake));
        let found = finds(2000, scenario);
        plant(None);
        assert!(found, "{mistake:?} stays unnoticed");
        println!("{mistake:?} is found");
    }

    #[test]
    fn a_lost_wake_up_would_be_caught() {
        is_found(Mistake::WokenBeforePublished, accepted_events_reach_a_worker);
        is_found(Mistake::EnlistedAfterLook, accepted_events_reach_a_worker);
        is_found(Mistake::LedgerLeftAsleep, a_full_log_takes_more_as_it_is_freed);
        is_found(Mistake::FailureUntold, a_failed_sync_is_told);
    }
}
