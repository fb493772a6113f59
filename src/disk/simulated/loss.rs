//! What is left of a disk when the power comes back: the choices behind [`Policy`].
//!
//! Pure: a state, a policy and a seed in, a state out. The model is told in the parent module.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::content::Content;
use super::state::{Change, Inode, NameChange, Names, State, prune};
use super::{Policy, Random};

/// A disk writes a sector whole or not at all.
const SECTOR_BYTES: u64 = 512;

/// The state the next boot finds: live and durable are the same again.
pub(super) fn power_loss(state: &State, policy: Policy, random: &mut Random) -> State {
    let mut names = Names::clone(&state.durable_names);
    for change in kept_names(&state.pending, policy, random) {
        change.apply(&mut names);
    }
    prune(&mut names);

    let mut inodes = BTreeMap::new();
    for (number, inode) in state.inodes.iter() {
        let content = surviving(inode, policy, &state.inodes, random);
        inodes.insert(*number, Arc::new(Inode::at_rest(content)));
    }
    let names = Arc::new(names);
    let mut next = State {
        names: names.clone(),
        durable_names: names,
        pending: Arc::default(),
        inodes: Arc::new(inodes),
        next_inode: state.next_inode,
    };
    next.forget_unreferenced(&BTreeMap::new());
    next
}

/// The pending changes of names that reached the disk, in order. A change is kept only when every
/// earlier one of the same names is: a directory entry has one history.
fn kept_names<'a>(pending: &'a [NameChange], policy: Policy, random: &mut Random) -> Vec<&'a NameChange> {
    let density = match policy {
        Policy::Drop | Policy::DataOnly => Density::NONE,
        Policy::Keep | Policy::NamesOnly => Density::ALL,
        Policy::Prefix => return pending[..random.below(pending.len() as u64 + 1) as usize].iter().collect(),
        Policy::Subset | Policy::Torn | Policy::Stale => Density::random(random),
    };
    let mut lost: BTreeSet<&PathBuf> = BTreeSet::new();
    let mut kept = Vec::new();
    for change in pending {
        if change.paths().any(|path| lost.contains(path)) || !density.keeps(random) {
            lost.extend(change.paths());
        } else {
            kept.push(change);
        }
    }
    kept
}

/// What is left of one file under `policy`.
pub(super) fn surviving(
    inode: &Inode,
    policy: Policy,
    others: &BTreeMap<u64, Arc<Inode>>,
    random: &mut Random,
) -> Content {
    let changes = &inode.unsynced[..];
    let mut content = inode.durable.clone();
    if changes.is_empty() {
        return content;
    }
    let count = changes.len() as u64;
    match policy {
        Policy::Drop | Policy::NamesOnly => {}
        Policy::Keep | Policy::DataOnly => changes.iter().for_each(|change| change.apply(&mut content)),
        Policy::Prefix => {
            let kept = random.below(count + 1) as usize;
            changes[..kept].iter().for_each(|change| change.apply(&mut content));
        }
        Policy::Subset | Policy::Torn | Policy::Stale => {
            let density = Density::random(random);
            let sized = if random.coin() { count } else { random.below(count + 1) } as usize;
            let versions = versions(changes, policy, density, random);
            if policy == Policy::Stale {
                fill_gaps(&mut content, changes, &versions, Filler::choose(others, random));
            }
            reorder(&mut content, changes, &versions, sized, inode.durable.len());
        }
    }
    content
}

/// For each touched sector, how many of the changes it has seen. The page cache holds one version of
/// a sector, so a kept write brings along every earlier write to the same sector.
fn versions(
    changes: &[Change],
    policy: Policy,
    density: Density,
    random: &mut Random,
) -> BTreeMap<u64, usize> {
    let mut versions = BTreeMap::new();
    for (index, change) in changes.iter().enumerate() {
        let Change::Write { position, bytes } = change else { continue };
        let whole = density.keeps(random);
        for sector in sectors(*position, bytes.len()) {
            let kept = if policy == Policy::Subset { whole } else { density.keeps(random) };
            if kept {
                versions.insert(sector, index + 1);
            }
        }
    }
    versions
}

/// Puts something old into every sector that was allocated by a write but not reached by it.
fn fill_gaps(content: &mut Content, changes: &[Change], versions: &BTreeMap<u64, usize>, mut filler: Filler) {
    let allocated = content.len().div_ceil(SECTOR_BYTES);
    for change in changes {
        let Change::Write { position, bytes } = change else { continue };
        for sector in sectors(*position, bytes.len()) {
            if sector >= allocated && !versions.contains_key(&sector) {
                let start = sector * SECTOR_BYTES;
                content.write(&filler.bytes(start, SECTOR_BYTES as usize), start);
            }
        }
    }
}

/// Applies to `content` each sector in its version, and to the length `len` the sizes of the first
/// `sized` changes.
fn reorder(
    content: &mut Content,
    changes: &[Change],
    versions: &BTreeMap<u64, usize>,
    sized: usize,
    mut len: u64,
) {
    for (index, change) in changes.iter().enumerate() {
        match change {
            Change::SetLen(new) if index < sized => {
                content.set_len(*new); // what was cut does not come back by growing again
                len = *new;
            }
            Change::SetLen(_) => {}
            Change::Write { position, bytes } => {
                let end = position + bytes.len() as u64;
                for sector in sectors(*position, bytes.len()) {
                    if versions.get(&sector).is_some_and(|version| index < *version) {
                        let from = (*position).max(sector * SECTOR_BYTES);
                        let to = end.min((sector + 1) * SECTOR_BYTES);
                        let piece = (from - position) as usize..(to - position) as usize;
                        content.write(&bytes[piece], from);
                    }
                }
                if index < sized {
                    len = len.max(end);
                }
            }
        }
    }
    content.set_len(len);
}

fn sectors(position: u64, len: usize) -> std::ops::Range<u64> {
    if len == 0 {
        return 0..0;
    }
    position / SECTOR_BYTES..(position + len as u64).div_ceil(SECTOR_BYTES)
}

/// What stands in blocks that were allocated but never written: rubbish, or an earlier file.
enum Filler {
    Rubbish(Random),
    Earlier(Content),
}

impl Filler {
    fn choose(others: &BTreeMap<u64, Arc<Inode>>, random: &mut Random) -> Self {
        match others.values().nth(random.below(others.len() as u64 * 2 + 1) as usize) {
            Some(other) => Filler::Earlier(other.live.clone()),
            None => Filler::Rubbish(Random::new(random.next_u64())),
        }
    }

    fn bytes(&mut self, position: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        match self {
            Filler::Rubbish(random) => bytes.fill_with(|| random.next_u64() as u8),
            Filler::Earlier(content) => {
                content.read(&mut bytes, position);
            }
        }
        bytes
    }
}

/// Of eight changes, how many are kept on average. Drawn anew for each file, so that a loss mixes
/// files that are nearly whole with files that are nearly gone.
#[derive(Clone, Copy)]
struct Density(u64);

impl Density {
    const NONE: Density = Density(0);
    const ALL: Density = Density(8);

    fn random(random: &mut Random) -> Self {
        Density([0, 1, 4, 4, 4, 7, 7, 8][random.below(8) as usize])
    }

    fn keeps(self, random: &mut Random) -> bool {
        random.below(8) < self.0
    }
}
