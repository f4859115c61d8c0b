//! Low-rank adapters in the files of PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! A matrix of an adapter is named after the layer beside which it stands, in the first layout of the
//! kind: `base_model.model.<layer>.lora_A.weight`, `[rank, inputs]`, and `lora_B`, `[outputs, rank]`.
//! Loading is all or nothing. A layer that a layout stores as a part of another one has no name of its
//! own there, so that its adapter cannot be read or written.
//! Source: Hu et al. 2021 (arXiv 2106.09685); Kalajdzievski 2023 (arXiv 2312.03732) for `use_rslora`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::Module;
use burn::tensor::Tensor;
use schemas::lora::Lora;
use schemas::node::NodeError;
use serde_json::{Value, json};

use super::{assemble, layouts, load_slots, write};
use crate::archive::Archive;
use crate::kind::Kind;
use crate::layout::{Layout, Slot};
use crate::parameters;
use crate::tensors::AnyTensor;

/// Options of the adapters.
const CONFIG: &str = "adapter_config.json";
/// Their matrices.
const WEIGHTS: &str = "adapter_model.safetensors";
/// Text before the keys.
const BEFORE: &str = "base_model.model.";

/// Paths of the linear layers of a module.
fn layers<M: Module>(module: &M) -> Vec<String> {
    let layer = |p: parameters::Parameter| {
        p.path.strip_suffix(".weight").filter(|_| p.linear).map(str::to_owned)
    };
    parameters::list(module).into_iter().filter_map(layer).collect()
}

/// The published name of a layer; none where it is a part of another one.
fn name(layout: &Layout, layer: &str) -> Option<String> {
    let slot = layout.slot(&format!("{layer}.weight"));
    let alone = slot.part == [0, 1];
    slot.key.strip_suffix(".weight").filter(|_| alone).map(str::to_owned)
}

/// The key of a parameter of an adapter; none for any other parameter, and where the layout has none.
pub fn key<K: Kind>(kind: &K, path: &str) -> Option<String> {
    key_in(&layouts(kind)[0], path)
}

fn key_in(layout: &Layout, path: &str) -> Option<String> {
    let (layer, matrix) = path.split_once(".lora.")?;
    let matrix = match matrix {
        "a" => "lora_A",
        "b" => "lora_B",
        _ => return None,
    };
    Some(format!("{BEFORE}{}.{matrix}.weight", name(layout, layer)?))
}

/// Reads what `adapter_config.json` of a folder says about the layers of a module.
pub fn read_config<K: Kind>(
    kind: &K,
    module: &K::Module,
    folder: &Path,
) -> Result<Lora, NodeError> {
    let file = folder.join(CONFIG);
    let fail = |reason: String| NodeError::Weights { file: file.display().to_string(), reason };
    let text = std::fs::read_to_string(&file).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let config: Value =
        serde_json::from_str(&text).map_err(|e| fail(format!("is not JSON: {e}")))?;
    options(&layouts(kind)[0], &layers(module), &config).map_err(fail)
}

/// The adapters that a configuration asks for.
fn options(layout: &Layout, layers: &[String], config: &Value) -> Result<Lora, String> {
    let kind = config["peft_type"].as_str().unwrap_or_default();
    if kind != "LORA" {
        return Err(format!("is of `peft_type` {kind:?}; only LORA is known"));
    }
    for field in ["use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"] {
        if config[field].as_bool().unwrap_or(false) {
            return Err(format!("has `{field}`, which is not known here"));
        }
    }
    for field in ["rank_pattern", "alpha_pattern"] {
        if config[field].as_object().is_some_and(|map| !map.is_empty()) {
            return Err(format!("has a `{field}`: adapters of one node have one rank and alpha"));
        }
    }
    for field in ["modules_to_save", "layers_to_transform", "target_parameters"] {
        if config[field].as_array().is_some_and(|list| !list.is_empty()) {
            return Err(format!("has `{field}`, which is not known here"));
        }
    }
    let bias = config["bias"].as_str().unwrap_or("none");
    if bias != "none" {
        return Err(format!("trains biases ({bias:?}); only \"none\" is known"));
    }
    let number =
        |field: &str| config[field].as_f64().ok_or_else(|| format!("has no number `{field}`"));
    Ok(Lora {
        rank: number("r")? as usize,
        alpha: number("lora_alpha")?,
        dropout: config["lora_dropout"].as_f64().unwrap_or(0.0),
        on: patterns(layout, layers, &config["target_modules"])?,
        rank_stabilised: config["use_rslora"].as_bool().unwrap_or(false),
    })
}

/// Patterns of the layers whose published names are targets, or end with a dot and a target.
fn patterns(layout: &Layout, layers: &[String], targets: &Value) -> Result<Vec<String>, String> {
    let words = targets.as_array().ok_or_else(|| {
        format!("has `target_modules` {targets}; write the names of layers as a list")
    })?;
    let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
    let is = |name: &str, word: &str| {
        name == word || name.strip_suffix(word).is_some_and(|rest| rest.ends_with('.'))
    };
    let named: Vec<(&String, String)> =
        layers.iter().filter_map(|layer| Some((layer, name(layout, layer)?))).collect();
    let unknown: Vec<&&str> =
        words.iter().filter(|word| !named.iter().any(|(_, name)| is(name, word))).collect();
    if !unknown.is_empty() {
        return Err(format!("has `target_modules` {unknown:?} that are no layers of this network"));
    }
    let chosen = named.iter().filter(|(_, name)| words.iter().any(|word| is(name, word)));
    let chosen: BTreeSet<&String> = chosen.map(|(layer, _)| *layer).collect();
    let short: BTreeSet<String> = chosen.iter().map(|layer| starred(layer)).collect();
    let lora =
        |on: Vec<String>| Lora { rank: 1, alpha: 1.0, dropout: 0.0, on, rank_stabilised: false };
    let short = lora(short.into_iter().collect());
    let covered: BTreeSet<&String> = layers.iter().filter(|layer| short.covers(layer)).collect();
    Ok(if covered == chosen { short.on } else { chosen.into_iter().cloned().collect() })
}

/// The path with stars for numbers.
fn starred(layer: &str) -> String {
    let star = |name: &str| {
        let number = !name.is_empty() && name.bytes().all(|b| b.is_ascii_digit());
        if number { "*".to_owned() } else { name.to_owned() }
    };
    layer.split('.').map(star).collect::<Vec<_>>().join(".")
}

/// Reads the matrices of all adapters of a module from a folder.
pub fn load<K: Kind>(kind: &K, module: K::Module, folder: &Path) -> Result<K::Module, NodeError> {
    let file = folder.join(WEIGHTS);
    let fail = |reason: String| NodeError::Weights { file: file.display().to_string(), reason };
    let archive = Archive::open(&file)?;
    let mut slots = Vec::new();
    for parameter in parameters::list(&module) {
        if !parameter.path.contains(".lora.") {
            continue;
        }
        let key = key(kind, &parameter.path).ok_or_else(|| fail(fused(&parameter.path)))?;
        let info = archive.info(&key).ok_or_else(|| fail(format!("`{key}` is missing")))?;
        let expected = parameter.file_shape();
        if info.shape != expected {
            return Err(fail(format!("`{key}` is {:?}, expected {expected:?}", info.shape)));
        }
        slots.push((parameter, Slot::whole(&key)));
    }
    let taken: BTreeSet<&str> = slots.iter().map(|(_, slot)| slot.key.as_str()).collect();
    let names = archive.keys().map(|(key, _)| key);
    let unused: Vec<&str> = names.filter(|key| !taken.contains(key)).collect();
    if !unused.is_empty() {
        let reason = format!("holds {unused:?}, for which this module has no adapter");
        return Err(fail(reason));
    }
    load_slots(&archive, module, &slots)
}

fn fused(path: &str) -> String {
    format!("has no key for `{path}`: the layout stores its layer as a part of another one")
}

/// Writes the adapters of a module into a folder, with their options.
pub fn save<K: Kind>(
    kind: &K,
    module: &K::Module,
    lora: &Lora,
    folder: &Path,
) -> Result<(), NodeError> {
    let file = folder.join(WEIGHTS);
    let fail = |reason: String| NodeError::Weights { file: file.display().to_string(), reason };
    let layout = &layouts(kind)[0];
    let values = parameters::values(module);
    let mut pieces = Vec::new();
    let mut targets = BTreeSet::new();
    for parameter in parameters::list(module) {
        let Some((layer, _)) = parameter.path.split_once(".lora.") else { continue };
        let key = key_in(layout, &parameter.path).ok_or_else(|| fail(fused(&parameter.path)))?;
        let numbers = values[&parameter.path].to_data().iter::<f32>().collect();
        targets.extend(name(layout, layer));
        pieces.push((Slot::whole(&key), parameter, numbers));
    }
    let config = json!({
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilised,
        "target_modules": short(&targets, &layers(module), layout),
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
    });
    let text = serde_json::to_string_pretty(&config).expect("numbers and words");
    std::fs::write(folder.join(CONFIG), text + "\n")
        .map_err(|error| fail(format!("cannot be written: {error}")))?;
    write(assemble(pieces), &file)
}

/// Last names of the layers, where these say the same; else the whole names.
fn short(targets: &BTreeSet<String>, layers: &[String], layout: &Layout) -> BTreeSet<String> {
    let last = |name: &String| name.rsplit('.').next().unwrap_or(name).to_owned();
    let short: BTreeSet<String> = targets.iter().map(last).collect();
    let all = layers.iter().filter_map(|layer| name(layout, layer));
    let covered: BTreeSet<String> = all.filter(|name| short.contains(&last(name))).collect();
    if covered == *targets { short } else { targets.clone() }
}

/// Adds the adapters to their matrices, `W + s A B`, and empties them, so that the module computes what
/// it did: a module without adapters takes its other parameters as they are.
pub fn merge<M: Module>(module: M, lora: &Lora) -> M {
    let mut products: BTreeMap<String, Tensor<2>> = BTreeMap::new();
    let values = parameters::values(&module);
    for (path, a) in &values {
        let Some(layer) = path.strip_suffix(".lora.a") else { continue };
        let Some(b) = values.get(&format!("{layer}.lora.b")) else { continue };
        let (a, b) = (a.clone().into_float::<2>(), b.clone().into_float::<2>());
        products.insert(format!("{layer}.weight"), a.matmul(b).mul_scalar(lora.scale()));
    }
    parameters::map(module, &mut |parameter, value| match products.remove(&parameter.path) {
        Some(product) => AnyTensor::from(value.into_float::<2>() + product),
        None if parameter.path.ends_with(".lora.b") => value.zeros(),
        None => value,
    })
}
