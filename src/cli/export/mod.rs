//! `eventflow export`: one JSON archive out of archive files and log, of a running or a stopped
//! daemon.
//!
//! Read-only towards the data directory; runs on the main thread. Memory does not grow with what is
//! exported. A file that is asked for appears whole or not at all: it is written under a temporary
//! name beside its own, synced and renamed. Damage on the way costs what it hit, is said, and ends
//! with code 5.

mod ahead;
mod filter;
mod join;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

use super::{ConfigArgs, Exit, Failure, count};
use crate::config::{Config, SinkConfig};
use crate::disk::RealDisk;
use crate::log::{OfflineReader, Stream};
use crate::sink::json_file::Options;
use crate::sink::json_file::encoder::Encoder;
use crate::sink::json_file::layout::{Form, Tree};

use filter::Filter;
use join::Join;

pub(super) use filter::Bound;
pub(super) use join::{JoinError, Output, Tally};

pub(super) const EXAMPLES: &str = "Examples:
  eventflow export > all.ndjson
  eventflow export --from 2025-01-01 --to 2025-02-01 --type 'com.example.order.*' -o january.ndjson.zst
  eventflow export --from 1000 --to 2000 --format json | jq '.[].id'";

/// `eventflow export`
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The first event: an offset, a time of acceptance (RFC 3339) or a UTC date; included
    #[arg(long, value_name = "X")]
    from: Option<Bound>,
    /// The end: an offset, a time of acceptance or a UTC date; not included
    #[arg(long, value_name = "X")]
    to: Option<Bound>,
    /// Only events whose type matches; `*` stands for any text; may be given several times
    #[arg(long = "type", value_name = "GLOB")]
    types: Vec<String>,
    /// Only events whose source matches; may be given several times
    #[arg(long = "source", value_name = "GLOB")]
    sources: Vec<String>,
    /// One event a line, or one JSON array of all of them
    #[arg(long, value_enum, default_value_t = Format::Ndjson)]
    format: Format,
    /// Write to this file instead of standard output, compressed when its name ends in `.zst` or `.gz`; it
    /// appears, or is replaced, when it is whole
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// How events are set side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One event a line
    Ndjson,
    /// One JSON array
    Json,
}

/// `eventflow export`
pub(super) fn run(args: &ExportArgs) -> Result<Exit, Failure> {
    let config = args.config.load(None)?;
    let filter = wanted(args.from, args.to, &args.types, &args.sources)?;
    let store = Store::of(&config)?;
    let tally = match &args.output {
        None => {
            let mut out = Printer::new(io::stdout().lock(), args.format, false);
            match store.read(&filter, &mut out).and_then(|tally| out.finish().map(|_| tally)) {
                // The reader has seen enough (`| head`).
                Err(JoinError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Ok(Exit::Done);
                }
                result => result.map_err(Failure::failed)?,
            }
        }
        Some(path) => to_file(path, args.format, |out| store.read(&filter, out))
            .map_err(|error| Failure::failed(format_args!("{}: {error}", path.display())))?,
    };
    report(&tally, args.output.is_some());
    let damaged = tally.bad_lines > 0 || tally.damaged_events > 0;
    Ok(if damaged { Exit::Damaged } else { Exit::Done })
}

/// What a command line asks for.
pub(super) fn wanted(
    from: Option<Bound>,
    to: Option<Bound>,
    types: &[String],
    sources: &[String],
) -> Result<Filter, Failure> {
    let filter = Filter::new(from, to, types, sources).map_err(|error| Failure::new(Exit::Usage, error))?;
    if filter.is_backwards() {
        let sentence = "`--to` lies before `--from`, so there is nothing between them";
        return Err(Failure::new(Exit::Usage, sentence));
    }
    Ok(filter)
}

/// Where the events of a data directory are.
pub(super) struct Store {
    archive: Tree,
    wal: PathBuf,
}

impl Store {
    /// Where a configuration says; at least one of the two must be there.
    pub(super) fn of(config: &Config) -> Result<Self, Failure> {
        let store = Self { archive: archive_of(config), wal: config.data_dir.join("wal") };
        if !store.archive.root.is_dir() && !store.wal.is_dir() {
            return Err(Failure::failed(format_args!(
                "there is neither an archive in {} nor a log in {}; `--data-dir` or `--config` says where to look",
                store.archive.root.display(),
                store.wal.display()
            )));
        }
        Ok(store)
    }

    /// Hands out every event that is wanted, in order and once.
    pub(super) fn read(&self, filter: &Filter, out: &mut impl Output) -> Result<Tally, JoinError> {
        let disk = RealDisk::default();
        let tail = if self.wal.is_dir() {
            Some(OfflineReader::open(&disk, &self.wal, Stream::Events).map_err(JoinError::LogDirectory)?)
        } else {
            None
        };
        Join::new(&disk, &self.archive, filter, tail, out).run()
    }
}

/// The first archive that is configured; one that holds everything is preferred.
fn archive_of(config: &Config) -> Tree {
    let tree = |sink: &SinkConfig| Some(Options::of(sink, &config.data_dir)?.tree);
    let whole = config.sinks.iter().filter(|sink| sink.filter.is_open()).find_map(tree);
    whole
        .or_else(|| config.sinks.iter().find_map(tree))
        .unwrap_or_else(|| Tree::of(config.data_dir.join("archive")))
}

/// Words for standard error: damage always, the tally where the events went to a file.
fn report(tally: &Tally, to_file: bool) {
    let mut words = String::new();
    if to_file && tally.events > 0 {
        words += &format!(
            "{}, offsets {} to {}\n",
            count(tally.events, "event"),
            tally.first_offset,
            tally.last_offset
        );
    } else if to_file {
        words += "no events in this range\n";
    }
    if tally.bad_lines > 0 {
        words += &format!(
            "damaged: {} in the archive without the event, and the log does not have it either\n",
            count(tally.bad_lines, "line")
        );
    }
    if tally.damaged_events > 0 {
        words += &format!(
            "damaged: {} in the log; `eventflow wal verify` says more\n",
            count(tally.damaged_events, "event")
        );
    }
    let _ = io::stderr().write_all(words.as_bytes());
}

/// Writes lines in the format asked for.
struct Printer<W: Write> {
    out: BufWriter<W>,
    format: Format,
    empty: bool,
    bar: ProgressBar,
}

impl<W: Write> Printer<W> {
    fn new(out: W, format: Format, to_file: bool) -> Self {
        let bar = if io::stderr().is_terminal() && (to_file || !io::stdout().is_terminal()) {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}");
        let bar = style.map_or(bar.clone(), |style| bar.with_style(style));
        Self { out: BufWriter::with_capacity(256 << 10, out), format, empty: true, bar }
    }

    /// Ends the array and hands back what was written to.
    fn finish(mut self) -> Result<W, JoinError> {
        self.bar.finish_and_clear();
        let end: &[u8] = match (self.format, self.empty) {
            (Format::Ndjson, _) => b"",
            (Format::Json, true) => b"[]\n",
            (Format::Json, false) => b"\n]\n",
        };
        self.out.write_all(end).map_err(JoinError::Output)?;
        self.out.into_inner().map_err(|error| JoinError::Output(error.into_error()))
    }
}

impl<W: Write> Output for Printer<W> {
    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let first = std::mem::take(&mut self.empty);
        match (self.format, first) {
            (Format::Ndjson, _) => {
                self.out.write_all(line)?;
                return self.out.write_all(b"\n");
            }
            (Format::Json, true) => self.out.write_all(b"[\n")?,
            (Format::Json, false) => self.out.write_all(b",\n")?,
        }
        self.out.write_all(line)
    }

    fn progress(&mut self, done: u64, of: u64) {
        self.bar.set_length(of);
        self.bar.set_position(done);
    }
}

/// Lets `write` fill a temporary file beside `path`, then puts it in place, durably.
fn to_file(
    path: &Path,
    format: Format,
    write: impl FnOnce(&mut Printer<Encoder<File>>) -> Result<Tally, JoinError>,
) -> Result<Tally, JoinError> {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let partial = Partial(dir.join(format!(".{name}.{}.partial", std::process::id())));
    let target = File::create(&partial.0).and_then(|file| Encoder::new(form_of(path), file));
    let target = target.map_err(JoinError::Output)?;
    let mut printer = Printer::new(target, format, true);
    let tally = write(&mut printer)?;
    let file = printer.finish()?.finish().map_err(JoinError::Output)?;
    file.sync_all()
        .and_then(|()| fs::rename(&partial.0, path))
        .and_then(|()| File::open(dir)?.sync_all())
        .map_err(JoinError::Output)?;
    Ok(tally)
}

/// The form that the ending of a file's name asks for.
fn form_of(path: &Path) -> Form {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("zst") => Form::Zstd,
        Some("gz") => Form::Gzip,
        _ => Form::Plain,
    }
}

/// A temporary file; goes when the export fails. After the rename there is none under this name.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
