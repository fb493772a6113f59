//! `eventflow archive …`: the files of an archive, checked, listed, and mended.
//!
//! On the main thread, and on a few more that read files. `verify` and `list` only read, beside a running
//! daemon or not; `repair` changes files when it is told to, and holds the daemon's lock while it does. Damage
//! is an answer (code 5), not an error.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anstyle::{AnsiColor, Style};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::offline::{range_json, threads, with_progress};
use super::{ConfigArgs, Exit, Failure, count, print};
use crate::config::{Config, SinkConfig, SinkKind};
use crate::daemon::Lock;
use crate::disk::{Access, Disk, RealDisk};
use crate::event::Micros;
use crate::queue::embedded::resume_token;
use crate::sink::json_file::Options;
use crate::sink::json_file::catalog::{Catalog, CatalogFile};
use crate::sink::json_file::layout::Form;
use crate::sink::json_file::manifest::Entry;
use crate::sink::json_file::repair::{Repair, plan, repair};
use crate::sink::json_file::verify::{ArchiveDamage, Verdict, verify};

pub(super) const EXAMPLES: &str = "\
Examples:
  eventflow archive verify --data-dir /var/lib/eventflow
  eventflow archive verify --json | jq .damage
  eventflow archive list
  eventflow archive repair            # says what it would do
  eventflow archive repair --yes      # does it";

/// `eventflow archive …`
#[derive(Debug, Subcommand)]
pub(super) enum ArchiveVerb {
    /// Read every file and check it against the manifest; exits 0 when all is there and 5 when not
    #[command(after_help = "\
Checked are each file's SHA-256, its count, and that every offset stands in one file, in order, or is void. What a
running daemon has not checkpointed yet is not judged.")]
    Verify(ArchiveArgs),
    /// List the files with their offsets and times, without reading them
    List(ArchiveArgs),
    /// Say how damage can be mended, and with --yes mend it; keeps what it removes in quarantine
    #[command(after_help = "\
A changed file moves into quarantine and its intact lines are listed anew; a bad manifest is written again from the
files; what is gone is noted as lost, so that `verify` speaks of new damage only. Not while a daemon runs (code 3).")]
    Repair(RepairArgs),
}

#[derive(Debug, Args)]
pub(super) struct ArchiveArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only the archive of this sink; all of them without it
    #[arg(long, value_name = "NAME")]
    sink: Option<String>,
    /// Print JSON, one object an archive
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RepairArgs {
    #[command(flatten)]
    archive: ArchiveArgs,
    /// Do it, instead of saying what would be done
    #[arg(long, short)]
    yes: bool,
}

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const HEAD: Style = Style::new().bold();

/// Voids named one by one to people; JSON has all of them.
const SHOWN_VOIDS: usize = 10;

/// Looks at an archive and tells what it sees.
type Show = fn(&ArchiveArgs, &Archive) -> Result<Exit, Failure>;

pub(super) fn run(verb: &ArchiveVerb) -> Result<Exit, Failure> {
    let (args, show): (_, Show) = match verb {
        ArchiveVerb::Verify(args) => (args, show_verdict),
        ArchiveVerb::List(args) => (args, show_files),
        ArchiveVerb::Repair(args) => return mend(args),
    };
    let mut exit = Exit::Done;
    for archive in archives(args, &args.config.load(None)?)? {
        if let Exit::Damaged = show(args, &archive)? {
            exit = Exit::Damaged;
        }
    }
    Ok(exit)
}

/// One archive of the configuration.
struct Archive {
    options: Options,
    /// The checkpoint that vouches for what is not listed yet.
    token: Option<Vec<u8>>,
}

impl Archive {
    fn root(&self) -> &Path {
        &self.options.tree.root
    }

    /// A path as one would type it from the archive's directory.
    fn relative<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(self.root()).unwrap_or(path)
    }
}

fn archives(args: &ArchiveArgs, config: &Config) -> Result<Vec<Archive>, Failure> {
    let is_wanted = |sink: &&SinkConfig| {
        matches!(sink.kind, SinkKind::JsonFile { .. })
            && args.sink.as_ref().is_none_or(|name| *name == sink.name)
    };
    let wanted: Vec<_> = config.sinks.iter().filter(is_wanted).collect();
    if wanted.is_empty() {
        let named = args.sink.as_ref().map_or(String::new(), |name| format!(" named `{name}`"));
        let sentence = "`--config` says which configuration to read";
        return Err(Failure::new(Exit::Usage, format_args!("no archive{named} is configured; {sentence}")));
    }
    let open = |sink: &SinkConfig| -> Option<Result<Archive, Failure>> {
        let options = Options::of(sink, &config.data_dir)?;
        let root = &options.tree.root;
        if !root.is_dir() {
            let (root, sentence) = (root.display(), "`--data-dir` or `--config` says where to look");
            return Some(Err(Failure::failed(format_args!("there is no archive in {root}; {sentence}"))));
        }
        let token = resume_token(&RealDisk::default(), config, &sink.name).unwrap_or_else(|error| {
            eprintln!(
                "eventflow: the ledger cannot be read ({error}); the file being written is checked in form only"
            );
            None
        });
        Some(Ok(Archive { options, token }))
    };
    wanted.into_iter().filter_map(open).collect()
}

/// `eventflow archive verify`
fn show_verdict(args: &ArchiveArgs, archive: &Archive) -> Result<Exit, Failure> {
    let disk = RealDisk::default();
    let token = archive.token.as_deref();
    let found = with_progress(|told| verify(&disk, &archive.options.tree, token, threads(), told))?;
    let text = match args.json {
        true => format!("{}\n", verdict_json(archive, &found)),
        false => verdict_text(archive, &found),
    };
    print(&text)?;
    Ok(if found.damage.is_empty() { Exit::Done } else { Exit::Damaged })
}

fn verdict_text(archive: &Archive, found: &Verdict) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{}: {} in {}, {}; offsets below {}",
        archive.root().display(),
        count(found.events, "event"),
        count(found.files, "file"),
        HumanBytes(found.bytes),
        found.next_offset
    );
    if found.removed.0 > 0 {
        let (files, events) = found.removed;
        let _ = writeln!(
            out,
            "removed or lost, and noted: {} with {}",
            count(files, "file"),
            count(events, "event")
        );
    }
    for void in found.voids.iter().take(SHOWN_VOIDS) {
        let _ = writeln!(out, "void: offsets {}..{} hold no event for this archive", void.start, void.end);
    }
    if found.voids.len() > SHOWN_VOIDS {
        let more = count((found.voids.len() - SHOWN_VOIDS) as u64, "more range");
        let _ = writeln!(out, "void: {more}; --json names them");
    }
    for note in &found.notes {
        let _ = writeln!(out, "note: {note}");
    }
    for damage in &found.damage {
        let _ = writeln!(out, "{BAD}damaged{BAD:#}: {}", damage_text(archive, damage));
    }
    if found.damage.is_empty() {
        let _ = writeln!(out, "{GOOD}no damage{GOOD:#}");
    }
    out
}

fn damage_text(archive: &Archive, damage: &ArchiveDamage) -> String {
    let at = match (damage.line, damage.position) {
        (Some(line), Some(position)) => format!(" line {line} (byte {position})"),
        _ => String::new(),
    };
    let offsets =
        damage.offsets.as_ref().map_or(String::new(), |o| format!("; offsets {}..{}", o.start, o.end));
    let path = archive.relative(&damage.path);
    let path = if path.as_os_str().is_empty() { archive.root() } else { path };
    format!("{}{at}: {}{offsets}", path.display(), damage.what)
}

fn damage_json(archive: &Archive, damage: &ArchiveDamage) -> Value {
    json!({"file": archive.relative(&damage.path).display().to_string(), "line": damage.line,
           "position": damage.position, "offsets": damage.offsets.as_ref().map(range_json), "what": damage.what})
}

fn verdict_json(archive: &Archive, found: &Verdict) -> Value {
    let damage: Vec<_> = found.damage.iter().map(|damage| damage_json(archive, damage)).collect();
    json!({
        "sink": archive.options.sink, "path": archive.root().display().to_string(),
        "intact": found.damage.is_empty(), "files": found.files, "bytes": found.bytes, "events": found.events,
        "next_offset": found.next_offset, "removed_files": found.removed.0, "removed_events": found.removed.1,
        "voids": found.voids.iter().map(range_json).collect::<Vec<_>>(), "damage": damage, "notes": found.notes,
    })
}

/// `eventflow archive list`
fn show_files(args: &ArchiveArgs, archive: &Archive) -> Result<Exit, Failure> {
    let disk = RealDisk::default();
    let catalog = Catalog::read(&disk, &archive.options.tree).map_err(Failure::failed)?;
    let removed = catalog.manifest.entries.values().filter(|entry| !entry.is_kept());
    let mut rows: Vec<Row> = removed.map(Row::removed).collect();
    let last = catalog.files.len().saturating_sub(1);
    rows.extend(catalog.files.iter().enumerate().map(|(at, file)| Row::of(&disk, archive, file, at == last)));
    rows.sort_by_key(|row| row.first_offset);
    let text = if args.json {
        let rows: Vec<_> = rows.iter().map(Row::json).collect();
        format!(
            "{}\n",
            json!({"sink": archive.options.sink, "path": archive.root().display().to_string(), "files": rows})
        )
    } else {
        table(&rows)
    };
    print(&text)?;
    Ok(Exit::Done)
}

/// A file of the list.
struct Row {
    name: PathBuf,
    state: &'static str,
    first_offset: u64,
    /// `None` while it is not listed.
    listed: Option<Entry>,
    bytes: Option<u64>,
}

impl Row {
    fn of(disk: &dyn Disk, archive: &Archive, file: &CatalogFile, is_last: bool) -> Self {
        let bytes = disk.open(&file.file.path, Access::Read).and_then(|open| open.len()).ok();
        let state = match (&file.listed, bytes) {
            (_, None) => "gone",
            (Some(_), _) => "finished",
            (None, _) if is_last && file.file.form == Form::Plain => "written",
            (None, _) => "unlisted",
        };
        let name = archive.relative(&file.file.path).to_owned();
        Self { name, state, first_offset: file.file.first_offset, listed: file.listed.clone(), bytes }
    }

    fn removed(entry: &Entry) -> Self {
        let more = if entry.files > 1 { format!(" (+{} more)", entry.files - 1) } else { String::new() };
        let (name, state) = (PathBuf::from(format!("{}{more}", entry.name)), "removed");
        Self { name, state, first_offset: entry.first_offset, listed: Some(entry.clone()), bytes: None }
    }

    fn json(&self) -> Value {
        let listed = self.listed.as_ref();
        json!({"file": self.name.display().to_string(), "state": self.state, "first_offset": self.first_offset,
               "last_offset": listed.map(|entry| entry.last_offset), "events": listed.map(|entry| entry.count),
               "bytes": self.bytes, "content_bytes": listed.map(|entry| entry.content_bytes),
               "sha256": listed.map(|entry| entry.sha256.clone()),
               "first_time": listed.map(|entry| entry.first_time.to_rfc3339()),
               "last_time": listed.map(|entry| entry.last_time.to_rfc3339()),
               "reason": listed.and_then(|entry| entry.reason.clone()), "files": listed.map_or(1, |entry| entry.files)})
    }
}

fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    let width = rows.iter().map(|row| row.name.display().to_string().len()).max().unwrap_or(0).max(4);
    let _ = writeln!(
        out,
        "{HEAD}{:width$}  {:8}  {:>12}  {:>12}  {:>10}  {:>11}  {:20}  {:20}{HEAD:#}",
        "file", "state", "first offset", "last offset", "events", "bytes", "first accepted", "last accepted"
    );
    let dash = || "-".to_owned();
    let seconds = |at: Micros| {
        let text = at.to_rfc3339();
        format!("{}Z", text.split('.').next().unwrap_or_default())
    };
    for row in rows {
        let listed = row.listed.as_ref();
        let _ = writeln!(
            out,
            "{:width$}  {:8}  {:>12}  {:>12}  {:>10}  {:>11}  {:20}  {:20}",
            row.name.display().to_string(),
            row.state,
            row.first_offset,
            listed.map_or_else(dash, |entry| entry.last_offset.to_string()),
            listed.map_or_else(dash, |entry| entry.count.to_string()),
            row.bytes.map_or_else(dash, |bytes| HumanBytes(bytes).to_string()),
            listed.map_or_else(dash, |entry| seconds(entry.first_time)),
            listed.map_or_else(dash, |entry| seconds(entry.last_time)),
        );
    }
    out
}

/// `eventflow archive repair`
fn mend(args: &RepairArgs) -> Result<Exit, Failure> {
    let config = args.archive.config.load(None)?;
    let _lock = match args.yes {
        true => Some(Lock::take(&config.data_dir)?),
        false => None,
    };
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::default());
    let mut is_left = false;
    for archive in archives(&args.archive, &config)? {
        let token = archive.token.as_deref();
        let mut repairs = with_progress(|told| plan(&*disk, &archive.options.tree, token, threads(), told))?;
        if args.yes && !repairs.is_empty() {
            repairs =
                repair(&disk, &archive.options, token, repairs, Micros::now()).map_err(Failure::failed)?;
        }
        is_left |= repairs.iter().any(|repair| !args.yes || repair.action.is_none());
        print(&match args.archive.json {
            true => format!("{}\n", repairs_json(&archive, &repairs, args.yes)),
            false => repairs_text(&archive, &repairs, args.yes),
        })?;
    }
    Ok(if is_left { Exit::Damaged } else { Exit::Done })
}

fn repairs_text(archive: &Archive, repairs: &[Repair], is_done: bool) -> String {
    let mut out = String::new();
    for Repair { damage, action, quarantined } in repairs {
        let _ = writeln!(out, "{BAD}damaged{BAD:#}: {}", damage_text(archive, damage));
        let _ = match action {
            Some(action) if is_done => writeln!(out, "   done: {action}"),
            Some(action) => writeln!(out, "  would: {action}"),
            None => writeln!(
                out,
                "   left: this file is not listed, so what it should hold is known to its own lines only; start the \
                 daemon, which goes on in a new file, and look again"
            ),
        };
        if let Some(path) = quarantined {
            let _ = writeln!(out, "   kept: {}", path.display());
        }
    }
    let _ = match (repairs.is_empty(), is_done) {
        (true, _) => writeln!(out, "{}: {GOOD}nothing to repair{GOOD:#}", archive.root().display()),
        (false, true) => Ok(()),
        (false, false) => writeln!(out, "nothing was changed; --yes does it, with the daemon stopped"),
    };
    out
}

fn repairs_json(archive: &Archive, repairs: &[Repair], is_done: bool) -> Value {
    let one = |repair: &Repair| {
        json!({"damage": damage_json(archive, &repair.damage), "action": repair.action,
               "quarantined": repair.quarantined.as_ref().map(|path| path.display().to_string())})
    };
    json!({"sink": archive.options.sink, "path": archive.root().display().to_string(), "done": is_done,
           "repairs": repairs.iter().map(one).collect::<Vec<_>>()})
}
