//! Opening: what the ledger remembers, what the event log holds, and how the two fit together.
//!
//! ```text
//! ledger recovered and replayed ─► event log recovered, told what is known to be durable
//!        ─► what was found is written to the ledger and synced ─► only then: claims and appends
//! ```
//!
//! A crash anywhere in between leads to the same verdict again (rule R9). Runs on the caller's thread
//! and blocks; takes no longer for a longer backlog. A damaged ledger, a missing one, or a ring that
//! cannot be read is never a reason not to start: it costs redelivery, or forgets old duplicates.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Config;
use crate::disk::Disk;
use crate::log::{self, Entropy, Log, LogError, ReadError, Recovered, Report, Stock, Stream};
use crate::queue::{QueueError, SinkInfo};
use crate::sink::Resume;

use super::EmbeddedQueue;
use super::codec::{Checkpoint, Record};
use super::commit::Committer;
use super::dedupe::Dedupe;
use super::dropped::Dropped;
use super::failures;
use super::feed::Feed;
use super::index::{Index, Place};
use super::ledger::{self, Clock, Ledger, Memory, Parts};
use super::order::Order;
use super::ranges::RangeSet;
use super::ring::{self, Ring};
use super::rows::record_cost;
use super::settle::{ROW_OVERHEAD_BYTES, Tally};
use super::state::{Fixed, MAX_CHECKPOINT_RANGES, Shared, SinkProgress, State, TableRoom};
use super::table::{self, Table, Told};
use super::window::Window;

/// Files the ledger may take: two in use, the rest for a snapshot that needs more than one.
const LEDGER_SEGMENTS: u64 = 16;
/// Files the failure table's budget is divided into, as far as its events are small enough.
const FAILURE_SEGMENTS: u64 = 16;
/// The failure table's directory, beside the ledger's own files.
const FAILURES_DIR: &str = "failures";
/// What else is in the ledger's directory.
const LEDGER_NEIGHBOURS: [&str; 3] = [ring::NAMES[0], ring::NAMES[1], FAILURES_DIR];
/// Tags read at once while filling the dedupe window.
const READ_TAGS: usize = 2048;

/// An opened queue and the parts that want a thread or a task of their own.
#[derive(Debug)]
pub struct Opened {
    /// What everybody else talks to.
    pub queue: Arc<EmbeddedQueue>,
    /// The task of the ingest runtime: [`Committer::run`].
    pub committer: Committer,
    /// A thread: [`Ledger::run`].
    pub ledger: Ledger,
    /// A thread: [`Stock::run`], for the event log.
    pub stock: Stock,
    /// Where each configured sink goes on, in order.
    pub resumes: Vec<Resume>,
    /// What recovery found in the event log.
    pub wal_report: Report,
    /// What recovery found in the ledger.
    pub ledger_report: Report,
}

/// The queue cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The event log cannot be recovered.
    #[error("the event log cannot be opened: {0}")]
    Wal(#[source] LogError),
    /// The ledger cannot be recovered.
    #[error("the ledger cannot be opened: {0}")]
    Ledger(#[source] LogError),
    /// The failure table cannot be recovered.
    #[error("the failure table cannot be opened: {0}")]
    Failures(#[source] LogError),
    /// The failure table cannot be read.
    #[error("the failure table cannot be read: {0}; check the disk, then start again")]
    ReplayRows(#[source] ReadError),
    /// A row of the failure table cannot be read.
    #[error("the failure table cannot be read: {0}; check the disk, then start again")]
    Rows(#[source] QueueError),
    /// The ledger cannot be read.
    #[error("the ledger cannot be read: {0}; check the disk, then start again")]
    Replay(#[source] ReadError),
    /// What recovery found cannot be written down.
    #[error("the findings of the recovery cannot be written: {0}")]
    Write(#[source] QueueError),
}

/// Opens the queue in `config.data_dir` for these sinks. `entropy` gives salts and hash seeds.
pub fn open(
    disk: Arc<dyn Disk>,
    config: &Config,
    sinks: Vec<SinkInfo>,
    entropy: Entropy,
    clock: Clock,
) -> Result<Opened, OpenError> {
    let index = disk.is_native().then(|| Place::of(config));
    open_with(disk, config, sinks, entropy, clock, index)
}

/// The same, with the failure table's index in a place of its own or nowhere.
pub(super) fn open_with(
    disk: Arc<dyn Disk>,
    config: &Config,
    sinks: Vec<SinkInfo>,
    entropy: Entropy,
    clock: Clock,
    index: Option<Place>,
) -> Result<Opened, OpenError> {
    let index = Index::open(index); // takes its time while the rest is recovered
    let entropy = Arc::new(Mutex::new(entropy));
    let now = clock().0;

    let ledger = log::recover(disk.clone(), ledger_options(config), 0, share(&entropy), now)
        .map_err(OpenError::Ledger)?;
    let (memory, left_out) = ledger::replay_log(&ledger.log).map_err(OpenError::Replay)?;
    let is_damaged = left_out > 0 || !ledger.report.damage.is_empty();

    let ring = open_ring(&*disk, config);
    // Tags come into the ring only once they are durable, so its end speaks for the log as well.
    let known_durable = memory.durable_end.max(ring.as_ref().map_or(0, Ring::end));
    let wal = log::recover(disk.clone(), wal_options(config), known_durable, share(&entropy), now)
        .map_err(OpenError::Wal)?;

    let dedupe = fill_window(&wal.log, config.wal.dedupe_window, ring.as_ref(), share(&entropy));
    let ledger_dir = ledger_options(config).dir;
    let mut feed = Feed::new(disk.clone(), ledger_dir, config.wal.dedupe_window, wal.log.clone(), ring);
    feed.step(); // makes a ring where there is none of this window; the rest follows in the background

    let options = failures_options(config);
    let segments = options.budget_bytes / options.segment_bytes;
    let room = table_room(config, &options, &sinks);
    let (failures, mut told) = open_table(disk, options, &memory, &index, is_damaged, share(&entropy), now)?;
    let rows_end = failures.log.next_offset();

    let mut state = restore(&memory, &wal, &sinks, &mut told, rows_end, is_damaged);
    let (gone, gone_changed) = gone_sinks(&memory, &told, &sinks, rows_end);
    state.gone_rows = told.into_iter().map(|(name, told)| (name, told.rows)).collect();
    let resumes = state.sinks.iter().map(resume).collect();
    let fixed = Fixed {
        log: wal.log,
        ledger: ledger.log.clone(),
        failures: failures.log,
        index,
        room,
        clock: Arc::clone(&clock),
        infos: sinks,
        max_waiting_bytes: config.http.max_waiting_bytes,
        max_wait: config.http.max_wait,
    };
    let shared = Arc::new(Shared::new(fixed, state));
    failures::link_rows(&shared).map_err(OpenError::Rows)?;
    let table =
        Table::new(Arc::clone(&shared), failures.writer, failures.stock, Arc::clone(&clock), segments);
    let mut ledger_owner = Ledger::new(Parts {
        shared: Arc::clone(&shared),
        log: ledger.log,
        writer: ledger.writer,
        stock: ledger.stock,
        table,
        feed,
        clock,
        interval: config.ledger.checkpoint_interval,
        gone,
        gone_changed,
    });
    // R9: nothing is claimed or accepted before this is durable. Without room on the disk the ledger's
    // thread tries again, and the queue refuses meanwhile.
    ledger_owner.step().map_err(OpenError::Write)?;

    Ok(Opened {
        queue: Arc::new(EmbeddedQueue::new(Arc::clone(&shared))),
        committer: Committer::new(shared, wal.writer, dedupe, config.wal.idle_marker),
        ledger: ledger_owner,
        stock: wal.stock,
        resumes,
        wal_report: wal.report,
        ledger_report: ledger.report,
    })
}

/// Opens the failure table's log and its index: what they hold of each sink.
fn open_table(
    disk: Arc<dyn Disk>,
    options: log::Options,
    memory: &Memory,
    index: &Index,
    is_damaged: bool,
    entropy: Entropy,
    now: i64,
) -> Result<(Recovered, BTreeMap<String, Told>), OpenError> {
    let rows_known = memory.checkpoints.values().map(|checkpoint| checkpoint.rows_end).max().unwrap_or(0);
    let failures = log::recover(disk, options, rows_known, entropy, now).map_err(OpenError::Failures)?;
    let seed = index.recall(&failures.log);
    // Damage is to be found now, by reading everything, and not when a row is asked for.
    let seed = seed.filter(|_| !is_damaged && failures.report.damage.is_empty());
    let told =
        table::recall(&failures.log, &memory.checkpoints, index, seed).map_err(OpenError::ReplayRows)?;
    Ok((failures, told))
}

/// Where the event log is and what it may take; `wal inspect` and `wal verify` use the same.
pub fn wal_options(config: &Config) -> log::Options {
    log::Options {
        dir: config.data_dir.join("wal"),
        quarantine_dir: quarantine_dir(config),
        stream: Stream::Events,
        segment_bytes: config.wal.segment_bytes,
        budget_bytes: config.wal.budget_bytes,
        spares: config.wal.spares,
        min_free_disk_bytes: config.wal.min_free_disk_bytes,
        owners_files: &[],
    }
}

/// Where the ledger is and what it may take. It may use the room that `min_free_disk` keeps from
/// others: a checkpoint is what frees space.
pub fn ledger_options(config: &Config) -> log::Options {
    log::Options {
        dir: config.data_dir.join("ledger"),
        quarantine_dir: quarantine_dir(config),
        stream: Stream::Ledger,
        segment_bytes: config.ledger.segment_bytes,
        budget_bytes: config.ledger.segment_bytes * LEDGER_SEGMENTS,
        spares: 1,
        min_free_disk_bytes: 0,
        owners_files: &LEDGER_NEIGHBOURS,
    }
}

/// Where the failure table's log is and what it may take. Like the ledger it may use the room that
/// `min_free_disk` keeps from others: only a durable row frees the segment its event is in.
pub fn failures_options(config: &Config) -> log::Options {
    let budget_bytes = config.failures.budget_bytes;
    let even = budget_bytes / FAILURE_SEGMENTS / 4096 * 4096;
    let segment_bytes = even.max(config.least_failure_segment());
    log::Options {
        dir: config.data_dir.join("ledger").join(FAILURES_DIR),
        quarantine_dir: quarantine_dir(config),
        stream: Stream::Failures,
        segment_bytes,
        // Two are what any log needs; only a daemon whose sinks never park may have so small a budget.
        budget_bytes: budget_bytes.max(2 * segment_bytes),
        spares: 1,
        min_free_disk_bytes: 0,
        owners_files: &[],
    }
}

/// What the failure table has room for. Each sink that parks events gets the same share.
fn table_room(config: &Config, options: &log::Options, sinks: &[SinkInfo]) -> TableRoom {
    let row = record_cost(config.http.max_event_bytes + ROW_OVERHEAD_BYTES);
    let total = table::capacity(options.budget_bytes / options.segment_bytes, options.segment_bytes, row);
    let parking = sinks.iter().filter(|info| info.parks).count().max(1) as u64;
    TableRoom { total, share: total / parking, row }
}

fn quarantine_dir(config: &Config) -> PathBuf {
    config.data_dir.join("quarantine")
}

/// A source of entropy for one more owner.
fn share(entropy: &Arc<Mutex<Entropy>>) -> Entropy {
    let entropy = Arc::clone(entropy);
    Box::new(move || (entropy.lock().unwrap_or_else(PoisonError::into_inner))())
}

fn open_ring(disk: &dyn Disk, config: &Config) -> Option<Ring> {
    if config.wal.dedupe_window == 0 {
        return None;
    }
    match Ring::open(disk, &ledger_options(config).dir) {
        Ok(ring) => ring,
        Err(error) => {
            tracing::warn!(
                %error,
                "the dedupe ring cannot be read; duplicates of events that were freed are not recognised"
            );
            None
        }
    }
}

/// The dedupe window as it was: old tags out of the ring, the rest out of the log.
fn fill_window(log: &Log, window: u64, ring: Option<&Ring>, mut entropy: Entropy) -> Dedupe {
    let next = log.next_offset();
    let from = next.saturating_sub(window);
    let mut dedupe = Dedupe::new(window, from, (entropy(), entropy()));
    if window == 0 {
        dedupe.skip_to(next);
        return dedupe;
    }
    let mut pairs: Vec<(u64, u128)> = Vec::with_capacity(READ_TAGS);
    let mut in_ring = from;
    if let Some(ring) = ring {
        in_ring = ring.end();
        let read = ring.read(from, |offset, tags| {
            pairs.clear();
            pairs.extend((offset..next).zip(tags.iter().copied()));
            dedupe.load_all(&pairs);
            Ok(())
        });
        if let Err(error) = read {
            tracing::warn!(%error, "part of the dedupe ring cannot be read; old duplicates may be missed");
        }
    }
    let mut reader = log.reader(in_ring.max(from).max(log.first_offset()));
    loop {
        pairs.clear();
        let before = reader.position();
        if let Err(error) = reader.read_tags(READ_TAGS, &mut pairs) {
            tracing::warn!(%error, "tags in the log cannot be read; duplicates of these events may be missed");
            break;
        }
        dedupe.load_all(&pairs);
        if reader.position() <= before {
            break;
        }
    }
    dedupe.skip_to(next);
    dedupe
}

/// Every configured sink's progress, and what is void.
fn restore(
    memory: &Memory,
    wal: &Recovered,
    sinks: &[SinkInfo],
    told: &mut BTreeMap<String, Told>,
    rows_end: u64,
    is_damaged: bool,
) -> State {
    let report = &wal.report;
    let mut voids = memory.voids.clone();
    let mut damaged_ranges = memory.damaged_ranges;
    let mut harmless_damage = 0;
    for damage in &report.damage {
        // An opening that did not get as far as the ledger finds the same again; once written down,
        // it is known.
        if damage.lost.is_empty() {
            harmless_damage += 1;
        } else if !voids.covers(&damage.lost) {
            damaged_ranges += 1;
            voids.insert(damage.lost.clone());
        }
    }
    report.voids.iter().for_each(|range| voids.insert(range.clone()));
    let held = wal.log.first_offset()..wal.log.next_offset();
    let mut state = State {
        voids,
        damaged_ranges,
        harmless_damage,
        generation: 1,
        // Always written, because it says how far the log is durable.
        findings_changed: 1,
        rows_end,
        ..State::default()
    };
    for info in sinks {
        let told = told.remove(&info.name).unwrap_or_default();
        note_vanished(&mut state, info, memory, &told, &held, is_damaged);
        let (progress, lost) = restore_sink(info, memory, told, rows_end, &held, &state.voids, is_damaged);
        state.damaged_ranges += u64::from(lost > 0);
        state.sinks.push(progress);
    }
    state
}

/// The first segments are gone although this sink was not done with them: the log itself cannot know,
/// because it begins where its oldest segment does. What they held is lost and void.
fn note_vanished(
    state: &mut State,
    info: &SinkInfo,
    memory: &Memory,
    told: &Told,
    held: &Range<u64>,
    is_damaged: bool,
) {
    let Some(known) = memory.checkpoints.get(&info.name) else { return };
    if is_damaged || !known.is_configured || known.acked >= held.start {
        return;
    }
    let (known, _) = told.fold(known, 0);
    let mut lost: RangeSet = std::iter::once(known.acked..held.start).collect();
    known.finished.iter().for_each(|(start, end)| lost.remove(*start..*end));
    let lost: Vec<_> = lost.iter().filter(|range| !state.voids.covers(range)).collect();
    for range in lost {
        tracing::error!(
            sink = info.name,
            first_lost = range.start,
            lost = range.end - range.start,
            "segments are missing at the beginning of the event log; what they held is lost"
        );
        state.damaged_ranges += 1;
        state.voids.insert(range);
    }
}

fn restore_sink(
    info: &SinkInfo,
    memory: &Memory,
    told: Told,
    rows_end: u64,
    held: &Range<u64>,
    voids: &RangeSet,
    is_damaged: bool,
) -> (SinkProgress, u64) {
    let known = memory.checkpoints.get(&info.name);
    // A ledger that knows nothing although the log was released from: it was lost, and all that is
    // not held any more had been finished by every sink.
    let was_lost = memory.is_blank && held.start > 0;
    let checkpoint = match known {
        Some(known) => known.clone(),
        None if was_lost => Checkpoint::default(),
        None => Checkpoint { acked: held.start, ..Checkpoint::default() },
    };
    let (checkpoint, lost) = told.fold(&checkpoint, rows_end);
    if lost > 0 {
        tracing::error!(
            sink = info.name,
            events = lost,
            "rows of the failure table are gone with damage; their events are counted as dropped"
        );
    }
    let finished: RangeSet =
        checkpoint.finished.iter().filter(|(s, e)| s < e).map(|(s, e)| *s..(*e).min(held.end)).collect();
    let acked = checkpoint.acked.clamp(held.start, held.end);
    let mut delivered = checkpoint.delivered;
    if checkpoint.acked < held.start {
        let gone = checkpoint.acked..held.start;
        let unfinished = gone.end - gone.start - finished.overlap(gone.clone());
        if was_lost || is_damaged {
            // Released, so this sink was done with it; the checkpoint that said so is lost.
            delivered += unfinished - voids.overlap(gone).min(unfinished);
        } else if !checkpoint.is_configured {
            tracing::warn!(
                sink = info.name,
                events = unfinished,
                "events were freed while this sink was not configured; it goes on with what is held"
            );
        }
    }
    let window = Window::resume(acked, finished.iter());
    let dropped = restore_dropped(info, memory, &told, window.next(), lost > 0 || is_damaged);
    let paused_by_operator = memory.paused.get(&info.name).copied().unwrap_or(false);
    let has_news = known.is_none_or(|known| {
        (known.acked, known.rows, known.delivered, known.dropped, known.skipped, known.is_configured)
            != (window.acked(), checkpoint.rows, delivered, checkpoint.dropped, checkpoint.skipped, true)
    });
    let progress = SinkProgress {
        durable_acked: window.acked(),
        window,
        rows: told.rows,
        order: Order::default(),
        reserved: 0,
        settling_cost: 0,
        is_crowded: false,
        tally: Tally { delivered, dropped: checkpoint.dropped, skipped: checkpoint.skipped },
        dropped,
        token: checkpoint.token,
        paused: paused_by_operator || info.starts_paused,
        paused_by_operator,
        backing_off: None,
        last_error: None,
        reader: None,
        changed: u64::from(has_news),
        pause_changed: 0,
    };
    (progress, lost)
}

/// Which events were dropped, with the news that the failure table has of it. Where some were lost with damage, nobody
/// knows which of those below `end`.
fn restore_dropped(info: &SinkInfo, memory: &Memory, told: &Told, end: u64, has_lost: bool) -> Dropped {
    let counted = memory.checkpoints.get(&info.name).map_or(0, |known| known.dropped);
    let mut dropped = Dropped::resume(memory.dropped.get(&info.name), counted, end);
    told.dropped.iter().for_each(|offset| dropped.insert(*offset));
    if has_lost {
        dropped.forget_below(end);
    }
    dropped.changed = u64::from(dropped.take_news());
    dropped
}

fn resume(sink: &SinkProgress) -> Resume {
    Resume { token: sink.token.clone(), next_offset: sink.window.acked() }
}

/// What is kept about sinks that are not configured: they may come back. And whether the ledger says
/// otherwise. `told` is what the failure table has of them.
fn gone_sinks(
    memory: &Memory,
    told: &BTreeMap<String, Told>,
    sinks: &[SinkInfo],
    rows_end: u64,
) -> (Vec<Record>, bool) {
    let is_gone = |name: &&String| !sinks.iter().any(|info| info.name == **name);
    let mut records = Vec::new();
    let mut changed = false;
    let names: BTreeSet<&String> = memory.checkpoints.keys().chain(told.keys()).filter(is_gone).collect();
    for name in names {
        let blank = || Checkpoint { sink: name.clone(), ..Checkpoint::default() };
        let known = memory.checkpoints.get(name).cloned().unwrap_or_else(blank);
        let (mut checkpoint, _) = told.get(name).unwrap_or(&Told::default()).fold(&known, rows_end);
        checkpoint.finished.truncate(MAX_CHECKPOINT_RANGES);
        checkpoint.is_configured = false;
        if (Checkpoint { rows_end: known.rows_end, ..checkpoint.clone() }) == known {
            checkpoint = known.clone(); // no news
        }
        tracing::warn!(
            sink = name,
            acked_offset = checkpoint.acked,
            rows = checkpoint.rows,
            "a sink with a checkpoint is not configured any more; events are not kept for it, its rows of the \
             failure table are"
        );
        changed |= checkpoint != known;
        records.push(Record::Checkpoint(checkpoint));
    }
    for (name, paused) in memory.paused.iter().filter(|(name, _)| is_gone(name)) {
        records.push(Record::Paused { sink: name.clone(), paused: *paused });
    }
    (records, changed)
}
