//! Order by key across crashes: an event is attempted only once every earlier one of its key was delivered, dropped
//! or is dead, whatever was said of it before the power went.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::disk::simulated::Policy;
use crate::queue::{FailureQuery, Fate, KeyOf, RowState};

use crate::event::Attributes;

use super::*;

const HOOK: SinkId = SinkId(0);

fn key_of(json: &[u8]) -> Option<u64> {
    Attributes::of(json)?.subject?.parse().ok()
}

fn ordered() -> Vec<SinkInfo> {
    let mut infos = infos(&["hook"]);
    infos[0].parks = true;
    infos[0].order = Some(KeyOf::new(key_of));
    infos
}

fn open(disk: &SimulatedDisk, config: &Config) -> House {
    let mut house = House::open_with(disk, config, ordered()).unwrap();
    house.work();
    house
}

fn new() -> (SimulatedDisk, House) {
    let disk = SimulatedDisk::new(1);
    let house = open(&disk, &tiny());
    (disk, house)
}

fn retry(attempts: u32, due_at: i64) -> Fate {
    Fate::Retry { reason: "not now".to_owned(), attempts, due_at: Micros(due_at) }
}

fn dead() -> Fate {
    Fate::Dead { reason: "never".to_owned(), attempts: 1 }
}

/// Events of these keys; 0 is none. The offset of the first, or `None` where there is no room.
fn accept(house: &mut House, id: u64, keys: &[u8]) -> Option<u64> {
    let mut batch = NewBatch::default();
    for (id, key) in (id..).zip(keys) {
        let subject = if *key == 0 { String::new() } else { format!(r#","subject":"{key}""#) };
        let text = format!(r#"{{"id":"{id}","source":"/s"{subject},"pad":"{:>200}"}}"#, "");
        batch.push_rendered(tag(id), |out| out.extend_from_slice(text.as_bytes()));
    }
    let mut receipt = house.queue.append(batch, Micros(5)).ok()?;
    house.committer.commit_pending().ok()?;
    receipt.try_now()?.ok().map(|appended| appended.first_offset)
}

/// How an event came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Delivered,
    Dropped,
    Dead,
}

/// What the target and the operator know.
#[derive(Debug, Clone, Default)]
struct Book {
    /// The key of each offset.
    keys: Vec<u8>,
    came_through: BTreeMap<u64, End>,
    /// Being attempted now, with keys.
    attempted: BTreeMap<u64, u8>,
}

impl Book {
    /// A claim is handed out: what may be attempted is noted, and checked.
    fn attempt(&mut self, claim: &Claim, what: &str) {
        for event in claim.batch.events.iter() {
            let (offset, key) = (event.offset, self.keys[event.offset as usize]);
            if key == 0 {
                continue;
            }
            let other = self.attempted.iter().find(|(_, other)| **other == key);
            assert_eq!(other, None, "{what}: {offset} at the same time");
            for before in (0..offset).filter(|before| self.keys[*before as usize] == key) {
                let end = self.came_through.get(&before);
                assert!(end.is_some(), "{what}: {offset} overtakes {before} of key {key}");
            }
            self.attempted.insert(offset, key);
        }
    }

    /// What becomes of a claim: as many fates as there are, those of waiting events excepted.
    fn resolve(&mut self, claim: Claim, fates: impl IntoIterator<Item = Fate>) {
        let mut resolved = Vec::new();
        for (event, fate) in claim.batch.events.iter().zip(fates) {
            let end = match &fate {
                Fate::Delivered => Some(End::Delivered),
                Fate::Dropped { .. } => Some(End::Dropped),
                Fate::Dead { .. } => Some(End::Dead),
                Fate::Skipped | Fate::Retry { .. } => None,
            };
            self.came_through.extend(end.map(|end| (event.offset, end)));
            resolved.push(fate);
        }
        self.attempted.retain(|offset, _| claim.batch.events.iter().all(|event| event.offset != *offset));
        claim.resolve(Resolution { fates: Fates::Each(resolved), token: None });
    }

    /// The process went down: who was dead and is not any more has not come through.
    fn restart(&mut self, house: &House) {
        self.attempted.clear();
        let query = FailureQuery { limit: 1000, ..FailureQuery::default() };
        let rows = house.queue.failures(&query).unwrap().rows;
        let dead = |offset: u64| rows.iter().any(|row| row.offset == offset && row.state == RowState::Dead);
        self.came_through.retain(|offset, end| *end != End::Dead || dead(*offset));
    }

    /// Delivers everything, in order, until nothing is left.
    fn finish(&mut self, house: &mut House, what: &str) {
        house.time.store(i64::MAX, Ordering::Relaxed);
        house.work();
        let mut idle = 0;
        while idle < 20 {
            match house.claim(HOOK, ClaimLimit { events: 3, ..ALL }) {
                Some(claim) => {
                    self.attempt(&claim, what);
                    let events = claim.batch.events.len();
                    self.resolve(claim, vec![Fate::Delivered; events]);
                    idle = 0;
                }
                // What it met may have become rows that wait.
                None => idle += 1,
            }
            house.work();
        }
        let sink = adds_up(house, what);
        assert_eq!((sink.pending, sink.retrying, sink.in_flight), (0, 0, 0), "{what}: something is left");
        for offset in 0..house.status().next_offset {
            assert!(self.came_through.contains_key(&offset), "{what}: {offset} is missing");
        }
    }
}

fn adds_up(house: &House, what: &str) -> SinkStatus {
    let (sink, accepted) = (house.sink(HOOK), house.status().next_offset);
    let sum = sink.delivered + sink.dropped + sink.dead + sink.retrying + sink.pending + sink.skipped;
    assert_eq!(sum, accepted, "{what}: {sink:?}");
    sink
}

#[derive(Debug, Clone)]
enum Act {
    Accept(Vec<u8>),
    Claim(usize),
    /// Ends a claim with these fates; further events go back.
    Settle(usize, Vec<u8>),
    GiveBack(usize),
    Work,
    Later(i64),
    Stop,
    Kill,
    PowerLoss(usize, u64),
}

fn step() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => prop::collection::vec(0u8..4, 1..8).prop_map(Act::Accept),
        6 => (1usize..8).prop_map(Act::Claim),
        6 => (any::<usize>(), prop::collection::vec(0u8..8, 0..9))
            .prop_map(|(claim, fates)| Act::Settle(claim, fates)),
        2 => any::<usize>().prop_map(Act::GiveBack),
        3 => Just(Act::Work),
        2 => (1i64..40).prop_map(Act::Later),
        1 => Just(Act::Stop),
        1 => Just(Act::Kill),
        1 => (any::<usize>(), any::<u64>()).prop_map(|(policy, seed)| Act::PowerLoss(policy, seed)),
    ]
}

struct Run {
    disk: SimulatedDisk,
    house: Option<House>,
    claims: Vec<Claim>,
    book: Book,
    now: i64,
}

impl Run {
    fn step(&mut self, step: Act) {
        let house = self.house.as_mut().expect("it is open between steps");
        match step {
            Act::Accept(keys) => {
                let id = self.book.keys.len() as u64;
                if accept(house, id, &keys).is_some() {
                    self.book.keys.extend(keys);
                }
            }
            Act::Claim(events) => {
                let Some(claim) = house.claim(HOOK, ClaimLimit { events, ..ALL }) else { return };
                self.book.attempt(&claim, "while it runs");
                self.claims.push(claim);
            }
            Act::Settle(claim, fates) => {
                let Some(at) = claim.checked_rem(self.claims.len()) else { return };
                let now = self.now;
                let fates = fates.into_iter().map(|fate| match fate {
                    0..4 => Fate::Delivered,
                    4 => Fate::Dropped { reason: "let it go".to_owned() },
                    5 => dead(),
                    wait => retry(1, now + i64::from(wait) * 3),
                });
                self.book.resolve(self.claims.swap_remove(at), fates.collect::<Vec<_>>());
            }
            Act::GiveBack(claim) => {
                let Some(at) = claim.checked_rem(self.claims.len()) else { return };
                self.book.resolve(self.claims.swap_remove(at), []);
            }
            Act::Work => house.work(),
            Act::Later(by) => {
                self.now += by;
                house.time.store(self.now, Ordering::Relaxed);
            }
            Act::Stop => {
                self.claims.clear();
                self.house.take().expect("it is open").close();
                self.reopen();
            }
            Act::Kill => self.crash(SimulatedDisk::kill),
            Act::PowerLoss(policy, seed) => {
                let policy = Policy::ALL[policy % Policy::ALL.len()];
                self.crash(|disk| disk.power_loss(policy, seed));
            }
        }
    }

    fn crash(&mut self, crash: impl Fn(&SimulatedDisk) -> SimulatedDisk) {
        self.disk = crash(&self.disk);
        self.claims.clear();
        self.reopen();
    }

    fn reopen(&mut self) {
        self.house = None;
        let house = open(&self.disk, &tiny());
        house.time.store(self.now, Ordering::Relaxed);
        self.book.restart(&house);
        self.house = Some(house);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn nothing_is_attempted_before_what_is_ahead_of_it_in_its_key(steps in prop::collection::vec(step(), 0..150)) {
        let (disk, house) = new();
        let mut run = Run { disk, house: Some(house), claims: vec![], book: Book::default(), now: 1_000 };
        for step in steps {
            run.step(step);
            adds_up(run.house.as_ref().expect("it is open"), "at every step");
        }
        run.claims.clear();
        run.book.attempted.clear();
        run.book.finish(run.house.as_mut().expect("it is open"), "at the end");
    }
}

/// What came through, and before which operation of the disk.
#[derive(Default)]
struct History(Vec<(u64, Book)>);

/// Two claims at a time; of each key something fails, dies or is dropped. `None` as soon as storage fails.
fn script(disk: &SimulatedDisk, config: &Config, history: &mut History) -> Option<()> {
    let mut book = Book::default();
    let mut random = Random::new(3);
    let mut waited = 0;
    for _life in 0..2 {
        let mut house = House::open_with(disk, config, ordered()).ok()?;
        house.try_work()?;
        let mut now = 1_000;
        for _round in 0..8 {
            let keys: Vec<u8> = (0..4).map(|_| (random.next_u64() % 3) as u8).collect();
            let id = book.keys.len() as u64;
            book.keys.extend(&keys);
            history.0.push((disk.operations(), book.clone()));
            accept(&mut house, id, &keys)?;
            let limit = ClaimLimit { events: 3, ..ALL };
            let mut claims =
                [house.queue.claim_now(HOOK, limit).ok()?, house.queue.claim_now(HOOK, limit).ok()?];
            claims.iter().flatten().for_each(|claim| book.attempt(claim, "in the script"));
            claims.reverse(); // the later one is settled first
            for claim in claims.into_iter().flatten() {
                let fates = (0..claim.batch.events.len()).map(|_| match random.next_u64() % 8 {
                    0 => Fate::Dropped { reason: "x".repeat(900) },
                    1 => dead(),
                    2..5 => retry(1, now + 20),
                    _ => Fate::Delivered,
                });
                let fates: Vec<_> = fates.collect();
                book.resolve(claim, fates);
                history.0.push((disk.operations(), book.clone()));
            }
            house.try_work()?;
            let query = FailureQuery { limit: 1000, ..FailureQuery::default() };
            let rows = house.queue.failures(&query).ok()?.rows;
            waited += rows.iter().filter(|row| row.attempts == 0).count();
            now += 10;
            house.time.store(now, Ordering::Relaxed);
        }
        house.try_close()?;
        book.attempted.clear();
    }
    assert!(waited > 10, "{waited} rows waited");
    Some(())
}

#[test]
fn no_power_loss_lets_an_event_overtake_another_of_its_key() {
    let mut config = tiny();
    config.failures.budget_bytes = 6 * config.least_failure_segment();
    let disk = SimulatedDisk::new(5);
    disk.record();
    let mut history = History::default();
    script(&disk, &config, &mut history).expect("nothing fails");
    for operation in 0..=disk.operations() {
        let did = disk.describe(operation);
        let known =
            history.0.iter().rev().find(|(begun, _)| *begun <= operation).map(|(_, book)| book.clone());
        let state = disk.at(operation).unwrap();
        let policy = Policy::ALL[operation as usize % Policy::ALL.len()];
        for (how, disk) in [("killed", state.kill()), ("power lost", state.power_loss(policy, operation))] {
            let what = format!("{how} ({policy:?}) after operation {operation} ({did})");
            let mut house = open(&disk, &config);
            let mut book = known.clone().unwrap_or_default();
            book.restart(&house);
            let status = house.status();
            assert_eq!(status.damaged_ranges, 0, "{what}: a crash damages nothing");
            adds_up(&house, &what);
            book.finish(&mut house, &what);
        }
    }
}

#[test]
fn a_row_that_waits_survives_the_one_before_it_and_does_not_overtake_it() {
    let disk = SimulatedDisk::new(3);
    disk.record();
    let mut house = open(&disk, &tiny());
    let mut book = Book::default();
    accept(&mut house, 0, &[1; 1]).unwrap();
    book.keys.push(1);
    let claim = house.claim(HOOK, ALL).unwrap();
    claim.resolve(Resolution { fates: Fates::Each(vec![retry(1, 5_000)]), token: None });
    house.work();
    for id in 1..25 {
        while house.stock.step() == Step::Worked {}
        accept(&mut house, id, &[1]).unwrap();
        book.keys.push(1);
        assert!(house.claim(HOOK, ALL).is_none(), "it waits behind 0");
    }
    let before = disk.operations();
    house.work();
    for operation in before..=disk.operations() {
        for (policy, seed) in
            Policy::ALL.into_iter().flat_map(|policy| (0..8).map(move |seed| (policy, seed)))
        {
            let what =
                format!("{policy:?} {seed} after operation {operation} ({})", disk.describe(operation));
            let state = disk.at(operation).unwrap().power_loss(policy, seed);
            let mut house = open(&state, &tiny());
            let mut book = book.clone();
            book.restart(&house);
            book.finish(&mut house, &what);
        }
    }
}
