//! What things cost here, beside another side measured in the same run.

pub(crate) mod module;
pub(crate) mod step;
pub(crate) mod torch;
pub(crate) mod weights;
