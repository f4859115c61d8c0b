//! The way out to one peer: numbers messages, and takes the short way where that keeps the order.
//!
//! Between processes of one host a small first frame goes straight from the caller's thread into the side socket;
//! ZeroMQ and two of its thread changes are not involved. Everything else, and everything while something
//! unnumbered still waits for the IO thread, goes through ZeroMQ. Both ways share one sequence. A number is given
//! and the short way taken under one lock, so whatever comes by ZeroMQ with number n, all smaller numbers that
//! took the short way are already there.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::place::{Charge, Outgoing};
use super::side::Side;
use super::wire;

/// Largest frame that goes the short way; several fit into the socket's buffer.
pub(crate) const DIRECT: usize = 32 << 10;
/// Frames that may overtake chunks which are still being written, and wait at the other side for them.
const AHEAD: usize = 1000;

#[derive(Default)]
pub(crate) struct Out(Mutex<State>);

#[derive(Default)]
struct State {
    sent: u64,
    /// Messages that wait for the IO thread to number them.
    unnumbered: usize,
    side: Option<Side>,
    /// The last message with chunks, while it is being written.
    chunks: Weak<Charge>,
    /// Frames that went the short way since.
    ahead: usize,
}

impl Out {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the short way.
    pub(crate) fn open(&self, side: Side) {
        self.lock().side = Some(side);
    }

    /// Counts a message that the IO thread will number.
    pub(crate) fn wait(&self) {
        self.lock().unnumbered += 1;
    }

    /// Sends the short way, or gives back what the IO thread has to send, counted by [`Out::wait`].
    pub(crate) fn direct(&self, mut outgoing: Outgoing) -> Option<Outgoing> {
        let mut state = self.lock();
        let busy = state.ahead >= AHEAD && state.chunks.strong_count() > 0;
        let short = outgoing.chunks.is_empty() && outgoing.frame.len() <= DIRECT;
        if short && state.unnumbered == 0 && !busy {
            let sequence = state.sent + 1;
            wire::number(&mut outgoing.frame, sequence);
            if state.side.as_ref().is_some_and(|side| side.send(&outgoing.frame, &[]).is_ok()) {
                state.sent = sequence;
                state.ahead += 1;
                return None;
            }
        }
        state.unnumbered += 1;
        Some(outgoing)
    }

    /// Numbers a message on the IO thread.
    pub(crate) fn number(&self, outgoing: &mut Outgoing) -> u64 {
        let mut state = self.lock();
        state.sent += 1;
        state.unnumbered = state.unnumbered.saturating_sub(1);
        if !outgoing.chunks.is_empty() {
            state.chunks = Arc::downgrade(&outgoing.charge);
            state.ahead = 0;
        }
        wire::number(&mut outgoing.frame, state.sent);
        state.sent
    }
}
