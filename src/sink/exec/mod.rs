//! Events to a program of one's own: a line of JSON for each event on its standard input, a line with
//! the outcome for each on its standard output.
//!
//! * this file: a delivery, and what is known of each event after it;
//! * `child`: the running program; `answer`: the lines it writes.
//!
//! Runs on its worker's task. The program is started when there is something to deliver and stays; it
//! is killed, with everything it started, when it does not answer in time, answers nonsense, or its
//! delivery is given up, and started anew with the next delivery, which the worker's backoff puts
//! off. At least once: events without an answer come again.
//!
//! An event that the program ends or falls silent over may be poison, or the program may be broken:
//! `blame` tells, by what else got through. What is known of a delivery that ended as unavailable is
//! remembered until the next one, so that its events do not go to the program twice.

mod answer;
mod child;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use crate::config::{self, SinkConfig};
use crate::event::{Attributes, StoredEvent, write_archive_line};

use super::blame::Blame;
use super::{Batch, DeliverFuture, Delivery, Outcome, Outcomes, Sink, SinkError, Unavailable};

use answer::Which;
use child::{Program, read_line};

/// How long a program may take to end after its input did.
const LAST_GRACE: Duration = Duration::from_secs(2);

/// Hands events to a program.
pub struct Exec {
    name: String,
    config: config::Exec,
    /// A delivery answers within this time, which is shorter than its worker's patience: what it
    /// found out is not lost.
    timeout: Duration,
    program: Option<Program>,
    blame: Blame,
    /// Events of which it is known what became of them, though their delivery ended as unavailable.
    /// Never more than one batch.
    settled: BTreeMap<u64, Outcome>,
}

impl Exec {
    /// Opens the sink; the program is started with the first delivery.
    pub fn new(sink: &SinkConfig, config: &config::Exec) -> Self {
        Self {
            name: sink.name.clone(),
            config: config.clone(),
            timeout: sink.timeout.mul_f64(0.9),
            program: None,
            blame: Blame::default(),
            settled: BTreeMap::new(),
        }
    }

    async fn deliver_within(&mut self, batch: &Batch) -> Result<Delivery, Unavailable> {
        let deadline = Instant::now() + self.timeout;
        let events: Vec<StoredEvent<'_>> = batch.events.iter().collect();
        self.settled.retain(|offset, _| events.binary_search_by_key(offset, |event| event.offset).is_ok());
        let open: Vec<StoredEvent<'_>> =
            events.iter().filter(|event| !self.settled.contains_key(&event.offset)).copied().collect();
        let unavailable = |reason| Unavailable { reason, retry_after: None };
        let mut round = Round::new(&open);
        let (program, trouble) = self.exchange(&mut round, deadline).await.map_err(unavailable)?;
        let answered = round.answers.len();
        self.settled.append(&mut round.answers);
        let Some(trouble) = trouble else {
            self.program = Some(program);
            if let Some(last) = open.last() {
                self.blame.worked(last.offset, Instant::now());
            }
            return Ok(self.answer());
        };
        let reason = self.describe(trouble, program.end().await);
        self.judge(&open, answered > 0, &reason);
        if self.settled.len() < events.len() {
            debug!(sink = self.name, reason, answered, events = open.len(), "the program is started anew");
            return Err(unavailable(reason));
        }
        // Nobody else would say it: to the worker this is a delivery like any other.
        warn!(sink = self.name, reason, "the program fell over the last event and is started anew");
        Ok(self.answer())
    }

    /// Gives the events to the program that runs, or to a new one. One that ended while it had nothing
    /// to do is replaced unnoticed.
    async fn exchange(
        &mut self,
        round: &mut Round<'_>,
        deadline: Instant,
    ) -> Result<(Program, Option<Trouble>), String> {
        // Out of its place meanwhile: a delivery that is given up half-way kills it.
        let mut idle = self.program.take();
        loop {
            let was_idle = idle.is_some();
            let mut program = match idle.take() {
                Some(program) => program,
                None => Program::start(&self.name, &self.config)?,
            };
            let exchange = round.exchange(&mut program, self.config.max_line_bytes as usize);
            let trouble = match timeout_at(deadline, exchange).await {
                Ok(Ok(())) => None,
                Ok(Err(Trouble::Ended)) if was_idle && round.answers.is_empty() => {
                    program.end().await;
                    continue;
                }
                Ok(Err(trouble)) => Some(trouble),
                Err(_) => Some(Trouble::Silent),
            };
            return Ok((program, trouble));
        }
    }

    /// The event in front of those without an answer may be to blame.
    fn judge(&mut self, open: &[StoredEvent<'_>], worked: bool, reason: &str) {
        let now = Instant::now();
        if let Some(last) =
            open.iter().rfind(|event| self.settled.contains_key(&event.offset)).filter(|_| worked)
        {
            self.blame.worked(last.offset, now);
        }
        let Some(front) = open.iter().find(|event| !self.settled.contains_key(&event.offset)) else { return };
        if self.blame.is_the_events(front.offset, true, now) {
            let outcome = Outcome::Retry { reason: reason.to_owned(), retry_after: None };
            self.settled.insert(front.offset, outcome);
        } else {
            self.blame.stood_in_vain(front.offset);
        }
    }

    fn describe(&self, trouble: Trouble, end: String) -> String {
        match trouble {
            Trouble::Ended => format!("the program {end}"),
            Trouble::Silent => {
                format!("the program did not answer within {}", humantime::format_duration(self.timeout))
            }
            Trouble::Nonsense(what) => format!("the program answered nonsense: {what}"),
        }
    }

    /// The outcomes of a batch of which all is known.
    fn answer(&mut self) -> Delivery {
        let settled = std::mem::take(&mut self.settled);
        let outcomes = if settled.values().all(|outcome| *outcome == Outcome::Delivered) {
            Outcomes::AllDelivered
        } else {
            Outcomes::Each(settled.into_values().collect())
        };
        Delivery { outcomes, token: None }
    }
}

impl Sink for Exec {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliverFuture<'a> {
        Box::pin(self.deliver_within(batch))
    }

    /// Lets the program end by itself once its input has ended.
    fn close(&mut self) -> Result<(), SinkError> {
        let Some(mut program) = self.program.take() else { return Ok(()) };
        drop(program.input.take());
        let end = std::time::Instant::now() + LAST_GRACE;
        while !program.has_ended() {
            if std::time::Instant::now() > end {
                let reason = "the program did not end with its input, and was killed".to_owned();
                return Err(SinkError { sink: self.name.clone(), reason });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Why a delivery ended before every event had its answer.
enum Trouble {
    /// The program closed one of its pipes.
    Ended,
    /// Time is up.
    Silent,
    /// It wrote something that is no answer.
    Nonsense(String),
}

/// One delivery under way.
struct Round<'a> {
    events: &'a [StoredEvent<'a>],
    answers: BTreeMap<u64, Outcome>,
    /// Offsets by id, for programs that answer with ids; read when the first one does.
    ids: Option<HashMap<String, Vec<u64>>>,
}

impl<'a> Round<'a> {
    fn new(events: &'a [StoredEvent<'a>]) -> Self {
        Self { events, answers: BTreeMap::new(), ids: None }
    }

    /// Writes all events and reads all answers, at the same time: a program that answers each event
    /// before it reads the next one must not meet a full pipe.
    async fn exchange(&mut self, program: &mut Program, max_line: usize) -> Result<(), Trouble> {
        let mut lines = Vec::new();
        for event in self.events {
            write_archive_line(&mut lines, *event);
        }
        let Program { input, output, .. } = program;
        let input = input.as_mut().ok_or(Trouble::Ended)?;
        let write = async {
            // A program that stops reading may still answer what it has read.
            if input.write_all(&lines).await.is_ok() {
                let _ = input.flush().await;
            }
            std::future::pending::<()>().await;
        };
        let read = async {
            let mut line = Vec::new();
            while self.answers.len() < self.events.len() {
                match read_line(output, &mut line, max_line).await {
                    Ok(Some(true)) => self.take(&line)?,
                    Ok(Some(false)) => {
                        return Err(Trouble::Nonsense(format!(
                            "a line longer than `max_line` ({max_line} bytes)"
                        )));
                    }
                    Ok(None) | Err(_) => return Err(Trouble::Ended),
                }
            }
            Ok(())
        };
        tokio::select! {
            done = read => done,
            () = write => Err(Trouble::Ended),
        }
    }

    /// Takes in one line.
    fn take(&mut self, line: &[u8]) -> Result<(), Trouble> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let excerpt = || String::from_utf8_lossy(&line[..line.len().min(128)]).into_owned();
        let (which, outcome) =
            answer::read(line).map_err(|wrong| Trouble::Nonsense(format!("{wrong}, in: {}", excerpt())))?;
        let offset = match which {
            Which::Offset(offset) => Some(offset),
            Which::Id(id) => self.offset_of(&id),
        };
        let is_ours = |offset: &u64| self.events.binary_search_by_key(offset, |event| event.offset).is_ok();
        let Some(offset) = offset.filter(is_ours) else {
            return Err(Trouble::Nonsense(format!("an event that it was not given, in: {}", excerpt())));
        };
        // The first word counts.
        self.answers.entry(offset).or_insert(outcome);
        Ok(())
    }

    /// The first event of this id without an answer.
    fn offset_of(&mut self, id: &str) -> Option<u64> {
        let events = self.events;
        let ids = self.ids.get_or_insert_with(|| {
            let mut ids: HashMap<String, Vec<u64>> = HashMap::new();
            for event in events {
                if let Some(attributes) = Attributes::of(event.json) {
                    ids.entry(attributes.id.into_owned()).or_default().push(event.offset);
                }
            }
            ids
        });
        let offsets = ids.get(id)?;
        offsets.iter().find(|offset| !self.answers.contains_key(offset)).or(offsets.first()).copied()
    }
}
