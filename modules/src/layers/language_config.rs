//! What the `config.json` of a published causal language model says, in the words of the kind.

use serde_json::{Value, json};

use super::language::Biased;
use super::rope::Rescale;

/// The options in which a `config.json` of transformers says the same; none when it is of another
/// network, or has a switch that is not known here.
pub fn options(config: &Value) -> Option<Value> {
    let family = config["model_type"].as_str()?;
    // What transformers takes for fields that are left out: context, heads of keys, window.
    let (context, kv_heads, window) = match family {
        "llama" => (2048, None, None),
        "mistral" => (131_072, Some(8), Some(4096)),
        "qwen2" => (32_768, None, None),
        _ => return None,
    };
    let number = |field: &str| config[field].as_u64();
    let off = |field: &str| !config[field].as_bool().unwrap_or(false);
    let silu = config["hidden_act"].as_str().is_none_or(|name| name == "silu");
    if !silu || !off("mlp_bias") || (family == "qwen2" && !off("use_sliding_window")) {
        return None;
    }
    let heads = number("num_attention_heads")?;
    let width = number("hidden_size")?;
    let window = match config.get("sliding_window") {
        _ if family != "mistral" => None,
        None => window,
        Some(given) => given.as_u64(),
    };
    let biases = match (family, off("attention_bias")) {
        ("qwen2", _) => Biased::Inputs,
        (_, true) => Biased::None,
        (_, false) => Biased::All,
    };
    let (theta, rescale) = rotary(config)?;
    let mut options = json!({
        "size": {
            "vocabulary": number("vocab_size")?,
            "width": width,
            "depth": number("num_hidden_layers")?,
            "heads": heads,
            "kv_heads": number("num_key_value_heads").or(kv_heads).unwrap_or(heads),
            "head": number("head_dim").unwrap_or(width / heads.max(1)),
            "hidden": number("intermediate_size")?,
            "context": number("max_position_embeddings").unwrap_or(context),
            "eps": config["rms_norm_eps"].as_f64().unwrap_or(1e-6),
            "sigma": config["initializer_range"].as_f64().unwrap_or(0.02),
        },
        "theta": theta,
        "biases": biases,
        "tied": config["tie_word_embeddings"].as_bool().unwrap_or(false),
    });
    if let Some(window) = window {
        options["window"] = window.into();
    }
    if let Some(rescale) = rescale {
        options["rescale"] = serde_json::to_value(rescale).ok()?;
    }
    Some(options)
}

/// Base and rescaling, from `rope_parameters` or from `rope_theta` and `rope_scaling`.
fn rotary(config: &Value) -> Option<(f64, Option<Rescale>)> {
    let [new, old] = ["rope_parameters", "rope_scaling"].map(|field| &config[field]);
    let given = if new.is_object() { new } else { old };
    let theta = given["rope_theta"].as_f64().or(config["rope_theta"].as_f64());
    let theta = theta.unwrap_or(10_000.0);
    match given["rope_type"].as_str().or(given["type"].as_str()) {
        None | Some("default") => Some((theta, None)),
        Some("llama3") => {
            let original = given["original_max_position_embeddings"].as_u64();
            let rescale = Rescale {
                factor: given["factor"].as_f64()?,
                low_freq_factor: given["low_freq_factor"].as_f64()?,
                high_freq_factor: given["high_freq_factor"].as_f64()?,
                original_max_position_embeddings: original? as usize,
            };
            Some((theta, Some(rescale)))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::language::{LanguageOptions, LanguageSize, Preset};

    #[test]
    fn a_published_config_is_read_in_the_old_and_the_new_spelling() {
        let rope = json!({ "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 });
        let mut old = json!({ "model_type": "llama", "vocab_size": 128_256, "hidden_size": 2048,
            "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
            "head_dim": 64, "intermediate_size": 8192, "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "rope_theta": 500_000.0,
            "rope_scaling": rope.clone() });
        let read = |given: &Value| -> (LanguageSize, Rescale) {
            let options = options(given).unwrap();
            assert_eq!((&options["theta"], &options["tied"]), (&json!(5e5), &json!(true)));
            assert_eq!(options["biases"], "none");
            let size: LanguageOptions = serde_json::from_value(options["size"].clone()).unwrap();
            let rescale = serde_json::from_value(options["rescale"].clone()).unwrap();
            (LanguageSize { theta: 5e5, tied: true, ..Preset::Tiny.size().with(&size) }, rescale)
        };
        let expected = Preset::Llama32.size();
        let (size, rescale) = read(&old);
        assert_eq!(Some(rescale), expected.rescale);
        assert_eq!(LanguageSize { rescale: Some(rescale), ..size }, expected);
        let mut new = old.clone();
        new["rope_parameters"] = rope;
        new["rope_parameters"]["rope_theta"] = 500_000.0.into();
        for field in ["rope_theta", "rope_scaling"] {
            new.as_object_mut().unwrap().remove(field);
        }
        assert_eq!(read(&new), read(&old));
        old["rope_scaling"] = json!({ "type": "yarn", "factor": 4.0 });
        assert_eq!(options(&old), None);
        assert_eq!(options(&json!({ "model_type": "gpt2" })), None);
    }

    #[test]
    fn switches_of_the_families_are_read() {
        let of = |family: &str, more: Value| {
            let mut config = json!({ "model_type": family, "vocab_size": 8, "hidden_size": 8,
                "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8 });
            for (field, value) in more.as_object().unwrap() {
                config[field] = value.clone();
            }
            options(&config)
        };
        let mistral = of("mistral", json!({ "num_key_value_heads": 2 })).unwrap();
        assert_eq!(mistral["window"], 4096);
        let without = of("mistral", json!({ "sliding_window": null })).unwrap();
        assert_eq!((without.get("window"), &without["size"]["kv_heads"]), (None, &json!(8)));
        let qwen2 = of("qwen2", json!({ "sliding_window": 4, "use_sliding_window": false }));
        let qwen2 = qwen2.unwrap();
        assert_eq!((&qwen2["biases"], qwen2.get("window")), (&json!("inputs"), None));
        assert_eq!(of("qwen2", json!({ "use_sliding_window": true })), None);
        assert_eq!(of("llama", json!({ "attention_bias": true })).unwrap()["biases"], "all");
        assert_eq!(of("llama", json!({ "mlp_bias": true })), None);
    }
}
