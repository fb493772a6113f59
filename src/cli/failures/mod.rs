//! `eventflow failures`: what sinks did not take, of a running daemon or a stopped one.
//!
//! Runs on the main thread. Every verb works on a [`Table`], a page at a time, so nobody holds all of
//! it; where it is, behind HTTP or in a data directory, only the table knows. A verb that fails midway
//! says how far it came; rows changed until then stay changed.

mod remote;
mod show;
mod stopped;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::access::AccessArgs;
use super::client::UrlArgs;
use super::{ConfigArgs, Exit, Failure, count, print};
use crate::config::Config;
use crate::disk::RealDisk;
use crate::queue::{Redrive, Selection};

pub(super) const EXAMPLES: &str = "\
Examples:
  eventflow failures list --sink orders --state dead
  eventflow failures show orders 4711
  eventflow failures retry orders --error timeout --rate 50
  eventflow failures drop orders 4711 4712
  eventflow failures export --sink orders -o orders.ndjson
  eventflow failures list --data-dir /var/lib/eventflow      # of a stopped daemon";

/// Rows asked for at once.
const PAGE: usize = 1000;
/// Where a daemon is when nobody says otherwise.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// `eventflow failures …`
#[derive(Debug, Subcommand)]
pub(super) enum FailuresVerb {
    /// List rows: what failed, how often, why, and when it is tried again
    #[command(after_help = "Examples:
  eventflow failures list --sink orders --state dead --error 'connection refused'
  eventflow failures list --json | jq -r '.type' | sort | uniq -c")]
    List(ListArgs),
    /// Show one row with its event
    #[command(after_help = "Example:
  eventflow failures show orders 4711")]
    Show(ShowArgs),
    /// Try rows again now, with their attempts counted anew; events keep their ids
    #[command(after_help = "Examples:
  eventflow failures retry orders 4711 4712
  eventflow failures retry orders --type 'com.example.order.*' --rate 50
  eventflow failures retry orders --all --yes")]
    Retry(ChangeArgs),
    /// Give events up for good: they are counted as dropped and cannot be brought back
    #[command(after_help = "Examples:
  eventflow failures export --sink orders -o orders.ndjson   # keep a copy first
  eventflow failures drop orders --all --yes")]
    Drop(ChangeArgs),
    /// Write every row with its event as NDJSON
    #[command(after_help = "Examples:
  eventflow failures export > failures.ndjson
  jq -c .event failures.ndjson | eventflow send - --url http://other:8080")]
    Export(ExportArgs),
}

/// Where the table is.
#[derive(Debug, Args)]
struct WhereArgs {
    /// The address of a running daemon: http://HOST:PORT, https://… or unix:PATH [default: http://127.0.0.1:8080]
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "data_dir"])]
    url: Option<String>,
    #[command(flatten)]
    access: AccessArgs,
    #[command(flatten)]
    config: ConfigArgs,
}

impl WhereArgs {
    /// Opens the table, of a stopped daemon for looking into it or for changing it.
    fn open<'a>(&self, disk: &'a RealDisk, access: Access) -> Result<Box<dyn Table + 'a>, Failure> {
        if self.config.config.is_none() && self.config.data_dir.is_none() {
            let url = self.url.clone().unwrap_or_else(|| DEFAULT_URL.to_owned());
            let url = UrlArgs { url, access: self.access.clone() };
            return Ok(Box::new(remote::Remote::new(url)?));
        }
        let config: Config = self.config.load(None)?;
        Ok(match access {
            Access::Look => Box::new(stopped::OnDisk::new(disk, &config)?),
            Access::Change => Box::new(stopped::Stopped::new(&config)?),
        })
    }
}

/// What is going to be done with a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Look,
    Change,
}

/// Which rows.
#[derive(Debug, Clone, Default, Args)]
struct FilterArgs {
    /// Only rows in this state
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Only events whose type matches this pattern
    #[arg(long = "type", value_name = "GLOB")]
    kind: Option<String>,
    /// Only rows whose error contains this text
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Only rows that failed last at this time or later (RFC 3339)
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Only rows that failed last before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
}

impl FilterArgs {
    fn is_empty(&self) -> bool {
        self.state.is_none()
            && [&self.kind, &self.error, &self.from, &self.to].iter().all(|filter| filter.is_none())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// Will be tried again by itself
    Retrying,
    /// Was given up
    Dead,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            State::Retrying => "retrying",
            State::Dead => "dead",
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    place: WhereArgs,
    /// Only rows of this sink
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Stop after this many rows; 0 lists all
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    place: WhereArgs,
    /// The sink's name
    sink: String,
    /// The event's offset
    offset: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").args(["offsets", "all"]).multiple(false))]
pub(super) struct ChangeArgs {
    #[command(flatten)]
    place: WhereArgs,
    /// The sink's name
    sink: String,
    /// The events' offsets
    #[arg(value_name = "OFFSET", conflicts_with_all = ["state", "kind", "error", "from", "to"])]
    offsets: Vec<u64>,
    /// Every row of the sink
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: FilterArgs,
    /// Change at most this many rows a second
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// Do not ask; needed on a terminal where rows are not named one by one
    #[arg(long)]
    yes: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    place: WhereArgs,
    /// Only rows of this sink
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
    #[command(flatten)]
    filter: FilterArgs,
    /// Write here instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "it is a number of rows a second".to_owned())?;
    if (0.01..=1e6).contains(&rate) { Ok(rate) } else { Err("it is between 0.01 and 1000000".to_owned()) }
}

/// A row as it is answered and printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    sink: String,
    offset: u64,
    state: String,
    attempts: u32,
    first_failed_at: String,
    last_failed_at: String,
    due_at: Option<String>,
    error: String,
    id: String,
    source: String,
    r#type: String,
}

/// A row with its event.
#[derive(Debug, Clone, Serialize)]
struct Shown {
    #[serde(flatten)]
    row: Row,
    accepted_at: String,
    event: Box<RawValue>,
}

impl Shown {
    /// Reads an answer. In two parts, because an event kept byte for byte cannot be read in the midst
    /// of a flattened object.
    fn parse(text: &str) -> serde_json::Result<Self> {
        #[derive(Deserialize)]
        struct Rest {
            accepted_at: String,
            event: Box<RawValue>,
        }
        let Rest { accepted_at, event } = serde_json::from_str(text)?;
        Ok(Self { row: serde_json::from_str(text)?, accepted_at, event })
    }
}

/// Some rows, and where to go on.
#[derive(Debug, Default, Deserialize)]
struct Page {
    failures: Vec<Row>,
    next: Option<String>,
}

/// A failure table, wherever it is.
trait Table {
    /// A page of at most `limit` rows after a cursor; there may be none on a page that has a next one.
    fn page(
        &mut self,
        sink: Option<&str>,
        filter: &FilterArgs,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, Failure>;

    /// One row with its event; `None` when there is no such row.
    fn show(&mut self, sink: &str, offset: u64) -> Result<Option<Shown>, Failure>;

    /// Changes rows; how many, once that is durable.
    fn change(&mut self, action: Redrive, sink: &str, which: Selection) -> Result<u64, Failure>;

    /// Done: whatever was opened is closed in order.
    fn close(self: Box<Self>) -> Result<(), Failure>;
}

/// Row after row, page after page.
struct Rows<'a> {
    table: &'a mut dyn Table,
    sink: Option<&'a str>,
    filter: &'a FilterArgs,
    page: VecDeque<Row>,
    after: Option<String>,
    done: bool,
}

impl<'a> Rows<'a> {
    fn new(table: &'a mut dyn Table, sink: Option<&'a str>, filter: &'a FilterArgs) -> Self {
        Self { table, sink, filter, page: VecDeque::new(), after: None, done: false }
    }

    fn next(&mut self) -> Result<Option<Row>, Failure> {
        while self.page.is_empty() && !self.done {
            let Page { failures, next } =
                self.table.page(self.sink, self.filter, self.after.as_deref(), PAGE)?;
            self.page = failures.into();
            self.done = next.is_none();
            self.after = next;
        }
        Ok(self.page.pop_front())
    }
}

/// `eventflow failures …`
pub(super) fn run(verb: &FailuresVerb) -> Result<Exit, Failure> {
    let disk = RealDisk::default();
    let (place, access) = match verb {
        FailuresVerb::List(args) => (&args.place, Access::Look),
        FailuresVerb::Show(args) => (&args.place, Access::Look),
        FailuresVerb::Retry(args) | FailuresVerb::Drop(args) => {
            check(args, io::stdin().is_terminal())?;
            (&args.place, Access::Change)
        }
        FailuresVerb::Export(args) => (&args.place, Access::Look),
    };
    let mut table = place.open(&disk, access)?;
    let outcome = match verb {
        FailuresVerb::List(args) => list(&mut *table, args),
        FailuresVerb::Show(args) => one(&mut *table, args),
        FailuresVerb::Retry(args) => change(&mut *table, Redrive::Retry, args),
        FailuresVerb::Drop(args) => change(&mut *table, Redrive::Drop, args),
        FailuresVerb::Export(args) => export(&mut *table, args),
    };
    let closed = table.close();
    let exit = outcome?;
    closed.map(|()| exit)
}

fn list(table: &mut dyn Table, args: &ListArgs) -> Result<Exit, Failure> {
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let mut rows = Rows::new(table, args.sink.as_deref(), &args.filter);
    let mut listed = 0;
    let mut batch = Vec::new();
    while listed < limit {
        let Some(row) = rows.next()? else { break };
        listed += 1;
        batch.push(row);
        if batch.len() == PAGE {
            print(&show::rows(&batch, args.json, listed == batch.len())?)?;
            batch.clear();
        }
    }
    if !batch.is_empty() {
        print(&show::rows(&batch, args.json, listed == batch.len())?)?;
    }
    let is_more = listed == limit && rows.next()?.is_some();
    if is_more {
        eprintln!("eventflow: there are more rows; `--limit 0` lists all, `failures export` writes them out");
    } else if listed == 0 {
        eprintln!("eventflow: no such rows");
    }
    Ok(Exit::Done)
}

fn one(table: &mut dyn Table, args: &ShowArgs) -> Result<Exit, Failure> {
    let Some(shown) = table.show(&args.sink, args.offset)? else {
        return Err(Failure::failed(format_args!(
            "sink `{}` has no row for offset {}: the event was delivered, dropped, or never failed",
            args.sink, args.offset
        )));
    };
    print(&show::one(&shown, args.json)?)?;
    Ok(Exit::Done)
}

/// What must be clear before anything is opened: which rows, and that it is meant.
fn check(args: &ChangeArgs, on_terminal: bool) -> Result<(), Failure> {
    if args.offsets.is_empty() && !args.all && args.filter.is_empty() {
        let sentence = "which rows? name offsets, give a filter such as `--error TEXT`, or say `--all`";
        return Err(Failure::new(Exit::Usage, sentence));
    }
    if on_terminal && args.offsets.is_empty() && !args.yes {
        let sentence = "this may change many rows; look at them with `failures list`, then say `--yes`";
        return Err(Failure::new(Exit::Usage, sentence));
    }
    Ok(())
}

fn change(table: &mut dyn Table, action: Redrive, args: &ChangeArgs) -> Result<Exit, Failure> {
    let mut changer = Changer { table, action, sink: &args.sink, pace: Pace::new(args.rate), changed: 0 };
    let bar = spinner();
    let outcome = if args.all && args.filter.is_empty() && args.rate.is_none() {
        changer.some(Selection::All)
    } else if args.offsets.is_empty() {
        changer.found(&args.filter, &bar)
    } else {
        changer.named(&args.offsets, &bar)
    };
    bar.finish_and_clear();
    let changed = changer.changed;
    let done = match action {
        Redrive::Retry => "to be tried again",
        Redrive::Drop => "dropped",
    };
    if args.json {
        print(&format!("{{\"changed\":{changed}}}\n"))?;
    }
    eprintln!("{} {done}", count(changed, "event"));
    outcome.map(|()| Exit::Done)
}

/// Progress on a terminal; nothing anywhere else.
fn spinner() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {pos} rows {per_sec}");
    style.map_or_else(|_| ProgressBar::new_spinner(), |style| ProgressBar::new_spinner().with_style(style))
}

/// Changes rows at a pace.
struct Changer<'a> {
    table: &'a mut dyn Table,
    action: Redrive,
    sink: &'a str,
    pace: Pace,
    changed: u64,
}

impl Changer<'_> {
    fn some(&mut self, which: Selection) -> Result<(), Failure> {
        self.changed += self.table.change(self.action, self.sink, which)?;
        Ok(())
    }

    fn named(&mut self, offsets: &[u64], bar: &ProgressBar) -> Result<(), Failure> {
        for offsets in offsets.chunks(self.pace.at_once()) {
            self.pace.wait(offsets.len());
            self.some(Selection::Offsets(offsets.to_vec()))?;
            bar.set_position(self.changed);
        }
        Ok(())
    }

    /// Rows a filter finds. A page is read before its rows are changed, and the next one begins behind
    /// it, so no row is met twice although changed ones may fail anew meanwhile.
    fn found(&mut self, filter: &FilterArgs, bar: &ProgressBar) -> Result<(), Failure> {
        let mut after: Option<String> = None;
        loop {
            let page = self.table.page(Some(self.sink), filter, after.as_deref(), PAGE)?;
            let offsets: Vec<u64> = page.failures.iter().map(|row| row.offset).collect();
            self.named(&offsets, bar)?;
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }
}

/// So many a second, evenly: parts small enough for a stream, and no catching up after a pause.
struct Pace {
    rate: Option<f64>,
    next: Instant,
}

impl Pace {
    fn new(rate: Option<f64>) -> Self {
        Self { rate, next: Instant::now() }
    }

    /// Rows changed with one call: four calls a second, where there is a rate.
    fn at_once(&self) -> usize {
        self.rate.map_or(PAGE, |rate| ((rate / 4.0).ceil() as usize).clamp(1, PAGE))
    }

    /// Waits until `rows` more may go.
    fn wait(&mut self, rows: usize) {
        let Some(rate) = self.rate else { return };
        let now = Instant::now();
        std::thread::sleep(self.next.saturating_duration_since(now));
        self.next = self.next.max(now) + Duration::from_secs_f64(rows as f64 / rate);
    }
}

fn export(table: &mut dyn Table, args: &ExportArgs) -> Result<Exit, Failure> {
    let cannot = |error: io::Error| {
        let place = args.output.as_ref().map_or("standard output".into(), |path| path.display().to_string());
        Failure::failed(format_args!("cannot write to {place}: {error}"))
    };
    let out: Box<dyn Write> = match &args.output {
        None => Box::new(io::stdout().lock()),
        Some(path) => Box::new(File::create(path).map_err(cannot)?),
    };
    let mut out = BufWriter::new(out);
    let bar =
        if args.output.is_some() || !io::stdout().is_terminal() { spinner() } else { ProgressBar::hidden() };
    let mut exported = 0;
    let mut after: Option<String> = None;
    loop {
        let page = table.page(args.sink.as_deref(), &args.filter, after.as_deref(), PAGE)?;
        for row in &page.failures {
            // A row that is gone by now was delivered or dropped meanwhile.
            let Some(shown) = table.show(&row.sink, row.offset)? else { continue };
            let line = serde_json::to_string(&shown).map_err(Failure::failed)?;
            match writeln!(out, "{line}") {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Done),
                written => written.map_err(cannot)?,
            }
            exported += 1;
            bar.set_position(exported);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    bar.finish_and_clear();
    match out.flush() {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        flushed => flushed.map_err(cannot)?,
    }
    if args.output.is_some() {
        eprintln!("{} exported", count(exported, "event"));
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests;
