//! Copies of files that are to outlive a power loss.
//!
//! Runs on the caller's thread and blocks there. Each call leaves the copy's bytes synced; its name is
//! durable once the caller has synced the directory. An error leaves a part of the copy behind, for the
//! caller to remove.

use std::io;
use std::path::Path;

use super::{Access, Disk, DiskFile};

/// Bytes read and written at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Copies the first `len` bytes of an open file into a new one at `to`, and syncs them. Fails when the
/// file holds less.
pub fn copy_bytes(
    disk: &dyn Disk,
    from: &dyn DiskFile,
    to: &Path,
    len: u64,
) -> io::Result<Box<dyn DiskFile>> {
    let copy = disk.create(to)?;
    let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(len).unwrap_or(CHUNK_BYTES))];
    let mut at = 0;
    while at < len {
        let wanted = chunk.len().min(usize::try_from(len - at).unwrap_or(chunk.len()));
        let read = from.read_full_at(&mut chunk[..wanted], at)?;
        if read < wanted {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter"));
        }
        copy.write_all_at(&chunk[..read], at)?;
        at += read as u64;
    }
    copy.sync_data()?;
    Ok(copy)
}

/// Copies a file whole, as long as it is when it is opened. Returns its bytes.
pub fn copy_file(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<u64> {
    let file = disk.open(from, Access::Read)?;
    let len = file.len()?;
    copy_bytes(disk, &*file, to, len)?;
    Ok(len)
}

/// Gives a file that never changes again a second name, or copies it where the file systems cannot.
/// Returns the bytes that were copied.
pub fn link_or_copy(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<u64> {
    match disk.link(from, to) {
        Ok(()) => Ok(0),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {
            Err(error)
        }
        Err(_) => copy_file(disk, from, to),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::disk::simulated::Policy;
    use crate::disk::{RealDisk, SimulatedDisk};

    fn path(name: &str) -> PathBuf {
        Path::new("/d").join(name)
    }

    fn disk() -> SimulatedDisk {
        let disk = SimulatedDisk::new(1);
        disk.create_dir_all(Path::new("/d")).unwrap();
        let bytes: Vec<u8> = (0..2 * CHUNK_BYTES + 5).map(|at| at as u8).collect();
        disk.write_file(&path("a"), &bytes).unwrap();
        disk
    }

    #[test]
    fn a_copy_is_on_the_disk_when_it_is_told_to_be_and_a_part_of_a_file_can_be_had() {
        let disk = disk();
        let whole = disk.read_file(&path("a")).unwrap();
        assert_eq!(copy_file(&disk, &path("a"), &path("b")).unwrap(), whole.len() as u64);
        let file = disk.open(&path("a"), Access::Read).unwrap();
        copy_bytes(&disk, &*file, &path("c"), 7).unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        let after = disk.power_loss(Policy::Drop, 0);
        assert_eq!(after.read_file(&path("b")).unwrap(), whole);
        assert_eq!(after.read_file(&path("c")).unwrap(), whole[..7]);
        let beyond = copy_bytes(&disk, &*file, &path("d"), whole.len() as u64 + 1);
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_linked_file_lives_as_long_as_one_of_its_names_and_no_name_is_taken_twice() {
        let disk = disk();
        let whole = disk.read_file(&path("a")).unwrap();
        assert_eq!(link_or_copy(&disk, &path("a"), &path("b")).unwrap(), 0);
        disk.sync_dir(Path::new("/d")).unwrap();
        assert_eq!(
            link_or_copy(&disk, &path("a"), &path("b")).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        disk.remove(&path("a")).unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        assert_eq!(disk.power_loss(Policy::Keep, 0).read_file(&path("b")).unwrap(), whole);
        assert_eq!(link_or_copy(&disk, &path("a"), &path("c")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn where_no_link_can_be_made_a_copy_is() {
        let Ok(other) = tempfile::tempdir_in("/dev/shm") else { return };
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "text").unwrap();
        let disk = RealDisk::default();
        let copied = link_or_copy(&disk, &dir.path().join("a"), &other.path().join("b")).unwrap();
        assert!(copied == 4 || copied == 0, "{copied}"); // both may lie on one file system
        assert_eq!(std::fs::read(other.path().join("b")).unwrap(), b"text");
    }
}
