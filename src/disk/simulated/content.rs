//! A file's bytes: copy-on-write pages, so that a snapshot costs a pointer and a write one page.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

/// The unit of allocation, and of what two snapshots share.
pub(super) const PAGE_BYTES: usize = 4096;

/// Positions from here on are refused (EFBIG): the page table is kept flat.
pub(super) const MAX_FILE_BYTES: u64 = 4 << 30;

type Page = [u8; PAGE_BYTES];

/// Most pages of a preallocated file are zeros; they all share this one.
static ZEROS: LazyLock<Arc<Page>> = LazyLock::new(|| Arc::new([0; PAGE_BYTES]));

/// The bytes of a file. Clones share every page until one of them writes to it.
///
/// Invariant: bytes of a page beyond `len` are zero, so growing shows zeros.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    /// `None`, or missing at the end, is a hole: it reads as zeros and occupies nothing.
    pages: Arc<Vec<Option<Arc<Page>>>>,
    len: u64,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn allocated_pages(&self) -> u64 {
        self.pages.iter().flatten().count() as u64
    }

    pub(super) fn read(&self, buf: &mut [u8], position: u64) -> usize {
        let n = (buf.len() as u64).min(self.len.saturating_sub(position)) as usize;
        let mut done = 0;
        while done < n {
            let (page, at, take) = split(position + done as u64, n - done);
            match self.pages.get(page).and_then(Option::as_ref) {
                Some(page) => buf[done..done + take].copy_from_slice(&page[at..at + take]),
                None => buf[done..done + take].fill(0),
            }
            done += take;
        }
        n
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len as usize];
        self.read(&mut bytes, 0);
        bytes
    }

    /// How many of `len` bytes at `position` can be written when `room` more pages may be allocated.
    pub(super) fn writable(&self, position: u64, len: usize, mut room: u64) -> usize {
        let mut done = 0;
        while done < len {
            let (page, _, take) = split(position + done as u64, len - done);
            if self.pages.get(page).is_none_or(Option::is_none) {
                if room == 0 {
                    break;
                }
                room -= 1;
            }
            done += take;
        }
        done
    }

    /// Writes `bytes`, which must end below [`MAX_FILE_BYTES`], and grows the file where needed.
    pub(super) fn write(&mut self, bytes: &[u8], position: u64) {
        if bytes.is_empty() {
            return;
        }
        self.len = self.len.max(position + bytes.len() as u64);
        let pages = Arc::make_mut(&mut self.pages);
        let mut done = 0;
        while done < bytes.len() {
            let (page, at, take) = split(position + done as u64, bytes.len() - done);
            let new = &bytes[done..done + take];
            if pages.len() <= page {
                pages.resize(page + 1, None);
            }
            if take == PAGE_BYTES && new.iter().all(|byte| *byte == 0) {
                pages[page] = Some(ZEROS.clone());
            } else {
                let page = pages[page].get_or_insert_with(|| ZEROS.clone());
                Arc::make_mut(page)[at..at + take].copy_from_slice(new);
            }
            done += take;
        }
    }

    /// Cuts the file, or lets it grow with a hole.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let (page, at, _) = split(len, 1);
            let pages = Arc::make_mut(&mut self.pages);
            pages.truncate(if at == 0 { page } else { page + 1 });
            if at > 0
                && let Some(Some(last)) = pages.get_mut(page)
            {
                Arc::make_mut(last)[at..].fill(0);
            }
        }
        self.len = len;
    }
}

/// By bytes, not by what is shared: a page of zeros is one however it came to be.
impl Hash for Content {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.len.hash(hasher);
        for (number, page) in self.pages.iter().enumerate() {
            if let Some(page) = page
                && !Arc::ptr_eq(page, &ZEROS)
                && page.iter().any(|byte| *byte != 0)
            {
                number.hash(hasher);
                hasher.write(&page[..]);
            }
        }
    }
}

/// The page that holds `position`, where in it, and how many of `len` bytes it can take.
fn split(position: u64, len: usize) -> (usize, usize, usize) {
    let at = (position % PAGE_BYTES as u64) as usize;
    ((position / PAGE_BYTES as u64) as usize, at, len.min(PAGE_BYTES - at))
}
