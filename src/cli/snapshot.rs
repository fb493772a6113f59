//! `eventflow snapshot`: asks a running daemon for a copy of its data directory.
//!
//! The daemon does the work, on its own machine; this waits for it and says what there is then.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use serde::Deserialize;

use super::client::{UrlArgs, refusal, unreachable};
use super::{Exit, Failure, count, print};

pub(super) const EXAMPLES: &str = "\
Examples:
  eventflow snapshot /var/backups/eventflow/2026-01-31
  eventflow snapshot /mnt/backup/now --url http://10.0.0.5:8080 --json
  eventflow serve --data-dir /var/backups/eventflow/2026-01-31     # start from one

The daemon writes it, so DIR is a path on its machine, absent or empty. On the file system of the data
directory finished archive files are shared by hard links and take no room; on another one they are copied.
Whatever was accepted before the command was given is in it.";

/// The daemon holds back freeing for an hour at most, and archives come after that.
const WAIT: Duration = Duration::from_secs(6 * 3600);

#[derive(Debug, Args)]
pub(super) struct SnapshotArgs {
    /// The directory to make, on the daemon's machine
    dir: PathBuf,
    #[command(flatten)]
    url: UrlArgs,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Taken {
    dir: PathBuf,
    next_offset: u64,
    copied_bytes: u64,
    files: u64,
    left_out: Vec<PathBuf>,
}

pub(super) fn run(args: &SnapshotArgs) -> Result<Exit, Failure> {
    let dir = std::path::absolute(&args.dir)?;
    let Some(text) = dir.to_str() else {
        return Err(Failure::new(Exit::Usage, "the name of the directory is not UTF-8; choose another one"));
    };
    let url = args.url.at("/v1/snapshot");
    let bar = ProgressBar::new_spinner().with_message("the daemon is copying");
    bar.enable_steady_tick(Duration::from_millis(120));
    let answer = args.url.agent(WAIT)?.post(&url).send_json(serde_json::json!({"dir": text}));
    bar.finish_and_clear();
    let mut answer = answer.map_err(|error| unreachable(&url, &error))?;
    let body = answer.body_mut().read_to_string().map_err(|error| unreachable(&url, &error))?;
    if answer.status() != 200 {
        let refusal = refusal(&url, answer.status().as_u16(), body.as_bytes());
        return Err(Failure::failed(format_args!("no snapshot was taken: {refusal}")));
    }
    if args.json {
        print(&format!("{}\n", body.trim()))?;
        return Ok(Exit::Done);
    }
    let taken: Taken = serde_json::from_str(&body)
        .map_err(|error| Failure::failed(format_args!("{url} answered something else: {error}")))?;
    print(&summary(&taken))?;
    Ok(Exit::Done)
}

fn summary(taken: &Taken) -> String {
    let mut out = format!(
        "{}: everything below offset {}; {} copied, {} of archives and quarantine\n",
        taken.dir.display(),
        taken.next_offset,
        bytesize::ByteSize(taken.copied_bytes),
        count(taken.files, "file")
    );
    for left_out in taken.left_out.iter().map(PathBuf::as_path).map(Path::display) {
        out += &format!("not in it, because it lies outside of the data directory: {left_out}\n");
    }
    out
}
