//! Events of one key go one after another, whatever fails, whoever works and whenever it all goes down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use proptest::prelude::*;

use crate::disk::simulated::Policy;
use crate::queue::{EventState, Fate, KeyOf, Lookup};

use super::*;

const HOOK: SinkId = SinkId(0);

/// Every seventh event has no key.
fn key_of(id: u64) -> Option<u64> {
    (!id.is_multiple_of(7)).then_some(id % 3)
}

fn hook() -> Vec<SinkInfo> {
    let mut infos = infos(&["hook"]);
    infos[0].parks = true;
    infos[0].order = Some(KeyOf::new(|json| key_of(id_of(json))));
    infos
}

fn open(disk: &SimulatedDisk) -> House {
    let mut house = House::open_with(disk, &tiny(), hook()).unwrap();
    house.work();
    house
}

/// With this many events in the log, ten a request.
fn filled(events: u64, id: impl Fn(u64) -> u64) -> (SimulatedDisk, House) {
    let disk = SimulatedDisk::new(1);
    let mut config = tiny();
    config.wal.budget_bytes *= 4;
    let mut house = House::open_with(&disk, &config, hook()).unwrap();
    for first in (0..events).step_by(10) {
        house.work();
        house.accept(&(first..first + 10).map(&id).collect::<Vec<_>>()).unwrap();
    }
    (disk, house)
}

fn retry(due_at: i64) -> Fate {
    Fate::Retry { reason: "not now".to_owned(), attempts: 1, due_at: Micros(due_at) }
}

fn offsets(claim: &Claim) -> Vec<u64> {
    claim.batch.events.iter().map(|event| event.offset).collect()
}

#[test]
fn only_the_key_of_an_event_that_is_retried_waits_and_it_pins_nothing() {
    let (disk, mut house) = filled(120, |id| id);
    // Of key 1 the first is never done; all others are delivered at once.
    while let Some(claim) = house.claim(HOOK, ALL) {
        let fate = |offset| if key_of(offset) == Some(1) { retry(i64::MAX) } else { Fate::Delivered };
        let fates = Fates::Each(offsets(&claim).into_iter().map(fate).collect());
        claim.resolve(Resolution { fates, token: None });
        house.work();
    }
    let waiting: Vec<u64> = (0..120).filter(|id| key_of(*id) == Some(1)).collect();
    let sink = house.sink(HOOK);
    assert_eq!((sink.acked_offset, sink.pending), (120, 0), "nothing is pinned");
    assert_eq!((sink.retrying, sink.delivered), (waiting.len() as u64, 120 - waiting.len() as u64));
    // Also after a restart only the first is tried, and one after another from then on.
    house = open(&disk.power_loss(Policy::Drop, 1));
    house.time.store(i64::MAX, Ordering::Relaxed);
    for offset in waiting {
        let claim = house.claim(HOOK, ALL).expect("it is its turn");
        assert_eq!(offsets(&claim), [offset]);
        assert!(house.claim(HOOK, ALL).is_none(), "nobody else's");
        claim.resolve(Resolution::default());
        assert!(house.claim(HOOK, ALL).is_none(), "not before it is durable");
        house.work();
    }
    assert_eq!(house.sink(HOOK).delivered, 120);
}

#[test]
fn what_waits_for_a_delivery_under_way_is_pending_and_comes_next() {
    let disk = SimulatedDisk::new(1);
    let mut house = open(&disk);
    house.accept(&[1, 4, 2, 10, 7]).unwrap(); // keys 1 1 2 1 none
    let first = house.claim(HOOK, ALL).unwrap();
    assert_eq!(offsets(&first), [0, 2, 4]);
    assert!(house.claim(HOOK, ALL).is_none());
    let sink = house.sink(HOOK);
    assert_eq!((sink.pending, sink.in_flight), (5, 3));
    let Lookup::Found { sinks, .. } = house.queue.event(1).unwrap() else { panic!("it is there") };
    assert_eq!(sinks[0].1, EventState::Pending);
    drop(first); // all of it goes back
    let again = house.claim(HOOK, ALL).unwrap();
    assert_eq!(offsets(&again), [0, 2, 4]);
    again.resolve(Resolution::default());
    for offset in [1, 3] {
        let next = house.claim(HOOK, ALL).unwrap();
        assert_eq!(offsets(&next), [offset]);
        next.resolve(Resolution::default());
    }
    assert_eq!(house.sink(HOOK).delivered, 5);
}

#[test]
fn one_key_alone_makes_a_bounded_number_wait_and_goes_on() {
    let (_disk, house) = filled(120, |n| 21 * n + 1);
    for offset in 0..120 {
        let claim = house.claim(HOOK, ALL).unwrap();
        assert_eq!(offsets(&claim), [offset]);
        assert!(house.claim(HOOK, ALL).is_none());
        claim.resolve(Resolution::default());
    }
    assert_eq!(house.sink(HOOK).delivered, 120);
}

#[test]
fn who_can_claim_nothing_for_a_delivery_under_way_sleeps_and_wakes_nobody() {
    let (_disk, house) = filled(120, |n| 21 * n + 1);
    let under_way = house.claim(HOOK, ALL).unwrap();
    let is_stuck = || house.queue.shared.state().sinks[0].order.is_stuck();
    while !is_stuck() {
        assert!(house.claim(HOOK, ALL).is_none(), "until as much is held as may be");
    }
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let mut woken = Box::pin(house.queue.shared.claimable.notified());
    woken.as_mut().enable();
    assert!(house.claim(HOOK, ALL).is_none());
    assert!(woken.as_mut().poll(&mut context).is_pending(), "or it would wake itself, over and over");
    under_way.resolve(Resolution::default());
    assert!(woken.as_mut().poll(&mut context).is_ready());
}

#[derive(Debug, Clone)]
enum Step {
    Post(u64),
    Claim(usize),
    /// Ends a claim: a fate an event, by these numbers; where they are too few, the rest was not tried.
    Settle(usize, Vec<u8>),
    GiveBack(usize),
    Work,
    Tick,
    Stop,
    Kill,
    PowerLoss(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1u64..8).prop_map(Step::Post),
        8 => (1usize..8).prop_map(Step::Claim),
        7 => (any::<usize>(), prop::collection::vec(any::<u8>(), 1..10)).prop_map(|(c, f)| Step::Settle(c, f)),
        1 => any::<usize>().prop_map(Step::GiveBack),
        5 => Just(Step::Work),
        3 => Just(Step::Tick),
        1 => Just(Step::Stop),
        1 => Just(Step::Kill),
        1 => (0..Policy::ALL.len()).prop_map(Step::PowerLoss),
    ]
}

struct Run {
    disk: SimulatedDisk,
    house: Option<House>,
    claims: Vec<Claim>,
    next_id: u64,
    /// The last offset of each key that was handed out in this life.
    last: BTreeMap<u64, u64>,
}

impl Run {
    fn house(&mut self) -> &mut House {
        self.house.as_mut().expect("it is open between steps")
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Post(events) => {
                let ids: Vec<u64> = (self.next_id..self.next_id + events).collect();
                self.next_id += events;
                let _ = self.house().accept(&ids); // the log may be full
            }
            Step::Claim(events) => {
                let claim = self.house().claim(HOOK, ClaimLimit { events, ..ALL });
                claim.into_iter().for_each(|claim| self.take(claim));
            }
            Step::Settle(at, numbers) => {
                let Some(at) = at.checked_rem(self.claims.len()) else { return };
                let (now, claim) = (self.now(), self.claims.swap_remove(at));
                let fates = claim.batch.events.iter().zip(numbers).enumerate().map(|(index, (_, number))| {
                    let attempts = claim.attempts(index) + 1;
                    let reason = "r".to_owned();
                    match number % 8 {
                        0 => Fate::Dead { reason, attempts },
                        1 => Fate::Dropped { reason },
                        2 => Fate::Skipped,
                        3 => Fate::Retry { reason, attempts, due_at: Micros(now) },
                        4 => Fate::Retry { reason, attempts, due_at: Micros(now + 10) },
                        _ => Fate::Delivered,
                    }
                });
                let fates = Fates::Each(fates.collect());
                claim.resolve(Resolution { fates, token: None });
            }
            Step::GiveBack(at) => {
                if let Some(at) = at.checked_rem(self.claims.len()) {
                    drop(self.claims.swap_remove(at));
                }
            }
            Step::Work => self.house().work(),
            Step::Tick => self.tick(),
            Step::Stop => {
                self.claims.clear();
                self.house.take().expect("open").close();
                self.reopen(self.disk.clone());
            }
            Step::Kill => self.reopen(self.disk.kill()),
            Step::PowerLoss(policy) => self.reopen(self.disk.power_loss(Policy::ALL[policy], self.next_id)),
        }
        self.check();
    }

    fn now(&mut self) -> i64 {
        self.house().time.load(Ordering::Relaxed)
    }

    fn tick(&mut self) {
        self.house().time.fetch_add(7, Ordering::Relaxed);
    }

    /// Notes what is handed out: of a key one at a time, and never an earlier one after a later one.
    fn take(&mut self, claim: Claim) {
        let keyed = |claim: &Claim| {
            let events = claim.batch.events.iter();
            events.filter_map(|e| Some((key_of(id_of(e.json))?, e.offset))).collect::<Vec<_>>()
        };
        for (key, offset) in keyed(&claim) {
            let is_out = |other: &Claim| keyed(other).iter().any(|(other, _)| *other == key);
            assert!(
                !self.claims.iter().any(is_out),
                "two events of key {key} are out: {offset} is the later one"
            );
            assert_eq!(keyed(&claim).iter().filter(|(other, _)| *other == key).count(), 1, "key {key}");
            let last = self.last.insert(key, offset);
            assert!(last.is_none_or(|last| last <= offset), "{offset} of key {key} comes after {last:?}");
        }
        self.claims.push(claim);
    }

    fn reopen(&mut self, disk: SimulatedDisk) {
        self.claims.clear();
        self.last.clear();
        self.house = None;
        self.house = Some(open(&disk));
        self.disk = disk;
    }

    fn check(&mut self) {
        let status = self.house().status();
        let sink = &status.sinks[0];
        let sum = sink.delivered + sink.dropped + sink.skipped + sink.dead + sink.retrying + sink.pending;
        assert_eq!(sum, status.next_offset, "the identity: {sink:?}");
    }

    /// Delivers everything there is.
    fn finish(mut self) {
        self.claims.clear();
        for _ in 0..10_000 {
            self.house().work();
            match self.house().claim(HOOK, ALL) {
                Some(claim) => {
                    self.take(claim);
                    self.claims.drain(..).for_each(|claim| claim.resolve(Resolution::default()));
                }
                None if self.house().sink(HOOK).pending + self.house().sink(HOOK).retrying == 0 => return,
                None => self.tick(),
            }
        }
        panic!("something waits for ever: {:?}", self.house().sink(HOOK));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn of_one_key_none_overtakes_another(steps in prop::collection::vec(step(), 0..120)) {
        let disk = SimulatedDisk::new(1);
        let house = Some(open(&disk));
        let mut run = Run { disk, house, claims: vec![], next_id: 0, last: BTreeMap::new() };
        steps.into_iter().for_each(|step| run.step(step));
        run.finish();
    }
}

/// What workers on threads of their own have in hands.
#[derive(Default)]
struct Hands {
    out: BTreeSet<u64>,
    last: BTreeMap<u64, u64>,
}

impl Hands {
    fn take(&mut self, keyed: &[(u64, u64)], seed: u64) {
        for (key, offset) in keyed {
            assert!(self.out.insert(*key), "seed {seed}: {offset} of key {key} while another is out");
            let last = self.last.insert(*key, *offset);
            assert!(last.is_none_or(|last| last <= *offset), "seed {seed}: {offset} comes after {last:?}");
        }
    }
}

#[test]
fn workers_at_the_same_time_keep_every_key_in_order() {
    for seed in 0..16 {
        let (_disk, mut house) = filled(200, |id| id);
        let (queue, hands) = (Arc::clone(&house.queue), Mutex::new(Hands::default()));
        let is_done = || {
            let sink = &queue.status().sinks[0];
            sink.pending + sink.retrying == 0
        };
        let work = |worker: u64| {
            let mut random = Random::new(seed * 4 + worker);
            while !is_done() {
                let limit = ClaimLimit { events: 5, ..ALL };
                let Some(claim) = queue.claim_now(HOOK, limit).unwrap() else {
                    std::thread::yield_now();
                    continue;
                };
                let keyed: Vec<_> = offsets(&claim)
                    .into_iter()
                    .filter_map(|offset| Some((key_of(offset)?, offset)))
                    .collect();
                hands.lock().unwrap().take(&keyed, seed);
                let fate = |_| if random.below(4) == 0 { retry(0) } else { Fate::Delivered };
                let fates = Fates::Each(offsets(&claim).into_iter().map(fate).collect());
                keyed.iter().for_each(|(key, _)| {
                    hands.lock().unwrap().out.remove(key);
                });
                claim.resolve(Resolution { fates, token: None });
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|worker| scope.spawn(move || work(worker))).collect();
            while workers.iter().any(|worker| !worker.is_finished()) {
                house.work();
            }
        });
        assert_eq!(house.sink(HOOK).delivered, 200, "seed {seed}");
    }
}
