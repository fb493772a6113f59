//! The lines that a program answers with, one for each event.
//!
//! Pure code.

use std::time::Duration;

use serde::Deserialize;

use crate::sink::Outcome;

/// Which event an answer is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Which {
    Offset(u64),
    Id(String),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    offset: Option<Offset>,
    id: Option<String>,
    outcome: Word,
    reason: Option<String>,
    retry_after: Option<u32>,
}

/// `"7"`, as the event says it, or `7`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Offset {
    Number(u64),
    Text(String),
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Word {
    Delivered,
    Retry,
    Reject,
}

/// Reads one line. The error says what is wrong with it.
pub(super) fn read(line: &[u8]) -> Result<(Which, Outcome), String> {
    let line: Line = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let which = match (line.offset, line.id) {
        (Some(Offset::Number(offset)), _) => Which::Offset(offset),
        (Some(Offset::Text(text)), _) => {
            Which::Offset(text.parse().map_err(|_| format!("`offset` is no number: {text}"))?)
        }
        (None, Some(id)) => Which::Id(id),
        (None, None) => return Err("neither `offset` nor `id`".to_owned()),
    };
    let reason = line.reason.unwrap_or_else(|| "the program gave no reason".to_owned());
    let outcome = match line.outcome {
        Word::Delivered => Outcome::Delivered,
        Word::Retry => {
            let retry_after = line.retry_after.map(|seconds| Duration::from_secs(u64::from(seconds)));
            Outcome::Retry { reason, retry_after }
        }
        Word::Reject => Outcome::Reject { reason },
    };
    Ok((which, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_its_event_by_offset_or_id() {
        let read = |text: &str| read(text.as_bytes());
        assert_eq!(read(r#"{"offset":7,"outcome":"delivered"}"#), Ok((Which::Offset(7), Outcome::Delivered)));
        assert_eq!(
            read(r#"{"offset":"7","id":"x","outcome":"delivered"}"#),
            Ok((Which::Offset(7), Outcome::Delivered))
        );
        assert_eq!(
            read(r#"{"id":"a","outcome":"reject","reason":"no"}"#),
            Ok((Which::Id("a".to_owned()), Outcome::Reject { reason: "no".to_owned() }))
        );
        assert_eq!(
            read(r#"{"id":"a","outcome":"retry","reason":"no","retry_after":3}"#),
            Ok((
                Which::Id("a".to_owned()),
                Outcome::Retry { reason: "no".to_owned(), retry_after: Some(Duration::from_secs(3)) }
            ))
        );
        for wrong in [
            "",
            "ok",
            "{}",
            r#"{"outcome":"delivered"}"#,
            r#"{"id":"a"}"#,
            r#"{"id":"a","outcome":"done"}"#,
            r#"{"offset":-1,"outcome":"retry"}"#,
            r#"{"offset":1,"outcome":"retry","resaon":"x"}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
