//! The same under a model checker, which runs every thread of a test on one, a step at a time.
//!
//! What std has the checker has too, but that a wait with a timeout never times out there: a wake-up that is lost shows as a
//! deadlock and is not made good half a second later. tokio's own cells (`Notify`, `oneshot`, `watch`) stay tokio's:
//! each of their calls is one step, right by assumption; what is explored is the order in which they are called.
//! Timers ring when the checker's random numbers say so, whatever their durations.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::sync::{LockResult, PoisonError};
use std::time::Duration;

use shuttle::future::{spawn, yield_now};
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

pub use shuttle::sync::atomic::{AtomicBool, AtomicU64};
pub use shuttle::sync::{Mutex, MutexGuard};

const SEED: u64 = 0x5eed;

/// Runs a scenario under so many schedules, half of them with any thread next, half with few and long turns; panics
/// with the first that does not end well.
pub fn explore(schedules: usize, scenario: fn()) {
    let explored = run(schedules, scenario, FailurePersistence::Print);
    println!("{explored} schedules explored from seed {SEED:#x}");
}

/// Whether one of so many schedules does not end well.
#[cfg(feature = "planted")]
pub fn finds(schedules: usize, scenario: fn()) -> bool {
    std::panic::catch_unwind(|| run(schedules, scenario, FailurePersistence::None)).is_err()
}

fn run(schedules: usize, scenario: fn(), failure: FailurePersistence) -> usize {
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.max_steps = MaxSteps::FailAfter(100_000);
    config.silence_warnings = true;
    config.failure_persistence = failure;
    if let Ok(schedule) = std::env::var("EVENTFLOW_SCHEDULE") {
        return Runner::new(ReplayScheduler::new_from_encoded(&schedule), config).run(scenario);
    }
    let half = schedules / 2;
    let schedulers: [Box<dyn Scheduler + Send>; 2] = [
        Box::new(RandomScheduler::new_from_seed(SEED, half)),
        Box::new(PctScheduler::new_from_seed(SEED, 3, half)),
    ];
    schedulers.into_iter().map(|scheduler| Runner::new(scheduler, config.clone()).run(scenario)).sum()
}

/// One step in which another thread may come first.
fn step(place: &AtomicBool) {
    place.load(Ordering::SeqCst);
}

fn one_in(n: u32) -> bool {
    thread_rng().gen_ratio(1, n)
}

/// The checker's, whose waits end at once or when somebody wakes them.
#[derive(Debug, Default)]
pub struct Condvar(shuttle::sync::Condvar);

impl Condvar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.0.wait(guard)
    }

    pub fn wait_timeout<'a, T>(&self, guard: MutexGuard<'a, T>, time: Duration) -> Waited<'a, T> {
        let mut once = true;
        self.wait_timeout_while(guard, time, |_| std::mem::take(&mut once))
    }

    pub fn wait_timeout_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        time: Duration,
        condition: impl FnMut(&mut T) -> bool,
    ) -> Waited<'a, T> {
        let waited = if time.is_zero() { Ok(guard) } else { self.0.wait_while(guard, condition) };
        waited.map(|guard| (guard, ())).map_err(|poisoned| PoisonError::new((poisoned.into_inner(), ())))
    }

    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

type Waited<'a, T> = LockResult<(MutexGuard<'a, T>, ())>;

/// tokio's, with a step before each call that wakes.
#[derive(Debug, Default)]
pub struct Notify {
    cell: tokio::sync::Notify,
    place: AtomicBool,
}

impl Notify {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn notified(&self) -> tokio::sync::futures::Notified<'_> {
        step(&self.place);
        self.cell.notified()
    }

    pub fn notify_one(&self) {
        step(&self.place);
        self.cell.notify_one();
    }

    pub fn notify_waiters(&self) {
        step(&self.place);
        self.cell.notify_waiters();
    }
}

/// A moment, since which as much time has passed as the checker wants.
#[derive(Debug, Clone, Copy)]
pub struct Instant;

impl Instant {
    pub fn now() -> Self {
        Self
    }

    pub fn elapsed(&self) -> Duration {
        if one_in(4) { Duration::from_secs(1) } else { Duration::ZERO }
    }
}

/// Rings after some steps of others, at least one.
pub async fn sleep(_: Duration) {
    loop {
        yield_now().await;
        if one_in(2) {
            return;
        }
    }
}

/// Every other one never runs out: nobody may rely on it to be woken.
pub async fn timeout<T>(duration: Duration, what: impl Future<Output = T>) -> Result<T, ()> {
    let what = pin!(what);
    if one_in(2) {
        return Ok(what.await);
    }
    tokio::select! {
        biased;
        done = what => Ok(done),
        () = sleep(duration) => Err(()),
    }
}

/// On a thread of its own. A panic there ends the whole test, so this never fails.
pub fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Pin<Box<dyn Future<Output = Result<T, Never>> + Send>> {
    let thread = spawn(async { work() });
    Box::pin(async { Ok(thread.await.expect("nobody aborts it")) })
}

/// How a thread ends in vain that cannot.
#[derive(Debug)]
pub enum Never {}

impl Never {
    pub fn try_into_panic(self) -> Result<Box<dyn Any + Send>, Self> {
        match self {}
    }
}

impl fmt::Display for Never {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}
