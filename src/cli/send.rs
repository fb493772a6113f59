//! `eventflow send`: posts lines of JSON to a running daemon, and keeps book on every line.
//!
//! ```text
//! lines ── gather ──► batch ── post ──┬─ 202 ─────────► tally
//!            ▲                        ├─ 400 ── drop the named lines, say so ──► post the rest
//!            │                        ├─ 413 ── halve ──► post both
//!            │                        ├─ 429, 503 ── wait as asked ──► post again
//!            └────────────────────────┴─ no answer ── post again if that cannot double events
//! ```
//!
//! A request is accepted whole or not at all, so after any refusal nothing of it was stored and
//! posting parts of it again is safe. Only a lost answer leaves that open: events that bring their
//! own id are recognised by the daemon and posted again; for plain lines, which get their id on
//! acceptance, the command stops and names them, unless `--at-least-once` is given.
//!
//! Blocking, on the main thread, one request at a time; memory is bounded by one batch.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use super::client::{self, Problem, UrlArgs};
use super::{Exit, Failure, count, print};

/// A batch is posted when it has this many bytes, whatever `--batch` says.
const BATCH_BYTES: usize = 4 << 20;
/// A longer line is not read to its end: no daemon takes one.
const LINE_BYTES: u64 = 256 << 20;
/// How many refused lines are named one by one.
const NAMED_REFUSALS: u64 = 20;

pub(super) const EXAMPLES: &str = "\
Every line is one JSON value: a CloudEvent (an object with `specversion`) or plain data, which \
becomes the `data` of a new event. Lines that the daemon refuses are named and skipped, all others \
are sent.

When an answer is lost, events with an `id` of their own are sent again (the daemon drops \
duplicates); plain lines are not, because they might be accepted twice: the command stops and \
names them.

Examples:
  eventflow send events.ndjson
  jq -c '.items[]' dump.json | eventflow send - --source /import --type com.example.item
  eventflow send big.ndjson --batch 1000 --rate 5000 --json";

#[derive(Debug, Args)]
pub(super) struct SendArgs {
    /// A file of one JSON value a line, or `-` for standard input
    file: PathBuf,
    #[command(flatten)]
    url: UrlArgs,
    /// Most lines a request
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    batch: u32,
    /// Most events a second
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// `source` of events made from plain lines
    #[arg(long)]
    source: Option<String>,
    /// `type` of events made from plain lines
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Give up after this long without getting anything accepted
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// Send plain lines again, too, when their answer was lost: they may then be accepted twice
    #[arg(long)]
    at_least_once: bool,
    /// Print the tally as JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "it must be a number of events a second".to_owned())?;
    if rate.is_finite() && rate > 0.0 { Ok(rate) } else { Err("it must be more than 0".to_owned()) }
}

/// Lines on their way: their bytes, and where each came from.
#[derive(Debug, Clone, Default)]
struct Batch {
    body: Vec<u8>,
    /// Each line's bytes in `body`, and its number in the input.
    lines: Vec<(Range<usize>, u64)>,
}

impl Batch {
    fn push(&mut self, line: &[u8], number: u64) {
        let start = self.body.len();
        self.body.extend_from_slice(line);
        self.lines.push((start..self.body.len(), number));
        self.body.push(b'\n');
    }

    /// The lines for which `keep` holds, by position.
    fn filtered(&self, keep: impl Fn(usize) -> bool) -> Batch {
        let mut kept = Batch::default();
        for (at, (range, number)) in self.lines.iter().enumerate() {
            if keep(at) {
                kept.push(&self.body[range.clone()], *number);
            }
        }
        kept
    }

    /// Whether posting it twice cannot make two events of a line.
    fn brings_its_ids(&self) -> bool {
        #[derive(Deserialize)]
        struct Probe {
            #[serde(rename = "specversion")]
            _specversion: String,
            #[serde(rename = "id")]
            _id: String,
        }
        self.lines.iter().all(|(range, _)| serde_json::from_slice::<Probe>(&self.body[range.clone()]).is_ok())
    }

    /// Which lines of the input it holds, in words.
    fn whence(&self) -> String {
        match (self.lines.first(), self.lines.last()) {
            (Some((_, first)), Some((_, last))) if first != last => format!("lines {first} to {last}"),
            (Some((_, first)), _) => format!("line {first}"),
            _ => "no lines".to_owned(),
        }
    }
}

/// What became of all lines so far.
#[derive(Debug, Default, Serialize)]
struct Tally {
    accepted: u64,
    duplicates: u64,
    refused: u64,
    first_offset: Option<u64>,
    last_offset: Option<u64>,
    seconds: f64,
}

/// What a 202 says.
#[derive(Debug, Deserialize)]
struct Accepted {
    accepted: u64,
    duplicates: u64,
    first_offset: Option<u64>,
    last_offset: Option<u64>,
}

/// What one request led to.
enum Answer {
    Accepted(Accepted),
    /// Nothing was stored, and it never will be as it is.
    Refused(Problem),
    /// As `Refused`, and it may be the size of the whole that is wrong.
    TooLarge(Problem),
    /// Nothing was stored; try again after this long.
    Later(Duration, String),
    /// Whether it was stored is not known.
    Lost(String),
    /// No use to go on.
    Stop(String),
}

/// `eventflow send`
pub(super) fn send(args: &SendArgs) -> Result<Exit, Failure> {
    let (input, size) = open(&args.file)?;
    let progress = bar(size);
    let mut url = args.url.at("/v1/events");
    let plain = [("source", &args.source), ("type", &args.kind)];
    for (at, (key, value)) in plain.iter().filter_map(|(k, v)| Some((k, v.as_ref()?))).enumerate() {
        let value = percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC);
        url.push_str(&format!("{}{key}={value}", if at == 0 { '?' } else { '&' }));
    }
    let agent = args.url.agent(Duration::from_secs(60))?;
    let mut sender = Sender { args, agent, url, progress, tally: Tally::default(), reached: false };
    let started = Instant::now();
    let outcome = sender.all(input, size.is_none());
    sender.tally.seconds = started.elapsed().as_secs_f64();
    sender.progress.finish_and_clear();
    sender.report()?;
    outcome?;
    Ok(if sender.tally.refused == 0 { Exit::Done } else { Exit::Failed })
}

/// The input, and its size when it is a file.
fn open(path: &Path) -> Result<(Box<dyn Read>, Option<u64>), Failure> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let wrong = |error: io::Error| Failure::failed(format_args!("cannot read {}: {error}", path.display()));
    let file = File::open(path).map_err(wrong)?;
    let meta = file.metadata().map_err(wrong)?;
    if meta.is_dir() {
        return Err(wrong(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    Ok((Box::new(file), meta.is_file().then_some(meta.len())))
}

/// Progress on a terminal; nothing anywhere else.
fn bar(size: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match size {
        Some(size) => {
            (ProgressBar::new(size), "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} eta {eta} {wide_msg}")
        }
        None => (ProgressBar::new_spinner(), "{spinner} {bytes} {bytes_per_sec} {wide_msg}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

struct Sender<'a> {
    args: &'a SendArgs,
    agent: ureq::Agent,
    url: String,
    progress: ProgressBar,
    tally: Tally,
    /// Whether the daemon has answered at all: only then is a refused connection worth waiting for.
    reached: bool,
}

impl Sender<'_> {
    fn all(&mut self, input: Box<dyn Read>, piped: bool) -> Result<(), Failure> {
        let mut lines = Lines { input: BufReader::with_capacity(64 << 10, input), number: 0 };
        let mut batch_lines = self.args.batch as usize;
        if let Some(rate) = self.args.rate {
            // At least four requests a second, so that a rate is a stream and not a row of bursts.
            batch_lines = batch_lines.min((rate / 4.0).ceil() as usize).max(1);
        }
        let (started, mut sent) = (Instant::now(), 0u64);
        loop {
            let batch = lines.gather(batch_lines, piped)?;
            if batch.lines.is_empty() {
                return Ok(());
            }
            if let Some(rate) = self.args.rate {
                let due = Duration::try_from_secs_f64(sent as f64 / rate).unwrap_or(Duration::MAX);
                std::thread::sleep(due.saturating_sub(started.elapsed()));
            }
            sent += batch.lines.len() as u64;
            let bytes = batch.body.len() as u64;
            self.deliver(batch)?;
            self.progress.inc(bytes);
        }
    }

    /// Posts until every line of `batch` is accepted or refused.
    fn deliver(&mut self, batch: Batch) -> Result<(), Failure> {
        let mut waiting = VecDeque::from([batch]);
        let mut last_progress = Instant::now();
        while let Some(batch) = waiting.pop_front() {
            let answer = self.post(&batch);
            self.reached |= !matches!(answer, Answer::Stop(_));
            match answer {
                Answer::Accepted(answer) => {
                    self.note(&answer);
                    last_progress = Instant::now();
                }
                Answer::Refused(problem) | Answer::TooLarge(problem) if batch.lines.len() == 1 => {
                    self.refuse(batch.lines[0].1, problem.sentence());
                }
                Answer::Refused(problem) if problem.errors.iter().any(|e| e.index < batch.lines.len()) => {
                    let mut bad = vec![false; batch.lines.len()];
                    for error in problem.errors.iter().filter(|e| e.index < batch.lines.len()) {
                        if !std::mem::replace(&mut bad[error.index], true) {
                            self.refuse(batch.lines[error.index].1, &error.detail);
                        }
                    }
                    let rest = batch.filtered(|at| !bad[at]);
                    waiting.extend((!rest.lines.is_empty()).then_some(rest));
                }
                Answer::Refused(_) | Answer::TooLarge(_) => {
                    let half = batch.lines.len() / 2;
                    waiting.push_front(batch.filtered(|at| at >= half));
                    waiting.push_front(batch.filtered(|at| at < half));
                }
                Answer::Lost(why) if !self.args.at_least_once && !batch.brings_its_ids() => {
                    return Err(Failure::failed(format_args!(
                        "the answer for {} was lost ({why}): they may or may not have been accepted, and without ids \
                         of their own sending them again could double them; see `--at-least-once`",
                        batch.whence()
                    )));
                }
                Answer::Later(_, why) | Answer::Lost(why)
                    if last_progress.elapsed() >= self.args.patience =>
                {
                    return Err(Failure::failed(format_args!(
                        "gave up at {} after {} without progress: {why}",
                        batch.whence(),
                        humantime::format_duration(self.args.patience)
                    )));
                }
                Answer::Later(wait, why) => {
                    let left = self.args.patience.saturating_sub(last_progress.elapsed());
                    self.wait(wait.min(left), &why);
                    waiting.push_front(batch);
                }
                Answer::Lost(why) => {
                    self.wait(Duration::from_secs(1), &why);
                    waiting.push_front(batch);
                }
                Answer::Stop(why) => {
                    return Err(Failure::failed(format_args!("stopped at {}: {why}", batch.whence())));
                }
            }
        }
        Ok(())
    }

    fn post(&self, batch: &Batch) -> Answer {
        let sent = self.agent.post(&self.url).content_type("application/x-ndjson").send(&batch.body[..]);
        let mut response = match sent {
            Ok(response) => response,
            Err(error) => return self.unanswered(&error),
        };
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|text| text.trim().parse().ok()).unwrap_or(1);
        let body = match response.body_mut().read_to_vec() {
            Ok(body) => body,
            // The status alone says it: everything but a 202 was not stored.
            Err(error) if status == 202 => return Answer::Lost(error.to_string()),
            Err(_) => Vec::new(),
        };
        let problem = || serde_json::from_slice::<Problem>(&body).unwrap_or_default();
        match status {
            202 => match serde_json::from_slice(&body) {
                Ok(accepted) => Answer::Accepted(accepted),
                Err(_) => Answer::Stop(format!("{} answered 202 but no tally; is it eventflow?", self.url)),
            },
            400 => Answer::Refused(problem()),
            413 => Answer::TooLarge(problem()),
            408 => Answer::Later(Duration::from_secs(1), format!("408 {}", problem().sentence())),
            429 | 503 => {
                let wait = Duration::from_secs(u64::max(1, retry_after));
                Answer::Later(wait, format!("{status} {}", problem().sentence()))
            }
            _ => Answer::Stop(client::refusal(&self.url, status, &body)),
        }
    }

    /// A request without an answer: whether it can have been stored decides.
    fn unanswered(&self, error: &ureq::Error) -> Answer {
        let refused = match error {
            ureq::Error::ConnectionFailed | ureq::Error::Timeout(ureq::Timeout::Connect) => true,
            ureq::Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
            _ => false,
        };
        let unusable = matches!(
            error,
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::HostNotFound | ureq::Error::Tls(_)
        );
        if unusable || (refused && !self.reached) {
            return Answer::Stop(format!("no answer from {} ({error}); is the daemon running?", self.url));
        }
        if refused {
            return Answer::Later(Duration::from_secs(1), "the daemon is not there".to_owned());
        }
        Answer::Lost(error.to_string())
    }

    fn wait(&self, time: Duration, why: &str) {
        self.progress.set_message(format!("waiting: {why}"));
        std::thread::sleep(time);
        self.progress.set_message("");
    }

    fn note(&mut self, answer: &Accepted) {
        let tally = &mut self.tally;
        tally.accepted += answer.accepted;
        tally.duplicates += answer.duplicates;
        tally.first_offset = tally.first_offset.or(answer.first_offset);
        tally.last_offset = answer.last_offset.or(tally.last_offset);
    }

    fn refuse(&mut self, line: u64, why: &str) {
        self.tally.refused += 1;
        match self.tally.refused {
            n if n <= NAMED_REFUSALS => {
                self.progress.suspend(|| eprintln!("eventflow: line {line} was refused: {why}"));
            }
            n if n == NAMED_REFUSALS + 1 => {
                self.progress.suspend(|| eprintln!("eventflow: more lines were refused, not named here"));
            }
            _ => {}
        }
    }

    fn report(&self) -> Result<(), Failure> {
        let tally = &self.tally;
        let offsets = match (tally.first_offset, tally.last_offset) {
            (Some(first), Some(last)) => format!("offsets {first} to {last}"),
            _ => "no new offsets".to_owned(),
        };
        let per_second = tally.accepted as f64 / tally.seconds.max(1e-6);
        eprintln!(
            "{} accepted, {}, {} refused; {offsets}; {:.2} s ({per_second:.0} events/s)",
            tally.accepted,
            count(tally.duplicates, "duplicate"),
            tally.refused,
            tally.seconds
        );
        if self.args.json {
            let line = serde_json::to_string(tally).map_err(Failure::failed)?;
            print(&format!("{line}\n"))?;
        }
        Ok(())
    }
}

/// The input, line by line.
struct Lines {
    input: BufReader<Box<dyn Read>>,
    number: u64,
}

impl Lines {
    /// The next lines that are not blank; empty at the end of the input. From a pipe, what is there
    /// goes out before a read that could wait.
    fn gather(&mut self, most: usize, piped: bool) -> Result<Batch, Failure> {
        let mut batch = Batch::default();
        let mut line = Vec::new();
        while batch.lines.len() < most && batch.body.len() < BATCH_BYTES {
            let would_wait = !self.input.buffer().contains(&b'\n');
            if piped && would_wait && !batch.lines.is_empty() {
                break;
            }
            line.clear();
            let read = (&mut self.input).take(LINE_BYTES).read_until(b'\n', &mut line);
            let read =
                read.map_err(|error| Failure::failed(format_args!("cannot read the input: {error}")))?;
            if read == 0 {
                break;
            }
            self.number += 1;
            if read as u64 == LINE_BYTES {
                let number = self.number;
                return Err(Failure::failed(format_args!("line {number} is too long to be an event")));
            }
            let text = line.trim_ascii();
            if !text.is_empty() {
                batch.push(text, self.number);
            }
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static str) -> Lines {
        Lines { input: BufReader::new(Box::new(text.as_bytes())), number: 0 }
    }

    #[test]
    fn lines_keep_their_numbers_across_blank_ones_and_splits() {
        let mut input = lines("1\n\n  \n{\"a\":2}\r\n3");
        let batch = input.gather(10, false).unwrap();
        assert_eq!(batch.body, b"1\n{\"a\":2}\n3\n");
        assert_eq!(batch.lines.iter().map(|(_, n)| *n).collect::<Vec<_>>(), [1, 4, 5]);
        assert_eq!(batch.filtered(|at| at != 1).whence(), "lines 1 to 5");
        assert!(input.gather(10, false).unwrap().lines.is_empty());
    }

    #[test]
    fn a_batch_ends_at_its_line_limit() {
        let mut input = lines("1\n2\n3\n");
        let sizes: Vec<_> = (0..3).map(|_| input.gather(2, false).unwrap().lines.len()).collect();
        assert_eq!(sizes, [2, 1, 0]);
    }

    #[test]
    fn only_events_with_ids_of_their_own_may_be_sent_twice() {
        for (text, safe) in [
            (r#"{"specversion":"1.0","id":"1","source":"/","type":"t"}"#, true),
            (r#"{"id":"1"}"#, false),
            (r#"{"specversion":"1.0","source":"/"}"#, false),
            ("7", false),
        ] {
            assert_eq!(lines(text).gather(1, false).unwrap().brings_its_ids(), safe, "{text}");
        }
    }
}
