//! Trace context (W3C Trace Context, level 1) as the extension attributes `traceparent` and `tracestate` of
//! CloudEvents. Pure. What is no valid `traceparent` is no trace, as the recommendation says; never an error.

use super::cloudevent;

/// Longest `tracestate` that is kept, in bytes: what the recommendation asks everybody to pass on.
const MAX_STATE_BYTES: usize = 512;

/// The names of the attributes, and of the headers.
pub const PARENT: &str = "traceparent";
/// The other one.
pub const STATE: &str = "tracestate";

/// Where a trace stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    parent: String,
    state: Option<String>,
}

impl Trace {
    /// The trace that these two fields tell, if they do. A `state` that cannot be kept is left out.
    pub fn read(parent: &[u8], state: Option<&[u8]>) -> Option<Self> {
        let parent = std::str::from_utf8(parent.trim_ascii()).ok().filter(|text| is_parent(text))?.to_owned();
        let state = state.and_then(|state| std::str::from_utf8(state.trim_ascii()).ok());
        let can_be_kept = |state: &&str| {
            !state.is_empty()
                && state.len() <= MAX_STATE_BYTES
                && state.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
        };
        Some(Self { parent, state: state.filter(can_be_kept).map(str::to_owned) })
    }

    /// The trace of a stored event.
    pub fn of_event(json: &[u8]) -> Option<Self> {
        memchr::memmem::find(json, PARENT.as_bytes())?; // most have none, and are not parsed for it
        let members = cloudevent::members(std::str::from_utf8(json).ok()?).ok()?;
        let value = |wanted: &str| {
            let (_, raw) = members.iter().find(|(name, _)| name == wanted)?;
            serde_json::from_str::<String>(raw).ok()
        };
        Self::read(value(PARENT)?.as_bytes(), value(STATE).as_deref().map(str::as_bytes))
    }

    /// Names and values, as attributes and as headers.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        let state = self.state.as_deref().map(|state| (STATE, state));
        std::iter::once((PARENT, &*self.parent)).chain(state)
    }
}

/// `version-trace-parent-flags` in lower-case hexadecimal; a later version may go on behind another hyphen.
fn is_parent(text: &str) -> bool {
    let bytes = text.as_bytes();
    let digits = |range: std::ops::Range<usize>| {
        let part = bytes.get(range)?;
        part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')).then_some(part)
    };
    let is_something = |part: &[u8]| part.iter().any(|b| *b != b'0');
    let (Some(version), Some(trace), Some(span), Some(_)) =
        (digits(0..2), digits(3..35), digits(36..52), digits(53..55))
    else {
        return false;
    };
    let ends = match version {
        b"ff" => false,
        b"00" => bytes.len() == 55,
        _ => bytes.len() == 55 || (bytes[55] == b'-' && bytes.len() <= 256 && bytes.is_ascii()),
    };
    ends && [2, 35, 52].iter().all(|at| bytes[*at] == b'-') && is_something(trace) && is_something(span)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_what_the_recommendation_says() {
        for good in [GOOD, &GOOD.replacen("00", "cc", 1), &(GOOD.replacen("00", "01", 1) + "-more")] {
            assert!(Trace::read(good.as_bytes(), None).is_some(), "{good}");
        }
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &(GOOD.to_owned() + "-more"),
            &(GOOD.to_owned() + "0"),
            &GOOD.to_uppercase(),
            &GOOD.replacen("00", "ff", 1),
            &GOOD.replace('-', "_"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            &GOOD.replace('0', "é"),
        ] {
            assert_eq!(Trace::read(bad.as_bytes(), None), None, "{bad}");
        }
    }

    #[test]
    fn a_state_that_cannot_be_kept_costs_the_state_only() {
        let fields = |state: &[u8]| {
            let trace = Trace::read(GOOD.as_bytes(), Some(state)).unwrap();
            trace.fields().map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<Vec<_>>()
        };
        assert_eq!(
            fields(b"a=1, b=2"),
            [(PARENT.to_owned(), GOOD.to_owned()), (STATE.to_owned(), "a=1, b=2".to_owned())]
        );
        for bad in [&b""[..], &[b'a'; MAX_STATE_BYTES + 1], b"a=\xff", b"a=\t1"] {
            assert_eq!(fields(bad).len(), 1);
        }
    }

    #[test]
    fn an_event_tells_its_trace_whatever_its_spelling() {
        let event =
            |rest: &str| format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t"{rest}}}"#);
        let of = |rest: &str| Trace::of_event(event(rest).as_bytes());
        assert_eq!(of(""), None);
        assert_eq!(of(r#","traceparent":"nonsense""#), None);
        assert_eq!(of(&format!(r#","data":{{"traceparent":"{GOOD}"}}"#)), None);
        let expected = Trace::read(GOOD.as_bytes(), Some(b"a=1"));
        assert_eq!(of(&format!(r#","traceparent":"{GOOD}","tracestate":"a\u003d1""#)), expected);
    }
}
