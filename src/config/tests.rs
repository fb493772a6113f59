use super::*;

fn from_file(text: &str) -> Result<Config, String> {
    Config::parse("f.toml", text, [], &[]).map_err(|e| e.to_string())
}

fn from_env(pairs: &[(&str, &str)]) -> Result<Config, String> {
    let env = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string()));
    Config::parse("f.toml", "", env, &[]).map_err(|e| e.to_string())
}

#[test]
fn nothing_configured_is_a_local_daemon_with_an_archive() {
    let config = Config::default();
    assert_eq!(config.data_dir, PathBuf::from("eventflow-data"));
    assert_eq!(config.http.listen, Listen::Tcp("127.0.0.1:8080".parse().unwrap()));
    assert_eq!((config.wal.budget_bytes, config.wal.segment_bytes), (1 << 30, 64 << 20));
    assert_eq!(config.wal.dedupe_window, 1_000_000);
    assert_eq!(config.sinks.len(), 1);
    assert_eq!(config.sinks[0].name, "archive");
    assert!(matches!(&config.sinks[0].kind, SinkKind::JsonFile { path, .. } if path == Path::new("archive")));
    assert_eq!(from_file("").unwrap(), config);
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let file =
        "data_dir = \"file\"\n[http]\nlisten = \"127.0.0.1:1\"\nmax_body = \"1MiB\"\nmax_connections = 7\n";
    let env = [
        ("EVENTFLOW_DATA_DIR".to_owned(), "env".to_owned()),
        ("EVENTFLOW_HTTP__LISTEN".to_owned(), "127.0.0.1:2".to_owned()),
        ("EVENTFLOW_HTTP__MAX_BODY".to_owned(), "2MiB".to_owned()),
    ];
    let flags = [("http.listen", "127.0.0.1:3".to_owned())];
    let config = Config::parse("f.toml", file, env, &flags).unwrap();
    assert_eq!(config.data_dir, PathBuf::from("env"));
    assert_eq!(config.http.listen, Listen::Tcp("127.0.0.1:3".parse().unwrap()));
    assert_eq!(config.http.max_body_bytes, 2 << 20);
    assert_eq!(config.http.max_connections, 7);
    assert_eq!(config.http.body_timeout, Duration::from_secs(30));
}

#[test]
fn what_check_prints_reads_back_the_same() {
    let rich = r#"
        data_dir = 'a "quoted" path\with backslash'
        [http]
        listen = "unix:/run/e.sock"
        header_timeout = "1500ms"
        webhook_allowed_origin = "*"
        [wal]
        budget = "100MiB"
        dedupe_window = 0
        [shutdown]
        drain_timeout = "0s"
        [telemetry]
        level = "info,eventflow::http=debug"
        format = "json"
        [[sink]]
        name = "out"
        type = "stdout"
        paused = true
        [[sink]]
        name = "keep"
        type = "json_file"
        path = "/srv/keep"
        rotate_every = "90m"
        workers = 1
        filter = { type = 'a"*\b', source = "/x/*", subject = "{a,b}" }
    "#;
    for config in [Config::default(), from_file(rich).unwrap()] {
        assert_eq!(from_file(&config.to_toml()).unwrap(), config, "{}", config.to_toml());
    }
}

#[test]
fn line_breaks_and_hooks_are_printed_as_toml_too() {
    let text = r#"
        data_dir = "a\nb\u007f"
        [http]
        webhook_allowed_origin = "*\n[wal]\nbudget = \"2GiB\""
        [[sink]]
        name = "out"
        type = "exec"
        command = ["a\nb", "c"]
        env = { "a b\n" = "c\n[[hook]]", d = "\r" }
    "#;
    let config = from_file(text).unwrap();
    for printed in [config.to_toml(), config.explain()] {
        assert_eq!(from_file(&printed).unwrap(), config, "{printed}");
    }
    let hook = |name: &str| {
        format!("[[hook]]\nname = \"{name}\"\ntype = \"github\"\nsecrets = [\"0123456789abcdef\"]\n")
    };
    let explained = from_file(&(hook("a") + &hook("b"))).unwrap().explain();
    assert_eq!(explained.matches("\n[[hook]]\nname = ").count(), 2, "{explained}");
    // But for the secrets, which are not shown.
    let shown = from_file(&explained.replace("***", "0123456789abcdef")).unwrap();
    assert_eq!(shown.hooks.len(), 2);
}

/// Each text is refused with a message that holds all the words.
#[test]
fn mistakes_name_the_key_the_place_and_what_would_be_right() {
    let table: &[(&str, &[&str])] = &[
        ("[http]\nlistn = \"x\"", &["f.toml:2:", "`http.listn`", "`http.listen`"]),
        ("listen = \"127.0.0.1:1\"", &["f.toml:1:", "did you mean `http.listen`"]),
        ("[htp]\nlisten = \"127.0.0.1:1\"", &["f.toml:2:", "`http.listen`"]),
        ("datadir = \"x\"", &["`datadir`", "`data_dir`"]),
        ("[http]\nmax_body = \"5GiB\"", &["f.toml:2:", "`http.max_body`", "5GiB", "1B to 1GiB"]),
        ("[http]\nmax_connections = 0", &["`http.max_connections` = 0", "1 to 1000000"]),
        ("[http]\nmax_connections = -1", &["-1"]),
        ("[http]\nbody_timeout = 30", &["`http.body_timeout` = 30", "\"30s\""]),
        ("[http]\nbody_timeout = \"soon\"", &["\"soon\"", "10ms to 1h"]),
        ("[http]\nlisten = \"8080\"", &["127.0.0.1:8080"]),
        ("[http]\nlisten = \"0.0.0.0:8080\"", &["0.0.0.0:8080", "allow_anonymous"]),
        ("[http]\nallow_anonymous = \"yes\"", &["true or false"]),
        ("[http]\nmax_body = \"1KiB\"\nmax_event = \"1MiB\"", &["max_event", "max_body"]),
        ("[http]\ntls_cert = \"x\"", &["`http.tls_cert` needs `http.tls_key`"]),
        ("[http]\ntls_key = \"x\"", &["`http.tls_key` needs `http.tls_cert`"]),
        ("[http]\ntls_client_ca = \"x\"", &["`http.tls_client_ca` needs"]),
        ("[http]\ntls_cert = \"/no/x\"\ntls_key = \"/no/x\"", &["/no/x cannot be read"]),
        ("[http]\ntokens_file = \"/no/x\"", &["`http.tokens_file`", "/no/x cannot be read"]),
        ("[wal]\nbudget = \"1MiB\"\nsegment = \"1MiB\"", &["half", "wal.budget"]),
        ("[wal]\nsegment = \"64MB\"\nbudget = \"1GiB\"\nsegments = 1", &["`wal.segments`", "`wal.segment`"]),
        ("[wal]\nsegment = 9000", &["multiple of 4KiB"]),
        ("[wal]\nspares = 4\nbudget = \"1MiB\"", &["wal.spares"]),
        ("[telemetry]\nlevel = \"inof\"", &["inof", "info"]),
        ("[telemetry]\nformat = \"xml\"", &["\"text\" or \"json\""]),
        ("[sink]\nname = \"a\"", &["[[sink]]"]),
        ("[[sink]]\ntype = \"stdout\"", &["needs a `name`"]),
        ("[[sink]]\nname = \"A b\"\ntype = \"stdout\"", &["a-z"]),
        ("[[sink]]\nname = \"a\"", &["needs a `type`"]),
        ("[[sink]]\nname = \"a\"\ntype = \"webhook\"\n", &["sink `a` needs a `url`"]),
        ("[[sink]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"example.org\"", &["`sink.a.url`", "https://"]),
        (
            "[[sink]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"http://localhost:1/\"",
            &["localhost:1", "`allow_private = true`"],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"http://[fd00::1]/\"",
            &["`allow_private = true`"],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"http://x\"\nca_file = \"/nowhere\"",
            &["https", "/nowhere cannot be read"],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"http://x\"\nsecret_files = [\"/nowhere\"]",
            &["/nowhere cannot be read"],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"http://x\"\nmode = \"soap\"",
            &["`sink.a.mode`", "\"structured\" or \"binary\" or \"batch\""],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"http://x\"\nstatus = { 4x = \"retry\" }",
            &["`sink.a.status.4x`", "5xx"],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"http://x\"\nstatus = { 404 = \"maybe\" }",
            &["`sink.a.status.404`", "\"reject\""],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"http://x\"\nheaders = { Content-Type = \"x\" }",
            &["`sink.a.headers.Content-Type`", "of its own"],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"stdout\"\nurl = \"http://x\"",
            &["`sink.a.url`", "type \"webhook\" only"],
        ),
        ("[[sink]]\nname = \"a\"\ntype = \"json_file\"\ncompress = \"lz4\"", &["`sink.a.compress`", "zstd"]),
        (
            "[[sink]]\nname = \"a\"\ntype = \"json_file\"\nlayout = \"../%Y/%m/%d\"",
            &["f.toml:4:", "`sink.a.layout` = \"../%Y/%m/%d\"", "once each, in this order"],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"stdout\"\nlayout = \"%Y-%m-%d\"",
            &["`sink.a.layout`", "type \"json_file\" only"],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"json_file\"\nworkers = 4",
            &["sink `a`", "`workers` = 4", "keeps events in order"],
        ),
        ("[[sink]]\nname = \"a\"\ntype = \"stdout\"\nworkers = 65", &["`sink.a.workers` = 65", "1 to 64"]),
        (
            "[[sink]]\nname = \"a\"\ntype = \"stdout\"\nfilter = { type = \"[\" }",
            &["f.toml:4:", "`sink.a.filter.type`", "glob"],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"stdout\"\nfilter = { typ = \"x\" }",
            &["`sink.filter.typ`", "`sink.filter.type`"],
        ),
        ("[[sink]]\nname = \"a\"\ntype = \"stdout\"\nfilter = \"x\"", &["`sink.a.filter`", "a table"]),
        (
            "[[sink]]\nname = \"a\"\ntype = \"stdout\"\nretry = { initial = \"1s\" }",
            &["sink `a`", "`retry` would change nothing", "backoff_max"],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"stdout\"\nretry = { initial = \"1s\", max = \"1ms\" }",
            &["`retry.max` is shorter"],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"stdout\"\nretry = { exhausted = \"forget\" }",
            &["`sink.a.retry.exhausted`", "\"record\" or \"drop\""],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"exec\"\ncommand = [\"cat\"]\norder_by = \"key\"",
            &["`sink.a.order_by`", "\"partitionkey\" or \"subject\" or \"source\""],
        ),
        ("[http]\nlisten = { a = 1 }", &["f.toml:2:", "`http.listen.a`"]),
        (
            "[[sink]]\nname = \"a\"\ntype = \"stdout\"\nbatchh = 1",
            &["f.toml:4:", "`sink.batchh`", "`sink.batch`"],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"stdout\"\n[[sink]]\nname = \"a\"\ntype = \"stdout\"",
            &["two sinks are named `a`"],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"json_file\"\n[[sink]]\nname = \"b\"\ntype = \"json_file\"\npath = \"./archive/\"",
            &["`a` and `b`", "path"],
        ),
        (
            "[[sink]]\nname = \"a\"\ntype = \"json_file\"\npath = \"./wal/x\"",
            &["`sink.a.path`", "of its own"],
        ),
        ("[wall]", &["`[wall]`", "`[wal]`"]),
        ("[http\n", &["f.toml:1:", "not TOML"]),
        ("[failures]\nbudget = 1", &["`failures.budget`", "1MiB"]),
    ];
    for (text, words) in table {
        let error = from_file(text).expect_err(text);
        for word in *words {
            assert!(error.contains(word), "{text}\n→ {error}\nlacks {word}");
        }
    }
}

#[test]
fn no_secret_is_in_a_mistake_or_in_debug_output_or_in_what_check_prints() {
    let sink = |rest: &str| format!("[[sink]]\nname = \"a\"\ntype = \"webhook\"\n{rest}");
    for wrong in [
        "url = \"https://me:hunter2@x/\"",
        "url = \"http://x\"\nsecrets = [\"whsec_hunter2\"]",
        "url = \"http://x\"\nsecrets = \"hunter2\"",
        "url = \"http://x\"\nheaders = { authorization = \"hunter2\\n\" }",
        "url = \"http://x\"\nheaders = \"hunter2 ca\"",
    ] {
        let error = from_file(&sink(wrong)).expect_err(wrong);
        assert!(wrong.ends_with("ca\"") || !error.contains("hunter2"), "{error}");
    }
    let key = "whsec_aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMg==";
    let config = from_file(&sink(&format!(
        "url = \"http://x\"\nsecrets = [\"{key}\"]\nheaders = {{ Authorization = \"hunter2\", X-Api-Key = \"hunter2\", x-team = \"blue\" }}"
    )))
    .unwrap();
    let (printed, debugged) = (config.to_toml(), format!("{config:?}"));
    for text in [&printed, &debugged] {
        assert!(!text.contains("hunter2") && !text.contains("aHVudGVy"), "{text}");
    }
    for line in
        ["secrets = [\"***\"]", "headers.\"Authorization\" = \"***\"", "headers.\"x-team\" = \"blue\""]
    {
        assert!(printed.contains(line), "{line} is not in\n{printed}");
    }
}

#[test]
fn a_webhook_needs_nothing_but_its_url() {
    let text = "[[sink]]\nname = \"orders\"\ntype = \"webhook\"\nurl = \"https://example.org/hook\"\n";
    let webhook = |text: &str| {
        let config = from_file(text).unwrap();
        let SinkKind::Webhook(webhook) = &config.sinks[0].kind else { panic!("a webhook") };
        (webhook.mode, config.sinks[0].batch, config.sinks[0].timeout)
    };
    let ten = Duration::from_secs(10);
    assert_eq!(webhook(text), (Mode::Structured, 1, ten));
    assert_eq!(webhook(&format!("{text}batch = 1")), (Mode::Structured, 1, ten));
    assert_eq!(webhook(&format!("{text}batch = 50")), (Mode::Batch, 50, ten));
    assert_eq!(webhook(&format!("{text}mode = \"batch\"")), (Mode::Batch, 100, ten));
    let config = from_file(text).unwrap();
    assert_eq!(from_file(&config.to_toml()).unwrap(), config, "what check prints reads back the same");
    let keys = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let env = [("EVENTFLOW_SINK__ORDERS__SECRETS", keys), ("EVENTFLOW_SINK__ORDERS__STATUS__5XX", "retry")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::parse("f.toml", text, env, &[]).unwrap();
    let SinkKind::Webhook(webhook) = &config.sinks[0].kind else { panic!("a webhook") };
    assert_eq!(
        (webhook.secrets.len(), webhook.meaning(503), webhook.meaning(200)),
        (2, Meaning::Retry, Meaning::Delivered)
    );
}

#[test]
fn an_exec_sink_needs_a_command_and_hides_secret_variables() {
    let sink = |rest: &str| format!("[[sink]]\nname = \"a\"\ntype = \"exec\"\n{rest}");
    for (wrong, word) in [
        ("", "needs a `command`"),
        ("command = []", "needs a `command`"),
        ("command = \"sh -c x\"", "a list of texts"),
        ("command = [\"x\"]\nenv = { \"A=B\" = \"1\" }", "not an environment variable"),
        ("command = [\"x\"]\nurl = \"http://x\"", "type \"webhook\" only"),
    ] {
        let error = from_file(&sink(wrong)).expect_err(wrong);
        assert!(error.contains(word), "{wrong} → {error}");
    }
    let config = from_file(&sink("command = [\"sh\", \"-c\", \"x\"]\nenv = { MODE = \"fast\" }")).unwrap();
    assert_eq!(from_file(&config.to_toml()).unwrap(), config, "what check prints reads back the same");
    let config = from_file(&sink("command = [\"x\"]\nenv = { API_TOKEN = \"hunter2\" }")).unwrap();
    assert!(!config.to_toml().contains("hunter2") && config.to_toml().contains("***"));
}

#[test]
fn one_run_names_every_mistake() {
    let error = from_file("[http]\nmax_connections = 0\nlistn = 1\n[wal]\nspares = 99").unwrap_err();
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn settings_that_change_nothing_are_taken_although_the_feature_is_missing() {
    let text = "[failures]\nbudget = \"2MiB\"\n[[sink]]\nname = \"a\"\ntype = \"json_file\"\ncompress = \"none\"\nworkers = 1";
    assert_eq!(from_file(text).unwrap().failures.budget_bytes, 2 << 20);
}

#[test]
fn tables_within_a_sink_may_be_inline_dotted_or_from_the_environment() {
    let sink = "[[sink]]\nname = \"a\"\ntype = \"stdout\"\n";
    for more in ["filter = { type = \"x\" }", "filter.type = \"x\"", "[sink.filter]\ntype = \"x\""] {
        let config = from_file(&format!("{sink}{more}")).unwrap();
        assert_eq!(config.sinks[0].filter.event_type.as_ref().unwrap().as_str(), "x", "{more}");
    }
    let config = from_env(&[("EVENTFLOW_SINK__ARCHIVE__FILTER__SUBJECT", "y")]).unwrap();
    assert_eq!(config.sinks[0].filter.subject.as_ref().unwrap().as_str(), "y");
    assert!(from_file(&format!("{sink}retry = {{}}\nfilter = {{}}")).unwrap().sinks[0].filter.is_open());
}

#[test]
fn an_embedded_sink_has_the_defaults_of_the_contract() {
    let sink = SinkConfig::embedded("mine");
    assert_eq!((sink.workers, sink.retry.max_attempts), (1, 10));
    assert_eq!((sink.retry.initial, sink.retry.max), (Duration::from_millis(200), Duration::from_secs(300)));
    assert_eq!(sink.retry.exhausted, Exhausted::Record);
    assert!(sink.filter.is_open() && !sink.kind.keeps_order());
}

#[test]
fn a_small_budget_gets_four_segments() {
    for (budget, segment) in
        [("1MiB", 256 << 10), ("100KiB", 24 << 10), ("255MiB", (255 << 20) / 4), ("16KiB", 8 << 10)]
    {
        let config = from_file(&format!("[wal]\nbudget = \"{budget}\"")).unwrap();
        assert_eq!(config.wal.segment_bytes, segment, "{budget}");
    }
}

#[test]
fn listening_everywhere_must_be_asked_for() {
    assert!(from_file("[http]\nlisten = \"0.0.0.0:1\"\nallow_anonymous = true").is_ok());
    assert!(from_file("[http]\nlisten = \"[::1]:1\"").is_ok());
    assert!(from_file("[http]\nlisten = \"localhost:1\"").is_ok());
}

#[test]
fn every_key_can_be_set_by_environment() {
    let config = from_env(&[
        ("EVENTFLOW_HTTP__MAX_CONNECTIONS", "5"),
        ("EVENTFLOW_HTTP__ALLOW_ANONYMOUS", "true"),
        ("EVENTFLOW_WAL__DEDUPE_WINDOW", "0"),
        ("EVENTFLOW_SINK__ARCHIVE__ROTATE_SIZE", "1MiB"),
        ("HOME", "/root"),
    ])
    .unwrap();
    assert_eq!((config.http.max_connections, config.http.allow_anonymous), (5, true));
    assert_eq!(config.wal.dedupe_window, 0);
    assert!(matches!(config.sinks[0].kind, SinkKind::JsonFile { rotate_size_bytes: 1_048_576, .. }));
    for (name, word) in [
        ("EVENTFLOW_HTTP__LISTN", "`http.listen`"),
        ("EVENTFLOW_DATADIR", "EVENTFLOW_DATA_DIR"),
        ("EVENTFLOW_SINK__NOBODY__BATCH", "no sink is named"),
        ("EVENTFLOW_HTTP__MAX_CONNECTIONS", "EVENTFLOW_HTTP__MAX_CONNECTIONS"),
    ] {
        let error = from_env(&[(name, "many")]).expect_err(name);
        assert!(error.contains(word), "{name} → {error}");
    }
    // What container platforms inject for a service called eventflow is none of ours.
    assert!(
        from_env(&[("EVENTFLOW_PORT", "tcp://10.0.0.1:80"), ("EVENTFLOW_SERVICE_HOST", "10.0.0.1")]).is_ok()
    );
}

#[test]
fn every_printed_key_is_settable_by_environment_too() {
    let config = Config::default();
    let mut section = String::new();
    for line in config.to_toml().lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = match name.trim_matches(['[', ']']) {
                "sink" => "SINK__ARCHIVE__".to_owned(),
                name => format!("{}__", name.to_uppercase()),
            };
        } else if let Some((key, value)) = line.split_once(" = ") {
            let name = format!("EVENTFLOW_{section}{}", key.to_uppercase().replace('.', "__"));
            assert_eq!(from_env(&[(&name, value.trim_matches('"'))]).unwrap(), config, "{name}");
        }
    }
}

#[test]
fn every_key_has_its_words_and_all_words_have_their_key() {
    let named = |table: &keys::Table, key: &keys::Key| match table.name {
        "" => key.name.to_owned(),
        name => format!("{name}.{}", key.name),
    };
    let words = keys::TABLES.iter().flat_map(|table| table.keys.iter().map(move |key| (table, key)));
    let told: Vec<String> = words.clone().map(|(table, key)| named(table, key)).collect();
    let asked = explain::asked();
    for key in asked.values() {
        let holds_others = asked.keys().any(|other| other.starts_with(&format!("{}.", key.name)));
        assert!(told.contains(&key.name) || holds_others, "`{}` has no row in src/config/keys.rs", key.name);
    }
    let default = Config::default().explain();
    for ((table, key), name) in words.zip(&told) {
        assert!(asked.contains_key(name), "src/config/keys.rs tells of `{name}`, which nobody reads");
        assert!(!format!("{}{}", key.what, key.range).contains('|'), "`{name}` would break the table");
        let stands = [format!("\n{} = ", key.name), format!("\n#{} = ", key.name)];
        assert!(
            stands.iter().any(|line| default.contains(line))
                && key.unset.is_empty() == key.example.is_empty(),
            "`{name}` of `{}` is printed neither by src/config/print.rs nor has it an example",
            table.kind
        );
    }
}

#[test]
fn what_is_explained_reads_back_the_same_and_what_stands_behind_a_hash_is_made_of_keys() {
    let sinks =
        "[[sink]]\nname = \"a\"\ntype = \"webhook\"\nurl = \"https://x/\"\nstatus = { 404 = \"retry\" }\n";
    for config in [Config::default(), from_file(sinks).unwrap()] {
        assert_eq!(from_file(&config.explain()).unwrap(), config, "{}", config.explain());
    }
    let explained = Config::default().explain();
    let lines = explained.lines().map(|line| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => setting,
        _ => line,
    });
    if let Err(mistakes) = from_file(&lines.collect::<Vec<_>>().join("\n")) {
        // Files that an example names are not there.
        let other = mistakes.lines().find(|line| !line.contains("cannot be read"));
        assert_eq!(other, None, "{mistakes}");
    }
}
