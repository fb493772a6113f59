//! Names and data of a simulated disk, as seen now and as they are on the platter.
//!
//! Everything hangs on [`Arc`]s and is copied when written to, so a clone of a [`State`] is a
//! snapshot for the price of five pointers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::content::Content;

/// Names and what they stand for. Paths are kept whole: directories are never renamed or removed.
pub(super) type Names = BTreeMap<PathBuf, Entry>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Entry {
    Dir,
    File(u64),
}

/// One change of names that is not durable yet.
#[derive(Debug, Clone)]
pub(super) enum NameChange {
    Add { path: PathBuf, entry: Entry },
    Remove { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf, entry: Entry },
}

impl NameChange {
    pub(super) fn apply(&self, names: &mut Names) {
        match self {
            NameChange::Add { path, entry } => {
                names.insert(path.clone(), *entry);
            }
            NameChange::Remove { path } => {
                names.remove(path);
            }
            NameChange::Rename { from, to, entry } => {
                names.remove(from);
                names.insert(to.clone(), *entry);
            }
        }
    }

    /// The names it changes.
    pub(super) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let (first, second) = match self {
            NameChange::Add { path, .. } | NameChange::Remove { path } => (path, None),
            NameChange::Rename { from, to, .. } => (from, Some(to)),
        };
        std::iter::once(first).chain(second)
    }

    fn entry(&self) -> Option<Entry> {
        match self {
            NameChange::Add { entry, .. } | NameChange::Rename { entry, .. } => Some(*entry),
            NameChange::Remove { .. } => None,
        }
    }
}

/// One change of a file that is not durable yet.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Write { position: u64, bytes: Arc<[u8]> },
    SetLen(u64),
}

impl Change {
    pub(super) fn apply(&self, content: &mut Content) {
        match self {
            Change::Write { position, bytes } => content.write(bytes, *position),
            Change::SetLen(len) => content.set_len(*len),
        }
    }
}

/// A file, whatever its names.
#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    /// What reads see: the page cache over the disk.
    pub(super) live: Content,
    /// What is on the disk for certain.
    pub(super) durable: Content,
    /// What was written since, in order.
    pub(super) unsynced: Arc<Vec<Change>>,
    /// A failed sync left pages in the cache that are neither on the disk nor dirty: `live` is no
    /// longer `durable` with `unsynced` on top.
    pub(super) lying: bool,
}

impl Inode {
    pub(super) fn at_rest(content: Content) -> Self {
        Inode { live: content.clone(), durable: content, unsynced: Arc::default(), lying: false }
    }

    pub(super) fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        Arc::make_mut(&mut self.unsynced).push(change);
    }

    pub(super) fn sync(&mut self) {
        if self.lying {
            self.unsynced.iter().for_each(|change| change.apply(&mut self.durable));
        } else {
            self.durable = self.live.clone();
        }
        self.unsynced = Arc::default();
    }
}

/// A whole disk.
#[derive(Debug, Clone)]
pub(super) struct State {
    /// What `list` and `open` see.
    pub(super) names: Arc<Names>,
    /// What is in the directories on the disk for certain.
    pub(super) durable_names: Arc<Names>,
    /// The changes between the two, in order.
    pub(super) pending: Arc<Vec<NameChange>>,
    pub(super) inodes: Arc<BTreeMap<u64, Arc<Inode>>>,
    pub(super) next_inode: u64,
}

impl State {
    pub(super) fn empty() -> Self {
        let roots = ["/", ""].map(|root| (PathBuf::from(root), Entry::Dir));
        let names = Arc::new(Names::from(roots));
        State {
            names: names.clone(),
            durable_names: names,
            pending: Arc::default(),
            inodes: Arc::default(),
            next_inode: 1,
        }
    }

    pub(super) fn entry(&self, path: &Path) -> Option<Entry> {
        self.names.get(path).copied()
    }

    /// The file behind a name.
    pub(super) fn file(&self, path: &Path) -> io::Result<u64> {
        match self.entry(path) {
            Some(Entry::File(number)) => Ok(number),
            Some(Entry::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn dir(&self, path: &Path) -> io::Result<()> {
        match self.entry(path) {
            Some(Entry::Dir) => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn inode(&self, number: u64) -> &Inode {
        self.inodes.get(&number).expect("a file is kept while it has a name or a handle")
    }

    pub(super) fn inode_mut(&mut self, number: u64) -> &mut Inode {
        let inodes = Arc::make_mut(&mut self.inodes);
        Arc::make_mut(inodes.get_mut(&number).expect("a file is kept while it has a name or a handle"))
    }

    pub(super) fn new_inode(&mut self, inode: Inode) -> u64 {
        let number = self.next_inode;
        self.next_inode += 1;
        Arc::make_mut(&mut self.inodes).insert(number, Arc::new(inode));
        number
    }

    pub(super) fn change_names(&mut self, change: NameChange) {
        change.apply(Arc::make_mut(&mut self.names));
        Arc::make_mut(&mut self.pending).push(change);
    }

    /// Makes every change of names in `dir` durable, with the earlier changes they stand on.
    ///
    /// A rename into another directory is made durable whole by syncing the directory it left (the
    /// file keeps a name); syncing only the one it went to leaves the old name free to come back.
    pub(super) fn sync_names(&mut self, dir: &Path) {
        let mut needed: BTreeSet<&PathBuf> = BTreeSet::new();
        let mut selected = vec![false; self.pending.len()];
        for (index, change) in self.pending.iter().enumerate().rev() {
            let touches = change.paths().any(|path| parent(path) == dir || needed.contains(path));
            if !touches {
                continue;
            }
            selected[index] = true;
            match change {
                NameChange::Rename { from, to, .. } if parent(from) != dir && !needed.contains(from) => {
                    needed.insert(to);
                }
                change => needed.extend(change.paths()),
            }
        }
        let mut left = Vec::new();
        let mut durable = Names::clone(&self.durable_names);
        for (change, selected) in self.pending.iter().zip(selected) {
            match change {
                change if !selected => left.push(change.clone()),
                NameChange::Rename { from, to, entry } if !needed.contains(from) => {
                    durable.insert(to.clone(), *entry);
                    left.push(NameChange::Remove { path: from.clone() });
                }
                change => change.apply(&mut durable),
            }
        }
        self.durable_names = Arc::new(durable);
        self.pending = Arc::new(left);
    }

    /// Pages of files that have a name or are open.
    pub(super) fn allocated_pages(&self, open: &BTreeMap<u64, u64>) -> u64 {
        let named: BTreeSet<u64> = files(self.names.values().copied()).collect();
        let counted = |number: &u64| named.contains(number) || open.contains_key(number);
        let inodes = self.inodes.iter().filter(|(number, _)| counted(number));
        inodes.map(|(_, inode)| inode.live.allocated_pages()).sum()
    }

    /// Drops the files that nothing can reach any more, neither now nor after a power loss: those
    /// without a name that are not `open` either.
    pub(super) fn forget_unreferenced(&mut self, open: &BTreeMap<u64, u64>) {
        let mut kept: BTreeSet<u64> = files(self.names.values().copied()).collect();
        kept.extend(files(self.durable_names.values().copied()));
        kept.extend(files(self.pending.iter().filter_map(NameChange::entry)));
        kept.extend(open.keys());
        if kept.len() < self.inodes.len() {
            Arc::make_mut(&mut self.inodes).retain(|number, _| kept.contains(number));
        }
    }
}

fn files(entries: impl Iterator<Item = Entry>) -> impl Iterator<Item = u64> {
    entries.filter_map(|entry| match entry {
        Entry::File(number) => Some(number),
        Entry::Dir => None,
    })
}

/// Drops the names whose directory did not survive.
pub(super) fn prune(names: &mut Names) {
    // Parents sort before their children, so one pass sees each parent's fate first.
    let mut dirs: BTreeSet<PathBuf> = BTreeSet::new();
    names.retain(|path, entry| {
        let is_root = path.parent().is_none();
        let kept = is_root || dirs.contains(parent(path));
        if kept && *entry == Entry::Dir {
            dirs.insert(path.clone());
        }
        kept
    });
}

/// The directory a name is in.
pub(super) fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
