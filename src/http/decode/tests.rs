use super::*;
use hyper::Request;
use proptest::prelude::*;
use serde_json::Value;

const LIMITS: EventLimits = EventLimits { max_event: 4096, max_batch: 64 * 1024 };
const NOW: Micros = Micros(0);

fn read(headers: &[(&str, &str)], query: &str, body: &[u8]) -> Result<Decoded, Problem> {
    let mut request = Request::post(format!("/v1/events{query}"));
    for (name, value) in headers {
        request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    decode(&Head::of(&parts)?, Bytes::copy_from_slice(body), NOW, LIMITS)
}

fn texts(decoded: &Decoded) -> Vec<String> {
    decoded.batch.iter().map(|(_, text)| String::from_utf8(text.to_vec()).unwrap()).collect()
}

fn typed(content_type: &str, body: &str) -> Result<Decoded, Problem> {
    read(&[("content-type", content_type)], "", body.as_bytes())
}

/// What the answer would say: the slug, and the positions of the items at fault.
fn refusal(result: Result<Decoded, Problem>) -> (Slug, Vec<usize>) {
    let problem = result.unwrap_err();
    (problem.slug(), problem.errors().iter().map(|e| e.index).collect())
}

const EVENT: &str = r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"b":1,"a":1.0}}"#;

#[test]
fn the_first_rule_that_fits_decides_how_a_body_is_read() {
    let form = |headers: &[(&str, &str)]| {
        let mut request = Request::post("/v1/events");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Head::of(&parts).map(|head| head.form).map_err(|p| p.slug())
    };
    for (content_type, expected) in [
        ("application/cloudevents-batch+json", Ok(Form::Batch)),
        ("Application/CloudEvents+JSON; charset=utf-8", Ok(Form::Structured)),
        ("application/cloudevents", Err(Slug::UnsupportedMediaType)),
        ("application/cloudevents+avro", Err(Slug::UnsupportedMediaType)),
        ("application/cloudevents-batch+xml", Err(Slug::UnsupportedMediaType)),
        ("application/x-ndjson", Ok(Form::Lines)),
        ("application/NDJSON ;x=y", Ok(Form::Lines)),
        ("application/jsonl", Ok(Form::Lines)),
        ("application/json", Ok(Form::Json)),
        ("application/vnd.api+json", Ok(Form::Json)),
        ("text/json", Err(Slug::UnsupportedMediaType)),
        ("text/plain", Err(Slug::UnsupportedMediaType)),
        ("image/svg+json", Err(Slug::UnsupportedMediaType)),
        ("", Err(Slug::UnsupportedMediaType)),
    ] {
        assert_eq!(form(&[("content-type", content_type)]), expected, "{content_type}");
    }
    assert_eq!(form(&[]), Err(Slug::UnsupportedMediaType));
    assert_eq!(
        form(&[("content-type", "application/json"), ("content-type", "application/json")]),
        Err(Slug::Malformed)
    );
    // A header of binary mode beats a media type, except CloudEvents' own.
    for one in ["ce-id", "ce-source", "ce-type", "ce-specversion"] {
        assert_eq!(
            form(&[("content-type", "application/json"), (one, "1.0")]),
            Err(Slug::Malformed),
            "{one}"
        );
        assert_eq!(
            form(&[("content-type", "application/cloudevents+json"), (one, "1.0")]),
            Ok(Form::Structured)
        );
        let avro = form(&[("content-type", "application/cloudevents+avro"), (one, "1.0")]);
        assert_eq!(avro, Err(Slug::UnsupportedMediaType));
    }
    assert_eq!(form(&[("content-type", "application/json"), ("ce-other", "x")]), Ok(Form::Json));
}

#[test]
fn structured_events_are_kept_byte_for_byte() {
    let spaced = "\n {\"data\" : [ 1.0,\r\n1e999 ] ,\"specversion\":\"1.0\",\"type\":\"t\",\"source\":\"/s\",\"id\":\"x\" } \n";
    for content_type in ["application/cloudevents+json", "application/json"] {
        for text in [EVENT, spaced] {
            let decoded = typed(content_type, text).unwrap();
            assert_eq!(texts(&decoded), [text.trim()]);
            assert!(decoded.id.is_some());
        }
    }
    let batch = format!("[ {EVENT},\n{} ]", spaced.trim());
    for content_type in ["application/cloudevents-batch+json", "application/json"] {
        let decoded = typed(content_type, &batch).unwrap();
        assert_eq!(texts(&decoded), [EVENT, spaced.trim()]);
        assert_eq!(decoded.id, None);
    }
    let lines = format!("\n{EVENT}\r\n  \n{EVENT}");
    assert_eq!(texts(&typed("application/x-ndjson", &lines).unwrap()), [EVENT, EVENT]);
    let tags: Vec<u128> =
        typed("application/x-ndjson", EVENT).unwrap().batch.iter().map(|(t, _)| t).collect();
    assert_eq!(tags, [dedupe_tag("/s", "1")]);
}

#[test]
fn plain_data_becomes_the_data_of_an_event() {
    let headers = [("content-type", "application/json"), ("idempotency-key", "k-1")];
    let decoded = read(&headers, "", b" {\"a\" : 1.00}\n").unwrap();
    assert_eq!(
        texts(&decoded),
        [
            r#"{"specversion":"1.0","id":"k-1","source":"/eventflow","type":"eventflow.event","time":"1970-01-01T00:00:00.000000Z","datacontenttype":"application/json","data":{"a" : 1.00}}"#
        ]
    );
    assert_eq!(decoded.id.as_deref(), Some("k-1"));
    let decoded = read(&headers, "?type=a%2Fb+c&x=y&source=%C3%A9", b"5").unwrap();
    let event: Value = serde_json::from_str(&texts(&decoded)[0]).unwrap();
    assert_eq!((&event["type"], &event["source"], &event["data"]), (&"a/b c".into(), &"é".into(), &5.into()));
    for scalar in ["null", "true", "\"x\"", "-0.0", "{}"] {
        let decoded = typed("application/json", scalar).unwrap();
        assert!(texts(&decoded)[0].ends_with(&format!(",\"data\":{scalar}}}")), "{scalar}");
    }
    // Inside an array any value is an item, arrays too.
    assert_eq!(typed("application/json", "[[1],null]").unwrap().batch.len(), 2);
}

#[test]
fn ids_are_uuids_of_version_7_in_order_unless_a_key_names_the_only_item() {
    let lines: String = (0..50).map(|n| format!("{n}\n")).collect();
    let decoded = typed("application/x-ndjson", &lines).unwrap();
    let ids: Vec<String> = texts(&decoded)
        .iter()
        .map(|text| serde_json::from_str::<Value>(text).unwrap()["id"].as_str().unwrap().to_owned())
        .collect();
    assert!(ids.is_sorted() && ids.iter().all(|id| id.len() == 36 && id.as_bytes()[14] == b'7'), "{ids:?}");
    let id = |content_type: &'static str, key: &str, body: &str| {
        let headers = [("content-type", content_type), ("idempotency-key", key)];
        read(&headers, "", body.as_bytes()).map(|d| d.id).map_err(|p| p.slug())
    };
    let key = |key: &str| Ok(Some(key.to_owned()));
    assert_eq!(id("application/json", r#""quo\"ted""#, "1"), key("quo\"ted"));
    assert_eq!(id("application/json", "\"half", "1"), key("\"half"));
    assert_eq!(id("application/json", "k", "[1]"), key("k"));
    assert_eq!(id("application/x-ndjson", "k", "\n1\n\n"), key("k"));
    assert_eq!(id("application/json", "k", "[1,2]"), Ok(None));
    assert_eq!(id("application/json", "k", EVENT), key("1"));
    assert_eq!(id("application/json", "", "1"), Err(Slug::Malformed));
    assert_eq!(id("application/json", "\"\"", "1"), Err(Slug::Malformed));
    let two = [("content-type", "application/json"), ("idempotency-key", "a"), ("idempotency-key", "b")];
    assert_eq!(refusal(read(&two, "", b"1")).0, Slug::Malformed);
}

#[test]
fn a_bad_query_is_refused_only_where_it_is_used() {
    let json = [("content-type", "application/json")];
    for query in ["?source=", "?type=", "?source=a&source=b", "?source=%FF", "?type=a%00"] {
        assert_eq!(refusal(read(&json, query, b"1")).0, Slug::Malformed, "{query}");
        assert!(read(&json, query, EVENT.as_bytes()).is_ok(), "{query}");
    }
}

#[test]
fn an_empty_batch_is_no_mistake_and_an_empty_item_is() {
    for (content_type, body) in [
        ("application/json", "[]"),
        ("application/cloudevents-batch+json", " [ ] "),
        ("application/x-ndjson", ""),
        ("application/x-ndjson", "\n \r\n"),
    ] {
        assert!(typed(content_type, body).unwrap().batch.is_empty(), "{content_type}");
    }
    for content_type in
        ["application/json", "application/cloudevents+json", "application/cloudevents-batch+json"]
    {
        assert_eq!(refusal(typed(content_type, "")).0, Slug::Malformed, "{content_type}");
    }
}

#[test]
fn a_broken_batch_names_each_item_at_fault() {
    let at_fault = |content_type: &str, body: &str| {
        let (slug, indexes) = refusal(typed(content_type, body));
        assert_eq!(slug, Slug::Malformed, "{body}");
        indexes
    };
    let bad = r#"{"specversion":"1.0"}"#;
    let batch = "application/cloudevents-batch+json";
    assert_eq!(at_fault(batch, &format!("[{EVENT},{bad},5,{EVENT},[]]")), [1, 2, 4]);
    assert_eq!(at_fault("application/json", &format!("[1,{bad},{EVENT}]")), [1]);
    assert_eq!(at_fault("application/x-ndjson", &format!("1\n\n{bad}\n{{\n2\n")), [1, 2]);
    assert_eq!(at_fault(batch, &format!("[{EVENT},{EVENT}")), [2]);
    assert_eq!(at_fault(batch, &format!("[{EVENT},]")), [1]);
    assert_eq!(at_fault(batch, &format!("[{EVENT}] x")), [1]);
    assert_eq!(at_fault(batch, EVENT), [0usize; 0]);
    assert_eq!(at_fault("application/json", "{"), [0usize; 0]);
    let many = format!("[{}]", vec![bad; 300].join(","));
    assert_eq!(at_fault(batch, &many), (0..100).collect::<Vec<_>>());
    let lines = format!("{bad}\n").repeat(300);
    assert_eq!(at_fault("application/x-ndjson", &lines), (0..100).collect::<Vec<_>>());
}

/// A form feed is no white space in JSON: such a line is an item at fault, and counts.
#[test]
fn the_line_that_is_not_utf_8_is_named_by_the_items_before_it() {
    let lines = [("content-type", "application/x-ndjson")];
    assert_eq!(refusal(read(&lines, "", b"1\n\x0c\n \t\r\n\"\xff\"\n")), (Slug::Malformed, vec![2]));
}

#[test]
fn what_is_not_utf_8_is_refused() {
    assert_eq!(refusal(read(&[("content-type", "application/json")], "", b"\"\xff\"")).0, Slug::Malformed);
    let lines = [("content-type", "application/x-ndjson")];
    assert_eq!(refusal(read(&lines, "", b"1\n\n2\n\"a\xff\"\n")), (Slug::Malformed, vec![2]));
    assert_eq!(refusal(read(&lines, "", b"\xff")), (Slug::Malformed, vec![0]));
}

#[test]
fn an_event_over_the_limit_is_too_large_in_every_form() {
    let data = "x".repeat(LIMITS.max_event);
    let event = EVENT.replace("1.0}", &format!("\"{data}\"}}"));
    for (content_type, body) in [
        ("application/cloudevents+json", event.clone()),
        ("application/cloudevents-batch+json", format!("[{EVENT},{event}]")),
        ("application/json", format!("\"{data}\"")),
        // The text counts, and an event of our own making is longer than its data.
        ("application/json", format!("\"{}\"", &data[..LIMITS.max_event - 2])),
        ("application/x-ndjson", format!("1\n\"{data}\"\n")),
    ] {
        assert_eq!(refusal(typed(content_type, &body)).0, Slug::TooLarge, "{content_type}");
    }
    let binary = [("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t"), ("ce-specversion", "1.0")];
    assert_eq!(refusal(read(&binary, "", data.as_bytes())).0, Slug::TooLarge);
}

#[test]
fn a_body_that_would_grow_beyond_a_segment_is_refused_while_it_grows() {
    let lines = "1\n".repeat(LIMITS.max_batch);
    assert_eq!(refusal(typed("application/x-ndjson", &lines)).0, Slug::TooLarge);
    let array = format!("[{}1]", "1,".repeat(LIMITS.max_batch));
    assert_eq!(refusal(typed("application/json", &array)).0, Slug::TooLarge);
}

fn binary(more: &[(&str, &str)], body: &[u8]) -> Result<String, Slug> {
    let mut headers = vec![("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t"), ("ce-specversion", "1.0")];
    headers.extend_from_slice(more);
    match read(&headers, "", body) {
        Ok(decoded) => {
            assert!(decoded.id.is_some());
            Ok(texts(&decoded)
                .remove(0)
                .replace(r#"{"specversion":"1.0","id":"1","source":"/s","type":"t""#, "{…"))
        }
        Err(problem) => Err(problem.slug()),
    }
}

#[test]
fn binary_data_is_kept_by_its_media_type() {
    let data = |content_type: &str, body: &[u8]| {
        let headers = [("content-type", content_type)];
        let text = binary(if content_type.is_empty() { &[] } else { &headers }, body)?;
        Ok(text.replace(&format!(r#","datacontenttype":"{content_type}""#), ",T"))
    };
    for (content_type, body, expected) in [
        ("application/json", &b" {\"b\": 1.0}\n"[..], r#"{…,T,"data":{"b": 1.0}}"#),
        ("application/json; charset=x", b"[]", r#"{…,T,"data":[]}"#),
        ("text/json", b"null", r#"{…,T,"data":null}"#),
        ("image/svg+json", b"1", r#"{…,T,"data":1}"#),
        ("application/json", br#"{"specversion":"7"}"#, r#"{…,T,"data":{"specversion":"7"}}"#),
        ("application/json", b"", "{…,T}"),
        ("text/plain", b"a\"b\n", r#"{…,T,"data":"a\"b\n"}"#),
        ("application/xml", b"<a/>", r#"{…,T,"data":"<a/>"}"#),
        ("image/svg+xml", b"<a/>", r#"{…,T,"data":"<a/>"}"#),
        ("text/plain", b"\xff", r#"{…,T,"data_base64":"/w=="}"#),
        ("application/octet-stream", b"ab", r#"{…,T,"data_base64":"YWI="}"#),
        ("", b"{}", r#"{…,"data_base64":"e30="}"#),
        ("", b"", "{…}"),
    ] {
        assert_eq!(data(content_type, body), Ok(expected.to_owned()), "{content_type}");
    }
    for body in [&b"{"[..], b"\"\xff\"", b"1 2", b" ", br#""\ud800""#] {
        assert_eq!(data("application/json", body), Err(Slug::Malformed));
    }
}

#[test]
fn binary_attributes_are_unquoted_then_decoded_exactly_once() {
    for (sent, kept) in [
        ("plain", "plain"),
        ("Euro %E2%82%AC %F0%9F%98%80", "Euro € 😀"),
        ("%2541", "%41"),
        ("100% %zz %4", "100% %zz %4"),
        (r#""a b""#, "a b"),
        (r#""a\"b\\c""#, r#"a"b\c"#),
        (r#""%22x%22""#, r#""x""#),
        ("%22x%22", r#""x""#),
        (r#"a "b" c"#, r#"a "b" c"#),
        (r#""half"#, r#""half"#),
        ("é", "é"),
        ("", ""),
    ] {
        let text = binary(&[("ce-ext", sent)], b"").unwrap();
        let event: Value = serde_json::from_str(&text.replace("{…,", "{")).unwrap();
        assert_eq!(event["ext"], kept, "{sent}");
    }
    for (name, sent) in [
        ("ce-ext", "%FF"),
        ("ce-ext", "%C3"),
        ("ce-ext", "%00"),
        ("ce-ext", "%0A"),
        ("ce-id", "2"),
        ("ce-my_ext", "x"),
        ("ce-my-ext", "x"),
        ("ce-", "x"),
        ("ce-data", "x"),
        ("ce-datacontenttype", "text/plain"),
        ("ce-subject", ""),
        ("ce-time", "yesterday"),
        ("ce-specversion", "1.0"),
    ] {
        assert_eq!(binary(&[(name, sent)], b""), Err(Slug::Malformed), "{name}: {sent}");
    }
    assert_eq!(
        binary(&[("ce-time", "2024-01-01T00:00:00+01:00"), ("ce-eventflowoffset", "5")], b""),
        Ok(r#"{…,"time":"2024-01-01T00:00:00+01:00"}"#.to_owned())
    );
}

#[test]
fn every_required_header_is_required() {
    let all = [("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t"), ("ce-specversion", "1.0")];
    for at in 0..all.len() {
        let mut some = all.to_vec();
        some.remove(at);
        assert_eq!(refusal(read(&some, "", b"")).0, Slug::Malformed);
        some.push((all[at].0, if all[at].0 == "ce-specversion" { "0.3" } else { "" }));
        assert_eq!(refusal(read(&some, "", b"")).0, Slug::Malformed);
    }
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("1e400".to_owned()),
        "-?[1-9][0-9]{0,30}(\\.[0-9]{1,5})?",
        any::<String>().prop_map(|s| Value::String(s).to_string()),
    ];
    leaf.prop_recursive(4, 20, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|v| format!("[ {}\n]", v.join(" , "))),
            prop::collection::vec(("\\PC{0,4}", inner), 0..4).prop_map(|v| {
                let members = v.into_iter().map(|(k, v)| format!("{} :{v}", Value::String(k)));
                format!("{{{}\t}}", members.collect::<Vec<_>>().join(",\r\n"))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn data_keeps_its_bytes_in_every_form(items in prop::collection::vec(json(), 1..4)) {
        let event = |data: &str| EVENT.replace(r#"{"b":1,"a":1.0}"#, data);
        let events: Vec<String> = items.iter().map(|data| event(data)).collect();
        let batch = format!("[{}]", events.join(" ,"));
        prop_assert_eq!(texts(&typed("application/cloudevents-batch+json", &batch).unwrap()), &events[..]);
        prop_assert_eq!(texts(&typed("application/json", &events[0]).unwrap()), &events[..1]);
        let plain = texts(&typed("application/json", &format!("[{}]", items.join(","))).unwrap());
        for (text, data) in plain.iter().zip(&items) {
            prop_assert!(text.ends_with(&format!(r#""data":{data}}}"#)), "{}", text);
        }
        let headers = [("content-type", "application/json")];
        let text = binary(&headers, items[0].as_bytes()).unwrap();
        prop_assert!(text.ends_with(&format!(r#""data":{}}}"#, items[0])), "{}", text);
    }

    #[test]
    fn no_body_makes_decoding_panic_and_what_is_taken_is_an_event(
        body in prop::collection::vec(prop_oneof![Just(b'"'), Just(b'{'), Just(b'}'), Just(b'['), Just(b']'),
            Just(b','), Just(b':'), Just(b'\n'), Just(b'1'), Just(b'\\'), any::<u8>()], 0..40),
        kind in 0..5usize,
    ) {
        let kinds = ["application/json", "application/x-ndjson", "application/cloudevents+json",
            "application/cloudevents-batch+json", "text/plain"];
        let mut headers = vec![("content-type", kinds[kind])];
        if kind == 4 {
            headers.extend([("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t"), ("ce-specversion", "1.0")]);
        }
        if let Ok(decoded) = read(&headers, "", &body) {
            for text in texts(&decoded) {
                let mut members = Vec::new();
                prop_assert!(matches!(cloudevent::read_item(&text, true, &mut members), Ok(Item::Event(_))));
            }
        }
    }
}

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// `traceparent` and `tracestate` of the first event.
fn trace(headers: &[(&str, &str)], body: &str) -> (Option<String>, Option<String>) {
    let headers = [headers, &[("traceparent", TRACE), ("tracestate", "a=1"), ("tracestate", "b=2")]].concat();
    let event: Value =
        serde_json::from_str(&texts(&read(&headers, "", body.as_bytes()).unwrap())[0]).unwrap();
    (event["traceparent"].as_str().map(str::to_owned), event["tracestate"].as_str().map(str::to_owned))
}

#[test]
fn an_event_that_comes_alone_and_brings_no_trace_belongs_to_the_requests() {
    let json = [("content-type", "application/json")];
    let lines = [("content-type", "application/x-ndjson")];
    let binary = [("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t"), ("ce-specversion", "1.0")];
    let traced = (Some(TRACE.to_owned()), Some("a=1,b=2".to_owned()));
    for (headers, body) in [(&json[..], "1"), (&json, "[1]"), (&lines, "1\n"), (&binary, ""), (&binary, "{}")]
    {
        assert_eq!(trace(headers, body), traced, "{body}");
    }
    // Of several, no one is the request's; a structured event is kept as it was spelled.
    for (headers, body) in [(&json, "[1,2]"), (&lines, "1\n2\n"), (&json, EVENT)] {
        assert_eq!(trace(headers, body), (None, None), "{body}");
    }
    let own = [&binary[..], &[("ce-traceparent", "its own")]].concat();
    assert_eq!(trace(&own, ""), (Some("its own".to_owned()), None));
    let broken = [("content-type", "application/json"), ("traceparent", "00-broken")];
    assert!(
        !texts(&read(&broken, "", b"1").unwrap())[0].contains("trace"),
        "no trace, and no reason to refuse"
    );
    let two = [("content-type", "application/json"), ("traceparent", TRACE), ("traceparent", TRACE)];
    assert!(!texts(&read(&two, "", b"1").unwrap())[0].contains("trace"));
}
