//! Reading the `config.json` that lies beside published weights.

use schemas::dims::Dims;
use serde_json::{Value, json};

use crate::kind::Published;

/// A whole number of a config, from 1: what is counted in patches is divided by it.
pub(crate) fn count(config: &Value, field: &str) -> Option<usize> {
    let number = config[field].as_u64().filter(|number| *number > 0)?;
    usize::try_from(number).ok()
}

/// The same, or what transformers takes when the field is left out.
pub(crate) fn count_or(config: &Value, field: &str, default: usize) -> usize {
    count(config, field).unwrap_or(default)
}

/// A text of a config, or what transformers takes when the field is left out.
pub(crate) fn word<'a>(config: &'a Value, field: &str, default: &'a str) -> &'a str {
    config[field].as_str().unwrap_or(default)
}

/// The part of a config that describes a network: the object `part` of a model in `models`, or the
/// whole of a config of the network alone.
pub(crate) fn part<'a>(
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

/// A switch of a config, or what the published code takes when the field is left out.
pub(crate) fn switch(config: &Value, field: &str, default: bool) -> bool {
    config[field].as_bool().unwrap_or(default)
}

/// Whether queries and values of a VideoMAE have biases; later releases of transformers renamed the
/// switch.
pub(crate) fn videomae_biases(config: &Value) -> bool {
    switch(config, "qv_bias", switch(config, "qkv_bias", true))
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
pub(crate) fn hidden(config: &Value, ratio: &str, width: usize) -> Option<usize> {
    Some((width as f64 * config[ratio].as_f64()?) as usize)
}

/// Whether each of these fields is left out or has this value, the only one that is computed here.
pub(crate) fn only(config: &Value, fields: &[(&str, Value)]) -> bool {
    let known =
        |(field, value): &(&str, Value)| config[*field].is_null() || config[*field] == *value;
    fields.iter().all(known)
}

/// Whether an architecture of transformers is named.
pub(crate) fn is_a(config: &Value, architecture: &str) -> bool {
    let names = config["architectures"].as_array();
    names.into_iter().flatten().any(|name| name.as_str() == Some(architecture))
}

/// Whether a config is of a whole model of transformers, and not of a classifier made of a part of it.
pub(crate) fn is_whole(config: &Value, model: &str, architecture: &str) -> bool {
    let unsaid = config["architectures"].is_null();
    says(config, "model_type", model) && (unsaid || is_a(config, architecture))
}

/// Channels of InternVideo2's whole second stage: of pooled clips, of texts, and of the space in
/// which they are compared.
pub(crate) fn stage2_widths(config: &Value) -> Option<[usize; 3]> {
    config["fusion_layer"].as_u64()?;
    config["temp"].as_f64()?;
    let of = |field: &str| count(config, field);
    Some([of("vision_width")?, of("hidden_size")?, of("embed_dim")?])
}

/// Dims by name.
pub(crate) fn dims<const N: usize>(pairs: [(&str, usize); N]) -> Dims {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// The groups of heads of InternVideo2's stages 1 and 2, from the arguments of the official code.
pub(crate) fn alignment_heads(config: &Value) -> Option<Vec<Published>> {
    let second = says(config, "model", "internvideo2_stage2_vision");
    if !second && !says(config, "model", "pretrain_internvideo2") {
        return None;
    }
    let picture = switch(config, "sep_image_video_pos_embed", false);
    let of = |field: &str| count(config, field);
    let [height, image_width] = sides(config, "img_size")?;
    let (patch, tubelet) = (of("patch_size")?, of("tubelet_size")?);
    let lattice = [of("num_frames")? / tubelet, height / patch, image_width / patch];
    let [t, h, w] = lattice;
    let (all, width, depth) = (t * h * w, of("embed_dim")?, of("depth")?);
    let tokens = |group: &str, head: &str, front: usize| {
        let last = of(&format!("{group}_return_layer"))?;
        let options = json!({
            "group": group,
            "head": head,
            "last": last,
            "interval": config[format!("{group}_student_return_interval")].as_f64()?,
            "separable": switch(config, "sep_pos_embed", false),
            "picture_table": picture,
        });
        let taught = of(&format!("{group}_teacher_embed_dim"))?;
        let student = [("K", depth), ("S", 1 + all), ("D", width)];
        let teacher = [("L", last), ("M", front + all), ("E", taught)];
        let mut sizes = dims([("t", t), ("h", h), ("w", w)]);
        sizes.extend(dims(student).into_iter().chain(dims(teacher)));
        Some(Published { options, dims: sizes })
    };
    let pooled = [("D", of("clip_embed_dim")?), ("E", of("clip_teacher_final_dim")?)];
    let pooled = Published { options: json!({ "of": "pooled" }), dims: dims(pooled) };
    let clip = tokens("clip", "linear", 1)?;
    // The second stage has no heads for the motion teacher.
    Some(if second { vec![clip, pooled] } else { vec![clip, tokens("mae", "mlp", 0)?, pooled] })
}

/// The heads of InternVideo-Next's stages on the encoder.
pub(crate) fn next_heads(config: &Value) -> Option<Vec<Published>> {
    let of = |field: &str| count(config, field);
    let pooled = |taught: usize, unit: bool| {
        let options = json!({ "of": "pooled", "head": "mlp", "unit": unit });
        Some(Published { options, dims: dims([("D", of("clip_embed_dim")?), ("E", taught)]) })
    };
    let width = of("embed_dim")?;
    if says(config, "kind", "internvideo_next_stage2") {
        return Some(vec![pooled(width, true)?]);
    }
    if !says(config, "kind", "internvideo_next_stage1") {
        return None;
    }
    let [height, image_width] = sides(config, "img_size")?;
    let (patch, tubelet) = (of("patch_size")?, of("tubelet_size")?);
    let [t, h, w] = [of("num_frames")? / tubelet, height / patch, image_width / patch];
    let (all, front) = (t * h * w, of("cls_token_num")?);
    let taps = config["student_return_layers"].as_array()?.len();
    let options = json!({ "head": "mlp", "class_rows": front });
    let student = [("K", taps), ("S", front + all), ("D", width)];
    let teacher = [("L", taps), ("M", all), ("E", of("clip_teacher_embed_dim")?)];
    let mut sizes = dims([("t", t), ("h", h), ("w", w)]);
    sizes.extend(dims(student).into_iter().chain(dims(teacher)));
    let tokens = Published { options, dims: sizes };
    Some(vec![tokens, pooled(of("clip_teacher_final_dim")?, false)?])
}

/// Sizes of InternVideo2 and its teacher, from the arguments of the official code. Its fused MLP computes
/// the tanh approximation of GELU, its plain one GELU itself; the fused one must be asked for.
pub(crate) fn internvideo2_sizes(config: &Value) -> Option<Value> {
    let width = count(config, "embed_dim")?;
    Some(json!({
        "size": {
            "patch": count(config, "patch_size")?,
            "tubelet": count(config, "tubelet_size").unwrap_or(1),
            "width": width,
            "depth": count(config, "depth")?,
            "heads": count(config, "num_heads")?,
            "hidden": hidden(config, "mlp_ratio", width)?,
            "pool_heads": count(config, "attn_pool_num_heads")?,
            "pooled": count(config, "clip_embed_dim")?,
        },
        "layer_scale": config["init_values"].as_f64()?,
        "activation": if config["use_fused_mlp"] == true { "gelu_tanh" } else { "gelu" },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_found_inside_a_model_and_alone() {
        let whole = json!({ "model_type": "a", "vision_config": { "hidden_size": 3 } });
        let alone = json!({ "model_type": "a_vision", "hidden_size": 3 });
        for config in [whole, alone] {
            let found = part(&config, &["a"], "vision_config", &["a_vision"]).expect("a part");
            assert_eq!(count_or(found, "hidden_size", 1), 3);
            assert_eq!(count_or(found, "depth", 7), 7);
        }
        assert!(part(&json!({ "model_type": "b" }), &["a"], "vision_config", &[]).is_none());
    }

    #[test]
    fn a_classifier_is_no_whole_model() {
        let of = |built: &str| json!({ "model_type": "clip", "architectures": [built] });
        assert!(is_whole(&of("CLIPModel"), "clip", "CLIPModel"));
        assert!(is_whole(&json!({ "model_type": "clip" }), "clip", "CLIPModel"));
        assert!(!is_whole(&of("CLIPForImageClassification"), "clip", "CLIPModel"));
    }

    #[test]
    fn a_switch_that_is_not_known_is_seen() {
        let fields = [("eps", json!(1e-6)), ("bias", json!(true))];
        assert!(only(&json!({ "eps": 0.000_001 }), &fields));
        assert!(!only(&json!({ "eps": 1e-6, "bias": false }), &fields));
    }

    #[test]
    fn a_patch_of_no_pixels_is_no_number() {
        assert_eq!(count(&json!({ "patch_size": 0 }), "patch_size"), None);
        let config = json!({ "model": "pretrain_internvideo2", "img_size": 8, "patch_size": 0 });
        assert!(alignment_heads(&config).is_none());
    }
}
