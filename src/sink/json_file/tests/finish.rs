//! Finished files: compressed, listed, removed when their time has come; through power losses at every
//! disk operation, full disks and failing calls, and with a byte changed anywhere.

use super::*;
use crate::sink::json_file::catalog::Catalog;
use crate::sink::json_file::manifest::{Manifest, NAME};
use crate::sink::json_file::verify::{Verdict, verify};

fn packed(compress: Form) -> Options {
    Options { compress, ..options() }
}

fn laid(layout: &str, options: Options) -> Options {
    let layout = Layout::parse(layout).unwrap();
    Options { tree: Tree { layout, ..options.tree }, ..options }
}

const HIVE: &str = "year=%Y/month=%m/day=%d";

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
    for file in Catalog::read(disk, &tree(disk)).unwrap().files {
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
    verify(disk, &tree(disk), checkpoint.token.as_deref(), 1, &|_, _| ()).unwrap()
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
    tend(sink).unwrap();
    let delivery = deliver(sink, &Batch::default()).unwrap();
    Checkpoint { token: delivery.token, next: checkpoint.next }
}

#[track_caller]
fn assert_whole(disk: &SimulatedDisk, world: &World, checkpoint: &Checkpoint, story: impl Fn() -> String) {
    let (found, expected) = (lines(disk), world.expected(0..world.len()));
    assert_eq!(offsets(&found), offsets(&expected), "{}", story());
    assert_eq!(found, expected, "{}", story());
    let verdict = judge(disk, checkpoint);
    let manifest = || String::from_utf8(disk.read_file(&options().tree.root.join(NAME)).unwrap()).unwrap();
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
        let manifest = Manifest::read(&disk, &options().tree.root).unwrap();
        let files = archive_files(&disk);
        assert_eq!(manifest.entries.len(), files.len() - 1);
        assert_eq!(manifest.lines as usize, files.len() - 1, "each once");
        for (entry, file) in manifest.entries.values().zip(&files) {
            assert_eq!(entry.path(&options().tree.root), file.path);
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

/// A recorded run with background work.
fn record_tended(world: &World, options: Options, size: u64) -> Recording {
    record_with(world, size, |disk| open_with(disk, options, Resume::default()), |sink| tend(sink).unwrap())
}

#[test]
fn a_power_loss_at_every_operation_of_writing_compressing_and_listing_costs_nothing() {
    let world = World::new(24, 7);
    let mut states = 0;
    for (compress, size, layout) in
        [(Form::Zstd, 3, "%Y/%m/%d"), (Form::Plain, 5, "%Y%m%d"), (Form::Gzip, 7, HIVE)]
    {
        let options = laid(layout, packed(compress));
        let recording = record_tended(&world, options.clone(), size);
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
                    let mut sink = open_with(&disk, options.clone(), checkpoint.resume());
                    let end = run_and_tend(&mut sink, &world, &checkpoint, 5);
                    assert_whole(&disk, &world, &end, story);
                    assert!(tree(&disk) == options.tree, "{}", story());
                    states += 1;
                }
            }
        }
    }
    println!("{states} states");
}

#[test]
fn another_layout_is_refused_with_nothing_touched_after_a_kill_at_every_operation_and_set_back_goes_on() {
    let world = World::new(20, 7);
    let (ours, other) = (laid(HIVE, packed(Form::Zstd)), laid("%Y/%m/%d", packed(Form::Zstd)));
    let recording = record_tended(&world, ours.clone(), 4);
    let content = |disk: &SimulatedDisk| -> Vec<_> {
        disk.files().into_iter().map(|path| (disk.read_file(&path).unwrap(), path)).collect()
    };
    let mut refusals = 0;
    for operation in 0..=recording.disk.operations() {
        let due = possible(&recording, operation, 1);
        let none = Checkpoint::default();
        for (checkpoint, keeps_manifest) in [(&due, true), (&none, true), (&none, false)] {
            let disk = recording.disk.at(operation).unwrap();
            if !keeps_manifest {
                drop(disk.remove_file(&ours.tree.root.join(NAME)));
            }
            let before = content(&disk);
            if !before.iter().any(|(_, path)| path.to_string_lossy().contains("/events-")) {
                continue; // nothing is archived yet, so it has no layout
            }
            let refused =
                JsonFile::open(Arc::new(disk.clone()), other.clone(), checkpoint.resume()).unwrap_err();
            let checked = verify(&disk, &other.tree, None, 1, &|_, _| ()).unwrap_err();
            let copied = copy_to(&disk, &other.tree, Path::new("/copy"), &checkpoint.resume()).unwrap_err();
            for said in [refused.reason, checked.to_string(), copied.to_string()] {
                assert!(said.starts_with("/data/archive/year=2025/month=06/day="), "{said}");
                assert!(said.contains(&format!("written with `layout` = \"{HIVE}\"")), "{said}");
                assert!(
                    said.contains("set it back, or configure a sink with another `name` and `path`"),
                    "{said}"
                );
            }
            assert!(content(&disk) == before, "operation {operation}: something was changed");
            let mut sink = open_with(&disk, ours.clone(), checkpoint.resume());
            let end = run_and_tend(&mut sink, &world, checkpoint, 5);
            assert_whole(&disk, &world, &end, || {
                format!("operation {operation}, manifest: {keeps_manifest}")
            });
            refusals += 1;
        }
    }
    assert!(refusals > 100, "{refusals}");
}

#[test]
fn a_manifest_that_names_files_of_another_layout_is_refused_although_they_are_gone() {
    let (disk, _, checkpoint) = small_archive(Form::Zstd);
    for file in archive_files(&disk) {
        disk.remove_file(&file.path).unwrap();
    }
    let other = laid(HIVE, packed(Form::Zstd));
    let refused = JsonFile::open(Arc::new(disk.clone()), other, checkpoint.resume()).unwrap_err();
    assert!(refused.reason.contains("was written with `layout` = \"%Y/%m/%d\", and"), "{}", refused.reason);
    assert_eq!(disk.files(), [Path::new("/data/archive").join(NAME)]);
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

#[test]
fn any_failing_call_or_full_disk_in_the_background_costs_nothing_and_holds_up_no_delivery() {
    let world = World::new(20, 29);
    type Arm = fn(&SimulatedDisk, u64);
    let arms: [(&str, Arm); 4] = [
        ("call failed", |disk, nth| disk.fail_operation(nth, FaultKind::Io, Times::Once)),
        ("disk full", |disk, nth| disk.fail_write(nth, FaultKind::NoSpace, 40, Times::Once)),
        ("sync failed", |disk, nth| disk.fail_sync(nth, PagesAfter::Clean, Policy::Subset, Times::Once)),
        ("syncs fail", |disk, nth| disk.fail_sync(nth, PagesAfter::Reverted, Policy::Drop, Times::Once)),
    ];
    let mut failures = 0;
    for (story, arm) in arms {
        for nth in 1..=40 {
            let disk = SimulatedDisk::new(nth);
            let mut sink = open_with(&disk, packed(Form::Zstd), Resume::default());
            let half = World { events: world.events[..12].to_vec() };
            let (made, refused) = run(&mut sink, &half, 0, 4);
            assert!(refused.is_none());
            let checkpoint = made.last().unwrap().clone();
            let mut finisher = sink.finisher();
            arm(&disk, nth);
            let failed = (0..100).find_map(|_| finisher.step(Micros(START)).err());
            disk.heal();
            failures += u64::from(failed.is_some());
            let left = disk.power_loss(Policy::Torn, nth);
            let mut after = open_with(&left, packed(Form::Zstd), checkpoint.resume());
            let end = run_and_tend(&mut after, &world, &checkpoint, 5);
            assert_whole(&left, &world, &end, || format!("{story} at {nth}, then the power went"));
            // The same process goes on.
            for _ in 0..100 {
                finisher.step(Micros(START)).unwrap();
            }
            let end = run_and_tend(&mut sink, &world, &checkpoint, 5);
            assert_whole(&disk, &world, &end, || format!("{story} at {nth}"));
        }
    }
    assert!(failures > 20, "the faults must hit: {failures}");
}

#[test]
fn a_disk_with_no_room_for_a_compressed_file_keeps_the_plain_one_until_there_is() {
    let world = World::at_once(12, 3);
    let disk = SimulatedDisk::new(1);
    let mut sink = open_with(&disk, packed(Form::Zstd), Resume::default());
    let (made, _) = run(&mut sink, &world, 0, 4);
    let used: usize =
        disk.files().iter().map(|path| disk.read_file(path).unwrap().len().div_ceil(4096)).sum();
    disk.set_capacity(used as u64 * 4096);
    let mut finisher = sink.finisher();
    assert!(finisher.step(Micros(START)).unwrap_err().to_string().contains("No space"));
    assert_exactly_once(&disk, &world, 0..12, || "nothing is missing while it waits".into());
    disk.set_capacity(1 << 20);
    while finisher.step(Micros(START)).unwrap() == Step::Worked {}
    drop(sink);
    let mut sink = open_with(&disk, packed(Form::Zstd), made.last().unwrap().resume());
    let end = run_and_tend(&mut sink, &world, made.last().unwrap(), 5);
    assert_whole(&disk, &world, &end, || "room again".into());
}

/// A small archive with finished files and an open one, at rest.
fn small_archive(compress: Form) -> (SimulatedDisk, World, Checkpoint) {
    let world = World::new(24, 3);
    let disk = SimulatedDisk::new(1);
    let mut sink = open_with(&disk, packed(compress), Resume::default());
    let checkpoint = run_and_tend(&mut sink, &world, &Checkpoint::default(), 4);
    assert_whole(&disk, &world, &checkpoint, || "before".into());
    (disk, world, checkpoint)
}

#[test]
fn a_change_of_any_byte_of_an_archive_is_found_and_its_file_named() {
    for compress in [Form::Plain, Form::Zstd, Form::Gzip] {
        let (disk, _, checkpoint) = small_archive(compress);
        for path in disk.files().into_iter().filter(|path| path.starts_with("/data/archive")) {
            let bytes = disk.read_file(&path).unwrap();
            for at in 0..bytes.len() {
                disk.overwrite(&path, at as u64, &[bytes[at] ^ 0x10]).unwrap();
                let verdict = judge(&disk, &checkpoint);
                assert!(
                    verdict.damage.iter().any(|damage| damage.path == path),
                    "byte {at} of {}: {:?}",
                    path.display(),
                    verdict.damage
                );
                disk.overwrite(&path, at as u64, &bytes[at..=at]).unwrap();
            }
        }
        assert_eq!(judge(&disk, &checkpoint).damage, []);
    }
}

#[test]
fn a_file_that_is_gone_cut_or_doubled_is_named_with_its_offsets() {
    let (whole, _, checkpoint) = small_archive(Form::Zstd);
    for path in whole.files().into_iter().filter(|path| path.starts_with("/data/archive")) {
        let disk = whole.kill();
        disk.remove_file(&path).unwrap();
        let verdict = judge(&disk, &checkpoint);
        assert!(verdict.damage.iter().any(|damage| damage.path == path), "gone: {:?}", verdict.damage);
        let bytes = whole.read_file(&path).unwrap();
        for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            let disk = whole.kill();
            disk.truncate(&path, cut as u64).unwrap();
            let verdict = judge(&disk, &checkpoint);
            assert!(!verdict.damage.is_empty(), "{} cut to {cut}", path.display());
        }
        let disk = whole.kill();
        disk.overwrite(&path, bytes.len() as u64, b"{}\n").unwrap();
        let is_open = path.extension().is_some_and(|e| e == "ndjson") && !path.ends_with(NAME);
        // Behind its checkpoint a file is not judged: that is cut when the daemon starts.
        assert_eq!(judge(&disk, &checkpoint).damage.is_empty(), is_open, "{} grown", path.display());
    }
    let gone = whole.kill();
    let first = Catalog::read(&gone, &tree(&gone)).unwrap().files[0].clone();
    gone.remove_file(&first.file.path).unwrap();
    let damage = &judge(&gone, &checkpoint).damage[0];
    assert_eq!(damage.offsets, Some(first.file.first_offset..first.last_offset().unwrap() + 1));
}

#[test]
fn a_file_changed_under_the_daemon_before_it_is_listed_is_named_for_ever_after() {
    let world = World::at_once(16, 41);
    for how in VANDALISM {
        let disk = SimulatedDisk::new(1);
        let mut sink = open_with(&disk, packed(Form::Zstd), Resume::default());
        let first = deliver(&mut sink, &world.batch(0..4)).unwrap();
        let current = Position::decode(&first.token.unwrap()).unwrap().0.file.unwrap();
        let path = options().tree.path(current.day, current.first_offset);
        vandalise(&disk, &path, how);
        let checkpoint = run_and_tend(&mut sink, &world, &Checkpoint { token: None, next: 4 }, 3);
        let damage = judge(&disk, &checkpoint).damage;
        assert!(!damage.is_empty(), "{how}");
        let offsets = damage[0].offsets.clone().unwrap();
        assert!(offsets.contains(&0) && !offsets.contains(&world.len()), "{how}: {damage:?}");
    }
}

#[test]
fn a_lost_or_damaged_manifest_is_written_again_from_the_files() {
    for damage in ["gone", "flipped", "cut", "of another"] {
        let (disk, world, checkpoint) = small_archive(Form::Zstd);
        let path = options().tree.root.join(NAME);
        let before = Manifest::read(&disk, &options().tree.root).unwrap();
        let bytes = disk.read_file(&path).unwrap();
        match damage {
            "gone" => disk.remove_file(&path).unwrap(),
            "flipped" => disk.overwrite(&path, 30, b"#").unwrap(),
            "cut" => disk.truncate(&path, bytes.len() as u64 - 9).unwrap(),
            _ => disk.write_file(&path, b"hello\nworld\n").unwrap(),
        }
        assert!(!judge(&disk, &checkpoint).damage.is_empty(), "{damage}");
        let mut sink = open_with(&disk, packed(Form::Zstd), checkpoint.resume());
        let end = run_and_tend(&mut sink, &world, &checkpoint, 4);
        assert_whole(&disk, &world, &end, || damage.to_owned());
        let after = Manifest::read(&disk, &options().tree.root).unwrap();
        let names =
            |manifest: &Manifest| manifest.entries.values().map(|e| e.sha256.clone()).collect::<Vec<_>>();
        assert_eq!(names(&after), names(&before), "{damage}");
    }
}

/// Retention by age and by size, with an hour of age and room for two files.
fn bounded() -> [Options; 2] {
    let by_age = Options { retain_age: Some(Duration::from_secs(24 * 3600)), ..packed(Form::Zstd) };
    [by_age, Options { retain_size_bytes: Some(600), ..packed(Form::Zstd) }]
}

fn tend_at(sink: &JsonFile, now: Micros) {
    let mut finisher = sink.finisher();
    while finisher.step(now).unwrap() == Step::Worked {}
}

#[test]
fn retention_says_so_first_takes_finished_files_only_and_survives_a_power_loss_at_every_operation() {
    let world = World::new(30, 3);
    let now = Micros(START + 3 * DAY);
    for (options, layout) in bounded().into_iter().zip(["%Y/%m/%d", HIVE]) {
        let options = laid(layout, options);
        let disk = SimulatedDisk::new(1);
        let mut sink = open_with(&disk, laid(layout, packed(Form::Zstd)), Resume::default());
        let checkpoint = run_and_tend(&mut sink, &world, &Checkpoint::default(), 4);
        let files = archive_files(&disk).len();
        disk.record();
        let sink = open_with(&disk, options.clone(), checkpoint.resume());
        tend_at(&sink, now);
        let kept = Catalog::read(&disk, &tree(&disk)).unwrap().files.len();
        assert!(kept < files - 1 && kept >= 1, "{kept} of {files} kept");
        let expected = lines(&disk);
        assert!(world.expected(0..30).ends_with(&expected));
        for operation in 0..=disk.operations() {
            for policy in Policy::ALL {
                let Some(at) = disk.at(operation) else { continue };
                let left = at.power_loss(policy, operation);
                let sink = open_with(&left, options.clone(), checkpoint.resume());
                tend_at(&sink, now);
                assert_eq!(lines(&left), expected, "operation {operation}, {policy:?}");
                let verdict = judge(&left, &checkpoint);
                assert_eq!(verdict.damage, [], "operation {operation}, {policy:?}");
                assert_eq!(verdict.removed.0 as usize, files - kept);
                assert_eq!(archive_files(&left).len(), kept, "a removed file is gone");
            }
        }
    }
}

#[test]
fn what_retention_takes_during_a_check_is_removed_and_no_gap() {
    let world = World::new(60, 3);
    let [_, by_size] = bounded();
    let disk = SimulatedDisk::new(1);
    let mut sink = open_with(&disk, packed(Form::Zstd), Resume::default());
    let checkpoint = run_and_tend(&mut sink, &world, &Checkpoint::default(), 4);
    let before = judge(&disk, &checkpoint);
    drop(sink);
    let sink = open_with(&disk, by_size, checkpoint.resume());
    // Told of the first bytes it has read, it finds the files behind them gone.
    let progress = |done: u64, _: u64| {
        if done > 0 {
            tend_at(&sink, Micros(START));
        }
    };
    let token = checkpoint.token.as_deref();
    let verdict = verify(&disk, &tree(&disk), token, 1, &progress).unwrap();
    assert_eq!(verdict.damage, []);
    assert!(verdict.removed.0 > 3, "{verdict:?}");
    assert_eq!(verdict.next_offset, before.next_offset);
    // The first one had been read before it went.
    assert_eq!(verdict.removed.1 + verdict.events, before.events);
}

#[test]
fn a_plain_file_stays_beside_a_compressed_one_that_is_not_as_it_is_listed() {
    let world = World::new(20, 3);
    let disk = SimulatedDisk::new(1);
    let mut sink = open_with(&disk, packed(Form::Zstd), Resume::default());
    let checkpoint = run_and_tend(&mut sink, &world, &Checkpoint::default(), 4);
    drop(sink);
    let listed = Manifest::read(&disk, &options().tree.root).unwrap().entries.into_values().next().unwrap();
    let path = listed.path(&options().tree.root);
    let packed_bytes = disk.read_file(&path).unwrap();
    let plain = path.with_extension("");
    for (flipped, stays) in [(None, false), (Some(packed_bytes.len() / 2), true)] {
        disk.write_file(&plain, &zstd::decode_all(&packed_bytes[..]).unwrap()).unwrap(); // left by a crash
        if let Some(at) = flipped {
            disk.overwrite(&path, at as u64, &[!packed_bytes[at]]).unwrap();
        }
        open_with(&disk, packed(Form::Zstd), checkpoint.resume());
        assert_eq!(disk.files().contains(&plain), stays, "a wrong byte: {flipped:?}");
    }
}

#[test]
fn the_manifest_grows_with_the_files_that_are_there_and_not_with_those_that_were() {
    let world = World::at_once(900, 1);
    let options = Options {
        rotate_count: Some(2),
        retain_size_bytes: Some(2000),
        rotate_size_bytes: 1 << 30,
        ..options()
    };
    let disk = SimulatedDisk::new(1);
    let mut sink = open_with(&disk, options.clone(), Resume::default());
    let checkpoint = run_and_tend(&mut sink, &world, &Checkpoint::default(), 30);
    let manifest = Manifest::read(&disk, &options.tree.root).unwrap();
    let removed = manifest.entries.values().filter(|entry| !entry.is_kept()).map(|entry| entry.files).sum();
    assert!(removed > 300, "{removed} files");
    assert!(manifest.lines < 300, "{} lines", manifest.lines);
    let verdict = judge(&disk, &checkpoint);
    assert_eq!((verdict.damage, verdict.removed.0), (vec![], removed));
    assert_eq!(verdict.removed.1 + verdict.events, world.expected(0..900).lines().count() as u64);
}

#[test]
fn a_repair_keeps_every_intact_line_and_what_it_removes_and_verifies_afterwards() {
    use crate::sink::json_file::repair::{plan, repair};
    let (whole, world, checkpoint) = small_archive(Form::Plain);
    let token = checkpoint.token.as_deref();
    let tree = options().tree;
    let finished = archive_files(&whole).len() - 1;
    for at in 0..finished {
        for how in ["line", "data", "first", "gone", "empty", "manifest"] {
            let disk = whole.kill();
            let path = archive_files(&disk)[at].path.clone();
            let bytes = disk.read_file(&path).unwrap();
            match how {
                "line" => disk.overwrite(&path, bytes.len() as u64 - 3, b"\0").unwrap(),
                "data" => {
                    let data = memchr::memmem::find(&bytes, b"\"source\":\"/s").unwrap() + 11;
                    disk.overwrite(&path, data as u64, b"t").unwrap();
                }
                "first" => disk.overwrite(&path, 0, b"[").unwrap(),
                "gone" => disk.remove_file(&path).unwrap(),
                "empty" => disk.truncate(&path, 0).unwrap(),
                _ => disk.remove_file(&tree.root.join(NAME)).unwrap(),
            }
            let story = format!("{how}, file {at}");
            let before = lines_of_any(&disk);
            let planned = plan(&disk, &tree, token, 1, &|_, _| ()).unwrap();
            assert!(
                !planned.is_empty() && planned.iter().all(|repair| repair.action.is_some()),
                "{story}: {planned:?}"
            );
            assert_eq!(lines_of_any(&disk), before, "{story}: planning changes nothing");
            let shared: Arc<dyn Disk> = Arc::new(disk.clone());
            repair(&shared, &options(), token, planned, Micros(START)).unwrap();
            let left = disk.power_loss(Policy::Drop, 1);
            let verdict = judge(&left, &checkpoint);
            assert_eq!(verdict.damage, [], "{story}");
            assert_eq!(lines_of_any(&left), before, "{story}: an intact line is lost");
            if ["line", "data", "first", "empty"].contains(&how) {
                let aside: Vec<_> =
                    left.files().into_iter().filter(|p| p.starts_with("/data/quarantine")).collect();
                assert_eq!(aside.len(), 1, "{story}");
                assert_ne!(left.read_file(&aside[0]).unwrap(), bytes, "{story}: as it was found");
            }
            // The daemon goes on from there.
            let mut sink = open_with(&left, options(), checkpoint.resume());
            let end = run_and_tend(&mut sink, &world, &checkpoint, 4);
            assert_eq!(judge(&left, &end).damage, [], "{story}");
        }
    }
}

/// The intact lines of all files.
fn lines_of_any(disk: &SimulatedDisk) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for file in archive_files(disk) {
        let Ok(mut lines) = layout::open_lines(disk, &file) else { continue };
        while let Ok(Some(piece)) = lines.next_piece() {
            if let Piece::Line(line) = piece
                && layout::intact_stamp(line).is_some()
            {
                all.insert(String::from_utf8_lossy(line).into_owned());
            }
        }
    }
    all
}

#[test]
fn a_clock_that_is_years_ahead_makes_no_file_old() {
    let world = World::new(24, 3);
    let by_age = Options { retain_age: Some(Duration::from_secs(10 * 24 * 3600)), ..packed(Form::Zstd) };
    let disk = SimulatedDisk::new(1);
    let mut sink = open_with(&disk, by_age, Resume::default());
    let checkpoint = run_and_tend(&mut sink, &world, &Checkpoint::default(), 4);
    assert!(archive_files(&disk).len() > 3);
    tend_at(&sink, Micros(START + 3650 * DAY));
    assert_whole(&disk, &world, &checkpoint, || "nothing was removed".into());
}
