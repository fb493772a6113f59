//! What `GET /metrics` answers: every number out of the part that has it, at the moment of the scrape.
//!
//! Runs on the thread of the scrape, which it may block: it asks the disk since when events wait, and for what
//! is in quarantine. What cannot be read is left out; nothing here fails.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::config::Config;
use crate::disk::{Access, Disk, EntryKind};
use crate::event::Micros;
use crate::http::{App, State};
use crate::log::Report;
use crate::queue::{Queue, SinkState, SinkStatus, Status};
use crate::telemetry::metrics::{self as names, Label, Page};
use crate::worker::{Availability, Delivered};

use super::process;

/// What a scrape asks beside the HTTP edge and the queue.
pub(super) struct Metrics {
    disk: Arc<dyn Disk>,
    quarantine_dir: PathBuf,
    segment_bytes: u64,
    started: OnceLock<Started>,
}

/// What is known once everything is open.
pub(super) struct Started {
    /// Each sink's, in configured order.
    pub sinks: Vec<Arc<Availability>>,
    /// What recovery found in the event log.
    pub report: Report,
    /// From the start to serving.
    pub took: Duration,
}

impl Metrics {
    /// Answers `GET /metrics` from now on.
    pub(super) fn behind(app: &App, config: &Config, disk: Arc<dyn Disk>) -> Arc<Self> {
        let metrics = Arc::new(Self {
            disk,
            quarantine_dir: config.data_dir.join("quarantine"),
            segment_bytes: config.wal.segment_bytes,
            started: OnceLock::new(),
        });
        let asked = Arc::clone(&metrics);
        app.scraped_by(Box::new(move |app| asked.text(app)));
        metrics
    }

    /// Everything is open. Only the first call counts.
    pub(super) fn started(&self, started: Started) {
        let _ = self.started.set(started);
    }

    /// The answer to a scrape.
    pub(super) fn text(&self, app: &App) -> String {
        let mut page = Page::default();
        page.sample(&names::BUILD, &[("version", env!("CARGO_PKG_VERSION"))], 1);
        let now = app.state();
        for state in [State::Recovering, State::Serving, State::Draining, State::Failed] {
            page.sample(&names::STATE, &[("state", state.as_str())], u8::from(state == now));
        }
        edge(&mut page, app);
        match app.queue() {
            Some(queue) => self.queue(&mut page, &**queue, now),
            None => page.put(&names::READY, 0),
        }
        self.quarantine(&mut page);
        if let Some(started) = self.started.get() {
            recovery(&mut page, started);
        }
        process::put(&mut page);
        page.into_text()
    }

    fn queue(&self, page: &mut Page, queue: &dyn Queue, state: State) {
        let since = queue.pending_since();
        let status = queue.status();
        page.put(&names::READY, u8::from(state == State::Serving && status.refusing.is_none()));
        page.put(&names::WAL_BYTES, status.wal_bytes);
        page.put(&names::WAL_BUDGET, status.wal_budget_bytes);
        page.put(&names::WAL_SEGMENTS, status.segments);
        page.put(&names::WAL_SEGMENT, self.segment_bytes);
        page.put(&names::WAL_FIRST, status.first_offset);
        page.put(&names::WAL_NEXT, status.next_offset);
        page.put(&names::WAL_VOIDS, status.voids);
        page.put(&names::WAL_DAMAGED, status.damaged_ranges);
        page.histogram(&names::GROUP_REQUESTS, &[], &status.commits.requests, 1.0);
        page.histogram(&names::GROUP_EVENTS, &[], &status.commits.events, 1.0);
        page.histogram(&names::COMMIT_SECONDS, &[], &status.commits.micros, 1e-6);
        page.put(&names::FAILURES_ROWS, status.failures.rows);
        page.put(&names::FAILURES_BYTES, status.failures.bytes);
        page.put(&names::FAILURES_BUDGET, status.failures.budget_bytes);
        page.put(&names::FAILURES_REBUILDS, status.index_rebuilds);
        sinks(page, &status, &since);
        if let Some(started) = self.started.get() {
            deliveries(page, &status.sinks, &started.sinks);
        }
    }

    fn quarantine(&self, page: &mut Page) {
        // Until something is set aside there is no such directory.
        let entries = self.disk.list(&self.quarantine_dir).unwrap_or_default();
        let files = entries.iter().filter(|entry| entry.kind == EntryKind::File);
        let bytes = |name: &str| self.disk.open(&self.quarantine_dir.join(name), Access::Read)?.len();
        page.put(&names::QUARANTINE_FILES, files.clone().count());
        page.put(&names::QUARANTINE_BYTES, files.map(|file| bytes(&file.name).unwrap_or(0)).sum::<u64>());
    }
}

fn edge(page: &mut Page, app: &App) {
    let traffic = app.traffic();
    for of_format in traffic.by_format() {
        page.sample(&names::INGEST_REQUESTS, &[("format", of_format.format)], of_format.requests);
    }
    for of_format in traffic.by_format() {
        page.sample(&names::INGEST_EVENTS, &[("format", of_format.format)], of_format.events);
    }
    for of_format in traffic.by_format() {
        page.sample(&names::INGEST_DUPLICATES, &[("format", of_format.format)], of_format.duplicates);
    }
    for (slug, requests) in traffic.by_refusal() {
        page.sample(&names::INGEST_REFUSALS, &[("reason", slug)], requests);
    }
    page.put(&names::CONNECTIONS, traffic.open_connections());
    page.put(&names::CONNECTIONS_ADMITTED, traffic.admitted_connections());
    page.put(&names::CONNECTIONS_TURNED_AWAY, traffic.turned_away_connections());
    page.put(&names::CONNECTIONS_LIMIT, traffic.connections_limit());
}

fn sinks(page: &mut Page, status: &Status, since: &[Option<Micros>]) {
    let sinks = &status.sinks;
    for sink in sinks {
        page.sample(&names::SINK_INFO, &[("sink", &sink.name), ("type", sink.kind)], 1);
    }
    for sink in sinks {
        for state in [SinkState::Running, SinkState::Paused, SinkState::BackingOff] {
            let labels: [Label<'_>; 2] = [("sink", &sink.name), ("state", state.as_str())];
            page.sample(&names::SINK_STATE, &labels, u8::from(sink.state == state));
        }
    }
    let now = Micros::now();
    for (sink, since) in sinks.iter().zip(since) {
        let age = since.map_or(0, |since| now.0.saturating_sub(since.0).max(0));
        // What was oldest a moment ago may be delivered by now.
        let age = if sink.pending == 0 { 0 } else { age };
        page.sample(&names::SINK_LAG, &[("sink", &sink.name)], age as f64 / 1e6);
    }
    let mut put = |metric: &names::Metric, number: fn(&SinkStatus) -> u64| {
        for sink in sinks {
            page.sample(metric, &[("sink", &sink.name)], number(sink));
        }
    };
    put(&names::SINK_HELD_UP, |sink| u64::from(sink.is_held_up));
    put(&names::SINK_ACKED, |sink| sink.acked_offset);
    put(&names::SINK_PENDING, |sink| sink.pending);
    put(&names::SINK_IN_FLIGHT, |sink| sink.in_flight);
    put(&names::SINK_RETRYING, |sink| sink.retrying);
    put(&names::SINK_DEAD, |sink| sink.dead);
    put(&names::SINK_DELIVERED, |sink| sink.delivered);
    put(&names::SINK_DROPPED, |sink| sink.dropped);
    put(&names::SINK_SKIPPED, |sink| sink.skipped);
}

fn deliveries(page: &mut Page, sinks: &[SinkStatus], availabilities: &[Arc<Availability>]) {
    let looks: Vec<(&str, Delivered)> = sinks
        .iter()
        .zip(availabilities)
        .map(|(sink, known)| (&*sink.name, known.deliveries.look()))
        .collect();
    for (sink, look) in &looks {
        page.sample(&names::SINK_ATTEMPTS, &[("sink", sink)], look.attempts);
    }
    for (sink, look) in &looks {
        page.sample(&names::SINK_RETRIES, &[("sink", sink)], look.retries);
    }
    for (sink, look) in &looks {
        for (result, calls) in look.calls {
            page.sample(&names::SINK_DELIVERIES, &[("sink", sink), ("result", result)], calls);
        }
    }
    for (sink, look) in &looks {
        page.histogram(&names::SINK_SECONDS, &[("sink", sink)], &look.micros, 1e-6);
    }
}

fn recovery(page: &mut Page, Started { report, took, .. }: &Started) {
    let voids: u64 = report.voids.iter().map(|range| range.end - range.start).sum();
    page.put(&names::RECOVERY_SECONDS, took.as_secs_f64());
    page.put(&names::RECOVERY_CLEAN, u8::from(report.clean_stop));
    page.put(&names::RECOVERY_VOIDS, voids);
    page.put(&names::RECOVERY_DAMAGED, report.damage.len());
    page.put(&names::RECOVERY_REWRITTEN, report.rewritten);
}
