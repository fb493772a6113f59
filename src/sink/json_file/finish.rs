//! What happens to a file once it takes no more: it is read back, compressed, listed in the manifest, and
//! one day perhaps removed.
//!
//! The sink leaves finished files, as it wrote them, on the [`Desk`]; the [`Finisher`] takes them from there, one
//! at a time, and does one thing a [`Finisher::step`]. In the daemon it has a thread of its own
//! (`background`), so that neither a slow nor a full disk holds up the archive: a file waits, plain and
//! readable, until it can be done. Tests step it by hand.
//!
//! What is read back is compared with the checksum that the sink computed as it wrote. A file that was changed
//! by anyone in between is listed as it was written, so that `archive verify` names it for as long as it is there.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tracing::{error, info};

use crate::disk::{Access, Disk, DiskFile};
use crate::event::Micros;
use crate::waits::{Condvar, Mutex, MutexGuard};

use super::book::{Book, TEMPORARY, clear, remove_if_there};
use super::catalog::{Catalog, CatalogFile};
use super::encoder::Encoder;
use super::examine::{Depth, Examined, examine};
use super::layout::{ArchiveFile, FileReader, Form};
use super::manifest::{Entry, Manifest};
use super::position::{Finished, MAX_FINISHED};
use super::{Failure, IoContext, Options};

/// Bytes given to the disk at once.
const WRITE_BYTES: usize = 1 << 20;

/// Where the sink leaves finished files for the background.
#[derive(Debug, Default)]
pub(super) struct Desk {
    state: Mutex<DeskState>,
    changed: Condvar,
    rested: Condvar,
}

#[derive(Debug, Default)]
pub(super) struct DeskState {
    /// Finished and not listed yet, as they were written; the oldest first.
    finished: Vec<Finished>,
    /// Files that begin below are finished. 0 until the sink stands where it was.
    finished_below: u64,
    /// There may be something to do.
    is_fresh: bool,
    /// Nothing is done at the moment, and nothing can be.
    is_at_rest: bool,
    /// The sink is closed.
    is_closed: bool,
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, DeskState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sink is done with these, and with every file that begins below `finished_below`.
    pub fn hand_over(&self, finished: &[Finished], finished_below: u64) {
        let mut state = self.state();
        if finished.is_empty() && state.finished_below == finished_below {
            return;
        }
        for file in finished {
            state.finished.retain(|known| known.first_offset != file.first_offset);
            state.finished.push(*file);
        }
        // Of the oldest it is then not known what they were; they are taken as they are.
        let excess = state.finished.len().saturating_sub(MAX_FINISHED);
        state.finished.drain(..excess);
        (state.finished_below, state.is_fresh) = (finished_below, true);
        self.changed.notify_one();
    }

    /// Finished and not listed, for the token.
    pub fn finished(&self) -> Vec<Finished> {
        self.state().finished.clone()
    }

    pub fn close(&self) {
        self.state().is_closed = true;
        self.changed.notify_one();
    }

    pub fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// For the background: waits until there may be something to do, or for `patience`.
    pub fn wait(&self, patience: Duration) {
        let mut state = self.state();
        state.is_at_rest = !state.is_fresh;
        self.rested.notify_all();
        let waits = |state: &mut DeskState| !state.is_fresh && !state.is_closed;
        let waited = self.changed.wait_timeout_while(state, patience, waits);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        (state.is_fresh, state.is_at_rest) = (false, false);
    }

    /// For the sink: waits until the background has nothing to do, or cannot, or for `patience`.
    pub fn wait_for_rest(&self, patience: Duration) {
        let waits = |state: &mut DeskState| !state.is_at_rest || state.is_fresh;
        drop(self.rested.wait_timeout_while(self.state(), patience, waits));
    }

    /// What the manifest lists needs no word here any more.
    pub fn forget_listed(&self, manifest: &Manifest) {
        self.state().finished.retain(|file| !manifest.entries.contains_key(&file.first_offset));
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Something; there may be more.
    Worked,
    /// There is nothing to do now.
    Idle,
}

/// Does what is to be done with finished files.
#[derive(Debug)]
pub struct Finisher {
    disk: Arc<dyn Disk>,
    options: Options,
    desk: Arc<Desk>,
    /// Read with the first step, and again after a failure.
    book: Option<Book>,
    /// Files in which there is nothing to list.
    hopeless: BTreeSet<PathBuf>,
}

impl Finisher {
    pub(super) fn new(disk: Arc<dyn Disk>, options: Options, desk: Arc<Desk>) -> Self {
        Self { disk, options, desk, book: None, hopeless: BTreeSet::new() }
    }

    /// Does the next thing there is to do. `now` decides what is old. After an error, which is the
    /// disk's, everything is as before or a step further; the next call tries again.
    pub fn step(&mut self, now: Micros) -> Result<Step, FinishError> {
        self.step_now(now).map_err(|failure| FinishError(failure.to_string()))
    }

    pub(super) fn step_now(&mut self, now: Micros) -> Result<Step, Failure> {
        let below = self.desk.state().finished_below;
        if below == 0 {
            return Ok(Step::Idle);
        }
        let mut book = match self.book.take() {
            Some(book) => book,
            None => Book::open(&*self.disk, &self.options)?,
        };
        let done = self.next(&mut book, below, now)?;
        self.book = Some(book);
        Ok(done)
    }

    fn next(&mut self, book: &mut Book, below: u64, now: Micros) -> Result<Step, Failure> {
        let tree = &self.options.tree;
        self.report_gone(below)?;
        let catalog = Catalog::read(&*self.disk, tree).doing("listing", &tree.root)?;
        clear(&*self.disk, &self.options, &catalog, below)?;
        let finished = |file: &&CatalogFile| file.file.first_offset < below;
        let unlisted = |file: &&CatalogFile| {
            let is_listed = book.manifest.entries.contains_key(&file.file.first_offset);
            !is_listed && !self.hopeless.contains(&file.file.path)
        };
        let mut before = 0;
        for file in catalog.files.iter().filter(finished) {
            if unlisted(&file) {
                let file = file.file.clone();
                let is_done = self.finish(book, &file, before)?;
                return Ok(if is_done { Step::Worked } else { Step::Idle });
            }
            before = file.last_offset().map_or(before, |last| last + 1);
        }
        match self.expired(book, now) {
            Some((entry, reason)) => self.expire(book, &entry, reason, now),
            None => Ok(Step::Idle),
        }
    }

    /// Says which finished files are not there to be listed; their offsets stay a gap in the manifest.
    fn report_gone(&self, below: u64) -> Result<(), Failure> {
        for file in self.desk.finished().into_iter().filter(|file| file.first_offset < below) {
            let plain = self.options.tree.path(file.day, file.first_offset);
            let is_gone = |path: &Path| matches!(self.disk.open(path, Access::Read), Err(e) if e.kind() == io::ErrorKind::NotFound);
            if is_gone(&plain) && self.forms().all(|form| is_gone(&with_ending(&plain, form.ending()))) {
                error!(
                    sink = self.options.sink,
                    path = %plain.display(),
                    first_offset = file.first_offset,
                    events = file.events,
                    "a finished archive file is gone before it was listed; its events are lost from the archive"
                );
                self.forget(file.first_offset);
            }
        }
        Ok(())
    }

    fn forms(&self) -> impl Iterator<Item = Form> {
        [Form::Zstd, Form::Gzip].into_iter()
    }

    fn forget(&self, first_offset: u64) {
        self.desk.state().finished.retain(|file| file.first_offset != first_offset);
    }

    /// Compresses and lists one file; `false` when it was told to stop on the way.
    fn finish(&mut self, book: &mut Book, file: &ArchiveFile, before: u64) -> Result<bool, Failure> {
        let written =
            self.desk.finished().into_iter().find(|written| written.first_offset == file.first_offset);
        let (mut stands, mut found) = (file.clone(), None);
        if self.options.compress != Form::Plain && file.form == Form::Plain {
            match self.compress(file, written.as_ref())? {
                Compressed::Done(done) => {
                    let (compressed, examined) = *done;
                    (stands, found) = (compressed, Some(examined));
                }
                Compressed::Changed => {}
                Compressed::Stopped => return Ok(false),
            }
        }
        let depth = if written.is_some() { Depth::Stamps } else { Depth::Lines };
        let found = match found {
            Some(found) => found,
            None => match self.examine(&stands, depth)? {
                Some(found) => found,
                None => return Ok(false),
            },
        };
        let Some(entry) = self.entry(&stands, &found, written, before) else {
            error!(
                sink = self.options.sink,
                path = %stands.path.display(),
                "a finished archive file is damaged and cannot be listed; `eventflow archive verify` tells more"
            );
            // Its checksum stays in the token, so that `verify` knows what it should be.
            self.hopeless.insert(file.path.clone());
            return Ok(true);
        };
        book.write(&*self.disk, &self.options, entry)?;
        self.forget(file.first_offset);
        if stands.path != file.path {
            remove_if_there(&*self.disk, &file.path)?;
            self.sync_dir_of(&file.path)?;
        }
        Ok(true)
    }

    fn examine(&self, file: &ArchiveFile, depth: Depth) -> Result<Option<Examined>, Failure> {
        examine(&*self.disk, file, depth, None, &mut |_| !self.desk.is_closed()).doing("reading", &file.path)
    }

    /// What the manifest is to say of a file; `None` when nothing can be said.
    fn entry(
        &self,
        file: &ArchiveFile,
        found: &Examined,
        written: Option<Finished>,
        before: u64,
    ) -> Option<Entry> {
        let is_as_written = written
            .is_none_or(|written| (written.length, written.crc) == (found.content_bytes, found.content_crc));
        if !is_as_written {
            error!(
                sink = self.options.sink,
                path = %file.path.display(),
                first_offset = file.first_offset,
                "a finished archive file is not as it was written; it is left alone, and `eventflow archive verify` \
                 names it"
            );
        } else if found.wrong.is_some() {
            return None;
        }
        // After a lost checkpoint the sink knows only where the file before began.
        let covers_from = written.map_or(0, |written| written.covers_from).max(before).min(file.first_offset);
        let entry = Entry::of_file(&self.options.tree.root, file, found, covers_from)?;
        Some(match written {
            None => entry,
            Some(Finished { events, length, crc, .. }) => {
                Entry { count: events, content_bytes: length, content_crc32: crc, ..entry }
            }
        })
    }

    /// Writes the compressed form beside a plain file, under its final name, synced.
    fn compress(&self, file: &ArchiveFile, written: Option<&Finished>) -> Result<Compressed, Failure> {
        let form = self.options.compress;
        let path = with_ending(&file.path, form.ending());
        let temporary = with_ending(&path, TEMPORARY);
        remove_if_there(&*self.disk, &temporary)?;
        let done = self.compress_to(file, written, &temporary);
        match done {
            Ok(Some(examined)) => {
                self.disk.replace(&temporary, &path).doing("renaming", &temporary)?;
                self.sync_dir_of(&path)?;
                Ok(Compressed::Done(Box::new((ArchiveFile { form, path, ..file.clone() }, examined))))
            }
            other => {
                // Half a file is of no use, and the disk may be full of it.
                let _ = self.disk.remove(&temporary);
                let stopped = self.desk.is_closed();
                other.map(|_| if stopped { Compressed::Stopped } else { Compressed::Changed })
            }
        }
    }

    /// Compresses into `temporary` and reads that back; `None` when it does not hold what was written,
    /// or when it is to stop.
    fn compress_to(
        &self,
        file: &ArchiveFile,
        written: Option<&Finished>,
        temporary: &Path,
    ) -> Result<Option<Examined>, Failure> {
        let source = self.disk.open(&file.path, Access::Read).doing("opening", &file.path)?;
        let target = self.disk.create(temporary).doing("creating", temporary)?;
        let copied =
            squeeze(FileReader::over(source, None), Appending::to(&*target), self.options.compress, &|| {
                self.desk.is_closed()
            });
        let Some((length, crc)) = copied.doing("compressing", &file.path)? else { return Ok(None) };
        if written.is_some_and(|written| (written.length, written.crc) != (length, crc)) {
            return Ok(None);
        }
        target.sync_data().doing("syncing", temporary)?;
        let compressed =
            ArchiveFile { form: self.options.compress, path: temporary.to_owned(), ..file.clone() };
        let depth = if written.is_some() { Depth::Stamps } else { Depth::Lines };
        let found = self.examine(&compressed, depth)?;
        Ok(found.filter(|found| {
            found.wrong.is_none()
                && found.count > 0
                && (found.content_bytes, found.content_crc) == (length, crc)
        }))
    }

    /// The oldest file, if it is over the limits, and which limit.
    fn expired(&self, book: &Book, now: Micros) -> Option<(Entry, String)> {
        let mut kept = book.manifest.entries.values().filter(|entry| entry.is_kept());
        let bytes: u64 = kept.clone().map(|entry| entry.bytes).sum();
        let oldest = kept.next()?;
        if let Some(age) = self.options.retain_age {
            let limit = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
            // A clock that is years ahead makes nothing old: an event that young must stand in the archive.
            let newest = book.manifest.entries.values().map(|entry| entry.last_time).max();
            let now = newest.map_or(now, |newest| newest.min(now));
            if now.0.saturating_sub(oldest.last_time.0) > limit {
                return Some((oldest.clone(), format!("older than {}", humantime::format_duration(age))));
            }
        }
        let limit = self.options.retain_size_bytes?;
        (bytes > limit).then(|| (oldest.clone(), format!("finished files took more than {limit} bytes")))
    }

    /// Says in the manifest that a file goes, then removes it.
    fn expire(&self, book: &mut Book, entry: &Entry, reason: String, now: Micros) -> Result<Step, Failure> {
        let path = entry.path(&self.options.tree.root);
        let gone = Entry { removed: Some(now), reason: Some(reason.clone()), ..entry.clone() };
        book.write(&*self.disk, &self.options, gone)?;
        remove_if_there(&*self.disk, &path)?;
        self.sync_dir_of(&path)?;
        book.compact(&*self.disk, &self.options.tree.root)?;
        info!(
            sink = self.options.sink,
            path = %path.display(),
            first_offset = entry.first_offset,
            last_offset = entry.last_offset,
            reason,
            "an archive file was removed, as configured"
        );
        Ok(Step::Worked)
    }

    fn sync_dir_of(&self, path: &Path) -> Result<(), Failure> {
        let dir = path.parent().unwrap_or(&self.options.tree.root);
        match self.disk.sync_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()), // somebody removed it altogether
            result => result.doing("syncing", dir),
        }
    }
}

/// Why finished files are not done yet.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct FinishError(String);

enum Compressed {
    Done(Box<(ArchiveFile, Examined)>),
    /// The plain file is not what was written.
    Changed,
    Stopped,
}

/// The path with something added to its end.
pub(super) fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(ending);
    PathBuf::from(text)
}

/// Compresses all of `source`; length and checksum of what was read, or `None` when told to stop.
fn squeeze(
    mut source: FileReader,
    target: Appending<'_>,
    form: Form,
    is_stopped: &dyn Fn() -> bool,
) -> io::Result<Option<(u64, u32)>> {
    let mut to = Encoder::new(form, io::BufWriter::with_capacity(WRITE_BYTES, target))?;
    let mut chunk = vec![0; WRITE_BYTES];
    let (mut length, mut crc) = (0, crc32fast::Hasher::new());
    let is_whole = loop {
        let read = source.read(&mut chunk)?;
        if read == 0 || is_stopped() {
            break read == 0;
        }
        length += read as u64;
        crc.update(&chunk[..read]);
        to.write_all(&chunk[..read])?;
    };
    to.finish()?.flush()?;
    Ok(is_whole.then(|| (length, crc.finalize())))
}

/// Writes to a file from its start on.
struct Appending<'a> {
    file: &'a dyn DiskFile,
    position: u64,
}

impl<'a> Appending<'a> {
    fn to(file: &'a dyn DiskFile) -> Self {
        Self { file, position: 0 }
    }
}

impl Write for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.position)?;
        self.position += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(all(test, feature = "schedules"))]
mod schedules {
    use std::sync::atomic::{AtomicU64, Ordering};

    use shuttle::thread::spawn;

    use super::*;
    use crate::waits::explore;

    fn files_left_on_the_desk() {
        const LONG: Duration = Duration::from_secs(60);
        let (desk, done) = (Arc::new(Desk::default()), Arc::new(AtomicU64::new(0)));
        let (at_work, doing) = (Arc::clone(&desk), Arc::clone(&done));
        let background = spawn(move || {
            while !at_work.is_closed() {
                doing.store(at_work.state().finished_below, Ordering::Relaxed);
                at_work.wait(LONG);
            }
        });
        desk.hand_over(&[], 1);
        desk.hand_over(&[], 2);
        desk.wait_for_rest(LONG);
        assert_eq!(done.load(Ordering::Relaxed), 2, "at rest with work to do");
        desk.close();
        background.join().unwrap();
    }

    #[test]
    fn what_is_left_on_the_desk_is_done_before_the_rest() {
        explore(2000, files_left_on_the_desk);
    }
}
