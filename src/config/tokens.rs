//! Bearer tokens: the file that lists them, what each may do, and finding the one that was shown.
//!
//! ```toml
//! [[token]]
//! name = "ci"
//! hash = "sha256:9f86d081…"
//! scopes = ["ingest"]
//! requests_per_second = 100     # optional
//! expires = "2027-01-31"        # optional
//! ```
//!
//! A token is 256 bits of randomness and the file holds its SHA-256. A slow hash (argon2, bcrypt) makes up
//! for secrets that people choose, by making each guess dear; nobody guesses one of 2²⁵⁶, so it would
//! only let a stranger burn the daemon's processor with wrong tokens.
//!
//! Pure code, but for [`Tokens::read`].

use std::fmt;
use std::path::Path;

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use serde::Deserialize;
use subtle::ConstantTimeEq;

/// Most tokens of a file: every one is compared with what was shown.
const MAX_TOKENS: usize = 1000;
/// What a hash begins with in the file.
const HASH_PREFIX: &str = "sha256:";

/// What a token lets its holder do. No scope includes another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Scope {
    /// Post events.
    Ingest = 1,
    /// Look: status, metrics, events, the failure table.
    Read = 2,
    /// Change: redrive, pause, and whatever else changes something.
    Admin = 4,
}

impl Scope {
    /// All of them, by the word they are configured with.
    pub const ALL: [(&str, Scope); 3] =
        [("ingest", Scope::Ingest), ("read", Scope::Read), ("admin", Scope::Admin)];

    /// The word it is configured with.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Ingest => "ingest",
            Scope::Read => "read",
            Scope::Admin => "admin",
        }
    }

    /// The scope of this name; the error names all there are.
    pub fn parse(name: &str) -> Result<Scope, String> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, scope)| *scope);
        found.ok_or_else(|| format!("`{name}` is no scope: there are \"ingest\", \"read\" and \"admin\""))
    }
}

/// Some scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(u8);

impl Scopes {
    /// Whether `scope` is one of them.
    pub fn contain(self, scope: Scope) -> bool {
        self.0 & scope as u8 != 0
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |all, scope| all | scope as u8))
    }
}

/// How often a token may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests a second in the long run.
    pub requests_per_second: u32,
    /// Requests at once after a pause.
    pub burst: u32,
}

/// The SHA-256 of a token, as the file holds it.
#[derive(Clone, Copy)]
pub struct TokenHash([u8; SHA256_OUTPUT_LEN]);

impl TokenHash {
    /// That of a token.
    pub fn of(token: &[u8]) -> Self {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest(&SHA256, token).as_ref());
        Self(bytes)
    }

    fn parse(text: &str) -> Option<Self> {
        text.strip_prefix(HASH_PREFIX).and_then(|hex| digest_from_hex(hex.as_bytes())).map(Self)
    }

    /// Takes as long whatever the bytes are.
    fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// The 32 bytes of a SHA-256 in hexadecimal digits of either case.
pub fn digest_from_hex(hex: &[u8]) -> Option<[u8; SHA256_OUTPUT_LEN]> {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    if hex.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
        let digit = |b: u8| char::from(b).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(bytes)
}

/// As the file spells it.
impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HASH_PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(***)")
    }
}

/// One token.
#[derive(Debug, Clone)]
pub struct Token {
    /// Who has it; for logs and answers.
    pub name: String,
    hash: TokenHash,
    /// What it is good for.
    pub scopes: Scopes,
    /// How often it may be shown; as often as one likes where nothing is said.
    pub rate: Option<Rate>,
    /// From this second on (Unix time) it is good for nothing.
    pub expires_at: Option<i64>,
}

/// All tokens.
#[derive(Debug, Clone, Default)]
pub struct Tokens(Vec<Token>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    token: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    hash: String,
    scopes: Vec<String>,
    requests_per_second: Option<u32>,
    burst: Option<u32>,
    expires: Option<toml::Value>,
}

impl Tokens {
    /// Reads a file; the error is a sentence that names it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        Self::parse(&text).map_err(|wrong| format!("{}: {wrong}", path.display()))
    }

    /// Reads the file's text; the error is a sentence that shows nothing of what stands there but names.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start.min(text.len()));
            let line = text.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1;
            format!("line {line}: {}", error.message())
        })?;
        if file.token.is_empty() {
            return Err("it holds no `[[token]]`, so everything would be refused; `eventflow token new` \
                        makes one"
                .to_owned());
        }
        if file.token.len() > MAX_TOKENS {
            return Err(format!("it holds more than {MAX_TOKENS} tokens"));
        }
        let mut tokens: Vec<Token> = Vec::with_capacity(file.token.len());
        for entry in file.token {
            let token = entry.check()?;
            if tokens.iter().any(|other| other.name == token.name) {
                return Err(format!("two tokens are named `{}`; each needs a name of its own", token.name));
            }
            if tokens.iter().any(|other| other.hash.is(&token.hash)) {
                return Err(format!("the hash of token `{}` is another one's, too", token.name));
            }
            tokens.push(token);
        }
        Ok(Self(tokens))
    }

    /// The position of the token that was shown. Takes as long whichever it is, and whether it is one.
    pub fn position(&self, shown: &[u8]) -> Option<usize> {
        let hash = TokenHash::of(shown);
        let mut found = None;
        for (at, token) in self.0.iter().enumerate() {
            if token.hash.is(&hash) {
                found = Some(at);
            }
        }
        found
    }

    /// All of them, in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Token> {
        self.0.iter()
    }
}

impl Entry {
    fn check(self) -> Result<Token, String> {
        let Entry { name, hash, scopes, requests_per_second, burst, expires } = self;
        let plain = |c: char| !c.is_control();
        if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            return Err("each token needs a `name` of 1 to 64 characters".to_owned());
        }
        let wrong = |what: &str| format!("token `{name}`: {what}");
        let hash = TokenHash::parse(&hash).ok_or_else(|| {
            wrong("`hash` must be \"sha256:\" and 64 hexadecimal digits, as `eventflow token new` prints it")
        })?;
        let scopes = scopes.iter().map(|scope| Scope::parse(scope)).collect::<Result<Vec<_>, _>>();
        let scopes = scopes.map_err(|what| wrong(&what))?;
        if scopes.is_empty() {
            return Err(wrong("it needs `scopes`, such as [\"ingest\"]"));
        }
        let fits = |number: Option<u32>| number.is_none_or(|number| (1..=1_000_000).contains(&number));
        if !fits(requests_per_second) || !fits(burst) {
            return Err(wrong("`requests_per_second` and `burst` are numbers from 1 to 1,000,000"));
        }
        if burst.is_some() && requests_per_second.is_none() {
            return Err(wrong("`burst` says nothing without `requests_per_second`"));
        }
        let rate = requests_per_second.map(|requests_per_second| Rate {
            requests_per_second,
            burst: burst.unwrap_or(requests_per_second),
        });
        let expires_at = expires.map(|value| second_of(&value)).transpose().map_err(|what| wrong(&what))?;
        Ok(Token { hash, scopes: scopes.into_iter().collect(), rate, expires_at, name })
    }
}

/// A day (its beginning, UTC) or a time, quoted or not.
fn second_of(value: &toml::Value) -> Result<i64, String> {
    let text = match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Datetime(time) => time.to_string(),
        _ => String::new(),
    };
    let time = text.parse::<jiff::Timestamp>().ok().or_else(|| {
        let day = text.parse::<jiff::civil::Date>().ok().filter(|_| text.len() == 10)?;
        Some(day.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
    });
    let time =
        time.ok_or("`expires` must be a day or a time, such as \"2027-01-31\" or \"2027-01-31T12:00:00Z\"")?;
    Ok(time.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn file(lines: &str) -> String {
        format!("[[token]]\nname = \"ci\"\nhash = \"{HASH}\"\n{lines}\n")
    }

    #[test]
    fn a_token_is_found_by_its_hash_alone_and_has_what_the_file_says() {
        let text = file(
            "scopes = [\"ingest\", \"admin\"]\nrequests_per_second = 5\nburst = 7\nexpires = 2027-01-31T12:00:00Z",
        );
        let tokens = Tokens::parse(&text).unwrap();
        assert_eq!(tokens.position(b"test"), Some(0));
        for other in [&b""[..], b"tes", b"test ", b"Test", HASH.as_bytes()] {
            assert_eq!(tokens.position(other), None);
        }
        let token = tokens.iter().next().unwrap();
        let has = [Scope::Ingest, Scope::Read, Scope::Admin].map(|scope| token.scopes.contain(scope));
        assert_eq!(has, [true, false, true]);
        assert_eq!(token.rate, Some(Rate { requests_per_second: 5, burst: 7 }));
        assert_eq!(token.expires_at, Some(1_801_396_800));
        assert_eq!(TokenHash::of(b"test").to_string(), HASH);
    }

    #[test]
    fn each_mistake_is_a_sentence_and_shows_no_secret() {
        let secret = "eft_secret";
        let two = file("scopes = [\"read\"]").repeat(2);
        let same =
            format!("{}{}", file("scopes = [\"read\"]"), file("scopes = [\"read\"]").replace("ci", "cd"));
        for (text, expected) in [
            (String::new(), "holds no `[[token]]`"),
            (file("scopes = []"), "needs `scopes`"),
            (file("scopes = [\"write\"]"), "`write` is no scope"),
            (file(""), "scopes"),
            (file("scopes = [\"read\"]\nbust = 1"), "bust"),
            (file("scopes = [\"read\"]\nburst = 1"), "`burst` says nothing"),
            (file("scopes = [\"read\"]\nrequests_per_second = 0"), "from 1 to"),
            (file("scopes = [\"read\"]\nexpires = \"tomorrow\""), "`expires` must be"),
            (file("scopes = [\"read\"]").replace(HASH, secret), "`hash` must be"),
            (file("scopes = [\"read\"]").replace("ci", ""), "needs a `name`"),
            (two, "two tokens are named `ci`"),
            (same, "another one's"),
            ("[[token]\n".to_owned(), "line 1"),
        ] {
            let said = Tokens::parse(&text).expect_err(expected);
            assert!(said.contains(expected) && !said.contains(secret), "{said}");
        }
    }

    #[test]
    fn a_day_expires_at_its_beginning() {
        for (value, second) in
            [("\"1970-01-02\"", 86_400), ("1970-01-02", 86_400), ("1970-01-01T00:00:01Z", 1)]
        {
            let tokens = Tokens::parse(&file(&format!("scopes = [\"read\"]\nexpires = {value}"))).unwrap();
            assert_eq!(tokens.iter().next().unwrap().expires_at, Some(second), "{value}");
        }
    }

    #[test]
    fn nothing_shows_a_hash() {
        let tokens = Tokens::parse(&file("scopes = [\"read\"]")).unwrap();
        assert!(!format!("{tokens:?}").contains("9f86"), "{tokens:?}");
    }
}
