//! Reading the `config.json` that lies beside published weights.

use schemas::dims::Dims;
use serde_json::{Value, json};

use crate::kind::Published;

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

/// The groups of heads of InternVideo2's stages 1 and 2, from the arguments of the official code.
pub(crate) fn alignment_heads(config: &Value) -> Option<Vec<Published>> {
    let second = says(config, "model", "internvideo2_stage2_vision");
    if !second && !says(config, "model", "pretrain_internvideo2") {
        return None;
    }
    let picture = config["sep_image_video_pos_embed"].as_bool().unwrap_or(false);
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

/// Sizes of InternVideo2 and its teacher, from the arguments of the official code.
pub(crate) fn internvideo2_sizes(config: &Value) -> Option<Value> {
    let width = count(config, "embed_dim")?;
    Some(json!({
        "size": {
            "patch": count(config, "patch_size")?,
            "tubelet": count(config, "tubelet_size").unwrap_or(1),
            "width": width,
            "depth": count(config, "depth")?,
            "heads": count(config, "num_heads")?,
            "hidden": hidden(config, width)?,
            "pool_heads": count(config, "attn_pool_num_heads")?,
            "pooled": count(config, "clip_embed_dim")?,
        },
        "layer_scale": config["init_values"].as_f64()?,
    }))
}
