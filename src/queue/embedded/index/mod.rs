//! The index over the failure table's log: what a start and a filter would else read all of that log for.
//!
//! ```text
//! row log (the truth) ──► index thread ──► state.sled/     row:   places, standing, last failure, type
//!        ▲                                    │            mark:  applied, anchor, rows, sum
//!        │ read from `applied` on             ▼
//!        └───────── start ◄────────────────  seed
//!        every row that is shown or handed out is read from the row log
//! ```
//!
//! What holds, whatever becomes of the files in `state.sled/`:
//!
//! * It decides nothing and is the only holder of nothing. While the daemon runs, the rows in memory say
//!   which rows there are; an entry only says that a row need *not* be read, because no filter can match
//!   it, and it is asked only when its places are the row's.
//! * A start believes it only when its rows add up to the sum in its mark, when the last record it read
//!   still stands in the row log, when the ledger knows at least as much, and when it agrees with the
//!   ledger on how many rows each sink has. Else the row log is read whole, as if there were none.
//! * It runs behind what durable checkpoints count, so what lies below `applied` is news to nobody.
//! * Nobody waits for it but a start, and that only so long. Nobody asks it with a lock held.
//!
//! Broken, hanging, panicking or failing later, it is moved to `state.sled.broken` (one copy is kept), told
//! once, counted and built anew by its thread; without it everything works and filters read more.

pub(super) mod store;
mod worker;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::log::Log;

use super::codec::Indexed;
use super::rows::Rows;
use store::OpenStore;
use worker::Worker;

/// Times in one life of the daemon that it is set aside and built anew.
const MAX_TROUBLES: u64 = 3;
/// Below this the index never counts as too large.
const LEAST_BYTES: u64 = 64 << 20;
/// Questions that wait for an answer at the same time.
const MAX_ASKS: usize = 8;
/// How long a question waits for its answer; the row log answers as well.
const ANSWER_WITHIN: Duration = Duration::from_millis(200);
/// Most entries one question is answered with.
pub(super) const MAX_ENTRIES: usize = 4096;

/// Where the index is and what it may take.
#[derive(Clone)]
pub(super) struct Place {
    /// Its directory.
    pub dir: PathBuf,
    /// Memory for the library's cache.
    pub cache_bytes: u64,
    /// Above this it is built anew, smaller: sled hardly ever gives room back.
    pub max_bytes: u64,
    /// An opening, or any one call, that takes longer hangs.
    pub deadline: Duration,
    /// Opens what is in the directory.
    pub open: OpenStore,
}

impl Place {
    /// Where the configuration says, kept by sled.
    pub fn of(config: &Config) -> Self {
        Self {
            dir: config.data_dir.join("state.sled"),
            cache_bytes: config.failures.index_cache_bytes,
            max_bytes: config.failures.budget_bytes.max(LEAST_BYTES),
            deadline: config.failures.index_deadline,
            open: Arc::new(store::open_sled),
        }
    }
}

/// What the index knew when it was opened, and may be believed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seed {
    /// It holds what the row log says below this place.
    pub applied: u64,
    /// The rows of each sink.
    pub rows: BTreeMap<String, Rows>,
}

/// A question, or an order.
enum Ask {
    /// The entries of a sink's rows, from one offset to another.
    Entries { sink: String, offsets: (u64, u64), answer: SyncSender<Vec<(u64, Indexed)>> },
    /// It was found to be wrong.
    Distrust(String),
    /// Catch up, sync and end.
    Close,
}

/// What the owner and the worker share.
#[derive(Debug, Default)]
struct Common {
    /// Durable checkpoints count what the row log says below this place.
    counted_end: AtomicU64,
    /// Times it was built from the row log, but for the first time of a new data directory.
    rebuilds: AtomicU64,
    watch: Mutex<Watch>,
}

/// Who the worker is and what it does.
#[derive(Debug, Default)]
struct Watch {
    /// The worker that counts; earlier ones hang or have ended.
    ticket: u64,
    /// Since when it is inside a call.
    busy_since: Option<Instant>,
    /// Times it was set aside.
    troubles: u64,
}

impl Common {
    fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counted_end(&self) -> u64 {
        self.counted_end.load(Ordering::Acquire)
    }

    fn note_rebuild(&self) {
        self.rebuilds.fetch_add(1, Ordering::Relaxed);
    }

    /// A worker enters a call; `false` when it does not count any more.
    fn enter(&self, ticket: u64) -> bool {
        let mut watch = self.watch();
        let counts = watch.ticket == ticket;
        if counts {
            watch.busy_since = Some(Instant::now());
        }
        counts
    }

    /// A worker comes back from a call; `false` when it does not count any more.
    fn leave(&self, ticket: u64) -> bool {
        let mut watch = self.watch();
        let counts = watch.ticket == ticket;
        if counts {
            watch.busy_since = None;
        }
        counts
    }

    /// Notes that the index of a worker has to go: whether another one may be built. `None` when the
    /// worker does not count any more.
    fn note_trouble(&self, ticket: u64) -> Option<bool> {
        let mut watch = self.watch();
        (watch.ticket == ticket).then(|| self.count_trouble(&mut watch))
    }

    fn count_trouble(&self, watch: &mut Watch) -> bool {
        watch.troubles += 1;
        let goes_on = watch.troubles <= MAX_TROUBLES;
        if goes_on {
            self.note_rebuild();
        }
        goes_on
    }
}

/// One line for each time it is set aside.
fn tell(place: &Place, reason: &str, goes_on: bool) {
    let dir = place.dir.display();
    if goes_on {
        tracing::warn!(
            %dir,
            reason,
            "the index of the failure table cannot be used; it is set aside and built anew from the row log"
        );
    } else {
        tracing::warn!(
            %dir,
            reason,
            "the index of the failure table failed again and is left alone until the next start; only \
             filters and the next start take longer"
        );
    }
}

/// The handle to the index; every call comes from any thread and returns soon.
pub(super) struct Index {
    place: Option<Place>,
    log: OnceLock<Log>,
    common: Arc<Common>,
    thread: Mutex<Option<Running>>,
}

/// The thread that keeps it.
struct Running {
    asks: SyncSender<Ask>,
    /// Takes the row log.
    log: SyncSender<Log>,
    /// Gets what the first opening found.
    seed: Receiver<Option<Seed>>,
    /// Its sender is dropped when the thread has ended.
    ended: Receiver<()>,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("common", &self.common).finish_non_exhaustive()
    }
}

impl Index {
    /// Begins to open the index, on its own thread; without a place there is none.
    pub fn open(place: Option<Place>) -> Self {
        let index = Self { place, log: OnceLock::new(), common: Arc::default(), thread: Mutex::new(None) };
        if let Some(place) = &index.place {
            *index.thread() = index.start(place, false);
        }
        index
    }

    /// Says which row log it is over, and waits until it is open, as long as that may take: what it knows,
    /// if it may be believed.
    pub fn recall(&self, log: &Log) -> Option<Seed> {
        let log = self.log.get_or_init(|| log.clone());
        let place = self.place.as_ref()?;
        let thread = self.thread();
        let running = thread.as_ref()?;
        let _ = running.log.try_send(log.clone()); // a thread that has ended sends no seed
        running.seed.recv_timeout(place.deadline).unwrap_or_else(|_| {
            tracing::info!("the index of the failure table takes long to open; the row log is read instead");
            None
        })
    }

    /// Durable checkpoints count what the row log says below this place. Also looks after the thread.
    pub fn follow(&self, counted_end: u64) {
        self.common.counted_end.fetch_max(counted_end, Ordering::AcqRel);
        let Some(place) = &self.place else { return };
        let goes_on = {
            let mut watch = self.common.watch();
            if watch.busy_since.is_none_or(|since| since.elapsed() < place.deadline) {
                return;
            }
            (watch.ticket, watch.busy_since) = (watch.ticket + 1, None);
            self.common.count_trouble(&mut watch)
        };
        tell(place, "it does not answer", goes_on);
        *self.thread() = goes_on.then(|| self.start(place, true)).flatten();
    }

    /// What it knows of a sink's rows from one offset to another: perhaps not all of them, and perhaps
    /// what they were a moment ago.
    pub fn entries(&self, sink: &str, from: u64, to: u64) -> BTreeMap<u64, Indexed> {
        let (answer, entries) = sync_channel(1);
        let asked = self.ask(Ask::Entries { sink: sink.to_owned(), offsets: (from, to), answer });
        let entries = asked.then(|| entries.recv_timeout(ANSWER_WITHIN).ok()).flatten();
        entries.unwrap_or_default().into_iter().collect()
    }

    /// It was found to be wrong, and is built anew.
    pub fn distrust(&self, reason: &str) {
        self.ask(Ask::Distrust(reason.to_owned()));
    }

    /// Times it was built anew.
    pub fn rebuilds(&self) -> u64 {
        self.common.rebuilds.load(Ordering::Relaxed)
    }

    /// Lets it catch up and end, as long as that may take.
    pub fn close(&self) {
        self.ask(Ask::Close);
        self.end();
    }

    fn end(&self) {
        let Some(Running { asks, log, ended, .. }) = self.thread().take() else { return };
        drop((asks, log));
        if let Some(place) = &self.place {
            let _ = ended.recv_timeout(place.deadline); // a thread that hangs ends with the process
        }
    }

    fn ask(&self, ask: Ask) -> bool {
        self.thread().as_ref().is_some_and(|running| running.asks.try_send(ask).is_ok())
    }

    fn thread(&self) -> MutexGuard<'_, Option<Running>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, place: &Place, aside: bool) -> Option<Running> {
        let (asks, asked) = sync_channel(MAX_ASKS);
        let (log, logs) = sync_channel(1);
        let (first, seed) = sync_channel(1);
        let (end, ended) = sync_channel::<()>(1);
        if let Some(known) = self.log.get() {
            let _ = log.try_send(known.clone()); // there is room for one
        }
        let worker = Worker {
            place: place.clone(),
            common: Arc::clone(&self.common),
            asks: asked,
            logs,
            log: OnceCell::new(),
            ticket: self.common.watch().ticket,
        };
        let work = move || {
            worker.run(&first, aside);
            drop(end);
        };
        match thread::Builder::new().name("index".to_owned()).spawn(work) {
            Ok(_) => Some(Running { asks, log, seed, ended }),
            Err(error) => {
                tracing::warn!(%error, "the index of the failure table has no thread; filters take longer");
                None
            }
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        // So that who opens the same directory next does not meet the old thread.
        self.end();
    }
}
