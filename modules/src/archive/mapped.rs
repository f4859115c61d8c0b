//! Files in memory, and where in them a tensor lies.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::Mmap;
use schemas::node::NodeError;

use super::dtype::Dtype;

/// The highest rank of a tensor.
const MAX_RANK: usize = 64;

/// The most bytes of a tensor that is larger than what the file holds of it.
const MAX_EXPANDED: usize = 1 << 28;

/// A file, mapped.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) path: PathBuf,
    map: Mmap,
}

impl Mapped {
    pub(super) fn open(path: &Path) -> Result<Self, NodeError> {
        let fail = |reason: String| fault(path, reason);
        // Opening a pipe would wait for whoever writes into it.
        let found = std::fs::metadata(path);
        let found = found.map_err(|error| fail(format!("cannot be opened: {error}")))?;
        if !found.is_file() {
            return Err(fail("is not a file".to_owned()));
        }
        if found.len() == 0 {
            return Err(fail("is empty".to_owned()));
        }
        let file = File::open(path).map_err(|error| fail(format!("cannot be opened: {error}")))?;
        // SAFETY: the mapping is read-only; a file that is cut while it is read faults this
        // process, which the caller accepts for files it names itself.
        #[expect(unsafe_code, reason = "memory mapping a file")]
        let map = unsafe { Mmap::map(&file) }
            .map_err(|error| fail(format!("cannot be read: {error}")))?;
        Ok(Self { path: path.to_owned(), map })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Takes the pages of a tensor out of the memory of this process; they are mapped again when they are
    /// read again.
    pub(super) fn release(&self, slot: &Slot) {
        #[cfg(unix)]
        {
            let (start, len) = (slot.storage.start, slot.storage.len());
            // SAFETY: pages of a read-only file come back with the same bytes.
            #[expect(unsafe_code, reason = "memory mapping a file")]
            let released = unsafe {
                self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len)
            };
            // Advice that is not taken costs memory, nothing else.
            drop(released);
        }
    }

    /// The elements of a tensor of this file, row-major.
    pub(super) fn read(&self, slot: &Slot) -> Result<Cow<'_, [u8]>, String> {
        let storage = &self.bytes()[slot.storage.clone()];
        if let Some(check) = &slot.check {
            check.pass(self.bytes())?;
        }
        let size = slot.dtype.size();
        if slot.contiguous {
            let start = slot.first * size;
            return Ok(Cow::Borrowed(&storage[start..start + slot.count * size]));
        }
        Ok(Cow::Owned(match size {
            1 => gather::<1>(slot, storage),
            2 => gather::<2>(slot, storage),
            4 => gather::<4>(slot, storage),
            _ => gather::<8>(slot, storage),
        }))
    }
}

/// An error about a file.
pub(super) fn fault(path: &Path, reason: String) -> NodeError {
    NodeError::Weights { file: path.display().to_string(), reason }
}

/// A name out of a file as it is shown to people: short and without control characters.
pub(super) fn shown(name: &str) -> String {
    let mut text: String = name.chars().take(160).flat_map(char::escape_debug).collect();
    if name.chars().nth(160).is_some() {
        text.push_str("...");
    }
    text
}

/// The checksum of a part of a file, compared once, when the part is first read.
#[derive(Debug)]
pub(super) struct Check {
    /// Which part, for messages.
    pub(super) name: String,
    pub(super) range: Range<usize>,
    pub(super) crc: u32,
    passed: AtomicBool,
}

impl Check {
    pub(super) fn new(name: String, range: Range<usize>, crc: u32) -> Self {
        Self { name, range, crc, passed: AtomicBool::new(false) }
    }

    pub(super) fn pass(&self, file: &[u8]) -> Result<(), String> {
        if self.passed.load(Ordering::Relaxed) {
            return Ok(());
        }
        if crc32fast::hash(&file[self.range.clone()]) != self.crc {
            let name = shown(&self.name);
            return Err(format!("`{name}` is damaged: its checksum does not match"));
        }
        self.passed.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Where in a file a tensor lies.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Bytes of the file that the element numbers count in.
    storage: Range<usize>,
    /// Number of its first element.
    first: usize,
    /// Elements from one index to the next, per axis.
    strides: Vec<usize>,
    count: usize,
    contiguous: bool,
    check: Option<std::sync::Arc<Check>>,
}

impl Slot {
    /// A tensor that fills a part of a file.
    pub(super) fn whole(
        dtype: Dtype,
        shape: Vec<usize>,
        storage: Range<usize>,
    ) -> Result<Self, String> {
        let count = volume(&shape)?;
        if count.checked_mul(dtype.size()) != Some(storage.len()) {
            let held = storage.len();
            return Err(format!("{shape:?} of {dtype} does not fill {held} bytes"));
        }
        let strides = Vec::new();
        Ok(Self { dtype, shape, storage, first: 0, strides, count, contiguous: true, check: None })
    }

    /// A view of a part of a file. The strides are as many as the axes.
    pub(super) fn view(
        dtype: Dtype,
        storage: Range<usize>,
        first: usize,
        (shape, mut strides): (Vec<usize>, Vec<usize>),
    ) -> Result<Self, String> {
        let count = volume(&shape)?;
        // Nothing moves along an axis of one, whatever its stride says.
        let alone = strides.iter_mut().zip(&shape).filter(|(_, extent)| **extent == 1);
        alone.for_each(|(stride, _)| *stride = 0);
        if count == 0 {
            let storage = storage.start..storage.start;
            return Ok(Self {
                contiguous: true,
                check: None,
                first: 0,
                dtype,
                shape,
                storage,
                strides,
                count,
            });
        }
        let mut last = Some(first);
        for (&extent, &stride) in shape.iter().zip(&strides) {
            let reach = (extent - 1).checked_mul(stride);
            last = last.zip(reach).and_then(|(last, reach)| last.checked_add(reach));
        }
        let held = storage.len() / dtype.size();
        if last.is_none_or(|last| last >= held) {
            let what = format!("{shape:?} with strides {strides:?} from element {first}");
            return Err(format!("{what} reaches beyond its {held} stored elements"));
        }
        let bytes = count.checked_mul(dtype.size());
        if bytes.is_none_or(|bytes| bytes > MAX_EXPANDED && bytes > storage.len()) {
            let what = format!("{shape:?} of {dtype} out of {held} stored elements");
            return Err(format!("{what} would fill more memory than the file"));
        }
        let contiguous = is_contiguous(&shape, &strides);
        Ok(Self { dtype, shape, storage, first, strides, count, contiguous, check: None })
    }

    /// The same, with a checksum to compare before reading.
    pub(super) fn checked(mut self, check: Option<std::sync::Arc<Check>>) -> Self {
        self.check = check;
        self
    }

    /// Bytes of its elements.
    pub(super) fn bytes(&self) -> u64 {
        (self.count * self.dtype.size()) as u64
    }
}

/// Elements of a shape.
pub(super) fn volume(shape: &[usize]) -> Result<usize, String> {
    if shape.len() > MAX_RANK {
        return Err(format!("has {} axes; the limit is {MAX_RANK}", shape.len()));
    }
    // An extent of 0 hides no overflow of the others.
    let product = shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
    let nonzero = shape.iter().filter(|&&extent| extent != 0);
    let fits = nonzero.copied().try_fold(8usize, usize::checked_mul);
    let fits = fits.filter(|&bytes| bytes <= isize::MAX as usize);
    product.filter(|_| fits.is_some()).ok_or_else(|| format!("{shape:?} is too large"))
}

fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(&extent, &stride)| {
        let fits = extent == 1 || stride == expected;
        expected *= extent;
        fits
    })
}

fn gather<const N: usize>(slot: &Slot, storage: &[u8]) -> Vec<u8> {
    let elements = storage.as_chunks::<N>().0;
    let mut out = Vec::with_capacity(slot.count);
    let Some((&run, outer)) = slot.shape.split_last() else {
        return elements[slot.first].to_vec();
    };
    let (step, strides) = (slot.strides[outer.len()], &slot.strides[..outer.len()]);
    let mut index = vec![0; outer.len()];
    let mut at = slot.first;
    loop {
        match step {
            1 => out.extend_from_slice(&elements[at..at + run]),
            _ => out.extend((0..run).map(|i| elements[at + i * step])),
        }
        let mut axis = outer.len();
        loop {
            if axis == 0 {
                return out.into_flattened();
            }
            axis -= 1;
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < outer[axis] {
                break;
            }
            at -= strides[axis] * outer[axis];
            index[axis] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(slot: &Slot, bytes: &[u8]) -> Vec<u8> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        Mapped::open(file.path()).unwrap().read(slot).unwrap().into_owned()
    }

    fn view(shape: &[usize], strides: &[usize], first: usize) -> Result<Slot, String> {
        Slot::view(Dtype::U8, 0..12, first, (shape.to_vec(), strides.to_vec()))
    }

    #[test]
    fn a_transposed_and_an_expanded_view_are_gathered() {
        let bytes: Vec<u8> = (0..12).collect();
        let turned = view(&[4, 3], &[1, 4], 0).unwrap();
        assert!(!turned.contiguous);
        assert_eq!(read(&turned, &bytes), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        let repeated = view(&[2, 2, 1], &[0, 1, 9], 5).unwrap();
        assert_eq!(read(&repeated, &bytes), [5, 6, 5, 6]);
        let part = view(&[2, 2], &[4, 1], 5).unwrap();
        assert_eq!(read(&part, &bytes), [5, 6, 9, 10]);
    }

    #[test]
    fn axes_of_one_do_not_hinder_a_view_from_being_borrowed() {
        let slot = view(&[1, 3, 1, 4], &[99, 4, 7, 1], 0).unwrap();
        assert!(slot.contiguous);
        assert!(!view(&[2, 3], &[3, 2], 0).unwrap().contiguous);
    }

    #[test]
    fn a_view_that_leaves_its_storage_or_fills_the_memory_is_refused() {
        assert!(view(&[12], &[1], 1).unwrap_err().contains("beyond its 12 stored elements"));
        assert!(view(&[2], &[usize::MAX], 2).unwrap_err().contains("beyond"));
        assert!(view(&[1 << 40], &[0], 0).unwrap_err().contains("more memory than the file"));
        assert!(view(&[1 << 40, 1 << 40], &[0, 0], 0).unwrap_err().contains("too large"));
        assert!(view(&[usize::MAX, 2, 0], &[1, 1, 1], 0).unwrap_err().contains("too large"));
        assert!(view(&[1; 65], &[1; 65], 0).unwrap_err().contains("65 axes"));
    }
}
