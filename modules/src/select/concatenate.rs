//! Concatenation: the rows of up to four tensors, one after the other.
//!
//! | port     | dims        | what                                              |
//! |----------|-------------|---------------------------------------------------|
//! | `first`  | `N1 L D`    | samples; other dims with another `of`             |
//! | `second` | `N2 L D`    | optional: more of them                            |
//! | `third`  | `N3 L D`    | optional: more of them                            |
//! | `fourth` | `N4 L D`    | optional: more of them                            |
//! | `all`    | `N1+.. L D` | all rows                                          |
//!
//! `of` says what the rows are: `tokens` (`N L D`), `vectors` (`N D`), `ids` (ints `N L`) or `numbers`
//! (ints `N`). Gradients of floats flow back to where the rows came from. A node that must see
//! several batches in a step, matched and unmatched pairs for example, sees them as one.
//! Source: the matching batch of InternVideo2, recipes §2.6.

use burn::module::Module;
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::Entry;
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::init::Init;
use crate::kind::{self, Call, Kind};
use crate::layers::rows::{Joined, Rows};
use crate::tensors::Tensors;

/// Inputs in their order.
const INPUTS: [&str; 4] = ["first", "second", "third", "fourth"];

/// Options.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the rows are.
    pub of: Rows,
}

/// No parameters.
#[derive(Module, Debug)]
pub struct Concatenate {
    inputs: usize,
}

impl Kind for Config {
    type Module = Concatenate;

    fn ports(&self, wired: &[String]) -> Ports {
        let (mut ports, mut all) = (Ports::default(), Vec::new());
        for (number, name) in INPUTS.into_iter().enumerate() {
            let rows = format!("N{}", number + 1);
            ports = self.of.input(ports, name, &rows);
            ports = if number == 0 {
                ports.about("samples")
            } else {
                ports.optional().about("more of them")
            };
            if number == 0 || wired.iter().any(|port| port == name) {
                all.push(rows);
            }
        }
        self.of.output(ports, "all", &all.join("+")).about("all rows")
    }

    fn init(&self, _: &Dims, _: &Init) -> Concatenate {
        Concatenate { inputs: INPUTS.len() }
    }

    fn forward(
        &self,
        _: &Concatenate,
        mut inputs: Tensors,
        _: &Call,
    ) -> Result<Tensors, NodeError> {
        let mut outputs = Tensors::new();
        outputs.put("all", self.of.map(&mut inputs, &INPUTS, Joined)?);
        Ok(outputs)
    }
}

/// Kind `select/concatenate`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("concatenate.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Tensor};
    use schemas::node::At;

    use crate::rng::Key;

    #[test]
    fn rows_follow_each_other_and_gradients_part_again() {
        let device = Device::flex().autodiff();
        let row = |value: f32| Tensor::<2>::from_data([[value, value]], &device).require_grad();
        let (a, b) = (row(1.0), row(2.0));
        let config = Config { of: Rows::Vectors };
        let wired = ["first", "third"].map(str::to_owned);
        assert_eq!(config.ports(&wired).find_output("all").unwrap().dims, "N1+N3 D");
        let module = config.init(&Dims::new(), &Init::new(0, "join", &Device::flex()));
        let inputs = Tensors::of("first", a.clone()).with("third", b.clone());
        let call = Call::new(Key::new(0, "join"), At::default());
        let all: Tensor<2> = config.forward(&module, inputs, &call).unwrap().take("all").unwrap();
        assert_eq!(all.clone().into_data().try_to_vec::<f32>().unwrap(), [1.0, 1.0, 2.0, 2.0]);
        let weight = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0]], &device);
        let gradients = (all * weight).sum().backward();
        let of = |leaf: &Tensor<2>| leaf.grad(&gradients).unwrap().into_data();
        assert_eq!(of(&a).try_to_vec::<f32>().unwrap(), [1.0, 2.0]);
        assert_eq!(of(&b).try_to_vec::<f32>().unwrap(), [3.0, 4.0]);
    }
}
