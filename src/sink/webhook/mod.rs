//! Events to an HTTP endpoint: CloudEvents in one of three modes, signed as Standard Webhooks.
//!
//! * this file: which events go into which request, and what the answers together say of each event;
//! * `message`: events as HTTP messages; `signature`: their signatures; `verdict`: what an answer means;
//! * `client`: the connection.
//!
//! Runs on its worker's task and keeps one connection. At least once: what broke off is sent again,
//! under the same `webhook-id`.
//!
//! A batch that failed or was refused is cut in halves until the events at fault stand alone, so
//! that they take no others with them. Whether a single event that failed is at fault, or the
//! endpoint, is judged in `sink::blame`: the first is *retry*, the second *unavailable*.
//!
//! What is known of a delivery that ended as unavailable is remembered until the next one, so that
//! its events are not sent twice when they come back.

mod client;
mod message;
mod signature;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use tokio::time::Instant;

use crate::config::{self, Mode, SinkConfig};
use crate::event::{Micros, StoredEvent};

use super::blame::Blame;
use super::{Batch, DeliverFuture, Delivery, Outcome, Outcomes, Sink, SinkError, Unavailable};

use client::Client;
use signature::Signer;
use verdict::{Failure, Verdict};

/// Posts events to one endpoint.
pub struct Webhook {
    poster: Poster,
    /// A delivery answers within this time, which is shorter than its worker's patience: what it
    /// found out is not lost.
    timeout: Duration,
    memory: Memory,
    blame: Blame,
}

/// Makes requests and sends them.
struct Poster {
    /// The sink's name, which is part of every delivery's id.
    name: String,
    config: config::Webhook,
    client: Client,
    signer: Signer,
    /// What every request has.
    headers: HeaderMap,
}

/// What a delivery that ended as unavailable leaves to the next.
#[derive(Debug, Default)]
struct Memory {
    /// Events of which it is known what became of them, by offset. Never more than one batch.
    settled: BTreeMap<u64, Outcome>,
    /// How many events the next request may carry at most, because larger ones failed.
    chunk: Option<usize>,
}

impl Webhook {
    /// Opens the sink; reads its key files and the authorities it trusts. The endpoint is not
    /// contacted.
    pub fn open(sink: &SinkConfig, config: &config::Webhook) -> Result<Self, SinkError> {
        let failed = |reason| SinkError { sink: sink.name.clone(), reason };
        let poster = Poster {
            name: sink.name.clone(),
            client: Client::new(config).map_err(failed)?,
            signer: Signer::new(&config.signing_keys().map_err(failed)?),
            headers: static_headers(config).map_err(failed)?,
            config: config.clone(),
        };
        let timeout = sink.timeout.mul_f64(0.9);
        Ok(Self { poster, timeout, memory: Memory::default(), blame: Blame::default() })
    }

    async fn deliver_within(&mut self, batch: &Batch) -> Result<Delivery, Unavailable> {
        let events: Vec<StoredEvent<'_>> = batch.events.iter().collect();
        self.memory.keep_only(&events);
        let started = Instant::now();
        let deadline = started + self.timeout;
        let mut round = Round::new(&mut self.memory, &mut self.blame, &events, self.poster.config.mode);
        let (mut sent, mut ended) = (false, Ok(()));
        while ended.is_ok()
            && let Some(range) = round.waiting.pop()
        {
            // With little time left, silence would say more about the clock than about the event.
            if sent && deadline.saturating_duration_since(Instant::now()) < self.timeout / 2 {
                break;
            }
            sent = true;
            let verdict = self.poster.send(&events[range.clone()], deadline).await;
            ended = round.judge(range, verdict);
        }
        round.end(ended)
    }
}

impl Poster {
    /// Sends these events in one request.
    async fn send(&mut self, events: &[StoredEvent<'_>], deadline: Instant) -> Verdict {
        let mut message = match message::message(self.config.mode, events) {
            Ok(message) => message,
            Err(reason) => return Verdict::Rejected(format!("it cannot be sent in this mode: {reason}")),
        };
        let id = signature::delivery_id(&self.name, events);
        let timestamp = Micros::now().0.div_euclid(1_000_000);
        let signature = self.signer.sign(&id, timestamp, &message.body);
        let own = [
            ("webhook-id", Some(id)),
            ("webhook-timestamp", Some(timestamp.to_string())),
            ("webhook-signature", signature),
        ];
        for (name, value) in own {
            // Ids, numbers and base64 are header values as they are.
            if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
                message.headers.insert(HeaderName::from_static(name), value);
            }
        }
        message.headers.extend(self.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        let asked = Instant::now();
        match self.client.post(&message, deadline).await {
            Ok(answer) => verdict::of_answer(&self.config, &answer, SystemTime::now()),
            Err(no_answer) => verdict::of_no_answer(no_answer, deadline.saturating_duration_since(asked)),
        }
    }
}

fn static_headers(config: &config::Webhook) -> Result<HeaderMap, String> {
    let agent = HeaderValue::from_static(concat!("eventflow/", env!("CARGO_PKG_VERSION")));
    let mut headers = HeaderMap::from_iter([(USER_AGENT, agent)]);
    for (name, value) in &config.headers {
        let wrong = || format!("`headers.{name}` is not an HTTP header");
        let mut value = HeaderValue::try_from(&value.0).map_err(|_| wrong())?;
        value.set_sensitive(config::is_secret_header(name));
        headers.insert(HeaderName::try_from(name).map_err(|_| wrong())?, value);
    }
    Ok(headers)
}

impl Sink for Webhook {
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliverFuture<'a> {
        Box::pin(self.deliver_within(batch))
    }
}

impl Memory {
    /// Forgets events that are not among these.
    fn keep_only(&mut self, events: &[StoredEvent<'_>]) {
        self.settled.retain(|offset, _| events.binary_search_by_key(offset, |event| event.offset).is_ok());
    }
}

/// One delivery under way.
struct Round<'a> {
    events: &'a [StoredEvent<'a>],
    memory: &'a mut Memory,
    blame: &'a mut Blame,
    /// Positions still to be sent, in pieces of one request; the last is the next.
    waiting: Vec<Range<usize>>,
    /// Single events that failed while it is open whose fault that is.
    failed: Vec<(usize, Failure)>,
    /// Whether anything got through.
    worked: bool,
    /// The first event that was not settled.
    front: Option<usize>,
    /// The last thing that went wrong.
    trouble: Option<String>,
}

impl<'a> Round<'a> {
    fn new(memory: &'a mut Memory, blame: &'a mut Blame, events: &'a [StoredEvent<'a>], mode: Mode) -> Self {
        let size = if mode == Mode::Batch { memory.chunk.unwrap_or(events.len()).max(1) } else { 1 };
        let mut waiting: Vec<Range<usize>> = Vec::new();
        for (at, event) in events.iter().enumerate() {
            if memory.settled.contains_key(&event.offset) {
                continue;
            }
            match waiting.last_mut() {
                Some(last) if last.end == at && last.len() < size => last.end += 1,
                _ => waiting.push(at..at + 1),
            }
        }
        let front = waiting.first().map(|range| range.start);
        waiting.reverse();
        Self { events, memory, blame, waiting, failed: Vec::new(), worked: false, front, trouble: None }
    }

    fn settle(&mut self, range: Range<usize>, outcome: &Outcome) {
        let offsets = self.events[range].iter().map(|event| event.offset);
        self.memory.settled.extend(offsets.map(|offset| (offset, outcome.clone())));
    }

    /// The endpoint took or refused these with a clear word.
    fn answered(&mut self, range: Range<usize>, outcome: &Outcome) {
        self.worked = true;
        self.blame.worked(self.events[range.end - 1].offset, Instant::now());
        self.settle(range, outcome);
    }

    /// Takes in what became of one request. An error ends the delivery.
    fn judge(&mut self, range: Range<usize>, verdict: Verdict) -> Result<(), Unavailable> {
        match verdict {
            Verdict::Delivered => self.answered(range, &Outcome::Delivered),
            Verdict::Unavailable(unavailable) => return Err(unavailable),
            Verdict::Rejected(reason) | Verdict::Failed(Failure { reason, .. }) if range.len() > 1 => {
                self.trouble = Some(reason);
                let half = range.len() / 2;
                self.memory.chunk = Some(half);
                let middle = range.start + half;
                self.waiting.extend([middle..range.end, range.start..middle]);
            }
            Verdict::Rejected(reason) => self.answered(range, &Outcome::Reject { reason }),
            Verdict::Failed(failure) => {
                let at = range.start;
                let in_front = self.front == Some(at);
                if self.blame.is_the_events(self.events[at].offset, in_front, Instant::now()) {
                    self.settle(range, &failure.into());
                    return Ok(());
                }
                self.trouble = Some(failure.reason.clone());
                self.failed.push((at, failure.clone()));
                // Two that failed and none that got through: the rest would fail as well.
                if !self.worked && self.failed.len() > 1 {
                    let Failure { reason, retry_after } = failure;
                    return Err(Unavailable { reason, retry_after });
                }
            }
        }
        Ok(())
    }

    /// Writes down what is known: single events that failed are at fault if others got through;
    /// else the event in front stood there in vain.
    fn note(&mut self) {
        if self.worked {
            for (at, failure) in std::mem::take(&mut self.failed) {
                self.settle(at..at + 1, &failure.into());
            }
        } else if let Some(at) = self.front.filter(|_| self.trouble.is_some()) {
            self.blame.stood_in_vain(self.events[at].offset);
        }
    }

    /// Every request was sent, or time is up, or (`ended`) the endpoint is unavailable.
    fn end(mut self, ended: Result<(), Unavailable>) -> Result<Delivery, Unavailable> {
        self.note();
        ended?;
        let (settled, all) = (self.memory.settled.len(), self.events.len());
        if settled < all {
            let slow = || format!("only {settled} of {all} events within the time for one delivery");
            let retry_after = self.failed.first().and_then(|(_, failure)| failure.retry_after);
            return Err(Unavailable { reason: self.trouble.unwrap_or_else(slow), retry_after });
        }
        let settled = std::mem::take(self.memory).settled;
        let outcomes = if settled.values().all(|outcome| *outcome == Outcome::Delivered) {
            Outcomes::AllDelivered
        } else {
            Outcomes::Each(settled.into_values().collect())
        };
        Ok(Delivery { outcomes, token: None })
    }
}
