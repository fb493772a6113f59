//! Keeps the durable ring of dedupe tags up with the log.
//!
//! Steps run on the ledger thread. A segment may be freed only once its tags are in the ring; that
//! is what [`Feed::release_limit`] says. A ring that fails is given up and made anew at once. Only when
//! that does not work either is the limit lifted, because a full log would be worse than a duplicate
//! after a restart.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::Disk;
use crate::log::{Log, ReadError, Reader};

use super::ring::Ring;

/// Tags read at once.
const READ_TAGS: usize = 2048;
/// Tags between two syncs of the ring.
const STEP_TAGS: u64 = 65_536;

/// Feeds the ring.
#[derive(Debug)]
pub(super) struct Feed {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    window: u64,
    log: Log,
    reader: Reader,
    ring: State,
    /// No ring can be made at the moment; told once.
    is_stuck: bool,
    pairs: Vec<(u64, u128)>,
}

#[derive(Debug)]
enum State {
    /// Dedupe is turned off.
    Off,
    /// In use.
    On(Ring),
    /// Is to be made anew, with the tags of the last one.
    Broken(Option<Ring>),
}

impl Feed {
    /// Feeds `ring` from `log`; without a ring, one is made at the first step. `window` 0 is off.
    pub fn new(disk: Arc<dyn Disk>, dir: PathBuf, window: u64, log: Log, ring: Option<Ring>) -> Self {
        let ring = match ring {
            _ if window == 0 => State::Off,
            Some(ring) if ring.window() == window && ring.is_durable() => State::On(ring),
            old => State::Broken(old),
        };
        let reader = log.reader(log.first_offset());
        Self { disk, dir, window, log, reader, ring, is_stuck: false, pairs: Vec::new() }
    }

    /// Segments below this offset may go as far as duplicates are concerned.
    pub fn release_limit(&self) -> u64 {
        match &self.ring {
            State::On(ring) => ring.end(),
            State::Broken(old) if !self.is_stuck => old.as_ref().map_or(0, Ring::end),
            State::Broken(_) | State::Off => u64::MAX,
        }
    }

    /// Does one unit of work; `true` when there is more.
    pub fn step(&mut self) -> bool {
        match std::mem::replace(&mut self.ring, State::Off) {
            State::Off => false,
            State::Broken(old) => match self.make(old.as_ref()) {
                Ok(ring) => {
                    self.is_stuck = false;
                    self.ring = State::On(ring);
                    true
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.is_stuck, true) {
                        tracing::warn!(
                            %error,
                            "no dedupe ring can be made, another try follows; until then duplicates of \
                             freed events are not recognised after a restart"
                        );
                    }
                    self.ring = State::Broken(old);
                    false
                }
            },
            State::On(mut ring) => match self.advance(&mut ring) {
                Ok(more) => {
                    self.ring = State::On(ring);
                    more
                }
                Err(error) => {
                    tracing::warn!(%error, "the dedupe ring failed; a new one is made");
                    self.ring = State::Broken(Some(ring));
                    true
                }
            },
        }
    }

    /// Forgets the tags of these offsets, durably.
    pub fn forget(&mut self, offsets: &[Range<u64>]) -> io::Result<()> {
        let State::On(ring) = &mut self.ring else { return Ok(()) };
        for range in offsets {
            ring.forget(range.clone())?;
        }
        ring.publish(ring.end())
    }

    fn make(&self, old: Option<&Ring>) -> io::Result<Ring> {
        let start = self.log.next_offset().saturating_sub(self.window).max(self.log.first_offset());
        Ring::create(&self.disk, &self.dir, self.window, start, old)
            // An old ring that cannot be copied must not keep a new one from being made.
            .or_else(|error| match old {
                Some(_) => Ring::create(&self.disk, &self.dir, self.window, start, None),
                None => Err(error),
            })
    }

    fn advance(&mut self, ring: &mut Ring) -> io::Result<bool> {
        let sealed = self.log.sealed_end();
        let from = ring.end();
        if from >= sealed {
            return Ok(false);
        }
        self.reader.seek(from.max(self.log.first_offset()));
        let mut written = from;
        while written < sealed && written - from < STEP_TAGS {
            self.pairs.clear();
            let before = self.reader.position();
            if let Err(error) = self.reader.read_tags(READ_TAGS, &mut self.pairs) {
                // Trying again may work; only what was read so far is published.
                warn_read(&error);
                break;
            }
            let end = self.reader.position();
            if end <= before {
                break;
            }
            self.write_run(ring, written, end)?;
            written = end;
        }
        if written > from {
            ring.publish(written)?;
        }
        Ok(written > from && written < sealed)
    }

    /// Writes the tags that were read as those of `start..end`, 0 where none was.
    fn write_run(&self, ring: &Ring, start: u64, end: u64) -> io::Result<()> {
        let start = start.max(end.saturating_sub(self.window));
        let mut tags = vec![0; (end - start) as usize];
        for (offset, tag) in &self.pairs {
            if let Some(place) = offset.checked_sub(start).and_then(|at| tags.get_mut(at as usize)) {
                *place = *tag;
            }
        }
        ring.write(start, &tags)
    }
}

fn warn_read(error: &ReadError) {
    tracing::warn!(%error, "the tags of a segment cannot be read; it is kept and tried again");
}
