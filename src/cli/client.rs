//! What talks to a running daemon over HTTP: the shared client, and `status`.
//!
//! Blocking, on the main thread, with a deadline on everything.

use std::fmt::Write;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use clap::Args;
use serde::Deserialize;

use super::access::AccessArgs;
use super::{Exit, Failure, count, print, unix};

/// Where the daemon is.
#[derive(Debug, Args)]
pub(super) struct UrlArgs {
    /// The daemon's address: http://HOST:PORT, https://…, or unix:PATH
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub(super) url: String,
    #[command(flatten)]
    pub(super) access: AccessArgs,
}

impl UrlArgs {
    /// The address of `path` on the daemon.
    pub(super) fn at(&self, path: &str) -> String {
        if unix::socket_of(&self.url).is_some() {
            return format!("http://localhost{path}"); // the host is for the `Host` field alone
        }
        let base = self.url.trim_end_matches('/');
        let scheme = if base.contains("://") { "" } else { "http://" };
        format!("{scheme}{base}{path}")
    }

    /// A client that shows what there is to show, hands back every status as an answer and never waits
    /// for ever.
    pub(super) fn agent(&self, answer_within: Duration) -> Result<ureq::Agent, Failure> {
        self.access.agent(&self.url, answer_within)
    }
}

/// What a daemon that cannot be reached means to the user.
pub(super) fn unreachable(url: &str, error: &ureq::Error) -> Failure {
    Failure::failed(format_args!("no answer from {url} ({error}); is the daemon running? `--url` says where"))
}

/// What an answer that is no success means to the user, and what to do where a token would open the door.
pub(super) fn refusal(url: &str, status: u16, body: &[u8]) -> String {
    const SHOWN_CHARS: usize = 300;
    let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    let text = match problem.sentence() {
        // Somebody else answered, such as a proxy with a page of its own.
        "" => String::from_utf8_lossy(body).trim().chars().take(SHOWN_CHARS).collect(),
        sentence => sentence.to_owned(),
    };
    let colon = if text.is_empty() { "" } else { ": " };
    let advice = match status {
        401 => "; show a token with `--token-file` or EVENTFLOW_TOKEN",
        403 => "; show another token with `--token-file` or EVENTFLOW_TOKEN",
        _ => "",
    };
    format!("{url} answered {status}{colon}{text}{advice}")
}

/// What a problem document (RFC 9457) says, as far as commands care; nothing where it is none.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Problem {
    title: String,
    detail: String,
    /// What is wrong with single events of a batch.
    pub(super) errors: Vec<LineError>,
}

/// What is wrong with the event at one place of a batch.
#[derive(Debug, Deserialize)]
pub(super) struct LineError {
    pub(super) index: usize,
    pub(super) detail: String,
}

impl Problem {
    /// The sentence for a person.
    pub(super) fn sentence(&self) -> &str {
        if self.detail.is_empty() { &self.title } else { &self.detail }
    }
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    url: UrlArgs,
    /// Print the daemon's answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct Status {
    pub(super) version: String,
    pub(super) uptime_seconds: f64,
    pub(super) state: String,
    #[serde(default)]
    pub(super) wal: Wal,
    #[serde(default)]
    pub(super) sinks: Vec<Sink>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Wal {
    pub(super) first_offset: u64,
    pub(super) next_offset: u64,
    pub(super) bytes: u64,
    pub(super) budget_bytes: u64,
    pub(super) segments: u64,
    pub(super) voids: u64,
    pub(super) damaged_ranges: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Sink {
    pub(super) name: String,
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) state: String,
    pub(super) acked_offset: u64,
    pub(super) pending: u64,
    pub(super) in_flight: u64,
    pub(super) retrying: u64,
    pub(super) dead: u64,
    pub(super) delivered: u64,
    pub(super) dropped: u64,
    pub(super) skipped: u64,
    pub(super) last_error: Option<String>,
}

/// The body of a 200 from `url`.
pub(super) fn ask(agent: &ureq::Agent, url: &str) -> Result<String, Failure> {
    let mut response = agent.get(url).call().map_err(|error| unreachable(url, &error))?;
    let text = response.body_mut().read_to_string().map_err(|error| unreachable(url, &error))?;
    if response.status() != 200 {
        return Err(Failure::failed(refusal(url, response.status().as_u16(), text.as_bytes())));
    }
    Ok(text)
}

/// A daemon's status, and its text.
pub(super) fn status_of(agent: &ureq::Agent, url: &str) -> Result<(Status, String), Failure> {
    let text = ask(agent, url)?;
    let status = serde_json::from_str(&text).map_err(|error| {
        Failure::failed(format_args!(
            "{url} did not answer with a status ({error}); is that an eventflow daemon?"
        ))
    })?;
    Ok((status, text))
}

/// `eventflow status`
pub(super) fn status(args: &StatusArgs) -> Result<Exit, Failure> {
    let agent = args.url.agent(Duration::from_secs(10))?;
    let (status, text) = status_of(&agent, &args.url.at("/v1/status"))?;
    if args.json {
        print(&format!("{}\n", text.trim_end()))?;
    } else {
        print(&table(&status))?;
    }
    let wrong: Vec<String> = status.sinks.iter().filter_map(|sink| imbalance(&status.wal, sink)).collect();
    if wrong.is_empty() { Ok(Exit::Done) } else { Err(Failure::failed(wrong.join("\n"))) }
}

/// Checks that a sink's numbers add up: every event counts once for it. What is still in the log is
/// known exactly; of what was freed, only that there was no more of it than offsets.
fn imbalance(wal: &Wal, sink: &Sink) -> Option<String> {
    let parts = [sink.delivered, sink.dropped, sink.dead, sink.retrying, sink.pending, sink.skipped];
    let sum: u128 = parts.iter().map(|n| u128::from(*n)).sum();
    let held = wal.next_offset.saturating_sub(wal.first_offset).saturating_sub(wal.voids);
    // An event may have been delivered before its bytes were damaged.
    let never = if wal.damaged_ranges == 0 { wal.voids } else { 0 };
    let most = wal.next_offset.saturating_sub(never);
    if sum > u128::from(most) {
        return Some(format!(
            "sink `{}` accounts for {sum} events, but only {most} were ever accepted; please report this",
            sink.name
        ));
    }
    if sum < u128::from(held) {
        return Some(format!(
            "sink `{}` accounts for {sum} events, but {held} are in the log; please report this",
            sink.name
        ));
    }
    if sink.in_flight > sink.pending.saturating_add(sink.retrying) || sink.acked_offset > wal.next_offset {
        return Some(format!("sink `{}` has numbers that cannot be; please report this", sink.name));
    }
    None
}

pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const WAITING: Style = AnsiColor::Yellow.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default();
pub(super) const HEAD: Style = Style::new().bold();

fn table(status: &Status) -> String {
    let mut out = String::new();
    let wal = &status.wal;
    let colour = match status.state.as_str() {
        "serving" => GOOD,
        "failed" => BAD,
        _ => WAITING,
    };
    let up = Duration::from_secs(status.uptime_seconds.max(0.0) as u64);
    let _ = writeln!(
        out,
        "eventflow {}  {colour}{}{colour:#}  up {}",
        status.version,
        status.state,
        humantime::format_duration(up)
    );
    let used = (wal.bytes as f64 / wal.budget_bytes.max(1) as f64) * 100.0;
    let _ = writeln!(
        out,
        "log  offsets {}..{}  {} of {} ({used:.0} %)  {}",
        wal.first_offset,
        wal.next_offset,
        bytesize::ByteSize(wal.bytes),
        bytesize::ByteSize(wal.budget_bytes),
        count(wal.segments, "segment")
    );
    if wal.damaged_ranges > 0 {
        let _ = writeln!(
            out,
            "{BAD}{}{BAD:#} found so far: `eventflow wal verify` lists what is still in the log",
            count(wal.damaged_ranges, "damaged range")
        );
    }
    let _ = writeln!(out);
    sinks(&mut out, &status.sinks);
    out
}

fn sinks(out: &mut String, sinks: &[Sink]) {
    let name_width = sinks.iter().map(|sink| sink.name.len()).max().unwrap_or(0).max(4);
    let _ = writeln!(
        out,
        "{HEAD}{:name_width$}  {:9}  {:11}  {:>12}  {:>12}  {:>9}  {:>9}  {:>9}  {:>12}  {:>9}  {:>9}{HEAD:#}",
        "sink",
        "type",
        "state",
        "acked below",
        "pending",
        "in flight",
        "retrying",
        "dead",
        "delivered",
        "dropped",
        "skipped"
    );
    for sink in sinks {
        let colour = if sink.state == "running" { GOOD } else { WAITING };
        let _ = writeln!(
            out,
            "{:name_width$}  {:9}  {colour}{:11}{colour:#}  {:>12}  {:>12}  {:>9}  {:>9}  {:>9}  {:>12}  {:>9}  {:>9}",
            sink.name,
            sink.kind,
            sink.state,
            sink.acked_offset,
            sink.pending,
            sink.in_flight,
            sink.retrying,
            sink.dead,
            sink.delivered,
            sink.dropped,
            sink.skipped
        );
        if let Some(error) = &sink.last_error {
            let _ = writeln!(out, "{:name_width$}  {BAD}{error}{BAD:#}", "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{"version":"0.1.0","uptime_seconds":61.5,"state":"serving",
        "wal":{"first_offset":0,"next_offset":10,"bytes":67108864,"budget_bytes":1073741824,"segments":1,"voids":0,"damaged_ranges":1},
        "sinks":[{"name":"archive","type":"json_file","state":"backing_off","acked_offset":8,"pending":2,"in_flight":1,
                  "retrying":0,"dead":0,"delivered":7,"dropped":0,"skipped":1,"last_error":"disk full"}]}"#;

    #[test]
    fn the_table_shows_what_needs_attention() {
        let status: Status = serde_json::from_str(ANSWER).unwrap();
        let plain = anstream::adapter::strip_str(&table(&status)).to_string();
        for word in
            ["serving", "up 1m 1s", "offsets 0..10", "1 damaged", "archive", "backing_off", "disk full"]
        {
            assert!(plain.contains(word), "{plain}\nlacks {word}");
        }
    }

    #[test]
    fn numbers_that_do_not_add_up_are_said() {
        let status: Status = serde_json::from_str(ANSWER).unwrap();
        assert_eq!(imbalance(&status.wal, &status.sinks[0]), None);
        for (field, value) in [("delivered", 8), ("delivered", 6), ("in_flight", 3), ("acked_offset", 11)] {
            let mut answer: serde_json::Value = serde_json::from_str(ANSWER).unwrap();
            answer["sinks"][0][field] = value.into();
            let status: Status = serde_json::from_value(answer).unwrap();
            assert!(imbalance(&status.wal, &status.sinks[0]).is_some(), "{field}");
        }
    }

    #[test]
    fn a_refusal_is_one_sentence_with_what_to_do() {
        let problem =
            br#"{"type":"/problems/forbidden","title":"Forbidden","status":403,"detail":"not `admin`"}"#;
        assert_eq!(
            refusal("http://h/x", 403, problem),
            "http://h/x answered 403: not `admin`; show another token with `--token-file` or EVENTFLOW_TOKEN"
        );
        assert_eq!(refusal("http://h/x", 500, b""), "http://h/x answered 500");
        let page = "x".repeat(10_000);
        assert_eq!(refusal("h", 502, page.as_bytes()), format!("h answered 502: {}", "x".repeat(300)));
    }

    #[test]
    fn an_address_may_come_with_or_without_scheme_and_slash() {
        for url in ["http://h:1", "http://h:1/", "h:1"] {
            assert_eq!(
                UrlArgs { url: url.to_owned(), access: AccessArgs::default() }.at("/v1/status"),
                "http://h:1/v1/status"
            );
        }
    }
}
