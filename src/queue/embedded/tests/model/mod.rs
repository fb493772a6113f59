//! Random scripts against a naive model (`model/known.rs`): appends, batches, duplicates, claims, every fate,
//! redrives, pauses, clock jumps, rolls, compactions, drains, kills and power losses.
//!
//! After every step each number is what the model says, and for every sink accepted = delivered +
//! dropped + dead + retrying + pending + skipped. After every crash each event stands where it may:
//! nothing acknowledged is lost, no attempt count is below what was durable, nothing dead is alive.
//!
//! `EVENTFLOW_MODEL_SEEDS` (default 0..10) are the scripts: a range, or one number to have one again. A
//! failure names its own.

mod known;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::task::{Context, Poll, Waker};

use crate::disk::simulated::{CrashStates, Policy};
use crate::queue::{Fate, Redrive, Selection, SinkState};

use known::{At, Known, Track};

use super::*;

const SINKS: [&str; 3] = ["archive", "hook", "exec"];
const STEPS: u64 = 250;

fn config(window: u64) -> Config {
    let mut config = tiny();
    config.wal.dedupe_window = window;
    // Few segments, so that the table is cleaned all the time and now and then has no room.
    config.failures.budget_bytes = 9 * config.least_failure_segment();
    config
}

fn sinks() -> Vec<SinkInfo> {
    let mut infos = infos(&SINKS);
    infos[1].parks = true;
    infos[2].parks = true;
    infos
}

/// What scripts went through, so that a test can insist on it.
#[derive(Debug, Default)]
struct Seen {
    duplicates: u64,
    retried: u64,
    dead: u64,
    redriven: u64,
    held_up: u64,
    cut: u64,
    nested: u64,
    freed: u64,
    cleaned: u64,
    compacted: u64,
}

struct Run {
    disk: SimulatedDisk,
    config: Config,
    random: Random,
    house: Option<House>,
    claims: Vec<(usize, Claim)>,
    known: Known,
    now: i64,
    next_id: u64,
    boots: u64,
    /// The power goes during this operation.
    cut_at: Option<u64>,
    seen: Seen,
}

impl Run {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let window = random.below(20);
        let disk = SimulatedDisk::new(seed);
        let config = config(window);
        Run {
            disk,
            config,
            random,
            house: None,
            claims: vec![],
            known: Known::new(window),
            now: 1_000,
            next_id: 1_000,
            boots: 0,
            cut_at: None,
            seen: Seen::default(),
        }
    }

    fn operations(&self) -> u64 {
        self.disk.operations()
    }

    /// `None` once the power is off: not everything that fails then stops the queue, but nothing counts.
    fn powered(&self) -> Option<()> {
        self.cut_at.is_none_or(|at| self.operations() < at).then_some(())
    }

    fn house(&mut self) -> &mut House {
        self.house.as_mut().expect("it is open between steps")
    }

    /// `None` when the power goes in the midst of it.
    fn open(&mut self) -> Option<()> {
        let before = self.operations();
        self.boots += 1;
        let house = House::open_with(&self.disk, &self.config, sinks()).ok()?;
        house.time.store(self.now, Ordering::Relaxed);
        self.house = Some(house);
        self.house().try_work()?;
        self.powered()?;
        let now = self.operations();
        let house = self.house.as_ref().expect("just opened");
        self.known.adopt(house, before, now);
        Some(())
    }

    /// One step of a script; `None` when the power goes in the midst of it.
    fn step(&mut self) -> Option<()> {
        match self.random.below(34) {
            0..=6 => self.group(),
            7..=12 => self.claim(),
            13..=18 => self.settle(),
            19 => self.give_back(),
            20..=23 => self.work(),
            24..=25 => self.redrive(),
            26 => self.pause(),
            27 => self.house().committer.mark_idle().ok(),
            28..=29 => self.catch_up(),
            _ => {
                self.jump();
                Some(())
            }
        }
    }

    /// One group of requests.
    fn group(&mut self) -> Option<()> {
        let mut requests: Vec<Vec<u64>> = Vec::new();
        for _ in 0..1 + self.random.below(3) {
            let ids = (0..1 + self.random.below(5)).map(|_| self.id()).collect();
            requests.push(ids);
        }
        let posted = self.operations();
        let house = self.house.as_mut().expect("it is open between steps");
        let mut receipts = Vec::new();
        for ids in &requests {
            receipts.extend(house.post(ids).ok().map(|receipt| (ids, receipt)));
        }
        if self.cut_at.is_some() {
            self.known.unanswered = receipts.iter().map(|(ids, _)| (*ids).clone()).collect();
        }
        let committed = house.committer.commit_pending();
        let told = self.disk.operations();
        for (ids, mut receipt) in receipts {
            match receipt.try_now().expect("a commit answers everyone") {
                Ok(appended) => {
                    let expected = self.known.accept(ids, posted, told);
                    let first = |a: Appended| (a.accepted > 0).then_some(a.first_offset);
                    assert_eq!(
                        (appended.accepted, appended.duplicates, first(appended)),
                        (expected.accepted, expected.duplicates, first(expected))
                    );
                    self.known.unanswered.retain(|unanswered| unanswered != ids);
                    self.seen.duplicates += appended.duplicates;
                }
                Err(Refusal::StorageFailed) => {}
                Err(_) => self.known.unanswered.retain(|unanswered| unanswered != ids),
            }
        }
        committed.ok().map(|_| ())
    }

    /// Some that were accepted before. Near a power loss all are new, so that what is there can be told.
    fn id(&mut self) -> u64 {
        if self.cut_at.is_none() && self.random.coin() {
            return self.random.below(40);
        }
        self.next_id += 1;
        self.next_id
    }

    fn claim(&mut self) -> Option<()> {
        let (sink, events) = (self.random.below(3) as usize, 1 + self.random.below(7) as usize);
        let house = self.house.as_ref().expect("it is open between steps");
        let claim = house.queue.claim_now(SinkId(sink as u16), ClaimLimit { events, ..ALL }).ok()?;
        let is_held_up = house.sink(SinkId(sink as u16)).is_held_up;
        self.seen.held_up += u64::from(is_held_up);
        let known = &mut self.known.sinks[sink];
        let is_free = |at: At, track: &Track| track.at == at && !track.is_held;
        let mut due: Vec<(i64, u64)> = Vec::new();
        for (offset, track) in &known.events {
            if let At::Retrying { due_at, .. } = track.at
                && !track.is_held
                && due_at <= self.now
            {
                due.push((due_at, *offset));
            }
        }
        due.sort_unstable();
        due.truncate(events);
        let mut due: Vec<u64> = due.into_iter().map(|(_, offset)| offset).collect();
        due.sort_unstable();
        let pending = known.events.iter().find(|(_, track)| is_free(At::Pending, track));
        let pending = pending.map(|(offset, _)| *offset);
        let Some(claim) = claim else {
            let is_excused = known.is_paused || (due.is_empty() && (pending.is_none() || is_held_up));
            assert!(is_excused, "{} was given nothing: {due:?} are due, {pending:?} waits", SINKS[sink]);
            return Some(());
        };
        assert!(!known.is_paused, "a paused sink gets nothing");
        let claimed: Vec<u64> = claim.batch.events.iter().map(|event| event.offset).collect();
        assert!(claimed.len() <= events);
        if claim.origin == Origin::FailureTable {
            assert_eq!(claimed, due, "those that are due, the longest first");
        } else {
            let range = range_of(&claim);
            assert!(due.is_empty(), "{due:?} come before the log");
            let there: Vec<u64> = self.known.ids.range(range.clone()).map(|(offset, _)| *offset).collect();
            assert_eq!(claimed, there, "all events of {range:?}");
            assert!(
                claimed.is_empty() || claimed.first() == pending.as_ref(),
                "{claimed:?} before {pending:?}"
            );
        }
        for (index, event) in claim.batch.events.iter().enumerate() {
            assert_eq!(id_of(event.json), self.known.ids[&event.offset]);
            let track = known.events.get_mut(&event.offset).expect("an event that is there");
            let attempts = match track.at {
                At::Retrying { attempts, .. } => attempts,
                At::Pending => 0,
                other => panic!("event {} was handed out, and is {other:?}", event.offset),
            };
            assert_eq!(claim.attempts(index), attempts, "of event {}", event.offset);
            assert!(!std::mem::replace(&mut track.is_held, true), "event {} twice", event.offset);
        }
        self.claims.push((sink, claim));
        Some(())
    }

    fn take_claim(&mut self) -> Option<(usize, Claim)> {
        let at = self.random.below(self.claims.len() as u64) as usize;
        (at < self.claims.len()).then(|| self.claims.swap_remove(at))
    }

    /// What the target says to one event; `None` ends what the worker says about the claim.
    fn fate(&mut self, before: u32) -> Option<(Fate, At)> {
        let attempts = before + 1;
        let reason = "x".repeat(self.random.below(900) as usize);
        Some(match self.random.below(12) {
            0..=4 => (Fate::Delivered, At::Delivered),
            5 => (Fate::Skipped, At::Skipped),
            6 => (Fate::Dropped { reason }, At::Dropped),
            7..=9 => {
                let due_at = self.now + self.random.below(60) as i64 - 20;
                (Fate::Retry { reason, attempts, due_at: Micros(due_at) }, At::Retrying { attempts, due_at })
            }
            10 => (Fate::Dead { reason, attempts }, At::Dead { attempts }),
            _ => return None,
        })
    }

    fn settle(&mut self) -> Option<()> {
        let Some((sink, claim)) = self.take_claim() else { return Some(()) };
        let (mut fates, mut ats) = (Vec::new(), Vec::new());
        for index in 0..claim.batch.events.len() {
            let Some((fate, at)) = self.fate(claim.attempts(index)) else { break };
            fates.push(fate);
            ats.push(at);
        }
        let operations = self.operations();
        let is_from_log = claim.origin != Origin::FailureTable;
        let (parks, events) = (sink > 0, &mut self.known.sinks[sink].events);
        // A claim of the log ends at once unless a row is to be written first, and then as a whole.
        let is_shown = is_from_log && !(parks && ats.iter().any(|at| at.is_row()));
        for (index, event) in claim.batch.events.iter().enumerate() {
            let track = events.get_mut(&event.offset).expect("it was claimed");
            let (at, is_shown) = match ats.get(index) {
                Some(at) if at.is_row() && !parks => (At::Pending, is_shown),
                Some(at) => (*at, is_shown),
                None if is_from_log => (At::Pending, is_shown),
                None => (track.at, true),
            };
            self.seen.retried += u64::from(!is_from_log);
            self.seen.dead += u64::from(matches!(at, At::Dead { .. }));
            track.step(at, operations, is_shown);
        }
        claim.resolve(Resolution { fates: Fates::Each(fates), token: None });
        Some(())
    }

    /// Every sink gets what there is, some claims at a time.
    fn catch_up(&mut self) -> Option<()> {
        for _ in 0..8 {
            for _ in 0..4 {
                self.claim()?;
            }
            while !self.claims.is_empty() {
                self.settle()?;
            }
            self.work()?;
        }
        Some(())
    }

    fn give_back(&mut self) -> Option<()> {
        if let Some((sink, claim)) = self.take_claim() {
            for event in claim.batch.events.iter() {
                self.known.sinks[sink].events.get_mut(&event.offset).expect("it was claimed").is_held = false;
            }
        }
        Some(())
    }

    /// Everything in the background, until all is quiet.
    fn work(&mut self) -> Option<()> {
        self.house().try_work()?;
        self.powered()?;
        let now = self.operations();
        self.known.settle(now);
        self.known.check_rows(self.house.as_ref().expect("it is open"));
        let shared = &self.house().queue.shared;
        let firsts =
            (shared.log.first_offset(), shared.failures.first_offset(), shared.ledger.first_offset());
        self.seen.freed += u64::from(firsts.0 > 0);
        self.seen.cleaned += u64::from(firsts.1 > 0);
        self.seen.compacted += u64::from(firsts.2 > 0);
        Some(())
    }

    fn redrive(&mut self) -> Option<()> {
        self.work()?;
        let (sink, operations, now) = (1 + self.random.below(2) as usize, self.operations(), self.now);
        let action = if self.random.below(3) > 0 { Redrive::Drop } else { Redrive::Retry };
        let events = &mut self.known.sinks[sink].events;
        let (is_all, random) = (self.random.below(3) == 0, &mut self.random);
        let rows = events.iter_mut().filter(|(_, track)| track.at.is_row());
        let mut offsets = Vec::new();
        let mut changed = 0;
        for (offset, track) in rows {
            if is_all || random.coin() {
                offsets.push(*offset);
                if track.is_held {
                    continue; // a worker is trying it
                }
                changed += 1;
                let at = match action {
                    Redrive::Retry => At::Retrying { attempts: 0, due_at: now },
                    Redrive::Drop => At::Dropped,
                };
                track.step(at, operations, false);
            }
        }
        let selection = if is_all { Selection::All } else { Selection::Offsets(offsets) };
        let queue = Arc::clone(&self.house().queue);
        let mut asked = queue.redrive(SinkId(sink as u16), selection, action);
        let mut context = Context::from_waker(Waker::noop());
        assert!(asked.as_mut().poll(&mut context).is_pending());
        self.work()?;
        assert!(
            matches!(asked.as_mut().poll(&mut context), Poll::Ready(Ok(n)) if n == changed),
            "{changed} rows"
        );
        self.seen.redriven += changed;
        Some(())
    }

    fn pause(&mut self) -> Option<()> {
        let (sink, paused) = (self.random.below(3) as usize, self.random.below(3) == 0);
        let queue = Arc::clone(&self.house().queue);
        self.known.sinks[sink].asked = Some(paused);
        let mut asked = queue.set_paused(SinkId(sink as u16), paused);
        let mut context = Context::from_waker(Waker::noop());
        assert!(asked.as_mut().poll(&mut context).is_pending());
        self.work()?;
        assert!(matches!(asked.as_mut().poll(&mut context), Poll::Ready(Ok(()))));
        (self.known.sinks[sink].is_paused, self.known.sinks[sink].asked) = (paused, None);
        Some(())
    }

    /// The clock goes on, or is set, back or forth.
    fn jump(&mut self) {
        self.now += match self.random.below(8) {
            0 => -(self.random.below(5_000) as i64),
            1 => self.random.below(1_000_000) as i64,
            _ => self.random.below(60) as i64,
        };
        let now = self.now;
        self.house().time.store(now, Ordering::Relaxed);
    }

    fn stop(&mut self) -> Option<()> {
        self.claims.clear();
        self.known.give_back_all();
        self.house.take().expect("it is open").try_close()?;
        self.powered()?;
        self.known.settle(self.disk.operations());
        self.open()
    }

    /// SIGKILL: what was claimed comes back, and the page cache stays.
    fn kill(&mut self) -> Option<()> {
        self.claims.clear();
        self.house = None;
        self.open()
    }

    /// The power goes now, and maybe again in the recovery that follows.
    fn lose_power(&mut self) {
        self.claims.clear();
        self.house = None;
        self.cut_at = None;
        self.known.crashed();
        self.disk = self.left(&self.disk.clone());
        while self.random.coin() {
            self.seen.nested += 1;
            let disk = self.disk.kill();
            disk.record();
            // It may end in the midst of what makes durable what it found.
            let house = House::open_with(&disk, &self.config, sinks()).map(|mut house| house.try_work());
            assert!(house.is_ok_and(|worked| worked.is_some()), "recovery never refuses to start");
            let at = disk.at(self.random.below(disk.operations() + 1)).expect("recorded");
            self.disk = self.left(&at);
        }
        self.open().expect("recovery never refuses to start");
    }

    fn left(&mut self, disk: &SimulatedDisk) -> SimulatedDisk {
        match self.random.below(9) {
            0 => disk.kill(),
            policy => disk.power_loss(Policy::ALL[policy as usize - 1], self.random.next_u64()),
        }
    }

    /// The power will go in the midst of the next commit, or of something a little later.
    fn arm(&mut self) -> Option<()> {
        let soon = if self.random.coin() { 3 } else { 25 };
        let at = self.operations() + 1 + self.random.below(soon);
        self.disk.stop_at(at);
        self.cut_at = Some(at);
        self.group()
    }

    /// A script with crashes of all kinds.
    fn crash_on(&mut self) {
        self.open().expect("a new disk");
        for _ in 0..STEPS {
            let choice = self.random.below(40);
            let is_whole = match choice {
                0 => self.stop(),
                1 => self.kill(),
                2 => None,
                3 if self.cut_at.is_none() => {
                    self.seen.cut += 1;
                    self.arm()
                }
                _ => self.step(),
            };
            if is_whole.and(self.powered()).is_none() {
                assert!(self.cut_at.is_some() || choice == 2, "storage failed by itself");
                self.lose_power();
            }
            self.known.check(self.house.as_ref().expect("it is open between steps"));
        }
    }

    /// A script without power losses, on a disk that keeps its state after every operation.
    fn recorded(seed: u64) -> Self {
        let mut run = Run::new(seed);
        run.disk.record();
        run.open().expect("nothing fails");
        for _ in 0..STEPS {
            let is_whole = match run.random.below(40) {
                0 => run.stop(),
                1 => run.kill(),
                _ => run.step(),
            };
            is_whole.expect("nothing fails");
        }
        run.claims.clear();
        run
    }

    /// Brings `disk` up, which went down after `operation`, and checks every promise on it.
    fn check_crashed(&self, disk: &SimulatedDisk, operation: u64, to_the_end: bool) {
        let mut house =
            House::open_with(disk, &self.config, sinks()).expect("recovery never refuses to start");
        house.work();
        let is = self.known.verdict(&house, operation);
        let status = house.status();
        for (number, sink) in status.sinks.iter().enumerate() {
            let count = |wanted: At| is.values().filter(|(_, at)| at[number] == wanted).count() as u64;
            let shown = (sink.pending, sink.delivered, sink.dropped, sink.skipped);
            let expected = (count(At::Pending), count(At::Delivered), count(At::Dropped), count(At::Skipped));
            assert_eq!(shown, expected, "{sink:?}");
            let sum = sink.delivered + sink.dropped + sink.dead + sink.retrying + sink.pending;
            assert_eq!(sum + sink.skipped, is.len() as u64, "the identity: {sink:?}");
        }
        if to_the_end {
            end_well(&mut house, is.len() as u64);
        }
    }
}

/// Everything comes to its end, and the numbers with it.
fn end_well(house: &mut House, events: u64) {
    house.time.store(i64::MAX, Ordering::Relaxed);
    for (sink, name) in (0..).zip(SINKS) {
        if house.sink(SinkId(sink)).state == SinkState::Paused {
            continue;
        }
        let dead = house.sink(SinkId(sink)).dead;
        while let Some(claim) = house.claim(SinkId(sink), ALL) {
            claim.resolve(Resolution::default());
            house.work();
        }
        let shown = house.sink(SinkId(sink));
        assert_eq!((shown.dead, shown.retrying), (dead, 0), "the dead stay dead: {name}, {shown:?}");
        assert!(shown.pending == 0 || shown.is_held_up, "{name} stands still: {shown:?}");
        let sum = shown.delivered + shown.dropped + shown.skipped + shown.dead + shown.pending;
        assert_eq!(sum, events, "{name}: {shown:?}");
    }
}

/// Crashes after every operation of a script, in every way.
pub fn explore(seed: u64, losses: u64, states: &mut CrashStates) {
    let run = Run::recorded(seed);
    for operation in 0..=run.operations() {
        let at = run.disk.at(operation).expect("recorded");
        for (left, what) in states.left(&at, losses) {
            let did = run.disk.describe(operation);
            let place = || format!("queue script {seed}, {what} after operation {operation} ({did})");
            located(place, || run.check_crashed(&left, operation, operation % 8 == 0));
        }
    }
}

/// Runs `check`; a panic in it says where in the exploration it happened.
fn located<T>(place: impl FnOnce() -> String, check: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
        eprintln!("failed: {}", place());
        resume_unwind(panic)
    })
}

/// `0..10`, or one number.
fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("EVENTFLOW_MODEL_SEEDS") else { return 0..10 };
    let number = |text: &str| text.parse::<u64>().expect("EVENTFLOW_MODEL_SEEDS is 7 or 0..10");
    text.split_once("..").map_or_else(|| number(&text)..number(&text) + 1, |(a, b)| number(a)..number(b))
}

#[test]
fn every_number_adds_up_at_every_step_and_after_every_crash() {
    let mut seen = Seen::default();
    for seed in seeds() {
        let mut run = Run::new(seed);
        run.seen = std::mem::take(&mut seen);
        located(|| format!("again by EVENTFLOW_MODEL_SEEDS={seed}"), || run.crash_on());
        seen = run.seen;
    }
    println!("scripts {:?}: {seen:?}", seeds());
    if seeds().end - seeds().start >= 10 {
        let Seen { duplicates, retried, dead, redriven, held_up, cut, nested, freed, cleaned, compacted } =
            seen;
        let all = [duplicates, retried, dead, redriven, held_up, cut, nested, freed, cleaned, compacted];
        assert!(all.iter().all(|times| *times > 0), "the scripts missed a phase");
    }
}

#[test]
fn no_crash_at_any_operation_of_a_random_script_breaks_a_promise() {
    let mut states = CrashStates::default();
    explore(0, 1, &mut states);
    println!("{states}");
}
