//! Counting what a test of crashes has looked at: a state of the disk is counted once, however many ways
//! lead to it. Pure but for the disks it asks; it never fails.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::state::State;
use super::{Policy, SimulatedDisk};

/// The crash states of one exploration.
#[derive(Debug, Default)]
pub struct CrashStates {
    disks: HashSet<u64>,
    opened: u64,
}

impl CrashStates {
    /// What a crash can leave of a disk: as a kill leaves it, and as each policy of losing power does,
    /// the random ones with so many seeds each. Of those that are the same, only one.
    pub fn left(&mut self, disk: &SimulatedDisk, losses: u64) -> Vec<(SimulatedDisk, String)> {
        let mut here = HashSet::new();
        let mut left = Vec::new();
        let mut add = |disk: SimulatedDisk, what: String| {
            let fingerprint = disk.fingerprint();
            if here.insert(fingerprint) {
                left.push((disk, what));
            }
        };
        add(disk.kill(), String::from("a kill"));
        for policy in Policy::ALL {
            for seed in 0..if policy.is_random() { losses } else { 1 } {
                add(disk.power_loss(policy, seed), format!("{policy:?} with seed {seed}"));
            }
        }
        self.opened += left.len() as u64;
        self.disks.extend(here);
        left
    }

    /// Takes note of a disk that was opened and checked.
    pub fn note(&mut self, disk: &SimulatedDisk) {
        self.opened += 1;
        self.disks.insert(disk.fingerprint());
    }

    /// Adds what another exploration looked at.
    pub fn merge(&mut self, other: CrashStates) {
        self.opened += other.opened;
        self.disks.extend(other.disks);
    }

    /// How many different disks there were.
    pub fn distinct(&self) -> u64 {
        self.disks.len() as u64
    }
}

impl fmt::Display for CrashStates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} different crash states, opened and checked {} times", self.distinct(), self.opened)
    }
}

impl SimulatedDisk {
    /// Equal for disks that a process, and every later loss of power, finds equal.
    fn fingerprint(&self) -> u64 {
        self.inner().state.fingerprint()
    }
}

impl State {
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.names.hash(&mut hasher);
        if !Arc::ptr_eq(&self.names, &self.durable_names) {
            self.durable_names.hash(&mut hasher);
        }
        for (number, inode) in self.inodes.iter() {
            number.hash(&mut hasher);
            inode.live.hash(&mut hasher);
            inode.unsynced.len().hash(&mut hasher);
            if !inode.unsynced.is_empty() {
                inode.durable.hash(&mut hasher);
            }
        }
        hasher.finish()
    }
}
