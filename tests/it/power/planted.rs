//! The tests of this folder can fail: each mistake that is planted in the code is found by one of them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use eventflow::disk::SimulatedDisk;
use eventflow::disk::simulated::{PagesAfter, Policy, Times};
use eventflow::event::Micros;
use eventflow::planted::{Mistake, plant};
use eventflow::queue::{Queue, Refusal};

use super::script::{History, Run};
use super::{damage, explore, plain, verdict};

/// Posts events one after another on a disk whose `nth` sync fails, loses the power, and looks for them.
fn with_a_failed_sync(nth: u64, pages: PagesAfter) {
    let disk = SimulatedDisk::new(nth);
    disk.record();
    let history = History { now: Micros(1_749_943_200_000_000), ..History::default() };
    let mut run = Run::on(&disk, plain(&disk), history, nth);
    run.start();
    disk.fail_sync(nth, pages, Policy::Drop, Times::Once);
    for id in 0..12 {
        run.history.next_id = id + 1;
        let has_failed = run.house().queue.status().refusing == Some(Refusal::StorageFailed);
        if has_failed || !run.post(vec![id]) || !run.try_commit() {
            break;
        }
    }
    let operation = disk.operations();
    let left = disk.at(operation).expect("recorded").power_loss(Policy::Drop, nth);
    verdict::check(&left, run.history.until(operation), false);
}

/// What the tests of this folder explore, coarsely first: most mistakes show often.
fn explore_everything() {
    for nth in 1..8 {
        for pages in [PagesAfter::Clean, PagesAfter::Dirty, PagesAfter::Reverted] {
            with_a_failed_sync(nth, pages);
        }
    }
    damage::flip_every(97);
    let run = Run::script(0, plain);
    explore(0, &run, 6);
    explore(0, &run, 2);
}

/// Stale bytes are for the log's own tests to find: offsets only grow, so the pipeline meets none that could
/// be taken for later events (`src/log/power_loss.rs`).
#[test]
fn every_planted_mistake_is_found() {
    explore_everything();
    for mistake in [
        Mistake::NoChecksum,
        Mistake::AckOnError,
        Mistake::SyncRetried,
        Mistake::CheckpointBeforeSync,
        Mistake::ArchiveNotCut,
        Mistake::ArchiveCutAtLastLine,
    ] {
        plant(Some(mistake));
        let found = catch_unwind(AssertUnwindSafe(explore_everything)).is_err();
        plant(None);
        assert!(found, "{mistake:?} stays unnoticed");
        println!("{mistake:?} is found");
    }
}
