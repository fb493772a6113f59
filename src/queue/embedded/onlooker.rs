//! What can be told of a queue without opening it, while a daemon has it open or nobody: for the
//! commands that look into a data directory.
//!
//! Read-only, without a lock, on the caller's thread. What cannot be read is an error for the caller to
//! tell; nothing here changes a file.

mod failures;

use std::io;
use std::path::Path;

use crate::config::Config;
use crate::disk::Disk;
use crate::log::{LogError, OfflineReader, ReadError, Stream};

use super::codec::{self, Record};
use super::open::ledger_options;
use super::ring::Ring;

pub use failures::FailuresOnDisk;

/// Records and bytes of the logs read at once.
const READ_RECORDS: usize = 1024;
const READ_BYTES: usize = 256 * 1024;

/// Looks at a log that goes on meanwhile, before it is given up.
const LOOKS: usize = 4;

/// E as the ledger knows it: every offset of the event log below it was synced at some time; 0 when
/// there is no ledger. Asked before the event log is looked at, it holds for a running daemon as well.
pub fn known_durable(disk: &dyn Disk, config: &Config) -> io::Result<u64> {
    let dir = ledger_options(config).dir;
    match disk.list(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        listed => listed?,
    };
    let mut known = Ring::look_at_end(disk, &dir);
    read_all(disk, &dir, &mut |record: Record| {
        known = known.max(match record {
            Record::Checkpoint(checkpoint) => checkpoint.durable_end,
            Record::Findings(findings) => findings.durable_end,
            _ => 0,
        });
    })?;
    Ok(known)
}

/// The resume token of a sink's last durable checkpoint; `None` when there is no ledger, or no token in it.
pub fn resume_token(disk: &dyn Disk, config: &Config, sink: &str) -> io::Result<Option<Vec<u8>>> {
    let dir = ledger_options(config).dir;
    match disk.list(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        listed => listed?,
    };
    let mut token = None;
    read_all(disk, &dir, &mut |record: Record| {
        if let Record::Checkpoint(checkpoint) = record
            && checkpoint.sink == sink
        {
            token = checkpoint.token;
        }
    })?;
    Ok(token)
}

/// Hands out every record; from the start again when the daemon lets go of what is being read.
fn read_all(disk: &dyn Disk, dir: &Path, note: &mut impl FnMut(Record)) -> io::Result<()> {
    for _ in 1..LOOKS {
        match read(disk, dir, note) {
            Err(ReadError::Released { .. }) => {}
            read => return read.map_err(io::Error::other),
        }
    }
    read(disk, dir, note).map_err(io::Error::other)
}

fn read(disk: &dyn Disk, dir: &Path, note: &mut impl FnMut(Record)) -> Result<(), ReadError> {
    let failed = |error: LogError| ReadError::Failed(error.to_string());
    let mut reader = OfflineReader::open(disk, dir, Stream::Ledger).map_err(failed)?;
    let mut at = reader.first_offset();
    loop {
        let chunk = reader.read(at, READ_RECORDS, READ_BYTES)?;
        if chunk.range.is_empty() {
            return Ok(());
        }
        at = chunk.range.end;
        // A record that cannot be used tells nothing; opening leaves it out, too.
        chunk
            .records
            .iter()
            .filter_map(|record| codec::decode::<Record>(chunk.bytes(record)).ok())
            .for_each(&mut *note);
    }
}
