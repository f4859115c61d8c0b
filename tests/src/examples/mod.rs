//! The kinds of the pages under `docs/src/how_to/`, as they would stand in `modules/src/`, and the
//! code of `docs/src/text.md`.

pub mod gated_mean;
pub mod gratings;
pub mod huber;
pub mod text;
