//! Why no kind takes a tensor of a checkpoint.

use schemas::node::NodeError;

use super::convert::Taken;
use crate::archive::Archive;
use crate::layout::Beside;

/// Ends of the keys of tensors that a network computes by itself.
const COMPUTED: [&str; 4] = ["position_ids", "inv_freq", "num_batches_tracked", "token_type_ids"];

/// The reason for people.
pub(super) fn reason(archive: &Archive, key: &str, taken: &[Taken]) -> Result<String, NodeError> {
    for one in taken {
        let Some(known) = key.strip_prefix(one.part.prefix.as_str()) else { continue };
        match one.layout.beside(known) {
            None => {}
            Some(Beside::Idle(what)) => return Ok((*what).to_owned()),
            Some(Beside::Again(path)) => {
                let slot = one.slots.iter().find(|(parameter, _)| parameter.path == *path);
                let Some((_, slot)) = slot else { continue };
                return Ok(if equal(archive, key, &slot.key)? {
                    format!("the same as `{}`", slot.key)
                } else {
                    format!("differs from `{}`, which is used in its place", slot.key)
                });
            }
        }
    }
    Ok(if COMPUTED.iter().any(|buffer| key.ends_with(buffer)) {
        "a buffer that is computed"
    } else if taken.is_empty() {
        "no kind knows this checkpoint"
    } else {
        "no parameter of these kinds has this name"
    }
    .to_owned())
}

/// Whether two tensors have the same type, extents and bytes.
fn equal(archive: &Archive, left: &str, right: &str) -> Result<bool, NodeError> {
    let (left, right) = (archive.get(left)?, archive.get(right)?);
    let alike = left.dtype == right.dtype && left.shape == right.shape;
    Ok(alike && left.bytes == right.bytes)
}
