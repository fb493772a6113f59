//! One look at a daemon, and what two looks say about the time between them. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::cli::client::{Sink, Status};

/// Numbers of one scrape of `/metrics`.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// By name, then by everything between the brackets.
    samples: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Metrics {
    /// Reads the text format of Prometheus, as far as the daemon writes it. Lines that are something else are
    /// passed over.
    pub(super) fn read(text: &str) -> Self {
        let mut samples: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse() else { continue };
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let labels = labels.trim_end_matches('}').to_owned();
            samples.entry(name.to_owned()).or_default().insert(labels, value);
        }
        Self { samples }
    }

    fn all(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.samples.get(name).into_iter().flatten().map(|(labels, value)| (&**labels, *value))
    }

    /// The sum over all labels that contain `label`.
    fn sum(&self, name: &str, label: &str) -> f64 {
        self.all(name).filter(|(labels, _)| labels.contains(label)).map(|(_, value)| value).sum()
    }

    fn get(&self, name: &str) -> f64 {
        self.sum(name, "")
    }
}

/// One look.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) status: Status,
    pub(super) metrics: Metrics,
}

/// What is shown: the later of two looks, and rates between them. Rates are `None` with one look alone.
#[derive(Debug, Default, Serialize)]
pub(super) struct View {
    pub(super) version: String,
    pub(super) state: String,
    pub(super) ready: bool,
    pub(super) uptime_seconds: f64,
    pub(super) requests_per_second: Option<f64>,
    pub(super) events_per_second: Option<f64>,
    pub(super) duplicates_per_second: Option<f64>,
    /// Reasons with a rate above 0.
    pub(super) refusals_per_second: BTreeMap<String, f64>,
    pub(super) groups_per_second: Option<f64>,
    pub(super) requests_per_group: Option<f64>,
    pub(super) commit_p50_seconds: Option<f64>,
    pub(super) commit_p99_seconds: Option<f64>,
    pub(super) first_offset: u64,
    pub(super) next_offset: u64,
    /// Share of the budget that is in use.
    pub(super) wal_fill: f64,
    pub(super) wal_budget_bytes: f64,
    pub(super) failures_fill: f64,
    pub(super) failures_rows: f64,
    pub(super) damaged_ranges: u64,
    pub(super) connections: f64,
    /// Share of one core.
    pub(super) cpu: Option<f64>,
    pub(super) memory_bytes: f64,
    pub(super) sinks: Vec<SinkView>,
}

/// One sink.
#[derive(Debug, Default, Serialize)]
pub(super) struct SinkView {
    pub(super) name: String,
    pub(super) r#type: String,
    pub(super) state: String,
    pub(super) lag_seconds: f64,
    pub(super) pending: u64,
    pub(super) retrying: u64,
    pub(super) dead: u64,
    pub(super) dropped: u64,
    pub(super) delivered_per_second: Option<f64>,
    /// Calls that brought no answer, and events put off.
    pub(super) failures_per_second: Option<f64>,
    pub(super) last_error: Option<String>,
}

impl View {
    /// `now`, and rates since `before`, which was so long ago.
    pub(super) fn of(before: Option<(&Sample, Duration)>, now: &Sample) -> Self {
        let Sample { status, metrics } = now;
        let between = Between { before, now: metrics };
        let rate = |name, label| between.rate(name, label);
        let reasons = metrics.all("eventflow_ingest_refusals_total").map(|(labels, _)| labels);
        let refusals = reasons.filter_map(|labels| {
            let rate = rate("eventflow_ingest_refusals_total", labels).filter(|rate| *rate > 0.0)?;
            Some((labels.trim_start_matches("reason=\"").trim_end_matches('"').to_owned(), rate))
        });
        let groups = rate("eventflow_commit_group_requests_count", "");
        let per_group = rate("eventflow_commit_group_requests_sum", "").zip(groups);
        let of_budget = |used: f64, budget: &str| used / metrics.get(budget).max(1.0);
        Self {
            version: status.version.clone(),
            state: status.state.clone(),
            ready: metrics.get("eventflow_ready") > 0.0,
            uptime_seconds: status.uptime_seconds,
            requests_per_second: rate("eventflow_ingest_requests_total", ""),
            events_per_second: rate("eventflow_ingest_events_total", ""),
            duplicates_per_second: rate("eventflow_ingest_duplicates_total", ""),
            refusals_per_second: refusals.collect(),
            groups_per_second: groups,
            requests_per_group: per_group
                .filter(|(_, groups)| *groups > 0.0)
                .map(|(sum, groups)| sum / groups),
            commit_p50_seconds: before.and_then(|(before, _)| quantile(0.5, &before.metrics, metrics)),
            commit_p99_seconds: before.and_then(|(before, _)| quantile(0.99, &before.metrics, metrics)),
            first_offset: status.wal.first_offset,
            next_offset: status.wal.next_offset,
            wal_fill: of_budget(
                metrics.get("eventflow_wal_segments") * metrics.get("eventflow_wal_segment_bytes"),
                "eventflow_wal_budget_bytes",
            ),
            wal_budget_bytes: metrics.get("eventflow_wal_budget_bytes"),
            failures_fill: of_budget(
                metrics.get("eventflow_failures_bytes"),
                "eventflow_failures_budget_bytes",
            ),
            failures_rows: metrics.get("eventflow_failures_rows"),
            damaged_ranges: status.wal.damaged_ranges,
            connections: metrics.get("eventflow_http_connections"),
            cpu: rate("process_cpu_seconds_total", ""),
            memory_bytes: metrics.get("process_resident_memory_bytes"),
            sinks: status.sinks.iter().map(|sink| SinkView::of(&between, sink)).collect(),
        }
    }
}

impl SinkView {
    fn of(between: &Between<'_>, sink: &Sink) -> Self {
        let label = format!("sink=\"{}\"", sink.name);
        let answered = format!("{label},result=\"answered\"");
        let rate = |name| between.rate(name, &label);
        let calls = rate("eventflow_sink_deliveries_total");
        let failed = calls.zip(between.rate("eventflow_sink_deliveries_total", &answered));
        let put_off = rate("eventflow_sink_retries_total");
        Self {
            name: sink.name.clone(),
            r#type: sink.kind.clone(),
            state: sink.state.clone(),
            lag_seconds: between.now.sum("eventflow_sink_lag_seconds", &label),
            pending: sink.pending,
            retrying: sink.retrying,
            dead: sink.dead,
            dropped: sink.dropped,
            delivered_per_second: rate("eventflow_sink_delivered_events_total"),
            failures_per_second: failed
                .zip(put_off)
                .map(|((calls, answered), put_off)| calls - answered + put_off),
            last_error: sink.last_error.clone(),
        }
    }
}

/// The time between two looks.
struct Between<'a> {
    before: Option<(&'a Sample, Duration)>,
    now: &'a Metrics,
}

impl Between<'_> {
    /// How fast the sum over all labels that contain `label` grew. A daemon that started anew counts from 0;
    /// then it has done this much since.
    fn rate(&self, name: &str, label: &str) -> Option<f64> {
        let (before, since) = self.before?;
        let (then, now) = (before.metrics.sum(name, label), self.now.sum(name, label));
        Some(if now >= then { now - then } else { now } / since.as_secs_f64().max(1e-3))
    }
}

/// The time that this share of the groups between two looks took at most, as far as buckets tell; `None` when
/// there was no group.
fn quantile(share: f64, before: &Metrics, now: &Metrics) -> Option<f64> {
    const BUCKETS: &str = "eventflow_commit_seconds_bucket";
    let mut buckets: Vec<(f64, f64)> = now
        .all(BUCKETS)
        .filter_map(|(labels, count)| {
            let bound = labels.trim_start_matches("le=\"").trim_end_matches('"');
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, count - before.sum(BUCKETS, labels)))
        })
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    buckets.into_iter().find(|(_, count)| *count >= all * share).map(|(bound, _)| bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(requests: u64, refused: u64, fast: u64, slow: u64, delivered: u64) -> Sample {
        let status = r#"{"version":"1","uptime_seconds":5,"state":"serving","wal":{"next_offset":9},
            "sinks":[{"name":"a","type":"webhook","state":"running","pending":3,"dead":1}]}"#;
        let text = format!(
            "# HELP x y\neventflow_ready 1\n\
             eventflow_ingest_requests_total{{format=\"json\"}} {requests}\n\
             eventflow_ingest_requests_total{{format=\"lines\"}} 1\n\
             eventflow_ingest_refusals_total{{reason=\"wal-full\"}} {refused}\n\
             eventflow_ingest_refusals_total{{reason=\"malformed\"}} 7\n\
             eventflow_commit_seconds_bucket{{le=\"0.001\"}} {fast}\n\
             eventflow_commit_seconds_bucket{{le=\"0.5\"}} {0}\n\
             eventflow_commit_seconds_bucket{{le=\"+Inf\"}} {0}\n\
             eventflow_wal_segments 2\neventflow_wal_segment_bytes 10\neventflow_wal_budget_bytes 80\n\
             eventflow_sink_lag_seconds{{sink=\"a\"}} 1.5\n\
             eventflow_sink_lag_seconds{{sink=\"ab\"}} 99\n\
             eventflow_sink_delivered_events_total{{sink=\"a\"}} {delivered}\n\
             eventflow_sink_retries_total{{sink=\"a\"}} 0\n\
             eventflow_sink_deliveries_total{{sink=\"a\",result=\"answered\"}} {delivered}\n\
             eventflow_sink_deliveries_total{{sink=\"a\",result=\"broke\"}} {refused}\nnonsense\n",
            fast + slow
        );
        Sample { status: serde_json::from_str(status).unwrap(), metrics: Metrics::read(&text) }
    }

    #[test]
    fn rates_are_what_changed_between_two_looks() {
        let (before, now) = (sample(10, 0, 100, 0, 50), sample(30, 4, 198, 2, 90));
        let view = View::of(Some((&before, Duration::from_secs(2))), &now);
        assert!(view.ready);
        assert_eq!(view.requests_per_second, Some(10.0));
        assert_eq!(view.refusals_per_second, BTreeMap::from([("wal-full".to_owned(), 2.0)]));
        assert_eq!((view.commit_p50_seconds, view.commit_p99_seconds), (Some(0.001), Some(0.5)));
        assert_eq!(view.wal_fill, 0.25);
        let sink = &view.sinks[0];
        assert_eq!((sink.lag_seconds, sink.pending, sink.dead), (1.5, 3, 1));
        assert_eq!((sink.delivered_per_second, sink.failures_per_second), (Some(20.0), Some(2.0)));
    }

    #[test]
    fn one_look_has_no_rates_and_a_daemon_that_started_anew_no_negative_ones() {
        let now = sample(30, 4, 0, 0, 90);
        let view = View::of(None, &now);
        assert_eq!((view.requests_per_second, view.commit_p50_seconds), (None, None));
        assert!(view.refusals_per_second.is_empty());
        let view = View::of(Some((&sample(1000, 0, 0, 0, 0), Duration::from_secs(1))), &now);
        assert_eq!(view.requests_per_second, Some(31.0), "all that it did since");
        assert_eq!(view.commit_p99_seconds, None, "no group");
    }
}
