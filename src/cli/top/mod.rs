//! `eventflow top`: a running daemon, again and again.
//!
//! On a terminal a screen of its own, which `q`, Escape or Ctrl-C leaves as it was; on a pipe, or when asked
//! for, a line or a JSON object each time. Asks `/v1/status` and `/metrics`, on the main thread. A daemon that
//! cannot be reached at first is an error; one that goes away later is waited for on a terminal, and an error
//! elsewhere.

mod sample;
mod screen;

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use clap::Args;
use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers, poll, read};
use crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size,
};
use crossterm::{cursor, execute, queue};

use super::client::{UrlArgs, ask, status_of};
use super::{Exit, Failure, print};

use sample::{Metrics, Sample, View};

pub(super) const EXAMPLES: &str = "\
Examples:
  eventflow top
  eventflow top --interval 5s --url http://10.0.0.5:8080
  eventflow top --json --count 1 | jq '.sinks[] | {name, lag_seconds}'

On a terminal, q leaves.";

#[derive(Debug, Args)]
pub(super) struct TopArgs {
    #[command(flatten)]
    url: UrlArgs,
    /// How often to look
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Look so many times, then end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print a line each time, also on a terminal
    #[arg(long)]
    lines: bool,
    /// Print a JSON object each time
    #[arg(long, conflicts_with = "lines")]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let range = Duration::from_millis(100)..=Duration::from_secs(3600);
    if range.contains(&interval) { Ok(interval) } else { Err("from 100ms to 1h".to_owned()) }
}

/// `eventflow top`
pub(super) fn top(args: &TopArgs) -> Result<Exit, Failure> {
    let watch = Watch { agent: args.url.agent(Duration::from_secs(10))?, args };
    let first = watch.look()?;
    if args.lines || args.json || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        watch.print_lines(first)
    } else {
        watch.show(first)
    }
}

struct Watch<'a> {
    agent: ureq::Agent,
    args: &'a TopArgs,
}

impl Watch<'_> {
    fn look(&self) -> Result<(Sample, Instant), Failure> {
        let text = ask(&self.agent, &self.args.url.at("/metrics"))?;
        let status = status_of(&self.agent, &self.args.url.at("/v1/status"))?.0;
        Ok((Sample { status, metrics: Metrics::read(&text) }, Instant::now()))
    }

    /// A line for each interval.
    fn print_lines(&self, first: (Sample, Instant)) -> Result<Exit, Failure> {
        let mut before = first;
        let mut printed = 0;
        loop {
            std::thread::sleep(self.args.interval.saturating_sub(before.1.elapsed()));
            let now = self.look()?;
            let view = View::of(Some((&before.0, now.1 - before.1)), &now.0);
            if self.args.json {
                let object = serde_json::to_string(&view).map_err(Failure::failed)?;
                print(&format!("{object}\n"))?;
            } else {
                print(&format!("{}\n", screen::one_line(&view)))?;
            }
            before = now;
            printed += 1;
            if self.args.count.is_some_and(|count| printed >= count) {
                return Ok(Exit::Done);
            }
        }
    }

    /// A screen until somebody leaves.
    fn show(&self, first: (Sample, Instant)) -> Result<Exit, Failure> {
        let terminal = Terminal::take()?;
        let mut view = View::of(None, &first.0);
        let mut before = first;
        let mut trouble: Option<String> = None;
        let mut shown = 0;
        loop {
            terminal.draw(&screen::lines(&view, &self.args.url.url, trouble.as_deref()))?;
            shown += 1;
            if self.args.count.is_some_and(|count| shown >= count) {
                return Ok(Exit::Done);
            }
            let next = Instant::now() + self.args.interval;
            while let Some(left) = next.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            {
                if !poll(left)? {
                    break;
                }
                match read()? {
                    Event::Key(key) if leaves(&key) => return Ok(Exit::Done),
                    Event::Resize(..) => {
                        terminal.draw(&screen::lines(&view, &self.args.url.url, trouble.as_deref()))?;
                    }
                    _ => {}
                }
            }
            match self.look() {
                Ok(now) => {
                    view = View::of(Some((&before.0, now.1 - before.1)), &now.0);
                    (before, trouble) = (now, None);
                }
                Err(failure) => trouble = Some(failure.sentence),
            }
        }
    }
}

fn leaves(key: &KeyEvent) -> bool {
    let is_interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
    key.kind == KeyEventKind::Press && (is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// The terminal while it is ours; given back as it was when dropped, also by a panic.
struct Terminal {
    colour: bool,
}

impl Terminal {
    fn take() -> io::Result<Self> {
        enable_raw_mode()?;
        let terminal = Self { colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) };
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok(terminal)
    }

    fn draw(&self, lines: &[screen::Line]) -> io::Result<()> {
        let (width, height) = size()?;
        let mut out = io::stdout().lock();
        for (row, line) in (0..height).zip(lines) {
            let text = line.render(usize::from(width), self.colour);
            queue!(out, cursor::MoveTo(0, row))?;
            write!(out, "{text}")?;
            if text.is_empty() || line_is_short(&text, width) {
                queue!(out, Clear(ClearType::UntilNewLine))?;
            }
        }
        if lines.len() < usize::from(height) {
            queue!(out, cursor::MoveTo(0, lines.len() as u16), Clear(ClearType::FromCursorDown))?;
        }
        out.flush()
    }
}

/// Whether something of the row is left: behind its last column a terminal would clear that column.
fn line_is_short(text: &str, width: u16) -> bool {
    anstream::adapter::strip_str(text).to_string().chars().count() < usize::from(width)
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = execute!(io::stdout(), cursor::Show, LeaveAlternateScreen);
        let _ = disable_raw_mode();
    }
}
