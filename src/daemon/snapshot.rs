//! A snapshot: a copy of the data directory of this daemon while it works, from which `serve` starts.
//!
//! ```text
//! mark as incomplete ─► queue (ledger, failure table, event log) ─► archives ─► quarantine
//!        ─► snapshot.json, all synced ─► mark removed, synced ─► answer
//! ```
//!
//! It is what a crash would have left at one moment, so opening it is a recovery like any other and needs
//! no rule of its own. Why the parts fit together:
//!
//! * inside the queue: see `queue::embedded::copy`;
//! * the archive is copied for the checkpoint in the copied ledger, up to the length that this
//!   speaks of, and no further: what came later is delivered again by the copied log;
//! * the log that is copied was not freed since that checkpoint, so it has all that comes again.
//!
//! `lock` and `state.sled` (an index that is rebuilt) are left out, as are sinks' directories outside of
//! the data directory.
//!
//! Runs on a thread of the blocking pool; one at a time. A failure removes what there is of it. Should
//! the process end half-way, the mark stays, and no daemon starts from such a directory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use tokio::time::Instant;

use crate::config::Config;
use crate::disk::{Disk, EntryKind, link_or_copy};
use crate::event::Micros;
use crate::http::{Snapshot, SnapshotError};
use crate::queue::embedded::{CopyError, EmbeddedQueue};
use crate::sink::{self, Kept};

use super::Error;

/// The mark of a directory that is no whole snapshot (yet).
const INCOMPLETE: &str = "snapshot.incomplete";
/// What says what a snapshot holds.
const DESCRIPTION: &str = "snapshot.json";

/// Refuses a data directory that is only a part of a snapshot.
pub(super) fn refuse_incomplete(dir: &Path) -> Result<(), Error> {
    if !dir.join(INCOMPLETE).exists() {
        return Ok(());
    }
    let reason = format!(
        "it is a snapshot that was never finished (it has a file `{INCOMPLETE}`); use a whole one and remove this one"
    );
    Err(Error::DataDir { dir: dir.to_owned(), reason })
}

/// Takes snapshots of one daemon.
pub(super) struct Snapshots {
    config: Config,
    disk: Arc<dyn Disk>,
    queue: Arc<EmbeddedQueue>,
}

impl Snapshots {
    pub(super) fn new(config: &Config, disk: &Arc<dyn Disk>, queue: &Arc<EmbeddedQueue>) -> Self {
        Self { config: config.clone(), disk: Arc::clone(disk), queue: Arc::clone(queue) }
    }

    /// Takes one into `dir`, an absolute path of nothing or of an empty directory.
    pub(super) fn take(&self, dir: &Path) -> Result<Snapshot, SnapshotError> {
        let began = Instant::now();
        self.check(dir)?;
        let was_there = dir.exists();
        self.begin(dir).map_err(|error| failed("creating", dir, &error))?;
        let taken = self.fill(dir);
        match &taken {
            Ok(snapshot) => tracing::info!(
                dir = %dir.display(),
                next_offset = snapshot.next_offset,
                copied_bytes = snapshot.copied_bytes,
                files = snapshot.files,
                took_ms = began.elapsed().as_millis() as u64,
                "snapshot taken"
            ),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "no snapshot was taken");
                if let Err(error) = clear(dir, was_there) {
                    tracing::warn!(dir = %dir.display(), %error, "what there is of the snapshot cannot be removed");
                }
            }
        }
        taken
    }

    /// Whether `dir` can become a snapshot of ours.
    fn check(&self, dir: &Path) -> Result<(), SnapshotError> {
        let refuse = |why: String| Err(SnapshotError::Refused(why));
        if !dir.is_absolute() || dir.components().any(|part| part == Component::ParentDir) {
            return refuse(format!(
                "{}: give the directory as an absolute path without `..`; it is a path on the daemon's machine",
                dir.display()
            ));
        }
        let data = fs::canonicalize(&self.config.data_dir);
        let data = data.map_err(|error| failed("looking at", &self.config.data_dir, &error))?;
        if resolved(dir).starts_with(&data) {
            return refuse(format!("{} lies inside the data directory; choose another place", dir.display()));
        }
        match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
            Ok(false) => Err(SnapshotError::Conflict(format!(
                "{} is not empty; a snapshot needs a directory of its own",
                dir.display()
            ))),
            Ok(true) => self.check_room(dir),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.check_room(dir),
            Err(error) => refuse(format!("{} cannot be used: {error}", dir.display())),
        }
    }

    /// Whether the disk has room for what is copied in any case, and for what `min_free_disk` keeps.
    fn check_room(&self, dir: &Path) -> Result<(), SnapshotError> {
        let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir);
        let free = self.disk.free_bytes(existing).map_err(|error| failed("looking at", existing, &error))?;
        let mut needed = self.config.wal.min_free_disk_bytes;
        for part in ["wal", "ledger", "ledger/failures"] {
            needed += bytes_in(&self.config.data_dir.join(part)).unwrap_or(0);
        }
        if needed > free {
            return Err(SnapshotError::NoRoom(format!(
                "a snapshot takes about {needed} bytes, and the disk of {} has {free} free",
                existing.display()
            )));
        }
        Ok(())
    }

    /// Makes the directory, readable by those who can read the original, and marks it.
    fn begin(&self, dir: &Path) -> io::Result<()> {
        let is_new = !dir.exists();
        self.disk.create_dir_all(dir)?;
        if is_new {
            fs::set_permissions(dir, fs::metadata(&self.config.data_dir)?.permissions())?;
        }
        File::create_new(dir.join(INCOMPLETE))?.sync_all()?;
        self.disk.sync_dir(dir)
    }

    fn fill(&self, dir: &Path) -> Result<Snapshot, SnapshotError> {
        let disk = &*self.disk;
        let data_dir = &self.config.data_dir;
        let time = Micros::now().to_rfc3339();
        let copied = self.queue.copy_to(disk, &self.config, dir, self.config.snapshot.max_hold)?;
        let mut snapshot = Snapshot {
            dir: dir.to_owned(),
            time,
            version: env!("CARGO_PKG_VERSION"),
            first_offset: copied.first_offset,
            next_offset: copied.next_offset,
            copied_bytes: copied.bytes,
            files: 0,
            left_out: Vec::new(),
        };
        for (config, (_, resume)) in self.config.sinks.iter().zip(&copied.resumes) {
            let kept = sink::copy_files(disk, config, data_dir, dir, resume);
            match kept.map_err(|error| failed("copying the files of a sink to", dir, &error))? {
                Kept::Nothing => {}
                Kept::Elsewhere(path) => snapshot.left_out.push(path),
                Kept::Copied(files) => {
                    snapshot.files += files.files;
                    snapshot.copied_bytes += files.bytes;
                }
            }
        }
        self.copy_quarantine(dir, &mut snapshot)
            .map_err(|error| failed("copying the quarantine to", dir, &error))?;
        finish(disk, dir, &snapshot).map_err(|error| failed("finishing", dir, &error))?;
        Ok(snapshot)
    }

    /// Files in quarantine are written once and never changed.
    fn copy_quarantine(&self, dir: &Path, snapshot: &mut Snapshot) -> io::Result<()> {
        let (from, to) = (self.config.data_dir.join("quarantine"), dir.join("quarantine"));
        let entries = match self.disk.list(&from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        self.disk.create_dir_all(&to)?;
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::File) {
            snapshot.copied_bytes +=
                link_or_copy(&*self.disk, &from.join(&entry.name), &to.join(&entry.name))?;
            snapshot.files += 1;
        }
        self.disk.sync_dir(&to)
    }
}

impl From<CopyError> for SnapshotError {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Busy => SnapshotError::Conflict("another snapshot is being taken".to_owned()),
            other => SnapshotError::Failed(other.to_string()),
        }
    }
}

/// Says what the snapshot holds, then that it is whole.
fn finish(disk: &dyn Disk, dir: &Path, snapshot: &Snapshot) -> io::Result<()> {
    let mut file = File::create_new(dir.join(DESCRIPTION))?;
    let text = serde_json::to_string_pretty(snapshot).map_err(io::Error::other)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    disk.sync_dir(dir)?;
    fs::remove_file(dir.join(INCOMPLETE))?;
    disk.sync_dir(dir)
}

/// Removes what was put into `dir`, the mark last; and `dir`, unless it was there before.
fn clear(dir: &Path, was_there: bool) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name() == INCOMPLETE {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_file(dir.join(INCOMPLETE))?;
    if was_there { Ok(()) } else { fs::remove_dir(dir) }
}

/// The path with what exists of it freed of links.
fn resolved(dir: &Path) -> PathBuf {
    let found = dir.ancestors().find_map(|existing| Some((existing, fs::canonicalize(existing).ok()?)));
    match found {
        Some((existing, real)) => real.join(dir.strip_prefix(existing).unwrap_or(Path::new(""))),
        None => dir.to_owned(),
    }
}

fn bytes_in(dir: &Path) -> io::Result<u64> {
    let files = fs::read_dir(dir)?.map(|entry| entry?.metadata());
    files.map(|file| file.map(|file| if file.is_file() { file.len() } else { 0 })).sum()
}

fn failed(doing: &str, path: &Path, error: &io::Error) -> SnapshotError {
    let text = format!("{doing} {} failed: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => SnapshotError::NoRoom(text),
        _ => SnapshotError::Failed(text),
    }
}
