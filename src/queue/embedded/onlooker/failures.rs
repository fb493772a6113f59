//! The failure table of a data directory, read-only: as the records of its log tell it, in order.
//!
//! Keeps a row's place and numbers, and reads its event when it is asked for. A running daemon goes on
//! meanwhile: when it has let go of what is to be read, the log is read anew.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use crate::config::Config;
use crate::disk::Disk;
use crate::event::Micros;
use crate::log::{OfflineReader, ReadError, Stream};
use crate::queue::{FailedEvent, FailurePage, FailureQuery, SinkId};

use super::super::codec::{self, RowRecord};
use super::super::failures::{Found, describe, matches, state_of};
use super::super::open::failures_options;
use super::super::rows::{Row, Rows};
use super::super::table::{self, Told};
use super::{LOOKS, READ_BYTES, READ_RECORDS};

/// The failure table as it is on the disk.
pub struct FailuresOnDisk<'a> {
    disk: &'a dyn Disk,
    dir: PathBuf,
    /// Without one there is no table yet.
    reader: Option<OfflineReader<'a>>,
    /// Sinks in configured order, then those that are not configured any more.
    sinks: Vec<String>,
    rows: Vec<Rows>,
    unreadable: u64,
}

impl std::fmt::Debug for FailuresOnDisk<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FailuresOnDisk").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl<'a> FailuresOnDisk<'a> {
    /// Reads the table's log in `config.data_dir`.
    pub fn open(disk: &'a dyn Disk, config: &Config) -> io::Result<Self> {
        let sinks = config.sinks.iter().map(|sink| sink.name.clone()).collect();
        let dir = failures_options(config).dir;
        let mut opened = Self { disk, dir, reader: None, sinks, rows: Vec::new(), unreadable: 0 };
        opened.read_anew()?;
        Ok(opened)
    }

    /// The sinks; a [`SinkId`] is an index into this.
    pub fn sinks(&self) -> &[String] {
        &self.sinks
    }

    /// Rows whose events cannot be read, met so far.
    pub fn unreadable(&self) -> u64 {
        self.unreadable
    }

    /// A page of rows.
    pub fn page(&mut self, query: &FailureQuery) -> io::Result<FailurePage> {
        let mut page = FailurePage::default();
        let mut after = query.after;
        while let Some((sink, offset, row)) = self.next(query, after) {
            if page.rows.len() >= query.limit {
                page.next = after;
                break;
            }
            after = Some((sink, offset));
            let wanted = query.state.is_none_or(|state| state == state_of(&row));
            let found = if wanted { self.find(sink, offset)? } else { None };
            page.rows.extend(found.map(|found| describe(sink, &found)).filter(|row| matches(query, row)));
        }
        Ok(page)
    }

    /// One row with its event.
    pub fn one(&mut self, sink: SinkId, offset: u64) -> io::Result<Option<FailedEvent>> {
        let found = self.find(sink, offset)?;
        Ok(found.map(|found| FailedEvent {
            row: describe(sink, &found),
            accepted_at: Micros(found.head.accepted_at),
            json: found.text,
        }))
    }

    fn next(&self, query: &FailureQuery, after: Option<(SinkId, u64)>) -> Option<(SinkId, u64, Row)> {
        let sinks = (0..).map(SinkId).zip(&self.rows);
        let wanted = sinks.filter(|(id, _)| query.sink.is_none_or(|sink| sink == *id));
        let mut behind = wanted.filter(|(id, _)| after.is_none_or(|(sink, _)| *id >= sink));
        behind.find_map(|(id, rows)| {
            let from = after.filter(|(sink, _)| *sink == id).map(|(_, offset)| offset);
            rows.after(from).next().map(|(offset, row)| (id, offset, *row))
        })
    }

    /// Reads a row's records; `None` when there is no such row, or damage took it.
    fn find(&mut self, sink: SinkId, offset: u64) -> io::Result<Option<Found>> {
        for _ in 0..LOOKS {
            let Some(row) = self.rows.get(usize::from(sink.0)).and_then(|rows| rows.get(offset).copied())
            else {
                return Ok(None);
            };
            match self.read_row(sink, offset, row) {
                Ok(found) => {
                    self.unreadable += u64::from(found.is_none());
                    return Ok(found);
                }
                Err(ReadError::Released { .. }) => self.read_anew()?,
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Err(io::Error::other("the failure table changes faster than it can be read"))
    }

    fn read_row(&mut self, sink: SinkId, offset: u64, row: Row) -> Result<Option<Found>, ReadError> {
        let Some((RowRecord::Parked(mut head) | RowRecord::Kept(mut head), text)) = self.record(row.place)?
        else {
            return Ok(None);
        };
        if (&head.sink, head.offset) != (&self.sinks[usize::from(sink.0)], offset) {
            return Ok(None);
        }
        if row.told != row.place
            && let Some((RowRecord::Changed(change), _)) = self.record(row.told)?
        {
            table::tell(&mut head, change);
        }
        Ok(Some(Found { offset, row, head, text }))
    }

    fn record(&mut self, place: u64) -> Result<Option<(RowRecord, Vec<u8>)>, ReadError> {
        let Some(reader) = &mut self.reader else { return Ok(None) };
        let chunk = reader.read(place, 1, 1)?;
        let record = chunk.records.first().filter(|record| record.offset == place);
        let decoded = record.and_then(|record| codec::decode_row(chunk.bytes(record)).ok());
        Ok(decoded.map(|(record, text)| (record, text.to_vec())))
    }

    fn read_anew(&mut self) -> io::Result<()> {
        match self.disk.list(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            listed => listed?,
        };
        for _ in 0..LOOKS {
            let mut told = BTreeMap::new();
            let mut reader =
                OfflineReader::open(self.disk, &self.dir, Stream::Failures).map_err(io::Error::other)?;
            match read_all(&mut reader, &mut told) {
                // The daemon cleaned it and let go of what was being read.
                Err(ReadError::Released { .. }) => continue,
                read => read.map_err(io::Error::other)?,
            }
            self.rows = self.sinks.iter().map(|name| told.remove(name).unwrap_or_default().rows).collect();
            let gone = told.into_iter().filter(|(_, told)| told.rows.len() > 0);
            for (name, told) in gone.take(usize::from(u16::MAX) - self.sinks.len()) {
                self.sinks.push(name);
                self.rows.push(told.rows);
            }
            self.reader = Some(reader);
            return Ok(());
        }
        Err(io::Error::other("the failure table changes faster than it can be read"))
    }
}

fn read_all(reader: &mut OfflineReader<'_>, told: &mut BTreeMap<String, Told>) -> Result<(), ReadError> {
    let mut at = reader.first_offset();
    loop {
        let chunk = reader.read(at, READ_RECORDS, READ_BYTES)?;
        if chunk.range.is_empty() {
            return Ok(());
        }
        at = chunk.range.end;
        for record in &chunk.records {
            // A record that cannot be used tells nothing; opening leaves it out, too.
            let _ = table::take(told, record.offset, chunk.bytes(record), |_| false);
        }
    }
}
