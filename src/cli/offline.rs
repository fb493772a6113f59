//! What reads the log in a data directory, of a running or a stopped daemon: `wal inspect` and `wal verify`.
//!
//! Read-only, on the main thread and a few more that read files. Damage is an answer (code 5), not an error.
//! `wal repair` is in [`repair`](super::repair).

use std::fmt::Write;
use std::io::{self, IsTerminal};
use std::ops::Range;
use std::path::PathBuf;

use anstyle::{AnsiColor, Style};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{ConfigArgs, Exit, Failure, count, print, repair};
use crate::config::Config;
use crate::disk::RealDisk;
use crate::log::inspect::{Depth, Inspection, SegmentInfo, inspect};
use crate::log::{Damage, Stream};
use crate::queue::embedded::{known_durable, wal_options};

/// `eventflow wal …`
#[derive(Debug, Subcommand)]
pub(super) enum WalVerb {
    /// List the segments; reads their headers and scans the last one
    #[command(after_help = "Example:
  eventflow wal inspect --data-dir /var/lib/eventflow")]
    Inspect(WalArgs),
    /// Read every record and check it; exits 0 when the log is intact and 5 when it is damaged
    #[command(after_help = "Examples:
  eventflow wal verify --data-dir /var/lib/eventflow
  eventflow wal verify --json | jq .damage")]
    Verify(WalArgs),
    /// Say how damage can be repaired, and with --yes repair it; keeps what it removes in quarantine
    #[command(after_help = repair::HELP)]
    Repair(repair::RepairArgs),
}

#[derive(Debug, Args)]
pub(super) struct WalArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Files read at the same time at most.
const MAX_THREADS: usize = 8;

/// Why a void is no damage.
const NEVER_OR_REPAIRED: &str = "none was promised, or a repair has noted its loss";

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const HEAD: Style = Style::new().bold();

/// `eventflow wal inspect`, `eventflow wal verify`
pub(super) fn wal(verb: &WalVerb) -> Result<Exit, Failure> {
    let (args, depth) = match verb {
        WalVerb::Inspect(args) => (args, Depth::Headers),
        WalVerb::Verify(args) => (args, Depth::Everything),
        WalVerb::Repair(args) => return repair::run(args),
    };
    let config = args.config.load(None)?;
    let dir = log_dir(&config)?;
    let disk = RealDisk::default();
    let known_durable = durable(&disk, &config);
    let found = with_progress(|told| {
        inspect(&disk, &dir, Stream::Events, depth, known_durable, threads(), told).map_err(Failure::failed)
    })?;
    let text = match (args.json, depth) {
        (true, _) => format!("{}\n", as_json(&found)),
        (false, Depth::Headers) => format!("{}\n{}", segments(&found), summary(&found)),
        (false, Depth::Everything) => summary(&found),
    };
    print(&text)?;
    // Looking is no judgement; verifying is.
    let damaged = depth == Depth::Everything && !found.damage.is_empty();
    Ok(if damaged { Exit::Damaged } else { Exit::Done })
}

/// Where the log is; there must be one.
pub(super) fn log_dir(config: &Config) -> Result<PathBuf, Failure> {
    let dir = wal_options(config).dir;
    if dir.is_dir() {
        return Ok(dir);
    }
    let dir = dir.display();
    Err(Failure::failed(format_args!("there is no log in {dir}; `--data-dir` says where to look")))
}

/// How far the log is known to be durable from elsewhere. Asked before the log is looked at: a running daemon goes
/// on, and what it knows later is no loss now.
pub(super) fn durable(disk: &RealDisk, config: &Config) -> u64 {
    known_durable(disk, config).unwrap_or_else(|error| {
        eprintln!(
            "eventflow: the ledger cannot be read ({error}); a lost end that only it knows of is not seen"
        );
        0
    })
}

/// Threads that read a directory side by side: one a processor, within reason.
pub(super) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |threads| threads.get().min(MAX_THREADS))
}

/// Progress on a terminal; nothing anywhere else.
pub(super) fn progress() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    match ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}") {
        Ok(style) => ProgressBar::new(0).with_style(style),
        Err(_) => ProgressBar::new(0),
    }
}

/// Work that is told where to say how far it is.
pub(super) fn with_progress<T>(work: impl FnOnce(&(dyn Fn(u64, u64) + Sync)) -> T) -> T {
    let bar = progress();
    let done = work(&|done, of| {
        bar.set_length(of);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    done
}

fn segments(found: &Inspection) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{HEAD}{:28}  {:>20}  {:>20}  {:>10}  {:>10}  {:>8}  {:>10}  created{HEAD:#}",
        "segment", "first offset", "next offset", "bytes", "used", "frames", "records"
    );
    let or_dash = |number: Option<u64>| number.map_or("-".to_owned(), |n| n.to_string());
    for segment in &found.segments {
        let _ = writeln!(
            out,
            "{:28}  {:>20}  {:>20}  {:>10}  {:>10}  {:>8}  {:>10}  {}",
            name(segment),
            segment.base,
            or_dash(segment.end),
            segment.bytes,
            or_dash(segment.used_bytes),
            or_dash(segment.frames),
            or_dash(segment.records),
            created(segment)
        );
    }
    out
}

fn name(segment: &SegmentInfo) -> String {
    segment.file.file_name().unwrap_or(segment.file.as_os_str()).to_string_lossy().into_owned()
}

fn created(segment: &SegmentInfo) -> String {
    jiff::Timestamp::from_microsecond(segment.created_micros).map_or("-".to_owned(), |time| time.to_string())
}

fn summary(found: &Inspection) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "offsets {}..{} in {}, {}; durable below {}",
        found.first_offset,
        found.next_offset,
        count(found.segments.len() as u64, "segment"),
        count(found.spares, "spare"),
        found.known_durable
    );
    for void in &found.voids {
        let _ =
            writeln!(out, "void: offsets {}..{} hold no event: {NEVER_OR_REPAIRED}", void.start, void.end);
    }
    if let Some(tail) = &found.torn_tail {
        let _ = writeln!(
            out,
            "torn tail: {} from byte {} on, {} not zero; nothing there was acknowledged",
            tail.file.display(),
            tail.position,
            count(tail.non_zero_bytes, "byte")
        );
    }
    for name in &found.foreign {
        let _ = writeln!(out, "ignored: `{name}` is no segment of this log");
    }
    for damage in &found.damage {
        let _ = writeln!(out, "{BAD}damaged{BAD:#}: {}", damage_text(damage));
    }
    if found.damage.is_empty() {
        let _ = writeln!(out, "{GOOD}no damage{GOOD:#}");
    }
    out
}

pub(super) fn damage_text(damage: &Damage) -> String {
    let Damage { file, bytes, lost, reason, .. } = damage;
    format!("{} bytes {}..{}: {reason}; {}", file.display(), bytes.start, bytes.end, lost_events(lost))
}

fn lost_events(lost: &Range<u64>) -> String {
    match lost.end.saturating_sub(lost.start) {
        0 => "no event is lost".to_owned(),
        1 => format!("the event at offset {} is lost", lost.start),
        _ => format!("the events at offsets {}..{} are lost", lost.start, lost.end),
    }
}

pub(super) fn range_json(range: &Range<u64>) -> Value {
    json!([range.start, range.end])
}

pub(super) fn damage_json(damage: &Damage) -> Value {
    json!({"file": damage.file.display().to_string(), "bytes": range_json(&damage.bytes),
           "lost": range_json(&damage.lost), "reason": damage.reason})
}

fn as_json(found: &Inspection) -> Value {
    let segments = found.segments.iter().map(|segment| {
        json!({"file": name(segment), "first_offset": segment.base, "next_offset": segment.end,
               "created": created(segment), "bytes": segment.bytes, "used_bytes": segment.used_bytes,
               "frames": segment.frames, "records": segment.records})
    });
    let damage = found.damage.iter().map(damage_json);
    let tail = found.torn_tail.as_ref().map(|tail| {
        json!({"file": tail.file.display().to_string(), "position": tail.position,
               "non_zero_bytes": tail.non_zero_bytes})
    });
    json!({
        "first_offset": found.first_offset, "next_offset": found.next_offset, "durable_below": found.known_durable,
        "intact": found.damage.is_empty(), "spares": found.spares,
        "segments": segments.collect::<Vec<_>>(), "damage": damage.collect::<Vec<_>>(),
        "voids": found.voids.iter().map(range_json).collect::<Vec<_>>(),
        "torn_tail": tail, "foreign": found.foreign,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_damaged_range_and_each_void_is_listed() {
        let found = Inspection {
            next_offset: 9,
            voids: std::iter::once(7..8).collect(),
            damage: vec![Damage {
                file: "wal/0.seg".into(),
                bytes: 4096..4200,
                lost: 3..4,
                quarantined: None,
                reason: "its checksum is wrong".to_owned(),
            }],
            ..Inspection::default()
        };
        let text = summary(&found);
        for words in ["wal/0.seg bytes 4096..4200", "checksum", "offset 3 is lost", "offsets 7..8"] {
            assert!(text.contains(words), "{text}\nlacks {words}");
        }
        let json = as_json(&found);
        assert_eq!(json["intact"], false);
        assert_eq!(json["damage"][0]["lost"], json!([3, 4]));
        assert_eq!(json["voids"], json!([[7, 8]]));
    }
}
