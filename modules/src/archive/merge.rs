//! Low-rank adapters of a checkpoint, or of a folder of PEFT, added to their matrices.

use std::collections::BTreeMap;

use schemas::glob::fits;
use schemas::node::NodeError;

use super::Archive;
use super::rules::{ArrayF32, Rule};
use crate::weights::adapters;

/// Keys of the two matrices of an adapter, by the name of its layer.
type Adapters = BTreeMap<String, [String; 2]>;

/// The adapters among these keys: `<layer>.lora_A.weight` and `lora_B`, with `default` before `weight`
/// where a whole model was saved.
fn adapters_of(archive: &Archive) -> Adapters {
    let one = |(key, _): (&str, _)| {
        let (layer, end) = key.split_once(".lora_A.")?;
        let b = format!("{layer}.lora_B.{end}");
        let whole = ["weight", "default.weight"].contains(&end) && archive.info(&b).is_some();
        whole.then(|| (layer.to_owned(), [key.to_owned(), b]))
    };
    archive.keys().filter_map(one).collect()
}

fn array(archive: &Archive, key: &str) -> Result<ArrayF32, NodeError> {
    let stored = archive.get(key)?;
    let array = ArrayF32::new(stored.shape.to_vec(), stored.to_f32());
    array.ok_or_else(|| archive.fail(format!("`{key}` has too many values")))
}

impl Archive {
    /// Adds adapters to the matrices whose keys fit, and leaves out those that this archive holds.
    pub(super) fn merge(&mut self, keys: &str, rule: &Rule) -> Result<(), NodeError> {
        let Rule::MergeLora { alpha, rank_stabilised, from } = rule else { return Ok(()) };
        let fail = |reason: String| format!("rule `{}`: {reason}", rule.name());
        let (other, alpha, rank_stabilised) = match from {
            None => (None, *alpha, *rank_stabilised),
            Some(folder) => {
                let (said, stabilised) = adapters::read_scale(folder)?;
                if alpha.is_some_and(|alpha| alpha != said) || (*rank_stabilised && !stabilised) {
                    let reason = format!("{} says alpha {said}; leave it out", folder.display());
                    return Err(self.fail(fail(reason)));
                }
                (Some(adapters::open(folder)?), Some(said), stabilised)
            }
        };
        let scaled = Rule::MergeLora { alpha, rank_stabilised, from: None };
        let (mut merged, mut left) = (Vec::new(), Vec::new());
        for (layer, [a, b]) in adapters_of(other.as_ref().unwrap_or(self)) {
            let name = layer.strip_prefix(adapters::BEFORE).filter(|_| other.is_some());
            let weight = self.matrix(name.unwrap_or(&layer), keys);
            let Some(weight) = weight.map_err(|reason| self.fail(fail(reason)))? else {
                left.push(layer);
                continue;
            };
            let source = other.as_ref().unwrap_or(self);
            let beside = vec![array(source, &a)?, array(source, &b)?];
            self.replace(&weight, &scaled, beside)?;
            merged.push((weight, [a, b]));
        }
        if merged.is_empty() || (other.is_some() && !left.is_empty()) {
            let reason = match left.as_slice() {
                [] => format!("no key that fits `{keys}` has adapters beside it"),
                left => format!("no matrix that fits `{keys}` for the adapters of {left:?}"),
            };
            return Err(self.fail(fail(reason)));
        }
        for (weight, matrices) in merged {
            if other.is_none() {
                matrices.iter().for_each(|key| drop(self.slots.remove(key)));
            }
            if let Some(layer) = weight.strip_suffix("base_layer.weight") {
                self.rename(&format!("{layer}base_layer."), layer);
            }
        }
        Ok(())
    }

    /// Key of the matrix of a layer, whatever stands before it; none where no key fits.
    fn matrix(&self, layer: &str, keys: &str) -> Result<Option<String>, String> {
        let ends = [format!("{layer}.weight"), format!("{layer}.base_layer.weight")];
        let is = |key: &&String| {
            let at = |end: &String| {
                let before = key.strip_suffix(end.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            };
            fits(keys, key) && ends.iter().any(at)
        };
        let found: Vec<&String> = self.slots.keys().filter(is).collect();
        match found[..] {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            _ => {
                // A key that is named like the layer is not confused with a deeper one.
                let whole = found.iter().find(|key| ends.contains(key));
                let whole = whole.ok_or_else(|| format!("`{layer}` is each of {found:?}"))?;
                Ok(Some((*whole).clone()))
            }
        }
    }

    /// Gives the keys that begin with a text another beginning.
    fn rename(&mut self, from: &str, to: &str) {
        let keys: Vec<String> =
            self.slots.keys().filter(|key| key.starts_with(from)).cloned().collect();
        for key in keys {
            let name = format!("{to}{}", &key[from.len()..]);
            if let Some(slot) = self.slots.remove(&key) {
                self.slots.insert(name.clone(), slot);
            }
            if let Some(bytes) = self.changed.remove(&key) {
                self.changed.insert(name, bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Declared, Dtype, Plan, write};
    use std::path::Path;

    type Held<'a> = (&'a str, &'a [usize], &'a [f32]);

    fn save(file: &Path, held: &[Held<'_>]) {
        let declare = |(key, shape, _): &Held<'_>| Declared {
            key: (*key).to_owned(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
        };
        let plan = Plan::new(held.iter().map(declare).collect(), BTreeMap::new()).unwrap();
        let bytes = |key: &str| -> Vec<u8> {
            let (_, _, values) = held.iter().find(|(name, ..)| *name == key).unwrap();
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        };
        let fed = plan.tensors().iter().map(|one| Ok((one.key.clone(), bytes(&one.key).into())));
        write(file, &plan, fed, None).unwrap();
    }

    fn change(keys: &str, rule: &str) -> crate::archive::Change {
        let rule = serde_json::from_str(rule).unwrap();
        crate::archive::Change { keys: keys.to_owned(), rule }
    }

    const A: [f32; 2] = [1.0, 2.0];
    const B: [f32; 2] = [3.0, 0.5];
    const W: [f32; 4] = [1.0, 1.0, 1.0, 1.0];
    const MERGED: [f32; 4] = [7.0, 13.0, 2.0, 3.0];

    #[test]
    fn adapters_in_a_checkpoint_go_into_their_matrices() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.safetensors");
        save(
            &file,
            &[
                ("m.q.base_layer.weight", &[2, 2], &W),
                ("m.q.base_layer.bias", &[2], &A),
                ("m.q.lora_A.default.weight", &[1, 2], &A),
                ("m.q.lora_B.default.weight", &[2, 1], &B),
                ("m.norm.weight", &[2], &A),
            ],
        );
        let mut archive = Archive::open(&file).unwrap();
        let error = archive.change(&[change("*", r#"{"merge_lora":{}}"#)]).unwrap_err();
        assert!(error.to_string().contains("`alpha` is needed"), "{error}");
        let none = archive.change(&[change("k.*", r#"{"merge_lora":{"alpha":2}}"#)]).unwrap_err();
        assert!(none.to_string().contains("no matrix that fits `k.*`"), "{none}");
        archive.change(&[change("*", r#"{"merge_lora":{"alpha":2}}"#)]).unwrap();
        let keys: Vec<&str> = archive.keys().map(|(key, _)| key).collect();
        assert_eq!(keys, ["m.norm.weight", "m.q.bias", "m.q.weight"]);
        assert_eq!(archive.get("m.q.weight").unwrap().to_f32(), MERGED);
    }

    #[test]
    fn adapters_of_a_folder_bring_their_alpha() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.safetensors");
        save(&file, &[("net.q.weight", &[2, 2], &W)]);
        let a = "base_model.model.q.lora_A.weight";
        let b = "base_model.model.q.lora_B.weight";
        let held: [Held<'_>; 2] = [(a, &[1, 2], &A), (b, &[2, 1], &B)];
        save(&folder.path().join("adapter_model.safetensors"), &held);
        let words = r#"{"peft_type":"LORA","r":1,"lora_alpha":2,"target_modules":["q"]}"#;
        std::fs::write(folder.path().join("adapter_config.json"), words).unwrap();
        let from = serde_json::to_string(folder.path()).unwrap();
        let mut archive = Archive::open(&file).unwrap();
        let other = format!(r#"{{"merge_lora":{{"from":{from},"alpha":3}}}}"#);
        let error = archive.change(&[change("*", &other)]).unwrap_err();
        assert!(error.to_string().contains("says alpha 2"), "{error}");
        archive.change(&[change("*", &format!(r#"{{"merge_lora":{{"from":{from}}}}}"#))]).unwrap();
        assert_eq!(archive.get("net.q.weight").unwrap().to_f32(), MERGED);
    }
}
