//! The one place of the transport that reads the clock.

use std::time::Instant;

/// Now, on a clock that never goes back.
#[expect(clippy::disallowed_methods, reason = "this is the clock of the transport")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
