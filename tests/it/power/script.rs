//! What the outside does with the pipeline, and what it was told by when.
//!
//! A script is random but for its phases, so that every run starts, fills the log up to the refusal,
//! resumes, rolls, frees and uses segments again, drains, starts again and is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use eventflow::disk::simulated::Random;
use eventflow::disk::{Disk, SimulatedDisk};
use eventflow::event::{Micros, StoredBatch};
use eventflow::queue::{
    Appended, Claim, Fate, Fates, Queue, Receipt, Refusal, Resolution, SinkId, SinkState,
};

use super::house::{ARCHIVE, House, MIRROR, WINDOW, id_of};

/// 2025-06-14T23:20:00Z: a script lasts an hour or more, so that a date changes within.
const START: i64 = 1_749_943_200_000_000;

/// Batches after which a sink should have everything.
const ROUNDS: usize = 10_000;

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Its events; may name one twice, or one that was accepted before.
    pub ids: Vec<u64>,
    /// Operations done when it was posted.
    pub posted: u64,
    pub accepted_at: Micros,
    /// The 202, and the operations done by then.
    pub answer: Option<(u64, Appended)>,
}

/// Where an acknowledged event is.
#[derive(Debug, Clone, Copy)]
pub struct Home {
    pub offset: u64,
    pub accepted_at: Micros,
    /// Operations done when that was told.
    pub told: u64,
}

/// A pause or a resume that was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Pause {
    pub paused: bool,
    pub asked: u64,
    pub answered: Option<u64>,
}

/// Everything the outside did and was told, each with the operations done by then.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Requests whose fate is acceptance, or unknown. One that was refused is not in here: nothing of
    /// it may ever be seen.
    pub requests: Vec<Request>,
    /// Where acknowledged events are.
    pub homes: BTreeMap<u64, Home>,
    /// Offset to event, for everything that was handed to any sink.
    pub shown: BTreeMap<u64, (u64, u64)>,
    /// Offsets the mirror is done with.
    pub mirrored: BTreeMap<u64, u64>,
    /// Of the archive and of the mirror.
    pub pauses: [Vec<Pause>; 2],
    /// After which operations a process had stopped in order.
    pub stops: Vec<u64>,
    pub next_id: u64,
    pub now: Micros,
}

impl History {
    /// What was known after `operation`. On the next disk, that was before its first one.
    pub fn until(&self, operation: u64) -> History {
        let until = |at: u64| (at <= operation).then_some(0);
        let mut cut = self.clone();
        cut.requests.retain(|request| request.posted <= operation);
        for request in &mut cut.requests {
            request.posted = 0;
            request.answer = request.answer.and_then(|(at, answer)| Some((until(at)?, answer)));
        }
        cut.homes.retain(|_, home| until(std::mem::take(&mut home.told)).is_some());
        cut.shown.retain(|_, (_, at)| until(std::mem::take(at)).is_some());
        cut.mirrored.retain(|_, at| until(std::mem::take(at)).is_some());
        for pause in &mut cut.pauses {
            pause.retain(|pause| pause.asked <= operation);
            pause.iter_mut().for_each(|pause| {
                pause.asked = 0;
                pause.answered = pause.answered.and_then(until);
            });
        }
        // Any later operation is the next process's.
        cut.stops = if self.stops.contains(&operation) { vec![0] } else { vec![] };
        cut
    }

    /// Nothing was written since an orderly stop.
    pub fn is_stopped(&self) -> bool {
        self.stops.contains(&0)
    }

    /// Below this no offset may be given again.
    pub fn promised_end(&self) -> u64 {
        let told = self.homes.values().map(|home| home.offset + 1).max().unwrap_or(0);
        told.max(self.shown.keys().next_back().map_or(0, |offset| offset + 1))
    }

    /// What a sink's pause may be now: what was answered last, or what was asked since.
    pub fn may_be_paused(&self, sink: SinkId) -> BTreeSet<bool> {
        let pauses = &self.pauses[usize::from(sink.0)];
        let settled = pauses.iter().rposition(|pause| pause.answered.is_some());
        let mut may: BTreeSet<bool> =
            pauses[settled.unwrap_or(0)..].iter().map(|pause| pause.paused).collect();
        if settled.is_none() {
            may.insert(false);
        }
        may
    }

    /// Requests whose fate is unknown, and that were not asked again since.
    pub fn unanswered(&self) -> Vec<Vec<u64>> {
        let is_answered =
            |ids: &[u64]| self.requests.iter().any(|request| request.answer.is_some() && request.ids == ids);
        let mut open: Vec<Vec<u64>> = Vec::new();
        for request in self.requests.iter().filter(|request| !is_answered(&request.ids)) {
            if !open.contains(&request.ids) {
                open.push(request.ids.clone());
            }
        }
        open
    }

    /// Takes note of an answer.
    fn accepted(&mut self, number: usize, appended: Appended, at: u64) {
        let request = &mut self.requests[number];
        request.answer = Some((at, appended));
        let mut offset = appended.first_offset;
        if appended.accepted > 0 {
            let (ids, accepted_at) = (request.ids.clone(), request.accepted_at);
            for id in ids {
                self.homes.entry(id).or_insert_with(|| {
                    offset += 1;
                    Home { offset: offset - 1, accepted_at, told: at }
                });
            }
            assert_eq!(offset - appended.first_offset, appended.accepted, "as many as are new");
        }
        let all = self.requests[number].ids.len() as u64;
        assert_eq!(appended.accepted + appended.duplicates, all, "each event is one or the other");
    }

    fn show(&mut self, events: &StoredBatch, at: u64) {
        for event in events.iter() {
            let id = id_of(event.json);
            let (before, _) = *self.shown.entry(event.offset).or_insert((id, at));
            assert_eq!(before, id, "offset {} was another event's", event.offset);
        }
    }
}

/// What a script went through, so that a test can insist on it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub full: u64,
    pub preparing: u64,
    pub duplicates: u64,
    pub reused: u64,
}

/// The outside, and a pipeline on a disk.
pub struct Run {
    pub disk: SimulatedDisk,
    pub history: History,
    pub seen: Seen,
    pub house: Option<House>,
    through: Arc<dyn Disk>,
    random: Random,
    /// Posted and not answered yet: the number of the request.
    waiting: Vec<(usize, Receipt)>,
    /// Refused; sent again later.
    refused: Vec<Vec<u64>>,
}

impl Run {
    /// Goes on where `history` stands, on `disk`, which the pipeline sees as `through`.
    pub fn on(disk: &SimulatedDisk, through: Arc<dyn Disk>, history: History, seed: u64) -> Run {
        Run {
            disk: disk.clone(),
            history,
            seen: Seen::default(),
            house: None,
            through,
            random: Random::new(seed),
            waiting: vec![],
            refused: vec![],
        }
    }

    /// A whole script on a new disk.
    pub fn script(seed: u64, through: impl Fn(&SimulatedDisk) -> Arc<dyn Disk>) -> Run {
        let disk = SimulatedDisk::new(seed);
        disk.record();
        let history = History { now: Micros(START), ..History::default() };
        let mut run = Run::on(&disk, through(&disk), history, seed);
        run.start();
        run.steps(24);
        run.fill_up();
        run.steps(20);
        run.drain();
        run.start();
        run.steps(24);
        run.kill();
        run.start();
        run.ask_again();
        run.steps(24);
        run.drain();
        run
    }

    fn now(&self) -> u64 {
        self.disk.operations()
    }

    pub fn house(&mut self) -> &mut House {
        self.house.as_mut().expect("a process runs")
    }

    /// Starts on files that were damaged while no process ran.
    pub fn start_damaged(&mut self) {
        let salts = self.random.next_u64();
        self.house = Some(House::open_damaged(Arc::clone(&self.through), salts, self.history.now));
    }

    pub fn start(&mut self) {
        let salts = self.random.next_u64();
        self.house = Some(House::open(Arc::clone(&self.through), salts, self.history.now));
    }

    /// SIGKILL: whatever is under way is gone, answers included.
    pub fn kill(&mut self) {
        self.house = None;
        self.waiting.clear();
    }

    pub fn steps(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step();
        }
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..=6 => self.post_something(),
            7..=9 => self.commit(),
            10..=12 => {
                self.deliver();
            }
            13..=14 => {
                self.mirror();
            }
            15 => self.house().committer.mark_idle().expect("the disk works"),
            16..=17 => {
                self.house().ledger.step().expect("the disk works");
            }
            _ => {
                self.house().stock.step();
            }
        }
    }

    /// A request of new events, of such that were accepted before, or of both; now and then one twice.
    fn post_something(&mut self) {
        let mut ids: Vec<u64> = Vec::new();
        for _ in 0..[1, 1, 1, 2, 4][self.random.below(5) as usize] {
            ids.push(self.history.next_id);
            self.history.next_id += 1;
        }
        let end = self.history.promised_end();
        // What waits for its commit moves the window on as well.
        let lately = |home: &Home| home.offset + WINDOW > end + 32;
        let known: Vec<u64> =
            self.history.homes.iter().filter(|(_, home)| lately(home)).map(|(id, _)| *id).collect();
        match self.random.below(6) {
            0 if !known.is_empty() => ids = vec![known[self.random.below(known.len() as u64) as usize]],
            1 if !known.is_empty() => ids.insert(0, known[self.random.below(known.len() as u64) as usize]),
            2 => ids.push(ids[0]),
            _ => {}
        }
        self.post(ids);
    }

    /// Posts a request; `false` when it is refused at once.
    pub fn post(&mut self, ids: Vec<u64>) -> bool {
        if self.waiting.len() > 3 {
            self.commit();
        }
        self.history.now.0 += self.random.below(240) as i64 * 1_000_000;
        let (posted, accepted_at) = (self.now(), self.history.now);
        match self.house().post(&ids, accepted_at) {
            Ok(receipt) => {
                self.waiting.push((self.history.requests.len(), receipt));
                self.history.requests.push(Request { ids, posted, accepted_at, answer: None });
                true
            }
            Err(refusal) => {
                self.refuse(ids, &refusal);
                false
            }
        }
    }

    fn refuse(&mut self, ids: Vec<u64>, refusal: &Refusal) {
        match refusal {
            Refusal::WalFull => self.seen.full += 1,
            Refusal::Overloaded => self.seen.preparing += 1,
            other => panic!("refused: {other}"),
        }
        self.refused.push(ids);
    }

    pub fn commit(&mut self) {
        for (_, receipt) in &mut self.waiting {
            assert_eq!(receipt.try_now(), None, "nothing is accepted before the sync");
        }
        self.house().committer.commit_pending().expect("the disk works");
        self.hear();
    }

    /// Commits on a disk that may fail; whether it worked. Whoever was told 202 counts as told.
    #[cfg(feature = "planted")]
    pub fn try_commit(&mut self) -> bool {
        let works = self.house().committer.commit_pending().is_ok();
        if works {
            self.hear();
        }
        works
    }

    /// Takes the answers that are there now.
    fn hear(&mut self) {
        let at = self.now();
        let mut gone = Vec::new();
        for (number, mut receipt) in std::mem::take(&mut self.waiting) {
            match receipt.try_now().expect("a commit answers everyone") {
                Ok(appended) => {
                    self.seen.duplicates += appended.duplicates;
                    self.history.accepted(number, appended, at);
                }
                Err(refusal) => {
                    self.refuse(self.history.requests[number].ids.clone(), &refusal);
                    gone.push(number);
                }
            }
        }
        gone.into_iter().rev().for_each(|number| {
            self.history.requests.remove(number);
        });
    }

    /// The archive's worker: one batch; `false` when there is none. Now and then it forgets to say so.
    pub fn deliver(&mut self) -> bool {
        let (events, bytes) = (1 + self.random.below(6) as usize, 600 + self.random.below(4000) as usize);
        let Some(claim) = self.house().claim(ARCHIVE, events, bytes) else { return false };
        let at = self.now();
        self.history.show(&claim.batch.events, at);
        let resolution = self.house().archive(&claim.batch);
        match self.random.below(8) {
            0 => drop(claim),
            _ => claim.resolve(resolution),
        }
        true
    }

    /// The mirror's workers: up to three batches at a time, finished in any order.
    pub fn mirror(&mut self) -> bool {
        let events = 1 + self.random.below(5) as usize;
        let claim = self.house().claim(MIRROR, events, 4000);
        let is_claimed = claim.is_some();
        if let Some(claim) = claim {
            let at = self.now();
            self.history.show(&claim.batch.events, at);
            self.house().in_flight.push(claim);
        }
        let held = self.house().in_flight.len() as u64;
        if held > 0 && (held > 2 || !is_claimed || self.random.coin()) {
            let which = self.random.below(held) as usize;
            let claim = self.house().in_flight.swap_remove(which);
            let (outcome, at) = (self.random.below(8), self.now());
            finish(&mut self.history, claim, outcome, at);
        }
        is_claimed || held > 0
    }

    pub fn pause(&mut self, sink: SinkId, paused: bool) {
        let asked = self.now();
        self.history.pauses[usize::from(sink.0)].push(Pause { paused, asked, answered: None });
        self.house().pause(sink, paused);
        let answered = Some(self.now());
        let pause = self.history.pauses[usize::from(sink.0)].last_mut();
        pause.expect("just asked").answered = answered;
    }

    /// Sets every sink going that is paused.
    pub fn resume(&mut self) {
        for (sink, id) in self.house().queue.status().sinks.iter().zip([ARCHIVE, MIRROR]) {
            if sink.state == SinkState::Paused {
                assert!(self.house().claim(id, 1, 1).is_none(), "a paused sink gets nothing");
                self.pause(id, false);
            }
        }
    }

    /// Pauses a sink, posts until the log is full, resumes, and has everything delivered.
    fn fill_up(&mut self) {
        self.commit();
        self.pause(ARCHIVE, true);
        let full = self.seen.full;
        for posted in 0.. {
            if self.seen.full > full {
                break;
            }
            assert!(posted < ROUNDS, "it never fills up: {:?}", self.house().queue.status());
            self.post_something();
            self.commit();
            self.house().settle();
            self.deliver_all();
        }
        assert!(!self.deliver(), "a paused sink gets nothing");
        self.house().settle();
        let ids = self.refused.pop().expect("refused just now");
        assert!(!self.post(ids), "the other sink's progress frees nothing");
        self.pause(ARCHIVE, false);
        let before = self.house().queue.status().first_offset;
        self.deliver_all();
        self.house().settle();
        self.seen.reused += u64::from(self.house().queue.status().first_offset > before);
        for ids in std::mem::take(&mut self.refused) {
            assert!(self.post(ids), "room again");
            self.commit();
            self.house().settle();
        }
    }

    /// Has every sink get everything. Bounded: what goes round in circles is a failure.
    pub fn deliver_all(&mut self) {
        let rounds = (0..ROUNDS).take_while(|_| self.deliver()).count();
        let more = (0..ROUNDS).take_while(|_| self.mirror()).count();
        assert!(rounds < ROUNDS && more < ROUNDS, "it never ends: {:?}", self.house().queue.status());
    }

    /// Posts again what got no answer, as a careful client does.
    pub fn ask_again(&mut self) {
        for ids in self.history.unanswered() {
            // Room, and a spare, so that it is not refused.
            self.deliver_all();
            self.house().settle();
            assert!(self.post(ids), "there is room");
            self.commit();
        }
    }

    /// An orderly stop, in the daemon's order, with requests and batches under way.
    pub fn drain(&mut self) {
        self.post_something();
        let under_way = self.house().claim(ARCHIVE, 3, 4000);
        self.house().queue.begin_drain();
        self.house().queue.close_appends();
        self.commit();
        if let Some(claim) = under_way {
            let at = self.now();
            self.history.show(&claim.batch.events, at);
            let resolution = self.house().archive(&claim.batch);
            claim.resolve(resolution);
        }
        for claim in std::mem::take(&mut self.house().in_flight) {
            let at = self.now();
            finish(&mut self.history, claim, 1, at);
        }
        self.house.take().expect("a process runs").stop();
        self.history.stops.push(self.now());
    }
}

/// What the mirror does with a batch: it has it, does not want it, or forgets to say.
fn finish(history: &mut History, claim: Claim, outcome: u64, at: u64) {
    if outcome == 0 {
        return; // dropped, so it goes back
    }
    for event in claim.batch.events.iter() {
        history.mirrored.entry(event.offset).or_insert(at);
    }
    let fate = |at: usize| match at % 3 {
        0 => Fate::Delivered,
        1 => Fate::Skipped,
        _ => Fate::Dropped { reason: "not wanted".to_owned() },
    };
    let fates = match outcome {
        1 => Fates::Each((0..claim.batch.events.len()).map(fate).collect()),
        _ => Fates::AllDelivered,
    };
    claim.resolve(Resolution { fates, token: None });
}
