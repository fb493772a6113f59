use super::*;
use proptest::prelude::*;

fn structured(text: &str) -> Result<(String, String, bool), String> {
    let mut members = Vec::new();
    match read_item(text, true, &mut members) {
        Ok(Item::Event(e)) => Ok((e.source.to_string(), e.id.to_string(), e.verbatim)),
        Ok(Item::Value(_)) => unreachable!("asked for a structured event"),
        Err(e) => Err(e.to_string()),
    }
}

/// An event with more members behind the required ones.
fn with(more: &str) -> String {
    format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t"{more}}}"#)
}

#[test]
fn a_tag_is_the_same_for_ever_and_tells_fields_apart() {
    // Stored with every record: if this changes, duplicates are no longer found across an update.
    assert_eq!(dedupe_tag("/s", "1"), GOLDEN_TAG);
    assert_ne!(dedupe_tag("ab", "c"), dedupe_tag("a", "bc"));
    assert_ne!(dedupe_tag("a", "b"), dedupe_tag("b", "a"));
    assert_ne!(dedupe_tag("", ""), 0);
}
const GOLDEN_TAG: u128 = 79_271_779_189_491_899_889_536_555_575_712_130_806;

#[test]
fn valid_events_are_kept_as_they_are() {
    for more in [
        "",
        r#","subject":"x","time":"2024-01-01T00:00:00Z","dataschema":"http://x/y""#,
        r#","ext":"","flag":true,"number":-2147483648,"n0":-0"#,
        r#","data":null"#,
        r#","data":{"a":1,"a":2,"b":1e999999,"c":123456789012345678901234567890}"#,
        r#","data_base64":"AAE=""#,
        r#","data_base64":"""#,
        r#","datacontenttype":"text/plain","data":"😀""#,
        r#","data":"\ud83d\ude00""#,
        "\n , \"x\" : \"y\"\r\n",
    ] {
        assert_eq!(structured(&with(more)), Ok(("/s".into(), "1".into(), true)), "{more}");
    }
    assert_eq!(
        structured(r#"{"specversion":"1.0","\u0069d":"\u00e9","source":"a\/b","type":"t"}"#),
        Ok(("a/b".into(), "é".into(), true))
    );
}

#[test]
fn what_is_no_valid_event_is_refused() {
    for more in [
        r#","id":"2""#,
        r#","x":"1","x":"1""#,
        r#","data":1,"data":1"#,
        r#","data":1,"data_base64":"""#,
        r#","data":null,"data_base64":"""#,
        r#","data_base64":"A""#,
        r#","data_base64":"AA==AAAA""#,
        r#","data_base64":"A-_A""#,
        r#","data_base64":5"#,
        r#","Ext":"x""#,
        r#","my_ext":"x""#,
        r#","":"x""#,
        r#","é":"x""#,
        r#","Ext":null"#,
        r#","ext":{}"#,
        r#","ext":[]"#,
        r#","ext":1.5"#,
        r#","ext":1e3"#,
        r#","ext":2147483648"#,
        r#","ext":"a\nb""#,
        r#","ext":"\u0000""#,
        r#","ext":"\u007f""#,
        r#","ext":"\uffff""#,
        r#","ext":"\ud800""#,
        r#","data":"\ud800""#,
        r#","data":"\udc00\ud800""#,
        r#","data":{"x\udfff":1}"#,
        r#","data":"\ud83d\u0041""#,
        r#","subject":"""#,
        r#","subject":5"#,
        r#","datacontenttype":"""#,
        r#","dataschema":"""#,
        r#","dataschema":false"#,
        r#","time":"yesterday""#,
        r#","time":5"#,
        r#","data":01"#,
        r#","data":"#,
        "} x",
        "}{",
        r#","data":"a	b""#,
    ] {
        assert!(structured(&with(more)).is_err(), "{more}");
    }
    for text in [
        "",
        "5",
        "[]",
        "{}",
        "null",
        r#"{"specversion":"0.3","id":"1","source":"/s","type":"t"}"#,
        r#"{"specversion":1.0,"id":"1","source":"/s","type":"t"}"#,
        r#"{"specversion":null,"id":"1","source":"/s","type":"t"}"#,
        r#"{"specversion":"1.0","source":"/s","type":"t"}"#,
        r#"{"specversion":"1.0","id":"","source":"/s","type":"t"}"#,
        r#"{"specversion":"1.0","id":7,"source":"/s","type":"t"}"#,
        r#"{"specversion":"1.0","id":"1","source":"","type":"t"}"#,
        r#"{"specversion":"1.0","id":"1","source":"/s","type":null}"#,
        r#"{"id":"1","source":"/s","type":"t"}"#,
    ] {
        assert!(structured(text).is_err(), "{text}");
    }
}

#[test]
fn many_members_are_checked_for_repeats_too() {
    let many: String = (0..40).map(|i| format!(r#","x{i}":{i}"#)).collect();
    assert!(structured(&with(&many)).is_ok());
    assert!(structured(&with(&format!(r#"{many},"x7":0"#))).is_err());
}

#[test]
fn unset_and_reserved_attributes_go_and_the_rest_keeps_its_bytes() {
    let text = with(
        r#", "subject" : null,"eventflowoffset":"5","data": { "b": 1.0, "a" :null } ,"data_base64":null,"eventflowtime":"2024-01-01T00:00:00Z""#,
    );
    let mut members = Vec::new();
    let Ok(Item::Event(event)) = read_item(&text, false, &mut members) else { panic!("valid") };
    assert!(!event.verbatim);
    let mut out = Vec::new();
    render_without_unset(&mut out, &members);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        r#"{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{ "b": 1.0, "a" :null }}"#
    );
}

#[test]
fn an_object_is_an_event_only_with_specversion() {
    let mut members = Vec::new();
    assert_eq!(read_item(" {\"a\":1} ", false, &mut members), Ok(Item::Value("{\"a\":1}")));
    assert_eq!(read_item("\n5\n", false, &mut members), Ok(Item::Value("5")));
    assert!(read_item(r#"{"specversion":"1.0"}"#, false, &mut members).is_err());
    assert!(read_item(r#"{"\u0073pecversion":"1.0"}"#, false, &mut members).is_err());
    assert!(read_item("", false, &mut members).is_err());
    assert!(read_item(r#""\ud800""#, false, &mut members).is_err());
}

#[test]
fn depth_is_bounded_and_brackets_in_strings_do_not_count() {
    let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let reads = |text: &str| read_item(text, false, &mut Vec::new()).is_ok();
    assert!(reads(&nested(MAX_DEPTH - 1)));
    assert!(!reads(&nested(MAX_DEPTH)));
    assert!(!reads(&nested(1_000_000)));
    assert!(!reads(&"[".repeat(1_000_000)));
    assert!(reads(&format!("[{}[]]", "{},".repeat(300))));
    assert!(reads(&format!(r#"["\"{}",[]]"#, "[{".repeat(300))));
}

#[test]
fn plain_data_is_never_so_deep_that_its_event_would_not_be_accepted() {
    let is_event =
        |data: &str| read_item(&with(&format!(r#","data":{data}"#)), true, &mut Vec::new()).is_ok();
    for (open, close) in [("[", "]"), (r#"{"a":"#, "}"), (r#"{"\u0061":"#, "}")] {
        let nested = |n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
        for depth in [MAX_DEPTH - 2, MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1] {
            let data = nested(depth);
            let expected = is_event(&data);
            assert_eq!(expected, depth < MAX_DEPTH);
            assert_eq!(read_item(&data, false, &mut Vec::new()).is_ok(), expected, "{depth} of {open}");
            assert_eq!(read_value(&data).is_ok(), expected, "{depth} of {open}, as a body");
        }
    }
}

#[test]
fn rendering_escapes_text_and_keeps_json() {
    let render = |data| {
        let mut out = Vec::new();
        super::render(&mut out, [("id", "a\"b"), ("source", "é")], data);
        String::from_utf8(out).unwrap()
    };
    let head = r#"{"specversion":"1.0","id":"a\"b","source":"é""#;
    assert_eq!(render(Data::None), format!("{head}}}"));
    assert_eq!(render(Data::Json("[ 1.00 ]")), format!(r#"{head},"data":[ 1.00 ]}}"#));
    assert_eq!(render(Data::Text("a\n\u{1}")), format!(r#"{head},"data":"a\n\u0001"}}"#));
    assert_eq!(render(Data::Bytes(&[0, 255])), format!(r#"{head},"data_base64":"AP8="}}"#));
}

#[test]
fn attributes_are_found_for_filters() {
    let found = Attributes::of(br#"{"specversion":"1.0","id":"\u0031","data":{"id":"no"},"source":"/s","type":"t","subject":"x","time":"2024-01-01T00:00:00Z"}"#).unwrap();
    assert_eq!((&*found.id, &*found.source, &*found.event_type), ("1", "/s", "t"));
    assert_eq!(found.subject.as_deref(), Some("x"));
    assert_eq!(found.time.as_deref(), Some("2024-01-01T00:00:00Z"));
    assert_eq!(Attributes::of(b"[]"), None);
    assert_eq!(Attributes::of(b"\xff"), None);
    assert_eq!(Attributes::of(b"{}"), None);
}

/// What the fast reader takes, the general one takes, and finds the same.
fn agree(text: &str) -> Result<(), TestCaseError> {
    let (mut fast, mut general) = (Vec::new(), Vec::new());
    if members_in_common_spelling(text, &mut fast).is_some() {
        let mut reader = serde_json::Deserializer::from_str(text);
        let read = MembersOf(&mut general).deserialize(&mut reader).and_then(|()| reader.end());
        prop_assert!(read.is_ok(), "{text}");
        prop_assert_eq!(fast, general);
        prop_assert!(check_depth(text).is_ok() && check_surrogates(text).is_ok(), "{text}");
    }
    Ok(())
}

#[test]
fn an_ordinary_event_is_read_the_fast_way() {
    for more in ["", r#","data":{"a":[1,{"b":"\n"}]}"#, r#", "time" : "2024-01-01T00:00:00Z" , "n": 5 "#] {
        assert!(members_in_common_spelling(&with(more), &mut Vec::new()).is_some(), "{more}");
    }
}

#[test]
fn the_fast_way_knows_the_depth_and_the_escapes_it_must_not_take() {
    let is_taken =
        |data: &str| members_in_common_spelling(&format!(r#"{{"data":{data}}}"#), &mut Vec::new()).is_some();
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    assert!(is_taken(&nested(MAX_DEPTH - 1)) && !is_taken(&nested(MAX_DEPTH)));
    assert!(is_taken(r#"{"a\"b":["\\",{"c":[]},{}],"d":-0.5e+7}"#));
    for refused in [
        r#""\u00e9""#,
        r#"["\u00e9"]"#,
        r#"["\x"]"#,
        "[1,]",
        "[,1]",
        "{,}",
        r#"{"a"}"#,
        r#"{"a":}"#,
        r#"{"a":1,}"#,
        "[1}",
        "[1",
        "{1:2}",
        "[01]",
        "[1.]",
        "[.5]",
        "[1e]",
        "[-]",
        "[+1]",
        "[nul]",
        "[\"\t\"]",
        "[1 2]",
        "",
    ] {
        assert!(!is_taken(refused), "{refused}");
    }
}

proptest! {
    #[test]
    fn bytes_survive_base64(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
        let mut out = Vec::new();
        super::render(&mut out, [("id", "1"), ("source", "s"), ("type", "t")], Data::Bytes(&bytes));
        let text = String::from_utf8(out).unwrap();
        prop_assert!(structured(&text).is_ok());
        let start = text.find("data_base64\":\"").unwrap() + 14;
        prop_assert_eq!(STANDARD.decode(&text[start..text.len() - 2]).unwrap(), bytes);
    }

    #[test]
    fn text_survives_rendering(value in "\\PC{0,60}", data in any::<String>()) {
        let mut out = Vec::new();
        super::render(&mut out, [("id", "1"), ("source", "s"), ("type", "t"), ("x", &value)], Data::Text(&data));
        let back: serde_json::Value = serde_json::from_slice(&out).unwrap();
        prop_assert_eq!(&back["x"], &value);
        prop_assert_eq!(&back["data"], &data);
    }

    #[test]
    fn the_common_spelling_reads_as_the_general_reader_does(
        text in prop::collection::vec(
            prop_oneof![
                8 => prop::sample::select(vec![
                    r#""name""#, r#""id""#, r#""a longer name""#, r#""é😀é😀é😀""#, r#""""#, r#""sevenby""#,
                    r#""eightbyt""#, r#""esc\n""#, r#""\ud800""#, "\"tab\t\"", "\"open", "\u{7f}",
                ]),
                6 => prop::sample::select(vec![":", ":", ",", " : ", ", ", "\n", "}", "{", "[", "]", " "]),
                3 => prop::sample::select(vec!["1", "-0", "21.5", "1e9", "01", "1.", "-", "2E-3", "null", "true", "tru", "{}", "[1,2]", "[[", "]]", r#"{"a":"}"}"#, r#"[{"a":[]},"\t\u0041"]"#]),
            ],
            0..14,
        ),
        wrapped: bool,
    ) {
        let text = if wrapped { format!("{{{}}}", text.concat()) } else { text.concat() };
        agree(&text)?;
    }

    #[test]
    fn an_object_reads_the_same_either_way(
        members in prop::collection::vec(("\\PC{0,20}", "[ -~]{0,20}", any::<bool>()), 0..8),
        cut in any::<prop::sample::Index>(),
        put in any::<u8>(),
    ) {
        let members: Vec<String> = members
            .into_iter()
            .map(|(name, value, spaced)| format!(r#"{}"{name}":"{value}""#, if spaced { " " } else { "" }))
            .collect();
        let text = format!("{{{}}}", members.join(","));
        agree(&text)?;
        let mut broken = text.into_bytes();
        let at = cut.index(broken.len());
        broken[at] = put;
        if let Ok(text) = std::str::from_utf8(&broken) {
            agree(text)?;
        }
    }

    #[test]
    fn no_text_makes_reading_panic(text in "[\\[\\]{}\",:\\\\u0dD8a e\\-1.]{0,60}") {
        let mut members = Vec::new();
        let read = read_item(&text, false, &mut members);
        // Whatever is let in is JSON to everybody else too.
        if read.is_ok() {
            prop_assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok() || text.contains('e'));
        }
    }
}
