//! What an incoming webhook must bring: its keys, how its signature is made, what its event is called.
//!
//! Pure code, but for [`Hook::keys`], which reads the files that the configuration names: once when it is
//! checked, and once when they come into force.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hyper::header::HeaderName;

use super::settings::{Section, Settings};
use super::{Hidden, SigningKey, read};

/// `[[hook]]`: one sender that is known by its signature, at `POST /v1/hooks/<name>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Its name, and the end of its address.
    pub name: String,
    /// How it signs.
    pub kind: HookKind,
    /// Keys it may sign with; any one will do, so that they can be changed one after the other.
    pub secrets: Vec<Hidden>,
    /// Files that hold one more such key each.
    pub secret_files: Vec<PathBuf>,
    /// How far the time in a signed request may be from ours.
    pub tolerance: Duration,
    /// `source` of its events, in place of what its type takes for one.
    pub source: Option<String>,
    /// `type` of its events where the request does not say.
    pub event_type: String,
}

/// How a sender signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookKind {
    /// GitHub: `X-Hub-Signature-256` over the body.
    GitHub,
    /// Standard Webhooks 1.0: `webhook-id`, `webhook-timestamp`, `webhook-signature`.
    Standard,
    /// Any other HMAC-SHA256.
    Hmac(Hmac),
}

impl HookKind {
    /// The `type` it is configured by.
    pub fn name(&self) -> &'static str {
        match self {
            HookKind::GitHub => "github",
            HookKind::Standard => "standard",
            HookKind::Hmac(_) => "hmac",
        }
    }
}

/// An HMAC-SHA256 of a sender's own fashion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hmac {
    /// The header that holds the signature.
    pub header: String,
    /// What stands before it in there.
    pub prefix: String,
    /// How its bytes are spelled.
    pub encoding: Encoding,
    /// What is signed.
    pub signed: Vec<Piece>,
    /// The header with the time of sending, in seconds since 1970; always signed.
    pub timestamp_header: Option<String>,
    /// The header with the id of the event.
    pub id_header: Option<String>,
    /// The header with the type of the event.
    pub type_header: Option<String>,
}

/// How the bytes of a signature are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Hexadecimal digits.
    Hex,
    /// Base64.
    Base64,
}

impl Encoding {
    const ALL: [(&str, Encoding); 2] = [("hex", Encoding::Hex), ("base64", Encoding::Base64)];

    /// The word it is configured with.
    pub fn name(self) -> &'static str {
        match self {
            Encoding::Hex => "hex",
            Encoding::Base64 => "base64",
        }
    }
}

/// A part of what is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// This text.
    Text(String),
    /// The value of `timestamp_header`.
    Timestamp,
    /// The value of `id_header`.
    Id,
    /// The body.
    Body,
}

/// As the configuration spells it.
impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Piece::Text(text) => f.write_str(text),
            Piece::Timestamp => f.write_str("{timestamp}"),
            Piece::Id => f.write_str("{id}"),
            Piece::Body => f.write_str("{body}"),
        }
    }
}

/// Reads `{timestamp}.{body}` and its like; the error is a sentence about what is wrong with it.
fn parse_signed(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let start = rest.find('{').unwrap_or(rest.len());
        if start > 0 {
            pieces.push(Piece::Text(rest[..start].to_owned()));
        }
        rest = &rest[start..];
        let known = [("{timestamp}", Piece::Timestamp), ("{id}", Piece::Id), ("{body}", Piece::Body)];
        match known.into_iter().find(|(name, _)| rest.starts_with(name)) {
            Some((name, piece)) => {
                pieces.push(piece);
                rest = &rest[name.len()..];
            }
            None if rest.is_empty() => {}
            None => return Err("of `{…}` there are {timestamp}, {id} and {body}".to_owned()),
        }
    }
    match pieces.iter().filter(|piece| **piece == Piece::Body).count() {
        1 => Ok(pieces),
        _ => Err("it must hold {body} once: what is not signed could be anybody's".to_owned()),
    }
}

/// The bytes of all keys of a hook. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct HookKeys(pub Vec<Vec<u8>>);

impl fmt::Debug for HookKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookKeys(***)")
    }
}

/// Fewer characters could be guessed from one signed request.
const LEAST_SECRET: usize = 16;
/// Most keys of a hook: each is tried with every request.
const MAX_KEYS: usize = 8;

impl Hook {
    /// All keys, those in files included. The error does not repeat them.
    pub fn keys(&self) -> Result<HookKeys, String> {
        let mut keys = Vec::new();
        for Hidden(text) in &self.secrets {
            keys.push(self.key(text)?);
        }
        for path in &self.secret_files {
            let name = path.display();
            let text = std::fs::read_to_string(path).map_err(|e| format!("{name} cannot be read: {e}"))?;
            let key = self.key(text.trim_end_matches(['\r', '\n']));
            keys.push(key.map_err(|wrong| format!("{name}: {wrong}"))?);
        }
        if keys.is_empty() {
            return Err("it needs `secrets` or `secret_files`".to_owned());
        }
        Ok(HookKeys(keys))
    }

    fn key(&self, text: &str) -> Result<Vec<u8>, String> {
        if self.kind == HookKind::Standard {
            return Ok(SigningKey::parse(text)?.bytes().to_vec());
        }
        if text.len() < LEAST_SECRET {
            return Err(format!(
                "a secret has {LEAST_SECRET} characters at least: `openssl rand -hex 32` makes one"
            ));
        }
        Ok(text.as_bytes().to_vec())
    }
}

/// The keys that only a hook of another HMAC has.
const HMAC_KEYS: [&str; 7] =
    ["header", "prefix", "encoding", "signed", "timestamp_header", "id_header", "type_header"];

/// Reads all of them.
pub(super) fn read_all(settings: &mut Settings) -> Vec<Hook> {
    let mut hooks: Vec<Hook> = Vec::new();
    let sections = settings.list("hook");
    if sections.len() > 256 {
        settings.mistake(format!("{} hooks are more than 256", sections.len()));
    }
    for mut section in sections {
        if let Some(hook) = read_one(&mut section) {
            if hooks.iter().any(|other| other.name == hook.name) {
                settings.mistake(format!(
                    "two hooks are named `{}`: each needs an address of its own",
                    hook.name
                ));
            }
            hooks.push(hook);
        }
        section.relabel("hook".to_owned());
        settings.done(section);
    }
    hooks
}

fn read_one(s: &mut Section) -> Option<Hook> {
    let name = read::name(s, "hook");
    s.relabel(format!("hook.{name}"));
    let kinds = [("github", "github"), ("standard", "standard"), ("hmac", "hmac")];
    let kind = s.choice("type", &kinds);
    if kind.is_none() {
        s.mistake(format!("hook `{name}` needs a `type`: \"github\", \"standard\" or \"hmac\""));
    }
    let kind = match kind {
        Some("hmac") => hmac(s, &name).map(HookKind::Hmac),
        other => {
            s.only_for("hmac", &HMAC_KEYS);
            other.map(|kind| if kind == "github" { HookKind::GitHub } else { HookKind::Standard })
        }
    };
    let mut secrets = Vec::new();
    secrets.extend(s.list("secrets", |text| Ok(Hidden(text.to_owned()))).unwrap_or_default());
    let secret_files = s.files("secret_files");
    if secrets.len() + secret_files.len() > MAX_KEYS {
        s.mistake(format!(
            "hook `{name}` has more than {MAX_KEYS} keys: two are enough to change from one to the next"
        ));
    }
    if kind == Some(HookKind::GitHub) {
        s.only_for("standard or hmac", &["tolerance", "event_type"]);
    }
    let tolerance = s.duration("tolerance", Duration::from_secs(1)..=Duration::from_secs(86_400));
    let filled = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let source = s.parsed("source", "it must not be empty", filled);
    let event_type = s.parsed("event_type", "it must not be empty", filled);
    let hook = Hook {
        name,
        kind: kind?,
        secrets,
        secret_files,
        tolerance: tolerance.unwrap_or(Duration::from_secs(300)),
        source,
        event_type: event_type.unwrap_or_else(|| "eventflow.hook".to_owned()),
    };
    if let Err(wrong) = hook.keys() {
        s.mistake(format!("hook `{}`: {wrong}", hook.name));
    }
    Some(hook)
}

fn hmac(s: &mut Section, name: &str) -> Option<Hmac> {
    let header = |s: &mut Section, key| {
        s.parsed(key, "it must be the name of a header", |text| {
            HeaderName::try_from(text).is_ok().then(|| text.to_ascii_lowercase())
        })
    };
    let signature = header(s, "header");
    if signature.is_none() {
        s.mistake(format!("hook `{name}` needs a `header`, such as \"X-Signature\""));
    }
    let timestamp_header = header(s, "timestamp_header");
    let id_header = header(s, "id_header");
    let type_header = header(s, "type_header");
    let prefix = s.text("prefix").unwrap_or_default();
    let encoding = s.choice("encoding", &Encoding::ALL).unwrap_or(Encoding::Hex);
    let signed = s.hidden("signed", parse_signed).unwrap_or_else(|| match timestamp_header {
        Some(_) => vec![Piece::Timestamp, Piece::Text(".".to_owned()), Piece::Body],
        None => vec![Piece::Body],
    });
    for (piece, key, header) in
        [(Piece::Timestamp, "timestamp_header", &timestamp_header), (Piece::Id, "id_header", &id_header)]
    {
        if header.is_none() && signed.contains(&piece) {
            s.mistake(format!("hook `{name}`: `signed` holds {piece}, and `{key}` does not say where it is"));
        }
    }
    if timestamp_header.is_some() && !signed.contains(&Piece::Timestamp) {
        s.mistake(format!(
            "hook `{name}`: `signed` must hold {{timestamp}}: a time that is not signed could be anybody's"
        ));
    }
    Some(Hmac { header: signature?, prefix, encoding, signed, timestamp_header, id_header, type_header })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn parse(lines: &str) -> Result<Config, String> {
        let text = format!("[[hook]]\n{lines}\n");
        Config::parse("e.toml", &text, Vec::new(), &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn a_template_is_read_and_written_back() {
        for text in ["{body}", "{timestamp}.{body}", "v0:{timestamp}:{body}", "{id}.{timestamp}.{body}!"] {
            let pieces = parse_signed(text).unwrap();
            assert_eq!(pieces.iter().map(ToString::to_string).collect::<String>(), text);
        }
        for wrong in ["", "x", "{timestamp}", "{body}{body}", "{bod}{body}", "{", "{body}{"] {
            assert!(parse_signed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_mistake_is_a_sentence_and_shows_no_secret() {
        let secret = "sécrét";
        let github = "name = \"a\"\ntype = \"github\"\n";
        let hmac = "name = \"a\"\ntype = \"hmac\"\nsecrets = [\"0123456789abcdef\"]\n";
        for (lines, expected) in [
            (String::new(), "needs a `name`"),
            ("name = \"a\"".to_owned(), "needs a `type`"),
            (github.to_owned(), "needs `secrets` or `secret_files`"),
            (format!("{github}secrets = [\"{secret}\"]"), "16 characters"),
            (format!("{github}secrets = \"{secret}\""), "must be a list"),
            (format!("{github}secret_files = [\"/no/such\"]"), "/no/such cannot be read"),
            (
                format!("{github}secrets = [\"0123456789abcdef\"]\nheader = \"x\""),
                "hooks of type \"hmac\" only",
            ),
            (format!("{github}secrets = [\"0123456789abcdef\"]\ntolerance = \"1m\""), "standard or hmac"),
            (format!("name = \"a\"\ntype = \"standard\"\nsecrets = [\"whsec_{secret}\"]"), "whsec_"),
            (hmac.to_owned(), "needs a `header`"),
            (format!("{hmac}header = \"a b\""), "name of a header"),
            (
                format!("{hmac}header = \"x\"\nsigned = \"{{timestamp}}{{body}}\""),
                "`timestamp_header` does not say",
            ),
            (format!("{hmac}header = \"x\"\nsigned = \"{{id}}{{body}}\""), "`id_header` does not say"),
            (
                format!("{hmac}header = \"x\"\ntimestamp_header = \"t\"\nsigned = \"{{body}}\""),
                "must hold {timestamp}",
            ),
            (format!("{hmac}header = \"x\"\nheadr = \"y\""), "did you mean `hook.header`"),
        ] {
            let said = parse(&lines).expect_err(expected);
            assert!(said.contains(expected) && !said.contains(secret), "{lines}\n{said}");
        }
    }

    #[test]
    fn secrets_are_masked_and_all_else_is_shown() {
        let config = parse(
            "name = \"a\"\ntype = \"hmac\"\nsecrets = [\"0123456789abcdef\"]\nheader = \"X-Sig\"\ntimestamp_header = \"x-t\"",
        )
        .unwrap();
        let printed = config.to_toml();
        assert!(
            !printed.contains("0123456789abcdef") && printed.contains("secrets = [\"***\"]"),
            "{printed}"
        );
        assert!(
            printed.contains("signed = \"{timestamp}.{body}\"") && printed.contains("x-sig"),
            "{printed}"
        );
        let debug = format!("{:?} {:?}", config.hooks, config.hooks[0].keys());
        assert!(!debug.contains("0123456789abcdef") && !debug.contains("48, 49"), "{debug}");
    }

    #[test]
    fn the_environment_can_bring_a_secret() {
        let text = "[[hook]]\nname = \"my-hub\"\ntype = \"github\"\n";
        let env = vec![("EVENTFLOW_HOOK__MY_HUB__SECRETS".to_owned(), "0123456789abcdef".to_owned())];
        let config = Config::parse("e.toml", text, env, &[]).unwrap();
        assert_eq!(config.hooks[0].keys(), Ok(HookKeys(vec![b"0123456789abcdef".to_vec()])));
    }
}
