//! Shared segments: a sealed memfd for bodies and a page of control words, mapped on both sides.
//!
//! The sender maps the bodies writable before it seals them, so nobody can map them writable, shrink or grow
//! them afterwards. The control words are writable on both sides: the receiver frees a slot by storing the
//! slot's generation in its word, which needs no message.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use memmap2::{Mmap, MmapOptions, MmapRaw};

use super::wire::Slot;

/// Slots of one segment.
pub(crate) const SLOTS: usize = 1024;
const CONTROL: usize = SLOTS * size_of::<u32>();

fn memfd(name: &std::ffi::CStr, len: usize) -> io::Result<File> {
    // SAFETY: the name is a valid C string; the call touches no other memory.
    let fd =
        unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else owns it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len as u64)?;
    Ok(file)
}

fn seal(file: &File, seals: libc::c_int) -> io::Result<()> {
    // SAFETY: fcntl on a descriptor that is open for the length of the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn seals(file: &File) -> libc::c_int {
    // SAFETY: fcntl on a descriptor that is open for the length of the call.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) }
}

/// The control words of a segment.
struct Control(MmapRaw);

impl Control {
    fn word(&self, slot: u32) -> Option<&AtomicU32> {
        if slot as usize >= SLOTS {
            return None;
        }
        // SAFETY: the mapping has CONTROL bytes, is page aligned, sealed against shrinking and lives as long as
        // `self`; both processes touch the word only as an atomic.
        Some(unsafe { &*self.0.as_ptr().cast::<AtomicU32>().add(slot as usize) })
    }
}

/// The sender's side of a segment.
pub(crate) struct Segment {
    bodies: MmapRaw,
    control: Control,
    /// The descriptors that the receiver gets: bodies, control.
    pub(crate) files: [OwnedFd; 2],
}

impl Segment {
    pub(crate) fn create(len: usize) -> io::Result<Self> {
        let file = memfd(c"playhouse-bodies", len)?;
        let bodies = MmapOptions::new().len(len).map_raw(&file)?;
        seal(
            &file,
            libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL,
        )?;
        let words = memfd(c"playhouse-control", CONTROL)?;
        let control = Control(MmapOptions::new().len(CONTROL).map_raw(&words)?);
        seal(&words, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL)?;
        Ok(Self { bodies, control, files: [file.into(), words.into()] })
    }

    pub(crate) fn len(&self) -> usize {
        self.bodies.len()
    }

    pub(crate) fn address(&self) -> usize {
        self.bodies.as_ptr() as usize
    }

    /// True when the receiver has stored this generation.
    pub(crate) fn returned(&self, slot: u32, generation: u32) -> bool {
        self.control.word(slot).is_some_and(|word| word.load(Ordering::Acquire) == generation)
    }

    /// The bytes of a slot.
    ///
    /// # Safety
    /// The caller is the only one that holds the slot: the allocator gave it out and nobody has sent it.
    #[expect(clippy::mut_from_ref, reason = "the allocator gives a range to one caller at a time")]
    pub(crate) unsafe fn write(&self, offset: usize, len: usize) -> &mut [u8] {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len()),
            "a slot lies inside its segment"
        );
        // SAFETY: the range lies in the mapping and, by the contract, nobody else touches it.
        unsafe { std::slice::from_raw_parts_mut(self.bodies.as_mut_ptr().add(offset), len) }
    }

    /// The bytes of a slot that nobody writes any more.
    ///
    /// # Safety
    /// No [`Segment::write`] of an overlapping range is alive or follows while the slice lives.
    pub(crate) unsafe fn read(&self, offset: usize, len: usize) -> &[u8] {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len()),
            "a slot lies inside its segment"
        );
        // SAFETY: the range lies in the mapping and, by the contract, is not written.
        unsafe { std::slice::from_raw_parts(self.bodies.as_ptr().add(offset), len) }
    }
}

/// The receiver's side of a segment.
pub(crate) struct View {
    bodies: Mmap,
    control: Control,
}

impl View {
    /// Maps what a peer has sent, after checking that it cannot shrink and is as large as said.
    pub(crate) fn open(files: [OwnedFd; 2], len: usize) -> io::Result<Self> {
        let [bodies, control] = files.map(File::from);
        let refused = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        if seals(&bodies) & libc::F_SEAL_SHRINK == 0 || seals(&control) & libc::F_SEAL_SHRINK == 0 {
            return Err(refused("the segment is not sealed"));
        }
        if len == 0
            || bodies.metadata()?.len() != len as u64
            || control.metadata()?.len() != CONTROL as u64
        {
            return Err(refused("the segment has another size than said"));
        }
        // SAFETY: the file cannot shrink (sealed above). Only the sender could still write; it does so only
        // in slots that this side has returned. A peer that breaks this garbles its own tensors: bodies are
        // data and never become lengths, offsets or references.
        let bodies = unsafe { MmapOptions::new().len(len).map(&bodies)? };
        let control = Control(MmapOptions::new().len(CONTROL).map_raw(&control)?);
        Ok(Self { bodies, control })
    }

    pub(crate) fn len(&self) -> usize {
        self.bodies.len()
    }

    /// A body in this segment, or nothing when the record points outside.
    pub(crate) fn body(self: &Arc<Self>, slot: Slot, len: usize) -> Option<Body> {
        let offset = usize::try_from(slot.offset).ok()?;
        let end = offset.checked_add(len)?;
        if end > self.bodies.len() || offset % 64 != 0 || slot.slot as usize >= SLOTS {
            return None;
        }
        Some(Body { view: Arc::clone(self), offset, len, slot })
    }
}

/// A received body in shared memory; dropping it returns the slot.
pub(crate) struct Body {
    view: Arc<View>,
    offset: usize,
    len: usize,
    slot: Slot,
}

impl AsRef<[u8]> for Body {
    fn as_ref(&self) -> &[u8] {
        &self.view.bodies[self.offset..self.offset + self.len]
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(word) = self.view.control.word(self.slot.slot) {
            word.store(self.slot.generation, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(len: usize) -> (Segment, Arc<View>) {
        let segment = Segment::create(len).unwrap();
        let files = [segment.files[0].try_clone().unwrap(), segment.files[1].try_clone().unwrap()];
        (segment, Arc::new(View::open(files, len).unwrap()))
    }

    #[test]
    fn a_dropped_body_returns_its_slot_and_no_other() {
        let (segment, view) = pair(1 << 16);
        // SAFETY: nothing else uses the segment.
        unsafe { segment.write(4096, 3) }.copy_from_slice(b"abc");
        let body = view.body(Slot { segment: 0, slot: 5, generation: 9, offset: 4096 }, 3).unwrap();
        assert_eq!(body.as_ref(), b"abc");
        assert!(!segment.returned(5, 9));
        drop(body);
        assert!(segment.returned(5, 9) && !segment.returned(5, 10) && !segment.returned(4, 9));
    }

    #[test]
    fn a_record_that_points_outside_is_refused() {
        let (_segment, view) = pair(1 << 16);
        let slot = |slot, offset| Slot { segment: 0, slot, generation: 1, offset };
        for (slot, len) in [
            (slot(0, 1 << 16), 1),
            (slot(0, u64::MAX - 63), 128),
            (slot(1024, 0), 1),
            (slot(0, 1), 1),
        ] {
            assert!(view.body(slot, len).is_none());
        }
    }

    #[test]
    fn a_segment_that_could_shrink_or_be_written_is_not_possible() {
        let segment = Segment::create(1 << 16).unwrap();
        let file = File::from(segment.files[0].try_clone().unwrap());
        assert!(file.set_len(1).is_err());
        assert!(MmapOptions::new().map_raw(&file).is_err(), "a new writable mapping");
        let plain = || memfd(c"plain", 4096).unwrap().into();
        assert!(View::open([plain(), plain()], 4096).is_err(), "an unsealed file");
    }
}
