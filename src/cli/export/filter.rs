//! Which events an export is to hold. Pure.

use std::ops::Range;

use globset::{Glob, GlobMatcher};

use crate::event::Micros;
use crate::event::cloudevent::Attributes;

/// One end of the range: an offset, or a time of acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Bound {
    /// An event's offset.
    Offset(u64),
    /// When it was accepted.
    Time(Micros),
}

impl std::str::FromStr for Bound {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return text
                .parse()
                .map(Bound::Offset)
                .map_err(|_| format!("{text} is beyond the largest offset"));
        }
        let midnight = format!("{text}T00:00:00Z");
        Micros::parse_rfc3339(text).or_else(|| Micros::parse_rfc3339(&midnight)).map(Bound::Time).ok_or_else(
            || "give an offset (42), a time (2025-01-31T12:00:00Z) or a UTC date (2025-01-31)".to_owned(),
        )
    }
}

/// Times of acceptance; an open end is unbounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::cli) struct Times {
    pub start: Option<Micros>,
    pub end: Option<Micros>,
}

/// What an export is to hold.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Filter {
    pub offsets: Range<u64>,
    pub times: Times,
    types: Vec<GlobMatcher>,
    sources: Vec<GlobMatcher>,
}

impl Filter {
    /// Events from `from` on and before `to`, whose type and source match one of the globs each
    /// (any, where there are none).
    pub fn new(
        from: Option<Bound>,
        to: Option<Bound>,
        types: &[String],
        sources: &[String],
    ) -> Result<Self, globset::Error> {
        let mut filter = Self {
            offsets: 0..u64::MAX,
            times: Times::default(),
            types: compile(types)?,
            sources: compile(sources)?,
        };
        match from {
            Some(Bound::Offset(offset)) => filter.offsets.start = offset,
            Some(Bound::Time(time)) => filter.times.start = Some(time),
            None => {}
        }
        match to {
            Some(Bound::Offset(offset)) => filter.offsets.end = offset,
            Some(Bound::Time(time)) => filter.times.end = Some(time),
            None => {}
        }
        Ok(filter)
    }

    /// Whether the range ends before it begins.
    pub fn is_backwards(&self) -> bool {
        let Times { start, end } = self.times;
        self.offsets.start > self.offsets.end || start.zip(end).is_some_and(|(start, end)| start > end)
    }

    /// Whether an event whose offset is in range is wanted. Looks no deeper than it must.
    pub fn wants(&self, accepted_at: impl FnOnce() -> Option<Micros>, json: &[u8]) -> bool {
        if self.times != Times::default() {
            let Some(at) = accepted_at() else { return false };
            if self.times.start.is_some_and(|from| at < from) || self.times.end.is_some_and(|to| at >= to) {
                return false;
            }
        }
        if self.types.is_empty() && self.sources.is_empty() {
            return true;
        }
        let any =
            |globs: &[GlobMatcher], text: &str| globs.is_empty() || globs.iter().any(|g| g.is_match(text));
        Attributes::of(json)
            .is_some_and(|event| any(&self.types, &event.event_type) && any(&self.sources, &event.source))
    }
}

/// `*` stands for any text, dots and slashes included: these are names, not paths.
fn compile(globs: &[String]) -> Result<Vec<GlobMatcher>, globset::Error> {
    globs.iter().map(|glob| Glob::new(glob).map(|glob| glob.compile_matcher())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_an_offset_a_time_or_a_date_and_anything_else_is_explained() {
        assert_eq!("42".parse(), Ok(Bound::Offset(42)));
        assert_eq!("1970-01-02".parse(), Ok(Bound::Time(Micros(86_400_000_000))));
        assert_eq!("1970-01-01T01:00:00+01:00".parse(), Ok(Bound::Time(Micros(0))));
        for bad in ["", "yesterday", "1970-01-32", "99999999999999999999999", "-1"] {
            assert!(bad.parse::<Bound>().is_err(), "{bad}");
        }
    }

    #[test]
    fn from_is_inclusive_and_to_is_not() {
        let time = |t| Some(Bound::Time(Micros(t)));
        let filter = Filter::new(time(10), time(20), &[], &[]).unwrap();
        let wanted: Vec<i64> = (0..30).filter(|t| filter.wants(|| Some(Micros(*t)), b"{}")).collect();
        assert_eq!(wanted, (10..20).collect::<Vec<_>>());
        let filter = Filter::new(Some(Bound::Offset(3)), Some(Bound::Offset(5)), &[], &[]).unwrap();
        assert_eq!(filter.offsets, 3..5);
    }

    #[test]
    fn type_and_source_must_each_match_one_of_their_globs() {
        let globs = |g: &[&str]| g.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>();
        let filter = Filter::new(None, None, &globs(&["com.example.*", "x"]), &globs(&["/a/*"])).unwrap();
        let wants = |ty: &str, source: &str| {
            let json = format!(r#"{{"specversion":"1.0","id":"1","source":"{source}","type":"{ty}"}}"#);
            filter.wants(|| None, json.as_bytes())
        };
        assert!(wants("com.example.order.created", "/a/b/c"));
        assert!(wants("x", "/a/"));
        assert!(!wants("y", "/a/b"));
        assert!(!wants("x", "/b"));
        assert!(Filter::new(None, None, &globs(&["["]), &[]).is_err());
    }
}
