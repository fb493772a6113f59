//! `eventflow replay`: events out of archive and log once more to one sink of a running daemon.
//!
//! ```text
//! archive, log ── gather ──► batch ── post ──┬─ delivered, skipped ──────────► tally
//!                 ▲   at the rate            ├─ failed ── again, a few times ─► list
//!                 │                          ├─ untried, 429, 503 ── wait ── post again
//!                 └──────────────────────────┴─ no answer ── wait ── post again (at least once)
//! ```
//!
//! The events are read here, as `export` reads them, and the daemon keeps nothing of a replay; so it can
//! be stopped at any moment and continued with `--from`. Blocking, on the main thread, one request at a
//! time; memory is bounded by one batch. SIGINT and SIGTERM end it after the request under way; a second
//! one ends it at once.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use super::client::{self, LineError, Problem, UrlArgs};
use super::export::{Bound, JoinError, Output, Store, Tally as Read, wanted};
use super::send::rate;
use super::{ConfigArgs, Exit, Failure, count, print};
use crate::event::stamp;

pub(super) const EXAMPLES: &str = "\
Events that the sink's own filter does not match are skipped. What a webhook gets is marked: the header
`eventflow-replay: true`, and the attribute `eventflowreplay` in the event; its `webhook-id` is the one of
the first delivery. Ctrl-C stops and says with which `--from` to go on.

Examples:
  eventflow replay --sink orders --from 2026-01-31T12:00:00Z --to 2026-01-31T13:00:00Z --rate 200
  eventflow replay --sink orders --from 1000 --to 2000 --type 'com.example.order.*'
  eventflow replay --sink orders --from 0 --to 2026-02-01 --data-dir /var/lib/eventflow --url http://10.0.0.5:8080";

/// A batch is posted when it has this many bytes, whatever `--batch` says.
const BATCH_BYTES: usize = 4 << 20;
/// How many failed events are named one by one.
const NAMED_FAILURES: usize = 20;
/// How long one batch may take: a thousand events, one request each.
const ANSWER_WITHIN: Duration = Duration::from_secs(1800);
/// First and longest wait before another try.
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// So much of what the rate left undone is made up for.
const CATCH_UP: Duration = Duration::from_secs(1);
/// How soon a wait notices that it is to stop.
const STEP: Duration = Duration::from_millis(50);

/// `eventflow replay`
#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// The sink that gets the events
    #[arg(long, value_name = "NAME")]
    sink: String,
    /// The first event: an offset, a time of acceptance (RFC 3339) or a UTC date; included
    #[arg(long, value_name = "X")]
    from: Bound,
    /// The end: an offset, a time of acceptance or a UTC date; not included
    #[arg(long, value_name = "X")]
    to: Bound,
    /// Only events whose type matches; `*` stands for any text; may be given several times
    #[arg(long = "type", value_name = "GLOB")]
    types: Vec<String>,
    /// Only events whose source matches; may be given several times
    #[arg(long = "source", value_name = "GLOB")]
    sources: Vec<String>,
    /// Most events a second
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// Most events a request
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    batch: u32,
    /// Give an event up after so many attempts
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    attempts: u32,
    /// Stop after this long without progress
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    patience: Duration,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    url: UrlArgs,
    /// Print the tally as JSON on standard output
    #[arg(long)]
    json: bool,
}

/// What became of all events so far.
#[derive(Debug, Default, Serialize)]
struct Tally {
    delivered: u64,
    skipped: u64,
    failed: u64,
    /// Everything below was delivered, skipped or given up.
    next_offset: Option<u64>,
    seconds: f64,
}

/// What the daemon answers to a batch.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    delivered: u64,
    skipped: u64,
    failed: Vec<Failed>,
    untried: Option<u64>,
    unavailable: Option<String>,
    retry_after_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Failed {
    offset: u64,
    error: String,
    may_succeed: bool,
    retry_after_ms: Option<u64>,
}

/// Why a replay ends before its range does.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("stopped")]
    Stopped,
    #[error("{0}")]
    Failed(String),
}

/// What one request led to.
enum Posted {
    Answered(Answer),
    /// These lines are no events.
    Refused(Vec<LineError>),
    TooLarge(String),
    /// Try again, after what was asked for.
    Later(Option<Duration>, String),
    Stop(String),
}

/// `eventflow replay`
pub(super) fn run(args: &ReplayArgs) -> Result<Exit, Failure> {
    let config = args.config.load(None)?;
    let filter = wanted(Some(args.from), Some(args.to), &args.types, &args.sources)?;
    let store = Store::of(&config)?;
    let name = percent_encoding::utf8_percent_encode(&args.sink, percent_encoding::NON_ALPHANUMERIC);
    let began = Instant::now();
    let mut replay = Replay {
        args,
        agent: args.url.agent(ANSWER_WITHIN)?,
        url: args.url.at(&format!("/v1/sinks/{name}/replay")),
        stop: listen()?,
        bar: bar(args),
        due: began,
        batch: Batch::default(),
        tally: Tally::default(),
        named: 0,
        reached: false,
        ended: None,
    };
    let read = store.read(&filter, &mut replay);
    if read.is_ok() {
        let _ = replay.post_batch(); // an end is kept
    }
    replay.bar.finish_and_clear();
    replay.tally.seconds = began.elapsed().as_secs_f64();
    replay.report(read)
}

/// Listens for signals: the first asks for an end, the second is one.
fn listen() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _inside = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let told = Arc::clone(&stop);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async move {
            for _ in 0..2 {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if told.swap(true, Ordering::SeqCst) {
                    std::process::exit(Exit::Failed.code().into());
                }
            }
        });
    })?;
    Ok(stop)
}

fn bar(args: &ReplayArgs) -> ProgressBar {
    let (bar, template) = match (args.from, args.to) {
        (Bound::Offset(from), Bound::Offset(to)) => (
            ProgressBar::new(to.saturating_sub(from)),
            "{bar:30} {pos}/{len} events {per_sec} eta {eta} {wide_msg}",
        ),
        _ => (ProgressBar::new_spinner(), "{spinner} {pos} events {per_sec} {wide_msg}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Lines that are not done with.
#[derive(Debug, Default)]
struct Batch {
    body: Vec<u8>,
    lines: Vec<Line>,
}

#[derive(Debug, Clone)]
struct Line {
    bytes: Range<usize>,
    offset: u64,
    attempts: u32,
}

struct Replay<'a> {
    args: &'a ReplayArgs,
    agent: ureq::Agent,
    url: String,
    stop: Arc<AtomicBool>,
    bar: ProgressBar,
    /// When the next batch may be posted.
    due: Instant,
    batch: Batch,
    tally: Tally,
    named: usize,
    /// Whether the daemon has answered at all.
    reached: bool,
    ended: Option<Ended>,
}

impl Output for Replay<'_> {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        // Everything that comes here has a stamp: it was read by it, or written with it.
        let Some(offset) = stamp(line).map(|stamp| stamp.offset) else { return Ok(()) };
        let start = self.batch.body.len();
        self.batch.body.extend_from_slice(line);
        self.batch.lines.push(Line { bytes: start..start + line.len(), offset, attempts: 0 });
        self.batch.body.push(b'\n');
        if self.batch.lines.len() >= self.most() || self.batch.body.len() >= BATCH_BYTES {
            self.post_batch()?;
        }
        Ok(())
    }

    fn progress(&mut self, _: u64, _: u64) {}
}

impl Replay<'_> {
    /// Events of a batch: at least ten batches a second, so that a rate is a stream and not a row of
    /// bursts.
    fn most(&self) -> usize {
        let most = self.args.batch as usize;
        self.args.rate.map_or(most, |rate| most.min((rate / 10.0).ceil() as usize).max(1))
    }

    /// Posts what was gathered until every event of it is done with.
    fn post_batch(&mut self) -> io::Result<()> {
        let Batch { body, lines } = std::mem::take(&mut self.batch);
        let ended = match lines.last().map(|last| last.offset) {
            None => self.check(),
            Some(last) => {
                self.keep_pace(lines.len()).and_then(|()| self.post_until_done(&body, lines)).map(|()| {
                    self.tally.next_offset = Some(last + 1);
                })
            }
        };
        ended.map_err(|ended| {
            let text = ended.to_string();
            self.ended = Some(ended);
            io::Error::other(text)
        })
    }

    /// Waits until so many events may be posted.
    fn keep_pace(&mut self, events: usize) -> Result<(), Ended> {
        let Some(rate) = self.args.rate else { return self.check() };
        let now = Instant::now();
        self.due = self.due.max(now.checked_sub(CATCH_UP).unwrap_or(now));
        self.wait(self.due.saturating_duration_since(now), "")?;
        self.due += Duration::try_from_secs_f64(events as f64 / rate).unwrap_or(Duration::MAX);
        Ok(())
    }

    fn check(&self) -> Result<(), Ended> {
        if self.stop.load(Ordering::SeqCst) { Err(Ended::Stopped) } else { Ok(()) }
    }

    /// Waits, unless it is to stop.
    fn wait(&self, time: Duration, why: &str) -> Result<(), Ended> {
        let until = Instant::now() + time;
        if !why.is_empty() {
            self.bar.set_message(format!("waiting: {why}"));
        }
        loop {
            self.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.bar.set_message("");
                return Ok(());
            }
            std::thread::sleep(left.min(STEP));
        }
    }

    fn post_until_done(&mut self, body: &[u8], mut lines: Vec<Line>) -> Result<(), Ended> {
        let mut tries = 0;
        let mut last_progress = Instant::now();
        while let Some(first) = lines.first().map(|line| line.offset) {
            self.tally.next_offset = Some(first);
            self.check()?;
            let before = lines.len();
            let (wait, why) = match self.post(body, &lines) {
                Posted::Answered(answer) => self.judge(&answer, &mut lines),
                Posted::Refused(errors) => {
                    let is_bad = |at: usize| errors.iter().find(|error| error.index == at);
                    let bad: Vec<(u64, &LineError)> = lines
                        .iter()
                        .enumerate()
                        .filter_map(|(at, line)| Some((line.offset, is_bad(at)?)))
                        .collect();
                    bad.iter().for_each(|(offset, error)| self.give_up(*offset, &error.detail));
                    lines.retain(|line| !bad.iter().any(|(offset, _)| *offset == line.offset));
                    (None, String::new())
                }
                Posted::TooLarge(why) if before == 1 => return Err(Ended::Failed(why)),
                Posted::TooLarge(_) => {
                    let rest = lines.split_off(before / 2);
                    self.post_until_done(body, lines)?;
                    lines = rest;
                    continue;
                }
                Posted::Later(wait, why) => (wait.or(Some(FIRST_WAIT)), why),
                Posted::Stop(why) => return Err(Ended::Failed(why)),
            };
            if lines.len() < before {
                (tries, last_progress) = (0, Instant::now());
            }
            if last_progress.elapsed() >= self.args.patience {
                let patience = humantime::format_duration(self.args.patience);
                return Err(Ended::Failed(format!("gave up after {patience} without progress: {why}")));
            }
            if let Some(wait) = wait {
                let backoff = FIRST_WAIT.saturating_mul(1 << tries.min(10)).min(LONGEST_WAIT);
                tries += 1;
                self.wait(wait.max(backoff), &why)?;
            }
        }
        Ok(())
    }

    /// Takes out of `lines` what is done with; how long to wait before the rest is posted again, and why.
    fn judge(&mut self, answer: &Answer, lines: &mut Vec<Line>) -> (Option<Duration>, String) {
        self.tally.delivered += answer.delivered;
        self.tally.skipped += answer.skipped;
        let (mut wait, mut why) = (None, String::new());
        let mut failed = answer.failed.iter().peekable();
        let mut kept = Vec::new();
        for line in lines.drain(..) {
            while failed.next_if(|failed| failed.offset < line.offset).is_some() {}
            if answer.untried.is_some_and(|untried| line.offset >= untried) {
                kept.push(line);
                continue;
            }
            let Some(failed) = failed.next_if(|failed| failed.offset == line.offset) else { continue };
            let attempts = line.attempts + 1;
            if failed.may_succeed && attempts < self.args.attempts {
                wait = wait.max(Some(Duration::from_millis(failed.retry_after_ms.unwrap_or(0))));
                why.clone_from(&failed.error);
                kept.push(Line { attempts, ..line });
            } else {
                self.give_up(line.offset, &failed.error);
            }
        }
        self.bar.set_position(self.tally.delivered + self.tally.skipped + self.tally.failed);
        if answer.untried.is_some() {
            wait = wait.max(Some(Duration::from_millis(answer.retry_after_ms.unwrap_or(0))));
            why = answer.unavailable.clone().unwrap_or_else(|| "the daemon stops".to_owned());
        }
        *lines = kept;
        (wait, why)
    }

    fn give_up(&mut self, offset: u64, why: &str) {
        self.tally.failed += 1;
        self.named += 1;
        match self.named {
            n if n <= NAMED_FAILURES => {
                self.bar.suspend(|| eprintln!("eventflow: the event at offset {offset} failed: {why}"));
            }
            n if n == NAMED_FAILURES + 1 => {
                self.bar.suspend(|| eprintln!("eventflow: more events failed, not named here"));
            }
            _ => {}
        }
    }

    fn post(&mut self, body: &[u8], lines: &[Line]) -> Posted {
        let mut part = Vec::with_capacity(body.len());
        for line in lines {
            part.extend_from_slice(&body[line.bytes.clone()]);
            part.push(b'\n');
        }
        let sent = self.agent.post(&self.url).content_type("application/x-ndjson").send(&part[..]);
        let mut response = match sent {
            Ok(response) => response,
            Err(error) if self.reached => return Posted::Later(None, error.to_string()),
            Err(error) => return Posted::Stop(client::unreachable(&self.url, &error).sentence),
        };
        self.reached = true;
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        let answer = match response.body_mut().read_to_vec() {
            Ok(answer) => answer,
            Err(error) => return Posted::Later(None, error.to_string()),
        };
        let problem: Problem = serde_json::from_slice(&answer).unwrap_or_default();
        let sentence = problem.sentence().to_owned();
        match status {
            200 => match serde_json::from_slice(&answer) {
                Ok(answer) => Posted::Answered(answer),
                Err(_) => Posted::Stop(format!("{} answered something else; is it eventflow?", self.url)),
            },
            400 if !problem.errors.is_empty() => Posted::Refused(problem.errors),
            413 => Posted::TooLarge(sentence),
            408 | 429 | 503 => Posted::Later(retry_after, sentence),
            _ => Posted::Stop(client::refusal(&self.url, status, &answer)),
        }
    }

    fn report(self, read: Result<Read, JoinError>) -> Result<Exit, Failure> {
        let tally = &self.tally;
        if self.args.json {
            print(&format!("{}\n", serde_json::to_string(tally).map_err(Failure::failed)?))?;
        } else {
            eprintln!(
                "{} delivered, {} skipped, {} failed, in {:.1} s",
                count(tally.delivered, "event"),
                tally.skipped,
                tally.failed,
                tally.seconds
            );
        }
        let from =
            tally.next_offset.map_or("the same `--from`".to_owned(), |offset| format!("`--from {offset}`"));
        match (self.ended, read) {
            (Some(Ended::Stopped), _) => Err(Failure::failed(format_args!("stopped; go on with {from}"))),
            (Some(Ended::Failed(why)), _) => Err(Failure::failed(format_args!("{why}; go on with {from}"))),
            (None, Err(error)) => Err(Failure::failed(format_args!("{error}; go on with {from}"))),
            (None, Ok(read)) if read.bad_lines > 0 || read.damaged_events > 0 => Err(Failure::new(
                Exit::Damaged,
                "some events in the range are damaged and were not replayed; `eventflow export` of it says which",
            )),
            (None, Ok(_)) => Ok(if tally.failed == 0 { Exit::Done } else { Exit::Failed }),
        }
    }
}
