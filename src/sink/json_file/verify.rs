//! Whether an archive holds what it should: every file against the manifest, every offset once.
//!
//! Four kinds of files, and who vouches for the bytes of each:
//!
//! | file | its bytes | its gaps |
//! | --- | --- | --- |
//! | listed | the manifest: SHA-256 | the manifest |
//! | finished, not listed yet | the checkpoint: CRC-32 | void, when the checksum agrees |
//! | the one being written | the checkpoint, up to its length there | the same |
//! | anything else | nobody: each line must make sense | taken for void, and told |
//!
//! Works while a daemon writes: the checkpoint is read first, and what came after it is not judged. A file
//! that went while it was looked for is looked for again. Reads only, on the threads it is given.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::disk::{Access, Disk};

use super::catalog::{Catalog, CatalogFile};
use super::examine::{Depth, Examined, Wrong, examine};
use super::layout::{Form, Tree};
use super::manifest::{BadLine, Entry, Manifest, NAME};
use super::position::{FilePosition, Finished, Position};

/// Looks at a file that moves before it is believed to be gone.
const LOOKS: usize = 3;

/// What kind of damage it is, which is what `repair` goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DamageKind {
    /// The manifest itself.
    Manifest,
    /// A listed file is not there.
    Gone,
    /// A listed file holds something else.
    Changed,
    /// Offsets stand in no file, and nothing says that they are void.
    Gap,
    /// A file that is not listed yet, or cannot be read, or two files with the same offsets.
    Other,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveDamage {
    /// What kind it is.
    pub kind: DamageKind,
    /// The file, or where it should be.
    pub path: PathBuf,
    /// The line, counted from 1, where it is known.
    pub line: Option<u64>,
    /// Where that line begins in the (decompressed) file.
    pub position: Option<u64>,
    /// Offsets that are in doubt or lost, as far as they are known.
    pub offsets: Option<Range<u64>>,
    /// What is wrong.
    pub what: String,
}

/// What became of a look at the whole archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Files read.
    pub files: u64,
    /// Their bytes on the disk.
    pub bytes: u64,
    /// Events in them.
    pub events: u64,
    /// Every offset below is accounted for.
    pub next_offset: u64,
    /// Files that retention removed, and the events they held.
    pub removed: (u64, u64),
    /// Offsets without an event, as far as they are named; ascending.
    pub voids: Vec<Range<u64>>,
    /// What is wrong, in the order of the offsets.
    pub damage: Vec<ArchiveDamage>,
    /// What cannot be judged, in sentences.
    pub notes: Vec<String>,
}

/// Checks the archive in `tree`. `token` is the resume token of its sink's last checkpoint, read before.
/// `progress` is told bytes done, and of how many; it may be called from any of the `threads`.
pub fn verify(
    disk: &dyn Disk,
    tree: &Tree,
    token: Option<&[u8]>,
    threads: usize,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> io::Result<Verdict> {
    let (position, finished) = token.and_then(Position::decode).unzip();
    let catalog = look(disk, tree)?;
    let length = |file: &CatalogFile| disk.open(&file.file.path, Access::Read).and_then(|open| open.len());
    let total: u64 = catalog.files.iter().map(|file| length(file).unwrap_or(0)).sum();
    let check = Check {
        disk,
        tree,
        is_known: token.is_some() && position.is_some(),
        position: position.unwrap_or(Position::between(0, 0)),
        finished: finished.unwrap_or_default().into_iter().map(|file| (file.first_offset, file)).collect(),
        done: Mutex::new(0),
        total,
        progress,
    };
    let checked = check.all(&catalog.files, threads)?;
    Ok(check.verdict(&catalog, checked))
}

/// The archive's files, and a manifest that is not just being written.
fn look(disk: &dyn Disk, tree: &Tree) -> io::Result<Catalog> {
    let mut catalog = Catalog::read(disk, tree)?;
    for _ in 1..LOOKS {
        if catalog.manifest.unfinished.is_none() {
            break;
        }
        std::thread::yield_now();
        catalog = Catalog::read(disk, tree)?;
    }
    Ok(catalog)
}

/// What is known about one file after it was read.
#[derive(Debug, Default)]
struct Checked {
    bytes: u64,
    events: u64,
    /// From where on its offsets are accounted for, its first and its last.
    covers: Option<(u64, u64, u64)>,
    gaps: Vec<(u64, u64)>,
    /// It was removed while this looked for it: files and events.
    removed: Option<(u64, u64)>,
    damage: Vec<ArchiveDamage>,
    notes: Vec<String>,
}

/// A second look at a file that was not there.
enum Again {
    /// It has another name now, or none although it should.
    There(CatalogFile),
    /// Retention took it meanwhile, and says so.
    Removed(Entry),
}

struct Check<'a> {
    disk: &'a dyn Disk,
    tree: &'a Tree,
    /// There is a checkpoint, and it is of this version.
    is_known: bool,
    position: Position,
    finished: BTreeMap<u64, Finished>,
    done: Mutex<u64>,
    total: u64,
    progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl Check<'_> {
    /// Reads every file, several at a time.
    fn all(&self, files: &[CatalogFile], threads: usize) -> io::Result<Vec<Checked>> {
        let next = AtomicUsize::new(0);
        let has_failed = AtomicBool::new(false);
        let results = Mutex::new(BTreeMap::new());
        let work = || {
            while !has_failed.load(Ordering::Relaxed) {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(file) = files.get(at) else { break };
                let checked = self.file(file);
                has_failed.fetch_or(checked.is_err(), Ordering::Relaxed);
                results.lock().unwrap_or_else(PoisonError::into_inner).insert(at, checked);
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads.clamp(1, files.len().max(1)) {
                scope.spawn(work);
            }
            work();
        });
        results.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
    }

    fn file(&self, file: &CatalogFile) -> io::Result<Checked> {
        let mut file = file.clone();
        for look in 1.. {
            match self.file_now(&file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => match self.again(&file)? {
                    Again::There(found) if look < LOOKS && found != file => file = found,
                    Again::There(_) => break,
                    // That line may stand for others too.
                    Again::Removed(entry) => {
                        return Ok(Checked::removed(file.listed.as_ref().unwrap_or(&entry)));
                    }
                },
                Err(error) => {
                    let what = format!("it cannot be read: {error}");
                    return Ok(Checked::damaged(&file, None, what));
                }
                checked => return checked,
            }
        }
        let lost = file.listed.as_ref().map(|entry| entry.first_offset..entry.last_offset + 1);
        let events =
            file.listed.as_ref().map_or(String::new(), |entry| format!(" with its {} events", entry.count));
        let mut gone = Checked::damaged(&file, None, format!("it is gone{events}"));
        gone.damage[0].offsets = lost;
        if file.listed.is_some() {
            gone.damage[0].kind = DamageKind::Gone;
        }
        gone.covers = file.listed.as_ref().map(|e| (e.covers_from, e.first_offset, e.last_offset));
        Ok(gone)
    }

    /// What stands for a file now that is not there any more.
    fn again(&self, file: &CatalogFile) -> io::Result<Again> {
        let catalog = Catalog::read(self.disk, self.tree)?;
        let first = file.file.first_offset;
        let known = catalog.manifest.covering(first);
        if let Some(entry) = known.filter(|entry| !entry.is_kept()) {
            return Ok(Again::Removed(entry.clone()));
        }
        let found = catalog.files.into_iter().find(|other| other.file.first_offset == first);
        Ok(Again::There(found.unwrap_or_else(|| file.clone())))
    }

    fn file_now(&self, file: &CatalogFile) -> io::Result<Checked> {
        let first = file.file.first_offset;
        if let Some(entry) = &file.listed {
            return Ok(self.listed(file, entry, self.read(file, Depth::Stamps, None)?));
        }
        let is_plain = file.file.form == Form::Plain;
        match (self.finished.get(&first), self.position.file) {
            (Some(written), _) => {
                let found = self.read(file, Depth::Stamps, None)?;
                Ok(self.written(file, written, found))
            }
            (None, Some(open)) if open.first_offset == first && is_plain => self.open(file, &open),
            _ if self.is_known && first >= self.position.next_offset => {
                Ok(Checked::default()) // begun after the checkpoint
            }
            _ => {
                let found = self.read(file, Depth::Lines, None)?;
                Ok(self.unknown(file, found))
            }
        }
    }

    fn read(&self, file: &CatalogFile, depth: Depth, limit: Option<u64>) -> io::Result<Examined> {
        let found = examine(self.disk, &file.file, depth, limit, &mut |read| {
            let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
            *done += read;
            (self.progress)((*done).min(self.total), self.total);
            true
        })?;
        Ok(found.unwrap_or_default())
    }

    /// A file against its line in the manifest.
    fn listed(&self, file: &CatalogFile, entry: &Entry, found: Examined) -> Checked {
        let mut checked = Checked::of(&found, Some(entry.covers_from));
        checked.covers = Some((entry.covers_from, entry.first_offset, entry.last_offset));
        checked.gaps.clone_from(&entry.voids);
        let is_as_written =
            (found.content_bytes, found.content_crc) == (entry.content_bytes, entry.content_crc32);
        let gaps_agree = entry.sparse == found.is_sparse && (entry.sparse || entry.voids == found.gaps);
        let what = if !is_as_written {
            Some("its lines are not those that were written")
        } else if (found.bytes, &found.sha256) != (entry.bytes, &entry.sha256) {
            Some("its bytes are not those that the manifest lists, although its lines are")
        } else if found.count != entry.count
            || found.offsets != Some((entry.first_offset, entry.last_offset))
            || !gaps_agree
            || found.times != Some((entry.first_time, entry.last_time))
        {
            Some("its events are not those that the manifest lists")
        } else {
            found.wrong.as_ref().map(|wrong| wrong.what)
        };
        if let Some(what) = what {
            let wrong = found.wrong.clone().or_else(|| self.first_bad_line(file));
            let mut damaged = Checked::damaged(file, wrong, what.to_owned());
            damaged.damage[0].kind = DamageKind::Changed;
            damaged.damage[0].offsets = Some(entry.first_offset..entry.last_offset + 1);
            checked.damage = damaged.damage;
        }
        checked
    }

    /// A finished file against what the checkpoint says was written to it.
    fn written(&self, file: &CatalogFile, written: &Finished, found: Examined) -> Checked {
        let mut checked = Checked::of(&found, Some(written.covers_from));
        if (found.content_bytes, found.content_crc, found.count)
            != (written.length, written.crc, written.events)
            || found.wrong.is_some()
        {
            let wrong = found.wrong.or_else(|| self.first_bad_line(file));
            let what = "its lines are not those that were written".to_owned();
            checked.damage = Checked::damaged(file, wrong, what).damage;
            checked.damage[0].offsets = Some(written.first_offset..written.first_offset + written.events);
        }
        checked
    }

    /// The file that is being written, up to where the checkpoint vouches for it.
    fn open(&self, file: &CatalogFile, open: &FilePosition) -> io::Result<Checked> {
        let found = self.read(file, Depth::Stamps, Some(open.length))?;
        if found.content_bytes < open.length {
            // A daemon that goes on may have begun it anew only after a failure; it says so itself.
            let mut checked = Checked::of(&found, Some(open.covers_from));
            let what = format!("it is shorter than the {} bytes that were written to it", open.length);
            checked.damage = Checked::damaged(file, found.wrong, what).damage;
            checked.damage[0].offsets = Some(open.first_offset..self.position.void_from);
            return Ok(checked);
        }
        Ok(self.written(file, &open.finish(), found))
    }

    /// A file that nobody vouches for.
    fn unknown(&self, file: &CatalogFile, found: Examined) -> Checked {
        let mut checked = Checked::of(&found, None);
        if let Some(wrong) = found.wrong {
            let what = wrong.what.to_owned();
            checked.damage = Checked::damaged(file, Some(wrong), what).damage;
        } else if found.count > 0 {
            let path = file.file.path.display();
            checked.notes.push(format!("{path} is not listed in the manifest, so only its form was checked"));
        }
        checked
    }

    /// Where a file whose checksum is wrong has a line that is plainly none.
    fn first_bad_line(&self, file: &CatalogFile) -> Option<Wrong> {
        let found = examine(self.disk, &file.file, Depth::Lines, None, &mut |_| true);
        found.ok().flatten().and_then(|found| found.wrong)
    }

    fn verdict(&self, catalog: &Catalog, checked: Vec<Checked>) -> Verdict {
        let mut verdict = Verdict { damage: self.manifest(&catalog.manifest), ..Verdict::default() };
        let mut spans: BTreeMap<u64, (Option<u64>, u64, PathBuf)> = BTreeMap::new();
        for entry in catalog.manifest.entries.values().filter(|entry| !entry.is_kept()) {
            verdict.removed = (verdict.removed.0 + entry.files, verdict.removed.1 + entry.count);
            let span = (Some(entry.covers_from), entry.last_offset, entry.path(&self.tree.root));
            spans.insert(entry.first_offset, span);
        }
        let mut is_lost = false;
        for (file, checked) in catalog.files.iter().zip(checked) {
            verdict.files += u64::from(checked.bytes > 0);
            verdict.bytes += checked.bytes;
            verdict.events += checked.events;
            verdict.voids.extend(checked.gaps.iter().map(|(start, end)| *start..*end));
            is_lost |= !checked.notes.is_empty();
            verdict.notes.extend(checked.notes);
            verdict.damage.extend(checked.damage);
            if let Some((files, events)) = checked.removed {
                verdict.removed = (verdict.removed.0 + files, verdict.removed.1 + events);
            }
            if let Some((covers_from, first, last)) = checked.covers {
                let is_vouched_for = file.listed.is_some()
                    || checked.removed.is_some()
                    || self.finished.contains_key(&first)
                    || self.position.file.is_some_and(|open| open.first_offset == first);
                spans.insert(first, (is_vouched_for.then_some(covers_from), last, file.file.path.clone()));
            }
        }
        if is_lost && catalog.manifest.lines == 0 && self.is_known {
            let path = self.tree.root.join(NAME);
            let what =
                "it is gone; the next start of the daemon, or `eventflow archive repair`, writes it anew";
            verdict.damage.insert(0, ArchiveDamage::of(DamageKind::Manifest, path, what.to_owned()));
        }
        self.offsets(spans, &mut verdict);
        verdict.voids.sort_by_key(|void| void.start);
        verdict
    }

    fn manifest(&self, manifest: &Manifest) -> Vec<ArchiveDamage> {
        let damage = |bad: &BadLine, what: &str| ArchiveDamage {
            line: Some(bad.number),
            position: Some(bad.bytes.start),
            ..ArchiveDamage::of(DamageKind::Manifest, self.tree.root.join(NAME), what.to_owned())
        };
        let lines = manifest.damage.iter().map(|bad| damage(bad, "this line is not as it was written"));
        let end = manifest.unfinished.iter().map(|bad| {
            damage(bad, "it has no whole line here; the next start of the daemon, or `archive repair`, lists the file again")
        });
        lines.chain(end).collect()
    }

    /// Walks through all offsets from 0 on: each is in a file, void, removed, or missing.
    fn offsets(&self, spans: BTreeMap<u64, (Option<u64>, u64, PathBuf)>, verdict: &mut Verdict) {
        let mut next = 0;
        for (first, (covers_from, last, path)) in spans {
            let covers_from = covers_from.unwrap_or_else(|| next.min(first));
            if covers_from > next {
                verdict.damage.push(ArchiveDamage {
                    offsets: Some(next..covers_from),
                    ..ArchiveDamage::of(
                        DamageKind::Gap,
                        path,
                        format!("the offsets {next}..{covers_from} before it stand in no file"),
                    )
                });
            } else if first < next {
                let what = format!("the offsets {first}..{} stand in another file too", next.min(last + 1));
                let offsets = Some(first..next.min(last + 1));
                verdict
                    .damage
                    .push(ArchiveDamage { offsets, ..ArchiveDamage::of(DamageKind::Other, path, what) });
            }
            let void = next.max(covers_from)..first;
            if !void.is_empty() {
                verdict.voids.push(void);
            }
            next = next.max(last.saturating_add(1));
        }
        let Position { next_offset, void_from, file } = self.position;
        if void_from > next {
            let path =
                file.map_or(self.tree.root.to_owned(), |file| self.tree.path(file.day, file.first_offset));
            let what = format!("the offsets {next}..{void_from} were archived and stand in no file");
            verdict.damage.push(ArchiveDamage {
                offsets: Some(next..void_from),
                ..ArchiveDamage::of(DamageKind::Gap, path, what)
            });
        }
        if next_offset > next.max(void_from) {
            verdict.voids.push(next.max(void_from)..next_offset);
        }
        verdict.next_offset = next.max(next_offset);
    }
}

impl Checked {
    fn of(found: &Examined, covers_from: Option<u64>) -> Self {
        Self {
            bytes: found.bytes,
            events: found.count,
            covers: found.offsets.map(|(first, last)| (covers_from.unwrap_or(first), first, last)),
            gaps: found.gaps.clone(),
            ..Self::default()
        }
    }

    /// A file that retention took after the manifest was read.
    fn removed(entry: &Entry) -> Self {
        Self {
            covers: Some((entry.covers_from, entry.first_offset, entry.last_offset)),
            removed: Some((entry.files, entry.count)),
            ..Self::default()
        }
    }

    fn damaged(file: &CatalogFile, wrong: Option<Wrong>, what: String) -> Self {
        let what = match &wrong {
            Some(wrong) if wrong.what != what => format!("{what}; in this line, {}", wrong.what),
            _ => what,
        };
        let damage = ArchiveDamage {
            line: wrong.as_ref().map(|wrong| wrong.line),
            position: wrong.as_ref().map(|wrong| wrong.position),
            ..ArchiveDamage::of(DamageKind::Other, file.file.path.clone(), what)
        };
        Self { damage: vec![damage], ..Self::default() }
    }
}

impl ArchiveDamage {
    fn of(kind: DamageKind, path: PathBuf, what: String) -> Self {
        Self { kind, path, line: None, position: None, offsets: None, what }
    }
}
