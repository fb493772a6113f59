//! A [`Config`] as TOML that reads back into the same [`Config`].
//!
//! Pure code. Every key is written, defaults included, so the output says all that holds.

use std::fmt::Write;
use std::path::Path;

use super::exec::is_secret_variable;
use super::units::{show_duration, show_size};
use super::{
    Config, Exec, Exhausted, Hidden, Hook, HookKind, Listen, LogFormat, SinkConfig, SinkKind, Webhook,
    is_secret_header,
};

/// The whole configuration.
pub(super) fn print(config: &Config) -> String {
    let Config { data_dir, http, wal, ledger, failures, shutdown, snapshot, sinks, hooks, telemetry } =
        config;
    let mut out = String::new();
    let o = &mut out;
    text(o, "data_dir", &path(data_dir));
    section(o, "[http]");
    text(o, "listen", &listen(&http.listen));
    if let Some(address) = &http.admin_listen {
        text(o, "admin_listen", &listen(address));
    }
    text(o, "max_body", &show_size(http.max_body_bytes));
    text(o, "max_event", &show_size(http.max_event_bytes));
    bare(o, "max_connections", http.max_connections);
    bare(o, "max_connections_per_address", http.max_connections_per_address);
    text(o, "header_timeout", &show_duration(http.header_timeout));
    text(o, "body_timeout", &show_duration(http.body_timeout));
    text(o, "idle_timeout", &show_duration(http.idle_timeout));
    text(o, "max_waiting", &show_size(http.max_waiting_bytes));
    text(o, "max_wait", &show_duration(http.max_wait));
    text(o, "max_buffered", &show_size(http.max_buffered_bytes));
    if let Some(origin) = &http.webhook_allowed_origin {
        text(o, "webhook_allowed_origin", origin);
    }
    bare(o, "allow_anonymous", http.allow_anonymous);
    if let Some(file) = &http.tokens_file {
        text(o, "tokens_file", &path(file));
    }
    if let Some(tls) = &http.tls {
        text(o, "tls_cert", &path(&tls.cert));
        text(o, "tls_key", &path(&tls.key));
        if let Some(file) = &tls.client_ca {
            text(o, "tls_client_ca", &path(file));
        }
    }
    section(o, "[wal]");
    text(o, "budget", &show_size(wal.budget_bytes));
    text(o, "segment", &show_size(wal.segment_bytes));
    bare(o, "dedupe_window", wal.dedupe_window);
    bare(o, "spares", wal.spares);
    text(o, "min_free_disk", &show_size(wal.min_free_disk_bytes));
    text(o, "idle_marker", &show_duration(wal.idle_marker));
    section(o, "[ledger]");
    text(o, "segment", &show_size(ledger.segment_bytes));
    text(o, "checkpoint_interval", &show_duration(ledger.checkpoint_interval));
    section(o, "[failures]");
    text(o, "budget", &show_size(failures.budget_bytes));
    text(o, "index_cache", &show_size(failures.index_cache_bytes));
    text(o, "index_deadline", &show_duration(failures.index_deadline));
    section(o, "[shutdown]");
    text(o, "drain_timeout", &show_duration(shutdown.drain_timeout));
    section(o, "[snapshot]");
    text(o, "max_hold", &show_duration(snapshot.max_hold));
    section(o, "[telemetry]");
    text(o, "level", &telemetry.level);
    text(o, "format", if telemetry.format == LogFormat::Json { "json" } else { "text" });
    for config in sinks {
        sink(o, config);
    }
    for config in hooks {
        hook(o, config);
    }
    out
}

fn listen(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(socket) => format!("unix:{}", path(socket)),
    }
}

/// One sink.
pub(super) fn print_sink(config: &SinkConfig) -> String {
    let mut out = String::new();
    sink(&mut out, config);
    out
}

fn sink(o: &mut String, sink: &SinkConfig) {
    section(o, "[[sink]]");
    text(o, "name", &sink.name);
    text(o, "type", sink.kind.name());
    if let SinkKind::JsonFile {
        path: dir,
        layout,
        rotate_size_bytes,
        rotate_every,
        rotate_count,
        compress,
        retain_age,
        retain_size_bytes,
    } = &sink.kind
    {
        text(o, "path", &path(dir));
        text(o, "layout", &layout.to_string());
        text(o, "rotate_size", &show_size(*rotate_size_bytes));
        text(o, "rotate_every", &show_duration(*rotate_every));
        bare(o, "rotate_count", rotate_count.unwrap_or(0));
        text(o, "compress", compress.name());
        text(o, "retain_age", &show_duration(retain_age.unwrap_or_default()));
        text(o, "retain_size", &show_size(retain_size_bytes.unwrap_or(0)));
    }
    if let SinkKind::Webhook(config) = &sink.kind {
        webhook(o, config);
    }
    if let SinkKind::Exec(config) = &sink.kind {
        exec(o, config);
    }
    bare(o, "paused", sink.paused);
    bare(o, "batch", sink.batch);
    text(o, "batch_bytes", &show_size(sink.batch_bytes));
    text(o, "linger", &show_duration(sink.linger));
    text(o, "timeout", &show_duration(sink.timeout));
    text(o, "backoff_initial", &show_duration(sink.backoff_initial));
    text(o, "backoff_max", &show_duration(sink.backoff_max));
    bare(o, "workers", sink.workers);
    bare(o, "retry.max_attempts", sink.retry.max_attempts);
    text(o, "retry.initial", &show_duration(sink.retry.initial));
    text(o, "retry.max", &show_duration(sink.retry.max));
    text(o, "retry.exhausted", if sink.retry.exhausted == Exhausted::Drop { "drop" } else { "record" });
    if let Some(by) = sink.order_by {
        text(o, "order_by", by.name());
    }
    let filter = &sink.filter;
    for (key, pattern) in
        [("type", &filter.event_type), ("source", &filter.source), ("subject", &filter.subject)]
    {
        if let Some(pattern) = pattern {
            text(o, &format!("filter.{key}"), pattern.as_str());
        }
    }
}

/// What is secret is shown as [`MASK`], so this part does not read back.
fn webhook(o: &mut String, webhook: &Webhook) {
    text(o, "url", &webhook.endpoint.url);
    text(o, "mode", webhook.mode.name());
    if !webhook.secrets.is_empty() {
        list(o, "secrets", webhook.secrets.iter().map(|_| MASK.to_owned()));
    }
    if !webhook.secret_files.is_empty() {
        list(o, "secret_files", webhook.secret_files.iter().map(|file| path(file)));
    }
    for (name, Hidden(value)) in &webhook.headers {
        let key = format!("headers.{}", quoted(name));
        text(o, &key, if is_secret_header(name) { MASK } else { value });
    }
    for (pattern, meaning) in &webhook.status {
        text(o, &format!("status.{pattern}"), meaning.name());
    }
    bare(o, "allow_private", webhook.allow_private);
    if let Some(file) = &webhook.ca_file {
        text(o, "ca_file", &path(file));
    }
    text(o, "connect_timeout", &show_duration(webhook.connect_timeout));
    text(o, "max_answer", &show_size(webhook.max_answer_bytes));
}

/// As with a webhook, secrets are masked.
fn exec(o: &mut String, exec: &Exec) {
    list(o, "command", exec.command.iter().cloned());
    for (name, Hidden(value)) in &exec.env {
        let key = format!("env.{}", quoted(name));
        text(o, &key, if is_secret_variable(name) { MASK } else { value });
    }
    text(o, "max_line", &show_size(exec.max_line_bytes));
}

/// As with a webhook, secrets are masked.
fn hook(o: &mut String, hook: &Hook) {
    section(o, "[[hook]]");
    text(o, "name", &hook.name);
    text(o, "type", hook.kind.name());
    if !hook.secrets.is_empty() {
        list(o, "secrets", hook.secrets.iter().map(|_| MASK.to_owned()));
    }
    if !hook.secret_files.is_empty() {
        list(o, "secret_files", hook.secret_files.iter().map(|file| path(file)));
    }
    if let Some(source) = &hook.source {
        text(o, "source", source);
    }
    if !matches!(hook.kind, HookKind::GitHub) {
        text(o, "event_type", &hook.event_type);
        text(o, "tolerance", &show_duration(hook.tolerance));
    }
    let HookKind::Hmac(hmac) = &hook.kind else { return };
    text(o, "header", &hmac.header);
    text(o, "prefix", &hmac.prefix);
    text(o, "encoding", hmac.encoding.name());
    text(o, "signed", &hmac.signed.iter().map(ToString::to_string).collect::<String>());
    let headers = [
        ("timestamp_header", &hmac.timestamp_header),
        ("id_header", &hmac.id_header),
        ("type_header", &hmac.type_header),
    ];
    for (key, header) in headers {
        if let Some(header) = header {
            text(o, key, header);
        }
    }
}

/// Stands where a secret is.
const MASK: &str = "***";

fn list(o: &mut String, key: &str, values: impl Iterator<Item = String>) {
    let values: Vec<String> = values.map(|value| quoted(&value)).collect();
    bare(o, key, format_args!("[{}]", values.join(", ")));
}

/// Paths come from TOML, the environment or flags as UTF-8, so nothing is lost here.
fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn section(o: &mut String, header: &str) {
    let _ = writeln!(o, "\n{header}");
}

fn text(o: &mut String, key: &str, value: &str) {
    bare(o, key, quoted(value));
}

/// A TOML string on one line, which may also be a key: TOML's longer form may not, and `explain` reads
/// line by line.
fn quoted(text: &str) -> String {
    let shown = toml::Value::String(text.to_owned()).to_string();
    if !shown.contains('\n') {
        return shown;
    }
    // JSON escapes as TOML does, but for one character that TOML does not take as it is.
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

fn bare(o: &mut String, key: &str, value: impl std::fmt::Display) {
    // Writing to a String cannot fail.
    let _ = writeln!(o, "{key} = {value}");
}
