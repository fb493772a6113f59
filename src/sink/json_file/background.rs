//! The thread on which finished files are done: `<sink>-files`.
//!
//! It sleeps until the sink hands a file over, and looks by itself every minute for what has become too
//! old. When the disk fails or is full it says so once, waits and tries again, for as long as it takes;
//! the archive goes on meanwhile. A panic is said and counts as a failure. Closing the sink stops it within a
//! chunk of work; what it had begun is begun anew at the next start.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{error, info, warn};

use crate::event::Micros;

use super::finish::{Desk, Finisher, Step};

/// How often it looks for files that have become too old.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// What is not done this long after an orderly stop began is left for the next start.
const LAST_WORK: Duration = Duration::from_secs(10);
/// How long it waits after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The thread, while it runs. Dropping it stops and joins it.
#[derive(Debug)]
pub(super) struct Background {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    /// Starts it. Without a thread files stay plain and unlisted, which the next start makes up for.
    pub fn start(sink: &str, finisher: Finisher, desk: Arc<Desk>) -> Self {
        let (name, at_work) = (sink.to_owned(), desk.clone());
        let thread = std::thread::Builder::new()
            .name(format!("{sink}-files"))
            .spawn(move || work(&name, finisher, &at_work))
            .inspect_err(|error| {
                error!(sink, %error, "no thread for finished archive files; they stay plain until the next start");
            });
        Self { desk, thread: thread.ok() }
    }
}

impl Background {
    /// Gives it a while to do what there is to do, and stops it.
    pub fn finish(self) {
        if self.thread.is_some() {
            self.desk.wait_for_rest(LAST_WORK);
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.desk.close();
        if let Some(thread) = self.thread.take() {
            // It catches its own panics.
            let _ = thread.join();
        }
    }
}

fn work(sink: &str, mut finisher: Finisher, desk: &Desk) {
    let mut is_failing = false;
    while !desk.is_closed() {
        let step = catch_unwind(AssertUnwindSafe(|| finisher.step(Micros::now())));
        let failure = match step {
            Ok(Ok(Step::Worked)) => continue,
            Ok(Ok(Step::Idle)) => None,
            Ok(Err(failure)) => Some(failure.to_string()),
            Err(_) => Some("a panic; please report this".to_owned()),
        };
        match (&failure, is_failing) {
            (Some(failure), false) => {
                warn!(
                    sink,
                    failure, "finished archive files cannot be compressed or listed now; trying again"
                );
            }
            (None, true) => info!(sink, "finished archive files are compressed and listed again"),
            _ => {}
        }
        is_failing = failure.is_some();
        desk.wait(if is_failing { RETRY_AFTER } else { LOOK_EVERY });
    }
}
