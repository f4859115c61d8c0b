//! Reading the `config.json` that lies beside published weights.

use schemas::dims::Dims;
use serde_json::Value;

/// A whole number of a config.
pub(crate) fn count(config: &Value, field: &str) -> Option<usize> {
    config[field].as_u64().map(|number| number as usize)
}

/// Whether a field has this text.
pub(crate) fn says(config: &Value, field: &str, text: &str) -> bool {
    config[field].as_str() == Some(text)
}

/// Rows and columns of pictures, which are one number when they are equal.
pub(crate) fn sides(config: &Value, field: &str) -> Option<[usize; 2]> {
    match &config[field] {
        Value::Array(sides) => {
            let side = |i: usize| Some(sides.get(i)?.as_u64()? as usize);
            Some([side(0)?, side(1)?])
        }
        side => side.as_u64().map(|side| [side as usize; 2]),
    }
}

/// Hidden channels of an MLP that is given by its ratio to the width.
pub(crate) fn hidden(config: &Value, width: usize) -> Option<usize> {
    Some((width as f64 * config["mlp_ratio"].as_f64()?) as usize)
}

/// Whether an architecture of transformers is named.
pub(crate) fn is_a(config: &Value, architecture: &str) -> bool {
    let names = config["architectures"].as_array();
    names.into_iter().flatten().any(|name| name.as_str() == Some(architecture))
}

/// Dims by name.
pub(crate) fn dims<const N: usize>(pairs: [(&str, usize); N]) -> Dims {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
