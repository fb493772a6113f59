//! The power goes after every operation of a script, and in every way it can.
//!
//! One run of the script is recorded; each of its states is then brought up again under each policy,
//! and the promises are checked on it: what was answered is there, once, in order; a request is there
//! whole or not at all; a sink that cuts back to its token has every event exactly once; what was
//! accepted within the window is a duplicate.

use std::collections::BTreeMap;

use crate::disk::simulated::Policy;

use super::*;

/// What clients were told, and when: requests by their first id, with the operation after which the
/// answer was out.
#[derive(Default)]
struct Told {
    /// Every request that was ever sent, by its ids.
    sent: Vec<Vec<u64>>,
    /// Ids that were answered, with the number of operations by then.
    answered: Vec<(u64, u64)>,
}

struct Recorded {
    disk: SimulatedDisk,
    told: Told,
    /// The first operation of the script.
    first: u64,
}

fn config() -> Config {
    let mut config = tiny();
    config.wal.dedupe_window = 12;
    config
}

/// Requests of one to three events, two a group, deliveries in between, freeing, an orderly stop in the
/// middle.
fn run() -> Recorded {
    let disk = SimulatedDisk::new(3);
    disk.record();
    let first = disk.operations();
    let mut told = Told::default();
    let mut id = 0;
    for _life in 0..2 {
        let mut house = House::open(&disk, &config(), &["archive"]);
        let mut toy = Toy::open(&disk, &house.resumes[0]).unwrap();
        for round in 0..14 {
            let mut receipts = Vec::new();
            for size in [1 + round % 3, 1] {
                let ids: Vec<u64> = (id..id + size).collect();
                id += size;
                told.sent.push(ids.clone());
                receipts.push((ids.clone(), house.post(&ids)));
            }
            house.committer.commit_pending().unwrap();
            for (ids, receipt) in receipts {
                let appended = receipt.unwrap().try_now().unwrap().unwrap();
                assert_eq!(appended.accepted, ids.len() as u64);
                told.answered.extend(ids.iter().map(|id| (*id, disk.operations())));
            }
            if round % 4 == 2 {
                house.committer.mark_idle().unwrap();
            }
            if round % 2 == 1 {
                deliver(&house, &mut toy, 3);
            }
            house.work();
        }
        house.close();
    }
    Recorded { disk, told, first }
}

fn deliver(house: &House, toy: &mut Toy, events: usize) {
    while let Some(claim) = house.claim(ARCHIVE, ClaimLimit { events, ..ALL }) {
        let delivery = toy.deliver(&claim.batch).unwrap();
        claim.resolve(delivery);
    }
}

impl Recorded {
    /// Brings `disk` up, which went down after `operation`, and checks every promise on it.
    fn check(&self, disk: &SimulatedDisk, operation: u64, what: &str) {
        let mut house = House::open(disk, &config(), &["archive"]);
        let mut toy = Toy::open(disk, &house.resumes[0]).unwrap();
        let before = house.sink(ARCHIVE);
        let lines = toy.lines();
        assert_eq!(before.delivered, lines.len() as u64, "{what}: the counter agrees with the target");
        deliver(&house, &mut toy, 5);
        house.work();

        let lines = toy.lines();
        assert!(lines.windows(2).all(|w| w[0].0 < w[1].0), "{what}: offsets ascend, none twice");
        let at: BTreeMap<u64, u64> = lines.iter().map(|(offset, id)| (*id, *offset)).collect();
        assert_eq!(at.len(), lines.len(), "{what}: no event twice");
        for (id, by) in &self.told.answered {
            assert!(*by > operation || at.contains_key(id), "{what}: answered event {id} is lost");
        }
        for ids in &self.told.sent {
            let found = ids.iter().filter(|id| at.contains_key(id)).count();
            assert!(found == 0 || found == ids.len(), "{what}: request {ids:?} is there in part");
        }
        let known = self.told.sent.iter().flatten().count() as u64;
        assert!(at.keys().all(|id| *id < known), "{what}: an event nobody sent");

        let status = house.status();
        let sink = &status.sinks[0];
        assert_eq!((sink.pending, sink.acked_offset), (0, status.next_offset), "{what}");
        assert_eq!(sink.delivered, lines.len() as u64, "{what}: the counter agrees with the target");
        assert_eq!(status.damaged_ranges, 0, "{what}: a crash damages nothing");

        for (id, offset) in &at {
            if *offset + config().wal.dedupe_window >= status.next_offset {
                let again = house.accept(&[*id]);
                assert_eq!(again.map(|a| a.duplicates), Ok(1), "{what}: event {id} is a duplicate");
            }
        }
        let next = house.accept(&[known + 1]).unwrap();
        assert_eq!(next.first_offset, status.next_offset, "{what}: offsets go on");
    }
}

#[test]
fn no_power_loss_breaks_a_promise() {
    let recorded = run();
    for operation in recorded.first..=recorded.disk.operations() {
        let disk = recorded.disk.at(operation).unwrap();
        for policy in Policy::ALL {
            for seed in 0..if policy.is_random() { 2 } else { 1 } {
                let seed = seed * 1000 + operation;
                let did = recorded.disk.describe(operation);
                let what = format!("{policy:?}, seed {seed}, after operation {operation} ({did})");
                recorded.check(&disk.power_loss(policy, seed), operation, &what);
            }
        }
    }
}

#[test]
fn no_kill_breaks_a_promise_and_no_power_loss_after_it() {
    let recorded = run();
    for operation in recorded.first..=recorded.disk.operations() {
        let killed = recorded.disk.at(operation).unwrap();
        let did = recorded.disk.describe(operation);
        recorded.check(&killed, operation, &format!("killed after operation {operation} ({did})"));
        if operation % 5 != 0 {
            continue;
        }
        // The next life is cut short as well: at some operation of its recovery the power goes.
        let killed = recorded.disk.at(operation).unwrap();
        killed.record();
        let house = House::open(&killed, &config(), &["archive"]);
        let _toy = Toy::open(&killed, &house.resumes[0]).unwrap();
        for again in 0..=killed.operations() {
            let policy = Policy::ALL[again as usize % Policy::ALL.len()];
            let twice = killed.at(again).unwrap().power_loss(policy, again);
            let did = killed.describe(again);
            let what = format!("killed after {operation}, then {policy:?} {again} after {again} ({did})");
            recorded.check(&twice, operation, &what);
        }
    }
}
