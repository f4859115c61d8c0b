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
//! With `along: tokens` the samples stay as they are, and each has the tokens of all inputs:
//! `N L1 D` and `N L2 D` give `N L1+L2 D`.
//!
//! `of` says what the rows are: `tokens` (`N L D`), `vectors` (`N D`), `ids` (ints `N L`) or `numbers`
//! (ints `N`). Gradients of floats flow back to where the rows came from. A node that must see
//! several batches in a step, matched and unmatched pairs for example, sees them as one.
//! Source: the matching batch of InternVideo2, recipes §2.6.

use burn::module::Module;
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::{Entry, OptionProblem};
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
    /// What follows each other.
    pub along: Along,
}

/// What follows each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Along {
    /// Samples.
    #[default]
    Rows,
    /// Tokens of each sample; `of` is `tokens` or `ids`.
    Tokens,
}

/// No parameters.
#[derive(Module, Debug)]
pub struct Concatenate {
    inputs: usize,
}

impl Config {
    fn letter(&self) -> &'static str {
        if self.along == Along::Rows { "N" } else { "L" }
    }

    /// Adds an input whose joined dim is so long.
    fn input(&self, ports: Ports, name: &str, extent: &str) -> Ports {
        match (self.along, self.of) {
            (Along::Rows, of) => of.input(ports, name, extent),
            (Along::Tokens, Rows::Ids) => ports.stopped(name, format!("N {extent}")).int(),
            (Along::Tokens, _) => ports.input(name, format!("N {extent} D")),
        }
    }

    /// Adds an output whose joined dim is so long.
    fn output(&self, ports: Ports, name: &str, extent: &str) -> Ports {
        match (self.along, self.of) {
            (Along::Rows, of) => of.output(ports, name, extent),
            (Along::Tokens, Rows::Ids) => ports.plain(name, format!("N {extent}")).int(),
            (Along::Tokens, _) => ports.output(name, format!("N {extent} D")),
        }
    }
}

impl Kind for Config {
    type Module = Concatenate;

    fn ports(&self, wired: &[String]) -> Ports {
        let (mut ports, mut all) = (Ports::default(), Vec::new());
        for (number, name) in INPUTS.into_iter().enumerate() {
            let rows = format!("{}{}", self.letter(), number + 1);
            ports = self.input(ports, name, &rows);
            ports = match (number, self.along) {
                (0, Along::Rows) => ports.about("samples"),
                (0, Along::Tokens) => ports.about("tokens of samples"),
                _ => ports.optional().about("more of them"),
            };
            if number == 0 || wired.iter().any(|port| port == name) {
                all.push(rows);
            }
        }
        self.output(ports, "all", &all.join("+")).about("all of them")
    }

    fn check(&self, _: &Dims) -> Vec<OptionProblem> {
        let flat = matches!(self.of, Rows::Vectors | Rows::Numbers);
        let refuse = || {
            let message = "`along: tokens` joins the tokens of each sample, but these have none";
            OptionProblem::new("along", message, "write `of: tokens` or `of: ids`")
        };
        (flat && self.along == Along::Tokens).then(refuse).into_iter().collect()
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
        let joined = Joined(if self.along == Along::Rows { 0 } else { 1 });
        outputs.put("all", self.of.map(&mut inputs, &INPUTS, joined)?);
        Ok(outputs)
    }
}

/// Kind `select/concatenate`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("concatenate.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, Int, Tensor};
    use schemas::node::At;

    use crate::rng::Key;

    #[test]
    fn rows_follow_each_other_and_gradients_part_again() {
        let device = Device::flex().autodiff();
        let row = |value: f32| Tensor::<2>::from_data([[value, value]], &device).require_grad();
        let (a, b) = (row(1.0), row(2.0));
        let config = Config { of: Rows::Vectors, along: Along::Rows };
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

    #[test]
    fn tokens_follow_each_other_in_each_sample() {
        let device = Device::flex();
        let config = Config { of: Rows::Ids, along: Along::Tokens };
        let wired = ["first", "second"].map(str::to_owned);
        assert_eq!(config.ports(&wired).find_output("all").unwrap().dims, "N L1+L2");
        let module = config.init(&Dims::new(), &Init::new(0, "join", &device));
        let ids = |data: [[i64; 2]; 2]| Tensor::<2, Int>::from_data(data, &device);
        let inputs =
            Tensors::of("first", ids([[1, 2], [3, 4]])).with("second", ids([[5, 6], [7, 8]]));
        let call = Call::new(Key::new(0, "join"), At::default());
        let all: Tensor<2, Int> =
            config.forward(&module, inputs, &call).unwrap().take("all").unwrap();
        let all: Vec<i64> = all.into_data().convert::<i64>().try_to_vec().unwrap();
        assert_eq!(all, [1, 2, 5, 6, 3, 4, 7, 8]);
        let flat = Config { of: Rows::Vectors, along: Along::Tokens };
        assert_eq!(flat.check(&Dims::new()).len(), 1);
    }
}
