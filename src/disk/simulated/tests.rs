//! Proves that the simulated disk keeps what a disk must keep, loses what it may lose, and nothing
//! else.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

const DIR: &str = "/data";

fn disk() -> SimulatedDisk {
    let disk = SimulatedDisk::new(1);
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk
}

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// A file with a durable name and these durable bytes.
fn durable(disk: &SimulatedDisk, name: &str, bytes: &[u8]) -> Box<dyn DiskFile> {
    let file = disk.create(&path(name)).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    file
}

fn names(disk: &SimulatedDisk) -> Vec<String> {
    disk.files().iter().map(|path| path.to_string_lossy().into_owned()).collect()
}

/// Every state the policies make of `disk`, with what made it.
fn losses(disk: &SimulatedDisk) -> impl Iterator<Item = (Policy, u64, SimulatedDisk)> {
    Policy::ALL.into_iter().flat_map(move |policy| {
        let seeds = if policy.is_random() { 256 } else { 1 };
        (0..seeds).map(move |seed| (policy, seed, disk.power_loss(policy, seed)))
    })
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.unwrap_err().kind()
}

#[test]
fn drop_loses_and_keep_keeps_all_that_was_not_synced() {
    let disk = disk();
    let file = durable(&disk, "a", b"old");
    file.write_all_at(b"new!", 0).unwrap();
    disk.create(&path("b")).unwrap();
    let dropped = disk.power_loss(Policy::Drop, 0);
    assert_eq!(names(&dropped), ["/data/a"]);
    assert_eq!(dropped.read_file(&path("a")).unwrap(), b"old");
    let kept = disk.power_loss(Policy::Keep, 0);
    assert_eq!(names(&kept), ["/data/a", "/data/b"]);
    assert_eq!(kept.read_file(&path("a")).unwrap(), b"new!");
    assert_eq!(disk.power_loss(Policy::NamesOnly, 0).read_file(&path("a")).unwrap(), b"old");
    assert_eq!(names(&disk.power_loss(Policy::DataOnly, 0)), ["/data/a"]);
}

#[test]
fn a_kill_keeps_the_page_cache_and_a_later_power_loss_still_loses_it() {
    let disk = disk();
    let file = durable(&disk, "a", b"old");
    file.write_all_at(b"new", 0).unwrap();
    let killed = disk.kill();
    assert_eq!(killed.read_file(&path("a")).unwrap(), b"new");
    assert_eq!(killed.power_loss(Policy::Drop, 0).read_file(&path("a")).unwrap(), b"old");
    killed.open(&path("a"), Access::ReadWrite).unwrap().sync_data().unwrap();
    assert_eq!(killed.power_loss(Policy::Drop, 0).read_file(&path("a")).unwrap(), b"new");
    assert_eq!(disk.power_loss(Policy::Drop, 0).read_file(&path("a")).unwrap(), b"old", "disks are apart");
}

#[test]
fn unsynced_writes_tear_at_sectors_and_each_policy_reaches_its_states() {
    let disk = disk();
    let file = durable(&disk, "a", &[0; 2048]);
    file.write_all_at(&[1; 1000], 100).unwrap();
    file.write_all_at(&[2; 512], 1536).unwrap();
    let mut seen: BTreeMap<Policy, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for (policy, seed, lost) in losses(&disk) {
        let bytes = lost.read_file(&path("a")).unwrap();
        let sector = |at: usize| bytes[at];
        assert!(bytes[..100].iter().all(|byte| *byte == 0), "{policy:?} {seed}: never written");
        assert!(bytes[100..512].iter().all(|byte| *byte == sector(100)), "{policy:?} {seed}: a sector tore");
        assert!(bytes[1100..1536].iter().all(|byte| *byte == 0), "{policy:?} {seed}: never written");
        if policy != Policy::Torn && policy != Policy::Stale {
            assert_eq!(sector(100), sector(1024), "{policy:?} {seed}: a write is whole");
        }
        seen.entry(policy).or_default().insert(vec![sector(100), sector(512), sector(1024), sector(1536)]);
    }
    let states = |policy| seen[&policy].len();
    assert_eq!([Policy::Drop, Policy::Keep, Policy::NamesOnly, Policy::DataOnly].map(states), [1; 4]);
    assert_eq!([states(Policy::Prefix), states(Policy::Subset), states(Policy::Torn)], [3, 4, 16]);
}

#[test]
fn a_later_write_to_a_sector_never_comes_without_the_earlier_one() {
    let disk = disk();
    let file = durable(&disk, "a", &[0; 512]);
    file.write_all_at(&[1; 8], 0).unwrap();
    file.write_all_at(&[2; 8], 8).unwrap();
    for (policy, seed, lost) in losses(&disk) {
        let bytes = lost.read_file(&path("a")).unwrap();
        assert!((bytes[0], bytes[8]) != (0, 2), "{policy:?} {seed}");
    }
}

#[test]
fn a_size_may_run_ahead_of_its_data_with_zeros_or_stale_bytes_or_behind_it() {
    let disk = disk();
    durable(&disk, "other", &[9; 4096]);
    let file = durable(&disk, "a", &[]);
    file.write_all_at(&[1; 2048], 0).unwrap();
    file.write_all_at(&[2; 2048], 2048).unwrap();
    let mut seen = BTreeSet::new();
    for (policy, _, lost) in losses(&disk) {
        let bytes = lost.read_file(&path("a")).unwrap();
        let first = bytes.iter().position(|byte| *byte != 1).unwrap_or(bytes.len());
        let what = match bytes.get(first) {
            None => "cut",
            Some(0) => "zeros",
            Some(9) => "of the other file",
            Some(2) => "whole",
            Some(_) => "rubbish",
        };
        seen.insert((policy, bytes.len(), what));
    }
    assert!(seen.contains(&(Policy::Torn, 2048, "cut")), "data beyond the size: {seen:?}");
    assert!(seen.contains(&(Policy::Torn, 4096, "zeros")));
    assert!(seen.contains(&(Policy::Stale, 4096, "of the other file")));
    assert!(seen.contains(&(Policy::Stale, 4096, "rubbish")));
    assert!(!seen.iter().any(|(policy, _, what)| *policy != Policy::Stale && *what == "rubbish"));
}

#[test]
fn a_cut_may_be_lost_but_what_was_cut_never_comes_back_by_growing() {
    let disk = disk();
    let file = durable(&disk, "a", &[1; 2000]);
    file.set_len(1000).unwrap();
    file.set_len(2000).unwrap();
    assert_eq!(disk.read_file(&path("a")).unwrap()[1000..], [0; 1000]);
    let lens: BTreeSet<(usize, u8)> = losses(&disk)
        .map(|(_, _, lost)| lost.read_file(&path("a")).unwrap())
        .map(|bytes| (bytes.len(), bytes.last().copied().unwrap()))
        .collect();
    assert_eq!(lens, BTreeSet::from([(1000, 1), (2000, 0), (2000, 1)]));
}

#[test]
fn a_renamed_file_has_one_of_its_names_after_every_loss() {
    let disk = disk();
    durable(&disk, "a", b"a");
    durable(&disk, "c", b"c");
    disk.rename(&path("a"), &path("b")).unwrap();
    disk.replace(&path("b"), &path("c")).unwrap();
    let seen: BTreeSet<Vec<(String, Vec<u8>)>> = losses(&disk)
        .map(|(_, _, lost)| {
            lost.files()
                .iter()
                .map(|path| (path.to_string_lossy().into_owned(), lost.read_file(path).unwrap()))
                .collect()
        })
        .collect();
    let file = |name: &str, bytes: &[u8]| (path(name).to_string_lossy().into_owned(), bytes.to_vec());
    assert_eq!(
        seen,
        BTreeSet::from([
            vec![file("a", b"a"), file("c", b"c")],
            vec![file("b", b"a"), file("c", b"c")],
            vec![file("c", b"a")],
        ])
    );
}

#[test]
fn names_are_kept_or_lost_each_by_itself() {
    let disk = disk();
    durable(&disk, "old", b"");
    disk.create(&path("x")).unwrap();
    disk.create(&path("y")).unwrap();
    disk.remove(&path("old")).unwrap();
    let seen: BTreeSet<Vec<String>> = losses(&disk).map(|(_, _, lost)| names(&lost)).collect();
    assert_eq!(seen.len(), 8, "every subset of three: {seen:?}");
    disk.sync_dir(Path::new(DIR)).unwrap();
    assert!(losses(&disk).all(|(_, _, lost)| names(&lost) == ["/data/x", "/data/y"]));
}

#[test]
fn a_rename_between_directories_is_whole_once_the_one_it_left_is_synced() {
    let disk = disk();
    let away = Path::new("/away");
    disk.create_dir_all(away).unwrap();
    durable(&disk, "a", b"a");
    disk.rename(&path("a"), &away.join("b")).unwrap();
    let seen = |disk: &SimulatedDisk| losses(disk).map(|(_, _, lost)| names(&lost)).collect::<BTreeSet<_>>();
    assert_eq!(seen(&disk), BTreeSet::from([vec!["/away/b".into()], vec!["/data/a".into()]]));

    let left = disk.kill();
    left.sync_dir(Path::new(DIR)).unwrap();
    assert_eq!(seen(&left), BTreeSet::from([vec!["/away/b".into()]]));

    disk.sync_dir(away).unwrap();
    let both = vec!["/away/b".into(), "/data/a".into()];
    assert_eq!(seen(&disk), BTreeSet::from([vec!["/away/b".into()], both]));
    disk.sync_dir(Path::new(DIR)).unwrap();
    assert_eq!(seen(&disk), BTreeSet::from([vec!["/away/b".into()]]));
}

#[test]
fn syncing_one_directory_brings_along_what_its_changes_stand_on() {
    let disk = disk();
    let away = Path::new("/away");
    disk.create_dir_all(away).unwrap();
    disk.create(&away.join("b")).unwrap();
    disk.remove(&away.join("b")).unwrap();
    durable(&disk, "a", b"a");
    disk.rename(&path("a"), &away.join("b")).unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    for (policy, seed, lost) in losses(&disk) {
        assert_eq!(names(&lost), ["/away/b"], "{policy:?} {seed}");
        assert_eq!(lost.read_file(&away.join("b")).unwrap(), b"a", "{policy:?} {seed}");
    }
}

#[test]
fn files_in_a_directory_whose_name_was_lost_are_gone() {
    let disk = disk();
    let before = disk.operations();
    disk.record();
    let deep = Path::new("/data/x/y");
    disk.create_dir_all(deep).unwrap();
    disk.create(&deep.join("f")).unwrap().sync_data().unwrap();
    disk.sync_dir(deep).unwrap();
    let operations = before..=disk.operations();
    let found = operations.map(|n| disk.at(n).unwrap().power_loss(Policy::Drop, 0));
    let found: Vec<bool> = found.map(|disk| disk.open(&deep.join("f"), Access::Read).is_ok()).collect();
    assert_eq!(found.iter().filter(|found| **found).count(), 1, "durable only with the last sync");
    assert!(disk.at(disk.operations() + 1).is_none());
    assert_eq!(disk.describe(before + 2), "create directory /data/x");
}

#[test]
fn the_stopped_operation_and_all_after_it_fail() {
    let disk = disk();
    let file = durable(&disk, "a", b"old");
    disk.stop_at(disk.operations() + 2);
    file.write_all_at(b"new", 0).unwrap();
    assert!(file.sync_data().is_err());
    assert!(file.read_at(&mut [0; 3], 0).is_err() && file.len().is_err() && file.sync_data().is_err());
    assert!(disk.list(Path::new(DIR)).is_err() && disk.open(&path("a"), Access::Read).is_err());
    assert_eq!(disk.power_loss(Policy::Drop, 0).read_file(&path("a")).unwrap(), b"old", "no sync returned");
    assert_eq!(disk.power_loss(Policy::Keep, 0).read_file(&path("a")).unwrap(), b"new");

    let mut lens = BTreeSet::new();
    for seed in 0..64 {
        let disk = SimulatedDisk::new(seed);
        let file = disk.create(Path::new("/a")).unwrap();
        disk.stop_at(2);
        assert!(file.write_all_at(&[1; 4], 0).is_err());
        lens.insert(disk.kill().read_file(Path::new("/a")).unwrap().len());
    }
    assert_eq!(lens, BTreeSet::from_iter(0..=4), "a write is cut short anywhere");
}

#[test]
fn after_a_failed_sync_the_page_cache_lies_keeps_or_reverts() {
    let read = |disk: &SimulatedDisk| disk.read_file(&path("a")).unwrap();
    let failed = |pages| {
        let disk = disk();
        let file = durable(&disk, "a", b"old");
        disk.fail_sync(1, pages, Policy::Drop, Times::Once);
        file.write_all_at(b"new", 0).unwrap();
        assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Failure::Io.error().raw_os_error());
        let seen = read(&disk);
        file.sync_data().unwrap();
        let after_retry = read(&disk.power_loss(Policy::Drop, 0));
        file.write_all_at(b"!", 3).unwrap();
        file.sync_data().unwrap();
        (seen, after_retry, read(&disk.power_loss(Policy::Keep, 0)))
    };
    let bytes = |seen: &[u8], after_retry: &[u8], last: &[u8]| (seen.into(), after_retry.into(), last.into());
    assert_eq!(failed(PagesAfter::Clean), bytes(b"new", b"old", b"old!"));
    assert_eq!(failed(PagesAfter::Dirty), bytes(b"new", b"new", b"new!"));
    assert_eq!(failed(PagesAfter::Reverted), bytes(b"old", b"old", b"old!"));
}

#[test]
fn faults_hit_the_call_they_were_set_for() {
    let disk = disk();
    let file = durable(&disk, "a", b"....");
    disk.fail_write(2, Failure::Quota, 1, Times::Once);
    file.write_all_at(b"1", 0).unwrap();
    assert_eq!(kind(file.write_all_at(b"23", 1)), io::ErrorKind::QuotaExceeded);
    assert_eq!(disk.read_file(&path("a")).unwrap(), b"12..");
    file.write_all_at(b"3", 2).unwrap();

    disk.fail_operation(1, Failure::NoSpace, Times::Forever);
    assert_eq!(kind(disk.create(&path("b"))), io::ErrorKind::StorageFull);
    assert_eq!(kind(disk.remove(&path("a"))), io::ErrorKind::StorageFull);
    disk.heal();
    disk.fail_sync(1, PagesAfter::Clean, Policy::Drop, Times::Once);
    disk.rename(&path("a"), &path("b")).unwrap();
    assert!(disk.sync_dir(Path::new(DIR)).is_err());
    assert_eq!(names(&disk.power_loss(Policy::Drop, 0)), ["/data/a"]);
    disk.sync_dir(Path::new(DIR)).unwrap();
    assert_eq!(names(&disk.power_loss(Policy::Drop, 0)), ["/data/b"]);
}

#[test]
fn a_full_disk_refuses_new_pages_and_never_an_overwrite() {
    let disk = disk();
    disk.set_capacity(3 * 4096);
    let file = durable(&disk, "a", &[1; 4096]);
    assert_eq!(disk.free_bytes(Path::new(DIR)).unwrap(), 2 * 4096);
    assert_eq!(file.allocated_bytes().unwrap(), 4096);
    file.set_len(1 << 20).unwrap();
    assert_eq!(file.allocated_bytes().unwrap(), 4096, "a hole is free");
    file.set_len(4096).unwrap();
    assert_eq!(kind(file.write_all_at(&[2; 3 * 4096], 4096)), io::ErrorKind::StorageFull);
    assert_eq!(file.len().unwrap(), 3 * 4096, "what fits was written");
    file.write_all_at(&[3; 3 * 4096], 0).unwrap();

    assert_eq!(disk.power_loss(Policy::Keep, 0).free_bytes(Path::new(DIR)).unwrap(), 0);
    disk.remove(&path("a")).unwrap();
    assert_eq!(disk.free_bytes(Path::new(DIR)).unwrap(), 0, "still open");
    drop(file);
    assert_eq!(disk.free_bytes(Path::new(DIR)).unwrap(), 3 * 4096);
}

#[test]
fn descriptors_run_out_and_come_back() {
    let disk = disk();
    let file = durable(&disk, "a", b"");
    disk.set_descriptors(2);
    let other = disk.open(&path("a"), Access::Read).unwrap();
    let raw = Failure::TooManyOpenFiles.error().raw_os_error();
    assert_eq!(disk.open(&path("a"), Access::Read).unwrap_err().raw_os_error(), raw);
    assert_eq!(disk.create(&path("b")).unwrap_err().raw_os_error(), raw);
    assert_eq!(names(&disk), ["/data/a"]);
    disk.sync_dir(Path::new(DIR)).unwrap();
    file.sync_data().unwrap();
    drop(other);
    disk.create(&path("b")).unwrap();
}

#[test]
fn names_and_handles_follow_posix() {
    let disk = disk();
    let file = durable(&disk, "a", b"a");
    durable(&disk, "b", b"b");
    assert_eq!(kind(disk.create(&path("a"))), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(disk.rename(&path("a"), &path("b"))), io::ErrorKind::AlreadyExists);
    assert_eq!(kind(disk.open(&path("none"), Access::Read)), io::ErrorKind::NotFound);
    assert_eq!(kind(disk.open(Path::new(DIR), Access::Read)), io::ErrorKind::IsADirectory);
    assert_eq!(kind(disk.create(&path("none/x"))), io::ErrorKind::NotFound);
    assert_eq!(kind(disk.create_dir_all(&path("a/x"))), io::ErrorKind::NotADirectory);
    assert!(disk.open(&path("a"), Access::Read).unwrap().write_all_at(b"x", 0).is_err());
    disk.replace(&path("a"), &path("b")).unwrap();
    file.write_all_at(b"A", 0).unwrap();
    assert_eq!(disk.read_file(&path("b")).unwrap(), b"A", "a handle follows its file");
    disk.remove(&path("b")).unwrap();
    disk.sync_dir(Path::new(DIR)).unwrap();
    file.write_all_at(b"B", 1).unwrap();
    let mut bytes = [0; 4];
    assert_eq!(file.read_full_at(&mut bytes, 0).unwrap(), 2, "a removed file lives while it is open");
    assert_eq!(file.write_all_at(b"x", u64::MAX).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    let entry = |name: &str, kind| DirEntry { name: name.into(), kind };
    disk.create_dir_all(Path::new("rel/./x")).unwrap();
    assert_eq!(disk.list(Path::new("rel")).unwrap(), [entry("x", EntryKind::Dir)]);
    assert_eq!(disk.list(Path::new("/")).unwrap(), [entry("data", EntryKind::Dir)]);
}

#[test]
fn damage_done_by_a_test_is_durable_at_once() {
    let disk = disk();
    durable(&disk, "a", b"0123");
    disk.overwrite(&path("a"), 1, b"xx").unwrap();
    disk.copy_file(&path("a"), &path("b")).unwrap();
    disk.truncate(&path("a"), 2).unwrap();
    disk.write_file(&path("c"), b"c").unwrap();
    disk.put_directory(&path("d")).unwrap();
    let operations = disk.operations();
    let disk = disk.power_loss(Policy::Drop, 0);
    assert_eq!(disk.read_file(&path("a")).unwrap(), b"0x");
    assert_eq!(disk.read_file(&path("b")).unwrap(), b"0xx3");
    assert!(disk.list(&path("d")).unwrap().is_empty());
    disk.remove_file(&path("c")).unwrap();
    disk.make_unreadable(&path("b"), 2..3).unwrap();
    let disk = disk.power_loss(Policy::Keep, 0);
    assert_eq!(names(&disk), ["/data/a", "/data/b"]);
    let file = disk.open(&path("b"), Access::Read).unwrap();
    assert_eq!(file.read_at(&mut [0; 2], 0).unwrap(), 2);
    assert!(file.read_at(&mut [0; 3], 0).is_err());
    assert_eq!((operations > 0, disk.operations()), (true, 0));
}

#[test]
fn a_program_that_forgets_its_syncs_loses_everything() {
    let disk = disk();
    disk.ignore_syncs(true, false);
    durable(&disk, "a", b"a");
    assert_eq!(disk.power_loss(Policy::Drop, 0).read_file(&path("a")).unwrap(), b"");
    disk.ignore_syncs(false, true);
    durable(&disk, "b", b"b");
    assert_eq!(names(&disk.power_loss(Policy::Drop, 0)), ["/data/a"]);
}

// ---- against a naive model

#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Write { name: u8, position: u16, len: u16, byte: u8 },
    SetLen { name: u8, len: u16 },
    Sync(u8),
    SyncDir,
    Rename(u8, u8),
    Replace(u8, u8),
    Remove(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..4u8;
    prop_oneof![
        3 => name().prop_map(Step::Create),
        6 => (name(), 0..6000u16, 0..3000u16, 1..=255u8)
            .prop_map(|(name, position, len, byte)| Step::Write { name, position, len, byte }),
        1 => (name(), 0..9000u16).prop_map(|(name, len)| Step::SetLen { name, len }),
        2 => name().prop_map(Step::Sync),
        1 => Just(Step::SyncDir),
        2 => (name(), name()).prop_map(|(from, to)| Step::Rename(from, to)),
        2 => (name(), name()).prop_map(|(from, to)| Step::Replace(from, to)),
        1 => name().prop_map(Step::Remove),
    ]
}

/// Plain vectors, copied whole.
#[derive(Default, Clone)]
struct Naive {
    live: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    files: Vec<NaiveFile>,
}

#[derive(Default, Clone)]
struct NaiveFile {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Its bytes after each change since the last sync.
    versions: Vec<Vec<u8>>,
}

impl Naive {
    /// Does `step` on both and compares what came of it.
    fn step(&mut self, disk: &SimulatedDisk, step: &Step) {
        let at = |name: &u8| path(&name.to_string());
        match step {
            Step::Create(name) => {
                let created = disk.create(&at(name)).is_ok();
                assert_eq!(created, !self.live.contains_key(&at(name)));
                if created {
                    self.live.insert(at(name), self.files.len());
                    self.files.push(Default::default());
                }
            }
            Step::Write { name, position, len, byte } => self.alter(disk, &at(name), |bytes, file| {
                let (position, len) = (*position as usize, *len as usize);
                file.write_all_at(&vec![*byte; len], position as u64).unwrap();
                if len > 0 {
                    bytes.resize(bytes.len().max(position + len), 0);
                    bytes[position..position + len].fill(*byte);
                }
            }),
            Step::SetLen { name, len } => self.alter(disk, &at(name), |bytes, file| {
                file.set_len(*len as u64).unwrap();
                bytes.resize(*len as usize, 0);
            }),
            Step::Sync(name) => {
                if let Some(file) = self.live.get(&at(name)) {
                    disk.open(&at(name), Access::Read).unwrap().sync_data().unwrap();
                    let NaiveFile { live, durable, versions } = &mut self.files[*file];
                    *durable = live.clone();
                    versions.clear();
                }
            }
            Step::SyncDir => {
                disk.sync_dir(Path::new(DIR)).unwrap();
                self.durable = self.live.clone();
            }
            Step::Rename(from, to) | Step::Replace(from, to) => {
                let replace = matches!(step, Step::Replace(..));
                let done = match replace {
                    true => disk.replace(&at(from), &at(to)).is_ok(),
                    false => disk.rename(&at(from), &at(to)).is_ok(),
                };
                let free = replace || !self.live.contains_key(&at(to));
                assert_eq!(done, self.live.contains_key(&at(from)) && free);
                if done {
                    let file = self.live.remove(&at(from)).unwrap();
                    self.live.insert(at(to), file);
                }
            }
            Step::Remove(name) => {
                assert_eq!(disk.remove(&at(name)).is_ok(), self.live.remove(&at(name)).is_some());
            }
        }
    }

    fn alter(&mut self, disk: &SimulatedDisk, at: &Path, alter: impl Fn(&mut Vec<u8>, &dyn DiskFile)) {
        if let Some(file) = self.live.get(at) {
            let opened = disk.open(at, Access::ReadWrite).unwrap();
            let NaiveFile { live, versions, .. } = &mut self.files[*file];
            alter(live, &*opened);
            versions.push(live.clone());
        }
    }

    fn bytes(&self, names: &BTreeMap<PathBuf, usize>, live: bool) -> BTreeMap<PathBuf, Vec<u8>> {
        let bytes = |file: &usize| match live {
            true => self.files[*file].live.clone(),
            false => self.files[*file].durable.clone(),
        };
        names.iter().map(|(path, file)| (path.clone(), bytes(file))).collect()
    }

    /// Whether `bytes` is something a power loss can make of `file`: each byte from the durable bytes
    /// or some version since, the length that of one of them.
    fn explains(&self, file: usize, bytes: &[u8]) -> bool {
        let NaiveFile { durable, versions, .. } = &self.files[file];
        let all = || std::iter::once(durable).chain(versions);
        let unchanged = !versions.is_empty() || bytes == durable;
        let byte = |at: usize| all().any(|version| version.get(at).copied().unwrap_or(0) == bytes[at]);
        unchanged && all().any(|version| version.len() == bytes.len()) && (0..bytes.len()).all(byte)
    }
}

fn contents(disk: &SimulatedDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    disk.files().into_iter().map(|path| (path.clone(), disk.read_file(&path).unwrap())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_script_agrees_with_plain_vectors_before_and_after_a_loss(
        steps in proptest::collection::vec(step(), 1..40),
        seed in any::<u64>(),
    ) {
        let disk = disk();
        disk.record();
        let mut naive = Naive::default();
        let mut versions = Vec::new();
        for step in &steps {
            naive.step(&disk, step);
            versions.push((disk.operations(), naive.clone()));
        }
        for (operation, naive) in versions {
            let disk = disk.at(operation).unwrap();
            prop_assert_eq!(contents(&disk), naive.bytes(&naive.live, true));
            prop_assert_eq!(contents(&disk.power_loss(Policy::Keep, seed)), naive.bytes(&naive.live, true));
            prop_assert_eq!(contents(&disk.power_loss(Policy::Drop, seed)), naive.bytes(&naive.durable, false));
            prop_assert_eq!(
                contents(&disk.power_loss(Policy::NamesOnly, seed)),
                naive.bytes(&naive.live, false)
            );
            for policy in [Policy::Prefix, Policy::Subset, Policy::Torn] {
                let lost = disk.power_loss(policy, seed);
                let found = contents(&lost);
                prop_assert_eq!(&found, &contents(&disk.power_loss(policy, seed)), "the same seed");
                for (path, bytes) in &found {
                    let explained = (0..naive.files.len()).any(|file| naive.explains(file, bytes));
                    prop_assert!(explained, "{:?} made up {}", policy, path.display());
                }
                // A file that has a name before and after all changes has one in between, too.
                let named = naive.durable.values().filter(|file| naive.live.values().any(|now| now == *file));
                prop_assert!(found.len() >= named.count(), "{:?} lost both names of a file", policy);
                let again = lost.power_loss(Policy::Drop, 0);
                prop_assert_eq!(contents(&again), found, "what a boot found is durable");
            }
        }
    }
}
