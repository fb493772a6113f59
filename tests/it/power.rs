//! The power goes after every disk operation of the whole pipeline: requests, the log, the ledger, the
//! dedupe ring, the archive with its manifest and compressed files; what was acknowledged is in the archive exactly once, in order.
//!
//! A script runs once, on one thread, on a simulated disk that keeps its state after every operation.
//! Each of these states is then lost under every policy, or found by a process after a kill, and the
//! next life is checked (`power/verdict.rs`). Second crashes follow: in the midst of a recovery, and
//! in the life after it.
//!
//! `EVENTFLOW_CRASH_SEEDS` (default 1) is the number of scripts. A failure names what brings it back.

mod damage;
mod forgetful;
mod house;
#[cfg(feature = "planted")]
mod planted;
mod script;
mod verdict;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use eventflow::disk::simulated::Policy;
use eventflow::disk::{Disk, SimulatedDisk};

use forgetful::{Forgetful, Forgets};
use script::Run;

fn seeds() -> u64 {
    std::env::var("EVENTFLOW_CRASH_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(1)
}

/// Runs `check`; a panic in it says where in the exploration it happened.
fn located<T>(place: impl FnOnce() -> String, check: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
        eprintln!("failed: {}", place());
        resume_unwind(panic)
    })
}

fn plain(disk: &SimulatedDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}

/// Every state one operation can leave: as a kill leaves it, and every policy of losing power.
fn crashes(at: &SimulatedDisk, operation: u64) -> impl Iterator<Item = (String, SimulatedDisk)> + '_ {
    let losses = Policy::ALL.into_iter().map(move |policy| {
        let left = at.power_loss(policy, operation);
        (format!("{policy:?} with seed {operation}"), left)
    });
    std::iter::once(("killed".to_owned(), at.kill())).chain(losses)
}

/// The states seen.
#[derive(Debug, Default)]
struct States {
    first: u64,
    second: u64,
}

/// Crashes after every `stride`-th operation, and a second time in the life after it.
fn explore(seed: u64, run: &Run, stride: usize) -> States {
    let mut states = States::default();
    for operation in (0..=run.disk.operations()).step_by(stride) {
        let at = run.disk.at(operation).expect("recorded");
        let known = run.history.until(operation);
        for (number, (what, left)) in (0..).zip(crashes(&at, operation)) {
            let place = || {
                let did = run.disk.describe(operation);
                format!("script {seed}, operation {operation} ({did}), {what}")
            };
            states.first += 1;
            let is_whole = (operation + number).is_multiple_of(7);
            let again = left.kill();
            located(place, || verdict::check(&left, known.clone(), is_whole));
            // A kill first, every time; a loss first, now and then.
            if number == 0 || (operation + number).is_multiple_of(16) {
                let first = run.history.until(operation);
                located(place, || states.second += second(&again, first, operation + number));
            }
        }
    }
    states
}

/// A second life, and a crash in it: once in its recovery, once anywhere.
fn second(disk: &SimulatedDisk, known: script::History, seed: u64) -> u64 {
    disk.record();
    let mut run = Run::on(disk, plain(disk), known, seed);
    run.start();
    let recovered = disk.operations();
    run.resume();
    run.ask_again();
    run.steps(12);
    let mut states = 0;
    for number in 0..2 {
        let end = if number % 2 == 0 { recovered } else { disk.operations() };
        let operation = (seed * 7 + number * 3) % (end + 1);
        let policy = Policy::ALL[(seed + number) as usize % Policy::ALL.len()];
        let left = disk.at(operation).expect("recorded").power_loss(policy, seed);
        let place = || format!("  and then operation {operation} ({}), {policy:?}", disk.describe(operation));
        located(place, || verdict::check(&left, run.history.until(operation), false));
        states += 1;
    }
    states
}

#[test]
fn no_power_loss_at_any_disk_operation_of_the_whole_pipeline_breaks_a_promise() {
    println!("EVENTFLOW_CRASH_SEEDS={}", seeds());
    let (mut duplicates, mut compacted, mut midnight) = (0, false, false);
    for seed in 0..seeds() {
        let run = Run::script(seed, plain);
        let (seen, operations) = (run.seen, run.disk.operations());
        assert!(seen.full > 0 && seen.reused > 0, "script {seed} missed a phase: {seen:?}");
        let is_there = |path: &str| run.disk.files().iter().any(|file| file.starts_with(path));
        duplicates += seen.duplicates;
        compacted |= !is_there("/data/ledger/00000000000000000000.seg");
        midnight |= is_there("/data/archive/2025/06/15");
        let archived = run.disk.files();
        let compressed = archived.iter().filter(|path| path.extension().is_some_and(|end| end == "zst"));
        assert!(compressed.count() > 2, "script {seed} finished too little: {archived:?}");
        let states = explore(seed, &run, 1);
        println!(
            "script {seed}: {operations} operations, {} events; {} states after a crash and {} after a second",
            run.history.homes.len(),
            states.first,
            states.second
        );
    }
    assert!(duplicates > 0 && compacted && midnight, "the scripts missed a phase");
}

/// Whether the exploration of a script on such a disk fails. Coarsely first: most mistakes show often.
fn is_caught(through: impl Fn(&SimulatedDisk) -> Arc<dyn Disk>) -> bool {
    let run = Run::script(0, through);
    [6, 2].into_iter().any(|stride| catch_unwind(AssertUnwindSafe(|| explore(0, &run, stride))).is_err())
}

#[test]
fn a_pipeline_that_forgot_any_one_kind_of_sync_would_be_caught() {
    for (data, names) in [(true, false), (false, true)] {
        let through = |disk: &SimulatedDisk| {
            disk.ignore_syncs(data, names);
            plain(disk)
        };
        assert!(is_caught(through), "syncs left out unnoticed: of files {data}, of directories {names}");
    }
    for (below, forgets) in [
        ("/data/wal", Forgets::Data),
        ("/data/wal", Forgets::Names),
        ("/data/ledger", Forgets::Data),
        ("/data/ledger", Forgets::Names),
        ("/data/ledger/dedupe.ring", Forgets::Data),
        ("/data/archive", Forgets::Data),
        ("/data/archive", Forgets::Names),
    ] {
        let through = |disk: &SimulatedDisk| -> Arc<dyn Disk> {
            Arc::new(Forgetful { disk: disk.clone(), below, forgets })
        };
        assert!(is_caught(through), "syncs left out unnoticed: of {forgets:?} below {below}");
    }
}
