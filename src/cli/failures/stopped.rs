//! The failure table in a data directory: to look into, and to change.
//!
//! On the main thread. Looking is read-only and takes no lock, so it works beside a running daemon as
//! well; for a change the queue is opened as the daemon opens it, with the lock, and closed in order.

use globset::Glob;
use serde_json::value::RawValue;

use super::super::Exit;
use super::{Failure, FilterArgs, Page, Row, Shown, State, Table};
use crate::config::{Config, Telemetry};
use crate::daemon::{self, StoppedQueue};
use crate::disk::RealDisk;
use crate::event::Micros;
use crate::queue::embedded::FailuresOnDisk;
use crate::queue::{
    FailedEvent, FailurePage, FailureQuery, FailureRow, QueueError, Redrive, RowState, Selection, SinkId,
};
use crate::telemetry;

/// The table as it is on the disk.
pub(super) struct OnDisk<'a> {
    rows: FailuresOnDisk<'a>,
}

impl<'a> OnDisk<'a> {
    pub fn new(disk: &'a RealDisk, config: &Config) -> Result<Self, Failure> {
        if !config.data_dir.join("ledger").is_dir() {
            let dir = config.data_dir.display();
            let sentence = "`--data-dir` or `--config` says where to look";
            return Err(Failure::failed(format_args!("there is no failure table in {dir}; {sentence}")));
        }
        let rows = FailuresOnDisk::open(disk, config).map_err(unreadable)?;
        Ok(Self { rows })
    }
}

fn unreadable(error: std::io::Error) -> Failure {
    Failure::failed(format_args!("the failure table cannot be read: {error}"))
}

impl Table for OnDisk<'_> {
    fn page(
        &mut self,
        sink: Option<&str>,
        filter: &FilterArgs,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, Failure> {
        let sink = sink.map(|name| sink_named(self.rows.sinks(), name)).transpose()?;
        let page = self.rows.page(&query(sink, filter, after, limit)?).map_err(unreadable)?;
        Ok(shown_page(self.rows.sinks(), page))
    }

    fn show(&mut self, sink: &str, offset: u64) -> Result<Option<Shown>, Failure> {
        let sink = sink_named(self.rows.sinks(), sink)?;
        let found = self.rows.one(sink, offset).map_err(unreadable)?;
        found.map(|found| shown(self.rows.sinks(), found)).transpose()
    }

    fn change(&mut self, _: Redrive, _: &str, _: Selection) -> Result<u64, Failure> {
        Err(Failure::failed("this table is open for looking only; please report this"))
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        match self.rows.unreadable() {
            0 => Ok(()),
            rows => {
                let sentence = "left out: damage took their events; the next start counts them as dropped";
                Err(Failure::new(Exit::Damaged, format_args!("{} {sentence}", super::count(rows, "row"))))
            }
        }
    }
}

/// The queue of a stopped daemon, opened.
pub(super) struct Stopped {
    queue: StoppedQueue,
    sinks: Vec<String>,
}

impl Stopped {
    pub fn new(config: &Config) -> Result<Self, Failure> {
        // What an opening finds wrong is told once, here or never; that all is well is no news.
        telemetry::init(&Telemetry { level: "warn".to_owned(), ..config.telemetry.clone() });
        let queue = StoppedQueue::open(config)?;
        let sinks = queue.queue().sinks().iter().map(|sink| sink.name.clone()).collect();
        Ok(Self { queue, sinks })
    }
}

fn failed(error: QueueError) -> Failure {
    match error {
        QueueError::StorageFailed(reason) => daemon::Error::StorageFailed(reason).into(),
        error => Failure::failed(error),
    }
}

impl Table for Stopped {
    fn page(
        &mut self,
        sink: Option<&str>,
        filter: &FilterArgs,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, Failure> {
        let sink = sink.map(|name| sink_named(&self.sinks, name)).transpose()?;
        let page = self.queue.queue().failures(&query(sink, filter, after, limit)?).map_err(failed)?;
        Ok(shown_page(&self.sinks, page))
    }

    fn show(&mut self, sink: &str, offset: u64) -> Result<Option<Shown>, Failure> {
        let found = self.queue.queue().failure(sink_named(&self.sinks, sink)?, offset).map_err(failed)?;
        found.map(|found| shown(&self.sinks, found)).transpose()
    }

    fn change(&mut self, action: Redrive, sink: &str, which: Selection) -> Result<u64, Failure> {
        let sink = sink_named(&self.sinks, sink)?;
        self.queue.wait(self.queue.queue().redrive(sink, which, action)).map_err(failed)
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        Ok(self.queue.close()?)
    }
}

fn sink_named(sinks: &[String], name: &str) -> Result<SinkId, Failure> {
    let at = sinks.iter().position(|sink| sink == name);
    at.and_then(|at| u16::try_from(at).ok()).map(SinkId).ok_or_else(|| {
        let sentence = "is configured; `--config` names the daemon's configuration";
        Failure::failed(format_args!("no sink `{name}` {sentence}"))
    })
}

/// What is asked, for a queue. The cursor is ours: the sink's place and the offset.
fn query(
    sink: Option<SinkId>,
    filter: &FilterArgs,
    after: Option<&str>,
    limit: usize,
) -> Result<FailureQuery, Failure> {
    let event_type = filter.kind.as_deref().map(Glob::new).transpose();
    let event_type = event_type.map_err(|error| Failure::new(Exit::Usage, error))?;
    let after = after.and_then(|cursor| {
        let (sink, offset) = cursor.split_once(':')?;
        Some((SinkId(sink.parse().ok()?), offset.parse().ok()?))
    });
    Ok(FailureQuery {
        sink,
        state: filter.state.map(|state| match state {
            State::Retrying => RowState::Retrying,
            State::Dead => RowState::Dead,
        }),
        after,
        limit,
        event_type: event_type.map(|glob| glob.compile_matcher()),
        error_contains: filter.error.clone(),
        failed_from: time("from", filter.from.as_deref())?,
        failed_to: time("to", filter.to.as_deref())?,
    })
}

fn time(name: &str, text: Option<&str>) -> Result<Option<Micros>, Failure> {
    let Some(text) = text else { return Ok(None) };
    Micros::parse_rfc3339(text).map(Some).ok_or_else(|| {
        let sentence = format!("`--{name}` is an RFC 3339 time, such as 2026-01-31T12:00:00Z");
        Failure::new(Exit::Usage, sentence)
    })
}

fn shown_page(sinks: &[String], page: FailurePage) -> Page {
    Page {
        failures: page.rows.into_iter().map(|row| shown_row(sinks, row)).collect(),
        next: page.next.map(|(sink, offset)| format!("{}:{offset}", sink.0)),
    }
}

fn shown_row(sinks: &[String], row: FailureRow) -> Row {
    Row {
        sink: sinks.get(usize::from(row.sink.0)).cloned().unwrap_or_default(),
        offset: row.offset,
        state: row.state.as_str().to_owned(),
        attempts: row.attempts,
        first_failed_at: row.first_failed_at.to_rfc3339(),
        last_failed_at: row.last_failed_at.to_rfc3339(),
        due_at: row.due_at.map(Micros::to_rfc3339),
        error: row.error,
        id: row.id,
        source: row.source,
        r#type: row.kind,
    }
}

fn shown(sinks: &[String], found: FailedEvent) -> Result<Shown, Failure> {
    let event = String::from_utf8(found.json).map_err(Failure::failed)?;
    Ok(Shown {
        row: shown_row(sinks, found.row),
        accepted_at: found.accepted_at.to_rfc3339(),
        event: RawValue::from_string(event).map_err(Failure::failed)?,
    })
}
