//! How an archive is laid out: `YYYY/MM/DD/events-<first offset, 20 digits>.ndjson`, and finished
//! files perhaps compressed (`.zst`, `.gz`). Also how one of its files is read, line by line.
//!
//! Used by the sink and by the offline verbs. Reads only, on the caller's thread; an error is the
//! file system's own.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::disk::{Access, Disk, DiskFile, EntryKind};
use crate::event::Micros;
pub use crate::event::{Stamp, stamp};

const MICROS_A_DAY: i64 = 24 * 60 * 60 * 1_000_000;

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

    fn from_date(year: &str, month: &str, day: &str) -> Option<Self> {
        Micros::parse_rfc3339(&format!("{year}-{month}-{day}T00:00:00Z")).map(Self::of)
    }

    /// `YYYY/MM/DD`. A clock that is off by millennia gets years that sort as text at least.
    fn dir(self) -> String {
        let (year, month, day) = self.start().date();
        format!("{:04}/{month:02}/{day:02}", year.clamp(0, 9999))
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

impl ArchiveFile {
    /// The file at `relative` under `root`; `None` when that is no name of an archive's.
    pub fn at(root: &Path, relative: &Path) -> Option<Self> {
        let (first_offset, form) = parse_path(relative)?;
        let parts: Vec<&str> = relative.iter().filter_map(|part| part.to_str()).collect();
        let [year, month, day, _] = parts[..] else { return None };
        Some(Self { first_offset, day: Day::from_date(year, month, day)?, form, path: root.join(relative) })
    }
}

/// First offset and form, as the last part of a path tells them.
pub(super) fn parse_path(path: &Path) -> Option<(u64, Form)> {
    parse_name(path.file_name()?.to_str()?)
}

/// The path of a file, relative to the archive's directory.
pub fn relative_path(day: Day, first_offset: u64) -> PathBuf {
    PathBuf::from(format!("{}/events-{first_offset:020}.ndjson", day.dir()))
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

/// The files of the archive under `root` in the order of their first offsets; none when there is no
/// such directory. Names that are not an archive's are not looked at.
///
/// The order is that of the offsets and not of the days: a clock that jumps back puts later events
/// into an earlier day's directory.
pub fn list(disk: &dyn Disk, root: &Path) -> io::Result<Vec<ArchiveFile>> {
    let mut files = Vec::new();
    for year in directories(disk, root, 4)? {
        for month in directories(disk, &root.join(&year), 2)? {
            for day in directories(disk, &root.join(&year).join(&month), 2)? {
                let Some(date) = Day::from_date(&year, &month, &day) else { continue };
                let dir = root.join(&year).join(&month).join(&day);
                for entry in entries(disk, &dir)? {
                    if entry.kind == EntryKind::File
                        && let Some((first_offset, form)) = parse_name(&entry.name)
                    {
                        files.push(ArchiveFile {
                            first_offset,
                            day: date,
                            form,
                            path: dir.join(&entry.name),
                        });
                    }
                }
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn directories(disk: &dyn Disk, dir: &Path, digits: usize) -> io::Result<Vec<String>> {
    let entries = entries(disk, dir)?;
    let of_digits = |name: &str| name.len() == digits && name.bytes().all(|b| b.is_ascii_digit());
    Ok(entries
        .into_iter()
        .filter(|e| e.kind == EntryKind::Dir && of_digits(&e.name))
        .map(|e| e.name)
        .collect())
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
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn paths_are_the_utc_date_of_acceptance_and_the_first_offset_in_twenty_digits() {
        let last_micro_of_2024 = Micros(1_735_689_599_999_999);
        let path = |at: Micros| relative_path(Day::of(at), 42).to_str().unwrap().to_owned();
        assert_eq!(path(last_micro_of_2024), "2024/12/31/events-00000000000000000042.ndjson");
        assert_eq!(path(Micros(last_micro_of_2024.0 + 1)), "2025/01/01/events-00000000000000000042.ndjson");
        assert_eq!(path(Micros(-1)), "1969/12/31/events-00000000000000000042.ndjson");
        for wild in [i64::MIN, i64::MAX] {
            assert_eq!(path(Micros(wild)).len(), path(Micros(0)).len());
        }
    }

    #[test]
    fn every_day_is_read_back_from_the_directory_it_names() {
        for day in (0..40_000).step_by(13) {
            let dir = Day(day).dir();
            let parts: Vec<&str> = dir.split('/').collect();
            assert_eq!(Day::from_date(parts[0], parts[1], parts[2]), Some(Day(day)), "{dir}");
        }
        assert_eq!(Day::from_date("2025", "02", "30"), None);
        assert_eq!(Day::from_date("2025", "2", "03"), None);
    }

    #[test]
    fn only_names_of_ours_are_files_of_the_archive_and_offsets_order_them() {
        let dir = tempfile::tempdir().unwrap();
        let day = dir.path().join("2025/01/02");
        std::fs::create_dir_all(&day).unwrap();
        std::fs::create_dir_all(dir.path().join("2025/01/01")).unwrap();
        std::fs::create_dir_all(dir.path().join("2025/13/02")).unwrap();
        for name in [
            "2025/01/02/events-00000000000000000007.ndjson",
            "2025/01/01/events-00000000000000000009.ndjson.zst",
            "2025/01/02/events-00000000000000000008.ndjson.gz",
            "2025/01/02/events-00000000000000000008.ndjson.bak",
            "2025/01/02/events-8.ndjson",
            "2025/01/02/events-+0000000000000000008.ndjson",
            "2025/13/02/events-00000000000000000001.ndjson",
            "manifest.ndjson",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let files = list(&RealDisk::default(), dir.path()).unwrap();
        let found: Vec<_> = files.iter().map(|f| (f.first_offset, f.form)).collect();
        assert_eq!(found, [(7, Form::Plain), (8, Form::Gzip), (9, Form::Zstd)]);
        assert!(list(&RealDisk::default(), &dir.path().join("absent")).unwrap().is_empty());
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
