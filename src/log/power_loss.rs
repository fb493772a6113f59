//! Power losses, kills and failing disks at every operation of a script, on a simulated disk.
//!
//! A script of appends, commits, rolls, releases and restarts runs once while the disk records its
//! state after every operation. Each of these states is then put through every policy of losing what
//! was not synced, booted, and compared with what the script had been promised by then. The number
//! of seeds is `EVENTFLOW_CRASH_SEEDS` (default: a few); a failure names the seed of the script,
//! the operation, the policy and the seed of the loss, and is found again by [`explore`]ing that one.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use super::frame::Record;
use super::{AppendError, Log, LogError, Options, Recovered, Step, Stock, Stream, Writer, recover};
use crate::disk::SimulatedDisk;
use crate::disk::simulated::{CrashStates, Failure, PagesAfter, Policy, Random, Times};

const SEGMENT_BYTES: u64 = 8192;
const SEGMENTS: u64 = 6;
/// Steps of a script.
const STEPS: u64 = 40;

fn options() -> Options {
    Options {
        dir: PathBuf::from("/data/wal"),
        quarantine_dir: PathBuf::from("/data/quarantine"),
        stream: Stream::Events,
        segment_bytes: SEGMENT_BYTES,
        budget_bytes: SEGMENTS * SEGMENT_BYTES,
        spares: 1,
        min_free_disk_bytes: 0,
        owners_files: &[],
    }
}

/// A boot of the log on `disk`. Every boot has salts of its own.
fn boot(disk: &SimulatedDisk, known_durable: u64, salt_seed: u64) -> Result<Recovered, LogError> {
    let mut random = Random::new(salt_seed);
    let entropy = Box::new(move || random.next_u64());
    recover(Arc::new(disk.clone()), options(), known_durable, entropy, 1_000)
}

/// One append of the script and what became of it.
#[derive(Debug, Clone)]
struct Batch {
    /// Operations done when it was handed to the writer.
    appended: u64,
    /// Operations done when it was promised: committed, or shown by a reader.
    promised: Option<u64>,
    base: u64,
    records: Vec<Vec<u8>>,
}

/// What a script did, and up to which operation.
#[derive(Debug, Clone, Default)]
struct History {
    batches: Vec<Batch>,
    /// Offset everything below which was released, and when.
    released: Vec<(u64, u64)>,
}

impl History {
    fn promised_end(&self, operation: u64) -> u64 {
        let promised = self.batches.iter().filter(|batch| batch.promised.is_some_and(|at| at <= operation));
        promised.map(|batch| batch.base + batch.records.len() as u64).max().unwrap_or(0)
    }

    fn released(&self, operation: u64) -> u64 {
        let done = self.released.iter().filter(|(at, _)| *at <= operation);
        done.map(|(_, below)| *below).max().unwrap_or(0)
    }

    fn promise(&mut self, operation: u64, is_promised: impl Fn(usize, &Batch) -> bool) {
        for (number, batch) in self.batches.iter_mut().enumerate() {
            if batch.promised.is_none() && is_promised(number, batch) {
                batch.promised = Some(operation);
            }
        }
    }
}

/// Everything a reader sees: offset, tag and bytes.
type Seen = Vec<(u64, u128, Vec<u8>)>;

fn read_all(log: &Log) -> Seen {
    let mut reader = log.reader(log.first_offset());
    let mut seen = Seen::new();
    loop {
        let chunk = reader.read(3, 2_000).expect("a simulated disk reads");
        assert!(chunk.damage.is_empty(), "reading met damage: {:?}", chunk.damage);
        for record in &chunk.records {
            seen.push((record.offset, record.tag, chunk.bytes(record).to_vec()));
        }
        if chunk.range.is_empty() {
            assert_eq!(reader.position(), log.durable_end(), "a reader reaches the durable end");
            return seen;
        }
    }
}

/// Compares a boot after a crash at `operation` with what was promised by then. Returns the offset and
/// the tag of every record found; that their bytes are right has been seen to.
fn check(history: &History, operation: u64, known_durable: u64, recovered: &Recovered) -> Vec<(u64, u128)> {
    let report = &recovered.report;
    assert!(report.damage.is_empty(), "a power loss is no damage: {:?}", report.damage);
    let seen = read_all(&recovered.log);
    assert!(seen.windows(2).all(|pair| pair[0].0 < pair[1].0), "offsets go up");
    let mut present: BTreeMap<usize, usize> = BTreeMap::new();
    for (offset, tag, bytes) in &seen {
        let (number, index) = ((tag >> 32) as usize, (tag & 0xffff_ffff) as usize);
        let batch = history.batches.get(number).expect("nothing is invented");
        assert!(batch.appended <= operation, "batch {number} comes from the future");
        assert_eq!(batch.base + index as u64, *offset, "record {index} of batch {number} moved");
        assert_eq!(&batch.records[index], bytes, "record {index} of batch {number} changed");
        *present.entry(number).or_default() += 1;
    }
    let released = history.released(operation);
    for (number, batch) in history.batches.iter().enumerate() {
        let found = present.get(&number).copied().unwrap_or(0);
        let all = batch.records.len();
        assert!(found == 0 || found == all, "{found} of {all} records of batch {number}");
        let is_promised = batch.promised.is_some_and(|at| at <= operation);
        let is_released = batch.base + all as u64 <= released;
        assert!(found == all || !is_promised || is_released, "batch {number} at {} is lost", batch.base);
    }
    let end = history.promised_end(operation).max(known_durable);
    assert!(recovered.log.next_offset() >= end, "offset {end} is given again");
    assert!(recovered.log.durable_end() >= end, "not everything promised can be read");
    for void in &report.voids {
        assert!(seen.iter().all(|(offset, ..)| !void.contains(offset)), "{void:?} is no void");
    }
    seen.into_iter().map(|(offset, tag, _)| (offset, tag)).collect()
}

/// A script running: the process and what it has been promised.
struct Run {
    disk: SimulatedDisk,
    random: Random,
    history: History,
    process: Option<(Log, Writer, Stock)>,
    boots: u64,
}

impl Run {
    fn new(seed: u64) -> Self {
        let disk = SimulatedDisk::new(seed);
        disk.record();
        Run { disk, random: Random::new(seed), history: History::default(), process: None, boots: 0 }
    }

    /// Runs the script until its end or until the log fails.
    fn run(&mut self) -> Result<(), LogError> {
        self.boot()?;
        for _ in 0..STEPS {
            self.step()?;
        }
        Ok(())
    }

    fn boot(&mut self) -> Result<(), LogError> {
        self.boots += 1;
        let known_durable = if self.random.coin() { self.promised_end() } else { 0 };
        let recovered = boot(&self.disk, known_durable, self.random.next_u64())?;
        let now = self.disk.operations();
        let seen = check(&self.history, now, known_durable, &recovered);
        // What was shown once must never vanish again.
        self.history.promise(now, |number, _| seen.iter().any(|(_, tag)| (tag >> 32) as usize == number));
        let Recovered { log, writer, stock, .. } = recovered;
        self.process = Some((log, writer, stock));
        Ok(())
    }

    fn promised_end(&self) -> u64 {
        self.history.promised_end(self.disk.operations())
    }

    fn step(&mut self) -> Result<(), LogError> {
        match self.random.below(20) {
            0 => self.writer().mark_idle(),
            1..=2 => {
                let below = self.random.below(self.promised_end() + 1);
                self.history.released.push((self.disk.operations(), below));
                self.log().release_below(below);
                Ok(())
            }
            3..=7 => {
                self.stock().step();
                Ok(())
            }
            8 => {
                let (_, writer, _) = self.process.take().expect("a process runs");
                writer.close()?;
                self.boot()
            }
            9 => {
                self.process = None; // killed: what the writer had not written is gone
                self.boot()
            }
            _ => self.append_group(),
        }
    }

    fn append_group(&mut self) -> Result<(), LogError> {
        for _ in 0..1 + self.random.below(3) {
            self.append()?;
        }
        if self.random.below(8) == 0 {
            return Ok(()); // left for the next commit, or for the kill
        }
        self.writer().commit()?;
        let now = self.disk.operations();
        let boots = self.boots;
        self.history.promise(now, |_, batch| batch.records[0].first() == Some(&(boots as u8)));
        Ok(())
    }

    fn append(&mut self) -> Result<(), LogError> {
        let number = self.history.batches.len();
        let boots = self.boots as u8;
        let count = 1 + self.random.below(4) as usize;
        let records: Vec<Vec<u8>> = (0..count)
            .map(|index| {
                let mut bytes = vec![boots, number as u8, index as u8];
                bytes.resize(3 + self.random.below(900) as usize, self.random.next_u64() as u8);
                bytes
            })
            .collect();
        let appended = self.disk.operations();
        let tagged = records.iter().enumerate().map(|(index, bytes)| Record {
            tag: (number as u128) << 32 | index as u128,
            crc: crc32fast::hash(bytes),
            bytes,
        });
        match self.writer().append(2_000, tagged) {
            Ok(base) => self.history.batches.push(Batch { appended, promised: None, base, records }),
            Err(AppendError::Failed(error)) => return Err(error),
            Err(_) => while self.stock().step() == Step::Worked {},
        }
        // A roll commits what was pending before it, which promises nothing to anybody yet.
        Ok(())
    }

    fn log(&mut self) -> &Log {
        &self.process.as_ref().expect("a process runs").0
    }

    fn writer(&mut self) -> &mut Writer {
        &mut self.process.as_mut().expect("a process runs").1
    }

    fn stock(&mut self) -> &mut Stock {
        &mut self.process.as_mut().expect("a process runs").2
    }
}

/// Runs `check`, and on a panic says where in the exploration it happened.
fn located<T>(place: impl FnOnce() -> String, check: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
        eprintln!("failed at {}", place());
        resume_unwind(panic)
    })
}

fn seeds() -> u64 {
    std::env::var("EVENTFLOW_CRASH_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(2)
}

/// Crashes after every operation of the script with this seed, each random policy with so many seeds
/// of its own.
pub(crate) fn explore(script: u64, losses: u64, states: &mut CrashStates) {
    explore_on(script, losses, states, |_| {});
}

fn explore_on(script: u64, losses: u64, states: &mut CrashStates, prepare: impl Fn(&SimulatedDisk)) {
    let mut run = Run::new(script);
    prepare(&run.disk);
    run.run().expect("nothing fails");
    for operation in 0..=run.disk.operations() {
        let before = run.disk.at(operation).expect("recorded");
        for (loss, (left, what)) in (0..).zip(states.left(&before, losses)) {
            let did = run.disk.describe(operation);
            let place = || format!("log script {script}, {what} after operation {operation} ({did})");
            located(place, || match loss {
                0 => after_kill(&run.history, &left, operation, states),
                _ => after_loss(&run.history, &left, operation, loss, states),
            });
        }
    }
}

/// Boots after a power loss; crashes in the midst of that recovery, too.
fn after_loss(history: &History, disk: &SimulatedDisk, operation: u64, loss: u64, states: &mut CrashStates) {
    let known_durable = if loss.is_multiple_of(2) { 0 } else { history.promised_end(operation) };
    disk.record();
    let recovered = boot(disk, known_durable, loss ^ 0xb007).expect("recovery never refuses to start");
    let seen = check(history, operation, known_durable, &recovered);
    // Chosen by the place, so that all crash points inside recovery are met over the whole run.
    let nested = 1 + (operation + loss) % disk.operations().max(1);
    for (at, policy) in
        [(disk.operations(), Policy::Drop), (nested, Policy::Drop), (nested, Policy::ALL[loss as usize % 8])]
    {
        let again = disk.at(at).expect("recorded").power_loss(policy, loss);
        states.note(&again);
        let recovered = boot(&again, known_durable, loss ^ 0xb008).expect("recovery never refuses to start");
        let seen_again = located(
            || format!("operation {at} of recovery ({}), then {policy:?}", disk.describe(at)),
            || check(history, operation, known_durable, &recovered),
        );
        assert_eq!(seen_again, seen, "a crash inside recovery, after {} operations, changed the verdict", at);
    }
}

/// Tells what a recovery did to the disk when a check after it fails.
struct Trace<'a>(&'a SimulatedDisk);

impl Drop for Trace<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            (1..=self.0.operations())
                .for_each(|n| eprintln!("recovery, operation {n}: {}", self.0.describe(n)));
        }
    }
}

/// Boots on the page cache of a killed process; then the power goes as well.
fn after_kill(history: &History, disk: &SimulatedDisk, operation: u64, states: &mut CrashStates) {
    disk.record();
    let recovered = boot(disk, 0, 0xb009).expect("recovery never refuses to start");
    let seen = check(history, operation, 0, &recovered);
    let _on_panic = Trace(disk);
    for (loss, policy) in Policy::ALL.into_iter().enumerate() {
        let lost = disk.power_loss(policy, loss as u64);
        states.note(&lost);
        let recovered = boot(&lost, 0, 0xb00a).expect("recovery never refuses to start");
        let mut seen_again = check(history, operation, 0, &recovered);
        // Released records may come back: everyone is durably past them.
        let released = history.released(operation);
        seen_again.retain(|record| record.0 >= released || seen.contains(record));
        assert_eq!(seen_again, seen, "{policy:?} lost what recovery had shown");
    }
}

#[test]
fn no_power_loss_at_any_operation_loses_moves_or_tears_what_was_promised() {
    let mut states = CrashStates::default();
    for script in 0..seeds() {
        explore(script, 3, &mut states);
    }
    println!("{} scripts of the log: {states}", seeds());
}

#[test]
fn a_void_that_a_recovery_was_writing_when_the_power_went_is_no_damage() {
    // Scripts that once ended in a false alarm.
    for script in [50, 62] {
        explore(script, 8, &mut CrashStates::default());
    }
}

#[test]
fn a_log_that_forgot_one_kind_of_sync_would_be_caught() {
    for (data, dirs) in [(true, false), (false, true)] {
        let caught = catch_unwind(|| {
            for script in 0..8 {
                let mut states = CrashStates::default();
                explore_on(script, 1, &mut states, |disk| disk.ignore_syncs(data, dirs));
            }
        });
        assert!(caught.is_err(), "syncs left out unnoticed: of files {data}, of directories {dirs}");
    }
}

#[cfg(feature = "planted")]
#[test]
fn a_log_that_believed_stale_bytes_would_be_caught() {
    use crate::planted::{Mistake, plant};
    plant(Some(Mistake::StaleBytesTrusted));
    let caught =
        (0..8).any(|script| catch_unwind(|| explore(script, 1, &mut CrashStates::default())).is_err());
    plant(None);
    assert!(caught, "stale bytes are believed unnoticed");
}

/// Runs the script with a fault in it, then boots from the page cache, then after a power loss.
fn with_fault(
    script: u64,
    states: &mut CrashStates,
    place: impl Fn() -> String,
    arm: impl Fn(&SimulatedDisk),
) {
    let mut run = Run::new(script);
    arm(&run.disk);
    located(&place, || {
        let failed = run.run();
        run.process = None;
        run.disk.heal();
        let operation = run.disk.operations();
        let _ = failed; // a fault the stock met is no failure of the log
        let left = states.left(&run.disk, 1);
        for (loss, (left, what)) in (0..).zip(left) {
            located(
                || what,
                || match loss {
                    0 => after_kill(&run.history, &left, operation, states),
                    _ => after_loss(&run.history, &left, operation, loss, states),
                },
            );
        }
    });
}

#[test]
fn a_sync_that_fails_at_any_time_costs_nothing_that_was_promised() {
    let mut states = CrashStates::default();
    for script in 0..seeds() {
        let mut whole = Run::new(script);
        whole.run().expect("nothing fails");
        for nth in 1..=whole.disk.operations() / 2 {
            let pages = [PagesAfter::Clean, PagesAfter::Dirty, PagesAfter::Reverted][nth as usize % 3];
            for (reached, times) in [(Policy::Drop, Times::Once), (Policy::Torn, Times::Forever)] {
                with_fault(
                    script,
                    &mut states,
                    || format!("script {script}, sync {nth} fails, pages {pages:?}, {reached:?}, {times:?}"),
                    |disk| disk.fail_sync(nth, pages, reached, times),
                );
            }
        }
    }
    println!("after failed syncs: {states}");
}

#[test]
fn a_write_that_fails_at_any_time_costs_nothing_that_was_promised() {
    let mut states = CrashStates::default();
    for script in 0..seeds() {
        let mut whole = Run::new(script);
        whole.run().expect("nothing fails");
        for nth in 1..=whole.disk.operations() / 2 {
            let failure = [Failure::Io, Failure::NoSpace, Failure::Quota][nth as usize % 3];
            let written = Random::new(nth).below(2_000) as usize;
            with_fault(
                script,
                &mut states,
                || format!("script {script}, write {nth} fails after {written} bytes"),
                |disk| disk.fail_write(nth, failure, written, Times::Once),
            );
        }
        for nth in 1..=whole.disk.operations() {
            let failure = [Failure::Io, Failure::NoSpace, Failure::TooManyOpenFiles][nth as usize % 3];
            with_fault(
                script,
                &mut states,
                || format!("script {script}, operation {nth} fails with {failure:?}"),
                |disk| disk.fail_operation(nth, failure, Times::Once),
            );
        }
    }
    println!("after failed writes and other calls: {states}");
}
