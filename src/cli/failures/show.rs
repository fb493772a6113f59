//! How rows look on a terminal and as JSON. Pure.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};

use super::{Failure, Row, Shown};

const HEAD: Style = Style::new().bold();
const DEAD: Style = AnsiColor::Red.on_default();
const RETRYING: Style = AnsiColor::Yellow.on_default();
const DIM: Style = Style::new().dimmed();

/// Longest error in a table; `failures show` has all of it.
const ERROR_WIDTH: usize = 60;

/// A table of rows, with its head when it `begins` here; or an object a line.
pub(super) fn rows(rows: &[Row], json: bool, begins: bool) -> Result<String, Failure> {
    let mut out = String::new();
    if json {
        for row in rows {
            out += &serde_json::to_string(row).map_err(Failure::failed)?;
            out.push('\n');
        }
        return Ok(out);
    }
    let sink_width = rows.iter().map(|row| row.sink.len()).max().unwrap_or(0).max(4);
    let type_width = rows.iter().map(|row| row.r#type.chars().count()).max().unwrap_or(0).clamp(4, 40);
    if begins {
        let _ = writeln!(
            out,
            "{HEAD}{:sink_width$}  {:>12}  {:8}  {:>8}  {:20}  {:20}  {:type_width$}  error{HEAD:#}",
            "sink", "offset", "state", "attempts", "failed last", "due", "type"
        );
    }
    for row in rows {
        let colour = if row.state == "dead" { DEAD } else { RETRYING };
        let _ = writeln!(
            out,
            "{:sink_width$}  {:>12}  {colour}{:8}{colour:#}  {:>8}  {:20}  {:20}  {:type_width$}  {}",
            row.sink,
            row.offset,
            row.state,
            row.attempts,
            seconds(&row.last_failed_at),
            row.due_at.as_deref().map_or("-".to_owned(), seconds),
            cut(&row.r#type, type_width),
            cut(&row.error, ERROR_WIDTH),
        );
    }
    Ok(out)
}

/// One row with its event.
pub(super) fn one(shown: &Shown, json: bool) -> Result<String, Failure> {
    if json {
        return Ok(format!("{}\n", serde_json::to_string(shown).map_err(Failure::failed)?));
    }
    let row = &shown.row;
    let mut out = String::new();
    let colour = if row.state == "dead" { DEAD } else { RETRYING };
    let due = row.due_at.as_deref().unwrap_or("-");
    let attempts = row.attempts.to_string();
    let offset = row.offset.to_string();
    let fields = [
        ("sink", row.sink.as_str()),
        ("offset", &offset),
        ("id", &row.id),
        ("source", &row.source),
        ("type", &row.r#type),
        ("accepted", &shown.accepted_at),
        ("failed first", &row.first_failed_at),
        ("failed last", &row.last_failed_at),
        ("attempts", &attempts),
        ("due", due),
        ("error", &row.error),
    ];
    let _ = writeln!(out, "{HEAD}{:13}{HEAD:#} {colour}{}{colour:#}", "state", row.state);
    for (name, value) in fields {
        let _ = writeln!(out, "{HEAD}{name:13}{HEAD:#} {}", plain(value));
    }
    // Numbers that fit into no type of ours are JSON all the same; such an event is shown as it is.
    let event = shown.event.get();
    let value: Option<serde_json::Value> = serde_json::from_str(event).ok();
    let pretty = value.and_then(|value| serde_json::to_string_pretty(&value).ok());
    let pretty = pretty.unwrap_or_else(|| event.to_owned());
    let _ = writeln!(out, "{DIM}event{DIM:#}\n{pretty}");
    Ok(out)
}

/// A time without its fraction.
fn seconds(time: &str) -> String {
    match time.split_once('.') {
        Some((whole, _)) => format!("{whole}Z"),
        None => time.to_owned(),
    }
}

/// Text from outside, cut, and without anything a terminal would act on.
fn cut(text: &str, width: usize) -> String {
    let plain = plain(text);
    if plain.chars().count() <= width {
        return plain;
    }
    plain.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
