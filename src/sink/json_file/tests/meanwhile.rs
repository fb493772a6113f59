//! An archive that is copied or checked while its background compresses and removes files, at every call
//! of the reader to its disk.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::disk::{Access, DirEntry, DiskFile};
use crate::sink::json_file::manifest::Manifest;
use crate::sink::json_file::verify::{Verdict, verify};

/// A disk on which the background does all it has to do just before one call.
#[derive(Debug)]
struct Meanwhile {
    disk: SimulatedDisk,
    calls_until: AtomicU64,
    background: Mutex<Option<Finisher>>,
}

impl Meanwhile {
    fn call(&self) -> &SimulatedDisk {
        if self.calls_until.fetch_sub(1, Ordering::Relaxed) == 1
            && let Some(mut finisher) = self.background.lock().unwrap().take()
        {
            while finisher.step(Micros(START + 30 * DAY)).unwrap() == Step::Worked {}
        }
        &self.disk
    }

    fn is_over(&self) -> bool {
        self.background.lock().unwrap().is_none()
    }
}

impl Disk for Meanwhile {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.call().create_dir_all(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.call().list(dir)
    }
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        self.call().open(path, access)
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.call().create(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call().rename(from, to)
    }
    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call().replace(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call().link(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call().remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.call().sync_dir(dir)
    }
    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.call().free_bytes(dir)
    }
}

/// An archive of which the background has still everything to do, or only what retention asks for.
fn busy(is_tended: bool, nth: u64) -> (Meanwhile, World, Checkpoint) {
    let world = World::new(40, 3);
    let disk = SimulatedDisk::new(nth);
    let packed = Options { compress: Form::Zstd, ..options() };
    let bounded = Options { retain_size_bytes: Some(600), ..packed.clone() };
    let mut sink = JsonFile::open(Arc::new(disk.clone()), bounded.clone(), Resume::default()).unwrap();
    let (made, refused) = run(&mut sink, &world, 0, 4);
    assert!(refused.is_none());
    let checkpoint = made.last().unwrap().clone();
    if is_tended {
        let sink = JsonFile::open(Arc::new(disk.clone()), packed, checkpoint.resume()).unwrap();
        let mut finisher = sink.finisher();
        while finisher.step(Micros(START)).unwrap() == Step::Worked {}
        drop(sink);
    }
    let background = JsonFile::open(Arc::new(disk.clone()), bounded, checkpoint.resume()).unwrap().finisher();
    let meanwhile =
        Meanwhile { disk, calls_until: AtomicU64::new(nth), background: Mutex::new(Some(background)) };
    (meanwhile, world, checkpoint)
}

fn judge(disk: &dyn Disk, root: &str, checkpoint: &Checkpoint) -> Verdict {
    verify(disk, &Tree::of(root), checkpoint.token.as_deref(), 1, &|_, _| ()).unwrap()
}

#[test]
fn a_check_finds_nothing_wrong_while_files_are_compressed_and_removed_at_any_moment() {
    for is_tended in [false, true] {
        for nth in 1.. {
            let (disk, world, checkpoint) = busy(is_tended, nth);
            let verdict = judge(&disk, "/data/archive", &checkpoint);
            assert_eq!(verdict.damage, [], "call {nth}, tended: {is_tended}");
            let events = world.events.iter().flatten().count() as u64;
            assert_eq!(verdict.events + verdict.removed.1, events, "call {nth}, tended: {is_tended}");
            if !disk.is_over() {
                assert!(nth > 20);
                break;
            }
        }
    }
}

#[test]
fn a_copy_verifies_and_knows_what_was_removed_whenever_files_are_compressed_and_removed_meanwhile() {
    for is_tended in [false, true] {
        for nth in 0.. {
            let (disk, world, checkpoint) = busy(is_tended, nth);
            let (from, to) = (PathBuf::from("/data/archive"), PathBuf::from("/copy/archive"));
            copy_to(&disk, &Tree::of(from.clone()), &to, &checkpoint.resume()).unwrap();
            let story = format!("call {nth}, tended: {is_tended}");
            let bare = disk.disk.power_loss(Policy::Drop, nth);
            let verdict = judge(&bare, "/copy/archive", &checkpoint);
            assert_eq!(verdict.damage, [], "{story}");
            let events = world.events.iter().flatten().count() as u64;
            assert_eq!(verdict.events + verdict.removed.1, events, "{story}");
            if is_tended && nth == 0 {
                let listed = |root: &Path| Manifest::read(&bare, root).unwrap().entries;
                assert_eq!(listed(&to), listed(&from), "{story}");
            }
            // The daemon goes on from there.
            let options =
                Options { tree: Tree::of(to), quarantine_dir: "/copy/quarantine".into(), ..options() };
            drop(JsonFile::open(Arc::new(bare.clone()), options, checkpoint.resume()).unwrap());
            assert_eq!(judge(&bare, "/copy/archive", &checkpoint), verdict, "{story}");
            if nth > 0 && !disk.is_over() {
                assert!(nth > 20);
                break;
            }
        }
    }
}
