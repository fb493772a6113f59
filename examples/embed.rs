//! EventFlow inside another program, with a sink of that program's own.
//!
//! `cargo run --example embed` posts orders over HTTP and totals them in a sink that fails now and then,
//! as real ones do. It ends by itself once every order was counted, which the totals prove: an event
//! that failed came again, and a good one never waited for it.

use std::collections::HashSet;
use std::error::Error;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use eventflow::config::{Config, Pattern, Retry, SinkConfig};
use eventflow::daemon::Builder;
use eventflow::sink::{Batch, DeliverFuture, Delivery, Outcome, Outcomes, Sink};

const ORDERS: u64 = 100;

/// Hands each order's amount to the program, and takes every tenth only at the second try.
struct Till {
    amounts: SyncSender<u64>,
    tried: HashSet<u64>,
}

impl Till {
    fn take(&mut self, offset: u64, json: &[u8]) -> Outcome {
        if offset.is_multiple_of(10) && self.tried.insert(offset) {
            return Outcome::Retry { reason: "the drawer is stuck".to_owned(), retry_after: None };
        }
        let amount = serde_json::from_slice::<serde_json::Value>(json)
            .ok()
            .and_then(|event| event["data"]["amount"].as_u64());
        match amount {
            Some(amount) if self.amounts.send(amount).is_ok() => Outcome::Delivered,
            Some(_) => Outcome::Retry { reason: "nobody counts any more".to_owned(), retry_after: None },
            None => Outcome::Reject { reason: "an order without an amount".to_owned() },
        }
    }
}

impl Sink for Till {
    // One outcome an event: those that failed go to the failure table and come again on their own.
    fn deliver<'a>(&'a mut self, batch: &'a Batch) -> DeliverFuture<'a> {
        Box::pin(async move {
            let outcomes = batch.events.iter().map(|event| self.take(event.offset, event.json)).collect();
            Ok(Delivery { outcomes: Outcomes::Each(outcomes), token: None })
        })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::temp_dir().join(format!("eventflow-embed-{}", std::process::id()));

    // Configuration as in a file; port 0 takes any that is free.
    let text = "[http]\nlisten = \"127.0.0.1:0\"\n[wal]\nbudget = \"16MiB\"";
    let mut config = Config::parse("embed", text, [], &[])?;
    config.data_dir.clone_from(&dir);

    // The sink, with what any sink can have. The archive, which is there by default, gets all events.
    let (amounts, counted) = sync_channel(16);
    let mut till = SinkConfig::embedded("till");
    till.filter.event_type = Some(Pattern::parse("order.*")?);
    till.retry = Retry { initial: Duration::from_millis(10), ..Retry::default() };
    let daemon = Builder::new(config)
        .sink(till, move |_| Ok(Box::new(Till { amounts: amounts.clone(), tried: HashSet::new() })))
        .start()?;
    println!("listening on {}", daemon.url());

    for amount in 1..=ORDERS {
        let body = format!(r#"[{{"amount":{amount}}}]"#);
        let event_type = if amount.is_multiple_of(2) { "order.shop" } else { "order.phone" };
        post(daemon.url(), event_type, body)?;
    }
    post(daemon.url(), "weather.report", r#"{"sunny":true}"#.to_owned())?;

    let mut total = 0;
    for _ in 0..ORDERS {
        total += counted.recv_timeout(Duration::from_secs(30))?;
    }
    println!("{ORDERS} orders, {total} in all");
    assert_eq!(total, ORDERS * (ORDERS + 1) / 2, "every order exactly once, as nothing crashed");

    daemon.stop()?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn post(url: &str, event_type: &str, body: String) -> Result<(), ureq::Error> {
    let url = format!("{url}/v1/events?type={event_type}&source=/example");
    ureq::post(url).header("content-type", "application/json").send(body)?;
    Ok(())
}
