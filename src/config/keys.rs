//! What each key means, in words: the one source of the documents on configuration.
//!
//! Pure data. Defaults and ranges are not here: `explain` takes them from the code that reads the keys, so
//! neither can drift from it. A row for every key and no other is a test.
//!
//! To add a key: ask for it in `read` (or in the file of its sink), write it in `print`, give it a row
//! here, and let `data/eventflow.toml` and the tables in `docs/` be written anew:
//!
//! ```text
//! UPDATE_DOCUMENTS=1 cargo test --test it documents
//! ```

/// A table of the file.
pub(super) struct Table {
    /// `http`; empty for the keys outside any table, `sink` for what every sink has.
    pub(super) name: &'static str,
    /// The kind of sink that has these keys; empty for every kind, and outside sinks.
    pub(super) kind: &'static str,
    /// Said above it in the sample file.
    pub(super) intro: &'static str,
    /// In the order in which they are told.
    pub(super) keys: &'static [Key],
}

/// A key in words.
pub(super) struct Key {
    /// Without its table.
    pub(super) name: &'static str,
    /// A sentence or two, in Markdown.
    pub(super) what: &'static str,
    /// What it may be, beside or instead of a range that the code checks.
    pub(super) range: &'static str,
    /// What holds when it is not set, for a key without a default.
    pub(super) unset: &'static str,
    /// The value that stands for it in the sample file, for a key without a default.
    pub(super) example: &'static str,
}

const fn key(name: &'static str, what: &'static str) -> Key {
    Key { name, what, range: "", unset: "", example: "" }
}

impl Key {
    const fn range(self, range: &'static str) -> Key {
        Key { range, ..self }
    }

    /// It has no default: what that means, and what a value looks like.
    const fn unset(self, unset: &'static str, example: &'static str) -> Key {
        Key { unset, example, ..self }
    }
}

/// Above the sample file.
pub(super) const INTRO: &str = "\
# Every setting with its default. Copy what you want to change; an empty file, or none, is fine.
#
#   eventflow check --config eventflow.toml         is it valid, and what is in force
#   eventflow check --explain > eventflow.toml      this file
#   eventflow serve --config eventflow.toml
#
# Flags win over environment over this file over defaults. In the environment a key is
# EVENTFLOW_<SECTION>__<KEY> (EVENTFLOW_WAL__BUDGET=10GiB), for a sink EVENTFLOW_SINK__<NAME>__<KEY>,
# and data_dir is EVENTFLOW_DATA_DIR. Sizes: \"64MiB\". Durations: \"30s\". An unknown key is an error.
# In square brackets stands what a key may be. A key behind # has no default; its value is an example.
";

/// Every table, in the order of the file.
pub(super) const TABLES: &[Table] = &[
    Table {
        name: "",
        kind: "",
        intro: "",
        keys: &[key("data_dir", "Everything durable lives here. One daemon at a time.").range("a directory")],
    },
    Table { name: "http", kind: "", intro: "Requests.", keys: HTTP },
    Table { name: "wal", kind: "", intro: "The event log.", keys: WAL },
    Table {
        name: "ledger",
        kind: "",
        intro: "Checkpoints of the sinks, in a small log of their own.",
        keys: &[
            key("segment", "Bytes of one segment of the ledger.").range("whole 4 KiB pages"),
            key("checkpoint_interval", "A checkpoint is written at most this often."),
        ],
    },
    Table {
        name: "failures",
        kind: "",
        intro: "Events that a sink did not take.",
        keys: &[
            key("budget", "Bytes that the failure table may take on disk; its index may take as much again, and 64 MiB at any rate.")
                .range("with a sink that parks events at least 16 × `http.max_event` and a little"),
            key("index_cache", "Memory for the cache of the table's index, `state.sled/`."),
            key(
                "index_deadline",
                "The index is set aside and built anew when opening it, or one use of it, takes longer.",
            ),
        ],
    },
    Table {
        name: "shutdown",
        kind: "",
        intro: "",
        keys: &[key(
            "drain_timeout",
            "How long requests and batches under way may take to finish after SIGTERM.",
        )],
    },
    Table {
        name: "snapshot",
        kind: "",
        intro: "",
        keys: &[key(
            "max_hold",
            "While a snapshot is taken nothing is freed, for this long at most; one that takes longer fails.",
        )],
    },
    Table { name: "telemetry", kind: "", intro: "Logs.", keys: TELEMETRY },
    Table {
        name: "sink",
        kind: "",
        intro: "One table a sink. With no [[sink]] at all, an archive is there.",
        keys: &[
            key("name", "Checkpoints are kept under it, so renaming a sink starts it anew.")
                .range("1–64 of `a-z 0-9 _ -`")
                .unset("–", "\"archive\""),
            key("type", "What it is.").unset("–", "\"json_file\""),
        ],
    },
    Table {
        name: "sink",
        kind: "json_file",
        intro: "The archive: every event once, in order.",
        keys: ARCHIVE,
    },
    Table { name: "sink", kind: "stdout", intro: "One line an event on standard output.", keys: &[] },
    Table {
        name: "sink",
        kind: "webhook",
        intro: "Events posted to an HTTP endpoint; docs/SINKS.md says how, and what its answers mean.",
        keys: WEBHOOK,
    },
    Table {
        name: "sink",
        kind: "exec",
        intro: "Events handed to a program, which answers with what became of each; docs/SINKS.md has the protocol.",
        keys: EXEC,
    },
    Table { name: "sink", kind: "", intro: "", keys: SINK },
];

const HTTP: &[Key] = &[
    key("listen", "Where to listen. Sockets that systemd passes go before it.")
        .range("an address, or `unix:/run/eventflow/eventflow.sock`"),
    key(
        "admin_listen",
        "A listener of their own for operators, with every route; the other one then takes events and webhooks and \
         tells its health, and nothing else.",
    )
    .range("as `listen`")
    .unset("off", "\"127.0.0.1:8081\""),
    key(
        "allow_anonymous",
        "Needed to listen on anything but loopback without tokens, because anyone who reaches it could post and read \
         events.",
    ),
    key(
        "tokens_file",
        "Bearer tokens and what each may do; `eventflow token new` makes them, docs/SECURITY.md has more. Without it \
         nobody needs one. `credential:NAME` is a file that systemd passes on (`LoadCredential=`), here and in the \
         next three.",
    )
    .range("a file")
    .unset("off", "\"/etc/eventflow/tokens.toml\""),
    key("tls_cert", "The certificate of every TCP socket, with its chain; TLS 1.2 and 1.3.")
        .range("a PEM file")
        .unset("off", "\"/etc/eventflow/cert.pem\""),
    key("tls_key", "Its key.").range("a PEM file").unset("off", "\"/etc/eventflow/key.pem\""),
    key("tls_client_ca", "Authorities: clients must show a certificate of one of them.")
        .range("a PEM file")
        .unset("off", "\"/etc/eventflow/clients.pem\""),
    key("max_body", "Largest request body, after decompression; over it 413 `too-large`."),
    key("max_event", "Largest event, as JSON; over it 413.").range("≤ `max_body`"),
    key(
        "max_connections",
        "Open connections. Fewer, with a warning, where the limit on open files leaves room for fewer beside the \
         daemon's own 256.",
    ),
    key(
        "max_connections_per_address",
        "Open connections of one address (of IPv6: of one /64 network); 0 is no limit of its own. Unix sockets are not \
         counted. Leave it at 0 behind a proxy, whose address all connections have.",
    ),
    key("header_timeout", "A request's header must be there within this time."),
    key("body_timeout", "A request's body must be there within this time; after it 408."),
    key("idle_timeout", "A kept-alive connection without a request is closed after this time."),
    key("max_waiting", "Bytes of events that may wait for the disk; beyond it 429 `overloaded`.")
        .range("≥ `max_body`"),
    key(
        "max_wait",
        "While one write to the disk takes longer than this, whoever waits behind it is answered 429 `overloaded`, \
         new requests at once.",
    ),
    key("max_buffered", "Bytes of bodies that may be in memory while they arrive, all requests together.")
        .range("≥ `max_body`"),
    key(
        "webhook_allowed_origin",
        "Answers the CloudEvents webhook handshake (`OPTIONS /v1/events`) for this origin.",
    )
    .range("an origin, or `*` for any")
    .unset("off", "\"eventemitter.example.com\""),
];

const WAL: &[Key] = &[
    key("budget", "Bytes the event log takes on disk. When sinks lag and it is used up, posts are answered 429 `wal-full`."),
    key(
        "segment",
        "Bytes of one segment; also the most one request's events may take. A quarter of the budget when that is below \
         256 MiB.",
    )
    .range("≤ half of `budget`, whole 4 KiB pages"),
    key(
        "dedupe_window",
        "How many of the last events are remembered by source and id, so that a repeated post is no second event; 0 \
         turns it off. At most 32 bytes of memory each.",
    ),
    key("spares", "Segments prepared ahead."),
    key("min_free_disk", "Room left to others on the disk."),
    key("idle_marker", "After this long without a post, a mark on the disk records that everything before it is durable."),
];

const TELEMETRY: &[Key] = &[
    key("level", "What is logged.")
        .range("error, warn, info, debug, trace, off, or a filter such as `info,eventflow::http=debug`"),
    key("format", "How log lines look: for people, or one JSON object a line."),
];

const SINK: &[Key] = &[
    key("paused", "Starts paused, every time."),
    key("batch", "Most events delivered at once."),
    key("batch_bytes", "Most bytes of events delivered at once."),
    key("linger", "After it caught up, how long to gather before the next batch."),
    key("timeout", "A delivery that takes longer counts as failed."),
    key("backoff_initial", "First wait before the next try when the target is unavailable."),
    key("backoff_max", "Longest such wait.").range("≥ `backoff_initial`"),
    key("workers", "Deliveries at the same time.").range("1 where order is kept: `json_file` and `stdout`"),
    key(
        "retry.max_attempts",
        "An event that failed this often while others went through is given up. Sinks that keep order wait instead.",
    ),
    key("retry.initial", "Longest wait after an event's first attempt; it doubles with each further one."),
    key("retry.max", "Longest wait between two attempts.").range("≥ `retry.initial`"),
    key(
        "retry.exhausted",
        "Given up, an event is kept in the failure table (`record`), or counted, logged and gone (`drop`).",
    ),
    key(
        "order_by",
        "Events that have this attribute in common go one after another, in order, also when one is retried; others do \
         not wait. Sinks that keep order do so for all.",
    )
    .unset("none", "\"partitionkey\""),
    key("filter.type", "Only events whose `type` matches.")
        .range("a glob")
        .unset("all", "\"com.example.order.*\""),
    key("filter.source", "Only events whose `source` matches.").range("a glob").unset("all", "\"/shop/*\""),
    key("filter.subject", "Only events that have a `subject` that matches.")
        .range("a glob")
        .unset("all", "\"*\""),
];

const ARCHIVE: &[Key] = &[
    key("path", "Where, relative to `data_dir`.").range("a directory of its own"),
    key(
        "layout",
        "The directories below `path`, by the UTC date on which a file's first event was accepted; `year=%Y/month=%m/day=%d` \
         is read as partitions by DuckDB and Spark. An archive has one layout: another one needs a sink with another `name` and `path`.",
    )
    .range("`%Y`, `%m` and `%d` once each, in this order, in one to three directories"),
    key("rotate_size", "A file is finished at this size."),
    key("rotate_every", "A file is finished at this age, and at each change of the UTC date."),
    key("rotate_count", "A file is finished with so many events; 0 is no bound."),
    key("compress", "How finished files are kept; compressed in the background."),
    key(
        "retain_age",
        "Finished files whose last event is older than this, by the clock and by the newest event in a finished file, are removed; 0 keeps them for ever.",
    ),
    key("retain_size", "While finished files take more than this, the oldest is removed; 0 is no bound."),
];

const WEBHOOK: &[Key] = &[
    key("url", "Where to post; no user name or password in it.")
        .range("`https://…` or `http://…`")
        .unset("–", "\"https://example.org/hook\""),
    key(
        "mode",
        "One event a request, the same with attributes in headers, or a JSON array of events; with `batch` above 1 the \
         default is `batch`.",
    ),
    key("secrets", "Keys that sign requests; two while one replaces the other.")
        .range("up to 8 of `\"whsec_…\"` with `secret_files`, 24–64 bytes in base64")
        .unset("none", "[\"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"]"),
    key("secret_files", "The same, kept out of the configuration.")
        .range("files with one key each")
        .unset("none", "[\"/etc/eventflow/orders.key\"]"),
    key("headers", "Sent with every request.").range("a table").unset("none", "{ authorization = \"Bearer …\" }"),
    key("status", "What a status means where the default does not fit: `delivered`, `retry`, `reject` or `unavailable`.")
        .range("a table of a status or a class to a word")
        .unset("none", "{ 409 = \"delivered\", 5xx = \"retry\" }"),
    key("allow_private", "Needed to reach this machine or a private network."),
    key("ca_file", "The authorities that may vouch for the endpoint, in place of the system's.")
        .range("a file in PEM")
        .unset("the system's", "\"/etc/eventflow/ca.pem\""),
    key("connect_timeout", "For name, connection and TLS together."),
    key("max_answer", "Most bytes of an answer that are read."),
];

const EXEC: &[Key] = &[
    key("command", "The program and its arguments; no shell is between.")
        .range("a list")
        .unset("–", "[\"python3\", \"/opt/work.py\"]"),
    key(
        "env",
        "Added to its environment, which is otherwise `PATH`, `HOME`, `LANG`, `TZ`, `TMPDIR` and `EVENTFLOW_SINK`, the \
         sink's name.",
    )
    .range("a table")
    .unset("none", "{ DATABASE_URL = \"postgres://localhost/orders\" }"),
    key("max_line", "Longest line that it may write."),
];
