//! An archive as it is after rules were applied to it.

use schemas::node::NodeError;

use super::rules::{ArrayF32, Rule};
use super::{Archive, narrow};
use schemas::glob::fits;

/// A rule, and the keys that it is for.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Pattern of keys; a star stands for any characters.
    pub keys: String,
    /// What happens to the tensors.
    pub rule: Rule,
}

impl Archive {
    /// Applies rules, one after the other. A changed tensor keeps its type; it is held in memory.
    pub fn change(&mut self, changes: &[Change]) -> Result<(), NodeError> {
        for change in changes {
            let Change { keys, rule } = change;
            match rule {
                Rule::StartAtZero { .. } => {
                    self.zeros.push(change.clone());
                    continue;
                }
                Rule::MergeLora { .. } => {
                    self.merge(keys, rule)?;
                    continue;
                }
                _ => {}
            }
            let removes = matches!(rule, Rule::Remove { .. });
            let chosen = |key: &&String| fits(keys, key) && (!removes || rule.removes(key));
            let found: Vec<String> = self.slots.keys().filter(chosen).cloned().collect();
            if found.is_empty() {
                let name = rule.name();
                return Err(self.fail(format!("rule `{name}`: no key fits `{keys}`")));
            }
            for key in found {
                if removes {
                    self.slots.remove(&key);
                } else {
                    self.replace(&key, rule, Vec::new())?;
                }
            }
        }
        Ok(())
    }

    /// Rules that let a parameter of one of these names be absent, by number.
    pub(crate) fn starts_at_zero(&self, names: [&str; 2]) -> Option<usize> {
        let lets = |change: &Change| {
            let Change { keys, rule } = change;
            names.iter().any(|name| fits(keys, name) && rule.absent(name, &[]).is_some())
        };
        self.zeros.iter().position(lets)
    }

    /// Rules that let parameters be absent.
    pub(crate) fn zeros(&self) -> &[Change] {
        &self.zeros
    }

    /// Puts what a rule makes of a tensor, and of arrays beside it, in its place.
    pub(super) fn replace(
        &mut self,
        key: &str,
        rule: &Rule,
        beside: Vec<ArrayF32>,
    ) -> Result<(), NodeError> {
        let told = |reason: String| format!("`{key}`: {reason}");
        let (dtype, made) = {
            let stored = self.get(key)?;
            let array = ArrayF32::new(stored.shape.to_vec(), stored.to_f32());
            let array = array.ok_or_else(|| self.fail(told("has too many values".to_owned())))?;
            let inputs: Vec<ArrayF32> = std::iter::once(array).chain(beside).collect();
            let made = rule.apply(&inputs);
            (stored.dtype, made.map_err(|error| self.fail(told(error.to_string())))?)
        };
        let bytes = narrow(dtype, &made.values);
        let whole =
            || self.fail(told(format!("has {} values, which no rule changes", dtype.name())));
        let bytes = bytes.ok_or_else(whole)?;
        if let Some((_, slot)) = self.slots.get_mut(key) {
            slot.shape = made.shape;
        }
        self.changed.insert(key.to_owned(), bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::{Declared, Dtype, Plan, write};
    use std::collections::BTreeMap;

    #[test]
    fn a_table_is_stretched_and_a_part_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.safetensors");
        let declare = |key: &str, shape: &[usize]| Declared {
            key: key.to_owned(),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
        };
        let tensors = vec![declare("head.weight", &[2]), declare("pos_embed", &[1, 3, 1])];
        let plan = Plan::new(tensors, BTreeMap::new()).unwrap();
        let bytes = |values: &[f32]| -> Vec<u8> {
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        };
        let of = |key: &str| match key {
            "pos_embed" => bytes(&[5.0, 1.0, 2.0]),
            _ => bytes(&[7.0, 8.0]),
        };
        let fed = plan.tensors().iter().map(|one| Ok((one.key.clone(), of(&one.key).into())));
        write(&file, &plan, fed, None).unwrap();
        let mut archive = Archive::open(&file).unwrap();
        let change = |keys: &str, rule: &str| Change {
            keys: keys.to_owned(),
            rule: serde_json::from_str(rule).unwrap(),
        };
        let stretch = change("pos_*", r#"{"resize_time":{"from":2,"to":4,"leading":1}}"#);
        let leave = change("head.*", r#"{"remove":{"keys":"head.*"}}"#);
        archive.change(&[stretch.clone(), leave]).unwrap();
        assert_eq!(archive.keys().map(|(key, _)| key).collect::<Vec<_>>(), ["pos_embed"]);
        let table = archive.get("pos_embed").unwrap();
        assert_eq!(
            (table.shape, table.to_f32()),
            (&[1, 5, 1][..], vec![5.0, 1.0, 1.25, 1.75, 2.0])
        );
        let error = archive.change(&[Change { keys: "tail".to_owned(), ..stretch }]).unwrap_err();
        assert!(error.to_string().contains("no key fits `tail`"), "{error}");
    }
}
