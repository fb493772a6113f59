//! Where the files of an archive are: `<directories of the date>/events-<first offset, 20 digits>.ndjson`, finished
//! ones perhaps compressed (`.zst`, `.gz`). Also how one of them is read, line by line.
//!
//! A file that another layout made is an error of whatever looks at the archive. To pass it over would be to take
//! what is archived for lost, and to write beside it would mix the two.
//!
//! Used by the sink and by the offline verbs. Reads only, on the caller's thread; any other error is the
//! file system's own.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::config::Layout;
use crate::disk::{Access, Disk, DiskFile, EntryKind};
use crate::event::Micros;
pub use crate::event::{Stamp, stamp};

const MICROS_A_DAY: i64 = 24 * 60 * 60 * 1_000_000;

/// 0000-01-01 and 9999-12-31: the days whose years have four digits.
const FIRST_DAY: i64 = -719_528;
const LAST_DAY: i64 = 2_932_896;

/// The longest line that is read as one; far beyond the largest event that can be configured.
const MAX_LINE_BYTES: usize = 256 << 20;

/// Bytes asked of the disk at once.
const CHUNK_BYTES: usize = 256 << 10;

/// A UTC day, counted from 1970-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(pub i64);

impl Day {
    /// The day of an instant.
    pub fn of(at: Micros) -> Self {
        Self(at.0.div_euclid(MICROS_A_DAY))
    }

    /// The instant the day begins.
    pub fn start(self) -> Micros {
        Micros(self.0.saturating_mul(MICROS_A_DAY))
    }

    fn from_date([year, month, day]: [&str; 3]) -> Option<Self> {
        Micros::parse_rfc3339(&format!("{year}-{month}-{day}T00:00:00Z")).map(Self::of)
    }

    /// Its directory. A clock that is off by millennia gets the nearest day that has one.
    fn dir(self, layout: &Layout) -> String {
        let (year, month, day) = Self(self.0.clamp(FIRST_DAY, LAST_DAY)).start().date();
        layout.dir(year as u16, month, day)
    }
}

/// How a file's bytes are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// As they are.
    Plain,
    /// Zstandard.
    Zstd,
    /// Gzip.
    Gzip,
}

impl Form {
    /// What a name of this form has behind `.ndjson`.
    pub fn ending(self) -> &'static str {
        match self {
            Form::Plain => "",
            Form::Zstd => ".zst",
            Form::Gzip => ".gz",
        }
    }
}

/// A file of an archive, as its name tells it. Ordered by first offset.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArchiveFile {
    /// Offset of its first event.
    pub first_offset: u64,
    /// UTC day of acceptance of its first event.
    pub day: Day,
    /// Whether it is compressed.
    pub form: Form,
    /// Where it is, under the archive's directory.
    pub path: PathBuf,
}

/// First offset and form, as the last part of a path tells them.
pub(super) fn parse_path(path: &Path) -> Option<(u64, Form)> {
    parse_name(path.file_name()?.to_str()?)
}

/// Reads a file's name; `None` when it is not one of ours.
fn parse_name(name: &str) -> Option<(u64, Form)> {
    let rest = name.strip_prefix("events-")?;
    let (digits, ending) = rest.split_at_checked(20)?;
    let form = match ending {
        ".ndjson" => Form::Plain,
        ".ndjson.zst" => Form::Zstd,
        ".ndjson.gz" => Form::Gzip,
        _ => return None,
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((digits.parse().ok()?, form))
}

/// A file that another layout made than the one that is configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} was written with {}, and `layout` = \"{configured}\" is configured; set it back, or configure a \
     sink with another `name` and `path`",
    path.display(),
    made_by.as_ref().map_or("another `layout`".to_owned(), |layout| format!("`layout` = \"{layout}\""))
)]
pub(super) struct OtherLayout {
    path: PathBuf,
    made_by: Option<Layout>,
    configured: Layout,
}

/// An archive's directory, and how those in it are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    /// The archive's directory.
    pub root: PathBuf,
    /// How those in it are named.
    pub layout: Layout,
}

impl Tree {
    /// The archive in `root` with the default layout.
    pub fn of(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), layout: Layout::default() }
    }

    /// Where a file is, plain.
    pub fn path(&self, day: Day, first_offset: u64) -> PathBuf {
        self.root.join(day.dir(&self.layout)).join(format!("events-{first_offset:020}.ndjson"))
    }

    /// The file that is called `name` below the archive's directory.
    pub(super) fn file(&self, name: &str) -> io::Result<ArchiveFile> {
        let read = || {
            let (dir, file) = name.rsplit_once('/')?;
            let (first_offset, form) = parse_name(file)?;
            let (made_by, day) = read_dir(dir)?;
            let path = self.root.join(name);
            Some((made_by, ArchiveFile { first_offset, day, form, path }))
        };
        match read() {
            Some((made_by, file)) if made_by == self.layout => Ok(file),
            other => Err(self.other_layout(name, other.map(|(made_by, _)| made_by))),
        }
    }

    /// The files of the archive in the order of their first offsets; none when there is no such directory.
    /// Names that no layout makes are not looked at, and neither is what lies below them.
    ///
    /// The order is that of the offsets and not of the days: a clock that jumps back puts later events
    /// into an earlier day's directory.
    pub fn list(&self, disk: &dyn Disk) -> io::Result<Vec<ArchiveFile>> {
        let mut files = Vec::new();
        self.walk(disk, "", 0, &mut files)?;
        files.sort_unstable();
        Ok(files)
    }

    fn walk(
        &self,
        disk: &dyn Disk,
        below: &str,
        depth: usize,
        files: &mut Vec<ArchiveFile>,
    ) -> io::Result<()> {
        let read = read_dir(below);
        for entry in entries(disk, &self.root.join(below))? {
            let name = if depth == 0 { entry.name } else { format!("{below}/{}", entry.name) };
            match (entry.kind, &read) {
                (EntryKind::Dir, None) if depth < Layout::MAX_DEPTH && has_digits(&name[below.len()..]) => {
                    self.walk(disk, &name, depth + 1, files)?;
                }
                (EntryKind::File, Some((made_by, day))) => {
                    let Some((first_offset, form)) = parse_path(Path::new(&name)) else { continue };
                    if *made_by != self.layout {
                        return Err(self.other_layout(&name, Some(made_by.clone())));
                    }
                    files.push(ArchiveFile { first_offset, day: *day, form, path: self.root.join(name) });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn other_layout(&self, name: &str, made_by: Option<Layout>) -> io::Error {
        io::Error::other(OtherLayout { path: self.root.join(name), made_by, configured: self.layout.clone() })
    }
}

/// The layout that makes a directory, and its day.
fn read_dir(dir: &str) -> Option<(Layout, Day)> {
    let (layout, date) = Layout::read(dir)?;
    Some((layout, Day::from_date(date)?))
}

/// Whether a directory's name can be a part of a date's.
fn has_digits(name: &str) -> bool {
    name.bytes().any(|b| b.is_ascii_digit())
}

fn entries(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<crate::disk::DirEntry>> {
    match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        result => result,
    }
}

/// Reads a file from its start to the end it has when it is opened.
#[derive(Debug)]
pub struct FileReader {
    file: Box<dyn DiskFile>,
    position: u64,
    end: u64,
}

impl FileReader {
    /// Opens `path` for reading.
    pub fn open(disk: &dyn Disk, path: &Path) -> io::Result<Self> {
        Ok(Self::over(disk.open(path, Access::Read)?, None))
    }

    /// Reads an open file from its start, up to `limit` if there is one.
    pub fn over(file: Box<dyn DiskFile>, limit: Option<u64>) -> Self {
        Self { file, position: 0, end: limit.unwrap_or(u64::MAX) }
    }

    /// Goes on at `position`.
    pub fn skip_to(&mut self, position: u64) {
        self.position = position;
    }
}

impl Read for FileReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let wanted = buf.len().min(left);
        let read = self.file.read_at(&mut buf[..wanted], self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

/// Opens an archive file for reading its lines, decompressed where need be.
pub fn open_lines(disk: &dyn Disk, file: &ArchiveFile) -> io::Result<Lines> {
    Ok(Lines::new(open_text(disk, file)?))
}

/// Opens an archive file for reading its text, decompressed where need be.
pub fn open_text(disk: &dyn Disk, file: &ArchiveFile) -> io::Result<Box<dyn Read + Send>> {
    decoded(file.form, FileReader::open(disk, &file.path)?)
}

/// The text in a file of this form.
pub(super) fn decoded(form: Form, raw: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    Ok(match form {
        Form::Plain => Box::new(raw),
        Form::Zstd => Box::new(zstd::Decoder::new(raw)?),
        Form::Gzip => {
            Box::new(flate2::read::MultiGzDecoder::new(io::BufReader::with_capacity(CHUNK_BYTES, raw)))
        }
    })
}

/// A piece of an NDJSON stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A line, without its newline.
    Line(&'a [u8]),
    /// Bytes at the end that no newline closes.
    Unfinished(&'a [u8]),
    /// A line too long to be one of ours; its bytes were passed over.
    Overlong,
}

/// Cuts a stream into lines, with memory for one line and one chunk.
pub struct Lines {
    reader: Box<dyn Read + Send>,
    buffer: Vec<u8>,
    /// The unread bytes of the buffer.
    unread: std::ops::Range<usize>,
    position: u64,
    max_line_bytes: usize,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines").field("position", &self.position).finish_non_exhaustive()
    }
}

impl Lines {
    /// The lines of `reader`.
    pub fn new(reader: Box<dyn Read + Send>) -> Self {
        Self { reader, buffer: Vec::new(), unread: 0..0, position: 0, max_line_bytes: MAX_LINE_BYTES }
    }

    /// Bytes of the (decompressed) stream before the next piece.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next piece, or `None` at the end.
    pub fn next_piece(&mut self) -> io::Result<Option<Piece<'_>>> {
        let mut searched = 0;
        let mut overlong = false;
        loop {
            let unread = &self.buffer[self.unread.clone()];
            if let Some(found) = memchr::memchr(b'\n', &unread[searched..]) {
                let start = self.unread.start;
                let end = start + searched + found;
                self.unread.start = end + 1;
                self.position += (end + 1 - start) as u64;
                return Ok(Some(if overlong {
                    Piece::Overlong
                } else {
                    Piece::Line(&self.buffer[start..end])
                }));
            }
            searched = unread.len();
            if searched > self.max_line_bytes {
                overlong = true;
                self.position += searched as u64;
                self.unread = 0..0;
                searched = 0;
            }
            if self.fill()? == 0 {
                break;
            }
        }
        let rest = std::mem::replace(&mut self.unread, 0..0);
        self.position += rest.len() as u64;
        Ok(match (overlong, rest.is_empty()) {
            (true, _) => Some(Piece::Overlong),
            (false, true) => None,
            (false, false) => Some(Piece::Unfinished(&self.buffer[rest])),
        })
    }

    /// Reads one more chunk behind the unread bytes; 0 at the end.
    fn fill(&mut self) -> io::Result<usize> {
        if self.unread.start > 0 {
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        let end = self.unread.end;
        if self.buffer.len() < end + CHUNK_BYTES {
            self.buffer.resize(end + CHUNK_BYTES, 0);
        }
        loop {
            match self.reader.read(&mut self.buffer[end..]) {
                Ok(read) => {
                    self.unread.end = end + read;
                    return Ok(read);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The stamp of a line whose every byte makes sense: a JSON object with a stamp at its end. This is
/// what tells a line that reached the disk from one with a hole in it.
pub fn intact_stamp(line: &[u8]) -> Option<Stamp<'_>> {
    let stamp = stamp(line)?;
    if line.first() != Some(&b'{') {
        return None;
    }
    serde_json::from_slice::<serde::de::IgnoredAny>(line).ok()?;
    stamp.accepted_at()?;
    Some(stamp)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn paths_are_the_utc_date_of_acceptance_and_the_first_offset_in_twenty_digits() {
        let last_micro_of_2024 = Micros(1_735_689_599_999_999);
        let path = |at: Micros| Tree::of("").path(Day::of(at), 42).to_str().unwrap().to_owned();
        assert_eq!(path(last_micro_of_2024), "2024/12/31/events-00000000000000000042.ndjson");
        assert_eq!(path(Micros(last_micro_of_2024.0 + 1)), "2025/01/01/events-00000000000000000042.ndjson");
        assert_eq!(path(Micros(-1)), "1969/12/31/events-00000000000000000042.ndjson");
        for (wild, dir) in [(i64::MIN, "0000/01/01"), (i64::MAX, "9999/12/31")] {
            assert!(path(Micros(wild)).starts_with(dir));
            assert!(read_dir(dir).is_some());
        }
    }

    proptest! {
        #[test]
        fn a_path_tells_its_day_and_its_layout_and_no_other_layout_takes_it_for_its_own(
            texts in [LAYOUT, LAYOUT],
            day in FIRST_DAY..=LAST_DAY,
            first_offset in any::<u64>(),
        ) {
            let [tree, other] = texts.map(|text| {
                let layout = Layout::parse(&text).unwrap_or_else(|| panic!("{text} is one"));
                Tree { root: "/a".into(), layout }
            });
            let path = tree.path(Day(day), first_offset);
            let name = path.strip_prefix("/a").unwrap().to_str().unwrap();
            let (made_by, read) = read_dir(name.rsplit_once('/').unwrap().0).unwrap();
            prop_assert_eq!((&made_by, read), (&tree.layout, Day(day)));
            let file = ArchiveFile { first_offset, day: Day(day), form: Form::Plain, path: path.clone() };
            prop_assert_eq!(tree.file(name).unwrap(), file);
            prop_assert_eq!(other.file(name).is_ok(), other.layout == tree.layout);
        }
    }

    /// Texts that are layouts.
    const LAYOUT: &str = "([a-zA-Z][a-zA-Z=._-]{0,9})?%Y[a-zA-Z=._-]{0,9}(/([a-zA-Z][a-zA-Z=._-]{0,9})?)?%m\
                          [a-zA-Z=._-]{0,9}(/([a-zA-Z][a-zA-Z=._-]{0,9})?)?%d[a-zA-Z=._-]{0,9}";

    fn listed(tree: &Tree) -> Result<Vec<(u64, Form)>, String> {
        let files = tree.list(&RealDisk::default()).map_err(|error| error.to_string())?;
        Ok(files.iter().map(|file| (file.first_offset, file.form)).collect())
    }

    #[test]
    fn only_names_of_ours_are_files_of_the_archive_and_offsets_order_them() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "2025/01/02/events-00000000000000000007.ndjson",
            "2025/01/01/events-00000000000000000009.ndjson.zst",
            "2025/01/02/events-00000000000000000008.ndjson.gz",
            "2025/01/02/events-00000000000000000008.ndjson.bak",
            "2025/01/02/events-8.ndjson",
            "2025/01/02/events-+0000000000000000008.ndjson",
            "2025/01/02/copy/events-00000000000000000001.ndjson",
            "2025/13/02/events-00000000000000000001.ndjson",
            "2025/1/02/events-00000000000000000001.ndjson",
            "2025/events-00000000000000000001.ndjson",
            "backup/2025/01/02/events-00000000000000000001.ndjson",
            ".2025/01/02/events-00000000000000000001.ndjson",
            "events-00000000000000000001.ndjson",
            "manifest.ndjson",
        ] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = listed(&Tree::of(dir.path())).unwrap();
        assert_eq!(found, [(7, Form::Plain), (8, Form::Gzip), (9, Form::Zstd)]);
        assert_eq!(listed(&Tree::of(dir.path().join("absent"))), Ok(vec![]));
    }

    #[test]
    fn a_file_that_another_layout_made_is_named_with_both_layouts() {
        let dir = tempfile::tempdir().unwrap();
        let tree = |text: &str| Tree { root: dir.path().into(), layout: Layout::parse(text).unwrap() };
        let layouts =
            ["%Y/%m/%d", "%Y-%m-%d", "%Y%m/%d", "%Y/%m%d", "day-%Y-%m-%d", "year=%Y/month=%m/day=%d"];
        for wrote in layouts {
            let path = tree(wrote).path(Day(20_000), 7);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            for configured in layouts {
                let found = listed(&tree(configured));
                if configured == wrote {
                    assert_eq!(found, Ok(vec![(7, Form::Plain)]));
                    continue;
                }
                let expected = format!(
                    "{} was written with `layout` = \"{wrote}\", and `layout` = \"{configured}\" is configured; set it \
                     back, or configure a sink with another `name` and `path`",
                    path.display()
                );
                assert_eq!(found, Err(expected));
            }
            std::fs::remove_file(path).unwrap();
        }
    }

    fn pieces(bytes: &[u8], max_line_bytes: usize) -> Vec<(String, u64)> {
        let mut lines = Lines::new(Box::new(io::Cursor::new(bytes.to_vec())));
        lines.max_line_bytes = max_line_bytes;
        let mut out = Vec::new();
        while let Some(piece) = lines.next_piece().unwrap() {
            let text = match piece {
                Piece::Line(line) => format!("line {}", line.len()),
                Piece::Unfinished(rest) => format!("unfinished {}", rest.len()),
                Piece::Overlong => "overlong".to_owned(),
            };
            out.push((text, lines.position()));
        }
        out
    }

    #[test]
    fn a_stream_is_cut_at_newlines_and_its_unfinished_end_is_told_apart() {
        assert_eq!(pieces(b"", 100), []);
        assert_eq!(
            pieces(b"ab\n\ncde", 100),
            [("line 2".into(), 3), ("line 0".into(), 4), ("unfinished 3".into(), 7)]
        );
    }

    #[test]
    fn a_line_beyond_the_limit_is_passed_over_and_the_next_one_is_found() {
        let mut bytes = vec![b'x'; 3 * CHUNK_BYTES];
        bytes.extend_from_slice(b"\nok\n");
        let end = bytes.len() as u64;
        assert_eq!(pieces(&bytes, 1000), [("overlong".into(), end - 3), ("line 2".into(), end)]);
        assert_eq!(pieces(&vec![b'x'; 3 * CHUNK_BYTES], 1000), [("overlong".into(), 3 * CHUNK_BYTES as u64)]);
    }

    #[test]
    fn a_stamp_is_read_from_the_end_of_a_line_only() {
        let time = "2025-01-02T03:04:05.000006Z";
        let line = format!(
            r#"{{"data":"\"eventflowoffset\":\"1\"","eventflowoffset":"7","eventflowtime":"{time}"}}"#
        );
        let got = intact_stamp(line.as_bytes()).unwrap();
        assert_eq!((got.offset, got.time), (7, time));
        assert_eq!(got.accepted_at(), Some(Micros(1_735_787_045_000_006)));
        for bad in [
            r#"{"eventflowoffset":"7"}"#.to_owned(),
            line.replace("\"7\"", "\"\""),
            line.replace("\"7\"", "\"+7\""),
            line.replace("\"7\"", "\"99999999999999999999\""),
            line.replace("03:04", "99:99"),
            line.replace("data", "da\0a"),
            line.replacen('{', " {", 1),
        ] {
            assert_eq!(intact_stamp(bad.as_bytes()), None, "{bad}");
        }
        for cut in 0..line.len() {
            assert_eq!(intact_stamp(&line.as_bytes()[..cut]), None);
            assert_eq!(stamp(&line.as_bytes()[..cut]), None);
        }
    }
}
