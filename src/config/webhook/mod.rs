//! What a webhook sink is told: its endpoint, its keys, what a status means, which addresses it may reach.
//!
//! Pure code, but for [`Webhook::signing_keys`] and [`Webhook::authority`], which read the files
//! that the configuration names: once when it is checked, and once when the sink opens.

mod read;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hyper::Uri;

pub(super) use read::{KEYS, read as read_keys};

/// What only a webhook has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// Where requests go.
    pub endpoint: Endpoint,
    /// How events are put into requests.
    pub mode: Mode,
    /// Keys that sign requests; the receiver accepts any one.
    pub secrets: Vec<SigningKey>,
    /// Files that hold one more such key each.
    pub secret_files: Vec<PathBuf>,
    /// Sent with every request.
    pub headers: Vec<(String, Hidden)>,
    /// Exceptions from what a status means.
    pub status: Vec<(StatusPattern, Meaning)>,
    /// Whether loopback and private addresses may be reached.
    pub allow_private: bool,
    /// A certificate authority in PEM to trust in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// A connection must stand within this time, names and TLS included.
    pub connect_timeout: Duration,
    /// Most bytes of an answer that are read.
    pub max_answer_bytes: u64,
}

/// How events are put into requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One event a request, as one JSON object.
    Structured,
    /// One event a request, attributes in headers.
    Binary,
    /// Many events a request, as one JSON array.
    Batch,
}

impl Mode {
    /// All of them, by the word they are configured with.
    pub const ALL: [(&str, Mode); 3] =
        [("structured", Mode::Structured), ("binary", Mode::Binary), ("batch", Mode::Batch)];

    /// The word it is configured with.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Structured => "structured",
            Mode::Binary => "binary",
            Mode::Batch => "batch",
        }
    }
}

/// A URL in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// As it was configured.
    pub url: String,
    /// Whether it is `https`.
    pub tls: bool,
    /// The host, an IPv6 address without its brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// What the `Host` header says.
    pub authority: String,
    /// The path with its query.
    pub target: String,
}

impl Endpoint {
    /// Reads a URL; the error is a sentence about what is wrong with it.
    pub fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("it is not a URL ({error})"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("it must begin with \"https://\" or \"http://\"".to_owned()),
        };
        let Some(authority) = uri.authority().filter(|authority| !authority.host().is_empty()) else {
            return Err("it names no host".to_owned());
        };
        if authority.as_str().contains('@') {
            return Err("it holds a user name or password: put those into `headers`, where they are masked"
                .to_owned());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self {
            url: url.to_owned(),
            tls,
            host,
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            target: uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
        })
    }

    /// Whether its host is written as an address, or as the name of this machine, that is not public.
    pub fn is_plainly_private(&self) -> bool {
        let name = self.host.trim_end_matches('.').to_ascii_lowercase();
        match name.parse::<IpAddr>() {
            Ok(address) => !is_public(address),
            Err(_) => name == "localhost" || name.ends_with(".localhost"),
        }
    }

    /// Scheme, host and port: what logs may show, since paths and queries often hold secrets.
    pub fn origin(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

/// Whether an address belongs to the internet: not to this machine, a private network, or a range
/// that is set aside. IPv4 addresses in IPv6 clothes are judged as what they are.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let set_aside = match (a, b, c) {
        (0 | 10 | 127 | 224..=255, _, _) => true,
        (100, 64..=127, _) => true, // shared by carriers
        (169, 254, _) | (172, 16..=31, _) | (192, 168, _) => true,
        (192, 0, 0 | 2) | (198, 51, 100) | (203, 0, 113) => true, // protocols, documentation
        (198, 18 | 19, _) => true,                                // benchmarks
        _ => false,
    };
    !set_aside
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        [0x2001, 0..=0x1ff | 0xdb8, ..] => false, // protocols (Teredo), documentation
        [first, ..] => first & 0xe000 == 0x2000,  // the part that is given out
    }
}

/// A key that signs requests. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey(Vec<u8>);

/// What a key is written with.
const KEY_PREFIX: &str = "whsec_";
/// Bytes of a key, as Standard Webhooks asks for them.
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

impl SigningKey {
    /// Reads `whsec_` and base64. The error does not repeat the text.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let engine = GeneralPurpose::new(
            &STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        let bytes = text.trim().strip_prefix(KEY_PREFIX).and_then(|base64| engine.decode(base64).ok());
        match bytes {
            Some(bytes) if KEY_BYTES.contains(&bytes.len()) => Ok(Self(bytes)),
            _ => Err(
                "a key is \"whsec_\" and 24 to 64 bytes in base64: `echo whsec_$(openssl rand -base64 32)` makes one",
            ),
        }
    }

    /// The key itself.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(***)")
    }
}

/// A text that may be secret, and is not in debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Which statuses an exception is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StatusPattern {
    /// One, such as `409`.
    Code(u16),
    /// All that begin with one digit, such as `5xx`.
    Class(u16),
}

impl StatusPattern {
    /// Reads `409` or `5xx`.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_suffix("xx");
        match digits.unwrap_or(text).parse::<u16>() {
            Ok(class @ 2..=5) if digits.is_some() && text.len() == 3 => Some(Self::Class(class)),
            Ok(code @ 200..=599) if digits.is_none() && text.len() == 3 => Some(Self::Code(code)),
            _ => None,
        }
    }
}

impl fmt::Display for StatusPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "{code}"),
            Self::Class(class) => write!(f, "{class}xx"),
        }
    }
}

/// What a status says about the events of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// They arrived.
    Delivered,
    /// They may arrive later; the endpoint's fault while nothing gets through, the event's otherwise.
    Retry,
    /// They never will.
    Reject,
    /// The endpoint wants none at the moment.
    Unavailable,
}

impl Meaning {
    /// All of them, by the word they are configured with.
    pub const ALL: [(&str, Meaning); 4] = [
        ("delivered", Meaning::Delivered),
        ("retry", Meaning::Retry),
        ("reject", Meaning::Reject),
        ("unavailable", Meaning::Unavailable),
    ];

    /// The word it is configured with.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

impl Webhook {
    /// What `status` means here. A code that was configured goes before a class that was, and both
    /// before the defaults.
    pub fn meaning(&self, status: u16) -> Meaning {
        let configured = |wanted| self.status.iter().find(|(pattern, _)| *pattern == wanted);
        configured(StatusPattern::Code(status))
            .or_else(|| configured(StatusPattern::Class(status / 100)))
            .map_or_else(|| default_meaning(status), |(_, meaning)| *meaning)
    }

    /// All keys, those in files included.
    pub fn signing_keys(&self) -> Result<Vec<SigningKey>, String> {
        let mut keys = self.secrets.clone();
        for path in &self.secret_files {
            let text = read(path)?;
            let key = SigningKey::parse(&text).map_err(|wrong| format!("{}: {wrong}", path.display()))?;
            keys.push(key);
        }
        Ok(keys)
    }

    /// The text of `ca_file`, if there is one.
    pub fn authority(&self) -> Result<Option<String>, String> {
        self.ca_file.as_deref().map(read).transpose()
    }
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

fn default_meaning(status: u16) -> Meaning {
    match status {
        200..=299 => Meaning::Delivered,
        429 | 503 => Meaning::Unavailable,
        408 | 425 => Meaning::Retry,
        400..=499 => Meaning::Reject,
        _ => Meaning::Retry,
    }
}

/// Whether a header's value is masked where the configuration is shown.
pub fn is_secret_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["auth", "cookie", "key", "password", "secret", "token"].iter().any(|word| name.contains(word))
}

/// Whether a header may be configured: the ones that a request has anyway may not.
pub fn is_own_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let framing = [
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    framing.contains(&name.as_str()) || name.starts_with("ce-") || name.starts_with("webhook-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_not_the_internets_are_told_from_those_that_are() {
        for private in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001::1",
            "::127.0.0.1",
            "2001:db8::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "2606:4700::1111",
            "2a00:1450::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn a_url_is_taken_apart() {
        let endpoint = Endpoint::parse("https://Example.org:8443/hook?x=1").unwrap();
        assert_eq!((endpoint.tls, endpoint.host.as_str(), endpoint.port), (true, "Example.org", 8443));
        assert_eq!(
            (endpoint.authority.as_str(), endpoint.target.as_str()),
            ("Example.org:8443", "/hook?x=1")
        );
        let endpoint = Endpoint::parse("http://[::1]").unwrap();
        assert_eq!((endpoint.host.as_str(), endpoint.port, endpoint.target.as_str()), ("::1", 80, "/"));
        assert!(endpoint.is_plainly_private());
        for wrong in
            ["", "example.org/hook", "ftp://x", "/hook", "http://", "http://a b/", "https://user:word@x/"]
        {
            let sentence = Endpoint::parse(wrong).expect_err(wrong);
            assert!(!sentence.contains("word@"), "{sentence}");
        }
        for (url, private) in [
            ("http://localhost:1", true),
            ("http://LOCALHOST.", true),
            ("http://10.0.0.1", true),
            ("http://example.org", false),
        ] {
            assert_eq!(Endpoint::parse(url).unwrap().is_plainly_private(), private, "{url}");
        }
    }

    #[test]
    fn keys_are_read_and_never_shown() {
        let key = SigningKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
        assert_eq!(key.bytes().len(), 24);
        assert_eq!(format!("{key:?}"), "SigningKey(***)");
        for wrong in ["", "whsec_", "whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!!!"] {
            assert!(SigningKey::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn statuses_are_named_alone_or_by_their_class() {
        assert_eq!(StatusPattern::parse("409"), Some(StatusPattern::Code(409)));
        assert_eq!(StatusPattern::parse("5xx"), Some(StatusPattern::Class(5)));
        for wrong in ["", "xx", "1xx", "6xx", "99", "600", "+99", "40", "4XX", "5xxx", "05xx"] {
            assert_eq!(StatusPattern::parse(wrong), None, "{wrong}");
        }
    }
}
