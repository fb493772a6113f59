//! Where the index lies: sled, in a directory of its own. The only module that names sled.
//!
//! sled 0.34.7 is its last stable release and is no longer looked after. Its `flush` does not sync on
//! Linux, a kill while it opens can leave a `snap.*.generating` that it never opens again, and after a
//! power loss it may panic or come back empty. So nothing is kept here that cannot be made anew, every
//! call runs on the index's own thread under its watch, and an opening leaves a mark until it has come to
//! its end: should it take the process down with it, the next start does not try again.
//!
//! Blocks the calling thread, and may panic in sled; the worker expects both.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Changes after which sled hands what it has gathered to the kernel. Left alone it gathers megabytes.
const FLUSH_AFTER: u32 = 4;
/// There while an opening has not come to its end.
const OPENING: &str = "opening";

/// A key and its value.
pub type Pair = (Vec<u8>, Vec<u8>);
/// A key, and the value it gets; without one it is removed.
pub type KeyChange = (Vec<u8>, Option<Vec<u8>>);

/// Keys and values in order, changed in batches.
pub trait Store: Send {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, String>;
    /// At most `most` pairs with keys above `after`, below `below`, ascending.
    fn scan(&self, after: &[u8], below: &[u8], most: usize) -> Result<Vec<Pair>, String>;
    /// Makes changes: all or, after a crash, perhaps nothing of it.
    fn change(&self, changes: Vec<KeyChange>) -> Result<(), String>;
    /// Makes everything durable.
    fn sync(&self) -> Result<(), String>;
    /// Bytes on the disk.
    fn bytes(&self) -> Result<u64, String>;
}

/// Opens the store in a directory, with so many bytes of cache.
pub type OpenStore = Arc<dyn Fn(&Path, u64) -> Result<Box<dyn Store>, String> + Send + Sync>;

/// A sled database.
struct Sled {
    db: sled::Db,
    /// Its file, to sync it: sled's own flush only hands it to the kernel.
    file: File,
    unflushed: Cell<u32>,
}

/// Opens sled.
pub fn open_sled(dir: &Path, cache_bytes: u64) -> Result<Box<dyn Store>, String> {
    let config = sled::Config::new().path(dir).cache_capacity(cache_bytes).flush_every_ms(None);
    let db = config.open().map_err(|error| error.to_string())?;
    let file = File::open(dir.join("db")).map_err(|error| error.to_string())?;
    Ok(Box::new(Sled { db, file, unflushed: Cell::new(0) }))
}

impl Store for Sled {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let value = self.db.get(key).map_err(|error| error.to_string())?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, after: &[u8], below: &[u8], most: usize) -> Result<Vec<Pair>, String> {
        use std::ops::Bound::Excluded;
        let pairs = self.db.range::<&[u8], _>((Excluded(after), Excluded(below))).take(most);
        let owned = pairs.map(|pair| pair.map(|(key, value)| (key.to_vec(), value.to_vec())));
        owned.collect::<Result<_, _>>().map_err(|error| error.to_string())
    }

    fn change(&self, changes: Vec<KeyChange>) -> Result<(), String> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.db.apply_batch(batch).map_err(|error| error.to_string())?;
        self.unflushed.set(self.unflushed.get() + 1);
        if self.unflushed.get() >= FLUSH_AFTER {
            self.unflushed.set(0);
            self.db.flush().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), String> {
        self.db.flush().map_err(|error| error.to_string())?;
        self.file.sync_all().map_err(|error| error.to_string())
    }

    fn bytes(&self) -> Result<u64, String> {
        self.db.size_on_disk().map_err(|error| error.to_string())
    }
}

/// Makes `dir` ready to be opened. An error when the last opening did not come to its end.
pub fn prepare(dir: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", dir.display());
    fs::create_dir_all(dir).map_err(failed)?;
    if fs::exists(dir.join(OPENING)).map_err(failed)? {
        return Err("the last opening did not come to its end".to_owned());
    }
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(dir.join(&*name)).map_err(failed)?;
        }
    }
    File::create(dir.join(OPENING)).map_err(failed)?;
    Ok(())
}

/// The opening has come to its end.
pub fn opened(dir: &Path) -> Result<(), String> {
    fs::remove_file(dir.join(OPENING)).map_err(|error| format!("{}: {error}", dir.display()))
}

/// Moves `dir` aside for whoever wants to know, over the one moved aside before; says where to.
pub fn set_aside(dir: &Path) -> io::Result<PathBuf> {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".broken");
    let aside = dir.with_file_name(name);
    remove(&aside)?;
    match fs::rename(dir, &aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(aside),
    }
}

/// Removes a directory with all that is in it, or a file in its place.
pub fn remove(dir: &Path) -> io::Result<()> {
    match fs::symlink_metadata(dir) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(dir),
        Ok(_) => fs::remove_file(dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
