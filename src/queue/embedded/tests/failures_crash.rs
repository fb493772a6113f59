//! The power goes after every operation while events fail, are retried, die, are redriven and dropped,
//! and while the failure table is cleaned.
//!
//! Each event walks through states in an order that the script knows. After a crash it stands in one of
//! them: not before the last that was durable, and not after the last that was begun.

use std::collections::BTreeMap;

use crate::disk::simulated::{PagesAfter, Policy, Times};
use crate::queue::{EventState, FailureQuery, Fate, Lookup, Redrive, RowState, Selection};

use super::*;

const HOOK: SinkId = SinkId(0);

/// Where an event stands with the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Pending,
    Retrying(u32),
    Dead(u32),
    Gone,
}

/// A state an event got to: the operations before it was begun, and by when it was durable.
#[derive(Debug, Clone, Copy)]
struct Stop {
    at: At,
    begun: u64,
    durable: Option<u64>,
}

#[derive(Default)]
struct Walks(BTreeMap<u64, Vec<Stop>>);

impl Walks {
    fn begin(&mut self, offset: u64, at: At, operations: u64) {
        self.0.entry(offset).or_default().push(Stop { at, begun: operations, durable: None });
    }

    /// Everything begun is durable.
    fn settle(&mut self, operations: u64) {
        for stop in self.0.values_mut().flatten() {
            stop.durable.get_or_insert(operations);
        }
    }
}

/// Six segments, so that the table is cleaned all the time.
fn config() -> Config {
    let mut config = tiny();
    config.failures.budget_bytes = 6 * config.least_failure_segment();
    config
}

fn hook() -> Vec<SinkInfo> {
    let mut infos = infos(&["hook"]);
    infos[0].parks = true;
    infos
}

fn reason() -> String {
    "x".repeat(900)
}

/// What the target says to an event that was attempted so often before.
fn fate(offset: u64, before: u32) -> (Fate, At) {
    let attempts = before + 1;
    match (offset % 4, before) {
        (0, _) | (1, 1..) => (Fate::Delivered, At::Gone),
        (2, 1..) => (Fate::Dead { reason: reason(), attempts }, At::Dead(attempts)),
        (3, 2..) => (Fate::Dropped { reason: reason() }, At::Gone),
        _ => (Fate::Retry { reason: reason(), attempts, due_at: Micros(0) }, At::Retrying(attempts)),
    }
}

struct Script<'a> {
    disk: &'a SimulatedDisk,
    house: House,
    walks: &'a mut Walks,
}

impl Script<'_> {
    fn work(&mut self) -> Option<()> {
        self.house.try_work()?;
        self.walks.settle(self.disk.operations());
        Some(())
    }

    fn deliver(&mut self) -> Option<()> {
        while let Some(claim) = self.house.queue.claim_now(HOOK, ClaimLimit { events: 3, ..ALL }).ok()? {
            let mut fates = Vec::new();
            for (index, event) in claim.batch.events.iter().enumerate() {
                let (fate, at) = fate(event.offset, claim.attempts(index));
                self.walks.begin(event.offset, at, self.disk.operations());
                fates.push(fate);
            }
            claim.resolve(Resolution { fates: Fates::Each(fates), token: None });
        }
        self.work()
    }

    fn redrive(&mut self, offset: u64, action: Redrive) -> Option<()> {
        let at = match action {
            Redrive::Retry => At::Retrying(0),
            Redrive::Drop => At::Gone,
        };
        if self.walks.0.get(&offset)?.last()?.at == At::Gone {
            return Some(());
        }
        self.walks.begin(offset, at, self.disk.operations());
        let queue = Arc::clone(&self.house.queue);
        let mut asked = queue.redrive(HOOK, Selection::Offsets(vec![offset]), action);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(asked.as_mut().poll(&mut context).is_pending());
        self.work()?;
        assert!(matches!(asked.as_mut().poll(&mut context), std::task::Poll::Ready(Ok(1))));
        Some(())
    }
}

/// `None` as soon as storage fails.
fn script(disk: &SimulatedDisk, walks: &mut Walks) -> Option<()> {
    let mut id = 0;
    for _life in 0..2 {
        let house = House::open_with(disk, &config(), hook()).ok()?;
        let mut script = Script { disk, house, walks };
        script.house.try_work()?;
        for round in 0..9 {
            let ids = [id, id + 1, id + 2];
            script.house.accept(&ids).ok()?;
            ids.iter().for_each(|id| script.walks.begin(*id, At::Pending, 0));
            id += 3;
            script.deliver()?;
            script.deliver()?;
            if round % 3 == 2 {
                let dead = (id - 6..id).find(|offset| offset % 4 == 2)?;
                let action = if round % 2 == 0 { Redrive::Retry } else { Redrive::Drop };
                script.redrive(dead, action)?;
            }
        }
        script.house.try_close()?;
        script.walks.settle(disk.operations());
    }
    Some(())
}

/// Brings `disk` up, which went down after `operation`, and checks every promise on it.
fn check(walks: &Walks, disk: &SimulatedDisk, operation: u64, what: &str) {
    let mut house = House::open_with(disk, &config(), hook()).unwrap();
    house.work();
    let status = house.status();
    let sink = &status.sinks[0];
    let sum = sink.delivered + sink.dropped + sink.dead + sink.retrying + sink.pending + sink.skipped;
    assert_eq!(sum, status.next_offset, "{what}: {sink:?}");
    assert_eq!(status.damaged_ranges, 0, "{what}: a crash damages nothing");
    let rows = house.queue.failures(&FailureQuery { limit: 1000, ..FailureQuery::default() }).unwrap().rows;
    let rows: BTreeMap<u64, At> = rows
        .iter()
        .map(|row| match row.state {
            RowState::Retrying => (row.offset, At::Retrying(row.attempts)),
            RowState::Dead => (row.offset, At::Dead(row.attempts)),
        })
        .collect();
    assert_eq!(rows.len() as u64, sink.dead + sink.retrying, "{what}");
    for (offset, stops) in &walks.0 {
        let at = match house.queue.event(*offset).unwrap() {
            Lookup::NotYet => continue,
            // Those that come through, and those that are given up.
            Lookup::Found { sinks, .. } if sinks[0].1 == EventState::Delivered && offset % 4 > 1 => {
                panic!("{what}: event {offset} was dropped and is called delivered")
            }
            Lookup::Found { sinks, .. } if sinks[0].1 == EventState::Dropped && offset % 4 < 2 => {
                panic!("{what}: event {offset} was delivered and is called dropped")
            }
            Lookup::Found { sinks, .. } if sinks[0].1 == EventState::Pending => At::Pending,
            _ => rows.get(offset).copied().unwrap_or(At::Gone),
        };
        let from = stops.iter().rposition(|stop| stop.durable.is_some_and(|by| by <= operation)).unwrap_or(0);
        let to = stops.iter().rposition(|stop| stop.begun <= operation).unwrap_or(0);
        let may = &stops[from..=to.max(from)];
        assert!(may.iter().any(|stop| stop.at == at), "{what}: event {offset} is {at:?}, not one of {may:?}");
    }
    // Everything comes to its end, and the numbers with it.
    while let Some(claim) = house.claim(HOOK, ALL) {
        claim.resolve(Resolution::default());
        house.work();
    }
    let sink = house.sink(HOOK);
    assert_eq!((sink.pending, sink.retrying, sink.in_flight), (0, 0, 0), "{what}");
    assert_eq!(sink.delivered + sink.dropped + sink.dead, status.next_offset, "{what}");
    let again = House::open_with(&disk.power_loss(Policy::Drop, operation), &config(), hook()).unwrap();
    assert_eq!(again.sink(HOOK).delivered, sink.delivered, "{what}: and stay so");
    assert_eq!(again.sink(HOOK).dead, sink.dead, "{what}: the dead stay dead");
}

#[test]
fn no_power_loss_loses_a_failed_event_or_sets_it_back() {
    let disk = SimulatedDisk::new(5);
    disk.record();
    let mut walks = Walks::default();
    script(&disk, &mut walks).expect("nothing fails");
    let house = House::open_with(&disk.kill(), &config(), hook()).unwrap();
    assert!(house.queue.shared.failures.first_offset() > 0, "the table was cleaned");
    for operation in 0..=disk.operations() {
        let state = disk.at(operation).unwrap();
        let did = disk.describe(operation);
        check(&walks, &state, operation, &format!("killed after operation {operation} ({did})"));
        let state = disk.at(operation).unwrap();
        for policy in Policy::ALL {
            let what = format!("{policy:?} after operation {operation} ({did})");
            check(&walks, &state.power_loss(policy, operation), operation, &what);
        }
    }
}

#[test]
fn no_failed_sync_loses_a_failed_event_or_sets_it_back() {
    let (mut nth, mut failures, mut quiet) = (0, 0, 0);
    while quiet < 10 {
        nth += 1;
        quiet += 1;
        for pages in [PagesAfter::Clean, PagesAfter::Dirty, PagesAfter::Reverted] {
            let disk = SimulatedDisk::new(nth);
            let mut walks = Walks::default();
            disk.fail_sync(nth, pages, Policy::Torn, Times::Once);
            if script(&disk, &mut walks).is_none() {
                (failures, quiet) = (failures + 1, 0);
            }
            disk.heal();
            let at = disk.operations();
            let what = format!("sync {nth} failed, {pages:?}");
            check(&walks, &disk.power_loss(Policy::Drop, nth), at, &format!("{what}, power lost"));
            check(&walks, &disk.kill(), at, &format!("{what}, killed"));
        }
    }
    assert!(failures > 50, "{failures} runs met their failure");
}
