//! The sink against shell programs that do everything wrong.

use super::*;
use crate::config::{Config, SinkKind};
use crate::event::Micros;
use crate::sink::tests::{batch_of, letters};

/// Reads a line, puts its offset into `$o` and its id into `$id`.
const NEXT: &str = r#"next() { IFS= read -r line || exit 0; o=${line##*\"eventflowoffset\":\"}; o=${o%%\"*}; id=${line##*\"id\":\"}; id=${id%%\"*}; }
say() { printf '{"offset":"%s","outcome":"%s","reason":"%s"}\n' "$o" "$1" "$2"; }
"#;

fn sink(script: &str, more: &str) -> Exec {
    let text = format!(
        "[[sink]]\nname = \"work\"\ntype = \"exec\"\ncommand = [\"sh\", \"-c\", {:?}]\n{more}",
        format!("{NEXT}{script}")
    );
    let config = Config::parse("test", &text, [], &[]).unwrap().sinks.remove(0);
    let SinkKind::Exec(exec) = &config.kind else { panic!("an exec sink") };
    Exec::new(&config, exec)
}

fn batch(offsets: impl IntoIterator<Item = u64>) -> Batch {
    let texts: Vec<(u64, String)> = offsets
        .into_iter()
        .map(|n| {
            (
                n,
                format!(
                    r#"{{"specversion":"1.0","id":"e{n}","source":"/s","type":"t","data":"{}"}}"#,
                    "x".repeat(200)
                ),
            )
        })
        .collect();
    batch_of(&texts, Micros(0))
}

async fn delivered(sink: &mut Exec, offsets: impl IntoIterator<Item = u64>) -> String {
    let batch = batch(offsets);
    letters(sink.deliver(&batch).await, batch.events.len())
}

#[tokio::test]
async fn a_program_answers_each_event_in_any_order_by_offset_or_id() {
    let mut sink = sink(
        r#"while :; do next; first=$o; next; say delivered; printf '\n{"id":"e%s","outcome":"reject","reason":"no"}\n' "$first"; done"#,
        "",
    );
    assert_eq!(delivered(&mut sink, [1, 2]).await, "jd");
    assert_eq!(delivered(&mut sink, [3, 4, 7, 8]).await, "jdjd");
    sink.close().unwrap();
}

#[tokio::test]
async fn a_batch_larger_than_a_pipe_does_not_stop_a_program_that_answers_as_it_reads() {
    let mut sink = sink("while :; do next; say delivered; done", "");
    assert_eq!(delivered(&mut sink, 0..2_000).await, "d".repeat(2_000));
}

#[tokio::test]
async fn a_program_that_ends_is_started_anew_and_gets_only_what_has_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("seen");
    let script = r#"while :; do next; echo "$o" >> "$SEEN"; [ "$o" = 2 ] && [ ! -e "$SEEN.once" ] && : > "$SEEN.once" && echo last words >&2 && exit 3; say delivered; done"#;
    let mut sink = sink(script, &format!("env = {{ SEEN = {:?} }}", file.display().to_string()));
    // Two were answered, so the third is to blame for now; the fourth goes to the next program.
    let said = delivered(&mut sink, 0..4).await;
    assert_eq!(said, "the program ended with code 3; it last said: last words");
    assert_eq!(delivered(&mut sink, 0..4).await, "ddrd");
    assert_eq!(delivered(&mut sink, [2]).await, "d");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "0\n1\n2\n3\n2\n");
}

#[tokio::test]
async fn a_program_that_ends_between_deliveries_is_replaced_unnoticed() {
    let mut sink = sink("next; say delivered", "");
    for offset in 0..5 {
        assert_eq!(delivered(&mut sink, [offset]).await, "d");
    }
}

#[tokio::test]
async fn a_program_that_never_works_is_unavailable_and_poison_is_let_past_in_the_end() {
    let mut missing = sink("", "");
    missing.config.command = vec!["/nowhere/at/all".to_owned()];
    assert!(delivered(&mut missing, [0]).await.starts_with("`/nowhere/at/all` cannot be started"));
    let mut broken = sink("exit 1", "");
    for _ in 0..3 {
        assert_eq!(delivered(&mut broken, [0]).await, "the program ended with code 1");
    }
    assert_eq!(delivered(&mut broken, [0]).await, "r");
}

#[tokio::test]
async fn nonsense_is_not_believed() {
    for (script, said) in [
        ("next; echo hello", "answered nonsense"),
        (r#"next; o=99; say delivered"#, "an event that it was not given"),
        ("next; say done", "answered nonsense"),
        ("next; head -c 1000 /dev/zero; echo; sleep 100", "a line longer than `max_line`"),
    ] {
        let answer = delivered(&mut sink(script, "max_line = 256"), [0]).await;
        assert!(answer.contains(said), "{script}: {answer}");
    }
}

#[tokio::test]
async fn a_program_that_falls_silent_is_killed_with_everything_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("alive");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
        .unwrap();
    let open = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let mut held: std::fs::File = rustix::fs::open(&fifo, open, rustix::fs::Mode::empty()).unwrap().into();
    let mut sink = sink(
        r#"exec 3> "$ALIVE"; sleep 1000 & echo started >&3; next; wait"#,
        &format!("timeout = \"4s\"\nenv = {{ ALIVE = {:?} }}", fifo.display().to_string()),
    );
    assert_eq!(delivered(&mut sink, [0]).await, "the program did not answer within 3s 600ms");
    // A signal is not its effect: the pipe ends when the last process that holds it has died.
    rustix::fs::fcntl_setfl(&held, rustix::fs::OFlags::empty()).unwrap();
    let (ended, end) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut said = String::new();
        std::io::Read::read_to_string(&mut held, &mut said).unwrap();
        ended.send(said)
    });
    let said = end.recv_timeout(std::time::Duration::from_secs(60)).expect("something it started lives on");
    assert_eq!(said, "started\n");
}

#[tokio::test]
async fn a_program_sees_no_more_of_the_environment_than_it_should() {
    let mut sink = sink(
        r#"next; [ "$EVENTFLOW_SINK$GIVEN" = workyes ] && [ -z "$CARGO_MANIFEST_DIR$USER" ] && say delivered || say reject"#,
        "env = { GIVEN = \"yes\" }",
    );
    assert_eq!(delivered(&mut sink, [0]).await, "d");
}

#[tokio::test]
async fn lines_are_cut_at_their_limit_and_the_next_one_is_whole() {
    let mut input: &[u8] = b"short\nmuch too long\n\nlast";
    let mut line = Vec::new();
    let mut read = Vec::new();
    while let Some(whole) = child::read_line(&mut input, &mut line, 5).await.unwrap() {
        read.push((String::from_utf8(line.clone()).unwrap(), whole));
    }
    let expected = [("short", true), ("much ", false), ("", true), ("last", true)];
    assert_eq!(read, expected.map(|(line, whole)| (line.to_owned(), whole)));
}
