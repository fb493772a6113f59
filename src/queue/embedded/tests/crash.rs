//! The power goes after every operation of a script, and in every way it can.
//!
//! One run of the script is recorded; each of its states is then brought up again under each policy,
//! and the promises are checked on it: what was answered is there, once, in order; a request is there
//! whole or not at all; a sink that cuts back to its token has every event exactly once; what was
//! accepted within the window is a duplicate.

use std::collections::BTreeMap;

use crate::disk::simulated::{PagesAfter, Policy, Times};

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
    // More than the log holds after its sinks are done, so that the ring has to remember the rest.
    config.wal.dedupe_window = 40;
    config
}

/// Requests of one to three events, two a group, deliveries in between, freeing, an orderly stop in the
/// middle. `None` as soon as storage fails.
fn script(disk: &SimulatedDisk, told: &mut Told) -> Option<()> {
    let mut id = 0;
    for _life in 0..2 {
        let mut house = House::open_with(disk, &config(), infos(&["archive"])).ok()?;
        let mut toy = Toy::open(disk, &house.resumes[0]).ok()?;
        house.try_work()?;
        for round in 0..14 {
            let mut receipts = Vec::new();
            for size in [1 + round % 3, 1] {
                let ids: Vec<u64> = (id..id + size).collect();
                id += size;
                told.sent.push(ids.clone());
                receipts.push((ids.clone(), house.post(&ids).ok()?));
            }
            let committed = house.committer.commit_pending();
            for (ids, mut receipt) in receipts {
                match receipt.try_now().unwrap() {
                    Ok(appended) => {
                        assert_eq!(appended.accepted, ids.len() as u64);
                        told.answered.extend(ids.iter().map(|id| (*id, disk.operations())));
                    }
                    Err(refusal) => assert_eq!(refusal, Refusal::StorageFailed),
                }
            }
            committed.ok()?;
            if round % 4 == 2 {
                house.committer.mark_idle().ok()?;
            }
            if round % 2 == 1 {
                deliver(&house, &mut toy, 3)?;
            }
            house.try_work()?;
        }
        house.try_close()?;
    }
    Some(())
}

fn run() -> Recorded {
    let disk = SimulatedDisk::new(3);
    disk.record();
    let first = disk.operations();
    let mut told = Told::default();
    script(&disk, &mut told).expect("nothing fails");
    Recorded { disk, told, first }
}

fn deliver(house: &House, toy: &mut Toy, events: usize) -> Option<()> {
    while let Some(claim) = house.queue.claim_now(ARCHIVE, ClaimLimit { events, ..ALL }).ok()? {
        let delivery = toy.deliver(&claim.batch).ok()?;
        claim.resolve(delivery);
    }
    Some(())
}

impl Told {
    /// Brings `disk` up, which went down after `operation`, and checks every promise on it.
    fn check(&self, disk: &SimulatedDisk, operation: u64, what: &str) {
        let mut house = House::open(disk, &config(), &["archive"]);
        let mut toy = Toy::open(disk, &house.resumes[0]).unwrap();
        let before = house.sink(ARCHIVE);
        let lines = toy.lines();
        assert_eq!(before.delivered, lines.len() as u64, "{what}: the counter agrees with the target");
        deliver(&house, &mut toy, 5).expect("the disk works");
        house.work();

        let lines = toy.lines();
        assert!(lines.windows(2).all(|w| w[0].0 < w[1].0), "{what}: offsets ascend, none twice");
        let at: BTreeMap<u64, u64> = lines.iter().map(|(offset, id)| (*id, *offset)).collect();
        assert_eq!(at.len(), lines.len(), "{what}: no event twice");
        for (id, by) in &self.answered {
            assert!(*by > operation || at.contains_key(id), "{what}: answered event {id} is lost");
        }
        for ids in &self.sent {
            let found = ids.iter().filter(|id| at.contains_key(id)).count();
            assert!(found == 0 || found == ids.len(), "{what}: request {ids:?} is there in part");
        }
        let known = self.sent.iter().flatten().count() as u64;
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
                recorded.told.check(&disk.power_loss(policy, seed), operation, &what);
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
        recorded.told.check(&killed, operation, &format!("killed after operation {operation} ({did})"));
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
            recorded.told.check(&twice, operation, &what);
        }
    }
}

#[test]
fn no_failed_sync_breaks_a_promise_whichever_it_is() {
    let reaches = [Policy::Drop, Policy::Torn, Policy::Keep];
    let (mut nth, mut failures, mut quiet) = (0, 0, 0);
    // Until the script has no sync of that number any more. A ring that fails is made anew and ends
    // nothing, so single runs may come to their end before.
    while quiet < 20 {
        nth += 1;
        quiet += 1;
        for pages in [PagesAfter::Clean, PagesAfter::Dirty, PagesAfter::Reverted] {
            let reached = reaches[nth as usize % reaches.len()];
            let disk = SimulatedDisk::new(nth);
            let mut told = Told::default();
            disk.fail_sync(nth, pages, reached, Times::Once);
            if script(&disk, &mut told).is_none() {
                (failures, quiet) = (failures + 1, 0);
            }
            disk.heal();
            let at = disk.operations();
            let what = format!("sync {nth} failed, {pages:?}, {reached:?} reached the disk");
            told.check(&disk.power_loss(Policy::Drop, nth), at, &format!("{what}, power lost"));
            told.check(&disk.kill(), at, &format!("{what}, killed"));
            // What the next life acts on must hold although the page cache lied to it.
            let killed = disk.kill();
            drop(House::open(&killed, &config(), &["archive"]));
            told.check(&killed.power_loss(Policy::Drop, nth), at, &format!("{what}, killed, power lost"));
        }
    }
    assert!(failures > 100, "{failures} runs met their failure");
}
