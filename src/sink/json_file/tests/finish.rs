//! Finished files: compressed, listed, removed when their time has come; through power losses at every
//! disk operation, full disks and failing calls, and with a byte changed anywhere.

use super::*;
use crate::sink::json_file::catalog::Catalog;
use crate::sink::json_file::manifest::{Manifest, NAME};
use crate::sink::json_file::verify::{Verdict, verify};

fn packed(compress: Form) -> Options {
    Options { compress, ..options() }
}

fn open_with(disk: &SimulatedDisk, options: Options, resume: Resume) -> JsonFile {
    JsonFile::open(Arc::new(disk.clone()), options, resume).unwrap()
}

/// Has everything done that there is to do; a refusal of the disk ends it.
fn tend(sink: &JsonFile) -> Result<(), FinishError> {
    let mut finisher = sink.finisher();
    for _ in 0..1000 {
        if finisher.step(Micros(START))? == Step::Idle {
            return Ok(());
        }
    }
    panic!("it never comes to rest");
}

/// The archive's lines as any reader sees them.
fn lines(disk: &SimulatedDisk) -> String {
    let mut all = Vec::new();
    for file in Catalog::read(disk, &options().root).unwrap().files {
        let mut lines = file.open_lines(disk).unwrap();
        while let Some(piece) = lines.next_piece().unwrap() {
            match piece {
                Piece::Line(line) => all.extend_from_slice(line),
                other => all.extend_from_slice(format!("{other:?}").as_bytes()),
            }
            all.push(b'\n');
        }
    }
    String::from_utf8(all).unwrap()
}

fn judge(disk: &SimulatedDisk, checkpoint: &Checkpoint) -> Verdict {
    verify(disk, &options().root, checkpoint.token.as_deref(), 1, &|_, _| ()).unwrap()
}

/// Delivers from `from` on and tends after each delivery; the checkpoint at the end.
fn run_and_tend(sink: &mut JsonFile, world: &World, start: &Checkpoint, size: u64) -> Checkpoint {
    let mut checkpoint = start.clone();
    while checkpoint.next < world.len() {
        let end = (checkpoint.next + size).min(world.len());
        let delivery = deliver(sink, &world.batch(checkpoint.next..end)).unwrap();
        checkpoint = Checkpoint { token: delivery.token.or(checkpoint.token), next: end };
        tend(sink).unwrap();
    }
    let delivery = deliver(sink, &Batch::default()).unwrap();
    Checkpoint { token: delivery.token, next: checkpoint.next }
}

#[track_caller]
fn assert_whole(disk: &SimulatedDisk, world: &World, checkpoint: &Checkpoint, story: impl Fn() -> String) {
    let (found, expected) = (lines(disk), world.expected(0..world.len()));
    assert_eq!(offsets(&found), offsets(&expected), "{}", story());
    assert_eq!(found, expected, "{}", story());
    let verdict = judge(disk, checkpoint);
    let manifest = || String::from_utf8(disk.read_file(&options().root.join(NAME)).unwrap()).unwrap();
    assert_eq!(verdict.damage, [], "{}\n{}", story(), manifest());
    assert_eq!(verdict.notes, [] as [String; 0], "{}", story());
    assert_eq!(
        (verdict.events, verdict.next_offset),
        (expected.lines().count() as u64, world.len()),
        "{}",
        story()
    );
    let void: u64 = verdict.voids.iter().map(|void| void.end - void.start).sum();
    assert_eq!(void + verdict.events, world.len(), "{}: {:?}", story(), verdict.voids);
    let left: Vec<_> =
        disk.files().into_iter().filter(|path| path.to_string_lossy().ends_with(".tmp")).collect();
    assert!(left.is_empty(), "{}: {left:?}", story());
}

#[test]
fn finished_files_are_listed_as_they_lie_on_the_disk_and_the_open_one_is_not() {
    let world = World::new(60, 3);
    for compress in [Form::Plain, Form::Zstd, Form::Gzip] {
        let disk = SimulatedDisk::new(1);
        let mut sink = open_with(&disk, packed(compress), Resume::default());
        let checkpoint = run_and_tend(&mut sink, &world, &Checkpoint::default(), 4);
        assert_whole(&disk, &world, &checkpoint, || format!("{compress:?}"));
        let manifest = Manifest::read(&disk, &options().root).unwrap();
        let files = archive_files(&disk);
        assert_eq!(manifest.entries.len(), files.len() - 1);
        assert_eq!(manifest.lines as usize, files.len() - 1, "each once");
        for (entry, file) in manifest.entries.values().zip(&files) {
            assert_eq!(entry.path(&options().root), file.path);
            assert_eq!(file.form, compress);
            let bytes = disk.read_file(&file.path).unwrap();
            let sum = ring::digest::digest(&ring::digest::SHA256, &bytes);
            let sum: String = sum.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!((entry.bytes, &entry.sha256), (bytes.len() as u64, &sum));
        }
        assert_eq!(files.last().unwrap().form, Form::Plain);
    }
}

#[test]
fn a_file_is_finished_at_its_count() {
    let world = World::at_once(20, 3);
    let disk = SimulatedDisk::new(1);
    let options = Options { rotate_count: Some(3), rotate_size_bytes: 1 << 30, ..options() };
    let mut sink = open_with(&disk, options, Resume::default());
    run_and_tend(&mut sink, &world, &Checkpoint::default(), 5);
    let manifest = Manifest::read(&disk, Path::new("/data/archive")).unwrap();
    assert!(manifest.entries.len() >= 5);
    assert!(manifest.entries.values().all(|entry| entry.count == 3), "{manifest:?}");
}

/// A run with background work, recorded: the checkpoints and after which operation each was due.
fn record_tended(world: &World, options: Options, size: u64) -> Recording {
    let disk = SimulatedDisk::new(1);
    disk.record();
    let mut sink = open_with(&disk, options, Resume::default());
    let mut checkpoints = vec![(0, Checkpoint::default())];
    let mut next = 0;
    while next < world.len() {
        let end = (next + size).min(world.len());
        let delivery = deliver(&mut sink, &world.batch(next..end)).unwrap();
        checkpoints.push((disk.operations(), Checkpoint { token: delivery.token, next: end }));
        next = end;
        tend(&sink).unwrap();
    }
    Recording { disk, checkpoints }
}

#[test]
fn a_power_loss_at_every_operation_of_writing_compressing_and_listing_costs_nothing() {
    let world = World::new(24, 7);
    let mut states = 0;
    for (compress, size) in [(Form::Zstd, 3), (Form::Plain, 5), (Form::Gzip, 7)] {
        let recording = record_tended(&world, packed(compress), size);
        for operation in 0..=recording.disk.operations() {
            for policy in Policy::ALL {
                for (seed, lag) in seeds(policy, 2).flat_map(|seed| (0..3).map(move |lag| (seed, lag))) {
                    let story = || {
                        let did = recording.disk.describe(operation);
                        format!(
                            "operation {operation} ({did}), {policy:?}, seed {seed}, {lag} behind, {compress:?}"
                        )
                    };
                    let disk = recording.disk.at(operation).unwrap().power_loss(policy, seed);
                    let checkpoint = possible(&recording, operation, lag);
                    let mut sink = open_with(&disk, packed(compress), checkpoint.resume());
                    let end = run_and_tend(&mut sink, &world, &checkpoint, 5);
                    assert_whole(&disk, &world, &end, story);
                    states += 1;
                }
            }
        }
    }
    println!("{states} states");
}

#[test]
fn a_second_power_loss_after_a_recovery_that_built_on_what_a_kill_had_left_costs_nothing() {
    let world = World::new(20, 13);
    let recording = record_tended(&world, packed(Form::Zstd), 4);
    for operation in (0..=recording.disk.operations()).step_by(2) {
        let disk = recording.disk.at(operation).unwrap();
        disk.record();
        let checkpoint = possible(&recording, operation, 1);
        let mut sink = open_with(&disk, packed(Form::Zstd), checkpoint.resume());
        tend(&sink).unwrap();
        let recovered = disk.operations();
        drop(deliver(&mut sink, &world.batch(checkpoint.next..world.len())));
        for (again, policy) in (0..=recovered).zip(Policy::ALL.into_iter().cycle()) {
            let left = disk.at(again).unwrap().power_loss(policy, operation);
            let mut sink = open_with(&left, packed(Form::Zstd), checkpoint.resume());
            let end = run_and_tend(&mut sink, &world, &checkpoint, 5);
            assert_whole(&left, &world, &end, || format!("operation {operation}, then {again}, {policy:?}"));
        }
    }
}
