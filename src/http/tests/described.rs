//! Holds answers against `docs/openapi.json`; also used by the tests of the real binary.
//!
//! Knows the words of JSON Schema that the document uses, and stops at any other. Stricter than a schema
//! in one way: a member that no schema names is an error, so that no answer grows in silence.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use serde_json::Value;

pub static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../docs/openapi.json")).expect("docs/openapi.json is JSON")
});

/// One answer, as far as the document says anything about it.
#[derive(Debug)]
pub struct Answer<'a> {
    pub status: u16,
    pub content_type: Option<&'a str>,
    pub retry_after: Option<&'a str>,
    pub body: &'a [u8],
}

/// What is wrong with an answer, if anything.
pub fn check(method: &str, target: &str, answer: &Answer<'_>) -> Result<(), String> {
    // What is no HTTP, or too much of it, is answered before anybody knows what it asked.
    if matches!(answer.status, 400 | 431) && answer.body.is_empty() {
        return Ok(());
    }
    let path = target.split('?').next().unwrap_or(target);
    let operation = find(path).map(|item| &item[method.to_ascii_lowercase().as_str()]);
    let described = match operation {
        None => &DOCUMENT["components"]["responses"]["not-found"],
        Some(Value::Null) => &DOCUMENT["components"]["responses"]["method-not-allowed"],
        Some(operation) => resolved(&operation["responses"][answer.status.to_string()]),
    };
    if described.is_null() {
        return Err(format!("the status {} is not described", answer.status));
    }
    if described["headers"]["Retry-After"]["required"] == true {
        let seconds = answer.retry_after.and_then(|text| text.parse::<u64>().ok());
        seconds.filter(|seconds| *seconds >= 1).ok_or("Retry-After is missing")?;
    }
    let Some(content) = described["content"].as_object() else {
        return answer.body.is_empty().then_some(()).ok_or_else(|| "a body is not described".to_owned());
    };
    let media_type = answer.content_type.unwrap_or("none").split(';').next().unwrap_or_default();
    let schema = content.get(media_type).ok_or(format!("the media type {media_type} is not described"))?;
    if !media_type.ends_with("json") {
        return Ok(());
    }
    // Data is kept byte for byte, also where it holds numbers that this parser cannot.
    let body = String::from_utf8_lossy(answer.body).replace("1e400", "1");
    let body = serde_json::from_str(&body).map_err(|error| format!("the body: {error}"))?;
    valid(&schema["schema"], &body, "$").map(drop)
}

/// The path item of an address; one spelled out goes before one with parameters.
fn find(path: &str) -> Option<&'static Value> {
    let fits = |template: &str| {
        let (wanted, found) = (template.split('/'), path.split('/'));
        wanted.clone().count() == found.clone().count()
            && wanted
                .zip(found)
                .all(|(part, found)| part == found || (part.starts_with('{') && !found.is_empty()))
    };
    let paths = DOCUMENT["paths"].as_object().expect("paths");
    paths.get(path).or_else(|| paths.iter().find(|(template, _)| fits(template)).map(|(_, item)| item))
}

fn resolved(value: &'static Value) -> &'static Value {
    match value["$ref"].as_str().and_then(|to| to.strip_prefix('#')) {
        Some(pointer) => DOCUMENT.pointer(pointer).expect("a reference leads somewhere"),
        None => value,
    }
}

/// Checks a value; the names of the members that the schema knows, unless it leaves them open.
fn valid(schema: &'static Value, value: &Value, at: &str) -> Result<Option<BTreeSet<&'static str>>, String> {
    let parts = known(schema, value, at)?;
    if let (Some(known), Some(members)) = (&parts, value.as_object())
        && let Some(stranger) = members.keys().find(|name| !known.contains(name.as_str()))
    {
        return Err(format!("{at}.{stranger} is not described"));
    }
    Ok(parts)
}

fn known(schema: &'static Value, value: &Value, at: &str) -> Result<Option<BTreeSet<&'static str>>, String> {
    let Some(words) = schema.as_object() else { return Ok(None) };
    let mut names = words.contains_key("properties").then(BTreeSet::new);
    for (word, says) in words {
        let holds = match word.as_str() {
            "$ref" => {
                names = known(resolved(schema), value, at)?;
                true
            }
            "allOf" => {
                for part in says.as_array().expect("a list") {
                    names.get_or_insert_default().extend(known(part, value, at)?.unwrap_or_default());
                }
                true
            }
            "properties" => {
                for (name, schema) in says.as_object().expect("a map") {
                    names.get_or_insert_default().insert(name);
                    if let Some(member) = value.get(name) {
                        valid(schema, member, &format!("{at}.{name}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                let listed = schema["properties"].as_object();
                for (name, member) in value.as_object().into_iter().flatten() {
                    if listed.is_none_or(|listed| !listed.contains_key(name)) {
                        valid(says, member, &format!("{at}.{name}"))?;
                    }
                }
                return Ok(None);
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    valid(says, item, &format!("{at}[{index}]"))?;
                }
                true
            }
            "type" => match says {
                Value::Array(any) => any.iter().any(|name| is(name, value)),
                one => is(one, value),
            },
            "required" => says
                .as_array()
                .expect("a list")
                .iter()
                .all(|name| value.get(name.as_str().expect("a name")).is_some()),
            "enum" => says.as_array().expect("a list").contains(value),
            "const" => says == value,
            "minimum" => value.as_f64().is_none_or(|number| number >= says.as_f64().expect("a number")),
            "maximum" => value.as_f64().is_none_or(|number| number <= says.as_f64().expect("a number")),
            // What the daemon was sent is checked on its way in.
            "pattern" | "minLength" | "propertyNames" | "not" | "contentEncoding" => true,
            "description" | "format" => true,
            other => return Err(format!("{at}: this test does not know the word `{other}`")),
        };
        if !holds {
            return Err(format!("{at}: {value} is not as `{word}`: {says} wants it"));
        }
    }
    Ok(names)
}

fn is(name: &Value, value: &Value) -> bool {
    match name.as_str().expect("a type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("the type {other}"),
    }
}
