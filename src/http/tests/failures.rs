//! The failure table's routes, over real sockets, with a table in memory behind them.

use super::*;
use crate::queue::{FailureRow, RowState};

/// A table in memory, and what it was asked.
#[derive(Default)]
pub(super) struct Table {
    rows: Mutex<Vec<FailureRow>>,
    asked: Mutex<Vec<FailureQuery>>,
    changes: Mutex<Vec<(SinkId, Selection, Redrive)>>,
}

impl Table {
    pub(super) fn page(&self, query: &FailureQuery) -> FailurePage {
        self.asked.lock().unwrap().push(query.clone());
        let rows = self.rows.lock().unwrap();
        let wanted = |row: &&FailureRow| {
            query.sink.is_none_or(|sink| sink == row.sink)
                && query.state.is_none_or(|state| state == row.state)
                && query.after.is_none_or(|after| (row.sink, row.offset) > after)
        };
        let mut found: Vec<FailureRow> = rows.iter().filter(wanted).take(query.limit + 1).cloned().collect();
        let is_more = found.len() > query.limit;
        found.truncate(query.limit);
        let next = found.last().filter(|_| is_more).map(|row| (row.sink, row.offset));
        FailurePage { rows: found, next }
    }

    pub(super) fn event(&self, sink: SinkId, offset: u64) -> Option<FailedEvent> {
        let rows = self.rows.lock().unwrap();
        let row = rows.iter().find(|row| (row.sink, row.offset) == (sink, offset))?.clone();
        Some(FailedEvent {
            row,
            accepted_at: Micros(1),
            json: br#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":1e400}"#.to_vec(),
        })
    }

    pub(super) fn change(
        &self,
        sink: SinkId,
        selection: Selection,
        action: Redrive,
    ) -> Result<u64, QueueError> {
        let changed = match &selection {
            Selection::Offsets(offsets) if offsets.contains(&666) => {
                return Err(QueueError::StorageFailed("gone".into()));
            }
            Selection::Offsets(offsets) => offsets.len() as u64,
            Selection::All => 1_000_000,
        };
        self.changes.lock().unwrap().push((sink, selection, action));
        Ok(changed)
    }
}

fn row(sink: u16, offset: u64, state: RowState) -> FailureRow {
    FailureRow {
        sink: SinkId(sink),
        offset,
        state,
        attempts: 3,
        first_failed_at: Micros(1_000_000),
        last_failed_at: Micros(2_500_000),
        due_at: (state == RowState::Retrying).then_some(Micros(3_000_000)),
        error: "answered 500 \"oh\"".into(),
        id: format!("e-{offset}"),
        source: "/s".into(),
        kind: "t".into(),
        bytes: 10,
    }
}

/// A server with two sinks and rows 0, 2, 4, … of each; every third one is dead.
async fn start_with(rows: u64) -> Running {
    let running = start_recovering(|_| {}).await;
    let info = |name: &str| SinkInfo {
        name: name.into(),
        kind: "webhook",
        starts_paused: false,
        parks: true,
        order: None,
    };
    let queue = Arc::new(Memory { sinks: vec![info("orders"), info("audit")], ..Memory::default() });
    let state = |n: u64| if n.is_multiple_of(3) { RowState::Dead } else { RowState::Retrying };
    let all = (0..2).flat_map(|sink| (0..rows).map(move |n| row(sink, n * 2, state(n))));
    *queue.table.rows.lock().unwrap() = all.collect();
    running.app.serving(queue.clone());
    Running { queue, ..running }
}

fn change(verb: &str, body: &str) -> String {
    let len = body.len();
    format!("POST /v1/failures/{verb} HTTP/1.1\r\nhost: x\r\ncontent-length: {len}\r\n\r\n{body}")
}

fn parsed(reply: &Reply) -> serde_json::Value {
    assert_eq!(reply.header("content-type"), Some("application/json"), "{reply:?}");
    serde_json::from_str(&reply.body).unwrap()
}

#[tokio::test]
async fn a_row_is_answered_as_the_contract_says() {
    let running = start_with(2).await;
    let reply = running.ask(get("/v1/failures?sink=audit")).await;
    assert_eq!(
        reply.body,
        r#"{"failures":[{"sink":"audit","offset":0,"state":"dead","attempts":3,"first_failed_at":"1970-01-01T00:00:01.000000Z","last_failed_at":"1970-01-01T00:00:02.500000Z","due_at":null,"error":"answered 500 \"oh\"","id":"e-0","source":"/s","type":"t"},{"sink":"audit","offset":2,"state":"retrying","attempts":3,"first_failed_at":"1970-01-01T00:00:01.000000Z","last_failed_at":"1970-01-01T00:00:02.500000Z","due_at":"1970-01-01T00:00:03.000000Z","error":"answered 500 \"oh\"","id":"e-2","source":"/s","type":"t"}],"next":null}"#
    );
    let reply = running.ask(get("/v1/failures/audit/2")).await;
    assert!(reply.body.starts_with(r#"{"sink":"audit","offset":2,"state":"retrying""#), "{reply:?}");
    assert!(
        reply
            .body
            .contains(r#""event":{"specversion":"1.0","id":"1","source":"/s","type":"t","data":1e400}"#),
        "the event as it is: {}",
        reply.body
    );
    for path in ["/v1/failures/audit/1", "/v1/failures/nobody/2", "/v1/failures/audit"] {
        let reply = running.ask(get(path)).await;
        assert_eq!((reply.status, reply.slug().as_str()), (404, "not-found"), "{path}");
    }
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repeat() {
    let running = start_with(120).await;
    for (path, expected) in
        [("/v1/failures?limit=7", 240), ("/v1/failures?limit=7&sink=audit&state=dead", 40)]
    {
        let mut met = Vec::new();
        let mut after = String::new();
        loop {
            let page = parsed(&running.ask(get(&format!("{path}{after}"))).await);
            let rows = page["failures"].as_array().unwrap();
            assert!(rows.len() <= 7);
            met.extend(rows.iter().map(|row| (row["sink"].to_string(), row["offset"].as_u64().unwrap())));
            match page["next"].as_str() {
                Some(next) => after = format!("&after={}", next.replace(':', "%3A")),
                None => break,
            }
        }
        assert_eq!(met.len(), expected, "{path}");
        let mut unique = met.clone();
        unique.dedup();
        assert_eq!(unique, met);
    }
    // Of one sink an offset is a cursor, too; without a limit a page has a hundred.
    let page = parsed(&running.ask(get("/v1/failures?sink=audit&after=3")).await);
    assert_eq!(page["failures"][0]["offset"], 4);
    assert_eq!((page["failures"].as_array().unwrap().len(), &page["next"]), (100, &"audit:202".into()));
}

#[tokio::test]
async fn filters_reach_the_queue() {
    let running = start_with(1).await;
    let path = "/v1/failures?type=com.*.%5Bab%5D&error=timed+out&from=1970-01-01T00:00:01Z&to=1970-01-01T00%3A00%3A02%2B00:00";
    assert_eq!(running.ask(get(path)).await.status, 200);
    let asked = running.queue.table.asked.lock().unwrap().pop().unwrap();
    let glob = asked.event_type.unwrap();
    assert!(glob.is_match("com.x.a") && !glob.is_match("com.x.c"));
    assert_eq!(asked.error_contains.as_deref(), Some("timed out"));
    assert_eq!((asked.failed_from, asked.failed_to), (Some(Micros(1_000_000)), Some(Micros(2_000_000))));
    assert_eq!((asked.sink, asked.state, asked.after, asked.limit), (None, None, None, 100));
}

#[tokio::test]
async fn a_change_names_rows_or_all_and_the_connection_goes_on() {
    let running = start_with(1).await;
    let mut client = running.client().await;
    client.send(change("retry", r#"{"sink":"audit","offsets":[4,2]}"#)).await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.body.as_str()), (200, r#"{"changed":2}"#));
    client.send(change("drop", r#"{"sink":"orders","all":true}"#)).await;
    assert_eq!(client.reply().await.body, r#"{"changed":1000000}"#);
    let changes = running.queue.table.changes.lock().unwrap().clone();
    assert_eq!(
        changes,
        [
            (SinkId(1), Selection::Offsets(vec![4, 2]), Redrive::Retry),
            (SinkId(0), Selection::All, Redrive::Drop)
        ]
    );
}

#[tokio::test]
async fn what_is_wrong_or_too_much_is_refused_and_changes_nothing() {
    let running = start_with(1).await;
    for path in [
        "/v1/failures?limit=0",
        "/v1/failures?limit=1001",
        "/v1/failures?limit=ten",
        "/v1/failures?state=lost",
        "/v1/failures?after=7",
        "/v1/failures?after=nobody:7",
        "/v1/failures?sink=audit&after=orders:7",
        "/v1/failures?sink=audit&after=-1",
        "/v1/failures?type=%5B",
        "/v1/failures?from=yesterday",
        "/v1/failures?sinks=audit",
        "/v1/failures/audit/-1",
    ] {
        let reply = running.ask(get(path)).await;
        assert_eq!((reply.status, reply.slug().as_str()), (400, "malformed"), "{path}");
    }
    let reply = running.ask(get("/v1/failures?sink=nobody")).await;
    assert_eq!((reply.status, reply.slug().as_str()), (404, "not-found"));
    let offsets = |n: usize| format!(r#"{{"sink":"audit","offsets":[{}1]}}"#, "1,".repeat(n - 1));
    for (body, status, slug) in [
        (String::new(), 400, "malformed"),
        ("{".into(), 400, "malformed"),
        (r#"{"sink":"audit"}"#.into(), 400, "malformed"),
        (r#"{"sink":"audit","all":false}"#.into(), 400, "malformed"),
        (r#"{"sink":"audit","all":true,"offsets":[1]}"#.into(), 400, "malformed"),
        (r#"{"sink":"audit","offsets":[-1]}"#.into(), 400, "malformed"),
        (r#"{"sink":"audit","offset":[1]}"#.into(), 400, "malformed"),
        (r#"{"sink":"nobody","all":true}"#.into(), 404, "not-found"),
        (offsets(10_001), 413, "too-large"),
        (" ".repeat(600_000), 413, "too-large"),
        (r#"{"sink":"audit","offsets":[666]}"#.into(), 503, "storage-failed"),
    ] {
        let reply = running.ask(change("drop", &body)).await;
        let shown = &body[..body.len().min(60)];
        assert_eq!((reply.status, reply.slug().as_str()), (status, slug), "{shown}");
    }
    assert_eq!(running.queue.table.changes.lock().unwrap().len(), 0);
    assert_eq!(running.ask(change("retry", &offsets(10_000))).await.body, r#"{"changed":10000}"#);
    let reply = running.ask("DELETE /v1/failures HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!((reply.status, reply.slug().as_str()), (405, "method-not-allowed"));
}

#[tokio::test]
async fn while_recovering_there_is_no_table_yet() {
    let running = start_recovering(|_| {}).await;
    for request in
        [get("/v1/failures"), get("/v1/failures/a/1"), change("drop", r#"{"sink":"a","all":true}"#)]
    {
        let reply = running.ask(request).await;
        assert_eq!((reply.status, reply.slug().as_str()), (503, "recovering"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_comes_is_given_up() {
    let running = start_with(1).await;
    let head = "POST /v1/failures/drop HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{";
    let mut client = running.client().await;
    client.stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Not within a deadline of ours: the clock jumps to whichever comes first.
    while !answer.ends_with(b"}") && client.stream.read_buf(&mut answer).await.is_ok_and(|n| n > 0) {}
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("request-timeout"), "{answer}");
}
