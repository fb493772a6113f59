//! A queue in memory: a log, a failure table whose rows come due by tokio's paused clock, and a book of
//! everything that happened.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::event::{Micros, NewBatch, StoredBatch};
use crate::queue::{
    BoxFuture, Claim, ClaimLimit, ClaimOwner, FailedEvent, FailurePage, FailureQuery, Fate, Fates, Lookup,
    Origin, Queue, QueueError, Receipt, Redrive, Refusal, Resolution, Selection, SinkId, SinkInfo, Status,
};
use crate::sink::Batch;

/// What the log gives in turn, once rows that are due and returned events are out.
pub enum Supply {
    /// This many events of type `t`.
    Events(u64),
    /// An event of each type.
    Types(&'static [&'static str]),
    ReadError,
    StorageFailed,
}

#[derive(Default)]
pub struct Book {
    pub supply: VecDeque<Supply>,
    pub types: Vec<&'static str>,
    returned: VecDeque<Range<u64>>,
    rows: BTreeMap<u64, Row>,
    outstanding: usize,
    pub claimed_at: Vec<Instant>,
    /// Claims of the log that were resolved, in order.
    pub resolved: Vec<Range<u64>>,
    pub tokens: Vec<Option<Vec<u8>>>,
    /// Claims that went back unresolved.
    pub given_back: Vec<Range<u64>>,
    /// Every fate of every event.
    pub fates: BTreeMap<u64, Vec<Fate>>,
    pub backing_off: Vec<Option<String>>,
}

struct Row {
    attempts: u32,
    due_at: Micros,
    in_flight: bool,
}

/// Hands out what it was stocked with, then drains.
pub struct FakeQueue {
    pub owner: Arc<Owner>,
}

pub struct Owner {
    book: Mutex<Book>,
    changed: Notify,
    start: Mutex<Option<Instant>>,
}

impl FakeQueue {
    pub fn stocked(supply: Vec<Supply>) -> Self {
        let book = Book { supply: supply.into(), ..Book::default() };
        let owner = Owner { book: Mutex::new(book), changed: Notify::new(), start: Mutex::new(None) };
        Self { owner: Arc::new(owner) }
    }
}

impl Owner {
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    /// Time since the first look at the clock.
    pub fn now(&self) -> Micros {
        let start = *self.start.lock().unwrap().get_or_insert_with(Instant::now);
        Micros(i64::try_from(start.elapsed().as_micros()).unwrap())
    }
}

impl Book {
    fn batch(&self, offsets: &[u64]) -> Batch {
        let texts: Vec<String> = offsets
            .iter()
            .map(|offset| {
                let event_type = self.types[*offset as usize];
                format!(r#"{{"specversion":"1.0","id":"{offset}","source":"/s","type":"{event_type}"}}"#)
            })
            .collect();
        let mut events = StoredBatch::over(Bytes::from(texts.concat()));
        let mut start = 0;
        for (offset, text) in offsets.iter().zip(&texts) {
            events.push(*offset, Micros(0), start..start + text.len());
            start += text.len();
        }
        Batch { events, voids: Vec::new() }
    }

    fn due(&mut self, now: Micros, limit: ClaimLimit) -> Option<(Origin, Batch, Vec<u32>)> {
        let due = self.rows.iter_mut().filter(|(_, row)| !row.in_flight && row.due_at <= now);
        let (offsets, attempts): (Vec<u64>, Vec<u32>) = due
            .take(limit.events)
            .map(|(offset, row)| {
                row.in_flight = true;
                (*offset, row.attempts)
            })
            .unzip();
        (!offsets.is_empty()).then(|| (Origin::FailureTable, self.batch(&offsets), attempts))
    }

    fn log(&mut self, limit: ClaimLimit) -> Result<Option<(Origin, Batch, Vec<u32>)>, QueueError> {
        if self.returned.is_empty() {
            let next = self.types.len() as u64;
            match self.supply.pop_front() {
                Some(Supply::Events(count)) => self.types.extend(std::iter::repeat_n("t", count as usize)),
                Some(Supply::Types(types)) => self.types.extend(types),
                Some(Supply::ReadError) => {
                    return Err(QueueError::Read { offset: next, source: io::ErrorKind::Other.into() });
                }
                Some(Supply::StorageFailed) => return Err(QueueError::StorageFailed("planted".into())),
                None => return Ok(None),
            }
            self.returned.push_back(next..self.types.len() as u64);
        }
        let Some(mut range) = self.returned.pop_front() else { return Ok(None) };
        let most = limit.events as u64;
        if range.end - range.start > most {
            self.returned.push_front(range.start + most..range.end);
            range.end = range.start + most;
        }
        let offsets: Vec<u64> = range.clone().collect();
        Ok(Some((Origin::Log(range), self.batch(&offsets), Vec::new())))
    }
}

impl ClaimOwner for Owner {
    fn resolve(&self, _: SinkId, origin: &Origin, batch: &Batch, resolution: Resolution) {
        let mut book = self.book();
        let events = batch.events.len();
        let fates = match resolution.fates {
            Fates::AllDelivered => vec![Fate::Delivered; events],
            Fates::Each(fates) => fates,
        };
        assert!(fates.len() <= events, "more fates than events");
        if let Origin::Log(range) = origin {
            book.resolved.push(range.clone());
        }
        book.tokens.push(resolution.token);
        for (at, event) in batch.events.iter().enumerate() {
            let offset = event.offset;
            match (fates.get(at), origin) {
                (None, Origin::Log(_)) => match book.returned.back_mut() {
                    Some(last) if last.end == offset => last.end += 1,
                    _ => book.returned.push_back(offset..offset + 1),
                },
                (None, Origin::FailureTable) => book.rows.get_mut(&offset).unwrap().in_flight = false,
                (Some(Fate::Retry { attempts, due_at, .. }), _) => {
                    let row = Row { attempts: *attempts, due_at: *due_at, in_flight: false };
                    book.rows.insert(offset, row);
                }
                (Some(_), _) => drop(book.rows.remove(&offset)),
            }
            if let Some(fate) = fates.get(at) {
                book.fates.entry(offset).or_default().push(fate.clone());
            }
        }
        book.outstanding -= 1;
        self.changed.notify_waiters();
    }

    fn give_back(&self, _: SinkId, origin: &Origin, batch: &Batch) {
        let mut book = self.book();
        match origin {
            Origin::Log(range) => {
                book.given_back.push(range.clone());
                book.returned.push_back(range.clone());
            }
            Origin::FailureTable => {
                for event in batch.events.iter() {
                    book.rows.get_mut(&event.offset).unwrap().in_flight = false;
                }
            }
        }
        book.outstanding -= 1;
        self.changed.notify_waiters();
    }
}

impl Queue for FakeQueue {
    fn admit(&self, _: u64) -> Result<(), Refusal> {
        Ok(())
    }
    fn append(&self, _: NewBatch, _: Micros) -> Result<Receipt, Refusal> {
        Err(Refusal::ShuttingDown)
    }
    fn claim<'a>(
        &'a self,
        sink: SinkId,
        limit: ClaimLimit,
    ) -> BoxFuture<'a, Result<Option<Claim>, QueueError>> {
        Box::pin(async move {
            self.owner.book().claimed_at.push(Instant::now());
            loop {
                let changed = self.owner.changed.notified();
                let now = self.owner.now();
                let (found, next_due, outstanding) = {
                    let mut book = self.owner.book();
                    let found = match book.due(now, limit) {
                        Some(due) => Some(due),
                        None => book.log(limit)?,
                    };
                    book.outstanding += usize::from(found.is_some());
                    let due = book.rows.values().filter(|row| !row.in_flight).map(|row| row.due_at);
                    (found, due.min(), book.outstanding)
                };
                if let Some((origin, batch, attempts)) = found {
                    return Ok(Some(Claim::new(self.owner.clone(), sink, origin, batch, attempts)));
                }
                match next_due {
                    Some(due) => {
                        let wait = Duration::from_micros(due.0.saturating_sub(now.0) as u64);
                        let _ = tokio::time::timeout(wait, changed).await;
                    }
                    None if outstanding > 0 => changed.await,
                    None => return Ok(None),
                }
            }
        })
    }
    fn set_paused<'a>(&'a self, _: SinkId, _: bool) -> BoxFuture<'a, Result<(), QueueError>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn set_backing_off(&self, _: SinkId, reason: Option<String>) {
        self.owner.book().backing_off.push(reason);
    }
    fn event(&self, _: u64) -> Result<Lookup, QueueError> {
        Ok(Lookup::NotYet)
    }
    fn failures(&self, _: &FailureQuery) -> Result<FailurePage, QueueError> {
        Ok(FailurePage::default())
    }
    fn failure(&self, _: SinkId, _: u64) -> Result<Option<FailedEvent>, QueueError> {
        Ok(None)
    }
    fn redrive<'a>(&'a self, _: SinkId, _: Selection, _: Redrive) -> BoxFuture<'a, Result<u64, QueueError>> {
        Box::pin(std::future::ready(Ok(0)))
    }
    fn sinks(&self) -> &[SinkInfo] {
        &[]
    }
    fn pending_since(&self) -> Vec<Option<Micros>> {
        Vec::new()
    }

    fn status(&self) -> Status {
        Status::default()
    }
}
