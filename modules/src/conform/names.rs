//! How arrays of references are named, and what a port is given of them.

use std::collections::BTreeMap;

use schemas::dims::{Dim, Dims};
use schemas::port::{Elements, Port};

use super::array::{Array, places, swapped};
use crate::kind::Names;

/// Names that other codes give to what travels through a port.
const USUAL: [Names; 12] = [
    ("video", &["pixel_values", "pixel_values_videos", "image"]),
    ("ids", &["input_ids"]),
    ("types", &["token_type_ids"]),
    ("memory_mask", &["encoder_attention_mask", "image_attention_mask"]),
    ("mask", &["attention_mask", "pixel_attention_mask"]),
    ("hidden", &["bool_masked_pos"]),
    ("decode", &["bool_masked_pos"]),
    ("visible", &["mask", "bool_masked_pos", "context_mask"]),
    ("memory", &["encoder_hidden_states", "vision_embeds", "image_embeds"]),
    ("tokens", &["last_hidden_state", "encoder_out", "out", "last"]),
    ("pooled", &["pooler_output", "pooled_output"]),
    ("layers", &["z"]),
];

/// Ports that take the places of a mask, and what a mask says of these places.
const PLACES: [(&str, f64); 3] = [("visible", 0.0), ("hidden", 1.0), ("decode", 1.0)];

/// Names of arrays by port.
#[derive(Debug, Clone, Copy)]
pub(super) struct Naming<'a> {
    /// Names that are said.
    pub(super) said: &'a [(String, String)],
    /// Names that the kind says.
    pub(super) own: &'a [Names],
}

impl<'a> Naming<'a> {
    /// Names of a port that are said, else those that its kind says.
    fn chosen(self, port: &str) -> Option<Vec<&'a str>> {
        let said = self.said.iter().filter(|(name, _)| name == port);
        let said: Vec<&str> = said.map(|(_, array)| array.as_str()).collect();
        if !said.is_empty() {
            return Some(said);
        }
        self.own.iter().find(|(name, _)| *name == port).map(|(_, names)| names.to_vec())
    }

    /// Names under which a port may be: those that are chosen, else its own and the usual ones.
    pub(super) fn of(self, port: &'a str) -> Vec<&'a str> {
        self.chosen(port).unwrap_or_else(|| {
            let usual = USUAL.iter().filter(|(name, _)| *name == port);
            std::iter::once(port)
                .chain(usual.flat_map(|(_, names)| names.iter().copied()))
                .collect()
        })
    }

    /// What a port is given: the array of its name, with its dims in the order of the port. What
    /// another part of the network gave stands among the expected arrays, and is taken from there when
    /// its name is chosen.
    pub(super) fn given(
        self,
        port: &'a Port,
        inputs: &BTreeMap<String, Array>,
        expected: &BTreeMap<String, Array>,
        dims: &Dims,
    ) -> Option<(String, Array)> {
        let names = self.of(&port.name);
        let chosen = self.chosen(&port.name).is_some();
        let others = chosen.then(|| names.iter().find_map(|name| expected.get_key_value(*name)));
        let found = names.iter().find_map(|name| inputs.get_key_value(*name));
        let (name, array) = found.or(others.flatten())?;
        let mut array = array.clone();
        let rank = port.dims.split_whitespace().count();
        let bools = !array.float && array.values.iter().all(|v| *v == 0.0 || *v == 1.0);
        let place = PLACES.iter().find(|(name, _)| *name == port.name);
        if let Some((_, value)) = place.filter(|_| port.elements == Elements::Int && bools) {
            array = places(&behind(&array, port, dims), *value)?;
        }
        if port.name == "video" && array.shape.len() == 4 {
            array.shape.insert(2, 1);
        } else if port.name == "video" && array.shape.len() == 5 && array.shape[1] != 3 {
            array = swapped(&array);
        }
        (array.shape.len() == rank).then(|| (name.clone(), array))
    }
}

/// A mask without the columns of class tokens, which stand before those of the lattice.
fn behind(mask: &Array, port: &Port, dims: &Dims) -> Array {
    let sides = port.lattice.as_deref().and_then(|text| Dim::parse_all(text).ok());
    let all = sides.and_then(|sides| {
        sides.iter().map(|side| side.value(dims).ok()).product::<Option<usize>>()
    });
    let [rows, columns] = mask.shape[..] else { return mask.clone() };
    let Some(all) = all.filter(|all| (1..columns).contains(all)) else { return mask.clone() };
    let kept = mask.values.chunks(columns).flat_map(|row| row[columns - all..].to_vec());
    Array { shape: vec![rows, all], values: kept.collect(), float: mask.float }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::port::Ports;

    fn array(shape: &[usize], values: &[f64], float: bool) -> Array {
        Array { shape: shape.to_vec(), values: values.to_vec(), float }
    }

    #[test]
    fn a_mask_may_begin_with_class_tokens() {
        let ports = Ports::default().stopped("visible", "B V").int().lattice("T/1 H/2 W/2");
        let dims = [("T", 1), ("H", 4), ("W", 4)].map(|(name, side)| (name.to_owned(), side));
        let mask = array(&[1, 5], &[0.0, 1.0, 0.0, 1.0, 0.0], false);
        let inputs = [("mask".to_owned(), mask)].into();
        let naming = Naming { said: &[], own: &[] };
        let none = BTreeMap::new();
        let (name, found) = naming.given(&ports.inputs[0], &inputs, &none, &dims.into()).unwrap();
        assert_eq!((name.as_str(), found.values), ("mask", vec![1.0, 3.0]));
    }

    #[test]
    fn what_another_part_gave_is_taken_when_it_is_named() {
        let ports = Ports::default().input("tokens", "B N");
        let expected = [("encoder_out".to_owned(), array(&[1, 2], &[3.0, 4.0], true))].into();
        let (none, dims) = (BTreeMap::new(), Dims::new());
        let given = |naming: Naming<'_>| {
            naming.given(&ports.inputs[0], &none, &expected, &dims).map(|(name, _)| name)
        };
        assert_eq!(given(Naming { said: &[], own: &[] }), None);
        let said = [("tokens".to_owned(), "encoder_out".to_owned())];
        assert_eq!(given(Naming { said: &said, own: &[] }).as_deref(), Some("encoder_out"));
        let own: [Names; 1] = [("tokens", &["encoder_out"])];
        assert_eq!(given(Naming { said: &[], own: &own }).as_deref(), Some("encoder_out"));
    }
}
