//! Copies of bodies into shared memory.

/// From this size on a body is not left in the cache of the core that wrote it: another core reads it, and a
/// cache line that is written whole need not be read first.
const PAST_CACHE: usize = 4 << 20;

/// Copies bytes of equal length.
pub(crate) fn copy(to: &mut [u8], from: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if from.len() >= PAST_CACHE && to.len() == from.len() && to.as_ptr().align_offset(16) == 0 {
        return stream(to, from);
    }
    to.copy_from_slice(from);
}

/// Writes past the cache; `to` begins at a multiple of 16.
#[cfg(target_arch = "x86_64")]
fn stream(to: &mut [u8], from: &[u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    let whole = from.len() - from.len() % 64;
    for at in (0..whole).step_by(64) {
        // SAFETY: both slices hold 64 bytes from `at` on, and the places written are multiples of 16.
        unsafe {
            let read = from.as_ptr().add(at).cast::<__m128i>();
            let write = to.as_mut_ptr().add(at).cast::<__m128i>();
            let line: [__m128i; 4] = std::array::from_fn(|i| _mm_loadu_si128(read.add(i)));
            line.into_iter().enumerate().for_each(|(i, part)| _mm_stream_si128(write.add(i), part));
        }
    }
    // SAFETY: orders what was written before what tells of it.
    unsafe { _mm_sfence() };
    to[whole..].copy_from_slice(&from[whole..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_copied() {
        for len in [0, 1, PAST_CACHE - 1, PAST_CACHE, PAST_CACHE + 63, PAST_CACHE + 130] {
            for shift in [0, 3] {
                let from: Vec<u8> = (0..len + shift).map(|i| (i * 31 + i / 251) as u8).collect();
                let mut to = vec![0; len + 16];
                let start = to.as_ptr().align_offset(16);
                copy(&mut to[start..start + len], &from[shift..]);
                assert!(to[start..start + len] == from[shift..], "{len} {shift}");
            }
        }
    }
}
