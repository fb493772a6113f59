//! A running program: its pipes, its process group, and what it says on standard error.
//!
//! Its standard error is read by a task of the runtime the worker uses, which ends with the pipe.
//! Dropped, the program and everything it started are killed; so a delivery that is given up never
//! leaves a program behind that is in the midst of something.

use std::io;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::info;

use crate::config::Exec;

/// What a program gets of the daemon's own environment.
const INHERITED: [&str; 5] = ["PATH", "HOME", "LANG", "TZ", "TMPDIR"];

/// A running program.
pub(super) struct Program {
    child: Child,
    group: Option<Pid>,
    /// Closed to tell the program that nothing more comes.
    pub(super) input: Option<ChildStdin>,
    pub(super) output: BufReader<ChildStdout>,
    last_words: Arc<Mutex<String>>,
    listener: JoinHandle<()>,
}

impl Program {
    /// Starts it in a process group of its own.
    pub(super) fn start(sink: &str, config: &Exec) -> Result<Self, String> {
        let (name, arguments) = config.command.split_first().ok_or("there is no `command`")?;
        let mut command = Command::new(name);
        command.args(arguments).env_clear().env("EVENTFLOW_SINK", sink);
        command.envs(INHERITED.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        command.envs(config.env.iter().map(|(name, value)| (name, &value.0)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = command.process_group(0).kill_on_drop(true).spawn();
        let mut child = started.map_err(|error| format!("`{name}` cannot be started: {error}"))?;
        let pipe = "a pipe was asked for";
        let (input, output) = (child.stdin.take().expect(pipe), child.stdout.take().expect(pipe));
        let last_words = Arc::new(Mutex::new(String::new()));
        let errors = child.stderr.take().expect(pipe);
        let listener = tokio::spawn(pass_on(
            sink.to_owned(),
            errors,
            config.max_line_bytes as usize,
            last_words.clone(),
        ));
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Ok(Self { child, group, input: Some(input), output: BufReader::new(output), last_words, listener })
    }

    /// Ends it and says how it ended, with the last line it wrote to standard error.
    pub(super) async fn end(mut self) -> String {
        self.kill_group();
        let how = match self.child.wait().await {
            Ok(status) => describe(status),
            Err(error) => format!("ended ({error})"),
        };
        // Its pipe is closed now, unless someone it started before holds on to it.
        let _ = timeout(Duration::from_secs(1), &mut self.listener).await;
        let last = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_empty() { how } else { format!("{how}; it last said: {last}") }
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    fn kill_group(&mut self) {
        // Before the program is waited for: until then its number belongs to nobody else.
        if let Some(group) = self.group.take() {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.child.id().is_some() {
            self.kill_group();
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("ended with code {code}"),
        None => format!("ended by {status}"),
    }
}

/// Writes what the program says to the log, and keeps the last line.
async fn pass_on(sink: String, errors: ChildStderr, max_line: usize, last_words: Arc<Mutex<String>>) {
    let mut errors = BufReader::new(errors);
    let mut line = Vec::new();
    while let Ok(Some(_)) = read_line(&mut errors, &mut line, max_line).await {
        let said = String::from_utf8_lossy(&line).trim_end().to_owned();
        info!(sink, said, "the program wrote to standard error");
        *last_words.lock().unwrap_or_else(PoisonError::into_inner) = said.chars().take(256).collect();
    }
}

/// Reads a line without its end into `line`, of which at most `most` bytes are kept: `Some(whole)`,
/// or `None` at the end of input. May be cancelled: what was read of a line stays in `line` only for
/// a caller that does not go on.
pub(super) async fn read_line(
    input: &mut (impl AsyncBufRead + Unpin),
    line: &mut Vec<u8>,
    most: usize,
) -> io::Result<Option<bool>> {
    line.clear();
    let (mut seen, mut whole) = (false, true);
    loop {
        let buffer = input.fill_buf().await?;
        if buffer.is_empty() {
            return Ok(seen.then_some(whole));
        }
        seen = true;
        let end = memchr::memchr(b'\n', buffer);
        let part = &buffer[..end.unwrap_or(buffer.len())];
        let room = most - line.len();
        whole &= part.len() <= room;
        line.extend_from_slice(&part[..part.len().min(room)]);
        let used = part.len() + usize::from(end.is_some());
        input.consume(used);
        if end.is_some() {
            return Ok(Some(whole));
        }
    }
}
