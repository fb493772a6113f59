//! The failure table in a data directory.
//!
//! On the main thread. The queue is opened as the daemon opens it, with the lock, and closed in order.

use globset::Glob;

use super::super::Exit;
use super::{Action, Failure, FilterArgs, Page, Row, Shown, State, Table, Which};
use crate::config::{Config, Telemetry};
use crate::daemon::{self, StoppedQueue};
use crate::event::Micros;
use crate::queue::{FailureQuery, FailureRow, QueueError, Redrive, RowState, Selection, SinkId};
use crate::telemetry;

pub(super) struct Stopped {
    queue: StoppedQueue,
}

impl Stopped {
    pub fn new(config: &Config) -> Result<Self, Failure> {
        // What an opening finds wrong is told once, here or never; that all is well is no news.
        telemetry::init(&Telemetry { level: "warn".to_owned(), ..config.telemetry.clone() });
        Ok(Self { queue: StoppedQueue::open(config)? })
    }

    fn sink(&self, name: &str) -> Result<SinkId, Failure> {
        let at = self.queue.queue().sinks().iter().position(|sink| sink.name == name);
        let id = at.and_then(|at| u16::try_from(at).ok()).map(SinkId);
        id.ok_or_else(|| {
            let sentence = "is configured; `--config` names the daemon's configuration";
            Failure::failed(format_args!("no sink `{name}` {sentence}"))
        })
    }

    fn row(&self, row: FailureRow) -> Row {
        let sinks = self.queue.queue().sinks();
        Row {
            sink: sinks.get(usize::from(row.sink.0)).map(|sink| sink.name.clone()).unwrap_or_default(),
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
}

fn failed(error: QueueError) -> Failure {
    match error {
        QueueError::StorageFailed(reason) => daemon::Error::StorageFailed(reason).into(),
        error => Failure::failed(error),
    }
}

fn time(name: &str, text: Option<&str>) -> Result<Option<Micros>, Failure> {
    let Some(text) = text else { return Ok(None) };
    Micros::parse_rfc3339(text).map(Some).ok_or_else(|| {
        let sentence = format!("`--{name}` is an RFC 3339 time, such as 2026-01-31T12:00:00Z");
        Failure::new(Exit::Usage, sentence)
    })
}

impl Table for Stopped {
    fn page(
        &mut self,
        sink: Option<&str>,
        filter: &FilterArgs,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, Failure> {
        let event_type = filter.kind.as_deref().map(Glob::new).transpose();
        let event_type = event_type.map_err(|error| Failure::new(Exit::Usage, error))?;
        // The cursor is ours: the sink's place and the offset.
        let after = after.and_then(|cursor| {
            let (sink, offset) = cursor.split_once(':')?;
            Some((SinkId(sink.parse().ok()?), offset.parse().ok()?))
        });
        let query = FailureQuery {
            sink: sink.map(|name| self.sink(name)).transpose()?,
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
        };
        let page = self.queue.queue().failures(&query).map_err(failed)?;
        Ok(Page {
            failures: page.rows.into_iter().map(|row| self.row(row)).collect(),
            next: page.next.map(|(sink, offset)| format!("{}:{offset}", sink.0)),
        })
    }

    fn show(&mut self, sink: &str, offset: u64) -> Result<Option<Shown>, Failure> {
        let sink = self.sink(sink)?;
        let Some(found) = self.queue.queue().failure(sink, offset).map_err(failed)? else { return Ok(None) };
        let event = String::from_utf8(found.json).map_err(Failure::failed)?;
        Ok(Some(Shown {
            row: self.row(found.row),
            accepted_at: found.accepted_at.to_rfc3339(),
            event: serde_json::value::RawValue::from_string(event).map_err(Failure::failed)?,
        }))
    }

    fn change(&mut self, action: Action, sink: &str, which: Which) -> Result<u64, Failure> {
        let selection = match which {
            Which::Offsets(offsets) => Selection::Offsets(offsets),
            Which::All => Selection::All,
        };
        let action = match action {
            Action::Retry => Redrive::Retry,
            Action::Drop => Redrive::Drop,
        };
        let sink = self.sink(sink)?;
        let changed = self.queue.queue().redrive(sink, selection, action);
        self.queue.wait(changed).map_err(failed)
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        Ok(self.queue.close()?)
    }
}
