//! Which of the last accepted events had which tag: the dedupe window in memory. Pure: no I/O.
//!
//! Owned by the committer alone, so there is no lock. Nothing here can fail; after a restart it is
//! filled again from the durable ring and from the log (see `ring`).
//!
//! Two flat arrays and no allocation per event, because a million of them must fit beside
//! everything else into a small process:
//!
//! ```text
//! ring   10 bytes an event: 80 bits of its tag, at position  offset mod window
//! slots   4 bytes: position + 1, 0 is empty; open addressing, linear probing, 3/4 full at most
//! ```
//!
//! Time goes into waiting for memory: the table is larger than a core's cache and every tag leads
//! elsewhere. What the position leaves free of a slot's 32 bits (12 in a window of a million)
//! therefore tells how far the slot is from where its key's probing began, and a few bits of the
//! key's hash; so that probing and deleting look at neighbouring slots and hardly ever into the
//! ring. And [`Dedupe::touch`] asks for the slots of many tags at once.
//!
//! 80 bits are enough: a false duplicate among 10⁶ remembered tags has odds of 10⁶ / 2⁸⁰ an event, which
//! is one in forty thousand years of a million events a second.
//! Both arrays are allocated zeroed, so pages cost memory only once they are used.
//!
//! The window is exact: the event that would get offset `next` is compared with the events at
//! offsets `next - window` and above, and with no others. Void offsets take their place in it.

/// The dedupe window.
#[derive(Debug)]
pub struct Dedupe {
    /// How many offsets are remembered; 0 turns everything off.
    window: u64,
    /// The offset the next accepted event gets.
    next: u64,
    low: Vec<u64>,
    high: Vec<u16>,
    slots: Vec<u32>,
    layout: Layout,
    /// Mixed into the hash, so that nobody outside can aim tags at one place of the table.
    seed: (u64, u64),
    /// What the offers since [`Dedupe::begin`] pushed out of the ring.
    evicted: Vec<Evicted>,
}

/// 80 bits of a tag; all zero is no tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    low: u64,
    high: u16,
}

/// How the 32 bits of a slot are divided: position + 1 in the low ones, then the distance from home,
/// then as much of a key's mark as there is room for. Nothing rests on the hints but speed: without
/// any room for them everything is looked up in the ring.
#[derive(Debug, Clone, Copy)]
struct Layout {
    position_bits: u32,
    distance_bits: u32,
}

impl Layout {
    fn of(window: u64) -> Self {
        let position_bits = u64::BITS - window.leading_zeros();
        Self { position_bits, distance_bits: u32::BITS.saturating_sub(position_bits).min(7) }
    }

    /// The distance that stands for itself and for every larger one.
    fn far(self) -> usize {
        (1 << self.distance_bits) - 1
    }

    /// The bits of a slot above its position.
    fn hint(self, mark: u32, distance: usize) -> u32 {
        let hint = u64::from(mark) << self.distance_bits | distance.min(self.far()) as u64;
        (hint << self.position_bits) as u32
    }

    fn hint_of(self, slot: u32) -> u32 {
        slot - self.pointer(slot)
    }

    /// Position + 1.
    fn pointer(self, slot: u32) -> u32 {
        (u64::from(slot) & ((1 << self.position_bits) - 1)) as u32
    }

    /// The distance from home; `None` when it is too far to be told.
    fn distance(self, slot: u32) -> Option<usize> {
        let distance = (u64::from(slot) >> self.position_bits) as usize & self.far();
        (distance < self.far()).then_some(distance)
    }

    /// The slot, moved to another distance.
    fn moved(self, slot: u32, distance: usize) -> u32 {
        let others = slot & !self.hint(0, self.far());
        others | self.hint(0, distance)
    }
}

#[derive(Debug, Clone, Copy)]
struct Evicted {
    key: Key,
    /// Whether the table pointed at it; not so when a later event had the same tag.
    indexed: bool,
}

/// How many tags to [`Dedupe::touch`] at once: few enough that they stay in the nearest cache, enough
/// to wait for many at a time.
pub const AHEAD: usize = 32;

/// The most a window may hold: positions are kept as 32-bit numbers.
pub const MAX_WINDOW: u64 = u32::MAX as u64 - 1;

impl Key {
    fn of(tag: u128) -> Self {
        Self { low: tag as u64, high: (tag >> 64) as u16 }
    }

    fn is_none(self) -> bool {
        self.low == 0 && self.high == 0
    }
}

impl Dedupe {
    /// An empty window in front of offset `next`. `window` is at most [`MAX_WINDOW`].
    pub fn new(window: u64, next: u64, seed: (u64, u64)) -> Self {
        debug_assert!(window <= MAX_WINDOW);
        let slots = if window == 0 { 0 } else { window as usize / 3 * 4 + 8 };
        Self {
            window,
            next,
            low: vec![0; window as usize],
            high: vec![0; window as usize],
            slots: vec![0; slots],
            layout: Layout::of(window),
            seed,
            evicted: Vec::new(),
        }
    }

    /// The offset the next accepted event gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Reads what offers of these tags will read, so that they find it in the cache. The processor
    /// fetches many independent lines in the time of one; the offers depend on each other.
    pub fn touch(&self, tags: impl Iterator<Item = u128>) {
        let mut seen = 0;
        for (offset, tag) in (self.next..).zip(tags) {
            for key in [Key::of(tag), self.key(self.position(offset))] {
                seen ^= self.slots.get(self.home(key).0).copied().unwrap_or_default();
            }
        }
        std::hint::black_box(seen);
    }

    /// Begins a group of offers that [`Dedupe::undo`] can take back.
    pub fn begin(&mut self) {
        self.evicted.clear();
    }

    /// Takes back every accepted offer since [`Dedupe::begin`].
    pub fn undo(&mut self) {
        while let Some(evicted) = self.evicted.pop() {
            self.next -= 1;
            let position = self.position(self.next);
            self.unindex(position);
            self.set_key(position, evicted.key);
            if evicted.indexed {
                self.index(position, evicted.key);
            }
        }
    }

    /// Offers the next event: `true` and remembered when its tag is new, `false` when the window
    /// has it already. A duplicate takes no place in the window.
    pub fn offer(&mut self, tag: u128) -> bool {
        let key = Key::of(tag);
        if self.window > 0 && !key.is_none() && self.find(key).0.is_ok() {
            return false;
        }
        let evicted = self.push(key);
        self.evicted.push(evicted);
        true
    }

    /// Remembers an event that was accepted in an earlier life, whatever the window says; the last
    /// one with a tag is the one that counts. Offsets ascend; those left out are void. Cannot be
    /// undone.
    pub fn load(&mut self, offset: u64, tag: u128) {
        self.skip_to(offset);
        self.push(Key::of(tag));
    }

    /// Like [`Dedupe::load`], for many; offsets that come too late and tags of 0 are left out.
    ///
    /// Every tag belongs to another place of memory, and nearly all of the time is waiting for it:
    /// the places of some tags are asked for at once before the first of them is needed.
    pub fn load_all(&mut self, pairs: &[(u64, u128)]) {
        for ahead in pairs.chunks(AHEAD) {
            self.touch(ahead.iter().map(|(_, tag)| *tag));
            for (offset, tag) in ahead {
                if *tag != 0 && *offset >= self.next {
                    self.load(*offset, *tag);
                }
            }
        }
    }

    /// Leaves every offset from the next one up to `offset` void.
    pub fn skip_to(&mut self, offset: u64) {
        debug_assert!(offset >= self.next, "offsets never go back");
        if offset <= self.next {
            return;
        }
        if offset - self.next >= self.window {
            self.low.fill(0);
            self.high.fill(0);
            self.slots.fill(0);
            self.next = offset;
        }
        while self.next < offset {
            self.push(Key { low: 0, high: 0 });
        }
    }

    /// Puts a key at the next offset and tells what had to leave for it.
    fn push(&mut self, key: Key) -> Evicted {
        if self.window == 0 {
            self.next += 1;
            return Evicted { key: Key { low: 0, high: 0 }, indexed: false };
        }
        let position = self.position(self.next);
        let old = self.key(position);
        let indexed = self.unindex(position);
        self.set_key(position, key);
        self.index(position, key);
        self.next += 1;
        Evicted { key: old, indexed }
    }

    fn position(&self, offset: u64) -> u32 {
        // A window of 0 has no positions; the callers never look any up.
        (offset % self.window.max(1)) as u32
    }

    fn key(&self, position: u32) -> Key {
        match (self.low.get(position as usize), self.high.get(position as usize)) {
            (Some(&low), Some(&high)) => Key { low, high },
            _ => Key { low: 0, high: 0 },
        }
    }

    fn set_key(&mut self, position: u32, key: Key) {
        if let (Some(low), Some(high)) =
            (self.low.get_mut(position as usize), self.high.get_mut(position as usize))
        {
            (*low, *high) = (key.low, key.high);
        }
    }

    /// Where a key's probing begins, and its mark.
    fn home(&self, key: Key) -> (usize, u32) {
        let factor = (u64::from(key.high) ^ self.seed.1) | 1;
        let product = u128::from(key.low ^ self.seed.0) * u128::from(factor);
        // Folded, then multiplied once more, so that every bit of the tag moves the high ones.
        let mixed = ((product as u64) ^ (product >> 64) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (((u128::from(mixed) * self.slots.len() as u128) >> 64) as usize, mixed as u32)
    }

    /// How far the pointer in a slot is from where its key's probing began.
    fn strayed(&self, slot: usize) -> usize {
        self.layout.distance(self.slots[slot]).unwrap_or_else(|| {
            let key = self.key(self.layout.pointer(self.slots[slot]) - 1);
            self.distance(self.home(key).0, slot)
        })
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.slots.len() - from }
    }

    fn after(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() { 0 } else { slot + 1 }
    }

    /// The slot that points at `key`, or the empty slot where it belongs; and the hint of either.
    fn find(&self, key: Key) -> (Result<usize, usize>, u32) {
        let (mut slot, mark) = self.home(key);
        let mut distance = 0;
        // Ends, because the table is never more than three quarters full.
        loop {
            let found = self.slots[slot];
            let hint = self.layout.hint(mark, distance);
            if found == 0 {
                return (Err(slot), hint);
            }
            if self.layout.hint_of(found) == hint && self.key(self.layout.pointer(found) - 1) == key {
                return (Ok(slot), hint);
            }
            slot = self.after(slot);
            distance += 1;
        }
    }

    fn index(&mut self, position: u32, key: Key) {
        if key.is_none() || self.slots.is_empty() {
            return;
        }
        let (Ok(slot) | Err(slot), hint) = self.find(key);
        self.slots[slot] = hint | (position + 1);
    }

    /// Takes the pointer at `position` out of the table; `false` when there is none.
    fn unindex(&mut self, position: u32) -> bool {
        let key = self.key(position);
        if key.is_none() {
            return false;
        }
        let mut hole = match self.find(key).0 {
            Ok(slot) if self.layout.pointer(self.slots[slot]) == position + 1 => slot,
            _ => return false,
        };
        // Backward shift: whatever was pushed past the hole moves into it, so that no tombstones
        // pile up.
        let mut slot = self.after(hole);
        while self.slots[slot] != 0 {
            let strayed = self.strayed(slot);
            let from_hole = self.distance(hole, slot);
            if strayed >= from_hole {
                self.slots[hole] = self.layout.moved(self.slots[slot], strayed - from_hole);
                hole = slot;
            }
            slot = self.after(slot);
        }
        self.slots[hole] = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every offset's tag; 0 where void.
    #[derive(Debug, Clone, Default)]
    struct Model(Vec<u128>);

    impl Model {
        fn offer(&mut self, window: u64, tag: u128) -> bool {
            let from = self.0.len().saturating_sub(window as usize);
            let new = !self.0[from..].contains(&tag);
            if new {
                self.0.push(tag);
            }
            new
        }
    }

    fn tag(n: u64) -> u128 {
        u128::from(n + 1).wrapping_mul(0x1234_5678_9abc_def1_0fed_cba9_8765_4321)
    }

    #[derive(Debug, Clone)]
    enum Step {
        Group { tags: Vec<u64>, undo: bool },
        Skip(u64),
        Reload { kept: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (prop::collection::vec(0u64..40, 0..20), prop::bool::weighted(0.3))
                .prop_map(|(tags, undo)| Step::Group { tags, undo }),
            1 => (0u64..30).prop_map(Step::Skip),
            1 => (0u64..40).prop_map(|kept| Step::Reload { kept }),
        ]
    }

    proptest! {
        #[test]
        fn finds_exactly_the_events_within_the_window(
            window in 0u64..24,
            hint_bits in 0u32..12,
            seed in any::<(u64, u64)>(),
            steps in prop::collection::vec(step(), 0..40),
        ) {
            // What larger windows leave for hints.
            let layout = Layout { position_bits: 32 - hint_bits, distance_bits: hint_bits.min(2) };
            let mut dedupe = Dedupe { layout, ..Dedupe::new(window, 0, seed) };
            let mut model = Model::default();
            for step in steps {
                match step {
                    Step::Group { tags, undo } => {
                        let before = model.clone();
                        dedupe.begin();
                        dedupe.touch(tags.iter().map(|n| tag(*n)));
                        for n in tags {
                            prop_assert_eq!(dedupe.offer(tag(n)), model.offer(window, tag(n)));
                        }
                        if undo {
                            dedupe.undo();
                            model = before;
                        }
                    }
                    Step::Skip(by) => {
                        model.0.resize(model.0.len() + by as usize, 0);
                        dedupe.skip_to(model.0.len() as u64);
                    }
                    Step::Reload { kept } => {
                        // Loaded from what is remembered elsewhere, at least a whole window of it.
                        let from = (model.0.len() as u64).saturating_sub(window + kept);
                        dedupe = Dedupe { layout, ..Dedupe::new(window, from, seed) };
                        let pairs: Vec<(u64, u128)> =
                            (from..).zip(model.0[from as usize..].iter().copied()).collect();
                        dedupe.load_all(&pairs);
                        dedupe.load_all(&pairs); // what comes once more is left out
                        dedupe.skip_to(model.0.len() as u64);
                    }
                }
                prop_assert_eq!(dedupe.next(), model.0.len() as u64);
            }
        }
    }

    #[test]
    fn the_window_ends_exactly_where_it_says() {
        let mut dedupe = Dedupe::new(3, 0, (1, 2));
        for n in 0..3 {
            assert!(dedupe.offer(tag(n)));
        }
        assert!(!dedupe.offer(tag(0)), "offset 0 is within the last three of offset 3");
        assert!(dedupe.offer(tag(3)));
        assert!(dedupe.offer(tag(0)), "offset 0 is no longer within the last three of offset 4");
    }

    #[test]
    fn the_last_of_two_loaded_with_one_tag_counts() {
        let mut dedupe = Dedupe::new(4, 0, (1, 2));
        dedupe.load(0, tag(7));
        dedupe.load(3, tag(7));
        dedupe.begin();
        assert!(dedupe.offer(tag(1)), "pushes out offset 0");
        dedupe.undo();
        assert!(!dedupe.offer(tag(7)));
        assert!(dedupe.offer(tag(1)));
        assert!(!dedupe.offer(tag(7)), "offset 3 still stands");
    }

    #[test]
    fn a_full_window_of_many_stays_findable() {
        let mut dedupe = Dedupe::new(10_000, 0, (3, 4));
        for n in 0..50_000 {
            assert!(dedupe.offer(tag(n)));
            dedupe.begin();
        }
        for n in 40_000..50_000 {
            assert!(!dedupe.offer(tag(n)));
        }
        assert!(dedupe.offer(tag(39_999)));
    }
}
