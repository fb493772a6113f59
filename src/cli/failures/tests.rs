//! Pages, paces and what must be clear first, with a table in memory.

use super::*;

/// A table in memory that hands out pages of three and takes rows away as they are changed.
#[derive(Default)]
struct Memory {
    offsets: Vec<u64>,
    calls: Vec<Vec<u64>>,
}

fn row(offset: u64) -> Row {
    let text = |text: &str| text.to_owned();
    Row {
        sink: text("orders"),
        offset,
        state: text(if offset.is_multiple_of(2) { "dead" } else { "retrying" }),
        attempts: 2,
        first_failed_at: text("2026-01-31T12:00:00.000001Z"),
        last_failed_at: text("2026-01-31T12:00:01.000001Z"),
        due_at: None,
        error: text("answered 500\u{1b}[2J"),
        id: text("e"),
        source: text("/s"),
        r#type: text("t"),
    }
}

impl Table for Memory {
    fn page(
        &mut self,
        _: Option<&str>,
        filter: &FilterArgs,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, Failure> {
        let after = after.map(|after| after.parse::<u64>().unwrap());
        let rows = self.offsets.iter().filter(|offset| after.is_none_or(|after| **offset > after));
        let seen: Vec<Row> = rows.map(|offset| row(*offset)).take(limit.min(3)).collect();
        let last = seen.last().map(|row| row.offset);
        let wanted = |row: &Row| filter.state.is_none_or(|state| state.as_str() == row.state);
        // A page without a row need not be the last.
        let next = last.filter(|last| self.offsets.last() != Some(last)).map(|last| last.to_string());
        Ok(Page { failures: seen.into_iter().filter(wanted).collect(), next })
    }

    fn show(&mut self, _: &str, offset: u64) -> Result<Option<Shown>, Failure> {
        let event = RawValue::from_string(r#"{"id":"e","data":1e400}"#.to_owned()).unwrap();
        let found = self.offsets.contains(&offset);
        Ok(found.then(|| Shown { row: row(offset), accepted_at: "2026-01-31T11:00:00Z".to_owned(), event }))
    }

    fn change(&mut self, _: Redrive, _: &str, which: Selection) -> Result<u64, Failure> {
        let Selection::Offsets(offsets) = which else { panic!("rows are named") };
        let before = self.offsets.len();
        self.offsets.retain(|offset| !offsets.contains(offset));
        self.calls.push(offsets);
        Ok((before - self.offsets.len()) as u64)
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        Ok(())
    }
}

fn dead() -> FilterArgs {
    FilterArgs { state: Some(State::Dead), ..FilterArgs::default() }
}

#[test]
fn every_row_is_met_once_although_pages_are_empty_or_rows_go_away() {
    let mut table = Memory { offsets: vec![0, 1, 3, 5, 7, 9, 10, 12, 13], ..Memory::default() };
    let filter = dead();
    let mut rows = Rows::new(&mut table, None, &filter);
    let mut met = Vec::new();
    while let Some(row) = rows.next().unwrap() {
        met.push(row.offset);
    }
    assert_eq!(met, [0, 10, 12]);

    let mut changer = Changer {
        table: &mut table,
        action: Redrive::Drop,
        sink: "orders",
        pace: Pace::new(None),
        changed: 0,
    };
    changer.found(&filter, &ProgressBar::hidden()).unwrap();
    assert_eq!(changer.changed, 3);
    assert_eq!(table.offsets, [1, 3, 5, 7, 9, 13]);
}

#[test]
fn a_rate_makes_small_parts() {
    assert_eq!(Pace::new(None).at_once(), PAGE);
    assert_eq!(Pace::new(Some(0.5)).at_once(), 1);
    assert_eq!(Pace::new(Some(50.0)).at_once(), 13);
    assert_eq!(Pace::new(Some(1e6)).at_once(), PAGE);
    for text in ["0", "-1", "x", "nan", "inf"] {
        assert!(rate(text).is_err(), "{text}");
    }
    let mut table = Memory { offsets: (0..7).collect(), ..Memory::default() };
    let pace = Pace::new(Some(1e6));
    let mut changer = Changer { table: &mut table, action: Redrive::Retry, sink: "orders", pace, changed: 0 };
    changer.named(&[1, 2, 9], &ProgressBar::hidden()).unwrap();
    assert_eq!((changer.changed, &table.calls), (2, &vec![vec![1, 2, 9]]));
}

#[test]
fn many_rows_on_a_terminal_need_a_yes_and_no_rows_at_all_are_wrong_usage() {
    #[derive(clap::Parser)]
    struct Parsed {
        #[command(flatten)]
        args: ChangeArgs,
    }
    let args = |words: &[&str]| {
        let words = [&["failures", "orders"], words].concat();
        <Parsed as clap::Parser>::try_parse_from(words).map(|parsed| parsed.args)
    };
    for (words, on_terminal, in_script) in [
        (&["1", "2"][..], true, true),
        (&["--all"], false, true),
        (&["--all", "--yes"], true, true),
        (&["--error", "x"], false, true),
        (&["--error", "x", "--yes"], true, true),
        (&[], false, false),
        (&["--yes"], false, false),
    ] {
        let args = args(words).unwrap();
        assert_eq!(check(&args, true).is_ok(), on_terminal, "{words:?}");
        assert_eq!(check(&args, false).is_ok(), in_script, "{words:?}");
    }
    for words in [&["1", "--all"][..], &["1", "--state", "dead"], &["--url", "x", "--data-dir", "y", "1"]] {
        assert!(args(words).is_err(), "{words:?}");
    }
}

#[test]
fn tables_show_no_control_characters_and_json_has_every_byte() {
    let text = anstream::adapter::strip_str(&show::rows(&[row(1), row(2)], false, true).unwrap()).to_string();
    assert!(text.contains("answered 500 [2J") && text.contains("2026-01-31T12:00:01Z"), "{text}");
    let json = show::rows(&[row(1), row(2)], true, true).unwrap();
    let read: Vec<Row> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(read, [row(1), row(2)]);
    let shown = Memory { offsets: vec![4], ..Memory::default() }.show("orders", 4).unwrap().unwrap();
    let json = show::one(&shown, true).unwrap();
    assert!(json.contains(r#""event":{"id":"e","data":1e400}"#), "{json}");
    let again = Shown::parse(&json).unwrap();
    assert_eq!((again.row, again.event.get()), (row(4), shown.event.get()));
    assert!(show::one(&shown, false).unwrap().contains("1e400"));
}
