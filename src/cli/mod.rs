//! The command line: verbs, what they print, and exit codes.
//!
//! Data goes to standard output, words to standard error, and every failure is one sentence there
//! that begins `eventflow:`. Runs on the main thread; nothing here is needed by the daemon.

mod access;
mod archive;
mod client;
mod export;
mod failures;
mod offline;
mod repair;
mod replay;
mod send;
mod snapshot;
mod token;
mod top;
mod unix;

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::{Config, ConfigError};
use crate::{daemon, telemetry};

/// How a command ended, as its exit code says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: failed.
    Failed,
    /// 2: wrong usage or configuration.
    Usage,
    /// 3: another process has the data directory.
    InUse,
    /// 4: storage failed.
    Storage,
    /// 5: damage found.
    Damaged,
}

impl Exit {
    /// The code.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::InUse => 3,
            Exit::Storage => 4,
            Exit::Damaged => 5,
        }
    }
}

/// Why a command failed: the code it ends with, and the sentence it says.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    sentence: String,
}

impl Failure {
    fn new(exit: Exit, sentence: impl fmt::Display) -> Self {
        Self { exit, sentence: sentence.to_string() }
    }

    fn failed(sentence: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, sentence)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<daemon::Error> for Failure {
    fn from(error: daemon::Error) -> Self {
        let exit = match &error {
            daemon::Error::InUse { .. } => Exit::InUse,
            daemon::Error::StorageFailed(_) => Exit::Storage,
            daemon::Error::Config(_) | daemon::Error::Activation(_) => Exit::Usage,
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::failed(error)
    }
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed (also: the address is taken, or a second signal cut the stop short)
  2  wrong usage or configuration
  3  the data directory is in use by another process
  4  storage failed: a write or sync did not succeed, or there was no room to start
  5  damage found

Configuration comes from flags, then environment variables (EVENTFLOW_<SECTION>__<KEY>, such as \
EVENTFLOW_WAL__BUDGET=2GiB, and EVENTFLOW_DATA_DIR), then the file, then defaults.";

/// A durable event daemon: what it answers 202 for is on the disk, and stays until it is delivered.
#[derive(Debug, Parser)]
#[command(name = "eventflow", version, after_long_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the daemon
    #[command(after_help = "Examples:
  eventflow serve
  eventflow serve --config /etc/eventflow/eventflow.toml
  EVENTFLOW_WAL__BUDGET=4GiB eventflow serve --data-dir /var/lib/eventflow --listen 127.0.0.1:9000")]
    Serve {
        #[command(flatten)]
        config: ConfigArgs,
        /// Where to listen: ADDRESS:PORT or unix:PATH
        #[arg(long, value_name = "ADDR")]
        listen: Option<String>,
        /// How log lines look: text or json
        #[arg(long, value_name = "FORMAT")]
        log_format: Option<String>,
    },
    /// Validate the configuration and print what holds, as TOML that can be fed back in
    #[command(after_help = "Examples:
  eventflow check --config eventflow.toml
  eventflow check --explain > eventflow.toml      # a file with every key and its default, to start from")]
    Check {
        #[command(flatten)]
        config: ConfigArgs,
        /// Say above each key what it means and what it may be
        #[arg(long)]
        explain: bool,
    },
    /// Post events from a file or standard input to a running daemon, one JSON value a line
    #[command(after_help = send::EXAMPLES)]
    Send(send::SendArgs),
    /// Write one JSON archive out of archive files and write-ahead log, daemon running or not
    #[command(after_help = export::EXAMPLES)]
    Export(export::ExportArgs),
    /// Show how a running daemon and its sinks are doing
    #[command(after_help = "Examples:
  eventflow status
  eventflow status --url http://10.0.0.5:8080 --json | jq .sinks")]
    Status(client::StatusArgs),
    /// Watch a running daemon: rates, lag, refusals, the time syncs take
    #[command(after_help = top::EXAMPLES)]
    Top(top::TopArgs),
    /// Deliver archived events once more to one sink of a running daemon
    #[command(after_help = replay::EXAMPLES)]
    Replay(replay::ReplayArgs),
    /// Copy the data directory of a running daemon into another one, consistently
    #[command(after_help = snapshot::EXAMPLES)]
    Snapshot(snapshot::SnapshotArgs),
    /// Look at what sinks did not take, try it again, or give it up
    #[command(subcommand, after_help = failures::EXAMPLES)]
    Failures(failures::FailuresVerb),
    /// Look into the write-ahead log, live or stopped; repair it when it is damaged
    #[command(subcommand)]
    Wal(offline::WalVerb),
    /// Check, list or mend the archive's files
    #[command(subcommand, after_help = archive::EXAMPLES)]
    Archive(archive::ArchiveVerb),
    /// Make bearer tokens for `http.tokens_file`
    #[command(subcommand)]
    Token(token::TokenVerb),
    /// Print shell completions
    #[command(after_help = "Examples:
  eventflow completions bash > /etc/bash_completion.d/eventflow
  eventflow completions zsh > \"${fpath[1]}/_eventflow\"")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
struct ConfigArgs {
    /// Read this TOML file; without it, defaults and environment hold
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything durable lives
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
}

impl ConfigArgs {
    /// Flags over environment over file over defaults.
    fn load(&self, listen: Option<String>) -> Result<Config, ConfigError> {
        self.load_under(&[("http.listen", listen)])
    }

    /// The same with more flags: dotted keys with what they were set to.
    fn load_under(&self, more: &[(&'static str, Option<String>)]) -> Result<Config, ConfigError> {
        let given = [("data_dir", self.data_dir.clone())];
        let set = given.iter().chain(more).filter_map(|(key, value)| Some((*key, value.clone()?)));
        let flags: Vec<_> = set.collect();
        // What is not UTF-8 cannot be one of our variables, whose names and values all are.
        let env =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
        Config::load(self.config.as_deref(), env, &flags)
    }
}

/// The command line as it is described: for manual pages and completions.
pub fn command() -> clap::Command {
    Cli::command()
}

/// The whole command.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are data for standard output, anything else is a usage error.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            let _ = error.print();
            return ExitCode::from(exit.code());
        }
    };
    let exit = run(cli.verb).unwrap_or_else(|failure| {
        for line in failure.sentence.lines() {
            let _ = writeln!(io::stderr(), "eventflow: {line}");
        }
        failure.exit
    });
    ExitCode::from(exit.code())
}

fn run(verb: Verb) -> Result<Exit, Failure> {
    match verb {
        Verb::Serve { config, listen, log_format } => {
            let load = move || {
                config
                    .load_under(&[("http.listen", listen.clone()), ("telemetry.format", log_format.clone())])
            };
            let config = load()?;
            telemetry::init(&config.telemetry);
            daemon::serve(&config, Box::new(load))?;
            Ok(Exit::Done)
        }
        Verb::Check { config, explain } => {
            let config = config.load(None)?;
            print(&if explain { config.explain() } else { config.to_toml() })?;
            Ok(Exit::Done)
        }
        Verb::Send(args) => send::send(&args),
        Verb::Export(args) => export::run(&args),
        Verb::Status(args) => client::status(&args),
        Verb::Top(args) => top::top(&args),
        Verb::Replay(args) => replay::run(&args),
        Verb::Snapshot(args) => snapshot::run(&args),
        Verb::Failures(verb) => failures::run(&verb),
        Verb::Wal(verb) => offline::wal(&verb),
        Verb::Archive(verb) => archive::run(&verb),
        Verb::Token(verb) => token::run(&verb),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "eventflow", &mut script);
            print(&String::from_utf8_lossy(&script))?;
            Ok(Exit::Done)
        }
    }
}

/// Data for standard output. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format_args!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// A number with its noun: `1 segment`, `2 segments`.
fn count(number: u64, noun: &str) -> String {
    let ending = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!([0, 1, 2].map(|n| count(n, "event")), ["0 events", "1 event", "2 events"]);
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
