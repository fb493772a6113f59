//! Webhooks without a socket: what is taken, what is refused, and what an event is called.

use hyper::header::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::super::decode::{EventLimits, decode};
use super::*;
use crate::config::Config;

const NOW: Micros = Micros(1_614_265_330_000_000);
const LIMITS: EventLimits = EventLimits { max_event: 1 << 20, max_batch: 1 << 20 };

fn hook(lines: &str) -> Arc<Known> {
    let text = format!("[[hook]]\nname = \"h\"\n{lines}\n");
    let config = Config::parse("e.toml", &text, Vec::new(), &[]).unwrap();
    let hooks = Hooks::default();
    hooks.set(&config.hooks).unwrap();
    hooks.at("/v1/hooks/h").unwrap()
}

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap())
    };
    pairs.iter().map(pair).collect()
}

/// The stored text, or why there is none.
fn take(hook: &Arc<Known>, pairs: &[(&str, &str)], body: &str) -> Result<String, Problem> {
    let claimed = hook.clone().claim(headers(pairs), NOW)?;
    let (head, bytes) = claimed.verify(Bytes::from(body.to_owned()))?;
    let batch = decode(&head, bytes, NOW, LIMITS)?.batch;
    let texts: Vec<_> = batch.iter().map(|(_, text)| String::from_utf8(text.to_vec()).unwrap()).collect();
    Ok(texts.join("\n"))
}

fn slug(taken: Result<String, Problem>) -> Slug {
    taken.expect_err("refused").slug()
}

fn hex(key: &str, signed: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    hmac::sign(&key, signed.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The example of GitHub's documentation.
const GITHUB_SECRET: &str = "It's a Secret to Everybody";
const GITHUB_SIGNATURE: &str = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

fn github() -> Arc<Known> {
    hook(&format!("type = \"github\"\nsecrets = [\"{GITHUB_SECRET}\"]"))
}

#[test]
fn the_known_answer_of_github() {
    let claimed = github().claim(headers(&[("x-hub-signature-256", GITHUB_SIGNATURE)]), NOW).unwrap();
    assert!(claimed.claim.is_true(&claimed.hook.keys, b"Hello, World!"));
    assert!(!claimed.claim.is_true(&claimed.hook.keys, b"Hello, World"));
}

#[test]
fn a_delivery_of_github_becomes_an_event_and_its_payload_stays_as_it_is() {
    let body = r#"{ "action":"opened","repository":{"full_name":"o/r", "url":"https://api.github.com/repos/o/r"},"n":1.0e2 }"#;
    let signature = format!("sha256={}", hex(GITHUB_SECRET, body));
    let delivery = |event| {
        [("x-hub-signature-256", &*signature), ("x-github-event", event), ("x-github-delivery", "72d3162e")]
    };
    assert_eq!(
        take(&github(), &delivery("issues"), body).unwrap(),
        format!(
            r#"{{"specversion":"1.0","id":"72d3162e","source":"https://api.github.com/repos/o/r","type":"com.github.issues.opened","partitionkey":"o/r","datacontenttype":"application/json","data":{body}}}"#
        )
    );
    for missing in ["x-github-event", "x-github-delivery"] {
        let some: Vec<_> = delivery("issues").into_iter().filter(|(name, _)| *name != missing).collect();
        assert_eq!(slug(take(&github(), &some, body)), Slug::Malformed, "{missing}");
    }
    let form = "payload=%7B%22zen%22%3A%22a+b%22%7D";
    let signature = format!("sha256={}", hex(GITHUB_SECRET, form));
    let pairs = [
        ("x-hub-signature-256", &*signature),
        ("x-github-event", "ping"),
        ("x-github-delivery", "1"),
        ("content-type", "application/x-www-form-urlencoded"),
    ];
    let taken = take(&github(), &pairs, form).unwrap();
    assert!(taken.contains(r#""source":"https://github.com","type":"com.github.ping","#), "{taken}");
    assert!(taken.ends_with(r#""data":{"zen":"a b"}}"#), "{taken}");
}

#[test]
fn where_an_event_of_github_comes_from_is_the_nearest_thing_it_names() {
    let (repository, organization, sender) =
        (r#""repository":{"url":"R"}"#, r#""organization":{"url":"O"}"#, r#""sender":{"url":"S"}"#);
    for (body, source) in [
        (format!("{{{sender},{organization},{repository}}}"), "R"),
        (format!("{{{sender},{organization}}}"), "O"),
        (format!("{{{sender},\"repository\":null}}"), "S"),
        (r#"{"sender":{"url":5},"repository":"x"}"#.to_owned(), "https://github.com"),
        ("[]".to_owned(), "https://github.com"),
    ] {
        let signature = format!("sha256={}", hex(GITHUB_SECRET, &body));
        let pairs =
            [("x-hub-signature-256", &*signature), ("x-github-event", "e"), ("x-github-delivery", "1")];
        let taken = take(&github(), &pairs, &body).unwrap();
        assert!(taken.contains(&format!(r#""source":"{source}","type":"com.github.e""#)), "{taken}");
    }
}

/// The example of the Standard Webhooks libraries.
const STANDARD: [(&str, &str); 3] = [
    ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek"),
    ("webhook-timestamp", "1614265330"),
    ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
];
const STANDARD_BODY: &str = r#"{"test": 2432232314}"#;
const OTHER_KEY: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

fn standard(keys: &[&str]) -> Arc<Known> {
    hook(&format!("type = \"standard\"\nsecrets = {keys:?}"))
}

#[test]
fn the_known_answer_of_standard_webhooks_with_the_old_and_the_new_key() {
    let key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    for keys in [&[key][..], &[OTHER_KEY, key], &[key, OTHER_KEY]] {
        let taken = take(&standard(keys), &STANDARD, STANDARD_BODY).unwrap();
        assert_eq!(
            taken,
            r#"{"specversion":"1.0","id":"msg_p5jXN8AQM9LWM0D4loKWxJek","source":"/hooks/h","type":"eventflow.hook","time":"2021-02-25T15:02:10.000000Z","datacontenttype":"application/json","data":{"test": 2432232314}}"#
        );
    }
    let several = "v2,AAAA v1a,AAAA v1,AAAA v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    let pairs = [STANDARD[0], STANDARD[1], ("webhook-signature", several)];
    assert!(take(&standard(&[key]), &pairs, STANDARD_BODY).is_ok());
    assert_eq!(slug(take(&standard(&[OTHER_KEY]), &STANDARD, STANDARD_BODY)), Slug::Unauthenticated);
}

#[test]
fn whatever_is_changed_about_a_signed_request_it_is_refused() {
    let hook = standard(&["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]);
    for (name, value) in [
        ("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJeK"),
        ("webhook-timestamp", "1614265331"),
        ("webhook-timestamp", "+1614265330"),
        ("webhook-timestamp", "1614265330.0"),
        ("webhook-timestamp", "99999999999999999999"),
        ("webhook-timestamp", ""),
        ("webhook-signature", "v1,h0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        ("webhook-signature", "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        ("webhook-signature", "v1,"),
        ("webhook-signature", ""),
    ] {
        let pairs = STANDARD.map(|pair| if pair.0 == name { (name, value) } else { pair });
        assert_eq!(slug(take(&hook, &pairs, STANDARD_BODY)), Slug::Unauthenticated, "{name}: {value}");
    }
    for missing in STANDARD {
        let pairs: Vec<_> = STANDARD.into_iter().filter(|pair| *pair != missing).collect();
        assert_eq!(slug(take(&hook, &pairs, STANDARD_BODY)), Slug::Unauthenticated, "{missing:?}");
        let twice = [&STANDARD[..], &[missing]].concat();
        let claimed = hook.clone().claim(appended(&twice), NOW);
        assert_eq!(claimed.expect_err("twice").slug(), Slug::Unauthenticated, "{missing:?} twice");
    }
    for body in ["", "{}", r#"{"test": 2432232315}"#, r#"{"test": 2432232314} "#] {
        assert_eq!(slug(take(&hook, &STANDARD, body)), Slug::Unauthenticated, "{body}");
    }
    let coded = [&STANDARD[..], &[("content-encoding", "gzip")]].concat();
    assert_eq!(slug(take(&hook, &coded, STANDARD_BODY)), Slug::UnsupportedMediaType);
}

fn appended(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
    }
    map
}

#[test]
fn a_request_is_genuine_only_around_the_time_it_says() {
    let hook = standard(&["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]);
    for (seconds, taken) in [(0, true), (300, true), (301, false), (-300, true), (-301, false)] {
        let now = Micros(NOW.0 + seconds * 1_000_000);
        assert_eq!(hook.clone().claim(headers(&STANDARD), now).is_ok(), taken, "{seconds}");
    }
    assert!(hook.clone().claim(headers(&STANDARD), Micros(i64::MIN)).is_err());
    assert!(hook.claim(headers(&STANDARD), Micros(i64::MAX)).is_err());
}

#[test]
fn a_standard_payload_names_its_type_and_whole_cloudevents_are_what_they_are() {
    let key = "0123456789abcdef";
    let hook = hook(&format!("type = \"hmac\"\nheader = \"x-s\"\nsecrets = [\"{key}\"]"));
    let event = r#"{"specversion":"1.0","id":"a","source":"/s","type":"t"}"#;
    let pairs = [("x-s", &*hex(key, event)), ("content-type", "application/cloudevents+json")];
    assert_eq!(take(&hook, &pairs, event).unwrap(), event);

    let body = r#"{"type":"invoice.paid","data":{}}"#;
    let key = crate::config::SigningKey::parse(OTHER_KEY).unwrap();
    let signed = format!("m.1614265330.{body}");
    let made = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.bytes()), signed.as_bytes());
    use base64::Engine;
    let signature = format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(made));
    let pairs =
        [("webhook-id", "m"), ("webhook-timestamp", "1614265330"), ("webhook-signature", &*signature)];
    let taken = take(&standard(&[OTHER_KEY]), &pairs, body).unwrap();
    assert!(taken.contains(r#""type":"invoice.paid""#), "{taken}");
}

#[test]
fn other_senders_sign_as_the_configuration_says() {
    let key = "8f742231b10e8888abcd99yyyzzz85a5";
    let slack = hook(&format!(
        "type = \"hmac\"\nsecrets = [\"{key}\"]\nheader = \"X-Slack-Signature\"\nprefix = \"v0=\"\n\
         timestamp_header = \"X-Slack-Request-Timestamp\"\nsigned = \"v0:{{timestamp}}:{{body}}\"\n\
         event_type = \"com.slack.event\"\nsource = \"https://slack.com\""
    ));
    let signature = format!("v0={}", hex(key, "v0:1614265330:a=b"));
    let pairs = [
        ("x-slack-signature", &*signature),
        ("x-slack-request-timestamp", "1614265330"),
        ("content-type", "application/x-www-form-urlencoded"),
    ];
    let taken = take(&slack, &pairs, "a=b").unwrap();
    assert!(taken.contains(r#""source":"https://slack.com","type":"com.slack.event","time":"#), "{taken}");
    assert!(taken.contains(r#""data_base64":"YT1i""#), "{taken}");
    let bare = [("x-slack-signature", &signature[3..]), pairs[1], pairs[2]];
    assert_eq!(slug(take(&slack, &bare, "a=b")), Slug::Unauthenticated);

    let shop = hook(
        "type = \"hmac\"\nsecrets = [\"0123456789abcdef\"]\nheader = \"x-h\"\nencoding = \"base64\"\n\
         id_header = \"x-id\"\ntype_header = \"x-topic\"\nsigned = \"{body}{id}\"",
    );
    use base64::Engine;
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef");
    let signature = base64::engine::general_purpose::STANDARD.encode(hmac::sign(&key, b"{}7"));
    let pairs = [
        ("x-h", &*signature),
        ("x-id", "7"),
        ("x-topic", "orders/create"),
        ("content-type", "application/json"),
    ];
    let taken = take(&shop, &pairs, "{}").unwrap();
    assert!(taken.contains(r#""id":"7","source":"/hooks/h","type":"orders/create""#), "{taken}");
}

#[test]
fn without_an_id_the_same_request_is_the_same_event() {
    let key = "0123456789abcdef";
    let hook = hook(&format!("type = \"hmac\"\nheader = \"x-s\"\nsecrets = [\"{key}\"]"));
    let id = |body: &str| {
        let taken = take(&hook, &[("x-s", &*hex(key, body)), ("content-type", "text/plain")], body).unwrap();
        let event: serde_json::Value = serde_json::from_str(&taken).unwrap();
        event["id"].as_str().unwrap().to_owned()
    };
    assert_eq!(id("a"), id("a"));
    assert_ne!(id("a"), id("b"));
}

#[test]
fn a_path_names_a_hook_or_nothing() {
    let hooks = Hooks::default();
    for path in ["/v1/hooks/", "/v1/hooks/x", "/v1/hooks/h/x"] {
        assert_eq!(hooks.at(path).expect_err("unknown").slug(), Slug::NotFound, "{path}");
    }
}

proptest! {
    #[test]
    fn no_head_makes_a_body_genuine_that_is_not(
        id in "[ -~]{0,20}", timestamp in "[0-9]{0,12}", signature in "(v1,)?[A-Za-z0-9+/= ]{0,60}", body in ".{0,40}"
    ) {
        let pairs = [
            ("webhook-id", &*id), ("webhook-timestamp", &*timestamp), ("webhook-signature", &*signature),
            ("x-hub-signature-256", &*signature), ("x-github-event", &*id), ("x-github-delivery", &*id),
        ];
        prop_assert_eq!(slug(take(&standard(&[OTHER_KEY]), &pairs, &body)), Slug::Unauthenticated);
        prop_assert_eq!(slug(take(&github(), &pairs, &body)), Slug::Unauthenticated);
    }

    #[test]
    fn any_genuine_body_is_taken_byte_for_byte_or_refused_without_a_panic(body in "\\PC{0,60}|[\\[\\]{}\":,a-z0-9 ]{0,60}") {
        let signature = format!("sha256={}", hex(GITHUB_SECRET, &body));
        let pairs = [("x-hub-signature-256", &*signature), ("x-github-event", "e"), ("x-github-delivery", "1")];
        match take(&github(), &pairs, &body) {
            Ok(text) => {
                let data = format!("\"data\":{}}}", cloudevents_trim(&body));
                prop_assert!(text.ends_with(&data));
            }
            Err(problem) => prop_assert_eq!(problem.slug(), Slug::Malformed),
        }
    }
}

fn cloudevents_trim(text: &str) -> &str {
    crate::event::cloudevent::trim(text)
}
