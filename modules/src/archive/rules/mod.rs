//! Checkpoint transforms.
