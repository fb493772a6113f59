//! Metrics: what each is called and means, and the text format of Prometheus they are written in.
//!
//! The tables below are the names; `docs/METRICS.md` says more, and a test holds it against them. The daemon
//! fills a [`Page`] anew for each scrape, out of state and counters, so there is no registry. Pure.
//! The format (0.0.4) is a page long and written out by hand: libraries for it are built around a registry of
//! numbers that somebody keeps.

use std::fmt::{Display, Write};

use crate::meter::Distribution;

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name, with unit and suffix as the conventions want them.
    pub name: &'static str,
    kind: Kind,
    help: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Declares metrics, each with its kind, name and help.
macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal, $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = Metric { name: $name, kind: Kind::$kind, help: $help };
        )*
    };
}

metrics! {
    BUILD = Gauge "eventflow_build_info", "Always 1; the version is a label.";
    STATE = Gauge "eventflow_state", "1 for the state the daemon is in, 0 for the others.";
    READY = Gauge "eventflow_ready", "1 when an event posted now would be accepted.";

    INGEST_REQUESTS = Counter "eventflow_ingest_requests_total", "Requests answered 202, by how their body was read.";
    INGEST_EVENTS = Counter "eventflow_ingest_events_total", "Events newly appended to the log.";
    INGEST_DUPLICATES = Counter "eventflow_ingest_duplicates_total", "Events that had been accepted before and were not appended again.";
    INGEST_REFUSALS = Counter "eventflow_ingest_refusals_total", "Requests for events that were refused, by the slug of their problem.";

    CONNECTIONS = Gauge "eventflow_http_connections", "Connections served now.";
    CONNECTIONS_ADMITTED = Counter "eventflow_http_connections_admitted_total", "Connections served since the start.";
    CONNECTIONS_TURNED_AWAY = Counter "eventflow_http_connections_turned_away_total", "Connections refused because http.max_connections was reached.";
    CONNECTIONS_LIMIT = Gauge "eventflow_http_connections_limit", "Connections served at most.";

    WAL_BYTES = Gauge "eventflow_wal_bytes", "Bytes the write-ahead log takes on disk.";
    WAL_BUDGET = Gauge "eventflow_wal_budget_bytes", "Bytes the write-ahead log may take.";
    WAL_SEGMENTS = Gauge "eventflow_wal_segments", "Segments that hold events.";
    WAL_SEGMENT = Gauge "eventflow_wal_segment_bytes", "Size of one segment.";
    WAL_FIRST = Gauge "eventflow_wal_first_offset", "The oldest offset the log still holds.";
    WAL_NEXT = Gauge "eventflow_wal_next_offset", "The offset the next event gets.";
    WAL_VOIDS = Gauge "eventflow_wal_void_offsets", "Offsets in the log that hold no event.";
    WAL_DAMAGED = Counter "eventflow_wal_damaged_ranges_total", "Damaged ranges found since the data directory was made.";
    QUARANTINE_FILES = Gauge "eventflow_quarantine_files", "Copies of damaged bytes in quarantine/.";
    QUARANTINE_BYTES = Gauge "eventflow_quarantine_bytes", "Bytes of the copies in quarantine/.";

    GROUP_REQUESTS = Histogram "eventflow_commit_group_requests", "Requests written and synced together.";
    GROUP_EVENTS = Histogram "eventflow_commit_group_events", "Events written and synced together.";
    COMMIT_SECONDS = Histogram "eventflow_commit_seconds", "Time to write and sync one group.";

    SINK_INFO = Gauge "eventflow_sink_info", "Always 1; the type of the sink is a label.";
    SINK_STATE = Gauge "eventflow_sink_state", "1 for the state the sink is in, 0 for the others.";
    SINK_HELD_UP = Gauge "eventflow_sink_held_up", "1 while nothing is claimed from the log because the failure table has no room.";
    SINK_ACKED = Gauge "eventflow_sink_acked_offset", "The sink is done with every offset below this one.";
    SINK_PENDING = Gauge "eventflow_sink_pending_events", "Events neither finished nor parked: the lag in events.";
    SINK_IN_FLIGHT = Gauge "eventflow_sink_in_flight_events", "Pending events that a worker holds.";
    SINK_LAG = Gauge "eventflow_sink_lag_seconds", "Age of the oldest pending event; 0 when there is none.";
    SINK_RETRYING = Gauge "eventflow_sink_retrying_events", "Events in the failure table that will be tried again.";
    SINK_DEAD = Gauge "eventflow_sink_dead_events", "Events in the failure table that were given up.";
    SINK_DELIVERED = Counter "eventflow_sink_delivered_events_total", "Events delivered, counted over restarts.";
    SINK_DROPPED = Counter "eventflow_sink_dropped_events_total", "Events dropped by policy or by hand, counted over restarts.";
    SINK_SKIPPED = Counter "eventflow_sink_skipped_events_total", "Events that the sink's filter does not match, counted over restarts.";
    SINK_ATTEMPTS = Counter "eventflow_sink_attempted_events_total", "Events handed to the sink, each as often as it was.";
    SINK_RETRIES = Counter "eventflow_sink_retries_total", "Events that failed and were put off.";
    SINK_DELIVERIES = Counter "eventflow_sink_deliveries_total", "Calls of the sink, by how they ended.";
    SINK_SECONDS = Histogram "eventflow_sink_delivery_seconds", "Time one call of the sink took.";

    FAILURES_ROWS = Gauge "eventflow_failures_rows", "Rows of the failure table.";
    FAILURES_BYTES = Gauge "eventflow_failures_bytes", "Bytes that the rows of the failure table need.";
    FAILURES_BUDGET = Gauge "eventflow_failures_budget_bytes", "Bytes that rows of the failure table may need.";
    FAILURES_REBUILDS = Counter "eventflow_failures_index_rebuilds_total", "How often the index over the failure table had to be built anew.";

    RECOVERY_SECONDS = Gauge "eventflow_recovery_seconds", "Time from the start of the process to serving.";
    RECOVERY_CLEAN = Gauge "eventflow_recovery_clean_stop", "1 when the run before this one had stopped in order.";
    RECOVERY_VOIDS = Gauge "eventflow_recovery_void_offsets", "Offsets that this start found without an event nobody was promised.";
    RECOVERY_DAMAGED = Gauge "eventflow_recovery_damaged_ranges", "Damaged ranges that this start found.";
    RECOVERY_REWRITTEN = Gauge "eventflow_recovery_rewritten_events", "Events that this start wrote anew into a new segment.";

    PROCESS_CPU = Counter "process_cpu_seconds_total", "Processor time used.";
    PROCESS_RESIDENT = Gauge "process_resident_memory_bytes", "Memory in use.";
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes", "Address space in use.";
    PROCESS_FDS = Gauge "process_open_fds", "Open file descriptors.";
    PROCESS_MAX_FDS = Gauge "process_max_fds", "File descriptors that may be open.";
    PROCESS_THREADS = Gauge "process_threads", "Threads.";
    PROCESS_START = Gauge "process_start_time_seconds", "When the process started, since the Unix epoch.";
}

/// A label and its value.
pub type Label<'a> = (&'static str, &'a str);

/// The answer to one scrape in the making.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
    /// The family that samples belong to now.
    family: &'static str,
}

impl Page {
    /// A sample without labels.
    pub fn put(&mut self, metric: &Metric, value: impl Display) {
        self.sample(metric, &[], value);
    }

    /// A sample. All samples of a metric come one after the other.
    pub fn sample(&mut self, metric: &Metric, labels: &[Label<'_>], value: impl Display) {
        self.begin(metric);
        self.line(metric.name, "", labels, None, value);
    }

    /// A histogram; `unit` is what its numbers are counted in, as a share of the metric's.
    pub fn histogram(&mut self, metric: &Metric, labels: &[Label<'_>], seen: &Distribution, unit: f64) {
        self.begin(metric);
        let mut below = 0;
        for (bound, count) in seen.bounds.iter().zip(&seen.counts) {
            below += count;
            let bound = (*bound as f64 * unit).to_string();
            self.line(metric.name, "_bucket", labels, Some(&bound), below);
        }
        let all: u64 = seen.counts.iter().sum();
        self.line(metric.name, "_bucket", labels, Some("+Inf"), all);
        self.line(metric.name, "_sum", labels, None, seen.sum as f64 * unit);
        self.line(metric.name, "_count", labels, None, all);
    }

    /// The text.
    pub fn into_text(self) -> String {
        self.text
    }

    fn begin(&mut self, metric: &Metric) {
        if self.family == metric.name {
            return;
        }
        self.family = metric.name;
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let Metric { name, help, .. } = metric;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}"); // a String takes everything
    }

    fn line(
        &mut self,
        name: &str,
        suffix: &str,
        labels: &[Label<'_>],
        bound: Option<&str>,
        value: impl Display,
    ) {
        self.text.push_str(name);
        self.text.push_str(suffix);
        let labels = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
        let mut separator = '{';
        for (label, value) in labels {
            self.text.push(separator);
            separator = ',';
            self.text.push_str(label);
            self.text.push_str("=\"");
            for c in value.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    other => self.text.push(other),
                }
            }
            self.text.push('"');
        }
        if separator == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_told_once_and_labels_are_escaped() {
        let mut page = Page::default();
        page.sample(&SINK_DEAD, &[("sink", "a")], 1);
        page.sample(&SINK_DEAD, &[("sink", "b\"\\\n")], 2);
        page.put(&READY, 0);
        assert_eq!(
            page.into_text(),
            "# HELP eventflow_sink_dead_events Events in the failure table that were given up.\n\
             # TYPE eventflow_sink_dead_events gauge\n\
             eventflow_sink_dead_events{sink=\"a\"} 1\n\
             eventflow_sink_dead_events{sink=\"b\\\"\\\\\\n\"} 2\n\
             # HELP eventflow_ready 1 when an event posted now would be accepted.\n\
             # TYPE eventflow_ready gauge\n\
             eventflow_ready 0\n"
        );
    }

    #[test]
    fn buckets_of_a_histogram_add_up() {
        let seen = Distribution { bounds: &[1000, 2_000_000], counts: vec![1, 2, 3], sum: 9_500_000 };
        let mut page = Page::default();
        page.histogram(&COMMIT_SECONDS, &[("x", "y")], &seen, 1e-6);
        let text = page.into_text();
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "eventflow_commit_seconds_bucket{x=\"y\",le=\"0.001\"} 1",
                "eventflow_commit_seconds_bucket{x=\"y\",le=\"2\"} 3",
                "eventflow_commit_seconds_bucket{x=\"y\",le=\"+Inf\"} 6",
                "eventflow_commit_seconds_sum{x=\"y\"} 9.5",
                "eventflow_commit_seconds_count{x=\"y\"} 6",
            ]
        );
    }
}
