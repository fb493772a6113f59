//! However lines are cut out of a body, each is judged as it would be alone.
//!
//! * A body is accepted when every line that is not blank is, and then it is these events in this order, as
//!   a reading line by line makes them. If not, the items at fault are named by position and line.
//! * Cut in two at any line break it is the same events and the same verdict.
//! * The same items in a JSON array are the same events.
//! * The stamp of an archive line is found at the end of a line or not at all, and replaying what is no whole
//!   event appends nothing.
//!
//! The input is the body.

use bytes::Bytes;
use eventflow::event::{cloudevent, stamp, write_replayed};
use eventflow::http::decode::{EventLimits, Form, Head, decode};

use super::decoder::{NOW, Refusal, check_events, string};

/// What one line may be is small, so that it is met; what all of them may be is not looked at here.
const LIMITS: EventLimits = EventLimits { max_event: 2048, max_batch: 1 << 30 };
/// Cuts that are tried; a body of many lines would take quadratic time.
const MOST_CUTS: usize = 8;
/// More items at fault are not named.
const MOST_NAMED: usize = 100;

/// What became of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// Events by their members, without an id that was made up.
    Events(Vec<Vec<(String, String)>>),
    /// The items at these positions are at fault.
    Faults(Vec<usize>),
    TooLarge,
}

/// See the module.
pub fn check(data: &[u8]) {
    data.split(|byte| *byte == b'\n').for_each(check_stamp);
    let lines: Vec<(usize, &[u8])> =
        (1..).zip(data.split(|byte| *byte == b'\n').map(trim)).filter(|(_, line)| !line.is_empty()).collect();
    let whole = verdict(Form::Lines, data, &lines);
    let Ok(text) = std::str::from_utf8(data) else {
        let at_fault = lines.iter().position(|(_, line)| std::str::from_utf8(line).is_err());
        return assert_eq!(whole, Verdict::Faults(at_fault.into_iter().collect()), "another line is no text");
    };
    assert_eq!(whole, one_by_one(&lines), "together lines are judged otherwise than alone");
    for (at, _) in text.match_indices('\n').take(MOST_CUTS) {
        check_cut(text, at, &whole);
    }
    if let Verdict::Events(_) = whole {
        let items: Vec<&[u8]> = lines.iter().map(|(_, line)| *line).collect();
        let array = [b"[", &*items.join(&b"\n,"[..]), b"]"].concat();
        assert_eq!(verdict(Form::Json, &array, &[]), whole, "an array of the same items is judged otherwise");
    }
}

/// Without JSON's white space around it.
fn trim(line: &[u8]) -> &[u8] {
    let is_token = |byte: &u8| !matches!(byte, b' ' | b'\t' | b'\r');
    let start = line.iter().position(is_token).unwrap_or(line.len());
    let end = line.iter().rposition(is_token).map_or(start, |last| last + 1);
    &line[start..end]
}

fn verdict(form: Form, body: &[u8], lines: &[(usize, &[u8])]) -> Verdict {
    let is_text = std::str::from_utf8(body).is_ok();
    match decode(&Head::plain(form), Bytes::copy_from_slice(body), NOW, LIMITS) {
        Ok(decoded) => {
            check_events(&decoded);
            Verdict::Events(decoded.batch.iter().map(|(_, text)| members(text)).collect())
        }
        Err(problem) => {
            let refusal = Refusal::read(&problem.to_wire(false, None));
            if refusal.is_too_large {
                return Verdict::TooLarge;
            }
            for (index, detail) in refusal.items.iter().filter(|_| is_text && !lines.is_empty()) {
                let (number, _) = lines[*index];
                assert!(detail.starts_with(&format!("line {number}: ")), "it is line {number}: {detail}");
            }
            Verdict::Faults(refusal.items.into_iter().map(|(index, _)| index).collect())
        }
    }
}

fn members(text: &[u8]) -> Vec<(String, String)> {
    let text = std::str::from_utf8(text).expect("an accepted event is text");
    let mut members = cloudevent::members(text).expect("an accepted event has members");
    if string(&members, "source").as_deref() == Some("/eventflow") {
        members.retain(|(name, _)| name != "id");
    }
    members.into_iter().map(|(name, raw)| (name.into_owned(), raw.to_owned())).collect()
}

fn one_by_one(lines: &[(usize, &[u8])]) -> Verdict {
    let (mut events, mut faults) = (Vec::new(), Vec::new());
    for (index, (_, line)) in lines.iter().enumerate() {
        match verdict(Form::Lines, line, &[]) {
            Verdict::Events(one) => events.extend(one),
            Verdict::Faults(_) if faults.len() + 1 == MOST_NAMED => {
                faults.push(index);
                break;
            }
            Verdict::Faults(_) => faults.push(index),
            Verdict::TooLarge => return Verdict::TooLarge,
        }
    }
    if faults.is_empty() { Verdict::Events(events) } else { Verdict::Faults(faults) }
}

/// Two requests of a body each, cut where a line ends.
fn check_cut(text: &str, at: usize, whole: &Verdict) {
    let (first, second) = (&text.as_bytes()[..at], &text.as_bytes()[at + 1..]);
    let before = first.split(|byte| *byte == b'\n').filter(|line| !trim(line).is_empty()).count();
    let parts = (verdict(Form::Lines, first, &[]), verdict(Form::Lines, second, &[]));
    let joined = match (parts, whole) {
        (_, Verdict::TooLarge) => return,
        (_, Verdict::Faults(all)) if all.len() >= MOST_NAMED => return,
        ((Verdict::Events(first), Verdict::Events(second)), _) => Verdict::Events([first, second].concat()),
        ((Verdict::Faults(first), Verdict::Faults(second)), _) => {
            Verdict::Faults(first.into_iter().chain(second.into_iter().map(|index| index + before)).collect())
        }
        ((Verdict::Faults(first), _), _) => Verdict::Faults(first),
        ((_, Verdict::Faults(second)), _) => {
            Verdict::Faults(second.into_iter().map(|index| index + before).collect())
        }
        ((_, _), _) => Verdict::TooLarge,
    };
    assert_eq!(joined, *whole, "cut at {at} it is judged otherwise");
}

fn check_stamp(line: &[u8]) {
    let Some(stamp) = stamp(line) else { return };
    assert!(line[stamp.text_bytes..].starts_with(b",\"eventflowoffset\":\""), "the stamp is elsewhere");
    let mut out = b"before".to_vec();
    match write_replayed(&mut out, line, &stamp) {
        Some(()) => {
            drop(cloudevent::members(std::str::from_utf8(&out[6..]).expect("text")).expect("an object"))
        }
        None => assert_eq!(out, b"before", "what is no event was written"),
    }
}
