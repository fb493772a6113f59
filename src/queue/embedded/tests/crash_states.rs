//! A million crash states, counted: scripts of the log and of the queue, each crashed after every operation
//! in every way, on all cores.
//!
//! `.ci/crash-states` runs it, in a build of its own profile, until so many different states of the disk have
//! been opened and checked: `EVENTFLOW_CRASH_STATES` (default 1,000,000). `EVENTFLOW_CRASH_SCRIPT=queue:7` has one
//! script again. A state counts once, however many ways lead to it.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use crate::disk::simulated::CrashStates;
use crate::log::power_loss;

use super::model;

/// Seeds that each random way of losing power has.
const LOSSES: u64 = 8;

/// Of so many scripts one is the queue's: it takes forty times as long as one of the log, and so both get about
/// the same time.
const ONE_OF_THE_QUEUE: u64 = 32;

/// Scripts explored and under way, for all threads.
struct Exploration {
    goal: u64,
    next: AtomicU64,
    log: Mutex<CrashStates>,
    queue: Mutex<CrashStates>,
}

impl Exploration {
    fn distinct(&self) -> u64 {
        [&self.log, &self.queue].into_iter().map(|states| states.lock().unwrap().distinct()).sum()
    }

    /// Takes script after script until there are enough states.
    fn run(&self) {
        while self.distinct() < self.goal {
            let number = self.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let (kind, states) = match number % ONE_OF_THE_QUEUE {
                0 => ("queue", &self.queue),
                _ => ("log", &self.log),
            };
            let found = explore(kind, number);
            states.lock().unwrap().merge(found);
        }
    }
}

fn explore(kind: &str, seed: u64) -> CrashStates {
    let mut states = CrashStates::default();
    match kind {
        "log" => power_loss::explore(seed, LOSSES, &mut states),
        "queue" => model::explore(seed, LOSSES, &mut states),
        other => panic!("EVENTFLOW_CRASH_SCRIPT is log:7 or queue:7, not of {other}"),
    }
    states
}

#[test]
#[ignore = "minutes; run by .ci/crash-states"]
fn no_crash_state_of_a_million_breaks_a_promise() {
    if let Ok(script) = std::env::var("EVENTFLOW_CRASH_SCRIPT") {
        let (kind, seed) = script.split_once(':').expect("EVENTFLOW_CRASH_SCRIPT is log:7 or queue:7");
        return println!("{script}: {}", explore(kind, seed.parse().expect("a number")));
    }
    let goal =
        std::env::var("EVENTFLOW_CRASH_STATES").map_or(1_000_000, |goal| goal.parse().expect("a number"));
    let states = || Mutex::new(CrashStates::default());
    let all = Exploration { goal, next: AtomicU64::new(0), log: states(), queue: states() };
    let begun = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(|| all.run()))));
    let scripts = all.next.into_inner();
    println!("log: {}", all.log.into_inner().unwrap());
    println!("queue: {}", all.queue.into_inner().unwrap());
    println!(
        "{goal} or more different crash states, seeds 0..{scripts}, {:.0} s on {threads} threads; one script again by EVENTFLOW_CRASH_SCRIPT=queue:32 .ci/crash-states",
        begun.elapsed().as_secs_f64(),
    );
}
