//! The JSON archive: every event exactly once, in offset order, in files of NDJSON.
//!
//! # How exactly once comes about
//!
//! A delivery is written, synced, and only then reported, together with a token that says how long
//! the file is now. The queue stores token and checkpoint in one record. After a crash the archive is
//! cut back to the token of the last durable checkpoint, and the queue delivers from that
//! checkpoint on: what is cut comes again, and what stays does not.
//!
//! ```text
//!   file   ████████████████████████▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒░░░░░░
//!                    checkpoint ───┘   synced ─────┘    └─ being written
//!          stays after a crash     │ cut after a crash, delivered again
//! ```
//!
//! Cutting an unfinished last line only would not do: what was not synced can have holes anywhere,
//! and what was synced but not checkpointed would stand there twice.
//!
//! Without a token (ledger lost), or with one older than what the queue still holds, the archive's
//! end is read from its last file. Events that come again are passed over where they stand in an
//! earlier file, and replace what stands in the last one; before that, the first of them is compared,
//! so that an archive of another data directory is not taken for ours.
//!
//! # When something fails
//!
//! It runs on its worker's thread and blocks there. Every failure makes the sink unavailable: the
//! events wait in the log, the worker backs off, and the next try begins by cutting the archive back
//! to what was last reported (`recover`). A failed sync is final for its file: the next try cuts that
//! file to its last synced length and begins a new one. The file is opened by its name for every
//! batch and compared with what was written to it, so one that was cut, edited or replaced under the
//! daemon is noticed, said, and left alone; a new file takes over. A panic half-way counts as a
//! failure.
//!
//! # Files
//!
//! [`layout`] names them. A file is finished, and the next event begins another, when it has reached its
//! size, when the UTC date has moved on, or when an event was accepted `rotate_every` or more away from
//! its first one. Age goes by the times of acceptance and not by a clock, so it survives restarts; a
//! clock that jumps back a little keeps the file, so that events around midnight make no heap of files.

mod background;
mod book;
pub mod catalog;
mod copy;
pub mod encoder;
pub mod examine;
mod finish;
pub mod layout;
pub mod manifest;
mod position;
mod recover;
pub mod repair;
#[cfg(test)]
mod tests;
pub mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, warn};

use crate::config::{Compress, SinkConfig, SinkKind};
use crate::disk::Disk;
use crate::event::{StoredEvent, write_archive_line};
use crate::planted::{self, Mistake};

use self::background::Background;
use self::finish::Desk;
use self::layout::{Day, Form, OtherLayout, Piece, Tree};
use self::position::{FilePosition, Finished, Position, TAIL_BYTES};
use self::recover::{Changed, Floor, OpenFile, Suspect};
use super::{Batch, CopiedFiles, DeliverFuture, Delivery, Outcomes, Resume, Sink, SinkError, Unavailable};

pub use self::copy::copy_to;
pub use self::finish::{FinishError, Finisher, Step};

/// Lines are written in pieces of about this size: small enough to be made and summed in a processor's cache,
/// large enough that a call for each costs nothing. One sync comes behind all of a batch.
const PIECE_BYTES: usize = 1 << 20;

/// Where and how an archive is written.
#[derive(Debug, Clone)]
pub struct Options {
    /// The sink's configured name, for logs.
    pub sink: String,
    /// The archive's directory, and those in it.
    pub tree: Tree,
    /// Where bytes are set aside that cannot stay in the archive.
    pub quarantine_dir: PathBuf,
    /// A file that reaches this size is finished.
    pub rotate_size_bytes: u64,
    /// A file whose first event is this much older is finished.
    pub rotate_every: Duration,
    /// A file with so many events is finished, if that is bounded.
    pub rotate_count: Option<u64>,
    /// How finished files are to be kept.
    pub compress: Form,
    /// Finished files go when their last event is this much older than now.
    pub retain_age: Option<Duration>,
    /// The oldest finished files go while all of them take more.
    pub retain_size_bytes: Option<u64>,
}

impl Options {
    /// Those of a configured sink of this type; `None` for one of another.
    pub fn of(config: &SinkConfig, data_dir: &Path) -> Option<Self> {
        let SinkKind::JsonFile {
            path,
            layout,
            rotate_size_bytes,
            rotate_every,
            rotate_count,
            compress,
            retain_age,
            retain_size_bytes,
        } = &config.kind
        else {
            return None;
        };
        Some(Self {
            sink: config.name.clone(),
            tree: Tree { root: data_dir.join(path), layout: layout.clone() },
            quarantine_dir: data_dir.join("quarantine"),
            rotate_size_bytes: *rotate_size_bytes,
            rotate_every: *rotate_every,
            rotate_count: *rotate_count,
            compress: match compress {
                Compress::None => Form::Plain,
                Compress::Zstd => Form::Zstd,
                Compress::Gzip => Form::Gzip,
            },
            retain_age: *retain_age,
            retain_size_bytes: *retain_size_bytes,
        })
    }
}

/// The archive, open for writing.
#[derive(Debug)]
pub struct JsonFile {
    disk: Arc<dyn Disk>,
    options: Options,
    /// What is written, synced and reported; where a failed delivery falls back to.
    position: Position,
    state: State,
    /// Lines on their way to the file; kept for its memory.
    buffer: Vec<u8>,
    /// The position was read from the archive itself, and no event that came again has shown yet
    /// that the archive is ours.
    unproven: bool,
    /// The last file after that, until it is known which of its lines are written again.
    suspect: Option<Suspect>,
    /// Where finished files are left for the background.
    desk: Arc<Desk>,
    /// The manifest has been brought into agreement with the files since the start.
    is_settled: bool,
    background: Option<Background>,
}

/// How far the files can be trusted to stand at the position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// They do.
    Ready,
    /// A delivery has begun or broken off: there may be more in them.
    Unsure,
    /// So, and a sync of the current file failed: it must not be written to again.
    SyncFailed,
    /// The position is not known yet; `floor` is the least its next offset can be.
    Lost { floor: Floor },
    /// The archive's end was read, but could not be made durable. Syncing it again could succeed for
    /// pages the kernel has given up, so nothing is built on it any more.
    Untrusted,
}

impl JsonFile {
    /// Opens the archive where the last checkpoint left it, and cuts it back to there.
    ///
    /// A disk that fails or is full is no error here: deliveries are unavailable until it works. An archive that
    /// was written with another layout is one, and is left as it is.
    pub fn open(disk: Arc<dyn Disk>, options: Options, resume: Resume) -> Result<Self, SinkError> {
        let known = resume.token.as_deref().map(Position::decode);
        if known == Some(None) {
            warn!(
                sink = options.sink,
                "the archive's token is of another version; reading the archive instead"
            );
        }
        let (known, finished) = known.flatten().unzip();
        let between = Position::between(resume.next_offset, resume.next_offset);
        let (position, state) = match known {
            // Everything behind the token comes again. Below it (a checkpoint that lags) it is skipped.
            Some(position) if position.file.is_some() && resume.next_offset <= position.next_offset => {
                (position, State::Unsure)
            }
            Some(position) => (between, State::Lost { floor: Floor::of(position) }),
            None => (between, State::Lost { floor: Floor { next_offset: 0, void_from: 0 } }),
        };
        let desk = Arc::new(Desk::default());
        desk.hand_over(&finished.unwrap_or_default(), 0);
        let mut archive = Self {
            disk,
            options,
            position,
            state,
            buffer: Vec::new(),
            unproven: false,
            suspect: None,
            desk,
            is_settled: false,
            background: None,
        };
        match archive.recover() {
            Err(Failure::OtherLayout(other)) => {
                Err(SinkError { sink: archive.options.sink.clone(), reason: other.to_string() })
            }
            Err(failure) => {
                warn!(sink = archive.options.sink, %failure, "the archive cannot be written yet");
                Ok(archive)
            }
            Ok(()) => Ok(archive),
        }
    }

    /// What is to be done with finished files, for someone who steps it.
    pub fn finisher(&self) -> Finisher {
        Finisher::new(self.disk.clone(), self.options.clone(), self.desk.clone())
    }

    /// Has finished files done on a thread of their own, until the sink is closed.
    pub fn in_background(mut self) -> Self {
        self.background = Some(Background::start(&self.options.sink, self.finisher(), self.desk.clone()));
        self
    }

    /// Makes the files stand at the position, whatever happened to them.
    fn recover(&mut self) -> Result<(), Failure> {
        if !self.is_settled {
            self.settle()?;
        }
        let before = self.position.file;
        let recovered = match self.state {
            State::Ready => return Ok(()),
            State::Unsure => recover::cut_back(&*self.disk, &self.options, self.position, false),
            State::SyncFailed => recover::cut_back(&*self.disk, &self.options, self.position, true),
            State::Lost { floor } => {
                let again_from = floor.next_offset.max(self.position.next_offset);
                recover::survey(&*self.disk, &self.options, floor, again_from)
            }
            State::Untrusted => Err(Failure::Untrusted {
                path: self.options.tree.root.clone(),
                source: io::Error::other("an earlier sync of it failed"),
            }),
        };
        match &recovered {
            Err(Failure::Sync { .. }) => self.state = State::SyncFailed,
            Err(Failure::Untrusted { .. }) => self.state = State::Untrusted,
            _ => {}
        }
        let recovered = recovered?;
        if recovered.surveyed {
            (self.unproven, self.suspect) = (true, recovered.suspect);
        }
        self.position = recovered.position;
        self.state = State::Ready;
        // A file that was given up is finished; if somebody changed it, it shows when it is read back.
        let given_up = before.filter(|_| self.position.file.is_none());
        self.hand_over(given_up.as_ref().map(FilePosition::finish).as_slice());
        Ok(())
    }

    /// Once after a start: brings manifest and files into agreement. What is listed is durable, so the
    /// archive goes on behind it, however old the checkpoint is.
    fn settle(&mut self) -> Result<(), Failure> {
        let manifest = book::settle(&*self.disk, &self.options)?;
        let listed_end = manifest.next_offset();
        let is_listed = |file: FilePosition| manifest.entries.contains_key(&file.first_offset);
        let position = &mut self.position;
        if self.state == State::Unsure
            && (listed_end > position.next_offset || position.file.is_some_and(is_listed))
        {
            *position =
                Position::between(position.next_offset.max(listed_end), position.void_from.max(listed_end));
        }
        self.desk.forget_listed(&manifest);
        self.is_settled = true;
        Ok(())
    }

    /// Leaves finished files to the background, and says which others are finished.
    fn hand_over(&self, finished: &[Finished]) {
        // A suspect is not finished before it is settled.
        let suspect = self.suspect.as_ref().map(|suspect| suspect.file.first_offset);
        let current = self.position.file.map(|file| file.first_offset);
        let below = current.unwrap_or(self.position.next_offset);
        self.desk.hand_over(finished, suspect.map_or(below, |first| first.min(below)));
    }

    fn deliver_now(&mut self, batch: &Batch) -> Result<Delivery, Failure> {
        self.recover()?;
        if self.unproven {
            self.prove(batch)?;
        }
        // Until the end is reached nobody knows what the files hold; a panic leaves it at that.
        self.state = State::Unsure;
        let written = self.write(batch);
        if let Err(Failure::Sync { .. }) = &written {
            self.state = State::SyncFailed;
        }
        let (position, finished) = written?;
        self.position = position;
        self.state = State::Ready;
        self.hand_over(&finished);
        // A token vouches for everything below it, and nobody vouches for a suspect yet.
        let token = self.suspect.is_none().then(|| self.position.encode(&self.desk.finished()));
        Ok(Delivery { outcomes: Outcomes::AllDelivered, token })
    }

    /// Writes and syncs a batch; the position it leads to, with the files that are finished then,
    /// becomes ours only if all of it succeeds.
    fn write(&mut self, batch: &Batch) -> Result<(Position, Vec<Finished>), Failure> {
        let mut at = self.position;
        let mut finished = Vec::new();
        let mut open: Option<OpenFile> = None;
        self.buffer.clear();
        for event in batch.events.iter() {
            if event.offset < at.next_offset {
                continue; // it is in the archive already
            }
            if at.file.is_some_and(|file| self.is_finished(&file, event)) {
                self.flush(&mut at, open.as_mut())?;
                finished.extend(at.file.take().map(|file| file.finish()));
                open = None;
            }
            let (file, _) = self.current(&mut at, &mut open, event, &mut finished)?;
            file.events += 1;
            (at.next_offset, at.void_from) = (event.offset + 1, event.offset + 1);
            write_archive_line(&mut self.buffer, event);
            if self.buffer.len() >= PIECE_BYTES {
                self.write_piece(&mut at, open.as_mut())?;
            }
        }
        self.flush(&mut at, open.as_mut())?;
        for void in &batch.voids {
            at.next_offset = at.next_offset.max(void.end);
        }
        Ok((at, finished))
    }

    /// Whether `file`, with what the buffer adds to it, takes no more before `event`.
    fn is_finished(&self, file: &FilePosition, event: StoredEvent<'_>) -> bool {
        let age_micros = event.accepted_at.0.abs_diff(file.first_accepted_at.0);
        file.length + self.buffer.len() as u64 >= self.options.rotate_size_bytes
            || self.options.rotate_count.is_some_and(|count| file.events >= count)
            || Day::of(event.accepted_at) > file.day
            || u128::from(age_micros) >= self.options.rotate_every.as_micros()
    }

    /// The file that takes `event`: the open one, the one of the position, or a new one.
    fn current<'a>(
        &self,
        at: &'a mut Position,
        open: &'a mut Option<OpenFile>,
        event: StoredEvent<'_>,
        finished: &mut Vec<Finished>,
    ) -> Result<(&'a mut FilePosition, &'a mut OpenFile), Failure> {
        if open.is_none()
            && let Some(file) = at.file
        {
            match self.reopen(&file)? {
                Ok(opened) => *open = Some(opened),
                Err(why) => {
                    let path = self.options.tree.path(file.day, file.first_offset);
                    recover::report_changed(&self.options.sink, &path, &file, at.next_offset, why);
                    at.file = None;
                    finished.push(file.finish());
                }
            }
        }
        let covers_from = at.void_from;
        let file = match &mut at.file {
            Some(file) => file,
            none => {
                let (file, opened) = self.begin(event, covers_from)?;
                *open = Some(opened);
                none.insert(file)
            }
        };
        // Either branch above has opened it.
        let open = open
            .as_mut()
            .ok_or_else(|| Failure::io("opening", &self.options.tree.root, io::ErrorKind::NotFound))?;
        Ok((file, open))
    }

    /// Opens the position's file, which must be exactly as it was left.
    fn reopen(&self, file: &FilePosition) -> Result<Result<OpenFile, Changed>, Failure> {
        let open = match recover::open_known(&*self.disk, &self.options.tree, file)? {
            Ok(open) => open,
            Err(why) => return Ok(Err(why)),
        };
        let length = open.handle.len().doing("reading the length of", &open.path)?;
        Ok(if length == file.length { Ok(open) } else { Err(Changed::Longer) })
    }

    /// Begins the file whose first event is `event`; its name is durable when this returns.
    fn begin(&self, event: StoredEvent<'_>, covers_from: u64) -> Result<(FilePosition, OpenFile), Failure> {
        let file = FilePosition {
            day: Day::of(event.accepted_at),
            first_offset: event.offset,
            length: 0,
            events: 0,
            first_accepted_at: event.accepted_at,
            covers_from,
            tail_crc: 0,
            crc: 0,
        };
        let path = self.options.tree.path(file.day, file.first_offset);
        let dir = path.parent().unwrap_or(&self.options.tree.root);
        self.disk.create_dir_all(dir).doing("creating", dir)?;
        // Whatever of ours had this name was removed in recovery, so a file here is someone else's.
        let handle = self.disk.create(&path).doing("creating", &path)?;
        self.disk.sync_dir(dir).doing("syncing", dir)?;
        debug!(sink = self.options.sink, path = %path.display(), "archive file begun");
        Ok((file, OpenFile { handle, path, tail: Vec::new() }))
    }

    /// Writes what is left in the buffer and syncs the file.
    fn flush(&mut self, at: &mut Position, mut open: Option<&mut OpenFile>) -> Result<(), Failure> {
        self.write_piece(at, open.as_deref_mut())?;
        // A file is opened for a line, so there is something to sync.
        match open {
            Some(open) if !planted::made(Mistake::CheckpointBeforeSync) => recover::sync(open),
            _ => Ok(()),
        }
    }

    /// Writes the buffer behind the file's end, and has the disk begin with it while the next lines are made.
    fn write_piece(&mut self, at: &mut Position, open: Option<&mut OpenFile>) -> Result<(), Failure> {
        let (Some(file), Some(open)) = (&mut at.file, open) else { return Ok(()) };
        if self.buffer.is_empty() {
            return Ok(());
        }
        open.handle.write_all_at(&self.buffer, file.length).doing("writing", &open.path)?;
        if self.buffer.len() >= PIECE_BYTES {
            open.handle.begin_writeback(file.length, self.buffer.len() as u64);
        }
        file.length += self.buffer.len() as u64;
        let mut crc = crc32fast::Hasher::new_with_initial(file.crc);
        crc.update(&self.buffer);
        file.crc = crc.finalize();
        let new = &self.buffer[self.buffer.len().saturating_sub(TAIL_BYTES)..];
        open.tail.drain(..(open.tail.len() + new.len()).saturating_sub(TAIL_BYTES));
        open.tail.extend_from_slice(new);
        file.tail_crc = crc32fast::hash(&open.tail);
        self.buffer.clear();
        Ok(())
    }

    /// After the position was read from the archive: finds out with the first events that come whether
    /// it is ours, and settles what becomes of its suspect end. Nothing is passed over or cut before.
    fn prove(&mut self, batch: &Batch) -> Result<(), Failure> {
        let Some(first) = batch.events.iter().next() else { return Ok(()) };
        let comes_again = first.offset < self.position.next_offset;
        if comes_again {
            match self.is_ours(batch)? {
                Some(false) => {
                    return Err(Failure::Foreign {
                        root: self.options.tree.root.clone(),
                        offset: first.offset,
                    });
                }
                Some(true) => self.unproven = false,
                None => {}
            }
        }
        let Some(suspect) = &self.suspect else { return Ok(()) };
        let last = batch.events.iter().next_back().map_or(first.offset, |event| event.offset);
        let cut = if !comes_again {
            suspect.intact // its events never came again, so it is all there is of them
        } else if !self.unproven || last >= suspect.certain.next_offset {
            suspect.certain
        } else {
            return Ok(()); // these lie below the suspect lines; later ones will tell
        };
        let settled = recover::settle(&*self.disk, &self.options, suspect, cut);
        if let Err(Failure::Untrusted { .. }) = &settled {
            self.state = State::Untrusted;
        }
        settled?;
        self.position.next_offset =
            cut.next_offset.max(if comes_again { 0 } else { self.position.next_offset });
        self.position.void_from = cut.void_from;
        self.suspect = None;
        self.hand_over(&[]);
        Ok(())
    }

    /// Whether the archive's lines of the batch's offsets are these events; `None` when it has none of
    /// them. One line that agrees in its text or in its time is proof: in another data directory's
    /// archive none does, and a wrong byte in ours spoils only one of the two, in one line.
    fn is_ours(&self, batch: &Batch) -> Result<Option<bool>, Failure> {
        let root = &self.options.tree.root;
        let files = self.options.tree.list(&*self.disk).doing("listing", root)?;
        let mut events = batch.events.iter().peekable();
        let Some(first) = events.peek() else { return Ok(None) };
        let Some(file) = files.iter().rev().find(|file| file.first_offset <= first.offset) else {
            return Ok(None);
        };
        let mut lines = layout::open_lines(&*self.disk, file).doing("opening", &file.path)?;
        let mut ours = None;
        let mut expected = Vec::new();
        while let Some(piece) = lines.next_piece().doing("reading", &file.path)? {
            let Piece::Line(line) = piece else { continue };
            let Some(stamp) = layout::intact_stamp(line) else { continue };
            while events.next_if(|event| event.offset < stamp.offset).is_some() {}
            match events.peek() {
                None => break,
                Some(event) if event.offset == stamp.offset => {
                    expected.clear();
                    write_archive_line(&mut expected, *event);
                    let until_time = &line[..line.len() - stamp.time.len() - "\"}".len()];
                    if stamp.accepted_at() == Some(event.accepted_at) || expected.starts_with(until_time) {
                        return Ok(Some(true));
                    }
                    ours = Some(false);
                }
                Some(_) => {}
            }
        }
        Ok(ours)
    }
}

impl Sink for JsonFile {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliverFuture<'a> {
        let answer = self
            .deliver_now(batch)
            .map_err(|failure| Unavailable { reason: failure.to_string(), retry_after: None });
        Box::pin(std::future::ready(answer))
    }

    /// Nothing is left to do after an orderly stop (all that was reported is synced); after a failure
    /// a last attempt is made to leave files that end in a newline.
    fn close(&mut self) -> Result<(), SinkError> {
        let recovered = self.recover();
        if let Some(background) = self.background.take() {
            background.finish();
        }
        recovered.map_err(|failure| SinkError {
            sink: self.options.sink.clone(),
            reason: format!("{failure}; the next start cuts the archive back"),
        })
    }
}

/// Why the archive could not be written.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{doing} {} failed: {source}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// Final for the file.
    #[error("syncing {} failed: {source}", path.display())]
    Sync { path: PathBuf, source: io::Error },
    #[error(
        "the end of the archive at {} could not be made durable ({source}); check the disk, then restart",
        path.display()
    )]
    Untrusted { path: PathBuf, source: io::Error },
    #[error(
        "the archive at {} belongs to another data directory: its event {offset} was accepted at another \
         time than ours; move it away or configure another `path`, then restart",
        root.display()
    )]
    Foreign { root: PathBuf, offset: u64 },
    #[error(transparent)]
    OtherLayout(OtherLayout),
}

impl Failure {
    fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { doing, path: path.to_owned(), source: source.into() }
    }
}

/// Says what was being done to which file.
trait IoContext<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, Failure>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, Failure> {
        self.map_err(|source| match source.downcast() {
            Ok(other) => Failure::OtherLayout(other),
            Err(source) => Failure::io(doing, path, source),
        })
    }
}
