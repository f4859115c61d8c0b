//! Gather: the rows of a tensor that are named by number, in the order in which they are named.
//!
//! | port     | dims    | what                                                    |
//! |----------|---------|---------------------------------------------------------|
//! | `rows`   | `N L D` | samples; other dims with another `of`                   |
//! | `index`  | `K`     | numbers of rows, from 0; may repeat                     |
//! | `chosen` | `K L D` | the rows                                                |
//!
//! `of` says what the rows are: `tokens` (`N L D`), `vectors` (`N D`), `ids` (ints `N L`) or `numbers`
//! (ints `N`). The gradient of floats flows back, added up where a row was named more than once.
//! Source: the hard negatives of Li et al. 2021, "ALBEF" (arXiv 2107.07651); recipes §2.6.

use burn::module::Module;
use burn::tensor::{Int, Tensor};
use schemars::JsonSchema;
use schemas::dims::Dims;
use schemas::entry::Entry;
use schemas::node::NodeError;
use schemas::port::Ports;
use serde::{Deserialize, Serialize};

use crate::init::Init;
use crate::kind::{self, Call, Kind};
use crate::layers::rows::{Chosen, Rows};
use crate::tensors::Tensors;

/// Options.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the rows are.
    pub of: Rows,
}

/// No parameters.
#[derive(Module, Debug)]
pub struct Gather {
    floats: bool,
}

impl Kind for Config {
    type Module = Gather;

    fn ports(&self, _: &[String]) -> Ports {
        let ports = self.of.input(Ports::default(), "rows", "N").about("samples");
        let ports = ports.stopped("index", "K").int().about("numbers of rows, from 0");
        self.of.output(ports, "chosen", "K").about("the rows")
    }

    fn init(&self, _: &Dims, _: &Init) -> Gather {
        Gather { floats: matches!(self.of, Rows::Tokens | Rows::Vectors) }
    }

    fn forward(&self, _: &Gather, mut inputs: Tensors, _: &Call) -> Result<Tensors, NodeError> {
        let index: Tensor<1, Int> = inputs.take("index")?;
        let held = inputs.iter().find(|(port, _)| *port == "rows");
        let rows = held.map_or(0, |(_, tensor)| tensor.shape()[0]);
        let wrong = index.to_data().convert::<i64>();
        if let Some(wrong) = wrong.iter::<i64>().find(|&i| i < 0 || i >= rows as i64) {
            let what = "port `index`".to_owned();
            let reason = format!("{wrong} is no row of {rows}; use the index of this batch");
            return Err(NodeError::Data { what, reason });
        }
        let mut outputs = Tensors::new();
        outputs.put("chosen", self.of.map(&mut inputs, &["rows"], Chosen(index))?);
        Ok(outputs)
    }
}

/// Kind `select/gather`.
pub const ENTRY: Entry = kind::entry::<Config>(include_str!("gather.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use schemas::node::At;

    use crate::rng::Key;

    fn run(of: Rows, inputs: Tensors) -> Result<Tensors, NodeError> {
        let config = Config { of };
        let module = config.init(&Dims::new(), &Init::new(0, "gather", &Device::flex()));
        config.forward(&module, inputs, &Call::new(Key::new(0, "gather"), At::default()))
    }

    #[test]
    fn gradients_of_a_row_that_is_named_twice_add_up() {
        let device = Device::flex().autodiff();
        let rows = Tensor::<2>::from_data([[1.0, 2.0], [3.0, 4.0]], &device).require_grad();
        let index = Tensor::<1, Int>::from_data([1, 1, 0], &Device::flex());
        let inputs = Tensors::of("rows", rows.clone()).with("index", index);
        let chosen: Tensor<2> = run(Rows::Vectors, inputs).unwrap().take("chosen").unwrap();
        let values: Vec<f32> = chosen.clone().into_data().try_to_vec().unwrap();
        assert_eq!(values, [3.0, 4.0, 3.0, 4.0, 1.0, 2.0]);
        let gradient = rows.grad(&chosen.sum().backward()).unwrap();
        assert_eq!(gradient.into_data().try_to_vec::<f32>().unwrap(), [1.0, 1.0, 2.0, 2.0]);
    }

    #[test]
    fn a_number_that_names_no_row_is_refused() {
        let ids = Tensor::<2, Int>::from_data([[5], [6]], &Device::flex());
        let index = |number: i64| Tensor::<1, Int>::from_data([number], &Device::flex());
        let inputs = |number| Tensors::of("rows", ids.clone()).with("index", index(number));
        let mut found = run(Rows::Ids, inputs(1)).unwrap();
        let chosen: Tensor<2, Int> = found.take("chosen").unwrap();
        assert_eq!(chosen.into_data().iter::<i64>().collect::<Vec<_>>(), [6]);
        let error = run(Rows::Ids, inputs(2)).unwrap_err().to_string();
        assert!(error.contains("2 is no row of 2"), "{error}");
    }
}
