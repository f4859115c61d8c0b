//! What the `config.json` of published networks says in the words of the kinds.

use serde_json::{Map, Value, json};

use crate::kind::Published;
use crate::layers::mlp::Activation;
use crate::published::stage2_widths;
use schemas::dims::Dims;

/// Sizes by their names in `config.json`.
const SIZES: [(&str, &str); 8] = [
    ("vocab", "vocab_size"),
    ("width", "hidden_size"),
    ("depth", "num_hidden_layers"),
    ("heads", "num_attention_heads"),
    ("hidden", "intermediate_size"),
    ("positions", "max_position_embeddings"),
    ("types", "type_vocab_size"),
    ("eps", "layer_norm_eps"),
];

/// Sizes, dropout and activation; none when a size is missing or the activation is unknown.
fn options(config: &Value) -> Option<Map<String, Value>> {
    let mut size = Map::new();
    for (ours, theirs) in SIZES {
        match (&config[theirs], ours) {
            (Value::Null, "types") => drop(size.insert(ours.to_owned(), 0.into())),
            (Value::Null, "eps") => {}
            (Value::Null, _) => return None,
            (number, _) => drop(size.insert(ours.to_owned(), number.clone())),
        }
    }
    let positions = config["position_embedding_type"].as_str().unwrap_or("absolute");
    let named = match &config["hidden_act"] {
        Value::Null => Value::from("gelu"),
        named => named.clone(),
    };
    let activation: Activation = serde_json::from_value(named).ok()?;
    let options = json!({
        "preset": "tiny",
        "size": size,
        "activation": activation,
        "dropout": config["hidden_dropout_prob"].as_f64().unwrap_or(0.1),
    });
    let Value::Object(options) = options else { return None };
    (positions == "absolute").then_some(options)
}

fn set(options: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    options.insert(name.to_owned(), value.into());
}

/// Options of `text/bert`. Beside BERT and BLIP's text network: the text network of InternVideo2, which
/// has a `fusion_layer`.
pub(crate) fn of_bert(config: &Value) -> Option<Published> {
    let kind = config["model_type"].as_str();
    let fused = config["fusion_layer"].as_u64();
    let blip = kind == Some("blip_text_model");
    if !blip && kind != Some("bert") && fused.is_none() {
        return None;
    }
    let mut all = options(config)?;
    let built = config["architectures"][0].as_str().unwrap_or_default();
    let width = config["hidden_size"].as_u64();
    if blip {
        set(&mut all, "cross_from", 0);
        set(&mut all, "encoder_width", config["encoder_hidden_size"].as_u64().or(width)?);
    } else if let Some(layer) = fused {
        set(&mut all, "split", layer);
        set(&mut all, "cross_from", layer);
        set(&mut all, "encoder_width", config["encoder_width"].as_u64().or(width)?);
    } else if config["add_cross_attention"] == true {
        set(&mut all, "cross_from", 0);
        set(&mut all, "encoder_width", width?);
    }
    let heads = ["LMHead", "MaskedLM", "PreTraining"];
    // The second stage of InternVideo2 always hides words.
    let hides = stage2_widths(config).is_some();
    set(&mut all, "mlm", hides || heads.iter().any(|head| built.contains(head)));
    set(&mut all, "nsp", built == "BertForPreTraining");
    let pooled = ["BertForPreTraining", "BertModel", "BlipTextModel"];
    set(&mut all, "pooler", fused.is_none() && pooled.contains(&built));
    if config["is_decoder"] == true && built.contains("LMHead") {
        set(&mut all, "mode", "causal");
    }
    Some(Published { options: Value::Object(all), dims: Dims::new() })
}

/// Options of `models/qformer`, from the configuration of a Q-Former or of BLIP-2 around one.
pub(crate) fn of_qformer(config: &Value) -> Option<Published> {
    let kind = config["model_type"].as_str()?;
    let (inner, whole) = match kind {
        "blip_2_qformer" | "instructblip_qformer" => (config, false),
        "blip-2" | "instructblip" => (&config["qformer_config"], true),
        _ => return None,
    };
    let mut all = options(inner)?;
    let instructed = kind.starts_with("instructblip");
    let text = instructed || inner["use_qformer_text_input"] == true;
    // The tables of words stand beside a Q-Former of BLIP-2, not in it.
    if let Some(size) = all.get_mut("size").and_then(Value::as_object_mut) {
        size.remove("types");
        if !text || (!whole && !instructed) {
            set(size, "vocab", 0);
        }
    }
    let queries = config["num_query_tokens"].as_u64().unwrap_or(32);
    set(&mut all, "queries", queries);
    set(&mut all, "text", text);
    set(&mut all, "cross_every", inner["cross_attention_frequency"].as_u64().unwrap_or(2));
    set(&mut all, "encoder_width", inner["encoder_hidden_size"].as_u64().unwrap_or(1408));
    Some(Published { options: Value::Object(all), dims: Dims::new() })
}
