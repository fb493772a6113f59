//! The document against the routes and against itself; that answers are as it says is checked wherever
//! these tests ask for one.

use super::*;
use crate::http::admin;

#[tokio::test]
async fn the_checked_in_document_is_the_one_that_is_served() {
    let running = start(|_| {}).await;
    let reply = running.ask(get("/openapi.json")).await;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
    if std::env::var_os("EVENTFLOW_WRITE_DOCS").is_some() {
        std::fs::write(path, &reply.body).unwrap();
    }
    let checked_in = std::fs::read_to_string(path).unwrap();
    assert!(
        reply.body == checked_in,
        "docs/openapi.json is out of date: run this test with EVENTFLOW_WRITE_DOCS=1 and look at the difference"
    );
}

#[tokio::test]
async fn every_route_is_described_and_every_description_is_a_route() {
    let routes = admin::routes();
    let described: Vec<&str> =
        described::DOCUMENT["paths"].as_object().unwrap().keys().map(|p| &**p).collect();
    assert_eq!(routes.served.iter().map(|path| &**path).collect::<Vec<_>>(), described);
    let running = start(|http| http.webhook_allowed_origin = Some("*".into())).await;
    for (template, item) in described::DOCUMENT["paths"].as_object().unwrap() {
        let path =
            template.replace("{name}", "archive").replace("{sink}", "archive").replace("{offset}", "0");
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
            let reply = running.ask(request).await;
            let is_described = item.get(method.to_ascii_lowercase()).is_some();
            assert_eq!(reply.status != 405, is_described, "{method} {path}: {reply:?}");
            if reply.status == 405 {
                let allowed = reply.header("allow").expect("a 405 says which methods there are");
                let mut allowed: Vec<String> =
                    allowed.split(',').map(|m| m.trim().to_ascii_lowercase()).collect();
                allowed.retain(|method| method != "head");
                allowed.sort();
                let known: Vec<&String> = item.as_object().unwrap().keys().collect();
                assert_eq!(allowed.iter().collect::<Vec<_>>(), known, "{path}");
            }
        }
    }
}

#[tokio::test]
async fn an_address_that_cannot_be_decoded_is_a_problem_like_any_other() {
    let running = start(|_| {}).await;
    for path in ["/v1/events/%FF", "/v1/failures/%FF/0", "/v1/failures/archive/%FF"] {
        assert_eq!(running.ask(get(path)).await.slug(), "malformed", "{path}");
    }
    let request = "POST /v1/sinks/%FF/pause HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(running.ask(request).await.slug(), "malformed");
}

#[test]
fn the_check_of_answers_notices_what_is_not_described() {
    let check = |status, content_type, body: &str| {
        let answer =
            described::Answer { status, content_type, retry_after: Some("1"), body: body.as_bytes() };
        described::check("POST", "/v1/events", &answer)
    };
    let json = Some("application/json");
    let accepted = r#"{"accepted":1,"duplicates":0,"first_offset":0,"last_offset":0"#;
    assert_eq!(check(202, json, &format!("{accepted}}}")), Ok(()));
    assert_eq!(check(202, json, &format!(r#"{accepted},"id":"x"}}"#)), Ok(()));
    assert!(check(202, json, &format!(r#"{accepted},"more":1}}"#)).is_err());
    assert!(check(202, json, r#"{"accepted":1}"#).is_err());
    assert!(check(202, json, &accepted.replace(":1", ":-1")).is_err());
    assert!(check(202, Some("text/plain"), &format!("{accepted}}}")).is_err());
    assert!(check(201, json, &format!("{accepted}}}")).is_err());
    let problem =
        |slug: &str| format!(r#"{{"type":"/problems/{slug}","title":"x","status":429,"detail":"x"}}"#);
    assert_eq!(check(429, Some("application/problem+json"), &problem("wal-full")), Ok(()));
    assert!(check(429, Some("application/problem+json"), &problem("malformed")).is_err());
}
