//! Wakes the IO thread out of its poll: an eventfd, written only while the thread sleeps.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering, fence};

pub(crate) struct Wake {
    event: File,
    asleep: AtomicBool,
}

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and owned by nobody else.
        Ok(Self { event: unsafe { File::from_raw_fd(fd) }, asleep: AtomicBool::new(false) })
    }

    /// Called after something was queued.
    pub(crate) fn kick(&self) {
        // Pairs with the fence in `sleeping`: either the thread sees what was queued, or this sees it asleep.
        fence(Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::AcqRel) {
            // Fails only when the counter is full, and then the thread wakes anyway.
            let _ = (&self.event).write(&1u64.to_ne_bytes());
        }
    }

    /// Called before the poll; the queue must be looked at once more afterwards.
    pub(crate) fn sleeping(&self) {
        self.asleep.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Called after the poll.
    pub(crate) fn awake(&self) {
        if !self.asleep.swap(false, Ordering::AcqRel) {
            let _ = (&self.event).read(&mut [0; 8]);
        }
    }
}

impl AsRawFd for Wake {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
