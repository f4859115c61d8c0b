//! Low-rank adapters in the files of PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! A matrix of an adapter is named after the layer beside which it stands, in a layout of the kind:
//! `base_model.model.<layer>.lora_A.weight`, `[rank, inputs]`, and `lora_B`, `[outputs, rank]`. The
//! layout is the first one in which all these layers have names. A layer that is stored as a part of
//! another one has none there; under the kind's own paths, the last layout, every layer has one.
//! Loading is all or nothing.
//! Source: Hu et al. 2021 (arXiv 2106.09685); Kalajdzievski 2023 (arXiv 2312.03732) for `use_rslora`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::Module;
use burn::tensor::{FloatDType, Tensor};
use schemas::frame::Frame;
use schemas::lora::{Lora, MAX_RANK};
use schemas::node::NodeError;
use serde_json::{Value, json};

use super::{assemble, layouts, load_slots, write};
use crate::archive::Archive;
use crate::kind::Kind;
use crate::layout::{Layout, Slot};
use crate::parameters::{self, Parameter};
use crate::tensors::AnyTensor;

/// Options of the adapters.
const CONFIG: &str = "adapter_config.json";
/// Their matrices.
const WEIGHTS: &str = "adapter_model.safetensors";
/// Fields that change which parameters there are or which layers get an adapter.
const UNKNOWN: [&str; 6] = [
    "modules_to_save",
    "layers_to_transform",
    "target_parameters",
    "exclude_modules",
    "layer_replication",
    "trainable_token_indices",
];
/// Text before the keys.
pub(crate) const BEFORE: &str = "base_model.model.";

/// Paths of the linear layers of a module.
fn layers<M: Module>(module: &M) -> Vec<String> {
    linear(&parameters::list(module))
}

/// Paths of the linear layers among parameters.
fn linear(parameters: &[Parameter]) -> Vec<String> {
    let layer =
        |p: &Parameter| p.path.strip_suffix(".weight").filter(|_| p.linear).map(str::to_owned);
    parameters.iter().filter_map(layer).collect()
}

/// The published name of a layer; none where it is a part of another one.
fn name(layout: &Layout, layer: &str) -> Option<String> {
    let slot = layout.slot(&format!("{layer}.weight"));
    let alone = slot.part == [0, 1];
    slot.key.strip_suffix(".weight").filter(|_| alone).map(str::to_owned)
}

/// The key of a parameter of an adapter in the kind's first layout; none where it has none.
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

fn fault(file: &Path, reason: String) -> NodeError {
    NodeError::Weights { file: file.display().to_string(), reason }
}

fn config(file: &Path) -> Result<Value, NodeError> {
    let text = std::fs::read_to_string(file);
    let text = text.map_err(|error| fault(file, format!("cannot be read: {error}")))?;
    serde_json::from_str(&text).map_err(|error| fault(file, format!("is not JSON: {error}")))
}

/// Opens the matrices of a folder.
pub(crate) fn open(folder: &Path) -> Result<Archive, NodeError> {
    Archive::open(&folder.join(WEIGHTS))
}

/// Alpha of the adapters in a folder, and whether they are rank-stabilised.
pub(crate) fn read_scale(folder: &Path) -> Result<(f64, bool), NodeError> {
    let file = folder.join(CONFIG);
    let config = config(&file)?;
    check_config(&config).map_err(|reason| fault(&file, reason))?;
    let alpha = config["lora_alpha"].as_f64();
    let alpha = alpha.ok_or_else(|| fault(&file, "has no number `lora_alpha`".to_owned()))?;
    Ok((alpha, config["use_rslora"].as_bool().unwrap_or(false)))
}

/// Reads what `adapter_config.json` of a folder says about the layers of a module.
pub fn read_config<K: Kind>(
    kind: &K,
    module: &K::Module,
    folder: &Path,
) -> Result<Lora, NodeError> {
    let file = folder.join(CONFIG);
    let fail = |reason: String| fault(&file, reason);
    let config = config(&file)?;
    let layers = layers(module);
    let layouts = layouts(kind);
    let readings = layouts.iter().map(|layout| (layout, options(layout, &layers, &config)));
    let (good, bad): (Vec<_>, Vec<_>) = readings.partition(|(_, reading)| reading.is_ok());
    let mut good: Vec<(&Layout, Lora)> =
        good.into_iter().filter_map(|(layout, reading)| Some((layout, reading.ok()?))).collect();
    if good.len() > 1 {
        // Names of targets may be layers of several layouts; those of matrices are whole.
        let archive = open(folder)?;
        let named = |(layout, lora): &(&Layout, Lora)| {
            let covered = layers.iter().filter(|layer| lora.covers(layer));
            let mut keys = covered.map(|layer| key_in(layout, &format!("{layer}.lora.a")));
            keys.all(|key| key.is_some_and(|key| archive.info(&key).is_some()))
        };
        let first = good.iter().position(named).unwrap_or(0);
        good.swap(0, first);
    }
    match good.into_iter().next() {
        Some((_, lora)) => Ok(lora),
        None => {
            let reason = bad.into_iter().find_map(|(_, reading)| reading.err());
            Err(fail(reason.unwrap_or_default()))
        }
    }
}

/// Refuses what is not known here.
fn check_config(config: &Value) -> Result<(), String> {
    let kind = config["peft_type"].as_str().unwrap_or_default();
    if kind != "LORA" {
        return Err(format!("is of `peft_type` {kind:?}; only LORA is known"));
    }
    for field in ["use_dora", "use_bdlora", "fan_in_fan_out", "lora_bias", "use_qalora"] {
        if config[field].as_bool().unwrap_or(false) {
            return Err(format!("has `{field}`, which is not known here"));
        }
    }
    for field in ["rank_pattern", "alpha_pattern"] {
        if config[field].as_object().is_some_and(|map| !map.is_empty()) {
            return Err(format!("has a `{field}`: adapters of one node have one rank and alpha"));
        }
    }
    for field in UNKNOWN {
        let empty = match &config[field] {
            Value::Array(list) => list.is_empty(),
            other => other.is_null(),
        };
        if !empty {
            return Err(format!("has `{field}`, which is not known here"));
        }
    }
    if let Some(how) = config["init_lora_weights"].as_str()
        && !["gaussian", "eva", "orthogonal"].contains(&how)
    {
        let field = "init_lora_weights";
        return Err(format!("has `{field}` {how:?}: these adapters belong to changed weights"));
    }
    let bias = config["bias"].as_str().unwrap_or("none");
    if bias != "none" {
        return Err(format!("trains biases ({bias:?}); only \"none\" is known"));
    }
    Ok(())
}

/// The adapters that a configuration asks for.
fn options(layout: &Layout, layers: &[String], config: &Value) -> Result<Lora, String> {
    check_config(config)?;
    let number =
        |field: &str| config[field].as_f64().ok_or_else(|| format!("has no number `{field}`"));
    let rank = number("r")?;
    if !(1.0..=MAX_RANK as f64).contains(&rank) {
        return Err(format!("has `r` {rank}, not from 1 to {MAX_RANK}"));
    }
    Ok(Lora {
        from: None,
        rank: rank as usize,
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
    let on = short.into_iter().collect();
    let short = Lora { from: None, rank: 1, alpha: 1.0, dropout: 0.0, on, rank_stabilised: false };
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

/// Finds the matrices of all adapters of a module in a folder.
fn find<K: Kind>(
    kind: &K,
    module: &K::Module,
    folder: &Path,
) -> Result<(Archive, Vec<(Parameter, Slot)>), NodeError> {
    let file = folder.join(WEIGHTS);
    let archive = open(folder)?;
    let wanted = adapted(&parameters::list(module));
    let fits = layouts(kind).into_iter().map(|layout| slots(&archive, &layout, &wanted));
    let mut reason = String::new();
    for (number, fit) in fits.enumerate() {
        match fit {
            Ok(slots) => return Ok((archive, slots)),
            Err((there, why)) if number == 0 || there => reason = why,
            Err(_) => {}
        }
    }
    Err(fault(&file, reason))
}

/// Parameters of adapters.
fn adapted(parameters: &[Parameter]) -> Vec<Parameter> {
    parameters.iter().filter(|parameter| parameter.path.contains(".lora.")).cloned().collect()
}

/// Where a layout stores these parameters; else why it does not, and whether all keys are there.
fn slots(
    archive: &Archive,
    layout: &Layout,
    wanted: &[Parameter],
) -> Result<Vec<(Parameter, Slot)>, (bool, String)> {
    let (mut slots, mut other) = (Vec::new(), None);
    for parameter in wanted {
        let path = &parameter.path;
        let key = key_in(layout, path).ok_or_else(|| (false, fused(path)))?;
        let info = archive.info(&key);
        let info = info.ok_or_else(|| (false, format!("`{key}` is missing")))?;
        let expected = parameter.file_shape();
        if info.shape != expected && other.is_none() {
            other = Some(format!("`{key}` is {:?}, expected {expected:?}", info.shape));
        } else if !info.dtype.is_float() {
            other = Some(format!("`{key}` has dtype {:?}, not a float", info.dtype));
        }
        slots.push((parameter.clone(), Slot::whole(&key)));
    }
    let taken: BTreeSet<&str> = slots.iter().map(|(_, slot)| slot.key.as_str()).collect();
    let names = archive.keys().map(|(key, _)| key);
    let unused: Vec<&str> = names.filter(|key| !taken.contains(key)).collect();
    match other {
        Some(reason) => Err((true, reason)),
        None if unused.is_empty() => Ok(slots),
        None => Err((true, format!("holds {unused:?}, for which this module has no adapter"))),
    }
}

/// Compares the matrices in a folder with the adapters of a module; reads neither.
pub fn check<K: Kind>(kind: &K, module: &K::Module, folder: &Path) -> Result<(), NodeError> {
    find(kind, module, folder).map(|_| ())
}

/// Reads the matrices of all adapters of a module from a folder.
pub fn load<K: Kind>(kind: &K, module: K::Module, folder: &Path) -> Result<K::Module, NodeError> {
    let (archive, slots) = find(kind, &module, folder)?;
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
    let values = parameters::values(module);
    let mut value = |parameter: &Parameter| {
        Ok(values[&parameter.path].to_data().iter::<f32>().collect::<Vec<f32>>())
    };
    write_folder(kind, &parameters::list(module), lora, &mut value, folder)
}

/// Writes the adapters among these parameters into a folder, which is made.
pub(super) fn write_folder<K: Kind>(
    kind: &K,
    parameters: &[Parameter],
    lora: &Lora,
    values: &mut dyn FnMut(&Parameter) -> Result<Vec<f32>, NodeError>,
    folder: &Path,
) -> Result<(), NodeError> {
    let wanted = adapted(parameters);
    let named = |layout: &Layout| wanted.iter().all(|p| key_in(layout, &p.path).is_some());
    let layout = layouts(kind).into_iter().find(named);
    let layout = layout.ok_or_else(|| fault(folder, fused("lora")))?;
    let (mut pieces, mut targets) = (Vec::new(), BTreeSet::new());
    for parameter in wanted {
        let key = key_in(&layout, &parameter.path);
        let key = key.ok_or_else(|| fault(folder, fused(&parameter.path)))?;
        if let Some((layer, _)) = parameter.path.split_once(".lora.") {
            targets.extend(name(&layout, layer));
        }
        let values = values(&parameter)?;
        pieces.push((Slot::whole(&key), parameter, values));
    }
    let config = json!({
        "peft_type": "LORA",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rank_stabilised,
        "target_modules": short(&targets, &linear(parameters), &layout),
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
    });
    let text = serde_json::to_string_pretty(&config).expect("numbers and words");
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(folder.join(CONFIG), text + "\n"))
        .map_err(|error| fault(folder, format!("cannot be written: {error}")))?;
    write(assemble(pieces), &folder.join(WEIGHTS))
}

/// Last names of the layers, where these say the same; else the whole names.
fn short(targets: &BTreeSet<String>, layers: &[String], layout: &Layout) -> BTreeSet<String> {
    let last = |name: &String| name.rsplit('.').next().unwrap_or(name).to_owned();
    let short: BTreeSet<String> = targets.iter().map(last).collect();
    let all = layers.iter().filter_map(|layer| name(layout, layer));
    let covered: BTreeSet<String> = all.filter(|name| short.contains(&last(name))).collect();
    if covered == *targets { short } else { targets.clone() }
}

/// Adds `s A B` to the values of a matrix `[inputs, outputs]`.
pub(super) fn add([a, b]: [&Frame; 2], lora: &Lora, values: &mut [f32]) -> Result<(), NodeError> {
    let host = crate::device::host();
    let matrix = |frame: &Frame| -> Result<Tensor<2>, NodeError> {
        Ok(AnyTensor::from_frame(frame, &host)?.cast(FloatDType::F32).into_float::<2>())
    };
    let product = matrix(a)?.matmul(matrix(b)?).mul_scalar(lora.scale()).to_data();
    for (value, added) in values.iter_mut().zip(product.iter::<f32>()) {
        *value += added;
    }
    Ok(())
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
