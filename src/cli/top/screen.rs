//! A view as lines of a terminal: what needs attention in colour, nothing wider than the terminal. Pure.

use std::time::Duration;

use anstyle::{AnsiColor, Style};

use crate::cli::client::{BAD, GOOD, HEAD, WAITING};
use crate::cli::count;

use super::sample::{SinkView, View};

const PLAIN: Style = Style::new();
const QUIET: Style = AnsiColor::BrightBlack.on_default();

/// A line in the making: pieces, each in its style.
#[derive(Debug, Default, Clone)]
pub(super) struct Line(Vec<(Style, String)>);

impl Line {
    fn put(mut self, style: Style, text: impl Into<String>) -> Self {
        self.0.push((style, text.into()));
        self
    }

    fn text(self, text: impl Into<String>) -> Self {
        self.put(PLAIN, text)
    }

    /// The line, cut to `width`, with or without colour. What a target answered may hold anything, so control
    /// characters become spaces.
    pub(super) fn render(&self, width: usize, colour: bool) -> String {
        let mut out = String::new();
        let mut left = width;
        for (style, text) in &self.0 {
            let text: String =
                text.chars().take(left).map(|c| if c.is_control() { ' ' } else { c }).collect();
            left -= text.chars().count();
            if colour && !style.is_plain() {
                out.push_str(&format!("{style}{text}{style:#}"));
            } else {
                out.push_str(&text);
            }
        }
        out
    }
}

/// The whole screen.
pub(super) fn lines(view: &View, url: &str, trouble: Option<&str>) -> Vec<Line> {
    let state = match (&*view.state, view.ready) {
        ("serving", true) => GOOD,
        ("failed", _) => BAD,
        _ => WAITING,
    };
    let up = humantime::format_duration(Duration::from_secs(view.uptime_seconds.max(0.0) as u64));
    let mut head = Line::default().put(HEAD, format!("eventflow {}  ", view.version));
    head = head.put(state, view.state.clone()).text(format!("  up {up}")).put(QUIET, format!("  {url}"));
    let mut lines = vec![head];
    if let Some(trouble) = trouble {
        lines.push(Line::default().put(BAD, trouble));
    }
    lines.push(Line::default());
    lines.push(label("in").text(format!(
        "{} events/s  {} requests/s  {} duplicates/s",
        rate(view.events_per_second),
        rate(view.requests_per_second),
        rate(view.duplicates_per_second)
    )));
    lines.push(refusals(view));
    lines.push(label("commit").text(format!(
        "p50 {}  p99 {}  {} groups/s  {} requests a group",
        at_most(view.commit_p50_seconds),
        at_most(view.commit_p99_seconds),
        rate(view.groups_per_second),
        view.requests_per_group.map_or("–".to_owned(), |size| format!("{size:.1}"))
    )));
    let budget = bytesize::ByteSize(view.wal_budget_bytes as u64);
    lines.push(
        bar(label("log"), view.wal_fill)
            .text(format!(" of {budget}  offsets {}..{}", view.first_offset, view.next_offset)),
    );
    lines.push(
        bar(label("failures"), view.failures_fill)
            .text(format!("  {}", count(view.failures_rows as u64, "row"))),
    );
    if view.damaged_ranges > 0 {
        let found = format!("{} damaged ranges found so far: eventflow wal verify", view.damaged_ranges);
        lines.push(label("damage").put(BAD, found));
    }
    lines.push(label("process").text(format!(
        "{} of a core  {}  {}",
        view.cpu.map_or("–".to_owned(), |share| format!("{:.0} %", share * 100.0)),
        bytesize::ByteSize(view.memory_bytes as u64),
        count(view.connections as u64, "connection")
    )));
    lines.push(Line::default());
    sinks(&mut lines, &view.sinks);
    lines
}

fn label(name: &str) -> Line {
    Line::default().put(QUIET, format!("{name:9} "))
}

fn refusals(view: &View) -> Line {
    let line = label("refused");
    if view.refusals_per_second.is_empty() {
        return line.put(QUIET, if view.requests_per_second.is_some() { "nothing" } else { "–" });
    }
    view.refusals_per_second.iter().fold(line, |line, (reason, requests)| {
        line.put(BAD, format!("{}/s {reason}  ", rate(Some(*requests))))
    })
}

/// How full something is.
fn bar(line: Line, share: f64) -> Line {
    const WIDTH: usize = 20;
    let full = ((share * WIDTH as f64).round() as usize).min(WIDTH);
    let style = match share {
        share if share > 0.8 => BAD,
        share if share > 0.5 => WAITING,
        _ => GOOD,
    };
    line.put(style, "█".repeat(full))
        .put(QUIET, "░".repeat(WIDTH - full))
        .text(format!(" {:3.0} %", share * 100.0))
}

fn sinks(lines: &mut Vec<Line>, sinks: &[SinkView]) {
    let name_width = sinks.iter().map(|sink| sink.name.chars().count()).max().unwrap_or(0).max(4);
    let head = format!(
        "{:name_width$}  {:11}  {:>8}  {:>10}  {:>8}  {:>7}  {:>8}  {:>6}  {:>7}",
        "sink", "state", "lag", "pending", "out/s", "fails/s", "retrying", "dead", "dropped"
    );
    lines.push(Line::default().put(HEAD, head));
    for sink in sinks {
        let state = if sink.state == "running" { GOOD } else { WAITING };
        let worry = |bad: bool| if bad { BAD } else { PLAIN };
        let failing = sink.failures_per_second.is_some_and(|fails| fails > 0.0);
        lines.push(
            Line::default()
                .text(format!("{:name_width$}  ", sink.name))
                .put(state, format!("{:11}  ", sink.state))
                .put(worry(sink.lag_seconds > 300.0), format!("{:>8}  ", age(sink.lag_seconds)))
                .text(format!("{:>10}  {:>8}  ", sink.pending, rate(sink.delivered_per_second)))
                .put(worry(failing), format!("{:>7}  ", rate(sink.failures_per_second)))
                .text(format!("{:>8}  ", sink.retrying))
                .put(worry(sink.dead > 0), format!("{:>6}  ", sink.dead))
                .put(worry(sink.dropped > 0), format!("{:>7}", sink.dropped)),
        );
        if let Some(error) = sink.last_error.as_ref().filter(|_| sink.state != "running" || failing) {
            lines.push(Line::default().text(format!("{:name_width$}  ", "")).put(BAD, error.clone()));
        }
    }
}

/// A view as one line, for a pipe.
pub(super) fn one_line(view: &View) -> String {
    // The sum of nothing is -0.
    let refused = view.refusals_per_second.values().fold(0.0, |sum, rate| sum + rate);
    let mut line = format!(
        "{} in {} events/s refused {}/s commit p99 {} log {:.0} %",
        view.state,
        rate(view.events_per_second),
        rate(Some(refused)),
        at_most(view.commit_p99_seconds),
        view.wal_fill * 100.0
    );
    for sink in &view.sinks {
        line.push_str(&format!(
            " | {} {} lag {} pending {} out {}/s dead {}",
            sink.name,
            sink.state,
            age(sink.lag_seconds),
            sink.pending,
            rate(sink.delivered_per_second),
            sink.dead
        ));
    }
    line
}

fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "–".to_owned(),
        Some(rate) if rate > 0.0 && rate < 10.0 => format!("{rate:.1}"),
        Some(rate) => format!("{rate:.0}"),
    }
}

/// A bucket's bound, which is all that is known.
fn at_most(seconds: Option<f64>) -> String {
    match seconds {
        None => "–".to_owned(),
        Some(seconds) if seconds.is_infinite() => "> 10 s".to_owned(),
        Some(seconds) if seconds < 1.0 => format!("≤ {} ms", (seconds * 10_000.0).round() / 10.0),
        Some(seconds) => format!("≤ {seconds} s"),
    }
}

fn age(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 60.0 => format!("{seconds:.1} s"),
        seconds if seconds < 3600.0 => format!("{:.0} m", seconds / 60.0),
        seconds if seconds < 86_400.0 => format!("{:.1} h", seconds / 3600.0),
        seconds => format!("{:.1} d", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        View {
            version: "1".into(),
            state: "serving".into(),
            ready: true,
            events_per_second: Some(1234.4),
            refusals_per_second: [("wal-full".to_owned(), 2.0)].into(),
            commit_p99_seconds: Some(0.0025),
            wal_fill: 0.25,
            sinks: vec![SinkView {
                name: "orders".into(),
                state: "backing_off".into(),
                lag_seconds: 4000.0,
                dead: 3,
                last_error: Some("status 500: \u{1b}[2J\noh".into()),
                ..SinkView::default()
            }],
            ..View::default()
        }
    }

    fn shown(width: usize, colour: bool) -> String {
        let lines = lines(&view(), "http://x", Some("no answer"));
        lines.iter().map(|line| line.render(width, colour) + "\n").collect()
    }

    #[test]
    fn a_screen_says_what_needs_attention() {
        let text = shown(200, false);
        for words in [
            "serving",
            "1234 events/s",
            "2.0/s wal-full",
            "p99 ≤ 2.5 ms",
            "█████░░░░░░░░░░░░░░░  25 %",
            "orders  backing_off",
            "1.1 h",
            "status 500:",
            "no answer",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        assert!(!text.contains('\u{1b}'), "nothing of a target's answer reaches the terminal as a command");
        assert!(shown(200, true).contains(&format!("{BAD}2.0/s wal-full")));
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in [0, 1, 10, 40] {
            assert!(shown(width, false).lines().all(|line| line.chars().count() <= width));
        }
    }

    #[test]
    fn one_line_is_one_line() {
        let line = one_line(&view());
        assert_eq!(line.lines().count(), 1);
        assert!(line.contains("orders backing_off lag 1.1 h"), "{line}");
    }
}
