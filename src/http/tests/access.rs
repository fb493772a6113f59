//! Tokens on real connections: nothing gets in without one, by whichever lane it comes.

use super::*;
use crate::config::{TokenHash, Tokens};

const EVENT: &str = r#"{"specversion":"1.0","id":"a","source":"/s","type":"t"}"#;

/// Tokens by name: each is good for the scope of its name, and `slow` for two requests at once.
fn tokens() -> Tokens {
    let table = |name: &str, scope: &str, more: &str| {
        let hash = TokenHash::of(name.as_bytes());
        format!("[[token]]\nname = \"{name}\"\nhash = \"{hash}\"\nscopes = [\"{scope}\"]\n{more}\n")
    };
    let text = table("ingest", "ingest", "")
        + &table("read", "read", "")
        + &table("admin", "admin", "")
        + &table("old", "ingest", "expires = 1999-12-31")
        + &table("slow", "ingest", "requests_per_second = 1\nburst = 2");
    Tokens::parse(&text).unwrap()
}

async fn guarded() -> Running {
    let running = start(|_| {}).await;
    running.app.set_tokens(Some(tokens()));
    running
}

fn shows(token: &str) -> String {
    format!("authorization: Bearer {token}\r\n")
}

#[tokio::test]
async fn nothing_gets_in_without_a_token_by_either_lane() {
    let running = guarded().await;
    for (authorization, status, slug) in [
        (String::new(), 401, "unauthenticated"),
        (shows("wrong"), 401, "unauthenticated"),
        (shows(""), 401, "unauthenticated"),
        (shows("old"), 401, "unauthenticated"),
        ("authorization: ingest\r\n".to_owned(), 401, "unauthenticated"),
        ("authorization: Basic ingest\r\n".to_owned(), 401, "unauthenticated"),
        (shows("ingest").repeat(2), 401, "unauthenticated"),
        ("x-authorization: Bearer ingest\r\n".to_owned(), 401, "unauthenticated"),
        (shows("read"), 403, "forbidden"),
        (shows("admin"), 403, "forbidden"),
    ] {
        let whole = post(&format!("{JSON}{authorization}"), EVENT);
        // A key is nothing for the express lane.
        let general = post(&format!("{JSON}{authorization}idempotency-key: 1\r\n"), EVENT);
        for request in [whole, general] {
            let reply = running.ask(request).await;
            assert_eq!((reply.status, &*reply.slug()), (status, slug), "{authorization}");
            assert!(reply.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
        }
    }
    assert_eq!(running.texts(), Vec::<String>::new());
    let mut client = running.client().await;
    for authorization in [shows("ingest"), "AUTHORIZATION: bearer   ingest  \r\n".to_owned()] {
        client.send(post(&format!("{JSON}{authorization}"), EVENT)).await;
        assert_eq!(client.reply().await.status, 202);
        client.send(post(&format!("{JSON}{authorization}idempotency-key: k\r\n"), "1")).await;
        assert_eq!(client.reply().await.status, 202);
    }
    assert_eq!(running.texts().len(), 4);
}

#[tokio::test]
async fn a_refused_client_keeps_its_connection_and_may_try_again() {
    let running = guarded().await;
    let mut client = running.client().await;
    client.send(post(JSON, EVENT)).await;
    assert_eq!(client.reply().await.status, 401);
    client.send(post(&format!("{JSON}{}", shows("ingest")), EVENT)).await;
    assert_eq!(client.reply().await.status, 202);
}

#[tokio::test]
async fn health_is_open_and_every_other_route_wants_its_scope() {
    let running = guarded().await;
    for path in ["/livez", "/healthz", "/readyz"] {
        assert_eq!(running.ask(get(path)).await.status, 200, "{path}");
    }
    for path in ["/v1/status", "/v1/failures", "/v1/events/0"] {
        assert_eq!(running.ask(get(path)).await.status, 401, "{path}");
        let with = |token: &str| get(path).replace("host: x\r\n", &format!("host: x\r\n{}", shows(token)));
        assert_eq!(running.ask(with("read")).await.status, 200, "{path}");
        assert_eq!(running.ask(with("ingest")).await.status, 403, "{path}");
        assert_eq!(running.ask(with("admin")).await.status, 403, "{path}");
    }
    let pause = |token: &str| {
        format!("POST /v1/sinks/archive/pause HTTP/1.1\r\nhost: x\r\n{token}content-length: 0\r\n\r\n")
    };
    assert_eq!(running.ask(pause("")).await.status, 401);
    assert_eq!(running.ask(pause(&shows("read"))).await.status, 403);
    assert!(running.queue.paused.lock().unwrap().is_empty());
    assert_eq!(running.ask(pause(&shows("admin"))).await.status, 200);
    assert_eq!(running.queue.paused.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_token_beyond_its_rate_is_told_when_to_come_again() {
    let running = guarded().await;
    let request = post(&format!("{JSON}{}", shows("slow")), EVENT);
    let mut replies = Vec::new();
    for _ in 0..4 {
        replies.push(running.ask(&request).await);
    }
    // Two at once, and at most a few more that a slow machine's second brings.
    let refused: Vec<&Reply> = replies.iter().filter(|reply| reply.status != 202).collect();
    assert!(!refused.is_empty() && replies[0].status == 202 && replies[1].status == 202);
    for reply in refused {
        assert_eq!((reply.status, &*reply.slug()), (429, "overloaded"));
        assert_eq!(reply.header("retry-after"), Some("1"));
    }
    assert_eq!(running.ask(post(&format!("{JSON}{}", shows("ingest")), EVENT)).await.status, 202);
}

#[tokio::test]
async fn tokens_are_exchanged_while_connections_stand() {
    let running = start(|_| {}).await;
    let mut client = running.client().await;
    client.send(post(JSON, EVENT)).await;
    assert_eq!(client.reply().await.status, 202);
    running.app.set_tokens(Some(tokens()));
    client.send(post(JSON, EVENT)).await;
    assert_eq!(client.reply().await.status, 401);
    running.app.set_tokens(None);
    client.send(post(JSON, EVENT)).await;
    assert_eq!(client.reply().await.status, 202);
}

#[tokio::test]
async fn an_address_has_no_more_connections_than_it_may_and_gets_them_back() {
    let running = start(|http| http.max_connections_per_address = 2).await;
    let mut clients = [running.client().await, running.client().await];
    for client in &mut clients {
        client.send(get("/livez")).await;
        assert_eq!(client.reply().await.status, 200);
    }
    let mut third = running.client().await;
    let reply = third.reply().await;
    assert_eq!((reply.status, &*reply.slug()), (429, "overloaded"));
    assert!(reply.body.contains("max_connections_per_address"), "{}", reply.body);
    assert!(third.is_closed().await);
    drop(clients);
    in_time(async {
        // The server hears of the ends when it does; until then there is no place.
        loop {
            let mut client = running.client().await;
            client.send(get("/livez")).await;
            if client.reply().await.status == 200 {
                break;
            }
        }
    })
    .await;
}
