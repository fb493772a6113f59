//! The failure table of a running daemon, over HTTP.
//!
//! Blocking, on the main thread, with a deadline on every answer.

use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::super::Exit;
use super::super::client::{UrlArgs, refusal, unreachable};
use super::{Failure, FilterArgs, Page, Shown, Table};
use crate::queue::{Redrive, Selection};

/// A change waits for the disk, and one of all rows for many writes.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

pub(super) struct Remote {
    url: UrlArgs,
    agent: ureq::Agent,
}

impl Remote {
    pub fn new(url: UrlArgs) -> Result<Self, Failure> {
        Ok(Self { agent: url.agent(ANSWER_WITHIN)?, url })
    }

    fn get(&self, path: &str) -> Result<(u16, String), Failure> {
        let url = self.url.at(path);
        answer(&url, self.agent.get(&url).call())
    }
}

fn answer(
    url: &str,
    response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<(u16, String), Failure> {
    let mut response = response.map_err(|error| unreachable(url, &error))?;
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(256 << 20).read_to_string();
    Ok((status, body.map_err(|error| unreachable(url, &error))?))
}

/// The failure behind an answer that is no success.
fn refused(url: &str, status: u16, text: &str) -> Failure {
    // What the client sent was wrong: it came from the command line.
    let exit = if status == 400 { Exit::Usage } else { Exit::Failed };
    Failure::new(exit, refusal(url, status, text.as_bytes()))
}

fn read<T>(
    url: &str,
    (status, text): (u16, String),
    parse: impl FnOnce(&str) -> serde_json::Result<T>,
) -> Result<T, Failure> {
    if status != 200 {
        return Err(refused(url, status, &text));
    }
    parse(&text).map_err(|error| {
        Failure::failed(format_args!("{url} gave an unknown answer ({error}); is that an eventflow daemon?"))
    })
}

impl Table for Remote {
    fn page(
        &mut self,
        sink: Option<&str>,
        filter: &FilterArgs,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, Failure> {
        let mut path = format!("/v1/failures?limit={limit}");
        let asked = [
            ("sink", sink),
            ("after", after),
            ("state", filter.state.map(super::State::as_str)),
            ("type", filter.kind.as_deref()),
            ("error", filter.error.as_deref()),
            ("from", filter.from.as_deref()),
            ("to", filter.to.as_deref()),
        ];
        for (name, value) in asked.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            path += &format!("&{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC));
        }
        read(&self.url.at("/v1/failures"), self.get(&path)?, |text| serde_json::from_str(text))
    }

    fn show(&mut self, sink: &str, offset: u64) -> Result<Option<Shown>, Failure> {
        let path = format!("/v1/failures/{}/{offset}", utf8_percent_encode(sink, NON_ALPHANUMERIC));
        let answer = self.get(&path)?;
        if answer.0 == 404 && !answer.1.contains("no sink is named") {
            return Ok(None);
        }
        read(&self.url.at(&path), answer, Shown::parse).map(Some)
    }

    fn change(&mut self, action: Redrive, sink: &str, which: Selection) -> Result<u64, Failure> {
        #[derive(serde::Deserialize)]
        struct Changed {
            changed: u64,
        }
        let url = self.url.at(match action {
            Redrive::Retry => "/v1/failures/retry",
            Redrive::Drop => "/v1/failures/drop",
        });
        let body = match which {
            Selection::Offsets(offsets) => json!({"sink": sink, "offsets": offsets}),
            Selection::All => json!({"sink": sink, "all": true}),
        };
        let answer =
            answer(&url, self.agent.post(&url).content_type("application/json").send(body.to_string()))?;
        read(&url, answer, |text| serde_json::from_str::<Changed>(text)).map(|answer| answer.changed)
    }

    fn close(self: Box<Self>) -> Result<(), Failure> {
        Ok(())
    }
}
