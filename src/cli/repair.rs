//! `eventflow wal repair`: the log of a stopped daemon made whole again.
//!
//! On the main thread, and on a few more that read files. Without `--yes` it only reads, beside a running
//! daemon or not; with it, it holds the daemon's lock. What is said to be done was looked at again afterwards.
//! Damage that is left is an answer (code 5), not an error.

use std::fmt::Write;
use std::path::PathBuf;

use anstyle::{AnsiColor, Style};
use clap::Args;
use serde_json::{Value, json};

use super::offline::{WalArgs, damage_json, damage_text, durable, log_dir, threads, with_progress};
use super::{Exit, Failure, count, print};
use crate::config::Config;
use crate::daemon::{Lock, repair_log};
use crate::disk::RealDisk;
use crate::log::repair::{Action, Repair, plan};
use crate::queue::embedded::wal_options;

pub(super) const HELP: &str = "\
A damaged segment is copied into quarantine and written anew with all its intact events. Offsets
that are lost become void, in the ledger and in the log, so that `verify` speaks of new damage only
and `status` goes on counting the loss; sent again they are no duplicates. A file that holds
nothing of a segment moves into quarantine. Not while a daemon runs (code 3).

Examples:
  eventflow wal repair --data-dir /var/lib/eventflow            # says what it would do
  eventflow wal repair --data-dir /var/lib/eventflow --yes      # does it";

#[derive(Debug, Args)]
pub(super) struct RepairArgs {
    #[command(flatten)]
    wal: WalArgs,
    /// Do it, instead of saying what would be done
    #[arg(long, short)]
    yes: bool,
}

/// Damaged ranges of a file that are named one by one to people; JSON has all of them.
const SHOWN: usize = 10;

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default();

pub(super) fn run(args: &RepairArgs) -> Result<Exit, Failure> {
    let config = args.wal.config.load(None)?;
    let dir = log_dir(&config)?;
    let lock = match args.yes {
        true => Some(Lock::take(&config.data_dir)?),
        false => None,
    };
    let mut repairs = planned(&config)?;
    let mut left = repairs.clone();
    if let Some(lock) = lock.filter(|_| !repairs.is_empty()) {
        refuse_unknown(&repairs)?;
        let done = with_progress(|told| repair_log(&lock, &config, threads(), told))?;
        for repair in &mut repairs {
            repair.quarantined =
                done.iter().find(|d| d.file == repair.file).and_then(|d| d.quarantined.clone());
        }
        left = planned(&config)?;
        repairs.extend(
            left.iter().filter(|l| repairs.iter().all(|r| r.file != l.file)).cloned().collect::<Vec<_>>(),
        );
    }
    let outcome =
        Outcome { repairs, left: left.into_iter().map(|repair| repair.file).collect(), was_asked: args.yes };
    print(&match args.wal.json {
        true => format!("{}\n", outcome.json()),
        false => outcome.text(&dir.display().to_string()),
    })?;
    Ok(if outcome.left.is_empty() { Exit::Done } else { Exit::Damaged })
}

fn planned(config: &Config) -> Result<Vec<Repair>, Failure> {
    let disk = RealDisk::default();
    let durable = durable(&disk, config);
    with_progress(|told| plan(&disk, &wal_options(config), durable, threads(), told)).map_err(Failure::failed)
}

/// What cannot be opened may be whole: nothing is written off before somebody has seen to it.
fn refuse_unknown(repairs: &[Repair]) -> Result<(), Failure> {
    match repairs.iter().find(|repair| repair.action == Action::Leave) {
        None => Ok(()),
        Some(repair) => Err(Failure::failed(format_args!(
            "{} cannot be opened, and its events may be whole; make it readable, or move it away to give it up, and \
             repair again",
            repair.file.display()
        ))),
    }
}

/// What was found, and what became of it.
struct Outcome {
    repairs: Vec<Repair>,
    /// Files that are still damaged.
    left: Vec<PathBuf>,
    was_asked: bool,
}

impl Outcome {
    fn is_done(&self, repair: &Repair) -> bool {
        self.was_asked && !self.left.contains(&repair.file)
    }

    fn text(&self, dir: &str) -> String {
        let mut out = String::new();
        for repair in &self.repairs {
            for damage in repair.damage.iter().take(SHOWN) {
                let _ = writeln!(out, "{BAD}damaged{BAD:#}: {}", damage_text(damage));
            }
            if repair.damage.len() > SHOWN {
                let more = count((repair.damage.len() - SHOWN) as u64, "more range");
                let _ = writeln!(out, "{BAD}damaged{BAD:#}: {more}; --json names them");
            }
            let file = repair.file.display();
            let _ = match (repair.action, self.was_asked, self.is_done(repair)) {
                (Action::Leave, ..) => writeln!(
                    out,
                    "   left: {file} cannot be opened; make it readable, or move it away to give it up"
                ),
                (_, false, _) => writeln!(out, "  would: {}", words(repair)),
                (_, true, true) => writeln!(out, "   done: {}", words(repair)),
                (_, true, false) => writeln!(out, "   left: {file} is still damaged; repair again"),
            };
            if let Some(path) = &repair.quarantined {
                let _ = writeln!(out, "   kept: {}", path.display());
            }
        }
        let _ = match (self.repairs.is_empty(), self.was_asked) {
            (true, _) => writeln!(out, "{dir}: {GOOD}nothing to repair{GOOD:#}"),
            (false, true) => Ok(()),
            (false, false) => writeln!(out, "nothing was changed; --yes does it, with the daemon stopped"),
        };
        out
    }

    fn json(&self) -> Value {
        let one = |repair: &Repair| {
            json!({"file": repair.file.display().to_string(),
                   "damage": repair.damage.iter().map(damage_json).collect::<Vec<_>>(),
                   "action": action_name(repair.action), "done": self.is_done(repair),
                   "quarantined": repair.quarantined.as_ref().map(|path| path.display().to_string())})
        };
        json!({"done": self.was_asked && self.left.is_empty(), "repairs": self.repairs.iter().map(one).collect::<Vec<_>>()})
    }
}

fn words(repair: &Repair) -> String {
    let file = repair.file.display();
    match repair.action {
        Action::Rewrite => {
            let lost =
                repair.damage.iter().map(|damage| damage.lost.end.saturating_sub(damage.lost.start)).sum();
            let voids = if lost > 0 {
                format!(", and {} as void", count(lost, "lost offset"))
            } else {
                String::new()
            };
            format!("write {file} anew with all that is intact{voids}")
        }
        Action::SetAside => format!("move {file} into quarantine; it holds nothing of a segment"),
        Action::Leave => format!("leave {file}"),
    }
}

fn action_name(action: Action) -> &'static str {
    match action {
        Action::Rewrite => "rewrite",
        Action::SetAside => "set_aside",
        Action::Leave => "leave",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Damage;

    fn repair(file: &str, action: Action, lost: std::ops::Range<u64>) -> Repair {
        let damage = Damage {
            file: file.into(),
            bytes: 4096..4200,
            lost,
            quarantined: None,
            reason: "its checksum is wrong".to_owned(),
        };
        Repair { file: file.into(), damage: vec![damage; 12], action, quarantined: None }
    }

    fn assert_says(text: &str, words: &[&str]) {
        words.iter().for_each(|words| assert!(text.contains(words), "{text}\nlacks {words}"));
    }

    #[test]
    fn what_would_be_done_was_done_and_is_left_is_said_of_each_file() {
        let repairs = vec![
            Repair { quarantined: Some("q/a.bin".into()), ..repair("a.seg", Action::Rewrite, 3..4) },
            repair("b.seg", Action::SetAside, 7..7),
            repair("c.seg", Action::Rewrite, 9..9),
        ];
        let files = || repairs.iter().map(|repair| repair.file.clone());
        let dry = Outcome { repairs: repairs.clone(), left: files().collect(), was_asked: false };
        let said = dry.text("wal");
        assert_says(
            &said,
            &["2 more ranges", "would: write a.seg anew with all that is intact, and 12 lost offsets"],
        );
        assert_says(&said, &["would: move b.seg into quarantine", "nothing was changed; --yes"]);
        assert_eq!(dry.json()["done"], false);
        let done = Outcome { left: files().skip(2).collect(), repairs: repairs.clone(), was_asked: true };
        assert_says(
            &done.text("wal"),
            &["done: write a.seg", "kept: q/a.bin", "done: move b.seg", "left: c.seg"],
        );
        let json = done.json();
        let each: Vec<_> =
            json["repairs"].as_array().unwrap().iter().map(|one| one["done"].clone()).collect();
        assert_eq!((each, &json["done"]), (vec![json!(true), json!(true), json!(false)], &json!(false)));
        assert_eq!(json["repairs"][0]["damage"].as_array().map(Vec::len), Some(12));
        let nothing = Outcome { repairs: vec![], left: vec![], was_asked: true };
        assert_says(&nothing.text("wal"), &["wal: ", "nothing to repair"]);
    }

    #[test]
    fn nothing_is_repaired_beside_a_file_that_cannot_be_opened() {
        let whole = repair("a.seg", Action::Rewrite, 3..4);
        assert!(refuse_unknown(std::slice::from_ref(&whole)).is_ok());
        let failure = refuse_unknown(&[whole, repair("b.seg", Action::Leave, 4..9)]).unwrap_err();
        assert_says(&failure.sentence, &["b.seg cannot be opened", "make it readable"]);
        assert_eq!(failure.exit, Exit::Failed);
    }
}
