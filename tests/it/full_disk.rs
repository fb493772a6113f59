//! A file system that is really full, under the real binary: a small ext4 in a file, mounted for the test.
//!
//! The simulated disk shows every operation that meets a full disk; this shows the kernel's own way of
//! being full: delayed allocation, metadata that needs blocks, a restart on it. Mounting takes root; where
//! that is not to be had the test says so and ends, unless `EVENTFLOW_REQUIRE_MOUNT` is set.

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use crate::harness::{Answer, Client, Daemon, archive, eventually, run, words};

/// Tiny segments, short archive files, no room kept for others: the disk itself says when it is full.
const SETTINGS: &[(&str, &str)] = &[
    ("EVENTFLOW_WAL__SEGMENT", "256KiB"),
    ("EVENTFLOW_WAL__BUDGET", "64MiB"),
    ("EVENTFLOW_WAL__MIN_FREE_DISK", "0"),
    ("EVENTFLOW_SINK__ARCHIVE__BACKOFF_MAX", "200ms"),
    ("EVENTFLOW_SINK__ARCHIVE__ROTATE_COUNT", "100"),
];

/// A small file system of its own; unmounted when dropped.
struct SmallDisk {
    mounted: PathBuf,
    _dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount(bytes: u64) -> Result<Self, String> {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let (image, mounted) = (dir.path().join("image"), dir.path().join("mounted"));
        let file = std::fs::File::create(&image).map_err(|error| error.to_string())?;
        file.set_len(bytes).map_err(|error| error.to_string())?;
        std::fs::create_dir(&mounted).map_err(|error| error.to_string())?;
        done(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))?;
        done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted))?;
        Ok(Self { mounted, _dir: dir })
    }

    /// Fills what is left with one file, to the last byte.
    fn fill(&self) -> PathBuf {
        let ballast = self.ballast();
        let mut file = std::fs::File::create(ballast.join("blocks")).expect("a file can still be made");
        let mut piece_bytes = 1 << 20;
        while piece_bytes > 0 {
            // A full disk may take a part of a piece; what matters is that it takes no more.
            if file.write_all(&vec![0; piece_bytes]).and_then(|()| file.sync_data()).is_err() {
                piece_bytes /= 2;
            }
        }
        ballast
    }

    /// Makes files without a byte in them until no more can be made.
    fn use_up_inodes(&self) -> PathBuf {
        let ballast = self.ballast();
        let refused = (0..).find_map(|at| std::fs::File::create(ballast.join(format!("inode-{at}"))).err());
        assert_eq!(refused.map(|error| error.kind()), Some(std::io::ErrorKind::StorageFull));
        ballast
    }

    fn ballast(&self) -> PathBuf {
        let ballast = self.mounted.join("ballast");
        std::fs::create_dir(&ballast).expect("a directory can still be made");
        ballast
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.mounted).status();
    }
}

fn done(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn small_disk() -> Option<SmallDisk> {
    match SmallDisk::mount(48 << 20) {
        Ok(disk) => Some(disk),
        Err(reason) => {
            assert!(std::env::var_os("EVENTFLOW_REQUIRE_MOUNT").is_none(), "{reason}");
            println!("skipped: no small file system can be mounted here: {reason}");
            None
        }
    }
}

/// Posts one event after another until so many are acknowledged; the answer that refused one, if any.
fn post_up_to(
    count: usize,
    data_bytes: usize,
    client: &mut Client,
    acknowledged: &mut Vec<String>,
) -> Option<Answer> {
    let data = "x".repeat(data_bytes);
    while acknowledged.len() < count {
        let id = acknowledged.len().to_string();
        let event =
            format!(r#"{{"specversion":"1.0","id":"{id}","source":"/full","type":"t","data":"{data}"}}"#);
        let answer = client.post("application/cloudevents+json", event.as_bytes()).expect("answered");
        if answer.status != 202 {
            return Some(answer);
        }
        acknowledged.push(id);
    }
    None
}

/// Posts until not even the smallest event fits, and checks how that is told.
fn post_until_full(client: &mut Client, acknowledged: &mut Vec<String>) {
    for data_bytes in [20_000, 1_000, 0] {
        let answer =
            post_up_to(usize::MAX, data_bytes, client, acknowledged).expect("only a refusal ends this");
        assert_eq!((answer.status, answer.slug().as_str()), (503, "storage-full"), "{}", answer.text());
        let wait = answer.headers.get("retry-after").and_then(|wait| wait.parse::<u64>().ok());
        assert!(wait.is_some_and(|seconds| seconds >= 1), "{answer:?}");
    }
}

#[test]
fn a_really_full_disk_refuses_at_once_survives_a_kill_and_goes_on_when_there_is_room() {
    is_waited_out(SmallDisk::fill);
}

#[test]
fn a_disk_without_inodes_refuses_at_once_survives_a_kill_and_goes_on_when_there_are_some() {
    is_waited_out(SmallDisk::use_up_inodes);
}

fn is_waited_out(fill: fn(&SmallDisk) -> PathBuf) {
    let Some(disk) = small_disk() else { return };
    let data_dir = disk.mounted.join("data");
    let daemon = Daemon::start(&data_dir, SETTINGS);
    let mut client = daemon.client();
    let mut acknowledged = Vec::new();

    // The log's spare is there already: it is used up before anybody hears of the full disk.
    let ballast = fill(&disk);
    post_until_full(&mut client, &mut acknowledged);
    assert!(!acknowledged.is_empty(), "a prepared segment takes events on a full disk");
    assert_eq!(client.get("/livez").expect("answered").status, 200);
    assert_eq!(client.get("/readyz").expect("answered").status, 503);

    // Killed and started again while the disk is full: it reads, answers and refuses as before.
    daemon.kill();
    let daemon = Daemon::launch(&data_dir, SETTINGS).listening();
    eventually("the daemon to serve on the full disk", || {
        (daemon.status()["state"] == "serving").then_some(())
    });
    let mut client = daemon.client();
    post_until_full(&mut client, &mut acknowledged);
    assert_eq!(client.get("/livez").expect("answered").status, 200);

    // Room again: it accepts without being told to, and the archive catches up.
    std::fs::remove_dir_all(ballast).expect("removed");
    eventually("the daemon to accept again", || (client.get("/readyz").ok()?.status == 200).then_some(()));
    let more = acknowledged.len() + 10;
    let refused = post_up_to(more, 20_000, &mut client, &mut acknowledged);
    assert!(refused.is_none(), "{refused:?}");
    daemon.drained();
    assert_eq!(daemon.terminate().code(), Some(0));
    let archived: Vec<String> = archive(&data_dir).into_iter().map(|event| event.id).collect();
    assert_eq!(archived, acknowledged, "each once and in order");
    let verified = run(&["wal", "verify", "--data-dir", data_dir.to_str().expect("UTF-8")]);
    assert_eq!(verified.status.code(), Some(0), "{}", words(&verified));
}
