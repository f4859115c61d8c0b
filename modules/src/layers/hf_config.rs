//! Numbers of a `config.json` as transformers writes it: what a file leaves out has a default.

use serde_json::Value;

/// The part of a configuration that describes a network: the object `part` of a model in `models`, or
/// the whole of a configuration of the network alone.
pub fn part<'a>(
    config: &'a Value,
    models: &[&str],
    part: &str,
    alone: &[&str],
) -> Option<&'a Value> {
    let model = config["model_type"].as_str()?;
    match () {
        () if models.contains(&model) => Some(&config[part]),
        () if alone.contains(&model) => Some(config),
        () => None,
    }
}

/// A whole number of a configuration.
pub fn count(config: &Value, field: &str, default: usize) -> usize {
    config[field].as_u64().map_or(default, |number| number as usize)
}

/// A text of a configuration.
pub fn word<'a>(config: &'a Value, field: &str, default: &'a str) -> &'a str {
    config[field].as_str().unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_network_is_found_inside_a_model_and_alone() {
        let whole = json!({ "model_type": "a", "vision_config": { "hidden_size": 3 } });
        let alone = json!({ "model_type": "a_vision", "hidden_size": 3 });
        for config in [whole, alone] {
            let found = part(&config, &["a"], "vision_config", &["a_vision"]).expect("a part");
            assert_eq!((count(found, "hidden_size", 1), count(found, "depth", 7)), (3, 7));
        }
        assert!(part(&json!({ "model_type": "b" }), &["a"], "vision_config", &[]).is_none());
    }
}
