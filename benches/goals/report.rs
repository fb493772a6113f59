//! What came out: the goals as a table and as a drawing, and every figure behind them.

use std::path::Path;

use super::plot::{self, Bar, Line};
use super::{CONNECTIONS, Figures, Spread};

/// Which side of what is to be reached is good.
#[derive(Clone, Copy, PartialEq)]
enum Reach {
    AtLeast(f64),
    AtMost(f64),
}

/// One goal.
struct Row {
    goal: u8,
    what: String,
    measured: Spread,
    reach: Reach,
}

impl Row {
    /// `None` when it was not measured.
    fn is_met(&self) -> Option<bool> {
        let median = self.measured.median;
        let is_met = match self.reach {
            Reach::AtLeast(reach) => median >= reach,
            Reach::AtMost(reach) => median <= reach,
        };
        (!median.is_nan()).then_some(is_met)
    }

    /// How far it is met: 1 is what is to be reached, more is better.
    fn score(&self, value: f64) -> f64 {
        match self.reach {
            Reach::AtLeast(reach) => value / reach,
            Reach::AtMost(reach) => reach / value.max(reach / 100.0),
        }
    }
}

/// Prints everything; with `draw`, writes the drawings into `docs/`.
pub fn tell(figures: &Figures, draw: bool) {
    let rows = rows(figures);
    println!("\n| goal | what | measured | reach | met | spread |\n| --- | --- | --- | --- | --- | --- |");
    for row in &rows {
        let Spread { low, median, high } = row.measured;
        let reach = match row.reach {
            Reach::AtLeast(reach) => format!("≥ {reach}"),
            Reach::AtMost(reach) => format!("≤ {reach}"),
        };
        let met = row.is_met().map_or("–", |met| if met { "yes" } else { "**no**" });
        println!("| {} | {} | {median:.3} | {reach} | {met} | {low:.3}–{high:.3} |", row.goal, row.what);
    }
    println!("\nNot measured here: goal 8 ÷ NATS (no NATS server).\n\nIn this run only, medians:\n");
    for name in figures.names() {
        println!("  {name:32} {:>16.4}", figures.of(name).median);
    }
    if draw {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let write = |name, text| std::fs::write(docs.join(name), text).expect("docs/ is writable");
        write("goals.svg", goals_drawn(&rows));
        write("rates.svg", rates_drawn(figures));
    }
}

fn rows(f: &Figures) -> Vec<Row> {
    use Reach::{AtLeast, AtMost};
    let mut rows = Vec::new();
    let mut row = |goal, what: &str, measured, reach| {
        rows.push(Row { goal, what: what.to_owned(), measured, reach });
    };
    for (connections, reach) in CONNECTIONS.into_iter().zip([1.2, 1.4, 1.5, 1.5]) {
        let measured = f.ratio(&format!("single {connections}"), &format!("redis {connections}"));
        row(1, &format!("single POST ÷ Redis `always`, {connections} conns"), measured, AtLeast(reach));
    }
    row(2, "single POST ÷ no-op route, 64 conns", f.ratio("single 64", "nothing 64"), AtLeast(0.9));
    row(3, "syncs per ack, 16 conns", f.of("syncs per ack"), AtMost(0.10));
    row(3, "acks per sync ÷ 64 conns, syncs + 2 ms", f.of("acks per slow sync"), AtLeast(0.6));
    row(4, "p50 at 1 conn ÷ fdatasync p50", f.ratio("single p50", "sync p50"), AtMost(1.5));
    let disk = f.ratio("ndjson bytes", "raw bytes");
    row(5, "NDJSON bytes/s ÷ raw write + fdatasync of 1 MiB", disk, AtLeast(0.18));
    row(5, "NDJSON events/s ÷ Redis 4 × 256", f.ratio("ndjson", "redis pipeline"), AtLeast(6.0));
    row(6, "single while archived ÷ alone, 64 conns", f.ratio("archived 64", "single 64"), AtLeast(0.85));
    row(6, "NDJSON while archived ÷ alone", f.ratio("ndjson archived", "ndjson"), AtLeast(0.6));
    row(
        7,
        "archive drain bytes/s ÷ raw write + fdatasync",
        f.ratio("drained bytes", "raw bytes"),
        AtLeast(0.3),
    );
    row(8, "time to ready, 5M waiting ÷ 1M", f.ratio("ready 5M", "ready 1M"), AtMost(1.2));
    let megabytes = |name: &str| f.of(name).map(|bytes| bytes / 1e6);
    row(9, "MB of memory, 5M waiting", megabytes("memory 5M"), AtMost(24.0));
    let growth = f.difference("memory 5M", "memory 1M").map(|bytes| bytes / 1e6);
    row(9, "MB of growth from 1M to 5M waiting", growth, AtMost(1.0));
    row(9, "MB of memory, 10,000 idle connections", megabytes("memory 10000 idle"), AtMost(120.0));
    row(10, "accepted/s at 2 × overload ÷ peak", f.of("overload accepted"), AtLeast(0.95));
    row(10, "p99 of a refusal, ms", f.of("refusal p99 ms"), AtMost(10.0));
    row(11, "`wal verify` bytes/s ÷ raw read + CRC", f.ratio("verified bytes", "raw read"), AtLeast(0.8));
    rows
}

fn goals_drawn(rows: &[Row]) -> String {
    let bars = rows.iter().filter(|row| row.is_met().is_some()).map(|row| {
        let Spread { low, median, high } = row.measured;
        Bar {
            label: format!("{} · {}", row.goal, row.what),
            low: row.score(low).min(row.score(high)),
            value: row.score(median),
            high: row.score(high).max(row.score(low)),
            is_good: row.is_met() == Some(true),
        }
    });
    plot::bars(
        "Goals: how far each is met (1 is met; the line is the rounds' spread)",
        &bars.collect::<Vec<_>>(),
    )
}

fn rates_drawn(f: &Figures) -> String {
    let line = |name: &'static str, figure: &str, colour| Line {
        name,
        colour,
        points: CONNECTIONS
            .iter()
            .map(|connections| {
                (connections.to_string(), f.of(&format!("{figure} {connections}")).median / 1e3)
            })
            .filter(|(_, value)| !value.is_nan())
            .collect(),
    };
    let lines = [
        line("EventFlow", "single", "#0b7285"),
        line("Redis stream, appendfsync always", "redis", "#c92a2a"),
        line("a route that does nothing", "nothing", "#868e96"),
    ];
    plot::lines("Durable events a second, one a request (thousands), by connections", &lines)
}
