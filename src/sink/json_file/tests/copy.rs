//! Copies of an archive at work: whatever checkpoint they are made for, opening one there leaves every
//! event exactly once in it, and nothing of it shows in the original.

use super::*;
use crate::sink::CopiedFiles;

const COPY: &str = "/copy/archive";

fn lines_under(disk: &SimulatedDisk, root: &str) -> String {
    let files = Tree::of(root).list(disk).unwrap();
    let mut all = Vec::new();
    for file in files {
        let mut lines = layout::open_lines(disk, &file).unwrap();
        while let Some(piece) = lines.next_piece().unwrap() {
            let Piece::Line(line) = piece else { panic!("a bad end in {}", file.path.display()) };
            all.extend_from_slice(line);
            all.push(b'\n');
        }
    }
    String::from_utf8(all).unwrap()
}

/// What happens to finished files in time.
fn compress(disk: &SimulatedDisk, file: &ArchiveFile) {
    let bytes = zstd::encode_all(&disk.read_file(&file.path).unwrap()[..], 1).unwrap();
    disk.write_file(&file.path.with_extension("ndjson.zst"), &bytes).unwrap();
    disk.remove(&file.path).unwrap();
}

/// Copies what a live sink wrote up to `written`, for the checkpoint `of`; goes on in both.
fn copy_and_go_on(
    world: &World,
    written: usize,
    of: usize,
    is_compressed: bool,
    with_token: bool,
) -> CopiedFiles {
    let story =
        || format!("{written} deliveries, checkpoint {of}, compressed: {is_compressed}, token: {with_token}");
    let disk = SimulatedDisk::new(5);
    let mut live = open(&disk, Resume::default());
    let mut checkpoints = vec![Checkpoint::default()];
    for at in 0..written as u64 {
        let delivery = deliver(&mut live, &world.batch(at * 5..at * 5 + 5)).unwrap();
        checkpoints.push(Checkpoint { token: delivery.token, next: at * 5 + 5 });
    }
    if is_compressed {
        let files = archive_files(&disk);
        files.iter().take(files.len().saturating_sub(1)).for_each(|file| compress(&disk, file));
    }
    let mut checkpoint = checkpoints[of].clone();
    if !with_token {
        checkpoint.token = None;
    }
    let before = lines_under(&disk, "/data/archive");
    let copied = copy_to(&disk, &tree(&disk), Path::new(COPY), &checkpoint.resume()).unwrap();
    assert_eq!(lines_under(&disk, COPY), world.expected(0..checkpoint.next), "{}", story());
    let bare = disk.power_loss(Policy::Drop, 1);
    assert_eq!(lines_under(&bare, COPY), world.expected(0..checkpoint.next), "synced; {}", story());

    let options = Options { tree: Tree::of(COPY), quarantine_dir: "/copy/quarantine".into(), ..options() };
    let mut sink = JsonFile::open(Arc::new(disk.clone()), options, checkpoint.resume()).unwrap();
    let (_, refused) = run(&mut sink, world, checkpoint.next, 7);
    assert!(refused.is_none(), "{}: {refused:?}", story());
    assert_eq!(lines_under(&disk, COPY), world.expected(0..world.len()), "{}", story());
    assert_eq!(lines_under(&disk, "/data/archive"), before, "the original is as it was; {}", story());
    let (_, refused) = run(&mut live, world, written as u64 * 5, 3);
    assert!(refused.is_none(), "{}: {refused:?}", story());
    assert_eq!(lines_under(&disk, "/data/archive"), world.expected(0..world.len()), "{}", story());
    copied
}

#[test]
fn a_copy_for_any_checkpoint_holds_every_event_before_it_once_and_goes_on_apart_from_the_original() {
    let world = World::new(80, 11);
    let mut linked = 0;
    for written in 0..16 {
        for of in (0..=written).rev().take(7) {
            for (is_compressed, with_token) in [(false, true), (true, true), (false, false), (true, false)] {
                let copied = copy_and_go_on(&world, written, of, is_compressed, with_token);
                linked += copied.files;
            }
        }
    }
    assert!(linked > 400, "most copies have several files: {linked}");
}
